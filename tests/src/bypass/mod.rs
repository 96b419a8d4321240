// SPDX-License-Identifier: Apache-2.0
//! An application in a pod that tries one way out of the machine and says how the kernel answered.
//!
//! Runs as `lab-bypass ROUTE ADDRESS:PORT`. Prints one JSON line (`report`) whatever the kernel
//! said, and fails only when the attempt could not be made. Whether anything arrived is for
//! [`crate::sink`] to say.
//!
//! `tcp`, `udp`, `raw`, `link`, `ring`: the ways, by the kind of socket; `handed`:
//! sockets that somebody else made; `interface`: what the pod knows about its own network.

mod handed;
mod interface;
mod link;
mod raw;
mod report;
mod ring;
mod tcp;
mod udp;

use std::{
    cell::Cell,
    io::stdin,
    net::{SocketAddr, SocketAddrV4},
    os::fd::RawFd,
    path::PathBuf,
    time::Duration,
};

use anyhow::{Context, Result, bail};
use clap::ValueEnum;
use serde_json::Value;
use socket2::{Domain, Protocol, Socket, Type};

use report::{At, Halt, Reached};

/// How long a connection may take, and each write and read on it.
const TIMEOUT: Duration = Duration::from_secs(5);

/// One attempt.
#[derive(Debug, clap::Args)]
pub struct Attempt {
    /// The way out.
    #[arg(value_enum)]
    pub route: Route,
    /// Where to.
    pub address: SocketAddr,
    /// Print `waiting` and wait for a line on standard input, everything before the decisive step
    /// being done: before connect() on a TCP socket, before the first packet on any other.
    #[arg(long)]
    pub wait: bool,
    /// TCP: send `GET /get?route=ROUTE` with this Host and report the answer.
    #[arg(long)]
    pub http: Option<String>,
    /// unspec-reconnect: where to connect first.
    #[arg(long)]
    pub first: Option<SocketAddr>,
    /// vfork-other-cgroup, outside-socket: the cgroup to move to.
    #[arg(long)]
    pub cgroup: Option<PathBuf>,
    /// In a child: the descriptor that the parent left open.
    #[arg(long, hide = true)]
    pub fd: Option<RawFd>,
    /// The peer according to getpeername(2), once there was one.
    #[arg(skip)]
    peer: Cell<Option<SocketAddr>>,
}

/// Ways out of a pod, by the names that the command line and reports use.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Route {
    /// A plain connection, in the family of the address.
    TcpConnect,
    /// An `AF_INET6` socket connects to the v4-mapped form of an IPv4 address.
    #[value(name = "tcp-connect6-mapped")]
    TcpConnect6Mapped,
    /// An `AF_INET6` socket connects to an IPv6 address.
    #[value(name = "tcp-connect6")]
    TcpConnect6,
    /// The same with `IPV6_V6ONLY`.
    #[value(name = "tcp-connect6-v6only")]
    TcpConnect6V6only,
    /// Bound to the pod's own address first.
    TcpBoundSource,
    /// Bound to eth0 by `SO_BINDTODEVICE` first.
    TcpBoundDevice,
    /// sendto() with `MSG_FASTOPEN`, data in the SYN.
    TfoSendto,
    /// `TCP_FASTOPEN_CONNECT`: the SYN leaves with the first write.
    TfoConnect,
    /// Multipath TCP.
    Mptcp,
    /// `IORING_OP_CONNECT`.
    IoUringConnect,
    /// `IORING_OP_SENDMSG` on a UDP socket.
    IoUringSend,
    /// connect() and send() on a UDP socket; waits between the two.
    UdpConnected,
    /// sendto() on a UDP socket.
    UdpSendto,
    /// sendmsg() on a UDP socket.
    UdpSendmsg,
    /// sendmmsg() of three datagrams.
    UdpSendmmsg,
    /// UDP-Lite.
    Udplite,
    /// A datagram that looks like the first of a QUIC connection; waits between connect() and
    /// send().
    Quic,
    /// `SOCK_RAW` of TCP: a SYN.
    RawTcp,
    /// `SOCK_RAW` of ICMP: an echo request.
    RawIcmp,
    /// `IPPROTO_RAW`: a whole IPv4 packet with UDP.
    RawHdrincl,
    /// The same with IPv4 options.
    RawOptions,
    /// The same as a later fragment.
    RawFragment,
    /// `AF_INET6` `IPPROTO_RAW`: a whole IPv6 packet, UDP behind a destination-options header.
    #[value(name = "raw6-exthdr")]
    Raw6Exthdr,
    /// An ICMP socket (ping_group_range): an echo request.
    Ping,
    /// A whole Ethernet frame with a TCP SYN on eth0.
    AfPacket,
    /// The same, the Ethernet header left to the kernel.
    AfPacketDgram,
    /// Connects to `--first`, dissolves that (`AF_UNSPEC`), connects again.
    UnspecReconnect,
    /// A child connects a socket that it inherited.
    Inherited,
    /// A child connects a socket that it was passed.
    ScmRights,
    /// A child moves to `--cgroup` and connects a socket that it inherited.
    VforkOtherCgroup,
    /// A socket from before its process moved to `--cgroup`.
    OutsideSocket,
    /// SCTP.
    Sctp,
    /// DCCP.
    Dccp,
    /// Connects, always waits, then writes and reads.
    TcpEstablished,
}

impl Route {
    /// Its name on the command line and in reports.
    pub fn name(self) -> String {
        // No route is hidden from the command line.
        self.to_possible_value()
            .map(|value| value.get_name().to_owned())
            .unwrap_or_default()
    }
}

