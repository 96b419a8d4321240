// SPDX-License-Identifier: Apache-2.0
//! Finds the network namespaces of captured processes, enters them, and opens the proxy's listeners
//! inside. Knows nothing of workloads; `app` decides when to look and what to do with it.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    fs::{self, File},
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, UdpSocket},
    os::{fd::AsFd, unix::fs::MetadataExt},
    path::{Path, PathBuf},
    thread,
};

use super::syscall;
use crate::listen;
use nix::{
    ifaddrs::getifaddrs,
    net::if_::InterfaceFlags,
    sched::{CloneFlags, setns},
};

/// Ports tried inside a pod that has taken the usual one.
const OTHER_PORTS: usize = 16;

/// A captured process.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Member {
    /// Its pid, in the agent's pid namespace.
    pub pid: i32,
    /// Its cgroup's id.
    pub cgroup_id: u64,
    /// Its cgroup, relative to the mount, with a leading slash.
    pub cgroup: PathBuf,
}

/// Captured processes, as found at one moment.
#[derive(Debug, Clone, Default)]
pub struct Scan {
    /// By the inode number of their network namespace.
    pub namespaces: BTreeMap<u64, Vec<Member>>,
    /// Every cgroup, empty ones included: where new processes will appear.
    pub cgroups: BTreeSet<PathBuf>,
    /// Processes that live in pid namespaces which the agent cannot see.
    pub invisible: usize,
}

/// A network namespace with the proxy's listeners inside.
#[derive(Debug)]
pub struct Opened {
    /// `SO_NETNS_COOKIE`.
    pub netns_cookie: u64,
    /// Listeners of each worker, on 127.0.0.1, `::1` or both, all on one port.
    pub listeners: Vec<Vec<TcpListener>>,
    /// Their port; 0: none could be opened yet.
    pub port: u16,
    /// Whether there are listeners on 127.0.0.1.
    pub listens4: bool,
    /// Whether there are listeners on `::1`.
    pub listens6: bool,
    /// First IPv4 address that is not a loopback one.
    pub address4: Option<Ipv4Addr>,
    /// First IPv6 address that is neither loopback nor link-local.
    pub address6: Option<Ipv6Addr>,
}

/// The inode number of the agent's own network namespace.
///
/// # Errors
/// When /proc is not mounted.
pub fn own_inode() -> io::Result<u64> {
    fs::metadata("/proc/self/ns/net").map(|metadata| metadata.ino())
}

/// The inode number of a process's network namespace.
///
/// # Errors
/// When it has ended.
pub fn inode_of(pid: i32) -> io::Result<u64> {
    fs::metadata(format!("/proc/{pid}/ns/net")).map(|metadata| metadata.ino())
}

/// Inode numbers of the network namespaces that are mounted, as container runtimes and ip-netns(8) do
/// to keep them: in the agent's mount namespace or in that of the node's first process.
pub fn mounted() -> BTreeSet<u64> {
    ["/proc/self/mountinfo", "/proc/1/mountinfo"]
        .iter()
        .filter_map(|path| fs::read_to_string(path).ok())
        .flat_map(|text| mounted_in(&text))
        .collect()
}

/// proc_pid_mountinfo(5): the root of an nsfs mount is `net:[INODE]`.
fn mounted_in(mountinfo: &str) -> BTreeSet<u64> {
    mountinfo
        .lines()
        .filter_map(|line| {
            line.split(' ')
                .nth(3)?
                .strip_prefix("net:[")?
                .strip_suffix(']')
        })
        .filter_map(|inode| inode.parse().ok())
        .collect()
}

/// Looks at every process of these cgroups and those below. `mount` is where the hierarchy is
/// mounted. What vanishes meanwhile is left out.
pub fn scan(roots: &[PathBuf], mount: &Path) -> Scan {
    let mut found = Scan::default();
    let mut left: VecDeque<PathBuf> = roots.iter().filter_map(|p| p.canonicalize().ok()).collect();
    while let Some(directory) = left.pop_front() {
        let Ok(entries) = directory.read_dir() else {
            continue;
        };
        for entry in entries.flatten() {
            if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                left.push_back(entry.path());
            }
        }
        members(&directory, mount, &mut found);
        found.cgroups.insert(directory);
    }
    found
}

fn members(directory: &Path, mount: &Path, found: &mut Scan) {
    let Ok(pids) = fs::read_to_string(directory.join("cgroup.procs")) else {
        return;
    };
    if pids.is_empty() {
        return;
    }
    let Ok(cgroup_id) = fs::metadata(directory).map(|metadata| metadata.ino()) else {
        return;
    };
    let relative = directory.strip_prefix(mount).unwrap_or(directory);
    let cgroup = Path::new("/").join(relative);
    for pid in pids.lines().filter_map(|line| line.parse::<i32>().ok()) {
        if pid == 0 {
            found.invisible += 1;
            continue;
        }
        if let Ok(inode) = inode_of(pid) {
            found.namespaces.entry(inode).or_default().push(Member {
                pid,
                cgroup_id,
                cgroup: cgroup.clone(),
            });
        }
    }
}

