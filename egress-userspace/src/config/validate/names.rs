// SPDX-License-Identifier: Apache-2.0
//! Rules that several kinds share: host names, port numbers, exportTo, short names.

use std::net::IpAddr;

use super::Findings;
use crate::routing::{host::HostPattern, service::ExportTo, service::Protocol};

/// The cluster domain that short names are completed with.
pub const CLUSTER_DOMAIN: &str = "svc.cluster.local";

/// What a host field allows beside full names.
#[derive(Debug, Clone, Copy, Default)]
pub struct HostRules {
    /// A name without a dot.
    pub short: bool,
    /// `*`.
    pub any: bool,
    /// `*x`, with a warning.
    pub partial_wildcard: bool,
    /// An IP address.
    pub ip: bool,
}

/// Checks one host; `None` after an error.
pub fn host(
    text: &str,
    rules: HostRules,
    field: &str,
    findings: &mut Findings,
) -> Option<HostPattern> {
    let pattern = HostPattern::parse(text);
    let name = match &pattern {
        HostPattern::Any if rules.any => return Some(pattern),
        HostPattern::Any => {
            findings.error(
                field,
                "`*` is not allowed here: name a host or a `*.suffix`",
            );
            return None;
        }
        HostPattern::Suffix(suffix) => {
            match suffix.strip_prefix('.') {
                Some(rest) => rest,
                None if rules.partial_wildcard => {
                    findings.warning(
                    field,
                    format!("partial wildcard `{text}`: `*.` before a whole label is what clients expect"),
                );
                    suffix
                }
                None => {
                    findings.error(
                    field,
                    format!("wildcard `{text}`: `*` must stand for whole labels, as in `*.example.com`"),
                );
                    return None;
                }
            }
        }
        HostPattern::Exact(name) => name,
    };
    if name.parse::<IpAddr>().is_ok() {
        if rules.ip && matches!(pattern, HostPattern::Exact(_)) {
            return Some(pattern);
        }
        findings.error(
            field,
            format!("`{text}` is an IP address where a host name is wanted"),
        );
        return None;
    }
    if let Some(problem) = dns_problem(name) {
        findings.error(field, format!("`{text}` is no host name: {problem}"));
        return None;
    }
    if !rules.short && matches!(pattern, HostPattern::Exact(_)) && !name.contains('.') {
        findings.error(
            field,
            format!("short name `{text}` is not allowed here: write the full name with its domain"),
        );
        return None;
    }
    Some(pattern)
}

/// RFC 1035 names as Istio checks them: labels of letters, digits and `-` (and `_`), at most 63
/// bytes each, 255 in all.
fn dns_problem(name: &str) -> Option<String> {
    if name.is_empty() {
        return Some("it is empty".to_owned());
    }
    if name.len() > 255 {
        return Some(format!(
            "{} bytes long, at most 255 are allowed",
            name.len()
        ));
    }
    name.split('.').find_map(|label| {
        let legal = |b: u8| b.is_ascii_alphanumeric() || b == b'-' || b == b'_';
        if label.is_empty() {
            Some("it has an empty label".to_owned())
        } else if label.len() > 63 {
            Some(format!("label `{label}` is longer than 63 bytes"))
        } else if label.contains('*') {
            Some("`*` may only stand for the first labels".to_owned())
        } else if !label.bytes().all(legal) || label.starts_with('-') || label.ends_with('-') {
            Some(format!(
                "label `{label}` is not made of letters, digits and inner `-`"
            ))
        } else {
            None
        }
    })
}

/// A DNS-1123 label: a port name.
pub fn is_label(text: &str) -> bool {
    let legal = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-';
    !text.is_empty()
        && text.len() <= 63
        && text.bytes().all(legal)
        && !text.starts_with('-')
        && !text.ends_with('-')
}

/// A port from 1 to 65535; `None` after an error.
pub fn port(number: u32, field: &str, findings: &mut Findings) -> Option<u16> {
    match u16::try_from(number) {
        Ok(port) if port > 0 => Some(port),
        _ => {
            findings.error(field, format!("port {number} is not between 1 and 65535"));
            None
        }
    }
}

/// A protocol by Istio's names, any case; `None` when unknown. MONGO, REDIS and MYSQL are opaque.
pub fn protocol(text: &str) -> Option<Protocol> {
    Some(match text.to_ascii_uppercase().as_str() {
        "" => Protocol::Auto,
        "HTTP" => Protocol::Http,
        "HTTP2" => Protocol::Http2,
        "GRPC" => Protocol::Grpc,
        "GRPC-WEB" => Protocol::GrpcWeb,
        "HTTPS" => Protocol::Https,
        "TLS" => Protocol::Tls,
        "TCP" | "MONGO" | "REDIS" | "MYSQL" => Protocol::Tcp,
        "UDP" => Protocol::Udp,
        "HTTP_PROXY" => Protocol::HttpProxy,
        _ => return None,
    })
}

