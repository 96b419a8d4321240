// SPDX-License-Identifier: Apache-2.0
//! Opaque connections: TLS by server name, TCP by address, and whatever goes to its original
//! destination. Decide, dial, copy, record.

use std::{borrow::Cow, io, sync::Arc, time::Duration};

use bytes::Bytes;
use tokio::{io::AsyncWriteExt, net::TcpStream};

use super::{
    access_log::{AccessRecord, ResponseFlag, ResponseFlags, TrafficLabels},
    connection::{Peer, Worker, refuse_stranger},
    copy::{self, Copied},
    error::{DataError, Verdict},
    exchange::Upstream,
    forward::Target,
    headers::random,
    proxy_protocol,
};
use crate::{
    config::snapshot::Snapshot,
    routing::decision::{Action, Destination, Request, Traffic, Why},
    upstream::{
        connect::connect,
        endpoint::{Endpoint, Stream},
    },
};

/// A decided connection.
pub struct Relay {
    peer: Arc<Peer>,
    server_name: String,
    upstream: Upstream,
    next: Next,
}

enum Next {
    Close,
    Original(Duration),
    Destination(Arc<Destination>),
}

impl Relay {
    /// To the original destination.
    pub fn passthrough(peer: Arc<Peer>, connect_timeout: Duration) -> Self {
        Self::new(peer, "PassthroughCluster", Next::Original(connect_timeout))
    }

    /// Closed; the cluster says by what.
    pub fn refused(peer: Arc<Peer>, cluster: &'static str) -> Self {
        Self::new(peer, cluster, Next::Close)
    }

    fn new(peer: Arc<Peer>, cluster: &'static str, next: Next) -> Self {
        let upstream = Upstream {
            cluster,
            ..Upstream::default()
        };
        Self {
            peer,
            server_name: String::new(),
            upstream,
            next,
        }
    }
}

/// Asks the table about a connection.
pub fn decide(
    worker: &Worker,
    snapshot: &Snapshot,
    peer: Arc<Peer>,
    traffic: Traffic<'_>,
) -> Relay {
    let ip = peer.original.map(|address| address.ip());
    let book = worker.addresses.current();
    let names = match (ip, traffic) {
        (Some(ip), Traffic::Tcp) => book.names_of(ip),
        _ => &[],
    };
    let question = Request {
        source: peer.workload.as_deref(),
        port: peer.port,
        destination_ip: ip,
        names_of_ip: names,
        traffic,
    };
    let draw = (random() >> 32) as u32;
    let decision = snapshot.table.decide(&question, draw, &mut Why::off());
    let host = match traffic {
        Traffic::Tls { sni } => sni.unwrap_or_default(),
        _ => "",
    };
    let virtual_service = decision.virtual_service.as_ref();
    peer.live.decided(host, virtual_service, &decision.action);
    let mut relay = match decision.action {
        Action::Forward(forward) => {
            let destination = forward.destination;
            let mut relay = Relay::new(peer, "", Next::Destination(destination.clone()));
            relay.upstream.destination = Some(destination);
            relay
        }
        Action::Passthrough => Relay::passthrough(peer, snapshot.mesh.routing.connect_timeout),
        Action::Blackhole => Relay::refused(peer, "BlackHoleCluster"),
        _ => {
            let reason = snapshot.table.reason(&question);
            tracing::debug!(remote = %peer.remote, %reason, "connection refused");
            Relay::refused(peer, "")
        }
    };
    if let Traffic::Tls { sni: Some(name) } = traffic {
        relay.server_name = name.to_owned();
    }
    relay
}

/// Carries a connection to its end and records it.
///
/// # Errors
/// When copying ends in an error; the record is written either way.
pub async fn relay(
    worker: &Arc<Worker>,
    mut relay: Relay,
    downstream: TcpStream,
    seen: Bytes,
) -> io::Result<()> {
    let labels = TrafficLabels {
        source: relay.peer.workload.as_deref(),
        destination_service: relay.upstream.service(),
        destination_namespace: relay.upstream.namespace(),
        upstream_cluster: relay.upstream.cluster(),
    };
    worker.recorder.tcp_opened(&labels);
    let (copied, result, failure) = match dial(worker, &mut relay).await {
        Ok(None) => {
            let flag = match relay.upstream.cluster {
                "BlackHoleCluster" => ResponseFlag::NoHealthyUpstream,
                _ => ResponseFlag::NoRouteFound,
            };
            let verdict = Verdict {
                status: 0,
                flag: Some(flag),
                details: "",
                transport_failure: Cow::Borrowed(""),
            };
            (Copied::default(), Ok(()), Some(verdict))
        }
        Ok(Some(upstream)) if speaks_for_another(&relay, &downstream, &upstream, &seen).await => {
            refuse_stranger(worker, &relay.peer);
            let verdict = Verdict {
                status: 0,
                flag: Some(ResponseFlag::DownstreamProtocolError),
                details: "",
                transport_failure: Cow::Borrowed(""),
            };
            (Copied::default(), Ok(()), Some(verdict))
        }
        Ok(Some(upstream)) => {
            let (copied, result) = carry(&relay.peer, downstream, upstream, seen).await;
            (copied, result, None)
        }
        Err(error) => (Copied::default(), Ok(()), Some(error.verdict())),
    };
    record(worker, &relay, copied, failure);
    result
}

