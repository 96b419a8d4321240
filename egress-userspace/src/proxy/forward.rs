// SPDX-License-Identifier: Apache-2.0
//! A decided request to an upstream and its response back: endpoint, connection, stale connections,
//! retries. Carries out; decides nothing.

use std::{error::Error, net::IpAddr, sync::Arc, time::Duration};

use ::http::{
    HeaderValue, Request, Response,
    header::{CONTENT_LENGTH, TRANSFER_ENCODING},
    request::Parts,
};
use http_body::Body;
use hyper::{
    body::Incoming,
    client::conn::{TrySendError, http1, http2},
};
use hyper_util::rt::{TokioIo, TokioTimer};

use super::{
    body::{Progress, RequestBody, deadline},
    connection::{CONNECTION_WINDOW, MAX_HEADER_LIST, Peer, STREAM_WINDOW, Tasks, Worker},
    error::DataError,
    exchange::{HttpPool, Upstream},
    headers::{ATTEMPT_COUNT, random},
    open::Live,
    retry, translate,
};
use crate::{
    routing::{
        decision::{Destination, Endpoints, UpstreamHttp},
        host,
        retry::RetryPolicy,
        service::Protocol,
    },
    upstream::{
        connect::{Candidates, ConnectError, candidates, connect},
        endpoint::{Endpoint, Stream},
        pool::{Http2, Key, Pooled, Sender},
        preface::Preface,
    },
};

/// A response head and the connection it came on.
pub type Answered = (Response<Incoming>, Pooled<RequestBody>);

/// Where a request may go.
#[derive(Debug)]
pub struct Target<'a> {
    /// Addresses to choose from; at least one.
    pub addresses: Vec<Endpoint>,
    /// Their weights; none: all equal.
    pub weights: Vec<u32>,
    /// Limit of one connect.
    pub connect_timeout: Duration,
    /// Retries; `None`: one try.
    pub retries: Option<&'a RetryPolicy>,
    /// What is spoken there.
    pub http: UpstreamHttp,
    /// It is a forward proxy: targets stay absolute.
    pub forward_proxy: bool,
    /// What connections there begin with.
    pub preface: Option<Preface>,
}

impl<'a> Target<'a> {
    /// The addresses of a routed destination; waits for a name that has not been answered yet.
    ///
    /// # Errors
    /// When the destination has no address.
    pub async fn of(
        worker: &Worker,
        destination: &Destination,
        retries: Option<&'a RetryPolicy>,
        peer: &Peer,
        asked: &str,
    ) -> Result<Self, DataError> {
        let addresses = &worker.addresses;
        let asked = host::normalize(asked);
        if matches!(destination.endpoints, Endpoints::FromRequest { .. })
            && asked.parse::<IpAddr>().is_err()
            && !worker.on_demand.want(&asked)
        {
            return Err(DataError::Unresolved {
                host: asked.into_owned(),
                reason: "too many names are asked for at once".to_owned(),
            });
        }
        let deadline = tokio::time::Instant::now() + destination.connect_timeout;
        let cluster = || destination.cluster.to_string();
        let told =
            destination.proxy_protocol || worker.proxy_protocol_to.contains(&destination.host);
        loop {
            let mut next = addresses.receiver();
            match candidates(destination, &addresses.current(), peer.original, &asked) {
                Candidates::Addresses(addresses, weights) => {
                    return Ok(Self {
                        addresses,
                        weights,
                        connect_timeout: destination.connect_timeout,
                        retries,
                        http: destination.http,
                        forward_proxy: destination.protocol == Protocol::HttpProxy,
                        preface: told.then(|| peer.preface()).flatten(),
                    });
                }
                Candidates::Pending(host) | Candidates::Unknown(host) => {
                    let answered = tokio::time::timeout_at(deadline, next.changed()).await;
                    if !matches!(answered, Ok(Ok(()))) {
                        let reason = "the resolver has not answered".to_owned();
                        return Err(DataError::Unresolved { host, reason });
                    }
                }
                Candidates::Unresolved(host, reason) => {
                    return Err(DataError::Unresolved { host, reason });
                }
                Candidates::Empty => return Err(DataError::NoEndpoints { cluster: cluster() }),
                Candidates::Unsupported(what) => {
                    return Err(DataError::Unsupported {
                        cluster: cluster(),
                        what,
                    });
                }
            }
        }
    }
}

