// SPDX-License-Identifier: Apache-2.0
//! What can go wrong between the agent and the kernel, with the remedy where one is known.

use std::{io, net::IpAddr, path::PathBuf};

use aya::{EbpfError, maps::MapError, programs::ProgramError};

/// Why capturing could not start, follow a snapshot, or answer. None of them leaves the kernel
/// tables half changed; see the method that returns it.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum KernelError {
    /// The binary holds no kernel object.
    #[error("built without the kernel object: run `cargo xtask setup` and rebuild")]
    WithoutObject,
    /// Not allowed to load programs.
    #[error(
        "missing privilege to load kernel programs: run as root, or with CAP_BPF, CAP_NET_ADMIN, \
         CAP_SYS_ADMIN and CAP_DAC_READ_SEARCH"
    )]
    NotPrivileged,
    /// The kernel lacks helpers that the programs call.
    #[error("the kernel is {release}: Linux 5.15 or newer is needed")]
    KernelTooOld {
        /// `uname -r`.
        release: String,
    },
    /// Another agent owns the pins.
    #[error(
        "{} is held by another agent, pid {pid}: stop it, or choose another --bpffs",
        bpffs.display()
    )]
    Held {
        /// The directory of pins.
        bpffs: PathBuf,
        /// The owner, as it wrote itself down; `unknown` while it starts.
        pid: String,
    },
    /// The two redirect addresses mean the same thing.
    #[error("redirect addresses {first} and {second} serve the same sockets: give one of them")]
    RedirectAddressTwice {
        /// The first given.
        first: IpAddr,
        /// The second.
        second: IpAddr,
    },
    /// A file or directory.
    #[error("cannot {action} {}", path.display())]
    File {
        /// What was being done, as a verb.
        action: &'static str,
        /// On what.
        path: PathBuf,
        /// The reason.
        source: io::Error,
    },
    /// Not a directory of a cgroup v2 hierarchy.
    #[error(
        "{} is not a cgroup of a mounted cgroup v2 hierarchy: give a directory under the cgroup2 \
         mount (see /proc/mounts)",
        path.display()
    )]
    NotCgroup2 {
        /// The path given.
        path: PathBuf,
    },
    /// The kernel did not take the object.
    #[error("cannot load the kernel object")]
    Load {
        /// The reason.
        source: EbpfError,
    },
    /// The verifier refused a program.
    #[error("the kernel's verifier refused {program} (its full log stands above): {log_end}")]
    Verifier {
        /// The program.
        program: &'static str,
        /// Last lines of the log.
        log_end: String,
        /// What the system call said.
        source: io::Error,
    },
    /// A program could not be loaded, for another reason.
    #[error("cannot load program {program}")]
    Program {
        /// The program.
        program: &'static str,
        /// The reason.
        source: ProgramError,
    },
    /// The object lacks something that this version expects.
    #[error("the kernel object has no {name}: it was built from other sources; rebuild")]
    NotInObject {
        /// Program or map.
        name: &'static str,
    },
    /// A program could not be attached.
    #[error("cannot attach {program} to {target}")]
    Attach {
        /// The program.
        program: &'static str,
        /// The cgroup or interface.
        target: String,
        /// The reason.
        source: io::Error,
    },
    /// A map operation.
    #[error("cannot {action} map {map}")]
    Map {
        /// What was being done, as a verb.
        action: &'static str,
        /// The map.
        map: &'static str,
        /// The reason.
        source: MapError,
    },
    /// A system call on a map, link or socket.
    #[error("cannot {action}")]
    Call {
        /// What was being done.
        action: &'static str,
        /// The reason.
        source: io::Error,
    },
    /// The configuration needs more entries than a map holds; nothing was changed.
    #[error(
        "map {map} holds {capacity} entries and the configuration needs {wanted}: register fewer \
         addresses or use CIDRs"
    )]
    MapTooSmall {
        /// The map.
        map: &'static str,
        /// Its capacity.
        capacity: usize,
        /// Entries needed.
        wanted: usize,
    },
    /// The workloads file is not what it should be.
    #[error("{} is not a list of workloads", path.display())]
    Workloads {
        /// The file.
        path: PathBuf,
        /// The reason, with its line.
        source: serde_yaml::Error,
    },
    /// A pattern of the workloads file.
    #[error("{}: cgroup: {glob:?} is not a pattern", path.display())]
    WorkloadPattern {
        /// The file.
        path: PathBuf,
        /// The pattern.
        glob: String,
        /// The reason.
        source: globset::Error,
    },
}
