// SPDX-License-Identifier: Apache-2.0
//! First bytes to protocol. What was read is handed on; nothing is lost.

use std::{io, time::Duration};

use bytes::{Bytes, BytesMut};
use tokio::{io::AsyncReadExt, net::TcpStream};

use super::client_hello::{self, Hello};

/// Most bytes looked at: a ClientHello with post-quantum key shares fits.
const MAX_BYTES: usize = 16 * 1024;

/// How much is read at once; the usual request head fits.
const READ_BYTES: usize = 4096;

/// Longest HTTP method token that is believed (IANA's registry has 17 letters at most).
const MAX_METHOD: usize = 24;

/// The client connection preface of HTTP/2 (RFC 9113 3.4).
const H2_PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// What a connection carries.
#[derive(Debug, PartialEq, Eq)]
pub enum Detected {
    /// HTTP/1.x.
    Http1,
    /// HTTP/2 with prior knowledge.
    Http2,
    /// TLS, with the server name of its hello.
    Tls(Option<String>),
    /// Anything else, or silence for the time allowed.
    Opaque,
    /// Closed before a byte came.
    Closed,
}

/// Reads until the protocol is known; `seen` has been read already. `limit` is the time for the
/// first bytes, `None` for as long as the peer takes (the port is declared, so silence means an
/// idle client, not a server that speaks first).
///
/// # Errors
/// When reading fails.
pub async fn detect(
    stream: &mut TcpStream,
    mut seen: BytesMut,
    limit: Option<Duration>,
) -> io::Result<(Detected, Bytes)> {
    let reading = read(stream, &mut seen);
    let detected = match limit {
        Some(limit) => match tokio::time::timeout(limit, reading).await {
            Ok(detected) => detected?,
            Err(_) => Detected::Opaque,
        },
        None => reading.await?,
    };
    Ok((detected, seen.freeze()))
}

async fn read(stream: &mut TcpStream, seen: &mut BytesMut) -> io::Result<Detected> {
    loop {
        if !seen.is_empty()
            && let Some(detected) = classify(seen)
        {
            return Ok(detected);
        }
        seen.reserve(READ_BYTES);
        if stream.read_buf(seen).await? == 0 {
            return Ok(if seen.is_empty() {
                Detected::Closed
            } else {
                Detected::Opaque
            });
        }
    }
}

/// `None`: more bytes are needed.
fn classify(bytes: &[u8]) -> Option<Detected> {
    match client_hello::parse(bytes) {
        Hello::Complete(name) => return Some(Detected::Tls(name)),
        Hello::Partial if bytes.len() < MAX_BYTES => return None,
        Hello::Partial => return Some(Detected::Opaque),
        Hello::Not => {}
    }
    let common = bytes.len().min(H2_PREFACE.len());
    if bytes[..common] == H2_PREFACE[..common] {
        return (common == H2_PREFACE.len()).then_some(Detected::Http2);
    }
    // RFC 9112 2.2: empty lines before the request line are to be ignored.
    let line = bytes
        .iter()
        .position(|b| !matches!(b, b'\r' | b'\n'))
        .unwrap_or(bytes.len());
    let line = &bytes[line..];
    let is_token = |b: &u8| b.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(b);
    let method = line.iter().take_while(|b| is_token(b)).count();
    match line.get(method) {
        None if method <= MAX_METHOD && bytes.len() < MAX_BYTES => None,
        Some(b' ') if (1..=MAX_METHOD).contains(&method) => Some(Detected::Http1),
        _ => Some(Detected::Opaque),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn first_bytes_tell_the_protocol() {
        let cases: [(&[u8], Option<Detected>); 9] = [
            (b"GET / HTTP/1.1\r\n", Some(Detected::Http1)),
            (b"\r\nGET /", Some(Detected::Http1)),
            (b"PROPFIND /", Some(Detected::Http1)),
            (b"GE", None),
            (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", Some(Detected::Http2)),
            (b"PRI * HT", None),
            (b"SSH-2.0-OpenSSH_9.2\r\n", Some(Detected::Opaque)),
            (b"\x00\x01", Some(Detected::Opaque)),
            (b"\x16\x03\x01", None),
        ];
        for (bytes, expected) in cases {
            assert_eq!(
                classify(bytes),
                expected,
                "{:?}",
                String::from_utf8_lossy(bytes)
            );
        }
    }
}
