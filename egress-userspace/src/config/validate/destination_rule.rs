// SPDX-License-Identifier: Apache-2.0
//! DestinationRule (istio `ValidateDestinationRule`; istio-egress.md 6). Everything is checked; in
//! effect are subsets, the HTTP version and the connect timeout.

use std::{collections::BTreeSet, sync::Arc};

use super::{Findings, Subject, names, tls};
use crate::{
    config::{
        field::FieldPath,
        istio::{
            self, ClientTlsMode, ClientTlsSettings, ConnectionPoolSettings, LoadBalancerSettings,
            OutlierDetection,
        },
    },
    routing::destination_rule::{
        DestinationRule, Http2Upgrade, Policy, PoolSettings, Settings, Subset,
    },
};

/// Checks `raw` and builds the rule; `findings` says whether it is usable.
pub(in crate::config) fn destination_rule(
    raw: &istio::DestinationRule,
    subject: &Subject,
    findings: &mut Findings,
) -> Arc<DestinationRule> {
    let spec = FieldPath::Root.key("spec");
    let host_path = spec.key("host");
    if raw.host.is_empty() {
        findings.error(&host_path, "a host is required");
    } else if let Some(message) = names::wildcard_host_error(&raw.host) {
        findings.error(&host_path, message);
    }
    let policy = raw
        .traffic_policy
        .as_ref()
        .map(|policy| traffic_policy(policy, &spec.key("trafficPolicy"), findings));
    let subsets_path = spec.key("subsets");
    let mut subset_names = BTreeSet::new();
    let mut subsets = Vec::with_capacity(raw.subsets.len());
    for (index, subset) in raw.subsets.iter().enumerate() {
        let path = subsets_path.index(index);
        if !names::is_dns_label(&subset.name) {
            findings.error(
                &path.key("name"),
                format!("`{}` is not a valid subset name (a DNS label)", subset.name),
            );
        } else if !subset_names.insert(&subset.name) {
            findings.error(
                &path.key("name"),
                format!("subset `{}` is defined twice", subset.name),
            );
        }
        names::labels(&subset.labels, &path.key("labels"), findings);
        subsets.push(Subset {
            name: subset.name.clone(),
            labels: subset.labels.clone(),
            policy: subset
                .traffic_policy
                .as_ref()
                .map(|policy| traffic_policy(policy, &path.key("trafficPolicy"), findings)),
        });
    }
    if let Some(selector) = &raw.workload_selector {
        let path = spec.key("workloadSelector");
        names::labels(&selector.match_labels, &path.key("matchLabels"), findings);
        findings.not_in_effect(&path, "the rule is for every workload");
    }
    let export_to = subject.export_to(&raw.export_to, &spec.key("exportTo"), findings);
    Arc::new(DestinationRule {
        origin: Arc::clone(&subject.origin),
        host: names::host_pattern(&names::qualify(&raw.host, subject.namespace())),
        export_to,
        policy,
        subsets,
    })
}

fn traffic_policy(
    policy: &istio::TrafficPolicy,
    path: &FieldPath<'_>,
    findings: &mut Findings,
) -> Policy {
    connection_policy(
        policy.load_balancer.as_ref(),
        policy.connection_pool.as_ref(),
        policy.outlier_detection.as_ref(),
        path,
        findings,
    );
    let settings = Settings {
        pool: policy.connection_pool.as_ref().map(pool_settings),
        tls: client_tls(policy.tls.as_ref(), &path.key("tls"), findings),
    };
    let mut ports = Vec::with_capacity(policy.port_level_settings.len());
    let levels = path.key("portLevelSettings");
    for (index, level) in policy.port_level_settings.iter().enumerate() {
        let path = levels.index(index);
        let port = match &level.port {
            Some(port) => names::port(port.number, &path.key("port").key("number"), findings),
            None => {
                findings.error(&path.key("port"), "a port is required");
                None
            }
        };
        connection_policy(
            level.load_balancer.as_ref(),
            level.connection_pool.as_ref(),
            level.outlier_detection.as_ref(),
            &path,
            findings,
        );
        let tls = client_tls(level.tls.as_ref(), &path.key("tls"), findings);
        let pool = level.connection_pool.as_ref().map(pool_settings);
        ports.extend(port.map(|port| (port, Settings { pool, tls })));
    }
    for (name, given) in [
        ("tunnel", policy.tunnel.is_some()),
        ("proxyProtocol", policy.proxy_protocol.is_some()),
        ("retryBudget", policy.retry_budget.is_some()),
    ] {
        if given {
            findings.not_in_effect(&path.key(name), "");
        }
    }
    if let Some(tunnel) = &policy.tunnel {
        let path = path.key("tunnel");
        if policy.proxy_protocol.is_some() {
            findings.error(&path, "tunnel and proxyProtocol exclude each other");
        }
        if !matches!(tunnel.protocol.as_str(), "" | "CONNECT" | "POST") {
            findings.error(
                &path.key("protocol"),
                format!("`{}` is not CONNECT or POST", tunnel.protocol),
            );
        }
        let host = &tunnel.target_host;
        if !names::is_ip(host)
            && let Some(message) = names::fqdn_error(host)
        {
            findings.error(&path.key("targetHost"), message);
        }
        names::port(tunnel.target_port, &path.key("targetPort"), findings);
    }
    if let Some(percent) = policy.retry_budget.as_ref().and_then(|b| b.percent)
        && !(0.0..=100.0).contains(&percent)
    {
        findings.error(
            &path.key("retryBudget").key("percent"),
            "must be in the range 0..100",
        );
    }
    Policy { settings, ports }
}

