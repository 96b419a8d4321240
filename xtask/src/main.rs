// SPDX-License-Identifier: Apache-2.0
//! The project's own commands: `cargo xtask COMMAND`. CI calls these and nothing else.
//!
//! One module per command; each prints what it executes.

mod bench;
mod build;
mod build_ebpf;
mod lint;
mod python;
mod run;
mod setup;
mod test;

use std::{
    path::{Path, PathBuf},
    process::{Command, ExitCode},
};

use anyhow::{Context, Result, bail};
use clap::{Parser, Subcommand};

/// The project's own commands.
#[derive(Debug, Parser)]
#[command(name = "cargo xtask")]
struct Arguments {
    #[command(subcommand)]
    command: Task,
}

#[derive(Debug, Subcommand)]
enum Task {
    /// Install whatever building and testing need; quick when nothing is missing.
    Setup,
    /// Build the kernel object alone and print its path.
    BuildEbpf,
    /// Build the program.
    Build(build::Arguments),
    /// Run the tutorial's scenario in network namespaces (root), or, after `--`, the program.
    Run(run::Arguments),
    /// Run the unit tests, then the end-to-end tests (root).
    Test(test::Arguments),
    /// Check formatting, clippy and documentation.
    Lint,
    /// Measure CPU per request, beside other proxies (root).
    Bench(bench::Arguments),
}

fn main() -> ExitCode {
    let result = match Arguments::parse().command {
        Task::Setup => setup::run(),
        Task::BuildEbpf => setup::run().and_then(|()| build::kernel_object()),
        Task::Build(arguments) => setup::run().and_then(|()| build::run(&arguments).map(drop)),
        Task::Run(arguments) => setup::run().and_then(|()| run::run(&arguments)),
        Task::Test(arguments) => setup::run().and_then(|()| test::run(&arguments)),
        Task::Lint => setup::run().and_then(|()| lint::run()),
        Task::Bench(arguments) => setup::run().and_then(|()| bench::run(&arguments)),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::from(2)
        }
    }
}

/// The workspace's directory.
fn root() -> Result<&'static Path> {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .parent()
        .context("xtask lies in the workspace")
}

/// The target directory, honouring CARGO_TARGET_DIR.
fn target_dir() -> Result<PathBuf> {
    let root = root()?;
    Ok(match std::env::var_os("CARGO_TARGET_DIR") {
        Some(directory) => root.join(directory),
        None => root.join("target"),
    })
}

/// Prints and executes a command; an error when it does not succeed.
fn execute(command: &mut Command) -> Result<()> {
    eprintln!("+ {}", shown(command));
    let status = command
        .status()
        .with_context(|| format!("running {}", shown(command)))?;
    if !status.success() {
        bail!("{} failed ({status})", shown(command));
    }
    Ok(())
}

/// A command as one would type it.
fn shown(command: &Command) -> String {
    let mut words: Vec<String> = command
        .get_envs()
        .filter_map(|(name, value)| {
            value.map(|value| {
                format!(
                    "{}={}",
                    name.to_string_lossy(),
                    quoted(&value.to_string_lossy())
                )
            })
        })
        .collect();
    words.push(command.get_program().to_string_lossy().into_owned());
    words.extend(
        command
            .get_args()
            .map(|argument| quoted(&argument.to_string_lossy())),
    );
    words.join(" ")
}

fn quoted(word: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_./=:,+".contains(c);
    if !word.is_empty() && word.chars().all(plain) {
        word.to_owned()
    } else {
        format!("'{}'", word.replace('\'', "'\\''"))
    }
}
