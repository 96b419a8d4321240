// SPDX-License-Identifier: Apache-2.0
//! The form of an access log line: Istio's text, Istio's JSON, or `accessLogFormat`.
//!
//! A [`Format`] is compiled once from Envoy's operators and then appends any number of records.
//! It takes what an [`AccessRecord`] holds; an operator that asks for more is an error when the
//! format is compiled, never a silent `-`.

use std::borrow::Cow;

use super::{
    AccessRecord, append,
    append::Clock,
    field::{Field, Value, own, request_header, response_header, value},
};
use crate::config::mesh::{AccessLogEncoding, MeshConfig};

/// Istio's default line (istio pilot/pkg/model/telemetry_logging.go, EnvoyTextLogFormat).
pub const ISTIO_TEXT: &str = "[%START_TIME%] \
\"%REQ(:METHOD)% %REQ(X-ENVOY-ORIGINAL-PATH?:PATH)% %PROTOCOL%\" %RESPONSE_CODE% \
%RESPONSE_FLAGS% %RESPONSE_CODE_DETAILS% %CONNECTION_TERMINATION_DETAILS% \
\"%UPSTREAM_TRANSPORT_FAILURE_REASON%\" %BYTES_RECEIVED% %BYTES_SENT% %DURATION% \
%RESP(X-ENVOY-UPSTREAM-SERVICE-TIME)% \"%REQ(X-FORWARDED-FOR)%\" \"%REQ(USER-AGENT)%\" \
\"%REQ(X-REQUEST-ID)%\" \"%REQ(:AUTHORITY)%\" \"%UPSTREAM_HOST%\" %UPSTREAM_CLUSTER_RAW% \
%UPSTREAM_LOCAL_ADDRESS% %DOWNSTREAM_LOCAL_ADDRESS% %DOWNSTREAM_REMOTE_ADDRESS% \
%REQUESTED_SERVER_NAME% %ROUTE_NAME%\n";

/// Keys of Istio's JSON encoding (istio-egress.md 8a.2), then our own.
const JSON_FIELDS: [(&str, Field); 28] = [
    ("start_time", Field::StartTime),
    ("route_name", Field::RouteName),
    ("method", Field::Method),
    ("path", Field::Path),
    ("protocol", Field::Protocol),
    ("response_code", Field::ResponseCode),
    ("response_flags", Field::ResponseFlags),
    ("response_code_details", Field::Details),
    ("connection_termination_details", Field::TerminationDetails),
    ("bytes_received", Field::BytesReceived),
    ("bytes_sent", Field::BytesSent),
    ("duration", Field::Duration),
    ("upstream_service_time", Field::UpstreamServiceTime),
    ("x_forwarded_for", Field::XForwardedFor),
    ("user_agent", Field::UserAgent),
    ("request_id", Field::RequestId),
    ("authority", Field::Authority),
    ("upstream_host", Field::UpstreamHost),
    ("upstream_cluster", Field::UpstreamCluster),
    ("upstream_local_address", Field::UpstreamLocal),
    ("downstream_local_address", Field::DownstreamLocal),
    ("downstream_remote_address", Field::DownstreamRemote),
    ("requested_server_name", Field::ServerName),
    ("upstream_transport_failure_reason", Field::TransportFailure),
    ("source_namespace", Field::SourceNamespace),
    ("source_workload", Field::SourceWorkload),
    ("source_service_account", Field::SourceServiceAccount),
    ("original_destination", Field::OriginalDestination),
];

