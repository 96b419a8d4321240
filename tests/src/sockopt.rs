// SPDX-License-Identifier: Apache-2.0
//! Socket options that neither the standard library nor socket2 knows.

use std::{ffi::c_int, io, os::fd::AsRawFd};

use socket2::Socket;

/// Sets an option whose value is an integer.
///
/// # Errors
/// As setsockopt(2).
pub(crate) fn set(socket: &Socket, level: c_int, option: c_int, value: c_int) -> io::Result<()> {
    let size = size_of::<c_int>() as libc::socklen_t;
    // SAFETY: the pointer is to a live integer of the size given, which the kernel only reads.
    let result = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            level,
            option,
            (&raw const value).cast(),
            size,
        )
    };
    if result == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}
