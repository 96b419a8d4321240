// SPDX-License-Identifier: Apache-2.0
//! VirtualService: hosts, gateways, tls and tcp rules (istio `ValidateVirtualService`;
//! istio-egress.md 5 and 5c). The http rules are in `http_rule`.

use std::{collections::BTreeMap, sync::Arc};

use ipnet::IpNet;

use super::{Findings, Subject, http_rule, names, strings};
use crate::{
    config::{field::FieldPath, istio},
    routing::{
        gateway::GatewayName,
        host::HostPattern,
        virtual_service::{HeaderOperations, RouteDestination, TcpMatch, TcpRule, VirtualService},
    },
};

/// What the rules of one VirtualService share.
pub(super) struct Scope<'a> {
    pub subject: &'a Subject,
    pub hosts: &'a [HostPattern],
    pub gateways: &'a [GatewayName],
}

/// Checks `raw` and builds the VirtualService; `findings` says whether it is usable.
pub(in crate::config) fn virtual_service(
    raw: &istio::VirtualService,
    subject: &Subject,
    findings: &mut Findings,
) -> Arc<VirtualService> {
    let spec = FieldPath::Root.key("spec");
    let gateways = gateways(&raw.gateways, subject, &spec.key("gateways"), findings);
    let hosts = hosts(raw, subject, &gateways, &spec, findings);
    if raw.http.is_empty() && raw.tls.is_empty() && raw.tcp.is_empty() {
        findings.error(&spec, "at least one http, tls or tcp rule is required");
    }
    let scope = Scope {
        subject,
        hosts: &hosts,
        gateways: &gateways,
    };
    let http = http_rule::rules(&raw.http, &scope, &spec.key("http"), findings);
    let tls = tls_rules(&raw.tls, &scope, &spec.key("tls"), findings);
    let tcp = tcp_rules(&raw.tcp, &scope, &spec.key("tcp"), findings);
    let export_to = subject.export_to(&raw.export_to, &spec.key("exportTo"), findings);
    Arc::new(VirtualService {
        origin: Arc::clone(&subject.origin),
        hosts,
        gateways,
        export_to,
        http,
        tls,
        tcp,
    })
}

fn gateways(
    written: &[String],
    subject: &Subject,
    path: &FieldPath<'_>,
    findings: &mut Findings,
) -> Vec<GatewayName> {
    if written.is_empty() {
        return vec![GatewayName::Mesh];
    }
    written
        .iter()
        .enumerate()
        .filter_map(|(index, name)| {
            names::gateway_name(name, subject.namespace(), &path.index(index), findings)
        })
        .collect()
}

fn hosts(
    raw: &istio::VirtualService,
    subject: &Subject,
    gateways: &[GatewayName],
    spec: &FieldPath<'_>,
    findings: &mut Findings,
) -> Vec<HostPattern> {
    let path = spec.key("hosts");
    if raw.hosts.is_empty() {
        for (name, given) in [
            ("gateways", !raw.gateways.is_empty()),
            ("tls", !raw.tls.is_empty()),
            ("tcp", !raw.tcp.is_empty()),
        ] {
            if given {
                findings.error(
                    &spec.key(name),
                    "a VirtualService without hosts is a delegate and takes http rules only",
                );
            }
        }
    }
    let mut hosts: Vec<HostPattern> = Vec::with_capacity(raw.hosts.len());
    for (index, host) in raw.hosts.iter().enumerate() {
        let path = path.index(index);
        if host == "*" && gateways.contains(&GatewayName::Mesh) {
            findings.error(
                &path,
                "`*` is not allowed for the gateway `mesh`: name the hosts, or bind gateways only",
            );
            continue;
        }
        if !names::is_ip(host)
            && let Some(message) = names::wildcard_host_error(host)
        {
            findings.error(&path, message);
            continue;
        }
        if names::is_partial_wildcard(host) {
            findings.warning(&path, format!("partial wildcard `{host}`"));
        }
        let pattern = names::host_pattern(&names::qualify(host, subject.namespace()));
        if let Some(other) = hosts
            .iter()
            .position(|other| names::overlap(other, &pattern))
        {
            findings.error(
                &path,
                format!("`{host}` overlaps with `{}`", raw.hosts[other]),
            );
        }
        hosts.push(pattern);
    }
    hosts
}

