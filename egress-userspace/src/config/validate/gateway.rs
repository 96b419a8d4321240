// SPDX-License-Identifier: Apache-2.0
//! Gateway to its valid form (istio-egress.md section 4).

use std::{collections::BTreeSet, sync::Arc};

use super::{
    Findings, Scope,
    names::{self, HostRules},
};
use crate::{
    config::istio::gateway as raw,
    routing::{
        gateway::{Gateway, Server, ServerHost, ServerTls, ServerTlsMode},
        service::{Origin, Protocol},
    },
};

/// Checks a Gateway; to be used only when `findings` holds no error.
pub fn validate(
    gateway: &raw::Gateway,
    origin: &Arc<Origin>,
    scope: Scope<'_>,
    findings: &mut Findings,
) -> Gateway {
    if gateway.servers.is_empty() {
        findings.error("spec.servers", "at least one server is required");
    }
    let mut port_names = BTreeSet::new();
    let mut servers = Vec::with_capacity(gateway.servers.len());
    for (index, raw) in gateway.servers.iter().enumerate() {
        let at = format!("spec.servers[{index}]");
        if !raw.port.name.is_empty() && !port_names.insert(&raw.port.name) {
            let name = &raw.port.name;
            findings.error(
                format!("{at}.port.name"),
                format!("port name `{name}` is given twice"),
            );
        }
        servers.extend(server(raw, &at, scope.namespace, findings));
    }
    Gateway {
        origin: origin.clone(),
        selector: gateway.selector.clone(),
        servers,
    }
}

fn server(raw: &raw::Server, at: &str, namespace: &str, findings: &mut Findings) -> Option<Server> {
    let port = names::port(raw.port.number, &format!("{at}.port.number"), findings);
    if raw.port.name.is_empty() {
        findings.error(format!("{at}.port.name"), "a server port needs a name");
    }
    if raw.port.target_port.is_some() {
        findings.error(
            format!("{at}.port.targetPort"),
            "not allowed on a Gateway: the gateway's own port map decides",
        );
    }
    let protocol = names::protocol(&raw.port.protocol).filter(|p| *p != Protocol::Auto);
    if protocol.is_none() {
        let field = format!("{at}.port.protocol");
        let given = &raw.port.protocol;
        findings.error(
            field,
            format!("protocol `{given}` is not one of HTTP, HTTPS, GRPC, HTTP2, MONGO, TCP, TLS"),
        );
    }
    let bind = match raw.bind.parse() {
        Ok(ip) => Some(ip),
        Err(_) => {
            let field = format!("{at}.bind");
            if raw.bind.starts_with("unix://") {
                findings.warning(field, "not supported yet: a unix socket has no effect");
            } else if !raw.bind.is_empty() {
                findings.error(field, format!("`{}` is no IP address", raw.bind));
            }
            None
        }
    };
    findings.not_in_effect(bind.is_some(), format!("{at}.bind"));
    findings.not_in_effect(
        raw.default_endpoint.is_some(),
        format!("{at}.defaultEndpoint"),
    );
    let hosts = hosts(raw, at, namespace, findings);
    let tls = tls(raw, protocol?, at, findings);
    Some(Server {
        port: port?,
        port_name: raw.port.name.clone(),
        protocol: protocol?,
        bind,
        hosts,
        tls,
    })
}

/// Row 4.3.
fn hosts(raw: &raw::Server, at: &str, namespace: &str, findings: &mut Findings) -> Vec<ServerHost> {
    if raw.hosts.is_empty() {
        findings.error(format!("{at}.hosts"), "at least one host is required");
    }
    let rules = HostRules {
        any: true,
        ip: true,
        ..HostRules::default()
    };
    let mut hosts = Vec::with_capacity(raw.hosts.len());
    for (index, text) in raw.hosts.iter().enumerate() {
        let field = format!("{at}.hosts[{index}]");
        let (owner, name) = text.split_once('/').unwrap_or(("*", text));
        let owner = match owner {
            "*" => None,
            "." => Some(namespace.to_owned()),
            name if names::is_label(name) => Some(name.to_owned()),
            other => {
                findings.error(
                    &field,
                    format!("`{other}` is no namespace: use a name, `.` or `*`"),
                );
                continue;
            }
        };
        if let Some(host) = names::host(name, rules, &field, findings) {
            hosts.push(ServerHost {
                namespace: owner,
                host,
            });
        }
    }
    hosts
}

/// Rows 4.5 to 4.9.
fn tls(
    raw: &raw::Server,
    protocol: Protocol,
    at: &str,
    findings: &mut Findings,
) -> Option<ServerTls> {
    let field = format!("{at}.tls");
    let wants = matches!(protocol, Protocol::Https | Protocol::Tls);
    let Some(tls) = &raw.tls else {
        if wants {
            findings.error(
                field,
                "a server with protocol HTTPS or TLS needs tls settings",
            );
        }
        return None;
    };
    let redirect_only = tls.https_redirect
        && tls.mode == raw::TlsMode::Passthrough
        && tls.credential_name.is_empty()
        && tls.server_certificate.is_empty();
    let allowed = wants || (protocol.is_http() && redirect_only);
    if !allowed {
        findings.error(
            field,
            "tls is for protocols HTTPS and TLS; on HTTP only httpsRedirect is allowed",
        );
        return None;
    }
    let mode = match tls.mode {
        raw::TlsMode::Passthrough => ServerTlsMode::Passthrough,
        raw::TlsMode::Simple => ServerTlsMode::Simple,
        raw::TlsMode::Mutual => ServerTlsMode::Mutual,
        raw::TlsMode::OptionalMutual => ServerTlsMode::OptionalMutual,
        raw::TlsMode::IstioMutual => ServerTlsMode::IstioMutual,
        raw::TlsMode::AutoPassthrough => ServerTlsMode::AutoPassthrough,
    };
    certificates(tls, mode, &field, findings);
    if wants && mode != ServerTlsMode::Passthrough {
        findings.warning(
            format!("{field}.mode"),
            "not supported yet: this gateway does not terminate TLS; the server is closed",
        );
    }
    findings.not_in_effect(
        !wants && tls.https_redirect,
        format!("{field}.httpsRedirect"),
    );
    Some(ServerTls {
        mode,
        https_redirect: tls.https_redirect,
    })
}

fn certificates(tls: &raw::ServerTls, mode: ServerTlsMode, field: &str, findings: &mut Findings) {
    let files = !tls.server_certificate.is_empty() || !tls.private_key.is_empty();
    let secret = !tls.credential_name.is_empty()
        || tls.credential_names.is_some()
        || tls.tls_certificates.is_some();
    match mode {
        ServerTlsMode::IstioMutual if files || secret => findings.error(
            format!("{field}.mode"),
            "ISTIO_MUTUAL uses the mesh's own certificates: no certificate fields are allowed",
        ),
        ServerTlsMode::Simple | ServerTlsMode::Mutual | ServerTlsMode::OptionalMutual => {
            if !secret && (tls.server_certificate.is_empty() || tls.private_key.is_empty()) {
                findings.error(
                    field,
                    "termination needs credentialName, or serverCertificate and privateKey",
                );
            }
            if mode == ServerTlsMode::Mutual && !secret && tls.ca_certificates.is_empty() {
                findings.error(format!("{field}.caCertificates"), "MUTUAL needs a CA");
            }
        }
        _ => {}
    }
}
