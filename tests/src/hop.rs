// SPDX-License-Identifier: Apache-2.0
//! What the handles of `egress node` and `egress gateway` share: the process, its access log on
//! standard output, and its admin server, asked from inside its network namespace.

use std::{
    io::{Read, Write},
    net::TcpStream,
    process::ExitStatus,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};
use nix::sys::signal::Signal;

use crate::{
    access_line::AccessLine,
    netns::Netns,
    process::{Process, Stream},
};

/// Where the admin server listens when nobody says otherwise.
const ADMIN: &str = "127.0.0.1:15000";
/// How long a start may take.
const START_WITHIN: Duration = Duration::from_secs(30);
/// How long a stop may take: more than the default `--drain-time`.
const STOP_WITHIN: Duration = Duration::from_secs(15);
/// How long something that is about to happen may take.
pub const SOON: Duration = Duration::from_secs(10);

/// A running `egress node` or `egress gateway`.
#[derive(Debug)]
pub struct Hop<'a> {
    process: Process,
    netns: &'a Netns,
}

impl<'a> Hop<'a> {
    /// Starts a command line in a namespace and waits for its ready line.
    ///
    /// # Errors
    /// When it ends or is not ready in time; the message shows its last lines.
    pub(crate) fn start(
        name: &str,
        netns: &'a Netns,
        command: &[String],
        ready: &str,
    ) -> Result<Self> {
        let line = [&netns.enter()[..], command].concat();
        let process = Process::spawn(name, &line)?;
        process.wait_for_line(ready, START_WITHIN, |line| line.contains(ready))?;
        Ok(Self { process, netns })
    }

    /// The process.
    pub fn process(&self) -> &Process {
        &self.process
    }

    /// Its access lines so far, as printed.
    pub fn access_lines(&self) -> Vec<String> {
        let lines = self.process.lines(Stream::Stdout);
        lines
            .into_iter()
            .filter(|line| AccessLine::is_one(line))
            .collect()
    }

    /// Waits for an access line that contains `text`, usually a request's own path.
    ///
    /// # Errors
    /// When none comes soon, or the line is not in Istio's format.
    pub fn access_line(&self, text: &str) -> Result<(String, AccessLine)> {
        let what = format!("an access line with {text:?}");
        let wanted = |line: &str| AccessLine::is_one(line) && line.contains(text);
        let line = self.process.wait_for_line(&what, SOON, wanted)?;
        let parsed = AccessLine::parse(&line)?;
        Ok((line, parsed))
    }

    /// GET on the admin server: status and body.
    ///
    /// # Errors
    /// When it does not answer.
    pub fn admin(&self, path: &str) -> Result<(u16, String)> {
        self.netns.run(|| get(ADMIN, path))
    }

    /// One sample of `/metrics`, by its name and labels as far as given; several are summed. `None`
    /// when there is none.
    ///
    /// # Errors
    /// When the admin server does not answer or a sample is not a number.
    pub fn metric(&self, name: &str, labels: &[(&str, &str)]) -> Result<Option<f64>> {
        let (_, text) = self.admin("/metrics")?;
        let labels: Vec<_> = labels.iter().map(|(k, v)| format!("{k}=\"{v}\"")).collect();
        let of_name = |line: &&str| {
            let rest = line.strip_prefix(name);
            rest.is_some_and(|rest| rest.starts_with(['{', ' ']))
                && labels.iter().all(|label| line.contains(label))
        };
        let mut sum = None;
        for line in text.lines().filter(of_name) {
            let value = line.rsplit(' ').next().unwrap_or_default().parse::<f64>();
            let value = value.with_context(|| format!("{line:?} is no sample"))?;
            *sum.get_or_insert(0.0) += value;
        }
        Ok(sum)
    }

    /// Asks again until `holds`.
    ///
    /// # Errors
    /// When it does not hold soon; the message has `what` and the last lines.
    pub fn eventually(&self, what: &str, mut holds: impl FnMut() -> Result<bool>) -> Result<()> {
        let deadline = Instant::now() + SOON;
        while !holds()? {
            if Instant::now() > deadline {
                bail!("{what} did not happen within {SOON:?}\n{}", self.process);
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        Ok(())
    }

    /// SIGKILL, and waits.
    ///
    /// # Errors
    /// When it does not end.
    pub fn kill(mut self) -> Result<ExitStatus> {
        self.process.signal(Signal::SIGKILL)?;
        self.process.wait(STOP_WITHIN)
    }

    /// SIGTERM, and waits.
    ///
    /// # Errors
    /// When it does not end in time.
    pub fn stop(mut self) -> Result<ExitStatus> {
        self.process.terminate(STOP_WITHIN)
    }
}

/// A stop in good order, so that nothing stays pinned.
impl Drop for Hop<'_> {
    fn drop(&mut self) {
        if let Err(error) = self.process.terminate(STOP_WITHIN) {
            eprintln!("lab: {error:#}");
        }
    }
}

fn get(address: &str, path: &str) -> Result<(u16, String)> {
    let mut stream =
        TcpStream::connect(address).with_context(|| format!("connecting to {address}"))?;
    stream
        .set_read_timeout(Some(SOON))
        .context("setting a timeout")?;
    let request = format!("GET {path} HTTP/1.0\r\nHost: {address}\r\nConnection: close\r\n\r\n");
    stream
        .write_all(request.as_bytes())
        .context("asking the admin server")?;
    let mut answer = Vec::new();
    stream
        .read_to_end(&mut answer)
        .context("reading the admin server's answer")?;
    let answer = String::from_utf8_lossy(&answer);
    let (head, body) = answer.split_once("\r\n\r\n").unwrap_or((&answer, ""));
    let status = head.split(' ').nth(1).and_then(|code| code.parse().ok());
    let status = status.with_context(|| format!("the admin server answered {answer:?}"))?;
    Ok((status, body.to_owned()))
}
