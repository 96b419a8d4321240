// SPDX-License-Identifier: Apache-2.0
//! The routing decision: pure functions over an immutable table. No I/O, no async, no clock, no
//! randomness of its own.
//!
//! The model ([`service`], [`gateway`], [`virtual_service`]) holds valid values only; it is built
//! by `config::validate`. [`table`] compiles it for one proxy and answers every question with one
//! plain [`decision::Decision`], which the proxy carries out and `egress explain` prints.

mod carry_out;
pub mod decision;
mod delegate;
pub mod destination_rule;
pub mod gateway;
mod gateway_side;
pub mod header_text;
pub mod host;
pub mod matching;
mod mesh_side;
pub mod registry;
pub mod retry;
mod rule_index;
pub mod rules;
pub mod service;
pub mod sidecar;
pub mod table;
pub mod virtual_service;
