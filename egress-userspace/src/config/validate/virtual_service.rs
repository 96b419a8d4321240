// SPDX-License-Identifier: Apache-2.0
//! VirtualService to its valid form (istio-egress.md section 5). HTTP rules are in [`http`].

mod http;

pub use http::retries;

use std::{collections::BTreeMap, sync::Arc};

use ipnet::IpNet;

use super::{
    Findings, Scope,
    names::{self, HostRules},
};
use crate::{
    config::istio::virtual_service as raw,
    routing::{
        gateway::GatewayName,
        host::HostPattern,
        service::Origin,
        virtual_service::{HeaderOperations, RouteDestination, TcpMatch, TcpRule, VirtualService},
    },
};

/// Checks a VirtualService; to be used only when `findings` holds no error.
pub fn validate(
    vs: &raw::VirtualService,
    origin: &Arc<Origin>,
    scope: Scope<'_>,
    findings: &mut Findings,
) -> VirtualService {
    let namespace = scope.namespace;
    let gateways = bound_gateways(&vs.gateways, namespace, findings);
    let hosts = hosts(
        vs,
        namespace,
        gateways.contains(&GatewayName::Mesh),
        findings,
    );
    if vs.http.is_empty() && vs.tls.is_empty() && vs.tcp.is_empty() {
        findings.error("spec", "at least one of http, tls and tcp is required");
    }
    let http = vs
        .http
        .iter()
        .enumerate()
        .map(|(index, rule)| http::rule(rule, index, namespace, findings))
        .collect::<Vec<_>>();
    unreachable_rules(vs, findings);
    let tls = vs
        .tls
        .iter()
        .enumerate()
        .map(|(index, rule)| tls_rule(rule, index, &hosts, namespace, findings))
        .collect();
    let tcp = vs
        .tcp
        .iter()
        .enumerate()
        .map(|(index, rule)| tcp_rule(rule, index, namespace, findings))
        .collect();
    let export_to = names::export_to(
        &vs.export_to,
        namespace,
        scope.default_export_to,
        false,
        findings,
    );
    VirtualService {
        origin: origin.clone(),
        hosts,
        gateways,
        export_to,
        http: http.into_iter().flatten().collect(),
        tls,
        tcp,
    }
}

/// Row 5.1.
fn hosts(
    vs: &raw::VirtualService,
    namespace: &str,
    mesh: bool,
    findings: &mut Findings,
) -> Vec<HostPattern> {
    if vs.hosts.is_empty() {
        findings.error(
            "spec.hosts",
            "at least one host is required (delegates are not supported yet)",
        );
    }
    let rules = HostRules {
        short: true,
        any: true,
        ip: true,
        partial_wildcard: true,
    };
    let mut hosts: Vec<HostPattern> = Vec::with_capacity(vs.hosts.len());
    for (index, text) in vs.hosts.iter().enumerate() {
        let field = format!("spec.hosts[{index}]");
        let Some(host) = names::host(text, rules, &field, findings) else {
            continue;
        };
        if host == HostPattern::Any && mesh {
            findings.error(&field, "host `*` is not allowed with gateway `mesh`");
        }
        let host = names::qualify(host, namespace);
        if let Some(other) = hosts
            .iter()
            .find(|other| other.intersection(&host).is_some())
        {
            findings.error(&field, format!("host `{text}` overlaps host `{other}`"));
        }
        hosts.push(host);
    }
    hosts
}

/// Row 5.2: what `gateways` names; `[mesh]` when left out.
fn bound_gateways(
    written: &[String],
    namespace: &str,
    findings: &mut Findings,
) -> Vec<GatewayName> {
    if written.is_empty() {
        return vec![GatewayName::Mesh];
    }
    gateway_names(written, "spec.gateways", namespace, findings)
}

