// SPDX-License-Identifier: Apache-2.0
//! Loads the kernel object over the pinned maps: checks what this kernel and process can do,
//! reuses the maps of an earlier agent when they fit, reports what the verifier says.

use std::{
    fs, io,
    mem::size_of,
    net::{Ipv4Addr, UdpSocket},
    path::Path,
};

use aya::{
    Ebpf, EbpfError, EbpfLoader,
    maps::{Array, Map, MapData, MapError, MapInfo, MapType},
    programs::{CgroupAttachMode, CgroupSockAddr, Program, ProgramError, ProgramFd},
    util::KernelVersion,
};
use egress_common::{
    counters::SLOTS,
    maps::{self, AgentIdentity},
    original_dst::{OriginalDst, OriginalDstKey, SocketRecord},
    redirect::{CidrKey4, CidrKey6, Destination, DestinationKey4, DestinationKey6, Settings},
    workload::{UdpPeerKey, WorkloadEntry, WorkloadKey},
};

use super::{
    bpffs::PinDirectory, cgroups::CgroupTree, error::KernelError, features::can_check_frames,
    syscall,
};

/// The kernel object, as build.rs made it; empty when there was no toolchain.
static OBJECT: &[u8] = aya::include_bytes_aligned!(env!("EGRESS_KERNEL_OBJECT"));
/// bpf_get_netns_cookie-era helpers, SO_NETNS_COOKIE, lookup-and-delete on hash maps.
const OLDEST_KERNEL: KernelVersion = KernelVersion::new(5, 15, 0);
/// Programs that stay attached to cgroups, in the order of attaching: who redirects comes last.
pub const PROGRAMS: [KernelProgram; 10] = [
    KernelProgram::new("egress_getpeername4", 29),
    KernelProgram::new("egress_getpeername6", 30),
    KernelProgram::new("egress_sockops", 3),
    KernelProgram::new("egress_sock_create", 2),
    KernelProgram::new("egress_sendmsg4", 14),
    KernelProgram::new("egress_sendmsg6", 15),
    KernelProgram::new("egress_skb_ingress", 0),
    KernelProgram::new("egress_skb", 1),
    KernelProgram::new("egress_connect4", 10),
    KernelProgram::new("egress_connect6", 11),
];
/// The program on the agent's end of pods' cables; loaded where it can be attached.
pub const TC_PROGRAM: KernelProgram = KernelProgram::new("egress_tc", 46);
/// The program that answers once, at start.
const IDENTITY_PROGRAM: &str = "egress_identity";
/// Lines of the verifier's log that an error carries.
const LOG_END_LINES: usize = 6;
/// Bits of CapEff in /proc/self/status (include/uapi/linux/capability.h).
const CAP_NET_ADMIN: u64 = 1 << 12;
const CAP_SYS_ADMIN: u64 = 1 << 21;
const CAP_BPF: u64 = 1 << 39;

/// A program and where it is attached.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct KernelProgram {
    /// Its name in the object, in `bpftool prog` and in its pins.
    pub name: &'static str,
    /// `enum bpf_attach_type` (uapi bpf.h).
    pub attach_type: u32,
}

impl KernelProgram {
    const fn new(name: &'static str, attach_type: u32) -> Self {
        Self { name, attach_type }
    }
}

/// Refuses early, with the remedy, what would fail obscurely later.
pub fn check_environment() -> Result<(), KernelError> {
    if OBJECT.is_empty() {
        return Err(KernelError::WithoutObject);
    }
    if KernelVersion::current().is_ok_and(|current| current < OLDEST_KERNEL) {
        let release = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
        return Err(KernelError::KernelTooOld {
            release: release.trim().to_owned(),
        });
    }
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    if !may_load(&status) {
        return Err(KernelError::NotPrivileged);
    }
    Ok(())
}

/// Loads maps and programs. Pinned maps that fit are reused with their content, others replaced.
pub fn load(directory: &PinDirectory) -> Result<Ebpf, KernelError> {
    let version = directory.version();
    let mut loader = EbpfLoader::new();
    for name in maps::ALL {
        let pin = version.join(name);
        remove_unfit(name, &pin)?;
        loader.map_pin_path(name, pin);
    }
    let mut ebpf = loader.load(OBJECT).map_err(|source| match source {
        EbpfError::MapError(source) if is_permission(&source) => KernelError::NotPrivileged,
        source => KernelError::Load { source },
    })?;
    let on_cables = can_check_frames().then_some(TC_PROGRAM);
    let names = PROGRAMS.into_iter().chain(on_cables);
    for name in names.map(|program| program.name).chain([IDENTITY_PROGRAM]) {
        let program = ebpf
            .program_mut(name)
            .ok_or(KernelError::NotInObject { name })?;
        let loaded = match program {
            Program::CgroupSockAddr(program) => program.load(),
            Program::CgroupSock(program) => program.load(),
            Program::CgroupSkb(program) => program.load(),
            Program::SchedClassifier(program) => program.load(),
            Program::SockOps(program) => program.load(),
            _ => Err(ProgramError::UnexpectedProgramType),
        };
        loaded.map_err(|source| explain(name, source))?;
    }
    Ok(ebpf)
}

