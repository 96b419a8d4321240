// SPDX-License-Identifier: Apache-2.0
//! What a rule does beside routing: retries, timeouts, faults, CORS, mirrors. Tries are counted
//! where they arrive, at the upstream.

use lab::{net::Net, node::Node};

use crate::{configure, curl, mesh_config, net, service_entry, virtual_service};

const TO_HTTPBIN: &str = "route: [{destination: {host: httpbin.org}}]";

/// A node whose VirtualService for httpbin.org has these rules, each without its route.
fn node<'a>(net: &'a Net, rules: &[&str]) -> Node<'a> {
    let rules: Vec<_> = rules
        .iter()
        .map(|rule| format!("{{{rule}, {TO_HTTPBIN}}}"))
        .collect();
    let yaml = service_entry("httpbin", &["httpbin.org"], &[80], "resolution: DNS")
        + &service_entry("copy", &["copy.test"], &[8001], "resolution: DNS")
        + &virtual_service("rules", "httpbin.org", &format!("[{}]", rules.join(", ")));
    net.set_record("copy.test", &["203.0.113.11"]).unwrap();
    let mesh = mesh_config(net, "connectTimeout: 2s\n");
    let config = configure(net, "rules.yaml", &yaml);
    Node::start(net, &config, &["--mesh-config", &mesh]).unwrap()
}

/// How often the upstream saw a path.
fn tries(net: &Net, path: &str) -> usize {
    net.seen()
        .unwrap()
        .iter()
        .filter(|line| line.ends_with(path))
        .count()
}

const STATUS: &[&str] = &["-o", "/dev/null", "-w", "%{http_code}"];

#[test]
fn tries_end_with_the_first_good_answer_or_the_last_try() {
    let Some(net) = net("retries") else { return };
    let node = node(
        &net,
        &[
            "match: [{uri: {prefix: /flaky/}}], retries: {attempts: 2, retryOn: 5xx, backoff: 1ms}",
            "match: [{uri: {prefix: /broken/}}], retries: {attempts: 1, retryOn: reset}",
            "match: [{uri: {prefix: /silent/}}], \
             retries: {attempts: 3, perTryTimeout: 100ms, retryOn: reset, backoff: 1ms}",
            "match: [{uri: {prefix: /status/418}}], retries: {attempts: 2, retryOn: '418'}",
            "name: plain",
        ],
    );
    let body: &[&str] = &["-d", "the body"];
    for (path, more, status, expected) in [
        ("/flaky/2?a", &[][..], "200", 3),
        ("/flaky/2?b", body, "200", 3),
        ("/flaky/9?c", &[], "503", 3),
        ("/broken/1?d", &[], "200", 2),
        ("/broken/1?e", body, "200", 2),
        ("/silent/1?f", &[], "200", 2),
        ("/silent/1?g", body, "200", 2),
        ("/silent/9?h", &[], "504", 4),
        ("/status/418?i", &[], "418", 3),
        // The default policy does not repeat what the upstream may have acted on.
        ("/status/503?j", &[], "503", 1),
    ] {
        let url = format!("http://httpbin.org{path}");
        let got = curl(&net, &[STATUS, more, &[&url]].concat());
        assert_eq!(
            (got.as_str(), tries(&net, path)),
            (status, expected),
            "{path}"
        );
    }
    let echoed = curl(&net, &["-d", "all of it", "http://httpbin.org/flaky/1?k"]);
    assert_eq!(echoed, "all of it");
    for (path, flags, details) in [
        ("/flaky/2?a", "-", "via_upstream"),
        ("/flaky/9?c", "URX", "via_upstream"),
        ("/silent/9?h", "UT,URX", "upstream_per_try_timeout"),
    ] {
        let (_, line) = node.access_line(path).unwrap();
        assert_eq!(line["response_flags"], flags, "{path}");
        assert_eq!(line["response_code_details"], details, "{path}");
    }
}

#[test]
fn body_too_large_to_be_kept_is_sent_once() {
    let Some(net) = net("large-retry") else {
        return;
    };
    let _node = node(
        &net,
        &["retries: {attempts: 2, retryOn: 5xx, backoff: 1ms}"],
    );
    let post = "head -c 3000000 /dev/zero | curl -sS --max-time 20 -o /dev/null -w '%{http_code}' \
                -H 'Expect:' --data-binary @- 'http://httpbin.org/flaky/";
    let send = |end: &str| {
        let answer = net.pod.run(&["sh", "-c", &format!("{post}{end}'")]);
        answer.unwrap().trim_end().to_owned()
    };
    // Whatever the upstream answers before it has read everything may still be retried.
    assert!(["200", "503"].contains(&send("1?large").as_str()));
    assert_eq!(send("0?large"), "200", "3 MB pass");
}

