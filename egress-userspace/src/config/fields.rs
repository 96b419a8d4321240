// SPDX-License-Identifier: Apache-2.0
//! The README's table of fields, made from the shapes that are read: every field is in it, and
//! [`NOT_YET`] says which are checked only.

use std::{env, fs, path::Path};

use serde::de::DeserializeOwned;
use serde_yaml::Value;

use super::istio;

/// Fields that are read and checked but not in effect, by Istio's message; each is a warning where
/// it is used, or an error where the text says so.
const NOT_YET: &[(&str, &[&str])] = &[
    ("ServiceEntry", &["workloadSelector", "subjectAltNames"]),
    ("WorkloadEntry", &["network", "locality", "serviceAccount"]),
    ("Server", &["bind", "defaultEndpoint"]),
    (
        "ServerTLSSettings",
        &[
            "httpsRedirect",
            "serverCertificate",
            "privateKey",
            "caCertificates",
            "caCrl",
            "credentialName",
            "credentialNames",
            "caCertCredentialName",
            "tlsCertificates",
            "subjectAltNames",
            "verifyCertificateSpki",
            "verifyCertificateHash",
            "minProtocolVersion",
            "maxProtocolVersion",
            "cipherSuites",
            "insecureSkipVerify",
        ],
    ),
    ("HTTPMatchRequest", &["statPrefix"]),
    ("HTTPRetry", &["retryRemoteLocalities"]),
    ("HTTPFaultInjection.Delay", &["exponentialDelay"]),
    ("HTTPFaultInjection.Abort", &["http2Error"]),
    ("L4MatchAttributes", &["sourceSubnet"]),
    ("DestinationRule", &["workloadSelector"]),
    (
        "TrafficPolicy",
        &[
            "loadBalancer",
            "outlierDetection",
            "tls",
            "tunnel",
            "proxyProtocol",
            "retryBudget",
        ],
    ),
    (
        "ConnectionPoolSettings.TCPSettings",
        &[
            "maxConnections",
            "tcpKeepalive",
            "maxConnectionDuration",
            "idleTimeout",
        ],
    ),
    (
        "ConnectionPoolSettings.HTTPSettings",
        &[
            "http1MaxPendingRequests",
            "http2MaxRequests",
            "maxRequestsPerConnection",
            "maxRetries",
            "idleTimeout",
            "maxConcurrentStreams",
            "http2KeepAlive",
        ],
    ),
    ("Sidecar", &["ingress", "inboundConnectionPool"]),
    ("IstioEgressListener", &["bind", "captureMode"]),
    ("MeshConfig", &["accessLogFile"]),
    (
        "ProxyConfig.ProxyHeaders",
        &[
            "forwardedClientCert",
            "setCurrentClientCertDetails",
            "metadataExchangeHeaders",
            "preserveHttp1HeaderCase",
        ],
    ),
];

/// JSON names of the fields of a shape, from what serde says of an unknown one.
fn names<T: DeserializeOwned + std::fmt::Debug>() -> Vec<String> {
    let probe: Value = serde_yaml::from_str("{'': 1}").expect("a mapping");
    let error = serde_yaml::from_value::<T>(probe).expect_err("no field has an empty name");
    let text = error.to_string();
    let list = text.split("expected ").nth(1).unwrap_or_default();
    let names = list.split('`').skip(1).step_by(2);
    names.map(str::to_owned).collect()
}

/// Every message with its fields.
fn messages() -> Vec<(&'static str, Vec<String>)> {
    macro_rules! messages {
        ($($name:literal: $shape:ty),* $(,)?) => { vec![$(($name, names::<$shape>())),*] };
    }
    messages! {
        "ServiceEntry": istio::ServiceEntry,
        "ServicePort": istio::ServiceEntryPort,
        "WorkloadEntry": istio::WorkloadEntry,
        "Gateway": istio::Gateway,
        "Server": istio::Server,
        "ServerTLSSettings": istio::ServerTlsSettings,
        "VirtualService": istio::VirtualService,
        "HTTPRoute": istio::HttpRoute,
        "HTTPMatchRequest": istio::HttpMatchRequest,
        "HTTPRouteDestination": istio::HttpRouteDestination,
        "Destination": istio::Destination,
        "HTTPRewrite": istio::HttpRewrite,
        "HTTPRedirect": istio::HttpRedirect,
        "HTTPDirectResponse": istio::HttpDirectResponse,
        "HTTPRetry": istio::HttpRetry,
        "HTTPFaultInjection.Delay": istio::FaultDelay,
        "HTTPFaultInjection.Abort": istio::FaultAbort,
        "HTTPMirrorPolicy": istio::HttpMirrorPolicy,
        "CorsPolicy": istio::CorsPolicy,
        "Headers.HeaderOperations": istio::RawHeaderOperations,
        "Delegate": istio::Delegate,
        "TLSMatchAttributes": istio::TlsMatchAttributes,
        "L4MatchAttributes": istio::L4MatchAttributes,
        "DestinationRule": istio::DestinationRule,
        "Subset": istio::Subset,
        "TrafficPolicy": istio::TrafficPolicy,
        "ConnectionPoolSettings.TCPSettings": istio::TcpSettings,
        "ConnectionPoolSettings.HTTPSettings": istio::HttpSettings,
        "Sidecar": istio::Sidecar,
        "IstioEgressListener": istio::IstioEgressListener,
        "OutboundTrafficPolicy": istio::OutboundTrafficPolicy,
        "MeshConfig": istio::RawMeshConfig,
        "ProxyConfig.ProxyHeaders": istio::RawProxyHeaders,
    }
}

fn table() -> String {
    let mut text =
        "| message | in effect | checked, not in effect yet |\n|---|---|---|\n".to_owned();
    for (message, fields) in messages() {
        let not_yet = NOT_YET
            .iter()
            .find(|(name, _)| *name == message)
            .map_or(&[][..], |(_, list)| list);
        for field in not_yet {
            let known = fields.iter().any(|name| name == field);
            assert!(known, "{message} has no field {field}");
        }
        let column = |wanted: bool| {
            let of = fields
                .iter()
                .filter(|f| not_yet.contains(&f.as_str()) == wanted);
            let quoted: Vec<_> = of.map(|field| format!("`{field}`")).collect();
            quoted.join(", ")
        };
        text.push_str(&format!(
            "| {message} | {} | {} |\n",
            column(false),
            column(true)
        ));
    }
    text
}

const BEGIN: &str =
    "<!-- fields: made by `EGRESS_ACCEPT=1 cargo test -p egress-userspace fields` -->\n";
const END: &str = "<!-- end of fields -->\n";

#[test]
fn the_readme_lists_every_field() {
    for (message, _) in NOT_YET {
        let known = messages().iter().any(|(name, _)| name == message);
        assert!(known, "there is no message {message}");
    }
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../README.md");
    let readme = fs::read_to_string(&path).expect("the README");
    let (before, rest) = readme
        .split_once(BEGIN)
        .expect("the beginning of the table");
    let (found, after) = rest.split_once(END).expect("the end of the table");
    let table = table();
    if env::var_os("EGRESS_ACCEPT").is_some() {
        fs::write(&path, [before, BEGIN, &table, END, after].concat()).expect("writing it");
        return;
    }
    assert!(
        found == table,
        "the README's table is not that of the code:\n{table}"
    );
}
