//! Reads a generation's file by its frames, never through sled: recovery, catching up, and later every
//! offline verb.
//!
//! The file is searched for the generation's magic; whatever has it and passes its checksum is a frame,
//! wherever it lies. sled rewrites pages, so a frame may be there several times: any intact copy will do.
//! The search costs a sequential read; what stays in memory is an index of about 48 bytes a frame.
//!
//! Knows nothing of commits answered OK, acknowledgements, or other generations.

use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::Path;

use memchr::memmem;

use super::frame::{self, FRAME_BYTES_MAX, HEADER_BYTES, Header, Key};
use super::ranges;
use crate::record::Sequence;

/// How much is read at once.
const WINDOW_BYTES: usize = 1024 * 1024;
/// How many broken frames of a file are remembered: they only explain what is missing.
const BROKEN_MAX: usize = 10_000;

/// The frames of one file, in order of sequence and part.
#[derive(Debug)]
pub struct Index {
    file: File,
    key: Key,
    frames: Vec<(Header, u64)>,
    broken: Vec<Broken>,
}

/// A frame that fails its checksum, by what its header says.
#[derive(Debug)]
struct Broken {
    first: Sequence,
    last: Sequence,
    commit_last: Sequence,
}

/// What the last commit in a file is like.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Tail {
    /// The sequence of its first entry.
    pub first: Sequence,
    /// The sequence of its last entry.
    pub last: Sequence,
    /// Whether all of it is there.
    pub whole: bool,
}

impl Index {
    /// Scans the file. Frames of sequences that are known to hold nothing (`told`, in order) are left out: of a commit that
    /// was cut off long ago, and would come back.
    ///
    /// # Errors
    /// The system's. A damaged file is no error: what is intact is found.
    pub fn scan(path: &Path, key: Key, told: &[ranges::Range]) -> io::Result<Self> {
        let file = File::open(path)?;
        let mut read = |free: &mut [u8], offset| file.read_at(free, offset);
        let found = search(&mut read, key)?;
        Ok(Self::of(file, key, found, told))
    }

    fn of(file: File, key: Key, (mut frames, mut broken): Frames, told: &[ranges::Range]) -> Self {
        let is_told = |sequence: Sequence| {
            let at = told.partition_point(|(_, last)| *last < sequence);
            told.get(at).is_some_and(|(first, _)| *first <= sequence)
        };
        frames.retain(|(header, _)| !is_told(header.first));
        broken.retain(|broken| !is_told(broken.first));
        Self {
            file,
            key,
            frames,
            broken,
        }
    }

    /// The last sequence, up to `limit`, that any frame is of, broken ones included.
    #[must_use]
    pub fn last_seen(&self, limit: Sequence) -> Option<Sequence> {
        let whole = self.frames.iter().map(|(header, _)| header.commit_last());
        let broken = self.broken.iter().flat_map(|broken| [broken.last, broken.commit_last]);
        whole.chain(broken).filter(|last| *last <= limit).max()
    }

    /// As [`scan`](Self::scan), and where the disk does not give what is in the file, that counts as zeros; also tells how
    /// many bytes those are.
    ///
    /// # Errors
    /// The file cannot be opened.
    pub fn scan_past_faults(path: &Path, key: Key, told: &[ranges::Range]) -> io::Result<(Self, u64)> {
        let file = File::open(path)?;
        // The kernel reads further ahead, where it can.
        if let Err(error) = rustix::fs::fadvise(&file, 0, None, rustix::fs::Advice::Sequential) {
            tracing::debug!(%error, "no advice is taken for {}", path.display());
        }
        let size = file.metadata()?.len();
        let mut faulty = 0;
        let mut read = past_faults(size, &mut faulty, |free, offset| file.read_at(free, offset));
        let found = search(&mut read, key)?;
        drop(read);
        Ok((Self::of(file, key, found, told), faulty))
    }

    /// The last commit of which anything is here. Whatever lies before it was on disk before it was written.
    #[must_use]
    pub fn tail(&self) -> Option<Tail> {
        let first = self.frames.iter().map(|(header, _)| header.commit_first).max()?;
        let start = self.frames.partition_point(|(header, _)| header.first < first);
        let last = self
            .frames
            .get(start..)?
            .iter()
            .map(|(header, _)| header.commit_last())
            .max()?;
        let whole = self.missing(first, last).is_empty();
        Some(Tail { first, last, whole })
    }