#[test]
fn timeouts_cover_the_whole_response() {
    let Some(net) = net("timeouts") else { return };
    let node = node(&net, &["timeout: 300ms"]);
    let status = curl(&net, &[STATUS, &["http://httpbin.org/silent/1?t"]].concat());
    assert_eq!(status, "504");
    let (_, line) = node.access_line("/silent/1?t").unwrap();
    assert_eq!(line["response_flags"], "UT");
    assert_eq!(line["response_code_details"], "response_timeout");
    let cut = "curl -sS --max-time 20 http://httpbin.org/stalled; echo \" status $?\"";
    let said = net.pod.run(&["sh", "-c", cut]).unwrap();
    assert!(said.starts_with("begun\n status "), "{said}");
    assert!(
        !said.ends_with("status 0\n") && !said.ends_with("status 28\n"),
        "{said}"
    );
    let (_, line) = node.access_line("/stalled").unwrap();
    assert_eq!(line["response_flags"], "UT");
    assert_eq!(line["response_code"], "200");
}

#[test]
fn faults_hit_as_configured() {
    let Some(net) = net("faults") else { return };
    let node = node(
        &net,
        &[
            "match: [{uri: {exact: /abort}}], \
             fault: {abort: {httpStatus: 418, percentage: {value: 100}}}",
            "match: [{uri: {exact: /grpc}}], \
             fault: {abort: {grpcStatus: UNAVAILABLE, percentage: {value: 100}}}",
            "match: [{uri: {prefix: /get}}], \
             fault: {delay: {fixedDelay: 200ms, percentage: {value: 100}}, \
             abort: {httpStatus: 500}}",
        ],
    );
    let timed = ["-o", "/dev/null", "-w", "%{http_code} %{time_total}"];
    assert!(curl(&net, &["-i", "http://httpbin.org/abort"]).starts_with("HTTP/1.1 418"));
    let head = ["-I", "--http2-prior-knowledge", "http://httpbin.org/abort"];
    assert!(curl(&net, &head).starts_with("HTTP/2 418"));
    let grpc = curl(
        &net,
        &[
            "-i",
            "-H",
            "content-type: application/grpc",
            "http://httpbin.org/grpc",
        ],
    );
    assert!(
        grpc.starts_with("HTTP/1.1 200") && grpc.contains("grpc-status: 14"),
        "{grpc}"
    );
    assert!(curl(&net, &["-i", "http://httpbin.org/grpc"]).starts_with("HTTP/1.1 503"));
    let delayed = curl(
        &net,
        &[&timed[..], &["http://httpbin.org/get?late"]].concat(),
    );
    let (status, seconds) = delayed.split_once(' ').unwrap();
    assert_eq!(status, "200", "an abort without percentage never hits");
    assert!(seconds.parse::<f64>().unwrap() >= 0.2, "{delayed}");
    assert_eq!(tries(&net, "/abort") + tries(&net, "/grpc"), 0);
    for (path, flags, details) in [
        ("/abort", "FI", "fault_filter_abort"),
        ("/get?late", "DI", "via_upstream"),
    ] {
        let (_, line) = node.access_line(path).unwrap();
        assert_eq!(line["response_flags"], flags);
        assert_eq!(line["response_code_details"], details);
    }
}

#[test]
fn preflights_are_answered_here() {
    let Some(net) = net("cors") else { return };
    let _node = node(
        &net,
        &[
            "corsPolicy: {allowOrigins: [{exact: 'https://a.test'}], allowMethods: [GET, PUT], \
           exposeHeaders: [x-lab-server], maxAge: 60s}",
        ],
    );
    let url = "http://httpbin.org/get?cors";
    let asked = [
        "-i",
        "-X",
        "OPTIONS",
        "-H",
        "Access-Control-Request-Method: PUT",
    ];
    let from = |origin| ["-H", origin, url];
    let preflight = curl(
        &net,
        &[&asked[..], &from("Origin: https://a.test")].concat(),
    );
    assert!(preflight.starts_with("HTTP/1.1 200"), "{preflight}");
    for field in [
        "access-control-allow-origin: https://a.test",
        "access-control-allow-methods: GET,PUT",
        "access-control-max-age: 60",
    ] {
        assert!(preflight.contains(field), "{field}: {preflight}");
    }
    assert_eq!(tries(&net, "/get?cors"), 0);
    let other = curl(
        &net,
        &[&["-i"][..], &from("Origin: https://a.test")].concat(),
    );
    assert!(
        other.contains("access-control-expose-headers: x-lab-server"),
        "{other}"
    );
    let foreign = curl(
        &net,
        &[&["-i"][..], &from("Origin: https://b.test")].concat(),
    );
    assert!(!foreign.contains("access-control-"), "{foreign}");
    assert_eq!(tries(&net, "/get?cors"), 2);
}

