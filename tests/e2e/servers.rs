// SPDX-License-Identifier: Apache-2.0
//! What REGISTRY_ONLY must leave alone: servers inside captured pods, and everything internal.

use std::{net::UdpSocket, time::Duration};

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

#[test]
fn datagrams_are_answered_and_nothing_else_is_sent() {
    let Some(net) = net("udp-server") else { return };
    let node = registry_only(&net);
    // A DNS server in the pod, asked from outside.
    let records = net.directory.write("pod-records", "pod.test=192.0.2.7\n");
    let server = binary("lab-dns").unwrap().display().to_string();
    let (bind, records) = ("0.0.0.0:5353", records.unwrap().display().to_string());
    let dns = net
        .pod
        .spawn(&[&server, "--bind", bind, "--records", &records])
        .unwrap();
    dns.wait_for_line("ready", SOON, |line| line == "ready")
        .unwrap();
    // RFC 1035 4.1: one question, pod.test, type A, class IN.
    let mut query = vec![0x12, 0x34, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0];
    query.extend(b"\x03pod\x04test\x00\x00\x01\x00\x01");
    let address = format!("{}:5353", net.pod.address);
    let answer = net.external.run(|| {
        let socket = UdpSocket::bind(("203.0.113.10", 0))?;
        socket.set_read_timeout(Some(SOON))?;
        socket.send_to(&query, &address)?;
        let mut answer = [0; 512];
        let length = socket.recv(&mut answer)?;
        Ok(answer[..length].to_vec())
    });
    assert!(answer.unwrap().ends_with(&[192, 0, 2, 7]));
    let checks_frames = node.checks_frames().unwrap();
    let programs = ["sendmsg4", "skb", "tc"].into_iter();
    for program in programs.filter(|program| *program != "tc" || checks_frames) {
        let labels = [("program", program), ("outcome", "answer")];
        let answers = node
            .metric("egress_kernel_outcomes_total", &labels)
            .unwrap();
        assert!(answers >= Some(1.0), "{program}: {answers:?}");
    }
    // Whoever asked is answered, on the port that asked; no other port is free.
    let program = binary("lab-bypass").unwrap().display().to_string();
    let report = net
        .pod
        .run(&[program.as_str(), "udp-sendto", "203.0.113.10:9999"])
        .unwrap();
    assert!(report.contains("\"refused\""), "{report}");
}
