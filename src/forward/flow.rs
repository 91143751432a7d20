//! A walk over one log: read, route each record, stop where something must be decided first.
//!
//! A walk can begin anew at any unsettled sequence (`rewind`): slots that are sent or done are passed over,
//! those that wait are routed. That one primitive is what a resend after a lost producer, the end of a pass
//! over the held lane and a full queue come down to. Knows the producer's `send`, not its errors' cure.

use std::collections::{HashMap, HashSet};

use rdkafka::error::RDKafkaErrorCode;

use super::mark::Reached;
use super::pace::Pace;
use super::producer::Producer;
use super::sift::Sift;
use super::topics::{self, Topics};
use super::window::{State, Window};
use crate::kafka::native::{self, Message};
use crate::record::{HEADER_RECEIVED, HEADER_SEQ, HEADER_WAL, Origin, Record, RecordRef, Sequence, WalId};
use crate::wal::{Chunk, Log, Range, Read, ReadError, Reader};

/// Slots of a window: 24 bytes each, and as many records may be looked for in Kafka after a crash.
pub(super) const SLOTS_MAX: usize = 400_000;

/// Why a walk stopped.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Stop {
    /// The chunk is through; more may follow.
    Chunk,
    /// Nothing more is committed, or allowed now.
    End,
    /// librdkafka's queue is full.
    QueueFull,
    /// The window takes no more slots.
    Full,
    /// Kafka must be asked for this topic first.
    Unknown(u32),
    /// The producer, or a topic, failed.
    Failed,
}

/// What a walk left to do.
pub(super) struct Walk {
    pub(super) stop: Stop,
    /// Records to append to the lane, in order; their slots wait until that is committed.
    pub(super) held: Vec<(Sequence, u32, Record)>,
    /// Records that librdkafka refused alone: too large.
    pub(super) letters: Vec<(Sequence, Record, RDKafkaErrorCode)>,
    /// A send that failed for its topic.
    pub(super) refused: Option<(u32, RDKafkaErrorCode)>,
    /// Sequences (first, last) that cannot be read; the slots of those in the window are done.
    pub(super) damaged: Vec<(Sequence, Sequence)>,
    /// Records handed to the producer.
    pub(super) sent: usize,
    /// Runs of records among `held` and `letters`, and where the last one ends.
    aside_runs: usize,
    aside_last: Sequence,
}

/// What a walk needs of the rest.
pub(super) struct Out<'a> {
    pub(super) producer: &'a Producer,
    pub(super) topics: &'a mut Topics,
    pub(super) pace: &'a mut Pace,
    pub(super) identity: &'a Identity,
    pub(super) now_ms: i64,
    /// Records of held topics wait: older ones are still on their way to the end of the lane.
    pub(super) defer_held: bool,
    /// Walk no further than this.
    pub(super) limit: Sequence,
    /// The most runs of records that wait while younger ones are sent.
    pub(super) runs_max: usize,
}

/// This WAL's identity, as bytes and as the header's text.
pub(super) struct Identity {
    pub(super) wal: [u8; 16],
    pub(super) text: String,
}

impl Identity {
    pub(super) fn new(id: WalId) -> Self {
        Self {
            wal: *id.0.as_bytes(),
            text: id.to_string(),
        }
    }

    /// Who the record at `seq` of the main log is.
    pub(super) fn of(&self, seq: Sequence, origin: Option<Origin>) -> Origin {
        origin.unwrap_or(Origin { wal: self.wal, seq })
    }
}

/// One log on its way to Kafka.
pub(super) struct Flow {
    pub(super) log: Log,
    pub(super) window: Window,
    pub(super) sift: Sift,
    /// Records handed out for the current group of the sift.
    pub(super) group_sent: usize,
    /// Known to be in Kafka, or in the lane, although not acknowledged here.
    pub(super) settled: HashSet<Sequence>,
    /// After a rewind: what was in the lane then, by topic. Held again it would only be there twice; but once another
    /// record of its topic came behind it, it must come behind that.
    pub(super) in_lane: HashMap<u32, HashSet<Origin>>,
    /// Where [`Self::settled`] ended when it was last looked at.
    settled_end: Sequence,
    /// 1 for the held lane: part of the opaque.
    lane: bool,
    reader: Option<Reader>,
    chunk: Option<Chunk>,
    /// The watermark that the log was told last.
    pub(super) told: Sequence,
    /// The next sequence to look at.
    pub(super) next: Sequence,
    /// The most slots of the window.
    pub(super) slots_max: usize,
    /// Ranges behind the watermark that Kafka's own watermark told at the start.
    pub(super) adopted: Vec<Range>,
}

