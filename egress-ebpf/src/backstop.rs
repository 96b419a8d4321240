// SPDX-License-Identifier: MIT OR GPL-2.0-only
//! The backstops under REGISTRY_ONLY: packets that no system call of ours let go. They look at
//! what can begin a flow only: whatever else TCP sends belongs to a connection that connect()
//! decided on, or that a server in the pod accepted.

use aya_ebpf::programs::{SkBuffContext, TcContext};
use egress_common::{
    address::Address,
    counters::{Outcome, Program},
    event::Event,
    packet::Packet,
    redirect::{FAILURE_POLICY_OPEN, Settings, Verdict},
    workload::{WorkloadEntry, WorkloadKey},
};

use crate::{context, counters::count, destination, event, maps, original_dst, udp_peers};

/// Return values of cgroup_skb: go on, or drop (the sender sees EPERM).
const ALLOW: i32 = 1;
const REFUSE: i32 = 0;
/// Return values of a tc program (uapi pkt_cls.h; the same numbers with tcx): ask the next program,
/// or drop.
const TC_ACT_UNSPEC: i32 = -1;
const TC_ACT_SHOT: i32 = 2;
/// Ethernet types in network byte order, as `__sk_buff.protocol` has them.
const ETH_P_IP: u32 = (0x0800_u16).to_be() as u32;
const ETH_P_IPV6: u32 = (0x86dd_u16).to_be() as u32;
const ETH_P_ARP: u32 = (0x0806_u16).to_be() as u32;

/// `egress_skb`: packets of sockets in the captured cgroups, at IP level.
#[inline(always)]
pub fn skb(ctx: &SkBuffContext) -> i32 {
    let program = Program::Skb;
    let Some(settings) = maps::settings() else {
        count(program, Outcome::NotConfigured);
        return ALLOW;
    };
    if !is_registry_only(settings, || {
        WorkloadKey::cgroup(context::skb_cgroup_id(ctx))
    }) {
        return ALLOW;
    }
    let raw = context::skb_is_from_raw_socket(ctx);
    let Some(packet) = context::skb_packet(ctx) else {
        return ALLOW;
    };
    if !(packet.opening || raw) {
        return ALLOW;
    }
    if needs_no_permission(packet.destination) {
        count(program, Outcome::Loopback);
        return ALLOW;
    }
    let cgroup_id = context::skb_cgroup_id(ctx);
    if cgroup_id == settings.own_cgroup_id {
        count(program, Outcome::OwnTraffic);
        return ALLOW;
    }
    let found = destination::find(packet.destination, packet.port, packet.protocol);
    let approved = !raw && original_dst::is_approved(ctx);
    match settings.admit(packet, found, approved) {
        Verdict::Pass(outcome) => {
            count(program, outcome);
            ALLOW
        }
        Verdict::Drop(_) if udp_peers::is_answer(packet) => {
            count(program, Outcome::Answer);
            ALLOW
        }
        Verdict::Drop(outcome) => {
            let event = Event {
                cgroup_id,
                ..of(packet)
            };
            event::denied(program, outcome, event);
            REFUSE
        }
    }
}

/// `egress_tc`: frames that a pod put on its cable, whatever socket made them.
#[inline(always)]
pub fn tc(ctx: &TcContext) -> i32 {
    let program = Program::Tc;
    let Some(settings) = maps::settings() else {
        count(program, Outcome::NotConfigured);
        return TC_ACT_UNSPEC;
    };
    let packet = match context::tc_protocol(ctx) {
        ETH_P_IP => context::tc_packet4(ctx),
        ETH_P_IPV6 => context::tc_packet6(ctx),
        ETH_P_ARP => return TC_ACT_UNSPEC,
        // Nothing else is routed; a bridge would carry it on.
        _ => Some(Packet::opaque((Address::NONE, Address::NONE), 0)),
    };
    let Some(packet) = packet.filter(|packet| packet.opening) else {
        return TC_ACT_UNSPEC;
    };
    if needs_no_permission(packet.destination) {
        count(program, Outcome::Loopback);
        return TC_ACT_UNSPEC;
    }
    let found = destination::find(packet.destination, packet.port, packet.protocol);
    let interface = context::tc_interface(ctx);
    let registry_only = is_registry_only(settings, || WorkloadKey::interface(interface));
    // The socket cannot be seen from here: what the failure policy lets go must pass.
    let approved = settings.failure_policy == FAILURE_POLICY_OPEN;
    match settings.admit(packet, found, approved) {
        Verdict::Drop(_) if registry_only && udp_peers::is_answer(packet) => {
            count(program, Outcome::Answer);
            TC_ACT_UNSPEC
        }
        Verdict::Drop(outcome) if registry_only => {
            let event = Event {
                interface,
                ..of(packet)
            };
            event::denied(program, outcome, event);
            TC_ACT_SHOT
        }
        Verdict::Drop(_) => {
            count(program, Outcome::NotRegistered);
            TC_ACT_UNSPEC
        }
        Verdict::Pass(outcome) => {
            count(program, outcome);
            TC_ACT_UNSPEC
        }
    }
}

/// Whether unregistered destinations are refused for the workload of a key.
#[inline(always)]
pub fn is_registry_only(settings: &Settings, key: impl FnOnce() -> WorkloadKey) -> bool {
    let workload = if settings.policy_by_workload == 0 {
        WorkloadEntry::UNKNOWN
    } else {
        maps::workload(key())
    };
    settings.is_registry_only(workload)
}

/// Loopback, and link-local multicast, which no router forwards (RFC 5771 4, RFC 4291 2.7):
/// neighbour discovery and group membership.
#[inline(always)]
fn needs_no_permission(address: Address) -> bool {
    match address.to_v4() {
        Some(v4) => {
            v4.is_loopback()
                || v4.octets == [255; 4]
                || (v4.octets[0] == 224 && v4.octets[1] == 0 && v4.octets[2] == 0)
        }
        None => {
            address.is_loopback() || (address.octets[0] == 0xff && address.octets[1] & 0x0f == 2)
        }
    }
}

#[inline(always)]
fn of(packet: Packet) -> Event {
    Event {
        address: packet.destination,
        port: packet.port,
        protocol: packet.protocol,
        ..Event::default()
    }
}
