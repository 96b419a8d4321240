// SPDX-License-Identifier: MIT OR GPL-2.0-only
//! One path for connect4 and connect6: read the destination, decide, record, rewrite.
//!
//! A v4-mapped IPv6 destination is an IPv4 destination. Recording comes before rewriting: a
//! connection whose original destination is not known must not reach the proxy.

use aya_ebpf::{btf_maps::lpm_trie::Key, helpers::bpf_ktime_get_ns, programs::SockAddrContext};
use egress_common::{
    address::{Address, Address4, Address6, Port},
    counters::{Outcome, Program},
    original_dst::{OriginalDst, SocketRecord},
    redirect::{
        CIDR_FIXED_BITS, Caller, CidrKey4, CidrKey6, Decision, Destination, DestinationKey4,
        DestinationKey6, Reach, Settings, strongest,
    },
};

use crate::{context, counters::count, maps, original_dst};

/// Return values of the programs: connect() goes on, or fails with EPERM.
const ALLOW: i32 = 1;
const REFUSE: i32 = 0;
/// A CIDR entry with this port speaks for every port.
const ANY_PORT: Port = Port::new(0);

/// `egress_connect4`.
#[inline(always)]
pub fn connect4(ctx: &SockAddrContext) -> i32 {
    let program = Program::Connect4;
    run(ctx, program, || {
        let address = context::user_address4(ctx);
        let port = context::user_port(ctx);
        (Address::from_v4(address), port, lookup4(address, port))
    })
}

/// `egress_connect6`.
#[inline(always)]
pub fn connect6(ctx: &SockAddrContext) -> i32 {
    let program = Program::Connect6;
    run(ctx, program, || {
        let address = context::user_address6(ctx);
        let port = context::user_port(ctx);
        let found = match address.to_v4() {
            Some(v4) => lookup4(v4, port),
            None => lookup6(address, port),
        };
        (Address::from_v6(address), port, found)
    })
}

/// The shared path; `destination` reads the context and asks the tables.
#[inline(always)]
fn run(
    ctx: &SockAddrContext,
    program: Program,
    destination: impl FnOnce() -> (Address, Port, Option<Destination>),
) -> i32 {
    if !context::is_tcp(ctx) {
        return pass(program, Outcome::NotTcp);
    }
    let Some(settings) = maps::SETTINGS
        .get(0)
        .filter(|settings| settings.is_configured())
    else {
        return pass(program, Outcome::NotConfigured);
    };
    let caller = context::caller(ctx);
    if settings.is_own(caller) {
        return pass(program, Outcome::OwnTraffic);
    }
    let (address, port, found) = destination();
    let reach = match address.to_v4() {
        Some(_) => Reach::V4,
        None => Reach::V6,
    };
    match settings.decide(caller, reach, found) {
        Decision::Pass(outcome) => {
            original_dst::forget(ctx);
            pass(program, outcome)
        }
        Decision::Deny(outcome) => {
            count(program, outcome);
            REFUSE
        }
        Decision::Redirect(to) => redirect(ctx, program, settings, caller, (address, port), to),
    }
}

#[inline(always)]
fn redirect(
    ctx: &SockAddrContext,
    program: Program,
    settings: &Settings,
    caller: Caller,
    original: (Address, Port),
    to: Address,
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
        redirect_address: to,
        redirect_port: settings.redirect_port,
        padding: [0; 6],
    };
    if !original_dst::record(ctx, record) {
        let failed = settings.failed(Outcome::RecordFailedPassed, Outcome::RecordFailedDenied);
        return match failed {
            Decision::Deny(outcome) => {
                count(program, outcome);
                REFUSE
            }
            Decision::Pass(outcome) => pass(program, outcome),
            Decision::Redirect(_) => REFUSE,
        };
    }
    match program {
        Program::Connect4 => {
            let [.., a, b, c, d] = to.octets;
            let octets = [a, b, c, d];
            context::set_user4(ctx, Address4 { octets }, settings.redirect_port);
        }
        _ => context::set_user6(ctx, to, settings.redirect_port),
    }
    pass(program, Outcome::Redirected)
}

#[inline(always)]
fn pass(program: Program, outcome: Outcome) -> i32 {
    count(program, outcome);
    ALLOW
}

#[inline(always)]
fn lookup4(address: Address4, port: Port) -> Option<Destination> {
    // SAFETY: values are two independent octets; a concurrent update of the agent is harmless.
    if let Some(exact) = unsafe { maps::DESTINATIONS4.get(DestinationKey4::tcp(address, port)) } {
        return Some(*exact);
    }
    let cidr = |port| {
        let key = Key::new(CIDR_FIXED_BITS + 32, CidrKey4::tcp(address, port));
        maps::DESTINATION_CIDRS4.get(&key).copied()
    };
    strongest(cidr(port), cidr(ANY_PORT))
}

#[inline(always)]
fn lookup6(address: Address6, port: Port) -> Option<Destination> {
    // SAFETY: as in lookup4.
    if let Some(exact) = unsafe { maps::DESTINATIONS6.get(DestinationKey6::tcp(address, port)) } {
        return Some(*exact);
    }
    let cidr = |port| {
        let key = Key::new(CIDR_FIXED_BITS + 128, CidrKey6::tcp(address, port));
        maps::DESTINATION_CIDRS6.get(&key).copied()
    };
    strongest(cidr(port), cidr(ANY_PORT))
}
