// SPDX-License-Identifier: Apache-2.0
//! Configuration end to end: source → parse → validate → snapshot. Yields one watch channel of
//! snapshots; knows `routing`, nothing of the kernel or the proxy.
//!
//! - `source`: paths to raw documents, and the watch on them.
//! - `document`, `header`, `istio`: text to Istio's objects as written.
//! - `validate`: those to the model of `routing`, or to problems.
//! - `objects`: which version of each object is in effect.
//! - [`follow`]: loads, publishes, follows changes.
//! - [`report`]: what `egress validate` prints.

mod default_config;
mod document;
mod field;
#[cfg(test)]
mod fields;
pub mod follow;
mod header;
mod istio;
pub mod mesh;
mod objects;
pub mod problem;
pub mod proxy_headers;
pub mod report;
pub mod snapshot;
mod source;
#[cfg(test)]
mod tests;
mod validate;

use std::{
    collections::BTreeSet,
    io,
    path::{Path, PathBuf},
};

pub use document::Document;
pub use follow::start;

use document::Defaults;
use mesh::MeshConfig;
use objects::InEffect;
use problem::{Problem, Severity};
use source::files::{self, FileProblem, Scan};

use crate::routing::table::{Objects, Role};

/// Where the configuration is and whom it is for.
#[derive(Debug, Clone)]
pub struct ConfigSettings {
    /// Files and directories (`--config`).
    pub paths: Vec<PathBuf>,
    /// `--mesh-config`.
    pub mesh_config: Option<PathBuf>,
    /// Namespace of objects that carry none.
    pub default_namespace: String,
    /// Which proxy the routing table is compiled for.
    pub role: Role,
}

/// Why there is no configuration at all. Bad documents are not among the reasons.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// A path of the settings cannot be read.
    #[error("configuration {} cannot be read", path.display())]
    Unreadable {
        /// The path.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The mesh configuration is wrong; running on its defaults could open what it closes.
    #[error("mesh configuration is invalid: {problem}")]
    MeshConfig {
        /// The first error.
        problem: Box<Problem>,
    },
    /// Changes of the files cannot be followed.
    #[error("configuration cannot be watched")]
    Watch {
        /// Why.
        source: notify::Error,
    },
    /// A report cannot be written.
    #[error("the report cannot be written")]
    Write {
        /// Why.
        source: io::Error,
    },
}

/// The outcome of reading everything once.
#[derive(Debug)]
pub struct Loaded {
    /// Every document, sorted by file and line.
    pub documents: Vec<Document>,
    /// The valid objects.
    pub objects: Objects,
    /// Mesh-wide settings; the default when none or a wrong one is given.
    pub mesh: MeshConfig,
    /// Findings of the mesh configuration.
    pub mesh_problems: Vec<Problem>,
}

impl Loaded {
    /// All findings: of the mesh configuration, then by document.
    pub fn problems(&self) -> impl Iterator<Item = &Problem> {
        let of_documents = self.documents.iter().flat_map(|d| &d.findings);
        self.mesh_problems.iter().chain(of_documents)
    }
}

/// Reads and checks everything once, without following changes.
///
/// # Errors
/// When a path cannot be read. Bad documents are findings, not errors; so is a bad mesh
/// configuration.
pub fn load(settings: &ConfigSettings) -> Result<Loaded, ConfigError> {
    let (mesh, mesh_problems) = match &settings.mesh_config {
        Some(path) => read_mesh(path).map_err(|source| ConfigError::Unreadable {
            path: path.clone(),
            source,
        })?,
        None => (Some(MeshConfig::default()), Vec::new()),
    };
    let mesh = mesh.unwrap_or_default();
    let scan = files::scan(&settings.paths);
    let mut read = read_documents(scan, &settings.default_namespace, &mesh);
    if let Some((path, source)) = read.unreadable.pop() {
        return Err(ConfigError::Unreadable { path, source });
    }
    let live = InEffect::next(&InEffect::default(), &mut read.documents, &BTreeSet::new());
    let objects = live.objects(&mesh);
    objects::report_references(&objects, &mut read.documents);
    Ok(Loaded {
        documents: read.documents,
        objects,
        mesh,
        mesh_problems,
    })
}

/// The mesh configuration in a file, `None` when it has errors.
fn read_mesh(path: &Path) -> io::Result<(Option<MeshConfig>, Vec<Problem>)> {
    match files::read_text(path) {
        Ok(text) => Ok(mesh::parse(path, &text)),
        Err(FileProblem::Unreadable(error)) => Err(error),
        Err(FileProblem::NotUtf8 { line }) => {
            let document = Document::unreadable(path, line, NOT_UTF8.to_owned());
            Ok((None, document.findings))
        }
    }
}

const NOT_UTF8: &str = "is not UTF-8 text";

/// Documents of the configured paths, parsed and validated one by one.
struct ReadDocuments {
    documents: Vec<Document>,
    unreadable: Vec<(PathBuf, io::Error)>,
}

fn read_documents(scan: Scan, namespace: &str, mesh: &MeshConfig) -> ReadDocuments {
    let read = files::read(&scan);
    let defaults = Defaults { namespace, mesh };
    let mut documents = Vec::new();
    let mut unreadable = scan.unreadable;
    for (path, outcome) in read {
        match outcome {
            Ok(raw) => {
                documents.extend(raw.iter().flat_map(|raw| document::parse(raw, defaults)));
            }
            Err(FileProblem::NotUtf8 { line }) => {
                documents.push(Document::unreadable(&path, line, NOT_UTF8.to_owned()));
            }
            Err(FileProblem::Unreadable(error)) => unreadable.push((path, error)),
        }
    }
    ReadDocuments {
        documents,
        unreadable,
    }
}

/// Whether some problem is an error.
fn has_error(problems: &[Problem]) -> bool {
    problems.iter().any(|p| p.severity == Severity::Error)
}
