// SPDX-License-Identifier: MIT OR GPL-2.0-only
//! One path for connect and sendmsg, IPv4 and IPv6: read the destination, decide, record, rewrite.
//!
//! A v4-mapped IPv6 destination is an IPv4 destination. Recording comes before rewriting: a
//! connection whose original destination is not known must not reach the proxy.

use aya_ebpf::{helpers::bpf_ktime_get_ns, programs::SockAddrContext};
use egress_common::{
    address::{Address, Address4, Port},
    counters::{Outcome, Program},
    event::Event,
    original_dst::{OriginalDst, SocketRecord},
    redirect::{ACTION_REDIRECT, Attempt, Caller, Decision, Destination, Reach, Settings, UDP},
    workload::WorkloadEntry,
};

use crate::{context, counters::count, destination, event, maps, original_dst, udp_peers};

/// Return values of the programs: the system call goes on, or fails with EPERM.
const ALLOW: i32 = 1;
const REFUSE: i32 = 0;

/// `egress_connect4` and `egress_sendmsg4`.
#[inline(always)]
pub fn ipv4(ctx: &SockAddrContext, program: Program) -> i32 {
    run(ctx, program, |protocol| {
        let address = context::user_address4(ctx);
        let port = context::user_port(ctx);
        let found = destination::find4(address, port, protocol);
        (Address::from_v4(address), port, found)
    })
}

/// `egress_connect6` and `egress_sendmsg6`.
#[inline(always)]
pub fn ipv6(ctx: &SockAddrContext, program: Program) -> i32 {
    run(ctx, program, |protocol| {
        let address = Address::from_v6(context::user_address6(ctx));
        let port = context::user_port(ctx);
        let found = destination::find(address, port, protocol);
        (address, port, found)
    })
}

/// The shared path; `destination` reads the context and asks the tables for an IP protocol.
#[inline(always)]
fn run(
    ctx: &SockAddrContext,
    program: Program,
    destination: impl FnOnce(u8) -> (Address, Port, Destination),
) -> i32 {
    let Some(settings) = maps::settings() else {
        return pass(program, Outcome::NotConfigured);
    };
    let caller = context::caller(ctx);
    if settings.is_own(caller) {
        return pass(program, Outcome::OwnTraffic);
    }
    let protocol = context::protocol(ctx);
    let (address, port, found) = destination(protocol);
    let is_local = address.is_loopback() || address.is_unspecified();
    let decision = if is_local && !found.is_single_redirect() {
        Decision::Pass(Outcome::Internal)
    } else {
        let reach = match address.to_v4() {
            Some(_) => Reach::V4,
            None => Reach::V6,
        };
        // What only a redirected socket needs is read for no other.
        let redirected = found.action == ACTION_REDIRECT;
        let asks = match redirected {
            true => settings.depends_on_workload(caller),
            false => settings.policy_by_workload != 0,
        };
        let workload = match asks {
            true => maps::workload(settings.workload_key(caller)),
            false => WorkloadEntry::UNKNOWN,
        };
        let attempt = Attempt {
            caller,
            workload,
            protocol,
            reach,
            bound_to_device: redirected && context::is_bound_to_device(ctx),
            proxy_alive: !redirected || is_proxy_alive(settings),
        };
        settings.decide(attempt, found)
    };
    match decision {
        Decision::Pass(outcome) => {
            if is_connect(program) {
                original_dst::forget(ctx);
            }
            pass(program, outcome)
        }
        Decision::PassApproved(outcome) => {
            // Without the record the backstop drops the packets, if it is in force.
            let _ = original_dst::record(ctx, SocketRecord::APPROVED);
            pass(program, outcome)
        }
        Decision::Deny(Outcome::NotRegisteredDenied)
            if protocol == UDP
                && udp_peers::is_answer_of_socket(context::socket_cookie(ctx), (address, port)) =>
        {
            pass(program, Outcome::Answer)
        }
        Decision::Deny(outcome) => deny(program, outcome, caller, (address, port, protocol)),
        Decision::Redirect(..) if !is_connect(program) => pass(program, Outcome::Direct),
        Decision::Redirect(to, to_port) => {
            let original = (address, port);
            redirect(ctx, (program, settings, caller), original, (to, to_port))
        }
    }
}

#[inline(always)]
fn redirect(
    ctx: &SockAddrContext,
    (program, settings, caller): (Program, &Settings, Caller),
    original: (Address, Port),
    to: (Address, Port),
) -> i32 {
    let record = SocketRecord {
        original: OriginalDst {
            address: original.0,
            port: original.1,
            padding: [0; 6],
            cgroup_id: caller.cgroup_id,
            netns_cookie: caller.netns_cookie,
            // SAFETY: allowed in every program.
            decided_at_ns: unsafe { bpf_ktime_get_ns() },
        },
        redirect_address: to.0,
        redirect_port: to.1,
        padding: [0; 6],
    };
    if !original_dst::record(ctx, record) {
        let failed = settings.failed(Outcome::RecordFailedPassed, Outcome::RecordFailedDenied);
        return match failed {
            Decision::Pass(outcome) | Decision::PassApproved(outcome) => pass(program, outcome),
            Decision::Deny(outcome) => {
                let (address, port) = original;
                deny(program, outcome, caller, (address, port, context::TCP))
            }
            Decision::Redirect(..) => REFUSE,
        };
    }
    match program {
        Program::Connect4 => {
            let [.., a, b, c, d] = to.0.octets;
            let octets = [a, b, c, d];
            context::set_user4(ctx, Address4 { octets }, to.1);
        }
        _ => context::set_user6(ctx, to.0, to.1),
    }
    pass(program, Outcome::Redirected)
}

#[inline(always)]
fn deny(program: Program, outcome: Outcome, caller: Caller, to: (Address, Port, u8)) -> i32 {
    let (address, port, protocol) = to;
    let to = Event {
        address,
        port,
        protocol,
        ..Event::default()
    };
    event::denied_call(program, outcome, caller, to);
    REFUSE
}

#[inline(always)]
fn pass(program: Program, outcome: Outcome) -> i32 {
    count(program, outcome);
    ALLOW
}

#[inline(always)]
fn is_connect(program: Program) -> bool {
    matches!(program, Program::Connect4 | Program::Connect6)
}

/// Whether the agent has shown itself within the limit.
#[inline(always)]
fn is_proxy_alive(settings: &Settings) -> bool {
    if settings.heartbeat_limit_ns == 0 {
        return true;
    }
    let last = maps::HEARTBEAT.get(0).copied().unwrap_or_default();
    // SAFETY: allowed in every program.
    let now = unsafe { bpf_ktime_get_ns() };
    // A beat of another CPU may lie ahead of this reading.
    now.saturating_sub(last) < settings.heartbeat_limit_ns
}
