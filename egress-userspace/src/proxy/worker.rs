// SPDX-License-Identifier: Apache-2.0
//! Proxy threads: each with its own runtime, listeners and pool. Binding, accepting, following the
//! ports of the configuration, draining. Knows nothing of what a connection carries.

use std::{
    collections::{BTreeMap, HashMap},
    fmt, io,
    net::{IpAddr, SocketAddr},
    sync::Arc,
    thread,
    time::Duration,
};

use nix::libc;
use tokio::{
    net::TcpListener,
    sync::{Semaphore, mpsc, watch},
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use super::{
    access_log::Recorder,
    connection::{self, MAX_MIRRORED, Worker},
    inside::{self, InPod, Inside},
    open::{Connections, OpenConnections},
    proxy_protocol::Trusted,
};
use crate::{
    config::snapshot::Snapshot,
    kernel::original_dst::Capture,
    latest::Latest,
    listen,
    upstream::resolve::{AddressBook, OnDemand},
};

/// Wait after running out of file descriptors; accepting again at once would spin.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// How often idle upstream connections that have been closed leave the pool.
const SWEEP: Duration = Duration::from_secs(10);

/// Takes what the kernel recorded of a connection: by the pod whose namespace the listener is in,
/// and the connection's local and peer address.
pub type Originals =
    Arc<dyn Fn(Option<u64>, SocketAddr, SocketAddr) -> Option<Capture> + Send + Sync>;

/// The listener that a connection came in by.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Entrance {
    /// The Gateway server's port that it stands for; its own port on a node.
    pub server_port: u16,
    /// Cookie of the pod's network namespace that it is in; `None`: the proxy's own.
    pub pod: Option<u64>,
}

/// Where accepted sockets come from.
#[derive(Clone)]
pub enum Downstream {
    /// Redirected by the kernel, which knows their original destination.
    Mesh(Originals),
    /// Meant for this gateway; of some clients it believes whom they speak for.
    Gateway(Trusted),
}

impl fmt::Debug for Downstream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Mesh(_) => "Mesh",
            Self::Gateway(_) => "Gateway",
        })
    }
}

/// How a proxy runs.
#[derive(Debug, Clone)]
pub struct ProxySettings {
    /// Where it listens.
    pub listen: Listen,
    /// How long open connections may finish.
    pub drain_time: Duration,
    /// Hosts whose connections begin with a PROXY protocol header; in lower case.
    pub proxy_protocol_to: Arc<[String]>,
}

/// Where a proxy listens.
#[derive(Debug, Clone)]
pub enum Listen {
    /// On fixed addresses.
    Fixed(Vec<SocketAddr>),
    /// On the server ports of the configuration.
    ServerPorts {
        /// Addresses to bind.
        bind: Vec<IpAddr>,
        /// Server port → listen port, where they differ.
        map: BTreeMap<u16, u16>,
    },
}

/// A proxy cannot start.
#[derive(Debug, thiserror::Error)]
pub enum ProxyError {
    /// An address cannot be bound.
    #[error("listening on {address}")]
    Bind {
        /// The address.
        address: SocketAddr,
        /// Why.
        source: io::Error,
    },
    /// A thread or its runtime cannot be made.
    #[error("starting a proxy thread")]
    Thread {
        /// Why.
        source: io::Error,
    },
}

/// What the workers follow.
#[derive(Debug, Clone)]
pub struct Feeds {
    /// Configuration in force.
    pub snapshots: watch::Receiver<Arc<Snapshot>>,
    /// Addresses of names.
    pub addresses: watch::Receiver<Arc<AddressBook>>,
    /// Where to ask for more names.
    pub on_demand: Arc<OnDemand>,
}

/// How a proxy is told to end.
#[derive(Debug, Clone)]
pub struct Stop {
    /// Stop accepting and finish.
    pub drain: CancellationToken,
    /// Stop waiting for open connections.
    pub now: CancellationToken,
}

/// Running proxy threads.
#[derive(Debug)]
pub struct Proxy {
    threads: Vec<thread::JoinHandle<()>>,
    inside: Inside,
    connections: Connections,
}

