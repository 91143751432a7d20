//! Kafka has lost what it had acknowledged: find out what, as far as the log still has it, and send that again.
//!
//! A broker that lost the end of a partition (a power cut, with one replica) tells the producer that its sequence is
//! out of order. The log is then rewound, durably, to the first record that is retained, or as far back as a window
//! is long: a crash from here on ends in a start that reads the tails back and sends what is missing. The tails are
//! read back, and of everything that had been settled each record is looked for by its identity. What is there is
//! passed over; what is not is sent again, in the log's order and before anything newer.
//!
//! Not there and not lost: what is held or among the dead letters; a record of whose key a later one is there (the
//! end of a partition is lost, not its middle: the topic was compacted, or its retention has passed); and, where not
//! all could be read, or the topic's retention has reached into it, whatever is older than what was. What repeats all the same carries its identity.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::hash::{BuildHasher, RandomState};

use super::drain::{Drain, Step};
use super::flow::SLOTS_MAX;
use super::start::{AWAY_MAX, AWAY_MIN, CHUNK_BYTES};
use super::tail::{self, Seen};
use super::topics::State as TopicState;
use super::window::State;
use crate::metrics::FORWARD_RETRIES_TOTAL;
use crate::record::{Origin, Sequence};
use crate::wal::{LetterState, Read, ReadError, RewindError};

/// How many topics are told of by name.
/// And no further back than so many sequences, those included that no record has: their slots are in memory.
const SPAN_MAX: u64 = 4_000_000;
const TOLD_MAX: usize = 20;
/// What to do about a Kafka that loses records.
const ADVICE: &str = "To keep Kafka from losing what it acknowledged, give the topics a replication factor of 3 and \
                      min.insync.replicas 2; to let the gateway send again what Kafka loses, set wal.retain";

/// What is known of a record.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
enum Mark {
    /// Not to be looked for.
    #[default]
    Apart,
    Wanted,
    Found,
}

#[derive(Debug, Clone, Copy, Default)]
struct Slot {
    mark: Mark,
    /// It had been settled.
    settled: bool,
    /// In the list of topics.
    topic: u32,
    /// A hash of topic and key; `None`: no key.
    key: Option<u64>,
}

/// The records from `first` on, and what Kafka has of them.
#[derive(Debug, Default)]
struct Chart {
    first: Sequence,
    slots: Vec<Slot>,
    /// Topics, with the earliest time of receipt in each.
    topics: Vec<(String, i64)>,
    /// The places of records that carry another identity than their place.
    origins: HashMap<Origin, Sequence>,
    /// Topics whose retention has removed some of this.
    expired: HashSet<u32>,
}

impl Chart {
    fn slot(&mut self, seq: Sequence) -> Option<&mut Slot> {
        let at = usize::try_from(seq.checked_sub(self.first)?).ok()?;
        self.slots.get_mut(at)
    }

    /// The place of a record by its identity; `own` is this log's.
    fn place(&self, own: [u8; 16], who: Origin) -> Option<Sequence> {
        let placed = self.origins.get(&who).copied();
        placed.or_else(|| (who.wal == own).then_some(who.seq))
    }

    /// A record is at `seq`, and not elsewhere: of one that was sent on its way again, the later place counts.
    fn put(&mut self, seq: Sequence, who: Origin, own: [u8; 16], slot: Slot) {
        if who != (Origin { wal: own, seq }) {
            let before = self.place(own, who);
            if let Some(before) = before.and_then(|before| self.slot(before)) {
                before.mark = Mark::Apart;
            }
            self.origins.insert(who, seq);
        }
        if let Some(place) = self.slot(seq) {
            *place = slot;
        }
    }

    fn set_apart(&mut self, seq: Sequence) {
        if let Some(slot) = self.slot(seq) {
            slot.mark = Mark::Apart;
        }
    }

    /// Kafka has it; whether it is one of these.
    fn find(&mut self, own: [u8; 16], who: Origin) -> bool {
        let place = self.place(own, who);
        match place.and_then(|place| self.slot(place)) {
            Some(slot) if slot.mark != Mark::Apart => {
                slot.mark = Mark::Found;
                true
            }
            _ => false,
        }
    }

