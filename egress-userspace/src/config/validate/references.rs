// SPDX-License-Identifier: Apache-2.0
//! Findings between objects, all warnings (codes of `istioctl analyze`, istio-egress.md 0.8).
//! Linear in the number of objects: hosts are looked up, never compared pairwise.

use std::{
    collections::{BTreeSet, HashMap, HashSet},
    sync::Arc,
};

use super::{Finding, Findings, names};
use crate::{
    config::field::FieldPath,
    routing::{
        gateway::{Gateway, GatewayName, ServerHost},
        host::{HostMap, HostPattern},
        service::{ExportTo, Origin, Protocol, Service},
        table::Objects,
        virtual_service::{HttpAction, RouteDestination, VirtualService},
    },
};

/// One finding and the object that it is about.
pub(in crate::config) type Referred = (Arc<Origin>, Finding);

/// Checks the objects against each other.
pub(in crate::config) fn check(objects: &Objects) -> Vec<Referred> {
    let mut found = Vec::new();
    let gateways: HashMap<(&str, &str), &Gateway> = objects
        .gateways
        .iter()
        .map(|g| ((g.origin.namespace.as_str(), g.origin.name.as_str()), &**g))
        .collect();
    let registry = Registry::new(objects);
    let delegates: HashMap<_, _> = objects
        .virtual_services
        .iter()
        .filter(|vs| vs.hosts.is_empty())
        .map(|vs| {
            (
                (vs.origin.namespace.as_str(), vs.origin.name.as_str()),
                &**vs,
            )
        })
        .collect();
    for virtual_service in &objects.virtual_services {
        let mut findings = Findings::default();
        bindings(virtual_service, &gateways, &mut findings);
        destinations(virtual_service, &registry, &mut findings);
        delegated(virtual_service, &delegates, &mut findings);
        attach(&virtual_service.origin, findings, &mut found);
    }
    rule_hosts(objects, &registry, &mut found);
    gateway_hosts(&objects.gateways, &mut found);
    telling_ports(objects, &mut found);
    mesh_hosts(&objects.virtual_services, &mut found);
    protocols(&objects.services, &mut found);
    found
}

fn attach(origin: &Arc<Origin>, findings: Findings, found: &mut Vec<Referred>) {
    found.extend(
        findings
            .0
            .into_iter()
            .map(|finding| (Arc::clone(origin), finding)),
    );
}

/// What destinations can name.
#[derive(Default)]
struct Registry<'a> {
    /// Ports by host.
    services: HostMap<BTreeSet<u16>>,
    /// Subsets by host.
    subsets: HostMap<HashSet<&'a str>>,
}

impl<'a> Registry<'a> {
    fn new(objects: &'a Objects) -> Self {
        let mut registry = Self::default();
        for service in &objects.services {
            let ports = service.ports.iter().map(|port| port.number);
            registry.services.entry(&service.host).extend(ports);
        }
        for rule in &objects.destination_rules {
            let names = rule.subsets.iter().map(|subset| subset.name.as_str());
            registry.subsets.entry(&rule.host).extend(names);
        }
        registry
    }

    /// The ports of the most specific services for a destination; `None`: nobody registers it. A
    /// wildcard falls under its own pattern.
    fn ports(&self, host: &str) -> Option<&BTreeSet<u16>> {
        self.services.find(host)
    }

    fn has_subset(&self, host: &str, subset: &str) -> bool {
        let mut rules = self.subsets.matching(host);
        rules.any(|names| names.contains(subset))
    }
}

/// Gateways that are missing (IST0101) or do not admit a host (IST0132).
fn bindings(
    virtual_service: &VirtualService,
    gateways: &HashMap<(&str, &str), &Gateway>,
    findings: &mut Findings,
) {
    let root = FieldPath::Root;
    let spec = root.key("spec");
    let (gateways_path, hosts_path) = (spec.key("gateways"), spec.key("hosts"));
    for (index, bound) in virtual_service.gateways.iter().enumerate() {
        let GatewayName::Named { namespace, name } = bound else {
            continue;
        };
        let Some(gateway) = gateways.get(&(namespace.as_str(), name.as_str())) else {
            findings.warning(
                &gateways_path.index(index),
                format!("there is no Gateway {namespace}/{name} (IST0101)"),
            );
            continue;
        };
        let servers: Vec<&ServerHost> = gateway.servers.iter().flat_map(|s| &s.hosts).collect();
        for (index, host) in virtual_service.hosts.iter().enumerate() {
            let admitted = servers.iter().any(|server| {
                let visible = server
                    .namespace
                    .as_ref()
                    .is_none_or(|ns| *ns == virtual_service.origin.namespace);
                visible && names::overlap(&server.host, host)
            });
            if !admitted {
                findings.warning(
                    &hosts_path.index(index),
                    format!(
                        "no server of Gateway {namespace}/{name} admits this host from namespace \
                         {} (IST0132)",
                        virtual_service.origin.namespace
                    ),
                );
            }
        }
    }
}

