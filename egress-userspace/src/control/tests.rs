// SPDX-License-Identifier: Apache-2.0
//! The admin server over real sockets, asked by its own client and by hand.

use std::{
    collections::{HashMap, HashSet},
    net::SocketAddr,
    path::PathBuf,
    sync::{Arc, Mutex},
    time::{Duration, Instant, SystemTime},
};

use serde_json::{Value, json};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    sync::watch,
};
use tokio_util::sync::CancellationToken;

use super::{
    client::{self, ClientError, Dump},
    *,
};
use crate::{
    config::{
        problem::{Problem, Severity},
        snapshot::Snapshot,
    },
    proxy::{
        Connections,
        access_log::{
            AccessLog, AccessRecord, Destination, Format, HttpRecord, REFUSED_DIRECT,
            ResponseFlags, TrafficLabels,
        },
        connection::Peer,
        open::{OpenConnections, Speaks},
    },
    routing::{
        decision::Action,
        host::HostPattern,
        service::{ExportTo, Location, Origin, Protocol, Resolution, Service, ServicePort},
        table::{Objects, Role, Table},
    },
    upstream::resolve::{AddressBook, Resolved},
    workload::Workload,
};

struct Running {
    address: SocketAddr,
    state: AdminState,
    readiness: watch::Sender<Readiness>,
    stop: CancellationToken,
    filters: Arc<Mutex<Vec<String>>>,
    admin: Admin,
    open: OpenConnections,
}

fn snapshot() -> Snapshot {
    let service = Service {
        origin: Arc::new(Origin {
            kind: "ServiceEntry",
            namespace: "istio-demo".into(),
            name: "httpbin-ext".into(),
            file: PathBuf::from("/etc/egress/httpbin.yaml"),
            line: 3,
            created: String::new(),
        }),
        host: HostPattern::Exact("httpbin.org".into()),
        addresses: Vec::new(),
        ports: vec![ServicePort {
            number: 80,
            name: "http".into(),
            protocol: Protocol::Http,
            target_port: 80,
        }],
        location: Location::MeshExternal,
        resolution: Resolution::Dns,
        endpoints: Vec::new(),
        export_to: ExportTo::All,
        subject_alt_names: Vec::new(),
    };
    let objects = Objects {
        services: vec![Arc::new(service)],
        ..Objects::default()
    };
    Snapshot {
        version: 7,
        table: Table::build(objects, Role::Mesh),
        problems: vec![Problem {
            severity: Severity::Error,
            file: PathBuf::from("/etc/egress/bad.yaml"),
            line: 12,
            kind: "VirtualService".into(),
            namespace: "istio-demo".into(),
            name: "vs".into(),
            field: "spec.http".into(),
            message: "must be a list".into(),
        }],
        ..Snapshot::empty(Role::Mesh)
    }
}

async fn start() -> Running {
    let resolved = Resolved {
        addresses: Arc::new(["192.0.2.7".parse().unwrap()]),
        retired: Arc::new([]),
        error: None,
    };
    let book = AddressBook::from_iter([("httpbin.org".to_owned(), resolved)]);
    let (readiness, ready) = watch::channel(Readiness::default());
    let filters = Arc::new(Mutex::new(Vec::new()));
    let open = OpenConnections::default();
    let set = Arc::clone(&filters);
    let state = AdminState {
        role: "node",
        started: Instant::now(),
        workers: 2,
        access_log: AccessLog::start(Destination::Off, Format::istio_text()).unwrap(),
        snapshot: watch::channel(Arc::new(snapshot())).1,
        book: watch::channel(Arc::new(book)).1,
        resolutions: Arc::default(),
        readiness: ready,
        kernel: Some(Arc::new(|| KernelState {
            programs: vec!["egress_connect4 on /sys/fs/cgroup/x".into()],
            outcomes: vec![
                ("egress_connect4", "redirected", 5),
                ("egress_connect4", "denied", 0),
            ],
            outbound_policy: "REGISTRY_ONLY",
            features: vec![("tcx", true, ""), ("flux", false, "time stands still")],
            pods: 2,
            pods_listening: 1,
            ..KernelState::default()
        })),
        workloads: Arc::new(|| vec![json!({"name": "sleep"})]),
        connections: Connections::new(vec![open.clone()]),
        drain: CancellationToken::new(),
        set_log_filter: Arc::new(move |filter| {
            set.lock().unwrap().push(filter.to_owned());
            if filter == "bad" {
                return Err("no such filter".into());
            }
            Ok(())
        }),
    };
    let stop = CancellationToken::new();
    let any = SocketAddr::from(([127, 0, 0, 1], 0));
    let admin = Admin::start(any, state.clone(), stop.clone())
        .await
        .unwrap();
    Running {
        address: admin.address(),
        state,
        readiness,
        stop,
        filters,
        admin,
        open,
    }
}

