// SPDX-License-Identifier: Apache-2.0
//! Rules of VirtualServices compiled for one proxy: conditions that the proxy itself settles are
//! gone, destinations are looked up, names are made. Matching a request is what is left.

use std::{
    borrow::Cow,
    collections::{BTreeMap, HashMap},
    sync::Arc,
};

use super::{
    decision::{Before, Destination, MirrorTo, Request, Route, Traffic, WeightedDestination},
    gateway::GatewayName,
    matching::StringMatch,
    registry::Registry,
    retry::{RetryOn, RetryPolicy},
    service::Origin,
    table::MeshDefaults,
    virtual_service::{
        HeaderOperations, HttpAction, HttpMatch, HttpRule, Mirror, Redirect, RouteDestination,
        TcpMatch, TcpRule, VirtualService,
    },
};

/// A VirtualService compiled for one proxy.
#[derive(Debug)]
pub struct CompiledService {
    /// The object.
    pub source: Arc<VirtualService>,
    /// `ns/name`.
    pub name: Arc<str>,
    /// In order; rules behind a catch-all are gone.
    pub http: Vec<CompiledRule>,
    /// In order.
    pub tls: Vec<CompiledTcpRule>,
    /// In order.
    pub tcp: Vec<CompiledTcpRule>,
}

/// An HTTP rule.
#[derive(Debug)]
pub struct CompiledRule {
    /// Position in `spec.http`.
    pub index: usize,
    /// The rule.
    pub rule: HttpRule,
    /// One for each match block, or one when there is none: Istio's route name (row 5a.10).
    names: Vec<Arc<str>>,
    /// What comes before the action.
    pub before: Option<Arc<Before>>,
    /// What to do.
    pub action: CompiledAction,
    /// Conditions hold for every request (row 5.7).
    pub catch_all: bool,
}

/// What a compiled HTTP rule does.
#[derive(Debug)]
pub enum CompiledAction {
    /// Forward.
    Route(RouteByPort),
    /// Redirect.
    Redirect(Redirect, Arc<HeaderOperations>),
    /// Answer.
    DirectResponse(u16, bytes::Bytes, Arc<HeaderOperations>),
}

/// A TLS or TCP rule.
#[derive(Debug)]
pub struct CompiledTcpRule {
    /// Position in `spec.tls` or `spec.tcp`.
    pub index: usize,
    /// The rule's conditions.
    pub matches: Vec<TcpMatch>,
    /// Where to.
    pub route: RouteByPort,
}

/// A route whose destinations may leave the port to the listener.
#[derive(Debug)]
pub enum RouteByPort {
    /// The same on every port.
    Same(Arc<Route>),
    /// By listener port; ports that no service declares lead to the fallback.
    Each(HashMap<u16, Arc<Route>>, Arc<Route>),
}

impl RouteByPort {
    /// The route for a listener port.
    pub fn on(&self, port: u16) -> &Arc<Route> {
        match self {
            Self::Same(route) => route,
            Self::Each(routes, fallback) => routes.get(&port).unwrap_or(fallback),
        }
    }
}

/// The proxy for which rules are compiled.
#[derive(Debug, Clone, Copy)]
pub struct For<'a> {
    /// The gateways it plays: `[Mesh]`, or the Gateways that select it.
    pub gateways: &'a [GatewayName],
}

/// Compiles VirtualServices, sharing destinations among them.
pub struct Compiler<'a> {
    registry: &'a Registry,
    mesh: &'a MeshDefaults,
    destinations: HashMap<DestinationKey, Arc<Destination>>,
}

/// Host, port and subset as written, and the listener port when the port is left to it.
type DestinationKey = (String, Option<u16>, Option<String>, u16);

impl<'a> Compiler<'a> {
    /// A compiler over a registry.
    pub fn new(registry: &'a Registry, mesh: &'a MeshDefaults) -> Self {
        Self {
            registry,
            mesh,
            destinations: HashMap::new(),
        }
    }

