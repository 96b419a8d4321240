// SPDX-License-Identifier: Apache-2.0
//! Host names and wildcards, as Istio compares them. Most specific first: an exact name beats every
//! wildcard, a longer wildcard beats a shorter one, `*` comes last.

use std::{borrow::Cow, collections::HashMap, fmt};

/// A host as written in `hosts`, valid and lower-cased.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum HostPattern {
    /// A full name or an IP address in text form; no trailing dot.
    Exact(String),
    /// `*SUFFIX`: any name that ends in the text after the star and is longer (`*.foo.com` holds
    /// `.foo.com`; istio `pkg/config/host/name.go`).
    Suffix(String),
    /// `*`.
    Any,
}

impl HostPattern {
    /// Reads the YAML form; does not check that the name is legal DNS.
    pub fn parse(text: &str) -> Self {
        let text = text.trim_end_matches('.').to_ascii_lowercase();
        match text.strip_prefix('*') {
            Some("") => Self::Any,
            Some(suffix) => Self::Suffix(suffix.to_owned()),
            None => Self::Exact(text),
        }
    }

    /// Whether a normalised host ([`normalize`]) falls under the pattern.
    pub fn matches(&self, host: &str) -> bool {
        match self {
            Self::Exact(name) => name == host,
            Self::Suffix(suffix) => host.len() > suffix.len() && host.ends_with(suffix.as_str()),
            Self::Any => true,
        }
    }

    /// Whether every host under `other` falls under this pattern.
    pub fn contains(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Any, _) => true,
            (_, Self::Any) => false,
            (Self::Exact(a), Self::Exact(b)) => a == b,
            (Self::Exact(_), Self::Suffix(_)) => false,
            (Self::Suffix(_), Self::Exact(b)) => self.matches(b),
            (Self::Suffix(a), Self::Suffix(b)) => b.ends_with(a.as_str()),
        }
    }

    /// The narrower of the two when one contains the other.
    pub fn intersection<'a>(&'a self, other: &'a Self) -> Option<&'a Self> {
        if self.contains(other) {
            Some(other)
        } else if other.contains(self) {
            Some(self)
        } else {
            None
        }
    }

    /// The name, when the pattern is one.
    pub fn exact(&self) -> Option<&str> {
        match self {
            Self::Exact(name) => Some(name),
            _ => None,
        }
    }
}

impl fmt::Display for HostPattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Exact(name) => f.write_str(name),
            Self::Suffix(suffix) => write!(f, "*{suffix}"),
            Self::Any => f.write_str("*"),
        }
    }
}

/// A Host, :authority or SNI value as it is compared: lower case, without port, trailing dot or
/// the brackets of an IPv6 literal. Borrows when nothing changes.
pub fn normalize(authority: &str) -> Cow<'_, str> {
    let host = match authority.strip_prefix('[') {
        Some(rest) => rest.split(']').next().unwrap_or(rest),
        None => match authority.rsplit_once(':') {
            Some((host, port))
                if port.bytes().all(|b| b.is_ascii_digit()) && !host.contains(':') =>
            {
                host
            }
            _ => authority,
        },
    };
    let host = host.strip_suffix('.').unwrap_or(host);
    if host.bytes().any(|b| b.is_ascii_uppercase()) {
        Cow::Owned(host.to_ascii_lowercase())
    } else {
        Cow::Borrowed(host)
    }
}

/// Values by host pattern; a lookup costs one hash per label of the host, whatever the number of
/// entries.
#[derive(Debug, Clone)]
pub struct HostMap<T> {
    exact: HashMap<String, T>,
    /// Suffixes that begin with a dot.
    suffixes: HashMap<String, T>,
    /// Suffixes that do not (`*x`), longest first; legal with a warning, hence rare.
    partial: Vec<(String, T)>,
    any: Option<T>,
}

impl<T> Default for HostMap<T> {
    fn default() -> Self {
        Self {
            exact: HashMap::new(),
            suffixes: HashMap::new(),
            partial: Vec::new(),
            any: None,
        }
    }
}

