// SPDX-License-Identifier: Apache-2.0
//! Ways around the capture: every route that `lab::bypass` knows.

use std::{
    collections::BTreeMap,
    path::PathBuf,
    sync::atomic::{AtomicU32, Ordering},
};

use clap::ValueEnum;
use lab::{
    binary,
    bypass::Route,
    hop::SOON,
    net::{HTTPBIN, HTTPBIN6, NODE, Net},
    node::Node,
    process::{Process, Stream},
};
use serde_json::Value;

use crate::{configure, net, service_entry};

/// How a route reaches the outside world when nobody is in the way.
struct Way {
    route: Route,
    /// The family of its destination.
    ipv6: bool,
    /// What the sink calls its packets.
    protocol: &'static str,
    /// Its outcome, as reports name it.
    outcome: &'static str,
    /// Whether the kernel may lack it.
    optional: bool,
}

const fn way(route: Route, protocol: &'static str, outcome: &'static str) -> Way {
    Way {
        route,
        ipv6: matches!(
            route,
            Route::TcpConnect6 | Route::TcpConnect6V6only | Route::Raw6Exthdr
        ),
        protocol,
        outcome,
        optional: matches!(
            route,
            Route::Mptcp
                | Route::IoUringConnect
                | Route::IoUringSend
                | Route::Udplite
                | Route::Sctp
                | Route::Dccp
        ),
    }
}

const WAYS: [Way; 34] = [
    way(Route::TcpConnect, "tcp", "connected"),
    way(Route::TcpConnect6Mapped, "tcp", "connected"),
    way(Route::TcpConnect6, "tcp", "connected"),
    way(Route::TcpConnect6V6only, "tcp", "connected"),
    way(Route::TcpBoundSource, "tcp", "connected"),
    way(Route::TcpBoundDevice, "tcp", "connected"),
    way(Route::TfoSendto, "tcp", "sent"),
    way(Route::TfoConnect, "tcp", "sent"),
    way(Route::Mptcp, "tcp", "connected"),
    way(Route::IoUringConnect, "tcp", "connected"),
    way(Route::UnspecReconnect, "tcp", "connected"),
    way(Route::Inherited, "tcp", "connected"),
    way(Route::ScmRights, "tcp", "connected"),
    way(Route::VforkOtherCgroup, "tcp", "connected"),
    way(Route::OutsideSocket, "tcp", "connected"),
    way(Route::TcpEstablished, "tcp", "sent"),
    way(Route::IoUringSend, "udp", "sent"),
    way(Route::UdpConnected, "udp", "sent"),
    way(Route::UdpSendto, "udp", "sent"),
    way(Route::UdpSendmsg, "udp", "sent"),
    way(Route::UdpSendmmsg, "udp", "sent"),
    way(Route::Udplite, "udplite", "sent"),
    way(Route::Quic, "udp", "sent"),
    way(Route::RawTcp, "tcp", "sent"),
    way(Route::RawIcmp, "icmp", "sent"),
    way(Route::RawHdrincl, "udp", "sent"),
    way(Route::RawOptions, "udp", "sent"),
    way(Route::RawFragment, "udp", "sent"),
    way(Route::Raw6Exthdr, "udp", "sent"),
    way(Route::Ping, "icmp", "sent"),
    way(Route::AfPacket, "tcp", "sent"),
    way(Route::AfPacketDgram, "tcp", "sent"),
    // Nobody listens there: what counts is the packet that asks.
    way(Route::Sctp, "sctp", "failed"),
    way(Route::Dccp, "dccp", "failed"),
];

impl Way {
    /// Whether there is a server behind its destination that speaks HTTP.
    fn has_connection(&self) -> bool {
        self.outcome == "connected"
            || matches!(
                self.route,
                Route::TfoSendto | Route::TfoConnect | Route::TcpEstablished
            )
    }

    /// An address and port that no other route of the table uses, where they tell packets apart.
    fn destination(&self, index: usize) -> (String, u16) {
        let last = ["10", "11", "20", "21", "22", "23"];
        let (host, port) = if self.has_connection() {
            (last[index % 6], 8001 + index / 6)
        } else {
            (last[index % 6], 7001 + index / 6)
        };
        let port = u16::try_from(port).unwrap();
        match self.ipv6 {
            // The outside world has two of this family.
            true => (format!("2001:db8:113::1{}", index % 2), port),
            false => (format!("203.0.113.{host}"), port),
        }
    }

