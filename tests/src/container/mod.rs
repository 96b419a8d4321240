// SPDX-License-Identifier: Apache-2.0
//! Real containers, made by runc, with cgroups named as a kubelet names them.
//!
//! A container has a root file system of busybox, shared by those of a lab, a network namespace of
//! the lab and a cgroup below one of the lab's. Everything else is runc's: mounts, capabilities,
//! pid namespace. Where the machine has version 1 hierarchies too, runc makes cgroups in each; all
//! of them are removed. Sets no limits, and asks for no capability that this process lacks.
//!
//! `cgroups`: paths and their removal; `rootfs`: the root file system; `spec`: the configuration
//! that runc reads.

mod cgroups;
mod rootfs;
mod spec;

use std::{
    fs::{self, File},
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::Duration,
};

use anyhow::{Context, Result, bail};

use crate::{cgroup::Cgroup, net::Directory, netns::Netns, process::Process};

pub use cgroups::QosClass;

/// How long a command inside may take.
const EXEC_WITHIN: Duration = Duration::from_secs(60);

/// What a container is to be.
#[derive(Debug, Clone)]
pub struct Options<'a> {
    /// Its name, unique in the lab.
    pub name: &'a str,
    /// Below which cgroup its own is.
    pub parent: &'a Cgroup,
    /// Its cgroup's path below `parent`; see [`QosClass::cgroup`].
    pub cgroup: String,
    /// Its network.
    pub network: Network<'a>,
    /// Every capability, every device, /proc and /sys writable, a bpffs of its own at /sys/fs/bpf.
    pub privileged: bool,
    /// Sees the machine's processes, not only its own.
    pub host_pid: bool,
    /// What it sees of the machine's files.
    pub binds: Vec<Bind>,
    /// Environment beside PATH.
    pub env: Vec<(String, String)>,
    /// What it runs; the container ends with it.
    pub command: Vec<String>,
}

/// A container's network.
#[derive(Debug, Clone, Copy)]
pub enum Network<'a> {
    /// The machine's.
    Host,
    /// A namespace of the lab.
    Of(&'a Netns),
}

/// A file or folder of the machine that a container sees.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Bind {
    /// Its path on the machine.
    pub host: PathBuf,
    /// Its path in the container; made in the shared root file system when absent.
    pub inside: PathBuf,
    /// Whether the container may write there.
    pub writable: bool,
}

/// A running container; killed and removed when dropped.
#[derive(Debug)]
pub struct Container<'a> {
    options: Options<'a>,
    directory: &'a Directory,
    pid: u32,
}

impl<'a> Options<'a> {
    /// An unprivileged container of a pod that only sleeps.
    pub fn new(name: &'a str, parent: &'a Cgroup, cgroup: String, netns: &'a Netns) -> Self {
        Self {
            name,
            parent,
            cgroup,
            network: Network::Of(netns),
            privileged: false,
            host_pid: false,
            binds: Vec::new(),
            env: Vec::new(),
            command: ["sleep", "1000000"].map(str::to_owned).to_vec(),
        }
    }
}

impl Bind {
    /// The same path on both sides, not to be written.
    pub fn read_only(path: impl Into<PathBuf>) -> Self {
        let host = path.into();
        Self {
            inside: host.clone(),
            host,
            writable: false,
        }
    }

    /// What a dynamically linked program of this machine needs inside: itself and the libraries.
    pub fn program(path: &Path) -> Vec<Self> {
        let libraries = ["/lib", "/lib64"].map(PathBuf::from).into_iter();
        let mut binds: Vec<_> = libraries
            .filter(|path| path.exists())
            .map(Self::read_only)
            .collect();
        binds.push(Self::read_only(path));
        binds
    }
}

