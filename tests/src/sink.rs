// SPDX-License-Identifier: Apache-2.0
//! What the outside world sees of the wire: every IPv4 and IPv6 packet that comes in, whatever
//! socket (or none) it is for.
//!
//! Runs as `lab-sink` in the namespace `external`. The node translates no addresses, so a pod's
//! packets carry the pod's own. Prints `ready`, then a line per packet:
//! `tcp 10.88.1.2 203.0.113.10 7000 S`, that is
//! - the protocol: `tcp`, `udp`, `udplite`, `sctp`, `dccp`, `icmp`, `icmp6`, else its number;
//! - source and destination;
//! - the destination port, `-` where there is none (a later fragment has none either);
//! - TCP flags among `FSRPAU` in this order, `-` when none or not TCP.
//!
//! Leaves out what goes out and the loopback interface. Looks behind IPv6 extension headers.

use std::{
    convert::Infallible,
    io::{Read, Write},
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

use anyhow::{Context, Result};
use socket2::{Domain, Protocol, Socket, Type};

use crate::packet::{ETHERNET_HEADER, protocol};

/// More than an interface of the lab delivers at once (segments may come merged).
const LARGEST_FRAME: usize = 128 << 10;
/// Room for packets that arrive while others are printed, in bytes.
const RECEIVE_BUFFER: usize = 4 << 20;
/// Letters of TCP's flags from the lowest bit on.
const TCP_FLAGS: &str = "FSRPAU";

/// Prints a line per packet until the process ends.
///
/// # Errors
/// When the caller may not see packets, or nobody reads the lines.
pub fn watch() -> Result<Infallible> {
    let all = (libc::ETH_P_ALL as u16).to_be();
    let socket = Socket::new(
        Domain::PACKET,
        Type::RAW,
        Some(Protocol::from(i32::from(all))),
    )
    .context("opening an AF_PACKET socket")?;
    socket
        .set_recv_buffer_size(RECEIVE_BUFFER)
        .context("setting SO_RCVBUF")?;
    leave_out_outgoing(&socket).context("setting PACKET_IGNORE_OUTGOING")?;
    let mut output = std::io::stdout().lock();
    writeln!(output, "ready").context("printing")?;
    let mut frame = vec![0; LARGEST_FRAME];
    loop {
        let length = (&socket).read(&mut frame).context("receiving a frame")?;
        if let Some(line) = line(&frame[..length]) {
            writeln!(output, "{line}").context("printing")?;
        }
    }
}

/// `PACKET_IGNORE_OUTGOING` (packet(7), Linux 4.20): what goes out is not delivered.
fn leave_out_outgoing(socket: &Socket) -> std::io::Result<()> {
    crate::sockopt::set(socket, libc::SOL_PACKET, libc::PACKET_IGNORE_OUTGOING, 1)
}

/// The line about a frame; `None` when it is not IP or belongs to the loopback interface.
fn line(frame: &[u8]) -> Option<String> {
    let (header, packet) = frame.split_at_checked(ETHERNET_HEADER)?;
    // The loopback interface has no addresses; every other one of the lab is a veth.
    if header[..12] == [0; 12] {
        return None;
    }
    let (source, destination, protocol, payload) = match packet.first()? >> 4 {
        4 => ipv4(packet)?,
        6 => ipv6(packet)?,
        _ => return None,
    };
    let name = match protocol {
        protocol::TCP => "tcp".to_owned(),
        protocol::UDP => "udp".to_owned(),
        protocol::UDPLITE => "udplite".to_owned(),
        protocol::SCTP => "sctp".to_owned(),
        protocol::DCCP => "dccp".to_owned(),
        protocol::ICMP => "icmp".to_owned(),
        protocol::ICMP6 => "icmp6".to_owned(),
        number => number.to_string(),
    };
    let port = match protocol {
        protocol::TCP | protocol::UDP | protocol::UDPLITE | protocol::SCTP | protocol::DCCP => {
            payload
                .and_then(|payload| payload.get(2..4))
                .map_or("-".to_owned(), |port| {
                    u16::from_be_bytes([port[0], port[1]]).to_string()
                })
        }
        _ => "-".to_owned(),
    };
    let flags = match (protocol, payload.and_then(|payload| payload.get(13))) {
        (protocol::TCP, Some(&bits)) => tcp_flags(bits),
        _ => "-".to_owned(),
    };
    Some(format!("{name} {source} {destination} {port} {flags}"))
}

/// Source, destination, protocol, and the payload unless it is a later fragment.
type Parts<'a> = (IpAddr, IpAddr, u8, Option<&'a [u8]>);

fn ipv4(packet: &[u8]) -> Option<Parts<'_>> {
    let header = packet.get(..20)?;
    let address = |at: usize| {
        Ipv4Addr::new(header[at], header[at + 1], header[at + 2], header[at + 3]).into()
    };
    let first = u16::from_be_bytes([header[6], header[7]]) & 0x1fff == 0;
    let payload = packet.get(usize::from(header[0] & 0xf) * 4..);
    Some((
        address(12),
        address(16),
        header[9],
        payload.filter(|_| first),
    ))
}

