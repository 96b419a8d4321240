// SPDX-License-Identifier: Apache-2.0
//! Decisions of an egress gateway: which Gateways select it, which hosts they admit on which port,
//! which VirtualServices serve them. There is no passthrough here (row 1.8).

use std::{
    collections::BTreeMap,
    sync::{Arc, OnceLock},
};

use super::{
    carry_out::{first_match, forward},
    decision::{Action, Decision, Request, Step, Traffic, Why},
    delegate,
    gateway::{Gateway, GatewayName, Server, ServerHost},
    host::{self, HostMap, HostPattern},
    mesh_side::{no_name, no_route},
    registry::Registry,
    rule_index::RuleIndex,
    rules::{CompiledService, Compiler, For, positions},
    service::Protocol,
    table::{MeshDefaults, Objects},
    virtual_service::VirtualService,
};

/// The gateway workload for which a table is compiled.
#[derive(Debug, Clone, Copy)]
pub struct GatewayProxy<'a> {
    /// Namespace it runs in.
    pub namespace: &'a str,
    /// Its labels.
    pub labels: &'a BTreeMap<String, String>,
    /// Restrict to this Gateway.
    pub only: Option<&'a (String, String)>,
}

/// The compiled side of one gateway workload.
#[derive(Debug)]
pub struct GatewaySide {
    namespace: String,
    mesh: MeshDefaults,
    ports: BTreeMap<u16, Port>,
    /// Every VirtualService and Gateway, for the runners-up of an explanation.
    considered: Considered,
}

/// One server port.
#[derive(Debug)]
struct Port {
    protocol: Protocol,
    hosts: HostMap<Host>,
    /// All of them as one, for connections that name none.
    all: OnceLock<Host>,
}

/// One effective host of a port: server host ∩ VirtualService host (row 4.4).
#[derive(Debug, Default)]
struct Host {
    /// By Gateway, then in creation order.
    bound: Vec<Bound>,
    /// Compiled when the first request asks for them: of many hosts a gateway serves few.
    rules: OnceLock<HostRules>,
}

/// A VirtualService as one Gateway binds it.
#[derive(Debug, Clone)]
struct Bound {
    /// Position among all: creation order.
    order: usize,
    source: Arc<VirtualService>,
    /// `match.gateways` may name one of several.
    gateway: Arc<GatewayName>,
}

/// The rules of a host.
#[derive(Debug)]
struct HostRules {
    services: Vec<CompiledService>,
    /// `(service, rule)` in the order of row 5.6: catch-alls last.
    http: Vec<(usize, usize)>,
    /// Of `http`.
    index: Option<RuleIndex>,
}

#[derive(Debug)]
struct Considered {
    /// Each with why it is not this workload's; `None`: it is.
    gateways: Vec<(Arc<Gateway>, Option<&'static str>)>,
    services: Vec<Arc<VirtualService>>,
    selected: Vec<GatewayName>,
}

impl GatewaySide {
    /// Indexes the VirtualServices of the Gateways that select this workload.
    pub fn build(objects: &Objects, proxy: GatewayProxy<'_>) -> Self {
        let gateways: Vec<_> = objects
            .gateways
            .iter()
            .map(|g| (g.clone(), passed_over(g, proxy)))
            .collect();
        let selected: Vec<_> = gateways
            .iter()
            .filter(|(_, reason)| reason.is_none())
            .map(|(g, _)| gateway_name(g))
            .collect();
        let mut ports = BTreeMap::new();
        for (gateway, _) in gateways.iter().filter(|(_, reason)| reason.is_none()) {
            for server in &gateway.servers {
                ports.entry(server.port).or_insert_with(|| Port {
                    protocol: server.protocol,
                    hosts: HostMap::default(),
                    all: OnceLock::new(),
                });
            }
        }
        let services = delegate::merge(&objects.virtual_services);
        for (gateway, _) in gateways.iter().filter(|(_, reason)| reason.is_none()) {
            let name = Arc::new(gateway_name(gateway));
            let servers: Vec<_> = gateway.servers.iter().map(Admitted::new).collect();
            let bound = services.iter().enumerate().filter(|(_, vs)| {
                vs.export_to.covers(proxy.namespace) && vs.gateways.contains(&name)
            });
            for (order, source) in bound {
                let service = Bound {
                    order,
                    source: source.clone(),
                    gateway: name.clone(),
                };
                for server in &servers {
                    if let Some(port) = ports.get_mut(&server.server.port) {
                        server.bind(&mut port.hosts, &service);
                    }
                }
            }
        }
        Self {
            namespace: proxy.namespace.to_owned(),
            mesh: objects.mesh.clone(),
            ports,
            considered: Considered {
                gateways,
                services: objects.virtual_services.clone(),
                selected,
            },
        }
    }

