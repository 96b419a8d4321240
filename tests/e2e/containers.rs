// SPDX-License-Identifier: Apache-2.0
//! Real containers: first without `egress`, then with `egress node` as a privileged one beside
//! pods, inside the captured cgroup, as a DaemonSet's pod is.

use std::{
    fs,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    process,
    time::{Duration, Instant},
};

use lab::{
    binary,
    container::{Bind, Container, Options, QosClass},
    hop::SOON,
    net::{HTTPBIN, Net, Pod, interface},
    netns::Netns,
    node::{self, Node},
    process::Stream,
};
use serde_json::Value;

use crate::{configure, mesh_config, net, service_entry};

const UID: &str = "0f6a2b1c-77aa-4c1e-9d0e-3f5d8c2b1a00";

/// Folders that the lab's containers made in any hierarchy of cgroups. In those of version 1 the
/// lab itself makes none.
fn cgroups(net: &Net) -> Vec<PathBuf> {
    let mounts = fs::read_to_string("/proc/mounts").unwrap();
    let lab = net.cgroup.path().file_name().unwrap();
    let lines = mounts
        .lines()
        .map(|line| line.split(' ').collect::<Vec<_>>());
    lines
        .filter_map(|fields| match fields[2] {
            "cgroup" => Some(Path::new(fields[1]).join(lab)),
            "cgroup2" => Some(Path::new(fields[1]).join(lab).join("kubepods.slice")),
            _ => None,
        })
        .filter(|path| path.exists())
        .collect()
}

/// The cgroup (version 2) of a process.
fn cgroup_of(pid: u32) -> String {
    let text = fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap();
    let path = text.lines().find_map(|line| line.strip_prefix("0::"));
    path.unwrap().to_owned()
}

/// Whether a process runs; one that only waits for its parent to ask has no command line.
fn runs(pid: u32) -> bool {
    fs::read(format!("/proc/{pid}/cmdline")).is_ok_and(|line| !line.is_empty())
}

fn sleeping<'a>(net: &'a Net, name: &'a str, class: QosClass, pod: &'a Pod) -> Container<'a> {
    let options = Options::new(name, &net.cgroup, class.cgroup(UID, name), &pod.netns);
    Container::run(&net.directory, options).unwrap()
}

#[test]
fn containers_of_two_pods_have_their_cgroups_and_reach_the_outside_world() {
    let Some(net) = net("containers") else { return };
    let first = sleeping(&net, "a1", QosClass::Guaranteed, &net.pod);
    let second = sleeping(&net, "b2", QosClass::Burstable, &net.other);
    let lab = net.cgroup.path().file_name().unwrap().to_str().unwrap();
    let guaranteed = QosClass::Guaranteed.cgroup(UID, "a1");
    let burstable = QosClass::Burstable.cgroup(UID, "b2");
    for (container, cgroup, pod) in [
        (&first, guaranteed, &net.pod),
        (&second, burstable, &net.other),
    ] {
        let url = format!("http://{HTTPBIN}/ip");
        let answer = container.exec(&["busybox", "wget", "-qO-", &url]).unwrap();
        assert!(answer.contains(&pod.address), "{answer}");
        // By name: its resolver is the lab's.
        let answer = container.exec(&["wget", "-qO-", "http://httpbin.org/ip"]);
        assert!(answer.unwrap().contains(&pod.address));
        assert_eq!(cgroup_of(container.pid()), format!("/{lab}/{cgroup}"));
        assert!(container.cgroup().is_dir());
        assert_eq!(container.exec(&["cat", "/proc/1/comm"]).unwrap(), "sleep\n");
        let forward = ["sh", "-c", "echo 1 >/proc/sys/net/ipv4/ip_forward"];
        assert!(container.exec(&forward).is_err(), "it is unprivileged");
    }
    let pids = [first.pid(), second.pid()];
    drop(first);
    assert!(!cgroups(&net).is_empty() && second.exec(&["true"]).is_ok());
    drop(second);
    assert_eq!(cgroups(&net), Vec::<PathBuf>::new());
    assert_eq!(pids.map(runs), [false, false]);
    let left = |folder| fs::read_dir(net.directory.path().join(folder)).map(Iterator::count);
    assert_eq!(left("runc").unwrap() + left("containers").unwrap(), 0);
}

