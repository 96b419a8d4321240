// SPDX-License-Identifier: Apache-2.0
//! What the kernel knows of a workload: whether the proxy listens in its network namespace, and
//! under which outbound policy it is. Names and labels stay in user space.

use core::net::{Ipv4Addr, Ipv6Addr};

use crate::address::{Address, Port};

/// [`WorkloadKey::kind`]: `id` is the cookie of a network namespace (a pod).
pub const KIND_NETNS: u32 = 1;
/// [`WorkloadKey::kind`]: `id` is a cgroup id (a process in the agent's network namespace; and, for
/// packets, whose namespace older kernels do not tell, every cgroup of a pod).
pub const KIND_CGROUP: u32 = 2;
/// [`WorkloadKey::kind`]: `id` is the index of the interface on the agent's side of a pod's cable.
pub const KIND_INTERFACE: u32 = 3;
/// [`WorkloadEntry::listening`]: the proxy listens on 127.0.0.1.
pub const LISTENING4: u8 = 1;
/// [`WorkloadEntry::listening`]: the proxy listens on `::1`.
pub const LISTENING6: u8 = 2;

/// Key of `WORKLOADS`, and of `SIGHTINGS`.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct WorkloadKey {
    /// See `kind`.
    pub id: u64,
    /// `KIND_*`.
    pub kind: u32,
    /// Zero.
    pub padding: u32,
}

/// Value of `WORKLOADS`.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct WorkloadEntry {
    /// The agent's number of the workload, as `egress dump workloads` shows it.
    pub index: u32,
    /// The proxy's port in this network namespace.
    pub redirect_port: Port,
    /// `OUTBOUND_*` of [`crate::redirect`]; 0: the one of `SETTINGS`.
    pub outbound_policy: u8,
    /// `LISTENING*`: on which loopback addresses of this network namespace the proxy listens.
    pub listening: u8,
}

/// Key of `UDP_PEERS`: somebody outside who sent a datagram to a server in a pod, and so may be
/// answered. Each is noted twice: by socket, for system calls, and by both ends, for packets.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct UdpPeerKey {
    /// `SO_COOKIE` of the server's socket; 0: by both ends.
    pub socket_cookie: u64,
    /// The server's address; none when by socket.
    pub local: Address,
    /// The peer's address.
    pub peer: Address,
    /// The server's port; 0 when by socket.
    pub local_port: Port,
    /// The peer's port.
    pub peer_port: Port,
    /// Zero.
    pub padding: [u8; 4],
}

impl UdpPeerKey {
    /// By the server's socket.
    #[inline(always)]
    pub const fn by_socket(socket_cookie: u64, peer: (Address, Port)) -> Self {
        Self {
            socket_cookie,
            local: Address::NONE,
            peer: peer.0,
            local_port: Port::new(0),
            peer_port: peer.1,
            padding: [0; 4],
        }
    }

    /// By both ends.
    #[inline(always)]
    pub const fn by_ends(local: (Address, Port), peer: (Address, Port)) -> Self {
        Self {
            socket_cookie: 0,
            local: local.0,
            peer: peer.0,
            local_port: local.1,
            peer_port: peer.1,
            padding: [0; 4],
        }
    }
}

impl WorkloadKey {
    /// A pod.
    #[inline(always)]
    pub const fn netns(cookie: u64) -> Self {
        Self::of(cookie, KIND_NETNS)
    }

    /// A process of the agent's network namespace, or the cgroup of a packet's socket.
    #[inline(always)]
    pub const fn cgroup(id: u64) -> Self {
        Self::of(id, KIND_CGROUP)
    }

    /// The agent's end of a pod's cable.
    #[inline(always)]
    pub const fn interface(index: u32) -> Self {
        Self::of(index as u64, KIND_INTERFACE)
    }

    #[inline(always)]
    const fn of(id: u64, kind: u32) -> Self {
        Self {
            id,
            kind,
            padding: 0,
        }
    }
}

impl WorkloadEntry {
    /// What stands for an entry that is not there.
    pub const UNKNOWN: Self = Self {
        index: 0,
        redirect_port: Port::new(0),
        outbound_policy: 0,
        listening: 0,
    };

    /// 127.0.0.1 when the proxy listens there, else none.
    #[inline(always)]
    pub fn loopback4(&self) -> Address {
        if self.listening & LISTENING4 != 0 {
            Address::from_v4(crate::address::Address4 {
                octets: Ipv4Addr::LOCALHOST.octets(),
            })
        } else {
            Address::NONE
        }
    }

    /// `::1` when the proxy listens there, else none.
    #[inline(always)]
    pub fn loopback6(&self) -> Address {
        if self.listening & LISTENING6 != 0 {
            Address {
                octets: Ipv6Addr::LOCALHOST.octets(),
            }
        } else {
            Address::NONE
        }
    }
}

// SAFETY: repr(C), integers and byte arrays only, no implicit padding (see the layout tests):
// every bit pattern is valid.
#[cfg(feature = "user")]
unsafe impl aya::Pod for WorkloadKey {}
// SAFETY: as above.
#[cfg(feature = "user")]
unsafe impl aya::Pod for WorkloadEntry {}
// SAFETY: as above.
#[cfg(feature = "user")]
unsafe impl aya::Pod for UdpPeerKey {}
