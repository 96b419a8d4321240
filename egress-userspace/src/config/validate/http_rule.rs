// SPDX-License-Identifier: Apache-2.0
//! HTTPRoute of a VirtualService: its matches and which action it takes (istio
//! `validateHTTPRoute`; istio-egress.md 5a). The actions themselves are in `http_action`.

use std::sync::Arc;

use http::HeaderName;

use super::{
    Findings, http_action, names,
    strings::{self, Place, string_match},
    virtual_service::{Scope, match_gateways, match_port, source_namespace},
};
use crate::{
    config::{
        field::FieldPath,
        istio::{self, RawStringMatch},
    },
    routing::{
        matching::StringMatch,
        virtual_service::{HttpMatch, HttpRule},
    },
};

/// Keys that Envoy does not allow as header matches; Istio ignores them too.
const IGNORED_HEADER_KEYS: [&str; 4] = ["uri", "scheme", "method", "authority"];

/// Checks the http rules in order.
pub(super) fn rules(
    written: &[istio::HttpRoute],
    scope: &Scope<'_>,
    path: &FieldPath<'_>,
    findings: &mut Findings,
) -> Vec<Arc<HttpRule>> {
    let mut rules = Vec::with_capacity(written.len());
    let mut catch_all: Option<usize> = None;
    for (index, raw) in written.iter().enumerate() {
        let path = path.index(index);
        let matches = matches(&raw.matches, scope, &path.key("match"), findings);
        let rule = http_action::rule(index, raw, matches, scope, &path, findings);
        if let Some(earlier) = catch_all {
            findings.warning(
                &path,
                format!("is never reached: http[{earlier}] matches every request (IST0130)"),
            );
        } else if is_catch_all(&raw.matches) {
            catch_all = Some(index);
        }
        // A rule that lost every block to unsupported conditions must not match everything.
        if let Some(rule) = rule
            && (raw.matches.is_empty() || !rule.matches.is_empty())
        {
            rules.push(Arc::new(rule));
        }
    }
    rules
}

/// Whether some block takes every request wherever the rule applies (5.7).
fn is_catch_all(blocks: &[istio::HttpMatchRequest]) -> bool {
    blocks.is_empty()
        || blocks.iter().any(|block| {
            let every_path = block.uri.as_ref().is_none_or(|uri| {
                uri.exact.is_none()
                    && uri
                        .prefix
                        .as_deref()
                        .is_none_or(|p| p == "/" || p.is_empty())
                    && uri.regex.as_deref().is_none_or(|r| r == ".*" || r == "*")
            });
            every_path
                && block.scheme.is_none()
                && block.method.is_none()
                && block.authority.is_none()
                && block.headers.is_empty()
                && block.without_headers.is_empty()
                && block.query_params.is_empty()
                && block.port == 0
                && block.source_labels.is_empty()
                && block.source_namespace.is_empty()
                && block.gateways.is_empty()
        })
}

fn matches(
    written: &[istio::HttpMatchRequest],
    scope: &Scope<'_>,
    path: &FieldPath<'_>,
    findings: &mut Findings,
) -> Vec<HttpMatch> {
    written
        .iter()
        .enumerate()
        .filter_map(|(index, raw)| http_match(raw, scope, &path.index(index), findings))
        .collect()
}

/// `None`: the block has a condition that cannot be evaluated yet, so it never matches.
fn http_match(
    raw: &istio::HttpMatchRequest,
    scope: &Scope<'_>,
    path: &FieldPath<'_>,
    findings: &mut Findings,
) -> Option<HttpMatch> {
    let mut value = |name: &str, raw: &Option<RawStringMatch>, place| {
        raw.as_ref()
            .and_then(|raw| string_match(raw, place, &path.key(name), findings))
    };
    let uri = value("uri", &raw.uri, Place::Uri);
    let scheme = value("scheme", &raw.scheme, Place::Value);
    let method = value("method", &raw.method, Place::Value);
    let authority = value("authority", &raw.authority, Place::Value);
    if raw.ignore_uri_case && matches!(uri, Some(StringMatch::Regex(_))) {
        findings.warning(
            &path.key("ignoreUriCase"),
            "has no effect on a regex; write `(?i)` into it",
        );
    }
    if !raw.stat_prefix.is_empty() {
        findings.unsupported(&path.key("statPrefix"), "no metrics carry it");
    }
    names::labels(&raw.source_labels, &path.key("sourceLabels"), findings);
    let on_source = !raw.source_labels.is_empty() || !raw.source_namespace.is_empty();
    if on_source && !raw.gateways.is_empty() {
        findings.warning(
            &path.key("gateways"),
            "sourceLabels and sourceNamespace are not looked at in a block that names gateways",
        );
    }
    let headers = header_matches(&raw.headers, &path.key("headers"), findings);
    let without = header_matches(&raw.without_headers, &path.key("withoutHeaders"), findings);
    let query_path = path.key("queryParams");
    let mut query_params = Vec::with_capacity(raw.query_params.len());
    for (name, raw) in &raw.query_params {
        let path = query_path.key(name);
        let condition = string_match(raw, Place::Presence, &path, findings);
        query_params.extend(condition.map(|condition| (name.clone(), condition)));
    }
    let port = match_port(raw.port, &path.key("port"), findings);
    let source_namespace = source_namespace(
        &raw.source_namespace,
        &path.key("sourceNamespace"),
        findings,
    );
    let gateways = match_gateways(&raw.gateways, scope, &path.key("gateways"), findings);
    Some(HttpMatch {
        name: raw.name.clone(),
        uri,
        ignore_uri_case: raw.ignore_uri_case,
        scheme,
        method,
        authority,
        headers: headers?,
        without_headers: without?,
        query_params,
        port,
        source_labels: raw.source_labels.clone(),
        source_namespace,
        gateways,
    })
}

/// `None` when a condition is on JWT claims, which nothing here verifies.
fn header_matches(
    written: &std::collections::BTreeMap<String, RawStringMatch>,
    path: &FieldPath<'_>,
    findings: &mut Findings,
) -> Option<Vec<(HeaderName, StringMatch)>> {
    let mut conditions = Vec::with_capacity(written.len());
    let mut evaluable = true;
    for (name, raw) in written {
        let path = path.key(name);
        let condition = string_match(raw, Place::Presence, &path, findings);
        if name.starts_with("@request.auth.claims") {
            findings.unsupported(&path, "JWT claims are not read; this block never matches");
            evaluable = false;
            continue;
        }
        if IGNORED_HEADER_KEYS.contains(&name.as_str()) {
            findings.warning(
                &path,
                format!("`{name}` is not a header and is ignored here; use match.{name}"),
            );
            continue;
        }
        let name = strings::header_name(name, &path, findings);
        conditions.extend(name.zip(condition));
    }
    evaluable.then_some(conditions)
}
