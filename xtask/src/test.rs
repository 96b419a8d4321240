// SPDX-License-Identifier: Apache-2.0
//! `test`: the unit tests of every crate, then the end-to-end tests with the program just built.

use std::process::Command;

use anyhow::Result;

use crate::{build, execute, python, root, setup};

/// Networks built side by side: each end-to-end test starts up to a dozen processes.
const E2E_THREADS: &str = "2";

/// Peers of the end-to-end tests: (file, Debian package).
const PEERS: [(&str, &str); 1] = [("nginx", "nginx-light")];

/// Flags of `test`.
#[derive(Debug, clap::Args)]
pub struct Arguments {
    /// Only one kind of tests.
    #[arg(long, value_enum)]
    only: Option<Kind>,
    /// Only tests whose name contains this.
    filter: Option<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Kind {
    /// Tests beside the code.
    Unit,
    /// Tests of the built program in network namespaces (root).
    E2e,
}

/// Builds and tests.
pub fn run(arguments: &Arguments) -> Result<()> {
    let egress = build::run(&build::Arguments { release: false })?;
    if arguments.only != Some(Kind::E2e) {
        let mut unit = cargo_test(&[
            "--lib",
            "--bins",
            "--test",
            "decisions",
            "--test",
            "bad_input",
        ])?;
        unit.args(&arguments.filter);
        execute(&mut unit)?;
    }
    if arguments.only != Some(Kind::Unit) {
        setup::programs(&PEERS)?;
        let peers = python::environment("peers", &root()?.join("tests/peers/requirements.txt"))?;
        let mut e2e = cargo_test(&["--test", "e2e"])?;
        e2e.args(&arguments.filter)
            .args(["--", "--test-threads", E2E_THREADS])
            .env("EGRESS_BIN", &egress)
            .env("LAB_PYTHON", peers.join("python"));
        execute(&mut e2e)?;
    }
    Ok(())
}

/// `cargo test` of the default members: the kernel programs are not for this machine's CPU.
fn cargo_test(what: &[&str]) -> Result<Command> {
    let mut command = Command::new("cargo");
    command.current_dir(root()?).arg("test").args(what);
    Ok(command)
}
