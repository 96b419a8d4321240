// SPDX-License-Identifier: MIT OR GPL-2.0-only
//! The original destination: recorded in socket storage at connect(), published by tuple just
//! before the SYN leaves.

use core::ptr;

use aya_ebpf::{
    bindings::{BPF_SOCK_OPS_TCP_CONNECT_CB, bpf_sock},
    helpers::generated::{bpf_sk_storage_delete, bpf_sk_storage_get},
    programs::{SkBuffContext, SockAddrContext, SockOpsContext},
};
use egress_common::{
    counters::{Outcome, Program},
    original_dst::{OriginalDstKey, SocketRecord},
};

use crate::{
    context,
    counters::count,
    maps::{ORIGINAL_DST, SOCKETS},
};

/// sock_ops programs return 1 unless they set a reply.
const SOCKOPS_RETURN: u32 = 1;

/// Records on the socket; an earlier record (the socket connects again) is replaced. False when
/// the kernel has no memory for it.
#[inline(always)]
pub fn record(ctx: &SockAddrContext, mut record: SocketRecord) -> bool {
    // SAFETY: storage of the context's own socket; the verifier checks the null test.
    unsafe {
        let stored = SOCKETS.get_or_insert_ptr_mut(ctx, Some(&mut record));
        if stored.is_null() {
            return false;
        }
        *stored = record;
    }
    true
}

/// Removes what an earlier connect() of the same socket recorded.
#[inline(always)]
pub fn forget(ctx: &SockAddrContext) {
    // SAFETY: storage of the context's own socket. The result is of no interest: most sockets
    // have no record.
    unsafe {
        let socket = (*ctx.sock_addr).__bindgen_anon_1.sk;
        bpf_sk_storage_delete((&raw const SOCKETS).cast_mut().cast(), socket.cast());
    }
}

/// The record of a context's socket, when it was redirected.
#[inline(always)]
pub fn recorded(ctx: &SockAddrContext) -> Option<&SocketRecord> {
    // SAFETY: storage of the context's own socket, alive while the program runs.
    unsafe { SOCKETS.get_ptr_mut(ctx).as_ref() }
}

/// The record of a context's socket, which may be null; it lives while the program runs.
#[inline(always)]
fn record_of<'a>(socket: *mut bpf_sock) -> Option<&'a SocketRecord> {
    if socket.is_null() {
        return None;
    }
    // SAFETY: storage of a full socket of the program's context; not created when absent.
    unsafe {
        let map = (&raw const SOCKETS).cast_mut().cast();
        bpf_sk_storage_get(map, socket.cast(), ptr::null_mut(), 0)
            .cast::<SocketRecord>()
            .as_ref()
    }
}

/// Whether the packet's socket was let go by the failure policy.
#[inline(always)]
pub fn is_approved(ctx: &SkBuffContext) -> bool {
    record_of(context::skb_socket(ctx)).is_some_and(SocketRecord::is_approved)
}

/// `egress_sockops`: at TCP_CONNECT_CB (Linux 4.13) the source port is known and the SYN has not
/// been sent, so the entry is there before the proxy can accept.
#[inline(always)]
pub fn sockops(ctx: &SockOpsContext) -> u32 {
    if ctx.op() == BPF_SOCK_OPS_TCP_CONNECT_CB {
        count(Program::SockOps, publish(ctx));
    }
    SOCKOPS_RETURN
}

#[inline(always)]
fn publish(ctx: &SockOpsContext) -> Outcome {
    let Some(record) = record_of(context::sockops_socket(ctx)) else {
        return Outcome::NotRedirected;
    };
    let redirect = context::sockops_remote(ctx);
    if redirect != (record.redirect_address, record.redirect_port) {
        return Outcome::NotRedirected;
    }
    let key = OriginalDstKey::new(
        record.original.netns_cookie,
        context::sockops_local(ctx),
        redirect,
    );
    match ORIGINAL_DST.insert(key, record.original, 0) {
        Ok(()) => Outcome::Published,
        Err(_) => Outcome::PublishFailed,
    }
}
