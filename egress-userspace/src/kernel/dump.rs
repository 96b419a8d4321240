// SPDX-License-Identifier: Apache-2.0
//! `egress dump maps`: the pinned maps as JSON, without a running agent.

use std::{net::IpAddr, path::Path};

use aya::maps::{Array, HashMap, LpmTrie, Map, MapData, MapError, PerCpuArray};
use egress_common::{
    address::{Address, Port},
    maps,
    original_dst::{OriginalDst, OriginalDstKey},
    redirect::{
        ACTION_DIRECT, ACTION_REDIRECT, ACTION_REFUSE_QUIC, ANY_PROTOCOL, CIDR_FIXED_BITS,
        CidrKey4, CidrKey6, Destination, DestinationKey4, DestinationKey6, FAILURE_POLICY_OPEN,
        OUTBOUND_REGISTRY_ONLY, Settings,
    },
    workload::{KIND_CGROUP, KIND_INTERFACE, LISTENING4, LISTENING6, WorkloadEntry, WorkloadKey},
};
use serde_json::{Value, json};

use super::{bpffs::version_directory, counters::CounterReader, error::KernelError};

/// A CIDR entry with this port speaks for every port.
const ANY_PORT: Port = Port::new(0);

/// The maps pinned under `bpffs`, each under its name: `SETTINGS` an object, the others arrays
/// with one object per entry, in the kernel's order.
///
/// # Errors
/// [`KernelError::File`] or [`KernelError::Map`] when a map is not there or not of this layout.
pub fn dump_maps(bpffs: &Path) -> Result<Value, KernelError> {
    let version = version_directory(bpffs);
    if !version.is_dir() {
        return Err(KernelError::File {
            action: "find pinned maps in",
            path: version,
            source: std::io::ErrorKind::NotFound.into(),
        });
    }
    let settings: Array<MapData, Settings> = open(&version, maps::SETTINGS)?;
    let heartbeat: Array<MapData, u64> = open(&version, maps::HEARTBEAT)?;
    let workloads: HashMap<MapData, WorkloadKey, WorkloadEntry> = open(&version, maps::WORKLOADS)?;
    let addresses4: HashMap<MapData, DestinationKey4, Destination> =
        open(&version, maps::DESTINATIONS4)?;
    let addresses6: HashMap<MapData, DestinationKey6, Destination> =
        open(&version, maps::DESTINATIONS6)?;
    let cidrs4: LpmTrie<MapData, CidrKey4, Destination> = open(&version, maps::DESTINATION_CIDRS4)?;
    let cidrs6: LpmTrie<MapData, CidrKey6, Destination> = open(&version, maps::DESTINATION_CIDRS6)?;
    let originals: HashMap<MapData, OriginalDstKey, OriginalDst> =
        open(&version, maps::ORIGINAL_DST)?;
    let counters: PerCpuArray<MapData, u64> = open(&version, maps::COUNTERS)?;

    let settings = settings
        .get(&0, 0)
        .map_err(|source| read_failed(maps::SETTINGS, source))?;
    let heartbeat = heartbeat
        .get(&0, 0)
        .map_err(|source| read_failed(maps::HEARTBEAT, source))?;
    let workloads = entries(maps::WORKLOADS, workloads.iter(), workload)?;
    let addresses4 = entries(maps::DESTINATIONS4, addresses4.iter(), |key, value| {
        let address = IpAddr::V4(key.address.into());
        destination(address, key.port, key.protocol, value)
    })?;
    let addresses6 = entries(maps::DESTINATIONS6, addresses6.iter(), |key, value| {
        let address = IpAddr::V6(key.address.into());
        destination(address, key.port, key.protocol, value)
    })?;
    let cidrs4 = entries(maps::DESTINATION_CIDRS4, cidrs4.iter(), |key, value| {
        let data = key.data();
        let address = IpAddr::V4(data.address.into());
        let network = (address, key.prefix_len());
        cidr(network, data.port, data.protocol, value)
    })?;
    let cidrs6 = entries(maps::DESTINATION_CIDRS6, cidrs6.iter(), |key, value| {
        let data = key.data();
        let address = IpAddr::V6(data.address.into());
        let network = (address, key.prefix_len());
        cidr(network, data.port, data.protocol, value)
    })?;
    let originals = entries(maps::ORIGINAL_DST, originals.iter(), original)?;
    Ok(json!({
        maps::SETTINGS: settings_value(&settings),
        maps::HEARTBEAT: heartbeat,
        maps::WORKLOADS: workloads,
        maps::DESTINATIONS4: addresses4,
        maps::DESTINATIONS6: addresses6,
        maps::DESTINATION_CIDRS4: cidrs4,
        maps::DESTINATION_CIDRS6: cidrs6,
        maps::ORIGINAL_DST: originals,
        maps::COUNTERS: CounterReader::new(counters).read()?,
    }))
}