    /// The line of the sink about its packet.
    fn arrival(&self, net: &Net, host: &str, port: u16) -> String {
        let source = match self.ipv6 {
            true => &net.pod.address6,
            false => &net.pod.address,
        };
        let port = match self.route {
            Route::RawFragment | Route::RawIcmp | Route::Ping => "-".to_owned(),
            _ => port.to_string(),
        };
        let flags = if self.protocol == "tcp" { "S" } else { "-" };
        format!("{} {source} {host} {port} {flags}", self.protocol)
    }
}

/// Runs `lab-bypass` in the pod (a route from outside: in its network only) and lets it go on when
/// it waits; its report.
fn attempt(net: &Net, way: &Way, address: &str) -> Value {
    let program = binary("lab-bypass").unwrap().display().to_string();
    let route = way.route.name();
    let mut command = vec![program, route.clone(), address.to_owned()];
    let mut add = |words: &[&str]| command.extend(words.iter().map(|&word| word.to_owned()));
    let cgroup = net.pod.cgroup.path().display().to_string();
    let other = net.other.cgroup.path().display().to_string();
    match way.route {
        Route::UnspecReconnect => add(&["--first", "203.0.113.10:80"]),
        Route::VforkOtherCgroup => add(&["--cgroup", &other]),
        Route::OutsideSocket => add(&["--cgroup", &cgroup]),
        Route::TcpEstablished => {}
        _ => add(&["--wait"]),
    }
    if way.has_connection() {
        add(&["--http", "httpbin.org"]);
    }
    let mut process = match way.route {
        Route::OutsideSocket => {
            let command = [&net.pod.netns.enter()[..], &command].concat();
            Process::spawn(&route, &command).unwrap()
        }
        _ => net.pod.spawn(&command).unwrap(),
    };
    let enough = |line: &str| line == "waiting" || line.starts_with('{');
    let first = process.wait_for_line(&route, SOON, enough).unwrap();
    if first == "waiting" {
        process.say("").unwrap();
    }
    let status = process.wait(SOON).unwrap();
    assert!(status.success(), "{process}");
    let report = process.wait_for_line(&route, SOON, |line| line.starts_with('{'));
    serde_json::from_str(&report.unwrap()).unwrap()
}

#[test]
fn every_route_reaches_the_outside_world_when_nobody_is_in_the_way() {
    let Some(net) = net("bypass") else { return };
    let sink = net.sink().unwrap();
    assert_eq!(WAYS.len(), Route::value_variants().len());
    for (index, way) in WAYS.iter().enumerate() {
        let (host, port) = way.destination(index);
        let address = match way.ipv6 {
            true => format!("[{host}]:{port}"),
            false => format!("{host}:{port}"),
        };
        let report = attempt(&net, way, &address);
        println!("{report}");
        assert_eq!(report["route"], way.route.name());
        if way.optional && report["outcome"] == "unsupported" {
            continue;
        }
        assert_eq!(report["outcome"], way.outcome, "{report}");
        if way.has_connection() {
            let server = (&report["status"], &report["server"]);
            assert_eq!(server, (&200.into(), &address.into()), "{report}");
        }
        let arrival = way.arrival(&net, &host, port);
        let packets = if way.route == Route::UdpSendmmsg {
            3
        } else {
            1
        };
        let seen = sink.wait_for(SOON, |lines| {
            let arrived = lines.iter().filter(|(_, line)| *line == arrival);
            (arrived.count() >= packets).then_some(())
        });
        seen.unwrap_or_else(|error| panic!("{arrival}: {error:#}\n{sink}"));
    }
}

/// Whether the kernel program counted an outcome more often than before.
struct Counts(BTreeMap<String, u64>);

impl Counts {
    fn read(node: &Node<'_>) -> Self {
        let (_, text) = node.admin("/metrics").unwrap();
        let samples = text
            .lines()
            .filter_map(|line| line.strip_prefix("egress_kernel_outcomes_total"));
        let samples = samples.map(|sample| {
            let (labels, value) = sample.rsplit_once(' ').unwrap();
            (labels.to_owned(), value.parse().unwrap())
        });
        Self(samples.collect())
    }

