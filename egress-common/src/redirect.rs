// SPDX-License-Identifier: Apache-2.0
//! Redirect policy as the kernel sees it, and the pure decision pass / redirect / deny that
//! `connect4` and `connect6` share. The map lookups happen in egress-ebpf; what follows from
//! their answers is decided here.

use crate::{
    address::{Address, Address4, Address6, Port},
    counters::Outcome,
    maps::LAYOUT_VERSION,
    packet::Packet,
    workload::{WorkloadEntry, WorkloadKey},
};

/// IPPROTO_TCP.
pub const TCP: u8 = 6;
/// IPPROTO_UDP.
pub const UDP: u8 = 17;
/// A CIDR key with this protocol speaks for every protocol.
pub const ANY_PROTOCOL: u8 = 0;
/// [`Settings::failure_policy`]: leave the connection alone.
pub const FAILURE_POLICY_OPEN: u32 = 0;
/// [`Settings::failure_policy`]: refuse the connection.
pub const FAILURE_POLICY_CLOSED: u32 = 1;
/// [`Settings::outbound_policy`], and of a workload: what is not registered is left alone.
pub const OUTBOUND_ALLOW_ANY: u32 = 1;
/// [`Settings::outbound_policy`], and of a workload: what is not registered is refused.
pub const OUTBOUND_REGISTRY_ONLY: u32 = 2;
/// [`Destination::action`] of [`Destination::UNKNOWN`]; never in a map.
pub const ACTION_UNKNOWN: u8 = 0;
/// [`Destination::action`]: leave the socket alone (internal ranges).
pub const ACTION_PASS: u8 = 1;
/// [`Destination::action`]: send the socket to the proxy (registered destinations).
pub const ACTION_REDIRECT: u8 = 2;
/// [`Destination::action`]: registered, and left alone (UDP ports, resolvers).
pub const ACTION_DIRECT: u8 = 3;
/// [`Destination::action`]: refuse, so that HTTP/3 clients fall back to TCP, which is captured.
pub const ACTION_REFUSE_QUIC: u8 = 4;
/// Bits of a CIDR key that stand before the address: port, protocol and a zero octet.
pub const CIDR_FIXED_BITS: u32 = 32;

/// The one element of `SETTINGS`. Written at start, before any program is attached, and again when
/// the outbound policy changes; the other fields stay as they are while programs are attached.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Settings {
    /// [`LAYOUT_VERSION`] once the agent has written the rest; 0 before.
    pub layout_version: u32,
    /// `FAILURE_POLICY_*`: what happens to a registered destination that cannot be redirected.
    pub failure_policy: u32,
    /// `OUTBOUND_*`: what happens to external destinations that are not registered.
    pub outbound_policy: u32,
    /// 1: some workload has another outbound policy, so `WORKLOADS` must be asked.
    pub policy_by_workload: u32,
    /// Age of `HEARTBEAT` from which the proxy counts as dead, nanoseconds; 0: never.
    pub heartbeat_limit_ns: u64,
    /// cgroup id of the agent, as the kernel told it.
    pub own_cgroup_id: u64,
    /// Cookie of the agent's network namespace, as the kernel told it.
    pub own_netns_cookie: u64,
    /// Loopback redirect address for IPv4; for sockets in the agent's network namespace, and in a
    /// pod's when `WORKLOADS` says that the proxy listens there.
    pub loopback4: Address,
    /// Loopback redirect address for IPv6; as `loopback4`.
    pub loopback6: Address,
    /// Redirect address for IPv4 that any network namespace may use.
    pub node4: Address,
    /// Redirect address for IPv6 that any network namespace may use.
    pub node6: Address,
    /// The proxy's port in the agent's network namespace.
    pub redirect_port: Port,
    /// Zero.
    pub padding: [u8; 6],
}

/// Key of `DESTINATIONS4`: one address, one port.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct DestinationKey4 {
    /// Destination address.
    pub address: Address4,
    /// Destination port.
    pub port: Port,
    /// IP protocol number.
    pub protocol: u8,
    /// Zero.
    pub padding: u8,
}

