// SPDX-License-Identifier: Apache-2.0
//! One accepted socket from start to end; the place to begin reading. Who is it and where did it
//! want to go, what does it speak, and then the protocol's own forwarding.

use std::{
    io,
    net::SocketAddr,
    sync::{Arc, OnceLock},
    time::{Duration, Instant, SystemTime},
};

use bytes::{Bytes, BytesMut};
use hyper::{
    server::conn::{http1, http2},
    service::service_fn,
};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::{net::TcpStream, sync::Semaphore};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use super::{
    access_log::{REFUSED_DIRECT, Recorder},
    detect::{Detected, detect},
    exchange::HttpPool,
    http,
    open::{Live, OpenConnections, Speaks},
    prefixed::Prefixed,
    proxy_protocol::{self, Caller, REFUSED_BAD, REFUSED_UNTRUSTED, Received},
    tcp::{self, Relay},
    worker::{Downstream, Entrance},
};
use crate::{
    config::snapshot::Snapshot,
    latest::Latest,
    routing::{
        decision::{Action, Traffic},
        service::Protocol,
        table::OutboundPolicy,
    },
    upstream::{
        connect::unmapped,
        preface::Preface,
        resolve::{AddressBook, OnDemand},
    },
    workload::Workload,
};

/// How long a port that nobody declared may stay silent before it is taken for a protocol whose
/// server speaks first (Istio's `protocolDetectionTimeout` was 100 ms for the same reason).
const DETECT_LIMIT: Duration = Duration::from_millis(100);

/// How long a client may take for a request head, idle time between requests included (Istio's
/// idle timeout: 1 h).
const HEAD_LIMIT: Duration = Duration::from_secs(3600);

/// HTTP/2 flow control: bytes in flight on one stream, and on a connection. Enough for 100 ms at
/// 80 and 640 Mbit/s.
pub const STREAM_WINDOW: u32 = 1 << 20;
/// See [`STREAM_WINDOW`].
pub const CONNECTION_WINDOW: u32 = 8 << 20;

/// Largest header list taken over HTTP/2, bytes (Envoy's `max_request_headers_kb`: 60).
pub const MAX_HEADER_LIST: u32 = 60 << 10;

/// Streams that a client may have open on one connection.
const MAX_STREAMS: u32 = 1024;

/// Mirrored requests at a time, for each worker.
pub const MAX_MIRRORED: usize = 256;

/// What every task of one worker shares.
#[derive(Debug)]
pub struct Worker {
    /// Where accepted sockets come from.
    pub downstream: Downstream,
    /// The configuration in force.
    pub snapshots: Latest<Snapshot>,
    /// Addresses of names.
    pub addresses: Latest<AddressBook>,
    /// Where to ask for more names.
    pub on_demand: Arc<OnDemand>,
    /// Idle upstream connections.
    pub pool: Arc<HttpPool>,
    /// Places for mirrored requests.
    pub mirroring: Arc<Semaphore>,
    /// Hosts whose connections begin with a PROXY protocol header.
    pub proxy_protocol_to: Arc<[String]>,
    /// Access log and metrics.
    pub recorder: Recorder,
    /// What is open now.
    pub open: OpenConnections,
    /// Every task, for the drain.
    pub tasks: TaskTracker,
    /// Stop accepting and finish.
    pub drain: CancellationToken,
}

/// Runs hyper's tasks among the worker's.
#[derive(Debug, Clone)]
pub struct Tasks(pub TaskTracker);

impl<F> hyper::rt::Executor<F> for Tasks
where
    F: Future<Output: Send + 'static> + Send + 'static,
{
    fn execute(&self, task: F) {
        self.0.spawn(task);
    }
}

