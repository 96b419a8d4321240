// SPDX-License-Identifier: Apache-2.0
//! Ways that use a socket of another process or of another cgroup.
//!
//! The child is this program again, told the descriptor by `--fd`; it prints the report.

use std::{
    fs,
    io::{IoSlice, IoSliceMut},
    os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd},
    process::{Command, Stdio},
};

use anyhow::{Context, Result, bail};
use nix::{
    cmsg_space,
    fcntl::{FcntlArg, FdFlag, fcntl},
    sys::socket::{
        AddressFamily, ControlMessage, ControlMessageOwned, MsgFlags, SockFlag, SockType, recvmsg,
        sendmsg, socketpair,
    },
};
use socket2::Socket;

use super::{
    Attempt, Route,
    report::{Halt, Reached},
    tcp,
};

/// Whether the route is taken by a child.
pub(super) fn needs_child(route: Route) -> bool {
    matches!(
        route,
        Route::Inherited | Route::ScmRights | Route::VforkOtherCgroup
    )
}

/// The parent's part: makes the socket, hands it over, waits for the child.
pub(super) fn start(attempt: &Attempt) -> Result<Option<Halt>> {
    let socket = match tcp::socket(attempt) {
        Ok(socket) => socket,
        Err(halt) => return Ok(Some(halt)),
    };
    attempt.pause()?;
    if attempt.route != Route::ScmRights {
        run_child(attempt, &socket)?;
        return Ok(None);
    }
    let (ours, theirs) = socketpair(
        AddressFamily::Unix,
        SockType::Datagram,
        None,
        SockFlag::SOCK_CLOEXEC,
    )
    .context("making a socket pair")?;
    let passed = [socket.as_raw_fd()];
    sendmsg::<()>(
        ours.as_raw_fd(),
        &[IoSlice::new(b"socket")],
        &[ControlMessage::ScmRights(&passed)],
        MsgFlags::empty(),
        None,
    )
    .context("passing the socket")?;
    // Only the child's copy, on its way, is left.
    drop(socket);
    run_child(attempt, &theirs)?;
    Ok(None)
}

/// The child's part; `None` when this process is no child.
pub(super) fn child_of(attempt: &Attempt) -> Option<Result<Reached, Halt>> {
    attempt.fd.map(|fd| take_over(attempt, fd))
}

/// A socket from before this process moved to the cgroup.
pub(super) fn outside(attempt: &Attempt) -> Result<Reached, Halt> {
    let socket = tcp::socket(attempt)?;
    move_to_cgroup(attempt)?;
    tcp::connect_and_ask(attempt, &socket, attempt.address)
}

fn take_over(attempt: &Attempt, fd: RawFd) -> Result<Reached, Halt> {
    // SAFETY: the parent left this descriptor open for this process, which uses it only here.
    let descriptor = unsafe { OwnedFd::from_raw_fd(fd) };
    let socket = match attempt.route {
        Route::ScmRights => receive(&descriptor)?,
        _ => descriptor,
    };
    if attempt.route == Route::VforkOtherCgroup {
        move_to_cgroup(attempt)?;
    }
    tcp::connect_and_ask(attempt, &Socket::from(socket), attempt.address)
}

fn receive(pair: &OwnedFd) -> Result<OwnedFd> {
    let mut text = [0; 16];
    let mut slices = [IoSliceMut::new(&mut text)];
    let mut space = cmsg_space!(RawFd);
    let message = recvmsg::<()>(
        pair.as_raw_fd(),
        &mut slices,
        Some(&mut space),
        MsgFlags::MSG_CMSG_CLOEXEC,
    )
    .context("receiving the socket")?;
    let mut passed = message.cmsgs().context("reading control messages")?;
    match passed.next() {
        Some(ControlMessageOwned::ScmRights(descriptors)) => match descriptors[..] {
            // SAFETY: the kernel has just made this descriptor for this process.
            [descriptor] => Ok(unsafe { OwnedFd::from_raw_fd(descriptor) }),
            _ => bail!("{} sockets were passed", descriptors.len()),
        },
        _ => bail!("no socket was passed"),
    }
}

/// Runs this program again with the descriptor left open.
fn run_child(attempt: &Attempt, descriptor: &impl std::os::fd::AsFd) -> Result<()> {
    let descriptor = descriptor.as_fd();
    fcntl(descriptor, FcntlArg::F_SETFD(FdFlag::empty())).context("leaving a socket open")?;
    // The standard library starts it as vfork() does, since nothing is to be done between.
    let mut child = Command::new("/proc/self/exe");
    child
        .args([attempt.route.name(), attempt.address.to_string()])
        .args(["--fd", &descriptor.as_raw_fd().to_string()])
        .stdin(Stdio::null());
    if let Some(host) = &attempt.http {
        child.args(["--http", host]);
    }
    if let Some(cgroup) = &attempt.cgroup {
        child.arg("--cgroup").arg(cgroup);
    }
    let status = child.status().context("starting a child")?;
    if !status.success() {
        bail!("the child ended with {status}");
    }
    Ok(())
}

fn move_to_cgroup(attempt: &Attempt) -> Result<()> {
    let cgroup = attempt.cgroup.as_ref();
    let cgroup = cgroup.with_context(|| format!("{} needs --cgroup", attempt.route.name()))?;
    fs::write(cgroup.join("cgroup.procs"), "0")
        .with_context(|| format!("moving to {}", cgroup.display()))
}
