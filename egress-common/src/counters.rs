// SPDX-License-Identifier: Apache-2.0
//! One slot per program and outcome. The slot is an index into `COUNTERS`; the names are the
//! labels of the metric `egress_kernel_outcomes_total{program,outcome}`.

/// A kernel program that counts.
#[repr(u32)]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Program {
    /// `egress_connect4`.
    Connect4 = 0,
    /// `egress_connect6`.
    Connect6 = 1,
    /// `egress_sockops`.
    SockOps = 2,
    /// `egress_getpeername4`.
    GetPeerName4 = 3,
    /// `egress_getpeername6`.
    GetPeerName6 = 4,
    /// `egress_sendmsg4`.
    SendMsg4 = 5,
    /// `egress_sendmsg6`.
    SendMsg6 = 6,
    /// `egress_sock_create`.
    SockCreate = 7,
    /// `egress_skb`.
    Skb = 8,
    /// `egress_tc`.
    Tc = 9,
    /// `egress_skb_ingress`.
    SkbIngress = 10,
}

/// How one run of a program ended. "connect" stands for connect and sendmsg; "packet" for the
/// packets that the backstops look at, which are those that can begin a flow.
#[repr(u32)]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// connect: sent to the proxy.
    Redirected = 0,
    /// connect, packet: the destination is not registered; left alone.
    NotRegistered = 1,
    /// connect, packet: an internal destination; left alone.
    Internal = 2,
    /// connect, sock_create, packet: the agent's own traffic; left alone.
    OwnTraffic = 3,
    /// connect: neither TCP nor registered; left alone.
    NotTcp = 4,
    /// connect, sock_create, packet: the agent has not written `SETTINGS`; left alone.
    NotConfigured = 5,
    /// connect: no redirect address is reachable from there; left alone (failure policy open).
    NoRedirectAddressPassed = 6,
    /// connect: no redirect address is reachable from there; refused (failure policy closed).
    NoRedirectAddressDenied = 7,
    /// connect: the original destination could not be recorded; left alone (open).
    RecordFailedPassed = 8,
    /// connect: the original destination could not be recorded; refused (closed).
    RecordFailedDenied = 9,
    /// sock_ops: the original destination was published for the proxy.
    Published = 10,
    /// sock_ops: it could not be published; the proxy will refuse the connection.
    PublishFailed = 11,
    /// sock_ops, getpeername: not a redirected socket.
    NotRedirected = 12,
    /// getpeername: the application saw the original destination.
    Restored = 13,
    /// connect, packet: registered, and not for the proxy (UDP); left alone.
    Direct = 14,
    /// connect: the proxy is not alive; left alone (open).
    ProxyDeadPassed = 15,
    /// connect: the proxy is not alive; refused (closed).
    ProxyDeadDenied = 16,
    /// connect, packet: not registered; refused (REGISTRY_ONLY).
    NotRegisteredDenied = 17,
    /// connect, packet: UDP to a registered HTTP or TLS port; refused, so that HTTP/3 clients fall
    /// back to TCP.
    QuicRefused = 18,
    /// packet: begins a connection to a registered destination past the proxy; dropped.
    NotRedirectedDenied = 19,
    /// sock_create: an ordinary socket.
    Ordinary = 20,
    /// sock_create: a raw socket; left alone (ALLOW_ANY).
    RawSocket = 21,
    /// sock_create: a raw socket; refused (REGISTRY_ONLY).
    RawSocketDenied = 22,
    /// sock_create: an MPTCP socket; left alone (ALLOW_ANY).
    MptcpSocket = 23,
    /// sock_create: an MPTCP socket; refused (REGISTRY_ONLY), since its later subflows pass no hook.
    MptcpSocketDenied = 24,
    /// packet: to a place that needs no permission although it is none of the above (loopback).
    Loopback = 25,
    /// any: an event did not fit the ring buffer.
    EventLost = 26,
    /// connect, packet: UDP to somebody outside who sent first; left alone (REGISTRY_ONLY).
    Answer = 27,
    /// skb_ingress: somebody outside sent a datagram, and may be answered.
    PeerNoted = 28,
}

