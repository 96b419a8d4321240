// SPDX-License-Identifier: Apache-2.0
//! One HTTP rule: conditions, action, header edits (istio-egress.md 5a and 5b).

use std::{collections::BTreeMap, time::Duration};

use base64::{Engine, engine::general_purpose::STANDARD};
use http::{HeaderName, HeaderValue};

use super::{WrittenDestination, destinations, gateway_names};
use crate::{
    config::{
        istio::{scalar::DurationText, virtual_service as raw},
        validate::{Findings, names},
    },
    routing::{
        matching::{StringMatch, compile},
        virtual_service::{
            HeaderEdit, HeaderOperations, HttpAction, HttpMatch, HttpRule, Redirect, RetryPolicy,
            Rewrite,
        },
    },
};

/// Largest body of a direct response (Istio validation).
const MAX_BODY_BYTES: usize = 1 << 20;

/// Conditions that `retryOn` may name (Envoy, HTTP and gRPC).
const RETRY_CONDITIONS: [&str; 20] = [
    "5xx",
    "gateway-error",
    "reset",
    "reset-before-request",
    "connect-failure",
    "envoy-ratelimited",
    "retriable-4xx",
    "refused-stream",
    "retriable-status-codes",
    "retriable-headers",
    "http3-post-connect-failure",
    "cancelled",
    "deadline-exceeded",
    "internal",
    "resource-exhausted",
    "unavailable",
    "aborted",
    "unknown",
    "data-loss",
    "unauthenticated",
];

/// Checks one rule; `None` when it cannot be used.
pub fn rule(
    rule: &raw::HttpRoute,
    index: usize,
    namespace: &str,
    findings: &mut Findings,
) -> Option<HttpRule> {
    let field = format!("spec.http[{index}]");
    let at = |name: &str| format!("{field}.{name}");
    findings.not_in_effect(rule.fault.is_some(), at("fault"));
    findings.not_in_effect(rule.mirror.is_some(), at("mirror"));
    findings.not_in_effect(rule.mirrors.is_some(), at("mirrors"));
    findings.not_in_effect(rule.mirror_percent.is_some(), at("mirrorPercent"));
    findings.not_in_effect(rule.mirror_percentage.is_some(), at("mirrorPercentage"));
    findings.not_in_effect(rule.cors_policy.is_some(), at("corsPolicy"));
    if rule.delegate.is_some() {
        findings.error(
            at("delegate"),
            "not supported yet: write the rules in this object",
        );
    }
    let matches: Vec<_> = rule
        .matches
        .iter()
        .enumerate()
        .map(|(index, block)| {
            let at = format!("{field}.match[{index}]");
            match block {
                Some(block) => http_match(block, &at, namespace, findings),
                None => HttpMatch::default(),
            }
        })
        .collect();
    let action = action(rule, &field, namespace, findings);
    Some(HttpRule {
        name: rule.name.clone(),
        rewrite: rewrite(rule, &field, findings),
        timeout: timeout(rule.timeout, &at("timeout"), findings),
        retries: rule
            .retries
            .as_ref()
            .map(|r| retries(r, &at("retries"), findings)),
        headers: headers(rule.headers.as_ref(), &at("headers"), findings),
        matches,
        action: action?,
    })
}

fn action(
    rule: &raw::HttpRoute,
    field: &str,
    namespace: &str,
    findings: &mut Findings,
) -> Option<HttpAction> {
    let given = [
        !rule.route.is_empty(),
        rule.redirect.is_some(),
        rule.direct_response.is_some(),
        rule.delegate.is_some(),
    ];
    match given.iter().filter(|yes| **yes).count() {
        0 => findings.error(
            field,
            "one of route, redirect and directResponse is required",
        ),
        1 => {}
        _ => findings.error(
            field,
            "route, redirect, directResponse and delegate are exclusive",
        ),
    }
    if !given[0] && rule.rewrite.is_some() {
        findings.error(format!("{field}.rewrite"), "a rewrite goes with route only");
    }
    if let Some(redirect) = &rule.redirect {
        return self::redirect(rule, redirect, &format!("{field}.redirect"), findings)
            .map(HttpAction::Redirect);
    }
    if let Some(response) = &rule.direct_response {
        return direct_response(response, &format!("{field}.directResponse"), findings);
    }
    if rule.route.is_empty() {
        return None;
    }
    let at = format!("{field}.route");
    let mut edits = Vec::with_capacity(rule.route.len());
    for (index, destination) in rule.route.iter().enumerate() {
        let at = format!("{at}[{index}].headers");
        edits.push(headers(destination.headers.as_ref(), &at, findings));
    }
    let written = rule
        .route
        .iter()
        .zip(edits)
        .map(|(d, headers)| WrittenDestination {
            destination: d.destination.as_ref(),
            weight: d.weight,
            headers,
        });
    Some(HttpAction::Route(destinations(
        written, &at, namespace, findings,
    )))
}

