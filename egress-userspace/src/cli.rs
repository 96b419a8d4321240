// SPDX-License-Identifier: Apache-2.0
//! Flags as the user wrote them. The first step of start-up; checks only what a flag's own text can
//! tell, everything that needs the machine is checked in [`crate::settings`].

use std::{net::SocketAddr, path::PathBuf, time::Duration};

use clap::{Args, Parser, Subcommand, ValueEnum};
use ipnet::IpNet;

/// Istio's egress control without sidecars.
#[derive(Debug, Parser)]
#[command(name = "egress", version, disable_help_subcommand = true)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
    /// The program's own log, to stderr.
    #[command(flatten)]
    pub log: LogArgs,
}

/// The program's own log.
#[derive(Debug, Clone, Args)]
pub struct LogArgs {
    /// Filter of the program's own log (`info`, `egress::config=debug,warn`, ...)
    #[arg(long, global = true, value_name = "FILTER", default_value = "info")]
    pub log: String,
    /// Form of the program's own log
    #[arg(long, global = true, value_name = "FORMAT", default_value = "text")]
    pub log_format: LogFormat,
}

/// `--log-format`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum LogFormat {
    /// Lines for people.
    Text,
    /// One JSON object a line.
    Json,
}

/// The commands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Capture on this node and proxy as gateway `mesh` (root)
    #[command(after_help = "Example:\n  egress node -c /etc/egress --cgroup \
        /sys/fs/cgroup/kubepods.slice --redirect-ip 10.0.0.7")]
    Node(Box<NodeArgs>),
    /// Run an egress gateway
    #[command(after_help = "Example:\n  egress gateway -c /etc/egress --labels \
        istio=egressgateway --port-map 80=8080")]
    Gateway(Box<GatewayArgs>),
    /// Check configuration files
    #[command(after_help = "Example:\n  egress validate examples/httpbin")]
    Validate(ValidateArgs),
    /// Tell what would happen to a request, and which object decides
    #[command(after_help = "Example:\n  egress explain -c examples/httpbin --url \
        http://httpbin.org/headers --source-namespace istio-demo")]
    Explain(Box<ExplainArgs>),
    /// Show the health and counters of a running node or gateway
    #[command(after_help = "Example:\n  egress status --admin 127.0.0.1:15000 -o json")]
    Status(StatusArgs),
    /// Print live state: JSON, or a table on a terminal
    #[command(after_help = "Example:\n  egress dump connections")]
    Dump(DumpArgs),
}

/// Where configuration comes from.
#[derive(Debug, Clone, Args)]
pub struct ConfigArgs {
    /// File or directory of YAML, watched and reloaded; repeatable
    #[arg(short, long = "config", value_name = "PATH")]
    pub config: Vec<PathBuf>,
    /// A meshConfig document (bare MeshConfig, IstioOperator, or ConfigMap with key `mesh`)
    #[arg(long, value_name = "PATH")]
    pub mesh_config: Option<PathBuf>,
    /// Namespace of objects that carry none
    #[arg(long, value_name = "NS", default_value = "default")]
    pub default_namespace: String,
}

/// What node and gateway share.
#[derive(Debug, Clone, Args)]
pub struct ProxyArgs {
    /// Configuration.
    #[command(flatten)]
    pub config: ConfigArgs,
    /// Proxy threads [default: number of CPUs]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=1024))]
    pub workers: Option<u16>,
    /// Resolver for `resolution: DNS`; repeatable [default: /etc/resolv.conf]
    #[arg(long, value_name = "IP[:PORT]", value_parser = dns_server)]
    pub dns_server: Vec<SocketAddr>,
    /// Access log: `-` (stdout), a path, or `off`
    #[arg(long, value_name = "-|PATH|off", default_value = "-")]
    pub access_log: String,
    /// Admin server
    #[arg(long, value_name = "ADDR", default_value = "127.0.0.1:15000")]
    pub admin: SocketAddr,
    /// How long connections may finish after SIGTERM or SIGINT, or after the end of their pod
    #[arg(long, value_name = "DUR", default_value = "5s", value_parser = duration)]
    pub drain_time: Duration,
}

