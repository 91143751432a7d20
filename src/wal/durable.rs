//! What makes sled wait for the disk. One of the two files with `unsafe`.
//!
//! sled 0.34.7 makes a buffer "stable" with `sync_file_range(2)`, which writes neither metadata nor the
//! drive's cache: after a power loss nothing of it need be there. This file defines the C symbol
//! `sync_file_range` for the whole binary as `fdatasync(2)`, so that sled's own order (a buffer is stable
//! before what depends on it, a segment is reused after what replaced it is stable) becomes real. The linker
//! takes our definition over libc's; [`prove`] checks that at every start, and the WAL refuses to open
//! without it.
//!
//! Knows nothing of sled's files or of frames.
#![allow(unsafe_code)]

use std::ffi::{c_int, c_uint};
use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

static CALLS: AtomicU64 = AtomicU64::new(0);

/// fdatasync in place of `sync_file_range`: sled calls this, believing it to be libc's.
///
/// # Safety
/// As the C function: takes no pointers, touches errno only.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn sync_file_range(fd: c_int, _offset: i64, _bytes: i64, _flags: c_uint) -> c_int {
    CALLS.fetch_add(1, Ordering::Relaxed);
    #[cfg(test)]
    if let Some(errno) = faults::due(fd) {
        // SAFETY: errno's place is valid for the calling thread.
        unsafe { *libc::__errno_location() = errno };
        return -1;
    }
    let began = Instant::now();
    // SAFETY: fdatasync takes any integer; a bad descriptor is EBADF.
    let result = unsafe { libc::fdatasync(fd) };
    if result == 0 {
        metrics::histogram!(crate::metrics::WAL_FSYNC_SECONDS).record(began.elapsed());
    }
    result
}

/// How often the definition above was called: a store that was flushed without raising it is not durable.
#[must_use]
pub fn calls() -> u64 {
    CALLS.load(Ordering::Relaxed)
}

/// Proves that a call of libc's `sync_file_range` arrives here, and that `folder` can be fdatasynced.
///
/// # Errors
/// The system's error, or one that says that the definition is not in force.
pub fn prove(folder: &Path) -> io::Result<()> {
    let path = folder.join("durability-probe");
    let file = File::create(&path)?;
    io::Write::write_all(&mut &file, b"probe")?;
    // Keeps this module's object in the link even where the linker collects garbage.
    let ours: unsafe extern "C" fn(c_int, i64, i64, c_uint) -> c_int = sync_file_range;
    std::hint::black_box(ours);
    let before = calls();
    // SAFETY: an open descriptor and no pointers.
    let result = unsafe { libc::sync_file_range(file.as_raw_fd(), 0, 0, libc::SYNC_FILE_RANGE_WRITE) };
    let outcome = if result != 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(())
    };
    drop(file);
    std::fs::remove_file(&path)?;
    outcome?;
    if calls() == before {
        return Err(io::Error::other(
            "sync_file_range of this binary is not fdatasync: it was linked without it",
        ));
    }
    Ok(())
}

/// fsyncs a folder, so that the names in it survive a power loss.
///
/// # Errors
/// The system's.
pub fn sync_folder(path: &Path) -> io::Result<()> {
    File::open(path)?.sync_all()
}

/// fsyncs the folder that `path` is in, so that its own name survives. A parent that this user may not read
/// (a service manager's private folder) was made by somebody else, who answers for it.
///
/// # Errors
/// The system's.
pub fn sync_parent(path: &Path) -> io::Result<()> {
    let path = path.canonicalize()?;
    let Some(parent) = path.parent() else { return Ok(()) };
    match sync_folder(parent) {
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => Ok(()),
        result => result,
    }
}

#[cfg(test)]
pub(super) mod faults {
    //! Failures of the n-th sync of one file, for tests.
    use std::os::fd::BorrowedFd;
    use std::path::{Path, PathBuf};
    use std::sync::Mutex;

    static DUE: Mutex<Vec<(PathBuf, u64, i32)>> = Mutex::new(Vec::new());

    /// The `nth` sync (1: the next one) of any file below `folder` fails with `errno`.
    pub fn fail_sync_below(folder: &Path, nth: u64, errno: i32) {
        crate::wal::log::lock(&DUE).push((folder.to_path_buf(), nth, errno));
    }

    pub fn due(fd: i32) -> Option<i32> {
        let mut due = crate::wal::log::lock(&DUE);
        if due.is_empty() {
            return None;
        }
        // SAFETY: sled holds the file open during the call.
        let _open = unsafe { BorrowedFd::borrow_raw(fd) };
        let path = std::fs::read_link(format!("/proc/self/fd/{fd}")).ok()?;
        let at = due.iter_mut().position(|(folder, nth, _)| {
            let hit = path.starts_with(folder);
            if hit {
                *nth -= 1;
            }
            hit && *nth == 0
        })?;
        Some(due.remove(at).2)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    #[test]
    fn our_definition_is_the_one_that_libcs_callers_reach() {
        let folder = tempfile::tempdir().unwrap();
        super::prove(folder.path()).unwrap();
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0);
    }
}
