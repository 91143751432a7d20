//! A SQLite file of this process: opened for its owner only, with settings under which a commit survives a power
//! loss, and its errors in words.
//!
//! SQLite has one writer at a time, so the sinks of a process share a connection behind a lock; other processes wait
//! for their turn at the file ([`BUSY_WAIT`]). Write-ahead mode, so that readers never wait, and synchronous=FULL.
//! Does not know tables.

use std::fs;
use std::io;
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use rusqlite::{Connection, ErrorCode, OpenFlags};

use crate::land::sink::SinkError;

/// How long a write waits for another process's.
const BUSY_WAIT: Duration = Duration::from_secs(5);
/// What means something else in a `file:` URI.
const URI: &percent_encoding::AsciiSet = &percent_encoding::CONTROLS.add(b'%').add(b'?').add(b'#');
/// Statements that are kept ready.
const STATEMENTS: usize = 64;

/// A SQLite database of this process. Cheap to clone.
#[derive(Clone)]
pub struct Database {
    path: Arc<PathBuf>,
    /// What to do when it is damaged.
    advice: &'static str,
    connection: Arc<Mutex<Option<Connection>>>,
}

/// Why something failed.
pub(in crate::land) enum Fault {
    Io(PathBuf, io::Error),
    Sqlite(rusqlite::Error),
    Refused(String),
}

impl Fault {
    /// What a file or folder answered.
    pub(in crate::land) fn at(path: &Path) -> impl FnOnce(io::Error) -> Self {
        |error| Self::Io(path.to_owned(), error)
    }
}

impl From<rusqlite::Error> for Fault {
    fn from(error: rusqlite::Error) -> Self {
        Self::Sqlite(error)
    }
}

impl Database {
    /// Names the file; it is opened when it is first needed.
    #[must_use]
    pub fn new(path: &Path) -> Self {
        Self::with_advice(
            path,
            "Move it away: what Kafka still has is landed again into a new file; `sqlite3 FILE .recover` saves what is \
             readable of the old one",
        )
    }

    /// [`Database::new`] with words of what to do when it is damaged.
    pub(in crate::land) fn with_advice(path: &Path, advice: &'static str) -> Self {
        Self {
            path: Arc::new(path.to_owned()),
            advice,
            connection: Arc::default(),
        }
    }

    /// Runs `act` on the connection; after an error it is closed, so that the next call opens it anew.
    pub(in crate::land) fn with<T>(
        &self,
        act: impl FnOnce(&mut Connection) -> Result<T, Fault>,
    ) -> Result<T, SinkError> {
        let mut place = self.connection.lock().unwrap_or_else(PoisonError::into_inner);
        let mut connection = match place.take() {
            Some(connection) => connection,
            None => self.open().map_err(|fault| self.explain(fault))?,
        };
        let result = act(&mut connection);
        if result.is_ok() {
            *place = Some(connection);
        }
        result.map_err(|fault| self.explain(fault))
    }

    /// The last process to close it folds SQLite's own log into the file.
    pub(in crate::land) fn close(&self) {
        self.connection.lock().unwrap_or_else(PoisonError::into_inner).take();
    }

    fn open(&self) -> Result<Connection, Fault> {
        let path = self.path.as_path();
        if let Some(folder) = path.parent().filter(|folder| !folder.as_os_str().is_empty()) {
            make_folder(folder)?;
        }
        // SQLite would make it with the usual permissions; what is landed is for its owner.
        let made = fs::OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .open(path)
            .map_err(Fault::at(path))?;
        drop(made);
        let connection = Connection::open(path)?;
        connection.busy_timeout(BUSY_WAIT)?;
        connection.set_prepared_statement_cache_capacity(STATEMENTS);
        connection.pragma_update(None, "journal_mode", "WAL")?;
        connection.pragma_update(None, "synchronous", "FULL")?;
        Ok(connection)
    }

    /// Whether there is a database, and that it is one. Reads only, and leaves no file of SQLite's own behind.
    pub(in crate::land) fn look(&self) -> Result<bool, SinkError> {
        let path = self.path.as_path();
        match fs::metadata(path) {
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
            Err(error) => return Err(self.explain(Fault::at(path)(error))),
        }
        // SQLite tells a file that it may not open from one that is none in the same words.
        drop(fs::File::open(path).map_err(|error| self.explain(Fault::at(path)(error)))?);
        let mut log = path.as_os_str().to_owned();
        log.push("-wal");
        // Without a log beside it nobody writes, and opened as it is nothing is made beside it.
        let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_URI;
        let escaped = percent_encoding::percent_encode(path.as_os_str().as_encoded_bytes(), URI);
        let immutable = if Path::new(&log).exists() { "" } else { "?immutable=1" };
        let look = || {
            let connection = Connection::open_with_flags(format!("file:{escaped}{immutable}"), flags)?;
            connection.busy_timeout(BUSY_WAIT)?;
            connection.query_row("SELECT count(*) FROM sqlite_master", [], |row| row.get::<_, i64>(0))
        };
        look().map(|_| true).map_err(|error| self.explain(error.into()))
    }

    fn explain(&self, fault: Fault) -> SinkError {
        let path = self.path.display();
        match fault {
            Fault::Refused(why) => SinkError::Refused(format!("SQLite {path}: {why}")),
            Fault::Io(path, error) if is_for_good(&error) => SinkError::Refused(format!(
                "{}: {error}. Make it a place that this user can write, or set land.path to another",
                path.display()
            )),
            Fault::Io(path, error) => SinkError::Away(format!("{}: {error}", path.display())),
            Fault::Sqlite(error) => match error.sqlite_error_code() {
                Some(ErrorCode::NotADatabase) => SinkError::Refused(format!(
                    "{path} is no SQLite database: set land.path to another file, or move this one away"
                )),
                Some(ErrorCode::ReadOnly | ErrorCode::PermissionDenied | ErrorCode::CannotOpen) => {
                    SinkError::Refused(format!(
                        "SQLite {path} cannot be written: {error}. Give this user the right to write the file and its \
                         folder, or set land.path to another"
                    ))
                }
                Some(ErrorCode::DatabaseCorrupt) => {
                    SinkError::Refused(format!("SQLite {path} is damaged: {error}. {}", self.advice))
                }
                _ => SinkError::Away(format!("SQLite {path}: {error}")),
            },
        }
    }
}

/// Makes a folder, and those above it, for its owner only.
pub(in crate::land) fn make_folder(folder: &Path) -> Result<(), Fault> {
    let made = fs::DirBuilder::new().recursive(true).mode(0o700).create(folder);
    made.map_err(Fault::at(folder))
}

fn is_for_good(error: &io::Error) -> bool {
    use io::ErrorKind as Kind;
    matches!(
        error.kind(),
        Kind::PermissionDenied
            | Kind::NotADirectory
            | Kind::IsADirectory
            | Kind::AlreadyExists
            | Kind::ReadOnlyFilesystem
    )
}
