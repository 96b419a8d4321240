// SPDX-License-Identifier: Apache-2.0
//! meshConfig.defaultConfig.proxyHeaders: which headers the proxy adds of its own (row 5b.18).

use http::HeaderValue;
use serde_yaml::Value;

use super::{
    field::{self, FieldPath},
    istio::RawProxyHeaders,
    problem::Severity,
    validate::{Finding, Findings},
};

/// The headers that the proxy adds.
#[derive(Debug, Clone, PartialEq)]
pub struct ProxyHeaders {
    /// `x-request-id`, where there is none.
    pub request_id: bool,
    /// `x-envoy-attempt-count`.
    pub attempt_count: bool,
    /// `server` of responses; `None`: as the upstream sent it.
    pub server: Option<HeaderValue>,
    /// `x-envoy-upstream-service-time`.
    pub debug: bool,
    /// `x-forwarded-host`.
    pub forwarded_host: bool,
    /// `x-forwarded-port`.
    pub forwarded_port: bool,
}

impl Default for ProxyHeaders {
    /// Istio's, with our own name as `server`.
    fn default() -> Self {
        Self {
            request_id: true,
            attempt_count: true,
            server: Some(HeaderValue::from_static("egress")),
            debug: true,
            forwarded_host: false,
            forwarded_port: false,
        }
    }
}

/// Reads meshConfig.defaultConfig.proxyHeaders.
pub(super) fn read(value: Value, path: &FieldPath<'_>, findings: &mut Findings) -> ProxyHeaders {
    let raw: RawProxyHeaders = match serde_path_to_error::deserialize(value) {
        Ok(raw) => raw,
        Err(error) => {
            let mut segments = path.segments();
            segments.extend(field::from_serde(error.path()));
            findings.0.push(Finding {
                severity: Severity::Error,
                field: segments,
                message: error.inner().to_string(),
            });
            return ProxyHeaders::default();
        }
    };
    for (name, given, consequence) in [
        (
            "forwardedClientCert",
            raw.forwarded_client_cert.is_some(),
            "no client certificate is seen",
        ),
        (
            "setCurrentClientCertDetails",
            raw.set_current_client_cert_details.is_some(),
            "no client certificate is seen",
        ),
        (
            "metadataExchangeHeaders",
            raw.metadata_exchange_headers.is_some(),
            "none are sent",
        ),
        (
            "preserveHttp1HeaderCase",
            raw.preserve_http1_header_case == Some(true),
            "names are sent in lower case",
        ),
    ] {
        if given {
            findings.unsupported(&path.key(name), consequence);
        }
    }
    let defaults = ProxyHeaders::default();
    let on = |switch: Option<&super::istio::Switch>| !switch.is_some_and(|s| s.disabled);
    let server = match &raw.server {
        Some(server) if server.disabled => None,
        Some(server) if !server.value.is_empty() => {
            let value = HeaderValue::try_from(&server.value);
            if value.is_err() {
                findings.error(
                    &path.key("server").key("value"),
                    "contains characters that a header cannot carry",
                );
            }
            value.ok()
        }
        _ => defaults.server,
    };
    ProxyHeaders {
        request_id: on(raw.request_id.as_ref()),
        attempt_count: on(raw.attempt_count.as_ref()),
        server,
        debug: on(raw.envoy_debug_headers.as_ref()),
        forwarded_host: raw.x_forwarded_host.is_some_and(|s| s.enabled),
        forwarded_port: raw.x_forwarded_port.is_some_and(|s| s.enabled),
    }
}
