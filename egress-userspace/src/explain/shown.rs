// SPDX-License-Identifier: Apache-2.0
//! A decision as `egress explain` shows it: the contract's JSON, and the text made from that.

use std::{collections::BTreeMap, fmt::Write, net::SocketAddr, time::Duration};

use http::{HeaderMap, HeaderValue};
use serde_json::{Map, Value, json};

use super::{ExplainRequest, Explanation};
use crate::routing::{
    decision::{Action, Decision, Destination, Endpoints, Forward, Request, Route, Step, Traffic},
    header_text::{Facts, HeaderText},
    retry::RetryPolicy,
    service::EndpointAddress,
    virtual_service::{Abort, Fault, HeaderEdit, Share},
};

/// Go's way of writing a duration, in the largest unit that is exact: `5s`, `100ms`.
fn duration(duration: Duration) -> String {
    match duration.subsec_nanos() {
        0 => format!("{}s", duration.as_secs()),
        nanos if nanos % 1_000_000 == 0 => format!("{}ms", duration.as_millis()),
        _ => format!("{}us", duration.as_micros()),
    }
}

/// The decision in the contract's JSON.
pub(super) fn render(
    decision: &Decision,
    question: &Request<'_>,
    request: &ExplainRequest,
    headers: &HeaderMap,
    steps: &[Step],
) -> Value {
    let http = matches!(question.traffic, Traffic::Http { .. });
    let mut out = Map::new();
    let mut set = |key: &str, value: Value| {
        out.insert(key.to_owned(), value);
    };
    match &decision.action {
        Action::Forward(forward) => {
            set("action", json!("forward"));
            for (key, value) in forwarded(forward, question, request, headers) {
                set(&key, value);
            }
        }
        Action::Passthrough => {
            set("action", json!("passthrough"));
            set("cluster", json!("PassthroughCluster"));
            if let Some(ip) = request.dst_ip {
                set(
                    "upstream",
                    json!(SocketAddr::new(ip, question.port).to_string()),
                );
            }
        }
        Action::Blackhole => {
            set("action", json!("blackhole"));
            set("cluster", json!("BlackHoleCluster"));
            if http {
                set("status", json!(502));
                set("detail", json!("direct_response"));
            } else {
                set("response_flag", json!("UH"));
            }
        }
        Action::DirectResponse {
            status,
            body,
            headers,
        } => {
            set("action", json!("direct_response"));
            set("status", json!(status));
            set("body", json!(String::from_utf8_lossy(body)));
            set("detail", json!("direct_response"));
            set("response_headers", edits([&headers.response], None));
        }
        Action::Redirect {
            status,
            location,
            headers,
        } => {
            set("action", json!("redirect"));
            set("status", json!(status));
            set("location", json!(location));
            set("detail", json!("direct_response"));
            set("response_headers", edits([&headers.response], None));
        }
        Action::NoRoute => {
            set("action", json!("no_route"));
            set("status", json!(404));
            set("response_flag", json!("NR"));
            set("detail", json!("route_not_found"));
        }
        Action::Close => {
            set("action", json!("close"));
            set("response_flag", json!("NR"));
        }
        Action::ClusterNotFound { cluster } => {
            set("action", json!("no_route"));
            set("cluster", json!(cluster.as_ref()));
            set("response_flag", json!("NC"));
            set("detail", json!("cluster_not_found"));
            if http {
                set("status", json!(503));
            }
        }
    }
    if let Some(fault) = decision.before.as_ref().and_then(|b| b.fault.as_ref()) {
        for (key, value) in injected(fault) {
            set(key, value);
        }
    }
    if !decision.route_name.is_empty() {
        set("route_name", json!(decision.route_name.as_ref()));
    }
    if let Some(name) = &decision.virtual_service {
        set("virtual_service", json!(name.as_ref()));
    }
    set(
        "why",
        json!(
            steps
                .iter()
                .map(|step| step.text.as_ref())
                .collect::<Vec<_>>()
        ),
    );
    Value::Object(out)
}

/// A fault: as the action when it hits every request, else beside the action.
fn injected(fault: &Fault) -> Vec<(&'static str, Value)> {
    let share = |share: Share| share.as_percent() / 100.0;
    let delay = fault
        .delay
        .map(|(delay, hits)| json!({ "delay": duration(delay), "share": share(hits) }));
    let abort = fault.abort.map(|(abort, hits)| {
        let (name, status) = match abort {
            Abort::Http(status) => ("status", status),
            Abort::Grpc(status) => ("grpc_status", u16::from(status)),
        };
        (name, status, hits)
    });
    let mut out = Vec::new();
    if let Some((name, status, Share::ALL)) = abort {
        out.push(("action", json!("fault_abort")));
        out.push((name, json!(status)));
        out.push(("response_flag", json!("FI")));
        out.push(("detail", json!("fault_filter_abort")));
    }
    let abort = abort.map(|(name, status, hits)| json!({ name: status, "share": share(hits) }));
    out.push(("fault", json!({ "delay": delay, "abort": abort })));
    out
}

