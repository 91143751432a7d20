//! The row of generations of one log: their folders, which is written, which may go.
//!
//! ```text
//! gen-00000000000000000001-9f8e7d6c5b4a3921/   the sequence of its first entry, its key
//! gen-00000000000000305218-0f1e2d3c4b5a6978/   the newest: written by this process
//! next-a1b2c3d4e5f60718/                       made ahead; gets its sequence when it is put to use
//! gone-...                                     on its way out; removed at the next chance
//! damaged/gen-...                              set aside because something in it, or behind it, could not be read
//! ```
//! What a generation holds at or beyond the next one's first sequence is void. So a generation ends where the next
//! begins.
//!
//! Knows folders and sequences. Knows nothing of the queue, the witness, or who reads.

use std::collections::VecDeque;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use super::durable;
use super::frame::Key;
use super::generation::{DATA_FILE, Generation};
use super::ranges::{self, Range, Told};
use crate::record::Sequence;

/// The folder for generations that were found damaged.
pub const DAMAGED: &str = "damaged";

/// What of the acknowledged generations is kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Retain {
    /// Nothing.
    Off,
    /// The newest so many bytes.
    Bytes(u64),
    /// What was sealed no longer ago than this.
    Time(Duration),
    /// Everything, also when space is short: for who only has a look, or changes a mark.
    All,
}

/// One generation of the row.
pub struct Entry {
    /// The sequence of its first entry.
    pub first: Sequence,
    /// The key of its frames.
    pub key: Key,
    /// Its folder.
    pub folder: PathBuf,
    /// The store, while it is written.
    pub live: Option<Arc<Generation>>,
    /// Bytes of its entries before compression, where known: counted while written, or by a scan.
    pub raw_bytes: Option<u64>,
    /// Bytes of its file.
    pub disk_bytes: u64,
    /// When it was last written.
    pub sealed: SystemTime,
    /// Something in it, or behind it, could not be read, now or before a restart: it is not deleted.
    pub set_aside: bool,
}

impl Entry {
    /// The file to scan.
    #[must_use]
    pub fn data_path(&self) -> PathBuf {
        self.folder.join(DATA_FILE)
    }
}

/// What a reader needs to read a generation.
pub struct Place {
    /// The sequence of its first entry.
    pub first: Sequence,
    /// The first sequence that is no longer in it; `None`: it is being written.
    pub end: Option<Sequence>,
    /// The key of its frames.
    pub key: Key,
    /// The file to scan.
    pub data: PathBuf,
    /// The store, while it is written.
    pub live: Option<Arc<Generation>>,
}

/// All of them, oldest first.
pub struct Row {
    entries: VecDeque<Entry>,
    /// Sequences that hold nothing, and not to be told as damage: a salvage has told them, or no record ever had them.
    told: Arc<[Range]>,
    /// Sequences that were committed and cannot be read, as far as this process has found out.
    damaged: Vec<Range>,
    /// Of those, the ones that were not acknowledged when that was found.
    unsent: Vec<Range>,
}

/// What became of a generation, and the bytes of its file.
pub enum Retired {
    /// To be removed.
    Gone(PathBuf, u64),
    /// Kept in the folder [`DAMAGED`].
    Aside(PathBuf, u64),
}

/// Moves a generation's folder to those that were found damaged.
///
/// # Errors
/// The system's.
pub fn set_aside(folder: &Path, generation: &Path) -> io::Result<PathBuf> {
    let aside = folder.join(DAMAGED);
    fs::create_dir_all(&aside)?;
    let target = aside.join(generation.file_name().unwrap_or_default());
    fs::rename(generation, &target)?;
    durable::sync_folder(&aside)?;
    Ok(target)
}

/// Bytes of all files below a folder; 0 where it is not there.
pub fn folder_bytes(folder: &Path) -> u64 {
    let Ok(items) = fs::read_dir(folder) else { return 0 };
    let bytes = |item: fs::DirEntry| match item.file_type() {
        Ok(kind) if kind.is_dir() => folder_bytes(&item.path()),
        _ => item.metadata().map_or(0, |meta| meta.len()),
    };
    items.filter_map(Result::ok).map(bytes).sum()
}