    fn places(&self) -> impl Iterator<Item = (Sequence, &Slot)> {
        (self.first..).zip(&self.slots)
    }

    /// What Kafka has lost, in order. `cut`: not all of the tails could be read.
    fn lost(&self, cut: bool) -> Vec<Sequence> {
        let mut newest: HashMap<u64, Sequence> = HashMap::new();
        let mut oldest: HashMap<u32, Sequence> = HashMap::new();
        for (seq, slot) in self.places().filter(|(_, slot)| slot.mark == Mark::Found) {
            oldest.entry(slot.topic).or_insert(seq);
            if let Some(key) = slot.key {
                newest.insert(key, seq);
            }
        }
        let lost = self.places().filter(|(seq, slot)| {
            let later = slot
                .key
                .and_then(|key| newest.get(&key))
                .is_some_and(|later| later > seq);
            let partial = cut || self.expired.contains(&slot.topic);
            let unread = partial && oldest.get(&slot.topic).is_none_or(|oldest| seq < oldest);
            slot.settled && slot.mark == Mark::Wanted && !later && !unread
        });
        lost.map(|(seq, _)| seq).collect()
    }
}

impl Drain {
    /// See the module. In the place of [`Drain::read_back_windows`].
    pub(super) fn heal(&mut self) -> Step<()> {
        self.read_back_window(true)?;
        let marks = self.main.log.watermarks();
        let end = self.main.window.end().max(self.healed_end);
        let back = self.main.log.back(end, SLOTS_MAX as Sequence, SPAN_MAX);
        let first = back.max(marks.trimmed + 1);
        if first > marks.acked {
            tracing::error!(
                "Kafka has lost records that it had acknowledged, and the log no longer has them: how many cannot be \
                 known. Everything that was not acknowledged is sent. {ADVICE}"
            );
            return self.read_back_window(false);
        }
        // Before the log's: what is between the two would be sent twice after a crash otherwise.
        if !self.lower(first - 1, None)? {
            if let Some(transactions) = &mut self.transactions {
                transactions.heal = true;
            }
            return Ok(());
        }
        match self.main.log.rewind(first, 0) {
            Ok(_) => {}
            Err(RewindError::Stopped(error)) => return Err(error.into()),
            Err(error) => {
                // Space was needed, or the disk is ill: what is left is what any producer's end leaves.
                tracing::error!("Kafka has lost records that it had acknowledged; they cannot be sent again: {error}");
                return self.read_back_window(false);
            }
        }
        let chart = self.patiently(|drain| drain.chart(first, end, marks.acked).map(Some))?;
        self.surveyed_ms = self.main.window.oldest_received_ms();
        self.begin_anew();
        // None: a shutdown ended the reading.
        let Some(mut chart) = chart else { return Ok(()) };
        self.healed_end = end;
        tracing::warn!(
            first,
            last = marks.acked,
            "Kafka may have lost records that it had acknowledged: those that the log still has are looked for in the topics"
        );
        let outcome = self.look_for(&mut chart)?;
        self.surveyed_ms = None;
        let Some(cut) = outcome else { return Ok(()) };
        let lost = chart.lost(cut);
        self.tell_lost(&chart, &lost, cut);
        // What lies before the first one need not be walked over.
        let resume = lost.first().copied().unwrap_or(marks.acked + 1).min(marks.acked + 1);
        self.main.log.ack(resume - 1)?;
        self.begin_anew();
        let resend = self.main.log.resend();
        let is_lost = |seq: &Sequence| lost.binary_search(seq).is_ok();
        let settled = (chart.places())
            .filter(|(seq, slot)| *seq >= resume && (slot.settled || slot.mark == Mark::Found) && !is_lost(seq))
            .map(|(seq, _)| seq)
            .filter(|seq| *seq <= marks.acked || *seq > resend);
        self.main.settled = settled.collect();
        Ok(())
    }

