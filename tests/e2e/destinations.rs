// SPDX-License-Identifier: Apache-2.0
//! How destinations come to addresses: DYNAMIC_DNS, DNS_ROUND_ROBIN, weights, DestinationRules.

use std::collections::BTreeMap;

use lab::{net::Net, node::Node};

use crate::{configure, curl, mesh_config, net};

fn object(kind: &str, name: &str, spec: &str) -> String {
    format!(
        "---\napiVersion: networking.istio.io/v1\nkind: {kind}\n\
         metadata: {{name: {name}, namespace: istio-demo}}\nspec: {spec}\n"
    )
}

/// Which server and protocol answered a request of the pod.
fn answered(net: &Net, url: &str) -> (String, String) {
    let answer = curl(net, &["-i", url]);
    let field = |name: &str| {
        let line = answer.lines().find(|line| line.starts_with(name));
        let value = line.and_then(|line| line.split_once(": "));
        value.map_or_else(|| answer.clone(), |(_, value)| value.trim().to_owned())
    };
    (field("x-lab-server"), field("x-lab-protocol"))
}

#[test]
fn wildcard_hosts_are_resolved_by_request() {
    let Some(net) = net("dynamic-dns") else {
        return;
    };
    net.set_record("a.dyn.test", &["203.0.113.20"]).unwrap();
    net.set_record("b.dyn.test", &["203.0.113.21"]).unwrap();
    let yaml = object(
        "ServiceEntry",
        "wild",
        "{hosts: ['*.dyn.test'], resolution: DYNAMIC_DNS, \
         ports: [{number: 8003, name: http, protocol: HTTP}]}",
    );
    let mesh = mesh_config(&net, "outboundTrafficPolicy: {mode: REGISTRY_ONLY}\n");
    let config = configure(&net, "wild.yaml", &yaml);
    let node = Node::start(&net, &config, &["--mesh-config", &mesh]).unwrap();
    for (name, server) in [
        ("a", "203.0.113.20"),
        ("b", "203.0.113.21"),
        ("a", "203.0.113.20"),
    ] {
        let (by, _) = answered(&net, &format!("http://{name}.dyn.test:8003/get?{name}"));
        assert_eq!(by, format!("{server}:8003"));
    }
    let (_, line) = node.access_line("/get?b").unwrap();
    assert_eq!(line["upstream_cluster"], "outbound|8003||*.dyn.test");
    // The proxy asks itself: what the application dialled does not matter.
    let to = [
        "--resolve",
        "a.dyn.test:8003:203.0.113.22",
        "http://a.dyn.test:8003/get",
    ];
    assert!(curl(&net, &[&["-i"][..], &to].concat()).contains("203.0.113.20:8003"));
    let missing = [
        "--resolve",
        "none.dyn.test:8003:203.0.113.22",
        "http://none.dyn.test:8003/x",
    ];
    let missing = curl(&net, &[&["-i"][..], &missing].concat());
    assert!(missing.starts_with("HTTP/1.1 503"), "{missing}");
    assert!(
        missing.contains("none.dyn.test does not resolve"),
        "{missing}"
    );
}

#[test]
fn endpoints_share_by_weight_and_round_robin_takes_the_first() {
    let Some(net) = net("weights") else { return };
    net.set_record("weighted.test", &["203.0.113.10"]).unwrap();
    net.set_record("first.test", &["203.0.113.22", "203.0.113.23"])
        .unwrap();
    let yaml = object(
        "ServiceEntry",
        "weighted",
        "{hosts: [weighted.test], resolution: STATIC, \
         ports: [{number: 8001, name: http, protocol: HTTP}], endpoints: [\
         {address: 203.0.113.20, weight: 1}, {address: 203.0.113.21, weight: 9}]}",
    ) + &object(
        "ServiceEntry",
        "first",
        "{hosts: [first.test], resolution: DNS_ROUND_ROBIN, \
         ports: [{number: 8002, name: http, protocol: HTTP}]}",
    );
    let _node = Node::start(&net, &configure(&net, "a.yaml", &yaml), &[]).unwrap();
    let mut seen = BTreeMap::<String, usize>::new();
    for url in [
        "http://weighted.test:8001/get",
        "http://first.test:8002/get",
    ] {
        for _ in 0..40 {
            *seen.entry(answered(&net, url).0).or_default() += 1;
        }
    }
    // Nine of ten; fewer than half would happen once in 10^13 runs.
    assert!(seen.get("203.0.113.21:8001") > Some(&20), "{seen:?}");
    assert!(seen.contains_key("203.0.113.22:8002"), "{seen:?}");
    assert_eq!(seen.get("203.0.113.23:8002"), None, "{seen:?}");
}

#[test]
fn destination_rules_choose_the_http_version() {
    let Some(net) = net("h2-upgrade") else { return };
    let entry = "{hosts: [httpbin.org], resolution: DNS, ports: [\
         {number: 8003, name: http, protocol: HTTP}, {number: 8004, name: http4, protocol: HTTP}]}";
    let rule = "{host: httpbin.org, trafficPolicy: {connectionPool: \
         {http: {h2UpgradePolicy: UPGRADE}}, portLevelSettings: [{port: {number: 8004}, \
         connectionPool: {http: {h2UpgradePolicy: DO_NOT_UPGRADE}}}]}}";
    let yaml = object("ServiceEntry", "httpbin", entry) + &object("DestinationRule", "rule", rule);
    let _node = Node::start(&net, &configure(&net, "a.yaml", &yaml), &[]).unwrap();
    for (port, expected) in [(8003, "HTTP/2.0"), (8004, "HTTP/1.1")] {
        let (_, protocol) = answered(&net, &format!("http://httpbin.org:{port}/get"));
        assert_eq!(protocol, expected, "port {port}");
    }
}
