// SPDX-License-Identifier: Apache-2.0
//! The checked, immutable process settings made from the command line: defaults filled in from the
//! machine, contradictions refused. After this no code asks what the user meant.

use std::{
    collections::BTreeMap,
    fs,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    num::NonZeroUsize,
    path::{Path, PathBuf},
    sync::Arc,
};

use ipnet::IpNet;

use crate::{
    cli::{GatewayArgs, NodeArgs, ProxyArgs},
    routing::host,
};

/// Destinations that are inside unless the user says otherwise: this host, RFC 1918, RFC 3927,
/// RFC 4193, RFC 4291 2.5.6.
const INTERNAL: [&str; 9] = [
    "0.0.0.0/32",
    "10.0.0.0/8",
    "127.0.0.0/8",
    "169.254.0.0/16",
    "172.16.0.0/12",
    "192.168.0.0/16",
    "::1/128",
    "fc00::/7",
    "fe80::/10",
];

/// RFC 1035 4.2.
const DNS_PORT: u16 = 53;

/// What the command line asks for cannot be.
#[derive(Debug, thiserror::Error)]
pub enum SettingsError {
    /// No `--cgroup`, and none of the defaults exists.
    #[error(
        "no cgroup to capture: neither kubepods.slice nor kubepods exists under {mount}; \
         name the subtree whose processes are to be captured with --cgroup PATH"
    )]
    NoCgroup {
        /// Where cgroup v2 is mounted.
        mount: PathBuf,
    },
    /// cgroup v2 is not mounted.
    #[error(
        "cgroup v2 is not mounted: no cgroup2 line in /proc/mounts (mount -t cgroup2 none DIR)"
    )]
    NoCgroup2,
    /// /proc/mounts is unreadable.
    #[error("reading /proc/mounts")]
    Mounts {
        /// Why.
        source: std::io::Error,
    },
    /// Two redirect addresses of one family.
    #[error("--redirect-ip {first} and {second} are of one address family: give one per family")]
    RedirectFamily {
        /// The earlier one.
        first: IpAddr,
        /// The later one.
        second: IpAddr,
    },
    /// A server port mapped twice.
    #[error("--port-map names server port {server} twice")]
    PortMap {
        /// The server port.
        server: u16,
    },
    /// Neither files nor anything else to configure from.
    #[error("no configuration: give at least one --config PATH")]
    NoConfig,
}

/// Worker threads: as given, else one per CPU this process may use.
pub fn workers(args: &ProxyArgs) -> usize {
    match args.workers {
        Some(workers) => usize::from(workers),
        None => std::thread::available_parallelism().map_or(1, NonZeroUsize::get),
    }
}

/// Refuses a proxy without any source of configuration.
///
/// # Errors
/// [`SettingsError::NoConfig`].
pub fn require_config(args: &ProxyArgs) -> Result<(), SettingsError> {
    if args.config.config.is_empty() {
        Err(SettingsError::NoConfig)
    } else {
        Ok(())
    }
}

/// The cgroups to capture: as given, else kubelet's subtree under the cgroup v2 mount.
///
/// # Errors
/// When none is given and no default exists.
pub fn cgroups(args: &NodeArgs) -> Result<Vec<PathBuf>, SettingsError> {
    if !args.cgroup.is_empty() {
        return Ok(args.cgroup.clone());
    }
    let mounts =
        fs::read_to_string("/proc/mounts").map_err(|source| SettingsError::Mounts { source })?;
    let mount = cgroup2_mount(&mounts).ok_or(SettingsError::NoCgroup2)?;
    ["kubepods.slice", "kubepods"]
        .iter()
        .map(|name| mount.join(name))
        .find(|path| path.is_dir())
        .map(|path| vec![path])
        .ok_or_else(|| SettingsError::NoCgroup {
            mount: mount.to_owned(),
        })
}

/// The redirect addresses: as given, at most one per family, else both loopbacks.
///
/// # Errors
/// [`SettingsError::RedirectFamily`].
pub fn redirect_ips(args: &NodeArgs) -> Result<Vec<IpAddr>, SettingsError> {
    if args.redirect_ip.is_empty() {
        return Ok(vec![Ipv4Addr::LOCALHOST.into(), Ipv6Addr::LOCALHOST.into()]);
    }
    for (index, &second) in args.redirect_ip.iter().enumerate() {
        let earlier = args.redirect_ip[..index]
            .iter()
            .find(|ip| ip.is_ipv4() == second.is_ipv4());
        if let Some(&first) = earlier {
            return Err(SettingsError::RedirectFamily { first, second });
        }
    }
    Ok(args.redirect_ip.clone())
}

/// Ranges that are inside: as given, else the private and local ranges.
pub fn internal_cidrs(args: &NodeArgs) -> Vec<IpNet> {
    if args.internal_cidr.is_empty() {
        INTERNAL
            .iter()
            .filter_map(|text| text.parse().ok())
            .collect()
    } else {
        args.internal_cidr.clone()
    }
}

