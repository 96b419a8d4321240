// SPDX-License-Identifier: Apache-2.0
//! meshConfig.defaultConfig, of which `proxyHeaders` and one key of `proxyMetadata` are used.

use serde_yaml::{Mapping, Value};

use super::{
    field::FieldPath,
    proxy_headers::{self, ProxyHeaders},
    validate::{self, Findings},
};
use crate::routing::host;

/// proxyMetadata's key for the hosts that are to be told who is calling, separated by commas.
const PROXY_PROTOCOL_TO: &str = "EGRESS_PROXY_PROTOCOL_TO";

/// What is used of it.
#[derive(Debug, Default)]
pub(super) struct DefaultConfig {
    /// proxyHeaders.
    pub proxy_headers: ProxyHeaders,
    /// Hosts whose connections begin with a PROXY protocol header; in lower case.
    pub proxy_protocol_to: Vec<String>,
}

/// Reads it; what is not used is a warning.
pub(super) fn read(config: Option<&Mapping>, findings: &mut Findings) -> DefaultConfig {
    let root = FieldPath::Root;
    let path = root.key("defaultConfig");
    let mut read = DefaultConfig::default();
    for (key, value) in config.into_iter().flatten() {
        let name = key.as_str().unwrap_or("(not a text)");
        let path = path.key(name);
        match (name, value) {
            ("proxyHeaders", _) => {
                read.proxy_headers = proxy_headers::read(value.clone(), &path, findings);
            }
            ("proxyMetadata", Value::Mapping(metadata)) => {
                read.proxy_protocol_to = metadata_hosts(metadata, &path, findings);
            }
            _ => findings.warning(&path, "is not used by egress"),
        }
    }
    read
}

fn metadata_hosts(
    metadata: &Mapping,
    path: &FieldPath<'_>,
    findings: &mut Findings,
) -> Vec<String> {
    let mut hosts = Vec::new();
    for (key, value) in metadata {
        let name = key.as_str().unwrap_or("(not a text)");
        let path = path.key(name);
        if name != PROXY_PROTOCOL_TO {
            findings.warning(&path, "is not used by egress");
            continue;
        }
        let Some(list) = value.as_str() else {
            findings.error(&path, "must be a text: hosts separated by commas");
            continue;
        };
        let given = list.split(',').map(str::trim);
        for name in given.filter(|name| !name.is_empty()) {
            match validate::fqdn_error(name) {
                Some(message) => findings.error(&path, message),
                None => hosts.push(host::normalize(name).into_owned()),
            }
        }
    }
    hosts
}
