// SPDX-License-Identifier: Apache-2.0
//! What a document says about itself before its spec: apiVersion, kind, metadata; and the guesses
//! about a document that is too broken to say it.

use serde_yaml::{Mapping, Value};

use super::{
    field::FieldPath,
    validate::{self, Findings},
};

/// The kinds that are checked, all of group `networking.istio.io`.
const OWN_KINDS: [&str; 5] = [
    "ServiceEntry",
    "Gateway",
    "VirtualService",
    "DestinationRule",
    "Sidecar",
];
/// The versions of that group; they share one schema.
const VERSIONS: [&str; 3] = ["v1", "v1beta1", "v1alpha3"];
/// Kinds of Istio that this program does not act on.
const OTHER_ISTIO_KINDS: [&str; 4] = [
    "EnvoyFilter",
    "WorkloadEntry",
    "WorkloadGroup",
    "ProxyConfig",
];
/// The fields of a Kubernetes ObjectMeta.
const METADATA_FIELDS: [&str; 16] = [
    "name",
    "generateName",
    "namespace",
    "selfLink",
    "uid",
    "resourceVersion",
    "generation",
    "creationTimestamp",
    "deletionTimestamp",
    "deletionGracePeriodSeconds",
    "labels",
    "annotations",
    "ownerReferences",
    "finalizers",
    "managedFields",
    "clusterName",
];

/// Who a document is.
#[derive(Debug, Default)]
pub(super) struct Header {
    /// As written; may be empty.
    pub kind: String,
    /// Set when it is one of ours, in a version we read.
    pub own_kind: Option<&'static str>,
    /// Of the object, or the default.
    pub namespace: String,
    /// May be empty.
    pub name: String,
    /// RFC 3339; empty when absent.
    pub created: String,
}

/// Whether the mapping is a `kind: List`.
pub(super) fn is_list(mapping: &Mapping) -> bool {
    text(mapping, "kind") == Some("List") && text(mapping, "apiVersion") == Some("v1")
}

fn text<'a>(mapping: &'a Mapping, key: &str) -> Option<&'a str> {
    mapping.get(key).and_then(Value::as_str)
}

/// Reads the header; what is wrong goes to `findings`, whose field paths start at the object.
pub(super) fn read(
    mapping: &mut Mapping,
    default_namespace: &str,
    findings: &mut Findings,
) -> Header {
    let root = FieldPath::Root;
    let kind = text(mapping, "kind").unwrap_or_default().to_owned();
    let api_version = text(mapping, "apiVersion").unwrap_or_default().to_owned();
    let own_kind = own_kind(&kind, &api_version, findings);
    let mut header = Header {
        kind,
        own_kind,
        ..Header::default()
    };
    let empty = Mapping::new();
    let metadata = match mapping.get("metadata") {
        Some(Value::Mapping(metadata)) => metadata,
        _ if own_kind.is_none() => &empty,
        _ => {
            findings.error(&root.key("metadata"), "is missing: an object needs a name");
            &empty
        }
    };
    header.name = text(metadata, "name").unwrap_or_default().to_owned();
    header.namespace = text(metadata, "namespace")
        .filter(|namespace| !namespace.is_empty())
        .unwrap_or(default_namespace)
        .to_owned();
    header.created = text(metadata, "creationTimestamp")
        .unwrap_or_default()
        .to_owned();
    if own_kind.is_some() {
        check_metadata(metadata, &header, findings);
        for key in mapping.keys() {
            let name = key.as_str().unwrap_or("(not a text)");
            if !["apiVersion", "kind", "metadata", "spec", "status"].contains(&name) {
                findings.error(
                    &root.key(name),
                    "unknown field; an object has apiVersion, kind, metadata and spec",
                );
            }
        }
    }
    header
}

fn own_kind(kind: &str, api_version: &str, findings: &mut Findings) -> Option<&'static str> {
    let root = FieldPath::Root;
    let (group, version) = api_version.split_once('/').unwrap_or(("", api_version));
    let own = OWN_KINDS.iter().find(|own| **own == kind).copied();
    if kind.is_empty() {
        findings.error(&root.key("kind"), "is missing");
        return None;
    }
    if api_version.is_empty() {
        findings.error(&root.key("apiVersion"), "is missing");
        return None;
    }
    if group == "networking.istio.io" {
        return match own {
            Some(own) if VERSIONS.contains(&version) => Some(own),
            Some(_) => {
                findings.error(
                    &root.key("apiVersion"),
                    format!("`{version}` is not a version of {kind}: use v1, v1beta1 or v1alpha3"),
                );
                None
            }
            None if OTHER_ISTIO_KINDS.contains(&kind) => {
                not_in_effect(kind, findings);
                None
            }
            None => {
                findings.error(
                    &root.key("kind"),
                    format!(
                        "`{kind}` is not a kind of networking.istio.io; known are {}",
                        OWN_KINDS.join(", ")
                    ),
                );
                None
            }
        };
    }
    if group.ends_with(".istio.io") || group == "gateway.networking.k8s.io" {
        not_in_effect(kind, findings);
    } else if let Some(own) = own {
        findings.error(
            &root.key("apiVersion"),
            format!("`{api_version}` has no {own}: use networking.istio.io/v1"),
        );
    } else {
        findings.warning(&root, format!("kind {kind} is not used by egress"));
    }
    None
}

