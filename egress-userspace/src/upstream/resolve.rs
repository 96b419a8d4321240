// SPDX-License-Identifier: Apache-2.0
//! Names to addresses: keeps every name of the snapshot resolved and publishes the whole book.

use std::{collections::HashMap, net::IpAddr, sync::Arc};

/// Addresses of every name that is kept resolved. Immutable; a new book replaces it.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct AddressBook {
    names: HashMap<String, Resolved>,
}

/// What is known about one name.
#[derive(Debug, Clone, PartialEq)]
pub struct Resolved {
    /// Fresh addresses, v4 first then v6, each family in the order answered; empty after a
    /// definite "does not exist".
    pub addresses: Arc<[IpAddr]>,
    /// Addresses of earlier answers that applications may still hold (grace time); not dialled.
    pub retired: Arc<[IpAddr]>,
    /// Why the last resolution failed, when it did; `addresses` are then the last good ones.
    pub error: Option<Arc<str>>,
}

impl AddressBook {
    /// What is known about `name` (lower case, no trailing dot); `None`: not answered yet.
    pub fn get(&self, name: &str) -> Option<&Resolved> {
        self.names.get(name)
    }

    /// Every name.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &Resolved)> {
        self.names
            .iter()
            .map(|(name, resolved)| (name.as_str(), resolved))
    }
}

impl FromIterator<(String, Resolved)> for AddressBook {
    fn from_iter<T: IntoIterator<Item = (String, Resolved)>>(iter: T) -> Self {
        Self {
            names: iter.into_iter().collect(),
        }
    }
}
