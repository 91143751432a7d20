//! Dead letters for operators: a list, one of them whole, which are meant by a verb.
//!
//! The same for a log that is open and for a folder that only lies there: both have a reader over the entries, and a
//! register that says which of them are letters still.

use std::collections::HashSet;
use std::time::Instant;

use serde::{Deserialize, Serialize};

use super::Limits;
use super::item::Item;
use crate::record::{Origin, Sequence, WalId};
use crate::wal::{Archive, Letter, LetterState, Log, Part, Read, ReadError, Reader, Register, Wal, Which};

/// How much is read at once.
const CHUNK_BYTES: usize = 1 << 20;

/// How many entries are looked at at once on the way back from the end.
const BACKWARDS: Sequence = 256;

/// A letter in a list.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LetterItem {
    /// The identity of the WAL that first took the record.
    pub wal: String,
    /// Its sequence there.
    pub seq: Sequence,
    /// Where it was to go.
    pub topic: String,
    /// Its key, as text.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub key: Option<String>,
    /// Its key, where that is no text.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub key_base64: Option<String>,
    /// Bytes of topic, key, value and headers.
    pub bytes: usize,
    /// When the gateway received it, milliseconds since the epoch.
    pub received_ms: i64,
    /// See [`Failure`].
    #[serde(flatten)]
    pub failure: Failure,
}

/// Why a record is a dead letter, and what is to become of it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Failure {
    /// Kafka's name for the error.
    pub code: String,
    /// The error in words.
    pub reason: String,
    /// When it first failed.
    pub first_failed_ms: i64,
    /// When it last failed.
    pub last_failed_ms: i64,
    /// What is to become of it.
    pub state: State,
}

/// What is to become of a letter.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum State {
    /// An operator has to decide.
    Waiting,
    /// It is on its way to Kafka again, and removed once it is there.
    Requeued,
}

impl State {
    /// As in JSON.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Waiting => "waiting",
            Self::Requeued => "requeued",
        }
    }
}

/// A letter, whole: a line of `dead-letters export`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct WholeLetter {
    /// The record.
    #[serde(flatten)]
    pub record: Item,
    /// Why it is here.
    #[serde(flatten)]
    pub failure: Failure,
}

/// Which letters a list shows.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct LetterQuery {
    /// From this place in the letters' log on: `next` of the page before.
    pub from: Option<Sequence>,
    /// The most of them.
    pub limit: Option<usize>,
    /// Those that came last, the newest first; that is one page, without a next one.
    pub newest: bool,
    /// Of this topic.
    pub topic: Option<String>,
    /// With headers and value.
    pub whole: bool,
}

/// A piece of the list.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct LetterPage<T> {
    /// The letters, in the order in which they came.
    pub items: Vec<T>,
    /// Where to go on; none: that was all.
    pub next: Option<Sequence>,
    /// Letters that cannot be read.
    #[serde(skip_serializing_if = "Vec::is_empty", default)]
    pub damaged: Vec<(Sequence, Sequence)>,
}

/// One letter's name.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Name {
    /// The identity of the WAL that first took it; none: this one.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub wal: Option<String>,
    /// Its sequence there.
    pub seq: Sequence,
}

/// Which letters a verb is for: exactly one of the members.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Selection {
    /// All of them.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub all: bool,
    /// These.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub letters: Option<Vec<Name>>,
    /// Those of a topic.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub topic: Option<String>,
    /// Only count them.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub dry_run: bool,
    /// Go on with what an answer had as `left`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub within: Option<(Sequence, Sequence)>,
}

/// How many letters were requeued.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Requeued {
    /// How many.
    pub requeued: u64,
    /// See [`Discarded::left`].
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub left: Option<(Sequence, Sequence)>,
}

/// How many letters, or held records, were discarded.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Discarded {
    /// How many.
    pub discarded: u64,
    /// There are more than an answer has time for: ask again, with this as `within`.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub left: Option<(Sequence, Sequence)>,
}

impl Name {
    /// The identity that it means, in the log `own`.
    ///
    /// # Errors
    /// In words, what is wrong with it.
    pub fn origin(&self, own: WalId) -> Result<Origin, String> {
        let wal = match &self.wal {
            None => own,
            Some(wal) => (wal.parse::<WalId>()).map_err(|error| format!("\"wal\": {wal:?} is no UUID ({error})"))?,
        };
        Ok(Origin {
            wal: *wal.0.as_bytes(),
            seq: self.seq,
        })
    }
}

impl std::fmt::Display for Name {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match &self.wal {
            Some(wal) => write!(f, "{wal}:{}", self.seq),
            None => write!(f, "{}", self.seq),
        }
    }
}

impl std::str::FromStr for Name {
    type Err = String;

