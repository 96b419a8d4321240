// SPDX-License-Identifier: Apache-2.0
//! Everything that one version of the configuration decides; built once, never changed.

use std::sync::Arc;

use super::{mesh::MeshConfig, problem::Problem};
use crate::routing::table::{Objects, Role, Table};

/// One version of the configuration.
#[derive(Debug)]
pub struct Snapshot {
    /// Counts up from 1 within this process.
    pub version: u64,
    /// The table compiled for this proxy.
    pub table: Table,
    /// Mesh-wide settings.
    pub mesh: Arc<MeshConfig>,
    /// Findings of the objects as they are written now, sorted by file and line.
    pub problems: Vec<Problem>,
}

impl Snapshot {
    /// A snapshot of an empty configuration.
    pub fn empty(role: Role) -> Self {
        Self {
            version: 0,
            table: Table::build(Objects::default(), role),
            mesh: Arc::new(MeshConfig::default()),
            problems: Vec::new(),
        }
    }
}
