// SPDX-License-Identifier: Apache-2.0
//! What the kernel refused, for people: one line that says who, where to, why, and what would allow
//! it; counts for metrics; the last ones for `egress status`. Lines about the same thing are rate
//! limited, counts are not.

use std::{
    collections::{BTreeMap, HashMap, VecDeque},
    net::{IpAddr, SocketAddr},
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use egress_common::{
    counters::{Outcome, Program},
    event::Event,
    redirect::{TCP, UDP},
};

use crate::{
    config::snapshot::Snapshot,
    control::Denial,
    kernel::{Pods, cgroups::WorkloadFinder},
    routing::host::HostPattern,
    upstream::resolve::AddressBook,
    workload::Workload,
};

/// Between two lines about the same thing.
const QUIET: Duration = Duration::from_secs(10);
/// How long a caller's name is taken for granted.
const FRESH: Duration = Duration::from_secs(1);
/// Things that are remembered for it.
const REMEMBERED: usize = 1024;
/// Series of the metric; what comes later is counted under `other`.
const SERIES: usize = 1000;
/// Denials that `egress status` shows.
const SHOWN: usize = 20;

/// Denials so far. A clone is a handle to the same.
#[derive(Debug, Clone, Default)]
pub struct Denials(Arc<Mutex<State>>);

#[derive(Debug, Default)]
struct State {
    lines: HashMap<Line, Spoken>,
    callers: HashMap<Caller, (Instant, Who)>,
    counts: BTreeMap<Series, u64>,
    recent: VecDeque<Denial>,
}

/// Whom the kernel means.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct Caller {
    netns_cookie: u64,
    interface: u32,
    cgroup_id: u64,
}

/// What makes two denials the same for the log.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Line {
    who: Caller,
    destination: SocketAddr,
    protocol: u8,
    outcome: &'static str,
}

#[derive(Debug)]
struct Spoken {
    at: Instant,
    repeated: u64,
}

/// Labels of the metric.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
struct Series {
    workload: String,
    namespace: String,
    protocol: String,
    reason: &'static str,
}

/// What a denial is told with.
#[derive(Debug)]
pub struct Surroundings<'a> {
    /// Pods.
    pub pods: &'a Pods,
    /// Host processes.
    pub finder: &'a WorkloadFinder,
    /// Names of addresses.
    pub book: &'a AddressBook,
    /// What is registered.
    pub snapshot: &'a Snapshot,
}

/// Who was refused.
#[derive(Debug, Clone)]
struct Who {
    workload: Option<Arc<Workload>>,
    place: String,
}

impl Denials {
    /// Takes note of one.
    pub fn note(&self, event: &Event, around: &Surroundings<'_>) {
        let Some(outcome) = Outcome::from_number(event.outcome) else {
            return;
        };
        let caller = Caller {
            netns_cookie: event.netns_cookie,
            interface: event.interface,
            cgroup_id: event.cgroup_id,
        };
        let destination = SocketAddr::new(IpAddr::from(event.address), event.port.number());
        let mut state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let who = state.who(caller, around);
        let workload = who.workload.as_deref();
        state.count(Series {
            workload: known(workload.map(|w| w.name.as_str())),
            namespace: known(workload.map(|w| w.namespace.as_str())),
            protocol: protocol_name(event.protocol),
            reason: outcome.name(),
        });
        let line = Line {
            who: caller,
            destination,
            protocol: event.protocol,
            outcome: outcome.name(),
        };
        let Some(repeated) = state.speak(line) else {
            return;
        };
        let host = host_of(destination.ip(), around);
        let denial = Denial {
            workload: workload
                .and_then(Workload::qualified_name)
                .unwrap_or_else(|| "-".to_owned()),
            cgroup: who.place.clone(),
            pid: event.pid,
            host: host.clone(),
            // A socket that was never made has none.
            destination: match destination.ip().is_unspecified() {
                true => "-".to_owned(),
                false => destination.to_string(),
            },
            protocol: protocol_name(event.protocol),
            hook: Program::from_number(event.program)
                .map_or("-", Program::name)
                .to_owned(),
            reason: outcome.name().to_owned(),
            remedy: remedy(outcome, destination, event.protocol, host.as_deref()),
        };
        tracing::warn!(
            workload = denial.workload,
            cgroup = denial.cgroup,
            pid = denial.pid,
            host = denial.host.as_deref().unwrap_or("-"),
            destination = denial.destination,
            protocol = denial.protocol,
            hook = denial.hook,
            reason = denial.reason,
            remedy = denial.remedy,
            repeated,
            "denied"
        );
        state.recent.push_back(denial);
        if state.recent.len() > SHOWN {
            state.recent.pop_front();
        }
    }

