// SPDX-License-Identifier: Apache-2.0
//! Which destinations the kernel redirects: from the services of a snapshot and the addresses of
//! their names to the content of the destination maps. Pure; `destinations` carries it out.
//!
//! TCP ports are redirected; UDP ports are let go, or refused where HTTP/3 would go around the proxy.
//! The kernel knows addresses; which name a captured connection speaks to is found out by the proxy.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
};

use egress_common::{
    address::Port,
    redirect::{
        ACTION_DIRECT, ACTION_PASS, ACTION_REDIRECT, ACTION_REFUSE_QUIC, ANY_PROTOCOL, CidrKey4,
        CidrKey6, Destination, DestinationKey4, DestinationKey6, TCP, UDP, strongest,
    },
};
use ipnet::IpNet;

use crate::{
    routing::{
        host::HostPattern,
        service::{ExportTo, Protocol, Resolution, Service},
        table::Objects,
    },
    upstream::resolve::AddressBook,
};

/// Port of an entry that speaks for every port.
const ANY_PORT: u16 = 0;
/// Bits of a single IPv4 address.
const V4_BITS: u8 = 32;
/// Bits of a single IPv6 address.
const V6_BITS: u8 = 128;

/// The wanted content of the four destination maps.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct DestinationPlan {
    pub(super) addresses4: BTreeMap<DestinationKey4, Destination>,
    pub(super) addresses6: BTreeMap<DestinationKey6, Destination>,
    pub(super) cidrs4: BTreeMap<CidrEntry<CidrKey4>, Destination>,
    pub(super) cidrs6: BTreeMap<CidrEntry<CidrKey6>, Destination>,
}

/// A key of a CIDR map with the number of its address bits that are fixed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct CidrEntry<K> {
    pub address_bits: u8,
    pub key: K,
}

impl DestinationPlan {
    /// Redirects TCP connections to `network` on `port` (host byte order).
    pub fn redirect(&mut self, network: IpNet, port: u16) {
        self.add(network, (port, TCP), ACTION_REDIRECT);
    }

    /// Lets `network` be reached directly on `port` (host byte order) of an IP protocol.
    pub fn direct(&mut self, network: IpNet, port: u16, protocol: u8) {
        self.add(network, (port, protocol), ACTION_DIRECT);
    }

    /// Refuses UDP to `network` on `port` (host byte order), unless it is let go.
    pub fn refuse_quic(&mut self, network: IpNet, port: u16) {
        self.add(network, (port, UDP), ACTION_REFUSE_QUIC);
    }

    /// Leaves `network` alone, whatever the protocol, on every port that is not registered more
    /// specifically.
    pub fn pass(&mut self, network: IpNet) {
        self.add(network, (ANY_PORT, ANY_PROTOCOL), ACTION_PASS);
    }

    /// What the kernel would find: the same lookup, for questions that user space has. Costs the
    /// number of CIDRs.
    pub fn find(&self, address: IpAddr, port: u16, protocol: u8) -> Option<Destination> {
        let port = Port::new(port);
        let address = address.to_canonical();
        // The networks of one port and protocol; the longest that holds the address.
        let cidr = |port: Port, protocol: u8| match address {
            IpAddr::V4(_) => longest(&self.cidrs4, address, |key: &CidrKey4| {
                let speaks = (key.port, key.protocol) == (port, protocol);
                speaks.then(|| IpAddr::V4(key.address.into()))
            }),
            IpAddr::V6(_) => longest(&self.cidrs6, address, |key: &CidrKey6| {
                let speaks = (key.port, key.protocol) == (port, protocol);
                speaks.then(|| IpAddr::V6(key.address.into()))
            }),
        };
        let exact = match address {
            IpAddr::V4(v4) => {
                let key = DestinationKey4::new(v4.into(), port, protocol);
                self.addresses4.get(&key)
            }
            IpAddr::V6(v6) => {
                let key = DestinationKey6::new(v6.into(), port, protocol);
                self.addresses6.get(&key)
            }
        };
        let found = exact.copied().unwrap_or_else(|| {
            let any = cidr(Port::new(ANY_PORT), ANY_PROTOCOL);
            strongest(cidr(port, protocol), any)
        });
        (found != Destination::UNKNOWN).then_some(found)
    }

    /// Number of map entries.
    pub fn len(&self) -> usize {
        self.addresses4.len() + self.addresses6.len() + self.cidrs4.len() + self.cidrs6.len()
    }