fn open<M: TryFrom<Map, Error = MapError>>(
    version: &Path,
    name: &'static str,
) -> Result<M, KernelError> {
    MapData::from_pin(version.join(name))
        .and_then(Map::from_map_data)
        .and_then(M::try_from)
        .map_err(|source| KernelError::Map {
            action: "open pinned",
            map: name,
            source,
        })
}

fn read_failed(map: &'static str, source: MapError) -> KernelError {
    KernelError::Map {
        action: "read",
        map,
        source,
    }
}

fn entries<K, V>(
    map: &'static str,
    iter: impl Iterator<Item = Result<(K, V), MapError>>,
    to_json: impl Fn(K, V) -> Value,
) -> Result<Vec<Value>, KernelError> {
    iter.map(|entry| {
        let (key, value) = entry.map_err(|source| read_failed(map, source))?;
        Ok(to_json(key, value))
    })
    .collect()
}

fn settings_value(settings: &Settings) -> Value {
    let address = |address: Address| address.is_some().then(|| IpAddr::from(address));
    json!({
        "layout_version": settings.layout_version,
        "failure_policy":
            if settings.failure_policy == FAILURE_POLICY_OPEN { "open" } else { "closed" },
        "outbound_policy": outbound_policy(settings.outbound_policy),
        "policy_by_workload": settings.policy_by_workload != 0,
        "heartbeat_limit_ns": settings.heartbeat_limit_ns,
        "own_cgroup_id": settings.own_cgroup_id,
        "own_netns_cookie": settings.own_netns_cookie,
        "loopback4": address(settings.loopback4),
        "loopback6": address(settings.loopback6),
        "node4": address(settings.node4),
        "node6": address(settings.node6),
        "redirect_port": settings.redirect_port.number(),
    })
}

fn destination(address: IpAddr, port: Port, protocol: u8, value: Destination) -> Value {
    json!({
        "address": address,
        "port": port.number(),
        "protocol": protocol,
        "action": action(value),
    })
}

fn cidr(network: (IpAddr, u32), port: Port, protocol: u8, value: Destination) -> Value {
    let (address, prefix) = network;
    let bits = prefix.saturating_sub(CIDR_FIXED_BITS);
    json!({
        "cidr": format!("{address}/{bits}"),
        // Null stands for every port.
        "port": (port != ANY_PORT).then(|| port.number()),
        // Null stands for every protocol.
        "protocol": (protocol != ANY_PROTOCOL).then_some(protocol),
        "action": action(value),
    })
}

fn workload(key: WorkloadKey, value: WorkloadEntry) -> Value {
    let kind = match key.kind {
        KIND_CGROUP => "cgroup",
        KIND_INTERFACE => "interface",
        _ => "netns",
    };
    json!({
        "kind": kind,
        "id": key.id,
        "index": value.index,
        "redirect_port": value.redirect_port.number(),
        "listening4": value.listening & LISTENING4 != 0,
        "listening6": value.listening & LISTENING6 != 0,
        // Null stands for the policy of SETTINGS.
        "outbound_policy": (value.outbound_policy != 0)
            .then(|| outbound_policy(u32::from(value.outbound_policy))),
    })
}

fn outbound_policy(number: u32) -> &'static str {
    if number == OUTBOUND_REGISTRY_ONLY {
        "REGISTRY_ONLY"
    } else {
        "ALLOW_ANY"
    }
}

fn original(key: OriginalDstKey, value: OriginalDst) -> Value {
    json!({
        "netns_cookie": key.netns_cookie,
        "source": socket_address(key.source_address, key.source_port.number()),
        "redirect": socket_address(key.redirect_address, key.redirect_port.number()),
        "original": socket_address(value.address, value.port.number()),
        "cgroup_id": value.cgroup_id,
        "caller_netns_cookie": value.netns_cookie,
        "decided_at_ns": value.decided_at_ns,
    })
}

fn socket_address(address: Address, port: u16) -> String {
    std::net::SocketAddr::new(address.into(), port).to_string()
}

fn action(value: Destination) -> &'static str {
    match value.action {
        ACTION_REDIRECT => "redirect",
        ACTION_DIRECT => "direct",
        ACTION_REFUSE_QUIC => "refuse_quic",
        _ => "pass",
    }
}
