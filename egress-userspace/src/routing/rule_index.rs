// SPDX-License-Identifier: Apache-2.0
//! Which of many rules can match a path: rules for exact paths by their path, the others in order.

use std::collections::HashMap;

use super::{matching::StringMatch, virtual_service::HttpRule};

/// Fewer rules are tried one by one faster than they are looked up.
const WORTH_IT: usize = 8;

/// Positions in a list of rules, by path. Empty when it is not worth it.
#[derive(Debug, Default)]
pub struct RuleIndex {
    exact: HashMap<Box<str>, Vec<u32>>,
    /// Rules that do not name exact paths in every block.
    rest: Vec<u32>,
}

impl RuleIndex {
    /// Indexes a list of rules; positions are those in the list.
    pub fn new<'r>(rules: impl ExactSizeIterator<Item = &'r HttpRule>) -> Option<Self> {
        if rules.len() < WORTH_IT {
            return None;
        }
        let mut index = Self::default();
        for (at, rule) in (0..).zip(rules) {
            match exact_paths(rule) {
                Some(paths) => {
                    for path in paths {
                        let list = index.exact.entry(path.into()).or_default();
                        if list.last() != Some(&at) {
                            list.push(at);
                        }
                    }
                }
                None => index.rest.push(at),
            }
        }
        (!index.exact.is_empty()).then_some(index)
    }

    /// The rules that may match a path (without query), in order.
    pub fn candidates<'i>(&'i self, path: &str) -> impl Iterator<Item = usize> + use<'i> {
        let mut exact = self
            .exact
            .get(path)
            .map_or(&[][..], Vec::as_slice)
            .iter()
            .peekable();
        let mut rest = self.rest.iter().peekable();
        std::iter::from_fn(move || {
            let next = match (exact.peek(), rest.peek()) {
                (Some(a), Some(b)) if a < b => exact.next(),
                (Some(_), None) => exact.next(),
                _ => rest.next(),
            };
            next.map(|at| *at as usize)
        })
    }
}

/// The paths of a rule whose every block names one exactly.
fn exact_paths(rule: &HttpRule) -> Option<Vec<&str>> {
    if rule.matches.is_empty() {
        return None;
    }
    rule.matches
        .iter()
        .map(|block| match &block.uri {
            Some(StringMatch::Exact(path)) if !block.ignore_uri_case => Some(path.as_str()),
            _ => None,
        })
        .collect()
}
