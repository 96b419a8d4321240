// SPDX-License-Identifier: Apache-2.0
//! Loads the configuration, publishes a snapshot, and follows changes until stopped.
//!
//! The last part of the config flow. A change never makes things worse than they were: objects
//! whose new text is bad, files that cannot be read and a bad mesh configuration keep their last
//! good version, and their problems are logged once and kept in the snapshot.

use std::{collections::BTreeSet, path::PathBuf, sync::Arc, time::Duration};

use tokio::{
    sync::{Notify, mpsc, watch},
    time::{Instant, timeout_at},
};
use tokio_util::sync::CancellationToken;

use super::{
    ConfigError, ConfigSettings,
    document::Document,
    has_error,
    mesh::MeshConfig,
    objects::{self, Fingerprint, InEffect},
    problem::{Problem, Severity},
    read_documents, read_mesh,
    snapshot::Snapshot,
    source::{
        files::{self, Scan},
        watch::Watch,
    },
};
use crate::routing::table::Table;

/// A change is applied when this long nothing else changed.
const QUIET: Duration = Duration::from_millis(100);
/// A change is applied at the latest after this, however busy the directory is.
const LONGEST_WAIT: Duration = Duration::from_millis(400);
/// How often a tree that changes while it is looked at is looked at again; a change after the
/// last look is an event.
const SCANS: usize = 8;

/// Loads the configuration and follows it on the current runtime: at changes of the files, and at
/// every message on `reload`. The receiver holds the first snapshot already. The task ends with
/// `stop`, or when every receiver is gone.
///
/// # Errors
/// When a path cannot be read or watched, or the mesh configuration is wrong. Bad documents are
/// not errors: the snapshot holds the good objects and the problems.
///
/// # Panics
/// Outside of a tokio runtime.
pub fn start(
    settings: ConfigSettings,
    mut reload: mpsc::Receiver<()>,
    stop: CancellationToken,
) -> Result<watch::Receiver<Arc<Snapshot>>, ConfigError> {
    let changed = Arc::new(Notify::new());
    let mut state = State::new(settings, &changed)?;
    let first = state.first()?;
    let (sender, receiver) = watch::channel(Arc::new(first));
    tokio::spawn(async move {
        loop {
            tokio::select! {
                () = stop.cancelled() => return,
                () = sender.closed() => return,
                () = changed.notified() => settle(&changed).await,
                // Without a sender only the files tell of changes.
                Some(()) = reload.recv() => settle(&changed).await,
            }
            // Reading and compiling take long with many objects; the runtime has other work.
            let reloaded = tokio::task::spawn_blocking(move || {
                let snapshot = state.reload();
                (state, snapshot)
            });
            let snapshot;
            (state, snapshot) = match reloaded.await {
                Ok(reloaded) => reloaded,
                // The runtime is shutting down.
                Err(_) => return,
            };
            if let Some(snapshot) = snapshot {
                sender.send_replace(Arc::new(snapshot));
            }
        }
    });
    Ok(receiver)
}

/// Waits until a burst of changes is over: nothing is read while it is being written.
async fn settle(changed: &Notify) {
    let latest = Instant::now() + LONGEST_WAIT;
    loop {
        let quiet = (Instant::now() + QUIET).min(latest);
        if timeout_at(quiet, changed.notified()).await.is_err() {
            return;
        }
    }
}

/// What is in effect, and what it is compared with.
struct State {
    settings: ConfigSettings,
    watch: Watch,
    mesh: Arc<MeshConfig>,
    live: InEffect,
    fingerprint: Fingerprint,
    problems: Vec<Problem>,
    version: u64,
}

impl State {
    fn new(settings: ConfigSettings, changed: &Arc<Notify>) -> Result<Self, ConfigError> {
        let named = settings
            .paths
            .iter()
            .chain(&settings.mesh_config)
            .cloned()
            .collect();
        let watch = Watch::new(named, Arc::clone(changed))
            .map_err(|source| ConfigError::Watch { source })?;
        Ok(Self {
            settings,
            watch,
            mesh: Arc::default(),
            live: InEffect::default(),
            fingerprint: Fingerprint::new(),
            problems: Vec::new(),
            version: 0,
        })
    }