#[test]
fn privileged_container_sees_the_machine() {
    let Some(net) = net("privileged") else { return };
    let cgroup = QosClass::BestEffort.cgroup(UID, "c3");
    let records = net.directory.path().join("records");
    let mut options = Options::new("agent", &net.cgroup, cgroup, &net.node);
    options.privileged = true;
    options.host_pid = true;
    options.env = vec![("NODE_NAME".to_owned(), "node-1".to_owned())];
    options.binds = vec![Bind::read_only(&records)];
    let command = "echo on $NODE_NAME; exec sleep 1000000";
    options.command = ["sh", "-c", command].map(str::to_owned).to_vec();
    let agent = Container::run(&net.directory, options).unwrap();

    let records = records.display().to_string();
    assert!(agent.exec(&["cat", &records]).unwrap().contains(HTTPBIN));
    let write = format!("echo x >>{records}");
    assert!(agent.exec(&["sh", "-c", &write]).is_err());
    let own = format!("/proc/{}/comm", process::id());
    let name = fs::read_to_string(&own).unwrap();
    assert_eq!(agent.exec(&["cat", &own]).unwrap(), name);
    agent.exec(&["mkdir", "/sys/fs/bpf/x"]).unwrap();
    let forward = "/proc/sys/net/ipv4/ip_forward";
    assert_eq!(agent.exec(&["cat", forward]).unwrap(), "1\n");
    assert_eq!(agent.output(), "on node-1\n");
    let pid = agent.pid();
    drop(agent);
    assert_eq!((cgroups(&net), runs(pid)), (Vec::new(), false));
}

