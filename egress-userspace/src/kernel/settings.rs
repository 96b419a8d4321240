// SPDX-License-Identifier: Apache-2.0
//! The element of `SETTINGS`, made from what the user wants and what an earlier agent left.

use std::net::{IpAddr, UdpSocket};

use egress_common::{
    address::{Address, Port},
    maps::LAYOUT_VERSION,
    redirect::{
        FAILURE_POLICY_CLOSED, FAILURE_POLICY_OPEN, OUTBOUND_ALLOW_ANY, OUTBOUND_REGISTRY_ONLY,
        Settings,
    },
};

use super::{
    capture::{CaptureSettings, FailurePolicy},
    error::KernelError,
    heartbeat, syscall,
};
use crate::routing::table::OutboundPolicy;

/// The number of a policy in the maps.
pub fn outbound_number(policy: OutboundPolicy) -> u32 {
    match policy {
        OutboundPolicy::AllowAny => OUTBOUND_ALLOW_ANY,
        OutboundPolicy::RegistryOnly => OUTBOUND_REGISTRY_ONLY,
    }
}

/// An agent that takes over leaves the policy of the earlier one in force until its first snapshot.
pub(super) fn keep_outbound_policy(new: Settings, earlier: &Settings) -> Settings {
    if !earlier.is_configured() {
        return new;
    }
    Settings {
        outbound_policy: earlier.outbound_policy,
        policy_by_workload: earlier.policy_by_workload,
        ..new
    }
}

/// The agent's network namespace, as the kernel counts them.
pub(super) fn own_netns_cookie() -> Result<u64, KernelError> {
    let call_failed = |source| KernelError::Call {
        action: "read SO_NETNS_COOKIE",
        source,
    };
    let socket = UdpSocket::bind(("0.0.0.0", 0)).map_err(call_failed)?;
    syscall::netns_cookie(&socket).map_err(call_failed)
}

/// The element of `SETTINGS` without the agent's identity.
pub(super) fn redirect_settings(settings: &CaptureSettings) -> Result<Settings, KernelError> {
    let mut redirect = Settings {
        layout_version: LAYOUT_VERSION,
        failure_policy: match settings.failure_policy {
            FailurePolicy::Open => FAILURE_POLICY_OPEN,
            FailurePolicy::Closed => FAILURE_POLICY_CLOSED,
        },
        outbound_policy: OUTBOUND_ALLOW_ANY,
        heartbeat_limit_ns: heartbeat::LIMIT.as_nanos() as u64,
        redirect_port: Port::new(settings.port),
        ..Settings::default()
    };
    for ip in &settings.redirect_ips {
        let address = Address::from(*ip);
        let place = match (address.to_v4(), address.is_loopback()) {
            (Some(_), true) => &mut redirect.loopback4,
            (Some(_), false) => &mut redirect.node4,
            (None, true) => &mut redirect.loopback6,
            (None, false) => &mut redirect.node6,
        };
        if place.is_some() {
            return Err(KernelError::RedirectAddressTwice {
                first: IpAddr::from(*place),
                second: *ip,
            });
        }
        *place = address;
    }
    Ok(redirect)
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use super::*;
    use crate::kernel::Workloads;

    fn settings(redirect_ips: &[&str]) -> CaptureSettings {
        CaptureSettings {
            cgroups: Vec::new(),
            redirect_ips: redirect_ips.iter().map(|ip| ip.parse().unwrap()).collect(),
            port: 15001,
            bpffs: PathBuf::new(),
            failure_policy: FailurePolicy::Closed,
            internal_cidrs: Vec::new(),
            workloads: Workloads::default(),
        }
    }

    #[test]
    fn redirect_addresses_are_sorted_by_family_and_reach() {
        let redirect =
            redirect_settings(&settings(&["fd00::1", "127.0.0.1", "10.0.0.1", "::1"])).unwrap();
        for (place, expected) in [
            (redirect.loopback4, "127.0.0.1"),
            (redirect.loopback6, "::1"),
            (redirect.node4, "10.0.0.1"),
            (redirect.node6, "fd00::1"),
        ] {
            assert_eq!(IpAddr::from(place).to_string(), expected);
        }
        assert_eq!(redirect.redirect_port.number(), 15001);
    }

    #[test]
    fn two_redirect_addresses_for_the_same_sockets_are_refused() {
        let error = redirect_settings(&settings(&["10.0.0.1", "10.0.0.2"])).unwrap_err();
        assert!(
            error.to_string().contains("10.0.0.1 and 10.0.0.2"),
            "{error}"
        );
    }
}