impl Proxy {
    /// Binds every listener, then starts the threads; an address that cannot be bound is an error
    /// of the start. There is one thread for each recorder. `stop` ends it.
    ///
    /// # Errors
    /// When an address cannot be bound or a thread not started.
    pub fn start(
        settings: &ProxySettings,
        feeds: &Feeds,
        downstream: &Downstream,
        recorders: Vec<Recorder>,
        stop: &Stop,
    ) -> Result<Self, ProxyError> {
        let first = feeds.snapshots.borrow().clone();
        let mut prepared = Vec::with_capacity(recorders.len());
        for recorder in recorders {
            let mut listeners = BTreeMap::new();
            for (address, port) in wanted(&settings.listen, &first) {
                if prepared.is_empty() {
                    probe(address)?;
                }
                listeners.insert((address, port), bind(address)?);
            }
            prepared.push((recorder, listeners));
        }
        let mut threads = Vec::with_capacity(prepared.len());
        let mut workers = Vec::with_capacity(prepared.len());
        let mut lists = Vec::with_capacity(prepared.len());
        for (index, (recorder, listeners)) in prepared.into_iter().enumerate() {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()
                .map_err(|source| ProxyError::Thread { source })?;
            let (sender, pods) = mpsc::unbounded_channel();
            workers.push(sender);
            let open = OpenConnections::default();
            lists.push(open.clone());
            let worker = Arc::new(Worker {
                downstream: downstream.clone(),
                snapshots: Latest::new(feeds.snapshots.clone()),
                addresses: Latest::new(feeds.addresses.clone()),
                on_demand: feeds.on_demand.clone(),
                pool: Arc::default(),
                mirroring: Arc::new(Semaphore::new(MAX_MIRRORED)),
                proxy_protocol_to: settings.proxy_protocol_to.clone(),
                recorder,
                open,
                tasks: TaskTracker::new(),
                drain: stop.drain.clone(),
            });
            let follows = Follows {
                settings: settings.clone(),
                snapshots: feeds.snapshots.clone(),
                pods,
                cut: stop.now.clone(),
            };
            let thread = thread::Builder::new()
                .name(format!("proxy-{index}"))
                .spawn(move || runtime.block_on(run(worker, listeners, follows)))
                .map_err(|source| ProxyError::Thread { source })?;
            threads.push(thread);
        }
        Ok(Self {
            threads,
            inside: Inside::new(workers),
            connections: Connections::new(lists),
        })
    }

    /// Where listeners inside pods go.
    pub fn inside(&self) -> Inside {
        self.inside.clone()
    }

    /// The connections of clients that are open.
    pub fn connections(&self) -> Connections {
        self.connections.clone()
    }

    /// Waits until every thread has ended: at most for the drain time, less when `now` is
    /// cancelled. Blocks.
    pub fn join(self) {
        for thread in self.threads {
            if thread.join().is_err() {
                tracing::error!("a proxy thread panicked");
            }
        }
    }
}

type Listeners = BTreeMap<(SocketAddr, u16), std::net::TcpListener>;

/// Addresses to listen on, each with the port that rules see.
fn wanted(listen: &Listen, snapshot: &Snapshot) -> Vec<(SocketAddr, u16)> {
    match listen {
        Listen::Fixed(addresses) => addresses.iter().map(|a| (*a, a.port())).collect(),
        Listen::ServerPorts { bind, map } => snapshot
            .table
            .gateway_ports()
            .into_iter()
            .flat_map(|(server, _)| {
                let port = map.get(&server).copied().unwrap_or(server);
                bind.iter()
                    .map(move |ip| (SocketAddr::new(*ip, port), server))
            })
            .collect(),
    }
}

fn probe(address: SocketAddr) -> Result<SocketAddr, ProxyError> {
    listen::probe(address).map_err(|source| ProxyError::Bind { address, source })
}

fn bind(address: SocketAddr) -> Result<std::net::TcpListener, ProxyError> {
    listen::listen(address).map_err(|source| ProxyError::Bind { address, source })
}

/// What a worker thread follows while it runs.
struct Follows {
    settings: ProxySettings,
    snapshots: watch::Receiver<Arc<Snapshot>>,
    pods: mpsc::UnboundedReceiver<InPod>,
    cut: CancellationToken,
}

