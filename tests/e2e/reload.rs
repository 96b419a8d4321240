// SPDX-License-Identifier: Apache-2.0
//! Configuration that changes while requests flow.

use std::time::Duration;

use lab::{
    binary,
    net::{Net, replace},
    node::Node,
    process::{Process, Stream},
};
use nix::sys::signal::Signal;
use serde_json::Value;

use crate::{configure, net, service_entry};

#[test]
fn edits_apply_within_a_second_and_lose_no_request() {
    let Some(net) = net("reload") else { return };
    let entry = |host: &str, address: &str| {
        let rest = format!("addresses: [{address}]\n  resolution: NONE");
        service_entry("edited", &[host], &[8001], &rest)
    };
    let flow = service_entry(
        "flow",
        &["flow.test"],
        &[8002],
        "addresses: [203.0.113.21]\n  resolution: NONE",
    );
    configure(&net, "flow.yaml", &flow);
    let config = configure(&net, "edited.yaml", &entry("a.test", "203.0.113.20"));
    let node = Node::start(&net, &config, &[]).unwrap();
    let client = binary("lab-client").unwrap().display().to_string();
    let load = |more: &[&str]| {
        let command = [&client, "load", "203.0.113.21:8002", "--host", "flow.test"];
        let process = net.pod.spawn(&[&command[..], more].concat()).unwrap();
        process
            .wait_for_line("start", lab::hop::SOON, |line| line == "sending")
            .unwrap();
        process
    };
    let mut loads = [
        load(&["--keep-alive", "--threads", "2"]),
        load(&["--threads", "2"]),
    ];

    for (round, address) in (0..).zip(["203.0.113.22", "203.0.113.23", "203.0.113.20"]) {
        let version = node.metric("egress_config_version", &[]).unwrap();
        let host = format!("host{round}.test");
        replace(&config.join("edited.yaml"), &entry(&host, address)).unwrap();
        let started = std::time::Instant::now();
        let current = || node.metric("egress_config_version", &[]);
        node.eventually("a new version", || Ok(current()? > version))
            .unwrap();
        assert!(
            started.elapsed() < Duration::from_secs(1),
            "{:?}",
            started.elapsed()
        );
        // The kernel's map follows the version.
        let path = format!("/get?round={round}");
        let target = format!("{address}:8001");
        let request = ["get", &target, "--host", &host, "--path", &path];
        node.eventually("capture of the new address", || {
            net.pod.client(&request)?;
            std::thread::sleep(Duration::from_millis(120));
            Ok(node.access_lines().iter().any(|line| line.contains(&path)))
        })
        .unwrap();
        let (_, line) = node.access_line(&path).unwrap();
        assert_eq!(line["upstream_cluster"], format!("outbound|8001||{host}"));
    }

    for load in &mut loads {
        // Closing standard input ends it.
        assert!(
            load.wait(Duration::from_secs(30)).unwrap().success(),
            "{load}"
        );
        let report: Value =
            serde_json::from_str(&load.lines(Stream::Stdout).pop().unwrap()).unwrap();
        assert_eq!(
            (&report["failed"], &report["wrong"]),
            (&0.into(), &0.into()),
            "{report}"
        );
        assert!(report["done"].as_u64() > Some(100), "{report}");
    }
}

#[test]
fn sighup_rereads_what_changed_unseen() {
    let Some(net) = net("sighup") else { return };
    let entry = |host: &str| service_entry("edited", &[host], &[80], "resolution: DNS");
    for (folder, host) in [("one", "one.test"), ("two", "two.test")] {
        let file = format!("{folder}/deep/config/edited.yaml");
        net.directory.write(&file, &entry(host)).unwrap();
    }
    // A link two levels above the configured directory is nowhere near what is watched.
    let point_to = |folder: &str| {
        let new = net.directory.path().join("new");
        std::os::unix::fs::symlink(folder, &new).unwrap();
        std::fs::rename(&new, net.directory.path().join("current")).unwrap();
    };
    point_to("one");
    let config = net.directory.path().join("current/deep/config");
    let node = Node::start(&net, &config, &[]).unwrap();
    let knows = |host: &str| Ok(node.admin("/config_dump")?.1.contains(host));
    assert!(knows("one.test").unwrap());
    point_to("two");
    node.process().signal(Signal::SIGHUP).unwrap();
    node.eventually("the new object", || knows("two.test"))
        .unwrap();
    // Its addresses leave a moment later.
    node.eventually("the old object is gone", || Ok(!knows("one.test")?))
        .unwrap();
}

