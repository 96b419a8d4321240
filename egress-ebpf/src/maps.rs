// SPDX-License-Identifier: MIT OR GPL-2.0-only
//! Every map definition, nothing else. Names, capacities and records: egress-common.

use aya_ebpf::{
    bindings::BPF_F_NO_PREALLOC,
    btf_maps::{Array, HashMap, LpmTrie, LruHashMap, PerCpuArray, SkStorage},
    macros::btf_map,
};
use egress_common::{
    counters::SLOTS,
    maps::{
        AgentIdentity, DESTINATION_CIDRS_CAPACITY, DESTINATIONS4_CAPACITY, DESTINATIONS6_CAPACITY,
        ORIGINAL_DST_CAPACITY,
    },
    original_dst::{OriginalDst, OriginalDstKey, SocketRecord},
    redirect::{CidrKey4, CidrKey6, Destination, DestinationKey4, DestinationKey6, Settings},
};

const NO_PREALLOC: usize = BPF_F_NO_PREALLOC as usize;

/// One element; the agent writes, connect4/6 read.
#[btf_map]
pub static SETTINGS: Array<Settings, 1> = Array::new();

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

/// The agent's question about itself and the answer of `egress_identity`.
#[btf_map]
pub static AGENT_IDENTITY: Array<AgentIdentity, 1> = Array::new();
