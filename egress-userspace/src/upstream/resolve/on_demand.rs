// SPDX-License-Identifier: Apache-2.0
//! Names that requests bring along (resolution DYNAMIC_DNS): kept resolved like those of the
//! configuration while they are asked for.

use std::{
    collections::HashMap,
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tokio::{sync::Notify, time::Instant};

/// How long a name is kept after it was last asked for.
pub(super) const UNUSED: Duration = Duration::from_secs(300);

/// Most names; a client may make up any number of them.
const MOST: usize = 10_000;

/// The names asked for, shared by workers and resolver.
#[derive(Debug, Default)]
pub struct OnDemand {
    last_used: Mutex<HashMap<String, Instant>>,
    added: Notify,
}

impl OnDemand {
    /// Asks for a name, lower case and without trailing dot; `false`: there are too many.
    pub fn want(&self, name: &str) -> bool {
        let now = Instant::now();
        let mut names = self.lock();
        if let Some(last_used) = names.get_mut(name) {
            *last_used = now;
            return true;
        }
        if names.len() >= MOST {
            return false;
        }
        names.insert(name.to_owned(), now);
        drop(names);
        self.added.notify_one();
        true
    }

    /// Waits for a name that was not there before.
    pub(super) async fn added(&self) {
        self.added.notified().await;
    }

    /// Forgets names that were not asked for lately; whether there were any.
    pub(super) fn expire(&self) -> bool {
        let now = Instant::now();
        let mut names = self.lock();
        let before = names.len();
        names.retain(|_, last_used| now.duration_since(*last_used) < UNUSED);
        names.len() != before
    }

    /// The names.
    pub(super) fn names(&self) -> Vec<String> {
        self.lock().keys().cloned().collect()
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<String, Instant>> {
        self.last_used
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn names_are_kept_while_they_are_asked_for() {
        let names = OnDemand::default();
        assert!(names.want("a.com") && names.want("b.com"));
        names.added().await;
        tokio::time::advance(UNUSED / 2).await;
        assert!(names.want("a.com"));
        tokio::time::advance(UNUSED / 2).await;
        assert!(names.expire());
        assert_eq!(names.names(), ["a.com"]);
        assert!(!names.expire());
    }

    #[test]
    fn there_is_a_limit() {
        let names = OnDemand::default();
        for n in 0..MOST {
            assert!(names.want(&n.to_string()));
        }
        assert!(!names.want("one more"));
        assert!(names.want("0"), "known names still are");
    }
}
