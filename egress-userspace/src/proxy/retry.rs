// SPDX-License-Identifier: Apache-2.0
//! Whether a try is to be repeated, and after what wait. Pure; Envoy's meaning of each condition
//! (router filter, `x-envoy-retry-on` and `x-envoy-retry-grpc-on`).

use std::time::Duration;

use ::http::HeaderMap;

use super::{error::DataError, headers::grpc_status};
use crate::routing::retry::{RetryCondition as On, RetryOn, RetryPolicy};

/// Conditions that look at the answer's status code.
const BY_STATUS: RetryOn = RetryOn::of(&[
    On::FiveXx,
    On::GatewayError,
    On::Retriable4xx,
    On::RetriableStatusCodes,
]);

/// Conditions that look at the answer's `grpc-status`.
const BY_GRPC_STATUS: RetryOn = RetryOn::of(&[
    On::Cancelled,
    On::DeadlineExceeded,
    On::Internal,
    On::ResourceExhausted,
    On::Unavailable,
]);

/// Conditions that hold for every try without an answer.
const BY_RESET: RetryOn = RetryOn::of(&[On::Reset, On::FiveXx, On::GatewayError]);

/// Whether a request may have to be sent again after it was sent, hence must be kept.
pub fn needs_request(policy: &RetryPolicy, http2: bool, grpc: bool) -> bool {
    let on = policy.retry_on;
    on.intersects(BY_STATUS)
        || on.intersects(BY_RESET)
        || (http2 && on.contains(On::RefusedStream))
        || (grpc && on.intersects(BY_GRPC_STATUS))
}

/// Whether an answer asks for another try.
pub fn of_answer(policy: &RetryPolicy, status: u16, headers: &HeaderMap) -> bool {
    let on = policy.retry_on;
    if on.intersects(BY_STATUS)
        && ((on.contains(On::FiveXx) && (500..600).contains(&status))
            || (on.contains(On::GatewayError) && (502..=504).contains(&status))
            || (on.contains(On::Retriable4xx) && status == 409)
            || (on.contains(On::RetriableStatusCodes)
                && policy.retriable_status_codes.contains(&status)))
    {
        return true;
    }
    on.intersects(BY_GRPC_STATUS)
        && match grpc_status(headers) {
            Some(1) => on.contains(On::Cancelled),
            Some(4) => on.contains(On::DeadlineExceeded),
            Some(8) => on.contains(On::ResourceExhausted),
            Some(13) => on.contains(On::Internal),
            Some(14) => on.contains(On::Unavailable),
            _ => false,
        }
}

/// Whether a try that ended without an answer asks for another one.
pub fn of_error(policy: &RetryPolicy, error: &DataError) -> bool {
    let on = policy.retry_on;
    match error {
        DataError::Connect { .. } => on.intersects(BY_RESET) || on.contains(On::ConnectFailure),
        DataError::RefusedStream => on.intersects(BY_RESET) || on.contains(On::RefusedStream),
        DataError::NotSent { .. } => on.intersects(BY_RESET) || on.contains(On::ResetBeforeRequest),
        DataError::Reset { .. }
        | DataError::UpstreamProtocol { .. }
        | DataError::PerTryTimeout { .. } => on.intersects(BY_RESET),
        _ => false,
    }
}

/// Most that the wait grows to, in multiples of its base (Envoy's default).
const MAX_BACKOFF: u32 = 10;

/// Wait before a retry, counted from 1: a random part of the base, doubled each time. `random` is
/// uniform over `u64`.
pub fn backoff(base: Duration, retry: u32, random: u64) -> Duration {
    let factor = 2_u32
        .saturating_pow(retry.saturating_sub(1))
        .min(MAX_BACKOFF);
    (base * factor).mul_f64(random as f64 / u64::MAX as f64)
}

#[cfg(test)]
mod tests {
    use std::net::SocketAddr;

    use super::*;
    use crate::upstream::{connect::ConnectError, endpoint::Endpoint};

