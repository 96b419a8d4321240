// SPDX-License-Identifier: Apache-2.0
//! What the pod knows about its own network: addresses, the interface, the way to the gateway.
//!
//! Asks by getifaddrs(3) and /proc/self/net, which show the namespace of the caller; /sys shows
//! that of whoever mounted it.

use std::{
    fs,
    net::{Ipv4Addr, SocketAddr, SocketAddrV4, SocketAddrV6, UdpSocket},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};
use nix::{ifaddrs::getifaddrs, net::if_::if_nametoindex};

/// The pod's interface.
pub(super) const ETH0: &str = "eth0";
/// Nobody listens there (RFC 863).
const DISCARD: u16 = 9;
/// How long the kernel may take to learn a hardware address.
const LEARN_WITHIN: Duration = Duration::from_millis(500);

/// eth0 and who is behind it.
#[derive(Debug)]
pub(super) struct Link {
    /// Interface index.
    pub(super) index: u32,
    /// Its hardware address.
    pub(super) own: [u8; 6],
    /// The default gateway.
    pub(super) gateway: Ipv4Addr,
}

impl Link {
    /// eth0 as it is.
    pub(super) fn find() -> Result<Self> {
        let routes = fs::read_to_string("/proc/self/net/route").context("reading the routes")?;
        let own = getifaddrs()
            .context("asking for own addresses")?
            .filter(|interface| interface.interface_name == ETH0)
            .find_map(|interface| interface.address?.as_link_addr()?.addr());
        Ok(Self {
            index: if_nametoindex(ETH0).context("asking for eth0")?,
            own: own.context("eth0 has no hardware address")?,
            gateway: default_gateway(&routes).context("eth0 has no default route")?,
        })
    }

    /// The gateway's hardware address, as the kernel learns it when it has a packet for the
    /// gateway; `None` when it learns nothing, most likely since that packet was refused.
    pub(super) fn learnt_gateway(&self) -> Result<Option<[u8; 6]>> {
        // Refused or not, the address may be known already.
        let _ = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))
            .and_then(|socket| socket.send_to(b"", (self.gateway, DISCARD)));
        let deadline = Instant::now() + LEARN_WITHIN;
        while Instant::now() < deadline {
            let table = fs::read_to_string("/proc/self/net/arp").context("reading ARP's table")?;
            let found = hardware_address(&table, self.gateway);
            if found.is_some() {
                return Ok(found);
            }
            thread::sleep(Duration::from_millis(5));
        }
        Ok(None)
    }
}

/// The pod's first address of `like`'s family beyond loopback and link, port 0.
pub(super) fn own_address(like: SocketAddr) -> Result<SocketAddr> {
    let found = getifaddrs()
        .context("asking for own addresses")?
        .filter_map(|interface| interface.address)
        .filter_map(|address| match like {
            SocketAddr::V4(_) => address
                .as_sockaddr_in()
                .map(|address| SocketAddr::V4(SocketAddrV4::new(address.ip(), 0))),
            SocketAddr::V6(_) => address
                .as_sockaddr_in6()
                .filter(|address| !address.ip().is_unicast_link_local())
                .map(|address| SocketAddr::V6(SocketAddrV6::new(address.ip(), 0, 0, 0))),
        })
        .find(|address| !address.ip().is_loopback());
    found.context("the pod has no address of that family")
}

/// The pod's first IPv4 address beyond loopback.
pub(super) fn own_ipv4() -> Result<Ipv4Addr> {
    match own_address((Ipv4Addr::UNSPECIFIED, 0).into())? {
        SocketAddr::V4(address) => Ok(*address.ip()),
        SocketAddr::V6(_) => bail!("the pod has no IPv4 address"),
    }
}

/// The default gateway in /proc/net/route, whose addresses are hexadecimal in the byte order of
/// the machine.
fn default_gateway(routes: &str) -> Option<Ipv4Addr> {
    routes
        .lines()
        .map(|line| line.split_whitespace().collect::<Vec<_>>())
        .find(|fields| matches!(fields[..], [ETH0, "00000000", ..]))
        .and_then(|fields| u32::from_str_radix(fields.get(2)?, 16).ok())
        .map(|address| Ipv4Addr::from(address.to_ne_bytes()))
}

/// The hardware address of `address` in /proc/net/arp, once complete.
fn hardware_address(table: &str, address: Ipv4Addr) -> Option<[u8; 6]> {
    let address = address.to_string();
    let fields = table
        .lines()
        .map(|line| line.split_whitespace().collect::<Vec<_>>())
        .find(|fields| fields.first() == Some(&address.as_str()))?;
    let bytes: Vec<u8> = fields
        .get(3)?
        .split(':')
        .filter_map(|byte| u8::from_str_radix(byte, 16).ok())
        .collect();
    bytes.try_into().ok().filter(|bytes| *bytes != [0; 6])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn gateway_is_that_of_the_default_route() {
        let routes = "Iface\tDestination\tGateway \tFlags\n\
                      eth0\t0001580A\t00000000\t0001\n\
                      eth0\t00000000\t0101580A\t0003\n";
        let gateway = u32::from_str_radix("0101580A", 16).unwrap().to_ne_bytes();
        assert_eq!(default_gateway(routes), Some(gateway.into()));
        assert_eq!(default_gateway("Iface\n"), None);
    }

    #[test]
    fn hardware_address_is_known_once_complete() {
        let table = "IP address  HW type  Flags  HW address  Mask  Device\n\
                     10.88.1.1  0x1  0x2  0a:1b:00:00:00:01  *  eth0\n\
                     10.88.1.7  0x1  0x0  00:00:00:00:00:00  *  eth0\n";
        let address = |last| hardware_address(table, Ipv4Addr::new(10, 88, 1, last));
        assert_eq!(address(1), Some([0x0a, 0x1b, 0, 0, 0, 1]));
        assert_eq!(address(7), None);
        assert_eq!(address(8), None);
    }
}
