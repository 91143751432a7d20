//! Takes every intact record of a damaged folder into a fresh one that keeps identity and sequences.
//!
//! ```text
//! <target>.salvaging/     written first (the file `unfinished` in it says that it is a salvage's), with the same layout; an interrupted salvage leaves it, the next one begins anew
//! <target>/               the name it gets once everything in it is fsynced
//! ```
//! The source is only read. The new generations are plain files of frames: they are sealed, and what is sealed is never
//! opened by a store. What could not be saved goes to the file `lost` (ranges.rs).
//!
//! Where the witness says nothing, or the log's end is lost, how far it had come is not known: the new one goes on
//! [`GUESSED`] sequences later, so that none is used twice.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use super::archive::{Archive, ArchiveError, Archived, Part, Witnessed};
use super::error::OpenError;
use super::frame::{Framer, Key};
use super::generation::DATA_FILE;
use super::ranges::Range;
use super::recovery::GUESSED;
use super::verify::{self, Lost};
use super::witness::{Marks, Witness};
use super::{durable, generations, identity, keys, ranges, rewind, stamps};
use crate::record::{Sequence, WalId};

/// In the folder that is written, until it is whole.
const UNFINISHED: &str = "unfinished";
/// A new generation is begun at this size.
const GENERATION_BYTES: u64 = 64 << 20;
/// Entries of about so many bytes become one commit.
const COMMIT_BYTES: usize = 1 << 20;

/// Why nothing was salvaged.
#[derive(Debug, thiserror::Error)]
pub enum SalvageError {
    /// Something is there already.
    #[error("{0} is there and not empty: name a folder that does not exist yet; nothing was changed")]
    NotEmpty(PathBuf),
    /// The copy would be in what is copied.
    #[error(
        "{0} lies in the folder that is salvaged, which is only read: name a folder elsewhere, best on another disk"
    )]
    Inside(PathBuf),
    /// Another salvage writes there.
    #[error("another salvage is writing {0}: wait for it, or stop it and start again")]
    Busy(PathBuf),
    /// The source cannot be read.
    #[error(transparent)]
    Source(#[from] ArchiveError),
    /// The target cannot be written.
    #[error("cannot {what} {path}: {source}. Nothing was put in place; start again once that is mended")]
    Target {
        /// What was tried.
        what: &'static str,
        /// On what.
        path: PathBuf,
        /// The system's answer.
        #[source]
        source: io::Error,
    },
}

impl SalvageError {
    fn target(what: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        move |source| Self::Target {
            what,
            path: path.to_path_buf(),
            source,
        }
    }
}

/// What became of one log.
#[derive(Debug, Clone)]
pub struct Salvaged {
    /// Which one.
    pub part: Part,
    /// Records saved.
    pub records: u64,
    /// What could not be saved, in order.
    pub lost: Vec<Lost>,
    /// Sequences of which nobody knows whether they were used: passed over.
    pub unknown: Option<(Sequence, Sequence)>,
    /// Everything up to here is settled.
    pub acked: Sequence,
    /// The sequence that the next record gets.
    pub next: Sequence,
    /// Its folder is gone: nobody knows what was in it.
    pub gone: bool,
    /// What else could not be taken over, and what follows from it.
    pub faults: Vec<String>,
}

/// Copies what can be read of `source` to `target`, as the log `id`. `progress` is told of bytes that were read.
///
/// # Errors
/// [`SalvageError`]; `target` is not there then.
pub fn salvage(
    source: &Archive,
    id: WalId,
    target: &Path,
    progress: &dyn Fn(u64),
) -> Result<Vec<Salvaged>, SalvageError> {
    let work = prepare(source.folder(), target)?;
    let guard = claim(&work, target)?;
    // Another salvage may have ended while this one waited for the lock.
    check_free(target)?;
    clear(&work)?;
    let salvaged = fill(source, id, &work, progress).and_then(|salvaged| {
        fs::rename(&work, target).map_err(SalvageError::target("put in place", target))?;
        let mark = target.join(UNFINISHED);
        fs::remove_file(&mark).map_err(SalvageError::target("remove", &mark))?;
        Ok(salvaged)
    });
    if salvaged.is_err()
        && let Err(error) = fs::remove_dir_all(&work)
    {
        tracing::debug!(%error, "what a failed salvage has written stays until the next one");
    }
    let salvaged = salvaged?;
    durable::sync_parent(target).map_err(SalvageError::target("fsync the parent of", target))?;
    drop(guard);
    Ok(salvaged)
}

