// SPDX-License-Identifier: Apache-2.0
//! One HTTP request and its response as they are recorded: what is remembered while the heads
//! travel on, written once, whatever becomes of the request.

use std::{
    borrow::Cow,
    net::SocketAddr,
    sync::Arc,
    time::{Duration, Instant, SystemTime},
};

use ::http::{HeaderMap, HeaderValue, Method, header, uri::PathAndQuery};

use super::{
    access_log::{AccessRecord, HttpRecord, Recorder, ResponseFlag, ResponseFlags},
    body::{Progress, RequestBody},
    connection::Peer,
    headers::{FORWARDED_FOR, REQUEST_ID, is_grpc},
    open::Live,
};
use crate::{
    routing::{decision::Destination, header_text::Facts},
    upstream::{endpoint::Endpoint, pool::Pool},
};

/// The pool of a worker.
pub type HttpPool = Pool<RequestBody>;

/// Everything about a request that its record needs.
#[derive(Debug)]
pub struct Exchange {
    recorder: Recorder,
    peer: Arc<Peer>,
    start: SystemTime,
    started: Instant,
    method: Method,
    path: Option<PathAndQuery>,
    authority: HeaderValue,
    user_agent: Option<HeaderValue>,
    forwarded_for: Option<HeaderValue>,
    request_id: HeaderValue,
    protocol: &'static str,
    grpc: bool,
    progress: Option<Arc<Progress>>,
    request: Option<Box<HeaderMap>>,
    recorded: bool,
    /// Filled in on the way.
    pub outcome: Outcome,
}

/// What became of a request.
#[derive(Debug, Default)]
pub struct Outcome {
    /// Status sent to the client.
    pub status: u16,
    /// Envoy's flags.
    pub flags: ResponseFlags,
    /// Envoy's details.
    pub details: &'static str,
    /// Why the upstream connection failed.
    pub transport_failure: Cow<'static, str>,
    /// Until the response head.
    pub service_time: Option<Duration>,
    /// `grpc-status` of the answer.
    pub grpc_status: Option<u32>,
    /// Route name.
    pub route_name: Option<Arc<str>>,
    /// Where it went.
    pub upstream: Upstream,
}

/// Where a request or connection went.
#[derive(Debug, Default)]
pub struct Upstream {
    /// The endpoint.
    pub host: Option<Endpoint>,
    /// Our side.
    pub local: Option<SocketAddr>,
    /// The destination.
    pub destination: Option<Arc<Destination>>,
    /// Cluster when there is no destination.
    pub cluster: &'static str,
    /// The last try would have been repeated, had there been another one left.
    pub retries_exhausted: bool,
}

impl Upstream {
    /// Envoy's cluster name; empty when nothing was chosen.
    pub fn cluster(&self) -> &str {
        self.destination
            .as_ref()
            .map_or(self.cluster, |d| &d.cluster)
    }

    /// `destination_service`: the registry host.
    pub fn service(&self) -> &str {
        self.destination.as_ref().map_or("", |d| &d.host)
    }

    /// Namespace of the destination's object.
    pub fn namespace(&self) -> &str {
        let service = self.destination.as_ref().and_then(|d| d.service.as_ref());
        service.map_or("", |s| &s.origin.namespace)
    }
}

impl Exchange {
    /// Remembers a request head. The headers must carry `x-request-id`.
    pub fn begin(
        recorder: Recorder,
        peer: Arc<Peer>,
        request: &::http::request::Parts,
        authority: HeaderValue,
    ) -> Self {
        let headers = &request.headers;
        Self {
            recorder,
            peer,
            start: SystemTime::now(),
            started: Instant::now(),
            method: request.method.clone(),
            path: request.uri.path_and_query().cloned(),
            authority,
            user_agent: headers.get(header::USER_AGENT).cloned(),
            forwarded_for: headers.get(FORWARDED_FOR).cloned(),
            request_id: headers
                .get(REQUEST_ID)
                .cloned()
                .unwrap_or_else(|| HeaderValue::from_static("-")),
            protocol: match request.version {
                ::http::Version::HTTP_2 => "HTTP/2",
                ::http::Version::HTTP_10 => "HTTP/1.0",
                _ => "HTTP/1.1",
            },
            grpc: is_grpc(headers),
            progress: None,
            request: None,
            recorded: false,
            outcome: Outcome {
                details: "via_upstream",
                ..Outcome::default()
            },
        }
    }

    /// When the request began.
    pub fn started(&self) -> Instant {
        self.started
    }

