// SPDX-License-Identifier: Apache-2.0
//! Pods: found when they come, each under its own policy, and what the kernel does without the agent.

use std::time::{Duration, Instant};

use lab::{
    binary, egress_binary,
    hop::SOON,
    net::{HTTPBIN, Net, Pod},
    node::{self, Node},
    process::Process,
};
use serde_json::Value;

use crate::{configure, net, service_entry};

/// A connection in a network namespace that did not exist before, in the pod's cgroup; it has
/// nothing but loopback.
fn in_new_namespace(pod: &Pod, address: &str) -> Value {
    let client = binary("lab-client").unwrap().display().to_string();
    let work = format!("ip link set lo up && exec {client} persist {address}");
    let output = pod.run(&["unshare", "--net", "sh", "-c", &work]).unwrap();
    serde_json::from_str(&output).unwrap()
}

#[test]
fn new_pod_is_served_within_200_ms_of_its_first_socket() {
    let Some(net) = net("new-pod") else { return };
    let yaml = service_entry("httpbin", &["httpbin.org"], &[80], "resolution: DNS");
    let config = configure(&net, "httpbin.yaml", &yaml);
    let address = format!("{HTTPBIN}:80");
    for (policy, meanwhile) in [
        // Refused by the kernel.
        ("closed", "permission denied"),
        // Left alone: this namespace has no route.
        ("open", "network unreachable"),
    ] {
        let node = Node::start(&net, &config, &["--failure-policy", policy]).unwrap();
        // A busy machine may take its time once, not always.
        let mut fastest = f64::INFINITY;
        for _ in 0..3 {
            let report = in_new_namespace(&net.pod, &address);
            assert_eq!(report["peer"], address, "{report}");
            let failures = report["failures"].as_object().unwrap();
            assert!(
                failures.keys().all(|kind| kind == meanwhile),
                "{policy}: {report}"
            );
            fastest = fastest.min(report["milliseconds"].as_f64().unwrap());
        }
        assert!(fastest < 200.0, "{policy}: {fastest} ms");
        // The namespace is gone with its process; what was opened inside must not keep it.
        let pods = || Ok(node.metric("egress_pods", &[])? == Some(2.0));
        node.eventually("the pod is let go", pods).unwrap();
    }
}

fn refused(pod: &Pod, address: &str) -> bool {
    let program = binary("lab-bypass").unwrap().display().to_string();
    let report = pod
        .run(&[program.as_str(), "tcp-connect", address])
        .unwrap();
    let report: Value = serde_json::from_str(&report).unwrap();
    match report["outcome"].as_str() {
        Some("refused") => true,
        Some("connected") => false,
        _ => panic!("{report}"),
    }
}

fn sidecar(namespace: &str, mode: &str) -> String {
    format!(
        "---\napiVersion: networking.istio.io/v1\nkind: Sidecar\n\
         metadata: {{name: default, namespace: {namespace}}}\n\
         spec: {{outboundTrafficPolicy: {{mode: {mode}}}}}\n"
    )
}

#[test]
fn policy_of_a_sidecar_holds_for_its_workloads_only() {
    let Some(net) = net("sidecar") else { return };
    let yaml = service_entry("httpbin", &["httpbin.org"], &[80], "resolution: DNS");
    let workloads = lab::examples().join("workloads.yaml").display().to_string();
    let unregistered = "203.0.113.11:8001";
    for (mesh, own) in [
        ("ALLOW_ANY", "REGISTRY_ONLY"),
        ("REGISTRY_ONLY", "ALLOW_ANY"),
    ] {
        let config = configure(
            &net,
            "all.yaml",
            &(yaml.clone() + &sidecar("istio-demo", own)),
        );
        let policy = format!("outboundTrafficPolicy: {{mode: {mesh}}}\n");
        let mesh_config = net.directory.write("mesh.yaml", &policy).unwrap();
        let mesh_config = mesh_config.display().to_string();
        let flags = ["--mesh-config", &mesh_config, "--workloads", &workloads];
        let node = Node::start(&net, &config, &flags).unwrap();
        for (pod, policy) in [(&net.pod, own), (&net.other, mesh)] {
            assert_eq!(
                refused(pod, unregistered),
                policy == "REGISTRY_ONLY",
                "{mesh}/{own}: {}",
                pod.address
            );
        }
        // Nobody is special any more, and it applies without a restart.
        configure(&net, "all.yaml", &yaml);
        node.eventually("the Sidecar's policy is gone", || {
            Ok(refused(&net.pod, unregistered) == (mesh == "REGISTRY_ONLY"))
        })
        .unwrap();
    }
}