/// Key of `DESTINATIONS6`: one address, one port. Never a v4-mapped address.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct DestinationKey6 {
    /// Destination address.
    pub address: Address6,
    /// Destination port.
    pub port: Port,
    /// IP protocol number.
    pub protocol: u8,
    /// Zero.
    pub padding: u8,
}

/// What `DESTINATION_CIDRS4` matches by prefix: [`CIDR_FIXED_BITS`] exact bits, then the address.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct CidrKey4 {
    /// Destination port; 0: any port.
    pub port: Port,
    /// IP protocol number; 0: any protocol.
    pub protocol: u8,
    /// Zero.
    pub padding: u8,
    /// Network address.
    pub address: Address4,
}

/// What `DESTINATION_CIDRS6` matches by prefix: [`CIDR_FIXED_BITS`] exact bits, then the address.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct CidrKey6 {
    /// Destination port; 0: any port.
    pub port: Port,
    /// IP protocol number; 0: any protocol.
    pub protocol: u8,
    /// Zero.
    pub padding: u8,
    /// Network address.
    pub address: Address6,
}

/// Value of the four destination maps.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Destination {
    /// `ACTION_*`.
    pub action: u8,
    /// Bits of the address that the entry fixes (32 or 128 for a single address). An LPM lookup
    /// does not say how long its match was, hence it stands in the value.
    pub address_bits: u8,
}

/// Who runs a system call: both read in the kernel, never taken from the packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Caller {
    /// cgroup id of the current task.
    pub cgroup_id: u64,
    /// Cookie of the socket's network namespace.
    pub netns_cookie: u64,
}

/// Which addresses a socket can be sent to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reach {
    /// An IPv4 destination: AF_INET, or AF_INET6 with a v4-mapped address.
    V4,
    /// A native IPv6 destination.
    V6,
}

/// One connect() or sendmsg(), as far as the decision needs it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Attempt {
    /// Who.
    pub caller: Caller,
    /// What `WORKLOADS` says of the caller; [`WorkloadEntry::UNKNOWN`] when it was not asked.
    pub workload: WorkloadEntry,
    /// IP protocol number; subflows of MPTCP count as TCP.
    pub protocol: u8,
    /// Family of the destination.
    pub reach: Reach,
    /// Whether the socket is bound to a device (SO_BINDTODEVICE), which loopback cannot serve.
    pub bound_to_device: bool,
    /// Whether the heartbeat is fresh.
    pub proxy_alive: bool,
}

/// What to do with a connect() or sendmsg().
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Decision {
    /// Leave it alone; count the outcome.
    Pass(Outcome),
    /// Leave a registered destination alone although it should be redirected (failure policy
    /// open): the packets of this socket are approved.
    PassApproved(Outcome),
    /// Record, then send it to this address and port.
    Redirect(Address, Port),
    /// Refuse with EPERM; count the outcome.
    Deny(Outcome),
}

/// What to do with a packet that reached the backstop.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// Let it go; count the outcome.
    Pass(Outcome),
    /// Drop it; count the outcome.
    Drop(Outcome),
}

impl Settings {
    /// Whether the agent has written them in this layout.
    #[inline(always)]
    pub fn is_configured(&self) -> bool {
        self.layout_version == LAYOUT_VERSION
    }

    /// Whether the caller is the agent itself. A pod cannot place itself into the agent's cgroup,
    /// and a task that shares the cgroup in another network namespace is not the agent.
    #[inline(always)]
    pub fn is_own(&self, caller: Caller) -> bool {
        self.own_cgroup_id != 0
            && caller.cgroup_id == self.own_cgroup_id
            && caller.netns_cookie == self.own_netns_cookie
    }

