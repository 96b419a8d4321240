// SPDX-License-Identifier: Apache-2.0
//! Host names and wildcards, as Istio compares them. Most specific first.

/// A host as written in `hosts`, valid and lower-cased.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum HostPattern {
    /// A full name or an IP address in text form; no trailing dot.
    Exact(String),
    /// `*SUFFIX`: any name that ends in the text after the star and is longer (`*.foo.com` holds
    /// `.foo.com`; istio `pkg/config/host/name.go`).
    Suffix(String),
    /// `*`.
    Any,
}
