// SPDX-License-Identifier: Apache-2.0
//! StringMatch: exact, prefix, regex, presence.

use regex::Regex;

/// A compiled `StringMatch` (istio virtual_service.proto).
#[derive(Debug, Clone)]
pub enum StringMatch {
    /// Equal, or equal ignoring ASCII case where the field allows it.
    Exact(String),
    /// A plain textual prefix.
    Prefix(String),
    /// RE2 syntax, full match; anchored when compiled.
    Regex(Regex),
    /// `{}`: the thing is there, whatever its value.
    Present,
}
