//! How much disk the log may take: `bytes_max` for the folder, `free_bytes_min` for the file system.
//!
//! Whichever is reached first counts. At a limit `append` is refused, so that a full disk is a clear 503 and
//! never a failed write; what is there drains and the log takes records again by itself. The held lane and
//! the dead letters may go beyond `bytes_max` and use half of the free reserve: what goes there leaves the
//! main log, and refusing it would wedge both.

use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};

use super::error::AppendError;

/// The limits of one WAL folder, shared by its logs, each of which adds what it takes.
#[derive(Debug)]
pub struct Quota {
    path: PathBuf,
    bytes_max: u64,
    free_bytes_min: u64,
    used: AtomicU64,
}

impl Quota {
    /// For the folder `path`; sizes in bytes.
    #[must_use]
    pub fn new(path: PathBuf, bytes_max: u64, free_bytes_min: u64) -> Self {
        Self {
            path,
            bytes_max,
            free_bytes_min,
            used: AtomicU64::new(0),
        }
    }

    /// One log now takes `now` bytes, after it took `before`.
    pub fn moved(&self, before: u64, now: u64) {
        if now >= before {
            self.used.fetch_add(now - before, Ordering::Relaxed);
        } else {
            self.used.fetch_sub(before - now, Ordering::Relaxed);
        }
    }

    /// Bytes that the folder takes.
    #[must_use]
    pub fn used(&self) -> u64 {
        self.used.load(Ordering::Relaxed)
    }

    /// The limit for the folder, in bytes.
    #[must_use]
    pub fn bytes_max(&self) -> u64 {
        self.bytes_max
    }

    /// Bytes that the file system has left for us; the limit itself where it does not say.
    #[must_use]
    pub fn free(&self) -> u64 {
        rustix::fs::statvfs(&self.path).map_or(u64::MAX, |stat| stat.f_bavail.saturating_mul(stat.f_frsize))
    }

    /// What new records may still take.
    #[must_use]
    pub fn room(&self) -> u64 {
        let own = self.bytes_max.saturating_sub(self.used());
        own.min(self.free().saturating_sub(self.free_bytes_min))
    }

    /// Whether `more` bytes fit; `reserve`: for what leaves the main log.
    ///
    /// # Errors
    /// [`AppendError::Full`] or [`AppendError::DiskLow`].
    pub fn check(&self, more: u64, reserve: bool) -> Result<(), AppendError> {
        if !reserve && self.used().saturating_add(more) > self.bytes_max {
            return Err(AppendError::Full {
                bytes_max: self.bytes_max,
            });
        }
        let keep = if reserve {
            self.free_bytes_min / 2
        } else {
            self.free_bytes_min
        };
        if self.free() < keep.saturating_add(more) {
            return Err(AppendError::DiskLow {
                free_bytes_min: self.free_bytes_min,
            });
        }
        Ok(())
    }
}
