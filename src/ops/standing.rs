//! Where a record stands on its way, for its receipt.
//!
//! In this order: what memory says ([`Standing::known`]), then what may have to wait for the disk ([`Lookout::find`]). The lane
//! of held records has no index, so one is made when it is first asked for, and followed from then on: [`HELD_MAX`] records at
//! most. Beyond that, and where a side log has lost records, a record that is settled is not said to be acknowledged.
//!
//! Knows a record by the sequence that its client was told. What came with an identity of its own (an import, a requeued or
//! redirected record) is found under that one.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};

use serde::Serialize;

use super::Letters;
use crate::forward::{self, Place};
use crate::record::{Origin, Sequence};
use crate::wal::{LetterState, Log, Read, ReadError, Wal};

/// How many held records are told apart, in about 8 MB.
const HELD_MAX: usize = 250_000;
/// How much of the lane is read at once.
const CHUNK_BYTES: usize = 1 << 20;

/// See the module.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Standing {
    /// Where it is.
    pub state: Stage,
    /// The partition that it is in, where Kafka has acknowledged it since the gateway's start and few have come since.
    pub partition: Option<i32>,
    /// Its offset there.
    pub offset: Option<i64>,
    /// Why it is not on its usual way.
    pub reason: Option<String>,
}

/// Where a record is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Stage {
    /// On disk, and to be sent.
    Committed,
    /// Kafka has it, or an operator has settled it.
    Acknowledged,
    /// On disk, in the lane: its topic is unknown or denied.
    Held,
    /// On disk, among the dead letters: Kafka can never take it.
    DeadLettered,
    /// It was on disk and cannot be read any more.
    Lost,
    /// No record of this log has that sequence, or nobody can say what became of it.
    Unknown,
}

impl Stage {
    /// Whether it stays so, if nobody intervenes.
    #[must_use]
    pub fn is_final(self) -> bool {
        !matches!(self, Self::Committed | Self::Held)
    }
}

impl Standing {
    fn of(state: Stage) -> Self {
        Self {
            state,
            partition: None,
            offset: None,
            reason: None,
        }
    }

    fn acknowledged(place: Option<Place>) -> Self {
        Self {
            partition: place.map(|place| place.partition),
            offset: place.map(|place| place.offset),
            ..Self::of(Stage::Acknowledged)
        }
    }

    /// With why it is not on its usual way.
    #[must_use]
    pub fn because(state: Stage, reason: impl Into<String>) -> Self {
        Self {
            reason: Some(reason.into()),
            ..Self::of(state)
        }
    }

    /// What memory says at once, of a record that is far ahead or was delivered a short while ago.
    #[must_use]
    pub fn known(log: &Log, forwarder: Option<&forward::Handle>, seq: Sequence) -> Option<Self> {
        if seq == 0 || seq > log.committed() {
            return Some(Self::of(Stage::Unknown));
        }
        if seq > log.acked() {
            return None;
        }
        let place = forwarder?.place(seq)?;
        Some(Self::acknowledged(Some(place)))
    }
}

/// The record that this log first took, as the side logs name it.
fn own(wal: &Wal, seq: Sequence) -> Origin {
    Origin {
        wal: wal.id().0.into_bytes(),
        seq,
    }
}

/// Finds records. One for all who ask.
#[derive(Default)]
pub struct Lookout(Mutex<Lane>);

/// What is known of the lane of held records.
#[derive(Default)]
struct Lane {
    /// From which of its sequences on it was not read yet.
    next: Sequence,
    acked: Sequence,
    /// Where in the lane a record of this log is, by its sequence.
    held: HashMap<Sequence, Sequence>,
    /// There are more than fit.
    is_full: bool,
}

