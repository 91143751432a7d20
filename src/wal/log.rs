//! One log: a row of generations, a writer, a housekeeper, a witness, and four watermarks.
//!
//! The main log, the held lane and the dead letters are each one of these, in a folder of its own, under one
//! lock, one identity and one quota (`mod.rs`). Entries are bytes here; what they mean is the caller's.
//!
//! Start: names of the generations, witness, scan of the newest one (about 64 MiB); the others are scanned
//! when they are read. Then a fresh generation begins where the scan ended, so that opening 50 GB is as quick
//! as opening nothing.

use std::fs;
use std::io;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use super::error::{AckError, AppendError, OpenError};
use super::generation::Generation;
use super::generations::{Place, Retain, Row};
use super::housekeeper::Chores;
use super::idempotency::{KeyId, Keys, KeysOptions, Reserved};
use super::latency::{CommitTimes, Latency};
use super::poison::Poison;
use super::quota::Quota;
use super::ranges::{self, Range};
use super::reader::{Reader, View};
use super::signal::Signal;
use super::witness::{Marks, Witness};
use super::writer::Queue;
use super::{Batch, Commit, MAIN, Watermarks, durable, generations, housekeeper, keys, recovery, rewind, writer};
use crate::record::{Sequence, now_ms};

/// How one log is opened.
#[derive(Debug, Clone)]
pub struct LogOptions {
    /// The folder.
    pub folder: PathBuf,
    /// "main", "held", "dead-letters": in messages and thread names.
    pub name: &'static str,
    /// A generation is sealed once its file has so many bytes.
    pub generation_bytes: u64,
    /// lz4 where it makes a frame smaller.
    pub compression: bool,
    /// What is kept after the ack.
    pub retain: Retain,
    /// The writer waits this long for company.
    pub linger: Duration,
    /// May use the reserve of the quota.
    pub reserve: bool,
    /// Which idempotency keys are remembered; `None`: it has none, as the side logs.
    pub keys: Option<KeysOptions>,
}

/// An outgrown generation waits this long for the next one, which is being made: no longer than a client would.
const NEXT_WAIT_MAX: Duration = Duration::from_secs(5);

/// What the threads of a log share.
pub struct Shared {
    pub(super) options: LogOptions,
    pub(super) queue: Queue,
    pub(super) row: Mutex<Row>,
    pub(super) witness: Mutex<Witness>,
    pub(super) quota: Arc<Quota>,
    pub(super) poison: Arc<Poison>,
    pub(super) chores: Chores,
    pub(super) next: AtomicU64,
    committed: AtomicU64,
    pub(super) acked: AtomicU64,
    /// The idempotency keys of its records; `None`: a side log.
    pub(super) keys: Option<Arc<Keys>>,
    /// See [`Log::resend`].
    pub(super) resend: AtomicU64,
    /// When the commit under way began, or was last flushed in between, by [`clock_ms`](Self::clock_ms); 0: none is.
    pub(super) commit_began_ms: AtomicU64,
    pub(super) latency: Latency,
    /// When the last commit ended that had many requests on a quick disk, as `commit_began_ms`.
    pub(super) pressed_ms: AtomicU64,
    /// Bytes of the live generation's file after the last commit.
    live_bytes: AtomicU64,
    /// Bytes of what was set aside as damaged: they count, and only an operator removes them.
    pub(super) aside_bytes: AtomicU64,
    damaged: AtomicU64,
    opened: Instant,
    subscribers: Mutex<Vec<Weak<Signal>>>,
}

/// A lock whose holder cannot leave it half changed: a panic in between loses nothing.
pub fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// One log. Cheap to clone.
#[derive(Clone)]
pub struct Log {
    pub(super) shared: Arc<Shared>,
    threads: Arc<Mutex<Vec<JoinHandle<()>>>>,
}