    /// Whether nothing would be redirected or passed by rule.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The first entry for a key stays, unless the new one redirects or lets go what it does not.
    fn add(&mut self, network: IpNet, (number, protocol): (u16, u8), action: u8) {
        let port = Port::new(number);
        let (address, address_bits) = canonical(network);
        let destination = Destination {
            action,
            address_bits,
        };
        // An entry for any port cannot be looked up by address and port: it is a CIDR.
        let exact = number != ANY_PORT;
        match address {
            IpAddr::V4(v4) if exact && address_bits == V4_BITS => {
                let key = DestinationKey4::new(v4.into(), port, protocol);
                put(&mut self.addresses4, key, destination);
            }
            IpAddr::V6(v6) if exact && address_bits == V6_BITS => {
                let key = DestinationKey6::new(v6.into(), port, protocol);
                put(&mut self.addresses6, key, destination);
            }
            IpAddr::V4(v4) => {
                let key = CidrKey4::new(v4.into(), port, protocol);
                let entry = CidrEntry { address_bits, key };
                put(&mut self.cidrs4, entry, destination);
            }
            IpAddr::V6(v6) => {
                let key = CidrKey6::new(v6.into(), port, protocol);
                let entry = CidrEntry { address_bits, key };
                put(&mut self.cidrs6, entry, destination);
            }
        }
    }
}

/// Of two actions for one destination: redirecting wins, then letting go, then refusing.
fn put<K: Ord>(entries: &mut BTreeMap<K, Destination>, key: K, new: Destination) {
    let rank = |destination: &Destination| match destination.action {
        ACTION_REDIRECT => 3,
        ACTION_DIRECT => 2,
        ACTION_REFUSE_QUIC => 1,
        _ => 0,
    };
    let entry = entries.entry(key).or_insert(new);
    if rank(&new) > rank(entry) {
        *entry = new;
    }
}

/// The entry of the longest network that holds the address, among those for which `network` gives
/// the network's address.
fn longest<K>(
    entries: &BTreeMap<CidrEntry<K>, Destination>,
    address: IpAddr,
    network: impl Fn(&K) -> Option<IpAddr>,
) -> Destination {
    let holds = |entry: &CidrEntry<K>| {
        network(&entry.key)
            .is_some_and(|network| host_network(network, entry.address_bits).contains(&address))
    };
    entries
        .iter()
        .filter(|(entry, _)| holds(entry))
        .map(|(_, destination)| *destination)
        .max_by_key(|destination| destination.address_bits)
        .unwrap_or(Destination::UNKNOWN)
}

/// What is let go beside what objects register.
#[derive(Debug, Clone, Default)]
pub struct Allowances {
    /// Networks that are inside: never captured unless registered, never refused.
    pub internal: Vec<IpNet>,
    /// Resolvers, reachable on their port by UDP and TCP.
    pub resolvers: Vec<SocketAddr>,
    /// Whether UDP to registered HTTP and TLS ports is let go like any other UDP.
    pub quic: bool,
}

/// What the kernel must redirect for these objects: the addresses of every service that somebody
/// may see, on its TCP ports; its UDP ports are let go.
///
/// Addresses are, first that applies: the declared ones; every address when the entry is a
/// wildcard or has resolution NONE; the host itself when it is an address; what the book knows of
/// the host, retired addresses included, since applications cache. Internal networks pass unless
/// something more specific is registered. UDP to a port that speaks HTTP or TLS is refused, since
/// HTTP/3 would go around the proxy, unless a UDP port is registered there.
pub fn plan(objects: &Objects, book: &AddressBook, allowed: &Allowances) -> DestinationPlan {
    let mut plan = DestinationPlan::default();
    for network in &allowed.internal {
        plan.pass(*network);
    }
    for resolver in &allowed.resolvers {
        for protocol in [TCP, UDP] {
            plan.direct(IpNet::from(resolver.ip()), resolver.port(), protocol);
        }
    }
    for service in &objects.services {
        if service.export_to == ExportTo::Nobody {
            continue;
        }
        let networks = networks(service, book);
        for port in &service.ports {
            for network in &networks {
                match port.protocol {
                    Protocol::Udp => plan.direct(*network, port.number, UDP),
                    Protocol::Tcp => plan.redirect(*network, port.number),
                    _ => {
                        plan.redirect(*network, port.number);
                        if !allowed.quic {
                            plan.refuse_quic(*network, port.number);
                        }
                    }
                }
            }
        }
    }
    plan
}

