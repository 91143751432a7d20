//! Records that Kafka can never take, kept with the reason until an operator decides.
//!
//! A log of its own in the folder `dead-letters`, made when the first letter comes. A letter is fsynced before
//! the main log's watermark passes its record, and added once however often that is tried.
//!
//! The log is only ever appended to. A letter without a topic is no letter but says what became of one, by its
//! origin: code "removed", or code "requeued" with the main log's sequence (decimal) as its reason. A requeued
//! letter is removed once the main log's watermark has passed that sequence; a record that fails again comes as a
//! letter anew, which takes the place of the old one. If that sequence cannot be read, code "waiting" says that the
//! letter waits as before: it is the last good copy. The beginning of the log in which nothing is left is acked.
//!
//! Knows nothing of why Kafka refused.

use std::collections::{HashMap, HashSet};
use std::sync::{Mutex, TryLockError};
use std::time::Instant;

use bincode::{Decode, Encode};

use super::error::AppendError;
use super::log::{Log, lock};
use super::reader::Read;
use super::{Batch, ReadError, Wal};
use crate::record::{DECODING, Origin, Record, Sequence};

/// How much is read at once.
const READ_BYTES: usize = 1024 * 1024;
/// Records of letters that go back to the log in one commit.
const REQUEUE_RECORDS_MAX: usize = 1000;
/// Their payload bytes, about; one letter is always taken.
const REQUEUE_BYTES_MAX: usize = 4 << 20;
/// What became of letters is written in commits of so many.
const EVENTS_MAX: usize = 10_000;
const REMOVED: &str = "removed";
const REQUEUED: &str = "requeued";
const WAITING: &str = "waiting";

/// One record that Kafka refused when it was sent alone.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
pub struct Letter {
    /// Who it is: the WAL that first took it, and its sequence there.
    pub origin: Origin,
    /// The record.
    pub record: Record,
    /// Kafka's name for the error, for example `MessageSizeTooLarge`.
    pub code: String,
    /// The error in words.
    pub reason: String,
    /// When it first failed, milliseconds since the Unix epoch.
    pub first_failed_ms: i64,
    /// When it last failed.
    pub last_failed_ms: i64,
}

impl Letter {
    /// An entry of the letters' log.
    ///
    /// # Errors
    /// In words, why its bytes are none.
    pub fn decode(bytes: &[u8]) -> Result<Self, String> {
        bincode::decode_from_slice(bytes, DECODING)
            .map(|(letter, _)| letter)
            .map_err(|error| error.to_string())
    }

    /// What became of the letter `origin`.
    fn event(origin: Origin, code: &str, reason: String) -> Self {
        Self {
            origin,
            record: Record {
                topic: String::new(),
                key: None,
                value: None,
                headers: Vec::new(),
                received_ms: 0,
                origin: None,
                idempotency: None,
            },
            code: code.to_owned(),
            reason,
            first_failed_ms: 0,
            last_failed_ms: 0,
        }
    }
}

/// What is to become of a letter.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LetterState {
    /// An operator has to decide.
    Waiting,
    /// It is on its way to Kafka again, under this sequence of the main log; once that is settled it is removed.
    Requeued(Sequence),
}

/// Which letters are meant.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Which {
    /// All of them.
    All,
    /// Those of a topic.
    Topic(String),
    /// These.
    These(HashSet<Origin>),
}

/// The part of a verb over letters that is done at once: a caller who must answer in time goes on from what is left.
#[derive(Debug, Clone, Copy, Default)]
pub struct Piece {
    /// Only letters that lie within these places of the letters' log, both included; `None`: all that are there now.
    pub within: Option<(Sequence, Sequence)>,
    /// Stop some time behind this; `None`: when all is done.
    pub until: Option<Instant>,
}

impl Piece {
    fn is_over(&self) -> bool {
        self.until.is_some_and(|until| Instant::now() >= until)
    }
}

/// What a verb over letters came to.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Handled {
    /// How many letters.
    pub letters: u64,
    /// The time was over before these places were looked at: [`Piece::within`] of the next piece.
    pub left: Option<(Sequence, Sequence)>,
}

