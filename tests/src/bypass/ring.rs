// SPDX-License-Identifier: Apache-2.0
//! Ways that go through io_uring instead of system calls of the socket.

use std::{io, os::fd::AsRawFd};

use io_uring::{
    IoUring, opcode, squeue,
    types::{Fd, SubmitArgs, Timespec},
};
use socket2::SockAddr;

use super::{
    Attempt, TIMEOUT,
    report::{At, Halt, Reached},
    tcp, udp,
};

/// Entries of the ring: one operation at a time.
const ENTRIES: u32 = 2;

pub(super) fn connect(attempt: &Attempt) -> Result<Reached, Halt> {
    let socket = tcp::socket(attempt)?;
    let address = SockAddr::from(attempt.address);
    let mut ring = IoUring::new(ENTRIES).at("io-uring-setup")?;
    attempt.pause()?;
    let descriptor = Fd(socket.as_raw_fd());
    let operation = opcode::Connect::new(descriptor, address.as_ptr().cast(), address.len());
    // SAFETY: the address and the socket outlive the ring, with which an operation that is not
    // done by then ends.
    unsafe { complete(&mut ring, &operation.build()) }.at("connect")?;
    attempt.note_peer(&socket);
    tcp::ask(attempt, &socket)
}

pub(super) fn send(attempt: &Attempt) -> Result<Reached, Halt> {
    let socket = udp::socket(attempt, None)?;
    let address = SockAddr::from(attempt.address);
    let mut payload = libc::iovec {
        iov_base: udp::PAYLOAD.as_ptr().cast_mut().cast(),
        iov_len: udp::PAYLOAD.len(),
    };
    let message = udp::message(&address, &mut payload);
    let mut ring = IoUring::new(ENTRIES).at("io-uring-setup")?;
    attempt.pause()?;
    let operation = opcode::SendMsg::new(Fd(socket.as_raw_fd()), &raw const message);
    // SAFETY: the message, what it points to and the socket outlive the ring.
    unsafe { complete(&mut ring, &operation.build()) }.at("send")?;
    Ok(Reached::sent())
}

/// Submits an operation and waits for its result, at most [`TIMEOUT`].
///
/// # Safety
/// What the operation points to must live as long as the ring.
unsafe fn complete(ring: &mut IoUring, operation: &squeue::Entry) -> io::Result<()> {
    // SAFETY: the caller's promise.
    unsafe { ring.submission().push(operation) }.map_err(io::Error::other)?;
    let limit = Timespec::from(TIMEOUT);
    let limit = SubmitArgs::new().timespec(&limit);
    ring.submitter().submit_with_args(1, &limit)?;
    match ring.completion().next() {
        Some(done) if done.result() < 0 => Err(io::Error::from_raw_os_error(-done.result())),
        Some(_) => Ok(()),
        None => Err(io::Error::from_raw_os_error(libc::ETIME)),
    }
}
