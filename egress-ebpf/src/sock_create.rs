// SPDX-License-Identifier: MIT OR GPL-2.0-only
//! socket(): raw sockets and MPTCP are refused under REGISTRY_ONLY, since what they send passes
//! none of the other hooks; and the first socket of a workload makes it known to the agent.

use aya_ebpf::programs::SockContext;
use egress_common::{
    counters::{Outcome, Program},
    event::Event,
    workload::WorkloadEntry,
};

use crate::{context, counters::count, event, maps};

const ALLOW: i32 = 1;
/// socket() fails with EPERM.
const REFUSE: i32 = 0;
const PROGRAM: Program = Program::SockCreate;

/// `egress_sock_create`; the kernel calls it for IPv4 and IPv6 sockets of user space.
#[inline(always)]
pub fn sock_create(ctx: &SockContext) -> i32 {
    let Some(settings) = maps::settings() else {
        return pass(Outcome::NotConfigured);
    };
    let caller = context::socket_caller(ctx);
    if settings.is_own(caller) {
        return pass(Outcome::OwnTraffic);
    }
    let mut workload = WorkloadEntry::UNKNOWN;
    if settings.depends_on_workload(caller) {
        let key = settings.workload_key(caller);
        let known;
        (workload, known) = maps::known_workload(key);
        if !known {
            event::sighted(PROGRAM, key, caller);
        }
    }
    let (kind, protocol) = context::socket_kind(ctx);
    let is_mptcp = protocol == context::MPTCP;
    if !is_mptcp && kind != context::SOCK_RAW {
        return pass(Outcome::Ordinary);
    }
    if !settings.is_registry_only(workload) {
        return if is_mptcp {
            pass(Outcome::MptcpSocket)
        } else {
            pass(Outcome::RawSocket)
        };
    }
    let to = Event {
        protocol: protocol as u8,
        ..Event::default()
    };
    let refused = if is_mptcp {
        Outcome::MptcpSocketDenied
    } else {
        Outcome::RawSocketDenied
    };
    event::denied_call(PROGRAM, refused, caller, to);
    REFUSE
}

#[inline(always)]
fn pass(outcome: Outcome) -> i32 {
    count(PROGRAM, outcome);
    ALLOW
}
