//! The tables in PostgreSQL: made, checked, and given columns for fields that were declared since.

use ::postgres::{Client, Transaction};

use super::Fault;
use crate::land::table::{COLUMNS, Kind, META, POSITIONS, REJECTED, SCHEMA_VERSION, Table, quoted};

/// Several landers may start at once: one after the other makes tables. ("tidegate" in ASCII.)
const LOCK: i64 = 0x7469_6465_6761_7465;
/// The types of [`COLUMNS`] as `format_type` has them, in their order.
const TYPES: [&str; 10] = [
    "text",
    "bigint",
    "text",
    "integer",
    "bigint",
    "text",
    "timestamp with time zone",
    "boolean",
    "text",
    "text",
];
/// What a text column cannot hold.
const BYTES: [&str; 2] = ["value_bytes", "key_bytes"];

/// A table, and the list of its columns as statements have it.
pub(super) struct Schema {
    pub(super) table: Table,
    pub(super) columns: String,
}

impl Schema {
    pub(super) fn new(table: Table) -> Self {
        let fixed = COLUMNS.iter().chain(&BYTES).map(|name| (*name).to_owned());
        let declared = table.columns.iter().map(|column| quoted(&column.name));
        let columns: Vec<String> = fixed.chain(declared).collect();
        Self {
            columns: columns.join(", "),
            table,
        }
    }

    /// Makes what is missing, in one transaction.
    pub(super) fn make(&self, client: &mut Client) -> Result<(), Fault> {
        let mut transaction = client.transaction()?;
        transaction.execute("SELECT pg_advisory_xact_lock($1)", &[&LOCK])?;
        transaction.batch_execute("SET LOCAL client_min_messages = warning")?;
        make_own_tables(&mut transaction)?;
        self.make_table(&mut transaction)?;
        transaction.commit()?;
        Ok(())
    }

    fn make_table(&self, transaction: &mut Transaction<'_>) -> Result<(), Fault> {
        let name = &self.table.name;
        let kind = transaction.query_opt(
            "SELECT relkind::text FROM pg_class WHERE oid = to_regclass($1)",
            &[&quoted(name)],
        )?;
        match kind.map(|row| row.try_get::<_, String>(0)).transpose()?.as_deref() {
            None => {
                let fixed = COLUMNS.iter().zip(TYPES).map(|(column, kind)| match *column {
                    "wal" => format!("{column} {kind} COLLATE \"C\" NOT NULL"),
                    "key" | "received_at" | "reason" | "value" => format!("{column} {kind}"),
                    _ => format!("{column} {kind} NOT NULL"),
                });
                let bytes = BYTES.iter().map(|column| format!("{column} bytea"));
                let declared = self.table.columns.iter();
                let declared = declared.map(|column| format!("{} {}", quoted(&column.name), sql(column.kind)));
                let columns: Vec<String> = fixed.chain(bytes).chain(declared).collect();
                transaction.batch_execute(&format!(
                    "CREATE TABLE {} ({}, PRIMARY KEY (wal, seq))",
                    quoted(name),
                    columns.join(", ")
                ))?;
            }
            // A partitioned table will do as well.
            Some("r" | "p") => self.check_table(transaction)?,
            Some(_) => {
                return Err(Fault::Refused(format!(
                    "{name} is there and is no table, but source {name} needs one: rename one of them"
                )));
            }
        }
        for (view, condition) in [
            (self.table.valid_view(), "valid"),
            (self.table.invalid_view(), "NOT valid"),
        ] {
            transaction.batch_execute(&format!(
                "CREATE OR REPLACE VIEW {} AS SELECT * FROM {} WHERE {condition}",
                quoted(&view),
                quoted(name)
            ))?;
        }
        Ok(())
    }

