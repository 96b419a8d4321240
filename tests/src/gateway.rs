// SPDX-License-Identifier: Apache-2.0
//! `egress gateway`, running in the lab's gateway namespace.

use std::{ops::Deref, path::Path, process::ExitStatus};

use anyhow::Result;

use crate::{
    egress_binary,
    hop::Hop,
    net::{DNS_SERVER, Net},
};

/// A running egress gateway.
#[derive(Debug)]
pub struct Gateway<'a>(Hop<'a>);

impl<'a> Gateway<'a> {
    /// Starts it as istio-egressgateway of istio-system and waits until it is ready.
    ///
    /// # Errors
    /// When it does not become ready.
    pub fn start(net: &'a Net, config: &Path, more: &[&str]) -> Result<Self> {
        let command = command(config, more)?;
        Hop::start(
            "egress gateway",
            &net.gateway,
            &command,
            "egress gateway ready",
        )
        .map(Self)
    }

    /// SIGTERM: it drains.
    ///
    /// # Errors
    /// When it does not end in time.
    pub fn stop(self) -> Result<ExitStatus> {
        self.0.stop()
    }
}

impl<'a> Deref for Gateway<'a> {
    type Target = Hop<'a>;

    fn deref(&self) -> &Hop<'a> {
        &self.0
    }
}

/// The command line of `egress gateway` for a lab.
///
/// # Errors
/// When the binary has not been built.
pub fn command(config: &Path, more: &[&str]) -> Result<Vec<String>> {
    let mut command = vec![egress_binary()?.display().to_string(), "gateway".to_owned()];
    for (flag, value) in [
        ("--config", config.display().to_string().as_str()),
        ("--labels", "istio=egressgateway"),
        ("--namespace", "istio-system"),
        (
            "--service",
            "istio-egressgateway.istio-system.svc.cluster.local",
        ),
        ("--port-map", "80=8080"),
        ("--dns-server", DNS_SERVER),
    ] {
        command.extend([flag.to_owned(), value.to_owned()]);
    }
    command.extend(more.iter().map(|&flag| flag.to_owned()));
    Ok(command)
}