#[test]
fn failure_policy_is_in_force_while_the_agent_is_dead() {
    let Some(net) = net("dead") else { return };
    let yaml = service_entry("httpbin", &["httpbin.org"], &[80], "resolution: DNS");
    let config = configure(&net, "httpbin.yaml", &yaml);
    let registered = format!("{HTTPBIN}:80");
    let program = binary("lab-bypass").unwrap().display().to_string();
    let connect = |address: &str| -> Value {
        let report = net.pod.run(&[program.as_str(), "tcp-connect", address]);
        serde_json::from_str(&report.unwrap()).unwrap()
    };
    for (policy, expected, counter) in [
        ("closed", "refused", "proxy_dead_denied"),
        ("open", "connected", "proxy_dead_passed"),
    ] {
        let node = Node::start(&net, &config, &["--failure-policy", policy]).unwrap();
        assert_eq!(connect(&registered)["outcome"], "connected");
        node.kill().unwrap();
        // Its listeners are gone at once; that it is dead, the kernel knows a little later.
        let deadline = Instant::now() + SOON;
        let mut report = connect(&registered);
        while report["outcome"] != expected {
            assert_eq!(report["errno"], "ECONNREFUSED", "{policy}: {report}");
            assert!(Instant::now() < deadline, "{policy}: {report}");
            report = connect(&registered);
        }
        assert_eq!(connect("203.0.113.11:8001")["outcome"], "connected");
        let dump = dump_maps(&net);
        let counted = dump["COUNTERS"].as_array().unwrap().iter().any(|counter_| {
            counter_["program"] == "connect4"
                && counter_["outcome"] == counter
                && counter_["count"].as_u64() > Some(0)
        });
        assert!(
            counted,
            "{counter}: the maps are readable without the agent"
        );
        assert_eq!(dump["SETTINGS"]["failure_policy"], policy);
        // The next one takes over.
        let node = Node::start(&net, &config, &[]).unwrap();
        assert_eq!(connect(&registered)["outcome"], "connected");
        drop(node);
    }
}

fn dump_maps(net: &Net) -> Value {
    let command = [
        egress_binary().unwrap().display().to_string(),
        "dump".to_owned(),
        "maps".to_owned(),
        "--bpffs".to_owned(),
        node::bpffs(net).display().to_string(),
    ];
    let text = Process::output("egress dump", &command, Duration::from_secs(20)).unwrap();
    serde_json::from_str(&text).unwrap()
}

#[test]
fn status_tells_of_policy_pods_and_denials() {
    let Some(net) = net("status") else { return };
    let yaml = service_entry("httpbin", &["httpbin.org"], &[80], "resolution: DNS");
    let config = configure(&net, "httpbin.yaml", &yaml);
    let mesh = "outboundTrafficPolicy: {mode: REGISTRY_ONLY}\n";
    let mesh = net.directory.write("mesh.yaml", mesh).unwrap();
    let mesh = mesh.display().to_string();
    let workloads = lab::examples().join("workloads.yaml").display().to_string();
    let flags = ["--mesh-config", &mesh, "--workloads", &workloads];
    let node = Node::start(&net, &config, &flags).unwrap();
    assert!(refused(&net.pod, "203.0.113.11:8001"));
    let status = || {
        let mut command = net.node.enter().to_vec();
        command.extend([
            egress_binary().unwrap().display().to_string(),
            "status".to_owned(),
        ]);
        Process::output("egress status", &command, Duration::from_secs(20))
    };
    let denied = "denied istio-demo/sleep to 203.0.113.11:8001 tcp (not_registered_denied): \
                  add a ServiceEntry";
    node.eventually("the denial", || Ok(status()?.contains(denied)))
        .unwrap();
    let text = status().unwrap();
    let frames = match node.checks_frames().unwrap() {
        true => "egress_tc on interface ",
        false => "without tcx (Linux 6.6): ",
    };
    for line in [
        "enforcement: REGISTRY_ONLY, 2 pods, listening in 2",
        "egress_skb on ",
        frames,
        "connect4 not_registered_denied: 1",
    ] {
        assert!(text.contains(line), "{line}: {text}");
    }
    let maps = dump_maps(&net);
    let entries = maps["WORKLOADS"].as_array().unwrap();
    let of_kind = |kind: &str| entries.iter().filter(|entry| entry["kind"] == kind).count();
    assert_eq!(of_kind("netns"), 2, "{maps}");
    assert_eq!(of_kind("interface"), 2, "{maps}");
}
