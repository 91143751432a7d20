//! A file that is whole, or not there: it gets its name once it is on disk.
//!
//! It is written as `NAME.partial`, locked while somebody writes it. What a killed process has left under that name is
//! written over. Knows nothing of what is in it.

use std::fs::{self, File, OpenOptions, Permissions, TryLockError};
use std::io::{self, BufWriter, Write};
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};

use super::exit::{Later, Usage};

/// Being written.
pub(super) struct Whole {
    path: PathBuf,
    partial: PathBuf,
    out: BufWriter<File>,
    is_finished: bool,
}

impl Drop for Whole {
    /// Half a file is of no use, and may have filled the disk.
    fn drop(&mut self) {
        if !self.is_finished {
            // What stays is written over the next time.
            drop(fs::remove_file(&self.partial));
        }
    }
}

impl Whole {
    /// Begins it.
    ///
    /// # Errors
    /// It is there already, somebody else writes it, or the system's.
    pub(super) fn create(path: &Path) -> Result<Self> {
        free(path)?;
        let partial = PathBuf::from(format!("{}.partial", path.display()));
        let file = locked(&partial, || format!("another command is writing {}", partial.display()))?;
        // Another one may have been finished while this one waited.
        free(path)?;
        // What an earlier command has left is written over; a file that somebody else can read is not filled.
        let meta = file
            .metadata()
            .with_context(|| format!("cannot write {}", partial.display()))?;
        if meta.uid() != rustix::process::geteuid().as_raw() {
            return Err(Usage(format!(
                "{} is there, and another user's: remove it, or name another file; nothing was changed",
                partial.display()
            ))
            .into());
        }
        if meta.permissions().mode() & 0o077 != 0 {
            // Ours, so it fails only on a disk that knows no permissions.
            drop(file.set_permissions(Permissions::from_mode(0o600)));
        }
        file.set_len(0)
            .with_context(|| format!("cannot write {}", partial.display()))?;
        Ok(Self {
            path: path.to_path_buf(),
            partial,
            out: BufWriter::new(file),
            is_finished: false,
        })
    }

    /// It has all that belongs in it.
    ///
    /// # Errors
    /// The system's: it is not there then.
    pub(super) fn finish(mut self) -> Result<()> {
        let cannot = || {
            format!(
                "cannot write {}; start again once that is mended",
                self.partial.display()
            )
        };
        self.out.flush().with_context(cannot)?;
        self.out.get_ref().sync_all().with_context(cannot)?;
        free(&self.path)?;
        fs::rename(&self.partial, &self.path).with_context(cannot)?;
        self.is_finished = true;
        File::open(folder(&self.path))
            .and_then(|folder| folder.sync_all())
            .with_context(cannot)
    }
}

impl Write for Whole {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.out.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.out.flush()
    }
}

/// The folder around a file or folder.
pub(super) fn folder(path: &Path) -> &Path {
    match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    }
}

fn free(path: &Path) -> Result<()> {
    match path.exists() {
        false => Ok(()),
        true => Err(Usage(format!(
            "{} is there already: name another file; nothing was changed",
            path.display()
        ))
        .into()),
    }
}

/// A file that one command at a time keeps: who has this has it alone.
pub(super) struct Kept {
    lock: PathBuf,
    _file: File,
}

impl Drop for Kept {
    fn drop(&mut self) {
        // What stays is in nobody's way.
        drop(fs::remove_file(&self.lock));
    }
}

impl Kept {
    /// Takes the file at `path`, which may be replaced all the while: what is locked is `NAME.lock`.
    ///
    /// # Errors
    /// Another command has it, or the system's.
    pub(super) fn take(path: &Path) -> Result<Self> {
        let lock = PathBuf::from(format!("{}.lock", path.display()));
        let file = locked(&lock, || format!("another command uses {}", path.display()))?;
        Ok(Self { lock, _file: file })
    }
}

/// The file of that name, for this process alone.
fn locked(path: &Path, taken: impl Fn() -> String) -> Result<File> {
    let cannot = || format!("cannot write {}", path.display());
    loop {
        let file = OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .open(path)
            .with_context(cannot)?;
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                return Err(Later(format!("{}: wait for it, or name another file", taken())).into());
            }
            // Some disks know no locks.
            Err(TryLockError::Error(error))
                if error.kind() == io::ErrorKind::Unsupported || error.raw_os_error() == Some(libc::ENOLCK) => {}
            Err(TryLockError::Error(error)) => return Err(error).with_context(cannot),
        }
        // Whoever had the lock may have renamed the file since, or removed it.
        let here = file.metadata().with_context(cannot)?;
        if fs::metadata(path).is_ok_and(|there| (there.dev(), there.ino()) == (here.dev(), here.ino())) {
            return Ok(file);
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::expect_used)]
mod tests {
    use super::*;

    #[test]
    fn two_do_not_write_one_file_and_half_a_file_has_no_name() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("out");
        let mut first = Whole::create(&path).unwrap();
        first.write_all(b"half").unwrap();
        let second = Whole::create(&path).err().expect("somebody writes it");
        assert!(second.is::<Later>(), "{second}");
        drop(first);
        assert!(!path.exists() && !folder.path().join("out.partial").exists());
        let mut again = Whole::create(&path).unwrap();
        again.write_all(b"all").unwrap();
        again.finish().unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"all");
        let third = Whole::create(&path).err().expect("it is there");
        assert!(third.is::<Usage>(), "{third}");
    }

    #[test]
    fn two_do_not_keep_one_file() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("place");
        let first = Kept::take(&path).unwrap();
        let second = Kept::take(&path).err().expect("somebody has it");
        assert!(
            second.is::<Later>() && second.to_string().contains("another command uses"),
            "{second}"
        );
        drop(first);
        drop(Kept::take(&path).unwrap());
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0);
    }
}
