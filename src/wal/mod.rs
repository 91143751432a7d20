//! The write-ahead log: what was answered OK is in here, on disk, until Kafka has it.
//!
//! **sled writes, our own frames recover.** sled 0.34 is a good writer and a bad opener, so it only ever opens
//! what it just created; whatever exists is read by scanning its file for self-describing frames.
//!
//! ```text
//! data/wal/                     0700; one process (flock on `lock`)
//!   identity                    format version and UUID, made once
//!   lock  witness               see witness.rs
//!   gen-<first>-<key>/ ...      see generations.rs
//!   stamps                      see stamps.rs
//!   keys                        see keys.rs and idempotency.rs
//!   held/  dead-letters/        logs of the same kind, made when first needed
//!   held.made  ...              see gone.rs
//! ```
//!
//! A record's way: [`Batch::push`] encodes it in the caller's thread; [`Log::append`] queues the batch; the
//! writer thread (writer.rs) cuts what is queued into frames (frame.rs), hands them to the live store
//! (generation.rs), flushes, writes the witness, answers. A [`Reader`] reads committed records in order;
//! [`Log::ack`] moves the watermark, and the housekeeper removes whole generations below it.
//!
//! Four watermarks, always `trimmed <= acked <= committed < next`:
//!
//! ```text
//!   removed      settled, on disk    waits for Kafka        being written
//! ------------|-------------------|---------------------|----------------->
//!          trimmed              acked               committed      next
//! ```
//!
//! Threads, no runtime: works under any executor. Knows nothing of HTTP, Kafka, or configuration.

mod archive;
mod dead_letter;
mod durable;
mod error;
mod frame;
mod generation;
mod generations;
mod gone;
mod housekeeper;
mod idempotency;
mod identity;
mod keys;
mod latency;
mod log;
mod poison;
mod quota;
mod ranges;
mod reader;
mod recovery;
mod rewind;
mod salvage;
mod scan;
mod sealed;
mod signal;
mod signs;
mod stamps;
#[cfg(test)]
mod tests;
mod verify;
mod witness;
mod writer;

use std::path::PathBuf;
use std::pin::Pin;
use std::sync::{Arc, Mutex, OnceLock};
use std::task::{Context, Poll};
use std::time::Duration;

use bincode::Encode;
use tokio::sync::oneshot;

pub use archive::{Archive, ArchiveError, Archived, Part, Witnessed, check_unused};
pub use dead_letter::{Handled, Letter, LetterState, LettersCause, LettersError, Piece, Register, Which};
pub use error::{AckError, AppendError, OpenError, ReadError};
pub use generations::Retain;
pub use gone::Gone;
pub use idempotency::{KeyId, KeysOptions, Remembered, Reservation, Reserved, id as key_id};
pub use identity::{Peek, peek};
pub use log::Log;
pub use ranges::{Range, count as count_sequences, joined};
pub use reader::{Chunk, Read, Reader};
pub use recovery::GUESSED;
pub use rewind::{RewindError, Rewound};
pub use salvage::{SalvageError, Salvaged, salvage};
pub use signal::Signal;
pub use signs::signs;
pub use stamps::Stamp;
pub use verify::{Lost, Verified, verify_all};
pub use witness::Marks;
pub use writer::COMMIT_BYTES_MAX;

/// What src/decoders.rs feeds.
#[cfg(any(test, fuzzing))]
pub(crate) mod decoding {
    pub(crate) use super::frame::{
        ENTRY_PREFIX_BYTES, FRAME_BYTES_MAX, Framer, HEADER_BYTES, Key, check, entries, expand, magic, peek,
    };
    pub(crate) use super::generations::{name as generation_name, parse_name};
    pub(crate) use super::identity::{parse as parse_identity, text as identity_text};
    pub(crate) use super::keys::{Checkpoint, Fault as KeysFault, encode as encode_keys, parse as parse_keys};
    pub(crate) use super::ranges::{joined, parse as parse_ranges, text as ranges_text, unknown};
    pub(crate) use super::scan::{Added, Assembled};
    pub(crate) use super::sealed::{lines, seal};
    pub(crate) use super::stamps::{parse as parse_stamps, text as stamps_text};
    pub(crate) use super::witness::{SLOT_BYTES, decode as decode_slot, encode as encode_slot};
}

