// SPDX-License-Identifier: Apache-2.0
//! Listening sockets, as every proxy thread has one for each address: in the current network
//! namespace, whoever asks. Decides nothing about where.

use std::{
    io,
    net::{SocketAddr, TcpListener},
};

use socket2::{Domain, Protocol, Socket, Type};

/// Pending connections of a listener; the kernel caps it at `net.core.somaxconn`.
const BACKLOG: i32 = 4096;

/// Fails when somebody else listens: SO_REUSEPORT would share the port with another process of the
/// same user without a word. Port 0 stands for any that is free; returns the address with its port.
///
/// # Errors
/// When the address cannot be bound.
pub fn probe(address: SocketAddr) -> io::Result<SocketAddr> {
    let socket = socket(address)?;
    socket.bind(&address.into())?;
    Ok(socket.local_addr()?.as_socket().unwrap_or(address))
}

/// Listens, beside other listeners of ours on the same address; not blocking.
///
/// # Errors
/// When the address cannot be bound.
pub fn listen(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = socket(address)?;
    socket.set_reuse_port(true)?;
    socket.set_nonblocking(true)?;
    socket.bind(&address.into())?;
    socket.listen(BACKLOG)?;
    Ok(socket.into())
}

fn socket(address: SocketAddr) -> io::Result<Socket> {
    let domain = Domain::for_address(address);
    let socket = Socket::new(domain, Type::STREAM, Some(Protocol::TCP))?;
    if address.is_ipv6() {
        // `0.0.0.0` and `::` are bound side by side.
        socket.set_only_v6(true)?;
    }
    socket.set_reuse_address(true)?;
    Ok(socket)
}
