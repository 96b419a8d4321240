// SPDX-License-Identifier: Apache-2.0
//! The line on which a field of a document is written. Called only when there is something to
//! report, since it scans the text a second time.

use saphyr_parser::{Event, Parser};

use crate::config::field::Segment;

/// 0-based line of the deepest part of `path` that `text` contains: of a key for a mapping, of the
/// item for a sequence. 0 when the text cannot be scanned.
pub(in crate::config) fn line_of(text: &str, path: &[Segment]) -> u64 {
    let mut walk = Walk {
        stack: Vec::new(),
        path,
        depth: 0,
        line: None,
    };
    for event in Parser::new_from_str(text) {
        let Ok((event, span)) = event else { break };
        let line = u64::try_from(span.start.line().saturating_sub(1)).unwrap_or(0);
        if walk.event(&event, line) {
            break;
        }
    }
    walk.line.unwrap_or(0)
}

struct Walk<'a> {
    stack: Vec<Collection>,
    path: &'a [Segment],
    /// How many segments of `path` have been found.
    depth: usize,
    line: Option<u64>,
}

/// A collection that is open at this point of the walk.
struct Collection {
    /// It is the value of the first `stack position` segments of the path.
    on_path: bool,
    sequence: bool,
    /// Items seen; for a mapping, keys and values are counted apart.
    seen: usize,
    /// The value that follows belongs to the wanted key.
    key_matches: bool,
}

impl Walk<'_> {
    /// Takes one event; true when the field was found or passed.
    fn event(&mut self, event: &Event<'_>, line: u64) -> bool {
        match event {
            Event::Scalar(value, ..) => {
                self.node(Some(value), line);
            }
            Event::Alias(_) => {
                self.node(None, line);
            }
            Event::SequenceStart(..) => self.open(true, line),
            Event::MappingStart(..) => self.open(false, line),
            Event::SequenceEnd | Event::MappingEnd => {
                let closed = self.stack.pop();
                if closed.is_some_and(|c| c.on_path) {
                    return true;
                }
            }
            _ => {}
        }
        self.depth == self.path.len() && self.line.is_some()
    }

    fn open(&mut self, sequence: bool, line: u64) {
        let on_path = self.node(None, line);
        self.stack.push(Collection {
            on_path,
            sequence,
            seen: 0,
            key_matches: false,
        });
    }

    /// Accounts for a node in its parent; true when it is the value at the path so far.
    fn node(&mut self, scalar: Option<&str>, line: u64) -> bool {
        let wanted = self.path.get(self.depth);
        let Some(parent) = self.stack.last_mut() else {
            return true;
        };
        let position = parent.seen;
        parent.seen += 1;
        if !parent.on_path {
            return false;
        }
        if parent.sequence {
            if wanted == Some(&Segment::Index(position)) {
                self.depth += 1;
                self.line = Some(line);
                return true;
            }
            return false;
        }
        if position % 2 == 1 {
            return std::mem::take(&mut parent.key_matches);
        }
        if let (Some(Segment::Key(key)), Some(scalar)) = (wanted, scalar)
            && key == scalar
        {
            parent.key_matches = true;
            self.depth += 1;
            self.line = Some(line);
        }
        false
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_field_is_found_on_its_line() {
        let text = "# comment\na: 1\nspec:\n  http:\n  - match:\n    - uri: {exact: /x}\n    - uri:\n        prefix: /y\n  tls: []\n";
        let key = |k: &str| Segment::Key(k.to_owned());
        for (path, line) in [
            (vec![], 0),
            (vec![key("a")], 1),
            (vec![key("spec"), key("http"), Segment::Index(0)], 4),
            (
                vec![
                    key("spec"),
                    key("http"),
                    Segment::Index(0),
                    key("match"),
                    Segment::Index(1),
                    key("uri"),
                    key("prefix"),
                ],
                7,
            ),
            (vec![key("spec"), key("tls")], 8),
            // A field that is not written: the nearest thing that is.
            (vec![key("spec"), key("hosts")], 2),
        ] {
            assert_eq!(line_of(text, &path), line, "{path:?}");
        }
    }
}
