// SPDX-License-Identifier: Apache-2.0
//! Which version of each object is in effect: the newest good one.
//!
//! Takes the documents of one load and what was in effect before; yields the objects for routing
//! in Istio's order. Does no I/O.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::{Path, PathBuf},
    sync::Arc,
};

use super::{
    document::{Document, Object},
    mesh::MeshConfig,
    problem::Severity,
    validate::{Finding, references},
};
use crate::routing::{service::Origin, table::Objects};

/// Kind, namespace, name.
type Key = (String, String, String);

/// One object in effect.
#[derive(Debug, Clone)]
pub(super) struct Live {
    origin: Arc<Origin>,
    content: u64,
    object: Object,
}

/// The objects in effect.
#[derive(Debug, Clone, Default)]
pub(super) struct InEffect(BTreeMap<Key, Live>);

/// What identifies the content of [`InEffect`]: equal fingerprints are equal configurations.
pub(super) type Fingerprint = Vec<(PathBuf, u64, u64)>;

fn key(document: &Document) -> Key {
    let origin = &document.origin;
    (
        document.kind.clone(),
        origin.namespace.clone(),
        origin.name.clone(),
    )
}

impl InEffect {
    /// The objects after a load of `documents`. A rejected object keeps its version of `before`;
    /// so do the objects of files in `unreadable` (files, or directories that hold them) and of
    /// files with a document that does not tell what it is, unless they are written anew. Marks
    /// second definitions of an object as errors.
    pub(super) fn next(
        before: &Self,
        documents: &mut [Document],
        unreadable: &BTreeSet<PathBuf>,
    ) -> Self {
        reject_duplicates(documents);
        let mut live = BTreeMap::new();
        let mut named = BTreeSet::new();
        let mut anonymous: BTreeSet<&Path> = BTreeSet::new();
        for document in documents.iter() {
            let key = key(document);
            match &document.object {
                Some(object) => {
                    let entry = Live {
                        origin: Arc::clone(&document.origin),
                        content: document.content,
                        object: object.clone(),
                    };
                    live.insert(key.clone(), entry);
                }
                None if document.accepted() => {}
                None if key.0.is_empty() || key.2.is_empty() => {
                    anonymous.insert(&document.origin.file);
                }
                None => {
                    if let Some(entry) = before.0.get(&key)
                        && !live.contains_key(&key)
                    {
                        live.insert(key.clone(), entry.clone());
                    }
                }
            }
            named.insert(key);
        }
        for (key, entry) in &before.0 {
            let file = entry.origin.file.as_path();
            let kept =
                anonymous.contains(file) || unreadable.iter().any(|path| file.starts_with(path));
            if kept && !named.contains(key) {
                live.insert(key.clone(), entry.clone());
            }
        }
        Self(live)
    }

    /// The objects for routing, in Istio's order: creation time, name, namespace
    /// (istio-egress.md 0.5). Objects without a time come first, as the zero time does in Istio.
    pub(super) fn objects(&self, mesh: &MeshConfig) -> Objects {
        let mut ordered: Vec<&Live> = self.0.values().collect();
        ordered.sort_by(|a, b| {
            let order = |live: &Live| {
                let origin = &live.origin;
                (
                    origin.created.clone(),
                    origin.name.clone(),
                    origin.namespace.clone(),
                )
            };
            order(a).cmp(&order(b))
        });
        let mut objects = Objects {
            mesh: mesh.routing.clone(),
            ..Objects::default()
        };
        for live in ordered {
            match &live.object {
                Object::ServiceEntry(services) => {
                    objects.services.extend(services.iter().cloned());
                }
                Object::Gateway(gateway) => objects.gateways.push(Arc::clone(gateway)),
                Object::VirtualService(vs) => objects.virtual_services.push(Arc::clone(vs)),
                Object::DestinationRule(rule) => objects.destination_rules.push(Arc::clone(rule)),
                Object::Sidecar(sidecar) => objects.sidecars.push(Arc::clone(sidecar)),
            }
        }
        objects
    }

    /// File, line and content of every object.
    pub(super) fn fingerprint(&self) -> Fingerprint {
        self.0
            .values()
            .map(|live| (live.origin.file.clone(), live.origin.line, live.content))
            .collect()
    }
}

/// An object may be written once; which of two applies would depend on file names.
fn reject_duplicates(documents: &mut [Document]) {
    let mut first: BTreeMap<Key, Arc<Origin>> = BTreeMap::new();
    for document in documents.iter_mut() {
        if document.origin.kind.is_empty() || document.origin.name.is_empty() {
            continue;
        }
        let earlier = first
            .entry(key(document))
            .or_insert_with(|| Arc::clone(&document.origin));
        if Arc::ptr_eq(earlier, &document.origin) {
            continue;
        }
        let message = format!(
            "is defined twice: also in {}:{}; remove one of them",
            earlier.file.display(),
            earlier.line
        );
        document.object = None;
        document.report(Finding {
            severity: Severity::Error,
            field: Vec::new(),
            message,
        });
    }
}

/// Adds the findings between objects to the documents they are about. An object that runs in an
/// older version than its document gets none: its document has an error already.
pub(super) fn report_references(objects: &Objects, documents: &mut [Document]) {
    let mut by_origin: BTreeMap<*const Origin, Vec<Finding>> = BTreeMap::new();
    for (origin, finding) in references::check(objects) {
        by_origin
            .entry(Arc::as_ptr(&origin))
            .or_default()
            .push(finding);
    }
    for document in documents {
        for finding in by_origin
            .remove(&Arc::as_ptr(&document.origin))
            .unwrap_or_default()
        {
            document.report(finding);
        }
    }
}
