// SPDX-License-Identifier: Apache-2.0
//! An application in a pod: plain sockets and hand-written HTTP/1.1, to see what an application
//! sees (its own and its peer's address, which server answered) and to connect fast and often;
//! and HTTP/2 with many streams at once.
//!
//! Runs as `lab-client`, since the capture is by process. Prints JSON.

use std::{
    collections::BTreeMap,
    io::{BufRead, BufReader, Read, Write},
    net::{SocketAddr, TcpStream},
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};
use bytes::Bytes;
use http_body_util::{BodyExt, Empty};
use hyper::client::conn::http2;
use hyper_util::rt::{TokioExecutor, TokioIo};
use serde_json::{Value, json};

/// Every read and write.
const TIMEOUT: Duration = Duration::from_secs(10);
/// Messages of failures that a report shows.
const SHOWN_FAILURES: usize = 5;

/// What to ask, and whom.
#[derive(Debug, Clone)]
pub struct Request {
    /// Where to connect.
    pub address: SocketAddr,
    /// Host header.
    pub host: String,
    /// Path and query.
    pub path: String,
}

/// An answer.
#[derive(Debug)]
pub struct Response {
    /// Status code.
    pub status: u16,
    /// Lower-case names; the last one of several wins.
    pub headers: BTreeMap<String, String>,
    /// Body.
    pub body: Vec<u8>,
}

/// Many requests to several addresses from several threads.
#[derive(Debug)]
pub struct Load {
    /// Addresses, taken in turn.
    pub addresses: Vec<SocketAddr>,
    /// Host header of all.
    pub host: String,
    /// Path of all.
    pub path: String,
    /// Threads.
    pub threads: usize,
    /// Whether each thread keeps its connection to an address; else one per request.
    pub keep_alive: bool,
}

/// A connection that can carry several requests.
#[derive(Debug)]
pub struct Connection {
    stream: BufReader<TcpStream>,
}

impl Connection {
    /// Connects; a v4-mapped address makes an IPv6 socket, as `AF_INET6` applications do.
    ///
    /// # Errors
    /// When nobody answers.
    pub fn open(address: SocketAddr) -> Result<Self> {
        let stream = TcpStream::connect_timeout(&address, TIMEOUT)
            .with_context(|| format!("connecting to {address}"))?;
        stream
            .set_read_timeout(Some(TIMEOUT))
            .context("setting a timeout")?;
        stream
            .set_write_timeout(Some(TIMEOUT))
            .context("setting a timeout")?;
        stream.set_nodelay(true).context("setting TCP_NODELAY")?;
        Ok(Self {
            stream: BufReader::new(stream),
        })
    }

    /// Own address, and the peer's as getpeername(2) tells it.
    ///
    /// # Errors
    /// When the connection is gone.
    pub fn addresses(&self) -> Result<(SocketAddr, SocketAddr)> {
        let stream = self.stream.get_ref();
        Ok((
            stream.local_addr().context("getsockname")?,
            stream.peer_addr().context("getpeername")?,
        ))
    }

    /// One request and its answer.
    ///
    /// # Errors
    /// When the connection breaks or the answer has no plain length.
    pub fn get(&mut self, request: &Request) -> Result<Response> {
        let text = format!(
            "GET {} HTTP/1.1\r\nHost: {}\r\nUser-Agent: lab-client\r\n\r\n",
            request.path, request.host
        );
        let mut stream = self.stream.get_ref();
        stream
            .write_all(text.as_bytes())
            .context("sending a request")?;
        let status_line = self.line()?;
        let status = status_line
            .split(' ')
            .nth(1)
            .and_then(|code| code.parse().ok());
        let status = status.with_context(|| format!("{status_line:?} is no status line"))?;
        let mut headers = BTreeMap::new();
        loop {
            let line = self.line()?;
            let Some((name, value)) = line.split_once(':') else {
                break;
            };
            headers.insert(name.to_ascii_lowercase(), value.trim().to_owned());
        }
        let length = headers
            .get("content-length")
            .and_then(|length| length.parse().ok());
        let Some(length) = length else {
            bail!("an answer without content-length: {status} {headers:?}");
        };
        let mut body = vec![0; length];
        self.stream
            .read_exact(&mut body)
            .context("reading a body")?;
        Ok(Response {
            status,
            headers,
            body,
        })
    }

    fn line(&mut self) -> Result<String> {
        let mut line = String::new();
        let read = self
            .stream
            .read_line(&mut line)
            .context("reading an answer's head")?;
        if read == 0 {
            bail!("the connection was closed before an answer");
        }
        Ok(line.trim_end().to_owned())
    }
}

/// One request: `{local, peer, status, headers, body}`.
///
/// # Errors
/// When there is no answer.
pub fn get(request: &Request) -> Result<Value> {
    let mut connection = Connection::open(request.address)?;
    let (local, peer) = connection.addresses()?;
    let response = connection.get(request)?;
    Ok(json!({
        "local": local.to_string(),
        "peer": peer.to_string(),
        "status": response.status,
        "headers": response.headers,
        "body": String::from_utf8_lossy(&response.body),
    }))
}

