// SPDX-License-Identifier: Apache-2.0
//! Sidecar as written; not in effect yet.

use serde::Deserialize;

use super::scalar::Unused;

/// `spec` of a Sidecar.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Sidecar {
    /// Selection.
    pub workload_selector: Option<Unused>,
    /// Inbound listeners.
    pub ingress: Option<Unused>,
    /// Outbound listeners.
    pub egress: Option<Unused>,
    /// Inbound pool.
    pub inbound_connection_pool: Option<Unused>,
    /// Outbound policy.
    pub outbound_traffic_policy: Option<Unused>,
}