impl Log {
    /// Opens the log in `options.folder`, or makes it, and begins a fresh generation.
    pub(super) fn open(options: LogOptions, quota: Arc<Quota>, poison: Arc<Poison>) -> Result<Self, OpenError> {
        let folder = options.folder.clone();
        fs::create_dir_all(&folder).map_err(OpenError::io("create", &folder))?;
        durable::sync_parent(&folder).map_err(OpenError::io("fsync the parent of", &folder))?;
        let (witness, marks) = Witness::open(&folder).map_err(OpenError::io("open the witness in", &folder))?;
        let mut row = Row::load(&folder).map_err(OpenError::io("read", &folder))?;
        let trimmed = row.first().map_or(0, |first| first - 1);
        if marks.is_none() && row.newest().is_some() {
            tracing::warn!(
                log = options.name,
                "the witness is missing or damaged: what Kafka acknowledged is not known; records from sequence {} on \
                 are sent again, with the identity they had",
                trimmed + 1
            );
        }
        let is_main = options.name == MAIN;
        let recovered = recovery::recover(&mut row, marks, is_main, options.name)?;
        let acked = marks.map_or(trimmed, |marks| marks.acked);
        let next = recovered.next;
        if let Some(void) = recovered.void {
            row.pass_over(&folder, void, acked)
                .map_err(OpenError::io("write what is passed over in", &folder))?;
        }
        recovery::remove_unused(&folder, &recovered.unused, options.name)?;
        let keys = match options.keys {
            Some(options) => Some(Arc::new(keys::load(&folder, &row, next, options, now_ms())?)),
            None => None,
        };
        let prepared = Row::prepare(&folder).map_err(|source| OpenError::Io {
            what: "make a generation in",
            path: folder.clone(),
            source,
        })?;
        let newest =
            Row::put_to_use(&folder, prepared, next).map_err(OpenError::io("begin a generation in", &folder))?;
        row.push(newest);
        let resend = rewind::read_mark(&folder).map_err(OpenError::io("read the mark of a rewind in", &folder))?;
        let aside_bytes = generations::folder_bytes(&folder.join(generations::DAMAGED));
        let first = row.first().unwrap_or(next);
        let unsent = generations::aside(&folder).and_then(|aside| row.remember_unsent(&aside));
        let unsent = unsent.map_err(OpenError::io("read what was set aside in", &folder))?;
        let shared = Arc::new(Shared {
            options,
            queue: Queue::default(),
            row: Mutex::new(row),
            witness: Mutex::new(witness),
            quota,
            poison,
            chores: Chores::default(),
            next: AtomicU64::new(next),
            committed: AtomicU64::new(next - 1),
            acked: AtomicU64::new(acked.min(next - 1)),
            keys,
            resend: AtomicU64::new(resend),
            commit_began_ms: AtomicU64::new(0),
            latency: Latency::default(),
            pressed_ms: AtomicU64::new(0),
            live_bytes: AtomicU64::new(0),
            aside_bytes: AtomicU64::new(aside_bytes),
            damaged: AtomicU64::new(unsent),
            opened: Instant::now(),
            subscribers: Mutex::default(),
        });
        if acked + 1 < first {
            shared.note_damage(acked + 1, first - 1, "their generation is gone");
        }
        for (first, last) in recovered.damaged {
            shared.note_damage(first, last, "found at start");
        }
        let gone = {
            let row = lock(&shared.row);
            let told = row.told();
            // What a salvage could not save and Kafka has is among the former.
            let told = told.iter().filter(|(_, last)| *last > acked);
            let told = told.map(|(first, last)| ((*first).max(acked + 1), *last));
            told.chain(row.unsent().iter().copied()).collect::<Vec<_>>()
        };
        gone.iter().for_each(|(first, last)| shared.forget_keys(*first, *last));
        lock(&shared.witness)
            .write(Marks {
                committed: next - 1,
                acked: acked.min(next - 1),
            })
            .map_err(OpenError::io("write the witness in", &folder))?;
        shared.quota.moved(0, shared.disk_bytes());
        // Before a generation of the start before may go.
        if let Err(error) = housekeeper::checkpoint(&shared) {
            tracing::warn!(%error, "{}", housekeeper::NO_CHECKPOINT);
        }
        // Space that is free already must not be waited for by who looks at the quota next.
        if let Err(error) = housekeeper::retire(&shared) {
            tracing::warn!(log = shared.options.name, %error, "acknowledged generations cannot be removed; tried again");
        }
        let log = Self {
            shared,
            threads: Arc::default(),
        };
        log.forget_mark(log.shared.acked_sequence());
        match log.start_threads() {
            Ok(()) => Ok(log),
            Err(source) => {
                log.close();
                log.shared.quota.moved(log.disk_bytes(), 0);
                Err(OpenError::Io {
                    what: "start a thread for",
                    path: folder,
                    source,
                })
            }
        }
    }

