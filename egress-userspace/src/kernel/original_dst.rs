// SPDX-License-Identifier: Apache-2.0
//! The original destination of an accepted socket, and who asked for it.

use std::{
    net::{IpAddr, SocketAddr},
    os::fd::AsFd,
    sync::Arc,
};

use aya::maps::MapData;
use egress_common::{
    address::{Address, Port},
    original_dst::{OriginalDst, OriginalDstKey},
};

use super::{cgroups::WorkloadFinder, error::KernelError, syscall};
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
    workloads: WorkloadFinder,
}

impl OriginalDestinations {
    /// Over the map `ORIGINAL_DST`; `netns_cookie` is that of the proxy's listeners.
    pub(super) fn new(map: MapData, netns_cookie: u64, workloads: WorkloadFinder) -> Self {
        Self {
            shared: Arc::new(Shared {
                map,
                netns_cookie,
                workloads,
            }),
        }
    }

    /// Takes out what was recorded for the connection accepted at `local` from `peer`; v4-mapped
    /// addresses stand for IPv4. `None`: the kernel did not redirect it, so it must be refused.
    /// A second call for the same connection finds nothing.
    ///
    /// # Errors
    /// [`KernelError::Call`] when the kernel refuses the lookup; refuse the connection.
    pub fn take(
        &self,
        local: SocketAddr,
        peer: SocketAddr,
    ) -> Result<Option<Capture>, KernelError> {
        let key = OriginalDstKey::new(self.shared.netns_cookie, stored(peer), stored(local));
        let found: Option<OriginalDst> = syscall::take_element(self.shared.map.fd().as_fd(), &key)
            .map_err(|source| KernelError::Call {
                action: "look up an original destination",
                source,
            })?;
        Ok(found.map(|found| Capture {
            destination: OriginalDestination(SocketAddr::new(
                IpAddr::from(found.address),
                found.port.number(),
            )),
            cgroup_id: found.cgroup_id,
            netns_cookie: found.netns_cookie,
            workload: self.shared.workloads.find(found.cgroup_id),
        }))
    }
}

/// The form of a socket address inside maps.
fn stored(address: SocketAddr) -> (Address, Port) {
    (address.ip().into(), Port::new(address.port()))
}
