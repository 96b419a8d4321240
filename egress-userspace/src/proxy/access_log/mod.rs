// SPDX-License-Identifier: Apache-2.0
//! One record per HTTP request or TCP connection, and what is made of it: a line in Istio's text or
//! JSON form (istio-egress.md 8a) and Istio's metrics (8b).
//!
//! Stands at the end of the data flow: `proxy` fills an [`AccessRecord`] and gives it to its
//! worker's [`Recorder`], which appends the line to the worker's buffer and adds to the worker's
//! series. [`sink`] writes the buffers out, `control::metrics` sums the series when asked.
//! Nothing here waits for a reader, a disk or another worker.

pub mod append;
mod field;
pub mod format;
pub mod labels;
pub mod recorder;
pub mod series;
pub mod sink;

pub use format::{Format, FormatError, compile};
pub use recorder::{AccessLog, Recorder};
pub use series::{REFUSED_DIRECT, Totals, TrafficLabels};
pub use sink::{Destination, SinkError};

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

impl ResponseFlag {
    /// Envoy's short form, as logs and metrics carry it (istio-egress.md 8a.4).
    pub fn as_str(self) -> &'static str {
        match self {
            Self::NoRouteFound => "NR",
            Self::NoHealthyUpstream => "UH",
            Self::UpstreamConnectionFailure => "UF",
            Self::UpstreamRetryLimitExceeded => "URX",
            Self::UpstreamRequestTimeout => "UT",
            Self::UpstreamConnectionTermination => "UC",
            Self::DownstreamConnectionTermination => "DC",
            Self::NoClusterFound => "NC",
            Self::DnsResolutionFailed => "DF",
            Self::DownstreamProtocolError => "DPE",
            Self::UpstreamProtocolError => "UPE",
            Self::StreamIdleTimeout => "SI",
            Self::DurationTimeout => "DT",
            Self::FaultInjected => "FI",
            Self::DelayInjected => "DI",
            Self::UpstreamOverflow => "UO",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A TCP connection of which nothing is known.
    pub(super) fn empty_record() -> AccessRecord<'static> {
        AccessRecord {
            start: SystemTime::UNIX_EPOCH,
            duration: Duration::ZERO,
            http: None,
            response_code: 0,
            response_flag: None,
            details: Cow::Borrowed(""),
            termination_details: Cow::Borrowed(""),
            transport_failure: Cow::Borrowed(""),
            bytes_received: 0,
            bytes_sent: 0,
            upstream_service_time: None,
            upstream_host: None,
            upstream_cluster: "",
            upstream_local: None,
            downstream_local: None,
            downstream_remote: None,
            requested_server_name: "",
            route_name: "",
            destination_service: "",
            destination_namespace: "",
            source: None,
        }
    }
}
