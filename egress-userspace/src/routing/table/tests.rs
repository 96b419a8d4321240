// SPDX-License-Identifier: Apache-2.0
//! Decision tables; each case names its row of istio-egress.md.

use http::{HeaderMap, Method};

use super::*;
use crate::{
    routing::{
        decision::{Action, Endpoints, Traffic},
        gateway::{GatewayName, Server, ServerHost, ServerTls, ServerTlsMode},
        host::HostPattern,
        matching::StringMatch,
        service::{Endpoint, EndpointAddress, ExportTo, Location, Origin, Resolution, ServicePort},
        virtual_service::{
            HeaderOperations, HttpAction, HttpMatch, HttpRule, Redirect, RedirectPort, Rewrite,
            RouteDestination, TcpMatch, TcpRule,
        },
    },
    workload::Workload,
};

const GATEWAY_HOST: &str = "istio-egressgateway.istio-system.svc.cluster.local";

fn origin(kind: &'static str, full: &str) -> Arc<Origin> {
    let (namespace, name) = full.split_once('/').unwrap();
    Arc::new(Origin {
        kind,
        namespace: namespace.into(),
        name: name.into(),
        file: "test.yaml".into(),
        line: 1,
        created: String::new(),
    })
}

fn host(text: &str) -> HostPattern {
    HostPattern::parse(text)
}

fn service(full: &str, name: &str, ports: &[(u16, Protocol)]) -> Service {
    Service {
        origin: origin("ServiceEntry", full),
        host: host(name),
        addresses: Vec::new(),
        ports: ports
            .iter()
            .map(|(number, protocol)| ServicePort {
                number: *number,
                name: format!("p{number}"),
                protocol: *protocol,
                target_port: *number,
            })
            .collect(),
        location: Location::MeshExternal,
        resolution: Resolution::Dns,
        endpoints: Vec::new(),
        export_to: ExportTo::All,
        subject_alt_names: Vec::new(),
    }
}

fn to(name: &str, port: impl Into<Option<u16>>) -> RouteDestination {
    RouteDestination {
        host: name.into(),
        port: port.into(),
        subset: None,
        weight: 0,
        headers: HeaderOperations::default(),
    }
}

fn rule(matches: Vec<HttpMatch>, action: HttpAction) -> HttpRule {
    HttpRule {
        index: 0,
        delegate: None,
        name: String::new(),
        matches,
        action,
        rewrite: None,
        timeout: None,
        retries: None,
        headers: HeaderOperations::default(),
        fault: None,
        mirrors: Vec::new(),
        cors: None,
    }
}

fn route(matches: Vec<HttpMatch>, name: &str, port: u16) -> HttpRule {
    rule(matches, HttpAction::Route(vec![to(name, port)]))
}

fn virtual_service(
    full: &str,
    hosts: &[&str],
    gateways: &[&str],
    http: Vec<HttpRule>,
) -> VirtualService {
    VirtualService {
        origin: origin("VirtualService", full),
        hosts: hosts.iter().map(|h| host(h)).collect(),
        gateways: gateways.iter().map(|g| gateway_name(g)).collect(),
        export_to: ExportTo::All,
        http: (0..)
            .zip(http)
            .map(|(index, rule)| Arc::new(HttpRule { index, ..rule }))
            .collect(),
        tls: Vec::new(),
        tcp: Vec::new(),
    }
}

fn gateway_name(text: &str) -> GatewayName {
    match text.split_once('/') {
        None => GatewayName::Mesh,
        Some((namespace, name)) => GatewayName::Named {
            namespace: namespace.into(),
            name: name.into(),
        },
    }
}

fn gateway(full: &str, port: u16, protocol: Protocol, hosts: &[&str]) -> Gateway {
    Gateway {
        origin: origin("Gateway", full),
        selector: [("istio".into(), "egressgateway".into())].into(),
        servers: vec![Server {
            port,
            port_name: format!("p{port}"),
            protocol,
            bind: None,
            hosts: hosts
                .iter()
                .map(|text| match text.split_once('/') {
                    Some((namespace, name)) => ServerHost {
                        namespace: Some(namespace.into()),
                        host: host(name),
                    },
                    None => ServerHost {
                        namespace: None,
                        host: host(text),
                    },
                })
                .collect(),
            tls: (protocol.family() == Protocol::Tls).then_some(ServerTls {
                mode: ServerTlsMode::Passthrough,
                https_redirect: false,
            }),
        }],
    }
}

fn objects(
    services: Vec<Service>,
    gateways: Vec<Gateway>,
    virtual_services: Vec<VirtualService>,
) -> Objects {
    Objects {
        services: services.into_iter().map(Arc::new).collect(),
        gateways: gateways.into_iter().map(Arc::new).collect(),
        virtual_services: virtual_services.into_iter().map(Arc::new).collect(),
        ..Objects::default()
    }
}

