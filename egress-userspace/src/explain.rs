// SPDX-License-Identifier: Apache-2.0
//! `egress explain`: a request in the contract's JSON to the decision in the contract's JSON. Asks
//! the very function that the proxy asks; there is no second implementation.

use std::{
    collections::BTreeMap,
    fmt::Write,
    net::{IpAddr, SocketAddr},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use http::{HeaderMap, HeaderName, HeaderValue, Method};
use serde::Deserialize;
use serde_json::{Map, Value, json};

use crate::{
    routing::{
        decision::{
            Action, Decision, Destination, Endpoints, Forward, Request, Route, Step, Traffic, Why,
        },
        header_text::{Facts, HeaderText},
        retry::RetryPolicy,
        service::EndpointAddress,
        table::{Objects, Role, Table},
        virtual_service::{Abort, Fault, HeaderEdit, Share},
    },
    workload::Workload,
};

/// A request as the contract writes it; absent keys are unknown.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ExplainRequest {
    /// `mesh` (default) or `gateway`.
    pub role: Option<String>,
    /// `ns/name` of the Gateway.
    pub gateway: Option<String>,
    /// Labels of the gateway workload; absent: the named Gateway's selector.
    pub gateway_labels: Option<BTreeMap<String, String>>,
    /// The caller.
    pub source: Option<ExplainSource>,
    /// Original destination port or server port.
    pub port: Option<u16>,
    /// `http` (default), `tls` or `tcp`.
    pub protocol: Option<String>,
    /// Method; GET when absent.
    pub method: Option<String>,
    /// Host as sent.
    pub host: Option<String>,
    /// Path with query; `/` when absent.
    pub path: Option<String>,
    /// Request headers.
    pub headers: BTreeMap<String, String>,
    /// Server name.
    pub sni: Option<String>,
    /// Original destination address.
    pub dst_ip: Option<IpAddr>,
}

/// The caller as the contract writes it.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ExplainSource {
    /// Namespace.
    pub namespace: String,
    /// Labels.
    pub labels: BTreeMap<String, String>,
    /// Service account.
    pub service_account: String,
    /// Name, for the steps only: no rule matches on it.
    pub name: String,
}

impl ExplainSource {
    /// Who the caller is, as the first step says it.
    fn step(&self) -> Step {
        let mut text = match (self.namespace.as_str(), self.name.as_str()) {
            ("", "") => "caller of unknown name and namespace".to_owned(),
            ("", name) => format!("caller {name}"),
            (namespace, "") => format!("caller of namespace {namespace}"),
            (namespace, name) => format!("caller {namespace}/{name}"),
        };
        let labels = self
            .labels
            .iter()
            .map(|(key, value)| format!("{key}={value}"));
        let labels = labels.collect::<Vec<_>>().join(",");
        let mut more = Vec::new();
        if !labels.is_empty() {
            more.push(format!("labels {labels}"));
        }
        if !self.service_account.is_empty() {
            more.push(format!("service account {}", self.service_account));
        }
        if !more.is_empty() {
            let _ = write!(text, " ({})", more.join(", "));
        }
        Step::plain(text)
    }
}

/// A request cannot be explained.
#[derive(Debug, thiserror::Error)]
pub enum ExplainError {
    /// The JSON is wrong.
    #[error("not a request")]
    Json {
        /// Why.
        #[from]
        source: serde_json::Error,
    },
    /// A field has a value that cannot be.
    #[error("{field}: {message}")]
    Field {
        /// Which.
        field: &'static str,
        /// Why.
        message: String,
    },
}

/// A decision with its steps.
#[derive(Debug)]
pub struct Explanation {
    /// In the contract's shape.
    pub json: Value,
    /// With the objects they speak of.
    pub steps: Vec<Step>,
}

/// Explains requests against one configuration; tables are compiled once for each proxy asked
/// about.
#[derive(Debug)]
pub struct Explainer {
    objects: Objects,
    tables: Mutex<Vec<(Role, Arc<Table>)>>,
}

impl Explainer {
    /// Over the objects of a configuration.
    pub fn new(objects: Objects) -> Self {
        Self {
            objects,
            tables: Mutex::default(),
        }
    }

    /// Explains one line of JSON; what is wrong with it becomes the answer, so that a batch keeps
    /// its order.
    pub fn line(&self, line: &str) -> Value {
        let explained = serde_json::from_str(line)
            .map_err(ExplainError::from)
            .and_then(|request| self.explain(&request));
        match explained {
            Ok(explanation) => explanation.json,
            Err(error) => {
                let cause = std::error::Error::source(&error);
                let cause = cause.map_or_else(String::new, |cause| format!(": {cause}"));
                json!({ "error": format!("{error}{cause}") })
            }
        }
    }

