//! Landing a topic against the database's own limit, one consumer: into PostgreSQL beside psql's COPY of the same
//! rows into a table like it, into SQLite beside a bare multi-row INSERT in transactions of the same size. Resident
//! memory of the lander with the whole topic before it.
//!
//! `cargo bench --bench land`; broker and server are the tests' (`./tests/run` fetches and installs them).
//! `TIDEGATE_BENCH_RECORDS` is how many records, 500000 by default.
#![allow(missing_docs, dead_code, unused_imports, unused_macros)]
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)]

mod common;
#[path = "../tests/it/support/mod.rs"]
mod support;

use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use common::Row;
use rdkafka::ClientConfig;
use rdkafka::message::{Header, OwnedHeaders};
use rdkafka::producer::{BaseRecord, DefaultProducerContext, Producer as _, ThreadedProducer};
use rdkafka::types::RDKafkaErrorCode;
use rusqlite::types::Value;
use rusqlite::{Connection, params_from_iter};

use support::gateway::Config;
use support::kafka::Kafka;
use support::lander::{Lander, settings};
use support::postgres::Postgres;
use support::unique;

/// Records of a transaction: `land.batch_records_max` as it is shipped.
const TRANSACTION: usize = 10_000;
/// Rows of one bare INSERT.
const ROWS: usize = 100;
/// Sources of the lander whose memory is looked at, as many as are shipped.
const SOURCES: u64 = 6;
const WAL: &str = "6f1b1a3e-7b1c-4a57-9c59-0d7d4b2f1c11";

fn fill(kafka: &Kafka, topic: &str, records: u64) {
    let producer: ThreadedProducer<DefaultProducerContext> = ClientConfig::new()
        .set("bootstrap.servers", kafka.bootstrap())
        .set("enable.idempotence", "true")
        .create()
        .unwrap();
    for i in 0..records {
        let value = common::json_record(i);
        let seq = (i + 1).to_string();
        let header = |key, value| Header {
            key,
            value: Some(value),
        };
        let headers = OwnedHeaders::new()
            .insert(header("tidegate-received", "1700000000000"))
            .insert(header("tidegate-wal", WAL))
            .insert(header("tidegate-seq", seq.as_str()));
        let mut record = BaseRecord::<str, [u8]>::to(topic).payload(&value).headers(headers);
        while let Err((error, back)) = producer.send(record) {
            assert_eq!(error.rdkafka_error_code(), Some(RDKafkaErrorCode::QueueFull));
            record = back;
            std::thread::sleep(Duration::from_millis(1));
        }
    }
    producer.flush(Duration::from_secs(60)).unwrap();
}

