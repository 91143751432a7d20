//! The databases as places under test.

use std::sync::Arc;

use postgres::{Client, NoTls};
use rusqlite::types::ValueRef;
use rusqlite::{Connection, OpenFlags};
use tidegate::land::postgres::Postgres as PostgresSink;
use tidegate::land::row::as_text;
use tidegate::land::sqlite::Database;
use tidegate::land::table::{Kind, Table, quoted};

use super::place::{Place, Process, REFUSAL, Stored, StoredRejected, canonical};
use crate::support::postgres::Postgres as Server;

const REJECTED: &str =
    "kafka_cluster, kafka_topic, kafka_partition, position_epoch, kafka_offset, kind, error, wal, seq";

pub struct Sqlite {
    folder: tempfile::TempDir,
}

impl Sqlite {
    fn file(&self) -> std::path::PathBuf {
        self.folder.path().join("landed.db")
    }

    fn read(&self) -> Connection {
        Connection::open_with_flags(self.file(), OpenFlags::SQLITE_OPEN_READ_ONLY).unwrap()
    }
}

impl Place for Sqlite {
    fn new() -> Self {
        Self {
            folder: tempfile::tempdir().unwrap(),
        }
    }

    fn process(&self) -> Process {
        let database = Database::new(&self.file());
        Box::new(move |table| Box::new(database.sink(table.clone())))
    }

    fn rows(&self, table: &Table) -> Vec<Stored> {
        let columns: String = table
            .columns
            .iter()
            .map(|column| format!(", {}", quoted(&column.name)))
            .collect();
        let connection = self.read();
        let mut statement = connection
            .prepare(&format!(
                "SELECT wal, seq, kafka_topic, kafka_partition, kafka_offset, key, received_at, valid, reason, value{columns} \
                 FROM {}",
                quoted(&table.name)
            ))
            .unwrap();
        let rows = statement.query_map([], |row| {
            let field = |(place, kind)| row.get_ref(10 + place).map(|value| sqlite_field(kind, value));
            let kinds = table.columns.iter().map(|column| column.kind).enumerate();
            Ok(Stored {
                wal: row.get(0)?,
                seq: row.get(1)?,
                topic: row.get(2)?,
                partition: row.get(3)?,
                offset: row.get(4)?,
                key: sqlite_bytes(row.get_ref(5)?),
                received_ms: ms(row.get(6)?),
                valid: row.get(7)?,
                reason: row.get(8)?,
                value: sqlite_bytes(row.get_ref(9)?),
                fields: kinds.map(field).collect::<Result<_, _>>()?,
            })
        });
        rows.unwrap().collect::<Result<_, _>>().unwrap()
    }

    fn rejected(&self, table: &Table) -> Vec<StoredRejected> {
        let connection = self.read();
        let mut statement = connection
            .prepare(&format!(
                "SELECT {REJECTED}, key, received_at, value FROM rejected WHERE source = ?"
            ))
            .unwrap();
        let rows = statement.query_map([&table.name], |row| {
            Ok(StoredRejected {
                cluster: row.get(0)?,
                topic: row.get(1)?,
                partition: row.get(2)?,
                epoch: row.get(3)?,
                offset: row.get(4)?,
                kind: row.get(5)?,
                error: row.get(6)?,
                wal: row.get(7)?,
                seq: row.get(8)?,
                key: sqlite_bytes(row.get_ref(9)?),
                received_ms: ms(row.get(10)?),
                value: sqlite_bytes(row.get_ref(11)?),
            })
        });
        rows.unwrap().collect::<Result<_, _>>().unwrap()
    }

    fn refuse(&self, table: &Table) -> bool {
        let name = quoted(&table.name);
        let says = REFUSAL.replace('\'', "''");
        let connection = Connection::open(self.file()).unwrap();
        connection
            .execute_batch(&format!(
                "CREATE TRIGGER no BEFORE INSERT ON {name} WHEN NEW.value = 'refused' BEGIN SELECT RAISE(ABORT, '{says}'); END;
                 CREATE TRIGGER hush BEFORE INSERT ON {name} WHEN NEW.value = 'ignored' BEGIN SELECT RAISE(IGNORE); END;
                 CREATE VIRTUAL TABLE torn USING fts5(a); INSERT INTO torn VALUES ('a'); DELETE FROM torn_data;
                 CREATE TRIGGER torn BEFORE INSERT ON {name} WHEN NEW.value = 'broken' BEGIN INSERT INTO torn VALUES ('b'); END;"
            ))
            .unwrap();
        true
    }
}

/// Text where it is text, and a BLOB only where it is not.
fn sqlite_bytes(value: ValueRef<'_>) -> Option<Vec<u8>> {
    match value {
        ValueRef::Null => None,
        ValueRef::Text(bytes) if as_text(bytes).is_some() => Some(bytes.to_vec()),
        ValueRef::Blob(bytes) if as_text(bytes).is_none() => Some(bytes.to_vec()),
        other => panic!("{other:?}"),
    }
}

