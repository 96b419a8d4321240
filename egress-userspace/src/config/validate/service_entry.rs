// SPDX-License-Identifier: Apache-2.0
//! ServiceEntry to services: one for each host (istio-egress.md section 2).

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    path::PathBuf,
    sync::Arc,
};

use ipnet::IpNet;

use super::{
    Findings, Scope,
    names::{self, HostRules},
};
use crate::{
    config::istio::service_entry as raw,
    routing::{
        host::HostPattern,
        service::{
            Endpoint, EndpointAddress, Location, Origin, Protocol, Resolution, Service, ServicePort,
        },
    },
};

/// Most hosts an entry may have (Istio validation).
const MAX_HOSTS: usize = 256;

/// Checks an entry; the services are to be used only when `findings` holds no error.
pub fn validate(
    entry: &raw::ServiceEntry,
    origin: &Arc<Origin>,
    scope: Scope<'_>,
    findings: &mut Findings,
) -> Vec<Service> {
    let hosts = hosts(entry, findings);
    let addresses = addresses(entry, findings);
    let ports = ports(entry, findings);
    let endpoints = endpoints(entry, &ports, findings);
    resolution(entry, &hosts, &ports, findings);
    findings.not_in_effect(entry.workload_selector.is_some(), "spec.workloadSelector");
    let export_to = names::export_to(
        &entry.export_to,
        scope.namespace,
        scope.default_export_to,
        true,
        findings,
    );
    hosts
        .into_iter()
        .map(|host| Service {
            origin: origin.clone(),
            host,
            addresses: addresses.clone(),
            ports: ports.clone(),
            location: match entry.location {
                raw::Location::MeshExternal => Location::MeshExternal,
                raw::Location::MeshInternal => Location::MeshInternal,
            },
            resolution: match entry.resolution {
                raw::Resolution::None => Resolution::None,
                raw::Resolution::Static => Resolution::Static,
                raw::Resolution::Dns => Resolution::Dns,
                raw::Resolution::DnsRoundRobin => Resolution::DnsRoundRobin,
                raw::Resolution::DynamicDns => Resolution::DynamicDns,
            },
            endpoints: endpoints.clone(),
            export_to: export_to.clone(),
            subject_alt_names: entry.subject_alt_names.clone(),
        })
        .collect()
}

fn hosts(entry: &raw::ServiceEntry, findings: &mut Findings) -> Vec<HostPattern> {
    if entry.hosts.is_empty() {
        findings.error("spec.hosts", "at least one host is required");
    }
    if entry.hosts.len() > MAX_HOSTS {
        let count = entry.hosts.len();
        findings.error(
            "spec.hosts",
            format!("{count} hosts, at most {MAX_HOSTS} are allowed"),
        );
    }
    let rules = HostRules {
        short: true,
        partial_wildcard: true,
        ..HostRules::default()
    };
    let mut seen = BTreeSet::new();
    let mut hosts = Vec::with_capacity(entry.hosts.len());
    for (index, text) in entry.hosts.iter().enumerate() {
        let field = format!("spec.hosts[{index}]");
        let Some(host) = names::host(text, rules, &field, findings) else {
            continue;
        };
        if seen.insert(host.clone()) {
            hosts.push(host);
        } else {
            findings.error(field, format!("host `{text}` is given twice"));
        }
    }
    hosts
}

fn addresses(entry: &raw::ServiceEntry, findings: &mut Findings) -> Vec<IpNet> {
    let mut addresses = Vec::with_capacity(entry.addresses.len());
    for (index, text) in entry.addresses.iter().enumerate() {
        let field = format!("spec.addresses[{index}]");
        let net = text
            .parse::<IpAddr>()
            .map(IpNet::from)
            .or_else(|_| text.parse::<IpNet>());
        let Ok(net) = net else {
            findings.error(
                field,
                format!("`{text}` is neither an IP address nor a CIDR"),
            );
            continue;
        };
        let single = net.prefix_len() == net.max_prefix_len();
        let allowed = matches!(
            entry.resolution,
            raw::Resolution::None | raw::Resolution::Static
        );
        if !single && !allowed {
            findings.error(
                field,
                format!("CIDR `{text}` is allowed with resolution NONE or STATIC only"),
            );
        } else {
            addresses.push(net.trunc());
        }
    }
    addresses
}

