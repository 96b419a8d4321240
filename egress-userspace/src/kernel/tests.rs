// SPDX-License-Identifier: Apache-2.0
//! Capture on the running kernel: real programs, a cgroup and a pin directory of the test's own.
//!
//! Needs root; for another user each test says that it was not run. The captured process is this
//! test binary again, started inside the cgroup with [`captured_process`] as its only test.

use std::{
    env, fs,
    io::{self, Write},
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream},
    os::{fd::AsRawFd, unix::process::CommandExt},
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::Duration,
};

use egress_common::maps::LAYOUT_VERSION;

use super::{
    Capture, CaptureSettings, DestinationPlan, FailurePolicy, KernelError, PROGRAMS, Workloads,
    cgroups::cgroup2_mounts, dump_maps, original_dst::OriginalDestination,
};

/// Tells [`captured_process`] where to connect.
const CONNECT_TO: &str = "EGRESS_KERNEL_TEST_CONNECT_TO";

/// A cgroup and a pin directory, gone when dropped.
struct Lab {
    cgroup: PathBuf,
    bpffs: PathBuf,
    proxy: Proxy,
}

/// Listeners on both loopback addresses, same port.
struct Proxy {
    v4: TcpListener,
    v6: TcpListener,
    port: u16,
}

impl Lab {
    /// `None`, with a message, when the caller may not run privileged tests.
    fn new(test: &str) -> Option<Self> {
        if !nix::unistd::geteuid().is_root() {
            eprintln!("NOT RUN: {test} needs root");
            return None;
        }
        let mounts = fs::read_to_string("/proc/self/mounts").unwrap();
        let mount = cgroup2_mounts(&mounts).next().expect("a cgroup2 mount");
        let name = format!("egress-test-kernel-{test}-{}", std::process::id());
        let cgroup = mount.join(&name);
        fs::create_dir(&cgroup).unwrap();
        Some(Self {
            cgroup,
            bpffs: Path::new("/sys/fs/bpf").join(name),
            proxy: Proxy::listen(),
        })
    }

    fn settings(&self) -> CaptureSettings {
        CaptureSettings {
            cgroups: vec![self.cgroup.clone()],
            redirect_ips: vec![Ipv4Addr::LOCALHOST.into(), Ipv6Addr::LOCALHOST.into()],
            port: self.proxy.port,
            bpffs: self.bpffs.clone(),
            failure_policy: FailurePolicy::Closed,
            internal_cidrs: vec!["127.0.0.0/8".parse().unwrap(), "::1/128".parse().unwrap()],
            workloads: Workloads::default(),
        }
    }

    /// Runs a process in the cgroup that connects to each address, keeping the sockets open, and
    /// returns what it saw: `peer ADDRESS` or `error KIND` for each.
    fn connect(&self, addresses: &[&str]) -> Vec<String> {
        self.connect_from(&fs::File::open("/proc/self/ns/net").unwrap(), addresses)
    }

    /// As [`Lab::connect`], in a network namespace.
    fn connect_from(&self, netns: &fs::File, addresses: &[&str]) -> Vec<String> {
        let netns = netns.as_raw_fd();
        let procs = self.cgroup.join("cgroup.procs");
        let mut command = Command::new(env::current_exe().unwrap());
        command
            .args(["--exact", "kernel::tests::captured_process", "--nocapture"])
            .env(CONNECT_TO, addresses.join(" "))
            .stdin(Stdio::null());
        // SAFETY: between fork and exec the closure only opens and writes a file and enters a
        // namespace; the path was allocated before.
        unsafe {
            command.pre_exec(move || {
                let mut procs = fs::OpenOptions::new().write(true).open(&procs)?;
                procs.write_all(b"0")?;
                match libc::setns(netns, libc::CLONE_NEWNET) {
                    0 => Ok(()),
                    _ => Err(io::Error::last_os_error()),
                }
            });
        }
        let output = command.output().unwrap();
        assert!(output.status.success(), "{output:?}");
        String::from_utf8(output.stdout)
            .unwrap()
            .lines()
            .filter_map(|line| line.split_once("connected: "))
            .map(|(_, seen)| seen.to_owned())
            .collect()
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        // A failed test may leave pins; a directory of pins goes like any other.
        let _ = fs::remove_dir_all(&self.bpffs);
        let _ = fs::remove_dir(&self.cgroup);
    }
}

