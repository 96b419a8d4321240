// SPDX-License-Identifier: Apache-2.0
//! The lab itself: without `egress`, everybody reaches everybody as drawn in `lab::net`.

use lab::net::{GATEWAY, HTTPBIN6};

use crate::net;

#[test]
fn pods_and_gateway_reach_the_outside_world_with_their_own_addresses() {
    let Some(net) = net("network") else { return };
    for pod in [&net.pod, &net.other] {
        let response = pod.run(&["curl", "-sS", "http://httpbin.org/ip"]).unwrap();
        assert!(response.contains(&pod.address), "{response}");
        let url = format!("http://[{HTTPBIN6}]/ip");
        let response = pod.run(&["curl", "-sS", &url]).unwrap();
        assert!(response.contains(&pod.address6), "{response}");
    }
    let command = [&net.gateway.enter()[..], &["curl".into(), "-sS".into()]].concat();
    let command = [command, vec!["http://203.0.113.10/ip".into()]].concat();
    let response = lab::process::Process::output("curl", &command, lab::hop::SOON).unwrap();
    assert!(response.contains(GATEWAY), "{response}");
}

#[test]
fn changed_record_is_answered_at_once() {
    let Some(net) = net("records") else { return };
    net.set_record("other.test", &["203.0.113.11"]).unwrap();
    let report = net
        .pod
        .run(&["curl", "-sSi", "http://other.test/get"])
        .unwrap();
    assert!(report.contains("x-lab-server: 203.0.113.11:80"), "{report}");
    net.set_record("other.test", &["203.0.113.20"]).unwrap();
    let report = net
        .pod
        .run(&["curl", "-sSi", "http://other.test/get"])
        .unwrap();
    assert!(report.contains("x-lab-server: 203.0.113.20:80"), "{report}");
}

#[test]
fn client_tells_what_it_saw() {
    let Some(net) = net("client") else { return };
    for (address, peer) in [
        ("203.0.113.10:80", "203.0.113.10:80"),
        ("[::ffff:203.0.113.10]:80", "[::ffff:203.0.113.10]:80"),
        ("[2001:db8:113::10]:8001", "[2001:db8:113::10]:8001"),
    ] {
        let report = net
            .pod
            .client(&["get", address, "--host", "a.test"])
            .unwrap();
        assert_eq!(
            (&report["status"], &report["peer"]),
            (&200.into(), &peer.into())
        );
    }
    let load = [
        "load",
        "203.0.113.20:8001",
        "203.0.113.21:8002",
        "--host",
        "a",
        "--count",
        "500",
    ];
    let report = net.pod.client(&load).unwrap();
    assert_eq!(
        report.to_string(),
        r#"{"done":500,"failed":0,"messages":[],"wrong":0}"#
    );
}