    fn of(&self, (program, outcome): (&str, &str)) -> u64 {
        self.0[&format!("{{program=\"{program}\",outcome=\"{outcome}\"}}")]
    }
}

impl Way {
    fn address(&self, index: usize) -> String {
        let (host, port) = self.destination(index);
        match self.ipv6 {
            true => format!("[{host}]:{port}"),
            false => format!("{host}:{port}"),
        }
    }

    /// The program that sees it first, and what it counts under ALLOW_ANY and under REGISTRY_ONLY,
    /// where the destination is not registered.
    fn sight(&self) -> (&'static str, &'static str, &'static str) {
        match self.route {
            Route::TcpConnect6Mapped | Route::TcpConnect6 | Route::TcpConnect6V6only => {
                ("connect6", "not_registered", "not_registered_denied")
            }
            Route::Mptcp => ("sock_create", "mptcp_socket", "mptcp_socket_denied"),
            Route::UdpConnected | Route::Quic => ("connect4", "not_tcp", "not_registered_denied"),
            Route::IoUringSend
            | Route::UdpSendto
            | Route::UdpSendmsg
            | Route::UdpSendmmsg
            | Route::Udplite => ("sendmsg4", "not_tcp", "not_registered_denied"),
            Route::RawTcp
            | Route::RawIcmp
            | Route::RawHdrincl
            | Route::RawOptions
            | Route::RawFragment
            | Route::Raw6Exthdr => ("sock_create", "raw_socket", "raw_socket_denied"),
            // Made outside of every captured cgroup, or of another family: seen on the cable.
            Route::OutsideSocket | Route::AfPacket | Route::AfPacketDgram => {
                ("tc", "not_registered", "not_registered_denied")
            }
            // Linux 6.1 has a connect hook for ping sockets; this one only sends. SCTP and DCCP have
            // none.
            Route::Ping | Route::Sctp | Route::Dccp => {
                ("tc", "not_registered", "not_registered_denied")
            }
            _ => ("connect4", "not_registered", "not_registered_denied"),
        }
    }

    /// Whether nothing but the check of frames stands in its way.
    fn only_on_the_cable(&self) -> bool {
        matches!(
            self.route,
            Route::OutsideSocket | Route::AfPacket | Route::AfPacketDgram
        )
    }

    /// What the application is told under REGISTRY_ONLY.
    fn told(&self) -> (&'static str, &'static str) {
        match self.route {
            // The packet is dropped, and the protocol sends it again.
            Route::Sctp | Route::Dccp => ("failed", "ETIMEDOUT"),
            // A frame is dropped on its way, and nobody tells a packet socket.
            Route::AfPacket | Route::AfPacketDgram => ("sent", ""),
            Route::OutsideSocket => ("failed", "ETIMEDOUT"),
            _ => ("refused", "EPERM"),
        }
    }
}

/// Starts the node over httpbin.org, port 80, under a policy; its mesh configuration's path.
fn node_under<'a>(net: &'a Net, policy: &str) -> (Node<'a>, PathBuf) {
    let yaml = service_entry("httpbin", &["httpbin.org"], &[80], "resolution: DNS");
    let config = configure(net, "httpbin.yaml", &yaml);
    let mesh = set_policy(net, policy);
    let workloads = lab::examples().join("workloads.yaml").display().to_string();
    let path = mesh.display().to_string();
    let flags = ["--mesh-config", path.as_str(), "--workloads", &workloads];
    (Node::start(net, &config, &flags).unwrap(), mesh)
}

fn set_policy(net: &Net, policy: &str) -> PathBuf {
    let yaml = format!("outboundTrafficPolicy: {{mode: {policy}}}\n");
    net.directory.write("mesh.yaml", &yaml).unwrap()
}

