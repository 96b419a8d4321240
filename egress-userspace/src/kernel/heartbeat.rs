// SPDX-License-Identifier: Apache-2.0
//! Shows the kernel programs that the agent is alive. When the beat stops, `--failure-policy`
//! decides about registered destinations.
//!
//! A thread of its own: a long rebuild of the configuration must not look like a death.

use std::{
    sync::mpsc::{self, RecvTimeoutError, Sender},
    thread::{self, JoinHandle},
    time::Duration,
};

use aya::maps::{Array, MapData};

use super::{error::KernelError, syscall::monotonic_ns};

/// Time between two beats.
const INTERVAL: Duration = Duration::from_millis(250);
/// Age from which the agent counts as dead: a machine too busy to run a thread for so long would
/// not serve connections either.
pub const LIMIT: Duration = Duration::from_secs(2);

/// The nice value of least niceness (nice(2)).
const MOST_FAVOURABLE: libc::c_int = -20;

/// A beating heart; stops when dropped.
#[derive(Debug)]
pub struct Heartbeat {
    stop: Option<Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Heartbeat {
    /// Beats once, then starts the thread.
    pub fn start(mut map: Array<MapData, u64>) -> Result<Self, KernelError> {
        beat(&mut map)?;
        let (stop, stopped) = mpsc::channel();
        let thread = thread::Builder::new()
            .name("heartbeat".to_owned())
            .spawn(move || {
                prefer();
                while stopped.recv_timeout(INTERVAL) == Err(RecvTimeoutError::Timeout) {
                    if let Err(error) = beat(&mut map) {
                        tracing::error!(%error, "heartbeat");
                    }
                }
            })
            .map_err(|source| KernelError::Call {
                action: "start the heartbeat thread",
                source,
            })?;
        Ok(Self {
            stop: Some(stop),
            thread: Some(thread),
        })
    }
}

impl Drop for Heartbeat {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            // It logs what goes wrong and does not panic.
            let _ = thread.join();
        }
    }
}

/// Lets this thread run before others on a busy machine, where that is allowed (CAP_SYS_NICE): it
/// needs next to nothing, and a late beat looks like a death.
fn prefer() {
    // SAFETY: no memory is involved; on Linux the call means the calling thread (setpriority(2)).
    if unsafe { libc::setpriority(libc::PRIO_PROCESS, 0, MOST_FAVOURABLE) } != 0 {
        tracing::debug!("the heartbeat runs at the usual priority");
    }
}

/// Writes the time by the clock of the kernel programs.
fn beat(map: &mut Array<MapData, u64>) -> Result<(), KernelError> {
    let now = monotonic_ns().map_err(|source| KernelError::Call {
        action: "read CLOCK_MONOTONIC",
        source,
    })?;
    map.set(0, now, 0).map_err(|source| KernelError::Map {
        action: "write",
        map: egress_common::maps::HEARTBEAT,
        source,
    })
}
