//! A WAL's folder as it lies on a disk: read, never opened. An operator's view of a log whose gateway does not run,
//! of a copy, of a disk out of a dead machine.
//!
//! Nothing here takes the lock, starts sled, or writes: the folder may be on a read-only file system, and is the same
//! afterwards. A folder that a running gateway has is refused, because it changes while it is read; whether one has
//! started meanwhile is asked again with [`Archive::check_unused`] when something was found.
//!
//! Where a log ends is decided as a start decides it (recovery.rs). Knows nothing of what records mean.

use std::fs::{self, File, TryLockError};
use std::io::{self, Read as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::generations::{self, Entry, Place};
use super::ranges::{self, Range, Told};
use super::reader::{Reader, View};
use super::recovery::{FRESH_BYTES_MAX, end_of, seen_behind};
use super::scan::Index;
use super::witness::{self, Marks};
use super::{Gone, HELD, LETTERS, MAIN, Watermarks, identity, keys};
use crate::record::{Sequence, WalId};

/// Why a folder cannot be read as a WAL.
#[derive(Debug, thiserror::Error)]
pub enum ArchiveError {
    /// A running process has it.
    #[error("the log in {path} is in use by process {pid}: it changes while it is read")]
    InUse {
        /// The folder.
        path: PathBuf,
        /// What the lock file says.
        pid: String,
    },
    /// There is no WAL.
    #[error(
        "{path} is not a WAL: {reason}. Name the folder that wal.path of its gateway names (it has the files 'identity' \
         and 'witness' and folders 'gen-...')"
    )]
    NotAWal {
        /// The folder.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// A WAL of a later version.
    #[error(
        "{path} cannot be read by this version: {reason}. Use the tidegate that wrote it, or a newer one; nothing was changed"
    )]
    Format {
        /// The file.
        path: PathBuf,
        /// What it says.
        reason: String,
    },
    /// Who the records are is not known.
    #[error(
        "{path}: {reason}, so nobody can say who its records are. `tidegate wal salvage --wal DIR --identity UUID --to NEW` \
         makes a whole log of it: the UUID is in Kafka, in the header tidegate-wal of any record of this gateway, and in its log lines"
    )]
    NoIdentity {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// The disk, the permissions, or the path.
    #[error("cannot {what} {path}: {source}")]
    Io {
        /// What was tried.
        what: &'static str,
        /// On what.
        path: PathBuf,
        /// The system's answer.
        #[source]
        source: io::Error,
    },
}

impl ArchiveError {
    pub(super) fn io(what: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        move |source| Self::Io {
            what,
            path: path.to_path_buf(),
            source,
        }
    }
}

/// Which of a WAL's logs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Part {
    /// What waits for Kafka.
    Main,
    /// Records of topics that do not work.
    Held,
    /// Records that Kafka can never take.
    DeadLetters,
}

impl Part {
    /// All of them, the main one first.
    pub const ALL: [Self; 3] = [Self::Main, Self::Held, Self::DeadLetters];

    /// Its name in reports.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Main => MAIN,
            Self::Held => HELD,
            Self::DeadLetters => LETTERS,
        }
    }

    /// Its folder below the WAL's.
    #[must_use]
    pub fn folder(self, wal: &Path) -> PathBuf {
        match self {
            Self::Main => wal.to_path_buf(),
            side => wal.join(side.name()),
        }
    }
}

/// A WAL's folder.
pub struct Archive {
    folder: PathBuf,
    id: Result<WalId, String>,
    logs: Vec<Arc<Archived>>,
    gone: Vec<Gone>,
}

impl Archive {
    /// Looks at the folder: names, witnesses, and the end of each log (a scan of its newest generation).
    ///
    /// # Errors
    /// [`ArchiveError`] says what to do. Damage is no error here.
    pub fn open(folder: &Path) -> Result<Self, ArchiveError> {
        let meta = fs::metadata(folder).map_err(ArchiveError::io("read", folder))?;
        if !meta.is_dir() {
            return Err(ArchiveError::NotAWal {
                path: folder.to_path_buf(),
                reason: "it is a file".to_owned(),
            });
        }
        check_unused(folder)?;
        let path = folder.join(identity::IDENTITY);
        let id = match fs::read(&path) {
            Ok(bytes) => match identity::parse(&String::from_utf8_lossy(&bytes)) {
                Ok(id) => Ok(id),
                Err(identity::Fault::Version(reason)) => return Err(ArchiveError::Format { path, reason }),
                Err(identity::Fault::Damaged(reason)) => Err(reason),
            },
            Err(error) if error.kind() == io::ErrorKind::NotFound => Err("it is missing".to_owned()),
            Err(error) if generations::is_damage(&error) => Err(format!("the disk does not give it: {error}")),
            Err(source) => return Err(ArchiveError::io("read", &path)(source)),
        };
        let mut logs = Vec::new();
        let mut gone = Vec::new();
        for part in Part::ALL {
            let place = part.folder(folder);
            gone.extend(Gone::look(folder, part).map_err(ArchiveError::io("read", folder))?);
            match fs::metadata(&place) {
                // It was never needed. Anything else that is no folder is told.
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(source) => return Err(ArchiveError::io("read", &place)(source)),
                Ok(_) => logs.push(Arc::new(Archived::open(part, place)?)),
            }
        }
        if id.is_err() && logs.iter().all(|log| log.is_empty()) {
            return Err(ArchiveError::NotAWal {
                path: folder.to_path_buf(),
                reason: "it has neither an identity nor generations".to_owned(),
            });
        }
        Ok(Self {
            folder: folder.to_path_buf(),
            id,
            logs,
            gone,
        })
    }

