// SPDX-License-Identifier: Apache-2.0
//! Finds the pods of this node as they come and go, and opens the proxy's listeners inside.
//!
//! A new namespace becomes known by the first of: the first socket made in it (the kernel tells), a
//! change of a captured cgroup, the periodic look. Order for a new pod: listeners, workers, table of
//! pods, then the kernel's map; for one that is gone the other way round, which is `node`'s part.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs::File,
    io,
    path::PathBuf,
    sync::Arc,
    time::{Duration, Instant},
};

use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;

use crate::{
    kernel::{
        Pod, Pods,
        cgroups::WorkloadFinder,
        namespaces::{self, Member, Opened},
        netlink::{self, Cable},
        watch::CgroupWatch,
    },
    proxy::inside::Inside,
    workload::Workload,
};

/// Time between two looks when nothing happens; also how soon a pod that has gone is let go.
const PERIOD: Duration = Duration::from_secs(1);
/// Looks without a process after which a pod whose cgroups are still there counts as gone.
const MISSES: u32 = 3;
/// After a change of a cgroup: a runtime moves a process into its cgroup before it enters its
/// network namespace, and before the network has addresses.
const AFTER_CHANGE: [Duration; 5] = [
    Duration::from_millis(1),
    Duration::from_millis(4),
    Duration::from_millis(12),
    Duration::from_millis(40),
    Duration::from_millis(200),
];
/// Of the time, looking because of changes takes this part at most.
const LOOKING: u32 = 4;
/// Pids of one namespace that are tried before it is left to the next look.
const TRIES: usize = 4;

/// Captured processes by where they are.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Seen {
    /// Pods, by the cookie of their namespace.
    pub pods: BTreeMap<u64, SeenPod>,
    /// Cgroups of processes in the agent's own network namespace, by their id.
    pub hosts: BTreeMap<u64, SeenHost>,
}

/// A cgroup of processes in the agent's own network namespace.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SeenHost {
    /// Its path, relative to the mount.
    pub cgroup: PathBuf,
    /// Who it is, when known.
    pub workload: Option<Arc<Workload>>,
}

/// A pod and its processes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SeenPod {
    /// What is known of it.
    pub pod: Arc<Pod>,
    /// Its captured processes at the last look.
    pub members: Vec<Member>,
}

/// What discovery works with.
#[derive(Debug)]
pub struct Discovery {
    roots: Vec<PathBuf>,
    mount: PathBuf,
    own_inode: u64,
    port: u16,
    inside: Inside,
    pods: Pods,
    finder: Arc<WorkloadFinder>,
    known: BTreeMap<u64, Known>,
    hosts: BTreeMap<u64, SeenHost>,
    cgroups: BTreeSet<PathBuf>,
    /// Namespaces that could not be entered, so that it is said once.
    refused: BTreeSet<u64>,
    next_index: u32,
}

#[derive(Debug)]
struct Known {
    pod: Arc<Pod>,
    members: Vec<Member>,
    missed: u32,
}

impl Discovery {
    /// Over the captured cgroups `roots`; `port` is the proxy's usual one.
    ///
    /// # Errors
    /// When /proc is not mounted.
    pub fn new(
        roots: Vec<PathBuf>,
        port: u16,
        inside: Inside,
        (pods, finder): (Pods, Arc<WorkloadFinder>),
    ) -> io::Result<Self> {
        Ok(Self {
            roots,
            mount: finder.tree().mount_point().to_owned(),
            own_inode: namespaces::own_inode()?,
            port,
            inside,
            pods,
            finder,
            known: BTreeMap::new(),
            hosts: BTreeMap::new(),
            cgroups: BTreeSet::new(),
            refused: BTreeSet::new(),
            next_index: 1,
        })
    }

