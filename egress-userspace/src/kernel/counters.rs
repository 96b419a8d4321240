// SPDX-License-Identifier: Apache-2.0
//! Reads the outcome counters of the kernel programs, summed over the CPUs.

use std::{fmt, sync::Arc};

use aya::maps::{MapData, PerCpuArray};
use egress_common::{
    counters::{OUTCOMES, PROGRAMS, slot},
    maps::COUNTERS,
};

use super::error::KernelError;

/// How often one program ended in one way since its map was created.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
pub struct CounterReading {
    /// `connect4`, `connect6`, `sockops`, `getpeername4` or `getpeername6`.
    pub program: &'static str,
    /// The outcome's name, see `egress_common::counters`.
    pub outcome: &'static str,
    /// Sum over all CPUs.
    pub count: u64,
}

/// A handle that reads the counters; lives on after [`super::Capture`] is stopped.
#[derive(Clone)]
pub struct CounterReader {
    map: Arc<PerCpuArray<MapData, u64>>,
}

impl CounterReader {
    pub(super) fn new(map: PerCpuArray<MapData, u64>) -> Self {
        Self { map: Arc::new(map) }
    }

    /// Every outcome that a program can have, zeroes included, in slot order.
    ///
    /// # Errors
    /// [`KernelError::Map`] when the kernel refuses the lookup.
    pub fn read(&self) -> Result<Vec<CounterReading>, KernelError> {
        let mut readings = Vec::new();
        for program in PROGRAMS {
            for outcome in OUTCOMES.into_iter().filter(|&one| program.counts(one)) {
                let values = self.map.get(&slot(program, outcome), 0).map_err(|source| {
                    KernelError::Map {
                        action: "read",
                        map: COUNTERS,
                        source,
                    }
                })?;
                readings.push(CounterReading {
                    program: program.name(),
                    outcome: outcome.name(),
                    count: values.iter().sum(),
                });
            }
        }
        Ok(readings)
    }
}

impl fmt::Debug for CounterReader {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CounterReader").finish_non_exhaustive()
    }
}
