// SPDX-License-Identifier: Apache-2.0
//! Idle HTTP/1.1 connections of one worker, by endpoint. Knows connections, not requests.

use std::{
    collections::HashMap,
    net::SocketAddr,
    sync::{Mutex, MutexGuard, PoisonError},
};

use hyper::client::conn::http1::SendRequest;

/// Idle connections kept for one endpoint; more are closed.
const MAX_IDLE: usize = 512;

/// A connection that can carry a request.
#[derive(Debug)]
pub struct Pooled<B> {
    /// hyper's end of it.
    pub sender: SendRequest<B>,
    /// Our address on it.
    pub local: SocketAddr,
    /// The endpoint.
    pub peer: SocketAddr,
}

/// The idle connections of one worker thread. The lock is never contended: only tasks of that
/// thread take it, and none holds it across an await; it is there because tasks must be `Send`.
#[derive(Debug)]
pub struct Pool<B> {
    idle: Mutex<HashMap<SocketAddr, Vec<Pooled<B>>>>,
}

impl<B> Default for Pool<B> {
    fn default() -> Self {
        Self { idle: Mutex::default() }
    }
}

impl<B> Pool<B> {
    /// The most recently used connection that is ready; closed ones are dropped on the way.
    pub fn take(&self, peer: SocketAddr) -> Option<Pooled<B>> {
        let mut idle = self.lock();
        let list = idle.get_mut(&peer)?;
        let mut at = list.len();
        while at > 0 {
            at -= 1;
            if list[at].sender.is_closed() {
                list.swap_remove(at);
                at = at.min(list.len());
            } else if list[at].sender.is_ready() {
                return Some(list.swap_remove(at));
            }
        }
        None
    }

    /// Keeps a connection whose response has been read to its end.
    pub fn put(&self, connection: Pooled<B>) {
        if connection.sender.is_closed() {
            return;
        }
        let mut idle = self.lock();
        let list = idle.entry(connection.peer).or_default();
        if list.len() < MAX_IDLE {
            list.push(connection);
        }
    }

    /// Drops what has been closed, and everything when draining.
    pub fn sweep(&self, all: bool) {
        self.lock().retain(|_, list| {
            list.retain(|connection| !all && !connection.sender.is_closed());
            !list.is_empty()
        });
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<SocketAddr, Vec<Pooled<B>>>> {
        self.idle.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
