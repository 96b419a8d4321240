// SPDX-License-Identifier: Apache-2.0
//! Configuration end to end: source → parse → validate → snapshot. Yields one watch channel of
//! snapshots; knows `routing`, nothing of the kernel or the proxy.

pub mod mesh;
pub mod problem;
pub mod snapshot;
