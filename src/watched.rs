//! Files that somebody may replace while the process runs, and whether somebody did.
//!
//! Looked at, not read: the identity, the size and the time of what is there. A link is followed, so that a folder of
//! links that are switched all at once (as Kubernetes does) is seen too.

use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::PathBuf;

/// Device, inode, size, and the time of the last change in nanoseconds.
type Stamp = (u64, u64, u64, i64, i64);

/// Some files, and what they were when they were looked at last.
#[derive(Debug)]
pub(crate) struct Watched {
    files: Vec<(PathBuf, Option<Stamp>)>,
}

impl Watched {
    /// As they are now.
    pub(crate) fn new(files: impl IntoIterator<Item = PathBuf>) -> Self {
        let looked_at = |path: PathBuf| {
            let stamp = stamp(&path);
            (path, stamp)
        };
        Self {
            files: files.into_iter().map(looked_at).collect(),
        }
    }

    /// Whether any of them is another one, or gone, or there again, since this was asked last.
    pub(crate) fn has_changed(&mut self) -> bool {
        let mut changed = false;
        for (path, seen) in &mut self.files {
            let now = stamp(path);
            changed |= now != *seen;
            *seen = now;
        }
        changed
    }
}

fn stamp(path: &std::path::Path) -> Option<Stamp> {
    let found = fs::metadata(path).ok()?;
    Some((
        found.dev(),
        found.ino(),
        found.size(),
        found.mtime(),
        found.mtime_nsec(),
    ))
}