/// Connects until it works: `{failures: {error kind: count}, milliseconds, peer}`, the time counted
/// from the first socket.
///
/// # Errors
/// When it does not work within the time limit of a request.
pub fn persist(address: SocketAddr) -> Result<Value> {
    let mut failures: BTreeMap<String, u32> = BTreeMap::new();
    let start = Instant::now();
    loop {
        match TcpStream::connect(address) {
            Ok(stream) => {
                let peer = stream.peer_addr().context("getpeername")?;
                let milliseconds = start.elapsed().as_secs_f64() * 1000.0;
                return Ok(json!({
                    "failures": failures,
                    "milliseconds": milliseconds,
                    "peer": peer.to_string(),
                }));
            }
            Err(error) if start.elapsed() > TIMEOUT => {
                bail!("{error} after {failures:?}");
            }
            Err(error) => *failures.entry(error.kind().to_string()).or_default() += 1,
        }
    }
}

/// Sends until `count` requests are done, or without a count until `stop`; every answer must be 200
/// from the server at the address that was asked (`x-lab-server`) unless `any_server`.
/// `{done, failed, wrong, messages}`.
pub fn send(load: &Load, count: Option<usize>, any_server: bool, stop: &AtomicBool) -> Value {
    let next = AtomicUsize::new(0);
    let (done, wrong) = (AtomicUsize::new(0), AtomicUsize::new(0));
    let failures = Mutex::new(Vec::new());
    thread::scope(|scope| {
        for _ in 0..load.threads {
            scope.spawn(|| {
                let mut kept = BTreeMap::new();
                loop {
                    let turn = next.fetch_add(1, Ordering::Relaxed);
                    if count.is_some_and(|count| turn >= count) || stop.load(Ordering::Relaxed) {
                        return;
                    }
                    let address = load.addresses[turn % load.addresses.len()];
                    match send_one(load, address, &mut kept) {
                        Ok(server) if any_server || server == address.to_string() => {}
                        Ok(server) => {
                            wrong.fetch_add(1, Ordering::Relaxed);
                            let mut failures =
                                failures.lock().unwrap_or_else(PoisonError::into_inner);
                            failures.push(format!("asked {address}, answered by {server:?}"));
                        }
                        Err(error) => {
                            kept.remove(&address);
                            let mut failures =
                                failures.lock().unwrap_or_else(PoisonError::into_inner);
                            failures.push(format!("{error:#}"));
                        }
                    }
                    done.fetch_add(1, Ordering::Relaxed);
                }
            });
        }
    });
    let failures = failures
        .into_inner()
        .unwrap_or_else(PoisonError::into_inner);
    let wrong = wrong.into_inner();
    json!({
        "done": done.into_inner(),
        "failed": failures.len() - wrong,
        "wrong": wrong,
        "messages": failures.iter().take(SHOWN_FAILURES).collect::<Vec<_>>(),
    })
}

/// The server that answered.
fn send_one(
    load: &Load,
    address: SocketAddr,
    kept: &mut BTreeMap<SocketAddr, Connection>,
) -> Result<String> {
    let mut connection = match kept.remove(&address) {
        Some(connection) => connection,
        None => Connection::open(address)?,
    };
    let request = Request {
        address,
        host: load.host.clone(),
        path: load.path.clone(),
    };
    let mut response = connection.get(&request)?;
    if response.status != 200 {
        bail!("status {} from {address}", response.status);
    }
    let closing = response
        .headers
        .get("connection")
        .is_some_and(|value| value == "close");
    if load.keep_alive && !closing {
        kept.insert(address, connection);
    }
    Ok(response.headers.remove("x-lab-server").unwrap_or_default())
}

/// GET of every URL at once over one HTTP/2 connection (prior knowledge):
/// `[{url, status, headers}]` in their order.
///
/// # Errors
/// When the connection or a stream breaks.
pub async fn streams(address: SocketAddr, urls: &[String]) -> Result<Value> {
    let stream = tokio::net::TcpStream::connect(address).await;
    let stream = stream.with_context(|| format!("connecting to {address}"))?;
    let (sender, connection) =
        http2::handshake::<_, _, Empty<Bytes>>(TokioExecutor::new(), TokioIo::new(stream))
            .await
            .context("beginning HTTP/2")?;
    let connection = tokio::spawn(connection);
    let mut sent = Vec::new();
    for url in urls {
        let request = hyper::Request::get(url.as_str())
            .body(Empty::new())
            .with_context(|| format!("{url} is no URL"))?;
        let mut sender = sender.clone();
        sent.push(tokio::spawn(async move {
            let response = sender.send_request(request).await?;
            let (head, body) = response.into_parts();
            body.collect().await?;
            Ok::<_, hyper::Error>(head)
        }));
    }
    let mut answers = Vec::new();
    for (url, sent) in urls.iter().zip(sent) {
        let head = sent.await.context("a stream's task")?;
        let head = head.with_context(|| format!("getting {url}"))?;
        let headers: BTreeMap<_, _> = head
            .headers
            .iter()
            .map(|(name, value)| (name.as_str(), String::from_utf8_lossy(value.as_bytes())))
            .collect();
        answers.push(json!({"url": url, "status": head.status.as_u16(), "headers": headers}));
    }
    drop(sender);
    connection.abort();
    Ok(Value::Array(answers))
}
