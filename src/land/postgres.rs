//! Rows in PostgreSQL: one connection for each sink, COPY into a temporary table, then into the real one.
//!
//! The rows' identities are the primary key, so what is there already is passed over by ON CONFLICT; the temporary
//! table is there because COPY itself cannot pass over anything. Keys and values that a text column cannot hold
//! ([`as_text`]) go to `key_bytes` and `value_bytes`. Does not know Kafka, rules or retries.

mod copy;
mod schema;
mod tls;

use std::time::{Duration, UNIX_EPOCH};

use ::postgres::error::SqlState;
use ::postgres::types::ToSql;
use ::postgres::{Client, Config, Transaction};

use self::schema::Schema;
use super::row::{Batch, Rejected, RejectedKind, Row, clash};
use super::sink::{Counts, Known, Position, Sink, SinkError, Written};
use super::table::{POSITIONS, REJECTED, Table, quoted};

/// Limits of a connection that the URL does not set itself.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
const TCP_TIMEOUT: Duration = Duration::from_secs(30);
/// The longest statement and the longest wait for somebody else's lock: below the time after which Kafka takes the
/// partitions of a member that does not poll.
const SESSION: &str = "SET statement_timeout = '2min'; SET lock_timeout = '30s'; SET TIME ZONE 'UTC'";
/// Session's temporary table.
const INCOMING: &str = "tidegate_incoming";

/// A table in a PostgreSQL database.
pub struct Postgres {
    config: Config,
    tls: postgres_openssl::MakeTlsConnector,
    /// `user@host:port/database`.
    name: String,
    schema: Schema,
    connection: Option<Client>,
}

/// Why something failed.
enum Fault {
    Postgres(::postgres::Error),
    Refused(String),
}

impl From<::postgres::Error> for Fault {
    fn from(error: ::postgres::Error) -> Self {
        Self::Postgres(error)
    }
}

impl Postgres {
    /// Reads the URL; nothing is connected before [`Sink::prepare`].
    ///
    /// # Errors
    /// [`SinkError::Refused`]: the URL, or a certificate that it names, cannot be used.
    pub fn new(url: &str, table: Table) -> Result<Self, SinkError> {
        let (mut config, tls) = tls::read(url).map_err(SinkError::Refused)?;
        if config.get_connect_timeout().is_none() {
            config.connect_timeout(CONNECT_TIMEOUT);
        }
        if config.get_tcp_user_timeout().is_none() {
            config.tcp_user_timeout(TCP_TIMEOUT);
        }
        if config.get_application_name().is_none() {
            config.application_name("tidegate");
        }
        Ok(Self {
            name: tls::name(&config),
            config,
            tls,
            schema: Schema::new(table),
            connection: None,
        })
    }

    /// `user@host:port/database`, for messages.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Runs `act` on the connection; after an error it is closed, so that the next prepare opens another.
    fn with<T>(&mut self, act: impl FnOnce(&mut Client, &Schema) -> Result<T, Fault>) -> Result<T, SinkError> {
        let result = match self.connection.take() {
            Some(mut connection) => {
                let result = act(&mut connection, &self.schema);
                if result.is_ok() {
                    self.connection = Some(connection);
                }
                result
            }
            None => Err(Fault::Refused("not connected".to_owned())),
        };
        result.map_err(|fault| self.explain(fault))
    }

    fn explain(&self, fault: Fault) -> SinkError {
        let name = &self.name;
        let error = match fault {
            Fault::Refused(why) => return SinkError::Refused(format!("PostgreSQL {name}: {why}")),
            Fault::Postgres(error) => error,
        };
        let text = words(&error);
        let advice = match error.code().map(SqlState::code) {
            Some(code) if code.starts_with("28") => {
                "correct user and password in land.url, or pg_hba.conf on the server"
            }
            Some("3D000") => "make the database (createdb), or name another in land.url",
            Some("42501") => "give this user the right (GRANT CREATE, USAGE ON SCHEMA, and on the tables)",
            Some("25006") => "this server takes no writes: name the primary in land.url",
            Some(code) if code.starts_with("42") || code.starts_with("0A") => {
                "what is in the database is not what the lander made: rename it, or give the source another name"
            }
            Some(_) => return SinkError::Away(format!("PostgreSQL {name}: {text}")),
            None if text.contains("certificate") || text.contains("TLS") => {
                "correct sslmode and sslrootcert in land.url, or the server's certificate"
            }
            None => return SinkError::Away(format!("PostgreSQL {name}: {text}")),
        };
        SinkError::Refused(format!("PostgreSQL {name}: {text}. Nothing was changed: {advice}"))
    }
}

/// What the server or the system says, without the crate's own wrapping.
fn words(error: &::postgres::Error) -> String {
    if let Some(said) = error.as_db_error() {
        let detail = said.detail().map_or_else(String::new, |detail| format!(" ({detail})"));
        return format!("{}{detail}", said.message());
    }
    let mut text = error.to_string();
    let mut cause = std::error::Error::source(error);
    while let Some(error) = cause {
        let more = error.to_string();
        if !text.contains(&more) {
            text = format!("{text}: {more}");
        }
        cause = error.source();
    }
    text
}

