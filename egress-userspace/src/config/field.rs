// SPDX-License-Identifier: Apache-2.0
//! Paths of fields inside a document, as messages show them (`spec.http[0].match[1].uri`) and as
//! the line of a field is looked up by. Does not know any object.

use std::fmt;

use serde_yaml::Value;

/// One step from a value to a part of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Segment {
    /// Into a mapping.
    Key(String),
    /// Into a sequence.
    Index(usize),
}

/// A path that lives on the stack while an object is checked; costs nothing until it is owned.
#[derive(Debug, Clone, Copy)]
pub(super) enum FieldPath<'a> {
    /// The whole document.
    Root,
    /// A key of the parent.
    Key(&'a FieldPath<'a>, &'a str),
    /// An item of the parent.
    Index(&'a FieldPath<'a>, usize),
}

impl<'a> FieldPath<'a> {
    /// The field `name` of this one.
    pub(super) fn key(&'a self, name: &'a str) -> FieldPath<'a> {
        FieldPath::Key(self, name)
    }

    /// The item `index` of this one, 0-based.
    pub(super) fn index(&'a self, index: usize) -> FieldPath<'a> {
        FieldPath::Index(self, index)
    }

    /// The owned form, outermost segment first.
    pub(super) fn segments(&self) -> Vec<Segment> {
        match self {
            Self::Root => Vec::new(),
            Self::Key(parent, name) => {
                let mut segments = parent.segments();
                segments.push(Segment::Key((*name).to_owned()));
                segments
            }
            Self::Index(parent, index) => {
                let mut segments = parent.segments();
                segments.push(Segment::Index(*index));
                segments
            }
        }
    }
}

/// Segments in the form of messages; keys that are not plain words are quoted.
pub(super) struct Shown<'a>(pub(super) &'a [Segment]);

impl fmt::Display for Shown<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (position, segment) in self.0.iter().enumerate() {
            match segment {
                Segment::Index(index) => write!(f, "[{index}]")?,
                Segment::Key(key) if is_word(key) => {
                    if position > 0 {
                        f.write_str(".")?;
                    }
                    f.write_str(key)?;
                }
                Segment::Key(key) => write!(f, "[{key:?}]")?,
            }
        }
        Ok(())
    }
}

fn is_word(key: &str) -> bool {
    !key.is_empty()
        && key
            .bytes()
            .all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_')
}

/// The segments of an error that `serde_path_to_error` located.
pub(super) fn from_serde(path: &serde_path_to_error::Path) -> Vec<Segment> {
    path.iter()
        .filter_map(|segment| match segment {
            serde_path_to_error::Segment::Seq { index } => Some(Segment::Index(*index)),
            serde_path_to_error::Segment::Map { key } => Some(Segment::Key(key.clone())),
            // An enum variant is part of the value, an unknown segment has no name.
            _ => None,
        })
        .collect()
}

/// The first part of `value` that is null. Kubernetes refuses null in a typed field; here it would
/// be read as "left out" and could widen a match.
pub(super) fn first_null(value: &Value) -> Option<Vec<Segment>> {
    let (segment, mut inner) = match value {
        Value::Null => return Some(Vec::new()),
        Value::Sequence(items) => items.iter().enumerate().find_map(|(index, item)| {
            first_null(item).map(|inner| (Segment::Index(index), inner))
        })?,
        Value::Mapping(fields) => fields.iter().find_map(|(key, item)| {
            let key = key.as_str().unwrap_or_default().to_owned();
            first_null(item).map(|inner| (Segment::Key(key), inner))
        })?,
        _ => return None,
    };
    inner.insert(0, segment);
    Some(inner)
}

/// What to say about it.
pub(super) const NULL_VALUE: &str =
    "is empty (null): give it a value, indent what belongs to it, or leave the field out";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_read_like_istios() {
        let spec = FieldPath::Root.key("spec");
        let http = spec.key("http");
        let rule = http.index(0);
        let headers = rule.key("headers");
        assert_eq!(
            Shown(&headers.key("x.y").segments()).to_string(),
            "spec.http[0].headers[\"x.y\"]"
        );
        assert_eq!(
            Shown(&rule.key("match").segments()).to_string(),
            "spec.http[0].match"
        );
    }
}