/// `egress node`.
#[derive(Debug, Clone, Args)]
pub struct NodeArgs {
    /// What node and gateway share.
    #[command(flatten)]
    pub proxy: ProxyArgs,
    /// Subtree whose processes are captured; repeatable [default: kubepods.slice or kubepods]
    #[arg(long, value_name = "PATH")]
    pub cgroup: Vec<PathBuf>,
    /// Where captured sockets find this proxy; one per family [default: 127.0.0.1 and ::1]
    #[arg(long, value_name = "IP")]
    pub redirect_ip: Vec<std::net::IpAddr>,
    /// Proxy port, bound on the redirect addresses
    #[arg(long, value_name = "N", default_value_t = 15001, value_parser = clap::value_parser!(u16).range(1..))]
    pub port: u16,
    /// Destinations that are inside; repeatable, replaces the default
    /// [default: RFC 1918, loopback, link-local, ULA]
    #[arg(long, value_name = "CIDR")]
    pub internal_cidr: Vec<IpNet>,
    /// YAML naming workloads: list of {cgroup: GLOB, namespace, name, labels, serviceAccount}
    #[arg(long, value_name = "PATH")]
    pub workloads: Option<PathBuf>,
    /// What the kernel does with registered destinations while the proxy is not alive
    #[arg(long, value_name = "POLICY", default_value = "closed")]
    pub failure_policy: FailurePolicy,
    /// What the kernel does with UDP to registered HTTP and TLS ports: HTTP/3 would go around the
    /// proxy; refused, clients fall back to TCP
    #[arg(long, value_name = "POLICY", default_value = "refuse")]
    pub quic: QuicPolicy,
    /// Where maps and links are pinned
    #[arg(long, value_name = "PATH", default_value = "/sys/fs/bpf/egress")]
    pub bpffs: PathBuf,
    /// Service host of an egress gateway that is to learn who is calling, in a PROXY protocol v2
    /// header: the destination host that routes name, e.g.
    /// istio-egressgateway.istio-system.svc.cluster.local. The gateway must have been started with
    /// --trust-proxy and an address of this node. Repeatable
    #[arg(long, value_name = "HOST", value_parser = clap::builder::NonEmptyStringValueParser::new())]
    pub proxy_protocol_to: Vec<String>,
}

/// `--quic`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum QuicPolicy {
    /// Refuse it with EPERM.
    Refuse,
    /// Treat it like any other UDP.
    Allow,
}

/// `--failure-policy`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum FailurePolicy {
    /// Leave the socket alone.
    Open,
    /// Refuse the connection.
    Closed,
}

/// `egress gateway`.
#[derive(Debug, Clone, Args)]
pub struct GatewayArgs {
    /// What node and gateway share.
    #[command(flatten)]
    pub proxy: ProxyArgs,
    /// Labels matched by `Gateway.spec.selector`
    #[arg(long, value_name = "K=V[,K=V]", value_delimiter = ',', value_parser = label)]
    pub labels: Vec<(String, String)>,
    /// Namespace this gateway runs in
    #[arg(long, value_name = "NS", default_value = "istio-system")]
    pub namespace: String,
    /// Names this gateway answers to; repeatable
    #[arg(long, value_name = "HOST")]
    pub service: Vec<String>,
    /// Address to listen on; repeatable [default: 0.0.0.0 and ::]
    #[arg(long, value_name = "IP")]
    pub bind: Vec<std::net::IpAddr>,
    /// Listen on LISTEN for the Gateway server port SERVER; repeatable
    #[arg(long, value_name = "SERVER=LISTEN", value_parser = port_map)]
    pub port_map: Vec<(u16, u16)>,
    /// Addresses of nodes whose word about who is calling is taken, from the PROXY protocol v2
    /// header that `egress node --proxy-protocol-to` sends; anybody else's header closes the
    /// connection. Repeatable [default: none]
    #[arg(long, value_name = "CIDR", value_parser = network)]
    pub trust_proxy: Vec<IpNet>,
}

/// `-o`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum, Default)]
pub enum Output {
    /// For reading.
    #[default]
    Text,
    /// For programs.
    Json,
}

/// `egress validate`.
#[derive(Debug, Clone, Args)]
pub struct ValidateArgs {
    /// Files and directories, as `--config` would load them
    #[arg(required = true, value_name = "PATH")]
    pub paths: Vec<PathBuf>,
    /// A meshConfig document to check them under
    #[arg(long, value_name = "PATH")]
    pub mesh_config: Option<PathBuf>,
    /// Namespace of objects that carry none
    #[arg(long, value_name = "NS", default_value = "default")]
    pub default_namespace: String,
    /// Output form
    #[arg(short, long, default_value = "text")]
    pub output: Output,
}