/// Hosts of STATIC services that must be kept resolved for capture only: they declare no
/// addresses, so what applications dial is what the name resolves to. Sorted, without duplicates;
/// to be resolved beside `Table::names_to_resolve`.
pub fn names_to_capture(objects: &Objects) -> Vec<String> {
    let names: BTreeSet<&String> = objects
        .services
        .iter()
        .filter(|service| {
            service.resolution == Resolution::Static
                && service.addresses.is_empty()
                && service.export_to != ExportTo::Nobody
        })
        .filter_map(|service| match &service.host {
            HostPattern::Exact(name) if name.parse::<IpAddr>().is_err() => Some(name),
            _ => None,
        })
        .collect();
    names.into_iter().cloned().collect()
}

fn networks(service: &Service, book: &AddressBook) -> Vec<IpNet> {
    if !service.addresses.is_empty() {
        return service.addresses.clone();
    }
    let everywhere = || {
        vec![
            host_network(Ipv4Addr::UNSPECIFIED.into(), 0),
            host_network(Ipv6Addr::UNSPECIFIED.into(), 0),
        ]
    };
    let name = match (&service.host, service.resolution) {
        (HostPattern::Exact(name), Resolution::Static)
        | (HostPattern::Exact(name), Resolution::Dns | Resolution::DnsRoundRobin) => name,
        (HostPattern::Exact(name), Resolution::None) if name.parse::<IpAddr>().is_ok() => name,
        _ => return everywhere(),
    };
    if let Ok(address) = name.parse::<IpAddr>() {
        return vec![IpNet::from(address)];
    }
    book.get(name)
        .into_iter()
        .flat_map(|resolved| resolved.addresses.iter().chain(resolved.retired.iter()))
        .map(|address| IpNet::from(*address))
        .collect()
}

/// A network with no bit set beyond its prefix; a v4-mapped one becomes IPv4.
fn canonical(network: IpNet) -> (IpAddr, u8) {
    let network = network.trunc();
    let bits = network.prefix_len();
    match network.addr() {
        IpAddr::V6(v6) if bits >= 96 => match v6.to_ipv4_mapped() {
            Some(v4) => (v4.into(), bits - 96),
            None => (v6.into(), bits),
        },
        address => (address, bits),
    }
}

fn host_network(address: IpAddr, bits: u8) -> IpNet {
    // A prefix length that is too long for its family is taken as a single address.
    IpNet::new(address, bits).unwrap_or_else(|_| IpNet::from(address))
}

#[cfg(test)]
mod tests {
    use std::{path::PathBuf, sync::Arc};

    use super::*;
    use crate::{
        routing::service::{Location, Origin, ServicePort},
        upstream::resolve::Resolved,
    };

    fn service(
        host: HostPattern,
        resolution: Resolution,
        addresses: &[&str],
        ports: &[(u16, Protocol)],
    ) -> Service {
        Service {
            origin: Arc::new(Origin {
                kind: "ServiceEntry",
                namespace: "default".into(),
                name: "test".into(),
                file: PathBuf::from("test.yaml"),
                line: 1,
                created: String::new(),
            }),
            host,
            addresses: addresses.iter().map(|text| net(text)).collect(),
            ports: ports
                .iter()
                .map(|(number, protocol)| ServicePort {
                    number: *number,
                    name: format!("p{number}"),
                    protocol: *protocol,
                    target_port: *number,
                })
                .collect(),
            location: Location::MeshExternal,
            resolution,
            endpoints: Vec::new(),
            export_to: ExportTo::All,
            subject_alt_names: Vec::new(),
        }
    }

    fn exact(name: &str) -> HostPattern {
        HostPattern::Exact(name.into())
    }

    fn net(text: &str) -> IpNet {
        text.parse()
            .unwrap_or_else(|_| IpNet::from(text.parse::<IpAddr>().unwrap()))
    }

    fn objects(services: Vec<Service>) -> Objects {
        Objects {
            services: services.into_iter().map(Arc::new).collect(),
            ..Objects::default()
        }
    }

    fn book() -> AddressBook {
        let address = |text: &str| text.parse::<IpAddr>().unwrap();
        AddressBook::from_iter([(
            "httpbin.org".to_owned(),
            Resolved {
                addresses: [address("203.0.113.5"), address("2001:db8::5")].into(),
                retired: [address("203.0.113.4")].into(),
                error: None,
            },
        )])
    }

