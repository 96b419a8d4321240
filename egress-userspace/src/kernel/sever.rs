// SPDX-License-Identifier: Apache-2.0
//! Ends connections that the policy in force would not have let begin: those made before it came,
//! or before the programs were attached. Works on the network namespace of the calling thread.

use std::{
    collections::BTreeSet,
    io,
    net::{IpAddr, SocketAddr},
};

use egress_common::redirect::{ACTION_DIRECT, ACTION_PASS, TCP, UDP};

use super::{
    netlink::{self, InetSocket},
    redirect::DestinationPlan,
};

/// A connection that was ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Severed {
    /// IP protocol number.
    pub protocol: u8,
    /// Where it went.
    pub remote: SocketAddr,
}

/// Destroys the connections of this namespace to destinations that the plan does not let go.
/// `concerns` says whose sockets count, by cgroup. What a server accepted is left alone, and so is
/// loopback.
///
/// # Errors
/// When the kernel cannot list or destroy sockets.
pub fn sever(
    plan: &DestinationPlan,
    concerns: impl Fn(Option<u64>) -> bool,
) -> io::Result<Vec<Severed>> {
    let mut severed = Vec::new();
    for protocol in [TCP, UDP] {
        let sockets = netlink::sockets(protocol)?;
        let served: BTreeSet<u16> = sockets
            .iter()
            .filter(|socket| socket.listens)
            .map(|socket| socket.local.port())
            .collect();
        let doomed: Vec<&InetSocket> = sockets
            .iter()
            .filter(|socket| !socket.listens && concerns(socket.cgroup_id))
            .filter(|socket| protocol != TCP || !served.contains(&socket.local.port()))
            .filter(|socket| !may_stay(plan, protocol, socket.remote))
            .collect();
        netlink::destroy(doomed.iter().copied())?;
        severed.extend(doomed.iter().map(|socket| Severed {
            protocol,
            remote: socket.remote,
        }));
    }
    Ok(severed)
}

fn may_stay(plan: &DestinationPlan, protocol: u8, remote: SocketAddr) -> bool {
    let address = remote.ip();
    if is_local(address) {
        return true;
    }
    let found = plan.find(address, remote.port(), protocol);
    found.is_some_and(|destination| matches!(destination.action, ACTION_PASS | ACTION_DIRECT))
}

fn is_local(address: IpAddr) -> bool {
    address.is_loopback() || address.is_unspecified() || address.is_multicast()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_the_plan_lets_go_may_stay() {
        let net = |text: &str| text.parse::<ipnet::IpNet>().unwrap();
        let mut plan = DestinationPlan::default();
        plan.pass(net("10.0.0.0/8"));
        plan.redirect(net("203.0.113.5/32"), 443);
        plan.direct(net("203.0.113.53/32"), 53, UDP);
        for (protocol, remote, expected) in [
            (TCP, "10.1.2.3:443", true),
            (TCP, "127.0.0.1:15001", true),
            (TCP, "[::1]:15001", true),
            (UDP, "224.0.0.251:5353", true),
            (UDP, "203.0.113.53:53", true),
            (TCP, "203.0.113.53:53", false),
            (TCP, "203.0.113.5:443", false),
            (UDP, "203.0.113.9:443", false),
        ] {
            let found = may_stay(&plan, protocol, remote.parse().unwrap());
            assert_eq!(found, expected, "{remote}/{protocol}");
        }
    }
}