fn egress_gateway() -> Role {
    Role::Gateway {
        namespace: "istio-system".into(),
        labels: [("istio".into(), "egressgateway".into())].into(),
        only: None,
    }
}

fn client(namespace: &str, labels: &[(&str, &str)]) -> Workload {
    Workload {
        namespace: namespace.into(),
        labels: labels
            .iter()
            .map(|(k, v)| (k.to_string(), v.to_string()))
            .collect(),
        ..Workload::default()
    }
}

/// The tutorial's four objects.
fn seed() -> Objects {
    let mut hop = service(
        "istio-system/egressgateway",
        GATEWAY_HOST,
        &[(80, Protocol::Http)],
    );
    hop.resolution = Resolution::Static;
    hop.endpoints = vec![Endpoint {
        address: EndpointAddress::Ip([10, 0, 0, 2].into()),
        ports: [("p80".into(), 8080)].into(),
        labels: BTreeMap::new(),
        weight: 0,
        locality: String::new(),
    }];
    let on = |gateway: &str| HttpMatch {
        gateways: vec![gateway_name(gateway)],
        port: Some(80),
        ..HttpMatch::default()
    };
    objects(
        vec![
            service(
                "istio-demo/httpbin-ext",
                "httpbin.org",
                &[(80, Protocol::Http)],
            ),
            hop,
        ],
        vec![gateway(
            "istio-demo/istio-egressgateway",
            80,
            Protocol::Http,
            &["httpbin.org"],
        )],
        vec![virtual_service(
            "istio-demo/vs",
            &["httpbin.org"],
            &["istio-demo/istio-egressgateway", "mesh"],
            vec![
                route(vec![on("mesh")], GATEWAY_HOST, 80),
                route(
                    vec![on("istio-demo/istio-egressgateway")],
                    "httpbin.org",
                    80,
                ),
            ],
        )],
    )
}

/// One request and its answer in one line: `CLUSTER [as AUTHORITY] [path PATH]`, or the action.
struct Ask<'a> {
    table: &'a Table,
    source: Option<&'a Workload>,
    port: u16,
    ip: Option<&'a str>,
    method: Method,
    headers: HeaderMap,
    draw: u32,
}

impl<'a> Ask<'a> {
    fn new(table: &'a Table) -> Self {
        Self {
            table,
            source: None,
            port: 80,
            ip: None,
            method: Method::GET,
            headers: HeaderMap::new(),
            draw: 0,
        }
    }

    fn http(&self, host: &str, path: &str) -> String {
        answer(&self.decide_http(host, path).0)
    }

    fn decide_http(&self, host: &str, path: &str) -> (Decision, Vec<String>) {
        self.decide(Traffic::Http {
            method: &self.method,
            scheme: "http",
            host,
            path,
            headers: &self.headers,
        })
    }

    fn tls(&self, sni: impl Into<Option<&'a str>>) -> String {
        answer(&self.decide(Traffic::Tls { sni: sni.into() }).0)
    }

    fn tcp(&self) -> String {
        answer(&self.decide(Traffic::Tcp).0)
    }

    /// Recording the steps must not change the answer.
    fn decide(&self, traffic: Traffic<'_>) -> (Decision, Vec<String>) {
        let request = Request {
            names_of_ip: &[],
            source: self.source,
            port: self.port,
            destination_ip: self.ip.map(|ip| ip.parse().unwrap()),
            traffic,
        };
        let mut why = Why::on();
        let explained = self.table.decide(&request, self.draw, &mut why);
        let plain = self.table.decide(&request, self.draw, &mut Why::off());
        assert_eq!(answer(&plain), answer(&explained));
        assert_eq!(plain.route_name, explained.route_name);
        let steps = why
            .into_steps()
            .iter()
            .map(|step| step.text.to_string())
            .collect();
        (plain, steps)
    }
}

fn answer(decision: &Decision) -> String {
    match &decision.action {
        Action::Forward(forward) => {
            let mut text = forward.destination.cluster.to_string();
            if let Some(authority) = &forward.authority {
                text += &format!(" as {authority}");
            }
            if let Some(path) = &forward.path {
                text += &format!(" path {path}");
            }
            text
        }
        Action::Passthrough => "passthrough".into(),
        Action::Blackhole => "blackhole".into(),
        Action::DirectResponse { status, body, .. } => {
            format!("{status} {}", String::from_utf8_lossy(body))
        }
        Action::Redirect {
            status, location, ..
        } => format!("{status} {location}"),
        Action::NoRoute => "no route".into(),
        Action::Close => "close".into(),
        Action::ClusterNotFound { cluster } => format!("no cluster {cluster}"),
    }
}

