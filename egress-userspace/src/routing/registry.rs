// SPDX-License-Identifier: Apache-2.0
//! The services of a snapshot by host, by port and by address, and the destinations made of them.
//! Answers "which service is this", never "where does this request go".

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    net::IpAddr,
    sync::Arc,
    time::Duration,
};

use ipnet::IpNet;

use super::{
    decision::{ByClient, Destination, EndpointTarget, Endpoints, UpstreamHttp},
    destination_rule::{Applied, DestinationRules, Http2Upgrade, PoolSettings},
    host::{HostMap, HostPattern},
    service::{Endpoint, EndpointAddress, ExportTo, Protocol, Resolution, Service, ServicePort},
    sidecar::Client,
    table::Objects,
};

/// A service and one of its ports.
pub type ServiceAt<'a> = (&'a Arc<Service>, &'a ServicePort);

/// Services of one snapshot. Lists keep the order of [`super::table::Objects`]: oldest first.
#[derive(Debug)]
pub struct Registry {
    by_host: HostMap<Vec<Arc<Service>>>,
    by_port: HashMap<u16, OnPort>,
    rules: DestinationRules,
    connect_timeout: Duration,
    http2: Http2Upgrade,
    proxy_protocol_to: Vec<String>,
}

/// The services that declare one port number, as far as an address or the first bytes of a
/// connection have to tell them apart. Positions are those of `services`: oldest first.
#[derive(Debug)]
struct OnPort {
    /// Protocol family; `Auto` when declarations differ.
    protocol: Protocol,
    services: Vec<Arc<Service>>,
    /// Declared addresses, longest prefix first.
    nets: Vec<(IpNet, usize)>,
    /// Services without addresses, by name.
    by_name: HashMap<String, Vec<usize>>,
    /// Services without addresses that take every address.
    any: Vec<usize>,
}

impl OnPort {
    fn add(&mut self, service: &Arc<Service>) {
        let at = self.services.len();
        self.services.push(service.clone());
        self.nets
            .extend(service.addresses.iter().map(|net| (*net, at)));
        if !service.addresses.is_empty() {
            return;
        }
        if let Some(host) = service.host.exact() {
            self.by_name.entry(host.to_owned()).or_default().push(at);
        }
        if service.resolution == Resolution::None {
            self.any.push(at);
        }
    }
}

/// A `destination` as a rule writes it.
#[derive(Debug, Clone, Copy)]
pub struct Named<'a> {
    /// host, qualified.
    pub host: &'a str,
    /// port.number.
    pub port: Option<u16>,
    /// subset.
    pub subset: Option<&'a str>,
}

impl Registry {
    /// Indexes the services.
    pub fn new(objects: &Objects) -> Self {
        let mesh = &objects.mesh;
        let mut registry = Self {
            by_host: HostMap::default(),
            by_port: HashMap::new(),
            rules: DestinationRules::new(&objects.destination_rules, &mesh.root_namespace),
            connect_timeout: mesh.connect_timeout,
            http2: mesh.http2,
            proxy_protocol_to: mesh.proxy_protocol_to.clone(),
        };
        for service in &objects.services {
            registry.by_host.entry(&service.host).push(service.clone());
            // Row 2.4: single addresses are accepted as Host values too.
            for net in service
                .addresses
                .iter()
                .filter(|net| net.prefix_len() == net.max_prefix_len())
            {
                let host = HostPattern::Exact(net.addr().to_string());
                registry.by_host.entry(&host).push(service.clone());
            }
            for port in &service.ports {
                let family = port.protocol.family();
                let on_port = registry.by_port.entry(port.number).or_insert(OnPort {
                    protocol: family,
                    services: Vec::new(),
                    nets: Vec::new(),
                    by_name: HashMap::new(),
                    any: Vec::new(),
                });
                if on_port.protocol != family {
                    on_port.protocol = Protocol::Auto;
                }
                on_port.add(service);
            }
        }
        for on_port in registry.by_port.values_mut() {
            // Stable: among equal prefixes the oldest first.
            on_port
                .nets
                .sort_by_key(|(net, _)| std::cmp::Reverse(net.prefix_len()));
        }
        registry
    }

