// SPDX-License-Identifier: Apache-2.0
//! One worker's view of a value that the control runtime replaces: snapshots and address books.
//! Taking the current value is one uncontended lock and one comparison; nothing shared with other
//! workers is written.

use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::watch;

/// The latest value as one worker sees it. Only tasks of that worker use it, none across an await,
/// so the lock is never contended; it is there because tasks must be `Send`.
#[derive(Debug)]
pub struct Latest<T> {
    seen: Mutex<Seen<T>>,
}

#[derive(Debug)]
struct Seen<T> {
    receiver: watch::Receiver<Arc<T>>,
    value: Arc<T>,
}

impl<T> Latest<T> {
    /// Follows a channel.
    pub fn new(mut receiver: watch::Receiver<Arc<T>>) -> Self {
        let value = receiver.borrow_and_update().clone();
        Self { seen: Mutex::new(Seen { receiver, value }) }
    }

    /// The current value.
    pub fn current(&self) -> Arc<T> {
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        // A channel whose sender has gone keeps its last value.
        if seen.receiver.has_changed().unwrap_or(false) {
            let value = seen.receiver.borrow_and_update().clone();
            seen.value = value;
        }
        seen.value.clone()
    }

    /// A receiver of its own, for waiting; it regards the current value as seen.
    pub fn receiver(&self) -> watch::Receiver<Arc<T>> {
        let seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        let mut receiver = seen.receiver.clone();
        receiver.mark_unchanged();
        receiver
    }
}
