// SPDX-License-Identifier: Apache-2.0
//! A destination to the addresses that may be dialled, and an address to a connected socket.

use std::{
    io,
    net::{IpAddr, SocketAddr},
    time::Duration,
};

use tokio::{net::TcpStream, time::timeout};

use super::resolve::AddressBook;
use crate::routing::{
    decision::{Destination, Endpoints},
    service::EndpointAddress,
};

/// Where a destination's connections may go now.
#[derive(Debug, PartialEq, Eq)]
pub enum Candidates {
    /// At least one address.
    Addresses(Vec<SocketAddr>),
    /// A name has not been answered yet.
    Pending(String),
    /// A name has no addresses; the resolver's reason.
    Unresolved(String, String),
    /// No endpoints at all.
    Empty,
    /// Not dialled by this program yet.
    Unsupported(&'static str),
}

/// The addresses of a destination. `original` is the original destination, where there is one.
pub fn candidates(
    destination: &Destination,
    book: &AddressBook,
    original: Option<SocketAddr>,
) -> Candidates {
    if destination.wants_tls {
        return Candidates::Unsupported("TLS to the upstream, which a DestinationRule asks for,");
    }
    let list = match &destination.endpoints {
        Endpoints::OriginalDestination { port } => {
            return match original {
                Some(address) => {
                    let port = port.unwrap_or(address.port());
                    Candidates::Addresses(vec![SocketAddr::new(address.ip(), port)])
                }
                // Row 2.8: on a gateway the original destination is the gateway itself.
                None => Candidates::Empty,
            };
        }
        Endpoints::FromRequest { .. } => return Candidates::Unsupported("DYNAMIC_DNS"),
        Endpoints::Missing => return Candidates::Empty,
        Endpoints::List(list) => list,
    };
    let mut addresses = Vec::with_capacity(list.len());
    let (mut pending, mut unresolved, mut unix) = (None, None, false);
    for target in list {
        match &target.address {
            EndpointAddress::Ip(ip) => addresses.push(SocketAddr::new(*ip, target.port)),
            EndpointAddress::Name(name) => match book.get(name) {
                None => pending = Some(name),
                Some(resolved) if resolved.addresses.is_empty() => {
                    let reason = resolved.error.as_deref().unwrap_or("it has no addresses");
                    unresolved = Some((name, reason));
                }
                Some(resolved) => addresses.extend(
                    resolved
                        .addresses
                        .iter()
                        .map(|ip| SocketAddr::new(*ip, target.port)),
                ),
            },
            EndpointAddress::Unix(_) => unix = true,
        }
    }
    match (addresses.is_empty(), pending, unresolved) {
        (false, ..) => Candidates::Addresses(addresses),
        (true, Some(name), _) => Candidates::Pending(name.clone()),
        (true, None, Some((name, reason))) => {
            Candidates::Unresolved(name.clone(), reason.to_owned())
        }
        (true, None, None) if unix => Candidates::Unsupported("a unix:// endpoint"),
        (true, None, None) => Candidates::Empty,
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

/// Connects within a limit. Small writes go out at once (TCP_NODELAY): a proxy adds no delay of
/// its own.
///
/// # Errors
/// When the endpoint refuses, cannot be reached, or does not answer within the limit.
pub async fn connect(address: SocketAddr, limit: Duration) -> Result<TcpStream, ConnectError> {
    let stream = timeout(limit, TcpStream::connect(unmapped(address)))
        .await
        .map_err(|_| ConnectError::Timeout(limit))??;
    stream.set_nodelay(true)?;
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
