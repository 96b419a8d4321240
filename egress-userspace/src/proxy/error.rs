// SPDX-License-Identifier: Apache-2.0
//! Data-plane errors: whose side, whether a retry is safe, and the one mapping to what the peer
//! and the access log see.

use std::{borrow::Cow, io, net::SocketAddr, time::Duration};

use super::access_log::ResponseFlag;

/// Why a request or connection could not be carried out.
#[derive(Debug, thiserror::Error)]
pub enum DataError {
    /// Nothing routes it.
    #[error("{reason}")]
    NoRoute {
        /// What was considered.
        reason: String,
    },
    /// outboundTrafficPolicy refuses it.
    #[error("{reason}")]
    Blocked {
        /// What was considered.
        reason: String,
    },
    /// The rule's destination is not in the registry.
    #[error("destination {cluster} is not in the registry")]
    ClusterNotFound {
        /// `outbound|PORT|SUBSET|HOST`.
        cluster: String,
    },
    /// The destination has no endpoints.
    #[error("{cluster} has no endpoints")]
    NoEndpoints {
        /// Cluster name.
        cluster: String,
    },
    /// The destination's name does not resolve.
    #[error("{host} does not resolve: {reason}")]
    Unresolved {
        /// The name.
        host: String,
        /// The resolver's words.
        reason: String,
    },
    /// This kind of destination cannot be dialled yet.
    #[error("{cluster}: {what} is not supported yet")]
    Unsupported {
        /// Cluster name.
        cluster: String,
        /// The feature.
        what: &'static str,
    },
    /// The endpoint refuses the connection.
    #[error("connecting to {endpoint}")]
    Connect {
        /// The endpoint.
        endpoint: SocketAddr,
        /// Why.
        source: io::Error,
    },
    /// The endpoint does not answer.
    #[error("connecting to {endpoint}: no answer within {limit:?}")]
    ConnectTimeout {
        /// The endpoint.
        endpoint: SocketAddr,
        /// The limit.
        limit: Duration,
    },
    /// The upstream broke off before its response began.
    #[error("the upstream closed the connection before answering")]
    Reset {
        /// Why.
        source: hyper::Error,
    },
    /// The upstream's bytes are not HTTP.
    #[error("the upstream's answer is not HTTP")]
    UpstreamProtocol {
        /// Why.
        source: hyper::Error,
    },
    /// The route's timeout ran out.
    #[error("no response within the route's timeout of {limit:?}")]
    RouteTimeout {
        /// The limit.
        limit: Duration,
    },
    /// The request is not acceptable HTTP.
    #[error("{reason}")]
    BadRequest {
        /// What is wrong.
        reason: &'static str,
    },
    /// The client went away.
    #[error("the client closed the connection")]
    ClientGone,
}

/// What an error looks like from outside.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Verdict {
    /// HTTP status.
    pub status: u16,
    /// Envoy's flag.
    pub flag: Option<ResponseFlag>,
    /// Envoy's details.
    pub details: &'static str,
    /// `UPSTREAM_TRANSPORT_FAILURE_REASON`; empty: none.
    pub transport_failure: Cow<'static, str>,
}

impl DataError {
    /// The one mapping from errors to status, flag and details.
    pub fn verdict(&self) -> Verdict {
        use ResponseFlag as F;
        let (status, flag, details) = match self {
            Self::NoRoute { .. } => (404, Some(F::NoRouteFound), "route_not_found"),
            Self::Blocked { .. } => (502, None, "direct_response"),
            Self::ClusterNotFound { .. } => (503, Some(F::NoClusterFound), "cluster_not_found"),
            Self::NoEndpoints { .. } | Self::Unsupported { .. } => {
                (503, Some(F::NoHealthyUpstream), "no_healthy_upstream")
            }
            Self::Unresolved { .. } => {
                (503, Some(F::DnsResolutionFailed), "dns_resolution_failure")
            }
            Self::Connect { .. } => (
                503,
                Some(F::UpstreamConnectionFailure),
                "upstream_reset_before_response_started{connection_failure}",
            ),
            Self::ConnectTimeout { .. } => (
                503,
                Some(F::UpstreamConnectionFailure),
                "upstream_reset_before_response_started{connection_timeout}",
            ),
            Self::Reset { .. } => (
                503,
                Some(F::UpstreamConnectionTermination),
                "upstream_reset_before_response_started{connection_termination}",
            ),
            Self::UpstreamProtocol { .. } => (
                502,
                Some(F::UpstreamProtocolError),
                "upstream_reset_before_response_started{protocol_error}",
            ),
            Self::RouteTimeout { .. } => {
                (504, Some(F::UpstreamRequestTimeout), "response_timeout")
            }
            Self::BadRequest { .. } => {
                (400, Some(F::DownstreamProtocolError), "http1.codec_error")
            }
            Self::ClientGone => {
                (0, Some(F::DownstreamConnectionTermination), "downstream_remote_disconnect")
            }
        };
        let transport_failure = match self {
            Self::Connect { source, .. } => Cow::Owned(source.to_string()),
            Self::ConnectTimeout { .. } => Cow::Borrowed("connection timeout"),
            Self::Reset { source } => Cow::Owned(source.to_string()),
            _ => Cow::Borrowed(""),
        };
        Verdict { status, flag, details, transport_failure }
    }

    /// Whether the upstream surely has not seen the request (`connect-failure`).
    pub fn is_connect_failure(&self) -> bool {
        matches!(self, Self::Connect { .. } | Self::ConnectTimeout { .. })
    }
}
