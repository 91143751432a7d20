//! Rows in SQLite: one database file, one connection of this process for all its sinks.
//!
//! SQLite has one writer at a time, so the sinks of a process share a connection behind a lock; other processes wait
//! for their turn at the file ([`BUSY_WAIT`]). Write-ahead mode, so that readers never wait, and synchronous=FULL, so
//! that what was committed survives a power loss.
//!
//! Keys and values are TEXT where they are text ([`as_text`]) and BLOB where not, byte for byte: their columns
//! have no type that SQLite would convert to. Does not know Kafka, rules or retries.

use std::fs;
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, UNIX_EPOCH};

use rusqlite::types::{ToSqlOutput, Value, ValueRef};
use rusqlite::{Connection, ErrorCode, OptionalExtension as _, ToSql, Transaction, TransactionBehavior, params};

use super::row::{Batch, Field, Move, Rejected, RejectedKind, Row, as_text, clash};
use super::sink::{Counts, Known, Position, Sink, SinkError, Written};
use super::table::{COLUMNS, Kind, META, POSITIONS, REJECTED, SCHEMA_VERSION, Table, quoted};

/// How long a write waits for another process's.
const BUSY_WAIT: Duration = Duration::from_secs(5);
/// The types of [`COLUMNS`], in their order; `key` and `value` have none.
const TYPES: [&str; 10] = [
    "TEXT NOT NULL",
    "INTEGER NOT NULL",
    "TEXT NOT NULL",
    "INTEGER NOT NULL",
    "INTEGER NOT NULL",
    "",
    "TEXT",
    "INTEGER NOT NULL",
    "TEXT",
    "",
];
/// Statements that are kept ready.
const STATEMENTS: usize = 64;

/// A SQLite database of this process. Cheap to clone.
#[derive(Clone)]
pub struct Database {
    path: Arc<PathBuf>,
    connection: Arc<Mutex<Option<Connection>>>,
}

/// One table in it.
pub struct Sqlite {
    database: Database,
    table: Table,
    insert: String,
}

impl Database {
    /// Names the file; it is opened by the first [`Sink::prepare`].
    #[must_use]
    pub fn new(path: &Path) -> Self {
        Self {
            path: Arc::new(path.to_owned()),
            connection: Arc::default(),
        }
    }

    /// The sink for a table.
    #[must_use]
    pub fn sink(&self, table: Table) -> Sqlite {
        let names = COLUMNS.iter().map(|name| (*name).to_owned());
        let names: Vec<String> = names
            .chain(table.columns.iter().map(|column| quoted(&column.name)))
            .collect();
        let insert = format!(
            "INSERT INTO {} ({}) VALUES ({}) ON CONFLICT (wal, seq) DO NOTHING",
            quoted(&table.name),
            names.join(", "),
            vec!["?"; names.len()].join(", ")
        );
        Sqlite {
            database: self.clone(),
            table,
            insert,
        }
    }

    /// Runs `act` on the connection; after an error it is closed, so that the next prepare opens it anew.
    fn with<T>(&self, act: impl FnOnce(&mut Connection) -> Result<T, Fault>) -> Result<T, SinkError> {
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

    fn open(&self) -> Result<Connection, Fault> {
        if let Some(folder) = self.path.parent().filter(|folder| !folder.as_os_str().is_empty()) {
            fs::DirBuilder::new().recursive(true).mode(0o700).create(folder)?;
        }
        // SQLite would make it with the usual permissions; what is landed is for its owner.
        let made = fs::OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .open(self.path.as_path())?;
        drop(made);
        let connection = Connection::open(self.path.as_path())?;
        connection.busy_timeout(BUSY_WAIT)?;
        connection.set_prepared_statement_cache_capacity(STATEMENTS);
        connection.pragma_update(None, "journal_mode", "WAL")?;
        connection.pragma_update(None, "synchronous", "FULL")?;
        Ok(connection)
    }

    fn explain(&self, fault: Fault) -> SinkError {
        let path = self.path.display();
        match fault {
            Fault::Refused(why) => SinkError::Refused(format!("SQLite {path}: {why}")),
            Fault::Io(error) if is_for_good(&error) => SinkError::Refused(format!(
                "SQLite {path}: {error}. Make it a file that this user can write, in a folder that this user can write, \
                 or set land.path to another"
            )),
            Fault::Io(error) => SinkError::Away(format!("SQLite {path}: {error}")),
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
                Some(ErrorCode::DatabaseCorrupt) => SinkError::Refused(format!(
                    "SQLite {path} is damaged: {error}. Move it away: what Kafka still has is landed again into a new file; \
                     `sqlite3 {path} .recover` saves what is readable of the old one"
                )),
                _ => SinkError::Away(format!("SQLite {path}: {error}")),
            },
        }
    }
}

