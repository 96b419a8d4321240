// SPDX-License-Identifier: Apache-2.0
//! Objects as written in YAML: Istio's proto3 JSON names, nothing checked but their shape. Every
//! field of the egress-related API is here, so that what is not in effect can be named.

pub mod destination_rule;
pub mod gateway;
pub mod mesh_config;
pub mod scalar;
pub mod service_entry;
pub mod sidecar;
pub mod virtual_service;
