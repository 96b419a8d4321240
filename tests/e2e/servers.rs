// SPDX-License-Identifier: Apache-2.0
//! What REGISTRY_ONLY must leave alone: servers inside captured pods, and everything internal.

use std::time::Duration;

use lab::{
    binary,
    hop::SOON,
    net::{Net, Pod},
    node::Node,
    process::Process,
};

use crate::{configure, net, service_entry};

/// Where pods serve.
const PORT: u16 = 8080;

/// An HTTP server in a pod, on every address.
fn serve(pod: &Pod) -> Process {
    let server = binary("lab-httpbin").unwrap().display().to_string();
    let bind = format!("[::]:{PORT}");
    let process = pod.spawn(&[&server, "--bind", &bind]).unwrap();
    process
        .wait_for_line("ready", SOON, |line| line == "ready")
        .unwrap();
    process
}

fn curl_from(netns: &lab::netns::Netns, url: &str) -> String {
    let ask = ["curl", "-sS", "--max-time", "10", url].map(str::to_owned);
    let command = [&netns.enter()[..], &ask].concat();
    Process::output("curl", &command, Duration::from_secs(20)).unwrap()
}

fn registry_only(net: &Net) -> Node<'_> {
    let yaml = service_entry("httpbin", &["httpbin.org"], &[80], "resolution: DNS");
    let config = configure(net, "httpbin.yaml", &yaml);
    let mesh = "outboundTrafficPolicy: {mode: REGISTRY_ONLY}\n";
    let mesh = net.directory.write("mesh.yaml", mesh).unwrap();
    let mesh = mesh.display().to_string();
    Node::start(net, &config, &["--mesh-config", &mesh]).unwrap()
}

#[test]
fn servers_in_captured_pods_are_reached_from_everywhere() {
    let Some(net) = net("servers") else { return };
    let before = serve(&net.pod);
    let node = registry_only(&net);
    let after = serve(&net.other);
    for pod in [&net.pod, &net.other] {
        for address in [pod.address.clone(), format!("[{}]", pod.address6)] {
            let url = format!("http://{address}:{PORT}/ip");
            // The outside world, as a load balancer's client; the node, as the kubelet's probes.
            for from in [&net.external, &net.node, &net.gateway] {
                let answer = curl_from(from, &url);
                assert!(answer.contains("origin"), "{answer}");
            }
        }
    }
    let denied = node.metric("egress_denials_total", &[]).unwrap();
    assert_eq!(denied, None, "nothing was refused");
    drop((before, after));
}

#[test]
fn internal_destinations_and_loopback_pass() {
    let Some(net) = net("internal") else { return };
    let _own = serve(&net.pod);
    let _other = serve(&net.other);
    // A service address: the node sends it to a pod.
    let cluster_ip = "10.96.0.80";
    let address = format!("{cluster_ip}/32");
    net.other
        .netns
        .ip(&["address", "add", &address, "dev", "lo"])
        .unwrap();
    let via = ["route", "add", cluster_ip, "via", &net.other.address];
    net.node.ip(&via).unwrap();
    let node = registry_only(&net);
    let before = node
        .metric(
            "egress_kernel_outcomes_total",
            &[("program", "connect4"), ("outcome", "redirected")],
        )
        .unwrap();
    for host in [
        "127.0.0.1",
        "[::1]",
        "localhost",
        net.pod.address.as_str(),
        net.other.address.as_str(),
        &format!("[{}]", net.other.address6),
        cluster_ip,
    ] {
        let url = format!("http://{host}:{PORT}/ip");
        let answer = net.pod.run(&["curl", "-sS", "--max-time", "10", &url]);
        assert!(answer.unwrap().contains("origin"), "{host}");
    }
    let after = node
        .metric(
            "egress_kernel_outcomes_total",
            &[("program", "connect4"), ("outcome", "redirected")],
        )
        .unwrap();
    assert_eq!(before, after, "nothing of it went to the proxy");
    let denied = node.metric("egress_denials_total", &[]).unwrap();
    assert_eq!(denied, None, "nothing was refused");
    // What is registered still goes through the proxy.
    let answer = net.pod.run(&["curl", "-sS", "http://httpbin.org/ip"]);
    assert!(
        answer.unwrap().contains("203.0.113.1"),
        "the node's address"
    );
}
