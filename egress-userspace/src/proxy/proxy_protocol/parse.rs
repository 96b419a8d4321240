// SPDX-License-Identifier: Apache-2.0
//! Bytes to who is calling. Looks at bytes only; may be asked again when there are more of them.

use std::net::{IpAddr, SocketAddr};

use super::{Caller, FIXED, MAX_TAKEN, SIGNATURE, Tlv};
use crate::{upstream::connect::unmapped, workload::Workload};

/// How many bytes of the signature tell a header from an HTTP request behind empty lines.
const TELLING: usize = 5;

/// What the first bytes of a connection are.
#[derive(Debug, PartialEq, Eq)]
pub enum Parsed {
    /// No header.
    Absent,
    /// Perhaps a header: more bytes are needed. `begun`: its signature is complete, so it is one.
    Partial {
        /// Whether it surely is one.
        begun: bool,
    },
    /// A header of that many bytes. No caller: the sender speaks for itself (command LOCAL) or
    /// does not know (family UNSPEC); the connection's own address counts.
    Header {
        /// Bytes.
        length: usize,
        /// Whom it names.
        caller: Option<Caller>,
    },
}

/// Bytes that begin like a header and are none.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum BadHeader {
    /// Not version 2.
    #[error("version {0} is not 2")]
    Version(u8),
    /// Neither LOCAL nor PROXY.
    #[error("command {0:#x} is neither LOCAL nor PROXY")]
    Command(u8),
    /// Not TCP over IPv4 or IPv6.
    #[error("family and protocol {0:#04x} are not TCP over IPv4 or IPv6")]
    Family(u8),
    /// Longer than is taken.
    #[error("{0} bytes are more than {MAX_TAKEN}")]
    TooLong(usize),
    /// Its length leaves no place for its addresses.
    #[error("the addresses do not fit its length")]
    Addresses,
    /// A TLV ends behind the header.
    #[error("a TLV does not fit its length")]
    Tlv,
    /// A value that names the caller is not UTF-8.
    #[error("TLV {0:#04x} is not UTF-8")]
    Text(u8),
    /// Not complete in time.
    #[error("not complete within the time limit")]
    Late,
    /// The connection ended within it.
    #[error("the connection ended within it")]
    Ended,
}

/// Whether bytes begin with a header, or with so much of one that they can be nothing else.
pub fn begins(bytes: &[u8]) -> bool {
    let common = bytes.len().min(SIGNATURE.len());
    common >= TELLING && bytes[..common] == SIGNATURE[..common]
}

/// Reads the header that `bytes` begin with.
///
/// # Errors
/// When they begin with the signature and what follows is not a header that can be taken: close.
pub fn parse(bytes: &[u8]) -> Result<Parsed, BadHeader> {
    let common = bytes.len().min(SIGNATURE.len());
    if bytes[..common] != SIGNATURE[..common] {
        return Ok(Parsed::Absent);
    }
    let begun = common == SIGNATURE.len();
    let Some((head, rest)) = bytes.split_at_checked(FIXED) else {
        return Ok(Parsed::Partial { begun });
    };
    let (version_and_command, family) = (head[12], head[13]);
    let length = usize::from(u16::from_be_bytes([head[14], head[15]]));
    if version_and_command >> 4 != 2 {
        return Err(BadHeader::Version(version_and_command >> 4));
    }
    let local = match version_and_command & 0xf {
        0 => true,
        1 => false,
        command => return Err(BadHeader::Command(command)),
    };
    if FIXED + length > MAX_TAKEN {
        return Err(BadHeader::TooLong(FIXED + length));
    }
    let Some(body) = rest.get(..length) else {
        return Ok(Parsed::Partial { begun });
    };
    let caller = if local { None } else { caller(family, body)? };
    Ok(Parsed::Header {
        length: FIXED + length,
        caller,
    })
}

fn caller(family: u8, body: &[u8]) -> Result<Option<Caller>, BadHeader> {
    let (source, destination, tlvs) = match family {
        0x00 => return Ok(None),
        0x11 => addresses::<4>(body),
        0x21 => addresses::<16>(body),
        other => return Err(BadHeader::Family(other)),
    }
    .ok_or(BadHeader::Addresses)?;
    Ok(Some(Caller {
        source,
        destination,
        workload: workload(tlvs)?,
    }))
}

/// Source, destination, and what follows them.
fn addresses<const OCTETS: usize>(body: &[u8]) -> Option<(SocketAddr, SocketAddr, &[u8])>
where
    IpAddr: From<[u8; OCTETS]>,
{
    let (source, rest) = body.split_first_chunk::<OCTETS>()?;
    let (destination, rest) = rest.split_first_chunk::<OCTETS>()?;
    let (source_port, rest) = rest.split_first_chunk::<2>()?;
    let (destination_port, rest) = rest.split_first_chunk::<2>()?;
    let address = |ip: &[u8; OCTETS], port: &[u8; 2]| {
        unmapped(SocketAddr::new((*ip).into(), u16::from_be_bytes(*port)))
    };
    Some((
        address(source, source_port),
        address(destination, destination_port),
        rest,
    ))
}

/// The workload that the TLVs name; those of other types are skipped. Of two of one type the later
/// counts.
fn workload(mut tlvs: &[u8]) -> Result<Option<Workload>, BadHeader> {
    let mut workload = Workload::default();
    while let Some((&kind, rest)) = tlvs.split_first() {
        let (length, rest) = rest.split_first_chunk::<2>().ok_or(BadHeader::Tlv)?;
        let length = usize::from(u16::from_be_bytes(*length));
        let (value, rest) = rest.split_at_checked(length).ok_or(BadHeader::Tlv)?;
        tlvs = rest;
        let text = || std::str::from_utf8(value).map_err(|_| BadHeader::Text(kind));
        if kind == Tlv::Namespace as u8 {
            text()?.clone_into(&mut workload.namespace);
        } else if kind == Tlv::Workload as u8 {
            text()?.clone_into(&mut workload.name);
        } else if kind == Tlv::ServiceAccount as u8 {
            text()?.clone_into(&mut workload.service_account);
        } else if kind == Tlv::Labels as u8 {
            let labels = text()?.split('\n').filter_map(|line| line.split_once('='));
            workload.labels = labels
                .map(|(key, value)| (key.to_owned(), value.to_owned()))
                .collect();
        }
    }
    Ok((workload != Workload::default()).then_some(workload))
}
