// SPDX-License-Identifier: Apache-2.0
//! Listeners inside pods, on their way from discovery to the proxy threads. Who opens them and when a
//! pod is gone is `app`'s business.

use std::{collections::HashMap, sync::Arc};

use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use super::{
    connection::Worker,
    worker::{Entrance, accept_until},
};

/// Hands the workers listeners that were opened inside pods.
#[derive(Debug, Clone)]
pub struct Inside {
    workers: Vec<mpsc::UnboundedSender<InPod>>,
}

/// What a worker is told of a pod.
#[derive(Debug)]
pub(super) enum InPod {
    /// Accept from these.
    Open(u64, Vec<std::net::TcpListener>),
    /// Close them; connections go on.
    Close(u64),
}

impl Inside {
    /// Over the proxy threads, in their order.
    pub(super) fn new(workers: Vec<mpsc::UnboundedSender<InPod>>) -> Self {
        Self { workers }
    }

    /// How many listeners a pod needs for each address.
    pub fn workers(&self) -> usize {
        self.workers.len()
    }

    /// Accepts from listeners of a pod, one element for each worker. Those it had are closed.
    pub fn open(&self, netns_cookie: u64, listeners: Vec<Vec<std::net::TcpListener>>) {
        for (worker, listeners) in self.workers.iter().zip(listeners) {
            // A worker that has ended accepts nothing more.
            let _ = worker.send(InPod::Open(netns_cookie, listeners));
        }
    }

    /// Closes the listeners of a pod; its connections go on.
    pub fn close(&self, netns_cookie: u64) {
        for worker in &self.workers {
            let _ = worker.send(InPod::Close(netns_cookie));
        }
    }
}

/// Opens and closes the listeners inside a pod.
pub(super) fn follow(
    worker: &Arc<Worker>,
    change: InPod,
    inside: &mut HashMap<u64, CancellationToken>,
) {
    match change {
        InPod::Open(netns_cookie, listeners) => {
            let stop = worker.drain.child_token();
            for listener in listeners {
                let server_port = listener.local_addr().map_or(0, |address| address.port());
                let entrance = Entrance {
                    server_port,
                    pod: Some(netns_cookie),
                };
                accept_until(worker, listener, entrance, stop.clone());
            }
            if let Some(earlier) = inside.insert(netns_cookie, stop) {
                earlier.cancel();
            }
        }
        InPod::Close(netns_cookie) => {
            if let Some(stop) = inside.remove(&netns_cookie) {
                stop.cancel();
            }
        }
    }
}
