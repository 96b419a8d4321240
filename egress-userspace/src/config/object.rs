// SPDX-License-Identifier: Apache-2.0
//! One document to one or several objects: header, kind, typed spec, valid model value. Everything
//! that can be said about an object without looking at another.

use std::sync::Arc;

use serde::{Deserialize, de::DeserializeOwned};
use serde_yaml::Value;

use super::{
    document::{self, Document},
    istio,
    problem::{Problem, Severity},
    validate::{self, Findings, Scope},
};
use crate::routing::{
    gateway::Gateway,
    service::{ExportTo, Origin, Service},
    virtual_service::VirtualService,
};

/// The API group that this program acts on.
const GROUP: &str = "networking.istio.io";
/// Its versions; they share one schema (row 0.1).
const VERSIONS: [&str; 3] = ["v1", "v1beta1", "v1alpha3"];

/// One object and what was found about it.
#[derive(Debug, Clone)]
pub struct Object {
    /// Identity and place.
    pub origin: Arc<Origin>,
    /// The document it came from.
    pub document: Arc<Document>,
    /// Findings with their lines.
    pub problems: Vec<Problem>,
    /// The valid value; `None`: rejected, or of a kind that has no effect.
    pub value: Option<Valid>,
}

/// A valid object.
#[derive(Debug, Clone)]
pub enum Valid {
    /// One service for each host.
    Services(Vec<Arc<Service>>),
    /// A Gateway.
    Gateway(Arc<Gateway>),
    /// A VirtualService.
    VirtualService(Arc<VirtualService>),
}

impl Object {
    /// Whether an error rejects it.
    pub fn rejected(&self) -> bool {
        self.problems.iter().any(|p| p.severity == Severity::Error)
    }

    /// Whether kind, namespace and name are known, so that a later version can be told to be the
    /// same object.
    pub fn identified(&self) -> bool {
        !self.origin.kind.is_empty() && !self.origin.name.is_empty()
    }

    /// Adds a finding at a field.
    pub fn report(&mut self, severity: Severity, field: &str, message: String) {
        let problem = problem(&self.document, &self.origin, severity, field, message);
        self.problems.push(problem);
    }
}

/// What objects are read under.
#[derive(Debug, Clone)]
pub struct Defaults {
    /// Namespace of objects that carry none.
    pub namespace: String,
    /// meshConfig.defaultServiceExportTo.
    pub service_export_to: ExportTo,
    /// meshConfig.defaultVirtualServiceExportTo.
    pub virtual_service_export_to: ExportTo,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Header {
    #[serde(default)]
    api_version: Option<String>,
    #[serde(default)]
    kind: Option<String>,
    #[serde(default)]
    metadata: Option<Metadata>,
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "camelCase")]
struct Metadata {
    #[serde(default)]
    name: Option<String>,
    #[serde(default)]
    namespace: Option<String>,
    #[serde(default)]
    creation_timestamp: Option<String>,
}

/// Reads a document. A `List` gives one object for each item.
pub fn read(document: Document, defaults: &Defaults) -> Vec<Object> {
    let document = Arc::new(document);
    match document::parse(&document) {
        Ok(value) => read_value(&document, value, "", defaults),
        Err((line, reason)) => {
            let origin = Arc::new(origin(&document, "", "", ""));
            let mut message = format!("not valid YAML: {reason}");
            if numbered_lines(&document.text) {
                message = "not valid YAML: the lines carry list numbers (`1. apiVersion: ...`), \
                           as when copied from a web page; remove them and restore the indentation"
                    .to_owned();
            }
            let mut problem = problem(&document, &origin, Severity::Error, "", message);
            problem.line = line;
            vec![Object {
                origin,
                document,
                problems: vec![problem],
                value: None,
            }]
        }
    }
}

