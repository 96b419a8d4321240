// SPDX-License-Identifier: Apache-2.0
//! A destination to the addresses that may be dialled, and an address to a connected socket.

use std::{
    io,
    net::{IpAddr, SocketAddr},
    time::Duration,
};

use tokio::{
    io::AsyncWriteExt,
    net::{TcpStream, UnixStream},
    time::timeout,
};

use super::{
    endpoint::{Endpoint, Stream},
    preface::Preface,
    resolve::AddressBook,
};
use crate::routing::{
    decision::{Destination, Endpoints},
    service::{EndpointAddress, Resolution},
};

/// Where a destination's connections may go now.
#[derive(Debug, PartialEq, Eq)]
pub enum Candidates {
    /// At least one address, with the weights of their endpoints; no weights: all equal.
    Addresses(Vec<Endpoint>, Vec<u32>),
    /// A name has not been answered yet.
    Pending(String),
    /// The request's own name, never asked for so far.
    Unknown(String),
    /// A name has no addresses; the resolver's reason.
    Unresolved(String, String),
    /// No endpoints at all.
    Empty,
    /// Not dialled by this program yet.
    Unsupported(&'static str),
}

/// The addresses of a destination. `original` is the original destination, where there is one;
/// `asked` the host or server name of the request, normalised.
pub fn candidates(
    destination: &Destination,
    book: &AddressBook,
    original: Option<SocketAddr>,
    asked: &str,
) -> Candidates {
    if destination.wants_tls {
        return Candidates::Unsupported("TLS to the upstream, which a DestinationRule asks for,");
    }
    let list = match &destination.endpoints {
        Endpoints::OriginalDestination { port } => {
            return match original {
                Some(address) => {
                    let port = port.unwrap_or(address.port());
                    let address = SocketAddr::new(address.ip(), port);
                    Candidates::Addresses(vec![address.into()], Vec::new())
                }
                // Row 2.8: on a gateway the original destination is the gateway itself.
                None => Candidates::Empty,
            };
        }
        Endpoints::FromRequest { port } => return by_name(asked, *port, book),
        Endpoints::Missing => return Candidates::Empty,
        Endpoints::List(list) => list,
    };
    let mut addresses = Vec::with_capacity(list.len());
    let mut weights = Vec::with_capacity(list.len());
    let first_only = destination
        .service
        .as_ref()
        .is_some_and(|service| service.resolution == Resolution::DnsRoundRobin);
    let (mut pending, mut unresolved) = (None, None);
    for target in list {
        match &target.address {
            EndpointAddress::Ip(ip) => {
                addresses.push(SocketAddr::new(*ip, target.port).into());
                weights.push(target.weight);
            }
            EndpointAddress::Name(name) => match book.get(name) {
                None => pending = Some(name),
                Some(resolved) if resolved.addresses.is_empty() => {
                    let reason = resolved.error.as_deref().unwrap_or("it has no addresses");
                    unresolved = Some((name, reason));
                }
                Some(resolved) => {
                    // Row 2.11: new connections go to the first address only.
                    let count = if first_only { 1 } else { usize::MAX };
                    let of_name = resolved.addresses.iter().take(count);
                    let of_name = of_name.map(|ip| SocketAddr::new(*ip, target.port));
                    addresses.extend(of_name.map(Endpoint::from));
                    weights.resize(addresses.len(), target.weight);
                }
            },
            EndpointAddress::Unix(path) => {
                addresses.push(Endpoint::Unix(path.as_path().into()));
                weights.push(target.weight);
            }
        }
    }
    if weights.iter().all(|weight| *weight == weights[0]) {
        weights.clear();
    }
    match (addresses.is_empty(), pending, unresolved) {
        (false, ..) => Candidates::Addresses(addresses, weights),
        (true, Some(name), _) => Candidates::Pending(name.clone()),
        (true, None, Some((name, reason))) => {
            Candidates::Unresolved(name.clone(), reason.to_owned())
        }
        (true, None, None) => Candidates::Empty,
    }
}

/// Resolution DYNAMIC_DNS: the addresses of the name that the request is for.
fn by_name(asked: &str, port: u16, book: &AddressBook) -> Candidates {
    if let Ok(ip) = asked.parse::<IpAddr>() {
        return Candidates::Addresses(vec![SocketAddr::new(ip, port).into()], Vec::new());
    }
    match book.get(asked) {
        None => Candidates::Unknown(asked.to_owned()),
        Some(resolved) if resolved.addresses.is_empty() => {
            let reason = resolved.error.as_deref().unwrap_or("it has no addresses");
            Candidates::Unresolved(asked.to_owned(), reason.to_owned())
        }
        Some(resolved) => {
            let addresses = resolved.addresses.iter();
            let addresses = addresses.map(|ip| SocketAddr::new(*ip, port).into());
            Candidates::Addresses(addresses.collect(), Vec::new())
        }
    }
}

/// Why an endpoint cannot be reached.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ConnectError {
    /// The operating system says no.
    #[error("{0}")]
    Failed(String),
    /// No answer in time.
    #[error("no answer within {0:?}")]
    Timeout(Duration),
}

impl From<io::Error> for ConnectError {
    fn from(error: io::Error) -> Self {
        Self::Failed(error.to_string())
    }
}

/// Connects within a limit, and sends the preface, if there is one. Small writes go out at once
/// (TCP_NODELAY): a proxy adds no delay of its own.
///
/// # Errors
/// When the endpoint refuses, cannot be reached, or does not answer within the limit.
pub async fn connect(
    endpoint: &Endpoint,
    limit: Duration,
    preface: Option<&Preface>,
) -> Result<Stream, ConnectError> {
    let late = |_| ConnectError::Timeout(limit);
    let mut stream = match endpoint {
        Endpoint::Ip(address) => {
            let connecting = TcpStream::connect(unmapped(*address));
            let stream = timeout(limit, connecting).await.map_err(late)??;
            stream.set_nodelay(true)?;
            Stream::Tcp(stream)
        }
        Endpoint::Unix(path) => {
            let connecting = UnixStream::connect(path);
            let stream = timeout(limit, connecting).await.map_err(late)??;
            Stream::Unix(stream)
        }
    };
    if let Some(preface) = preface {
        let writing = stream.write_all(preface.bytes());
        timeout(limit, writing).await.map_err(late)??;
    }
    Ok(stream)
}

/// A v4-mapped v6 address as the v4 address it is.
pub fn unmapped(address: SocketAddr) -> SocketAddr {
    match address.ip() {
        IpAddr::V6(ip) => match ip.to_ipv4_mapped() {
            Some(v4) => SocketAddr::new(v4.into(), address.port()),
            None => address,
        },
        IpAddr::V4(_) => address,
    }
}