    /// Whether unregistered destinations are refused for this workload.
    #[inline(always)]
    pub fn is_registry_only(&self, workload: WorkloadEntry) -> bool {
        let own = workload.outbound_policy as u32;
        let policy = if self.policy_by_workload != 0 && own != 0 {
            own
        } else {
            self.outbound_policy
        };
        policy == OUTBOUND_REGISTRY_ONLY
    }

    /// Whether `WORKLOADS` has to be asked for the caller: for its listener, or for its policy.
    #[inline(always)]
    pub fn depends_on_workload(&self, caller: Caller) -> bool {
        self.policy_by_workload != 0 || caller.netns_cookie != self.own_netns_cookie
    }

    /// The key of the caller in `WORKLOADS`.
    #[inline(always)]
    pub fn workload_key(&self, caller: Caller) -> WorkloadKey {
        if caller.netns_cookie == self.own_netns_cookie {
            WorkloadKey::cgroup(caller.cgroup_id)
        } else {
            WorkloadKey::netns(caller.netns_cookie)
        }
    }

    /// The address and port under which the caller's network namespace reaches the proxy. Loopback
    /// is preferred where it leads to the proxy: in the agent's own namespace, and where the agent
    /// opened a listener. A native IPv6 socket takes the IPv4 address in its mapped form when there
    /// is no IPv6 one; a socket with IPV6_V6ONLY then fails with ENETUNREACH.
    #[inline(always)]
    pub fn redirect_address(&self, attempt: Attempt) -> Option<(Address, Port)> {
        let here = attempt.caller.netns_cookie == self.own_netns_cookie;
        let workload = attempt.workload;
        let (loopback4, loopback6, port) = if attempt.bound_to_device {
            (Address::NONE, Address::NONE, self.redirect_port)
        } else if here {
            (self.loopback4, self.loopback6, self.redirect_port)
        } else {
            (
                workload.loopback4(),
                workload.loopback6(),
                workload.redirect_port,
            )
        };
        let first_of = |loopback: Address, node: Address| {
            if loopback.is_some() {
                Some((loopback, port))
            } else if node.is_some() {
                Some((node, self.redirect_port))
            } else {
                None
            }
        };
        let v4 = || first_of(loopback4, self.node4);
        match attempt.reach {
            Reach::V4 => v4(),
            Reach::V6 => first_of(loopback6, self.node6).or_else(v4),
        }
    }

    /// What the failure policy makes of a connection that should be redirected and cannot be.
    #[inline(always)]
    pub fn failed(&self, passed: Outcome, denied: Outcome) -> Decision {
        if self.failure_policy == FAILURE_POLICY_OPEN {
            Decision::PassApproved(passed)
        } else {
            Decision::Deny(denied)
        }
    }

    /// The decision, once the tables have been asked; `found` as from [`strongest`].
    #[inline(always)]
    pub fn decide(&self, attempt: Attempt, found: Destination) -> Decision {
        match found.action {
            ACTION_UNKNOWN if self.is_registry_only(attempt.workload) => {
                Decision::Deny(Outcome::NotRegisteredDenied)
            }
            ACTION_UNKNOWN if attempt.protocol != TCP => Decision::Pass(Outcome::NotTcp),
            ACTION_UNKNOWN => Decision::Pass(Outcome::NotRegistered),
            ACTION_REDIRECT if !attempt.proxy_alive => {
                self.failed(Outcome::ProxyDeadPassed, Outcome::ProxyDeadDenied)
            }
            ACTION_REDIRECT => match self.redirect_address(attempt) {
                Some((address, port)) => Decision::Redirect(address, port),
                None => self.failed(
                    Outcome::NoRedirectAddressPassed,
                    Outcome::NoRedirectAddressDenied,
                ),
            },
            ACTION_DIRECT => Decision::Pass(Outcome::Direct),
            ACTION_REFUSE_QUIC => Decision::Deny(Outcome::QuicRefused),
            _ => Decision::Pass(Outcome::Internal),
        }
    }