use crate::record::{ENCODING, Idempotency, Record, Sequence, WalId};
use dead_letter::DeadLetters;
use log::{LogOptions, lock};
use poison::Poison;
use quota::Quota;

/// A record encoded is not often larger than its payload by more: time, and what is not there.
const ENCODED_BYTES_MORE: usize = 32;
/// What says how long a header's name or value is has so many bytes, or fewer.
const MORE_PER_LENGTH: usize = 3;

/// A commit that takes longer poisons the log: a panicked thread of the store may never wake its waiter.
const COMMIT_TIME_MAX: Duration = Duration::from_secs(60);
/// The log says that it refuses when not even so much would be taken.
const REQUEST_BYTES_TYPICAL: u64 = 1024 * 1024;
/// Generations of held records and dead letters are smaller: few records, and space is wanted back.
const SIDE_GENERATION_BYTES_MAX: u64 = 16 * 1024 * 1024;

/// How a WAL is opened. Sizes in bytes.
#[derive(Debug, Clone)]
pub struct Options {
    /// The folder; made (0700) when missing.
    pub path: PathBuf,
    /// The most that the whole folder may take; at it, `append` answers [`AppendError::Full`].
    pub bytes_max: u64,
    /// What must stay free on the file system; below it, `append` answers [`AppendError::DiskLow`].
    pub free_bytes_min: u64,
    /// A generation is sealed once its file has this size.
    pub generation_bytes: u64,
    /// lz4 for frames that it makes smaller.
    pub compression: bool,
    /// What is kept after the ack.
    pub retain: Retain,
    /// The writer waits this long for more records before a commit; zero: not at all.
    pub linger: Duration,
    /// Which idempotency keys are remembered.
    pub keys: KeysOptions,
}

/// Where a batch is: on disk, `first_seq ..= last_seq`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Receipt {
    /// The sequence of the first record.
    pub first_seq: Sequence,
    /// The sequence of the last record.
    pub last_seq: Sequence,
}

/// `trimmed <= acked <= committed < next`, always.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Watermarks {
    /// Everything up to here is no longer on disk.
    pub trimmed: Sequence,
    /// Everything up to here is settled: acknowledged by Kafka, held, or dead-lettered.
    pub acked: Sequence,
    /// Everything up to here is on disk.
    pub committed: Sequence,
    /// The sequence that the next record gets.
    pub next: Sequence,
}

/// What an operator wants to know of the log.
#[derive(Debug, Clone, Default)]
pub struct Status {
    /// Of the main log.
    pub watermarks: Watermarks,
    /// Records that wait: committed - acked, without sequences that no record has.
    pub backlog_records: u64,
    /// Encoded bytes of the backlog before compression: exact for whole generations, in proportion within
    /// one; a generation from before the last start counts as large as its file until it is read.
    pub backlog_bytes: u64,
    /// What all logs of the folder take on disk.
    pub disk_bytes: u64,
    /// `bytes_max`.
    pub capacity_bytes: u64,
    /// What the file system has left.
    pub free_bytes: u64,
    /// What new records may still take until they are refused.
    pub room_bytes: u64,
    /// Of the main log.
    pub generations: u64,
    /// Records that were committed and cannot be read: found since the start, or before it and not
    /// dismissed (what was set aside is still there).
    pub corruption_records: u64,
    /// Why the log has stopped, if it has.
    pub poisoned: Option<String>,
    /// Why `append` would be refused now, if it would.
    pub refusing: Option<String>,
    /// Records in the held lane.
    pub held_records: u64,
    /// Records among the dead letters.
    pub dead_letters: u64,
    /// What a commit of the last minute took on average, milliseconds; `None`: there was none.
    pub commit_ms_average: Option<f64>,
    /// What the slowest of them took.
    pub commit_ms_max: Option<f64>,
}

