// SPDX-License-Identifier: Apache-2.0
//! The lab's network: pods, a node, an egress gateway and the outside world, each in a network
//! namespace of its own, wired like this, with the same addresses in every lab:
//!
//! ```text
//! pod sleep 10.88.1.2 ─── 10.88.1.1 ┐                    ┌ 203.0.113.1 ─── external 203.0.113.10 …
//!                                   ├ node (ip_forward) ─┤
//! pod other 10.88.3.2 ─── 10.88.3.1 ┘                    └ 10.88.2.1 ─── gateway 10.88.2.2
//! ```
//!
//! IPv6 beside it: `fd00:88:N::` for 10.88.N, `2001:db8:113::` for 203.0.113. The outside world has
//! the addresses reserved for documentation, since private ones count as internal. There, a server
//! like httpbin listens on every address (ports of [`HTTP_PORTS`]) and a DNS server on
//! [`DNS_SERVER`]. Pods have cgroups; the host's network is not touched.

use std::{
    fs,
    path::{Path, PathBuf},
    process,
    sync::atomic::{AtomicU32, Ordering},
    time::Duration,
};

use anyhow::{Context, Result};
use nix::net::if_::{if_nameindex, if_nametoindex};

use crate::{
    binary,
    cgroup::Cgroup,
    netns::{End, Netns, cable},
    node,
    process::{Process, Stream},
};

/// Where httpbin.org is.
pub const HTTPBIN: &str = "203.0.113.10";
/// Where httpbin.org is, IPv6.
pub const HTTPBIN6: &str = "2001:db8:113::10";
/// The DNS server of pods, node and gateway.
pub const DNS_SERVER: &str = "203.0.113.53";
/// The node, as its pods see it: where captured sockets go.
pub const NODE: &str = "10.88.1.1";
/// The node, IPv6.
pub const NODE6: &str = "fd00:88:1::1";
/// The egress gateway; `examples/httpbin` names it.
pub const GATEWAY: &str = "10.88.2.2";
/// Addresses of the outside world.
const EXTERNAL: [&str; 9] = [
    "203.0.113.10/24",
    "203.0.113.11/24",
    "203.0.113.20/24",
    "203.0.113.21/24",
    "203.0.113.22/24",
    "203.0.113.23/24",
    "203.0.113.53/24",
    "2001:db8:113::10/64",
    "2001:db8:113::11/64",
];
/// Ports on which the outside world's HTTP server listens.
pub const HTTP_PORTS: [u16; 5] = [80, 8001, 8002, 8003, 8004];

/// The pods' /etc/resolv.conf, in the lab's directory.
const RESOLVER: &str = "resolv.conf";
/// What a pod's first process does.
const PAUSE: &str = "echo pausing && exec sleep infinity";

/// How long a server of the lab may take to start.
const START_WITHIN: Duration = Duration::from_secs(20);

/// A whole network; everything is gone when dropped.
#[derive(Debug)]
pub struct Net {
    // Dropped in this order: processes first, then what they live in.
    /// The outside world's HTTP server; prints a line per request.
    pub httpbin: Process,
    /// The DNS server; prints a line per query.
    pub dns: Process,
    /// The client `sleep` of namespace istio-demo.
    pub pod: Pod,
    /// A second client.
    pub other: Pod,
    /// Where `egress node` runs.
    pub node: Netns,
    /// Where `egress gateway` runs.
    pub gateway: Netns,
    /// The outside world.
    pub external: Netns,
    /// Contains the pods' cgroups: what `egress node` captures.
    pub cgroup: Cgroup,
    /// Files of this lab; removed with it.
    pub directory: Directory,
}

/// A client: a network namespace and a cgroup, held by a process that does nothing, as in every pod
/// of Kubernetes.
#[derive(Debug)]
pub struct Pod {
    /// The process that does nothing.
    pub pause: Process,
    /// Its cgroup.
    pub cgroup: Cgroup,
    /// Its network.
    pub netns: Netns,
    /// Its IPv4 address.
    pub address: String,
    /// Its IPv6 address.
    pub address6: String,
    /// The script that runs a command in it.
    script: PathBuf,
}

/// A temporary directory.
#[derive(Debug)]
pub struct Directory(PathBuf);

