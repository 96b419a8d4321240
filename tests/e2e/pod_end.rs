// SPDX-License-Identifier: Apache-2.0
//! What becomes of a pod's network when the pod goes.

use std::{
    fs,
    io::{Read as _, Write as _},
    net::{TcpListener, TcpStream},
    os::unix::fs::MetadataExt as _,
    thread,
    time::Duration,
};

use lab::{
    hop::SOON,
    net::{Net, interface},
    netns::Netns,
    node::Node,
};
use nix::sys::signal::Signal;

use crate::{configure, net, service_entry};

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
