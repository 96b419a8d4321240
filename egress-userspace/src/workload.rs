// SPDX-License-Identifier: Apache-2.0
//! Who is calling: the identity that the kernel vouched for, as routing, logs and metrics see it.
//!
//! Stands beside both flows: `kernel` finds it from a cgroup or network namespace, `routing` matches
//! on it, `proxy` logs it. Does not know how it was found.

use std::collections::BTreeMap;

/// A calling workload. Empty strings mean unknown; there is no namespace named "".
#[derive(Debug, Clone, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Workload {
    /// Kubernetes namespace, or the namespace given by `--workloads`.
    pub namespace: String,
    /// Pod or unit name.
    pub name: String,
    /// Labels that `sourceLabels` is matched against.
    pub labels: BTreeMap<String, String>,
    /// Service account name, without namespace.
    pub service_account: String,
}

impl Workload {
    /// `NAMESPACE/NAME`, or the name alone without a namespace; `None` when both are unknown.
    pub fn qualified_name(&self) -> Option<String> {
        match (self.namespace.as_str(), self.name.as_str()) {
            ("", "") => None,
            ("", name) => Some(name.to_owned()),
            (namespace, name) => Some(format!("{namespace}/{name}")),
        }
    }
}
