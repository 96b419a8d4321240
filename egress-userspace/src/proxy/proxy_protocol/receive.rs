// SPDX-License-Identifier: Apache-2.0
//! The header at the start of an accepted connection from a trusted address. What was read behind
//! it is handed on; nothing is lost.

use std::{io, time::Duration};

use bytes::{Buf, BytesMut};
use tokio::{io::AsyncReadExt, net::TcpStream, time::timeout};

use super::{BadHeader, Caller, Parsed, parse};

/// Time for a header that has begun; and for its beginning where the server may speak first.
const LIMIT: Duration = Duration::from_secs(5);

/// How much is read at once; the usual request head fits.
const READ_BYTES: usize = 4096;

/// What a connection began with.
#[derive(Debug)]
pub enum Received {
    /// A header's caller, if it names one; or no header at all.
    Caller(Option<Box<Caller>>),
    /// A header that cannot be taken: close.
    Bad(BadHeader),
}

/// Reads a header, if there is one; `seen` then holds what follows it. A client that always speaks
/// first (`client_first`) may take its time to begin; of others, silence means after five seconds
/// that there is no header.
///
/// # Errors
/// When reading fails.
pub async fn receive(
    stream: &mut TcpStream,
    seen: &mut BytesMut,
    client_first: bool,
) -> io::Result<Received> {
    if client_first && read(stream, seen).await? == 0 {
        return Ok(Received::Caller(None));
    }
    let finished = timeout(LIMIT, finish(stream, seen)).await;
    match finished {
        Ok(received) => received,
        Err(_) => Ok(match parse(seen) {
            Ok(Parsed::Partial { begun: true }) => Received::Bad(BadHeader::Late),
            _ => Received::Caller(None),
        }),
    }
}

async fn finish(stream: &mut TcpStream, seen: &mut BytesMut) -> io::Result<Received> {
    loop {
        let begun = match parse(seen) {
            Ok(Parsed::Absent) => return Ok(Received::Caller(None)),
            Ok(Parsed::Header { length, caller }) => {
                seen.advance(length);
                return Ok(Received::Caller(caller.map(Box::new)));
            }
            Ok(Parsed::Partial { begun }) => begun,
            Err(bad) => return Ok(Received::Bad(bad)),
        };
        if read(stream, seen).await? == 0 {
            return Ok(if begun {
                Received::Bad(BadHeader::Ended)
            } else {
                Received::Caller(None)
            });
        }
    }
}

async fn read(stream: &mut TcpStream, seen: &mut BytesMut) -> io::Result<usize> {
    seen.reserve(READ_BYTES);
    stream.read_buf(seen).await
}
