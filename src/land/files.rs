//! Rows as JSON lines in files, with the positions and who has been landed in a SQLite database beside them.
//!
//! ```text
//! <land.path>/tidegate.db                                             positions, identities, open files
//! <land.path>/<source>/valid/20261124T080000Z-1a2b3c4d.jsonl          complete: on disk, never touched again
//! <land.path>/<source>/valid/20261124T080500Z-5e6f7a8b.jsonl.open     being written
//! <land.path>/<source>/invalid/...  <land.path>/<source>/rejected/...
//! ```
//!
//! The database's transaction is what makes a batch count. Its lines are appended and fsynced first; the transaction
//! then moves the positions, keeps the identities and says how long each file is. What stands in a file behind that
//! length was never landed, and is cut off before the file is completed. A file is completed at a size, at an age, at
//! the end of its lander, and, when that was killed, by the next one that prepares the source. One transaction marks
//! it, then it is renamed, then another forgets it: a file that somebody fetched at once is not missed.
//!
//! Several processes may share the folder: SQLite's write lock puts their batches in a row, and each has files of its
//! own. Does not know Kafka, rules or retries.

mod book;
mod line;
mod writing;

use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rusqlite::TransactionBehavior::Immediate;

use self::book::{Entry, Identities, Seen};
use self::writing::{Adopted, Writing};
use super::row::{Batch, RejectedKind, clash};
use super::sink::{Counts, Known, Position, Sink, SinkError, Written};
use super::sqlite::database::{Database, Fault, make_folder};
use super::sqlite::positions;
use super::table::Table;
use crate::metrics as names;

/// The database in the folder.
const BOOK: &str = "tidegate.db";
/// The parts of a source's folder; [`Files::open`] has a file for each.
const PARTS: [&str; 3] = ["valid", "invalid", "rejected"];

/// What to do when the database is damaged.
const ADVICE: &str = "Move the whole folder away: what Kafka still has is landed again into a new one, all of it, so do not \
                      take the files of both";

/// When a file is complete.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rotation {
    /// It has this many bytes, or more by one transaction.
    pub file_bytes_max: u64,
    /// Its first record is this old.
    pub file_age_max: Duration,
}

/// A folder that is landed into. Cheap to clone.
#[derive(Clone)]
pub struct Folder {
    path: PathBuf,
    database: Database,
    rotation: Rotation,
}

/// One source in it.
pub struct Files {
    database: Database,
    folder: PathBuf,
    table: Table,
    rotation: Rotation,
    open: [Option<Writing>; PARTS.len()],
}

impl Folder {
    /// Whether it has been landed into, and can be again as far as its database goes. Reads only.
    pub(super) fn look(&self) -> Result<bool, SinkError> {
        self.database.look()
    }

    /// Names the folder; it is made by the first [`Sink::prepare`].
    #[must_use]
    pub fn new(path: &Path, rotation: Rotation) -> Self {
        Self {
            path: path.to_owned(),
            database: Database::with_advice(&path.join(BOOK), ADVICE),
            rotation,
        }
    }

    /// The sink for a source.
    #[must_use]
    pub fn sink(&self, table: Table) -> Files {
        Files {
            database: self.database.clone(),
            folder: self.path.join(&table.name),
            table,
            rotation: self.rotation,
            open: [None, None, None],
        }
    }
}

impl Files {
    /// Completes the files whose writer ended, and sets aside those that nobody knows.
    fn adopt(&mut self) -> Result<(), SinkError> {
        let (folder, source) = (&self.folder, &self.table.name);
        let adopted = self.database.with(|connection| {
            let transaction = connection.transaction_with_behavior(Immediate)?;
            let mut adopted = Vec::new();
            for entry in book::files(&transaction, source)? {
                match Writing::adopt(folder, &entry)? {
                    Adopted::Mine(file) => {
                        cut(&file)?;
                        book::note(&transaction, source, &file.entry(0, true))?;
                        adopted.push(file);
                    }
                    Adopted::Another => {}
                    Adopted::Gone => {
                        if !entry.complete {
                            tell_gone(folder, &entry);
                        }
                        book::forget(&transaction, source, &entry.name)?;
                    }
                }
            }
            for part in PARTS {
                for name in writing::open_names(folder, part)? {
                    if !book::knows(&transaction, source, &name)? {
                        writing::set_aside(folder, &name)?;
                    }
                }
            }
            transaction.commit()?;
            Ok(adopted)
        })?;
        self.show(&adopted)
    }

    /// Completes the open files that are due.
    fn complete(&mut self, is_due: impl Fn(&Writing) -> bool) -> Result<(), SinkError> {
        let due: Vec<Writing> = (self.open.iter_mut())
            .filter_map(|place| place.take_if(|file| is_due(file)))
            .collect();
        if due.is_empty() {
            return Ok(());
        }
        let (folder, source) = (&self.folder, &self.table.name);
        let there = self.database.with(|connection| {
            let transaction = connection.transaction_with_behavior(Immediate)?;
            let mut there = Vec::new();
            for file in due {
                let entry = file.entry(0, true);
                if file.is_there()? {
                    cut(&file)?;
                    book::note(&transaction, source, &entry)?;
                    there.push(file);
                } else {
                    tell_gone(folder, &entry);
                    book::forget(&transaction, source, &entry.name)?;
                }
            }
            transaction.commit()?;
            Ok(there)
        })?;
        self.show(&there)
    }

