//! Where rows go: the contract that every sink keeps. `tests/it/sinks.rs` is one suite that holds each of them to it.
//!
//! # The contract
//! - **One transaction.** [`Sink::write`] stores the rows, what it rejects, and the new positions together, durably,
//!   or nothing of it. After an error, whatever it was, asking again is safe: either nothing was stored, or the
//!   positions have moved and the answer is [`Written::Moved`].
//! - **Guarded.** Nothing is stored unless every [`Move`](super::row::Move)'s epoch and `from` are the sink's position
//!   of that partition. So of two members that both believe to own a partition one writes, and the other learns
//!   of it.
//! - **Once.** A row whose identity is there with the same key and value is dropped and counted; with another key or
//!   value it goes to `rejected` as a clash. What is stored is never changed.
//! - **Nothing stops the rest.** A row that the database will never take goes to `rejected` with the database's words.
//! - A sink serves one table, from one thread. Several sinks, also in several processes, may serve one database.
//!
//! A sink does not retry, wait for a database that is away, or count what it stores: its caller does.

use super::row::Batch;

/// Where the lander is in a partition.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Position {
    /// Counts how often reading began anew, from 1. It is part of the identity of records without one of their own.
    pub epoch: i64,
    /// The offset that is read next.
    pub next: i64,
    /// Kafka's id of the topic, where the broker has ids: a topic made anew has another.
    pub topic_id: Option<String>,
}

/// A position and where it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Known {
    /// The id of the Kafka cluster.
    pub cluster: String,
    /// The partition.
    pub partition: i32,
    /// The position.
    pub position: Position,
}

/// What became of a batch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Written {
    /// Stored.
    Done(Counts),
    /// Nothing was stored: a position is not where the batch begins. Read the positions again.
    Moved,
}

/// What a batch stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Counts {
    /// New valid rows.
    pub valid: u64,
    /// New invalid rows.
    pub invalid: u64,
    /// Rows that were there already, those that the batch had counted itself among them.
    pub duplicates: u64,
    /// Rows put to `rejected` because another value has their identity, those of the batch among them.
    pub clashes: u64,
    /// Rows put to `rejected` because the database refused them.
    pub refused: u64,
}

/// Why a sink did nothing.
#[derive(Debug, thiserror::Error)]
pub enum SinkError {
    /// The database is not reachable, busy, full, restarting: the same call may work later.
    #[error("{0}")]
    Away(String),
    /// Somebody has to change something: an address, a password, a permission, a table. The text says what.
    #[error("{0}")]
    Refused(String),
}

/// A table somewhere; see the module for what it promises.
pub trait Sink: Send {
    /// Connects where needed; makes the table, its views, `rejected` and the positions where they are missing, and
    /// adds columns for fields that were declared since. Called before anything else, and again after each error.
    ///
    /// # Errors
    /// [`SinkError::Refused`] also for a table that exists with other columns.
    fn prepare(&mut self) -> Result<(), SinkError>;

    /// Every position of this table in `topic`, of any cluster.
    ///
    /// # Errors
    /// See [`SinkError`].
    fn positions(&mut self, topic: &str) -> Result<Vec<Known>, SinkError>;

    /// Sets a partition's position, if it is `from` (`None`: there is none); false: it is not, nothing was changed.
    ///
    /// # Errors
    /// See [`SinkError`].
    fn set_position(&mut self, topic: &str, to: &Known, from: Option<&Position>) -> Result<bool, SinkError>;

    /// Stores a batch that [`Batch::settle`] has been through.
    ///
    /// # Errors
    /// See [`SinkError`].
    fn write(&mut self, batch: &Batch) -> Result<Written, SinkError>;

    /// Called every second or so while nothing is written: files that are old enough are completed.
    ///
    /// # Errors
    /// See [`SinkError`].
    fn tick(&mut self) -> Result<(), SinkError> {
        Ok(())
    }

    /// The end: files are completed, connections closed. Everything written is safe without it.
    ///
    /// # Errors
    /// See [`SinkError`].
    fn close(&mut self) -> Result<(), SinkError> {
        Ok(())
    }
}