/// What the sink saw of the pods, DNS aside, once it has seen everything sent until now.
fn escaped(net: &Net, sink: &Process) -> Vec<String> {
    static MARKS: AtomicU32 = AtomicU32::new(0);
    let name = format!("mark-{}.test", MARKS.fetch_add(1, Ordering::Relaxed));
    let queries = |line: &str| line.contains(" 203.0.113.53 53 ");
    let before = sink
        .lines(Stream::Stdout)
        .iter()
        .filter(|line| queries(line))
        .count();
    // Answered or not: its query has arrived, behind everything else.
    let _ = net.pod.run(&["getent", "hosts", &name]);
    sink.wait_for(SOON, |lines| {
        let now = lines.iter().filter(|(_, line)| queries(line)).count();
        (now > before).then_some(())
    })
    .unwrap();
    let pods = [&net.pod, &net.other];
    let of_a_pod = |line: &String| {
        pods.iter().any(|pod| {
            line.contains(&format!(" {} ", pod.address))
                || line.contains(&format!(" {} ", pod.address6))
        })
    };
    let lines = sink.lines(Stream::Stdout).into_iter();
    lines
        .filter(|line| of_a_pod(line) && !queries(line))
        .collect()
}

#[test]
fn every_route_is_seen_and_counted_under_allow_any() {
    let Some(net) = net("bypass-any") else { return };
    let sink = net.sink().unwrap();
    let (node, _) = node_under(&net, "ALLOW_ANY");
    let checks_frames = node.checks_frames().unwrap();
    for (index, way) in WAYS.iter().enumerate() {
        let address = way.address(index);
        let (program, outcome, _) = way.sight();
        let before = Counts::read(&node);
        let report = attempt(&net, way, &address);
        if way.optional && report["outcome"] == "unsupported" {
            continue;
        }
        assert_eq!(report["outcome"], way.outcome, "{report}");
        let (host, port) = way.destination(index);
        let arrival = way.arrival(&net, &host, port);
        sink.wait_for_line(&arrival, SOON, |line| line == arrival)
            .unwrap();
        if program == "tc" && !checks_frames {
            continue;
        }
        let counted = (program, outcome);
        let more = Counts::read(&node).of(counted) - before.of(counted);
        assert!(more > 0, "{} not counted as {counted:?}", way.route.name());
    }
}

#[test]
fn no_route_leads_outside_under_registry_only_and_every_refusal_is_told() {
    let Some(net) = net("bypass-only") else {
        return;
    };
    let sink = net.sink().unwrap();
    let (node, _) = node_under(&net, "REGISTRY_ONLY");
    let checks_frames = node.checks_frames().unwrap();
    for (index, way) in WAYS.iter().enumerate() {
        // The agent warns of it at start.
        if way.only_on_the_cable() && !checks_frames {
            continue;
        }
        let address = way.address(index);
        let (program, _, outcome) = match way.route {
            Route::Ping | Route::Sctp | Route::Dccp => ("skb", "", "not_registered_denied"),
            _ => way.sight(),
        };
        let before = Counts::read(&node);
        let report = attempt(&net, way, &address);
        if way.optional && report["outcome"] == "unsupported" {
            continue;
        }
        let (told, errno) = way.told();
        assert_eq!(report["outcome"], told, "{report}");
        assert_eq!(
            report["errno"].as_str().unwrap_or_default(),
            errno,
            "{report}"
        );
        let counted = (program, outcome);
        let more = Counts::read(&node).of(counted) - before.of(counted);
        assert!(more > 0, "{} not counted as {counted:?}", way.route.name());
        // Who, where to, by which hook, why.
        let destination = match (program, way.route) {
            ("sock_create", _) => "-".to_owned(),
            (_, Route::Ping | Route::Sctp | Route::Dccp) => {
                address.rsplit_once(':').unwrap().0.to_owned() + ":0"
            }
            _ => address.clone(),
        };
        let what = format!("the denial of {}", way.route.name());
        // A raw socket is refused before anybody knows where it would send: the first line speaks
        // for those of one protocol.
        let line = |line: &str| {
            line.contains(" denied ")
                && line.contains("workload=\"istio-demo/sleep\"")
                && line.contains(&format!("destination=\"{destination}\""))
                && line.contains(&format!("hook=\"{program}\""))
                && line.contains(&format!("reason=\"{outcome}\""))
                && line.contains("remedy=")
        };
        node.process().wait_for_line(&what, SOON, line).unwrap();
    }
    assert_eq!(escaped(&net, &sink), Vec::<String>::new());
    let labels = [
        ("source_workload", "sleep"),
        ("source_workload_namespace", "istio-demo"),
        ("reason", "not_registered_denied"),
    ];
    let denied = node.metric("egress_denials_total", &labels).unwrap();
    assert!(denied >= Some(20.0), "{denied:?}");
}