impl Target<'_> {
    /// The less busy of two random addresses (Istio's default LEAST_REQUEST); by weight when there
    /// are weights.
    fn least_busy(&self, pool: &HttpPool) -> usize {
        let count = self.addresses.len();
        let first = self.draw() % count;
        if count == 1 || !self.weights.is_empty() {
            return first;
        }
        let other = (first + 1 + random() as usize % (count - 1)) % count;
        let requests = |at: usize| pool.requests(&self.addresses[at]);
        if requests(other) < requests(first) {
            other
        } else {
            first
        }
    }

    /// Where to begin: a random address, by weight when there are weights.
    pub fn draw(&self) -> usize {
        let total: u64 = self.weights.iter().map(|weight| u64::from(*weight)).sum();
        if total == 0 {
            return random() as usize;
        }
        let mut ticket = random() % total;
        let drawn = self.weights.iter().position(|weight| {
            let weight = u64::from(*weight);
            let hit = ticket < weight;
            ticket = ticket.saturating_sub(weight);
            hit
        });
        drawn.unwrap_or_default()
    }
}

/// A request on its way: its authority is in Host, its target as the client wrote it.
#[derive(Debug)]
pub struct Outgoing {
    /// Head.
    pub head: Parts,
    /// Body.
    pub body: RequestBody,
    /// How far the body has come; `None` without one.
    pub progress: Option<Arc<Progress>>,
    /// The client speaks HTTP/2.
    pub client_http2: bool,
    /// It is gRPC.
    pub grpc: bool,
    /// It turns the connection into another protocol's: HTTP/1.1, and never sent twice.
    pub upgrade: bool,
}

/// Sends a request, again as the retry policy wants it. A kept connection that turns out closed
/// before anything was sent costs no retry.
///
/// # Errors
/// The last try's error. `upstream` tells where it went either way, `live` while it goes.
pub async fn send(
    worker: &Arc<Worker>,
    target: &Target<'_>,
    outgoing: Outgoing,
    upstream: &mut Upstream,
    live: Option<&Live>,
) -> Result<Answered, DataError> {
    let Outgoing {
        mut head,
        body,
        progress,
        ..
    } = outgoing;
    let http2 = match target.http {
        UpstreamHttp::Http1 => false,
        UpstreamHttp::Http2 => !outgoing.upgrade,
        UpstreamHttp::AsClient => outgoing.client_http2 && !outgoing.upgrade,
    };
    if http2 {
        translate::to_http2(&mut head)?;
    } else {
        translate::to_http1(&mut head, target.forward_proxy);
        if body.size_hint().exact().is_none() && !head.headers.contains_key(CONTENT_LENGTH) {
            // hyper takes a GET of unknown length for one without a body.
            let chunked = HeaderValue::from_static("chunked");
            head.headers.insert(TRANSFER_ENCODING, chunked);
        }
    }
    let policy = target.retries;
    let attempts = policy.map_or(0, |policy| policy.attempts);
    let keeps = !outgoing.upgrade
        && policy.is_some_and(|policy| retry::needs_request(policy, http2, outgoing.grpc));
    let (body, keeper) = if keeps {
        let (body, keeper) = body.keep();
        (body, Some(keeper))
    } else {
        (body, None)
    };
    let (mut head, mut body) = (Some(head), Some(body));
    let mut endpoints = Choice::new(target, &worker.pool);
    let mut retries = 0;
    let answered = loop {
        let address = endpoints.next();
        upstream.host = Some(address.clone());
        if let Some(live) = live {
            live.upstream(address);
        }
        let key = Key {
            endpoint: address.clone(),
            preface: target.preface.clone(),
        };
        let answered = match acquire(worker, key, http2, target.connect_timeout).await {
            Err(error) => Err(error),
            Ok(mut connection) => {
                upstream.local = connection.local;
                if target.addresses.len() > 1 {
                    connection.busy = Some(worker.pool.count_request(address));
                }
                let parts = if keeps && retries < attempts {
                    head.clone()
                } else {
                    head.take()
                };
                let (Some(parts), Some(body)) = (parts, body.take()) else {
                    return Err(DataError::ClientGone);
                };
                let request = Request::from_parts(parts, body);
                let sending = exchange(worker, target, connection, request, progress.as_deref());
                match policy.and_then(|policy| policy.per_try_timeout) {
                    None => sending.await,
                    Some(limit) => tokio::select! {
                        answered = sending => answered,
                        () = deadline(progress.clone(), limit) => {
                            Err(DataError::PerTryTimeout { limit })
                        }
                    },
                }
            }
        };
        let Some(policy) = policy.filter(|policy| match &answered {
            Ok((response, _)) if keeps => {
                retry::of_answer(policy, response.status().as_u16(), response.headers())
            }
            Ok(_) => false,
            Err(error) => retry::of_error(policy, error),
        }) else {
            break answered;
        };
        if retries == attempts {
            upstream.retries_exhausted = true;
            break answered;
        }
        // A failed connect has not used the body; anything else has.
        if body.is_none() {
            body = keeper.as_ref().and_then(super::body::Keeper::again);
        }
        let (Some(head), Some(_)) = (&mut head, &body) else {
            break answered;
        };
        drop(answered);
        retries += 1;
        if let Some(count) = head.headers.get_mut(ATTEMPT_COUNT) {
            *count = HeaderValue::from(retries + 1);
        }
        tokio::time::sleep(retry::backoff(policy.backoff, retries, random())).await;
    };
    if let Some(keeper) = keeper {
        keeper.release();
    }
    if let Ok((_, connection)) = &answered {
        upstream.local = connection.local;
    }
    answered
}