fn http_match(
    block: &raw::HttpMatchRequest,
    at: &str,
    namespace: &str,
    findings: &mut Findings,
) -> HttpMatch {
    let single = |name: &str, value: &Option<raw::StringMatch>, findings: &mut Findings| {
        value
            .as_ref()
            .and_then(|v| string_match(v, &format!("{at}.{name}"), name == "uri", findings))
    };
    let uri = single("uri", &block.uri, findings);
    let scheme = single("scheme", &block.scheme, findings);
    let method = single("method", &block.method, findings);
    let authority = single("authority", &block.authority, findings);
    let port_field = format!("{at}.port");
    let mut query_params = Vec::with_capacity(block.query_params.len());
    for (name, value) in &block.query_params {
        let field = format!("{at}.queryParams.{name}");
        match value {
            None => findings.error(field, "null is not a condition: use {} for presence"),
            Some(v) => {
                query_params
                    .extend(string_match(v, &field, false, findings).map(|m| (name.clone(), m)));
            }
        }
    }
    HttpMatch {
        name: block.name.clone(),
        uri,
        ignore_uri_case: block.ignore_uri_case,
        scheme,
        method,
        authority,
        headers: header_matches(&block.headers, &format!("{at}.headers"), findings),
        without_headers: header_matches(
            &block.without_headers,
            &format!("{at}.withoutHeaders"),
            findings,
        ),
        query_params,
        port: block
            .port
            .and_then(|port| names::port(port, &port_field, findings)),
        source_labels: block.source_labels.clone(),
        source_namespace: block.source_namespace.clone(),
        gateways: gateway_names(
            &block.gateways,
            &format!("{at}.gateways"),
            namespace,
            findings,
        ),
    }
}

/// Row 5a.4: pseudo keys are ignored with a warning, null is an error.
fn header_matches(
    written: &BTreeMap<String, Option<raw::StringMatch>>,
    field: &str,
    findings: &mut Findings,
) -> Vec<(HeaderName, StringMatch)> {
    let mut matches = Vec::with_capacity(written.len());
    for (name, value) in written {
        let field = format!("{field}.{name}");
        if ["uri", "scheme", "method", "authority"].contains(&name.as_str()) {
            findings.warning(
                field,
                "ignored: use the field of this name instead of a header",
            );
            continue;
        }
        if name.starts_with("@request.auth.") {
            findings.warning(field, "not supported yet: JWT claims have no effect");
            continue;
        }
        let Some(header) = header_name(name, &field, findings) else {
            continue;
        };
        match value {
            None => findings.error(field, "null is not a condition: use {} for presence"),
            // Row 5a.5: `*` is presence here.
            Some(v) if v.regex.as_deref() == Some("*") => {
                matches.push((header, StringMatch::Present));
            }
            Some(v) => {
                matches.extend(string_match(v, &field, false, findings).map(|m| (header, m)));
            }
        }
    }
    matches
}

/// Rows 5a.2 and 5a.3.
fn string_match(
    written: &raw::StringMatch,
    field: &str,
    empty_prefix: bool,
    findings: &mut Findings,
) -> Option<StringMatch> {
    match (&written.exact, &written.prefix, &written.regex) {
        (None, None, None) => Some(StringMatch::Present),
        (Some(text), None, None) => Some(StringMatch::Exact(text.clone())),
        (None, Some(text), None) => {
            if text.is_empty() && !empty_prefix {
                findings.error(format!("{field}.prefix"), "an empty prefix matches everything; leave the condition out, or use {} for presence");
            }
            Some(StringMatch::Prefix(text.clone()))
        }
        (None, None, Some(pattern)) if pattern.is_empty() => {
            findings.error(format!("{field}.regex"), "the regex is empty");
            None
        }
        (None, None, Some(pattern)) => match StringMatch::regex(pattern) {
            Ok(regex) => Some(regex),
            Err(reason) => {
                findings.error(format!("{field}.regex"), format!("`{pattern}`: {reason}"));
                None
            }
        },
        _ => {
            findings.error(field, "exact, prefix and regex are exclusive");
            None
        }
    }
}