/// Addresses a gateway binds: as given, else both wildcards.
pub fn gateway_bind(args: &GatewayArgs) -> Vec<IpAddr> {
    if args.bind.is_empty() {
        vec![Ipv4Addr::UNSPECIFIED.into(), Ipv6Addr::UNSPECIFIED.into()]
    } else {
        args.bind.clone()
    }
}

/// Hosts to tell who is calling, as destinations name them.
pub fn proxy_protocol_to(args: &NodeArgs) -> Arc<[String]> {
    let hosts = args.proxy_protocol_to.iter();
    hosts.map(|h| host::normalize(h).into_owned()).collect()
}

/// Server port → listen port.
///
/// # Errors
/// [`SettingsError::PortMap`] when a server port is named twice.
pub fn port_map(args: &GatewayArgs) -> Result<BTreeMap<u16, u16>, SettingsError> {
    let mut map = BTreeMap::new();
    for &(server, listen) in &args.port_map {
        if map
            .insert(server, listen)
            .is_some_and(|earlier| earlier != listen)
        {
            return Err(SettingsError::PortMap { server });
        }
    }
    Ok(map)
}

/// The resolvers given, `None` for the system's.
pub fn dns_servers(args: &ProxyArgs) -> Option<Vec<SocketAddr>> {
    (!args.dns_server.is_empty()).then(|| args.dns_server.clone())
}

/// The resolvers that captured workloads may always reach: those of the agent, which are the
/// node's unless `--dns-server` names others.
pub fn resolvers(args: &ProxyArgs) -> Vec<SocketAddr> {
    if !args.dns_server.is_empty() {
        return args.dns_server.clone();
    }
    // Without the file there is no resolver to reach.
    name_servers(&fs::read_to_string("/etc/resolv.conf").unwrap_or_default())
}

/// `nameserver` lines of resolv.conf(5).
fn name_servers(text: &str) -> Vec<SocketAddr> {
    text.lines()
        .filter_map(|line| line.trim().strip_prefix("nameserver"))
        .filter_map(|address| {
            // A link-local address may carry its interface.
            let address = address.trim().split('%').next()?;
            address.parse::<IpAddr>().ok()
        })
        .map(|address| SocketAddr::new(address, DNS_PORT))
        .collect()
}

fn cgroup2_mount(mounts: &str) -> Option<&Path> {
    mounts.lines().find_map(|line| {
        let mut fields = line.split_ascii_whitespace();
        let (_, mount, kind) = (fields.next()?, fields.next()?, fields.next()?);
        (kind == "cgroup2").then(|| Path::new(mount))
    })
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;
    use crate::cli::{Cli, Command};

    fn node(flags: &[&str]) -> NodeArgs {
        let argv = ["egress", "node"].iter().chain(flags);
        match Cli::try_parse_from(argv).map(|cli| cli.command) {
            Ok(Command::Node(args)) => *args,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn cgroup2_is_found_in_the_hybrid_layout_too() {
        let hybrid = "tmpfs /sys/fs/cgroup tmpfs rw 0 0\n\
                      cgroup /sys/fs/cgroup/cpu cgroup rw,cpu 0 0\n\
                      cgroup2 /sys/fs/cgroup/unified cgroup2 rw 0 0\n";
        assert_eq!(
            cgroup2_mount(hybrid),
            Some(Path::new("/sys/fs/cgroup/unified"))
        );
        assert_eq!(cgroup2_mount("proc /proc proc rw 0 0\n"), None);
    }

    #[test]
    fn name_servers_of_the_node_are_read() {
        let text = "# comment\nsearch example.com\nnameserver 10.96.0.10\n\
                    nameserver fe80::1%eth0\nnameserver\nnameserver nonsense\noptions ndots:5\n";
        let expected: Vec<SocketAddr> = ["10.96.0.10:53", "[fe80::1]:53"]
            .iter()
            .map(|text| text.parse().unwrap())
            .collect();
        assert_eq!(name_servers(text), expected);
    }

    #[test]
    fn one_redirect_address_per_family() {
        assert_eq!(redirect_ips(&node(&[])).map(|ips| ips.len()).ok(), Some(2));
        let both = node(&["--redirect-ip", "10.0.0.7", "--redirect-ip", "fd00::7"]);
        assert_eq!(redirect_ips(&both).map(|ips| ips.len()).ok(), Some(2));
        let twice = node(&["--redirect-ip", "10.0.0.7", "--redirect-ip", "10.0.0.8"]);
        assert!(matches!(
            redirect_ips(&twice),
            Err(SettingsError::RedirectFamily { .. })
        ));
    }

    #[test]
    fn every_default_internal_range_parses() {
        assert_eq!(internal_cidrs(&node(&[])).len(), INTERNAL.len());
        let given = node(&["--internal-cidr", "192.0.2.0/24"]);
        assert_eq!(
            internal_cidrs(&given),
            vec!["192.0.2.0/24".parse::<IpNet>().unwrap()]
        );
    }
}
