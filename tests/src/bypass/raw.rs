// SPDX-License-Identifier: Apache-2.0
//! Ways that send packets by raw sockets (raw(7)) and ICMP sockets.

use std::net::{SocketAddr, SocketAddrV4, SocketAddrV6};

use socket2::{Domain, Protocol, Socket, Type};

use super::{
    Attempt,
    interface::{own_address, own_ipv4},
    report::{At, Halt, Reached},
    udp::PAYLOAD,
};
use crate::packet::{self, Ends, Ipv4, protocol};

/// The source port of packets made by hand; no socket has it.
pub(super) const SOURCE_PORT: u16 = 4321;

pub(super) fn tcp(attempt: &Attempt) -> Result<Reached, Halt> {
    let address = attempt.ipv4()?;
    let socket = attempt.socket(Domain::IPV4, Type::RAW, Some(Protocol::TCP))?;
    let segment = packet::tcp_syn(ends(address)?);
    send(attempt, &socket, &segment, address.into())
}

/// An echo request by a raw socket or an ICMP socket.
pub(super) fn echo(attempt: &Attempt, kind: Type) -> Result<Reached, Halt> {
    let address = attempt.ipv4()?;
    let socket = attempt.socket(Domain::IPV4, kind, Some(Protocol::ICMPV4))?;
    send(attempt, &socket, &packet::echo_request(), address.into())
}

/// A whole IPv4 packet around a UDP datagram.
pub(super) fn ipv4(
    attempt: &Attempt,
    options: &[u8],
    fragment_offset: u16,
) -> Result<Reached, Halt> {
    let address = attempt.ipv4()?;
    // This protocol implies IP_HDRINCL.
    let protocol = Protocol::from(libc::IPPROTO_RAW);
    let socket = attempt.socket(Domain::IPV4, Type::RAW, Some(protocol))?;
    let ends = ends(address)?;
    let header = Ipv4 {
        source: own_ipv4()?,
        destination: *address.ip(),
        protocol: protocol::UDP,
        options,
        fragment_offset,
    };
    let packet = header.around(&packet::udp(ends, PAYLOAD));
    send(attempt, &socket, &packet, address.into())
}

/// A whole IPv6 packet around a UDP datagram behind an extension header.
pub(super) fn ipv6(attempt: &Attempt) -> Result<Reached, Halt> {
    let mut source = own_address(attempt.address)?;
    let (SocketAddr::V6(own), SocketAddr::V6(address)) = (source, attempt.address) else {
        return Err(anyhow::anyhow!("raw6-exthdr takes an IPv6 address").into());
    };
    let protocol = Protocol::from(libc::IPPROTO_RAW);
    let socket = attempt.socket(Domain::IPV6, Type::RAW, Some(protocol))?;
    source.set_port(SOURCE_PORT);
    let datagram = packet::udp(
        Ends {
            source,
            destination: attempt.address,
        },
        PAYLOAD,
    );
    let packet = packet::ipv6_with_options(*own.ip(), *address.ip(), protocol::UDP, &datagram);
    // A raw IPv6 socket reads the port as a protocol number (ipv6(7)).
    let destination = SocketAddrV6::new(*address.ip(), 0, 0, 0);
    send(attempt, &socket, &packet, destination.into())
}

/// Both ends of a packet from this pod.
pub(super) fn ends(destination: SocketAddrV4) -> anyhow::Result<Ends> {
    Ok(Ends {
        source: SocketAddrV4::new(own_ipv4()?, SOURCE_PORT).into(),
        destination: destination.into(),
    })
}

fn send(
    attempt: &Attempt,
    socket: &Socket,
    packet: &[u8],
    destination: SocketAddr,
) -> Result<Reached, Halt> {
    attempt.pause()?;
    socket.send_to(packet, &destination.into()).at("send")?;
    Ok(Reached::sent())
}