fn is_for_good(error: &std::io::Error) -> bool {
    use std::io::ErrorKind as Kind;
    matches!(
        error.kind(),
        Kind::PermissionDenied
            | Kind::NotADirectory
            | Kind::IsADirectory
            | Kind::AlreadyExists
            | Kind::ReadOnlyFilesystem
    )
}

/// Why something failed.
enum Fault {
    Io(std::io::Error),
    Sqlite(rusqlite::Error),
    Refused(String),
}

impl From<std::io::Error> for Fault {
    fn from(error: std::io::Error) -> Self {
        Self::Io(error)
    }
}

impl From<rusqlite::Error> for Fault {
    fn from(error: rusqlite::Error) -> Self {
        Self::Sqlite(error)
    }
}

impl Sink for Sqlite {
    fn prepare(&mut self) -> Result<(), SinkError> {
        let table = &self.table;
        self.database.with(|connection| {
            let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
            make_own_tables(&transaction)?;
            make_table(&transaction, table)?;
            transaction.commit()?;
            Ok(())
        })
    }

    fn positions(&mut self, topic: &str) -> Result<Vec<Known>, SinkError> {
        let source = &self.table.name;
        self.database.with(|connection| {
            let mut statement = connection.prepare_cached(&format!(
                "SELECT kafka_cluster, kafka_partition, epoch, next, topic_id FROM {POSITIONS} WHERE source = ? AND \
                 kafka_topic = ?"
            ))?;
            let known = statement.query_map(params![source, topic], |row| {
                Ok(Known {
                    cluster: row.get(0)?,
                    partition: row.get(1)?,
                    position: Position {
                        epoch: row.get(2)?,
                        next: row.get(3)?,
                        topic_id: row.get(4)?,
                    },
                })
            })?;
            Ok(known.collect::<Result<_, _>>()?)
        })
    }

    fn set_position(&mut self, topic: &str, to: &Known, from: Option<&Position>) -> Result<bool, SinkError> {
        let source = &self.table.name;
        let new = &to.position;
        self.database.with(|connection| {
            let changed = match from {
                None => connection.execute(
                    &format!(
                        "INSERT INTO {POSITIONS} (source, kafka_cluster, kafka_topic, kafka_partition, epoch, next, topic_id) \
                         VALUES (?, ?, ?, ?, ?, ?, ?) ON CONFLICT DO NOTHING"
                    ),
                    params![source, to.cluster, topic, to.partition, new.epoch, new.next, new.topic_id],
                )?,
                Some(from) => connection.execute(
                    &format!(
                        "UPDATE {POSITIONS} SET epoch = ?, next = ?, topic_id = ? WHERE source = ? AND kafka_cluster = ? AND \
                         kafka_topic = ? AND kafka_partition = ? AND epoch = ? AND next = ? AND topic_id IS ?"
                    ),
                    params![
                        new.epoch,
                        new.next,
                        new.topic_id,
                        source,
                        to.cluster,
                        topic,
                        to.partition,
                        from.epoch,
                        from.next,
                        from.topic_id
                    ],
                )?,
            };
            Ok(changed == 1)
        })
    }

    fn write(&mut self, batch: &Batch) -> Result<Written, SinkError> {
        let (table, insert) = (&self.table, &self.insert);
        self.database.with(|connection| {
            let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
            for place in &batch.moves {
                if !move_position(&transaction, table, batch, place)? {
                    transaction.rollback()?;
                    return Ok(Written::Moved);
                }
            }
            let counts = store(&transaction, table, insert, batch)?;
            transaction.commit()?;
            Ok(Written::Done(counts))
        })
    }

    fn close(&mut self) -> Result<(), SinkError> {
        // The last one to go folds SQLite's own log into the file.
        self.database
            .connection
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take();
        Ok(())
    }
}

