// SPDX-License-Identifier: MIT OR GPL-2.0-only
//! The kernel programs: entry points only.
#![no_std]
#![no_main]

#[panic_handler]
fn panic(_info: &core::panic::PanicInfo<'_>) -> ! {
    loop {}
}
