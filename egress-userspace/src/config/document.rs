// SPDX-License-Identifier: Apache-2.0
//! One YAML document to one object of the model, with its findings.
//!
//! Text → YAML value (its own limits stop duplicate keys, deep nesting and alias bombs) → header
//! (apiVersion, kind, metadata) → raw object of the kind → validation. Knows one document at a
//! time; which of several versions of an object counts is `objects`' question.

use std::{
    hash::{DefaultHasher, Hash, Hasher},
    path::Path,
    sync::Arc,
};

use serde::de::DeserializeOwned;
use serde_yaml::{Mapping, Value};

use super::{
    field::{self, Segment, Shown},
    header::{self, Header},
    istio,
    mesh::MeshConfig,
    problem::{Problem, Severity},
    source::{files::RawDocument, lines},
    validate::{self, Finding, Findings, Subject},
};
use crate::routing::{
    destination_rule::DestinationRule,
    gateway::Gateway,
    service::{Origin, Service},
    sidecar::Sidecar,
    virtual_service::VirtualService,
};

/// A document, or an item of a `List`, after validation.
#[derive(Debug)]
pub struct Document {
    /// What it is and where it is written; kind, namespace and name are empty when unknown.
    pub origin: Arc<Origin>,
    /// Kind as written; `origin.kind` is empty for kinds that are not ours.
    pub kind: String,
    /// Findings of the object itself and between objects.
    pub findings: Vec<Problem>,
    /// The valid object; `None` when it is rejected or not ours.
    pub(super) object: Option<Object>,
    /// Fingerprint of the YAML value.
    pub(super) content: u64,
    /// For the lines of findings that are found later.
    text: Arc<str>,
    first_line: u64,
    /// Where the object stands in the document (inside a `List`).
    prefix: Vec<Segment>,
}

/// A valid object.
#[derive(Debug, Clone)]
pub(super) enum Object {
    /// One service per host.
    ServiceEntry(Vec<Arc<Service>>),
    Gateway(Arc<Gateway>),
    VirtualService(Arc<VirtualService>),
    DestinationRule(Arc<DestinationRule>),
    Sidecar(Arc<Sidecar>),
}

/// What validation needs beside the document.
#[derive(Debug, Clone, Copy)]
pub(super) struct Defaults<'a> {
    /// Namespace of objects that carry none.
    pub namespace: &'a str,
    /// Mesh-wide settings.
    pub mesh: &'a MeshConfig,
}

impl Document {
    /// Whether nothing is wrong with it: it is loaded, if it is of a kind that is used.
    pub fn accepted(&self) -> bool {
        self.findings.iter().all(|f| f.severity != Severity::Error)
    }

    /// Adds a finding about the object.
    pub(super) fn report(&mut self, finding: Finding) {
        let mut segments = self.prefix.clone();
        segments.extend(finding.field.iter().cloned());
        let line = if segments.is_empty() {
            self.origin.line
        } else {
            self.first_line + lines::line_of(&self.text, &segments)
        };
        self.push(line, finding);
    }

    fn push(&mut self, line: u64, finding: Finding) {
        self.findings.push(Problem {
            severity: finding.severity,
            file: self.origin.file.clone(),
            line,
            kind: self.kind.clone(),
            namespace: self.origin.namespace.clone(),
            name: self.origin.name.clone(),
            field: Shown(&finding.field).to_string(),
            message: finding.message,
        });
    }

    /// A document that could not be understood at all.
    pub(super) fn unreadable(file: &Path, line: u64, message: String) -> Self {
        let raw = RawDocument {
            file: file.into(),
            first_line: line,
            line,
            text: Arc::from(""),
        };
        let mut document = blank(&raw, Header::default(), Vec::new());
        document.push(line, whole(Severity::Error, message));
        document
    }
}

/// A finding about the object as a whole.
fn whole(severity: Severity, message: String) -> Finding {
    Finding {
        severity,
        field: Vec::new(),
        message,
    }
}

fn blank(raw: &RawDocument, header: Header, prefix: Vec<Segment>) -> Document {
    Document {
        origin: Arc::new(Origin {
            kind: header.own_kind.unwrap_or(""),
            namespace: header.namespace,
            name: header.name,
            file: raw.file.to_path_buf(),
            line: if prefix.is_empty() {
                raw.line
            } else {
                raw.first_line + lines::line_of(&raw.text, &prefix)
            },
            created: header.created,
        }),
        kind: header.kind,
        findings: Vec::new(),
        object: None,
        content: 0,
        text: Arc::clone(&raw.text),
        first_line: raw.first_line,
        prefix,
    }
}

/// Parses and validates one document; a `List` gives one document per item.
pub(super) fn parse(raw: &RawDocument, defaults: Defaults<'_>) -> Vec<Document> {
    let value = serde_yaml::from_str::<Value>(&raw.text).and_then(|mut value| {
        value.apply_merge()?;
        Ok(value)
    });
    match value {
        Ok(Value::Null) => Vec::new(),
        Ok(Value::Mapping(mapping)) if header::is_list(&mapping) => list(raw, mapping, defaults),
        Ok(value) => vec![object(raw, value, Vec::new(), defaults)],
        Err(error) => vec![broken(raw, &error, defaults)],
    }
}

fn list(raw: &RawDocument, mut mapping: Mapping, defaults: Defaults<'_>) -> Vec<Document> {
    let items = match mapping.remove("items") {
        Some(Value::Sequence(items)) => items,
        Some(Value::Null) | None => Vec::new(),
        Some(_) => {
            let message = "`items` of a List must be a sequence".to_owned();
            return vec![Document::unreadable(&raw.file, raw.line, message)];
        }
    };
    items
        .into_iter()
        .enumerate()
        .map(|(index, item)| {
            let prefix = vec![Segment::Key("items".into()), Segment::Index(index)];
            object(raw, item, prefix, defaults)
        })
        .collect()
}

