// SPDX-License-Identifier: Apache-2.0
//! ServiceEntry as written (istio.io/docs/reference/config/networking/service-entry).

use std::collections::BTreeMap;

use serde::Deserialize;

use super::scalar::Unused;

/// `spec` of a ServiceEntry.
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
#[derive(Default)]
pub struct ServiceEntry {
    /// Hosts.
    pub hosts: Vec<String>,
    /// IPs or CIDRs.
    pub addresses: Vec<String>,
    /// Ports.
    pub ports: Vec<ServicePort>,
    /// MESH_EXTERNAL when left out.
    pub location: Location,
    /// NONE when left out.
    pub resolution: Resolution,
    /// Endpoints.
    pub endpoints: Vec<WorkloadEntry>,
    /// Exclusive with endpoints.
    pub workload_selector: Option<Unused>,
    /// Visibility.
    pub export_to: Vec<String>,
    /// Server names accepted when TLS is originated.
    pub subject_alt_names: Vec<String>,
}

/// ServicePort.
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ServicePort {
    /// Port number.
    pub number: u32,
    /// Protocol; empty: detected.
    #[serde(default)]
    pub protocol: String,
    /// Name.
    #[serde(default)]
    pub name: String,
    /// Port dialled.
    #[serde(default)]
    pub target_port: Option<u32>,
}

/// ServiceEntry.Location.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum Location {
    /// Outside.
    #[default]
    MeshExternal,
    /// Inside.
    MeshInternal,
}

/// ServiceEntry.Resolution.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum Resolution {
    /// Original destination.
    #[default]
    None,
    /// Listed endpoints.
    Static,
    /// All addresses.
    Dns,
    /// First address.
    DnsRoundRobin,
    /// Per request.
    DynamicDns,
}

/// WorkloadEntry.
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct WorkloadEntry {
    /// IP, name or `unix://`.
    #[serde(default)]
    pub address: String,
    /// By port name.
    #[serde(default)]
    pub ports: BTreeMap<String, u32>,
    /// Labels.
    #[serde(default)]
    pub labels: BTreeMap<String, String>,
    /// Network.
    #[serde(default)]
    pub network: Option<String>,
    /// `region/zone/subzone`.
    #[serde(default)]
    pub locality: String,
    /// Weight.
    #[serde(default)]
    pub weight: u32,
    /// Service account.
    #[serde(default)]
    pub service_account: Option<String>,
}
