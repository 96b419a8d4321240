// SPDX-License-Identifier: Apache-2.0
//! Health in one object: `GET /status`, and how `egress status` prints it.

use std::{fmt::Write, process};

use serde::{Deserialize, Serialize};

use super::state::{AdminState, Denial};
use crate::config::problem::{Problem, Severity};

/// What `/status` answers. Fields are added, never renamed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Status {
    /// `node` or `gateway`.
    pub role: String,
    /// Version of the program.
    pub version: String,
    /// Process id.
    pub pid: u32,
    /// Whole seconds since the start.
    pub uptime_seconds: u64,
    /// Whether it is ready.
    pub ready: bool,
    /// What it waits for; empty when ready.
    pub waiting_for: Vec<String>,
    /// Whether it is draining.
    pub draining: bool,
    /// Proxy threads.
    pub workers: usize,
    /// Configuration in effect.
    pub config: ConfigStatus,
    /// `None` on a gateway.
    pub kernel: Option<KernelStatus>,
}

/// The configuration in short.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ConfigStatus {
    /// Version of the snapshot; 0 before the first.
    pub version: u64,
    /// Services in effect.
    pub services: usize,
    /// Gateways in effect.
    pub gateways: usize,
    /// VirtualServices in effect.
    pub virtual_services: usize,
    /// Findings that reject an object.
    pub errors: usize,
    /// Findings that do not.
    pub warnings: usize,
    /// Each finding as `egress validate` prints it.
    pub problems: Vec<String>,
}

/// The kernel half.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct KernelStatus {
    /// Attached programs.
    pub programs: Vec<String>,
    /// Counters that are not 0.
    pub outcomes: Vec<KernelOutcome>,
    /// Why the maps are not what the configuration asks for; null: they are.
    pub problem: Option<String>,
    /// What happens to external destinations that are not registered, by default: `ALLOW_ANY` or
    /// `REGISTRY_ONLY`.
    #[serde(default)]
    pub outbound_policy: String,
    /// What kernels may lack, and what this one does.
    #[serde(default)]
    pub features: Vec<KernelFeature>,
    /// Network namespaces of captured processes.
    #[serde(default)]
    pub pods: usize,
    /// Those in which the proxy listens.
    #[serde(default)]
    pub pods_listening: usize,
    /// The last denials that were logged, oldest first.
    #[serde(default)]
    pub denials: Vec<Denial>,
}

/// Something that a kernel may lack.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct KernelFeature {
    /// Short name.
    pub name: String,
    /// Whether this one has it.
    pub present: bool,
    /// What its lack means.
    pub without: String,
}

/// One counter.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct KernelOutcome {
    /// The program.
    pub program: String,
    /// What it did.
    pub outcome: String,
    /// How often.
    pub count: u64,
}

