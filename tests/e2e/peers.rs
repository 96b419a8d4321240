// SPDX-License-Identifier: Apache-2.0
//! Peers that others wrote, through both hops: gRPC by grpcio, WebSocket by websockets, nginx.

use std::{env, path::Path, time::Duration};

use lab::{
    net::{GATEWAY, Net},
    node::Node,
    process::Process,
    scenario::Scenario,
};

use crate::{configure, curl, mesh_config, net};

/// How long a peer may take to start.
const START_WITHIN: Duration = Duration::from_secs(20);

/// A Python that has the peers, which `cargo xtask test` provides.
fn python() -> String {
    env::var("LAB_PYTHON").expect("LAB_PYTHON is not set: run `cargo xtask test`")
}

fn script(name: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("peers")
        .join(name);
    path.display().to_string()
}

/// Starts a server of `peers/` in the outside world.
fn serve(net: &Net, name: &str, arguments: &[&str]) -> Process {
    let mut command = net.external.enter().to_vec();
    command.extend([python(), script(name)]);
    command.extend(arguments.iter().map(|&word| word.to_owned()));
    let process = Process::spawn(name, &command).unwrap();
    process
        .wait_for_line("ready", START_WITHIN, |line| line == "ready")
        .unwrap();
    process
}

/// Both hops for `peer.test`, declared with `protocol` on `port`, and between them.
fn scenario<'a>(net: &'a Net, port: u16, protocol: &str) -> Scenario<'a> {
    net.set_record("peer.test", &["203.0.113.20"]).unwrap();
    let between = if protocol == "GRPC" { "HTTP2" } else { "HTTP" };
    let service = "istio-egressgateway.istio-system.svc.cluster.local";
    let yaml = format!(
        "apiVersion: networking.istio.io/v1\nkind: ServiceEntry\n\
         metadata: {{name: peer, namespace: istio-demo}}\n\
         spec:\n  hosts: [peer.test]\n  resolution: DNS\n  \
         ports: [{{number: {port}, name: peer, protocol: {protocol}}}]\n\
         ---\napiVersion: networking.istio.io/v1\nkind: ServiceEntry\n\
         metadata: {{name: gateway, namespace: istio-system}}\n\
         spec:\n  hosts: [{service}]\n  resolution: STATIC\n  location: MESH_INTERNAL\n  \
         endpoints: [{{address: {GATEWAY}, ports: {{web: 8080}}}}]\n  \
         ports: [{{number: 80, name: web, protocol: {between}}}]\n\
         ---\napiVersion: networking.istio.io/v1\nkind: Gateway\n\
         metadata: {{name: gateway, namespace: istio-demo}}\n\
         spec:\n  selector: {{istio: egressgateway}}\n  servers:\n  \
         - {{port: {{number: 80, name: web, protocol: {between}}}, hosts: [peer.test]}}\n\
         ---\napiVersion: networking.istio.io/v1\nkind: VirtualService\n\
         metadata: {{name: peer, namespace: istio-demo}}\n\
         spec:\n  hosts: [peer.test]\n  gateways: [mesh, gateway]\n  http:\n  \
         - match: [{{gateways: [mesh]}}]\n    \
         route: [{{destination: {{host: {service}, port: {{number: 80}}}}}}]\n  \
         - match: [{{gateways: [gateway]}}]\n    \
         route: [{{destination: {{host: peer.test, port: {{number: {port}}}}}}}]\n"
    );
    Scenario::start_with(net, &configure(net, "peer.yaml", &yaml)).unwrap()
}

#[test]
fn grpc_streams_both_ways_through_both_hops() {
    let Some(net) = net("grpc") else { return };
    let _server = serve(&net, "grpc_server.py", &["203.0.113.20:50051"]);
    let scenario = scenario(&net, 50051, "GRPC");
    let said = net
        .pod
        .run(&[&python(), &script("grpc_client.py"), "peer.test:50051"])
        .unwrap();
    assert_eq!(
        said.lines().collect::<Vec<_>>(),
        [
            "Unary echo hello seen",
            "Unary 2000005 seen",
            "Chat 100 OK",
            // Istio's default retries: `unavailable`, twice.
            "Flaky call 3 -",
            "Missing UNIMPLEMENTED Method not found!",
        ]
    );
    let (_, line) = scenario.node.access_line("/lab.Echo/Chat").unwrap();
    assert!(line["request"].ends_with("HTTP/2"), "{line:?}");
    let of = |status| {
        [
            ("request_protocol", "grpc"),
            ("grpc_response_status", status),
        ]
    };
    for hop in [&*scenario.node, &*scenario.gateway] {
        let ok = hop.metric("istio_requests_total", &of("0")).unwrap();
        let unimplemented = hop.metric("istio_requests_total", &of("12")).unwrap();
        assert_eq!((ok, unimplemented), (Some(4.0), Some(1.0)));
    }
}

#[test]
fn grpc_client_is_told_why_in_its_own_terms() {
    let Some(net) = net("grpc-down") else { return };
    let _scenario = scenario(&net, 50052, "GRPC");
    let said = net
        .pod
        .run(&[&python(), &script("grpc_client.py"), "peer.test:50052"])
        .unwrap();
    let why = "Unary UNAVAILABLE egress: connecting to 203.0.113.20:50052: Connection refused";
    assert!(said.starts_with(why), "{said}");
    assert!(said.contains("Chat 0 UNAVAILABLE\n"), "{said}");
}

