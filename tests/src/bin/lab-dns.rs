// SPDX-License-Identifier: Apache-2.0
//! `lab-dns`: the DNS server of [`lab::dns`] as a process.

use std::{net::SocketAddr, path::PathBuf};

use clap::Parser;
use lab::dns::{Entry, Zone};

/// An authoritative DNS server for a few names.
#[derive(Debug, Parser)]
struct Arguments {
    /// Address to listen on, UDP and TCP.
    #[arg(long, value_name = "IP:PORT")]
    bind: SocketAddr,
    /// More records, one `NAME=IP[,IP]` per line, read at every query.
    #[arg(long, value_name = "FILE")]
    records: Option<PathBuf>,
    /// Time to live of every answer, in seconds.
    #[arg(long, default_value_t = 1)]
    ttl: u32,
    /// Records.
    #[arg(value_name = "NAME=IP[,IP]")]
    entries: Vec<Entry>,
}

fn main() -> anyhow::Result<()> {
    let arguments = Arguments::parse();
    let zone = Zone {
        entries: arguments.entries,
        file: arguments.records,
        ttl: arguments.ttl,
    };
    lab::httpbin::run(lab::dns::serve(arguments.bind, zone))
}
