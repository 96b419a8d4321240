// SPDX-License-Identifier: MIT OR GPL-2.0-only
//! Servers in pods answer whoever asked them, also under REGISTRY_ONLY: TCP by its very nature, UDP
//! by a note of who sent a datagram.

use aya_ebpf::{helpers::bpf_ktime_get_ns, programs::SkBuffContext};
use egress_common::{
    address::{Address, Port},
    counters::{Outcome, Program},
    maps::UDP_PEER_LIFETIME_NS,
    packet::Packet,
    redirect::{ACTION_UNKNOWN, UDP},
    workload::{UdpPeerKey, WorkloadKey},
};

use crate::{backstop, context, counters::count, destination, maps};

/// What comes in is never refused here.
const ALLOW: i32 = 1;

/// `egress_skb_ingress`: notes who sends datagrams from outside, while it matters.
#[inline(always)]
pub fn skb_ingress(ctx: &SkBuffContext) -> i32 {
    let Some(settings) = maps::settings() else {
        return ALLOW;
    };
    let key = || WorkloadKey::cgroup(context::skb_cgroup_id(ctx));
    if !backstop::is_registry_only(settings, key) {
        return ALLOW;
    }
    let Some(packet) = context::skb_packet(ctx) else {
        return ALLOW;
    };
    if packet.protocol != UDP || packet.source.is_loopback() {
        return ALLOW;
    }
    let found = destination::find(packet.source, packet.source_port, UDP);
    if found.action == ACTION_UNKNOWN {
        note(ctx, packet);
        count(Program::SkbIngress, Outcome::PeerNoted);
    }
    ALLOW
}

#[inline(always)]
fn note(ctx: &SkBuffContext, packet: Packet) {
    let peer = (packet.source, packet.source_port);
    let local = (packet.destination, packet.port);
    // SAFETY: allowed in every program.
    let now = unsafe { bpf_ktime_get_ns() };
    let by_socket = UdpPeerKey::by_socket(context::skb_socket_cookie(ctx), peer);
    // Without memory for a note the answer is refused, and counted there.
    let _ = maps::UDP_PEERS.insert(by_socket, now, 0);
    let _ = maps::UDP_PEERS.insert(UdpPeerKey::by_ends(local, peer), now, 0);
}

/// Whether a datagram of this socket answers one that came from there.
#[inline(always)]
pub fn is_answer_of_socket(socket_cookie: u64, to: (Address, Port)) -> bool {
    is_noted(UdpPeerKey::by_socket(socket_cookie, to))
}

/// Whether a packet answers one that came from where it goes.
#[inline(always)]
pub fn is_answer(packet: Packet) -> bool {
    let local = (packet.source, packet.source_port);
    packet.protocol == UDP
        && is_noted(UdpPeerKey::by_ends(
            local,
            (packet.destination, packet.port),
        ))
}

#[inline(always)]
fn is_noted(key: UdpPeerKey) -> bool {
    // SAFETY: a value of one word.
    let Some(last) = (unsafe { maps::UDP_PEERS.get(key) }) else {
        return false;
    };
    // SAFETY: allowed in every program.
    let now = unsafe { bpf_ktime_get_ns() };
    now.saturating_sub(*last) < UDP_PEER_LIFETIME_NS
}