    /// Server ports with the protocol of the first server on each.
    pub fn ports(&self) -> Vec<(u16, Protocol)> {
        self.ports
            .iter()
            .map(|(port, p)| (*port, p.protocol))
            .collect()
    }

    /// Protocol family of a server port.
    pub fn port_protocol(&self, port: u16) -> Protocol {
        self.ports
            .get(&port)
            .map_or(Protocol::Auto, |p| p.protocol.family())
    }

    /// Decides one request or connection.
    pub fn decide(
        &self,
        registry: &Registry,
        request: &Request<'_>,
        draw: u32,
        why: &mut Why,
    ) -> Decision {
        match request.traffic {
            Traffic::Http { host, .. } => self.http(registry, request, host, draw, why),
            Traffic::Tls { sni } => self.connection(registry, request, sni, draw, why),
            Traffic::Tcp => self.connection(registry, request, None, draw, why),
        }
    }

    fn http(
        &self,
        registry: &Registry,
        request: &Request<'_>,
        sent: &str,
        draw: u32,
        why: &mut Why,
    ) -> Decision {
        let name = host::normalize(sent);
        let found = self
            .ports
            .get(&request.port)
            .and_then(|port| port.hosts.find(&name));
        let Some(found) = found.map(|host| self.rules(host, request.port, registry)) else {
            self.explain_nothing(request.port, &name, why);
            return no_route(None);
        };
        let positions = positions(found.index.as_ref(), found.http.len(), request, why.is_on());
        let rules = positions.filter_map(|at| {
            let (service, rule) = found.http.get(at)?;
            let service = found.services.get(*service)?;
            Some((service, service.http.get(*rule)?))
        });
        let bound = |service: &CompiledService| {
            let gateway = self.bound_to(&service.source);
            gateway.map(display).unwrap_or_default()
        };
        let gateway = match found.services.first() {
            Some(service) if why.is_on() => bound(service),
            _ => String::new(),
        };
        first_match(rules, &gateway, request, draw, why).unwrap_or_else(|| {
            why.step(|| Step::plain(format!("no http rule matches {name}:{}", request.port)));
            self.explain_nothing(request.port, &name, why);
            no_route(found.services.first().map(|service| service.name.clone()))
        })
    }