impl Running {
    /// Status line and the rest of the answer.
    async fn raw(&self, request_line: &str) -> (String, String) {
        let mut stream = TcpStream::connect(self.address).await.unwrap();
        let request = format!("{request_line} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        let (status, rest) = answer.split_once("\r\n").unwrap();
        (status.to_owned(), rest.to_owned())
    }

    async fn json(&self, path: &str) -> Value {
        let body = client::fetch(self.address, path).await.unwrap();
        serde_json::from_str(&body).unwrap()
    }
}

fn record(source: &Workload) -> AccessRecord<'_> {
    AccessRecord {
        start: SystemTime::UNIX_EPOCH,
        duration: Duration::from_millis(7),
        http: Some(HttpRecord {
            method: "GET",
            path: "/",
            protocol: "HTTP/1.1",
            authority: "httpbin.org",
            user_agent: None,
            x_forwarded_for: None,
            request_id: None,
            grpc: false,
            grpc_status: None,
        }),
        response_code: 200,
        response_flags: ResponseFlags::NONE,
        details: "via_upstream".into(),
        termination_details: "".into(),
        transport_failure: "".into(),
        bytes_received: 0,
        bytes_sent: 10,
        upstream_service_time: None,
        upstream_host: None,
        upstream_cluster: "outbound|80||httpbin.org",
        upstream_local: None,
        downstream_local: None,
        downstream_remote: None,
        requested_server_name: "",
        route_name: "default",
        destination_service: "httpbin.org",
        destination_namespace: "istio-demo",
        source: Some(source),
        original_destination: None,
    }
}

/// Reads an exposition as Prometheus does, refusing what it would refuse: samples without a
/// preceding TYPE, series that come twice, labels that do not parse. Returns value by series.
fn parse_exposition(text: &str) -> HashMap<String, f64> {
    let mut types = HashMap::new();
    let mut helped = HashSet::new();
    let mut series = HashMap::new();
    assert!(text.ends_with('\n'));
    for line in text.lines() {
        if let Some(rest) = line.strip_prefix("# HELP ") {
            let (name, help) = rest.split_once(' ').unwrap();
            assert!(helped.insert(name.to_owned()) && !help.is_empty(), "{line}");
        } else if let Some(rest) = line.strip_prefix("# TYPE ") {
            let (name, kind) = rest.split_once(' ').unwrap();
            assert!(helped.contains(name), "{line}");
            assert!(
                types.insert(name.to_owned(), kind.to_owned()).is_none(),
                "{line}"
            );
        } else {
            let (key, value) = line.rsplit_once(' ').unwrap();
            let name = key.split('{').next().unwrap();
            let family = ["_bucket", "_sum", "_count"]
                .iter()
                .find_map(|suffix| name.strip_suffix(suffix))
                .filter(|family| types.get(*family).is_some_and(|kind| kind == "histogram"))
                .unwrap_or(name);
            assert!(types.contains_key(family), "{line}");
            if let Some(labels) = key.strip_prefix(name).filter(|labels| !labels.is_empty()) {
                check_labels(labels);
            }
            let value: f64 = value.parse().unwrap();
            assert!(
                series.insert(key.to_owned(), value).is_none(),
                "twice: {line}"
            );
        }
    }
    series
}

