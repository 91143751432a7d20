//! Going back: what was acknowledged, and is still retained, becomes backlog again.
//!
//! An operator says so after Kafka, or whoever reads it, lost data; the forwarder does when it finds that Kafka has
//! lost what it had acknowledged. A rewound range that is to be sent whatever Kafka has is remembered in the file
//! `rewound`, so that the next start does not leave out what it finds there:
//!
//! ```text
//! tidegate-rewound 1
//! 305217          everything up to here is sent again without a look at what Kafka has
//! ```
//! A file that names nothing above the watermark says nothing.

use std::fs::{self, File};
use std::io::{self, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::atomic::Ordering;

use super::generations::Retain;
use super::log::{Log, lock};
use super::witness::Marks;
use super::{AppendError, durable};
use crate::record::Sequence;

/// The file's name.
const FILE: &str = "rewound";
const HEAD: &str = "tidegate-rewound 1\n";

/// Copies the mark of a rewind that is under way to another log's folder, fsynced with that by the caller.
pub(super) fn copy_mark(from: &Path, to: &Path) -> io::Result<()> {
    match std::fs::copy(from.join(FILE), to.join(FILE)) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        copied => copied.and_then(|_| std::fs::File::open(to.join(FILE))?.sync_all()),
    }
}

/// How the log stands after a rewind.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Rewound {
    /// Everything up to here is settled.
    pub acked: Sequence,
    /// Everything up to here is on disk.
    pub committed: Sequence,
    /// How many records that had been settled are backlog again.
    pub again: u64,
}

/// Why the log was not rewound. Nothing was changed.
#[derive(Debug, thiserror::Error)]
pub enum RewindError {
    /// It is no longer there.
    #[error(
        "sequence {from} is no longer on disk: the first record that is still there is {first}. Acknowledged records \
         are kept as long as wal.retain says; rewind to {first} or later, and set wal.retain to keep more"
    )]
    Gone {
        /// What was asked for.
        from: Sequence,
        /// The first sequence that is retained.
        first: Sequence,
    },
    /// It is not settled yet.
    #[error(
        "sequence {from} was not acknowledged yet, it is sent anyway: {}", rewindable(*acked)
    )]
    Ahead {
        /// What was asked for.
        from: Sequence,
        /// Everything up to here is settled.
        acked: Sequence,
    },
    /// The disk.
    #[error("cannot write {path}: {source}. The log was not rewound")]
    Io {
        /// The file.
        path: PathBuf,
        /// The system's answer.
        #[source]
        source: io::Error,
    },
    /// The log has stopped.
    #[error(transparent)]
    Stopped(#[from] AppendError),
}

fn rewindable(acked: Sequence) -> String {
    match acked {
        0 => "Kafka has acknowledged nothing, there is nothing to send again".to_owned(),
        acked => format!("the watermark is {acked}. Rewind to {acked} or before"),
    }
}

impl Log {
    /// Moves the watermark back, durably, so that `from` is the first record that is not settled. `resend`: everything
    /// up to there is to be sent again whatever Kafka has; 0: only what Kafka does not have.
    ///
    /// To be called by whoever acknowledges: an [`ack`](Self::ack) at the same time would undo it.
    ///
    /// # Errors
    /// Not retained any more, not settled yet, or the disk: nothing is changed.
    pub fn rewind(&self, from: Sequence, resend: Sequence) -> Result<Rewound, RewindError> {
        let shared = &self.shared;
        shared.poison.check()?;
        let folder = &shared.options.folder;
        let before = {
            // The housekeeper looks at the watermark under this lock before it takes a generation out.
            let row = lock(&shared.row);
            let acked = shared.acked_sequence();
            let first = row.first().unwrap_or(1);
            if from < first {
                return Err(RewindError::Gone { from, first });
            }
            if from > acked + 1 {
                return Err(RewindError::Ahead { from, acked });
            }
            shared.acked.store(from - 1, Ordering::Release);
            acked
        };
        let back = |path: PathBuf| {
            move |source| {
                shared.acked.fetch_max(before, Ordering::AcqRel);
                RewindError::Io { path, source }
            }
        };
        if resend >= from {
            let resend = self.next_resend(resend);
            write_mark(folder, resend).map_err(back(folder.join(FILE)))?;
            shared.resend.store(resend, Ordering::Release);
        }
        let mut witness = lock(&shared.witness);
        let marks = Marks {
            acked: from - 1,
            committed: witness.marks().committed,
        };
        witness.write(marks).map_err(back(folder.join(super::witness::FILE)))?;
        if let Err(error) = witness.sync() {
            return Err(shared
                .poison
                .set(format!("fsync of the witness failed: {error}"))
                .into());
        }
        drop(witness);
        Ok(Rewound {
            acked: from - 1,
            committed: self.committed(),
            again: before + 1 - from,
        })
    }

    /// Everything up to here is to be sent again, whatever Kafka has; 0: nothing is.
    #[must_use]
    pub fn resend(&self) -> Sequence {
        self.shared.resend.load(Ordering::Acquire)
    }

