// SPDX-License-Identifier: Apache-2.0
//! From a service port and the DestinationRules that apply to a [`Destination`]: subset, HTTP
//! version, connect timeout, endpoints.

use std::{collections::BTreeMap, net::IpAddr, sync::Arc};

use super::{
    decision::{Destination, EndpointTarget, Endpoints, UpstreamHttp},
    destination_rule::{Applied, Http2Upgrade, PoolSettings},
    registry::ServiceAt,
    service::{Endpoint, EndpointAddress, Protocol, Resolution, Service, ServicePort},
    table::MeshDefaults,
};

/// A service port as a destination, or one of its subsets. A subset that no rule has, and one of a
/// DNS service that no endpoint is in, is [`Endpoints::Missing`].
pub fn of_service(
    ServiceAt { service, port, .. }: ServiceAt<'_>,
    subset: Option<&str>,
    applied: Applied<'_>,
    mesh: &MeshDefaults,
) -> Destination {
    let host = service.host.to_string();
    let name = subset.unwrap_or_default();
    let found = subset.and_then(|name| applied.subset(name));
    if subset.is_some() && found.is_none() {
        return missing(&host, port.number, name, mesh);
    }
    let settings = applied.settings(port.number, found);
    let pool = settings.pool.unwrap_or_default();
    let endpoints = endpoints(service, port, found.map(|subset| &subset.labels));
    Destination {
        cluster: cluster_name(port.number, name, &host),
        host,
        port: port.number,
        subset: name.to_owned(),
        service: (endpoints != Endpoints::Missing).then(|| service.clone()),
        protocol: port.protocol,
        http: upstream_http(port.protocol, &pool, mesh.http2),
        endpoints,
        connect_timeout: pool.connect_timeout.unwrap_or(mesh.connect_timeout),
        rule: applied.origin().cloned(),
        wants_tls: settings.tls == Some(true),
    }
}

/// A destination that is not there.
pub fn missing(host: &str, port: u16, subset: &str, mesh: &MeshDefaults) -> Destination {
    Destination {
        host: host.to_owned(),
        port,
        subset: subset.to_owned(),
        cluster: cluster_name(port, subset, host),
        service: None,
        protocol: Protocol::Auto,
        http: UpstreamHttp::Http1,
        endpoints: Endpoints::Missing,
        connect_timeout: mesh.connect_timeout,
        rule: None,
        wants_tls: false,
    }
}

/// Rows 2.5 and 6.4: HTTP2 and gRPC force HTTP/2, an undeclared port keeps the client's version; a
/// DestinationRule upgrades whatever the port is declared as, the mesh only what is HTTP (istio
/// `cluster_builder.go` `shouldH2Upgrade`).
fn upstream_http(protocol: Protocol, pool: &PoolSettings, mesh: Http2Upgrade) -> UpstreamHttp {
    let upgrades = match pool.http2 {
        Http2Upgrade::Default => mesh == Http2Upgrade::Upgrade && protocol.is_http(),
        own => own == Http2Upgrade::Upgrade,
    };
    match protocol {
        _ if pool.as_client => UpstreamHttp::AsClient,
        _ if upgrades => UpstreamHttp::Http2,
        Protocol::Http2 | Protocol::Grpc | Protocol::GrpcWeb => UpstreamHttp::Http2,
        Protocol::Auto => UpstreamHttp::AsClient,
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
    let listed = || -> Vec<_> {
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
            let listed = listed();
            // Istio makes no cluster of a DNS subset without endpoints.
            match listed.is_empty() {
                true => Endpoints::Missing,
                false => Endpoints::List(listed),
            }
        }
        // The host stands for an endpoint without labels.
        Resolution::Dns | Resolution::DnsRoundRobin
            if subset.is_some_and(|labels| !labels.is_empty()) =>
        {
            Endpoints::Missing
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