/// The order in which endpoints are tried: from the first choice on, so that a retry meets another
/// one when there is one.
struct Choice<'a> {
    addresses: &'a [Endpoint],
    at: usize,
    again: bool,
}

impl<'a> Choice<'a> {
    fn new(target: &'a Target<'_>, pool: &HttpPool) -> Self {
        Self {
            addresses: &target.addresses,
            at: target.least_busy(pool),
            again: target.retries.is_some_and(|p| !p.ignore_previous_hosts),
        }
    }

    fn next(&mut self) -> &'a Endpoint {
        let address = &self.addresses[self.at % self.addresses.len()];
        self.at = if self.again {
            random() as usize
        } else {
            self.at.wrapping_add(1)
        };
        address
    }
}

/// One try on a connection.
async fn exchange(
    worker: &Arc<Worker>,
    target: &Target<'_>,
    mut connection: Pooled<RequestBody>,
    request: Request<RequestBody>,
    progress: Option<&Progress>,
) -> Result<Answered, DataError> {
    let failure = match try_send(&mut connection.sender, request).await {
        Ok(response) => return Ok((response, connection)),
        Err(failure) => failure,
    };
    let mut failure = failure;
    let Some(request) = failure.take_message() else {
        return Err(broken(failure.into_error(), progress));
    };
    // Nothing was sent: the connection had been closed while it was kept.
    let http2 = matches!(connection.sender, Sender::Http2(..));
    let (key, busy) = (connection.key.clone(), connection.busy.take());
    drop(connection);
    let mut fresh = if http2 {
        acquire(worker, key, true, target.connect_timeout).await?
    } else {
        dial_http1(worker, key, target.connect_timeout).await?
    };
    fresh.busy = busy;
    match try_send(&mut fresh.sender, request).await {
        Ok(response) => Ok((response, fresh)),
        Err(mut failure) => Err(match failure.take_message() {
            Some(_) => DataError::NotSent {
                source: failure.into_error(),
            },
            None => broken(failure.into_error(), progress),
        }),
    }
}

async fn try_send(
    sender: &mut Sender<RequestBody>,
    request: Request<RequestBody>,
) -> Result<Response<Incoming>, TrySendError<Request<RequestBody>>> {
    match sender {
        Sender::Http1(sender) => sender.try_send_request(request).await,
        Sender::Http2(sender, _) => sender.try_send_request(request).await,
    }
}

/// Whose fault it is that no response came.
fn broken(source: hyper::Error, progress: Option<&Progress>) -> DataError {
    if progress.is_some_and(Progress::is_broken) {
        return DataError::ClientGone;
    }
    let h2 = source
        .source()
        .and_then(|cause| cause.downcast_ref::<h2::Error>());
    match h2 {
        Some(h2) if h2.reason() == Some(h2::Reason::REFUSED_STREAM) => DataError::RefusedStream,
        Some(h2) if h2.is_library() => DataError::UpstreamProtocol { source },
        _ if source.is_parse() => DataError::UpstreamProtocol { source },
        _ => DataError::Reset { source },
    }
}

