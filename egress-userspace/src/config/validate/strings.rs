// SPDX-License-Identifier: Apache-2.0
//! StringMatch, regular expressions, header names and values (istio
//! `pkg/config/validation/virtualservice.go`).

use http::HeaderName;
use regex::{Regex, RegexBuilder};

use super::Findings;
use crate::{
    config::{
        field::FieldPath,
        istio::{Headers, RawHeaderOperations, RawStringMatch},
    },
    routing::{
        header_text::{HeaderText, HeaderTextError},
        matching::StringMatch,
        virtual_service::{HeaderEdit, HeaderOperations},
    },
};

/// istio: a regex may have this many bytes at most.
const REGEX_LIMIT: usize = 1024;
/// Bound on the memory of one compiled regex, bytes.
const REGEX_COMPILED_LIMIT: usize = 1 << 20;

/// Where a StringMatch stands decides what an empty one means.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Place {
    /// `uri`: the empty prefix matches every path.
    Uri,
    /// `method`, `scheme`, `authority`, an origin.
    Value,
    /// A header or query parameter: `{}` asks for presence, and so does the regex `*`.
    Presence,
}

/// A checked StringMatch; `None` when it is no condition, or wrong.
pub(super) fn string_match(
    raw: &RawStringMatch,
    place: Place,
    path: &FieldPath<'_>,
    findings: &mut Findings,
) -> Option<StringMatch> {
    let given = [&raw.exact, &raw.prefix, &raw.regex];
    if given.iter().filter(|field| field.is_some()).count() > 1 {
        findings.error(path, "give one of exact, prefix and regex");
        return None;
    }
    if let Some(exact) = &raw.exact {
        return Some(StringMatch::Exact(exact.clone()));
    }
    if let Some(prefix) = &raw.prefix {
        if prefix.is_empty() && place != Place::Uri {
            findings.error(&path.key("prefix"), "must not be empty");
        }
        return Some(StringMatch::Prefix(prefix.clone()));
    }
    match &raw.regex {
        Some(star) if star == "*" && place == Place::Presence => Some(StringMatch::Present),
        Some(pattern) => regex(pattern, true, &path.key("regex"), findings).map(StringMatch::Regex),
        None if place == Place::Presence => Some(StringMatch::Present),
        None => None,
    }
}

/// A compiled regex; `whole` anchors it at both ends.
pub(super) fn regex(
    pattern: &str,
    whole: bool,
    path: &FieldPath<'_>,
    findings: &mut Findings,
) -> Option<Regex> {
    if pattern.is_empty() {
        findings.error(path, "must not be empty");
        return None;
    }
    if pattern.len() > REGEX_LIMIT {
        findings.error(
            path,
            format!(
                "is {} bytes long; a regex has at most {REGEX_LIMIT}",
                pattern.len()
            ),
        );
        return None;
    }
    let text = if whole {
        format!("^(?:{pattern})$")
    } else {
        pattern.to_owned()
    };
    // The pattern alone must be valid too: `a)(b` is not made valid by the anchors' group.
    let compiled = RegexBuilder::new(pattern)
        .size_limit(REGEX_COMPILED_LIMIT)
        .build()
        .and_then(|_| {
            RegexBuilder::new(&text)
                .size_limit(REGEX_COMPILED_LIMIT)
                .build()
        });
    match compiled {
        Ok(regex) => Some(regex),
        Err(error) => {
            let reason = match &error {
                regex::Error::Syntax(text) => text.lines().last().unwrap_or_default().to_owned(),
                other => other.to_string(),
            };
            findings.error(
                path,
                format!(
                    "`{pattern}` is not a valid RE2 regex: {}",
                    reason.trim_start_matches("error: ")
                ),
            );
            None
        }
    }
}

/// A header name of a match or an edit.
pub(super) fn header_name(
    name: &str,
    path: &FieldPath<'_>,
    findings: &mut Findings,
) -> Option<HeaderName> {
    match HeaderName::try_from(name) {
        Ok(name) => Some(name),
        Err(_) => {
            findings.error(path, format!("`{name}` is not a valid header name"));
            None
        }
    }
}

/// `headers` of a rule or a destination.
pub(super) fn headers(
    raw: Option<&Headers>,
    path: &FieldPath<'_>,
    findings: &mut Findings,
) -> HeaderOperations {
    let Some(raw) = raw else {
        return HeaderOperations::default();
    };
    HeaderOperations {
        request: edit(raw.request.as_ref(), true, &path.key("request"), findings),
        response: edit(
            raw.response.as_ref(),
            false,
            &path.key("response"),
            findings,
        ),
    }
}

fn edit(
    raw: Option<&RawHeaderOperations>,
    request: bool,
    path: &FieldPath<'_>,
    findings: &mut Findings,
) -> HeaderEdit {
    let Some(raw) = raw else {
        return HeaderEdit::default();
    };
    let mut edit = HeaderEdit::default();
    for (written, list, parts) in [
        (&raw.set, "set", &mut edit.set),
        (&raw.add, "add", &mut edit.add),
    ] {
        let path = path.key(list);
        for (name, value) in written {
            let path = path.key(name);
            let name = edited_name(name, request, &path, findings);
            let value = header_value(value, &path, findings);
            if let (Some(name), Some(value)) = (name, value) {
                parts.push((name, value));
            }
        }
    }
    let path = path.key("remove");
    for (index, name) in raw.remove.iter().enumerate() {
        edit.remove
            .extend(edited_name(name, false, &path.index(index), findings));
    }
    edit
}

/// Pseudo headers are not editable, and Host only by setting it on a request.
fn edited_name(
    name: &str,
    host_allowed: bool,
    path: &FieldPath<'_>,
    findings: &mut Findings,
) -> Option<HeaderName> {
    if name.eq_ignore_ascii_case(":authority") && host_allowed {
        return Some(http::header::HOST);
    }
    if name.starts_with(':') {
        findings.error(path, format!("pseudo header `{name}` cannot be edited"));
        return None;
    }
    if name.eq_ignore_ascii_case("host") && !host_allowed {
        findings.error(
            path,
            "Host can only be set on a request (headers.request.set)",
        );
        return None;
    }
    header_name(name, path, findings)
}

fn header_value(text: &str, path: &FieldPath<'_>, findings: &mut Findings) -> Option<HeaderText> {
    match HeaderText::parse(text) {
        Ok(value) => return Some(value),
        Err(HeaderTextError::Unknown(command)) => {
            let consequence = format!("the command %{command}%; the header is left as it is");
            findings.unsupported(path, &consequence);
        }
        Err(HeaderTextError::Percent) => {
            findings.error(path, format!("`{text}`: write a percent sign as `%%`"));
        }
        Err(HeaderTextError::Characters) => {
            findings.error(path, "contains characters that a header cannot carry");
        }
    }
    None
}
