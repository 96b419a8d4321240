// SPDX-License-Identifier: Apache-2.0
//! HTTP through the hops: bodies, methods, upgrades, and answers of our own.

use lab::{net::GATEWAY, node::Node, process::Process, scenario::Scenario};

use crate::{configure, curl, mesh_config, net, service_entry};

#[test]
fn bodies_and_methods_pass_both_hops_unchanged() {
    let Some(net) = net("bodies") else { return };
    let scenario = Scenario::start(&net).unwrap();
    let size = "-w%{http_code} %{size_download}";
    let to_null = ["-o", "/dev/null", size];
    for (path, expected) in [
        ("/bytes/0", "200 0"),
        ("/bytes/1048576", "200 1048576"),
        ("/stream/3", "200 30"),
        ("/status/204", "204 0"),
        ("/status/418", "418 0"),
        ("/status/503", "503 0"),
    ] {
        let url = format!("http://httpbin.org{path}");
        assert_eq!(
            curl(&net, &[&to_null[..], &[&url]].concat()).trim(),
            expected,
            "{path}"
        );
    }
    let stream = curl(&net, &["-i", "http://httpbin.org/stream/2"]).to_ascii_lowercase();
    assert!(stream.contains("transfer-encoding: chunked"), "{stream}");
    let head = curl(&net, &["-I", "http://httpbin.org/bytes/77"]).to_ascii_lowercase();
    assert!(head.contains("content-length: 77"), "{head}");
    for encoding in ["Content-Type: text/plain", "Transfer-Encoding: chunked"] {
        let post = ["-H", encoding, "-d", "hello", "http://httpbin.org/post"];
        assert!(
            curl(&net, &post).contains("\"data\": \"hello\""),
            "{encoding}"
        );
    }
    // One connection of the client, several requests.
    let url = "http://httpbin.org/get?kept";
    let reused = curl(
        &net,
        &["-o/dev/null", "-o/dev/null", "-w%{num_connects} ", url, url],
    );
    assert_eq!(reused.trim(), "1 0");
    drop(scenario);
}

#[test]
fn upgraded_connection_carries_bytes_both_ways() {
    let Some(net) = net("upgrade") else { return };
    let _scenario = Scenario::start(&net).unwrap();
    let script = "exec 3<>/dev/tcp/203.0.113.10/80; printf 'GET /upgrade HTTP/1.1\\r\\n\
        Host: httpbin.org\\r\\nConnection: upgrade\\r\\nUpgrade: echo\\r\\n\\r\\n' >&3; \
        while read -r line <&3; do line=${line%$'\\r'}; echo \"$line\"; \
        [ -z \"$line\" ] && break; done; echo over the new protocol >&3; \
        read -r line <&3; echo \"$line\"";
    let said = net
        .pod
        .run(&["timeout", "20", "bash", "-c", script])
        .unwrap();
    assert!(said.starts_with("HTTP/1.1 101"), "{said}");
    assert!(said.ends_with("over the new protocol\n"), "{said}");
}

#[test]
fn gateway_without_a_route_says_what_it_looked_at() {
    let Some(net) = net("no-route") else { return };
    let scenario = Scenario::start(&net).unwrap();
    let url = format!("http://{GATEWAY}:8080/get?no-route");
    let command = ["curl", "-sSi", "-H", "Host: unknown.test", &url].map(str::to_owned);
    let command = [&net.node.enter()[..], &command].concat();
    let answer = Process::output("curl", &command, lab::hop::SOON).unwrap();
    assert!(answer.starts_with("HTTP/1.1 404"), "{answer}");
    assert!(
        answer.contains("istio-demo/istio-egressgateway"),
        "{answer}"
    );
    let (_, line) = scenario.gateway.access_line("/get?no-route").unwrap();
    assert_eq!(line["response_flags"], "NR");
    assert_eq!(line["response_code_details"], "route_not_found");
}

#[test]
fn unregistered_host_is_answered_502_under_registry_only() {
    let Some(net) = net("registry-only") else {
        return;
    };
    let yaml = service_entry("httpbin", &["httpbin.org"], &[80], "resolution: DNS");
    let mesh = mesh_config(&net, "outboundTrafficPolicy: {mode: REGISTRY_ONLY}\n");
    let config = configure(&net, "httpbin.yaml", &yaml);
    let node = Node::start(&net, &config, &["--mesh-config", &mesh]).unwrap();
    let url = "http://203.0.113.10/get?blocked";
    let answer = curl(&net, &["-i", "-H", "Host: unknown.test", url]);
    assert!(answer.starts_with("HTTP/1.1 502"), "{answer}");
    assert!(
        answer.contains("unknown.test"),
        "the reason names the host: {answer}"
    );
    let (_, body) = answer.split_once("\r\n\r\n").unwrap();
    assert_eq!(body.lines().count(), 1, "{body}");
    let (_, line) = node.access_line("/get?blocked").unwrap();
    assert_eq!(line["upstream_cluster"], "BlackHoleCluster");
    assert!(net.seen().unwrap().is_empty());
    assert!(curl(&net, &["http://httpbin.org/ip"]).contains("203.0.113.1\""));
}

#[test]
fn upstream_that_refuses_is_answered_503_with_the_flag() {
    let Some(net) = net("refusing") else { return };
    let yaml = service_entry("closed", &["httpbin.org"], &[81], "resolution: DNS");
    let node = Node::start(&net, &configure(&net, "closed.yaml", &yaml), &[]).unwrap();
    let answer = curl(&net, &["-i", "http://httpbin.org:81/get?closed"]);
    assert!(answer.starts_with("HTTP/1.1 503"), "{answer}");
    let (_, line) = node.access_line("/get?closed").unwrap();
    assert!(line["response_flags"].contains("UF"), "{line:?}");
}

#[test]
fn access_log_in_json_has_istios_keys() {
    let Some(net) = net("json-log") else { return };
    let yaml = service_entry("httpbin", &["httpbin.org"], &[80], "resolution: DNS");
    let mesh = mesh_config(&net, "accessLogEncoding: JSON\n");
    let config = configure(&net, "httpbin.yaml", &yaml);
    let node = Node::start(&net, &config, &["--mesh-config", &mesh]).unwrap();
    curl(&net, &["http://httpbin.org/get?json"]);
    let wanted = |line: &str| line.starts_with('{') && line.contains("/get?json");
    let line = node
        .process()
        .wait_for_line("a JSON line", lab::hop::SOON, wanted)
        .unwrap();
    let line: serde_json::Value = serde_json::from_str(&line).unwrap();
    for (key, expected) in [
        ("method", "GET"),
        ("path", "/get?json"),
        ("protocol", "HTTP/1.1"),
        ("authority", "httpbin.org"),
        ("upstream_cluster", "outbound|80||httpbin.org"),
        ("upstream_host", "203.0.113.10:80"),
        ("downstream_local_address", "203.0.113.10:80"),
    ] {
        assert_eq!(line[key], expected, "{key} of {line}");
    }
    assert_eq!(line["response_code"], 200);
}
