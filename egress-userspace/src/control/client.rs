// SPDX-License-Identifier: Apache-2.0
//! Asking a running process: what `egress status` and `egress dump` call.

use std::{io, net::SocketAddr, time::Duration};

use bytes::Bytes;
use http::{Request, StatusCode, header};
use http_body_util::{BodyExt, Empty};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;

use super::status::Status;

/// Time for the whole question; a dump of a large configuration takes well under a second.
const WITHIN: Duration = Duration::from_secs(10);

/// Why a question to the admin server came to nothing.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// Nobody listens there.
    #[error(
        "cannot reach the admin server on {admin}; is egress running, and is this its --admin?"
    )]
    Connect {
        /// The address.
        admin: SocketAddr,
        /// Why.
        source: io::Error,
    },
    /// The connection broke or is no HTTP.
    #[error("no HTTP answer from the admin server on {admin}")]
    Http {
        /// The address.
        admin: SocketAddr,
        /// Why.
        source: hyper::Error,
    },
    /// It did not answer.
    #[error("no answer from the admin server on {admin} within {WITHIN:?}")]
    Timeout {
        /// The address.
        admin: SocketAddr,
    },
    /// The path is no path.
    #[error("{path:?} cannot be asked for")]
    Path {
        /// The path.
        path: String,
        /// Why.
        source: http::Error,
    },
    /// It answered with an error.
    #[error("the admin server on {admin} answered {status} for {path}: {body}")]
    Status {
        /// The address.
        admin: SocketAddr,
        /// What was asked for.
        path: String,
        /// Its status.
        status: StatusCode,
        /// Its first line.
        body: String,
    },
    /// It answered something else than a status.
    #[error("the admin server on {admin} answered something else than a status")]
    NoStatus {
        /// The address.
        admin: SocketAddr,
        /// Why.
        source: serde_json::Error,
    },
}

/// What `egress dump` can show of a running process; `maps` does not come from here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Dump {
    /// Configuration in effect.
    Config,
    /// Known workloads.
    Workloads,
    /// Resolved names.
    Dns,
    /// Open connections.
    Connections,
}

impl Dump {
    /// The endpoint that answers it.
    pub fn path(self) -> &'static str {
        match self {
            Self::Config => "/config_dump",
            Self::Workloads => "/workloads",
            Self::Dns => "/dns",
            Self::Connections => "/connections",
        }
    }
}

/// The body of `GET path`.
///
/// # Errors
/// Nobody answers, not in time, or not with 200.
pub async fn fetch(admin: SocketAddr, path: &str) -> Result<String, ClientError> {
    tokio::time::timeout(WITHIN, ask(admin, path))
        .await
        .unwrap_or(Err(ClientError::Timeout { admin }))
}

/// The status of the process behind `admin`.
///
/// # Errors
/// As [`fetch`], or the answer is no status.
pub async fn status(admin: SocketAddr) -> Result<Status, ClientError> {
    let body = fetch(admin, "/status").await?;
    serde_json::from_str(&body).map_err(|source| ClientError::NoStatus { admin, source })
}

async fn ask(admin: SocketAddr, path: &str) -> Result<String, ClientError> {
    let request = Request::get(path)
        .header(header::HOST, admin.to_string())
        .body(Empty::<Bytes>::new())
        .map_err(|source| ClientError::Path {
            path: path.to_owned(),
            source,
        })?;
    let stream = TcpStream::connect(admin)
        .await
        .map_err(|source| ClientError::Connect { admin, source })?;
    let http = |source| ClientError::Http { admin, source };
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await.map_err(http)?;
    let exchange = async {
        let response = sender.send_request(request).await.map_err(http)?;
        let status = response.status();
        let body = response.into_body().collect().await.map_err(http)?;
        Ok((
            status,
            String::from_utf8_lossy(&body.to_bytes()).into_owned(),
        ))
    };
    tokio::pin!(exchange, connection);
    let (status, body) = tokio::select! {
        answered = &mut exchange => answered?,
        // The connection may end before the exchange has seen its last bytes.
        ended = &mut connection => {
            ended.map_err(http)?;
            exchange.await?
        }
    };
    if status != StatusCode::OK {
        return Err(ClientError::Status {
            admin,
            path: path.to_owned(),
            status,
            body: body.lines().next().unwrap_or_default().to_owned(),
        });
    }
    Ok(body)
}