fn ipv6(packet: &[u8]) -> Option<Parts<'_>> {
    let header = packet.first_chunk::<40>()?;
    let address = |at: usize| {
        let octets: [u8; 16] = header[at..at + 16].try_into().unwrap_or_default();
        IpAddr::from(Ipv6Addr::from(octets))
    };
    let (source, destination) = (address(8), address(24));
    let (mut protocol, mut payload) = (header[6], &packet[40..]);
    loop {
        let length = match (protocol, payload) {
            // Hop-by-hop, routing, destination options: a length in units of 8 bytes beyond 8.
            (0 | 43 | protocol::DESTINATION_OPTIONS, [_, units, ..]) => 8 + usize::from(*units) * 8,
            (protocol::FRAGMENT, [next, _, high, low, ..]) => {
                if u16::from_be_bytes([*high, *low]) >> 3 != 0 {
                    return Some((source, destination, *next, None));
                }
                8
            }
            _ => return Some((source, destination, protocol, Some(payload))),
        };
        protocol = payload[0];
        payload = payload.get(length..).unwrap_or_default();
    }
}

fn tcp_flags(bits: u8) -> String {
    let letters = TCP_FLAGS.chars().enumerate();
    let flags: String = letters
        .filter(|(bit, _)| bits >> bit & 1 == 1)
        .map(|(_, letter)| letter)
        .collect();
    if flags.is_empty() {
        "-".to_owned()
    } else {
        flags
    }
}

#[cfg(test)]
mod tests {
    use std::net::{SocketAddrV4, SocketAddrV6};

    use super::*;
    use crate::packet::{Ends, Ipv4, echo_request, ethernet, ipv6_with_options, tcp_syn, udp};

    const POD: Ipv4Addr = Ipv4Addr::new(10, 88, 1, 2);
    const OUTSIDE: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 10);

    fn v4(protocol: u8, options: &[u8], fragment_offset: u16, payload: &[u8]) -> Option<String> {
        let ipv4 = Ipv4 {
            source: POD,
            destination: OUTSIDE,
            protocol,
            options,
            fragment_offset,
        };
        line(&ethernet([2; 6], [4; 6], &ipv4.around(payload)))
    }

    #[test]
    fn line_names_protocol_addresses_port_and_flags() {
        let ends = Ends {
            source: SocketAddrV4::new(POD, 4000).into(),
            destination: SocketAddrV4::new(OUTSIDE, 7000).into(),
        };
        let datagram = udp(ends, b"x");
        for (line, expected) in [
            (
                v4(protocol::TCP, &[], 0, &tcp_syn(ends)),
                "tcp 10.88.1.2 203.0.113.10 7000 S",
            ),
            (
                v4(protocol::UDP, &[1; 4], 0, &datagram),
                "udp 10.88.1.2 203.0.113.10 7000 -",
            ),
            (
                v4(protocol::UDP, &[], 185, &datagram),
                "udp 10.88.1.2 203.0.113.10 - -",
            ),
            (
                v4(protocol::ICMP, &[], 0, &echo_request()),
                "icmp 10.88.1.2 203.0.113.10 - -",
            ),
            (v4(253, &[], 0, &[]), "253 10.88.1.2 203.0.113.10 - -"),
        ] {
            assert_eq!(line.as_deref(), Some(expected));
        }
    }

    #[test]
    fn ipv6_is_read_behind_its_extension_headers() {
        let (source, destination) = ("fd00:88:1::2".parse(), "2001:db8:113::10".parse());
        let (source, destination): (Ipv6Addr, Ipv6Addr) = (source.unwrap(), destination.unwrap());
        let ends = Ends {
            source: SocketAddrV6::new(source, 4000, 0, 0).into(),
            destination: SocketAddrV6::new(destination, 7000, 0, 0).into(),
        };
        let packet = ipv6_with_options(source, destination, protocol::UDP, &udp(ends, b"x"));
        let expected = "udp fd00:88:1::2 2001:db8:113::10 7000 -";
        assert_eq!(
            line(&ethernet([2; 6], [4; 6], &packet)).as_deref(),
            Some(expected)
        );
    }

    #[test]
    fn loopback_truncated_and_foreign_frames_make_no_line() {
        let ipv4 = Ipv4 {
            source: POD,
            destination: OUTSIDE,
            protocol: protocol::UDP,
            options: &[],
            fragment_offset: 0,
        };
        let packet = ipv4.around(b"");
        assert_eq!(line(&ethernet([0; 6], [0; 6], &packet)), None);
        assert_eq!(line(&ethernet([2; 6], [4; 6], &packet[..19])), None);
        assert_eq!(line(&ethernet([2; 6], [4; 6], &[0; 40])), None);
        assert_eq!(line(&[2; 13]), None);
    }

    #[test]
    fn flags_are_letters_from_the_lowest_bit_on() {
        for (bits, expected) in [(0x02, "S"), (0x12, "SA"), (0x11, "FA"), (0, "-")] {
            assert_eq!(tcp_flags(bits), expected);
        }
    }
}
