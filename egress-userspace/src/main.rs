// SPDX-License-Identifier: Apache-2.0
//! The `egress` binary: run the command line, print the error chain on one line, set the exit code.
use std::process::ExitCode;

fn main() -> ExitCode {
    egress::app::main()
}
