// SPDX-License-Identifier: Apache-2.0
//! The recorders of the workers, and the log they share.
//!
//! Each worker appends to a buffer and to series of its own behind its own mutex. Only that worker
//! takes the mutex per record; the writer takes it to exchange the buffer (a pointer swap, at most
//! some ten times a second) and a scrape takes it to copy the series. So the lock is uncontended
//! on the request path, and records stay in order without a queue.

use std::{
    mem,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
};

use super::{
    AccessRecord,
    append::Clock,
    format::Format,
    series::{Series, Totals, TrafficLabels},
    sink::{self, Destination, Sink, SinkError, Wake},
};

/// A buffer this long is written at once instead of at the next flush.
const WRITE_AT: usize = 64 * 1024;

/// A worker's backlog; lines beyond it are dropped and counted. About 3,000 lines.
const MAX_BACKLOG: usize = 1024 * 1024;

/// The access log of the process: hands out recorders, owns the writer thread.
#[derive(Debug, Clone)]
pub struct AccessLog {
    shared: Arc<Shared>,
}

/// What workers and writer share.
#[derive(Debug)]
pub(super) struct Shared {
    pub(super) wake: Wake,
    workers: Mutex<Vec<Arc<Worker>>>,
    format: Mutex<Arc<Format>>,
    /// Counts changes of `format`, so that a worker looks at the mutex only after a change.
    format_version: AtomicU64,
    /// Lines that reached the writer but not the sink.
    pub(super) lost_lines: AtomicU64,
    enabled: bool,
}

/// One worker's half.
#[derive(Debug)]
struct Worker {
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    buffer: Vec<u8>,
    format: Arc<Format>,
    format_version: u64,
    clock: Clock,
    series: Series,
    dropped_lines: u64,
}

impl AccessLog {
    /// Opens the destination and starts the writer thread (none for [`Destination::Off`]).
    ///
    /// # Errors
    /// The file cannot be opened, or the thread not started.
    pub fn start(destination: Destination, format: Format) -> Result<Self, SinkError> {
        let sink = Sink::open(destination)?;
        let shared = Arc::new(Shared {
            wake: Wake::default(),
            workers: Mutex::default(),
            format: Mutex::new(Arc::new(format)),
            format_version: AtomicU64::new(0),
            lost_lines: AtomicU64::new(0),
            enabled: sink.is_some(),
        });
        if let Some(sink) = sink {
            sink::spawn_writer(sink, Arc::clone(&shared))?;
        }
        Ok(Self { shared })
    }

    /// A recorder for one worker. Call once per worker; clones share buffer and series.
    pub fn recorder(&self) -> Recorder {
        let worker = Arc::new(Worker {
            state: Mutex::new(State {
                buffer: Vec::new(),
                format: Arc::clone(&lock(&self.shared.format)),
                format_version: self.shared.format_version.load(Ordering::Acquire),
                clock: Clock::default(),
                series: Series::default(),
                dropped_lines: 0,
            }),
        });
        lock(&self.shared.workers).push(Arc::clone(&worker));
        Recorder {
            worker,
            shared: Arc::clone(&self.shared),
        }
    }

    /// Writes later records in another form, when it is another.
    pub fn set_format(&self, format: Format) {
        let mut current = lock(&self.shared.format);
        if **current != format {
            *current = Arc::new(format);
            self.shared.format_version.fetch_add(1, Ordering::Release);
        }
    }

    /// Opens the file again under its name, for logrotate. What is buffered goes to the new file.
    /// If it cannot be opened, the old one stays in use and a warning is logged.
    pub fn reopen(&self) {
        if self.shared.enabled {
            self.shared.wake.reopen();
        }
    }

    /// Writes what is buffered and ends the writer, waiting at most one second. Later records only
    /// count. Call when the workers have stopped; blocks the thread.
    pub fn close(&self) {
        if self.shared.enabled {
            self.shared.wake.close();
        }
    }

