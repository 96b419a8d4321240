// SPDX-License-Identifier: Apache-2.0
//! Istio's objects as they are written in YAML: every field of Istio 1.32's egress-related API
//! under its JSON name, nothing else. Fields are documented where Istio documents them
//! (<https://istio.io/latest/docs/reference/config/networking/>); only deviations are noted here.
//!
//! Stands between `source` (text) and `validate` (valid model). Shapes only: whether a value makes
//! sense is `validate`'s question. Unknown fields are errors everywhere, since a misspelt field
//! must never open egress.

mod destination_rule;
mod duration;
mod gateway;
mod mesh_config;
mod proxy_headers;
mod service_entry;
mod sidecar;
mod virtual_service;

pub(super) use destination_rule::*;
pub(super) use duration::Duration;
pub(super) use gateway::*;
pub(super) use mesh_config::*;
pub(super) use proxy_headers::*;
pub(super) use service_entry::*;
pub(super) use sidecar::*;
pub(super) use virtual_service::*;
