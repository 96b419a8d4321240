// SPDX-License-Identifier: Apache-2.0
//! Accepted sockets: detect, ask `routing`, carry out the decision, record it.
//!
//! In reading order: [`worker`] (threads, listeners, drain), [`connection`] (one accepted socket
//! from start to end), [`proxy_protocol`] (whom a trusted proxy speaks for), [`detect`] and
//! [`client_hello`] (first bytes to protocol), [`http`] (one request), [`before`] and [`cors`],
//! [`mirror`], [`body`] (the request's), [`forward`] (to an upstream), [`retry`], [`translate`]
//! (HTTP/1.1 and HTTP/2), [`response`] (its body), [`exchange`] (what is recorded of it), [`tcp`]
//! (relay), [`open`] (what is open now), [`error`] (what the peer sees when it fails). Does not
//! read configuration and does not resolve names.

pub mod access_log;
pub mod before;
pub mod body;
pub mod client_hello;
pub mod connection;
pub mod copy;
pub mod cors;
pub mod detect;
pub mod error;
pub mod exchange;
pub mod forward;
pub mod headers;
pub mod http;
pub mod inside;
pub mod mirror;
pub mod open;
pub mod prefixed;
pub mod proxy_protocol;
pub mod response;
pub mod retry;
pub mod tcp;
pub mod translate;
pub mod worker;

pub use open::{Connections, OpenConnection};
pub use worker::{Downstream, Proxy, ProxyError, ProxySettings};