fn read_value(
    document: &Arc<Document>,
    mut value: Value,
    path: &str,
    defaults: &Defaults,
) -> Vec<Object> {
    if value.get("kind").and_then(Value::as_str) == Some("List")
        && let Some(Value::Sequence(items)) = value.get_mut("items").map(std::mem::take)
    {
        return items
            .into_iter()
            .enumerate()
            .flat_map(|(index, item)| {
                read_value(document, item, &format!("items[{index}]."), defaults)
            })
            .collect();
    }
    vec![read_object(document, &value, path, defaults)]
}

fn read_object(document: &Arc<Document>, value: &Value, path: &str, defaults: &Defaults) -> Object {
    let mut findings = Findings::default();
    let header = Header::deserialize(value).unwrap_or_else(|error| {
        findings.error("", format!("no Kubernetes object: {error}"));
        Header {
            api_version: None,
            kind: None,
            metadata: None,
        }
    });
    let metadata = header.metadata.unwrap_or_default();
    let api_version = header.api_version.unwrap_or_default();
    let kind = header.kind.unwrap_or_default();
    let known = known_kind(&kind);
    let name = metadata.name.unwrap_or_default();
    let namespace = metadata
        .namespace
        .unwrap_or_else(|| defaults.namespace.clone());
    let origin = Arc::new(Origin {
        created: metadata.creation_timestamp.unwrap_or_default(),
        line: if path.is_empty() {
            document.line
        } else {
            document.line_of(path)
        },
        ..origin(document, known.unwrap_or_default(), &namespace, &name)
    });
    let group = api_version.split_once('/');
    let mut value_of = None;
    if let Some(message) = lost_indentation(value) {
        findings.error("", message);
    } else if api_version.is_empty() || kind.is_empty() {
        if !findings.rejected() {
            findings.error("", "no Kubernetes object: apiVersion and kind are required");
        }
    } else if group.map(|(group, _)| group) != Some(GROUP) {
        findings.warning("", format!("{api_version} {kind} is not used by egress"));
    } else if let (Some(kind), Some((_, version))) = (known, group) {
        if !VERSIONS.contains(&version) {
            let list = VERSIONS.join(", ");
            findings.error(
                "apiVersion",
                format!("version `{version}` is not one of {list}"),
            );
        } else if name.is_empty() {
            findings.error("metadata.name", "an object needs a name");
        } else {
            let scope = (namespace.as_str(), defaults);
            value_of = validated(kind, value, &origin, scope, &mut findings);
        }
    } else {
        findings.warning(
            "",
            format!("{kind} is not supported: it has no effect here"),
        );
    }
    let problems = findings
        .list
        .iter()
        .map(|f| {
            let shown = f.message.clone();
            let mut problem = problem(document, &origin, f.severity, &f.field, shown);
            problem.line = document.line_of(&format!("{path}{}", f.field));
            if problem.kind.is_empty() {
                problem.kind = kind.clone();
            }
            problem
        })
        .collect();
    let value = value_of.filter(|_| !findings.rejected());
    Object {
        origin,
        document: document.clone(),
        problems,
        value,
    }
}

fn known_kind(kind: &str) -> Option<&'static str> {
    [
        "ServiceEntry",
        "Gateway",
        "VirtualService",
        "DestinationRule",
        "Sidecar",
    ]
    .into_iter()
    .find(|known| *known == kind)
}

/// Reads and validates the spec of a known kind.
fn validated(
    kind: &str,
    value: &Value,
    origin: &Arc<Origin>,
    (namespace, defaults): (&str, &Defaults),
    findings: &mut Findings,
) -> Option<Valid> {
    let services = Scope {
        namespace,
        default_export_to: &defaults.service_export_to,
    };
    let routes = Scope {
        namespace,
        default_export_to: &defaults.virtual_service_export_to,
    };
    match kind {
        "ServiceEntry" => {
            let raw = spec(value, findings)?;
            let list = validate::service_entry::validate(&raw, origin, services, findings);
            Some(Valid::Services(list.into_iter().map(Arc::new).collect()))
        }
        "Gateway" => {
            let raw = spec(value, findings)?;
            let gateway = validate::gateway::validate(&raw, origin, services, findings);
            Some(Valid::Gateway(Arc::new(gateway)))
        }
        "VirtualService" => {
            let raw = spec(value, findings)?;
            let vs = validate::virtual_service::validate(&raw, origin, routes, findings);
            Some(Valid::VirtualService(Arc::new(vs)))
        }
        "DestinationRule" => {
            let raw: istio::destination_rule::DestinationRule = spec(value, findings)?;
            if raw.host.is_empty() {
                findings.error("spec.host", "a host is required");
            }
            findings.not_in_effect(true, "spec");
            None
        }
        _ => {
            let _: istio::sidecar::Sidecar = spec(value, findings)?;
            findings.not_in_effect(true, "spec");
            None
        }
    }
}

