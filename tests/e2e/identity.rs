// SPDX-License-Identifier: Apache-2.0
//! The caller's identity on the second hop: what the gateway logs, counts and refuses.

use std::{
    io::{Read, Write},
    net::TcpStream,
    path::{Path, PathBuf},
};

use lab::{
    binary, examples,
    gateway::Gateway,
    hop::{Hop, SOON},
    net::{GATEWAY, Net},
    node::Node,
    process::{Process, Stream},
};
use serde_json::Value;

use crate::{configure, curl, mesh_config, net};

pub const SERVICE: &str = "istio-egressgateway.istio-system.svc.cluster.local";
pub const TRUST: [&str; 2] = ["--trust-proxy", "10.88.0.0/16"];
/// Address and port that the kernel captures as plain TCP.
pub const TCP: &str = "203.0.113.20:8004";

/// HTTP for httpbin.org on port 80 by way of the gateway, TCP for [`TCP`] likewise; requests to
/// copied.test go out directly, a copy of each to the gateway; the gateway answers those to
/// asking.test by who is calling. `BETWEEN` is spoken on port 80 between the hops.
const OBJECTS: &str = "
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {name: web, namespace: istio-demo}
spec:
  hosts: [httpbin.org, copied.test, asking.test]
  resolution: DNS
  ports: [{number: 80, name: http, protocol: HTTP}]
---
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {name: tcp, namespace: istio-demo}
spec:
  hosts: [tcp.test]
  addresses: [203.0.113.20]
  resolution: STATIC
  endpoints: [{address: 203.0.113.20}]
  ports: [{number: 8004, name: tcp, protocol: TCP}]
---
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {name: gateway, namespace: istio-system}
spec:
  hosts: [istio-egressgateway.istio-system.svc.cluster.local]
  resolution: STATIC
  endpoints: [{address: 10.88.2.2, ports: {web: 8080, tcp: 8004}}]
  ports: [{number: 80, name: web, protocol: BETWEEN}, {number: 8004, name: tcp, protocol: TCP}]
---
apiVersion: networking.istio.io/v1
kind: Gateway
metadata: {name: out, namespace: istio-demo}
spec:
  selector: {istio: egressgateway}
  servers:
  - {port: {number: 80, name: web, protocol: BETWEEN}, hosts: [httpbin.org, copied.test,
    asking.test]}
  - {port: {number: 8004, name: tcp, protocol: TCP}, hosts: [tcp.test]}
---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: httpbin, namespace: istio-demo}
spec:
  hosts: [httpbin.org]
  gateways: [mesh, out]
  http:
  - match: [{gateways: [mesh]}]
    route: [{destination: {host: istio-egressgateway.istio-system.svc.cluster.local,
      port: {number: 80}}}]
  - route: [{destination: {host: httpbin.org, port: {number: 80}}}]
---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: copied, namespace: istio-demo}
spec:
  hosts: [copied.test]
  gateways: [mesh, out]
  http:
  - match: [{gateways: [mesh]}]
    mirrors: [{destination: {host: istio-egressgateway.istio-system.svc.cluster.local,
      port: {number: 80}}}]
    route: [{destination: {host: copied.test, port: {number: 80}}}]
  - route: [{destination: {host: copied.test, port: {number: 80}}}]
---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: asking, namespace: istio-demo}
spec:
  hosts: [asking.test]
  gateways: [mesh, out]
  http:
  - match: [{gateways: [mesh]}]
    route: [{destination: {host: istio-egressgateway.istio-system.svc.cluster.local,
      port: {number: 80}}}]
  - match: [{sourceLabels: {app: sleep}, sourceNamespace: istio-demo}]
    directResponse: {status: 200, body: {string: sleep}}
  - directResponse: {status: 200, body: {string: somebody else}}