    /// What becomes of a packet that begins a flow, when unregistered destinations are refused:
    /// only what connect() and sendmsg() would have let go. `approved`: its socket was let go by the
    /// failure policy, or cannot be seen and the policy is open.
    #[inline(always)]
    pub fn admit(&self, packet: Packet, found: Destination, approved: bool) -> Verdict {
        let to_proxy = packet.port == self.redirect_port
            && packet.destination.is_some()
            && (packet.destination == self.node4 || packet.destination == self.node6);
        match found.action {
            _ if to_proxy => Verdict::Pass(Outcome::Internal),
            ACTION_UNKNOWN => Verdict::Drop(Outcome::NotRegisteredDenied),
            ACTION_REDIRECT if approved => Verdict::Pass(Outcome::Direct),
            ACTION_REDIRECT => Verdict::Drop(Outcome::NotRedirectedDenied),
            ACTION_DIRECT => Verdict::Pass(Outcome::Direct),
            ACTION_REFUSE_QUIC => Verdict::Drop(Outcome::QuicRefused),
            _ => Verdict::Pass(Outcome::Internal),
        }
    }
}

/// Which of two CIDR entries speaks for a destination: the longer address prefix; of equal ones
/// the registered entry, which is the one with the exact port.
#[inline(always)]
pub fn strongest(exact_port: Destination, any_port: Destination) -> Destination {
    let longer =
        any_port.action != ACTION_UNKNOWN && any_port.address_bits > exact_port.address_bits;
    if longer || exact_port.action == ACTION_UNKNOWN {
        any_port
    } else {
        exact_port
    }
}

impl Destination {
    /// What stands for an entry that is not there. (An `Option` would do, but its unset half makes
    /// the compiler copy registers that the kernel's verifier knows to be unset.)
    pub const UNKNOWN: Self = Self {
        action: ACTION_UNKNOWN,
        address_bits: 0,
    };

    /// Whether it redirects one address, not a network. Only that speaks for loopback addresses.
    #[inline(always)]
    pub const fn is_single_redirect(self) -> bool {
        self.action == ACTION_REDIRECT && (self.address_bits == 32 || self.address_bits == 128)
    }
}

impl DestinationKey4 {
    /// The key of one address, port and IP protocol.
    #[inline(always)]
    pub const fn new(address: Address4, port: Port, protocol: u8) -> Self {
        Self {
            address,
            port,
            protocol,
            padding: 0,
        }
    }
}

impl DestinationKey6 {
    /// The key of one address, port and IP protocol.
    #[inline(always)]
    pub const fn new(address: Address6, port: Port, protocol: u8) -> Self {
        Self {
            address,
            port,
            protocol,
            padding: 0,
        }
    }
}

impl CidrKey4 {
    /// The key of a network on one port and IP protocol; both 0: any.
    #[inline(always)]
    pub const fn new(address: Address4, port: Port, protocol: u8) -> Self {
        Self {
            port,
            protocol,
            padding: 0,
            address,
        }
    }
}

impl CidrKey6 {
    /// The key of a network on one port and IP protocol; both 0: any.
    #[inline(always)]
    pub const fn new(address: Address6, port: Port, protocol: u8) -> Self {
        Self {
            port,
            protocol,
            padding: 0,
            address,
        }
    }
}

// SAFETY: repr(C), integers and byte arrays only, no implicit padding (see the layout tests):
// every bit pattern is valid.
#[cfg(feature = "user")]
unsafe impl aya::Pod for Settings {}
// SAFETY: as above.
#[cfg(feature = "user")]
unsafe impl aya::Pod for DestinationKey4 {}
// SAFETY: as above.
#[cfg(feature = "user")]
unsafe impl aya::Pod for DestinationKey6 {}
// SAFETY: as above.
#[cfg(feature = "user")]
unsafe impl aya::Pod for CidrKey4 {}
// SAFETY: as above.
#[cfg(feature = "user")]
unsafe impl aya::Pod for CidrKey6 {}
// SAFETY: as above.
#[cfg(feature = "user")]
unsafe impl aya::Pod for Destination {}

#[cfg(test)]
mod tests {
    use core::net::IpAddr;