    /// The service that a request for `host` on `port` belongs to, among those that the client may
    /// see: most specific host first, then the client's own namespace, then the oldest.
    pub fn find(&self, host: &str, port: u16, client: Client<'_>) -> Option<ServiceAt<'_>> {
        self.by_host.matching(host).find_map(|services| {
            let visible = || {
                services
                    .iter()
                    .filter(|s| client.sees_service(s, port))
                    .filter_map(|s| s.port(port).map(|p| (s, p)))
            };
            visible()
                .find(|(s, _)| s.origin.namespace == client.namespace)
                .or_else(|| visible().next())
        })
    }

    /// The TCP service behind an address: longest declared prefix, then a name that resolves to
    /// the address, then a service that declares the port for every address (row 2.4).
    pub fn find_by_address(
        &self,
        ip: IpAddr,
        port: u16,
        names_of_ip: &[String],
        client: Client<'_>,
    ) -> Option<ServiceAt<'_>> {
        let ip = ip.to_canonical();
        let on_port = self.by_port.get(&port)?;
        let visible = |at: usize| {
            let service = &on_port.services[at];
            let seen = client.sees_service(service, port);
            seen.then(|| service.port(port).map(|p| (service, p)))
                .flatten()
        };
        let declared = || {
            let mut holding = on_port.nets.iter().filter(|(net, _)| net.contains(&ip));
            holding.find_map(|(_, at)| visible(*at))
        };
        let named = || {
            let lists = names_of_ip.iter().filter_map(|n| on_port.by_name.get(n));
            let mut found: Vec<_> = lists.flatten().copied().collect();
            found.sort_unstable();
            found.into_iter().find_map(visible)
        };
        let any = || on_port.any.iter().copied().find_map(visible);
        declared().or_else(named).or_else(any)
    }

    /// Port numbers of the most specific services for a destination host.
    pub fn ports_of(&self, host: &str) -> impl Iterator<Item = u16> {
        self.by_host
            .find(host)
            .into_iter()
            .flatten()
            .flat_map(|s| s.ports.iter().map(|p| p.number))
            .collect::<Vec<_>>()
            .into_iter()
    }

    /// Protocol to expect on a port before anything was read.
    pub fn port_protocol(&self, port: u16) -> Protocol {
        self.by_port
            .get(&port)
            .map_or(Protocol::Auto, |on_port| on_port.protocol)
    }

    /// Names that must be kept resolved; sorted, without duplicates.
    pub fn names_to_resolve(services: &[Arc<Service>]) -> Vec<String> {
        let mut names = BTreeSet::new();
        for service in services.iter().filter(|s| s.export_to != ExportTo::Nobody) {
            for endpoint in &service.endpoints {
                if let EndpointAddress::Name(name) = &endpoint.address {
                    names.insert(name.clone());
                }
            }
            let by_name = matches!(
                service.resolution,
                Resolution::Dns | Resolution::DnsRoundRobin
            );
            if let (true, true, Some(host)) =
                (by_name, service.endpoints.is_empty(), service.host.exact())
                && host.parse::<IpAddr>().is_err()
            {
                names.insert(host.to_owned());
            }
        }
        names.into_iter().collect()
    }

    /// What a rule's `destination` names. `listener_port` stands in when the port is left out and
    /// the service has several (row 5b.2). Prefers a service of `namespace`. `client` is the
    /// namespace of the only client, where there is only one.
    pub fn destination(
        &self,
        named: Named<'_>,
        listener_port: u16,
        namespace: &str,
        client: Option<&str>,
    ) -> ByClient {
        let services = self.by_host.matching(named.host).next();
        let services = services.map_or(&[][..], Vec::as_slice);
        let pick = |client: &str| {
            let visible = |s: &&Arc<Service>| {
                s.export_to.covers(client) && named.port.is_none_or(|p| s.port(p).is_some())
            };
            let own = |s: &&Arc<Service>| s.origin.namespace == namespace;
            let mut preferred = services.iter().filter(visible).filter(own);
            let service = preferred.next().or_else(|| services.iter().find(visible));
            let number = named
                .port
                .unwrap_or_else(|| match service.map(|s| s.ports.as_slice()) {
                    Some([only]) => only.number,
                    _ => listener_port,
                });
            let found = service.and_then(|s| s.port(number).map(|port| (s, port)));
            found.ok_or(number)
        };
        let restricted = services.iter().filter_map(|s| match &s.export_to {
            ExportTo::Namespaces(names) => Some(names),
            ExportTo::All | ExportTo::Nobody => None,
        });
        let audiences = restricted.flatten().map(String::as_str).collect();
        self.by_client(named, pick, audiences, client)
    }

