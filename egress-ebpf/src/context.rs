// SPDX-License-Identifier: MIT OR GPL-2.0-only
//! Reading and writing the fields of the kernel's contexts; the only place that knows their byte
//! order. Fields are read and written one by one with volatile accesses, since the verifier
//! refuses an access that the compiler has merged from two fields.

use core::ptr;

use aya_ebpf::{
    bindings::bpf_sock,
    helpers::{bpf_get_current_cgroup_id, bpf_get_netns_cookie, bpf_get_socket_cookie},
    programs::{SockAddrContext, SockOpsContext},
};
use egress_common::{
    address::{Address, Address4, Address6, Port},
    redirect::{Caller, TCP},
};

const SOCK_STREAM: u32 = 1;
const AF_INET: u32 = 2;
/// IPPROTO_MPTCP (Linux 5.6): a stream socket whose subflows are TCP.
const MPTCP: u32 = 262;

/// Whether the socket carries TCP, MPTCP included.
#[inline(always)]
pub fn is_tcp(ctx: &SockAddrContext) -> bool {
    // SAFETY: the context is valid for the run of the program.
    let (kind, protocol) = unsafe {
        (
            ptr::read_volatile(&raw const (*ctx.sock_addr).type_),
            ptr::read_volatile(&raw const (*ctx.sock_addr).protocol),
        )
    };
    kind == SOCK_STREAM && (protocol == u32::from(TCP) || protocol == MPTCP)
}

/// Who runs this program. Helpers: Linux 4.18 and 5.7.
#[inline(always)]
pub fn caller(ctx: &SockAddrContext) -> Caller {
    // SAFETY: both helpers are allowed in these programs; the context is the program's own.
    unsafe {
        Caller {
            cgroup_id: bpf_get_current_cgroup_id(),
            netns_cookie: bpf_get_netns_cookie(ctx.sock_addr.cast()),
        }
    }
}

/// `SO_COOKIE` of the socket.
#[inline(always)]
pub fn socket_cookie(ctx: &SockAddrContext) -> u64 {
    // SAFETY: allowed in these programs; the context is the program's own.
    unsafe { bpf_get_socket_cookie(ctx.sock_addr.cast()) }
}

/// The IPv4 address: destination in connect, peer in getpeername.
#[inline(always)]
pub fn user_address4(ctx: &SockAddrContext) -> Address4 {
    // SAFETY: the context is valid for the run of the program.
    let word = unsafe { ptr::read_volatile(&raw const (*ctx.sock_addr).user_ip4) };
    Address4 {
        octets: word.to_ne_bytes(),
    }
}

/// The IPv6 address: destination in connect, peer in getpeername.
#[inline(always)]
pub fn user_address6(ctx: &SockAddrContext) -> Address6 {
    // SAFETY: the context is valid for the run of the program.
    let words = unsafe {
        let words = &raw const (*ctx.sock_addr).user_ip6;
        read_words(words.cast())
    };
    Address6 {
        octets: octets(words),
    }
}

/// The port that belongs to the address.
#[inline(always)]
pub fn user_port(ctx: &SockAddrContext) -> Port {
    // SAFETY: the context is valid for the run of the program.
    let word = unsafe { ptr::read_volatile(&raw const (*ctx.sock_addr).user_port) };
    let [first, second, _, _] = word.to_ne_bytes();
    Port {
        be: [first, second],
    }
}

/// Replaces the IPv4 address and the port.
#[inline(always)]
pub fn set_user4(ctx: &SockAddrContext, address: Address4, port: Port) {
    // SAFETY: the verifier allows writing these fields in connect4 and getpeername4.
    unsafe {
        ptr::write_volatile(
            &raw mut (*ctx.sock_addr).user_ip4,
            u32::from_ne_bytes(address.octets),
        );
    }
    set_user_port(ctx, port);
}

