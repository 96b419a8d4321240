// SPDX-License-Identifier: Apache-2.0
//! A server of HTTP/1.1 and HTTP/2 (prior knowledge) that answers like httpbin.org, for the outside
//! world of the lab.
//!
//! Paths: `/headers`, `/ip`, `/get`, `/post` (echoes the body), `/status/N`, `/delay/SECONDS`,
//! `/bytes/N`, `/stream/N` (chunked, one JSON line per chunk), `/upgrade` (switches to an echo);
//! for tries: `/flaky/N` (the first N requests of this path and query get 503), `/silent/N` (the
//! first N get no answer), `/broken/N` (the first N get their connection closed), `/stalled` (a
//! body that does not end). Every answer carries `x-lab-server: IP:PORT`, the address the
//! connection came in by, and `x-lab-protocol`. Prints `ready`, then one line per request:
//! `PEER METHOD HOST PATH`.

use std::{
    collections::HashMap,
    convert::Infallible,
    future::Future,
    io::Write,
    net::SocketAddr,
    pin::Pin,
    sync::{Mutex, PoisonError},
    task::{Context, Poll},
    time::Duration,
};

use anyhow::Context as _;
use bytes::Bytes;
use http_body_util::{BodyExt, Full, combinators::BoxBody};
use hyper::{
    Method, Request, Response, StatusCode, Uri,
    body::{Body, Frame, Incoming},
    header::{self, HeaderMap},
    service::service_fn,
    upgrade::Upgraded,
};
use hyper_util::{
    rt::{TokioExecutor, TokioIo},
    server::conn::auto,
};
use serde_json::{Map, Value, json};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
};

/// The largest `/bytes/N`.
const MAX_BYTES: usize = 64 << 20;

type Answer = Response<BoxBody<Bytes, Infallible>>;

/// Serves on every address until the process ends; prints `ready` once all of them listen.
///
/// # Errors
/// When an address cannot be bound.
pub async fn serve(addresses: &[SocketAddr]) -> anyhow::Result<Infallible> {
    let mut listeners = Vec::new();
    for address in addresses {
        let listener = TcpListener::bind(address).await;
        listeners.push(listener.with_context(|| format!("binding {address}"))?);
    }
    print("ready");
    for listener in listeners {
        tokio::spawn(accept(listener));
    }
    std::future::pending().await
}

async fn accept(listener: TcpListener) {
    loop {
        match listener.accept().await {
            Ok((stream, peer)) => {
                tokio::spawn(connection(stream, peer));
            }
            // Out of descriptors, most likely.
            Err(_) => tokio::time::sleep(Duration::from_millis(10)).await,
        }
    }
}

async fn connection(stream: TcpStream, peer: SocketAddr) {
    let Ok(local) = stream.local_addr() else {
        return;
    };
    let (local, peer) = (canonical(local), canonical(peer));
    // Small answers should not wait for acknowledgements.
    let _ = stream.set_nodelay(true);
    let service = service_fn(move |request| async move {
        let protocol = format!("{:?}", request.version());
        let head = request.method() == Method::HEAD;
        let mut response = answer(request, peer).await?;
        if let (true, Some(length)) = (head, response.body().size_hint().exact()) {
            // Over HTTP/2 hyper would send the body.
            let length = header::HeaderValue::from(length);
            response
                .headers_mut()
                .insert(header::CONTENT_LENGTH, length);
            *response.body_mut() = Full::default().boxed();
        }
        for (name, value) in [
            ("x-lab-server", local.to_string()),
            ("x-lab-protocol", protocol),
        ] {
            if let Ok(value) = value.parse() {
                response.headers_mut().insert(name, value);
            }
        }
        Ok::<_, Broken>(response)
    });
    // A client that goes away ends this connection and is nobody's fault.
    let _ = auto::Builder::new(TokioExecutor::new())
        .serve_connection_with_upgrades(TokioIo::new(stream), service)
        .await;
}