    /// Reads the log: which of its records should Kafka have?
    fn chart(&self, first: Sequence, end: Sequence, acked: Sequence) -> Result<Chart, ReadError> {
        let own = self.identity.wal;
        let length = usize::try_from(end.saturating_sub(first)).unwrap_or_default();
        let mut chart = Chart {
            first,
            slots: vec![Slot::default(); length],
            ..Chart::default()
        };
        for (seq, slot) in (first..).zip(&mut chart.slots) {
            let done = self.main.window.state(seq) == Some(State::Done) || self.main.settled.contains(&seq);
            slot.settled = seq <= acked || done;
        }
        let mut topics: HashMap<String, u32> = HashMap::new();
        let hashes = RandomState::new();
        let mut reader = self.main.log.reader(first);
        while reader.position() < end {
            let chunk = match reader.read(CHUNK_BYTES)? {
                Read::Records(chunk) => chunk,
                Read::Damaged { .. } => continue,
                Read::Nothing => break,
            };
            for (seq, record) in chunk.records().filter(|(seq, _)| (first..end).contains(seq)) {
                let Ok(record) = record else { continue };
                let who = self.identity.of(seq, record.origin);
                let id = match topics.get(record.topic) {
                    Some(id) => *id,
                    None => {
                        let id = topics.len() as u32;
                        topics.insert(record.topic.to_owned(), id);
                        chart.topics.push((record.topic.to_owned(), record.received_ms));
                        id
                    }
                };
                if let Some((_, oldest)) = chart.topics.get_mut(id as usize) {
                    *oldest = record.received_ms.min(*oldest);
                }
                let is_held = self
                    .topics
                    .find(record.topic)
                    .is_some_and(|id| matches!(self.topics.state(id), TopicState::Held | TopicState::Releasing));
                let is_letter = match self.wal.letter(&who) {
                    Some((_, LetterState::Waiting)) => true,
                    Some((_, LetterState::Requeued(place))) => place != seq,
                    None => false,
                };
                let slot = Slot {
                    mark: if is_held || is_letter {
                        Mark::Apart
                    } else {
                        Mark::Wanted
                    },
                    topic: id,
                    key: record.key.map(|key| hashes.hash_one((id, key))),
                    settled: chart.slot(seq).is_some_and(|slot| slot.settled),
                };
                chart.put(seq, who, own, slot);
            }
        }
        if let Some(lane) = &self.lane {
            // What is in the lane is not in Kafka.
            lane.visit(&self.identity, |_, who, _| {
                if let Some(place) = chart.place(own, who) {
                    chart.set_apart(place);
                }
            })?;
        }
        Ok(chart)
    }

    /// Looks for what is wanted in Kafka until that worked; whether it was cut short. `None`: a shutdown is over.
    fn look_for(&mut self, chart: &mut Chart) -> Step<Option<bool>> {
        let mut wait = AWAY_MIN;
        loop {
            let topics = chart.topics.clone();
            let own = self.identity.wal;
            let mut see = |_: &str, who: Origin| match chart.find(own, who) {
                true => Seen::Wanted,
                false => Seen::Other,
            };
            match tail::read_back(
                &self.options,
                self.committed_only,
                &self.link,
                &topics,
                &mut see,
                &|| self.left(),
            ) {
                Ok(outcome) => {
                    let expired = (0..).zip(&chart.topics);
                    let expired = expired.filter(|(_, (name, _))| outcome.expired.contains(name));
                    chart.expired = expired.map(|(id, _)| id).collect();
                    return Ok(Some(outcome.cut));
                }
                Err(error) => {
                    self.link.error(tail::unanswered("newest", &error));
                }
            }
            self.publish(true);
            if self.over() {
                return Ok(None);
            }
            // Not a rewind: the chart would not be true any more.
            self.meanwhile(wait, true, false)?;
            wait = (wait * 2).min(AWAY_MAX);
        }
    }

