// SPDX-License-Identifier: Apache-2.0
//! The two families of netlink that the agent speaks: rtnetlink(7), to find the agent's end of a
//! pod's cable, and sock_diag(7), to list sockets and to destroy some.
//!
//! A socket speaks for the network namespace of the thread that makes it. Messages are made and
//! read octet by octet, in host byte order as the kernel defines them.

use std::{
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd},
};

use nix::sys::socket::{
    AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, recv, send, socket,
};

/// Octets of `struct nlmsghdr`.
const HEADER: usize = 16;
/// Octets read at once; the kernel fills at most 32 KiB for a dump.
const BUFFER: usize = 64 << 10;
const NLM_F_REQUEST: u16 = 0x1;
const NLM_F_ACK: u16 = 0x4;
const NLM_F_DUMP: u16 = 0x300;
const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;

const RTM_NEWLINK: u16 = 16;
const RTM_GETLINK: u16 = 18;
const RTM_NEWNSID: u16 = 88;
const RTM_GETNSID: u16 = 90;
/// Octets of `struct ifinfomsg` and of `struct rtgenmsg` with its padding.
const IFINFOMSG: usize = 16;
const RTGENMSG: usize = 4;
const IFLA_LINK: u16 = 5;
const IFLA_LINKINFO: u16 = 18;
const IFLA_LINK_NETNSID: u16 = 37;
const IFLA_INFO_KIND: u16 = 1;
const NETNSA_NSID: u16 = 1;
const NETNSA_FD: u16 = 3;
/// The flags of an attribute's type.
const NLA_TYPE_MASK: u16 = 0x3fff;

const SOCK_DIAG_BY_FAMILY: u16 = 20;
const SOCK_DESTROY: u16 = 21;
/// Octets of `struct inet_diag_sockid` and of `struct inet_diag_msg`.
const SOCKID: usize = 48;
const INET_DIAG_MSG: usize = 72;
/// Linux 5.9.
const INET_DIAG_CGROUP_ID: u16 = 21;
const AF_INET: u8 = 2;
const AF_INET6: u8 = 10;
/// `enum` of include/net/tcp_states.h.
const TCP_ESTABLISHED: u8 = 1;
const TCP_TIME_WAIT: u8 = 6;
const TCP_LISTEN: u8 = 10;

/// One end of a cable (veth).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Cable {
    /// Its interface, in the namespace that was asked.
    pub index: u32,
    /// The interface at the other end, in the other's namespace.
    pub other: u32,
    /// The other's namespace, as this one numbers it; `None`: the same namespace.
    pub other_netns: Option<i32>,
}

/// A socket of the namespace that was asked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct InetSocket {
    /// IP protocol number.
    pub protocol: u8,
    /// Its own end.
    pub local: SocketAddr,
    /// The other end; unspecified when there is none.
    pub remote: SocketAddr,
    /// Its cgroup, where the kernel tells.
    pub cgroup_id: Option<u64>,
    /// Whether it waits for connections.
    pub listens: bool,
    family: u8,
    id: [u8; SOCKID],
}

/// A netlink socket of one family.
#[derive(Debug)]
struct Netlink {
    socket: OwnedFd,
    sequence: u32,
}

/// The cables of the current network namespace.
///
/// # Errors
/// When the kernel refuses the question.
pub fn cables() -> io::Result<Vec<Cable>> {
    let mut found = Vec::new();
    let mut netlink = Netlink::new(SockProtocol::NetlinkRoute)?;
    netlink.dump(RTM_GETLINK, &[0; IFINFOMSG], |kind, body| {
        if kind == RTM_NEWLINK {
            found.extend(cable(body));
        }
    })?;
    Ok(found)
}

/// How the current namespace numbers another one; `None` when it does not (no interface of one has
/// its other end in the other).
///
/// # Errors
/// When the kernel refuses the question.
pub fn number_of(netns: BorrowedFd<'_>) -> io::Result<Option<i32>> {
    let mut body = vec![0; RTGENMSG];
    push_attribute(&mut body, NETNSA_FD, &netns.as_raw_fd().to_ne_bytes());
    let mut number = None;
    let mut netlink = Netlink::new(SockProtocol::NetlinkRoute)?;
    netlink.ask(RTM_GETNSID, &body, |kind, body| {
        if kind == RTM_NEWNSID {
            number = attribute(body.get(RTGENMSG..).unwrap_or_default(), NETNSA_NSID)
                .and_then(word)
                .map(u32::cast_signed);
        }
    })?;
    Ok(number.filter(|number| *number >= 0))
}

