//! The tables in PostgreSQL: made where they are missing, checked, and given columns for fields that were declared
//! since. Nothing is asked of a user's rights but what is missing: somebody else may have made all of it.

use std::collections::HashMap;

use tokio_postgres::{Client, Transaction};

use super::connection::begin;
use super::fault::{Fault, words};
use crate::land::table::{COLUMNS, Kind, META, POSITIONS, REJECTED, SCHEMA_VERSION, Table, quoted};

/// Several landers may start at once: one after the other makes tables. ("tidegate" in ASCII.)
const LOCK: i64 = 0x7469_6465_6761_7465;
/// The session's temporary table.
pub(super) const INCOMING: &str = "tidegate_incoming";
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
/// A table beside the sources' own: its columns, their types as `format_type` has them, and what else is asked of them.
struct Own {
    name: &'static str,
    columns: &'static [(&'static str, &'static str, &'static str)],
    key: &'static str,
}
const OWN: [Own; 3] = [
    Own {
        name: META,
        columns: &[("key", "text", "NOT NULL"), ("value", "bigint", "NOT NULL")],
        key: "key",
    },
    Own {
        name: POSITIONS,
        columns: &[
            ("source", "text", "NOT NULL"),
            ("kafka_cluster", "text", "NOT NULL"),
            ("kafka_topic", "text", "NOT NULL"),
            ("kafka_partition", "integer", "NOT NULL"),
            ("epoch", "bigint", "NOT NULL"),
            ("next", "bigint", "NOT NULL"),
            ("topic_id", "text", ""),
        ],
        key: "source, kafka_cluster, kafka_topic, kafka_partition",
    },
    Own {
        name: REJECTED,
        columns: &[
            ("at", "timestamp with time zone", "NOT NULL DEFAULT now()"),
            ("source", "text", "NOT NULL"),
            ("kind", "text", "NOT NULL"),
            ("error", "text", "NOT NULL"),
            ("wal", "text", "NOT NULL"),
            ("seq", "bigint", "NOT NULL"),
            ("kafka_cluster", "text", "NOT NULL"),
            ("kafka_topic", "text", "NOT NULL"),
            ("kafka_partition", "integer", "NOT NULL"),
            ("position_epoch", "bigint", "NOT NULL"),
            ("kafka_offset", "bigint", "NOT NULL"),
            ("key", "bytea", ""),
            ("received_at", "timestamp with time zone", ""),
            ("value", "bytea", ""),
        ],
        key: "source, kafka_cluster, kafka_topic, kafka_partition, position_epoch, kafka_offset",
    },
];

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

    /// Makes what is missing, in one transaction, and the session's temporary table; whether COPY may go straight into the
    /// table.
    pub(super) async fn make(&self, client: &mut Client) -> Result<bool, Fault> {
        check_encoding(client).await?;
        let transaction = begin(client).await?;
        transaction
            .execute("SELECT pg_advisory_xact_lock($1)", &[&LOCK])
            .await?;
        transaction
            .batch_execute("SET LOCAL client_min_messages = warning")
            .await?;
        make_own_tables(&transaction).await?;
        self.make_table(&transaction).await?;
        self.make_views(&transaction).await?;
        transaction.commit().await?;
        self.check_rights(client).await?;
        // Of the columns that are written, without what the table asks of them: that is for the INSERT to find out.
        client
            .batch_execute(&format!(
                "CREATE TEMP TABLE {INCOMING} ON COMMIT DELETE ROWS AS SELECT {} FROM {} WITH NO DATA",
                self.columns,
                quoted(&self.table.name)
            ))
            .await?;
        // COPY is refused there, before it begins, and the client's crate loses its place when that happens.
        let guarded = client
            .query_one(
                "SELECT row_security_active(to_regclass($1)::oid)",
                &[&quoted(&self.table.name)],
            )
            .await?;
        Ok(!guarded.try_get::<_, bool>(0)?)
    }

    async fn make_table(&self, transaction: &Transaction<'_>) -> Result<(), Fault> {
        let name = &self.table.name;
        match kind_of(transaction, name).await?.as_deref() {
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
                let columns = columns.join(", ");
                let statement = format!("CREATE TABLE {} ({columns}, PRIMARY KEY (wal, seq))", quoted(name));
                make(transaction, &format!("the table {name}"), &statement).await
            }
            // A partitioned table will do as well.
            Some("r" | "p") => self.check_table(transaction).await,
            Some(_) => Err(Fault::Refused(format!(
                "{name} is there and is no table, but source {name} needs one: rename one of them"
            ))),
        }
    }

    async fn make_views(&self, transaction: &Transaction<'_>) -> Result<(), Fault> {
        let name = &self.table.name;
        for (view, condition) in [
            (self.table.valid_view(), "valid"),
            (self.table.invalid_view(), "NOT valid"),
        ] {
            match kind_of(transaction, &view).await?.as_deref() {
                Some("v") if !is_behind(transaction, &view, name).await? => {}
                None | Some("v") => {
                    let statement = format!(
                        "CREATE OR REPLACE VIEW {} AS SELECT * FROM {} WHERE {condition}",
                        quoted(&view),
                        quoted(name)
                    );
                    make(transaction, &format!("the view {view}"), &statement).await?;
                }
                Some(_) => {
                    return Err(Fault::Refused(format!(
                        "{view} is there and is no view, but source {name} needs one of that name: rename one of them"
                    )));
                }
            }
        }
        Ok(())
    }

    async fn check_table(&self, transaction: &Transaction<'_>) -> Result<(), Fault> {
        let name = &self.table.name;
        let found = columns_of(transaction, name).await?;
        let refuse = |what: &str| Err(not_ours(name, what, "give the source another name"));
        let fixed = COLUMNS.into_iter().zip(TYPES);
        let fixed = fixed.chain(BYTES.into_iter().map(|column| (column, "bytea")));
        if let Some(what) = differs(&found, fixed) {
            return refuse(&what);
        }
        // What ON CONFLICT (wal, seq) takes for the identity: of these columns, valid, and checked at once.
        let key = transaction
            .query_one(
                "SELECT EXISTS (SELECT 1 FROM pg_index i WHERE indrelid = to_regclass($1) AND indisunique AND indisvalid AND \
                 indimmediate AND indpred IS NULL AND indnkeyatts = 2 AND (SELECT array_agg(attname::text ORDER BY attname) \
                 FROM unnest(indkey::smallint[]) WITH ORDINALITY k (number, place) JOIN pg_attribute ON attrelid = indrelid \
                 AND attnum = number WHERE place <= indnkeyatts) = ARRAY['seq', 'wal'])",
                &[&quoted(name)],
            )
            .await?;
        if !key.try_get::<_, bool>(0)? {
            return refuse("has no primary key (wal, seq)");
        }
        for column in &self.table.columns {
            let kind = sql(column.kind);
            match found.get(&column.name).map(String::as_str) {
                None => {
                    let statement = format!(
                        "ALTER TABLE {} ADD COLUMN {} {kind}",
                        quoted(name),
                        quoted(&column.name)
                    );
                    make(
                        transaction,
                        &format!("the column {} of table {name}", column.name),
                        &statement,
                    )
                    .await?;
                }
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

    /// What landing needs beyond tables that are there, told before the first batch.
    pub(super) async fn check_rights(&self, client: &Client) -> Result<(), Fault> {
        let mut missing: Vec<String> = Vec::new();
        for (name, rights) in [
            (self.table.name.as_str(), vec!["SELECT", "INSERT"]),
            (POSITIONS, vec!["SELECT", "INSERT", "UPDATE"]),
            (REJECTED, vec!["INSERT"]),
        ] {
            let rows = client
                .query(
                    "SELECT p FROM unnest($2::text[]) p WHERE NOT has_any_column_privilege(to_regclass($1)::oid, p)",
                    &[&quoted(name), &rights],
                )
                .await?;
            for row in rows {
                missing.push(format!("{} ON {}", row.try_get::<_, &str>(0)?, quoted(name)));
            }
        }
        let row = client
            .query_one(
                "SELECT current_user::text, current_database()::text, has_database_privilege(current_database(), 'TEMP')",
                &[],
            )
            .await?;
        let (user, database): (&str, &str) = (row.try_get(0)?, row.try_get(1)?);
        if !row.try_get::<_, bool>(2)? {
            missing.push(format!("TEMPORARY ON DATABASE {}", quoted(database)));
        }
        if missing.is_empty() {
            return Ok(());
        }
        let grants: Vec<String> = missing
            .iter()
            .map(|right| format!("GRANT {right} TO {};", quoted(user)))
            .collect();
        Err(Fault::Refused(format!(
            "the user {user} may not do what landing needs. Nothing was changed: let the tables' owner run {}",
            grants.join(" ")
        )))
    }
}

/// Any text that Kafka brings must fit.
pub(super) async fn check_encoding(client: &Client) -> Result<(), Fault> {
    let row = client
        .query_one(
            "SELECT current_setting('server_encoding'), current_database()::text",
            &[],
        )
        .await?;
    let (encoding, database): (&str, &str) = (row.try_get(0)?, row.try_get(1)?);
    if encoding == "UTF8" {
        return Ok(());
    }
    Err(Fault::Refused(format!(
        "the database {database} has the encoding {encoding}, which cannot hold every text; landing needs UTF8. Nothing was \
         changed: make another with createdb -E UTF8 -T template0, and name it in land.url"
    )))
}

async fn make_own_tables(transaction: &Transaction<'_>) -> Result<(), Fault> {
    for Own { name, columns, key } in OWN {
        match kind_of(transaction, name).await?.as_deref() {
            None => {
                let columns: Vec<String> = columns
                    .iter()
                    .map(|(column, kind, more)| format!("{column} {kind} {more}"))
                    .collect();
                let columns = columns.join(", ");
                let statement = format!("CREATE TABLE {name} ({columns}, PRIMARY KEY ({key}))");
                make(transaction, &format!("the table {name}"), &statement).await?;
            }
            // Somebody else's would fail with the first row that is to go there.
            Some("r" | "p") => {
                let found = columns_of(transaction, name).await?;
                if let Some(what) = differs(&found, columns.iter().map(|(column, kind, _)| (*column, *kind))) {
                    return Err(not_ours(name, &what, "name another database in land.url"));
                }
            }
            Some(_) => {
                return Err(Fault::Refused(format!(
                    "{name} is there and is no table, but landing needs one of that name. Nothing was changed: rename it, or \
                     name another database in land.url"
                )));
            }
        }
    }
    let select = format!("SELECT value FROM {META} WHERE key = 'schema'");
    let Some(row) = transaction.query_opt(&select, &[]).await? else {
        let statement = format!("INSERT INTO {META} (key, value) VALUES ('schema', {SCHEMA_VERSION})");
        return make(transaction, &format!("the row of {META}"), &statement).await;
    };
    let version: i64 = row.try_get(0)?;
    if version > SCHEMA_VERSION {
        return Err(Fault::Refused(format!(
            "its tables were made by a newer tidegate (layout {version}; this one knows {SCHEMA_VERSION}). Nothing was \
             changed: use that tidegate, or name another database in land.url"
        )));
    }
    Ok(())
}

/// A table's columns and their types, as `format_type` has them.
async fn columns_of(transaction: &Transaction<'_>, name: &str) -> Result<HashMap<String, String>, Fault> {
    let rows = transaction
        .query(
            "SELECT attname::text, format_type(atttypid, NULL) FROM pg_attribute WHERE attrelid = to_regclass($1) AND attnum \
             > 0 AND NOT attisdropped",
            &[&quoted(name)],
        )
        .await?;
    rows.iter().map(|row| Ok((row.try_get(0)?, row.try_get(1)?))).collect()
}

/// The first of these columns that is missing or of another type, in words.
fn differs<'a>(
    found: &HashMap<String, String>,
    mut columns: impl Iterator<Item = (&'a str, &'a str)>,
) -> Option<String> {
    columns.find_map(|(column, kind)| match found.get(column) {
        None => Some(format!("has no column {column}")),
        Some(other) if other != kind => Some(format!("its column {column} is {other} instead of {kind}")),
        Some(_) => None,
    })
}

fn not_ours(name: &str, what: &str, or: &str) -> Fault {
    Fault::Refused(format!(
        "the table {name} exists and {what}, so it is not one that tidegate made. Nothing was changed: rename that table, or \
         {or}"
    ))
}

/// What is there under this name, as `pg_class.relkind` has it.
async fn kind_of(transaction: &Transaction<'_>, name: &str) -> Result<Option<String>, Fault> {
    let row = transaction
        .query_opt(
            "SELECT relkind::text FROM pg_class WHERE oid = to_regclass($1)",
            &[&quoted(name)],
        )
        .await?;
    Ok(row.map(|row| row.try_get(0)).transpose()?)
}

/// The view lacks a column of its table, and this user may change that.
async fn is_behind(transaction: &Transaction<'_>, view: &str, table: &str) -> Result<bool, Fault> {
    let row = transaction
        .query_one(
            "SELECT pg_has_role(v.relowner, 'USAGE') AND EXISTS (SELECT attname FROM pg_attribute WHERE attrelid = \
             to_regclass($2) AND attnum > 0 AND NOT attisdropped EXCEPT SELECT attname FROM pg_attribute WHERE attrelid = \
             v.oid) FROM pg_class v WHERE v.oid = to_regclass($1)",
            &[&quoted(view), &quoted(table)],
        )
        .await?;
    Ok(row.try_get(0)?)
}

/// Makes something that is missing; who may not is told what.
async fn make(transaction: &Transaction<'_>, what: &str, statement: &str) -> Result<(), Fault> {
    let made = transaction.batch_execute(statement).await;
    made.map_err(|error| match error.code().map(|code| code.code()) {
        Some(code) if code == "42501" || code.starts_with("3F") => Fault::Refused(format!(
            "{what} is missing, and this user may not make it ({}). Nothing was changed: let the owner of the tables land \
             once, or GRANT this user CREATE and USAGE on the schema (a column or a view is added by its table's owner only)",
            words(&error)
        )),
        _ => error.into(),
    })
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