/// Why an `accessLogFormat` cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum FormatError {
    /// The text holds a `%` that no second `%` closes.
    #[error("operator {operator:?} is not closed by a second %; write %% for a percent sign")]
    Unclosed {
        /// From the `%` to the end of the format.
        operator: String,
    },
    /// Not an operator that this program knows.
    #[error("operator %{operator}% is not supported")]
    UnknownOperator {
        /// Between the percent signs.
        operator: String,
    },
    /// Not one of our own operators.
    #[error(
        "operator %{operator}% is not supported; there are EGRESS(SOURCE_NAMESPACE), \
         EGRESS(SOURCE_WORKLOAD), EGRESS(SOURCE_SERVICE_ACCOUNT), EGRESS(ORIGINAL_DESTINATION)"
    )]
    UnknownOwn {
        /// Between the percent signs.
        operator: String,
    },
    /// A header that records do not carry.
    #[error(
        "header {header:?} in %{operator}% is not recorded; recorded are :method, :path, \
         :authority, x-envoy-original-path, x-forwarded-for, user-agent and x-request-id in \
         REQ(), x-envoy-upstream-service-time in RESP()"
    )]
    UnknownHeader {
        /// Between the percent signs.
        operator: String,
        /// The header.
        header: String,
    },
    /// `:Z` is no length.
    #[error("length {length:?} in %{operator}% is not a number")]
    BadLength {
        /// Between the percent signs.
        operator: String,
        /// After the colon.
        length: String,
    },
    /// JSON encoding wants an object of strings.
    #[error("with accessLogEncoding JSON the format must be a JSON object of strings: {reason}")]
    NotAnObject {
        /// What stands there instead.
        reason: String,
    },
}

/// A compiled form. Compare by value; cheap to share behind an `Arc`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Format(Form);

