// SPDX-License-Identifier: Apache-2.0
//! Ways that put frames on the wire without the network layer (packet(7)).

use socket2::{Domain, Protocol, SockAddr, Type};

use super::{
    Attempt,
    interface::{Link, link},
    raw::ends,
    report::{At, Halt, Reached},
};
use crate::packet::{ETHERTYPE_IPV4, Ipv4, ethernet, protocol, tcp_syn};

/// A TCP SYN; with [`Type::RAW`] in a whole frame, with [`Type::DGRAM`] as a packet.
pub(super) fn send(attempt: &Attempt, kind: Type) -> Result<Reached, Halt> {
    let address = attempt.ipv4()?;
    let ethertype = i32::from(ETHERTYPE_IPV4.to_be());
    let socket = attempt.socket(Domain::PACKET, kind, Some(Protocol::from(ethertype)))?;
    let link = link()?;
    let ends = ends(address)?;
    let header = Ipv4 {
        source: super::interface::own_ipv4()?,
        destination: *address.ip(),
        protocol: protocol::TCP,
        options: &[],
        fragment_offset: 0,
    };
    let packet = header.around(&tcp_syn(ends));
    let bytes = if kind == Type::RAW {
        ethernet(link.own, link.gateway, &packet)
    } else {
        packet
    };
    let destination = hardware_address(&link).at("address")?;
    attempt.pause()?;
    socket.send_to(&bytes, &destination).at("send")?;
    Ok(Reached::sent())
}

/// The gateway, as a packet socket addresses it.
fn hardware_address(link: &Link) -> std::io::Result<SockAddr> {
    // SAFETY: the storage is larger than sockaddr_ll, zeroed and aligned for every kind of address;
    // the length set is that of what was written.
    let ((), address) = unsafe {
        SockAddr::try_init(|storage, length| {
            let address = &mut *storage.cast::<libc::sockaddr_ll>();
            address.sll_family = libc::AF_PACKET as u16;
            address.sll_protocol = ETHERTYPE_IPV4.to_be();
            address.sll_ifindex = link.index.cast_signed();
            address.sll_halen = 6;
            address.sll_addr[..6].copy_from_slice(&link.gateway);
            *length = size_of::<libc::sockaddr_ll>() as libc::socklen_t;
            Ok(())
        })
    }?;
    Ok(address)
}