    /// The folder.
    #[must_use]
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// The identity that its records carry.
    ///
    /// # Errors
    /// [`ArchiveError::NoIdentity`]: the file is missing or damaged.
    pub fn id(&self) -> Result<WalId, ArchiveError> {
        self.id.clone().map_err(|reason| ArchiveError::NoIdentity {
            path: self.folder.join(identity::IDENTITY),
            reason,
        })
    }

    /// Its logs that are there: the main one always, and first.
    pub fn logs(&self) -> impl Iterator<Item = &Arc<Archived>> {
        self.logs.iter()
    }

    /// Side logs whose folder was lost.
    #[must_use]
    pub fn gone(&self) -> &[Gone] {
        &self.gone
    }

    /// One of them.
    #[must_use]
    pub fn log(&self, part: Part) -> Option<&Arc<Archived>> {
        self.logs.iter().find(|log| log.part == part)
    }

    /// Fails when a process has taken the folder since.
    ///
    /// # Errors
    /// [`ArchiveError::InUse`], or the system's.
    pub fn check_unused(&self) -> Result<(), ArchiveError> {
        check_unused(&self.folder)
    }
}

/// Whether a running process has the WAL in `folder`.
///
/// # Errors
/// [`ArchiveError::InUse`], or the system's.
pub fn check_unused(folder: &Path) -> Result<(), ArchiveError> {
    let path = folder.join(identity::LOCK);
    let mut file = match File::open(&path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(source) => return Err(ArchiveError::io("open", &path)(source)),
    };
    match file.try_lock_shared() {
        Ok(()) => file.unlock().map_err(ArchiveError::io("unlock", &path)),
        Err(TryLockError::WouldBlock) => {
            let mut pid = String::new();
            // The number is for the message only; without it the message is still true.
            if file.read_to_string(&mut pid).is_err() || pid.trim().is_empty() {
                pid = "(unknown)".to_owned();
            }
            Err(ArchiveError::InUse {
                path: folder.to_path_buf(),
                pid: pid.trim().to_owned(),
            })
        }
        Err(TryLockError::Error(source)) => Err(ArchiveError::io("lock", &path)(source)),
    }
}

/// What the witness of a log says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Witnessed {
    /// The newest whole slot.
    Marks(Marks),
    /// There is no file.
    Missing,
    /// Neither slot is whole.
    Damaged,
}

/// One log of the folder.
pub struct Archived {
    part: Part,
    folder: PathBuf,
    /// Oldest first.
    entries: Vec<Entry>,
    aside: Vec<Entry>,
    witnessed: Witnessed,
    acked: Sequence,
    committed: Sequence,
    next: Sequence,
    is_end_lost: bool,
    /// Of generations at the end in which nothing can be read.
    unknown_bytes: u64,
    /// A commit that was cut off before anybody was answered OK.
    torn: Option<Range>,
    told: Told,
    all_told: Arc<[Range]>,
    unsent: Vec<Range>,
    marks: Vec<Range>,
    keys: Option<Result<Sequence, String>>,
}