/// Makes the attempt; the report, or `None` when a child has printed it.
///
/// # Errors
/// When the attempt could not be made: arguments that the route cannot use, a lab that lacks
/// something. What the kernel says about the route itself is in the report.
pub fn run(attempt: &Attempt) -> Result<Option<Value>> {
    let result = if let Some(taken) = handed::child_of(attempt) {
        taken
    } else if handed::needs_child(attempt.route) {
        match handed::start(attempt)? {
            Some(halt) => Err(halt),
            None => return Ok(None),
        }
    } else {
        take(attempt)
    };
    report::json(&attempt.route.name(), attempt.peer.get(), result).map(Some)
}

fn take(attempt: &Attempt) -> Result<Reached, Halt> {
    match attempt.route {
        Route::TcpConnect => tcp::plain(attempt),
        Route::TcpConnect6Mapped => tcp::mapped(attempt),
        Route::TcpConnect6 => tcp::ipv6(attempt, false),
        Route::TcpConnect6V6only => tcp::ipv6(attempt, true),
        Route::TcpBoundSource => tcp::bound_source(attempt),
        Route::TcpBoundDevice => tcp::bound_device(attempt),
        Route::TfoSendto => tcp::fast_open_sendto(attempt),
        Route::TfoConnect => tcp::fast_open_connect(attempt),
        Route::Mptcp => tcp::of_protocol(attempt, Type::STREAM, libc::IPPROTO_MPTCP),
        Route::Sctp => tcp::of_protocol(attempt, Type::STREAM, libc::IPPROTO_SCTP),
        Route::Dccp => tcp::of_protocol(attempt, Type::DCCP, libc::IPPROTO_DCCP),
        Route::UnspecReconnect => tcp::reconnect(attempt),
        Route::TcpEstablished => tcp::established(attempt),
        Route::IoUringConnect => ring::connect(attempt),
        Route::IoUringSend => ring::send(attempt),
        Route::UdpConnected => udp::connected(attempt, udp::PAYLOAD),
        Route::Quic => udp::connected(attempt, &crate::packet::quic_initial()),
        Route::UdpSendto => udp::sendto(attempt, None),
        Route::Udplite => udp::sendto(attempt, Some(libc::IPPROTO_UDPLITE)),
        Route::UdpSendmsg => udp::sendmsg(attempt),
        Route::UdpSendmmsg => udp::sendmmsg(attempt),
        Route::RawTcp => raw::tcp(attempt),
        Route::RawIcmp => raw::echo(attempt, Type::RAW),
        Route::Ping => raw::echo(attempt, Type::DGRAM),
        Route::RawHdrincl => raw::ipv4(attempt, &[], 0),
        Route::RawOptions => raw::ipv4(attempt, &[1; 4], 0),
        Route::RawFragment => raw::ipv4(attempt, &[], 185),
        Route::Raw6Exthdr => raw::ipv6(attempt),
        Route::AfPacket => link::send(attempt, Type::RAW),
        Route::AfPacketDgram => link::send(attempt, Type::DGRAM),
        Route::OutsideSocket => handed::outside(attempt),
        Route::Inherited | Route::ScmRights | Route::VforkOtherCgroup => {
            Err(Halt::Lab(anyhow::anyhow!("this route is a child's")))
        }
    }
}

impl Attempt {
    /// Step `socket`, with time limits on everything that may wait.
    fn socket(
        &self,
        domain: Domain,
        kind: Type,
        protocol: Option<Protocol>,
    ) -> Result<Socket, Halt> {
        let socket = Socket::new(domain, kind, protocol).at("socket")?;
        let limits = [
            socket.set_write_timeout(Some(TIMEOUT)),
            socket.set_read_timeout(Some(TIMEOUT)),
        ];
        for set in limits {
            match set {
                // MPTCP of Linux 5.15 has no such limits; whoever runs this has one, too.
                Err(error) if error.raw_os_error() == Some(libc::EOPNOTSUPP) => {}
                set => set.at("setsockopt")?,
            }
        }
        Ok(socket)
    }

    /// The decisive step comes next.
    fn pause(&self) -> Result<()> {
        if self.wait { wait() } else { Ok(()) }
    }

    /// Step `connect`; notes the peer that the kernel names.
    fn connect(&self, socket: &Socket, address: SocketAddr) -> Result<(), Halt> {
        socket.connect(&address.into()).at("connect")?;
        self.note_peer(socket);
        Ok(())
    }

    fn note_peer(&self, socket: &Socket) {
        let peer = socket.peer_addr().ok();
        self.peer.set(peer.and_then(|peer| peer.as_socket()));
    }

    /// The address, for routes of IPv4 only.
    fn ipv4(&self) -> Result<SocketAddrV4> {
        match self.address {
            SocketAddr::V4(address) => Ok(address),
            SocketAddr::V6(address) => {
                bail!("{} takes an IPv4 address, not {address}", self.route.name())
            }
        }
    }
}

fn wait() -> Result<()> {
    println!("waiting");
    stdin()
        .read_line(&mut String::new())
        .map(drop)
        .context("waiting for a line")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_those_of_the_command_line() {
        for (route, name) in [
            (Route::TcpConnect6V6only, "tcp-connect6-v6only"),
            (Route::UdpSendmmsg, "udp-sendmmsg"),
            (Route::Raw6Exthdr, "raw6-exthdr"),
            (Route::IoUringSend, "io-uring-send"),
            (Route::VforkOtherCgroup, "vfork-other-cgroup"),
        ] {
            assert_eq!(route.name(), name);
            assert_eq!(Route::from_str(name, false), Ok(route));
        }
    }
}
