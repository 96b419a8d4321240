// SPDX-License-Identifier: Apache-2.0
//! HTTP/1.1 byte for byte: client and upstream are sockets of the test, the egress gateway between
//! them (the node where it is about the original destination).

use std::{
    io::{ErrorKind, Read, Write},
    net::{Shutdown, TcpListener, TcpStream},
    time::Duration,
};

use lab::{
    examples,
    gateway::Gateway,
    net::{GATEWAY, Net},
    node::Node,
    process::{Process, Stream},
};
use nix::{
    sys::{
        signal::Signal,
        socket::{setsockopt, sockopt::ReceiveTimeout},
        time::TimeVal,
        wait::{WaitPidFlag, WaitStatus, waitpid},
    },
    unistd::Pid,
};

use crate::{configure, mesh_config, net, service_entry};

/// Where the test's upstream listens.
const UPSTREAM: &str = "203.0.113.11:8100";
/// Every accept and read.
const LIMIT: Duration = Duration::from_secs(10);
/// An answer of the upstream.
const OK: &str = "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";

/// The test's own upstream.
struct Upstream(TcpListener);

/// One end of a connection.
struct End(TcpStream);

impl Upstream {
    fn listen(net: &Net) -> Self {
        let listener = net.external.run(|| Ok(TcpListener::bind(UPSTREAM)?));
        let listener = listener.unwrap();
        // For accept(2), too.
        setsockopt(&listener, ReceiveTimeout, &TimeVal::new(10, 0)).unwrap();
        Self(listener)
    }

    fn accept(&self) -> End {
        End::new(self.0.accept().expect("the proxy connects").0)
    }

    /// Nobody else has connected.
    fn assert_idle(&self) {
        self.0.set_nonblocking(true).unwrap();
        let accepted = self.0.accept().map_err(|error| error.kind());
        assert_eq!(accepted.unwrap_err(), ErrorKind::WouldBlock);
    }
}

impl End {
    fn new(stream: TcpStream) -> Self {
        stream.set_read_timeout(Some(LIMIT)).unwrap();
        stream.set_nodelay(true).unwrap();
        Self(stream)
    }

    fn say(&mut self, text: &str) {
        self.0.write_all(text.as_bytes()).unwrap();
    }

    /// Reads as far as `end`.
    fn until(&mut self, end: &str) -> String {
        let mut text = Vec::new();
        while !text.ends_with(end.as_bytes()) {
            let mut byte = [0];
            let so_far = String::from_utf8_lossy(&text).into_owned();
            let read = self.0.read_exact(&mut byte);
            read.unwrap_or_else(|error| panic!("{error} after {so_far:?}"));
            text.push(byte[0]);
        }
        String::from_utf8(text).unwrap()
    }

    fn head(&mut self) -> String {
        self.until("\r\n\r\n")
    }

    /// Head and body, which has a length.
    fn answer(&mut self) -> (String, String) {
        let head = self.head().to_ascii_lowercase();
        let (_, rest) = head.split_once("content-length: ").expect(&head);
        let length = rest.split("\r\n").next().unwrap().parse().unwrap();
        let mut body = vec![0; length];
        self.0.read_exact(&mut body).unwrap();
        (head, String::from_utf8(body).unwrap())
    }

    /// Everything that is left; the other side closes.
    fn rest(mut self) -> String {
        let mut text = String::new();
        self.0.read_to_string(&mut text).unwrap();
        text
    }
}

/// A gateway that sends raw.test to [`UPSTREAM`]. One worker, so that all its connections are in
/// one pool.
fn gateway(net: &Net) -> Gateway<'_> {
    let endpoint = "resolution: STATIC\n  endpoints: [{address: 203.0.113.11}]";
    let yaml = service_entry("raw", &["raw.test"], &[8100], endpoint)
        + "---\napiVersion: networking.istio.io/v1\nkind: Gateway\n\
           metadata: {name: raw, namespace: istio-demo}\n\
           spec:\n  selector: {istio: egressgateway}\n  servers:\n\
           \x20 - {port: {number: 80, name: http, protocol: HTTP}, hosts: [raw.test]}\n\
           ---\napiVersion: networking.istio.io/v1\nkind: VirtualService\n\
           metadata: {name: raw, namespace: istio-demo}\n\
           spec:\n  hosts: [raw.test]\n  gateways: [raw]\n  http:\n\
           \x20 - route: [{destination: {host: raw.test, port: {number: 8100}}}]\n";
    Gateway::start(net, &configure(net, "raw.yaml", &yaml), &["--workers", "1"]).unwrap()
}

/// A client of the gateway.
fn client(net: &Net) -> End {
    let connect = || Ok(TcpStream::connect((GATEWAY, 8080))?);
    End::new(net.node.run(connect).unwrap())
}

fn get(path: &str) -> String {
    format!("GET {path} HTTP/1.1\r\nHost: raw.test\r\n\r\n")
}