/// Runs `work` on a thread inside the network namespace of a process, provided that it is the one
/// with that inode number. Sockets that `work` makes stay there; the namespace is not held
/// otherwise.
///
/// # Errors
/// When the process has ended or lives elsewhere by now, when the namespace cannot be entered
/// (CAP_SYS_ADMIN), or when `work` fails.
pub fn enter<T: Send>(
    pid: i32,
    inode: u64,
    work: impl FnOnce() -> io::Result<T> + Send,
) -> io::Result<T> {
    let namespace = File::open(format!("/proc/{pid}/ns/net"))?;
    if namespace.metadata()?.ino() != inode {
        return Err(io::ErrorKind::NotFound.into());
    }
    thread::scope(|scope| {
        let thread = thread::Builder::new()
            .name("netns".to_owned())
            .spawn_scoped(scope, || {
                setns(&namespace, CloneFlags::CLONE_NEWNET)?;
                work()
            })?;
        thread
            .join()
            .unwrap_or_else(|_| Err(io::Error::other("a thread in a network namespace panicked")))
    })
}

/// Opens listeners in the current network namespace for every worker, on `port` or, where that is
/// taken, on another. Loopback that is down, or without IPv6, gives no listener; ask again later.
///
/// # Errors
/// When the namespace has no cookie (Linux before 5.14).
pub fn open(port: u16, workers: usize) -> io::Result<Opened> {
    let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))?;
    let netns_cookie = syscall::netns_cookie(socket.as_fd())?;
    let (address4, address6) = own_addresses();
    let mut opened = Opened {
        netns_cookie,
        listeners: Vec::new(),
        port: 0,
        listens4: false,
        listens6: false,
        address4,
        address6,
    };
    let candidates = std::iter::once(port).chain(std::iter::repeat_n(0, OTHER_PORTS));
    for candidate in candidates {
        match on_both(candidate, workers) {
            Ok((port, listeners4, listeners6)) => {
                opened.port = port;
                opened.listens4 = true;
                opened.listens6 = listeners6.is_some();
                opened.listeners = join(listeners4, listeners6.unwrap_or_default());
                return Ok(opened);
            }
            Err(error) if error.kind() == io::ErrorKind::AddrInUse => {}
            Err(error) if error.kind() == io::ErrorKind::AddrNotAvailable => return Ok(opened),
            Err(error) => return Err(error),
        }
    }
    Ok(opened)
}

type Listening = (u16, Vec<TcpListener>, Option<Vec<TcpListener>>);

/// One port for both families; `AddrInUse` when either has it taken.
fn on_both(port: u16, workers: usize) -> io::Result<Listening> {
    let v4 = listeners(SocketAddr::new(Ipv4Addr::LOCALHOST.into(), port), workers)?;
    let port = match v4.first() {
        Some(listener) => listener.local_addr()?.port(),
        None => port,
    };
    match listeners(SocketAddr::new(Ipv6Addr::LOCALHOST.into(), port), workers) {
        Ok(v6) => Ok((port, v4, Some(v6))),
        Err(error) if error.kind() == io::ErrorKind::AddrInUse => Err(error),
        // No IPv6 here.
        Err(_) => Ok((port, v4, None)),
    }
}

fn listeners(address: SocketAddr, workers: usize) -> io::Result<Vec<TcpListener>> {
    let address = listen::probe(address)?;
    (0..workers).map(|_| listen::listen(address)).collect()
}

fn join(v4: Vec<TcpListener>, v6: Vec<TcpListener>) -> Vec<Vec<TcpListener>> {
    let mut v6 = v6.into_iter();
    v4.into_iter()
        .map(|listener| std::iter::once(listener).chain(v6.next()).collect())
        .collect()
}

/// The addresses by which others know this namespace.
pub fn own_addresses() -> (Option<Ipv4Addr>, Option<Ipv6Addr>) {
    let (mut v4, mut v6) = (None, None);
    for interface in getifaddrs().into_iter().flatten() {
        if interface.flags.contains(InterfaceFlags::IFF_LOOPBACK) {
            continue;
        }
        let Some(address) = interface.address else {
            continue;
        };
        let found = address
            .as_sockaddr_in()
            .map(|address| IpAddr::V4(address.ip()))
            .or_else(|| address.as_sockaddr_in6().map(|address| address.ip().into()));
        match found {
            Some(IpAddr::V4(address)) => v4 = v4.or(Some(address)),
            Some(IpAddr::V6(address)) if !address.is_unicast_link_local() => {
                v6 = v6.or(Some(address));
            }
            _ => {}
        }
    }
    (v4, v6)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mounted_network_namespaces_are_found_among_other_mounts() {
        let mountinfo = "24 1 0:22 / /proc rw shared:5 - proc proc rw\n\
                         310 26 0:4 net:[4026532281] /run/netns/pod rw shared:7 - nsfs nsfs rw\n\
                         311 26 0:4 mnt:[4026532290] /run/mnt/x rw - nsfs nsfs rw\n";
        assert_eq!(mounted_in(mountinfo), BTreeSet::from([4026532281]));
    }
}