/// Writes the whole of the new folder, and fsyncs it.
fn fill(source: &Archive, id: WalId, work: &Path, progress: &dyn Fn(u64)) -> Result<Vec<Salvaged>, SalvageError> {
    let mark = work.join(UNFINISHED);
    write(&mark, "").map_err(SalvageError::target("write", &mark))?;
    let mut salvaged = Vec::new();
    for log in source.logs() {
        salvaged.push(copy(log, &log.part().folder(work), progress)?);
    }
    for gone in source.gone() {
        match salvaged.iter_mut().find(|log| log.part == gone.part) {
            // It was made anew.
            Some(log) => log.gone = true,
            None => salvaged.push(Salvaged {
                part: gone.part,
                records: 0,
                lost: Vec::new(),
                unknown: None,
                acked: 0,
                next: 1,
                gone: true,
                faults: Vec::new(),
            }),
        }
    }
    source.check_unused()?;
    // Without them a gateway with `exactly_once` does not take Kafka's watermark for its own.
    match stamps::read(source.folder()) {
        Ok(kept) if kept.is_empty() => {}
        Ok(kept) => stamps::write(work, &kept).map_err(SalvageError::target("write the stamps in", work))?,
        Err(error) => {
            let fault = format!(
                "the file of the stamps could not be read ({error}): a gateway with delivery = \"exactly_once\" takes Kafka's \
                 watermark of this log for another gateway's and sends nothing. Set idempotent and start it, or replay the folder"
            );
            salvaged
                .iter_mut()
                .take(1)
                .for_each(|main| main.faults.push(fault.clone()));
        }
    }
    let path = work.join(identity::IDENTITY);
    write(&path, &identity::text(id)).map_err(SalvageError::target("write", &path))?;
    durable::sync_folder(work).map_err(SalvageError::target("fsync", work))?;
    Ok(salvaged)
}

/// Nothing may be at the target but an empty folder.
fn check_free(target: &Path) -> Result<(), SalvageError> {
    match fs::read_dir(target) {
        Ok(mut items) => match items.next() {
            Some(_) => Err(SalvageError::NotEmpty(target.to_path_buf())),
            None => Ok(()),
        },
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(SalvageError::target("look into", target)(error)),
    }
}

/// The folder to work in.
fn prepare(source: &Path, target: &Path) -> Result<PathBuf, SalvageError> {
    check_free(target)?;
    let name = target.file_name().unwrap_or_default().to_string_lossy();
    let work = target.with_file_name(format!("{name}.salvaging"));
    let parent = match target.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    let real = |path: &Path| fs::canonicalize(path).map_err(SalvageError::target("find", path));
    // Before anything is made: what is there already says where the rest would be.
    let there = parent.ancestors().find(|path| path.exists()).unwrap_or(Path::new("."));
    let source = real(source)?;
    // Nor may what is cleared before it is written be the source, or hold it.
    let is_around = work.exists() && source.starts_with(real(&work)?);
    if is_around || real(there)?.starts_with(&source) {
        return Err(SalvageError::Inside(target.to_path_buf()));
    }
    fs::create_dir_all(parent).map_err(SalvageError::target("create", parent))?;
    match DirBuilder::new().mode(0o700).create(&work) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
        made => made.map_err(SalvageError::target("create", &work))?,
    }
    Ok(work)
}

/// Keeps a second salvage away while this one writes.
fn claim(work: &Path, target: &Path) -> Result<File, SalvageError> {
    identity::take_lock(work).map_err(|error| match error {
        OpenError::InUse { .. } => SalvageError::Busy(target.to_path_buf()),
        OpenError::Io { what, path, source } => SalvageError::Target { what, path, source },
        other => SalvageError::target("lock", work)(io::Error::other(other.to_string())),
    })
}

