// SPDX-License-Identifier: Apache-2.0
//! Bytes both ways between two connections: half-close kept, bytes counted. Both directions are
//! joined, not raced, so that a half-closed connection finishes.

use std::io;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

use super::connection::Peer;

/// Buffer of one direction.
const BUFFER: usize = 64 * 1024;

/// What was carried.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct Copied {
    /// Bytes from the client.
    pub received: u64,
    /// Bytes to the client.
    pub sent: u64,
}

/// Copies until both directions have ended. A peer that resets ends both, and so does the end of the
/// downstream's pod. What goes by is counted on the connection.
pub async fn both_ways<A, B>(downstream: A, upstream: B, peer: &Peer) -> (Copied, io::Result<()>)
where
    A: AsyncRead + AsyncWrite,
    B: AsyncRead + AsyncWrite,
{
    let (down_read, down_write) = tokio::io::split(downstream);
    let (up_read, up_write) = tokio::io::split(upstream);
    let mut copied = Copied::default();
    let copying = async {
        tokio::try_join!(
            one_way(down_read, up_write, |bytes| {
                copied.received += bytes;
                peer.live.received(bytes);
            }),
            one_way(up_read, down_write, |bytes| {
                copied.sent += bytes;
                peer.live.sent(bytes);
            }),
        )
    };
    let result = tokio::select! {
        result = copying => result.map(|_| ()),
        () = peer.cut.cancelled() => Err(io::ErrorKind::ConnectionAborted.into()),
    };
    (copied, result)
}

async fn one_way(
    mut from: impl AsyncRead + Unpin,
    mut to: impl AsyncWrite + Unpin,
    mut count: impl FnMut(u64),
) -> io::Result<()> {
    let mut buffer = vec![0; BUFFER];
    loop {
        let read = from.read(&mut buffer).await?;
        if read == 0 {
            return match to.shutdown().await {
                // The other side has already gone; there is nothing left to tell it.
                Err(error) if error.kind() == io::ErrorKind::NotConnected => Ok(()),
                other => other,
            };
        }
        to.write_all(&buffer[..read]).await?;
        count(read as u64);
    }
}