    /// Explains one request.
    ///
    /// # Errors
    /// When a field cannot be.
    pub fn explain(&self, request: &ExplainRequest) -> Result<Explanation, ExplainError> {
        let table = self.table(self.role(request)?);
        let source = request.source.as_ref().map(|source| Workload {
            namespace: source.namespace.clone(),
            name: source.name.clone(),
            labels: source.labels.clone(),
            service_account: source.service_account.clone(),
        });
        let protocol = request.protocol.as_deref().unwrap_or("http");
        let method = request.method.as_deref().unwrap_or("GET");
        let method = Method::from_bytes(method.as_bytes())
            .map_err(|_| field("method", format!("`{method}` is no method")))?;
        let headers = headers(&request.headers)?;
        let host = request.host.as_deref().unwrap_or_default();
        let path = request.path.as_deref().unwrap_or("/");
        let traffic = match protocol {
            "http" => Traffic::Http {
                method: &method,
                scheme: "http",
                host,
                path,
                headers: &headers,
            },
            "tls" => Traffic::Tls {
                sni: request.sni.as_deref().or(request.host.as_deref()),
            },
            "tcp" => Traffic::Tcp,
            other => {
                return Err(field(
                    "protocol",
                    format!("`{other}` is not http, tls or tcp"),
                ));
            }
        };
        let names: Vec<String> = request.host.iter().cloned().collect();
        let question = Request {
            source: source.as_ref(),
            port: request
                .port
                .unwrap_or(if protocol == "tls" { 443 } else { 80 }),
            destination_ip: request.dst_ip.or_else(|| unknown_address(protocol, host)),
            names_of_ip: &names,
            traffic,
        };
        let mut why = Why::on();
        if let Some(source) = &request.source {
            why.step(|| source.step());
        }
        let decision = table.decide(&question, 0, &mut why);
        let steps = why.into_steps();
        let json = render(&decision, &question, request, &headers, &steps);
        Ok(Explanation { json, steps })
    }

    fn role(&self, request: &ExplainRequest) -> Result<Role, ExplainError> {
        let gateway = request.gateway.as_deref().filter(|g| *g != "mesh");
        match request.role.as_deref() {
            Some("mesh") => return Ok(Role::Mesh),
            Some("gateway") => {}
            None if gateway.is_none() => return Ok(Role::Mesh),
            None => {}
            Some(other) => {
                return Err(field(
                    "role",
                    format!("`{other}` is neither mesh nor gateway"),
                ));
            }
        }
        let only = match gateway {
            Some(text) => Some(text.split_once('/').ok_or_else(|| {
                field(
                    "gateway",
                    format!("`{text}` is not of the form namespace/name"),
                )
            })?),
            None => None,
        };
        let object = only.and_then(|(namespace, name)| {
            self.objects
                .gateways
                .iter()
                .find(|g| g.origin.namespace == namespace && g.origin.name == name)
        });
        if let (Some((namespace, name)), None) = (only, object) {
            return Err(field(
                "gateway",
                format!("there is no Gateway {namespace}/{name}"),
            ));
        }
        let labels = match (&request.gateway_labels, object) {
            (Some(labels), _) => labels.clone(),
            (None, Some(gateway)) => gateway.selector.clone(),
            (None, None) => BTreeMap::new(),
        };
        Ok(Role::Gateway {
            namespace: self.objects.mesh.root_namespace.clone(),
            labels,
            only: only.map(|(namespace, name)| (namespace.to_owned(), name.to_owned())),
        })
    }

    fn table(&self, role: Role) -> Arc<Table> {
        let mut tables = self.tables.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((_, table)) = tables.iter().find(|(have, _)| *have == role) {
            return table.clone();
        }
        let table = Arc::new(Table::build(self.objects.clone(), role.clone()));
        tables.push((role, table.clone()));
        table
    }
}

/// TCP by name without an address: the unspecified address stands for "whatever it resolves to".
fn unknown_address(protocol: &str, host: &str) -> Option<IpAddr> {
    (protocol == "tcp" && !host.is_empty()).then_some(IpAddr::from([0, 0, 0, 0]))
}

fn field(field: &'static str, message: String) -> ExplainError {
    ExplainError::Field { field, message }
}

fn headers(written: &BTreeMap<String, String>) -> Result<HeaderMap, ExplainError> {
    let mut headers = HeaderMap::new();
    for (name, value) in written {
        let bad = || field("headers", format!("`{name}: {value}` is no header"));
        let header = HeaderName::from_bytes(name.as_bytes()).map_err(|_| bad())?;
        headers.append(header, HeaderValue::from_str(value).map_err(|_| bad())?);
    }
    Ok(headers)
}

/// Go's way of writing a duration, in the largest unit that is exact: `5s`, `100ms`.
fn duration(duration: Duration) -> String {
    match duration.subsec_nanos() {
        0 => format!("{}s", duration.as_secs()),
        nanos if nanos % 1_000_000 == 0 => format!("{}ms", duration.as_millis()),
        _ => format!("{}us", duration.as_micros()),
    }
}

fn render(
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