    /// Compiles one VirtualService.
    pub fn compile(&mut self, source: &Arc<VirtualService>, proxy: For<'_>) -> CompiledService {
        let origin = &source.origin;
        let mut http = Vec::with_capacity(source.http.len());
        for (index, rule) in source.http.iter().enumerate() {
            let rule = bound_rule(rule, proxy);
            let Some(rule) = rule else { continue };
            let catch_all = is_catch_all(&rule);
            http.push(CompiledRule {
                index,
                names: route_names(&rule),
                before: before(&rule),
                action: self.action(&rule, origin),
                rule,
                catch_all,
            });
            if catch_all {
                break;
            }
        }
        CompiledService {
            name: format!("{}/{}", origin.namespace, origin.name).into(),
            http,
            tls: self.tcp_rules(&source.tls, origin, proxy),
            tcp: self.tcp_rules(&source.tcp, origin, proxy),
            source: source.clone(),
        }
    }

    fn tcp_rules(
        &mut self,
        rules: &[TcpRule],
        origin: &Origin,
        proxy: For<'_>,
    ) -> Vec<CompiledTcpRule> {
        let mut compiled = Vec::with_capacity(rules.len());
        for (index, rule) in rules.iter().enumerate() {
            let matches: Vec<_> = rule
                .matches
                .iter()
                .filter(|m| plays(&m.gateways, proxy))
                .cloned()
                .collect();
            if matches.is_empty() && !rule.matches.is_empty() {
                continue;
            }
            let route = self.route(&rule.route, &[], origin, |destinations, _, total_weight| {
                Route {
                    destinations,
                    total_weight,
                    timeout: None,
                    retries: None,
                    headers: HeaderOperations::default(),
                    mirrors: Vec::new(),
                }
            });
            compiled.push(CompiledTcpRule {
                index,
                matches,
                route,
            });
        }
        compiled
    }

    fn action(&mut self, rule: &HttpRule, origin: &Origin) -> CompiledAction {
        match &rule.action {
            HttpAction::Route(destinations) => {
                let retries = self.retries(rule.retries.as_ref());
                let make = |destinations, mirrors, total_weight| Route {
                    destinations,
                    total_weight,
                    timeout: rule.timeout,
                    retries: retries.clone(),
                    headers: rule.headers.clone(),
                    mirrors,
                };
                CompiledAction::Route(self.route(destinations, &rule.mirrors, origin, make))
            }
            HttpAction::Redirect(redirect) => {
                CompiledAction::Redirect(redirect.clone(), Arc::new(rule.headers.clone()))
            }
            HttpAction::DirectResponse { status, body } => CompiledAction::DirectResponse(
                *status,
                body.clone().into(),
                Arc::new(rule.headers.clone()),
            ),
        }
    }

    /// The retry policy in effect; `None`: no retries (`attempts: 0`).
    pub fn retries(&self, rule: Option<&RetryPolicy>) -> Option<RetryPolicy> {
        let mut policy = rule
            .or(self.mesh.retries.as_ref())
            .cloned()
            .unwrap_or_default();
        if policy.retry_on.is_empty() && policy.retriable_status_codes.is_empty() {
            policy.retry_on = RetryOn::DEFAULT;
        }
        (policy.attempts > 0).then_some(policy)
    }

    /// Builds the route for every listener port that matters.
    fn route(
        &mut self,
        written: &[RouteDestination],
        mirrors: &[Mirror],
        origin: &Origin,
        make: impl Fn(Vec<WeightedDestination>, Vec<MirrorTo>, u32) -> Route,
    ) -> RouteByPort {
        let all = || written.iter().chain(mirrors.iter().map(|m| &m.destination));
        let ports = self.open_ports(all());
        let on = |compiler: &mut Self, port: u16| {
            let single = written.len() == 1;
            let destinations: Vec<_> = written
                .iter()
                .map(|d| WeightedDestination {
                    weight: if single { 1 } else { d.weight },
                    destination: compiler.destination(d, port, &origin.namespace),
                    headers: d.headers.clone(),
                })
                .collect();
            let mirrors = mirrors
                .iter()
                .map(|m| MirrorTo {
                    destination: compiler.destination(&m.destination, port, &origin.namespace),
                    share: m.share,
                })
                .collect();
            let total = destinations.iter().map(|d| d.weight).sum();
            Arc::new(make(destinations, mirrors, total))
        };
        if ports.is_empty() {
            RouteByPort::Same(on(self, 0))
        } else {
            let routes = ports
                .into_iter()
                .map(|port| (port, on(self, port)))
                .collect();
            RouteByPort::Each(routes, on(self, 0))
        }
    }

