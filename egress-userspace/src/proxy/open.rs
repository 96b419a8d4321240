// SPDX-License-Identifier: Apache-2.0
//! The connections of clients that are open now, for `egress dump connections`.
//!
//! Each worker has a list of its own, whose lock it takes when a connection opens and closes; a
//! dump takes it to copy the pointers. What happens on a connection is written beside its
//! [`Peer`]: counters without a lock, the last decision behind a mutex that its worker takes once
//! per request. Nothing is allocated for a request that is decided as the last one was.

use std::{
    collections::HashMap,
    net::{Ipv4Addr, SocketAddr},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU8, AtomicU64, Ordering},
    },
    time::SystemTime,
};

use serde::Serialize;

use super::connection::Peer;
use crate::{routing::decision::Action, upstream::endpoint::Endpoint, workload::Workload};

/// Bytes of a host that are kept: a DNS name, a port and some more.
const MAX_HOST: usize = 300;

/// Set in [`Live::upstream4`] beside an address and port, so that it is not 0.
const KNOWN: u64 = 1 << 48;

/// What a client turned out to speak.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[repr(u8)]
pub enum Speaks {
    /// Not known yet.
    #[default]
    Detecting,
    /// HTTP/1.x, whatever it was upgraded to.
    Http1,
    /// HTTP/2.
    Http2,
    /// TLS, not terminated.
    Tls,
    /// Anything else.
    Tcp,
}

impl Speaks {
    const ALL: [Self; 5] = [
        Self::Detecting,
        Self::Http1,
        Self::Http2,
        Self::Tls,
        Self::Tcp,
    ];

    fn name(self) -> &'static str {
        match self {
            Self::Detecting => "detecting",
            Self::Http1 => "http/1.1",
            Self::Http2 => "h2",
            Self::Tls => "tls",
            Self::Tcp => "tcp",
        }
    }
}

/// What happens on one open connection. Written by its worker alone, read by dumps.
#[derive(Debug, Default)]
pub struct Live {
    speaks: AtomicU8,
    requests: AtomicU64,
    received: AtomicU64,
    sent: AtomicU64,
    /// The last endpoint when it is IPv4: `KNOWN`, 32 bits of address, 16 of port. 0: see `last`.
    upstream4: AtomicU64,
    last: Mutex<Last>,
}

/// The last decision.
#[derive(Debug, Default)]
struct Last {
    /// Empty: none.
    host: String,
    virtual_service: Option<Arc<str>>,
    cluster: Cluster,
    /// The endpoint when it is not IPv4.
    upstream: Option<Endpoint>,
}

#[derive(Debug, Default, Clone, PartialEq, Eq)]
enum Cluster {
    #[default]
    None,
    Fixed(&'static str),
    Named(Arc<str>),
}

impl Cluster {
    fn name(&self) -> Option<&str> {
        match self {
            Self::None => None,
            Self::Fixed(name) => Some(name),
            Self::Named(name) => Some(name),
        }
    }

