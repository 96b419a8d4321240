// SPDX-License-Identifier: MIT OR GPL-2.0-only
//! Reading and writing the fields of the kernel's contexts; the only place that knows their byte
//! order. Fields are read and written one by one with volatile accesses, since the verifier
//! refuses an access that the compiler has merged from two fields.

use core::ptr;

use aya_ebpf::{
    EbpfContext,
    bindings::{__sk_buff, bpf_sock},
    helpers::{
        bpf_get_current_cgroup_id, bpf_get_netns_cookie, bpf_get_socket_cookie, bpf_sk_fullsock,
        bpf_skb_cgroup_id, bpf_skb_load_bytes, bpf_skb_load_bytes_relative,
    },
    programs::{SkBuffContext, SockAddrContext, SockContext, SockOpsContext, TcContext},
};
pub use egress_common::redirect::TCP;
use egress_common::{
    address::{Address, Address4, Address6, Port},
    packet::{HEADER4, HEADER6, Packet},
    redirect::Caller,
};

/// Socket type of raw sockets.
pub const SOCK_RAW: u32 = 3;
const AF_INET: u32 = 2;
/// IPPROTO_MPTCP (Linux 5.6): a stream socket whose subflows are TCP.
pub const MPTCP: u32 = 262;
/// Where bpf_skb_load_bytes_relative counts from: the network header (uapi bpf.h).
const BPF_HDR_START_NET: u32 = 1;
/// IP versions.
const IPV4: u8 = 4;
const IPV6: u8 = 6;

/// IP protocol number of the socket; TCP for MPTCP.
#[inline(always)]
pub fn protocol(ctx: &SockAddrContext) -> u8 {
    // SAFETY: the context is valid for the run of the program.
    let protocol = unsafe { ptr::read_volatile(&raw const (*ctx.sock_addr).protocol) };
    if protocol == MPTCP {
        TCP
    } else {
        protocol as u8
    }
}

/// Whether SO_BINDTODEVICE or SO_BINDTOIFINDEX is set.
#[inline(always)]
pub fn is_bound_to_device(ctx: &SockAddrContext) -> bool {
    // SAFETY: the context is valid for the run of the program, and so is its socket.
    unsafe {
        let socket = (*ctx.sock_addr).__bindgen_anon_1.sk;
        !socket.is_null() && ptr::read_volatile(&raw const (*socket).bound_dev_if) != 0
    }
}

/// Who makes a socket. Helpers: Linux 4.18 and 5.7.
#[inline(always)]
pub fn socket_caller(ctx: &SockContext) -> Caller {
    // SAFETY: both helpers are allowed in these programs; the context is the program's own.
    unsafe {
        Caller {
            cgroup_id: bpf_get_current_cgroup_id(),
            netns_cookie: bpf_get_netns_cookie(ctx.as_ptr()),
        }
    }
}

/// Type and protocol of a new socket, as passed to socket(2).
#[inline(always)]
pub fn socket_kind(ctx: &SockContext) -> (u32, u32) {
    // SAFETY: the context is valid for the run of the program.
    unsafe {
        (
            ptr::read_volatile(&raw const (*ctx.sock).type_),
            ptr::read_volatile(&raw const (*ctx.sock).protocol),
        )
    }
}

/// cgroup id of the packet's socket. Linux 4.18.
#[inline(always)]
pub fn skb_cgroup_id(ctx: &SkBuffContext) -> u64 {
    // SAFETY: allowed in cgroup_skb; the context is the program's own.
    unsafe { bpf_skb_cgroup_id(ctx.skb.skb) }
}

/// `SO_COOKIE` of the packet's socket; for packets that come in, of the one that they are for.
#[inline(always)]
pub fn skb_socket_cookie(ctx: &SkBuffContext) -> u64 {
    // SAFETY: allowed in cgroup_skb; the context is the program's own.
    unsafe { bpf_get_socket_cookie(ctx.skb.skb.cast()) }
}