/// Destinations that no ServiceEntry registers (IST0101).
fn destinations(
    virtual_service: &VirtualService,
    registry: &Registry<'_>,
    findings: &mut Findings,
) {
    let root = FieldPath::Root;
    let spec = root.key("spec");
    let mut check = |list: &str, rule: usize, route: &[RouteDestination]| {
        let list = spec.key(list);
        let rule = list.index(rule);
        let path = rule.key("route");
        for (index, destination) in route.iter().enumerate() {
            let path = path.index(index);
            about_destination(destination, registry, &path.key("destination"), findings);
        }
    };
    for rule in &virtual_service.http {
        if let HttpAction::Route(route) = &rule.action {
            check("http", rule.index, route);
        }
    }
    for (index, rule) in virtual_service.tls.iter().enumerate() {
        check("tls", index, &rule.route);
    }
    for (index, rule) in virtual_service.tcp.iter().enumerate() {
        check("tcp", index, &rule.route);
    }
}

fn about_destination(
    destination: &RouteDestination,
    registry: &Registry<'_>,
    path: &FieldPath<'_>,
    findings: &mut Findings,
) {
    let host = &destination.host;
    let Some(ports) = registry.ports(host) else {
        findings.warning(
            &path.key("host"),
            format!("no ServiceEntry registers `{host}`; requests get 503 (IST0101)"),
        );
        return;
    };
    match destination.port {
        Some(port) if !ports.contains(&port) => findings.warning(
            &path.key("port").key("number"),
            format!("`{host}` has no port {port}; requests get 503 (IST0101)"),
        ),
        None if ports.len() > 1 => findings.warning(
            &path.key("port"),
            format!("`{host}` has several ports: without one, the listener's is taken (IST0112)"),
        ),
        _ => {}
    }
    if let Some(subset) = &destination.subset
        && !registry.has_subset(host, subset)
    {
        findings.warning(
            &path.key("subset"),
            format!(
                "no DestinationRule has subset `{subset}` of `{host}`; requests get 503 (IST0101)"
            ),
        );
    }
}

/// Rules for hosts that nobody registers (IST0174).
fn rule_hosts(objects: &Objects, registry: &Registry<'_>, found: &mut Vec<Referred>) {
    for rule in &objects.destination_rules {
        let known = match rule.host.exact() {
            Some(name) => registry.ports(name).is_some(),
            None => objects.services.iter().any(|s| rule.host.contains(&s.host)),
        };
        if !known {
            let mut findings = Findings::default();
            let root = FieldPath::Root;
            findings.warning(
                &root.key("spec").key("host"),
                format!("no ServiceEntry registers `{}` (IST0174)", rule.host),
            );
            attach(&rule.origin, findings, found);
        }
    }
}

/// Gateways of one workload with the same host on the same port (IST0145).
fn gateway_hosts(gateways: &[Arc<Gateway>], found: &mut Vec<Referred>) {
    let mut owners = HashMap::new();
    for gateway in gateways {
        let mut findings = Findings::default();
        let root = FieldPath::Root;
        let spec = root.key("spec");
        let servers = spec.key("servers");
        for (index, server) in gateway.servers.iter().enumerate() {
            for (at, host) in server.hosts.iter().enumerate() {
                let key = (&gateway.selector, server.port, &host.namespace, &host.host);
                let owner = *owners.entry(key).or_insert(&gateway.origin);
                if !Arc::ptr_eq(owner, &gateway.origin) {
                    findings.warning(
                        &servers.index(index).key("hosts").index(at),
                        format!(
                            "{owner} has this host on port {} too (IST0145)",
                            server.port
                        ),
                    );
                }
            }
        }
        attach(&gateway.origin, findings, found);
    }
}

/// Ports whose number and protocol do not go together (trap 11; TLS origination).
fn telling_ports(objects: &Objects, found: &mut Vec<Referred>) {
    let mut with_tls = HostMap::<bool>::default();
    for rule in &objects.destination_rules {
        *with_tls.entry(&rule.host) |= rule.policy.as_ref().is_some_and(|policy| {
            let mut levels = policy.ports.iter().map(|(_, settings)| settings);
            policy.settings.tls == Some(true) || levels.any(|level| level.tls == Some(true))
        });
    }
    for service in &objects.services {
        let mut findings = Findings::default();
        let root = FieldPath::Root;
        let spec = root.key("spec");
        let ports = spec.key("ports");
        for (index, port) in service.ports.iter().enumerate() {
            if !is_http(port.protocol) {
                continue;
            }
            let path = ports.index(index);
            if port.number == 443 {
                findings.warning(
                    &path.key("protocol"),
                    "HTTP on port 443: TLS connections to hosts that nothing registers on this port \
                     are no longer told apart by server name",
                );
            }
            let name = service.host.to_string();
            if port.target_port == 443 && !with_tls.find(&name).is_some_and(|tls| *tls) {
                findings.warning(
                    &path.key("targetPort"),
                    "plain HTTP is sent to port 443: a DestinationRule with tls would originate TLS",
                );
            }
        }
        attach(&service.origin, findings, found);
    }
}