    fn check_table(&self, transaction: &mut Transaction<'_>) -> Result<(), Fault> {
        let name = &self.table.name;
        let rows = transaction.query(
            "SELECT attname::text, format_type(atttypid, NULL) FROM pg_attribute WHERE attrelid = to_regclass($1) AND \
             attnum > 0 AND NOT attisdropped",
            &[&quoted(name)],
        )?;
        let mut found: Vec<(String, String)> = Vec::new();
        for row in rows {
            found.push((row.try_get(0)?, row.try_get(1)?));
        }
        let find = |column: &str| {
            found
                .iter()
                .find(|(name, _)| name == column)
                .map(|(_, kind)| kind.as_str())
        };
        let refuse = |what: &str| {
            Err(Fault::Refused(format!(
                "the table {name} exists and {what}, so it is not one that tidegate made. Nothing was changed: rename that \
                 table, or give the source another name"
            )))
        };
        let fixed = COLUMNS.into_iter().zip(TYPES);
        for (column, kind) in fixed.chain(BYTES.into_iter().map(|column| (column, "bytea"))) {
            match find(column) {
                None => return refuse(&format!("has no column {column}")),
                Some(other) if other != kind => {
                    return refuse(&format!("its column {column} is {other} instead of {kind}"));
                }
                Some(_) => {}
            }
        }
        let key = transaction.query_one(
            "SELECT EXISTS (SELECT 1 FROM pg_index i WHERE indrelid = to_regclass($1) AND indisunique AND indpred IS NULL AND \
             (SELECT array_agg(attname::text ORDER BY attname) FROM pg_attribute WHERE attrelid = indrelid AND attnum = ANY \
             (indkey)) = ARRAY['seq', 'wal'])",
            &[&quoted(name)],
        )?;
        if !key.try_get::<_, bool>(0)? {
            return refuse("has no primary key (wal, seq)");
        }
        for column in &self.table.columns {
            let kind = sql(column.kind);
            match find(&column.name) {
                None => transaction.batch_execute(&format!(
                    "ALTER TABLE {} ADD COLUMN {} {kind}",
                    quoted(name),
                    quoted(&column.name)
                ))?,
                Some(other) if other != kind => {
                    return Err(Fault::Refused(format!(
                        "the column {} of table {name} is {other}; the configuration declares {} ({kind}). Nothing was \
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
}

fn make_own_tables(transaction: &mut Transaction<'_>) -> Result<(), Fault> {
    transaction.batch_execute(&format!(
        "CREATE TABLE IF NOT EXISTS {META} (key text PRIMARY KEY, value bigint NOT NULL);
         CREATE TABLE IF NOT EXISTS {POSITIONS} (
             source text NOT NULL, kafka_cluster text NOT NULL, kafka_topic text NOT NULL, kafka_partition integer NOT NULL,
             epoch bigint NOT NULL, next bigint NOT NULL, topic_id text,
             PRIMARY KEY (source, kafka_cluster, kafka_topic, kafka_partition));
         CREATE TABLE IF NOT EXISTS {REJECTED} (
             at timestamptz NOT NULL DEFAULT now(), source text NOT NULL, kind text NOT NULL, error text NOT NULL,
             wal text NOT NULL, seq bigint NOT NULL, kafka_cluster text NOT NULL, kafka_topic text NOT NULL,
             kafka_partition integer NOT NULL, position_epoch bigint NOT NULL, kafka_offset bigint NOT NULL, key bytea,
             received_at timestamptz, value bytea,
             PRIMARY KEY (source, kafka_cluster, kafka_topic, kafka_partition, position_epoch, kafka_offset));
         INSERT INTO {META} (key, value) VALUES ('schema', {SCHEMA_VERSION}) ON CONFLICT DO NOTHING"
    ))?;
    let version: i64 = transaction
        .query_one(&format!("SELECT value FROM {META} WHERE key = 'schema'"), &[])?
        .try_get(0)?;
    if version > SCHEMA_VERSION {
        return Err(Fault::Refused(format!(
            "its tables were made by a newer tidegate (layout {version}; this one knows {SCHEMA_VERSION}). Nothing was \
             changed: use that tidegate, or name another database in land.url"
        )));
    }
    Ok(())
}

/// The type of a field's column, as `format_type` has it.
fn sql(kind: Kind) -> &'static str {
    match kind {
        Kind::Text => "text",
        Kind::Integer => "bigint",
        Kind::Real => "double precision",
        Kind::Boolean => "boolean",
        Kind::Timestamp => "timestamp with time zone",
        Kind::Json => "jsonb",
    }
}
