//! Databases that tests land into, and producers that are no gateway.

use std::collections::HashSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rdkafka::ClientConfig;
use rdkafka::message::{Header, OwnedHeaders};
use rdkafka::producer::{BaseRecord, DefaultProducerContext, Producer as _, ThreadedProducer};
use rusqlite::types::{Value, ValueRef};
use rusqlite::{Connection, OpenFlags, params_from_iter};

use super::gateway::Config;
use super::kafka::Kafka;
use super::lander::{Lander, settings};
use super::postgres::Postgres;
use super::seconds;

/// Where a test lands: a database of its own.
pub enum Store {
    Sqlite(tempfile::TempDir),
    Postgres(Arc<Postgres>, String),
    Files(tempfile::TempDir),
}

impl Store {
    pub fn sqlite() -> Self {
        Self::Sqlite(tempfile::tempdir().unwrap())
    }

    /// What people call it.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Sqlite(_) => "SQLite",
            Self::Postgres(..) => "PostgreSQL",
            Self::Files(_) => "files",
        }
    }

    pub fn postgres() -> Self {
        Self::on(Postgres::shared())
    }

    pub fn files() -> Self {
        Self::Files(tempfile::tempdir().unwrap())
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
            Self::Files(_) => config
                .set("land.sink", "files")
                .set("land.path", self.file().to_str().unwrap()),
        };
        config
    }

    /// SQLite's file, or the folder of the files.
    pub fn file(&self) -> PathBuf {
        match self {
            Self::Sqlite(folder) => folder.path().join("landed.db"),
            Self::Files(folder) => folder.path().join("landed"),
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
            let connection = match self {
                Self::Files(_) => tables_of_files(&self.file())?,
                _ => Connection::open_with_flags(self.file(), OpenFlags::SQLITE_OPEN_READ_ONLY)?,
            };
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

    /// Rows of a table; 0 before it is there. Of files: also what is in those that are being written.
    pub fn count(&self, table: &str) -> usize {
        if let Self::Files(_) = self {
            let folders = match table {
                "rejected" => every_folder(&self.file(), table),
                _ => ["valid", "invalid"]
                    .map(|part| self.file().join(table).join(part))
                    .into(),
            };
            let lines = |path: PathBuf| fs::read_to_string(path).unwrap_or_default().lines().count();
            return folders.iter().flat_map(|folder| entries(folder)).map(lines).sum();
        }
        let rows = self.try_query(&format!("SELECT count(*) FROM \"{table}\""));
        rows.map_or(0, |rows| rows[0][0].parse().unwrap())
    }
}

fn entries(folder: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    entries.map(|entry| entry.path()).collect()
}

/// The folder `part` of every source.
fn every_folder(landed: &Path, part: &str) -> Vec<PathBuf> {
    entries(landed).into_iter().map(|source| source.join(part)).collect()
}

/// The lines of every complete file as the tables that a database would have, so that one query reads them all.
fn tables_of_files(landed: &Path) -> rusqlite::Result<Connection> {
    let connection = Connection::open_in_memory()?;
    let mut known = HashSet::new();
    connection.execute("ATTACH ? AS book", [landed.join("tidegate.db").to_str()])?;
    for (part, suffix) in [("valid", "_valid"), ("invalid", "_invalid"), ("rejected", "")] {
        for folder in every_folder(landed, part) {
            let source = folder.parent().unwrap().file_name().unwrap().to_str().unwrap();
            for file in entries(&folder) {
                if file.extension().is_none_or(|ending| ending != "jsonl") {
                    continue;
                }
                connection.execute_batch("BEGIN")?;
                for line in fs::read_to_string(file).unwrap().lines() {
                    let row: serde_json::Map<_, _> = serde_json::from_str(line).unwrap();
                    let table = match suffix {
                        "" => vec!["rejected".to_owned()],
                        _ => vec![source.to_owned(), format!("{source}{suffix}")],
                    };
                    for table in table {
                        insert(&connection, &mut known, &table, &row)?;
                    }
                }
                connection.execute_batch("COMMIT")?;
            }
        }
    }
    Ok(connection)
}

fn insert(
    connection: &Connection,
    known: &mut HashSet<(String, String)>,
    table: &str,
    row: &serde_json::Map<String, serde_json::Value>,
) -> rusqlite::Result<()> {
    use base64::Engine as _;
    let quoted = |name: &str| format!("\"{name}\"");
    let (mut names, mut values) = (Vec::new(), Vec::new());
    for (name, value) in row {
        let (name, value) = match (name.strip_suffix("_base64"), value) {
            (Some(name), serde_json::Value::String(text)) => {
                let bytes = base64::engine::general_purpose::STANDARD.decode(text).unwrap();
                (name, Value::Blob(bytes))
            }
            (_, serde_json::Value::Null) => (name.as_str(), Value::Null),
            (_, serde_json::Value::Bool(yes)) => (name.as_str(), Value::Integer((*yes).into())),
            (_, serde_json::Value::String(text)) => (name.as_str(), Value::Text(text.clone())),
            (_, serde_json::Value::Number(number)) => match number.as_i64() {
                Some(number) => (name.as_str(), Value::Integer(number)),
                None => (name.as_str(), Value::Real(number.as_f64().unwrap())),
            },
            (_, other) => (name.as_str(), Value::Text(other.to_string())),
        };
        let name = quoted(name);
        if known.insert((table.to_owned(), name.clone())) {
            let table = quoted(table);
            let sql = match known.insert((table.clone(), String::new())) {
                true => format!("CREATE TABLE {table} ({name})"),
                false => format!("ALTER TABLE {table} ADD COLUMN {name}"),
            };
            connection.execute(&sql, [])?;
        }
        names.push(name);
        values.push(value);
    }
    let table = quoted(table);
    let sql = format!(
        "INSERT INTO {table} ({}) VALUES ({})",
        names.join(", "),
        vec!["?"; names.len()].join(", ")
    );
    connection.prepare_cached(&sql)?.execute(params_from_iter(values))?;
    Ok(())
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
