// SPDX-License-Identifier: Apache-2.0
//! Brings the destination maps to the state a [`DestinationPlan`] demands.
//!
//! Only differences are written. Everything is added before anything is removed, so a
//! destination that stays registered is registered at every moment; a map too full to hold both
//! states for that moment is emptied of stale entries first.

use std::collections::BTreeMap;

use aya::{
    Ebpf,
    maps::{HashMap, LpmTrie, MapData, MapError, lpm_trie::Key},
};
use egress_common::{
    maps::{
        DESTINATION_CIDRS_CAPACITY, DESTINATION_CIDRS4, DESTINATION_CIDRS6, DESTINATIONS4,
        DESTINATIONS4_CAPACITY, DESTINATIONS6, DESTINATIONS6_CAPACITY,
    },
    redirect::{
        CIDR_FIXED_BITS, CidrKey4, CidrKey6, Destination, DestinationKey4, DestinationKey6,
    },
};
use ipnet::IpNet;

use super::{
    error::KernelError,
    loader::take_map,
    redirect::{CidrEntry, DestinationPlan},
};

/// The four maps and what is in them.
#[derive(Debug)]
pub struct Destinations {
    addresses4: Published<HashMap<MapData, DestinationKey4, Destination>, DestinationKey4>,
    addresses6: Published<HashMap<MapData, DestinationKey6, Destination>, DestinationKey6>,
    cidrs4: Published<LpmTrie<MapData, CidrKey4, Destination>, CidrEntry<CidrKey4>>,
    cidrs6: Published<LpmTrie<MapData, CidrKey6, Destination>, CidrEntry<CidrKey6>>,
}

/// One map with its content as last read or written.
#[derive(Debug)]
struct Published<M, K> {
    name: &'static str,
    capacity: usize,
    map: M,
    content: BTreeMap<K, Destination>,
}

/// What [`Published`] needs of a map.
trait DestinationMap<K> {
    fn entries(&self) -> Result<BTreeMap<K, Destination>, MapError>;
    fn set(&mut self, key: K, destination: Destination) -> Result<(), MapError>;
    fn unset(&mut self, key: K) -> Result<(), MapError>;
}

impl Destinations {
    /// Takes the maps out of the object; entries left by an earlier agent are kept until the
    /// first plan.
    pub fn take(ebpf: &mut Ebpf) -> Result<Self, KernelError> {
        let addresses4 = take_map(ebpf, DESTINATIONS4)?;
        let addresses6 = take_map(ebpf, DESTINATIONS6)?;
        let cidrs4 = take_map(ebpf, DESTINATION_CIDRS4)?;
        let cidrs6 = take_map(ebpf, DESTINATION_CIDRS6)?;
        Ok(Self {
            addresses4: Published::open(DESTINATIONS4, DESTINATIONS4_CAPACITY, addresses4)?,
            addresses6: Published::open(DESTINATIONS6, DESTINATIONS6_CAPACITY, addresses6)?,
            cidrs4: Published::open(DESTINATION_CIDRS4, DESTINATION_CIDRS_CAPACITY, cidrs4)?,
            cidrs6: Published::open(DESTINATION_CIDRS6, DESTINATION_CIDRS_CAPACITY, cidrs6)?,
        })
    }

    /// What is in force until the first plan: the tables of an earlier agent, else only the
    /// internal networks.
    pub fn publish_first(&mut self, internal: &[IpNet]) -> Result<(), KernelError> {
        let is_fresh = self.addresses4.content.is_empty()
            && self.addresses6.content.is_empty()
            && self.cidrs4.content.is_empty()
            && self.cidrs6.content.is_empty();
        if !is_fresh {
            return Ok(());
        }
        let mut plan = DestinationPlan::default();
        for network in internal {
            plan.pass(*network);
        }
        self.publish(&plan)
    }

    /// Takes out what the plan does not hold, and adds nothing.
    ///
    /// # Errors
    /// As [`Self::publish`]; the plan's size is checked first.
    pub fn retract(&mut self, plan: &DestinationPlan) -> Result<(), KernelError> {
        self.check(plan)?;
        self.addresses4.remove_stale(&plan.addresses4)?;
        self.addresses6.remove_stale(&plan.addresses6)?;
        self.cidrs4.remove_stale(&plan.cidrs4)?;
        self.cidrs6.remove_stale(&plan.cidrs6)
    }

    fn check(&self, plan: &DestinationPlan) -> Result<(), KernelError> {
        self.addresses4.check(plan.addresses4.len())?;
        self.addresses6.check(plan.addresses6.len())?;
        self.cidrs4.check(plan.cidrs4.len())?;
        self.cidrs6.check(plan.cidrs6.len())
    }

    /// Makes the maps hold exactly the plan.
    ///
    /// # Errors
    /// [`KernelError::MapTooSmall`] before anything is changed. [`KernelError::Map`] when the
    /// kernel refuses an entry (no memory): the entries written so far stay, and the next call
    /// goes on from there.
    pub fn publish(&mut self, plan: &DestinationPlan) -> Result<(), KernelError> {
        self.check(plan)?;
        self.addresses4.add(&plan.addresses4)?;
        self.addresses6.add(&plan.addresses6)?;
        self.cidrs4.add(&plan.cidrs4)?;
        self.cidrs6.add(&plan.cidrs6)?;
        self.retract(plan)
    }
}

impl<M: DestinationMap<K>, K: Ord + Copy> Published<M, K> {
    fn open(name: &'static str, capacity: usize, map: M) -> Result<Self, KernelError> {
        let content = map.entries().map_err(|source| KernelError::Map {
            action: "read",
            map: name,
            source,
        })?;
        Ok(Self {
            name,
            capacity,
            map,
            content,
        })
    }

