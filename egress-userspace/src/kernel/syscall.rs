// SPDX-License-Identifier: Apache-2.0
//! The bpf(2) commands that aya does not offer, and socket options that the kernel answers for.
//!
//! Attributes follow `union bpf_attr` of include/uapi/linux/bpf.h; a shorter attribute than the
//! kernel's is read as zero-filled.

use std::{
    ffi::CString,
    io,
    mem::{size_of, size_of_val},
    os::{
        fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd},
        unix::ffi::OsStrExt,
    },
    path::Path,
    time::Duration,
};

use nix::time::{ClockId, clock_gettime};

const BPF_OBJ_PIN: libc::c_int = 6;
const BPF_OBJ_GET: libc::c_int = 7;
const BPF_OBJ_GET_INFO_BY_FD: libc::c_int = 15;
const BPF_PROG_QUERY: libc::c_int = 16;
const BPF_MAP_LOOKUP_AND_DELETE_ELEM: libc::c_int = 21;
const BPF_LINK_CREATE: libc::c_int = 28;
const BPF_LINK_UPDATE: libc::c_int = 29;
const BPF_LINK_DETACH: libc::c_int = 34;
/// getsockopt(2) level SOL_SOCKET, Linux 5.14.
const SO_NETNS_COOKIE: libc::c_int = 71;

/// `struct bpf_link_info` as far as cgroup links and tcx links use it.
#[repr(C)]
#[derive(Debug, Clone, Copy, Default)]
pub struct LinkInfo {
    kind: u32,
    id: u32,
    program_id: u32,
    padding: u32,
    target: [u32; 2],
    attach_type: u32,
    padding_end: u32,
}

impl LinkInfo {
    /// The cgroup a cgroup link is attached to; 0 when that cgroup is gone.
    pub fn cgroup_id(&self) -> u64 {
        let [first, second] = self.target.map(u32::to_ne_bytes);
        let [a, b, c, d] = first;
        let [e, f, g, h] = second;
        u64::from_ne_bytes([a, b, c, d, e, f, g, h])
    }

    /// The interface a tcx link is attached to; 0 when it is gone.
    pub fn interface(&self) -> u32 {
        self.target[0]
    }
}

#[repr(C)]
struct ObjectPath {
    path: u64,
    fd: u32,
    flags: u32,
}

#[repr(C)]
struct InfoByFd {
    fd: u32,
    length: u32,
    info: u64,
}

#[repr(C)]
struct MapElement {
    map_fd: u32,
    padding: u32,
    key: u64,
    value: u64,
    flags: u64,
}

#[repr(C)]
struct LinkCreate {
    program_fd: u32,
    /// A cgroup's descriptor, or the index of an interface.
    target: u32,
    attach_type: u32,
    flags: u32,
}

#[repr(C)]
struct LinkUpdate {
    link_fd: u32,
    program_fd: u32,
    flags: u32,
    old_program_fd: u32,
}

/// What is asked for lies behind `attach_type`; the kernel writes its answer there, too.
#[repr(C)]
struct ProgramQuery {
    interface: u32,
    attach_type: u32,
    answer: [u64; 7],
}