#[test]
fn seed_scenario_goes_over_the_gateway() {
    let mesh = Table::build(seed(), Role::Mesh);
    let via = format!("outbound|80||{GATEWAY_HOST}");
    let (decision, steps) = Ask::new(&mesh).decide_http("httpbin.org", "/headers");
    assert_eq!(answer(&decision), via);
    assert_eq!(decision.virtual_service.as_deref(), Some("istio-demo/vs"));
    assert!(steps.contains(&"ServiceEntry istio-demo/httpbin-ext registers httpbin.org:80".into()));
    assert!(
        steps.contains(
            &"VirtualService istio-demo/vs http[0] matched (gateways=mesh, port=80)".into()
        )
    );
    let Action::Forward(forward) = &decision.action else {
        panic!("{decision:?}");
    };
    assert_eq!(
        forward.destination.endpoints,
        Endpoints::List(vec![crate::routing::decision::EndpointTarget {
            address: EndpointAddress::Ip([10, 0, 0, 2].into()),
            port: 8080,
            weight: 1,
        }])
    );
    assert_eq!(forward.route.retries.as_ref().map(|r| r.attempts), Some(2));
    let gateway = Table::build(seed(), egress_gateway());
    let ask = Ask::new(&gateway);
    assert_eq!(
        ask.http("httpbin.org", "/headers"),
        "outbound|80||httpbin.org"
    );
    assert_eq!(ask.http("other.org", "/"), "no route");
    assert_eq!(gateway.gateway_ports(), [(80, Protocol::Http)]);
    assert_eq!(gateway.names_to_resolve(), ["httpbin.org"]);
    assert_eq!(mesh.port_protocol(80), Protocol::Http);
    assert_eq!(mesh.port_protocol(81), Protocol::Auto);
}

fn prefix(path: &str) -> HttpMatch {
    HttpMatch {
        uri: Some(StringMatch::Prefix(path.into())),
        ..HttpMatch::default()
    }
}

fn exact(path: &str) -> HttpMatch {
    HttpMatch {
        uri: Some(StringMatch::Exact(path.into())),
        ..HttpMatch::default()
    }
}

fn respond(matches: Vec<HttpMatch>, body: &str) -> HttpRule {
    rule(
        matches,
        HttpAction::DirectResponse {
            status: 200,
            body: body.as_bytes().to_vec(),
        },
    )
}

fn mesh_vs(full: &str, name: &str, body: &str) -> VirtualService {
    virtual_service(full, &[name], &["mesh"], vec![respond(vec![], body)])
}

#[test]
fn mesh_hosts() {
    let http = [(80, Protocol::Http), (8080, Protocol::Http)];
    let mut addressed = service("a/ip", "ip.com", &http);
    addressed.addresses = vec![
        "192.0.2.7/32".parse().unwrap(),
        "2001:db8::7/128".parse().unwrap(),
    ];
    let table = Table::build(
        objects(
            vec![
                service("a/exact", "a.foo.com", &http),
                service("a/wild", "*.foo.com", &http),
                service("a/plain", "plain.com", &http),
                service("a/tls", "tls.com", &[(443, Protocol::Tls)]),
                addressed,
            ],
            vec![],
            vec![
                mesh_vs("a/w1", "*.foo.com", "wild"),
                mesh_vs("a/w2", "*.b.foo.com", "longer"),
                mesh_vs("a/old", "a.foo.com", "old"),
                mesh_vs("a/young", "a.foo.com", "young"),
                mesh_vs("a/outside", "outside.com", "outside"),
                mesh_vs("a/under", "x.foo.com", "under"),
                virtual_service(
                    "a/gw",
                    &["plain.com"],
                    &["a/gw"],
                    vec![respond(vec![], "gw")],
                ),
            ],
        ),
        Role::Mesh,
    );
    // (row of istio-egress.md, host, port, answer)
    let rows = [
        ("5.5 oldest of equals", "a.foo.com", 80, "200 old"),
        ("2.1 case, port, dot", "A.Foo.com.:80", 80, "200 old"),
        ("2.2 several labels", "c.d.foo.com", 80, "200 wild"),
        ("2.2 not the bare name", "foo.com", 80, "passthrough"),
        (
            "5.2 gateways without mesh",
            "plain.com",
            80,
            "outbound|80||plain.com",
        ),
        ("5.9 unregistered on 80", "outside.com", 80, "200 outside"),
        (
            "5.9 unregistered elsewhere",
            "outside.com",
            8080,
            "passthrough",
        ),
        (
            "5.9 exact under wildcard service on 80",
            "x.foo.com",
            80,
            "200 under",
        ),
        (
            "5.9 exact under wildcard service elsewhere",
            "x.foo.com",
            8080,
            "200 wild",
        ),
        (
            "2.4 address as Host",
            "192.0.2.7",
            80,
            "outbound|80||ip.com",
        ),
        (
            "10.13 v6 literal",
            "[2001:DB8::7]:8080",
            8080,
            "outbound|8080||ip.com",
        ),
        ("5.10 http on a TLS port", "tls.com", 443, "passthrough"),
        ("1.2 unknown", "unknown.org", 80, "passthrough"),
        ("1.2 empty", "", 80, "passthrough"),
    ];
    for (row, name, port, expected) in rows {
        let ask = Ask {
            port,
            ..Ask::new(&table)
        };
        assert_eq!(ask.http(name, "/"), expected, "{row}");
    }
    let (decision, why) = Ask::new(&table).decide_http("a.foo.com", "/");
    assert_eq!(decision.virtual_service.as_deref(), Some("a/old"));
    assert!(
        why.iter()
            .any(|step| step.contains("a/young was considered")),
        "{why:?}"
    );
    let (decision, _) = Ask::new(&table).decide_http("plain.com", "/");
    assert_eq!(&*decision.route_name, "default");
    assert_eq!(
        &*Ask::new(&table).decide_http("q.org", "/").0.route_name,
        "allow_any"
    );
}