    /// The destination of a service's own default route.
    pub fn of_service(&self, (service, port): ServiceAt<'_>) -> ByClient {
        let host = service.host.to_string();
        let named = Named {
            host: &host,
            port: Some(port.number),
            subset: None,
        };
        self.by_client(named, |_| Ok((service, port)), BTreeSet::new(), None)
    }

    /// One destination for everybody, and others for clients that see other services or other
    /// DestinationRules. `pick` gives the service for a client of a namespace, or the port that it
    /// has not; `audiences` are namespaces for which it may give another one.
    fn by_client<'s>(
        &'s self,
        named: Named<'_>,
        pick: impl Fn(&str) -> Result<ServiceAt<'s>, u16>,
        audiences: BTreeSet<&str>,
        client: Option<&str>,
    ) -> ByClient {
        let choice = |client: &str| {
            let found = pick(client);
            let applied = found.map(|(service, _)| {
                let host = service.host.to_string();
                self.rules.select(&host, &service.origin.namespace, client)
            });
            (found, applied)
        };
        let make = |(found, applied): (Result<ServiceAt<'_>, u16>, Result<Applied, u16>)| {
            Arc::new(match (found, applied) {
                (Ok(found), Ok(applied)) => self.make(found, named.subset, &applied),
                (Err(port), _) | (_, Err(port)) => self.missing(named.host, port, named.subset),
            })
        };
        let everybody = choice(client.unwrap_or_default());
        let same = |other: &(Result<ServiceAt<'_>, u16>, Result<Applied, u16>)| {
            other.1 == everybody.1
                && match (&other.0, &everybody.0) {
                    (Ok((a, _)), Ok((b, _))) => Arc::ptr_eq(a, b),
                    (Err(_), Err(_)) => true,
                    _ => false,
                }
        };
        let mut others = Vec::new();
        if client.is_none() {
            let of_rules = self.rules.audiences(named.host);
            for audience in audiences.union(&of_rules).copied() {
                let theirs = choice(audience);
                if !same(&theirs) {
                    others.push((audience.to_owned(), make(theirs)));
                }
            }
        }
        ByClient {
            any: make(everybody),
            of: others,
        }
    }

    fn make(
        &self,
        (service, port): ServiceAt<'_>,
        subset: Option<&str>,
        applied: &Applied,
    ) -> Destination {
        let host = service.host.to_string();
        let named = match subset {
            None => None,
            Some(name) => match applied.subset(name) {
                Some(found) => Some(found),
                None => return self.missing(&host, port.number, subset),
            },
        };
        let labelled = named.is_some_and(|subset| !subset.labels.is_empty());
        if labelled && service.endpoints.is_empty() {
            // What a name resolves to has no labels.
            return self.missing(&host, port.number, subset);
        }
        let settings = applied.settings(port.number, named);
        let pool = settings.pool.unwrap_or_default();
        let labels = named.map(|subset| &subset.labels);
        let proxy_protocol = self.proxy_protocol_to.contains(&host);
        Destination {
            cluster: cluster_name(port.number, subset.unwrap_or_default(), &host),
            host,
            port: port.number,
            subset: subset.unwrap_or_default().to_owned(),
            service: Some(service.clone()),
            protocol: port.protocol,
            http: upstream_http(port.protocol, &pool, self.http2),
            endpoints: endpoints(service, port, labels),
            connect_timeout: pool.connect_timeout.unwrap_or(self.connect_timeout),
            rule: applied.origin().cloned(),
            wants_tls: settings.tls == Some(true),
            proxy_protocol,
        }
    }

    fn missing(&self, host: &str, port: u16, subset: Option<&str>) -> Destination {
        Destination {
            host: host.to_owned(),
            port,
            subset: subset.unwrap_or_default().to_owned(),
            cluster: cluster_name(port, subset.unwrap_or_default(), host),
            service: None,
            protocol: Protocol::Auto,
            http: UpstreamHttp::Http1,
            endpoints: Endpoints::Missing,
            connect_timeout: self.connect_timeout,
            rule: None,
            wants_tls: false,
            proxy_protocol: false,
        }
    }
}