/// `{name="value",...}` with `\\`, `\"` and `\n` as the only escapes.
fn check_labels(text: &str) {
    let mut rest = text.strip_prefix('{').unwrap();
    loop {
        let (name, after) = rest.split_once("=\"").unwrap();
        assert!(
            name.bytes().all(|b| b.is_ascii_lowercase() || b == b'_'),
            "{name}"
        );
        let mut characters = after.char_indices();
        let end = loop {
            match characters.next().unwrap() {
                (_, '\\') => assert!("\\\"n".contains(characters.next().unwrap().1), "{text}"),
                (at, '"') => break at,
                _ => {}
            }
        };
        rest = &after[end + 1..];
        match rest.strip_prefix(',') {
            Some(next) => rest = next,
            None => break assert_eq!(rest, "}"),
        }
    }
}

#[tokio::test]
async fn metrics_are_a_valid_exposition_with_istios_numbers() {
    let running = start().await;
    let strange = Workload {
        namespace: "a\"b\\c\nd".into(),
        name: "sleep".into(),
        ..Workload::default()
    };
    for recorder in [
        running.state.access_log.recorder(),
        running.state.access_log.recorder(),
    ] {
        recorder.record(&record(&strange));
        recorder.connection_refused(REFUSED_DIRECT);
        recorder.tcp_opened(&TrafficLabels {
            source: None,
            destination_service: "",
            destination_namespace: "",
            upstream_cluster: "PassthroughCluster",
        });
    }
    let (status, rest) = running.raw("GET /metrics").await;
    assert_eq!(status, "HTTP/1.1 200 OK");
    assert!(rest.contains("content-type: text/plain; version=0.0.4"));
    let series = parse_exposition(rest.split_once("\r\n\r\n").unwrap().1);
    let value = |name: &str, labels: &[&str]| {
        let mut found = series.iter().filter(|(key, _)| {
            key.split('{').next() == Some(name) && labels.iter().all(|label| key.contains(label))
        });
        let one = found.next().unwrap_or_else(|| panic!("{name} {labels:?}"));
        assert!(found.next().is_none(), "{name} {labels:?} is not unique");
        *one.1
    };
    assert_eq!(
        value("istio_requests_total", &["response_code=\"200\""]),
        2.0
    );
    let duration = "istio_request_duration_milliseconds";
    assert_eq!(value(&format!("{duration}_bucket"), &["le=\"5\""]), 0.0);
    assert_eq!(value(&format!("{duration}_bucket"), &["le=\"10\""]), 2.0);
    assert_eq!(
        value(&format!("{duration}_bucket"), &["le=\"3600000\""]),
        2.0
    );
    assert_eq!(value(&format!("{duration}_bucket"), &["le=\"+Inf\""]), 2.0);
    assert_eq!(value(&format!("{duration}_sum"), &[]), 14.0);
    assert_eq!(value(&format!("{duration}_count"), &[]), 2.0);
    assert_eq!(value("istio_response_bytes_sum", &[]), 20.0);
    let passthrough = ["destination_service_name=\"PassthroughCluster\""];
    assert_eq!(
        value("istio_tcp_connections_opened_total", &passthrough),
        2.0
    );
    assert_eq!(
        value("istio_tcp_connections_closed_total", &passthrough),
        0.0
    );
    let kernel = ["program=\"egress_connect4\",outcome=\"redirected\""];
    assert_eq!(value("egress_kernel_outcomes_total", &kernel), 5.0);
    let direct = ["{reason=\"direct\"}"];
    assert_eq!(value("egress_connections_refused_total", &direct), 2.0);
    assert_eq!(value("egress_config_version", &[]), 7.0);
    assert_eq!(value("egress_config_problems", &["error"]), 1.0);
    assert_eq!(value("egress_config_problems", &["warning"]), 0.0);
    assert_eq!(value("egress_dns_resolutions_total", &["failed"]), 0.0);
    assert_eq!(value("egress_build_info", &["role=\"node\""]), 1.0);
    assert_eq!(value("egress_ready", &[]), 1.0);
}

