// SPDX-License-Identifier: Apache-2.0
//! One record per HTTP request or TCP connection, and its text and JSON forms (istio-egress.md 8a).

use std::{
    borrow::Cow,
    net::SocketAddr,
    time::{Duration, SystemTime},
};

use crate::workload::Workload;

/// Everything the access log and the metrics say about one request or connection.
#[derive(Debug, Clone)]
pub struct AccessRecord<'a> {
    /// When the first byte of the request (or the connection) arrived.
    pub start: SystemTime,
    /// Until the last byte was handed over.
    pub duration: Duration,
    /// `None` for TCP.
    pub http: Option<HttpRecord<'a>>,
    /// 0 when nothing was answered, and for TCP.
    pub response_code: u16,
    /// Envoy's flag, `None` prints `-`.
    pub response_flag: Option<ResponseFlag>,
    /// Envoy's details (`via_upstream`, ...); empty prints `-`.
    pub details: Cow<'a, str>,
    /// Empty prints `-`.
    pub termination_details: Cow<'a, str>,
    /// Empty prints `-`.
    pub transport_failure: Cow<'a, str>,
    /// Request body bytes, or bytes from the client.
    pub bytes_received: u64,
    /// Response body bytes, or bytes to the client.
    pub bytes_sent: u64,
    /// Time until the upstream's response head, HTTP only.
    pub upstream_service_time: Option<Duration>,
    /// The endpoint.
    pub upstream_host: Option<SocketAddr>,
    /// `outbound|80||host`, `PassthroughCluster`, `BlackHoleCluster`; empty prints `-`.
    pub upstream_cluster: &'a str,
    /// Our side of the upstream connection.
    pub upstream_local: Option<SocketAddr>,
    /// What the client believes it is connected to: the original destination on a node, the
    /// accepted socket's local address on a gateway.
    pub downstream_local: Option<SocketAddr>,
    /// The client.
    pub downstream_remote: Option<SocketAddr>,
    /// SNI; empty prints `-`.
    pub requested_server_name: &'a str,
    /// Empty prints `-`.
    pub route_name: &'a str,
    /// Registry host of the destination (`destination_service`); empty: unknown traffic, the
    /// cluster's name stands for it in metrics.
    pub destination_service: &'a str,
    /// Namespace of the destination's object; empty: unknown.
    pub destination_namespace: &'a str,
    /// The caller, when known.
    pub source: Option<&'a Workload>,
}

/// The HTTP half of an [`AccessRecord`].
#[derive(Debug, Clone)]
pub struct HttpRecord<'a> {
    /// Method.
    pub method: &'a str,
    /// Path as the client sent it.
    pub path: &'a str,
    /// `HTTP/1.1`, `HTTP/2`.
    pub protocol: &'static str,
    /// Host as the client sent it.
    pub authority: &'a str,
    /// Request header.
    pub user_agent: Option<&'a str>,
    /// Request header.
    pub x_forwarded_for: Option<&'a str>,
    /// Request header, generated when absent.
    pub request_id: Option<&'a str>,
    /// Whether it is gRPC (`content-type: application/grpc*`).
    pub grpc: bool,
}

/// Envoy's response flags that this program can set.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ResponseFlag {
    /// NR: no route.
    NoRouteFound,
    /// UH: no healthy upstream.
    NoHealthyUpstream,
    /// UF: upstream connect failure.
    UpstreamConnectionFailure,
    /// URX: retry limit.
    UpstreamRetryLimitExceeded,
    /// UT: upstream timeout.
    UpstreamRequestTimeout,
    /// UC: upstream reset.
    UpstreamConnectionTermination,
    /// DC: client gone.
    DownstreamConnectionTermination,
    /// NC: no cluster.
    NoClusterFound,
    /// DF: name resolution failed.
    DnsResolutionFailed,
    /// DPE: the client's bytes are not the protocol.
    DownstreamProtocolError,
    /// UPE: the upstream's bytes are not the protocol.
    UpstreamProtocolError,
    /// SI: stream idle timeout.
    StreamIdleTimeout,
    /// DT: duration timeout.
    DurationTimeout,
    /// FI: fault abort.
    FaultInjected,
    /// DI: fault delay.
    DelayInjected,
    /// UO: overflow.
    UpstreamOverflow,
}