/// Replaces the IPv6 address and the port.
#[inline(always)]
pub fn set_user6(ctx: &SockAddrContext, address: Address, port: Port) {
    let [w0, w1, w2, w3] = words(address.octets);
    // SAFETY: the verifier allows writing these fields in connect6 and getpeername6.
    unsafe {
        let first = (&raw mut (*ctx.sock_addr).user_ip6).cast::<u32>();
        ptr::write_volatile(first, w0);
        ptr::write_volatile(first.add(1), w1);
        ptr::write_volatile(first.add(2), w2);
        ptr::write_volatile(first.add(3), w3);
    }
    set_user_port(ctx, port);
}

#[inline(always)]
fn set_user_port(ctx: &SockAddrContext, port: Port) {
    let [first, second] = port.be;
    // SAFETY: the verifier allows writing this field wherever it allows the address.
    unsafe {
        ptr::write_volatile(
            &raw mut (*ctx.sock_addr).user_port,
            u32::from_ne_bytes([first, second, 0, 0]),
        );
    }
}

/// The socket of a sock_ops run; null when there is no full socket.
#[inline(always)]
pub fn sockops_socket(ctx: &SockOpsContext) -> *mut bpf_sock {
    // SAFETY: the context is valid for the run of the program.
    unsafe { (*ctx.ops).__bindgen_anon_2.sk }
}

/// Local address and port of a sock_ops run. `local_port` is in host byte order (uapi bpf.h).
#[inline(always)]
pub fn sockops_local(ctx: &SockOpsContext) -> (Address, Port) {
    // SAFETY: the context is valid for the run of the program.
    unsafe {
        let v4 = ptr::read_volatile(&raw const (*ctx.ops).local_ip4);
        let v6 = read_words((&raw const (*ctx.ops).local_ip6).cast());
        let port = ptr::read_volatile(&raw const (*ctx.ops).local_port);
        (of_family(ctx, v4, v6), Port::new(port as u16))
    }
}

/// Remote address and port of a sock_ops run. `remote_port` is in network byte order, in the half
/// that is the upper one on little-endian machines (uapi bpf.h).
#[inline(always)]
pub fn sockops_remote(ctx: &SockOpsContext) -> (Address, Port) {
    // SAFETY: the context is valid for the run of the program.
    unsafe {
        let v4 = ptr::read_volatile(&raw const (*ctx.ops).remote_ip4);
        let v6 = read_words((&raw const (*ctx.ops).remote_ip6).cast());
        let [_, _, first, second] =
            ptr::read_volatile(&raw const (*ctx.ops).remote_port).to_ne_bytes();
        let port = Port {
            be: [first, second],
        };
        (of_family(ctx, v4, v6), port)
    }
}

/// Chooses after both families have been read: reads inside the branches would be merged into one
/// read through a computed context pointer, which the verifier refuses.
#[inline(always)]
fn of_family(ctx: &SockOpsContext, v4: u32, v6: [u32; 4]) -> Address {
    if ctx.family() == AF_INET {
        Address::from_v4(Address4 {
            octets: v4.to_ne_bytes(),
        })
    } else {
        Address { octets: octets(v6) }
    }
}

/// Reads four consecutive context words.
///
/// # Safety
/// `first` points to the first of four words of a valid context.
#[inline(always)]
unsafe fn read_words(first: *const u32) -> [u32; 4] {
    // SAFETY: as promised by the caller.
    unsafe {
        [
            ptr::read_volatile(first),
            ptr::read_volatile(first.add(1)),
            ptr::read_volatile(first.add(2)),
            ptr::read_volatile(first.add(3)),
        ]
    }
}

#[inline(always)]
fn octets(words: [u32; 4]) -> [u8; 16] {
    // SAFETY: same size, every bit pattern is valid.
    unsafe { core::mem::transmute(words) }
}

#[inline(always)]
fn words(octets: [u8; 16]) -> [u32; 4] {
    // SAFETY: same size, every bit pattern is valid.
    unsafe { core::mem::transmute(octets) }
}
