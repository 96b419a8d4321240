// SPDX-License-Identifier: Apache-2.0
//! Sidecar as valid values, and which one is in force for a caller (istio-egress.md 7).

use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
};

use super::{
    host::HostPattern,
    service::{Origin, Service},
    table::OutboundPolicy,
    virtual_service::{RouteDestination, VirtualService},
};
use crate::workload::Workload;

/// The egress half of a Sidecar.
#[derive(Debug, Clone)]
pub struct Sidecar {
    /// Where it came from.
    pub origin: Arc<Origin>,
    /// Labels of the workloads it is for; `None`: every workload of the namespace.
    pub selector: Option<BTreeMap<String, String>>,
    /// What is imported; empty: everything.
    pub egress: Vec<EgressListener>,
    /// Replaces meshConfig.outboundTrafficPolicy.
    pub outbound: Option<Outbound>,
}

/// Sidecar.egress[].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EgressListener {
    /// The port it is for; `None`: every port that no other listener is for.
    pub port: Option<u16>,
    /// What it imports; empty (`~/*`): nothing.
    pub hosts: Vec<Import>,
}

/// `namespace/dnsName` of a listener.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Import {
    /// Takes away from the other imports (`~namespace/dnsName`).
    pub exclude: bool,
    /// Namespace of the object.
    pub namespace: ImportFrom,
    /// The hosts.
    pub host: HostPattern,
}

/// The namespace of an [`Import`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ImportFrom {
    /// `*`.
    Any,
    /// `.`: the caller's, also in a Sidecar of the root namespace.
    Caller,
    /// A name.
    Named(String),
}

/// Sidecar.outboundTrafficPolicy.
#[derive(Debug, Clone)]
pub struct Outbound {
    /// mode.
    pub mode: OutboundPolicy,
    /// egressProxy: where unknown traffic goes instead of its original destination.
    pub proxy: Option<RouteDestination>,
}

impl EgressListener {
    /// Whether an object of a namespace with a host is imported by a caller; `fits` compares an
    /// import's host with the object's.
    fn imports(&self, caller: &str, namespace: &str, fits: impl Fn(&HostPattern) -> bool) -> bool {
        let named = |import: &&Import| {
            let from = match &import.namespace {
                ImportFrom::Any => true,
                ImportFrom::Caller => namespace == caller,
                ImportFrom::Named(name) => namespace == name,
            };
            from && fits(&import.host)
        };
        let hits = |exclude| {
            let mut imports = self.hosts.iter().filter(|i| i.exclude == exclude);
            imports.any(|import| named(&import))
        };
        hits(false) && !hits(true)
    }
}

impl Sidecar {
    fn listener(&self, port: u16) -> Option<&EgressListener> {
        let of = |port| self.egress.iter().find(|listener| listener.port == port);
        of(Some(port)).or_else(|| of(None))
    }

    /// Whether a service exists for the workload on a port.
    pub fn imports_service(&self, caller: &str, service: &Service, port: u16) -> bool {
        self.egress.is_empty()
            || self.listener(port).is_some_and(|listener| {
                let namespace = &service.origin.namespace;
                listener.imports(caller, namespace, |host| host.contains(&service.host))
            })
    }

    /// Whether a VirtualService applies to the workload on a port: some host of it is imported, in
    /// either direction of the wildcard (row 5.12).
    pub fn imports_virtual_service(
        &self,
        caller: &str,
        source: &VirtualService,
        port: u16,
    ) -> bool {
        self.egress.is_empty()
            || self.listener(port).is_some_and(|listener| {
                source.hosts.iter().any(|own| {
                    let namespace = &source.origin.namespace;
                    listener.imports(caller, namespace, |host| host.intersection(own).is_some())
                })
            })
    }
}

/// The Sidecars of a snapshot, by what they select.
#[derive(Debug, Default)]
pub struct Sidecars {
    by_namespace: HashMap<String, Vec<Arc<Sidecar>>>,
    root_namespace: String,
}

impl Sidecars {
    /// Indexes the Sidecars, oldest first.
    pub fn new(sidecars: &[Arc<Sidecar>], root_namespace: &str) -> Self {
        let mut by_namespace: HashMap<_, Vec<_>> = HashMap::new();
        for sidecar in sidecars {
            let namespace = sidecar.origin.namespace.clone();
            by_namespace
                .entry(namespace)
                .or_default()
                .push(sidecar.clone());
        }
        Self {
            by_namespace,
            root_namespace: root_namespace.to_owned(),
        }
    }

    /// The one in force for a caller (row 7.1): one that selects it, its namespace's default, the
    /// root namespace's default.
    pub fn of(&self, source: Option<&Workload>) -> Option<&Arc<Sidecar>> {
        if self.by_namespace.is_empty() {
            return None;
        }
        let list = |namespace: &str| {
            self.by_namespace
                .get(namespace)
                .map_or(&[][..], Vec::as_slice)
        };
        let default = |list: &'_ [Arc<Sidecar>]| list.iter().position(|s| s.selector.is_none());
        if let Some(source) = source {
            let own = list(&source.namespace);
            let selects = |sidecar: &&Arc<Sidecar>| {
                sidecar.selector.as_ref().is_some_and(|labels| {
                    labels
                        .iter()
                        .all(|(key, value)| source.labels.get(key) == Some(value))
                })
            };
            if let Some(found) = own.iter().find(selects) {
                return Some(found);
            }
            if let Some(at) = default(own) {
                return own.get(at);
            }
        }
        let root = list(&self.root_namespace);
        default(root).and_then(|at| root.get(at))
    }
}

/// Who asks, as far as the visibility of objects is concerned.
#[derive(Debug, Clone, Copy)]
pub struct Client<'a> {
    /// Namespace of the caller; "" sees what is exported to everybody.
    pub namespace: &'a str,
    /// The Sidecar in force.
    pub sidecar: Option<&'a Arc<Sidecar>>,
}

impl Client<'_> {
    /// Whether a service exists for the client on a port.
    pub fn sees_service(self, service: &Service, port: u16) -> bool {
        service.export_to.covers(self.namespace)
            && self
                .sidecar
                .is_none_or(|s| s.imports_service(self.namespace, service, port))
    }

    /// Whether a VirtualService is for the client on a port.
    pub fn sees_virtual_service(self, source: &VirtualService, port: u16) -> bool {
        source.export_to.covers(self.namespace)
            && self
                .sidecar
                .is_none_or(|s| s.imports_virtual_service(self.namespace, source, port))
    }
}