fn forwarded(
    forward: &Forward,
    question: &Request<'_>,
    request: &ExplainRequest,
    headers: &HeaderMap,
) -> Map<String, Value> {
    let route = &forward.route;
    let chosen = &route.destinations[forward.chosen];
    let destination = &forward.destination;
    let client = question.namespace();
    let mut out = Map::new();
    let mut set = |key: &str, value: Value| {
        out.insert(key.to_owned(), value);
    };
    let sharing: Vec<_> = route.destinations.iter().filter(|d| d.weight > 0).collect();
    if sharing.len() > 1 {
        let split = sharing.iter().map(|d| {
            let mut share = named(d.destination.on_behalf_of(client));
            share["share"] = json!(f64::from(d.weight) / f64::from(route.total_weight));
            share
        });
        set("split", split.collect());
    } else {
        set("destination", named(destination));
    }
    set("cluster", json!(destination.cluster.as_ref()));
    set(
        "connect_timeout",
        json!(duration(destination.connect_timeout)),
    );
    set("load_balancer", json!("LEAST_REQUEST"));
    set("upstream_tls", Value::Null);
    let mirrors = route.mirrors.iter().map(|mirror| {
        let mut shown = named(mirror.destination.on_behalf_of(client));
        shown["share"] = json!(mirror.share.as_percent() / 100.0);
        shown
    });
    set("mirrors", mirrors.collect());
    match question.traffic {
        Traffic::Http { host, path, .. } => {
            let authority = forward.authority.as_deref().unwrap_or(host);
            let path = forward.path.as_deref().unwrap_or(path);
            set("rewrite", json!({ "authority": authority, "path": path }));
            let request_edits = [&route.headers.request, &chosen.headers.request];
            set("upstream_headers", edits(request_edits, Some(headers)));
            let response_edits = [&route.headers.response, &chosen.headers.response];
            set("response_headers", edits(response_edits, None));
            set("timeout", route.timeout.map(duration).into());
            set(
                "retries",
                route.retries.as_ref().map_or(Value::Null, retries),
            );
        }
        Traffic::Tls { .. } => set("tls", json!("untouched")),
        Traffic::Tcp => {}
    }
    for (key, value) in where_to(route, destination, question, request) {
        set(key, value);
    }
    out
}

fn named(destination: &Destination) -> Value {
    let subset = (!destination.subset.is_empty()).then_some(&destination.subset);
    json!({ "host": destination.host, "port": destination.port, "subset": subset })
}

fn retries(policy: &RetryPolicy) -> Value {
    json!({
        "attempts": policy.attempts,
        "per_try_timeout": policy.per_try_timeout.map(duration),
        "retry_on": policy.retry_on.names().collect::<Vec<_>>(),
        "retriable_status_codes": policy.retriable_status_codes,
    })
}

fn where_to(
    _route: &Route,
    destination: &Destination,
    question: &Request<'_>,
    request: &ExplainRequest,
) -> Vec<(&'static str, Value)> {
    match &destination.endpoints {
        Endpoints::OriginalDestination { port } => match request.dst_ip {
            Some(ip) => {
                let address = SocketAddr::new(ip, port.unwrap_or(question.port));
                vec![("upstream", json!(address.to_string()))]
            }
            None => Vec::new(),
        },
        Endpoints::List(list) => {
            let mut out = Vec::new();
            let name = list.iter().find_map(|target| match &target.address {
                EndpointAddress::Name(name) => Some(name),
                _ => None,
            });
            out.extend(name.map(|name| ("resolve_name", json!(name))));
            let addresses: Vec<_> = list
                .iter()
                .filter_map(|target| match &target.address {
                    EndpointAddress::Ip(ip) => Some(SocketAddr::new(*ip, target.port).to_string()),
                    EndpointAddress::Unix(path) => Some(format!("unix://{}", path.display())),
                    EndpointAddress::Name(_) => None,
                })
                .collect();
            if !addresses.is_empty() {
                out.push(("endpoints", json!(addresses)));
            }
            out
        }
        Endpoints::Missing | Endpoints::FromRequest { .. } => Vec::new(),
    }
}

/// Net effect of edits in order: name → values, or null for removed. `sent` are the request's
/// fields: what an `add` joins and commands stand for. What is not known stays a command.
fn edits<'a>(list: impl IntoIterator<Item = &'a HeaderEdit>, sent: Option<&HeaderMap>) -> Value {
    let mut effect: BTreeMap<String, Option<Vec<String>>> = BTreeMap::new();
    let text = |value: &HeaderValue| String::from_utf8_lossy(value.as_bytes()).into_owned();
    let facts = Facts {
        request: sent,
        ..Facts::default()
    };
    let made = |value: &HeaderText| match value {
        HeaderText::Fixed(value) => text(value),
        pattern => match pattern.value(&facts) {
            Some(value) if pattern.wants_request() => text(&value),
            _ => pattern.to_string(),
        },
    };
    for edit in list {
        for name in &edit.remove {
            effect.insert(name.to_string(), None);
        }
        for (name, value) in &edit.set {
            effect.insert(name.to_string(), Some(vec![made(value)]));
        }
        for (name, value) in &edit.add {
            let before = || {
                sent.map(|h| h.get_all(name).iter().map(text).collect())
                    .unwrap_or_default()
            };
            let slot = effect
                .entry(name.to_string())
                .or_insert_with(|| Some(before()));
            slot.get_or_insert_with(Vec::new).push(made(value));
        }
    }
    json!(effect)
}

/// The text form: the decision's fields, then the steps with file and line of each object.
pub fn render_text(explanation: &Explanation) -> String {
    let mut text = String::new();
    if let Value::Object(fields) = &explanation.json {
        for (key, value) in fields.iter().filter(|(key, _)| *key != "why") {
            let empty = value.is_null()
                || value.as_array().is_some_and(Vec::is_empty)
                || value.as_object().is_some_and(Map::is_empty);
            if !empty {
                let shown = value
                    .as_str()
                    .map_or_else(|| value.to_string(), str::to_owned);
                let _ = writeln!(text, "{key:>18}  {shown}");
            }
        }
    }
    text.push_str("why:\n");
    for (index, step) in explanation.steps.iter().enumerate() {
        let place = step.origin.as_ref().map_or_else(String::new, |origin| {
            format!("  [{}:{}]", origin.file.display(), origin.line)
        });
        let _ = writeln!(text, "  {}. {}{place}", index + 1, step.text);
    }
    text
}