/// Opens a pinned object.
pub fn open_pin(path: &Path) -> io::Result<OwnedFd> {
    let path = CString::new(path.as_os_str().as_bytes())?;
    let mut attribute = ObjectPath {
        path: path.as_ptr() as u64,
        fd: 0,
        flags: 0,
    };
    let fd = bpf(BPF_OBJ_GET, &mut attribute)?;
    // SAFETY: BPF_OBJ_GET returned a new descriptor that nothing else owns.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Pins an object under another name.
pub fn pin(object: BorrowedFd<'_>, path: &Path) -> io::Result<()> {
    let path = CString::new(path.as_os_str().as_bytes())?;
    let mut attribute = ObjectPath {
        path: path.as_ptr() as u64,
        fd: object.as_raw_fd() as u32,
        flags: 0,
    };
    bpf(BPF_OBJ_PIN, &mut attribute).map(drop)
}

/// Attaches a program to a cgroup (Linux 5.7). A link always allows other programs beside it.
pub fn link_cgroup(
    program: BorrowedFd<'_>,
    cgroup: BorrowedFd<'_>,
    attach_type: u32,
) -> io::Result<OwnedFd> {
    link(program, cgroup.as_raw_fd() as u32, attach_type)
}

/// Attaches a program to an interface (tcx, Linux 6.6).
pub fn link_interface(
    program: BorrowedFd<'_>,
    interface: u32,
    attach_type: u32,
) -> io::Result<OwnedFd> {
    link(program, interface, attach_type)
}

/// Whether programs of this attach type can be attached to interfaces.
pub fn can_link_interfaces(attach_type: u32) -> bool {
    let mut attribute = ProgramQuery {
        // No interface has this index: a kernel that knows the attach type does not find it.
        interface: 0,
        attach_type,
        answer: [0; 7],
    };
    match bpf(BPF_PROG_QUERY, &mut attribute) {
        Ok(_) => true,
        Err(error) => error.raw_os_error() != Some(libc::EINVAL),
    }
}

fn link(program: BorrowedFd<'_>, target: u32, attach_type: u32) -> io::Result<OwnedFd> {
    let mut attribute = LinkCreate {
        program_fd: program.as_raw_fd() as u32,
        target,
        attach_type,
        flags: 0,
    };
    let fd = bpf(BPF_LINK_CREATE, &mut attribute)?;
    // SAFETY: BPF_LINK_CREATE returned a new descriptor that nothing else owns.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// What the kernel knows of a link.
pub fn link_info(link: BorrowedFd<'_>) -> io::Result<LinkInfo> {
    let mut info = LinkInfo::default();
    let mut attribute = InfoByFd {
        fd: link.as_raw_fd() as u32,
        length: size_of_val(&info) as u32,
        info: &raw mut info as u64,
    };
    bpf(BPF_OBJ_GET_INFO_BY_FD, &mut attribute)?;
    Ok(info)
}

/// Replaces the program of a link atomically: no connect() in between runs without one.
pub fn update_link(link: BorrowedFd<'_>, program: BorrowedFd<'_>) -> io::Result<()> {
    let mut attribute = LinkUpdate {
        link_fd: link.as_raw_fd() as u32,
        program_fd: program.as_raw_fd() as u32,
        flags: 0,
        old_program_fd: 0,
    };
    bpf(BPF_LINK_UPDATE, &mut attribute).map(drop)
}

/// Detaches a link now, whoever else holds it (Linux 5.9).
pub fn detach_link(link: BorrowedFd<'_>) -> io::Result<()> {
    let mut link_fd = link.as_raw_fd() as u32;
    bpf(BPF_LINK_DETACH, &mut link_fd).map(drop)
}

/// Takes an element out of a hash map in one step (Linux 5.14); `None` when there is none.
pub fn take_element<K: aya::Pod, V: aya::Pod + Default>(
    map: BorrowedFd<'_>,
    key: &K,
) -> io::Result<Option<V>> {
    let mut value = V::default();
    let mut attribute = MapElement {
        map_fd: map.as_raw_fd() as u32,
        padding: 0,
        key: std::ptr::from_ref(key) as u64,
        value: &raw mut value as u64,
        flags: 0,
    };
    match bpf(BPF_MAP_LOOKUP_AND_DELETE_ELEM, &mut attribute) {
        Ok(_) => Ok(Some(value)),
        Err(error) if error.raw_os_error() == Some(libc::ENOENT) => Ok(None),
        Err(error) => Err(error),
    }
}

/// CLOCK_MONOTONIC in nanoseconds, which is what bpf_ktime_get_ns reads.
pub fn monotonic_ns() -> io::Result<u64> {
    let now = clock_gettime(ClockId::CLOCK_MONOTONIC)?;
    Ok(Duration::from(now).as_nanos() as u64)
}

/// `SO_COOKIE` (Linux 4.12): unique among all sockets since boot.
pub fn socket_cookie(socket: impl AsFd) -> io::Result<u64> {
    socket_option(socket.as_fd(), libc::SO_COOKIE)
}

/// `SO_NETNS_COOKIE` (Linux 5.14): the network namespace of the socket.
pub fn netns_cookie(socket: impl AsFd) -> io::Result<u64> {
    socket_option(socket.as_fd(), SO_NETNS_COOKIE)
}

fn socket_option(socket: BorrowedFd<'_>, name: libc::c_int) -> io::Result<u64> {
    let mut value = 0_u64;
    let mut length = size_of::<u64>() as libc::socklen_t;
    // SAFETY: the kernel writes at most `length` bytes into `value`, which outlives the call.
    let result = unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            name,
            (&raw mut value).cast(),
            &raw mut length,
        )
    };
    if result == 0 {
        Ok(value)
    } else {
        Err(io::Error::last_os_error())
    }
}

fn bpf<T>(command: libc::c_int, attribute: &mut T) -> io::Result<RawFd> {
    // SAFETY: `attribute` is the part of `union bpf_attr` that the command reads, its size is
    // passed along, and every pointer in it outlives the call.
    let result = unsafe {
        libc::syscall(
            libc::SYS_bpf,
            command,
            std::ptr::from_mut(attribute),
            size_of::<T>(),
        )
    };
    if result < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(result as RawFd)
    }
}
