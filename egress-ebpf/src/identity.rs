// SPDX-License-Identifier: MIT OR GPL-2.0-only
//! Tells the agent who it is, in the kernel's own terms.
//!
//! The agent cannot learn its cgroup id from `/proc`, which lies inside cgroup namespaces. It
//! names one of its sockets by cookie and connects it; this program answers for that socket only.

use aya_ebpf::programs::SockAddrContext;

use crate::{context, maps::AGENT_IDENTITY};

const ALLOW: i32 = 1;

/// `egress_identity`.
#[inline(always)]
pub fn answer(ctx: &SockAddrContext) -> i32 {
    if let Some(identity) = AGENT_IDENTITY.get_ptr_mut(0) {
        // SAFETY: the only element of an array map; the agent reads it after connect() returned.
        unsafe {
            if (*identity).socket_cookie != 0
                && (*identity).socket_cookie == context::socket_cookie(ctx)
            {
                (*identity).cgroup_id = context::caller(ctx).cgroup_id;
            }
        }
    }
    ALLOW
}
