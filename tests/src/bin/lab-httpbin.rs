// SPDX-License-Identifier: Apache-2.0
//! `lab-httpbin`: the HTTP server of [`lab::httpbin`] as a process.

use std::net::SocketAddr;

use clap::Parser;

/// An HTTP/1.1 server that answers like httpbin.org.
#[derive(Debug, Parser)]
struct Arguments {
    /// Address to listen on; repeatable.
    #[arg(long = "bind", value_name = "IP:PORT", required = true)]
    addresses: Vec<SocketAddr>,
}

fn main() -> anyhow::Result<()> {
    lab::httpbin::run(lab::httpbin::serve(&Arguments::parse().addresses))
}
