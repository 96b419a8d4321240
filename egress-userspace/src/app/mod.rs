// SPDX-License-Identifier: Apache-2.0
//! Wiring: the command line to a running process. What starts in which order and what stops in
//! which order stands in [`node`] and [`gateway`]; the commands that end by themselves in
//! [`tools`]. Decides nothing about traffic.

mod caller;
mod denials;
mod enforce;
mod gateway;
mod logging;
mod node;
mod pods;
mod proxying;
mod tools;

use std::process::ExitCode;

use clap::Parser;

use crate::cli::{Cli, Command};

/// The thing asked about is bad.
const EXIT_BAD: u8 = 1;
/// Usage or environment error.
const EXIT_USAGE: u8 = 2;

/// Runs the command line; the only place that prints an error and chooses the exit status
/// (cli-contract: 0 done, 1 the thing asked about is bad, 2 usage or environment error).
pub fn main() -> ExitCode {
    let cli = Cli::parse();
    match run(cli) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::from(EXIT_BAD),
        Err(error) if is_broken_pipe(&error) => ExitCode::SUCCESS,
        Err(error) => {
            // `{:#}` prints the chain of causes on one line.
            eprintln!("error: {}", format!("{error:#}").replace('\n', " "));
            ExitCode::from(EXIT_USAGE)
        }
    }
}

/// `Ok(false)`: it ran, and what was asked about is bad.
fn run(cli: Cli) -> anyhow::Result<bool> {
    match cli.command {
        Command::Node(args) => {
            let filter = logging::install(&cli.log)?;
            node::run(&args, filter).map(|()| true)
        }
        Command::Gateway(args) => {
            let filter = logging::install(&cli.log)?;
            gateway::run(&args, filter).map(|()| true)
        }
        Command::Validate(args) => tools::validate(&args),
        Command::Explain(args) => tools::explain(&args),
        Command::Status(args) => tools::status(&args),
        Command::Dump(args) => tools::dump(&args),
    }
}

/// A reader that has gone (`egress dump | head`) is no failure of ours.
fn is_broken_pipe(error: &anyhow::Error) -> bool {
    error.chain().any(|cause| {
        cause
            .downcast_ref::<std::io::Error>()
            .is_some_and(|e| e.kind() == std::io::ErrorKind::BrokenPipe)
    })
}