#[tokio::test]
async fn ready_is_503_with_the_reasons_until_nothing_is_left() {
    let running = start().await;
    running.readiness.send_replace(Readiness {
        waiting_for: vec!["programs are not attached yet".into()],
    });
    let (status, rest) = running.raw("GET /healthz/ready").await;
    assert_eq!(status, "HTTP/1.1 503 Service Unavailable");
    assert!(rest.ends_with("programs are not attached yet\n"));
    assert_eq!(running.raw("GET /healthz/live").await.0, "HTTP/1.1 200 OK");

    running.readiness.send_replace(Readiness::default());
    assert_eq!(running.raw("GET /healthz/ready").await.0, "HTTP/1.1 200 OK");

    assert_eq!(running.raw("POST /drain").await.0, "HTTP/1.1 202 Accepted");
    assert!(running.state.drain.is_cancelled());
    let (status, rest) = running.raw("GET /healthz/ready").await;
    assert_eq!(status, "HTTP/1.1 503 Service Unavailable");
    assert!(rest.ends_with("draining\n"));
}

#[tokio::test]
async fn wrong_paths_and_methods_say_what_would_be_right() {
    let running = start().await;
    let (status, rest) = running.raw("GET /nothing").await;
    assert_eq!(status, "HTTP/1.1 404 Not Found");
    assert!(rest.contains("/config_dump") && rest.contains("PUT  /logging"));
    let (status, rest) = running.raw("GET /drain").await;
    assert_eq!(status, "HTTP/1.1 405 Method Not Allowed");
    assert!(rest.contains("allow: POST") && rest.ends_with("/drain takes POST, not GET\n"));
    assert!(!running.state.drain.is_cancelled());
    assert_eq!(running.raw("HEAD /metrics").await.0, "HTTP/1.1 200 OK");
}

#[tokio::test]
async fn the_log_filter_is_set_decoded_and_errors_are_shown() {
    let running = start().await;
    let (status, _) = running
        .raw("PUT /logging?filter=info%2Cegress::proxy%3Ddebug")
        .await;
    assert_eq!(status, "HTTP/1.1 200 OK");
    let (status, rest) = running.raw("PUT /logging?filter=bad").await;
    assert_eq!(status, "HTTP/1.1 400 Bad Request");
    assert!(rest.ends_with("bad: no such filter\n"));
    assert_eq!(
        running.raw("PUT /logging").await.0,
        "HTTP/1.1 400 Bad Request"
    );
    assert_eq!(
        running.raw("PUT /logging?filter=%zz%2").await.0,
        "HTTP/1.1 200 OK"
    );
    assert_eq!(
        *running.filters.lock().unwrap(),
        ["info,egress::proxy=debug", "bad", "%zz%2"]
    );
}

