// SPDX-License-Identifier: Apache-2.0
//! Packets made by hand, for routes out of a pod that do without a socket's own headers.
//!
//! Headers and checksums only; sends nothing. IPv4 (RFC 791), IPv6 (RFC 8200), UDP (RFC 768), TCP
//! (RFC 9293), ICMP (RFC 792), the first bytes of QUIC (RFC 9000).

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

/// IP protocol numbers that packets are made of, and told by their names.
pub mod protocol {
    /// ICMP.
    pub const ICMP: u8 = 1;
    /// TCP.
    pub const TCP: u8 = 6;
    /// UDP.
    pub const UDP: u8 = 17;
    /// DCCP.
    pub const DCCP: u8 = 33;
    /// The fragment header of IPv6.
    pub const FRAGMENT: u8 = 44;
    /// ICMPv6.
    pub const ICMP6: u8 = 58;
    /// The destination-options header of IPv6.
    pub const DESTINATION_OPTIONS: u8 = 60;
    /// SCTP.
    pub const SCTP: u8 = 132;
    /// UDP-Lite.
    pub const UDPLITE: u8 = 136;
}

/// Ethernet's number for IPv4.
pub const ETHERTYPE_IPV4: u16 = 0x0800;
/// Ethernet's number for ARP.
pub const ETHERTYPE_ARP: u16 = 0x0806;
/// What an ARP packet of Ethernet and IPv4 begins with: the kinds and lengths of addresses.
const ARP_KINDS: [u8; 6] = [0, 1, 8, 0, 6, 4];
/// Bytes of an Ethernet header without tags.
pub const ETHERNET_HEADER: usize = 14;
/// Bytes of the datagram that begins a QUIC connection (RFC 9000 section 14.1).
const QUIC_INITIAL: usize = 1200;
/// Hops that a packet may take.
const HOPS: u8 = 64;
/// Sequence number, IP identification and such: any value that is not zero.
const NUMBER: u16 = 0x1ab5;

/// The two ends of a packet, of one address family.
#[derive(Debug, Clone, Copy)]
pub struct Ends {
    /// Whose packet it claims to be.
    pub source: SocketAddr,
    /// Where it goes.
    pub destination: SocketAddr,
}

/// An IPv4 header.
#[derive(Debug, Clone, Copy)]
pub struct Ipv4<'a> {
    /// Whose packet it claims to be.
    pub source: Ipv4Addr,
    /// Where it goes.
    pub destination: Ipv4Addr,
    /// What is inside.
    pub protocol: u8,
    /// Options, a multiple of 4 bytes, at most 40.
    pub options: &'a [u8],
    /// Where the payload belongs in the whole packet, in units of 8 bytes.
    pub fragment_offset: u16,
}

impl Ipv4<'_> {
    /// The packet: this header, then `payload`.
    pub fn around(&self, payload: &[u8]) -> Vec<u8> {
        let header = 20 + self.options.len();
        let mut packet = vec![0x40 | words(header), 0];
        packet.extend(length(header + payload.len()));
        packet.extend(NUMBER.to_be_bytes());
        packet.extend(self.fragment_offset.to_be_bytes());
        packet.extend([HOPS, self.protocol, 0, 0]);
        packet.extend(self.source.octets());
        packet.extend(self.destination.octets());
        packet.extend(self.options);
        let sum = checksum(&[&packet]);
        packet[10..12].copy_from_slice(&sum);
        packet.extend(payload);
        packet
    }
}

/// An IPv6 packet whose payload, of `protocol`, stands behind an empty destination-options header.
pub fn ipv6_with_options(
    source: Ipv6Addr,
    destination: Ipv6Addr,
    protocol: u8,
    payload: &[u8],
) -> Vec<u8> {
    // One option, PadN, fills the header's 8 bytes.
    let options = [protocol, 0, 1, 4, 0, 0, 0, 0];
    let mut packet = vec![0x60, 0, 0, 0];
    packet.extend(length(options.len() + payload.len()));
    packet.extend([protocol::DESTINATION_OPTIONS, HOPS]);
    packet.extend(source.octets());
    packet.extend(destination.octets());
    packet.extend(options);
    packet.extend(payload);
    packet
}

