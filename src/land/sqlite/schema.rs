//! The tables in SQLite: made, checked, and given columns for fields that were declared since.

use rusqlite::{OptionalExtension as _, Transaction};

use super::database::Fault;
use crate::land::table::{COLUMNS, Kind, REJECTED, Table, quoted};

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

/// Makes the table of what no table takes.
pub(super) fn make_rejected(transaction: &Transaction<'_>) -> Result<(), Fault> {
    transaction.execute_batch(&format!(
        "CREATE TABLE IF NOT EXISTS {REJECTED} (
             at TEXT NOT NULL, source TEXT NOT NULL, kind TEXT NOT NULL, error TEXT NOT NULL, wal TEXT NOT NULL,
             seq INTEGER NOT NULL, kafka_cluster TEXT NOT NULL, kafka_topic TEXT NOT NULL, kafka_partition INTEGER NOT NULL,
             position_epoch INTEGER NOT NULL, kafka_offset INTEGER NOT NULL, key, received_at TEXT, value,
             PRIMARY KEY (source, kafka_cluster, kafka_topic, kafka_partition, position_epoch, kafka_offset))"
    ))?;
    Ok(())
}

/// Makes the table and its views, or checks what is there and adds columns for new fields.
pub(super) fn make_table(transaction: &Transaction<'_>, table: &Table) -> Result<(), Fault> {
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
