//! The write-ahead log. (Signatures; the bodies follow.)
#![allow(missing_docs, unused_variables, clippy::todo)]

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use crate::record::{Record, RecordRef, Sequence, WalId};

/// How a WAL is opened. Sizes in bytes.
#[derive(Debug, Clone)]
pub struct Options {
    /// The folder; made (0700) when missing.
    pub path: PathBuf,
    /// The most that the whole folder may take; at it, `append` answers [`AppendError::Full`].
    pub bytes_max: u64,
    /// What must stay free on the file system; below it, `append` answers [`AppendError::DiskLow`].
    pub free_bytes_min: u64,
    /// A generation is closed once its file has this size.
    pub generation_bytes: u64,
    /// lz4 for frames that it makes smaller.
    pub compression: bool,
    /// What is kept after the ack.
    pub retain: Retain,
    /// The writer waits this long for more records before a commit; 0: not at all.
    pub linger: Duration,
}

/// What of the acknowledged generations is kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Retain {
    Off,
    Bytes(u64),
    Time(Duration),
}

/// Why a WAL did not open.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// Another process has it: exit code 4.
    #[error("the WAL in {path} is in use by process {pid}")]
    InUse { path: PathBuf, pid: String },
    /// fdatasync is not in force, or the file system cannot do it: exit code 75...
    #[error("{0}")]
    NotDurable(String),
    /// Not a tidegate WAL, or of a later version: exit code 2.
    #[error("{0}")]
    Format(String),
    /// Disk trouble: exit code 75 (2 when the folder cannot be made or written).
    #[error("{what} {path}: {source}")]
    Io {
        what: &'static str,
        path: PathBuf,
        #[source]
        source: std::io::Error,
    },
}

/// Why records were not taken. None of them is in the log.
#[derive(Debug, Clone, thiserror::Error)]
pub enum AppendError {
    #[error("the log has reached wal.bytes_max ({bytes_max} bytes)")]
    Full { bytes_max: u64 },
    #[error("the disk has less than wal.free_bytes_min ({free_bytes_min} bytes) left")]
    DiskLow { free_bytes_min: u64 },
    /// Too many bytes wait for the writer: try again at once or soon.
    #[error("the log's queue is full")]
    Busy,
    #[error("the log has stopped: {reason}")]
    Poisoned { reason: String },
    #[error("the log is closed")]
    Closed,
    #[error("a batch of {bytes} bytes is larger than the {bytes_max} that one commit takes")]
    TooLarge { bytes: usize, bytes_max: usize },
}

/// Where a batch is: on disk, `first_seq ..= last_seq`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Receipt {
    pub first_seq: Sequence,
    pub last_seq: Sequence,
}

/// `trimmed <= acked <= committed < next`, always.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Watermarks {
    /// Everything up to here is no longer on disk.
    pub trimmed: Sequence,
    /// Everything up to here was acknowledged by Kafka (or settled otherwise).
    pub acked: Sequence,
    /// Everything up to here is on disk.
    pub committed: Sequence,
    /// The sequence that the next record gets.
    pub next: Sequence,
}

/// What an operator wants to know of a log.
#[derive(Debug, Clone, Default)]
pub struct Status {
    pub watermarks: Watermarks,
    /// committed - acked.
    pub backlog_records: u64,
    /// Payload bytes of the backlog: exact per generation, in proportion within one.
    pub backlog_bytes: u64,
    pub disk_bytes: u64,
    pub capacity_bytes: u64,
    pub free_bytes: u64,
    pub generations: u64,
    /// Records found damaged since start.
    pub corruption_records: u64,
    pub poisoned: Option<String>,
    /// Set when `append` would refuse now: the message of Full or DiskLow.
    pub refusing: Option<String>,
    pub held_records: u64,
    pub dead_letters: u64,
}

/// A batch, encoded by its caller (not by the writer thread): goes to disk whole or not at all.
#[derive(Debug, Default)]
pub struct Batch {
    _private: (),
}
impl Batch {
    pub fn new() -> Self {
        todo!()
    }
    pub fn push(&mut self, record: &Record) {
        todo!()
    }
    pub fn len(&self) -> usize {
        todo!()
    }
    pub fn is_empty(&self) -> bool {
        todo!()
    }
    pub fn bytes(&self) -> usize {
        todo!()
    }
}

/// A future of the commit; also `wait()` for threads.
#[must_use]
pub struct Commit {
    _private: (),
}
impl Commit {
    /// Blocks the thread until the batch is on disk or refused.
    pub fn wait(self) -> Result<Receipt, AppendError> {
        todo!()
    }
}
impl Future for Commit {
    type Output = Result<Receipt, AppendError>;
    fn poll(self: std::pin::Pin<&mut Self>, cx: &mut std::task::Context<'_>) -> std::task::Poll<Self::Output> {
        todo!()
    }
}

