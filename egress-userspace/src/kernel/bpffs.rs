// SPDX-License-Identifier: Apache-2.0
//! The place for pins: a directory on a BPF file system, owned by one agent at a time.
//!
//! Ownership is an flock on a file under `/run/egress` named after the directory; a killed agent
//! loses it by dying. The pins themselves stay, and the next owner takes them over. The files come
//! and go under an flock on `/run/egress` itself.

use std::{
    fs::{self, File, OpenOptions},
    io::{Read, Seek, Write},
    os::unix::ffi::OsStrExt,
    path::{Path, PathBuf},
};

use egress_common::maps::LAYOUT_VERSION;
use nix::{
    errno::Errno,
    fcntl::{Flock, FlockArg},
    mount::{MsFlags, mount, umount},
    sys::statfs::{BPF_FS_MAGIC, statfs},
};

use super::error::KernelError;

/// Where ownership is written down.
const RUN_DIRECTORY: &str = "/run/egress";
/// The usual mount point of the BPF file system.
const USUAL_MOUNT: &str = "/sys/fs/bpf";

/// An owned directory of pins.
#[derive(Debug)]
pub struct PinDirectory {
    path: PathBuf,
    mounted_here: bool,
    lock_path: PathBuf,
    _lock: Flock<File>,
}

impl PinDirectory {
    /// Takes ownership of `bpffs` and makes sure that it lies on a BPF file system, mounting one
    /// if it does not.
    ///
    /// # Errors
    /// [`KernelError::Held`] when another agent owns it; [`KernelError::File`] otherwise.
    pub fn own(bpffs: &Path) -> Result<Self, KernelError> {
        let files = lock_files()?;
        let lock_path = lock_path(bpffs);
        let lock = lock(bpffs, &lock_path)?;
        remove_stale_locks();
        drop(files);
        let mounted_here = ensure_mounted(bpffs)?;
        let directory = Self {
            path: bpffs.to_owned(),
            mounted_here,
            lock_path,
            _lock: lock,
        };
        for path in [directory.version(), directory.links()] {
            fs::create_dir_all(&path).map_err(|source| KernelError::File {
                action: "create",
                path,
                source,
            })?;
        }
        Ok(directory)
    }

    /// Where the maps of this layout are pinned.
    pub fn version(&self) -> PathBuf {
        version_directory(&self.path)
    }

    /// Where the links of this layout are pinned.
    pub fn links(&self) -> PathBuf {
        self.version().join("links")
    }

    /// Directories of other layout versions: pins of an agent that was upgraded or downgraded.
    pub fn other_versions(&self) -> Vec<PathBuf> {
        let current = self.version();
        let entries = self.path.read_dir().into_iter().flatten().flatten();
        entries
            .map(|entry| entry.path())
            .filter(|path| *path != current && is_version_directory(path))
            .collect()
    }

    /// Removes the directory with every pin that is left in it, and gives up ownership.
    pub fn remove(self) -> Result<(), KernelError> {
        for version in self.other_versions().into_iter().chain([self.version()]) {
            remove_version(&version)?;
        }
        if self.mounted_here {
            if self.path != Path::new(USUAL_MOUNT) && umount(&self.path).is_ok() {
                let _ = fs::remove_dir(&self.path);
            }
        } else {
            // Not ours alone: it stays when something else lives in it.
            let _ = fs::remove_dir(&self.path);
        }
        let _files = lock_files()?;
        // One that stays is stale, and the next owner's to remove.
        let _ = fs::remove_file(&self.lock_path);
        Ok(())
    }
}

/// Where the maps of this layout are pinned under `bpffs`.
pub fn version_directory(bpffs: &Path) -> PathBuf {
    bpffs.join(format!("v{LAYOUT_VERSION}"))
}

/// Removes the pins of one layout version.
pub fn remove_version(version: &Path) -> Result<(), KernelError> {
    match fs::remove_dir_all(version) {
        Err(source) if source.kind() != std::io::ErrorKind::NotFound => Err(KernelError::File {
            action: "remove",
            path: version.to_owned(),
            source,
        }),
        _ => Ok(()),
    }
}

fn is_version_directory(path: &Path) -> bool {
    path.file_name()
        .and_then(|name| name.to_str())
        .and_then(|name| name.strip_prefix('v'))
        .is_some_and(|number| number.parse::<u32>().is_ok())
}