impl Proxy {
    fn listen() -> Self {
        loop {
            let v4 = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
            let port = v4.local_addr().unwrap().port();
            match TcpListener::bind((Ipv6Addr::LOCALHOST, port)) {
                Ok(v6) => {
                    v4.set_nonblocking(true).unwrap();
                    v6.set_nonblocking(true).unwrap();
                    return Self { v4, v6, port };
                }
                Err(error) => assert_eq!(error.kind(), io::ErrorKind::AddrInUse),
            }
        }
    }

    /// Accepts everything in the queues, as (local, peer); v4 first, each in the order of arrival.
    fn accept_all(&self) -> Vec<(SocketAddr, SocketAddr)> {
        let mut accepted = Vec::new();
        for listener in [&self.v4, &self.v6] {
            while let Ok((stream, peer)) = listener.accept() {
                accepted.push((stream.local_addr().unwrap(), peer));
            }
        }
        accepted
    }
}

fn plan(redirected: &[(&str, u16)]) -> DestinationPlan {
    let mut plan = DestinationPlan::default();
    plan.pass("127.0.0.0/8".parse().unwrap());
    plan.pass("::1/128".parse().unwrap());
    for (network, port) in redirected {
        let network = network
            .parse()
            .unwrap_or_else(|_| network.parse::<IpAddr>().unwrap().into());
        plan.redirect(network, *port);
    }
    plan
}

fn count(capture: &Capture, program: &str, outcome: &str) -> u64 {
    let readings = capture.counters().unwrap();
    let reading = readings
        .iter()
        .find(|reading| reading.program == program && reading.outcome == outcome);
    reading.expect("the outcome exists").count
}

/// bpftool is a user interface: entries show as named fields, octet by octet.
fn assert_dump_names_fields(pin: &Path) {
    let output = Command::new("bpftool")
        .args(["-j", "map", "dump", "pinned"])
        .arg(pin)
        .output()
        .expect("bpftool is installed by `cargo xtask setup`");
    let entries: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    let entry = &entries[0]["formatted"];
    assert_eq!(
        entry["key"],
        serde_json::json!({
            "address": {"octets": [203, 0, 113, 5]},
            "port": {"be": [0, 80]},
            "protocol": 6,
            "padding": 0,
        }),
        "{entries}"
    );
    assert_eq!(
        entry["value"],
        serde_json::json!({"action": 2, "address_bits": 32})
    );
}

/// Not a test by itself: the process that [`Lab::connect`] starts.
#[test]
fn captured_process() {
    let Ok(addresses) = env::var(CONNECT_TO) else {
        return;
    };
    let mut open = Vec::new();
    for address in addresses.split(' ') {
        match TcpStream::connect(address) {
            Ok(stream) => {
                println!("connected: peer {}", stream.peer_addr().unwrap());
                open.push(stream);
            }
            Err(error) => println!("connected: error {:?}", error.kind()),
        }
    }
}

