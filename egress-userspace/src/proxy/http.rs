// SPDX-License-Identifier: Apache-2.0
//! One HTTP request: read its head, decide, act, record. Runs once per request, on the snapshot
//! that is current when the request comes.

use std::{convert::Infallible, sync::Arc, time::Duration};

use ::http::{
    HeaderMap, HeaderValue, Method, Request, Response, StatusCode, Uri, Version,
    header::{CONTENT_LENGTH, CONTENT_TYPE, HOST, LOCATION, SERVER},
    request::Parts,
    uri::PathAndQuery,
};
use bytes::Bytes;
use hyper::{body::Incoming, upgrade::OnUpgrade};
use hyper_util::rt::TokioIo;

use super::{
    access_log::ResponseFlag,
    before,
    body::{RequestBody, deadline},
    connection::{HttpConnection, Peer},
    copy,
    error::DataError,
    exchange::Exchange,
    forward::{Answered, Outgoing, Target, send},
    headers::{
        ATTEMPT_COUNT, FORWARDED_HOST, FORWARDED_PORT, FORWARDED_PROTO, GRPC_MESSAGE, GRPC_STATUS,
        REQUEST_ID, SERVICE_TIME, edit, grpc_status, random, remove_hop_by_hop, request_id,
        wants_upgrade,
    },
    mirror,
    response::{Deadline, ResponseBody},
    translate::authority_to_host,
};
use crate::{
    config::{proxy_headers::ProxyHeaders, snapshot::Snapshot},
    routing::{
        decision::{
            Action, Decision, Endpoints, Forward, Request as Question, Route, Traffic,
            UpstreamHttp, Why,
        },
        header_text::Facts,
        virtual_service::{HeaderEdit, HeaderOperations},
    },
    upstream::pool::Pooled,
};

/// Answers one request. Never fails: errors become responses.
pub async fn serve(
    connection: HttpConnection,
    request: Request<Incoming>,
) -> Result<Response<ResponseBody>, Infallible> {
    let (mut parts, body) = request.into_parts();
    connection.peer.live.request();
    let snapshot = connection.worker.snapshots.current();
    let own = &snapshot.mesh.proxy_headers;
    if own.request_id && !parts.headers.contains_key(REQUEST_ID) {
        parts.headers.insert(REQUEST_ID, request_id());
    }
    let authority = authority(&parts);
    let shown = authority
        .as_ref()
        .map_or(HeaderValue::from_static("-"), HeaderValue::clone);
    let recorder = connection.worker.recorder.clone();
    let mut exchange = Box::new(Exchange::begin(
        recorder,
        connection.peer.clone(),
        &parts,
        shown,
    ));
    let mut cors = HeaderMap::new();
    let answer = match authority {
        Ok(authority) => {
            answer(
                &connection,
                &snapshot,
                parts,
                body,
                &authority,
                &mut exchange,
                &mut cors,
            )
            .await
        }
        Err(error) => Err(error),
    };
    let mut response = match answer {
        Ok(Answer::Upstream(answer)) => pass_on(&connection, own, *answer, exchange),
        Ok(Answer::Local(response, details)) => {
            exchange.outcome.status = response.status().as_u16();
            exchange.outcome.details = details;
            of_our_own(response, exchange)
        }
        Err(error) => refusal(&error, exchange),
    };
    if let Some(server) = &own.server {
        response.headers_mut().insert(SERVER, server.clone());
    }
    for (name, value) in &cors {
        response.headers_mut().insert(name, value.clone());
    }
    Ok(response)
}