fn gateway_names(
    written: &[String],
    field: &str,
    namespace: &str,
    findings: &mut Findings,
) -> Vec<GatewayName> {
    let mut gateways = Vec::with_capacity(written.len());
    for (index, text) in written.iter().enumerate() {
        let field = format!("{field}[{index}]");
        let named = |namespace: &str, name: &str| GatewayName::Named {
            namespace: namespace.to_owned(),
            name: name.to_owned(),
        };
        let gateway = match text.split_once('/') {
            _ if text == "mesh" => GatewayName::Mesh,
            Some((".", name)) => named(namespace, name),
            Some((owner, name)) => named(owner, name),
            None => match text.split_once('.') {
                Some((name, rest)) => {
                    let owner = rest.split('.').next().unwrap_or(namespace);
                    findings.warning(
                        &field,
                        format!("`{text}` is the legacy form: write `{owner}/{name}`"),
                    );
                    named(owner, name)
                }
                None => named(namespace, text),
            },
        };
        if let GatewayName::Named { namespace, name } = &gateway
            && (!names::is_label(namespace) || name.is_empty() || name.contains('/'))
        {
            findings.error(
                &field,
                format!("`{text}` is no gateway: write `name`, `namespace/name` or `mesh`"),
            );
        }
        gateways.push(gateway);
    }
    gateways
}

/// Rules behind a rule without match are never reached (IST0130).
fn unreachable_rules(vs: &raw::VirtualService, findings: &mut Findings) {
    let catch_all = vs.http.iter().position(|rule| rule.matches.is_empty());
    if let Some(at) = catch_all.filter(|at| at + 1 < vs.http.len()) {
        findings.warning(
            format!("spec.http[{}]", at + 1),
            format!("never reached: http[{at}] has no match and takes everything"),
        );
    }
}

/// A destination of any rule.
struct WrittenDestination<'a> {
    destination: Option<&'a raw::Destination>,
    weight: i64,
    headers: HeaderOperations,
}

/// Checks the destinations of a rule and their weights (rows 5b.1, 5b.2, 5.4).
fn destinations<'a>(
    written: impl ExactSizeIterator<Item = WrittenDestination<'a>>,
    field: &str,
    namespace: &str,
    findings: &mut Findings,
) -> Vec<RouteDestination> {
    let count = written.len();
    if count == 0 {
        findings.error(field, "at least one destination is required");
    }
    let mut total: i64 = 0;
    let mut destinations = Vec::with_capacity(count);
    for (index, written) in written.enumerate() {
        let at = format!("{field}[{index}]");
        if written.weight < 0 || written.weight > i64::from(i32::MAX) {
            findings.error(
                format!("{at}.weight"),
                format!("weight {} is out of range", written.weight),
            );
        }
        total = total.saturating_add(written.weight);
        let Some(destination) = written.destination.filter(|d| !d.host.is_empty()) else {
            findings.error(
                format!("{at}.destination.host"),
                "a destination needs a host",
            );
            continue;
        };
        let rules = HostRules {
            short: true,
            ip: true,
            partial_wildcard: true,
            any: false,
        };
        let host_field = format!("{at}.destination.host");
        let host = names::host(&destination.host, rules, &host_field, findings);
        let port_field = format!("{at}.destination.port.number");
        let port = destination
            .port
            .as_ref()
            .and_then(|port| names::port(port.number, &port_field, findings));
        if !destination.subset.is_empty() {
            findings.warning(
                format!("{at}.destination.subset"),
                "not supported yet: subsets come from DestinationRule; answers 503",
            );
        }
        if let Some(host) = host {
            destinations.push(RouteDestination {
                host: names::qualify(host, namespace).to_string(),
                port,
                subset: (!destination.subset.is_empty()).then(|| destination.subset.clone()),
                weight: u32::try_from(written.weight).unwrap_or_default(),
                headers: written.headers,
            });
        }
    }
    if count > 1 && total == 0 {
        findings.error(field, "several destinations need weights: their sum is 0");
    }
    if total > i64::from(u32::MAX) {
        findings.error(
            field,
            format!("the weights sum to {total}, more than {}", u32::MAX),
        );
    }
    destinations
}

fn tcp_destinations(
    written: &[raw::RouteDestination],
    field: &str,
    namespace: &str,
    findings: &mut Findings,
) -> Vec<RouteDestination> {
    let written = written.iter().map(|d| WrittenDestination {
        destination: d.destination.as_ref(),
        weight: d.weight,
        headers: HeaderOperations::default(),
    });
    destinations(written, field, namespace, findings)
}