    /// The sums over all workers. Holds each worker's lock while its series are copied.
    pub fn totals(&self) -> Totals {
        let mut totals = Totals {
            dropped_lines: self.shared.lost_lines.load(Ordering::Relaxed),
            ..Totals::default()
        };
        let workers = lock(&self.shared.workers).clone();
        for worker in workers {
            let (series, dropped_lines) = {
                let state = lock(&worker.state);
                (state.series.copied(), state.dropped_lines)
            };
            totals.dropped_lines += dropped_lines;
            series.add_to(&mut totals);
        }
        totals
    }
}

impl Shared {
    /// Hands every worker's buffered lines to `write`, leaving an empty buffer behind. No lock is
    /// held while `write` runs.
    pub(super) fn drain(&self, spare: &mut Vec<u8>, mut write: impl FnMut(&[u8])) {
        let workers = lock(&self.workers).clone();
        for worker in workers {
            spare.clear();
            // After a backlog, do not keep a megabyte for every worker.
            spare.shrink_to(2 * WRITE_AT);
            mem::swap(&mut lock(&worker.state).buffer, spare);
            if !spare.is_empty() {
                write(spare);
            }
        }
    }
}

/// Records what happened, on one worker. Cheap to clone; use it from its worker's thread.
#[derive(Debug, Clone)]
pub struct Recorder {
    worker: Arc<Worker>,
    shared: Arc<Shared>,
}

impl Recorder {
    /// Writes the log line and adds to the metrics: one HTTP request, or one TCP connection that
    /// has closed. Never waits.
    pub fn record(&self, record: &AccessRecord<'_>) {
        let mut guard = lock(&self.worker.state);
        let state = &mut *guard;
        state.series.record(record);
        if !self.shared.enabled {
            return;
        }
        let before = state.buffer.len();
        if before >= MAX_BACKLOG {
            state.dropped_lines += 1;
            return;
        }
        let version = self.shared.format_version.load(Ordering::Acquire);
        if version != state.format_version {
            state.format_version = version;
            state.format = Arc::clone(&lock(&self.shared.format));
        }
        state
            .format
            .append(&mut state.buffer, &mut state.clock, record);
        let after = state.buffer.len();
        drop(guard);
        if before < WRITE_AT && after >= WRITE_AT {
            self.shared.wake.full();
        } else if before == 0 {
            self.shared.wake.dirty();
        }
    }

    /// Counts a TCP or TLS connection when it has been opened; [`Recorder::record`] counts it as
    /// closed.
    pub fn tcp_opened(&self, traffic: &TrafficLabels<'_>) {
        lock(&self.worker.state).series.tcp_opened(traffic);
    }

    /// Counts a connection that was closed before it became a record: made straight to the
    /// listener ([`REFUSED_DIRECT`](super::REFUSED_DIRECT)), over a limit, ... `reason` becomes a label, so
    /// it is one of few.
    pub fn connection_refused(&self, reason: &'static str) {
        lock(&self.worker.state).series.connection_refused(reason);
    }
}

