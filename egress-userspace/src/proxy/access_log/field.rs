// SPDX-License-Identifier: Apache-2.0
//! The fields of a record that a format can name, and their values.
//!
//! Stands between [`super::AccessRecord`] and the forms in `format`: it says what a field's value
//! is and what kind of text, not how it is written.

use std::{
    net::{IpAddr, SocketAddr},
    time::{Duration, SystemTime},
};

use super::{AccessRecord, ResponseFlags};
use crate::upstream::endpoint::Endpoint;

/// One thing that a record holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Field {
    StartTime,
    Method,
    Path,
    Protocol,
    Authority,
    XForwardedFor,
    UserAgent,
    RequestId,
    ResponseCode,
    ResponseFlags,
    Details,
    TerminationDetails,
    TransportFailure,
    BytesReceived,
    BytesSent,
    Duration,
    UpstreamServiceTime,
    UpstreamHost,
    UpstreamCluster,
    UpstreamLocal,
    DownstreamLocal,
    DownstreamRemote,
    DownstreamLocalIp,
    DownstreamRemoteIp,
    ServerName,
    RouteName,
    SourceWorkload,
    SourceNamespace,
    SourceServiceAccount,
    OriginalDestination,
}

/// A field's value, with the kind of text it is.
pub(super) enum Value<'a> {
    Missing,
    /// Stands between quotes in the default line.
    Quoted(&'a str),
    /// Stands alone in the default line and may come from the client.
    Word(&'a str),
    /// Stands alone and is ours.
    Details(&'a str),
    Flags(ResponseFlags),
    Number(u64),
    /// Milliseconds, a number.
    Millis(Duration),
    /// Milliseconds, which are a header's text in Envoy and so a string in JSON.
    MillisHeader(Duration),
    Address(SocketAddr),
    Ip(IpAddr),
    Time(SystemTime),
}

/// The field of a request header, named in lower case; `None`: records do not carry it.
pub(super) fn request_header(name: &str) -> Option<Field> {
    Some(match name {
        ":method" => Field::Method,
        // Records hold the path as the client sent it, which is what the original path means.
        ":path" | "x-envoy-original-path" => Field::Path,
        ":authority" | "host" => Field::Authority,
        "x-forwarded-for" => Field::XForwardedFor,
        "user-agent" => Field::UserAgent,
        "x-request-id" => Field::RequestId,
        _ => return None,
    })
}

/// The field of a response header.
pub(super) fn response_header(name: &str) -> Option<Field> {
    (name == "x-envoy-upstream-service-time").then_some(Field::UpstreamServiceTime)
}

/// The field of an operator of our own, `%EGRESS(NAME)%`.
pub(super) fn own(name: &str) -> Option<Field> {
    Some(match name {
        "SOURCE_NAMESPACE" => Field::SourceNamespace,
        "SOURCE_WORKLOAD" => Field::SourceWorkload,
        "SOURCE_SERVICE_ACCOUNT" => Field::SourceServiceAccount,
        "ORIGINAL_DESTINATION" => Field::OriginalDestination,
        _ => return None,
    })
}

/// A field's value in a record.
pub(super) fn value<'r>(field: Field, record: &'r AccessRecord<'_>) -> Value<'r> {
    let http = record.http.as_ref();
    match field {
        Field::StartTime => Value::Time(record.start),
        Field::Method => present(http.map(|http| http.method), Value::Quoted),
        Field::Path => present(http.map(|http| http.path), Value::Quoted),
        Field::Protocol => present(http.map(|http| http.protocol), Value::Quoted),
        Field::Authority => present(http.map(|http| http.authority), Value::Quoted),
        Field::XForwardedFor => present(http.and_then(|http| http.x_forwarded_for), Value::Quoted),
        Field::UserAgent => present(http.and_then(|http| http.user_agent), Value::Quoted),
        Field::RequestId => present(http.and_then(|http| http.request_id), Value::Quoted),
        Field::ResponseCode => Value::Number(record.response_code.into()),
        Field::ResponseFlags => match record.response_flags {
            ResponseFlags::NONE => Value::Missing,
            flags => Value::Flags(flags),
        },
        Field::Details => present(Some(record.details.as_ref()), Value::Details),
        Field::TerminationDetails => {
            present(Some(record.termination_details.as_ref()), Value::Details)
        }
        Field::TransportFailure => present(Some(record.transport_failure.as_ref()), Value::Quoted),
        Field::BytesReceived => Value::Number(record.bytes_received),
        Field::BytesSent => Value::Number(record.bytes_sent),
        Field::Duration => Value::Millis(record.duration),
        Field::UpstreamServiceTime => record
            .upstream_service_time
            .map_or(Value::Missing, Value::MillisHeader),
        Field::UpstreamHost => match record.upstream_host {
            None => Value::Missing,
            Some(Endpoint::Ip(ip)) => Value::Address(*ip),
            Some(Endpoint::Unix(path)) => present(path.to_str(), Value::Quoted),
        },
        Field::UpstreamCluster => present(Some(record.upstream_cluster), Value::Details),
        Field::UpstreamLocal => address(record.upstream_local),
        Field::DownstreamLocal => address(record.downstream_local),
        Field::DownstreamRemote => address(record.downstream_remote),
        Field::DownstreamLocalIp => record
            .downstream_local
            .map_or(Value::Missing, |address| Value::Ip(address.ip())),
        Field::DownstreamRemoteIp => record
            .downstream_remote
            .map_or(Value::Missing, |address| Value::Ip(address.ip())),
        Field::ServerName => present(Some(record.requested_server_name), Value::Word),
        Field::RouteName => present(Some(record.route_name), Value::Word),
        Field::SourceWorkload => present(record.source.map(|w| w.name.as_str()), Value::Quoted),
        Field::SourceNamespace => {
            present(record.source.map(|w| w.namespace.as_str()), Value::Quoted)
        }
        Field::SourceServiceAccount => present(
            record.source.map(|w| w.service_account.as_str()),
            Value::Quoted,
        ),
        Field::OriginalDestination => address(record.original_destination),
    }
}

fn present<'r>(text: Option<&'r str>, kind: impl Fn(&'r str) -> Value<'r>) -> Value<'r> {
    match text {
        None | Some("") => Value::Missing,
        Some(text) => kind(text),
    }
}

fn address<'r>(address: Option<SocketAddr>) -> Value<'r> {
    address.map_or(Value::Missing, Value::Address)
}
