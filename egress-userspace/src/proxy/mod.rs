// SPDX-License-Identifier: Apache-2.0
//! Accepted sockets: detect, ask `routing`, carry out the decision, record it.

pub mod access_log;
