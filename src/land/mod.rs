//! The lander: Kafka -> rules -> a database or files, each record exactly once.
//!
//! # What it rests on
//! - Rows and the position in Kafka are written in one transaction of the sink ([`sink`]); where reading goes on is
//!   the sink's word, never the consumer group's. The group only shares out the partitions.
//! - A record is who it is by its identity ([`row`]), so what reached Kafka twice is stored once.
//! - Nothing that a producer can send stops it: what breaks its source's rule is stored and marked, what the database
//!   will never take goes to `rejected`.
//!
//! # Threads
//! Each of a source's consumers is a member of its group with two threads: one talks to Kafka (`member.rs`), one to
//! the sink (`writer.rs`), one batch at a time on its way between them. While the database is away the first goes on polling,
//! with its partitions paused, and so stays in the group.
//!
//! Deliberately does not know: gateways, their logs, HTTP, the configuration.

pub mod check;
mod context;
pub mod files;
mod lander;
mod member;
pub mod postgres;
pub mod row;
mod rules;
mod settings;
mod shared;
pub mod sink;
pub mod sqlite;
pub mod table;
mod target;
mod writer;

/// What src/decoders.rs feeds.
#[cfg(any(test, fuzzing))]
pub(crate) mod decoding {
    pub(crate) use super::member::identity;
    pub(crate) use super::rules::check;
}

pub use lander::{Handle, Lander, StartError};

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use serde::Serialize;

use table::Table;

/// What a source's records must be like to be valid.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Rule {
    /// Anything.
    Any,
    /// A JSON object with so many members.
    Count(usize),
    /// A JSON object with exactly the table's declared fields, each of its kind.
    Fields,
}

/// What a source demands of a record before it is taken: what the lander would mark.
#[derive(Debug, Clone)]
pub struct Demand {
    rule: Rule,
    table: Table,
}

impl Demand {
    /// The rule, and the table with the declared fields.
    #[must_use]
    pub fn new(rule: Rule, table: Table) -> Self {
        Self { rule, table }
    }

    /// How many members a record has, and whether they are the declared ones.
    #[must_use]
    pub fn rule(&self) -> &Rule {
        &self.rule
    }

    /// The declared fields, and what each holds.
    pub fn fields(&self) -> impl Iterator<Item = (&str, table::Kind)> {
        let columns = self.table.columns.iter();
        columns.map(|column| (column.field.as_str(), column.kind))
    }

    /// Why a value breaks it, in the words of the column `reason`; `None`: it does not.
    #[must_use]
    pub fn broken_by(&self, value: Option<&[u8]>) -> Option<String> {
        rules::check(&self.rule, &self.table, value).1
    }
}

/// One source to land.
#[derive(Debug, Clone)]
pub struct Source {
    /// Its table.
    pub table: Table,
    /// Its topic.
    pub topic: String,
    /// Its consumer group.
    pub group: String,
    /// How many consumers.
    pub consumers: usize,
    /// What makes its rows valid.
    pub rule: Rule,
}

impl Source {
    /// How many members it has: a dry run joins no group, so one reads everything.
    fn consumers(&self, options: &Options) -> usize {
        match options.mode {
            Mode::DryRun => 1,
            Mode::Forever | Mode::Once => self.consumers.max(1),
        }
    }
}

/// Where rows go. No `Debug`: a URL may have a password in it.
#[derive(Clone)]
pub enum Target {
    /// A SQLite database at this path.
    Sqlite(PathBuf),
    /// A PostgreSQL database at this URL.
    Postgres(String),
    /// Files of JSON lines in this folder.
    Files(PathBuf, files::Rotation),
}

/// How to run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Mode {
    /// Until told to stop.
    #[default]
    Forever,
    /// Up to the end of the topics as it is found, then done.
    Once,
    /// Like `Once`, beside the groups, and nothing is written.
    DryRun,
}

/// How records are landed. No `Debug`: see [`Target`].
#[derive(Clone)]
pub struct Options {
    /// `host:port`, several separated by commas.
    pub bootstrap_servers: String,
    /// What Kafka's logs and quotas know this lander by.
    pub client_id: String,
    /// Passed on to librdkafka as written. What the promises rest on is set over them.
    pub properties: BTreeMap<String, String>,
    /// The broker tells topics' ids. The embedded one of `dev` has none, and does not answer who asks for them; it is another
    /// one each time.
    pub topic_ids: bool,
    /// What to land.
    pub sources: Vec<Source>,
    /// Where to.
    pub target: Target,
    /// The most records of one transaction.
    pub batch_records_max: usize,
    /// The most bytes of one transaction, keys, values and fields together; one record may be more.
    pub batch_bytes_max: usize,
    /// How long a transaction waits for more records.
    pub batch_wait: Duration,
    /// When it ends by itself.
    pub mode: Mode,
}

/// A view of a running lander.
#[derive(Debug, Clone, Default, Serialize)]
pub struct Status {
    /// Kafka answers, and lets every source be read.
    pub kafka_up: bool,
    /// Why it is not so.
    pub kafka_error: Option<String>,
    /// The database (or folder) takes rows.
    pub sink_up: bool,
    /// Why it does not.
    pub sink_error: Option<String>,
    /// What the sink is: `SQLite data/tidegate.db`; never with a password.
    pub sink: String,
    /// Records between the positions and the ends of the partitions that are this lander's, together.
    pub lag_records: u64,
    /// The partitions that are this lander's, sorted.
    pub partitions: Vec<PartitionStatus>,
    /// Stored since the start, together.
    pub stored: Totals,
    /// Why it stopped although nobody asked it to.
    pub stopped: Option<String>,
}

/// One partition.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct PartitionStatus {
    /// The source.
    pub source: String,
    /// Its topic.
    pub topic: String,
    /// The partition.
    pub partition: i32,
    /// The offset that is landed next; `None` before the sink has told.
    pub position: Option<i64>,
    /// The offset behind the partition's last record, as last seen.
    pub end: Option<i64>,
    /// `end` - `position`; before the position is known, all that Kafka has.
    pub lag_records: u64,
}

/// What was stored since the start.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct Totals {
    /// Valid rows.
    pub valid: u64,
    /// Invalid rows.
    pub invalid: u64,
    /// Repeats that were dropped.
    pub duplicates: u64,
    /// Rows in `rejected`.
    pub rejected: u64,
}
