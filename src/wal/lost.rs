//! The sequences that a salvage could not save: a file of its own in a log's folder.
//!
//! ```text
//! lost:  a line for each range, "<first> <last>", decimal, in order
//! ```
//! A salvaged log keeps the sequences that its records had, so it has holes where something was lost. They were told
//! when it was salvaged; without this file every start and every check would find them again as new damage.
//!
//! Written once, by a salvage. Knows nothing of why something was lost.

use std::fmt::Write as _;
use std::fs;
use std::io;
use std::path::Path;

use crate::record::Sequence;

/// The file's name in the log's folder.
pub const FILE: &str = "lost";
/// Lines of a list that is believed; a salvage joins what follows on.
const RANGES_MAX: usize = 1_000_000;

/// The ranges of the log in `folder`; none where there is no such file.
///
/// # Errors
/// The system's, or a line that is no range.
pub fn read(folder: &Path) -> io::Result<Vec<(Sequence, Sequence)>> {
    let text = match fs::read_to_string(folder.join(FILE)) {
        Ok(text) => text,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(error),
    };
    let ranges = text.lines().take(RANGES_MAX).map(|line| {
        let range = line.split_once(' ').and_then(|(first, last)| {
            let range = (first.parse().ok()?, last.parse().ok()?);
            (range.0 <= range.1).then_some(range)
        });
        range.ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, format!("{FILE}: {line:?} is no range")))
    });
    ranges.collect()
}

/// The file's text.
#[must_use]
pub fn text(ranges: &[(Sequence, Sequence)]) -> String {
    ranges.iter().fold(String::new(), |mut text, (first, last)| {
        // Writing to a string does not fail.
        if writeln!(text, "{first} {last}").is_err() {
            text.clear();
        }
        text
    })
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
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read() {
        let folder = tempfile::tempdir().unwrap();
        assert_eq!(read(folder.path()).unwrap(), vec![]);
        let ranges = vec![(3, 3), (7, 900)];
        fs::write(folder.path().join(FILE), text(&ranges)).unwrap();
        assert_eq!(read(folder.path()).unwrap(), ranges);
        fs::write(folder.path().join(FILE), "7 3\n").unwrap();
        assert!(read(folder.path()).is_err());
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