#[tokio::test]
async fn dumps_show_what_is_in_effect_and_where_it_is_written() {
    let running = start().await;
    let dump = running.json(Dump::Config.path()).await;
    assert_eq!(dump["version"], 7);
    assert_eq!(dump["mesh"]["outboundTrafficPolicy"], "ALLOW_ANY");
    assert_eq!(dump["services"][0]["host"], "httpbin.org");
    assert_eq!(
        dump["services"][0]["origin"]["file"],
        "/etc/egress/httpbin.yaml"
    );
    assert_eq!(dump["services"][0]["origin"]["line"], 3);
    assert_eq!(dump["services"][0]["ports"][0]["protocol"], "HTTP");
    let addresses = json!({"addresses": ["192.0.2.7"], "retired": [], "error": null});
    assert_eq!(dump["addresses"]["httpbin.org"], addresses);
    assert_eq!(dump["problems"], running.json("/problems").await);
    assert_eq!(dump["problems"][0]["field"], "spec.http");
    assert_eq!(
        running.json(Dump::Dns.path()).await["httpbin.org"],
        addresses
    );
    let workloads = running.json(Dump::Workloads.path()).await;
    assert_eq!(workloads[0]["name"], "sleep");
    assert_eq!(running.json(Dump::Connections.path()).await, json!([]));
    assert_eq!(running.json("/version").await["role"], "node");
}

#[tokio::test]
async fn open_connections_are_shown_whole_until_they_close() {
    let running = start().await;
    let remote = SocketAddr::from(([10, 88, 1, 2], 40000));
    let local = SocketAddr::from(([203, 0, 113, 10], 80));
    let mut peer = Peer::new(remote, local, 15001, CancellationToken::new());
    peer.start = SystemTime::UNIX_EPOCH;
    peer.original = Some(peer.local);
    peer.workload = Some(Arc::new(Workload {
        namespace: "istio-demo".into(),
        name: "sleep".into(),
        service_account: "sleep-sa".into(),
        ..Workload::default()
    }));
    let peer = Arc::new(peer);
    let held = running.open.add(&peer);
    peer.live.speaks(Speaks::Http2);
    peer.live.request();
    let by = "istio-demo/vs".into();
    peer.live
        .decided("httpbin.org", Some(&by), &Action::Blackhole);
    let path = Dump::Connections.path();
    let expected = json!([{
        "workload": "istio-demo/sleep",
        "source_namespace": "istio-demo",
        "source_workload": "sleep",
        "source_service_account": "sleep-sa",
        "source": "10.88.1.2:40000",
        "original_destination": "203.0.113.10:80",
        "entrance": 15001,
        "protocol": "h2",
        "host": "httpbin.org",
        "virtual_service": "istio-demo/vs",
        "cluster": "BlackHoleCluster",
        "upstream": null,
        "requests": 1,
        "bytes_received": 0,
        "bytes_sent": 0,
        "started": "1970-01-01T00:00:00.000Z",
        "age_seconds": 0,
    }]);
    assert_eq!(running.json(path).await, expected);
    drop(held);
    assert_eq!(running.json(path).await, json!([]));
}

#[tokio::test]
async fn status_reaches_the_client_and_reads_well() {
    let running = start().await;
    let status = client::status(running.address).await.unwrap();
    assert!(status.ready && !status.draining);
    assert_eq!((status.config.version, status.config.errors), (7, 1));
    let text = status.text();
    for line in [
        "2 workers)",
        "configuration: version 7, 1 services, 0 gateways, 0 virtual services, 1 errors",
        "  /etc/egress/bad.yaml:12: error: VirtualService istio-demo/vs: spec.http: must be a list",
        "  egress_connect4 on /sys/fs/cgroup/x",
        "  egress_connect4 redirected: 5",
    ] {
        assert!(text.contains(line), "{line:?} in {text}");
    }
    assert!(!text.contains("denied"), "counters of 0 are left out");
}

#[tokio::test]
async fn the_client_tells_an_absent_server_from_a_refusing_one() {
    let running = start().await;
    let error = client::fetch(running.address, "/nothing")
        .await
        .unwrap_err();
    assert!(matches!(error, ClientError::Status { status, .. } if status == 404));
    let Running {
        address,
        stop,
        admin,
        ..
    } = running;
    stop.cancel();
    admin.stopped().await;
    let error = client::fetch(address, "/status").await.unwrap_err();
    assert!(matches!(error, ClientError::Connect { .. }), "{error}");
}
