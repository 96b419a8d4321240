// SPDX-License-Identifier: Apache-2.0
//! The contract between egress's kernel programs and its user space.
//!
//! Every structure here lies in a kernel map and is compiled twice: for the kernel programs
//! (`bpfel-unknown-none`) and for the agent. Hence the rules: `repr(C)`, no implicit padding (map
//! keys are compared bytewise), explicit padding is zero, and addresses and ports are in network
//! byte order, which their types in [`address`] state. Change a structure, its meaning or a map's
//! type and [`maps::LAYOUT_VERSION`] goes up by one.
//!
//! Who writes and who reads:
//! - [`redirect::Settings`], [`redirect::DestinationKey4`] and its siblings: the agent writes,
//!   `connect4`/`connect6` read.
//! - [`original_dst::SocketRecord`]: `connect4`/`connect6` write; sock_ops and getpeername read.
//! - [`original_dst::OriginalDstKey`]/[`original_dst::OriginalDst`]: sock_ops writes; the proxy
//!   takes the entry out when it accepts.
//! - [`workload::WorkloadKey`]/[`workload::WorkloadEntry`]: the agent writes, every program that
//!   decides reads.
//! - [`event::Event`]: programs write, the agent reads, in the order of writing.
//! - [`counters`]: every program writes, metrics read.
//! - [`maps::AgentIdentity`]: the agent asks, the identity program answers.
//!
//! Decisions that need no kernel helper live here as plain functions, so that they are tested on
//! the host. This crate makes no system call and knows nothing of host names.
#![no_std]

pub mod address;
pub mod counters;
pub mod event;
pub mod maps;
pub mod original_dst;
pub mod packet;
pub mod redirect;
pub mod workload;

#[cfg(test)]
mod layout_tests;