impl Flow {
    /// Begins behind the log's watermark.
    pub(super) fn new(log: Log, lane: bool) -> Self {
        let acked = log.watermarks().acked;
        Self {
            log,
            window: Window::new(acked),
            sift: Sift::default(),
            group_sent: 0,
            settled: HashSet::new(),
            in_lane: HashMap::new(),
            settled_end: 0,
            lane,
            reader: None,
            chunk: None,
            told: acked,
            next: acked + 1,
            slots_max: SLOTS_MAX,
            adopted: Vec::new(),
        }
    }

    /// How far it is settled once what is staged is committed.
    pub(super) fn reached(&self) -> Reached {
        let reached = self.window.reached();
        if self.adopted.is_empty() {
            return reached;
        }
        let ranges = reached.beyond.iter().chain(&self.adopted).copied();
        Reached::of(reached.acked, ranges.collect())
    }

    /// In the lane, an entry without a topic marks the end of a pass, which is to be finished after a crash.
    pub(super) fn is_marker(&self, record: &RecordRef<'_>) -> bool {
        self.lane && record.topic.is_empty()
    }

    /// Entries below the watermark, for records that were settled otherwise, are of no more use.
    pub(super) fn forget_settled(&mut self) {
        let acked = self.window.acked();
        // Only once the watermark has passed all that were known: a look at each costs.
        if !self.settled.is_empty() && acked >= self.settled_end {
            self.settled.retain(|seq| *seq > acked);
            self.settled_end = self.settled.iter().max().copied().unwrap_or_default();
        }
    }

    /// The next walk begins at the first record that waits.
    pub(super) fn rewind(&mut self) {
        self.next = self.window.first_waiting();
    }

    /// The record at `seq`, owned.
    ///
    /// # Errors
    /// The log cannot be read.
    pub(super) fn fetch(&mut self, seq: Sequence) -> Result<Option<Record>, ReadError> {
        let find = |chunk: &Chunk| {
            let record = chunk
                .records()
                .find(|(at, _)| *at == seq)
                .and_then(|(_, record)| record.ok());
            record.map(|record| record.to_record())
        };
        // It was just sent, so its chunk is mostly still here.
        if let Some(record) = self.chunk.as_ref().and_then(find) {
            return Ok(Some(record));
        }
        Ok(match self.log.reader(seq).read(1)? {
            Read::Records(chunk) => find(&chunk),
            Read::Damaged { .. } | Read::Nothing => None,
        })
    }

    /// Makes `self.chunk` hold `self.next`. `Ok(None)`: it does.
    fn load(&mut self, bytes_max: usize) -> Result<Option<Walk>, ReadError> {
        if let Some(chunk) = &self.chunk {
            if (chunk.first()..=chunk.last()).contains(&self.next) {
                return Ok(None);
            }
            self.chunk = None;
        }
        let reader = self.reader.get_or_insert_with(|| self.log.reader(self.next));
        if reader.position() != self.next {
            reader.seek(self.next);
        }
        match reader.read(bytes_max)? {
            Read::Nothing => Ok(Some(Walk::stopped(Stop::End))),
            Read::Records(chunk) => {
                let first = chunk.first();
                self.chunk = Some(chunk);
                if first > self.next {
                    return Ok(Some(self.lost(first - 1, false)));
                }
                Ok(None)
            }
            Read::Damaged { last, told, .. } => Ok(Some(self.lost(last, told))),
        }
    }

    /// `self.next ..= last` cannot be read; `told`: no news.
    fn lost(&mut self, last: Sequence, told: bool) -> Walk {
        let first = self.next;
        let log = if self.lane { "held lane" } else { "log" };
        if told {
            tracing::info!(
                "the {log} has no records {first} to {last}: a salvage or a start has told so; the rest goes on"
            );
        } else {
            tracing::error!(
                "records {first} to {last} of the {log} cannot be read and were not sent; the rest goes on. Run \
                 `tidegate wal verify`"
            );
        }
        for seq in first..=last.min(self.window.end() - 1) {
            if !matches!(self.window.state(seq), Some(State::Sent | State::Staged)) {
                self.window.set(seq, State::Done);
            }
        }
        let mut walk = Walk::stopped(Stop::Chunk);
        walk.damaged.push((first, last));
        self.next = last + 1;
        walk
    }

