// SPDX-License-Identifier: Apache-2.0
//! Listeners inside pods, on their way from discovery to the proxy threads. Who opens them and when a
//! pod is gone is `app`'s business.

use std::{collections::HashMap, sync::Arc, time::Duration};

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
    /// Close them: the pod is gone. Its connections may finish for the drain time.
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

    /// Closes the listeners of a pod that is gone. Its connections may finish for the drain time;
    /// then they end, since each keeps the pod's network namespace.
    pub fn close(&self, netns_cookie: u64) {
        for worker in &self.workers {
            let _ = worker.send(InPod::Close(netns_cookie));
        }
    }
}

/// How the listeners and the connections of a pod end.
pub(super) struct PodEnd {
    /// No more connections.
    stop: CancellationToken,
    /// No connection any more.
    cut: CancellationToken,
}

/// Opens and closes the listeners inside a pod.
pub(super) fn follow(
    worker: &Arc<Worker>,
    change: InPod,
    inside: &mut HashMap<u64, PodEnd>,
    drain_time: Duration,
) {
    match change {
        InPod::Open(netns_cookie, listeners) => {
            let earlier = inside.remove(&netns_cookie);
            let stop = worker.drain.child_token();
            let cut = match &earlier {
                Some(earlier) => earlier.cut.clone(),
                None => CancellationToken::new(),
            };
            for listener in listeners {
                let server_port = listener.local_addr().map_or(0, |address| address.port());
                let entrance = Entrance {
                    server_port,
                    pod: Some(netns_cookie),
                };
                accept_until(worker, listener, entrance, stop.clone(), cut.clone());
            }
            if let Some(earlier) = earlier {
                earlier.stop.cancel();
            }
            inside.insert(netns_cookie, PodEnd { stop, cut });
        }
        InPod::Close(netns_cookie) => {
            let Some(end) = inside.remove(&netns_cookie) else {
                return;
            };
            end.stop.cancel();
            let drain = worker.drain.clone();
            worker.tasks.spawn(async move {
                tokio::select! {
                    () = tokio::time::sleep(drain_time) => end.cut.cancel(),
                    // Everything ends, with a time limit of its own.
                    () = drain.cancelled() => {}
                }
            });
        }
    }
}
