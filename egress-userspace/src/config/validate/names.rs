// SPDX-License-Identifier: Apache-2.0
//! The rules that several kinds share: names, hosts, ports, namespaces, gateways, visibility,
//! durations (istio `pkg/config/validation`, `pkg/config/labels`, `pkg/config/host`).

use std::{collections::BTreeMap, net::IpAddr, time::Duration};

use super::Findings;
use crate::{
    config::{field::FieldPath, istio},
    routing::{
        gateway::GatewayName,
        host::HostPattern,
        service::{ExportTo, Protocol},
    },
};

/// Istio's default; a mesh with another domain is not supported.
const CLUSTER_DOMAIN: &str = "cluster.local";

/// RFC 1123 label: letters, digits and inner hyphens, at most 63.
pub(super) fn is_dns_label(text: &str) -> bool {
    let bytes = text.as_bytes();
    !bytes.is_empty()
        && bytes.len() <= 63
        && bytes
            .iter()
            .all(|b| b.is_ascii_alphanumeric() || *b == b'-')
        && bytes[0] != b'-'
        && bytes[bytes.len() - 1] != b'-'
}

/// What is wrong with `metadata.name` (a lower-case DNS subdomain).
pub(in crate::config) fn object_name_error(name: &str) -> Option<String> {
    let valid = name.len() <= 253
        && !name.bytes().any(|b| b.is_ascii_uppercase())
        && name.split('.').all(is_dns_label);
    (!valid).then(|| {
        format!("`{name}` is not a valid name: use lower-case letters, digits, `-` and `.`")
    })
}

/// What is wrong with a namespace (a lower-case DNS label).
pub(in crate::config) fn namespace_error(name: &str) -> Option<String> {
    let valid = is_dns_label(name) && !name.bytes().any(|b| b.is_ascii_uppercase());
    (!valid).then(|| {
        format!("`{name}` is not a valid namespace: use lower-case letters, digits and `-`")
    })
}

/// A name without a wildcard, short or full; a trailing dot is allowed.
pub(in crate::config) fn fqdn_error(name: &str) -> Option<String> {
    let trimmed = name.strip_suffix('.').unwrap_or(name);
    if trimmed.is_empty() {
        return Some("a host name must not be empty".into());
    }
    if trimmed.len() > 255 {
        return Some(format!("`{name}` is longer than 255 bytes"));
    }
    if let Some(label) = trimmed.split('.').find(|label| !is_dns_label(label)) {
        return Some(format!(
            "`{name}` is not a valid host name: `{label}` is not a DNS label (letters, digits and \
             inner hyphens, 1 to 63 bytes)"
        ));
    }
    let numeric = |label: &str| label.bytes().all(|b| b.is_ascii_digit());
    if trimmed.contains('.') && trimmed.rsplit('.').next().is_some_and(numeric) {
        return Some(format!(
            "`{name}` is not a valid host name: its last label must not be a number"
        ));
    }
    None
}

/// A name, `*`, `*.x`, or (where Istio tolerates it) `*x`.
pub(super) fn wildcard_host_error(host: &str) -> Option<String> {
    let Some(rest) = host.strip_prefix('*') else {
        if host.contains('*') {
            return Some(format!(
                "`{host}`: a wildcard is allowed only at the start, as in `*.example.com`"
            ));
        }
        return fqdn_error(host);
    };
    if rest.is_empty() {
        return None;
    }
    let rest = rest
        .strip_prefix('.')
        .or_else(|| rest.strip_prefix('-'))
        .unwrap_or(rest);
    if rest.contains('*') {
        return Some(format!("`{host}`: only one wildcard is allowed"));
    }
    fqdn_error(rest)
        .map(|_| format!("`{host}` is not a valid wildcard host: write it as in `*.example.com`"))
}

/// `*x` rather than `*.x`.
pub(super) fn is_partial_wildcard(host: &str) -> bool {
    host.strip_prefix('*')
        .is_some_and(|rest| !rest.is_empty() && !rest.starts_with('.'))
}

