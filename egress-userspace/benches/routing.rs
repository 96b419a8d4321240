// SPDX-License-Identifier: Apache-2.0
//! The cost of the routing table at scale: 10,000 ServiceEntries and 10,000 VirtualServices of 10
//! rules each. Reading the YAML is timed apart from building the table; a lookup's cost must not
//! grow with the number of VirtualServices, so it is measured at two sizes.
//!
//! `cargo bench -p egress-userspace`; prints the memory that a table takes before it begins.

#![allow(
    clippy::unwrap_used,
    reason = "a benchmark that cannot go on fails with the error it met"
)]

use std::{fmt::Write as _, fs, hint::black_box, path::PathBuf, time::Duration};

use criterion::{BatchSize, Criterion, criterion_group, criterion_main};
use egress::{
    config::{self, ConfigSettings},
    routing::{
        decision::{Request, Traffic, Why},
        table::{Objects, Role, Table},
    },
};
use http::{HeaderMap, HeaderValue, Method};

const MANY: usize = 10_000;
const FEW: usize = 100;
const RULES: usize = 10;

fn yaml(count: usize) -> String {
    let mut text = String::new();
    for n in 0..count {
        write!(
            text,
            "---\napiVersion: networking.istio.io/v1\nkind: ServiceEntry\n\
             metadata: {{name: s{n}, namespace: a}}\n\
             spec:\n  hosts: [h{n}.example.com]\n  resolution: DNS\n  \
             ports: [{{number: 80, name: http, protocol: HTTP}}]\n\
             ---\napiVersion: networking.istio.io/v1\nkind: VirtualService\n\
             metadata: {{name: v{n}, namespace: a}}\n\
             spec:\n  hosts: [h{n}.example.com]\n  gateways: [mesh, egress]\n  http:\n"
        )
        .unwrap();
        for rule in 0..RULES - 1 {
            writeln!(
                text,
                "  - match: [{{uri: {{prefix: /r{rule}/}}, headers: {{x-r: {{exact: v{rule}}}}}}}]\n    \
                 route: [{{destination: {{host: h{n}.example.com, port: {{number: 80}}}}}}]"
            )
            .unwrap();
        }
        writeln!(
            text,
            "  - route: [{{destination: {{host: h{n}.example.com, port: {{number: 80}}}}}}]"
        )
        .unwrap();
    }
    text.push_str(
        "---\napiVersion: networking.istio.io/v1\nkind: Gateway\n\
         metadata: {name: egress, namespace: a}\n\
         spec:\n  selector: {istio: egressgateway}\n  \
         servers: [{port: {number: 80, name: http, protocol: HTTP}, hosts: ['*']}]\n",
    );
    text
}

struct Written(PathBuf);

impl Written {
    fn new(count: usize) -> Self {
        let path =
            std::env::temp_dir().join(format!("egress-bench-{count}-{}", std::process::id()));
        fs::write(&path, yaml(count)).unwrap();
        Self(path)
    }

    fn load(&self) -> Objects {
        let settings = ConfigSettings {
            paths: vec![self.0.clone()],
            mesh_config: None,
            default_namespace: "default".into(),
            role: Role::Mesh,
        };
        config::load(&settings).unwrap().objects
    }
}

impl Drop for Written {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.0);
    }
}

fn gateway() -> Role {
    Role::Gateway {
        namespace: "istio-system".into(),
        labels: [("istio".into(), "egressgateway".into())].into(),
        only: None,
    }
}

/// Resident memory of this process, bytes (proc_pid_status(5), VmRSS).
fn resident() -> u64 {
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|l| l.starts_with("VmRSS:")).unwrap();
    line.split_whitespace()
        .nth(1)
        .unwrap()
        .parse::<u64>()
        .unwrap()
        * 1024
}

fn memory(objects: &Objects) {
    for (name, role) in [("mesh", Role::Mesh), ("gateway", gateway())] {
        let before = resident();
        let table = Table::build(objects.clone(), role);
        let grown = resident().saturating_sub(before);
        println!(
            "memory of the {name} table beside its objects: {} MiB, {} bytes for each VirtualService",
            grown >> 20,
            grown / MANY as u64
        );
        drop(black_box(table));
    }
}

fn build(c: &mut Criterion) {
    let written = Written::new(MANY);
    let begun = resident();
    let objects = written.load();
    let grown = resident() - begun;
    println!("memory of the objects: {} MiB", grown >> 20);
    memory(&objects);
    let mut group = c.benchmark_group("10,000 VirtualServices of 10 rules");
    group.sample_size(10);
    group.measurement_time(Duration::from_secs(5));
    for (name, role) in [("mesh", Role::Mesh), ("gateway", gateway())] {
        group.bench_function(format!("build the {name} table"), |b| {
            b.iter_batched(
                || (objects.clone(), role.clone()),
                |(objects, role)| Table::build(objects, role),
                BatchSize::PerIteration,
            );
        });
    }
    group.bench_function("read and check the YAML", |b| b.iter(|| written.load()));
    group.finish();
}

fn lookup(c: &mut Criterion) {
    for count in [FEW, MANY] {
        let objects = Written::new(count).load();
        let mut group = c.benchmark_group(format!("lookup among {count} VirtualServices"));
        let host = format!("h{}.example.com", count - 1);
        let mut headers = HeaderMap::new();
        headers.insert("x-r", HeaderValue::from_static("v5"));
        headers.insert("user-agent", HeaderValue::from_static("curl/8.0"));
        for (name, role) in [("mesh", Role::Mesh), ("gateway", gateway())] {
            let table = Table::build(objects.clone(), role);
            for (case, host, path) in [
                ("6th rule", host.as_str(), "/r5/x?y=z"),
                ("last rule", host.as_str(), "/other"),
                ("unknown host", "a.b.c.unknown.example.org", "/"),
            ] {
                let request = Request {
                    source: None,
                    port: 80,
                    destination_ip: None,
                    names_of_ip: &[],
                    traffic: Traffic::Http {
                        method: &Method::GET,
                        scheme: "http",
                        host,
                        path,
                        headers: &headers,
                    },
                };
                group.bench_function(format!("{name}, {case}"), |b| {
                    b.iter(|| table.decide(black_box(&request), 7, &mut Why::off()));
                });
            }
        }
        group.finish();
    }
}

criterion_group!(routing, build, lookup);
criterion_main!(routing);