#[test]
fn registered_host_is_reached_through_the_proxy_on_every_tcp_route() {
    let Some(net) = net("bypass-tcp") else { return };
    net.set_record("httpbin.org", &[HTTPBIN, HTTPBIN6]).unwrap();
    for policy in ["ALLOW_ANY", "REGISTRY_ONLY"] {
        let sink = net.sink().unwrap();
        let (node, _) = node_under(&net, policy);
        let checks_frames = node.checks_frames().unwrap();
        for way in WAYS.iter().filter(|way| way.has_connection()) {
            let address = match way.ipv6 {
                true => format!("[{HTTPBIN6}]:80"),
                false => format!("{HTTPBIN}:80"),
            };
            let report = attempt(&net, way, &address);
            if way.optional && report["outcome"] == "unsupported" {
                continue;
            }
            let expected = match way.route {
                // No capture, no way: dropped on the cable, or refused at birth. (ALLOW_ANY leaves
                // them alone.)
                Route::OutsideSocket if policy == "ALLOW_ANY" => continue,
                Route::OutsideSocket if !checks_frames => continue,
                Route::OutsideSocket => ("failed", "ETIMEDOUT"),
                Route::Mptcp if policy == "REGISTRY_ONLY" => ("refused", "EPERM"),
                // Loopback cannot serve it, and there is no --redirect-ip.
                Route::TcpBoundDevice => ("refused", "EPERM"),
                _ => (way.outcome, ""),
            };
            let found = (
                report["outcome"].as_str().unwrap_or_default(),
                report["errno"].as_str().unwrap_or_default(),
            );
            assert_eq!(found, expected, "{policy} {report}");
            if expected.1.is_empty() {
                assert_eq!(report["status"], 200, "{report}");
                // getpeername(2) on MPTCP passes the hook with another socket than its subflow.
                if way.route != Route::Mptcp {
                    assert_eq!(report["peer"], address_shown(way, &address), "{report}");
                }
                let path = format!("/get?route={}", way.route.name());
                let (_, line) = node.access_line(&path).unwrap();
                assert_eq!(line["upstream_cluster"], "outbound|80||httpbin.org");
            }
        }
        let past: Vec<String> = escaped(&net, &sink)
            .into_iter()
            .filter(|line| line.starts_with("tcp") && line.ends_with(" S"))
            .collect();
        let allowed = usize::from(policy == "ALLOW_ANY" || !checks_frames);
        assert_eq!(
            past.len(),
            allowed,
            "only the socket from outside: {past:?}"
        );
    }
}

/// The address that getpeername(2) shows for a destination.
fn address_shown(way: &Way, address: &str) -> String {
    match way.route {
        Route::TcpConnect6Mapped => {
            let (host, port) = address.split_once(':').unwrap();
            format!("[::ffff:{host}]:{port}")
        }
        _ => address.to_owned(),
    }
}

#[test]
fn http3_to_a_registered_host_is_refused_unless_allowed() {
    let Some(net) = net("quic") else { return };
    let sink = net.sink().unwrap();
    let address = format!("{HTTPBIN}:80");
    let way = way(Route::Quic, "udp", "sent");
    for policy in ["ALLOW_ANY", "REGISTRY_ONLY"] {
        let (node, mesh) = node_under(&net, policy);
        let report = attempt(&net, &way, &address);
        assert_eq!(report["outcome"], "refused", "{report}");
        assert_eq!(
            report["step"], "connect",
            "at once, so that clients fall back: {report}"
        );
        assert_eq!(Counts::read(&node).of(("connect4", "quic_refused")), 1);
        drop(node);
        let config = net.directory.path().join("config");
        let mesh = mesh.display().to_string();
        let flags = ["--mesh-config", &mesh, "--quic", "allow"];
        let lenient = Node::start(&net, &config, &flags).unwrap();
        let report = attempt(&net, &way, &address);
        let expected = match policy {
            "ALLOW_ANY" => "sent",
            // Like any other UDP that is not registered.
            _ => "refused",
        };
        assert_eq!(report["outcome"], expected, "{report}");
        drop(lenient);
    }
    let arrival = format!("udp {} {HTTPBIN} 80 -", net.pod.address);
    assert_eq!(escaped(&net, &sink), [arrival]);
}