/// Sockets on `[::]` show IPv4 peers as v4-mapped addresses.
fn canonical(address: SocketAddr) -> SocketAddr {
    SocketAddr::new(address.ip().to_canonical(), address.port())
}

/// The request that ends its connection without an answer.
#[derive(Debug)]
struct Broken;

impl std::fmt::Display for Broken {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("broken off as asked")
    }
}

impl std::error::Error for Broken {}

/// How often this path and query has been asked for before.
fn times_before(uri: &Uri) -> usize {
    static SEEN: Mutex<Option<HashMap<String, usize>>> = Mutex::new(None);
    let mut seen = SEEN.lock().unwrap_or_else(PoisonError::into_inner);
    let path = uri.path_and_query().map_or("", |path| path.as_str());
    let count = seen
        .get_or_insert_default()
        .entry(path.to_owned())
        .or_default();
    *count += 1;
    *count - 1
}

async fn answer(mut request: Request<Incoming>, peer: SocketAddr) -> Result<Answer, Broken> {
    let host = match request.uri().authority() {
        Some(authority) => authority.to_string(),
        None => text(request.headers(), header::HOST.as_str()),
    };
    let (method, uri) = (request.method().clone(), request.uri().clone());
    let shown = uri.path_and_query().map_or("", |path| path.as_str());
    print(&format!("{peer} {method} {host} {shown}"));
    let path = uri.path().to_owned();
    let (first, rest) = match path[1.min(path.len())..].split_once('/') {
        Some((first, rest)) => (first, rest),
        None => (path.trim_start_matches('/'), ""),
    };
    let number = rest.parse::<usize>();
    Ok(match (first, number) {
        ("flaky", Ok(count)) if times_before(&uri) < count => {
            plain(StatusCode::SERVICE_UNAVAILABLE, Bytes::from("not yet\n"))
        }
        ("silent", Ok(count)) if times_before(&uri) < count => std::future::pending().await,
        ("broken", Ok(count)) if times_before(&uri) < count => return Err(Broken),
        ("flaky" | "silent" | "broken", Ok(_)) => {
            let body = request.into_body().collect().await;
            plain(
                StatusCode::OK,
                body.map(http_body_util::Collected::to_bytes)
                    .unwrap_or_default(),
            )
        }
        ("stalled", _) => Response::new(BodyExt::boxed(Stalled(Some("begun\n")))),
        ("headers", _) => json_answer(&json!({"headers": headers(request.headers())})),
        ("ip", _) => json_answer(&json!({"origin": peer.ip().to_string()})),
        ("get", _) => json_answer(&about(request.headers(), &uri, &host, peer)),
        ("post", _) if method == Method::POST => {
            let mut value = about(request.headers(), &uri, &host, peer);
            // A body that breaks off is echoed as far as it came: not at all.
            let body = request.into_body().collect().await;
            let body = body
                .map(http_body_util::Collected::to_bytes)
                .unwrap_or_default();
            value["data"] = String::from_utf8_lossy(&body).into();
            json_answer(&value)
        }
        ("status", Ok(code)) => match u16::try_from(code).map(StatusCode::from_u16) {
            Ok(Ok(status)) => plain(status, Bytes::new()),
            _ => plain(StatusCode::BAD_REQUEST, Bytes::from("no such status\n")),
        },
        ("delay", Ok(seconds)) => {
            tokio::time::sleep(Duration::from_secs(seconds.min(10) as u64)).await;
            json_answer(&about(request.headers(), &uri, &host, peer))
        }
        ("bytes", Ok(count)) => plain(StatusCode::OK, vec![b'x'; count.min(MAX_BYTES)].into()),
        ("stream", Ok(lines)) => Response::new(BodyExt::boxed(Lines { next: 0, lines })),
        ("upgrade", _) => upgrade(&mut request),
        _ => plain(StatusCode::NOT_FOUND, Bytes::from("no such path\n")),
    })
}

fn about(headers_in: &HeaderMap, uri: &Uri, host: &str, peer: SocketAddr) -> Value {
    json!({
        "headers": headers(headers_in),
        "origin": peer.ip().to_string(),
        "url": format!("http://{host}{uri}"),
    })
}

