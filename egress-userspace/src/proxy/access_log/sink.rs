// SPDX-License-Identifier: Apache-2.0
//! Where access log lines end up, and the thread that brings them there.
//!
//! The thread sleeps until a worker says that its buffer is no longer empty, waits for more for at
//! most [`FLUSH_AFTER`], then writes every worker's buffer. A sink that blocks holds up this thread
//! and nobody else; the workers' backlogs are bounded by `recorder`.

use std::{
    fs::{File, OpenOptions},
    io::{self, Write},
    os::fd::AsFd,
    path::{Path, PathBuf},
    sync::{Arc, Condvar, Mutex, atomic::Ordering},
    thread,
    time::{Duration, Instant},
};

use super::recorder::{Shared, lock};

/// Longest time a line waits in a buffer (design.md 4).
pub const FLUSH_AFTER: Duration = Duration::from_millis(100);

/// Longest time [`super::AccessLog::close`] waits for the sink.
const CLOSE_WITHIN: Duration = Duration::from_secs(1);

/// Pause before a sink that cannot take more now is tried again.
const SINK_PAUSE: Duration = Duration::from_millis(10);

/// Where the lines go (`--access-log`).
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Destination {
    /// `-`.
    Stdout,
    /// A file, appended to and made when missing.
    File(PathBuf),
    /// No log; metrics are counted all the same.
    Off,
}

/// Why the log could not be started.
#[derive(Debug, thiserror::Error)]
pub enum SinkError {
    /// Opening or making the file failed.
    #[error("cannot open access log {}", path.display())]
    Open {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// Standard output is closed.
    #[error("cannot write the access log to standard output")]
    Stdout {
        /// Why.
        source: io::Error,
    },
    /// The operating system refused a thread.
    #[error("cannot start the access log writer")]
    Thread {
        /// Why.
        source: io::Error,
    },
}

/// An open destination.
#[derive(Debug)]
pub(super) struct Sink {
    file: File,
    /// `None` for standard output, which cannot be reopened.
    path: Option<PathBuf>,
    failing: bool,
}

impl Sink {
    /// `None` when there is to be no log.
    pub(super) fn open(destination: Destination) -> Result<Option<Self>, SinkError> {
        let (file, path) = match destination {
            Destination::Off => return Ok(None),
            // A descriptor of our own, since std's Stdout would buffer by line once more.
            Destination::Stdout => io::stdout()
                .as_fd()
                .try_clone_to_owned()
                .map(|fd| (File::from(fd), None))
                .map_err(|source| SinkError::Stdout { source })?,
            Destination::File(path) => match open_file(&path) {
                Ok(file) => (file, Some(path)),
                Err(source) => return Err(SinkError::Open { path, source }),
            },
        };
        Ok(Some(Self {
            file,
            path,
            failing: false,
        }))
    }

    fn reopen(&mut self) {
        let Some(path) = &self.path else { return };
        match open_file(path) {
            Ok(file) => self.file = file,
            Err(error) => {
                tracing::warn!(path = %path.display(), %error, "access log not reopened; the old file stays in use");
            }
        }
    }

    /// Writes whole buffers; returns how many lines were lost. One warning per run of failures.
    fn write(&mut self, lines: &[u8]) -> u64 {
        match write_all(&mut self.file, lines) {
            Ok(()) => {
                self.failing = false;
                0
            }
            Err((written, error)) => {
                if !std::mem::replace(&mut self.failing, true) {
                    tracing::warn!(%error, "access log lines are lost");
                }
                let lost = lines[written..].iter().filter(|byte| **byte == b'\n');
                lost.count() as u64
            }
        }
    }
}

fn open_file(path: &Path) -> io::Result<File> {
    OpenOptions::new().append(true).create(true).open(path)
}

/// As `Write::write_all`, but tells how far it came, and waits for a sink that somebody else set
/// to non-blocking.
fn write_all(file: &mut File, lines: &[u8]) -> Result<(), (usize, io::Error)> {
    let mut written = 0;
    while written < lines.len() {
        match file.write(&lines[written..]) {
            Ok(0) => return Err((written, io::ErrorKind::WriteZero.into())),
            Ok(count) => written += count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => thread::sleep(SINK_PAUSE),
            Err(error) => return Err((written, error)),
        }
    }
    Ok(())
}

/// Starts the writer; it ends after [`Wake::close`].
pub(super) fn spawn_writer(mut sink: Sink, shared: Arc<Shared>) -> Result<(), SinkError> {
    let write = move || {
        let mut spare = Vec::new();
        loop {
            let asked = shared.wake.wait();
            if asked.reopen {
                sink.reopen();
            }
            shared.drain(&mut spare, |lines| {
                let lost = sink.write(lines);
                shared.lost_lines.fetch_add(lost, Ordering::Relaxed);
            });
            if asked.close {
                shared.wake.closed();
                return;
            }
        }
    };
    thread::Builder::new()
        .name("access-log".into())
        .spawn(write)
        .map(drop)
        .map_err(|source| SinkError::Thread { source })
}

/// What the writer has been asked to do.
#[derive(Debug, Default)]
pub(super) struct Wake {
    asked: Mutex<Asked>,
    changed: Condvar,
}

#[derive(Debug, Default, Clone, Copy)]
struct Asked {
    /// When a buffer stopped being empty.
    dirty: Option<Instant>,
    full: bool,
    reopen: bool,
    close: bool,
    closed: bool,
}

impl Wake {
    /// A buffer is no longer empty.
    pub(super) fn dirty(&self) {
        let mut asked = lock(&self.asked);
        // The writer is counting down already when another buffer came first.
        if asked.dirty.is_none() {
            asked.dirty = Some(Instant::now());
            self.changed.notify_all();
        }
    }

    /// A buffer should be written at once.
    pub(super) fn full(&self) {
        self.ask(|asked| asked.full = true);
    }

    pub(super) fn reopen(&self) {
        self.ask(|asked| asked.reopen = true);
    }

    /// Asks the writer to finish and waits for it, up to [`CLOSE_WITHIN`].
    pub(super) fn close(&self) {
        self.ask(|asked| asked.close = true);
        let finished = self
            .changed
            .wait_timeout_while(lock(&self.asked), CLOSE_WITHIN, |asked| !asked.closed);
        if finished.is_ok_and(|(_, waited)| waited.timed_out()) {
            tracing::warn!("access log was not flushed within {CLOSE_WITHIN:?}");
        }
    }

    fn closed(&self) {
        self.ask(|asked| asked.closed = true);
    }

    fn ask(&self, ask: impl FnOnce(&mut Asked)) {
        ask(&mut lock(&self.asked));
        self.changed.notify_all();
    }

    /// Sleeps until there is something to do, and takes it.
    fn wait(&self) -> Asked {
        let mut asked = lock(&self.asked);
        loop {
            let flush_in = asked
                .dirty
                .map(|since| FLUSH_AFTER.saturating_sub(since.elapsed()));
            if asked.full || asked.reopen || asked.close || flush_in == Some(Duration::ZERO) {
                return std::mem::take(&mut *asked);
            }
            // A poisoned lock cannot happen: nothing panics while holding it.
            asked = match flush_in {
                None => self
                    .changed
                    .wait(asked)
                    .unwrap_or_else(std::sync::PoisonError::into_inner),
                Some(left) => {
                    self.changed
                        .wait_timeout(asked, left)
                        .unwrap_or_else(std::sync::PoisonError::into_inner)
                        .0
                }
            };
        }
    }
}
