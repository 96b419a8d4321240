// SPDX-License-Identifier: Apache-2.0
//! What is wrong, in which object, at which field, how severe.

use std::path::PathBuf;

/// One finding of parsing or validation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    /// Errors reject the object, warnings load it (istio-egress.md 0.7).
    pub severity: Severity,
    /// The file.
    pub file: PathBuf,
    /// 1-based line of the field, or of the document.
    pub line: u64,
    /// Kind of the object; empty when unknown.
    pub kind: String,
    /// Namespace of the object; empty when unknown.
    pub namespace: String,
    /// Name of the object; empty when unknown.
    pub name: String,
    /// Path in Istio's JSON names (`spec.http[0].match[1].uri`); empty: the whole object.
    pub field: String,
    /// What is wrong and what would be right.
    pub message: String,
}

/// How bad.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Severity {
    /// The object is rejected.
    Error,
    /// The object is loaded.
    Warning,
}