/// The sockets of a protocol (TCP or UDP) in the current namespace; those on their way out
/// (TIME_WAIT) are left out.
///
/// # Errors
/// When the kernel lacks sock_diag for it.
pub fn sockets(protocol: u8) -> io::Result<Vec<InetSocket>> {
    let mut found = Vec::new();
    let mut netlink = Netlink::new(SockProtocol::NetlinkSockDiag)?;
    for family in [AF_INET, AF_INET6] {
        let states = !(1_u32 << TCP_TIME_WAIT);
        let body = diag_request(family, protocol, states, &[0; SOCKID]);
        netlink.dump(SOCK_DIAG_BY_FAMILY, &body, |kind, body| {
            if kind == SOCK_DIAG_BY_FAMILY {
                found.extend(inet_socket(protocol, body));
            }
        })?;
    }
    Ok(found)
}

/// Ends sockets (Linux 4.5 for TCP, 4.9 for UDP; CONFIG_INET_DIAG_DESTROY): the next call on one
/// fails with ECONNABORTED, and TCP tells the peer. Returns how many; those that were gone already
/// do not count.
///
/// # Errors
/// When the kernel cannot, or refuses (CAP_NET_ADMIN).
pub fn destroy<'a>(sockets: impl IntoIterator<Item = &'a InetSocket>) -> io::Result<usize> {
    let mut netlink = Netlink::new(SockProtocol::NetlinkSockDiag)?;
    let mut destroyed = 0;
    for socket in sockets {
        let body = diag_request(socket.family, socket.protocol, u32::MAX, &socket.id);
        match netlink.act(SOCK_DESTROY, &body) {
            Ok(()) => destroyed += 1,
            Err(error) if error.raw_os_error() == Some(libc::ENOENT) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(destroyed)
}

/// Whether the kernel can destroy sockets at all: it is asked to destroy one that cannot exist.
pub fn can_destroy() -> bool {
    let body = diag_request(AF_INET, libc::IPPROTO_TCP as u8, u32::MAX, &[0; SOCKID]);
    let asked =
        Netlink::new(SockProtocol::NetlinkSockDiag).and_then(|mut n| n.act(SOCK_DESTROY, &body));
    !asked.is_err_and(|error| {
        matches!(
            error.raw_os_error(),
            Some(libc::EOPNOTSUPP | libc::EPERM | libc::EINVAL)
        )
    })
}

impl Netlink {
    fn new(protocol: SockProtocol) -> io::Result<Self> {
        let socket = socket(
            AddressFamily::Netlink,
            SockType::Raw,
            SockFlag::SOCK_CLOEXEC,
            protocol,
        )?;
        Ok(Self {
            socket,
            sequence: 0,
        })
    }

    /// Asks for everything of a kind.
    fn dump(&mut self, kind: u16, body: &[u8], each: impl FnMut(u16, &[u8])) -> io::Result<()> {
        self.send(kind, NLM_F_REQUEST | NLM_F_DUMP, body)?;
        self.answers(each)
    }

    /// Asks for one thing.
    fn ask(&mut self, kind: u16, body: &[u8], each: impl FnMut(u16, &[u8])) -> io::Result<()> {
        self.send(kind, NLM_F_REQUEST | NLM_F_ACK, body)?;
        self.answers(each)
    }

    /// Asks for something to be done.
    fn act(&mut self, kind: u16, body: &[u8]) -> io::Result<()> {
        self.ask(kind, body, |_, _| {})
    }

    fn send(&mut self, kind: u16, flags: u16, body: &[u8]) -> io::Result<()> {
        self.sequence += 1;
        let length = (HEADER + body.len()) as u32;
        let mut message = Vec::with_capacity(HEADER + body.len());
        message.extend(length.to_ne_bytes());
        message.extend(kind.to_ne_bytes());
        message.extend(flags.to_ne_bytes());
        message.extend(self.sequence.to_ne_bytes());
        message.extend(0_u32.to_ne_bytes());
        message.extend(body);
        send(self.socket.as_raw_fd(), &message, MsgFlags::empty())?;
        Ok(())
    }

    /// Reads until the kernel has said that it is done.
    fn answers(&mut self, mut each: impl FnMut(u16, &[u8])) -> io::Result<()> {
        let mut buffer = vec![0; BUFFER];
        loop {
            let length = recv(
                self.socket.as_fd().as_raw_fd(),
                &mut buffer,
                MsgFlags::empty(),
            )?;
            let mut left = buffer.get(..length).unwrap_or_default();
            while let Some(header) = left.first_chunk::<HEADER>() {
                let [a, b, c, d, e, f, _, _, s0, s1, s2, s3, ..] = *header;
                let length = u32::from_ne_bytes([a, b, c, d]) as usize;
                let kind = u16::from_ne_bytes([e, f]);
                let Some(body) = left.get(HEADER..length) else {
                    return Err(io::ErrorKind::InvalidData.into());
                };
                if u32::from_ne_bytes([s0, s1, s2, s3]) == self.sequence {
                    match kind {
                        NLMSG_DONE => return Ok(()),
                        NLMSG_ERROR => return outcome(body),
                        _ => each(kind, body),
                    }
                }
                left = left.get(aligned(length)..).unwrap_or_default();
            }
        }
    }
}

/// `struct nlmsgerr`: an errno, negative; 0 acknowledges.
fn outcome(body: &[u8]) -> io::Result<()> {
    match word(body).map(u32::cast_signed) {
        Some(0) => Ok(()),
        Some(errno) => Err(io::Error::from_raw_os_error(-errno)),
        None => Err(io::ErrorKind::InvalidData.into()),
    }
}

fn cable(body: &[u8]) -> Option<Cable> {
    let index = word(body.get(4..)?)?;
    let attributes = body.get(IFINFOMSG..)?;
    let info = attribute(attributes, IFLA_LINKINFO)?;
    let kind = attribute(info, IFLA_INFO_KIND)?;
    if kind.strip_suffix(&[0]).unwrap_or(kind) != b"veth" {
        return None;
    }
    Some(Cable {
        index,
        other: word(attribute(attributes, IFLA_LINK)?)?,
        other_netns: attribute(attributes, IFLA_LINK_NETNSID)
            .and_then(word)
            .map(u32::cast_signed),
    })
}

/// `struct inet_diag_req_v2`.
fn diag_request(family: u8, protocol: u8, states: u32, id: &[u8; SOCKID]) -> Vec<u8> {
    let mut body = vec![family, protocol, 0, 0];
    body.extend(states.to_ne_bytes());
    body.extend(id);
    body
}

fn inet_socket(protocol: u8, body: &[u8]) -> Option<InetSocket> {
    let [family, state, ..] = *body.first_chunk::<4>()?;
    let id = *body.get(4..)?.first_chunk::<SOCKID>()?;
    let attributes = body.get(INET_DIAG_MSG..)?;
    let port = |at: usize| Some(u16::from_be_bytes(*id.get(at..)?.first_chunk()?));
    let address = |at: usize| -> Option<IpAddr> {
        let octets: [u8; 16] = *id.get(at..)?.first_chunk()?;
        Some(match family {
            AF_INET => Ipv4Addr::from(*octets.first_chunk::<4>()?).into(),
            _ => IpAddr::from(Ipv6Addr::from(octets)).to_canonical(),
        })
    };
    let cgroup_id = attribute(attributes, INET_DIAG_CGROUP_ID)
        .and_then(|octets| octets.first_chunk::<8>())
        .map(|octets| u64::from_ne_bytes(*octets));
    Some(InetSocket {
        protocol,
        local: SocketAddr::new(address(4)?, port(0)?),
        remote: SocketAddr::new(address(20)?, port(2)?),
        cgroup_id,
        // UDP: bound and not connected.
        listens: state == TCP_LISTEN || (state != TCP_ESTABLISHED && port(2)? == 0),
        family,
        id,
    })
}

fn push_attribute(body: &mut Vec<u8>, kind: u16, value: &[u8]) {
    let length = (4 + value.len()) as u16;
    body.extend(length.to_ne_bytes());
    body.extend(kind.to_ne_bytes());
    body.extend(value);
    body.resize(aligned(body.len()), 0);
}

/// The value of the first attribute of a kind.
fn attribute(mut attributes: &[u8], wanted: u16) -> Option<&[u8]> {
    while let Some([a, b, c, d]) = attributes.first_chunk::<4>().copied() {
        let length = usize::from(u16::from_ne_bytes([a, b]));
        let kind = u16::from_ne_bytes([c, d]) & NLA_TYPE_MASK;
        let value = attributes.get(4..length)?;
        if kind == wanted {
            return Some(value);
        }
        attributes = attributes.get(aligned(length)..)?;
    }
    None
}

fn word(octets: &[u8]) -> Option<u32> {
    octets
        .first_chunk()
        .map(|octets| u32::from_ne_bytes(*octets))
}

fn aligned(length: usize) -> usize {
    length.next_multiple_of(4)
}

#[cfg(test)]
mod tests {
    use std::net::{TcpListener, TcpStream};

    use super::*;

    #[test]
    fn attributes_are_found_behind_others() {
        let mut body = Vec::new();
        push_attribute(&mut body, 1, b"abcde");
        push_attribute(&mut body, 2 | 0x8000, &7_u32.to_ne_bytes());
        assert_eq!(attribute(&body, 1), Some(&b"abcde"[..]));
        assert_eq!(attribute(&body, 2).and_then(word), Some(7));
        assert_eq!(attribute(&body, 3), None);
        for length in 0..body.len() {
            // Cut off anywhere: nothing is read beyond the end.
            let _ = attribute(&body[..length], 2);
        }
    }

    #[test]
    fn sockets_of_this_namespace_are_listed_with_both_ends() {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let server = listener.local_addr().unwrap();
        let client = TcpStream::connect(server).unwrap();
        let found = sockets(libc::IPPROTO_TCP as u8).unwrap();
        let listening = found
            .iter()
            .find(|socket| socket.local == server && socket.listens);
        assert!(listening.is_some());
        let own = found
            .iter()
            .find(|socket| socket.local == client.local_addr().unwrap())
            .expect("the client's socket");
        assert_eq!((own.remote, own.listens), (server, false));
    }
}
