// SPDX-License-Identifier: Apache-2.0
//! Brings the kernel to what a snapshot, the addresses of its names, and the pods that are there
//! demand; and follows all three. Order of a change: the kernel stops redirecting before the table
//! forgets; the table knows before the kernel starts (design: order); a policy that refuses comes
//! into force last, and ends the connections that it would not have let begin.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use egress_common::workload::{WorkloadEntry, WorkloadKey};
use tokio::sync::watch;

use super::{
    pods::{Seen, SeenPod},
    proxying::Foundation,
};
use crate::{
    config::snapshot::Snapshot,
    kernel::{
        Allowances, Capture, DestinationPlan, KernelError, Pods, namespaces, outbound_number, plan,
        sever::{self, Severed},
    },
    proxy::inside::Inside,
    routing::table::{OutboundPolicy, Table},
    upstream::resolve::AddressBook,
    workload::Workload,
};

/// Everything that is to be kept in step.
#[derive(Debug)]
pub struct Enforcement {
    /// The kernel half.
    pub capture: Capture,
    /// What is let go beside what objects register.
    pub allowances: Allowances,
    /// Where it is noted when something does not fit.
    pub problem: Problem,
    /// Who closes listeners inside pods.
    pub inside: Inside,
    /// Who calls.
    pub pods: Pods,
    /// The policy in force, for people.
    pub policy: Arc<Mutex<OutboundPolicy>>,
    seen: Arc<Seen>,
    plan: Arc<DestinationPlan>,
    /// Namespaces whose earlier connections have been ended; 0 stands for the agent's own.
    severed: BTreeSet<u64>,
}

/// Why the kernel's maps are not what the configuration asks for, for `egress status`.
#[derive(Debug, Clone, Default)]
pub struct Problem(Arc<Mutex<Option<String>>>);

/// What the kernel is to be told of workloads.
struct Entries {
    entries: BTreeMap<WorkloadKey, WorkloadEntry>,
    default: OutboundPolicy,
    by_workload: bool,
    /// Namespaces (0: the agent's own) in which somebody is under REGISTRY_ONLY.
    refusing: BTreeSet<u64>,
}

/// Age from which a connection will not be accepted any more: with a full backlog the client tries
/// for about two minutes (tcp(7), tcp_syn_retries).
const UNTAKEN: Duration = Duration::from_secs(150);
/// How often connections that nobody will accept any more are forgotten.
const SWEEP: Duration = Duration::from_secs(30);

/// Key of the agent's own namespace in [`Enforcement::severed`].
const OWN: u64 = 0;

