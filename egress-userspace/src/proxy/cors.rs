// SPDX-License-Identifier: Apache-2.0
//! CORS as Envoy's filter does it: preflights are answered here, answers to other requests of an
//! allowed origin get their header fields.

use ::http::{
    HeaderMap, HeaderValue, Method,
    header::{
        ACCESS_CONTROL_ALLOW_CREDENTIALS, ACCESS_CONTROL_ALLOW_HEADERS,
        ACCESS_CONTROL_ALLOW_METHODS, ACCESS_CONTROL_ALLOW_ORIGIN, ACCESS_CONTROL_EXPOSE_HEADERS,
        ACCESS_CONTROL_MAX_AGE, ACCESS_CONTROL_REQUEST_METHOD, ORIGIN,
    },
};

use crate::routing::virtual_service::CorsPolicy;

/// What a policy makes of a request.
#[derive(Debug, PartialEq, Eq)]
pub enum Cors {
    /// Nothing to do with it.
    Pass,
    /// To be answered with 200 and these fields.
    Preflight(HeaderMap),
    /// To be sent on; the answer gets these fields.
    Allowed(HeaderMap),
}

/// Applies a policy to a request head.
pub fn apply(policy: &CorsPolicy, method: &Method, headers: &HeaderMap) -> Cors {
    let Some(origin) = headers.get(ORIGIN) else {
        return Cors::Pass;
    };
    let preflight =
        *method == Method::OPTIONS && headers.contains_key(ACCESS_CONTROL_REQUEST_METHOD);
    let allowed = origin
        .to_str()
        .is_ok_and(|origin| policy.allow_origins.iter().any(|o| o.matches(origin)));
    if !allowed {
        return if preflight && !policy.forward_unmatched {
            Cors::Preflight(HeaderMap::new())
        } else {
            Cors::Pass
        };
    }
    let mut fields = HeaderMap::with_capacity(5);
    fields.insert(ACCESS_CONTROL_ALLOW_ORIGIN, origin.clone());
    if policy.allow_credentials {
        fields.insert(
            ACCESS_CONTROL_ALLOW_CREDENTIALS,
            HeaderValue::from_static("true"),
        );
    }
    let mut add = |name, value: &Option<HeaderValue>| {
        if let Some(value) = value {
            fields.insert(name, value.clone());
        }
    };
    if preflight {
        add(ACCESS_CONTROL_ALLOW_METHODS, &policy.allow_methods);
        add(ACCESS_CONTROL_ALLOW_HEADERS, &policy.allow_headers);
        add(ACCESS_CONTROL_MAX_AGE, &policy.max_age);
        Cors::Preflight(fields)
    } else {
        add(ACCESS_CONTROL_EXPOSE_HEADERS, &policy.expose_headers);
        Cors::Allowed(fields)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::routing::matching::StringMatch;

    fn policy() -> CorsPolicy {
        CorsPolicy {
            allow_origins: vec![StringMatch::Exact("https://a.com".into())],
            allow_methods: Some(HeaderValue::from_static("GET,PUT")),
            allow_headers: Some(HeaderValue::from_static("x-a")),
            expose_headers: Some(HeaderValue::from_static("x-b")),
            max_age: Some(60_u64.into()),
            allow_credentials: true,
            forward_unmatched: true,
        }
    }

    fn map(fields: &[(&'static str, &'static str)]) -> HeaderMap {
        fields
            .iter()
            .map(|(n, v)| (n.parse().unwrap(), HeaderValue::from_static(v)))
            .collect()
    }

    #[test]
    fn requests_follow_row_5b_14() {
        let preflight = [
            ("origin", "https://a.com"),
            ("access-control-request-method", "PUT"),
        ];
        let other = [
            ("origin", "https://b.com"),
            ("access-control-request-method", "PUT"),
        ];
        let strict = CorsPolicy {
            forward_unmatched: false,
            ..policy()
        };
        let answered = map(&[
            ("access-control-allow-origin", "https://a.com"),
            ("access-control-allow-credentials", "true"),
            ("access-control-allow-methods", "GET,PUT"),
            ("access-control-allow-headers", "x-a"),
            ("access-control-max-age", "60"),
        ]);
        let allowed = map(&[
            ("access-control-allow-origin", "https://a.com"),
            ("access-control-allow-credentials", "true"),
            ("access-control-expose-headers", "x-b"),
        ]);
        for (policy, method, headers, expected) in [
            (policy(), Method::GET, map(&[]), Cors::Pass),
            (
                policy(),
                Method::OPTIONS,
                map(&preflight),
                Cors::Preflight(answered),
            ),
            (policy(), Method::OPTIONS, map(&other), Cors::Pass),
            (
                strict,
                Method::OPTIONS,
                map(&other),
                Cors::Preflight(map(&[])),
            ),
            (
                policy(),
                Method::GET,
                map(&preflight[..1]),
                Cors::Allowed(allowed.clone()),
            ),
            (
                policy(),
                Method::OPTIONS,
                map(&preflight[..1]),
                Cors::Allowed(allowed),
            ),
        ] {
            assert_eq!(apply(&policy, &method, &headers), expected, "{headers:?}");
        }
    }
}
