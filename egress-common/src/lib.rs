// SPDX-License-Identifier: Apache-2.0
//! The contract between the kernel programs and user space.
#![no_std]