/// The descriptor of a loaded program.
pub fn program_fd<'a>(ebpf: &'a Ebpf, name: &'static str) -> Result<&'a ProgramFd, KernelError> {
    ebpf.program(name)
        .ok_or(KernelError::NotInObject { name })?
        .fd()
        .map_err(|source| KernelError::Program {
            program: name,
            source,
        })
}

/// Takes a map out of the object in its typed form.
pub fn take_map<M: TryFrom<Map, Error = MapError>>(
    ebpf: &mut Ebpf,
    name: &'static str,
) -> Result<M, KernelError> {
    let map = ebpf
        .take_map(name)
        .ok_or(KernelError::NotInObject { name })?;
    M::try_from(map).map_err(|source| KernelError::Map {
        action: "open",
        map: name,
        source,
    })
}

/// Takes an LRU hash map out of the object, for calls that its typed form lacks.
pub fn take_map_data(ebpf: &mut Ebpf, name: &'static str) -> Result<MapData, KernelError> {
    match ebpf.take_map(name) {
        Some(Map::LruHashMap(data)) => Ok(data),
        _ => Err(KernelError::NotInObject { name }),
    }
}

/// The cgroup id of this process, as the kernel sees it; 0 when the process lies outside of the
/// mounted hierarchy (and so outside of everything that can be captured).
pub fn own_cgroup_id(ebpf: &mut Ebpf, tree: &CgroupTree) -> Result<u64, KernelError> {
    let failed = |action| move |source| KernelError::Call { action, source };
    let map_failed = |source| KernelError::Map {
        action: "use",
        map: maps::AGENT_IDENTITY,
        source,
    };
    let mut identity: Array<MapData, AgentIdentity> = take_map(ebpf, maps::AGENT_IDENTITY)?;
    let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).map_err(failed("make a socket"))?;
    let socket_cookie = syscall::socket_cookie(&socket).map_err(failed("read SO_COOKIE"))?;
    let question = AgentIdentity {
        socket_cookie,
        cgroup_id: 0,
    };
    identity.set(0, question, 0).map_err(map_failed)?;

    let attach_failed = |source| KernelError::Program {
        program: IDENTITY_PROGRAM,
        source,
    };
    let program: &mut CgroupSockAddr = ebpf
        .program_mut(IDENTITY_PROGRAM)
        .ok_or(KernelError::NotInObject {
            name: IDENTITY_PROGRAM,
        })?
        .try_into()
        .map_err(attach_failed)?;
    let link = program
        .attach(tree.root(), CgroupAttachMode::Single)
        .map_err(attach_failed)?;
    // Connecting a datagram socket sends nothing. It may fail for want of a route; the program
    // has run by then.
    let _ = socket.connect((Ipv4Addr::LOCALHOST, 9));
    program.detach(link).map_err(attach_failed)?;

    let answer = identity.get(&0, 0).map_err(map_failed)?;
    identity
        .set(0, AgentIdentity::default(), 0)
        .map_err(map_failed)?;
    Ok(answer.cgroup_id)
}

/// Unpins a map that the object could not use: aya would reuse any map under that name.
fn remove_unfit(name: &'static str, pin: &Path) -> Result<(), KernelError> {
    if !pin.exists() {
        return Ok(());
    }
    let info = MapInfo::from_pin(pin).map_err(|source| KernelError::Map {
        action: "examine pinned",
        map: name,
        source,
    })?;
    let shape = (
        info.map_type().ok(),
        info.key_size(),
        info.value_size(),
        info.max_entries(),
    );
    if expected_shape(name) == Some(shape) {
        return Ok(());
    }
    tracing::warn!(map = name, "a pinned map does not fit; replacing it");
    fs::remove_file(pin).map_err(|source| KernelError::File {
        action: "remove",
        path: pin.to_owned(),
        source,
    })
}

