// SPDX-License-Identifier: Apache-2.0
//! What the backstop has to know of an IP packet: where it goes, and whether it can begin a flow.
//!
//! The bytes come through a function, so that the kernel programs read them from a packet and the
//! tests from an array. What cannot be read counts as beginning a flow, on no port.

use crate::{
    address::{Address, Address4, Address6, Port},
    redirect::{TCP, UDP},
};

/// Octets of an IPv4 header without options (RFC 791).
pub const HEADER4: usize = 20;
/// Octets of an IPv6 header (RFC 8200).
pub const HEADER6: usize = 40;
/// Extension headers that are followed; longer chains count as a protocol of their own.
const MAX_EXTENSIONS: usize = 6;
/// Extension headers (RFC 8200 4, RFC 4302).
const HOP_BY_HOP: u8 = 0;
const ROUTING: u8 = 43;
const FRAGMENT: u8 = 44;
const AUTHENTICATION: u8 = 51;
const DESTINATION_OPTIONS: u8 = 60;
/// TCP flags.
const SYN: u8 = 0x02;
const ACK: u8 = 0x10;

/// A packet on its way out, or in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Packet {
    /// Where it comes from; v4 in its mapped form.
    pub source: Address,
    /// Where it goes; v4 in its mapped form.
    pub destination: Address,
    /// Source port of TCP and UDP, else 0.
    pub source_port: Port,
    /// Destination port of TCP and UDP, else 0.
    pub port: Port,
    /// IP protocol number of the payload.
    pub protocol: u8,
    /// Whether it can begin a flow: everything but TCP segments with ACK or without SYN.
    pub opening: bool,
}

impl Packet {
    /// Reads an IPv4 packet; `load` gives four octets from an offset into the packet.
    #[inline(always)]
    pub fn v4(header: [u8; HEADER4], load: impl Fn(u32) -> Option<[u8; 4]>) -> Self {
        let ends = (
            Address::from_v4(Address4 {
                octets: [header[12], header[13], header[14], header[15]],
            }),
            Address::from_v4(Address4 {
                octets: [header[16], header[17], header[18], header[19]],
            }),
        );
        let protocol = header[9];
        let length = ((header[0] & 0x0f) as u32) * 4;
        // Offset in units of 8 octets; later fragments have no transport header.
        let later_fragment = (header[6] & 0x1f) != 0 || header[7] != 0;
        if later_fragment || length < HEADER4 as u32 {
            return Self::opaque(ends, protocol);
        }
        Self::transport(ends, protocol, length, load)
    }

    /// Reads an IPv6 packet; `load` gives four octets from an offset into the packet.
    #[inline(always)]
    pub fn v6(header: [u8; HEADER6], load: impl Fn(u32) -> Option<[u8; 4]>) -> Self {
        let ends = (address6(&header, 8), address6(&header, 24));
        let mut protocol = header[6];
        let mut offset = HEADER6 as u32;
        let mut followed = 0;
        while followed < MAX_EXTENSIONS {
            if !matches!(
                protocol,
                HOP_BY_HOP | ROUTING | DESTINATION_OPTIONS | AUTHENTICATION | FRAGMENT
            ) {
                return Self::transport(ends, protocol, offset, load);
            }
            let Some([next, length, high, low]) = load(offset) else {
                return Self::opaque(ends, protocol);
            };
            if protocol == FRAGMENT && (high != 0 || low & 0xf8 != 0) {
                return Self::opaque(ends, next);
            }
            offset += match protocol {
                FRAGMENT => 8,
                AUTHENTICATION => (length as u32 + 2) * 4,
                _ => (length as u32 + 1) * 8,
            };
            protocol = next;
            followed += 1;
        }
        Self::opaque(ends, protocol)
    }

    /// One whose transport header cannot be read.
    #[inline(always)]
    pub const fn opaque((source, destination): (Address, Address), protocol: u8) -> Self {
        Self {
            source,
            destination,
            source_port: Port::new(0),
            port: Port::new(0),
            protocol,
            opening: true,
        }
    }

    /// `offset` is that of the transport header: ports first (RFC 768, RFC 9293 3.1), the flags of
    /// TCP in octet 13.
    #[inline(always)]
    fn transport(
        ends: (Address, Address),
        protocol: u8,
        offset: u32,
        load: impl Fn(u32) -> Option<[u8; 4]>,
    ) -> Self {
        if protocol != TCP && protocol != UDP {
            return Self::opaque(ends, protocol);
        }
        let Some([from_high, from_low, high, low]) = load(offset) else {
            return Self::opaque(ends, protocol);
        };
        let opening = if protocol == TCP {
            match load(offset + 12) {
                Some([_, flags, _, _]) => flags & (SYN | ACK) == SYN,
                None => true,
            }
        } else {
            true
        };
        Self {
            source: ends.0,
            destination: ends.1,
            source_port: Port {
                be: [from_high, from_low],
            },
            port: Port { be: [high, low] },
            protocol,
            opening,
        }
    }
}

/// Sixteen octets of an IPv6 header.
#[inline(always)]
fn address6(header: &[u8; HEADER6], at: usize) -> Address {
    let mut octets = [0; 16];
    let mut index = 0;
    while index < 16 {
        octets[index] = header[at + index];
        index += 1;
    }
    Address::from_v6(Address6 { octets })
}

#[cfg(test)]
mod tests {
    extern crate std;

    use std::{string::ToString, vec, vec::Vec};

    use super::*;

    const SYN_ACK: u8 = SYN | ACK;

    fn loader(packet: &[u8]) -> impl Fn(u32) -> Option<[u8; 4]> {
        move |offset| packet.get(offset as usize..)?.first_chunk::<4>().copied()
    }