/// The two ends of a downstream connection and who is behind it.
#[derive(Debug)]
pub struct Peer {
    /// The client.
    pub remote: SocketAddr,
    /// What the client believes it is connected to.
    pub local: SocketAddr,
    /// Original destination; `None` on a gateway.
    pub original: Option<SocketAddr>,
    /// Original destination that a trusted proxy told; for logs only.
    pub told: Option<SocketAddr>,
    /// The port that rules are matched against: original destination's, or the server's.
    pub port: u16,
    /// Port of the listener that it came in by.
    pub entrance: u16,
    /// Who is calling.
    pub workload: Option<Arc<Workload>>,
    /// When the connection was accepted.
    pub start: SystemTime,
    /// The same on the monotonic clock.
    pub started: Instant,
    /// What happens on it, for `egress dump connections`.
    pub live: Live,
    /// Cancelled when the connection has to end, since its pod is gone.
    pub cut: CancellationToken,
    /// Made when first asked for.
    preface: OnceLock<Preface>,
}

impl Peer {
    /// A connection accepted now of which nothing but its addresses is known.
    pub fn new(
        remote: SocketAddr,
        local: SocketAddr,
        entrance: u16,
        cut: CancellationToken,
    ) -> Self {
        Self {
            remote,
            local,
            original: None,
            told: None,
            port: entrance,
            entrance,
            workload: None,
            start: SystemTime::now(),
            started: Instant::now(),
            live: Live::default(),
            cut,
            preface: OnceLock::new(),
        }
    }

    /// The same connection, on behalf of the caller that a trusted proxy tells.
    fn introduced(&self, caller: Caller) -> Self {
        Self {
            original: self.original,
            told: Some(caller.destination),
            workload: caller.workload.map(Arc::new),
            port: self.port,
            start: self.start,
            started: self.started,
            ..Self::new(caller.source, self.local, self.entrance, self.cut.clone())
        }
    }

    /// Where the client wanted to go, by the kernel or by a trusted proxy; for logs.
    pub fn original_destination(&self) -> Option<SocketAddr> {
        self.original.or(self.told)
    }

    /// Whether it came to a gateway without a trusted proxy's word for it.
    pub fn is_stranger(&self) -> bool {
        self.original.is_none() && self.told.is_none()
    }

    /// What tells an egress gateway of this peer at the start of connections that its requests
    /// share. `None` on a gateway, which has nobody's identity from the kernel.
    pub fn preface(&self) -> Option<Preface> {
        let original = self.original?;
        let preface = self.preface.get_or_init(|| self.preface_of(0, original));
        Some(preface.clone())
    }

    /// The same for a connection that is this one's alone.
    pub fn own_preface(&self) -> Option<Preface> {
        Some(self.preface_of(self.remote.port(), self.original?))
    }

    fn preface_of(&self, port: u16, original: SocketAddr) -> Preface {
        let source = SocketAddr::new(self.remote.ip(), port);
        proxy_protocol::encode(source, original, self.workload.as_deref())
    }
}

/// What each request of a connection needs.
#[derive(Debug, Clone)]
pub struct HttpConnection {
    /// Its worker.
    pub worker: Arc<Worker>,
    /// Its ends.
    pub peer: Arc<Peer>,
}

/// Serves one socket, accepted at `entrance`, until it ends or `cut` is cancelled.
pub async fn serve(
    worker: Arc<Worker>,
    mut stream: TcpStream,
    remote: SocketAddr,
    entrance: Entrance,
    cut: CancellationToken,
) {
    let result = async {
        stream.set_nodelay(true)?;
        let local = stream.local_addr()?;
        let Some(peer) = identify(&worker, (local, remote), entrance, cut) else {
            return Ok(());
        };
        let mut peer = Arc::new(peer);
        let mut open = worker.open.add(&peer);
        let mut seen = BytesMut::new();
        if let Downstream::Gateway(trusted) = &worker.downstream
            && trusted.contains(peer.remote.ip())
        {
            match introduce(&worker, &mut stream, &mut seen, &peer).await? {
                Introduction::None => {}
                Introduction::Of(caller) => {
                    peer = Arc::new(peer.introduced(*caller));
                    open = worker.open.add(&peer);
                }
                Introduction::Refused => return Ok(()),
            }
        }
        let served = dispatch(&worker, stream, seen, peer).await;
        drop(open);
        served
    }
    .await;
    if let Err(error) = result {
        // Peers closing early is normal.
        tracing::debug!(%remote, %error, "connection ended early");
    }
}