impl Status {
    /// Reads the present state.
    pub fn of(state: &AdminState) -> Self {
        let snapshot = state.snapshot.borrow().clone();
        let objects = snapshot.table.objects();
        let count = |severity| {
            let problems = snapshot.problems.iter();
            problems.filter(|p| p.severity == severity).count()
        };
        let readiness = state.readiness.borrow().clone();
        Self {
            role: state.role.to_owned(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            pid: process::id(),
            uptime_seconds: state.started.elapsed().as_secs(),
            ready: readiness.is_ready() && !state.drain.is_cancelled(),
            waiting_for: readiness.waiting_for,
            draining: state.drain.is_cancelled(),
            workers: state.workers,
            config: ConfigStatus {
                version: snapshot.version,
                services: objects.services.len(),
                gateways: objects.gateways.len(),
                virtual_services: objects.virtual_services.len(),
                errors: count(Severity::Error),
                warnings: count(Severity::Warning),
                problems: snapshot.problems.iter().map(problem_line).collect(),
            },
            kernel: state.kernel.as_ref().map(|kernel| {
                let kernel = kernel();
                let outcomes = kernel.outcomes.into_iter().filter(|(.., count)| *count > 0);
                let feature = |(name, present, without): (&str, bool, &str)| KernelFeature {
                    name: name.to_owned(),
                    present,
                    without: without.to_owned(),
                };
                KernelStatus {
                    programs: kernel.programs,
                    problem: kernel.problem,
                    outbound_policy: kernel.outbound_policy.to_owned(),
                    features: kernel.features.into_iter().map(feature).collect(),
                    pods: kernel.pods,
                    pods_listening: kernel.pods_listening,
                    denials: kernel.denials,
                    outcomes: outcomes
                        .map(|(program, outcome, count)| KernelOutcome {
                            program: program.to_owned(),
                            outcome: outcome.to_owned(),
                            count,
                        })
                        .collect(),
                }
            }),
        }
    }

    /// For reading; ends with a line feed.
    pub fn text(&self) -> String {
        let mut out = String::new();
        // Writing to a String cannot fail.
        let _ = self.write_text(&mut out);
        out
    }

    fn write_text(&self, out: &mut String) -> std::fmt::Result {
        let condition = match (self.draining, self.ready) {
            (true, _) => "draining",
            (false, true) => "ready",
            (false, false) => "not ready",
        };
        writeln!(
            out,
            "egress {} {}: {condition} (pid {}, up {} s, {} workers)",
            self.role, self.version, self.pid, self.uptime_seconds, self.workers
        )?;
        for reason in &self.waiting_for {
            writeln!(out, "  waiting: {reason}")?;
        }
        let config = &self.config;
        writeln!(
            out,
            "configuration: version {}, {} services, {} gateways, {} virtual services, \
             {} errors, {} warnings",
            config.version,
            config.services,
            config.gateways,
            config.virtual_services,
            config.errors,
            config.warnings
        )?;
        for problem in &config.problems {
            writeln!(out, "  {problem}")?;
        }
        let Some(kernel) = &self.kernel else {
            return Ok(());
        };
        writeln!(out, "kernel: {} programs attached", kernel.programs.len())?;
        if let Some(problem) = &kernel.problem {
            writeln!(out, "  problem: {problem}")?;
        }
        for program in &kernel.programs {
            writeln!(out, "  {program}")?;
        }
        for KernelOutcome {
            program,
            outcome,
            count,
        } in &kernel.outcomes
        {
            writeln!(out, "  {program} {outcome}: {count}")?;
        }
        self.write_enforcement(kernel, out)
    }

    fn write_enforcement(&self, kernel: &KernelStatus, out: &mut String) -> std::fmt::Result {
        writeln!(
            out,
            "enforcement: {}, {} pods, listening in {}",
            kernel.outbound_policy, kernel.pods, kernel.pods_listening
        )?;
        for feature in kernel.features.iter().filter(|feature| !feature.present) {
            writeln!(out, "  without {}: {}", feature.name, feature.without)?;
        }
        for denial in &kernel.denials {
            let workload = match denial.workload.as_str() {
                "-" => &denial.cgroup,
                workload => workload,
            };
            writeln!(
                out,
                "  denied {workload} to {} {} ({}): {}",
                denial.destination, denial.protocol, denial.reason, denial.remedy
            )?;
        }
        Ok(())
    }
}

/// `FILE:LINE: error: KIND NAMESPACE/NAME: FIELD: MESSAGE`, the line of `egress validate`.
fn problem_line(problem: &Problem) -> String {
    let severity = match problem.severity {
        Severity::Error => "error",
        Severity::Warning => "warning",
    };
    let mut line = format!("{}:{}: {severity}: ", problem.file.display(), problem.line);
    if !problem.kind.is_empty() {
        let (kind, namespace, name) = (&problem.kind, &problem.namespace, &problem.name);
        line.push_str(&format!("{kind} {namespace}/{name}: "));
    }
    if !problem.field.is_empty() {
        line.push_str(&format!("{}: ", problem.field));
    }
    line.push_str(&problem.message);
    line
}
