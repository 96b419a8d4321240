// SPDX-License-Identifier: Apache-2.0
//! What a Gateway admits, and the reserved name `mesh`.

use std::{collections::BTreeMap, net::IpAddr, sync::Arc};

use super::{
    host::HostPattern,
    service::{Origin, Protocol},
};

/// A gateway that a VirtualService binds to, resolved to its full form.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum GatewayName {
    /// The reserved name `mesh`: the client-side proxy, here the node proxy.
    Mesh,
    /// A Gateway object.
    Named {
        /// Its namespace.
        namespace: String,
        /// Its name.
        name: String,
    },
}

/// A Gateway object.
#[derive(Debug, Clone, PartialEq)]
pub struct Gateway {
    /// Where it came from.
    pub origin: Arc<Origin>,
    /// Labels of the gateway workloads it configures; empty selects all of them.
    pub selector: BTreeMap<String, String>,
    /// In the order written.
    pub servers: Vec<Server>,
}

/// Gateway.servers[].
#[derive(Debug, Clone, PartialEq)]
pub struct Server {
    /// Service port number, host byte order.
    pub port: u16,
    /// Unique in the object.
    pub port_name: String,
    /// Declared protocol.
    pub protocol: Protocol,
    /// Address to bind; `None`: the gateway's own bind addresses.
    pub bind: Option<IpAddr>,
    /// At least one.
    pub hosts: Vec<ServerHost>,
    /// `Server.tls`; `None` for plain protocols.
    pub tls: Option<ServerTls>,
}

/// `[namespace/]dnsName`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServerHost {
    /// Namespace whose VirtualServices may serve the host; `None`: any (`*`). `.` is resolved.
    pub namespace: Option<String>,
    /// The host.
    pub host: HostPattern,
}

/// Gateway.servers[].tls, as far as it is in effect.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServerTls {
    /// `PASSTHROUGH` when left out.
    pub mode: ServerTlsMode,
    /// Answer plain HTTP with 301.
    pub https_redirect: bool,
}

/// ServerTLSSettings.TLSmode.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ServerTlsMode {
    /// Route by SNI, do not terminate.
    Passthrough,
    /// Terminate.
    Simple,
    /// Terminate, client certificate required.
    Mutual,
    /// Terminate, client certificate optional.
    OptionalMutual,
    /// Mesh mTLS.
    IstioMutual,
    /// SNI-DNAT.
    AutoPassthrough,
}
