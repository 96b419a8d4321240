// SPDX-License-Identifier: Apache-2.0
//! Copies of requests to mirrors: fire and forget. A mirror never holds the request up: its body
//! follows at a bounded distance, its answer is thrown away, and too many at a time are not sent.

use std::{sync::Arc, time::Duration};

use ::http::header::HOST;
use http_body_util::BodyExt;
use tokio::time::timeout;

use super::{
    connection::{HttpConnection, Peer, Worker},
    error::DataError,
    exchange::Upstream,
    forward::{Outgoing, Target, send},
    headers::random,
};
use crate::routing::decision::{Destination, Endpoints, Route};

/// Time for a mirrored request when its route has no timeout; it holds a place that long at most.
const LIMIT: Duration = Duration::from_secs(60);

/// Starts the copies that a route wants of a request.
pub fn start(connection: &HttpConnection, route: &Route, request: &mut Outgoing) {
    let (worker, peer) = (&connection.worker, &connection.peer);
    // A gateway acts on its own behalf, whoever is calling.
    let client = peer.original.and(peer.workload.as_ref());
    let namespace = client.map_or("", |w| w.namespace.as_str());
    for mirror in &route.mirrors {
        let destination = mirror.destination.on_behalf_of(namespace);
        if !mirror.share.includes((random() >> 32) as u32)
            || destination.endpoints == Endpoints::Missing
        {
            continue;
        }
        let Ok(place) = worker.mirroring.clone().try_acquire_owned() else {
            tracing::debug!(cluster = %destination.cluster, "too many mirrored requests: not sent");
            continue;
        };
        let copy = Outgoing {
            head: request.head.clone(),
            body: request.body.copy(),
            progress: None,
            ..*request
        };
        let (from, of, destination) = (worker.clone(), peer.clone(), destination.clone());
        let limit = route.timeout.unwrap_or(LIMIT);
        worker.tasks.spawn(async move {
            let carried = carry(&from, &of, &destination, copy);
            match timeout(limit, carried).await {
                Ok(Ok(())) => {}
                Ok(Err(error)) => {
                    tracing::debug!(cluster = %destination.cluster, %error, "mirroring failed");
                }
                Err(_) => tracing::debug!(cluster = %destination.cluster, "mirroring timed out"),
            }
            drop(place);
        });
    }
}

async fn carry(
    worker: &Arc<Worker>,
    peer: &Peer,
    destination: &Destination,
    copy: Outgoing,
) -> Result<(), DataError> {
    let asked = copy.head.headers.get(HOST).and_then(|h| h.to_str().ok());
    let asked = asked.unwrap_or_default().to_owned();
    let target = Target::of(worker, destination, None, peer, &asked).await?;
    let (response, connection) =
        send(worker, &target, copy, &mut Upstream::default(), None).await?;
    let mut body = response.into_body();
    while let Some(frame) = body.frame().await {
        if frame.is_err() {
            return Ok(());
        }
    }
    worker.pool.put(connection);
    Ok(())
}