#[test]
fn registered_destinations_reach_the_proxy_with_their_original() {
    let Some(lab) = Lab::new("originals") else {
        return;
    };
    let mut capture = Capture::start(&lab.settings()).unwrap();
    capture
        .publish(&plan(&[
            ("203.0.113.5", 80),
            ("2001:db8::5", 80),
            ("198.51.100.0/24", 443),
            ("2001:db8:1::/48", 443),
        ]))
        .unwrap();
    let destinations = [
        "203.0.113.5:80",
        "[::ffff:203.0.113.5]:80",
        "198.51.100.77:443",
        "[2001:db8::5]:80",
        "[2001:db8:1::9]:443",
    ];
    assert_dump_names_fields(&lab.bpffs.join(format!("v{LAYOUT_VERSION}/DESTINATIONS4")));
    let seen = lab.connect(&destinations);
    let expected: Vec<String> = destinations
        .iter()
        .map(|address| format!("peer {address}"))
        .collect();
    assert_eq!(seen, expected, "getpeername shows the original");

    let originals = capture.originals();
    let accepted = lab.proxy.accept_all();
    let taken: Vec<_> = accepted
        .iter()
        .map(|(local, peer)| {
            originals
                .take(None, *local, *peer)
                .unwrap()
                .expect("recorded")
        })
        .collect();
    let addresses: Vec<_> = taken.iter().map(|taken| taken.destination).collect();
    assert_eq!(
        addresses,
        [
            "203.0.113.5:80",
            "203.0.113.5:80",
            "198.51.100.77:443",
            "[2001:db8::5]:80",
            "[2001:db8:1::9]:443",
        ]
        .map(|address| OriginalDestination(address.parse().unwrap()))
    );
    let cgroup = super::cgroups::cgroup_id(&fs::File::open(&lab.cgroup).unwrap()).unwrap();
    assert!(taken.iter().all(|taken| taken.cgroup_id == cgroup));
    let (local, peer) = accepted[0];
    assert!(
        originals.take(None, local, peer).unwrap().is_none(),
        "taken only once"
    );
    for (program, outcome, expected) in [
        ("connect4", "redirected", 2),
        ("connect6", "redirected", 3),
        ("sockops", "published", 5),
        ("sockops", "publish_failed", 0),
        ("getpeername4", "restored", 2),
        ("getpeername6", "restored", 3),
    ] {
        assert_eq!(count(&capture, program, outcome), expected, "{program}");
    }
    capture.stop().unwrap();
}

#[test]
fn other_destinations_are_left_alone() {
    let Some(lab) = Lab::new("others") else {
        return;
    };
    let elsewhere = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let port = elsewhere.local_addr().unwrap().port();
    let mut capture = Capture::start(&lab.settings()).unwrap();
    // Registered everywhere on this port; the loopback network stays internal.
    capture
        .publish(&plan(&[("0.0.0.0/0", port), ("203.0.113.5", 80)]))
        .unwrap();
    let internal = format!("127.0.0.1:{port}");
    let direct = format!("127.0.0.1:{}", lab.proxy.port);
    let seen = lab.connect(&[&internal, &direct]);
    assert_eq!(seen, [format!("peer {internal}"), format!("peer {direct}")]);
    assert_eq!(count(&capture, "connect4", "internal"), 2);
    assert_eq!(count(&capture, "connect4", "redirected"), 0);

    let accepted = lab.proxy.accept_all();
    let (local, peer) = accepted[0];
    assert!(
        capture
            .originals()
            .take(None, local, peer)
            .unwrap()
            .is_none(),
        "a connection straight to the proxy has no original destination"
    );

    capture.publish(&plan(&[])).unwrap();
    assert_eq!(lab.connect(&[&internal]).len(), 1);
    assert_eq!(count(&capture, "connect4", "internal"), 3);
    capture.stop().unwrap();
}

#[test]
fn own_traffic_is_not_captured() {
    let Some(lab) = Lab::new("own") else {
        return;
    };
    let settings = CaptureSettings {
        cgroups: vec![own_cgroup()],
        ..lab.settings()
    };
    let mut capture = Capture::start(&settings).unwrap();
    let elsewhere = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let address = elsewhere.local_addr().unwrap();
    let mut wanted = DestinationPlan::default();
    wanted.redirect(address.ip().into(), address.port());
    capture.publish(&wanted).unwrap();
    let before = count(&capture, "connect4", "own_traffic");
    let stream = TcpStream::connect(address).unwrap();
    assert_eq!(stream.peer_addr().unwrap(), address);
    assert!(count(&capture, "connect4", "own_traffic") > before);
    assert!(elsewhere.accept().is_ok());
    capture.stop().unwrap();
}