    /// Looks once. `periodic`: a pod without processes comes one step closer to being gone. `found`
    /// is told at every new pod, so that it need not wait for those behind it, and at the end.
    pub fn look(&mut self, periodic: bool, found: impl Fn(Seen)) {
        let mut scan = namespaces::scan(&self.roots, &self.mount);
        if scan.invisible > 0 && self.refused.insert(0) {
            tracing::warn!(
                processes = scan.invisible,
                "captured processes live in pid namespaces that the agent cannot see: run it in the \
                 host's pid namespace (hostPID)"
            );
        }
        let hosts = scan.namespaces.remove(&self.own_inode).unwrap_or_default();
        self.hosts = hosts
            .into_iter()
            .map(|member| {
                let workload = self.finder.find(member.cgroup_id);
                let cgroup = member.cgroup;
                (member.cgroup_id, SeenHost { cgroup, workload })
            })
            .collect();
        for (inode, members) in std::mem::take(&mut scan.namespaces) {
            match self.known.get_mut(&inode) {
                Some(known) => {
                    known.missed = 0;
                    known.members = members;
                    self.refresh(inode);
                }
                None => {
                    self.adopt(inode, members);
                    found(self.seen());
                }
            }
        }
        self.cgroups = scan.cgroups;
        self.let_go(periodic);
        found(self.seen());
    }

    /// What is there now.
    pub fn seen(&self) -> Seen {
        let pods = self.known.values().map(|known| {
            let seen = SeenPod {
                pod: known.pod.clone(),
                members: known.members.clone(),
            };
            (known.pod.netns_cookie, seen)
        });
        Seen {
            pods: pods.collect(),
            hosts: self.hosts.clone(),
        }
    }

    /// A namespace that was not known.
    fn adopt(&mut self, inode: u64, members: Vec<Member>) {
        let (port, workers) = (self.port, self.inside.workers());
        let Some(opened) = self.enter(inode, &members, || namespaces::open(port, workers)) else {
            return;
        };
        self.adopt_opened(inode, members, opened);
    }

    fn adopt_opened(&mut self, inode: u64, members: Vec<Member>, opened: Opened) {
        let index = self.next_index;
        self.next_index += 1;
        let mut pod = Pod {
            index,
            netns_cookie: opened.netns_cookie,
            netns_inode: inode,
            cgroups: cgroups(&members),
            workload: None,
            address4: None,
            address6: None,
            port: 0,
            listens4: false,
            listens6: false,
            cables: Vec::new(),
        };
        pod.workload = self.finder.named(&pod.cgroups);
        pod.cables = self.cables(inode, &members);
        self.open(&mut pod, opened);
        tracing::info!(
            pod = pod.place(),
            netns_cookie = pod.netns_cookie,
            port = pod.port,
            "pod found"
        );
        self.know(pod, members);
    }

    /// A known namespace: what was missing may have come since.
    fn refresh(&mut self, inode: u64) {
        let Some(known) = self.known.get(&inode) else {
            return;
        };
        let (before, members) = (known.pod.clone(), known.members.clone());
        let mut pod = Pod::clone(&before);
        // A cgroup that comes later may name it; one that goes does not take the name along.
        let cgroups = cgroups(&members);
        if cgroups != pod.cgroups {
            pod.workload = self.finder.named(&cgroups).or(pod.workload);
            pod.cgroups = cgroups;
        }
        let without_address = pod.address4.is_none() && pod.address6.is_none();
        if pod.port == 0 {
            let (port, workers) = (self.port, self.inside.workers());
            if let Some(opened) = self.enter(inode, &members, || namespaces::open(port, workers)) {
                if opened.netns_cookie != pod.netns_cookie {
                    // Without a listener nothing kept the namespace that had this number.
                    self.known.remove(&inode);
                    self.adopt_opened(inode, members, opened);
                    return;
                }
                self.open(&mut pod, opened);
            }
        } else if without_address
            && let Some((address4, address6)) =
                self.enter(inode, &members, || Ok(namespaces::own_addresses()))
        {
            (pod.address4, pod.address6) = (address4, address6);
        }
        if without_address && pod.cables.is_empty() {
            pod.cables = self.cables(inode, &members);
        }
        if pod != *before {
            self.know(pod, members);
        }
    }

