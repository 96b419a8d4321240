// SPDX-License-Identifier: Apache-2.0
//! The config flow from text on disk to objects, problems and snapshots.

use std::{
    fs,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
    time::Duration,
};

use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;

use super::{
    ConfigError, ConfigSettings, Loaded, load,
    problem::Severity,
    report::{render_json, render_text},
    snapshot::Snapshot,
    start,
};
use crate::routing::{
    gateway::GatewayName,
    host::HostPattern,
    service::{ExportTo, Resolution},
    table::{OutboundPolicy, Role},
    virtual_service::HttpAction,
};

/// A directory that is removed when the test ends.
struct Directory(PathBuf);

impl Directory {
    fn new() -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let path =
            std::env::temp_dir().join(format!("egress-config-{}-{number}", std::process::id()));
        fs::create_dir_all(&path).unwrap();
        Self(path)
    }

    fn write(&self, name: &str, content: impl AsRef<[u8]>) -> PathBuf {
        let path = self.0.join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, content).unwrap();
        path
    }

    fn settings(&self) -> ConfigSettings {
        ConfigSettings {
            paths: vec![self.0.clone()],
            mesh_config: None,
            default_namespace: "default".into(),
            role: Role::Mesh,
        }
    }
}

impl Drop for Directory {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

fn loaded(content: impl AsRef<[u8]>) -> Loaded {
    let directory = Directory::new();
    directory.write("a.yaml", content);
    load(&directory.settings()).unwrap()
}

/// An object of `kind` whose spec is `spec`, indented by two.
fn object(kind: &str, spec: &str) -> String {
    let mut text = format!(
        "apiVersion: networking.istio.io/v1\nkind: {kind}\nmetadata:\n  name: x\n  namespace: ns\nspec:\n"
    );
    for line in spec.lines() {
        text.push_str("  ");
        text.push_str(line);
        text.push('\n');
    }
    text
}

fn findings(loaded: &Loaded, severity: Severity) -> Vec<(String, String)> {
    loaded
        .problems()
        .filter(|p| p.severity == severity)
        .map(|p| (p.field.clone(), p.message.clone()))
        .collect()
}

/// The spec is refused with an error at `field` that contains `part`.
fn assert_refused(kind: &str, spec: &str, field: &str, part: &str) {
    let loaded = loaded(object(kind, spec));
    let errors = findings(&loaded, Severity::Error);
    assert!(
        errors.iter().any(|(f, m)| f == field && m.contains(part)),
        "{kind}\n{spec}\nexpected {field}: {part}\ngot {errors:#?}"
    );
    assert!(!loaded.documents[0].accepted());
    assert!(loaded.documents[0].object.is_none());
}

/// The spec is loaded with a warning at `field` that contains `part`.
fn assert_warned(kind: &str, spec: &str, field: &str, part: &str) {
    let loaded = loaded(object(kind, spec));
    let warnings = findings(&loaded, Severity::Warning);
    assert!(
        warnings.iter().any(|(f, m)| f == field && m.contains(part)),
        "{kind}\n{spec}\nexpected {field}: {part}\ngot {warnings:#?}"
    );
    assert_eq!(findings(&loaded, Severity::Error), [], "{kind}\n{spec}");
}

const SCENARIO: &str = "\
apiVersion: networking.istio.io/v1alpha3
kind: ServiceEntry
metadata:
  name: httpbin-ext
  namespace: istio-demo
spec:
  hosts:
  - HTTPBIN.org
  ports:
  - number: 80
    name: http
    protocol: HTTP
  resolution: DNS
---
apiVersion: networking.istio.io/v1beta1
kind: Gateway
metadata:
  name: istio-egressgateway
  namespace: istio-demo
spec:
  selector:
    istio: egressgateway
  servers:
  - port:
      number: 80
      name: http
      protocol: HTTP
    hosts:
    - httpbin.org
---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata:
  name: vs
  namespace: istio-demo
spec:
  hosts:
  - httpbin.org
  gateways:
  - istio-egressgateway
  - mesh
  http:
  - match:
    - gateways:
      - mesh
      port: 80
    route:
    - destination:
        host: istio-egressgateway.istio-system.svc.cluster.local
        port:
          number: 80
      weight: 100
  - match:
    - gateways:
      - istio-egressgateway
      port: 80
    route:
    - destination:
        host: httpbin.org
        port:
          number: 80
    timeout: 5s
---
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata:
  name: gateway-service
  namespace: istio-system
spec:
  hosts: [istio-egressgateway.istio-system.svc.cluster.local]
  location: MESH_INTERNAL
  ports:
  - {number: 80, name: http, protocol: HTTP, targetPort: 8080}
  resolution: STATIC
  endpoints:
  - address: 10.0.0.7
";

#[test]
fn the_scenario_is_loaded_without_a_finding() {
    let loaded = loaded(SCENARIO);
    assert_eq!(render_text(&loaded), "");
    let objects = &loaded.objects;
    // By name within one creation time: gateway-service before httpbin-ext.
    let service = &objects.services[1];
    assert_eq!(service.host, HostPattern::Exact("httpbin.org".into()));
    assert_eq!(service.resolution, Resolution::Dns);
    assert_eq!(service.ports[0].target_port, 80);
    assert_eq!(objects.services[0].ports[0].target_port, 8080);
    assert_eq!(objects.gateways[0].servers[0].port, 80);
    let vs = &objects.virtual_services[0];
    let gateway = GatewayName::Named {
        namespace: "istio-demo".into(),
        name: "istio-egressgateway".into(),
    };
    assert_eq!(vs.gateways, [gateway.clone(), GatewayName::Mesh]);
    assert_eq!(vs.http[1].matches[0].gateways, [gateway]);
    assert_eq!(vs.http[1].timeout, Some(Duration::from_secs(5)));
    let HttpAction::Route(route) = &vs.http[0].action else {
        panic!("{:?}", vs.http[0].action);
    };
    assert_eq!(
        route[0].host,
        "istio-egressgateway.istio-system.svc.cluster.local"
    );
}

const SE: &str = "hosts: [a.com]\nports: [{number: 80, name: http, protocol: HTTP}]\n";

#[test]
fn every_service_entry_rule_refuses() {
    let ports = "ports: [{number: 80, name: http, protocol: HTTP}]\n";
    let tcp = "ports: [{number: 5432, name: tcp, protocol: TCP}]\n";
    for (spec, field, part) in [
        (ports.to_owned(), "spec.hosts", "at least one host"),
        (
            format!("hosts: ['*']\n{ports}"),
            "spec.hosts[0]",
            "`*` is not allowed",
        ),
        (
            format!("hosts: ['a.*.com']\n{ports}"),
            "spec.hosts[0]",
            "wildcard",
        ),
        (
            format!("hosts: ['a_b.com']\n{ports}"),
            "spec.hosts[0]",
            "DNS label",
        ),
        (
            format!("hosts: ['1.2.3.4']\n{ports}"),
            "spec.hosts[0]",
            "number",
        ),
        (
            format!("hosts: [a.com, A.com]\n{ports}"),
            "spec.hosts[1]",
            "twice",
        ),
        (
            format!("hosts: ['*.a.com']\n{ports}resolution: DNS"),
            "spec.hosts[0]",
            "DYNAMIC_DNS",
        ),
        (
            format!("{SE}resolution: DYNAMIC_DNS"),
            "spec.hosts[0]",
            "wildcard hosts only",
        ),
        ("hosts: [a.com]".into(), "spec.ports", "at least one port"),
        (
            "hosts: [a.com]\nports: [{number: 80, protocol: HTTP}]".into(),
            "spec.ports[0].name",
            "name",
        ),
        (
            "hosts: [a.com]\nports: [{number: 80, name: 'a b'}]".into(),
            "spec.ports[0].name",
            "DNS label",
        ),
        (
            "hosts: [a.com]\nports: [{number: 0, name: a}]".into(),
            "spec.ports[0].number",
            "1..65535",
        ),
        (
            "hosts: [a.com]\nports: [{number: 65536, name: a}]".into(),
            "spec.ports[0].number",
            "1..65535",
        ),
        (
            "hosts: [a.com]\nports: [{number: 1, name: a}, {number: 1, name: b}]".into(),
            "spec.ports[1].number",
            "twice",
        ),
        (
            "hosts: [a.com]\nports: [{number: 1, name: a}, {number: 2, name: a}]".into(),
            "spec.ports[1].name",
            "twice",
        ),
        (
            "hosts: [a.com]\nports: [{number: 1, name: a, protocol: SMTP}]".into(),
            "spec.ports[0].protocol",
            "SMTP",
        ),
        (
            "hosts: [a.com]\nports: [{number: 1, name: a, targetPort: 70000}]".into(),
            "spec.ports[0].targetPort",
            "1..65535",
        ),
        (
            format!("{SE}addresses: [x]"),
            "spec.addresses[0]",
            "neither",
        ),
        (
            format!("{SE}addresses: [10.0.0.0/8]\nresolution: DNS"),
            "spec.addresses[0]",
            "NONE or STATIC",
        ),
        (
            format!("{SE}endpoints: [{{address: 1.1.1.1}}]"),
            "spec.endpoints",
            "no endpoints",
        ),
        (
            format!("{SE}resolution: STATIC\nendpoints: [{{address: b.com}}]"),
            "spec.endpoints[0].address",
            "not an IP",
        ),
        (
            format!("{SE}resolution: STATIC\nendpoints: [{{}}]"),
            "spec.endpoints[0].address",
            "needs an address",
        ),
        (
            format!("{SE}resolution: STATIC\nendpoints: [{{address: 1.1.1.1, ports: {{x: 1}}}}]"),
            "spec.endpoints[0].ports.x",
            "no port named",
        ),
        (
            format!("{SE}resolution: DNS\nendpoints: [{{address: 'unix:///x'}}]"),
            "spec.endpoints[0].address",
            "STATIC only",
        ),
        (
            format!("{SE}resolution: STATIC\nendpoints: [{{address: 'unix://x'}}]"),
            "spec.endpoints[0].address",
            "absolute",
        ),
        (
            format!(
                "{SE}resolution: DNS_ROUND_ROBIN\nendpoints: [{{address: b.com}}, {{address: c.com}}]"
            ),
            "spec.endpoints",
            "one endpoint",
        ),
        (
            format!("hosts: [a.com, b.com]\n{tcp}resolution: DNS"),
            "spec.hosts",
            "one ServiceEntry per host",
        ),
        (
            format!("hosts: ['*.a.com']\nresolution: DYNAMIC_DNS\n{tcp}"),
            "spec.ports[0].protocol",
            "DYNAMIC_DNS",
        ),
        (
            format!(
                "{SE}workloadSelector: {{labels: {{a: b}}}}\nresolution: STATIC\nendpoints: [{{address: 1.1.1.1}}]"
            ),
            "spec.workloadSelector",
            "exclude",
        ),
        (format!("{SE}exportTo: ['*', a]"), "spec.exportTo", "alone"),
        (
            format!("{SE}exportTo: ['.', ns]"),
            "spec.exportTo[0]",
            "same namespace",
        ),
        (
            format!("{SE}exportTo: [A_B]"),
            "spec.exportTo[0]",
            "namespace",
        ),
        (format!("{SE}exportTo: [a, a]"), "spec.exportTo[1]", "twice"),
        (
            format!("{SE}resolution: DNSS"),
            "spec.resolution",
            "unknown variant `DNSS`",
        ),
        (
            format!("{SE}resolutoin: DNS"),
            "spec.resolutoin",
            "unknown field",
        ),
        (
            "hosts: [a.com]\nports: [{number: '80', name: a}]".into(),
            "spec.ports[0].number",
            "invalid type",
        ),
    ] {
        assert_refused("ServiceEntry", &spec, field, part);
    }
}

#[test]
fn every_gateway_rule_refuses() {
    let port = "port: {number: 443, name: p, protocol: ";
    let server = |body: &str| format!("servers:\n- {}", body.replace('\n', "\n  "));
    for (spec, field, part) in [
        (
            "selector: {a: b}".to_owned(),
            "spec.servers",
            "at least one",
        ),
        (
            server("hosts: ['*']"),
            "spec.servers[0].port",
            "needs a port",
        ),
        (
            server("port: {number: 80, protocol: HTTP}\nhosts: ['*']"),
            "spec.servers[0].port.name",
            "name",
        ),
        (
            server("port: {number: 0, name: p, protocol: HTTP}\nhosts: ['*']"),
            "spec.servers[0].port.number",
            "1..65535",
        ),
        (
            server("port: {number: 80, name: p}\nhosts: ['*']"),
            "spec.servers[0].port.protocol",
            "protocol",
        ),
        (
            server("port: {number: 80, name: p, protocol: HTTP, targetPort: 8080}\nhosts: ['*']"),
            "spec.servers[0].port.targetPort",
            "no targetPort",
        ),
        (
            server("port: {number: 80, name: p, protocol: HTTP}"),
            "spec.servers[0].hosts",
            "at least one host",
        ),
        (
            server("port: {number: 80, name: p, protocol: HTTP}\nhosts: [short]"),
            "spec.servers[0].hosts[0]",
            "short name",
        ),
        (
            server("port: {number: 80, name: p, protocol: HTTP}\nhosts: ['*x.com']"),
            "spec.servers[0].hosts[0]",
            "whole labels",
        ),
        (
            server("port: {number: 80, name: p, protocol: HTTP}\nhosts: ['~/a.com']"),
            "spec.servers[0].hosts[0]",
            "`~`",
        ),
        (
            server("port: {number: 80, name: p, protocol: HTTP}\nhosts: ['A/a.com']"),
            "spec.servers[0].hosts[0]",
            "namespace",
        ),
        (
            server("port: {number: 80, name: p, protocol: HTTP}\nhosts: ['*']\nbind: x"),
            "spec.servers[0].bind",
            "IP",
        ),
        (
            server(&format!("{port}HTTPS}}\nhosts: ['*']")),
            "spec.servers[0].tls",
            "need `tls`",
        ),
        (
            server(&format!("{port}TLS}}\nhosts: ['*']")),
            "spec.servers[0].tls",
            "need `tls`",
        ),
        (
            server(&format!(
                "{port}HTTP}}\nhosts: ['*']\ntls: {{mode: SIMPLE}}"
            )),
            "spec.servers[0].tls",
            "httpsRedirect",
        ),
        (
            server(&format!("{port}TCP}}\nhosts: ['*']\ntls: {{}}")),
            "spec.servers[0].tls",
            "no `tls`",
        ),
        (
            server(&format!(
                "{port}HTTPS}}\nhosts: ['*']\ntls: {{mode: SIMPLE}}"
            )),
            "spec.servers[0].tls.serverCertificate",
            "credentialName",
        ),
        (
            server(&format!(
                "{port}HTTPS}}\nhosts: ['*']\ntls: {{mode: MUTUAL, serverCertificate: a, privateKey: b}}"
            )),
            "spec.servers[0].tls.caCertificates",
            "MUTUAL",
        ),
        (
            server(&format!(
                "{port}TLS}}\nhosts: ['*']\ntls: {{mode: ISTIO_MUTUAL, privateKey: b}}"
            )),
            "spec.servers[0].tls",
            "own certificates",
        ),
        (
            server(&format!(
                "{port}HTTPS}}\nhosts: ['*']\ntls: {{minProtocolVersion: TLSV1_3, maxProtocolVersion: TLSV1_2}}"
            )),
            "spec.servers[0].tls.minProtocolVersion",
            "maxProtocolVersion",
        ),
        (
            format!(
                "{}\n{}",
                server("port: {number: 80, name: p, protocol: HTTP}\nhosts: ['*']"),
                "- {port: {number: 81, name: p, protocol: HTTP}, hosts: ['*']}"
            ),
            "spec.servers[1].port.name",
            "twice",
        ),
    ] {
        assert_refused("Gateway", &spec, field, part);
    }
}

const ROUTE: &str = "route: [{destination: {host: a.com}}]";

/// A VirtualService with one http rule.
fn http(rule: &str) -> String {
    format!("hosts: [a.com]\nhttp:\n- {}", rule.replace('\n', "\n  "))
}

#[test]
fn every_virtual_service_rule_refuses() {
    let rules = format!("http: [{{{ROUTE}}}]");
    for (spec, field, part) in [
        ("hosts: [a.com]".to_owned(), "spec", "at least one http"),
        (format!("hosts: ['*']\n{rules}"), "spec.hosts[0]", "mesh"),
        (
            format!("hosts: ['*.a.com', b.a.com]\n{rules}"),
            "spec.hosts[1]",
            "overlaps",
        ),
        (
            format!("hosts: ['a*.com']\n{rules}"),
            "spec.hosts[0]",
            "wildcard",
        ),
        (
            format!("hosts: [a.com]\ngateways: [a/b/c]\n{rules}"),
            "spec.gateways[0]",
            "not a gateway",
        ),
        (
            format!("hosts: [a.com]\n{rules}\nexportTo: ['~']"),
            "spec.exportTo[0]",
            "`~`",
        ),
        (
            format!("gateways: [a/b]\n{rules}"),
            "spec.gateways",
            "delegate",
        ),
        (http("name: x"), "spec.http[0]", "required"),
        (
            http(&format!("{ROUTE}\nredirect: {{uri: /x}}")),
            "spec.http[0].redirect",
            "excludes `route`",
        ),
        (
            http("redirect: {uri: /x}\nrewrite: {uri: /y}"),
            "spec.http[0].redirect",
            "excludes `rewrite`",
        ),
        (
            http("redirect: {uri: /x}\nfault: {abort: {httpStatus: 500}}"),
            "spec.http[0].redirect",
            "excludes `fault`",
        ),
        (
            http("redirect: {uri: /x}\ndirectResponse: {status: 200}"),
            "spec.http[0].redirect",
            "excludes `directResponse`",
        ),
        (
            http(&format!("{ROUTE}\ndirectResponse: {{status: 200}}")),
            "spec.http[0].directResponse",
            "excludes `route`",
        ),
        (
            http("redirect: {}"),
            "spec.http[0].redirect",
            "at least one",
        ),
        (
            http("redirect: {uri: /x, redirectCode: 305}"),
            "spec.http[0].redirect.redirectCode",
            "305",
        ),
        (
            http("redirect: {uri: /x, scheme: ftp}"),
            "spec.http[0].redirect.scheme",
            "ftp",
        ),
        (
            http("redirect: {port: 80, derivePort: FROM_REQUEST_PORT}"),
            "spec.http[0].redirect.derivePort",
            "excludes",
        ),
        (
            http("redirect: {prefixRewrite: /x}"),
            "spec.http[0].redirect.prefixRewrite",
            "uri prefix",
        ),
        (
            http("redirect: {uri: /x, prefixRewrite: /x}"),
            "spec.http[0].redirect.prefixRewrite",
            "excludes `uri`",
        ),
        (
            http("directResponse: {status: 199}"),
            "spec.http[0].directResponse.status",
            "200..600",
        ),
        (
            http("directResponse: {status: 200, body: {string: a, bytes: YQ==}}"),
            "spec.http[0].directResponse.body",
            "one of",
        ),
        (
            http("directResponse: {status: 200, body: {bytes: '*'}}"),
            "spec.http[0].directResponse.body.bytes",
            "base64",
        ),
        (
            http("route: [{}]"),
            "spec.http[0].route[0].destination",
            "required",
        ),
        (
            http("route: [{destination: {}}]"),
            "spec.http[0].route[0].destination.host",
            "required",
        ),
        (
            http("route: [{destination: {host: '*'}}]"),
            "spec.http[0].route[0].destination.host",
            "not a destination",
        ),
        (
            http("route: [{destination: {host: a.com, port: {number: 0}}}]"),
            "spec.http[0].route[0].destination.port.number",
            "1..65535",
        ),
        (
            http("route: [{destination: {host: a.com, subset: a_b}}]"),
            "spec.http[0].route[0].destination.subset",
            "subset",
        ),
        (
            http("route: [{destination: {host: a.com}}, {destination: {host: b.com}}]"),
            "spec.http[0].route",
            "weights",
        ),
        (
            http("route: [{destination: {host: a.com}, weight: -1}]"),
            "spec.http[0].route[0].weight",
            "negative",
        ),
        (
            http(&format!("{ROUTE}\ntimeout: 0s")),
            "spec.http[0].timeout",
            "at least 1ms",
        ),
        (
            http(&format!("{ROUTE}\ntimeout: 1500us")),
            "spec.http[0].timeout",
            "whole number",
        ),
        (
            http(&format!("{ROUTE}\ntimeout: 5")),
            "spec.http[0].timeout",
            "a duration such as",
        ),
        (
            http(&format!("{ROUTE}\nretries: {{attempts: -1}}")),
            "spec.http[0].retries.attempts",
            "negative",
        ),
        (
            http(&format!("{ROUTE}\nretries: {{attempts: 0, retryOn: 5xx}}")),
            "spec.http[0].retries.attempts",
            "disables",
        ),
        (
            http(&format!(
                "{ROUTE}\nretries: {{attempts: 1, retryOn: '5xx, reset'}}"
            )),
            "spec.http[0].retries.retryOn",
            "no blanks",
        ),
        (
            http(&format!("{ROUTE}\nretries: {{attempts: 1, retryOn: '99'}}")),
            "spec.http[0].retries.retryOn",
            "99",
        ),
        (
            http(&format!(
                "{ROUTE}\nretries: {{attempts: 1, perTryTimeout: 0s}}"
            )),
            "spec.http[0].retries.perTryTimeout",
            "1ms",
        ),
        (
            http(&format!("{ROUTE}\nrewrite: {{}}")),
            "spec.http[0].rewrite",
            "at least one",
        ),
        (
            http(&format!(
                "{ROUTE}\nrewrite: {{uri: /, uriRegexRewrite: {{match: a, rewrite: b}}}}"
            )),
            "spec.http[0].rewrite.uriRegexRewrite",
            "excludes",
        ),
        (
            http(&format!(
                "{ROUTE}\nrewrite: {{uriRegexRewrite: {{match: a, rewrite: '\\1'}}}}"
            )),
            "spec.http[0].rewrite.uriRegexRewrite.rewrite",
            "groups",
        ),
        (
            http(&format!(
                "{ROUTE}\nrewrite: {{authority: b.com}}\nheaders: {{request: {{set: {{Host: c.com}}}}}}"
            )),
            "spec.http[0].rewrite.authority",
            "Host",
        ),
        (
            http(&format!(
                "{ROUTE}\nheaders: {{request: {{set: {{'a b': c}}}}}}"
            )),
            "spec.http[0].headers.request.set[\"a b\"]",
            "header name",
        ),
        (
            http(&format!(
                "{ROUTE}\nheaders: {{request: {{add: {{a: '5%'}}}}}}"
            )),
            "spec.http[0].headers.request.add.a",
            "%%",
        ),
        (
            http(&format!(
                "{ROUTE}\nheaders: {{response: {{set: {{host: a}}}}}}"
            )),
            "spec.http[0].headers.response.set.host",
            "Host",
        ),
        (
            http(&format!(
                "{ROUTE}\nheaders: {{request: {{remove: [host]}}}}"
            )),
            "spec.http[0].headers.request.remove[0]",
            "Host",
        ),
        (
            http(&format!(
                "{ROUTE}\nheaders: {{request: {{remove: [':path']}}}}"
            )),
            "spec.http[0].headers.request.remove[0]",
            "pseudo",
        ),
        (
            http(&format!(
                "{ROUTE}\nmatch: [{{uri: {{exact: a, prefix: b}}}}]"
            )),
            "spec.http[0].match[0].uri",
            "one of",
        ),
        (
            http(&format!("{ROUTE}\nmatch: [{{method: {{prefix: ''}}}}]")),
            "spec.http[0].match[0].method.prefix",
            "empty",
        ),
        (
            http(&format!("{ROUTE}\nmatch: [{{uri: {{regex: ''}}}}]")),
            "spec.http[0].match[0].uri.regex",
            "empty",
        ),
        (
            http(&format!("{ROUTE}\nmatch: [{{uri: {{regex: 'a)(b'}}}}]")),
            "spec.http[0].match[0].uri.regex",
            "RE2",
        ),
        (
            http(&format!(
                "{ROUTE}\nmatch: [{{uri: {{regex: '{}'}}}}]",
                "a".repeat(1025)
            )),
            "spec.http[0].match[0].uri.regex",
            "1025",
        ),
        (
            http(&format!(
                "{ROUTE}\nmatch: [{{headers: {{'a b': {{exact: x}}}}}}]"
            )),
            "spec.http[0].match[0].headers[\"a b\"]",
            "header name",
        ),
        (
            http(&format!("{ROUTE}\nmatch: [{{headers: {{a: null}}}}]")),
            "spec.http[0].match[0].headers.a",
            "is empty (null)",
        ),
        (
            http(&format!("{ROUTE}\nmatch: [{{port: 65536}}]")),
            "spec.http[0].match[0].port",
            "1..65535",
        ),
        (
            http(&format!("{ROUTE}\nmatch: [{{sourceLabels: {{'a b': c}}}}]")),
            "spec.http[0].match[0].sourceLabels[\"a b\"]",
            "label",
        ),
        (
            http(&format!("{ROUTE}\nmatch: [{{sourceNamespace: A}}]")),
            "spec.http[0].match[0].sourceNamespace",
            "namespace",
        ),
        (
            http(&format!(
                "{ROUTE}\nmirror: {{host: b.com}}\nmirrors: [{{destination: {{host: b.com}}}}]"
            )),
            "spec.http[0].mirrors",
            "excludes",
        ),
        (
            http(&format!(
                "{ROUTE}\nmirrors: [{{destination: {{host: b.com}}, percentage: {{value: 101}}}}]"
            )),
            "spec.http[0].mirrors[0].percentage.value",
            "0.0001..100",
        ),
        (
            http(&format!("{ROUTE}\nfault: {{}}")),
            "spec.http[0].fault",
            "delay",
        ),
        (
            http(&format!("{ROUTE}\nfault: {{abort: {{httpStatus: 100}}}}")),
            "spec.http[0].fault.abort.httpStatus",
            "200..599",
        ),
        (
            http(&format!("{ROUTE}\nfault: {{delay: {{}}}}")),
            "spec.http[0].fault.delay",
            "fixedDelay",
        ),
        (
            http(&format!("{ROUTE}\ncorsPolicy: {{maxAge: 1500ms}}")),
            "spec.http[0].corsPolicy.maxAge",
            "whole number",
        ),
        (
            http(&format!("{ROUTE}\ndelegate: {{name: x}}")),
            "spec.http[0].delegate",
            "excludes",
        ),
        (
            format!("hosts: [a.com]\ntls: [{{{ROUTE}}}]"),
            "spec.tls[0].match",
            "sniHosts",
        ),
        (
            format!("hosts: [a.com]\ntls: [{{match: [{{}}], {ROUTE}}}]"),
            "spec.tls[0].match[0].sniHosts",
            "at least one",
        ),
        (
            format!("hosts: [a.com]\ntls: [{{match: [{{sniHosts: [b.com]}}], {ROUTE}}}]"),
            "spec.tls[0].match[0].sniHosts[0]",
            "lie inside",
        ),
        (
            "hosts: [a.com]\ntls: [{match: [{sniHosts: [a.com]}]}]".into(),
            "spec.tls[0].route",
            "at least one",
        ),
        (
            format!("hosts: [a.com]\ntcp: [{{match: [{{destinationSubnets: [x]}}], {ROUTE}}}]"),
            "spec.tcp[0].match[0].destinationSubnets[0]",
            "CIDR",
        ),
        (
            "hosts: [a.com]\ntcp: [{}]".into(),
            "spec.tcp[0].route",
            "at least one",
        ),
    ] {
        assert_refused("VirtualService", &spec, field, part);
    }
}

#[test]
fn destination_rules_and_sidecars_are_checked() {
    for (kind, spec, field, part) in [
        ("DestinationRule", "subsets: []", "spec.host", "required"),
        (
            "DestinationRule",
            "host: a.com\nsubsets: [{name: a}, {name: a}]",
            "spec.subsets[1].name",
            "twice",
        ),
        (
            "DestinationRule",
            "host: a.com\ntrafficPolicy: {tls: {mode: MUTUAL}}",
            "spec.trafficPolicy.tls.clientCertificate",
            "MUTUAL",
        ),
        (
            "DestinationRule",
            "host: a.com\ntrafficPolicy: {tls: {mode: ISTIO_MUTUAL, privateKey: x}}",
            "spec.trafficPolicy.tls.privateKey",
            "own certificates",
        ),
        (
            "DestinationRule",
            "host: a.com\ntrafficPolicy: {loadBalancer: {simple: RANDOM, consistentHash: {useSourceIp: true}}}",
            "spec.trafficPolicy.loadBalancer.consistentHash",
            "excludes",
        ),
        (
            "DestinationRule",
            "host: a.com\ntrafficPolicy: {portLevelSettings: [{}]}",
            "spec.trafficPolicy.portLevelSettings[0].port",
            "required",
        ),
        (
            "DestinationRule",
            "host: a.com\ntrafficPolicy: {tunnel: {targetHost: a.com, targetPort: 0}}",
            "spec.trafficPolicy.tunnel.targetPort",
            "1..65535",
        ),
        (
            "DestinationRule",
            "host: a.com\ntrafficPolicy: {connectionPool: {}}",
            "spec.trafficPolicy.connectionPool",
            "tcp",
        ),
        (
            "DestinationRule",
            "host: a.com\ntrafficPolicy: {tls: {mod: SIMPLE}}",
            "spec.trafficPolicy.tls.mod",
            "unknown field",
        ),
        (
            "Sidecar",
            "egress: [{}]",
            "spec.egress[0].hosts",
            "at least one",
        ),
        (
            "Sidecar",
            "egress: [{hosts: [a.com]}]",
            "spec.egress[0].hosts[0]",
            "NAMESPACE/HOST",
        ),
        (
            "Sidecar",
            "egress: [{hosts: [./short]}]",
            "spec.egress[0].hosts[0]",
            "short name",
        ),
        (
            "Sidecar",
            "outboundTrafficPolicy: {egressProxy: {host: a.com}}",
            "spec.outboundTrafficPolicy.egressProxy",
            "ALLOW_ANY",
        ),
    ] {
        assert_refused(kind, spec, field, part);
    }
}

#[test]
fn what_has_no_data_path_is_a_warning() {
    for (kind, spec, field) in [
        ("DestinationRule", "host: a.com\ntrafficPolicy: {loadBalancer: {simple: RANDOM}}".to_owned(), "spec.trafficPolicy.loadBalancer"),
        ("DestinationRule", "host: a.com\ntrafficPolicy: {tls: {mode: SIMPLE}}".into(), "spec.trafficPolicy.tls"),
        ("Sidecar", "egress: [{bind: 127.0.0.1, hosts: ['./*', '~/*', '~x/*.a.com']}]".into(), "spec.egress[0].bind"),
        ("VirtualService", http(&format!("{ROUTE}\nretries: {{attempts: 1, retryRemoteLocalities: true}}")), "spec.http[0].retries.retryRemoteLocalities"),
        ("VirtualService", http(&format!("{ROUTE}\nheaders: {{request: {{set: {{a: '%HOSTNAME%'}}}}}}")), "spec.http[0].headers.request.set.a"),
        ("VirtualService", http(&format!("{ROUTE}\nmatch: [{{statPrefix: x}}]")), "spec.http[0].match[0].statPrefix"),
        ("VirtualService", http(&format!("{ROUTE}\nmatch: [{{headers: {{'@request.auth.claims.a': {{exact: x}}}}}}]")), "spec.http[0].match[0].headers[\"@request.auth.claims.a\"]"),
        ("VirtualService", format!("hosts: [a.com]\ntcp: [{{match: [{{sourceSubnet: 10.0.0.0/8}}], {ROUTE}}}]"), "spec.tcp[0].match[0].sourceSubnet"),
        ("ServiceEntry", format!("{SE}workloadSelector: {{labels: {{a: b}}}}"), "spec.workloadSelector"),
        ("Gateway", "servers: [{port: {number: 443, name: p, protocol: HTTPS}, hosts: ['*'], tls: {mode: SIMPLE, credentialName: c}}]".into(), "spec.servers[0].tls.mode"),
        ("Gateway", "servers: [{port: {number: 80, name: p, protocol: HTTP}, hosts: ['*'], tls: {httpsRedirect: true}}]".into(), "spec.servers[0].tls.httpsRedirect"),
    ] {
        assert_warned(kind, &spec, field, " yet");
    }
}

#[test]
fn warnings_load_the_object() {
    for (kind, spec, field, part) in [
        (
            "VirtualService",
            format!("hosts: [a.com]\ngateways: [gw.other.svc.cluster.local]\nhttp: [{{{ROUTE}}}]"),
            "spec.gateways[0]",
            "write `other/gw`",
        ),
        (
            "VirtualService",
            format!("hosts: [a.com]\nhttp: [{{{ROUTE}}}, {{{ROUTE}}}]"),
            "spec.http[1]",
            "IST0130",
        ),
        (
            "VirtualService",
            http(&format!("{ROUTE}\nmatch: [{{gateways: [other]}}]")),
            "spec.http[0].match[0].gateways[0]",
            "IST0131",
        ),
        (
            "VirtualService",
            http(&format!(
                "{ROUTE}\nmatch: [{{headers: {{method: {{exact: GET}}}}}}]"
            )),
            "spec.http[0].match[0].headers.method",
            "match.method",
        ),
        (
            "VirtualService",
            format!("hosts: [a.com]\ngateways: [ns/none]\nhttp: [{{{ROUTE}}}]"),
            "spec.gateways[0]",
            "no Gateway ns/none",
        ),
        (
            "VirtualService",
            http(ROUTE),
            "spec.http[0].route[0].destination.host",
            "IST0101",
        ),
        (
            "ServiceEntry",
            "hosts: ['*x.com']\nports: [{number: 80, name: a, protocol: HTTP}]".into(),
            "spec.hosts[0]",
            "partial",
        ),
        (
            "ServiceEntry",
            "hosts: [x.com]\nports: [{number: 80, name: a, protocol: TCP}]".into(),
            "spec.ports[0]",
            "IST0134",
        ),
        (
            "ServiceEntry",
            format!("{SE}resolution: STATIC"),
            "spec.resolution",
            "without endpoints",
        ),
    ] {
        assert_warned(kind, &spec, field, part);
    }
}

#[test]
fn objects_are_checked_against_each_other() {
    let second = SCENARIO
        .replace("name: vs\n", "name: vs2\n")
        .replace("name: httpbin-ext\n", "name: httpbin-tls\n")
        .replace(
            "protocol: HTTP\n  resolution",
            "protocol: TLS\n  resolution",
        )
        .replace("name: istio-egressgateway\n", "name: gw2\n")
        .replace("- istio-egressgateway\n", "- gw2\n")
        .replace("    - httpbin.org\n---", "    - other.org\n---");
    let second = second.rsplit_once("---").unwrap().0;
    let loaded = loaded(format!("{SCENARIO}---\n{second}"));
    let warnings = findings(&loaded, Severity::Warning);
    for (field, part) in [
        ("spec.hosts[0]", "IST0109"),
        ("spec.hosts[0]", "IST0132"),
        ("spec.ports[0].protocol", "IST0177"),
    ] {
        assert!(
            warnings.iter().any(|(f, m)| f == field && m.contains(part)),
            "{field} {part}: {warnings:#?}"
        );
    }
    assert_eq!(warnings.len(), 3, "{warnings:#?}");
}

#[test]
fn names_are_resolved_in_the_objects_namespace() {
    let loaded = loaded(object(
        "VirtualService",
        "hosts: [reviews]\ngateways: [./gw, other/gw]\nexportTo: ['.']\nhttp: [{route: [{destination: {host: Ratings}}]}]",
    ));
    let vs = &loaded.objects.virtual_services[0];
    let reviews = HostPattern::Exact("reviews.ns.svc.cluster.local".into());
    assert_eq!(vs.hosts, [reviews]);
    assert_eq!(vs.export_to, ExportTo::Namespaces(vec!["ns".into()]));
    let named = |namespace: &str| GatewayName::Named {
        namespace: namespace.into(),
        name: "gw".into(),
    };
    assert_eq!(vs.gateways, [named("ns"), named("other")]);
    let HttpAction::Route(route) = &vs.http[0].action else {
        panic!("{:?}", vs.http[0].action);
    };
    assert_eq!(route[0].host, "ratings.ns.svc.cluster.local");
}

#[test]
fn a_rule_whose_conditions_are_unsupported_never_matches() {
    let loaded = loaded(object(
        "VirtualService",
        &format!(
            "hosts: [a.com]\nhttp:\n- match: [{{headers: {{'@request.auth.claims.a': {{exact: x}}}}}}]\n  {ROUTE}\ntcp:\n- match: [{{sourceSubnet: 10.0.0.0/8}}]\n  {ROUTE}"
        ),
    ));
    let vs = &loaded.objects.virtual_services[0];
    assert!(vs.http.is_empty() && vs.tcp.is_empty());
}

#[test]
fn headers_say_who_a_document_is() {
    for (text, severity, field, part) in [
        ("a: b\n", Severity::Error, "kind", "missing"),
        (
            "kind: ServiceEntry\n",
            Severity::Error,
            "apiVersion",
            "missing",
        ),
        (
            "apiVersion: networking.istio.io/v2\nkind: Gateway\nmetadata: {name: a}\n",
            Severity::Error,
            "apiVersion",
            "v1alpha3",
        ),
        (
            "apiVersion: v1\nkind: Gateway\nmetadata: {name: a}\n",
            Severity::Error,
            "apiVersion",
            "networking.istio.io/v1",
        ),
        (
            "apiVersion: networking.istio.io/v1\nkind: Gatway\nmetadata: {name: a}\n",
            Severity::Error,
            "kind",
            "Gatway",
        ),
        (
            "apiVersion: networking.istio.io/v1\nkind: Gateway\nspec: {}\n",
            Severity::Error,
            "metadata",
            "missing",
        ),
        (
            "apiVersion: networking.istio.io/v1\nkind: Gateway\nmetadata: {name: a}\n",
            Severity::Error,
            "spec",
            "missing",
        ),
        (
            "apiVersion: networking.istio.io/v1\nkind: Gateway\nmetadata: {name: A}\nspec: {servers: []}\n",
            Severity::Error,
            "metadata.name",
            "lower-case",
        ),
        (
            "apiVersion: networking.istio.io/v1\nkind: Gateway\nmetadata: {name: 5}\nspec: {servers: []}\n",
            Severity::Error,
            "metadata.name",
            "text",
        ),
        (
            "apiVersion: networking.istio.io/v1\nkind: Gateway\nmetadata: {name: a, hosts: []}\nspec: {servers: []}\n",
            Severity::Error,
            "metadata.hosts",
            "unknown field",
        ),
        (
            "apiVersion: networking.istio.io/v1\nkind: Gateway\nmetadata: {name: a}\nspecs: {}\n",
            Severity::Error,
            "specs",
            "unknown field",
        ),
        ("[1, 2]\n", Severity::Error, "", "apiVersion, kind"),
        (
            "apiVersion: apps/v1\nkind: Deployment\nmetadata: {name: a}\n",
            Severity::Warning,
            "",
            "kind Deployment is not used",
        ),
        (
            "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {name: a}\n",
            Severity::Warning,
            "",
            "not in effect",
        ),
        (
            "apiVersion: networking.istio.io/v1alpha3\nkind: EnvoyFilter\nmetadata: {name: a}\n",
            Severity::Warning,
            "",
            "not in effect",
        ),
        (
            "apiVersion: gateway.networking.k8s.io/v1\nkind: Gateway\nmetadata: {name: a}\n",
            Severity::Warning,
            "",
            "not in effect",
        ),
    ] {
        let loaded = loaded(text);
        let found = findings(&loaded, severity);
        assert!(
            found.iter().any(|(f, m)| f == field && m.contains(part)),
            "{text}{found:#?}"
        );
        let accepted = severity == Severity::Warning;
        assert_eq!(loaded.documents[0].accepted(), accepted, "{text}");
    }
}

#[test]
fn lost_indentation_is_named() {
    let flat: String = SCENARIO
        .lines()
        .map(|line| format!("{}\n", line.trim_start()))
        .collect();
    let numbered: String = SCENARIO
        .split("---\n")
        .next()
        .unwrap()
        .lines()
        .zip(1..)
        .map(|(line, number)| format!("{number}. {}\n", line.trim_start()))
        .collect();
    let glued = numbered.replace(". ", "");
    for (text, part) in [
        (flat, "indentation is lost"),
        (numbered, "list numbers"),
        (glued, "list numbers"),
    ] {
        let loaded = loaded(&text);
        for document in &loaded.documents {
            assert!(!document.accepted());
            assert_eq!(document.findings.len(), 1, "{:#?}", document.findings);
            assert!(document.findings[0].message.contains(part), "{text}");
            assert!(document.findings[0].message.contains("spec:"));
        }
        assert_eq!(loaded.documents[0].kind, "ServiceEntry");
        assert_eq!(loaded.documents[0].origin.name, "httpbin-ext");
    }
}

#[test]
fn hostile_text_is_refused_in_bounded_time() {
    let laughs = {
        let mut text = String::from("a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n");
        for level in 1..12 {
            let inner = format!("*a{}, ", level - 1).repeat(10);
            text.push_str(&format!("a{level}: &a{level} [{inner}]\n"));
        }
        text
    };
    for (content, part) in [
        (laughs.into_bytes(), "is not valid YAML"),
        ("[".repeat(100_000).into_bytes(), "is not valid YAML"),
        (
            object("ServiceEntry", "hosts: [a.com]\nhosts: [b.com]").into_bytes(),
            "duplicate",
        ),
        (
            b"kind: ServiceEntry\nmetadata: \xff\n".to_vec(),
            "not UTF-8",
        ),
        (b"a: b: c\n".to_vec(), "is not valid YAML"),
    ] {
        let directory = Directory::new();
        directory.write("bad.yaml", &content);
        directory.write("good.yaml", SCENARIO);
        let started = std::time::Instant::now();
        let loaded = load(&directory.settings()).unwrap();
        assert!(started.elapsed() < Duration::from_secs(10));
        let errors = findings(&loaded, Severity::Error);
        assert_eq!(errors.len(), 1, "{errors:#?}");
        assert!(errors[0].1.contains(part), "{errors:#?}");
        assert!(!errors[0].1.contains("at line"), "{errors:#?}");
        assert_eq!(loaded.objects.services.len(), 2);
    }
}

#[test]
fn a_broken_document_does_not_hide_the_others() {
    let loaded = loaded(format!(
        "{SCENARIO}---\nfoo: [\n---\n{}",
        object("ServiceEntry", SE)
    ));
    assert_eq!(loaded.objects.services.len(), 3);
    assert_eq!(findings(&loaded, Severity::Error).len(), 1);
}

#[test]
fn byte_order_mark_and_crlf_are_read() {
    let text = format!("\u{feff}{}", SCENARIO.replace('\n', "\r\n"));
    let loaded = loaded(text);
    assert_eq!(render_text(&loaded), "");
    assert_eq!(loaded.objects.services.len(), 2);
}

#[test]
fn lists_are_expanded_and_doubles_refused() {
    let item = object("ServiceEntry", SE).replace('\n', "\n  ");
    let loaded = loaded(format!(
        "apiVersion: v1\nkind: List\nitems:\n- {item}\n- {item}\n"
    ));
    assert_eq!(loaded.objects.services.len(), 1);
    let errors = findings(&loaded, Severity::Error);
    assert!(errors[0].1.contains("defined twice"), "{errors:?}");
    assert_eq!(loaded.documents[0].origin.line, 4);
    assert!(loaded.documents[1].origin.line > 5);
}

#[test]
fn reports_have_the_shape_of_the_contract() {
    let directory = Directory::new();
    let file = directory.write(
        "a.yaml",
        format!(
            "# one\n---\n{}",
            object(
                "ServiceEntry",
                "hosts: [a.com]\nports:\n- number: 0\n  name: a"
            )
        ),
    );
    let loaded = load(&directory.settings()).unwrap();
    assert_eq!(
        render_text(&loaded),
        format!(
            "{}:11: error: ServiceEntry ns/x: spec.ports[0].number: port number 0 must be in the range 1..65535\n",
            file.display()
        )
    );
    let json: serde_json::Value = serde_json::from_str(&render_json(&loaded)).unwrap();
    let document = &json["documents"][0];
    assert_eq!(document["file"], file.to_str().unwrap());
    assert_eq!(document["line"], 3);
    assert_eq!(document["kind"], "ServiceEntry");
    assert_eq!(document["namespace"], "ns");
    assert_eq!(document["name"], "x");
    assert_eq!(document["accepted"], false);
    assert_eq!(document["findings"][0]["severity"], "error");
    assert_eq!(document["findings"][0]["field"], "spec.ports[0].number");
}

#[test]
fn a_missing_path_is_an_environment_error() {
    let mut settings = Directory::new().settings();
    settings.paths = vec!["/nonexistent/x.yaml".into()];
    assert!(matches!(
        load(&settings),
        Err(ConfigError::Unreadable { .. })
    ));
}

#[test]
fn mesh_configuration_comes_in_three_forms() {
    let bare =
        "outboundTrafficPolicy:\n  mode: REGISTRY_ONLY\nconnectTimeout: 3s\nenableTracing: true\n";
    let indent = |text: &str, by: &str| -> String {
        text.lines().map(|line| format!("{by}{line}\n")).collect()
    };
    let operator = format!(
        "kind: IstioOperator\nspec:\n  meshConfig:\n{}",
        indent(bare, "    ")
    );
    let config_map = format!(
        "kind: ConfigMap\ndata:\n  mesh: |\n{}",
        indent(bare, "    ")
    );
    for text in [bare.to_owned(), operator, config_map] {
        let (mesh, problems) = super::mesh::parse(Path::new("mesh.yaml"), &text);
        let mesh = mesh.unwrap();
        assert_eq!(mesh.routing.outbound, OutboundPolicy::RegistryOnly);
        assert_eq!(mesh.routing.connect_timeout, Duration::from_secs(3));
        assert_eq!(problems.len(), 1, "{problems:?}");
        assert!(problems[0].field.ends_with("enableTracing"));
        assert_eq!(problems[0].severity, Severity::Warning);
    }
    for (text, field) in [
        (
            "outboundTrafficPolicy: {mode: REGISTRY}",
            "outboundTrafficPolicy.mode",
        ),
        (
            "outboundTrafficPolicy: {mod: ALLOW_ANY}",
            "outboundTrafficPolicy.mod",
        ),
        (
            "outboundTrafficPolicy: {mode: ALLOW_ANY_DYNAMIC_DNS}",
            "outboundTrafficPolicy.mode",
        ),
        ("outboundTrafficPolicy:", "outboundTrafficPolicy"),
        ("connectTimeout: 0s", "connectTimeout"),
        ("accessLogEncoding: XML", "accessLogEncoding"),
        ("rootNamespace: A", "rootNamespace"),
        (
            "defaultHttpRetryPolicy: {attempts: -1}",
            "defaultHttpRetryPolicy.attempts",
        ),
        ("defaultServiceExportTo: ['*', a]", "defaultServiceExportTo"),
        ("kind: Service", ""),
        ("[]", ""),
        ("", ""),
    ] {
        let (mesh, problems) = super::mesh::parse(Path::new("mesh.yaml"), text);
        assert!(mesh.is_none(), "{text}");
        assert_eq!(problems[0].field, field, "{text}");
    }
    let (mesh, _) = super::mesh::parse(Path::new("mesh.yaml"), "outboundTrafficPolicy: {}");
    assert_eq!(mesh.unwrap().routing.outbound, OutboundPolicy::RegistryOnly);
}

#[test]
fn proxy_metadata_names_the_hosts_that_learn_who_is_calling() {
    let text = "defaultConfig:\n  proxyMetadata:\n    ISTIO_META_DNS_CAPTURE: 'true'\n    \
                EGRESS_PROXY_PROTOCOL_TO: ' Gw.istio-system.svc.cluster.local., b.test,'\n";
    let (mesh, problems) = super::mesh::parse(Path::new("mesh.yaml"), text);
    let hosts = mesh.unwrap().routing.proxy_protocol_to;
    assert_eq!(hosts, ["gw.istio-system.svc.cluster.local", "b.test"]);
    assert_eq!(problems.len(), 1, "{problems:?}");
    let field = "defaultConfig.proxyMetadata.ISTIO_META_DNS_CAPTURE";
    assert_eq!(problems[0].field, field);
    assert_eq!(problems[0].severity, Severity::Warning);
    for value in ["'*.test'", "a_b", "[a.test]", "10.0.0.1"] {
        let text =
            format!("defaultConfig: {{proxyMetadata: {{EGRESS_PROXY_PROTOCOL_TO: {value}}}}}");
        let (mesh, problems) = super::mesh::parse(Path::new("mesh.yaml"), &text);
        assert!(mesh.is_none(), "{value}");
        let field = "defaultConfig.proxyMetadata.EGRESS_PROXY_PROTOCOL_TO";
        assert_eq!(problems[0].field, field, "{value}");
    }
}

/// A configuration that is being followed.
struct Following {
    snapshots: watch::Receiver<Arc<Snapshot>>,
    reload: mpsc::Sender<()>,
    _stop: tokio_util::sync::DropGuard,
}

impl Following {
    fn new(settings: ConfigSettings) -> Self {
        let (reload, receiver) = mpsc::channel(1);
        let stop = CancellationToken::new();
        let snapshots = start(settings, receiver, stop.clone()).unwrap();
        Self {
            snapshots,
            reload,
            _stop: stop.drop_guard(),
        }
    }