    fn tcp(flags: u8) -> Vec<u8> {
        let mut segment = vec![0; 20];
        segment[2..4].copy_from_slice(&443_u16.to_be_bytes());
        segment[13] = flags;
        segment
    }

    fn udp(payload: usize) -> Vec<u8> {
        let mut datagram = vec![0; 8 + payload];
        datagram[2..4].copy_from_slice(&443_u16.to_be_bytes());
        datagram
    }

    /// A packet to 203.0.113.5.
    fn v4(protocol: u8, words: u8, fragment: u16, payload: &[u8]) -> Packet {
        let mut packet = vec![0; usize::from(words) * 4];
        packet.resize(packet.len().max(HEADER4), 0);
        packet[0] = 0x40 | words;
        packet[6..8].copy_from_slice(&fragment.to_be_bytes());
        packet[9] = protocol;
        packet[16..20].copy_from_slice(&[203, 0, 113, 5]);
        packet.extend(payload);
        Packet::v4(*packet.first_chunk().unwrap(), loader(&packet))
    }

    /// A packet to 2001:db8::5; `extensions` are (kind, octets), the payload's protocol last.
    fn v6(extensions: &[(u8, &[u8])], protocol: u8, payload: &[u8]) -> Packet {
        let mut packet = vec![0; HEADER6];
        packet[24..28].copy_from_slice(&[0x20, 1, 0x0d, 0xb8]);
        packet[39] = 5;
        packet[6] = extensions.first().map_or(protocol, |(kind, _)| *kind);
        for (index, (_, octets)) in extensions.iter().enumerate() {
            let next = extensions
                .get(index + 1)
                .map_or(protocol, |(kind, _)| *kind);
            packet.push(next);
            packet.extend(&octets[1..]);
        }
        packet.extend(payload);
        Packet::v6(*packet.first_chunk().unwrap(), loader(&packet))
    }

    #[test]
    fn ipv4_packets_are_read_behind_options_and_fragments() {
        // (protocol, header words, fragment field, payload) → (port, opening)
        for (what, packet, expected) in [
            ("SYN", v4(TCP, 5, 0, &tcp(SYN)), (443, true)),
            ("SYN with options", v4(TCP, 6, 0, &tcp(SYN)), (443, true)),
            ("longest options", v4(TCP, 15, 0, &tcp(SYN)), (443, true)),
            ("SYN-ACK", v4(TCP, 5, 0, &tcp(SYN_ACK)), (443, false)),
            ("data", v4(TCP, 5, 0, &tcp(ACK)), (443, false)),
            ("reset", v4(TCP, 5, 0, &tcp(0x04)), (443, false)),
            ("SYN with FIN", v4(TCP, 5, 0, &tcp(SYN | 1)), (443, true)),
            (
                "don't fragment",
                v4(TCP, 5, 0x4000, &tcp(ACK)),
                (443, false),
            ),
            (
                "first fragment",
                v4(TCP, 5, 0x2000, &tcp(ACK)),
                (443, false),
            ),
            (
                "tiny first fragment",
                v4(TCP, 5, 0x2000, &tcp(ACK)[..8]),
                (443, true),
            ),
            ("later fragment", v4(TCP, 5, 0x0001, &tcp(ACK)), (0, true)),
            ("far fragment", v4(TCP, 5, 0x1f00, &tcp(ACK)), (0, true)),
            ("empty datagram", v4(UDP, 5, 0, &udp(0)), (443, true)),
            ("ICMP", v4(1, 5, 0, &[8, 0, 0, 0]), (0, true)),
            ("header too short", v4(TCP, 4, 0, &tcp(ACK)), (0, true)),
            ("nothing behind", v4(TCP, 5, 0, &[]), (0, true)),
        ] {
            assert_eq!((packet.port.number(), packet.opening), expected, "{what}");
            let destination: core::net::IpAddr = packet.destination.into();
            assert_eq!(destination.to_string(), "203.0.113.5", "{what}");
        }
    }

    #[test]
    fn ipv6_packets_are_read_behind_extension_headers() {
        let plain: &[u8] = &[0; 8];
        let long: &[u8] = &[0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
        let authentication: &[u8] = &[0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
        let first: &[u8] = &[0, 0, 0, 1, 0, 0, 0, 7];
        let later: &[u8] = &[0, 0, 0, 8, 0, 0, 0, 7];
        for (what, packet, expected) in [
            ("SYN", v6(&[], TCP, &tcp(SYN)), (TCP, 443, true)),
            ("data", v6(&[], TCP, &tcp(ACK)), (TCP, 443, false)),
            (
                "destination options",
                v6(&[(DESTINATION_OPTIONS, plain)], UDP, &udp(0)),
                (UDP, 443, true),
            ),
            (
                "a chain",
                v6(
                    &[
                        (HOP_BY_HOP, long),
                        (ROUTING, plain),
                        (AUTHENTICATION, authentication),
                        (FRAGMENT, first),
                    ],
                    TCP,
                    &tcp(ACK),
                ),
                (TCP, 443, false),
            ),
            (
                "later fragment",
                v6(&[(FRAGMENT, later)], TCP, &tcp(ACK)),
                (TCP, 0, true),
            ),
            (
                "too many",
                v6(&[(DESTINATION_OPTIONS, plain); 7], TCP, &tcp(ACK)),
                (DESTINATION_OPTIONS, 0, true),
            ),
            (
                "cut off",
                v6(&[(DESTINATION_OPTIONS, plain)], TCP, &[]),
                (TCP, 0, true),
            ),
            ("ICMPv6", v6(&[], 58, &[128, 0, 0, 0]), (58, 0, true)),
        ] {
            let found = (packet.protocol, packet.port.number(), packet.opening);
            assert_eq!(found, expected, "{what}");
        }
    }
}