impl Lookout {
    /// Where the record stands. Waits for the disk: not for a runtime's thread.
    ///
    /// # Errors
    /// The log cannot be read.
    pub fn find(&self, wal: &Wal, forwarder: Option<&forward::Handle>, seq: Sequence) -> Result<Standing, ReadError> {
        let log = wal.log();
        // Read first: what is settled meanwhile is in the lane or among the letters by then.
        let acked = log.acked();
        if let Some(known) = Standing::known(log, forwarder, seq) {
            return Ok(known);
        }
        if log.is_lost(seq) {
            let text = "it was on disk and cannot be read any more; where you still have it, send it again";
            return Ok(Standing::because(Stage::Lost, text));
        }
        if log.is_passed_over(seq) {
            let text =
                "no record has this place in the log, or a salvage could not save it: then Kafka has it, or it is lost";
            return Ok(Standing::because(Stage::Unknown, text));
        }
        if seq > acked {
            return Ok(Standing::of(Stage::Committed));
        }
        let origin = own(wal, seq);
        let mut place = None;
        match wal.letter(&origin) {
            Some((_, LetterState::Requeued(again))) if again > acked => return Ok(Standing::of(Stage::Committed)),
            Some((_, LetterState::Requeued(again))) => place = forwarder.and_then(|forwarder| forwarder.place(again)),
            Some((_, LetterState::Waiting)) => {
                let letter = Letters::open(wal, Log::reader).one(&origin)?;
                let reason = letter.map_or_else(
                    || "its letter cannot be read".to_owned(),
                    |letter| letter.failure.reason,
                );
                return Ok(Standing::because(Stage::DeadLettered, reason));
            }
            None => {}
        }
        if place.is_none()
            && let Some(standing) = self.beside(wal, forwarder, seq, acked)?
        {
            return Ok(standing);
        }
        Ok(Standing::acknowledged(place))
    }

    /// Where it is, if it is held; or why nobody can say that it is not.
    fn beside(
        &self,
        wal: &Wal,
        forwarder: Option<&forward::Handle>,
        seq: Sequence,
        acked: Sequence,
    ) -> Result<Option<Standing>, ReadError> {
        let letters = wal.letters_log();
        if let Some(lane) = wal.held() {
            let mut index = self.0.lock().unwrap_or_else(PoisonError::into_inner);
            index.follow(&lane, wal.id().0.into_bytes())?;
            if let Some(at) = index.held.get(&seq).copied() {
                drop(index);
                let topic = topic_at(&lane, at)?;
                let status = forwarder.map(forward::Handle::status).unwrap_or_default();
                let held = status
                    .held_topics
                    .into_iter()
                    .find(|held| Some(&held.topic) == topic.as_ref());
                let reason = held.map_or_else(|| "its topic is held".to_owned(), |held| held.reason);
                return Ok(Some(Standing::because(Stage::Held, reason)));
            }
            if index.is_full {
                let text = format!(
                    "it is settled (up to {acked}), and so many records are held that nobody can say whether it is one of them"
                );
                return Ok(Some(Standing::because(Stage::Committed, text)));
            }
        }
        if letters.into_iter().chain(wal.held()).any(|log| log.has_losses()) {
            let text =
                "Kafka has it, or it was held or dead-lettered and lost: records of these logs cannot be read any more";
            return Ok(Some(Standing::because(Stage::Unknown, text)));
        }
        Ok(None)
    }
}

impl Lane {
    /// Reads what has come since.
    fn follow(&mut self, lane: &Log, own: [u8; 16]) -> Result<(), ReadError> {
        let acked = lane.acked();
        if acked > self.acked {
            self.acked = acked;
            self.held.retain(|_, at| *at > acked);
        }
        if self.is_full {
            // Once there is room for all again, it is read anew.
            if lane.committed() - acked > HELD_MAX as Sequence {
                return Ok(());
            }
            *self = Self {
                acked,
                ..Self::default()
            };
        }
        self.next = self.next.max(acked + 1);
        if self.next > lane.committed() {
            return Ok(());
        }
        let mut reader = lane.reader(self.next);
        loop {
            match reader.read(CHUNK_BYTES)? {
                Read::Nothing => return Ok(()),
                Read::Damaged { last, .. } => self.next = last + 1,
                Read::Records(chunk) => {
                    for (at, record) in chunk.records() {
                        let origin = record
                            .ok()
                            .and_then(|record| record.origin)
                            .filter(|origin| origin.wal == own);
                        if let Some(origin) = origin {
                            self.held.insert(origin.seq, at);
                        }
                        self.next = at + 1;
                    }
                }
            }
            if self.held.len() > HELD_MAX {
                self.is_full = true;
                self.held = HashMap::new();
                return Ok(());
            }
        }
    }
}

