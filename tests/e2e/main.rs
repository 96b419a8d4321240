// SPDX-License-Identifier: Apache-2.0
//! End-to-end tests: the `egress` binary on the running kernel, in networks made for each test.
//!
//! `cargo xtask test` runs them, as root. Each test has namespaces, cgroups and a pin directory of
//! its own, so they run side by side.

#![allow(
    clippy::unwrap_used,
    reason = "a test that cannot go on fails with the error it met, in helpers as in tests"
)]

mod actions;
mod bypass;
mod capture;
mod connections;
mod containers;
mod destinations;
mod http;
mod http2;
mod identity;
mod lifecycle;
mod network;
mod peers;
mod pod_end;
mod pods;
mod reload;
mod scenario;
mod servers;
mod soak;
mod wire;

use std::{
    fmt::Write as _,
    io::Write as _,
    path::{Path, PathBuf},
};

use lab::net::Net;

/// A network for the test, or `None`, with a message, when the caller may not make one.
///
/// # Panics
/// When the machine lacks something, and under CI also when the caller is not root.
fn net(test: &str) -> Option<Net> {
    if nix::unistd::geteuid().is_root() {
        return Some(Net::new(test).unwrap_or_else(|error| panic!("building the lab: {error:#}")));
    }
    let ci = std::env::var("CI").is_ok_and(|value| value == "true");
    assert!(!ci, "{test} needs root, and under CI every test must run");
    // Not captured by the test harness, unlike eprintln.
    let _ = writeln!(std::io::stderr(), "NOT RUN: {test} needs root");
    None
}

/// A ServiceEntry of namespace istio-demo; `rest` is more of its spec, in flow style.
fn service_entry(name: &str, hosts: &[&str], ports: &[u16], rest: &str) -> String {
    let mut yaml = format!(
        "---\napiVersion: networking.istio.io/v1\nkind: ServiceEntry\n\
         metadata: {{name: {name}, namespace: istio-demo}}\n\
         spec:\n  hosts: [{}]\n  location: MESH_EXTERNAL\n  {rest}\n  ports:\n",
        hosts
            .iter()
            .map(|host| format!("\"{host}\""))
            .collect::<Vec<_>>()
            .join(", "),
    );
    for port in ports {
        let port = format!("{{number: {port}, name: http-{port}, protocol: HTTP}}");
        writeln!(yaml, "  - {port}").expect("writing to a string");
    }
    yaml
}

/// A VirtualService of namespace istio-demo for the mesh; `rules` is `http` in flow style.
fn virtual_service(name: &str, host: &str, rules: &str) -> String {
    format!(
        "---\napiVersion: networking.istio.io/v1\nkind: VirtualService\n\
         metadata: {{name: {name}, namespace: istio-demo}}\n\
         spec: {{hosts: [{host}], http: {rules}}}\n"
    )
}

/// Runs curl in the pod; its standard output without the last line's end.
fn curl(net: &Net, arguments: &[&str]) -> String {
    let command = [&["curl", "-sS", "--max-time", "20"], arguments].concat();
    net.pod.run(&command).unwrap().trim_end().to_owned()
}

/// Writes a file of the lab's own configuration folder; the folder.
fn configure(net: &Net, file: &str, yaml: &str) -> PathBuf {
    let path = net
        .directory
        .write(&format!("config/{file}"), yaml)
        .unwrap();
    path.parent().map(Path::to_owned).unwrap()
}

/// A meshConfig file of the lab.
fn mesh_config(net: &Net, yaml: &str) -> String {
    net.directory
        .write("mesh.yaml", yaml)
        .unwrap()
        .display()
        .to_string()
}