/// Not all of the letters were requeued or discarded.
#[derive(Debug, thiserror::Error)]
#[error(
    "{done} dead letters were done, then it ended: {source}. The others are as they were: try again once that is mended"
)]
pub struct LettersError {
    /// How many were.
    pub done: u64,
    /// Why no more.
    #[source]
    pub source: LettersCause,
}

/// See [`LettersError`].
#[derive(Debug, thiserror::Error)]
pub enum LettersCause {
    /// A log takes nothing.
    #[error(transparent)]
    Append(#[from] AppendError),
    /// The letters cannot be read.
    #[error(transparent)]
    Read(#[from] ReadError),
}

#[derive(Debug, Clone, Copy)]
struct Known {
    at: Sequence,
    state: LetterState,
    first_failed_ms: i64,
}

/// Which letters are there, where they lie, and their state: what the entries of the log come to. About 100 bytes
/// a letter.
#[derive(Debug, Default)]
pub struct Register {
    known: HashMap<Origin, Known>,
}

impl Register {
    /// Takes the next entry of the log, which lies at `at`.
    pub fn take(&mut self, at: Sequence, letter: &Letter) {
        if !letter.record.topic.is_empty() {
            let known = Known {
                at,
                state: LetterState::Waiting,
                first_failed_ms: letter.first_failed_ms,
            };
            self.known.insert(letter.origin, known);
        } else if letter.code == REMOVED {
            self.known.remove(&letter.origin);
        } else if let (WAITING, Some(known)) = (letter.code.as_str(), self.known.get_mut(&letter.origin)) {
            known.state = LetterState::Waiting;
        } else if let (REQUEUED, Ok(sequence)) = (letter.code.as_str(), letter.reason.parse())
            && let Some(known) = self.known.get_mut(&letter.origin)
        {
            known.state = LetterState::Requeued(sequence);
        }
    }

    /// Takes what a read of the log found; what does not decode is told.
    pub fn take_chunk(&mut self, chunk: &super::Chunk) {
        for (at, bytes) in chunk.entries() {
            match Letter::decode(bytes) {
                Ok(letter) => self.take(at, &letter),
                Err(error) => tracing::error!(sequence = at, %error, "a dead letter does not decode; it is left"),
            }
        }
    }

    /// Where the letter lies, and its state.
    #[must_use]
    pub fn get(&self, origin: &Origin) -> Option<(Sequence, LetterState)> {
        self.known.get(origin).map(|known| (known.at, known.state))
    }

    /// The state of the letter that lies at `at`; `None`: what lies there is none (any more).
    #[must_use]
    pub fn state(&self, at: Sequence, origin: &Origin) -> Option<LetterState> {
        let (place, state) = self.get(origin)?;
        (place == at).then_some(state)
    }

    /// How many there are.
    #[must_use]
    pub fn count(&self) -> u64 {
        self.known.len() as u64
    }

    /// Forgets what was requeued and is settled in the main log, whose watermark is `acked`.
    pub fn settle(&mut self, acked: Sequence) {
        self.known
            .retain(|_, known| !matches!(known.state, LetterState::Requeued(sequence) if sequence <= acked));
    }

    fn oldest(&self) -> Option<Sequence> {
        self.known.values().map(|known| known.at).min()
    }

    /// Those that wait and are meant; by topic they cannot be told.
    fn waiting(&self, which: &Which, (first, last): (Sequence, Sequence)) -> Vec<Origin> {
        let meant = |origin: &Origin| match which {
            Which::All | Which::Topic(_) => true,
            Which::These(these) => these.contains(origin),
        };
        (self.known.iter())
            .filter(|(origin, known)| known.state == LetterState::Waiting && meant(origin))
            .filter(|(_, known)| (first..=last).contains(&known.at))
            .map(|(origin, _)| *origin)
            .collect()
    }
}

/// The letters of one WAL.
pub(super) struct DeadLetters {
    log: Log,
    /// Held from a look at the register until what follows from it is on disk.
    changing: Mutex<()>,
    register: Mutex<Register>,
}

impl DeadLetters {
    pub(super) fn load(log: &Log) -> Result<Self, ReadError> {
        let mut register = Register::default();
        let mut reader = log.reader(log.watermarks().acked + 1);
        loop {
            match reader.read(READ_BYTES)? {
                Read::Nothing => break,
                Read::Damaged { .. } => {}
                Read::Records(chunk) => register.take_chunk(&chunk),
            }
        }
        Ok(Self {
            log: log.clone(),
            changing: Mutex::default(),
            register: Mutex::new(register),
        })
    }

    pub(super) fn count(&self) -> u64 {
        lock(&self.register).count()
    }

    pub(super) fn log(&self) -> &Log {
        &self.log
    }

    fn waits(&self, origin: &Origin) -> bool {
        let known = lock(&self.register).get(origin);
        known.is_some_and(|(_, state)| state == LetterState::Waiting)
    }

    /// Blocks until all are on disk; returns how many were not there, or had been requeued and failed again.
    pub(super) fn add(&self, letters: &[Letter]) -> Result<usize, AppendError> {
        let _changing = lock(&self.changing);
        let mut fresh: Vec<Letter> = Vec::new();
        let mut added = HashSet::new();
        for letter in letters {
            let known = lock(&self.register).known.get(&letter.origin).copied();
            if known.is_some_and(|known| known.state == LetterState::Waiting) || !added.insert(letter.origin) {
                continue;
            }
            let mut letter = letter.clone();
            if let Some(known) = known {
                letter.first_failed_ms = known.first_failed_ms;
            }
            fresh.push(letter);
        }
        self.write(&fresh)?;
        Ok(fresh.len())
    }

    /// Appends entries, waits for the disk, and takes them into the register.
    fn write(&self, entries: &[Letter]) -> Result<(), AppendError> {
        if entries.is_empty() {
            return Ok(());
        }
        let mut batch = Batch::new();
        entries.iter().for_each(|entry| batch.push_encoded(entry));
        let receipt = self.log.append(batch)?.wait()?;
        let mut register = lock(&self.register);
        for (at, entry) in (receipt.first_seq..).zip(entries) {
            register.take(at, entry);
        }
        Ok(())
    }

    /// The places that a piece is about. Not those that come meanwhile: what was requeued may be back already.
    fn places(&self, piece: Piece) -> (Sequence, Sequence) {
        let marks = self.log.watermarks();
        let (first, last) = piece.within.unwrap_or((0, Sequence::MAX));
        (first.max(marks.acked + 1), last.min(marks.committed))
    }

    /// Gives the letters that wait, in order, to `visit`; what of the piece is left when its time is over.
    fn visit(
        &self,
        which: &Which,
        piece: Piece,
        mut visit: impl FnMut(Letter) -> Result<(), LettersCause>,
    ) -> Result<Option<(Sequence, Sequence)>, LettersCause> {
        let (first, last) = self.places(piece);
        let mut reader = self.log.reader(first);
        while reader.position() <= last {
            // Something is done before it, in every piece.
            if reader.position() > first && piece.is_over() {
                return Ok(Some((reader.position(), last)));
            }
            let chunk = match reader.read(READ_BYTES)? {
                Read::Records(chunk) => chunk,
                Read::Damaged { .. } => continue,
                Read::Nothing => break,
            };
            for (at, bytes) in chunk.entries().filter(|(at, _)| *at <= last) {
                let Ok(letter) = Letter::decode(bytes) else { continue };
                let meant = match which {
                    Which::All => true,
                    Which::Topic(topic) => letter.record.topic == *topic,
                    Which::These(these) => these.contains(&letter.origin),
                };
                if meant && lock(&self.register).state(at, &letter.origin) == Some(LetterState::Waiting) {
                    visit(letter)?;
                }
            }
        }
        Ok(None)
    }

    /// Appends the records of letters to the `main` log, with the identity they had.
    fn requeue(&self, main: &Log, which: &Which, piece: Piece) -> Result<Handled, LettersError> {
        let (mut done, mut bytes) = (0, 0);
        let mut group: Vec<Letter> = Vec::new();
        let mut visited = self.visit(which, piece, |letter| {
            bytes += letter.record.payload_bytes();
            group.push(letter);
            if group.len() >= REQUEUE_RECORDS_MAX || bytes >= REQUEUE_BYTES_MAX {
                bytes = 0;
                done += self.requeue_group(main, std::mem::take(&mut group))?;
            }
            Ok(())
        });
        if let Ok(left) = visited {
            visited = self.requeue_group(main, group).map(|count| {
                done += count;
                left
            });
        }
        match visited {
            Ok(left) => Ok(Handled { letters: done, left }),
            Err(source) => Err(LettersError { done, source }),
        }
    }

    fn requeue_group(&self, main: &Log, mut group: Vec<Letter>) -> Result<u64, LettersCause> {
        // Until the mark is on disk, or a record that fails at once would be marked as on its way for ever.
        let _changing = lock(&self.changing);
        group.retain(|letter| self.waits(&letter.origin));
        if group.is_empty() {
            return Ok(0);
        }
        let mut batch = Batch::new();
        let mut origins = Vec::with_capacity(group.len());
        for mut letter in group {
            letter.record.origin = Some(letter.origin);
            letter.record.idempotency = None;
            batch.push(&letter.record);
            origins.push(letter.origin);
        }
        let receipt = main.append(batch)?.wait()?;
        // A crash here sends the records all the same; requeued again they carry the identity they had.
        let events = (receipt.first_seq..).zip(origins);
        let events: Vec<Letter> = events
            .map(|(sequence, origin)| Letter::event(origin, REQUEUED, sequence.to_string()))
            .collect();
        self.write(&events)?;
        Ok(events.len() as u64)
    }

    /// Requeued letters wait again whose places in the main log, `first` to `last`, cannot be read; returns how many.
    fn keep(&self, first: Sequence, last: Sequence) -> Result<u64, AppendError> {
        let _changing = lock(&self.changing);
        let lost = |known: &Known| matches!(known.state, LetterState::Requeued(at) if (first..=last).contains(&at));
        let events: Vec<Letter> = (lock(&self.register).known.iter())
            .filter(|(_, known)| lost(known))
            .map(|(origin, _)| Letter::event(*origin, WAITING, String::new()))
            .collect();
        for group in events.chunks(EVENTS_MAX) {
            self.write(group)?;
        }
        Ok(events.len() as u64)
    }

    /// Removes letters that wait.
    fn discard(&self, which: &Which, piece: Piece) -> Result<Handled, LettersError> {
        let (mut origins, mut left) = (Vec::new(), None);
        let places = self.places(piece);
        if let Which::Topic(_) = which {
            let visited = self.visit(which, piece, |letter| {
                origins.push(letter.origin);
                Ok(())
            });
            left = visited.map_err(|source| LettersError { done: 0, source })?;
        } else {
            origins = lock(&self.register).waiting(which, places);
        }
        let _changing = lock(&self.changing);
        let mut done = 0;
        for group in origins.chunks(EVENTS_MAX) {
            // What was found by its topic is removed: it would not be found again.
            if done > 0 && left.is_none() && !matches!(which, Which::Topic(_)) && piece.is_over() {
                left = Some(places);
                break;
            }
            let gone: Vec<Origin> = group.iter().filter(|origin| self.waits(origin)).copied().collect();
            self.write(&removed(&gone)).map_err(|error| LettersError {
                done,
                source: error.into(),
            })?;
            done += gone.len() as u64;
        }
        self.trim();
        Ok(Handled { letters: done, left })
    }

    /// Removes what was requeued and is settled by now. Never waits: neither for the disk, which may forget it
    /// (then it is removed again), nor for who is changing something.
    pub(super) fn settle(&self, main: &Log) {
        let _changing = match self.changing.try_lock() {
            Ok(changing) => changing,
            Err(TryLockError::Poisoned(changing)) => changing.into_inner(),
            Err(TryLockError::WouldBlock) => return,
        };
        // A record that failed again became a letter before the watermark passed it.
        let acked = main.watermarks().acked;
        let done: Vec<Origin> = (lock(&self.register).known.iter())
            .filter(|(_, known)| matches!(known.state, LetterState::Requeued(sequence) if sequence <= acked))
            .map(|(origin, _)| *origin)
            .take(EVENTS_MAX)
            .collect();
        if !done.is_empty() {
            let mut batch = Batch::new();
            removed(&done).iter().for_each(|event| batch.push_encoded(event));
            match self.log.append(batch) {
                Ok(commit) => drop(commit),
                Err(error) => {
                    tracing::debug!(%error, "delivered dead letters cannot be removed yet");
                    return;
                }
            }
            let mut register = lock(&self.register);
            for origin in &done {
                register.known.remove(origin);
            }
        }
        if !done.is_empty() || self.count() == 0 {
            self.trim();
        }
    }

    /// Acks the beginning of the log in which nothing is left.
    fn trim(&self) {
        let marks = self.log.watermarks();
        let oldest = lock(&self.register).oldest();
        let end = oldest.map_or(marks.committed, |oldest| marks.committed.min(oldest - 1));
        if end > marks.acked
            && let Err(error) = self.log.ack(end)
        {
            tracing::debug!(%error, "the dead letters' log keeps what was removed");
        }
    }
}

fn removed(origins: &[Origin]) -> Vec<Letter> {
    let event = |origin: &Origin| Letter::event(*origin, REMOVED, String::new());
    origins.iter().map(event).collect()
}

impl Wal {
    /// The log of the dead letters, if there ever was one. Which of its entries are letters, [`Self::letter`] says.
    #[must_use]
    pub fn letters_log(&self) -> Option<Log> {
        self.settle_letters();
        Some(self.inner.letters.get()?.log.clone())
    }

    /// Where the letter lies in [`Self::letters_log`], and its state.
    #[must_use]
    pub fn letter(&self, origin: &Origin) -> Option<(Sequence, LetterState)> {
        lock(&self.inner.letters.get()?.register).get(origin)
    }

    /// How many letters are meant; by topic too. Blocks on the disk for those of a topic.
    ///
    /// # Errors
    /// They cannot be read.
    pub fn count_letters(&self, which: &Which) -> Result<u64, LettersError> {
        let Some(letters) = self.inner.letters.get() else {
            return Ok(0);
        };
        if !matches!(which, Which::Topic(_)) {
            let all = (0, Sequence::MAX);
            return Ok(lock(&letters.register).waiting(which, all).len() as u64);
        }
        let mut count = 0;
        let visited = letters.visit(which, Piece::default(), |_| {
            count += 1;
            Ok(())
        });
        visited
            .map(|_| count)
            .map_err(|source| LettersError { done: 0, source })
    }

    /// Sends letters once more, in the order of their log and with the identity they had: they are appended to the
    /// main log, and removed once they are settled there. Blocks. Those that are on their way already are not sent
    /// twice.
    ///
    /// # Errors
    /// A log takes nothing, or cannot be read.
    pub fn requeue_letters(&self, which: &Which, piece: Piece) -> Result<Handled, LettersError> {
        self.settle_letters();
        let letters = self.inner.letters.get();
        letters.map_or(Ok(Handled::default()), |letters| {
            letters.requeue(&self.inner.main, which, piece)
        })
    }

    /// The main log's records `first` to `last` cannot be read: letters that were requeued there wait again. To be
    /// called before the watermark passes them. Blocks. Returns how many.
    ///
    /// # Errors
    /// The letters' log takes nothing.
    pub fn keep_letters(&self, first: Sequence, last: Sequence) -> Result<u64, AppendError> {
        let Some(letters) = self.inner.letters.get() else {
            return Ok(0);
        };
        let kept = letters.keep(first, last)?;
        if kept > 0 {
            tracing::warn!(
                letters = kept,
                "records that had been requeued cannot be read in the log any more; their dead letters wait as before"
            );
        }
        Ok(kept)
    }

    /// Removes letters that wait, for good. Blocks.
    ///
    /// # Errors
    /// The log takes nothing, or cannot be read.
    pub fn discard_letters(&self, which: &Which, piece: Piece) -> Result<Handled, LettersError> {
        let letters = self.inner.letters.get();
        letters.map_or(Ok(Handled::default()), |letters| letters.discard(which, piece))
    }

    /// Removes requeued letters that are settled.
    pub(super) fn settle_letters(&self) {
        if let Some(letters) = self.inner.letters.get() {
            letters.settle(&self.inner.main);
        }
    }
}

#[cfg(test)]
mod tests;
