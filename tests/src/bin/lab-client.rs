// SPDX-License-Identifier: Apache-2.0
//! `lab-client`: the application of [`lab::client`] as a process.

use std::{
    io::stdin,
    net::SocketAddr,
    sync::atomic::{AtomicBool, Ordering},
    thread,
};

use anyhow::{Context, Result};
use clap::Parser;
use lab::{
    client::{Load, Request, get, persist, send, streams},
    mixed::{self, Target},
};

/// An application that sends HTTP requests and tells what it saw, as JSON.
#[derive(Debug, Parser)]
enum Arguments {
    /// One request.
    Get {
        /// Where to connect.
        address: SocketAddr,
        /// Host header.
        #[arg(long)]
        host: String,
        /// Path.
        #[arg(long, default_value = "/get")]
        path: String,
        /// Print `waiting` and wait for a line on standard input before connecting.
        #[arg(long)]
        wait: bool,
    },
    /// Many requests: `--count` of them, or until standard input ends.
    Load {
        /// Where to connect, taken in turn.
        #[arg(required = true)]
        addresses: Vec<SocketAddr>,
        /// Host header.
        #[arg(long)]
        host: String,
        /// Path.
        #[arg(long, default_value = "/get")]
        path: String,
        /// Threads.
        #[arg(long, default_value_t = 4)]
        threads: usize,
        /// Requests.
        #[arg(long)]
        count: Option<usize>,
        /// Keep connections.
        #[arg(long)]
        keep_alive: bool,
        /// Accept an answer of another server than the one asked.
        #[arg(long)]
        any_server: bool,
    },
    /// Connects again and again until it works.
    Persist {
        /// Where to connect.
        address: SocketAddr,
    },
    /// Many requests over short and kept connections, each answer checked.
    Mixed {
        /// `HOST@ADDRESS:PORT`, taken in turn.
        #[arg(required = true)]
        targets: Vec<Target>,
        /// Path; it has a query.
        #[arg(long)]
        path: String,
        /// Requests.
        #[arg(long)]
        count: usize,
    },
    /// Every URL at once over one HTTP/2 connection.
    Streams {
        /// Where to connect.
        address: SocketAddr,
        /// What to get.
        #[arg(required = true)]
        urls: Vec<String>,
    },
}

fn main() -> Result<()> {
    let report = match Arguments::parse() {
        Arguments::Get {
            address,
            host,
            path,
            wait,
        } => {
            if wait {
                println!("waiting");
                stdin().read_line(&mut String::new()).context("waiting")?;
            }
            get(&Request {
                address,
                host,
                path,
            })?
        }
        Arguments::Load {
            addresses,
            host,
            path,
            threads,
            count,
            keep_alive,
            any_server,
        } => {
            let load = Load {
                addresses,
                host,
                path,
                threads,
                keep_alive,
            };
            load_until_told(&load, count, any_server)
        }
        Arguments::Persist { address } => persist(address)?,
        Arguments::Mixed {
            targets,
            path,
            count,
        } => mixed::send(&targets, &path, count),
        Arguments::Streams { address, urls } => {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()
                .context("starting the runtime")?;
            runtime.block_on(streams(address, &urls))?
        }
    };
    println!("{report}");
    Ok(())
}

fn load_until_told(load: &Load, count: Option<usize>, any_server: bool) -> serde_json::Value {
    let stop = AtomicBool::new(false);
    thread::scope(|scope| {
        if count.is_none() {
            scope.spawn(|| {
                // An error ends the wait as well as the end of input does.
                let _ = std::io::copy(&mut stdin(), &mut std::io::sink());
                stop.store(true, Ordering::Relaxed);
            });
        }
        println!("sending");
        send(load, count, any_server, &stop)
    })
}