/// Type, key size, value size and capacity of a map, as the kernel reports them.
fn expected_shape(name: &str) -> Option<(Option<MapType>, u32, u32, u32)> {
    let lpm_prefix = size_of::<u32>();
    let (kind, key, value, capacity) = match name {
        maps::SETTINGS => (MapType::Array, 4, size_of::<Settings>(), 1),
        maps::HEARTBEAT => (MapType::Array, 4, size_of::<u64>(), 1),
        maps::WORKLOADS => (
            MapType::Hash,
            size_of::<WorkloadKey>(),
            size_of::<WorkloadEntry>(),
            maps::WORKLOADS_CAPACITY,
        ),
        maps::SIGHTINGS => (
            MapType::LruHash,
            size_of::<WorkloadKey>(),
            size_of::<u64>(),
            maps::SIGHTINGS_CAPACITY,
        ),
        maps::UDP_PEERS => (
            MapType::LruHash,
            size_of::<UdpPeerKey>(),
            size_of::<u64>(),
            maps::UDP_PEERS_CAPACITY,
        ),
        maps::EVENTS => (MapType::RingBuf, 0, 0, maps::EVENTS_SIZE),
        maps::DESTINATIONS4 => (
            MapType::Hash,
            size_of::<DestinationKey4>(),
            size_of::<Destination>(),
            maps::DESTINATIONS4_CAPACITY,
        ),
        maps::DESTINATIONS6 => (
            MapType::Hash,
            size_of::<DestinationKey6>(),
            size_of::<Destination>(),
            maps::DESTINATIONS6_CAPACITY,
        ),
        maps::DESTINATION_CIDRS4 => (
            MapType::LpmTrie,
            lpm_prefix + size_of::<CidrKey4>(),
            size_of::<Destination>(),
            maps::DESTINATION_CIDRS_CAPACITY,
        ),
        maps::DESTINATION_CIDRS6 => (
            MapType::LpmTrie,
            lpm_prefix + size_of::<CidrKey6>(),
            size_of::<Destination>(),
            maps::DESTINATION_CIDRS_CAPACITY,
        ),
        maps::SOCKETS => (MapType::SkStorage, 4, size_of::<SocketRecord>(), 0),
        maps::ORIGINAL_DST => (
            MapType::LruHash,
            size_of::<OriginalDstKey>(),
            size_of::<OriginalDst>(),
            maps::ORIGINAL_DST_CAPACITY,
        ),
        maps::COUNTERS => (MapType::PerCpuArray, 4, size_of::<u64>(), SLOTS),
        maps::AGENT_IDENTITY => (MapType::Array, 4, size_of::<AgentIdentity>(), 1),
        _ => return None,
    };
    Some((Some(kind), key as u32, value as u32, capacity as u32))
}

fn explain(program: &'static str, source: ProgramError) -> KernelError {
    match source {
        ProgramError::LoadError {
            io_error,
            verifier_log,
        } => verifier_error(program, &verifier_log.to_string(), io_error),
        source => KernelError::Program { program, source },
    }
}

/// Keeps the end of the verifier's log, which names the reason, and logs all of it.
fn verifier_error(program: &'static str, log: &str, source: io::Error) -> KernelError {
    if source.kind() == io::ErrorKind::PermissionDenied && log.trim().is_empty() {
        return KernelError::NotPrivileged;
    }
    tracing::error!(program, %log, "verifier log");
    let lines: Vec<&str> = log.lines().filter(|line| !line.is_empty()).collect();
    KernelError::Verifier {
        program,
        log_end: lines[lines.len().saturating_sub(LOG_END_LINES)..].join("; "),
        source,
    }
}

fn is_permission(error: &MapError) -> bool {
    match error {
        MapError::CreateError { io_error, .. } => {
            io_error.kind() == io::ErrorKind::PermissionDenied
        }
        _ => false,
    }
}

/// Whether a process with this /proc/self/status may load cgroup programs.
fn may_load(status: &str) -> bool {
    status
        .lines()
        .find_map(|line| line.strip_prefix("CapEff:"))
        .and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok())
        .is_some_and(|mask| {
            let has = |capability| mask & capability != 0;
            has(CAP_SYS_ADMIN) || (has(CAP_BPF) && has(CAP_NET_ADMIN))
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_map_has_an_expected_shape() {
        for name in maps::ALL {
            assert!(expected_shape(name).is_some(), "{name}");
        }
        assert!(expected_shape("OTHER").is_none());
    }

    #[test]
    fn privilege_is_sys_admin_or_bpf_with_net_admin() {
        for (mask, expected) in [
            ("000001ffffffffff", true),
            ("0000000000000000", false),
            ("0000000000200000", true),
            ("0000008000001000", true),
            ("0000008000000000", false),
            ("0000000000001000", false),
        ] {
            let status = format!("Name:\tegress\nCapEff:\t{mask}\n");
            assert_eq!(may_load(&status), expected, "{mask}");
        }
        assert!(!may_load(""));
    }

    #[test]
    fn verifier_error_carries_the_end_of_the_log() {
        let refused = io::Error::from_raw_os_error(libc::EACCES);
        let log = "one\ntwo\n3\n4\n5\n6\nreason\n";
        let text = verifier_error("egress_connect4", log, refused).to_string();
        assert!(text.contains("egress_connect4") && text.ends_with("two; 3; 4; 5; 6; reason"));
    }
}
