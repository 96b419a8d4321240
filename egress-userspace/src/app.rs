// SPDX-License-Identifier: Apache-2.0
//! Wiring: what starts in which order, what stops in which order.
use std::process::ExitCode;

/// Runs the command line.
pub fn main() -> ExitCode {
    ExitCode::SUCCESS
}
