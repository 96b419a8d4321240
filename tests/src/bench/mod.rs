// SPDX-License-Identifier: Apache-2.0
//! CPU per request of the node proxy, beside other proxies doing the same in the same run.
//!
//! Everything is on the loopback of one network namespace: an nginx that answers 1 KiB at once,
//! the proxies with one worker each and their access log in a file, and wrk. The proxies run on one
//! CPU, wrk and the upstream on the other ones. Rounds are interleaved, so that a slow minute of the
//! machine hits all of them; medians are compared. What is measured is CPU time from /proc, not
//! throughput: it says the same on a busy machine. wrk reaches `egress node` by being captured, as a
//! pod would be, and the other proxies by their address.

mod proxies;
mod table;

use std::{fs, path::PathBuf, thread, time::Duration};

use anyhow::{Context, Result, bail, ensure};

use crate::{
    cgroup::Cgroup,
    net::Directory,
    netns::Netns,
    process::{Process, Stream},
};

pub use proxies::Peer;
use proxies::{Proxy, Setting};
pub use table::table;

/// Clock ticks per second in /proc/PID/stat: USER_HZ, 100 on every architecture that Linux has on
/// x86 and ARM (include/asm-generic/param.h).
const TICKS_PER_SECOND: f64 = 100.0;

/// What to measure.
#[derive(Debug)]
pub struct Options {
    /// Whom to measure beside `egress node`.
    pub peers: Vec<Peer>,
    /// Measurements of each proxy and case.
    pub rounds: usize,
    /// Length of one measurement, in whole seconds.
    pub seconds: u64,
    /// Connections of wrk.
    pub connections: usize,
    /// The envoy program, needed for [`Peer::Envoy`].
    pub envoy: Option<PathBuf>,
}

/// How clients behave.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Case {
    /// Connections are kept for the whole measurement.
    KeepAlive,
    /// Every request comes on a new connection.
    NewConnection,
}

/// One measurement.
#[derive(Debug, Clone)]
pub struct Sample {
    /// The proxy.
    pub proxy: String,
    /// The case.
    pub case: Case,
    /// Answered requests per second.
    pub rate: f64,
    /// CPU time of the proxy per request, in microseconds, user and system.
    pub proxy_cpu: f64,
    /// CPU time of wrk per request, in microseconds; includes the kernel's work in its connect().
    pub client_cpu: f64,
}

impl Case {
    /// Both.
    pub const ALL: [Self; 2] = [Self::KeepAlive, Self::NewConnection];

    /// As tables name it.
    pub fn name(self) -> &'static str {
        match self {
            Self::KeepAlive => "HTTP/1.1 keep-alive, 1 KiB",
            Self::NewConnection => "HTTP/1.1 new connection, 1 KiB",
        }
    }
}

/// Measures; prints a line per measurement to stderr.
///
/// # Errors
/// When a program is missing or a request fails: numbers with failures in them are worth nothing.
pub fn run(options: &Options) -> Result<Vec<Sample>> {
    let name = format!("egress-lab-bench-{}", std::process::id());
    let directory = Directory::new(&name)?;
    let cgroup = Cgroup::new(&name)?;
    let netns = network(&name)?;
    let cpus = thread::available_parallelism().map_or(1, usize::from);
    let setting = Setting {
        directory: &directory,
        cgroup: &cgroup,
        netns: &netns,
        cpus,
        options,
    };
    let _upstream = proxies::upstream(&setting)?;
    let mut running = vec![proxies::egress(&setting)?];
    for peer in &options.peers {
        running.push(proxies::peer(&setting, *peer)?);
    }
    for proxy in &running {
        measure(&setting, proxy, Case::KeepAlive, 1).context("warming up")?;
    }
    let mut samples = Vec::new();
    for round in 1..=options.rounds {
        for case in Case::ALL {
            for proxy in &running {
                let sample = measure(&setting, proxy, case, options.seconds)?;
                eprintln!(
                    "round {round}/{}: {:<10} {:<32} {:>8.0} requests/s {:>7.1} us CPU",
                    options.rounds,
                    sample.proxy,
                    case.name(),
                    sample.rate,
                    sample.proxy_cpu
                );
                samples.push(sample);
            }
        }
    }
    Ok(samples)
}

/// One namespace with the upstream's address on its loopback, and enough ports for everybody.
fn network(name: &str) -> Result<Netns> {
    let netns = Netns::new(name)?;
    let address = format!("{}/32", proxies::UPSTREAM);
    netns.ip(&["address", "add", &address, "dev", "lo"])?;
    netns.set_parameter("net/ipv4/ip_local_port_range", "10240 65000")?;
    netns.set_parameter("net/ipv4/tcp_tw_reuse", "1")?;
    Ok(netns)
}