/// Remembers in a generation's folder what could not be read.
fn remember(generation: &Path, unsent: Vec<Range>) -> io::Result<()> {
    let path = generation.join(ranges::DAMAGED);
    let before = ranges::to_rewrite(&path)?;
    ranges::write(&path, &ranges::joined([before, unsent].concat()))
}

/// What was found lost of these generations: committed, not acknowledged then, not readable. A mark that cannot be read tells nothing.
///
/// # Errors
/// The system's.
pub fn unsent<'a>(generations: impl IntoIterator<Item = &'a Entry>) -> io::Result<Vec<Range>> {
    let mut all = Vec::new();
    for entry in generations {
        all.extend(ranges::believed(&entry.folder.join(ranges::DAMAGED))?.0);
    }
    Ok(ranges::joined(all))
}

/// The generations that were set aside in a log's folder.
///
/// # Errors
/// The system's.
pub fn aside(folder: &Path) -> io::Result<Vec<Entry>> {
    let aside = folder.join(DAMAGED);
    match aside.is_dir() {
        true => list(&aside),
        false => Ok(Vec::new()),
    }
}

/// The generations in a folder, oldest first. Reads names and sizes, changes nothing.
///
/// # Errors
/// The system's.
pub fn list(folder: &Path) -> io::Result<Vec<Entry>> {
    let mut entries = Vec::new();
    for item in fs::read_dir(folder)? {
        let item = item?;
        let name = item.file_name();
        let Some((first, key)) = name.to_str().and_then(parse_name) else {
            continue;
        };
        let (disk_bytes, sealed) = match fs::metadata(item.path().join(DATA_FILE)) {
            Ok(meta) => (meta.len(), meta.modified()?),
            // A generation without its file: reading it tells what is lost.
            Err(error) if is_damage(&error) => (0, SystemTime::now()),
            Err(error) => return Err(error),
        };
        entries.push(Entry {
            first,
            key,
            folder: item.path(),
            live: None,
            raw_bytes: None,
            disk_bytes,
            sealed,
            set_aside: item.path().join(ranges::DAMAGED).exists(),
        });
    }
    entries.sort_by_key(|entry| entry.first);
    Ok(entries)
}

/// Whether a file that is asked for is not there, or is what no file can be, or the disk does not give it: what it held
/// is lost, and that is to be told; not a matter of rights or of the moment.
#[must_use]
pub fn is_damage(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::NotFound | io::ErrorKind::NotADirectory | io::ErrorKind::IsADirectory
    ) || error.raw_os_error() == Some(libc::EIO)
}

/// The folder's name of a generation.
#[must_use]
pub fn name(first: Sequence, key: Key) -> String {
    format!("gen-{first:020}-{}", key_text(key))
}

