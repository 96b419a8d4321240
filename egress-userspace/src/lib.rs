// SPDX-License-Identifier: Apache-2.0
//! `egress`: Istio's egress control without sidecars.
//!
//! Two flows shape the program. Data: socket → original destination → workload → protocol → host →
//! virtual service → destination → endpoint → upstream connection. Config: source → parse →
//! validate → snapshot → routing table and kernel maps. They meet in one place: a
//! [`config::snapshot::Snapshot`].
//!
//! Modules in the order of those flows:
//! - [`cli`], [`settings`], [`app`], [`shutdown`]: the process; they know everything else.
//! - [`config`]: YAML to snapshots; knows `routing`.
//! - [`routing`]: the decision; pure, no I/O, knows nothing of ours.
//! - [`kernel`]: programs, maps, original destinations; reads snapshots.
//! - [`proxy`]: accepted sockets; asks `kernel` and `routing`, uses `upstream`.
//! - [`upstream`]: names to addresses, addresses to connections.
//! - [`control`]: admin server, metrics, dumps.

pub mod app;
pub mod cli;
pub mod config;
pub mod control;
pub mod explain;
pub mod kernel;
pub mod latest;
pub mod listen;
pub mod proxy;
pub mod routing;
pub mod settings;
pub mod shutdown;
pub mod upstream;
pub mod workload;