#[test]
fn program_of_the_machine_runs_in_an_unprivileged_container() {
    let Some(net) = net("program") else { return };
    let program = binary("lab-bypass").unwrap();
    let cgroup = QosClass::BestEffort.cgroup(UID, "d4");
    let mut options = Options::new("d4", &net.cgroup, cgroup, &net.pod.netns);
    options.binds = Bind::program(&program);
    let pod = Container::run(&net.directory, options).unwrap();
    let program = program.display().to_string();
    let sink = net.sink().unwrap();
    for (route, address, arrival) in [
        (
            "inherited",
            "203.0.113.10:80",
            "tcp 10.88.1.2 203.0.113.10 80 S",
        ),
        (
            "af-packet",
            "203.0.113.10:7000",
            "tcp 10.88.1.2 203.0.113.10 7000 S",
        ),
        ("ping", "203.0.113.10:0", "icmp 10.88.1.2 203.0.113.10 - -"),
    ] {
        let report = pod.exec(&[&program, route, address]).unwrap();
        assert!(report.contains(r#""errno":null"#), "{report}");
        let seen = sink.wait_for_line(arrival, SOON, |line| line == arrival);
        seen.unwrap();
    }
    let mut waiting = pod
        .spawn(&[&program, "tcp-connect", "203.0.113.11:80", "--wait"])
        .unwrap();
    waiting
        .wait_for_line("waiting", SOON, |line| line == "waiting")
        .unwrap();
    waiting.say("go").unwrap();
    let connected = |line: &str| line.contains(r#""outcome":"connected""#);
    waiting.wait_for_line("a report", SOON, connected).unwrap();
}

#[test]
fn container_that_cannot_start_says_why_and_leaves_nothing() {
    let Some(net) = net("broken") else { return };
    let cgroup = QosClass::BestEffort.cgroup(UID, "e5");
    let mut options = Options::new("e5", &net.cgroup, cgroup, &net.pod.netns);
    options.command = vec!["no-such-program".to_owned()];
    let error = Container::run(&net.directory, options).unwrap_err();
    assert!(error.to_string().contains("no-such-program"), "{error:#}");
    assert_eq!(cgroups(&net), Vec::<PathBuf>::new());
}

/// Another pod's.
const UID2: &str = "5d0c9e57-1b0a-4b6c-8a57-0c1f0e6d2b11";
/// The agent's pod's.
const AGENT_UID: &str = "a9e4c1d2-3b5f-4c6d-8e7f-901a2b3c4d5e";

/// Names for the pods of [`UID`] and [`UID2`], by the cgroups that a kubelet gives them.
const WORKLOADS: &str = "
- {cgroup: '/egress-lab-*/kubepods.slice/kubepods-pod0f6a2b1c_*.slice', namespace: shop, name: first}
- {cgroup: '/egress-lab-*/kubepods.slice/**/kubepods-burstable-pod5d0c9e57_*', namespace: shop, name: second}
";

/// The agent's container; what runs inside is `egress node`, once it is told to.
fn agent(net: &Net) -> Container<'_> {
    let cgroup = QosClass::BestEffort.cgroup(AGENT_UID, "agent");
    let mut options = Options::new("agent", &net.cgroup, cgroup, &net.node);
    options.privileged = true;
    options.host_pid = true;
    options.binds = node::container_binds(net).unwrap();
    Container::run(&net.directory, options).unwrap()
}

/// `egress node` in the container, with [`WORKLOADS`] and a log in JSON; `mesh` is more of the
/// meshConfig.
fn start<'a>(agent: &Container<'_>, net: &'a Net, mesh: &str) -> Node<'a> {
    let yaml = service_entry("httpbin", &["httpbin.org"], &[80], "resolution: DNS");
    let config = configure(net, "httpbin.yaml", &yaml);
    let mesh = mesh_config(net, &format!("accessLogEncoding: JSON\n{mesh}"));
    let workloads = net.directory.write("workloads.yaml", WORKLOADS).unwrap();
    let workloads = workloads.display().to_string();
    let flags = ["--mesh-config", &mesh, "--workloads", &workloads];
    Node::start_inside(agent, net, &config, &flags).unwrap()
}

/// A container that only sleeps, alone in its network.
fn alone<'a>(
    net: &'a Net,
    class: QosClass,
    uid: &str,
    name: &'a str,
    at: &'a Netns,
) -> Options<'a> {
    Options::new(name, &net.cgroup, class.cgroup(uid, name), at)
}

/// Waits until the agent knows that many pods and listens in all of them.
fn wait_for_pods(node: &Node<'_>, count: u32) {
    let count = Some(f64::from(count));
    node.eventually("pods are known and served", || {
        let known = node.metric("egress_pods", &[])?;
        Ok(known == count && node.metric("egress_pods_listening", &[])? == count)
    })
    .unwrap();
}

/// `/workloads` of the pod whose first cgroup ends like that.
fn dumped(node: &Node<'_>, cgroup: &str) -> Option<Value> {
    let (_, text) = node.admin("/workloads").unwrap();
    let all: Vec<Value> = serde_json::from_str(&text).unwrap();
    all.into_iter().find(|workload| {
        let found = workload["pod"]["cgroups"][0].as_str();
        found.is_some_and(|found| found.ends_with(cgroup))
    })
}

/// The JSON access line with that text.
fn access(node: &Node<'_>, text: &str) -> Value {
    let wanted = |line: &str| line.starts_with('{') && line.contains(text);
    let line = node.process().wait_for_line(text, SOON, wanted).unwrap();
    serde_json::from_str(&line).unwrap()
}

/// Processes in a network namespace, by its inode number.
fn processes_in(inode: u64) -> Vec<PathBuf> {
    let processes = fs::read_dir("/proc").unwrap().flatten();
    let namespaces = processes.map(|process| process.path().join("ns/net"));
    namespaces
        .filter(|path| fs::metadata(path).is_ok_and(|found| found.ino() == inode))
        .collect()
}

