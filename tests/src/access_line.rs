// SPDX-License-Identifier: Apache-2.0
//! Istio's default access log line, taken apart field by field.
//!
//! The format is `EnvoyTextLogFormat` of Istio's pilot/pkg/model/telemetry_logging.go. Checks the
//! form only; what the fields should hold is the business of tests and of the scenario.

use std::{collections::BTreeMap, ops::Index};

use anyhow::{Context, Result, bail};

/// The fields in their order; `"` marks those in quotation marks, `[` the one in brackets.
const FIELDS: [&str; 22] = [
    "[start_time",
    "\"request",
    "response_code",
    "response_flags",
    "response_code_details",
    "connection_termination_details",
    "\"upstream_transport_failure_reason",
    "bytes_received",
    "bytes_sent",
    "duration",
    "upstream_service_time",
    "\"x_forwarded_for",
    "\"user_agent",
    "\"request_id",
    "\"authority",
    "\"upstream_host",
    "upstream_cluster",
    "upstream_local_address",
    "downstream_local_address",
    "downstream_remote_address",
    "requested_server_name",
    "route_name",
];

/// A line by field name (the keys of Istio's JSON encoding; `request` is method, path and protocol).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AccessLine(BTreeMap<&'static str, String>);

impl AccessLine {
    /// Takes a line apart.
    ///
    /// # Errors
    /// When it has not exactly the fields of the format, separated by single spaces.
    pub fn parse(line: &str) -> Result<Self> {
        let mut fields = BTreeMap::new();
        let mut rest = line;
        for (i, field) in FIELDS.iter().enumerate() {
            if i > 0 {
                rest = rest
                    .strip_prefix(' ')
                    .with_context(|| format!("no space before {field} in: {line}"))?;
            }
            let (value, after) = match field.chars().next() {
                Some('[') => enclosed(rest, '[', ']'),
                Some('"') => enclosed(rest, '"', '"'),
                _ => rest
                    .find(' ')
                    .map(|end| rest.split_at(end))
                    .or(Some((rest, ""))),
            }
            .with_context(|| format!("no {field} in: {line}"))?;
            if value.is_empty() {
                bail!("{field} is empty in: {line}");
            }
            fields.insert(field.trim_start_matches(['[', '"']), value.to_owned());
            rest = after;
        }
        if !rest.is_empty() {
            bail!("{rest:?} follows the last field of: {line}");
        }
        Ok(Self(fields))
    }

    /// Whether a line of output looks like an access line at all.
    pub fn is_one(line: &str) -> bool {
        line.starts_with('[') && line.contains("] \"")
    }
}

/// A field by its name; panics on a name that is not in the format.
impl Index<&str> for AccessLine {
    type Output = String;

    fn index(&self, field: &str) -> &String {
        &self.0[field]
    }
}

fn enclosed(text: &str, open: char, close: char) -> Option<(&str, &str)> {
    text.strip_prefix(open)?.split_once(close)
}

#[cfg(test)]
mod tests {
    use super::*;

    // Istio, "Egress Gateways" task.
    const LINE: &str = "[2019-09-03T20:57:49.103Z] \"GET /politics HTTP/2\" 301 - via_upstream - \
        \"-\" 0 0 90 89 \"10.244.2.10\" \"curl/7.64.0\" \"ea379962-9b5c-4431\" \
        \"edition.cnn.com\" \"151.101.65.67:80\" outbound|80||edition.cnn.com 10.244.1.5:54508 \
        10.244.1.5:80 10.244.2.10:53122 - -";

    #[test]
    fn line_is_taken_apart() {
        let line = AccessLine::parse(LINE).unwrap();
        for (field, expected) in [
            ("start_time", "2019-09-03T20:57:49.103Z"),
            ("request", "GET /politics HTTP/2"),
            ("response_code", "301"),
            ("upstream_transport_failure_reason", "-"),
            ("upstream_service_time", "89"),
            ("authority", "edition.cnn.com"),
            ("upstream_cluster", "outbound|80||edition.cnn.com"),
            ("downstream_remote_address", "10.244.2.10:53122"),
            ("route_name", "-"),
        ] {
            assert_eq!(line[field], expected, "{field}");
        }
    }

    #[test]
    fn other_lines_are_refused() {
        for line in [
            "",
            "[x",
            &LINE[..LINE.len() - 2],
            &format!("{LINE} x"),
            &LINE.replace("89 ", "89  "),
        ] {
            assert!(AccessLine::parse(line).is_err(), "{line}");
        }
    }
}