/// `egress explain`.
#[derive(Debug, Clone, Args)]
pub struct ExplainArgs {
    /// Configuration.
    #[command(flatten)]
    pub config: ConfigArgs,
    /// `mesh`, or a Gateway as NS/NAME
    #[arg(long, value_name = "mesh|NS/NAME", default_value = "mesh")]
    pub gateway: String,
    /// Labels of the gateway workload [default: the named Gateway's selector]
    #[arg(long, value_name = "K=V[,K=V]", value_delimiter = ',', value_parser = label)]
    pub gateway_labels: Vec<(String, String)>,
    /// Namespace of the caller
    #[arg(long, value_name = "NS")]
    pub source_namespace: Option<String>,
    /// Labels of the caller
    #[arg(long, value_name = "K=V[,K=V]", value_delimiter = ',', value_parser = label)]
    pub source_labels: Vec<(String, String)>,
    /// Service account of the caller
    #[arg(long, value_name = "SA")]
    pub source_service_account: Option<String>,
    /// The caller, as a running node knows it or --workloads names it: its namespace, labels and
    /// service account are taken from there
    #[arg(long, value_name = "[NS/]NAME|/CGROUP", conflicts_with_all = ["source_namespace", "source_labels", "source_service_account", "batch"])]
    pub source_workload: Option<String>,
    /// Admin server of the node that knows --source-workload
    #[arg(long, value_name = "ADDR", default_value = "127.0.0.1:15000")]
    pub admin: SocketAddr,
    /// YAML that names --source-workload instead, as for `egress node`
    #[arg(
        long,
        value_name = "PATH",
        requires = "source_workload",
        conflicts_with = "admin"
    )]
    pub workloads: Option<PathBuf>,
    /// The request, whole
    #[arg(long, value_name = "URL", conflicts_with_all = ["host", "port", "protocol", "path", "batch"])]
    pub url: Option<String>,
    /// Host as sent
    #[arg(long, value_name = "H")]
    pub host: Option<String>,
    /// Original destination port, or server port of the gateway
    #[arg(long, value_name = "N")]
    pub port: Option<u16>,
    /// Protocol on the connection
    #[arg(long, value_name = "PROTOCOL")]
    pub protocol: Option<ExplainProtocol>,
    /// Server name of the TLS hello
    #[arg(long, value_name = "S")]
    pub sni: Option<String>,
    /// Original destination address
    #[arg(long, value_name = "IP")]
    pub dst_ip: Option<std::net::IpAddr>,
    /// Request method
    #[arg(long, value_name = "M")]
    pub method: Option<String>,
    /// Path with query
    #[arg(long, value_name = "P")]
    pub path: Option<String>,
    /// Request header, repeatable
    #[arg(short = 'H', long = "header", value_name = "K: V", value_parser = header)]
    pub header: Vec<(String, String)>,
    /// One JSON request a line from FILE or `-`; one JSON decision a line
    #[arg(long, value_name = "FILE|-")]
    pub batch: Option<PathBuf>,
    /// Output form
    #[arg(short, long, default_value = "text")]
    pub output: Output,
}

/// `--protocol`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum ExplainProtocol {
    /// Clear-text HTTP.
    Http,
    /// TLS, not terminated.
    Tls,
    /// Anything else.
    Tcp,
}

/// `egress status`.
#[derive(Debug, Clone, Args)]
pub struct StatusArgs {
    /// Admin server to ask
    #[arg(long, value_name = "ADDR", default_value = "127.0.0.1:15000")]
    pub admin: SocketAddr,
    /// Output form
    #[arg(short, long, default_value = "text")]
    pub output: Output,
}

/// `egress dump`.
#[derive(Debug, Clone, Args)]
pub struct DumpArgs {
    /// What to print
    #[arg(value_name = "WHAT", default_value = "config")]
    pub what: DumpWhat,
    /// Admin server to ask
    #[arg(long, value_name = "ADDR", default_value = "127.0.0.1:15000")]
    pub admin: SocketAddr,
    /// Where maps are pinned (`maps` works while the agent is down)
    #[arg(long, value_name = "PATH", default_value = "/sys/fs/bpf/egress")]
    pub bpffs: PathBuf,
}

