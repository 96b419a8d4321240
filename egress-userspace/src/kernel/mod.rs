// SPDX-License-Identifier: Apache-2.0
//! The kernel half as user space holds it: programs, maps, links, original destinations.
//! Reads snapshots; never decides by name.
//!
//! In the order of a start: `bpffs` makes the place for the pins and owns it, `loader` loads
//! the programs over the maps, `attach` links them to cgroups, [`redirect`] says which
//! destinations are ours and `destinations` brings the maps to that state. From then on
//! [`original_dst`] answers for every accepted socket, with [`cgroups`] naming the workload.
//! [`capture::Capture`] is all of it as one value.

mod attach;
mod bpffs;
pub mod capture;
pub mod cgroups;
pub mod counters;
mod destinations;
pub mod dump;
pub mod error;
mod loader;
pub mod original_dst;
pub mod redirect;
mod syscall;

#[cfg(test)]
mod tests;

pub use capture::{Capture, CaptureSettings, FailurePolicy};
pub use cgroups::Workloads;
pub use counters::{CounterReader, CounterReading};
pub use dump::dump_maps;
pub use error::KernelError;
pub use loader::PROGRAMS;
pub use original_dst::OriginalDestinations;
pub use redirect::{DestinationPlan, names_to_capture, plan};