impl Net {
    /// Builds the network and starts its servers. `name` becomes part of every name, beside this
    /// process's id and a number, so that labs do not collide.
    ///
    /// # Errors
    /// When the caller is not root or the machine lacks something; what was made is removed.
    pub fn new(name: &str) -> Result<Self> {
        static LABS: AtomicU32 = AtomicU32::new(0);
        let number = LABS.fetch_add(1, Ordering::Relaxed);
        let name = format!("egress-lab-{name}-{}-{number}", process::id());
        let directory = Directory::new(&name)?;
        let cgroup = Cgroup::new(&name)?;
        let namespace = |role: &str| Netns::new(&format!("{name}-{role}"));
        let (node, gateway, external) = (
            namespace("node")?,
            namespace("gateway")?,
            namespace("external")?,
        );
        node.set_parameter("net/ipv4/ip_forward", "1")?;
        node.set_parameter("net/ipv6/conf/all/forwarding", "1")?;
        wire(
            &node,
            &gateway,
            "gw",
            ["10.88.2.1/24", "fd00:88:2::1/64"],
            &["10.88.2.2/24", "fd00:88:2::2/64"],
        )?;
        wire(
            &node,
            &external,
            "ext",
            ["203.0.113.1/24", "2001:db8:113::1/64"],
            &EXTERNAL,
        )?;
        directory.write(RESOLVER, &format!("nameserver {DNS_SERVER}\n"))?;
        let pod = |role: &str, subnet: u8| {
            let netns = namespace(role)?;
            plug(&node, &netns, subnet)?;
            Pod::new(role, subnet, netns, &cgroup, &directory)
        };
        let (pod, other) = (pod("sleep", 1)?, pod("other", 3)?);
        Ok(Self {
            httpbin: start_httpbin(&external)?,
            dns: start_dns(&external, &directory)?,
            pod,
            other,
            node,
            gateway,
            external,
            cgroup,
            directory,
        })
    }

    /// Adds a network namespace to the node as a pod has it, with nobody inside; its addresses are
    /// `10.88.SUBNET.2` and `fd00:88:SUBNET::2`, the node's interface is [`interface`].
    ///
    /// # Errors
    /// When the name or the subnet is taken; subnets 1 to 3 are.
    pub fn add_netns(&self, name: &str, subnet: u8) -> Result<Netns> {
        let lab = self.cgroup.path().file_name().unwrap_or_default();
        let netns = Netns::new(&format!("{}-{name}", lab.display()))?;
        plug(&self.node, &netns, subnet)?;
        Ok(netns)
    }

    /// Adds a pod, as [`Net::add_netns`]; it is gone when dropped.
    ///
    /// # Errors
    /// As there.
    pub fn add_pod(&self, name: &str, subnet: u8) -> Result<Pod> {
        let netns = self.add_netns(name, subnet)?;
        self.pod_in(netns, name, subnet)
    }

    /// Makes a pod of what [`Net::add_netns`] made.
    ///
    /// # Errors
    /// When the name is taken.
    pub fn pod_in(&self, netns: Netns, name: &str, subnet: u8) -> Result<Pod> {
        Pod::new(name, subnet, netns, &self.cgroup, &self.directory)
    }

    /// Whether the node has an interface: those of pods go with their network namespace.
    ///
    /// # Errors
    /// When the node's namespace cannot be entered.
    pub fn node_has(&self, interface: &str) -> Result<bool> {
        self.node.run(|| Ok(if_nametoindex(interface).is_ok()))
    }

    /// The node's interfaces, sorted.
    ///
    /// # Errors
    /// When the node's namespace cannot be entered.
    pub fn node_interfaces(&self) -> Result<Vec<String>> {
        self.node.run(|| {
            let interfaces = if_nameindex().context("listing interfaces")?;
            let names = interfaces
                .iter()
                .map(|found| found.name().to_string_lossy());
            let mut names: Vec<_> = names.map(|name| name.into_owned()).collect();
            names.sort();
            Ok(names)
        })
    }

    /// Adds or changes a DNS record; an answer to a query asked from now on has it.
    ///
    /// # Errors
    /// When the file of records cannot be written.
    pub fn set_record(&self, name: &str, addresses: &[&str]) -> Result<()> {
        let path = self.directory.path().join("records");
        let mut text = fs::read_to_string(&path).context("reading the lab's records")?;
        text.push_str(&format!("{name}={}\n", addresses.join(",")));
        self.directory.write("records", &text).map(drop)
    }