#[test]
fn mirrors_get_a_copy_and_hold_nothing_up() {
    let Some(net) = net("mirrors") else { return };
    let node = node(
        &net,
        &[
            "match: [{uri: {prefix: /silent/}}], mirror: {host: copy.test}, \
             rewrite: {uri: /get}",
            "match: [{uri: {prefix: /off}}], mirror: {host: copy.test}, \
             mirrorPercentage: {value: 0}",
            "mirrors: [{destination: {host: copy.test}}]",
        ],
    );
    assert!(curl(&net, &["-d", "both", "http://httpbin.org/post?m"]).contains("\"both\""));
    curl(&net, &["http://httpbin.org/off"]);
    node.eventually("the copy arrives", || {
        // Its Host is the original's.
        let both = |line: &&String| line.ends_with("POST httpbin.org /post?m");
        Ok(net.seen().unwrap().iter().filter(both).count() == 2)
    })
    .unwrap();
    assert_eq!(tries(&net, "/off"), 1);
    let (_, line) = node.access_line("/post?m").unwrap();
    assert_eq!(line["upstream_cluster"], "outbound|80||httpbin.org");
}

#[test]
fn header_edits_follow_the_rule() {
    let Some(net) = net("headers") else { return };
    let _node = node(
        &net,
        &[
            "headers: {request: {set: {x-who: '%REQ(user-agent)% at 100%%', x-kept: new}, \
           add: {x-kept: more}, remove: [x-gone, x-kept]}, \
           response: {set: {x-asked: '%REQ(x-question)%'}, remove: [x-lab-server]}}",
        ],
    );
    let sent = ["X-Gone: 1", "X-Kept: old", "X-Question: why"];
    let sent: Vec<_> = sent.iter().flat_map(|field| ["-H", field]).collect();
    let answer = curl(
        &net,
        &[&sent[..], &["-i", "-A", "me", "http://httpbin.org/headers"]].concat(),
    );
    for part in [
        "\"X-Who\": \"me at 100%\"",
        "\"X-Kept\": \"new,more\"",
        "x-asked: why",
    ] {
        assert!(answer.contains(part), "{part}: {answer}");
    }
    for part in ["X-Gone", "x-lab-server", "old"] {
        assert!(!answer.contains(part), "{part}: {answer}");
    }
}

#[test]
fn own_headers_are_switched_by_the_mesh_configuration() {
    let Some(net) = net("proxy-headers") else {
        return;
    };
    let yaml = service_entry("httpbin", &["httpbin.org"], &[80], "resolution: DNS");
    let config = configure(&net, "httpbin.yaml", &yaml);
    let mesh = mesh_config(
        &net,
        "defaultConfig: {proxyHeaders: {requestId: {disabled: true}, attemptCount: {disabled: true}, \
         server: {value: mine}, envoyDebugHeaders: {disabled: true}, xForwardedPort: {enabled: true}, \
         xForwardedHost: {enabled: true}}}\n",
    );
    let _node = Node::start(&net, &config, &["--mesh-config", &mesh]).unwrap();
    let answer = curl(&net, &["-i", "http://httpbin.org/headers"]);
    for part in [
        "server: mine",
        "\"X-Forwarded-Port\": \"80\"",
        "\"X-Forwarded-Host\": \"httpbin.org\"",
        "\"X-Forwarded-Proto\": \"http\"",
    ] {
        assert!(answer.contains(part), "{part}: {answer}");
    }
    for part in ["X-Request-Id", "X-Envoy-Attempt-Count", "x-envoy-upstream"] {
        assert!(!answer.contains(part), "{part}: {answer}");
    }
}