fn ports(entry: &raw::ServiceEntry, findings: &mut Findings) -> Vec<ServicePort> {
    if entry.ports.is_empty() {
        findings.error("spec.ports", "at least one port is required");
    }
    let (mut numbers, mut port_names) = (BTreeSet::new(), BTreeSet::new());
    let mut ports = Vec::with_capacity(entry.ports.len());
    for (index, port) in entry.ports.iter().enumerate() {
        let at = |name: &str| format!("spec.ports[{index}].{name}");
        let number = names::port(port.number, &at("number"), findings);
        let target = match port.target_port {
            Some(target) => names::port(target, &at("targetPort"), findings),
            None => number,
        };
        if port.name.is_empty() {
            findings.error(at("name"), "a port needs a name");
        } else if !names::is_label(&port.name) {
            let name = &port.name;
            findings.error(
                at("name"),
                format!("`{name}` is no DNS label (a-z, 0-9, inner `-`)"),
            );
        } else if !port_names.insert(&port.name) {
            findings.error(
                at("name"),
                format!("port name `{}` is given twice", port.name),
            );
        }
        if !numbers.insert(port.number) {
            findings.error(at("number"), format!("port {} is given twice", port.number));
        }
        let protocol = names::protocol(&port.protocol);
        if protocol.is_none() {
            findings.error(
                at("protocol"),
                format!(
                    "unknown protocol `{}`: use HTTP, HTTPS, HTTP2, GRPC, GRPC-Web, TLS, TCP, \
                     MONGO, REDIS, MYSQL, UDP or HTTP_PROXY",
                    port.protocol
                ),
            );
        }
        findings.not_in_effect(protocol == Some(Protocol::Udp), at("protocol"));
        if let (Some(number), Some(target_port), Some(protocol)) = (number, target, protocol) {
            ports.push(ServicePort {
                number,
                name: port.name.clone(),
                protocol,
                target_port,
            });
        }
    }
    ports
}

fn endpoints(
    entry: &raw::ServiceEntry,
    ports: &[ServicePort],
    findings: &mut Findings,
) -> Vec<Endpoint> {
    let mut endpoints = Vec::with_capacity(entry.endpoints.len());
    for (index, endpoint) in entry.endpoints.iter().enumerate() {
        let at = |name: &str| format!("spec.endpoints[{index}].{name}");
        let address = endpoint_address(entry, &endpoint.address, &at("address"), findings);
        let mut by_name = BTreeMap::new();
        for (name, &number) in &endpoint.ports {
            let field = at(&format!("ports.{name}"));
            if !ports.iter().any(|port| port.name == *name) {
                findings.error(&field, format!("no port of this entry is named `{name}`"));
            }
            if let Some(number) = names::port(number, &field, findings) {
                by_name.insert(name.clone(), number);
            }
        }
        findings.not_in_effect(endpoint.network.is_some(), at("network"));
        findings.not_in_effect(!endpoint.locality.is_empty(), at("locality"));
        findings.not_in_effect(endpoint.service_account.is_some(), at("serviceAccount"));
        if let Some(address) = address {
            endpoints.push(Endpoint {
                address,
                ports: by_name,
                labels: endpoint.labels.clone(),
                weight: endpoint.weight,
                locality: endpoint.locality.clone(),
            });
        }
    }
    endpoints
}

