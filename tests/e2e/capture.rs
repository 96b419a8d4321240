// SPDX-License-Identifier: Apache-2.0
//! The kernel half, seen from applications: who is captured, and what they notice of it.

use std::time::Duration;

use lab::{
    binary,
    net::{HTTPBIN, HTTPBIN6},
    node::Node,
};

use crate::{configure, net, service_entry};

/// Connections of the rapid tests.
const RAPID: &str = "10000";

#[test]
fn hosts_that_share_an_address_are_told_apart() {
    let Some(net) = net("shared-address") else {
        return;
    };
    for host in ["one.test", "two.test"] {
        net.set_record(host, &["203.0.113.11"]).unwrap();
    }
    let yaml = service_entry("one", &["one.test"], &[80], "resolution: DNS")
        + &service_entry("two", &["two.test"], &[80], "resolution: DNS");
    let node = Node::start(&net, &configure(&net, "hosts.yaml", &yaml), &[]).unwrap();
    for host in ["one.test", "two.test", "three.test"] {
        let report = net.pod.client(&["get", "203.0.113.11:80", "--host", host]);
        assert_eq!(report.unwrap()["status"], 200);
    }
    for (host, cluster) in [
        ("one.test", "outbound|80||one.test"),
        ("two.test", "outbound|80||two.test"),
        // Not registered, on a captured connection: ALLOW_ANY sends it where it was going.
        ("three.test", "PassthroughCluster"),
    ] {
        let (_, line) = node.access_line(&format!("\"{host}\"")).unwrap();
        assert_eq!(line["upstream_cluster"], cluster);
        assert_eq!(line["upstream_host"], "203.0.113.11:80");
    }
}

#[test]
fn every_kind_of_socket_is_captured_and_sees_the_peer_it_asked_for() {
    let Some(net) = net("families") else { return };
    net.set_record("httpbin.org", &[HTTPBIN, HTTPBIN6]).unwrap();
    let yaml = service_entry("httpbin", &["httpbin.org"], &[80], "resolution: DNS");
    let node = Node::start(&net, &configure(&net, "httpbin.yaml", &yaml), &[]).unwrap();
    for (address, logged, from) in [
        (
            format!("{HTTPBIN}:80"),
            format!("{HTTPBIN}:80"),
            &net.pod.address,
        ),
        (
            format!("[::ffff:{HTTPBIN}]:80"),
            format!("{HTTPBIN}:80"),
            &net.pod.address,
        ),
        (
            format!("[{HTTPBIN6}]:80"),
            format!("[{HTTPBIN6}]:80"),
            &net.pod.address6,
        ),
    ] {
        let path = format!("/get?to={address}");
        let request = ["get", &address, "--host", "httpbin.org", "--path", &path];
        let report = net.pod.client(&request).unwrap();
        assert_eq!(report["status"], 200, "{report}");
        assert_eq!(report["peer"], address.as_str(), "getpeername");
        let (_, line) = node.access_line(&path).unwrap();
        assert_eq!(line["downstream_local_address"], logged);
        assert!(
            line["downstream_remote_address"].contains(from.as_str()),
            "{line:?}"
        );
    }
    for (program, outcome, count) in [
        ("connect4", "redirected", 1.0),
        ("connect6", "redirected", 2.0),
        ("getpeername4", "restored", 1.0),
        ("getpeername6", "restored", 2.0),
    ] {
        let labels = [("program", program), ("outcome", outcome)];
        let found = node
            .metric("egress_kernel_outcomes_total", &labels)
            .unwrap();
        assert_eq!(found, Some(count), "{program} {outcome}");
    }
}

/// Hosts whose requests go to the original destination, so that the answering server tells whether
/// the proxy knew it.
fn to_original_destination() -> String {
    let addresses = "addresses: [203.0.113.20/30], resolution: NONE";
    let addresses = addresses.replace(", ", "\n  ");
    service_entry(
        "many",
        &["many.test"],
        &[8001, 8002, 8003, 8004],
        &addresses,
    )
}

/// `lab-client load` over every address and port of [`to_original_destination`].
fn load(arguments: &[&str]) -> Vec<String> {
    let mut command = vec![
        "load".to_owned(),
        "--host".to_owned(),
        "many.test".to_owned(),
    ];
    command.extend(arguments.iter().map(|&word| word.to_owned()));
    for address in 20..24 {
        command.extend((8001..8005).map(|port| format!("203.0.113.{address}:{port}")));
    }
    command
}

#[test]
fn every_original_destination_of_ten_thousand_rapid_connections_is_right() {
    let Some(net) = net("rapid") else { return };
    let config = configure(&net, "many.yaml", &to_original_destination());
    let node = Node::start(&net, &config, &["--access-log", "off"]).unwrap();
    let load = load(&["--threads", "8", "--count", RAPID]);
    let load: Vec<_> = load.iter().map(String::as_str).collect();
    let report = net.pod.client(&load).unwrap();
    let expected = format!("{{\"done\":{RAPID},\"failed\":0,\"messages\":[],\"wrong\":0}}");
    assert_eq!(report.to_string(), expected);
    let labels = [("program", "connect4"), ("outcome", "redirected")];
    let redirected = node
        .metric("egress_kernel_outcomes_total", &labels)
        .unwrap();
    assert_eq!(
        redirected.map(|count| count.to_string()).as_deref(),
        Some(RAPID)
    );
}