    /// Listener ports that a destination without port may follow; empty when all are settled.
    fn open_ports<'w>(&self, written: impl Iterator<Item = &'w RouteDestination>) -> Vec<u16> {
        let mut ports: Vec<u16> = written
            .filter(|d| d.port.is_none())
            .flat_map(|d| self.registry.ports_of(&d.host))
            .collect();
        ports.sort_unstable();
        ports.dedup();
        if ports.len() > 1 { ports } else { Vec::new() }
    }

    fn destination(
        &mut self,
        written: &RouteDestination,
        listener_port: u16,
        namespace: &str,
    ) -> Arc<Destination> {
        let settled = if written.port.is_some() {
            0
        } else {
            listener_port
        };
        let key = (
            written.host.clone(),
            written.port,
            written.subset.clone(),
            settled,
        );
        let registry = self.registry;
        self.destinations
            .entry(key)
            .or_insert_with(|| {
                Arc::new(registry.destination(
                    &written.host,
                    written.port,
                    written.subset.as_deref(),
                    listener_port,
                    namespace,
                ))
            })
            .clone()
    }
}

impl CompiledRule {
    /// Whether the conditions that do not change from request to request of one client on one port
    /// hold: port and source (row 5.8). Gateways are settled when compiling.
    pub fn survives(&self, request: &Request<'_>) -> bool {
        self.rule.matches.is_empty() || self.rule.matches.iter().any(|m| static_match(m, request))
    }

    /// The first match block that holds, and its route name. `None` inside: a rule without blocks.
    pub fn matches(&self, request: &Request<'_>) -> Option<(Option<&HttpMatch>, &Arc<str>)> {
        if self.rule.matches.is_empty() {
            return self.names.first().map(|name| (None, name));
        }
        self.rule
            .matches
            .iter()
            .zip(&self.names)
            .find(|(block, _)| static_match(block, request) && dynamic_match(block, request))
            .map(|(block, name)| (Some(block), name))
    }
}

impl CompiledTcpRule {
    /// Whether a connection matches; all conditions of a block are AND-ed (row 5c.2).
    pub fn matches(&self, request: &Request<'_>, sni: Option<&str>) -> bool {
        self.matches.is_empty()
            || self.matches.iter().any(|m| {
                let sni_fits = m.sni_hosts.is_empty()
                    || sni.is_some_and(|name| m.sni_hosts.iter().any(|h| h.matches(name)));
                let subnet_fits = m.destination_subnets.is_empty()
                    || request.destination_ip.is_none_or(|ip| {
                        m.destination_subnets
                            .iter()
                            .any(|n| n.contains(&ip.to_canonical()))
                    });
                sni_fits
                    && subnet_fits
                    && m.port.is_none_or(|port| port == request.port)
                    && source_match(&m.source_labels, &m.source_namespace, request)
            })
    }
}

/// Keys under `headers` that have a field of their own.
const PSEUDO_HEADERS: [&str; 4] = ["uri", "scheme", "method", "authority"];

/// The rule without match blocks that name other gateways; `None` when nothing is left.
fn bound_rule(rule: &HttpRule, proxy: For<'_>) -> Option<HttpRule> {
    let mut matches: Vec<_> = rule
        .matches
        .iter()
        .filter(|m| plays(&m.gateways, proxy))
        .cloned()
        .collect();
    if matches.is_empty() && !rule.matches.is_empty() {
        return None;
    }
    for block in &mut matches {
        // Row 5a.4: pseudo keys are not headers and are ignored.
        let real = |name: &http::HeaderName| !PSEUDO_HEADERS.contains(&name.as_str());
        block.headers.retain(|(name, _)| real(name));
        block.without_headers.retain(|(name, _)| real(name));
    }
    Some(HttpRule {
        matches,
        ..rule.clone()
    })
}

fn before(rule: &HttpRule) -> Option<Arc<Before>> {
    let (cors, fault) = (rule.cors.clone(), rule.fault.clone());
    (cors.is_some() || fault.is_some()).then(|| Arc::new(Before { cors, fault }))
}

fn plays(gateways: &[GatewayName], proxy: For<'_>) -> bool {
    gateways.is_empty() || gateways.iter().any(|g| proxy.gateways.contains(g))
}

