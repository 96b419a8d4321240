// SPDX-License-Identifier: Apache-2.0
//! From a matched rule to the decision: draw a destination, rewrite, build a Location.

use std::sync::Arc;

use super::{
    decision::{Action, Decision, Endpoints, Forward, Request, Route, Step, Traffic, Why},
    host,
    matching::StringMatch,
    rules::{CompiledAction, CompiledRule, CompiledService},
    virtual_service::{HttpMatch, Redirect, RedirectPort, Rewrite},
};

/// Decides by the first rule of `rules` that matches; `None` when none does.
pub fn first_match<'r>(
    rules: impl Iterator<Item = (&'r CompiledService, &'r CompiledRule)>,
    gateway: &str,
    request: &Request<'_>,
    draw: u32,
    why: &mut Why,
) -> Option<Decision> {
    for (service, rule) in rules {
        let origin = &service.source.origin;
        let Some((block, name)) = rule.matches(request) else {
            why.runner_up(|| {
                let reason = rule.mismatch(request);
                let text = format!("{} does not match: {reason}", rule.place(origin));
                Step::about(origin, text)
            });
            continue;
        };
        why.step(|| {
            let conditions = describe(block, gateway);
            Step::about(
                origin,
                format!("{} matched ({conditions})", rule.place(origin)),
            )
        });
        return Some(Decision {
            action: action(rule, block, request, draw, why),
            route_name: name.clone(),
            virtual_service: Some(service.name.clone()),
            before: rule.before.clone(),
        });
    }
    None
}

/// Forwards by a route for a client of a namespace, after the draw.
pub fn forward(
    route: &Arc<Route>,
    draw: u32,
    client: &str,
    rewritten: (Option<Arc<str>>, Option<String>),
    why: &mut Why,
) -> Action {
    let chosen = route.choose(draw);
    let destination = route.destinations[chosen].destination.on_behalf_of(client);
    if destination.endpoints == Endpoints::Missing {
        why.step(|| {
            let (host, port) = (&destination.host, destination.port);
            Step::plain(if destination.subset.is_empty() {
                format!("destination {host}:{port} is not in the registry: no ServiceEntry has it")
            } else {
                let subset = &destination.subset;
                format!(
                    "destination {host}:{port} has no subset {subset}: no DestinationRule has it"
                )
            })
        });
        return Action::ClusterNotFound {
            cluster: destination.cluster.clone(),
        };
    }
    why.step(|| {
        let (weight, total) = (route.destinations[chosen].weight, route.total_weight);
        let share = if route.destinations.len() > 1 {
            format!(" (weight {weight} of {total})")
        } else {
            String::new()
        };
        let text = format!("destination {}{share}", destination.cluster);
        match &destination.service {
            Some(service) => {
                Step::about(&service.origin, format!("{text}, from {}", service.origin))
            }
            None => Step::plain(text),
        }
    });
    if let Some(rule) = &destination.rule {
        why.step(|| Step::about(rule, format!("{rule} applies to {}", destination.cluster)));
    }
    let (authority, path) = rewritten;
    Action::Forward(Forward {
        route: route.clone(),
        chosen,
        destination: destination.clone(),
        authority,
        path,
    })
}

fn action(
    rule: &CompiledRule,
    block: Option<&HttpMatch>,
    request: &Request<'_>,
    draw: u32,
    why: &mut Why,
) -> Action {
    let Traffic::Http {
        scheme, host, path, ..
    } = request.traffic
    else {
        return Action::Close;
    };
    match &rule.action {
        CompiledAction::Route(routes) => {
            let rewritten = match &rule.rule.rewrite {
                Some(rewrite) => (
                    rewrite.authority.as_deref().map(Arc::from),
                    rewrite_path(rewrite, block, path),
                ),
                None => (None, None),
            };
            let route = routes.on(request.port);
            forward(route, draw, request.namespace(), rewritten, why)
        }
        CompiledAction::Redirect(redirect, headers) => Action::Redirect {
            status: redirect.status,
            location: location(redirect, block, request.port, (scheme, host, path)),
            headers: headers.clone(),
        },
        CompiledAction::DirectResponse(status, body, headers) => Action::DirectResponse {
            status: *status,
            body: body.clone(),
            headers: headers.clone(),
        },
    }
}