    /// TLS by server name, TCP by the first rule of the port (rows 5c.4, 4.15).
    fn connection(
        &self,
        registry: &Registry,
        request: &Request<'_>,
        sni: Option<&str>,
        draw: u32,
        why: &mut Why,
    ) -> Decision {
        let closed = || Decision {
            action: Action::Close,
            route_name: no_name(),
            virtual_service: None,
            before: None,
        };
        let tls = matches!(request.traffic, Traffic::Tls { .. });
        let name = sni.map(host::normalize);
        let Some(port) = self.ports.get(&request.port) else {
            self.explain_nothing(request.port, name.as_deref().unwrap_or("*"), why);
            return closed();
        };
        let host = match &name {
            Some(name) => port.hosts.find(name),
            None if tls => None,
            // Opaque bytes belong to every host of the port.
            None => Some(port.all.get_or_init(|| Host {
                bound: port.hosts.all().flat_map(|h| h.bound.clone()).collect(),
                rules: OnceLock::new(),
            })),
        };
        let services = host.map(|host| &self.rules(host, request.port, registry).services);
        let services = services.into_iter().flatten();
        for service in services {
            let (rules, field) = if tls {
                (&service.tls, "tls")
            } else {
                (&service.tcp, "tcp")
            };
            if let Some(rule) = rules.iter().find(|r| r.matches(request, name.as_deref())) {
                why.step(|| {
                    let origin = &service.source.origin;
                    Step::about(origin, format!("{origin} {field}[{}] matched", rule.index))
                });
                return Decision {
                    action: {
                        let route = rule.route.on(request.port);
                        forward(route, draw, &self.namespace, (None, None), why)
                    },
                    route_name: no_name(),
                    virtual_service: Some(service.name.clone()),
                    before: None,
                };
            }
        }
        self.explain_nothing(
            request.port,
            name.as_deref().unwrap_or("(no server name)"),
            why,
        );
        closed()
    }

    fn rules<'h>(&self, host: &'h Host, port: u16, registry: &Registry) -> &'h HostRules {
        host.rules.get_or_init(|| {
            let mut compiler = Compiler::new(registry, &self.mesh, Some(&self.namespace));
            let mut bound: Vec<_> = host.bound.iter().collect();
            bound.sort_by_key(|bound| bound.order);
            bound.dedup_by(|a, b| {
                Arc::ptr_eq(&a.source, &b.source) && Arc::ptr_eq(&a.gateway, &b.gateway)
            });
            let services = bound.into_iter().map(|bound| {
                let gateways = std::slice::from_ref(&*bound.gateway);
                compiler.compile(&bound.source, For { gateways })
            });
            HostRules::new(services.collect(), port)
        })
    }

    fn bound_to(&self, vs: &VirtualService) -> Option<&GatewayName> {
        self.considered
            .selected
            .iter()
            .find(|g| vs.gateways.contains(g))
    }

    /// Whether a selected Gateway that the object is bound to admits the host on the port.
    fn admitted(&self, vs: &VirtualService, port: u16, host: &str) -> bool {
        self.considered
            .gateways
            .iter()
            .filter(|(gateway, reason)| {
                reason.is_none() && vs.gateways.contains(&gateway_name(gateway))
            })
            .any(|(gateway, _)| admits(gateway, port, host))
    }

    /// Records which Gateways and VirtualServices were considered and why none fits.
    fn explain_nothing(&self, port: u16, host: &str, why: &mut Why) {
        if !why.is_on() {
            return;
        }
        why.step(|| Step::plain(format!("no route for {host} on port {port}")));
        for (gateway, passed_over) in &self.considered.gateways {
            why.runner_up(|| {
                let origin = &gateway.origin;
                let reason = if let Some(reason) = passed_over {
                    (*reason).to_owned()
                } else if !gateway.servers.iter().any(|s| s.port == port) {
                    format!("it has no server on port {port}")
                } else if !admits(gateway, port, host) {
                    format!("no server on port {port} has host {host}")
                } else {
                    format!("it admits {host} on port {port}")
                };
                Step::about(origin, format!("{origin} was considered: {reason}"))
            });
        }
        // Those that have the host first: there may be thousands of others.
        let has_host = |vs: &&Arc<VirtualService>| vs.hosts.iter().any(|h| h.matches(host));
        let services = &self.considered.services;
        let others = services.iter().filter(|vs| !has_host(vs));
        for vs in services.iter().filter(has_host).chain(others) {
            why.runner_up(|| {
                let origin = &vs.origin;
                let reason = if !vs.hosts.iter().any(|h| h.matches(host)) {
                    format!("host {host} is not among its hosts")
                } else if self.bound_to(vs).is_none() {
                    let bound: Vec<_> = vs.gateways.iter().map(display).collect();
                    let want: Vec<_> = self.considered.selected.iter().map(display).collect();
                    format!(
                        "bound to gateway {}, not {}",
                        bound.join(", "),
                        want.join(", ")
                    )
                } else if !self.admitted(vs, port, host) {
                    format!(
                        "host {host} is not among the hosts of the Gateway's servers on port {port}"
                    )
                } else {
                    "none of its rules is for this gateway, port and request".to_owned()
                };
                Step::about(origin, format!("{origin} was considered: {reason}"))
            });
        }
    }
}