    /// Looks at about `bytes_max` payload bytes from `self.next` on.
    ///
    /// # Errors
    /// The log cannot be read.
    pub(super) fn walk(&mut self, bytes_max: usize, out: &mut Out<'_>) -> Result<Walk, ReadError> {
        if self.next > out.limit {
            return Ok(Walk::stopped(Stop::End));
        }
        // Behind damage the window must be empty before it can go on there.
        if self.next > self.window.end() {
            if !self.window.is_empty() {
                return Ok(Walk::stopped(Stop::End));
            }
            self.window.jump(self.next - 1);
        }
        if let Some(walk) = self.load(bytes_max)? {
            return Ok(walk);
        }
        // Taken out while it is borrowed from.
        let Some(chunk) = self.chunk.take() else {
            return Ok(Walk::stopped(Stop::End));
        };
        let mut walk = Walk::stopped(Stop::Chunk);
        for (seq, record) in chunk.records() {
            if seq < self.next {
                continue;
            }
            if seq > out.limit {
                walk.stop = Stop::End;
                break;
            }
            if let Err(stop) = self.route(seq, record, out, &mut walk) {
                walk.stop = stop;
                break;
            }
            self.next = seq + 1;
        }
        self.group_sent += walk.sent;
        self.chunk = Some(chunk);
        Ok(walk)
    }

    /// One record. `Err`: stop here and look at it again later.
    fn route(
        &mut self,
        seq: Sequence,
        record: Result<RecordRef<'_>, String>,
        out: &mut Out<'_>,
        walk: &mut Walk,
    ) -> Result<(), Stop> {
        match self.window.state(seq) {
            None if self.room() == 0 => return Err(Stop::Full),
            Some(State::Waiting) | None => {}
            Some(State::Sent | State::Staged | State::Done | State::Deferred) => return Ok(()),
        }
        let record = match record {
            Ok(record) => record,
            Err(reason) => {
                if seq == self.window.end() {
                    self.window.push(0, 0, out.now_ms);
                }
                metrics::counter!(crate::metrics::WAL_CORRUPTION_RECORDS_TOTAL).increment(1);
                tracing::error!(
                    "record {seq} cannot be decoded: {reason}. It was not sent; run `tidegate wal show {seq}`"
                );
                self.window.set(seq, State::Done);
                walk.damaged.push((seq, seq));
                return Ok(());
            }
        };
        if self.is_marker(&record) {
            if seq == self.window.end() {
                self.window.push(0, 0, record.received_ms);
            }
            self.window.set(seq, State::Done);
            return Ok(());
        }
        let bytes = record.payload_bytes();
        let topic = out.topics.id(record.topic);
        if seq == self.window.end() {
            self.window.push(topic, bytes, record.received_ms);
        }
        if !self.settled.is_empty() && self.settled.remove(&seq) {
            self.window.set(seq, State::Done);
            if self.lane {
                out.topics.left_lane(topic);
            }
            return Ok(());
        }
        // With a transaction's watermark goes what waits behind it: not more than it can tell.
        if self.window.deferred_runs() + walk.aside_runs >= out.runs_max {
            return Err(if walk.aside_runs > 0 { Stop::Chunk } else { Stop::Full });
        }
        match out.topics.state(topic) {
            topics::State::New => return Err(Stop::Unknown(topic)),
            topics::State::Releasing if !self.lane => {
                self.window.set(seq, State::Deferred);
                return Ok(());
            }
            topics::State::Held => {
                let who = out.identity.of(seq, record.origin);
                if self.in_lane.get(&topic).is_some_and(|there| there.contains(&who)) {
                    self.window.set(seq, State::Done);
                    return Ok(());
                }
                self.in_lane.remove(&topic);
                if out.defer_held {
                    self.window.set(seq, State::Deferred);
                } else {
                    let mut record = record.to_record();
                    record.origin = Some(who);
                    // Answered by the main log's own index; in the lane it would only be repeated.
                    record.idempotency = None;
                    walk.aside(seq);
                    walk.held.push((seq, topic, record));
                }
                return Ok(());
            }
            topics::State::Good | topics::State::Releasing => {}
        }
        // Behind a failure nothing goes out: it would overtake.
        if out.producer.inbox.failed() {
            return Err(Stop::Failed);
        }
        match self.send(seq, topic, &record, out) {
            Ok(()) => {
                self.window.set(seq, State::Sent);
                walk.sent += 1;
                out.pace.take(bytes);
                Ok(())
            }
            Err(RDKafkaErrorCode::QueueFull) => Err(Stop::QueueFull),
            Err(RDKafkaErrorCode::MessageSizeTooLarge) => {
                walk.aside(seq);
                walk.letters
                    .push((seq, record.to_record(), RDKafkaErrorCode::MessageSizeTooLarge));
                Ok(())
            }
            Err(code) => {
                walk.refused = Some((topic, code));
                Err(Stop::Failed)
            }
        }
    }