    fn policy(conditions: &[On]) -> RetryPolicy {
        RetryPolicy {
            retry_on: RetryOn::of(conditions),
            retriable_status_codes: vec![418],
            ..RetryPolicy::default()
        }
    }

    #[test]
    fn answers_are_retried_by_row_5b_11() {
        let grpc = |status: &'static str| {
            let mut headers = HeaderMap::new();
            headers.insert("grpc-status", status.parse().unwrap());
            headers
        };
        let none = HeaderMap::new();
        for (on, status, headers, expected) in [
            (On::FiveXx, 500, &none, true),
            (On::FiveXx, 499, &none, false),
            (On::FiveXx, 600, &none, false),
            (On::GatewayError, 500, &none, false),
            (On::GatewayError, 502, &none, true),
            (On::GatewayError, 504, &none, true),
            (On::Retriable4xx, 409, &none, true),
            (On::Retriable4xx, 404, &none, false),
            (On::RetriableStatusCodes, 418, &none, true),
            (On::RetriableStatusCodes, 503, &none, false),
            (On::Reset, 503, &none, false),
            (On::ConnectFailure, 503, &none, false),
            (On::Cancelled, 200, &grpc("1"), true),
            (On::DeadlineExceeded, 200, &grpc("4"), true),
            (On::ResourceExhausted, 200, &grpc("8"), true),
            (On::Internal, 200, &grpc("13"), true),
            (On::Unavailable, 200, &grpc("14"), true),
            (On::Unavailable, 200, &grpc("0"), false),
            (On::Unavailable, 503, &none, false),
            (On::RetriableHeaders, 503, &none, false),
        ] {
            let found = of_answer(&policy(&[on]), status, headers);
            assert_eq!(found, expected, "{on:?} {status} {headers:?}");
        }
    }

    #[test]
    fn missing_answers_are_retried_by_row_5b_11() {
        let endpoint: Endpoint = SocketAddr::from(([192, 0, 2, 1], 80)).into();
        let connect = || DataError::Connect {
            endpoint: endpoint.clone(),
            source: ConnectError::Failed("refused".into()),
        };
        let slow = || DataError::PerTryTimeout {
            limit: Duration::from_secs(1),
        };
        let route = DataError::RouteTimeout {
            limit: Duration::from_secs(1),
        };
        for (on, error, expected) in [
            (On::ConnectFailure, connect(), true),
            (On::ConnectFailure, DataError::RefusedStream, false),
            (On::ConnectFailure, slow(), false),
            (On::RefusedStream, DataError::RefusedStream, true),
            (On::RefusedStream, connect(), false),
            (On::Reset, connect(), true),
            (On::Reset, DataError::RefusedStream, true),
            (On::Reset, slow(), true),
            (On::FiveXx, slow(), true),
            (On::GatewayError, slow(), true),
            (On::Retriable4xx, connect(), false),
            (On::FiveXx, route, false),
            (On::FiveXx, DataError::ClientGone, false),
        ] {
            assert_eq!(of_error(&policy(&[on]), &error), expected, "{on:?} {error}");
        }
    }

    #[test]
    fn only_what_may_be_sent_twice_is_kept() {
        let default = RetryPolicy::default();
        assert!(!needs_request(&default, false, false));
        assert!(needs_request(&default, true, false), "refused-stream");
        assert!(needs_request(&default, false, true), "unavailable");
        assert!(needs_request(&policy(&[On::FiveXx]), false, false));
        assert!(!needs_request(&policy(&[On::ConnectFailure]), true, true));
    }

    #[test]
    fn backoff_doubles_up_to_ten_times_its_base() {
        let base = Duration::from_millis(25);
        let most = |retry| backoff(base, retry, u64::MAX).as_millis();
        assert_eq!([1, 2, 3, 4, 5, 60].map(most), [25, 50, 100, 200, 250, 250]);
        assert_eq!(backoff(base, 3, 0), Duration::ZERO);
    }
}
