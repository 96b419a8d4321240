// SPDX-License-Identifier: Apache-2.0
//! What this kernel offers beyond what is needed, and what the lack of it means to the user.

use std::path::Path;

use super::{loader::TC_PROGRAM, netlink, syscall};

/// One thing that a kernel may lack.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Feature {
    /// Short name.
    pub name: &'static str,
    /// Whether it is there.
    pub present: bool,
    /// What follows when it is not.
    pub without: &'static str,
}

/// Asks the kernel.
pub fn features() -> Vec<Feature> {
    vec![
        Feature {
            name: "tcx (Linux 6.6)",
            present: can_check_frames(),
            without: "what a pod sends by packet sockets (CAP_NET_RAW) or by sockets made outside of \
                      its cgroup is not checked: drop CAP_NET_RAW from workloads",
        },
        Feature {
            name: "SOCK_DESTROY (CONFIG_INET_DIAG_DESTROY)",
            present: netlink::can_destroy(),
            without: "connections made before REGISTRY_ONLY came into force live on until they \
                      are closed: restart the workloads",
        },
        Feature {
            name: "IPv6",
            present: Path::new("/proc/net/if_inet6").exists(),
            without: "only IPv4 is captured; there is nothing else on this node",
        },
        Feature {
            name: "processes of the whole node (host pid namespace)",
            present: sees_host_processes(),
            without: "pods in other pid namespaces are not found: run the agent with hostPID, or \
                      give --redirect-ip",
        },
    ]
}

/// Whether programs can be attached to pods' cables. Asked of the kernel itself: distributions add
/// tcx to older versions.
pub fn can_check_frames() -> bool {
    syscall::can_link_interfaces(TC_PROGRAM.attach_type)
}

/// Whether /proc shows the node's processes: in the initial pid namespace pid 2 is kthreadd, which
/// has no memory and so no command line.
fn sees_host_processes() -> bool {
    std::fs::read("/proc/2/cmdline").is_ok_and(|line| line.is_empty())
        && std::fs::read_to_string("/proc/2/comm").is_ok_and(|comm| comm.trim() == "kthreadd")
}
