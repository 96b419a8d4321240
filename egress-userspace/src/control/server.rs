// SPDX-License-Identifier: Apache-2.0
//! The admin server: HTTP/1.1 on `--admin`, one table of endpoints.
//!
//! Whoever reaches the address may drain the process and change its log filter, so the default
//! address is on loopback. Knows nothing about what it shows; see `state`, `dump`, `metrics`.

use std::{convert::Infallible, io, net::SocketAddr, sync::Arc, time::Duration};

use bytes::Bytes;
use http::{Method, Request, Response, StatusCode, header};
use http_body_util::Full;
use hyper::{body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use serde_json::{Value, json};
use tokio::{
    net::{TcpListener, TcpStream},
    sync::Semaphore,
    task::{JoinHandle, JoinSet},
};
use tokio_util::sync::CancellationToken;

use super::{dump, metrics, state::AdminState, status::Status};

/// Connections at a time; more wait in the accept queue.
const MAX_CONNECTIONS: usize = 64;

/// Time for a request's head; also ends idle keep-alive connections.
const HEAD_WITHIN: Duration = Duration::from_secs(30);

/// Pause after a failed accept (no descriptors left), so that it does not spin.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Path, methods and purpose of every endpoint; the 404 body lists them.
const ENDPOINTS: [(&str, Method, &str); 13] = [
    (
        "/healthz/ready",
        Method::GET,
        "200 when ready, else 503 with the reasons",
    ),
    ("/healthz/live", Method::GET, "200 while the process runs"),
    ("/metrics", Method::GET, "Prometheus text"),
    ("/status", Method::GET, "health and counters in short, JSON"),
    ("/config_dump", Method::GET, "configuration in effect, JSON"),
    (
        "/problems",
        Method::GET,
        "findings in the configuration, JSON",
    ),
    ("/dns", Method::GET, "resolved names, JSON"),
    ("/workloads", Method::GET, "workloads known here, JSON"),
    ("/connections", Method::GET, "open connections, JSON"),
    ("/version", Method::GET, "version, JSON"),
    ("/drain", Method::POST, "stop accepting, finish, exit"),
    (
        "/logging",
        Method::PUT,
        "?filter=FILTER sets the program's log filter",
    ),
    ("/", Method::GET, "this list"),
];

/// Why the admin server could not start.
#[derive(Debug, thiserror::Error)]
pub enum AdminError {
    /// Binding failed.
    #[error("cannot listen for the admin server on {address}; choose another with --admin")]
    Bind {
        /// The address.
        address: SocketAddr,
        /// Why.
        source: io::Error,
    },
}

/// The running admin server.
#[derive(Debug)]
pub struct Admin {
    address: SocketAddr,
    task: JoinHandle<()>,
}

impl Admin {
    /// Binds and serves on the current runtime until `stop`.
    ///
    /// # Errors
    /// The address cannot be bound.
    pub async fn start(
        address: SocketAddr,
        state: AdminState,
        stop: CancellationToken,
    ) -> Result<Self, AdminError> {
        let bind = |source| AdminError::Bind { address, source };
        let listener = TcpListener::bind(address).await.map_err(bind)?;
        let address = listener.local_addr().map_err(bind)?;
        let task = tokio::spawn(accept(listener, Arc::new(state), stop));
        Ok(Self { address, task })
    }

    /// Where it listens; tells the port when 0 was asked for.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Waits for the end, after `stop`.
    pub async fn stopped(self) {
        // An error would mean that the task panicked; there is nothing left to end then.
        let _ = self.task.await;
    }
}

async fn accept(listener: TcpListener, state: Arc<AdminState>, stop: CancellationToken) {
    let permits = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    let mut connections = JoinSet::new();
    loop {
        while connections.try_join_next().is_some() {}
        let accepted = tokio::select! {
            () = stop.cancelled() => break,
            accepted = async {
                let permit = Arc::clone(&permits).acquire_owned().await;
                listener.accept().await.map(|(stream, _)| (stream, permit))
            } => accepted,
        };
        match accepted {
            Ok((stream, permit)) => {
                let state = Arc::clone(&state);
                connections.spawn(async move {
                    serve(stream, state).await;
                    drop(permit);
                });
            }
            Err(error) => {
                tracing::warn!(%error, "admin server cannot accept");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
    connections.shutdown().await;
}

async fn serve(stream: TcpStream, state: Arc<AdminState>) {
    let service = service_fn(|request| {
        let response = answer(&state, &request);
        async { Ok::<_, Infallible>(response) }
    });
    let served = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_WITHIN)
        .serve_connection(TokioIo::new(stream), service)
        .await;
    if let Err(error) = served {
        tracing::debug!(%error, "admin connection ended early");
    }
}

fn answer(state: &AdminState, request: &Request<Incoming>) -> Response<Full<Bytes>> {
    let path = request.uri().path();
    let Some((_, allowed, _)) = ENDPOINTS.iter().find(|(known, ..)| *known == path) else {
        return text(StatusCode::NOT_FOUND, endpoint_list());
    };
    // HEAD is GET whose body hyper leaves out.
    let method = match *request.method() {
        Method::HEAD => &Method::GET,
        ref method => method,
    };
    if method != allowed {
        let mut response = text(
            StatusCode::METHOD_NOT_ALLOWED,
            format!("{path} takes {allowed}, not {method}\n"),
        );
        if let Ok(allow) = header::HeaderValue::from_str(allowed.as_str()) {
            response.headers_mut().insert(header::ALLOW, allow);
        }
        return response;
    }
    match path {
        "/healthz/ready" => ready(state),
        "/healthz/live" => text(StatusCode::OK, "live\n"),
        "/metrics" => reply(
            StatusCode::OK,
            metrics::CONTENT_TYPE,
            metrics::exposition(state),
        ),
        "/status" => json_reply(&json!(Status::of(state))),
        "/config_dump" => json_reply(&dump::config(state)),
        "/problems" => json_reply(&dump::problems(&state.snapshot.borrow().clone())),
        "/dns" => json_reply(&dump::addresses(&state.book.borrow().clone())),
        "/workloads" => json_reply(&dump::workloads(state)),
        "/connections" => json_reply(&json!(state.connections.all())),
        "/version" => json_reply(&json!({
            "version": env!("CARGO_PKG_VERSION"),
            "role": state.role,
        })),
        "/drain" => {
            state.drain.cancel();
            text(StatusCode::ACCEPTED, "draining\n")
        }
        "/logging" => logging(state, request.uri().query().unwrap_or_default()),
        _ => text(StatusCode::OK, endpoint_list()),
    }
}

fn ready(state: &AdminState) -> Response<Full<Bytes>> {
    let mut reasons = state.readiness.borrow().waiting_for.clone();
    if state.drain.is_cancelled() {
        reasons.push("draining".to_owned());
    }
    if reasons.is_empty() {
        return text(StatusCode::OK, "ready\n");
    }
    let reasons: String = reasons.iter().map(|reason| format!("{reason}\n")).collect();
    text(StatusCode::SERVICE_UNAVAILABLE, reasons)
}

fn logging(state: &AdminState, query: &str) -> Response<Full<Bytes>> {
    let filter = query
        .split('&')
        .find_map(|pair| pair.strip_prefix("filter="));
    let Some(filter) = filter.filter(|filter| !filter.is_empty()) else {
        let usage = "say which: PUT /logging?filter=info,egress::proxy=debug\n";
        return text(StatusCode::BAD_REQUEST, usage);
    };
    let filter = percent_decoded(filter);
    match (state.set_log_filter)(&filter) {
        Ok(()) => text(StatusCode::OK, format!("log filter is now {filter}\n")),
        Err(reason) => text(StatusCode::BAD_REQUEST, format!("{filter}: {reason}\n")),
    }
}

/// Undoes `%XX`; what is no such escape stays as it is, and so do other bytes than UTF-8 as `�`.
fn percent_decoded(text: &str) -> String {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let [first, tail @ ..] = rest {
        let escape = (*first == b'%')
            .then(|| tail.get(..2))
            .flatten()
            .and_then(|digits| std::str::from_utf8(digits).ok())
            .filter(|digits| digits.bytes().all(|digit| digit.is_ascii_hexdigit()))
            .and_then(|digits| u8::from_str_radix(digits, 16).ok());
        bytes.push(escape.unwrap_or(*first));
        rest = if escape.is_some() { &tail[2..] } else { tail };
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

fn endpoint_list() -> String {
    let line = |(path, method, purpose): &(&str, Method, &str)| {
        format!("{:<4} {path:<15} {purpose}\n", method.as_str())
    };
    ENDPOINTS.iter().map(line).collect()
}

fn json_reply(value: &Value) -> Response<Full<Bytes>> {
    reply(StatusCode::OK, "application/json", format!("{value:#}\n"))
}

fn text(status: StatusCode, body: impl Into<String>) -> Response<Full<Bytes>> {
    reply(status, "text/plain; charset=utf-8", body.into())
}

fn reply(status: StatusCode, content_type: &'static str, body: String) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(Bytes::from(body)));
    *response.status_mut() = status;
    let content_type = header::HeaderValue::from_static(content_type);
    response
        .headers_mut()
        .insert(header::CONTENT_TYPE, content_type);
    response
}
