// SPDX-License-Identifier: Apache-2.0
//! Ways that make a connection, and HTTP over it.

use std::{
    io::{self, Read, Write},
    net::SocketAddr,
};

use anyhow::Context;
use nix::sys::socket::{setsockopt, sockopt::TcpFastOpenConnect};
use socket2::{Domain, Protocol, SockAddr, Socket, Type};

use super::{
    Attempt,
    interface::{ETH0, own_address},
    report::{Answer, At, Halt, Reached},
    wait,
};
use crate::sockopt;

/// An answer of the lab's server is far smaller.
const LARGEST_ANSWER: usize = 64 << 10;

pub(super) fn plain(attempt: &Attempt) -> Result<Reached, Halt> {
    connect_and_ask(attempt, &socket(attempt)?, attempt.address)
}

pub(super) fn mapped(attempt: &Attempt) -> Result<Reached, Halt> {
    let address = attempt.ipv4()?;
    let mapped = address.ip().to_ipv6_mapped();
    let socket = attempt.socket(Domain::IPV6, Type::STREAM, None)?;
    let address = SocketAddr::from((mapped, address.port()));
    connect_and_ask(attempt, &socket, address)
}

pub(super) fn ipv6(attempt: &Attempt, v6only: bool) -> Result<Reached, Halt> {
    let socket = attempt.socket(Domain::IPV6, Type::STREAM, None)?;
    if v6only {
        socket.set_only_v6(true).at("setsockopt")?;
    }
    connect_and_ask(attempt, &socket, attempt.address)
}

pub(super) fn bound_source(attempt: &Attempt) -> Result<Reached, Halt> {
    let socket = socket(attempt)?;
    let source = own_address(attempt.address)?;
    socket.bind(&source.into()).at("bind")?;
    connect_and_ask(attempt, &socket, attempt.address)
}

pub(super) fn bound_device(attempt: &Attempt) -> Result<Reached, Halt> {
    let socket = socket(attempt)?;
    socket.bind_device(Some(ETH0.as_bytes())).at("setsockopt")?;
    connect_and_ask(attempt, &socket, attempt.address)
}

pub(super) fn of_protocol(attempt: &Attempt, kind: Type, protocol: i32) -> Result<Reached, Halt> {
    let domain = Domain::for_address(attempt.address);
    let socket = attempt.socket(domain, kind, Some(Protocol::from(protocol)))?;
    connect_and_ask(attempt, &socket, attempt.address)
}

pub(super) fn fast_open_sendto(attempt: &Attempt) -> Result<Reached, Halt> {
    let socket = socket(attempt)?;
    data_in_syn(&socket)?;
    attempt.pause()?;
    let request = request(attempt, "close");
    socket
        .send_to_with_flags(
            request.as_bytes(),
            &attempt.address.into(),
            libc::MSG_FASTOPEN,
        )
        .at("send")?;
    attempt.note_peer(&socket);
    match attempt.http {
        Some(_) => answered(&socket, Reached::sent()),
        None => Ok(Reached::sent()),
    }
}

pub(super) fn fast_open_connect(attempt: &Attempt) -> Result<Reached, Halt> {
    let socket = socket(attempt)?;
    data_in_syn(&socket)?;
    setsockopt(&socket, TcpFastOpenConnect, &true).at("setsockopt")?;
    attempt.pause()?;
    attempt.connect(&socket, attempt.address)?;
    // Nothing has left yet.
    (&socket)
        .write_all(request(attempt, "close").as_bytes())
        .at("send")?;
    attempt.note_peer(&socket);
    match attempt.http {
        Some(_) => answered(&socket, Reached::sent()),
        None => Ok(Reached::sent()),
    }
}

pub(super) fn reconnect(attempt: &Attempt) -> Result<Reached, Halt> {
    let first = attempt.first.context("unspec-reconnect needs --first")?;
    let socket = socket(attempt)?;
    socket.connect(&first.into()).at("connect-first")?;
    socket.connect(&unspecified()).at("connect-unspec")?;
    connect_and_ask(attempt, &socket, attempt.address)
}

pub(super) fn established(attempt: &Attempt) -> Result<Reached, Halt> {
    let socket = socket(attempt)?;
    attempt.connect(&socket, attempt.address)?;
    if attempt.http.is_some() {
        (&socket)
            .write_all(request(attempt, "keep-alive").as_bytes())
            .at("send-first")?;
        let answer = read_answer(&socket).at("receive-first")?;
        answer.context("the connection was closed before the wait")?;
    }
    wait()?;
    (&socket)
        .write_all(request(attempt, "close").as_bytes())
        .at("send")?;
    let mut reached = answered(&socket, Reached::sent())?;
    reached.step = "receive";
    Ok(reached)
}

