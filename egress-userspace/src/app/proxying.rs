// SPDX-License-Identifier: Apache-2.0
//! What node and gateway have in common: the control runtime, configuration, resolver, access log.
//! Also the loop that keeps the workers' snapshot in step with what a role must do before and
//! after it (the node: kernel maps).

use std::{sync::Arc, time::Duration};

use anyhow::Context;
use tokio::sync::watch;

use crate::{
    cli::ProxyArgs,
    config::{self, ConfigSettings, snapshot::Snapshot},
    control::metrics,
    proxy::access_log::{AccessLog, Recorder, Sink},
    routing::table::Role,
    settings,
    shutdown::Shutdown,
    upstream::resolve::{AddressBook, Resolver, ResolverSettings},
};

/// How long start-up waits for the first answer to every name. After it the program is ready
/// anyway: one dead name must not keep a node from serving the others.
const FIRST_ANSWERS: Duration = Duration::from_secs(3);

/// The parts that both roles start first.
pub struct Foundation {
    /// Validated configuration as it arrives; not yet in force.
    pub candidates: watch::Receiver<Arc<Snapshot>>,
    /// What the workers use; the role sends to it.
    pub published: watch::Sender<Arc<Snapshot>>,
    /// Addresses of every name.
    pub book: watch::Receiver<Arc<AddressBook>>,
    /// Names to resolve; the role sends to it.
    pub names: watch::Sender<Vec<String>>,
    /// The access log's writer.
    pub access_log: AccessLog,
    /// One per worker.
    pub recorders: Vec<Recorder>,
}

/// The control runtime: configuration, resolver, admin server, kernel maps. One thread; nothing on
/// the request path runs here.
///
/// # Errors
/// When the operating system refuses it.
pub fn control_runtime() -> anyhow::Result<tokio::runtime::Runtime> {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .thread_name("control")
        .build()
        .context("starting the control runtime")
}
