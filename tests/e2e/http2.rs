// SPDX-License-Identifier: Apache-2.0
//! HTTP/2 with prior knowledge on either side, and its translation to and from HTTP/1.1.

use lab::{net::Net, node::Node};

use crate::{configure, curl, net};

const URL: &str = "http://httpbin.org";

/// A node for httpbin.org whose ports 80, 8001 and 8002 are declared as HTTP, HTTP2 and nothing.
fn node(net: &Net) -> Node<'_> {
    let yaml = "apiVersion: networking.istio.io/v1\nkind: ServiceEntry\n\
        metadata: {name: httpbin, namespace: istio-demo}\n\
        spec:\n  hosts: [httpbin.org]\n  resolution: DNS\n  ports:\n  \
        - {number: 80, name: http, protocol: HTTP}\n  \
        - {number: 8001, name: http2, protocol: HTTP2}\n  \
        - {number: 8002, name: undeclared}\n";
    Node::start(net, &configure(net, "httpbin.yaml", yaml), &[]).unwrap()
}

#[test]
fn versions_are_translated_on_either_side() {
    let Some(net) = net("http2") else { return };
    let node = node(&net);
    for (port, client, expected) in [
        (80, "--http1.1", "HTTP/1.1"),
        (80, "--http2-prior-knowledge", "HTTP/1.1"),
        (8001, "--http1.1", "HTTP/2.0"),
        (8001, "--http2-prior-knowledge", "HTTP/2.0"),
        (8002, "--http1.1", "HTTP/1.1"),
        (8002, "--http2-prior-knowledge", "HTTP/2.0"),
    ] {
        let path = format!("{URL}:{port}/post?{port}{client}");
        let answer = curl(&net, &["-i", client, "-d", "hello", &path]);
        let said = format!("x-lab-protocol: {expected}");
        assert!(answer.contains(&said), "{port} {client}: {answer}");
        assert!(answer.contains("\"data\": \"hello\""), "{answer}");
        assert!(
            answer.contains("\"Host\"") == (expected == "HTTP/1.1"),
            "{answer}"
        );
        let (_, line) = node.access_line(&format!("/post?{port}{client}")).unwrap();
        let own = if client == "--http1.1" {
            "HTTP/1.1"
        } else {
            "HTTP/2"
        };
        assert!(line["request"].ends_with(own), "{port} {client}: {line:?}");
        assert_eq!(line["response_code"], "200");
    }
    let empty = [
        "--http2-prior-knowledge",
        "-o/dev/null",
        "-w%{http_code} %{size_download}",
    ];
    for (path, expected) in [
        ("/status/204", "204 0"),
        ("/bytes/1048576", "200 1048576"),
        ("/stream/3", "200 30"),
    ] {
        for port in [80, 8001] {
            let url = format!("{URL}:{port}{path}");
            assert_eq!(
                curl(&net, &[&empty[..], &[&url]].concat()),
                expected,
                "{url}"
            );
        }
    }
    let head = [
        "--http2-prior-knowledge",
        "-I",
        "http://httpbin.org:8001/bytes/77",
    ];
    assert!(curl(&net, &head).contains("content-length: 77"));
}

#[test]
fn streams_share_one_upstream_connection() {
    let Some(net) = net("http2-shared") else {
        return;
    };
    let _node = node(&net);
    let urls: Vec<_> = (0..60)
        .map(|n| format!("http://httpbin.org:8001/get?n={n}"))
        .collect();
    let mut command = vec!["streams", "203.0.113.10:8001"];
    command.extend(urls.iter().map(String::as_str));
    let answers = net.pod.client(&command).unwrap();
    for answer in answers.as_array().unwrap() {
        assert_eq!(answer["status"], 200, "{answer}");
    }
    let seen = net.seen().unwrap();
    assert_eq!(seen.len(), 60);
    let mut peers: Vec<_> = seen
        .iter()
        .filter_map(|line| line.split(' ').next())
        .collect();
    peers.sort_unstable();
    peers.dedup();
    assert_eq!(peers.len(), 1, "connections to the upstream: {peers:?}");
}

#[test]
fn one_client_connection_routes_each_request_by_its_authority() {
    let Some(net) = net("http2-authority") else {
        return;
    };
    let node = node(&net);
    // Trap 18: a client may use one connection for several hosts of one address.
    let command = [
        "streams",
        "203.0.113.10:8002",
        "http://httpbin.org:8002/get?one",
        "http://unknown.test/get?two",
    ];
    net.pod.client(&command).unwrap();
    let (_, first) = node.access_line("/get?one").unwrap();
    let (_, second) = node.access_line("/get?two").unwrap();
    assert_eq!(first["upstream_cluster"], "outbound|8002||httpbin.org");
    assert_eq!(second["upstream_cluster"], "PassthroughCluster");
    assert_eq!(second["authority"], "unknown.test");
    assert_eq!(
        first["downstream_remote_address"],
        second["downstream_remote_address"]
    );
}