    /// What dumps see of the connection.
    pub fn live(&self) -> &Live {
        &self.peer.live
    }

    /// The request's method.
    pub fn method(&self) -> &Method {
        &self.method
    }

    /// The host that the client asks for, as sent.
    pub fn host(&self) -> &str {
        self.authority.to_str().unwrap_or_default()
    }

    /// Whether the request is gRPC.
    pub fn is_grpc(&self) -> bool {
        self.grpc
    }

    /// Remembers the request's header fields for commands in response headers.
    pub fn keep_request(&mut self, headers: &HeaderMap) {
        self.request = Some(Box::new(headers.clone()));
    }

    /// What commands in header values may stand for.
    pub fn facts(&self) -> Facts<'_> {
        Facts {
            request: self.request.as_deref(),
            response: None,
            protocol: self.protocol,
            route_name: self.outcome.route_name.as_deref().unwrap_or_default(),
            remote: Some(self.peer.remote),
            local: Some(self.peer.local),
        }
    }

    /// Takes the bytes received from here on.
    pub fn follow(&mut self, progress: Option<Arc<Progress>>) {
        self.progress = progress;
    }

    /// How far the request body has come; `None` without one.
    pub fn progress(&self) -> Option<&Arc<Progress>> {
        self.progress.as_ref()
    }

    /// Records an upgraded connection after its end.
    pub fn record_upgraded(mut self: Box<Self>, received: u64, sent: u64) {
        self.progress.get_or_insert_default().add(received);
        self.record(sent);
    }

    /// Writes the record; later calls do nothing.
    pub fn record(&mut self, sent: u64) {
        if std::mem::replace(&mut self.recorded, true) {
            return;
        }
        let text = |value: &'_ Option<HeaderValue>| {
            value
                .as_ref()
                .map(|v| String::from_utf8_lossy(v.as_bytes()).into_owned())
        };
        let lossless =
            |value: &Option<HeaderValue>| value.as_ref().is_none_or(|v| v.to_str().is_ok());
        // Nearly always ASCII: borrow then, copy only what has to be mended.
        let mended = if lossless(&self.user_agent) && lossless(&self.forwarded_for) {
            (None, None)
        } else {
            (text(&self.user_agent), text(&self.forwarded_for))
        };
        fn borrowed<'a>(
            mended: &'a Option<String>,
            value: &'a Option<HeaderValue>,
        ) -> Option<&'a str> {
            mended
                .as_deref()
                .or_else(|| value.as_ref().and_then(|v| v.to_str().ok()))
        }
        let outcome = &self.outcome;
        self.recorder.record(&AccessRecord {
            start: self.start,
            duration: self.started.elapsed(),
            http: Some(HttpRecord {
                method: self.method.as_str(),
                path: self.path.as_ref().map_or("/", PathAndQuery::as_str),
                protocol: self.protocol,
                authority: self.authority.to_str().unwrap_or("-"),
                user_agent: borrowed(&mended.0, &self.user_agent),
                x_forwarded_for: borrowed(&mended.1, &self.forwarded_for),
                request_id: self.request_id.to_str().ok(),
                grpc: self.grpc,
                grpc_status: outcome.grpc_status,
            }),
            response_code: outcome.status,
            response_flags: outcome.flags,
            details: Cow::Borrowed(outcome.details),
            termination_details: Cow::Borrowed(""),
            transport_failure: Cow::Borrowed(&outcome.transport_failure),
            bytes_received: self.progress.as_ref().map_or(0, |p| p.received()),
            bytes_sent: sent,
            upstream_service_time: outcome.service_time,
            upstream_host: outcome.upstream.host.as_ref(),
            upstream_cluster: outcome.upstream.cluster(),
            upstream_local: outcome.upstream.local,
            downstream_local: Some(self.peer.local),
            downstream_remote: Some(self.peer.remote),
            requested_server_name: "",
            route_name: outcome.route_name.as_deref().unwrap_or_default(),
            destination_service: outcome.upstream.service(),
            destination_namespace: outcome.upstream.namespace(),
            source: self.peer.workload.as_deref(),
            original_destination: self.peer.original_destination(),
        });
    }
}

impl Drop for Exchange {
    /// A request whose client went away before its answer.
    fn drop(&mut self) {
        if !self.recorded {
            let outcome = &mut self.outcome;
            outcome.status = 0;
            outcome
                .flags
                .insert(ResponseFlag::DownstreamConnectionTermination);
            outcome.details = "downstream_remote_disconnect";
            self.record(0);
        }
    }
}
