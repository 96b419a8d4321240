// SPDX-License-Identifier: Apache-2.0
//! The root file system of a lab's containers: busybox, its names, the lab's DNS server.

use std::{
    fs,
    os::unix::fs::symlink,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result, bail};

use crate::net::{DNS_SERVER, Directory};

/// Debian's package busybox-static.
const BUSYBOX: &str = "/bin/busybox";

/// The root file system, made by the first who asks.
///
/// # Errors
/// When busybox is not installed or a file cannot be written.
pub(super) fn make(directory: &Directory) -> Result<PathBuf> {
    let rootfs = directory.path().join("rootfs");
    if !rootfs.exists() {
        // Under its name only once it is whole.
        let new = directory.path().join("rootfs.new");
        fill(&new).with_context(|| format!("making {}", new.display()))?;
        fs::rename(&new, &rootfs).context("naming a root file system")?;
    }
    Ok(rootfs)
}

fn fill(root: &Path) -> Result<()> {
    for folder in ["bin", "dev", "etc", "proc", "root", "sys", "tmp"] {
        fs::create_dir_all(root.join(folder)).context(folder)?;
    }
    fs::copy(BUSYBOX, root.join("bin/busybox"))
        .with_context(|| format!("copying {BUSYBOX} (Debian package busybox-static)"))?;
    let output = Command::new(BUSYBOX).arg("--list").output();
    let output = output.context("asking busybox for its names")?;
    if !output.status.success() {
        bail!("busybox --list ended with {}", output.status);
    }
    let names = String::from_utf8(output.stdout).context("busybox's names")?;
    for name in names.lines().filter(|name| *name != "busybox") {
        symlink("busybox", root.join("bin").join(name)).context(name.to_owned())?;
    }
    let resolver = format!("nameserver {DNS_SERVER}\n");
    fs::write(root.join("etc/resolv.conf"), resolver).context("etc/resolv.conf")
}
