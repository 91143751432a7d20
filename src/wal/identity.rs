//! Whose folder this is: the lock that makes it one process's, and the identity, made once.
//!
//! ```text
//! identity:  "tidegate-wal 1\n", the UUID and "\n"; the number is the version of the whole folder's layout. Then
//!            "crc32c ", the checksum of these two lines as 8 hexadecimal digits, "\n"; early ones lack this line
//! lock:      flocked while a process has the folder; holds its pid, for the message to the second one
//! ```

use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{self, Read, Seek, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use super::error::OpenError;
use super::{durable, sealed, witness};
use crate::record::WalId;

/// The file with the identity.
pub const IDENTITY: &str = "identity";
/// The file that a running process has locked.
pub const LOCK: &str = "lock";
const FORMAT: &str = "tidegate-wal 1";
const FORMAT_NAME: &str = "tidegate-wal ";
/// Looking at a folder holds its lock for a moment: a start does not fail for that.
const LOCK_PATIENCE: Duration = Duration::from_millis(500);

/// Makes the folder if it is not there, locks it, and reads or makes its identity. The lock lasts as long as
/// the file is open.
pub fn claim(folder: &Path) -> Result<(File, WalId), OpenError> {
    fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(folder)
        .map_err(OpenError::io("create the WAL folder", folder))?;
    let lock = take_lock(folder)?;
    let path = folder.join(IDENTITY);
    let id = match fs::read(&path) {
        Ok(bytes) => {
            let id = parse(&String::from_utf8_lossy(&bytes)).map_err(|fault| OpenError::Format {
                path,
                reason: fault.reason(),
            })?;
            match is_bare(folder).map_err(OpenError::io("read", folder))? {
                false => id,
                // A first start that a crash ended, or somebody removed everything else: nobody knows which sequences
                // were used under this identity, and a record with a used one would be taken for a repeat.
                true => {
                    let new = make(folder).map_err(OpenError::io("create the identity in", folder))?;
                    tracing::warn!(
                        "{} has an identity and no log: it gets a new one, {new} instead of {id}, so that no new record \
                         is taken for one of before",
                        folder.display()
                    );
                    new
                }
            }
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            if has_generations(folder).map_err(OpenError::io("read", folder))? {
                return Err(OpenError::Format {
                    path,
                    reason: format!(
                        "it is missing although the folder has records; a new identity would make them other records: restore \
                         the file, or make a whole log of the folder with `tidegate wal salvage --wal {} --identity UUID --to \
                         NEW` (the UUID is in Kafka, in the header tidegate-wal of any record of this gateway, and in its \
                         log lines)",
                        folder.display()
                    ),
                });
            }
            make(folder).map_err(OpenError::io("create the identity in", folder))?
        }
        Err(source) => {
            return Err(OpenError::Io {
                what: "read",
                path,
                source,
            });
        }
    };
    Ok((lock, id))
}

/// Locks a folder for this process.
pub fn take_lock(folder: &Path) -> Result<File, OpenError> {
    let path = folder.join(LOCK);
    let mut file = OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .open(&path)
        .map_err(OpenError::io("open", &path))?;
    let deadline = Instant::now() + LOCK_PATIENCE;
    let taken = loop {
        match file.try_lock() {
            Err(TryLockError::WouldBlock) if Instant::now() < deadline => thread::sleep(LOCK_PATIENCE / 20),
            taken => break taken,
        }
    };
    match taken {
        Ok(()) => {}
        Err(TryLockError::WouldBlock) => {
            let mut pid = String::new();
            // The number is for the message only; without it the message is still true.
            if file.read_to_string(&mut pid).is_err() || pid.trim().is_empty() {
                pid = "(unknown)".to_owned();
            }
            return Err(OpenError::InUse {
                path: folder.to_path_buf(),
                pid: pid.trim().to_owned(),
            });
        }
        Err(TryLockError::Error(source)) => {
            return Err(OpenError::Io {
                what: "lock",
                path,
                source,
            });
        }
    }
    let written = file
        .set_len(0)
        .and_then(|()| file.rewind())
        .and_then(|()| writeln!(file, "{}", std::process::id()));
    written.map_err(OpenError::io("write", &path))?;
    Ok(file)
}

/// Whose folder this is, as far as can be seen without making, changing or opening anything of it for writing.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Peek {
    /// The identity; `None`: it has none yet. The error is for people.
    pub identity: Option<Result<String, String>>,
    /// The pid, as told, of the process that has the folder.
    pub user: Option<String>,
    /// Whether there are records, as far as names tell.
    pub has_generations: bool,
}

