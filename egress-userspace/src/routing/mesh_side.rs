// SPDX-License-Identifier: Apache-2.0
//! Decisions of the node proxy: Istio's reserved gateway `mesh`. One node proxy serves many
//! workloads, so what depends on the client (visibility, source conditions) is looked at per
//! request.

use std::{
    collections::HashMap,
    net::IpAddr,
    sync::{Arc, OnceLock},
};

use super::{
    carry_out::{first_match, forward},
    decision::{Action, Decision, Request, Route, Step, Traffic, WeightedDestination, Why},
    gateway::GatewayName,
    host::{self, HostMap, HostPattern},
    registry::{Registry, ServiceAt},
    retry::RetryPolicy,
    rules::{CompiledService, Compiler, For},
    service::{Protocol, Service},
    table::{Objects, OutboundPolicy},
    virtual_service::HeaderOperations,
};

/// The port on which a VirtualService applies to a host that no service registers (row 5.9).
const UNREGISTERED_PORT: u16 = 80;

/// The compiled VirtualServices of gateway `mesh`.
#[derive(Debug)]
pub struct MeshSide {
    /// Oldest first under each host: in the mesh the oldest wins (row 5.5).
    by_host: HostMap<Candidates>,
    /// Default routes by service identity and port.
    defaults: HashMap<(usize, u16), Arc<Route>>,
    policy: OutboundPolicy,
}

/// The VirtualServices of one host pattern.
#[derive(Debug, Default)]
struct Candidates {
    host: Option<HostPattern>,
    services: Vec<Arc<CompiledService>>,
}

impl Candidates {
    /// Whether the pattern stands for the registered service, not only for the request's host
    /// (row 5.9: what is not in the registry is for port 80 only).
    fn cover(&self, service: Option<ServiceAt<'_>>) -> bool {
        match (&self.host, service) {
            (Some(pattern), Some((service, _))) => {
                pattern.contains(&service.host)
                    || pattern
                        .exact()
                        .is_some_and(|name| name.parse::<IpAddr>().is_ok())
            }
            _ => false,
        }
    }
}