    async fn next(&mut self) -> Arc<Snapshot> {
        tokio::time::timeout(Duration::from_secs(5), self.snapshots.changed())
            .await
            .expect("no snapshot within 5 s")
            .unwrap();
        Arc::clone(&self.snapshots.borrow_and_update())
    }
}

fn hosts(snapshot: &Snapshot) -> Vec<String> {
    let services = &snapshot.table.objects().services;
    services
        .iter()
        .map(|service| match &service.host {
            HostPattern::Exact(host) => host.clone(),
            other => format!("{other:?}"),
        })
        .collect()
}

fn entry(name: &str, host: &str) -> String {
    object("ServiceEntry", &SE.replace("a.com", host)).replace("name: x", &format!("name: {name}"))
}

#[tokio::test]
async fn a_change_is_applied_within_a_second_and_files_may_be_replaced() {
    let directory = Directory::new();
    directory.write("a.yaml", entry("a", "a.com"));
    let mut following = Following::new(directory.settings());
    assert_eq!(hosts(&following.snapshots.borrow()), ["a.com"]);
    let started = std::time::Instant::now();
    // As an editor does it: a new file takes the old one's name.
    let new = directory.write("a.yaml.tmp", entry("a", "b.com"));
    fs::rename(new, directory.0.join("a.yaml")).unwrap();
    assert_eq!(hosts(&*following.next().await), ["b.com"]);
    assert!(started.elapsed() < Duration::from_secs(1));
    directory.write("sub/dir/c.yml", entry("c", "c.com"));
    assert_eq!(hosts(&*following.next().await), ["b.com", "c.com"]);
    directory.write("sub/dir/c.yml", entry("c", "d.com"));
    assert_eq!(hosts(&*following.next().await), ["b.com", "d.com"]);
    fs::remove_file(directory.0.join("a.yaml")).unwrap();
    let last = following.next().await;
    assert_eq!(hosts(&last), ["d.com"]);
    assert_eq!(last.version, 5);
}

#[tokio::test]
async fn a_config_maps_link_swap_is_seen() {
    let directory = Directory::new();
    let (mounted, old, new) = ("mounted", "mounted/..1", "mounted/..2");
    directory.write(&format!("{old}/a.yaml"), entry("a", "a.com"));
    let root = directory.0.join(mounted);
    std::os::unix::fs::symlink("..1", root.join("..data")).unwrap();
    std::os::unix::fs::symlink("..data/a.yaml", root.join("a.yaml")).unwrap();
    for named in [root.clone(), root.join("a.yaml")] {
        let mut settings = directory.settings();
        settings.paths = vec![named];
        let mut following = Following::new(settings);
        assert_eq!(hosts(&following.snapshots.borrow()), ["a.com"]);
        directory.write(&format!("{new}/a.yaml"), entry("a", "b.com"));
        std::os::unix::fs::symlink("..2", root.join("..data_tmp")).unwrap();
        fs::rename(root.join("..data_tmp"), root.join("..data")).unwrap();
        assert_eq!(hosts(&*following.next().await), ["b.com"]);
        std::os::unix::fs::symlink("..1", root.join("..data_tmp")).unwrap();
        fs::rename(root.join("..data_tmp"), root.join("..data")).unwrap();
        assert_eq!(hosts(&*following.next().await), ["a.com"]);
    }
}

#[tokio::test]
async fn a_bad_edit_keeps_the_last_good_object_and_applies_the_rest() {
    let directory = Directory::new();
    let two = |a: &str, b: &str| format!("{a}---\n{b}");
    let (a, b) = (entry("a", "a.com"), entry("b", "b.com"));
    directory.write("x.yaml", two(&a, &b));
    let mut following = Following::new(directory.settings());
    assert_eq!(hosts(&following.snapshots.borrow()), ["a.com", "b.com"]);
    for (case, a, errors) in [
        ("bad value", a.replace("number: 80", "number: 0"), 1),
        ("unknown field", a.replace("hosts:", "host:"), 1),
        (
            "half written",
            a[..a.find("ports").unwrap() + 8].to_owned(),
            1,
        ),
        (
            "broken YAML",
            a.replace("hosts: [a.com]", "hosts: [a.com"),
            1,
        ),
        ("nothing left of it", "[".to_owned(), 1),
    ] {
        directory.write(
            "x.yaml",
            two(
                &format!("{a}\n"),
                &entry("b", &format!("{}.com", case.len())),
            ),
        );
        let snapshot = following.next().await;
        let expected = ["a.com".to_owned(), format!("{}.com", case.len())];
        assert_eq!(hosts(&snapshot), expected, "{case}");
        assert_eq!(
            snapshot.problems.len(),
            errors,
            "{case}: {:?}",
            snapshot.problems
        );
    }
    directory.write("x.yaml", b"\xff\xff");
    let snapshot = following.next().await;
    assert_eq!(hosts(&snapshot).len(), 2, "not UTF-8");
    directory.write("x.yaml", &b);
    let snapshot = following.next().await;
    assert_eq!(
        hosts(&snapshot),
        ["b.com"],
        "a deleted document is a deleted object"
    );
    assert_eq!(snapshot.problems, []);
}

#[tokio::test]
async fn a_named_file_that_is_gone_keeps_its_objects() {
    let directory = Directory::new();
    let file = directory.write("x.yaml", entry("a", "a.com"));
    let mut settings = directory.settings();
    settings.paths = vec![file.clone()];
    let mut following = Following::new(settings);
    fs::remove_file(file).unwrap();
    let snapshot = following.next().await;
    assert_eq!(hosts(&snapshot), ["a.com"]);
    assert!(snapshot.problems[0].message.contains("cannot be read"));
}

#[tokio::test]
async fn equal_content_is_not_published_and_reload_is_heeded() {
    let directory = Directory::new();
    directory.write("x.yaml", entry("a", "a.com"));
    let mesh = directory.write("mesh/mesh.conf", "connectTimeout: 1s\n");
    let mut settings = directory.settings();
    settings.mesh_config = Some(mesh);
    let mut following = Following::new(settings);
    assert_eq!(following.snapshots.borrow().version, 1);
    directory.write("x.yaml", entry("a", "a.com"));
    // A message is taken only when the work of the one before it is done.
    for _ in 0..3 {
        following.reload.send(()).await.unwrap();
    }
    assert!(!following.snapshots.has_changed().unwrap());
    directory.write("mesh/mesh.conf", "connectTimeout: 2s\n");
    let snapshot = following.next().await;
    assert_eq!(snapshot.version, 2);
    assert_eq!(
        snapshot.mesh.routing.connect_timeout,
        Duration::from_secs(2)
    );
    directory.write("mesh/mesh.conf", "connectTimeout: x\n");
    let snapshot = following.next().await;
    assert_eq!(
        snapshot.mesh.routing.connect_timeout,
        Duration::from_secs(2)
    );
    assert_eq!(snapshot.problems.len(), 1);
}

#[tokio::test]
async fn a_bad_mesh_configuration_stops_the_start() {
    let directory = Directory::new();
    let mut settings = directory.settings();
    settings.mesh_config = Some(directory.write("mesh.conf", "outboundTrafficPolicy: {mode: X}"));
    let (_reload, receiver) = mpsc::channel(1);
    let error = start(settings, receiver, CancellationToken::new()).unwrap_err();
    assert!(matches!(error, ConfigError::MeshConfig { .. }));
}
