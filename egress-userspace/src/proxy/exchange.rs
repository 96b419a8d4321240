// SPDX-License-Identifier: Apache-2.0
//! One HTTP request and its response as they are recorded: what is remembered while the heads
//! travel on, and the response body that writes the record when it ends.

use std::{
    borrow::Cow,
    net::SocketAddr,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    task::{Context, Poll},
    time::{Duration, Instant, SystemTime},
};

use ::http::{HeaderMap, HeaderValue, Method, header, uri::PathAndQuery};
use bytes::{Buf, Bytes};
use http_body::{Body, Frame, SizeHint};
use hyper::body::Incoming;

use super::{
    access_log::{AccessRecord, HttpRecord, Recorder, ResponseFlag},
    connection::Peer,
    headers::{FORWARDED_FOR, REQUEST_ID},
};
use crate::{
    routing::decision::Destination,
    upstream::pool::{Pool, Pooled},
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
    received: Option<Arc<AtomicU64>>,
    /// Filled in on the way.
    pub outcome: Outcome,
}

/// What became of a request.
#[derive(Debug, Default)]
pub struct Outcome {
    /// Status sent to the client.
    pub status: u16,
    /// Envoy's flag.
    pub flag: Option<ResponseFlag>,
    /// Envoy's details.
    pub details: &'static str,
    /// Why the upstream connection failed.
    pub transport_failure: Cow<'static, str>,
    /// Until the response head.
    pub service_time: Option<Duration>,
    /// Route name.
    pub route_name: Option<Arc<str>>,
    /// Where it went.
    pub upstream: Upstream,
}

/// Where a request or connection went.
#[derive(Debug, Default)]
pub struct Upstream {
    /// The endpoint.
    pub host: Option<SocketAddr>,
    /// Our side.
    pub local: Option<SocketAddr>,
    /// The destination.
    pub destination: Option<Arc<Destination>>,
    /// Cluster when there is no destination.
    pub cluster: &'static str,
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
            received: None,
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

    /// Counts the request body. Bodies that are empty from the start are not wrapped.
    pub fn request_body(&mut self, body: Incoming) -> RequestBody {
        if body.is_end_stream() {
            return RequestBody::Empty;
        }
        let count = Arc::new(AtomicU64::new(0));
        self.received = Some(count.clone());
        RequestBody::Streaming { body, count }
    }

    fn record(&self, sent: u64) {
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
            }),
            response_code: outcome.status,
            response_flag: outcome.flag,
            details: Cow::Borrowed(outcome.details),
            termination_details: Cow::Borrowed(""),
            transport_failure: Cow::Borrowed(&outcome.transport_failure),
            bytes_received: self
                .received
                .as_ref()
                .map_or(0, |count| count.load(Ordering::Relaxed)),
            bytes_sent: sent,
            upstream_service_time: outcome.service_time,
            upstream_host: outcome.upstream.host,
            upstream_cluster: outcome.upstream.cluster(),
            upstream_local: outcome.upstream.local,
            downstream_local: Some(self.peer.local),
            downstream_remote: Some(self.peer.remote),
            requested_server_name: "",
            route_name: outcome.route_name.as_deref().unwrap_or_default(),
            destination_service: outcome.upstream.service(),
            destination_namespace: outcome.upstream.namespace(),
            source: self.peer.workload.as_deref(),
        });
    }
}

fn is_grpc(headers: &HeaderMap) -> bool {
    headers
        .get(header::CONTENT_TYPE)
        .is_some_and(|value| value.as_bytes().starts_with(b"application/grpc"))
}

/// The request body on its way up.
#[derive(Debug)]
pub enum RequestBody {
    /// Nothing.
    Empty,
    /// As it comes, counted.
    Streaming {
        /// The client's body.
        body: Incoming,
        /// Bytes so far.
        count: Arc<AtomicU64>,
    },
}

impl Body for RequestBody {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        match self.get_mut() {
            Self::Empty => Poll::Ready(None),
            Self::Streaming { body, count } => {
                let polled = Pin::new(body).poll_frame(cx);
                if let Poll::Ready(Some(Ok(frame))) = &polled
                    && let Some(data) = frame.data_ref()
                {
                    count.fetch_add(data.remaining() as u64, Ordering::Relaxed);
                }
                polled
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Empty => true,
            Self::Streaming { body, .. } => body.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Empty => SizeHint::with_exact(0),
            Self::Streaming { body, .. } => body.size_hint(),
        }
    }
}

