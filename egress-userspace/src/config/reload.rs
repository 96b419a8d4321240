// SPDX-License-Identifier: Apache-2.0
//! From files to a stream of snapshots: reads, keeps the last good version of what has become bad,
//! compiles, publishes. A snapshot equal to the last is not published; problems are logged once for
//! each change.

use std::{
    collections::{HashMap, HashSet},
    path::PathBuf,
    sync::Arc,
    time::Duration,
};

use tokio::sync::{Notify, watch};
use tokio_util::sync::CancellationToken;

use super::{
    ConfigError, ConfigSettings,
    collection::{Identity, assemble, cross_check, reject_duplicates},
    mesh::{self, MeshConfig},
    object::{self, Defaults, Object},
    problem::{Problem, Severity},
    snapshot::Snapshot,
    source::{self, SourceFile},
};
use crate::routing::table::{Objects, Role, Table};

/// How long changes are gathered: an editor's save is several events.
const SETTLE: Duration = Duration::from_millis(100);

/// Everything that the files say now.
#[derive(Debug)]
pub struct Loaded {
    /// Every object of every document, sorted by file and line.
    pub objects: Vec<Object>,
    /// Findings that belong to no document: unreadable files, meshConfig warnings.
    pub other: Vec<Problem>,
    /// Mesh-wide settings.
    pub mesh: Arc<MeshConfig>,
    /// The model of what is valid.
    pub model: Objects,
}

/// Reads everything once.
///
/// # Errors
/// When a path does not exist or meshConfig is bad. Bad documents are findings, not errors.
pub fn load(settings: &ConfigSettings) -> Result<Loaded, ConfigError> {
    let files = source::read(&settings.paths)?;
    let mesh = match &settings.mesh_config {
        Some(path) => mesh::read(path)?,
        None => MeshConfig::default(),
    };
    Ok(understand(files, mesh, settings))
}

fn understand(files: Vec<SourceFile>, mesh: MeshConfig, settings: &ConfigSettings) -> Loaded {
    let defaults = Defaults {
        namespace: settings.default_namespace.clone(),
        service_export_to: mesh.service_export_to.clone(),
        virtual_service_export_to: mesh.virtual_service_export_to.clone(),
    };
    let mut objects = Vec::new();
    let mut other: Vec<Problem> = mesh
        .warnings
        .iter()
        .map(|(field, message)| Problem {
            severity: Severity::Warning,
            file: settings.mesh_config.clone().unwrap_or_default(),
            line: 1,
            kind: "MeshConfig".to_owned(),
            namespace: String::new(),
            name: String::new(),
            field: field.clone(),
            message: message.clone(),
        })
        .collect();
    for file in files {
        match file.content {
            Ok(documents) => {
                objects.extend(
                    documents
                        .into_iter()
                        .flat_map(|d| object::read(d, &defaults)),
                );
            }
            Err(message) => other.push(unreadable(file.path, message)),
        }
    }
    reject_duplicates(&mut objects);
    let model = assemble(objects.iter(), &mesh);
    cross_check(&mut objects, &model);
    Loaded {
        objects,
        other,
        mesh: Arc::new(mesh),
        model,
    }
}

fn unreadable(file: PathBuf, message: String) -> Problem {
    Problem {
        severity: Severity::Error,
        file,
        line: 1,
        kind: String::new(),
        namespace: String::new(),
        name: String::new(),
        field: String::new(),
        message,
    }
}

impl Loaded {
    /// All findings, sorted by file and line.
    pub fn problems(&self) -> Vec<Problem> {
        let mut problems: Vec<_> = self
            .objects
            .iter()
            .flat_map(|o| &o.problems)
            .chain(&self.other)
            .cloned()
            .collect();
        problems.sort_by(|a, b| (&a.file, a.line).cmp(&(&b.file, b.line)));
        problems
    }

    /// What decides whether a snapshot differs: the text of every document and meshConfig.
    fn fingerprint(&self) -> String {
        let documents: Vec<_> = self.objects.iter().map(|o| o.document.as_ref()).collect();
        format!("{documents:?}{:?}{:?}", self.other, self.mesh)
    }
}

