// SPDX-License-Identifier: Apache-2.0
//! Data-plane errors: whose side, whether a retry is safe, and the one mapping to what the peer
//! and the access log see.

use std::{borrow::Cow, time::Duration};

use super::access_log::ResponseFlag;
use crate::{
    routing::virtual_service::Abort,
    upstream::{connect::ConnectError, endpoint::Endpoint},
};

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
    /// The endpoint cannot be reached.
    #[error("connecting to {endpoint}: {source}")]
    Connect {
        /// The endpoint.
        endpoint: Endpoint,
        /// Why.
        source: ConnectError,
    },
    /// The connection ended before the request was sent.
    #[error("the upstream closed the connection before the request was sent")]
    NotSent {
        /// Why.
        source: hyper::Error,
    },
    /// The upstream refused the stream without looking at it (HTTP/2 REFUSED_STREAM).
    #[error("the upstream refused the stream")]
    RefusedStream,
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
    /// A try's own timeout ran out.
    #[error("no response within perTryTimeout of {limit:?}")]
    PerTryTimeout {
        /// The limit.
        limit: Duration,
    },
    /// A fault was injected.
    #[error("fault injected by the configuration")]
    Fault {
        /// What to answer.
        abort: Abort,
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
            Self::Connect { source, .. } => (
                503,
                Some(F::UpstreamConnectionFailure),
                match source {
                    ConnectError::Failed(_) => {
                        "upstream_reset_before_response_started{connection_failure}"
                    }
                    ConnectError::Timeout(_) => {
                        "upstream_reset_before_response_started{connection_timeout}"
                    }
                },
            ),
            Self::RefusedStream => (
                503,
                Some(F::UpstreamRemoteReset),
                "upstream_reset_before_response_started{remote_refused_stream_reset}",
            ),
            Self::Reset { .. } | Self::NotSent { .. } => (
                503,
                Some(F::UpstreamConnectionTermination),
                "upstream_reset_before_response_started{connection_termination}",
            ),
            Self::UpstreamProtocol { .. } => (
                502,
                Some(F::UpstreamProtocolError),
                "upstream_reset_before_response_started{protocol_error}",
            ),
            Self::RouteTimeout { .. } => (504, Some(F::UpstreamRequestTimeout), "response_timeout"),
            Self::PerTryTimeout { .. } => (
                504,
                Some(F::UpstreamRequestTimeout),
                "upstream_per_try_timeout",
            ),
            Self::Fault { abort } => (
                match abort {
                    Abort::Http(status) => *status,
                    Abort::Grpc(status) => grpc_to_http(*status),
                },
                Some(F::FaultInjected),
                "fault_filter_abort",
            ),
            Self::BadRequest { .. } => (400, Some(F::DownstreamProtocolError), "http1.codec_error"),
            Self::ClientGone => (
                0,
                Some(F::DownstreamConnectionTermination),
                "downstream_remote_disconnect",
            ),
        };
        let transport_failure = match self {
            Self::Connect { source, .. } => match source {
                ConnectError::Failed(reason) => Cow::Owned(reason.clone()),
                ConnectError::Timeout(_) => Cow::Borrowed("connection timeout"),
            },
            Self::Reset { source } | Self::NotSent { source } => Cow::Owned(source.to_string()),
            _ => Cow::Borrowed(""),
        };
        Verdict {
            status,
            flag,
            details,
            transport_failure,
        }
    }

    /// The status of a gRPC answer.
    pub fn grpc_status(&self) -> u8 {
        match self {
            Self::Fault {
                abort: Abort::Grpc(status),
            } => *status,
            other => http_to_grpc(other.verdict().status),
        }
    }
}

/// gRPC `doc/http-grpc-status-mapping.md`.
fn http_to_grpc(status: u16) -> u8 {
    match status {
        400 => 13,
        401 => 16,
        403 => 7,
        404 => 12,
        429 | 502..=504 => 14,
        _ => 2,
    }
}

/// The HTTP status that stands for a gRPC one where the client does not speak gRPC (Envoy
/// `grpcToHttpStatus`).
fn grpc_to_http(status: u8) -> u16 {
    match status {
        0 => 200,
        1 => 499,
        3 | 9 | 11 => 400,
        4 => 504,
        5 => 404,
        6 | 10 => 409,
        7 => 403,
        8 => 429,
        12 => 501,
        14 => 503,
        16 => 401,
        _ => 500,
    }
}
