// SPDX-License-Identifier: Apache-2.0
//! The configuration of a container, as runc reads it (OCI runtime specification 1.0).
//!
//! Leaves out what needs `CAP_SYS_RESOURCE`: that capability, rlimits and oomScoreAdj.

use std::{fs, path::Path};

use anyhow::{Context, Result};
use serde_json::{Value, json};

use super::{Bind, Network, Options};

/// Capabilities in the order of their numbers (capabilities(7)).
const CAPABILITIES: [&str; 41] = [
    "CHOWN",
    "DAC_OVERRIDE",
    "DAC_READ_SEARCH",
    "FOWNER",
    "FSETID",
    "KILL",
    "SETGID",
    "SETUID",
    "SETPCAP",
    "LINUX_IMMUTABLE",
    "NET_BIND_SERVICE",
    "NET_BROADCAST",
    "NET_ADMIN",
    "NET_RAW",
    "IPC_LOCK",
    "IPC_OWNER",
    "SYS_MODULE",
    "SYS_RAWIO",
    "SYS_CHROOT",
    "SYS_PTRACE",
    "SYS_PACCT",
    "SYS_ADMIN",
    "SYS_BOOT",
    "SYS_NICE",
    SYS_RESOURCE,
    "SYS_TIME",
    "SYS_TTY_CONFIG",
    "MKNOD",
    "LEASE",
    "AUDIT_WRITE",
    "AUDIT_CONTROL",
    "SETFCAP",
    "MAC_OVERRIDE",
    "MAC_ADMIN",
    "SYSLOG",
    "WAKE_ALARM",
    "BLOCK_SUSPEND",
    "AUDIT_READ",
    "PERFMON",
    "BPF",
    "CHECKPOINT_RESTORE",
];
/// Never asked for.
const SYS_RESOURCE: &str = "SYS_RESOURCE";
/// What containerd gives to a container that asks for nothing.
const UNPRIVILEGED: [&str; 14] = [
    "CHOWN",
    "DAC_OVERRIDE",
    "FSETID",
    "FOWNER",
    "MKNOD",
    "NET_RAW",
    "SETGID",
    "SETUID",
    "SETFCAP",
    "SETPCAP",
    "NET_BIND_SERVICE",
    "SYS_CHROOT",
    "KILL",
    "AUDIT_WRITE",
];
/// What an unprivileged container does not see, as in runc's own template.
const MASKED: [&str; 10] = [
    "/proc/acpi",
    "/proc/asound",
    "/proc/kcore",
    "/proc/keys",
    "/proc/latency_stats",
    "/proc/timer_list",
    "/proc/timer_stats",
    "/proc/sched_debug",
    "/sys/firmware",
    "/proc/scsi",
];
/// What an unprivileged container cannot write, as in runc's own template.
const READ_ONLY: [&str; 5] = [
    "/proc/bus",
    "/proc/fs",
    "/proc/irq",
    "/proc/sys",
    "/proc/sysrq-trigger",
];

/// The configuration; `cgroup` is the path within each hierarchy.
///
/// # Errors
/// When this process's own capabilities cannot be read.
pub(super) fn config(options: &Options<'_>, rootfs: &Path, cgroup: &Path) -> Result<Value> {
    let status = fs::read_to_string("/proc/self/status").context("reading /proc/self/status")?;
    let capabilities = capabilities(options.privileged, &status);
    let masked = |paths: &[&str]| match options.privileged {
        true => json!([]),
        false => json!(paths),
    };
    let mut env = vec!["PATH=/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin".to_owned()];
    env.extend(
        options
            .env
            .iter()
            .map(|(name, value)| format!("{name}={value}")),
    );
    Ok(json!({
        "ociVersion": "1.0.2",
        "hostname": options.name,
        "root": {"path": rootfs, "readonly": false},
        "process": {
            "terminal": false,
            "user": {"uid": 0, "gid": 0},
            "cwd": "/",
            "args": options.command,
            "env": env,
            "noNewPrivileges": false,
            "capabilities": {
                "bounding": capabilities,
                "effective": capabilities,
                "permitted": capabilities,
            },
        },
        "mounts": mounts(options),
        "linux": {
            "cgroupsPath": cgroup,
            "namespaces": namespaces(options),
            "resources": {"devices": [{"allow": options.privileged, "access": "rwm"}]},
            "maskedPaths": masked(&MASKED),
            "readonlyPaths": masked(&READ_ONLY),
        },
    }))
}

