// SPDX-License-Identifier: Apache-2.0
//! Delegates (row 5b.16): a rule that names another VirtualService becomes that one's rules, before
//! anything is compiled. One level; a delegate is a VirtualService without hosts.

use std::{collections::HashMap, sync::Arc};

use super::{
    matching::StringMatch,
    virtual_service::{HttpAction, HttpMatch, HttpRule, VirtualService},
};

/// The VirtualServices with delegates put in, and without the delegates themselves. A rule whose
/// delegate is missing or not exported to it is dropped, as in Istio.
pub fn merge(all: &[Arc<VirtualService>]) -> Vec<Arc<VirtualService>> {
    let mut delegates: HashMap<(&str, &str), &Arc<VirtualService>> = HashMap::new();
    for source in all.iter().filter(|source| source.hosts.is_empty()) {
        let origin = &source.origin;
        delegates
            .entry((&origin.namespace, &origin.name))
            .or_insert(source);
    }
    let roots = all.iter().filter(|source| !source.hosts.is_empty());
    roots
        .map(|root| {
            let delegating = |rule: &Arc<HttpRule>| matches!(rule.action, HttpAction::Delegate(_));
            if !root.http.iter().any(delegating) {
                return root.clone();
            }
            let http = root.http.iter().flat_map(|rule| match &rule.action {
                HttpAction::Delegate(to) => {
                    let key = (to.namespace.as_str(), to.name.as_str());
                    let visible = |child: &&&Arc<VirtualService>| {
                        child.export_to.covers(&root.origin.namespace)
                    };
                    let child = delegates.get(&key).filter(visible);
                    child.map_or_else(Vec::new, |child| rules(rule, child))
                }
                _ => vec![rule.clone()],
            });
            Arc::new(VirtualService {
                http: http.collect(),
                ..(**root).clone()
            })
        })
        .collect()
}

fn rules(root: &HttpRule, child: &VirtualService) -> Vec<Arc<HttpRule>> {
    child
        .http
        .iter()
        // One level: a delegate of a delegate is not followed.
        .filter(|rule| !matches!(rule.action, HttpAction::Delegate(_)))
        .filter_map(|rule| {
            let matches = blocks(&root.matches, &rule.matches)?;
            let mut merged = HttpRule {
                matches,
                name: joined(&root.name, &rule.name),
                index: root.index,
                delegate: Some((child.origin.clone(), rule.index)),
                ..(**rule).clone()
            };
            merged.rewrite = merged.rewrite.or_else(|| root.rewrite.clone());
            merged.timeout = merged.timeout.or(root.timeout);
            merged.retries = merged.retries.or_else(|| root.retries.clone());
            merged.fault = merged.fault.or_else(|| root.fault.clone());
            merged.cors = merged.cors.or_else(|| root.cors.clone());
            if merged.mirrors.is_empty() {
                merged.mirrors = root.mirrors.clone();
            }
            if merged.headers == Default::default() {
                merged.headers = root.headers.clone();
            }
            Some(Arc::new(merged))
        })
        .collect()
}

fn joined(root: &str, child: &str) -> String {
    match (root.is_empty(), child.is_empty()) {
        (true, _) => child.to_owned(),
        (_, true) => root.to_owned(),
        _ => format!("{root}-{child}"),
    }
}

/// Every pair of blocks of which the child's lies within the root's; `None`, and the rule is
/// dropped, when some block of the child lies within none of the root's.
fn blocks(root: &[HttpMatch], child: &[HttpMatch]) -> Option<Vec<HttpMatch>> {
    if root.is_empty() {
        return Some(child.to_vec());
    }
    if child.is_empty() {
        return Some(root.to_vec());
    }
    let mut merged = Vec::new();
    for own in child {
        let before = merged.len();
        merged.extend(root.iter().filter_map(|root| block(root, own)));
        if merged.len() == before {
            return None;
        }
    }
    Some(merged)
}

/// The child's block with what the root's adds; `None` when it does not lie inside.
fn block(root: &HttpMatch, child: &HttpMatch) -> Option<HttpMatch> {
    let inside = within(&root.uri, &child.uri)
        && within(&root.scheme, &child.scheme)
        && within(&root.method, &child.method)
        && within(&root.authority, &child.authority)
        && all_within(&root.headers, &child.headers)
        && all_within(&root.without_headers, &child.without_headers)
        && all_within(&root.query_params, &child.query_params)
        && (root.ignore_uri_case == child.ignore_uri_case
            || root.uri.is_none()
            || child.uri.is_none())
        && (root.port.is_none() || child.port.is_none() || root.port == child.port)
        && (root.source_namespace.is_empty()
            || child.source_namespace.is_empty()
            || root.source_namespace == child.source_namespace)
        && child
            .source_labels
            .iter()
            .all(|(key, value)| root.source_labels.get(key).is_none_or(|v| v == value))
        && (root.gateways.is_empty() || child.gateways.iter().all(|g| root.gateways.contains(g)));
    if !inside {
        return None;
    }
    let mut labels = root.source_labels.clone();
    labels.extend(child.source_labels.clone());
    let either = |child: &Option<StringMatch>, root: &Option<StringMatch>| {
        child.clone().or_else(|| root.clone())
    };
    Some(HttpMatch {
        name: joined(&root.name, &child.name),
        uri: either(&child.uri, &root.uri),
        ignore_uri_case: if child.uri.is_some() {
            child.ignore_uri_case
        } else {
            root.ignore_uri_case
        },
        scheme: either(&child.scheme, &root.scheme),
        method: either(&child.method, &root.method),
        authority: either(&child.authority, &root.authority),
        headers: union(&root.headers, &child.headers),
        without_headers: union(&root.without_headers, &child.without_headers),
        query_params: union(&root.query_params, &child.query_params),
        port: child.port.or(root.port),
        source_labels: labels,
        source_namespace: if child.source_namespace.is_empty() {
            root.source_namespace.clone()
        } else {
            child.source_namespace.clone()
        },
        gateways: if child.gateways.is_empty() {
            root.gateways.clone()
        } else {
            child.gateways.clone()
        },
    })
}

/// Whether what the child's condition matches lies within the root's, as Istio decides it: a regex
/// on either side only goes with no condition on the other.
fn within(root: &Option<StringMatch>, child: &Option<StringMatch>) -> bool {
    match (root, child) {
        (None | Some(StringMatch::Present), _) | (_, None) => true,
        (Some(StringMatch::Exact(root)), Some(StringMatch::Exact(child))) => root == child,
        (
            Some(StringMatch::Prefix(root)),
            Some(StringMatch::Exact(child) | StringMatch::Prefix(child)),
        ) => child.starts_with(root.as_str()),
        _ => false,
    }
}

fn all_within<K: PartialEq>(root: &[(K, StringMatch)], child: &[(K, StringMatch)]) -> bool {
    child.iter().all(|(key, condition)| {
        let of_root = root.iter().find(|(other, _)| other == key);
        of_root.is_none_or(|(_, root)| within(&Some(root.clone()), &Some(condition.clone())))
    })
}

fn union<K: PartialEq + Clone>(
    root: &[(K, StringMatch)],
    child: &[(K, StringMatch)],
) -> Vec<(K, StringMatch)> {
    let mut all = child.to_vec();
    for (key, condition) in root {
        if !child.iter().any(|(other, _)| other == key) {
            all.push((key.clone(), condition.clone()));
        }
    }
    all
}