    fn expected(redirected: &[(&str, u16)]) -> DestinationPlan {
        let mut plan = DestinationPlan::default();
        for (network, port) in redirected {
            plan.redirect(net(network), *port);
        }
        plan
    }

    /// Everything else is tested with QUIC let go.
    fn no_allowances() -> Allowances {
        Allowances {
            quic: true,
            ..Allowances::default()
        }
    }

    // design.md section 3; istio-egress.md, ServiceEntry resolution and addresses.
    #[test]
    fn each_kind_of_service_is_registered_by_the_addresses_applications_dial() {
        use Protocol::{Http, Tls};
        let any = ["0.0.0.0/0", "::/0"];
        for (what, service, redirected) in [
            (
                "DNS: fresh and retired addresses",
                service(exact("httpbin.org"), Resolution::Dns, &[], &[(80, Http)]),
                vec![
                    ("203.0.113.5", 80),
                    ("2001:db8::5", 80),
                    ("203.0.113.4", 80),
                ],
            ),
            (
                "DNS not resolved yet",
                service(exact("new.org"), Resolution::Dns, &[], &[(80, Http)]),
                vec![],
            ),
            (
                "declared addresses, each port",
                service(
                    exact("db.example"),
                    Resolution::Static,
                    &["192.0.2.1", "198.51.100.0/24", "2001:db8:1::/48"],
                    &[(80, Http), (443, Tls)],
                ),
                vec![
                    ("192.0.2.1", 80),
                    ("192.0.2.1", 443),
                    ("198.51.100.0/24", 80),
                    ("198.51.100.0/24", 443),
                    ("2001:db8:1::/48", 80),
                    ("2001:db8:1::/48", 443),
                ],
            ),
            (
                "STATIC without addresses: the name's",
                service(exact("httpbin.org"), Resolution::Static, &[], &[(80, Http)]),
                vec![
                    ("203.0.113.5", 80),
                    ("2001:db8::5", 80),
                    ("203.0.113.4", 80),
                ],
            ),
            (
                "wildcard",
                service(
                    HostPattern::Suffix(".example.com".into()),
                    Resolution::None,
                    &[],
                    &[(443, Tls)],
                ),
                vec![(any[0], 443), (any[1], 443)],
            ),
            (
                "NONE without addresses",
                service(exact("httpbin.org"), Resolution::None, &[], &[(80, Http)]),
                vec![(any[0], 80), (any[1], 80)],
            ),
            (
                "NONE with addresses",
                service(
                    exact("httpbin.org"),
                    Resolution::None,
                    &["192.0.2.1"],
                    &[(80, Http)],
                ),
                vec![("192.0.2.1", 80)],
            ),
            (
                "the host is an address",
                service(exact("192.0.2.9"), Resolution::None, &[], &[(80, Http)]),
                vec![("192.0.2.9", 80)],
            ),
            (
                "a v4-mapped address is the IPv4 address",
                service(
                    exact("m.example"),
                    Resolution::None,
                    &["::ffff:192.0.2.1", "::ffff:198.51.100.0/120"],
                    &[(80, Http)],
                ),
                vec![("192.0.2.1", 80), ("198.51.100.0/24", 80)],
            ),
        ] {
            let plan = plan(&objects(vec![service]), &book(), &no_allowances());
            assert_eq!(plan, expected(&redirected), "{what}");
        }
    }

