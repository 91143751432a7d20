//! Databases that tests land into, and producers that are no gateway.

use std::path::PathBuf;
use std::sync::Arc;

use rdkafka::ClientConfig;
use rdkafka::message::{Header, OwnedHeaders};
use rdkafka::producer::{BaseRecord, DefaultProducerContext, Producer as _, ThreadedProducer};
use rusqlite::types::ValueRef;
use rusqlite::{Connection, OpenFlags};

use super::gateway::Config;
use super::kafka::Kafka;
use super::lander::{Lander, settings};
use super::postgres::Postgres;
use super::seconds;

/// Where a test lands: a database of its own.
pub enum Store {
    Sqlite(tempfile::TempDir),
    Postgres(Arc<Postgres>, String),
}

impl Store {
    pub fn sqlite() -> Self {
        Self::Sqlite(tempfile::tempdir().unwrap())
    }

    pub fn postgres() -> Self {
        Self::on(Postgres::shared())
    }

    /// A database on this server.
    pub fn on(postgres: Arc<Postgres>) -> Self {
        let database = postgres.database();
        Self::Postgres(postgres, database)
    }

    /// A configuration for a lander into it.
    pub fn config(&self, kafka: &Kafka) -> Config {
        let mut config = Config::with(kafka);
        settings(&mut config);
        match self {
            Self::Sqlite(_) => config.set("land.path", self.file().to_str().unwrap()),
            Self::Postgres(postgres, database) => config
                .set("land.sink", "postgres")
                .set("land.url", postgres.url(database)),
        };
        config
    }

    /// SQLite's file.
    pub fn file(&self) -> PathBuf {
        match self {
            Self::Sqlite(folder) => folder.path().join("landed.db"),
            Self::Postgres(..) => panic!("PostgreSQL is no file"),
        }
    }

    /// Rows of a query as texts; NULL is "NULL".
    pub fn query(&self, sql: &str) -> Vec<Vec<String>> {
        self.try_query(sql).unwrap_or_else(|error| panic!("{sql}: {error}"))
    }

    pub fn try_query(&self, sql: &str) -> Result<Vec<Vec<String>>, String> {
        if let Self::Postgres(postgres, database) = self {
            return postgres.try_query(database, sql).map_err(|error| error.to_string());
        }
        let read = || -> rusqlite::Result<Vec<Vec<String>>> {
            let connection = Connection::open_with_flags(self.file(), OpenFlags::SQLITE_OPEN_READ_ONLY)?;
            connection.busy_timeout(seconds(10))?;
            let mut statement = connection.prepare(sql)?;
            let columns = statement.column_count();
            let text = |value: ValueRef<'_>| match value {
                ValueRef::Null => "NULL".to_owned(),
                ValueRef::Integer(number) => number.to_string(),
                ValueRef::Real(number) => number.to_string(),
                ValueRef::Text(text) => String::from_utf8(text.to_vec()).unwrap(),
                ValueRef::Blob(_) => panic!("ask for hex()"),
            };
            let rows = statement.query_map([], |row| {
                (0..columns).map(|column| row.get_ref(column).map(text)).collect()
            })?;
            rows.collect()
        };
        read().map_err(|error| error.to_string())
    }

    /// Rows of a table; 0 before it is there.
    pub fn count(&self, table: &str) -> usize {
        let rows = self.try_query(&format!("SELECT count(*) FROM \"{table}\""));
        rows.map_or(0, |rows| rows[0][0].parse().unwrap())
    }
}

/// Lands what is there, and gives the process's last words.
#[track_caller]
pub fn once(config: &Config) -> String {
    let ended = Lander::run(config, &["--once"]);
    assert_eq!(ended.code, Some(0), "{ended:?}");
    ended.stdout
}

/// A record as a producer that is no gateway sends it, or one with an identity.
pub struct Raw<'a> {
    pub partition: i32,
    pub key: Option<&'a [u8]>,
    pub value: Option<&'a [u8]>,
    pub identity: Option<(&'a str, &'a str)>,
}

pub fn raw(value: &[u8]) -> Raw<'_> {
    Raw {
        partition: 0,
        key: None,
        value: Some(value),
        identity: None,
    }
}

pub fn produce(kafka: &Kafka, topic: &str, records: &[Raw<'_>]) {
    let producer: ThreadedProducer<DefaultProducerContext> = ClientConfig::new()
        .set("bootstrap.servers", kafka.bootstrap())
        .set("message.max.bytes", "2000000")
        .set("enable.idempotence", "true")
        .create()
        .unwrap();
    for record in records {
        let mut message = BaseRecord::<[u8], [u8]>::to(topic).partition(record.partition);
        message.key = record.key;
        message.payload = record.value;
        if let Some((wal, seq)) = record.identity {
            let header = |key, value| Header {
                key,
                value: Some(value),
            };
            message.headers = Some(
                OwnedHeaders::new()
                    .insert(header("tidegate-wal", wal))
                    .insert(header("tidegate-seq", seq)),
            );
        }
        producer.send(message).map_err(|(error, _)| error).unwrap();
    }
    producer.flush(seconds(30)).unwrap();
}

/// The identity of a WAL that is nobody's.
pub const WAL: &str = "6f1b1a3e-7b1c-4a57-9c59-0d7d4b2f1c11";