impl Problem {
    /// The problem of the moment.
    pub fn get(&self) -> Option<String> {
        self.0
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    /// Notes how a change ended; an error is logged.
    fn note(&self, result: Result<(), KernelError>, what: &'static str) -> bool {
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

impl Enforcement {
    /// Over running capture and proxy threads; nothing is in force yet. What goes wrong and the
    /// policy in force are shown where the last two say.
    pub fn new(
        capture: Capture,
        allowances: Allowances,
        inside: Inside,
        (problem, policy): (Problem, Arc<Mutex<OutboundPolicy>>),
    ) -> Self {
        let pods = capture.pods();
        Self {
            capture,
            allowances,
            problem,
            inside,
            pods,
            policy,
            seen: Arc::default(),
            plan: Arc::default(),
            severed: BTreeSet::new(),
        }
    }

    /// Redirects what the snapshot registers, no more and no less.
    ///
    /// # Errors
    /// See [`Capture::publish`].
    pub fn redirect(&mut self, snapshot: &Snapshot, book: &AddressBook) -> Result<(), KernelError> {
        let plan = plan(snapshot.table.objects(), book, &self.allowances);
        self.capture.publish(&plan)?;
        self.plan = Arc::new(plan);
        Ok(())
    }

    /// Stops redirecting what the snapshot no longer registers.
    fn retract(&mut self, snapshot: &Snapshot, book: &AddressBook) -> Result<(), KernelError> {
        let plan = plan(snapshot.table.objects(), book, &self.allowances);
        self.capture.retract(&plan)
    }

    /// Tells the kernel of the pods that are there, and of everybody's policy; lets go of the pods
    /// that are not there any more.
    ///
    /// # Errors
    /// See [`Capture::publish_workloads`].
    pub fn admit(&mut self, table: &Table, seen: &Arc<Seen>) -> Result<(), KernelError> {
        let wanted = entries(table, seen);
        self.capture.publish_workloads(&wanted.entries)?;
        self.capture
            .set_outbound_policy(wanted.default, wanted.by_workload)?;
        let ports = seen
            .pods
            .iter()
            .map(|(cookie, seen)| (*cookie, seen.pod.port));
        self.pods.admit(ports.collect());
        *self.policy.lock().unwrap_or_else(PoisonError::into_inner) = wanted.default;
        for gone in self.seen.pods.keys() {
            if !seen.pods.contains_key(gone) {
                self.inside.close(*gone);
                self.pods.remove(*gone);
            }
        }
        self.seen = seen.clone();
        let cables = seen
            .pods
            .values()
            .flat_map(|seen| seen.pod.cables.iter().copied());
        for (interface, error) in self.capture.watch_cables(&cables.collect()) {
            let error = format!("{:#}", anyhow::Error::from(error));
            tracing::warn!(interface, error, "frames on a pod's cable are not checked");
        }
        self.sever(&wanted.refusing);
        Ok(())
    }

    /// Ends the connections that REGISTRY_ONLY would not have let begin, once for each namespace
    /// that comes under it.
    fn sever(&mut self, refusing: &BTreeSet<u64>) {
        self.severed.retain(|key| refusing.contains(key));
        for key in refusing {
            if !self.severed.insert(*key) {
                continue;
            }
            let (plan, seen) = (self.plan.clone(), self.seen.clone());
            let own_cgroup = self.capture.settings().own_cgroup_id;
            let key = *key;
            // Listing the sockets of a busy namespace takes a while.
            tokio::task::spawn_blocking(move || {
                let severed = match seen.pods.get(&key) {
                    Some(pod) => sever_pod(&plan, pod),
                    None => sever::sever(&plan, |cgroup| {
                        cgroup.is_some_and(|id| id != own_cgroup && seen.hosts.contains_key(&id))
                    }),
                };
                report(&seen, key, severed);
            });
        }
    }
}

fn sever_pod(plan: &DestinationPlan, seen: &SeenPod) -> std::io::Result<Vec<Severed>> {
    let mut result = Ok(Vec::new());
    for member in &seen.members {
        result = namespaces::enter(member.pid, seen.pod.netns_inode, || {
            sever::sever(plan, |_| true)
        });
        match &result {
            // It ended; another may still be there.
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
            _ => return result,
        }
    }
    result
}

fn report(seen: &Seen, key: u64, severed: std::io::Result<Vec<Severed>>) {
    let place = seen
        .pods
        .get(&key)
        .map_or_else(|| "host network".to_owned(), |seen| seen.pod.place());
    match severed {
        Ok(severed) => {
            for one in severed {
                tracing::warn!(
                    pod = place,
                    destination = %one.remote,
                    protocol = one.protocol,
                    "connection from before REGISTRY_ONLY ended"
                );
            }
        }
        Err(error) => tracing::warn!(
            pod = place,
            %error,
            "connections from before REGISTRY_ONLY could not be ended"
        ),
    }
}

/// Entries for everybody who is there. Policies stand in them only when they differ.
fn entries(table: &Table, seen: &Seen) -> Entries {
    let default = table.outbound_policy(None);
    let of = |workload: Option<&Workload>| match workload {
        Some(_) => table.outbound_policy(workload),
        None => default,
    };
    let policies: BTreeMap<u64, OutboundPolicy> = seen
        .pods
        .iter()
        .map(|(cookie, seen)| (*cookie, of(seen.pod.workload.as_deref())))
        .collect();
    let hosts: BTreeMap<u64, OutboundPolicy> = seen
        .hosts
        .iter()
        .map(|(id, host)| (*id, of(host.workload.as_deref())))
        .collect();
    let by_workload = policies
        .values()
        .chain(hosts.values())
        .any(|policy| *policy != default);
    let number = |policy: OutboundPolicy| match by_workload {
        true => outbound_number(policy) as u8,
        false => 0,
    };
    let mut entries = BTreeMap::new();
    if by_workload {
        for (id, policy) in &hosts {
            let entry = WorkloadEntry {
                outbound_policy: number(*policy),
                ..WorkloadEntry::default()
            };
            entries.insert(WorkloadKey::cgroup(*id), entry);
        }
    }
    for (cookie, pod) in &seen.pods {
        let policy = policies.get(cookie).copied().unwrap_or(default);
        let entry = pod.pod.entry(number(policy));
        entries.insert(WorkloadKey::netns(*cookie), entry);
        for member in &pod.members {
            entries.insert(WorkloadKey::cgroup(member.cgroup_id), entry);
        }
        for interface in &pod.pod.cables {
            entries.insert(WorkloadKey::interface(*interface), entry);
        }
    }
    let registry_only = |policy: &OutboundPolicy| *policy == OutboundPolicy::RegistryOnly;
    let mut refusing: BTreeSet<u64> = policies
        .iter()
        .filter(|(_, policy)| registry_only(policy))
        .map(|(cookie, _)| *cookie)
        .collect();
    if default == OutboundPolicy::RegistryOnly || hosts.values().any(registry_only) {
        refusing.insert(OWN);
    }
    Entries {
        entries,
        default,
        by_workload,
        refusing,
    }
}

/// Keeps workers and kernel in step until the drain.
pub async fn follow(
    foundation: &Foundation,
    enforcement: &mut Enforcement,
    mut seen: watch::Receiver<Arc<Seen>>,
) {
    let mut candidates = foundation.candidates.clone();
    let mut books = foundation.book.clone();
    candidates.mark_unchanged();
    books.mark_unchanged();
    let mut current = candidates.borrow().clone();
    let problem = enforcement.problem.clone();
    let mut sweep = tokio::time::interval(SWEEP);
    let incomplete = "destination maps not complete";
    let unknown = "workload map not complete";
    loop {
        tokio::select! {
            () = foundation.shutdown.drain.cancelled() => return,
            () = foundation.shutdown.reopen.notified() => foundation.access_log.reopen(),
            Ok(()) = candidates.changed() => {
                let next = candidates.borrow_and_update().clone();
                let book = books.borrow().clone();
                let rejected = "configuration rejected: it does not fit the kernel maps";
                if !problem.note(enforcement.retract(&next, &book), rejected) {
                    continue;
                }
                foundation.publish(&next);
                current = next;
                if problem.note(enforcement.redirect(&current, &book), incomplete) {
                    let there = seen.borrow_and_update().clone();
                    problem.note(enforcement.admit(&current.table, &there), unknown);
                }
            }
            Ok(()) = books.changed() => {
                let book = books.borrow_and_update().clone();
                problem.note(enforcement.redirect(&current, &book), incomplete);
            }
            _ = sweep.tick() => match enforcement.capture.originals().sweep(UNTAKEN) {
                Ok(0) => {}
                Ok(connections) => tracing::debug!(connections, "ended before they were accepted"),
                Err(error) => tracing::warn!(%error, "sweeping"),
            },
            Ok(()) = seen.changed() => {
                let there = seen.borrow_and_update().clone();
                problem.note(enforcement.admit(&current.table, &there), unknown);
            }
        }
    }
}