/// Row 5b.7 and 5b.8; `None` when the path stays. The query is kept.
fn rewrite_path(rewrite: &Rewrite, block: Option<&HttpMatch>, sent: &str) -> Option<String> {
    let (path, query) = split_query(sent);
    let new = if let Some((pattern, replacement)) = &rewrite.uri_regex {
        pattern.replace_all(path, replacement.as_str()).into_owned()
    } else {
        replace_matched(block, path, rewrite.uri.as_deref()?)
    };
    Some(new + query)
}

/// Replaces what the uri condition matched: a prefix, or the whole path for exact and regex; the
/// implied prefix `/` when there is no uri condition.
fn replace_matched(block: Option<&HttpMatch>, path: &str, new: &str) -> String {
    match block.and_then(|b| b.uri.as_ref()) {
        Some(StringMatch::Exact(_) | StringMatch::Regex(_)) => new.to_owned(),
        Some(StringMatch::Prefix(prefix)) => {
            format!("{new}{}", path.get(prefix.len()..).unwrap_or_default())
        }
        Some(StringMatch::Present) | None => {
            format!("{new}{}", path.strip_prefix('/').unwrap_or(path))
        }
    }
}

/// Row 5b.5. Default ports are left out.
fn location(
    redirect: &Redirect,
    block: Option<&HttpMatch>,
    request_port: u16,
    (scheme, sent_host, sent_path): (&str, &str, &str),
) -> String {
    let new_scheme = redirect.scheme.as_deref().unwrap_or(scheme);
    let (path, query) = split_query(sent_path);
    let path = match (&redirect.uri, &redirect.prefix_rewrite) {
        (Some(uri), _) => uri.clone(),
        (None, Some(prefix)) => replace_matched(block, path, prefix),
        (None, None) => path.to_owned(),
    };
    let keeps_port = redirect.port == RedirectPort::Unchanged && new_scheme == scheme;
    let authority = match &redirect.authority {
        Some(authority) => authority.clone(),
        None if keeps_port => sent_host.to_owned(),
        None => host::normalize(sent_host).into_owned(),
    };
    let default = if new_scheme == "https" { 443 } else { 80 };
    let port = match redirect.port {
        RedirectPort::Unchanged | RedirectPort::ProtocolDefault => default,
        RedirectPort::Fixed(port) => port,
        RedirectPort::Request => request_port,
    };
    let port = if port == default {
        String::new()
    } else {
        format!(":{port}")
    };
    format!("{new_scheme}://{authority}{port}{path}{query}")
}

/// Path, and query with its question mark.
fn split_query(sent: &str) -> (&str, &str) {
    sent.split_at(sent.find('?').unwrap_or(sent.len()))
}

/// The conditions of a block in a few words.
fn describe(block: Option<&HttpMatch>, gateway: &str) -> String {
    let mut parts = vec![format!("gateways={gateway}")];
    let Some(block) = block else {
        return parts.remove(0);
    };
    parts.extend(block.port.map(|port| format!("port={port}")));
    let mut condition = |name: &str, condition: &Option<StringMatch>| {
        parts.extend(
            condition
                .as_ref()
                .map(|condition| format!("{name}{condition}")),
        );
    };
    condition("uri", &block.uri);
    condition("method", &block.method);
    condition("scheme", &block.scheme);
    condition("authority", &block.authority);
    parts.extend(
        block
            .headers
            .iter()
            .map(|(name, _)| format!("header {name}")),
    );
    parts.extend(
        block
            .without_headers
            .iter()
            .map(|(name, _)| format!("without header {name}")),
    );
    parts.extend(
        block
            .query_params
            .iter()
            .map(|(name, _)| format!("query {name}")),
    );
    if block.gateways.is_empty() {
        parts.extend(
            block
                .source_labels
                .iter()
                .map(|(key, value)| format!("label {key}={value}")),
        );
        if !block.source_namespace.is_empty() {
            parts.push(format!("sourceNamespace={}", block.source_namespace));
        }
    }
    parts.join(", ")
}
