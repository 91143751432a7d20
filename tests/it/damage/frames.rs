//! A reader of WAL folders that shares nothing with tidegate's: docs/format.md, a second time. It says which records
//! are still whole, and so which are lost.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::ops::Range;
use std::path::{Path, PathBuf};

/// The folder's logs, by the names that reports have.
pub const LOGS: [&str; 3] = ["main", "held", "dead-letters"];

/// An intact frame in a file.
#[derive(Debug, Clone)]
pub struct Frame {
    pub at: usize,
    pub bytes: usize,
    pub first: u64,
    pub count: u16,
    pub commit: (u64, u64),
    pub part: u16,
    parts: u16,
    raw: usize,
    lz4: bool,
}

fn number(bytes: &[u8], at: usize, size: usize) -> u64 {
    let mut wide = [0; 8];
    wide[..size].copy_from_slice(&bytes[at..at + size]);
    u64::from_le_bytes(wide)
}

/// All copies of all intact frames with this key.
pub fn frames(file: &[u8], key: [u8; 8]) -> Vec<Frame> {
    let magic = [&b"TGF\x01"[..], &key].concat();
    let mut frames = Vec::new();
    for at in memchr::memmem::find_iter(file, &magic) {
        let frame = &file[at..];
        if frame.len() < 52 {
            continue;
        }
        let bytes = 52 + usize::try_from(number(frame, 36, 4)).unwrap();
        if bytes > 16 * 1024 || bytes > frame.len() {
            continue;
        }
        if u64::from(crc32c::crc32c(&frame[16..bytes])) != number(frame, 12, 4) {
            continue;
        }
        let commit_first = number(frame, 24, 8);
        let small = |at| u16::try_from(number(frame, at, 2)).unwrap();
        frames.push(Frame {
            at,
            bytes,
            first: number(frame, 16, 8),
            count: small(44),
            commit: (commit_first, commit_first + number(frame, 32, 4) - 1),
            part: small(46),
            parts: small(48),
            raw: usize::try_from(number(frame, 40, 4)).unwrap(),
            lz4: frame[50] == 1,
        });
    }
    frames
}

/// A frame with one entry, of a commit that has two.
pub fn torn(key: [u8; 8], first: u64, entry: &[u8]) -> Vec<u8> {
    let length = u32::try_from(entry.len()).unwrap();
    let payload = [&length.to_le_bytes()[..], entry].concat();
    let mut body = Vec::new();
    body.extend(first.to_le_bytes());
    body.extend(first.to_le_bytes());
    body.extend(2_u32.to_le_bytes());
    body.extend((length + 4).to_le_bytes());
    body.extend((length + 4).to_le_bytes());
    for small in [1_u16, 0, 1, 0] {
        body.extend(small.to_le_bytes());
    }
    body.extend(payload);
    let sum = crc32c::crc32c(&body).to_le_bytes();
    [&b"TGF\x01"[..], &key, &sum, &body].concat()
}

/// A generation's folder.
pub struct Generation {
    pub folder: PathBuf,
    pub first: u64,
    pub key: [u8; 8],
    pub frames: Vec<Frame>,
    /// What is whole in it, void entries too.
    entries: BTreeMap<u64, Vec<u8>>,
}

impl Generation {
    fn read(folder: PathBuf) -> Option<Self> {
        let name = folder.file_name()?.to_str()?;
        let (first, key) = name.strip_prefix("gen-")?.split_once('-')?;
        let (first, key) = (
            first.parse().unwrap(),
            u64::from_str_radix(key, 16).unwrap().to_be_bytes(),
        );
        let file = fs::read(folder.join("db")).unwrap_or_default();
        let frames = frames(&file, key);
        let entries = entries(&file, &frames);
        Some(Self {
            folder,
            first,
            key,
            frames,
            entries,
        })
    }
}

fn entries(file: &[u8], frames: &[Frame]) -> BTreeMap<u64, Vec<u8>> {
    let mut pieces: BTreeMap<u64, BTreeMap<u16, &Frame>> = BTreeMap::new();
    for frame in frames {
        pieces.entry(frame.first).or_default().insert(frame.part, frame);
    }
    let mut entries = BTreeMap::new();
    for (first, parts) in pieces {
        let some = parts.values().next().unwrap();
        if parts.len() < usize::from(some.parts) {
            continue;
        }
        let stored: Vec<&[u8]> = parts
            .values()
            .map(|frame| &file[frame.at + 52..frame.at + frame.bytes])
            .collect();
        let stored = stored.concat();
        let raw = match some.lz4 {
            true => lz4_flex::block::decompress(&stored, some.raw).unwrap(),
            false => stored,
        };
        let (mut rest, mut sequence) = (&raw[..], first);
        while !rest.is_empty() {
            let end = 4 + usize::try_from(number(rest, 0, 4)).unwrap();
            entries.insert(sequence, rest[4..end].to_vec());
            (rest, sequence) = (&rest[end..], sequence + 1);
        }
        assert_eq!(sequence, first + u64::from(some.count));
    }
    entries
}