/// Something to wait on for a thread: set by commits (and by whoever else has it).
#[derive(Debug, Default)]
pub struct Signal {
    _private: (),
}
impl Signal {
    pub fn notify(&self) {
        todo!()
    }
    /// Returns when notified since the last wait, or after `timeout`.
    pub fn wait(&self, timeout: Duration) {
        todo!()
    }
}

/// One log: the WAL itself and the held lane are of this kind. Cheap to clone.
#[derive(Clone)]
pub struct Log {
    _private: Arc<()>,
}
impl Log {
    /// Queues a batch; the commit resolves once the fdatasync that covers it returned.
    pub fn append(&self, batch: Batch) -> Result<Commit, AppendError> {
        todo!()
    }
    pub fn watermarks(&self) -> Watermarks {
        todo!()
    }
    /// A reader that begins at `from` (or at the first record still there).
    pub fn reader(&self, from: Sequence) -> Reader {
        todo!()
    }
    /// Everything up to `watermark` is settled; whole generations below it go. Never lowers it; an
    /// `watermark` above committed is a bug and refused.
    pub fn ack(&self, watermark: Sequence) -> Result<(), AppendError> {
        todo!()
    }
    /// `signal` is notified after each commit from now on.
    pub fn subscribe(&self, signal: Arc<Signal>) {
        todo!()
    }
}

/// Reads committed records in order of sequence; never past `committed`. For one thread.
pub struct Reader {
    _private: (),
}

/// What a read found.
pub enum Read {
    /// Records, in order, without a gap.
    Records(Chunk),
    /// Sequences that were committed and are no longer readable: counted and set aside by the log;
    /// the reader goes on behind them.
    Damaged {
        first: Sequence,
        last: Sequence,
        reason: String,
    },
    /// Nothing more is committed now.
    Nothing,
}

/// Why reading stopped.
#[derive(Debug, thiserror::Error)]
#[error("cannot read {path}: {source}")]
pub struct ReadError {
    pub path: PathBuf,
    #[source]
    pub source: std::io::Error,
}

impl Reader {
    /// The next records, at least one and about `bytes_max` payload bytes at most.
    pub fn read(&mut self, bytes_max: usize) -> Result<Read, ReadError> {
        todo!()
    }
    /// The sequence that the next read begins at.
    pub fn position(&self) -> Sequence {
        todo!()
    }
}

/// Records first() ..= last(), decoded where they lie.
pub struct Chunk {
    _private: (),
}
impl Chunk {
    pub fn first(&self) -> Sequence {
        todo!()
    }
    pub fn last(&self) -> Sequence {
        todo!()
    }
    /// A record whose bytes passed the checksum and still do not decode is given as an error text.
    pub fn records(&self) -> impl Iterator<Item = (Sequence, Result<RecordRef<'_>, String>)> {
        std::iter::empty()
    }
}

/// A record that Kafka can never take.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Letter {
    /// The record; its `origin` is always set: (wal, seq) is who it is.
    pub record: Record,
    /// Kafka's error name, for example `MessageSizeTooLarge`: the `reason` label.
    pub code: String,
    /// In words.
    pub reason: String,
    pub first_failed_ms: i64,
    pub last_failed_ms: i64,
}

/// The write-ahead log of one gateway: one folder, one process. Cheap to clone.
#[derive(Clone)]
pub struct Wal {
    _private: Arc<()>,
}
impl Wal {
    pub fn open(options: Options) -> Result<Wal, OpenError> {
        todo!()
    }
    pub fn id(&self) -> WalId {
        todo!()
    }
    /// The main log.
    pub fn log(&self) -> &Log {
        todo!()
    }
    /// The held lane, if anything was ever held.
    pub fn held(&self) -> Option<Log> {
        todo!()
    }
    /// The held lane, made if there is none yet.
    pub fn held_or_create(&self) -> Result<Log, OpenError> {
        todo!()
    }
    /// Blocks until the letters are on disk. Idempotent by origin: one that is there is not added again.
    /// Returns how many were new.
    pub fn add_dead_letters(&self, letters: &[Letter]) -> Result<usize, AppendError> {
        todo!()
    }
    pub fn status(&self) -> Status {
        todo!()
    }
    /// Resolves with the reason when any of its logs stopped for good (a failed fsync). Then the process
    /// should end with exit code 75.
    pub async fn poisoned(&self) -> String {
        todo!()
    }
    /// Stops taking records, commits what is queued, fsyncs the witness, releases the lock. Blocks.
    pub fn close(&self) -> Result<(), AppendError> {
        todo!()
    }
}
