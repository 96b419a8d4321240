// SPDX-License-Identifier: Apache-2.0
//! Capturing as one value: started over cgroups, fed with plans, stopped cleanly.
//!
//! Order of a start: settings, then programs, then the plan and the pods; redirecting begins when the
//! proxy goes live. Until then the failure policy decides about what is registered. Dropping the value without [`Capture::stop`]
//! leaves everything in force, as a kill does.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    net::IpAddr,
    os::fd::{AsFd, OwnedFd},
    path::PathBuf,
    sync::Arc,
};

use aya::{
    Ebpf,
    maps::{Array, HashMap, MapData, MapError},
};
use egress_common::{
    maps::{COUNTERS, EVENTS, HEARTBEAT, ORIGINAL_DST, SETTINGS, WORKLOADS, WORKLOADS_CAPACITY},
    redirect::Settings,
    workload::{WorkloadEntry, WorkloadKey},
};
use ipnet::IpNet;

use super::{
    attach::{self, Cgroup},
    bpffs::PinDirectory,
    cgroups::{CgroupTree, WorkloadFinder, Workloads},
    counters::{CounterReader, CounterReading},
    destinations::Destinations,
    error::KernelError,
    events::Events,
    heartbeat::Heartbeat,
    loader,
    original_dst::OriginalDestinations,
    pods::Pods,
    redirect::DestinationPlan,
    settings::{keep_outbound_policy, outbound_number, own_netns_cookie, redirect_settings},
};
use crate::routing::table::OutboundPolicy;

/// What the kernel does with a registered destination that cannot be redirected.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum FailurePolicy {
    /// Leave the connection alone.
    Open,
    /// Refuse it with EPERM (default).
    #[default]
    Closed,
}

/// What to capture and where to send it.
#[derive(Debug, Clone)]
pub struct CaptureSettings {
    /// Directories of cgroups whose processes are captured; at least one, all in one hierarchy.
    pub cgroups: Vec<PathBuf>,
    /// Addresses on which the proxy listens: per family at most one loopback address (serves the
    /// agent's own network namespace) and one other (serves every namespace).
    pub redirect_ips: Vec<IpAddr>,
    /// The proxy's port, host byte order.
    pub port: u16,
    /// Where maps and links are pinned.
    pub bpffs: PathBuf,
    /// For connections that cannot be redirected.
    pub failure_policy: FailurePolicy,
    /// Networks left alone unless registered; in force until the first plan, unless a killed
    /// agent left its tables.
    pub internal_cidrs: Vec<IpNet>,
    /// Names for the cgroups of callers.
    pub workloads: Workloads,
}

/// Running capture: programs attached, maps and links pinned and owned.
#[derive(Debug)]
pub struct Capture {
    directory: PinDirectory,
    held: Held,
}

/// What a start yields beside the place of the pins.
struct Held {
    settings: Settings,
    settings_map: Array<MapData, Settings>,
    destinations: Destinations,
    workloads: HashMap<MapData, WorkloadKey, WorkloadEntry>,
    published: BTreeMap<WorkloadKey, WorkloadEntry>,
    originals: OriginalDestinations,
    counters: CounterReader,
    events: Option<Events>,
    pods: Pods,
    finder: Arc<WorkloadFinder>,
    // None where the kernel attaches nothing to cables.
    cable_program: Option<OwnedFd>,
    cables: BTreeSet<u32>,
    heartbeat_map: Option<Array<MapData, u64>>,
    // Stops when everything else has been let go.
    heartbeat: Option<Heartbeat>,
}

impl Capture {
    /// Loads and attaches the programs, taking over the pins of a killed agent.
    ///
    /// # Errors
    /// See [`KernelError`]. When it fails and no earlier agent had left links, nothing stays
    /// behind.
    pub fn start(settings: &CaptureSettings) -> Result<Self, KernelError> {
        loader::check_environment()?;
        let redirect = redirect_settings(settings)?;
        let cgroups = settings
            .cgroups
            .iter()
            .map(|path| Cgroup::open(path))
            .collect::<Result<Vec<_>, _>>()?;
        let trees = settings
            .cgroups
            .iter()
            .map(|path| CgroupTree::of(path))
            .collect::<Result<Vec<_>, _>>()?;
        let tree = trees
            .into_iter()
            .next()
            .ok_or_else(|| KernelError::NotCgroup2 {
                path: PathBuf::new(),
            })?;
        let directory = PinDirectory::own(&settings.bpffs)?;
        let taking_over = attach::has_links(&directory);
        match Self::start_owned(settings, redirect, &cgroups, tree, &directory) {
            Ok(held) => Ok(Self { directory, held }),
            Err(error) => {
                if !taking_over {
                    let undone =
                        attach::detach(&directory.links()).and_then(|()| directory.remove());
                    if let Err(error) = undone {
                        tracing::warn!(%error, "cannot undo a failed start");
                    }
                }
                Err(error)
            }
        }
    }

