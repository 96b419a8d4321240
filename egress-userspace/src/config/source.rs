// SPDX-License-Identifier: Apache-2.0
//! Files and directories to documents, and a notice when they change. Knows nothing of what the
//! documents hold.

use std::{
    collections::BTreeSet,
    fs, io,
    path::{Path, PathBuf},
    sync::Arc,
};

use notify::{RecommendedWatcher, RecursiveMode, Watcher};
use tokio::sync::Notify;

use super::{
    ConfigError,
    document::{Document, split},
};

/// One file as it is now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SourceFile {
    /// Its path as reached from `--config`.
    pub path: PathBuf,
    /// Its documents, or why it has none.
    pub content: Result<Vec<Document>, String>,
}

/// Reads every file, sorted by path, each once.
///
/// # Errors
/// When a path given by the user does not exist or a directory cannot be listed. A file that cannot
/// be read is reported in its [`SourceFile`].
pub fn read(paths: &[PathBuf]) -> Result<Vec<SourceFile>, ConfigError> {
    let mut files = BTreeSet::new();
    for path in paths {
        list(path, true, &mut files).map_err(|source| ConfigError::Read {
            path: path.clone(),
            source,
        })?;
    }
    Ok(files.into_iter().map(read_file).collect())
}

fn read_file(path: PathBuf) -> SourceFile {
    let content = match fs::read(&path) {
        Ok(bytes) => match String::from_utf8(bytes) {
            Ok(text) => Ok(split(path.clone(), &text)),
            Err(error) => Err(format!(
                "not UTF-8 at byte {}",
                error.utf8_error().valid_up_to()
            )),
        },
        Err(error) => Err(format!("cannot be read: {error}")),
    };
    SourceFile { path, content }
}

fn list(path: &Path, given: bool, files: &mut BTreeSet<PathBuf>) -> io::Result<()> {
    if !fs::metadata(path)?.is_dir() {
        let yaml = path.extension().is_some_and(|e| e == "yaml" || e == "yml");
        if given || yaml {
            files.insert(path.to_owned());
        }
        return Ok(());
    }
    for entry in fs::read_dir(path)? {
        let entry = entry?;
        // `..data` and its kin are how Kubernetes swaps a mounted ConfigMap.
        if entry.file_name().to_string_lossy().starts_with("..") {
            continue;
        }
        match list(&entry.path(), false, files) {
            // Gone between listing and looking: as if it had never been there.
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            other => other?,
        }
    }
    Ok(())
}

/// Notifies `changed` when anything under the paths may have changed. Watches the directories that
/// hold the files, since editors replace files rather than write them. Ends when dropped.
///
/// # Errors
/// When the operating system refuses a watch.
pub fn watch(paths: &[PathBuf], changed: Arc<Notify>) -> Result<RecommendedWatcher, ConfigError> {
    let failed = |path: &Path| {
        let path = path.to_owned();
        move |source| ConfigError::Watch { path, source }
    };
    let mut watcher = notify::recommended_watcher(move |event: notify::Result<notify::Event>| {
        // An error may be a lost event: look again.
        if event.map_or(true, |event| !event.kind.is_access()) {
            changed.notify_one();
        }
    })
    .map_err(failed(Path::new(".")))?;
    for path in paths {
        let (directory, mode) = if path.is_dir() {
            (path.as_path(), RecursiveMode::Recursive)
        } else {
            let parent = path.parent().filter(|p| !p.as_os_str().is_empty());
            (
                parent.unwrap_or(Path::new(".")),
                RecursiveMode::NonRecursive,
            )
        };
        watcher.watch(directory, mode).map_err(failed(directory))?;
    }
    Ok(watcher)
}
