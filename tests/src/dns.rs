// SPDX-License-Identifier: Apache-2.0
//! An authoritative DNS server for the lab's names, over UDP and TCP.
//!
//! Answers A and AAAA from records `NAME=IP[,IP]` given as arguments or, looked up anew for every
//! query, in a file; a name of its own without the asked type gives an empty answer, any other
//! NXDOMAIN. Prints `ready`, then `query NAME TYPE` per query. Forwards nothing.

use std::{
    collections::BTreeMap,
    convert::Infallible,
    fmt,
    io::Write,
    net::{IpAddr, SocketAddr},
    path::PathBuf,
    str::FromStr,
    sync::Arc,
};

use anyhow::{Context, Result, bail};
use hickory_proto::{
    op::{Message, ResponseCode},
    rr::{RData, Record, RecordType},
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream, UdpSocket},
};

/// One name and its addresses: `NAME=IP[,IP]`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// Lower case, without the final dot.
    pub name: String,
    /// In the order of the answer.
    pub addresses: Vec<IpAddr>,
}

/// What the server knows.
#[derive(Debug)]
pub struct Zone {
    /// Entries that never change.
    pub entries: Vec<Entry>,
    /// Entries one per line, read at every query; they win over `entries`.
    pub file: Option<PathBuf>,
    /// Time to live of every answer, in seconds.
    pub ttl: u32,
}

impl FromStr for Entry {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> Result<Self> {
        let Some((name, addresses)) = text.split_once('=') else {
            bail!("{text:?} is not NAME=IP[,IP]");
        };
        let addresses = addresses.split(',').filter(|address| !address.is_empty());
        let addresses = addresses.map(|address| {
            let parsed = address.trim().parse::<IpAddr>();
            parsed.with_context(|| format!("{address:?} in {text:?} is no IP address"))
        });
        Ok(Self {
            name: name.trim().trim_end_matches('.').to_ascii_lowercase(),
            addresses: addresses.collect::<Result<_>>()?,
        })
    }
}

impl fmt::Display for Entry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let addresses: Vec<_> = self.addresses.iter().map(IpAddr::to_string).collect();
        write!(f, "{}={}", self.name, addresses.join(","))
    }
}

impl Zone {
    fn current(&self) -> BTreeMap<String, Vec<IpAddr>> {
        let text = self
            .file
            .as_ref()
            .and_then(|file| std::fs::read_to_string(file).ok());
        let text = text.unwrap_or_default();
        // A line that is being written is not yet an entry.
        let of_file = text.lines().filter_map(|line| line.parse::<Entry>().ok());
        let all = self.entries.iter().cloned().chain(of_file);
        all.map(|entry| (entry.name, entry.addresses)).collect()
    }

    /// The answer to a query in wire format; `None` when it is not a query.
    fn answer(&self, query: &[u8]) -> Option<Vec<u8>> {
        let query = Message::from_vec(query).ok()?;
        let question = query.queries.first()?.clone();
        let mut answer = Message::response(query.metadata.id, query.metadata.op_code);
        answer.metadata.recursion_desired = query.metadata.recursion_desired;
        answer.metadata.recursion_available = true;
        answer.metadata.authoritative = true;
        let name = question.name().to_ascii();
        let name = name.trim_end_matches('.').to_ascii_lowercase();
        say(&format!("query {name} {}", question.query_type()));
        match self.current().get(&name) {
            Some(addresses) => {
                let data = addresses
                    .iter()
                    .filter_map(|ip| match (question.query_type(), ip) {
                        (RecordType::A, IpAddr::V4(ip)) => Some(RData::A((*ip).into())),
                        (RecordType::AAAA, IpAddr::V6(ip)) => Some(RData::AAAA((*ip).into())),
                        _ => None,
                    });
                answer.answers = data
                    .map(|data| Record::from_rdata(question.name().clone(), self.ttl, data))
                    .collect();
            }
            None => answer.metadata.response_code = ResponseCode::NXDomain,
        }
        answer.add_query(question);
        answer.to_vec().ok()
    }
}