/// A UDP datagram.
pub fn udp(ends: Ends, payload: &[u8]) -> Vec<u8> {
    let mut datagram = ports(ends);
    datagram.extend(length(8 + payload.len()));
    datagram.extend([0, 0]);
    datagram.extend(payload);
    let sum = transport_checksum(ends, protocol::UDP, &datagram);
    // Zero would say that there is none.
    let sum = if sum == [0, 0] { [0xff, 0xff] } else { sum };
    datagram[6..8].copy_from_slice(&sum);
    datagram
}

/// The first segment of a TCP connection.
pub fn tcp_syn(ends: Ends) -> Vec<u8> {
    let mut segment = ports(ends);
    segment.extend([0, 0]);
    segment.extend(NUMBER.to_be_bytes());
    segment.extend([0; 4]);
    // Five words of header; SYN; the window; checksum and urgent pointer.
    segment.extend([0x50, 0x02, 0xfa, 0xf0, 0, 0, 0, 0]);
    let sum = transport_checksum(ends, protocol::TCP, &segment);
    segment[16..18].copy_from_slice(&sum);
    segment
}

/// An ICMP echo request.
pub fn echo_request() -> Vec<u8> {
    let mut message = vec![8, 0, 0, 0];
    message.extend(NUMBER.to_be_bytes());
    message.extend([0, 1]);
    message.extend(b"lab-bypass");
    let sum = checksum(&[&message]);
    message[2..4].copy_from_slice(&sum);
    message
}

/// An Ethernet frame with an IPv4 packet.
pub fn ethernet(source: [u8; 6], destination: [u8; 6], packet: &[u8]) -> Vec<u8> {
    let mut frame = destination.to_vec();
    frame.extend(source);
    frame.extend(ETHERTYPE_IPV4.to_be_bytes());
    frame.extend(packet);
    frame
}

/// An ARP packet (RFC 826) that asks for the hardware address of `whose`.
pub fn arp_request(own: [u8; 6], source: Ipv4Addr, whose: Ipv4Addr) -> Vec<u8> {
    let mut packet = ARP_KINDS.to_vec();
    packet.extend([0, 1]);
    packet.extend(own);
    packet.extend(source.octets());
    packet.extend([0; 6]);
    packet.extend(whose.octets());
    packet
}

/// The hardware address of `whose`, when the ARP packet is its answer.
pub fn arp_answer(packet: &[u8], whose: Ipv4Addr) -> Option<[u8; 6]> {
    let rest = packet.strip_prefix(&ARP_KINDS)?.strip_prefix(&[0, 2])?;
    let (hardware, rest) = rest.split_first_chunk::<6>()?;
    rest.starts_with(&whose.octets()).then_some(*hardware)
}

/// What the first datagram of a QUIC connection looks like from outside: a version 1 Initial with
/// connection identifiers of 8 bytes, no token, and a payload that decrypts to nothing.
pub fn quic_initial() -> Vec<u8> {
    let mut datagram = vec![0xc3, 0, 0, 0, 1];
    for first in [0x10, 0x20] {
        datagram.push(8);
        datagram.extend(first..first + 8_u8);
    }
    datagram.push(0);
    // The rest's length as a two-byte variable-length integer.
    let [high, low] = length(QUIC_INITIAL - datagram.len() - 2);
    datagram.extend([0x40 | high, low]);
    datagram.resize(QUIC_INITIAL, 0x5a);
    datagram
}

/// The Internet checksum (RFC 1071) of the parts as if they were one; every part but the last has
/// an even length.
pub fn checksum(parts: &[&[u8]]) -> [u8; 2] {
    let words = parts.iter().flat_map(|part| part.chunks(2));
    let mut sum: u32 = words
        .map(|word| u32::from(word[0]) << 8 | u32::from(word.get(1).copied().unwrap_or(0)))
        .sum();
    while sum > 0xffff {
        sum = (sum >> 16) + (sum & 0xffff);
    }
    let [_, _, high, low] = (!sum).to_be_bytes();
    [high, low]
}

