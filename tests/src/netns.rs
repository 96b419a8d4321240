// SPDX-License-Identifier: Apache-2.0
//! Named network namespaces and the cables between them, by ip(8).
//!
//! Cables are made between namespaces directly, so nothing of the host's own network is touched and
//! interface names and addresses of two labs cannot collide. Processes enter by `nsenter --net`:
//! `ip netns exec` would remount /sys and hide cgroupfs.

use std::{fs::File, path::PathBuf, process::Command, thread};

use anyhow::{Context, Result, bail};
use nix::sched::{CloneFlags, setns};

/// A network namespace with its loopback up; removed when dropped.
#[derive(Debug)]
pub struct Netns {
    name: String,
}

/// One end of a cable.
#[derive(Debug)]
pub struct End<'a> {
    /// Where the interface lives.
    pub netns: &'a Netns,
    /// Its name there, at most 15 characters.
    pub interface: &'a str,
    /// Its addresses with prefix lengths.
    pub addresses: &'a [&'a str],
}

impl Netns {
    /// Makes a namespace.
    ///
    /// # Errors
    /// When the caller is not root or the name is taken.
    pub fn new(name: &str) -> Result<Self> {
        ip(&["netns", "add", name])?;
        let netns = Self {
            name: name.to_owned(),
        };
        netns.ip(&["link", "set", "lo", "up"])?;
        Ok(netns)
    }

    /// Its name, as `ip netns` shows it.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The file that keeps it alive.
    pub fn path(&self) -> PathBuf {
        PathBuf::from("/run/netns").join(&self.name)
    }

    /// Calls ip(8) on this namespace.
    ///
    /// # Errors
    /// With what ip said.
    pub fn ip(&self, arguments: &[&str]) -> Result<()> {
        ip(&[&["-n", &self.name], arguments].concat())
    }

    /// The start of a command line that runs what follows in this namespace.
    pub fn enter(&self) -> [String; 3] {
        [
            "nsenter".to_owned(),
            format!("--net={}", self.path().display()),
            "--".to_owned(),
        ]
    }

    /// Runs `work` on a thread that is in this namespace; sockets it makes stay there.
    ///
    /// # Errors
    /// When the namespace cannot be entered, or when `work` fails or panics.
    pub fn run<T: Send>(&self, work: impl FnOnce() -> Result<T> + Send) -> Result<T> {
        let file = File::open(self.path())
            .with_context(|| format!("opening {}", self.path().display()))?;
        let joined = thread::scope(|scope| {
            scope
                .spawn(|| {
                    setns(&file, CloneFlags::CLONE_NEWNET)
                        .with_context(|| format!("entering network namespace {}", self.name))?;
                    work()
                })
                .join()
        });
        match joined {
            Ok(result) => result,
            Err(_) => bail!("a thread in network namespace {} panicked", self.name),
        }
    }

    /// Sets a kernel parameter of this namespace, named by its path below /proc/sys.
    ///
    /// # Errors
    /// When there is no such parameter.
    pub fn set_parameter(&self, parameter: &str, value: &str) -> Result<()> {
        // /proc/sys/net shows the namespace of the thread that looks.
        self.run(|| {
            std::fs::write(PathBuf::from("/proc/sys").join(parameter), value)
                .with_context(|| format!("setting {parameter} to {value}"))
        })
    }
}

impl Drop for Netns {
    fn drop(&mut self) {
        if let Err(error) = ip(&["netns", "del", &self.name]) {
            eprintln!("lab: {error:#}");
        }
    }
}

/// Lays a cable (a veth pair) and brings both ends up with their addresses.
///
/// # Errors
/// With what ip said.
pub fn cable(left: &End<'_>, right: &End<'_>) -> Result<()> {
    let peer = ["peer", "name", right.interface, "netns", right.netns.name()];
    let link = ["link", "add", left.interface, "type", "veth"];
    left.netns.ip(&[&link[..], &peer[..]].concat())?;
    for end in [left, right] {
        for address in end.addresses {
            // Without duplicate address detection an IPv6 address can be used at once.
            let nodad: &[&str] = if address.contains(':') {
                &["nodad"]
            } else {
                &[]
            };
            let add = ["address", "add", address, "dev", end.interface];
            end.netns.ip(&[&add[..], nodad].concat())?;
        }
        end.netns.ip(&["link", "set", end.interface, "up"])?;
    }
    Ok(())
}

fn ip(arguments: &[&str]) -> Result<()> {
    let output = Command::new("ip")
        .args(arguments)
        .output()
        .context("running ip (Debian package iproute2)")?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr);
        bail!("ip {}: {}", arguments.join(" "), said.trim());
    }
    Ok(())
}
