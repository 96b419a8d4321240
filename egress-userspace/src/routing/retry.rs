// SPDX-License-Identifier: Apache-2.0
//! HTTPRetry as a valid value: how often, how long, and on what.

use std::{str::FromStr, time::Duration};

/// HTTPRetry, or meshConfig.defaultHttpRetryPolicy.
#[derive(Debug, Clone, PartialEq)]
pub struct RetryPolicy {
    /// Retries after the first try; 0 disables.
    pub attempts: u32,
    /// `None`: the route's timeout.
    pub per_try_timeout: Option<Duration>,
    /// What a try must end in to be repeated.
    pub retry_on: RetryOn,
    /// Status codes named in `retryOn`.
    pub retriable_status_codes: Vec<u16>,
    /// Base of the exponential backoff.
    pub backoff: Duration,
    /// Prefer endpoints that were not tried before (`retryIgnorePreviousHosts`).
    pub ignore_previous_hosts: bool,
}

impl RetryPolicy {
    /// Base of the backoff when none is given (row 5b.11).
    pub const BACKOFF: Duration = Duration::from_millis(25);
}

impl Default for RetryPolicy {
    /// Istio's default (row 5b.11): only where the upstream surely has not acted on the request.
    fn default() -> Self {
        Self {
            attempts: 2,
            per_try_timeout: None,
            retry_on: RetryOn::DEFAULT,
            retriable_status_codes: Vec::new(),
            backoff: Self::BACKOFF,
            ignore_previous_hosts: true,
        }
    }
}

/// One condition of `retryOn` (Envoy `x-envoy-retry-on`, `x-envoy-retry-grpc-on`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum RetryCondition {
    /// Any 5xx answer, or none at all.
    FiveXx,
    /// 502, 503, 504, or no answer at all.
    GatewayError,
    /// No answer: reset, closed, or timed out.
    Reset,
    /// Reset before the request was sent.
    ResetBeforeRequest,
    /// The connection was not made.
    ConnectFailure,
    /// 409.
    Retriable4xx,
    /// HTTP/2 REFUSED_STREAM.
    RefusedStream,
    /// One of the status codes given.
    RetriableStatusCodes,
    /// Needs header settings that Istio has no field for: never true.
    RetriableHeaders,
    /// Needs a rate-limit service: never true.
    EnvoyRatelimited,
    /// HTTP/3 is not spoken: never true.
    Http3PostConnectFailure,
    /// gRPC status 1.
    Cancelled,
    /// gRPC status 4.
    DeadlineExceeded,
    /// gRPC status 13.
    Internal,
    /// gRPC status 8.
    ResourceExhausted,
    /// gRPC status 14.
    Unavailable,
}

const NAMES: [(RetryCondition, &str); 16] = [
    (RetryCondition::ConnectFailure, "connect-failure"),
    (RetryCondition::RefusedStream, "refused-stream"),
    (RetryCondition::Unavailable, "unavailable"),
    (RetryCondition::Cancelled, "cancelled"),
    (RetryCondition::FiveXx, "5xx"),
    (RetryCondition::GatewayError, "gateway-error"),
    (RetryCondition::Reset, "reset"),
    (RetryCondition::ResetBeforeRequest, "reset-before-request"),
    (RetryCondition::Retriable4xx, "retriable-4xx"),
    (
        RetryCondition::RetriableStatusCodes,
        "retriable-status-codes",
    ),
    (RetryCondition::RetriableHeaders, "retriable-headers"),
    (RetryCondition::EnvoyRatelimited, "envoy-ratelimited"),
    (
        RetryCondition::Http3PostConnectFailure,
        "http3-post-connect-failure",
    ),
    (RetryCondition::DeadlineExceeded, "deadline-exceeded"),
    (RetryCondition::Internal, "internal"),
    (RetryCondition::ResourceExhausted, "resource-exhausted"),
];

impl FromStr for RetryCondition {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        let known = NAMES.iter().find(|(_, name)| *name == text);
        known.map(|(condition, _)| *condition).ok_or(())
    }
}

/// A set of conditions.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct RetryOn(u16);

impl RetryOn {
    /// connect-failure, refused-stream, unavailable, cancelled.
    pub const DEFAULT: Self = Self::of(&[
        RetryCondition::ConnectFailure,
        RetryCondition::RefusedStream,
        RetryCondition::Unavailable,
        RetryCondition::Cancelled,
    ]);

    /// The set of these conditions.
    pub const fn of(conditions: &[RetryCondition]) -> Self {
        let mut bits = 0;
        let mut at = 0;
        while at < conditions.len() {
            bits |= 1 << conditions[at] as u8;
            at += 1;
        }
        Self(bits)
    }

    /// Adds a condition.
    pub fn insert(&mut self, condition: RetryCondition) {
        self.0 |= Self::of(&[condition]).0;
    }

    /// Whether a condition is in the set.
    pub fn contains(self, condition: RetryCondition) -> bool {
        self.intersects(Self::of(&[condition]))
    }

    /// Whether any of the conditions is in the set.
    pub const fn intersects(self, other: Self) -> bool {
        self.0 & other.0 != 0
    }

    /// Whether there is none.
    pub fn is_empty(self) -> bool {
        self.0 == 0
    }

    /// Names, Istio's defaults first and in Istio's order.
    pub fn names(self) -> impl Iterator<Item = &'static str> {
        NAMES
            .iter()
            .filter(move |(condition, _)| self.contains(*condition))
            .map(|(_, name)| *name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_read_back() {
        for (condition, name) in NAMES {
            assert_eq!(name.parse(), Ok(condition));
            let set = RetryOn::of(&[condition]);
            assert_eq!(set.names().collect::<Vec<_>>(), [name]);
        }
        let all: u16 = NAMES.iter().fold(0, |bits, (c, _)| bits | 1 << *c as u8);
        assert_eq!(all, u16::MAX, "a condition has no name");
    }
}
