// SPDX-License-Identifier: Apache-2.0
//! Redirect policy as the kernel sees it, and the pure decision pass / redirect / deny that
//! `connect4` and `connect6` share. The map lookups happen in egress-ebpf; what follows from
//! their answers is decided here.

use crate::{
    address::{Address, Address4, Address6, Port},
    counters::Outcome,
    maps::LAYOUT_VERSION,
};

/// IPPROTO_TCP.
pub const TCP: u8 = 6;
/// [`Settings::failure_policy`]: leave the connection alone.
pub const FAILURE_POLICY_OPEN: u32 = 0;
/// [`Settings::failure_policy`]: refuse the connection.
pub const FAILURE_POLICY_CLOSED: u32 = 1;
/// [`Destination::action`]: leave the socket alone (internal ranges).
pub const ACTION_PASS: u8 = 1;
/// [`Destination::action`]: send the socket to the proxy (registered destinations).
pub const ACTION_REDIRECT: u8 = 2;
/// Bits of a CIDR key that stand before the address: port, protocol and a zero octet.
pub const CIDR_FIXED_BITS: u32 = 32;

/// The one element of `SETTINGS`. Written once at start, before any program is attached.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Settings {
    /// [`LAYOUT_VERSION`] once the agent has written the rest; 0 before.
    pub layout_version: u32,
    /// `FAILURE_POLICY_*`: what happens to a registered destination that cannot be redirected.
    pub failure_policy: u32,
    /// cgroup id of the agent, as the kernel told it.
    pub own_cgroup_id: u64,
    /// Cookie of the agent's network namespace, as the kernel told it.
    pub own_netns_cookie: u64,
    /// Loopback redirect address for IPv4; for sockets in the agent's network namespace only.
    pub loopback4: Address,
    /// Loopback redirect address for IPv6; for sockets in the agent's network namespace only.
    pub loopback6: Address,
    /// Redirect address for IPv4 that any network namespace may use.
    pub node4: Address,
    /// Redirect address for IPv6 that any network namespace may use.
    pub node6: Address,
    /// The proxy's port.
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
    /// IP protocol number.
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
    /// IP protocol number.
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

/// Who calls connect(): both read in the kernel, never taken from the packet.
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

/// What to do with a connect().
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Decision {
    /// Leave it alone; count the outcome.
    Pass(Outcome),
    /// Record, then send it to this address on the redirect port.
    Redirect(Address),
    /// Refuse with EPERM; count the outcome.
    Deny(Outcome),
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

    /// The address under which the caller's network namespace reaches the proxy. The loopback
    /// address is preferred where it leads to the proxy: in the agent's own namespace. A native
    /// IPv6 socket takes the IPv4 address in its mapped form when there is no IPv6 one; a
    /// socket with IPV6_V6ONLY then fails with ENETUNREACH.
    #[inline(always)]
    pub fn redirect_address(&self, caller: Caller, reach: Reach) -> Option<Address> {
        let here = caller.netns_cookie == self.own_netns_cookie;
        let first_of = |loopback: Address, node: Address| {
            if here && loopback.is_some() {
                Some(loopback)
            } else if node.is_some() {
                Some(node)
            } else {
                None
            }
        };
        let v4 = || first_of(self.loopback4, self.node4);
        match reach {
            Reach::V4 => v4(),
            Reach::V6 => first_of(self.loopback6, self.node6).or_else(v4),
        }
    }

    /// What the failure policy makes of a connection that should be redirected and cannot be.
    #[inline(always)]
    pub fn failed(&self, passed: Outcome, denied: Outcome) -> Decision {
        if self.failure_policy == FAILURE_POLICY_OPEN {
            Decision::Pass(passed)
        } else {
            Decision::Deny(denied)
        }
    }

    /// The decision, once the tables have been asked; `found` as from [`strongest`].
    #[inline(always)]
    pub fn decide(&self, caller: Caller, reach: Reach, found: Option<Destination>) -> Decision {
        match found {
            None => Decision::Pass(Outcome::NotRegistered),
            Some(destination) if destination.action == ACTION_REDIRECT => {
                match self.redirect_address(caller, reach) {
                    Some(address) => Decision::Redirect(address),
                    None => self.failed(
                        Outcome::NoRedirectAddressPassed,
                        Outcome::NoRedirectAddressDenied,
                    ),
                }
            }
            Some(_) => Decision::Pass(Outcome::Internal),
        }
    }
}