---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: tcp, namespace: istio-demo}
spec:
  hosts: [tcp.test]
  gateways: [mesh, out]
  tcp:
  - match: [{gateways: [mesh]}]
    route: [{destination: {host: istio-egressgateway.istio-system.svc.cluster.local,
      port: {number: 8004}}}]
  - route: [{destination: {host: tcp.test, port: {number: 8004}}}]
";

pub fn objects(net: &Net, between: &str) -> PathBuf {
    for name in ["copied.test", "asking.test"] {
        net.set_record(name, &["203.0.113.11"]).unwrap();
    }
    configure(net, "objects.yaml", &OBJECTS.replace("BETWEEN", between))
}

/// The node, logging in JSON; told by a flag or by meshConfig to send the header.
pub fn node<'a>(net: &'a Net, config: &Path, by_flag: bool) -> Node<'a> {
    let mesh = "accessLogEncoding: JSON\n".to_owned();
    let mesh = match by_flag {
        true => mesh,
        false => {
            mesh + "defaultConfig:\n  proxyMetadata:\n    EGRESS_PROXY_PROTOCOL_TO: "
                + SERVICE
                + "\n"
        }
    };
    let mesh = net.directory.write("node-mesh.yaml", &mesh).unwrap();
    let mesh = mesh.display().to_string();
    let workloads = examples().join("workloads.yaml").display().to_string();
    let mut flags = vec!["--mesh-config", &mesh, "--workloads", &workloads];
    if by_flag {
        flags.extend(["--proxy-protocol-to", SERVICE]);
    }
    Node::start(net, config, &flags).unwrap()
}

/// The gateway, logging in JSON; `trust` are its flags.
pub fn gateway<'a>(net: &'a Net, config: &Path, trust: &[&str]) -> Gateway<'a> {
    let mesh = mesh_config(net, "accessLogEncoding: JSON\n");
    let flags = [&["--mesh-config", &mesh], trust].concat();
    Gateway::start(net, config, &flags).unwrap()
}

/// The JSON access line with that text.
fn line(hop: &Hop<'_>, text: &str) -> Value {
    let wanted = |line: &str| line.starts_with('{') && line.contains(text);
    let line = hop.process().wait_for_line(text, SOON, wanted).unwrap();
    serde_json::from_str(&line).unwrap()
}

fn assert_sleep(net: &Net, line: &Value, port: &str) {
    let remote = format!("{}:{port}", net.pod.address);
    for (key, expected) in [
        ("downstream_remote_address", remote.as_str()),
        ("source_namespace", "istio-demo"),
        ("source_workload", "sleep"),
        ("source_service_account", "sleep"),
    ] {
        assert_eq!(line[key], expected, "{key} of {line}");
    }
}

fn refused(hop: &Hop<'_>, reason: &str) -> f64 {
    let name = "egress_connections_refused_total";
    let count = hop.metric(name, &[("reason", reason)]).unwrap();
    count.unwrap_or_default()
}

