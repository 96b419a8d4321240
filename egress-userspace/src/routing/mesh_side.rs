// SPDX-License-Identifier: Apache-2.0
//! Decisions of the node proxy: Istio's reserved gateway `mesh`. One node proxy serves many
//! workloads, so what depends on the client (visibility, source conditions) is looked at per
//! request.

use std::{
    collections::HashMap,
    net::IpAddr,
    sync::{Arc, OnceLock},
};

use http::Method;

use super::{
    carry_out::{first_match, forward},
    decision::{
        Action, ByClient, Decision, Request, Route, Step, Traffic, WeightedDestination, Why,
    },
    delegate,
    gateway::GatewayName,
    host::{self, HostMap, HostPattern},
    registry::{Registry, ServiceAt},
    retry::RetryPolicy,
    rules::{CompiledService, Compiler, For},
    service::{Protocol, Service},
    sidecar::{Client, Sidecars},
    table::{MeshDefaults, Objects, OutboundPolicy},
    virtual_service::{HeaderOperations, VirtualService},
};
use crate::workload::Workload;

/// The port on which a VirtualService applies to a host that no service registers (row 5.9).
const UNREGISTERED_PORT: u16 = 80;

/// The compiled VirtualServices of gateway `mesh`.
#[derive(Debug)]
pub struct MeshSide {
    /// Oldest first under each host: in the mesh the oldest wins (row 5.5).
    by_host: HostMap<Candidates>,
    /// Default routes by service identity and port.
    defaults: HashMap<(usize, u16), DefaultRoute>,
    mesh: MeshDefaults,
    sidecars: Sidecars,
    /// Where unknown traffic goes under a Sidecar's egressProxy, by the Sidecar's identity.
    proxies: HashMap<usize, Arc<Route>>,
}

/// The VirtualServices of one host pattern.
#[derive(Debug, Default)]
struct Candidates {
    host: Option<HostPattern>,
    services: Vec<Arc<Lazy>>,
}

/// A VirtualService, compiled when the first request asks for it: of many a node uses few.
#[derive(Debug)]
struct Lazy {
    source: Arc<VirtualService>,
    compiled: OnceLock<CompiledService>,
}

