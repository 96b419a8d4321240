// SPDX-License-Identifier: Apache-2.0
//! Which destinations the kernel redirects: from the services of a snapshot and the addresses of
//! their names to the content of the destination maps. Pure; `destinations` carries it out.
//!
//! Only TCP ports count. The kernel knows addresses; which name a captured connection speaks to
//! is found out by the proxy.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

use egress_common::{
    address::Port,
    redirect::{
        ACTION_PASS, ACTION_REDIRECT, CidrKey4, CidrKey6, Destination, DestinationKey4,
        DestinationKey6,
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
        self.add(network, port, ACTION_REDIRECT);
    }

    /// Leaves TCP connections to `network` alone on every port that is not redirected more
    /// specifically.
    pub fn pass(&mut self, network: IpNet) {
        self.add(network, ANY_PORT, ACTION_PASS);
    }

    /// Number of map entries.
    pub fn len(&self) -> usize {
        self.addresses4.len() + self.addresses6.len() + self.cidrs4.len() + self.cidrs6.len()
    }

    /// Whether nothing would be redirected or passed by rule.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    fn add(&mut self, network: IpNet, port: u16, action: u8) {
        let number = port;
        let port = Port::new(port);
        let (address, address_bits) = canonical(network);
        let destination = Destination {
            action,
            address_bits,
        };
        // An entry for any port cannot be looked up by address and port: it is a CIDR.
        let exact = number != ANY_PORT;
        match address {
            IpAddr::V4(v4) if exact && address_bits == V4_BITS => {
                let key = DestinationKey4::tcp(v4.into(), port);
                self.addresses4.insert(key, destination);
            }
            IpAddr::V6(v6) if exact && address_bits == V6_BITS => {
                let key = DestinationKey6::tcp(v6.into(), port);
                self.addresses6.insert(key, destination);
            }
            IpAddr::V4(v4) => {
                let key = CidrKey4::tcp(v4.into(), port);
                let entry = CidrEntry { address_bits, key };
                self.cidrs4.insert(entry, destination);
            }
            IpAddr::V6(v6) => {
                let key = CidrKey6::tcp(v6.into(), port);
                let entry = CidrEntry { address_bits, key };
                self.cidrs6.insert(entry, destination);
            }
        }
    }
}

/// What the kernel must redirect for these objects: the addresses of every service that somebody
/// may see, on its TCP ports.
///
/// Addresses are, first that applies: the declared ones; every address when the entry is a
/// wildcard or has resolution NONE; the host itself when it is an address; what the book knows of
/// the host, retired addresses included, since applications cache. `internal` networks pass
/// unless something more specific is registered.
pub fn plan(objects: &Objects, book: &AddressBook, internal: &[IpNet]) -> DestinationPlan {
    let mut plan = DestinationPlan::default();
    for network in internal {
        plan.pass(*network);
    }
    for service in &objects.services {
        if service.export_to == ExportTo::Nobody {
            continue;
        }
        let networks = networks(service, book);
        for port in &service.ports {
            if port.protocol == Protocol::Udp {
                continue;
            }
            for network in &networks {
                plan.redirect(*network, port.number);
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

    // design.md section 3; istio-egress.md, ServiceEntry resolution and addresses.
    #[test]
    fn each_kind_of_service_is_registered_by_the_addresses_applications_dial() {
        use Protocol::{Http, Tls, Udp};
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
                "UDP ports do not count",
                service(
                    exact("httpbin.org"),
                    Resolution::None,
                    &["192.0.2.1"],
                    &[(53, Udp)],
                ),
                vec![],
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
            let plan = plan(&objects(vec![service]), &book(), &[]);
            assert_eq!(plan, expected(&redirected), "{what}");
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
        assert!(plan(&objects(vec![hidden]), &book(), &[]).is_empty());
    }

    #[test]
    fn internal_networks_pass_on_every_port() {
        let plan = plan(
            &objects(Vec::new()),
            &book(),
            &[net("10.0.0.0/8"), net("::1/128")],
        );
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
