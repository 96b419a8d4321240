// SPDX-License-Identifier: Apache-2.0
//! ServiceEntry to [`Service`]s, one per host (istio `ValidateServiceEntry`; istio-egress.md 2).

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    path::PathBuf,
    sync::Arc,
};

use ipnet::IpNet;

use super::{Findings, Subject, names};
use crate::{
    config::{field::FieldPath, istio},
    routing::{
        host::HostPattern,
        service::{
            Endpoint, EndpointAddress, Location, Protocol, Resolution, Service, ServicePort,
        },
    },
};

/// Checks `raw` and builds its services, in the order of its hosts. The result means something
/// only when `findings` has no error.
pub(in crate::config) fn service_entry(
    raw: &istio::ServiceEntry,
    subject: &Subject,
    findings: &mut Findings,
) -> Vec<Arc<Service>> {
    let spec = FieldPath::Root.key("spec");
    let resolution = resolution(raw.resolution);
    let hosts = hosts(raw, resolution, &spec, findings);
    let addresses = addresses(raw, resolution, &spec.key("addresses"), findings);
    let ports = ports(raw, &spec.key("ports"), findings);
    let endpoints = endpoints(raw, resolution, &spec, findings);
    combinations(raw, resolution, &ports, &spec, findings);
    if raw.workload_selector.is_some() {
        let path = spec.key("workloadSelector");
        if !raw.endpoints.is_empty() {
            findings.error(&path, "endpoints and workloadSelector exclude each other");
        }
        findings.unsupported(&path, "it selects no endpoints");
    }
    let export_to = subject.export_to(&raw.export_to, &spec.key("exportTo"), findings);
    hosts
        .into_iter()
        .map(|host| {
            Arc::new(Service {
                origin: Arc::clone(&subject.origin),
                host,
                addresses: addresses.clone(),
                ports: ports.clone(),
                location: match raw.location {
                    istio::Location::MeshExternal => Location::MeshExternal,
                    istio::Location::MeshInternal => Location::MeshInternal,
                },
                resolution,
                endpoints: endpoints.clone(),
                export_to: export_to.clone(),
                subject_alt_names: raw.subject_alt_names.clone(),
            })
        })
        .collect()
}

fn resolution(raw: istio::Resolution) -> Resolution {
    match raw {
        istio::Resolution::None => Resolution::None,
        istio::Resolution::Static => Resolution::Static,
        istio::Resolution::Dns => Resolution::Dns,
        istio::Resolution::DnsRoundRobin => Resolution::DnsRoundRobin,
        istio::Resolution::DynamicDns => Resolution::DynamicDns,
    }
}

fn hosts(
    raw: &istio::ServiceEntry,
    resolution: Resolution,
    spec: &FieldPath<'_>,
    findings: &mut Findings,
) -> Vec<HostPattern> {
    let path = spec.key("hosts");
    if raw.hosts.is_empty() {
        findings.error(&path, "at least one host is required");
    }
    if raw.hosts.len() > 256 {
        findings.error(&path, "at most 256 hosts are allowed");
    }
    let mut hosts = Vec::with_capacity(raw.hosts.len());
    for (index, host) in raw.hosts.iter().enumerate() {
        let path = path.index(index);
        if host == "*" {
            findings.error(
                &path,
                "`*` is not allowed: name the hosts, or a domain as in `*.example.com`",
            );
            continue;
        }
        if let Some(message) = names::wildcard_host_error(host) {
            findings.error(&path, message);
            continue;
        }
        if names::is_partial_wildcard(host) {
            findings.warning(
                &path,
                format!("partial wildcard `{host}`; `*.example.com` is the usual form"),
            );
        }
        let wildcard = host.starts_with('*');
        let by_dns = matches!(resolution, Resolution::Dns | Resolution::DnsRoundRobin);
        if wildcard && by_dns && raw.endpoints.is_empty() {
            findings.error(
                &path,
                format!(
                    "resolution DNS cannot resolve the wildcard `{host}`: give endpoints, or use \
                     resolution DYNAMIC_DNS or NONE"
                ),
            );
        }
        if !wildcard && resolution == Resolution::DynamicDns {
            findings.error(
                &path,
                format!("resolution DYNAMIC_DNS takes wildcard hosts only; use DNS for `{host}`"),
            );
        }
        let pattern = names::host_pattern(host);
        if hosts.contains(&pattern) {
            findings.error(&path, format!("host `{host}` is given twice"));
        } else {
            hosts.push(pattern);
        }
    }
    hosts
}

