//! What a start finds: where the log ends, and what of it cannot be read.
//!
//! Only the newest generation is looked at; the others are scanned when they are read. A commit is written
//! only after the one before it was on disk, so of all the frames found only the newest commit's can be a torn
//! tail: it is whole, or the witness says that it was committed, or it is dropped whole.
//!
//! A record is known by its sequence, to Kafka's consumers too: none may be used twice. What is dropped, or has a
//! damaged frame behind the end, is passed over. Where the end itself is lost, or the witness, the log may have been
//! further than anybody knows (the witness is fsynced once a second): then [`GUESSED`] sequences are.
//!
//! What the scan finds may be in the kernel's cache only: a process that was killed between write and fsync,
//! or whose fsync failed, leaves it there. It is fsynced, and then read from the disk, before anybody relies
//! on it.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};

use super::error::OpenError;
use super::generations::{self, Row};
use super::ranges::{self, Range};
use super::scan::{Index, Tail};
use super::witness::Marks;
use crate::record::Sequence;

/// A store that was just made is smaller; a larger one in which nothing can be read is set aside.
pub const FRESH_BYTES_MAX: u64 = 64 * 1024;
/// Sequences that are passed over when nobody knows how many were used.
pub const GUESSED: Sequence = 1_000_000;

/// What a start found.
pub struct Recovered {
    /// The sequence that the next record gets.
    pub next: Sequence,
    /// Sequences of the newest generation that were committed and cannot be read.
    pub damaged: Vec<Range>,
    /// The sequences before `next` that are passed over.
    pub void: Option<Range>,
    /// Folders of generations in which nothing was ever answered, and whether one is strange. They are what tells that
    /// something is to be passed over: to be removed when that is written down.
    pub unused: Vec<(PathBuf, bool)>,
}

/// The first sequence behind what a generation that begins at `first` holds, if it is the newest.
pub fn end_of(tail: Option<Tail>, first: Sequence, marks: Marks) -> Sequence {
    match tail {
        Some(tail) if tail.whole || tail.first <= marks.committed => tail.last + 1,
        Some(tail) => tail.first,
        None => first,
    }
}

/// The last sequence behind `end` that something in a file may have had, if there is any.
pub fn seen_behind(index: &Index, end: Sequence) -> Option<Sequence> {
    // A broken header may say anything.
    index.last_seen(end + GUESSED).filter(|last| *last >= end)
}

/// Finds where the log ends, by the newest generation that holds anything and the witness. `marks` are what the witness
/// says, if it says anything; `is_main`: the sequences of this log are known elsewhere.
pub fn recover(row: &mut Row, known: Option<Marks>, is_main: bool, name: &'static str) -> Result<Recovered, OpenError> {
    let trimmed = row.first().map_or(0, |first| first - 1);
    let marks = known.unwrap_or(Marks {
        committed: 0,
        acked: trimmed,
    });
    let told = row.told();
    let was_empty = row.newest().is_none();
    let passed = told.last().map_or(0, |(_, last)| *last);
    let mut next = (trimmed + 1).max(marks.committed + 1).max(passed + 1);
    let mut damaged = Vec::new();
    let mut seen = None;
    let mut removable = Vec::new();
    let is_told = ranges::unknown(marks.committed, marks.committed, &told).is_empty();
    let mut is_end_lost = was_empty && marks.committed > 0 && !is_told;
    while let Some(newest) = row.newest() {
        let path = newest.data_path();
        let index = match settled(&path).and_then(|()| Index::scan(&path, newest.key, &told)) {
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
        seen = seen.max(index.as_ref().and_then(|index| seen_behind(index, end)));
        if end.max(marks.committed + 1) == first {
            // Nothing in it was ever answered: a start or a rotation that came to nothing.
            let Some(unused) = row.forget_newest() else { break };
            let is_strange = tail.is_none() && disk_bytes > FRESH_BYTES_MAX;
            // Without a witness, only what a first start made is certainly unused.
            is_end_lost |= is_strange || known.is_none() && (first > 1 || disk_bytes == 0);
            removable.push((unused, is_strange));
            continue;
        }
        let committed = end.max(marks.committed + 1) - 1;
        let missing = |from| match &index {
            Some(index) => index.missing(from, committed),
            None if from <= committed => vec![(from, committed)],
            None => Vec::new(),
        };
        let untold = |missing: Vec<Range>| -> Vec<Range> {
            let untold = missing
                .into_iter()
                .flat_map(|(from, to)| ranges::unknown(from, to, &told));
            untold.collect()
        };
        is_end_lost |= known.is_none() || !untold(missing(committed)).is_empty();
        damaged = untold(missing(first.max(marks.acked + 1)));
        if let Some(index) = &index {
            row.note_raw_bytes(first, index.raw_bytes());
        }
        if !damaged.is_empty() {
            metrics::counter!(crate::metrics::WAL_SALVAGED_RECORDS_TOTAL).increment(end.saturating_sub(first));
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
    let first = next;
    if let Some(seen) = seen {
        next = next.max(seen + 1);
    }
    if is_end_lost && is_main {
        next = next.max(first + GUESSED);
        tracing::warn!(
            log = name,
            "the end of the log is lost, or its witness: how many records it had is not certain. The next record gets \
             sequence {next}, so that none is used twice"
        );
    }
    Ok(Recovered {
        next,
        damaged,
        void: (first < next).then(|| (first, next - 1)),
        unused: removable,
    })
}

/// Removes what holds nothing; what is strange is kept for a look.
pub fn remove_unused(folder: &Path, unused: &[(PathBuf, bool)], name: &'static str) -> Result<(), OpenError> {
    for (generation, is_strange) in unused {
        if *is_strange {
            tracing::warn!(
                log = name,
                folder = %generation.display(),
                "nothing in the newest generation can be read, and the witness knows of nothing in it; it is set aside in \
                 the folder 'damaged'"
            );
            generations::set_aside(folder, generation).map_err(OpenError::io("set aside", generation))?;
        } else {
            fs::remove_dir_all(generation).map_err(OpenError::io("remove", generation))?;
        }
    }
    Ok(())
}

/// Makes what the kernel has of a file durable, and forgets the rest: after a failed fsync its cache may hold
/// what the disk does not.
fn settled(path: &Path) -> io::Result<()> {
    let file = File::open(path)?;
    file.sync_all()?;
    rustix::fs::fadvise(&file, 0, None, rustix::fs::Advice::DontNeed)?;
    Ok(())
}