fn move_position(transaction: &Transaction<'_>, table: &Table, batch: &Batch, place: &Move) -> Result<bool, Fault> {
    let mut statement = transaction.prepare_cached(&format!(
        "UPDATE {POSITIONS} SET next = ? WHERE source = ? AND kafka_cluster = ? AND kafka_topic = ? AND kafka_partition = ? \
         AND epoch = ? AND next = ?"
    ))?;
    let changed = statement.execute(params![
        place.to,
        table.name,
        batch.cluster,
        batch.topic,
        place.partition,
        place.epoch,
        place.from
    ])?;
    Ok(changed == 1)
}

fn store(transaction: &Transaction<'_>, table: &Table, insert: &str, batch: &Batch) -> Result<Counts, Fault> {
    let mut counts = Counts {
        duplicates: batch.duplicates,
        ..Counts::default()
    };
    let mut statement = transaction.prepare_cached(insert)?;
    let mut reject = |rejected: &Rejected| -> Result<(), Fault> {
        match rejected.kind {
            RejectedKind::IdentityClash => counts.clashes += 1,
            RejectedKind::Refused => counts.refused += 1,
        }
        keep_rejected(transaction, table, batch, rejected)
    };
    for rejected in &batch.rejected {
        reject(rejected)?;
    }
    let (mut valid, mut invalid, mut duplicates) = (0, 0, 0);
    for row in &batch.rows {
        match insert_row(&mut statement, &batch.topic, row) {
            Ok(0) => match is_stored(transaction, table, row)? {
                Some(true) => duplicates += 1,
                Some(false) => reject(&clash(row.clone()))?,
                None => reject(&Rejected {
                    row: row.clone(),
                    kind: RejectedKind::Refused,
                    error: "the database passed it over: a trigger on the table ignores such rows".to_owned(),
                })?,
            },
            Ok(_) if row.valid() => valid += 1,
            Ok(_) => invalid += 1,
            Err(error) if is_rows_fault(&error) && !transaction.is_autocommit() => reject(&Rejected {
                row: row.clone(),
                kind: RejectedKind::Refused,
                error: error.to_string(),
            })?,
            Err(error) => return Err(error.into()),
        }
    }
    counts.valid = valid;
    counts.invalid = invalid;
    counts.duplicates += duplicates;
    Ok(counts)
}

/// What somebody's trigger or check says of a row, or SQLite of its size: it will never be another answer.
fn is_rows_fault(error: &rusqlite::Error) -> bool {
    matches!(
        error.sqlite_error_code(),
        Some(ErrorCode::ConstraintViolation | ErrorCode::TooBig | ErrorCode::TypeMismatch)
    )
}

fn insert_row(statement: &mut rusqlite::CachedStatement<'_>, topic: &str, row: &Row) -> rusqlite::Result<usize> {
    let received = row.received_ms.map(time);
    let fixed: [&dyn ToSql; 10] = [
        &row.wal.as_ref(),
        &row.seq,
        &topic,
        &row.partition,
        &row.offset,
        &Bytes(row.key.as_deref()),
        &received,
        &row.valid(),
        &row.reason,
        &Bytes(row.value.as_deref()),
    ];
    let mut place = 0;
    for value in fixed {
        place += 1;
        statement.raw_bind_parameter(place, value)?;
    }
    for field in &row.fields {
        place += 1;
        statement.raw_bind_parameter(place, FieldSql(field))?;
    }
    statement.raw_execute()
}

/// RFC 3339, UTC, milliseconds: what SQLite's date functions read.
fn time(ms: i64) -> String {
    let time = UNIX_EPOCH + Duration::from_millis(u64::try_from(ms).unwrap_or(0));
    humantime::format_rfc3339_millis(time).to_string()
}

/// Text where it is text.
struct Bytes<'a>(Option<&'a [u8]>);

impl ToSql for Bytes<'_> {
    fn to_sql(&self) -> rusqlite::Result<ToSqlOutput<'_>> {
        Ok(ToSqlOutput::Borrowed(match self.0 {
            None => ValueRef::Null,
            Some(bytes) if as_text(bytes).is_some() => ValueRef::Text(bytes),
            Some(bytes) => ValueRef::Blob(bytes),
        }))
    }
}

struct FieldSql<'a>(&'a Field);

