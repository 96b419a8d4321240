// SPDX-License-Identifier: Apache-2.0
//! What tells one series from another, and Istio's labels made of it (istio-egress.md 8b).
//!
//! Stands below `series`: a `Key` borrows from the record, an `OwnedKey` lives as long as its
//! series. Counts nothing.

use std::{
    collections::hash_map::RandomState,
    fmt::Write,
    hash::{BuildHasher, Hasher},
    sync::Arc,
};

use super::{ResponseFlags, series::TrafficLabels};
use crate::workload::Workload;

/// Value of `request_protocol`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum RequestProtocol {
    Http,
    /// With the answer's `grpc-status`.
    Grpc(Option<u32>),
    Tcp,
}

/// What tells one series from another. A workload counts by its name: labels that change while a
/// pod lives do not start a new series.
#[derive(Debug, Clone, Copy)]
pub(super) struct Key<'a> {
    pub(super) source: Option<&'a Workload>,
    pub(super) destination_service: &'a str,
    pub(super) destination_name: &'a str,
    pub(super) destination_namespace: &'a str,
    pub(super) protocol: RequestProtocol,
    pub(super) response_code: u16,
    pub(super) response_flags: ResponseFlags,
}

impl<'a> Key<'a> {
    /// The key of one record.
    pub(super) fn new(
        traffic: &TrafficLabels<'a>,
        protocol: RequestProtocol,
        response_code: u16,
        response_flags: ResponseFlags,
    ) -> Self {
        // Only Istio's two reserved clusters stand for a missing service; any other name here
        // would come from configuration that has a service.
        let destination_name = match (traffic.destination_service, traffic.upstream_cluster) {
            ("", cluster @ ("PassthroughCluster" | "BlackHoleCluster")) => cluster,
            (service, _) => service,
        };
        Self {
            source: traffic.source,
            destination_service: traffic.destination_service,
            destination_name,
            destination_namespace: traffic.destination_namespace,
            protocol,
            response_code,
            response_flags,
        }
    }

    /// The series of every record beyond the limit of label sets.
    pub(super) fn other(protocol: RequestProtocol) -> Self {
        Self {
            source: None,
            destination_service: "other",
            destination_name: "other",
            destination_namespace: "other",
            protocol,
            response_code: 0,
            response_flags: ResponseFlags::NONE,
        }
    }

    /// A number that equal keys share.
    pub(super) fn hash(&self, state: &RandomState) -> u64 {
        let mut hasher = state.build_hasher();
        let mut text = |text: &str| {
            hasher.write(text.as_bytes());
            hasher.write_u8(0xff);
        };
        if let Some(source) = self.source {
            text(&source.namespace);
            text(&source.name);
            text(&source.service_account);
        }
        text(self.destination_name);
        text(self.destination_namespace);
        hasher.write_u16(self.response_code);
        hasher.write_u32(match self.protocol {
            RequestProtocol::Http => 0,
            RequestProtocol::Tcp => 1,
            RequestProtocol::Grpc(None) => 2,
            RequestProtocol::Grpc(Some(status)) => status.saturating_add(3),
        });
        hasher.write_u32(self.response_flags.bits());
        hasher.finish()
    }

    /// Keeps what the key borrows.
    pub(super) fn owned(&self) -> OwnedKey {
        OwnedKey {
            source: self.source.map(|source| Workload {
                namespace: source.namespace.clone(),
                name: source.name.clone(),
                service_account: source.service_account.clone(),
                ..Workload::default()
            }),
            destination_service: self.destination_service.into(),
            destination_name: self.destination_name.into(),
            destination_namespace: self.destination_namespace.into(),
            protocol: self.protocol,
            response_code: self.response_code,
            response_flags: self.response_flags,
        }
    }

