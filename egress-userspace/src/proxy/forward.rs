// SPDX-License-Identifier: Apache-2.0
//! A decided request to an upstream and its response back: endpoint, connection, stale connections,
//! retries. Carries out; decides nothing.

use std::{
    net::SocketAddr,
    sync::Arc,
    time::{Duration, Instant},
};

use ::http::{HeaderValue, Request, Response};
use hyper::{body::Incoming, client::conn::http1};
use hyper_util::rt::TokioIo;

use super::{
    connection::Worker,
    error::DataError,
    exchange::{RequestBody, Upstream},
    headers::{ATTEMPT_COUNT, random},
};
use crate::{
    latest::Latest,
    routing::{
        decision::{Destination, Route},
        retry::{RetryCondition, RetryPolicy},
    },
    upstream::{
        connect::{Candidates, candidates, connect},
        pool::Pooled,
        resolve::AddressBook,
    },
};

/// First wait before a retry; doubled each time (row 5b.11: 25 ms).
const BACKOFF: Duration = Duration::from_millis(25);

/// A response head and the connection it came on.
pub type Answered = (Response<Incoming>, Pooled<RequestBody>);

/// Where a request may go.
pub struct Target<'a> {
    /// Addresses to choose from; at least one.
    pub addresses: Vec<SocketAddr>,
    /// Limit of one connect.
    pub connect_timeout: Duration,
    /// Retries; `None`: one try.
    pub retries: Option<&'a RetryPolicy>,
}

impl<'a> Target<'a> {
    /// The addresses of a routed destination; waits for a name that has not been answered yet.
    ///
    /// # Errors
    /// When the destination has no address.
    pub async fn of(
        route: &'a Route,
        destination: &Destination,
        addresses: &Latest<AddressBook>,
        original: Option<SocketAddr>,
    ) -> Result<Self, DataError> {
        let deadline = tokio::time::Instant::now() + destination.connect_timeout;
        let cluster = || destination.cluster.to_string();
        loop {
            let mut next = addresses.receiver();
            match candidates(destination, &addresses.current(), original) {
                Candidates::Addresses(addresses) => {
                    return Ok(Self {
                        addresses,
                        connect_timeout: destination.connect_timeout,
                        retries: route.retries.as_ref(),
                    });
                }
                Candidates::Pending(host) => {
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

/// Sends a request. Connect failures are retried by the policy, on another address when there is
/// one; a kept connection that turns out closed before anything was sent costs no retry.
///
/// # Errors
/// The last try's error. `upstream` tells where it went either way.
pub async fn send(
    worker: &Arc<Worker>,
    target: &Target<'_>,
    mut request: Request<RequestBody>,
    upstream: &mut Upstream,
) -> Result<Answered, DataError> {
    let retries = target
        .retries
        .filter(|policy| policy.retry_on.contains(RetryCondition::ConnectFailure))
        .map_or(0, |policy| policy.attempts);
    let first = random() as usize % target.addresses.len();
    let mut tries = 0;
    let mut connection = loop {
        let address = target.addresses[(first + tries as usize) % target.addresses.len()];
        upstream.host = Some(address);
        if let Some(kept) = worker.pool.take(address) {
            break kept;
        }
        match dial(worker, address, target.connect_timeout).await {
            Ok(connection) => break connection,
            Err(_) if tries < retries => {
                tries += 1;
                request
                    .headers_mut()
                    .insert(ATTEMPT_COUNT, HeaderValue::from(tries + 1));
                backoff(tries, target.addresses.len()).await;
            }
            Err(error) => return Err(error),
        }
    };
    upstream.local = Some(connection.local);
    match connection.sender.try_send_request(request).await {
        Ok(response) => Ok((response, connection)),
        Err(mut failure) => match failure.take_message() {
            // Nothing was sent: the connection had been closed while it was kept.
            Some(request) => {
                let mut fresh = dial(worker, connection.peer, target.connect_timeout).await?;
                upstream.local = Some(fresh.local);
                let sent = fresh.sender.send_request(request).await;
                sent.map(|response| (response, fresh)).map_err(broken)
            }
            None => Err(broken(failure.into_error())),
        },
    }
}

/// Waits only when the next try goes to the same address.
async fn backoff(tries: u32, addresses: usize) {
    if addresses == 1 {
        let base = BACKOFF * 2_u32.saturating_pow(tries - 1);
        let jitter = base.mul_f64(random() as f64 / u64::MAX as f64);
        tokio::time::sleep(jitter).await;
    }
}

fn broken(source: hyper::Error) -> DataError {
    if source.is_parse() {
        DataError::UpstreamProtocol { source }
    } else {
        DataError::Reset { source }
    }
}

async fn dial(
    worker: &Arc<Worker>,
    endpoint: SocketAddr,
    limit: Duration,
) -> Result<Pooled<RequestBody>, DataError> {
    let begun = Instant::now();
    let failed = |source: std::io::Error| {
        if source.kind() == std::io::ErrorKind::TimedOut && begun.elapsed() >= limit {
            DataError::ConnectTimeout { endpoint, limit }
        } else {
            DataError::Connect { endpoint, source }
        }
    };
    let stream = connect(endpoint, limit).await.map_err(failed)?;
    let local = stream.local_addr().map_err(failed)?;
    let (sender, connection) = http1::Builder::new()
        .handshake(TokioIo::new(stream))
        .await
        .map_err(|source| DataError::Reset { source })?;
    worker.tasks.spawn(async move {
        // Its end is seen by whoever uses the sender; on its own it is no event.
        let _ = connection.with_upgrades().await;
    });
    Ok(Pooled {
        sender,
        local,
        peer: endpoint,
    })
}
