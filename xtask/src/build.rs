// SPDX-License-Identifier: Apache-2.0
//! `build` and `build-ebpf`: the program at `target/{debug,release}/egress`, and the kernel
//! object alone. The program's build script builds the object by itself; `build-ebpf` is for
//! looking at it.

use std::{path::PathBuf, process::Command};

use anyhow::{Result, anyhow};

use crate::{build_ebpf::Toolchain, execute, root, shown, target_dir};

/// Flags of `build`.
#[derive(Debug, clap::Args)]
pub struct Arguments {
    /// With optimisations.
    #[arg(long)]
    pub release: bool,
}

/// Builds the program and returns its path.
pub fn run(arguments: &Arguments) -> Result<PathBuf> {
    let mut command = Command::new("cargo");
    command.current_dir(root()?).args([
        "build",
        "--package",
        "egress-userspace",
        "--bin",
        "egress",
    ]);
    if arguments.release {
        command.arg("--release");
    }
    execute(&mut command)?;
    let profile = if arguments.release {
        "release"
    } else {
        "debug"
    };
    Ok(target_dir()?.join(profile).join("egress"))
}

/// Builds the kernel object and prints its path.
pub fn kernel_object() -> Result<()> {
    let toolchain = Toolchain::find().map_err(|missing| anyhow!("{missing}"))?;
    let target_dir = target_dir()?.join("ebpf");
    eprintln!("+ {}", shown(&toolchain.command(root()?, &target_dir)));
    let object = toolchain.build(root()?, &target_dir)?;
    println!("{}", object.display());
    Ok(())
}
