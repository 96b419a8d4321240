// SPDX-License-Identifier: Apache-2.0
//! VirtualService as written (istio.io/docs/reference/config/networking/virtual-service).

use std::collections::BTreeMap;

use serde::Deserialize;

use super::scalar::{DurationText, Unused};

/// `spec` of a VirtualService.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct VirtualService {
    /// Hosts.
    pub hosts: Vec<String>,
    /// `[mesh]` when left out.
    pub gateways: Vec<String>,
    /// HTTP rules.
    pub http: Vec<HttpRoute>,
    /// TLS rules.
    pub tls: Vec<TlsRoute>,
    /// TCP rules.
    pub tcp: Vec<TcpRoute>,
    /// Visibility.
    pub export_to: Vec<String>,
}

/// HTTPRoute.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct HttpRoute {
    /// Name.
    pub name: String,
    /// Conditions.
    #[serde(rename = "match")]
    pub matches: Vec<Option<HttpMatchRequest>>,
    /// Destinations.
    pub route: Vec<HttpRouteDestination>,
    /// Redirect.
    pub redirect: Option<HttpRedirect>,
    /// Fixed answer.
    pub direct_response: Option<HttpDirectResponse>,
    /// Delegate.
    pub delegate: Option<Unused>,
    /// Rewrite.
    pub rewrite: Option<HttpRewrite>,
    /// Total time.
    pub timeout: Option<DurationText>,
    /// Retries.
    pub retries: Option<HttpRetry>,
    /// Fault injection.
    pub fault: Option<Unused>,
    /// Mirror.
    pub mirror: Option<Unused>,
    /// Mirrors.
    pub mirrors: Option<Unused>,
    /// Deprecated.
    pub mirror_percent: Option<Unused>,
    /// Share mirrored.
    pub mirror_percentage: Option<Unused>,
    /// CORS.
    pub cors_policy: Option<Unused>,
    /// Header edits.
    pub headers: Option<Headers>,
}

/// HTTPMatchRequest.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct HttpMatchRequest {
    /// Name.
    pub name: String,
    /// Path.
    pub uri: Option<StringMatch>,
    /// Scheme.
    pub scheme: Option<StringMatch>,
    /// Method.
    pub method: Option<StringMatch>,
    /// Authority.
    pub authority: Option<StringMatch>,
    /// Headers; null is an error.
    pub headers: BTreeMap<String, Option<StringMatch>>,
    /// Port.
    pub port: Option<u32>,
    /// Client labels.
    pub source_labels: BTreeMap<String, String>,
    /// Gateways.
    pub gateways: Vec<String>,
    /// Query.
    pub query_params: BTreeMap<String, Option<StringMatch>>,
    /// Case of the path.
    pub ignore_uri_case: bool,
    /// Absent headers.
    pub without_headers: BTreeMap<String, Option<StringMatch>>,
    /// Client namespace.
    pub source_namespace: String,
    /// Statistics.
    pub stat_prefix: String,
}

/// StringMatch: exactly one, or none for presence.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct StringMatch {
    /// Equal.
    pub exact: Option<String>,
    /// Begins with.
    pub prefix: Option<String>,
    /// RE2.
    pub regex: Option<String>,
}

/// HTTPRouteDestination.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct HttpRouteDestination {
    /// Destination.
    pub destination: Option<Destination>,
    /// Weight.
    #[serde(default)]
    pub weight: i64,
    /// Header edits.
    #[serde(default)]
    pub headers: Option<Headers>,
}

/// RouteDestination.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RouteDestination {
    /// Destination.
    pub destination: Option<Destination>,
    /// Weight.
    #[serde(default)]
    pub weight: i64,
}

/// Destination.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Destination {
    /// Host.
    pub host: String,
    /// Subset.
    pub subset: String,
    /// Port.
    pub port: Option<PortSelector>,
}

/// PortSelector.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PortSelector {
    /// Number.
    pub number: u32,
}

/// HTTPRedirect.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct HttpRedirect {
    /// Path.
    pub uri: String,
    /// Prefix.
    pub prefix_rewrite: Option<String>,
    /// Authority.
    pub authority: String,
    /// Port.
    pub port: Option<u32>,
    /// From the request or the protocol.
    pub derive_port: Option<String>,
    /// Scheme.
    pub scheme: String,
    /// Status.
    pub redirect_code: Option<u32>,
}

/// HTTPDirectResponse.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct HttpDirectResponse {
    /// Status.
    pub status: u32,
    /// Body.
    #[serde(default)]
    pub body: Option<HttpBody>,
}

/// HTTPBody.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct HttpBody {
    /// Text.
    pub string: Option<String>,
    /// Base64.
    pub bytes: Option<String>,
}

/// HTTPRewrite.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct HttpRewrite {
    /// Path.
    pub uri: String,
    /// Authority.
    pub authority: String,
    /// Regex.
    pub uri_regex_rewrite: Option<RegexRewrite>,
}

/// RegexRewrite.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct RegexRewrite {
    /// Pattern.
    #[serde(rename = "match")]
    pub pattern: String,
    /// Replacement, groups as `\1`.
    pub rewrite: String,
}

/// HTTPRetry.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct HttpRetry {
    /// Retries.
    pub attempts: Option<i64>,
    /// One try.
    pub per_try_timeout: Option<DurationText>,
    /// Conditions.
    pub retry_on: String,
    /// Localities.
    pub retry_remote_localities: Option<Unused>,
    /// Previous hosts.
    pub retry_ignore_previous_hosts: Option<bool>,
    /// First wait.
    pub backoff: Option<DurationText>,
}

/// Headers.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Headers {
    /// To the upstream.
    pub request: Option<HeaderOperations>,
    /// To the client.
    pub response: Option<HeaderOperations>,
}

/// Headers.HeaderOperations.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct HeaderOperations {
    /// Overwrite.
    pub set: BTreeMap<String, String>,
    /// Append.
    pub add: BTreeMap<String, String>,
    /// Remove.
    pub remove: Vec<String>,
}

/// TLSRoute.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct TlsRoute {
    /// Conditions; required.
    #[serde(rename = "match")]
    pub matches: Vec<TlsMatchAttributes>,
    /// Destinations.
    pub route: Vec<RouteDestination>,
}

/// TLSMatchAttributes.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct TlsMatchAttributes {
    /// Server names.
    pub sni_hosts: Vec<String>,
    /// Subnets.
    pub destination_subnets: Vec<String>,
    /// Port.
    pub port: Option<u32>,
    /// Client labels.
    pub source_labels: BTreeMap<String, String>,
    /// Gateways.
    pub gateways: Vec<String>,
    /// Client namespace.
    pub source_namespace: String,
}

/// TCPRoute.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct TcpRoute {
    /// Conditions.
    #[serde(rename = "match")]
    pub matches: Vec<L4MatchAttributes>,
    /// Destinations.
    pub route: Vec<RouteDestination>,
}

/// L4MatchAttributes.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct L4MatchAttributes {
    /// Subnets.
    pub destination_subnets: Vec<String>,
    /// Port.
    pub port: Option<u32>,
    /// Client subnet; not used by Istio.
    pub source_subnet: Option<Unused>,
    /// Client labels.
    pub source_labels: BTreeMap<String, String>,
    /// Gateways.
    pub gateways: Vec<String>,
    /// Client namespace.
    pub source_namespace: String,
}