/// The names for a container among those of this process's bounding set, as /proc/PID/status
/// shows it.
fn capabilities(privileged: bool, status: &str) -> Vec<String> {
    let own = status
        .lines()
        .find_map(|line| line.strip_prefix("CapBnd:"))
        .and_then(|set| u64::from_str_radix(set.trim(), 16).ok())
        .unwrap_or_default();
    CAPABILITIES
        .iter()
        .enumerate()
        .filter(|(bit, name)| own >> bit & 1 == 1 && **name != SYS_RESOURCE)
        .filter(|(_, name)| privileged || UNPRIVILEGED.contains(name))
        .map(|(_, name)| format!("CAP_{name}"))
        .collect()
}

fn namespaces(options: &Options<'_>) -> Vec<Value> {
    let mut namespaces: Vec<_> = ["ipc", "uts", "mount"]
        .map(|kind| json!({"type": kind}))
        .to_vec();
    if !options.host_pid {
        namespaces.push(json!({"type": "pid"}));
    }
    if let Network::Of(netns) = options.network {
        namespaces.push(json!({"type": "network", "path": netns.path()}));
    }
    namespaces
}

fn mounts(options: &Options<'_>) -> Vec<Value> {
    let access = if options.privileged { "rw" } else { "ro" };
    let mut mounts = vec![
        mount("/proc", "proc", &[]),
        mount("/dev", "tmpfs", &["nosuid", "strictatime", "mode=755"]),
        mount("/dev/pts", "devpts", &["nosuid", "noexec", "newinstance"]),
        mount(
            "/dev/shm",
            "tmpfs",
            &["nosuid", "noexec", "nodev", "mode=1777"],
        ),
        mount("/sys", "sysfs", &["nosuid", "noexec", "nodev", access]),
        mount(
            "/sys/fs/cgroup",
            "cgroup",
            &["nosuid", "noexec", "nodev", "relatime", access],
        ),
    ];
    if options.privileged {
        mounts.push(mount("/sys/fs/bpf", "bpf", &["nosuid", "nodev", "noexec"]));
    }
    mounts.extend(options.binds.iter().map(bind));
    mounts
}

fn mount(destination: &str, kind: &str, options: &[&str]) -> Value {
    json!({"destination": destination, "type": kind, "source": kind, "options": options})
}

fn bind(bind: &Bind) -> Value {
    let access = if bind.writable { "rw" } else { "ro" };
    json!({
        "destination": bind.inside,
        "type": "bind",
        "source": bind.host,
        "options": ["rbind", access],
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn capabilities_are_those_that_the_caller_has_without_sys_resource() {
        let all = "Name:\tx\nCapBnd:\t000001ffffffffff\n";
        assert_eq!(capabilities(true, all).len(), 40);
        assert_eq!(capabilities(false, all).len(), UNPRIVILEGED.len());
        assert!(!capabilities(true, all).contains(&"CAP_SYS_RESOURCE".to_owned()));
        let few = "CapBnd:\t0000000000002001\n";
        assert_eq!(capabilities(true, few), ["CAP_CHOWN", "CAP_NET_RAW"]);
        assert_eq!(capabilities(true, ""), Vec::<String>::new());
    }

    #[test]
    fn bind_is_read_only_unless_writable() {
        let mut library = Bind::read_only("/lib");
        assert_eq!(bind(&library)["options"], json!(["rbind", "ro"]));
        library.writable = true;
        assert_eq!(bind(&library)["options"], json!(["rbind", "rw"]));
    }
}