/// One log of a folder.
pub struct Log {
    pub generations: Vec<Generation>,
    /// committed and acked.
    pub witness: Option<(u64, u64)>,
}

impl Log {
    /// `None`: the folder has no such log.
    pub fn read(wal: &Path, name: &str) -> Option<Self> {
        let folder = folder(wal, name);
        let mut generations: Vec<Generation> = fs::read_dir(&folder)
            .ok()?
            .filter_map(|item| Generation::read(item.unwrap().path()))
            .collect();
        generations.sort_by_key(|generation| generation.first);
        let witness = fs::read(folder.join("witness")).unwrap_or_default();
        let slots = [0, 4096].into_iter().filter_map(|at| slot(witness.get(at..at + 40)?));
        Some(Self {
            generations,
            witness: slots.max().map(|(_, committed, acked)| (committed, acked)),
        })
    }

    /// The last sequence that was answered OK, as far as what is left tells.
    pub fn committed(&self) -> u64 {
        let said = self.witness.map_or(0, |(committed, _)| committed);
        let mut committed = said.max(self.generations.iter().map(|one| one.first - 1).max().unwrap_or(0));
        for generation in self.generations.iter().rev() {
            if let Some((first, last)) = generation.frames.iter().map(|frame| frame.commit).max() {
                let whole = (first..=last).all(|sequence| generation.entries.contains_key(&sequence));
                committed = committed.max(if whole || first <= said { last } else { first - 1 });
            }
            if committed >= generation.first {
                break;
            }
        }
        committed
    }

    pub fn acked(&self) -> u64 {
        let trimmed = self.generations.first().map_or(0, |first| first.first - 1);
        self.witness.map_or(trimmed, |(_, acked)| acked)
    }

    /// Everything that is whole and counts: what a generation holds at or beyond the next one's beginning does not.
    pub fn whole(&self) -> BTreeMap<u64, &[u8]> {
        let mut whole = BTreeMap::new();
        let ends = self.generations.iter().skip(1).map(|next| next.first);
        for (generation, end) in self.generations.iter().zip(ends.chain([self.committed() + 1])) {
            let counts = generation.entries.range(generation.first..end.max(generation.first));
            whole.extend(counts.map(|(sequence, bytes)| (*sequence, bytes.as_slice())));
        }
        whole
    }

    /// What should be there and is not.
    pub fn lost(&self) -> Vec<(u64, u64)> {
        let whole = self.whole();
        let unsettled = self.acked() + 1;
        let from = self
            .generations
            .first()
            .map_or(unsettled, |first| first.first.min(unsettled));
        ranges((from..=self.committed()).filter(|sequence| !whole.contains_key(sequence)))
    }
}

fn slot(slot: &[u8]) -> Option<(u64, u64, u64)> {
    let whole = &slot[..8] == b"TGWITNES" && u64::from(crc32c::crc32c(&slot[12..])) == number(slot, 8, 4);
    whole.then(|| (number(slot, 16, 8), number(slot, 24, 8), number(slot, 32, 8)))
}

pub fn folder(wal: &Path, name: &str) -> PathBuf {
    match name {
        "main" => wal.to_owned(),
        side => wal.join(side),
    }
}

/// Numbers in order, as ranges.
pub fn ranges(numbers: impl Iterator<Item = u64>) -> Vec<(u64, u64)> {
    let mut ranges: Vec<(u64, u64)> = Vec::new();
    for number in numbers {
        match ranges.last_mut() {
            Some((_, last)) if *last + 1 == number => *last = number,
            _ => ranges.push((number, number)),
        }
    }
    ranges
}

/// The places of all copies of the frames that hold what the frame `of` does.
pub fn copies(frames: &[Frame], of: &Frame) -> Vec<Range<usize>> {
    let same = frames
        .iter()
        .filter(|frame| (frame.first, frame.part) == (of.first, of.part));
    same.map(|frame| frame.at..frame.at + frame.bytes).collect()
}

/// How many of the sequences are in `ranges`.
pub fn count(ranges: &[(u64, u64)]) -> u64 {
    let all: BTreeSet<u64> = ranges.iter().flat_map(|(first, last)| *first..=*last).collect();
    all.len() as u64
}
