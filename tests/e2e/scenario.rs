// SPDX-License-Identifier: Apache-2.0
//! The tutorial, looked at closely.

use lab::{
    access_line::AccessLine,
    net::{GATEWAY, Net},
    scenario::{Scenario, TO_GATEWAY, TO_HTTPBIN},
};
use serde_json::Value;

use crate::net;

/// `IP:PORT` with that IP.
fn has_ip(address: &str, ip: &str) -> bool {
    address
        .strip_prefix(ip)
        .is_some_and(|rest| rest.starts_with(':'))
}

#[test]
fn request_goes_over_both_hops_and_each_logs_it_in_istios_format() {
    let Some(net) = net("scenario") else { return };
    let scenario = Scenario::start(&net).unwrap();
    let path = "/headers?case=scenario";
    let outcome = scenario.request(path).unwrap();
    let response: Value = serde_json::from_str(&outcome.response).unwrap();
    assert_eq!(response["headers"]["Host"], "httpbin.org");
    assert_eq!(response["headers"]["X-Forwarded-Proto"], "http");

    let node = AccessLine::parse(&outcome.node_line).unwrap();
    let gateway = AccessLine::parse(&outcome.gateway_line).unwrap();
    let size = outcome.response.len().to_string();
    for line in [&node, &gateway] {
        for (field, expected) in [
            ("request", "GET /headers?case=scenario HTTP/1.1"),
            ("response_code", "200"),
            ("response_flags", "-"),
            ("response_code_details", "via_upstream"),
            ("connection_termination_details", "-"),
            ("upstream_transport_failure_reason", "-"),
            ("bytes_received", "0"),
            ("bytes_sent", size.as_str()),
            ("x_forwarded_for", "-"),
            ("authority", "httpbin.org"),
            ("requested_server_name", "-"),
        ] {
            assert_eq!(line[field], expected, "{field} of {line:?}");
        }
        assert!(line["user_agent"].starts_with("curl/"), "{line:?}");
        let time = &line["start_time"];
        assert!(
            time.len() == 24 && time.ends_with('Z') && &time[10..11] == "T",
            "{time}"
        );
        let duration: u64 = line["duration"].parse().unwrap();
        let upstream: u64 = line["upstream_service_time"].parse().unwrap();
        assert!(upstream <= duration, "{line:?}");
    }
    assert_eq!(node["request_id"], gateway["request_id"]);
    assert_eq!(node["request_id"].len(), 36, "a UUID");
    assert_eq!(response["headers"]["X-Request-Id"], node["request_id"]);
    assert_eq!(node["upstream_cluster"], TO_GATEWAY);
    assert_eq!(node["upstream_host"], "10.88.2.2:8080");
    assert!(
        has_ip(&node["upstream_local_address"], "10.88.2.1"),
        "{node:?}"
    );
    assert_eq!(node["downstream_local_address"], "203.0.113.10:80");
    assert!(
        has_ip(&node["downstream_remote_address"], &net.pod.address),
        "{node:?}"
    );
    assert_eq!(gateway["upstream_cluster"], TO_HTTPBIN);
    assert_eq!(gateway["upstream_host"], "203.0.113.10:80");
    assert!(
        has_ip(&gateway["upstream_local_address"], GATEWAY),
        "{gateway:?}"
    );
    assert_eq!(gateway["downstream_local_address"], "10.88.2.2:8080");
    assert_eq!(
        gateway["downstream_remote_address"],
        node["upstream_local_address"]
    );

    let seen = net.seen().unwrap();
    let expected = format!(
        "{} GET httpbin.org {path}",
        gateway["upstream_local_address"]
    );
    assert_eq!(seen, [expected]);
}

#[test]
fn client_of_another_namespace_is_served_by_exported_objects() {
    let Some(net) = net("exported") else { return };
    let scenario = Scenario::start(&net).unwrap();
    let response = net
        .other
        .run(&["curl", "-sS", "http://httpbin.org/ip"])
        .unwrap();
    assert!(response.contains(GATEWAY), "{response}");
    let (_, line) = scenario.node.access_line("/ip").unwrap();
    assert!(
        has_ip(&line["downstream_remote_address"], &net.other.address),
        "{line:?}"
    );
}

#[test]
fn metrics_and_admin_tell_of_the_request() {
    let Some(net) = net("admin") else { return };
    let scenario = Scenario::start(&net).unwrap();
    scenario.request("/headers").unwrap();
    for (hop, service) in [
        (
            &*scenario.node,
            "istio-egressgateway.istio-system.svc.cluster.local",
        ),
        (&*scenario.gateway, "httpbin.org"),
    ] {
        assert_eq!(hop.admin("/healthz/ready").unwrap().0, 200);
        let labels = [("destination_service", service), ("response_code", "200")];
        let count = || hop.metric("istio_requests_total", &labels);
        hop.eventually("the request is counted", || Ok(count()? == Some(1.0)))
            .unwrap();
        let durations = hop.metric("istio_request_duration_milliseconds_count", &labels);
        assert_eq!(durations.unwrap(), Some(1.0));
        let (status, dump) = hop.admin("/config_dump").unwrap();
        assert_eq!(status, 200);
        assert!(dump.contains("vsvc-httpbin-gateway"), "{dump}");
    }
    let labels = [("program", "connect4"), ("outcome", "redirected")];
    let redirected = scenario
        .node
        .metric("egress_kernel_outcomes_total", &labels);
    assert_eq!(redirected.unwrap(), Some(1.0));
    let source = [
        ("source_workload", "sleep"),
        ("source_workload_namespace", "istio-demo"),
    ];
    let of_sleep = scenario
        .node
        .metric("istio_requests_total", &source)
        .unwrap();
    assert_eq!(of_sleep, Some(1.0), "the kernel knows who called");
}

#[test]
fn map_dump_names_its_fields() {
    let Some(net) = net("bpftool") else { return };
    let scenario = Scenario::start(&net).unwrap();
    let (_, dump) = scenario.destinations().unwrap();
    for field in [
        "\"address\"",
        "\"port\"",
        "\"protocol\"",
        "\"action\"",
        "203,0,113,10",
    ] {
        assert!(dump.contains(field), "{field} in {dump}");
    }
}

#[test]
fn unregistered_host_is_left_alone_under_allow_any() {
    let Some(net) = net("allow-any") else { return };
    let scenario = Scenario::start(&net).unwrap();
    net.set_record("elsewhere.test", &["203.0.113.11"]).unwrap();
    let response = net
        .pod
        .run(&["curl", "-sS", "http://elsewhere.test/ip"])
        .unwrap();
    assert!(response.contains(&net.pod.address), "{response}");
    let labels = [("program", "connect4"), ("outcome", "not_registered")];
    let passed = scenario
        .node
        .metric("egress_kernel_outcomes_total", &labels)
        .unwrap();
    assert_eq!(passed, Some(1.0));
    assert!(
        scenario.node.access_lines().is_empty(),
        "the proxy has not seen it"
    );
    expect_peer(&net, &net.pod.address, "/ip");
}

/// The outside world saw that path asked from that address.
fn expect_peer(net: &Net, address: &str, path: &str) {
    let seen = net.seen().unwrap();
    let request = seen.iter().find(|line| line.contains(path));
    assert!(
        request.is_some_and(|line| has_ip(line, address)),
        "{seen:?}"
    );
}
