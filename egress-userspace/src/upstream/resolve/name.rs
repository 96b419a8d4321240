// SPDX-License-Identifier: Apache-2.0
//! One name: what is known, what an answer changes, and when to ask again. No I/O, no clock.

use std::{collections::HashSet, net::IpAddr, sync::Arc, time::Duration};

use tokio::time::Instant;

use super::{
    ResolveSettings, Resolved,
    lookup::{Answer, Answers},
};

/// A TTL of 0 or a moment would otherwise make a loop of questions; TTLs of real services that
/// steer by DNS start at 5 s.
const SHORTEST: Duration = Duration::from_secs(1);

/// Longest time between two questions, whatever the TTL says, so that a wrong record with a long
/// TTL that somebody corrects is noticed the same day.
const LONGEST: Duration = Duration::from_secs(3_600);

/// Wait before a name that had addresses is believed to have none.
const CONFIRM_AFTER: Duration = Duration::from_secs(1);

/// Wait after the first failure; doubled up to [`ResolveSettings::failure_retry`].
const FIRST_RETRY: Duration = Duration::from_secs(1);

/// Retired addresses kept per name; the oldest go first. Services that answer with a few of many
/// addresses would otherwise fill the kernel's maps.
const MAX_RETIRED: usize = 256;

/// What is known about one name.
#[derive(Debug)]
pub(super) struct NameState {
    /// A and AAAA.
    families: [Family; 2],
    /// With the time when to forget; oldest first.
    retired: Vec<(IpAddr, Instant)>,
    error: Option<Arc<str>>,
    /// Consecutive questions in which a family failed.
    failures: u32,
    /// When to ask (again).
    pub(super) ask_at: Instant,
}

#[derive(Debug, Default)]
struct Family {
    addresses: Vec<IpAddr>,
    /// Whether the last answer was a definite "none".
    empty_once: bool,
}

impl NameState {
    /// Not answered yet; to be asked at `now`.
    pub(super) fn new(now: Instant) -> Self {
        Self {
            families: Default::default(),
            retired: Vec::new(),
            error: None,
            failures: 0,
            ask_at: now,
        }
    }

    /// Takes an answer in and sets the time of the next question.
    pub(super) fn apply(&mut self, answers: Answers, now: Instant, settings: &ResolveSettings) {
        let mut wait = LONGEST;
        let mut answered = false;
        let mut failure = None;
        let mut negative_ttl = None;
        let mut left = Vec::new();
        for (family, answer) in self.families.iter_mut().zip(answers.0) {
            match answer {
                Answer::Addresses { addresses, ttl } => {
                    answered = true;
                    family.empty_once = false;
                    wait = wait.min(ttl);
                    left.append(&mut std::mem::replace(&mut family.addresses, addresses));
                }
                Answer::Empty { .. } if !family.addresses.is_empty() && !family.empty_once => {
                    family.empty_once = true;
                    wait = wait.min(CONFIRM_AFTER);
                }
                Answer::Empty { ttl } => {
                    left.append(&mut family.addresses);
                    negative_ttl = [negative_ttl, ttl].into_iter().flatten().min();
                }
                Answer::Failed { reason } => {
                    failure.get_or_insert(reason);
                }
            }
        }
        if failure.is_some() {
            wait = wait.min(self.backoff(settings));
        } else {
            self.failures = 0;
            if !self
                .families
                .iter()
                .any(|family| !family.addresses.is_empty())
            {
                // Envoy asks for names without addresses at its refresh rate; a shorter
                // negative TTL is an invitation to ask sooner.
                wait = wait
                    .min(settings.failure_retry)
                    .min(negative_ttl.unwrap_or(LONGEST));
            }
        }
        // A family without an answer beside one with addresses is no failure to the caller.
        self.error = failure.filter(|_| !answered);
        self.retire(left, now + settings.grace);
        self.ask_at = now + wait.clamp(SHORTEST, LONGEST);
    }

    /// Drops retired addresses whose time is over.
    pub(super) fn forget_retired(&mut self, now: Instant) {
        self.retired.retain(|(_, until)| *until > now);
    }

    /// When the next retired address is to be forgotten.
    pub(super) fn forget_at(&self) -> Option<Instant> {
        self.retired.first().map(|(_, until)| *until)
    }

    /// As the book says it.
    pub(super) fn resolved(&self) -> Resolved {
        Resolved {
            addresses: self.fresh().collect(),
            retired: self.retired.iter().map(|(address, _)| *address).collect(),
            error: self.error.clone(),
        }
    }

    fn fresh(&self) -> impl Iterator<Item = IpAddr> {
        self.families
            .iter()
            .flat_map(|family| family.addresses.iter().copied())
    }

    fn retire(&mut self, left: Vec<IpAddr>, until: Instant) {
        let fresh: HashSet<IpAddr> = self.fresh().collect();
        self.retired.retain(|(address, _)| !fresh.contains(address));
        for address in left {
            if !fresh.contains(&address) {
                self.retired.push((address, until));
            }
        }
        let excess = self.retired.len().saturating_sub(MAX_RETIRED);
        self.retired.drain(..excess);
    }

    fn backoff(&mut self, settings: &ResolveSettings) -> Duration {
        // 2^16 s is far beyond every sensible limit.
        let doubled = FIRST_RETRY * (1 << self.failures.min(16));
        self.failures = self.failures.saturating_add(1);
        doubled.min(settings.failure_retry)
    }
}
