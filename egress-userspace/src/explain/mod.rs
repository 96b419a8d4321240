// SPDX-License-Identifier: Apache-2.0
//! `egress explain`: a request in the contract's JSON to the decision in the contract's JSON. Asks
//! the very function that the proxy asks; there is no second implementation.

mod shown;

use std::{
    collections::BTreeMap,
    fmt::Write,
    net::IpAddr,
    sync::{Arc, Mutex, PoisonError},
};

use http::{HeaderMap, HeaderName, HeaderValue, Method};
use serde::Deserialize;
use serde_json::{Value, json};

use crate::{
    routing::{
        decision::{Request, Step, Traffic, Why},
        table::{Objects, Role, Table},
    },
    workload::Workload,
};

use shown::render;
pub use shown::render_text;

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