#[test]
fn socket_bound_to_a_device_takes_the_redirect_address() {
    let Some(net) = net("bound-device") else {
        return;
    };
    let yaml = service_entry("httpbin", &["httpbin.org"], &[80], "resolution: DNS");
    let config = configure(&net, "httpbin.yaml", &yaml);
    let node = Node::start(&net, &config, &["--redirect-ip", NODE]).unwrap();
    let way = way(Route::TcpBoundDevice, "tcp", "connected");
    let report = attempt(&net, &way, &format!("{HTTPBIN}:80"));
    assert_eq!(report["status"], 200, "{report}");
    let (_, line) = node.access_line("/get?route=tcp-bound-device").unwrap();
    assert!(
        line["downstream_remote_address"].starts_with(&net.pod.address),
        "{line:?}"
    );
}

/// Starts an attempt and leaves it waiting before its decisive step.
fn begin(net: &Net, route: Route, address: &str, more: &[&str]) -> Process {
    let program = binary("lab-bypass").unwrap().display().to_string();
    let route = route.name();
    let command = [&[&program, &route, address][..], more].concat();
    let process = net.pod.spawn(&command).unwrap();
    process
        .wait_for_line("waiting", SOON, |line| line == "waiting")
        .unwrap();
    process
}

/// Lets it go on; its report.
fn end(mut process: Process) -> Value {
    process.say("").unwrap();
    let report = process.wait_for_line("a report", SOON, |line| line.starts_with('{'));
    serde_json::from_str(&report.unwrap()).unwrap()
}

#[test]
fn connections_from_before_the_policy_are_ended() {
    let Some(net) = net("before-policy") else {
        return;
    };
    let unregistered = "203.0.113.11:8001";
    let http = ["--http", "one.test"];
    // Before the programs are attached, and after that under ALLOW_ANY.
    let unattached = begin(&net, Route::TcpEstablished, unregistered, &http);
    let (node, _) = node_under(&net, "ALLOW_ANY");
    let allowed = begin(&net, Route::TcpEstablished, unregistered, &http);
    let datagrams = begin(&net, Route::UdpConnected, unregistered, &["--wait"]);
    set_policy(&net, "REGISTRY_ONLY");
    let ended = |line: &str| line.contains("ended") && line.contains(unregistered);
    node.process()
        .wait_for(SOON, |lines| {
            let ended = lines.iter().filter(|(_, line)| ended(line)).count();
            (ended == 3).then_some(())
        })
        .unwrap();
    for process in [unattached, allowed, datagrams] {
        let report = end(process);
        assert_ne!(report["outcome"], "sent", "{report}");
        assert_ne!(report["errno"], "ETIMEDOUT", "at once: {report}");
    }
}

#[test]
fn raw_sockets_from_before_the_policy_send_nothing() {
    let Some(net) = net("raw-before") else { return };
    let sink = net.sink().unwrap();
    let (node, _) = node_under(&net, "ALLOW_ANY");
    let waiting: Vec<_> = WAYS
        .iter()
        .enumerate()
        .filter(|(_, way)| way.sight().0 == "sock_create" && way.route != Route::Mptcp)
        .map(|(index, way)| begin(&net, way.route, &way.address(index), &["--wait"]))
        .collect();
    assert_eq!(waiting.len(), 6);
    set_policy(&net, "REGISTRY_ONLY");
    let status = || {
        let (_, text) = node.admin("/status")?;
        let status: Value = serde_json::from_str(&text)?;
        Ok(status["kernel"]["outbound_policy"] == "REGISTRY_ONLY")
    };
    node.eventually("the policy", status).unwrap();
    for process in waiting {
        let report = end(process);
        assert_eq!(report["outcome"], "refused", "{report}");
        assert_eq!(report["step"], "send", "{report}");
    }
    assert_eq!(Counts::read(&node).of(("skb", "not_registered_denied")), 6);
    assert_eq!(escaped(&net, &sink), Vec::<String>::new());
}