/// Why a Gateway is not this workload's.
fn passed_over(gateway: &Gateway, proxy: GatewayProxy<'_>) -> Option<&'static str> {
    let named = proxy.only.is_none_or(|(namespace, name)| {
        *namespace == gateway.origin.namespace && *name == gateway.origin.name
    });
    let mut labels = gateway.selector.iter();
    if !labels.all(|(key, value)| proxy.labels.get(key) == Some(value)) {
        Some("its selector does not match this gateway's labels")
    } else if !named {
        Some("another Gateway was asked about")
    } else {
        None
    }
}

fn gateway_name(gateway: &Gateway) -> GatewayName {
    GatewayName::Named {
        namespace: gateway.origin.namespace.clone(),
        name: gateway.origin.name.clone(),
    }
}

fn display(gateway: &GatewayName) -> String {
    match gateway {
        GatewayName::Mesh => "mesh".to_owned(),
        GatewayName::Named { namespace, name } => format!("{namespace}/{name}"),
    }
}

fn admits(gateway: &Gateway, port: u16, host: &str) -> bool {
    gateway
        .servers
        .iter()
        .filter(|s| s.port == port)
        .any(|s| s.hosts.iter().any(|h| h.host.matches(host)))
}

/// A server and its hosts by name: there may be thousands of them.
struct Admitted<'a> {
    server: &'a Server,
    by_host: HostMap<Vec<&'a ServerHost>>,
}

impl<'a> Admitted<'a> {
    fn new(server: &'a Server) -> Self {
        let mut by_host = HostMap::<Vec<_>>::default();
        for host in &server.hosts {
            by_host.entry(&host.host).push(host);
        }
        Self { server, by_host }
    }

    /// Puts a VirtualService under every host it shares with the server.
    fn bind(&self, hosts: &mut HostMap<Host>, service: &Bound) {
        let source = &service.source;
        let visible = |admitted: &&&ServerHost| {
            let namespace = admitted.namespace.as_ref();
            namespace.is_none_or(|ns| *ns == source.origin.namespace)
        };
        for wanted in &source.hosts {
            // A name lies within the patterns that hold it; wildcards may also hold the server's.
            if let Some(name) = wanted.exact() {
                let mut holding = self.by_host.matching(name).flatten();
                if holding.any(|admitted| visible(&admitted)) {
                    insert(hosts, wanted, service);
                }
            } else {
                for admitted in self.by_host.all().flatten().filter(visible) {
                    if let Some(common) = admitted.host.intersection(wanted) {
                        insert(hosts, common, service);
                    }
                }
            }
        }
    }
}

fn insert(hosts: &mut HostMap<Host>, pattern: &HostPattern, service: &Bound) {
    let host = hosts.entry(pattern);
    let same = |have: &Bound| {
        Arc::ptr_eq(&have.source, &service.source) && Arc::ptr_eq(&have.gateway, &service.gateway)
    };
    // Hosts of one VirtualService come one after the other.
    if !host.bound.last().is_some_and(same) {
        host.bound.push(service.clone());
    }
}

impl HostRules {
    fn new(services: Vec<CompiledService>, port: u16) -> Self {
        let rules = services.iter().enumerate();
        let mut http: Vec<_> = rules
            .flat_map(|(at, service)| (0..service.http.len()).map(move |rule| (at, rule)))
            .collect();
        // Stable: keeps creation order within both halves.
        http.sort_by_key(|&(s, r)| services[s].http[r].catch_all_on(port));
        let index = RuleIndex::new(http.iter().map(|&(s, r)| &*services[s].http[r].rule));
        Self {
            services,
            http,
            index,
        }
    }
}
