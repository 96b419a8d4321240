// SPDX-License-Identifier: Apache-2.0
//! The kernel half as user space holds it: programs, maps, links, original destinations.
//! Reads snapshots; never decides by name.
//!
//! In the order of a start: `bpffs` makes the place for the pins and owns it, `loader` loads
//! the programs over the maps, `attach` links them to cgroups, [`redirect`] says which
//! destinations are ours and `destinations` brings the maps to that state; [`namespaces`] finds the
//! pods, and `heartbeat` shows that the agent is alive. From then on [`original_dst`] answers for
//! every accepted socket, with [`pods`] and [`cgroups`] naming the workload, and [`events`] tells
//! what was refused.
//! [`capture::Capture`] is all of it as one value.

mod attach;
mod bpffs;
pub mod capture;
pub mod cgroups;
pub mod counters;
mod destinations;
pub mod dump;
pub mod error;
pub mod events;
pub mod features;
mod heartbeat;
mod loader;
pub mod namespaces;
pub mod netlink;
pub mod original_dst;
pub mod pods;
pub mod redirect;
mod settings;
pub mod sever;
mod syscall;
pub mod watch;

#[cfg(test)]
mod tests;

pub use capture::{Capture, CaptureSettings, FailurePolicy};
pub use cgroups::Workloads;
pub use counters::{CounterReader, CounterReading};
pub use dump::dump_maps;
pub use error::KernelError;
pub use loader::PROGRAMS;
pub use original_dst::OriginalDestinations;
pub use pods::{Pod, Pods};
pub use redirect::{Allowances, DestinationPlan, names_to_capture, plan};
pub use settings::outbound_number;