/// Every program, in slot order.
pub const PROGRAMS: [Program; 11] = [
    Program::Connect4,
    Program::Connect6,
    Program::SockOps,
    Program::GetPeerName4,
    Program::GetPeerName6,
    Program::SendMsg4,
    Program::SendMsg6,
    Program::SockCreate,
    Program::Skb,
    Program::Tc,
    Program::SkbIngress,
];

/// Every outcome, in slot order.
pub const OUTCOMES: [Outcome; 29] = [
    Outcome::Redirected,
    Outcome::NotRegistered,
    Outcome::Internal,
    Outcome::OwnTraffic,
    Outcome::NotTcp,
    Outcome::NotConfigured,
    Outcome::NoRedirectAddressPassed,
    Outcome::NoRedirectAddressDenied,
    Outcome::RecordFailedPassed,
    Outcome::RecordFailedDenied,
    Outcome::Published,
    Outcome::PublishFailed,
    Outcome::NotRedirected,
    Outcome::Restored,
    Outcome::Direct,
    Outcome::ProxyDeadPassed,
    Outcome::ProxyDeadDenied,
    Outcome::NotRegisteredDenied,
    Outcome::QuicRefused,
    Outcome::NotRedirectedDenied,
    Outcome::Ordinary,
    Outcome::RawSocket,
    Outcome::RawSocketDenied,
    Outcome::MptcpSocket,
    Outcome::MptcpSocketDenied,
    Outcome::Loopback,
    Outcome::EventLost,
    Outcome::Answer,
    Outcome::PeerNoted,
];

/// Number of slots in `COUNTERS`.
pub const SLOTS: usize = PROGRAMS.len() * OUTCOMES.len();

/// Name of the metric that shows the slots.
pub const METRIC: &str = "egress_kernel_outcomes_total";

/// The slot of `outcome` in `program`; less than [`SLOTS`].
#[inline(always)]
pub const fn slot(program: Program, outcome: Outcome) -> u32 {
    program as u32 * OUTCOMES.len() as u32 + outcome as u32
}

impl Program {
    /// Label value.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Connect4 => "connect4",
            Self::Connect6 => "connect6",
            Self::SockOps => "sockops",
            Self::GetPeerName4 => "getpeername4",
            Self::GetPeerName6 => "getpeername6",
            Self::SendMsg4 => "sendmsg4",
            Self::SendMsg6 => "sendmsg6",
            Self::SockCreate => "sock_create",
            Self::Skb => "skb",
            Self::Tc => "tc",
            Self::SkbIngress => "skb_ingress",
        }
    }

    /// The program of a number.
    pub fn from_number(number: u8) -> Option<Self> {
        PROGRAMS.get(usize::from(number)).copied()
    }

    /// Whether the program can end with `outcome`; other slots stay zero.
    pub const fn counts(self, outcome: Outcome) -> bool {
        use Outcome::{
            Answer, Direct, EventLost, Internal, Loopback, MptcpSocket, MptcpSocketDenied,
            NoRedirectAddressDenied, NoRedirectAddressPassed, NotConfigured, NotRedirected,
            NotRedirectedDenied, NotRegistered, NotRegisteredDenied, NotTcp, Ordinary, OwnTraffic,
            PeerNoted, ProxyDeadDenied, ProxyDeadPassed, PublishFailed, Published, QuicRefused,
            RawSocket, RawSocketDenied, RecordFailedDenied, RecordFailedPassed, Redirected,
            Restored,
        };
        match self {
            Self::Connect4 | Self::Connect6 => matches!(
                outcome,
                Redirected
                    | NotRegistered
                    | Internal
                    | OwnTraffic
                    | NotTcp
                    | NotConfigured
                    | NoRedirectAddressPassed
                    | NoRedirectAddressDenied
                    | RecordFailedPassed
                    | RecordFailedDenied
                    | Direct
                    | ProxyDeadPassed
                    | ProxyDeadDenied
                    | NotRegisteredDenied
                    | QuicRefused
                    | Answer
                    | EventLost
            ),
            Self::SendMsg4 | Self::SendMsg6 => matches!(
                outcome,
                Internal
                    | OwnTraffic
                    | NotTcp
                    | NotConfigured
                    | Direct
                    | NotRegisteredDenied
                    | QuicRefused
                    | Answer
                    | EventLost
            ),
            Self::SockOps => matches!(outcome, Published | PublishFailed | NotRedirected),
            Self::GetPeerName4 | Self::GetPeerName6 => matches!(outcome, NotRedirected | Restored),
            Self::SockCreate => matches!(
                outcome,
                OwnTraffic
                    | NotConfigured
                    | Ordinary
                    | RawSocket
                    | RawSocketDenied
                    | MptcpSocket
                    | MptcpSocketDenied
                    | EventLost
            ),
            Self::Skb | Self::Tc => matches!(
                outcome,
                Internal
                    | OwnTraffic
                    | NotRegistered
                    | NotConfigured
                    | Direct
                    | NotRegisteredDenied
                    | QuicRefused
                    | NotRedirectedDenied
                    | Loopback
                    | Answer
                    | EventLost
            ),
            Self::SkbIngress => matches!(outcome, PeerNoted),
        }
    }
}

