// SPDX-License-Identifier: Apache-2.0
//! Rules of VirtualServices compiled for one proxy: conditions that the proxy itself settles are
//! gone, destinations are looked up, names are made. Matching a request is what is left.

use std::{
    borrow::Cow,
    collections::{BTreeMap, HashMap},
    sync::Arc,
};

use super::{
    decision::{Before, ByClient, MirrorTo, Request, Route, Traffic, WeightedDestination},
    gateway::GatewayName,
    matching::StringMatch,
    registry::{Named, Registry},
    retry::{RetryOn, RetryPolicy},
    rule_index::RuleIndex,
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
    /// Of `http`.
    pub index: Option<RuleIndex>,
    /// In order.
    pub tls: Vec<CompiledTcpRule>,
    /// In order.
    pub tcp: Vec<CompiledTcpRule>,
}

/// An HTTP rule.
#[derive(Debug)]
pub struct CompiledRule {
    /// The rule.
    pub rule: Arc<HttpRule>,
    /// The match blocks that are for this proxy, each with Istio's route name (row 5a.10).
    blocks: Vec<(u32, Arc<str>)>,
    /// Route name of a rule without blocks.
    name: Arc<str>,
    /// What comes before the action.
    pub before: Option<Arc<Before>>,
    /// What to do.
    pub action: CompiledAction,
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
    /// The gateways it plays: `[Mesh]`, or a Gateway that selects it.
    pub gateways: &'a [GatewayName],
}

/// Compiles VirtualServices, sharing destinations among them.
pub struct Compiler<'a> {
    registry: &'a Registry,
    mesh: &'a MeshDefaults,
    /// Namespace of a proxy that has only one client: itself.
    namespace: Option<&'a str>,
    destinations: HashMap<DestinationKey, ByClient>,
    unnamed: Arc<str>,
}

/// Host, port and subset as written, and the listener port when the port is left to it.
type DestinationKey = (String, Option<u16>, Option<String>, u16);

impl<'a> Compiler<'a> {
    /// A compiler over a registry; `namespace` is that of a gateway.
    pub fn new(registry: &'a Registry, mesh: &'a MeshDefaults, namespace: Option<&'a str>) -> Self {
        Self {
            registry,
            mesh,
            namespace,
            destinations: HashMap::new(),
            unnamed: "".into(),
        }
    }

    /// Compiles one VirtualService.
    pub fn compile(&mut self, source: &Arc<VirtualService>, proxy: For<'_>) -> CompiledService {
        let origin = &source.origin;
        let mut http = Vec::with_capacity(source.http.len());
        for rule in &source.http {
            let blocks = self.blocks(rule, proxy);
            if blocks.is_empty() && !rule.matches.is_empty() {
                continue;
            }
            let catch_all = is_catch_all(rule, &blocks);
            http.push(CompiledRule {
                blocks,
                name: self.rule_name(&rule.name),
                before: before(rule),
                action: self.action(rule, origin),
                rule: rule.clone(),
            });
            if catch_all {
                break;
            }
        }
        CompiledService {
            name: format!("{}/{}", origin.namespace, origin.name).into(),
            index: RuleIndex::new(http.iter().map(|rule| &*rule.rule)),
            http,
            tls: self.tcp_rules(&source.tls, origin, proxy),
            tcp: self.tcp_rules(&source.tcp, origin, proxy),
            source: source.clone(),
        }
    }

    /// The match blocks of a rule that do not name other gateways.
    fn blocks(&self, rule: &HttpRule, proxy: For<'_>) -> Vec<(u32, Arc<str>)> {
        (0..)
            .zip(&rule.matches)
            .filter(|(_, block)| plays(&block.gateways, proxy))
            .map(|(at, block)| {
                let name = if block.name.is_empty() {
                    self.rule_name(&rule.name)
                } else {
                    format!("{}.{}", rule.name, block.name).into()
                };
                (at, name)
            })
            .collect()
    }

    fn rule_name(&self, name: &str) -> Arc<str> {
        if name.is_empty() {
            self.unnamed.clone()
        } else {
            name.into()
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
            // Left over from a delegate that is missing; see `delegate`.
            HttpAction::Delegate(_) => {
                CompiledAction::DirectResponse(404, bytes::Bytes::new(), Arc::default())
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

    /// The destination that a rule names, for a listener port.
    pub fn destination(
        &mut self,
        written: &RouteDestination,
        listener_port: u16,
        namespace: &str,
    ) -> ByClient {
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
        let (registry, client) = (self.registry, self.namespace);
        self.destinations
            .entry(key)
            .or_insert_with(|| {
                let named = Named {
                    host: &written.host,
                    port: written.port,
                    subset: written.subset.as_deref(),
                };
                registry.destination(named, listener_port, namespace, client)
            })
            .clone()
    }
}

impl CompiledService {
    /// The rules that may match a request, in order; `all`: those that cannot, too.
    pub fn candidates(
        &self,
        request: &Request<'_>,
        all: bool,
    ) -> impl Iterator<Item = (&Self, &CompiledRule)> {
        positions(self.index.as_ref(), self.http.len(), request, all)
            .filter_map(move |at| Some((self, self.http.get(at)?)))
    }
}

/// Positions in a list of rules, in order: those that the index leaves, or every one.
pub fn positions<'i>(
    index: Option<&'i RuleIndex>,
    length: usize,
    request: &Request<'_>,
    all: bool,
) -> impl Iterator<Item = usize> + use<'i> {
    let path = match request.traffic {
        Traffic::Http { path, .. } => path.split('?').next().unwrap_or(path),
        _ => "",
    };
    let index = index.filter(|_| !all);
    let every = if index.is_some() { 0 } else { length };
    let candidates = index.map(|index| index.candidates(path));
    candidates.into_iter().flatten().chain(0..every)
}

impl CompiledRule {
    fn own_blocks(&self) -> impl Iterator<Item = (&HttpMatch, &Arc<str>)> {
        self.blocks
            .iter()
            .filter_map(|(at, name)| Some((self.rule.matches.get(*at as usize)?, name)))
    }

