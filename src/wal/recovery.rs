//! What a start finds: where the log ends, and what of it cannot be read.
//!
//! Only the newest generation is looked at; the others are scanned when they are read. A commit is written
//! only after the one before it was on disk, so of all the frames found only the newest commit's can be a torn
//! tail: it is whole, or the witness says that it was committed, or it is dropped whole.
//!
//! What the scan finds may be in the kernel's cache only: a process that was killed between write and fsync,
//! or whose fsync failed, leaves it there. It is fsynced, and then read from the disk, before anybody relies
//! on it.

use std::fs::{self, File};
use std::io;
use std::path::Path;

use super::error::OpenError;
use super::generations::{self, Row};
use super::scan::{Index, Tail};
use super::witness::Marks;
use crate::record::Sequence;

/// A store that was just made is smaller; a larger one in which nothing can be read is set aside.
const FRESH_BYTES_MAX: u64 = 64 * 1024;

/// What a start found.
pub struct Recovered {
    /// The sequence that the next record gets.
    pub next: Sequence,
    /// Sequences of the newest generation that were committed and cannot be read.
    pub damaged: Vec<(Sequence, Sequence)>,
}

/// The first sequence behind what a generation that begins at `first` holds, if it is the newest.
pub fn end_of(tail: Option<Tail>, first: Sequence, marks: Marks) -> Sequence {
    match tail {
        Some(tail) if tail.whole || tail.first <= marks.committed => tail.last + 1,
        Some(tail) => tail.first,
        None => first,
    }
}

/// Finds where the log ends, by the newest generation that holds anything and the witness.
pub fn recover(folder: &Path, row: &mut Row, marks: Marks, name: &'static str) -> Result<Recovered, OpenError> {
    let mut next = row.first().unwrap_or(1);
    let mut damaged = Vec::new();
    while let Some(newest) = row.newest() {
        let path = newest.data_path();
        let index = match settled(&path).and_then(|()| Index::scan(&path, newest.key)) {
            Ok(index) => Some(index),
            Err(error) if error.kind() == io::ErrorKind::NotFound => None,
            Err(source) => {
                return Err(OpenError::Io {
                    what: "read",
                    path,
                    source,
                });
            }
        };
        let (first, disk_bytes) = (newest.first, newest.disk_bytes);
        let tail = index.as_ref().and_then(Index::tail);
        let end = end_of(tail, first, marks);
        next = next.max(end).max(first);
        if end.max(marks.committed + 1) == first {
            // Nothing in it was ever answered: a start or a rotation that came to nothing.
            let Some(unused) = row.forget_newest() else { break };
            let is_strange = tail.is_none() && disk_bytes > FRESH_BYTES_MAX;
            if is_strange {
                tracing::warn!(
                    log = name,
                    folder = %unused.display(),
                    "nothing in the newest generation can be read, and the witness knows of nothing in it; it is set \
                     aside in the folder 'damaged'"
                );
                generations::set_aside(folder, &unused).map_err(OpenError::io("set aside", &unused))?;
            } else {
                fs::remove_dir_all(&unused).map_err(OpenError::io("remove", &unused))?;
            }
            continue;
        }
        if let Some(index) = &index {
            row.note_raw_bytes(first, index.raw_bytes());
            damaged = index.missing(first.max(marks.acked + 1), end.max(marks.committed + 1) - 1);
            if !damaged.is_empty() {
                metrics::counter!(crate::metrics::WAL_SALVAGED_RECORDS_TOTAL).increment(end.saturating_sub(first));
            }
        }
        if let Some(torn) = tail.filter(|tail| tail.first >= end) {
            tracing::info!(
                log = name,
                "the last commit (sequences {} to {}) was cut off before it was answered OK; it is dropped whole",
                torn.first,
                torn.last
            );
        }
        break;
    }
    Ok(Recovered { next, damaged })
}

/// Makes what the kernel has of a file durable, and forgets the rest: after a failed fsync its cache may hold
/// what the disk does not.
fn settled(path: &Path) -> io::Result<()> {
    let file = File::open(path)?;
    file.sync_all()?;
    rustix::fs::fadvise(&file, 0, None, rustix::fs::Advice::DontNeed)?;
    Ok(())
}
