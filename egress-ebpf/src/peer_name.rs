// SPDX-License-Identifier: MIT OR GPL-2.0-only
//! getpeername(): the application sees the address that it asked for. Linux 5.8.
//!
//! The hooks also run for sockets that were never redirected and inside accept(); they change
//! nothing there, since only a redirected socket has a record.

use aya_ebpf::programs::SockAddrContext;
use egress_common::{
    address::{Address, Address4},
    counters::{Outcome, Program},
};

use crate::{context, counters::count, original_dst};

/// The result of getpeername() cannot be denied.
const ALLOW: i32 = 1;

/// `egress_getpeername4`.
#[inline(always)]
pub fn getpeername4(ctx: &SockAddrContext) -> i32 {
    let peer = Address::from_v4(context::user_address4(ctx));
    let outcome = match original_dst::recorded(ctx) {
        Some(record)
            if (peer, context::user_port(ctx))
                == (record.redirect_address, record.redirect_port) =>
        {
            let [.., a, b, c, d] = record.original.address.octets;
            let octets = [a, b, c, d];
            context::set_user4(ctx, Address4 { octets }, record.original.port);
            Outcome::Restored
        }
        _ => Outcome::NotRedirected,
    };
    count(Program::GetPeerName4, outcome);
    ALLOW
}

/// `egress_getpeername6`.
#[inline(always)]
pub fn getpeername6(ctx: &SockAddrContext) -> i32 {
    let peer = Address::from_v6(context::user_address6(ctx));
    let outcome = match original_dst::recorded(ctx) {
        Some(record)
            if (peer, context::user_port(ctx))
                == (record.redirect_address, record.redirect_port) =>
        {
            context::set_user6(ctx, record.original.address, record.original.port);
            Outcome::Restored
        }
        _ => Outcome::NotRedirected,
    };
    count(Program::GetPeerName6, outcome);
    ALLOW
}