impl Archived {
    fn open(part: Part, folder: PathBuf) -> Result<Self, ArchiveError> {
        let entries = generations::list(&folder).map_err(ArchiveError::io("read", &folder))?;
        let aside = generations::aside(&folder).map_err(ArchiveError::io("read what was set aside in", &folder))?;
        let unsent = generations::unsent(&aside).map_err(ArchiveError::io("read what was set aside in", &folder))?;
        let marks_there = generations::unsent(&entries);
        let marks_there = marks_there.map_err(ArchiveError::io("read what is known to be damaged in", &folder))?;
        let witnessed = witnessed(&folder)?;
        let keys = match part {
            Part::Main => keys_of(&folder)?,
            Part::Held | Part::DeadLetters => None,
        };
        let told = Told::read(&folder).map_err(ArchiveError::io("read the list of lost sequences in", &folder))?;
        let all_told: Arc<[Range]> = told.all().into();
        let trimmed = entries.first().map_or(0, |first| first.first - 1);
        let marks = match witnessed {
            Witnessed::Marks(marks) => marks,
            // As a start takes it.
            Witnessed::Missing | Witnessed::Damaged => Marks {
                committed: 0,
                acked: trimmed,
            },
        };
        let mut log = Self {
            part,
            folder,
            entries,
            aside,
            witnessed,
            acked: marks.acked,
            committed: marks
                .committed
                .max(trimmed)
                .max(all_told.last().map_or(0, |(_, last)| *last)),
            next: 1,
            is_end_lost: false,
            unknown_bytes: 0,
            torn: None,
            told,
            all_told,
            unsent,
            marks: marks_there,
            keys,
        };
        log.find_end(marks)?;
        Ok(log)
    }

    /// Finds the last committed sequence: of the newest generation that holds anything.
    fn find_end(&mut self, marks: Marks) -> Result<(), ArchiveError> {
        let mut seen = None;
        for entry in self.entries.iter().rev() {
            let path = entry.data_path();
            let index = match Index::scan_past_faults(&path, entry.key, &self.all_told) {
                Ok((index, _)) => Some(index),
                Err(error) if generations::is_damage(&error) => None,
                Err(source) => return Err(ArchiveError::io("read", &path)(source)),
            };
            let tail = index.as_ref().and_then(Index::tail);
            let end = end_of(tail, entry.first, marks);
            seen = seen.max(index.as_ref().and_then(|index| seen_behind(index, end)));
            self.committed = self.committed.max(end - 1);
            if end.max(marks.committed + 1) > entry.first {
                let last = end.max(marks.committed + 1) - 1;
                let is_here = index.is_some_and(|index| index.missing(last, last).is_empty());
                self.is_end_lost |= !is_here && ranges::count_unknown(last, last, &self.all_told) > 0;
                self.torn = tail
                    .filter(|tail| tail.first >= end)
                    .map(|tail| (tail.first, tail.last));
                break;
            }
            // It held something, and the witness knows of nothing in it.
            if tail.is_none() && entry.disk_bytes > FRESH_BYTES_MAX {
                self.is_end_lost = true;
                self.unknown_bytes += entry.disk_bytes;
            }
        }
        let is_told = ranges::count_unknown(self.committed, self.committed, &self.all_told) == 0;
        self.is_end_lost |= self.entries.is_empty() && self.committed > 0 && !is_told;
        self.next = self.committed.max(seen.unwrap_or(0)) + 1;
        Ok(())
    }

    /// Which one it is.
    #[must_use]
    pub fn part(&self) -> Part {
        self.part
    }