/// Records for one commit, encoded by their caller: on disk whole or not at all.
#[derive(Debug, Default)]
pub struct Batch {
    bytes: Vec<u8>,
    ends: Vec<usize>,
    key: Option<Reservation>,
}

impl Batch {
    /// An empty one.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a record.
    pub fn push(&mut self, record: &Record) {
        // It is written field by field: at once, instead of growing each time.
        let lengths = ENCODED_BYTES_MORE + 2 * MORE_PER_LENGTH * record.headers.len();
        self.bytes.reserve(record.payload_bytes() + lengths);
        self.push_encoded(record);
    }

    fn push_encoded(&mut self, value: &impl Encode) {
        let start = self.bytes.len();
        match bincode::encode_into_std_write(value, &mut self.bytes, ENCODING) {
            Ok(_) => self.ends.push(self.bytes.len()),
            // Writing to memory does not fail, and these types have no state that cannot be encoded.
            Err(error) => {
                tracing::error!(%error, "a record does not encode");
                self.bytes.truncate(start);
            }
        }
    }

    /// Says that these records are what a key stands for: with them it is known, and without them it is nobody's. How many
    /// they are is filled in. The last to be done: after it no record is added.
    pub fn remember(&mut self, mut reservation: Reservation, mut idempotency: Idempotency, received_ms: i64) {
        let Some(end) = self.ends.first().copied() else { return };
        idempotency.records = u32::try_from(self.len()).unwrap_or(u32::MAX);
        let mut encoded = Vec::new();
        if let Err(error) = bincode::encode_into_std_write(Some(&idempotency), &mut encoded, ENCODING) {
            // As in `push_encoded`.
            tracing::error!(%error, "a key does not encode");
            return;
        }
        // It is the last field of the first record, of which nothing takes one byte.
        self.bytes.splice(end - 1..end, encoded.iter().copied());
        self.ends.iter_mut().for_each(|end| *end += encoded.len() - 1);
        reservation.is_for(&idempotency, received_ms);
        self.key = Some(reservation);
    }

    /// How many records it has.
    #[must_use]
    pub fn len(&self) -> usize {
        self.ends.len()
    }

    /// Whether it has none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.ends.is_empty()
    }

    /// Encoded bytes.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.bytes.len()
    }

    fn entries(&self) -> impl Iterator<Item = &[u8]> + Clone {
        let starts = std::iter::once(0).chain(self.ends.iter().copied());
        starts
            .zip(&self.ends)
            .map(|(start, end)| self.bytes.get(start..*end).unwrap_or_default())
    }
}

/// Resolves once the batch is on disk or refused: a future, and [`wait`](Self::wait) for threads.
#[derive(Debug)]
#[must_use]
pub struct Commit(oneshot::Receiver<Result<Receipt, AppendError>>);

impl Commit {
    fn new(receiver: oneshot::Receiver<Result<Receipt, AppendError>>) -> Self {
        Self(receiver)
    }

    /// Blocks the thread. Not for use inside an async task.
    ///
    /// # Errors
    /// Why the batch is not in the log.
    pub fn wait(self) -> Result<Receipt, AppendError> {
        self.0.blocking_recv().unwrap_or(Err(AppendError::Closed))
    }
}

impl Future for Commit {
    type Output = Result<Receipt, AppendError>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        Pin::new(&mut self.0)
            .poll(context)
            .map(|answer| answer.unwrap_or(Err(AppendError::Closed)))
    }
}

struct Inner {
    id: WalId,
    options: Options,
    main: Log,
    held: OnceLock<Log>,
    letters: OnceLock<DeadLetters>,
    /// Held while a side log is made.
    making: Mutex<()>,
    quota: Arc<Quota>,
    poison: Arc<Poison>,
    lock: std::fs::File,
}

impl Inner {
    fn logs(&self) -> impl Iterator<Item = &Log> {
        let side = [self.held.get(), self.letters.get().map(DeadLetters::log)];
        std::iter::once(&self.main).chain(side.into_iter().flatten())
    }