/// Holds every change of the lock files until dropped: nobody opens a file that is being removed.
fn lock_files() -> Result<Flock<File>, KernelError> {
    let failed = |action, source| KernelError::File {
        action,
        path: RUN_DIRECTORY.into(),
        source,
    };
    fs::create_dir_all(RUN_DIRECTORY).map_err(|source| failed("create", source))?;
    let directory = File::open(RUN_DIRECTORY).map_err(|source| failed("open", source))?;
    Flock::lock(directory, FlockArg::LockExclusive)
        .map_err(|(_, errno)| failed("lock", errno.into()))
}

/// Removes the files of agents that were killed. The caller holds [`lock_files`]. What cannot be
/// removed does no harm.
fn remove_stale_locks() {
    let entries = Path::new(RUN_DIRECTORY).read_dir().into_iter().flatten();
    for path in entries.flatten().map(|entry| entry.path()) {
        if path
            .extension()
            .is_some_and(|extension| extension == "lock")
            && let Ok(file) = File::open(&path)
            && let Ok(_stale) = Flock::lock(file, FlockArg::LockExclusiveNonblock)
        {
            let _ = fs::remove_file(&path);
        }
    }
}

fn lock_path(bpffs: &Path) -> PathBuf {
    Path::new(RUN_DIRECTORY).join(format!("{:016x}.lock", path_hash(bpffs)))
}

/// Takes ownership. The caller holds [`lock_files`].
fn lock(bpffs: &Path, path: &Path) -> Result<Flock<File>, KernelError> {
    let failed = |action, source| KernelError::File {
        action,
        path: path.to_owned(),
        source,
    };
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .open(path)
        .map_err(|source| failed("open", source))?;
    match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
        Ok(mut lock) => {
            let text = format!("{}\n{}\n", std::process::id(), bpffs.display());
            lock.set_len(0)
                .and_then(|()| lock.rewind())
                .and_then(|()| lock.write_all(text.as_bytes()))
                .map_err(|source| failed("write", source))?;
            Ok(lock)
        }
        Err((mut file, Errno::EWOULDBLOCK)) => {
            let mut text = String::new();
            let _ = file.read_to_string(&mut text);
            Err(KernelError::Held {
                bpffs: bpffs.to_owned(),
                pid: text.lines().next().unwrap_or("unknown").to_owned(),
            })
        }
        Err((_, errno)) => Err(failed("lock", errno.into())),
    }
}

/// The same for every spelling of one directory, as far as it exists.
fn path_hash(bpffs: &Path) -> u64 {
    let absolute = std::path::absolute(bpffs).unwrap_or_else(|_| bpffs.to_owned());
    let existing = existing_ancestor(&absolute);
    let rest = absolute.strip_prefix(existing).unwrap_or(Path::new(""));
    let resolved = match existing.canonicalize() {
        Ok(real) if rest.as_os_str().is_empty() => real,
        Ok(real) => real.join(rest),
        Err(_) => absolute,
    };
    fnv1a(resolved.as_os_str().as_bytes())
}

/// FNV-1a, 64 bits: the same in every build, unlike the standard library's hashers.
fn fnv1a(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
        (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3)
    })
}

/// Returns whether a file system was mounted at `bpffs` itself.
fn ensure_mounted(bpffs: &Path) -> Result<bool, KernelError> {
    if on_bpffs(existing_ancestor(bpffs))? {
        return Ok(false);
    }
    let usual = Path::new(USUAL_MOUNT);
    let target = if bpffs.starts_with(usual) && usual.is_dir() {
        usual
    } else {
        fs::create_dir_all(bpffs).map_err(|source| KernelError::File {
            action: "create",
            path: bpffs.to_owned(),
            source,
        })?;
        bpffs
    };
    mount(
        Some("bpf"),
        target,
        Some("bpf"),
        MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC,
        Some("mode=0700"),
    )
    .map_err(|errno| KernelError::File {
        action: "mount a BPF file system at",
        path: target.to_owned(),
        source: errno.into(),
    })?;
    tracing::info!(path = %target.display(), "mounted a BPF file system");
    Ok(target == bpffs)
}

fn existing_ancestor(path: &Path) -> &Path {
    path.ancestors()
        .find(|ancestor| ancestor.exists())
        .unwrap_or(Path::new("/"))
}

fn on_bpffs(path: &Path) -> Result<bool, KernelError> {
    match statfs(path) {
        Ok(found) => Ok(found.filesystem_type() == BPF_FS_MAGIC),
        Err(errno) => Err(KernelError::File {
            action: "examine",
            path: path.to_owned(),
            source: errno.into(),
        }),
    }
}
