// SPDX-License-Identifier: Apache-2.0
//! `egress node`: what starts and stops in which order.
//!
//! Start: configuration, first addresses, kernel programs (owning the pins), proxy threads,
//! destination maps. Redirecting begins last, when everything it needs is there. Stop: programs
//! off, then drain.

use std::{
    net::SocketAddr,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use anyhow::Context;
use egress_common::event::{EVENT_DENIED, EVENT_SIGHTED};
use serde_json::{Value, json};
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;

use super::{
    denials::{Denials, Surroundings},
    enforce::{Enforcement, Problem, follow},
    logging::SetFilter,
    pods::{Discovery, Seen, discover},
    proxying::{Foundation, control_runtime},
};
use crate::{
    cli::{self, NodeArgs},
    config::snapshot::Snapshot,
    control::{Admin, KernelState},
    kernel::{
        Allowances, Capture, CaptureSettings, FailurePolicy, Pods, Workloads,
        cgroups::WorkloadFinder,
        events::{EventStream, Events},
        features::{Feature, features},
    },
    proxy::{
        Connections, Downstream, Proxy, ProxySettings,
        worker::{Listen, Originals},
    },
    routing::table::{OutboundPolicy, Role},
    settings,
    upstream::resolve::AddressBook,
    workload::Workload,
};

/// Between two batches of the kernel's events.
const EVENT_PAUSE: Duration = Duration::from_millis(10);

/// Runs until it is told to stop and everything has ended.
pub fn run(args: &NodeArgs, set_filter: SetFilter) -> anyhow::Result<()> {
    settings::require_config(&args.proxy)?;
    let workloads = match &args.workloads {
        Some(path) => Workloads::from_yaml_file(path)?,
        None => Workloads::default(),
    };
    let capture = CaptureSettings {
        cgroups: settings::cgroups(args)?,
        redirect_ips: settings::redirect_ips(args)?,
        port: args.port,
        bpffs: args.bpffs.clone(),
        failure_policy: match args.failure_policy {
            cli::FailurePolicy::Open => FailurePolicy::Open,
            cli::FailurePolicy::Closed => FailurePolicy::Closed,
        },
        internal_cidrs: settings::internal_cidrs(args),
        workloads,
    };
    control_runtime()?.block_on(serve(args, &capture, set_filter))
}

async fn serve(
    args: &NodeArgs,
    settings: &CaptureSettings,
    set_filter: SetFilter,
) -> anyhow::Result<()> {
    let foundation = Foundation::start(&args.proxy, Role::Mesh).await?;
    foundation.first_answers().await;
    let features = features();
    report(&features);
    let capture = Capture::start(settings).context("starting the capture")?;
    match start_over(
        args,
        settings,
        &foundation,
        (&capture, features),
        set_filter,
    )
    .await
    {
        Ok((proxy, admin, mut parts)) => {
            let shown = (parts.problem.clone(), parts.policy.clone());
            let mut enforcement =
                Enforcement::new(capture, allowances(args), proxy.inside(), shown);
            let events = enforcement.capture.take_events();
            parts.discovery.look(false, drop);
            if let Err(error) = enforce_first(&foundation, &mut enforcement, &parts.discovery) {
                abandon(&foundation, enforcement.capture);
                return Err(error);
            }
            let seen = start_watching(&foundation, &enforcement, parts, events);
            foundation.ready("node");
            follow(&foundation, &mut enforcement, seen).await;
            // New connections go their own way from here; redirected ones are still served.
            if let Err(error) = enforcement.capture.stop() {
                tracing::error!(error = %format!("{:#}", anyhow::Error::from(error)), "detaching");
            }
            foundation.finish(proxy, admin).await;
            Ok(())
        }
        Err(error) => {
            abandon(&foundation, capture);
            Err(error)
        }
    }
}

/// What this kernel has, and what the lack of the rest means.
fn report(features: &[Feature]) {
    let (present, absent): (Vec<&Feature>, Vec<&Feature>) =
        features.iter().partition(|feature| feature.present);
    let present: Vec<&str> = present.iter().map(|feature| feature.name).collect();
    tracing::info!(present = present.join(", "), "kernel features");
    for feature in absent {
        tracing::warn!(
            feature = feature.name,
            means = feature.without,
            "this kernel lacks"
        );
    }
}

/// What the start makes and the run uses.
struct Parts {
    features: Vec<Feature>,
    discovery: Discovery,
    denials: Denials,
    problem: Problem,
    policy: Arc<Mutex<OutboundPolicy>>,
    connections: Connections,
}

/// Proxy threads and admin server over a running capture.
async fn start_over(
    args: &NodeArgs,
    settings: &CaptureSettings,
    foundation: &Foundation,
    (capture, features): (&Capture, Vec<Feature>),
    set_filter: SetFilter,
) -> anyhow::Result<(Proxy, Admin, Parts)> {
    let proxy = start_proxy(args, settings, foundation, capture)?;
    let discovery = Discovery::new(
        settings.cgroups.clone(),
        args.port,
        proxy.inside(),
        (capture.pods(), capture.finder()),
    )
    .context("looking for pods")?;
    let parts = Parts {
        features,
        discovery,
        denials: Denials::default(),
        problem: Problem::default(),
        policy: Arc::default(),
        connections: proxy.connections(),
    };
    let admin = admin(args, settings, foundation, (capture, &parts), set_filter).await?;
    Ok((proxy, admin, parts))
}

/// The first state of the kernel: destinations, then pods and policy, then redirecting begins.
fn enforce_first(
    foundation: &Foundation,
    enforcement: &mut Enforcement,
    discovery: &Discovery,
) -> anyhow::Result<()> {
    let first = foundation.candidates.borrow().clone();
    let book = foundation.book.borrow().clone();
    enforcement
        .redirect(&first, &book)
        .context("publishing destinations")?;
    enforcement
        .admit(&first.table, &Arc::new(discovery.seen()))
        .context("publishing workloads")?;
    enforcement.capture.go_live().context("going live")
}

/// Discovery and the kernel's events, until the drain.
fn start_watching(
    foundation: &Foundation,
    enforcement: &Enforcement,
    parts: Parts,
    events: Option<Events>,
) -> watch::Receiver<Arc<Seen>> {
    let (publish, seen) = watch::channel(Arc::new(parts.discovery.seen()));
    let (sighted, sightings) = mpsc::channel(1);
    let stop = foundation.shutdown.drain.clone();
    tokio::spawn(discover(parts.discovery, sightings, publish, stop.clone()));
    let stream = events.map(Events::stream);
    let listener = Listener {
        denials: parts.denials,
        pods: enforcement.pods.clone(),
        finder: enforcement.capture.finder(),
        book: foundation.book.clone(),
        snapshots: foundation.published.subscribe(),
        sighted,
    };
    match stream {
        Some(Ok(stream)) => {
            tokio::spawn(listener.listen(stream, stop));
        }
        Some(Err(error)) => tracing::error!(%error, "cannot read the kernel's events"),
        None => {}
    }
    seen
}

/// Who listens to the kernel.
struct Listener {
    denials: Denials,
    pods: Pods,
    finder: Arc<WorkloadFinder>,
    book: watch::Receiver<Arc<AddressBook>>,
    snapshots: watch::Receiver<Arc<Snapshot>>,
    sighted: mpsc::Sender<()>,
}

impl Listener {
    async fn listen(self, mut events: EventStream, stop: CancellationToken) {
        loop {
            let batch = tokio::select! {
                () = stop.cancelled() => return,
                batch = events.next() => batch,
            };
            let batch = match batch {
                Ok(batch) => batch,
                Err(error) => {
                    tracing::error!(%error, "reading the kernel's events");
                    return;
                }
            };
            if batch.iter().any(|event| event.kind == EVENT_SIGHTED) {
                // One that is waiting already will see the same.
                let _ = self.sighted.try_send(());
            }
            let (book, snapshot) = (self.book.borrow().clone(), self.snapshots.borrow().clone());
            let around = Surroundings {
                pods: &self.pods,
                finder: &self.finder,
                book: &book,
                snapshot: &snapshot,
            };
            for event in batch.iter().filter(|event| event.kind == EVENT_DENIED) {
                self.denials.note(event, &around);
            }
            // A flood is taken in batches; what does not fit the ring meanwhile is counted there.
            tokio::time::sleep(EVENT_PAUSE).await;
        }
    }
}

fn allowances(args: &NodeArgs) -> Allowances {
    Allowances {
        internal: settings::internal_cidrs(args),
        resolvers: settings::resolvers(&args.proxy),
        quic: args.quic == cli::QuicPolicy::Allow,
    }
}

fn start_proxy(
    args: &NodeArgs,
    settings: &CaptureSettings,
    foundation: &Foundation,
    capture: &Capture,
) -> anyhow::Result<Proxy> {
    let originals = capture.originals();
    let take: Originals = Arc::new(move |pod, local, peer| {
        originals.take(pod, local, peer).unwrap_or_else(|error| {
            tracing::error!(error = %error, "looking up an original destination");
            None
        })
    });
    let listen = settings
        .redirect_ips
        .iter()
        .map(|ip| SocketAddr::new(*ip, args.port))
        .collect();
    let proxy_settings = ProxySettings {
        listen: Listen::Fixed(listen),
        drain_time: args.proxy.drain_time,
        proxy_protocol_to: settings::proxy_protocol_to(args),
    };
    let recorders = (0..settings::workers(&args.proxy))
        .map(|_| foundation.access_log.recorder())
        .collect();
    let downstream = Downstream::Mesh(take);
    Ok(Proxy::start(
        &proxy_settings,
        &foundation.feeds(),
        &downstream,
        recorders,
        &foundation.stop(),
    )?)
}

async fn admin(
    args: &NodeArgs,
    settings: &CaptureSettings,
    foundation: &Foundation,
    (capture, parts): (&Capture, &Parts),
    set_filter: SetFilter,
) -> anyhow::Result<Admin> {
    let reader = capture.counter_reader();
    let (problem, policy) = (parts.problem.clone(), parts.policy.clone());
    let denials = parts.denials.clone();
    let connections = parts.connections.clone();
    let (pods, checks_frames) = (capture.pods(), capture.checks_frames());
    let (named, known) = (settings.workloads.clone(), capture.pods());
    let cgroups = settings.cgroups.clone();
    let features: Vec<_> = parts
        .features
        .iter()
        .map(|feature| (feature.name, feature.present, feature.without))
        .collect();
    let failed = Mutex::new(false);
    foundation
        .admin(&args.proxy, "node", set_filter, |state| {
            state.connections = connections;
            state.workloads = Arc::new(move || workloads(&named, &known));
            state.kernel = Some(Arc::new(move || {
                let outcomes = reader.read().unwrap_or_else(|error| {
                    let mut failed = failed.lock().unwrap_or_else(PoisonError::into_inner);
                    if !std::mem::replace(&mut failed, true) {
                        tracing::error!(error = %error, "reading the kernel counters");
                    }
                    Vec::new()
                });
                let programs = crate::kernel::PROGRAMS.iter().flat_map(|program| {
                    cgroups
                        .iter()
                        .map(move |cgroup| format!("{} on {}", program.name, cgroup.display()))
                });
                let known = &pods;
                let pods = pods.all();
                let cables = pods
                    .iter()
                    .filter(|_| checks_frames)
                    .flat_map(|pod| pod.cables.iter())
                    .map(|interface| format!("egress_tc on interface {interface}"));
                let policy = *policy.lock().unwrap_or_else(PoisonError::into_inner);
                KernelState {
                    programs: programs.chain(cables).collect(),
                    problem: problem.get(),
                    outbound_policy: match policy {
                        OutboundPolicy::AllowAny => "ALLOW_ANY",
                        OutboundPolicy::RegistryOnly => "REGISTRY_ONLY",
                    },
                    features: features.clone(),
                    pods: pods.len(),
                    pods_listening: pods.iter().filter(|pod| known.is_admitted(pod)).count(),
                    denied: denials.counts(),
                    denials: denials.recent(),
                    outcomes: outcomes
                        .iter()
                        .map(|r| (r.program, r.outcome, r.count))
                        .collect(),
                }
            }));
        })
        .await
}

/// The pods that are there, then what `--workloads` names beside them.
fn workloads(named: &Workloads, pods: &Pods) -> Vec<Value> {
    let known = pods;
    let pods = pods.all();
    let own = |workload: &Workload| json!(workload);
    let mut found: Vec<Value> = pods
        .iter()
        .map(|pod| {
            let mut value = pod
                .workload
                .as_deref()
                .map_or_else(|| own(&Workload::default()), own);
            value["pod"] = json!({
                "index": pod.index,
                "netns_cookie": pod.netns_cookie,
                "netns_inode": pod.netns_inode,
                "cgroups": pod.cgroups,
                "addresses": [pod.address4.map(|a| a.to_string()), pod.address6.map(|a| a.to_string())],
                "port": pod.port,
                "listening": [pod.listens4.then_some("127.0.0.1"), pod.listens6.then_some("::1")],
                "interfaces": pod.cables,
                "admitted": known.is_admitted(pod),
            });
            value
        })
        .collect();
    let absent = named.all().into_iter().filter(|workload| {
        !pods
            .iter()
            .any(|pod| pod.workload.as_ref() == Some(workload))
    });
    found.extend(absent.map(|workload| own(&workload)));
    found
}

/// After a failed start: nothing of it stays behind.
fn abandon(foundation: &Foundation, capture: Capture) {
    foundation.shutdown.drain.cancel();
    if let Err(error) = capture.stop() {
        tracing::error!(error = %error, "detaching after a failed start");
    }
}
