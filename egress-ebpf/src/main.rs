// SPDX-License-Identifier: MIT OR GPL-2.0-only
//! The kernel programs: entry points only, each handing over to one function.
//!
//! connect4/connect6 decide and redirect, sock_ops publishes the original destination before the
//! SYN leaves, getpeername shows it to the application. Anything that needs no kernel helper is
//! decided in egress-common.
#![no_std]
#![no_main]

mod backstop;
mod connect;
mod context;
mod counters;
mod destination;
mod event;
mod identity;
mod maps;
mod original_dst;
mod peer_name;
mod sock_create;
mod udp_peers;

use aya_ebpf::{
    macros::{cgroup_skb, cgroup_sock, cgroup_sock_addr, classifier, sock_ops},
    programs::{SkBuffContext, SockAddrContext, SockContext, SockOpsContext, TcContext},
};
use egress_common::counters::Program;

/// IPv4 sockets: redirect TCP to the proxy when the destination is registered, refuse what the
/// outbound policy refuses.
#[cgroup_sock_addr(connect4)]
pub fn egress_connect4(ctx: SockAddrContext) -> i32 {
    connect::ipv4(&ctx, Program::Connect4)
}

/// IPv6 sockets, v4-mapped destinations included.
#[cgroup_sock_addr(connect6)]
pub fn egress_connect6(ctx: SockAddrContext) -> i32 {
    connect::ipv6(&ctx, Program::Connect6)
}

/// Datagrams of unconnected IPv4 sockets: refuse what the outbound policy refuses.
#[cgroup_sock_addr(sendmsg4)]
pub fn egress_sendmsg4(ctx: SockAddrContext) -> i32 {
    connect::ipv4(&ctx, Program::SendMsg4)
}

/// Datagrams of unconnected IPv6 sockets.
#[cgroup_sock_addr(sendmsg6)]
pub fn egress_sendmsg6(ctx: SockAddrContext) -> i32 {
    connect::ipv6(&ctx, Program::SendMsg6)
}

/// Refuses raw sockets and MPTCP under REGISTRY_ONLY; makes new workloads known.
#[cgroup_sock(sock_create)]
pub fn egress_sock_create(ctx: SockContext) -> i32 {
    sock_create::sock_create(&ctx)
}

/// Backstop under REGISTRY_ONLY: packets of the captured cgroups' sockets.
#[cgroup_skb(egress)]
pub fn egress_skb(ctx: SkBuffContext) -> i32 {
    backstop::skb(&ctx)
}

/// Notes who sends datagrams to servers in the captured cgroups.
#[cgroup_skb(ingress)]
pub fn egress_skb_ingress(ctx: SkBuffContext) -> i32 {
    udp_peers::skb_ingress(&ctx)
}

/// Backstop under REGISTRY_ONLY: frames that a pod puts on its cable.
#[classifier]
pub fn egress_tc(ctx: TcContext) -> i32 {
    backstop::tc(&ctx)
}

/// Publishes the original destination under the connection's tuple.
#[sock_ops]
pub fn egress_sockops(ctx: SockOpsContext) -> u32 {
    original_dst::sockops(&ctx)
}

/// Shows the application the IPv4 address that it asked for.
#[cgroup_sock_addr(getpeername4)]
pub fn egress_getpeername4(ctx: SockAddrContext) -> i32 {
    peer_name::getpeername4(&ctx)
}

/// Shows the application the IPv6 address that it asked for.
#[cgroup_sock_addr(getpeername6)]
pub fn egress_getpeername6(ctx: SockAddrContext) -> i32 {
    peer_name::getpeername6(&ctx)
}

/// Attached for a moment at start: tells the agent its own cgroup and network namespace.
#[cgroup_sock_addr(connect4)]
pub fn egress_identity(ctx: SockAddrContext) -> i32 {
    identity::answer(&ctx)
}

#[unsafe(no_mangle)]
#[unsafe(link_section = "license")]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";

#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    // SAFETY: no panicking path survives optimisation; the verifier would refuse one.
    unsafe { core::hint::unreachable_unchecked() }
}
