// SPDX-License-Identifier: Apache-2.0
//! VirtualService as valid values: hosts, gateways, rules, destinations.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use ipnet::IpNet;

use super::{
    gateway::GatewayName,
    header_text::HeaderText,
    host::HostPattern,
    matching::StringMatch,
    retry::RetryPolicy,
    service::{ExportTo, Origin},
};

/// A VirtualService.
#[derive(Debug, Clone)]
pub struct VirtualService {
    /// Where it came from.
    pub origin: Arc<Origin>,
    /// Hosts, short names already qualified; none: a delegate.
    pub hosts: Vec<HostPattern>,
    /// Bound gateways; `[Mesh]` when the field was left out.
    pub gateways: Vec<GatewayName>,
    /// Visibility.
    pub export_to: ExportTo,
    /// In order; first match wins.
    pub http: Vec<Arc<HttpRule>>,
    /// In order; first match wins.
    pub tls: Vec<TcpRule>,
    /// In order; first match wins.
    pub tcp: Vec<TcpRule>,
}

/// HTTPRoute.
#[derive(Debug, Clone)]
pub struct HttpRule {
    /// Position in `spec.http`, of the root when it was delegated.
    pub index: usize,
    /// The delegate that it comes from, and its position there.
    pub delegate: Option<(Arc<Origin>, usize)>,
    /// `name`; may be empty.
    pub name: String,
    /// OR of blocks; empty matches everything.
    pub matches: Vec<HttpMatch>,
    /// What to do.
    pub action: HttpAction,
    /// `rewrite`.
    pub rewrite: Option<Rewrite>,
    /// Total time including retries; `None`: no limit.
    pub timeout: Option<Duration>,
    /// `None`: the mesh default applies.
    pub retries: Option<RetryPolicy>,
    /// `headers` of the rule.
    pub headers: HeaderOperations,
    /// `fault`.
    pub fault: Option<Fault>,
    /// `mirror` and `mirrors`.
    pub mirrors: Vec<Mirror>,
    /// `corsPolicy`.
    pub cors: Option<CorsPolicy>,
}

/// HTTPMatchRequest. Conditions are AND-ed; an absent condition matches.
#[derive(Debug, Clone, Default)]
pub struct HttpMatch {
    /// `name`.
    pub name: String,
    /// Path without query.
    pub uri: Option<StringMatch>,
    /// Applies to exact and prefix of `uri`.
    pub ignore_uri_case: bool,
    /// `http` or `https`.
    pub scheme: Option<StringMatch>,
    /// Request method.
    pub method: Option<StringMatch>,
    /// Whole Host/:authority value, port included.
    pub authority: Option<StringMatch>,
    /// Names lower-cased.
    pub headers: Vec<(http::HeaderName, StringMatch)>,
    /// Names lower-cased; `Present` means the header must be absent.
    pub without_headers: Vec<(http::HeaderName, StringMatch)>,
    /// Case-sensitive names.
    pub query_params: Vec<(String, StringMatch)>,
    /// Original destination port (mesh) or server port (gateway).
    pub port: Option<u16>,
    /// Subset of the client's labels.
    pub source_labels: BTreeMap<String, String>,
    /// Client namespace; empty: any.
    pub source_namespace: String,
    /// Any of; empty: every bound gateway.
    pub gateways: Vec<GatewayName>,
}

/// What an HTTP rule does.
#[derive(Debug, Clone)]
pub enum HttpAction {
    /// Forward to one or several destinations. At least one; weights sum to more than 0.
    Route(Vec<RouteDestination>),
    /// Answer with a redirect.
    Redirect(Redirect),
    /// Answer with a fixed response.
    DirectResponse {
        /// 200..=600.
        status: u16,
        /// Body bytes.
        body: Vec<u8>,
    },
    /// The rules of another VirtualService stand here.
    Delegate(Delegate),
}

/// Delegate.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Delegate {
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
}

/// HTTPRouteDestination / RouteDestination.
#[derive(Debug, Clone)]
pub struct RouteDestination {
    /// Host, qualified and lower-cased.
    pub host: String,
    /// `None`: the service's only port, else the listener port.
    pub port: Option<u16>,
    /// DestinationRule subset.
    pub subset: Option<String>,
    /// Share = weight / sum; with a single destination it is ignored.
    pub weight: u32,
    /// `headers` of the destination; applied after the rule's.
    pub headers: HeaderOperations,
}

/// HTTPRewrite.
#[derive(Debug, Clone)]
pub struct Rewrite {
    /// Replaces the matched prefix (or the whole path for exact and regex matches).
    pub uri: Option<String>,
    /// RE2 pattern and replacement in the `regex` crate's `$1` form.
    pub uri_regex: Option<(regex::Regex, String)>,
    /// Host sent to the upstream.
    pub authority: Option<String>,
}

