// SPDX-License-Identifier: Apache-2.0
//! Which workload a cgroup belongs to, on a node without Kubernetes: `--workloads`.
//!
//! The kernel reports the cgroup id of the caller; the id is turned into a path by asking the
//! kernel for the directory behind it, and the path is matched against the file's patterns. Both
//! answers are kept, so that the accept path costs one read of a map.

use std::{
    collections::{BTreeMap, HashMap},
    fs::{self, File},
    io,
    os::{
        fd::{AsRawFd, FromRawFd, OwnedFd},
        unix::fs::MetadataExt,
    },
    path::{Path, PathBuf},
    sync::{Arc, PoisonError, RwLock},
};

use globset::{GlobBuilder, GlobMatcher};
use nix::sys::statfs::{CGROUP2_SUPER_MAGIC, statfs};

use super::error::KernelError;
use crate::workload::Workload;

/// `FILEID_KERNFS` (include/linux/exportfs.h, Linux 5.5): the handle is the 64-bit cgroup id.
const FILEID_KERNFS: libc::c_int = 0xfe;
/// Cgroups whose workload is remembered; beyond this, all are forgotten and asked again.
const CACHE_CAPACITY: usize = 16_384;

/// The patterns of a `--workloads` file, in its order. The default holds none.
#[derive(Debug, Clone, Default)]
pub struct Workloads {
    rules: Arc<[(GlobMatcher, Arc<Workload>)]>,
}

/// One element of the file as written.
#[derive(Debug, serde::Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct WorkloadEntry {
    cgroup: String,
    #[serde(default)]
    namespace: String,
    #[serde(default)]
    name: String,
    #[serde(default)]
    labels: BTreeMap<String, String>,
    #[serde(default)]
    service_account: String,
}

/// A mounted cgroup v2 hierarchy.
#[derive(Debug)]
pub struct CgroupTree {
    mount_point: PathBuf,
    mount: File,
}

/// Cgroup ids to workloads.
#[derive(Debug)]
pub struct WorkloadFinder {
    tree: CgroupTree,
    workloads: Workloads,
    cache: RwLock<HashMap<u64, Option<Arc<Workload>>>>,
}

impl Workloads {
    /// Every workload of the file, in its order.
    pub fn all(&self) -> Vec<Arc<Workload>> {
        self.rules
            .iter()
            .map(|(_, workload)| workload.clone())
            .collect()
    }

    /// Reads a list of `{cgroup: GLOB, namespace, name, labels, serviceAccount}`. The glob is
    /// matched against the cgroup's path relative to the cgroup v2 mount, with a leading slash;
    /// `*` stays within one path component, `**` does not. A directory that matches stands for
    /// everything below it; the first entry that matches wins.
    ///
    /// # Errors
    /// When the file cannot be read, is not such a list, or holds a bad pattern.
    pub fn from_yaml_file(path: &Path) -> Result<Self, KernelError> {
        let text = fs::read_to_string(path).map_err(|source| KernelError::File {
            action: "read",
            path: path.to_owned(),
            source,
        })?;
        let entries: Option<Vec<WorkloadEntry>> =
            serde_yaml::from_str(&text).map_err(|source| KernelError::Workloads {
                path: path.to_owned(),
                source,
            })?;
        let rules = entries.unwrap_or_default().into_iter().map(|entry| {
            let glob = GlobBuilder::new(&entry.cgroup)
                .literal_separator(true)
                .build()
                .map_err(|source| KernelError::WorkloadPattern {
                    path: path.to_owned(),
                    glob: entry.cgroup.clone(),
                    source,
                })?;
            let workload = Workload {
                namespace: entry.namespace,
                name: entry.name,
                labels: entry.labels,
                service_account: entry.service_account,
            };
            Ok((glob.compile_matcher(), Arc::new(workload)))
        });
        Ok(Self {
            rules: rules.collect::<Result<_, KernelError>>()?,
        })
    }

    /// The workload of a cgroup, by its path relative to the mount, with a leading slash.
    pub fn at_path(&self, cgroup: &Path) -> Option<&Arc<Workload>> {
        self.rules
            .iter()
            .find(|(glob, _)| cgroup.ancestors().any(|path| glob.is_match(path)))
            .map(|(_, workload)| workload)
    }
}

