// SPDX-License-Identifier: Apache-2.0
//! What the admin server may read and do, filled in by `app`.

use std::{fmt, sync::Arc, time::Instant};

use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::{
    config::snapshot::Snapshot,
    proxy::{Connections, access_log::AccessLog},
    upstream::resolve::{AddressBook, ResolveCounters},
};

/// What has to happen before the process is ready; nothing left means ready.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Readiness {
    /// One sentence each (`programs are not attached yet`).
    pub waiting_for: Vec<String>,
}

impl Readiness {
    /// Whether nothing is left to wait for.
    pub fn is_ready(&self) -> bool {
        self.waiting_for.is_empty()
    }
}

/// The kernel half at one moment.
#[derive(Debug, Clone, Default)]
pub struct KernelState {
    /// Attached programs, with what they are attached to (`egress_connect4 on /sys/fs/cgroup/x`).
    pub programs: Vec<String>,
    /// `(program, outcome, count)`, counts since the maps were made.
    pub outcomes: Vec<(&'static str, &'static str, u64)>,
    /// Why the maps are not what the configuration asks for; `None`: they are.
    pub problem: Option<String>,
    /// What happens to external destinations that are not registered, by default.
    pub outbound_policy: &'static str,
    /// `(name, present, what its lack means)` of what kernels may lack.
    pub features: Vec<(&'static str, bool, &'static str)>,
    /// Pods known.
    pub pods: usize,
    /// Pods whose connections the kernel redirects to the proxy inside.
    pub pods_listening: usize,
    /// Labels and counts of `egress_denials_total`.
    pub denied: Vec<([(&'static str, String); 4], u64)>,
    /// The last denials that were logged, oldest first.
    pub denials: Vec<Denial>,
}

/// One thing that the kernel refused.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Denial {
    /// `NAMESPACE/NAME`; `-` when unknown.
    pub workload: String,
    /// Its cgroup, relative to the mount.
    pub cgroup: String,
    /// Its pid in the initial pid namespace; 0 for packets.
    pub pid: u32,
    /// A registered name of the destination, when there is one.
    pub host: Option<String>,
    /// Address and port.
    pub destination: String,
    /// `tcp`, `udp`, `icmp`, ... or the IP protocol's number.
    pub protocol: String,
    /// The kernel program that refused it, as in `egress_kernel_outcomes_total`.
    pub hook: String,
    /// The outcome, as there.
    pub reason: String,
    /// What would allow it.
    pub remedy: String,
}

/// Something that is read when it is asked for.
pub type Source<T> = Arc<dyn Fn() -> T + Send + Sync>;

/// Takes a filter in `tracing`'s syntax; the error says what is wrong with it.
pub type SetLogFilter = dyn Fn(&str) -> Result<(), String> + Send + Sync;

/// Everything the admin server shows and can set off. Cheap to clone.
#[derive(Clone)]
pub struct AdminState {
    /// `node` or `gateway`.
    pub role: &'static str,
    /// When the process started.
    pub started: Instant,
    /// Number of proxy threads.
    pub workers: usize,
    /// For Istio's metrics and the log's own.
    pub access_log: AccessLog,
    /// Configuration in effect.
    pub snapshot: watch::Receiver<Arc<Snapshot>>,
    /// Addresses in effect.
    pub book: watch::Receiver<Arc<AddressBook>>,
    /// Resolutions by result.
    pub resolutions: Arc<ResolveCounters>,
    /// Readiness.
    pub readiness: watch::Receiver<Readiness>,
    /// `None` on a gateway, which has no kernel half.
    pub kernel: Option<Source<KernelState>>,
    /// Workloads known on this node, one JSON object each.
    pub workloads: Source<Vec<serde_json::Value>>,
    /// Open connections of clients.
    pub connections: Connections,
    /// Cancelled by `POST /drain`; whoever listens stops accepting and ends.
    pub drain: CancellationToken,
    /// Sets the program's own log filter; the error is shown to the caller.
    pub set_log_filter: Arc<SetLogFilter>,
}

impl fmt::Debug for AdminState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AdminState")
            .field("role", &self.role)
            .field("workers", &self.workers)
            .finish_non_exhaustive()
    }
}