    use super::*;
    use crate::workload::{LISTENING4, LISTENING6};

    const AGENT: Caller = Caller {
        cgroup_id: 10,
        netns_cookie: 3,
    };
    const HOST_PROCESS: Caller = Caller {
        cgroup_id: 20,
        netns_cookie: 3,
    };
    const POD: Caller = Caller {
        cgroup_id: 20,
        netns_cookie: 9,
    };
    const fn found(action: u8) -> Destination {
        Destination {
            action,
            address_bits: 32,
        }
    }

    fn address(text: &str) -> Address {
        match text {
            "" => Address::NONE,
            text => text.parse::<IpAddr>().unwrap().into(),
        }
    }

    /// `[loopback4, loopback6, node4, node6]`.
    fn settings(redirect: [&str; 4], failure_policy: u32) -> Settings {
        Settings {
            layout_version: LAYOUT_VERSION,
            failure_policy,
            outbound_policy: OUTBOUND_ALLOW_ANY,
            policy_by_workload: 0,
            heartbeat_limit_ns: 0,
            own_cgroup_id: 10,
            own_netns_cookie: 3,
            loopback4: address(redirect[0]),
            loopback6: address(redirect[1]),
            node4: address(redirect[2]),
            node6: address(redirect[3]),
            redirect_port: Port::new(15001),
            padding: [0; 6],
        }
    }

    fn attempt(caller: Caller, reach: Reach) -> Attempt {
        Attempt {
            caller,
            workload: WorkloadEntry::UNKNOWN,
            protocol: TCP,
            reach,
            bound_to_device: false,
            proxy_alive: true,
        }
    }

    /// A pod with listeners on another port.
    fn listening(listening: u8) -> WorkloadEntry {
        WorkloadEntry {
            redirect_port: Port::new(15007),
            listening,
            ..WorkloadEntry::default()
        }
    }

    #[test]
    fn redirect_address_is_one_the_caller_can_reach() {
        let loopback = ["127.0.0.1", "::1", "", ""];
        let node = ["", "", "10.0.0.1", "fd00::1"];
        let both = ["127.0.0.1", "::1", "10.0.0.1", "fd00::1"];
        let only4 = ["127.0.0.1", "", "10.0.0.1", ""];
        let none = ["", "", "", ""];
        let (host, pod) = (
            |reach| attempt(HOST_PROCESS, reach),
            |reach| attempt(POD, reach),
        );
        let in_pod = |reach, families| Attempt {
            workload: listening(families),
            ..pod(reach)
        };
        let bound = |attempt| Attempt {
            bound_to_device: true,
            ..attempt
        };
        for (redirect, attempt, expected) in [
            (loopback, host(Reach::V4), "127.0.0.1:15001"),
            (loopback, host(Reach::V6), "[::1]:15001"),
            (loopback, pod(Reach::V4), ""),
            (loopback, pod(Reach::V6), ""),
            (node, host(Reach::V4), "10.0.0.1:15001"),
            (node, pod(Reach::V6), "[fd00::1]:15001"),
            (both, host(Reach::V4), "127.0.0.1:15001"),
            (both, pod(Reach::V4), "10.0.0.1:15001"),
            (both, pod(Reach::V6), "[fd00::1]:15001"),
            (only4, host(Reach::V6), "127.0.0.1:15001"),
            (only4, pod(Reach::V6), "10.0.0.1:15001"),
            (["", "::1", "", "fd00::1"], pod(Reach::V4), ""),
            // The proxy listens inside the pod.
            (none, in_pod(Reach::V4, LISTENING4), "127.0.0.1:15007"),
            (none, in_pod(Reach::V6, LISTENING4), "127.0.0.1:15007"),
            (
                none,
                in_pod(Reach::V6, LISTENING4 | LISTENING6),
                "[::1]:15007",
            ),
            (none, in_pod(Reach::V4, 0), ""),
            (both, in_pod(Reach::V4, LISTENING4), "127.0.0.1:15007"),
            (both, in_pod(Reach::V6, LISTENING4), "[fd00::1]:15001"),
            (both, in_pod(Reach::V4, 0), "10.0.0.1:15001"),
            // Loopback cannot serve a socket that is bound to a device.
            (none, bound(in_pod(Reach::V4, LISTENING4)), ""),
            (both, bound(in_pod(Reach::V4, LISTENING4)), "10.0.0.1:15001"),
            (both, bound(host(Reach::V6)), "[fd00::1]:15001"),
            (loopback, bound(host(Reach::V4)), ""),
        ] {
            let found = settings(redirect, FAILURE_POLICY_CLOSED).redirect_address(attempt);
            let expected = match expected {
                "" => None,
                text => {
                    let socket: core::net::SocketAddr = text.parse().unwrap();
                    Some((Address::from(socket.ip()), Port::new(socket.port())))
                }
            };
            assert_eq!(found, expected, "{redirect:?} {attempt:?}");
        }
    }

