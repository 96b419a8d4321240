// SPDX-License-Identifier: Apache-2.0
//! What the access log must say: every line tells of one pod's own traffic.

use std::{
    collections::BTreeMap,
    net::{IpAddr, SocketAddr},
};

use anyhow::{Context, Result, ensure};
use serde_json::Value;

/// Every access line tells of a pod's own traffic; how many there are for each pod's captured paths.
pub fn check(lines: &[String]) -> Result<(usize, BTreeMap<String, usize>)> {
    let (mut count, mut by_pod) = (0, BTreeMap::new());
    for text in lines.iter().filter(|line| line.starts_with('{')) {
        let line: Value = serde_json::from_str(text).context("an access line")?;
        let workload = line["source_workload"].as_str().unwrap_or_default();
        let remote: SocketAddr = line["downstream_remote_address"]
            .as_str()
            .and_then(|text| text.parse().ok())
            .with_context(|| format!("an address in {text}"))?;
        let subnet = workload
            .strip_prefix('w')
            .with_context(|| format!("a workload in {text}"))?;
        let own: [IpAddr; 2] = [
            format!("10.88.{subnet}.2").parse()?,
            format!("fd00:88:{subnet}::2").parse()?,
        ];
        ensure!(own.contains(&remote.ip()), "another pod's address: {text}");
        ensure!(line["source_namespace"] == "soak", "{text}");
        count += 1;
        let Some(path) = line["path"].as_str() else {
            continue;
        };
        let parameters = path
            .split_once("?pod=")
            .and_then(|(_, rest)| rest.split_once("&to="));
        let (pod, to) = parameters.with_context(|| format!("a path of ours in {text}"))?;
        ensure!(
            pod.split_once('-').is_some_and(|(of, _)| of == workload),
            "another pod's request: {text}"
        );
        ensure!(
            line["original_destination"] == to,
            "another destination: {text}"
        );
        if line["authority"] != "toggled.test" {
            *by_pod.entry(pod.to_owned()).or_default() += 1;
        }
    }
    Ok((count, by_pod))
}