#[test]
fn pipelined_requests_are_answered_in_order() {
    let Some(net) = net("pipelining") else { return };
    let _gateway = Gateway::start(&net, &examples().join("httpbin"), &[]).unwrap();
    let mut client = client(&net);
    let requests = ["GET /get?1", "HEAD /bytes/77", "GET /get?3"];
    let requests = requests.map(|line| format!("{line} HTTP/1.1\r\nHost: httpbin.org\r\n\r\n"));
    client.say(&requests.concat());
    for expected in ["/get?1\"", "", "/get?3\""] {
        if expected.is_empty() {
            let head = client.head().to_ascii_lowercase();
            assert!(head.starts_with("http/1.1 200"), "{head}");
            assert!(head.contains("content-length: 77\r\n"), "{head}");
            continue;
        }
        let (head, body) = client.answer();
        assert!(head.starts_with("http/1.1 200"), "{head}");
        assert!(body.contains(expected), "{body}");
    }
}

#[test]
fn connection_closed_by_the_upstream_between_requests_costs_no_request() {
    let Some(net) = net("stale") else { return };
    let upstream = Upstream::listen(&net);
    let gateway = gateway(&net);
    let mut client = client(&net);
    let serve = |client: &mut End, path: &str| {
        let mut end = upstream.accept();
        assert!(end.head().starts_with(&format!("GET {path} ")));
        end.say(OK);
        assert_eq!(client.answer().1, "ok");
        end
    };
    client.say(&get("/1"));
    let first = serve(&mut client, "/1");

    // The proxy has noticed: it has closed its side.
    first.0.shutdown(Shutdown::Write).unwrap();
    assert_eq!(first.rest(), "");
    client.say(&get("/2"));
    let second = serve(&mut client, "/2");

    // The proxy has not: it wakes up with the request before it and the end behind it. Before, its
    // only thread has turned to another client, so it is done with this one until it is woken.
    let mut other = self::client(&net);
    other.say("GET / HTTP/1.1\r\n\r\n");
    assert!(other.answer().0.starts_with("http/1.1 400"));
    gateway.process().signal(Signal::SIGSTOP).unwrap();
    let pid = Pid::from_raw(gateway.process().pid().try_into().unwrap());
    let stopped = waitpid(pid, Some(WaitPidFlag::WUNTRACED)).unwrap();
    assert_eq!(stopped, WaitStatus::Stopped(pid, Signal::SIGSTOP));
    client.say(&get("/3"));
    second.0.shutdown(Shutdown::Write).unwrap();
    let listed = ["ss", "-Htn", "state", "fin-wait-2", "sport", "=", ":8100"].map(str::to_owned);
    let listed = [&net.external.enter()[..], &listed].concat();
    let arrived = || Ok(!Process::output("ss", &listed, LIMIT)?.trim().is_empty());
    gateway.eventually("the end arrives", arrived).unwrap();
    gateway.process().signal(Signal::SIGCONT).unwrap();
    drop(serve(&mut client, "/3"));
    assert_eq!(second.rest(), "", "nothing was sent on it");
    upstream.assert_idle();
}

#[test]
fn bytes_that_are_not_http_go_to_the_original_destination_or_are_closed() {
    let Some(net) = net("not-http") else { return };
    let upstream = Upstream::listen(&net);
    let addresses = "addresses: [203.0.113.11]\n  resolution: NONE";
    let yaml = service_entry("raw", &["raw.test"], &[8100], addresses);
    let config = configure(&net, "raw.yaml", &yaml);
    let script = "exec 3<>/dev/tcp/203.0.113.11/8100; printf 'SSH-2.0-lab\\r\\n' >&3; cat <&3";
    let command = ["timeout", "20", "bash", "-c", script];

    let node = Node::start(&net, &config, &[]).unwrap();
    let mut ssh = net.pod.spawn(&command).unwrap();
    let mut end = upstream.accept();
    assert_eq!(end.until("\n"), "SSH-2.0-lab\r\n");
    end.say("welcome\n");
    drop(end);
    assert!(ssh.wait(LIMIT).unwrap().success(), "{ssh}");
    assert_eq!(ssh.lines(Stream::Stdout), ["welcome"]);
    let (_, line) = node.access_line("PassthroughCluster").unwrap();
    assert_eq!(line["upstream_host"], UPSTREAM);
    assert_eq!(
        (&*line["bytes_received"], &*line["bytes_sent"]),
        ("13", "8")
    );
    drop(node);

    let mesh = mesh_config(&net, "outboundTrafficPolicy: {mode: REGISTRY_ONLY}\n");
    let node = Node::start(&net, &config, &["--mesh-config", &mesh]).unwrap();
    let mut ssh = net.pod.spawn(&command).unwrap();
    node.access_line("BlackHoleCluster").unwrap();
    // Reset or closed in good order.
    ssh.wait(LIMIT).unwrap();
    assert!(ssh.lines(Stream::Stdout).is_empty(), "{ssh}");
    upstream.assert_idle();
}