    fn start_owned(
        settings: &CaptureSettings,
        redirect: Settings,
        cgroups: &[Cgroup],
        tree: CgroupTree,
        directory: &PinDirectory,
    ) -> Result<Held, KernelError> {
        let mut ebpf = loader::load(directory)?;
        let own_netns_cookie = own_netns_cookie()?;
        let own_cgroup_id = loader::own_cgroup_id(&mut ebpf, &tree)?;
        let mut settings_map: Array<MapData, Settings> = loader::take_map(&mut ebpf, SETTINGS)?;
        let map_failed = |action, map| {
            move |source| KernelError::Map {
                action,
                map,
                source,
            }
        };
        let earlier = settings_map
            .get(&0, 0)
            .map_err(map_failed("read", SETTINGS))?;
        let redirect = Settings {
            own_cgroup_id,
            own_netns_cookie,
            ..keep_outbound_policy(redirect, &earlier)
        };
        let heartbeat_map = loader::take_map(&mut ebpf, HEARTBEAT)?;
        settings_map
            .set(0, redirect, 0)
            .map_err(map_failed("write", SETTINGS))?;
        let mut destinations = Destinations::take(&mut ebpf)?;
        destinations.publish_first(&settings.internal_cidrs)?;
        let originals = loader::take_map_data(&mut ebpf, ORIGINAL_DST)?;
        let workloads: HashMap<MapData, WorkloadKey, WorkloadEntry> =
            loader::take_map(&mut ebpf, WORKLOADS)?;
        // Listeners of an earlier agent are gone; what is known of its pods goes with the first
        // publication.
        let published = workloads
            .iter()
            .collect::<Result<_, _>>()
            .map_err(map_failed("read", WORKLOADS))?;
        let counters = CounterReader::new(loader::take_map(&mut ebpf, COUNTERS)?);
        let events = Events::new(loader::take_map(&mut ebpf, EVENTS)?);
        attach::attach(&ebpf, directory, cgroups)?;
        tracing::info!(own_cgroup_id, own_netns_cookie, "programs attached");
        let cable_program = keep_cable_program(&ebpf)?;
        let finder = Arc::new(WorkloadFinder::new(tree, settings.workloads.clone()));
        let pods = Pods::default();
        let originals =
            OriginalDestinations::new(originals, own_netns_cookie, pods.clone(), finder.clone());
        Ok(Held {
            settings: redirect,
            settings_map,
            destinations,
            workloads,
            published,
            originals,
            counters,
            events: Some(events),
            pods,
            finder,
            cable_program,
            cables: BTreeSet::new(),
            heartbeat_map: Some(heartbeat_map),
            heartbeat: None,
        })
    }

    /// Shows the kernel that the proxy is alive, from now on: until then the failure policy is in
    /// force. To be called when the listeners accept and the maps hold what they should.
    ///
    /// # Errors
    /// [`KernelError::Map`] when the kernel refuses the beat.
    pub fn go_live(&mut self) -> Result<(), KernelError> {
        if let Some(map) = self.held.heartbeat_map.take() {
            self.held.heartbeat = Some(Heartbeat::start(map)?);
        }
        Ok(())
    }

    /// The settings in force.
    pub fn settings(&self) -> &Settings {
        &self.held.settings
    }

    /// The table of pods, which accepted connections are looked up in.
    pub fn pods(&self) -> Pods {
        self.held.pods.clone()
    }

    /// Names cgroups.
    pub fn finder(&self) -> Arc<WorkloadFinder> {
        self.held.finder.clone()
    }

    /// The events of the kernel programs; `None` from the second call on.
    pub fn take_events(&mut self) -> Option<Events> {
        self.held.events.take()
    }

