// SPDX-License-Identifier: Apache-2.0
//! YAML in, decisions out: objects as users write them, requests and decisions in the JSON of
//! `egress explain`. Each case names its row of istio-egress.md.

#![allow(
    clippy::unwrap_used,
    reason = "a test that cannot go on fails with the error it met, in helpers as in tests"
)]

use std::{collections::BTreeMap, fs, path::PathBuf};

use egress::{
    config::{self, ConfigSettings, Loaded},
    explain::{ExplainRequest, Explainer},
    routing::table::Role,
};
use serde_json::{Value, json};

/// A directory of its own for each test.
struct Directory(PathBuf);

impl Directory {
    fn new(name: &str) -> Self {
        let path = std::env::temp_dir().join(format!("egress-{name}-{}", std::process::id()));
        fs::create_dir_all(&path).unwrap();
        Self(path)
    }
}

impl Drop for Directory {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

fn object(kind: &str, full: &str, spec: &str) -> String {
    let (namespace, name) = full.split_once('/').unwrap();
    format!(
        "---\napiVersion: networking.istio.io/v1\nkind: {kind}\n\
         metadata: {{name: {name}, namespace: {namespace}}}\nspec: {spec}\n"
    )
}

fn load(name: &str, objects: &[String], mesh: &str) -> Loaded {
    let directory = Directory::new(name);
    let (file, mesh_file) = (directory.0.join("a.yaml"), directory.0.join("mesh.yml.txt"));
    fs::write(&file, objects.concat()).unwrap();
    fs::write(&mesh_file, mesh).unwrap();
    let loaded = config::load(&ConfigSettings {
        paths: vec![file],
        mesh_config: (!mesh.is_empty()).then_some(mesh_file),
        default_namespace: "default".into(),
        role: Role::Mesh,
    });
    let loaded = loaded.unwrap();
    let errors: Vec<_> = loaded
        .problems()
        .filter(|p| p.severity == config::problem::Severity::Error)
        .collect();
    assert!(errors.is_empty(), "{errors:?}");
    loaded
}

/// What a decision comes to, on one line.
fn decide(explainer: &Explainer, request: Value) -> (String, Value) {
    let request: ExplainRequest = serde_json::from_value(request).unwrap();
    let decision = explainer.explain(&request).unwrap().json;
    let text = |key: &str| decision[key].as_str().unwrap_or_default().to_owned();
    let line = match text("action").as_str() {
        "forward" => text("cluster"),
        "direct_response" => format!("{} {}", decision["status"], text("body")),
        other => [other, &text("response_flag")].join(" ").trim().to_owned(),
    };
    (line, decision)
}

fn explainer(name: &str, objects: &[String], mesh: &str) -> Explainer {
    Explainer::new(load(name, objects, mesh).objects)
}

/// A request of a caller in a namespace, with an `app` label.
fn from(namespace: &str, app: &str, host: &str, port: u16, path: &str) -> Value {
    let labels: BTreeMap<_, _> = [("app", app)]
        .into_iter()
        .filter(|_| !app.is_empty())
        .collect();
    json!({
        "source": {"namespace": namespace, "labels": labels},
        "host": host, "port": port, "path": path,
    })
}

const HTTP: &str = "ports: [{number: 80, name: http, protocol: HTTP}], resolution: DNS";

fn entry(full: &str, host: &str) -> String {
    object(
        "ServiceEntry",
        full,
        &format!("{{hosts: [{host}], {HTTP}}}"),
    )
}

#[test]
fn sidecars_limit_what_their_workloads_see() {
    let objects = [
        entry("a/one", "one.com"),
        entry("b/two", "two.com"),
        entry("b/three", "three.com"),
        object(
            "VirtualService",
            "b/two",
            "{hosts: [two.com], http: [{directResponse: {status: 201}}]}",
        ),
        // The default of namespace a, of one workload in it, and of all other namespaces.
        object("Sidecar", "a/default", "{egress: [{hosts: [./*]}]}"),
        object(
            "Sidecar",
            "a/wide",
            "{workloadSelector: {labels: {app: wide}}, \
             egress: [{hosts: ['*/*', '~b/three.com']}], outboundTrafficPolicy: {}}",
        ),
        object(
            "Sidecar",
            "istio-system/default",
            "{egress: [{port: {number: 80, name: http, protocol: HTTP}, hosts: [b/two.com, ./own.com]}, \
             {hosts: [~/*]}]}",
        ),
        entry("c/own", "own.com"),
        entry("d/own", "own.com"),
        object(
            "Sidecar",
            "p/proxied",
            "{outboundTrafficPolicy: {mode: ALLOW_ANY, \
             egressProxy: {host: one.com, port: {number: 80}}}}",
        ),
    ];
    let explainer = explainer("sidecars", &objects, "");
    for (row, namespace, app, host, expected) in [
        (
            "7.1 namespace default",
            "a",
            "",
            "one.com",
            "outbound|80||one.com",
        ),
        ("7.2 not imported", "a", "", "two.com", "passthrough"),
        ("7.1 workloadSelector", "a", "wide", "two.com", "201 "),
        ("7.2 exclude", "a", "wide", "three.com", "blackhole"),
        ("1.6 empty mode", "a", "wide", "unknown.com", "blackhole"),
        ("7.1 root default", "c", "", "two.com", "201 "),
        (
            "7.2 . is the caller's",
            "c",
            "",
            "own.com",
            "outbound|80||own.com",
        ),
        ("7.2 . is the caller's", "e", "", "own.com", "passthrough"),
        ("7.2 other host", "c", "", "three.com", "passthrough"),
        (
            "1.6 egressProxy",
            "p",
            "",
            "unknown.com",
            "outbound|80||one.com",
        ),
        (
            "7 no egress field",
            "p",
            "",
            "three.com",
            "outbound|80||three.com",
        ),
    ] {
        let (line, decision) = decide(&explainer, from(namespace, app, host, 80, "/"));
        assert_eq!(line, expected, "{row}: {decision:#}");
    }
    let (_, decision) = decide(&explainer, from("a", "", "two.com", 80, "/"));
    let why = decision["why"].to_string();
    assert!(
        why.contains("Sidecar a/default is in force for the caller"),
        "{why}"
    );
}

#[test]
fn sidecar_listeners_are_by_port() {
    let two = "{hosts: [two.com], resolution: DNS, ports: [\
        {number: 80, name: http, protocol: HTTP}, {number: 81, name: http1, protocol: HTTP}]}";
    let objects = [
        object("ServiceEntry", "b/two", two),
        object(
            "Sidecar",
            "a/default",
            "{egress: [{port: {number: 80, name: http, protocol: HTTP}, hosts: [./*]}, \
             {hosts: [b/*]}]}",
        ),
    ];
    let explainer = explainer("listeners", &objects, "");
    for (port, expected) in [(80, "passthrough"), (81, "outbound|81||two.com")] {
        let (line, _) = decide(&explainer, from("a", "", "two.com", port, "/"));
        assert_eq!(line, expected, "7.3 port {port}");
    }
}

#[test]
fn delegates_stand_in_for_their_rule() {
    let child = "{http: [\
        {name: c, match: [{uri: {prefix: /a/b}}], directResponse: {status: 201}}, \
        {match: [{uri: {prefix: /x}}], directResponse: {status: 202}}, \
        {match: [{uri: {prefix: /a/two}}, {uri: {prefix: /x}}], directResponse: {status: 205}}, \
        {match: [{headers: {h: {exact: v}}}], route: [{destination: {host: one.com}}], \
         timeout: 3s}, \
        {directResponse: {status: 203}}]}";
    let objects = [
        entry("a/one", "one.com"),
        object(
            "VirtualService",
            "a/root",
            "{hosts: [one.com], http: [\
             {name: r, match: [{uri: {prefix: /a}, port: 80}], timeout: 9s, \
              headers: {request: {set: {x-root: '1'}}}, \
              delegate: {name: child, namespace: d}}, \
             {match: [{uri: {prefix: /hidden}}], delegate: {name: hidden, namespace: d}}, \
             {match: [{uri: {prefix: /none}}], delegate: {name: none}}, \
             {directResponse: {status: 299}}]}",
        ),
        object("VirtualService", "d/child", child),
        object(
            "VirtualService",
            "d/hidden",
            "{exportTo: [.], http: [{directResponse: {status: 204}}]}",
        ),
    ];
    let explainer = explainer("delegates", &objects, "");
    for (row, path, header, expected, name) in [
        ("5b.16 inside", "/a/b/c", "", "201 ", "r-c"),
        ("5b.16 outside the root's match", "/x", "", "299 ", ""),
        ("5b.16 rest of the child", "/a/x", "", "203 ", "r"),
        (
            "5b.16 conditions of both",
            "/a/x",
            "v",
            "outbound|80||one.com",
            "r",
        ),
        ("5b.16 exportTo of the child", "/hidden", "", "299 ", ""),
        ("5b.16 one block is outside", "/a/two", "", "203 ", "r"),
        ("5b.16 missing child", "/none", "", "299 ", ""),
    ] {
        let mut request = from("a", "", "one.com", 80, path);
        if !header.is_empty() {
            request["headers"] = json!({ "h": header });
        }
        let (line, decision) = decide(&explainer, request);
        assert_eq!(line, expected, "{row}: {decision:#}");
        let named = decision["route_name"].as_str().unwrap_or_default();
        assert_eq!(named, name, "5a.10, {row}");
        if line.starts_with("outbound") {
            assert_eq!(decision["timeout"], "3s", "the child's own");
            assert_eq!(
                decision["upstream_headers"]["x-root"],
                json!(["1"]),
                "inherited"
            );
            let why = decision["why"].to_string();
            assert!(
                why.contains("by its delegate VirtualService d/child http[3]"),
                "{why}"
            );
        }
    }
}

const SUBSETS: &str = "{hosts: [s.com], resolution: STATIC, \
    ports: [{number: 80, name: http, protocol: HTTP}, {number: 81, name: two, protocol: HTTP2}], \
    endpoints: [{address: 192.0.2.1, labels: {v: '1'}}, {address: 192.0.2.2, labels: {v: '2'}}]}";

#[test]
fn subsets_select_endpoints() {
    let to = |subset: &str, path: &str| {
        format!(
            "{{match: [{{uri: {{prefix: {path}}}}}], \
             route: [{{destination: {{host: s.com, subset: {subset}}}}}]}}"
        )
    };
    let rules = [
        to("one", "/1"),
        to("two", "/2"),
        to("none", "/3"),
        to("late", "/4"),
    ]
    .join(", ");
    let objects = [
        object("ServiceEntry", "a/s", SUBSETS),
        object(
            "VirtualService",
            "a/s",
            &format!("{{hosts: [s.com], http: [{rules}]}}"),
        ),
        object(
            "DestinationRule",
            "a/s",
            "{host: s.com, subsets: [{name: one, labels: {v: '1'}}, \
             {name: two, labels: {v: '2'}, trafficPolicy: {connectionPool: \
             {tcp: {connectTimeout: 7s}}}}]}",
        ),
        object(
            "DestinationRule",
            "a/s-more",
            "{host: s.com, subsets: [{name: late, labels: {v: '1'}}]}",
        ),
    ];
    let explainer = explainer("subsets", &objects, "");
    for (row, path, expected, endpoints, timeout) in [
        (
            "5b.4",
            "/1",
            "outbound|80|one|s.com",
            json!(["192.0.2.1:80"]),
            "10s",
        ),
        (
            "5b.4",
            "/2",
            "outbound|80|two|s.com",
            json!(["192.0.2.2:80"]),
            "7s",
        ),
        ("5b.4 missing subset", "/3", "no_route NC", Value::Null, ""),
        (
            "6 merged rules",
            "/4",
            "outbound|80|late|s.com",
            json!(["192.0.2.1:80"]),
            "10s",
        ),
    ] {
        let (line, decision) = decide(&explainer, from("a", "", "s.com", 80, path));
        assert_eq!(line, expected, "{row}: {decision:#}");
        assert_eq!(decision["endpoints"], endpoints, "{row}");
        assert_eq!(
            decision["connect_timeout"].as_str().unwrap_or_default(),
            timeout,
            "{row}"
        );
    }
}

#[test]
fn the_clients_own_destination_rule_comes_first() {
    let timeout = |limit: &str| {
        format!(
            "{{host: s.com, trafficPolicy: {{connectionPool: {{tcp: {{connectTimeout: {limit}}}}}}}}}"
        )
    };
    let objects = [
        object("ServiceEntry", "a/s", SUBSETS),
        object("DestinationRule", "a/s", &timeout("2s")),
        object("DestinationRule", "b/s", &timeout("3s")),
        object("DestinationRule", "istio-system/s", &timeout("4s")),
        object("ServiceEntry", "c/t", &SUBSETS.replace("s.com", "t.com")),
        object(
            "DestinationRule",
            "istio-system/t",
            "{host: '*.com', trafficPolicy: {connectionPool: {tcp: {connectTimeout: 5s}, \
             http: {h2UpgradePolicy: UPGRADE}}, \
             portLevelSettings: [{port: {number: 81}, connectionPool: \
             {http: {useClientProtocol: true}}}]}}",
        ),
    ];
    let explainer = explainer("rules", &objects, "");
    for (row, namespace, host, port, expected) in [
        ("6 service's namespace", "z", "s.com", 80, "2s"),
        ("6 client's namespace", "b", "s.com", 80, "3s"),
        ("6 root namespace", "z", "t.com", 80, "5s"),
        (
            "trap 8: a port's settings stand alone",
            "z",
            "t.com",
            81,
            "10s",
        ),
    ] {
        let (_, decision) = decide(&explainer, from(namespace, "", host, port, "/"));
        assert_eq!(decision["connect_timeout"], expected, "{row}: {decision:#}");
    }
}

#[test]
fn connect_is_for_forward_proxies() {
    let proxy = |number: u16, protocol: &str| {
        format!(
            "{{hosts: [p{number}.com], addresses: [192.0.2.{number}], resolution: STATIC, \
             endpoints: [{{address: 192.0.2.9}}], \
             ports: [{{number: 3128, name: proxy, protocol: {protocol}}}]}}"
        )
    };
    let objects = [
        object("ServiceEntry", "a/one", &proxy(1, "HTTP_PROXY")),
        object("ServiceEntry", "a/two", &proxy(2, "HTTP")),
    ];
    let explainer = explainer("connect", &objects, "");
    for (row, method, ip, expected) in [
        (
            "5b.17 tunnel",
            "CONNECT",
            "192.0.2.1",
            "outbound|3128||p1.com",
        ),
        (
            "5b.17 asked of the proxy",
            "GET",
            "192.0.2.1",
            "outbound|3128||p1.com",
        ),
        ("5b.17 no proxy", "CONNECT", "192.0.2.2", "no_route NR"),
        ("5b.17 no proxy", "GET", "192.0.2.2", "passthrough"),
    ] {
        let request = json!({
            "method": method, "host": "x.com:443", "port": 3128, "dst_ip": ip, "path": "/",
        });
        let (line, decision) = decide(&explainer, request);
        assert_eq!(line, expected, "{row}: {decision:#}");
    }
}

#[test]
fn runners_up_are_named_with_their_reason() {
    let gateway = |name: &str| {
        object(
            "Gateway",
            name,
            "{selector: {istio: egressgateway}, servers: [\
             {port: {number: 80, name: http, protocol: HTTP}, hosts: [one.com]}]}",
        )
    };
    let bound = |full: &str, gateway: &str, path: &str| {
        object(
            "VirtualService",
            full,
            &format!(
                "{{hosts: [one.com], gateways: [{gateway}], http: [\
                 {{match: [{{uri: {{prefix: {path}}}}}], directResponse: {{status: 201}}}}]}}"
            ),
        )
    };
    let mut objects = vec![
        entry("a/one", "one.com"),
        gateway("istio-demo/x"),
        gateway("istio-system/x"),
        bound("a/b", "istio-demo/x", "/"),
        bound("a/c", "istio-system/x", "/only"),
        bound("a/d", "mesh", "/"),
        bound("a/e", "mesh", "/late"),
    ];
    objects.extend((0..30).map(|n| bound(&format!("z/z{n}"), "istio-demo/y", "/")));
    let explainer = explainer("runners-up", &objects, "");
    let why = |request: Value| decide(&explainer, request).1["why"].to_string();
    let at_gateway = why(json!({
        "gateway": "istio-system/x", "host": "one.com", "port": 80, "path": "/other",
    }));
    for part in [
        "VirtualService a/b was considered: bound to gateway istio-demo/x, not istio-system/x",
        "VirtualService a/c http[0] does not match: uri=/only* does not match /other",
        "more were considered",
    ] {
        assert!(at_gateway.contains(part), "{part}: {at_gateway}");
    }
    assert!(at_gateway.len() < 8_000, "{}", at_gateway.len());
    let in_mesh = why(json!({ "host": "one.com", "port": 80, "path": "/" }));
    let older = "VirtualService a/e was considered: VirtualService a/d is older for the same host";
    assert!(in_mesh.contains(older), "{in_mesh}");
}

#[test]
fn actions_beside_the_route_are_explained() {
    let objects = [
        entry("a/one", "one.com"),
        entry("a/copy", "copy.com"),
        object(
            "VirtualService",
            "a/one",
            "{hosts: [one.com], http: [\
             {match: [{uri: {prefix: /abort}}], route: [{destination: {host: one.com}}], \
              fault: {abort: {httpStatus: 418, percentage: {value: 100}}}}, \
             {route: [{destination: {host: one.com}}], mirrors: [{destination: {host: copy.com}, \
              percentage: {value: 25}}], retries: {attempts: 4, retryOn: '5xx,429', \
              perTryTimeout: 2s}, fault: {delay: {fixedDelay: 1s, percentage: {value: 50}}}}]}",
        ),
    ];
    let explainer = explainer("actions", &objects, "");
    let (line, decision) = decide(&explainer, from("a", "", "one.com", 80, "/abort"));
    assert_eq!(line, "fault_abort FI", "5b.12: {decision:#}");
    assert_eq!(decision["status"], 418);
    let (_, decision) = decide(&explainer, from("a", "", "one.com", 80, "/"));
    let mirrors = json!([{"host": "copy.com", "port": 80, "subset": null, "share": 0.25}]);
    assert_eq!(decision["mirrors"], mirrors, "5b.13");
    assert_eq!(
        decision["fault"]["delay"],
        json!({"delay": "1s", "share": 0.5})
    );
    let retries = json!({
        "attempts": 4, "per_try_timeout": "2s", "retry_on": ["5xx", "retriable-status-codes"],
        "retriable_status_codes": [429],
    });
    assert_eq!(decision["retries"], retries, "5b.11");
}

#[test]
fn destinations_are_those_that_the_caller_sees() {
    let objects = [
        object(
            "ServiceEntry",
            "a/private",
            &format!("{{hosts: [s.com], exportTo: [., b], {HTTP}}}"),
        ),
        entry("a/public", "p.com"),
        object(
            "VirtualService",
            "a/p",
            "{hosts: [p.com], http: [{route: [{destination: {host: s.com}}]}]}",
        ),
    ];
    let explainer = explainer("visibility", &objects, "");
    for (row, namespace, expected) in [
        ("0.6 own namespace", "a", "outbound|80||s.com"),
        ("0.6 exported to", "b", "outbound|80||s.com"),
        ("0.6 not exported to", "c", "no_route NC"),
    ] {
        let (line, decision) = decide(&explainer, from(namespace, "", "p.com", 80, "/"));
        assert_eq!(line, expected, "{row}: {decision:#}");
    }
}

#[test]
fn the_first_step_says_who_the_caller_is_when_one_is_given() {
    let explainer = explainer("caller", &[entry("a/one", "one.com")], "");
    let first = |source: Value| {
        let mut request = json!({ "host": "one.com", "port": 80 });
        if !source.is_null() {
            request["source"] = source;
        }
        let why = decide(&explainer, request).1["why"][0].clone();
        why.as_str().unwrap().to_owned()
    };
    for (source, expected) in [
        (
            json!({"namespace": "istio-demo", "name": "sleep", "labels": {"app": "sleep"}}),
            "caller istio-demo/sleep (labels app=sleep)",
        ),
        (
            json!({"namespace": "a", "labels": {"app": "x", "version": "v1"}, "service_account": "sa"}),
            "caller of namespace a (labels app=x,version=v1, service account sa)",
        ),
        (json!({"name": "nightly.service"}), "caller nightly.service"),
        (json!({}), "caller of unknown name and namespace"),
    ] {
        assert_eq!(first(source), expected);
    }
    assert!(!first(Value::Null).starts_with("caller"));
}
