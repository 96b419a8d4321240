// SPDX-License-Identifier: Apache-2.0
//! Gateway (istio `ValidateGateway`; istio-egress.md 4).

use std::{collections::BTreeSet, net::IpAddr, sync::Arc};

use super::{Findings, Subject, names, tls};
use crate::{
    config::{field::FieldPath, istio},
    routing::{
        gateway::{Gateway, Server, ServerHost},
        service::Protocol,
    },
};

/// Checks `raw` and builds the gateway; `findings` says whether it is usable.
pub(in crate::config) fn gateway(
    raw: &istio::Gateway,
    subject: &Subject,
    findings: &mut Findings,
) -> Arc<Gateway> {
    let spec = FieldPath::Root.key("spec");
    names::labels(&raw.selector, &spec.key("selector"), findings);
    let path = spec.key("servers");
    if raw.servers.is_empty() {
        findings.error(&path, "at least one server is required");
    }
    let mut port_names = BTreeSet::new();
    let mut servers = Vec::with_capacity(raw.servers.len());
    for (index, written) in raw.servers.iter().enumerate() {
        let path = path.index(index);
        if let Some(name) = written.port.as_ref().map(|port| port.name.as_str())
            && !name.is_empty()
            && !port_names.insert(name)
        {
            findings.error(
                &path.key("port").key("name"),
                format!("port name `{name}` is used twice; names are unique in a Gateway"),
            );
        }
        servers.extend(server(written, subject, &path, findings));
    }
    Arc::new(Gateway {
        origin: Arc::clone(&subject.origin),
        selector: raw.selector.clone(),
        servers,
    })
}

fn server(
    raw: &istio::Server,
    subject: &Subject,
    path: &FieldPath<'_>,
    findings: &mut Findings,
) -> Option<Server> {
    let hosts = hosts(&raw.hosts, subject, &path.key("hosts"), findings);
    let bind = bind(raw, &path.key("bind"), findings);
    if bind.is_some() {
        findings.unsupported(&path.key("bind"), "--bind says where the gateway listens");
    }
    if !raw.default_endpoint.is_empty() {
        findings.unsupported(&path.key("defaultEndpoint"), "it has no effect");
    }
    let port_path = path.key("port");
    let Some(port) = &raw.port else {
        findings.error(&port_path, "a server needs a port");
        return None;
    };
    if port.name.is_empty() {
        findings.error(&port_path.key("name"), "a port needs a name");
    } else if !names::is_dns_label(&port.name) {
        findings.error(
            &port_path.key("name"),
            format!("`{}` is not a valid port name (a DNS label)", port.name),
        );
    }
    if port.target_port != 0 {
        findings.error(
            &port_path.key("targetPort"),
            "a Gateway port takes no targetPort; the Service maps ports",
        );
    }
    let number = names::port(port.number, &port_path.key("number"), findings);
    let protocol = names::protocol(&port.protocol).filter(|p| *p != Protocol::Auto);
    let Some(protocol) = protocol else {
        findings.error(
            &port_path.key("protocol"),
            format!(
                "`{}` is not a protocol: use {}",
                port.protocol,
                names::PROTOCOLS
            ),
        );
        return None;
    };
    let tls = tls::server(raw, protocol, &path.key("tls"), findings);
    Some(Server {
        port: number?,
        port_name: port.name.clone(),
        protocol,
        bind,
        hosts,
        tls,
    })
}

fn bind(raw: &istio::Server, path: &FieldPath<'_>, findings: &mut Findings) -> Option<IpAddr> {
    if raw.bind.is_empty() {
        return None;
    }
    if raw.bind.starts_with("unix://") {
        findings.error(path, "a gateway on a Unix socket is not supported");
        return None;
    }
    match raw.bind.parse() {
        Ok(ip) => Some(ip),
        Err(_) => {
            findings.error(path, format!("`{}` is not an IP address", raw.bind));
            None
        }
    }
}

fn hosts(
    written: &[String],
    subject: &Subject,
    path: &FieldPath<'_>,
    findings: &mut Findings,
) -> Vec<ServerHost> {
    if written.is_empty() {
        findings.error(path, "a server needs at least one host");
    }
    let mut hosts = Vec::with_capacity(written.len());
    for (index, text) in written.iter().enumerate() {
        let path = path.index(index);
        let (namespace, host) = match text.split_once('/') {
            Some((namespace, host)) => (namespace, host),
            None => ("*", text.as_str()),
        };
        let namespace = match namespace {
            "*" => None,
            "." => Some(subject.namespace().to_owned()),
            "~" => {
                findings.error(&path, "namespace `~` is not allowed on a server");
                continue;
            }
            other => {
                if let Some(message) = names::namespace_error(other) {
                    findings.error(&path, format!("{message}; or use `.` (own) or `*` (all)"));
                }
                Some(other.to_owned())
            }
        };
        if let Some(message) = server_host_error(host) {
            findings.error(&path, message);
            continue;
        }
        hosts.push(ServerHost {
            namespace,
            host: names::host_pattern(host),
        });
    }
    hosts
}

fn server_host_error(host: &str) -> Option<String> {
    if names::is_ip(host) {
        return None;
    }
    if names::is_partial_wildcard(host) {
        return Some(format!(
            "`{host}`: a wildcard stands for whole labels, as in `*.example.com`"
        ));
    }
    if host != "*" && !host.is_empty() && !host.contains('.') {
        return Some(format!(
            "short name `{host}` is not allowed; write the full name"
        ));
    }
    names::wildcard_host_error(host)
}