    /// Requests that the outside world has seen until now: `PEER METHOD HOST PATH`.
    ///
    /// # Errors
    /// When the server does not answer.
    pub fn seen(&self) -> Result<Vec<String>> {
        static MARKS: AtomicU32 = AtomicU32::new(0);
        // Lines come in order: behind the one of this request, none is missing.
        let mark = format!("/get?mark={}", MARKS.fetch_add(1, Ordering::Relaxed));
        let url = format!("http://{HTTPBIN}{mark}");
        let ask = ["curl", "-sS", "-o/dev/null", &url].map(str::to_owned);
        let command = [&self.external.enter()[..], &ask].concat();
        Process::output("curl", &command, START_WITHIN)?;
        self.httpbin
            .wait_for_line("the mark", START_WITHIN, |line| line.ends_with(&mark))?;
        let lines = self.httpbin.lines(Stream::Stdout);
        let ours = |line: &String| line != "ready" && !line.contains("/get?mark=");
        Ok(lines.into_iter().filter(ours).collect())
    }

    /// Starts `lab-sink` in the outside world: a line per packet that arrives there, see
    /// [`crate::sink`].
    ///
    /// # Errors
    /// When it does not become ready.
    pub fn sink(&self) -> Result<Process> {
        let mut command = self.external.enter().to_vec();
        command.push(binary("lab-sink")?.display().to_string());
        start("lab-sink", &command)
    }
}

/// Removes what a killed agent leaves pinned (a pinned link would keep its programs loaded); the
/// rest goes with the fields, its lock file with the next start of an agent.
impl Drop for Net {
    fn drop(&mut self) {
        let pins = node::bpffs(self);
        if pins.exists()
            && let Err(error) = fs::remove_dir_all(&pins)
        {
            eprintln!("lab: removing {}: {error}", pins.display());
        }
    }
}

impl Pod {
    fn new(
        name: &str,
        subnet: u8,
        netns: Netns,
        parent: &Cgroup,
        directory: &Directory,
    ) -> Result<Self> {
        let cgroup = parent.child(name)?;
        let [address, address6] = pod_addresses(subnet);
        let resolver = directory.path().join(RESOLVER);
        // One way in for the lab and for people: the cgroup, the network, the resolver.
        let text = format!(
            "#!/bin/sh\n\
             # Runs a command in pod {name}: sh {name} COMMAND [ARGUMENT...]\n\
             # The network first: in the pod's cgroup there is nobody from elsewhere, ever.\n\
             exec nsenter --net={} -- unshare --mount sh -c \\\n\
             \x20   'echo 0 >{}/cgroup.procs && mount --bind {} /etc/resolv.conf && exec \"$@\"' sh \"$@\"\n",
            netns.path().display(),
            cgroup.path().display(),
            resolver.display(),
        );
        let script = directory.write(name, &text)?;
        let pause = ["sh", &script.display().to_string(), "sh", "-c", PAUSE].map(str::to_owned);
        let pause = Process::spawn("pause", &pause)?;
        pause.wait_for_line("pausing", START_WITHIN, |line| line == "pausing")?;
        Ok(Self {
            pause,
            cgroup,
            netns,
            address,
            address6,
            script,
        })
    }

    /// A command line that runs `command` in this pod, under one pid.
    pub fn command<S: AsRef<str>>(&self, command: &[S]) -> Vec<String> {
        let mut line = vec!["sh".to_owned(), self.script.display().to_string()];
        line.extend(command.iter().map(|word| word.as_ref().to_owned()));
        line
    }

    /// Starts a command in this pod.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn spawn<S: AsRef<str>>(&self, command: &[S]) -> Result<Process> {
        let name = command.first().map_or("", AsRef::as_ref);
        Process::spawn(name, &self.command(command))
    }

    /// Runs a command in this pod to its end; its standard output.
    ///
    /// # Errors
    /// When it takes longer than 60 s or does not succeed.
    pub fn run<S: AsRef<str>>(&self, command: &[S]) -> Result<String> {
        let name = command.first().map_or("", AsRef::as_ref);
        Process::output(name, &self.command(command), Duration::from_secs(60))
    }

    /// Runs `lab-client` in this pod; the report it prints.
    ///
    /// # Errors
    /// When it does not succeed, with what it said.
    pub fn client(&self, arguments: &[&str]) -> Result<serde_json::Value> {
        let mut command = vec![binary("lab-client")?.display().to_string()];
        command.extend(arguments.iter().map(|&word| word.to_owned()));
        let text = self.run(&command)?;
        let report = text.lines().last().unwrap_or_default();
        serde_json::from_str(report).with_context(|| format!("lab-client printed {text:?}"))
    }
}