#[derive(Debug, Clone, PartialEq, Eq)]
enum Form {
    Text(Vec<Part>),
    /// Each key is complete JSON text, quotes, colon and leading comma or brace included.
    Json(Vec<(String, Vec<Part>)>),
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Part {
    Literal(Cow<'static, str>),
    Operator {
        /// The first that has a value is written.
        fields: [Option<Field>; 2],
        /// Longest value in bytes.
        limit: Option<usize>,
    },
}

impl Format {
    /// Istio's default text line.
    pub fn istio_text() -> Self {
        // The constant is known to compile (tested); an empty line would be the harmless fallback.
        compile(ISTIO_TEXT).unwrap_or(Self(Form::Text(Vec::new())))
    }

    /// Istio's JSON object, and behind it who is calling and where it wanted to go.
    pub fn istio_json() -> Self {
        let entries = JSON_FIELDS.iter().enumerate();
        Self(Form::Json(
            entries
                .map(|(position, (key, field))| (json_key(position, key), vec![one(*field)]))
                .collect(),
        ))
    }

    /// The form that a MeshConfig asks for.
    ///
    /// # Errors
    /// `accessLogFormat` names something that cannot be logged; keep the form in use.
    pub fn from_mesh(mesh: &MeshConfig) -> Result<Self, FormatError> {
        match (mesh.access_log_encoding, mesh.access_log_format.as_str()) {
            (AccessLogEncoding::Text, "") => Ok(Self::istio_text()),
            (AccessLogEncoding::Json, "") => Ok(Self::istio_json()),
            (AccessLogEncoding::Text, text) => compile(text),
            (AccessLogEncoding::Json, text) => compile_json(text),
        }
    }

    /// Appends one line, line feed included. `clock` belongs to the caller's buffer.
    pub fn append(&self, out: &mut Vec<u8>, clock: &mut Clock, record: &AccessRecord<'_>) {
        match &self.0 {
            Form::Text(parts) => {
                for part in parts {
                    append_text(out, clock, part, record);
                }
            }
            Form::Json(entries) => {
                for (key, parts) in entries {
                    out.extend_from_slice(key.as_bytes());
                    append_json(out, clock, parts, record);
                }
                out.extend_from_slice(b"}\n");
            }
        }
    }
}

/// Compiles a text `accessLogFormat`; a missing line feed at the end is added, as Istio does.
///
/// # Errors
/// An operator, header or length that cannot be logged.
pub fn compile(format: &str) -> Result<Format, FormatError> {
    let mut parts = parse(format)?;
    if !format.ends_with('\n') {
        parts.push(Part::Literal("\n".into()));
    }
    Ok(Format(Form::Text(parts)))
}

/// Compiles an `accessLogFormat` for JSON encoding: an object of key to format text.
fn compile_json(format: &str) -> Result<Format, FormatError> {
    let not_an_object = |reason: String| FormatError::NotAnObject { reason };
    let object: serde_json::Map<String, serde_json::Value> =
        serde_json::from_str(format).map_err(|error| not_an_object(error.to_string()))?;
    if object.is_empty() {
        return Err(not_an_object("it has no keys".into()));
    }
    let mut entries = Vec::with_capacity(object.len());
    for (position, (key, value)) in object.iter().enumerate() {
        let Some(text) = value.as_str() else {
            return Err(not_an_object(format!("the value of {key:?} is no string")));
        };
        entries.push((json_key(position, key), parse(text)?));
    }
    Ok(Format(Form::Json(entries)))
}

fn json_key(position: usize, key: &str) -> String {
    let lead = if position == 0 { '{' } else { ',' };
    format!("{lead}{}:", serde_json::Value::from(key))
}

fn one(field: Field) -> Part {
    Part::Operator {
        fields: [Some(field), None],
        limit: None,
    }
}

fn parse(format: &str) -> Result<Vec<Part>, FormatError> {
    let mut parts = Vec::new();
    let mut literal = String::new();
    let mut rest = format;
    while let Some(at) = rest.find('%') {
        literal.push_str(&rest[..at]);
        let after = &rest[at + 1..];
        let Some(length) = after.find('%') else {
            return Err(FormatError::Unclosed {
                operator: rest[at..].to_owned(),
            });
        };
        rest = &after[length + 1..];
        if length == 0 {
            literal.push('%');
            continue;
        }
        if !literal.is_empty() {
            parts.push(Part::Literal(std::mem::take(&mut literal).into()));
        }
        parts.push(operator(&after[..length])?);
    }
    literal.push_str(rest);
    if !literal.is_empty() {
        parts.push(Part::Literal(literal.into()));
    }
    Ok(parts)
}

fn operator(operator: &str) -> Result<Part, FormatError> {
    let arguments = operator
        .strip_prefix("REQ(")
        .or_else(|| operator.strip_prefix("RESP("));
    if let Some(arguments) = arguments {
        let known = if operator.starts_with("REQ") {
            request_header
        } else {
            response_header
        };
        return header_operator(operator, arguments, known);
    }
    let name = operator.strip_prefix("EGRESS(");
    if let Some(name) = name.and_then(|rest| rest.strip_suffix(')')) {
        let field = own(name).ok_or_else(|| FormatError::UnknownOwn {
            operator: operator.to_owned(),
        })?;
        return Ok(one(field));
    }
    let field = match operator {
        "START_TIME" => Field::StartTime,
        "PROTOCOL" => Field::Protocol,
        "RESPONSE_CODE" => Field::ResponseCode,
        "RESPONSE_FLAGS" => Field::ResponseFlags,
        "RESPONSE_CODE_DETAILS" => Field::Details,
        "CONNECTION_TERMINATION_DETAILS" => Field::TerminationDetails,
        "UPSTREAM_TRANSPORT_FAILURE_REASON" => Field::TransportFailure,
        "BYTES_RECEIVED" => Field::BytesReceived,
        "BYTES_SENT" => Field::BytesSent,
        "DURATION" => Field::Duration,
        "UPSTREAM_HOST" => Field::UpstreamHost,
        "UPSTREAM_CLUSTER" | "UPSTREAM_CLUSTER_RAW" => Field::UpstreamCluster,
        "UPSTREAM_LOCAL_ADDRESS" => Field::UpstreamLocal,
        "DOWNSTREAM_LOCAL_ADDRESS" => Field::DownstreamLocal,
        "DOWNSTREAM_REMOTE_ADDRESS" => Field::DownstreamRemote,
        "DOWNSTREAM_LOCAL_ADDRESS_WITHOUT_PORT" => Field::DownstreamLocalIp,
        "DOWNSTREAM_REMOTE_ADDRESS_WITHOUT_PORT" => Field::DownstreamRemoteIp,
        "REQUESTED_SERVER_NAME" => Field::ServerName,
        "ROUTE_NAME" => Field::RouteName,
        _ => {
            return Err(FormatError::UnknownOperator {
                operator: operator.to_owned(),
            });
        }
    };
    Ok(one(field))
}

/// `X?Y):Z`, what stands behind `REQ(` or `RESP(`.
fn header_operator(
    operator: &str,
    arguments: &str,
    known: fn(&str) -> Option<Field>,
) -> Result<Part, FormatError> {
    let Some((names, tail)) = arguments.split_once(')') else {
        return Err(FormatError::UnknownOperator {
            operator: operator.to_owned(),
        });
    };
    let limit = match tail.strip_prefix(':') {
        None if tail.is_empty() => None,
        None => {
            return Err(FormatError::UnknownOperator {
                operator: operator.to_owned(),
            });
        }
        Some(length) => Some(length.parse().map_err(|_| FormatError::BadLength {
            operator: operator.to_owned(),
            length: length.to_owned(),
        })?),
    };
    let mut fields = [None; 2];
    for (slot, name) in fields.iter_mut().zip(names.splitn(2, '?')) {
        let field = known(&name.to_ascii_lowercase());
        *slot = Some(field.ok_or_else(|| FormatError::UnknownHeader {
            operator: operator.to_owned(),
            header: name.to_owned(),
        })?);
    }
    Ok(Part::Operator { fields, limit })
}

fn append_text(out: &mut Vec<u8>, clock: &mut Clock, part: &Part, record: &AccessRecord<'_>) {
    let (fields, limit) = match part {
        Part::Literal(text) => return out.extend_from_slice(text.as_bytes()),
        Part::Operator { fields, limit } => (fields, *limit),
    };
    match first(fields, limit, record) {
        Value::Missing => out.push(b'-'),
        Value::Quoted(text) => append::text(out, text),
        Value::Word(text) => append::word(out, text),
        Value::Details(text) => append::details(out, text),
        other => append_bare(out, clock, &other),
    }
}

/// One value: typed when it is a single operator, otherwise the parts' text as one string.
fn append_json(out: &mut Vec<u8>, clock: &mut Clock, parts: &[Part], record: &AccessRecord<'_>) {
    if let [Part::Operator { fields, limit }] = parts {
        let value = first(fields, *limit, record);
        match value {
            Value::Missing if fields[0] == Some(Field::ResponseFlags) => {
                out.extend_from_slice(b"\"-\"");
            }
            Value::Missing => out.extend_from_slice(b"null"),
            Value::Number(_) | Value::Millis(_) => append_bare(out, clock, &value),
            _ => {
                out.push(b'"');
                append_json_text(out, clock, &value);
                out.push(b'"');
            }
        }
        return;
    }
    out.push(b'"');
    for part in parts {
        match part {
            Part::Literal(text) => append::json(out, text),
            Part::Operator { fields, limit } => {
                append_json_text(out, clock, &first(fields, *limit, record));
            }
        }
    }
    out.push(b'"');
}

fn append_json_text(out: &mut Vec<u8>, clock: &mut Clock, value: &Value<'_>) {
    match value {
        Value::Missing => out.push(b'-'),
        Value::Quoted(text) | Value::Word(text) | Value::Details(text) => append::json(out, text),
        other => append_bare(out, clock, other),
    }
}

/// Values that need no escaping in either form.
fn append_bare(out: &mut Vec<u8>, clock: &mut Clock, value: &Value<'_>) {
    match value {
        Value::Number(number) => append::integer(out, *number),
        Value::Millis(time) | Value::MillisHeader(time) => append::milliseconds(out, *time),
        Value::Address(address) => append::address(out, *address),
        Value::Ip(ip) => append::ip(out, *ip),
        Value::Time(time) => clock.append(out, *time),
        Value::Flags(flags) => {
            for (index, name) in flags.names().enumerate() {
                if index > 0 {
                    out.push(b',');
                }
                out.extend_from_slice(name.as_bytes());
            }
        }
        Value::Missing | Value::Quoted(_) | Value::Word(_) | Value::Details(_) => {}
    }
}

fn first<'r>(
    fields: &[Option<Field>; 2],
    limit: Option<usize>,
    record: &'r AccessRecord<'_>,
) -> Value<'r> {
    let mut found = Value::Missing;
    for field in fields.iter().flatten() {
        found = value(*field, record);
        if !matches!(found, Value::Missing) {
            break;
        }
    }
    match (found, limit) {
        (Value::Quoted(text), Some(limit)) => {
            Value::Quoted(&text[..text.floor_char_boundary(limit)])
        }
        (found, _) => found,
    }
}

