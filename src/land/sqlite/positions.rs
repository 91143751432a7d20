//! The lander's positions and the version of its layout in a SQLite database, for rows and for files alike.

use rusqlite::{Connection, Transaction, params};

use super::database::Fault;
use crate::land::row::{Batch, Move};
use crate::land::sink::{Known, Position};
use crate::land::table::{META, POSITIONS, SCHEMA_VERSION};

/// Makes what is missing; refuses what a newer tidegate made.
pub(in crate::land) fn make(transaction: &Transaction<'_>) -> Result<(), Fault> {
    transaction.execute_batch(&format!(
        "CREATE TABLE IF NOT EXISTS {META} (key TEXT PRIMARY KEY, value) WITHOUT ROWID;
         CREATE TABLE IF NOT EXISTS {POSITIONS} (
             source TEXT NOT NULL, kafka_cluster TEXT NOT NULL, kafka_topic TEXT NOT NULL, kafka_partition INTEGER NOT NULL,
             epoch INTEGER NOT NULL, next INTEGER NOT NULL, topic_id TEXT,
             PRIMARY KEY (source, kafka_cluster, kafka_topic, kafka_partition)) WITHOUT ROWID;
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

/// See [`crate::land::sink::Sink::positions`].
pub(in crate::land) fn read(connection: &Connection, source: &str, topic: &str) -> Result<Vec<Known>, Fault> {
    let mut statement = connection.prepare_cached(&format!(
        "SELECT kafka_cluster, kafka_partition, epoch, next, topic_id FROM {POSITIONS} WHERE source = ? AND kafka_topic = ?"
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
}

/// See [`crate::land::sink::Sink::set_position`].
pub(in crate::land) fn set(
    connection: &Connection,
    source: &str,
    topic: &str,
    to: &Known,
    from: Option<&Position>,
) -> Result<bool, Fault> {
    let new = &to.position;
    let changed = match from {
        None => connection.execute(
            &format!(
                "INSERT INTO {POSITIONS} (source, kafka_cluster, kafka_topic, kafka_partition, epoch, next, topic_id) \
                 VALUES (?, ?, ?, ?, ?, ?, ?) ON CONFLICT DO NOTHING"
            ),
            params![
                source,
                to.cluster,
                topic,
                to.partition,
                new.epoch,
                new.next,
                new.topic_id
            ],
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
}

/// Moves every position of a batch; false: one of them is not where the batch begins.
pub(in crate::land) fn move_all(transaction: &Transaction<'_>, source: &str, batch: &Batch) -> Result<bool, Fault> {
    for place in &batch.moves {
        if !move_one(transaction, source, batch, place)? {
            return Ok(false);
        }
    }
    Ok(true)
}

fn move_one(transaction: &Transaction<'_>, source: &str, batch: &Batch, place: &Move) -> Result<bool, Fault> {
    let mut statement = transaction.prepare_cached(&format!(
        "UPDATE {POSITIONS} SET next = ? WHERE source = ? AND kafka_cluster = ? AND kafka_topic = ? AND kafka_partition = ? \
         AND epoch = ? AND next = ?"
    ))?;
    let changed = statement.execute(params![
        place.to,
        source,
        batch.cluster,
        batch.topic,
        place.partition,
        place.epoch,
        place.from
    ])?;
    Ok(changed == 1)
}
