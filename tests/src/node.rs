// SPDX-License-Identifier: Apache-2.0
//! `egress node`, running in the lab's node namespace over the pods' cgroups.

use std::{
    fs,
    ops::Deref,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result};

use crate::{
    container::{Bind, Container},
    egress_binary,
    hop::Hop,
    net::{DNS_SERVER, Net},
};

/// A running node proxy.
#[derive(Debug)]
pub struct Node<'a>(Hop<'a>);

impl<'a> Node<'a> {
    /// Starts it and waits until it is ready. `more` are flags beyond those of [`command`].
    ///
    /// # Errors
    /// When it does not become ready.
    pub fn start(net: &'a Net, config: &Path, more: &[&str]) -> Result<Self> {
        let command = command(net, config, more)?;
        Hop::start("egress node", &net.node, &command, "egress node ready").map(Self)
    }

    /// Starts it inside a cgroup, which may be one that it captures.
    ///
    /// # Errors
    /// When it does not become ready.
    pub fn start_in(
        cgroup: &crate::cgroup::Cgroup,
        net: &'a Net,
        config: &Path,
        more: &[&str],
    ) -> Result<Self> {
        let command = [&cgroup.enter()[..], &command(net, config, more)?].concat();
        Hop::start("egress node", &net.node, &command, "egress node ready").map(Self)
    }

    /// Starts it inside a container, which shares the node's network, the files of
    /// [`container_binds`] and, to see pods, the machine's processes.
    ///
    /// # Errors
    /// When it does not become ready.
    pub fn start_inside(
        container: &Container<'_>,
        net: &'a Net,
        config: &Path,
        more: &[&str],
    ) -> Result<Self> {
        let command = container.command(&command(net, config, more)?);
        Hop::start("egress node", &net.node, &command, "egress node ready").map(Self)
    }

    /// Whether the kernel lets it check the frames of pods (tcx, Linux 6.6).
    ///
    /// # Errors
    /// When the admin server does not tell.
    pub fn checks_frames(&self) -> Result<bool> {
        let (_, text) = self.admin("/status")?;
        let status: serde_json::Value = serde_json::from_str(&text).context("reading /status")?;
        let features = status["kernel"]["features"].as_array();
        features
            .into_iter()
            .flatten()
            .find(|feature| {
                feature["name"]
                    .as_str()
                    .is_some_and(|name| name.starts_with("tcx"))
            })
            .and_then(|feature| feature["present"].as_bool())
            .context("/status has no feature tcx")
    }

    /// SIGKILL: nothing is cleaned up.
    ///
    /// # Errors
    /// When it does not end.
    pub fn kill(self) -> Result<std::process::ExitStatus> {
        self.0.kill()
    }

    /// SIGTERM: it detaches.
    ///
    /// # Errors
    /// When it does not end in time.
    pub fn stop(self) -> Result<std::process::ExitStatus> {
        self.0.stop()
    }
}

impl<'a> Deref for Node<'a> {
    type Target = Hop<'a>;

    fn deref(&self) -> &Hop<'a> {
        &self.0
    }
}

/// The command line of `egress node` for this lab.
///
/// # Errors
/// When the binary has not been built.
pub fn command(net: &Net, config: &Path, more: &[&str]) -> Result<Vec<String>> {
    let mut command = vec![egress_binary()?.display().to_string(), "node".to_owned()];
    for (flag, value) in [
        ("--config", config.display().to_string()),
        ("--cgroup", net.cgroup.path().display().to_string()),
        ("--dns-server", DNS_SERVER.to_owned()),
        ("--bpffs", bpffs(net).display().to_string()),
    ] {
        command.extend([flag.to_owned(), value]);
    }
    command.extend(more.iter().map(|&flag| flag.to_owned()));
    Ok(command)
}

/// What `egress node` needs of the machine's files in a container, as a DaemonSet would mount it,
/// and the lab's own.
///
/// # Errors
/// When the binary has not been built.
pub fn container_binds(net: &Net) -> Result<Vec<Bind>> {
    let mut binds = Bind::program(&egress_binary()?);
    binds.push(Bind::read_only(net.directory.path()));
    fs::create_dir_all("/run/egress").context("making /run/egress")?;
    for path in ["/sys/fs/cgroup", "/sys/fs/bpf", "/run/egress"] {
        binds.push(Bind {
            writable: true,
            ..Bind::read_only(path)
        });
    }
    Ok(binds)
}

/// Where this lab's node pins its maps and links.
pub fn bpffs(net: &Net) -> PathBuf {
    let name = net.cgroup.path().file_name().unwrap_or_default();
    Path::new("/sys/fs/bpf").join(name)
}

/// Every pinned file of this lab.
pub fn pins(net: &Net) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut folders = vec![bpffs(net)];
    while let Some(folder) = folders.pop() {
        // A folder that is gone holds nothing.
        for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
            match entry.file_type() {
                Ok(kind) if kind.is_dir() => folders.push(entry.path()),
                _ => found.push(entry.path()),
            }
        }
    }
    found
}

/// The pinned map of that name.
///
/// # Errors
/// When nothing of that name is pinned.
pub fn pinned_map(net: &Net, name: &str) -> Result<PathBuf> {
    let pins = pins(net);
    let found = pins
        .iter()
        .find(|path| path.file_name() == Some(name.as_ref()));
    found
        .cloned()
        .with_context(|| format!("no map {name} below {}", bpffs(net).display()))
}