    fn send(&self, seq: Sequence, topic: u32, record: &RecordRef<'_>, out: &Out<'_>) -> Result<(), RDKafkaErrorCode> {
        send(out.producer, topic, self.lane, seq, record, out.identity, out.now_ms)
    }

    fn room(&self) -> usize {
        self.slots_max.saturating_sub(self.window.len())
    }

    /// Every slot is taken, and has been looked at: there is nothing to walk over. A walk that was rewound
    /// goes on over the slots that are there, however many.
    pub(super) fn is_full(&self) -> bool {
        self.room() == 0 && self.next >= self.window.end()
    }
}

impl Walk {
    fn stopped(stop: Stop) -> Self {
        Self {
            stop,
            held: Vec::new(),
            letters: Vec::new(),
            refused: None,
            damaged: Vec::new(),
            sent: 0,
            aside_runs: 0,
            aside_last: 0,
        }
    }

    /// `seq` is held or refused: it may come to wait.
    fn aside(&mut self, seq: Sequence) {
        self.aside_runs += usize::from(self.aside_last == 0 || seq != self.aside_last + 1);
        self.aside_last = seq;
    }
}

/// Hands one record to the producer, with its identity in the headers.
pub(super) fn send(
    producer: &Producer,
    topic: u32,
    lane: bool,
    seq: Sequence,
    record: &RecordRef<'_>,
    identity: &Identity,
    now_ms: i64,
) -> Result<(), RDKafkaErrorCode> {
    let who = identity.of(seq, record.origin);
    let mut foreign = [0_u8; uuid::fmt::Hyphenated::LENGTH];
    let wal: &str = if who.wal == identity.wal {
        &identity.text
    } else {
        uuid::Uuid::from_bytes(who.wal).hyphenated().encode_lower(&mut foreign)
    };
    let (mut seq_text, mut received_text) = (Decimal::new(), Decimal::new());
    let own: [(&str, &[u8]); 3] = [
        (HEADER_RECEIVED, received_text.signed(record.received_ms)),
        (HEADER_WAL, wal.as_bytes()),
        (HEADER_SEQ, seq_text.unsigned(who.seq)),
    ];
    producer.native.send(
        topic as usize,
        Message {
            opaque: native::opaque(lane, seq, who.seq),
            key: record.key,
            value: record.value,
            // 0 would mean "now" to librdkafka.
            timestamp_ms: record.received_ms.min(now_ms).max(1),
            headers_max: own.len() + record.headers.len(),
            headers: own.into_iter().chain(record.headers.iter().copied()),
        },
    )
}

/// A number as text, on the stack.
struct Decimal([u8; 20]);

impl Decimal {
    fn new() -> Self {
        Self([0; 20])
    }

    fn unsigned(&mut self, mut number: u64) -> &[u8] {
        let mut at = self.0.len();
        for place in self.0.iter_mut().rev() {
            *place = b'0' + (number % 10) as u8;
            number /= 10;
            at -= 1;
            if number == 0 {
                break;
            }
        }
        self.0.get(at..).unwrap_or_default()
    }

    /// A time before 1970 is written as 0.
    fn signed(&mut self, number: i64) -> &[u8] {
        self.unsigned(u64::try_from(number).unwrap_or_default())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_written_as_everywhere() {
        for number in [0, 7, 10, 999, 1_700_000_000_123, u64::MAX] {
            assert_eq!(Decimal::new().unsigned(number), number.to_string().as_bytes());
        }
        assert_eq!(Decimal::new().signed(-5), b"0");
    }
}