#[test]
fn registry_only_refuses_the_unknown() {
    let mut given = seed();
    given.mesh.outbound = OutboundPolicy::RegistryOnly;
    let table = Table::build(given, Role::Mesh);
    let ask = Ask::new(&table);
    assert_eq!(ask.http("q.org", "/"), "blackhole", "1.3");
    assert_eq!(
        &*ask.decide_http("q.org", "/").0.route_name,
        "block_all",
        "1.3"
    );
    assert_eq!(ask.tls("q.org"), "blackhole", "1.4");
    assert_eq!(ask.tcp(), "blackhole", "1.4");
}

#[test]
fn static_conditions_are_those_of_the_client() {
    let labelled = HttpMatch {
        source_labels: [("app".into(), "sleep".into())].into(),
        ..prefix("/a")
    };
    let spaced = HttpMatch {
        source_namespace: "ns1".into(),
        ..prefix("/b")
    };
    let gateway_and_labels = HttpMatch {
        gateways: vec![GatewayName::Mesh],
        source_labels: [("app".into(), "nobody".into())].into(),
        ..prefix("/c")
    };
    let ports = [(80, Protocol::Http), (81, Protocol::Http)];
    let mut on_80 = prefix("/d");
    on_80.port = Some(80);
    let vs = |name: &str, block: &HttpMatch| {
        let rules = vec![respond(vec![block.clone()], "rule")];
        virtual_service(
            &format!("x/{name}"),
            &[&format!("{name}.com")],
            &["mesh"],
            rules,
        )
    };
    let table = Table::build(
        objects(
            ["l", "n", "g", "p"]
                .map(|name| service(&format!("x/{name}"), &format!("{name}.com"), &ports))
                .into(),
            vec![],
            vec![
                vs("l", &labelled),
                vs("n", &spaced),
                vs("g", &gateway_and_labels),
                vs("p", &on_80),
            ],
        ),
        Role::Mesh,
    );
    let (sleep, other) = (client("ns1", &[("app", "sleep")]), client("ns2", &[]));
    let rows = [
        (
            "5a.8 labels match",
            Some(&sleep),
            80,
            "l.com",
            "/a",
            "200 rule",
        ),
        (
            "5.8 survives, no match: 404",
            Some(&sleep),
            80,
            "l.com",
            "/x",
            "no route",
        ),
        (
            "5.8 does not survive: default",
            Some(&other),
            80,
            "l.com",
            "/a",
            "outbound|80||l.com",
        ),
        (
            "5.8 unknown client",
            None,
            80,
            "l.com",
            "/a",
            "outbound|80||l.com",
        ),
        (
            "5a.8 namespace",
            Some(&sleep),
            80,
            "n.com",
            "/b",
            "200 rule",
        ),
        (
            "5a.8 other namespace",
            Some(&other),
            80,
            "n.com",
            "/b",
            "outbound|80||n.com",
        ),
        (
            "5a.8 gateways hide labels",
            Some(&other),
            80,
            "g.com",
            "/c",
            "200 rule",
        ),
        ("5.8 port", None, 80, "p.com", "/d", "200 rule"),
        (
            "5.8 other port",
            None,
            81,
            "p.com",
            "/d",
            "outbound|81||p.com",
        ),
    ];
    for (row, source, port, name, path, expected) in rows {
        let ask = Ask {
            source,
            port,
            ..Ask::new(&table)
        };
        assert_eq!(ask.http(name, path), expected, "{row}");
    }
}

