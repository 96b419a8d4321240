// SPDX-License-Identifier: Apache-2.0
//! ProxyConfig.proxyHeaders as written (istio/api `mesh/v1alpha1/proxy.proto`).

use serde::Deserialize;

/// ProxyConfig.ProxyHeaders.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default, rename_all = "camelCase", deny_unknown_fields)]
pub(in crate::config) struct RawProxyHeaders {
    pub forwarded_client_cert: Option<String>,
    pub set_current_client_cert_details: Option<serde_yaml::Value>,
    pub request_id: Option<Switch>,
    pub server: Option<ServerHeader>,
    pub attempt_count: Option<Switch>,
    pub envoy_debug_headers: Option<Switch>,
    pub metadata_exchange_headers: Option<serde_yaml::Value>,
    pub preserve_http1_header_case: Option<bool>,
    pub x_forwarded_host: Option<Enabled>,
    pub x_forwarded_port: Option<Enabled>,
}

/// A header that is on unless disabled.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default, rename_all = "camelCase", deny_unknown_fields)]
pub(in crate::config) struct Switch {
    pub disabled: bool,
}

/// A header that is off unless enabled.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default, rename_all = "camelCase", deny_unknown_fields)]
pub(in crate::config) struct Enabled {
    pub enabled: bool,
}

/// ProxyHeaders.Server.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default, rename_all = "camelCase", deny_unknown_fields)]
pub(in crate::config) struct ServerHeader {
    pub disabled: bool,
    pub value: String,
}
