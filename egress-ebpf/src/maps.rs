// SPDX-License-Identifier: MIT OR GPL-2.0-only
//! Every map definition, nothing else. Names, capacities and records: egress-common.

use aya_ebpf::{
    bindings::BPF_F_NO_PREALLOC,
    btf_maps::{Array, HashMap, LpmTrie, LruHashMap, PerCpuArray, RingBuf, SkStorage},
    macros::btf_map,
};
use egress_common::{
    counters::SLOTS,
    event::Event,
    maps::{
        AgentIdentity, DESTINATION_CIDRS_CAPACITY, DESTINATIONS4_CAPACITY, DESTINATIONS6_CAPACITY,
        EVENTS_SIZE, ORIGINAL_DST_CAPACITY, SIGHTINGS_CAPACITY, UDP_PEERS_CAPACITY,
        WORKLOADS_CAPACITY,
    },
    original_dst::{OriginalDst, OriginalDstKey, SocketRecord},
    redirect::{CidrKey4, CidrKey6, Destination, DestinationKey4, DestinationKey6, Settings},
    workload::{UdpPeerKey, WorkloadEntry, WorkloadKey},
};

const NO_PREALLOC: usize = BPF_F_NO_PREALLOC as usize;

/// One element; the agent writes, connect4/6 read.
#[btf_map]
pub static SETTINGS: Array<Settings, 1> = Array::new();

/// One element; the agent writes while it is alive, connect4/6 read.
#[btf_map]
pub static HEARTBEAT: Array<u64, 1> = Array::new();

/// Pods, their cables, and cgroups; the agent writes, every program that decides reads.
#[btf_map]
pub static WORKLOADS: HashMap<WorkloadKey, WorkloadEntry, WORKLOADS_CAPACITY, NO_PREALLOC> =
    HashMap::new();

/// Workloads that `WORKLOADS` lacks; sock_create writes and reads.
#[btf_map]
pub static SIGHTINGS: LruHashMap<WorkloadKey, u64, SIGHTINGS_CAPACITY> = LruHashMap::new();

/// Who sent datagrams to servers in pods; skb_ingress writes, connect, sendmsg and packets read.
#[btf_map]
pub static UDP_PEERS: LruHashMap<UdpPeerKey, u64, UDP_PEERS_CAPACITY> = LruHashMap::new();

/// Single IPv4 addresses; the agent writes, connect4/6 read.
#[btf_map]
pub static DESTINATIONS4: HashMap<
    DestinationKey4,
    Destination,
    DESTINATIONS4_CAPACITY,
    NO_PREALLOC,
> = HashMap::new();

/// Single IPv6 addresses; the agent writes, connect6 reads.
#[btf_map]
pub static DESTINATIONS6: HashMap<
    DestinationKey6,
    Destination,
    DESTINATIONS6_CAPACITY,
    NO_PREALLOC,
> = HashMap::new();

/// IPv4 networks, internal ones included; the agent writes, connect4/6 read.
#[btf_map]
pub static DESTINATION_CIDRS4: LpmTrie<CidrKey4, Destination, DESTINATION_CIDRS_CAPACITY> =
    LpmTrie::new();

/// IPv6 networks, internal ones included; the agent writes, connect6 reads.
#[btf_map]
pub static DESTINATION_CIDRS6: LpmTrie<CidrKey6, Destination, DESTINATION_CIDRS_CAPACITY> =
    LpmTrie::new();

/// Redirected sockets; connect4/6 write, sock_ops and getpeername read.
#[btf_map]
pub static SOCKETS: SkStorage<SocketRecord> = SkStorage::new();

/// Connections on their way to the proxy; sock_ops writes, the proxy takes out.
#[btf_map]
pub static ORIGINAL_DST: LruHashMap<OriginalDstKey, OriginalDst, ORIGINAL_DST_CAPACITY> =
    LruHashMap::new();

/// Outcomes; every program writes, metrics read.
#[btf_map]
pub static COUNTERS: PerCpuArray<u64, SLOTS> = PerCpuArray::new();

/// Denials and sightings; programs write, the agent reads.
#[btf_map]
pub static EVENTS: RingBuf<Event, EVENTS_SIZE> = RingBuf::new();

/// The agent's question about itself and the answer of `egress_identity`.
#[btf_map]
pub static AGENT_IDENTITY: Array<AgentIdentity, 1> = Array::new();

/// The settings, once the agent has written them.
#[inline(always)]
pub fn settings() -> Option<&'static Settings> {
    SETTINGS.get(0).filter(|settings| settings.is_configured())
}

/// What `WORKLOADS` says of a key.
#[inline(always)]
pub fn workload(key: WorkloadKey) -> WorkloadEntry {
    known_workload(key).0
}

/// The same, and whether the key is there.
#[inline(always)]
pub fn known_workload(key: WorkloadKey) -> (WorkloadEntry, bool) {
    // SAFETY: values of eight octets; a concurrent update of the agent changes one field at a time.
    match unsafe { WORKLOADS.get(key) } {
        Some(entry) => (*entry, true),
        None => (WorkloadEntry::UNKNOWN, false),
    }
}
