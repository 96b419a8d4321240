// SPDX-License-Identifier: Apache-2.0
//! Starting, stopping, being killed.

use std::time::Duration;

use lab::{
    net::Net,
    node::{self, Node},
    process::Process,
};

use crate::{configure, net, service_entry};

fn httpbin(net: &Net) -> std::path::PathBuf {
    let yaml = service_entry("httpbin", &["httpbin.org"], &[80], "resolution: DNS");
    configure(net, "httpbin.yaml", &yaml)
}

/// What is attached to the lab's cgroup, by bpftool.
fn attached(net: &Net) -> String {
    let cgroup = net.cgroup.path().display().to_string();
    let command = ["bpftool", "cgroup", "show", &cgroup];
    Process::output("bpftool", &command, lab::hop::SOON).unwrap()
}

#[test]
fn clean_stop_leaves_nothing_attached_or_pinned() {
    let Some(net) = net("clean-stop") else { return };
    let node = Node::start(&net, &httpbin(&net), &[]).unwrap();
    assert!(
        attached(&net).contains("egress_connect4"),
        "{}",
        attached(&net)
    );
    assert!(!node::pins(&net).is_empty());
    assert!(node.stop().unwrap().success());
    assert!(!attached(&net).contains("egress_"), "{}", attached(&net));
    assert_eq!(node::pins(&net), Vec::<std::path::PathBuf>::new());
    let locks = std::fs::read_dir("/run/egress").unwrap().flatten();
    let locks = locks.map(|lock| std::fs::read_to_string(lock.path()).unwrap_or_default());
    let pins = node::bpffs(&net).display().to_string();
    assert!(!locks.collect::<String>().contains(&pins));
    let response = net
        .pod
        .run(&["curl", "-sS", "http://httpbin.org/ip"])
        .unwrap();
    assert!(response.contains(&net.pod.address), "{response}");
}

#[test]
fn node_takes_over_the_pins_of_a_killed_one() {
    let Some(net) = net("take-over") else { return };
    let config = httpbin(&net);
    Node::start(&net, &config, &[]).unwrap().kill().unwrap();
    assert!(
        attached(&net).contains("egress_connect4"),
        "links outlive their agent"
    );
    assert!(!node::pins(&net).is_empty());
    let node = Node::start(&net, &config, &[]).unwrap();
    let programs = attached(&net);
    let connect4 = programs
        .lines()
        .filter(|line| line.contains("egress_connect4"));
    assert_eq!(connect4.count(), 1, "replaced, not added: {programs}");
    let response = net
        .pod
        .run(&["curl", "-sS", "http://httpbin.org/get"])
        .unwrap();
    assert!(response.contains("httpbin.org"), "{response}");
    let (_, line) = node.access_line("/get").unwrap();
    assert_eq!(line["upstream_cluster"], "outbound|80||httpbin.org");
    assert!(node.stop().unwrap().success());
    assert!(node::pins(&net).is_empty(), "{:?}", node::pins(&net));
}

#[test]
fn second_node_on_the_same_pins_is_refused_and_told_who_holds_them() {
    let Some(net) = net("second-node") else {
        return;
    };
    let config = httpbin(&net);
    let node = Node::start(&net, &config, &[]).unwrap();
    let flags = ["--port", "15101", "--admin", "127.0.0.1:15100"];
    let command = node::command(&net, &config, &flags).unwrap();
    let command = [&net.node.enter()[..], &command].concat();
    let mut second = Process::spawn("second node", &command).unwrap();
    let status = second.wait(Duration::from_secs(20)).unwrap();
    assert_eq!(status.code(), Some(2), "{second}");
    let pid = node.process().pid().to_string();
    let wanted = |line: &str| line.starts_with("error: ") && line.contains(&pid);
    second
        .wait_for_line("the holder's pid", lab::hop::SOON, wanted)
        .unwrap();
    net.pod
        .run(&["curl", "-sS", "http://httpbin.org/get"])
        .unwrap();
    node.access_line("/get").unwrap();
}

#[test]
fn request_in_flight_is_finished_by_a_stop() {
    let Some(net) = net("drain") else { return };
    let node = Node::start(&net, &httpbin(&net), &[]).unwrap();
    let mut curl = net
        .pod
        .spawn(&["curl", "-sS", "http://httpbin.org/delay/2"])
        .unwrap();
    node.eventually("the request is on its way", || {
        Ok(!net.seen().unwrap().is_empty())
    })
    .unwrap();
    assert!(node.stop().unwrap().success());
    assert!(curl.wait(lab::hop::SOON).unwrap().success(), "{curl}");
}