/// Whether TLS is asked for; `None`: nothing is said.
fn client_tls(
    settings: Option<&ClientTlsSettings>,
    path: &FieldPath<'_>,
    findings: &mut Findings,
) -> Option<bool> {
    let settings = settings?;
    tls::client(settings, path, findings);
    let wanted = settings.mode != ClientTlsMode::Disable;
    if wanted {
        findings.not_in_effect(path, "requests get 503 rather than going in plain text");
    }
    Some(wanted)
}

fn pool_settings(pool: &ConnectionPoolSettings) -> PoolSettings {
    let http = pool.http.as_ref();
    PoolSettings {
        connect_timeout: pool
            .tcp
            .as_ref()
            .and_then(|tcp| tcp.connect_timeout)
            .map(|limit| limit.0),
        http2: match http.map(|http| http.h2_upgrade_policy) {
            None | Some(istio::H2UpgradePolicy::Default) => Http2Upgrade::Default,
            Some(istio::H2UpgradePolicy::DoNotUpgrade) => Http2Upgrade::DoNotUpgrade,
            Some(istio::H2UpgradePolicy::Upgrade) => Http2Upgrade::Upgrade,
        },
        as_client: http.is_some_and(|http| http.use_client_protocol),
    }
}

fn connection_policy(
    balancer: Option<&LoadBalancerSettings>,
    pool: Option<&ConnectionPoolSettings>,
    outliers: Option<&OutlierDetection>,
    path: &FieldPath<'_>,
    findings: &mut Findings,
) {
    if let Some(balancer) = balancer {
        let path = path.key("loadBalancer");
        load_balancer(balancer, &path, findings);
        findings.not_in_effect(&path, "");
    }
    if let Some(pool) = pool {
        connection_pool(pool, &path.key("connectionPool"), findings);
    }
    if let Some(outliers) = outliers {
        let path = path.key("outlierDetection");
        findings.not_in_effect(&path, "");
        names::duration(outliers.interval, &path.key("interval"), findings);
        names::duration(
            outliers.base_ejection_time,
            &path.key("baseEjectionTime"),
            findings,
        );
        for (name, percent) in [
            ("maxEjectionPercent", outliers.max_ejection_percent),
            ("minHealthPercent", outliers.min_health_percent),
        ] {
            if !(0..=100).contains(&percent) {
                findings.error(&path.key(name), "must be in the range 0..100");
            }
        }
    }
}

fn load_balancer(lb: &LoadBalancerSettings, path: &FieldPath<'_>, findings: &mut Findings) {
    if lb.simple.is_some() && lb.consistent_hash.is_some() {
        findings.error(
            &path.key("consistentHash"),
            "excludes `simple`; give one of them",
        );
    }
    let Some(hash) = &lb.consistent_hash else {
        return;
    };
    let path = path.key("consistentHash");
    let keys = [
        hash.http_header_name.is_some(),
        hash.http_cookie.is_some(),
        hash.use_source_ip.is_some(),
        hash.http_query_parameter_name.is_some(),
    ];
    if keys.iter().filter(|given| **given).count() != 1 {
        findings.error(
            &path,
            "give one of httpHeaderName, httpCookie, useSourceIp and httpQueryParameterName",
        );
    }
    if hash.ring_hash.is_some() && hash.maglev.is_some() {
        findings.error(&path.key("maglev"), "excludes `ringHash`; give one of them");
    }
    if hash.http_cookie.as_ref().is_some_and(|c| c.name.is_empty()) {
        findings.error(&path.key("httpCookie").key("name"), "a cookie needs a name");
    }
}

fn connection_pool(pool: &ConnectionPoolSettings, path: &FieldPath<'_>, findings: &mut Findings) {
    if pool.tcp.is_none() && pool.http.is_none() {
        findings.error(path, "give `tcp` or `http`");
    }
    if let Some(tcp) = &pool.tcp {
        let path = path.key("tcp");
        names::duration(tcp.connect_timeout, &path.key("connectTimeout"), findings);
        names::duration(
            tcp.max_connection_duration,
            &path.key("maxConnectionDuration"),
            findings,
        );
        if tcp.max_connections < 0 {
            findings.error(&path.key("maxConnections"), "must not be negative");
        }
        for (name, given) in [
            ("maxConnections", tcp.max_connections != 0),
            ("tcpKeepalive", tcp.tcp_keepalive.is_some()),
            (
                "maxConnectionDuration",
                tcp.max_connection_duration.is_some(),
            ),
            ("idleTimeout", tcp.idle_timeout.is_some()),
        ] {
            if given {
                findings.not_in_effect(&path.key(name), "");
            }
        }
    }
    if let Some(http) = &pool.http {
        let path = path.key("http");
        for (name, value) in [
            ("http1MaxPendingRequests", http.http1_max_pending_requests),
            ("http2MaxRequests", http.http2_max_requests),
            ("maxRequestsPerConnection", http.max_requests_per_connection),
            ("maxRetries", http.max_retries),
            ("maxConcurrentStreams", http.max_concurrent_streams),
        ] {
            if value < 0 {
                findings.error(&path.key(name), "must not be negative");
            } else if value > 0 {
                findings.not_in_effect(&path.key(name), "");
            }
        }
        for (name, given) in [
            ("idleTimeout", http.idle_timeout.is_some()),
            ("http2KeepAlive", http.http2_keep_alive.is_some()),
        ] {
            if given {
                findings.not_in_effect(&path.key(name), "");
            }
        }
        if http.use_client_protocol && http.h2_upgrade_policy == istio::H2UpgradePolicy::Upgrade {
            findings.error(
                &path.key("useClientProtocol"),
                "excludes h2UpgradePolicy UPGRADE",
            );
        }
    }
}
