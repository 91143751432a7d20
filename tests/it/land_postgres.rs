//! What only PostgreSQL has: its TLS, its users and rights, what somebody adds to the tables, and a server that falls
//! silent.

pub mod refusals;
pub mod silence;
pub mod tables;
pub mod tls;

use std::sync::Arc;

use tidegate::land::postgres::Postgres as PostgresSink;
use tidegate::land::row::{Batch, Move, Row};
use tidegate::land::sink::{Known, Position, Sink as _, SinkError};
use tidegate::land::table::Table;

use crate::support::gateway::Config;
use crate::support::kafka::Kafka;
use crate::support::postgres::PASSWORD;
use crate::support::store::{Raw, Store, WAL, produce, raw};
use crate::support::{poll, seconds, unique};

/// A topic with these values, and a lander for it.
fn topic_of(name: &str, kafka: &Kafka, store: &Store, values: &[&str]) -> (Config, String) {
    let topic = unique(name);
    kafka.create_topic(&topic, 1, &[]);
    let mut config = store.config(kafka);
    config.landed(name, &topic, &[]);
    produce_all(kafka, &topic, values);
    (config, topic)
}

fn produce_all(kafka: &Kafka, topic: &str, values: &[&str]) {
    let records: Vec<Raw<'_>> = values.iter().map(|value| raw(value.as_bytes())).collect();
    produce(kafka, topic, &records);
}

fn values(store: &Store, table: &str) -> Vec<String> {
    store
        .query(&format!("SELECT value FROM {table} ORDER BY kafka_offset"))
        .concat()
}

/// Value and error of what was refused.
fn refused(store: &Store) -> Vec<Vec<String>> {
    store.query("SELECT convert_from(value, 'UTF8'), error FROM rejected WHERE kind = 'refused' ORDER BY kafka_offset")
}

/// A trigger for each row of the table, with this body.
fn trigger(store: &Store, table: &str, when: &str, body: &str) {
    store.query(&format!(
        "CREATE OR REPLACE FUNCTION watch() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN {body} RETURN NEW; END $$;
         CREATE TRIGGER watch {when} INSERT ON {table} FOR EACH ROW EXECUTE FUNCTION watch()"
    ));
}

/// A sink of its own, connected.
fn sink(url: &str, table: &Table) -> Result<PostgresSink, SinkError> {
    let mut sink = PostgresSink::new(url, table.clone())?;
    sink.prepare()?;
    Ok(sink)
}

/// It is refused, with these words. (A server that closes the connection after its alert may be seen as away: then it is
/// asked again, as the lander does.)
#[track_caller]
fn sink_refuses(url: &str, table: &Table, words: &[&str]) {
    let text = poll("it is refused", seconds(20), || match sink(url, table) {
        Err(SinkError::Refused(text)) => Some(text),
        Err(SinkError::Away(_)) => None,
        Ok(_) => panic!("it is not refused: {words:?}"),
    });
    for word in words {
        assert!(text.contains(word), "nothing about {word:?} in {text}");
    }
    assert!(!text.contains(PASSWORD), "{text}");
}

const TOPIC: &str = "orders";

/// Partition 0 at its beginning.
fn begin(sink: &mut PostgresSink) {
    let known = Known {
        cluster: "lkc-1".to_owned(),
        partition: 0,
        position: Position {
            epoch: 1,
            next: 0,
            topic_id: None,
        },
    };
    assert!(sink.set_position(TOPIC, &known, None).unwrap());
}

/// A row for each value, from [`begin`] on.
fn batch(values: &[&str]) -> Batch {
    let row = |(value, offset): (&&str, i64)| Row {
        wal: Arc::from(WAL),
        seq: offset,
        partition: 0,
        offset,
        key: None,
        received_ms: Some(1_795_505_400_000),
        reason: None,
        value: Some(value.as_bytes().to_vec()),
        fields: Vec::new(),
    };
    Batch {
        cluster: "lkc-1".to_owned(),
        topic: TOPIC.to_owned(),
        rows: values.iter().zip(0..).map(row).collect(),
        moves: vec![Move {
            partition: 0,
            epoch: 1,
            from: 0,
            to: i64::try_from(values.len()).unwrap(),
        }],
        ..Batch::default()
    }
}

/// The server, this database, and its URL.
fn place(store: &Store) -> (&Arc<crate::support::postgres::Postgres>, &str, String) {
    let Store::Postgres(postgres, database) = store else {
        panic!("it is one")
    };
    (postgres, database, postgres.url(database))
}