#[test]
fn visibility_follows_the_client_namespace() {
    let mut private = service("team/private", "private.com", &[(80, Protocol::Http)]);
    private.export_to = ExportTo::Namespaces(vec!["team".into()]);
    let mut nobody = service("team/nobody", "nobody.com", &[(80, Protocol::Http)]);
    nobody.export_to = ExportTo::Nobody;
    let mut vs = mesh_vs("team/vs", "shared.com", "team");
    vs.export_to = ExportTo::Namespaces(vec!["team".into()]);
    let table = Table::build(
        objects(
            vec![
                private,
                nobody,
                service("a/shared", "shared.com", &[(80, Protocol::Http)]),
                service(
                    "b/shared",
                    "shared.com",
                    &[(81, Protocol::Http), (80, Protocol::Http2)],
                ),
            ],
            vec![],
            vec![vs],
        ),
        Role::Mesh,
    );
    let (team, other) = (client("team", &[]), client("other", &[]));
    let rows = [
        (
            "0.6",
            Some(&team),
            80,
            "private.com",
            "outbound|80||private.com",
        ),
        ("0.6", Some(&other), 80, "private.com", "passthrough"),
        ("0.6", None, 80, "private.com", "passthrough"),
        ("0.6 ~", Some(&team), 80, "nobody.com", "passthrough"),
        ("5.11", Some(&team), 80, "shared.com", "200 team"),
        (
            "5.11",
            Some(&other),
            80,
            "shared.com",
            "outbound|80||shared.com",
        ),
        (
            "2.17 ports merge",
            Some(&other),
            81,
            "shared.com",
            "outbound|81||shared.com",
        ),
    ];
    for (row, source, port, name, expected) in rows {
        let ask = Ask {
            source,
            port,
            ..Ask::new(&table)
        };
        assert_eq!(ask.http(name, "/"), expected, "{row} {name}");
    }
    assert_eq!(table.names_to_resolve(), ["private.com", "shared.com"]);
}

#[test]
fn http_conditions() {
    let regex = |text: &str| StringMatch::regex(text).unwrap();
    let with = |change: &dyn Fn(&mut HttpMatch)| {
        let mut block = HttpMatch::default();
        change(&mut block);
        block
    };
    let name = |text: &'static str| http::HeaderName::from_static(text);
    let case = |path: &str| HttpMatch {
        ignore_uri_case: true,
        ..prefix(path)
    };
    // (row, block, path, matches); the request has Host h.com:80 and header x: one
    let rows = [
        ("5a.2 prefix is textual", prefix("/foo"), "/foobar", true),
        (
            "5a.2 exact ignores the query",
            exact("/foo"),
            "/foo?a=b",
            true,
        ),
        ("5a.2 exact", exact("/foo"), "/foo/", false),
        ("5a.2 case matters", prefix("/foo"), "/FOO", false),
        ("5a.2 ignoreUriCase", case("/foo"), "/FOO", true),
        (
            "5a.2 regex is a full match",
            with(&|b| b.uri = Some(regex("/a|/b"))),
            "/bc",
            false,
        ),
        (
            "5a.2 regex",
            with(&|b| b.uri = Some(regex("/a|/b"))),
            "/b",
            true,
        ),
        (
            "5a.3 method",
            with(&|b| b.method = Some(StringMatch::Exact("get".into()))),
            "/",
            false,
        ),
        (
            "5a.3 authority has the port",
            with(&|b| b.authority = Some(StringMatch::Exact("h.com".into()))),
            "/",
            false,
        ),
        (
            "5a.3 authority",
            with(&|b| b.authority = Some(StringMatch::Exact("h.com:80".into()))),
            "/",
            true,
        ),
        (
            "5a.4 header",
            with(&|b| b.headers = vec![(name("x"), StringMatch::Exact("one".into()))]),
            "/",
            true,
        ),
        (
            "5a.4 present",
            with(&|b| b.headers = vec![(name("x"), StringMatch::Present)]),
            "/",
            true,
        ),
        (
            "5a.4 missing",
            with(&|b| b.headers = vec![(name("y"), regex(".*"))]),
            "/",
            false,
        ),
        (
            "5a.5 absent",
            with(&|b| b.without_headers = vec![(name("y"), StringMatch::Exact("1".into()))]),
            "/",
            true,
        ),
        (
            "5a.5 other value",
            with(&|b| b.without_headers = vec![(name("x"), StringMatch::Exact("1".into()))]),
            "/",
            true,
        ),
        (
            "5a.5 must be absent",
            with(&|b| b.without_headers = vec![(name("x"), StringMatch::Present)]),
            "/",
            false,
        ),
        (
            "5a.6 query",
            with(&|b| b.query_params = vec![("q".into(), StringMatch::Exact("1".into()))]),
            "/?p&q=1",
            true,
        ),
        (
            "5a.6 names are case-sensitive",
            with(&|b| b.query_params = vec![("Q".into(), StringMatch::Present)]),
            "/?q=1",
            false,
        ),
    ];
    for (row, block, path, expected) in rows {
        let rules = vec![respond(vec![exact("/never"), block], "yes")];
        let table = Table::build(
            objects(
                vec![],
                vec![],
                vec![virtual_service("a/v", &["h.com"], &["mesh"], rules)],
            ),
            Role::Mesh,
        );
        let mut ask = Ask::new(&table);
        ask.headers.insert("x", "one".parse().unwrap());
        let expected = if expected { "200 yes" } else { "no route" };
        assert_eq!(ask.http("h.com:80", path), expected, "{row}");
    }
    assert!(
        StringMatch::regex(&"a".repeat(1025)).is_err(),
        "5a.2 at most 1024 bytes"
    );
}

