// SPDX-License-Identifier: Apache-2.0
//! `run`: the tutorial's scenario in network namespaces, or the program with arguments of one's
//! own.

use std::{os::unix::process::CommandExt, path::PathBuf, process::Command};

use anyhow::{Context, Result};

use crate::{build, execute, root, shown, target_dir};

/// Flags of `run`.
#[derive(Debug, clap::Args)]
pub struct Arguments {
    /// Exit after the scenario's first request; status 0 if and only if both hops carried it.
    #[arg(long, conflicts_with = "egress")]
    once: bool,
    /// Run `egress` with these arguments instead of the scenario.
    #[arg(last = true, value_name = "EGRESS ARGUMENTS")]
    egress: Vec<String>,
}

/// Builds, then becomes the scenario or the program; returns only when that fails.
pub fn run(arguments: &Arguments) -> Result<()> {
    let egress = build::run(&build::Arguments { release: false })?;
    let mut command = if arguments.egress.is_empty() {
        let mut scenario = Command::new(lab_binaries()?.join("lab-scenario"));
        scenario.env("EGRESS_BIN", &egress);
        if arguments.once {
            scenario.arg("--once");
        }
        scenario
    } else {
        let mut program = Command::new(&egress);
        program.args(&arguments.egress);
        program
    };
    eprintln!("+ {}", shown(&command));
    // In this process's place, so that Ctrl-C and the exit status are the program's own.
    Err(command.exec()).with_context(|| format!("running {}", shown(&command)))
}

/// Builds the lab's binaries; the directory they are in.
pub fn lab_binaries() -> Result<PathBuf> {
    let mut command = Command::new("cargo");
    command
        .current_dir(root()?)
        .args(["build", "--package", "egress-tests", "--bins"]);
    execute(&mut command)?;
    Ok(target_dir()?.join("debug"))
}