    fn check(&self, wanted: usize) -> Result<(), KernelError> {
        if wanted > self.capacity {
            return Err(KernelError::MapTooSmall {
                map: self.name,
                capacity: self.capacity,
                wanted,
            });
        }
        Ok(())
    }

    fn add(&mut self, wanted: &BTreeMap<K, Destination>) -> Result<(), KernelError> {
        let new = wanted
            .keys()
            .filter(|key| !self.content.contains_key(*key))
            .count();
        if self.content.len() + new > self.capacity {
            self.remove_stale(wanted)?;
        }
        for (key, destination) in wanted {
            if self.content.get(key) == Some(destination) {
                continue;
            }
            self.map
                .set(*key, *destination)
                .map_err(|source| KernelError::Map {
                    action: "add to",
                    map: self.name,
                    source,
                })?;
            self.content.insert(*key, *destination);
        }
        Ok(())
    }

    fn remove_stale(&mut self, wanted: &BTreeMap<K, Destination>) -> Result<(), KernelError> {
        let stale: Vec<K> = self
            .content
            .keys()
            .filter(|key| !wanted.contains_key(*key))
            .copied()
            .collect();
        for key in stale {
            match self.map.unset(key) {
                Ok(()) | Err(MapError::KeyNotFound) => {
                    self.content.remove(&key);
                }
                Err(source) => {
                    return Err(KernelError::Map {
                        action: "remove from",
                        map: self.name,
                        source,
                    });
                }
            }
        }
        Ok(())
    }
}

impl<K: aya::Pod + Ord> DestinationMap<K> for HashMap<MapData, K, Destination> {
    fn entries(&self) -> Result<BTreeMap<K, Destination>, MapError> {
        self.iter().collect()
    }

    fn set(&mut self, key: K, destination: Destination) -> Result<(), MapError> {
        self.insert(key, destination, 0)
    }

    fn unset(&mut self, key: K) -> Result<(), MapError> {
        self.remove(&key)
    }
}

impl<K: aya::Pod + Ord> DestinationMap<CidrEntry<K>> for LpmTrie<MapData, K, Destination> {
    fn entries(&self) -> Result<BTreeMap<CidrEntry<K>, Destination>, MapError> {
        self.iter()
            .map(|entry| {
                let (key, destination) = entry?;
                let entry = CidrEntry {
                    address_bits: destination.address_bits,
                    key: key.data(),
                };
                Ok((entry, destination))
            })
            .collect()
    }

    fn set(&mut self, entry: CidrEntry<K>, destination: Destination) -> Result<(), MapError> {
        self.insert(&lpm_key(entry), destination, 0)
    }

    fn unset(&mut self, entry: CidrEntry<K>) -> Result<(), MapError> {
        self.remove(&lpm_key(entry))
    }
}

fn lpm_key<K: aya::Pod>(entry: CidrEntry<K>) -> Key<K> {
    Key::new(CIDR_FIXED_BITS + u32::from(entry.address_bits), entry.key)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A map in memory that remembers the order of its changes and has a capacity.
    #[derive(Default)]
    struct Recorded {
        content: BTreeMap<u32, Destination>,
        changes: Vec<(char, u32)>,
        capacity: usize,
    }

    impl DestinationMap<u32> for Recorded {
        fn entries(&self) -> Result<BTreeMap<u32, Destination>, MapError> {
            Ok(self.content.clone())
        }

        fn set(&mut self, key: u32, destination: Destination) -> Result<(), MapError> {
            self.content.insert(key, destination);
            assert!(self.content.len() <= self.capacity, "over capacity");
            self.changes.push(('+', key));
            Ok(())
        }

        fn unset(&mut self, key: u32) -> Result<(), MapError> {
            self.content.remove(&key);
            self.changes.push(('-', key));
            Ok(())
        }
    }

    fn content(entries: &[(u32, u8)]) -> BTreeMap<u32, Destination> {
        entries
            .iter()
            .map(|(key, action)| {
                let destination = Destination {
                    action: *action,
                    address_bits: 32,
                };
                (*key, destination)
            })
            .collect()
    }

    #[test]
    fn only_differences_are_written_and_additions_come_first() {
        for (capacity, before, after, changes) in [
            (4, &[(1, 2), (2, 2)][..], &[(1, 2), (2, 2)][..], &[][..]),
            (
                4,
                &[(1, 2), (2, 2)],
                &[(2, 2), (3, 2)],
                &[('+', 3), ('-', 1)],
            ),
            (4, &[(1, 2)], &[(1, 1)], &[('+', 1)]),
            // Both states do not fit at once.
            (
                2,
                &[(1, 2), (2, 2)],
                &[(2, 2), (3, 2)],
                &[('-', 1), ('+', 3)],
            ),
        ] {
            let map = Recorded {
                content: content(before),
                capacity,
                ..Recorded::default()
            };
            let mut published = Published::open("TEST", capacity, map).unwrap();
            let wanted = content(after);
            published.check(wanted.len()).unwrap();
            published.add(&wanted).unwrap();
            published.remove_stale(&wanted).unwrap();
            assert_eq!(published.map.changes, changes, "{before:?} to {after:?}");
            assert_eq!(published.map.content, wanted);
            assert_eq!(published.content, wanted);
        }
    }

    #[test]
    fn plan_that_does_not_fit_names_the_map_and_its_capacity() {
        let published = Published::open("TEST", 2, Recorded::default()).unwrap();
        let error = published.check(3).unwrap_err().to_string();
        assert!(
            error.contains("map TEST holds 2 entries") && error.contains("needs 3"),
            "{error}"
        );
    }
}