    fn start_threads(&self) -> io::Result<()> {
        for (role, body) in [
            ("writer", writer::run as fn(&Arc<Shared>)),
            ("housekeeper", housekeeper::run as fn(&Arc<Shared>)),
        ] {
            let shared = Arc::clone(&self.shared);
            let thread = std::thread::Builder::new()
                .name(format!("{} {role}", shared.options.name))
                .spawn(move || body(&shared))?;
            lock(&self.threads).push(thread);
        }
        Ok(())
    }

    /// Queues a batch: all of it goes to disk or none. The [`Commit`] resolves once the fdatasync that covers
    /// it returned. An empty batch comes to nothing: its receipt ends before it begins.
    ///
    /// # Errors
    /// At once where the answer is known already; otherwise the [`Commit`] has it.
    pub fn append(&self, batch: Batch) -> Result<Commit, AppendError> {
        self.shared.poison.check()?;
        self.shared
            .queue
            .push(batch, self.shared.options.reserve)
            .map(Commit::new)
    }

    /// Asks for an idempotency key at the time `now_ms`, before the body of its request is read.
    #[must_use]
    pub fn reserve(&self, key: KeyId, now_ms: i64) -> Reserved {
        let keys = self.shared.keys.as_ref();
        keys.map_or(Reserved::Off, |keys| keys.reserve(key, now_ms))
    }

    /// The four watermarks: `trimmed <= acked <= committed < next`.
    #[must_use]
    pub fn watermarks(&self) -> Watermarks {
        // Read from the lowest to the highest, so that a change in between cannot turn the order round.
        let trimmed = lock(&self.shared.row).first().map_or(0, |first| first - 1);
        let acked = self.shared.acked.load(Ordering::Acquire);
        let committed = self.shared.committed_sequence();
        let next = self.shared.next.load(Ordering::Acquire);
        Watermarks {
            trimmed: trimmed.min(acked),
            acked,
            committed,
            next: next.max(committed + 1),
        }
    }

    /// Everything up to here is on disk.
    #[must_use]
    pub fn committed(&self) -> Sequence {
        self.shared.committed_sequence()
    }

    /// A reader that begins at `from`, or at the first record that is still there.
    #[must_use]
    pub fn reader(&self, from: Sequence) -> Reader {
        let view: Arc<Shared> = Arc::clone(&self.shared);
        Reader::new(view, from)
    }

    /// Everything up to `watermark` is settled: generations that hold nothing above it go (unless retained).
    /// A watermark below the last one changes nothing.
    ///
    /// # Errors
    /// A watermark above what is committed: nothing is changed then.
    pub fn ack(&self, watermark: Sequence) -> Result<(), AckError> {
        let shared = &self.shared;
        let committed = shared.committed.load(Ordering::Acquire);
        if watermark > committed {
            return Err(AckError { watermark, committed });
        }
        if shared.acked.fetch_max(watermark, Ordering::AcqRel) >= watermark {
            return Ok(());
        }
        let marked = {
            let mut witness = lock(&shared.witness);
            let marks = witness.marks();
            witness.write(Marks {
                acked: watermark.max(marks.acked),
                committed: marks.committed.max(watermark),
            })
        };
        if let Err(error) = marked {
            // Not poison: nothing is lost by it, a restart sends some records again.
            tracing::warn!(%error, "the witness cannot be written; after a restart some records may be sent again");
        }
        self.forget_mark(watermark);
        if lock(&shared.row).may_retire(shared.removable(), shared.options.retain, false) {
            shared.chores.wake();
        }
        Ok(())
    }

    /// `signal` is notified after each commit while it minds them, until it is dropped.
    pub fn subscribe(&self, signal: &Arc<Signal>) {
        lock(&self.shared.subscribers).push(Arc::downgrade(signal));
    }