    /// The last ones, oldest first.
    pub fn recent(&self) -> Vec<Denial> {
        let state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        state.recent.iter().cloned().collect()
    }

    /// Samples of `egress_denials_total`: labels and count.
    pub fn counts(&self) -> Vec<([(&'static str, String); 4], u64)> {
        let state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let sample = |(series, count): (&Series, &u64)| {
            let labels = [
                ("source_workload", series.workload.clone()),
                ("source_workload_namespace", series.namespace.clone()),
                ("protocol", series.protocol.clone()),
                ("reason", series.reason.to_owned()),
            ];
            (labels, *count)
        };
        state.counts.iter().map(sample).collect()
    }
}

impl State {
    /// Asking for a name takes system calls, which a flood of denials must not make.
    fn who(&mut self, caller: Caller, around: &Surroundings<'_>) -> Who {
        let now = Instant::now();
        if let Some((asked, who)) = self.callers.get(&caller)
            && now.duration_since(*asked) < FRESH
        {
            return who.clone();
        }
        if self.callers.len() >= REMEMBERED {
            self.callers.clear();
        }
        let who = who(caller, around);
        self.callers.insert(caller, (now, who.clone()));
        who
    }

    fn count(&mut self, series: Series) {
        if self.counts.len() >= SERIES && !self.counts.contains_key(&series) {
            let other = Series {
                workload: "other".to_owned(),
                namespace: "other".to_owned(),
                ..series
            };
            *self.counts.entry(other).or_default() += 1;
        } else {
            *self.counts.entry(series).or_default() += 1;
        }
    }

    /// How many went unsaid before this one; `None`: it stays unsaid too.
    fn speak(&mut self, line: Line) -> Option<u64> {
        let now = Instant::now();
        if let Some(spoken) = self.lines.get_mut(&line) {
            if now.duration_since(spoken.at) < QUIET {
                spoken.repeated += 1;
                return None;
            }
            spoken.at = now;
            return Some(std::mem::take(&mut spoken.repeated));
        }
        if self.lines.len() >= REMEMBERED {
            self.lines
                .retain(|_, spoken| now.duration_since(spoken.at) < QUIET);
        }
        if self.lines.len() >= REMEMBERED {
            return None;
        }
        let spoken = Spoken {
            at: now,
            repeated: 0,
        };
        self.lines.insert(line, spoken);
        Some(0)
    }
}

/// The pod of the namespace or cable, else the cgroup: the pod it belongs to, or the unit.
fn who(caller: Caller, around: &Surroundings<'_>) -> Who {
    let cgroup = || {
        let path = around.finder.tree().path_of(caller.cgroup_id);
        path.unwrap_or_default()
    };
    let pod = match (caller.netns_cookie, caller.interface) {
        (0, 0) => cgroup().and_then(|path| {
            let mut pods = around.pods.all().into_iter();
            pods.find(|pod| pod.cgroups.contains(&path))
        }),
        (0, interface) => around.pods.at_cable(interface),
        (cookie, _) => around.pods.find(cookie),
    };
    match pod {
        Some(pod) => Who {
            workload: pod.workload.clone(),
            place: pod.place(),
        },
        None => Who {
            workload: around.finder.find(caller.cgroup_id),
            place: cgroup().map_or_else(
                || format!("cgroup {}", caller.cgroup_id),
                |path| path.display().to_string(),
            ),
        },
    }
}

/// A registered name that has the address.
fn host_of(address: IpAddr, around: &Surroundings<'_>) -> Option<String> {
    let address = address.to_canonical();
    if let Some(name) = around.book.names_of(address).first() {
        return Some(name.clone());
    }
    let mut services = around.snapshot.table.objects().services.iter();
    services.find_map(|service| match &service.host {
        HostPattern::Exact(name) => service
            .addresses
            .iter()
            .any(|network| network.contains(&address))
            .then(|| name.clone()),
        _ => None,
    })
}

/// What the user can do about it.
fn remedy(outcome: Outcome, to: SocketAddr, protocol: u8, host: Option<&str>) -> String {
    let (address, port) = (to.ip(), to.port());
    let kind = match protocol {
        TCP => "TCP (or HTTP, TLS)",
        UDP => "UDP",
        _ => "",
    };
    match outcome {
        Outcome::NotRegisteredDenied => match (host, kind) {
            (_, "") => format!(
                "only TCP and UDP can be registered: add --internal-cidr {address} if it is inside"
            ),
            (Some(host), kind) => {
                format!("add port {port}, protocol {kind}, to the ServiceEntry of {host}")
            }
            (None, kind) => format!(
                "add a ServiceEntry whose host resolves to {address}, or with addresses: \
                 [{address}], and port {port}, protocol {kind}"
            ),
        },
        Outcome::QuicRefused => format!(
            "nothing, if the client falls back to TCP; else --quic allow, or a ServiceEntry port \
             {port}, protocol UDP"
        ),
        Outcome::RawSocketDenied => "raw sockets are refused under REGISTRY_ONLY: a Sidecar with \
                                     outboundTrafficPolicy ALLOW_ANY for this workload"
            .to_owned(),
        Outcome::MptcpSocketDenied => {
            "nothing, if the application falls back to TCP; else a Sidecar \
                                       with outboundTrafficPolicy ALLOW_ANY for this workload"
                .to_owned()
        }
        Outcome::NotRedirectedDenied => {
            "registered, but only through the proxy: use an ordinary TCP socket".to_owned()
        }
        Outcome::NoRedirectAddressDenied => {
            "the proxy does not listen in this network namespace yet, \
                                             or the socket is bound to a device: retry, or give \
                                             --redirect-ip, or --failure-policy open"
                .to_owned()
        }
        Outcome::ProxyDeadDenied => "start the agent, or --failure-policy open".to_owned(),
        _ => "--failure-policy open".to_owned(),
    }
}

fn protocol_name(protocol: u8) -> String {
    match protocol {
        1 => "icmp".to_owned(),
        TCP => "tcp".to_owned(),
        UDP => "udp".to_owned(),
        58 => "ipv6-icmp".to_owned(),
        132 => "sctp".to_owned(),
        136 => "udplite".to_owned(),
        number => number.to_string(),
    }
}

fn known(text: Option<&str>) -> String {
    match text {
        Some(text) if !text.is_empty() => text.to_owned(),
        _ => "unknown".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(port: u16) -> Line {
        Line {
            who: Caller {
                netns_cookie: 7,
                interface: 0,
                cgroup_id: 1,
            },
            destination: SocketAddr::new([203, 0, 113, 9].into(), port),
            protocol: TCP,
            outcome: "not_registered_denied",
        }
    }

    #[test]
    fn the_same_thing_is_said_once_and_other_things_are_said() {
        let mut state = State::default();
        assert_eq!(state.speak(line(1)), Some(0));
        assert_eq!(state.speak(line(1)), None);
        assert_eq!(state.speak(line(2)), Some(0));
        let spoken = state.lines.get_mut(&line(1)).unwrap();
        assert_eq!(spoken.repeated, 1);
        spoken.at -= QUIET;
        assert_eq!(state.speak(line(1)), Some(1), "what went unsaid is counted");
    }

    #[test]
    fn a_flood_of_different_things_is_bounded() {
        let mut state = State::default();
        let said = (0..2 * REMEMBERED as u16).filter(|port| state.speak(line(*port)).is_some());
        assert_eq!(said.count(), REMEMBERED);
        for number in 0..2 * SERIES {
            state.count(Series {
                workload: number.to_string(),
                namespace: String::new(),
                protocol: "tcp".to_owned(),
                reason: "x",
            });
        }
        assert!(state.counts.len() <= SERIES + 1, "{}", state.counts.len());
        assert_eq!(state.counts.values().sum::<u64>(), 2 * SERIES as u64);
    }

    #[test]
    fn remedy_names_the_object_that_would_allow_it() {
        let to = SocketAddr::new([203, 0, 113, 9].into(), 8443);
        for (outcome, protocol, host, expected) in [
            (
                Outcome::NotRegisteredDenied,
                TCP,
                None,
                "addresses: [203.0.113.9], and port 8443, protocol TCP",
            ),
            (
                Outcome::NotRegisteredDenied,
                UDP,
                Some("api.example"),
                "add port 8443, protocol UDP, to the ServiceEntry of api.example",
            ),
            (
                Outcome::NotRegisteredDenied,
                132,
                None,
                "--internal-cidr 203.0.113.9",
            ),
            (Outcome::QuicRefused, UDP, None, "--quic allow"),
            (Outcome::RawSocketDenied, 1, None, "Sidecar"),
        ] {
            let text = remedy(outcome, to, protocol, host);
            assert!(text.contains(expected), "{text}");
        }
    }
}