    fn open(&self, pod: &mut Pod, opened: Opened) {
        if opened.port != 0 && opened.port != self.port {
            tracing::info!(
                pod = pod.place(),
                wanted = self.port,
                port = opened.port,
                "the proxy's port is taken inside the pod: using another"
            );
        }
        pod.port = opened.port;
        pod.listens4 = opened.listens4;
        pod.listens6 = opened.listens6;
        pod.address4 = opened.address4;
        pod.address6 = opened.address6;
        if opened.port != 0 {
            self.inside.open(pod.netns_cookie, opened.listeners);
        }
    }

    fn know(&mut self, pod: Pod, members: Vec<Member>) {
        self.pods.put(pod.clone());
        let known = Known {
            pod: Arc::new(pod),
            members,
            missed: 0,
        };
        self.known.insert(known.pod.netns_inode, known);
    }

    /// Forgets pods without processes whose namespace nobody else keeps: at once when their cgroups
    /// are gone, else after some looks.
    fn let_go(&mut self, periodic: bool) {
        let (mount, cgroups) = (&self.mount, &self.cgroups);
        let own = &self.known;
        let mut present: BTreeSet<u64> = own
            .iter()
            .filter(|(_, known)| known.members.iter().any(|member| is_there(member, known)))
            .map(|(inode, _)| *inode)
            .collect();
        if present.len() < own.len() {
            present.extend(namespaces::mounted());
        }
        self.known.retain(|inode, known| {
            if present.contains(inode) {
                return true;
            }
            if periodic {
                known.missed += 1;
            }
            let has_cgroup = known.pod.cgroups.iter().any(|path| {
                let relative = path.strip_prefix("/").unwrap_or(path);
                cgroups.contains(&mount.join(relative))
            });
            let stays = has_cgroup && known.missed < MISSES;
            if !stays {
                tracing::info!(
                    pod = known.pod.place(),
                    netns_cookie = known.pod.netns_cookie,
                    "pod is gone"
                );
            }
            stays
        });
    }

    /// Runs `work` inside the namespace; `None`, and logged once, when no process leads into it.
    fn enter<T: Send>(
        &mut self,
        inode: u64,
        members: &[Member],
        work: impl Fn() -> io::Result<T> + Send + Sync,
    ) -> Option<T> {
        let mut failure = None;
        for member in members.iter().take(TRIES) {
            match namespaces::enter(member.pid, inode, &work) {
                Ok(value) => {
                    self.refused.remove(&inode);
                    return Some(value);
                }
                // It ended, or moved on.
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => failure = Some((member, error)),
            }
        }
        if let Some((member, error)) = failure
            && self.refused.insert(inode)
        {
            tracing::warn!(
                cgroup = %member.cgroup.display(),
                pid = member.pid,
                %error,
                "cannot serve a network namespace of captured processes"
            );
        }
        None
    }

    /// The agent's ends of the namespace's cables.
    fn cables(&mut self, inode: u64, members: &[Member]) -> Vec<u32> {
        let Some(inside) = self.enter(inode, members, netlink::cables) else {
            return Vec::new();
        };
        let number = members.iter().find_map(|member| {
            let file = File::open(format!("/proc/{}/ns/net", member.pid)).ok()?;
            netlink::number_of(std::os::fd::AsFd::as_fd(&file)).ok()?
        });
        let here = netlink::cables().unwrap_or_else(|error| {
            tracing::warn!(%error, "cannot list interfaces");
            Vec::new()
        });
        ends(&inside, &here, number)
    }
}

/// Interfaces here whose other end is one of those inside a namespace with that number.
fn ends(inside: &[Cable], here: &[Cable], number: Option<i32>) -> Vec<u32> {
    let Some(number) = number else {
        return Vec::new();
    };
    let leads_inside = |own: &&Cable| {
        own.other_netns == Some(number)
            && inside
                .iter()
                .any(|pod| pod.index == own.other && pod.other == own.index)
    };
    here.iter()
        .filter(leads_inside)
        .map(|own| own.index)
        .collect()
}

