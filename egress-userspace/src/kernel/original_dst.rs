// SPDX-License-Identifier: Apache-2.0
//! The original destination of an accepted socket, and who asked for it.

use std::{
    net::{IpAddr, SocketAddr},
    os::fd::{AsFd, OwnedFd},
    sync::Arc,
    time::Duration,
};

use aya::maps::{HashMap, Map, MapData, MapError};
use egress_common::{
    address::{Address, Port},
    maps::ORIGINAL_DST,
    original_dst::{OriginalDst, OriginalDstKey},
};

use super::{cgroups::WorkloadFinder, error::KernelError, pods::Pods, syscall};
use crate::workload::Workload;

/// Where an application wanted to go before the kernel redirected it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct OriginalDestination(pub SocketAddr);

/// What the kernel recorded for one redirected connection.
#[derive(Debug, Clone)]
pub struct Capture {
    /// Where it was going.
    pub destination: OriginalDestination,
    /// cgroup id of the caller at `connect()`.
    pub cgroup_id: u64,
    /// Cookie of the caller's network namespace.
    pub netns_cookie: u64,
    /// Who it is, when known.
    pub workload: Option<Arc<Workload>>,
    /// The caller's own address, when the socket shows only loopback: the pod's.
    pub address: Option<IpAddr>,
}

/// Answers for accepted sockets. A clone is a handle to the same map; every proxy thread has one.
#[derive(Debug, Clone)]
pub struct OriginalDestinations {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    map: MapData,
    netns_cookie: u64,
    pods: Pods,
    workloads: Arc<WorkloadFinder>,
}

impl OriginalDestinations {
    /// Over the map `ORIGINAL_DST`; `netns_cookie` is the agent's.
    pub(super) fn new(
        map: MapData,
        netns_cookie: u64,
        pods: Pods,
        workloads: Arc<WorkloadFinder>,
    ) -> Self {
        Self {
            shared: Arc::new(Shared {
                map,
                netns_cookie,
                pods,
                workloads,
            }),
        }
    }

    /// Takes out what was recorded for the connection accepted at `local` from `peer`; v4-mapped
    /// addresses stand for IPv4. `pod` is the namespace cookie of the listener when it is not the
    /// agent's. `None`: the kernel did not redirect it, so it must be refused. A second call for
    /// the same connection finds nothing.
    ///
    /// # Errors
    /// [`KernelError::Call`] when the kernel refuses the lookup; refuse the connection.
    pub fn take(
        &self,
        pod: Option<u64>,
        local: SocketAddr,
        peer: SocketAddr,
    ) -> Result<Option<Capture>, KernelError> {
        let netns_cookie = pod.unwrap_or(self.shared.netns_cookie);
        let key = OriginalDstKey::new(netns_cookie, stored(peer), stored(local));
        let found: Option<OriginalDst> = syscall::take_element(self.shared.map.fd().as_fd(), &key)
            .map_err(|source| KernelError::Call {
                action: "look up an original destination",
                source,
            })?;
        Ok(found.map(|found| self.capture(&found, peer)))
    }

    /// Removes what is older than `lifetime`, because nobody will take it any more: connections that
    /// ended before they were accepted. Returns how many.
    ///
    /// # Errors
    /// [`KernelError::Map`] when the kernel refuses to list or remove.
    pub fn sweep(&self, lifetime: Duration) -> Result<usize, KernelError> {
        let failed = |source| KernelError::Map {
            action: "sweep",
            map: ORIGINAL_DST,
            source,
        };
        let now = syscall::monotonic_ns().map_err(|source| KernelError::Call {
            action: "read CLOCK_MONOTONIC",
            source,
        })?;
        let copy = MapData::from_fd(clone_fd(&self.shared.map)?).map_err(failed)?;
        let mut map: HashMap<_, OriginalDstKey, OriginalDst> =
            Map::LruHashMap(copy).try_into().map_err(failed)?;
        let lifetime = lifetime.as_nanos() as u64;
        let is_stale = |value: &OriginalDst| now.saturating_sub(value.decided_at_ns) > lifetime;
        let stale: Vec<OriginalDstKey> = map
            .iter()
            .filter_map(Result::ok)
            .filter(|(_, value)| is_stale(value))
            .map(|(key, _)| key)
            .collect();
        let mut removed = 0;
        for key in stale {
            match map.remove(&key) {
                Ok(()) => removed += 1,
                Err(MapError::KeyNotFound) => {}
                Err(source) => return Err(failed(source)),
            }
        }
        Ok(removed)
    }

    fn capture(&self, found: &OriginalDst, peer: SocketAddr) -> Capture {
        let destination = SocketAddr::new(IpAddr::from(found.address), found.port.number());
        let pod = match found.netns_cookie == self.shared.netns_cookie {
            true => None,
            false => self.shared.pods.find(found.netns_cookie),
        };
        let address = pod
            .as_ref()
            .filter(|_| peer.ip().to_canonical().is_loopback())
            .and_then(|pod| pod.address_like(destination.ip()));
        // The namespace is who it is; a task that moved to another cgroup is still the same pod.
        let workload = match pod {
            Some(pod) => pod.workload.clone(),
            None => self.shared.workloads.find(found.cgroup_id),
        };
        Capture {
            destination: OriginalDestination(destination),
            cgroup_id: found.cgroup_id,
            netns_cookie: found.netns_cookie,
            workload,
            address,
        }
    }
}

fn clone_fd(map: &MapData) -> Result<OwnedFd, KernelError> {
    map.fd()
        .as_fd()
        .try_clone_to_owned()
        .map_err(|source| KernelError::Call {
            action: "open a map again",
            source,
        })
}

/// The form of a socket address inside maps.
fn stored(address: SocketAddr) -> (Address, Port) {
    (address.ip().into(), Port::new(address.port()))
}
