//! Small text files of a log's folder with a checksum: whole, or as they were.
//!
//! ```text
//! lines; then "crc32c " and the checksum of those lines as 8 hexadecimal digits, "\n"
//! ```
//!
//! Knows nothing of what the lines say.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;

use super::durable;

/// What the last line begins with.
const SUM: &str = "crc32c ";
/// Bytes of a file that is read: more ranges than a log of 64 GiB has frames are no list.
const BYTES_MAX: u64 = 256 << 20;

/// The lines with their checksum.
#[must_use]
pub fn seal(lines: String) -> String {
    let sum = crc32c::crc32c(lines.as_bytes());
    lines + &format!("{SUM}{sum:08x}\n")
}

/// The lines, if they are what was sealed.
#[must_use]
pub fn lines(text: &str) -> Option<&str> {
    let lines = text.rfind(SUM).and_then(|at| text.get(..at))?;
    (seal(lines.to_owned()) == text).then_some(lines)
}

/// The lines of the file; `None` where there is none.
///
/// # Errors
/// The system's, or `InvalidData`: it is not what was written.
pub fn read(path: &Path) -> io::Result<Option<String>> {
    let mut file = match File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error),
    };
    if file.metadata()?.len() > BYTES_MAX {
        return Err(damaged(path, "it is too long to be one of ours"));
    }
    let mut text = String::new();
    file.read_to_string(&mut text)?;
    match lines(&text) {
        Some(lines) => Ok(Some(lines.to_owned())),
        None => Err(damaged(path, "its checksum does not hold")),
    }
}

/// Why a file's lines say nothing.
#[must_use]
pub fn damaged(path: &Path, why: &str) -> io::Error {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    io::Error::new(io::ErrorKind::InvalidData, format!("{name}: {why}"))
}

/// Puts the lines in the file, durably: all of them, or the file stays as it was.
///
/// # Errors
/// The system's.
pub fn write(path: &Path, lines: String) -> io::Result<()> {
    let temporary = path.with_extension("new");
    let mut file = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(&temporary)?;
    file.write_all(seal(lines).as_bytes())?;
    file.sync_all()?;
    fs::rename(&temporary, path)?;
    path.parent().map_or(Ok(()), durable::sync_folder)
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::indexing_slicing)]
mod tests {
    use super::*;

    #[test]
    fn every_change_of_a_file_is_noticed() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("list");
        assert_eq!(read(&path).unwrap(), None);
        write(&path, "one\ntwo\n".to_owned()).unwrap();
        assert_eq!(read(&path).unwrap().as_deref(), Some("one\ntwo\n"));
        let whole = fs::read(&path).unwrap();
        for at in 0..whole.len() {
            let mut flipped = whole.clone();
            flipped[at] ^= 4;
            for bytes in [&flipped[..], &whole[..at]] {
                fs::write(&path, bytes).unwrap();
                assert_eq!(read(&path).unwrap_err().kind(), io::ErrorKind::InvalidData);
            }
        }
    }
}
