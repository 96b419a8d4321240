// SPDX-License-Identifier: Apache-2.0
//! DestinationRule as written; its policies are not in effect yet, so they stay unread.

use serde::Deserialize;

use super::scalar::Unused;

/// `spec` of a DestinationRule.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct DestinationRule {
    /// Host.
    pub host: String,
    /// Policy.
    pub traffic_policy: Option<Unused>,
    /// Subsets.
    pub subsets: Option<Unused>,
    /// Visibility.
    pub export_to: Vec<String>,
    /// Client selection.
    pub workload_selector: Option<Unused>,
}
