// SPDX-License-Identifier: Apache-2.0
//! Waits for descriptors that the runtime does not know by itself: the ring buffer of events, and
//! changes of cgroups (inotify(7)).

use std::{
    collections::BTreeSet,
    io,
    os::fd::{AsFd, AsRawFd, OwnedFd},
    path::PathBuf,
};

use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify};
use tokio::io::{Interest, unix::AsyncFd};

/// Reports that processes came to, or left, one of many cgroups.
#[derive(Debug)]
pub struct CgroupWatch {
    inotify: Inotify,
    ready: AsyncFd<OwnedFd>,
    watched: BTreeSet<PathBuf>,
}

impl CgroupWatch {
    /// Watches nothing yet. To be called on a runtime.
    ///
    /// # Errors
    /// When the user has no inotify instance left.
    pub fn new() -> io::Result<Self> {
        let inotify = Inotify::init(InitFlags::IN_CLOEXEC | InitFlags::IN_NONBLOCK)?;
        let ready = readable(inotify.as_fd().try_clone_to_owned()?)?;
        Ok(Self {
            inotify,
            ready,
            watched: BTreeSet::new(),
        })
    }

    /// Watches these directories too, and forgets those that are not among them: the kernel drops a
    /// watch with its directory. A directory that cannot be watched is left to the next scan.
    pub fn follow(&mut self, directories: &BTreeSet<PathBuf>) {
        self.watched.retain(|path| directories.contains(path));
        for path in directories {
            if self.watched.contains(path) {
                continue;
            }
            // Processes come by a write to cgroup.procs, or are cloned into a new directory.
            let changes =
                AddWatchFlags::IN_CREATE | AddWatchFlags::IN_DELETE | AddWatchFlags::IN_MODIFY;
            if self.inotify.add_watch(path, changes).is_ok() {
                self.watched.insert(path.clone());
            }
        }
    }

    /// Waits for a change. Dropping the future loses none.
    pub async fn changed(&self) {
        loop {
            let Ok(mut guard) = self.ready.readable().await else {
                // The runtime is shutting down.
                return std::future::pending().await;
            };
            match self.inotify.read_events() {
                Ok(events) if !events.is_empty() => return,
                // Nothing left; also after an error, which the next scan makes good.
                _ => guard.clear_ready(),
            }
        }
    }
}

/// Watches a descriptor for reading, on the current runtime.
///
/// # Errors
/// When the runtime cannot.
pub fn readable<T: AsRawFd + AsFd>(descriptor: T) -> io::Result<AsyncFd<T>> {
    // SAFETY: the types used here (an owned descriptor, aya's ring buffer) own one descriptor that
    // they keep open and never exchange.
    unsafe { AsyncFd::register_with_interest(descriptor, Interest::READABLE) }
        .map_err(|error| error.into_parts().1)
}
