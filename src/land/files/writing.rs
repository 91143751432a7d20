//! A file that is being written: locked by its writer, `.jsonl.open` until it is complete, then `.jsonl` at once.
//!
//! A lock goes with its process, however that ends, so a file that can be locked has no writer any more. Only whole
//! transactions count: how much of a file is landed is in `book.rs`, and what is behind that is cut off before the
//! file is completed. Everything here is fsynced before it returns, folders too.

use std::fs::{self, File, OpenOptions, TryLockError};
use std::io;
use std::os::unix::fs::{FileExt as _, MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, SystemTime};

use super::BOOK;
use super::book::Entry;
use crate::land::sqlite::database::Fault;

/// The ending of a complete file.
const ENDING: &str = ".jsonl";
/// What an open one has behind it.
const OPEN: &str = ".open";

/// See the module.
pub(super) struct Writing {
    /// Its place below the source's folder, such as `valid/20261124T080000Z-1a2b3c4d`.
    name: String,
    path: PathBuf,
    file: File,
    bytes: u64,
    since: Instant,
}

/// What became of a file that the book has as open.
pub(super) enum Adopted {
    /// Nobody wrote it any more.
    Mine(Writing),
    /// It has a writer.
    Another,
    /// It is not there.
    Gone,
}

impl Writing {
    /// Makes a new file in `part` of the source's folder. Only under the database's write lock, so that nobody takes it
    /// for one whose writer ended.
    pub(super) fn create(folder: &Path, part: &str) -> Result<Self, Fault> {
        let now = humantime::format_rfc3339_seconds(SystemTime::now()).to_string();
        let name = format!("{part}/{}-{:08x}", now.replace(['-', ':'], ""), fastrand::u32(..));
        let path = open_path(folder, &name);
        let make = || -> io::Result<File> {
            let file = OpenOptions::new()
                .write(true)
                .create_new(true)
                .mode(0o600)
                .open(&path)?;
            file.try_lock()?;
            sync_folder(path.parent().unwrap_or(folder))?;
            Ok(file)
        };
        let file = make().map_err(Fault::at(&path))?;
        Ok(Self {
            name,
            path,
            file,
            bytes: 0,
            since: Instant::now(),
        })
    }

    /// Takes over a file whose writer ended.
    pub(super) fn adopt(folder: &Path, entry: &Entry) -> Result<Adopted, Fault> {
        let path = open_path(folder, &entry.name);
        let file = match OpenOptions::new().write(true).open(&path) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Adopted::Gone),
            Err(error) => return Err(Fault::Io(path, error)),
        };
        match file.try_lock() {
            Ok(()) => Ok(Adopted::Mine(Self {
                name: entry.name.clone(),
                path,
                file,
                bytes: entry.bytes,
                since: Instant::now(),
            })),
            Err(TryLockError::WouldBlock) => Ok(Adopted::Another),
            Err(TryLockError::Error(error)) => Err(Fault::Io(path, error)),
        }
    }

    /// Its path while it is written.
    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Whether its name still leads to it.
    pub(super) fn is_there(&self) -> Result<bool, Fault> {
        let mine = self.file.metadata().map_err(Fault::at(&self.path))?;
        match fs::metadata(&self.path) {
            Ok(named) => Ok((named.dev(), named.ino()) == (mine.dev(), mine.ino())),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
            Err(error) => Err(Fault::Io(self.path.clone(), error)),
        }
    }

    /// Puts lines behind what is landed. They count once [`Writing::landed`] says so.
    pub(super) fn append(&self, lines: &[u8]) -> Result<(), Fault> {
        let written = self.file.write_all_at(lines, self.bytes);
        written
            .and_then(|()| self.file.sync_data())
            .map_err(Fault::at(&self.path))
    }

    /// So many bytes more are landed.
    pub(super) fn landed(&mut self, bytes: u64) {
        self.bytes = self.bytes.saturating_add(bytes);
    }

    /// As the book has it, with so many bytes more.
    pub(super) fn entry(&self, more: u64, complete: bool) -> Entry {
        Entry {
            name: self.name.clone(),
            bytes: self.bytes.saturating_add(more),
            complete,
        }
    }

    pub(super) fn is_due(&self, bytes_max: u64, age_max: Duration) -> bool {
        self.bytes >= bytes_max || self.since.elapsed() >= age_max
    }

    /// Cuts off what was never landed; gives how many landed bytes are missing.
    pub(super) fn cut(&self) -> Result<u64, Fault> {
        let cut = || -> io::Result<u64> {
            let found = self.file.metadata()?.len();
            if found > self.bytes {
                self.file.set_len(self.bytes)?;
                self.file.sync_all()?;
            }
            Ok(self.bytes.saturating_sub(found))
        };
        cut().map_err(Fault::at(&self.path))
    }

    /// Shows the file under its name.
    pub(super) fn show(&self) -> Result<(), Fault> {
        let shown = self.path.with_extension("");
        let folder = self.path.parent().unwrap_or(Path::new(""));
        fs::rename(&self.path, &shown)
            .and_then(|()| sync_folder(folder))
            .map_err(Fault::at(&shown))
    }
}

fn open_path(folder: &Path, name: &str) -> PathBuf {
    folder.join(format!("{name}{ENDING}{OPEN}"))
}

/// The names of the open files in `part` of a source's folder.
pub(super) fn open_names(folder: &Path, part: &str) -> Result<Vec<String>, Fault> {
    let path = folder.join(part);
    let list = || -> io::Result<Vec<String>> {
        let mut names = Vec::new();
        for item in fs::read_dir(&path)? {
            let name = item?.file_name().to_string_lossy().into_owned();
            if let Some(name) = name.strip_suffix(OPEN).and_then(|name| name.strip_suffix(ENDING)) {
                names.push(format!("{part}/{name}"));
            }
        }
        Ok(names)
    };
    list().map_err(Fault::at(&path))
}

/// An open file that the book does not know, and that has no writer: nothing of it was landed, or the book is not the
/// one that it belongs to. An empty one is removed; another one is kept under a name that says so.
pub(super) fn set_aside(folder: &Path, name: &str) -> Result<(), Fault> {
    let entry = Entry {
        name: name.to_owned(),
        bytes: 0,
        complete: false,
    };
    let Adopted::Mine(file) = Writing::adopt(folder, &entry)? else {
        return Ok(());
    };
    let path = &file.path;
    let bytes = file.file.metadata().map_err(Fault::at(path))?.len();
    if bytes == 0 {
        return fs::remove_file(path).map_err(Fault::at(path));
    }
    let aside = path.with_extension("unknown");
    fs::rename(path, &aside).map_err(Fault::at(path))?;
    tracing::warn!(
        "{bytes} bytes that no transaction knows of are kept in {}: a lander was killed before they were landed, and they are \
         landed again; or {BOOK} in the folder is not the one that this file was written with",
        aside.display(),
    );
    Ok(())
}

/// What was made or renamed in it stays so.
pub(super) fn sync_folder(folder: &Path) -> io::Result<()> {
    let here = folder.as_os_str().is_empty();
    File::open(if here { Path::new(".") } else { folder })?.sync_all()
}
