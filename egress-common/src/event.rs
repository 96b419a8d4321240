// SPDX-License-Identifier: Apache-2.0
//! What the kernel programs tell the agent as it happens: denials, and workloads that it does not
//! know yet. The normal path tells nothing.

use crate::address::{Address, Port};

/// [`Event::kind`]: something was refused; `outcome` says why.
pub const EVENT_DENIED: u8 = 1;
/// [`Event::kind`]: a socket was made in a network namespace, or by a cgroup, that `WORKLOADS` does
/// not hold.
pub const EVENT_SIGHTED: u8 = 2;

/// One record of the ring buffer `EVENTS`. Fields that do not apply are zero.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Event {
    /// CLOCK_MONOTONIC in nanoseconds.
    pub time_ns: u64,
    /// cgroup id of the task; for packets, of the socket.
    pub cgroup_id: u64,
    /// Cookie of the socket's network namespace; 0 for packets.
    pub netns_cookie: u64,
    /// Process id (thread group) in the initial pid namespace; 0 for packets.
    pub pid: u32,
    /// Index of the interface that a packet came in by; only from `egress_tc`.
    pub interface: u32,
    /// Destination.
    pub address: Address,
    /// Destination port.
    pub port: Port,
    /// IP protocol number, modulo 256.
    pub protocol: u8,
    /// `EVENT_*`.
    pub kind: u8,
    /// [`crate::counters::Program`] as a number.
    pub program: u8,
    /// [`crate::counters::Outcome`] as a number.
    pub outcome: u8,
    /// Zero.
    pub padding: [u8; 2],
}

// SAFETY: repr(C), integers and byte arrays only, no implicit padding (see the layout tests):
// every bit pattern is valid.
#[cfg(feature = "user")]
unsafe impl aya::Pod for Event {}