/// A document that is not YAML.
fn broken(raw: &RawDocument, error: &serde_yaml::Error, defaults: Defaults<'_>) -> Document {
    let header = header::guess(&raw.text, defaults.namespace);
    let mut document = blank(raw, header, Vec::new());
    if let Some(message) = header::lost_indentation(&raw.text) {
        document.push(raw.line, whole(Severity::Error, message));
        return document;
    }
    let line = error.location().map_or(raw.line, |location| {
        raw.first_line + u64::try_from(location.line()).map_or(0, |line| line.saturating_sub(1))
    });
    let message = format!(
        "is not valid YAML: {}",
        without_location(&error.to_string())
    );
    document.push(line, whole(Severity::Error, message));
    document
}

/// serde_yaml's lines count from the start of the document and would mislead.
fn without_location(message: &str) -> String {
    let mut out = String::with_capacity(message.len());
    let mut rest = message;
    while let Some(at) = rest.find(" at line ") {
        out.push_str(&rest[..at]);
        let tail = rest[at + " at line ".len()..].trim_start_matches(|c: char| c.is_ascii_digit());
        rest = tail
            .strip_prefix(" column ")
            .map_or(tail, |t| t.trim_start_matches(|c: char| c.is_ascii_digit()));
    }
    out.push_str(rest);
    out
}

fn object(
    raw: &RawDocument,
    value: Value,
    prefix: Vec<Segment>,
    defaults: Defaults<'_>,
) -> Document {
    let mut hasher = DefaultHasher::new();
    value.hash(&mut hasher);
    let mut findings = Findings::default();
    let Value::Mapping(mut mapping) = value else {
        let mut document = blank(raw, header::guess(&raw.text, defaults.namespace), prefix);
        let message = header::lost_indentation(&raw.text).unwrap_or_else(|| {
            "must be an object with apiVersion, kind, metadata and spec".to_owned()
        });
        document.report(whole(Severity::Error, message));
        return document;
    };
    let lost = if header::looks_flat(&mapping) {
        header::lost_indentation(&raw.text)
    } else {
        None
    };
    let header = match lost {
        Some(message) => {
            findings.0.push(whole(Severity::Error, message));
            header::guess(&raw.text, defaults.namespace)
        }
        None => header::read(&mut mapping, defaults.namespace, &mut findings),
    };
    let used = header.own_kind.is_some() && !findings.has_error();
    let mut document = blank(raw, header, prefix);
    document.content = hasher.finish();
    if used {
        let spec = mapping.remove("spec").unwrap_or(Value::Null);
        let object = build(spec, &document.origin, defaults.mesh, &mut findings);
        document.object = object.filter(|_| !findings.has_error());
    }
    for finding in findings.0 {
        document.report(finding);
    }
    document
}

/// The object of `origin.kind`; a value means something only when there is no error.
fn build(
    spec: Value,
    origin: &Arc<Origin>,
    mesh: &MeshConfig,
    findings: &mut Findings,
) -> Option<Object> {
    let subject = |default_export_to: &[String]| Subject {
        origin: Arc::clone(origin),
        default_export_to: default_export_to.to_vec(),
    };
    Some(match origin.kind {
        "ServiceEntry" => {
            let raw: istio::ServiceEntry = typed(spec, findings)?;
            let subject = subject(&mesh.default_service_export_to);
            Object::ServiceEntry(validate::service_entry(&raw, &subject, findings))
        }
        "Gateway" => {
            let raw: istio::Gateway = typed(spec, findings)?;
            Object::Gateway(validate::gateway(&raw, &subject(&[]), findings))
        }
        "VirtualService" => {
            let raw: istio::VirtualService = typed(spec, findings)?;
            let subject = subject(&mesh.default_virtual_service_export_to);
            Object::VirtualService(validate::virtual_service(&raw, &subject, findings))
        }
        "DestinationRule" => {
            let raw: istio::DestinationRule = typed(spec, findings)?;
            let subject = subject(&mesh.default_destination_rule_export_to);
            Object::DestinationRule(validate::destination_rule(&raw, &subject, findings))
        }
        "Sidecar" => {
            let raw: istio::Sidecar = typed(spec, findings)?;
            Object::Sidecar(validate::sidecar(&raw, &subject(&[]), findings))
        }
        _ => return None,
    })
}

/// `spec` in the shape of its kind.
fn typed<T: DeserializeOwned>(spec: Value, findings: &mut Findings) -> Option<T> {
    if spec.is_null() {
        findings.0.push(Finding {
            severity: Severity::Error,
            field: vec![Segment::Key("spec".into())],
            message: "is missing or empty".into(),
        });
        return None;
    }
    if let Some(null) = field::first_null(&spec) {
        let mut field = vec![Segment::Key("spec".into())];
        field.extend(null);
        findings.0.push(Finding {
            severity: Severity::Error,
            field,
            message: field::NULL_VALUE.into(),
        });
        return None;
    }
    match serde_path_to_error::deserialize(spec) {
        Ok(raw) => Some(raw),
        Err(error) => {
            let mut field = vec![Segment::Key("spec".into())];
            field.extend(field::from_serde(error.path()));
            findings.0.push(Finding {
                severity: Severity::Error,
                field,
                message: without_location(&error.inner().to_string()),
            });
            None
        }
    }
}