#[test]
fn agent_in_a_container_serves_pods_that_come_before_and_after_it() {
    let Some(net) = net("daemonset") else { return };
    let at = [("before", 11), ("after", 12)].map(|(name, subnet)| net.add_netns(name, subnet));
    let [before_netns, after_netns] = at.map(Result::unwrap);
    let options = alone(&net, QosClass::Guaranteed, UID, "before", &before_netns);
    let before = Container::run(&net.directory, options).unwrap();
    let agent = agent(&net);
    let node = start(&agent, &net, "");
    // The lab's own two are there as well; the agent itself is not a pod.
    wait_for_pods(&node, 3);
    let options = alone(&net, QosClass::Burstable, UID2, "after", &after_netns);
    let after = Container::run(&net.directory, options).unwrap();
    wait_for_pods(&node, 4);
    for (container, name, address) in [
        (&before, "first", "10.88.11.2"),
        (&after, "second", "10.88.12.2"),
    ] {
        let path = format!("/ip?of={name}");
        let url = format!("http://httpbin.org{path}");
        let answer = container.exec(&["wget", "-qO-", &url]).unwrap();
        assert!(answer.contains("203.0.113.1"), "the node asked: {answer}");
        let line = access(&node, &path);
        let remote = line["downstream_remote_address"].as_str().unwrap();
        assert!(remote.starts_with(&format!("{address}:")), "{line}");
        for (key, expected) in [
            ("source_namespace", "shop"),
            ("source_workload", name),
            ("original_destination", "203.0.113.10:80"),
            ("upstream_cluster", "outbound|80||httpbin.org"),
        ] {
            assert_eq!(line[key], expected, "{key} of {line}");
        }
        let cgroup = format!("cri-containerd-{}.scope", container.name());
        let dumped = dumped(&node, &cgroup).unwrap();
        assert_eq!(
            (&dumped["name"], &dumped["pod"]["port"]),
            (&name.into(), &15001.into())
        );
        assert_eq!(
            dumped["pod"]["listening"],
            serde_json::json!(["127.0.0.1", "::1"])
        );
    }
    // The agent's own connections were let through, though it is in the captured cgroup; both
    // requests may have gone over one.
    let outcome = |outcome| {
        let labels = [("program", "connect4"), ("outcome", outcome)];
        node.metric("egress_kernel_outcomes_total", &labels)
            .unwrap()
    };
    assert!(
        outcome("own_traffic") >= Some(1.0),
        "{:?}",
        outcome("own_traffic")
    );
    assert_eq!(outcome("redirected"), Some(2.0));
    assert_eq!(net.seen().unwrap().len(), 2);

    let inode = fs::metadata(before_netns.path()).unwrap().ino();
    let netns_file = before_netns.path();
    assert!(net.node_has(&interface(11)).unwrap());
    drop(before);
    drop(before_netns);
    // A listener that is kept would keep the namespace, and that its interface.
    let gone = Instant::now();
    node.eventually("the interface of the pod is gone", || {
        Ok(!net.node_has(&interface(11))?)
    })
    .unwrap();
    assert!(
        gone.elapsed() < Duration::from_secs(5),
        "{:?}",
        gone.elapsed()
    );
    assert!(!netns_file.exists());
    assert_eq!(processes_in(inode), Vec::<PathBuf>::new());
    wait_for_pods(&node, 3);
    assert!(dumped(&node, "cri-containerd-before.scope").is_none());
    let url = "http://httpbin.org/ip?of=still";
    after.exec(&["wget", "-qO-", url]).unwrap();
    assert_eq!(access(&node, "of=still")["source_workload"], "second");
    let stopped = node.stop().unwrap();
    assert!(stopped.success(), "{stopped}");
    assert_eq!(node::pins(&net), Vec::<PathBuf>::new());
}