pub fn ms(text: Option<String>) -> Option<i64> {
    text.map(|text| {
        let time = humantime::parse_rfc3339(&text).unwrap();
        let since = time.duration_since(std::time::UNIX_EPOCH).unwrap();
        i64::try_from(since.as_millis()).unwrap()
    })
}

fn sqlite_field(kind: Kind, value: ValueRef<'_>) -> Option<String> {
    let text = match (kind, value) {
        (_, ValueRef::Null) => return None,
        (Kind::Integer, ValueRef::Integer(number)) => number.to_string(),
        (Kind::Boolean, ValueRef::Integer(yes @ (0 | 1))) => (yes == 1).to_string(),
        (Kind::Real, ValueRef::Real(number)) => number.to_string(),
        (Kind::Text | Kind::Timestamp | Kind::Json, ValueRef::Text(text)) => {
            std::str::from_utf8(text).unwrap().to_owned()
        }
        (kind, value) => panic!("{value:?} in a column of {kind:?}"),
    };
    Some(canonical(kind, &text))
}

pub struct Postgres {
    server: Arc<Server>,
    database: String,
}

impl Postgres {
    fn client(&self) -> Client {
        Client::connect(&self.server.url(&self.database), NoTls).unwrap()
    }
}

impl Place for Postgres {
    fn new() -> Self {
        let server = Server::shared();
        let database = server.database();
        Self { server, database }
    }

    fn process(&self) -> Process {
        let url = self.server.url(&self.database);
        Box::new(move |table| Box::new(PostgresSink::new(&url, table.clone()).unwrap()))
    }

    fn rows(&self, table: &Table) -> Vec<Stored> {
        let columns = table.columns.iter().map(|column| {
            let name = quoted(&column.name);
            match column.kind {
                Kind::Timestamp => {
                    format!(", to_char({name} AT TIME ZONE 'UTC', 'YYYY-MM-DD\"T\"HH24:MI:SS.US\"Z\"')")
                }
                _ => format!(", {name}::text"),
            }
        });
        let query = format!(
            "SELECT wal, seq, kafka_topic, kafka_partition, kafka_offset, key, key_bytes, \
             (extract(epoch FROM received_at) * 1000)::bigint, valid, reason, value, value_bytes{} FROM {}",
            columns.collect::<String>(),
            quoted(&table.name)
        );
        let rows = self.client().query(&query, &[]).unwrap();
        let stored = rows.iter().map(|row| {
            let kinds = table.columns.iter().map(|column| column.kind).enumerate();
            let field = |(place, kind)| {
                row.get::<_, Option<String>>(12 + place)
                    .map(|text| canonical(kind, &text))
            };
            Stored {
                wal: row.get(0),
                seq: row.get(1),
                topic: row.get(2),
                partition: row.get(3),
                offset: row.get(4),
                key: postgres_bytes(row.get(5), row.get(6)),
                received_ms: row.get(7),
                valid: row.get(8),
                reason: row.get(9),
                value: postgres_bytes(row.get(10), row.get(11)),
                fields: kinds.map(field).collect(),
            }
        });
        stored.collect()
    }

    fn rejected(&self, table: &Table) -> Vec<StoredRejected> {
        let query = format!(
            "SELECT {REJECTED}, key, (extract(epoch FROM received_at) * 1000)::bigint, value FROM rejected WHERE source = $1"
        );
        let rows = self.client().query(&query, &[&table.name]).unwrap();
        let stored = rows.iter().map(|row| StoredRejected {
            cluster: row.get(0),
            topic: row.get(1),
            partition: row.get(2),
            epoch: row.get(3),
            offset: row.get(4),
            kind: row.get(5),
            error: row.get(6),
            wal: row.get(7),
            seq: row.get(8),
            key: row.get(9),
            received_ms: row.get(10),
            value: row.get(11),
        });
        stored.collect()
    }

    fn refuse(&self, table: &Table) -> bool {
        let says = REFUSAL.replace('\'', "''");
        self.client()
            .batch_execute(&format!(
                "CREATE FUNCTION no() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
                     IF NEW.value = 'refused' THEN RAISE EXCEPTION USING MESSAGE = '{says}'; END IF;
                     IF NEW.value = 'ignored' THEN RETURN NULL; END IF;
                     IF NEW.value = 'broken' THEN PERFORM pg_terminate_backend(pg_backend_pid()); END IF;
                     RETURN NEW;
                 END $$;
                 CREATE TRIGGER no BEFORE INSERT ON {} FOR EACH ROW EXECUTE FUNCTION no()",
                quoted(&table.name)
            ))
            .unwrap();
        true
    }
}

/// Text where it is text, and bytes only where it is not.
fn postgres_bytes(text: Option<String>, bytes: Option<Vec<u8>>) -> Option<Vec<u8>> {
    match (text, bytes) {
        (text, None) => text.map(String::into_bytes),
        (None, Some(bytes)) if as_text(&bytes).is_none() => Some(bytes),
        both => panic!("{both:?}"),
    }
}
