// SPDX-License-Identifier: Apache-2.0
//! Services known from ServiceEntry: one per host of an entry, with its ports and endpoints.

use std::{collections::BTreeMap, fmt, net::IpAddr, path::PathBuf, sync::Arc};

use ipnet::IpNet;

use super::host::HostPattern;

/// Which object something came from, and where it is written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Origin {
    /// `ServiceEntry`, `Gateway`, ...
    pub kind: &'static str,
    /// Namespace of the object.
    pub namespace: String,
    /// `metadata.name`.
    pub name: String,
    /// The file it was read from.
    pub file: PathBuf,
    /// 1-based line where the document starts.
    pub line: u64,
    /// `metadata.creationTimestamp` in its RFC 3339 form, which sorts as text; empty when absent.
    pub created: String,
}

impl fmt::Display for Origin {
    /// `ServiceEntry istio-demo/httpbin-ext`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}/{}", self.kind, self.namespace, self.name)
    }
}

/// Application protocol of a declared port (Istio `pkg/config/protocol`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Protocol {
    /// HTTP/1.1 in clear text.
    Http,
    /// HTTP/2 in clear text towards the upstream.
    Http2,
    /// gRPC: HTTP/2 towards the upstream.
    Grpc,
    /// gRPC-Web: HTTP/1.1 or 2.
    GrpcWeb,
    /// TLS carrying HTTP; on a ServiceEntry routed by SNI, never terminated.
    Https,
    /// TLS carrying anything.
    Tls,
    /// Opaque TCP, MONGO, REDIS and MYSQL included.
    Tcp,
    /// UDP.
    Udp,
    /// An explicit forward proxy port.
    HttpProxy,
    /// Not declared: detected per connection.
    Auto,
}

/// A declared port of a service.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServicePort {
    /// The port that applications dial, host byte order.
    pub number: u16,
    /// Unique within the service.
    pub name: String,
    /// Declared protocol.
    pub protocol: Protocol,
    /// Port dialled on endpoints; equals `number` when not given.
    pub target_port: u16,
}

/// ServiceEntry.location.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Location {
    /// Outside the mesh (default).
    #[default]
    MeshExternal,
    /// Part of the mesh.
    MeshInternal,
}

/// ServiceEntry.resolution.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Resolution {
    /// Dial the original destination (default).
    #[default]
    None,
    /// Dial the listed endpoints.
    Static,
    /// Resolve the host (or endpoint names); use all addresses.
    Dns,
    /// Resolve; use the first address per new connection.
    DnsRoundRobin,
    /// Resolve the name from Host or SNI per request (wildcard hosts).
    DynamicDns,
}

/// Where an endpoint is.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum EndpointAddress {
    /// An IP address.
    Ip(IpAddr),
    /// A name to resolve.
    Name(String),
    /// A Unix socket path.
    Unix(PathBuf),
}

/// ServiceEntry.endpoints[] (WorkloadEntry).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Endpoint {
    /// Where it is.
    pub address: EndpointAddress,
    /// Port by service port *name*; overrides the target port.
    pub ports: BTreeMap<String, u16>,
    /// Labels for subset selection.
    pub labels: BTreeMap<String, String>,
    /// Relative weight; 0 counts as 1 (WorkloadEntry.weight default).
    pub weight: u32,
    /// `region/zone/subzone`, empty when unknown.
    pub locality: String,
}

/// Who may see an object (`exportTo`).
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum ExportTo {
    /// `*` (default).
    #[default]
    All,
    /// `.` is resolved to the object's own namespace.
    Namespaces(Vec<String>),
    /// `~`: nobody.
    Nobody,
}

impl ExportTo {
    /// Whether a client in `namespace` may see the object.
    pub fn covers(&self, namespace: &str) -> bool {
        match self {
            Self::All => true,
            Self::Namespaces(names) => names.iter().any(|n| n == namespace),
            Self::Nobody => false,
        }
    }
}

/// One host of a ServiceEntry.
#[derive(Debug, Clone, PartialEq)]
pub struct Service {
    /// The ServiceEntry it came from.
    pub origin: Arc<Origin>,
    /// The host, lower-cased.
    pub host: HostPattern,
    /// Declared virtual addresses; empty: none declared.
    pub addresses: Vec<IpNet>,
    /// At least one; numbers and names unique.
    pub ports: Vec<ServicePort>,
    /// Inside or outside.
    pub location: Location,
    /// How endpoints are found.
    pub resolution: Resolution,
    /// Empty with `Resolution::None`.
    pub endpoints: Vec<Endpoint>,
    /// Visibility.
    pub export_to: ExportTo,
    /// Allowed server names when TLS is originated.
    pub subject_alt_names: Vec<String>,
}