impl ToSql for FieldSql<'_> {
    fn to_sql(&self) -> rusqlite::Result<ToSqlOutput<'_>> {
        Ok(match self.0 {
            Field::Null => ToSqlOutput::Owned(Value::Null),
            Field::Text(text) | Field::Timestamp(text) | Field::Json(text) => {
                ToSqlOutput::Borrowed(ValueRef::Text(text.as_bytes()))
            }
            Field::Integer(number) => ToSqlOutput::Owned(Value::Integer(*number)),
            Field::Real(number) => ToSqlOutput::Owned(Value::Real(*number)),
            Field::Boolean(yes) => ToSqlOutput::Owned(Value::Integer((*yes).into())),
        })
    }
}

/// Whether the row of this identity has this key and value; `None`: there is no such row.
fn is_stored(transaction: &Transaction<'_>, table: &Table, row: &Row) -> Result<Option<bool>, Fault> {
    let mut statement = transaction.prepare_cached(&format!(
        "SELECT key, value FROM {} WHERE wal = ? AND seq = ?",
        quoted(&table.name)
    ))?;
    let mut rows = statement.query(params![row.wal.as_ref(), row.seq])?;
    let Some(stored) = rows.next()? else { return Ok(None) };
    let bytes = |value: ValueRef<'_>| match value {
        ValueRef::Text(bytes) | ValueRef::Blob(bytes) => Some(bytes.to_vec()),
        _ => None,
    };
    Ok(Some(
        bytes(stored.get_ref(0)?) == row.key && bytes(stored.get_ref(1)?) == row.value,
    ))
}

fn keep_rejected(
    transaction: &Transaction<'_>,
    table: &Table,
    batch: &Batch,
    rejected: &Rejected,
) -> Result<(), Fault> {
    let row = &rejected.row;
    let epoch = batch.moves.iter().find(|place| place.partition == row.partition);
    let mut statement = transaction.prepare_cached(&format!(
        "INSERT INTO {REJECTED} (at, source, kind, error, wal, seq, kafka_cluster, kafka_topic, kafka_partition, \
         position_epoch, kafka_offset, key, received_at, value) \
         VALUES (strftime('%Y-%m-%dT%H:%M:%fZ', 'now'), ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT DO NOTHING"
    ))?;
    statement.execute(params![
        table.name,
        rejected.kind.as_str(),
        rejected.error,
        row.wal.as_ref(),
        row.seq,
        batch.cluster,
        batch.topic,
        row.partition,
        epoch.map_or(0, |place| place.epoch),
        row.offset,
        Bytes(row.key.as_deref()),
        row.received_ms.map(time),
        Bytes(row.value.as_deref()),
    ])?;
    Ok(())
}

fn make_own_tables(transaction: &Transaction<'_>) -> Result<(), Fault> {
    transaction.execute_batch(&format!(
        "CREATE TABLE IF NOT EXISTS {META} (key TEXT PRIMARY KEY, value) WITHOUT ROWID;
         CREATE TABLE IF NOT EXISTS {POSITIONS} (
             source TEXT NOT NULL, kafka_cluster TEXT NOT NULL, kafka_topic TEXT NOT NULL, kafka_partition INTEGER NOT NULL,
             epoch INTEGER NOT NULL, next INTEGER NOT NULL, topic_id TEXT,
             PRIMARY KEY (source, kafka_cluster, kafka_topic, kafka_partition)) WITHOUT ROWID;
         CREATE TABLE IF NOT EXISTS {REJECTED} (
             at TEXT NOT NULL, source TEXT NOT NULL, kind TEXT NOT NULL, error TEXT NOT NULL, wal TEXT NOT NULL,
             seq INTEGER NOT NULL, kafka_cluster TEXT NOT NULL, kafka_topic TEXT NOT NULL, kafka_partition INTEGER NOT NULL,
             position_epoch INTEGER NOT NULL, kafka_offset INTEGER NOT NULL, key, received_at TEXT, value,
             PRIMARY KEY (source, kafka_cluster, kafka_topic, kafka_partition, position_epoch, kafka_offset));
         INSERT INTO {META} (key, value) VALUES ('schema', {SCHEMA_VERSION}) ON CONFLICT DO NOTHING;"
    ))?;
    let version: i64 = transaction.query_row(&format!("SELECT value FROM {META} WHERE key = 'schema'"), [], |row| {
        row.get(0)
    })?;
    if version > SCHEMA_VERSION {
        return Err(Fault::Refused(format!(
            "its tables were made by a newer tidegate (layout {version}; this one knows {SCHEMA_VERSION}). Nothing was \
             changed: use that tidegate, or set land.path to another file"
        )));
    }
    Ok(())
}

