// SPDX-License-Identifier: Apache-2.0
//! What an HTTPRoute does: route, redirect, direct response, rewrite, timeout, retries, headers
//! (istio `validateHTTPRoute` and below; istio-egress.md 5b).

use crate::{
    config::{
        field::FieldPath,
        istio::{self, HttpRoute, Percent},
        validate::{
            Findings, names, strings,
            virtual_service::{Scope, check_destination, check_weights, destination, search_regex},
        },
    },
    routing::{
        matching::StringMatch,
        virtual_service::{
            HeaderOperations, HttpAction, HttpMatch, HttpRule, Redirect, RetryPolicy, Rewrite,
            RouteDestination,
        },
    },
};

/// istio: a direct response body must be smaller than this, bytes.
const BODY_LIMIT: usize = 1_000_000;
/// istio: a body above this is warned about, bytes.
const BODY_WARNING: usize = 100_000;
/// Conditions of `retryOn` (Envoy `x-envoy-retry-on` and `x-envoy-retry-grpc-on`).
const RETRY_CONDITIONS: [&str; 16] = [
    "5xx",
    "gateway-error",
    "reset",
    "reset-before-request",
    "connect-failure",
    "retriable-4xx",
    "refused-stream",
    "retriable-status-codes",
    "retriable-headers",
    "envoy-ratelimited",
    "http3-post-connect-failure",
    "cancelled",
    "deadline-exceeded",
    "internal",
    "resource-exhausted",
    "unavailable",
];

/// One rule; `None` when its action is wrong.
pub(super) fn rule(
    raw: &HttpRoute,
    matches: Vec<HttpMatch>,
    scope: &Scope<'_>,
    path: &FieldPath<'_>,
    findings: &mut Findings,
) -> Option<HttpRule> {
    let headers = strings::headers(raw.headers.as_ref(), &path.key("headers"), findings);
    let rewrite = raw
        .rewrite
        .as_ref()
        .and_then(|raw| rewrite(raw, &headers, &path.key("rewrite"), findings));
    let timeout = names::duration(raw.timeout, &path.key("timeout"), findings);
    let retries = raw
        .retries
        .as_ref()
        .map(|raw| retries(raw, &path.key("retries"), findings));
    without_data_path(raw, scope, path, findings);
    let action = action(raw, &matches, scope, path, findings)?;
    Some(HttpRule {
        name: raw.name.clone(),
        matches,
        action,
        rewrite,
        timeout,
        retries,
        headers,
    })
}

fn action(
    raw: &HttpRoute,
    matches: &[HttpMatch],
    scope: &Scope<'_>,
    path: &FieldPath<'_>,
    findings: &mut Findings,
) -> Option<HttpAction> {
    exclusions(raw, path, findings);
    if let Some(redirect) = &raw.redirect {
        return self::redirect(redirect, matches, &path.key("redirect"), findings)
            .map(HttpAction::Redirect);
    }
    if let Some(direct) = &raw.direct_response {
        return direct_response(direct, &path.key("directResponse"), findings);
    }
    if let Some(delegate) = &raw.delegate {
        let path = path.key("delegate");
        if delegate.name.is_empty() {
            findings.error(&path.key("name"), "a delegate needs a name");
        }
        findings.unsupported(&path, "requests that match this rule get 503");
        return Some(HttpAction::DirectResponse {
            status: 503,
            body: b"egress: delegate VirtualServices are not supported yet".to_vec(),
        });
    }
    let route = route(&raw.route, scope, &path.key("route"), findings);
    if raw.route.is_empty() {
        findings.error(
            path,
            "one of route, redirect, directResponse and delegate is required",
        );
        return None;
    }
    Some(HttpAction::Route(route))
}

/// Which fields exclude each other.
fn exclusions(raw: &HttpRoute, path: &FieldPath<'_>, findings: &mut Findings) {
    let route = ("route", !raw.route.is_empty());
    let rewrite = ("rewrite", raw.rewrite.is_some());
    let fault = ("fault", raw.fault.is_some());
    let redirect = ("redirect", raw.redirect.is_some());
    let direct = ("directResponse", raw.direct_response.is_some());
    let mut exclude = |name: &str, given: bool, others: &[(&str, bool)]| {
        for (other, _) in others.iter().filter(|(_, set)| given && *set) {
            findings.error(
                &path.key(name),
                format!("excludes `{other}`; give one of them"),
            );
        }
    };
    exclude(redirect.0, redirect.1, &[route, fault, rewrite, direct]);
    exclude(direct.0, direct.1, &[route, rewrite]);
    let delegate = raw.delegate.is_some();
    exclude("delegate", delegate, &[route, redirect, direct]);
}

