// SPDX-License-Identifier: Apache-2.0
//! Reads what the kernel programs tell: denials and sightings, in their order.

use std::{fmt, io, mem::size_of};

use aya::maps::{MapData, RingBuf};
use egress_common::event::Event;
use tokio::io::unix::AsyncFd;

use super::watch::readable;

/// Events taken at once; the rest waits in the ring.
const BATCH: usize = 1024;

/// The reading end of the ring buffer `EVENTS`; there is one.
pub struct Events {
    ring: RingBuf<MapData>,
}

/// [`Events`] on a runtime.
pub struct EventStream {
    ring: AsyncFd<RingBuf<MapData>>,
}

impl Events {
    pub(super) fn new(ring: RingBuf<MapData>) -> Self {
        Self { ring }
    }

    /// Begins to read, on the current runtime.
    ///
    /// # Errors
    /// When the runtime cannot watch the ring.
    pub fn stream(self) -> io::Result<EventStream> {
        let ring = readable(self.ring)?;
        Ok(EventStream { ring })
    }
}

impl fmt::Debug for Events {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Events").finish_non_exhaustive()
    }
}

impl fmt::Debug for EventStream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("EventStream").finish_non_exhaustive()
    }
}

impl EventStream {
    /// Waits for events; at least one, at most a batch. Dropping the future loses none.
    ///
    /// # Errors
    /// When the runtime is shutting down.
    pub async fn next(&mut self) -> io::Result<Vec<Event>> {
        loop {
            let mut guard = self.ring.readable_mut().await?;
            let ring = guard.get_inner_mut();
            let mut events = Vec::new();
            while events.len() < BATCH {
                let Some(item) = ring.next() else {
                    break;
                };
                events.extend(read(&item));
            }
            if events.len() < BATCH {
                guard.clear_ready();
            }
            if !events.is_empty() {
                return Ok(events);
            }
        }
    }
}

/// One record; `None` when it is not of this layout.
fn read(octets: &[u8]) -> Option<Event> {
    if octets.len() < size_of::<Event>() {
        return None;
    }
    // SAFETY: long enough, and every bit pattern is an event; the ring need not align it.
    Some(unsafe { octets.as_ptr().cast::<Event>().read_unaligned() })
}