/// `exportTo` (row 0.6). `~` only where `nobody` allows it.
pub fn export_to(
    written: &[String],
    namespace: &str,
    default: &ExportTo,
    nobody: bool,
    findings: &mut Findings,
) -> ExportTo {
    if written.is_empty() {
        // meshConfig's default `.` means the object's own namespace.
        return match default {
            ExportTo::Namespaces(names) => {
                ExportTo::Namespaces(names.iter().map(|n| resolve_own(n, namespace)).collect())
            }
            other => other.clone(),
        };
    }
    let field = "spec.exportTo";
    if written.iter().any(|n| n == "~") {
        if !nobody {
            findings.error(field, "`~` (nobody) is allowed for ServiceEntry only");
        } else if written.len() > 1 {
            findings.error(
                field,
                "`~` (nobody) cannot be combined with other namespaces",
            );
        }
        return ExportTo::Nobody;
    }
    if written.iter().any(|n| n == "*") {
        if written.len() > 1 {
            findings.error(field, "`*` (all namespaces) cannot be combined with others");
        }
        return ExportTo::All;
    }
    let mut names: Vec<String> = Vec::new();
    for (index, name) in written.iter().enumerate() {
        let resolved = resolve_own(name, namespace);
        if name != "." && !is_label(name) {
            findings.error(
                format!("{field}[{index}]"),
                format!("`{name}` is no namespace: use a name, `.` or `*`"),
            );
        } else if names.contains(&resolved) {
            findings.error(
                format!("{field}[{index}]"),
                format!("namespace `{resolved}` is given twice (`.` is the object's own)"),
            );
        } else {
            names.push(resolved);
        }
    }
    ExportTo::Namespaces(names)
}

fn resolve_own(name: &str, namespace: &str) -> String {
    if name == "." {
        namespace.to_owned()
    } else {
        name.to_owned()
    }
}

/// A short name completed with the object's namespace (row 5.4).
pub fn qualify(pattern: HostPattern, namespace: &str) -> HostPattern {
    match pattern {
        HostPattern::Exact(name) if !name.contains('.') && name.parse::<IpAddr>().is_err() => {
            HostPattern::Exact(format!("{name}.{namespace}.{CLUSTER_DOMAIN}"))
        }
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hosts_are_checked_by_rules() {
        let none = HostRules::default();
        let short = HostRules {
            short: true,
            ..none
        };
        let any = HostRules { any: true, ..none };
        let ip = HostRules { ip: true, ..none };
        let partial = HostRules {
            partial_wildcard: true,
            ..none
        };
        let cases = [
            ("a.com", none, true),
            ("*.a.com", none, true),
            ("a", none, false),
            ("a", short, true),
            ("*", none, false),
            ("*", any, true),
            ("1.2.3.4", none, false),
            ("1.2.3.4", ip, true),
            ("*a.com", none, false),
            ("*a.com", partial, true),
            ("a.*.com", none, false),
            ("a..com", none, false),
            ("-a.com", none, false),
            ("a b.com", none, false),
            ("", short, false),
        ];
        for (text, rules, accepted) in cases {
            let mut findings = Findings::default();
            assert_eq!(
                host(text, rules, "f", &mut findings).is_some(),
                accepted,
                "{text}"
            );
            assert_eq!(findings.rejected(), !accepted, "{text}");
        }
    }

    #[test]
    fn export_to_follows_row_0_6() {
        let check = |written: &[&str], nobody| {
            let written: Vec<_> = written.iter().map(ToString::to_string).collect();
            let mut findings = Findings::default();
            let value = export_to(&written, "own", &ExportTo::All, nobody, &mut findings);
            (!findings.rejected()).then_some(value)
        };
        let names =
            |list: &[&str]| ExportTo::Namespaces(list.iter().map(ToString::to_string).collect());
        assert_eq!(check(&[], false), Some(ExportTo::All));
        assert_eq!(check(&["."], false), Some(names(&["own"])));
        assert_eq!(check(&["a", "b"], false), Some(names(&["a", "b"])));
        assert_eq!(check(&["~"], true), Some(ExportTo::Nobody));
        for (bad, nobody) in [
            (&["~"][..], false),
            (&["*", "a"], false),
            (&[".", "own"], false),
            (&["A_b"], false),
        ] {
            assert_eq!(check(bad, nobody), None, "{bad:?}");
        }
    }

    #[test]
    fn short_names_get_the_objects_namespace() {
        let cases = [
            ("web", "web.ns.svc.cluster.local"),
            ("web.other", "web.other"),
            ("1.2.3.4", "1.2.3.4"),
            ("*.x.com", "*.x.com"),
        ];
        for (text, expected) in cases {
            assert_eq!(
                qualify(HostPattern::parse(text), "ns").to_string(),
                expected
            );
        }
    }
}
