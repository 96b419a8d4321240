// SPDX-License-Identifier: Apache-2.0
//! Cgroups (version 2) of the lab's own.
//!
//! Finds the hierarchy by /proc/mounts, since it lies at /sys/fs/cgroup on most machines and at
//! /sys/fs/cgroup/unified on hybrid ones. Sets no limits.

use std::{
    fs,
    path::{Path, PathBuf},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};

/// How long killed processes may take to leave.
const EMPTY_WITHIN: Duration = Duration::from_secs(10);

/// A cgroup; what runs inside is killed and the directory removed when dropped.
#[derive(Debug)]
pub struct Cgroup {
    path: PathBuf,
}

impl Cgroup {
    /// Makes a cgroup below the root of the hierarchy.
    ///
    /// # Errors
    /// When cgroup v2 is not mounted, the caller is not root, or the name is taken.
    pub fn new(name: &str) -> Result<Self> {
        Self::at(mount_point()?.join(name))
    }

    /// Makes a cgroup below this one.
    ///
    /// # Errors
    /// When the name is taken.
    pub fn child(&self, name: &str) -> Result<Self> {
        Self::at(self.path.join(name))
    }

    fn at(path: PathBuf) -> Result<Self> {
        fs::create_dir(&path).with_context(|| format!("making cgroup {}", path.display()))?;
        Ok(Self { path })
    }

    /// Its directory.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The start of a command line that runs what follows in this cgroup, under the same pid.
    pub fn enter(&self) -> [String; 5] {
        [
            "sh".to_owned(),
            "-c".to_owned(),
            "echo 0 >\"$0\" && exec \"$@\"".to_owned(),
            self.path.join("cgroup.procs").display().to_string(),
            // A command that runs its arguments: what follows need not be one word.
            "env".to_owned(),
        ]
    }

    fn pids(&self) -> Vec<i32> {
        fs::read_to_string(self.path.join("cgroup.procs"))
            .unwrap_or_default()
            .lines()
            .filter_map(|line| line.parse().ok())
            .collect()
    }
}

impl Drop for Cgroup {
    fn drop(&mut self) {
        let deadline = Instant::now() + EMPTY_WITHIN;
        loop {
            // A pid of 0 is a process of another pid namespace: not ours to kill.
            for pid in self.pids().into_iter().filter(|pid| *pid > 0) {
                // It may have ended since.
                let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
            }
            match fs::remove_dir(&self.path) {
                Ok(()) => return,
                Err(error) if Instant::now() > deadline => {
                    eprintln!("lab: removing cgroup {}: {error}", self.path.display());
                    return;
                }
                // Killed processes need a moment to be gone.
                Err(_) => thread::sleep(Duration::from_millis(5)),
            }
        }
    }
}

/// Where cgroup v2 is mounted.
///
/// # Errors
/// When it is not.
pub fn mount_point() -> Result<PathBuf> {
    let mounts = fs::read_to_string("/proc/mounts").context("reading /proc/mounts")?;
    cgroup2(&mounts).context("cgroup v2 is not mounted (mount -t cgroup2 none /sys/fs/cgroup)")
}

fn cgroup2(mounts: &str) -> Option<PathBuf> {
    mounts
        .lines()
        .map(|line| line.split(' ').collect::<Vec<_>>())
        .find(|fields| fields.get(2) == Some(&"cgroup2"))
        .map(|fields| PathBuf::from(fields[1]))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hierarchy_is_found_by_its_type() {
        for (mounts, expected) in [
            (
                "cgroup2 /sys/fs/cgroup cgroup2 rw 0 0\n",
                Some("/sys/fs/cgroup"),
            ),
            (
                "cgroup /sys/fs/cgroup/cpu cgroup rw 0 0\nx /sys/fs/cgroup/unified cgroup2 rw 0 0\n",
                Some("/sys/fs/cgroup/unified"),
            ),
            ("cgroup2 /sys/fs/cgroup cgroup rw 0 0\n", None),
            ("", None),
        ] {
            assert_eq!(cgroup2(mounts), expected.map(PathBuf::from), "{mounts}");
        }
    }
}