/// An upstream's answer, ready for the client.
fn pass_on(
    connection: &HttpConnection,
    own: &ProxyHeaders,
    mut answer: UpstreamAnswer,
    mut exchange: Box<Exchange>,
) -> Response<ResponseBody> {
    let status = answer.response.status();
    exchange.outcome.status = status.as_u16();
    exchange.outcome.service_time = Some(exchange.started().elapsed());
    exchange.outcome.grpc_status = grpc_status(answer.response.headers());
    if exchange.outcome.upstream.retries_exhausted {
        let flags = &mut exchange.outcome.flags;
        flags.insert(ResponseFlag::UpstreamRetryLimitExceeded);
    }
    let upgraded =
        status == StatusCode::SWITCHING_PROTOCOLS || (answer.connect && status.is_success());
    finish_head(&mut answer.response, own, &exchange, upgraded);
    let upgrades = upgraded.then(|| {
        (
            answer.client.take(),
            hyper::upgrade::on(&mut answer.response),
        )
    });
    let (mut head, body) = answer.response.into_parts();
    if let Some((route, chosen)) = &answer.route {
        let of_destination = &route.destinations[*chosen].headers;
        let edits = [&route.headers.response, &of_destination.response];
        edit_response(&mut head.headers, &edits, &exchange);
    }
    if let Some((Some(client), server)) = upgrades {
        let open = connection.worker.open.add(&connection.peer);
        let peer = connection.peer.clone();
        connection.worker.tasks.spawn(async move {
            relay_upgraded(&peer, client, server, exchange).await;
            drop(open);
        });
        return Response::from_parts(head, ResponseBody::upgraded());
    }
    let pool = connection.worker.pool.clone();
    let body = ResponseBody::upstream(body, answer.connection, pool, answer.deadline, exchange);
    Response::from_parts(head, body)
}

