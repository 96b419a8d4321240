// SPDX-License-Identifier: Apache-2.0
//! The live state as JSON: `/config_dump`, `/problems`, `/dns`, `/workloads`.
//!
//! Shows what is in effect, with the file and line of each object; it is no YAML to load again.

use serde_json::{Value, json};

use super::state::AdminState;
use crate::{
    config::{
        mesh::{AccessLogEncoding, MeshConfig},
        problem::Problem,
        snapshot::Snapshot,
    },
    routing::{
        destination_rule::{DestinationRule, Http2Upgrade, Policy, Settings},
        gateway::{Gateway, GatewayName, ServerTlsMode},
        host::HostPattern,
        service::{EndpointAddress, ExportTo, Origin, Service},
        sidecar::{Import, ImportFrom, Sidecar},
        table::{Objects, OutboundPolicy},
        virtual_service::{HttpAction, RouteDestination, TcpRule, VirtualService},
    },
    upstream::resolve::AddressBook,
};

/// `/config_dump`.
pub fn config(state: &AdminState) -> Value {
    let snapshot = state.snapshot.borrow().clone();
    let mut dump = objects(snapshot.table.objects());
    dump["version"] = json!(snapshot.version);
    dump["mesh"] = mesh(&snapshot.mesh);
    dump["addresses"] = addresses(&state.book.borrow());
    dump["problems"] = problems(&snapshot);
    dump
}

/// The objects in effect, by kind.
pub fn objects(objects: &Objects) -> Value {
    let all = |values: &mut dyn Iterator<Item = Value>| Value::Array(values.collect());
    json!({
        "services": all(&mut objects.services.iter().map(|object| service(object))),
        "gateways": all(&mut objects.gateways.iter().map(|object| gateway(object))),
        "virtual_services":
            all(&mut objects.virtual_services.iter().map(|object| virtual_service(object))),
        "destination_rules":
            all(&mut objects.destination_rules.iter().map(|object| destination_rule(object))),
        "sidecars": all(&mut objects.sidecars.iter().map(|object| sidecar(object))),
    })
}

/// `/problems`: in the form of `egress validate -o json`, with the place.
pub fn problems(snapshot: &Snapshot) -> Value {
    let one = |problem: &Problem| {
        json!({
            "severity": problem.severity,
            "file": problem.file.display().to_string(),
            "line": problem.line,
            "kind": problem.kind,
            "namespace": problem.namespace,
            "name": problem.name,
            "field": problem.field,
            "message": problem.message,
        })
    };
    snapshot.problems.iter().map(one).collect()
}

/// `/dns`: by name, sorted.
pub fn addresses(book: &AddressBook) -> Value {
    let one = |(name, resolved): (&str, &crate::upstream::resolve::Resolved)| {
        let entry = json!({
            "addresses": &*resolved.addresses,
            "retired": &*resolved.retired,
            "error": resolved.error.as_deref(),
        });
        (name.to_owned(), entry)
    };
    Value::Object(book.iter().map(one).collect())
}

/// `/workloads`.
pub fn workloads(state: &AdminState) -> Value {
    Value::Array((state.workloads)())
}

fn mesh(mesh: &MeshConfig) -> Value {
    json!({
        "outboundTrafficPolicy": match mesh.routing.outbound {
            OutboundPolicy::AllowAny => "ALLOW_ANY",
            OutboundPolicy::RegistryOnly => "REGISTRY_ONLY",
        },
        "rootNamespace": mesh.routing.root_namespace,
        "connectTimeout": duration(mesh.routing.connect_timeout),
        "accessLogEncoding": match mesh.access_log_encoding {
            AccessLogEncoding::Text => "TEXT",
            AccessLogEncoding::Json => "JSON",
        },
        "accessLogFormat": mesh.access_log_format,
        "dnsRefreshRate": duration(mesh.dns_refresh_rate),
    })
}

