// SPDX-License-Identifier: Apache-2.0
//! Gateway as written (istio.io/docs/reference/config/networking/gateway).

use std::collections::BTreeMap;

use serde::Deserialize;

use super::scalar::Unused;

/// `spec` of a Gateway.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Gateway {
    /// Servers.
    pub servers: Vec<Server>,
    /// Labels of the gateway workloads.
    pub selector: BTreeMap<String, String>,
}

/// Server.
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Server {
    /// Port.
    pub port: Port,
    /// Listener address.
    #[serde(default)]
    pub bind: String,
    /// Hosts.
    #[serde(default)]
    pub hosts: Vec<String>,
    /// TLS.
    #[serde(default)]
    pub tls: Option<ServerTls>,
    /// Server name, for statistics.
    #[serde(default)]
    pub name: String,
    /// Obsolete.
    #[serde(default)]
    pub default_endpoint: Option<Unused>,
}

/// Port.
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Port {
    /// Service port.
    pub number: u32,
    /// Protocol.
    #[serde(default)]
    pub protocol: String,
    /// Name.
    #[serde(default)]
    pub name: String,
    /// Refused by Istio.
    #[serde(default)]
    pub target_port: Option<u32>,
}

/// ServerTLSSettings.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct ServerTls {
    /// 301 to https.
    pub https_redirect: bool,
    /// PASSTHROUGH when left out.
    pub mode: TlsMode,
    /// Certificate file.
    pub server_certificate: String,
    /// Key file.
    pub private_key: String,
    /// CA file.
    pub ca_certificates: String,
    /// Revocation list file.
    pub ca_crl: Option<Unused>,
    /// Secret.
    pub credential_name: String,
    /// Secrets.
    pub credential_names: Option<Unused>,
    /// Several certificates.
    pub tls_certificates: Option<Unused>,
    /// Client names.
    pub subject_alt_names: Option<Unused>,
    /// Client key hashes.
    pub verify_certificate_spki: Option<Unused>,
    /// Client certificate hashes.
    pub verify_certificate_hash: Option<Unused>,
    /// Lowest version.
    pub min_protocol_version: Option<Unused>,
    /// Highest version.
    pub max_protocol_version: Option<Unused>,
    /// Suites.
    pub cipher_suites: Option<Unused>,
}

/// ServerTLSSettings.TLSmode.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum TlsMode {
    /// By SNI.
    #[default]
    Passthrough,
    /// Terminate.
    Simple,
    /// Terminate, client certificate.
    Mutual,
    /// SNI-DNAT.
    AutoPassthrough,
    /// Mesh mTLS.
    IstioMutual,
    /// Terminate, client certificate optional.
    OptionalMutual,
}
