// SPDX-License-Identifier: Apache-2.0
//! Configuration end to end: source → parse → validate → snapshot. Yields one watch channel of
//! snapshots; knows `routing`, nothing of the kernel or the proxy.
//!
//! - [`source`]: files to documents, and when they change.
//! - [`document`], [`object`]: a document to a typed object, or findings.
//! - [`istio`]: objects as written. [`validate`]: objects as valid model values.
//! - [`collection`]: all objects together: order, cross-object findings.
//! - [`reload`]: keeps the last good version of what becomes bad, publishes snapshots.
//! - [`report`]: findings as `egress validate` prints them.

pub mod collection;
pub mod document;
pub mod istio;
pub mod mesh;
pub mod object;
pub mod problem;
pub mod reload;
pub mod report;
pub mod snapshot;
pub mod source;
pub mod validate;

use std::path::PathBuf;

use crate::routing::table::Role;

/// Where configuration comes from and for whom it is compiled.
#[derive(Debug, Clone)]
pub struct ConfigSettings {
    /// Files and directories.
    pub paths: Vec<PathBuf>,
    /// The meshConfig document.
    pub mesh_config: Option<PathBuf>,
    /// Namespace of objects that carry none.
    pub default_namespace: String,
    /// The proxy that tables are compiled for.
    pub role: Role,
}

/// Configuration cannot be read at all.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// A path cannot be read.
    #[error("reading {}", path.display())]
    Read {
        /// The path.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// The meshConfig document is bad.
    #[error("{}:{line}: meshConfig: {message}", path.display())]
    Mesh {
        /// The file.
        path: PathBuf,
        /// 1-based line.
        line: u64,
        /// Field path and reason.
        message: String,
    },
    /// Changes cannot be watched.
    #[error("watching {} for changes", path.display())]
    Watch {
        /// The path.
        path: PathBuf,
        /// Why.
        source: notify::Error,
    },
}