/// Whether a stranger's first bytes are a PROXY protocol header. Asked where nobody has looked at
/// them yet; a server that speaks first is not made to wait for them.
async fn speaks_for_another(
    relay: &Relay,
    downstream: &TcpStream,
    upstream: &Stream,
    seen: &[u8],
) -> bool {
    if !relay.peer.is_stranger() || !seen.is_empty() {
        return false;
    }
    let mut first = [0; proxy_protocol::SIGNATURE.len()];
    tokio::select! {
        biased;
        peeked = downstream.peek(&mut first) => {
            proxy_protocol::begins(&first[..peeked.unwrap_or_default()])
        }
        _ = upstream.readable() => false,
    }
}

/// Until both sides have ended; the drain's deadline ends what does not end by itself.
async fn carry(
    peer: &Peer,
    downstream: TcpStream,
    mut upstream: Stream,
    seen: Bytes,
) -> (Copied, io::Result<()>) {
    if let Err(error) = upstream.write_all(&seen).await {
        return (Copied::default(), Err(error));
    }
    peer.live.received(seen.len() as u64);
    let (mut copied, result) = copy::both_ways(downstream, upstream, peer).await;
    copied.received += seen.len() as u64;
    (copied, result)
}

/// `None`: to be closed.
async fn dial(worker: &Worker, relay: &mut Relay) -> Result<Option<Stream>, DataError> {
    let (mut first, mut preface) = (0, None);
    let (addresses, limit) = match &relay.next {
        Next::Close => return Ok(None),
        Next::Original(limit) => (
            relay
                .peer
                .original
                .map(Endpoint::Ip)
                .into_iter()
                .collect::<Vec<_>>(),
            *limit,
        ),
        Next::Destination(destination) => {
            let name = &relay.server_name;
            let target = Target::of(worker, destination, None, &relay.peer, name).await?;
            first = target.draw();
            preface = target.preface.and_then(|_| relay.peer.own_preface());
            (target.addresses, target.connect_timeout)
        }
    };
    let mut last = None;
    for offset in 0..addresses.len() {
        let endpoint = &addresses[first.wrapping_add(offset) % addresses.len()];
        relay.upstream.host = Some(endpoint.clone());
        relay.peer.live.upstream(endpoint);
        match connect(endpoint, limit, preface.as_ref()).await {
            Ok(stream) => {
                relay.upstream.local = stream.local().ok().flatten();
                return Ok(Some(stream));
            }
            Err(source) => {
                let endpoint = endpoint.clone();
                last = Some(DataError::Connect { endpoint, source });
            }
        }
    }
    Err(last.unwrap_or_else(|| DataError::NoEndpoints {
        cluster: relay.upstream.cluster().to_owned(),
    }))
}

fn record(worker: &Worker, relay: &Relay, copied: Copied, failure: Option<Verdict>) {
    let (flag, transport_failure) =
        failure.map_or((None, Cow::Borrowed("")), |v| (v.flag, v.transport_failure));
    let (peer, upstream) = (&relay.peer, &relay.upstream);
    worker.recorder.record(&AccessRecord {
        start: peer.start,
        duration: peer.started.elapsed(),
        http: None,
        response_code: 0,
        response_flags: flag.map_or(ResponseFlags::NONE, Into::into),
        details: Cow::Borrowed(""),
        termination_details: Cow::Borrowed(""),
        transport_failure,
        bytes_received: copied.received,
        bytes_sent: copied.sent,
        upstream_service_time: None,
        upstream_host: upstream.host.as_ref(),
        upstream_cluster: upstream.cluster(),
        upstream_local: upstream.local,
        downstream_local: Some(peer.local),
        downstream_remote: Some(peer.remote),
        requested_server_name: &relay.server_name,
        route_name: "",
        destination_service: upstream.service(),
        destination_namespace: upstream.namespace(),
        source: peer.workload.as_deref(),
        original_destination: peer.original_destination(),
    });
}
