// SPDX-License-Identifier: Apache-2.0
//! `lab-bypass`: the application of [`lab::bypass`] as a process.

use clap::Parser;

/// Tries one way out of the machine and says, as one JSON line, how the kernel answered.
#[derive(Debug, Parser)]
struct Arguments {
    #[command(flatten)]
    attempt: lab::bypass::Attempt,
}

fn main() -> anyhow::Result<()> {
    if let Some(report) = lab::bypass::run(&Arguments::parse().attempt)? {
        println!("{report}");
    }
    Ok(())
}