#[test]
fn connections_that_nobody_accepts_are_swept() {
    let Some(lab) = Lab::new("sweep") else {
        return;
    };
    let mut capture = Capture::start(&lab.settings()).unwrap();
    capture.publish(&plan(&[("203.0.113.5", 80)])).unwrap();
    lab.connect(&["203.0.113.5:80", "203.0.113.5:80"]);
    let originals = capture.originals();
    let hour = Duration::from_secs(3600);
    assert_eq!(originals.sweep(hour).unwrap(), 0, "fresh ones stay");
    assert_eq!(originals.sweep(Duration::ZERO).unwrap(), 2);
    for (local, peer) in lab.proxy.accept_all() {
        assert!(originals.take(None, local, peer).unwrap().is_none());
    }
    capture.stop().unwrap();
}

#[test]
fn without_a_reachable_redirect_address_the_failure_policy_decides() {
    let Some(lab) = Lab::new("policy") else {
        return;
    };
    // Nobody has opened a listener in this namespace.
    let pod = Pod::new(132);
    for (policy, outcome, seen) in [
        (
            FailurePolicy::Closed,
            "no_redirect_address_denied",
            "error PermissionDenied",
        ),
        (
            FailurePolicy::Open,
            "no_redirect_address_passed",
            "error ConnectionRefused",
        ),
    ] {
        let closed_port = TcpListener::bind((pod.node, 0)).unwrap();
        let address = closed_port.local_addr().unwrap();
        drop(closed_port);
        let settings = CaptureSettings {
            failure_policy: policy,
            ..lab.settings()
        };
        let mut capture = Capture::start(&settings).unwrap();
        let mut wanted = DestinationPlan::default();
        wanted.redirect(address.ip().into(), address.port());
        capture.publish(&wanted).unwrap();
        let found = lab.connect_from(&pod.netns(), &[&address.to_string()]);
        assert_eq!(found, [seen], "{policy:?}");
        assert_eq!(count(&capture, "connect4", outcome), 1, "{policy:?}");
        capture.stop().unwrap();
    }
}

#[test]
fn second_agent_is_refused_and_told_who_holds_the_pins() {
    let Some(lab) = Lab::new("held") else {
        return;
    };
    let capture = Capture::start(&lab.settings()).unwrap();
    match Capture::start(&lab.settings()) {
        Err(KernelError::Held { pid, bpffs }) => {
            assert_eq!(pid, std::process::id().to_string());
            assert_eq!(bpffs, lab.bpffs);
        }
        other => panic!("{other:?}"),
    }
    capture.stop().unwrap();
}

#[test]
fn pins_of_a_killed_agent_are_taken_over() {
    let Some(lab) = Lab::new("takeover") else {
        return;
    };
    let mut capture = Capture::start(&lab.settings()).unwrap();
    capture.publish(&plan(&[("203.0.113.5", 80)])).unwrap();
    // What a kill does: descriptors are closed, nothing is undone.
    drop(capture);
    assert_eq!(lab.connect(&["203.0.113.5:80"]), ["peer 203.0.113.5:80"]);
    lab.proxy.accept_all();

    let links = || {
        let links = lab
            .bpffs
            .join(format!("v{LAYOUT_VERSION}/links"))
            .read_dir()
            .unwrap();
        links
            .map(|link| link.unwrap().file_name())
            .collect::<Vec<_>>()
    };
    let before = links();
    let mut capture = Capture::start(&lab.settings()).unwrap();
    assert_eq!(links(), before);
    assert_eq!(count(&capture, "connect4", "redirected"), 1, "map reused");
    assert_eq!(
        lab.connect(&["203.0.113.5:80"]),
        ["peer 203.0.113.5:80"],
        "the old table is in force until the first plan"
    );
    let (local, peer) = lab.proxy.accept_all()[0];
    assert!(
        capture
            .originals()
            .take(None, local, peer)
            .unwrap()
            .is_some()
    );
    capture.publish(&plan(&[])).unwrap();
    let dump = dump_maps(&lab.bpffs).unwrap();
    assert_eq!(dump["DESTINATIONS4"].as_array().unwrap().len(), 0);
    capture.stop().unwrap();
}

