//! Ranges of sequences that hold no record, in small files: what is remembered of a loss, and of what never was.
//!
//! ```text
//! a line for each range, "<first> <last>", decimal; sealed (see there)
//!
//! lost            in a log's folder: what a salvage could not save
//! void            in a log's folder: sequences that a start passed over. A commit that a crash cut off may have had them,
//!                 or a damaged one; no record gets the sequence of another, and whoever comes there learns that it is no news
//! gen-../damaged  in a generation's folder: what was committed, not acknowledged yet, and could not be read
//! ```
//! Without them a loss would be told again for ever, or be forgotten once the watermark has passed it.
//!
//! Knows nothing of why something was lost.

use std::io;
use std::path::Path;

use super::{generations, sealed};
use crate::record::{SEQUENCE_MAX, Sequence};

/// What a salvage could not save.
pub const LOST: &str = "lost";
/// What a start passed over.
pub const VOID: &str = "void";
/// What of a generation could not be read.
pub const DAMAGED: &str = "damaged";

/// A range: both ends are in it.
pub type Range = (Sequence, Sequence);

/// The ranges in the file; none where there is no such file.
///
/// # Errors
/// The system's, or `InvalidData`: it is not what was written.
pub fn read(path: &Path) -> io::Result<Vec<Range>> {
    let Some(lines) = sealed::read(path)? else {
        return Ok(Vec::new());
    };
    parse(&lines).map_err(|why| sealed::damaged(path, &why))
}

/// The ranges that lines say.
///
/// # Errors
/// In words, which line is none.
pub fn parse(lines: &str) -> Result<Vec<Range>, String> {
    let ranges = lines.lines().map(|line| {
        let range = line.split_once(' ').and_then(|(first, last)| {
            let range = (first.parse().ok()?, last.parse().ok()?);
            (range.0 <= range.1 && range.1 <= SEQUENCE_MAX).then_some(range)
        });
        range.ok_or_else(|| format!("{line:?} is no range"))
    });
    ranges.collect()
}

/// As [`read`], but a list that is damaged is empty, and the second value says what is wrong with it.
///
/// # Errors
/// The system's.
pub fn believed(path: &Path) -> io::Result<(Vec<Range>, Option<String>)> {
    match read(path) {
        Err(error) if error.kind() == io::ErrorKind::InvalidData || generations::is_damage(&error) => {
            Ok((Vec::new(), Some(error.to_string())))
        }
        list => Ok((list?, None)),
    }
}

/// As [`believed`], to be written anew with more in it: what the disk does not give now stays as it is.
///
/// # Errors
/// The system's.
pub fn to_rewrite(path: &Path) -> io::Result<Vec<Range>> {
    match read(path) {
        Err(error) if error.kind() == io::ErrorKind::InvalidData => Ok(Vec::new()),
        list => list,
    }
}

/// How many sequences there are in ranges that do not overlap.
#[must_use]
pub fn count(ranges: &[Range]) -> u64 {
    ranges.iter().map(|(first, last)| last - first + 1).sum()
}

/// The lines that say the ranges.
#[must_use]
pub fn text(ranges: &[Range]) -> String {
    ranges.iter().map(|(first, last)| format!("{first} {last}\n")).collect()
}

/// What of a log's sequences holds nothing and is no news.
#[derive(Debug, Default)]
pub struct Told {
    /// A salvage could not save them.
    pub lost: Vec<Range>,
    /// No record ever had them, or it was lost before anybody was sure of it.
    pub void: Vec<Range>,
    /// Why one of them is not known.
    pub fault: Option<String>,
}

impl Told {
    /// Reads both lists of a log.
    ///
    /// # Errors
    /// The system's. A damaged list is empty, and its fault is told.
    pub fn read(folder: &Path) -> io::Result<Self> {
        let (lost, fault_of_lost) = believed(&folder.join(LOST))?;
        let (void, fault_of_void) = believed(&folder.join(VOID))?;
        Ok(Self {
            lost,
            void,
            fault: fault_of_lost.or(fault_of_void),
        })
    }

    /// Both, in order.
    #[must_use]
    pub fn all(&self) -> Vec<Range> {
        joined([self.lost.as_slice(), &self.void].concat())
    }
}

/// Whether one of the ranges, which are in order, has it.
#[must_use]
pub fn has(ranges: &[Range], seq: Sequence) -> bool {
    let at = ranges.partition_point(|(_, last)| *last < seq);
    ranges.get(at).is_some_and(|(first, _)| *first <= seq)
}

/// How many sequences of `first ..= last` may hold something.
#[must_use]
pub fn count_unknown(first: Sequence, last: Sequence, known: &[Range]) -> u64 {
    count(&unknown(first, last, known))
}

