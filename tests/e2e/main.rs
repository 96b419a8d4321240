// SPDX-License-Identifier: Apache-2.0
//! End-to-end tests: the `egress` binary on the running kernel, in networks made for each test.
//!
//! `cargo xtask test` runs them, as root. Each test has namespaces, cgroups and a pin directory of
//! its own, so they run side by side.

#![allow(
    clippy::unwrap_used,
    reason = "a test that cannot go on fails, with the error it met"
)]

mod network;

use std::io::Write;

use lab::net::Net;

/// A network for the test, or `None`, with a message, when the caller may not make one.
///
/// # Panics
/// When the machine lacks something, and under CI also when the caller is not root.
fn net(test: &str) -> Option<Net> {
    if nix::unistd::geteuid().is_root() {
        return Some(Net::new(test).unwrap_or_else(|error| panic!("building the lab: {error:#}")));
    }
    let ci = std::env::var("CI").is_ok_and(|value| value == "true");
    assert!(!ci, "{test} needs root, and under CI every test must run");
    // Not captured by the test harness, unlike eprintln.
    let _ = writeln!(std::io::stderr(), "NOT RUN: {test} needs root");
    None
}