/// Starts following the configuration; the first snapshot is in the channel at once. Ends with
/// `stop`. A `reload` rereads whether or not a change was seen.
///
/// # Errors
/// As [`load`], and when changes cannot be watched.
pub fn start(
    settings: ConfigSettings,
    reload: Arc<Notify>,
    stop: CancellationToken,
) -> Result<watch::Receiver<Arc<Snapshot>>, ConfigError> {
    let changed = Arc::new(Notify::new());
    let mut paths = settings.paths.clone();
    paths.extend(settings.mesh_config.clone());
    // Watch before reading, so that no change falls between the two.
    let watcher = source::watch(&paths, changed.clone())?;
    let mut keeper = Keeper::new(settings.role.clone());
    let first = load(&settings)?;
    if first
        .objects
        .iter()
        .any(|o| o.identified() && o.origin.namespace == settings.default_namespace)
    {
        tracing::info!(namespace = %settings.default_namespace, "objects without a namespace belong to");
    }
    let (sender, receiver) = watch::channel(keeper.next(first));
    tokio::spawn(async move {
        let _watcher = watcher;
        loop {
            tokio::select! {
                () = stop.cancelled() => return,
                () = changed.notified() => tokio::time::sleep(SETTLE).await,
                () = reload.notified() => {}
            }
            match load(&settings) {
                Ok(loaded) if !keeper.knows(&loaded) => {
                    sender.send_replace(keeper.next(loaded));
                }
                Ok(_) => {}
                Err(error) => keeper.report_once(&error),
            }
        }
    });
    Ok(receiver)
}

/// Remembers the last good version of every object.
struct Keeper {
    role: Role,
    version: u64,
    fingerprint: String,
    running: HashMap<Identity, Object>,
    last_error: String,
}

impl Keeper {
    fn new(role: Role) -> Self {
        Self {
            role,
            version: 0,
            fingerprint: String::new(),
            running: HashMap::new(),
            last_error: String::new(),
        }
    }

    fn knows(&self, loaded: &Loaded) -> bool {
        self.fingerprint == loaded.fingerprint()
    }

    /// A path that vanished or a bad meshConfig keeps everything as it was.
    fn report_once(&mut self, error: &ConfigError) {
        let text = chain(error);
        if text != self.last_error {
            tracing::error!(error = %text, "configuration not reloaded; the running one stays");
            self.last_error = text;
        }
    }

    /// The next snapshot: new valid objects, and running versions of those that have become bad.
    fn next(&mut self, loaded: Loaded) -> Arc<Snapshot> {
        self.fingerprint = loaded.fingerprint();
        self.last_error.clear();
        let problems = loaded.problems();
        log(&problems);
        let kept = self.kept(&loaded);
        let valid = loaded.objects.iter().filter(|o| o.value.is_some());
        let running: HashMap<_, _> = valid
            .filter(|o| o.identified())
            .chain(&kept)
            .map(|o| (o.identity(), o.clone()))
            .collect();
        let model = if kept.is_empty() {
            loaded.model
        } else {
            assemble(running.values(), &loaded.mesh)
        };
        self.running = running;
        self.version += 1;
        tracing::info!(
            version = self.version,
            services = model.services.len(),
            gateways = model.gateways.len(),
            virtual_services = model.virtual_services.len(),
            kept = kept.len(),
            "configuration loaded"
        );
        Arc::new(Snapshot {
            version: self.version,
            table: Table::build(model, self.role.clone()),
            mesh: loaded.mesh,
            problems,
        })
    }

    /// Running objects that the files no longer give in a valid form: rejected ones by identity,
    /// and, where a document cannot even be identified, whatever its file gave before.
    fn kept(&self, loaded: &Loaded) -> Vec<Object> {
        let valid: HashSet<_> = loaded
            .objects
            .iter()
            .filter(|o| o.value.is_some())
            .map(Object::identity)
            .collect();
        let rejected: HashSet<_> = loaded
            .objects
            .iter()
            .filter(|o| o.rejected())
            .map(Object::identity)
            .collect();
        let broken: HashSet<_> = loaded
            .objects
            .iter()
            .filter(|o| o.rejected() && !o.identified())
            .map(|o| &o.origin.file)
            .chain(
                loaded
                    .other
                    .iter()
                    .filter(|p| p.severity == Severity::Error)
                    .map(|p| &p.file),
            )
            .collect();
        self.running
            .iter()
            .filter(|(identity, object)| {
                !valid.contains(identity)
                    && (rejected.contains(identity) || broken.contains(&object.origin.file))
            })
            .map(|(_, object)| object.clone())
            .collect()
    }
}

fn log(problems: &[Problem]) {
    for problem in problems {
        match problem.severity {
            Severity::Error => tracing::error!(problem = %problem, "object rejected"),
            Severity::Warning => tracing::warn!(problem = %problem, "object loaded"),
        }
    }
}

fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text.push_str(": ");
        text.push_str(&cause.to_string());
        source = cause.source();
    }
    text
}