#[test]
fn lock_of_a_killed_agent_is_removed_by_the_next_start_of_any() {
    let (Some(killed), Some(next)) = (Lab::new("lock-killed"), Lab::new("lock-next")) else {
        return;
    };
    // Tests beside this one come and go: only what names these two counts.
    let locks = || {
        let files = Path::new("/run/egress").read_dir().unwrap().flatten();
        let texts = files.map(|file| fs::read_to_string(file.path()).unwrap_or_default());
        let all: String = texts.collect();
        [&killed, &next].map(|lab| all.contains(lab.bpffs.to_str().unwrap()))
    };
    let capture = Capture::start(&killed.settings()).unwrap();
    let other = Capture::start(&next.settings()).unwrap();
    assert_eq!(locks(), [true, true], "that of a running agent stays");
    other.stop().unwrap();
    drop(capture);
    let other = Capture::start(&next.settings()).unwrap();
    assert_eq!(locks(), [false, true]);
    other.stop().unwrap();
    assert_eq!(locks(), [false, false], "a clean stop leaves nothing");
}

#[test]
fn link_of_a_removed_cgroup_is_replaced() {
    let Some(lab) = Lab::new("cgroup-gone") else {
        return;
    };
    drop(Capture::start(&lab.settings()).unwrap());
    fs::remove_dir(&lab.cgroup).unwrap();
    fs::create_dir(&lab.cgroup).unwrap();
    let mut capture = Capture::start(&lab.settings()).unwrap();
    assert_eq!(
        lab.bpffs
            .join(format!("v{LAYOUT_VERSION}/links"))
            .read_dir()
            .unwrap()
            .count(),
        PROGRAMS.len(),
        "links to the old cgroup are gone"
    );
    capture.publish(&plan(&[("203.0.113.5", 80)])).unwrap();
    assert_eq!(lab.connect(&["203.0.113.5:80"]), ["peer 203.0.113.5:80"]);
    capture.stop().unwrap();
}

#[test]
fn stop_leaves_no_pins_and_no_capture() {
    let Some(lab) = Lab::new("stop") else {
        return;
    };
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let address = listener.local_addr().unwrap();
    let mut capture = Capture::start(&lab.settings()).unwrap();
    let mut wanted = DestinationPlan::default();
    wanted.redirect(address.ip().into(), address.port());
    capture.publish(&wanted).unwrap();
    lab.connect(&[&address.to_string()]);
    assert_eq!(lab.proxy.accept_all().len(), 1);
    capture.stop().unwrap();
    assert!(!lab.bpffs.exists());
    lab.connect(&[&address.to_string()]);
    assert!(lab.proxy.accept_all().is_empty());
}

#[test]
fn pin_directory_outside_of_a_bpf_file_system_gets_one() {
    let Some(lab) = Lab::new("mount") else {
        return;
    };
    let bpffs = env::temp_dir().join(format!("egress-test-kernel-{}", std::process::id()));
    let settings = CaptureSettings {
        bpffs: bpffs.clone(),
        ..lab.settings()
    };
    let capture = Capture::start(&settings).unwrap();
    assert!(bpffs.join(format!("v{LAYOUT_VERSION}/SETTINGS")).exists());
    capture.stop().unwrap();
    assert!(!bpffs.exists());
}

/// A network namespace joined to ours by a veth pair, gone when dropped.
struct Pod {
    name: String,
    node: Ipv4Addr,
    address: Ipv4Addr,
}

impl Pod {
    /// The fourth octets of its and the node's end are above `base`.
    fn new(base: u8) -> Self {
        let pod = Self {
            name: format!("egrk{}-{base}", std::process::id() % 100_000),
            node: Ipv4Addr::new(192, 0, 2, base + 1),
            address: Ipv4Addr::new(192, 0, 2, base + 2),
        };
        let Self {
            name,
            node,
            address,
        } = &pod;
        for arguments in [
            format!("netns add {name}"),
            format!("link add {name} type veth peer name eth0 netns {name}"),
            format!("addr add {node}/30 dev {name}"),
            format!("link set {name} up"),
            format!("-n {name} addr add {address}/30 dev eth0"),
            format!("-n {name} link set eth0 up"),
            format!("-n {name} route add default via {node}"),
        ] {
            let status = Command::new("ip").args(arguments.split(' ')).status();
            assert!(status.unwrap().success(), "ip {arguments}");
        }
        pod
    }