/// Row 2.5: HTTP2 and gRPC force HTTP/2, an undeclared port keeps the client's version. A
/// DestinationRule upgrades whatever it is for, meshConfig HTTP/1.1 only.
fn upstream_http(protocol: Protocol, pool: &PoolSettings, mesh: Http2Upgrade) -> UpstreamHttp {
    let upgrade = match pool.http2 {
        Http2Upgrade::Default => mesh,
        own => own,
    };
    match protocol {
        _ if pool.as_client => UpstreamHttp::AsClient,
        _ if pool.http2 == Http2Upgrade::Upgrade => UpstreamHttp::Http2,
        Protocol::Http2 | Protocol::Grpc | Protocol::GrpcWeb => UpstreamHttp::Http2,
        Protocol::Auto => UpstreamHttp::AsClient,
        Protocol::Http if upgrade == Http2Upgrade::Upgrade => UpstreamHttp::Http2,
        _ => UpstreamHttp::Http1,
    }
}

fn cluster_name(port: u16, subset: &str, host: &str) -> Arc<str> {
    format!("outbound|{port}|{subset}|{host}").into()
}

/// Where connections of a service port go (rows 2.6, 2.8 to 2.13); of a subset, to the endpoints
/// with its labels.
fn endpoints(
    service: &Service,
    port: &ServicePort,
    subset: Option<&BTreeMap<String, String>>,
) -> Endpoints {
    let in_subset = |endpoint: &&Endpoint| {
        let mut labels = subset.into_iter().flatten();
        labels.all(|(key, value)| endpoint.labels.get(key) == Some(value))
    };
    let listed = || {
        service
            .endpoints
            .iter()
            .filter(in_subset)
            .map(|endpoint| EndpointTarget {
                address: endpoint.address.clone(),
                port: endpoint
                    .ports
                    .get(&port.name)
                    .copied()
                    .unwrap_or(port.target_port),
                weight: endpoint.weight.max(1),
            })
            .collect()
    };
    match service.resolution {
        Resolution::None => Endpoints::OriginalDestination {
            port: (port.target_port != port.number).then_some(port.target_port),
        },
        Resolution::Static => Endpoints::List(listed()),
        Resolution::DynamicDns => Endpoints::FromRequest {
            port: port.target_port,
        },
        Resolution::Dns | Resolution::DnsRoundRobin if !service.endpoints.is_empty() => {
            Endpoints::List(listed())
        }
        Resolution::Dns | Resolution::DnsRoundRobin => {
            let target = |host: &str| EndpointTarget {
                address: match host.parse::<IpAddr>() {
                    Ok(ip) => EndpointAddress::Ip(ip),
                    Err(_) => EndpointAddress::Name(host.to_owned()),
                },
                port: port.target_port,
                weight: 1,
            };
            Endpoints::List(service.host.exact().map(target).into_iter().collect())
        }
    }
}

impl Service {
    /// The declared port of this number.
    pub fn port(&self, number: u16) -> Option<&ServicePort> {
        self.ports.iter().find(|port| port.number == number)
    }
}

impl Protocol {
    /// The protocol as far as the first bytes of a connection are concerned.
    pub fn family(self) -> Self {
        match self {
            Self::Http | Self::Http2 | Self::Grpc | Self::GrpcWeb | Self::HttpProxy => Self::Http,
            Self::Https | Self::Tls => Self::Tls,
            Self::Tcp => Self::Tcp,
            Self::Udp => Self::Udp,
            Self::Auto => Self::Auto,
        }
    }

    /// Whether `http` rules apply (row 5.10).
    pub fn is_http(self) -> bool {
        self.family() == Self::Http
    }
}