    fn tell_lost(&self, chart: &Chart, lost: &[Sequence], cut: bool) {
        metrics::counter!(FORWARD_RETRIES_TOTAL, "reason" => "healed").increment(lost.len() as u64);
        let mut by_topic: BTreeMap<&str, (u64, Sequence, Sequence)> = BTreeMap::new();
        for seq in lost {
            let slot = usize::try_from(seq - chart.first)
                .ok()
                .and_then(|at| chart.slots.get(at));
            let name = slot.and_then(|slot| chart.topics.get(slot.topic as usize));
            let name = name.map_or("", |(name, _)| name.as_str());
            let (records, _, last) = by_topic.entry(name).or_insert((0, *seq, *seq));
            *records += 1;
            *last = *seq;
        }
        for (topic, (records, first, last)) in by_topic.iter().take(TOLD_MAX) {
            tracing::error!(
                topic,
                records,
                first,
                last,
                "Kafka has lost records that it had acknowledged; the log still has them, and they are sent again"
            );
        }
        if by_topic.len() > TOLD_MAX {
            tracing::error!(
                topics = by_topic.len(),
                records = lost.len(),
                "Kafka has lost records of more topics"
            );
        }
        if lost.is_empty() {
            tracing::info!(
                looked_at = chart.slots.len(),
                "Kafka has everything that it had acknowledged, as far back as the log still has it"
            );
        }
        if cut {
            tracing::warn!(
                "not all of the tails could be read back: what Kafka lost of the older records is not known. `tidegate \
                 wal rewind` sends records again"
            );
        }
        if !chart.expired.is_empty() {
            tracing::warn!(
                topics = chart.expired.len(),
                "the retention of some topics has passed for some of these records: of what is older than the oldest \
                 that is still there, nothing is sent again. `tidegate wal rewind` does that"
            );
        }
        if !self.main.log.retains() {
            tracing::warn!(
                first = chart.first,
                "whether Kafka lost older records than sequence `first` cannot be known: acknowledged records are not \
                 retained (wal.retain). {ADVICE}"
            );
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    const OWN: [u8; 16] = [1; 16];

    /// A chart from place 11 on: (topic, key) of each.
    fn chart(records: &[(u32, Option<u64>)]) -> Chart {
        let mut chart = Chart {
            first: 11,
            slots: vec![Slot::default(); records.len()],
            ..Chart::default()
        };
        for (seq, (topic, key)) in (11..).zip(records) {
            let slot = Slot {
                mark: Mark::Wanted,
                settled: true,
                topic: *topic,
                key: *key,
            };
            chart.put(seq, Origin { wal: OWN, seq }, OWN, slot);
        }
        chart
    }

    fn find(chart: &mut Chart, places: &[Sequence]) {
        for seq in places {
            assert!(chart.find(OWN, Origin { wal: OWN, seq: *seq }), "{seq}");
        }
    }

    #[test]
    fn what_is_not_found_is_lost() {
        let mut chart = chart(&[(0, None); 6]);
        find(&mut chart, &[11, 12, 14]);
        assert!(!chart.find(OWN, Origin { wal: OWN, seq: 10 }));
        assert!(!chart.find(OWN, Origin { wal: [2; 16], seq: 13 }));
        chart.set_apart(15);
        assert_eq!(chart.lost(false), [13, 16]);
        // One that was not settled yet is sent anyway.
        chart.slot(16).unwrap().settled = false;
        assert_eq!(chart.lost(false), [13]);
    }

    #[test]
    fn a_compacted_value_is_not_put_behind_the_newer_one() {
        let mut chart = chart(&[(0, Some(7)), (0, Some(8)), (0, Some(7)), (0, Some(7)), (0, Some(8))]);
        find(&mut chart, &[13]);
        // 11 was compacted away. Of the other key nothing is left: all of it, in order.
        assert_eq!(chart.lost(false), [12, 14, 15]);
    }

    #[test]
    fn what_could_not_be_read_is_not_taken_for_lost() {
        let mut chart = chart(&[(0, None), (0, None), (0, None), (1, None)]);
        find(&mut chart, &[12]);
        assert_eq!(chart.lost(true), [13]);
        assert_eq!(chart.lost(false), [11, 13, 14]);
        // The retention of the first topic has passed.
        chart.expired.insert(0);
        assert_eq!(chart.lost(false), [13, 14]);
    }

    #[test]
    fn of_a_record_that_was_requeued_the_later_place_counts() {
        let mut chart = chart(&[(0, None); 4]);
        let slot = *chart.slot(13).unwrap();
        let again = Origin { wal: OWN, seq: 11 };
        chart.put(13, again, OWN, slot);
        chart.put(14, again, OWN, slot);
        assert_eq!(chart.lost(false), [12, 14]);
        assert!(chart.find(OWN, again));
        assert_eq!(chart.lost(false), [12]);
    }
}
