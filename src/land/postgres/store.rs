//! Rows into their table, within a transaction that somebody else begins and ends.
//!
//! Rows that are all new, the usual case, are copied straight into their table, at the price of COPY alone. COPY cannot
//! pass over what is there already, so the next try is COPY into the session's temporary table, then one INSERT. When the database refuses some of them for
//! good, what was tried is rolled back and each half is tried alone; few rows, one by one. Does not know positions.

use std::collections::{HashMap, HashSet};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use tokio_postgres::types::ToSql;
use tokio_postgres::{SimpleQueryMessage, Transaction};

use super::copy;
use super::fault::{Fault, is_rows_fault, words};
use super::schema::{INCOMING, Schema};
use crate::land::row::{Batch, Rejected, RejectedKind, Row, clash};
use crate::land::sink::Counts;
use crate::land::table::{REJECTED, quoted};

/// So few rows are not halved any more but tried one by one: a statement for each costs less than COPY and INSERT for
/// each half.
const ONE_BY_ONE: usize = 64;

/// Where a row was read: it names the row within its batch.
type Place = (i32, i64);

/// The rows of one batch on their way.
pub(super) struct Store<'a> {
    transaction: &'a Transaction<'a>,
    schema: &'a Schema,
    batch: &'a Batch,
    counts: Counts,
    rejected: Vec<Rejected>,
    /// The temporary table has rows of an earlier try.
    used: bool,
}

/// What a try stored.
#[derive(Default)]
struct Stored {
    valid: u64,
    invalid: u64,
    /// What the database passed over without a word.
    passed: HashSet<Place>,
}

/// Stores a batch's rows, and what is rejected of them. `straight`: whether to try that first; told back is whether it
/// did, as after a crash many batches in a row have repeats.
pub(super) async fn store(
    transaction: &Transaction<'_>,
    schema: &Schema,
    batch: &Batch,
    straight: bool,
) -> Result<(Counts, bool), Fault> {
    let mut store = Store {
        transaction,
        schema,
        batch,
        counts: Counts {
            duplicates: batch.duplicates,
            ..Counts::default()
        },
        rejected: batch.rejected.clone(),
        used: false,
    };
    let stored = straight && store.try_straight().await?;
    let mut left: Vec<&[Row]> = if stored { Vec::new() } else { vec![&batch.rows] };
    while let Some(rows) = left.pop() {
        if rows.is_empty() {
            continue;
        }
        let Some(refusal) = store.all(rows).await? else {
            continue;
        };
        if let [row] = rows {
            store.refuse(row, refusal);
        } else if rows.len() <= ONE_BY_ONE {
            if store.one_by_one(rows).await?.is_some() {
                // COPY does not even take them together.
                left.extend(rows.chunks(1));
            }
        } else {
            let (first, second) = rows.split_at(rows.len() / 2);
            left.extend([second, first]);
        }
    }
    store.keep_rejected().await?;
    Ok((store.counts, stored))
}