/// The decisive step of most routes, then HTTP when asked to.
pub(super) fn connect_and_ask(
    attempt: &Attempt,
    socket: &Socket,
    address: SocketAddr,
) -> Result<Reached, Halt> {
    attempt.pause()?;
    attempt.connect(socket, address)?;
    ask(attempt, socket)
}

/// HTTP over a connection that is there, when asked to.
pub(super) fn ask(attempt: &Attempt, mut socket: &Socket) -> Result<Reached, Halt> {
    if attempt.http.is_none() {
        return Ok(Reached::connected());
    }
    socket
        .write_all(request(attempt, "close").as_bytes())
        .at("send")?;
    answered(socket, Reached::connected())
}

/// A TCP socket of the address's family.
pub(super) fn socket(attempt: &Attempt) -> Result<Socket, Halt> {
    attempt.socket(Domain::for_address(attempt.address), Type::STREAM, None)
}

/// Lets the SYN carry data though no cookie of the server is known (Linux 4.15).
fn data_in_syn(socket: &Socket) -> Result<(), Halt> {
    sockopt::set(socket, libc::IPPROTO_TCP, libc::TCP_FASTOPEN_NO_COOKIE, 1).at("setsockopt")
}

/// The address of no family, by which connect() dissolves a connection.
fn unspecified() -> SockAddr {
    let storage = socket2::SockAddrStorage::zeroed();
    let length = size_of::<libc::sockaddr_in>() as libc::socklen_t;
    // SAFETY: all zeros is a valid address of family AF_UNSPEC (0), and the storage is larger.
    unsafe { SockAddr::new(storage, length) }
}

fn request(attempt: &Attempt, connection: &str) -> String {
    let host = attempt.http.as_deref().unwrap_or("lab-bypass");
    let route = attempt.route.name();
    format!(
        "GET /get?route={route} HTTP/1.1\r\nHost: {host}\r\nUser-Agent: lab-bypass\r\n\
         Connection: {connection}\r\n\r\n"
    )
}

/// Adds the answer that comes to what was reached.
fn answered(socket: &Socket, reached: Reached) -> Result<Reached, Halt> {
    let answer = read_answer(socket).at("receive")?;
    let outcome = match answer {
        Some(_) => reached.outcome,
        None => "closed",
    };
    Ok(Reached {
        outcome,
        step: "receive",
        answer,
    })
}

/// Reads one answer; `None` when the connection ends first.
fn read_answer(mut socket: &Socket) -> io::Result<Option<Answer>> {
    let mut bytes = Vec::new();
    let mut block = [0; 4096];
    loop {
        if let Some((answer, end)) = parse(&bytes)
            && (bytes.len() >= end || bytes.len() > LARGEST_ANSWER)
        {
            return Ok(Some(answer));
        }
        match socket.read(&mut block)? {
            0 => return Ok(parse(&bytes).map(|(answer, _)| answer)),
            count => bytes.extend(&block[..count]),
        }
    }
}

/// The answer in `bytes` and where it ends, once its head is complete.
fn parse(bytes: &[u8]) -> Option<(Answer, usize)> {
    let text = String::from_utf8_lossy(bytes);
    let (head, _) = text.split_once("\r\n\r\n")?;
    let header = |name: &str| {
        head.lines()
            .filter_map(|line| line.split_once(':'))
            .find(|(found, _)| found.eq_ignore_ascii_case(name))
            .map(|(_, value)| value.trim().to_owned())
    };
    let status = head.split(' ').nth(1)?.parse().ok()?;
    let length = header("content-length").and_then(|length| length.parse().ok());
    let end = head.len() + 4 + length.unwrap_or(0_usize);
    let server = header("x-lab-server");
    Some((Answer { status, server }, end))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answer_is_parsed_once_its_head_is_there() {
        let text =
            b"HTTP/1.1 200 OK\r\nX-Lab-Server: 203.0.113.10:80\r\nContent-Length: 2\r\n\r\n{}";
        assert_eq!(parse(&text[..40]), None);
        let answer = Answer {
            status: 200,
            server: Some("203.0.113.10:80".to_owned()),
        };
        assert_eq!(parse(text), Some((answer, text.len())));
    }

    #[test]
    fn unspecified_address_has_no_family() {
        assert_eq!(i32::from(unspecified().family()), libc::AF_UNSPEC);
    }
}