#[test]
fn two_pods_at_once_are_never_mixed_up() {
    let Some(net) = net("two-pods") else { return };
    let config = configure(&net, "many.yaml", &to_original_destination());
    let workloads = lab::examples().join("workloads.yaml").display().to_string();
    let flags = ["--workloads", workloads.as_str()];
    let node = Node::start(&net, &config, &flags).unwrap();
    let client = binary("lab-client").unwrap().display().to_string();
    let start = |pod: &lab::net::Pod, path: &str| {
        let load = load(&["--threads", "4", "--count", "2000", "--path", path]);
        pod.spawn(&[std::slice::from_ref(&client), &load[..]].concat())
            .unwrap()
    };
    let mut loads = [
        start(&net.pod, "/get?pod=sleep"),
        start(&net.other, "/get?pod=other"),
    ];
    for load in &mut loads {
        let status = load.wait(Duration::from_secs(120)).unwrap();
        assert!(status.success(), "{load}");
        let report = load.lines(lab::process::Stream::Stdout).pop().unwrap();
        assert_eq!(
            report,
            r#"{"done":2000,"failed":0,"messages":[],"wrong":0}"#
        );
    }
    for (workload, namespace) in [("sleep", "istio-demo"), ("other", "other")] {
        let labels = [
            ("source_workload", workload),
            ("source_workload_namespace", namespace),
        ];
        let count = || node.metric("istio_requests_total", &labels);
        node.eventually(workload, || Ok(count()? == Some(2000.0)))
            .unwrap();
    }
    node.eventually("all lines", || Ok(node.access_lines().len() == 4000))
        .unwrap();
    for line in node.access_lines() {
        let sleep = line.contains("pod=sleep");
        let address = if sleep {
            &net.pod.address
        } else {
            &net.other.address
        };
        assert!(line.contains(&format!(" {address}:")), "{line}");
    }
}

#[test]
fn connection_straight_to_the_proxy_is_refused_and_counted() {
    let Some(net) = net("straight") else { return };
    let yaml = service_entry("httpbin", &["httpbin.org"], &[80], "resolution: DNS");
    let node = Node::start(&net, &configure(&net, "httpbin.yaml", &yaml), &[]).unwrap();
    let direct = [("reason", "direct")];
    let refused = || node.metric("egress_connections_refused_total", &direct);
    assert_eq!(refused().unwrap(), Some(0.0), "there from the start");
    for (count, proxy) in [(1.0, "127.0.0.1:15001"), (2.0, "[::1]:15001")] {
        let report = net.pod.client(&["get", proxy, "--host", "httpbin.org"]);
        assert!(report.is_err(), "{report:?}");
        node.eventually("the refusal is counted", || Ok(refused()? == Some(count)))
            .unwrap();
        let of_all_reasons = node.metric("egress_connections_refused_total", &[]);
        assert_eq!(of_all_reasons.unwrap(), Some(count));
    }
    assert!(net.seen().unwrap().is_empty());
}

#[test]
fn running_process_is_captured_at_its_next_connect() {
    let Some(net) = net("existing") else { return };
    let client = binary("lab-client").unwrap().display().to_string();
    let address = format!("{HTTPBIN}:80");
    let command = [&client, "get", &address, "--host", "httpbin.org", "--wait"];
    let mut process = net.pod.spawn(&command).unwrap();
    process
        .wait_for_line("waiting", lab::hop::SOON, |line| line == "waiting")
        .unwrap();
    let yaml = service_entry("httpbin", &["httpbin.org"], &[80], "resolution: DNS");
    let node = Node::start(&net, &configure(&net, "httpbin.yaml", &yaml), &[]).unwrap();
    process.say("go").unwrap();
    assert!(process.wait(lab::hop::SOON).unwrap().success(), "{process}");
    let (_, line) = node.access_line("/get").unwrap();
    assert_eq!(line["upstream_cluster"], "outbound|80||httpbin.org");
}

#[test]
fn node_inside_a_captured_cgroup_does_not_capture_itself() {
    let Some(net) = net("own-cgroup") else { return };
    let yaml = service_entry("httpbin", &["httpbin.org"], &[80], "resolution: DNS");
    let config = configure(&net, "httpbin.yaml", &yaml);
    let own = net.cgroup.child("agent").unwrap();
    let node = Node::start_in(&own, &net, &config, &[]).unwrap();
    let response = net
        .pod
        .run(&["curl", "-sS", "http://httpbin.org/ip"])
        .unwrap();
    assert!(
        response.contains("203.0.113.1"),
        "the node's own address: {response}"
    );
    let labels = [("program", "connect4"), ("outcome", "own_traffic")];
    let own_traffic = node
        .metric("egress_kernel_outcomes_total", &labels)
        .unwrap();
    assert!(own_traffic >= Some(1.0), "{own_traffic:?}");
    assert_eq!(net.seen().unwrap().len(), 1);
}