fn route(
    written: &[istio::HttpRouteDestination],
    scope: &Scope<'_>,
    path: &FieldPath<'_>,
    findings: &mut Findings,
) -> Vec<RouteDestination> {
    let mut route = Vec::with_capacity(written.len());
    for (index, entry) in written.iter().enumerate() {
        let path = path.index(index);
        let headers = strings::headers(entry.headers.as_ref(), &path.key("headers"), findings);
        route.extend(destination(
            entry.destination.as_ref(),
            entry.weight,
            headers,
            scope,
            &path,
            findings,
        ));
    }
    check_weights(written.iter().map(|entry| entry.weight), path, findings);
    route
}

fn redirect(
    raw: &istio::HttpRedirect,
    matches: &[HttpMatch],
    path: &FieldPath<'_>,
    findings: &mut Findings,
) -> Option<Redirect> {
    let status = match raw.redirect_code {
        0 => 301,
        code @ (301 | 302 | 303 | 307 | 308) => u16::try_from(code).ok()?,
        other => {
            findings.error(
                &path.key("redirectCode"),
                format!("{other} is not 301, 302, 303, 307 or 308"),
            );
            return None;
        }
    };
    let written = |text: &String| (!text.is_empty()).then(|| text.clone());
    let port_given = raw.port.is_some() || raw.derive_port.is_some();
    let says_something = [&raw.uri, &raw.authority, &raw.scheme, &raw.prefix_rewrite]
        .iter()
        .any(|text| !text.is_empty());
    if !says_something && !port_given {
        findings.error(
            path,
            "give at least one of uri, prefixRewrite, authority, scheme and port",
        );
    }
    if !raw.uri.is_empty() && !raw.prefix_rewrite.is_empty() {
        findings.error(
            &path.key("prefixRewrite"),
            "excludes `uri`; give one of them",
        );
    }
    let prefix_only = !matches.is_empty()
        && matches
            .iter()
            .all(|block| matches!(block.uri, Some(StringMatch::Prefix(_))));
    if !raw.prefix_rewrite.is_empty() && !prefix_only {
        findings.error(
            &path.key("prefixRewrite"),
            "needs a uri prefix in every match of the rule",
        );
    }
    if !matches!(raw.scheme.as_str(), "" | "http" | "https") {
        findings.error(
            &path.key("scheme"),
            format!("`{}` is not `http` or `https`", raw.scheme),
        );
    }
    Some(Redirect {
        uri: written(&raw.uri),
        prefix_rewrite: written(&raw.prefix_rewrite),
        authority: written(&raw.authority),
        scheme: written(&raw.scheme),
        port: redirect_port(raw, path, findings),
        status,
    })
}

fn redirect_port(
    raw: &istio::HttpRedirect,
    path: &FieldPath<'_>,
    findings: &mut Findings,
) -> Option<u16> {
    let derive_path = path.key("derivePort");
    match (raw.port, raw.derive_port) {
        (Some(_), Some(_)) => {
            findings.error(&derive_path, "excludes `port`; give one of them");
            None
        }
        (Some(port), None) => names::port(port, &path.key("port"), findings),
        (None, Some(istio::RedirectPortSelection::FromProtocolDefault)) => {
            match raw.scheme.as_str() {
                "http" => Some(80),
                "https" => Some(443),
                _ => {
                    findings.unsupported(
                        &derive_path,
                        "FROM_PROTOCOL_DEFAULT without `scheme`; the port stays as requested",
                    );
                    None
                }
            }
        }
        (None, Some(istio::RedirectPortSelection::FromRequestPort)) => {
            findings.unsupported(&derive_path, "FROM_REQUEST_PORT; the authority decides");
            None
        }
        (None, None) => None,
    }
}