    /// Commits what is queued, ends the threads, fsyncs the witness.
    pub(super) fn close(&self) {
        self.shared.queue.close();
        self.shared.chores.close();
        for thread in lock(&self.threads).drain(..) {
            // One that hangs on a dead disk may hold locks, and never ends: the process is about to.
            if self.shared.poison.reason().is_some() && !finishes_within(&thread, HUNG_AFTER) {
                return;
            }
            if thread.join().is_err() {
                self.shared.poison.set("a thread of the log panicked".to_owned());
            }
        }
        if let Err(error) = lock(&self.shared.witness).sync() {
            tracing::warn!(%error, "the witness cannot be fsynced; after a power loss some records may be sent again");
        }
    }

    pub(super) fn disk_bytes(&self) -> u64 {
        self.shared.disk_bytes()
    }

    /// Why nothing can be appended although there is space, if so.
    pub(super) fn stuck(&self) -> Option<String> {
        let outgrown = self.shared.live_bytes() >= self.shared.outgrown_bytes();
        (outgrown && self.shared.chores.cannot_prepare()).then(|| AppendError::Outgrown.to_string())
    }

    /// Waits, `limit` at most, while the live generation is full and the next one is not ready: it would grow, in memory too.
    /// For who writes as fast as the log takes it and is in no hurry. Whether there is room then.
    #[must_use]
    pub fn wait_for_room(&self, limit: Duration) -> bool {
        let shared = &self.shared;
        let since = Instant::now();
        let is_full = || shared.live_bytes() >= shared.options.generation_bytes;
        while is_full() && !shared.chores.has_prepared() {
            if since.elapsed() >= limit {
                return false;
            }
            shared.chores.wake();
            std::thread::sleep(Duration::from_millis(5));
        }
        true
    }

    pub(super) fn generations(&self) -> usize {
        lock(&self.shared.row).count()
    }

    pub(super) fn damaged(&self) -> u64 {
        self.shared.damaged.load(Ordering::Relaxed)
    }

    pub(super) fn backlog_bytes(&self) -> u64 {
        let marks = self.watermarks();
        lock(&self.shared.row).backlog_bytes(marks.acked, marks.committed)
    }

    /// Everything up to here is settled. Waits for nobody.
    #[must_use]
    pub fn acked(&self) -> Sequence {
        self.shared.acked_sequence()
    }

    /// Whether the record was committed and not acknowledged when it was found that it cannot be read; until that is dismissed.
    /// May wait for the disk.
    #[must_use]
    pub fn is_lost(&self, seq: Sequence) -> bool {
        ranges::has(lock(&self.shared.row).unsent(), seq)
    }

    /// Whether the sequence holds nothing, and that is no news: a start passed over it, or a salvage could not save it. May wait
    /// for the disk.
    #[must_use]
    pub fn is_passed_over(&self, seq: Sequence) -> bool {
        let told = lock(&self.shared.row).told();
        ranges::has(&told, seq)
    }

    /// Records that cannot be read, as far as is known.
    #[must_use]
    pub fn has_losses(&self) -> bool {
        self.damaged() > 0
    }

    /// The sequence `records` before `end`; those that no record has are not counted, so that it may be further back, by
    /// `span` at most.
    #[must_use]
    pub fn back(&self, end: Sequence, records: u64, span: u64) -> Sequence {
        let told = lock(&self.shared.row).told();
        ranges::back(end, records, &told).max(end.saturating_sub(span))
    }

    /// How many records wait, by these watermarks: sequences that no record has are none.
    pub(super) fn waiting(&self, marks: Watermarks) -> u64 {
        let told = lock(&self.shared.row).told();
        ranges::count_unknown(marks.acked + 1, marks.committed, &told)
    }

    /// How long the commits of the last minute took.
    pub(super) fn commit_times(&self) -> Option<CommitTimes> {
        self.shared.latency.last_minute(self.shared.clock_ms() / 1000)
    }