    /// Makes `WORKLOADS` hold exactly these entries.
    ///
    /// # Errors
    /// [`KernelError::MapTooSmall`] before anything is changed; [`KernelError::Map`] when the kernel
    /// refuses an entry: publish again.
    pub fn publish_workloads(
        &mut self,
        wanted: &BTreeMap<WorkloadKey, WorkloadEntry>,
    ) -> Result<(), KernelError> {
        if wanted.len() > WORKLOADS_CAPACITY {
            return Err(KernelError::MapTooSmall {
                map: WORKLOADS,
                capacity: WORKLOADS_CAPACITY,
                wanted: wanted.len(),
            });
        }
        let failed = |action| {
            move |source| KernelError::Map {
                action,
                map: WORKLOADS,
                source,
            }
        };
        let held = &mut self.held;
        let stale: Vec<_> = held
            .published
            .keys()
            .filter(|key| !wanted.contains_key(key))
            .copied()
            .collect();
        for key in stale {
            match held.workloads.remove(&key) {
                Ok(()) | Err(MapError::KeyNotFound) => {}
                Err(source) => return Err(failed("remove from")(source)),
            }
            held.published.remove(&key);
        }
        for (key, entry) in wanted {
            if held.published.get(key) != Some(entry) {
                held.workloads
                    .insert(key, entry, 0)
                    .map_err(failed("add to"))?;
                held.published.insert(*key, *entry);
            }
        }
        Ok(())
    }

    /// Says what happens to unregistered destinations; `by_workload`: entries of `WORKLOADS` differ.
    ///
    /// # Errors
    /// [`KernelError::Map`] when the kernel refuses it.
    pub fn set_outbound_policy(
        &mut self,
        policy: OutboundPolicy,
        by_workload: bool,
    ) -> Result<(), KernelError> {
        let settings = Settings {
            outbound_policy: outbound_number(policy),
            policy_by_workload: u32::from(by_workload),
            ..self.held.settings
        };
        if settings == self.held.settings {
            return Ok(());
        }
        self.held
            .settings_map
            .set(0, settings, 0)
            .map_err(|source| KernelError::Map {
                action: "write",
                map: SETTINGS,
                source,
            })?;
        self.held.settings = settings;
        Ok(())
    }

    /// Whether this kernel lets frames be checked; see [`super::features`].
    pub fn checks_frames(&self) -> bool {
        self.held.cable_program.is_some()
    }

    /// Checks the frames on exactly these interfaces; returns those where it is not possible. Does
    /// nothing on a kernel that lacks it.
    pub fn watch_cables(&mut self, interfaces: &BTreeSet<u32>) -> Vec<(u32, KernelError)> {
        let Some(program) = &self.held.cable_program else {
            return Vec::new();
        };
        if *interfaces == self.held.cables {
            return Vec::new();
        }
        let failed = attach::attach_cables(program.as_fd(), &self.directory, interfaces);
        self.held.cables.clone_from(interfaces);
        failed
    }

    /// Brings the destination maps to the plan: adds, then removes.
    ///
    /// # Errors
    /// [`KernelError::MapTooSmall`]: nothing was changed; keep the last snapshot.
    /// [`KernelError::Map`]: some entries were; publish again.
    pub fn publish(&mut self, plan: &DestinationPlan) -> Result<(), KernelError> {
        self.held.destinations.publish(plan)
    }

    /// Stops redirecting what the plan does not hold; the first half of a change, before the
    /// routing table forgets.
    ///
    /// # Errors
    /// As [`Self::publish`].
    pub fn retract(&mut self, plan: &DestinationPlan) -> Result<(), KernelError> {
        self.held.destinations.retract(plan)
    }

    /// A handle that answers for accepted sockets.
    pub fn originals(&self) -> OriginalDestinations {
        self.held.originals.clone()
    }

    /// The outcome counters.
    ///
    /// # Errors
    /// [`KernelError::Map`] when the kernel refuses the lookup.
    pub fn counters(&self) -> Result<Vec<CounterReading>, KernelError> {
        self.held.counters.read()
    }

    /// A handle that reads the outcome counters, for metrics.
    pub fn counter_reader(&self) -> CounterReader {
        self.held.counters.clone()
    }

    /// Detaches the programs, removes every pin and gives up ownership. Connections that were
    /// redirected live on; new ones are left alone.
    ///
    /// # Errors
    /// [`KernelError::File`] when a pin cannot be removed.
    pub fn stop(self) -> Result<(), KernelError> {
        attach::detach(&self.directory.links())?;
        self.directory.remove()
    }
}

impl fmt::Debug for Held {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Held")
            .field("settings", &self.settings)
            .finish_non_exhaustive()
    }
}

/// A handle to the program for cables that outlives the object; `None` when the loader left it out.
fn keep_cable_program(ebpf: &Ebpf) -> Result<Option<OwnedFd>, KernelError> {
    let program = ebpf.program(loader::TC_PROGRAM.name);
    let loaded = program.and_then(|program| program.fd().ok());
    loaded
        .map(|program| program.as_fd().try_clone_to_owned())
        .transpose()
        .map_err(|source| KernelError::Call {
            action: "keep the program for cables",
            source,
        })
}
