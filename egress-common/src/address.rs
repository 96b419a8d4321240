// SPDX-License-Identifier: Apache-2.0
//! The forms of an address and a port inside maps. Network byte order throughout, byte arrays so
//! that no reader can mistake the order and `bpftool map dump` prints them octet by octet; aligned so
//! that the kernel programs move them in whole words.

use core::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// First twelve octets of a v4-mapped IPv6 address (RFC 4291 section 2.5.5.2).
const V4_MAPPED_PREFIX: [u8; 12] = [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff];

/// An IPv4 address, network byte order.
#[repr(C, align(4))]
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Address4 {
    /// Most significant octet first.
    pub octets: [u8; 4],
}

/// An IPv6 address, network byte order.
#[repr(C, align(4))]
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Address6 {
    /// Most significant octet first.
    pub octets: [u8; 16],
}

/// A port, network byte order.
#[repr(C, align(2))]
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Port {
    /// Most significant octet first.
    pub be: [u8; 2],
}

/// An address of either family: IPv4 in its v4-mapped form. All zero means none.
#[repr(C, align(4))]
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Address {
    /// Most significant octet first.
    pub octets: [u8; 16],
}

impl Address4 {
    /// Whether it lies in 127.0.0.0/8.
    #[inline(always)]
    pub const fn is_loopback(self) -> bool {
        self.octets[0] == 127
    }
}

impl Address6 {
    /// The IPv4 address inside a v4-mapped one, else `None`.
    #[inline(always)]
    pub const fn to_v4(self) -> Option<Address4> {
        Address {
            octets: self.octets,
        }
        .to_v4()
    }
}

impl Port {
    /// From host byte order.
    #[inline(always)]
    pub const fn new(port: u16) -> Self {
        Self {
            be: port.to_be_bytes(),
        }
    }

    /// In host byte order.
    #[inline(always)]
    pub const fn number(self) -> u16 {
        u16::from_be_bytes(self.be)
    }
}

impl Address {
    /// No address.
    pub const NONE: Self = Self { octets: [0; 16] };

    /// The v4-mapped form.
    #[inline(always)]
    pub const fn from_v4(address: Address4) -> Self {
        let mut octets = [0; 16];
        octets[10] = 0xff;
        octets[11] = 0xff;
        octets[12] = address.octets[0];
        octets[13] = address.octets[1];
        octets[14] = address.octets[2];
        octets[15] = address.octets[3];
        Self { octets }
    }

    /// The same octets; a v4-mapped address stands for its IPv4 address.
    #[inline(always)]
    pub const fn from_v6(address: Address6) -> Self {
        Self {
            octets: address.octets,
        }
    }

    /// The IPv4 address, when it is one.
    #[inline(always)]
    pub const fn to_v4(self) -> Option<Address4> {
        let mut index = 0;
        while index < V4_MAPPED_PREFIX.len() {
            if self.octets[index] != V4_MAPPED_PREFIX[index] {
                return None;
            }
            index += 1;
        }
        Some(Address4 {
            octets: [
                self.octets[12],
                self.octets[13],
                self.octets[14],
                self.octets[15],
            ],
        })
    }

    /// Whether an address is present.
    #[inline(always)]
    pub fn is_some(self) -> bool {
        self != Self::NONE
    }

    /// Whether it is 0.0.0.0 or `::`, which connect() takes for this host.
    #[inline(always)]
    pub fn is_unspecified(self) -> bool {
        match self.to_v4() {
            Some(v4) => v4.octets == [0; 4],
            None => self == Self::NONE,
        }
    }

    /// Whether it lies in 127.0.0.0/8 or is `::1`.
    #[inline(always)]
    pub fn is_loopback(self) -> bool {
        match self.to_v4() {
            Some(v4) => v4.is_loopback(),
            None => self.octets == Ipv6Addr::LOCALHOST.octets(),
        }
    }
}

impl From<Ipv4Addr> for Address4 {
    fn from(address: Ipv4Addr) -> Self {
        Self {
            octets: address.octets(),
        }
    }
}

impl From<Address4> for Ipv4Addr {
    fn from(address: Address4) -> Self {
        address.octets.into()
    }
}

impl From<Ipv6Addr> for Address6 {
    fn from(address: Ipv6Addr) -> Self {
        Self {
            octets: address.octets(),
        }
    }
}

impl From<Address6> for Ipv6Addr {
    fn from(address: Address6) -> Self {
        address.octets.into()
    }
}

impl From<IpAddr> for Address {
    fn from(address: IpAddr) -> Self {
        match address {
            IpAddr::V4(v4) => Self::from_v4(v4.into()),
            IpAddr::V6(v6) => Self::from_v6(v6.into()),
        }
    }
}

impl From<Address> for IpAddr {
    /// A v4-mapped address becomes IPv4.
    fn from(address: Address) -> Self {
        match address.to_v4() {
            Some(v4) => Self::V4(v4.into()),
            None => Self::V6(address.octets.into()),
        }
    }
}

// SAFETY: repr(C), made of byte arrays only: every bit pattern is valid and there is no padding.
#[cfg(feature = "user")]
unsafe impl aya::Pod for Address4 {}
// SAFETY: as above.
#[cfg(feature = "user")]
unsafe impl aya::Pod for Address6 {}
// SAFETY: as above.
#[cfg(feature = "user")]
unsafe impl aya::Pod for Port {}
// SAFETY: as above.
#[cfg(feature = "user")]
unsafe impl aya::Pod for Address {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn address_keeps_its_family_through_the_mapped_form() {
        for (address, octets_12_to_15, is_v4) in [
            (IpAddr::from([203, 0, 113, 5]), [203, 0, 113, 5], true),
            (IpAddr::from([127, 0, 0, 1]), [127, 0, 0, 1], true),
            (IpAddr::V6(Ipv6Addr::LOCALHOST), [0, 0, 0, 1], false),
            (
                IpAddr::V6(Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 5)),
                [0, 0, 0, 5],
                false,
            ),
        ] {
            let stored = Address::from(address);
            assert_eq!(stored.octets[12..], octets_12_to_15, "{address}");
            assert_eq!(stored.to_v4().is_some(), is_v4, "{address}");
            assert_eq!(IpAddr::from(stored), address);
        }
    }

    #[test]
    fn mapped_v6_is_the_v4_address() {
        let mapped = Ipv4Addr::new(203, 0, 113, 5).to_ipv6_mapped();
        assert_eq!(
            Address::from(IpAddr::V6(mapped)),
            Address::from(IpAddr::from([203, 0, 113, 5]))
        );
        assert_eq!(
            Address6::from(mapped).to_v4(),
            Some(Address4 {
                octets: [203, 0, 113, 5]
            })
        );
    }

    #[test]
    fn port_is_stored_most_significant_octet_first() {
        assert_eq!(Port::new(0x1234).be, [0x12, 0x34]);
        assert_eq!(Port::new(15001).number(), 15001);
    }

    #[test]
    fn loopback_is_127_8_and_one() {
        for (address, loopback) in [
            ("127.0.0.1", true),
            ("127.8.9.10", true),
            ("128.0.0.1", false),
            ("::1", true),
            ("::2", false),
            ("::ffff:127.0.0.1", true),
        ] {
            let parsed: IpAddr = address.parse().unwrap();
            assert_eq!(Address::from(parsed).is_loopback(), loopback, "{address}");
        }
    }
}