    fn netns(&self) -> fs::File {
        fs::File::open(Path::new("/run/netns").join(&self.name)).unwrap()
    }
}

impl Drop for Pod {
    fn drop(&mut self) {
        let _ = Command::new("ip")
            .args(["netns", "del", &self.name])
            .status();
    }
}

#[test]
fn pod_in_its_own_network_namespace_reaches_the_node_address() {
    let Some(lab) = Lab::new("pod") else {
        return;
    };
    let pod = Pod::new(128);
    let node = TcpListener::bind((pod.node, lab.proxy.port)).unwrap();
    let settings = CaptureSettings {
        redirect_ips: vec![
            Ipv4Addr::LOCALHOST.into(),
            Ipv6Addr::LOCALHOST.into(),
            pod.node.into(),
        ],
        ..lab.settings()
    };
    let mut capture = Capture::start(&settings).unwrap();
    capture
        .publish(&plan(&[("203.0.113.5", 80), ("2001:db8::5", 80)]))
        .unwrap();
    // A native IPv6 destination takes the v4 node address in its mapped form.
    let destinations = ["203.0.113.5:80", "[2001:db8::5]:80"];
    let seen = lab.connect_from(&pod.netns(), &destinations);
    assert_eq!(seen, destinations.map(|address| format!("peer {address}")));
    let originals = capture.originals();
    for expected in destinations {
        let (stream, peer) = node.accept().unwrap();
        assert_eq!(peer.ip(), IpAddr::from(pod.address));
        let taken = originals
            .take(None, stream.local_addr().unwrap(), peer)
            .unwrap()
            .expect("recorded");
        assert_eq!(taken.destination.0, expected.parse().unwrap());
    }
    assert_eq!(lab.connect(&destinations[..1]).len(), 1);
    assert_eq!(
        lab.proxy.accept_all().len(),
        1,
        "loopback where it leads here"
    );
    capture.stop().unwrap();
}

#[test]
fn workload_is_named_by_its_cgroup() {
    let Some(lab) = Lab::new("workloads") else {
        return;
    };
    let file = env::temp_dir().join(format!("egress-test-kernel-{}.yaml", std::process::id()));
    fs::write(
        &file,
        "- {cgroup: '/egress-test-kernel-workloads-*', namespace: istio-demo, name: sleep}\n",
    )
    .unwrap();
    let settings = CaptureSettings {
        workloads: Workloads::from_yaml_file(&file).unwrap(),
        ..lab.settings()
    };
    fs::remove_file(&file).unwrap();
    let mut capture = Capture::start(&settings).unwrap();
    capture.publish(&plan(&[("203.0.113.5", 80)])).unwrap();
    lab.connect(&["203.0.113.5:80"]);
    let (local, peer) = lab.proxy.accept_all()[0];
    let taken = capture
        .originals()
        .take(None, local, peer)
        .unwrap()
        .unwrap();
    let workload = taken.workload.expect("the pattern matches");
    assert_eq!(
        (workload.namespace.as_str(), workload.name.as_str()),
        ("istio-demo", "sleep")
    );
    capture.stop().unwrap();
}

/// The cgroup v2 directory of this process.
fn own_cgroup() -> PathBuf {
    let mounts = fs::read_to_string("/proc/self/mounts").unwrap();
    let mount = cgroup2_mounts(&mounts).next().expect("a cgroup2 mount");
    let cgroup = fs::read_to_string("/proc/self/cgroup").unwrap();
    let path = cgroup
        .lines()
        .find_map(|line| line.strip_prefix("0::/"))
        .expect("a cgroup v2 line");
    mount.join(path)
}
