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
}

/// How one run of a program ended.
#[repr(u32)]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// connect: sent to the proxy.
    Redirected = 0,
    /// connect: no rule speaks of the destination; left alone.
    NotRegistered = 1,
    /// connect: an internal destination; left alone.
    Internal = 2,
    /// connect: the agent's own traffic; left alone.
    OwnTraffic = 3,
    /// connect: not TCP; left alone.
    NotTcp = 4,
    /// connect: the agent has not written `SETTINGS`; left alone.
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
}

/// Every program, in slot order.
pub const PROGRAMS: [Program; 5] = [
    Program::Connect4,
    Program::Connect6,
    Program::SockOps,
    Program::GetPeerName4,
    Program::GetPeerName6,
];

/// Every outcome, in slot order.
pub const OUTCOMES: [Outcome; 14] = [
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
        }
    }

    /// Whether the program can end with `outcome`; other slots stay zero.
    pub const fn counts(self, outcome: Outcome) -> bool {
        match self {
            Self::Connect4 | Self::Connect6 => (outcome as u32) < Outcome::Published as u32,
            Self::SockOps => matches!(
                outcome,
                Outcome::Published | Outcome::PublishFailed | Outcome::NotRedirected
            ),
            Self::GetPeerName4 | Self::GetPeerName6 => {
                matches!(outcome, Outcome::NotRedirected | Outcome::Restored)
            }
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
        }
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
