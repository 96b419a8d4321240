// SPDX-License-Identifier: Apache-2.0
//! Raw objects to valid model values, or findings. One file for each kind; [`names`] holds what
//! hosts, ports and namespaces have in common. No I/O, no async.

pub mod gateway;
pub mod names;
pub mod service_entry;
pub mod virtual_service;

use super::problem::Severity;

/// What is wrong with one object, field by field.
#[derive(Debug, Default)]
pub struct Findings {
    /// In the order found.
    pub list: Vec<Finding>,
}

/// One finding of one object.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finding {
    /// Whether the object is rejected.
    pub severity: Severity,
    /// Path in Istio's JSON names; empty: the whole object.
    pub field: String,
    /// What is wrong and what would be right.
    pub message: String,
}

impl Findings {
    /// Rejects the object.
    pub fn error(&mut self, field: impl Into<String>, message: impl Into<String>) {
        self.push(Severity::Error, field.into(), message.into());
    }

    /// Loads the object and says so.
    pub fn warning(&mut self, field: impl Into<String>, message: impl Into<String>) {
        self.push(Severity::Warning, field.into(), message.into());
    }

    /// A field that is read but has no effect yet; never silently ignored.
    pub fn not_in_effect(&mut self, present: bool, field: impl Into<String>) {
        if present {
            self.warning(field, "not supported yet: this field has no effect");
        }
    }

    /// Whether the object is rejected.
    pub fn rejected(&self) -> bool {
        self.list
            .iter()
            .any(|finding| finding.severity == Severity::Error)
    }

    fn push(&mut self, severity: Severity, field: String, message: String) {
        self.list.push(Finding {
            severity,
            field,
            message,
        });
    }
}

/// What an object's fields are resolved against.
#[derive(Debug, Clone, Copy)]
pub struct Scope<'a> {
    /// Namespace of the object.
    pub namespace: &'a str,
    /// `exportTo` when the object has none.
    pub default_export_to: &'a crate::routing::service::ExportTo,
}