    /// Whether nothing of a log is here.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty() && self.aside.is_empty()
    }

    /// `trimmed <= acked <= committed < next`, as a start would find them.
    #[must_use]
    pub fn watermarks(&self) -> Watermarks {
        let trimmed = self.entries.first().map_or(self.acked, |first| first.first - 1);
        Watermarks {
            trimmed: trimmed.min(self.acked),
            acked: self.acked,
            committed: self.committed,
            next: self.next,
        }
    }

    /// How many records wait: sequences that no record has are none.
    #[must_use]
    pub fn waiting(&self) -> u64 {
        ranges::count_unknown(self.acked + 1, self.committed, &self.all_told)
    }

    /// Generations in which, or behind which, a gateway could not read something, and that are not acknowledged yet.
    #[must_use]
    pub fn marked(&self) -> usize {
        self.entries.iter().filter(|entry| entry.set_aside).count()
    }

    /// Bytes of generations at the end that held something, of which nothing can be read, and whose sequences nobody knows.
    #[must_use]
    pub fn unknown_bytes(&self) -> u64 {
        self.unknown_bytes
    }

    /// Whether the last sequence that was committed, as far as is known, is not here: the log may have been further.
    #[must_use]
    pub fn is_end_lost(&self) -> bool {
        self.is_end_lost
    }

    /// What its witness says.
    #[must_use]
    pub fn witnessed(&self) -> Witnessed {
        self.witnessed
    }

    /// The commit at the end that was cut off before it was answered OK, if there is one: no damage.
    #[must_use]
    pub fn torn(&self) -> Option<(Sequence, Sequence)> {
        self.torn
    }

    /// What a salvage could not save, and has told.
    #[must_use]
    pub fn lost(&self) -> &[Range] {
        &self.told.lost
    }

    /// What a start has passed over: no record has these sequences.
    #[must_use]
    pub fn void(&self) -> &[Range] {
        &self.told.void
    }

    /// What could not be read when its turn to be sent came, and whose generation was set aside since.
    #[must_use]
    pub fn unsent(&self) -> &[Range] {
        &self.unsent
    }

    /// Why that is not known, if it is not: what was told is told again.
    #[must_use]
    pub fn lost_fault(&self) -> Option<&str> {
        self.told.fault.as_deref()
    }

    /// Bytes of its files, those set aside included.
    #[must_use]
    pub fn disk_bytes(&self) -> u64 {
        (self.entries.iter().chain(&self.aside))
            .map(|entry| entry.disk_bytes)
            .sum()
    }

    /// How many generations it has.
    #[must_use]
    pub fn generations(&self) -> usize {
        self.entries.len()
    }

    /// A reader that begins at `from`, or at the first record that is still there. It reads what is committed.
    #[must_use]
    pub fn reader(self: &Arc<Self>, from: Sequence) -> Reader {
        let view: Arc<Self> = Arc::clone(self);
        Reader::new(view, from)
    }

    /// The generations, and the sequence behind the last that each should hold.
    pub(super) fn segments(&self) -> impl Iterator<Item = (&Entry, Sequence)> {
        let ends = self.entries.iter().skip(1).map(|next| next.first);
        self.entries.iter().zip(ends.chain([self.committed + 1]))
    }

    /// What a gateway could not read of the generations that are here, and had not been acknowledged then.
    pub(super) fn found_damaged(&self) -> &[Range] {
        &self.marks
    }

    /// Up to where the file of idempotency keys has them, or what is wrong with it; `None`: there is none.
    pub(super) fn keys(&self) -> Option<&Result<Sequence, String>> {
        self.keys.as_ref()
    }

    /// Where it lies.
    pub(super) fn folder(&self) -> &Path {
        &self.folder
    }

    /// Generations that were set aside because something in them could not be read.
    pub(super) fn aside(&self) -> &[Entry] {
        &self.aside
    }
}

impl View for Archived {
    fn committed(&self) -> Sequence {
        self.committed
    }

    fn acked(&self) -> Sequence {
        self.acked
    }

    fn place(&self, sequence: Sequence) -> Option<Place> {
        let at = self
            .entries
            .partition_point(|entry| entry.first <= sequence)
            .saturating_sub(1);
        match self.entries.get(at) {
            Some(entry) => Some(Place {
                first: entry.first,
                end: self.entries.get(at + 1).map(|next| next.first),
                key: entry.key,
                data: entry.data_path(),
                live: None,
            }),
            // Nothing is left of it: a place behind everything, so that what is missing is told.
            None => (self.acked < self.committed).then(|| Place {
                first: self.committed + 1,
                end: None,
                key: [0; 8],
                data: self.folder.join("none"),
                live: None,
            }),
        }
    }

    fn told(&self) -> Arc<[Range]> {
        Arc::clone(&self.all_told)
    }

    fn damaged(&self, _: Sequence, _: Sequence, _: &str) {}

    fn scanned(&self, _: Sequence, _: u64) {}
}

fn keys_of(folder: &Path) -> Result<Option<Result<Sequence, String>>, ArchiveError> {
    let path = folder.join(keys::FILE);
    let found = keys::read(folder).map_err(ArchiveError::io("read", &path))?;
    Ok(match found {
        None => None,
        Some(Ok(checkpoint)) => Some(Ok(checkpoint.through)),
        Some(Err(fault @ keys::Fault::Version(_))) => {
            return Err(ArchiveError::Format {
                path,
                reason: fault.reason(),
            });
        }
        Some(Err(keys::Fault::Damaged(reason))) => Some(Err(reason)),
    })
}

fn witnessed(folder: &Path) -> Result<Witnessed, ArchiveError> {
    let path = folder.join(witness::FILE);
    let file = match File::open(&path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Witnessed::Missing),
        Err(error) if generations::is_damage(&error) => return Ok(Witnessed::Damaged),
        Err(source) => return Err(ArchiveError::io("open", &path)(source)),
    };
    match witness::read(&file) {
        Ok(newest) => Ok(newest.map_or(Witnessed::Damaged, |(_, marks)| Witnessed::Marks(marks))),
        Err(error) if generations::is_damage(&error) => Ok(Witnessed::Damaged),
        Err(source) => Err(ArchiveError::io("read", &path)(source)),
    }
}