#[test]
fn identity_reaches_the_gateways_log_and_metrics() {
    let Some(net) = net("identity") else { return };
    for between in ["HTTP", "HTTP2"] {
        let config = objects(&net, between);
        let gateway = gateway(&net, &config, &TRUST);
        let node = node(&net, &config, between == "HTTP");
        let headers = curl(&net, &["http://httpbin.org/headers?who"]);
        assert!(headers.contains("httpbin.org"), "{headers}");
        let second = line(&gateway, "/headers?who");
        assert_sleep(&net, &second, "0");
        assert_eq!(second["original_destination"], "203.0.113.10:80");
        assert_eq!(second["downstream_local_address"], "10.88.2.2:8080");
        let first = line(&node, "/headers?who");
        assert_eq!(first["original_destination"], "203.0.113.10:80");
        assert_eq!(first["source_workload"], "sleep");
        let labels = [
            ("source_workload", "sleep"),
            ("source_workload_namespace", "istio-demo"),
            ("source_app", "sleep"),
        ];
        let counted = gateway.metric("istio_requests_total", &labels).unwrap();
        assert_eq!(counted, Some(1.0));

        // The gateway's rules see the caller.
        let url = "http://asking.test/";
        assert_eq!(curl(&net, &[url]), "sleep");
        let other = net.other.run(&["curl", "-sS", "--max-time", "20", url]);
        assert_eq!(other.unwrap().trim_end(), "somebody else");

        // A copy tells whose request it copies.
        curl(&net, &["http://copied.test/get?copied"]);
        let copy = line(&gateway, "/get?copied");
        assert_sleep(&net, &copy, "0");
        assert_eq!(copy["original_destination"], "203.0.113.11:80");

        // TCP: one connection for one, so the port is the caller's.
        curl(&net, &[&format!("http://{TCP}/get?tcp")]);
        let first = line(&node, TCP);
        let port = first["downstream_remote_address"].as_str().unwrap();
        let (_, port) = port.rsplit_once(':').unwrap();
        let second = line(&gateway, "tcp.test");
        assert_sleep(&net, &second, port);
        assert_eq!(second["original_destination"], TCP);
        let counted = gateway.metric("istio_tcp_connections_closed_total", &labels);
        assert_eq!(counted.unwrap(), Some(1.0));
        for reason in ["untrusted_proxy", "bad_proxy_header"] {
            assert_eq!(refused(&gateway, reason), 0.0, "{reason}");
        }
    }
}

#[test]
fn upgraded_and_redialled_connections_carry_the_identity() {
    let Some(net) = net("identity-up") else {
        return;
    };
    let config = objects(&net, "HTTP");
    let first = gateway(&net, &config, &TRUST);
    let _node = node(&net, &config, true);
    let script = "exec 3<>/dev/tcp/203.0.113.10/80; printf 'GET /upgrade HTTP/1.1\\r\\n\
        Host: httpbin.org\\r\\nConnection: upgrade\\r\\nUpgrade: echo\\r\\n\\r\\n' >&3; \
        while read -r line <&3; do line=${line%$'\\r'}; [ -z \"$line\" ] && break; done; \
        echo over the new protocol >&3; read -r line <&3; echo \"$line\"";
    let command = ["timeout", "20", "bash", "-c", script];
    let said = net.pod.run(&command).unwrap();
    assert_eq!(said, "over the new protocol\n");
    assert_sleep(&net, &line(&first, "/upgrade"), "0");
    // Whatever becomes of kept connections, new ones tell it again.
    curl(&net, &["http://httpbin.org/get?first"]);
    first.stop().unwrap();
    let second = gateway(&net, &config, &TRUST);
    curl(&net, &["http://httpbin.org/get?second"]);
    assert_sleep(&net, &line(&second, "/get?second"), "0");
}

#[test]
fn headers_of_strangers_and_broken_ones_are_refused_and_counted() {
    let Some(net) = net("identity-no") else {
        return;
    };
    let config = objects(&net, "HTTP");
    let strict = gateway(&net, &config, &[]);
    let node = node(&net, &config, true);
    let status = ["-o/dev/null", "-w%{http_code}", "http://httpbin.org/get?no"];
    assert_eq!(curl(&net, &status), "503");
    assert!(refused(&strict, "untrusted_proxy") >= 1.0);
    // On a port of TCP nothing waits for first bytes; the header is met before they go on.
    let status = format!("http://{TCP}/get?no");
    net.pod.run(&["curl", "-sS", &status]).unwrap_err();
    let access = line(&strict, "tcp.test");
    assert_eq!(access["response_flags"], "DPE", "{access}");
    assert_eq!(net.seen().unwrap(), Vec::<String>::new());
    drop((node, strict));

    let gateway = Gateway::start(&net, &config, &TRUST).unwrap();
    let say = |bytes: &[u8]| {
        let talk = || {
            let mut stream = TcpStream::connect((GATEWAY, 8080))?;
            stream.set_read_timeout(Some(SOON))?;
            stream.write_all(bytes)?;
            let mut answer = String::new();
            // A reset is an end, too.
            let _ = stream.read_to_string(&mut answer);
            Ok(answer)
        };
        net.node.run(talk).unwrap()
    };
    let get = b"GET /get?plain HTTP/1.1\r\nHost: httpbin.org\r\nConnection: close\r\n\r\n";
    let answer = say(get);
    assert!(answer.starts_with("HTTP/1.1 200"), "served: {answer}");
    let (_, access) = gateway.access_line("/get?plain").unwrap();
    let remote = &access["downstream_remote_address"];
    assert!(remote.starts_with("10.88.2.1:"), "{remote}");
    // LOCAL: the connection's own address counts.
    let local = b"\r\n\r\n\0\r\nQUIT\n\x20\x00\x00\x00";
    let answer = say(&[&local[..], &get[..]].concat());
    assert!(answer.starts_with("HTTP/1.1 200"), "served: {answer}");
    assert_eq!(refused(&gateway, "bad_proxy_header"), 0.0);
    let answer = say(b"\r\n\r\n\0\r\nQUIT\n\x31\x11\x00\x0cGET / HTTP/1.1\r\n\r\n");
    assert_eq!(answer, "", "version 3");
    assert_eq!(refused(&gateway, "bad_proxy_header"), 1.0);
}

