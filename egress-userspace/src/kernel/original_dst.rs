// SPDX-License-Identifier: Apache-2.0
//! The original destination of an accepted socket, and who asked for it.

use std::{net::SocketAddr, sync::Arc};

use crate::workload::Workload;

/// Where an application wanted to go before the kernel redirected it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct OriginalDestination(pub SocketAddr);

/// What the kernel recorded for one redirected connection.
#[derive(Debug, Clone)]
pub struct Capture {
    /// Where it was going.
    pub destination: OriginalDestination,
    /// cgroup id of the caller at `connect()`.
    pub cgroup_id: u64,
    /// Cookie of the caller's network namespace.
    pub netns_cookie: u64,
    /// Who it is, when known.
    pub workload: Option<Arc<Workload>>,
}
