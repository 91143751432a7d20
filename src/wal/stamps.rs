//! What this folder's gateways have signed their watermark in Kafka with (`forward.delivery = "exactly_once"`).
//!
//! ```text
//! stamps: "tidegate-stamps 1\n", then the stamps, 16 hexadecimal digits a line, the newest last: two at most; sealed
//! ```
//! A gateway makes a stamp at each start and writes it here before Kafka gets it; so of two that run on copies of one
//! folder each knows the other's watermark for what it is. The one before stays, for a crash between the two writings.
//!
//! Knows nothing of Kafka.

use std::io;
use std::path::Path;

use super::{Wal, sealed};

/// The file.
pub const FILE: &str = "stamps";
const HEAD: &str = "tidegate-stamps 1\n";

/// A signature: random.
pub type Stamp = u64;

/// The stamps of a folder; none where none was ever made.
///
/// # Errors
/// The system's, or `InvalidData`: the file is not what was written.
pub fn read(folder: &Path) -> io::Result<Vec<Stamp>> {
    let path = folder.join(FILE);
    let Some(lines) = sealed::read(&path)? else {
        return Ok(Vec::new());
    };
    parse(&lines).map_err(|why| sealed::damaged(&path, &why))
}

/// The stamps that lines say.
///
/// # Errors
/// In words, why they say none.
pub fn parse(lines: &str) -> Result<Vec<Stamp>, String> {
    let body = lines.strip_prefix(HEAD).ok_or_else(|| {
        let first = lines.lines().next().unwrap_or_default();
        format!("it says {first:?}, and this version knows {:?}", HEAD.trim())
    })?;
    let stamps = body.lines().map(|line| Stamp::from_str_radix(line, 16));
    stamps
        .collect::<Result<_, _>>()
        .map_err(|error| format!("a stamp cannot be read: {error}"))
}

/// The lines that say the stamps.
#[must_use]
pub fn text(stamps: &[Stamp]) -> String {
    let lines: String = stamps.iter().map(|stamp| format!("{stamp:016x}\n")).collect();
    format!("{HEAD}{lines}")
}

/// Puts stamps in a folder, durably.
///
/// # Errors
/// The system's.
pub fn write(folder: &Path, stamps: &[Stamp]) -> io::Result<()> {
    sealed::write(&folder.join(FILE), text(stamps))
}

impl Wal {
    /// The stamps of this folder's gateways.
    ///
    /// # Errors
    /// As [`read`].
    pub fn stamps(&self) -> io::Result<Vec<Stamp>> {
        read(&self.inner.options.path)
    }

    /// Keeps these from now on.
    ///
    /// # Errors
    /// The system's: what was kept stays.
    pub fn keep_stamps(&self, stamps: &[Stamp]) -> io::Result<()> {
        write(&self.inner.options.path, stamps)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn stamps_are_kept() {
        let folder = tempfile::tempdir().unwrap();
        assert_eq!(read(folder.path()).unwrap(), Vec::<Stamp>::new());
        for stamps in [vec![7], vec![7, Stamp::MAX]] {
            write(folder.path(), &stamps).unwrap();
            assert_eq!(read(folder.path()).unwrap(), stamps);
        }
        sealed::write(&folder.path().join(FILE), "tidegate-stamps 2\n".to_owned()).unwrap();
        let error = read(folder.path()).unwrap_err();
        assert!(error.to_string().contains("this version knows"), "{error}");
    }
}
