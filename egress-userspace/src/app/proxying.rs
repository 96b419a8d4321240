// SPDX-License-Identifier: Apache-2.0
//! What node and gateway have in common: the control runtime; configuration, resolver and access
//! log, started first; the drain, last.

use std::{path::PathBuf, sync::Arc, time::Duration};

use anyhow::Context;
use tokio::sync::watch;

use crate::{
    cli::ProxyArgs,
    config::{self, ConfigSettings, snapshot::Snapshot},
    control::{Admin, AdminState, Readiness},
    kernel::names_to_capture,
    proxy::{
        Connections, Proxy,
        access_log::{AccessLog, Destination, Format},
        worker::{Feeds, Stop},
    },
    routing::table::Role,
    settings,
    shutdown::Shutdown,
    upstream::resolve::{AddressBook, ResolveSettings, Resolver},
};

/// How long start-up waits for the first answer to every name. After it the program is ready
/// anyway: one dead name must not keep it from serving the others.
const FIRST_ANSWERS: Duration = Duration::from_secs(3);

/// The parts that both roles start first.
pub struct Foundation {
    /// Asked for by signals and by the admin server.
    pub shutdown: Shutdown,
    /// Validated configuration as it arrives, not yet in force.
    pub candidates: watch::Receiver<Arc<Snapshot>>,
    /// What the workers use.
    pub published: watch::Sender<Arc<Snapshot>>,
    /// Addresses of every name.
    pub book: watch::Receiver<Arc<AddressBook>>,
    /// Where lines and metrics go.
    pub access_log: AccessLog,
    /// What is still to be waited for.
    pub readiness: watch::Sender<Readiness>,
    names: watch::Sender<Vec<String>>,
    resolver: Resolver,
}

/// The control runtime: configuration, resolver, admin server, kernel maps. One thread; nothing on
/// the request path runs here.
///
/// # Errors
/// When the operating system refuses it.
pub fn control_runtime() -> anyhow::Result<tokio::runtime::Runtime> {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("starting the control runtime")
}

impl Foundation {
    /// Reads the configuration, resolves its names, opens the access log.
    ///
    /// # Errors
    /// When a file, the resolver or the log cannot be used.
    pub async fn start(args: &ProxyArgs, role: Role) -> anyhow::Result<Self> {
        let (shutdown, reload) = Shutdown::on_signals().context("installing signal handlers")?;
        let config = ConfigSettings {
            paths: args.config.config.clone(),
            mesh_config: args.config.mesh_config.clone(),
            default_namespace: args.config.default_namespace.clone(),
            role,
        };
        let stop = shutdown.drain.clone();
        let candidates = config::start(config, reload, stop.clone())?;
        let first = candidates.borrow().clone();
        let (names, wanted) = watch::channel(names(&first));
        let settings = ResolveSettings {
            failure_retry: first.mesh.dns_refresh_rate,
            ..ResolveSettings::default()
        };
        let resolver = Resolver::start(settings::dns_servers(args), wanted, settings, stop)?;
        let format = Format::from_mesh(&first.mesh).context("meshConfig.accessLogFormat")?;
        let access_log = AccessLog::start(log_destination(&args.access_log), format)?;
        let (published, _) = watch::channel(first);
        let (readiness, _) = watch::channel(Readiness {
            waiting_for: vec!["the program is starting".to_owned()],
        });
        let book = resolver.book();
        Ok(Self {
            shutdown,
            candidates,
            published,
            book,
            access_log,
            readiness,
            names,
            resolver,
        })
    }

    /// How proxy threads are told to end.
    pub fn stop(&self) -> Stop {
        Stop {
            drain: self.shutdown.drain.clone(),
            now: self.shutdown.now.clone(),
        }
    }

    /// What proxy threads follow.
    pub fn feeds(&self) -> Feeds {
        Feeds {
            snapshots: self.published.subscribe(),
            addresses: self.book.clone(),
            on_demand: self.resolver.on_demand(),
        }
    }

    /// Starts the admin server over the common parts; `complete` adds what the role has.
    ///
    /// # Errors
    /// When its address cannot be bound.
    pub async fn admin(
        &self,
        args: &ProxyArgs,
        role: &'static str,
        set_log_filter: super::logging::SetFilter,
        complete: impl FnOnce(&mut AdminState),
    ) -> anyhow::Result<Admin> {
        let mut state = AdminState {
            role,
            started: std::time::Instant::now(),
            workers: settings::workers(args),
            access_log: self.access_log.clone(),
            snapshot: self.published.subscribe(),
            book: self.book.clone(),
            resolutions: self.resolver.counters(),
            readiness: self.readiness.subscribe(),
            kernel: None,
            workloads: Arc::new(Vec::new),
            connections: Connections::default(),
            drain: self.shutdown.drain.clone(),
            set_log_filter,
        };
        complete(&mut state);
        // Ends after the drain: readiness and metrics are of use until then.
        let stop = self.shutdown.ended.clone();
        Ok(Admin::start(args.admin, state, stop).await?)
    }

    /// Waits for the first answer to every name, within limits.
    pub async fn first_answers(&self) {
        if !self.resolver.first_answers(FIRST_ANSWERS).await {
            tracing::warn!(limit = ?FIRST_ANSWERS, "not every name has been answered; going on");
        }
    }

    /// Brings a snapshot into force: names first, so that they are being resolved; then the
    /// workers' table.
    pub fn publish(&self, snapshot: &Arc<Snapshot>) {
        self.names.send_replace(names(snapshot));
        match Format::from_mesh(&snapshot.mesh) {
            Ok(format) => self.access_log.set_format(format),
            Err(error) => tracing::error!(%error, "accessLogFormat not changed"),
        }
        self.published.send_replace(snapshot.clone());
    }

    /// Announces readiness, on stderr as the contract says and to the admin server.
    pub fn ready(&self, role: &str) {
        self.readiness.send_replace(Readiness::default());
        eprintln!("egress {role} ready");
    }

    /// Lets open connections finish and ends everything.
    pub async fn finish(self, proxy: Proxy, admin: Admin) {
        self.readiness.send_replace(Readiness {
            waiting_for: vec!["the program is draining".to_owned()],
        });
        let joined = tokio::task::spawn_blocking(move || proxy.join());
        if joined.await.is_err() {
            tracing::error!("waiting for the proxy threads failed");
        }
        self.access_log.close();
        self.shutdown.ended.cancel();
        admin.stopped().await;
        self.resolver.stopped().await;
    }
}

fn names(snapshot: &Snapshot) -> Vec<String> {
    let mut names = snapshot.table.names_to_resolve();
    if *snapshot.table.role() == Role::Mesh {
        names.extend(names_to_capture(snapshot.table.objects()));
        names.sort();
        names.dedup();
    }
    names
}

fn log_destination(text: &str) -> Destination {
    match text {
        "-" => Destination::Stdout,
        "off" => Destination::Off,
        path => Destination::File(PathBuf::from(path)),
    }
}