impl CgroupTree {
    /// The hierarchy that holds `cgroup`.
    ///
    /// # Errors
    /// [`KernelError::NotCgroup2`] when there is none.
    pub fn of(cgroup: &Path) -> Result<Self, KernelError> {
        let absent = || KernelError::NotCgroup2 {
            path: cgroup.to_owned(),
        };
        let real = cgroup.canonicalize().map_err(|source| KernelError::File {
            action: "open cgroup",
            path: cgroup.to_owned(),
            source,
        })?;
        if !statfs(&real).is_ok_and(|found| found.filesystem_type() == CGROUP2_SUPER_MAGIC) {
            return Err(absent());
        }
        let mounts = fs::read_to_string("/proc/self/mounts").unwrap_or_default();
        let mount_point = cgroup2_mounts(&mounts)
            .filter(|mount_point| real.starts_with(mount_point))
            .max_by_key(|mount_point| mount_point.as_os_str().len())
            .ok_or_else(absent)?;
        let mount = File::open(&mount_point).map_err(|source| KernelError::File {
            action: "open",
            path: mount_point.clone(),
            source,
        })?;
        Ok(Self { mount_point, mount })
    }

    /// The root of the hierarchy as it is mounted here.
    pub fn root(&self) -> &File {
        &self.mount
    }

    /// Where it is mounted.
    pub fn mount_point(&self) -> &Path {
        &self.mount_point
    }

    /// The path of a cgroup relative to the mount, with a leading slash; `None` when it is gone
    /// or lies outside of the mount. Needs CAP_DAC_READ_SEARCH (open_by_handle_at(2)).
    pub fn path_of(&self, cgroup_id: u64) -> io::Result<Option<PathBuf>> {
        #[repr(C)]
        struct Handle {
            bytes: libc::c_uint,
            kind: libc::c_int,
            id: [u8; 8],
        }
        let mut handle = Handle {
            bytes: 8,
            kind: FILEID_KERNFS,
            id: cgroup_id.to_ne_bytes(),
        };
        // SAFETY: `handle` has the layout of struct file_handle with eight bytes of handle and
        // outlives the call.
        let fd = unsafe {
            libc::open_by_handle_at(
                self.mount.as_raw_fd(),
                (&raw mut handle).cast(),
                libc::O_PATH | libc::O_CLOEXEC,
            )
        };
        if fd < 0 {
            let error = io::Error::last_os_error();
            return match error.raw_os_error() {
                Some(libc::ESTALE | libc::ENOENT) => Ok(None),
                _ => Err(error),
            };
        }
        // SAFETY: a new descriptor that nothing else owns.
        let directory = unsafe { OwnedFd::from_raw_fd(fd) };
        let path = fs::read_link(format!("/proc/self/fd/{}", directory.as_raw_fd()))?;
        Ok(path
            .strip_prefix(&self.mount_point)
            .ok()
            .map(|relative| Path::new("/").join(relative)))
    }
}

/// The id of a cgroup: its inode number (kernfs, 64-bit kernels).
pub fn cgroup_id(cgroup: &File) -> io::Result<u64> {
    Ok(cgroup.metadata()?.ino())
}

impl WorkloadFinder {
    /// Finds workloads of `tree` by the patterns.
    pub fn new(tree: CgroupTree, workloads: Workloads) -> Self {
        Self {
            tree,
            workloads,
            cache: RwLock::default(),
        }
    }

    /// The hierarchy.
    pub fn tree(&self) -> &CgroupTree {
        &self.tree
    }

    /// The workload that the patterns give to the first of these cgroups that has one.
    pub fn named<'a>(
        &self,
        cgroups: impl IntoIterator<Item = &'a PathBuf>,
    ) -> Option<Arc<Workload>> {
        cgroups
            .into_iter()
            .find_map(|path| self.workloads.at_path(path).cloned())
    }

    /// The workload of a process in the agent's network namespace, by its cgroup: what a pattern
    /// says, else the systemd unit. A cgroup that is gone has none.
    pub fn find(&self, cgroup_id: u64) -> Option<Arc<Workload>> {
        let known = self
            .cache
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .get(&cgroup_id)
            .cloned();
        known.unwrap_or_else(|| self.ask(cgroup_id))
    }

    fn ask(&self, cgroup_id: u64) -> Option<Arc<Workload>> {
        let path = self.tree.path_of(cgroup_id).unwrap_or_else(|error| {
            tracing::warn!(cgroup_id, %error, "cannot name a cgroup");
            None
        });
        let workload = path.and_then(|path| {
            let named = self.workloads.at_path(&path).cloned();
            named.or_else(|| systemd_unit(&path).map(Arc::new))
        });
        let mut cache = self.cache.write().unwrap_or_else(PoisonError::into_inner);
        if cache.len() >= CACHE_CAPACITY {
            cache.clear();
        }
        cache.insert(cgroup_id, workload.clone());
        workload
    }
}

