// SPDX-License-Identifier: Apache-2.0
//! The Prometheus text exposition of everything that is counted (`GET /metrics`).
//!
//! Istio's metrics come from the workers' series (`proxy::access_log::series`), `egress_*` ones
//! from whoever owns the number. Counts nothing itself.

use std::{fmt::Display, fmt::Write, sync::Arc};

use super::state::AdminState;
use crate::{
    config::problem::Severity,
    proxy::access_log::{
        REFUSED_DIRECT, Totals,
        labels::escape_label,
        series::{BOUNDS, Histogram, HttpValues, TcpValues},
    },
};

/// `Content-Type` of the text format, version 0.0.4.
pub const CONTENT_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";

/// The whole exposition.
pub fn exposition(state: &AdminState) -> String {
    let totals = state.access_log.totals();
    let mut out = Exposition::default();
    istio(&mut out, &totals);
    own(&mut out, state, &totals);
    out.0
}

fn istio(out: &mut Exposition, totals: &Totals) {
    out.counters(
        "istio_requests_total",
        "HTTP and gRPC requests.",
        totals
            .http
            .iter()
            .map(|(labels, values)| (labels, values.requests)),
    );
    type Part = fn(&HttpValues) -> &Histogram;
    let histograms: [(&str, &str, Part); 3] = [
        (
            "istio_request_duration_milliseconds",
            "Time from the first byte of a request to the last of its response.",
            |values| &values.duration_ms,
        ),
        (
            "istio_request_bytes",
            "Bytes of request bodies.",
            |values| &values.request_bytes,
        ),
        (
            "istio_response_bytes",
            "Bytes of response bodies.",
            |values| &values.response_bytes,
        ),
    ];
    for (name, help, part) in histograms {
        let series = totals.http.iter();
        out.histograms(
            name,
            help,
            series.map(|(labels, values)| (labels, part(values))),
        );
    }
    type Count = fn(&TcpValues) -> u64;
    let counters: [(&str, &str, Count); 4] = [
        (
            "istio_tcp_connections_opened_total",
            "TCP connections opened.",
            |values| values.opened,
        ),
        (
            "istio_tcp_connections_closed_total",
            "TCP connections closed.",
            |values| values.closed,
        ),
        (
            "istio_tcp_sent_bytes_total",
            "Bytes sent to clients of TCP connections.",
            |values| values.sent_bytes,
        ),
        (
            "istio_tcp_received_bytes_total",
            "Bytes received from clients of TCP connections.",
            |values| values.received_bytes,
        ),
    ];
    for (name, help, count) in counters {
        let series = totals.tcp.iter();
        out.counters(
            name,
            help,
            series.map(|(labels, values)| (labels, count(values))),
        );
    }
}

fn own(out: &mut Exposition, state: &AdminState, totals: &Totals) {
    if let Some(kernel) = &state.kernel {
        out.head(
            "egress_kernel_outcomes_total",
            "What the kernel programs did.",
            "counter",
        );
        let kernel = kernel();
        for (program, outcome, count) in kernel.outcomes {
            let labels = labels(&[("program", program), ("outcome", outcome)]);
            out.sample("egress_kernel_outcomes_total", "", &labels, count);
        }
        out.counters(
            "egress_denials_total",
            "What the kernel refused, by workload, protocol and reason.",
            kernel.denied.iter().map(|(pairs, count)| {
                let pairs = pairs
                    .each_ref()
                    .map(|(name, value)| (*name, value.as_str()));
                (labels(&pairs), *count)
            }),
        );
        for (name, help, value) in [
            (
                "egress_pods",
                "Network namespaces of captured processes.",
                kernel.pods,
            ),
            (
                "egress_pods_listening",
                "Pods whose connections the kernel redirects to the proxy inside.",
                kernel.pods_listening,
            ),
        ] {
            out.single(name, help, "gauge", value as u64);
        }
    }
    out.single(
        "egress_access_log_dropped_lines_total",
        "Access log lines lost because the sink was too slow or failed.",
        "counter",
        totals.dropped_lines,
    );
    out.single(
        "egress_metrics_overflow_total",
        "Records counted in the series \"other\" because there were too many label sets.",
        "counter",
        totals.overflow,
    );
    out.counters(
        "egress_connections_refused_total",
        "Connections closed at once, by reason; direct: not redirected by the kernel; \
         untrusted_proxy: a PROXY protocol header from elsewhere than --trust-proxy; \
         bad_proxy_header: a broken one.",
        // The most asked-for reason is there from the start, so that alerts have a series.
        [(REFUSED_DIRECT, 0)]
            .into_iter()
            .filter(|(reason, _)| !totals.refused.contains_key(reason))
            .chain(
                totals
                    .refused
                    .iter()
                    .map(|(reason, count)| (*reason, *count)),
            )
            .map(|(reason, count)| (labels(&[("reason", reason)]), count)),
    );
    out.counters(
        "egress_dns_resolutions_total",
        "Resolutions of names by result.",
        state
            .resolutions
            .read()
            .into_iter()
            .map(|(result, count)| (labels(&[("result", result)]), count)),
    );
    config(out, state);
    let build = labels(&[("version", env!("CARGO_PKG_VERSION")), ("role", state.role)]);
    out.head(
        "egress_build_info",
        "Version of the program, as labels.",
        "gauge",
    );
    out.sample("egress_build_info", "", &build, 1);
    let ready = state.readiness.borrow().is_ready() && !state.drain.is_cancelled();
    out.single("egress_ready", "1 when ready.", "gauge", u64::from(ready));
}