fn addresses(
    raw: &istio::ServiceEntry,
    resolution: Resolution,
    path: &FieldPath<'_>,
    findings: &mut Findings,
) -> Vec<IpNet> {
    let mut addresses = Vec::with_capacity(raw.addresses.len());
    for (index, text) in raw.addresses.iter().enumerate() {
        let path = path.index(index);
        if let Ok(ip) = text.parse::<IpAddr>() {
            addresses.push(IpNet::from(ip));
        } else if let Ok(net) = text.parse::<IpNet>() {
            let cidr_allowed = matches!(resolution, Resolution::None | Resolution::Static);
            if net.prefix_len() < net.max_prefix_len() && !cidr_allowed {
                findings.error(
                    &path,
                    format!("CIDR `{text}` is allowed with resolution NONE or STATIC only"),
                );
            }
            addresses.push(net.trunc());
        } else {
            findings.error(
                &path,
                format!("`{text}` is neither an IP address nor a CIDR such as `192.0.2.0/24`"),
            );
        }
    }
    if resolution == Resolution::DynamicDns && !raw.addresses.is_empty() {
        findings.error(path, "resolution DYNAMIC_DNS takes no addresses");
    }
    addresses
}

fn ports(
    raw: &istio::ServiceEntry,
    path: &FieldPath<'_>,
    findings: &mut Findings,
) -> Vec<ServicePort> {
    if raw.ports.is_empty() {
        findings.error(path, "at least one port is required");
    }
    let mut numbers = BTreeSet::new();
    let mut port_names = BTreeSet::new();
    let mut ports = Vec::with_capacity(raw.ports.len());
    for (index, port) in raw.ports.iter().enumerate() {
        let path = path.index(index);
        if port.name.is_empty() {
            findings.error(&path.key("name"), "a port needs a name");
        } else if !names::is_dns_label(&port.name) {
            findings.error(
                &path.key("name"),
                format!("`{}` is not a valid port name (a DNS label)", port.name),
            );
        } else if !port_names.insert(port.name.as_str()) {
            findings.error(
                &path.key("name"),
                format!("port name `{}` is used twice", port.name),
            );
        }
        let number = names::port(port.number, &path.key("number"), findings);
        if number.is_some_and(|number| !numbers.insert(number)) {
            findings.error(
                &path.key("number"),
                format!("port {} is declared twice", port.number),
            );
        }
        let target = match port.target_port {
            0 => number,
            target => names::port(target, &path.key("targetPort"), findings),
        };
        let protocol = names::protocol(&port.protocol);
        if protocol.is_none() {
            findings.error(
                &path.key("protocol"),
                format!(
                    "`{}` is not a protocol: use {}",
                    port.protocol,
                    names::PROTOCOLS
                ),
            );
        }
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
    raw: &istio::ServiceEntry,
    resolution: Resolution,
    spec: &FieldPath<'_>,
    findings: &mut Findings,
) -> Vec<Endpoint> {
    let path = spec.key("endpoints");
    let written = raw.endpoints.len();
    match resolution {
        Resolution::None | Resolution::DynamicDns if written > 0 => findings.error(
            &path,
            "resolution NONE and DYNAMIC_DNS take no endpoints; use STATIC or DNS",
        ),
        Resolution::DnsRoundRobin if written > 1 => {
            findings.error(
                &path,
                "resolution DNS_ROUND_ROBIN takes one endpoint at most",
            );
        }
        Resolution::Static if written == 0 && raw.workload_selector.is_none() => {
            findings.warning(
                &spec.key("resolution"),
                "resolution STATIC without endpoints: no request can be forwarded",
            );
        }
        _ => {}
    }
    let mut endpoints = Vec::with_capacity(written);
    for (index, endpoint) in raw.endpoints.iter().enumerate() {
        let path = path.index(index);
        names::labels(&endpoint.labels, &path.key("labels"), findings);
        let ports = endpoint_ports(raw, endpoint, &path.key("ports"), findings);
        let address = endpoint_address(endpoint, resolution, &path.key("address"), findings);
        if !endpoint.locality.is_empty() {
            findings.unsupported(
                &path.key("locality"),
                "endpoints are chosen wherever they are",
            );
        }
        for (name, given) in [
            ("network", &endpoint.network),
            ("serviceAccount", &endpoint.service_account),
        ] {
            if !given.is_empty() {
                findings.unsupported(&path.key(name), "it has no effect");
            }
        }
        if let Some(address) = address {
            endpoints.push(Endpoint {
                address,
                ports,
                labels: endpoint.labels.clone(),
                weight: endpoint.weight,
                locality: endpoint.locality.clone(),
            });
        }
    }
    endpoints
}

fn endpoint_ports(
    raw: &istio::ServiceEntry,
    endpoint: &istio::WorkloadEntry,
    path: &FieldPath<'_>,
    findings: &mut Findings,
) -> BTreeMap<String, u16> {
    let mut ports = BTreeMap::new();
    for (name, &number) in &endpoint.ports {
        let path = path.key(name);
        if !raw.ports.iter().any(|port| port.name == *name) {
            findings.error(&path, format!("the entry has no port named `{name}`"));
        }
        if let Some(number) = names::port(number, &path, findings) {
            ports.insert(name.clone(), number);
        }
    }
    ports
}

fn endpoint_address(
    endpoint: &istio::WorkloadEntry,
    resolution: Resolution,
    path: &FieldPath<'_>,
    findings: &mut Findings,
) -> Option<EndpointAddress> {
    let text = endpoint.address.as_str();
    if text.is_empty() {
        findings.error(path, "an endpoint needs an address");
        return None;
    }
    if let Some(socket) = text.strip_prefix("unix://") {
        if resolution != Resolution::Static {
            findings.error(path, "a Unix socket is allowed with resolution STATIC only");
        }
        if !socket.starts_with('/') && !socket.starts_with('@') {
            findings.error(path, format!("`{text}` must be an absolute path"));
        }
        if !endpoint.ports.is_empty() {
            findings.error(path, "a Unix socket has no ports");
        }
        return Some(EndpointAddress::Unix(PathBuf::from(socket)));
    }
    if let Ok(ip) = text.parse::<IpAddr>() {
        return Some(EndpointAddress::Ip(ip));
    }
    if resolution == Resolution::Static {
        findings.error(
            path,
            format!("`{text}` is not an IP address; names need resolution DNS"),
        );
        return None;
    }
    if let Some(message) = names::fqdn_error(text) {
        findings.error(path, message);
        return None;
    }
    Some(EndpointAddress::Name(
        text.trim_end_matches('.').to_ascii_lowercase(),
    ))
}

/// Rules between hosts, ports, addresses and resolution.
fn combinations(
    raw: &istio::ServiceEntry,
    resolution: Resolution,
    ports: &[ServicePort],
    spec: &FieldPath<'_>,
    findings: &mut Findings,
) {
    let tcp = ports.iter().position(|port| port.protocol == Protocol::Tcp);
    if let Some(index) = tcp {
        if raw.hosts.len() > 1 && resolution != Resolution::None {
            findings.error(
                &spec.key("hosts"),
                "several hosts on a TCP port cannot be told apart: write one ServiceEntry per \
                 host, or use resolution NONE",
            );
        }
        if raw.addresses.is_empty() {
            findings.warning(
                &spec.key("ports").index(index),
                format!(
                    "a TCP port without addresses takes the connections of every address on port \
                     {}: give addresses (IST0134)",
                    ports[index].number
                ),
            );
        }
    }
    if resolution == Resolution::DynamicDns {
        for (index, port) in ports.iter().enumerate() {
            let allowed = matches!(
                port.protocol,
                Protocol::Http | Protocol::Http2 | Protocol::Grpc | Protocol::Tls
            );
            if !allowed {
                findings.error(
                    &spec.key("ports").index(index).key("protocol"),
                    "resolution DYNAMIC_DNS takes HTTP, HTTP2, GRPC and TLS ports only",
                );
            }
        }
    }
}