    /// Whether the conditions that do not change from request to request of one client on one port
    /// hold: port and source (row 5.8). Gateways are settled when compiling.
    pub fn survives(&self, request: &Request<'_>) -> bool {
        self.blocks.is_empty() || self.own_blocks().any(|(m, _)| static_match(m, request))
    }

    /// Whether the rule takes every request of a listener's port (row 5.7).
    pub fn catch_all_on(&self, port: u16) -> bool {
        self.blocks.is_empty()
            || self
                .own_blocks()
                .any(|(m, _)| every_request(m) && m.port.is_none_or(|p| p == port))
    }

    /// The first match block that holds, and its route name. `None` inside: a rule without blocks.
    pub fn matches(&self, request: &Request<'_>) -> Option<(Option<&HttpMatch>, &Arc<str>)> {
        if self.blocks.is_empty() {
            return Some((None, &self.name));
        }
        self.own_blocks()
            .find(|(block, _)| static_match(block, request) && dynamic_match(block, request))
            .map(|(block, name)| (Some(block), name))
    }

    /// Why no block holds: the first condition of each that fails.
    pub fn mismatch(&self, request: &Request<'_>) -> String {
        let failures = self.own_blocks().map(|(block, _)| mismatch(block, request));
        failures.collect::<Vec<_>>().join("; ")
    }

    /// Where the rule is written: `VirtualService a/b http[0]`, with its delegate.
    pub fn place(&self, origin: &Origin) -> String {
        let index = self.rule.index;
        match &self.rule.delegate {
            Some((child, at)) => {
                format!("{origin} http[{index}], by its delegate {child} http[{at}]")
            }
            None => format!("{origin} http[{index}]"),
        }
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

fn before(rule: &HttpRule) -> Option<Arc<Before>> {
    let (cors, fault) = (rule.cors.clone(), rule.fault.clone());
    (cors.is_some() || fault.is_some()).then(|| Arc::new(Before { cors, fault }))
}

fn plays(gateways: &[GatewayName], proxy: For<'_>) -> bool {
    gateways.is_empty() || gateways.iter().any(|g| proxy.gateways.contains(g))
}

/// Row 5.7: no conditions, or only a uri that holds for every path.
fn is_catch_all(rule: &HttpRule, blocks: &[(u32, Arc<str>)]) -> bool {
    let mut own = blocks
        .iter()
        .filter_map(|(at, _)| rule.matches.get(*at as usize));
    blocks.is_empty()
        || own.any(|m| {
            every_request(m)
                && m.port.is_none()
                && m.source_labels.is_empty()
                && m.source_namespace.is_empty()
        })
}

/// Whether a block has no conditions but those that listener and caller settle.
fn every_request(m: &HttpMatch) -> bool {
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
}

/// The first condition of a block that does not hold, in a few words.
fn mismatch(block: &HttpMatch, request: &Request<'_>) -> String {
    let Traffic::Http {
        method,
        scheme,
        host,
        path,
        headers,
    } = request.traffic
    else {
        return "it is for HTTP".to_owned();
    };
    if let Some(port) = block.port.filter(|port| *port != request.port) {
        return format!("port {port} is not {}", request.port);
    }
    if !static_match(block, request) {
        return "the caller is not the one it names".to_owned();
    }
    let (path, query) = path.split_once('?').unwrap_or((path, ""));
    if let Some(uri) = &block.uri
        && !uri_matches(uri, block.ignore_uri_case, path)
    {
        return format!("uri{uri} does not match {path}");
    }
    for (name, condition, value) in [
        ("method", &block.method, method.as_str()),
        ("scheme", &block.scheme, scheme),
        ("authority", &block.authority, host),
    ] {
        if let Some(condition) = condition
            && !condition.matches(value)
        {
            return format!("{name}{condition} does not match {value}");
        }
    }
    for (name, condition) in &block.headers {
        match header(headers, name) {
            None => return format!("there is no header {name}"),
            Some(value) if !condition.matches(&value) => {
                return format!("header {name}{condition} does not match {value}");
            }
            Some(_) => {}
        }
    }
    for (name, condition) in &block.without_headers {
        if header(headers, name).is_some_and(|value| condition.matches(&value)) {
            return format!("header {name}{condition} is to be absent");
        }
    }
    for (name, condition) in &block.query_params {
        if !query_value(query, name).is_some_and(|value| condition.matches(value)) {
            return format!("query parameter {name}{condition} does not match");
        }
    }
    "it matches".to_owned()
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
    let uri_fits = block
        .uri
        .as_ref()
        .is_none_or(|uri| uri_matches(uri, block.ignore_uri_case, path));
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

fn uri_matches(uri: &StringMatch, ignore_case: bool, path: &str) -> bool {
    if ignore_case {
        uri.matches_ignoring_case(path)
    } else {
        uri.matches(path)
    }
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
