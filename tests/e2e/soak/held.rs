// SPDX-License-Identifier: Apache-2.0
//! What pods may leave behind: descriptors, entries of maps, interfaces, namespaces.

use std::{collections::BTreeSet, fs};

use anyhow::{Context, Result};
use lab::{
    egress_binary,
    hop::SOON,
    net::Net,
    node::{self, Node},
    process::Process,
};
use serde_json::Value;

/// What the agent holds.
#[derive(Debug, PartialEq, Eq)]
pub struct Held {
    /// Descriptors that are not connections of the node's network.
    pub descriptors: usize,
    workloads: usize,
    originals: usize,
    interfaces: Vec<String>,
    namespaces: Vec<String>,
}

/// Sockets of the node's network that are connections: those to servers are kept for a while.
fn kept_connections(pid: u32) -> Result<BTreeSet<String>> {
    let mut found = BTreeSet::new();
    for table in ["tcp", "tcp6"] {
        let text = fs::read_to_string(format!("/proc/{pid}/net/{table}"))?;
        for line in text.lines().skip(1) {
            let fields: Vec<_> = line.split_whitespace().collect();
            // 0A: it listens (include/net/tcp_states.h).
            if let (Some(state), Some(inode)) = (fields.get(3), fields.get(9))
                && *state != "0A"
            {
                found.insert(format!("socket:[{inode}]"));
            }
        }
    }
    Ok(found)
}

/// Descriptors of the agent: all, and those that are not connections to servers.
pub fn descriptors(pid: u32) -> Result<(usize, usize)> {
    let kept = kept_connections(pid)?;
    let all: Vec<_> = fs::read_dir(format!("/proc/{pid}/fd"))?
        .flatten()
        .map(|entry| fs::read_link(entry.path()).unwrap_or_default())
        .collect();
    let others = all
        .iter()
        .filter(|to| !kept.contains(to.to_string_lossy().as_ref()));
    Ok((all.len(), others.count()))
}

/// What the agent, the node and the machine have of pods now.
pub fn held(net: &Net, node: &Node<'_>) -> Result<Held> {
    let egress = egress_binary()?.display().to_string();
    let bpffs = node::bpffs(net).display().to_string();
    let dump = [egress.as_str(), "dump", "maps", "--bpffs", &bpffs];
    let dump = Process::output("egress dump maps", &dump, SOON)?;
    let dump: Value = serde_json::from_str(&dump)?;
    let count = |map: &str| {
        dump[map]
            .as_array()
            .map(Vec::len)
            .context("a map's entries")
    };
    let lab = net.cgroup.path().file_name().context("a name")?;
    let lab = lab.to_string_lossy();
    let namespaces = fs::read_dir("/run/netns")?.flatten();
    let namespaces = namespaces.map(|entry| entry.file_name().to_string_lossy().into_owned());
    let mut namespaces: Vec<_> = namespaces.filter(|name| name.starts_with(&*lab)).collect();
    namespaces.sort();
    Ok(Held {
        descriptors: descriptors(node.process().pid())?.1,
        workloads: count("WORKLOADS")?,
        originals: count("ORIGINAL_DST")?,
        interfaces: net.node_interfaces()?,
        namespaces,
    })
}
