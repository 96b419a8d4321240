// SPDX-License-Identifier: Apache-2.0
//! `egress dump connections` of both hops while pods hold connections open, and `egress explain`
//! asking the node who is calling.

use lab::{
    hop::{Hop, SOON},
    net::{Net, Pod},
    netns::Netns,
    process::Process,
    scenario::{TO_GATEWAY, TO_HTTPBIN},
};
use serde_json::{Value, json};

use crate::{
    identity::{SERVICE, TCP, TRUST, gateway, node, objects},
    net,
};

/// Asks twice over one connection to httpbin.org, then holds it until it is told to go.
const HTTP: &str = "exec 3<>/dev/tcp/203.0.113.10/80; for n in 1 2; do \
    printf 'GET /headers HTTP/1.1\\r\\nHost: httpbin.org\\r\\n\\r\\n' >&3; length=0; \
    while read -r line <&3; do line=${line%$'\\r'}; [ -z \"$line\" ] && break; \
    case ${line,,} in content-length:*) length=${line##* };; esac; done; \
    head -c \"$length\" <&3 >/dev/null; done; echo held; read -r go";

/// Turns a connection into an echo, says something, then holds it.
const UPGRADED: &str = "exec 3<>/dev/tcp/203.0.113.10/80; printf 'GET /upgrade HTTP/1.1\\r\\n\
    Host: httpbin.org\\r\\nConnection: upgrade\\r\\nUpgrade: echo\\r\\n\\r\\n' >&3; \
    while read -r line <&3; do line=${line%$'\\r'}; [ -z \"$line\" ] && break; done; \
    echo hello >&3; read -r line <&3; echo held; read -r go";

fn hold(pod: &Pod, script: &str) -> Process {
    let process = pod.spawn(&["bash", "-c", script]).unwrap();
    process
        .wait_for_line("an open connection", SOON, |line| line == "held")
        .unwrap();
    process
}

/// What a command of `egress` prints in a namespace.
fn egress(netns: &Netns, arguments: &[&str]) -> String {
    let binary = lab::egress_binary().unwrap().display().to_string();
    let mut command = netns.enter().to_vec();
    command.push(binary);
    command.extend(arguments.iter().map(|&word| word.to_owned()));
    Process::output("egress", &command, SOON).unwrap()
}

fn dump(netns: &Netns) -> Vec<Value> {
    serde_json::from_str(&egress(netns, &["dump", "connections"])).unwrap()
}

fn port(of: &Value) -> &str {
    of["source"].as_str().unwrap().rsplit_once(':').unwrap().1
}

fn assert_shows(shown: &Value, expected: &Value) {
    for (key, value) in expected.as_object().unwrap() {
        assert_eq!(&shown[key], value, "{key} of {shown:#}");
    }
}

/// Waits until that many connections of callers with names are open.
fn wait_for(hop: &Hop<'_>, netns: &Netns, count: usize) {
    let named = |of: &&Value| !of["workload"].is_null();
    hop.eventually(&format!("{count} open connections"), || {
        Ok(dump(netns).iter().filter(named).count() == count)
    })
    .unwrap();
}