    /// Whether so many clients wait for commits, on a quick disk, that the processors must be what they wait for. For who has time.
    #[must_use]
    pub fn is_pressed(&self) -> bool {
        let ms = self.shared.pressed_ms.load(Ordering::Relaxed);
        ms > 0 && self.shared.clock_ms().saturating_sub(ms) <= PRESSED_MS
    }

    /// How long the commit under way has taken.
    pub(super) fn commit_age(&self) -> Duration {
        match self.shared.commit_began_ms.load(Ordering::Relaxed) {
            0 => Duration::ZERO,
            began => Duration::from_millis(self.shared.clock_ms().saturating_sub(began)),
        }
    }
}

/// So long after a commit with many requests it is taken that more of them come.
const PRESSED_MS: u64 = 10;
/// A thread of a poisoned log that takes longer to end is left behind.
const HUNG_AFTER: Duration = Duration::from_secs(1);

fn finishes_within(thread: &JoinHandle<()>, limit: Duration) -> bool {
    let deadline = Instant::now() + limit;
    while !thread.is_finished() && Instant::now() < deadline {
        std::thread::sleep(Duration::from_millis(5));
    }
    thread.is_finished()
}

/// Poisons the log when a thread of it ends by a panic (inside sled): alive but dead is the worst state.
pub struct PoisonOnPanic<'a>(pub &'a Shared);

impl Drop for PoisonOnPanic<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let error = self.0.poison.set("a thread of the log panicked".to_owned());
            self.0.queue.refuse_all(&error);
        }
    }
}

impl View for Shared {
    fn committed(&self) -> Sequence {
        self.committed_sequence()
    }

    fn acked(&self) -> Sequence {
        self.acked_sequence()
    }

    fn place(&self, sequence: Sequence) -> Option<Place> {
        lock(&self.row).place(sequence)
    }

    fn told(&self) -> Arc<[Range]> {
        lock(&self.row).told()
    }

    fn damaged(&self, first: Sequence, last: Sequence, reason: &str) {
        self.note_damage(first, last, reason);
    }

    fn scanned(&self, first: Sequence, raw_bytes: u64) {
        lock(&self.row).note_raw_bytes(first, raw_bytes);
    }
}

impl Shared {
    /// Milliseconds since the log was opened, at least 1.
    pub(super) fn clock_ms(&self) -> u64 {
        u64::try_from(self.opened.elapsed().as_millis())
            .unwrap_or(u64::MAX)
            .max(1)
    }

    /// Everything up to here is on disk.
    pub(super) fn committed_sequence(&self) -> Sequence {
        self.committed.load(Ordering::SeqCst)
    }

    /// Everything up to here is settled.
    pub(super) fn acked_sequence(&self) -> Sequence {
        self.acked.load(Ordering::Acquire)
    }

    /// Up to here nothing is needed any more: settled, and its keys are in the file.
    pub(super) fn removable(&self) -> Sequence {
        let through = self.keys.as_ref().map_or(Sequence::MAX, |keys| keys.through());
        self.acked_sequence().min(through)
    }

    /// The generation to write to: rotates when the live one is full and the next one is ready. When it is
    /// not (the disk is slow, or full), the live one takes more, up to four times its size.
    pub(super) fn live_for_write(&self) -> Result<Arc<Generation>, AppendError> {
        let full = self.options.generation_bytes;
        let size = self.live_bytes();
        if size >= full {
            let outgrown = size >= self.outgrown_bytes();
            let prepared = match outgrown {
                true => self.chores.wait_prepared(NEXT_WAIT_MAX),
                false => self.chores.take_prepared(),
            };
            match prepared {
                Some(prepared) => self.rotate(prepared)?,
                None if outgrown => return Err(AppendError::Outgrown),
                None => {}
            }
        }
        lock(&self.row)
            .newest()
            .and_then(|newest| newest.live.clone())
            .ok_or_else(|| self.poison.set("there is no generation to write to".to_owned()))
    }

    /// Bytes of the live generation's file after the last commit.
    pub(super) fn live_bytes(&self) -> u64 {
        self.live_bytes.load(Ordering::Relaxed)
    }

    /// A live generation of this size takes no more.
    pub(super) fn outgrown_bytes(&self) -> u64 {
        self.options.generation_bytes.saturating_mul(4)
    }