fn rewrite(rule: &raw::HttpRoute, field: &str, findings: &mut Findings) -> Option<Rewrite> {
    let written = rule.rewrite.as_ref()?;
    let at = |name: &str| format!("{field}.rewrite{name}");
    let regex = written.uri_regex_rewrite.as_ref();
    if written.uri.is_empty() && written.authority.is_empty() && regex.is_none() {
        findings.error(
            at(""),
            "one of uri, uriRegexRewrite and authority is required",
        );
    }
    if !written.uri.is_empty() && regex.is_some() {
        findings.error(at(""), "uri and uriRegexRewrite are exclusive");
    }
    let sets_host = |h: &raw::Headers| {
        h.request
            .as_ref()
            .is_some_and(|r| r.set.keys().any(|k| k.eq_ignore_ascii_case("host")))
    };
    if !written.authority.is_empty() && rule.headers.as_ref().is_some_and(sets_host) {
        findings.error(
            at(".authority"),
            "exclusive with headers.request.set of host",
        );
    }
    let uri_regex = regex.and_then(|r| match compile(&r.pattern) {
        Ok(pattern) if !r.pattern.is_empty() => Some((pattern, replacement(&r.rewrite))),
        Ok(_) => {
            findings.error(at(".uriRegexRewrite.match"), "the pattern is empty");
            None
        }
        Err(reason) => {
            let pattern = &r.pattern;
            findings.error(
                at(".uriRegexRewrite.match"),
                format!("`{pattern}`: {reason}"),
            );
            None
        }
    });
    Some(Rewrite {
        uri: (!written.uri.is_empty()).then(|| written.uri.clone()),
        uri_regex,
        authority: (!written.authority.is_empty()).then(|| written.authority.clone()),
    })
}

/// RE2's `\1` to this crate's `${1}`; a literal `$` is doubled.
fn replacement(re2: &str) -> String {
    let mut out = String::with_capacity(re2.len());
    let mut chars = re2.chars().peekable();
    while let Some(c) = chars.next() {
        match (c, chars.peek()) {
            ('\\', Some(digit)) if digit.is_ascii_digit() => {
                out.push_str("${");
                out.extend(chars.next());
                out.push('}');
            }
            ('\\', Some('\\')) => out.extend(chars.next()),
            ('$', _) => out.push_str("$$"),
            _ => out.push(c),
        }
    }
    out
}

/// Row 5b.5.
fn redirect(
    rule: &raw::HttpRoute,
    written: &raw::HttpRedirect,
    field: &str,
    findings: &mut Findings,
) -> Option<Redirect> {
    let at = |name: &str| format!("{field}.{name}");
    if rule.fault.is_some() {
        findings.error(field, "redirect and fault are exclusive");
    }
    let status = written.redirect_code.unwrap_or(301);
    if ![301, 302, 303, 307, 308].contains(&status) {
        findings.error(
            at("redirectCode"),
            format!("{status} is not one of 301, 302, 303, 307, 308"),
        );
    }
    if !written.uri.is_empty() && written.prefix_rewrite.is_some() {
        findings.error(field, "uri and prefixRewrite are exclusive");
    }
    let prefixes_only = rule
        .matches
        .iter()
        .flatten()
        .all(|m| m.uri.as_ref().is_none_or(|u| u.prefix.is_some()));
    if written.prefix_rewrite.is_some() && !prefixes_only {
        findings.error(
            at("prefixRewrite"),
            "every uri condition of the rule must be a prefix",
        );
    }
    if written.port.is_some() && written.derive_port.is_some() {
        findings.error(field, "port and derivePort are exclusive");
    }
    if let Some(derive) = &written.derive_port {
        match derive.as_str() {
            "FROM_PROTOCOL_DEFAULT" | "FROM_REQUEST_PORT" => {
                findings.not_in_effect(true, at("derivePort"));
            }
            other => findings.error(
                at("derivePort"),
                format!("`{other}` is neither FROM_PROTOCOL_DEFAULT nor FROM_REQUEST_PORT"),
            ),
        }
    }
    if !["", "http", "https"].contains(&written.scheme.as_str()) {
        findings.error(
            at("scheme"),
            format!("`{}` is neither http nor https", written.scheme),
        );
    }
    let text = |value: &str| (!value.is_empty()).then(|| value.to_owned());
    let port_field = at("port");
    Some(Redirect {
        uri: text(&written.uri),
        prefix_rewrite: written.prefix_rewrite.clone(),
        authority: text(&written.authority),
        scheme: text(&written.scheme),
        port: written
            .port
            .and_then(|port| names::port(port, &port_field, findings)),
        status: u16::try_from(status).ok()?,
    })
}

