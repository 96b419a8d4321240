// SPDX-License-Identifier: Apache-2.0
//! Attaches the programs to cgroups and detaches them; knows the pinned links.
//!
//! A link's pin is named `PROGRAM-CGROUPID`. A pin that an earlier agent left is taken over by
//! replacing the program inside the link, so no connect() goes uncaptured in between.

use std::{
    fs::{self, File},
    io,
    os::fd::{AsFd, OwnedFd},
    path::{Path, PathBuf},
};

use aya::{
    Ebpf,
    programs::{CgroupAttachMode, Program, ProgramError, links::FdLink},
};

use super::{
    bpffs::{PinDirectory, remove_version},
    cgroups::cgroup_id,
    error::KernelError,
    loader::PROGRAMS,
    syscall,
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
    ebpf: &mut Ebpf,
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
                .any(|program| pin.file_name() == Some(pin_name(program, cgroup).as_ref()))
        });
        if !wanted {
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
    ebpf: &mut Ebpf,
    directory: &PinDirectory,
    name: &'static str,
    cgroup: &Cgroup,
) -> Result<(), KernelError> {
    let program = ebpf
        .program_mut(name)
        .ok_or(KernelError::NotInObject { name })?;
    let pin = directory.links().join(pin_name(name, cgroup));
    if take_over(program, directory, &pin, cgroup.id)? {
        return Ok(());
    }
    let link = create(program, &cgroup.directory).map_err(|source| KernelError::Attach {
        program: name,
        cgroup: cgroup.path.clone(),
        source,
    })?;
    link.pin(&pin)
        .map(drop)
        .map_err(|source| KernelError::Pin { path: pin, source })
}

fn create(program: &mut Program, cgroup: &File) -> Result<FdLink, ProgramError> {
    // Single is right although others may attach too: a bpf_link always allows multiple
    // programs, and the kernel refuses the flag for it.
    let mode = CgroupAttachMode::Single;
    let to_program_error = |_| ProgramError::UnexpectedProgramType;
    match program {
        Program::CgroupSockAddr(program) => {
            let link = program.attach(cgroup, mode)?;
            program
                .take_link(link)?
                .try_into()
                .map_err(to_program_error)
        }
        Program::SockOps(program) => {
            let link = program.attach(cgroup, mode)?;
            program
                .take_link(link)?
                .try_into()
                .map_err(to_program_error)
        }
        _ => Err(ProgramError::UnexpectedProgramType),
    }
}

/// Puts the program into the link that an earlier agent pinned, in this layout version or
/// another. False when there is none that is still attached to the cgroup.
fn take_over(
    program: &Program,
    directory: &PinDirectory,
    pin: &Path,
    cgroup_id: u64,
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
        if !is_attached_to(&link, cgroup_id) {
            remove_pin(&candidate)?;
            continue;
        }
        let call_failed = |action| move |source| KernelError::Call { action, source };
        let program_fd = program
            .fd()
            .map_err(|source| call_failed("use a program")(io::Error::other(source)))?;
        syscall::update_link(link.as_fd(), program_fd.as_fd())
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

/// A link outlives its cgroup as an object that is attached to nothing, with cgroup id 0.
fn is_attached_to(link: &OwnedFd, cgroup_id: u64) -> bool {
    syscall::cgroup_link_info(link.as_fd()).is_ok_and(|info| info.cgroup_id == cgroup_id)
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