impl Store<'_> {
    /// All rows straight into their table; false: some cannot be, and nothing of it is left.
    async fn try_straight(&mut self) -> Result<bool, Fault> {
        let (transaction, rows) = (self.transaction, &self.batch.rows);
        transaction.batch_execute("SAVEPOINT straight").await?;
        let table = quoted(&self.schema.table.name);
        let tried = async {
            let taken = copy::copy(transaction, self.schema, &table, &self.batch.topic, rows).await?;
            if taken == rows.len() as u64 {
                let end = "SET CONSTRAINTS ALL IMMEDIATE; RELEASE SAVEPOINT straight";
                transaction.batch_execute(end).await?;
                return Ok(true);
            }
            // A trigger passed over the others.
            Ok(false)
        };
        match tried.await {
            Ok(true) => {}
            Ok(false) => return self.give_up_straight().await,
            // Repeats and refusals.
            Err(Fault::Postgres(error)) if is_rows_fault(&error) => return self.give_up_straight().await,
            Err(fault) => return Err(fault),
        }
        self.counts.valid += rows.iter().filter(|row| row.valid()).count() as u64;
        self.counts.invalid += rows.iter().filter(|row| !row.valid()).count() as u64;
        Ok(true)
    }

    async fn give_up_straight(&self) -> Result<bool, Fault> {
        self.transaction
            .batch_execute("ROLLBACK TO SAVEPOINT straight; RELEASE SAVEPOINT straight")
            .await?;
        Ok(false)
    }

    /// Stores these rows, all or none; the database's words when it will never take one of them.
    async fn all(&mut self, rows: &[Row]) -> Result<Option<String>, Fault> {
        let tried = self.try_all(rows).await;
        self.settle(rows, tried).await
    }

    /// Each for itself.
    async fn one_by_one(&mut self, rows: &[Row]) -> Result<Option<String>, Fault> {
        let tried = self.try_one_by_one(rows).await;
        self.settle(rows, tried).await
    }

    /// Counts what a try stored, or rolls it back.
    async fn settle(&mut self, rows: &[Row], tried: Result<Stored, Fault>) -> Result<Option<String>, Fault> {
        let stored = match tried {
            Ok(stored) => stored,
            Err(Fault::Postgres(error)) if is_rows_fault(&error) => {
                self.transaction
                    .batch_execute("ROLLBACK TO SAVEPOINT try; RELEASE SAVEPOINT try")
                    .await?;
                return Ok(Some(words(&error)));
            }
            Err(fault) => return Err(fault),
        };
        self.counts.valid += stored.valid;
        self.counts.invalid += stored.invalid;
        if !stored.passed.is_empty() {
            self.sort_out(rows, &stored.passed).await?;
        }
        Ok(None)
    }

    async fn copy(&mut self, rows: &[Row]) -> Result<(), Fault> {
        // Emptied at the commit; other tries of the batch come before that.
        let empty = if std::mem::replace(&mut self.used, true) {
            format!("; TRUNCATE {INCOMING}")
        } else {
            String::new()
        };
        self.transaction.batch_execute(&format!("SAVEPOINT try{empty}")).await?;
        copy::copy(self.transaction, self.schema, INCOMING, &self.batch.topic, rows).await?;
        Ok(())
    }

    async fn try_all(&mut self, rows: &[Row]) -> Result<Stored, Fault> {
        self.copy(rows).await?;
        let (table, columns) = (quoted(&self.schema.table.name), &self.schema.columns);
        let count = i64::try_from(rows.len()).unwrap_or(i64::MAX);
        // Which ones were passed over is worked out only when there are any.
        let row = self
            .transaction
            .query_one(
                &format!(
                    "WITH stored AS (INSERT INTO {table} ({columns}) SELECT {columns} FROM {INCOMING} ON CONFLICT (wal, seq) \
                     DO NOTHING RETURNING wal, seq, valid), passed AS (SELECT kafka_partition, kafka_offset FROM {INCOMING} i \
                     WHERE NOT EXISTS (SELECT FROM stored s WHERE s.wal = i.wal AND s.seq = i.seq)) SELECT count(*) FILTER \
                     (WHERE valid), count(*) FILTER (WHERE NOT valid), CASE WHEN count(*) < $1 THEN (SELECT \
                     array_agg(kafka_partition) FROM passed) END, CASE WHEN count(*) < $1 THEN (SELECT array_agg(kafka_offset) \
                     FROM passed) END FROM stored"
                ),
                &[&count],
            )
            .await?;
        // What is checked at the commit only is checked now, while the rows can still be told apart.
        self.transaction
            .batch_execute("SET CONSTRAINTS ALL IMMEDIATE; RELEASE SAVEPOINT try")
            .await?;
        let number = |column| -> Result<u64, Fault> { Ok(u64::try_from(row.try_get::<_, i64>(column)?).unwrap_or(0)) };
        let partitions: Vec<i32> = row.try_get::<_, Option<_>>(2)?.unwrap_or_default();
        let offsets: Vec<i64> = row.try_get::<_, Option<_>>(3)?.unwrap_or_default();
        Ok(Stored {
            valid: number(0)?,
            invalid: number(1)?,
            passed: partitions.into_iter().zip(offsets).collect(),
        })
    }

    async fn try_one_by_one(&mut self, rows: &[Row]) -> Result<Stored, Fault> {
        self.copy(rows).await?;
        let (table, columns) = (quoted(&self.schema.table.name), &self.schema.columns);
        let (mut stored, mut refused) = (Stored::default(), Vec::new());
        for row in rows {
            let (partition, offset) = (row.partition, row.offset);
            let said = self
                .transaction
                .simple_query(&format!(
                    "SAVEPOINT one; INSERT INTO {table} ({columns}) SELECT {columns} FROM {INCOMING} WHERE kafka_partition = \
                     {partition} AND kafka_offset = {offset} ON CONFLICT (wal, seq) DO NOTHING RETURNING valid; SET \
                     CONSTRAINTS ALL IMMEDIATE; RELEASE SAVEPOINT one"
                ))
                .await;
            let said = match said {
                Ok(said) => said,
                Err(error) if is_rows_fault(&error) => {
                    self.transaction
                        .batch_execute("ROLLBACK TO SAVEPOINT one; RELEASE SAVEPOINT one")
                        .await?;
                    refused.push((row, words(&error)));
                    continue;
                }
                Err(error) => return Err(error.into()),
            };
            let valid = said.iter().find_map(|message| match message {
                SimpleQueryMessage::Row(row) => Some(row.get(0) == Some("t")),
                _ => None,
            });
            match valid {
                Some(true) => stored.valid += 1,
                Some(false) => stored.invalid += 1,
                None => {
                    stored.passed.insert((partition, offset));
                }
            }
        }
        self.transaction.batch_execute("RELEASE SAVEPOINT try").await?;
        for (row, words) in refused {
            self.refuse(row, words);
        }
        Ok(stored)
    }

    /// What was passed over is there already, or clashes with what is there, or was ignored by a trigger.
    async fn sort_out(&mut self, rows: &[Row], passed: &HashSet<Place>) -> Result<(), Fault> {
        let found = self
            .transaction
            .query(
                &format!(
                    "SELECT i.kafka_partition, i.kafka_offset, t.wal IS NOT NULL FROM {INCOMING} i LEFT JOIN {} t USING (wal, \
                     seq) WHERE t.wal IS NULL OR (i.key, i.key_bytes, i.value, i.value_bytes) IS DISTINCT FROM (t.key, \
                     t.key_bytes, t.value, t.value_bytes)",
                    quoted(&self.schema.table.name)
                ),
                &[],
            )
            .await?;
        let mut others: HashMap<Place, bool> = HashMap::with_capacity(found.len());
        for row in found {
            others.insert((row.try_get(0)?, row.try_get(1)?), row.try_get(2)?);
        }
        for row in rows {
            let place = (row.partition, row.offset);
            // A trigger may change what it stores, so only what was passed over counts.
            if !passed.contains(&place) {
                continue;
            }
            match others.get(&place) {
                None => self.counts.duplicates += 1,
                Some(true) => self.rejected.push(clash(row.clone())),
                Some(false) => self.refuse(
                    row,
                    "the database passed it over: a trigger on the table ignores such rows".to_owned(),
                ),
            }
        }
        Ok(())
    }

    fn refuse(&mut self, row: &Row, error: String) {
        self.rejected.push(Rejected {
            row: row.clone(),
            kind: RejectedKind::Refused,
            error,
        });
    }

    async fn keep_rejected(&mut self) -> Result<(), Fault> {
        if self.rejected.is_empty() {
            return Ok(());
        }
        let kind = |kind| self.rejected.iter().filter(|rejected| rejected.kind == kind).count() as u64;
        self.counts.clashes += kind(RejectedKind::IdentityClash);
        self.counts.refused += kind(RejectedKind::Refused);
        let moves = self.batch.moves.iter();
        let epochs: HashMap<i32, i64> = moves.map(|place| (place.partition, place.epoch)).collect();
        let column = Column(&self.rejected);
        let values: [&(dyn ToSql + Sync); 13] = [
            &self.schema.table.name,
            &self.batch.cluster,
            &self.batch.topic,
            &column.of(|rejected| rejected.kind.as_str()),
            &column.of(|rejected| rejected.error.as_str()),
            &column.of(|rejected| rejected.row.wal.as_ref()),
            &column.of(|rejected| rejected.row.seq),
            &column.of(|rejected| rejected.row.partition),
            &column.of(|rejected| epochs.get(&rejected.row.partition).copied().unwrap_or(0)),
            &column.of(|rejected| rejected.row.offset),
            &column.of(|rejected| rejected.row.key.as_deref()),
            &column.of(|rejected| rejected.row.received_ms.map(time)),
            &column.of(|rejected| rejected.row.value.as_deref()),
        ];
        self.transaction
            .execute(
                &format!(
                    "INSERT INTO {REJECTED} (source, kafka_cluster, kafka_topic, kind, error, wal, seq, kafka_partition, \
                     position_epoch, kafka_offset, key, received_at, value) SELECT $1, $2, $3, r.* FROM unnest($4::text[], \
                     $5::text[], $6::text[], $7::bigint[], $8::integer[], $9::bigint[], $10::bigint[], $11::bytea[], \
                     $12::timestamptz[], $13::bytea[]) r ON CONFLICT DO NOTHING"
                ),
                &values,
            )
            .await?;
        Ok(())
    }
}

/// A column of what is rejected, as an array.
struct Column<'a>(&'a [Rejected]);

impl<'a> Column<'a> {
    fn of<T>(&self, value: impl Fn(&'a Rejected) -> T) -> Vec<T> {
        self.0.iter().map(value).collect()
    }
}

fn time(ms: i64) -> SystemTime {
    UNIX_EPOCH + Duration::from_millis(u64::try_from(ms).unwrap_or(0))
}