    /// The sequences of `first ..= last` that are not here.
    #[must_use]
    pub fn missing(&self, first: Sequence, last: Sequence) -> Vec<(Sequence, Sequence)> {
        let mut missing = Vec::new();
        let mut expected = first;
        let (mut split, mut parts) = (0, 0);
        for (header, _) in &self.frames {
            if header.last() < expected || header.first > last {
                continue;
            }
            // A split entry is there when its last part is, and none before it is missing.
            if header.first != split {
                (split, parts) = (header.first, 0); // whatever went before it was not completed
            }
            if header.part != parts {
                parts = 0;
                continue;
            }
            parts += 1;
            if parts < header.parts {
                continue;
            }
            parts = 0;
            if header.first > expected {
                missing.push((expected, header.first - 1));
            }
            expected = header.last() + 1;
        }
        if expected <= last {
            missing.push((expected, last));
        }
        missing
    }

    /// Whether a frame of any of these sequences is there and fails its checksum: damaged, not missing.
    #[must_use]
    pub fn has_broken(&self, first: Sequence, last: Sequence) -> bool {
        self.broken
            .iter()
            .any(|broken| broken.first <= last && broken.last >= first)
    }

    /// Bytes of all entries, before compression.
    #[must_use]
    pub fn raw_bytes(&self) -> u64 {
        self.frames
            .iter()
            .filter(|(header, _)| header.part == 0)
            .map(|(header, _)| u64::from(header.raw_bytes))
            .sum()
    }

    /// The place in the index of the frame that holds `sequence`, or of the next one after it.
    #[must_use]
    pub fn seek(&self, sequence: Sequence) -> usize {
        self.frames.partition_point(|(header, _)| header.last() < sequence)
    }

    /// Reads one frame whole, by its place in the index; `None` behind the last.
    ///
    /// # Errors
    /// The system's. A frame that no longer passes its checksum comes back empty.
    pub fn read(&self, place: usize, buffer: &mut Vec<u8>) -> io::Result<Option<()>> {
        let Some((header, offset)) = self.frames.get(place) else {
            return Ok(None);
        };
        buffer.resize(header.frame_bytes(), 0);
        match self.file.read_exact_at(buffer, *offset) {
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => buffer.clear(),
            other => other?,
        }
        if frame::check(buffer, self.key).is_none() {
            buffer.clear();
        }
        Ok(Some(()))
    }
}

/// Reads at an offset: some bytes, or none at the end.
type ReadAt<'a> = dyn FnMut(&mut [u8], u64) -> io::Result<usize> + 'a;

/// Intact frames with their places, and the sequences of broken ones.
type Frames = (Vec<(Header, u64)>, Vec<Broken>);

/// Finds the frames in what `read` gives.
fn search(read: &mut ReadAt<'_>, key: Key) -> io::Result<Frames> {
    let magic = frame::magic(key);
    let finder = memmem::Finder::new(&magic);
    let mut frames: Vec<(Header, u64)> = Vec::new();
    let mut broken = Vec::new();
    let mut buffer = vec![0; WINDOW_BYTES + FRAME_BYTES_MAX];
    let mut filled = 0;
    let mut base: u64 = 0;
    loop {
        let end = read_more(read, &mut buffer, &mut filled, base)?;
        let window = buffer.get(..filled).unwrap_or_default();
        let mut at = 0;
        while let Some(found) = window.get(at..).and_then(|rest| finder.find(rest)) {
            let start = at + found;
            if !end && filled - start < FRAME_BYTES_MAX {
                break; // it may go on in the next window
            }
            at = start + 1;
            let bytes = window.get(start..).unwrap_or_default();
            if let Some((header, _)) = frame::check(bytes, key) {
                frames.push((header, base + start as u64));
                at = start + header.frame_bytes();
            } else if let Some(header) = frame::peek(bytes, key).filter(|_| broken.len() < BROKEN_MAX) {
                broken.push(Broken {
                    first: header.first,
                    last: header.last(),
                    commit_last: header.commit_last(),
                });
            }
        }
        if end {
            break;
        }
        // Keep what may be the beginning of a frame.
        let consumed = at.max(filled.saturating_sub(FRAME_BYTES_MAX)).min(filled);
        base += consumed as u64;
        buffer.copy_within(consumed..filled, 0);
        filled -= consumed;
    }
    frames.sort_by_key(|(header, place)| (header.first, header.part, *place));
    frames.dedup_by_key(|(header, _)| (header.first, header.part));
    Ok((frames, broken))
}

/// What a disk's sector is at least: less is not asked for around a fault.
const FAULT_BYTES: usize = 4096;