/// The pattern of a host that has passed its check.
pub(super) fn host_pattern(host: &str) -> HostPattern {
    let host = host.strip_suffix('.').unwrap_or(host).to_ascii_lowercase();
    match host.strip_prefix('*') {
        Some("") => HostPattern::Any,
        Some(suffix) => HostPattern::Suffix(suffix.to_owned()),
        None => HostPattern::Exact(host),
    }
}

/// Whether every name that `inner` matches is matched by `outer`.
pub(super) fn covers(outer: &HostPattern, inner: &HostPattern) -> bool {
    match (outer, inner) {
        (HostPattern::Any, _) => true,
        (HostPattern::Exact(a), HostPattern::Exact(b)) => a == b,
        (HostPattern::Suffix(a), HostPattern::Exact(b)) => b.len() > a.len() && b.ends_with(a),
        (HostPattern::Suffix(a), HostPattern::Suffix(b)) => b.ends_with(a.as_str()),
        _ => false,
    }
}

/// Whether some name is matched by both.
pub(super) fn overlap(a: &HostPattern, b: &HostPattern) -> bool {
    covers(a, b) || covers(b, a)
}

/// A name without a dot becomes a Kubernetes service of `namespace` (istio-egress.md 5.4).
pub(super) fn qualify(host: &str, namespace: &str) -> String {
    if host.is_empty() || host.contains(['.', '*', ':']) {
        return host.to_owned();
    }
    format!("{host}.{namespace}.svc.{CLUSTER_DOMAIN}")
}

/// A port number in 1..=65535.
pub(super) fn port(number: u32, path: &FieldPath<'_>, findings: &mut Findings) -> Option<u16> {
    match u16::try_from(number) {
        Ok(port) if port > 0 => Some(port),
        _ => {
            findings.error(
                path,
                format!("port number {number} must be in the range 1..65535"),
            );
            None
        }
    }
}

/// A protocol name, case-insensitive (istio `pkg/config/protocol`); `None`: there is no such one.
pub(super) fn protocol(name: &str) -> Option<Protocol> {
    Some(match name.to_ascii_lowercase().as_str() {
        "" => Protocol::Auto,
        "http" => Protocol::Http,
        "http2" => Protocol::Http2,
        "grpc" => Protocol::Grpc,
        "grpc-web" => Protocol::GrpcWeb,
        "https" => Protocol::Https,
        "tls" => Protocol::Tls,
        "tcp" | "mongo" | "redis" | "mysql" => Protocol::Tcp,
        "udp" => Protocol::Udp,
        "http_proxy" => Protocol::HttpProxy,
        _ => return None,
    })
}

/// The names [`protocol`] takes, for messages.
pub(super) const PROTOCOLS: &str = "HTTP, HTTPS, HTTP2, GRPC, GRPC-Web, TLS, TCP, UDP, MONGO, \
                                    REDIS, MYSQL or HTTP_PROXY";

/// exportTo with `.` resolved (istio-egress.md 0.6).
pub(in crate::config) fn export_to(
    written: &[String],
    namespace: &str,
    nobody_allowed: bool,
    path: &FieldPath<'_>,
    findings: &mut Findings,
) -> ExportTo {
    let mut names: Vec<String> = Vec::new();
    let mut special = None;
    for (index, entry) in written.iter().enumerate() {
        let path = path.index(index);
        match entry.as_str() {
            "*" => special = Some(ExportTo::All),
            "~" if nobody_allowed => special = Some(ExportTo::Nobody),
            "~" => findings.error(&path, "`~` (nobody) is only allowed for a ServiceEntry"),
            "." if written.iter().any(|other| other == namespace) => findings.error(
                &path,
                format!("`.` and `{namespace}` are the same namespace; give it once"),
            ),
            "." => push_once(&mut names, namespace, &path, findings),
            other => match namespace_error(other) {
                Some(message) => {
                    findings.error(&path, format!("{message}; or use `.` (own) or `*` (all)"));
                }
                None => push_once(&mut names, other, &path, findings),
            },
        }
    }
    match special {
        Some(_) if written.len() > 1 => {
            findings.error(path, "`*` and `~` must stand alone");
            ExportTo::Nobody
        }
        Some(special) => special,
        None if written.is_empty() => ExportTo::All,
        None => ExportTo::Namespaces(names),
    }
}