/// Rows a second from the first to the last transaction, and the highest resident memory in MiB.
fn land(config: &Config, records: u64) -> (f64, f64) {
    let lander = Lander::start(config);
    let stored = || {
        let status = lander.admin("/v1/status").unwrap().json();
        assert_eq!(status["stored"]["invalid"], 0, "the rows are what they should be");
        status["stored"]["valid"].as_u64().unwrap()
    };
    let mut rss: f64 = 0.0;
    let (mut first, mut began) = (0, Instant::now());
    loop {
        let now = stored();
        rss = rss.max(common::rss_mib(lander.pid()));
        if first == 0 && now > 0 {
            (first, began) = (now, Instant::now());
        }
        if now >= records {
            return ((records - first) as f64 / began.elapsed().as_secs_f64(), rss);
        }
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// The rows that were landed, inserted again into a database of their own by nothing but SQL.
fn bare_sqlite(landed: &Path, folder: &Path, records: u64) -> f64 {
    let from = Connection::open(landed).unwrap();
    let table: String = from
        .query_row("SELECT sql FROM sqlite_master WHERE name = 'bench'", [], |row| {
            row.get(0)
        })
        .unwrap();
    let mut statement = from.prepare("SELECT * FROM bench ORDER BY seq").unwrap();
    let columns = statement.column_count();
    let rows = statement.query_map([], |row| (0..columns).map(|column| row.get(column)).collect());
    let rows: Vec<Vec<Value>> = rows.unwrap().map(Result::unwrap).collect();
    assert_eq!(rows.len() as u64, records);
    let mut to = Connection::open(folder.join("bare.db")).unwrap();
    to.pragma_update(None, "journal_mode", "WAL").unwrap();
    to.pragma_update(None, "synchronous", "FULL").unwrap();
    to.execute_batch(&table).unwrap();
    let one = format!("({})", vec!["?"; columns].join(","));
    let began = Instant::now();
    for batch in rows.chunks(TRANSACTION) {
        let transaction = to.transaction().unwrap();
        for some in batch.chunks(ROWS) {
            let sql = format!("INSERT INTO bench VALUES {}", vec![one.as_str(); some.len()].join(","));
            let mut insert = transaction.prepare_cached(&sql).unwrap();
            insert.execute(params_from_iter(some.iter().flatten())).unwrap();
        }
        transaction.commit().unwrap();
    }
    records as f64 / began.elapsed().as_secs_f64()
}

/// The rows that were landed, out to a file and in again by psql's COPY, into a table like theirs.
fn psql_copy(postgres: &Postgres, database: &str, folder: &Path, records: u64) -> f64 {
    let file = folder.join("rows");
    let url = postgres.url(database);
    let psql = |sql: &str| {
        let done = Command::new("psql")
            .args(["-q", "-X", "-d", &url, "-c", sql])
            .env("PGOPTIONS", "-c client_min_messages=warning")
            .status();
        assert!(done.expect("psql runs").success(), "{sql}");
    };
    psql(&format!(
        "\\copy (SELECT * FROM bench ORDER BY seq) TO '{}'",
        file.display()
    ));
    psql("DROP TABLE IF EXISTS again; CREATE TABLE again (LIKE bench INCLUDING ALL)");
    psql("CHECKPOINT");
    let began = Instant::now();
    psql(&format!("\\copy again FROM '{}'", file.display()));
    records as f64 / began.elapsed().as_secs_f64()
}

fn main() {
    common::print_machine();
    let records: u64 = common::setting("TIDEGATE_BENCH_RECORDS", 500_000);
    let kafka = Kafka::shared();
    let postgres = &*Postgres::shared();
    let topic = unique("bench");
    kafka.create_topic(&topic, 1, &[]);
    fill(kafka, &topic, records);
    let mut figures: [Vec<f64>; 6] = Default::default();
    for _ in 0..common::runs() {
        let folder = tempfile::tempdir_in("target").unwrap();
        let file = folder.path().join("landed.db");
        let database = postgres.database();
        let config = |sink: &str| {
            let mut config = Config::with(kafka);
            settings(&mut config)
                .landed(
                    "bench",
                    &topic,
                    &[("field_count", 10.into()), ("group", unique("bench").into())],
                )
                .set("land.sink", sink)
                .set("land.path", file.to_str().unwrap())
                .set("land.url", postgres.url(&database));
            config
        };
        let (sqlite, sqlite_rss) = land(&config("sqlite"), records);
        figures[0].push(bare_sqlite(&file, folder.path(), records));
        figures[1].push(sqlite);
        let (landed, postgres_rss) = land(&config("postgres"), records);
        figures[2].push(psql_copy(postgres, &database, folder.path(), records));
        figures[3].push(landed);
        figures[4].push(sqlite_rss);
        figures[5].push(postgres_rss);
    }
    let folder = tempfile::tempdir_in("target").unwrap();
    let mut many = Config::with(kafka);
    settings(&mut many).set("land.path", folder.path().join("landed.db").to_str().unwrap());
    for source in 0..SOURCES {
        let keys = [("field_count", 10.into()), ("group", unique("bench").into())];
        many.landed(&format!("bench_{source}"), &topic, &keys);
    }
    let (_, many_rss) = land(&many, records * SOURCES);
    let [bare, sqlite, copy, landed, sqlite_rss, postgres_rss] = figures;
    let row = |name: &str, figures: Vec<f64>| Row {
        name: name.into(),
        figures,
    };
    let limit = "bare INSERT of 100 rows each, in transactions of 10,000";
    let title = format!("{records} records into SQLite");
    common::print_table(
        &title,
        "rows/s",
        &[row(limit, bare), row("tidegate land", sqlite)],
        limit,
    );
    let limit = "psql's COPY of the same rows into a table like it";
    let title = format!("{records} records into PostgreSQL");
    common::print_table(
        &title,
        "rows/s",
        &[row(limit, copy), row("tidegate land", landed)],
        limit,
    );
    let rows = [
        row("one consumer, into SQLite", sqlite_rss),
        row("one consumer, into PostgreSQL", postgres_rss),
        row("six sources, into SQLite", vec![many_rss]),
    ];
    common::print_table("Resident memory of the lander at its highest", "MiB", &rows, "");
    Kafka::end_shared();
    Postgres::end_shared();
}