/// One worker thread: accepts until the drain, then waits for its tasks up to the deadline.
async fn run(worker: Arc<Worker>, first: Listeners, follows: Follows) {
    let Follows {
        settings,
        mut snapshots,
        mut pods,
        cut,
    } = follows;
    let mut accepting = BTreeMap::new();
    for (key, listener) in first {
        let entrance = Entrance {
            server_port: key.1,
            pod: None,
        };
        if let Some(stop) = start_accepting(&worker, listener, entrance) {
            accepting.insert(key, stop);
        }
    }
    let mut in_pods = HashMap::new();
    let mut sweep = tokio::time::interval(SWEEP);
    loop {
        tokio::select! {
            () = worker.drain.cancelled() => break,
            changed = snapshots.changed() => {
                if changed.is_err() {
                    worker.drain.cancelled().await;
                    break;
                }
                let snapshot = snapshots.borrow_and_update().clone();
                follow(&worker, &settings.listen, &snapshot, &mut accepting);
            }
            Some(change) = pods.recv() => {
                inside::follow(&worker, change, &mut in_pods, settings.drain_time);
            }
            _ = sweep.tick() => worker.pool.sweep(),
        }
    }
    drop(in_pods);
    drop(accepting);
    worker.pool.close();
    worker.tasks.close();
    let deadline = tokio::time::timeout(settings.drain_time, worker.tasks.wait());
    tokio::select! {
        finished = deadline => {
            if finished.is_err() {
                tracing::warn!(open = worker.tasks.len(), "drain time is over: closing what is open");
            }
        }
        () = cut.cancelled() => {}
    }
}

/// Opens and closes listeners so that they are those of the snapshot. Connections of a closed
/// listener go on.
fn follow(
    worker: &Arc<Worker>,
    listen: &Listen,
    snapshot: &Snapshot,
    accepting: &mut BTreeMap<(SocketAddr, u16), CancellationToken>,
) {
    let wanted = wanted(listen, snapshot);
    accepting.retain(|key, stop| {
        let keep = wanted.contains(key);
        if !keep {
            stop.cancel();
        }
        keep
    });
    for key in wanted {
        if accepting.contains_key(&key) {
            continue;
        }
        match bind(key.0) {
            Ok(listener) => {
                let entrance = Entrance {
                    server_port: key.1,
                    pod: None,
                };
                if let Some(stop) = start_accepting(worker, listener, entrance) {
                    accepting.insert(key, stop);
                }
            }
            Err(error) => tracing::error!(
                address = %key.0,
                error = %std::error::Error::source(&error).map(ToString::to_string).unwrap_or_default(),
                "cannot listen on a server port of the configuration"
            ),
        }
    }
}

fn start_accepting(
    worker: &Arc<Worker>,
    listener: std::net::TcpListener,
    entrance: Entrance,
) -> Option<CancellationToken> {
    let stop = worker.drain.child_token();
    // Connections of the proxy's own listeners end by themselves.
    let cut = CancellationToken::new();
    accept_until(worker, listener, entrance, stop.clone(), cut).then_some(stop)
}

/// False, and logged, when the runtime cannot watch the listener.
pub(super) fn accept_until(
    worker: &Arc<Worker>,
    listener: std::net::TcpListener,
    entrance: Entrance,
    stop: CancellationToken,
    cut: CancellationToken,
) -> bool {
    match TcpListener::from_std(listener) {
        Ok(listener) => {
            let accepting = worker.clone();
            worker
                .tasks
                .spawn(async move { accept(accepting, listener, entrance, (stop, cut)).await });
            true
        }
        Err(error) => {
            tracing::error!(?entrance, %error, "cannot listen");
            false
        }
    }
}

async fn accept(
    worker: Arc<Worker>,
    listener: TcpListener,
    entrance: Entrance,
    (stop, cut): (CancellationToken, CancellationToken),
) {
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            () = stop.cancelled() => return,
        };
        match accepted {
            Ok((stream, remote)) => {
                let (serving, cut) = (worker.clone(), cut.clone());
                let serve = connection::serve(serving, stream, remote, entrance, cut);
                worker.tasks.spawn(serve);
            }
            Err(error) if out_of_descriptors(&error) => {
                tracing::warn!(%error, "cannot accept: pausing");
                worker.recorder.connection_refused("out_of_descriptors");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
            // The peer left between SYN and accept.
            Err(error) => tracing::debug!(%error, "accept failed"),
        }
    }
}

fn out_of_descriptors(error: &io::Error) -> bool {
    matches!(
        error.raw_os_error(),
        Some(libc::EMFILE | libc::ENFILE | libc::ENOBUFS | libc::ENOMEM)
    )
}