#[test]
fn unregistered_destination_is_refused_in_a_container_and_the_denial_names_it() {
    let Some(net) = net("denied") else { return };
    let netns = net.add_netns("strict", 11).unwrap();
    let agent = agent(&net);
    let node = start(
        &agent,
        &net,
        "outboundTrafficPolicy: {mode: REGISTRY_ONLY}\n",
    );
    let program = binary("lab-bypass").unwrap();
    let mut options = alone(&net, QosClass::Burstable, UID2, "strict", &netns);
    options.binds = Bind::program(&program);
    let pod = Container::run(&net.directory, options).unwrap();
    wait_for_pods(&node, 3);
    let program = program.display().to_string();
    let attempt = |address: &str| -> Value {
        let report = pod.exec(&[&program, "tcp-connect", address]).unwrap();
        serde_json::from_str(report.trim()).unwrap()
    };
    let report = attempt("203.0.113.11:8001");
    let refused = (&report["outcome"], &report["errno"], &report["step"]);
    assert_eq!(
        refused,
        (&"refused".into(), &"EPERM".into(), &"connect".into())
    );
    let wanted = |line: &str| line.contains("denied") && line.contains("203.0.113.11:8001");
    let line = node
        .process()
        .wait_for_line("a denial", SOON, wanted)
        .unwrap();
    let cgroup = pod.cgroup();
    let cgroup = cgroup
        .strip_prefix(lab::cgroup::mount_point().unwrap())
        .unwrap();
    for part in [
        "workload=\"shop/second\"".to_owned(),
        format!("cgroup=\"/{}\"", cgroup.display()),
    ] {
        assert!(line.contains(&part), "{part} in {line}");
    }
    let labels = [("source_workload", "second"), ("protocol", "tcp")];
    let count = node.metric("egress_denials_total", &labels).unwrap();
    assert_eq!(count, Some(1.0));
    assert_eq!(
        attempt("203.0.113.10:80")["outcome"],
        "connected",
        "registered"
    );
}

#[test]
fn pod_that_has_taken_the_proxys_port_is_served_on_another() {
    let Some(net) = net("port-taken") else { return };
    let netns = net.add_netns("taken", 11).unwrap();
    let mut options = alone(&net, QosClass::Guaranteed, UID, "taken", &netns);
    let server = ["httpd", "-f", "-p", "127.0.0.1:15001", "-h", "/etc"];
    options.command = server.map(str::to_owned).to_vec();
    let pod = Container::run(&net.directory, options).unwrap();
    let own = ["wget", "-qO-", "http://127.0.0.1:15001/resolv.conf"];
    let deadline = Instant::now() + SOON;
    while pod.exec(&own).is_err() {
        assert!(
            Instant::now() < deadline,
            "the pod's server: {}",
            pod.output()
        );
    }
    let agent = agent(&net);
    let node = start(&agent, &net, "");
    wait_for_pods(&node, 3);
    let answer = pod.exec(&["wget", "-qO-", "http://httpbin.org/ip?of=taken"]);
    assert!(answer.unwrap().contains("203.0.113.1"));
    let line = access(&node, "of=taken");
    assert_eq!(line["source_workload"], "first", "{line}");
    let egress = lab::egress_binary().unwrap().display().to_string();
    let text = agent.exec(&[&egress, "dump", "workloads"]).unwrap();
    let all: Vec<Value> = serde_json::from_str(&text).unwrap();
    let found = all
        .iter()
        .find(|workload| workload["name"] == "first")
        .unwrap();
    let port = found["pod"]["port"].as_u64().unwrap();
    assert!(port != 0 && port != 15001, "{found}");
    assert!(
        pod.exec(&own).unwrap().contains("nameserver"),
        "still its own"
    );
    let said = node.process().lines(Stream::Stderr).join("\n");
    assert!(said.contains("is taken inside the pod"), "{said}");
}