    fn close(&self) -> std::io::Result<()> {
        for log in self.logs() {
            log.close();
        }
        self.lock.unlock()
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        if let Err(error) = self.close() {
            tracing::debug!(%error, "the lock goes with the process");
        }
    }
}

/// The write-ahead log of one gateway: one folder, one process. Cheap to clone.
#[derive(Clone)]
pub struct Wal {
    inner: Arc<Inner>,
}

impl Wal {
    /// Opens the folder, or makes it. Takes about as long as reading the newest generation.
    ///
    /// # Errors
    /// [`OpenError`] says what to do.
    pub fn open(options: Options) -> Result<Self, OpenError> {
        let (lock, id) = identity::claim(&options.path)?;
        durable::prove(&options.path).map_err(|source| OpenError::NotDurable {
            path: options.path.clone(),
            source,
        })?;
        let quota = Arc::new(Quota::new(
            options.path.clone(),
            options.bytes_max,
            options.free_bytes_min,
        ));
        let poison = Arc::new(Poison::default());
        let main = Log::open(
            LogOptions {
                folder: options.path.clone(),
                name: MAIN,
                generation_bytes: options.generation_bytes,
                compression: options.compression,
                retain: options.retain,
                linger: options.linger,
                reserve: false,
                keys: Some(options.keys),
            },
            Arc::clone(&quota),
            Arc::clone(&poison),
        )?;
        let wal = Self {
            inner: Arc::new(Inner {
                id,
                options,
                main,
                held: OnceLock::new(),
                letters: OnceLock::new(),
                making: Mutex::default(),
                quota,
                poison,
                lock,
            }),
        };
        for part in Part::ALL {
            let path = &wal.inner.options.path;
            if let Some(gone) = Gone::look(path, part).map_err(OpenError::io("read", path))? {
                tracing::error!(log = part.name(), "{gone}: {}", gone.advice());
            }
        }
        if wal.side_folder(HELD).exists() {
            wal.held_or_create()?;
        }
        if wal.side_folder(LETTERS).exists() {
            wal.letters()?;
        }
        wal.watch()?;
        Ok(wal)
    }

    /// The identity: in the header of every record that leaves here.
    #[must_use]
    pub fn id(&self) -> WalId {
        self.inner.id
    }

    /// The main log.
    #[must_use]
    pub fn log(&self) -> &Log {
        &self.inner.main
    }

    /// The held lane, if anything was ever held.
    #[must_use]
    pub fn held(&self) -> Option<Log> {
        self.inner.held.get().cloned()
    }

    /// The held lane, made if there is none yet.
    ///
    /// # Errors
    /// As [`open`](Self::open).
    pub fn held_or_create(&self) -> Result<Log, OpenError> {
        let _making = lock(&self.inner.making);
        if let Some(held) = self.inner.held.get() {
            return Ok(held.clone());
        }
        let held = self.open_side(HELD)?;
        Ok(self.inner.held.get_or_init(|| held).clone())
    }

    /// Blocks until the letters are on disk. One that waits there already (by its origin) is not added again; one
    /// that was requeued and failed again waits again, with the time of its first failure.
    /// Returns how many were written.
    ///
    /// # Errors
    /// None of them was added then.
    pub fn add_dead_letters(&self, letters: &[Letter]) -> Result<usize, AppendError> {
        let place = self.letters().map_err(|error| {
            tracing::error!(%error, "the dead letters cannot be opened; the records stay in the log");
            AppendError::Busy { queue_bytes_max: 0 }
        })?;
        place.add(letters)
    }

    fn letters(&self) -> Result<&DeadLetters, OpenError> {
        let _making = lock(&self.inner.making);
        if let Some(letters) = self.inner.letters.get() {
            return Ok(letters);
        }
        let log = self.open_side(LETTERS)?;
        let letters = DeadLetters::load(&log)
            .inspect_err(|_| log.close())
            .map_err(|error| OpenError::Io {
                what: "read",
                path: error.path,
                source: error.source,
            })?;
        Ok(self.inner.letters.get_or_init(|| letters))
    }

