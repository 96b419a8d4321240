// SPDX-License-Identifier: Apache-2.0
//! One question about one name: both families, once, within a time limit.
//!
//! Stands between the keeper of times in `mod.rs` and hickory. Caches nothing and applies no search
//! domains; names are full names (istio-egress.md 2.10).

use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    sync::Arc,
    time::Duration,
};

use hickory_resolver::{
    Resolver as Hickory, TokioResolver,
    config::{ConnectionConfig, NameServerConfig, ResolveHosts, ResolverConfig},
    net::{DnsError, NetError, runtime::TokioRuntimeProvider},
    proto::{
        op::ResponseCode,
        rr::{Name, RData, RecordType},
    },
};

use super::ResolveError;

/// Wait for one try at the given servers; the system's own settings bring their own.
const TRY: Duration = Duration::from_secs(2);

/// Bound of one question with all tries and all servers.
const LIMIT: Duration = Duration::from_secs(10);

/// Once one family has addresses, the other gets this long: name servers that swallow AAAA
/// questions are common and must not hold up what is known.
const SECOND_FAMILY: Duration = Duration::from_secs(1);

/// TTL of answers that no server gave (literals, localhost): refreshed at the longest interval.
const STATIC_TTL: Duration = Duration::from_secs(86_400);

/// What one family's question came to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Answer {
    /// At least one address, without duplicates, in the order answered.
    Addresses {
        addresses: Vec<IpAddr>,
        ttl: Duration,
    },
    /// The server says that there is none; `ttl` is how long that holds, when it said so.
    Empty { ttl: Option<Duration> },
    /// No usable answer.
    Failed { reason: Arc<str> },
}

/// The answers to A and AAAA, in this order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Answers(pub(super) [Answer; 2]);

/// The two answers in one word.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Outcome {
    Answered,
    Empty,
    Failed,
}

impl Answers {
    /// Addresses of either family make it answered; a failed family without them a failure.
    pub(super) fn outcome(&self) -> Outcome {
        let any = |is: fn(&Answer) -> bool| self.0.iter().any(is);
        if any(|answer| matches!(answer, Answer::Addresses { .. })) {
            Outcome::Answered
        } else if any(|answer| matches!(answer, Answer::Failed { .. })) {
            Outcome::Failed
        } else {
            Outcome::Empty
        }
    }
}

/// The way to the name servers. Cheap to clone.
#[derive(Clone)]
pub(super) struct Lookup {
    hickory: TokioResolver,
}

impl Lookup {
    /// `None`: the system's servers and its `hosts` file.
    pub(super) fn new(servers: Option<Vec<SocketAddr>>) -> Result<Self, ResolveError> {
        let mut builder = match servers {
            None => TokioResolver::builder_tokio().map_err(|source| ResolveError::System {
                source: source.into(),
            })?,
            Some(servers) => {
                let servers = servers.into_iter().map(name_server).collect();
                let config = ResolverConfig::from_name_servers(servers);
                let mut builder =
                    Hickory::builder_with_config(config, TokioRuntimeProvider::default());
                builder.options_mut().use_hosts_file = ResolveHosts::Never;
                builder.options_mut().timeout = TRY;
                builder
            }
        };
        builder.options_mut().cache_size = 0;
        let hickory = builder.build().map_err(|source| ResolveError::SetUp {
            source: source.into(),
        })?;
        Ok(Self { hickory })
    }

    /// Asks for both families. Takes at most [`LIMIT`].
    pub(super) async fn ask(&self, name: &str) -> Answers {
        if let Some(answers) = without_servers(name) {
            return answers;
        }
        // A trailing dot keeps search domains away.
        let full = match Name::from_utf8(format!("{name}.")) {
            Ok(full) => full,
            Err(error) => {
                let failed = Answer::Failed {
                    reason: error.to_string().into(),
                };
                return Answers([failed.clone(), failed]);
            }
        };
        let v4 = self.ask_family(full.clone(), RecordType::A);
        let v6 = self.ask_family(full, RecordType::AAAA);
        tokio::pin!(v4, v6);
        tokio::select! {
            first = &mut v4 => {
                let second = second_family(&first, v6).await;
                Answers([first, second])
            }
            first = &mut v6 => {
                let second = second_family(&first, v4).await;
                Answers([second, first])
            }
        }
    }

    async fn ask_family(&self, name: Name, family: RecordType) -> Answer {
        match tokio::time::timeout(LIMIT, self.hickory.lookup(name, family)).await {
            Err(_) => timed_out(),
            Ok(Ok(lookup)) => addresses(lookup.answers()),
            Ok(Err(error)) => negative(&error),
        }
    }
}

fn name_server(address: SocketAddr) -> NameServerConfig {
    let connections = [ConnectionConfig::udp(), ConnectionConfig::tcp()];
    let with_port = connections.map(|mut connection| {
        connection.port = address.port();
        connection
    });
    NameServerConfig::new(address.ip(), true, with_port.into())
}

/// Literals and localhost (RFC 6761 section 6.3) are not for name servers.
fn without_servers(name: &str) -> Option<Answers> {
    let of = |addresses: Vec<IpAddr>| Answer::Addresses {
        addresses,
        ttl: STATIC_TTL,
    };
    let none = Answer::Empty { ttl: None };
    if name == "localhost" || name.ends_with(".localhost") {
        return Some(Answers([
            of(vec![Ipv4Addr::LOCALHOST.into()]),
            of(vec![Ipv6Addr::LOCALHOST.into()]),
        ]));
    }
    match name.parse().ok()? {
        v4 @ IpAddr::V4(_) => Some(Answers([of(vec![v4]), none])),
        v6 @ IpAddr::V6(_) => Some(Answers([none, of(vec![v6])])),
    }
}

async fn second_family(first: &Answer, second: impl Future<Output = Answer>) -> Answer {
    if matches!(first, Answer::Addresses { .. }) {
        tokio::time::timeout(SECOND_FAMILY, second)
            .await
            .unwrap_or_else(|_| timed_out())
    } else {
        second.await
    }
}

fn timed_out() -> Answer {
    Answer::Failed {
        reason: "no answer in time".into(),
    }
}

/// The addresses of an answer; a chain of aliases counts with its shortest TTL.
fn addresses(records: &[hickory_resolver::proto::rr::Record]) -> Answer {
    let mut addresses = Vec::new();
    for record in records {
        let address = match &record.data {
            RData::A(v4) => IpAddr::V4(v4.0),
            RData::AAAA(v6) => IpAddr::V6(v6.0),
            _ => continue,
        };
        if !addresses.contains(&address) {
            addresses.push(address);
        }
    }
    if addresses.is_empty() {
        return Answer::Empty { ttl: None };
    }
    let ttl = records.iter().map(|record| record.ttl).min().unwrap_or(0);
    Answer::Addresses {
        addresses,
        ttl: Duration::from_secs(ttl.into()),
    }
}

fn negative(error: &NetError) -> Answer {
    if let NetError::Dns(DnsError::NoRecordsFound(none)) = error
        && matches!(
            none.response_code,
            ResponseCode::NoError | ResponseCode::NXDomain
        )
    {
        return Answer::Empty {
            ttl: none.negative_ttl.map(|ttl| Duration::from_secs(ttl.into())),
        };
    }
    let reason = match error {
        NetError::Dns(DnsError::NoRecordsFound(none)) => {
            format!("name server answered {}", none.response_code)
        }
        NetError::Dns(DnsError::ResponseCode(code)) => format!("name server answered {code}"),
        NetError::Timeout => return timed_out(),
        other => other.to_string(),
    };
    Answer::Failed {
        reason: reason.into(),
    }
}