#[test]
fn bad_edit_keeps_the_running_objects_and_is_reported() {
    let Some(net) = net("bad-edit") else { return };
    let good = service_entry("httpbin", &["httpbin.org"], &[80], "resolution: DNS");
    let config = configure(&net, "httpbin.yaml", &good);
    let node = Node::start(&net, &config, &[]).unwrap();
    let cluster_of = |path: &str| {
        let url = format!("http://httpbin.org{path}");
        net.pod.run(&["curl", "-sS", &url]).unwrap();
        node.access_line(path).unwrap().1["upstream_cluster"].clone()
    };
    assert_eq!(cluster_of("/get?before"), "outbound|80||httpbin.org");

    let problems = || Ok(node.admin("/problems")?.1);
    for (case, bad, expected) in [
        (
            "a wrong value",
            good.replace("resolution: DNS", "resolution: DSN"),
            "resolution",
        ),
        ("no indentation", good.replace("  ", ""), "httpbin.yaml"),
        ("not YAML", "}{".to_owned(), "httpbin.yaml"),
    ] {
        replace(&config.join("httpbin.yaml"), &bad).unwrap();
        node.eventually(case, || {
            problems().map(|text: String| text.contains(expected))
        })
        .unwrap();
        let shown = status(&net);
        assert!(
            shown["config"]["problems"].to_string().contains(expected),
            "{case}: {shown}"
        );
        let path = format!("/get?{}", case.replace(' ', "-"));
        assert_eq!(cluster_of(&path), "outbound|80||httpbin.org", "{case}");
        replace(&config.join("httpbin.yaml"), &good).unwrap();
        node.eventually("the problem is gone", || {
            problems().map(|text: String| !text.contains("httpbin.yaml"))
        })
        .unwrap();
    }
}

/// `egress status` on the node, as a user would call it; its exit status tells of health.
fn status(net: &Net) -> Value {
    let egress = lab::egress_binary().unwrap().display().to_string();
    let command = ["sh", "-c", "\"$0\" status -o json || true", &egress].map(str::to_owned);
    let command = [&net.node.enter()[..], &command].concat();
    let text = Process::output("egress status", &command, lab::hop::SOON).unwrap();
    serde_json::from_str(&text).unwrap()
}

#[test]
fn other_objects_of_a_bad_edit_apply() {
    let Some(net) = net("half-bad-edit") else {
        return;
    };
    let one = service_entry("one", &["one.test"], &[80], "resolution: DNS");
    let config = configure(&net, "all.yaml", &one);
    for host in ["one.test", "two.test"] {
        net.set_record(host, &["203.0.113.11"]).unwrap();
    }
    let node = Node::start(&net, &config, &[]).unwrap();
    let two = service_entry("two", &["two.test"], &[80], "resolution: DNS");
    replace(
        &config.join("all.yaml"),
        &(one.replace("DNS", "DSN") + &two),
    )
    .unwrap();
    node.eventually("the problem shows", || {
        Ok(node.admin("/problems")?.1.contains("resolution"))
    })
    .unwrap();
    for host in ["one.test", "two.test"] {
        let path = format!("/get?{host}");
        net.pod
            .run(&["curl", "-sS", &format!("http://{host}{path}")])
            .unwrap();
        let (_, line) = node.access_line(&path).unwrap();
        assert_eq!(line["upstream_cluster"], format!("outbound|80||{host}"));
    }
}
