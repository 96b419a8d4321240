// SPDX-License-Identifier: Apache-2.0
//! meshConfig, as far as it reaches this program: from `--mesh-config` to [`MeshConfig`].
//!
//! Takes a bare MeshConfig, an IstioOperator with `spec.meshConfig`, or a ConfigMap with key
//! `mesh`. A wrong value is an error; a field that is not read is a warning.

use std::{path::Path, time::Duration};

use serde_yaml::{Mapping, Value};

use super::{
    default_config,
    field::{self, FieldPath, Segment, Shown},
    istio::{
        MESH_CONFIG_FIELDS, MeshH2UpgradePolicy, MeshOutboundMode, RawAccessLogEncoding,
        RawMeshConfig,
    },
    problem::{Problem, Severity},
    proxy_headers::ProxyHeaders,
    source::lines,
    validate::{self, Finding, Findings},
};
use crate::routing::{
    destination_rule::Http2Upgrade,
    table::{MeshDefaults, OutboundPolicy},
};

/// A valid MeshConfig; `default()` is Istio's default.
#[derive(Debug, Clone, PartialEq)]
pub struct MeshConfig {
    /// What routing needs.
    pub routing: MeshDefaults,
    /// accessLogFile; empty: not given. `--access-log` decides whether and where lines go.
    pub access_log_file: String,
    /// accessLogEncoding.
    pub access_log_encoding: AccessLogEncoding,
    /// accessLogFormat; empty: Istio's default.
    pub access_log_format: String,
    /// Trust in Istio's `dnsRefreshRate`: wait after a failed resolution (60 s).
    pub dns_refresh_rate: Duration,
    /// defaultConfig.proxyHeaders.
    pub proxy_headers: ProxyHeaders,
    /// defaultServiceExportTo; empty: `*`.
    pub default_service_export_to: Vec<String>,
    /// defaultVirtualServiceExportTo; empty: `*`.
    pub default_virtual_service_export_to: Vec<String>,
    /// defaultDestinationRuleExportTo; empty: `*`.
    pub default_destination_rule_export_to: Vec<String>,
}

impl Default for MeshConfig {
    fn default() -> Self {
        Self {
            routing: MeshDefaults::default(),
            access_log_file: String::new(),
            access_log_encoding: AccessLogEncoding::Text,
            access_log_format: String::new(),
            dns_refresh_rate: Duration::from_secs(60),
            proxy_headers: ProxyHeaders::default(),
            default_service_export_to: Vec::new(),
            default_virtual_service_export_to: Vec::new(),
            default_destination_rule_export_to: Vec::new(),
        }
    }
}

/// meshConfig.accessLogEncoding.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum AccessLogEncoding {
    /// Envoy's text line (default).
    #[default]
    Text,
    /// One JSON object a line.
    Json,
}

/// Reads a mesh configuration. `None` when it has an error; the problems name `file` and lines.
pub(super) fn parse(file: &Path, text: &str) -> (Option<MeshConfig>, Vec<Problem>) {
    let mut findings = Findings::default();
    // Inside a ConfigMap the document is a text in the document: its lines are not the file's.
    let mut nested = false;
    let mut prefix = Vec::new();
    let mut mesh = None;
    let mut line = 1;
    match locate(text) {
        Ok(Located {
            mapping,
            path,
            inner,
        }) => {
            prefix = path;
            nested = inner;
            mesh = build(mapping, &mut findings);
        }
        Err(Broken { message, at }) => {
            line = at;
            findings.error(&FieldPath::Root, message);
        }
    }
    let mesh = mesh.filter(|_| !findings.has_error());
    let problem = |finding: Finding| {
        let mut segments = prefix.clone();
        segments.extend(finding.field);
        let looked_up = if nested { &prefix } else { &segments };
        Problem {
            severity: finding.severity,
            file: file.to_owned(),
            line: line + lines::line_of(text, looked_up),
            kind: "MeshConfig".into(),
            namespace: String::new(),
            name: String::new(),
            field: Shown(&segments).to_string(),
            message: finding.message,
        }
    };
    let problems = findings.0.into_iter().map(problem).collect();
    (mesh, problems)
}

struct Located {
    mapping: Mapping,
    path: Vec<Segment>,
    inner: bool,
}

struct Broken {
    message: String,
    at: u64,
}

/// Finds the MeshConfig in one of the three forms.
fn locate(text: &str) -> Result<Located, Broken> {
    let broken = |message: &str, at| Broken {
        message: message.to_owned(),
        at,
    };
    let parse = |text: &str| {
        serde_yaml::from_str::<Value>(text).map_err(|error| Broken {
            message: format!("is not valid YAML: {error}"),
            at: 1,
        })
    };
    let mut mapping = match parse(text)? {
        Value::Mapping(mapping) => mapping,
        // A file that is being written must not pass for Istio's defaults, which allow everything.
        Value::Null => return Err(broken("is empty", 1)),
        _ => return Err(broken("must be a MeshConfig", 1)),
    };
    let key = |name: &str| Segment::Key(name.to_owned());
    let kind = mapping.get("kind").and_then(Value::as_str);
    let (container, field) = match kind {
        None => {
            return Ok(Located {
                mapping,
                path: Vec::new(),
                inner: false,
            });
        }
        Some("IstioOperator") => ("spec", "meshConfig"),
        Some("ConfigMap") => ("data", "mesh"),
        Some(other) => {
            let message = format!(
                "kind {other} holds no mesh configuration: give a MeshConfig, an IstioOperator \
                 with spec.meshConfig, or a ConfigMap with key mesh"
            );
            return Err(Broken { message, at: 1 });
        }
    };
    let inner = field == "mesh";
    let value = match mapping.get_mut(container) {
        Some(Value::Mapping(outer)) => outer.remove(field),
        _ => None,
    };
    let value = match value {
        Some(Value::String(text)) if inner => parse(&text)?,
        Some(value) => value,
        None => return Err(broken(&format!("has no {container}.{field}"), 1)),
    };
    match value {
        Value::Mapping(mapping) => Ok(Located {
            mapping,
            path: vec![key(container), key(field)],
            inner,
        }),
        _ => Err(broken(
            &format!("{container}.{field} is not a MeshConfig"),
            1,
        )),
    }
}