/// Checksum of a segment or datagram with the pseudo header of its address family.
fn transport_checksum(ends: Ends, protocol: u8, segment: &[u8]) -> [u8; 2] {
    let octets = |address: SocketAddr| match address.ip() {
        IpAddr::V4(address) => address.octets().to_vec(),
        IpAddr::V6(address) => address.octets().to_vec(),
    };
    let [high, low] = length(segment.len());
    checksum(&[
        &octets(ends.source),
        &octets(ends.destination),
        &[0, protocol, high, low],
        segment,
    ])
}

fn ports(ends: Ends) -> Vec<u8> {
    let mut bytes = ends.source.port().to_be_bytes().to_vec();
    bytes.extend(ends.destination.port().to_be_bytes());
    bytes
}

/// A length in network byte order; packets of the lab are far below 64 KiB.
fn length(bytes: usize) -> [u8; 2] {
    u16::try_from(bytes).unwrap_or(u16::MAX).to_be_bytes()
}

/// Words of 4 bytes, for a header's length; a header of the lab has at most 15.
fn words(bytes: usize) -> u8 {
    u8::try_from(bytes / 4).unwrap_or(15)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ends(source: &str, destination: &str) -> Ends {
        Ends {
            source: source.parse().unwrap(),
            destination: destination.parse().unwrap(),
        }
    }

    #[test]
    fn checksum_is_that_of_the_rfc_and_zero_over_itself() {
        let rfc: &[u8] = &[0x00, 0x01, 0xf2, 0x03, 0xf4, 0xf5, 0xf6, 0xf7];
        assert_eq!(checksum(&[rfc]), [0x22, 0x0d]);
        assert_eq!(checksum(&[rfc, &[0x22, 0x0d]]), [0, 0]);
        // An odd length counts as if a zero followed.
        assert_eq!(checksum(&[&[0x12]]), checksum(&[&[0x12, 0]]));
    }

    #[test]
    fn ipv4_header_has_its_lengths_and_checks_out() {
        let ipv4 = Ipv4 {
            source: [10, 88, 1, 2].into(),
            destination: [203, 0, 113, 10].into(),
            protocol: protocol::UDP,
            options: &[1, 1, 1, 0],
            fragment_offset: 185,
        };
        let packet = ipv4.around(b"payload");
        assert_eq!((packet[0], packet.len()), (0x46, 31));
        assert_eq!(packet[2..4], [0, 31]);
        assert_eq!(packet[6..8], [0, 185]);
        assert_eq!(checksum(&[&packet[..24]]), [0, 0]);
        assert_eq!(&packet[24..], b"payload");
    }

    #[test]
    fn transport_checksums_check_out_in_both_families() {
        for ends in [
            ends("10.88.1.2:4000", "203.0.113.10:7000"),
            ends("[fd00:88:1::2]:4000", "[2001:db8:113::10]:7000"),
        ] {
            let datagram = udp(ends, b"odd");
            assert_eq!(transport_checksum(ends, protocol::UDP, &datagram), [0, 0]);
            let segment = tcp_syn(ends);
            assert_eq!(segment.len(), 20);
            assert_eq!(transport_checksum(ends, protocol::TCP, &segment), [0, 0]);
        }
        assert_eq!(checksum(&[&echo_request()]), [0, 0]);
    }

    #[test]
    fn arp_answer_is_that_of_the_one_asked() {
        let [pod, gateway, other] = [2, 1, 3].map(|last| Ipv4Addr::new(10, 88, 1, last));
        let mut packet = arp_request([7; 6], gateway, pod);
        assert_eq!((packet.len(), arp_answer(&packet, gateway)), (28, None));
        packet[7] = 2;
        assert_eq!(arp_answer(&packet, gateway), Some([7; 6]));
        assert_eq!(arp_answer(&packet, other), None);
        assert_eq!(arp_answer(&packet[..17], gateway), None);
    }

    #[test]
    fn quic_initial_has_the_length_it_claims() {
        let datagram = quic_initial();
        assert_eq!(datagram.len(), 1200);
        // Header, two identifiers, no token, then the length of all that follows.
        let claimed = usize::from(datagram[24] & 0x3f) << 8 | usize::from(datagram[25]);
        assert_eq!((datagram[23], claimed), (0, 1200 - 26));
    }
}