#[test]
fn actions() {
    let uri = |matches: Vec<HttpMatch>, uri: &str| HttpRule {
        rewrite: Some(Rewrite {
            uri: Some(uri.into()),
            uri_regex: None,
            authority: Some("new.com".into()),
        }),
        ..route(matches, "d.com", 80)
    };
    let mut regex = uri(vec![], "");
    if let Some(rewrite) = &mut regex.rewrite {
        rewrite.uri = None;
        rewrite.uri_regex = Some((regex::Regex::new("/v([0-9])").unwrap(), "/w$1".into()));
    }
    let redirect = |change: &dyn Fn(&mut Redirect)| {
        let mut redirect = Redirect {
            uri: None,
            prefix_rewrite: None,
            authority: None,
            scheme: None,
            port: RedirectPort::Unchanged,
            status: 301,
        };
        change(&mut redirect);
        rule(vec![prefix("/a")], HttpAction::Redirect(redirect))
    };
    let mut subset = to("d.com", 80);
    subset.subset = Some("v1".into());
    let rows = [
        (
            "5b.7 prefix",
            uri(vec![prefix("/a")], "/b"),
            "/a/x?q",
            "outbound|80||d.com as new.com path /b/x?q",
        ),
        (
            "5b.7 slash doubles",
            uri(vec![prefix("/a")], "/"),
            "/a/x",
            "outbound|80||d.com as new.com path //x",
        ),
        (
            "5b.7 exact",
            uri(vec![exact("/a")], "/b"),
            "/a",
            "outbound|80||d.com as new.com path /b",
        ),
        (
            "5b.7 no uri match",
            uri(vec![], "/base"),
            "/x",
            "outbound|80||d.com as new.com path /basex",
        ),
        (
            "5b.8",
            regex,
            "/v1/v2?v=/v3",
            "outbound|80||d.com as new.com path /w1/w2?v=/v3",
        ),
        (
            "5b.5 uri",
            redirect(&|r| r.uri = Some("/z".into())),
            "/a/b?q=1",
            "301 http://h.com:8080/z?q=1",
        ),
        (
            "5b.5 prefixRewrite",
            redirect(&|r| r.prefix_rewrite = Some("/z".into())),
            "/a/b",
            "301 http://h.com:8080/z/b",
        ),
        (
            "5b.5 default port",
            redirect(&|r| {
                r.scheme = Some("https".into());
                r.port = RedirectPort::Fixed(443);
            }),
            "/a",
            "301 https://h.com/a",
        ),
        (
            "5b.5 FROM_PROTOCOL_DEFAULT",
            redirect(&|r| r.port = RedirectPort::ProtocolDefault),
            "/a",
            "301 http://h.com/a",
        ),
        (
            "5b.5 FROM_REQUEST_PORT",
            redirect(&|r| {
                r.authority = Some("n.com".into());
                r.port = RedirectPort::Request;
            }),
            "/a",
            "301 http://n.com:8080/a",
        ),
        (
            "5b.5 authority",
            redirect(&|r| r.authority = Some("n.com".into())),
            "/a",
            "301 http://n.com/a",
        ),
        (
            "5b.2 only port",
            rule(vec![], HttpAction::Route(vec![to("d.com", None)])),
            "/",
            "outbound|80||d.com",
        ),
        (
            "5b.2 listener port",
            rule(vec![], HttpAction::Route(vec![to("two.com", None)])),
            "/",
            "outbound|8080||two.com",
        ),
        (
            "5b.3",
            route(vec![], "none.com", 80),
            "/",
            "no cluster outbound|80||none.com",
        ),
        (
            "5b.3 port",
            route(vec![], "d.com", 99),
            "/",
            "no cluster outbound|99||d.com",
        ),
        (
            "5b.4",
            rule(vec![], HttpAction::Route(vec![subset])),
            "/",
            "no cluster outbound|80|v1|d.com",
        ),
    ];
    for (row, rule, path, expected) in rows {
        let two = [(8080, Protocol::Http), (9090, Protocol::Http)];
        let table = Table::build(
            objects(
                vec![
                    service("a/h", "h.com", &[(8080, Protocol::Http)]),
                    service("a/d", "d.com", &[(80, Protocol::Http)]),
                    service("a/two", "two.com", &two),
                ],
                vec![],
                vec![virtual_service("a/v", &["h.com"], &["mesh"], vec![rule])],
            ),
            Role::Mesh,
        );
        let ask = Ask {
            port: 8080,
            ..Ask::new(&table)
        };
        assert_eq!(ask.http("h.com:8080", path), expected, "{row}");
    }
}

