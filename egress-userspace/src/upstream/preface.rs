// SPDX-License-Identifier: Apache-2.0
//! Bytes that an upstream connection begins with, before anything of the client's.
//!
//! They say on whose behalf the connection is, so they are part of what a kept connection is found
//! by: one that began otherwise is another's. Does not know what the bytes mean; they are made in
//! `proxy::proxy_protocol`.

use std::{fmt, sync::Arc};

/// The first bytes of a connection. A clone is a handle; equal bytes are equal.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct Preface(Arc<[u8]>);

impl Preface {
    /// The bytes.
    pub fn bytes(&self) -> &[u8] {
        &self.0
    }
}

impl From<Vec<u8>> for Preface {
    fn from(bytes: Vec<u8>) -> Self {
        Self(bytes.into())
    }
}

impl fmt::Debug for Preface {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Preface({} bytes)", self.0.len())
    }
}