fn not_in_effect(kind: &str, findings: &mut Findings) {
    findings.warning(
        &FieldPath::Root,
        format!("kind {kind} is not in effect: egress does not act on it"),
    );
}

fn check_metadata(metadata: &Mapping, header: &Header, findings: &mut Findings) {
    let root = FieldPath::Root;
    let path = root.key("metadata");
    for (key, value) in metadata {
        let name = key.as_str().unwrap_or("(not a text)");
        if !METADATA_FIELDS.contains(&name) {
            findings.error(&path.key(name), "unknown field of metadata");
        }
        let textual = ["name", "namespace", "creationTimestamp"].contains(&name);
        if textual && !value.is_string() && !value.is_null() {
            findings.error(&path.key(name), "must be a text; quote it");
        }
    }
    let name_path = path.key("name");
    if !metadata.is_empty() && metadata.get("name").is_none_or(Value::is_null) {
        findings.error(&name_path, "an object needs a name");
    } else if let Some(message) = validate::object_name_error(&header.name)
        && metadata.get("name").is_some_and(Value::is_string)
    {
        findings.error(&name_path, message);
    }
    if let Some(message) = validate::namespace_error(&header.namespace) {
        findings.error(&path.key("namespace"), message);
    }
}

/// Whether the mapping could be an object whose indentation is lost: metadata or spec stand there
/// without content.
pub(super) fn looks_flat(mapping: &Mapping) -> bool {
    let empty = |key: &str| mapping.get(key).is_some_and(Value::is_null);
    let numbered = mapping
        .keys()
        .any(|key| key.as_str().is_some_and(|key| number_prefix(key) > 0));
    empty("metadata") || empty("spec") || numbered
}

/// What to say about text whose indentation is lost, or whose lines carry list numbers; `None`
/// when it is neither.
pub(super) fn lost_indentation(text: &str) -> Option<String> {
    let mut numbered = 0;
    let mut stray = false;
    let mut emptied = false;
    let mut lines = 0;
    for line in content_lines(text) {
        lines += 1;
        if number_prefix(line) > 0 {
            numbered += 1;
        }
        stray |= is_stray(line);
        emptied |= matches!(unnumbered(line), "metadata:" | "spec:");
    }
    let how = "write `metadata:` with `  name: ...` under it and `spec:` with its fields under \
               it, two spaces deeper per level";
    // A list number on every other line is no accident.
    if numbered > 0 && numbered * 2 >= lines {
        return Some(format!(
            "the lines begin with list numbers (copied from a web page?) and are not YAML: remove \
             the numbers and restore the indentation; {how}"
        ));
    }
    (emptied && stray && lines > 3).then(|| {
        format!(
            "the indentation is lost: fields of metadata and spec start at column 0, so \
                 metadata or spec is empty; {how}"
        )
    })
}

/// Whether a line is a key at column 0 that no object has there.
fn is_stray(line: &str) -> bool {
    let key = unnumbered(line).split(':').next().unwrap_or_default();
    line.starts_with(|c: char| c.is_ascii_alphanumeric()) && !FIELDS.contains(&key)
}

/// Fields at the top of an object.
const FIELDS: [&str; 6] = ["apiVersion", "kind", "metadata", "spec", "status", "items"];

fn content_lines(text: &str) -> impl Iterator<Item = &str> {
    text.lines()
        .map(str::trim_end)
        .filter(|line| !line.is_empty() && !line.trim_start().starts_with('#'))
}

/// Length of `12. `, `12) `, `12 ` or `12` before a letter, at the start of a line.
fn number_prefix(line: &str) -> usize {
    let trimmed = line.trim_start();
    let digits = trimmed.bytes().take_while(u8::is_ascii_digit).count();
    if digits == 0 {
        return 0;
    }
    let rest = trimmed[digits..].trim_start_matches(['.', ')', '|']);
    let rest = rest.trim_start();
    if rest.starts_with(|c: char| c.is_ascii_alphabetic() || c == '-') {
        line.len() - rest.len()
    } else {
        0
    }
}

fn unnumbered(line: &str) -> &str {
    line[number_prefix(line)..].trim()
}

/// Kind, namespace and name of a document that cannot be parsed, as far as its lines tell.
pub(super) fn guess(text: &str, default_namespace: &str) -> Header {
    let mut header = Header::default();
    let mut in_metadata = false;
    for line in content_lines(text) {
        let line = unnumbered(line);
        let Some((key, value)) = line.split_once(':') else {
            continue;
        };
        let value = value.trim().trim_matches(['"', '\'']);
        match key {
            "kind" if header.kind.is_empty() => header.kind = value.to_owned(),
            "metadata" => in_metadata = true,
            "spec" => in_metadata = false,
            "name" if in_metadata && header.name.is_empty() => header.name = value.to_owned(),
            "namespace" if in_metadata && header.namespace.is_empty() => {
                header.namespace = value.to_owned();
            }
            _ => {}
        }
    }
    header.own_kind = OWN_KINDS.iter().find(|own| **own == header.kind).copied();
    if header.namespace.is_empty() && !header.name.is_empty() {
        header.namespace = default_namespace.to_owned();
    }
    header
}
