// SPDX-License-Identifier: Apache-2.0
//! Attaches the programs to cgroups and detaches them; knows the pinned links.
//!
//! A link's pin is named `PROGRAM-CGROUPID`. A pin that an earlier agent left is taken over by
//! replacing the program inside the link, so no connect() goes uncaptured in between.

use std::{
    collections::BTreeSet,
    fs::{self, File},
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    path::{Path, PathBuf},
};

use aya::Ebpf;

use super::{
    bpffs::{PinDirectory, remove_version},
    cgroups::cgroup_id,
    error::KernelError,
    loader::{KernelProgram, PROGRAMS, TC_PROGRAM, program_fd},
    syscall::{self, LinkInfo},
};

/// A captured cgroup.
#[derive(Debug)]
pub struct Cgroup {
    path: PathBuf,
    directory: File,
    id: u64,
}

impl Cgroup {
    /// Opens the directory of a cgroup.
    pub fn open(path: &Path) -> Result<Self, KernelError> {
        let failed = |source| KernelError::File {
            action: "open cgroup",
            path: path.to_owned(),
            source,
        };
        let directory = File::open(path).map_err(failed)?;
        let id = cgroup_id(&directory).map_err(failed)?;
        Ok(Self {
            path: path.to_owned(),
            directory,
            id,
        })
    }
}

/// Attaches every program to every cgroup and drops links to cgroups that are gone or no longer
/// wanted. Programs that redirect are attached after those that record.
pub fn attach(
    ebpf: &Ebpf,
    directory: &PinDirectory,
    cgroups: &[Cgroup],
) -> Result<(), KernelError> {
    for program in PROGRAMS {
        for cgroup in cgroups {
            attach_one(ebpf, directory, program, cgroup)?;
        }
    }
    for pin in pinned_links(&directory.links()) {
        let wanted = cgroups.iter().any(|cgroup| {
            PROGRAMS
                .iter()
                .any(|program| pin.file_name() == Some(pin_name(program.name, cgroup).as_ref()))
        });
        // Cables are known only when pods are.
        if !wanted && !is_cable(&pin) {
            tracing::info!(pin = %pin.display(), "dropping a link that is no longer wanted");
            drop_link(&pin)?;
        }
    }
    for version in directory.other_versions() {
        detach(&version.join("links"))?;
        remove_version(&version)?;
    }
    Ok(())
}

/// Attaches the program for cables to exactly these interfaces (indices in the agent's network
/// namespace); returns those where it failed, with the reason.
pub fn attach_cables(
    program: BorrowedFd<'_>,
    directory: &PinDirectory,
    interfaces: &BTreeSet<u32>,
) -> Vec<(u32, KernelError)> {
    let mut failed = Vec::new();
    for pin in pinned_links(&directory.links()) {
        let wanted = interfaces
            .iter()
            .any(|interface| pin.file_name() == Some(cable_name(*interface).as_ref()));
        if is_cable(&pin)
            && !wanted
            && let Err(error) = drop_link(&pin)
        {
            tracing::warn!(pin = %pin.display(), %error, "cannot drop a link");
        }
    }
    for interface in interfaces {
        if let Err(error) = attach_cable(program, directory, *interface) {
            failed.push((*interface, error));
        }
    }
    failed
}

fn attach_cable(
    program: BorrowedFd<'_>,
    directory: &PinDirectory,
    interface: u32,
) -> Result<(), KernelError> {
    let pin = directory.links().join(cable_name(interface));
    if take_over(program, directory, &pin, |link| {
        link.interface() == interface
    })? {
        return Ok(());
    }
    let link =
        syscall::link_interface(program, interface, TC_PROGRAM.attach_type).map_err(|source| {
            KernelError::Attach {
                program: TC_PROGRAM.name,
                target: format!("interface {interface}"),
                source,
            }
        })?;
    pin_link(&link, &pin)
}

fn is_cable(pin: &Path) -> bool {
    pin.file_name()
        .is_some_and(|name| name.to_string_lossy().starts_with(TC_PROGRAM.name))
}

fn cable_name(interface: u32) -> String {
    format!("{}-{interface}", TC_PROGRAM.name)
}