/// The default route of a service's port, made when it is first asked for.
type DefaultRoute = OnceLock<Arc<Route>>;

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
    /// Indexes every VirtualService that is bound to `mesh`.
    pub fn build(objects: &Objects, registry: &Registry) -> Self {
        let mut by_host = HostMap::<Candidates>::default();
        for source in &delegate::merge(&objects.virtual_services) {
            if !source.gateways.contains(&GatewayName::Mesh) {
                continue;
            }
            let lazy = Arc::new(Lazy {
                source: source.clone(),
                compiled: OnceLock::new(),
            });
            for host in &source.hosts {
                let candidates = by_host.entry(host);
                candidates.host = Some(host.clone());
                candidates.services.push(lazy.clone());
            }
        }
        let ports = objects
            .services
            .iter()
            .flat_map(|service| service.ports.iter().map(move |port| (service, port)));
        let defaults = ports
            .map(|(service, port)| (key(service, port.number), OnceLock::new()))
            .collect();
        let mut compiler = Compiler::new(registry, &objects.mesh, None);
        let proxies = objects
            .sidecars
            .iter()
            .filter_map(|sidecar| {
                let to = sidecar.outbound.as_ref()?.proxy.as_ref()?;
                let destination = compiler.destination(to, 0, &sidecar.origin.namespace);
                Some((
                    Arc::as_ptr(sidecar) as usize,
                    plain_route(destination, None),
                ))
            })
            .collect();
        Self {
            by_host,
            defaults,
            mesh: objects.mesh.clone(),
            sidecars: Sidecars::new(&objects.sidecars, &objects.mesh.root_namespace),
            proxies,
        }
    }

    fn compiled<'l>(&self, lazy: &'l Lazy, registry: &Registry) -> &'l CompiledService {
        lazy.compiled.get_or_init(|| {
            let mesh = For {
                gateways: &[GatewayName::Mesh],
            };
            Compiler::new(registry, &self.mesh, None).compile(&lazy.source, mesh)
        })
    }

    /// What is done with unknown destinations of a caller (row 1.6).
    pub fn outbound_policy(&self, source: Option<&Workload>) -> OutboundPolicy {
        let sidecar = self.sidecars.of(source);
        let own = sidecar.and_then(|sidecar| sidecar.outbound.as_ref());
        own.map_or(self.mesh.outbound, |outbound| outbound.mode)
    }

    fn client<'a>(&'a self, request: &Request<'a>, why: &mut Why) -> Client<'a> {
        let sidecar = self.sidecars.of(request.source);
        if let Some(sidecar) = sidecar {
            let origin = &sidecar.origin;
            why.step(|| Step::about(origin, format!("{origin} is in force for the caller")));
        }
        Client {
            namespace: request.namespace(),
            sidecar,
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
            Traffic::Http { method, host, .. } => {
                self.http(registry, request, (method, host), draw, why)
            }
            Traffic::Tls { sni } => self.tls(registry, request, sni, draw, why),
            Traffic::Tcp => self.tcp(registry, request, draw, why),
        }
    }

    fn http(
        &self,
        registry: &Registry,
        request: &Request<'_>,
        (method, sent_host): (&Method, &str),
        draw: u32,
        why: &mut Why,
    ) -> Decision {
        let host = host::normalize(sent_host);
        let client = self.client(request, why);
        // Row 5.10: what is declared as something else is not routed by http rules.
        let service = registry
            .find(&host, request.port, client)
            .filter(|(_, port)| matches!(port.protocol.family(), Protocol::Http | Protocol::Auto));
        note_service(service, &host, request.port, why);
        let forward_proxy = || {
            let address = request.destination_ip?;
            let names = request.names_of_ip;
            let found = registry.find_by_address(address, request.port, names, client)?;
            (found.1.protocol == Protocol::HttpProxy).then_some(found)
        };
        if *method == Method::CONNECT {
            // Row 5b.17: rules are for requests, not for tunnels.
            return match forward_proxy() {
                Some(proxy) => self.default_of(registry, proxy, draw, client, why),
                None => {
                    why.step(|| Step::plain("CONNECT is for ports of protocol HTTP_PROXY only"));
                    no_route(None)
                }
            };
        }
        if let Some(vs) = self.virtual_service(&host, request.port, service, client, why) {
            let vs = self.compiled(vs, registry);
            if vs.http.iter().any(|rule| rule.survives(request)) {
                let rules = vs.candidates(request, why.is_on());
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
            Some(service) => self.default_of(registry, service, draw, client, why),
            // What a forward proxy is asked for is not looked up here.
            None => match forward_proxy() {
                Some(proxy) => self.default_of(registry, proxy, draw, client, why),
                None => self.unknown(request, &host, client, draw, why),
            },
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
        let client = self.client(request, why);
        let Some(name) = sni.map(host::normalize) else {
            why.step(|| Step::plain("the TLS hello carries no server name"));
            return self.unknown(request, "(no server name)", client, draw, why);
        };
        let service = registry.find(&name, request.port, client);
        note_service(service, &name, request.port, why);
        if let Some(vs) = self.virtual_service(&name, request.port, service, client, why) {
            let vs = self.compiled(vs, registry);
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
                let route = rule.route.on(request.port);
                return connection(route, vs, draw, client, why);
            }
        }
        match service.filter(|(_, port)| !port.protocol.is_http()) {
            Some(service) => self.default_of(registry, service, draw, client, why),
            None => self.unknown(request, &name, client, draw, why),
        }
    }

    fn tcp(
        &self,
        registry: &Registry,
        request: &Request<'_>,
        draw: u32,
        why: &mut Why,
    ) -> Decision {
        let client = self.client(request, why);
        let address = request.destination_ip;
        let found = address
            .and_then(|ip| registry.find_by_address(ip, request.port, request.names_of_ip, client));
        let shown = address.map_or_else(|| "(no address)".to_owned(), |ip| ip.to_string());
        let Some((service, port)) =
            found.filter(|(_, p)| matches!(p.protocol.family(), Protocol::Tcp | Protocol::Auto))
        else {
            return self.unknown(request, &shown, client, draw, why);
        };
        note_service(Some((service, port)), &shown, request.port, why);
        let vs = service.host.exact().and_then(|host| {
            self.virtual_service(host, request.port, Some((service, port)), client, why)
        });
        if let Some(vs) = vs.map(|vs| self.compiled(vs, registry))
            && let Some(rule) = vs.tcp.iter().find(|rule| rule.matches(request, None))
        {
            why.step(|| {
                let origin = &vs.source.origin;
                Step::about(origin, format!("{origin} tcp[{}] matched", rule.index))
            });
            let route = rule.route.on(request.port);
            return connection(route, vs, draw, client, why);
        }
        self.default_of(registry, (service, port), draw, client, why)
    }

    /// The VirtualService of a host for a client: most specific host first, then the oldest.
    fn virtual_service(
        &self,
        host: &str,
        port: u16,
        service: Option<ServiceAt<'_>>,
        client: Client<'_>,
        why: &mut Why,
    ) -> Option<&Lazy> {
        for candidates in self.by_host.matching(host) {
            if port != UNREGISTERED_PORT && !candidates.cover(service) {
                continue;
            }
            let mut visible = candidates
                .services
                .iter()
                .filter(|vs| client.sees_virtual_service(&vs.source, port));
            if let Some(first) = visible.next() {
                let on = why.is_on();
                for other in visible.take_while(|_| on) {
                    why.runner_up(|| {
                        let (origin, winner) = (&other.source.origin, &first.source.origin);
                        Step::about(
                            origin,
                            format!("{origin} was considered: {winner} is older for the same host"),
                        )
                    });
                }
                return Some(first.as_ref());
            }
            let on = why.is_on();
            for hidden in candidates.services.iter().take_while(|_| on) {
                why.runner_up(|| {
                    let origin = &hidden.source.origin;
                    let reason = if hidden.source.export_to.covers(client.namespace) {
                        "the caller's Sidecar does not import it"
                    } else {
                        "not exported to the caller"
                    };
                    Step::about(origin, format!("{origin} was considered: {reason}"))
                });
            }
        }
        None
    }

    fn default_of(
        &self,
        registry: &Registry,
        (service, port): ServiceAt<'_>,
        draw: u32,
        client: Client<'_>,
        why: &mut Why,
    ) -> Decision {
        why.step(|| {
            Step::about(
                &service.origin,
                format!("default route of {}", service.origin),
            )
        });
        static NAME: OnceLock<Arc<str>> = OnceLock::new();
        let action = match self.defaults.get(&key(service, port.number)) {
            Some(lazy) => {
                let route = lazy.get_or_init(|| {
                    let compiler = Compiler::new(registry, &self.mesh, None);
                    let http = port.protocol.is_http();
                    let retries = http.then(|| compiler.retries(None)).flatten();
                    plain_route(registry.of_service((service, port)), retries)
                });
                forward(route, draw, client.namespace, (None, None), why)
            }
            None => Action::NoRoute,
        };
        Decision {
            action,
            route_name: NAME.get_or_init(|| "default".into()).clone(),
            virtual_service: None,
            before: None,
        }
    }

    /// outboundTrafficPolicy for what nothing registers (rows 1.2 to 1.4, 1.6).
    fn unknown(
        &self,
        request: &Request<'_>,
        host: &str,
        client: Client<'_>,
        draw: u32,
        why: &mut Why,
    ) -> Decision {
        static ALLOW: OnceLock<Arc<str>> = OnceLock::new();
        static BLOCK: OnceLock<Arc<str>> = OnceLock::new();
        let http = matches!(request.traffic, Traffic::Http { .. });
        let own = client.sidecar.and_then(|s| s.outbound.as_ref());
        let policy = own.map_or(self.mesh.outbound, |outbound| outbound.mode);
        let proxy = client
            .sidecar
            .and_then(|sidecar| self.proxies.get(&(Arc::as_ptr(sidecar) as usize)));
        let (action, name) = match (policy, proxy) {
            (OutboundPolicy::AllowAny, Some(proxy)) => {
                why.step(|| Step::plain("unknown traffic goes to the Sidecar's egressProxy"));
                (
                    forward(proxy, draw, client.namespace, (None, None), why),
                    ALLOW.get_or_init(|| "allow_any".into()),
                )
            }
            (OutboundPolicy::AllowAny, None) => {
                why.step(|| {
                    Step::plain("outboundTrafficPolicy ALLOW_ANY: to the original destination")
                });
                (
                    Action::Passthrough,
                    ALLOW.get_or_init(|| "allow_any".into()),
                )
            }
            (OutboundPolicy::RegistryOnly, _) => {
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

/// A connection routed by a tls or tcp rule.
fn connection(
    route: &Arc<Route>,
    vs: &CompiledService,
    draw: u32,
    client: Client<'_>,
    why: &mut Why,
) -> Decision {
    Decision {
        action: forward(route, draw, client.namespace, (None, None), why),
        route_name: no_name(),
        virtual_service: Some(vs.name.clone()),
        before: None,
    }
}

fn key(service: &Arc<Service>, port: u16) -> (usize, u16) {
    (Arc::as_ptr(service) as usize, port)
}

fn plain_route(destination: ByClient, retries: Option<RetryPolicy>) -> Arc<Route> {
    Arc::new(Route {
        destinations: vec![WeightedDestination {
            weight: 1,
            destination,
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