    fn side_folder(&self, name: &str) -> PathBuf {
        self.inner.options.path.join(name)
    }

    fn open_side(&self, name: &'static str) -> Result<Log, OpenError> {
        let options = &self.inner.options;
        gone::remember(&options.path, name).map_err(OpenError::io("write", &options.path))?;
        let log = Log::open(
            LogOptions {
                folder: self.side_folder(name),
                name,
                generation_bytes: options.generation_bytes.min(SIDE_GENERATION_BYTES_MAX),
                compression: options.compression,
                retain: Retain::Off,
                linger: Duration::ZERO,
                reserve: true,
                keys: None,
            },
            Arc::clone(&self.inner.quota),
            Arc::clone(&self.inner.poison),
        )?;
        // Before it has any record.
        gone::made(&options.path, name)
            .inspect_err(|_| log.close())
            .map_err(OpenError::io("write", &options.path))?;
        Ok(log)
    }

    /// Counts, sizes and limits, computed now.
    #[must_use]
    pub fn status(&self) -> Status {
        self.settle_letters();
        let inner = &self.inner;
        let watermarks = inner.main.watermarks();
        let times = inner.main.commit_times();
        let held = self.held().map(|held| held.watermarks()).unwrap_or_default();
        Status {
            watermarks,
            backlog_records: inner.main.waiting(watermarks),
            backlog_bytes: inner.main.backlog_bytes(),
            disk_bytes: self.inner.logs().map(Log::disk_bytes).sum(),
            capacity_bytes: inner.quota.bytes_max(),
            free_bytes: inner.quota.free(),
            room_bytes: inner.quota.room(),
            generations: inner.main.generations() as u64,
            corruption_records: self.inner.logs().map(Log::damaged).sum(),
            poisoned: inner.poison.reason(),
            refusing: inner
                .quota
                .check(REQUEST_BYTES_TYPICAL, false)
                .err()
                .map(|error| error.to_string())
                .or_else(|| inner.main.stuck()),
            held_records: self.held().map_or(0, |log| log.waiting(held)),
            dead_letters: inner.letters.get().map_or(0, DeadLetters::count),
            commit_ms_average: times.map(|times| times.average_ms),
            commit_ms_max: times.map(|times| times.max_ms),
        }
    }

    /// Resolves with the reason when any of its logs has stopped for good. Then the process should end with
    /// exit code 75: a restart finds out what is on disk.
    pub async fn poisoned(&self) -> String {
        self.inner.poison.wait().await
    }

    /// Commits what is queued, ends the threads, fsyncs the witness. Blocks. Appends are refused from now on.
    ///
    /// # Errors
    /// When the log was poisoned.
    pub fn close(&self) -> Result<(), AppendError> {
        if let Err(error) = self.inner.close() {
            tracing::debug!(%error, "the lock goes with the process");
        }
        self.inner.poison.check()
    }

    /// Poisons the log when a commit hangs.
    fn watch(&self) -> Result<(), OpenError> {
        let inner = Arc::downgrade(&self.inner);
        let watch = move || {
            while let Some(wal) = inner.upgrade().map(|inner| Wal { inner }) {
                if wal.inner.logs().any(|log| log.commit_age() > COMMIT_TIME_MAX) {
                    wal.inner.poison.set(format!(
                        "a commit has been waiting for the disk for over {COMMIT_TIME_MAX:?}"
                    ));
                    return;
                }
                wal.settle_letters();
                drop(wal);
                std::thread::sleep(Duration::from_secs(1));
            }
        };
        std::thread::Builder::new()
            .name("wal watchdog".to_owned())
            .spawn(watch)
            .map(drop)
            .map_err(OpenError::io("start a thread for", &self.inner.options.path))
    }
}

const MAIN: &str = "main";
const HELD: &str = "held";
const LETTERS: &str = "dead-letters";
