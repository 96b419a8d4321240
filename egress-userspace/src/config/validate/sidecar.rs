// SPDX-License-Identifier: Apache-2.0
//! Sidecar: its egress half (istio `ValidateSidecar`; istio-egress.md 7).

use std::sync::Arc;

use super::{Findings, Subject, names, virtual_service::check_destination};
use crate::{
    config::{
        field::FieldPath,
        istio::{self, CaptureMode, SidecarOutboundMode},
    },
    routing::{
        sidecar::{EgressListener, Import, ImportFrom, Outbound, Sidecar},
        table::OutboundPolicy,
        virtual_service::{HeaderOperations, RouteDestination},
    },
};

/// Checks `raw` and builds the Sidecar; `findings` says whether it is usable.
pub(in crate::config) fn sidecar(
    raw: &istio::Sidecar,
    subject: &Subject,
    findings: &mut Findings,
) -> Arc<Sidecar> {
    let spec = FieldPath::Root.key("spec");
    if let Some(selector) = &raw.workload_selector {
        let path = spec.key("workloadSelector");
        names::labels(&selector.labels, &path.key("labels"), findings);
    }
    if !raw.ingress.is_empty() || raw.inbound_connection_pool.is_some() {
        findings.warning(
            &spec.key("ingress"),
            "is about inbound traffic and not read",
        );
    }
    let egress = spec.key("egress");
    let mut listeners: Vec<EgressListener> = Vec::with_capacity(raw.egress.len());
    for (index, listener) in raw.egress.iter().enumerate() {
        let path = egress.index(index);
        if let Some(port) = &listener.port {
            let path = path.key("port");
            names::port(port.number, &path.key("number"), findings);
            if forward_proxy(port) {
                findings.unsupported(&path.key("protocol"), "no forward proxy listens there");
            }
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
        if !listener.bind.is_empty() {
            findings.unsupported(&path.key("bind"), "connections are captured, not bound");
        }
        if listener.capture_mode == CaptureMode::None {
            findings.unsupported(&path.key("captureMode"), "connections are captured");
        }
        let port = listener
            .port
            .as_ref()
            .and_then(|port| u16::try_from(port.number).ok());
        if listeners.iter().any(|other| other.port == port) {
            findings.error(
                &path,
                match port {
                    Some(port) => format!("there is another listener for port {port}"),
                    None => "there is another listener without a port".to_owned(),
                },
            );
        }
        if listener.port.as_ref().is_some_and(forward_proxy) {
            continue;
        }
        listeners.push(EgressListener {
            port,
            hosts: listener
                .hosts
                .iter()
                .filter_map(|host| import(host))
                .collect(),
        });
    }
    let outbound = raw.outbound_traffic_policy.as_ref().map(|policy| {
        outbound(
            policy,
            subject,
            &spec.key("outboundTrafficPolicy"),
            findings,
        )
    });
    let selector = raw.workload_selector.as_ref().map(|s| s.labels.clone());
    Arc::new(Sidecar {
        origin: Arc::clone(&subject.origin),
        selector,
        egress: listeners,
        outbound,
    })
}

fn outbound(
    raw: &istio::OutboundTrafficPolicy,
    subject: &Subject,
    path: &FieldPath<'_>,
    findings: &mut Findings,
) -> Outbound {
    let mode = match raw.mode {
        SidecarOutboundMode::RegistryOnly => OutboundPolicy::RegistryOnly,
        SidecarOutboundMode::AllowAny => OutboundPolicy::AllowAny,
    };
    let proxy = raw.egress_proxy.as_ref().and_then(|proxy| {
        let path = path.key("egressProxy");
        if mode != OutboundPolicy::AllowAny {
            findings.error(&path, "needs mode ALLOW_ANY");
        }
        if proxy.port.is_none() {
            findings.error(&path.key("port"), "a port is required");
        }
        let (host, port) = check_destination(proxy, subject, &path, findings)?;
        Some(RouteDestination {
            host,
            port,
            subset: (!proxy.subset.is_empty()).then(|| proxy.subset.clone()),
            weight: 1,
            headers: HeaderOperations::default(),
        })
    });
    Outbound { mode, proxy }
}

/// A listener that applications use as their HTTP proxy.
fn forward_proxy(port: &istio::Port) -> bool {
    port.protocol.eq_ignore_ascii_case("HTTP_PROXY")
}

/// What a host of a listener imports; `None` for `~/*`, which imports nothing.
fn import(text: &str) -> Option<Import> {
    let (namespace, host) = text.split_once('/')?;
    let (exclude, namespace) = match namespace.strip_prefix('~') {
        Some("") => return None,
        Some(namespace) => (true, namespace),
        None => (false, namespace),
    };
    Some(Import {
        exclude,
        namespace: match namespace {
            "*" => ImportFrom::Any,
            "." => ImportFrom::Caller,
            name => ImportFrom::Named(name.to_owned()),
        },
        host: names::host_pattern(host),
    })
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
