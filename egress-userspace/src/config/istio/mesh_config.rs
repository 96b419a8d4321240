// SPDX-License-Identifier: Apache-2.0
//! The fields of MeshConfig that reach this program (istio/api `mesh/v1alpha1/config.proto`).
//!
//! MeshConfig is large and mostly about istiod, so unlike with the other objects a field outside
//! [`MESH_CONFIG_FIELDS`] is a warning; it is taken out before this shape is read.

use serde::Deserialize;

use super::{Duration, HttpRetry};

/// MeshConfig.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default, rename_all = "camelCase", deny_unknown_fields)]
pub(in crate::config) struct RawMeshConfig {
    pub outbound_traffic_policy: Option<MeshOutboundTrafficPolicy>,
    pub access_log_file: String,
    pub access_log_encoding: RawAccessLogEncoding,
    pub access_log_format: String,
    pub default_http_retry_policy: Option<HttpRetry>,
    pub connect_timeout: Option<Duration>,
    pub h2_upgrade_policy: MeshH2UpgradePolicy,
    pub default_config: Option<serde_yaml::Mapping>,
    pub root_namespace: Option<String>,
    pub dns_refresh_rate: Option<Duration>,
    pub default_service_export_to: Vec<String>,
    pub default_virtual_service_export_to: Vec<String>,
    pub default_destination_rule_export_to: Vec<String>,
}

/// The JSON names of [`RawMeshConfig`].
pub(in crate::config) const MESH_CONFIG_FIELDS: [&str; 13] = [
    "outboundTrafficPolicy",
    "accessLogFile",
    "accessLogEncoding",
    "accessLogFormat",
    "defaultHttpRetryPolicy",
    "connectTimeout",
    "h2UpgradePolicy",
    "defaultConfig",
    "rootNamespace",
    "dnsRefreshRate",
    "defaultServiceExportTo",
    "defaultVirtualServiceExportTo",
    "defaultDestinationRuleExportTo",
];

/// MeshConfig.H2UpgradePolicy.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub(in crate::config) enum MeshH2UpgradePolicy {
    #[default]
    DoNotUpgrade,
    Upgrade,
}

/// MeshConfig.OutboundTrafficPolicy; an empty block means REGISTRY_ONLY.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default, rename_all = "camelCase", deny_unknown_fields)]
pub(in crate::config) struct MeshOutboundTrafficPolicy {
    pub mode: MeshOutboundMode,
    pub tls: Option<serde_yaml::Value>,
}

/// MeshConfig.OutboundTrafficPolicy.Mode.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub(in crate::config) enum MeshOutboundMode {
    #[default]
    RegistryOnly,
    AllowAny,
    AllowAnyDynamicDns,
}

/// MeshConfig.AccessLogEncoding.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub(in crate::config) enum RawAccessLogEncoding {
    #[default]
    Text,
    Json,
}