fn service(service: &Service) -> Value {
    let ports = service.ports.iter().map(|port| {
        json!({
            "number": port.number,
            "name": port.name,
            "protocol": format!("{:?}", port.protocol).to_uppercase(),
            "targetPort": port.target_port,
        })
    });
    let endpoints = service.endpoints.iter().map(|endpoint| {
        json!({
            "address": match &endpoint.address {
                EndpointAddress::Ip(ip) => ip.to_string(),
                EndpointAddress::Name(name) => name.clone(),
                EndpointAddress::Unix(path) => format!("unix://{}", path.display()),
            },
            "ports": endpoint.ports,
            "labels": endpoint.labels,
            "weight": endpoint.weight,
            "locality": endpoint.locality,
        })
    });
    json!({
        "origin": origin(&service.origin),
        "host": host(&service.host),
        "addresses": service.addresses.iter().map(ToString::to_string).collect::<Vec<_>>(),
        "ports": ports.collect::<Vec<_>>(),
        "location": format!("{:?}", service.location),
        "resolution": format!("{:?}", service.resolution),
        "endpoints": endpoints.collect::<Vec<_>>(),
        "exportTo": export_to(&service.export_to),
    })
}

fn gateway(gateway: &Gateway) -> Value {
    let servers = gateway.servers.iter().map(|server| {
        let hosts = server.hosts.iter().map(|server| {
            let namespace = server.namespace.as_deref().unwrap_or("*");
            format!("{namespace}/{}", host(&server.host))
        });
        json!({
            "port": server.port,
            "name": server.port_name,
            "protocol": format!("{:?}", server.protocol).to_uppercase(),
            "bind": server.bind,
            "hosts": hosts.collect::<Vec<_>>(),
            "tls": server.tls.as_ref().map(|tls| json!({
                "mode": match tls.mode {
                    ServerTlsMode::Passthrough => "PASSTHROUGH",
                    ServerTlsMode::Simple => "SIMPLE",
                    ServerTlsMode::Mutual => "MUTUAL",
                    ServerTlsMode::OptionalMutual => "OPTIONAL_MUTUAL",
                    ServerTlsMode::IstioMutual => "ISTIO_MUTUAL",
                    ServerTlsMode::AutoPassthrough => "AUTO_PASSTHROUGH",
                },
                "httpsRedirect": tls.https_redirect,
            })),
        })
    });
    json!({
        "origin": origin(&gateway.origin),
        "selector": gateway.selector,
        "servers": servers.collect::<Vec<_>>(),
    })
}

fn virtual_service(object: &VirtualService) -> Value {
    let http = object.http.iter().map(|rule| {
        json!({
            "name": rule.name,
            "matches": rule.matches.len(),
            "action": match &rule.action {
                HttpAction::Route(destinations) => json!({"route": route(destinations)}),
                HttpAction::Redirect(redirect) => json!({"redirect": redirect.status}),
                HttpAction::DirectResponse { status, .. } => json!({"directResponse": status}),
                HttpAction::Delegate(to) => {
                    json!({"delegate": format!("{}/{}", to.namespace, to.name)})
                }
            },
            "timeout": rule.timeout.map(duration),
        })
    });
    let opaque = |rules: &[TcpRule]| -> Vec<Value> {
        let one = |rule: &TcpRule| {
            json!({
                "matches": rule.matches.len(),
                "sniHosts": rule.matches.iter().flat_map(|m| &m.sni_hosts).map(host)
                    .collect::<Vec<_>>(),
                "route": route(&rule.route),
            })
        };
        rules.iter().map(one).collect()
    };
    let gateways = object.gateways.iter().map(|gateway| match gateway {
        GatewayName::Mesh => "mesh".to_owned(),
        GatewayName::Named { namespace, name } => format!("{namespace}/{name}"),
    });
    json!({
        "origin": origin(&object.origin),
        "hosts": object.hosts.iter().map(host).collect::<Vec<_>>(),
        "gateways": gateways.collect::<Vec<_>>(),
        "exportTo": export_to(&object.export_to),
        "http": http.collect::<Vec<_>>(),
        "tls": opaque(&object.tls),
        "tcp": opaque(&object.tcp),
    })
}

