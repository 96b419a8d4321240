// SPDX-License-Identifier: Apache-2.0
//! Key and value under which an original destination is recorded, on the socket and by tuple.

use crate::address::{Address, Port};

/// What a connect program leaves in the storage of a socket that it redirects.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct SocketRecord {
    /// Where the application wanted to go and who it is.
    pub original: OriginalDst,
    /// Where the socket was sent instead.
    pub redirect_address: Address,
    /// Port it was sent to.
    pub redirect_port: Port,
    /// Zero.
    pub padding: [u8; 6],
}

/// The connection as the proxy sees it when it accepts.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct OriginalDstKey {
    /// Cookie of the network namespace when the redirect address is a loopback one, since source
    /// ports repeat between namespaces; else 0 (the source address is then unique on the node).
    pub netns_cookie: u64,
    /// Address the connection comes from.
    pub source_address: Address,
    /// Address it was redirected to.
    pub redirect_address: Address,
    /// Port it comes from.
    pub source_port: Port,
    /// Port it was redirected to.
    pub redirect_port: Port,
    /// Zero.
    pub padding: [u8; 4],
}

/// Where a redirected connection was going, and who asked.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct OriginalDst {
    /// The address the application passed to connect(); v4 in its mapped form.
    pub address: Address,
    /// The port the application passed to connect().
    pub port: Port,
    /// Zero.
    pub padding: [u8; 6],
    /// cgroup id of the task that called connect().
    pub cgroup_id: u64,
    /// Cookie of the socket's network namespace.
    pub netns_cookie: u64,
    /// CLOCK_MONOTONIC in nanoseconds at the decision.
    pub decided_at_ns: u64,
}

impl SocketRecord {
    /// On a socket that the failure policy let go: nowhere redirected, and approved.
    pub const APPROVED: Self = Self {
        original: OriginalDst {
            address: Address::NONE,
            port: Port::new(0),
            padding: [0; 6],
            cgroup_id: 0,
            netns_cookie: 0,
            decided_at_ns: 0,
        },
        redirect_address: Address::NONE,
        redirect_port: Port::new(0),
        padding: [0; 6],
    };

    /// Whether it is [`Self::APPROVED`].
    #[inline(always)]
    pub fn is_approved(&self) -> bool {
        !self.redirect_address.is_some()
    }
}

impl OriginalDstKey {
    /// The one rule for the key: both sides call it.
    #[inline(always)]
    pub fn new(
        netns_cookie: u64,
        source: (Address, Port),
        redirect: (Address, Port),
    ) -> OriginalDstKey {
        OriginalDstKey {
            netns_cookie: if redirect.0.is_loopback() {
                netns_cookie
            } else {
                0
            },
            source_address: source.0,
            redirect_address: redirect.0,
            source_port: source.1,
            redirect_port: redirect.1,
            padding: [0; 4],
        }
    }
}

// SAFETY: repr(C), integers and byte arrays only, no implicit padding (see the layout tests):
// every bit pattern is valid.
#[cfg(feature = "user")]
unsafe impl aya::Pod for SocketRecord {}
// SAFETY: as above.
#[cfg(feature = "user")]
unsafe impl aya::Pod for OriginalDstKey {}
// SAFETY: as above.
#[cfg(feature = "user")]
unsafe impl aya::Pod for OriginalDst {}

#[cfg(test)]
mod tests {
    use core::net::IpAddr;

    use super::*;

    #[test]
    fn key_carries_the_namespace_only_for_loopback_redirects() {
        for (redirect, cookie) in [
            ("127.0.0.1", 7),
            ("::1", 7),
            ("10.77.1.1", 0),
            ("fd00::1", 0),
        ] {
            let address: IpAddr = redirect.parse().unwrap();
            let key = OriginalDstKey::new(
                7,
                (Address::from(IpAddr::from([10, 0, 0, 1])), Port::new(40000)),
                (address.into(), Port::new(15001)),
            );
            assert_eq!(key.netns_cookie, cookie, "{redirect}");
        }
    }
}
