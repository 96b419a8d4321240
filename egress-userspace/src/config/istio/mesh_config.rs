// SPDX-License-Identifier: Apache-2.0
//! meshConfig as written, as far as it reaches this program. The object is huge: other fields are
//! collected and reported, not refused.

use std::collections::BTreeMap;

use serde::Deserialize;

use super::{
    scalar::{DurationText, Unused},
    virtual_service::HttpRetry,
};

/// MeshConfig.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct MeshConfig {
    /// Policy.
    pub outbound_traffic_policy: Option<OutboundTrafficPolicy>,
    /// `/dev/stdout`, a path, or empty.
    pub access_log_file: Option<String>,
    /// Custom format.
    pub access_log_format: String,
    /// TEXT or JSON.
    pub access_log_encoding: Encoding,
    /// Connect timeout.
    pub connect_timeout: Option<DurationText>,
    /// Default retries.
    pub default_http_retry_policy: Option<HttpRetry>,
    /// Root namespace.
    pub root_namespace: Option<String>,
    /// DNS refresh.
    pub dns_refresh_rate: Option<DurationText>,
    /// Default visibility.
    pub default_service_export_to: Option<Vec<String>>,
    /// Default visibility.
    pub default_virtual_service_export_to: Option<Vec<String>>,
    /// Default visibility; DestinationRule.
    pub default_destination_rule_export_to: Option<Vec<String>>,
    /// Everything else.
    #[serde(flatten)]
    pub other: BTreeMap<String, Unused>,
}

/// outboundTrafficPolicy.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct OutboundTrafficPolicy {
    /// Mode.
    pub mode: Mode,
}

/// OutboundTrafficPolicy.Mode; the enum's zero is REGISTRY_ONLY.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum Mode {
    /// Refuse what is not registered.
    #[default]
    RegistryOnly,
    /// Pass what is not registered.
    AllowAny,
}

/// MeshConfig.AccessLogEncoding.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum Encoding {
    /// Text.
    #[default]
    Text,
    /// JSON.
    Json,
}
