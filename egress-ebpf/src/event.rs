// SPDX-License-Identifier: MIT OR GPL-2.0-only
//! Tells the agent of denials and of workloads that it does not know.

use aya_ebpf::helpers::{bpf_get_current_pid_tgid, bpf_ktime_get_ns};
use egress_common::{
    counters::{Outcome, Program},
    event::{EVENT_DENIED, EVENT_SIGHTED, Event},
    maps::SIGHTING_INTERVAL_NS,
    redirect::Caller,
    workload::WorkloadKey,
};

use crate::{counters::count, maps};

/// Counts a denial made in a system call, and tells of it; `to` is the rest of the event.
#[inline(always)]
pub fn denied_call(program: Program, outcome: Outcome, caller: Caller, to: Event) {
    let event = Event {
        cgroup_id: caller.cgroup_id,
        netns_cookie: caller.netns_cookie,
        pid: pid(),
        ..to
    };
    denied(program, outcome, event);
}

/// Counts a denial, and tells of it.
#[inline(always)]
pub fn denied(program: Program, outcome: Outcome, event: Event) {
    count(program, outcome);
    submit(
        program,
        Event {
            kind: EVENT_DENIED,
            outcome: outcome as u8,
            ..event
        },
    );
}

/// Tells that `WORKLOADS` lacks the key, at most once in [`SIGHTING_INTERVAL_NS`] for each.
#[inline(always)]
pub fn sighted(program: Program, key: WorkloadKey, caller: Caller) {
    // SAFETY: allowed in every program.
    let now = unsafe { bpf_ktime_get_ns() };
    // SAFETY: a value of one word; a race between CPUs makes one report too many.
    if let Some(last) = unsafe { maps::SIGHTINGS.get(key) }
        && now.wrapping_sub(*last) < SIGHTING_INTERVAL_NS
    {
        return;
    }
    // Without memory for the entry the report is made again; that does no harm.
    let _ = maps::SIGHTINGS.insert(key, now, 0);
    let event = Event {
        cgroup_id: caller.cgroup_id,
        netns_cookie: caller.netns_cookie,
        pid: pid(),
        kind: EVENT_SIGHTED,
        ..Event::default()
    };
    submit(program, event);
}

#[inline(always)]
fn submit(program: Program, event: Event) {
    let event = Event {
        // SAFETY: allowed in every program.
        time_ns: unsafe { bpf_ktime_get_ns() },
        program: program as u8,
        ..event
    };
    match maps::EVENTS.reserve(0) {
        Some(mut place) => {
            place.write(event);
            place.submit(0);
        }
        None => count(program, Outcome::EventLost),
    }
}

#[inline(always)]
fn pid() -> u32 {
    (bpf_get_current_pid_tgid() >> 32) as u32
}
