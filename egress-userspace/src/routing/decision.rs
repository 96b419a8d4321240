// SPDX-License-Identifier: Apache-2.0
//! A request as routing sees it, and the one plain value that answers it.
//!
//! `proxy` builds a [`Request`] without copying, takes the [`Decision`] and carries it out;
//! `egress explain` prints the same value. A decision is cheap: everything shared is behind `Arc`s
//! of the table it was made from.

use std::{borrow::Cow, net::IpAddr, sync::Arc, time::Duration};

use super::{
    retry::RetryPolicy,
    service::{Origin, Protocol, Service},
    virtual_service::{CorsPolicy, Fault, HeaderOperations, Share},
};
use crate::workload::Workload;

/// What is known about a request (HTTP) or connection (TLS, TCP).
#[derive(Debug, Clone, Copy)]
pub struct Request<'a> {
    /// The caller; `None`: unknown.
    pub source: Option<&'a Workload>,
    /// Original destination port (mesh) or server port (gateway), host byte order.
    pub port: u16,
    /// Original destination address; `None` on a gateway.
    pub destination_ip: Option<IpAddr>,
    /// Registered names that resolve to `destination_ip`; looked at for TCP only, where nothing
    /// else tells two services on one port apart.
    pub names_of_ip: &'a [String],
    /// What was seen on the connection.
    pub traffic: Traffic<'a>,
}

impl<'a> Request<'a> {
    /// The caller's namespace; "" when it is unknown.
    pub fn namespace(&self) -> &'a str {
        self.source.map_or("", |source| source.namespace.as_str())
    }
}

/// The protocol-specific half of a [`Request`].
#[derive(Debug, Clone, Copy)]
pub enum Traffic<'a> {
    /// An HTTP request.
    Http {
        /// Method.
        method: &'a http::Method,
        /// `http` or `https`.
        scheme: &'a str,
        /// Host or :authority as sent; may carry a port, a trailing dot, upper case.
        host: &'a str,
        /// Path with query, as sent.
        path: &'a str,
        /// Headers.
        headers: &'a http::HeaderMap,
    },
    /// A TLS connection that is not terminated.
    Tls {
        /// Server name, `None` when the hello carries none.
        sni: Option<&'a str>,
    },
    /// Anything else.
    Tcp,
}

/// The answer.
#[derive(Debug, Clone)]
pub struct Decision {
    /// What to do.
    pub action: Action,
    /// Istio's route name for the access log (`allow_any`, `default`, the rule's name, ...).
    pub route_name: Arc<str>,
    /// The VirtualService that decided, as `ns/name`.
    pub virtual_service: Option<Arc<str>>,
    /// What comes before the action; `None`: nothing.
    pub before: Option<Arc<Before>>,
}

/// What an HTTP rule does before its action, whatever that is.
#[derive(Debug)]
pub struct Before {
    /// `corsPolicy`: preflights are answered here. After the fault.
    pub cors: Option<CorsPolicy>,
    /// `fault`.
    pub fault: Option<Fault>,
}

/// What a decision demands.
#[derive(Debug, Clone)]
pub enum Action {
    /// Send it to a destination.
    Forward(Forward),
    /// To the original destination, untouched (`PassthroughCluster`).
    Passthrough,
    /// Refuse by policy (`BlackHoleCluster`): HTTP 502, TCP closed.
    Blackhole,
    /// Answer here.
    DirectResponse {
        /// Status code.
        status: u16,
        /// Body.
        body: bytes::Bytes,
        /// Response header edits.
        headers: Arc<HeaderOperations>,
    },
    /// Answer with a Location.
    Redirect {
        /// 301, 302, 303, 307 or 308.
        status: u16,
        /// Complete Location value.
        location: String,
        /// Response header edits.
        headers: Arc<HeaderOperations>,
    },
    /// Nothing fits: 404 `NR`.
    NoRoute,
    /// Close the connection (TLS and TCP without a route on a gateway).
    Close,
    /// The destination does not exist: 503 `NC`.
    ClusterNotFound {
        /// `outbound|PORT|SUBSET|HOST` that was asked for.
        cluster: Arc<str>,
    },
}

/// Forward to a destination.
#[derive(Debug, Clone)]
pub struct Forward {
    /// The rule-wide part, shared by all requests of the rule.
    pub route: Arc<Route>,
    /// Index into `route.destinations` of the destination that was drawn.
    pub chosen: usize,
    /// That destination, for this client.
    pub destination: Arc<Destination>,
    /// Authority the upstream will see; `None`: as sent.
    pub authority: Option<Arc<str>>,
    /// Path with query the upstream will see; `None`: as sent.
    pub path: Option<String>,
}

impl Route {
    /// Draws a destination: `draw` is uniform over `u32`, shares are weight / total.
    pub fn choose(&self, draw: u32) -> usize {
        let mut ticket = (u64::from(draw) * u64::from(self.total_weight)) >> 32;
        for (index, destination) in self.destinations.iter().enumerate() {
            let weight = u64::from(destination.weight);
            if ticket < weight {
                return index;
            }
            ticket -= weight;
        }
        self.destinations.len().saturating_sub(1)
    }
}

/// A compiled rule, or the default route of a service.
#[derive(Debug)]
pub struct Route {
    /// At least one.
    pub destinations: Vec<WeightedDestination>,
    /// Sum of the weights; greater than 0.
    pub total_weight: u32,
    /// Total time including retries.
    pub timeout: Option<Duration>,
    /// `None`: no retries.
    pub retries: Option<RetryPolicy>,
    /// Rule-level header edits; applied before the destination's.
    pub headers: HeaderOperations,
    /// Copies that are sent elsewhere.
    pub mirrors: Vec<MirrorTo>,
}

