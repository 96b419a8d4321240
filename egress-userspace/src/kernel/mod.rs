// SPDX-License-Identifier: Apache-2.0
//! The kernel half as user space holds it: programs, maps, links, original destinations.
//! Reads snapshots; never decides by name.

pub mod original_dst;