#[test]
fn weights_share_the_draws() {
    let weighted = |name: &str, weight| RouteDestination {
        weight,
        ..to(name, 80)
    };
    let split = vec![
        weighted("a.com", 1),
        weighted("b.com", 0),
        weighted("c.com", 3),
    ];
    let table = Table::build(
        objects(
            ["a.com", "b.com", "c.com"]
                .map(|name| service(&format!("x/{name}"), name, &[(80, Protocol::Http)]))
                .into(),
            vec![],
            vec![virtual_service(
                "x/v",
                &["h.com"],
                &["mesh"],
                vec![rule(vec![], HttpAction::Route(split))],
            )],
        ),
        Role::Mesh,
    );
    // 5b.1: a quarter, nothing, three quarters
    let rows = [
        (0, "a"),
        (u32::MAX / 4, "a"),
        (u32::MAX / 4 + 1, "c"),
        (u32::MAX, "c"),
    ];
    for (draw, expected) in rows {
        let ask = Ask {
            draw,
            ..Ask::new(&table)
        };
        assert_eq!(
            ask.http("h.com", "/"),
            format!("outbound|80||{expected}.com"),
            "{draw}"
        );
    }
}

#[test]
fn gateway_selection() {
    let vs = |full: &str, hosts: &[&str], gateways: &[&str], rules| {
        virtual_service(full, hosts, gateways, rules)
    };
    let mut other_labels = gateway("a/other", 80, Protocol::Http, &["*"]);
    other_labels.selector = [("istio".into(), "other".into())].into();
    let mut hidden = vs(
        "a/hidden",
        &["hidden.com"],
        &["a/gw"],
        vec![respond(vec![], "hidden")],
    );
    hidden.export_to = ExportTo::Namespaces(vec!["a".into()]);
    let table = Table::build(
        objects(
            vec![],
            vec![
                gateway("a/gw", 80, Protocol::Http, &["*.com", "b/only-b.org"]),
                other_labels,
            ],
            vec![
                vs(
                    "a/first",
                    &["same.com"],
                    &["a/gw"],
                    vec![
                        respond(vec![prefix("/one")], "one"),
                        respond(vec![], "catch"),
                    ],
                ),
                vs(
                    "a/second",
                    &["same.com"],
                    &["a/gw"],
                    vec![respond(vec![prefix("/two")], "two")],
                ),
                vs("a/wide", &["*"], &["a/gw"], vec![respond(vec![], "wide")]),
                vs(
                    "a/outside",
                    &["x.org"],
                    &["a/gw"],
                    vec![respond(vec![], "outside")],
                ),
                vs(
                    "a/ns",
                    &["only-b.org"],
                    &["a/gw"],
                    vec![respond(vec![], "wrong namespace")],
                ),
                vs(
                    "a/elsewhere",
                    &["else.org"],
                    &["b/gw"],
                    vec![respond(vec![], "elsewhere")],
                ),
                vs(
                    "a/other",
                    &["other.org"],
                    &["a/other"],
                    vec![respond(vec![], "other")],
                ),
                hidden,
            ],
        ),
        egress_gateway(),
    );
    let rows = [
        ("5.6 first", "same.com", "/one", "200 one"),
        (
            "5.6 catch-all moves behind the second",
            "same.com",
            "/two",
            "200 two",
        ),
        ("5.6 catch-all last", "same.com", "/three", "200 catch"),
        ("4.4 narrower is the server's", "q.com", "/", "200 wide"),
        ("4.4 outside", "x.org", "/", "no route"),
        ("4.3 namespace", "only-b.org", "/", "no route"),
        ("5.2 other gateway", "else.org", "/", "no route"),
        ("4.1 selector", "other.org", "/", "no route"),
        ("5.11 exportTo", "hidden.com", "/", "200 wide"),
    ];
    for (row, name, path, expected) in rows {
        assert_eq!(Ask::new(&table).http(name, path), expected, "{row}");
    }
    let reasons = [
        (
            "else.org",
            "VirtualService a/elsewhere was considered: bound to gateway b/gw, not a/gw",
        ),
        (
            "x.org",
            "VirtualService a/outside was considered: host x.org is not among the hosts of the Gateway's servers on port 80",
        ),
        (
            "x.org",
            "VirtualService a/first was considered: host x.org is not among its hosts",
        ),
    ];
    for (name, expected) in reasons {
        let why = Ask::new(&table).decide_http(name, "/").1;
        assert!(why.iter().any(|step| step == expected), "{name}: {why:#?}");
    }
    let ask = Ask {
        port: 81,
        ..Ask::new(&table)
    };
    assert_eq!(ask.http("same.com", "/"), "no route", "4.14");
}

