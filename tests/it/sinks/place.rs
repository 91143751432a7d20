//! A place under test: what makes sinks for it, and what it holds, read back past the sinks.

use tidegate::land::row::{Batch, Field, Rejected, Row};
use tidegate::land::sink::{Known, Sink};
use tidegate::land::table::{Kind, Table};

/// One process's way to a place. What processes share, its sinks may share.
pub type Process = Box<dyn Fn(&Table) -> Box<dyn Sink> + Send>;

/// What [`Place::refuse`] makes the place say of a row.
pub const REFUSAL: &str = "not \"this\" one: it's\nrefused";

/// Somewhere that sinks write to, empty at first.
pub trait Place: Sync {
    fn new() -> Self
    where
        Self: Sized;

    /// A way that has nothing in common with the others but the place.
    fn process(&self) -> Process;

    /// The rows of a table, as they are stored.
    fn rows(&self, table: &Table) -> Vec<Stored>;

    /// What was rejected of a table.
    fn rejected(&self, table: &Table) -> Vec<StoredRejected>;

    /// Makes the table refuse rows whose value is `refused`, with [`REFUSAL`], pass over those whose value is `ignored`
    /// without a word, and break off the write that has one whose value is `broken`; false: nothing can do that here.
    fn refuse(&self, _table: &Table) -> bool {
        false
    }

    /// What has to be done before [`Self::rows`] sees everything, once no sink is open any more.
    fn settle(&self, _table: &Table) {}
}

impl dyn Place + '_ {
    /// A sink of a process of its own, prepared.
    pub fn sink(&self, table: &Table) -> Box<dyn Sink> {
        let mut sink = self.process()(table);
        sink.prepare().unwrap();
        sink
    }

    /// The rows of a table, by identity. No sink of the table may be open.
    pub fn stored(&self, table: &Table) -> Vec<Stored> {
        self.settle(table);
        let mut rows = self.rows(table);
        rows.sort_by(|a, b| (&a.wal, a.seq, a.offset).cmp(&(&b.wal, b.seq, b.offset)));
        rows
    }

    /// What was rejected of a table, by its place in Kafka. No sink of the table may be open.
    pub fn apart(&self, table: &Table) -> Vec<StoredRejected> {
        self.settle(table);
        let mut rejected = self.rejected(table);
        rejected.sort();
        rejected
    }

    /// The positions of a table in a topic, as a process that has just started is told them.
    pub fn positions(&self, table: &Table, topic: &str) -> Vec<Known> {
        let mut sink = self.sink(table);
        let found = positions(sink.as_mut(), topic);
        sink.close().unwrap();
        found
    }
}

/// What a sink tells, by cluster and partition.
pub fn positions(sink: &mut dyn Sink, topic: &str) -> Vec<Known> {
    let mut known = sink.positions(topic).unwrap();
    known.sort_by(|a, b| (&a.cluster, a.partition).cmp(&(&b.cluster, b.partition)));
    known
}

/// A row of a table, read back.
#[derive(Debug, Clone, PartialEq)]
pub struct Stored {
    pub wal: String,
    pub seq: i64,
    pub topic: String,
    pub partition: i32,
    pub offset: i64,
    pub key: Option<Vec<u8>>,
    pub received_ms: Option<i64>,
    pub valid: bool,
    pub reason: Option<String>,
    pub value: Option<Vec<u8>>,
    /// As [`canonical`] has them, in the order of the table's columns.
    pub fields: Vec<Option<String>>,
}

impl Stored {
    /// What a row of this topic must be read back as.
    pub fn of(table: &Table, topic: &str, row: &Row) -> Self {
        let fields = row.fields.iter().zip(&table.columns).map(|(field, column)| {
            let text = match field {
                Field::Null => return None,
                Field::Text(text) | Field::Timestamp(text) | Field::Json(text) => text.clone(),
                Field::Integer(number) => number.to_string(),
                Field::Real(number) => number.to_string(),
                Field::Boolean(yes) => yes.to_string(),
            };
            Some(canonical(column.kind, &text))
        });
        Self {
            wal: row.wal.to_string(),
            seq: row.seq,
            topic: topic.to_owned(),
            partition: row.partition,
            offset: row.offset,
            key: row.key.clone(),
            received_ms: row.received_ms,
            valid: row.valid(),
            reason: row.reason.clone(),
            value: row.value.clone(),
            fields: fields.collect(),
        }
    }
}

/// A rejected row, read back.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct StoredRejected {
    pub cluster: String,
    pub topic: String,
    pub partition: i32,
    pub epoch: i64,
    pub offset: i64,
    pub kind: String,
    pub error: String,
    pub wal: String,
    pub seq: i64,
    pub key: Option<Vec<u8>>,
    pub received_ms: Option<i64>,
    pub value: Option<Vec<u8>>,
}

impl StoredRejected {
    /// What a rejected row of this batch must be read back as.
    pub fn of(batch: &Batch, rejected: &Rejected) -> Self {
        let row = &rejected.row;
        let place = batch.moves.iter().find(|place| place.partition == row.partition);
        Self {
            cluster: batch.cluster.clone(),
            topic: batch.topic.clone(),
            partition: row.partition,
            epoch: place.expect("a move for each partition").epoch,
            offset: row.offset,
            kind: rejected.kind.as_str().to_owned(),
            error: rejected.error.clone(),
            wal: row.wal.to_string(),
            seq: row.seq,
            key: row.key.clone(),
            received_ms: row.received_ms,
            value: row.value.clone(),
        }
    }
}

/// One text for all ways to write the same: PostgreSQL has JSON and times in forms of its own, and SQLite has no -0.0.
pub fn canonical(kind: Kind, text: &str) -> String {
    match kind {
        Kind::Text | Kind::Integer | Kind::Boolean => text.to_owned(),
        Kind::Real => format!("{:e}", text.parse::<f64>().unwrap() + 0.0),
        Kind::Timestamp => {
            // The civil type: that of instants ends a day before the year 9999 does.
            let time: jiff::civil::DateTime = text.strip_suffix('Z').expect("UTC").parse().unwrap();
            format!("{time:.6}")
        }
        Kind::Json => {
            let json: serde_json::Value = serde_json::from_str(text).unwrap();
            json.to_string()
        }
    }
}
