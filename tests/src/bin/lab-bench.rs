// SPDX-License-Identifier: Apache-2.0
//! `lab-bench`: the measurements of [`lab::bench`], as a Markdown table; what `cargo xtask bench`
//! runs.

use std::path::PathBuf;

use anyhow::{Result, ensure};
use clap::Parser;
use lab::bench::{Options, Peer, run, table};

/// Measures CPU per request of `egress node` and, when asked, of other proxies.
#[derive(Debug, Parser)]
struct Arguments {
    /// Measure HAProxy and nginx, too.
    #[arg(long)]
    peers: bool,
    /// Measure Envoy, too: its program.
    #[arg(long, value_name = "PATH")]
    envoy: Option<PathBuf>,
    /// Measurements of each proxy and case.
    #[arg(long, default_value_t = 5)]
    rounds: usize,
    /// Seconds per measurement.
    #[arg(long, default_value_t = 4)]
    seconds: u64,
    /// Connections of the client.
    #[arg(long, default_value_t = 32)]
    connections: usize,
}

fn main() -> Result<()> {
    let arguments = Arguments::parse();
    ensure!(
        nix::unistd::geteuid().is_root(),
        "capturing the client needs root (sudo)"
    );
    let mut peers = Vec::new();
    if arguments.peers {
        peers.extend([Peer::Haproxy, Peer::Nginx]);
    }
    if arguments.envoy.is_some() {
        peers.push(Peer::Envoy);
    }
    let options = Options {
        peers,
        rounds: arguments.rounds,
        seconds: arguments.seconds,
        connections: arguments.connections,
        envoy: arguments.envoy,
    };
    let samples = run(&options)?;
    print!("{}", table(&samples));
    Ok(())
}