#[cfg(test)]
mod tests {
    use std::{
        net::{IpAddr, Ipv6Addr, SocketAddr},
        time::{Duration, UNIX_EPOCH},
    };

    use super::{super::tests::empty_record, *};
    use crate::{
        proxy::access_log::{HttpRecord, ResponseFlag},
        upstream::endpoint::Endpoint,
        workload::Workload,
    };

    static UPSTREAM: Endpoint = Endpoint::Ip(SocketAddr::new(
        IpAddr::V6(Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1)),
        80,
    ));

    fn line(format: &Format, record: &AccessRecord<'_>) -> String {
        let mut out = Vec::new();
        format.append(&mut out, &mut Clock::default(), record);
        String::from_utf8(out).unwrap()
    }

    fn full_record<'a>(source: &'a Workload, user_agent: &'a str) -> AccessRecord<'a> {
        AccessRecord {
            start: UNIX_EPOCH + Duration::from_millis(1_595_873_457_205),
            duration: Duration::from_micros(12_900),
            http: Some(HttpRecord {
                method: "GET",
                path: "/headers?a=b",
                protocol: "HTTP/1.1",
                authority: "httpbin.org",
                user_agent: Some(user_agent),
                x_forwarded_for: Some("10.1.0.5"),
                request_id: Some("84961386-6d84-929d-98bd-c5aee93b5c88"),
                grpc: false,
                grpc_status: None,
            }),
            response_code: 503,
            response_flags: ResponseFlag::UpstreamConnectionFailure.into(),
            details: "upstream reset".into(),
            termination_details: "".into(),
            transport_failure: "delayed connect error: 111".into(),
            bytes_received: 10,
            bytes_sent: 613,
            upstream_service_time: Some(Duration::from_millis(11)),
            upstream_host: Some(&UPSTREAM),
            upstream_cluster: "outbound|80||httpbin.org",
            upstream_local: Some("172.30.1.2:52638".parse().unwrap()),
            downstream_local: Some("34.1.2.3:80".parse().unwrap()),
            downstream_remote: Some("10.1.0.5:41238".parse().unwrap()),
            requested_server_name: "",
            route_name: "default",
            destination_service: "httpbin.org",
            destination_namespace: "istio-demo",
            source: Some(source),
            original_destination: Some("34.1.2.3:80".parse().unwrap()),
        }
    }

    fn workload() -> Workload {
        Workload {
            namespace: "istio-demo".into(),
            name: "sleep".into(),
            ..Workload::default()
        }
    }

    #[test]
    fn a_full_record_is_istios_default_line() {
        let source = workload();
        assert_eq!(
            line(&Format::istio_text(), &full_record(&source, "curl/8.5.0")),
            "[2020-07-27T18:10:57.205Z] \"GET /headers?a=b HTTP/1.1\" 503 UF upstream_reset - \
             \"delayed connect error: 111\" 10 613 12 11 \"10.1.0.5\" \"curl/8.5.0\" \
             \"84961386-6d84-929d-98bd-c5aee93b5c88\" \"httpbin.org\" \"[2001:db8::1]:80\" \
             outbound|80||httpbin.org 172.30.1.2:52638 34.1.2.3:80 10.1.0.5:41238 - default\n"
        );
    }

    #[test]
    fn an_empty_record_is_dashes() {
        assert_eq!(
            line(&Format::istio_text(), &empty_record()),
            "[1970-01-01T00:00:00.000Z] \"- - -\" 0 - - - \"-\" 0 0 0 - \"-\" \"-\" \"-\" \"-\" \
             \"-\" - - - - - -\n"
        );
    }

    #[test]
    fn a_full_record_in_json_has_istios_keys_and_types() {
        let source = workload();
        let text = line(&Format::istio_json(), &full_record(&source, "curl/8.5.0"));
        assert_eq!(text.matches('\n').count(), 1);
        let json: serde_json::Value = serde_json::from_str(&text).unwrap();
        assert_eq!(
            json,
            serde_json::json!({
                "start_time": "2020-07-27T18:10:57.205Z",
                "route_name": "default",
                "method": "GET",
                "path": "/headers?a=b",
                "protocol": "HTTP/1.1",
                "response_code": 503,
                "response_flags": "UF",
                "response_code_details": "upstream reset",
                "connection_termination_details": null,
                "bytes_received": 10,
                "bytes_sent": 613,
                "duration": 12,
                "upstream_service_time": "11",
                "x_forwarded_for": "10.1.0.5",
                "user_agent": "curl/8.5.0",
                "request_id": "84961386-6d84-929d-98bd-c5aee93b5c88",
                "authority": "httpbin.org",
                "upstream_host": "[2001:db8::1]:80",
                "upstream_cluster": "outbound|80||httpbin.org",
                "upstream_local_address": "172.30.1.2:52638",
                "downstream_local_address": "34.1.2.3:80",
                "downstream_remote_address": "10.1.0.5:41238",
                "requested_server_name": null,
                "upstream_transport_failure_reason": "delayed connect error: 111",
                "source_workload": "sleep",
                "source_namespace": "istio-demo",
                "source_service_account": null,
                "original_destination": "34.1.2.3:80",
            })
        );
    }

    #[test]
    fn an_empty_record_in_json_is_nulls() {
        let text = line(&Format::istio_json(), &empty_record());
        let json: serde_json::Map<String, serde_json::Value> = serde_json::from_str(&text).unwrap();
        assert_eq!(json.len(), JSON_FIELDS.len());
        for (key, value) in json {
            match key.as_str() {
                "start_time" => assert_eq!(value, "1970-01-01T00:00:00.000Z"),
                "response_flags" => assert_eq!(value, "-"),
                "response_code" | "bytes_received" | "bytes_sent" | "duration" => {
                    assert_eq!(value, 0);
                }
                _ => assert!(value.is_null(), "{key}"),
            }
        }
    }

    #[test]
    fn values_of_the_client_cannot_forge_a_line() {
        let source = workload();
        let record = AccessRecord {
            requested_server_name: "a b\nc",
            ..full_record(&source, "x\" 200\n[2020] \"forged")
        };
        let text = line(&Format::istio_text(), &record);
        assert_eq!(text.matches('\n').count(), 1);
        assert!(text.contains("\"x\\x22 200\\x0A[2020] \\x22forged\""));
        assert!(text.contains(" a\\x20b\\x0Ac default\n"));
        let json = line(&Format::istio_json(), &record);
        let json: serde_json::Value = serde_json::from_str(&json).unwrap();
        assert_eq!(json["user_agent"], "x\" 200\n[2020] \"forged");
    }

    #[test]
    fn custom_formats_write_their_operators() {
        let source = workload();
        let record = full_record(&source, "curl/8.5.0");
        for (format, want) in [
            ("%REQ(:METHOD)%", "GET\n"),
            ("%req%%%\n", ""),
            ("100%%", "100%\n"),
            ("%REQ(user-agent):4%|%RESPONSE_CODE%\n", "curl|503\n"),
            ("%REQ(HOST?:AUTHORITY)%", "httpbin.org\n"),
            ("%DOWNSTREAM_REMOTE_ADDRESS_WITHOUT_PORT%", "10.1.0.5\n"),
            ("%RESP(x-envoy-upstream-service-time)%", "11\n"),
            (
                "%EGRESS(SOURCE_NAMESPACE)% %EGRESS(SOURCE_WORKLOAD)% \
                 %EGRESS(SOURCE_SERVICE_ACCOUNT)% %EGRESS(ORIGINAL_DESTINATION)%",
                "istio-demo sleep - 34.1.2.3:80\n",
            ),
        ] {
            match compile(format) {
                Ok(compiled) => assert_eq!(line(&compiled, &record), want, "{format}"),
                Err(_) => assert_eq!(want, "", "{format}"),
            }
        }
    }

    #[test]
    fn formats_that_cannot_be_logged_are_refused_with_the_reason() {
        for (format, want) in [
            ("%DURATION", "operator \"%DURATION\" is not closed"),
            ("%NO_SUCH%", "operator %NO_SUCH% is not supported"),
            (
                "%START_TIME(%s)%",
                "operator %START_TIME(% is not supported",
            ),
            (
                "%REQ(COOKIE)%",
                "header \"COOKIE\" in %REQ(COOKIE)% is not recorded",
            ),
            ("%RESP(SERVER)%", "header \"SERVER\""),
            ("%REQ(:PATH):x%", "length \"x\""),
            ("%REQ(:PATH)x%", "is not supported"),
            ("%REQ(:PATH%", "is not supported"),
            ("%EGRESS(SOURCE_IP)%", "there are EGRESS(SOURCE_NAMESPACE)"),
            ("%EGRESS(SOURCE_NAMESPACE)x%", "is not supported"),
        ] {
            let error = compile(format).unwrap_err().to_string();
            assert!(error.contains(want), "{format}: {error}");
        }
    }

    #[test]
    fn a_json_format_is_an_object_of_formats() {
        let mesh = |format: &str| MeshConfig {
            access_log_encoding: AccessLogEncoding::Json,
            access_log_format: format.to_owned(),
            ..MeshConfig::default()
        };
        let source = workload();
        let format = r#"{"code":"%RESPONSE_CODE%","what":"%REQ(:METHOD)% \"%REQ(:PATH)%","sni":"%REQUESTED_SERVER_NAME%"}"#;
        let format = Format::from_mesh(&mesh(format)).unwrap();
        let json: serde_json::Value =
            serde_json::from_str(&line(&format, &full_record(&source, ""))).unwrap();
        assert_eq!(
            json,
            serde_json::json!({"code": 503, "what": "GET \"/headers?a=b", "sni": null})
        );
        for bad in ["%DURATION%", "{}", r#"{"a":1}"#] {
            assert!(matches!(
                Format::from_mesh(&mesh(bad)),
                Err(FormatError::NotAnObject { .. })
            ));
        }
    }

    #[test]
    fn own_operators_are_null_in_json_when_unknown() {
        let mesh = MeshConfig {
            access_log_encoding: AccessLogEncoding::Json,
            access_log_format: r#"{"n":"%EGRESS(SOURCE_NAMESPACE)%","w":"%EGRESS(SOURCE_WORKLOAD)%","s":"%EGRESS(SOURCE_SERVICE_ACCOUNT)%","o":"%EGRESS(ORIGINAL_DESTINATION)%"}"#.to_owned(),
            ..MeshConfig::default()
        };
        let format = Format::from_mesh(&mesh).unwrap();
        let json = |record: &AccessRecord<'_>| -> serde_json::Value {
            serde_json::from_str(&line(&format, record)).unwrap()
        };
        let source = workload();
        assert_eq!(
            json(&full_record(&source, "")),
            serde_json::json!({"n": "istio-demo", "w": "sleep", "s": null, "o": "34.1.2.3:80"})
        );
        assert_eq!(
            json(&empty_record()),
            serde_json::json!({"n": null, "w": null, "s": null, "o": null})
        );
        let text = compile("%EGRESS(SOURCE_WORKLOAD)% %EGRESS(ORIGINAL_DESTINATION)%").unwrap();
        assert_eq!(line(&text, &empty_record()), "- -\n");
    }
}
