// SPDX-License-Identifier: Apache-2.0
//! What `egress validate` prints: one line per finding, or one JSON object (the shapes are part of
//! the command line's contract).

use std::{borrow::Cow, fmt::Write as _, io::Write, path::PathBuf};

use serde::Serialize;

use super::{
    ConfigError, ConfigSettings, Loaded, load,
    problem::{Problem, Severity},
};
use crate::routing::table::Role;

/// Checks `paths` as `--config` would load them and prints the findings to `out`; true when none
/// is an error.
///
/// # Errors
/// When a path cannot be read, or `out` cannot be written.
pub fn validate(
    paths: &[PathBuf],
    default_namespace: &str,
    json: bool,
    out: &mut impl Write,
) -> Result<bool, ConfigError> {
    let loaded = load(&ConfigSettings {
        paths: paths.to_vec(),
        mesh_config: None,
        default_namespace: default_namespace.to_owned(),
        role: Role::Mesh,
    })?;
    let text = if json {
        render_json(&loaded)
    } else {
        render_text(&loaded)
    };
    out.write_all(text.as_bytes())
        .map_err(|source| ConfigError::Write { source })?;
    Ok(!loaded
        .problems()
        .any(|problem| problem.severity == Severity::Error))
}

/// One line per finding: `FILE:LINE: error|warning: KIND NAMESPACE/NAME: FIELD.PATH: MESSAGE`;
/// parts that are unknown are left out.
pub fn render_text(loaded: &Loaded) -> String {
    let mut problems: Vec<_> = loaded.problems().collect();
    problems.sort_by_key(|problem| (&problem.file, problem.line));
    let mut text = String::new();
    for problem in problems {
        // Writing to a String cannot fail.
        let _ = writeln!(text, "{problem}");
    }
    text
}

impl std::fmt::Display for Problem {
    /// The line of `egress validate`.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let severity = match self.severity {
            Severity::Error => "error",
            Severity::Warning => "warning",
        };
        write!(f, "{}:{}: {severity}: ", self.file.display(), self.line)?;
        match (self.kind.as_str(), self.name.as_str()) {
            ("", _) => {}
            (kind, "") => write!(f, "{kind}: ")?,
            (kind, name) => write!(f, "{kind} {}/{name}: ", self.namespace)?,
        }
        if !self.field.is_empty() {
            write!(f, "{}: ", self.field)?;
        }
        f.write_str(&self.message)
    }
}

#[derive(Serialize)]
struct Report<'a> {
    documents: Vec<ReportedDocument<'a>>,
}

#[derive(Serialize)]
struct ReportedDocument<'a> {
    file: Cow<'a, str>,
    line: u64,
    kind: &'a str,
    namespace: &'a str,
    name: &'a str,
    accepted: bool,
    findings: Vec<ReportedFinding<'a>>,
}

#[derive(Serialize)]
struct ReportedFinding<'a> {
    severity: Severity,
    line: u64,
    field: &'a str,
    message: &'a str,
}

/// `{"documents":[{file, line, kind, namespace, name, accepted, findings}]}` and a line end.
pub fn render_json(loaded: &Loaded) -> String {
    let documents = loaded
        .documents
        .iter()
        .map(|document| ReportedDocument {
            file: document.origin.file.to_string_lossy(),
            line: document.origin.line,
            kind: &document.kind,
            namespace: &document.origin.namespace,
            name: &document.origin.name,
            accepted: document.accepted(),
            findings: document
                .findings
                .iter()
                .map(|finding| ReportedFinding {
                    severity: finding.severity,
                    line: finding.line,
                    field: &finding.field,
                    message: &finding.message,
                })
                .collect(),
        })
        .collect();
    // Texts and numbers only, so serialising cannot fail.
    let mut text = serde_json::to_string(&Report { documents }).unwrap_or_default();
    text.push('\n');
    text
}
