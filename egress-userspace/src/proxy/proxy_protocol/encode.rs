// SPDX-License-Identifier: Apache-2.0
//! Who is calling to bytes.

use std::net::{IpAddr, SocketAddr};

use super::{FIXED, MAX_SENT, SIGNATURE, Tlv};
use crate::{upstream::preface::Preface, workload::Workload};

/// Version 2, command PROXY.
const PROXY: u8 = 0x21;
/// TCP over IPv4.
const TCP4: u8 = 0x11;
/// TCP over IPv6.
const TCP6: u8 = 0x21;

/// Type and length of a TLV.
const TLV_HEAD: usize = 3;

/// The header of a connection for a caller that wanted to go to `destination`; at most
/// [`MAX_SENT`] bytes. Addresses of two families are both written as IPv6, the IPv4 one v4-mapped.
pub fn encode(source: SocketAddr, destination: SocketAddr, workload: Option<&Workload>) -> Preface {
    let mut out = Vec::with_capacity(256);
    out.extend_from_slice(SIGNATURE);
    out.push(PROXY);
    match (source.ip(), destination.ip()) {
        (IpAddr::V4(from), IpAddr::V4(to)) => {
            out.push(TCP4);
            out.extend_from_slice(&[0, 0]);
            out.extend_from_slice(&from.octets());
            out.extend_from_slice(&to.octets());
        }
        (from, to) => {
            out.push(TCP6);
            out.extend_from_slice(&[0, 0]);
            out.extend_from_slice(&mapped(from));
            out.extend_from_slice(&mapped(to));
        }
    }
    out.extend_from_slice(&source.port().to_be_bytes());
    out.extend_from_slice(&destination.port().to_be_bytes());
    if let Some(workload) = workload {
        tlv(&mut out, Tlv::Namespace, &workload.namespace);
        tlv(&mut out, Tlv::Workload, &workload.name);
        tlv(&mut out, Tlv::ServiceAccount, &workload.service_account);
        tlv(&mut out, Tlv::Labels, &labels(workload));
    }
    // Bounded by MAX_SENT.
    let length = (out.len() - FIXED) as u16;
    out[FIXED - 2..FIXED].copy_from_slice(&length.to_be_bytes());
    Preface::from(out)
}

fn mapped(ip: IpAddr) -> [u8; 16] {
    match ip {
        IpAddr::V4(ip) => ip.to_ipv6_mapped().octets(),
        IpAddr::V6(ip) => ip.octets(),
    }
}

/// Appends a value, when there is one and it fits.
fn tlv(out: &mut Vec<u8>, kind: Tlv, value: &str) {
    if value.is_empty() || out.len() + TLV_HEAD + value.len() > MAX_SENT {
        return;
    }
    out.push(kind as u8);
    out.extend_from_slice(&(value.len() as u16).to_be_bytes());
    out.extend_from_slice(value.as_bytes());
}

/// Labels that the form cannot hold (no Kubernetes label) are left out.
fn labels(workload: &Workload) -> String {
    let mut text = String::new();
    for (key, value) in &workload.labels {
        if key.is_empty() || key.contains(['=', '\n']) || value.contains('\n') {
            continue;
        }
        if !text.is_empty() {
            text.push('\n');
        }
        text.push_str(key);
        text.push('=');
        text.push_str(value);
    }
    text
}
