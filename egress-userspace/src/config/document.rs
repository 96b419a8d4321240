// SPDX-License-Identifier: Apache-2.0
//! One YAML document: its text, where it starts, and the line of any field in it. The step between
//! reading a file and knowing what object it holds; does not know any kind.

use std::{path::PathBuf, sync::Arc};

use saphyr_parser::{Event, Parser};
use serde_yaml::Value;

/// A document as it stands in a file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Document {
    /// The file.
    pub file: Arc<PathBuf>,
    /// 1-based line of the document's first line that is not empty or a comment.
    pub line: u64,
    /// 1-based line of the first line of `text`.
    pub text_line: u64,
    /// The document without its `---`.
    pub text: String,
}

/// Splits a file at its `---` lines, so that one broken document never hides the others. YAML
/// forbids `---` at column 0 inside scalars (YAML 1.2, 9.1.2), which makes this exact. Documents
/// without content are left out.
pub fn split(file: PathBuf, text: &str) -> Vec<Document> {
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    let file = Arc::new(file);
    let mut documents = Vec::new();
    let mut current = String::new();
    let mut text_line = 1;
    for (line, content) in (1..).zip(text.split_inclusive('\n')) {
        let bare = content.trim_end();
        if bare == "---" || bare.starts_with("--- ") {
            push(
                &mut documents,
                &file,
                std::mem::take(&mut current),
                text_line,
            );
            // What follows the marker on its line belongs to the document.
            current.push_str(content.get(3..).unwrap_or_default());
            text_line = line;
        } else if bare == "..." {
            current.push('\n');
        } else {
            current.push_str(content);
        }
    }
    push(&mut documents, &file, current, text_line);
    documents
}

fn push(documents: &mut Vec<Document>, file: &Arc<PathBuf>, text: String, text_line: u64) {
    let first = text.lines().position(|line| {
        let line = line.trim_start();
        !line.is_empty() && !line.starts_with('#')
    });
    if let Some(first) = first {
        let line = text_line + first as u64;
        documents.push(Document {
            file: file.clone(),
            line,
            text_line,
            text,
        });
    }
}

impl Document {
    /// The line of a field path such as `spec.http[0].match`; the nearest parent that exists when
    /// the field does not.
    pub fn line_of(&self, path: &str) -> u64 {
        let wanted = steps(path);
        let mut best = (0, self.line);
        for (at, line) in Walk::new(&self.text) {
            let common = at.iter().zip(&wanted).take_while(|(a, b)| a == b).count();
            if common == at.len() && common > best.0 {
                best = (common, self.text_line + line - 1);
            }
        }
        best.1
    }
}

/// Splits `spec.http[0].uri` into `spec`, `http`, `0`, `uri`.
fn steps(path: &str) -> Vec<String> {
    path.split(['.', '[', ']'])
        .filter(|step| !step.is_empty())
        .map(str::to_owned)
        .collect()
}

/// One open collection.
enum Open {
    Map { key: Option<String> },
    List { next: usize },
}

/// Yields the path and the 1-based line of every key and list item, until the text ends or breaks.
struct Walk<'t> {
    parser: Parser<'t, saphyr_parser::StrInput<'t>>,
    open: Vec<Open>,
}

impl<'t> Walk<'t> {
    fn new(text: &'t str) -> Self {
        Self {
            parser: Parser::new_from_str(text),
            open: Vec::new(),
        }
    }

    fn path(&self) -> Vec<String> {
        self.open
            .iter()
            .filter_map(|open| match open {
                Open::Map { key } => key.clone(),
                Open::List { next } => next.checked_sub(1).map(|index| index.to_string()),
            })
            .collect()
    }

    /// A value begins; true when it is an item or a value of something.
    fn begin_value(&mut self) -> bool {
        match self.open.last_mut() {
            Some(Open::List { next }) => {
                *next += 1;
                true
            }
            _ => false,
        }
    }

    fn end_value(&mut self) {
        if let Some(Open::Map { key }) = self.open.last_mut() {
            *key = None;
        }
    }
}

impl Iterator for Walk<'_> {
    type Item = (Vec<String>, u64);

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            let (event, span) = self.parser.next()?.ok()?;
            let line = span.start.line() as u64;
            match event {
                Event::Scalar(value, ..) => {
                    if let Some(Open::Map { key: key @ None }) = self.open.last_mut() {
                        *key = Some(value.into_owned());
                        return Some((self.path(), line));
                    }
                    let item = self.begin_value();
                    let found = item.then(|| (self.path(), line));
                    self.end_value();
                    if found.is_some() {
                        return found;
                    }
                }
                Event::Alias(_) => {
                    self.begin_value();
                    self.end_value();
                }
                Event::MappingStart(..) | Event::SequenceStart(..) => {
                    let item = self.begin_value();
                    let found = item.then(|| (self.path(), line));
                    self.open.push(match event {
                        Event::MappingStart(..) => Open::Map { key: None },
                        _ => Open::List { next: 0 },
                    });
                    if found.is_some() {
                        return found;
                    }
                }
                Event::MappingEnd | Event::SequenceEnd => {
                    self.open.pop();
                    self.end_value();
                }
                Event::StreamEnd => return None,
                _ => {}
            }
        }
    }
}

/// Parses a document; serde_yaml bounds recursion and alias expansion and refuses duplicate keys.
///
/// # Errors
/// Line (1-based, in the file) and reason.
pub fn parse(document: &Document) -> Result<Value, (u64, String)> {
    serde_yaml::from_str(&document.text).map_err(|error| {
        let line = error.location().map_or(document.line, |at| {
            document.text_line + at.line() as u64 - 1
        });
        let text = error.to_string();
        // The library repeats the position within the document; the file's line is what counts.
        let reason = text.split(" at line ").next().unwrap_or(&text);
        (line, reason.to_owned())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = "# head\n---\nkind: A\nspec:\n  http:\n  - match:\n    - uri: x\n    \
                        route: []\n  - route: y\n--- # second\n\nkind: B\n...\n---\n# nothing\n";

    #[test]
    fn documents_are_split_and_know_their_lines() {
        let documents = split("f.yaml".into(), TEXT);
        let lines: Vec<_> = documents.iter().map(|d| d.line).collect();
        assert_eq!(lines, [3, 12]);
    }

    #[test]
    fn fields_have_lines() {
        let documents = split("f.yaml".into(), TEXT);
        let cases = [
            ("spec", 4),
            ("spec.http[0]", 6),
            ("spec.http[0].match[0].uri", 7),
            ("spec.http[0].route", 8),
            ("spec.http[1].route", 9),
            ("spec.http[0].missing", 6),
            ("", 3),
        ];
        for (path, line) in cases {
            assert_eq!(documents[0].line_of(path), line, "{path}");
        }
    }

    #[test]
    fn hostile_yaml_ends_in_an_error() {
        let laughs = {
            let mut text = String::from("a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n");
            for n in 1..20 {
                let item = format!("*a{}, ", n - 1).repeat(9);
                text.push_str(&format!("a{n}: &a{n} [{item}*a{}]\n", n - 1));
            }
            text
        };
        let deep = "[".repeat(100_000);
        for text in [
            laughs.as_str(),
            deep.as_str(),
            "a: 1\na: 2\n",
            "a: [\n",
            "a: b: c\n",
        ] {
            let documents = split("f.yaml".into(), text);
            assert!(
                parse(&documents[0]).is_err(),
                "{}",
                &text[..text.len().min(40)]
            );
        }
    }
}
