// SPDX-License-Identifier: Apache-2.0
//! An application that asks many servers in turn, over short and kept connections of every kind of
//! socket, and notices every answer that is not the right one (`lab-client mixed`).

use std::{collections::BTreeMap, net::SocketAddr, str::FromStr};

use anyhow::{Context, Result, bail, ensure};
use serde_json::{Value, json};

use crate::client::{Connection, Request};

/// Requests that a kept connection carries.
const KEPT_FOR: usize = 6;

/// A server to ask, written `HOST@ADDRESS:PORT`. A v4-mapped address makes an IPv6 socket.
#[derive(Debug, Clone)]
pub struct Target {
    /// Host header.
    pub host: String,
    /// Where to connect.
    pub address: SocketAddr,
}

impl FromStr for Target {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> Result<Self> {
        let (host, address) = text.split_once('@').context("HOST@ADDRESS:PORT")?;
        let address = address.parse().context("an address with its port")?;
        Ok(Self {
            host: host.to_owned(),
            address,
        })
    }
}

impl Target {
    /// The server's address as it knows itself.
    pub fn server(&self) -> SocketAddr {
        SocketAddr::new(self.address.ip().to_canonical(), self.address.port())
    }
}

/// Sends `count` requests, to the targets in turn, every other time around over kept connections.
/// `path` gets `&to=SERVER` appended. Prints a line for each answer that is wrong or does not come,
/// and half way a line that begins with `half` and counts connections; `{requests, connections, failed, answered: {HOST@ADDRESS: COUNT}}`.
pub fn send(targets: &[Target], path: &str, count: usize) -> Value {
    let mut kept: BTreeMap<usize, (Connection, usize)> = BTreeMap::new();
    let mut answered: BTreeMap<String, usize> = BTreeMap::new();
    let (mut connections, mut failed) = (0, 0);
    for turn in 0..count {
        if turn == count / 2 {
            println!("half with {connections} connections");
        }
        let index = turn % targets.len();
        let target = &targets[index];
        let name = format!("{}@{}", target.host, target.address);
        let keep = (turn / targets.len()).is_multiple_of(2);
        let earlier = if keep { kept.remove(&index) } else { None };
        let (connection, used) = match earlier {
            Some((connection, used)) => (Ok(connection), used),
            None => {
                connections += 1;
                (open(target), 0)
            }
        };
        match connection.and_then(|connection| ask(connection, target, path)) {
            Ok(connection) => {
                *answered.entry(name).or_default() += 1;
                if keep && used < KEPT_FOR {
                    kept.insert(index, (connection, used + 1));
                }
            }
            Err(error) => {
                failed += 1;
                println!("wrong: {name}, request {used} of its connection: {error:#}");
            }
        }
    }
    json!({"requests": count, "connections": connections, "failed": failed, "answered": answered})
}

/// Connects; the application must see the peer that it asked for.
fn open(target: &Target) -> Result<Connection> {
    let connection = Connection::open(target.address)?;
    let (_, peer) = connection.addresses()?;
    ensure!(peer == target.address, "getpeername shows {peer}");
    Ok(connection)
}

fn ask(mut connection: Connection, target: &Target, path: &str) -> Result<Connection> {
    let server = target.server();
    let response = connection.get(&Request {
        address: target.address,
        host: target.host.clone(),
        path: format!("{path}&to={server}"),
    })?;
    if response.status != 200 {
        bail!(
            "status {}: {}",
            response.status,
            String::from_utf8_lossy(&response.body)
        );
    }
    let answered = response.headers.get("x-lab-server").map(String::as_str);
    ensure!(
        answered == Some(&server.to_string()),
        "answered by {}",
        answered.unwrap_or("nobody")
    );
    Ok(connection)
}
