// SPDX-License-Identifier: Apache-2.0
//! `lab-scenario`: the tutorial, real and self-contained; what `cargo xtask run` runs.

use std::{process::ExitCode, time::Duration};

use anyhow::{Context, Result, ensure};
use clap::Parser;
use lab::{
    net::{DNS_SERVER, GATEWAY, HTTPBIN, NODE, Net},
    scenario::{Outcome, Scenario},
};
use tokio::{
    runtime::Runtime,
    signal::unix::{Signal, SignalKind, signal},
    time::timeout,
};

/// How often the access logs are looked at.
const LOOK_EVERY: Duration = Duration::from_millis(200);

/// Runs the httpbin tutorial in network namespaces: pod, node proxy, egress gateway, httpbin.
#[derive(Debug, Parser)]
struct Arguments {
    /// Exit after the first request; status 0 if and only if both hops carried it.
    #[arg(long)]
    once: bool,
}

fn main() -> ExitCode {
    match run(&Arguments::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("\nlab-scenario failed: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(arguments: &Arguments) -> Result<()> {
    ensure!(
        nix::unistd::geteuid().is_root(),
        "making network namespaces and loading kernel programs needs root (sudo)"
    );
    // Caught from the start, so that Ctrl-C always leads through the clean-up below. (Blocking the
    // signals instead would block them in every child, too.)
    let mut stop = Stop::new()?;
    step("making namespaces pod, node, gateway and external; starting httpbin and DNS");
    let net = Net::new("run").context("building the network")?;
    println!(
        "    pod {}, node {NODE}, gateway {GATEWAY}",
        net.pod.address
    );
    println!("    httpbin.org {HTTPBIN}, DNS server {DNS_SERVER}");
    step("starting egress gateway and egress node with examples/httpbin");
    let scenario = Scenario::start(&net)?;
    step("in the pod: curl http://httpbin.org/headers");
    let outcome = scenario.request("/headers")?;
    show(&outcome, &scenario)?;
    if arguments.once {
        return Ok(());
    }
    let again = net.pod.command(&["curl", "-sS", "http://httpbin.org/ip"]);
    step("all of it stays up; try more from another terminal, as root:");
    println!(
        "    {}\n    Ctrl-C ends it and removes everything",
        again.join(" ")
    );
    follow_until(&mut stop, &scenario);
    step("cleaning up");
    Ok(())
}

/// SIGINT and SIGTERM.
struct Stop {
    runtime: Runtime,
    interrupt: Signal,
    terminate: Signal,
}

impl Stop {
    fn new() -> Result<Self> {
        let builder = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build();
        let runtime = builder.context("starting the runtime")?;
        let guard = runtime.enter();
        let interrupt = signal(SignalKind::interrupt()).context("catching SIGINT")?;
        let terminate = signal(SignalKind::terminate()).context("catching SIGTERM")?;
        drop(guard);
        Ok(Self {
            runtime,
            interrupt,
            terminate,
        })
    }

    /// Whether one has come, waiting up to `limit`.
    fn has_come(&mut self, limit: Duration) -> bool {
        let Self {
            runtime,
            interrupt,
            terminate,
        } = self;
        let either = async {
            tokio::select! {
                _ = interrupt.recv() => {}
                _ = terminate.recv() => {}
            }
        };
        runtime.block_on(async { timeout(limit, either).await.is_ok() })
    }
}

/// Prints access lines as they come, until told to stop.
fn follow_until(stop: &mut Stop, scenario: &Scenario<'_>) {
    let hops = [
        ("node   ", &*scenario.node),
        ("gateway", &*scenario.gateway),
    ];
    let mut shown = hops.map(|(_, hop)| hop.access_lines().len());
    while !stop.has_come(LOOK_EVERY) {
        for ((name, hop), shown) in hops.iter().zip(&mut shown) {
            let lines = hop.access_lines();
            for line in &lines[*shown..] {
                println!("{name} {line}");
            }
            *shown = lines.len();
        }
    }
}

fn show(outcome: &Outcome, scenario: &Scenario<'_>) -> Result<()> {
    print!("{}", outcome.response);
    step("access log of the node proxy");
    println!("{}", outcome.node_line);
    step("access log of the egress gateway");
    println!("{}", outcome.gateway_line);
    let (command, dump) = scenario.destinations()?;
    step(&command);
    print!("{dump}");
    Ok(())
}

fn step(what: &str) {
    println!("\n# {what}");
}