/// The original destination and the caller. `None`: not redirected by us, hence refused; never
/// guessed from the socket's own address.
fn identify(
    worker: &Worker,
    (local, mut remote): (SocketAddr, SocketAddr),
    entrance: Entrance,
    cut: CancellationToken,
) -> Option<Peer> {
    let (local, original, port, workload) = match &worker.downstream {
        Downstream::Gateway(_) => (unmapped(local), None, entrance.server_port, None),
        Downstream::Mesh(take) => match take(entrance.pod, local, remote) {
            Some(capture) => {
                let original = unmapped(capture.destination.0);
                if let Some(address) = capture.address {
                    remote.set_ip(address);
                }
                (original, Some(original), original.port(), capture.workload)
            }
            None => {
                tracing::debug!(%remote, "connection to the proxy port was not redirected: refused");
                worker.recorder.connection_refused(REFUSED_DIRECT);
                return None;
            }
        },
    };
    Some(Peer {
        original,
        port,
        workload,
        ..Peer::new(unmapped(remote), local, entrance.server_port, cut)
    })
}

/// What a trusted proxy says first.
enum Introduction {
    /// Nothing: it speaks for itself.
    None,
    /// Whom it speaks for.
    Of(Box<Caller>),
    /// To be closed.
    Refused,
}

/// Takes the PROXY protocol header of a trusted proxy, if there is one.
async fn introduce(
    worker: &Worker,
    stream: &mut TcpStream,
    seen: &mut BytesMut,
    peer: &Peer,
) -> io::Result<Introduction> {
    let declared = worker.snapshots.current().table.port_protocol(peer.port);
    let client_first = matches!(declared, Protocol::Tcp | Protocol::Auto);
    let received = tokio::select! {
        received = proxy_protocol::receive(stream, seen, !client_first) => received?,
        () = worker.drain.cancelled() => return Ok(Introduction::Refused),
    };
    Ok(match received {
        Received::Caller(None) => Introduction::None,
        Received::Caller(Some(caller)) => Introduction::Of(caller),
        Received::Bad(reason) => {
            tracing::debug!(remote = %peer.remote, %reason, "bad PROXY protocol header: closed");
            worker.recorder.connection_refused(REFUSED_BAD);
            Introduction::Refused
        }
    })
}

async fn dispatch(
    worker: &Arc<Worker>,
    mut stream: TcpStream,
    seen: BytesMut,
    peer: Arc<Peer>,
) -> io::Result<()> {
    let snapshot = worker.snapshots.current();
    let declared = snapshot.table.port_protocol(peer.port);
    let limit = match declared {
        Protocol::Tcp => None,
        Protocol::Auto => Some(DETECT_LIMIT),
        _ => None,
    };
    if declared == Protocol::Tcp {
        let traffic = Traffic::Tcp;
        peer.live.speaks(Speaks::Tcp);
        return relay(worker, &snapshot, stream, seen.freeze(), peer, traffic).await;
    }
    let (detected, seen) = tokio::select! {
        found = detect(&mut stream, seen, limit) => found?,
        () = worker.drain.cancelled() => return Ok(()),
    };
    peer.live.speaks(match detected {
        Detected::Closed => Speaks::Detecting,
        Detected::Http1 if declared != Protocol::Tls => Speaks::Http1,
        Detected::Http2 if declared != Protocol::Tls => Speaks::Http2,
        Detected::Tls(_) if declared != Protocol::Http => Speaks::Tls,
        _ => Speaks::Tcp,
    });
    match detected {
        Detected::Closed => Ok(()),
        Detected::Http1 if declared != Protocol::Tls => {
            serve_http1(worker, Prefixed::new(seen, stream), peer).await
        }
        Detected::Http2 if declared != Protocol::Tls => {
            serve_http2(worker, Prefixed::new(seen, stream), peer).await
        }
        Detected::Tls(name) if declared != Protocol::Http => {
            let traffic = Traffic::Tls {
                sni: name.as_deref(),
            };
            relay(worker, &snapshot, stream, seen, peer, traffic).await
        }
        _ if peer.is_stranger() && proxy_protocol::begins(&seen) => {
            refuse_stranger(worker, &peer);
            Ok(())
        }
        _ if declared == Protocol::Auto => {
            relay(worker, &snapshot, stream, seen, peer, Traffic::Tcp).await
        }
        _ => undeclared(worker, &snapshot, stream, seen, peer).await,
    }
}

