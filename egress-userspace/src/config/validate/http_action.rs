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
        retry::{RetryCondition, RetryOn, RetryPolicy},
        virtual_service::{
            Abort, CorsPolicy, Delegate, Fault, HeaderOperations, HttpAction, HttpMatch, HttpRule,
            Mirror, Redirect, RedirectPort, Rewrite, RouteDestination, Share,
        },
    },
};

/// istio: a direct response body must be smaller than this, bytes.
const BODY_LIMIT: usize = 1_000_000;
/// istio: a body above this is warned about, bytes.
const BODY_WARNING: usize = 100_000;
/// gRPC status codes by name, in the order of their numbers (gRPC `statuscodes.md`).
const GRPC_STATUSES: [&str; 17] = [
    "OK",
    "CANCELLED",
    "UNKNOWN",
    "INVALID_ARGUMENT",
    "DEADLINE_EXCEEDED",
    "NOT_FOUND",
    "ALREADY_EXISTS",
    "PERMISSION_DENIED",
    "RESOURCE_EXHAUSTED",
    "FAILED_PRECONDITION",
    "ABORTED",
    "OUT_OF_RANGE",
    "UNIMPLEMENTED",
    "INTERNAL",
    "UNAVAILABLE",
    "DATA_LOSS",
    "UNAUTHENTICATED",
];