impl Outcome {
    /// Label value.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Redirected => "redirected",
            Self::NotRegistered => "not_registered",
            Self::Internal => "internal",
            Self::OwnTraffic => "own_traffic",
            Self::NotTcp => "not_tcp",
            Self::NotConfigured => "not_configured",
            Self::NoRedirectAddressPassed => "no_redirect_address_passed",
            Self::NoRedirectAddressDenied => "no_redirect_address_denied",
            Self::RecordFailedPassed => "record_failed_passed",
            Self::RecordFailedDenied => "record_failed_denied",
            Self::Published => "published",
            Self::PublishFailed => "publish_failed",
            Self::NotRedirected => "not_redirected",
            Self::Restored => "restored",
            Self::Direct => "direct",
            Self::ProxyDeadPassed => "proxy_dead_passed",
            Self::ProxyDeadDenied => "proxy_dead_denied",
            Self::NotRegisteredDenied => "not_registered_denied",
            Self::QuicRefused => "quic_refused",
            Self::NotRedirectedDenied => "not_redirected_denied",
            Self::Ordinary => "ordinary",
            Self::RawSocket => "raw_socket",
            Self::RawSocketDenied => "raw_socket_denied",
            Self::MptcpSocket => "mptcp_socket",
            Self::MptcpSocketDenied => "mptcp_socket_denied",
            Self::Loopback => "loopback",
            Self::EventLost => "event_lost",
            Self::Answer => "answer",
            Self::PeerNoted => "peer_noted",
        }
    }

    /// The outcome of a number.
    pub fn from_number(number: u8) -> Option<Self> {
        OUTCOMES.get(usize::from(number)).copied()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slots_are_dense_and_distinct() {
        let mut expected = 0;
        for program in PROGRAMS {
            for outcome in OUTCOMES {
                assert_eq!(slot(program, outcome), expected, "{program:?} {outcome:?}");
                expected += 1;
            }
        }
        assert_eq!(expected as usize, SLOTS);
    }

    #[test]
    fn every_outcome_belongs_to_a_program() {
        for outcome in OUTCOMES {
            assert!(
                PROGRAMS.iter().any(|program| program.counts(outcome)),
                "{outcome:?}"
            );
        }
        assert!(!Program::Connect4.counts(Outcome::Published));
        assert!(Program::Connect6.counts(Outcome::RecordFailedDenied));
    }
}
