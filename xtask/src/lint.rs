// SPDX-License-Identifier: Apache-2.0
//! `lint`: formatting, clippy and documentation, every warning an error.

use std::process::Command;

use anyhow::Result;

use crate::{execute, root};

/// Checks; changes nothing.
pub fn run() -> Result<()> {
    // Formatting covers every member, the kernel programs included; what compiles for this
    // machine's CPU is the default members.
    execute(&mut cargo(&["fmt", "--all", "--check"])?)?;
    execute(&mut cargo(&[
        "clippy",
        "--all-targets",
        "--",
        "--deny",
        "warnings",
    ])?)?;
    let mut documentation = cargo(&["doc", "--no-deps", "--document-private-items"])?;
    // The reader is a developer: links to private modules are what the introductions are for.
    let flags = "--deny warnings --allow rustdoc::private-intra-doc-links";
    documentation.env("RUSTDOCFLAGS", flags);
    execute(&mut documentation)
}

fn cargo(arguments: &[&str]) -> Result<Command> {
    let mut command = Command::new("cargo");
    command.current_dir(root()?).args(arguments);
    Ok(command)
}
