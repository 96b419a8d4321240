// SPDX-License-Identifier: Apache-2.0
//! Child processes whose output is kept line by line, so that "it is ready" is a line and never a
//! sleep. A process is killed by its pid when dropped, and dies with the thread that started it.

use std::{
    ffi::OsStr,
    fmt,
    io::{BufRead, BufReader, Read, Write},
    os::unix::process::{CommandExt, ExitStatusExt},
    process::{Child, ChildStdin, Command, ExitStatus, Stdio},
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};

/// Lines that an error message shows of a process's output.
const TAIL: usize = 15;

/// A running or finished child.
#[derive(Debug)]
pub struct Process {
    name: String,
    child: Child,
    stdin: Option<ChildStdin>,
    output: Arc<Output>,
}

/// Where a line came from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stream {
    /// Standard output.
    Stdout,
    /// Standard error.
    Stderr,
}

#[derive(Debug, Default)]
struct Output {
    lines: Mutex<Lines>,
    grown: Condvar,
}

#[derive(Debug, Default)]
struct Lines {
    lines: Vec<(Stream, String)>,
    /// Streams that have ended.
    ended: usize,
}

impl Process {
    /// Starts `command` (program and arguments). `name` stands for it in messages.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn spawn<S: AsRef<OsStr>>(name: &str, command: &[S]) -> Result<Self> {
        // A lab that is killed takes its processes along.
        let mut child = Command::new("setpriv")
            .args(["--pdeathsig", "KILL", "--"])
            .args(command)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            // Ctrl-C is for the lab, which stops its processes in order.
            .process_group(0)
            .spawn()
            .with_context(|| format!("starting {name}"))?;
        let output = Arc::new(Output::default());
        output.read(Stream::Stdout, child.stdout.take());
        output.read(Stream::Stderr, child.stderr.take());
        Ok(Self {
            name: name.to_owned(),
            stdin: child.stdin.take(),
            child,
            output,
        })
    }

    /// Its pid.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Every line of a stream so far.
    pub fn lines(&self, stream: Stream) -> Vec<String> {
        let lines = self.output.lock();
        let of_stream = lines.lines.iter().filter(|(from, _)| *from == stream);
        of_stream.map(|(_, line)| line.clone()).collect()
    }

    /// Writes a line to its standard input.
    ///
    /// # Errors
    /// When it has closed it.
    pub fn say(&mut self, line: &str) -> Result<()> {
        let stdin = self.stdin.as_mut().context("standard input is closed")?;
        writeln!(stdin, "{line}").with_context(|| format!("writing to {}", self.name))
    }

    /// Waits for the first line, old or new, of either stream for which `wanted` holds.
    ///
    /// # Errors
    /// After `limit`, or when the process has closed its output before; the message shows the last
    /// lines it printed.
    pub fn wait_for_line(
        &self,
        what: &str,
        limit: Duration,
        wanted: impl Fn(&str) -> bool,
    ) -> Result<String> {
        let found = self.wait_for(limit, |lines| {
            let mut lines = lines.iter().map(|(_, line)| line);
            lines.find(|line| wanted(line)).cloned()
        });
        found.with_context(|| format!("waiting for {what}\n{self}"))
    }

    /// Waits until `enough` makes a value of the lines.
    ///
    /// # Errors
    /// As [`Process::wait_for_line`].
    pub fn wait_for<T>(
        &self,
        limit: Duration,
        enough: impl Fn(&[(Stream, String)]) -> Option<T>,
    ) -> Result<T> {
        let deadline = Instant::now() + limit;
        let mut lines = self.output.lock();
        loop {
            if let Some(found) = enough(&lines.lines) {
                return Ok(found);
            }
            if lines.ended == 2 {
                bail!("{} ended without it", self.name);
            }
            let Some(left) = deadline.checked_duration_since(Instant::now()) else {
                bail!("{} did not print it within {limit:?}", self.name);
            };
            let waited = self.output.grown.wait_timeout(lines, left);
            lines = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// Sends a signal.
    ///
    /// # Errors
    /// When it has ended and been waited for.
    pub fn signal(&self, signal: Signal) -> Result<()> {
        let pid = i32::try_from(self.pid()).context("pid")?;
        kill(Pid::from_raw(pid), signal)
            .with_context(|| format!("sending {signal} to {}", self.name))
    }

    /// Waits until it has ended and its output has been read.
    ///
    /// # Errors
    /// After `limit`.
    pub fn wait(&mut self, limit: Duration) -> Result<ExitStatus> {
        self.stdin = None;
        let deadline = Instant::now() + limit;
        loop {
            if let Some(status) = self.child.try_wait().context("waiting for a process")? {
                // Readers end with the pipe, which a grandchild may hold open.
                let _ = self.wait_for(Duration::from_secs(1), |_| None::<()>);
                return Ok(status);
            }
            if Instant::now() > deadline {
                bail!("{} still runs after {limit:?}\n{self}", self.name);
            }
            thread::sleep(Duration::from_millis(5));
        }
    }

    /// Asks it to stop (SIGTERM) and waits.
    ///
    /// # Errors
    /// When it still runs after `limit`.
    pub fn terminate(&mut self, limit: Duration) -> Result<ExitStatus> {
        if self
            .child
            .try_wait()
            .context("looking at a process")?
            .is_none()
        {
            self.signal(Signal::SIGTERM)?;
        }
        self.wait(limit)
    }

    /// Runs a command to its end and returns its standard output.
    ///
    /// # Errors
    /// When it takes longer than `limit` or does not succeed.
    pub fn output<S: AsRef<OsStr>>(name: &str, command: &[S], limit: Duration) -> Result<String> {
        let mut process = Self::spawn(name, command)?;
        let status = process.wait(limit)?;
        if !status.success() {
            bail!("{name} ended with {}\n{process}", shown(status));
        }
        let mut text = process.lines(Stream::Stdout).join("\n");
        text.push('\n');
        Ok(text)
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // It may have ended since; nothing else can be done either way.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The last lines, for messages.
impl fmt::Display for Process {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let lines = self.output.lock();
        write!(f, "--- last lines of {} (pid {}):", self.name, self.pid())?;
        for (_, line) in lines.lines.iter().rev().take(TAIL).rev() {
            write!(f, "\n    {line}")?;
        }
        Ok(())
    }
}

impl Output {
    fn lock(&self) -> MutexGuard<'_, Lines> {
        self.lines.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn read(self: &Arc<Self>, stream: Stream, pipe: Option<impl Read + Send + 'static>) {
        let output = Arc::clone(self);
        thread::spawn(move || {
            let mut lines = pipe.map(|pipe| BufReader::new(pipe).split(b'\n'));
            while let Some(Ok(line)) = lines.as_mut().and_then(Iterator::next) {
                let line = String::from_utf8_lossy(&line).into_owned();
                output.lock().lines.push((stream, line));
                output.grown.notify_all();
            }
            output.lock().ended += 1;
            output.grown.notify_all();
        });
    }
}

fn shown(status: ExitStatus) -> String {
    match (status.code(), status.signal()) {
        (Some(code), _) => format!("status {code}"),
        (None, signal) => format!("signal {}", signal.unwrap_or_default()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMIT: Duration = Duration::from_secs(10);

    #[test]
    fn line_of_either_stream_is_found_and_the_status_is_known() {
        let mut process = Process::spawn(
            "sh",
            &["sh", "-c", "echo out; echo err >&2; read x; exit 3"],
        )
        .unwrap();
        for line in ["out", "err"] {
            process
                .wait_for_line(line, LIMIT, |found| found == line)
                .unwrap();
        }
        process.say("go").unwrap();
        assert_eq!(process.wait(LIMIT).unwrap().code(), Some(3));
        assert_eq!(process.lines(Stream::Stderr), ["err"]);
    }

    #[test]
    fn process_that_ends_without_the_line_is_an_error_with_its_output() {
        let process = Process::spawn("sh", &["sh", "-c", "echo only this"]).unwrap();
        let error = process.wait_for_line("ready", LIMIT, |line| line == "ready");
        let text = format!("{:#}", error.unwrap_err());
        assert!(
            text.contains("only this") && text.contains("ended"),
            "{text}"
        );
    }

    #[test]
    fn dropped_process_is_gone() {
        let process = Process::spawn("sleep", &["sleep", "1000"]).unwrap();
        let pid = Pid::from_raw(i32::try_from(process.pid()).unwrap());
        drop(process);
        assert_eq!(kill(pid, None), Err(nix::errno::Errno::ESRCH));
    }
}
