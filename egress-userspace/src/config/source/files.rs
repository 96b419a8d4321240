// SPDX-License-Identifier: Apache-2.0
//! Files and directories to raw documents, each with its file and line.
//!
//! Documents are split on `---` lines before any of them is parsed, so that a broken one never
//! hides the others. Does not watch (see `watch`) and does not parse.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs, io,
    path::{Path, PathBuf},
    sync::Arc,
};

use crate::config::ConfigError;

/// One YAML document as it stands in a file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::config) struct RawDocument {
    /// The file, as the user named it or found below a directory the user named.
    pub file: Arc<Path>,
    /// 1-based line of the first line of `text`.
    pub first_line: u64,
    /// 1-based line of the first line that says something.
    pub line: u64,
    /// The text between two separators, line ends normalised to `\n`.
    pub text: Arc<str>,
}

/// Why a file gave no documents.
#[derive(Debug)]
pub(in crate::config) enum FileProblem {
    /// It could not be read.
    Unreadable(io::Error),
    /// It is not UTF-8; 1-based line of the first bad byte.
    NotUtf8 { line: u64 },
}

/// The configured paths as they are on disk now.
#[derive(Debug, Default)]
pub(in crate::config) struct Scan {
    /// Files to read, sorted, each once.
    pub files: BTreeSet<PathBuf>,
    /// Directories found below configured directories, themselves included.
    pub directories: BTreeSet<PathBuf>,
    /// Paths that could not be looked at.
    pub unreadable: Vec<(PathBuf, io::Error)>,
}

/// The outcome of reading a [`Scan`], by file.
pub(in crate::config) type ReadFiles = BTreeMap<PathBuf, Result<Vec<RawDocument>, FileProblem>>;

/// Lists the files below `paths`. Directories are searched recursively for `*.yaml` and `*.yml`;
/// names that begin with a dot are skipped (Kubernetes' `..data`, editors' locks). A file that is
/// named itself may have any name.
pub(in crate::config) fn scan(paths: &[PathBuf]) -> Scan {
    let mut scan = Scan::default();
    let mut visited = BTreeSet::new();
    for path in paths {
        match fs::metadata(path) {
            Ok(metadata) if metadata.is_dir() => scan_directory(path, &mut scan, &mut visited),
            Ok(_) => {
                scan.files.insert(path.clone());
            }
            Err(error) => scan.unreadable.push((path.clone(), error)),
        }
    }
    scan
}

/// Symbolic links are followed; `visited` holds the real directories, so that a link to a parent
/// ends the descent.
fn scan_directory(directory: &Path, scan: &mut Scan, visited: &mut BTreeSet<PathBuf>) {
    let entries = fs::canonicalize(directory)
        .and_then(|real| Ok((visited.insert(real), fs::read_dir(directory)?)));
    let entries = match entries {
        Ok((true, entries)) => entries,
        Ok((false, _)) => return,
        Err(error) => {
            scan.unreadable.push((directory.to_owned(), error));
            return;
        }
    };
    scan.directories.insert(directory.to_owned());
    for entry in entries {
        let path = match entry {
            Ok(entry) => entry.path(),
            Err(error) => {
                scan.unreadable.push((directory.to_owned(), error));
                continue;
            }
        };
        if is_hidden(&path) {
            continue;
        }
        match fs::metadata(&path) {
            Ok(metadata) if metadata.is_dir() => scan_directory(&path, scan, visited),
            Ok(_) if is_yaml(&path) => {
                scan.files.insert(path);
            }
            // A file that went away between the listing and here is a deleted file.
            Err(error) if is_yaml(&path) && error.kind() != io::ErrorKind::NotFound => {
                scan.unreadable.push((path, error));
            }
            _ => {}
        }
    }
}

fn is_hidden(path: &Path) -> bool {
    path.file_name()
        .is_some_and(|name| name.as_encoded_bytes().starts_with(b"."))
}

fn is_yaml(path: &Path) -> bool {
    path.extension()
        .is_some_and(|extension| extension == "yaml" || extension == "yml")
}

/// Reads every file of a scan.
pub(in crate::config) fn read(scan: &Scan) -> ReadFiles {
    scan.files
        .iter()
        .map(|path| (path.clone(), read_documents(path)))
        .collect()
}

