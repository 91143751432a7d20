//! Rows in SQLite: one database file, one connection of this process for all its sinks.
//!
//! Keys and values are TEXT where they are text ([`as_text`]) and BLOB where not, byte for byte: their columns
//! have no type that SQLite would convert to. Does not know Kafka, rules or retries.

pub(super) mod database;
pub(super) mod positions;
mod schema;

use std::collections::HashMap;
use std::time::{Duration, UNIX_EPOCH};

use rusqlite::types::{ToSqlOutput, Value, ValueRef};
use rusqlite::{ErrorCode, ToSql, Transaction, TransactionBehavior, params};

pub use self::database::Database;
use self::database::Fault;
use super::row::{Batch, Field, Rejected, RejectedKind, Row, as_text, clash};
use super::sink::{Counts, Known, Position, Sink, SinkError, Written};
use super::table::{COLUMNS, REJECTED, Table, quoted};

/// One table in it.
pub struct Sqlite {
    database: Database,
    table: Table,
    insert: String,
}

impl Database {
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
}

impl Sink for Sqlite {
    fn prepare(&mut self) -> Result<(), SinkError> {
        let table = &self.table;
        self.database.with(|connection| {
            let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
            positions::make(&transaction)?;
            schema::make_rejected(&transaction)?;
            schema::make_table(&transaction, table)?;
            transaction.commit()?;
            Ok(())
        })
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
        // Rows whose fault ended the whole transaction (RAISE(ROLLBACK) in a trigger): passed over by the next try.
        let mut refused = HashMap::new();
        loop {
            let (table, insert) = (&self.table, &self.insert);
            let tried = self.database.with(|connection| {
                let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
                if !positions::move_all(&transaction, &table.name, batch)? {
                    transaction.rollback()?;
                    return Ok(Tried::Moved);
                }
                let tried = store(&transaction, table, insert, batch, &refused)?;
                if let Tried::Stored(_) = tried {
                    transaction.commit()?;
                }
                Ok(tried)
            })?;
            match tried {
                Tried::Stored(counts) => return Ok(Written::Done(counts)),
                Tried::Moved => return Ok(Written::Moved),
                Tried::Ended(row, why) => refused.insert(row, why),
            };
        }
    }

    fn close(&mut self) -> Result<(), SinkError> {
        self.database.close();
        Ok(())
    }
}

/// What became of a transaction.
enum Tried {
    Stored(Counts),
    Moved,
    /// The row at this place of the batch ended it, with these words.
    Ended(usize, String),
}

fn store(
    transaction: &Transaction<'_>,
    table: &Table,
    insert: &str,
    batch: &Batch,
    refused: &HashMap<usize, String>,
) -> Result<Tried, Fault> {
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
    for (place, row) in batch.rows.iter().enumerate() {
        let refuse = |error: String| Rejected {
            row: row.clone(),
            kind: RejectedKind::Refused,
            error,
        };
        if let Some(why) = refused.get(&place) {
            reject(&refuse(why.clone()))?;
            continue;
        }
        match insert_row(&mut statement, &batch.topic, row) {
            Ok(0) => match is_stored(transaction, table, row)? {
                Some(true) => duplicates += 1,
                Some(false) => reject(&clash(row.clone()))?,
                None => reject(&refuse(
                    "the database passed it over: a trigger on the table ignores such rows".to_owned(),
                ))?,
            },
            Ok(_) if row.valid() => valid += 1,
            Ok(_) => invalid += 1,
            Err(error) if !is_rows_fault(transaction, insert, &error) => return Err(error.into()),
            Err(error) if transaction.is_autocommit() => return Ok(Tried::Ended(place, error.to_string())),
            Err(error) => reject(&refuse(error.to_string()))?,
        }
    }
    counts.valid = valid;
    counts.invalid = invalid;
    counts.duplicates += duplicates;
    Ok(Tried::Stored(counts))
}

/// What somebody's trigger or check says of a row, or SQLite of its size: it will never be another answer.
fn is_rows_fault(transaction: &Transaction<'_>, insert: &str, error: &rusqlite::Error) -> bool {
    match error.sqlite_error_code() {
        Some(ErrorCode::ConstraintViolation | ErrorCode::TooBig | ErrorCode::TypeMismatch) => true,
        // A function in a trigger that cannot take this value; or a trigger that can never run, as then no row can.
        Some(ErrorCode::Unknown) => transaction.prepare(insert).is_ok(),
        _ => false,
    }
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
