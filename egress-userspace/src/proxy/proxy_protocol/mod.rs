// SPDX-License-Identifier: Apache-2.0
//! Who is calling, told from node to gateway: a PROXY protocol header, version 2 (HAProxy's
//! proxy-protocol.txt, section 2.2), at the start of a connection.
//!
//! The node writes it ([`encode()`]) to the hosts named by `--proxy-protocol-to`; the gateway takes
//! it ([`receive()`]) from the addresses named by `--trust-proxy`. Source is the caller's address,
//! destination the original destination. The source port is the caller's where the connection is
//! one caller's own (TCP, TLS), 0 where several requests share it (HTTP). The caller's name is in
//! four TLVs of the range for custom use ([`Tlv`]). Version 1, the text form, is not spoken. Does
//! not decide whom to trust or to tell.

mod encode;
mod parse;
mod receive;

pub use encode::encode;
pub use parse::{BadHeader, Parsed, begins, parse};
pub use receive::{Received, receive};

use std::{
    net::{IpAddr, SocketAddr},
    sync::Arc,
};

use ipnet::IpNet;

use crate::workload::Workload;

/// The twelve bytes that a header begins with; no other known protocol begins with them.
pub const SIGNATURE: &[u8; 12] = b"\r\n\r\n\0\r\nQUIT\n";

/// Signature, version and command, family and protocol, length of the rest.
const FIXED: usize = SIGNATURE.len() + 4;

/// Longest header that is sent. What of the caller's name does not fit is left out: labels first.
pub const MAX_SENT: usize = 4 * 1024;

/// Longest header that is taken. Other senders add TLS certificates.
pub const MAX_TAKEN: usize = 16 * 1024;

/// Why a connection is refused: it began with a header, and its sender is not trusted.
pub const REFUSED_UNTRUSTED: &str = "untrusted_proxy";

/// Why a connection is refused: its sender is trusted, and its header is broken.
pub const REFUSED_BAD: &str = "bad_proxy_header";

/// Types of the values that name the caller, from PP2_TYPE_MIN_CUSTOM (0xE0) on; text in UTF-8.
/// Unknown ones are left out, so an empty value never occurs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Tlv {
    /// Namespace.
    Namespace = 0xE0,
    /// Workload (pod or unit) name.
    Workload = 0xE1,
    /// Service account name, without namespace.
    ServiceAccount = 0xE2,
    /// Labels: `key=value`, sorted by key, joined by line feeds.
    Labels = 0xE3,
}

/// Addresses whose headers are believed.
#[derive(Debug, Clone)]
pub struct Trusted(Arc<[IpNet]>);

impl Trusted {
    /// Those of some networks; none: nobody.
    pub fn new(networks: &[IpNet]) -> Self {
        Self(networks.into())
    }

    /// Whether headers from there are believed. No v4-mapped addresses.
    pub fn contains(&self, ip: IpAddr) -> bool {
        self.0.iter().any(|network| network.contains(&ip))
    }
}

/// What a header tells.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Caller {
    /// Its address; port 0 on connections that several requests share.
    pub source: SocketAddr,
    /// Where it wanted to go.
    pub destination: SocketAddr,
    /// Its name, when the sender knows it.
    pub workload: Option<Workload>,
}

#[cfg(test)]
mod tests;