fn sni_rule(names: &[&str], destination: &str) -> TcpRule {
    TcpRule {
        matches: vec![TcpMatch {
            sni_hosts: names.iter().map(|name| host(name)).collect(),
            port: Some(443),
            ..TcpMatch::default()
        }],
        route: vec![to(destination, 443)],
    }
}

#[test]
fn tls_goes_by_server_name() {
    let tls = [(443, Protocol::Tls)];
    let mut vs = virtual_service("a/v", &["a.com"], &["mesh", "a/gw"], vec![]);
    vs.tls = vec![sni_rule(&["a.com"], "hop.com")];
    let given = objects(
        vec![
            service("a/a", "a.com", &tls),
            service("a/b", "b.com", &tls),
            service("a/w", "*.w.com", &tls),
            service("a/hop", "hop.com", &tls),
        ],
        vec![gateway("a/gw", 443, Protocol::Tls, &["*.com"])],
        vec![vs],
    );
    let mesh = Table::build(given.clone(), Role::Mesh);
    let gateway = Table::build(given, egress_gateway());
    let ask = |table, sni| {
        let ask = Ask {
            port: 443,
            ..Ask::new(table)
        };
        ask.tls(sni)
    };
    let rows = [
        ("5c.1", &mesh, Some("A.com"), "outbound|443||hop.com"),
        (
            "5c.3 default chain",
            &mesh,
            Some("b.com"),
            "outbound|443||b.com",
        ),
        (
            "5c.3 wildcard",
            &mesh,
            Some("q.w.com"),
            "outbound|443||*.w.com",
        ),
        ("5c.4 unknown", &mesh, Some("z.com"), "passthrough"),
        ("5c.4 none", &mesh, None, "passthrough"),
        ("5c.1", &gateway, Some("a.com"), "outbound|443||hop.com"),
        ("5c.4 unknown", &gateway, Some("b.com"), "close"),
        ("5c.4 none", &gateway, None, "close"),
    ];
    for (row, table, sni, expected) in rows {
        assert_eq!(ask(table, sni), expected, "{row} {sni:?}");
    }
}

#[test]
fn tcp_goes_by_longest_prefix() {
    let at = |full: &str, name: &str, nets: &[&str]| {
        let mut service = service(full, name, &[(3306, Protocol::Tcp)]);
        service.addresses = nets.iter().map(|net| net.parse().unwrap()).collect();
        service.resolution = Resolution::None;
        service
    };
    let mut vs = virtual_service("a/v", &["narrow.com"], &["mesh"], vec![]);
    vs.tcp = vec![TcpRule {
        matches: vec![TcpMatch {
            destination_subnets: vec!["10.1.2.0/28".parse().unwrap()],
            ..TcpMatch::default()
        }],
        route: vec![to("wide.com", 3306)],
    }];
    let table = Table::build(
        objects(
            vec![
                at("a/wide", "wide.com", &["10.0.0.0/8"]),
                at("a/narrow", "narrow.com", &["10.1.2.0/24"]),
                at("a/any", "any.com", &[]),
            ],
            vec![],
            vec![vs],
        ),
        Role::Mesh,
    );
    let rows = [
        (
            "2.4 longest prefix",
            "10.1.2.99",
            3306,
            "outbound|3306||narrow.com",
        ),
        (
            "5c.5 destinationSubnets",
            "10.1.2.3",
            3306,
            "outbound|3306||wide.com",
        ),
        ("2.4 wider", "10.9.9.9", 3306, "outbound|3306||wide.com"),
        (
            "10.13 v4-mapped",
            "::ffff:10.9.9.9",
            3306,
            "outbound|3306||wide.com",
        ),
        (
            "2.4 no address: every address",
            "192.0.2.1",
            3306,
            "outbound|3306||any.com",
        ),
        ("1.2", "10.1.2.3", 3307, "passthrough"),
    ];
    for (row, ip, port, expected) in rows {
        let ask = Ask {
            ip: Some(ip),
            port,
            ..Ask::new(&table)
        };
        assert_eq!(ask.tcp(), expected, "{row}");
    }
}
