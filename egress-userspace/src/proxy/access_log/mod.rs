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
    fmt,
    net::SocketAddr,
    time::{Duration, SystemTime},
};

use crate::{upstream::endpoint::Endpoint, workload::Workload};

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
    /// Envoy's flags; none prints `-`.
    pub response_flags: ResponseFlags,
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
    pub upstream_host: Option<&'a Endpoint>,
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
    /// Where the caller wanted to go, as the kernel or a trusted proxy tells it.
    pub original_destination: Option<SocketAddr>,
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
    /// `grpc-status` of the answer, when it is gRPC and carried one.
    pub grpc_status: Option<u32>,
}

/// One of Envoy's response flags that this program can set, in the order in which Envoy prints
/// them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum ResponseFlag {
    /// UH: no healthy upstream.
    NoHealthyUpstream,
    /// UF: upstream connect failure.
    UpstreamConnectionFailure,
    /// UT: upstream timeout.
    UpstreamRequestTimeout,
    /// UC: upstream closed the connection.
    UpstreamConnectionTermination,
    /// UR: upstream reset the stream.
    UpstreamRemoteReset,
    /// UO: overflow.
    UpstreamOverflow,
    /// NR: no route.
    NoRouteFound,
    /// DI: fault delay.
    DelayInjected,
    /// FI: fault abort.
    FaultInjected,
    /// DC: client gone.
    DownstreamConnectionTermination,
    /// URX: retry limit.
    UpstreamRetryLimitExceeded,
    /// SI: stream idle timeout.
    StreamIdleTimeout,
    /// DPE: the client's bytes are not the protocol.
    DownstreamProtocolError,
    /// DT: duration timeout.
    DurationTimeout,
    /// UPE: the upstream's bytes are not the protocol.
    UpstreamProtocolError,
    /// NC: no cluster.
    NoClusterFound,
    /// DF: name resolution failed.
    DnsResolutionFailed,
}

/// Envoy's short forms, as logs and metrics carry them (istio-egress.md 8a.4).
const FLAG_NAMES: [(ResponseFlag, &str); 17] = [
    (ResponseFlag::NoHealthyUpstream, "UH"),
    (ResponseFlag::UpstreamConnectionFailure, "UF"),
    (ResponseFlag::UpstreamRequestTimeout, "UT"),
    (ResponseFlag::UpstreamConnectionTermination, "UC"),
    (ResponseFlag::UpstreamRemoteReset, "UR"),
    (ResponseFlag::UpstreamOverflow, "UO"),
    (ResponseFlag::NoRouteFound, "NR"),
    (ResponseFlag::DelayInjected, "DI"),
    (ResponseFlag::FaultInjected, "FI"),
    (ResponseFlag::DownstreamConnectionTermination, "DC"),
    (ResponseFlag::UpstreamRetryLimitExceeded, "URX"),
    (ResponseFlag::StreamIdleTimeout, "SI"),
    (ResponseFlag::DownstreamProtocolError, "DPE"),
    (ResponseFlag::DurationTimeout, "DT"),
    (ResponseFlag::UpstreamProtocolError, "UPE"),
    (ResponseFlag::NoClusterFound, "NC"),
    (ResponseFlag::DnsResolutionFailed, "DF"),
];

/// A set of flags; prints as `UF,URX`, the empty one as `-`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
pub struct ResponseFlags(u32);

impl ResponseFlags {
    /// No flag.
    pub const NONE: Self = Self(0);

    /// Adds a flag.
    pub fn insert(&mut self, flag: ResponseFlag) {
        self.0 |= 1 << flag as u8;
    }

    /// The bits, for hashing.
    pub(super) fn bits(self) -> u32 {
        self.0
    }

    /// The short forms in Envoy's order.
    pub fn names(self) -> impl Iterator<Item = &'static str> {
        FLAG_NAMES
            .iter()
            .filter(move |(flag, _)| self.0 & (1 << *flag as u8) != 0)
            .map(|(_, name)| *name)
    }
}

impl From<ResponseFlag> for ResponseFlags {
    fn from(flag: ResponseFlag) -> Self {
        let mut flags = Self::NONE;
        flags.insert(flag);
        flags
    }
}

impl fmt::Display for ResponseFlags {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if *self == Self::NONE {
            return f.write_str("-");
        }
        for (index, name) in self.names().enumerate() {
            if index > 0 {
                f.write_str(",")?;
            }
            f.write_str(name)?;
        }
        Ok(())
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
            response_flags: ResponseFlags::NONE,
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
            original_destination: None,
        }
    }

    #[test]
    fn flags_print_as_envoy_prints_them() {
        let mut flags = ResponseFlags::NONE;
        assert_eq!(flags.to_string(), "-");
        flags.insert(ResponseFlag::UpstreamRetryLimitExceeded);
        flags.insert(ResponseFlag::UpstreamConnectionFailure);
        assert_eq!(flags.to_string(), "UF,URX");
        for (index, (flag, _)) in FLAG_NAMES.iter().enumerate() {
            assert_eq!(*flag as usize, index, "{flag:?} has no name at its place");
        }
    }
}