    fn is(&self, other: ClusterOf<'_>) -> bool {
        match (self, other) {
            (Self::None, ClusterOf::None) => true,
            (Self::Fixed(own), ClusterOf::Fixed(other)) => *own == other,
            (Self::Named(own), ClusterOf::Named(other)) => Arc::ptr_eq(own, other),
            _ => false,
        }
    }
}

/// A cluster as a decision holds it.
#[derive(Clone, Copy)]
enum ClusterOf<'a> {
    None,
    Fixed(&'static str),
    Named(&'a Arc<str>),
}

impl<'a> ClusterOf<'a> {
    fn of(action: &'a Action) -> Self {
        match action {
            Action::Forward(forward) => Self::Named(&forward.destination.cluster),
            Action::ClusterNotFound { cluster } => Self::Named(cluster),
            Action::Passthrough => Self::Fixed("PassthroughCluster"),
            Action::Blackhole => Self::Fixed("BlackHoleCluster"),
            _ => Self::None,
        }
    }

    fn owned(self) -> Cluster {
        match self {
            Self::None => Cluster::None,
            Self::Fixed(name) => Cluster::Fixed(name),
            Self::Named(name) => Cluster::Named(name.clone()),
        }
    }
}

impl Live {
    /// The protocol is known.
    pub fn speaks(&self, what: Speaks) {
        self.speaks.store(what as u8, Ordering::Relaxed);
    }

    /// A request has begun.
    pub fn request(&self) {
        add(&self.requests, 1);
    }

    /// Bytes from the client: of bodies, or of all that is relayed.
    pub fn received(&self, bytes: u64) {
        add(&self.received, bytes);
    }

    /// Bytes to the client, likewise.
    pub fn sent(&self, bytes: u64) {
        add(&self.sent, bytes);
    }

    /// A decision about a request to `host` (empty: none is known). The endpoint is another one
    /// from here on.
    pub fn decided(&self, host: &str, virtual_service: Option<&Arc<str>>, action: &Action) {
        self.upstream4.store(0, Ordering::Relaxed);
        let mut last = self.last();
        let shown = &host[..host.floor_char_boundary(MAX_HOST)];
        if last.host != shown {
            last.host.clear();
            last.host.push_str(shown);
        }
        let same = match (&last.virtual_service, virtual_service) {
            (Some(own), Some(other)) => Arc::ptr_eq(own, other),
            (None, None) => true,
            _ => false,
        };
        if !same {
            last.virtual_service = virtual_service.cloned();
        }
        let cluster = ClusterOf::of(action);
        if !last.cluster.is(cluster) {
            last.cluster = cluster.owned();
        }
        last.upstream = None;
    }

    /// The endpoint that is about to be used.
    pub fn upstream(&self, endpoint: &Endpoint) {
        if let Endpoint::Ip(SocketAddr::V4(address)) = endpoint {
            let bits = u64::from(address.ip().to_bits()) << 16 | u64::from(address.port());
            self.upstream4.store(KNOWN | bits, Ordering::Relaxed);
        } else {
            self.last().upstream = Some(endpoint.clone());
            self.upstream4.store(0, Ordering::Relaxed);
        }
    }

    /// A panic elsewhere leaves a decision behind that is good to show.
    fn last(&self) -> MutexGuard<'_, Last> {
        self.last.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A tenth of the time of an atomic addition, which would care for other writers: there are none.
fn add(counter: &AtomicU64, more: u64) {
    let sum = counter.load(Ordering::Relaxed).wrapping_add(more);
    counter.store(sum, Ordering::Relaxed);
}

/// One worker's list. A clone is a handle to the same list.
#[derive(Debug, Clone, Default)]
pub struct OpenConnections(Arc<Mutex<HashMap<usize, Entry>>>);

#[derive(Debug)]
struct Entry {
    peer: Arc<Peer>,
    /// How many hold it open: its own task, and tasks that relay what it was upgraded to.
    holders: usize,
}

/// Keeps a connection in its worker's list.
#[derive(Debug)]
pub struct Registered {
    list: OpenConnections,
    key: usize,
}

impl OpenConnections {
    /// Adds a connection, until what is returned is dropped.
    pub fn add(&self, peer: &Arc<Peer>) -> Registered {
        // The entry keeps the peer alive, so that no other one has its address meanwhile.
        let key = Arc::as_ptr(peer).addr();
        let mut list = self.lock();
        let entry = list.entry(key).or_insert_with(|| Entry {
            peer: peer.clone(),
            holders: 0,
        });
        entry.holders += 1;
        Registered {
            list: self.clone(),
            key,
        }
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<usize, Entry>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Registered {
    fn drop(&mut self) {
        let mut list = self.list.lock();
        if let Some(entry) = list.get_mut(&self.key) {
            entry.holders -= 1;
            if entry.holders == 0 {
                list.remove(&self.key);
            }
        }
    }
}

/// The lists of all workers.
#[derive(Debug, Clone, Default)]
pub struct Connections(Vec<OpenConnections>);

impl Connections {
    /// Over these lists.
    pub fn new(lists: Vec<OpenConnections>) -> Self {
        Self(lists)
    }

    /// What is open now, by the time at which it was accepted. Holds each worker's lock while
    /// pointers are copied.
    pub fn all(&self) -> Vec<OpenConnection> {
        let mut peers: Vec<Arc<Peer>> = Vec::new();
        for list in &self.0 {
            peers.extend(list.lock().values().map(|entry| entry.peer.clone()));
        }
        peers.sort_by_key(|peer| (peer.started, peer.remote));
        peers.iter().map(|peer| OpenConnection::of(peer)).collect()
    }
}

/// An open connection at one moment, as `/connections` shows it.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct OpenConnection {
    /// `NAMESPACE/NAME` of the caller, or its name alone; `None`: unknown.
    pub workload: Option<String>,
    /// The caller's namespace.
    pub source_namespace: Option<String>,
    /// The caller's name.
    pub source_workload: Option<String>,
    /// The caller's service account.
    pub source_service_account: Option<String>,
    /// Its address and port; port 0 when a trusted proxy tells none.
    pub source: SocketAddr,
    /// Where it wanted to go; `None` on a gateway that was not told.
    pub original_destination: Option<SocketAddr>,
    /// Port of the listener that it came in by: the node's, or the Gateway server's.
    pub entrance: u16,
    /// `detecting`, `http/1.1`, `h2`, `tls` or `tcp`.
    pub protocol: &'static str,
    /// The last host or server name asked for.
    pub host: Option<String>,
    /// The VirtualService that decided last.
    pub virtual_service: Option<String>,
    /// The cluster of the last decision.
    pub cluster: Option<String>,
    /// The last endpoint; a path for a Unix socket.
    pub upstream: Option<String>,
    /// HTTP requests begun.
    pub requests: u64,
    /// Bytes from the client until now: of request bodies, or relayed.
    pub bytes_received: u64,
    /// Bytes to the client, likewise.
    pub bytes_sent: u64,
    /// When it was accepted, RFC 3339 in UTC.
    pub started: String,
    /// Whole seconds since.
    pub age_seconds: u64,
}

impl OpenConnection {
    fn of(peer: &Peer) -> Self {
        let workload = peer.workload.as_deref();
        let known = |text: &str| (!text.is_empty()).then(|| text.to_owned());
        let live = &peer.live;
        let last = live.last();
        let upstream = match live.upstream4.load(Ordering::Relaxed) {
            0 => last.upstream.clone(),
            bits => Some(endpoint4(bits)),
        };
        let speaks = usize::from(live.speaks.load(Ordering::Relaxed));
        Self {
            workload: workload.and_then(Workload::qualified_name),
            source_namespace: workload.and_then(|of| known(&of.namespace)),
            source_workload: workload.and_then(|of| known(&of.name)),
            source_service_account: workload.and_then(|of| known(&of.service_account)),
            source: peer.remote,
            original_destination: peer.original_destination(),
            entrance: peer.entrance,
            protocol: Speaks::ALL.get(speaks).copied().unwrap_or_default().name(),
            host: known(&last.host),
            virtual_service: last.virtual_service.as_deref().map(str::to_owned),
            cluster: last.cluster.name().map(str::to_owned),
            upstream: upstream.map(|endpoint| endpoint.to_string()),
            requests: live.requests.load(Ordering::Relaxed),
            bytes_received: live.received.load(Ordering::Relaxed),
            bytes_sent: live.sent.load(Ordering::Relaxed),
            started: rfc3339(peer.start),
            age_seconds: peer.started.elapsed().as_secs(),
        }
    }
}

#[allow(
    clippy::cast_possible_truncation,
    reason = "takes the bits apart that `Live::upstream` put together"
)]
fn endpoint4(bits: u64) -> Endpoint {
    let address = Ipv4Addr::from_bits((bits >> 16) as u32);
    Endpoint::Ip(SocketAddr::from((address, bits as u16)))
}

/// With milliseconds; empty for a clock that is out of all bounds.
fn rfc3339(time: SystemTime) -> String {
    jiff::Timestamp::try_from(time).map_or_else(|_| String::new(), |time| format!("{time:.3}"))
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use tokio_util::sync::CancellationToken;

    use super::*;

    fn peer(port: u16) -> Peer {
        Peer::new(
            SocketAddr::from(([10, 88, 1, 2], port)),
            SocketAddr::from(([203, 0, 113, 10], 80)),
            15001,
            CancellationToken::new(),
        )
    }

    #[test]
    fn connections_are_listed_by_start_until_the_last_holder_is_gone() {
        let lists = [OpenConnections::default(), OpenConnections::default()];
        let all = Connections::new(lists.to_vec());
        let mut late = peer(1);
        late.started = Instant::now() + Duration::from_secs(1);
        let late = lists[0].add(&Arc::new(late));
        let upgraded = Arc::new(peer(2));
        let early = lists[1].add(&upgraded);
        let relaying = lists[1].add(&upgraded);
        let ports = || -> Vec<u16> { all.all().iter().map(|c| c.source.port()).collect() };
        assert_eq!(ports(), [2, 1]);
        drop(early);
        assert_eq!(ports(), [2, 1], "its upgrade is still relayed");
        drop(relaying);
        assert_eq!(ports(), [1]);
        drop(late);
        assert!(ports().is_empty());
    }

    #[test]
    fn the_last_decision_and_endpoint_are_shown() {
        let list = OpenConnections::default();
        let all = Connections::new(vec![list.clone()]);
        let mut peer = peer(40000);
        peer.start = SystemTime::UNIX_EPOCH + Duration::from_millis(1500);
        peer.workload = Some(Arc::new(Workload {
            name: "nightly.service".into(),
            ..Workload::default()
        }));
        let peer = Arc::new(peer);
        let _open = list.add(&peer);
        let shown = || all.all().remove(0);
        let first = shown();
        assert_eq!(first.protocol, "detecting");
        assert_eq!(first.started, "1970-01-01T00:00:01.500Z");
        assert_eq!(first.workload.as_deref(), Some("nightly.service"));
        assert_eq!(
            (first.host, first.cluster, first.upstream),
            (None, None, None)
        );

        let live = &peer.live;
        live.speaks(Speaks::Http1);
        live.request();
        live.decided("httpbin.org:80", Some(&"a/vs".into()), &Action::Passthrough);
        assert_eq!(shown().upstream, None, "none is chosen yet");
        for endpoint in ["203.0.113.10:65535", "[2001:db8::1]:80"] {
            live.upstream(&Endpoint::Ip(endpoint.parse().unwrap()));
            assert_eq!(shown().upstream.as_deref(), Some(endpoint));
        }
        live.sent(7);
        live.received(8);
        let second = shown();
        assert_eq!(second.protocol, "http/1.1");
        assert_eq!(second.host.as_deref(), Some("httpbin.org:80"));
        assert_eq!(second.virtual_service.as_deref(), Some("a/vs"));
        assert_eq!(second.cluster.as_deref(), Some("PassthroughCluster"));
        let counts = (second.requests, second.bytes_sent, second.bytes_received);
        assert_eq!(counts, (1, 7, 8));

        live.decided(&"é".repeat(MAX_HOST), None, &Action::NoRoute);
        let third = shown();
        assert_eq!(third.host.map(|host| host.len()), Some(MAX_HOST));
        assert_eq!((third.virtual_service, third.cluster), (None, None));
        assert_eq!(third.upstream, None);
    }
}