/// A connection that can carry a request now: a kept one, or a new one.
async fn acquire(
    worker: &Arc<Worker>,
    key: Key,
    http2: bool,
    limit: Duration,
) -> Result<Pooled<RequestBody>, DataError> {
    if !http2 {
        return match worker.pool.take_http1(&key) {
            Some(kept) => Ok(kept),
            None => dial_http1(worker, key, limit).await,
        };
    }
    loop {
        match worker.pool.http2(&key) {
            Http2::Ready(connection) => return Ok(connection),
            Http2::Wait(mut result) => {
                // Its sender goes when the dialling is over, whatever became of it.
                let failed = match result.changed().await {
                    Ok(()) => result.borrow().clone(),
                    Err(_) => None,
                };
                if let Some(source) = failed {
                    return Err(unreachable(&key, source));
                }
            }
            Http2::Dial(dialling) => {
                let stream = match dial(&key, limit).await {
                    Ok(stream) => stream,
                    Err(source) => {
                        dialling.failed(&source);
                        return Err(unreachable(&key, source));
                    }
                };
                let local = stream
                    .local()
                    .map_err(|error| unreachable(&key, error.into()))?;
                let (sender, connection) = http2::Builder::new(Tasks(worker.tasks.clone()))
                    .timer(TokioTimer::new())
                    .initial_stream_window_size(STREAM_WINDOW)
                    .initial_connection_window_size(CONNECTION_WINDOW)
                    .max_header_list_size(MAX_HEADER_LIST)
                    .handshake(TokioIo::new(stream))
                    .await
                    .map_err(|source| DataError::Reset { source })?;
                worker.tasks.spawn(async move {
                    // Its end is seen by whoever uses a stream; on its own it is no event.
                    let _ = connection.await;
                });
                return Ok(dialling.succeeded(sender, local));
            }
        }
    }
}

/// A failed connect to an endpoint.
fn unreachable(key: &Key, source: ConnectError) -> DataError {
    DataError::Connect {
        endpoint: key.endpoint.clone(),
        source,
    }
}

async fn dial(key: &Key, limit: Duration) -> Result<Stream, ConnectError> {
    connect(&key.endpoint, limit, key.preface.as_ref()).await
}

async fn dial_http1(
    worker: &Arc<Worker>,
    key: Key,
    limit: Duration,
) -> Result<Pooled<RequestBody>, DataError> {
    let stream = dial(&key, limit)
        .await
        .map_err(|source| unreachable(&key, source))?;
    let local = stream
        .local()
        .map_err(|error| unreachable(&key, error.into()))?;
    let (sender, connection) = http1::Builder::new()
        .handshake(TokioIo::new(stream))
        .await
        .map_err(|source| DataError::Reset { source })?;
    worker.tasks.spawn(async move {
        // As above.
        let _ = connection.with_upgrades().await;
    });
    Ok(Pooled {
        sender: Sender::Http1(sender),
        local,
        key,
        unused: 0,
        busy: None,
    })
}

#[cfg(test)]
mod tests {
    use std::{collections::HashMap, net::SocketAddr};

    use super::*;

    fn endpoint(n: u8) -> Endpoint {
        Endpoint::Ip(SocketAddr::from(([192, 0, 2, n], 80)))
    }

    /// Endpoints 1 to `count`, without weights.
    fn target(count: u8) -> Target<'static> {
        Target {
            addresses: (1..=count).map(endpoint).collect(),
            weights: Vec::new(),
            connect_timeout: Duration::from_secs(1),
            retries: None,
            http: UpstreamHttp::Http1,
            forward_proxy: false,
            preface: None,
        }
    }

    #[test]
    fn requests_go_to_the_less_busy_endpoint() {
        let mut target = target(2);
        let pool = HttpPool::default();
        let mut held = Vec::new();
        let mut share = HashMap::new();
        for _ in 0..20 {
            let chosen = Choice::new(&target, &pool).next().clone();
            held.push(pool.count_request(&chosen));
            *share.entry(chosen).or_insert(0) += 1;
        }
        assert_eq!(share, HashMap::from([(endpoint(1), 10), (endpoint(2), 10)]));
        held.clear();
        assert_eq!(pool.requests(&endpoint(1)), 0);
        target.weights = vec![0, 1];
        let _busy = pool.count_request(&endpoint(2));
        assert_eq!(
            *Choice::new(&target, &pool).next(),
            endpoint(2),
            "by weight"
        );
    }

    #[test]
    fn retries_meet_every_endpoint_before_one_again() {
        let target = target(3);
        let pool = HttpPool::default();
        let mut choice = Choice::new(&target, &pool);
        let tried: std::collections::HashSet<_> = (0..3).map(|_| choice.next().clone()).collect();
        assert_eq!(tried.len(), 3);
    }
}
