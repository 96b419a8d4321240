// SPDX-License-Identifier: Apache-2.0
//! A container's cgroups: how a kubelet names them, and how they go in every hierarchy.

use std::{
    fs,
    io::ErrorKind,
    path::{Path, PathBuf},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result};

use crate::cgroup::{Cgroup, mount_point};

/// How long killed processes may take to leave.
const EMPTY_WITHIN: Duration = Duration::from_secs(10);

/// A pod's quality of service class, which decides where its cgroups are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum QosClass {
    /// Requests equal limits.
    Guaranteed,
    /// Some requests or limits.
    Burstable,
    /// None.
    BestEffort,
}

impl QosClass {
    /// Path of a container's cgroup below the root, as a kubelet with the systemd driver and
    /// containerd make it.
    pub fn cgroup(self, pod_uid: &str, container_id: &str) -> String {
        // Dashes say in a slice's name where it is.
        let uid = pod_uid.replace('-', "_");
        let pod = match self {
            Self::Guaranteed => format!("kubepods-pod{uid}.slice"),
            Self::Burstable => {
                format!("kubepods-burstable.slice/kubepods-burstable-pod{uid}.slice")
            }
            Self::BestEffort => {
                format!("kubepods-besteffort.slice/kubepods-besteffort-pod{uid}.slice")
            }
        };
        format!("kubepods.slice/{pod}/cri-containerd-{container_id}.scope")
    }
}

/// A cgroup below `parent` as runc wants it: an absolute path within each hierarchy.
pub(super) fn path(parent: &Cgroup, cgroup: &str) -> Result<PathBuf> {
    Ok(Path::new("/").join(below_root(parent)?).join(cgroup))
}

/// Removes the cgroup and those above it that are empty then: in the hierarchy of version 2 up to
/// `parent`, in others with it, since there runc made that too.
pub(super) fn remove(parent: &Cgroup, cgroup: &str) -> Result<()> {
    let below_root = below_root(parent)?;
    let mounts = fs::read_to_string("/proc/mounts").context("reading /proc/mounts")?;
    for (kind, root) in hierarchies(&mounts) {
        let keep = match kind {
            "cgroup2" => parent.path(),
            _ => root,
        };
        let leaf = root.join(&below_root).join(cgroup);
        remove_empty(&leaf)?;
        let above = leaf.ancestors().skip(1);
        for folder in above.take_while(|folder| *folder != keep) {
            match fs::remove_dir(folder) {
                Ok(()) => {}
                Err(error) if error.kind() == ErrorKind::NotFound => {}
                // Another container is there.
                Err(_) => break,
            }
        }
    }
    Ok(())
}

fn below_root(parent: &Cgroup) -> Result<PathBuf> {
    let below = parent.path().strip_prefix(mount_point()?);
    below.map(Path::to_owned).context("a cgroup has a root")
}

/// Type and mount point of every cgroup hierarchy.
fn hierarchies(mounts: &str) -> impl Iterator<Item = (&str, &Path)> {
    mounts.lines().filter_map(|line| {
        let mut fields = line.split(' ').skip(1);
        let (root, kind) = (fields.next()?, fields.next()?);
        matches!(kind, "cgroup" | "cgroup2").then_some((kind, Path::new(root)))
    })
}

/// Removes a cgroup once the last process has left it.
fn remove_empty(path: &Path) -> Result<()> {
    let deadline = Instant::now() + EMPTY_WITHIN;
    loop {
        match fs::remove_dir(path) {
            Ok(()) => return Ok(()),
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(()),
            Err(error) if Instant::now() > deadline => {
                return Err(error).with_context(|| format!("removing cgroup {}", path.display()));
            }
            Err(_) => thread::sleep(Duration::from_millis(5)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_those_of_a_kubelet_with_systemd() {
        for (class, expected) in [
            (
                QosClass::Guaranteed,
                "kubepods.slice/kubepods-poda_b.slice/cri-containerd-c.scope",
            ),
            (
                QosClass::Burstable,
                "kubepods.slice/kubepods-burstable.slice/kubepods-burstable-poda_b.slice/\
                 cri-containerd-c.scope",
            ),
            (
                QosClass::BestEffort,
                "kubepods.slice/kubepods-besteffort.slice/kubepods-besteffort-poda_b.slice/\
                 cri-containerd-c.scope",
            ),
        ] {
            assert_eq!(class.cgroup("a-b", "c"), expected);
        }
    }

    #[test]
    fn hierarchies_of_both_versions_are_found() {
        let mounts =
            "proc /proc proc rw 0 0\ncgroup /c/pids cgroup rw 0 0\nx /c/u cgroup2 rw 0 0\n";
        let found: Vec<_> = hierarchies(mounts).collect();
        let expected = [
            ("cgroup", Path::new("/c/pids")),
            ("cgroup2", Path::new("/c/u")),
        ];
        assert_eq!(found, expected);
    }
}
