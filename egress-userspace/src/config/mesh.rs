// SPDX-License-Identifier: Apache-2.0
//! meshConfig, as far as it reaches this program.

use crate::routing::table::MeshDefaults;

/// A valid MeshConfig; `default()` is Istio's default.
#[derive(Debug, Clone)]
pub struct MeshConfig {
    /// What routing needs.
    pub routing: MeshDefaults,
    /// accessLogEncoding.
    pub access_log_encoding: AccessLogEncoding,
    /// accessLogFormat; empty: Istio's default.
    pub access_log_format: String,
    /// Trust in Istio's `dnsRefreshRate`: wait after a failed resolution (60 s).
    pub dns_refresh_rate: std::time::Duration,
}

impl Default for MeshConfig {
    fn default() -> Self {
        Self {
            routing: MeshDefaults::default(),
            access_log_encoding: AccessLogEncoding::Text,
            access_log_format: String::new(),
            dns_refresh_rate: std::time::Duration::from_secs(60),
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
