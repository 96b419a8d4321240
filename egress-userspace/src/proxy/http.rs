// SPDX-License-Identifier: Apache-2.0
//! One HTTP request: read its head, decide, act, record. Runs once per request, on the snapshot
//! that is current when the request comes.

use std::{convert::Infallible, sync::Arc};

use ::http::{
    HeaderValue, Request, Response, StatusCode, Uri, Version,
    header::{CONTENT_TYPE, HOST, LOCATION, SERVER, TRANSFER_ENCODING},
    request::Parts,
    uri::PathAndQuery,
};
use bytes::Bytes;
use http_body::Body;
use hyper::{body::Incoming, upgrade::OnUpgrade};
use hyper_util::rt::TokioIo;

use super::{
    access_log::ResponseFlag,
    connection::HttpConnection,
    copy,
    error::DataError,
    exchange::{Exchange, RequestBody, ResponseBody},
    forward::{Target, send},
    headers::{
        ATTEMPT_COUNT, FORWARDED_PROTO, REQUEST_ID, SERVICE_TIME, edit, random, remove_hop_by_hop,
        request_id, wants_upgrade,
    },
};
use crate::{
    config::snapshot::Snapshot,
    routing::decision::{Action, Decision, Forward, Request as Question, Route, Traffic, Why},
};

/// `server` of what we answer and of what we pass on, as a proxy that overwrites it.
const SERVER_NAME: HeaderValue = HeaderValue::from_static("egress");

/// Answers one request. Never fails: errors become responses.
pub async fn serve(
    connection: HttpConnection,
    request: Request<Incoming>,
) -> Result<Response<ResponseBody>, Infallible> {
    let (mut parts, body) = request.into_parts();
    if !parts.headers.contains_key(REQUEST_ID) {
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
    let answer = match authority {
        Ok(authority) => answer(&connection, parts, body, &authority, &mut exchange).await,
        Err(error) => Err(error),
    };
    let mut response = match answer {
        Ok(Answer::Upstream(response)) => *response,
        Ok(Answer::Local(response)) => {
            let (head, body) = response.into_parts();
            exchange.outcome.status = head.status.as_u16();
            exchange.outcome.details = "direct_response";
            return Ok(Response::from_parts(
                head,
                ResponseBody::local(body, exchange),
            ));
        }
        Err(error) => return Ok(refusal(&error, exchange)),
    };
    let status = response.response.status();
    exchange.outcome.status = status.as_u16();
    exchange.outcome.service_time = Some(exchange.started().elapsed());
    let upgraded = status == StatusCode::SWITCHING_PROTOCOLS;
    finish_head(&mut response.response, &exchange, upgraded);
    let upgrades = upgraded.then(|| {
        (
            response.client.take(),
            hyper::upgrade::on(&mut response.response),
        )
    });
    let (mut head, body) = response.response.into_parts();
    if let Some((route, chosen)) = &response.route {
        edit(&mut head.headers, &route.headers.response);
        edit(
            &mut head.headers,
            &route.destinations[*chosen].headers.response,
        );
    }
    if let Some((Some(client), server)) = upgrades {
        connection
            .worker
            .tasks
            .spawn(relay_upgraded(client, server, exchange));
        return Ok(Response::from_parts(head, ResponseBody::upgraded()));
    }
    let pool = connection.worker.pool.clone();
    let body = ResponseBody::upstream(body, response.connection, pool, exchange);
    Ok(Response::from_parts(head, body))
}

enum Answer {
    Local(Response<Bytes>),
    Upstream(Box<UpstreamAnswer>),
}

struct UpstreamAnswer {
    response: Response<Incoming>,
    connection: crate::upstream::pool::Pooled<RequestBody>,
    client: Option<OnUpgrade>,
    /// The route whose response edits apply, and the destination drawn.
    route: Option<(Arc<Route>, usize)>,
}

async fn answer(
    connection: &HttpConnection,
    parts: Parts,
    body: Incoming,
    authority: &HeaderValue,
    exchange: &mut Exchange,
) -> Result<Answer, DataError> {
    let snapshot = connection.worker.snapshots.current();
    let host = authority.to_str().map_err(|_| DataError::BadRequest {
        reason: "the Host header is not text",
    })?;
    let question = Question {
        source: connection.peer.workload.as_deref(),
        port: connection.peer.port,
        destination_ip: connection.peer.original.map(|address| address.ip()),
        names_of_ip: &[],
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
    exchange.outcome.route_name = Some(decision.route_name.clone());
    match local(&snapshot, &question, decision, exchange)? {
        Next::Answer(response) => Ok(Answer::Local(response)),
        Next::Forward(forward) => forward_to(connection, parts, body, forward, exchange).await,
        Next::Passthrough => passthrough(connection, parts, body, exchange).await,
    }
}

enum Next {
    Answer(Response<Bytes>),
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
            response.headers_mut().insert(SERVER, SERVER_NAME);
            edit(response.headers_mut(), &headers.response);
            Ok(Next::Answer(response))
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
            response.headers_mut().insert(SERVER, SERVER_NAME);
            edit(response.headers_mut(), &headers.response);
            Ok(Next::Answer(response))
        }
    }
}

