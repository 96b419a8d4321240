// SPDX-License-Identifier: Apache-2.0
//! Where configuration comes from: files today. A source yields the complete current set of raw
//! documents and knows nothing of what they mean.

pub(super) mod files;
pub(super) mod lines;
pub(super) mod watch;