/// Row 5.7: no conditions, or only a uri that holds for every path.
fn is_catch_all(rule: &HttpRule) -> bool {
    rule.matches.is_empty()
        || rule.matches.iter().any(|m| {
            let every_path = match &m.uri {
                None => true,
                Some(StringMatch::Prefix(prefix)) => prefix.is_empty() || prefix == "/",
                Some(StringMatch::Regex(regex)) => regex.as_str() == "^(?:.*)$",
                Some(StringMatch::Present) => true,
                Some(StringMatch::Exact(_)) => false,
            };
            every_path
                && m.headers.is_empty()
                && m.without_headers.is_empty()
                && m.query_params.is_empty()
                && m.method.is_none()
                && m.scheme.is_none()
                && m.authority.is_none()
                && m.port.is_none()
                && m.source_labels.is_empty()
                && m.source_namespace.is_empty()
        })
}

fn route_names(rule: &HttpRule) -> Vec<Arc<str>> {
    let base = if rule.name.is_empty() {
        "default"
    } else {
        rule.name.as_str()
    };
    if rule.matches.is_empty() {
        return vec![base.into()];
    }
    rule.matches
        .iter()
        .map(|m| match (rule.name.is_empty(), m.name.is_empty()) {
            (_, true) => base.into(),
            (true, false) => m.name.as_str().into(),
            (false, false) => format!("{}.{}", rule.name, m.name).into(),
        })
        .collect()
}

fn static_match(block: &HttpMatch, request: &Request<'_>) -> bool {
    block.port.is_none_or(|port| port == request.port)
        // Row 5a.8: a block that names gateways does not look at the source.
        && (!block.gateways.is_empty()
            || source_match(&block.source_labels, &block.source_namespace, request))
}

fn source_match(labels: &BTreeMap<String, String>, namespace: &str, request: &Request<'_>) -> bool {
    if labels.is_empty() && namespace.is_empty() {
        return true;
    }
    request.source.is_some_and(|source| {
        (namespace.is_empty() || namespace == source.namespace)
            && labels
                .iter()
                .all(|(key, value)| source.labels.get(key) == Some(value))
    })
}

fn dynamic_match(block: &HttpMatch, request: &Request<'_>) -> bool {
    let Traffic::Http {
        method,
        scheme,
        host,
        path,
        headers,
    } = request.traffic
    else {
        return false;
    };
    let (path, query) = path.split_once('?').unwrap_or((path, ""));
    let uri_fits = block.uri.as_ref().is_none_or(|uri| {
        if block.ignore_uri_case {
            uri.matches_ignoring_case(path)
        } else {
            uri.matches(path)
        }
    });
    let fits = |condition: &Option<StringMatch>, value: &str| {
        condition.as_ref().is_none_or(|c| c.matches(value))
    };
    uri_fits
        && fits(&block.method, method.as_str())
        && fits(&block.scheme, scheme)
        && fits(&block.authority, host)
        && block
            .headers
            .iter()
            .all(|(name, c)| header(headers, name).is_some_and(|value| c.matches(&value)))
        && block
            .without_headers
            .iter()
            .all(|(name, c)| header(headers, name).is_none_or(|value| !c.matches(&value)))
        && block
            .query_params
            .iter()
            .all(|(name, c)| query_value(query, name).is_some_and(|value| c.matches(value)))
}

/// All values of a header joined by commas, as Envoy matches them.
fn header<'a>(headers: &'a http::HeaderMap, name: &http::HeaderName) -> Option<Cow<'a, str>> {
    let mut values = headers
        .get_all(name)
        .iter()
        .map(|v| String::from_utf8_lossy(v.as_bytes()));
    let first = values.next()?;
    let mut rest = values.peekable();
    if rest.peek().is_none() {
        return Some(first);
    }
    let mut joined = first.into_owned();
    for value in rest {
        joined.push(',');
        joined.push_str(&value);
    }
    Some(Cow::Owned(joined))
}

/// First value of a query parameter; a parameter without `=` has the empty value.
fn query_value<'a>(query: &'a str, name: &str) -> Option<&'a str> {
    query.split('&').find_map(|pair| {
        let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
        (key == name).then_some(value)
    })
}
