// SPDX-License-Identifier: Apache-2.0
//! Upstream HTTP connections of one worker, by endpoint and by what they began with: idle HTTP/1.1
//! ones, shared HTTP/2 ones.
//! Knows connections, not requests; dials nothing itself.

use std::{
    collections::HashMap,
    net::SocketAddr,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
};

use hyper::client::conn::{http1, http2};
use tokio::sync::watch;

use super::{connect::ConnectError, endpoint::Endpoint, preface::Preface};

/// Idle HTTP/1.1 connections kept for one endpoint; more are closed.
const MAX_IDLE: usize = 512;

/// Streams on one HTTP/2 connection before another one is opened. Where the peer allows fewer, the
/// rest waits.
const MAX_STREAMS: usize = 100;

/// Sweeps that a connection which began with a preface survives unused. Few requests fit it, so
/// many such connections would stay behind; others are kept until the peer closes them.
const MAX_UNUSED: u8 = 6;

/// What makes connections alike.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Key {
    /// Where they go.
    pub endpoint: Endpoint,
    /// What they began with.
    pub preface: Option<Preface>,
}

impl From<Endpoint> for Key {
    fn from(endpoint: Endpoint) -> Self {
        Self {
            endpoint,
            preface: None,
        }
    }
}

/// A connection that can carry a request.
#[derive(Debug)]
pub struct Pooled<B> {
    /// hyper's end of it.
    pub sender: Sender<B>,
    /// Our address on it; none on a Unix socket.
    pub local: Option<SocketAddr>,
    /// What it is found by.
    pub key: Key,
    /// Sweeps since its last use.
    pub unused: u8,
    /// Counts among the endpoint's requests, where somebody compares endpoints.
    pub busy: Option<Stream>,
}

/// hyper's end of a connection.
#[derive(Debug)]
pub enum Sender<B> {
    /// For one request at a time.
    Http1(http1::SendRequest<B>),
    /// One stream of a shared connection.
    Http2(http2::SendRequest<B>, Stream),
}

/// Counts as a stream of its connection, or as a request of its endpoint, while it lives.
#[derive(Debug)]
pub struct Stream(Arc<AtomicUsize>);

