// SPDX-License-Identifier: Apache-2.0
//! StringMatch: exact, prefix, regex, presence.

use std::fmt;

use regex::{Regex, RegexBuilder};

/// Longest pattern (istio validation: `regex` at most 1024 bytes).
pub const MAX_REGEX_BYTES: usize = 1024;

/// Bound on the compiled size of one regex, so that a hostile pattern costs bounded memory.
const MAX_REGEX_PROGRAM_BYTES: usize = 1 << 20;

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

impl StringMatch {
    /// Compiles a full-match regex in linear-time syntax.
    ///
    /// # Errors
    /// When the pattern is not valid, too long or too large.
    pub fn regex(pattern: &str) -> Result<Self, String> {
        if pattern.len() > MAX_REGEX_BYTES {
            return Err(format!(
                "regex is {} bytes long; at most {MAX_REGEX_BYTES} are allowed",
                pattern.len()
            ));
        }
        compile(&format!("^(?:{pattern})$")).map(Self::Regex)
    }

    /// Whether a value that is there matches.
    pub fn matches(&self, value: &str) -> bool {
        match self {
            Self::Exact(text) => text == value,
            Self::Prefix(text) => value.starts_with(text.as_str()),
            Self::Regex(regex) => regex.is_match(value),
            Self::Present => true,
        }
    }

    /// As [`Self::matches`], with exact and prefix ignoring ASCII case (`ignoreUriCase`).
    pub fn matches_ignoring_case(&self, value: &str) -> bool {
        match self {
            Self::Exact(text) => text.eq_ignore_ascii_case(value),
            Self::Prefix(text) => value
                .as_bytes()
                .get(..text.len())
                .is_some_and(|head| head.eq_ignore_ascii_case(text.as_bytes())),
            Self::Regex(_) | Self::Present => self.matches(value),
        }
    }
}

impl fmt::Display for StringMatch {
    /// `=text`, `=text*`, `~regex`, or `(present)`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Exact(text) => write!(f, "={text}"),
            Self::Prefix(text) => write!(f, "={text}*"),
            Self::Regex(regex) => {
                let anchored = regex.as_str();
                let written = anchored
                    .strip_prefix("^(?:")
                    .and_then(|r| r.strip_suffix(")$"));
                write!(f, "~{}", written.unwrap_or(anchored))
            }
            Self::Present => f.write_str("(present)"),
        }
    }
}

/// Compiles a pattern within the size limit.
///
/// # Errors
/// The compiler's complaint on one line.
pub fn compile(pattern: &str) -> Result<Regex, String> {
    RegexBuilder::new(pattern)
        .size_limit(MAX_REGEX_PROGRAM_BYTES)
        .build()
        .map_err(|error| {
            let text = error.to_string();
            let last = text.lines().last().unwrap_or_default().trim();
            last.strip_prefix("error: ").unwrap_or(last).to_owned()
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn string_matches_follow_rows_5a_2_and_5a_3() {
        let regex = |pattern| StringMatch::regex(pattern).unwrap();
        let cases = [
            (StringMatch::Prefix("/foo".into()), "/foobar", true),
            (StringMatch::Prefix("/foo".into()), "/fo", false),
            (StringMatch::Prefix(String::new()), "/x", true),
            (StringMatch::Exact("/foo".into()), "/foo/", false),
            (regex("/a.*|/b"), "/b", true),
            (regex("/a.*|/b"), "/bb", false),
            (regex("/a"), "/aa", false),
            (StringMatch::Present, "", true),
        ];
        for (matcher, value, expected) in cases {
            assert_eq!(matcher.matches(value), expected, "{matcher:?} {value}");
        }
        assert!(StringMatch::Exact("/Foo".into()).matches_ignoring_case("/fOO"));
        assert!(StringMatch::Prefix("/Foo".into()).matches_ignoring_case("/fOObar"));
        assert!(!StringMatch::Prefix("/Foo".into()).matches_ignoring_case("/f"));
    }

    #[test]
    fn bad_patterns_are_refused_with_the_reason() {
        assert!(StringMatch::regex("(").is_err());
        assert!(StringMatch::regex(&"a".repeat(MAX_REGEX_BYTES + 1)).is_err());
        assert!(StringMatch::regex("(a{1000}){1000}").is_err());
    }
}