    /// `WAL:SEQ`, or `SEQ` of this log.
    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || format!("{text:?} is no letter: write WAL:SEQ as `dead-letters list` shows it, or SEQ alone");
        let (wal, seq) = match text.rsplit_once(':') {
            Some((wal, seq)) => (Some(wal.parse::<WalId>().map_err(|_| wrong())?.to_string()), seq),
            None => (None, text),
        };
        let seq = seq.parse().map_err(|_| wrong())?;
        Ok(Self { wal, seq })
    }
}

impl Selection {
    /// What it means in the log `own`.
    ///
    /// # Errors
    /// In words, what to write.
    pub fn which(&self, own: WalId) -> Result<Which, String> {
        match (self.all, &self.letters, &self.topic) {
            (true, None, None) => Ok(Which::All),
            (false, None, Some(topic)) => Ok(Which::Topic(topic.clone())),
            (false, Some(letters), None) => {
                let origins: Result<HashSet<Origin>, String> = letters.iter().map(|name| name.origin(own)).collect();
                origins.map(Which::These)
            }
            _ => Err(
                "say which letters: exactly one of {\"all\":true}, {\"topic\":\"NAME\"} and {\"letters\":[{\"wal\":\"UUID\",\
                 \"seq\":1}]}"
                    .to_owned(),
            ),
        }
    }
}

/// The letters of a log.
pub struct Letters {
    own: WalId,
    register: Known,
    /// `None`: there never were any.
    reader: Option<Reader>,
    first: Sequence,
    last: Sequence,
}

/// Where a read ends, whichever comes first.
#[derive(Clone, Copy)]
struct End {
    before: Sequence,
    records: usize,
    bytes: usize,
    at: Instant,
}

enum Known {
    Open(Wal),
    Folder(Register),
}

impl Letters {
    /// Of an open log, read by what `reader` gives of its log and first sequence.
    #[must_use]
    pub fn open(wal: &Wal, reader: impl FnOnce(&Log, Sequence) -> Reader) -> Self {
        let log = wal.letters_log();
        let marks = log.as_ref().map(Log::watermarks).unwrap_or_default();
        let first = marks.acked + 1;
        Self {
            own: wal.id(),
            reader: log.map(|log| reader(&log, first)),
            register: Known::Open(wal.clone()),
            first,
            last: marks.committed,
        }
    }

    /// Of a folder: reads all of the letters' log once.
    ///
    /// # Errors
    /// The system could not read it.
    pub fn folder(archive: &Archive, own: WalId) -> Result<Self, ReadError> {
        let mut register = Register::default();
        let log = archive.log(Part::DeadLetters);
        let marks = log.map(|log| log.watermarks()).unwrap_or_default();
        let first = marks.acked + 1;
        let mut reader = log.map(|log| log.reader(first));
        while let Some(reader) = &mut reader {
            match reader.read(CHUNK_BYTES)? {
                Read::Nothing => break,
                Read::Damaged { .. } => {}
                Read::Records(chunk) => register.take_chunk(&chunk),
            }
        }
        register.settle(archive.log(Part::Main).map_or(0, |main| main.watermarks().acked));
        Ok(Self {
            own,
            register: Known::Folder(register),
            reader,
            first,
            last: marks.committed,
        })
    }

    /// The reader, for the next page.
    #[must_use]
    pub fn into_reader(self) -> Option<Reader> {
        self.reader
    }

    /// How many there are.
    #[must_use]
    pub fn count(&self) -> u64 {
        match &self.register {
            Known::Open(wal) => wal.status().dead_letters,
            Known::Folder(register) => register.count(),
        }
    }

    fn get(&self, origin: &Origin) -> Option<(Sequence, LetterState)> {
        match &self.register {
            Known::Open(wal) => wal.letter(origin),
            Known::Folder(register) => register.get(origin),
        }
    }

    /// The next letters that match, made by `make`.
    ///
    /// # Errors
    /// The system could not read the log.
    pub fn page<T>(
        &mut self,
        query: &LetterQuery,
        limits: Limits,
        make: impl Fn(WalId, Letter, LetterState) -> T,
    ) -> Result<LetterPage<T>, ReadError> {
        let mut page = LetterPage {
            items: Vec::new(),
            next: None,
            damaged: Vec::new(),
        };
        let Some(mut reader) = self.reader.take() else {
            return Ok(page);
        };
        let end = End {
            before: Sequence::MAX,
            records: query.limit.unwrap_or(limits.records_max).min(limits.records_max),
            bytes: limits.bytes_max,
            at: Instant::now() + limits.time_max,
        };
        let read = match query.newest {
            true => self.fill_backwards(&mut reader, query, end, &mut page, &make),
            false => {
                reader.seek(query.from.unwrap_or(self.first).max(self.first));
                self.fill(&mut reader, query, &end, &mut page, &make)
            }
        };
        self.reader = Some(reader);
        read.map(|()| page)
    }

