// SPDX-License-Identifier: Apache-2.0
//! The tutorial from start to end: `curl http://httpbin.org/headers` in a pod, captured by the
//! kernel, routed by the node proxy to the egress gateway and by that to httpbin.
//!
//! Used by `lab-scenario` (which prints it) and by the end-to-end tests (which look closer).

use std::path::Path;

use anyhow::{Context, Result, ensure};

use crate::{
    access_line::AccessLine,
    examples,
    gateway::Gateway,
    net::{GATEWAY, Net},
    node::{self, Node},
    process::Process,
};

/// The cluster that the node proxy logs.
pub const TO_GATEWAY: &str = "outbound|80||istio-egressgateway.istio-system.svc.cluster.local";
/// The cluster that the egress gateway logs.
pub const TO_HTTPBIN: &str = "outbound|80||httpbin.org";

/// The two hops, running on the tutorial's objects.
#[derive(Debug)]
pub struct Scenario<'a> {
    /// First hop.
    pub node: Node<'a>,
    /// Second hop.
    pub gateway: Gateway<'a>,
    net: &'a Net,
}

/// What one request left behind.
#[derive(Debug)]
pub struct Outcome {
    /// What curl printed.
    pub response: String,
    /// The node proxy's access line.
    pub node_line: String,
    /// The egress gateway's access line.
    pub gateway_line: String,
}

impl<'a> Scenario<'a> {
    /// Starts both hops.
    ///
    /// # Errors
    /// When one of them does not become ready.
    pub fn start(net: &'a Net) -> Result<Self> {
        let config = examples().join("httpbin");
        Self::start_with(net, &config)
    }

    /// Starts both hops on other objects.
    ///
    /// # Errors
    /// When one of them does not become ready.
    pub fn start_with(net: &'a Net, config: &Path) -> Result<Self> {
        let gateway = Gateway::start(net, config, &[]).context("starting the egress gateway")?;
        let workloads = examples().join("workloads.yaml").display().to_string();
        let node = Node::start(net, config, &["--workloads", &workloads])
            .context("starting the node proxy")?;
        Ok(Self { node, gateway, net })
    }

    /// Sends the tutorial's request from the pod and follows it over both hops.
    ///
    /// # Errors
    /// When curl fails or a hop did not carry it; the message names the step and shows the logs.
    pub fn request(&self, path: &str) -> Result<Outcome> {
        let url = format!("http://httpbin.org{path}");
        let response = self.net.pod.run(&["curl", "-sS", "--max-time", "20", &url]);
        let response = response.with_context(|| {
            format!(
                "curl {url} in the pod\n{}\n{}",
                self.node.process(),
                self.gateway.process()
            )
        })?;
        let (node_line, node) = self.node.access_line(path).context("first hop")?;
        expect_cluster(&node, TO_GATEWAY, "node proxy")?;
        let (gateway_line, gateway) = self.gateway.access_line(path).context("second hop")?;
        expect_cluster(&gateway, TO_HTTPBIN, "egress gateway")?;
        let seen = self.net.seen()?;
        let request = seen.iter().find(|line| line.contains(path));
        let request = request.context("httpbin saw no request")?;
        ensure!(
            request.starts_with(&format!("{GATEWAY}:")),
            "httpbin saw the request come from elsewhere than the gateway ({GATEWAY}): {request}"
        );
        Ok(Outcome {
            response,
            node_line,
            gateway_line,
        })
    }

    /// `bpftool map dump` of the pinned map that tells the kernel what to capture.
    ///
    /// # Errors
    /// When it is not pinned, or bpftool fails.
    pub fn destinations(&self) -> Result<(String, String)> {
        let path = node::pinned_map(self.net, "DESTINATIONS4")?
            .display()
            .to_string();
        let command = ["bpftool", "map", "dump", "pinned", &path];
        let dump = Process::output("bpftool", &command, crate::hop::SOON)?;
        Ok((command.join(" "), dump))
    }
}

fn expect_cluster(line: &AccessLine, cluster: &str, hop: &str) -> Result<()> {
    let found = &line["upstream_cluster"];
    ensure!(
        found == cluster,
        "the {hop} sent it to {found}, not to {cluster}"
    );
    Ok(())
}