/// Delegates that are missing or not exported to the one that names them (5b.16).
fn delegated(
    virtual_service: &VirtualService,
    delegates: &HashMap<(&str, &str), &VirtualService>,
    findings: &mut Findings,
) {
    let root = FieldPath::Root;
    let spec = root.key("spec");
    let http = spec.key("http");
    for rule in &virtual_service.http {
        let HttpAction::Delegate(to) = &rule.action else {
            continue;
        };
        let message = match delegates.get(&(to.namespace.as_str(), to.name.as_str())) {
            None => "there is no VirtualService of this name without hosts",
            Some(child) if !child.export_to.covers(&virtual_service.origin.namespace) => {
                "the VirtualService is not exported to this namespace"
            }
            Some(_) => continue,
        };
        let path = http.index(rule.index);
        findings.warning(
            &path.key("delegate"),
            format!(
                "{}/{}: {message}; the rule is dropped (IST0101)",
                to.namespace, to.name
            ),
        );
    }
}

/// The same host in two VirtualServices of the mesh: the first wins (IST0109). `all` is in
/// Istio's order.
fn mesh_hosts(all: &[Arc<VirtualService>], found: &mut Vec<Referred>) {
    let mut owners: HashMap<&HostPattern, Vec<&VirtualService>> = HashMap::new();
    for virtual_service in all {
        if !virtual_service.gateways.contains(&GatewayName::Mesh) {
            continue;
        }
        let mut findings = Findings::default();
        for (index, host) in virtual_service.hosts.iter().enumerate() {
            let earlier = owners.entry(host).or_default();
            let winner = earlier
                .iter()
                .find(|other| share_a_namespace(&other.export_to, &virtual_service.export_to));
            if let Some(winner) = winner {
                let root = FieldPath::Root;
                let spec = root.key("spec");
                let path = spec.key("hosts");
                findings.warning(
                    &path.index(index),
                    format!(
                        "is ignored in the mesh: {} has this host and comes first (IST0109)",
                        winner.origin
                    ),
                );
            } else {
                earlier.push(virtual_service);
            }
        }
        attach(&virtual_service.origin, findings, found);
    }
}

fn share_a_namespace(a: &ExportTo, b: &ExportTo) -> bool {
    match (a, b) {
        (ExportTo::Nobody, _) | (_, ExportTo::Nobody) => false,
        (ExportTo::All, _) | (_, ExportTo::All) => true,
        (ExportTo::Namespaces(a), ExportTo::Namespaces(b)) => a.iter().any(|n| b.contains(n)),
    }
}

/// Entries that declare different protocols: for one host and port (IST0177), or for one port
/// number when one of them takes every address.
fn protocols(services: &[Arc<Service>], found: &mut Vec<Referred>) {
    let mut by_host: HashMap<(&HostPattern, u16), (&Service, Protocol)> = HashMap::new();
    let mut http_ports: HashMap<u16, &Service> = HashMap::new();
    for service in services {
        for port in service.ports.iter().filter(|p| is_http(p.protocol)) {
            http_ports.entry(port.number).or_insert(service);
        }
    }
    for service in services {
        let mut findings = Findings::default();
        let root = FieldPath::Root;
        let spec = root.key("spec");
        let path = spec.key("ports");
        for (index, port) in service.ports.iter().enumerate() {
            let path = path.index(index);
            let path = path.key("protocol");
            let (first, protocol) = *by_host
                .entry((&service.host, port.number))
                .or_insert((service, port.protocol));
            if protocol != port.protocol && first.origin != service.origin {
                findings.warning(
                    &path,
                    format!(
                        "{} declares another protocol for the same host and port {} (IST0177)",
                        first.origin, port.number
                    ),
                );
                continue;
            }
            let takes_all = port.protocol == Protocol::Tcp && service.addresses.is_empty();
            if let Some(http) = http_ports.get(&port.number)
                && takes_all
                && http.origin != service.origin
            {
                findings.warning(
                    &path,
                    format!(
                        "port {} is HTTP in {}: without addresses the two cannot be told apart",
                        port.number, http.origin
                    ),
                );
            }
        }
        attach(&service.origin, findings, found);
    }
}

fn is_http(protocol: Protocol) -> bool {
    matches!(
        protocol,
        Protocol::Http | Protocol::Http2 | Protocol::Grpc | Protocol::GrpcWeb
    )
}