impl<T: Default> HostMap<T> {
    /// The value of exactly this pattern, made when missing.
    pub fn entry(&mut self, pattern: &HostPattern) -> &mut T {
        match pattern {
            HostPattern::Exact(name) => self.exact.entry(name.clone()).or_default(),
            HostPattern::Suffix(suffix) if suffix.starts_with('.') => {
                self.suffixes.entry(suffix.clone()).or_default()
            }
            HostPattern::Suffix(suffix) => {
                let at = match self.partial.iter().position(|(have, _)| have == suffix) {
                    Some(at) => at,
                    None => {
                        let at = self
                            .partial
                            .partition_point(|(have, _)| have.len() >= suffix.len());
                        self.partial.insert(at, (suffix.clone(), T::default()));
                        at
                    }
                };
                &mut self.partial[at].1
            }
            HostPattern::Any => self.any.get_or_insert_with(T::default),
        }
    }
}

impl<T> HostMap<T> {
    /// Every value whose pattern holds the normalised host, most specific first.
    pub fn matching<'t, 'h>(
        &'t self,
        host: &'h str,
    ) -> impl Iterator<Item = &'t T> + use<'t, 'h, T> {
        let dots = host
            .bytes()
            .enumerate()
            .skip(1)
            .filter(|&(_, byte)| byte == b'.')
            .filter_map(move |(at, _)| self.suffixes.get(&host[at..]));
        let partial = self
            .partial
            .iter()
            .filter(move |(suffix, _)| host.len() > suffix.len() && host.ends_with(suffix.as_str()))
            .map(|(_, value)| value);
        self.exact
            .get(host)
            .into_iter()
            .chain(dots)
            .chain(partial)
            .chain(&self.any)
    }

    /// Every value, in no particular order.
    pub fn all(&self) -> impl Iterator<Item = &T> {
        let partial = self.partial.iter().map(|(_, value)| value);
        self.exact
            .values()
            .chain(self.suffixes.values())
            .chain(partial)
            .chain(&self.any)
    }

    /// The most specific value that holds the normalised host.
    pub fn find(&self, host: &str) -> Option<&T> {
        self.exact.get(host).or_else(|| self.matching(host).next())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns_match_as_in_row_2_2() {
        let cases = [
            ("*.foo.com", "a.foo.com", true),
            ("*.foo.com", "a.b.foo.com", true),
            ("*.foo.com", "foo.com", false),
            ("foo.com", "foo.com", true),
            ("FOO.com.", "foo.com", true),
            ("*", "anything", true),
            ("*foo.com", "myfoo.com", true),
            ("*foo.com", "foo.com", false),
        ];
        for (pattern, host, expected) in cases {
            assert_eq!(
                HostPattern::parse(pattern).matches(host),
                expected,
                "{pattern} {host}"
            );
        }
    }

    #[test]
    fn hosts_are_normalised_as_in_row_2_1() {
        let cases = [
            ("Foo.COM", "foo.com"),
            ("foo.com:80", "foo.com"),
            ("foo.com.", "foo.com"),
            ("foo.com.:8080", "foo.com"),
            ("[::1]:80", "::1"),
            ("[::1]", "::1"),
            ("::1", "::1"),
            ("192.0.2.1:80", "192.0.2.1"),
            ("", ""),
        ];
        for (sent, expected) in cases {
            assert_eq!(normalize(sent), expected, "{sent}");
        }
    }

    #[test]
    fn the_most_specific_entry_wins() {
        let mut map = HostMap::<Vec<u8>>::default();
        for (value, pattern) in ["*", "*.com", "*.foo.com", "a.foo.com", "*foo.com"]
            .iter()
            .enumerate()
        {
            map.entry(&HostPattern::parse(pattern)).push(value as u8);
        }
        let cases = [
            ("a.foo.com", 3),
            ("b.foo.com", 2),
            ("b.a.foo.com", 2),
            ("x.com", 1),
            ("x.org", 0),
        ];
        for (host, expected) in cases {
            assert_eq!(map.find(host), Some(&vec![expected]), "{host}");
        }
    }

    #[test]
    fn intersections_take_the_narrower() {
        let cases = [
            ("*", "a.com", Some("a.com")),
            ("*.com", "*.foo.com", Some("*.foo.com")),
            ("a.com", "b.com", None),
            ("*.foo.com", "foo.com", None),
        ];
        for (a, b, expected) in cases {
            let (a, b) = (HostPattern::parse(a), HostPattern::parse(b));
            assert_eq!(
                a.intersection(&b).map(ToString::to_string).as_deref(),
                expected
            );
            assert_eq!(
                b.intersection(&a).map(ToString::to_string).as_deref(),
                expected
            );
        }
    }
}
