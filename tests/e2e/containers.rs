// SPDX-License-Identifier: Apache-2.0
//! Real containers in the lab's pods, without `egress`.

use std::{
    fs,
    path::{Path, PathBuf},
    process,
};

use lab::{
    binary,
    container::{Bind, Container, Options, QosClass},
    hop::SOON,
    net::{HTTPBIN, Net, Pod},
};

use crate::net;

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