/// The topic of a held record, if it is still there.
fn topic_at(lane: &Log, at: Sequence) -> Result<Option<String>, ReadError> {
    let Read::Records(chunk) = lane.reader(at).read(1)? else {
        return Ok(None);
    };
    let record = chunk.records().find(|(sequence, _)| *sequence == at);
    Ok(record
        .and_then(|(_, record)| record.ok())
        .map(|record| record.topic.to_owned()))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::record::Record;
    use crate::wal::{Batch, Letter};

    fn open(folder: &std::path::Path) -> Wal {
        Wal::open(crate::wal::Options {
            path: folder.to_owned(),
            bytes_max: 1 << 30,
            free_bytes_min: 0,
            generation_bytes: 1 << 20,
            compression: true,
            retain: crate::wal::Retain::Off,
            linger: std::time::Duration::ZERO,
            keys: crate::wal::KeysOptions::default(),
        })
        .unwrap()
    }

    fn record(origin: Option<Origin>) -> Record {
        Record {
            topic: "t".into(),
            key: None,
            value: None,
            headers: Vec::new(),
            received_ms: 1,
            origin,
            idempotency: None,
        }
    }

    fn append(log: &Log, origins: impl Iterator<Item = Option<Origin>>) -> Sequence {
        let mut batch = Batch::new();
        for origin in origins {
            batch.push(&record(origin));
        }
        log.append(batch).unwrap().wait().unwrap().last_seq
    }

    #[test]
    fn each_record_is_where_it_is() {
        let folder = tempfile::tempdir().unwrap();
        let wal = open(folder.path());
        let of = |seq| own(&wal, seq);
        append(wal.log(), [None; 10].into_iter());
        let lookout = Lookout::default();
        let state = |seq| lookout.find(&wal, None, seq).unwrap().state;
        assert_eq!(
            (state(0), state(11), state(10)),
            (Stage::Unknown, Stage::Unknown, Stage::Committed)
        );
        // 2 and 4 are held, with a stranger's 3; 5 is a dead letter; 6 and more wait.
        let lane = wal.held_or_create().unwrap();
        let stranger = Origin { wal: [9; 16], seq: 3 };
        append(&lane, [of(2), stranger].into_iter().map(Some));
        wal.log().ack(3).unwrap();
        assert_eq!(
            [1, 2, 3, 4].map(state),
            [Stage::Acknowledged, Stage::Held, Stage::Acknowledged, Stage::Committed]
        );
        append(&lane, [Some(of(4))].into_iter());
        wal.add_dead_letters(&[Letter {
            origin: of(5),
            record: record(None),
            code: "c".into(),
            reason: "too large".into(),
            first_failed_ms: 2,
            last_failed_ms: 3,
        }])
        .unwrap();
        wal.log().ack(5).unwrap();
        assert_eq!(
            [3, 4, 5, 6].map(state),
            [Stage::Acknowledged, Stage::Held, Stage::DeadLettered, Stage::Committed]
        );
        assert_eq!(
            lookout.find(&wal, None, 5).unwrap().reason.as_deref(),
            Some("too large")
        );
        // What leaves the lane is acknowledged; what goes to its end again stays held.
        append(&lane, [Some(of(4))].into_iter());
        lane.ack(3).unwrap();
        assert_eq!([2, 4].map(state), [Stage::Acknowledged, Stage::Held]);
        lane.ack(4).unwrap();
        assert_eq!(state(4), Stage::Acknowledged);
        wal.close().unwrap();
    }

    #[test]
    fn where_too_many_are_held_nothing_is_claimed() {
        let folder = tempfile::tempdir().unwrap();
        let wal = open(folder.path());
        let of = |seq| own(&wal, seq);
        append(wal.log(), [None; 10].into_iter());
        wal.log().ack(10).unwrap();
        let lane = wal.held_or_create().unwrap();
        let mut last = 0;
        for first in (0..=HELD_MAX as Sequence).step_by(10_000) {
            last = append(&lane, (first..first + 10_000).map(|seq| Some(of(100 + seq))));
        }
        let lookout = Lookout::default();
        let state = |seq| lookout.find(&wal, None, seq).unwrap().state;
        assert_eq!([1, 10].map(state), [Stage::Committed; 2]);
        append(&lane, [Some(of(1))].into_iter());
        lane.ack(last).unwrap();
        assert_eq!([1, 10].map(state), [Stage::Held, Stage::Acknowledged]);
        wal.close().unwrap();
    }
}