impl Stream {
    fn of(open: &Arc<AtomicUsize>) -> Self {
        open.fetch_add(1, Ordering::Relaxed);
        Self(open.clone())
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// The connections of one worker thread. The lock is never contended: only tasks of that thread
/// take it, and none holds it across an await; it is there because tasks must be `Send`.
#[derive(Debug)]
pub struct Pool<B> {
    endpoints: Mutex<Endpoints<B>>,
}

#[derive(Debug)]
struct Endpoints<B> {
    idle: HashMap<Key, Vec<Pooled<B>>>,
    shared: HashMap<Key, Shared<B>>,
    /// Requests under way, of endpoints that are compared with others.
    busy: HashMap<Endpoint, Arc<AtomicUsize>>,
    /// Draining: nothing is kept any more.
    closed: bool,
}

/// The HTTP/2 connections of one endpoint.
#[derive(Debug)]
struct Shared<B> {
    connections: Vec<Connection<B>>,
    /// There while one is being dialled.
    dialling: Option<watch::Receiver<Option<ConnectError>>>,
}

#[derive(Debug)]
struct Connection<B> {
    sender: http2::SendRequest<B>,
    local: Option<SocketAddr>,
    open: Arc<AtomicUsize>,
    /// Sweeps since its last use.
    unused: u8,
}

impl<B> Default for Pool<B> {
    fn default() -> Self {
        Self {
            endpoints: Mutex::new(Endpoints {
                idle: HashMap::new(),
                shared: HashMap::new(),
                busy: HashMap::new(),
                closed: false,
            }),
        }
    }
}

impl<B> Default for Shared<B> {
    fn default() -> Self {
        Self {
            connections: Vec::new(),
            dialling: None,
        }
    }
}

/// How to come to an HTTP/2 stream.
#[derive(Debug)]
pub enum Http2<B> {
    /// A stream of an open connection.
    Ready(Pooled<B>),
    /// The caller is to dial.
    Dial(Dialling<B>),
    /// Somebody dials: ends when that is done, with the error if it failed.
    Wait(watch::Receiver<Option<ConnectError>>),
}

impl<B> Pool<B> {
    /// The most recently used HTTP/1.1 connection that is ready; closed ones are dropped on the
    /// way.
    pub fn take_http1(&self, key: &Key) -> Option<Pooled<B>> {
        let mut endpoints = self.lock();
        let list = endpoints.idle.get_mut(key)?;
        let mut at = list.len();
        while at > 0 {
            at -= 1;
            let Sender::Http1(sender) = &list[at].sender else {
                continue;
            };
            if sender.is_closed() {
                list.swap_remove(at);
                at = at.min(list.len());
            } else if sender.is_ready() {
                return Some(list.swap_remove(at));
            }
        }
        None
    }

    /// Requests under way at an endpoint, as far as they are counted.
    pub fn requests(&self, peer: &Endpoint) -> usize {
        let endpoints = self.lock();
        let busy = endpoints.busy.get(peer);
        busy.map_or(0, |count| count.load(Ordering::Relaxed))
    }

    /// Counts a request at an endpoint while the result lives.
    pub fn count_request(&self, peer: &Endpoint) -> Stream {
        Stream::of(self.lock().busy.entry(peer.clone()).or_default())
    }

    /// Keeps an HTTP/1.1 connection whose response has been read to its end, and gives an HTTP/2
    /// stream back.
    pub fn put(&self, mut connection: Pooled<B>) {
        connection.busy = None;
        connection.unused = 0;
        match &connection.sender {
            Sender::Http1(sender) if !sender.is_closed() => {}
            _ => return,
        }
        let mut endpoints = self.lock();
        if endpoints.closed {
            return;
        }
        let list = endpoints.idle.entry(connection.key.clone()).or_default();
        if list.len() < MAX_IDLE {
            list.push(connection);
        }
    }

    /// A stream on the least busy HTTP/2 connection, or who opens one. One connection at a time is
    /// dialled for an endpoint, so that a burst of requests does not make a burst of connections.
    pub fn http2(self: &Arc<Self>, key: &Key) -> Http2<B> {
        let mut endpoints = self.lock();
        let shared = endpoints.shared.entry(key.clone()).or_default();
        shared.connections.retain(|c| !c.sender.is_closed());
        let open = |c: &Connection<B>| c.open.load(Ordering::Relaxed);
        let free = shared.connections.iter_mut();
        let free = free.filter(|c| open(c) < MAX_STREAMS);
        if let Some(c) = free.min_by_key(|c| open(c)) {
            c.unused = 0;
            return Http2::Ready(Pooled {
                sender: Sender::Http2(c.sender.clone(), Stream::of(&c.open)),
                local: c.local,
                key: key.clone(),
                unused: 0,
                busy: None,
            });
        }
        if let Some(result) = &shared.dialling {
            return Http2::Wait(result.clone());
        }
        let (result, receiver) = watch::channel(None);
        shared.dialling = Some(receiver);
        Http2::Dial(Dialling {
            pool: self.clone(),
            key: key.clone(),
            result,
        })
    }

    /// Drops what has been closed, and what began with a preface and was not used for long.
    pub fn sweep(&self) {
        let mut endpoints = self.lock();
        let over = |key: &Key, unused: &mut u8| {
            *unused = unused.saturating_add(1);
            key.preface.is_some() && *unused > MAX_UNUSED
        };
        endpoints.idle.retain(|key, list| {
            list.retain_mut(|c| {
                matches!(&c.sender, Sender::Http1(sender) if !sender.is_closed())
                    && !over(key, &mut c.unused)
            });
            !list.is_empty()
        });
        endpoints.shared.retain(|key, shared| {
            shared.connections.retain_mut(|c| {
                let busy = c.open.load(Ordering::Relaxed) > 0;
                !c.sender.is_closed() && (busy || !over(key, &mut c.unused))
            });
            !shared.connections.is_empty() || shared.dialling.is_some()
        });
        let idle = |count: &Arc<AtomicUsize>| count.load(Ordering::Relaxed) == 0;
        endpoints.busy.retain(|_, count| !idle(count));
    }

    /// Drops what is idle, and keeps nothing from now on; connections in use end with their use.
    pub fn close(&self) {
        let mut endpoints = self.lock();
        endpoints.closed = true;
        endpoints.idle.clear();
        endpoints.shared.clear();
    }

    fn lock(&self) -> MutexGuard<'_, Endpoints<B>> {
        self.endpoints
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }
}

/// The right to dial an endpoint; whoever waits is woken when it is used or dropped.
#[derive(Debug)]
pub struct Dialling<B> {
    pool: Arc<Pool<B>>,
    key: Key,
    result: watch::Sender<Option<ConnectError>>,
}

impl<B> Dialling<B> {
    /// Shares a connection that was made, and takes its first stream.
    pub fn succeeded(self, sender: http2::SendRequest<B>, local: Option<SocketAddr>) -> Pooled<B> {
        let open = Arc::default();
        let first = Pooled {
            sender: Sender::Http2(sender.clone(), Stream::of(&open)),
            local,
            key: self.key.clone(),
            unused: 0,
            busy: None,
        };
        let connection = Connection {
            sender,
            local,
            open,
            unused: 0,
        };
        let mut endpoints = self.pool.lock();
        if !endpoints.closed {
            let shared = endpoints.shared.entry(self.key.clone()).or_default();
            shared.connections.push(connection);
        }
        drop(endpoints);
        first
    }