/// The sequence from which on `records` of those below `end` are not in `known`, which is in order; 0 if there are fewer.
#[must_use]
pub fn back(end: Sequence, records: u64, known: &[Range]) -> Sequence {
    let (mut at, mut left) = (end, records);
    for (first, last) in known.iter().rev().filter(|(first, _)| *first < end) {
        let behind = at.saturating_sub(last + 1);
        if behind >= left {
            break;
        }
        left -= behind;
        at = *first;
    }
    at.saturating_sub(left)
}

/// Puts the ranges in the file, durably: all of them, or the file stays as it was.
///
/// # Errors
/// The system's.
pub fn write(path: &Path, ranges: &[Range]) -> io::Result<()> {
    sealed::write(path, text(ranges))
}

/// In order, what overlaps or follows on joined.
#[must_use]
pub fn joined(mut ranges: Vec<Range>) -> Vec<Range> {
    ranges.sort_unstable();
    let mut joined: Vec<Range> = Vec::new();
    for (first, last) in ranges {
        match joined.last_mut() {
            Some(before) if first <= before.1.saturating_add(1) => before.1 = before.1.max(last),
            _ => joined.push((first, last)),
        }
    }
    joined
}

/// The parts of `first ..= last` that are not in `known`, which is in order.
#[must_use]
pub fn unknown(first: Sequence, last: Sequence, known: &[Range]) -> Vec<Range> {
    let mut left = Vec::new();
    let mut at = first;
    for (from, to) in known {
        if *to < at || *from > last {
            continue;
        }
        if *from > at {
            left.push((at, from - 1));
        }
        at = to + 1;
    }
    if at <= last {
        left.push((at, last));
    }
    left
}

/// `first ..= last` in order, cut where `known`, which is in order, begins and ends; and whether each part is in it.
#[must_use]
pub fn parts(first: Sequence, last: Sequence, known: &[Range]) -> Vec<(Sequence, Sequence, bool)> {
    let outside = unknown(first, last, known);
    let inside = unknown(first, last, &outside);
    let mut parts: Vec<_> = outside.into_iter().map(|(first, last)| (first, last, false)).collect();
    parts.extend(inside.into_iter().map(|(first, last)| (first, last, true)));
    parts.sort_unstable();
    parts
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn what_is_written_is_read() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join(LOST);
        assert_eq!(read(&path).unwrap(), vec![]);
        let ranges = vec![(3, 3), (7, 900)];
        write(&path, &ranges).unwrap();
        assert_eq!(read(&path).unwrap(), ranges);
        for no_range in ["9", "1 18446744073709551615", "9 7"] {
            sealed::write(&path, format!("3 3\n{no_range}\n")).unwrap();
            assert_eq!(read(&path).unwrap_err().kind(), io::ErrorKind::InvalidData);
        }
        let (believed, fault) = believed(&path).unwrap();
        assert_eq!(believed, vec![]);
        assert!(fault.is_some_and(|fault| fault.contains("9 7")));
        assert_eq!(count(&ranges), 895);
    }

    proptest! {
        #[test]
        fn back_counts_only_what_is_not_known(
            gaps in prop::collection::vec((1u64..4, 1u64..4), 0..6),
            end in 1u64..40,
            records in 0u64..20,
        ) {
            let mut known = Vec::new();
            let mut at = 0;
            for (before, length) in gaps {
                at += before;
                known.push((at, at + length - 1));
                at += length;
            }
            // One by one, downwards.
            let (mut place, mut left) = (end, records);
            while left > 0 && place > 0 {
                place -= 1;
                left -= count_unknown(place, place, &known);
            }
            prop_assert_eq!(back(end, records, &known), place);
        }
    }

    #[test]
    fn what_meets_is_joined() {
        let ranges = vec![(8, 8), (3, 4), (5, 6), (10, 12), (11, 11)];
        assert_eq!(joined(ranges), vec![(3, 6), (8, 8), (10, 12)]);
    }

    #[test]
    fn only_what_is_not_known_is_left() {
        let known = [(3, 4), (8, 8)];
        assert_eq!(unknown(1, 10, &known), vec![(1, 2), (5, 7), (9, 10)]);
        assert_eq!(unknown(3, 4, &known), vec![]);
        assert_eq!(unknown(4, 8, &known), vec![(5, 7)]);
        assert_eq!(unknown(9, 9, &known), vec![(9, 9)]);
        let cut = [(4, 4, true), (5, 7, false), (8, 8, true), (9, 9, false)];
        assert_eq!(parts(4, 9, &known), cut);
    }
}
