// SPDX-License-Identifier: Apache-2.0
//! `lab-sink`: [`lab::sink`] as a process.

fn main() -> anyhow::Result<()> {
    match lab::sink::watch()? {}
}