impl MeshSide {
    /// Compiles every VirtualService that is bound to `mesh`.
    pub fn build(objects: &Objects, registry: &Registry) -> Self {
        let mut compiler = Compiler::new(registry, &objects.mesh);
        let mut by_host = HostMap::<Candidates>::default();
        let mesh = For {
            gateways: &[GatewayName::Mesh],
        };
        for source in &objects.virtual_services {
            if !source.gateways.contains(&GatewayName::Mesh) {
                continue;
            }
            let compiled = Arc::new(compiler.compile(source, mesh));
            for host in &source.hosts {
                let candidates = by_host.entry(host);
                candidates.host = Some(host.clone());
                candidates.services.push(compiled.clone());
            }
        }
        let retries = compiler.retries(None);
        let defaults = objects
            .services
            .iter()
            .flat_map(|service| service.ports.iter().map(move |port| (service, port)))
            .map(|(service, port)| {
                let retries = port.protocol.is_http().then(|| retries.clone()).flatten();
                (
                    key(service, port.number),
                    default_route(registry, (service, port), retries),
                )
            })
            .collect();
        Self {
            by_host,
            defaults,
            policy: objects.mesh.outbound,
        }
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
            Traffic::Tls { sni } => self.tls(registry, request, sni, draw, why),
            Traffic::Tcp => self.tcp(registry, request, draw, why),
        }
    }

    fn http(
        &self,
        registry: &Registry,
        request: &Request<'_>,
        sent_host: &str,
        draw: u32,
        why: &mut Why,
    ) -> Decision {
        let host = host::normalize(sent_host);
        let namespace = client_namespace(request);
        // Row 5.10: what is declared as something else is not routed by http rules.
        let service = registry
            .find(&host, request.port, namespace)
            .filter(|(_, port)| matches!(port.protocol.family(), Protocol::Http | Protocol::Auto));
        note_service(service, &host, request.port, why);
        if let Some(vs) = self.virtual_service(&host, request.port, service, namespace, why) {
            let mut surviving = vs.http.iter().filter(|r| r.survives(request)).peekable();
            if surviving.peek().is_some() {
                let rules = surviving.map(|rule| (vs.as_ref(), rule));
                return first_match(rules, "mesh", request, draw, why).unwrap_or_else(|| {
                    why.step(|| {
                        let origin = &vs.source.origin;
                        Step::about(
                            origin,
                            format!("{origin}: no rule matches, and it has no default"),
                        )
                    });
                    no_route(Some(vs.name.clone()))
                });
            }
            why.step(|| {
                let origin = &vs.source.origin;
                let text = "no http rule is for this port and this caller";
                Step::about(origin, format!("{origin} was considered: {text}"))
            });
        }
        match service {
            Some(service) => self.default_of(service, draw, why),
            None => self.unknown(request, &host, why),
        }
    }

    fn tls(
        &self,
        registry: &Registry,
        request: &Request<'_>,
        sni: Option<&str>,
        draw: u32,
        why: &mut Why,
    ) -> Decision {
        let Some(name) = sni.map(host::normalize) else {
            why.step(|| Step::plain("the TLS hello carries no server name"));
            return self.unknown(request, "(no server name)", why);
        };
        let namespace = client_namespace(request);
        let service = registry.find(&name, request.port, namespace);
        note_service(service, &name, request.port, why);
        if let Some(vs) = self.virtual_service(&name, request.port, service, namespace, why) {
            let rule = vs
                .tls
                .iter()
                .find(|rule| rule.matches(request, Some(name.as_ref())));
            if let Some(rule) = rule {
                why.step(|| {
                    let origin = &vs.source.origin;
                    Step::about(
                        origin,
                        format!("{origin} tls[{}] matched (sni={name})", rule.index),
                    )
                });
                return self.connection(rule.route.on(request.port), Some(vs), draw, why);
            }
        }
        match service.filter(|(_, port)| !port.protocol.is_http()) {
            Some(service) => self.default_of(service, draw, why),
            None => self.unknown(request, &name, why),
        }
    }

    fn tcp(
        &self,
        registry: &Registry,
        request: &Request<'_>,
        draw: u32,
        why: &mut Why,
    ) -> Decision {
        let namespace = client_namespace(request);
        let address = request.destination_ip;
        let found = address.and_then(|ip| {
            registry.find_by_address(ip, request.port, request.names_of_ip, namespace)
        });
        let shown = address.map_or_else(|| "(no address)".to_owned(), |ip| ip.to_string());
        let Some((service, port)) =
            found.filter(|(_, p)| matches!(p.protocol.family(), Protocol::Tcp | Protocol::Auto))
        else {
            return self.unknown(request, &shown, why);
        };
        note_service(Some((service, port)), &shown, request.port, why);
        let vs = service.host.exact().and_then(|host| {
            self.virtual_service(host, request.port, Some((service, port)), namespace, why)
        });
        if let Some(vs) = vs
            && let Some(rule) = vs.tcp.iter().find(|rule| rule.matches(request, None))
        {
            why.step(|| {
                let origin = &vs.source.origin;
                Step::about(origin, format!("{origin} tcp[{}] matched", rule.index))
            });
            return self.connection(rule.route.on(request.port), Some(vs), draw, why);
        }
        self.default_of((service, port), draw, why)
    }

    /// The VirtualService of a host for a client: most specific host first, then the oldest.
    fn virtual_service(
        &self,
        host: &str,
        port: u16,
        service: Option<ServiceAt<'_>>,
        namespace: &str,
        why: &mut Why,
    ) -> Option<&Arc<CompiledService>> {
        for candidates in self.by_host.matching(host) {
            if port != UNREGISTERED_PORT && !candidates.cover(service) {
                continue;
            }
            let mut visible = candidates
                .services
                .iter()
                .filter(|vs| vs.source.export_to.covers(namespace));
            if let Some(first) = visible.next() {
                for other in visible {
                    why.step(|| {
                        let (origin, winner) = (&other.source.origin, &first.source.origin);
                        Step::about(
                            origin,
                            format!("{origin} was considered: {winner} is older for the same host"),
                        )
                    });
                }
                return Some(first);
            }
            for hidden in &candidates.services {
                why.step(|| {
                    let origin = &hidden.source.origin;
                    let text = format!("{origin} was considered: not exported to the caller");
                    Step::about(origin, text)
                });
            }
        }
        None
    }

    fn default_of(&self, (service, port): ServiceAt<'_>, draw: u32, why: &mut Why) -> Decision {
        why.step(|| {
            Step::about(
                &service.origin,
                format!("default route of {}", service.origin),
            )
        });
        static NAME: OnceLock<Arc<str>> = OnceLock::new();
        let action = match self.defaults.get(&key(service, port.number)) {
            Some(route) => forward(route, draw, (None, None), why),
            None => Action::NoRoute,
        };
        Decision {
            action,
            route_name: NAME.get_or_init(|| "default".into()).clone(),
            virtual_service: None,
            before: None,
        }
    }

    fn connection(
        &self,
        route: &Arc<Route>,
        vs: Option<&Arc<CompiledService>>,
        draw: u32,
        why: &mut Why,
    ) -> Decision {
        Decision {
            action: forward(route, draw, (None, None), why),
            route_name: no_name(),
            virtual_service: vs.map(|vs| vs.name.clone()),
            before: None,
        }
    }

    /// outboundTrafficPolicy for what nothing registers (rows 1.2 to 1.4).
    fn unknown(&self, request: &Request<'_>, host: &str, why: &mut Why) -> Decision {
        static ALLOW: OnceLock<Arc<str>> = OnceLock::new();
        static BLOCK: OnceLock<Arc<str>> = OnceLock::new();
        let http = matches!(request.traffic, Traffic::Http { .. });
        let (action, name) = match self.policy {
            OutboundPolicy::AllowAny => {
                why.step(|| {
                    Step::plain("outboundTrafficPolicy ALLOW_ANY: to the original destination")
                });
                (
                    Action::Passthrough,
                    ALLOW.get_or_init(|| "allow_any".into()),
                )
            }
            OutboundPolicy::RegistryOnly => {
                why.step(|| {
                    Step::plain(format!(
                        "outboundTrafficPolicy REGISTRY_ONLY: {host} on port {} is not in the \
                         registry; a ServiceEntry with this host and port would allow it",
                        request.port
                    ))
                });
                (Action::Blackhole, BLOCK.get_or_init(|| "block_all".into()))
            }
        };
        let route_name = if http { name.clone() } else { no_name() };
        Decision {
            action,
            route_name,
            virtual_service: None,
            before: None,
        }
    }
}

