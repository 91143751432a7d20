//! The sequences that a salvage could not save: a file of its own in a log's folder.
//!
//! ```text
//! lost:  a line for each range, "<first> <last>", decimal, in order; then "crc32c " and the checksum of those lines,
//!        8 hexadecimal digits
//! ```
//! A salvaged log keeps the sequences that its records had, so it has holes where something was lost. They were told
//! when it was salvaged; without this file every start and every check would find them again as new damage.
//!
//! Written once, by a salvage. Knows nothing of why something was lost.

use std::fs;
use std::io;
use std::path::Path;

use crate::record::Sequence;

/// The file's name in the log's folder.
pub const FILE: &str = "lost";
/// What the last line begins with.
const SUM: &str = "crc32c ";
/// Bytes of a list that is believed: more ranges than a log of 64 GiB has frames are no list.
const BYTES_MAX: usize = 256 << 20;

/// The ranges of the log in `folder`; none where there is no such file.
///
/// # Errors
/// The system's, or `InvalidData`: it is not what was written.
pub fn read(folder: &Path) -> io::Result<Vec<(Sequence, Sequence)>> {
    let text = match fs::read_to_string(folder.join(FILE)) {
        Ok(text) => text,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(error),
    };
    let damaged = |what: String| io::Error::new(io::ErrorKind::InvalidData, format!("{FILE}: {what}"));
    let lines = text.rfind(SUM).and_then(|at| text.get(..at)).unwrap_or_default();
    if lines.len() > BYTES_MAX || with_sum(lines.to_owned()) != text {
        return Err(damaged("its checksum does not hold".to_owned()));
    }
    let ranges = lines.lines().map(|line| {
        let range = line.split_once(' ').and_then(|(first, last)| {
            let range = (first.parse().ok()?, last.parse().ok()?);
            (range.0 <= range.1).then_some(range)
        });
        range.ok_or_else(|| damaged(format!("{line:?} is no range")))
    });
    ranges.collect()
}

/// The file's text.
#[must_use]
pub fn text(ranges: &[(Sequence, Sequence)]) -> String {
    let lines: Vec<String> = ranges.iter().map(|(first, last)| format!("{first} {last}\n")).collect();
    with_sum(lines.concat())
}

fn with_sum(lines: String) -> String {
    let sum = crc32c::crc32c(lines.as_bytes());
    lines + &format!("{SUM}{sum:08x}\n")
}

/// The parts of `first ..= last` that are not in `known`, which is in order.
#[must_use]
pub fn unknown(first: Sequence, last: Sequence, known: &[(Sequence, Sequence)]) -> Vec<(Sequence, Sequence)> {
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

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::indexing_slicing)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read() {
        let folder = tempfile::tempdir().unwrap();
        assert_eq!(read(folder.path()).unwrap(), vec![]);
        let ranges = vec![(3, 3), (7, 900)];
        fs::write(folder.path().join(FILE), text(&ranges)).unwrap();
        assert_eq!(read(folder.path()).unwrap(), ranges);
        let whole = text(&ranges).into_bytes();
        for at in 0..whole.len() {
            let mut flipped = whole.clone();
            flipped[at] ^= 4;
            for bytes in [&flipped[..], &whole[..at]] {
                fs::write(folder.path().join(FILE), bytes).unwrap();
                assert_eq!(read(folder.path()).unwrap_err().kind(), io::ErrorKind::InvalidData);
            }
        }
    }

    #[test]
    fn only_what_is_not_known_is_left() {
        let known = [(3, 4), (8, 8)];
        assert_eq!(unknown(1, 10, &known), vec![(1, 2), (5, 7), (9, 10)]);
        assert_eq!(unknown(3, 4, &known), vec![]);
        assert_eq!(unknown(4, 8, &known), vec![(5, 7)]);
        assert_eq!(unknown(9, 9, &known), vec![(9, 9)]);
    }
}