impl<'a> Container<'a> {
    /// Starts a container; its command runs when this returns. Its output goes to [`Self::output`].
    ///
    /// It outlives a lab that is killed, unlike the lab's processes.
    ///
    /// # Errors
    /// With what runc said; what was made is removed.
    pub fn run(directory: &'a Directory, options: Options<'a>) -> Result<Self> {
        let rootfs = rootfs::make(directory)?;
        let path = cgroups::path(options.parent, &options.cgroup)?;
        let config = spec::config(&options, &rootfs, &path)?;
        // From here on dropping it removes what there is.
        let mut container = Self {
            options,
            directory,
            pid: 0,
        };
        let bundle = container.bundle();
        fs::create_dir_all(&bundle).with_context(|| format!("making {}", bundle.display()))?;
        fs::write(bundle.join("config.json"), config.to_string())
            .context("writing a container's configuration")?;
        let output = File::create(bundle.join("output")).context("making an output file")?;
        let errors = output.try_clone().context("sharing an output file")?;
        let status = container
            .runc()
            .args(["run", "--detach", "--bundle"])
            .arg(&bundle)
            .arg("--pid-file")
            .arg(bundle.join("pid"))
            .arg(container.options.name)
            .stdin(Stdio::null())
            .stdout(output)
            .stderr(errors)
            .status()
            .context("running runc (Debian package runc)")?;
        if !status.success() {
            let said = container.output();
            bail!("runc run {}: {}", container.options.name, said.trim());
        }
        let pid = fs::read_to_string(bundle.join("pid")).context("reading a container's pid")?;
        container.pid = pid.trim().parse().context("a container's pid")?;
        Ok(container)
    }

    /// Its name.
    pub fn name(&self) -> &str {
        self.options.name
    }

    /// The pid of its first process, as the machine counts.
    pub fn pid(&self) -> u32 {
        self.pid
    }

    /// Its cgroup (version 2).
    pub fn cgroup(&self) -> PathBuf {
        self.options.parent.path().join(&self.options.cgroup)
    }

    /// What its command has printed until now, on both streams.
    pub fn output(&self) -> String {
        fs::read_to_string(self.bundle().join("output")).unwrap_or_default()
    }

    /// Runs a command inside to its end; its standard output.
    ///
    /// # Errors
    /// When it takes longer than 60 s or does not succeed, with what it said.
    pub fn exec<S: AsRef<str>>(&self, command: &[S]) -> Result<String> {
        let name = command.first().map_or("", AsRef::as_ref);
        Process::output(name, &self.command(command), EXEC_WITHIN)
    }

    /// Starts a command inside. Dropping the process kills runc only; what runs inside ends when
    /// its input does, or with the container.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn spawn<S: AsRef<str>>(&self, command: &[S]) -> Result<Process> {
        let name = command.first().map_or("", AsRef::as_ref);
        Process::spawn(name, &self.command(command))
    }

    /// A command line that runs `command` inside.
    pub fn command<S: AsRef<str>>(&self, command: &[S]) -> Vec<String> {
        let mut line = ["runc", "--root"].map(str::to_owned).to_vec();
        line.push(self.root().display().to_string());
        line.extend(["exec", self.options.name].map(str::to_owned));
        line.extend(command.iter().map(|word| word.as_ref().to_owned()));
        line
    }

    fn runc(&self) -> Command {
        let mut runc = Command::new("runc");
        runc.arg("--root").arg(self.root());
        runc
    }

    /// Where runc keeps what it knows of the lab's containers.
    fn root(&self) -> PathBuf {
        self.directory.path().join("runc")
    }

    fn bundle(&self) -> PathBuf {
        let bundles = self.directory.path().join("containers");
        bundles.join(self.options.name)
    }
}

impl Drop for Container<'_> {
    fn drop(&mut self) {
        let deleted = self
            .runc()
            .args(["delete", "--force", self.options.name])
            .stdin(Stdio::null())
            .output();
        match deleted {
            Ok(output) if output.status.success() => {}
            Ok(output) => eprintln!(
                "lab: runc delete {}: {}",
                self.options.name,
                String::from_utf8_lossy(&output.stderr).trim()
            ),
            Err(error) => eprintln!("lab: running runc: {error}"),
        }
        if let Err(error) = cgroups::remove(self.options.parent, &self.options.cgroup) {
            eprintln!("lab: {error:#}");
        }
        // The rest goes with the lab's directory.
        let _ = fs::remove_dir_all(self.bundle());
    }
}
