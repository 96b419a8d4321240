// SPDX-License-Identifier: Apache-2.0
//! Capturing as one value: started over cgroups, fed with plans, stopped cleanly.
//!
//! Order of a start: settings, then programs; redirecting begins with the first published plan
//! (or with the tables that a killed agent left). Dropping the value without [`Capture::stop`]
//! leaves everything in force, as a kill does.

use std::{
    net::{IpAddr, UdpSocket},
    path::PathBuf,
};

use aya::maps::{Array, MapData};
use egress_common::{
    address::{Address, Port},
    maps::{COUNTERS, LAYOUT_VERSION, ORIGINAL_DST, SETTINGS},
    redirect::{FAILURE_POLICY_CLOSED, FAILURE_POLICY_OPEN, Settings},
};
use ipnet::IpNet;

use super::{
    attach::{self, Cgroup},
    bpffs::PinDirectory,
    cgroups::{CgroupTree, WorkloadFinder, Workloads},
    counters::{CounterReader, CounterReading},
    destinations::Destinations,
    error::KernelError,
    loader,
    original_dst::OriginalDestinations,
    redirect::DestinationPlan,
    syscall,
};

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
    destinations: Destinations,
    originals: OriginalDestinations,
    counters: CounterReader,
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
            Ok((destinations, originals, counters)) => Ok(Self {
                directory,
                destinations,
                originals,
                counters,
            }),
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
    ) -> Result<(Destinations, OriginalDestinations, CounterReader), KernelError> {
        let mut ebpf = loader::load(directory)?;
        let own_netns_cookie = own_netns_cookie()?;
        let own_cgroup_id = loader::own_cgroup_id(&mut ebpf, &tree)?;
        let mut settings_map: Array<MapData, Settings> = loader::take_map(&mut ebpf, SETTINGS)?;
        let redirect = Settings {
            own_cgroup_id,
            own_netns_cookie,
            ..redirect
        };
        settings_map
            .set(0, redirect, 0)
            .map_err(|source| KernelError::Map {
                action: "write",
                map: SETTINGS,
                source,
            })?;
        let mut destinations = Destinations::take(&mut ebpf)?;
        destinations.publish_first(&settings.internal_cidrs)?;
        let originals = loader::take_map_data(&mut ebpf, ORIGINAL_DST)?;
        let counters = CounterReader::new(loader::take_map(&mut ebpf, COUNTERS)?);
        attach::attach(&mut ebpf, directory, cgroups)?;
        tracing::info!(own_cgroup_id, own_netns_cookie, "programs attached");
        let finder = WorkloadFinder::new(tree, settings.workloads.clone());
        let originals = OriginalDestinations::new(originals, own_netns_cookie, finder);
        Ok((destinations, originals, counters))
    }

    /// Brings the destination maps to the plan: adds, then removes.
    ///
    /// # Errors
    /// [`KernelError::MapTooSmall`]: nothing was changed; keep the last snapshot.
    /// [`KernelError::Map`]: some entries were; publish again.
    pub fn publish(&mut self, plan: &DestinationPlan) -> Result<(), KernelError> {
        self.destinations.publish(plan)
    }

    /// Stops redirecting what the plan does not hold; the first half of a change, before the
    /// routing table forgets.
    ///
    /// # Errors
    /// As [`Self::publish`].
    pub fn retract(&mut self, plan: &DestinationPlan) -> Result<(), KernelError> {
        self.destinations.retract(plan)
    }

    /// A handle that answers for accepted sockets.
    pub fn originals(&self) -> OriginalDestinations {
        self.originals.clone()
    }

    /// The outcome counters.
    ///
    /// # Errors
    /// [`KernelError::Map`] when the kernel refuses the lookup.
    pub fn counters(&self) -> Result<Vec<CounterReading>, KernelError> {
        self.counters.read()
    }

    /// A handle that reads the outcome counters, for metrics.
    pub fn counter_reader(&self) -> CounterReader {
        self.counters.clone()
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

/// The agent's network namespace, as the kernel counts them.
fn own_netns_cookie() -> Result<u64, KernelError> {
    let call_failed = |source| KernelError::Call {
        action: "read SO_NETNS_COOKIE",
        source,
    };
    let socket = UdpSocket::bind(("0.0.0.0", 0)).map_err(call_failed)?;
    syscall::netns_cookie(&socket).map_err(call_failed)
}

/// The element of `SETTINGS` without the agent's identity.
fn redirect_settings(settings: &CaptureSettings) -> Result<Settings, KernelError> {
    let mut redirect = Settings {
        layout_version: LAYOUT_VERSION,
        failure_policy: match settings.failure_policy {
            FailurePolicy::Open => FAILURE_POLICY_OPEN,
            FailurePolicy::Closed => FAILURE_POLICY_CLOSED,
        },
        redirect_port: Port::new(settings.port),
        ..Settings::default()
    };
    for ip in &settings.redirect_ips {
        let address = Address::from(*ip);
        let place = match (address.to_v4(), address.is_loopback()) {
            (Some(_), true) => &mut redirect.loopback4,
            (Some(_), false) => &mut redirect.node4,
            (None, true) => &mut redirect.loopback6,
            (None, false) => &mut redirect.node6,
        };
        if place.is_some() {
            return Err(KernelError::RedirectAddressTwice {
                first: IpAddr::from(*place),
                second: *ip,
            });
        }
        *place = address;
    }
    Ok(redirect)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings(redirect_ips: &[&str]) -> CaptureSettings {
        CaptureSettings {
            cgroups: Vec::new(),
            redirect_ips: redirect_ips.iter().map(|ip| ip.parse().unwrap()).collect(),
            port: 15001,
            bpffs: PathBuf::new(),
            failure_policy: FailurePolicy::Closed,
            internal_cidrs: Vec::new(),
            workloads: Workloads::default(),
        }
    }

    #[test]
    fn redirect_addresses_are_sorted_by_family_and_reach() {
        let redirect =
            redirect_settings(&settings(&["fd00::1", "127.0.0.1", "10.0.0.1", "::1"])).unwrap();
        for (place, expected) in [
            (redirect.loopback4, "127.0.0.1"),
            (redirect.loopback6, "::1"),
            (redirect.node4, "10.0.0.1"),
            (redirect.node6, "fd00::1"),
        ] {
            assert_eq!(IpAddr::from(place).to_string(), expected);
        }
        assert_eq!(redirect.redirect_port.number(), 15001);
    }

    #[test]
    fn two_redirect_addresses_for_the_same_sockets_are_refused() {
        let error = redirect_settings(&settings(&["10.0.0.1", "10.0.0.2"])).unwrap_err();
        assert!(
            error.to_string().contains("10.0.0.1 and 10.0.0.2"),
            "{error}"
        );
    }
}