fn direct_response(
    raw: &istio::HttpDirectResponse,
    path: &FieldPath<'_>,
    findings: &mut Findings,
) -> Option<HttpAction> {
    let body_path = path.key("body");
    let body = match &raw.body {
        None => Vec::new(),
        Some(istio::HttpBody {
            string: Some(_),
            bytes: Some(_),
        }) => {
            findings.error(&body_path, "give one of `string` and `bytes`");
            return None;
        }
        Some(istio::HttpBody {
            string: Some(text), ..
        }) => text.clone().into_bytes(),
        Some(istio::HttpBody {
            bytes: Some(text), ..
        }) => match base64(text) {
            Some(bytes) => bytes,
            None => {
                findings.error(&body_path.key("bytes"), "is not valid base64");
                return None;
            }
        },
        Some(_) => {
            findings.error(&body_path, "give `string` or `bytes`");
            return None;
        }
    };
    if body.len() >= BODY_LIMIT {
        findings.error(&body_path, "must be smaller than 1 MB");
    } else if body.len() > BODY_WARNING {
        findings.warning(&body_path, "is larger than 100 KB and kept in memory");
    }
    match u16::try_from(raw.status) {
        Ok(status @ 200..=600) => Some(HttpAction::DirectResponse { status, body }),
        _ => {
            findings.error(
                &path.key("status"),
                format!("{} is not in the range 200..600", raw.status),
            );
            None
        }
    }
}

fn rewrite(
    raw: &istio::HttpRewrite,
    headers: &HeaderOperations,
    path: &FieldPath<'_>,
    findings: &mut Findings,
) -> Option<Rewrite> {
    if raw.uri.is_empty() && raw.authority.is_empty() && raw.uri_regex_rewrite.is_none() {
        findings.error(
            path,
            "give at least one of uri, uriRegexRewrite and authority",
        );
        return None;
    }
    if !raw.uri.is_empty() && raw.uri_regex_rewrite.is_some() {
        findings.error(
            &path.key("uriRegexRewrite"),
            "excludes `uri`; give one of them",
        );
    }
    let sets_host = headers
        .request
        .set
        .iter()
        .any(|(name, _)| name == http::header::HOST);
    if !raw.authority.is_empty() && sets_host {
        findings.error(
            &path.key("authority"),
            "excludes setting Host in headers.request.set",
        );
    }
    let uri_regex = raw.uri_regex_rewrite.as_ref().and_then(|raw| {
        let path = path.key("uriRegexRewrite");
        if raw.rewrite.is_empty() {
            findings.error(&path.key("rewrite"), "must not be empty");
        }
        let regex = search_regex(&raw.pattern, &path.key("match"), findings)?;
        match replacement(&raw.rewrite, regex.captures_len() - 1) {
            Ok(replacement) => Some((regex, replacement)),
            Err(message) => {
                findings.error(&path.key("rewrite"), message);
                None
            }
        }
    });
    let written = |text: &String| (!text.is_empty()).then(|| text.clone());
    Some(Rewrite {
        uri: written(&raw.uri),
        uri_regex,
        authority: written(&raw.authority),
    })
}

/// RE2's `\1` in the `regex` crate's form `${1}`; `groups` is how many the pattern has.
fn replacement(text: &str, groups: usize) -> Result<String, String> {
    let mut out = String::with_capacity(text.len());
    let mut chars = text.chars();
    while let Some(c) = chars.next() {
        match c {
            '$' => out.push_str("$$"),
            '\\' => match chars.next() {
                Some('\\') => out.push('\\'),
                Some(digit @ '0'..='9') => {
                    let group = digit.to_digit(10).unwrap_or(0) as usize;
                    if group > groups {
                        return Err(format!("\\{group}: the pattern has {groups} groups"));
                    }
                    out.push_str("${");
                    out.push(digit);
                    out.push('}');
                }
                _ => return Err("a backslash must be followed by a digit or a backslash".into()),
            },
            other => out.push(other),
        }
    }
    Ok(out)
}