fn measure(setting: &Setting<'_>, proxy: &Proxy, case: Case, seconds: u64) -> Result<Sample> {
    let mut command = proxy.client(setting);
    let connections = setting.options.connections.to_string();
    let duration = format!("{seconds}s");
    let wrk = [
        "wrk",
        "-t1",
        "-c",
        &connections,
        "-d",
        &duration,
        "-H",
        "Host: bench.test",
    ];
    command.extend(wrk.map(str::to_owned));
    if case == Case::NewConnection {
        command.extend(["-H".to_owned(), "Connection: close".to_owned()]);
    }
    command.push(proxy.url.clone());
    let before = cpu_seconds(proxy.process.pid())?;
    // What wrk used is read after its end from what it printed last: its own parent, sh.
    command = [
        vec![
            "sh".into(),
            "-c".into(),
            "\"$@\"; times".into(),
            "sh".into(),
        ],
        command,
    ]
    .concat();
    let mut wrk = Process::spawn("wrk", &command)?;
    let status = wrk.wait(Duration::from_secs(seconds + 30))?;
    let used = cpu_seconds(proxy.process.pid())? - before;
    let lines = wrk.lines(Stream::Stdout);
    ensure!(
        status.success() && !lines.is_empty(),
        "wrk against {} failed\n{wrk}",
        proxy.name
    );
    let requests = requests(&lines.join("\n"))
        .with_context(|| format!("{}, {}\n{wrk}\n{}", proxy.name, case.name(), proxy.process))?;
    let client = children_seconds(lines.last().map_or("", String::as_str));
    Ok(Sample {
        proxy: proxy.name.clone(),
        case,
        rate: requests / seconds as f64,
        proxy_cpu: used / requests * 1e6,
        client_cpu: client.context("reading wrk's CPU time")? / requests * 1e6,
    })
}

/// User and system time of a process with its threads so far (proc_pid_stat(5), fields 14 and 15).
fn cpu_seconds(pid: u32) -> Result<f64> {
    let path = format!("/proc/{pid}/stat");
    let stat = fs::read_to_string(&path).with_context(|| format!("reading {path}"))?;
    ticks(&stat)
        .map(|ticks| ticks / TICKS_PER_SECOND)
        .with_context(|| format!("reading {path}"))
}

fn ticks(stat: &str) -> Option<f64> {
    // The second field, the program's name, may hold anything, in parentheses.
    let fields: Vec<_> = stat.rsplit_once(')')?.1.split_whitespace().collect();
    let field = |number: usize| fields.get(number - 3)?.parse::<f64>().ok();
    Some(field(14)? + field(15)?)
}

/// The second line of sh's `times`: `0m1.234s 0m5.678s`, of finished children.
fn children_seconds(line: &str) -> Option<f64> {
    line.split_whitespace()
        .map(|time| {
            let (minutes, seconds) = time.strip_suffix('s')?.split_once('m')?;
            Some(minutes.parse::<f64>().ok()? * 60.0 + seconds.parse::<f64>().ok()?)
        })
        .sum()
}

/// Answered requests by wrk's report.
fn requests(report: &str) -> Result<f64> {
    for bad in ["Socket errors", "Non-2xx"] {
        if let Some(line) = report.lines().find(|line| line.contains(bad)) {
            bail!("not every request was answered: {}", line.trim());
        }
    }
    let line = report
        .lines()
        .find_map(|line| line.split_once(" requests in "));
    let count = line.and_then(|(count, _)| count.trim().parse::<f64>().ok());
    count
        .filter(|count| *count > 0.0)
        .context("wrk reported no requests")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cpu_time_is_read_behind_any_name() {
        let stat = "7 (a) b) S 1 7 7 0 -1 4194560 1 2 3 4 250 150 9 9 20 0 1 0 100";
        assert_eq!(ticks(stat), Some(400.0));
        assert_eq!(ticks("7 (a) S 1"), None);
        assert_eq!(children_seconds("0m1.25s 1m0.50s"), Some(61.75));
        assert_eq!(children_seconds("Requests/sec: 5"), None);
    }

    #[test]
    fn report_with_failures_is_refused() {
        let good = "Running 5s test\n  12345 requests in 5.00s, 15MB read\nRequests/sec: 2469";
        assert_eq!(requests(good).unwrap(), 12345.0);
        for bad in [
            "",
            "  0 requests in 5.00s",
            "  5 requests in 5.00s\n  Socket errors: connect 0, read 1, write 0, timeout 0",
            "  5 requests in 5.00s\n  Non-2xx or 3xx responses: 5",
        ] {
            assert!(requests(bad).is_err(), "{bad}");
        }
    }
}
