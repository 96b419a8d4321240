// SPDX-License-Identifier: Apache-2.0
//! Names to addresses, addresses to sockets, sockets to reusable HTTP connections.

pub mod connect;
pub mod endpoint;
pub mod pool;
pub mod preface;
pub mod resolve;