fn push_once(names: &mut Vec<String>, name: &str, path: &FieldPath<'_>, findings: &mut Findings) {
    if names.iter().any(|n| n == name) {
        findings.error(path, format!("namespace `{name}` is given twice"));
    } else {
        names.push(name.to_owned());
    }
}

/// A gateway as a VirtualService of `namespace` names it (istio-egress.md 5.2).
pub(super) fn gateway_name(
    written: &str,
    namespace: &str,
    path: &FieldPath<'_>,
    findings: &mut Findings,
) -> Option<GatewayName> {
    if written == "mesh" {
        return Some(GatewayName::Mesh);
    }
    let (ns, name) = match written.split_once('/') {
        Some((".", name)) => (namespace, name),
        Some((ns, name)) => (ns, name),
        None => match written.split_once('.') {
            Some((name, rest)) => {
                let ns = rest.split('.').next().unwrap_or(namespace);
                findings.warning(
                    path,
                    format!("`{written}` is a legacy form; write `{ns}/{name}`"),
                );
                (ns, name)
            }
            None => (namespace, written),
        },
    };
    if name.contains('/') || namespace_error(ns).is_some() || object_name_error(name).is_some() {
        findings.error(
            path,
            format!("`{written}` is not a gateway: write `mesh`, `NAME` or `NAMESPACE/NAME`"),
        );
        return None;
    }
    Some(GatewayName::Named {
        namespace: ns.to_owned(),
        name: name.to_owned(),
    })
}

/// At least a millisecond and whole milliseconds (istio `ValidateDuration`).
pub(super) fn duration(
    written: Option<istio::Duration>,
    path: &FieldPath<'_>,
    findings: &mut Findings,
) -> Option<Duration> {
    let istio::Duration(duration) = written?;
    if duration < Duration::from_millis(1) {
        findings.error(
            path,
            "must be at least 1ms; leave the field out for no limit",
        );
    } else if duration.subsec_nanos() % 1_000_000 != 0 {
        findings.error(path, "must be a whole number of milliseconds");
    }
    Some(duration)
}

/// Kubernetes label rules.
pub(super) fn labels(
    labels: &BTreeMap<String, String>,
    path: &FieldPath<'_>,
    findings: &mut Findings,
) {
    for (key, value) in labels {
        let path = path.key(key);
        let (prefix, name) = key
            .split_once('/')
            .map_or((None, key.as_str()), |(prefix, name)| (Some(prefix), name));
        let prefix_valid = prefix.is_none_or(|p| p.len() <= 253 && p.split('.').all(is_dns_label));
        if name.is_empty() || !prefix_valid || !is_label_text(name) {
            findings.error(&path, format!("`{key}` is not a valid label key"));
        }
        if !is_label_text(value) {
            findings.error(&path, format!("`{value}` is not a valid label value"));
        }
    }
}

/// Empty, or up to 63 letters, digits, `-`, `_`, `.` that begin and end with a letter or digit.
fn is_label_text(text: &str) -> bool {
    let bytes = text.as_bytes();
    match (bytes.first(), bytes.last()) {
        (Some(first), Some(last)) => {
            bytes.len() <= 63
                && first.is_ascii_alphanumeric()
                && last.is_ascii_alphanumeric()
                && bytes
                    .iter()
                    .all(|b| b.is_ascii_alphanumeric() || b"-_.".contains(b))
        }
        _ => true,
    }
}

/// Whether a host is an IP address in text form.
pub(super) fn is_ip(host: &str) -> bool {
    host.parse::<IpAddr>().is_ok()
}
