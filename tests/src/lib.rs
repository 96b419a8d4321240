// SPDX-License-Identifier: Apache-2.0
//! The lab: a small internet inside network namespaces, for the end-to-end tests and for
//! `cargo xtask run`.
//!
//! Modules from the ground up:
//! - [`netns`], [`cgroup`], [`process`]: what the kernel gives; each thing is gone when dropped.
//! - [`httpbin`], [`dns`]: the servers of the outside world (binaries `lab-httpbin`, `lab-dns`).
//! - [`client`]: an application in a pod, where curl says too little (binary `lab-client`);
//!   [`mixed`]: one that is never content with one connection.
//! - [`mod@bypass`]: an application that tries one way around a capture (binary `lab-bypass`), with
//!   [`packet`]s made by hand; [`sink`]: what arrives outside, packet by packet (binary `lab-sink`).
//! - [`net`]: namespaces pod, node, gateway and external, wired together, servers running.
//! - [`container`]: real containers in those namespaces, by runc.
//! - [`node`], [`gateway`]: the two hops, as the `egress` binary runs them; [`access_line`] reads
//!   what they log.
//! - [`scenario`]: the tutorial from start to end (binary `lab-scenario`).
//! - [`mod@bench`]: CPU per request beside other proxies (binary `lab-bench`).
//!
//! Knows `egress` only from outside: flags, output, HTTP, pins. Uses none of its code.

pub mod access_line;
pub mod bench;
pub mod bypass;
pub mod cgroup;
pub mod client;
pub mod container;
pub mod dns;
pub mod gateway;
pub mod hop;
pub mod httpbin;
pub mod mixed;
pub mod net;
pub mod netns;
pub mod node;
pub mod packet;
pub mod process;
pub mod scenario;
pub mod sink;
mod sockopt;

use std::{
    env,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, bail};

/// The `egress` binary: `EGRESS_BIN`, else beside this program.
///
/// # Errors
/// When there is none.
pub fn egress_binary() -> Result<PathBuf> {
    match env::var_os("EGRESS_BIN") {
        Some(path) => Ok(PathBuf::from(path)),
        None => binary("egress"),
    }
}

/// A binary of this workspace, found beside this program (cargo puts tests into `deps/` below it).
///
/// # Errors
/// When it has not been built.
pub fn binary(name: &str) -> Result<PathBuf> {
    let own = env::current_exe().context("finding this program's own path")?;
    let found = own
        .ancestors()
        .skip(1)
        .take(2)
        .map(|directory| directory.join(name))
        .find(|path| path.is_file());
    match found {
        Some(path) => Ok(path),
        None => bail!(
            "{name} is not beside {}: build it first (`cargo xtask test` and `cargo xtask run` do)",
            own.display()
        ),
    }
}

/// `examples/` of this repository.
pub fn examples() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../examples")
}