    /// The last ones, the newest first.
    fn fill_backwards<T>(
        &self,
        reader: &mut Reader,
        query: &LetterQuery,
        end: End,
        page: &mut LetterPage<T>,
        make: &impl Fn(WalId, Letter, LetterState) -> T,
    ) -> Result<(), ReadError> {
        let mut before = self.last + 1;
        while before > self.first && page.items.len() < end.records && Instant::now() < end.at {
            let from = before.saturating_sub(BACKWARDS).max(self.first);
            // All of the piece: which of it are the last ones shows at its end.
            let piece_end = End {
                before,
                records: usize::MAX,
                bytes: usize::MAX,
                ..end
            };
            let mut piece = LetterPage {
                items: Vec::new(),
                next: None,
                damaged: Vec::new(),
            };
            reader.seek(from);
            self.fill(reader, query, &piece_end, &mut piece, make)?;
            page.items.extend(piece.items.into_iter().rev());
            page.damaged.append(&mut piece.damaged);
            before = from;
        }
        page.items.truncate(end.records);
        Ok(())
    }

    fn fill<T>(
        &self,
        reader: &mut Reader,
        query: &LetterQuery,
        end: &End,
        page: &mut LetterPage<T>,
        make: &impl Fn(WalId, Letter, LetterState) -> T,
    ) -> Result<(), ReadError> {
        let mut bytes = 0;
        while reader.position() < end.before {
            if Instant::now() >= end.at {
                page.next = Some(reader.position());
                return Ok(());
            }
            let chunk = match reader.read(CHUNK_BYTES)? {
                Read::Nothing => return Ok(()),
                Read::Damaged { told: true, .. } => continue,
                Read::Damaged { first, last, .. } => {
                    page.damaged.push((first, last));
                    continue;
                }
                Read::Records(chunk) => chunk,
            };
            for (at, entry) in chunk.entries().take_while(|(at, _)| *at < end.before) {
                let Ok(letter) = Letter::decode(entry) else {
                    page.damaged.push((at, at));
                    continue;
                };
                let wanted = query.topic.as_ref().is_none_or(|topic| letter.record.topic == *topic);
                let state = match self.get(&letter.origin) {
                    Some((place, state)) if place == at && wanted && !letter.record.topic.is_empty() => state,
                    _ => continue,
                };
                if page.items.len() >= end.records || bytes >= end.bytes {
                    page.next = Some(at);
                    return Ok(());
                }
                bytes += letter.record.payload_bytes();
                page.items.push(make(self.own, letter, state));
            }
        }
        Ok(())
    }

    /// One letter.
    ///
    /// # Errors
    /// The system could not read the log.
    pub fn one(&mut self, origin: &Origin) -> Result<Option<WholeLetter>, ReadError> {
        let (Some((at, state)), Some(reader)) = (self.get(origin), &mut self.reader) else {
            return Ok(None);
        };
        reader.seek(at);
        let Read::Records(chunk) = reader.read(1)? else {
            return Ok(None);
        };
        let entry = chunk.entries().find(|(place, _)| *place == at);
        let letter = entry.and_then(|(_, bytes)| Letter::decode(bytes).ok());
        Ok(letter.map(|letter| WholeLetter::of(self.own, letter, state)))
    }
}

impl Failure {
    fn of(letter: &Letter, state: LetterState) -> Self {
        Self {
            code: letter.code.clone(),
            reason: letter.reason.clone(),
            first_failed_ms: letter.first_failed_ms,
            last_failed_ms: letter.last_failed_ms,
            state: match state {
                LetterState::Waiting => State::Waiting,
                LetterState::Requeued(_) => State::Requeued,
            },
        }
    }
}

impl WholeLetter {
    /// A letter of the log `own`.
    #[must_use]
    pub fn of(own: WalId, letter: Letter, state: LetterState) -> Self {
        let failure = Failure::of(&letter, state);
        let mut record = letter.record;
        record.origin = Some(letter.origin);
        // It has no place in the main log any more: its identity is all that it is known by.
        let mut record = Item::of(own, letter.origin.seq, &record.borrowed());
        record.sequence = None;
        Self { record, failure }
    }
}

impl LetterItem {
    /// What verbs call it.
    #[must_use]
    pub fn name(&self) -> Name {
        Name {
            wal: Some(self.wal.clone()),
            seq: self.seq,
        }
    }

    /// A letter of the log `own`.
    #[must_use]
    pub fn of(own: WalId, letter: Letter, state: LetterState) -> Self {
        let bytes = letter.record.payload_bytes();
        let WholeLetter { record, failure } = WholeLetter::of(own, letter, state);
        Self {
            wal: record.wal,
            seq: record.seq,
            topic: record.topic,
            key: record.key,
            key_base64: record.key_base64,
            bytes,
            received_ms: record.received_ms,
            failure,
        }
    }
}

#[cfg(test)]
mod tests;
