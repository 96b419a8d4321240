// SPDX-License-Identifier: Apache-2.0
//! Ways that send datagrams by a UDP (or UDP-Lite) socket.

use std::{io, os::fd::AsRawFd};

use socket2::{Domain, MsgHdr, Protocol, SockAddr, Socket, Type};

use super::{
    Attempt,
    report::{At, Halt, Reached},
};

/// What a datagram carries.
pub(super) const PAYLOAD: &[u8] = b"lab-bypass";
/// Datagrams of one sendmmsg().
const MANY: usize = 3;

pub(super) fn connected(attempt: &Attempt, payload: &[u8]) -> Result<Reached, Halt> {
    let socket = socket(attempt, None)?;
    attempt.connect(&socket, attempt.address)?;
    attempt.pause()?;
    socket.send(payload).at("send")?;
    Ok(Reached::sent())
}

pub(super) fn sendto(attempt: &Attempt, protocol: Option<i32>) -> Result<Reached, Halt> {
    let socket = socket(attempt, protocol)?;
    attempt.pause()?;
    socket
        .send_to(PAYLOAD, &attempt.address.into())
        .at("send")?;
    Ok(Reached::sent())
}

pub(super) fn sendmsg(attempt: &Attempt) -> Result<Reached, Halt> {
    let socket = socket(attempt, None)?;
    attempt.pause()?;
    let address = SockAddr::from(attempt.address);
    let payload = [io::IoSlice::new(PAYLOAD)];
    let message = MsgHdr::new().with_addr(&address).with_buffers(&payload);
    socket.sendmsg(&message, 0).at("send")?;
    Ok(Reached::sent())
}

pub(super) fn sendmmsg(attempt: &Attempt) -> Result<Reached, Halt> {
    let socket = socket(attempt, None)?;
    attempt.pause()?;
    let address = SockAddr::from(attempt.address);
    let mut payload = libc::iovec {
        iov_base: PAYLOAD.as_ptr().cast_mut().cast(),
        iov_len: PAYLOAD.len(),
    };
    let header = message(&address, &mut payload);
    let mut messages = [libc::mmsghdr {
        msg_hdr: header,
        msg_len: 0,
    }; MANY];
    // SAFETY: there are as many messages as said; each points to the address and the payload, which
    // outlive the call and which the kernel only reads.
    let sent = unsafe {
        libc::sendmmsg(
            socket.as_raw_fd(),
            messages.as_mut_ptr(),
            MANY as libc::c_uint,
            0,
        )
    };
    if sent < 0 {
        return Err(io::Error::last_os_error()).at("send");
    }
    // The kernel names an error only when not even the first message could be sent.
    if usize::try_from(sent) != Ok(MANY) {
        return Err(anyhow::anyhow!("sendmmsg sent {sent} of {MANY}").into());
    }
    Ok(Reached::sent())
}

/// A message header; it points to what it is given, which must outlive its use.
pub(super) fn message(address: &SockAddr, payload: &mut libc::iovec) -> libc::msghdr {
    // SAFETY: all zeros is a valid msghdr, without address, payload or control messages.
    let mut header: libc::msghdr = unsafe { std::mem::zeroed() };
    header.msg_name = address.as_ptr().cast_mut().cast();
    header.msg_namelen = address.len();
    header.msg_iov = payload;
    header.msg_iovlen = 1;
    header
}

/// A datagram socket of the address's family.
pub(super) fn socket(attempt: &Attempt, protocol: Option<i32>) -> Result<Socket, Halt> {
    let domain = Domain::for_address(attempt.address);
    attempt.socket(domain, Type::DGRAM, protocol.map(Protocol::from))
}