    #[test]
    fn udp_is_let_go_where_registered_and_refused_where_http3_would_go() {
        use Protocol::{Http, Https, Tcp, Udp};
        let web = service(
            exact("web.example"),
            Resolution::None,
            &["192.0.2.1"],
            &[(80, Http), (443, Https), (5432, Tcp)],
        );
        let h3 = service(
            exact("h3.example"),
            Resolution::None,
            &["192.0.2.2"],
            &[(443, Https), (4433, Udp)],
        );
        let same_port = service(
            exact("u.example"),
            Resolution::None,
            &["192.0.2.2"],
            &[(443, Udp)],
        );
        let objects = objects(vec![web, h3, same_port]);
        let allowed = Allowances {
            resolvers: vec!["9.9.9.9:53".parse().unwrap()],
            internal: vec![net("10.0.0.0/8")],
            quic: false,
        };
        let strict = plan(&objects, &book(), &allowed);
        let lenient = plan(
            &objects,
            &book(),
            &Allowances {
                quic: true,
                ..allowed
            },
        );
        for (address, port, protocol, expected, with_quic) in [
            (
                "192.0.2.1",
                443,
                TCP,
                Some(ACTION_REDIRECT),
                Some(ACTION_REDIRECT),
            ),
            ("192.0.2.1", 443, UDP, Some(ACTION_REFUSE_QUIC), None),
            ("192.0.2.1", 80, UDP, Some(ACTION_REFUSE_QUIC), None),
            ("192.0.2.1", 5432, UDP, None, None),
            (
                "192.0.2.2",
                4433,
                UDP,
                Some(ACTION_DIRECT),
                Some(ACTION_DIRECT),
            ),
            (
                "192.0.2.2",
                443,
                UDP,
                Some(ACTION_DIRECT),
                Some(ACTION_DIRECT),
            ),
            ("9.9.9.9", 53, UDP, Some(ACTION_DIRECT), Some(ACTION_DIRECT)),
            ("9.9.9.9", 53, TCP, Some(ACTION_DIRECT), Some(ACTION_DIRECT)),
            ("9.9.9.9", 443, TCP, None, None),
            (
                "10.200.3.4",
                9999,
                132,
                Some(ACTION_PASS),
                Some(ACTION_PASS),
            ),
            ("11.0.0.1", 9999, 132, None, None),
        ] {
            let action = |plan: &DestinationPlan| {
                let found = plan.find(address.parse().unwrap(), port, protocol);
                found.map(|destination| destination.action)
            };
            assert_eq!(action(&strict), expected, "{address} {port}/{protocol}");
            assert_eq!(action(&lenient), with_quic, "{address} {port}/{protocol}");
        }
    }

    #[test]
    fn network_holds_the_addresses_that_share_its_bits() {
        for (network, bits, address, expected) in [
            ([10, 0, 0, 0], 8, [10, 1, 2, 3], true),
            ([10, 0, 0, 0], 8, [11, 1, 2, 3], false),
            ([172, 16, 0, 0], 12, [172, 31, 0, 1], true),
            ([172, 16, 0, 0], 12, [172, 32, 0, 1], false),
            ([0, 0, 0, 0], 0, [203, 0, 113, 5], true),
            ([1, 2, 3, 4], 32, [1, 2, 3, 4], true),
            ([1, 2, 3, 4], 32, [1, 2, 3, 5], false),
        ] {
            let mut plan = DestinationPlan::default();
            plan.redirect(host_network(network.into(), bits), 80);
            assert_eq!(
                plan.find(address.into(), 80, TCP).is_some(),
                expected,
                "{network:?}/{bits} {address:?}"
            );
        }
    }

    #[test]
    fn service_that_nobody_may_see_is_not_registered() {
        let hidden = Service {
            export_to: ExportTo::Nobody,
            ..service(
                exact("httpbin.org"),
                Resolution::Dns,
                &[],
                &[(80, Protocol::Http)],
            )
        };
        assert!(plan(&objects(vec![hidden]), &book(), &no_allowances()).is_empty());
    }

    #[test]
    fn internal_networks_pass_on_every_port() {
        let allowed = Allowances {
            internal: vec![net("10.0.0.0/8"), net("::1/128")],
            ..no_allowances()
        };
        let plan = plan(&objects(Vec::new()), &book(), &allowed);
        assert_eq!(plan.cidrs4.len(), 1);
        let (entry, destination) = plan.cidrs4.first_key_value().unwrap();
        assert_eq!(entry.key.port.number(), ANY_PORT);
        assert_eq!((entry.address_bits, destination.address_bits), (8, 8));
        assert_eq!(destination.action, ACTION_PASS);
        assert_eq!(plan.cidrs6.len(), 1, "::1 without a port is a CIDR entry");
        assert!(plan.addresses6.is_empty());
    }

    #[test]
    fn static_hosts_without_addresses_are_to_be_resolved() {
        let http = [(80, Protocol::Http)];
        let services = vec![
            service(exact("b.example"), Resolution::Static, &[], &http),
            service(exact("a.example"), Resolution::Static, &[], &http),
            service(exact("a.example"), Resolution::Static, &[], &http),
            service(
                exact("c.example"),
                Resolution::Static,
                &["192.0.2.1"],
                &http,
            ),
            service(exact("192.0.2.2"), Resolution::Static, &[], &http),
            service(exact("d.example"), Resolution::Dns, &[], &http),
        ];
        assert_eq!(
            names_to_capture(&objects(services)),
            ["a.example", "b.example"]
        );
    }
}