/// Removes what an interrupted salvage wrote, and nothing else.
fn clear(work: &Path) -> Result<(), SalvageError> {
    let items = fs::read_dir(work).and_then(|items| items.collect::<io::Result<Vec<_>>>());
    let mut items = items.map_err(SalvageError::target("look into", work))?;
    items.retain(|item| item.file_name() != identity::LOCK);
    if !items.is_empty() && !work.join(UNFINISHED).exists() {
        return Err(SalvageError::NotEmpty(work.to_path_buf()));
    }
    // The mark goes last.
    items.sort_by_key(|item| item.file_name() == UNFINISHED);
    for item in items {
        let removed = match item.file_type() {
            Ok(kind) if kind.is_dir() => fs::remove_dir_all(item.path()),
            _ => fs::remove_file(item.path()),
        };
        removed.map_err(SalvageError::target("remove", &item.path()))?;
    }
    Ok(())
}

fn copy(log: &Archived, folder: &Path, progress: &dyn Fn(u64)) -> Result<Salvaged, SalvageError> {
    if !folder.exists() {
        let made = DirBuilder::new().mode(0o700).create(folder);
        made.map_err(SalvageError::target("create", folder))?;
    }
    let mut sink = Sink::new(folder);
    let mut lost: Vec<Lost> = verify::missing(log);
    let mut records = 0;
    for (entry, end) in log.segments() {
        let mut put = |sequence: Sequence, bytes: &[u8]| sink.put(sequence, bytes);
        let found = verify::read(log, entry, end, &mut put).map_err(|error| match sink.failed {
            true => SalvageError::target("write", folder)(error),
            false => ArchiveError::io("read", &entry.data_path())(error).into(),
        })?;
        records += found.records;
        lost.extend(found.lost);
        progress(entry.disk_bytes);
    }
    sink.end().map_err(SalvageError::target("write", folder))?;
    let told = verify::untold(log, lost);
    let marks = log.watermarks();
    // After a power loss the witness is up to a second old: where the end is damaged it may have been further.
    let is_end_lost = log.is_end_lost() || told.last().is_some_and(|range| range.last == marks.committed);
    let (acked, is_certain) = match log.witnessed() {
        Witnessed::Marks(marks) => (marks.acked, !is_end_lost),
        // Everything that was saved is sent again.
        Witnessed::Missing | Witnessed::Damaged => (marks.trimmed, false),
    };
    // Nothing that may have been used is used again, of a commit that was cut off neither.
    let passed_over = (marks.committed + 1 < marks.next).then(|| (marks.committed + 1, marks.next - 1));
    let guessed = (marks.next, marks.next - 1 + GUESSED);
    let unknown = (log.part() == Part::Main && !is_certain).then_some(guessed);
    let mut faults = Vec::new();
    match rewind::copy_mark(log.folder(), folder) {
        Err(error) if generations::is_damage(&error) => faults.push(format!(
            "the mark of a rewind could not be read ({error}): what it had not sent again yet may be passed over; rewind again"
        )),
        copied => copied.map_err(SalvageError::target("copy the mark of a rewind to", folder))?,
    }
    match (log.keys(), keys::read(log.folder())) {
        (None, _) => {}
        (Some(Ok(_)), Ok(Some(Ok(checkpoint)))) => {
            let copied = keys::copy(folder, &checkpoint);
            copied.map_err(SalvageError::target("copy the idempotency keys to", folder))?;
        }
        (Some(Err(reason)), _) => faults.push(no_keys(reason)),
        (_, Err(error)) => faults.push(no_keys(&error)),
        (_, Ok(_)) => faults.push(no_keys(&"it changed")),
    }
    let committed = unknown.map_or(marks.next - 1, |(_, last)| last);
    let told_now = told.iter().map(|range| (range.first, range.last));
    let gone: Vec<Range> = log.lost().iter().copied().chain(told_now).collect();
    let void: Vec<Range> = log.void().iter().copied().chain(passed_over).chain(unknown).collect();
    for (name, ranges) in [(ranges::LOST, gone), (ranges::VOID, void)] {
        if !ranges.is_empty() {
            let path = folder.join(name);
            ranges::write(&path, &ranges::joined(ranges)).map_err(SalvageError::target("write", &path))?;
        }
    }
    let (mut witness, _) = Witness::open(folder).map_err(SalvageError::target("write the witness in", folder))?;
    witness
        .write(Marks { committed, acked })
        .and_then(|()| witness.sync())
        .and_then(|()| durable::sync_folder(folder))
        .map_err(SalvageError::target("write the witness in", folder))?;
    Ok(Salvaged {
        part: log.part(),
        records,
        lost: told,
        unknown,
        acked,
        next: committed + 1,
        gone: false,
        faults,
    })
}