/// The row will never be taken: its data, a check or a trigger of somebody's, a limit of the server.
fn is_rows_fault(error: &::postgres::Error) -> bool {
    let code = error.code().map_or("", SqlState::code);
    ["22", "23", "54", "P0"].iter().any(|class| code.starts_with(class))
}

impl Sink for Postgres {
    fn prepare(&mut self) -> Result<(), SinkError> {
        let connected = self.config.connect(self.tls.clone()).map_err(Fault::from);
        let mut client = connected.map_err(|fault| self.explain(fault))?;
        let schema = &self.schema;
        let mut prepare = || -> Result<(), Fault> {
            client.batch_execute(SESSION)?;
            schema.make(&mut client)?;
            client.batch_execute(&format!(
                "CREATE TEMP TABLE {INCOMING} (LIKE {}) ON COMMIT DELETE ROWS",
                quoted(&schema.table.name)
            ))?;
            Ok(())
        };
        prepare().map_err(|fault| self.explain(fault))?;
        self.connection = Some(client);
        Ok(())
    }

    fn positions(&mut self, topic: &str) -> Result<Vec<Known>, SinkError> {
        self.with(|client, schema| {
            let rows = client.query(
                &format!(
                    "SELECT kafka_cluster, kafka_partition, epoch, next, topic_id FROM {POSITIONS} WHERE source = $1 AND \
                     kafka_topic = $2"
                ),
                &[&schema.table.name, &topic],
            )?;
            rows.iter()
                .map(|row| {
                    Ok(Known {
                        cluster: row.try_get(0)?,
                        partition: row.try_get(1)?,
                        position: Position {
                            epoch: row.try_get(2)?,
                            next: row.try_get(3)?,
                            topic_id: row.try_get(4)?,
                        },
                    })
                })
                .collect()
        })
    }

    fn set_position(&mut self, topic: &str, to: &Known, from: Option<&Position>) -> Result<bool, SinkError> {
        let new = &to.position;
        self.with(|client, schema| {
            let source = &schema.table.name;
            let changed = match from {
                None => client.execute(
                    &format!(
                        "INSERT INTO {POSITIONS} (source, kafka_cluster, kafka_topic, kafka_partition, epoch, next, topic_id) \
                         VALUES ($1, $2, $3, $4, $5, $6, $7) ON CONFLICT DO NOTHING"
                    ),
                    &[source, &to.cluster, &topic, &to.partition, &new.epoch, &new.next, &new.topic_id],
                )?,
                Some(from) => client.execute(
                    &format!(
                        "UPDATE {POSITIONS} SET epoch = $1, next = $2, topic_id = $3 WHERE source = $4 AND kafka_cluster = $5 \
                         AND kafka_topic = $6 AND kafka_partition = $7 AND epoch = $8 AND next = $9 AND topic_id IS NOT \
                         DISTINCT FROM $10"
                    ),
                    &[
                        &new.epoch,
                        &new.next,
                        &new.topic_id,
                        source,
                        &to.cluster,
                        &topic,
                        &to.partition,
                        &from.epoch,
                        &from.next,
                        &from.topic_id,
                    ],
                )?,
            };
            Ok(changed == 1)
        })
    }

    fn write(&mut self, batch: &Batch) -> Result<Written, SinkError> {
        self.with(|client, schema| {
            let mut transaction = client.transaction()?;
            for place in &batch.moves {
                let changed = transaction.execute(
                    &format!(
                        "UPDATE {POSITIONS} SET next = $1 WHERE source = $2 AND kafka_cluster = $3 AND kafka_topic = $4 AND \
                         kafka_partition = $5 AND epoch = $6 AND next = $7"
                    ),
                    &[
                        &place.to,
                        &schema.table.name,
                        &batch.cluster,
                        &batch.topic,
                        &place.partition,
                        &place.epoch,
                        &place.from,
                    ],
                )?;
                if changed != 1 {
                    transaction.rollback()?;
                    return Ok(Written::Moved);
                }
            }
            let mut counts = Counts {
                duplicates: batch.duplicates,
                ..Counts::default()
            };
            for rejected in &batch.rejected {
                keep_rejected(&mut transaction, schema, batch, rejected, &mut counts)?;
            }
            store(&mut transaction, schema, batch, &batch.rows, &mut counts)?;
            transaction.commit()?;
            Ok(Written::Done(counts))
        })
    }

    fn close(&mut self) -> Result<(), SinkError> {
        self.connection = None;
        Ok(())
    }
}

