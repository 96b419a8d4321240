// SPDX-License-Identifier: Apache-2.0
//! The pods of this node: network namespaces in which captured processes run, each with its
//! workload and with the proxy's listeners inside. Written by discovery, read at every accept.

use std::{
    collections::HashMap,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    path::PathBuf,
    sync::{Arc, PoisonError, RwLock},
};

use egress_common::{
    address::Port,
    workload::{LISTENING4, LISTENING6, WorkloadEntry},
};

use crate::workload::Workload;

/// One network namespace.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pod {
    /// The agent's number of it.
    pub index: u32,
    /// Its cookie, as the kernel programs see it.
    pub netns_cookie: u64,
    /// Its inode number, as `lsns` and `/proc/PID/ns/net` show it.
    pub netns_inode: u64,
    /// Cgroups of its captured processes, relative to the cgroup mount, sorted.
    pub cgroups: Vec<PathBuf>,
    /// Who it is, when known.
    pub workload: Option<Arc<Workload>>,
    /// Its first IPv4 address that is not a loopback one.
    pub address4: Option<Ipv4Addr>,
    /// Its first global IPv6 address.
    pub address6: Option<Ipv6Addr>,
    /// The proxy's port inside; 0: no listener.
    pub port: u16,
    /// Whether the proxy listens on 127.0.0.1 inside.
    pub listens4: bool,
    /// Whether the proxy listens on `::1` inside.
    pub listens6: bool,
    /// Interfaces on the agent's side of its cables; frames that pass by are checked there.
    pub cables: Vec<u32>,
}

/// Every pod, by the cookie of its namespace. A clone is a handle to the same table.
#[derive(Debug, Clone, Default)]
pub struct Pods(Arc<RwLock<Table>>);

#[derive(Debug, Default)]
struct Table {
    pods: HashMap<u64, Arc<Pod>>,
    /// Ports that the kernel has been told, by namespace cookie.
    admitted: HashMap<u64, u16>,
}

impl Pod {
    /// Its address of the family of another one, if it has one.
    pub fn address_like(&self, other: IpAddr) -> Option<IpAddr> {
        match other.to_canonical() {
            IpAddr::V4(_) => self.address4.map(IpAddr::V4),
            IpAddr::V6(_) => self.address6.map(IpAddr::V6),
        }
    }

    /// What the kernel is told of it; `outbound_policy` as in the entry.
    pub fn entry(&self, outbound_policy: u8) -> WorkloadEntry {
        let on = |listens: bool, bit: u8| if listens { bit } else { 0 };
        WorkloadEntry {
            index: self.index,
            redirect_port: Port::new(self.port),
            outbound_policy,
            listening: on(self.listens4, LISTENING4) | on(self.listens6, LISTENING6),
        }
    }

    /// Where it runs, for people: its first cgroup.
    pub fn place(&self) -> String {
        match self.cgroups.first() {
            Some(cgroup) => cgroup.display().to_string(),
            None => format!("net:[{}]", self.netns_inode),
        }
    }
}

impl Pods {
    /// The pod of a namespace cookie.
    pub fn find(&self, netns_cookie: u64) -> Option<Arc<Pod>> {
        let pods = self.0.read().unwrap_or_else(PoisonError::into_inner);
        pods.pods.get(&netns_cookie).cloned()
    }

    /// The pod at whose cable an interface of the agent's namespace is.
    pub fn at_cable(&self, interface: u32) -> Option<Arc<Pod>> {
        self.all()
            .into_iter()
            .find(|pod| pod.cables.contains(&interface))
    }

    /// Every pod, by its number.
    pub fn all(&self) -> Vec<Arc<Pod>> {
        let pods = self.0.read().unwrap_or_else(PoisonError::into_inner);
        let mut all: Vec<_> = pods.pods.values().cloned().collect();
        all.sort_by_key(|pod| pod.index);
        all
    }

    /// Adds or replaces one.
    pub fn put(&self, pod: Pod) {
        let mut pods = self.0.write().unwrap_or_else(PoisonError::into_inner);
        pods.pods.insert(pod.netns_cookie, Arc::new(pod));
    }

    /// Forgets one.
    pub fn remove(&self, netns_cookie: u64) {
        let mut pods = self.0.write().unwrap_or_else(PoisonError::into_inner);
        pods.pods.remove(&netns_cookie);
    }

    /// Notes which ports the kernel redirects to, by namespace cookie.
    pub fn admit(&self, ports: HashMap<u64, u16>) {
        let mut pods = self.0.write().unwrap_or_else(PoisonError::into_inner);
        pods.admitted = ports;
    }

    /// Whether the kernel redirects connections inside the pod to the proxy's listeners there.
    pub fn is_admitted(&self, pod: &Pod) -> bool {
        let pods = self.0.read().unwrap_or_else(PoisonError::into_inner);
        pod.port != 0 && pods.admitted.get(&pod.netns_cookie) == Some(&pod.port)
    }
}
