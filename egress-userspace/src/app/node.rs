// SPDX-License-Identifier: Apache-2.0
//! `egress node`: what starts and stops in which order.
//!
//! Start: configuration, first addresses, kernel programs (owning the pins), proxy threads,
//! destination maps. Redirecting begins last, when everything it needs is there. Stop: programs
//! off, then drain.

use std::{
    net::SocketAddr,
    sync::{Arc, Mutex, PoisonError},
};

use anyhow::Context;
use ipnet::IpNet;

use super::{
    logging::SetFilter,
    proxying::{Foundation, control_runtime},
};
use crate::{
    cli::{self, NodeArgs},
    config::snapshot::Snapshot,
    control::KernelState,
    kernel::{Capture, CaptureSettings, FailurePolicy, Workloads, plan},
    proxy::{
        Downstream, Proxy, ProxySettings,
        worker::{Listen, Originals},
    },
    routing::table::Role,
    settings,
    upstream::resolve::AddressBook,
};

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
    let capture = Capture::start(settings).context("starting the capture")?;
    let problem = Problem::default();
    let started = start_proxy(args, settings, &foundation, &capture);
    let (proxy, admin) = match started {
        Ok(proxy) => {
            let kernel = (&capture, &problem);
            let admin = admin(args, settings, &foundation, kernel, set_filter).await;
            (proxy, admin)
        }
        Err(error) => {
            abandon(&foundation, capture);
            return Err(error);
        }
    };
    let admin = match admin {
        Ok(admin) => admin,
        Err(error) => {
            abandon(&foundation, capture);
            return Err(error);
        }
    };
    let mut kernel = Kernel {
        capture,
        internal: settings.internal_cidrs.clone(),
        problem,
    };
    let first = foundation.candidates.borrow().clone();
    let book = foundation.book.borrow().clone();
    if let Err(error) = kernel
        .redirect(&first, &book)
        .context("publishing destinations")
    {
        abandon(&foundation, kernel.capture);
        return Err(error);
    }
    foundation.ready("node");
    follow(&foundation, &mut kernel).await;
    // New connections go their own way from here; redirected ones are still served.
    if let Err(error) = kernel.capture.stop() {
        tracing::error!(error = %format!("{:#}", anyhow::Error::from(error)), "detaching");
    }
    foundation.finish(proxy, admin).await;
    Ok(())
}

fn start_proxy(
    args: &NodeArgs,
    settings: &CaptureSettings,
    foundation: &Foundation,
    capture: &Capture,
) -> anyhow::Result<Proxy> {
    let originals = capture.originals();
    let take: Originals = Arc::new(move |local, peer| {
        originals.take(local, peer).unwrap_or_else(|error| {
            tracing::error!(error = %error, "looking up an original destination");
            None
        })
    });
    let listen = settings
        .redirect_ips
        .iter()
        .map(|ip| SocketAddr::new(*ip, args.port))
        .collect();
    let settings = ProxySettings {
        listen: Listen::Fixed(listen),
        drain_time: args.proxy.drain_time,
    };
    let recorders = (0..settings::workers(&args.proxy))
        .map(|_| foundation.access_log.recorder())
        .collect();
    let downstream = Downstream::Mesh(take);
    Ok(Proxy::start(
        &settings,
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
    (capture, problem): (&Capture, &Problem),
    set_filter: SetFilter,
) -> anyhow::Result<crate::control::Admin> {
    let reader = capture.counter_reader();
    let problem = problem.clone();
    let workloads = settings.workloads.clone();
    let cgroups = settings.cgroups.clone();
    let failed = Mutex::new(false);
    foundation
        .admin(&args.proxy, "node", set_filter, |state| {
            state.workloads = Arc::new(move || workloads.all());
            state.kernel = Some(Arc::new(move || {
                let outcomes = reader.read().unwrap_or_else(|error| {
                    let mut failed = failed.lock().unwrap_or_else(PoisonError::into_inner);
                    if !std::mem::replace(&mut failed, true) {
                        tracing::error!(error = %error, "reading the kernel counters");
                    }
                    Vec::new()
                });
                let programs = crate::kernel::PROGRAMS
                    .iter()
                    .flat_map(|program| {
                        cgroups
                            .iter()
                            .map(move |cgroup| format!("{program} on {}", cgroup.display()))
                    })
                    .collect();
                KernelState {
                    programs,
                    problem: problem.get(),
                    outcomes: outcomes
                        .iter()
                        .map(|r| (r.program, r.outcome, r.count))
                        .collect(),
                }
            }));
        })
        .await
}

/// After a failed start: nothing of it stays behind.
fn abandon(foundation: &Foundation, capture: Capture) {
    foundation.shutdown.drain.cancel();
    if let Err(error) = capture.stop() {
        tracing::error!(error = %error, "detaching after a failed start");
    }
}

struct Kernel {
    capture: Capture,
    internal: Vec<IpNet>,
    problem: Problem,
}

/// Why the kernel's maps are not what the configuration asks for, for `egress status`.
#[derive(Debug, Clone, Default)]
struct Problem(Arc<Mutex<Option<String>>>);

impl Problem {
    fn get(&self) -> Option<String> {
        self.0
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    /// Notes how a change ended; an error is logged.
    fn note(&self, result: Result<(), crate::kernel::KernelError>, what: &'static str) -> bool {
        let problem = result.err().map(|error| {
            let error = format!("{:#}", anyhow::Error::from(error));
            tracing::error!(error, "{what}");
            format!("{what}: {error}")
        });
        let fine = problem.is_none();
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = problem;
        fine
    }
}

impl Kernel {
    /// Redirects what the snapshot registers, no more and no less.
    fn redirect(
        &mut self,
        snapshot: &Snapshot,
        book: &AddressBook,
    ) -> Result<(), crate::kernel::KernelError> {
        let plan = plan(snapshot.table.objects(), book, &self.internal);
        self.capture.publish(&plan)
    }

    /// Stops redirecting what the snapshot no longer registers.
    fn retract(
        &mut self,
        snapshot: &Snapshot,
        book: &AddressBook,
    ) -> Result<(), crate::kernel::KernelError> {
        let plan = plan(snapshot.table.objects(), book, &self.internal);
        self.capture.retract(&plan)
    }
}

/// Keeps workers and kernel in step until the drain. Order of a change: the kernel stops
/// redirecting before the table forgets; the table knows before the kernel starts (design: order).
async fn follow(foundation: &Foundation, kernel: &mut Kernel) {
    let mut candidates = foundation.candidates.clone();
    let mut books = foundation.book.clone();
    candidates.mark_unchanged();
    books.mark_unchanged();
    let mut current = candidates.borrow().clone();
    let problem = kernel.problem.clone();
    let incomplete = "destination maps not complete";
    loop {
        tokio::select! {
            () = foundation.shutdown.drain.cancelled() => return,
            () = foundation.shutdown.reopen.notified() => foundation.access_log.reopen(),
            Ok(()) = candidates.changed() => {
                let next = candidates.borrow_and_update().clone();
                let book = books.borrow().clone();
                let rejected = "configuration rejected: it does not fit the kernel maps";
                if !problem.note(kernel.retract(&next, &book), rejected) {
                    continue;
                }
                foundation.publish(&next);
                current = next;
                problem.note(kernel.redirect(&current, &book), incomplete);
            }
            Ok(()) = books.changed() => {
                let book = books.borrow_and_update().clone();
                problem.note(kernel.redirect(&current, &book), incomplete);
            }
        }
    }
}