#[test]
fn chunked_bodies_keep_their_trailers_both_ways() {
    let Some(net) = net("trailers") else { return };
    let upstream = Upstream::listen(&net);
    let _gateway = gateway(&net);
    let mut client = client(&net);
    let chunks = "5\r\nhello\r\n0\r\nx-sum: 42\r\n\r\n";
    client.say(
        "POST / HTTP/1.1\r\nHost: raw.test\r\nConnection: TE\r\nTE: trailers\r\n\
         Trailer: x-sum\r\nTransfer-Encoding: chunked\r\n\r\n",
    );
    client.say(chunks);
    let mut end = upstream.accept();
    let head = end.head().to_ascii_lowercase();
    for field in ["transfer-encoding: chunked", "te: trailers"] {
        assert!(head.contains(&format!("\r\n{field}\r\n")), "{head}");
    }
    assert_eq!(end.until("\r\n\r\n"), chunks);
    end.say("HTTP/1.1 200 OK\r\nTrailer: x-sum\r\nTransfer-Encoding: chunked\r\n\r\n");
    end.say(chunks);
    let head = client.head().to_ascii_lowercase();
    assert!(
        head.contains("\r\ntransfer-encoding: chunked\r\n"),
        "{head}"
    );
    assert_eq!(client.until("\r\n\r\n"), chunks);
}

#[test]
fn body_of_a_get_is_not_lost() {
    let Some(net) = net("get-body") else { return };
    let upstream = Upstream::listen(&net);
    let _gateway = gateway(&net);
    let mut client = client(&net);
    client.say("GET / HTTP/1.1\r\nHost: raw.test\r\nTransfer-Encoding: chunked\r\n\r\n");
    client.say("5\r\nhello\r\n0\r\n\r\n");
    let mut end = upstream.accept();
    let head = end.head().to_ascii_lowercase();
    assert!(
        head.contains("\r\ntransfer-encoding: chunked\r\n"),
        "{head}"
    );
    assert_eq!(end.until("0\r\n\r\n"), "5\r\nhello\r\n0\r\n\r\n");
}

#[test]
fn client_that_expects_100_gets_it_once_and_then_the_answer() {
    let Some(net) = net("expect") else { return };
    let upstream = Upstream::listen(&net);
    let _gateway = gateway(&net);
    let mut client = client(&net);
    client.say("POST / HTTP/1.1\r\nHost: raw.test\r\nContent-Length: 5\r\n");
    client.say("Expect: 100-continue\r\n\r\n");
    assert_eq!(client.head(), "HTTP/1.1 100 Continue\r\n\r\n");
    client.say("hello");
    let mut end = upstream.accept();
    end.head();
    end.say("HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n");
    assert_eq!(end.until("hello"), "hello");
    end.say(OK);
    let (head, body) = client.answer();
    assert!(head.starts_with("http/1.1 200"), "{head}");
    assert_eq!(body, "ok");
}

#[test]
fn request_without_exactly_one_host_is_answered_400() {
    let Some(net) = net("hosts") else { return };
    let upstream = Upstream::listen(&net);
    let gateway = gateway(&net);
    for (case, fields) in [
        ("no-host", ""),
        ("two-hosts", "Host: raw.test\r\nHost: raw.test\r\n"),
    ] {
        let mut client = client(&net);
        client.say(&format!("GET /{case} HTTP/1.1\r\n{fields}\r\n"));
        let (head, body) = client.answer();
        assert!(head.starts_with("http/1.1 400"), "{case}: {head}");
        assert!(body.contains("Host header"), "{case}: {body}");
        assert_eq!(body.lines().count(), 1, "{case}: {body}");
        let (_, line) = gateway.access_line(&format!("/{case} ")).unwrap();
        assert_eq!(line["response_code"], "400");
        assert_eq!(line["response_flags"], "DPE");
    }
    upstream.assert_idle();
}

#[test]
fn drain_finishes_what_is_open_and_refuses_what_is_new() {
    let Some(net) = net("drain-gateway") else {
        return;
    };
    let upstream = Upstream::listen(&net);
    let gateway = gateway(&net);
    let mut client = client(&net);
    client.say(&get("/slow"));
    let mut end = upstream.accept();
    end.head();
    gateway.process().signal(Signal::SIGTERM).unwrap();
    let refused = || {
        let connect = || Ok(TcpStream::connect((GATEWAY, 8080)).map_err(|error| error.kind()));
        Ok(net.node.run(connect)?.err() == Some(ErrorKind::ConnectionRefused))
    };
    gateway.eventually("a refusal", refused).unwrap();
    end.say(OK);
    let (head, body) = client.answer();
    assert!(head.contains("\r\nconnection: close\r\n"), "{head}");
    assert_eq!(body, "ok");
    assert_eq!(client.rest(), "");
    assert!(gateway.stop().unwrap().success());
}
