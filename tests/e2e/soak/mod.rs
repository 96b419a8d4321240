// SPDX-License-Identifier: Apache-2.0
//! Pods that come and go all the time while others work and the configuration changes: nothing may
//! be mixed up, nothing may stay behind.
//!
//! Takes ten seconds among the other tests. Longer, with its numbers shown:
//!
//! ```text
//! EGRESS_SOAK_SECONDS=60 cargo xtask test --only e2e soak
//! ```
//!
//! `held`: what may not stay behind; `access`: what the access log must say.

mod access;
mod held;

use std::{
    collections::{BTreeMap, BTreeSet},
    env,
    io::Write as _,
    sync::{
        Condvar, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use lab::{
    binary,
    net::{HTTPBIN, Net, interface},
    node::Node,
    process::Stream,
};
use nix::sys::signal::Signal;
use serde_json::Value;

use self::{
    access::check,
    held::{descriptors, held},
};
use crate::{configure, mesh_config, net, service_entry};

/// Pods at a time.
const PODS: usize = 20;
/// Clients at a time.
const CLIENTS: usize = 8;
/// Subnets that each place for a pod uses in turn; the first of all is [`FIRST_SUBNET`].
const SUBNETS: usize = 12;
const FIRST_SUBNET: usize = 11;
/// Requests of a client.
const REQUESTS: usize = 220;
/// How long a pod may take to be served, and its network to be gone after it.
const PATIENCE: Duration = Duration::from_secs(20);
/// Between two changes of the configuration.
const RELOAD: Duration = Duration::from_secs(1);

/// Registered, as HTTP: each request has its access line, with its path.
const CAPTURED: [&str; 7] = [
    "httpbin.org@203.0.113.10:80",
    "many.test@203.0.113.20:8001",
    "many.test@[::ffff:203.0.113.21]:8002",
    "many.test@203.0.113.22:8001",
    "many.test@[2001:db8:113::10]:8001",
    "many.test@[2001:db8:113::10]:8002",
    // Captured by its address, forwarded to it though nobody registers the host.
    "stranger.test@203.0.113.20:8002",
];
/// Registered as TCP, registered every other second, and never.
const OTHERS: [&str; 6] = [
    "tcp.test@203.0.113.21:8003",
    "toggled.test@203.0.113.23:8004",
    "toggled.test@[::ffff:203.0.113.23]:8004",
    "nobody.test@203.0.113.11:8001",
    "nobody.test@[::ffff:203.0.113.11]:8002",
    "nobody.test@[2001:db8:113::11]:80",
];

/// What all threads of a run share.
struct Soak<'a> {
    net: &'a Net,
    node: &'a Node<'a>,
    end: Instant,
    /// Set by the first thread that fails.
    stop: AtomicBool,
    /// Set when no pod is left.
    ended: AtomicBool,
    failures: Mutex<Vec<String>>,
    /// Cgroups' names of the pods that the agent serves.
    served: Mutex<BTreeSet<String>>,
    looked: Condvar,
    /// Clients that may start now.
    free: Mutex<usize>,
    freed: Condvar,
    pods: AtomicUsize,
    killed: AtomicUsize,
    requests: AtomicUsize,
    connections: AtomicUsize,
    /// Requests that were refused; right only when the kernel took the agent for dead.
    refused: Mutex<Vec<String>>,
    reloads: AtomicUsize,
    /// Of the agent, at their peak.
    descriptors: AtomicUsize,
    /// Answered requests to [`CAPTURED`] of each pod that finished.
    asked: Mutex<BTreeMap<String, usize>>,
    slowest: Mutex<BTreeMap<&'static str, Duration>>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The objects that stay, and one that comes and goes.
fn objects(net: &Net, generation: usize) -> std::path::PathBuf {
    let many = "addresses: [203.0.113.20/30, \"2001:db8:113::10\"]\n  resolution: NONE";
    let tcp = "addresses: [203.0.113.21]\n  resolution: NONE";
    let stays = service_entry("httpbin", &["httpbin.org"], &[80], "resolution: DNS")
        + &service_entry("many", &["many.test"], &[8001, 8002], many)
        + &service_entry("tcp", &["tcp.test"], &[8003], tcp).replace("HTTP}", "TCP}");
    let toggled = match generation % 2 {
        0 => {
            let toggled = "addresses: [203.0.113.23]\n  resolution: NONE";
            service_entry("toggled", &["toggled.test"], &[8004], toggled)
        }
        _ => service_entry("idle", &["idle.test"], &[8004], "resolution: DNS"),
    };
    configure(net, "stays.yaml", &stays);
    configure(net, "toggled.yaml", &toggled)
}

/// A name for the pods of each subnet.
fn workloads() -> String {
    let subnets = FIRST_SUBNET..FIRST_SUBNET + PODS * SUBNETS;
    let entry = |subnet| {
        format!("- {{cgroup: /egress-lab-*/w{subnet}-*, namespace: soak, name: w{subnet}}}\n")
    };
    subnets.map(entry).collect()
}

impl<'a> Soak<'a> {
    fn new(net: &'a Net, node: &'a Node<'a>, end: Instant) -> Self {
        Self {
            net,
            node,
            end,
            stop: AtomicBool::new(false),
            ended: AtomicBool::new(false),
            failures: Mutex::default(),
            served: Mutex::default(),
            looked: Condvar::new(),
            free: Mutex::new(CLIENTS),
            freed: Condvar::new(),
            pods: AtomicUsize::new(0),
            killed: AtomicUsize::new(0),
            requests: AtomicUsize::new(0),
            connections: AtomicUsize::new(0),
            refused: Mutex::default(),
            reloads: AtomicUsize::new(0),
            descriptors: AtomicUsize::new(0),
            asked: Mutex::default(),
            slowest: Mutex::default(),
        }
    }

    /// Every thread, to its end.
    fn run(&self) {
        thread::scope(|scope| {
            let places: Vec<_> = (0..PODS)
                .map(|place| scope.spawn(move || self.guard(|| self.place(place))))
                .collect();
            scope.spawn(|| self.guard(|| self.look()));
            scope.spawn(|| self.guard(|| self.reload()));
            scope.spawn(|| self.guard(|| self.count_descriptors()));
            let results: Vec<_> = places.into_iter().map(|place| place.join()).collect();
            self.ended.store(true, Ordering::Relaxed);
            assert!(results.iter().all(Result::is_ok), "a thread panicked");
        });
    }

    /// The numbers of the run, past the test harness.
    fn tell(&self, more: &str) {
        let [pods, killed, requests, connections, reloads, descriptors] = [
            &self.pods,
            &self.killed,
            &self.requests,
            &self.connections,
            &self.reloads,
            &self.descriptors,
        ]
        .map(|number| number.load(Ordering::Relaxed));
        let slowest = lock(&self.slowest);
        let _ = writeln!(
            std::io::stderr(),
            "soak: {pods} pods ({killed} killed at work), {requests} requests, {connections} \
             connections, {reloads} reloads, at most {descriptors} descriptors; {more}; slowest: \
             {slowest:.1?}"
        );
    }

    fn has_ended(&self) -> bool {
        self.ended.load(Ordering::Relaxed) || self.stop.load(Ordering::Relaxed)
    }

    fn runs(&self) -> bool {
        Instant::now() < self.end && !self.stop.load(Ordering::Relaxed)
    }

    /// Runs a thread's work until its end; its failure ends the run.
    fn guard(&self, work: impl FnOnce() -> Result<()>) {
        if let Err(error) = work() {
            if !self.stop.swap(true, Ordering::Relaxed) {
                lock(&self.failures).push(format!("{error:#}"));
            }
            self.looked.notify_all();
            self.freed.notify_all();
        }
    }

    fn note(&self, what: &'static str, since: Instant) {
        let mut slowest = lock(&self.slowest);
        let longest = slowest.entry(what).or_default();
        *longest = since.elapsed().max(*longest);
    }

    /// Keeps `served` as the agent says, for all who wait.
    fn look(&self) -> Result<()> {
        while !self.has_ended() {
            let (_, text) = self.node.admin("/workloads")?;
            let all: Vec<Value> = serde_json::from_str(&text).context("the dump of workloads")?;
            let served = all.iter().filter_map(|workload| {
                let pod = &workload["pod"];
                let name = pod["cgroups"][0].as_str()?.rsplit('/').next()?;
                let subnet = workload["name"].as_str()?.strip_prefix('w')?;
                // A process is in its pod's cgroup before it is in its network.
                let own = pod["addresses"][0] == format!("10.88.{subnet}.2")
                    && pod["addresses"][1] == format!("fd00:88:{subnet}::2");
                (own && pod["admitted"] == true).then(|| name.to_owned())
            });
            *lock(&self.served) = served.collect();
            self.looked.notify_all();
            thread::sleep(Duration::from_millis(20));
        }
        Ok(())
    }

    /// Waits until a thread is told that `holds`.
    fn wait<T>(
        &self,
        what: &str,
        (mutex, changed): (&Mutex<T>, &Condvar),
        limit: Duration,
        mut holds: impl FnMut(&mut T) -> bool,
    ) -> Result<()> {
        let deadline = Instant::now() + limit;
        let mut value = lock(mutex);
        while !holds(&mut value) {
            ensure!(!self.stop.load(Ordering::Relaxed), "another thread failed");
            let Some(left) = deadline.checked_duration_since(Instant::now()) else {
                bail!(
                    "{what} did not happen within {limit:?}\n{}",
                    self.node.process()
                );
            };
            let waited = changed.wait_timeout(value, left);
            value = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
        Ok(())
    }

    /// One pod after the other, in the subnets of one place.
    fn place(&self, place: usize) -> Result<()> {
        for life in 0.. {
            if !self.runs() {
                break;
            }
            let subnet = FIRST_SUBNET + place * SUBNETS + life % SUBNETS;
            self.life(u8::try_from(subnet)?, life, (place + life) % 2 == 1)?;
        }
        Ok(())
    }

    /// One pod, from its creation to the end of its network. `violent`: it goes while it works.
    fn life(&self, subnet: u8, life: usize, violent: bool) -> Result<()> {
        let name = format!("w{subnet}-{life}");
        let pod = self.net.add_pod(&name, subnet)?;
        self.pods.fetch_add(1, Ordering::Relaxed);
        let made = Instant::now();
        let served = (&self.served, &self.looked);
        self.wait(&format!("serving {name}"), served, PATIENCE, |served| {
            served.contains(&name)
        })?;
        self.note("until a pod is served", made);
        let places = (&self.free, &self.freed);
        // Every place ahead may need it for its whole patience.
        self.wait("a client's place", places, PATIENCE * 10, |free| {
            let is_free = *free > 0;
            *free -= usize::from(is_free);
            is_free
        })?;
        let worked = self.work(&pod, &name, violent);
        *lock(&self.free) += 1;
        self.freed.notify_one();
        worked?;
        drop(pod);
        let deleted = Instant::now();
        while self.net.node_has(&interface(subnet))? {
            ensure!(
                deleted.elapsed() < PATIENCE,
                "the network of {name} is still there"
            );
            thread::sleep(Duration::from_millis(20));
        }
        self.note("until a network is gone", deleted);
        Ok(())
    }

    /// A client in a pod; every answer that is wrong or missing is a failure, also before the
    /// violent end of a pod.
    fn work(&self, pod: &lab::net::Pod, name: &str, violent: bool) -> Result<()> {
        let mut command = vec![
            binary("lab-client")?.display().to_string(),
            "mixed".to_owned(),
        ];
        command.extend(["--count".to_owned(), REQUESTS.to_string()]);
        command.extend(["--path".to_owned(), format!("/get?pod={name}")]);
        command.extend(
            CAPTURED
                .iter()
                .chain(&OTHERS)
                .map(|&target| target.to_owned()),
        );
        let mut client = pod.spawn(&command)?;
        if violent {
            let half = |line: &str| line.starts_with("half");
            let line = client.wait_for_line("half of the requests", PATIENCE * 3, half)?;
            let connections = line.split(' ').find_map(|word| word.parse::<usize>().ok());
            let connections = connections.context("connections")?;
            self.connections.fetch_add(connections, Ordering::Relaxed);
            client.signal(Signal::SIGKILL)?;
            self.killed.fetch_add(1, Ordering::Relaxed);
        }
        client.wait(PATIENCE * 3)?;
        let lines = client.lines(Stream::Stdout);
        for wrong in lines.iter().filter(|line| line.starts_with("wrong")) {
            // EPERM is right while the heartbeat is late, which it is on a machine that stands
            // still; whether it was is seen in the end.
            ensure!(wrong.contains("(os error 1)"), "{name}: {wrong}");
            lock(&self.refused).push(format!("{name}: {wrong}"));
        }
        if violent {
            self.requests.fetch_add(REQUESTS / 2, Ordering::Relaxed);
            return Ok(());
        }
        let report = lines.last().context("a report")?;
        let report: Value = serde_json::from_str(report).with_context(|| format!("{client}"))?;
        let number = |value: &Value| value.as_u64().and_then(|n| usize::try_from(n).ok());
        let requests = number(&report["requests"]).context("requests")?;
        let connections = number(&report["connections"]).context("connections")?;
        self.requests.fetch_add(requests, Ordering::Relaxed);
        self.connections.fetch_add(connections, Ordering::Relaxed);
        let asked = CAPTURED
            .iter()
            .filter_map(|target| number(&report["answered"][target]));
        lock(&self.asked).insert(name.to_owned(), asked.sum());
        Ok(())
    }

    /// Changes the configuration every second.
    fn reload(&self) -> Result<()> {
        let mut next = Instant::now() + RELOAD;
        while self.runs() {
            if Instant::now() >= next {
                next += RELOAD;
                objects(self.net, self.reloads.fetch_add(1, Ordering::Relaxed) + 1);
            }
            thread::sleep(Duration::from_millis(50));
        }
        Ok(())
    }

    fn count_descriptors(&self) -> Result<()> {
        while !self.has_ended() {
            let (all, _) = descriptors(self.node.process().pid())?;
            self.descriptors.fetch_max(all, Ordering::Relaxed);
            // Tells of a machine that stands still, which the heartbeat's limit (2 s) takes for a
            // dead agent.
            let asleep = Instant::now();
            thread::sleep(Duration::from_millis(100));
            self.note("a sleep of 100 ms", asleep);
        }
        Ok(())
    }
}

/// What the agent said beyond the usual.
fn complaints(node: &Node<'_>) -> String {
    let lines = node.process().lines(Stream::Stderr);
    let lines = lines.into_iter().filter(|line| !line.contains(" INFO "));
    lines.collect::<Vec<_>>().join("\n")
}

#[test]
fn pods_that_come_and_go_are_never_mixed_up_and_leave_nothing() {
    let Some(net) = net("soak") else { return };
    let seconds = env::var("EGRESS_SOAK_SECONDS").ok();
    let seconds = seconds.map_or(10, |text| text.parse().unwrap());
    assert!(CAPTURED[0].contains(HTTPBIN));
    let config = objects(&net, 0);
    let mesh = mesh_config(&net, "accessLogEncoding: JSON\n");
    let names = net.directory.write("names.yaml", &workloads()).unwrap();
    let names = names.display().to_string();
    let flags = ["--mesh-config", &mesh, "--workloads", &names];
    let node = Node::start(&net, &config, &flags).unwrap();
    node.eventually("the lab's own pods are served", || {
        Ok(node.metric("egress_pods_listening", &[])? == Some(2.0))
    })
    .unwrap();
    let before = held(&net, &node).unwrap();

    let started = Instant::now();
    let soak = Soak::new(&net, &node, started + Duration::from_secs(seconds));
    soak.run();
    let worked = started.elapsed();
    let failures = lock(&soak.failures).clone();
    let slowest = lock(&soak.slowest).clone();
    assert!(
        failures.is_empty(),
        "{failures:#?}, slowest: {slowest:?}\n{}",
        complaints(&node)
    );

    let late = [("outcome", "proxy_dead_denied")];
    let late = node.metric("egress_kernel_outcomes_total", &late).unwrap();
    let refused = lock(&soak.refused).clone();
    let stood_still = slowest["a sleep of 100 ms"] > Duration::from_secs(1);
    assert!(
        refused.is_empty() || (stood_still && late >= Some(refused.len() as f64)),
        "{refused:#?}, slowest: {slowest:?}, late: {late:?}\n{}",
        complaints(&node)
    );

    let mut after = None;
    let back = node.eventually("everything is as before", || {
        let now = held(&net, &node)?;
        let same = now == before;
        after = Some(now);
        Ok(same)
    });
    let back_after = started.elapsed() - worked;
    back.unwrap_or_else(|error| panic!("{before:#?}\n{after:#?}\n{error:#}"));
    let asked = lock(&soak.asked).clone();
    node.eventually("the last access lines", || {
        let (_, by_pod) = check(&node.process().lines(Stream::Stdout))?;
        Ok(asked
            .iter()
            .all(|(pod, count)| by_pod.get(pod) >= Some(count)))
    })
    .unwrap();
    let (lines, by_pod) = check(&node.process().lines(Stream::Stdout)).unwrap();
    for (pod, count) in &asked {
        assert_eq!(by_pod.get(pod), Some(count), "captured requests of {pod}");
    }
    let unknown = node.metric("egress_connections_refused_total", &[]);
    assert_eq!(
        unknown.unwrap(),
        Some(0.0),
        "the proxy knew every connection"
    );
    let before = before.descriptors;
    soak.tell(&format!(
        "{worked:.0?}, {} refused by a late heartbeat, {lines} access lines, {before} descriptors before, all as before \
         {back_after:.1?} after the last pod",
        refused.len()
    ));
}