/// Makes the table and its views, or checks what is there and adds columns for new fields.
fn make_table(transaction: &Transaction<'_>, table: &Table) -> Result<(), Fault> {
    let name = &table.name;
    let object: Option<String> = transaction
        .query_row(
            "SELECT type FROM sqlite_master WHERE name = ? COLLATE NOCASE AND type IN ('table', 'view')",
            [name],
            |row| row.get(0),
        )
        .optional()?;
    match object.as_deref() {
        None => {
            let fixed = COLUMNS
                .iter()
                .zip(TYPES)
                .map(|(column, kind)| format!("{column} {kind}"));
            let declared =
                (table.columns.iter()).map(|column| format!("{} {}", quoted(&column.name), sql(column.kind)));
            let columns: Vec<String> = fixed.chain(declared).collect();
            transaction.execute_batch(&format!(
                "CREATE TABLE {} ({}, PRIMARY KEY (wal, seq))",
                quoted(name),
                columns.join(", ")
            ))?;
        }
        Some("table") => check_table(transaction, table)?,
        Some(other) => {
            return Err(Fault::Refused(format!(
                "{name} is a {other}, where source {name} needs a table: rename one of them"
            )));
        }
    }
    for (view, valid) in [(table.valid_view(), 1), (table.invalid_view(), 0)] {
        transaction.execute_batch(&format!(
            "CREATE VIEW IF NOT EXISTS {} AS SELECT * FROM {} WHERE valid = {valid}",
            quoted(&view),
            quoted(name)
        ))?;
    }
    Ok(())
}

fn check_table(transaction: &Transaction<'_>, table: &Table) -> Result<(), Fault> {
    let name = &table.name;
    let mut found: Vec<(String, String, i64)> = Vec::new();
    let mut statement = transaction.prepare("SELECT name, type, pk FROM pragma_table_info(?)")?;
    let mut rows = statement.query([name])?;
    while let Some(row) = rows.next()? {
        found.push((row.get(0)?, row.get(1)?, row.get(2)?));
    }
    let refuse = |what: &str| {
        Err(Fault::Refused(format!(
            "the table {name} exists and {what}, so it is not one that tidegate made. Nothing was changed: rename that \
             table, or give the source another name"
        )))
    };
    let find = |column: &str| found.iter().find(|(name, _, _)| name.eq_ignore_ascii_case(column));
    for (column, kind) in COLUMNS.iter().zip(TYPES) {
        let kind = kind.trim_end_matches(" NOT NULL");
        match find(column) {
            None => return refuse(&format!("has no column {column}")),
            Some((_, other, _)) if !other.eq_ignore_ascii_case(kind) => {
                return refuse(&format!("its column {column} is {other:?} instead of {kind:?}"));
            }
            Some(_) => {}
        }
    }
    let mut key: Vec<(i64, &str)> = found
        .iter()
        .filter(|(_, _, place)| *place > 0)
        .map(|(name, _, place)| (*place, name.as_str()))
        .collect();
    key.sort_unstable();
    if key != [(1, "wal"), (2, "seq")] {
        return refuse("its primary key is not (wal, seq)");
    }
    for column in &table.columns {
        let kind = sql(column.kind);
        match find(&column.name) {
            None => transaction.execute_batch(&format!(
                "ALTER TABLE {} ADD COLUMN {} {kind}",
                quoted(name),
                quoted(&column.name)
            ))?,
            Some((_, other, _)) if !other.eq_ignore_ascii_case(kind) => {
                return Err(Fault::Refused(format!(
                    "the column {} of table {name} is {other:?}; the configuration declares {} ({kind:?}). Nothing was \
                     changed: correct types of source {name}, or rename the column",
                    column.name,
                    column.kind.as_str()
                )));
            }
            Some(_) => {}
        }
    }
    Ok(())
}

/// The declared type of a field's column. Affinities keep what is bound: texts go to text-like columns only.
fn sql(kind: Kind) -> &'static str {
    match kind {
        Kind::Text => "TEXT",
        Kind::Integer => "INTEGER",
        Kind::Real => "REAL",
        Kind::Boolean => "BOOLEAN",
        // "TEXT" in the name gives them its affinity, or SQLite would make numbers of some.
        Kind::Timestamp => "TIMESTAMP_TEXT",
        Kind::Json => "JSON_TEXT",
    }
}