/// Header names as httpbin.org shows them (`User-Agent`), repeated ones joined by commas.
fn headers(headers: &HeaderMap) -> Value {
    let names = headers.keys();
    let shown = names.map(|name| {
        (
            title_case(name.as_str()),
            text(headers, name.as_str()).into(),
        )
    });
    Value::Object(shown.collect::<Map<_, _>>())
}

fn text(headers: &HeaderMap, name: &str) -> String {
    let values = headers.get_all(name).iter();
    let values: Vec<_> = values
        .map(|v| String::from_utf8_lossy(v.as_bytes()))
        .collect();
    values.join(",")
}

fn title_case(name: &str) -> String {
    let words = name.split('-').map(|word| match word.split_at_checked(1) {
        Some((first, rest)) => first.to_ascii_uppercase() + rest,
        None => word.to_owned(),
    });
    words.collect::<Vec<_>>().join("-")
}

fn json_answer(value: &Value) -> Answer {
    let mut response = plain(StatusCode::OK, format!("{value:#}\n").into());
    let json = header::HeaderValue::from_static("application/json");
    response.headers_mut().insert(header::CONTENT_TYPE, json);
    response
}

fn plain(status: StatusCode, body: Bytes) -> Answer {
    let mut response = Response::new(Full::new(body).boxed());
    *response.status_mut() = status;
    response
}

fn upgrade(request: &mut Request<Incoming>) -> Answer {
    if !request.headers().contains_key(header::UPGRADE) {
        return plain(
            StatusCode::BAD_REQUEST,
            Bytes::from("no upgrade asked for\n"),
        );
    }
    let upgraded = hyper::upgrade::on(&mut *request);
    tokio::spawn(async move {
        if let Ok(stream) = upgraded.await {
            echo(stream).await;
        }
    });
    let mut response = plain(StatusCode::SWITCHING_PROTOCOLS, Bytes::new());
    let headers = response.headers_mut();
    headers.insert(
        header::CONNECTION,
        header::HeaderValue::from_static("upgrade"),
    );
    headers.insert(header::UPGRADE, header::HeaderValue::from_static("echo"));
    response
}

async fn echo(stream: Upgraded) {
    let mut stream = TokioIo::new(stream);
    let mut buffer = [0; 4096];
    while let Ok(count @ 1..) = stream.read(&mut buffer).await {
        if stream.write_all(&buffer[..count]).await.is_err() {
            return;
        }
    }
}

/// `/stream/N`: no known length, so hyper sends it chunked.
struct Lines {
    next: usize,
    lines: usize,
}

impl Body for Lines {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        if self.next == self.lines {
            return Poll::Ready(None);
        }
        let line = format!("{{\"id\": {}}}\n", self.next);
        self.next += 1;
        Poll::Ready(Some(Ok(Frame::data(line.into()))))
    }
}

/// `/stalled`: a beginning, and no end.
struct Stalled(Option<&'static str>);

impl Body for Stalled {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        match self.0.take() {
            Some(text) => Poll::Ready(Some(Ok(Frame::data(text.into())))),
            None => Poll::Pending,
        }
    }
}

/// Prints a line at once; a reader that is gone is no reason to stop serving.
fn print(line: &str) {
    let mut stdout = std::io::stdout().lock();
    let _ = writeln!(stdout, "{line}");
    let _ = stdout.flush();
}

/// Runs a server of the lab on one thread until it fails.
///
/// # Errors
/// Whatever it fails with.
pub fn run(server: impl Future<Output = anyhow::Result<Infallible>>) -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build();
    runtime
        .context("starting the runtime")?
        .block_on(server)
        .map(|never| match never {})
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn header_names_look_like_httpbins() {
        for (name, expected) in [
            ("host", "Host"),
            ("user-agent", "User-Agent"),
            ("x-", "X-"),
            ("", ""),
        ] {
            assert_eq!(title_case(name), expected);
        }
    }
}
