//! Whose folder this is: the lock that makes it one process's, and the identity, made once.
//!
//! ```text
//! identity:  "tidegate-wal 1\n" and the UUID and "\n"; the number is the version of the whole folder's layout
//! lock:      flocked while a process has the folder; holds its pid, for the message to the second one
//! ```

use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{self, Read, Seek, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use super::durable;
use super::error::OpenError;
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
    let id = match fs::read_to_string(&path) {
        Ok(text) => parse(&text).map_err(|fault| OpenError::Format {
            path,
            reason: fault.reason(),
        })?,
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            let has_generations = fs::read_dir(folder)
                .map_err(OpenError::io("read", folder))?
                .filter_map(Result::ok)
                .any(|item| item.file_name().to_string_lossy().starts_with("gen-"));
            if has_generations {
                return Err(OpenError::Format {
                    path,
                    reason: "it is missing although the folder has records; a new identity would make them other \
                             records: restore the file, or salvage the folder"
                        .to_owned(),
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
}

/// See [`Peek`]. For the moment of the look at the lock nobody else can take it.
///
/// # Errors
/// The folder's files cannot be read.
pub fn peek(folder: &Path) -> io::Result<Peek> {
    let there = |result: io::Result<_>| match result {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        result => result.map(Some),
    };
    let text = match fs::read_to_string(folder.join(IDENTITY)) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => None,
        result => Some(result?),
    };
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
    })
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
    let (format, id) = text
        .split_once('\n')
        .ok_or_else(|| Fault::Damaged("it is cut off".to_owned()))?;
    if format != FORMAT {
        let reason = format!("it says {format:?}, and this version knows {FORMAT:?}");
        let is_other = format
            .strip_prefix(FORMAT_NAME)
            .is_some_and(|version| !version.is_empty() && version.bytes().all(|byte| byte.is_ascii_digit()));
        return Err(match is_other {
            true => Fault::Version(reason),
            false => Fault::Damaged(reason),
        });
    }
    id.trim()
        .parse()
        .map_err(|error| Fault::Damaged(format!("its UUID cannot be read: {error}")))
}

/// The file's text.
pub fn text(id: WalId) -> String {
    format!("{FORMAT}\n{id}\n")
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
