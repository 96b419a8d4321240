// SPDX-License-Identifier: MIT OR GPL-2.0-only
//! Counts an outcome.

use egress_common::counters::{Outcome, Program, slot};

use crate::maps::COUNTERS;

/// Adds one to the slot of `outcome` in `program` on this CPU.
#[inline(always)]
pub fn count(program: Program, outcome: Outcome) {
    if let Some(counter) = COUNTERS.get_ptr_mut(slot(program, outcome)) {
        // SAFETY: a per-CPU slot, and a program is not migrated to another CPU while it runs.
        unsafe { *counter += 1 }
    }
}