/// Where copies of requests go.
#[derive(Debug)]
pub struct MirrorTo {
    /// The destination; [`Endpoints::Missing`] gets nothing.
    pub destination: ByClient,
    /// How many requests are copied.
    pub share: Share,
}

/// One destination with its share.
#[derive(Debug)]
pub struct WeightedDestination {
    /// Share = weight / [`Route::total_weight`].
    pub weight: u32,
    /// The destination.
    pub destination: ByClient,
    /// Destination-level header edits.
    pub headers: HeaderOperations,
}

/// A destination, which DestinationRules may make another one for clients of some namespaces.
#[derive(Debug, Clone)]
pub struct ByClient {
    /// For everybody else.
    pub any: Arc<Destination>,
    /// By the client's namespace.
    pub of: Vec<(String, Arc<Destination>)>,
}

impl ByClient {
    /// The destination for a client of a namespace.
    pub fn on_behalf_of(&self, namespace: &str) -> &Arc<Destination> {
        let own = self.of.iter().find(|(of, _)| of == namespace);
        own.map_or(&self.any, |(_, destination)| destination)
    }
}

/// A destination after all levels of policy: what Envoy calls a cluster. Shared by every rule of
/// a snapshot that names it.
#[derive(Debug)]
pub struct Destination {
    /// Host as in the registry (a wildcard service keeps its `*.x` form).
    pub host: String,
    /// Service port number, host byte order.
    pub port: u16,
    /// Subset, empty when none.
    pub subset: String,
    /// `outbound|PORT|SUBSET|HOST`, for logs and metrics.
    pub cluster: Arc<str>,
    /// The service it stands for; `None` with [`Endpoints::Missing`].
    pub service: Option<Arc<Service>>,
    /// Protocol of the service port.
    pub protocol: Protocol,
    /// What HTTP requests are sent as.
    pub http: UpstreamHttp,
    /// How endpoints are found.
    pub endpoints: Endpoints,
    /// Time for one TCP connect (Istio default 10 s).
    pub connect_timeout: Duration,
    /// The DestinationRule in force.
    pub rule: Option<Arc<Origin>>,
    /// It asks for TLS, which is not originated yet: nothing is sent in plain text instead.
    pub wants_tls: bool,
    /// meshConfig wants it to be told who is calling.
    pub proxy_protocol: bool,
}

/// The HTTP version towards a destination.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum UpstreamHttp {
    /// HTTP/1.1.
    Http1,
    /// HTTP/2 with prior knowledge.
    Http2,
    /// The version that the client speaks (ports without declared protocol, `useClientProtocol`).
    AsClient,
}

/// Where a destination's connections go.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Endpoints {
    /// The original destination's address (resolution NONE); the port is replaced when the entry
    /// gives a target port.
    OriginalDestination {
        /// Replacement port.
        port: Option<u16>,
    },
    /// A fixed list, possibly of names to resolve (STATIC, or DNS with endpoints, or DNS host).
    List(Vec<EndpointTarget>),
    /// No such service, port or subset: never dialled, [`Action::ClusterNotFound`] instead.
    Missing,
    /// Resolve the name from Host or SNI per request (DYNAMIC_DNS).
    FromRequest {
        /// Port to dial.
        port: u16,
    },
}

/// One member of [`Endpoints::List`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EndpointTarget {
    /// IP, name or Unix path.
    pub address: super::service::EndpointAddress,
    /// Port to dial, host byte order.
    pub port: u16,
    /// Relative weight, at least 1.
    pub weight: u32,
}

/// The steps that led to a decision, for `explain` and for the body of a 404. Costs nothing when
/// off.
#[derive(Debug, Default)]
pub struct Why {
    steps: Option<Vec<Step>>,
    runners_up: usize,
}

/// Objects and rules that were considered and lost are named up to this many.
const MAX_RUNNERS_UP: usize = 20;

/// One step, and the object it speaks of.
#[derive(Debug, Clone)]
pub struct Step {
    /// One sentence.
    pub text: Cow<'static, str>,
    /// The object with its file and line, when one is meant.
    pub origin: Option<Arc<Origin>>,
}

impl Step {
    /// A step that speaks of one object.
    pub fn about(origin: &Arc<Origin>, text: String) -> Self {
        Self {
            text: text.into(),
            origin: Some(origin.clone()),
        }
    }

    /// A step that speaks of no object.
    pub fn plain(text: impl Into<Cow<'static, str>>) -> Self {
        Self {
            text: text.into(),
            origin: None,
        }
    }
}

impl Why {
    /// Records nothing.
    pub fn off() -> Self {
        Self::default()
    }

    /// Records every step.
    pub fn on() -> Self {
        Self {
            steps: Some(Vec::new()),
            runners_up: 0,
        }
    }

    /// Adds a step; `make` runs only when recording.
    pub fn step(&mut self, make: impl FnOnce() -> Step) {
        if let Some(steps) = &mut self.steps {
            steps.push(make());
        }
    }

    /// Whether steps are recorded.
    pub fn is_on(&self) -> bool {
        self.steps.is_some()
    }

    /// Adds a step about what was considered and lost; only counts beyond a limit.
    pub fn runner_up(&mut self, make: impl FnOnce() -> Step) {
        if let Some(steps) = &mut self.steps {
            self.runners_up += 1;
            if self.runners_up <= MAX_RUNNERS_UP {
                steps.push(make());
            }
        }
    }

    /// The steps recorded, in order.
    pub fn into_steps(self) -> Vec<Step> {
        let mut steps = self.steps.unwrap_or_default();
        if let Some(more @ 1..) = self.runners_up.checked_sub(MAX_RUNNERS_UP) {
            steps.push(Step::plain(format!("{more} more were considered")));
        }
        steps
    }
}