/// The packet's socket; null when there is no full one.
#[inline(always)]
pub fn skb_socket(ctx: &SkBuffContext) -> *mut bpf_sock {
    // SAFETY: the context is valid for the run of the program; the helper takes what it holds
    // once it is known not to be null (Linux 5.1).
    unsafe {
        let socket = (*ctx.skb.skb).__bindgen_anon_2.sk;
        if socket.is_null() {
            socket
        } else {
            bpf_sk_fullsock(socket)
        }
    }
}

/// Whether a raw socket sends the packet: it may then hold anything.
#[inline(always)]
pub fn skb_is_from_raw_socket(ctx: &SkBuffContext) -> bool {
    let socket = skb_socket(ctx);
    // SAFETY: a full socket, alive while the program runs.
    !socket.is_null() && unsafe { ptr::read_volatile(&raw const (*socket).type_) } == SOCK_RAW
}

/// The packet of a cgroup_skb run, which begins with its IP header; `None` when it is none.
#[inline(always)]
pub fn skb_packet(ctx: &SkBuffContext) -> Option<Packet> {
    let skb = ctx.skb.skb;
    let load = |offset| load_bytes::<4>(skb, offset);
    match load(0)?[0] >> 4 {
        IPV4 => Some(Packet::v4(load_bytes::<HEADER4>(skb, 0)?, load)),
        IPV6 => Some(Packet::v6(load_bytes::<HEADER6>(skb, 0)?, load)),
        _ => None,
    }
}

/// The IPv4 packet of a tc run. A frame whose header cannot be read counts as beginning a flow to
/// nowhere.
#[inline(always)]
pub fn tc_packet4(ctx: &TcContext) -> Option<Packet> {
    let skb = ctx.skb.skb;
    match load_relative::<HEADER4>(skb, 0) {
        Some(header) => Some(Packet::v4(header, |offset| load_relative::<4>(skb, offset))),
        None => Some(Packet::opaque((Address::NONE, Address::NONE), 0)),
    }
}

/// The IPv6 packet of a tc run; as [`tc_packet4`].
#[inline(always)]
pub fn tc_packet6(ctx: &TcContext) -> Option<Packet> {
    let skb = ctx.skb.skb;
    match load_relative::<HEADER6>(skb, 0) {
        Some(header) => Some(Packet::v6(header, |offset| load_relative::<4>(skb, offset))),
        None => Some(Packet::opaque((Address::NONE, Address::NONE), 0)),
    }
}

/// Index of the interface that the frame came in by.
#[inline(always)]
pub fn tc_interface(ctx: &TcContext) -> u32 {
    // SAFETY: the context is valid for the run of the program.
    unsafe { ptr::read_volatile(&raw const (*ctx.skb.skb).ifindex) }
}

/// Ethernet type in network byte order.
#[inline(always)]
pub fn tc_protocol(ctx: &TcContext) -> u32 {
    // SAFETY: the context is valid for the run of the program.
    unsafe { ptr::read_volatile(&raw const (*ctx.skb.skb).protocol) }
}

#[inline(always)]
fn load_bytes<const N: usize>(skb: *mut __sk_buff, offset: u32) -> Option<[u8; N]> {
    let mut octets = [0; N];
    // SAFETY: the helper writes N octets, or fails.
    let result =
        unsafe { bpf_skb_load_bytes(skb.cast(), offset, octets.as_mut_ptr().cast(), N as u32) };
    (result == 0).then_some(octets)
}

/// From the network header, whatever stands before it.
#[inline(always)]
fn load_relative<const N: usize>(skb: *mut __sk_buff, offset: u32) -> Option<[u8; N]> {
    let mut octets = [0; N];
    // SAFETY: as above.
    let result = unsafe {
        bpf_skb_load_bytes_relative(
            skb.cast(),
            offset,
            octets.as_mut_ptr().cast(),
            N as u32,
            BPF_HDR_START_NET,
        )
    };
    (result == 0).then_some(octets)
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