/// HTTPRetry of a rule, and of meshConfig's default.
pub(in crate::config) fn retries(
    raw: &istio::HttpRetry,
    path: &FieldPath<'_>,
    findings: &mut Findings,
) -> RetryPolicy {
    let attempts = u32::try_from(raw.attempts).unwrap_or_else(|_| {
        findings.error(&path.key("attempts"), "must not be negative");
        0
    });
    let others = raw.per_try_timeout.is_some() || !raw.retry_on.is_empty() || raw.backoff.is_some();
    if raw.attempts == 0 && others {
        findings.error(
            &path.key("attempts"),
            "0 disables retries and excludes the other fields of `retries`",
        );
    }
    let (retry_on, retriable_status_codes) =
        retry_conditions(&raw.retry_on, &path.key("retryOn"), findings);
    let per_try_timeout =
        names::duration(raw.per_try_timeout, &path.key("perTryTimeout"), findings);
    if per_try_timeout.is_some() {
        findings.unsupported(
            &path.key("perTryTimeout"),
            "only the route's timeout limits a try",
        );
    }
    // The default conditions are the ones whose request surely was not processed; of them only a
    // failed connect can happen before HTTP/2 is spoken to upstreams.
    let quiet = |c: &String| !DEFAULT_RETRY_CONDITIONS.contains(&c.as_str());
    if retry_on.iter().any(quiet) || !retriable_status_codes.is_empty() {
        findings.unsupported(&path.key("retryOn"), "only failed connects are retried");
    }
    if names::duration(raw.backoff, &path.key("backoff"), findings).is_some() {
        findings.unsupported(&path.key("backoff"), "the default of 25ms applies");
    }
    for (name, given) in [
        ("retryRemoteLocalities", raw.retry_remote_localities),
        ("retryIgnorePreviousHosts", raw.retry_ignore_previous_hosts),
    ] {
        if given.is_some() {
            findings.unsupported(&path.key(name), "it has no effect");
        }
    }
    RetryPolicy {
        attempts,
        per_try_timeout,
        retry_on,
        retriable_status_codes,
    }
}

/// Istio's default conditions.
const DEFAULT_RETRY_CONDITIONS: [&str; 4] = [
    "connect-failure",
    "refused-stream",
    "unavailable",
    "cancelled",
];

fn retry_conditions(
    written: &str,
    path: &FieldPath<'_>,
    findings: &mut Findings,
) -> (Vec<String>, Vec<u16>) {
    let mut conditions = Vec::new();
    let mut codes = Vec::new();
    if written.is_empty() {
        return (conditions, codes);
    }
    for token in written.split(',') {
        if RETRY_CONDITIONS.contains(&token) {
            conditions.push(token.to_owned());
        } else if let Some(code) = token.parse().ok().filter(|c| (100..=599).contains(c)) {
            codes.push(code);
        } else {
            findings.error(
                path,
                format!("`{token}` is neither a retry condition nor a status code (no blanks)"),
            );
        }
    }
    (conditions, codes)
}

/// Fields that are checked here and carried out by a later version.
fn without_data_path(
    raw: &HttpRoute,
    scope: &Scope<'_>,
    path: &FieldPath<'_>,
    findings: &mut Findings,
) {
    if let Some(fault) = &raw.fault {
        let path = path.key("fault");
        check_fault(fault, &path, findings);
        findings.unsupported(&path, "no fault is injected");
    }
    check_mirrors(raw, scope, path, findings);
    if let Some(cors) = &raw.cors_policy {
        let path = path.key("corsPolicy");
        for (index, origin) in cors.allow_origins.iter().enumerate() {
            let path = path.key("allowOrigins");
            strings::string_match(origin, strings::Place::Value, &path.index(index), findings);
        }
        if cors.max_age.is_some_and(|age| age.0.subsec_nanos() != 0) {
            findings.error(&path.key("maxAge"), "must be a whole number of seconds");
        }
        findings.unsupported(&path, "CORS requests pass to the upstream");
    }
}

fn check_fault(fault: &istio::HttpFaultInjection, path: &FieldPath<'_>, findings: &mut Findings) {
    if fault.delay.is_none() && fault.abort.is_none() {
        findings.error(path, "give `delay` or `abort`");
    }
    if let Some(delay) = &fault.delay {
        let path = path.key("delay");
        names::duration(delay.fixed_delay, &path.key("fixedDelay"), findings);
        if delay.fixed_delay.is_none() {
            findings.error(&path, "give `fixedDelay`");
        }
        if delay.exponential_delay.is_some() {
            findings.error(
                &path.key("exponentialDelay"),
                "is not supported by Istio either",
            );
        }
        if !(0..=100).contains(&delay.percent) {
            findings.error(&path.key("percent"), "must be in the range 0..100");
        }
        check_percent(delay.percentage, &path.key("percentage"), findings);
    }
    if let Some(abort) = &fault.abort {
        let path = path.key("abort");
        if abort.http_status.is_some_and(|s| !(200..=599).contains(&s)) {
            findings.error(&path.key("httpStatus"), "must be in the range 200..599");
        }
        if abort.http2_error.is_some() {
            findings.error(&path.key("http2Error"), "is not supported by Istio either");
        }
        if abort.http_status.is_some() == abort.grpc_status.is_some() {
            findings.error(&path, "give one of `httpStatus` and `grpcStatus`");
        }
        check_percent(abort.percentage, &path.key("percentage"), findings);
    }
}