fn tls_rules(
    written: &[istio::TlsRoute],
    scope: &Scope<'_>,
    path: &FieldPath<'_>,
    findings: &mut Findings,
) -> Vec<TcpRule> {
    let mut rules = Vec::with_capacity(written.len());
    for (index, rule) in written.iter().enumerate() {
        let path = path.index(index);
        let match_path = path.key("match");
        if rule.matches.is_empty() {
            findings.error(&match_path, "a tls rule needs a match with sniHosts");
        }
        let mut matches = Vec::with_capacity(rule.matches.len());
        for (index, block) in rule.matches.iter().enumerate() {
            let path = match_path.index(index);
            let sni_hosts = sni_hosts(&block.sni_hosts, scope, &path.key("sniHosts"), findings);
            let l4 = L4 {
                destination_subnets: &block.destination_subnets,
                port: block.port,
                source_labels: &block.source_labels,
                source_namespace: &block.source_namespace,
                gateways: &block.gateways,
            };
            matches.push(TcpMatch {
                sni_hosts,
                ..tcp_match(&l4, scope, &path, findings)
            });
        }
        rules.push(TcpRule {
            matches,
            route: tcp_route(&rule.route, scope, &path.key("route"), findings),
        });
    }
    rules
}

fn sni_hosts(
    written: &[String],
    scope: &Scope<'_>,
    path: &FieldPath<'_>,
    findings: &mut Findings,
) -> Vec<HostPattern> {
    if written.is_empty() {
        findings.error(path, "at least one SNI host is required");
    }
    let mut hosts = Vec::with_capacity(written.len());
    for (index, host) in written.iter().enumerate() {
        let path = path.index(index);
        if names::is_ip(host) {
            findings.warning(
                &path,
                format!("`{host}` is an IP address, which clients never send as SNI"),
            );
        } else if let Some(message) = names::wildcard_host_error(host) {
            findings.error(&path, message);
            continue;
        }
        let pattern = names::host_pattern(&names::qualify(host, scope.subject.namespace()));
        if !scope.hosts.iter().any(|own| names::covers(own, &pattern)) {
            findings.error(
                &path,
                format!("SNI host `{host}` must lie inside one of the VirtualService's hosts"),
            );
        }
        hosts.push(pattern);
    }
    hosts
}

fn tcp_rules(
    written: &[istio::TcpRoute],
    scope: &Scope<'_>,
    path: &FieldPath<'_>,
    findings: &mut Findings,
) -> Vec<TcpRule> {
    let mut rules = Vec::with_capacity(written.len());
    for (index, rule) in written.iter().enumerate() {
        let path = path.index(index);
        let match_path = path.key("match");
        let mut matches = Vec::with_capacity(rule.matches.len());
        for (index, block) in rule.matches.iter().enumerate() {
            let path = match_path.index(index);
            if !block.source_subnet.is_empty() {
                findings.unsupported(&path.key("sourceSubnet"), "the rule matches no connection");
                continue;
            }
            let l4 = L4 {
                destination_subnets: &block.destination_subnets,
                port: block.port,
                source_labels: &block.source_labels,
                source_namespace: &block.source_namespace,
                gateways: &block.gateways,
            };
            matches.push(tcp_match(&l4, scope, &path, findings));
        }
        let route = tcp_route(&rule.route, scope, &path.key("route"), findings);
        // Without its unsupported blocks a rule must not become one that matches everything.
        if rule.matches.is_empty() || !matches.is_empty() {
            rules.push(TcpRule { matches, route });
        }
    }
    rules
}

/// The conditions that tls and tcp matches share.
struct L4<'a> {
    destination_subnets: &'a [String],
    port: u32,
    source_labels: &'a BTreeMap<String, String>,
    source_namespace: &'a str,
    gateways: &'a [String],
}

fn tcp_match(
    raw: &L4<'_>,
    scope: &Scope<'_>,
    path: &FieldPath<'_>,
    findings: &mut Findings,
) -> TcpMatch {
    let subnets_path = path.key("destinationSubnets");
    let mut destination_subnets = Vec::with_capacity(raw.destination_subnets.len());
    for (index, text) in raw.destination_subnets.iter().enumerate() {
        let net = text
            .parse::<IpNet>()
            .or_else(|_| text.parse::<std::net::IpAddr>().map(IpNet::from));
        match net {
            Ok(net) => destination_subnets.push(net.trunc()),
            Err(_) => findings.error(
                &subnets_path.index(index),
                format!("`{text}` is neither an IP address nor a CIDR"),
            ),
        }
    }
    names::labels(raw.source_labels, &path.key("sourceLabels"), findings);
    TcpMatch {
        sni_hosts: Vec::new(),
        destination_subnets,
        port: match_port(raw.port, &path.key("port"), findings),
        source_labels: raw.source_labels.clone(),
        source_namespace: source_namespace(
            raw.source_namespace,
            &path.key("sourceNamespace"),
            findings,
        ),
        gateways: match_gateways(raw.gateways, scope, &path.key("gateways"), findings),
    }
}

/// `match.port`; absent when 0.
pub(super) fn match_port(
    number: u32,
    path: &FieldPath<'_>,
    findings: &mut Findings,
) -> Option<u16> {
    if number == 0 {
        return None;
    }
    names::port(number, path, findings)
}

