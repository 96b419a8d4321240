// SPDX-License-Identifier: Apache-2.0
//! Pods that come and go all the time while others work and the configuration changes: nothing may
//! be mixed up, nothing may stay behind.
//!
//! Takes ten seconds among the other tests. Longer, with its numbers shown:
//!
//! ```text
//! EGRESS_SOAK_SECONDS=60 cargo xtask test --only e2e soak
//! ```

use std::{
    collections::{BTreeMap, BTreeSet},
    env, fs,
    io::{Read as _, Write as _},
    net::{IpAddr, SocketAddr, TcpListener, TcpStream},
    os::unix::fs::MetadataExt as _,
    sync::{
        Condvar, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use lab::{
    binary, egress_binary,
    hop::SOON,
    net::{HTTPBIN, Net, interface},
    netns::Netns,
    node::{self, Node},
    process::{Process, Stream},
};
use nix::sys::signal::Signal;
use serde_json::Value;

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
    /// Requests to [`CAPTURED`] of each pod that finished.
    asked: Mutex<BTreeMap<String, usize>>,
    slowest: Mutex<BTreeMap<&'static str, Duration>>,
}

/// What the agent holds.
#[derive(Debug, PartialEq, Eq)]
struct Held {
    descriptors: usize,
    workloads: usize,
    originals: usize,
    interfaces: Vec<String>,
    namespaces: Vec<String>,
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

impl Soak<'_> {
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
    fn look(&self, ended: &AtomicBool) -> Result<()> {
        while !ended.load(Ordering::Relaxed) && !self.stop.load(Ordering::Relaxed) {
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
        if let Some(wrong) = lines.iter().find(|line| line.starts_with("wrong")) {
            bail!("{name}: {wrong}");
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
            .filter_map(|target| number(&report["asked"][target]));
        lock(&self.asked).insert(name.to_owned(), asked.sum());
        Ok(())
    }

    /// Changes the configuration every second; how often it did.
    fn reload(&self) -> Result<usize> {
        let mut generation = 0;
        let mut next = Instant::now() + RELOAD;
        while self.runs() {
            if Instant::now() >= next {
                next += RELOAD;
                generation += 1;
                objects(self.net, generation);
            }
            thread::sleep(Duration::from_millis(50));
        }
        Ok(generation)
    }
}

/// Sockets of the node's network that are connections: those to servers are kept for a while.
fn kept_connections(pid: u32) -> Result<BTreeSet<String>> {
    let mut found = BTreeSet::new();
    for table in ["tcp", "tcp6"] {
        let text = fs::read_to_string(format!("/proc/{pid}/net/{table}"))?;
        for line in text.lines().skip(1) {
            let fields: Vec<_> = line.split_whitespace().collect();
            // 0A: it listens (include/net/tcp_states.h).
            if let (Some(state), Some(inode)) = (fields.get(3), fields.get(9))
                && *state != "0A"
            {
                found.insert(format!("socket:[{inode}]"));
            }
        }
    }
    Ok(found)
}

/// Descriptors of the agent: all, and those that are not connections to servers.
fn descriptors(pid: u32) -> Result<(usize, usize)> {
    let kept = kept_connections(pid)?;
    let all: Vec<_> = fs::read_dir(format!("/proc/{pid}/fd"))?
        .flatten()
        .map(|entry| fs::read_link(entry.path()).unwrap_or_default())
        .collect();
    let others = all
        .iter()
        .filter(|to| !kept.contains(to.to_string_lossy().as_ref()));
    Ok((all.len(), others.count()))
}

fn held(net: &Net, node: &Node<'_>) -> Result<Held> {
    let egress = egress_binary()?.display().to_string();
    let bpffs = node::bpffs(net).display().to_string();
    let dump = [egress.as_str(), "dump", "maps", "--bpffs", &bpffs];
    let dump = Process::output("egress dump maps", &dump, SOON)?;
    let dump: Value = serde_json::from_str(&dump)?;
    let count = |map: &str| {
        dump[map]
            .as_array()
            .map(Vec::len)
            .context("a map's entries")
    };
    let lab = net.cgroup.path().file_name().context("a name")?;
    let lab = lab.to_string_lossy();
    let namespaces = fs::read_dir("/run/netns")?.flatten();
    let namespaces = namespaces.map(|entry| entry.file_name().to_string_lossy().into_owned());
    let mut namespaces: Vec<_> = namespaces.filter(|name| name.starts_with(&*lab)).collect();
    namespaces.sort();
    Ok(Held {
        descriptors: descriptors(node.process().pid())?.1,
        workloads: count("WORKLOADS")?,
        originals: count("ORIGINAL_DST")?,
        interfaces: net.node_interfaces()?,
        namespaces,
    })
}

/// Every access line tells of a pod's own traffic; how many there are for each pod's captured paths.
fn check(lines: &[String]) -> Result<(usize, BTreeMap<String, usize>)> {
    let (mut count, mut by_pod) = (0, BTreeMap::new());
    for text in lines.iter().filter(|line| line.starts_with('{')) {
        let line: Value = serde_json::from_str(text).context("an access line")?;
        let workload = line["source_workload"].as_str().unwrap_or_default();
        let remote: SocketAddr = line["downstream_remote_address"]
            .as_str()
            .and_then(|text| text.parse().ok())
            .with_context(|| format!("an address in {text}"))?;
        let subnet = workload
            .strip_prefix('w')
            .with_context(|| format!("a workload in {text}"))?;
        let own: [IpAddr; 2] = [
            format!("10.88.{subnet}.2").parse()?,
            format!("fd00:88:{subnet}::2").parse()?,
        ];
        ensure!(own.contains(&remote.ip()), "another pod's address: {text}");
        ensure!(line["source_namespace"] == "soak", "{text}");
        count += 1;
        let Some(path) = line["path"].as_str() else {
            continue;
        };
        let parameters = path
            .split_once("?pod=")
            .and_then(|(_, rest)| rest.split_once("&to="));
        let (pod, to) = parameters.with_context(|| format!("a path of ours in {text}"))?;
        ensure!(
            pod.split_once('-').is_some_and(|(of, _)| of == workload),
            "another pod's request: {text}"
        );
        ensure!(
            line["original_destination"] == to,
            "another destination: {text}"
        );
        if line["authority"] != "toggled.test" {
            *by_pod.entry(pod.to_owned()).or_default() += 1;
        }
    }
    Ok((count, by_pod))
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
    let pid = node.process().pid();
    node.eventually("the lab's own pods are served", || {
        Ok(node.metric("egress_pods_listening", &[])? == Some(2.0))
    })
    .unwrap();
    let before = held(&net, &node).unwrap();

    let started = Instant::now();
    let soak = Soak {
        net: &net,
        node: &node,
        end: started + Duration::from_secs(seconds),
        stop: AtomicBool::new(false),
        failures: Mutex::default(),
        served: Mutex::default(),
        looked: Condvar::new(),
        free: Mutex::new(CLIENTS),
        freed: Condvar::new(),
        pods: AtomicUsize::new(0),
        killed: AtomicUsize::new(0),
        requests: AtomicUsize::new(0),
        connections: AtomicUsize::new(0),
        asked: Mutex::default(),
        slowest: Mutex::default(),
    };
    let (ended, reloads, peak) = (
        AtomicBool::new(false),
        AtomicUsize::new(0),
        AtomicUsize::new(0),
    );
    thread::scope(|scope| {
        let places: Vec<_> = (0..PODS)
            .map(|place| {
                let soak = &soak;
                scope.spawn(move || soak.guard(|| soak.place(place)))
            })
            .collect();
        scope.spawn(|| soak.guard(|| soak.look(&ended)));
        scope.spawn(|| {
            soak.guard(|| {
                reloads.store(soak.reload()?, Ordering::Relaxed);
                Ok(())
            });
        });
        scope.spawn(|| {
            while !ended.load(Ordering::Relaxed) {
                let (all, _) = descriptors(pid).unwrap_or_default();
                peak.fetch_max(all, Ordering::Relaxed);
                thread::sleep(Duration::from_millis(100));
            }
        });
        for place in places {
            let _ = place.join();
        }
        ended.store(true, Ordering::Relaxed);
    });
    let worked = started.elapsed();
    let failures = soak.failures.into_inner().unwrap();
    let said = || {
        let lines = node.process().lines(Stream::Stderr);
        let lines = lines.into_iter().filter(|line| !line.contains(" INFO "));
        lines.collect::<Vec<_>>().join("\n")
    };
    assert!(failures.is_empty(), "{failures:#?}\n{}", said());

    let mut after = None;
    let back = node.eventually("everything is as before", || {
        let now = held(&net, &node)?;
        let same = now == before;
        after = Some(now);
        Ok(same)
    });
    let back_after = started.elapsed() - worked;
    back.unwrap_or_else(|error| panic!("{before:#?}\n{after:#?}\n{error:#}"));
    let asked = soak.asked.into_inner().unwrap();
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
    let refused = node.metric("egress_connections_refused_total", &[]);
    assert_eq!(
        refused.unwrap(),
        Some(0.0),
        "the proxy knew every connection"
    );
    let _ = writeln!(
        std::io::stderr(),
        "soak: {worked:.0?}, {} pods ({} killed at work), {} requests, {} connections, {lines} access lines, {} reloads, at most {} descriptors ({} before), all as \
         before {back_after:.1?} after the last pod; slowest: {:.1?}",
        soak.pods.into_inner(),
        soak.killed.into_inner(),
        soak.requests.into_inner(),
        soak.connections.into_inner(),
        reloads.into_inner(),
        peak.into_inner(),
        before.descriptors,
        soak.slowest.into_inner().unwrap(),
    );
}

/// A server that takes connections, answers `first` to the first bytes, and then neither speaks nor
/// ends, whatever the client does.
fn silent_server(net: &Net, address: &str, first: &'static [u8]) -> thread::JoinHandle<TcpStream> {
    let listener = net
        .external
        .run(|| Ok(TcpListener::bind(address)?))
        .unwrap();
    thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        let mut bytes = [0; 4096];
        assert!(stream.read(&mut bytes).unwrap() > 0);
        stream.write_all(first).unwrap();
        stream
    })
}

#[test]
fn connections_that_their_servers_never_end_do_not_keep_the_network_of_a_pod() {
    let Some(net) = net("never-ends") else { return };
    let many = "addresses: [203.0.113.20/30]\n  resolution: NONE";
    let tcp = service_entry("tcp", &["tcp.test"], &[9001], many).replace("HTTP}", "TCP}");
    let yaml = service_entry("http", &["many.test"], &[9002, 9003], many) + &tcp;
    let flags = ["--drain-time", "1s"];
    let node = Node::start(&net, &configure(&net, "many.yaml", &yaml), &flags).unwrap();
    let pod = net.add_pod("brief", 11).unwrap();
    node.eventually("the pod is served", || {
        Ok(node.metric("egress_pods_listening", &[])? == Some(3.0))
    })
    .unwrap();
    let upgraded = b"HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: x\r\n\r\n";
    let servers = [
        ("203.0.113.20:9001", &b"hello\n"[..]),
        ("203.0.113.20:9002", b""),
        ("203.0.113.20:9003", upgraded),
    ];
    let servers = servers.map(|(address, first)| silent_server(&net, address, first));
    let script = "exec 3<>/dev/tcp/203.0.113.20/$0; printf \"$1\" >&3; cat <&3";
    let request = "GET /x HTTP/1.1\\r\\nHost: many.test\\r\\n";
    let upgrade = format!("{request}Connection: upgrade\\r\\nUpgrade: x\\r\\n\\r\\n");
    let clients = [
        ("9001", "hello\\n".to_owned(), Some("hello")),
        ("9002", format!("{request}\\r\\n"), None),
        ("9003", upgrade, Some("HTTP/1.1 101 Switching Protocols\r")),
    ];
    let clients = clients.map(|(port, say, answer)| {
        let client = pod.spawn(&["bash", "-c", script, port, &say]).unwrap();
        (client, answer)
    });
    let held = servers.map(|server| server.join().unwrap());
    for (client, answer) in &clients {
        if let Some(answer) = answer {
            let answered = |line: &str| line == *answer;
            client.wait_for_line(answer, SOON, answered).unwrap();
        }
    }
    drop(pod);
    node.eventually("the network is gone", || Ok(!net.node_has(&interface(11))?))
        .unwrap();
    // They were ended, not forgotten: the servers are told as well.
    for mut stream in held {
        stream.set_read_timeout(Some(SOON)).unwrap();
        let mut rest = Vec::new();
        let _ = stream.read_to_end(&mut rest).unwrap();
    }
    let cut = |line: &str| line.contains(" outbound|9001||tcp.test ");
    node.process()
        .wait_for_line("a line of TCP", SOON, cut)
        .unwrap();
}

#[test]
fn namespace_with_the_number_of_one_that_is_gone_is_another_pod() {
    let Some(net) = net("number") else { return };
    let first = net.add_pod("first", 11).unwrap();
    // Nothing can listen there, so nothing of the agent's keeps the namespace and its number.
    let without_loopback = ["address", "flush", "dev", "lo"];
    first.netns.ip(&without_loopback).unwrap();
    let number = |netns: &Netns| fs::metadata(netns.path()).unwrap().ino();
    let gone = number(&first.netns);
    let yaml = service_entry("httpbin", &["httpbin.org"], &[80], "resolution: DNS");
    let node = Node::start(&net, &configure(&net, "httpbin.yaml", &yaml), &[]).unwrap();
    let is = |name: &str, count: f64| Ok(node.metric(name, &[])? == Some(count));
    node.eventually("three pods are known", || is("egress_pods", 3.0))
        .unwrap();
    assert!(is("egress_pods_listening", 2.0).unwrap());
    // Between two looks of the agent one goes and another one comes.
    node.process().signal(Signal::SIGSTOP).unwrap();
    drop(first);
    while net.node_has(&interface(11)).unwrap() {
        thread::sleep(Duration::from_millis(5));
    }
    let mut others = Vec::new();
    let same = (12..60).find_map(|subnet| {
        let name = format!("n{subnet}");
        let netns = net.add_netns(&name, subnet).unwrap();
        if number(&netns) == gone {
            return Some(net.pod_in(netns, &name, subnet).unwrap());
        }
        others.push(netns);
        None
    });
    node.process().signal(Signal::SIGCONT).unwrap();
    // Numbers are given anew, the lowest first, but another test may have been faster.
    let Some(second) = same else {
        let _ = writeln!(std::io::stderr(), "NOT RUN: the number was taken by others");
        return;
    };
    node.eventually("the second is served", || {
        Ok(is("egress_pods", 3.0)? && is("egress_pods_listening", 3.0)?)
    })
    .unwrap();
    let url = "http://httpbin.org/get?second";
    second
        .run(&["curl", "-sS", "--max-time", "10", "--fail", url])
        .unwrap();
    let (_, line) = node.access_line("/get?second").unwrap();
    let remote = &line["downstream_remote_address"];
    assert!(remote.starts_with(&second.address), "{remote}");
}