/// See [`Peek`]. For the moment of the look at the lock nobody else can take it.
///
/// # Errors
/// The folder's files cannot be read.
pub fn peek(folder: &Path) -> io::Result<Peek> {
    let text = there(fs::read(folder.join(IDENTITY)))?;
    let text = text.map(|bytes| String::from_utf8_lossy(&bytes).into_owned());
    let mut user = None;
    if let Some(mut lock) = there(File::open(folder.join(LOCK)))? {
        match lock.try_lock_shared() {
            Ok(()) => lock.unlock()?,
            Err(TryLockError::WouldBlock) => {
                let mut pid = String::new();
                lock.read_to_string(&mut pid)?;
                user = Some(pid.trim().to_owned());
            }
            Err(TryLockError::Error(error)) => return Err(error),
        }
    }
    Ok(Peek {
        identity: text.map(|text| parse(&text).map(|id| id.to_string()).map_err(Fault::reason)),
        user,
        has_generations: has_generations(folder)?,
    })
}

/// `None` where there is no such file.
fn there<T>(result: io::Result<T>) -> io::Result<Option<T>> {
    match result {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        result => result.map(Some),
    }
}

/// Whether nothing tells which sequences were used: neither a generation nor a witness. Held records and dead letters may
/// be there: they carry the identity that they had.
fn is_bare(folder: &Path) -> io::Result<bool> {
    if has_generations(folder)? {
        return Ok(false);
    }
    match File::open(folder.join(witness::FILE)) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(true),
        file => Ok(witness::read(&file?)?.is_none()),
    }
}

fn has_generations(folder: &Path) -> io::Result<bool> {
    for item in fs::read_dir(folder)? {
        if item?.file_name().to_string_lossy().starts_with("gen-") {
            return Ok(true);
        }
    }
    Ok(false)
}

/// Why an identity file says nothing.
#[derive(Debug, PartialEq, Eq)]
pub enum Fault {
    /// Another version wrote it.
    Version(String),
    /// It is not what was written.
    Damaged(String),
}

impl Fault {
    fn reason(self) -> String {
        match self {
            Self::Version(reason) | Self::Damaged(reason) => reason,
        }
    }
}

/// The identity in the file's text.
pub fn parse(text: &str) -> Result<WalId, Fault> {
    let (format, rest) = text
        .split_once('\n')
        .ok_or_else(|| Fault::Damaged("it is cut off".to_owned()))?;
    let (id, sum) = rest.split_once('\n').unwrap_or((rest, ""));
    let parsed: Result<WalId, Fault> = id
        .trim()
        .parse()
        .map_err(|error| Fault::Damaged(format!("its UUID cannot be read: {error}")));
    let is_whole = |id: &WalId| self::text(*id) == text;
    if format != FORMAT {
        let reason = format!("it says {format:?}, and this version knows {FORMAT:?}");
        let is_other = format
            .strip_prefix(FORMAT_NAME)
            .is_some_and(|version| !version.is_empty() && version.bytes().all(|byte| byte.is_ascii_digit()))
            // The checksum of a version 1: a flipped bit, and no later version.
            && parsed.as_ref().map_or(true, |id| !self::text(*id).ends_with(sum) || sum.is_empty());
        return Err(match is_other {
            true => Fault::Version(reason),
            false => Fault::Damaged(reason),
        });
    }
    match parsed {
        Ok(id) if !sum.is_empty() && !is_whole(&id) => Err(Fault::Damaged("its checksum does not hold".to_owned())),
        parsed => parsed,
    }
}

/// The file's text.
pub fn text(id: WalId) -> String {
    sealed::seal(format!("{FORMAT}\n{id}\n"))
}

fn make(folder: &Path) -> io::Result<WalId> {
    let id = WalId::new_random();
    let temporary = folder.join("identity.new");
    let mut file = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(&temporary)?;
    file.write_all(text(id).as_bytes())?;
    file.sync_all()?;
    fs::rename(&temporary, folder.join(IDENTITY))?;
    durable::sync_folder(folder)?;
    Ok(id)
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::indexing_slicing)]
mod tests {
    use super::*;

    #[test]
    fn every_flipped_bit_of_an_identity_is_damage() {
        let id = WalId::new_random();
        let whole = text(id).into_bytes();
        assert_eq!(parse(&text(id)), Ok(id));
        for at in 0..whole.len() {
            for bit in 0..8 {
                let mut flipped = whole.clone();
                flipped[at] ^= 1 << bit;
                let parsed = parse(&String::from_utf8_lossy(&flipped));
                assert!(
                    matches!(parsed, Err(Fault::Damaged(_))),
                    "byte {at}, bit {bit}: {parsed:?}"
                );
            }
        }
    }

    #[test]
    fn an_early_identity_is_read_and_a_later_version_is_named() {
        let id = WalId::new_random();
        assert_eq!(parse(&format!("{FORMAT}\n{id}\n")), Ok(id));
        for text in [
            format!("tidegate-wal 2\n{id}\n"),
            "tidegate-wal 12\nanything\nelse\n".to_owned(),
        ] {
            assert!(matches!(parse(&text), Err(Fault::Version(_))), "{text}");
        }
    }
}