/// Row 5b.6.
fn direct_response(
    written: &raw::HttpDirectResponse,
    field: &str,
    findings: &mut Findings,
) -> Option<HttpAction> {
    if !(200..=600).contains(&written.status) {
        let status = written.status;
        findings.error(
            format!("{field}.status"),
            format!("{status} is not between 200 and 600"),
        );
    }
    let body = match written
        .body
        .as_ref()
        .map(|body| (&body.string, &body.bytes))
    {
        None | Some((None, None)) => Vec::new(),
        Some((Some(text), None)) => text.clone().into_bytes(),
        Some((None, Some(encoded))) => match base64(encoded) {
            Some(bytes) => bytes,
            None => {
                findings.error(format!("{field}.body.bytes"), "not valid base64");
                return None;
            }
        },
        Some((Some(_), Some(_))) => {
            findings.error(format!("{field}.body"), "string and bytes are exclusive");
            return None;
        }
    };
    if body.len() > MAX_BODY_BYTES {
        findings.error(
            format!("{field}.body"),
            format!("{} bytes, at most 1 MB", body.len()),
        );
    }
    Some(HttpAction::DirectResponse {
        status: u16::try_from(written.status).ok()?,
        body,
    })
}

/// RFC 4648 section 4, with padding; YAML may break the text into lines.
fn base64(text: &str) -> Option<Vec<u8>> {
    let digits: String = text.chars().filter(|c| !c.is_ascii_whitespace()).collect();
    STANDARD.decode(digits).ok()
}

/// Row 5b.10: at least 1 ms, whole milliseconds.
fn timeout(
    written: Option<DurationText>,
    field: &str,
    findings: &mut Findings,
) -> Option<Duration> {
    let DurationText(duration) = written?;
    if duration < Duration::from_millis(1) {
        findings.error(
            field,
            "must be at least 1ms; for no timeout leave the field out",
        );
    } else if duration.subsec_nanos() % 1_000_000 != 0 {
        findings.error(field, "must be whole milliseconds");
    }
    Some(duration)
}