/// `match.sourceNamespace`.
pub(super) fn source_namespace(
    name: &str,
    path: &FieldPath<'_>,
    findings: &mut Findings,
) -> String {
    if !name.is_empty()
        && let Some(message) = names::namespace_error(name)
    {
        findings.error(path, message);
    }
    name.to_owned()
}

/// `match.gateways`: names resolve as in `spec.gateways`, and only bound ones can match.
pub(super) fn match_gateways(
    written: &[String],
    scope: &Scope<'_>,
    path: &FieldPath<'_>,
    findings: &mut Findings,
) -> Vec<GatewayName> {
    let mut gateways = Vec::with_capacity(written.len());
    for (index, name) in written.iter().enumerate() {
        let path = path.index(index);
        let Some(gateway) = names::gateway_name(name, scope.subject.namespace(), &path, findings)
        else {
            continue;
        };
        if !scope.gateways.contains(&gateway) {
            findings.warning(
                &path,
                format!("never matches: `{name}` is not among spec.gateways (IST0131)"),
            );
        }
        gateways.push(gateway);
    }
    gateways
}

fn tcp_route(
    written: &[istio::RawRouteDestination],
    scope: &Scope<'_>,
    path: &FieldPath<'_>,
    findings: &mut Findings,
) -> Vec<RouteDestination> {
    if written.is_empty() {
        findings.error(path, "at least one destination is required");
    }
    let mut route = Vec::with_capacity(written.len());
    for (index, entry) in written.iter().enumerate() {
        let path = path.index(index);
        route.extend(destination(
            entry.destination.as_ref(),
            entry.weight,
            HeaderOperations::default(),
            scope,
            &path,
            findings,
        ));
    }
    let weights = written.iter().map(|entry| entry.weight);
    check_weights(weights, path, findings);
    route
}

/// One weighted destination.
pub(super) fn destination(
    raw: Option<&istio::Destination>,
    weight: i32,
    headers: HeaderOperations,
    scope: &Scope<'_>,
    path: &FieldPath<'_>,
    findings: &mut Findings,
) -> Option<RouteDestination> {
    let destination_path = path.key("destination");
    let Some(raw) = raw else {
        findings.error(&destination_path, "a destination is required");
        return None;
    };
    let (host, port) = check_destination(raw, scope.subject, &destination_path, findings)?;
    Some(RouteDestination {
        host,
        port,
        subset: (!raw.subset.is_empty()).then(|| raw.subset.clone()),
        weight: u32::try_from(weight).unwrap_or(0),
        headers,
    })
}

/// Host (qualified, lower-cased) and port of a Destination.
pub(super) fn check_destination(
    raw: &istio::Destination,
    subject: &Subject,
    path: &FieldPath<'_>,
    findings: &mut Findings,
) -> Option<(String, Option<u16>)> {
    let host_path = path.key("host");
    let mut host = None;
    if raw.host.is_empty() {
        findings.error(&host_path, "a destination host is required");
    } else if raw.host == "*" {
        findings.error(&host_path, "`*` is not a destination");
    } else if let Some(message) = names::wildcard_host_error(&raw.host) {
        findings.error(&host_path, message);
    } else {
        let qualified = names::qualify(&raw.host, subject.namespace());
        host = Some(qualified.trim_end_matches('.').to_ascii_lowercase());
    }
    if !raw.subset.is_empty() && !names::is_dns_label(&raw.subset) {
        findings.error(
            &path.key("subset"),
            format!("`{}` is not a valid subset name (a DNS label)", raw.subset),
        );
    }
    let port = raw
        .port
        .as_ref()
        .and_then(|port| names::port(port.number, &path.key("port").key("number"), findings));
    Some((host?, port))
}

/// Weights are shares of their sum; several destinations need a sum above 0 (5b.1).
pub(super) fn check_weights(
    weights: impl ExactSizeIterator<Item = i32>,
    path: &FieldPath<'_>,
    findings: &mut Findings,
) {
    let count = weights.len();
    let mut total: u64 = 0;
    for (index, weight) in weights.enumerate() {
        match u64::try_from(weight) {
            Ok(weight) => total += weight,
            Err(_) => findings.error(&path.index(index).key("weight"), "must not be negative"),
        }
    }
    if count > 1 && total == 0 {
        findings.error(
            path,
            "several destinations need weights: their sum is 0, so none would get a request",
        );
    }
    if total > u64::from(u32::MAX) {
        findings.error(path, "the sum of the weights must stay below 2^32");
    }
}

/// A regex of `uriRegexRewrite` is searched for, not matched whole.
pub(super) fn search_regex(
    pattern: &str,
    path: &FieldPath<'_>,
    findings: &mut Findings,
) -> Option<regex::Regex> {
    strings::regex(pattern, false, path, findings)
}
