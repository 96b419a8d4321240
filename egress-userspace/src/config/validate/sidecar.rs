// SPDX-License-Identifier: Apache-2.0
//! Sidecar: its egress half checked, nothing of it in effect yet (istio `ValidateSidecar`;
//! istio-egress.md 7).

use super::{Findings, names};
use crate::config::{
    field::FieldPath,
    istio::{self, SidecarOutboundMode},
};

/// Checks `raw`.
pub(in crate::config) fn sidecar(raw: &istio::Sidecar, findings: &mut Findings) {
    let spec = FieldPath::Root.key("spec");
    if let Some(selector) = &raw.workload_selector {
        let path = spec.key("workloadSelector");
        names::labels(&selector.labels, &path.key("labels"), findings);
    }
    let egress = spec.key("egress");
    for (index, listener) in raw.egress.iter().enumerate() {
        let path = egress.index(index);
        if let Some(port) = &listener.port {
            let path = path.key("port");
            names::port(port.number, &path.key("number"), findings);
            if names::protocol(&port.protocol).is_none() {
                findings.error(
                    &path.key("protocol"),
                    format!(
                        "`{}` is not a protocol: use {}",
                        port.protocol,
                        names::PROTOCOLS
                    ),
                );
            }
        }
        let hosts = path.key("hosts");
        if listener.hosts.is_empty() {
            findings.error(&hosts, "at least one host is required");
        }
        for (index, host) in listener.hosts.iter().enumerate() {
            if let Some(message) = egress_host_error(host) {
                findings.error(&hosts.index(index), message);
            }
        }
    }
    if let Some(policy) = &raw.outbound_traffic_policy
        && policy.egress_proxy.is_some()
        && policy.mode != SidecarOutboundMode::AllowAny
    {
        findings.error(
            &spec.key("outboundTrafficPolicy").key("egressProxy"),
            "needs mode ALLOW_ANY",
        );
    }
    findings.unsupported(&spec, "a Sidecar is checked but has no effect");
}

/// `namespace/dnsName`, `~/*`, or `~namespace/dnsName` to exclude (istio-egress.md 7.2).
fn egress_host_error(text: &str) -> Option<String> {
    let Some((namespace, host)) = text.split_once('/') else {
        return Some(format!("`{text}` must have the form NAMESPACE/HOST"));
    };
    if namespace == "~" {
        return (host != "*").then(|| "after `~/` only `*` is allowed".to_owned());
    }
    let namespace = namespace.strip_prefix('~').unwrap_or(namespace);
    if !matches!(namespace, "*" | ".")
        && let Some(message) = names::namespace_error(namespace)
    {
        return Some(message);
    }
    if !host.contains(['.', '*']) {
        return Some(format!(
            "short name `{host}` is not allowed; write the full name"
        ));
    }
    names::wildcard_host_error(host)
}