/// The typed spec; an unknown field or a wrong type is an error at its path.
fn spec<T: DeserializeOwned>(value: &Value, findings: &mut Findings) -> Option<T> {
    let Some(spec) = value.get("spec").filter(|spec| !spec.is_null()) else {
        findings.error("spec", "the object has no spec");
        return None;
    };
    match serde_path_to_error::deserialize::<_, T>(spec.clone()) {
        Ok(spec) => Some(spec),
        Err(error) => {
            let path = error.path().to_string();
            let field = if path == "." {
                "spec".to_owned()
            } else {
                format!("spec.{path}")
            };
            findings.error(field, error.into_inner().to_string());
            None
        }
    }
}

/// The tutorial's YAML as it is often pasted: everything at column 0, so that `metadata` and `spec`
/// are empty and their fields stand beside them.
fn lost_indentation(value: &Value) -> Option<String> {
    let Some(map) = value.as_mapping() else {
        return Some("no Kubernetes object: the document is not a mapping".to_owned());
    };
    let empty = |key: &str| map.get(key).is_some_and(Value::is_null);
    let parents: Vec<_> = ["metadata", "spec"]
        .into_iter()
        .filter(|key| empty(key))
        .collect();
    let known = ["apiVersion", "kind", "metadata", "spec", "status", "items"];
    let strays: Vec<_> = map
        .keys()
        .filter_map(Value::as_str)
        .filter(|key| !known.contains(key))
        .map(|key| format!("`{key}`"))
        .collect();
    (!parents.is_empty() && !strays.is_empty()).then(|| {
        format!(
            "the indentation is lost: {} empty while {} at the top level; indent `name` and \
             `namespace` under `metadata:`, and the rest under `spec:`, by two blanks a level",
            plural(
                &parents.iter().map(|p| format!("`{p}`")).collect::<Vec<_>>(),
                "is",
                "are"
            ),
            plural(&strays, "stands", "stand"),
        )
    })
}

fn plural(names: &[String], one: &str, many: &str) -> String {
    format!(
        "{} {}",
        names.join(", "),
        if names.len() == 1 { one } else { many }
    )
}

/// Most lines begin with a number and a dot, or a number and blanks.
fn numbered_lines(text: &str) -> bool {
    let lines: Vec<_> = text
        .lines()
        .filter(|line| !line.trim().is_empty())
        .collect();
    let numbered = lines
        .iter()
        .filter(|line| {
            let rest = line
                .trim_start()
                .trim_start_matches(|c: char| c.is_ascii_digit());
            rest.len() < line.trim_start().len() && rest.starts_with(['.', ' ', '\t'])
        })
        .count();
    lines.len() > 2 && numbered * 2 > lines.len()
}

fn origin(document: &Document, kind: &'static str, namespace: &str, name: &str) -> Origin {
    Origin {
        kind,
        namespace: namespace.to_owned(),
        name: name.to_owned(),
        file: document.file.as_ref().clone(),
        line: document.line,
        created: String::new(),
    }
}

fn problem(
    document: &Document,
    origin: &Origin,
    severity: Severity,
    field: &str,
    message: String,
) -> Problem {
    Problem {
        severity,
        file: document.file.as_ref().clone(),
        line: document.line_of(field),
        kind: origin.kind.to_owned(),
        namespace: origin.namespace.clone(),
        name: origin.name.clone(),
        field: field.to_owned(),
        message,
    }
}