#[test]
fn websocket_passes_both_hops() {
    let Some(net) = net("websocket") else { return };
    let _server = serve(&net, "websocket_server.py", &["203.0.113.20", "9001"]);
    let scenario = scenario(&net, 9001, "HTTP");
    let url = "ws://peer.test:9001/chat?room=1";
    let said = net
        .pod
        .run(&[&python(), &script("websocket_client.py"), url])
        .unwrap();
    assert_eq!(said, "path /chat?room=1\nclosed 1000\n");
    let (_, line) = scenario.gateway.access_line("/chat?room=1").unwrap();
    assert_eq!(line["response_code"], "101");
    let bytes: u64 = line["bytes_received"].parse().unwrap();
    assert!(bytes > 100, "{line:?}");
}

#[test]
fn nginx_serves_both_versions() {
    let Some(net) = net("nginx") else { return };
    let directory = net.directory.path().display();
    let configuration = format!(
        "daemon off; pid {directory}/nginx.pid; error_log stderr;\n\
         events {{}}\n\
         http {{ access_log off; client_body_temp_path {directory}; proxy_temp_path {directory};\n\
         fastcgi_temp_path {directory}; uwsgi_temp_path {directory}; scgi_temp_path {directory};\n\
         server {{ listen 203.0.113.20:9002; listen 203.0.113.20:9003 http2;\n\
         listen unix:{directory}/nginx.sock;\n\
         location / {{ return 200 \"$server_protocol $host $request_uri\\n\"; }} }} }}\n"
    );
    let path = net.directory.write("nginx.conf", &configuration).unwrap();
    let mut command = net.external.enter().to_vec();
    command.extend(["nginx", "-c"].map(str::to_owned));
    command.push(path.display().to_string());
    let _nginx = Process::spawn("nginx", &command).unwrap();
    for (port, protocol, expected) in [
        (9002, "HTTP", "HTTP/1.1 peer.test /a?b=c"),
        (9003, "HTTP2", "HTTP/2.0 peer.test /a?b=c"),
    ] {
        let scenario = scenario(&net, port, protocol);
        let url = format!("http://peer.test:{port}/a?b=c");
        // nginx says nothing when it is ready.
        let again = ["--retry", "20", "--retry-connrefused", "--retry-delay", "1"];
        for version in ["--http1.1", "--http2-prior-knowledge"] {
            let command = [&again[..], &[version, &url]].concat();
            assert_eq!(curl(&net, &command), expected, "{version}");
        }
        drop(scenario);
    }
    net.set_record("unix.test", &["203.0.113.21"]).unwrap();
    let yaml = format!(
        "apiVersion: networking.istio.io/v1\nkind: ServiceEntry\n\
         metadata: {{name: unix, namespace: istio-demo}}\n\
         spec: {{hosts: [unix.test], resolution: STATIC, \
         endpoints: [{{address: 'unix://{directory}/nginx.sock'}}], \
         ports: [{{number: 9004, name: http, protocol: HTTP}}]}}\n"
    );
    let node = Node::start(&net, &configure(&net, "peer.yaml", &yaml), &[]).unwrap();
    let answer = curl(&net, &["http://unix.test:9004/a"]);
    assert_eq!(answer, "HTTP/1.1 unix.test /a");
    let (_, line) = node.access_line("/a ").unwrap();
    assert!(line["upstream_host"].ends_with("/nginx.sock"), "{line:?}");
}

#[test]
fn forward_proxy_is_asked_for_everything() {
    let Some(net) = net("forward-proxy") else {
        return;
    };
    let _proxy = serve(&net, "forward_proxy.py", &["203.0.113.21", "3128"]);
    net.set_record("proxy.test", &["203.0.113.21"]).unwrap();
    let yaml = "apiVersion: networking.istio.io/v1\nkind: ServiceEntry\n\
         metadata: {name: proxy, namespace: istio-demo}\n\
         spec: {hosts: [proxy.test], resolution: DNS, \
         ports: [{number: 3128, name: proxy, protocol: HTTP_PROXY}]}\n";
    let mesh = mesh_config(&net, "outboundTrafficPolicy: {mode: REGISTRY_ONLY}\n");
    let config = configure(&net, "proxy.yaml", yaml);
    let node = Node::start(&net, &config, &["--mesh-config", &mesh]).unwrap();
    let by_proxy = ["-x", "http://proxy.test:3128"];
    let asked = curl(&net, &[&by_proxy[..], &["http://else.test/a?b"]].concat());
    assert_eq!(asked, "asked for http://else.test/a?b");
    let tunnel = ["--proxytunnel", "http://203.0.113.10:8001/ip"];
    let tunnelled = curl(&net, &[&by_proxy[..], &tunnel].concat());
    assert!(tunnelled.contains("203.0.113."), "{tunnelled}");
    let (_, line) = node.access_line("CONNECT").unwrap();
    assert_eq!(line["upstream_cluster"], "outbound|3128||proxy.test");
    assert_eq!(line["response_code"], "200");
}