/// The namespace whose view of the registry counts; "" sees what is exported to everybody.
fn client_namespace<'a>(request: &Request<'a>) -> &'a str {
    request
        .source
        .map_or("", |source| source.namespace.as_str())
}

fn key(service: &Arc<Service>, port: u16) -> (usize, u16) {
    (Arc::as_ptr(service) as usize, port)
}

fn default_route(
    registry: &Registry,
    (service, port): ServiceAt<'_>,
    retries: Option<RetryPolicy>,
) -> Arc<Route> {
    Arc::new(Route {
        destinations: vec![WeightedDestination {
            weight: 1,
            destination: Arc::new(registry.of_service(service, port)),
            headers: HeaderOperations::default(),
        }],
        total_weight: 1,
        timeout: None,
        retries,
        headers: HeaderOperations::default(),
        mirrors: Vec::new(),
    })
}

fn note_service(service: Option<ServiceAt<'_>>, host: &str, port: u16, why: &mut Why) {
    why.step(|| match service {
        Some((service, _)) => Step::about(
            &service.origin,
            format!("{} registers {}:{port}", service.origin, service.host),
        ),
        None => Step::plain(format!(
            "no ServiceEntry visible to the caller registers {host}:{port}"
        )),
    });
}

/// No route: an empty name prints `-`.
pub fn no_route(virtual_service: Option<Arc<str>>) -> Decision {
    Decision {
        action: Action::NoRoute,
        route_name: no_name(),
        virtual_service,
        before: None,
    }
}

/// The route name of what has none.
pub fn no_name() -> Arc<str> {
    static EMPTY: OnceLock<Arc<str>> = OnceLock::new();
    EMPTY.get_or_init(|| "".into()).clone()
}
