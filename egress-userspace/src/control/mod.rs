// SPDX-License-Identifier: Apache-2.0
//! The local admin server: readiness, metrics, dumps; and its client for `egress status` and
//! `egress dump`.
//!
//! Stands beside both flows and reads what they publish ([`state::AdminState`]); it decides
//! nothing. Runs on the control runtime, so a slow scrape never holds up a worker.

pub mod client;
pub mod dump;
pub mod metrics;
pub mod server;
pub mod state;
pub mod status;
pub mod table;
#[cfg(test)]
mod tests;

pub use server::{Admin, AdminError};
pub use state::{AdminState, Denial, KernelState, Readiness};
