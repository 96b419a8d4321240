// SPDX-License-Identifier: Apache-2.0
//! Findings as `egress validate` prints them (cli-contract).

use std::{fmt, io};

use serde_json::{Value, json};

use super::{
    object::Object,
    problem::{Problem, Severity},
    reload::Loaded,
};

impl fmt::Display for Problem {
    /// `FILE:LINE: error|warning: KIND NAMESPACE/NAME: FIELD.PATH: what is wrong`; parts that are
    /// not known are left out.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let severity = match self.severity {
            Severity::Error => "error",
            Severity::Warning => "warning",
        };
        write!(f, "{}:{}: {severity}: ", self.file.display(), self.line)?;
        match (self.kind.is_empty(), self.name.is_empty()) {
            (false, false) => write!(f, "{} {}/{}: ", self.kind, self.namespace, self.name)?,
            (false, true) => write!(f, "{}: ", self.kind)?,
            _ => {}
        }
        if !self.field.is_empty() {
            write!(f, "{}: ", self.field)?;
        }
        f.write_str(&self.message)
    }
}

/// Writes all findings; true when none is an error.
///
/// # Errors
/// When `out` fails.
pub fn write(loaded: &Loaded, as_json: bool, out: &mut impl io::Write) -> io::Result<bool> {
    let problems = loaded.problems();
    if as_json {
        let mut documents: Vec<_> = loaded.objects.iter().map(document).collect();
        documents.extend(loaded.other.iter().map(|problem| {
            json!({
                "file": problem.file, "line": problem.line, "kind": problem.kind,
                "namespace": problem.namespace, "name": problem.name,
                "accepted": problem.severity != Severity::Error, "findings": [finding(problem)],
            })
        }));
        serde_json::to_writer_pretty(&mut *out, &json!({ "documents": documents }))?;
        writeln!(out)?;
    } else {
        for problem in &problems {
            writeln!(out, "{problem}")?;
        }
        if problems.is_empty() {
            writeln!(out, "{} objects, no findings", loaded.objects.len())?;
        }
    }
    Ok(problems
        .iter()
        .all(|problem| problem.severity != Severity::Error))
}

fn document(object: &Object) -> Value {
    let origin = &object.origin;
    let kind = object
        .problems
        .first()
        .map_or(origin.kind, |p| p.kind.as_str());
    json!({
        "file": origin.file,
        "line": origin.line,
        "kind": kind,
        "namespace": origin.namespace,
        "name": origin.name,
        "accepted": !object.rejected(),
        "findings": object.problems.iter().map(finding).collect::<Vec<_>>(),
    })
}

fn finding(problem: &Problem) -> Value {
    json!({
        "severity": problem.severity, "field": problem.field, "message": problem.message,
        "line": problem.line,
    })
}
