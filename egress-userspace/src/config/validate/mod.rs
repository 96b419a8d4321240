// SPDX-License-Identifier: Apache-2.0
//! Raw objects to the valid model of `routing`, or findings with the path of the field.
//!
//! Rules are those of Istio's validation (istio `pkg/config/validation`). An error rejects the
//! object, a warning loads it. What is valid in Istio but has no data path here yet is a warning
//! that says so at its field: nothing is ignored silently. No I/O, no async; knows one object at a
//! time (see `references` for findings between objects).

mod destination_rule;
mod gateway;
mod http_action;
mod http_rule;
mod names;
pub(super) mod references;
mod service_entry;
mod sidecar;
mod strings;
mod tls;
mod virtual_service;

use std::sync::Arc;

pub(super) use destination_rule::destination_rule;
pub(super) use gateway::gateway;
pub(super) use http_action::retries;
pub(super) use names::{export_to, fqdn_error, namespace_error, object_name_error};
pub(super) use service_entry::service_entry;
pub(super) use sidecar::sidecar;
pub(super) use virtual_service::virtual_service;

use super::{
    field::{FieldPath, Segment},
    problem::Severity,
};
use crate::routing::service::{ExportTo, Origin};

/// Longest message of a finding, bytes: values of any length may be quoted in it.
const MAX_MESSAGE: usize = 1000;

/// What a validator knows besides the spec.
#[derive(Debug, Clone)]
pub(super) struct Subject {
    /// The object.
    pub origin: Arc<Origin>,
    /// Visibility of an object of this kind that gives none (meshConfig.default*ExportTo).
    pub default_export_to: Vec<String>,
}

impl Subject {
    fn namespace(&self) -> &str {
        &self.origin.namespace
    }

    fn export_to(
        &self,
        written: &[String],
        path: &FieldPath<'_>,
        findings: &mut Findings,
    ) -> ExportTo {
        let nobody_allowed = self.origin.kind == "ServiceEntry";
        if written.is_empty() {
            // The mesh-wide default has been checked where it is written.
            let mut ignored = Findings::default();
            return export_to(
                &self.default_export_to,
                self.namespace(),
                nobody_allowed,
                path,
                &mut ignored,
            );
        }
        export_to(written, self.namespace(), nobody_allowed, path, findings)
    }
}

/// One finding, before it is known where it is written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Finding {
    pub severity: Severity,
    pub field: Vec<Segment>,
    pub message: String,
}

/// The findings of one object, in the order found.
#[derive(Debug, Default)]
pub(super) struct Findings(pub Vec<Finding>);

impl Findings {
    pub(super) fn error(&mut self, path: &FieldPath<'_>, message: impl Into<String>) {
        self.push(Severity::Error, path, message.into());
    }

    pub(super) fn warning(&mut self, path: &FieldPath<'_>, message: impl Into<String>) {
        self.push(Severity::Warning, path, message.into());
    }

    /// A field that Istio has and this program does not act on.
    pub(super) fn unsupported(&mut self, path: &FieldPath<'_>, consequence: &str) {
        self.push(
            Severity::Warning,
            path,
            format!("not supported yet: {consequence}"),
        );
    }

    /// A field whose data path is to come; `consequence` may be empty.
    fn not_in_effect(&mut self, path: &FieldPath<'_>, consequence: &str) {
        let separator = if consequence.is_empty() { "" } else { ": " };
        let message = format!("not in effect yet{separator}{consequence}");
        self.push(Severity::Warning, path, message);
    }

    fn push(&mut self, severity: Severity, path: &FieldPath<'_>, mut message: String) {
        if message.len() > MAX_MESSAGE {
            // The rest is what somebody wrote into a field, not what is wrong with it.
            message.truncate(message.floor_char_boundary(MAX_MESSAGE));
            message.push_str(" ...");
        }
        self.0.push(Finding {
            severity,
            field: path.segments(),
            message,
        });
    }

    pub(super) fn has_error(&self) -> bool {
        self.0.iter().any(|f| f.severity == Severity::Error)
    }
}
