// SPDX-License-Identifier: Apache-2.0
//! All objects together: one version of each, Istio's order, and what can be said only by looking
//! at several (rows 0.5, 0.8).

use std::{collections::HashMap, sync::Arc};

use super::{
    mesh::MeshConfig,
    object::{Object, Valid},
    problem::Severity,
};
use crate::routing::{
    gateway::GatewayName,
    host::{HostMap, HostPattern},
    service::Protocol,
    table::Objects,
    virtual_service::{HttpAction, VirtualService},
};

/// Kind, namespace, name.
pub type Identity = (&'static str, String, String);

impl Object {
    /// What makes two documents versions of one object.
    pub fn identity(&self) -> Identity {
        let origin = &self.origin;
        (origin.kind, origin.namespace.clone(), origin.name.clone())
    }
}

/// Rejects every object whose identity an earlier document already has.
pub fn reject_duplicates(objects: &mut [Object]) {
    let mut first: HashMap<Identity, String> = HashMap::new();
    for object in objects.iter_mut().filter(|object| object.identified()) {
        let place = format!("{}:{}", object.origin.file.display(), object.origin.line);
        match first.get(&object.identity()) {
            Some(earlier) => {
                let message = format!("{} is already defined in {earlier}", object.origin);
                object.report(Severity::Error, "metadata.name", message);
                object.value = None;
            }
            None => {
                first.insert(object.identity(), place);
            }
        }
    }
}

/// The model of all valid objects: oldest first, then by name, then by namespace.
pub fn assemble<'a>(objects: impl Iterator<Item = &'a Object>, mesh: &MeshConfig) -> Objects {
    let mut ordered: Vec<_> = objects.filter(|object| object.value.is_some()).collect();
    ordered.sort_by(|a, b| {
        // No creation time sorts before any: files without it are the usual case.
        let key = |o: &'_ Object| {
            (
                o.origin.created.clone(),
                o.origin.name.clone(),
                o.origin.namespace.clone(),
            )
        };
        key(a).cmp(&key(b))
    });
    let mut all = Objects {
        mesh: mesh.routing.clone(),
        ..Objects::default()
    };
    for object in ordered {
        match &object.value {
            Some(Valid::Services(services)) => all.services.extend(services.iter().cloned()),
            Some(Valid::Gateway(gateway)) => all.gateways.push(gateway.clone()),
            Some(Valid::VirtualService(vs)) => all.virtual_services.push(vs.clone()),
            None => {}
        }
    }
    all
}

/// Adds the findings that need several objects.
pub fn cross_check(objects: &mut [Object], all: &Objects) {
    let mut registry = HostMap::<Vec<usize>>::default();
    for (index, service) in all.services.iter().enumerate() {
        registry.entry(&service.host).push(index);
    }
    let mut mesh_owner: HashMap<&HostPattern, &Arc<VirtualService>> = HashMap::new();
    for vs in all
        .virtual_services
        .iter()
        .filter(|vs| vs.gateways.contains(&GatewayName::Mesh))
    {
        for host in &vs.hosts {
            mesh_owner.entry(host).or_insert(vs);
        }
    }
    for object in objects.iter_mut() {
        match object.value.clone() {
            Some(Valid::VirtualService(vs)) => {
                gateways(object, &vs, all);
                destinations(object, &vs, &registry);
                for (index, host) in vs.hosts.iter().enumerate() {
                    let winner = mesh_owner
                        .get(host)
                        .filter(|_| vs.gateways.contains(&GatewayName::Mesh));
                    if let Some(winner) = winner.filter(|w| !Arc::ptr_eq(w, &vs)) {
                        let message = format!(
                            "IST0109: {} has host {host} for gateway mesh too and wins by age and name",
                            winner.origin
                        );
                        object.report(Severity::Warning, &format!("spec.hosts[{index}]"), message);
                    }
                }
            }
            Some(Valid::Services(services)) => {
                for service in services {
                    conflicts(object, &service, all);
                }
            }
            _ => {}
        }
    }
}

/// IST0101 for gateways, IST0132.
fn gateways(object: &mut Object, vs: &VirtualService, all: &Objects) {
    for (index, bound) in vs.gateways.iter().enumerate() {
        let GatewayName::Named { namespace, name } = bound else {
            continue;
        };
        let field = format!("spec.gateways[{index}]");
        let found = all
            .gateways
            .iter()
            .find(|g| g.origin.namespace == *namespace && g.origin.name == *name);
        let Some(gateway) = found else {
            let message = format!("IST0101: there is no Gateway {namespace}/{name}");
            object.report(Severity::Warning, &field, message);
            continue;
        };
        for (index, host) in vs.hosts.iter().enumerate() {
            let admitted = gateway.servers.iter().flat_map(|s| &s.hosts).any(|h| {
                h.namespace
                    .as_ref()
                    .is_none_or(|ns| *ns == vs.origin.namespace)
                    && h.host.intersection(host).is_some()
            });
            if !admitted {
                let message = format!(
                    "IST0132: no server of {} admits host {host}",
                    gateway.origin
                );
                object.report(Severity::Warning, &format!("spec.hosts[{index}]"), message);
            }
        }
    }
}

/// IST0101 for destinations.
fn destinations(object: &mut Object, vs: &VirtualService, registry: &HostMap<Vec<usize>>) {
    let http = vs
        .http
        .iter()
        .enumerate()
        .filter_map(|(index, rule)| match &rule.action {
            HttpAction::Route(route) => Some((format!("spec.http[{index}]"), route)),
            _ => None,
        });
    let tls = vs
        .tls
        .iter()
        .enumerate()
        .map(|(i, rule)| (format!("spec.tls[{i}]"), &rule.route));
    let tcp = vs
        .tcp
        .iter()
        .enumerate()
        .map(|(i, rule)| (format!("spec.tcp[{i}]"), &rule.route));
    for (rule, route) in http.chain(tls).chain(tcp) {
        for (index, destination) in route.iter().enumerate() {
            let host = destination
                .host
                .strip_prefix('*')
                .unwrap_or(&destination.host);
            if registry.find(host).is_none() && registry.find(&destination.host).is_none() {
                let message = format!(
                    "IST0101: no ServiceEntry has host {}: requests are answered 503",
                    destination.host
                );
                let field = format!("{rule}.route[{index}].destination.host");
                object.report(Severity::Warning, &field, message);
            }
        }
    }
}

/// IST0177: one host, one port, two protocols.
fn conflicts(object: &mut Object, service: &crate::routing::service::Service, all: &Objects) {
    let family = |p: Protocol| p.family();
    for (index, port) in service.ports.iter().enumerate() {
        let other = all.services.iter().find_map(|other| {
            let same_host = other.host == service.host && other.origin != service.origin;
            let theirs = other.port(port.number).filter(|_| same_host)?;
            (family(theirs.protocol) != family(port.protocol)).then_some(other)
        });
        if let Some(other) = other {
            let message = format!(
                "IST0177: {} gives port {} of {} another protocol",
                other.origin, port.number, service.host
            );
            object.report(
                Severity::Warning,
                &format!("spec.ports[{index}].protocol"),
                message,
            );
        }
    }
}