/// Detaches every pinned link of a directory and removes the pins; who redirects goes first.
pub fn detach(links: &Path) -> Result<(), KernelError> {
    let pins = pinned_links(links);
    let (redirecting, others): (Vec<_>, Vec<_>) = pins.into_iter().partition(|pin| {
        pin.file_name()
            .is_some_and(|name| name.to_string_lossy().starts_with("egress_connect"))
    });
    redirecting
        .into_iter()
        .chain(others)
        .try_for_each(|pin| drop_link(&pin))
}

/// Whether an earlier agent left links.
pub fn has_links(directory: &PinDirectory) -> bool {
    let links = |version: &Path| !pinned_links(&version.join("links")).is_empty();
    links(&directory.version()) || directory.other_versions().iter().any(|path| links(path))
}

fn attach_one(
    ebpf: &Ebpf,
    directory: &PinDirectory,
    program: KernelProgram,
    cgroup: &Cgroup,
) -> Result<(), KernelError> {
    let program_fd = program_fd(ebpf, program.name)?.as_fd();
    let pin = directory.links().join(pin_name(program.name, cgroup));
    if take_over(program_fd, directory, &pin, |link| {
        link.cgroup_id() == cgroup.id
    })? {
        return Ok(());
    }
    let link = syscall::link_cgroup(program_fd, cgroup.directory.as_fd(), program.attach_type)
        .map_err(|source| KernelError::Attach {
            program: program.name,
            target: cgroup.path.display().to_string(),
            source,
        })?;
    pin_link(&link, &pin)
}

fn pin_link(link: &OwnedFd, pin: &Path) -> Result<(), KernelError> {
    syscall::pin(link.as_fd(), pin).map_err(|source| KernelError::File {
        action: "pin",
        path: pin.to_owned(),
        source,
    })
}

/// Puts the program into the link that an earlier agent pinned, in this layout version or
/// another. False when there is none that is still attached to what it should be.
fn take_over(
    program: BorrowedFd<'_>,
    directory: &PinDirectory,
    pin: &Path,
    is_attached: impl Fn(LinkInfo) -> bool,
) -> Result<bool, KernelError> {
    let name = pin.file_name().unwrap_or_default();
    let elsewhere = directory.other_versions();
    let candidates = [pin.to_owned()].into_iter().chain(
        elsewhere
            .iter()
            .map(|version| version.join("links").join(name)),
    );
    for candidate in candidates.filter(|path| path.exists()) {
        let link = open_link(&candidate)?;
        if !syscall::link_info(link.as_fd()).is_ok_and(&is_attached) {
            remove_pin(&candidate)?;
            continue;
        }
        let call_failed = |action| move |source| KernelError::Call { action, source };
        syscall::update_link(link.as_fd(), program)
            .map_err(call_failed("replace the program of a pinned link"))?;
        if candidate != pin {
            syscall::pin(link.as_fd(), pin).map_err(call_failed("move a pinned link"))?;
            remove_pin(&candidate)?;
        }
        tracing::info!(pin = %pin.display(), "took over a link");
        return Ok(true);
    }
    Ok(false)
}

fn drop_link(pin: &Path) -> Result<(), KernelError> {
    let link = open_link(pin)?;
    // Detaching makes it certain that no program runs any more; a link whose cgroup is gone is
    // detached already.
    match syscall::detach_link(link.as_fd()) {
        Err(source) if source.raw_os_error() != Some(libc::ENOLINK) => {
            tracing::debug!(pin = %pin.display(), error = %source, "link was not attached");
        }
        _ => {}
    }
    remove_pin(pin)
}

fn open_link(pin: &Path) -> Result<OwnedFd, KernelError> {
    syscall::open_pin(pin).map_err(|source| KernelError::File {
        action: "open pinned link",
        path: pin.to_owned(),
        source,
    })
}

fn remove_pin(pin: &Path) -> Result<(), KernelError> {
    fs::remove_file(pin).map_err(|source| KernelError::File {
        action: "remove",
        path: pin.to_owned(),
        source,
    })
}

fn pinned_links(links: &Path) -> Vec<PathBuf> {
    let entries = links.read_dir().into_iter().flatten().flatten();
    let mut pins: Vec<PathBuf> = entries.map(|entry| entry.path()).collect();
    pins.sort();
    pins
}

fn pin_name(program: &str, cgroup: &Cgroup) -> String {
    format!("{program}-{}", cgroup.id)
}