/// One rule; `None` when its action is wrong.
pub(super) fn rule(
    index: usize,
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
    let fault = raw
        .fault
        .as_ref()
        .map(|raw| fault(raw, &path.key("fault"), findings));
    let mirrors = mirrors(raw, scope, path, findings);
    let cors = raw
        .cors_policy
        .as_ref()
        .map(|raw| cors(raw, &path.key("corsPolicy"), findings));
    let action = action(raw, &matches, scope, path, findings)?;
    Some(HttpRule {
        index,
        delegate: None,
        name: raw.name.clone(),
        matches,
        action,
        rewrite,
        timeout,
        retries,
        headers,
        fault,
        mirrors,
        cors,
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
        if scope.hosts.is_empty() {
            findings.error(&path, "a delegate cannot delegate: there is one level");
        }
        let own = || scope.subject.origin.namespace.clone();
        return Some(HttpAction::Delegate(Delegate {
            namespace: match delegate.namespace.as_str() {
                "" => own(),
                given => given.to_owned(),
            },
            name: delegate.name.clone(),
        }));
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
) -> RedirectPort {
    match (raw.port, raw.derive_port) {
        (Some(_), Some(_)) => {
            findings.error(&path.key("derivePort"), "excludes `port`; give one of them");
            RedirectPort::Unchanged
        }
        (Some(port), None) => names::port(port, &path.key("port"), findings)
            .map_or(RedirectPort::Unchanged, RedirectPort::Fixed),
        (None, Some(istio::RedirectPortSelection::FromProtocolDefault)) => {
            RedirectPort::ProtocolDefault
        }
        (None, Some(istio::RedirectPortSelection::FromRequestPort)) => RedirectPort::Request,
        (None, None) => RedirectPort::Unchanged,
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
    let backoff = names::duration(raw.backoff, &path.key("backoff"), findings);
    if raw.retry_remote_localities == Some(true) {
        let path = path.key("retryRemoteLocalities");
        findings.unsupported(&path, "localities are not told apart");
    }
    RetryPolicy {
        attempts,
        per_try_timeout,
        retry_on,
        retriable_status_codes,
        backoff: backoff.unwrap_or(RetryPolicy::BACKOFF),
        ignore_previous_hosts: raw.retry_ignore_previous_hosts.unwrap_or(true),
    }
}

fn retry_conditions(
    written: &str,
    path: &FieldPath<'_>,
    findings: &mut Findings,
) -> (RetryOn, Vec<u16>) {
    let mut conditions = RetryOn::default();
    let mut codes = Vec::new();
    if written.is_empty() {
        return (conditions, codes);
    }
    for token in written.split(',') {
        if let Ok(condition) = token.parse::<RetryCondition>() {
            conditions.insert(condition);
            if matches!(
                condition,
                RetryCondition::RetriableHeaders
                    | RetryCondition::EnvoyRatelimited
                    | RetryCondition::Http3PostConnectFailure
            ) {
                findings.unsupported(path, &format!("`{token}` never holds"));
            }
        } else if let Some(code) = token.parse().ok().filter(|c| (100..=599).contains(c)) {
            conditions.insert(RetryCondition::RetriableStatusCodes);
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

fn fault(raw: &istio::HttpFaultInjection, path: &FieldPath<'_>, findings: &mut Findings) -> Fault {
    if raw.delay.is_none() && raw.abort.is_none() {
        findings.error(path, "give `delay` or `abort`");
    }
    let delay = raw
        .delay
        .as_ref()
        .and_then(|raw| delay(raw, &path.key("delay"), findings));
    let abort = raw
        .abort
        .as_ref()
        .and_then(|raw| abort(raw, &path.key("abort"), findings));
    Fault { delay, abort }
}

fn delay(
    raw: &istio::FaultDelay,
    path: &FieldPath<'_>,
    findings: &mut Findings,
) -> Option<(std::time::Duration, Share)> {
    let fixed = names::duration(raw.fixed_delay, &path.key("fixedDelay"), findings);
    if raw.fixed_delay.is_none() {
        findings.error(path, "give `fixedDelay`");
    }
    if raw.exponential_delay.is_some() {
        let path = path.key("exponentialDelay");
        findings.error(&path, "is not supported by Istio either");
    }
    let percent_path = path.key("percent");
    if !(0..=100).contains(&raw.percent) {
        findings.error(&percent_path, "must be in the range 0..100");
    } else if raw.percent != 0 {
        findings.warning(&percent_path, "is deprecated; use percentage");
    }
    let path = path.key("percentage");
    let share = match raw.percentage {
        None => Share::percent(f64::from(raw.percent)),
        given => share(given, &path, findings),
    };
    warn_never(share, &path, findings);
    fixed.map(|fixed| (fixed, share))
}

fn abort(
    raw: &istio::FaultAbort,
    path: &FieldPath<'_>,
    findings: &mut Findings,
) -> Option<(Abort, Share)> {
    if raw.http2_error.is_some() {
        findings.error(&path.key("http2Error"), "is not supported by Istio either");
    }
    let share = share(raw.percentage, &path.key("percentage"), findings);
    warn_never(share, &path.key("percentage"), findings);
    let abort = match (raw.http_status, &raw.grpc_status) {
        (Some(status), None) => match u16::try_from(status) {
            Ok(status @ 200..=599) => Some(Abort::Http(status)),
            _ => {
                findings.error(&path.key("httpStatus"), "must be in the range 200..599");
                None
            }
        },
        (None, Some(name)) => {
            let status = GRPC_STATUSES
                .iter()
                .zip(0..)
                .find(|(known, _)| *known == name);
            if status.is_none() {
                let message = format!("`{name}` is no gRPC status, such as UNAVAILABLE");
                findings.error(&path.key("grpcStatus"), message);
            }
            status.map(|(_, number)| Abort::Grpc(number))
        }
        _ => {
            findings.error(path, "give one of `httpStatus` and `grpcStatus`");
            None
        }
    };
    abort.map(|abort| (abort, share))
}

/// Row 5b.12: without a percentage a fault is never injected.
fn warn_never(share: Share, path: &FieldPath<'_>, findings: &mut Findings) {
    if share == Share::NONE {
        findings.warning(path, "is 0 or left out: the fault is never injected");
    }
}

/// A Percent; 0 when it is left out.
fn share(percent: Option<Percent>, path: &FieldPath<'_>, findings: &mut Findings) -> Share {
    let Some(percent) = percent else {
        return Share::NONE;
    };
    if percent.value != 0.0 && !(0.0001..=100.0).contains(&percent.value) {
        findings.error(&path.key("value"), "must be 0 or in the range 0.0001..100");
    }
    Share::percent(percent.value)
}

fn mirrors(
    raw: &HttpRoute,
    scope: &Scope<'_>,
    path: &FieldPath<'_>,
    findings: &mut Findings,
) -> Vec<Mirror> {
    let mirrors_path = path.key("mirrors");
    let mut mirrors = Vec::new();
    let single_share = match (raw.mirror_percentage, raw.mirror_percent) {
        (Some(percentage), _) => {
            let path = path.key("mirrorPercentage");
            Some(share(Some(percentage), &path, findings))
        }
        (None, percent) => percent.map(|percent| Share::percent(f64::from(percent))),
    };
    if let Some(percent) = raw.mirror_percent {
        let path = path.key("mirrorPercent");
        if percent > 100 {
            findings.error(&path, "must be in the range 0..100");
        }
        findings.warning(&path, "is deprecated; use mirrorPercentage");
    }
    if let Some(mirror) = &raw.mirror {
        if !raw.mirrors.is_empty() {
            findings.error(&mirrors_path, "excludes `mirror`; give one of them");
        }
        let found = check_destination(mirror, scope.subject, &path.key("mirror"), findings);
        mirrors.extend(found.map(|(host, port)| Mirror {
            destination: RouteDestination {
                host,
                port,
                subset: (!mirror.subset.is_empty()).then(|| mirror.subset.clone()),
                weight: 0,
                headers: HeaderOperations::default(),
            },
            share: single_share.unwrap_or(Share::ALL),
        }));
    }
    for (index, mirror) in raw.mirrors.iter().enumerate() {
        let path = mirrors_path.index(index);
        let given = mirror
            .percentage
            .map(|percentage| share(Some(percentage), &path.key("percentage"), findings));
        let (to, headers) = (mirror.destination.as_ref(), HeaderOperations::default());
        let to = destination(to, 0, headers, scope, &path, findings);
        mirrors.extend(to.map(|destination| Mirror {
            destination,
            share: given.unwrap_or(Share::ALL),
        }));
    }
    mirrors
}

fn cors(raw: &istio::CorsPolicy, path: &FieldPath<'_>, findings: &mut Findings) -> CorsPolicy {
    let mut allow_origins = Vec::with_capacity(raw.allow_origins.len() + raw.allow_origin.len());
    for (index, origin) in raw.allow_origins.iter().enumerate() {
        let path = path.key("allowOrigins");
        let condition =
            strings::string_match(origin, strings::Place::Value, &path.index(index), findings);
        allow_origins.extend(condition);
    }
    if !raw.allow_origin.is_empty() {
        findings.warning(&path.key("allowOrigin"), "is deprecated; use allowOrigins");
        // `*` in the old field is any origin.
        allow_origins.extend(raw.allow_origin.iter().map(|origin| match origin.as_str() {
            "*" => StringMatch::Present,
            exact => StringMatch::Exact(exact.to_owned()),
        }));
    }
    if raw.max_age.is_some_and(|age| age.0.subsec_nanos() != 0) {
        findings.error(&path.key("maxAge"), "must be a whole number of seconds");
    }
    let mut joined = |list: &[String], name: &str| {
        if list.is_empty() {
            return None;
        }
        let value = http::HeaderValue::try_from(list.join(","));
        if value.is_err() {
            findings.error(&path.key(name), "cannot be the value of a header");
        }
        value.ok()
    };
    CorsPolicy {
        allow_origins,
        allow_methods: joined(&raw.allow_methods, "allowMethods"),
        allow_headers: joined(&raw.allow_headers, "allowHeaders"),
        expose_headers: joined(&raw.expose_headers, "exposeHeaders"),
        max_age: raw.max_age.map(|age| age.0.as_secs().into()),
        allow_credentials: raw.allow_credentials.unwrap_or(false),
        forward_unmatched: raw.unmatched_preflights != Some(istio::UnmatchedPreflights::Ignore),
    }
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