impl Directory {
    /// Makes an empty one below the system's temporary directory; removed when dropped.
    ///
    /// # Errors
    /// When the name is taken.
    pub fn new(name: &str) -> Result<Self> {
        let path = std::env::temp_dir().join(name);
        fs::create_dir(&path).with_context(|| format!("making {}", path.display()))?;
        Ok(Self(path))
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.0
    }

    /// Writes a file as editors do, a new file renamed over the old; its path.
    ///
    /// # Errors
    /// When the file system refuses.
    pub fn write(&self, name: &str, text: &str) -> Result<PathBuf> {
        replace(&self.0.join(name), text)
    }
}

impl Drop for Directory {
    fn drop(&mut self) {
        if let Err(error) = fs::remove_dir_all(&self.0) {
            eprintln!("lab: removing {}: {error}", self.0.display());
        }
    }
}

/// Writes a file as editors do: a new file renamed over the old. Makes its folder.
///
/// # Errors
/// When the file system refuses.
pub fn replace(path: &Path, text: &str) -> Result<PathBuf> {
    let folder = path.parent().context("a file has a folder")?;
    fs::create_dir_all(folder).with_context(|| format!("making {}", folder.display()))?;
    // No name that a configuration directory would load.
    let new = path.with_extension("new");
    fs::write(&new, text).with_context(|| format!("writing {}", new.display()))?;
    fs::rename(&new, path).with_context(|| format!("replacing {}", path.display()))?;
    Ok(path.to_owned())
}

/// The node's end of a pod's cable.
pub fn interface(subnet: u8) -> String {
    format!("pod{subnet}")
}

fn pod_addresses(subnet: u8) -> [String; 2] {
    [format!("10.88.{subnet}.2"), format!("fd00:88:{subnet}::2")]
}

/// Makes a namespace the network of a pod.
fn plug(node: &Netns, netns: &Netns, subnet: u8) -> Result<()> {
    let gateways = [
        format!("10.88.{subnet}.1/24"),
        format!("fd00:88:{subnet}::1/64"),
    ];
    let [own, own6] = pod_addresses(subnet);
    let own = [format!("{own}/24"), format!("{own6}/64")];
    let gateways = [gateways[0].as_str(), gateways[1].as_str()];
    wire(
        node,
        netns,
        &interface(subnet),
        gateways,
        &[&own[0], &own[1]],
    )?;
    // As containerd and CRI-O set it for pods: everybody may ping.
    netns.set_parameter("net/ipv4/ping_group_range", "0 2147483647")
}

/// Connects a namespace to the node, with the node as its way to everywhere.
fn wire(
    node: &Netns,
    leaf: &Netns,
    interface: &str,
    node_addresses: [&str; 2],
    leaf_addresses: &[&str],
) -> Result<()> {
    cable(
        &End {
            netns: node,
            interface,
            addresses: &node_addresses,
        },
        &End {
            netns: leaf,
            interface: "eth0",
            addresses: leaf_addresses,
        },
    )?;
    for (family, address) in [("-4", node_addresses[0]), ("-6", node_addresses[1])] {
        let (address, _) = address
            .split_once('/')
            .context("an address with its prefix")?;
        leaf.ip(&[family, "route", "add", "default", "via", address])?;
    }
    Ok(())
}

fn start_httpbin(external: &Netns) -> Result<Process> {
    let mut command = external.enter().to_vec();
    command.push(binary("lab-httpbin")?.display().to_string());
    for port in HTTP_PORTS {
        command.extend(["--bind".to_owned(), format!("[::]:{port}")]);
    }
    start("lab-httpbin", &command)
}

fn start_dns(external: &Netns, directory: &Directory) -> Result<Process> {
    let records = format!("httpbin.org={HTTPBIN}\n");
    let records = directory.write("records", &records)?;
    let mut command = external.enter().to_vec();
    command.push(binary("lab-dns")?.display().to_string());
    command.extend(["--bind".to_owned(), format!("{DNS_SERVER}:53")]);
    command.extend(["--records".to_owned(), records.display().to_string()]);
    start("lab-dns", &command)
}

fn start(name: &str, command: &[String]) -> Result<Process> {
    let process = Process::spawn(name, command)?;
    process.wait_for_line("ready", START_WITHIN, |line| line == "ready")?;
    Ok(process)
}
