// SPDX-License-Identifier: Apache-2.0
//! The compiled routing table of one proxy, and the question it answers.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use super::{
    decision::{Decision, Request, Why},
    destination_rule::{DestinationRule, Http2Upgrade},
    gateway::Gateway,
    gateway_side::{GatewayProxy, GatewaySide},
    mesh_side::MeshSide,
    registry::Registry,
    retry::RetryPolicy,
    service::{Protocol, Service},
    sidecar::Sidecar,
    virtual_service::VirtualService,
};
use crate::workload::Workload;

/// All valid objects of a snapshot, in Istio's order (creation time, then name, then namespace).
#[derive(Debug, Clone, Default)]
pub struct Objects {
    /// One per ServiceEntry host.
    pub services: Vec<Arc<Service>>,
    /// Gateways.
    pub gateways: Vec<Arc<Gateway>>,
    /// VirtualServices, delegates included.
    pub virtual_services: Vec<Arc<VirtualService>>,
    /// DestinationRules.
    pub destination_rules: Vec<Arc<DestinationRule>>,
    /// Sidecars.
    pub sidecars: Vec<Arc<Sidecar>>,
    /// Mesh-wide settings that routing needs.
    pub mesh: MeshDefaults,
}

/// The part of meshConfig that routing needs.
#[derive(Debug, Clone, PartialEq)]
pub struct MeshDefaults {
    /// outboundTrafficPolicy.mode.
    pub outbound: OutboundPolicy,
    /// connectTimeout (10 s).
    pub connect_timeout: Duration,
    /// defaultHttpRetryPolicy; `None`: Istio's built-in.
    pub retries: Option<RetryPolicy>,
    /// h2UpgradePolicy.
    pub http2: Http2Upgrade,
    /// rootNamespace (`istio-system`).
    pub root_namespace: String,
    /// Hosts whose connections begin with a PROXY protocol header; in lower case.
    pub proxy_protocol_to: Vec<String>,
}

impl Default for MeshDefaults {
    fn default() -> Self {
        Self {
            outbound: OutboundPolicy::AllowAny,
            connect_timeout: Duration::from_secs(10),
            retries: None,
            http2: Http2Upgrade::DoNotUpgrade,
            root_namespace: "istio-system".into(),
            proxy_protocol_to: Vec::new(),
        }
    }
}

/// outboundTrafficPolicy.mode.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum OutboundPolicy {
    /// Unknown destinations pass (default).
    #[default]
    AllowAny,
    /// Unknown destinations are refused.
    RegistryOnly,
}

/// Which proxy a table is for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Role {
    /// The node proxy: the reserved gateway `mesh`.
    Mesh,
    /// An egress gateway.
    Gateway {
        /// Namespace it runs in.
        namespace: String,
        /// Labels that `Gateway.spec.selector` is matched against.
        labels: BTreeMap<String, String>,
        /// Restrict to this Gateway (`ns/name`); explain only.
        only: Option<(String, String)>,
    },
}

/// The compiled table. Immutable; every method is pure.
#[derive(Debug)]
pub struct Table {
    role: Role,
    objects: Objects,
    registry: Registry,
    side: Side,
}

/// The half that depends on the role.
#[derive(Debug)]
enum Side {
    Mesh(Box<MeshSide>),
    Gateway(Box<GatewaySide>),
}

impl Table {
    /// Compiles the objects for one proxy.
    pub fn build(objects: Objects, role: Role) -> Self {
        let registry = Registry::new(&objects);
        let side = match &role {
            Role::Mesh => Side::Mesh(Box::new(MeshSide::build(&objects, &registry))),
            Role::Gateway {
                namespace,
                labels,
                only,
            } => {
                let proxy = GatewayProxy {
                    namespace,
                    labels,
                    only: only.as_ref(),
                };
                Side::Gateway(Box::new(GatewaySide::build(&objects, proxy)))
            }
        };
        Self {
            role,
            objects,
            registry,
            side,
        }
    }

    /// Decides one request. `draw` is a uniformly random number that picks among weighted
    /// destinations; `why` records the steps when on.
    pub fn decide(&self, request: &Request<'_>, draw: u32, why: &mut Why) -> Decision {
        match &self.side {
            Side::Mesh(side) => side.decide(&self.registry, request, draw, why),
            Side::Gateway(side) => side.decide(&self.registry, request, draw, why),
        }
    }

    /// Why a request is answered as it is, on one line: the text of a 404 or 502.
    pub fn reason(&self, request: &Request<'_>) -> String {
        let mut why = Why::on();
        self.decide(request, 0, &mut why);
        let steps = why.into_steps();
        let texts: Vec<_> = steps.iter().map(|step| step.text.as_ref()).collect();
        texts.join("; ")
    }

    /// How a mesh port is treated before anything has been read from the connection: the protocol
    /// family declared for the port, `Auto` when declarations differ or nothing is declared.
    pub fn port_protocol(&self, port: u16) -> Protocol {
        match &self.side {
            Side::Mesh(_) => self.registry.port_protocol(port),
            Side::Gateway(side) => side.port_protocol(port),
        }
    }

    /// Server ports a gateway listens on, with their protocol; sorted, without duplicates.
    pub fn gateway_ports(&self) -> Vec<(u16, Protocol)> {
        match &self.side {
            Side::Mesh(_) => Vec::new(),
            Side::Gateway(side) => side.ports(),
        }
    }

    /// Names that must be kept resolved: hosts and endpoint names of DNS services; sorted, without
    /// duplicates.
    pub fn names_to_resolve(&self) -> Vec<String> {
        Registry::names_to_resolve(&self.objects.services)
    }

    /// What is done with destinations that no object registers, for one caller.
    pub fn outbound_policy(&self, source: Option<&Workload>) -> OutboundPolicy {
        match &self.side {
            Side::Mesh(side) => side.outbound_policy(source),
            Side::Gateway(_) => OutboundPolicy::RegistryOnly,
        }
    }

    /// The objects it was built from.
    pub fn objects(&self) -> &Objects {
        &self.objects
    }

    /// The proxy it was built for.
    pub fn role(&self) -> &Role {
        &self.role
    }
}

#[cfg(test)]
mod tests;
