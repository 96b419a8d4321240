// SPDX-License-Identifier: Apache-2.0
//! The book of addresses: what the proxy dials and the kernel maps capture.

use std::{
    collections::HashMap,
    net::IpAddr,
    sync::{Arc, OnceLock},
};

/// Addresses of every name that is kept resolved. Immutable; a new book replaces it.
#[derive(Debug, Clone, Default)]
pub struct AddressBook {
    names: HashMap<Arc<str>, Resolved>,
    /// Made when it is first asked for: only opaque TCP does.
    by_address: OnceLock<HashMap<IpAddr, Vec<String>>>,
}

impl PartialEq for AddressBook {
    fn eq(&self, other: &Self) -> bool {
        self.names == other.names
    }
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

    /// Names that resolve to an address, or did until lately; sorted.
    pub fn names_of(&self, address: IpAddr) -> &[String] {
        let index = self.by_address.get_or_init(|| {
            let mut index: HashMap<IpAddr, Vec<String>> = HashMap::new();
            for (name, resolved) in self.iter() {
                for address in resolved.addresses.iter().chain(&*resolved.retired) {
                    index.entry(*address).or_default().push(name.to_owned());
                }
            }
            for names in index.values_mut() {
                names.sort_unstable();
                names.dedup();
            }
            index
        });
        index.get(&address).map_or(&[], Vec::as_slice)
    }

    /// Every name.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &Resolved)> {
        self.names
            .iter()
            .map(|(name, resolved)| (name.as_ref(), resolved))
    }
}

impl FromIterator<(String, Resolved)> for AddressBook {
    fn from_iter<T: IntoIterator<Item = (String, Resolved)>>(iter: T) -> Self {
        iter.into_iter()
            .map(|(name, resolved)| (Arc::from(name), resolved))
            .collect()
    }
}

impl FromIterator<(Arc<str>, Resolved)> for AddressBook {
    fn from_iter<T: IntoIterator<Item = (Arc<str>, Resolved)>>(iter: T) -> Self {
        Self {
            names: iter.into_iter().collect(),
            by_address: OnceLock::new(),
        }
    }
}