    #[test]
    fn decision_follows_the_table_and_the_policies() {
        let (open, closed) = (FAILURE_POLICY_OPEN, FAILURE_POLICY_CLOSED);
        let (any, only) = (OUTBOUND_ALLOW_ANY, OUTBOUND_REGISTRY_ONLY);
        let host = attempt(HOST_PROCESS, Reach::V4);
        let pod = attempt(POD, Reach::V4);
        let udp = Attempt {
            protocol: UDP,
            ..host
        };
        let dead = Attempt {
            proxy_alive: false,
            ..host
        };
        let redirected = Decision::Redirect(address("127.0.0.1"), Port::new(15001));
        let redirect = found(ACTION_REDIRECT);
        let none = Destination::UNKNOWN;
        use Decision::{Deny, Pass, PassApproved};
        for (attempt, found, failure, outbound, expected) in [
            (host, redirect, closed, any, redirected),
            (host, redirect, closed, only, redirected),
            (host, none, closed, any, Pass(Outcome::NotRegistered)),
            (udp, none, closed, any, Pass(Outcome::NotTcp)),
            (host, none, closed, only, Deny(Outcome::NotRegisteredDenied)),
            (host, none, open, only, Deny(Outcome::NotRegisteredDenied)),
            (udp, none, closed, only, Deny(Outcome::NotRegisteredDenied)),
            (
                host,
                found(ACTION_PASS),
                closed,
                only,
                Pass(Outcome::Internal),
            ),
            (
                udp,
                found(ACTION_PASS),
                closed,
                only,
                Pass(Outcome::Internal),
            ),
            (
                udp,
                found(ACTION_DIRECT),
                closed,
                only,
                Pass(Outcome::Direct),
            ),
            (
                udp,
                found(ACTION_REFUSE_QUIC),
                open,
                any,
                Deny(Outcome::QuicRefused),
            ),
            (
                pod,
                redirect,
                closed,
                any,
                Deny(Outcome::NoRedirectAddressDenied),
            ),
            (
                pod,
                redirect,
                open,
                any,
                PassApproved(Outcome::NoRedirectAddressPassed),
            ),
            (dead, redirect, closed, any, Deny(Outcome::ProxyDeadDenied)),
            (
                dead,
                redirect,
                open,
                any,
                PassApproved(Outcome::ProxyDeadPassed),
            ),
            (dead, none, closed, any, Pass(Outcome::NotRegistered)),
        ] {
            let settings = Settings {
                outbound_policy: outbound,
                ..settings(["127.0.0.1", "::1", "", ""], failure)
            };
            assert_eq!(settings.decide(attempt, found), expected, "{attempt:?}");
        }
    }

