// SPDX-License-Identifier: Apache-2.0
//! Sidecar as written (istio/api `sidecar.proto`).

use serde::Deserialize;

use super::{ConnectionPoolSettings, Destination, Port, ServerTlsSettings, WorkloadSelector};

/// Sidecar.spec.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default, rename_all = "camelCase", deny_unknown_fields)]
pub(in crate::config) struct Sidecar {
    pub workload_selector: Option<WorkloadSelector>,
    pub ingress: Vec<IstioIngressListener>,
    pub egress: Vec<IstioEgressListener>,
    pub inbound_connection_pool: Option<ConnectionPoolSettings>,
    pub outbound_traffic_policy: Option<OutboundTrafficPolicy>,
}

/// IstioIngressListener; inbound traffic is not this program's.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default, rename_all = "camelCase", deny_unknown_fields)]
pub(in crate::config) struct IstioIngressListener {
    pub port: Option<Port>,
    pub bind: String,
    pub capture_mode: CaptureMode,
    pub default_endpoint: String,
    pub tls: Option<ServerTlsSettings>,
    pub connection_pool: Option<ConnectionPoolSettings>,
}

/// IstioEgressListener.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default, rename_all = "camelCase", deny_unknown_fields)]
pub(in crate::config) struct IstioEgressListener {
    pub port: Option<Port>,
    pub bind: String,
    pub capture_mode: CaptureMode,
    pub hosts: Vec<String>,
}

/// OutboundTrafficPolicy of a Sidecar; an empty block means REGISTRY_ONLY.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default, rename_all = "camelCase", deny_unknown_fields)]
pub(in crate::config) struct OutboundTrafficPolicy {
    pub mode: SidecarOutboundMode,
    pub egress_proxy: Option<Destination>,
}

/// OutboundTrafficPolicy.Mode of a Sidecar.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub(in crate::config) enum SidecarOutboundMode {
    #[default]
    RegistryOnly,
    AllowAny,
}

/// CaptureMode.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub(in crate::config) enum CaptureMode {
    #[default]
    Default,
    Iptables,
    None,
}
