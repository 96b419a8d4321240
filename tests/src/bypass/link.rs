// SPDX-License-Identifier: Apache-2.0
//! Ways that put frames on the wire without the network layer (packet(7)).

use std::io::{self, Read};

use socket2::{Domain, Protocol, SockAddr, Type};

use super::{
    Attempt,
    interface::{Link, own_ipv4},
    raw::ends,
    report::{At, Halt, Reached},
};
use crate::packet::{
    ETHERTYPE_ARP, ETHERTYPE_IPV4, Ipv4, arp_answer, arp_request, ethernet, protocol, tcp_syn,
};

/// A TCP SYN; with [`Type::RAW`] in a whole frame, with [`Type::DGRAM`] as a packet.
pub(super) fn send(attempt: &Attempt, kind: Type) -> Result<Reached, Halt> {
    let address = attempt.ipv4()?;
    let ethertype = i32::from(ETHERTYPE_IPV4.to_be());
    let socket = attempt.socket(Domain::PACKET, kind, Some(Protocol::from(ethertype)))?;
    let link = Link::find()?;
    let gateway = match link.learnt_gateway()? {
        Some(gateway) => gateway,
        None => ask_gateway(attempt, &link)?,
    };
    let ends = ends(address)?;
    let header = Ipv4 {
        source: own_ipv4()?,
        destination: *address.ip(),
        protocol: protocol::TCP,
        options: &[],
        fragment_offset: 0,
    };
    let packet = header.around(&tcp_syn(ends));
    let bytes = if kind == Type::RAW {
        ethernet(link.own, gateway, &packet)
    } else {
        packet
    };
    let destination = address_of(&link, ETHERTYPE_IPV4, gateway).at("address")?;
    attempt.pause()?;
    socket.send_to(&bytes, &destination).at("send")?;
    Ok(Reached::sent())
}

/// Asks the gateway itself, as step `arp`.
fn ask_gateway(attempt: &Attempt, link: &Link) -> Result<[u8; 6], Halt> {
    let protocol = Protocol::from(i32::from(ETHERTYPE_ARP.to_be()));
    let socket = attempt.socket(Domain::PACKET, Type::DGRAM, Some(protocol))?;
    let everybody = address_of(link, ETHERTYPE_ARP, [0xff; 6]).at("address")?;
    let request = arp_request(link.own, own_ipv4()?, link.gateway);
    socket.send_to(&request, &everybody).at("arp")?;
    let mut packet = [0; 64];
    loop {
        let length = (&socket).read(&mut packet).at("arp")?;
        if let Some(gateway) = arp_answer(&packet[..length], link.gateway) {
            return Ok(gateway);
        }
    }
}

/// A hardware address behind eth0, as a packet socket addresses it.
fn address_of(link: &Link, ethertype: u16, hardware: [u8; 6]) -> io::Result<SockAddr> {
    // SAFETY: the storage is larger than sockaddr_ll, zeroed and aligned for every kind of address;
    // the length set is that of what was written.
    let ((), address) = unsafe {
        SockAddr::try_init(|storage, length| {
            let address = &mut *storage.cast::<libc::sockaddr_ll>();
            address.sll_family = libc::AF_PACKET as u16;
            address.sll_protocol = ethertype.to_be();
            address.sll_ifindex = link.index.cast_signed();
            address.sll_halen = 6;
            address.sll_addr[..6].copy_from_slice(&hardware);
            *length = size_of::<libc::sockaddr_ll>() as libc::socklen_t;
            Ok(())
        })
    }?;
    Ok(address)
}