    /// The first snapshot.
    fn first(&mut self) -> Result<Snapshot, ConfigError> {
        let mut scan = self
            .scan_and_watch()
            .map_err(|source| ConfigError::Watch { source })?;
        let mut read = files::read(&scan);
        files::refuse_unreadable(&mut scan, &mut read)?;
        if let Some(path) = &self.settings.mesh_config {
            let (mesh, problems) = read_mesh(path).map_err(|source| ConfigError::Unreadable {
                path: path.clone(),
                source,
            })?;
            let first = problems.into_iter().find(|p| p.severity == Severity::Error);
            match (mesh, first) {
                (Some(mesh), _) => self.mesh = Arc::new(mesh),
                (None, Some(problem)) => {
                    return Err(ConfigError::MeshConfig {
                        problem: Box::new(problem),
                    });
                }
                (None, None) => {}
            }
        }
        tracing::info!(
            namespace = %self.settings.default_namespace,
            "objects without a namespace are in the default namespace"
        );
        Ok(self.reload().unwrap_or_else(|| self.snapshot()))
    }

    /// Reads everything again; `None` when nothing is different.
    fn reload(&mut self) -> Option<Snapshot> {
        let scan = self.scan_and_watch().unwrap_or_else(|error| {
            tracing::warn!(%error, "configuration cannot be watched; send SIGHUP after changes");
            files::scan(&self.settings.paths)
        });
        let (mesh, mut problems) = self.read_mesh();
        let read = read_documents(scan, &self.settings.default_namespace, &mesh);
        let mut documents = read.documents;
        let mut unreadable: BTreeSet<PathBuf> = BTreeSet::new();
        for (path, error) in read.unreadable {
            let message = format!("cannot be read: {error}");
            problems.extend(Document::unreadable(&path, 1, message).findings);
            unreadable.insert(path);
        }
        let live = InEffect::next(&self.live, &mut documents, &unreadable);
        objects::report_references(&live.objects(&mesh), &mut documents);
        problems.extend(documents.into_iter().flat_map(|d| d.findings));
        problems.sort_by(|a, b| (&a.file, a.line).cmp(&(&b.file, b.line)));
        let fingerprint = live.fingerprint();
        let first = self.version == 0;
        let same = fingerprint == self.fingerprint && *mesh == *self.mesh;
        if !first && same && problems == self.problems {
            return None;
        }
        log_new(&self.problems, &problems);
        self.live = live;
        self.fingerprint = fingerprint;
        self.mesh = mesh;
        self.problems = problems;
        self.version += 1;
        let snapshot = self.snapshot();
        tracing::info!(
            version = snapshot.version,
            services = snapshot.table.objects().services.len(),
            gateways = snapshot.table.objects().gateways.len(),
            virtual_services = snapshot.table.objects().virtual_services.len(),
            problems = snapshot.problems.len(),
            "configuration loaded"
        );
        Some(snapshot)
    }

    /// What is there now, with everything of it watched.
    fn scan_and_watch(&mut self) -> Result<Scan, notify::Error> {
        let mut scan = files::scan(&self.settings.paths);
        for _ in 0..SCANS {
            self.watch.follow(&scan)?;
            // A directory may have appeared before its parent was watched.
            let again = files::scan(&self.settings.paths);
            let settled = again.directories == scan.directories && again.files == scan.files;
            scan = again;
            if settled {
                break;
            }
        }
        Ok(scan)
    }

    /// The mesh configuration to use: the last good one when the new one is bad.
    fn read_mesh(&self) -> (Arc<MeshConfig>, Vec<Problem>) {
        let Some(path) = &self.settings.mesh_config else {
            return (Arc::clone(&self.mesh), Vec::new());
        };
        match read_mesh(path) {
            Ok((Some(mesh), problems)) if !has_error(&problems) => (Arc::new(mesh), problems),
            Ok((_, problems)) => (Arc::clone(&self.mesh), problems),
            Err(error) => {
                let message = format!("cannot be read: {error}");
                let problems = Document::unreadable(path, 1, message).findings;
                (Arc::clone(&self.mesh), problems)
            }
        }
    }

    fn snapshot(&self) -> Snapshot {
        Snapshot {
            version: self.version,
            table: Table::build(self.live.objects(&self.mesh), self.settings.role.clone()),
            mesh: Arc::clone(&self.mesh),
            problems: self.problems.clone(),
        }
    }
}

/// Logs the problems that the last load did not have.
fn log_new(before: &[Problem], now: &[Problem]) {
    for problem in now.iter().filter(|problem| !before.contains(problem)) {
        let (file, line) = (problem.file.display(), problem.line);
        let Problem {
            kind,
            namespace,
            name,
            field,
            message,
            ..
        } = problem;
        match problem.severity {
            Severity::Error => {
                tracing::error!(%file, line, kind, namespace, name, field, "{message}");
            }
            Severity::Warning => {
                tracing::warn!(%file, line, kind, namespace, name, field, "{message}");
            }
        }
    }
}