fn no_keys(why: &dyn std::fmt::Display) -> String {
    format!(
        "the file of idempotency keys could not be read ({why}): requests that were taken before may be stored again when their \
         clients repeat them"
    )
}

fn write(path: &Path, text: &str) -> io::Result<()> {
    let mut file = create(path)?;
    file.write_all(text.as_bytes())?;
    file.sync_all()
}

fn create(path: &Path) -> io::Result<File> {
    OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)
}

/// Writes entries as generations of frames.
struct Sink<'a> {
    folder: &'a Path,
    batch: Vec<u8>,
    ends: Vec<usize>,
    /// The sequence of the batch's first entry.
    first: Sequence,
    open: Option<Open>,
    /// An error came from here.
    failed: bool,
}

struct Open {
    file: File,
    folder: PathBuf,
    framer: Framer,
    bytes: u64,
}

impl<'a> Sink<'a> {
    fn new(folder: &'a Path) -> Self {
        Self {
            folder,
            batch: Vec::with_capacity(COMMIT_BYTES),
            ends: Vec::new(),
            first: 0,
            open: None,
            failed: false,
        }
    }

    fn put(&mut self, sequence: Sequence, bytes: &[u8]) -> io::Result<()> {
        let follows = self.first + self.ends.len() as u64 == sequence;
        if !self.ends.is_empty() && (!follows || self.batch.len() >= COMMIT_BYTES) {
            self.commit()?;
        }
        if self.ends.is_empty() {
            self.first = sequence;
        }
        self.batch.extend_from_slice(bytes);
        self.ends.push(self.batch.len());
        Ok(())
    }

    fn commit(&mut self) -> io::Result<()> {
        let written = self.write();
        self.failed |= written.is_err();
        self.batch.clear();
        self.ends.clear();
        written
    }

    fn write(&mut self) -> io::Result<()> {
        if self.ends.is_empty() {
            return Ok(());
        }
        if self.open.as_ref().is_some_and(|open| open.bytes >= GENERATION_BYTES) {
            self.seal()?;
        }
        let open = match &mut self.open {
            Some(open) => open,
            None => self.open.insert(Open::begin(self.folder, self.first)?),
        };
        let starts = std::iter::once(0).chain(self.ends.iter().copied());
        let entries = starts
            .zip(&self.ends)
            .map(|(start, end)| self.batch.get(start..*end).unwrap_or_default());
        open.framer.frame(self.first, entries, |frame| {
            open.bytes += frame.bytes.len() as u64;
            open.file.write_all(&frame.bytes)
        })
    }

    fn seal(&mut self) -> io::Result<()> {
        if let Some(open) = self.open.take() {
            open.file.sync_all()?;
            durable::sync_folder(&open.folder)?;
        }
        Ok(())
    }

    fn end(&mut self) -> io::Result<()> {
        self.commit()?;
        self.seal()
    }
}

impl Open {
    fn begin(folder: &Path, first: Sequence) -> io::Result<Self> {
        let mut key: Key = [0; 8];
        getrandom::fill(&mut key).map_err(|error| io::Error::other(error.to_string()))?;
        let folder = folder.join(generations::name(first, key));
        DirBuilder::new().mode(0o700).create(&folder)?;
        Ok(Self {
            file: create(&folder.join(DATA_FILE))?,
            folder,
            framer: Framer::new(key, true),
            bytes: 0,
        })
    }
}