    /// Shows files that are marked as complete.
    fn show(&self, files: &[Writing]) -> Result<(), SinkError> {
        if files.is_empty() {
            return Ok(());
        }
        let source = &self.table.name;
        self.database.with(|connection| {
            for file in files {
                file.show()?;
            }
            let transaction = connection.transaction_with_behavior(Immediate)?;
            for file in files {
                book::forget(&transaction, source, &file.entry(0, true).name)?;
            }
            transaction.commit()?;
            Ok(())
        })
    }

    fn try_write(&mut self, batch: &Batch) -> Result<Written, SinkError> {
        let (folder, table, open) = (&self.folder, &self.table, &mut self.open);
        let source = &table.name;
        let mut lines: [Vec<u8>; PARTS.len()] = Default::default();
        let written = self.database.with(|connection| {
            let transaction = connection.transaction_with_behavior(Immediate)?;
            if !positions::move_all(&transaction, source, batch)? {
                transaction.rollback()?;
                return Ok(Written::Moved);
            }
            let counts = sort(Identities::of(&transaction, source), table, batch, &mut lines)?;
            for (part, (lines, place)) in PARTS.iter().zip(lines.iter().zip(open.iter_mut())) {
                if lines.is_empty() {
                    continue;
                }
                let file = match place {
                    Some(file) => file,
                    None => place.insert(Writing::create(folder, part)?),
                };
                file.append(lines)?;
                book::note(&transaction, source, &file.entry(lines.len() as u64, false))?;
            }
            transaction.commit()?;
            Ok(Written::Done(counts))
        })?;
        if let Written::Done(_) = written {
            for (lines, file) in lines.iter().zip(open.iter_mut()) {
                if let Some(file) = file {
                    file.landed(lines.len() as u64);
                }
            }
        }
        Ok(written)
    }
}

/// Somebody took what was being written.
fn tell_gone(folder: &Path, entry: &Entry) {
    metrics::counter!(names::LAND_ERRORS_TOTAL, "reason" => "file_damaged").increment(1);
    tracing::error!(
        "the file {}/{}.jsonl.open is gone: its {} bytes of landed records are lost, unless somebody moved it. Files that end \
         in .open belong to the lander",
        folder.display(),
        entry.name,
        entry.bytes
    );
}

/// Cuts off what was never landed; what is landed and is not there is told.
fn cut(file: &Writing) -> Result<(), Fault> {
    let missing = file.cut()?;
    if missing > 0 {
        metrics::counter!(names::LAND_ERRORS_TOTAL, "reason" => "file_damaged").increment(1);
        tracing::error!(
            "the file {} lacks {missing} bytes of landed records: somebody changed it, or the disk lost them",
            file.path().display()
        );
    }
    Ok(())
}

/// A batch as lines for each part; its identities are taken note of.
fn sort(
    mut identities: Identities<'_>,
    table: &Table,
    batch: &Batch,
    lines: &mut [Vec<u8>; PARTS.len()],
) -> Result<Counts, Fault> {
    let now_ms = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let now_ms = i64::try_from(now_ms.as_millis()).unwrap_or(i64::MAX);
    let [valid, invalid, rejected] = lines;
    let mut counts = Counts {
        duplicates: batch.duplicates,
        ..Counts::default()
    };
    let mut reject = |counts: &mut Counts, row: &super::row::Rejected| {
        match row.kind {
            RejectedKind::IdentityClash => counts.clashes += 1,
            RejectedKind::Refused => counts.refused += 1,
        }
        line::rejected(rejected, batch, row, now_ms);
    };
    for row in &batch.rejected {
        reject(&mut counts, row);
    }
    for row in &batch.rows {
        match identities.see(row)? {
            Seen::Same => counts.duplicates += 1,
            Seen::Other => reject(&mut counts, &clash(row.clone())),
            Seen::New if row.valid() => {
                counts.valid += 1;
                line::row(valid, table, &batch.topic, row);
            }
            Seen::New => {
                counts.invalid += 1;
                line::row(invalid, table, &batch.topic, row);
            }
        }
    }
    Ok(counts)
}

impl Sink for Files {
    fn prepare(&mut self) -> Result<(), SinkError> {
        // After an error nothing is known of them: they are taken over as anybody's.
        self.open = [None, None, None];
        let folder = &self.folder;
        self.database.with(|connection| {
            for part in PARTS {
                make_folder(&folder.join(part))?;
            }
            for made in folder.ancestors().take(3) {
                writing::sync_folder(made).map_err(Fault::at(made))?;
            }
            let transaction = connection.transaction_with_behavior(Immediate)?;
            book::make(&transaction)?;
            transaction.commit()?;
            Ok(())
        })?;
        self.adopt()
    }

    fn positions(&mut self, topic: &str) -> Result<Vec<Known>, SinkError> {
        let source = &self.table.name;
        self.database
            .with(|connection| positions::read(connection, source, topic))
    }

    fn set_position(&mut self, topic: &str, to: &Known, from: Option<&Position>) -> Result<bool, SinkError> {
        let source = &self.table.name;
        self.database
            .with(|connection| positions::set(connection, source, topic, to, from))
    }

    fn write(&mut self, batch: &Batch) -> Result<Written, SinkError> {
        // Before the batch, so that it cannot fail when that is stored.
        self.tick()?;
        self.try_write(batch)
    }

    fn tick(&mut self) -> Result<(), SinkError> {
        let Rotation {
            file_bytes_max,
            file_age_max,
        } = self.rotation;
        self.complete(|file| file.is_due(file_bytes_max, file_age_max))
    }

    fn close(&mut self) -> Result<(), SinkError> {
        let completed = self.complete(|_| true);
        self.database.close();
        completed
    }
}
