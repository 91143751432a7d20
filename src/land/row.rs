//! A row: one record as it goes into a table, and a batch of them with the positions that move with it.
//!
//! Knows neither Kafka's client nor any database.
//!
//! # Who a row is
//! (`wal`, `seq`), unique in its table for ever. For a record that a gateway sent these are its headers
//! `tidegate-wal` and `tidegate-seq`. A record of another producer has none, so it gets
//! `kafka:<cluster id>/<topic>/<partition>/<position epoch>` and its offset, which no gateway can have: a
//! gateway's `wal` is a UUID.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::sync::Arc;

/// One record, ready for its table.
#[derive(Debug, Clone, PartialEq)]
pub struct Row {
    /// First half of its identity; see the module.
    pub wal: Arc<str>,
    /// Second half of its identity, 0 or more.
    pub seq: i64,
    /// Where it was read.
    pub partition: i32,
    /// Where it was read.
    pub offset: i64,
    /// Kafka's key; `None` and empty differ.
    pub key: Option<Vec<u8>>,
    /// When the gateway received it, else Kafka's timestamp: milliseconds since the Unix epoch, from 0 to the end
    /// of the year 9999 ([`RECEIVED_MS_MAX`]). `None`: neither is there, or outside of that.
    pub received_ms: Option<i64>,
    /// Why it breaks its source's rule; `None`: it is valid.
    pub reason: Option<String>,
    /// Kafka's value, every byte of it; `None` is a tombstone.
    pub value: Option<Vec<u8>>,
    /// One for each of the table's declared columns, in their order.
    pub fields: Vec<Field>,
}

/// 9999-12-31T23:59:59.999Z: the last time that every sink can write.
pub const RECEIVED_MS_MAX: i64 = 253_402_300_799_999;

/// A declared field's value, checked against its column's [`super::table::Kind`].
#[derive(Debug, Clone, PartialEq)]
pub enum Field {
    /// Not there, JSON's null, or not of its kind (then the row's reason says so).
    Null,
    /// No NUL in it.
    Text(String),
    /// A whole number.
    Integer(i64),
    /// Finite.
    Real(f64),
    /// Yes or no.
    Boolean(bool),
    /// RFC 3339, UTC, microseconds: `2026-11-24T07:30:00.000000Z`; years 1 to 9999.
    Timestamp(String),
    /// JSON text that every sink can hold: nothing nested too deep, no number out of range, no `\u0000`.
    Json(String),
}

impl Row {
    /// Whether it keeps its source's rule.
    #[must_use]
    pub fn valid(&self) -> bool {
        self.reason.is_none()
    }

    /// What it takes in memory, about: bytes.
    #[must_use]
    pub fn bytes(&self) -> usize {
        let text = self.key.as_ref().map_or(0, Vec::len) + self.value.as_ref().map_or(0, Vec::len);
        let fields: usize = self.fields.iter().map(Field::bytes).sum();
        size_of::<Self>() + text + fields + self.reason.as_ref().map_or(0, String::len)
    }

    /// Whether two rows of one identity are one record, seen twice.
    #[must_use]
    pub fn is_same_record(&self, other: &Self) -> bool {
        self.value == other.value && self.key == other.key
    }
}

impl Field {
    fn bytes(&self) -> usize {
        let text = match self {
            Self::Text(text) | Self::Timestamp(text) | Self::Json(text) => text.len(),
            Self::Null | Self::Integer(_) | Self::Real(_) | Self::Boolean(_) => 0,
        };
        size_of::<Self>() + text
    }
}

/// Bytes as text, where a text column can hold them: UTF-8 without NUL (which PostgreSQL refuses).
#[must_use]
pub fn as_text(bytes: &[u8]) -> Option<&str> {
    let text = std::str::from_utf8(bytes).ok()?;
    (!bytes.contains(&0)).then_some(text)
}

/// How far a partition's position moves with a batch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Move {
    /// The partition.
    pub partition: i32,
    /// Its position epoch.
    pub epoch: i64,
    /// The offset that must be the sink's position, or somebody else has written meanwhile.
    pub from: i64,
    /// The offset after the batch's last record there.
    pub to: i64,
}

/// A row that goes to `rejected`, not to its table.
#[derive(Debug, Clone, PartialEq)]
pub struct Rejected {
    /// The row.
    pub row: Row,
    /// What kind of fault it is.
    pub kind: RejectedKind,
    /// What the database said, or what is wrong.
    pub error: String,
}

/// See [`Rejected`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RejectedKind {
    /// Another value has its identity already: two gateways run with one identity (a copied disk).
    IdentityClash,
    /// The database will never take it.
    Refused,
}

impl RejectedKind {
    /// As `rejected.kind` and the metrics have it.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::IdentityClash => "identity_clash",
            Self::Refused => "refused",
        }
    }
}

/// What is written in one transaction: rows of one topic, and the positions that move with them.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Batch {
    /// The id of the Kafka cluster.
    pub cluster: String,
    /// The topic.
    pub topic: String,
    /// In the order of each partition. After [`Batch::settle`] no two have one identity.
    pub rows: Vec<Row>,
    /// Every partition that has a row here, once.
    pub moves: Vec<Move>,
    /// Rows that clash with one of `rows`.
    pub rejected: Vec<Rejected>,
    /// Rows that were the same record as one of `rows`.
    pub duplicates: u64,
}

impl Batch {
    /// Takes repeats and clashes within the batch out of `rows`, so that a sink has to compare only with what it
    /// holds already.
    pub fn settle(&mut self) {
        let mut first: HashMap<(Arc<str>, i64), usize> = HashMap::with_capacity(self.rows.len());
        let mut kept: Vec<Row> = Vec::with_capacity(self.rows.len());
        for row in std::mem::take(&mut self.rows) {
            match first.entry((Arc::clone(&row.wal), row.seq)) {
                Entry::Vacant(place) => {
                    place.insert(kept.len());
                    kept.push(row);
                }
                Entry::Occupied(place) => {
                    if kept.get(*place.get()).is_some_and(|known| known.is_same_record(&row)) {
                        self.duplicates += 1;
                    } else {
                        self.rejected.push(clash(row));
                    }
                }
            }
        }
        self.rows = kept;
    }
}

/// A row whose identity another value has.
#[must_use]
pub fn clash(row: Row) -> Rejected {
    let error = format!(
        "the identity (wal {}, seq {}) belongs to a record with another key or value: two gateways run with copies of one \
         WAL folder",
        row.wal, row.seq
    );
    Rejected {
        row,
        kind: RejectedKind::IdentityClash,
        error,
    }
}