#[test]
fn open_connections_of_both_hops_are_listed_with_their_callers() {
    let Some(net) = net("connections") else {
        return;
    };
    let config = objects(&net, "HTTP");
    let gateway = gateway(&net, &config, &TRUST);
    let node = node(&net, &config, true);
    assert_eq!(dump(&net.node), Vec::<Value>::new());

    let (address, tcp_port) = TCP.rsplit_once(':').unwrap();
    let tcp = format!("exec 3<>/dev/tcp/{address}/{tcp_port}; echo held; read -r go");
    let mut held = vec![hold(&net.pod, HTTP), hold(&net.other, &tcp)];
    wait_for(&node, &net.node, 2);
    let connected = || Ok(!dump(&net.node)[1]["upstream"].is_null());
    node.eventually("the second hop", connected).unwrap();
    let [http, tcp] = &dump(&net.node)[..] else {
        panic!("two connections");
    };
    assert_shows(
        http,
        &json!({
            "workload": "istio-demo/sleep", "source_namespace": "istio-demo",
            "source_workload": "sleep", "source_service_account": "sleep",
            "source": format!("{}:{}", net.pod.address, port(http)),
            "original_destination": "203.0.113.10:80", "entrance": 15001,
            "protocol": "http/1.1", "host": "httpbin.org", "cluster": TO_GATEWAY,
            "virtual_service": "istio-demo/httpbin", "upstream": "10.88.2.2:8080",
            "requests": 2, "bytes_received": 0,
        }),
    );
    assert!(http["bytes_sent"].as_u64().unwrap() > 0, "{http:#}");
    assert!(http["started"].as_str().unwrap() <= tcp["started"].as_str().unwrap());
    assert_shows(
        tcp,
        &json!({
            "workload": "other/other", "source_service_account": "default",
            "source": format!("{}:{}", net.other.address, port(tcp)),
            "original_destination": TCP, "protocol": "tcp", "host": null, "requests": 0,
            "cluster": format!("outbound|8004||{SERVICE}"), "upstream": "10.88.2.2:8004",
            "virtual_service": "istio-demo/tcp",
        }),
    );

    // The gateway knows them by the header that the node sends.
    let second = dump(&net.gateway);
    let of = |name: &str| {
        second
            .iter()
            .find(|c| c["source_workload"] == name)
            .unwrap()
    };
    assert_shows(
        of("sleep"),
        &json!({
            "source": format!("{}:0", net.pod.address), "entrance": 80, "requests": 2,
            "original_destination": "203.0.113.10:80", "cluster": TO_HTTPBIN,
            "host": "httpbin.org", "upstream": "203.0.113.10:80",
        }),
    );
    assert_shows(
        of("other"),
        &json!({
            "source": tcp["source"], "original_destination": TCP, "entrance": 8004,
            "cluster": "outbound|8004||tcp.test", "upstream": TCP,
        }),
    );

    // What a connection was upgraded to is still the client's connection, its bytes are counted.
    held.push(hold(&net.pod, UPGRADED));
    wait_for(&node, &net.node, 3);
    let upgraded = &dump(&net.node)[2];
    let counted =
        json!({"protocol": "http/1.1", "requests": 1, "bytes_received": 6, "bytes_sent": 6});
    assert_shows(upgraded, &counted);

    for process in &mut held {
        process.say("go").unwrap();
        assert!(process.wait(SOON).unwrap().success(), "{process}");
    }
    node.eventually("no open connection", || Ok(dump(&net.node).is_empty()))
        .unwrap();
    // Its connections for HTTP are kept for later requests.
    gateway
        .eventually("the end of TCP", || {
            let open = dump(&net.gateway);
            Ok(open.iter().all(|of| of["protocol"] == "http/1.1"))
        })
        .unwrap();
}

#[test]
fn explain_asks_the_node_who_is_calling() {
    let Some(net) = net("caller") else {
        return;
    };
    let config = objects(&net, "HTTP");
    let _node = node(&net, &config, true);
    let first_step = |net: &Net, source: &[&str]| {
        let config = config.display().to_string();
        let url = ["--url", "http://httpbin.org/", "-o", "json"];
        let command = [&["explain", "-c", &config][..], &url, source].concat();
        let decision: Value = serde_json::from_str(&egress(&net.node, &command)).unwrap();
        decision["why"][0].as_str().unwrap().to_owned()
    };
    let expected = "caller istio-demo/sleep (labels app=sleep, service account sleep)";
    let cgroups = egress(&net.node, &["dump", "workloads"]);
    let cgroups: Vec<Value> = serde_json::from_str(&cgroups).unwrap();
    let pod = cgroups.iter().find(|of| of["name"] == "sleep").unwrap();
    let cgroup = pod["pod"]["cgroups"][0].as_str().unwrap();
    let file = lab::examples().join("workloads.yaml").display().to_string();
    for source in [
        &["--source-workload", "sleep"][..],
        &["--source-workload", "istio-demo/sleep"],
        &["--source-workload", cgroup],
        &["--source-workload", "sleep", "--workloads", &file],
        &["--source-workload", cgroup, "--workloads", &file],
    ] {
        assert_eq!(first_step(&net, source), expected, "{source:?}");
    }
}