/// The first path that cannot be read, as an error: a start must not run on half of its
/// configuration.
pub(in crate::config) fn refuse_unreadable(
    scan: &mut Scan,
    files: &mut ReadFiles,
) -> Result<(), ConfigError> {
    if !scan.unreadable.is_empty() {
        let (path, source) = scan.unreadable.swap_remove(0);
        return Err(ConfigError::Unreadable { path, source });
    }
    let bad = files
        .iter()
        .find(|(_, read)| matches!(read, Err(FileProblem::Unreadable(_))))
        .map(|(path, _)| path.clone());
    if let Some(path) = bad
        && let Some(Err(FileProblem::Unreadable(source))) = files.remove(&path)
    {
        return Err(ConfigError::Unreadable { path, source });
    }
    Ok(())
}

fn read_documents(path: &Path) -> Result<Vec<RawDocument>, FileProblem> {
    let text = read_text(path)?;
    let file: Arc<Path> = path.into();
    Ok(split(&text)
        .into_iter()
        .map(|part| RawDocument {
            file: Arc::clone(&file),
            first_line: part.first_line,
            line: part.line,
            text: part.text.into(),
        })
        .collect())
}

/// The text of a file without byte order mark, line ends normalised to `\n`.
pub(in crate::config) fn read_text(path: &Path) -> Result<String, FileProblem> {
    let bytes = fs::read(path).map_err(FileProblem::Unreadable)?;
    let text = String::from_utf8(bytes).map_err(|error| {
        let good = &error.as_bytes()[..error.utf8_error().valid_up_to()];
        let newlines = good.iter().filter(|&&byte| byte == b'\n').count();
        FileProblem::NotUtf8 {
            line: u64::try_from(newlines).map_or(1, |lines| lines + 1),
        }
    })?;
    let text = text.strip_prefix('\u{feff}').unwrap_or(&text);
    Ok(text.replace("\r\n", "\n"))
}

struct Part {
    first_line: u64,
    line: u64,
    text: String,
}

/// Splits on `---` at column 0 (YAML 1.2 9.1.2: no document can contain such a line). Parts that
/// say nothing are left out.
fn split(text: &str) -> Vec<Part> {
    let mut parts = Vec::new();
    let mut current = Part {
        first_line: 1,
        line: 0,
        text: String::new(),
    };
    for (number, line) in (1u64..).zip(text.split_inclusive('\n')) {
        let content = line.trim_end();
        let separator = match line.strip_prefix("---") {
            Some(rest) if rest.trim().is_empty() || rest.starts_with([' ', '\t']) => Some(rest),
            _ => None,
        };
        if let Some(rest) = separator {
            finish(&mut parts, current);
            current = Part {
                first_line: number,
                line: 0,
                // What follows the marker on its line belongs to the document.
                text: format!("   {rest}"),
            };
            if says_something(rest.trim()) {
                current.line = number;
            }
            continue;
        }
        if current.line == 0 && says_something(content.trim_start()) {
            current.line = number;
        }
        // The end marker and directives mean nothing here, but their line must be kept.
        if content == "..." || content.starts_with('%') && current.line == number {
            current.text.push('\n');
            if current.line == number {
                current.line = 0;
            }
        } else {
            current.text.push_str(line);
        }
    }
    finish(&mut parts, current);
    parts
}

fn says_something(content: &str) -> bool {
    !content.is_empty() && !content.starts_with('#')
}

fn finish(parts: &mut Vec<Part>, part: Part) {
    if part.line > 0 {
        parts.push(part);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn documents_are_split_on_markers_only() {
        let text = "# head\n---\na: 1\n--- # two\n\nb: |\n  ---\n  x\n---x: y\n---\n# nothing\n---\n{c: 1}\n...\n";
        let found: Vec<_> = split(text)
            .into_iter()
            .map(|p| (p.first_line, p.line, p.text.trim().to_owned()))
            .collect();
        assert_eq!(
            found,
            [
                (2, 3, "a: 1".to_owned()),
                (4, 6, "# two\n\nb: |\n  ---\n  x\n---x: y".to_owned()),
                (12, 13, "{c: 1}".to_owned()),
            ]
        );
    }
}