/// Row 5b.11.
pub fn retries(written: &raw::HttpRetry, field: &str, findings: &mut Findings) -> RetryPolicy {
    let at = |name: &str| format!("{field}.{name}");
    let attempts = written.attempts.unwrap_or(2);
    if attempts < 0 || attempts > i64::from(u32::MAX) {
        findings.error(at("attempts"), format!("{attempts} is out of range"));
    }
    let other_fields = written.per_try_timeout.is_some()
        || !written.retry_on.is_empty()
        || written.backoff.is_some();
    if written.attempts == Some(0) && other_fields {
        findings.error(
            field,
            "attempts 0 disables retries: no other field is allowed",
        );
    }
    findings.not_in_effect(
        written.retry_remote_localities.is_some(),
        at("retryRemoteLocalities"),
    );
    findings.not_in_effect(
        written.retry_ignore_previous_hosts.is_some(),
        at("retryIgnorePreviousHosts"),
    );
    findings.not_in_effect(written.backoff.is_some(), at("backoff"));
    let mut policy = RetryPolicy {
        attempts: u32::try_from(attempts).unwrap_or_default(),
        per_try_timeout: timeout(written.per_try_timeout, &at("perTryTimeout"), findings),
        retry_on: Vec::new(),
        retriable_status_codes: Vec::new(),
    };
    findings.not_in_effect(policy.per_try_timeout.is_some(), at("perTryTimeout"));
    if written.retry_on.is_empty() {
        policy.retry_on = crate::routing::rules::default_retries().retry_on;
        return policy;
    }
    for token in written.retry_on.split(',') {
        if let Ok(status) = token.parse::<u16>() {
            policy.retriable_status_codes.push(status);
        } else if !RETRY_CONDITIONS.contains(&token) {
            findings.error(
                at("retryOn"),
                format!(
                    "`{token}` is no retry condition (tokens are split on `,`, without blanks)"
                ),
            );
        } else {
            policy.retry_on.push(token.to_owned());
        }
    }
    let in_effect = [
        "connect-failure",
        "refused-stream",
        "unavailable",
        "cancelled",
    ];
    let silent = policy
        .retry_on
        .iter()
        .any(|c| !in_effect.contains(&c.as_str()));
    findings.not_in_effect(
        silent || !policy.retriable_status_codes.is_empty(),
        at("retryOn"),
    );
    policy
}

/// Row 5b.15.
fn headers(
    written: Option<&raw::Headers>,
    field: &str,
    findings: &mut Findings,
) -> HeaderOperations {
    let Some(written) = written else {
        return HeaderOperations::default();
    };
    let mut edit = |operations: Option<&raw::HeaderOperations>, name: &str| {
        operations.map_or_else(HeaderEdit::default, |o| {
            header_edit(o, &format!("{field}.{name}"), findings)
        })
    };
    HeaderOperations {
        request: edit(written.request.as_ref(), "request"),
        response: edit(written.response.as_ref(), "response"),
    }
}

fn header_edit(
    written: &raw::HeaderOperations,
    field: &str,
    findings: &mut Findings,
) -> HeaderEdit {
    let mut pairs = |map: &BTreeMap<String, String>, name: &str| {
        let mut pairs = Vec::with_capacity(map.len());
        for (key, value) in map {
            let field = format!("{field}.{name}.{key}");
            let header = header_name(key, &field, findings);
            let value = header_value(value, &field, findings);
            pairs.extend(header.zip(value));
        }
        pairs
    };
    let set = pairs(&written.set, "set");
    let add = pairs(&written.add, "add");
    let mut remove = Vec::with_capacity(written.remove.len());
    for (index, name) in written.remove.iter().enumerate() {
        remove.extend(header_name(
            name,
            &format!("{field}.remove[{index}]"),
            findings,
        ));
    }
    HeaderEdit { set, add, remove }
}

fn header_name(name: &str, field: &str, findings: &mut Findings) -> Option<HeaderName> {
    let header = HeaderName::from_bytes(name.as_bytes()).ok();
    if header.is_none() {
        findings.error(field, format!("`{name}` is no header name"));
    }
    header
}

/// `%%` is a percent sign; Envoy's commands between percent signs are not supported yet.
fn header_value(value: &str, field: &str, findings: &mut Findings) -> Option<HeaderValue> {
    let plain = value.replace("%%", "\u{0}");
    if plain.contains('%') {
        findings.error(
            field,
            format!("`{value}`: Envoy commands are not supported yet; a literal % is written %%"),
        );
        return None;
    }
    let header = HeaderValue::from_str(&plain.replace('\u{0}', "%")).ok();
    if header.is_none() {
        findings.error(
            field,
            "not a header value: control characters are not allowed",
        );
    }
    header
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn base64_is_decoded_or_refused() {
        assert_eq!(base64("aGVsbG8="), Some(b"hello".to_vec()));
        assert_eq!(base64("aGVs\nbG8h"), Some(b"hello!".to_vec()));
        assert_eq!(base64(""), Some(Vec::new()));
        for bad in ["a", "====", "aGVsbG8", "a*Vs"] {
            assert_eq!(base64(bad), None, "{bad}");
        }
    }

    #[test]
    fn re2_groups_become_ours() {
        assert_eq!(replacement(r"/x/\1/$a\\"), "/x/${1}/$$a\\");
    }
}