    /// Istio's labels in the order of istio-egress.md 8b.
    pub(super) fn render(&self) -> Arc<str> {
        let mut out = String::with_capacity(700);
        label(&mut out, "reporter", "source");
        self.render_source(&mut out);
        label(&mut out, "destination_service", self.destination_service);
        label(&mut out, "destination_service_name", self.destination_name);
        label(
            &mut out,
            "destination_service_namespace",
            self.destination_namespace,
        );
        // External services have no workload; Istio reports the same at the source.
        for name in [
            "destination_workload",
            "destination_workload_namespace",
            "destination_principal",
            "destination_app",
            "destination_version",
            "destination_cluster",
            "destination_canonical_service",
            "destination_canonical_revision",
        ] {
            label(&mut out, name, "");
        }
        let protocol = match self.protocol {
            RequestProtocol::Http => "http",
            RequestProtocol::Grpc(_) => "grpc",
            RequestProtocol::Tcp => "tcp",
        };
        label(&mut out, "request_protocol", protocol);
        if self.protocol != RequestProtocol::Tcp {
            // Writing to a String cannot fail.
            let _ = write!(out, ",response_code=\"{}\"", self.response_code);
            match self.protocol {
                RequestProtocol::Grpc(Some(status)) => {
                    let _ = write!(out, ",grpc_response_status=\"{status}\"");
                }
                RequestProtocol::Grpc(None) => label(&mut out, "grpc_response_status", ""),
                _ => out.push_str(",grpc_response_status=\"\""),
            }
        }
        label(&mut out, "response_flags", &self.response_flags.to_string());
        label(&mut out, "connection_security_policy", "");
        out.into()
    }

    fn render_source(&self, out: &mut String) {
        let of = |names: &[&str]| {
            let labels = self.source.map(|source| &source.labels);
            names
                .iter()
                .find_map(|name| labels.and_then(|labels| labels.get(*name)))
                .map_or("", String::as_str)
        };
        let name = self.source.map_or("", |source| source.name.as_str());
        let namespace = self.source.map_or("", |source| source.namespace.as_str());
        // Istio's order of labels that name the canonical service and revision.
        let service = of(&[
            "service.istio.io/canonical-name",
            "app.kubernetes.io/name",
            "app",
        ]);
        let revision = of(&[
            "service.istio.io/canonical-revision",
            "app.kubernetes.io/version",
            "version",
        ]);
        label(out, "source_workload", name);
        label(
            out,
            "source_canonical_service",
            if service.is_empty() { name } else { service },
        );
        let latest = if self.source.is_some() { "latest" } else { "" };
        label(
            out,
            "source_canonical_revision",
            if revision.is_empty() {
                latest
            } else {
                revision
            },
        );
        label(out, "source_workload_namespace", namespace);
        label(out, "source_principal", "");
        label(out, "source_app", of(&["app"]));
        label(out, "source_version", of(&["version"]));
        label(out, "source_cluster", "");
    }
}

/// Appends `,name="value"`, escaped; an empty value is `unknown`.
fn label(out: &mut String, name: &str, value: &str) {
    if !out.is_empty() {
        out.push(',');
    }
    out.push_str(name);
    out.push_str("=\"");
    escape_label(out, if value.is_empty() { "unknown" } else { value });
    out.push('"');
}

/// Label values of the Prometheus text format: backslash, quote and line feed are escaped.
pub fn escape_label(out: &mut String, value: &str) {
    for character in value.chars() {
        match character {
            '\\' => out.push_str("\\\\"),
            '"' => out.push_str("\\\""),
            '\n' => out.push_str("\\n"),
            other => out.push(other),
        }
    }
}

/// A [`Key`] that borrows nothing.
#[derive(Debug)]
pub(super) struct OwnedKey {
    source: Option<Workload>,
    destination_service: Box<str>,
    destination_name: Box<str>,
    destination_namespace: Box<str>,
    protocol: RequestProtocol,
    response_code: u16,
    response_flags: ResponseFlags,
}

impl OwnedKey {
    /// Whether it is the same key.
    pub(super) fn is(&self, key: &Key<'_>) -> bool {
        let same_source = match (&self.source, key.source) {
            (None, None) => true,
            (Some(own), Some(other)) => {
                own.name == other.name
                    && own.namespace == other.namespace
                    && own.service_account == other.service_account
            }
            _ => false,
        };
        same_source
            && self.response_code == key.response_code
            && self.response_flags == key.response_flags
            && self.protocol == key.protocol
            && *self.destination_name == *key.destination_name
            && *self.destination_service == *key.destination_service
            && *self.destination_namespace == *key.destination_namespace
    }
}