/// The response body on its way down. Writes the record when it ends or is dropped, and gives the
/// upstream connection back when it was read to its end.
#[derive(Debug)]
pub struct ResponseBody {
    content: Content,
    sent: u64,
    exchange: Option<Box<Exchange>>,
}

#[derive(Debug)]
enum Content {
    Local(Bytes),
    Upstream {
        body: Incoming,
        connection: Option<(Pooled<RequestBody>, Arc<HttpPool>)>,
    },
}

impl ResponseBody {
    /// An answer of our own.
    pub fn local(body: Bytes, exchange: Box<Exchange>) -> Self {
        Self {
            content: Content::Local(body),
            sent: 0,
            exchange: Some(exchange),
        }
    }

    /// An upstream's answer.
    pub fn upstream(
        body: Incoming,
        connection: Pooled<RequestBody>,
        pool: Arc<HttpPool>,
        exchange: Box<Exchange>,
    ) -> Self {
        let connection = Some((connection, pool));
        let mut body = Self {
            content: Content::Upstream { body, connection },
            sent: 0,
            exchange: Some(exchange),
        };
        if body.is_end_stream() {
            body.release();
        }
        body
    }

    /// The body of a 101: none. Whoever relays the upgraded connection writes the record.
    pub fn upgraded() -> Self {
        Self {
            content: Content::Local(Bytes::new()),
            sent: 0,
            exchange: None,
        }
    }

    fn release(&mut self) {
        if let Content::Upstream { connection, .. } = &mut self.content
            && let Some((connection, pool)) = connection.take()
        {
            pool.put(connection);
        }
    }

    fn finish(&mut self, flag: Option<(ResponseFlag, &'static str)>) {
        let Some(mut exchange) = self.exchange.take() else {
            return;
        };
        if let Some((flag, details)) = flag {
            exchange.outcome.flag = Some(flag);
            exchange.outcome.details = details;
        }
        exchange.record(self.sent);
    }
}

impl Exchange {
    /// Records an upgraded connection after its end.
    pub fn record_upgraded(&self, received: u64, sent: u64) {
        if let Some(count) = &self.received {
            count.fetch_add(received, Ordering::Relaxed);
        }
        self.record(sent);
    }

    /// Counts the bytes of an upgraded connection.
    pub fn count_received(&mut self) {
        self.received.get_or_insert_with(Arc::default);
    }
}

impl Body for ResponseBody {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        let this = self.get_mut();
        let polled = match &mut this.content {
            Content::Local(bytes) if bytes.is_empty() => Poll::Ready(None),
            Content::Local(bytes) => Poll::Ready(Some(Ok(Frame::data(std::mem::take(bytes))))),
            Content::Upstream { body, .. } => Pin::new(body).poll_frame(cx),
        };
        match &polled {
            Poll::Ready(Some(Ok(frame))) => {
                this.sent += frame.data_ref().map_or(0, |data| data.remaining() as u64);
            }
            Poll::Ready(Some(Err(_))) => this.finish(Some((
                ResponseFlag::UpstreamConnectionTermination,
                "upstream_reset_after_response_started{connection_termination}",
            ))),
            Poll::Ready(None) => {}
            Poll::Pending => return polled,
        }
        if matches!(polled, Poll::Ready(None)) || this.is_end_stream() {
            this.release();
            this.finish(None);
        }
        polled
    }

    fn is_end_stream(&self) -> bool {
        match &self.content {
            Content::Local(bytes) => bytes.is_empty(),
            Content::Upstream { body, .. } => body.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match &self.content {
            Content::Local(bytes) => SizeHint::with_exact(bytes.len() as u64),
            Content::Upstream { body, .. } => body.size_hint(),
        }
    }
}

impl Drop for ResponseBody {
    fn drop(&mut self) {
        if self.is_end_stream() {
            self.release();
            self.finish(None);
        } else {
            // HEAD answers and 304 are dropped unread by the server: hyper says so by their hint.
            let gone = (
                ResponseFlag::DownstreamConnectionTermination,
                "downstream_remote_disconnect",
            );
            self.finish(Some(gone));
        }
    }
}
