// SPDX-License-Identifier: Apache-2.0
//! Names and capacities of the maps, once for both sides, and the record of the identity map.
//!
//! The maps themselves are defined in egress-ebpf's `maps.rs`; a map's pin carries its name.

/// Version of everything in this crate that lies in maps; part of the pin path.
pub const LAYOUT_VERSION: u32 = 2;

/// Array of one [`crate::redirect::Settings`].
pub const SETTINGS: &str = "SETTINGS";
/// Hash [`crate::redirect::DestinationKey4`] → [`crate::redirect::Destination`].
pub const DESTINATIONS4: &str = "DESTINATIONS4";
/// Hash [`crate::redirect::DestinationKey6`] → [`crate::redirect::Destination`].
pub const DESTINATIONS6: &str = "DESTINATIONS6";
/// LPM trie [`crate::redirect::CidrKey4`] → [`crate::redirect::Destination`].
pub const DESTINATION_CIDRS4: &str = "DESTINATION_CIDRS4";
/// LPM trie [`crate::redirect::CidrKey6`] → [`crate::redirect::Destination`].
pub const DESTINATION_CIDRS6: &str = "DESTINATION_CIDRS6";
/// Socket storage of [`crate::original_dst::SocketRecord`].
pub const SOCKETS: &str = "SOCKETS";
/// LRU hash [`crate::original_dst::OriginalDstKey`] → [`crate::original_dst::OriginalDst`].
pub const ORIGINAL_DST: &str = "ORIGINAL_DST";
/// Per-CPU array of u64, indexed by [`crate::counters::slot`].
pub const COUNTERS: &str = "COUNTERS";
/// Array of one u64: when the agent was last alive, CLOCK_MONOTONIC in nanoseconds.
pub const HEARTBEAT: &str = "HEARTBEAT";
/// Hash [`crate::workload::WorkloadKey`] → [`crate::workload::WorkloadEntry`].
pub const WORKLOADS: &str = "WORKLOADS";
/// LRU hash [`crate::workload::WorkloadKey`] → CLOCK_MONOTONIC in nanoseconds: when a workload that
/// the agent does not know was last reported.
pub const SIGHTINGS: &str = "SIGHTINGS";
/// LRU hash [`crate::workload::UdpPeerKey`] → CLOCK_MONOTONIC in nanoseconds of the last datagram.
pub const UDP_PEERS: &str = "UDP_PEERS";
/// Ring buffer of [`crate::event::Event`].
pub const EVENTS: &str = "EVENTS";
/// Array of one [`AgentIdentity`].
pub const AGENT_IDENTITY: &str = "AGENT_IDENTITY";

/// Every map, in the order of their definition.
pub const ALL: [&str; 14] = [
    SETTINGS,
    HEARTBEAT,
    WORKLOADS,
    SIGHTINGS,
    UDP_PEERS,
    DESTINATIONS4,
    DESTINATIONS6,
    DESTINATION_CIDRS4,
    DESTINATION_CIDRS6,
    SOCKETS,
    ORIGINAL_DST,
    COUNTERS,
    EVENTS,
    AGENT_IDENTITY,
];

/// Capacity of `DESTINATIONS4`; memory is taken per entry only (about 100 bytes).
pub const DESTINATIONS4_CAPACITY: usize = 262_144;
/// Capacity of `DESTINATIONS6`.
pub const DESTINATIONS6_CAPACITY: usize = 65_536;
/// Capacity of each of `DESTINATION_CIDRS4` and `DESTINATION_CIDRS6`.
pub const DESTINATION_CIDRS_CAPACITY: usize = 16_384;
/// Capacity of `ORIGINAL_DST`: connections between their SYN and the proxy's accept.
pub const ORIGINAL_DST_CAPACITY: usize = 65_536;

/// Capacity of `WORKLOADS`: pods, their cgroups and cables, and cgroups of host processes.
pub const WORKLOADS_CAPACITY: usize = 16_384;
/// Capacity of `SIGHTINGS`.
pub const SIGHTINGS_CAPACITY: usize = 1_024;
/// Capacity of `UDP_PEERS`.
pub const UDP_PEERS_CAPACITY: usize = 16_384;
/// How long after its last datagram a peer may be answered, nanoseconds (the kernel's connection
/// tracking takes as long for UDP that goes both ways: nf_conntrack_udp_timeout_stream).
pub const UDP_PEER_LIFETIME_NS: u64 = 120_000_000_000;
/// Shortest time between two reports of one workload, nanoseconds.
pub const SIGHTING_INTERVAL_NS: u64 = 50_000_000;
/// Size of `EVENTS`, bytes.
pub const EVENTS_SIZE: usize = 256 << 10;

/// How the agent learns who it is from the kernel, without reading paths that lie inside cgroup
/// namespaces: it writes the cookie of a socket of its own, connects that socket, and the
/// `egress_identity` program fills in the rest. (Its network
/// namespace's cookie it has from `SO_NETNS_COOKIE`, which needs no program.) Socket cookies are unique and given by the
/// kernel, so no other process can answer in its place.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct AgentIdentity {
    /// `SO_COOKIE` of the socket that will connect; 0: nobody asks.
    pub socket_cookie: u64,
    /// cgroup id of the task that connected it; 0: not answered.
    pub cgroup_id: u64,
}

// SAFETY: repr(C) of two u64: every bit pattern is valid and there is no padding.
#[cfg(feature = "user")]
unsafe impl aya::Pod for AgentIdentity {}