/// Which of two CIDR entries speaks for a destination: the longer address prefix; of equal ones
/// the registered entry, which is the one with the exact port.
#[inline(always)]
pub fn strongest(
    exact_port: Option<Destination>,
    any_port: Option<Destination>,
) -> Option<Destination> {
    match (exact_port, any_port) {
        (Some(exact), Some(any)) if any.address_bits > exact.address_bits => Some(any),
        (Some(exact), _) => Some(exact),
        (None, any) => any,
    }
}

impl DestinationKey4 {
    /// For TCP.
    #[inline(always)]
    pub const fn tcp(address: Address4, port: Port) -> Self {
        Self {
            address,
            port,
            protocol: TCP,
            padding: 0,
        }
    }
}

impl DestinationKey6 {
    /// For TCP.
    #[inline(always)]
    pub const fn tcp(address: Address6, port: Port) -> Self {
        Self {
            address,
            port,
            protocol: TCP,
            padding: 0,
        }
    }
}

impl CidrKey4 {
    /// For TCP.
    #[inline(always)]
    pub const fn tcp(address: Address4, port: Port) -> Self {
        Self {
            port,
            protocol: TCP,
            padding: 0,
            address,
        }
    }
}

impl CidrKey6 {
    /// For TCP.
    #[inline(always)]
    pub const fn tcp(address: Address6, port: Port) -> Self {
        Self {
            port,
            protocol: TCP,
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
    const REGISTERED: Option<Destination> = Some(Destination {
        action: ACTION_REDIRECT,
        address_bits: 32,
    });
    const INTERNAL: Option<Destination> = Some(Destination {
        action: ACTION_PASS,
        address_bits: 8,
    });

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

    #[test]
    fn redirect_address_is_one_the_caller_can_reach() {
        let loopback = ["127.0.0.1", "::1", "", ""];
        let node = ["", "", "10.0.0.1", "fd00::1"];
        let both = ["127.0.0.1", "::1", "10.0.0.1", "fd00::1"];
        let only4 = ["127.0.0.1", "", "10.0.0.1", ""];
        for (redirect, caller, reach, expected) in [
            (loopback, HOST_PROCESS, Reach::V4, "127.0.0.1"),
            (loopback, HOST_PROCESS, Reach::V6, "::1"),
            (loopback, POD, Reach::V4, ""),
            (loopback, POD, Reach::V6, ""),
            (node, HOST_PROCESS, Reach::V4, "10.0.0.1"),
            (node, POD, Reach::V6, "fd00::1"),
            (both, HOST_PROCESS, Reach::V4, "127.0.0.1"),
            (both, POD, Reach::V4, "10.0.0.1"),
            (both, POD, Reach::V6, "fd00::1"),
            (only4, HOST_PROCESS, Reach::V6, "127.0.0.1"),
            (only4, POD, Reach::V6, "10.0.0.1"),
            (["", "::1", "", "fd00::1"], POD, Reach::V4, ""),
        ] {
            let expected = Some(address(expected)).filter(|found| found.is_some());
            let settings = settings(redirect, FAILURE_POLICY_CLOSED);
            assert_eq!(
                settings.redirect_address(caller, reach),
                expected,
                "{redirect:?} {caller:?} {reach:?}"
            );
        }
    }

    #[test]
    fn decision_follows_the_table_and_the_failure_policy() {
        let here = ["127.0.0.1", "::1", "", ""];
        let closed = FAILURE_POLICY_CLOSED;
        let open = FAILURE_POLICY_OPEN;
        let to_loopback = Decision::Redirect(address("127.0.0.1"));
        for (caller, found, policy, expected) in [
            (HOST_PROCESS, REGISTERED, closed, to_loopback),
            (
                HOST_PROCESS,
                None,
                closed,
                Decision::Pass(Outcome::NotRegistered),
            ),
            (
                HOST_PROCESS,
                INTERNAL,
                closed,
                Decision::Pass(Outcome::Internal),
            ),
            (
                POD,
                REGISTERED,
                closed,
                Decision::Deny(Outcome::NoRedirectAddressDenied),
            ),
            (
                POD,
                REGISTERED,
                open,
                Decision::Pass(Outcome::NoRedirectAddressPassed),
            ),
            (POD, None, closed, Decision::Pass(Outcome::NotRegistered)),
        ] {
            assert_eq!(
                settings(here, policy).decide(caller, Reach::V4, found),
                expected,
                "{caller:?} {found:?}"
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
        let redirect = |address_bits| {
            Some(Destination {
                action: ACTION_REDIRECT,
                address_bits,
            })
        };
        let pass = |address_bits| {
            Some(Destination {
                action: ACTION_PASS,
                address_bits,
            })
        };
        for (exact_port, any_port, expected) in [
            (None, None, None),
            (redirect(0), None, redirect(0)),
            (None, pass(8), pass(8)),
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
