// SPDX-License-Identifier: Apache-2.0
//! meshConfig: from any of the forms users have it in, to valid settings.

use std::{fs, path::Path, time::Duration};

use serde_yaml::Value;

use super::{
    ConfigError,
    document::{self, Document},
    istio::mesh_config as raw,
    validate::{Findings, names, virtual_service::retries},
};
use crate::routing::{
    service::ExportTo,
    table::{MeshDefaults, OutboundPolicy},
};

/// A valid MeshConfig; `default()` is Istio's default.
#[derive(Debug, Clone)]
pub struct MeshConfig {
    /// What routing needs.
    pub routing: MeshDefaults,
    /// accessLogEncoding.
    pub access_log_encoding: AccessLogEncoding,
    /// accessLogFormat; empty: Istio's default.
    pub access_log_format: String,
    /// Wait after a failed resolution (`dnsRefreshRate`, 60 s).
    pub dns_refresh_rate: Duration,
    /// defaultServiceExportTo.
    pub service_export_to: ExportTo,
    /// defaultVirtualServiceExportTo.
    pub virtual_service_export_to: ExportTo,
    /// Findings that do not reject it: field and message.
    pub warnings: Vec<(String, String)>,
}

impl Default for MeshConfig {
    fn default() -> Self {
        Self {
            routing: MeshDefaults::default(),
            access_log_encoding: AccessLogEncoding::Text,
            access_log_format: String::new(),
            dns_refresh_rate: Duration::from_secs(60),
            service_export_to: ExportTo::All,
            virtual_service_export_to: ExportTo::All,
            warnings: Vec::new(),
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

/// Reads a bare MeshConfig, an IstioOperator with `spec.meshConfig`, or a ConfigMap with key
/// `mesh`.
///
/// # Errors
/// When the file cannot be read or a value is wrong.
pub fn read(path: &Path) -> Result<MeshConfig, ConfigError> {
    let text = fs::read_to_string(path).map_err(|source| ConfigError::Read {
        path: path.to_owned(),
        source,
    })?;
    parse(path, &text)
}

fn parse(path: &Path, text: &str) -> Result<MeshConfig, ConfigError> {
    let bad = |line, message| ConfigError::Mesh {
        path: path.to_owned(),
        line,
        message,
    };
    let documents = document::split(path.to_owned(), text);
    let document = match documents.as_slice() {
        [] => return Ok(MeshConfig::default()),
        [one] => one,
        [_, second, ..] => return Err(bad(second.line, "one document is expected".to_owned())),
    };
    let value = document::parse(document).map_err(|(line, reason)| bad(line, reason))?;
    let (value, prefix, document) = unwrap_forms(value, document, &bad)?;
    let raw: raw::MeshConfig = serde_path_to_error::deserialize(value).map_err(|error| {
        let field = format!("{prefix}{}", error.path());
        let line = document.line_of(&field);
        bad(line, format!("{field}: {}", error.into_inner()))
    })?;
    let mut findings = Findings::default();
    let mut mesh = validated(raw, &mut findings);
    for finding in findings.list {
        let field = format!("{prefix}{}", finding.field);
        match finding.severity {
            super::problem::Severity::Error => {
                let line = document.line_of(&field);
                return Err(bad(line, format!("{field}: {}", finding.message)));
            }
            super::problem::Severity::Warning => mesh.warnings.push((field, finding.message)),
        }
    }
    Ok(mesh)
}

/// The MeshConfig itself, where its fields stand, and the document whose lines count.
fn unwrap_forms(
    value: Value,
    document: &Document,
    bad: &impl Fn(u64, String) -> ConfigError,
) -> Result<(Value, &'static str, Document), ConfigError> {
    let kind = value
        .get("kind")
        .and_then(Value::as_str)
        .unwrap_or_default();
    match kind {
        "IstioOperator" => {
            let mesh = value.get("spec").and_then(|spec| spec.get("meshConfig"));
            Ok((
                mesh.cloned().unwrap_or_default(),
                "spec.meshConfig.",
                document.clone(),
            ))
        }
        "ConfigMap" => {
            let mesh = value
                .get("data")
                .and_then(|data| data.get("mesh"))
                .and_then(Value::as_str);
            let Some(text) = mesh else {
                return Err(bad(
                    document.line,
                    "the ConfigMap has no key data.mesh".to_owned(),
                ));
            };
            let line = document.line_of("data.mesh") + 1;
            let inner = Document {
                file: document.file.clone(),
                line,
                text_line: line,
                text: text.to_owned(),
            };
            let value = document::parse(&inner).map_err(|(line, reason)| bad(line, reason))?;
            Ok((value, "", inner))
        }
        "" => {
            // `meshConfig:` at the top, as in Helm values and IstioOperator overlays.
            match value.get("meshConfig") {
                Some(mesh) => Ok((mesh.clone(), "meshConfig.", document.clone())),
                None => Ok((value, "", document.clone())),
            }
        }
        other => Err(bad(
            document.line_of("kind"),
            format!(
                "kind {other} holds no meshConfig: use IstioOperator, ConfigMap or a bare MeshConfig"
            ),
        )),
    }
}

fn validated(raw: raw::MeshConfig, findings: &mut Findings) -> MeshConfig {
    let mut mesh = MeshConfig {
        access_log_encoding: match raw.access_log_encoding {
            raw::Encoding::Text => AccessLogEncoding::Text,
            raw::Encoding::Json => AccessLogEncoding::Json,
        },
        access_log_format: raw.access_log_format,
        ..MeshConfig::default()
    };
    if let Some(policy) = raw.outbound_traffic_policy {
        mesh.routing.outbound = match policy.mode {
            raw::Mode::AllowAny => OutboundPolicy::AllowAny,
            raw::Mode::RegistryOnly => OutboundPolicy::RegistryOnly,
        };
    }
    if let Some(timeout) = raw.connect_timeout {
        if timeout.0 < Duration::from_millis(1) {
            findings.error("connectTimeout", "must be at least 1ms");
        }
        mesh.routing.connect_timeout = timeout.0;
    }
    if let Some(policy) = &raw.default_http_retry_policy {
        mesh.routing.retries = Some(retries(policy, "defaultHttpRetryPolicy", findings));
    }
    if let Some(namespace) = raw.root_namespace {
        mesh.routing.root_namespace = namespace;
    }
    if let Some(rate) = raw.dns_refresh_rate {
        mesh.dns_refresh_rate = rate.0;
    }
    let mut export = |written: Option<Vec<String>>, nobody| {
        // `.` stays as written: it means each object's own namespace.
        names::export_to(
            &written.unwrap_or_default(),
            ".",
            &ExportTo::All,
            nobody,
            findings,
        )
    };
    mesh.service_export_to = export(raw.default_service_export_to, true);
    mesh.virtual_service_export_to = export(raw.default_virtual_service_export_to, false);
    if raw
        .access_log_file
        .is_some_and(|file| !file.is_empty() && file != "/dev/stdout")
    {
        findings.warning(
            "accessLogFile",
            "the flag --access-log says where the log goes",
        );
    }
    for name in raw.other.keys() {
        findings.warning(name.as_str(), "this setting has no effect here");
    }
    mesh
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mesh(text: &str) -> Result<MeshConfig, String> {
        parse(Path::new("mesh.yaml"), text).map_err(|error| error.to_string())
    }

    #[test]
    fn every_form_is_read() {
        let bare = "outboundTrafficPolicy:\n  mode: REGISTRY_ONLY\n";
        let operator = "kind: IstioOperator\nspec:\n  meshConfig:\n    outboundTrafficPolicy:\n      \
                        mode: REGISTRY_ONLY\n";
        let map = "kind: ConfigMap\ndata:\n  mesh: |\n    outboundTrafficPolicy:\n      mode: \
                   REGISTRY_ONLY\n";
        for text in [bare, operator, map] {
            let policy = mesh(text).map(|m| m.routing.outbound);
            assert_eq!(policy, Ok(OutboundPolicy::RegistryOnly), "{text}");
        }
        assert_eq!(
            mesh("").map(|m| m.routing.outbound),
            Ok(OutboundPolicy::AllowAny)
        );
        // An explicitly given block without mode has the enum's zero (trap 10).
        let empty = mesh("outboundTrafficPolicy: {}\n").map(|m| m.routing.outbound);
        assert_eq!(empty, Ok(OutboundPolicy::RegistryOnly));
    }

    #[test]
    fn wrong_values_name_file_line_and_field() {
        let error = mesh("# x\noutboundTrafficPolicy:\n  mode: OPEN\n")
            .err()
            .unwrap_or_default();
        assert!(
            error.starts_with("mesh.yaml:3: meshConfig: outboundTrafficPolicy.mode"),
            "{error}"
        );
        let warned = mesh("enableTracing: true\n").map(|m| m.warnings);
        assert_eq!(warned.map(|w| w.len()), Ok(1));
    }
}