/// A PROXY protocol header from an address that is not trusted: to be closed.
pub fn refuse_stranger(worker: &Worker, peer: &Peer) {
    tracing::debug!(remote = %peer.remote, "PROXY protocol header of a stranger: closed");
    worker.recorder.connection_refused(REFUSED_UNTRUSTED);
}

/// Bytes that are not what the port declares: to the original destination under ALLOW_ANY, closed
/// under REGISTRY_ONLY and on a gateway.
async fn undeclared(
    worker: &Arc<Worker>,
    snapshot: &Snapshot,
    stream: TcpStream,
    seen: Bytes,
    peer: Arc<Peer>,
) -> io::Result<()> {
    let policy = snapshot.table.outbound_policy(peer.workload.as_deref());
    let relay = match peer.original {
        Some(_) if policy == OutboundPolicy::AllowAny => {
            peer.live.decided("", None, &Action::Passthrough);
            Relay::passthrough(peer, snapshot.mesh.routing.connect_timeout)
        }
        Some(_) => {
            peer.live.decided("", None, &Action::Blackhole);
            Relay::refused(peer, "BlackHoleCluster")
        }
        None => Relay::refused(peer, ""),
    };
    tcp::relay(worker, relay, stream, seen).await
}

async fn relay(
    worker: &Arc<Worker>,
    snapshot: &Snapshot,
    stream: TcpStream,
    seen: Bytes,
    peer: Arc<Peer>,
    traffic: Traffic<'_>,
) -> io::Result<()> {
    let relay = tcp::decide(worker, snapshot, peer, traffic);
    tcp::relay(worker, relay, stream, seen).await
}

async fn serve_http1(worker: &Arc<Worker>, io: Prefixed, peer: Arc<Peer>) -> io::Result<()> {
    let cut = peer.cut.clone();
    let connection = HttpConnection {
        worker: worker.clone(),
        peer,
    };
    let service = service_fn(move |request| http::serve(connection.clone(), request));
    let serving = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_LIMIT)
        .half_close(true)
        .pipeline_flush(true)
        .serve_connection(TokioIo::new(io), service)
        .with_upgrades();
    let mut serving = std::pin::pin!(serving);
    let result = tokio::select! {
        result = serving.as_mut() => result,
        () = cut.cancelled() => return Err(io::ErrorKind::ConnectionAborted.into()),
        () = worker.drain.cancelled() => {
            serving.as_mut().graceful_shutdown();
            serving.await
        }
    };
    result.map_err(io::Error::other)
}

async fn serve_http2(worker: &Arc<Worker>, io: Prefixed, peer: Arc<Peer>) -> io::Result<()> {
    let cut = peer.cut.clone();
    let connection = HttpConnection {
        worker: worker.clone(),
        peer,
    };
    let service = service_fn(move |request| http::serve(connection.clone(), request));
    let serving = http2::Builder::new(Tasks(worker.tasks.clone()))
        .timer(TokioTimer::new())
        .initial_stream_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .max_header_list_size(MAX_HEADER_LIST)
        .max_concurrent_streams(MAX_STREAMS)
        .serve_connection(TokioIo::new(io), service);
    let mut serving = std::pin::pin!(serving);
    let result = tokio::select! {
        result = serving.as_mut() => result,
        () = cut.cancelled() => return Err(io::ErrorKind::ConnectionAborted.into()),
        () = worker.drain.cancelled() => {
            serving.as_mut().graceful_shutdown();
            serving.await
        }
    };
    result.map_err(io::Error::other)
}