fn route(destinations: &[RouteDestination]) -> Vec<Value> {
    let one = |destination: &RouteDestination| {
        json!({
            "host": destination.host,
            "port": destination.port,
            "subset": destination.subset,
            "weight": destination.weight,
        })
    };
    destinations.iter().map(one).collect()
}

fn origin(origin: &Origin) -> Value {
    json!({
        "kind": origin.kind,
        "namespace": origin.namespace,
        "name": origin.name,
        "file": origin.file.display().to_string(),
        "line": origin.line,
    })
}

fn host(host: &HostPattern) -> String {
    match host {
        HostPattern::Exact(name) => name.clone(),
        HostPattern::Suffix(suffix) => format!("*{suffix}"),
        HostPattern::Any => "*".to_owned(),
    }
}

fn export_to(export_to: &ExportTo) -> Vec<String> {
    match export_to {
        ExportTo::All => vec!["*".to_owned()],
        ExportTo::Namespaces(namespaces) => namespaces.clone(),
        ExportTo::Nobody => vec!["~".to_owned()],
    }
}

/// `1.5s`, as protobuf's JSON writes durations.
fn duration(duration: std::time::Duration) -> String {
    format!("{}s", duration.as_secs_f64())
}

fn destination_rule(object: &DestinationRule) -> Value {
    let settings = |settings: &Settings| {
        let pool = settings.pool.as_ref();
        json!({
            "connectTimeout": pool.and_then(|pool| pool.connect_timeout).map(duration),
            "h2UpgradePolicy": pool.map(|pool| match pool.http2 {
                Http2Upgrade::Default => "DEFAULT",
                Http2Upgrade::DoNotUpgrade => "DO_NOT_UPGRADE",
                Http2Upgrade::Upgrade => "UPGRADE",
            }),
            "useClientProtocol": pool.map(|pool| pool.as_client),
            "tls": settings.tls,
        })
    };
    let policy = |policy: &Policy| {
        let ports = policy.ports.iter();
        json!({
            "settings": settings(&policy.settings),
            "ports": ports.map(|(port, of)| json!({"port": port, "settings": settings(of)}))
                .collect::<Vec<_>>(),
        })
    };
    let subsets = object.subsets.iter().map(|subset| {
        json!({
            "name": subset.name,
            "labels": subset.labels,
            "policy": subset.policy.as_ref().map(policy),
        })
    });
    json!({
        "origin": origin(&object.origin),
        "host": host(&object.host),
        "exportTo": export_to(&object.export_to),
        "policy": object.policy.as_ref().map(policy),
        "subsets": subsets.collect::<Vec<_>>(),
    })
}

fn sidecar(object: &Sidecar) -> Value {
    let import = |import: &Import| {
        let namespace = match &import.namespace {
            ImportFrom::Any => "*",
            ImportFrom::Caller => ".",
            ImportFrom::Named(name) => name,
        };
        let exclude = if import.exclude { "~" } else { "" };
        format!("{exclude}{namespace}/{}", import.host)
    };
    let egress = object.egress.iter().map(|listener| {
        let hosts: Vec<_> = listener.hosts.iter().map(import).collect();
        json!({ "port": listener.port, "hosts": hosts })
    });
    let outbound = object.outbound.as_ref().map(|outbound| {
        json!({
            "mode": match outbound.mode {
                OutboundPolicy::AllowAny => "ALLOW_ANY",
                OutboundPolicy::RegistryOnly => "REGISTRY_ONLY",
            },
            "egressProxy": outbound.proxy.as_ref()
                .map(|to| json!({"host": to.host, "port": to.port, "subset": to.subset})),
        })
    });
    json!({
        "origin": origin(&object.origin),
        "selector": object.selector,
        "egress": egress.collect::<Vec<_>>(),
        "outboundTrafficPolicy": outbound,
    })
}