fn endpoint_address(
    entry: &raw::ServiceEntry,
    text: &str,
    field: &str,
    findings: &mut Findings,
) -> Option<EndpointAddress> {
    if let Some(path) = text.strip_prefix("unix://") {
        if entry.resolution != raw::Resolution::Static {
            findings.error(field, "a unix:// endpoint needs resolution STATIC");
        }
        if !path.starts_with('/') && !path.starts_with('@') {
            findings.error(field, format!("`{text}`: the socket path must be absolute"));
        }
        return Some(EndpointAddress::Unix(PathBuf::from(path)));
    }
    if let Ok(ip) = text.parse::<IpAddr>() {
        return Some(EndpointAddress::Ip(ip));
    }
    if text.is_empty() {
        findings.error(field, "an endpoint needs an address");
        return None;
    }
    if entry.resolution == raw::Resolution::Static {
        findings.error(
            field,
            format!("`{text}` is a name: resolution STATIC takes IP addresses; use DNS for names"),
        );
        return None;
    }
    match names::host(
        text,
        HostRules {
            short: true,
            ..HostRules::default()
        },
        field,
        findings,
    )? {
        HostPattern::Exact(name) => Some(EndpointAddress::Name(name)),
        _ => {
            findings.error(field, format!("`{text}`: an endpoint cannot be a wildcard"));
            None
        }
    }
}

/// What resolution demands of the other fields (rows 2.3, 2.8 to 2.14).
fn resolution(
    entry: &raw::ServiceEntry,
    hosts: &[HostPattern],
    ports: &[ServicePort],
    findings: &mut Findings,
) {
    use raw::Resolution as R;
    let wildcard = hosts.iter().any(|host| host.exact().is_none());
    let tcp = |p: &ServicePort| matches!(p.protocol, Protocol::Tcp | Protocol::Auto);
    if entry.workload_selector.is_some() && !entry.endpoints.is_empty() {
        findings.error("spec.workloadSelector", "exclusive with endpoints");
    }
    match entry.resolution {
        R::None if !entry.endpoints.is_empty() => findings.error(
            "spec.endpoints",
            "endpoints are not allowed with resolution NONE; use STATIC or DNS",
        ),
        R::Static if entry.endpoints.is_empty() && entry.workload_selector.is_none() => findings
            .warning(
                "spec.endpoints",
                "resolution STATIC without endpoints: no healthy upstream",
            ),
        R::Dns | R::DnsRoundRobin if entry.endpoints.is_empty() && wildcard => findings.error(
            "spec.hosts",
            "a wildcard host cannot be resolved: give endpoints, or use DYNAMIC_DNS or NONE",
        ),
        R::DnsRoundRobin if entry.endpoints.len() > 1 => findings.error(
            "spec.endpoints",
            format!(
                "DNS_ROUND_ROBIN takes at most one endpoint, not {}",
                entry.endpoints.len()
            ),
        ),
        R::DynamicDns => dynamic_dns(entry, hosts, ports, findings),
        _ => {}
    }
    if hosts.len() > 1 && entry.resolution != R::None && ports.iter().any(tcp) {
        findings.error(
            "spec.hosts",
            "several hosts with a TCP port need resolution NONE: TCP cannot tell them apart",
        );
    }
    if entry.resolution == R::None && entry.addresses.is_empty() {
        for (index, port) in ports.iter().enumerate().filter(|(_, p)| tcp(p)) {
            findings.warning(
                format!("spec.ports[{index}]"),
                format!(
                    "opens port {} to every address: no addresses are given",
                    port.number
                ),
            );
        }
    }
}

fn dynamic_dns(
    entry: &raw::ServiceEntry,
    hosts: &[HostPattern],
    ports: &[ServicePort],
    findings: &mut Findings,
) {
    if hosts.iter().any(|host| host.exact().is_some()) {
        findings.error(
            "spec.hosts",
            "DYNAMIC_DNS is for wildcard hosts only; use DNS for names",
        );
    }
    if !entry.addresses.is_empty() {
        findings.error("spec.addresses", "not allowed with DYNAMIC_DNS");
    }
    if !entry.endpoints.is_empty() {
        findings.error("spec.endpoints", "not allowed with DYNAMIC_DNS");
    }
    for (index, port) in ports.iter().enumerate() {
        let allowed = matches!(
            port.protocol,
            Protocol::Http | Protocol::Http2 | Protocol::Grpc | Protocol::Tls
        );
        if !allowed {
            findings.error(
                format!("spec.ports[{index}].protocol"),
                "DYNAMIC_DNS allows HTTP, HTTP2, GRPC and TLS only",
            );
        }
    }
    findings.not_in_effect(true, "spec.resolution");
}