/// HTTPRedirect.
#[derive(Debug, Clone)]
pub struct Redirect {
    /// Replaces the whole path.
    pub uri: Option<String>,
    /// Replaces the matched prefix.
    pub prefix_rewrite: Option<String>,
    /// Replaces the authority.
    pub authority: Option<String>,
    /// Replaces the scheme.
    pub scheme: Option<String>,
    /// The port of the Location.
    pub port: RedirectPort,
    /// 301, 302, 303, 307 or 308.
    pub status: u16,
}

/// Where the port of a redirect comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum RedirectPort {
    /// As sent in Host; left out when authority or scheme are replaced.
    #[default]
    Unchanged,
    /// `port`.
    Fixed(u16),
    /// `derivePort: FROM_PROTOCOL_DEFAULT`.
    ProtocolDefault,
    /// `derivePort: FROM_REQUEST_PORT`: the port that the request came to.
    Request,
}

/// A share of requests, in millionths.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Share(u32);

impl Share {
    /// Every request.
    pub const ALL: Self = Self(1_000_000);
    /// No request.
    pub const NONE: Self = Self(0);

    /// From per cent; outside 0..=100 the nearest bound.
    pub fn percent(value: f64) -> Self {
        // In range: at most a million.
        Self((value.clamp(0.0, 100.0) * 10_000.0).round() as u32)
    }

    /// Whether a request falls into the share; `draw` is uniform over `u32`.
    pub fn includes(self, draw: u32) -> bool {
        u64::from(draw) * 1_000_000 < u64::from(self.0) << 32
    }

    /// In per cent.
    pub fn as_percent(self) -> f64 {
        f64::from(self.0) / 10_000.0
    }
}

/// HTTPFaultInjection.
#[derive(Debug, Clone, PartialEq)]
pub struct Fault {
    /// Wait before the request goes on.
    pub delay: Option<(Duration, Share)>,
    /// Answer instead of the upstream.
    pub abort: Option<(Abort, Share)>,
}

/// HTTPFaultInjection.Abort.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Abort {
    /// An HTTP status.
    Http(u16),
    /// A gRPC status.
    Grpc(u8),
}

/// HTTPMirrorPolicy.
#[derive(Debug, Clone)]
pub struct Mirror {
    /// Where the copy goes; weight and headers unused.
    pub destination: RouteDestination,
    /// How many requests are copied.
    pub share: Share,
}

/// CorsPolicy.
#[derive(Debug, Clone)]
pub struct CorsPolicy {
    /// Origins that are answered.
    pub allow_origins: Vec<StringMatch>,
    /// `access-control-allow-methods`, joined.
    pub allow_methods: Option<http::HeaderValue>,
    /// `access-control-allow-headers`, joined.
    pub allow_headers: Option<http::HeaderValue>,
    /// `access-control-expose-headers`, joined.
    pub expose_headers: Option<http::HeaderValue>,
    /// `access-control-max-age`, seconds.
    pub max_age: Option<http::HeaderValue>,
    /// `access-control-allow-credentials: true`.
    pub allow_credentials: bool,
    /// Preflights from other origins go to the upstream (`unmatchedPreflights: FORWARD`).
    pub forward_unmatched: bool,
}

/// Headers.HeaderOperations for both directions.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct HeaderOperations {
    /// To the upstream.
    pub request: HeaderEdit,
    /// To the client.
    pub response: HeaderEdit,
}

/// One direction of [`HeaderOperations`], applied in the order remove, set, add (Envoy's).
#[derive(Debug, Clone, Default, PartialEq)]
pub struct HeaderEdit {
    /// Overwrite.
    pub set: Vec<(http::HeaderName, HeaderText)>,
    /// Append.
    pub add: Vec<(http::HeaderName, HeaderText)>,
    /// Remove.
    pub remove: Vec<http::HeaderName>,
}

impl HeaderEdit {
    /// Whether a value is made for each request.
    pub fn has_commands(&self) -> bool {
        let mut values = self.set.iter().chain(&self.add);
        values.any(|(_, value)| matches!(value, HeaderText::Pattern(_)))
    }

    /// Whether a value needs the request's header fields.
    pub fn wants_request(&self) -> bool {
        let mut values = self.set.iter().chain(&self.add);
        values.any(|(_, value)| value.wants_request())
    }
}

/// TLSRoute or TCPRoute.
#[derive(Debug, Clone)]
pub struct TcpRule {
    /// OR of blocks; empty matches everything (tcp only).
    pub matches: Vec<TcpMatch>,
    /// At least one; weights as for HTTP.
    pub route: Vec<RouteDestination>,
}

/// TLSMatchAttributes / L4MatchAttributes. Conditions are AND-ed.
#[derive(Debug, Clone, Default)]
pub struct TcpMatch {
    /// Non-empty for tls rules.
    pub sni_hosts: Vec<HostPattern>,
    /// Any of; empty: any.
    pub destination_subnets: Vec<IpNet>,
    /// As for HTTP.
    pub port: Option<u16>,
    /// As for HTTP.
    pub source_labels: BTreeMap<String, String>,
    /// As for HTTP.
    pub source_namespace: String,
    /// As for HTTP.
    pub gateways: Vec<GatewayName>,
}
