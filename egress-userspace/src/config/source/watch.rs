// SPDX-License-Identifier: Apache-2.0
//! Tells when configured files may have changed. Directories are watched, never files, so that
//! editors that replace a file and Kubernetes' swap of the `..data` link are seen.
//!
//! Says only "something changed"; the reader finds out what, by reading everything again.

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
};

use notify::{
    Event, EventKind, RecommendedWatcher, RecursiveMode, Watcher,
    event::{AccessKind, AccessMode},
};
use tokio::sync::Notify;

use super::files::Scan;

/// The watch on the configured paths.
#[derive(Debug)]
pub(in crate::config) struct Watch {
    watcher: RecommendedWatcher,
    watched: BTreeSet<PathBuf>,
    interest: Arc<Mutex<Interest>>,
    /// Paths named on the command line.
    named: Vec<PathBuf>,
}

/// Whose changes matter: a parent directory holds unrelated files too.
#[derive(Debug, Default)]
struct Interest {
    /// Everything below these.
    directories: BTreeSet<PathBuf>,
    /// Exactly these.
    paths: BTreeSet<PathBuf>,
}

impl Interest {
    fn covers(&self, path: &Path) -> bool {
        let atomic_swap = path
            .file_name()
            .is_some_and(|name| name.as_encoded_bytes().starts_with(b".."));
        let parent = path.parent().unwrap_or(path);
        atomic_swap || self.paths.contains(path) || self.directories.contains(parent)
    }
}

impl Watch {
    /// Watches nothing until [`Self::follow`]; `changed` gets a permit at each change.
    pub(in crate::config) fn new(
        named: Vec<PathBuf>,
        changed: Arc<Notify>,
    ) -> Result<Self, notify::Error> {
        let interest = Arc::new(Mutex::new(Interest::default()));
        let of_callback = Arc::clone(&interest);
        let watcher = notify::recommended_watcher(move |event: notify::Result<Event>| {
            let relevant = match &event {
                Ok(event) => {
                    let interest = of_callback.lock().unwrap_or_else(PoisonError::into_inner);
                    event.need_rescan()
                        || is_change(&event.kind)
                            && event.paths.iter().any(|path| interest.covers(path))
                }
                // Events may have been lost.
                Err(_) => true,
            };
            if relevant {
                changed.notify_one();
            }
        })?;
        Ok(Self {
            watcher,
            watched: BTreeSet::new(),
            interest,
            named,
        })
    }

    /// Watches what `scan` found. Every watch is made anew, since one on a directory that was
    /// replaced is dead without notice. The caller must scan again afterwards: what changed
    /// before this call is not reported.
    pub(in crate::config) fn follow(&mut self, scan: &Scan) -> Result<(), notify::Error> {
        let mut interest = Interest::default();
        let mut wanted = BTreeSet::new();
        for directory in &scan.directories {
            let directory = absolute(directory);
            interest.directories.insert(directory.clone());
            wanted.insert(directory);
        }
        for path in self.named.iter().chain(&scan.files) {
            // The place it is named by, and the place a link leads to.
            for path in [Some(absolute(path)), fs::canonicalize(path).ok()] {
                let Some(path) = path else { continue };
                wanted.extend(path.parent().map(Path::to_owned));
                interest.paths.insert(path);
            }
        }
        *self.interest.lock().unwrap_or_else(PoisonError::into_inner) = interest;
        for directory in std::mem::take(&mut self.watched) {
            // It may be gone, and its watch with it.
            let _ = self.watcher.unwatch(&directory);
        }
        for directory in wanted {
            match self.watcher.watch(&directory, RecursiveMode::NonRecursive) {
                Ok(()) => {
                    self.watched.insert(directory);
                }
                Err(_) if !directory.is_dir() => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }
}

fn absolute(path: &Path) -> PathBuf {
    std::path::absolute(path).unwrap_or_else(|_| path.to_owned())
}

/// Reading a file is an event too, and must not cause the next reading.
fn is_change(kind: &EventKind) -> bool {
    match kind {
        EventKind::Access(AccessKind::Close(AccessMode::Write)) => true,
        EventKind::Access(_) => false,
        _ => true,
    }
}
