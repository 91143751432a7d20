//! Files that somebody may replace while the process runs, and what to do when somebody did.
//!
//! Looked at, not read: which file it is, its size, and the times of its last change, of its content and of who may read it.
//! A link is followed, so that a folder of links that are switched all at once (as Kubernetes does) is seen too. What could
//! not be used is tried again at each look, for what was in the way may be gone; it is told once.

use std::fmt::Display;
use std::fs;
use std::io::{self, Read as _};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

/// Device, inode, size, and the times of the last change in seconds and nanoseconds.
type Stamp = (u64, u64, u64, [(i64, i64); 2]);

/// Some files, and what they were when they were used last.
#[derive(Debug)]
pub(crate) struct Watched {
    paths: Vec<PathBuf>,
    used: Vec<Option<Stamp>>,
    told: Option<String>,
}

impl Watched {
    /// As they are now; to be made before they are read, so that what changes meanwhile is read again.
    pub(crate) fn new(paths: impl IntoIterator<Item = PathBuf>) -> Self {
        let paths: Vec<PathBuf> = paths.into_iter().collect();
        Self {
            used: stamps(&paths),
            paths,
            told: None,
        }
    }

    /// Whether what is in force is not what is in the files now, for that cannot be used.
    pub(crate) fn is_refused(&self) -> bool {
        self.told.is_some()
    }

    /// Loads them again if any of them is another one than was used last, or gone, or there again. `None`: there is nothing
    /// new, or it was told before why it cannot be used.
    pub(crate) fn refresh<T, E: Display>(&mut self, load: impl FnOnce() -> Result<T, E>) -> Option<Result<T, E>> {
        let now = stamps(&self.paths);
        if now == self.used {
            self.told = None;
            return None;
        }
        let loaded = load();
        match &loaded {
            Ok(_) => {
                self.used = now;
                self.told = None;
            }
            Err(error) => {
                let text = error.to_string();
                if self.told.as_ref() == Some(&text) {
                    return None;
                }
                self.told = Some(text);
            }
        }
        Some(loaded)
    }
}

/// A file's text, of at most so many bytes. What is no file (a pipe, which would be waited for) is refused.
pub(crate) fn read_text(path: &Path, bytes_max: u64) -> io::Result<String> {
    if !fs::metadata(path)?.is_file() {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "it is no file"));
    }
    let mut text = String::new();
    fs::File::open(path)?.take(bytes_max + 1).read_to_string(&mut text)?;
    match text.len() as u64 > bytes_max {
        true => Err(io::Error::new(
            io::ErrorKind::InvalidInput,
            format!("it has more than {bytes_max} bytes"),
        )),
        false => Ok(text),
    }
}

fn stamps(paths: &[PathBuf]) -> Vec<Option<Stamp>> {
    paths.iter().map(|path| stamp(path)).collect()
}

fn stamp(path: &Path) -> Option<Stamp> {
    let found = fs::metadata(path).ok()?;
    let times = [(found.mtime(), found.mtime_nsec()), (found.ctime(), found.ctime_nsec())];
    Some((found.dev(), found.ino(), found.size(), times))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)]
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    #[test]
    fn what_could_not_be_used_is_tried_again_and_told_once() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("file");
        fs::write(&path, "1").unwrap();
        let mut watched = Watched::new([path.clone()]);
        let fine = || Ok::<_, String>(());
        let wrong = || Err::<(), _>("wrong".to_owned());
        assert!(watched.refresh(fine).is_none());
        fs::write(&path, "22").unwrap();
        assert!(matches!(watched.refresh(wrong), Some(Err(_))));
        assert!(watched.refresh(wrong).is_none(), "told already");
        assert!(matches!(
            watched.refresh(|| Err::<(), _>("worse".to_owned())),
            Some(Err(_))
        ));
        assert!(
            matches!(watched.refresh(fine), Some(Ok(()))),
            "though the file is the same"
        );
        assert!(watched.refresh(fine).is_none());
        fs::set_permissions(&path, fs::Permissions::from_mode(0o640)).unwrap();
        assert!(
            matches!(watched.refresh(fine), Some(Ok(()))),
            "who may read it has changed"
        );
        fs::remove_file(&path).unwrap();
        assert!(matches!(watched.refresh(wrong), Some(Err(_))));
    }
}