    /// Tells everybody who waits that it failed.
    pub fn failed(self, error: &ConnectError) {
        self.result.send_replace(Some(error.clone()));
    }
}

impl<B> Drop for Dialling<B> {
    fn drop(&mut self) {
        if let Some(shared) = self.pool.lock().shared.get_mut(&self.key) {
            shared.dialling = None;
        }
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use http_body_util::Empty;
    use hyper_util::rt::{TokioExecutor, TokioIo};
    use tokio::io::{DuplexStream, duplex};

    use super::*;

    type Body = Empty<Bytes>;

    fn key(preface: Option<&[u8]>) -> Key {
        let address: SocketAddr = "192.0.2.1:80".parse().unwrap();
        Key {
            preface: preface.map(|bytes| bytes.to_vec().into()),
            ..Key::from(Endpoint::from(address))
        }
    }

    /// A connection and its other end, which must be kept.
    async fn http1(key: Key) -> (Pooled<Body>, DuplexStream) {
        let (ours, theirs) = duplex(1024);
        let (mut sender, connection) = http1::handshake(TokioIo::new(ours)).await.unwrap();
        tokio::spawn(connection);
        sender.ready().await.unwrap();
        let pooled = Pooled {
            sender: Sender::Http1(sender),
            local: None,
            key,
            unused: 0,
            busy: None,
        };
        (pooled, theirs)
    }

    async fn dialled(pool: &Arc<Pool<Body>>, key: &Key) -> (Pooled<Body>, DuplexStream) {
        let Http2::Dial(dialling) = pool.http2(key) else {
            panic!("there is one already");
        };
        let (ours, theirs) = duplex(1024);
        let io = TokioIo::new(ours);
        let (sender, connection) = http2::handshake(TokioExecutor::new(), io).await.unwrap();
        tokio::spawn(connection);
        (dialling.succeeded(sender, None), theirs)
    }

    #[tokio::test]
    async fn connections_serve_those_they_began_with_only() {
        let keys = [key(None), key(Some(b"one")), key(Some(b"two"))];
        let pool = Arc::new(Pool::default());
        let mut ends = Vec::new();
        for (round, kept) in keys.iter().enumerate() {
            let (pooled, end) = http1(kept.clone()).await;
            ends.push(end);
            pool.put(pooled);
            for asked in &keys {
                let found = pool.take_http1(asked);
                assert_eq!(found.is_some(), asked == kept, "{asked:?}");
                found.into_iter().for_each(|found| pool.put(found));
            }
            drop(pool.take_http1(kept));

            let (_stream, end) = dialled(&pool, kept).await;
            ends.push(end);
            for (at, asked) in keys.iter().enumerate() {
                let shared = matches!(pool.http2(asked), Http2::Ready(_));
                assert_eq!(shared, at <= round, "{asked:?}");
            }
        }
        assert_eq!(key(Some(b"one")), keys[1], "equal bytes, equal keys");
    }

    #[tokio::test]
    async fn unused_connections_that_began_with_a_preface_are_dropped() {
        let pool = Arc::new(Pool::default());
        let (plain, told) = (key(None), key(Some(b"one")));
        let (first, _end) = http1(plain.clone()).await;
        let (second, _end) = http1(told.clone()).await;
        pool.put(first);
        pool.put(second);
        let (stream, _end) = dialled(&pool, &told).await;
        let sweep = |times: u8| (0..times).for_each(|_| pool.sweep());
        sweep(MAX_UNUSED);
        let used = pool.take_http1(&told).expect("not over yet");
        pool.put(used);
        sweep(MAX_UNUSED);
        assert!(pool.take_http1(&told).is_some(), "its use began it anew");
        let (again, _end) = http1(told.clone()).await;
        pool.put(again);
        sweep(MAX_UNUSED + 1);
        assert!(pool.take_http1(&told).is_none());
        assert!(pool.take_http1(&plain).is_some(), "kept for good");
        assert!(matches!(pool.http2(&told), Http2::Ready(_)), "in use");
        drop(stream);
        sweep(MAX_UNUSED + 1);
        assert!(matches!(pool.http2(&told), Http2::Dial(_)));
    }
}