enum Answer {
    /// Of our own, with Envoy's details.
    Local(Response<Bytes>, &'static str),
    Upstream(Box<UpstreamAnswer>),
}

struct UpstreamAnswer {
    response: Response<Incoming>,
    connection: Pooled<RequestBody>,
    /// Until when the response must have ended.
    deadline: Option<Deadline>,
    client: Option<OnUpgrade>,
    /// The request was a CONNECT.
    connect: bool,
    /// The route whose response edits apply, and the destination drawn.
    route: Option<(Arc<Route>, usize)>,
}

async fn answer(
    connection: &HttpConnection,
    snapshot: &Snapshot,
    parts: Parts,
    body: Incoming,
    authority: &HeaderValue,
    exchange: &mut Exchange,
    cors: &mut HeaderMap,
) -> Result<Answer, DataError> {
    let host = authority.to_str().map_err(|_| DataError::BadRequest {
        reason: "the Host header is not text",
    })?;
    let destination_ip = connection.peer.original.map(|address| address.ip());
    // What is asked of a forward proxy names somebody else than the proxy.
    let of_a_proxy = parts.method == Method::CONNECT
        || (parts.version != Version::HTTP_2 && parts.uri.scheme().is_some());
    let book = of_a_proxy.then(|| connection.worker.addresses.current());
    let names_of_ip = match (&book, destination_ip) {
        (Some(book), Some(ip)) => book.names_of(ip),
        _ => &[],
    };
    let question = Question {
        source: connection.peer.workload.as_deref(),
        port: connection.peer.port,
        destination_ip,
        names_of_ip,
        traffic: Traffic::Http {
            method: &parts.method,
            scheme: "http",
            host,
            path: parts.uri.path_and_query().map_or("/", PathAndQuery::as_str),
            headers: &parts.headers,
        },
    };
    let decision = snapshot
        .table
        .decide(&question, (random() >> 32) as u32, &mut Why::off());
    connection
        .peer
        .live
        .decided(host, decision.virtual_service.as_ref(), &decision.action);
    exchange.outcome.route_name = Some(decision.route_name.clone());
    if let Some(wanted) = &decision.before
        && let Some(preflight) =
            before::run(wanted, &parts, &mut exchange.outcome.flags, cors).await?
    {
        return Ok(Answer::Local(preflight, "cors_response"));
    }
    match local(snapshot, &question, decision, exchange)? {
        Next::Answer(mut response, headers) => {
            if headers.response.wants_request() {
                exchange.keep_request(&parts.headers);
            }
            edit_response(response.headers_mut(), &[&headers.response], exchange);
            Ok(Answer::Local(response, "direct_response"))
        }
        Next::Forward(forward) => {
            forward_to(connection, snapshot, parts, body, forward, exchange).await
        }
        Next::Passthrough => passthrough(connection, snapshot, parts, body, exchange).await,
    }
}

enum Next {
    /// With the edits of the rule.
    Answer(Response<Bytes>, Arc<HeaderOperations>),
    Forward(Forward),
    Passthrough,
}

/// Carries out what needs no upstream.
fn local(
    snapshot: &Snapshot,
    question: &Question<'_>,
    decision: Decision,
    exchange: &mut Exchange,
) -> Result<Next, DataError> {
    let reason = || format!("egress: {}", snapshot.table.reason(question));
    match decision.action {
        Action::Forward(forward) => Ok(Next::Forward(forward)),
        Action::Passthrough => Ok(Next::Passthrough),
        Action::Blackhole => {
            exchange.outcome.upstream.cluster = "BlackHoleCluster";
            Err(DataError::Blocked { reason: reason() })
        }
        Action::NoRoute | Action::Close => Err(DataError::NoRoute { reason: reason() }),
        Action::ClusterNotFound { cluster } => Err(DataError::ClusterNotFound {
            cluster: cluster.to_string(),
        }),
        Action::DirectResponse {
            status,
            body,
            headers,
        } => {
            let mut response = Response::new(body);
            *response.status_mut() =
                StatusCode::from_u16(status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
            Ok(Next::Answer(response, headers))
        }
        Action::Redirect {
            status,
            location,
            headers,
        } => {
            let mut response = Response::new(Bytes::new());
            *response.status_mut() =
                StatusCode::from_u16(status).unwrap_or(StatusCode::MOVED_PERMANENTLY);
            let location = HeaderValue::try_from(location).map_err(|_| DataError::BadRequest {
                reason: "the request's path is not text",
            })?;
            response.headers_mut().insert(LOCATION, location);
            Ok(Next::Answer(response, headers))
        }
    }
}

/// Edits a request: by its rule, then by its destination. Commands see the fields as they were
/// before, which are copied only when there are commands.
fn edit_request(headers: &mut HeaderMap, edits: [&HeaderEdit; 2], exchange: &Exchange) {
    let before = edits.iter().any(|e| e.has_commands());
    let before = before.then(|| headers.clone());
    let facts = Facts {
        request: before.as_ref(),
        ..exchange.facts()
    };
    for by in edits {
        edit(headers, by, &facts);
    }
}

/// As [`edit_request`], for a response.
fn edit_response(headers: &mut HeaderMap, edits: &[&HeaderEdit], exchange: &Exchange) {
    let before = edits.iter().any(|e| e.has_commands());
    let before = before.then(|| headers.clone());
    let facts = Facts {
        response: before.as_ref(),
        ..exchange.facts()
    };
    for by in edits {
        edit(headers, by, &facts);
    }
}

async fn forward_to(
    connection: &HttpConnection,
    snapshot: &Snapshot,
    parts: Parts,
    body: Incoming,
    forward: Forward,
    exchange: &mut Exchange,
) -> Result<Answer, DataError> {
    let chosen = &forward.route.destinations[forward.chosen];
    let destination = &forward.destination;
    exchange.outcome.upstream.destination = Some(destination.clone());
    let (mut outgoing, client) = outgoing(connection, snapshot, parts, body, exchange);
    let asked = match destination.endpoints {
        Endpoints::FromRequest { .. } => exchange.host().to_owned(),
        _ => String::new(),
    };
    if let Some(path) = &forward.path {
        outgoing.head.uri = Uri::try_from(path.as_str()).map_err(|_| DataError::BadRequest {
            reason: "the rewritten path is no URI",
        })?;
    }
    let headers = &mut outgoing.head.headers;
    if let Some(authority) = &forward.authority {
        let value = HeaderValue::from_str(authority).map_err(|_| DataError::BadRequest {
            reason: "the rewritten authority is not text",
        })?;
        headers.insert(HOST, value);
    }
    let by_route = &forward.route.headers;
    if by_route.response.wants_request() || chosen.headers.response.wants_request() {
        exchange.keep_request(headers);
    }
    edit_request(
        headers,
        [&by_route.request, &chosen.headers.request],
        exchange,
    );
    let worker = &connection.worker;
    let peer = &connection.peer;
    if !forward.route.mirrors.is_empty() && !outgoing.upgrade {
        mirror::start(connection, &forward.route, &mut outgoing);
    }
    let connect = outgoing.head.method == Method::CONNECT;
    let upstream = &mut exchange.outcome.upstream;
    let progress = outgoing.progress.clone();
    let sending = async {
        let retries = forward.route.retries.as_ref();
        let target = Target::of(worker, destination, retries, peer, &asked).await?;
        send(worker, &target, outgoing, upstream, Some(&peer.live)).await
    };
    let mut timer = forward
        .route
        .timeout
        .map(|limit| Box::pin(deadline(progress, limit)) as Deadline);
    let (response, pooled) = match (&mut timer, forward.route.timeout) {
        (Some(timer), Some(limit)) => within(timer, limit, sending).await?,
        _ => sending.await?,
    };
    Ok(Answer::Upstream(Box::new(UpstreamAnswer {
        response,
        connection: pooled,
        deadline: timer,
        client,
        connect,
        route: Some((forward.route.clone(), forward.chosen)),
    })))
}

async fn within(
    timer: &mut Deadline,
    limit: Duration,
    sending: impl Future<Output = Result<Answered, DataError>>,
) -> Result<Answered, DataError> {
    tokio::select! {
        answered = sending => answered,
        () = timer => Err(DataError::RouteTimeout { limit }),
    }
}

/// To the original destination, without retries or timeouts (row 1.2).
async fn passthrough(
    connection: &HttpConnection,
    snapshot: &Snapshot,
    parts: Parts,
    body: Incoming,
    exchange: &mut Exchange,
) -> Result<Answer, DataError> {
    exchange.outcome.upstream.cluster = "PassthroughCluster";
    let Some(original) = connection.peer.original else {
        return Err(DataError::NoEndpoints {
            cluster: "PassthroughCluster".to_owned(),
        });
    };
    let worker = &connection.worker;
    let (outgoing, client) = outgoing(connection, snapshot, parts, body, exchange);
    let connect = outgoing.head.method == Method::CONNECT;
    let target = Target {
        addresses: vec![original.into()],
        weights: Vec::new(),
        connect_timeout: snapshot.mesh.routing.connect_timeout,
        retries: None,
        http: UpstreamHttp::AsClient,
        // Whatever it is, it gets the target as the client wrote it.
        forward_proxy: true,
        preface: None,
    };
    let upstream = &mut exchange.outcome.upstream;
    let live = Some(&connection.peer.live);
    let (response, pooled) = send(worker, &target, outgoing, upstream, live).await?;
    Ok(Answer::Upstream(Box::new(UpstreamAnswer {
        response,
        connection: pooled,
        deadline: None,
        client,
        connect,
        route: None,
    })))
}

/// The request as it goes on: authority in Host, no hop-by-hop fields. Also the client's half of an
/// upgrade, when it asks for one.
fn outgoing(
    connection: &HttpConnection,
    snapshot: &Snapshot,
    mut parts: Parts,
    body: Incoming,
    exchange: &mut Exchange,
) -> (Outgoing, Option<OnUpgrade>) {
    let client_http2 = parts.version == Version::HTTP_2;
    let upgrade =
        parts.method == Method::CONNECT || (!client_http2 && wants_upgrade(&parts.headers));
    let client = upgrade.then(|| parts.extensions.remove::<OnUpgrade>());
    remove_hop_by_hop(
        &mut parts.headers,
        upgrade && parts.method != Method::CONNECT,
    );
    authority_to_host(&mut parts);
    parts
        .headers
        .entry(FORWARDED_PROTO)
        .or_insert(HeaderValue::from_static("http"));
    let own = &snapshot.mesh.proxy_headers;
    if own.attempt_count {
        let first = HeaderValue::from_static("1");
        parts.headers.insert(ATTEMPT_COUNT, first);
    }
    if own.forwarded_host
        && let Some(host) = parts.headers.get(HOST).cloned()
    {
        parts.headers.insert(FORWARDED_HOST, host);
    }
    if own.forwarded_port {
        let port = HeaderValue::from(connection.peer.port);
        parts.headers.insert(FORWARDED_PORT, port);
    }
    let (body, progress) = RequestBody::new(body, &connection.peer);
    exchange.follow(progress.clone());
    let outgoing = Outgoing {
        head: parts,
        body,
        progress,
        client_http2,
        grpc: exchange.is_grpc(),
        upgrade,
    };
    (outgoing, client.flatten())
}

/// The response head as the client sees it.
fn finish_head(
    response: &mut Response<Incoming>,
    own: &ProxyHeaders,
    exchange: &Exchange,
    upgraded: bool,
) {
    let headers = response.headers_mut();
    remove_hop_by_hop(headers, upgraded);
    if own.debug {
        let time = exchange.outcome.service_time.unwrap_or_default();
        let millis = u64::try_from(time.as_millis()).unwrap_or(u64::MAX);
        headers.insert(SERVICE_TIME, HeaderValue::from(millis));
    }
    *response.version_mut() = Version::HTTP_11;
}

/// An error as a response: one readable line; for gRPC a status without a body.
fn refusal(error: &DataError, mut exchange: Box<Exchange>) -> Response<ResponseBody> {
    let verdict = error.verdict();
    tracing::debug!(error = %error, status = verdict.status, "request not forwarded");
    let outcome = &mut exchange.outcome;
    if let Some(flag) = verdict.flag {
        outcome.flags.insert(flag);
    }
    if outcome.upstream.retries_exhausted {
        outcome
            .flags
            .insert(ResponseFlag::UpstreamRetryLimitExceeded);
    }
    outcome.details = verdict.details;
    outcome.transport_failure = verdict.transport_failure;
    let text = error.to_string();
    let line = if text.starts_with("egress: ") {
        text
    } else {
        format!("egress: {text}")
    };
    let mut response = Response::new(Bytes::new());
    let content_type = if exchange.is_grpc() {
        let status = error.grpc_status();
        exchange.outcome.grpc_status = Some(status.into());
        let headers = response.headers_mut();
        headers.insert(GRPC_STATUS, HeaderValue::from(u16::from(status)));
        headers.extend(grpc_message(&line).map(|message| (GRPC_MESSAGE, message)));
        "application/grpc"
    } else {
        *response.status_mut() =
            StatusCode::from_u16(verdict.status).unwrap_or(StatusCode::BAD_GATEWAY);
        *response.body_mut() = Bytes::from(line + "\n");
        "text/plain; charset=utf-8"
    };
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static(content_type));
    exchange.outcome.status = response.status().as_u16();
    of_our_own(response, exchange)
}

/// Sends an answer of our own. To HEAD it says the length of what it leaves out, which hyper does
/// for HTTP/1.1 only.
fn of_our_own(response: Response<Bytes>, exchange: Box<Exchange>) -> Response<ResponseBody> {
    let (mut head, mut body) = response.into_parts();
    if *exchange.method() == Method::HEAD {
        head.headers
            .insert(CONTENT_LENGTH, HeaderValue::from(body.len()));
        body.clear();
    }
    Response::from_parts(head, ResponseBody::local(body, exchange))
}

/// Percent-encodes what is not printable ASCII (gRPC over HTTP/2, `Status-Message`).
fn grpc_message(text: &str) -> Option<HeaderValue> {
    let mut encoded = String::with_capacity(text.len());
    for byte in text.bytes() {
        match byte {
            b'%' => encoded.push_str("%25"),
            b' '..=b'~' => encoded.push(char::from(byte)),
            other => encoded.push_str(&format!("%{other:02X}")),
        }
    }
    HeaderValue::try_from(encoded).ok()
}

/// The one authority of a request: the target's when it is absolute, else the one Host header
/// (RFC 9112 3.2).
fn authority(parts: &Parts) -> Result<HeaderValue, DataError> {
    let mut hosts = parts.headers.get_all(HOST).iter();
    let host = hosts.next();
    if hosts.next().is_some() {
        return Err(DataError::BadRequest {
            reason: "the request has several Host headers",
        });
    }
    if let Some(authority) = parts.uri.authority() {
        return HeaderValue::from_str(authority.as_str()).map_err(|_| DataError::BadRequest {
            reason: "the request target is not text",
        });
    }
    host.cloned().ok_or(DataError::BadRequest {
        reason: "the request has no Host header",
    })
}

/// Bytes of a WebSocket or another upgraded protocol, until both sides have ended.
async fn relay_upgraded(
    peer: &Peer,
    client: OnUpgrade,
    server: OnUpgrade,
    mut exchange: Box<Exchange>,
) {
    match tokio::try_join!(client, server) {
        Ok((client, server)) => {
            let (client, server) = (TokioIo::new(client), TokioIo::new(server));
            let (copied, _) = copy::both_ways(client, server, peer).await;
            exchange.record_upgraded(copied.received, copied.sent);
        }
        Err(_) => {
            let flags = &mut exchange.outcome.flags;
            flags.insert(ResponseFlag::DownstreamConnectionTermination);
            exchange.record_upgraded(0, 0);
        }
    }
}