/// Serves until the process ends.
///
/// # Errors
/// When the address cannot be bound.
pub async fn serve(address: SocketAddr, zone: Zone) -> Result<Infallible> {
    let udp = UdpSocket::bind(address).await;
    let udp = udp.with_context(|| format!("binding {address} (UDP)"))?;
    let tcp = TcpListener::bind(address).await;
    let tcp = tcp.with_context(|| format!("binding {address} (TCP)"))?;
    say("ready");
    let zone = Arc::new(zone);
    tokio::spawn(serve_tcp(tcp, Arc::clone(&zone)));
    let mut packet = [0; 4096];
    loop {
        // Errors of single packets (an unreachable asker) end nothing.
        let Ok((length, asker)) = udp.recv_from(&mut packet).await else {
            continue;
        };
        if let Some(answer) = zone.answer(&packet[..length]) {
            let _ = udp.send_to(&answer, asker).await;
        }
    }
}

async fn serve_tcp(listener: TcpListener, zone: Arc<Zone>) {
    while let Ok((stream, _)) = listener.accept().await {
        let zone = Arc::clone(&zone);
        tokio::spawn(async move { serve_stream(stream, &zone).await });
    }
}

/// RFC 1035 4.2.2: each message behind its length in two bytes.
async fn serve_stream(mut stream: TcpStream, zone: &Zone) {
    while let Ok(length) = stream.read_u16().await {
        let mut query = vec![0; usize::from(length)];
        if stream.read_exact(&mut query).await.is_err() {
            return;
        }
        let Some(answer) = zone.answer(&query) else {
            return;
        };
        let Ok(length) = u16::try_from(answer.len()) else {
            return;
        };
        let framed = [&length.to_be_bytes()[..], &answer].concat();
        if stream.write_all(&framed).await.is_err() {
            return;
        }
    }
}

fn say(line: &str) {
    let mut stdout = std::io::stdout().lock();
    // A reader that is gone is no reason to stop serving.
    let _ = writeln!(stdout, "{line}");
    let _ = stdout.flush();
}

#[cfg(test)]
mod tests {
    use hickory_proto::{op::Query, rr::Name};

    use super::*;

    #[test]
    fn entries_are_read_and_bad_ones_named() {
        let entry: Entry = "HTTPbin.org.=203.0.113.10,2001:db8::1".parse().unwrap();
        assert_eq!(entry.to_string(), "httpbin.org=203.0.113.10,2001:db8::1");
        assert!("a=".parse::<Entry>().unwrap().addresses.is_empty());
        for bad in ["httpbin.org", "a=1.2.3"] {
            let error = bad.parse::<Entry>().unwrap_err();
            assert!(format!("{error:#}").contains(bad), "{error:#}");
        }
    }

    #[test]
    fn known_names_are_answered_by_type() {
        let zone = Zone {
            entries: vec!["a.test=192.0.2.1,192.0.2.2,2001:db8::1".parse().unwrap()],
            file: None,
            ttl: 7,
        };
        for (name, kind, expected) in [
            ("A.test.", RecordType::A, Some(2)),
            ("a.test.", RecordType::AAAA, Some(1)),
            ("a.test.", RecordType::TXT, Some(0)),
            ("b.test.", RecordType::A, None),
        ] {
            let mut query = Message::query();
            query.add_query(Query::query(Name::from_ascii(name).unwrap(), kind));
            let answer = zone.answer(&query.to_vec().unwrap()).unwrap();
            let answer = Message::from_vec(&answer).unwrap();
            let found = (answer.metadata.response_code == ResponseCode::NoError)
                .then_some(answer.answers.len());
            assert_eq!(found, expected, "{name} {kind}");
            assert!(answer.answers.iter().all(|record| record.ttl == 7));
        }
    }
}