    /// What [`Self::resend`] is after a rewind that is told `resend`: a number that no rewind had, so that they can be told
    /// apart. A sequence more does no harm, for its record was never sent.
    #[must_use]
    pub fn next_resend(&self, resend: Sequence) -> Sequence {
        resend.max(self.resend()).saturating_add(1)
    }

    /// Whether acknowledged generations are kept for a while.
    #[must_use]
    pub fn retains(&self) -> bool {
        self.shared.options.retain != Retain::Off
    }

    /// The watermark has come to `acked`: a mark that it has passed is of no more use.
    pub(super) fn forget_mark(&self, acked: Sequence) {
        let resend = self.resend();
        if resend == 0 || acked < resend {
            return;
        }
        self.shared.resend.store(0, Ordering::Release);
        if let Err(error) = fs::remove_file(self.shared.options.folder.join(FILE)) {
            tracing::debug!(%error, "the mark of a rewind stays; it says nothing any more");
        }
    }
}

/// What the mark in the folder says; 0: nothing.
///
/// # Errors
/// The system's.
pub fn read_mark(folder: &Path) -> io::Result<Sequence> {
    let text = match fs::read_to_string(folder.join(FILE)) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(0),
        Err(error) if error.kind() == io::ErrorKind::InvalidData => String::new(),
        other => other?,
    };
    let sequence = text.strip_prefix(HEAD).and_then(|rest| rest.trim().parse().ok());
    if sequence.is_none() {
        tracing::warn!("the file 'rewound' cannot be read: of a rewound range, what Kafka has is not sent again");
    }
    Ok(sequence.unwrap_or(0))
}

fn write_mark(folder: &Path, resend: Sequence) -> io::Result<()> {
    let (path, draft) = (folder.join(FILE), folder.join("rewound.new"));
    let mut file = File::options()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(&draft)?;
    writeln!(file, "{HEAD}{resend}")?;
    file.sync_all()?;
    fs::rename(&draft, &path)?;
    durable::sync_folder(folder)
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::indexing_slicing)]
mod tests {
    use super::super::tests::{append, options, read_all, wait_until};
    use super::super::{Options, Wal};
    use super::*;

    #[test]
    fn a_rewind_survives_a_restart_and_nothing_of_it_is_removed() {
        let folder = tempfile::tempdir().unwrap();
        let options = Options {
            generation_bytes: 2 << 20,
            compression: false,
            retain: Retain::Bytes(1 << 30),
            ..options(folder.path())
        };
        let wal = Wal::open(options.clone()).unwrap();
        for i in 0..100u32 {
            append(&wal, &vec![vec![i as u8; 1000]; 100]);
        }
        wal.log().ack(9_500).unwrap();
        assert!(wal.status().generations > 2);
        let rewound = wal.log().rewind(101, 10_000).unwrap();
        assert_eq!((rewound.acked, rewound.committed, rewound.again), (100, 10_000, 9_400));
        assert_eq!(wal.status().backlog_records, 9_900);
        wal.close().unwrap();
        drop(wal);
        // Not even by a log that retains nothing.
        let wal = Wal::open(Options {
            retain: Retain::Off,
            ..options.clone()
        })
        .unwrap();
        assert_eq!((wal.log().watermarks().acked, wal.log().resend()), (100, 10_001));
        let (found, damaged) = read_all(wal.log(), 101);
        assert_eq!((found.len(), damaged.len()), (9_900, 0));
        wal.log().ack(10_000).unwrap();
        append(&wal, &[vec![0; 10]]);
        wal.log().ack(10_001).unwrap();
        assert_eq!(wal.log().resend(), 0);
        wait_until("what is acknowledged again goes", || wal.status().generations <= 2);
        wal.close().unwrap();
        drop(wal);
        let wal = Wal::open(options).unwrap();
        assert_eq!((wal.log().watermarks().acked, wal.log().resend()), (10_001, 0));
    }

    #[test]
    fn what_is_gone_or_not_yet_settled_is_refused_with_what_to_do() {
        let folder = tempfile::tempdir().unwrap();
        let options = Options {
            generation_bytes: 2 << 20,
            compression: false,
            ..options(folder.path())
        };
        let wal = Wal::open(options).unwrap();
        for i in 0..100u32 {
            append(&wal, &vec![vec![i as u8; 1000]; 100]);
        }
        wal.log().ack(9_999).unwrap();
        wait_until("acknowledged generations go", || wal.log().watermarks().trimmed > 0);
        let before = wal.log().watermarks();
        let error = wal.log().rewind(1, 10_000).unwrap_err().to_string();
        let first = format!("still there is {}", before.trimmed + 1);
        assert!(error.contains(&first) && error.contains("wal.retain"), "{error}");
        assert!(wal.log().rewind(0, 0).is_err());
        let error = wal.log().rewind(10_001, 0).unwrap_err();
        assert!(matches!(error, RewindError::Ahead { acked: 9_999, .. }), "{error}");
        assert_eq!(wal.log().rewind(10_000, 0).unwrap().again, 0);
        assert_eq!(wal.log().watermarks().acked, before.acked);
    }
}