/// Reads of a file of `size` bytes in which a fault of the disk costs [`FAULT_BYTES`], as zeros, and no more.
fn past_faults(
    size: u64,
    faulty: &mut u64,
    mut read: impl FnMut(&mut [u8], u64) -> io::Result<usize>,
) -> impl FnMut(&mut [u8], u64) -> io::Result<usize> {
    move |free, offset| {
        match read(free, offset) {
            Ok(n) => return Ok(n),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => return Err(error),
            Err(_) => {}
        }
        // Up to the next boundary, so that what follows is asked for in whole sectors.
        let to_boundary = FAULT_BYTES - usize::try_from(offset % FAULT_BYTES as u64).unwrap_or(0);
        let left = usize::try_from(size.saturating_sub(offset)).unwrap_or(usize::MAX);
        let length = to_boundary.min(left).min(free.len());
        let Some(sector) = free.get_mut(..length).filter(|sector| !sector.is_empty()) else {
            return Ok(0);
        };
        match read(sector, offset) {
            Ok(n) => Ok(n),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => Err(error),
            Err(_) => {
                sector.fill(0);
                *faulty += length as u64;
                Ok(length)
            }
        }
    }
}

/// Fills the buffer, of which `filled` bytes are there and the first one lies at `base`; true at the end of the file.
fn read_more(read: &mut ReadAt<'_>, buffer: &mut [u8], filled: &mut usize, base: u64) -> io::Result<bool> {
    loop {
        let Some(free) = buffer.get_mut(*filled..).filter(|free| !free.is_empty()) else {
            return Ok(false);
        };
        match read(free, base + *filled as u64) {
            Ok(0) => return Ok(true),
            Ok(n) => *filled += n,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
}

/// Entries that were put together from frames: consecutive sequences from `first`.
#[derive(Debug, Default)]
pub struct Assembled {
    /// The sequence of the first entry.
    pub first: Sequence,
    /// The expanded payloads, one after the other.
    pub payload: Vec<u8>,
    /// Where each entry lies in it.
    pub ranges: Vec<Range<usize>>,
    parts: Vec<u8>,
}

/// What adding a frame came to.
#[derive(Debug, PartialEq, Eq)]
pub enum Added {
    /// Taken (or of no interest: all of it lies before what is asked for).
    Yes,
    /// A part of an entry was taken; more follow.
    Part,
    /// It does not follow on: `expected` is not in it.
    Gap,
    /// Its checksum holds, its contents do not: the reason.
    Broken(String),
}

impl Assembled {
    /// Nothing yet; `first` is wanted.
    #[must_use]
    pub fn from(first: Sequence) -> Self {
        Self {
            first,
            ..Self::default()
        }
    }

    /// The next sequence that is wanted.
    #[must_use]
    pub fn expected(&self) -> Sequence {
        self.first + self.ranges.len() as u64
    }

    /// The entries that are whole.
    pub fn take(&self) -> impl Iterator<Item = (Sequence, &[u8])> {
        let entries = self.ranges.iter();
        (self.first..).zip(entries.map(|range| self.payload.get(range.clone()).unwrap_or_default()))
    }

    /// Lets go of the entries that are whole; a part of one stays.
    pub fn forget(&mut self) {
        self.first = self.expected();
        self.payload.clear();
        self.ranges.clear();
    }

    /// Adds a frame that passed [`frame::check`].
    pub fn add(&mut self, header: &Header, payload: &[u8]) -> Added {
        let expected = self.expected();
        if header.last() < expected {
            return Added::Yes;
        }
        if header.first > expected {
            return Added::Gap;
        }
        let stored: &[u8] = if header.parts > 1 {
            if header.part == 0 {
                self.parts.clear();
            } else if self.parts.len() != usize::from(header.part) * (FRAME_BYTES_MAX - HEADER_BYTES) {
                return Added::Gap;
            }
            self.parts.extend_from_slice(payload);
            if header.part + 1 < header.parts {
                return Added::Part;
            }
            &self.parts
        } else {
            payload
        };
        let base = self.payload.len();
        if let Err(reason) = frame::expand(header, stored, &mut self.payload) {
            self.payload.truncate(base);
            return Added::Broken(reason);
        }
        match frame::entries(self.payload.get(base..).unwrap_or_default(), header.count) {
            Err(reason) => {
                self.payload.truncate(base);
                Added::Broken(reason)
            }
            Ok(ranges) => {
                let skip = usize::try_from(expected - header.first).unwrap_or(usize::MAX);
                self.ranges.extend(
                    ranges
                        .into_iter()
                        .skip(skip)
                        .map(|range| base + range.start..base + range.end),
                );
                Added::Yes
            }
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::indexing_slicing)]
mod tests {
    use super::*;
    use crate::wal::frame::Framer;
    use proptest::prelude::*;

    const KEY: Key = *b"scantest";

    fn bytes_of(commits: &[usize], entry_bytes: usize) -> Vec<Vec<u8>> {
        let mut framer = Framer::new(KEY, false);
        let mut next = 1;
        let mut frames = Vec::new();
        for &count in commits {
            let entries = vec![vec![7u8; entry_bytes]; count];
            frames.extend(
                framer
                    .frames(next, entries.iter().map(Vec::as_slice))
                    .into_iter()
                    .map(|frame| frame.bytes),
            );
            next += count as u64;
        }
        frames
    }

    fn scan(bytes: &[u8]) -> Index {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), bytes).unwrap();
        Index::scan(file.path(), KEY, &[]).unwrap()
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        /// In any order, with repeats and rubbish between, across windows: every frame is found once.
        #[test]
        fn frames_are_found_wherever_they_lie(
            commits in prop::collection::vec(1usize..60, 1..12),
            entry_bytes in prop_oneof![Just(5usize), Just(900), Just(40_000)],
            order in any::<prop::sample::Index>(),
            rubbish in prop::collection::vec(any::<u8>(), 0..3000),
        ) {
            let mut frames = bytes_of(&commits, entry_bytes);
            let turn = order.index(frames.len());
            frames.rotate_left(turn);
            frames.push(frames[0].clone());
            let mut bytes = vec![0u8; WINDOW_BYTES - 700];
            for frame in &frames {
                bytes.extend_from_slice(&rubbish);
                bytes.extend_from_slice(frame);
            }
            bytes.extend_from_slice(&frame::magic(KEY));
            let index = scan(&bytes);
            let total = commits.iter().sum::<usize>() as u64;
            prop_assert_eq!(index.frames.len(), frames.len() - 1);
            prop_assert_eq!(index.missing(1, total), vec![]);
            let last = *commits.last().unwrap() as u64;
            prop_assert_eq!(index.tail(), Some(Tail { first: total - last + 1, last: total, whole: true }));
        }
    }

    #[test]
    fn a_fault_of_the_disk_costs_its_sector_only() {
        let bytes: Vec<u8> = (0..100_000_u32).map(|at| (at % 251) as u8).collect();
        let bad = 40_960..46_000;
        let mut faulty = 0;
        let mut read = past_faults(bytes.len() as u64, &mut faulty, |free: &mut [u8], offset| {
            let start = usize::try_from(offset).unwrap().min(bytes.len());
            let end = (start + free.len()).min(bytes.len());
            if start < bad.end && end > bad.start {
                return Err(io::Error::from_raw_os_error(5));
            }
            free[..end - start].copy_from_slice(&bytes[start..end]);
            Ok(end - start)
        });
        let (mut buffer, mut filled) = (vec![1; 200_000], 0);
        assert!(read_more(&mut read, &mut buffer, &mut filled, 0).unwrap());
        drop(read);
        assert_eq!(faulty, 8192);
        assert_eq!(filled, bytes.len());
        buffer.truncate(filled);
        assert_eq!(buffer[..40_960], bytes[..40_960]);
        assert_eq!(buffer[40_960..49_152], [0; 8192]);
        assert_eq!(buffer[49_152..], bytes[49_152..]);
    }

    #[test]
    fn a_commit_that_lacks_a_frame_is_not_whole() {
        let frames = bytes_of(&[3, 100], 900); // 17 entries a frame
        let bytes: Vec<u8> = frames.iter().take(frames.len() - 1).flatten().copied().collect();
        assert_eq!(
            scan(&bytes).tail(),
            Some(Tail {
                first: 4,
                last: 103,
                whole: false
            })
        );
    }

    #[test]
    fn parts_of_two_entries_make_no_whole_one() {
        // The end of the second entry is gone, and the beginning of the third: what is left of both fits together.
        let mut frames = bytes_of(&[1, 1, 1, 1], 40_000);
        frames.drain(5..8);
        assert_eq!(scan(&frames.concat()).missing(1, 4), vec![(2, 3)]);
    }

    #[test]
    fn a_split_entry_that_lacks_a_part_is_missing() {
        let whole = Tail {
            first: 3,
            last: 3,
            whole: true,
        };
        for lost in 3..6 {
            let mut frames = bytes_of(&[1, 1, 1], 40_000); // 3 parts each
            frames.remove(lost);
            let index = scan(&frames.concat());
            assert_eq!(index.missing(1, 3), vec![(2, 2)], "part {}", lost - 3);
            assert_eq!(index.tail(), Some(whole));
        }
    }
}