fn check_percent(percent: Option<Percent>, path: &FieldPath<'_>, findings: &mut Findings) {
    let valid = percent.is_none_or(|p| p.value == 0.0 || (0.0001..=100.0).contains(&p.value));
    if !valid {
        findings.error(&path.key("value"), "must be 0 or in the range 0.0001..100");
    }
}

fn check_mirrors(
    raw: &HttpRoute,
    scope: &Scope<'_>,
    path: &FieldPath<'_>,
    findings: &mut Findings,
) {
    let mirrors_path = path.key("mirrors");
    if let Some(mirror) = &raw.mirror {
        let path = path.key("mirror");
        if !raw.mirrors.is_empty() {
            findings.error(&mirrors_path, "excludes `mirror`; give one of them");
        }
        check_destination(mirror, scope, &path, findings);
        findings.unsupported(&path, "requests are not mirrored");
    }
    for (index, mirror) in raw.mirrors.iter().enumerate() {
        let path = mirrors_path.index(index);
        match &mirror.destination {
            Some(to) => {
                check_destination(to, scope, &path.key("destination"), findings);
            }
            None => findings.error(&path.key("destination"), "a destination is required"),
        }
        check_percent(mirror.percentage, &path.key("percentage"), findings);
        findings.unsupported(&path, "requests are not mirrored");
    }
    if let Some(percent) = raw.mirror_percent {
        let path = path.key("mirrorPercent");
        if percent > 100 {
            findings.error(&path, "must be in the range 0..100");
        }
        findings.warning(&path, "is deprecated; use mirrorPercentage");
    }
    check_percent(
        raw.mirror_percentage,
        &path.key("mirrorPercentage"),
        findings,
    );
}

/// RFC 4648 base64, standard alphabet, padded.
fn base64(text: &str) -> Option<Vec<u8>> {
    let text = text.as_bytes();
    if !text.len().is_multiple_of(4) {
        return None;
    }
    let padding = text.iter().rev().take_while(|&&b| b == b'=').count();
    if padding > 2 {
        return None;
    }
    let mut bytes = Vec::with_capacity(text.len() / 4 * 3);
    let mut bits: u32 = 0;
    let digits = &text[..text.len() - padding];
    for (position, &byte) in digits.iter().enumerate() {
        let digit = match byte {
            b'A'..=b'Z' => byte - b'A',
            b'a'..=b'z' => byte - b'a' + 26,
            b'0'..=b'9' => byte - b'0' + 52,
            b'+' => 62,
            b'/' => 63,
            _ => return None,
        };
        bits = bits << 6 | u32::from(digit);
        if position % 4 > 0 {
            let shift = 6 - 2 * (position % 4);
            bytes.push((bits >> shift) as u8);
            bits &= (1 << shift) - 1;
        }
    }
    Some(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn base64_is_read_strictly() {
        for (text, bytes) in [
            ("", Some(&b""[..])),
            ("aGVsbG8=", Some(b"hello")),
            ("aGVsbG8h", Some(b"hello!")),
            ("aA==", Some(b"h")),
            ("aGVsbG8", None),
            ("a===", None),
            ("a*b=", None),
        ] {
            assert_eq!(base64(text).as_deref(), bytes, "{text:?}");
        }
    }

    #[test]
    fn replacements_keep_their_meaning() {
        assert_eq!(replacement(r"/\1/$x\\", 1).as_deref(), Ok("/${1}/$$x\\"));
        assert!(replacement(r"\2", 1).is_err());
        assert!(replacement(r"\", 1).is_err());
    }
}