fn key_text(key: Key) -> String {
    key.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn parse_key(text: &str) -> Option<Key> {
    (text.len() == 16)
        .then(|| u64::from_str_radix(text, 16).ok().map(u64::to_be_bytes))
        .flatten()
}

/// A name that says more than this, or 0, is damaged: no log comes so far, and nothing behind it could be counted.
const FIRST_MAX: Sequence = Sequence::MAX / 4;

/// First sequence and key, from a folder's name.
#[must_use]
pub fn parse_name(name: &str) -> Option<(Sequence, Key)> {
    let (first, key) = name.strip_prefix("gen-")?.split_once('-')?;
    let first = first.parse().ok().filter(|_| first.len() == 20)?;
    (1..=FIRST_MAX).contains(&first).then_some((first, parse_key(key)?))
}

/// What was sealed by a clock that was set back since is kept: its age is not known, and a full disk takes it all the same.
fn is_younger(sealed: SystemTime, age: Duration) -> bool {
    sealed.elapsed().map_or(true, |elapsed| elapsed < age)
}

impl Row {
    /// Reads the row from the folder's names, and removes what an earlier process left half done.
    ///
    /// # Errors
    /// The system's.
    pub fn load(folder: &Path) -> io::Result<Self> {
        // As these names are now they must be, before anything is removed below one of them.
        durable::sync_folder(folder)?;
        for item in fs::read_dir(folder)? {
            let item = item?;
            let name = item.file_name();
            if name
                .to_str()
                .is_some_and(|name| name.starts_with("next-") || name.starts_with("gone-"))
            {
                fs::remove_dir_all(item.path())?;
            }
        }
        let told = Told::read(folder)?;
        if let Some(fault) = &told.fault {
            tracing::warn!("{fault}: what is known to be missing is told again as damage");
        }
        Ok(Self {
            entries: list(folder)?.into(),
            told: told.all().into(),
            damaged: Vec::new(),
            unsent: Vec::new(),
        })
    }

    /// From now on `void` holds nothing, also after a restart: no record ever had these sequences, or none is left.
    ///
    /// # Errors
    /// The system's.
    pub fn pass_over(&mut self, folder: &Path, void: Range, acked: Sequence) -> io::Result<()> {
        let path = folder.join(ranges::VOID);
        // What lies below both is asked for by nobody.
        let first = self.first().unwrap_or(1).min(acked + 1);
        let mut all = ranges::to_rewrite(&path)?;
        all.retain(|(_, last)| *last >= first);
        all.push(void);
        ranges::write(&path, &ranges::joined(all))?;
        let told = self.told.iter().copied().chain([void]).collect();
        self.told = ranges::joined(told).into();
        Ok(())
    }

    /// Makes a store that no sequence was given to yet.
    ///
    /// # Errors
    /// The system's, no space among them.
    pub fn prepare(folder: &Path) -> io::Result<(PathBuf, Generation)> {
        let mut key = [0; 8];
        getrandom::fill(&mut key).map_err(|error| io::Error::other(error.to_string()))?;
        let path = folder.join(format!("next-{}", key_text(key)));
        let made = Generation::create(&path, key);
        if made.is_err() {
            // Half a store is of no use; the error to tell is the first one.
            fs::remove_dir_all(&path).or_else(|error| match error.kind() {
                io::ErrorKind::NotFound => Ok(()),
                _ => Err(error),
            })?;
        }
        Ok((path, made?))
    }

    /// Gives a prepared store its place: from `first` on, entries go there once it is pushed.
    ///
    /// # Errors
    /// The system's.
    pub fn put_to_use(folder: &Path, (path, store): (PathBuf, Generation), first: Sequence) -> io::Result<Entry> {
        let key = store.key();
        let target = folder.join(name(first, key));
        fs::rename(&path, &target)?;
        durable::sync_folder(folder)?;
        Ok(Entry {
            first,
            key,
            folder: target,
            disk_bytes: store.data_bytes()?,
            live: Some(Arc::new(store)),
            raw_bytes: Some(0),
            sealed: SystemTime::now(),
            set_aside: false,
        })
    }

    /// Adds the newest. Returns the one that was written before, to be closed where nobody waits.
    pub fn push(&mut self, entry: Entry) -> Option<Arc<Generation>> {
        let sealed = self.entries.back_mut().and_then(|last| {
            last.sealed = SystemTime::now();
            last.live.take()
        });
        self.entries.push_back(entry);
        sealed
    }

    /// Whether the oldest generation holds nothing above `acked` and is not retained. `pressed`: space is
    /// short, retain nothing.
    #[must_use]
    pub fn may_retire(&self, acked: Sequence, retain: Retain, pressed: bool) -> bool {
        let (Some(oldest), Some(second)) = (self.entries.front(), self.entries.get(1)) else {
            return false;
        };
        if second.first > acked.saturating_add(1) || oldest.live.is_some() {
            return false;
        }
        let kept = || {
            self.entries
                .iter()
                .take_while(|entry| entry.first <= acked)
                .map(|entry| entry.disk_bytes)
        };
        let retained = match retain {
            Retain::Off => false,
            Retain::Bytes(bytes) => kept().sum::<u64>() <= bytes,
            Retain::Time(age) => is_younger(oldest.sealed, age),
            Retain::All => return false,
        };
        pressed || !retained
    }

    /// Takes the oldest generation out of the row, if it may go, and renames it so that a half-done removal
    /// is not mistaken for damage.
    ///
    /// # Errors
    /// The system's; the row is as before.
    pub fn retire(
        &mut self,
        folder: &Path,
        acked: Sequence,
        retain: Retain,
        pressed: bool,
    ) -> io::Result<Option<Retired>> {
        if !self.may_retire(acked, retain, pressed) {
            return Ok(None);
        }
        let Some(oldest) = self.entries.front() else {
            return Ok(None);
        };
        let bytes = oldest.disk_bytes;
        let retired = if oldest.set_aside {
            Retired::Aside(set_aside(folder, &oldest.folder)?, bytes)
        } else {
            let name = oldest.folder.file_name().unwrap_or_default().to_string_lossy();
            let target = folder.join(format!("gone-{name}"));
            fs::rename(&oldest.folder, &target)?;
            Retired::Gone(target, bytes)
        };
        self.entries.pop_front();
        Ok(Some(retired))
    }

    /// Drops the newest generation from the row because it holds nothing; returns its folder.
    pub fn forget_newest(&mut self) -> Option<PathBuf> {
        self.entries.pop_back().map(|entry| entry.folder)
    }

    /// The one that is written (or, before a start is done, the newest).
    #[must_use]
    pub fn newest(&self) -> Option<&Entry> {
        self.entries.back()
    }

    /// As [`newest`](Self::newest).
    pub fn newest_mut(&mut self) -> Option<&mut Entry> {
        self.entries.back_mut()
    }

    /// The first sequence that is still on disk.
    #[must_use]
    pub fn first(&self) -> Option<Sequence> {
        self.entries.front().map(|entry| entry.first)
    }

    /// The generation that `sequence` belongs to; for one before the first, the first.
    #[must_use]
    pub fn place(&self, sequence: Sequence) -> Option<Place> {
        let at = self
            .entries
            .partition_point(|entry| entry.first <= sequence)
            .saturating_sub(1);
        let entry = self.entries.get(at)?;
        Some(Place {
            first: entry.first,
            end: self.entries.get(at + 1).map(|next| next.first),
            key: entry.key,
            data: entry.data_path(),
            live: entry.live.clone(),
        })
    }

    /// What was found before this start, and not dismissed, is no new damage; returns how many sequences that are.
    ///
    /// # Errors
    /// The system's.
    pub fn remember_unsent(&mut self, aside: &[Entry]) -> io::Result<u64> {
        self.damaged = ranges::joined([unsent(aside)?, unsent(self.entries.iter())?].concat());
        self.unsent.clone_from(&self.damaged);
        Ok(ranges::count(&self.damaged))
    }

    /// The generations, oldest first, and the first sequence behind each; `next`: behind the newest.
    pub fn segments(&self, next: Sequence) -> impl DoubleEndedIterator<Item = (&Entry, Sequence)> {
        let end = move |at: usize| self.entries.get(at + 1).map_or(next, |behind| behind.first);
        self.entries.iter().enumerate().map(move |(at, entry)| (entry, end(at)))
    }

    /// The sequences that hold nothing, and are no news.
    #[must_use]
    pub fn told(&self) -> Arc<[Range]> {
        Arc::clone(&self.told)
    }

    /// What was committed and not acknowledged when it was found that it cannot be read, in order.
    #[must_use]
    pub fn unsent(&self) -> &[Range] {
        &self.unsent
    }

    /// Notes damage, once; returns what of it is new. What is not `acked` is remembered, until an
    /// operator removes what was set aside.
    pub fn note_damage(&mut self, folder: &Path, (first, last): Range, acked: Sequence) -> Vec<Range> {
        let untold = ranges::unknown(first, last, &self.told);
        let new: Vec<Range> = (untold.iter())
            .flat_map(|(first, last)| ranges::unknown(*first, *last, &self.damaged))
            .collect();
        if new.is_empty() {
            return new;
        }
        let damaged = self.damaged.iter().copied().chain(new.iter().copied()).collect();
        self.damaged = ranges::joined(damaged);
        let unsent = new.iter().filter(|(_, last)| *last > acked);
        let unsent: Vec<Range> = unsent.map(|(first, last)| ((*first).max(acked + 1), *last)).collect();
        self.unsent = ranges::joined([self.unsent.as_slice(), &unsent].concat());
        let at = self.entries.partition_point(|entry| entry.first <= first);
        let marked = match at.checked_sub(1).and_then(|at| self.entries.get_mut(at)) {
            Some(entry) => {
                entry.set_aside = true;
                remember(&entry.folder, unsent)
            }
            // Nothing is left of it that could be set aside.
            None if unsent.is_empty() => Ok(()),
            None => {
                let place = folder.join(DAMAGED).join(name(first, [0; 8]));
                (fs::create_dir_all(&place).and_then(|()| remember(&place, unsent)))
                    .and_then(|()| durable::sync_folder(&folder.join(DAMAGED)))
                    .and_then(|()| durable::sync_folder(folder))
            }
        };
        if let Err(error) = marked {
            tracing::warn!(%error, "a damaged generation cannot be marked: after a restart nobody may know of it");
        }
        new
    }

    /// A scan found out how many bytes the entries of a generation have.
    pub fn note_raw_bytes(&mut self, first: Sequence, bytes: u64) {
        if let Some(entry) = self.entries.iter_mut().find(|entry| entry.first == first) {
            entry.raw_bytes.get_or_insert(bytes);
        }
    }

    /// How many there are.
    #[must_use]
    pub fn count(&self) -> usize {
        self.entries.len()
    }

    /// Bytes of all their files.
    #[must_use]
    pub fn disk_bytes(&self) -> u64 {
        self.entries.iter().map(|entry| entry.disk_bytes).sum()
    }

    /// Bytes of the entries above `acked`: exact for whole generations, in proportion to the sequences for
    /// the one that `acked` lies in; where a generation was not scanned yet, its file's size.
    #[must_use]
    pub fn backlog_bytes(&self, acked: Sequence, committed: Sequence) -> u64 {
        let mut total = 0;
        for (at, entry) in self.entries.iter().enumerate() {
            let end = self.entries.get(at + 1).map_or(committed + 1, |next| next.first);
            let entries = end.saturating_sub(entry.first);
            let left = end.saturating_sub(entry.first.max(acked + 1));
            if entries > 0 {
                let bytes = u128::from(entry.raw_bytes.unwrap_or(entry.disk_bytes));
                total += u64::try_from(bytes * u128::from(left) / u128::from(entries)).unwrap_or(u64::MAX);
            }
        }
        total
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_names_that_tidegate_gives_are_generations() {
        let key = 0x9f8e_7d6c_5b4a_3921_u64.to_be_bytes();
        assert_eq!(parse_name("gen-00000000000000000042-9f8e7d6c5b4a3921"), Some((42, key)));
        for name in [
            "gen-42-9f8e7d6c5b4a3921",
            "gen-00000000000000000042-9f8e",
            "next-9f8e7d6c5b4a3921",
            "gen-",
            "held",
        ] {
            assert_eq!(parse_name(name), None, "{name}");
        }
    }

    #[test]
    fn what_was_sealed_before_the_clock_was_set_back_is_retained() {
        let hour = Duration::from_secs(3600);
        assert!(is_younger(SystemTime::now() + 24 * hour, hour));
        assert!(is_younger(SystemTime::now(), hour));
        assert!(!is_younger(SystemTime::now() - 2 * hour, hour));
    }
}