#[test]
fn two_pods_sharing_a_gateway_are_never_mixed_up() {
    let Some(net) = net("identity-two") else {
        return;
    };
    const REQUESTS: usize = 1000;
    for between in ["HTTP", "HTTP2"] {
        let config = objects(&net, between);
        let gateway = gateway(&net, &config, &TRUST);
        let node = node(&net, &config, true);
        let client = binary("lab-client").unwrap().display().to_string();
        let pods = [("sleep", &net.pod), ("other", &net.other)];
        let count = REQUESTS.to_string();
        // Both kinds of downstream connections; the two pods at once.
        let mut loads: Vec<(Process, &str)> = Vec::new();
        for (name, pod) in pods {
            for kept in [&["--keep-alive"][..], &[]] {
                let path = format!("/get?of={name}");
                let mut command = vec![client.as_str(), "load", "203.0.113.10:80"];
                command.extend(["--host", "httpbin.org", "--path", &path]);
                command.extend(["--count", &count, "--threads", "4", "--any-server"]);
                command.extend(kept);
                loads.push((pod.spawn(&command).unwrap(), name));
            }
        }
        for (load, name) in &mut loads {
            assert!(load.wait(SOON * 6).unwrap().success(), "{name}: {load}");
            let report = load.lines(Stream::Stdout).pop().unwrap();
            let report: Value = serde_json::from_str(&report).unwrap();
            assert_eq!(report["failed"], 0, "{report}");
        }
        let lines = || -> Vec<Value> {
            let lines = gateway.process().lines(Stream::Stdout).into_iter();
            let lines = lines.filter(|line| line.contains("/get?of="));
            lines.map(|l| serde_json::from_str(&l).unwrap()).collect()
        };
        gateway
            .eventually("every line", || Ok(lines().len() == 4 * REQUESTS))
            .unwrap();
        for line in lines() {
            let name = line["source_workload"].as_str().unwrap();
            assert_eq!(line["path"], format!("/get?of={name}"), "{line}");
            let pod = pods.iter().find(|(pod, _)| *pod == name).unwrap().1;
            let remote = format!("{}:0", pod.address);
            assert_eq!(line["downstream_remote_address"], remote, "{line}");
        }
        // Kept connections carry several requests each.
        let lines = node.process().lines(Stream::Stdout).into_iter();
        let lines = lines.filter(|line| line.contains("/get?of="));
        let used: std::collections::BTreeSet<String> = lines
            .map(|line| {
                let line: Value = serde_json::from_str(&line).unwrap();
                line["upstream_local_address"].to_string()
            })
            .collect();
        eprintln!("{between}: {} connections to the gateway", used.len());
        assert!(used.len() < REQUESTS, "{} connections", used.len());
    }
}
