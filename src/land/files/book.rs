//! What the files sink keeps in SQLite beside its files: who has been landed, and which files are being written.
//!
//! An identity takes about 40 bytes: its sequence, and a digest of key and value that tells a repeat from a clash.
//! Positions are in `sqlite/positions.rs`. Knows the files by their names only.

use std::collections::HashMap;
use std::sync::Arc;

use rusqlite::{OptionalExtension as _, Transaction, params};
use sha2::{Digest as _, Sha256};

use crate::land::row::Row;
use crate::land::sqlite::database::Fault;
use crate::land::sqlite::positions;

/// Bytes of a digest: half of SHA-256's. Two records that differ have the same with a chance of 2^-128.
const DIGEST_BYTES: usize = 16;

/// A file that is being written, or was when its writer ended.
pub(super) struct Entry {
    /// Below the source's folder, without the ending of an open file.
    pub(super) name: String,
    /// How much of it is landed; what is behind it never was.
    pub(super) bytes: u64,
    /// All of it is on disk and nothing more will come: it is being renamed.
    pub(super) complete: bool,
}

/// Makes what is missing.
pub(super) fn make(transaction: &Transaction<'_>) -> Result<(), Fault> {
    positions::make(transaction)?;
    transaction.execute_batch(
        "CREATE TABLE IF NOT EXISTS tidegate_origins (
             id INTEGER PRIMARY KEY, source TEXT NOT NULL, wal TEXT NOT NULL, UNIQUE (source, wal));
         CREATE TABLE IF NOT EXISTS tidegate_identities (
             origin INTEGER NOT NULL, seq INTEGER NOT NULL, digest BLOB NOT NULL, PRIMARY KEY (origin, seq)) WITHOUT ROWID;
         CREATE TABLE IF NOT EXISTS tidegate_files (
             source TEXT NOT NULL, name TEXT NOT NULL, bytes INTEGER NOT NULL, complete INTEGER NOT NULL,
             PRIMARY KEY (source, name)) WITHOUT ROWID;",
    )?;
    Ok(())
}

/// What is known of an identity.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Seen {
    /// Nothing: it is now.
    New,
    /// The same record.
    Same,
    /// Another record.
    Other,
}

/// The identities of one source, within one transaction.
pub(super) struct Identities<'a> {
    transaction: &'a Transaction<'a>,
    source: &'a str,
    origins: HashMap<Arc<str>, i64>,
}

impl<'a> Identities<'a> {
    pub(super) fn of(transaction: &'a Transaction<'a>, source: &'a str) -> Self {
        Self {
            transaction,
            source,
            origins: HashMap::new(),
        }
    }

    /// Takes note of a row's identity.
    pub(super) fn see(&mut self, row: &Row) -> Result<Seen, Fault> {
        let origin = self.origin(&row.wal)?;
        let digest = digest(row);
        let mut insert = self.transaction.prepare_cached(
            "INSERT INTO tidegate_identities (origin, seq, digest) VALUES (?, ?, ?) ON CONFLICT DO NOTHING",
        )?;
        if insert.execute(params![origin, row.seq, digest])? == 1 {
            return Ok(Seen::New);
        }
        let mut select = self
            .transaction
            .prepare_cached("SELECT digest = ? FROM tidegate_identities WHERE origin = ? AND seq = ?")?;
        let same = select.query_row(params![digest, origin, row.seq], |row| row.get(0))?;
        Ok(if same { Seen::Same } else { Seen::Other })
    }

    fn origin(&mut self, wal: &Arc<str>) -> Result<i64, Fault> {
        if let Some(id) = self.origins.get(wal) {
            return Ok(*id);
        }
        let mut insert = self
            .transaction
            .prepare_cached("INSERT INTO tidegate_origins (source, wal) VALUES (?, ?) ON CONFLICT DO NOTHING")?;
        insert.execute(params![self.source, wal.as_ref()])?;
        let mut select = self
            .transaction
            .prepare_cached("SELECT id FROM tidegate_origins WHERE source = ? AND wal = ?")?;
        let id = select.query_row(params![self.source, wal.as_ref()], |row| row.get(0))?;
        self.origins.insert(Arc::clone(wal), id);
        Ok(id)
    }
}

/// Key and value, each told from an absent one and from the other's end.
fn digest(row: &Row) -> Vec<u8> {
    let mut hash = Sha256::new();
    for part in [&row.key, &row.value] {
        match part {
            None => hash.update([0]),
            Some(bytes) => {
                hash.update([1]);
                hash.update((bytes.len() as u64).to_le_bytes());
                hash.update(bytes);
            }
        }
    }
    hash.finalize().into_iter().take(DIGEST_BYTES).collect()
}

/// Every file of a source that is not done with.
pub(super) fn files(transaction: &Transaction<'_>, source: &str) -> Result<Vec<Entry>, Fault> {
    let mut statement = transaction
        .prepare_cached("SELECT name, bytes, complete FROM tidegate_files WHERE source = ? ORDER BY name")?;
    let entries = statement.query_map([source], |row| {
        Ok(Entry {
            name: row.get(0)?,
            bytes: u64::try_from(row.get::<_, i64>(1)?).unwrap_or(0),
            complete: row.get(2)?,
        })
    })?;
    Ok(entries.collect::<Result<_, _>>()?)
}

/// Takes note of how long a file is, and whether it is complete.
pub(super) fn note(transaction: &Transaction<'_>, source: &str, entry: &Entry) -> Result<(), Fault> {
    let mut statement = transaction.prepare_cached(
        "INSERT INTO tidegate_files (source, name, bytes, complete) VALUES (?, ?, ?, ?) ON CONFLICT (source, name) DO UPDATE \
         SET bytes = excluded.bytes, complete = excluded.complete",
    )?;
    let bytes = i64::try_from(entry.bytes).unwrap_or(i64::MAX);
    statement.execute(params![source, entry.name, bytes, entry.complete])?;
    Ok(())
}

/// A file is done with.
pub(super) fn forget(transaction: &Transaction<'_>, source: &str, name: &str) -> Result<(), Fault> {
    transaction.execute(
        "DELETE FROM tidegate_files WHERE source = ? AND name = ?",
        params![source, name],
    )?;
    Ok(())
}

/// Whether a file is known.
pub(super) fn knows(transaction: &Transaction<'_>, source: &str, name: &str) -> Result<bool, Fault> {
    let found = transaction
        .query_row(
            "SELECT 1 FROM tidegate_files WHERE source = ? AND name = ?",
            params![source, name],
            |_| Ok(()),
        )
        .optional()?;
    Ok(found.is_some())
}
