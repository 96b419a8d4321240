// SPDX-License-Identifier: MIT OR GPL-2.0-only
//! Asks the destination tables: the exact address first, then networks, the longest prefix first.

use aya_ebpf::btf_maps::lpm_trie::Key;
use egress_common::{
    address::{Address, Address4, Address6, Port},
    redirect::{
        ANY_PROTOCOL, CIDR_FIXED_BITS, CidrKey4, CidrKey6, Destination, DestinationKey4,
        DestinationKey6, strongest,
    },
};

use crate::maps;

/// A CIDR entry with this port speaks for every port.
const ANY_PORT: Port = Port::new(0);

/// What is known of a destination; a v4-mapped address is an IPv4 destination.
#[inline(always)]
pub fn find(address: Address, port: Port, protocol: u8) -> Destination {
    match address.to_v4() {
        Some(v4) => find4(v4, port, protocol),
        None => {
            let octets = address.octets;
            find6(Address6 { octets }, port, protocol)
        }
    }
}

/// What is known of an IPv4 destination.
#[inline(always)]
pub fn find4(address: Address4, port: Port, protocol: u8) -> Destination {
    let exact = DestinationKey4::new(address, port, protocol);
    // SAFETY: values are two independent octets; a concurrent update of the agent is harmless.
    if let Some(exact) = unsafe { maps::DESTINATIONS4.get(exact) } {
        return *exact;
    }
    let cidr = |port, protocol| {
        let key = Key::new(CIDR_FIXED_BITS + 32, CidrKey4::new(address, port, protocol));
        maps::DESTINATION_CIDRS4
            .get(&key)
            .copied()
            .unwrap_or(Destination::UNKNOWN)
    };
    strongest(cidr(port, protocol), cidr(ANY_PORT, ANY_PROTOCOL))
}

#[inline(always)]
fn find6(address: Address6, port: Port, protocol: u8) -> Destination {
    let exact = DestinationKey6::new(address, port, protocol);
    // SAFETY: as in find4.
    if let Some(exact) = unsafe { maps::DESTINATIONS6.get(exact) } {
        return *exact;
    }
    let cidr = |port, protocol| {
        let key = Key::new(
            CIDR_FIXED_BITS + 128,
            CidrKey6::new(address, port, protocol),
        );
        maps::DESTINATION_CIDRS6
            .get(&key)
            .copied()
            .unwrap_or(Destination::UNKNOWN)
    };
    strongest(cidr(port, protocol), cidr(ANY_PORT, ANY_PROTOCOL))
}