/// What `egress dump` prints.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum DumpWhat {
    /// The pinned kernel maps.
    Maps,
    /// The running configuration.
    Config,
    /// The workloads seen.
    Workloads,
    /// Names and their addresses.
    Dns,
    /// Open connections.
    Connections,
}

fn dns_server(text: &str) -> Result<SocketAddr, String> {
    text.parse::<SocketAddr>()
        .or_else(|_| text.parse().map(|ip| SocketAddr::new(ip, 53)))
        .map_err(|_| "expected IP or IP:PORT ([IPv6]:PORT)".to_owned())
}

fn duration(text: &str) -> Result<Duration, String> {
    let expected = || "expected a duration such as 500ms, 5s, 2m, 1h".to_owned();
    let split = text
        .find(|c: char| c.is_ascii_alphabetic())
        .ok_or_else(expected)?;
    let (number, unit) = text.split_at(split);
    let number: f64 = number.parse().map_err(|_| expected())?;
    let seconds = match unit {
        "ms" => 0.001,
        "s" => 1.0,
        "m" => 60.0,
        "h" => 3600.0,
        _ => return Err(expected()),
    };
    Duration::try_from_secs_f64(number * seconds).map_err(|_| expected())
}

fn label(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((key, value)) if !key.is_empty() => Ok((key.to_owned(), value.to_owned())),
        _ => Err("expected KEY=VALUE".to_owned()),
    }
}

/// A network; an address stands for itself alone.
fn network(text: &str) -> Result<IpNet, String> {
    text.parse()
        .or_else(|_| text.parse::<std::net::IpAddr>().map(IpNet::from))
        .map_err(|_| "expected a network or an address (10.0.0.0/8, 10.0.0.7)".to_owned())
}

fn port_map(text: &str) -> Result<(u16, u16), String> {
    text.split_once('=')
        .and_then(|(server, listen)| Some((server.parse().ok()?, listen.parse().ok()?)))
        .filter(|&(server, listen): &(u16, u16)| server > 0 && listen > 0)
        .ok_or_else(|| "expected SERVER=LISTEN, both ports from 1 to 65535 (80=8080)".to_owned())
}

fn header(text: &str) -> Result<(String, String), String> {
    text.split_once(':')
        .map(|(name, value)| (name.trim().to_owned(), value.trim().to_owned()))
        .filter(|(name, _)| !name.is_empty())
        .ok_or_else(|| "expected 'NAME: VALUE'".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn durations_are_read_in_every_unit() {
        for (text, millis) in [
            ("250ms", 250),
            ("5s", 5000),
            ("1.5s", 1500),
            ("2m", 120_000),
        ] {
            assert_eq!(duration(text), Ok(Duration::from_millis(millis)), "{text}");
        }
        for text in ["", "5", "s", "5d", "-1s", "NaNs"] {
            assert!(duration(text).is_err(), "{text}");
        }
    }

    #[test]
    fn dns_servers_default_to_port_53() {
        assert_eq!(dns_server("192.0.2.1"), Ok(([192, 0, 2, 1], 53).into()));
        assert_eq!(
            dns_server("192.0.2.1:5353"),
            Ok(([192, 0, 2, 1], 5353).into())
        );
        assert_eq!(dns_server("[::1]:53").map(|a| a.port()), Ok(53));
        assert!(dns_server("dns.example").is_err());
    }

    #[test]
    fn port_maps_want_two_ports() {
        assert_eq!(port_map("80=8080"), Ok((80, 8080)));
        for text in ["80", "80=", "0=80", "80=99999", "a=b"] {
            assert!(port_map(text).is_err(), "{text}");
        }
    }

    #[test]
    fn networks_may_be_single_addresses() {
        for (text, expected) in [
            ("10.0.0.0/8", "10.0.0.0/8"),
            ("10.0.0.7", "10.0.0.7/32"),
            ("fd00::7", "fd00::7/128"),
        ] {
            assert_eq!(network(text), Ok(expected.parse().unwrap()), "{text}");
        }
        for text in ["", "node", "10.0.0.7/33"] {
            assert!(network(text).is_err(), "{text}");
        }
    }
}