/// A panic elsewhere leaves counts and whole lines behind, which are good to use.
pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use std::{
        fs,
        path::PathBuf,
        process,
        time::{Duration, Instant},
    };

    use super::{
        super::{REFUSED_DIRECT, tests::empty_record},
        *,
    };

    /// A path in the temporary directory that is removed when dropped.
    struct Scratch(PathBuf);

    impl Scratch {
        fn new(name: &str) -> Self {
            let path = std::env::temp_dir().join(format!("egress-log-{name}-{}", process::id()));
            let _ = fs::remove_file(&path);
            Self(path)
        }

        fn read(&self) -> String {
            fs::read_to_string(&self.0).unwrap_or_default()
        }

        fn wait_for_lines(&self, count: usize) -> String {
            let start = Instant::now();
            loop {
                let text = self.read();
                if text.lines().count() >= count {
                    return text;
                }
                assert!(start.elapsed() < Duration::from_secs(5), "{text:?}");
                std::thread::sleep(Duration::from_millis(5));
            }
        }
    }

    impl Drop for Scratch {
        fn drop(&mut self) {
            let _ = fs::remove_file(&self.0);
        }
    }

    fn start(file: &Scratch, format: &str) -> AccessLog {
        let destination = Destination::File(file.0.clone());
        AccessLog::start(destination, super::super::compile(format).unwrap()).unwrap()
    }

    #[test]
    fn lines_reach_the_file_soon_without_a_close() {
        let file = Scratch::new("soon");
        let log = start(&file, "%BYTES_SENT%");
        let recorder = log.recorder();
        for bytes_sent in [1, 2] {
            recorder.record(&AccessRecord {
                bytes_sent,
                ..empty_record()
            });
        }
        assert_eq!(file.wait_for_lines(2), "1\n2\n");
        recorder.record(&empty_record());
        assert_eq!(file.wait_for_lines(3), "1\n2\n0\n");
    }

    #[test]
    fn close_writes_what_is_buffered_in_order() {
        let file = Scratch::new("close");
        let log = start(&file, "%BYTES_SENT%");
        let recorder = log.recorder();
        for bytes_sent in 0..50_000 {
            recorder.record(&AccessRecord {
                bytes_sent,
                ..empty_record()
            });
        }
        log.close();
        let dropped = log.totals().dropped_lines;
        let written: Vec<u64> = file.read().lines().map(|l| l.parse().unwrap()).collect();
        assert_eq!(written.len() as u64 + dropped, 50_000);
        assert!(written.is_sorted());
        log.close();
    }

    #[test]
    fn a_sink_that_does_not_take_lines_costs_lines_and_no_time() {
        let fifo = Scratch::new("fifo");
        nix::unistd::mkfifo(&fifo.0, nix::sys::stat::Mode::S_IRWXU).unwrap();
        // Opened for both so that neither side waits; nobody reads.
        let _reader = fs::File::options().read(true).write(true).open(&fifo.0);
        let log = start(
            &fifo,
            "a line of some length, so that the pipe fills up soon",
        );
        let recorder = log.recorder();
        let begin = Instant::now();
        for _ in 0..60_000 {
            recorder.record(&empty_record());
        }
        assert!(begin.elapsed() < Duration::from_secs(2));
        assert!(log.totals().dropped_lines > 0);
    }

    #[test]
    fn reopen_writes_to_the_new_file_of_the_name() {
        let file = Scratch::new("reopen");
        let rotated = Scratch::new("rotated");
        let log = start(&file, "line");
        let recorder = log.recorder();
        recorder.record(&empty_record());
        file.wait_for_lines(1);
        fs::rename(&file.0, &rotated.0).unwrap();
        log.reopen();
        recorder.record(&empty_record());
        recorder.record(&empty_record());
        log.close();
        assert_eq!(rotated.read().lines().count(), 1);
        assert_eq!(file.read().lines().count(), 2);
    }

    #[test]
    fn a_changed_format_holds_from_the_next_record() {
        let file = Scratch::new("format");
        let log = start(&file, "old");
        let recorder = log.recorder();
        recorder.record(&empty_record());
        log.set_format(super::super::compile("new").unwrap());
        recorder.record(&empty_record());
        log.close();
        assert_eq!(file.read(), "old\nnew\n");
    }

    #[test]
    fn series_of_all_workers_are_summed_and_off_writes_nothing() {
        let log = AccessLog::start(Destination::Off, Format::istio_text()).unwrap();
        for recorder in [log.recorder(), log.recorder()] {
            recorder.record(&empty_record());
            recorder.connection_refused(REFUSED_DIRECT);
        }
        let totals = log.totals();
        assert_eq!(totals.tcp.len(), 1);
        assert_eq!(totals.tcp.values().next().unwrap().closed, 2);
        assert_eq!(totals.refused[REFUSED_DIRECT], 2);
    }
}
