// SPDX-License-Identifier: Apache-2.0
//! Programs of PyPI, in virtual environments below `target`.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result};

use crate::{execute, setup, target_dir};

/// The `bin` directory of an environment that has what a requirements file lists.
pub fn environment(name: &str, requirements: &Path) -> Result<PathBuf> {
    let wanted =
        fs::read(requirements).with_context(|| format!("reading {}", requirements.display()))?;
    let environment = target_dir()?.join(name);
    let bin = environment.join("bin");
    // Written last: an environment without it is not complete.
    let installed = environment.join("installed.txt");
    if fs::read(&installed).is_ok_and(|have| have == wanted) {
        return Ok(bin);
    }
    setup::programs(&[("/usr/share/doc/python3-venv", "python3-venv")])?;
    // The one of Debian, which python3-venv belongs to.
    execute(
        Command::new("/usr/bin/python3")
            .args(["-m", "venv", "--clear"])
            .arg(&environment),
    )?;
    execute(
        Command::new(bin.join("pip"))
            .args([
                "install",
                "--quiet",
                "--disable-pip-version-check",
                "--requirement",
            ])
            .arg(requirements),
    )?;
    fs::write(&installed, wanted).with_context(|| format!("writing {}", installed.display()))?;
    Ok(bin)
}