fn build(mapping: Mapping, findings: &mut Findings) -> Option<MeshConfig> {
    let root = FieldPath::Root;
    let mut known = Mapping::with_capacity(mapping.len());
    for (key, value) in mapping {
        match key.as_str() {
            Some(name) if MESH_CONFIG_FIELDS.contains(&name) => {
                known.insert(key, value);
            }
            name => findings.warning(
                &root.key(name.unwrap_or("(not a text)")),
                "is not used by egress",
            ),
        }
    }
    let known = Value::Mapping(known);
    if let Some(field) = field::first_null(&known) {
        findings.0.push(Finding {
            severity: Severity::Error,
            field,
            message: field::NULL_VALUE.into(),
        });
        return None;
    }
    let raw: RawMeshConfig = match serde_path_to_error::deserialize(known) {
        Ok(raw) => raw,
        Err(error) => {
            findings.0.push(Finding {
                severity: Severity::Error,
                field: field::from_serde(error.path()),
                message: error.inner().to_string(),
            });
            return None;
        }
    };
    if !matches!(raw.access_log_file.as_str(), "" | "/dev/stdout") {
        findings.warning(
            &root.key("accessLogFile"),
            "--access-log decides where lines go",
        );
    }
    let defaults = MeshDefaults::default();
    let outbound = outbound(&raw, findings);
    let retries = raw
        .default_http_retry_policy
        .as_ref()
        .map(|raw| validate::retries(raw, &root.key("defaultHttpRetryPolicy"), findings));
    if let Some(namespace) = &raw.root_namespace
        && let Some(message) = validate::namespace_error(namespace)
    {
        findings.error(&root.key("rootNamespace"), message);
    }
    for (name, list, nobody) in [
        (
            "defaultServiceExportTo",
            &raw.default_service_export_to,
            true,
        ),
        (
            "defaultVirtualServiceExportTo",
            &raw.default_virtual_service_export_to,
            false,
        ),
        (
            "defaultDestinationRuleExportTo",
            &raw.default_destination_rule_export_to,
            false,
        ),
    ] {
        validate::export_to(list, "", nobody, &root.key(name), findings);
    }
    let default_config = default_config::read(raw.default_config.as_ref(), findings);
    let connect_timeout = raw.connect_timeout.map(|d| d.0);
    if connect_timeout.is_some_and(|d| d < Duration::from_millis(1)) {
        findings.error(&root.key("connectTimeout"), "must be at least 1ms");
    }
    Some(MeshConfig {
        routing: MeshDefaults {
            outbound,
            connect_timeout: connect_timeout.unwrap_or(defaults.connect_timeout),
            retries,
            http2: match raw.h2_upgrade_policy {
                MeshH2UpgradePolicy::DoNotUpgrade => Http2Upgrade::DoNotUpgrade,
                MeshH2UpgradePolicy::Upgrade => Http2Upgrade::Upgrade,
            },
            root_namespace: raw.root_namespace.unwrap_or(defaults.root_namespace),
            proxy_protocol_to: default_config.proxy_protocol_to,
        },
        access_log_file: raw.access_log_file,
        access_log_encoding: match raw.access_log_encoding {
            RawAccessLogEncoding::Text => AccessLogEncoding::Text,
            RawAccessLogEncoding::Json => AccessLogEncoding::Json,
        },
        access_log_format: raw.access_log_format,
        dns_refresh_rate: raw
            .dns_refresh_rate
            .map_or(Duration::from_secs(60), |d| d.0),
        proxy_headers: default_config.proxy_headers,
        default_service_export_to: raw.default_service_export_to,
        default_virtual_service_export_to: raw.default_virtual_service_export_to,
        default_destination_rule_export_to: raw.default_destination_rule_export_to,
    })
}

fn outbound(raw: &RawMeshConfig, findings: &mut Findings) -> OutboundPolicy {
    let Some(policy) = &raw.outbound_traffic_policy else {
        return OutboundPolicy::AllowAny;
    };
    let root = FieldPath::Root;
    let path = root.key("outboundTrafficPolicy");
    if policy.tls.is_some() {
        findings.warning(&path.key("tls"), "is not used by egress");
    }
    match policy.mode {
        MeshOutboundMode::RegistryOnly => OutboundPolicy::RegistryOnly,
        MeshOutboundMode::AllowAny => OutboundPolicy::AllowAny,
        MeshOutboundMode::AllowAnyDynamicDns => {
            findings.error(
                &path.key("mode"),
                "ALLOW_ANY_DYNAMIC_DNS is not supported; use ALLOW_ANY or REGISTRY_ONLY",
            );
            OutboundPolicy::RegistryOnly
        }
    }
}