    /// Space is short, and everything is settled: the live generation is closed, so that it can go too.
    pub(super) fn rotate_to_free(&self) -> Result<(), AppendError> {
        let idle = self.acked_sequence() == self.committed_sequence();
        if idle
            && self.live_bytes() > 0
            && let Some(prepared) = self.chores.take_prepared()
        {
            return self.rotate(prepared);
        }
        Ok(())
    }

    fn rotate(&self, prepared: (PathBuf, Generation)) -> Result<(), AppendError> {
        let first = self.next.load(Ordering::Acquire);
        // The disk is waited for without the row's lock: readers and metrics go on.
        let rotated = lock(&self.witness)
            .sync()
            .and_then(|()| Row::put_to_use(&self.options.folder, prepared, first));
        match rotated {
            Ok(entry) => {
                let sealed = lock(&self.row).push(entry);
                self.live_bytes.store(0, Ordering::Relaxed);
                self.chores.put_sealed(sealed);
                Ok(())
            }
            Err(error) => Err(self.poison.set(format!("beginning a new generation failed: {error}"))),
        }
    }

    /// Bytes of the log's folder.
    pub(super) fn disk_bytes(&self) -> u64 {
        let keys = self
            .keys
            .as_ref()
            .map_or(0, |keys| keys.file_bytes.load(Ordering::Relaxed));
        lock(&self.row).disk_bytes() + self.aside_bytes.load(Ordering::Relaxed) + keys
    }

    /// A commit is on disk and in the witness.
    pub(super) fn committed(&self, last: Sequence, bytes: u64, live: &Generation) {
        {
            let mut row = lock(&self.row);
            if let Some(newest) = row.newest_mut() {
                newest.raw_bytes = Some(newest.raw_bytes.unwrap_or(0) + bytes);
                if let Ok(size) = live.data_bytes() {
                    self.live_bytes.store(size, Ordering::Relaxed);
                    self.quota.moved(newest.disk_bytes, size);
                    newest.disk_bytes = size;
                }
            }
        }
        // In one order with the flag that `Signal::committed` looks at: no commit is missed.
        self.committed.store(last, Ordering::SeqCst);
        lock(&self.subscribers).retain(|subscriber| match subscriber.upgrade() {
            Some(signal) => {
                signal.committed();
                true
            }
            None => false,
        });
    }

    /// Kafka cannot get these records from here any more.
    fn forget_keys(&self, first: Sequence, last: Sequence) {
        let Some(keys) = &self.keys else { return };
        let forgotten = keys.forget(first, last);
        if forgotten > 0 {
            // The file still has them.
            keys.owed.store(true, Ordering::Relaxed);
            tracing::warn!(
                first,
                last,
                "the Idempotency-Keys of {forgotten} requests are forgotten, because records of theirs are lost: where a client \
                 sends such a request again, it is stored again"
            );
        }
    }

    /// Sequences that were committed and cannot be read: counted once, told, and their generation is set
    /// aside instead of removed when its time comes.
    pub(super) fn note_damage(&self, first: Sequence, last: Sequence, reason: &str) {
        let new = lock(&self.row).note_damage(&self.options.folder, (first, last), self.acked_sequence());
        let acked = self.acked_sequence();
        for (first, last) in new.iter().filter(|(_, last)| *last > acked) {
            self.forget_keys((*first).max(acked + 1), *last);
        }
        let (first, last) = new
            .first()
            .zip(new.last())
            .map_or((first, last), |(one, other)| (one.0, other.1));
        let new = ranges::count(&new);
        if new > 0 {
            self.damaged.fetch_add(new, Ordering::Relaxed);
            metrics::counter!(crate::metrics::WAL_CORRUPTION_RECORDS_TOTAL).increment(new);
            tracing::error!(
                log = self.options.name,
                first,
                last,
                reason,
                "records that were on disk can no longer be read; the rest goes on; once that is acknowledged, what is left \
                 of their generation is put into the folder 'damaged', not deleted, and 'wal verify' tells of them until \
                 it is removed from there: check the disk"
            );
        }
    }
}