fn config(out: &mut Exposition, state: &AdminState) {
    let snapshot = state.snapshot.borrow().clone();
    out.single(
        "egress_config_version",
        "Version of the configuration in effect; 0 before the first.",
        "gauge",
        snapshot.version,
    );
    out.head(
        "egress_config_problems",
        "Findings in the configuration.",
        "gauge",
    );
    for (severity, name) in [(Severity::Error, "error"), (Severity::Warning, "warning")] {
        let problems = snapshot.problems.iter();
        let count = problems.filter(|p| p.severity == severity).count();
        out.sample(
            "egress_config_problems",
            "",
            &labels(&[("severity", name)]),
            count,
        );
    }
}

/// Renders labels without braces.
fn labels(pairs: &[(&str, &str)]) -> Arc<str> {
    let mut out = String::new();
    for (name, value) in pairs {
        if !out.is_empty() {
            out.push(',');
        }
        out.push_str(name);
        out.push_str("=\"");
        escape_label(&mut out, value);
        out.push('"');
    }
    out.into()
}

/// Text under construction. Writing to a String cannot fail, so results are dropped.
#[derive(Default)]
struct Exposition(String);

impl Exposition {
    /// A metric's help and type; help texts are ours and hold neither backslash nor line feed.
    fn head(&mut self, name: &str, help: &str, kind: &str) {
        let _ = writeln!(self.0, "# HELP {name} {help}\n# TYPE {name} {kind}");
    }

    fn sample(&mut self, name: &str, suffix: &str, labels: &str, value: impl Display) {
        let _ = if labels.is_empty() {
            writeln!(self.0, "{name}{suffix} {value}")
        } else {
            writeln!(self.0, "{name}{suffix}{{{labels}}} {value}")
        };
    }

    fn single(&mut self, name: &str, help: &str, kind: &str, value: u64) {
        self.head(name, help, kind);
        self.sample(name, "", "", value);
    }

    fn counters<L: AsRef<str>>(
        &mut self,
        name: &str,
        help: &str,
        series: impl Iterator<Item = (L, u64)>,
    ) {
        self.head(name, help, "counter");
        for (labels, count) in series {
            self.sample(name, "", labels.as_ref(), count);
        }
    }

    fn histograms<'a>(
        &mut self,
        name: &str,
        help: &str,
        series: impl Iterator<Item = (&'a Arc<str>, &'a Histogram)>,
    ) {
        self.head(name, help, "histogram");
        for (labels, histogram) in series {
            let mut below = 0;
            for (bound, count) in BOUNDS.iter().zip(histogram.buckets) {
                below += count;
                self.sample(name, "_bucket", &format!("{labels},le=\"{bound}\""), below);
            }
            let count: u64 = histogram.buckets.iter().sum();
            self.sample(name, "_bucket", &format!("{labels},le=\"+Inf\""), count);
            self.sample(name, "_sum", labels, histogram.sum);
            self.sample(name, "_count", labels, count);
        }
    }
}