/// Stores rows; when the database refuses some of them for good, each half alone, down to the row that it is.
fn store(
    transaction: &mut Transaction<'_>,
    schema: &Schema,
    batch: &Batch,
    rows: &[Row],
    counts: &mut Counts,
) -> Result<(), Fault> {
    if rows.is_empty() {
        return Ok(());
    }
    let before = *counts;
    let mut attempt = transaction.transaction()?;
    let error = match store_all(&mut attempt, schema, batch, rows, counts) {
        Ok(()) => {
            attempt.commit()?;
            return Ok(());
        }
        Err(Fault::Postgres(error)) if is_rows_fault(&error) => error,
        Err(fault) => return Err(fault),
    };
    attempt.rollback()?;
    *counts = before;
    if let [row] = rows {
        let rejected = Rejected {
            row: row.clone(),
            kind: RejectedKind::Refused,
            error: words(&error),
        };
        return keep_rejected(transaction, schema, batch, &rejected, counts);
    }
    let (first, second) = rows.split_at(rows.len() / 2);
    store(transaction, schema, batch, first, counts)?;
    store(transaction, schema, batch, second, counts)
}

fn store_all(
    transaction: &mut Transaction<'_>,
    schema: &Schema,
    batch: &Batch,
    rows: &[Row],
    counts: &mut Counts,
) -> Result<(), Fault> {
    copy::copy(transaction, schema, INCOMING, &batch.topic, rows)?;
    let (table, columns) = (quoted(&schema.table.name), &schema.columns);
    let stored = transaction.query_one(
        &format!(
            "WITH stored AS (INSERT INTO {table} ({columns}) SELECT {columns} FROM {INCOMING} ON CONFLICT (wal, seq) DO NOTHING \
             RETURNING valid) SELECT count(*) FILTER (WHERE valid), count(*) FILTER (WHERE NOT valid) FROM stored"
        ),
        &[],
    )?;
    let number = |column| -> Result<u64, Fault> { Ok(u64::try_from(stored.try_get::<_, i64>(column)?).unwrap_or(0)) };
    let (valid, invalid) = (number(0)?, number(1)?);
    counts.valid += valid;
    counts.invalid += invalid;
    let passed_over = (rows.len() as u64).saturating_sub(valid + invalid);
    if passed_over > 0 {
        // What was stored just now is equal to itself; what was there before is equal, or clashes; what is not there now
        // was not passed over for its identity.
        let apart = transaction.query(
            &format!(
                "SELECT i.kafka_partition, i.kafka_offset, t.wal IS NULL FROM {INCOMING} i LEFT JOIN {table} t USING (wal, seq) \
                 WHERE t.wal IS NULL OR (i.key, i.key_bytes, i.value, i.value_bytes) IS DISTINCT FROM (t.key, t.key_bytes, \
                 t.value, t.value_bytes)"
            ),
            &[],
        )?;
        counts.duplicates += passed_over.saturating_sub(apart.len() as u64);
        for place in apart {
            let (partition, offset): (i32, i64) = (place.try_get(0)?, place.try_get(1)?);
            let row = rows
                .iter()
                .find(|row| row.partition == partition && row.offset == offset);
            let Some(row) = row else { continue };
            let rejected = if place.try_get(2)? {
                Rejected {
                    row: row.clone(),
                    kind: RejectedKind::Refused,
                    error: "the database passed it over: a trigger on the table ignores such rows".to_owned(),
                }
            } else {
                clash(row.clone())
            };
            keep_rejected(transaction, schema, batch, &rejected, counts)?;
        }
    }
    // Emptied at the commit; halves of a batch come before that.
    transaction.batch_execute(&format!("DELETE FROM {INCOMING}"))?;
    Ok(())
}

fn keep_rejected(
    transaction: &mut Transaction<'_>,
    schema: &Schema,
    batch: &Batch,
    rejected: &Rejected,
    counts: &mut Counts,
) -> Result<(), Fault> {
    match rejected.kind {
        RejectedKind::IdentityClash => counts.clashes += 1,
        RejectedKind::Refused => counts.refused += 1,
    }
    let row = &rejected.row;
    let place = batch.moves.iter().find(|place| place.partition == row.partition);
    let values: [&(dyn ToSql + Sync); 13] = [
        &schema.table.name,
        &rejected.kind.as_str(),
        &rejected.error,
        &row.wal.as_ref(),
        &row.seq,
        &batch.cluster,
        &batch.topic,
        &row.partition,
        &place.map_or(0, |place| place.epoch),
        &row.offset,
        &row.key,
        &row.received_ms.map(time),
        &row.value,
    ];
    transaction.execute(
        &format!(
            "INSERT INTO {REJECTED} (source, kind, error, wal, seq, kafka_cluster, kafka_topic, kafka_partition, \
             position_epoch, kafka_offset, key, received_at, value) \
             VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13) ON CONFLICT DO NOTHING"
        ),
        &values,
    )?;
    Ok(())
}

fn time(ms: i64) -> std::time::SystemTime {
    UNIX_EPOCH + Duration::from_millis(u64::try_from(ms).unwrap_or(0))
}