fn is_there(member: &Member, known: &Known) -> bool {
    namespaces::inode_of(member.pid).is_ok_and(|inode| inode == known.pod.netns_inode)
}

fn cgroups(members: &[Member]) -> Vec<PathBuf> {
    let paths: BTreeSet<&PathBuf> = members.iter().map(|member| &member.cgroup).collect();
    paths.into_iter().cloned().collect()
}

/// Runs discovery until the drain. `sightings` are wake-ups by the kernel; what is seen goes to
/// `seen` when it changed.
pub async fn discover(
    mut discovery: Discovery,
    mut sightings: mpsc::Receiver<()>,
    seen: watch::Sender<Arc<Seen>>,
    stop: CancellationToken,
) {
    let mut cgroups = match CgroupWatch::new() {
        Ok(watch) => Some(watch),
        Err(error) => {
            tracing::warn!(%error, "cannot watch cgroups: new pods are found by their first socket");
            None
        }
    };
    let mut planned: [Option<Instant>; AFTER_CHANGE.len()] = Default::default();
    let mut last = Instant::now();
    let seen = Arc::new(seen);
    loop {
        if let Some(watch) = &mut cgroups {
            watch.follow(&discovery.cgroups);
        }
        let changed = async {
            match &cgroups {
                Some(watch) => watch.changed().await,
                None => std::future::pending().await,
            }
        };
        let next = planned.iter().flatten().copied().min();
        let next = next.unwrap_or(last + PERIOD).min(last + PERIOD);
        tokio::select! {
            () = stop.cancelled() => return,
            Some(()) = sightings.recv() => {}
            () = tokio::time::sleep_until(next.into()) => {}
            () = changed => {
                let now = Instant::now();
                // The first look of a burst is soon after its begin, the last ones after its end.
                let [soon, later @ ..] = AFTER_CHANGE.map(|delay| now + delay);
                planned[0].get_or_insert(soon);
                for (plan, at) in planned[1..].iter_mut().zip(later) {
                    *plan = Some(at);
                }
                continue;
            }
        }
        let now = Instant::now();
        for plan in &mut planned {
            *plan = plan.filter(|at| *at > now);
        }
        let periodic = now >= last + PERIOD;
        let seen = seen.clone();
        let looked = tokio::task::spawn_blocking(move || {
            discovery.look(periodic, |found| publish(&seen, found));
            discovery
        })
        .await;
        // On a node with many processes a look takes a while.
        let rest = now.elapsed() * (LOOKING - 1);
        for plan in planned.iter_mut().flatten() {
            *plan = (*plan).max(now + rest);
        }
        discovery = match looked {
            Ok(discovery) => discovery,
            Err(error) => {
                tracing::error!(%error, "looking for pods failed: new pods will not be served");
                return;
            }
        };
        if periodic {
            last = now;
        }
    }
}

fn publish(seen: &watch::Sender<Arc<Seen>>, found: Seen) {
    seen.send_if_modified(|current| {
        let differs = **current != found;
        if differs {
            *current = Arc::new(found);
        }
        differs
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn own_end_of_a_cable_is_the_one_that_leads_into_the_pod() {
        let cable = |index, other, other_netns| Cable {
            index,
            other,
            other_netns,
        };
        let inside = [cable(2, 17, Some(0)), cable(3, 2, None)];
        for (here, number, expected) in [
            (vec![cable(17, 2, Some(5))], Some(5), vec![17]),
            // Another pod's interface has the same index.
            (
                vec![cable(17, 2, Some(5)), cable(18, 2, Some(6))],
                Some(5),
                vec![17],
            ),
            (vec![cable(17, 2, Some(6))], Some(5), vec![]),
            (vec![cable(17, 4, Some(5))], Some(5), vec![]),
            (vec![cable(17, 2, Some(5))], None, vec![]),
        ] {
            assert_eq!(ends(&inside, &here, number), expected, "{here:?}");
        }
    }
}