async fn forward_to(
    connection: &HttpConnection,
    parts: Parts,
    body: Incoming,
    forward: Forward,
    exchange: &mut Exchange,
) -> Result<Answer, DataError> {
    let chosen = &forward.route.destinations[forward.chosen];
    let destination = &chosen.destination;
    exchange.outcome.upstream.destination = Some(destination.clone());
    let (mut request, client) = upstream_request(parts, body, exchange);
    if let Some(path) = &forward.path {
        *request.uri_mut() = Uri::try_from(path.as_str()).map_err(|_| DataError::BadRequest {
            reason: "the rewritten path is no URI",
        })?;
    }
    if let Some(authority) = &forward.authority {
        let value = HeaderValue::from_str(authority).map_err(|_| DataError::BadRequest {
            reason: "the rewritten authority is not text",
        })?;
        request.headers_mut().insert(HOST, value);
    }
    edit(request.headers_mut(), &forward.route.headers.request);
    edit(request.headers_mut(), &chosen.headers.request);
    let limit = forward.route.timeout;
    let sending = async {
        let original = connection.peer.original;
        let target = Target::of(
            &forward.route,
            destination,
            &connection.worker.addresses,
            original,
        )
        .await?;
        send(
            &connection.worker,
            &target,
            request,
            &mut exchange.outcome.upstream,
        )
        .await
    };
    let (response, pooled) = match limit {
        None => sending.await?,
        Some(limit) => tokio::time::timeout(limit, sending)
            .await
            .map_err(|_| DataError::RouteTimeout { limit })??,
    };
    let route = Some((forward.route.clone(), forward.chosen));
    Ok(Answer::Upstream(Box::new(UpstreamAnswer {
        response,
        connection: pooled,
        client,
        route,
    })))
}

/// To the original destination, without retries or timeouts (row 1.2).
async fn passthrough(
    connection: &HttpConnection,
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
    let (request, client) = upstream_request(parts, body, exchange);
    let target = Target {
        addresses: vec![original],
        connect_timeout: connection
            .worker
            .snapshots
            .current()
            .mesh
            .routing
            .connect_timeout,
        retries: None,
    };
    let (response, pooled) = send(
        &connection.worker,
        &target,
        request,
        &mut exchange.outcome.upstream,
    )
    .await?;
    let answer = UpstreamAnswer {
        response,
        connection: pooled,
        client,
        route: None,
    };
    Ok(Answer::Upstream(Box::new(answer)))
}

/// The request as the upstream sees it: origin form, HTTP/1.1, no hop-by-hop fields. Also the
/// client's half of an upgrade, when it asks for one.
fn upstream_request(
    mut parts: Parts,
    body: Incoming,
    exchange: &mut Exchange,
) -> (Request<RequestBody>, Option<OnUpgrade>) {
    let upgrade = wants_upgrade(&parts.headers);
    remove_hop_by_hop(&mut parts.headers, upgrade);
    if !parts.headers.contains_key(HOST)
        && let Some(value) = parts
            .uri
            .authority()
            .and_then(|a| HeaderValue::from_str(a.as_str()).ok())
    {
        parts.headers.insert(HOST, value);
    }
    if parts.uri.scheme().is_some() {
        let path = parts.uri.path_and_query().cloned();
        parts.uri = path.map_or_else(Uri::default, Uri::from);
    }
    parts.version = Version::HTTP_11;
    parts
        .headers
        .entry(FORWARDED_PROTO)
        .or_insert(HeaderValue::from_static("http"));
    parts
        .headers
        .insert(ATTEMPT_COUNT, HeaderValue::from_static("1"));
    let body = exchange.request_body(body);
    if body.size_hint().exact().is_none() {
        // hyper takes a GET of unknown length for one without a body.
        let chunked = HeaderValue::from_static("chunked");
        parts.headers.insert(TRANSFER_ENCODING, chunked);
    }
    let mut request = Request::from_parts(parts, body);
    let client = upgrade.then(|| {
        exchange.count_received();
        hyper::upgrade::on(&mut request)
    });
    (request, client)
}

/// The response head as the client sees it.
fn finish_head(response: &mut Response<Incoming>, exchange: &Exchange, upgraded: bool) {
    let headers = response.headers_mut();
    remove_hop_by_hop(headers, upgraded);
    headers.insert(SERVER, SERVER_NAME);
    let millis = exchange
        .outcome
        .service_time
        .unwrap_or_default()
        .as_millis();
    headers.insert(
        SERVICE_TIME,
        HeaderValue::from(u64::try_from(millis).unwrap_or(u64::MAX)),
    );
    *response.version_mut() = Version::HTTP_11;
}

/// An error as a response: one readable line.
fn refusal(error: &DataError, mut exchange: Box<Exchange>) -> Response<ResponseBody> {
    let verdict = error.verdict();
    tracing::debug!(error = %error, status = verdict.status, "request not forwarded");
    let outcome = &mut exchange.outcome;
    outcome.status = verdict.status;
    outcome.flag = verdict.flag;
    outcome.details = verdict.details;
    outcome.transport_failure = verdict.transport_failure;
    let text = error.to_string();
    let line = if text.starts_with("egress: ") {
        text
    } else {
        format!("egress: {text}")
    };
    let body = Bytes::from(line + "\n");
    let mut response = Response::new(ResponseBody::local(body, exchange));
    *response.status_mut() =
        StatusCode::from_u16(verdict.status).unwrap_or(StatusCode::BAD_GATEWAY);
    let headers = response.headers_mut();
    headers.insert(SERVER, SERVER_NAME);
    headers.insert(
        CONTENT_TYPE,
        HeaderValue::from_static("text/plain; charset=utf-8"),
    );
    response
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
async fn relay_upgraded(client: OnUpgrade, server: OnUpgrade, mut exchange: Box<Exchange>) {
    match tokio::try_join!(client, server) {
        Ok((client, server)) => {
            let (copied, _) = copy::both_ways(TokioIo::new(client), TokioIo::new(server)).await;
            exchange.record_upgraded(copied.received, copied.sent);
        }
        Err(_) => {
            exchange.outcome.flag = Some(ResponseFlag::DownstreamConnectionTermination);
            exchange.record_upgraded(0, 0);
        }
    }
}