/// The unit of a cgroup that systemd made: its innermost service or scope
/// (systemd.unit(5): the cgroup's directory has the unit's name).
fn systemd_unit(cgroup: &Path) -> Option<Workload> {
    let unit = cgroup
        .iter()
        .rev()
        .filter_map(|part| part.to_str())
        .find(|part| part.ends_with(".service") || part.ends_with(".scope"))?;
    Some(Workload {
        name: unit.to_owned(),
        ..Workload::default()
    })
}

/// Mount points of type cgroup2 in the form of /proc/self/mounts (spaces are `\040`).
pub(super) fn cgroup2_mounts(mounts: &str) -> impl Iterator<Item = PathBuf> {
    mounts.lines().filter_map(|line| {
        let mut fields = line.split(' ');
        let mount_point = fields.nth(1)?;
        (fields.next()? == "cgroup2").then(|| PathBuf::from(mount_point.replace("\\040", " ")))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn workloads(yaml: &str) -> Result<Workloads, KernelError> {
        let file = std::env::temp_dir().join(format!(
            "egress-workloads-{}-{:?}.yaml",
            std::process::id(),
            std::thread::current().id()
        ));
        fs::write(&file, yaml).unwrap();
        let parsed = Workloads::from_yaml_file(&file);
        fs::remove_file(&file).unwrap();
        parsed
    }

    #[test]
    fn first_pattern_that_covers_the_cgroup_wins() {
        let workloads = workloads(
            "- {cgroup: /pods/sleep-*, namespace: istio-demo, name: sleep, labels: {app: sleep}}\n\
             - {cgroup: '/pods/**', namespace: other, serviceAccount: default}\n\
             - {cgroup: /system.slice/nightly.service, name: nightly}\n",
        )
        .unwrap();
        for (cgroup, expected) in [
            ("/pods/sleep-1", Some(("istio-demo", "sleep"))),
            (
                "/pods/sleep-1/container/init",
                Some(("istio-demo", "sleep")),
            ),
            ("/pods/httpbin", Some(("other", ""))),
            ("/pods/a/b/c", Some(("other", ""))),
            ("/pods", None),
            ("/podsy", None),
            ("/system.slice/nightly.service", Some(("", "nightly"))),
            ("/system.slice/nightly.service/x", Some(("", "nightly"))),
            ("/system.slice", None),
            ("/", None),
        ] {
            let found = workloads
                .at_path(Path::new(cgroup))
                .map(|workload| (workload.namespace.as_str(), workload.name.as_str()));
            assert_eq!(found, expected, "{cgroup}");
        }
    }

    #[test]
    fn file_with_an_unknown_field_or_a_bad_pattern_is_refused() {
        for (yaml, expected) in [
            ("- {cgroup: /a, nmae: x}", "is not a list of workloads"),
            ("cgroup: /a", "is not a list of workloads"),
            ("- {name: x}", "is not a list of workloads"),
            ("- {cgroup: '/a[', name: x}", "is not a pattern"),
        ] {
            let error = workloads(yaml).unwrap_err().to_string();
            assert!(error.contains(expected), "{yaml}: {error}");
        }
    }

    #[test]
    fn empty_file_names_no_workload() {
        assert!(workloads("").unwrap().at_path(Path::new("/a")).is_none());
    }

    #[test]
    fn processes_of_the_host_are_named_after_their_unit() {
        for (cgroup, expected) in [
            ("/system.slice/nightly.service", Some("nightly.service")),
            (
                "/system.slice/nightly.service/worker",
                Some("nightly.service"),
            ),
            (
                "/user.slice/user-0.slice/session-1.scope",
                Some("session-1.scope"),
            ),
            ("/system.slice", None),
            ("/", None),
        ] {
            let unit = systemd_unit(Path::new(cgroup)).map(|workload| workload.name);
            assert_eq!(unit.as_deref(), expected, "{cgroup}");
        }
    }

    #[test]
    fn mounts_of_hybrid_and_unified_layouts_are_found() {
        let mounts = "proc /proc proc rw 0 0\n\
                      cgroup /sys/fs/cgroup/cpu cgroup rw,cpu 0 0\n\
                      cgroup2 /sys/fs/cgroup/unified cgroup2 rw 0 0\n\
                      cgroup2 /mnt/with\\040space cgroup2 rw 0 0\n";
        let found: Vec<_> = cgroup2_mounts(mounts).collect();
        assert_eq!(
            found,
            [
                PathBuf::from("/sys/fs/cgroup/unified"),
                PathBuf::from("/mnt/with space")
            ]
        );
    }
}