    #[test]
    fn outbound_policy_of_a_workload_counts_only_when_they_differ() {
        let entry = |policy: u32| WorkloadEntry {
            outbound_policy: u8::try_from(policy).unwrap(),
            ..WorkloadEntry::default()
        };
        let unknown = WorkloadEntry::UNKNOWN;

        let (any, only) = (OUTBOUND_ALLOW_ANY, OUTBOUND_REGISTRY_ONLY);
        for (default, differ, workload, refused) in [
            (any, 0, unknown, false),
            (only, 0, unknown, true),
            (any, 0, entry(only), false),
            (any, 1, entry(only), true),
            (only, 1, entry(any), false),
            (only, 1, entry(0), true),
            (only, 1, unknown, true),
        ] {
            let settings = Settings {
                outbound_policy: default,
                policy_by_workload: differ,
                ..settings(["", "", "", ""], FAILURE_POLICY_CLOSED)
            };
            assert_eq!(
                settings.is_registry_only(workload),
                refused,
                "{default} {differ} {workload:?}"
            );
        }
    }

    #[test]
    fn backstop_lets_go_what_the_system_calls_would_have_let_go() {
        let settings = settings(["", "", "10.0.0.1", ""], FAILURE_POLICY_CLOSED);
        let packet = |to: &str, port| Packet {
            source: Address::NONE,
            destination: address(to),
            source_port: Port::new(0),
            port: Port::new(port),
            protocol: TCP,
            opening: true,
        };
        let out = packet("203.0.113.5", 443);
        let none = Destination::UNKNOWN;
        use Verdict::{Drop, Pass};
        for (packet, found, approved, expected) in [
            (out, none, false, Drop(Outcome::NotRegisteredDenied)),
            (out, none, true, Drop(Outcome::NotRegisteredDenied)),
            (
                out,
                found(ACTION_REDIRECT),
                false,
                Drop(Outcome::NotRedirectedDenied),
            ),
            (out, found(ACTION_REDIRECT), true, Pass(Outcome::Direct)),
            (out, found(ACTION_PASS), false, Pass(Outcome::Internal)),
            (out, found(ACTION_DIRECT), false, Pass(Outcome::Direct)),
            (
                out,
                found(ACTION_REFUSE_QUIC),
                false,
                Drop(Outcome::QuicRefused),
            ),
            (
                packet("10.0.0.1", 15001),
                none,
                false,
                Pass(Outcome::Internal),
            ),
            (
                packet("10.0.0.1", 15002),
                none,
                false,
                Drop(Outcome::NotRegisteredDenied),
            ),
        ] {
            assert_eq!(
                settings.admit(packet, found, approved),
                expected,
                "{packet:?} {found:?}"
            );
        }
    }

    #[test]
    fn only_the_agent_itself_is_own_traffic() {
        let settings = settings(["127.0.0.1", "", "", ""], FAILURE_POLICY_CLOSED);
        let same_cgroup_elsewhere = Caller {
            netns_cookie: 9,
            ..AGENT
        };
        for (caller, own) in [
            (AGENT, true),
            (HOST_PROCESS, false),
            (POD, false),
            (same_cgroup_elsewhere, false),
        ] {
            assert_eq!(settings.is_own(caller), own, "{caller:?}");
        }
        let unknown = Settings {
            own_cgroup_id: 0,
            ..settings
        };
        assert!(!unknown.is_own(Caller {
            cgroup_id: 0,
            netns_cookie: 3
        }));
    }

    #[test]
    fn longest_prefix_wins_and_the_registered_entry_wins_ties() {
        let redirect = |address_bits| Destination {
            action: ACTION_REDIRECT,
            address_bits,
        };
        let pass = |address_bits| Destination {
            action: ACTION_PASS,
            address_bits,
        };
        let none = Destination::UNKNOWN;
        for (exact_port, any_port, expected) in [
            (none, none, none),
            (redirect(0), none, redirect(0)),
            (none, pass(8), pass(8)),
            (redirect(0), pass(8), pass(8)),
            (redirect(8), pass(8), redirect(8)),
            (redirect(24), pass(8), redirect(24)),
        ] {
            assert_eq!(
                strongest(exact_port, any_port),
                expected,
                "{exact_port:?} {any_port:?}"
            );
        }
    }
}