/// Rows 5c.1 and 5c.2.
fn tls_rule(
    rule: &raw::TlsRoute,
    index: usize,
    hosts: &[HostPattern],
    namespace: &str,
    findings: &mut Findings,
) -> TcpRule {
    let field = format!("spec.tls[{index}]");
    if rule.matches.is_empty() {
        findings.error(
            format!("{field}.match"),
            "a tls rule needs a match with sniHosts",
        );
    }
    let mut matches = Vec::with_capacity(rule.matches.len());
    for (index, block) in rule.matches.iter().enumerate() {
        let at = format!("{field}.match[{index}]");
        if block.sni_hosts.is_empty() {
            findings.error(
                format!("{at}.sniHosts"),
                "at least one server name is required",
            );
        }
        let mut sni_hosts = Vec::with_capacity(block.sni_hosts.len());
        for (index, text) in block.sni_hosts.iter().enumerate() {
            let field = format!("{at}.sniHosts[{index}]");
            let rules = HostRules {
                short: true,
                any: true,
                ip: true,
                partial_wildcard: true,
            };
            let Some(host) = names::host(text, rules, &field, findings) else {
                continue;
            };
            if !hosts.iter().any(|h| h.contains(&host)) {
                findings.error(
                    &field,
                    format!("`{text}` lies outside the hosts of this object"),
                );
            }
            sni_hosts.push(host);
        }
        let conditions = Conditions {
            destination_subnets: &block.destination_subnets,
            port: block.port,
            source_labels: &block.source_labels,
            source_namespace: &block.source_namespace,
            gateways: &block.gateways,
        };
        matches.push(conditions.check(sni_hosts, &at, namespace, findings));
    }
    let route = tcp_destinations(&rule.route, &format!("{field}.route"), namespace, findings);
    TcpRule { matches, route }
}

fn tcp_rule(
    rule: &raw::TcpRoute,
    index: usize,
    namespace: &str,
    findings: &mut Findings,
) -> TcpRule {
    let field = format!("spec.tcp[{index}]");
    let mut matches = Vec::with_capacity(rule.matches.len());
    for (index, block) in rule.matches.iter().enumerate() {
        let at = format!("{field}.match[{index}]");
        findings.not_in_effect(block.source_subnet.is_some(), format!("{at}.sourceSubnet"));
        let conditions = Conditions {
            destination_subnets: &block.destination_subnets,
            port: block.port,
            source_labels: &block.source_labels,
            source_namespace: &block.source_namespace,
            gateways: &block.gateways,
        };
        matches.push(conditions.check(Vec::new(), &at, namespace, findings));
    }
    let route = tcp_destinations(&rule.route, &format!("{field}.route"), namespace, findings);
    TcpRule { matches, route }
}

/// The conditions that tls and tcp matches share.
struct Conditions<'a> {
    destination_subnets: &'a [String],
    port: Option<u32>,
    source_labels: &'a BTreeMap<String, String>,
    source_namespace: &'a str,
    gateways: &'a [String],
}

impl Conditions<'_> {
    fn check(
        &self,
        sni_hosts: Vec<HostPattern>,
        at: &str,
        namespace: &str,
        findings: &mut Findings,
    ) -> TcpMatch {
        let mut destination_subnets = Vec::with_capacity(self.destination_subnets.len());
        for (index, text) in self.destination_subnets.iter().enumerate() {
            let net = text
                .parse::<IpNet>()
                .or_else(|_| text.parse::<std::net::IpAddr>().map(IpNet::from));
            match net {
                Ok(net) => destination_subnets.push(net),
                Err(_) => findings.error(
                    format!("{at}.destinationSubnets[{index}]"),
                    format!("`{text}` is neither an IP address nor a CIDR"),
                ),
            }
        }
        let port_field = format!("{at}.port");
        TcpMatch {
            sni_hosts,
            destination_subnets,
            port: self
                .port
                .and_then(|port| names::port(port, &port_field, findings)),
            source_labels: self.source_labels.clone(),
            source_namespace: self.source_namespace.to_owned(),
            gateways: gateway_names(
                self.gateways,
                &format!("{at}.gateways"),
                namespace,
                findings,
            ),
        }
    }
}
