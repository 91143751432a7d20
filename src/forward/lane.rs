//! Topics that do not work: their records wait, in order, in the held lane (one more log), and leave it in
//! order when their topic works again.
//!
//! While a topic is held its records are appended to the lane and the log goes on. Held topics are looked at
//! with back-off. When one works, a *pass* goes over the lane once: records of released topics are sent,
//! those of topics still held are appended to the lane's end. While a pass runs, newer records of these
//! topics in the log wait (their slots do, their bytes stay on disk), or they would overtake: when the
//! window is full of them the log's walk stalls until the pass ends, which is bounded by the lane.
//!
//! A pass begins with a marker in the lane (an entry without a topic), which is where it ends. A crash in its
//! middle leaves older records of a topic behind younger ones; the next start finds the marker and finishes
//! the pass before anything else is appended.
//!
//! A topic that Kafka refused when written to, while its metadata look fine, is released only after one
//! record of it, alone, was taken. Such a probe and a pass never run together: a pass that has gone over a
//! topic's records already would leave them, re-appended, behind newer ones.

use std::time::{Duration, Instant};

use super::command::{Command, CommandError, Done};
use super::drain::{CHUNK_BYTES, Drain, LOOKUP_MAX, RETRY, Step};
use super::flow::{self, Flow, Identity, Out};
use super::producer::{Lookup, Producer};
use super::settings::Kind;
use super::start::Survey;
use super::tail;
use super::topics::State as TopicState;
use super::transaction;
use super::verdict::{self, Verdict};
use super::window::State;
use crate::record::{Origin, Record, RecordRef, Sequence, now_ms};
use crate::wal::{AppendError, Batch, Read, ReadError};

/// How many held topics are looked at before a pass begins.
const LOOKS_MAX: usize = 200;
/// How long a single record may take to show that its topic works.
const PROBE_MAX: Duration = Duration::from_secs(30);

/// The held lane.
pub(super) struct Lane {
    pub(super) flow: Flow,
    /// The last sequence of the running pass: its marker.
    pub(super) pass: Option<Sequence>,
    probe: Option<Probe>,
    /// What the running pass takes out.
    purge: Option<Purge>,
}

/// An operator's command: the pass takes the records of a topic out of the lane.
struct Purge {
    topic: String,
    /// They go to the main log under this one; `None`: nowhere.
    to: Option<String>,
    /// How many are done.
    done: u64,
    command: Command,
}

/// One record on its way, alone, to see whether its topic works.
struct Probe {
    producer: Producer,
    topic: u32,
    seq: Sequence,
    since: Instant,
}

impl Lane {
    pub(super) fn new(flow: Flow) -> Self {
        Self {
            flow,
            pass: None,
            probe: None,
            purge: None,
        }
    }

    /// Gives each record that is in the lane, its place there and its identity.
    pub(super) fn visit(
        &self,
        identity: &Identity,
        mut see: impl FnMut(Sequence, Origin, &RecordRef<'_>),
    ) -> Result<(), ReadError> {
        let flow = &self.flow;
        let mut reader = flow.log.reader(flow.window.acked() + 1);
        loop {
            let chunk = match reader.read(CHUNK_BYTES)? {
                Read::Records(chunk) => chunk,
                Read::Damaged { .. } => continue,
                Read::Nothing => return Ok(()),
            };
            for (seq, record) in chunk.records() {
                let Ok(record) = record else { continue };
                // Sent by the pass that is under way, or by one that Kafka told of.
                let is_settled = flow.window.state(seq) == Some(State::Done) || flow.settled.contains(&seq);
                if flow.is_marker(&record) || is_settled {
                    continue;
                }
                see(seq, identity.of(seq, record.origin), &record);
            }
        }
    }

    /// Something is to be looked for soon.
    pub(super) fn is_waiting(&self) -> bool {
        self.pass.is_some() || self.probe.is_some()
    }
}

impl Drain {
    /// Appends records to the lane, fsynced, and settles them where they came from (`from_lane`: a pass).
    pub(super) fn hold(&mut self, from_lane: bool, records: Vec<(Sequence, u32, Record)>) -> Step<()> {
        if self.lane.is_none() {
            match self.wal.held_or_create() {
                Ok(log) => self.lane = Some(Lane::new(Flow::new(log, true))),
                Err(error) => {
                    self.blocked(from_lane, &records, &error.to_string());
                    return Ok(());
                }
            }
        }
        let Some(lane) = &mut self.lane else { return Ok(()) };
        let mut batch = Batch::new();
        for (_, _, record) in &records {
            batch.push(record);
        }
        let receipt = match lane.flow.log.append(batch).and_then(crate::wal::Commit::wait) {
            Ok(receipt) => receipt,
            Err(error @ (AppendError::Poisoned { .. } | AppendError::Closed)) => return Err(error.into()),
            Err(error) => {
                self.blocked(from_lane, &records, &error.to_string());
                return Ok(());
            }
        };
        for (at, (seq, topic, _)) in (receipt.first_seq..).zip(&records) {
            if let Some(hold) = self.topics.get_mut(*topic).and_then(|topic| topic.hold.as_mut()) {
                hold.first.get_or_insert(at);
                if !from_lane {
                    hold.records += 1;
                }
            }
            if let Some(flow) = self.flow_mut(from_lane) {
                flow.window.set(*seq, State::Done);
            }
        }
        Ok(())
    }

    /// The lane takes nothing now: the records wait where they are, and newer ones of their topics too.
    fn blocked(&mut self, from_lane: bool, records: &[(Sequence, u32, Record)], why: &str) {
        self.lane_blocked = Some(Instant::now() + RETRY);
        self.link.note(format!(
            "records of held topics cannot be put aside: {why}. They wait in the log; other topics go on"
        ));
        let Some(flow) = self.flow_mut(from_lane) else { return };
        for (seq, ..) in records {
            flow.window.set(*seq, State::Deferred);
        }
    }

    /// A step of each, lane and log; whether there may be more at once. Who had all that the pace allows is second then, or
    /// a long pass would leave nothing to all other topics.
    pub(super) fn walk(&mut self) -> Step<bool> {
        let began = Instant::now();
        let (lane, main) = match self.main_is_next {
            true => {
                let main = self.main_step()?;
                (self.lane_step()?, main)
            }
            false => (self.lane_step()?, self.main_step()?),
        };
        if lane != main {
            self.main_is_next = lane;
        }
        if (lane || main) && self.main.log.is_pressed() {
            let now = Instant::now();
            std::thread::sleep(self.give_way.rest(now - began, self.main.log.watermarks(), now));
        }
        Ok(lane || main)
    }

    /// One step of a pass, or a look at a held topic; whether there may be more at once.
    pub(super) fn lane_step(&mut self) -> Step<bool> {
        self.probe_step();
        let Some(lane) = &mut self.lane else { return Ok(false) };
        let Some(end) = lane.pass else {
            self.look();
            return Ok(false);
        };
        if lane.flow.next > end && lane.flow.window.is_empty() {
            self.end_pass();
            return Ok(true);
        }
        // A pass that an operator asked for sends nothing: it does not wait for Kafka.
        let bytes = match &lane.purge {
            Some(_) if !lane.flow.is_full() => CHUNK_BYTES,
            _ => self.allowance(true),
        };
        let Some(lane) = &mut self.lane else { return Ok(false) };
        if bytes == 0 || lane.flow.next > end {
            return Ok(false);
        }
        let mut out = Out {
            producer: &self.producer,
            topics: &mut self.topics,
            pace: &mut self.pace,
            identity: &self.identity,
            now_ms: now_ms(),
            defer_held: self.lane_blocked.is_some(),
            limit: lane.flow.sift.current().map_or(end, |(_, last)| last.min(end)),
            runs_max: transaction::runs_max(self.transactions.as_ref()),
        };
        match lane.flow.walk(bytes, &mut out) {
            Ok(walk) => self.walked(true, walk),
            Err(error) => {
                self.trouble(format!("{error}; the forwarder tries again"));
                Ok(false)
            }
        }
    }

    /// Looks at the held topic whose time has come; if it works, at the others too, and begins a pass.
    fn look(&mut self) {
        let busy = self.main.sift.is_active() || self.lane_blocked.is_some();
        if busy || self.lane.as_ref().is_none_or(|lane| lane.probe.is_some()) {
            return;
        }
        let Some(due) = self.topics.due(Instant::now()) else {
            return;
        };
        // A record that is only to show that its topic works must not be among others.
        if self.probe_of(due).is_some() && !self.transaction_is_empty() {
            return;
        }
        if self.works(due) != Lookup::Exists {
            return;
        }
        if let Some(first) = self.probe_of(due) {
            if self.verified(&[due]) {
                self.begin_probe(due, first);
            }
            return;
        }
        let mut working = vec![due];
        let others: Vec<u32> = self
            .topics
            .with_state(TopicState::Held)
            .filter(|id| *id != due)
            .collect();
        for topic in others.into_iter().take(LOOKS_MAX) {
            // What needs a probe waits for its own time: its probe must not run beside this pass.
            if self.probe_of(topic).is_some() {
                continue;
            }
            match self.works(topic) {
                Lookup::Exists => working.push(topic),
                Lookup::Refused(_) => {}
                Lookup::Away => break,
            }
            if self.over() {
                return;
            }
        }
        if self.verified(&working) {
            self.release(&working);
        }
    }

    /// The record that must show that the topic works, if its metadata do not say enough.
    fn probe_of(&self, topic: u32) -> Option<Sequence> {
        let hold = self.topics.get(topic)?.hold.as_ref()?;
        let settled = &self.lane.as_ref()?.flow.settled;
        // A record that Kafka is known to have has shown it.
        hold.first.filter(|first| hold.refused && !settled.contains(first))
    }

    /// [`Self::verify`]; if that does not work the topics are looked at again later.
    fn verified(&mut self, topics: &[u32]) -> bool {
        let result = self.verify(topics);
        if let Err(error) = result {
            self.link.error(error);
            topics.iter().for_each(|topic| self.topics.probe_later(*topic));
            return false;
        }
        true
    }

    /// Whether the metadata say that the topic works.
    fn works(&mut self, topic: u32) -> Lookup {
        let lookup = self
            .producer
            .lookup(topic as usize, self.topics.name(topic), LOOKUP_MAX);
        match lookup {
            Lookup::Exists => {}
            Lookup::Refused(code) => self.topics.still_held(topic, code, false),
            Lookup::Away => self.topics.probe_later(topic),
        }
        lookup
    }

    /// Which records of topics that were held before this start does Kafka have already?
    fn verify(&mut self, topics: &[u32]) -> Result<(), String> {
        let unverified: Vec<u32> = (topics.iter().copied())
            .filter(|id| {
                let hold = self.topics.get(*id).and_then(|topic| topic.hold.as_ref());
                hold.is_some_and(|hold| hold.unverified)
            })
            .collect();
        let Some(lane) = &self.lane else { return Ok(()) };
        if unverified.is_empty() {
            return Ok(());
        }
        let names: Vec<&str> = unverified.iter().map(|id| self.topics.name(*id)).collect();
        let survey = Survey::make(&lane.flow, &self.identity, Sequence::MAX, |_, topic, _| {
            names.contains(&topic)
        });
        let survey = survey.map_err(|error| error.to_string())?;
        self.read_back_once(true, &survey)
            .map_err(|error| tail::unanswered("held", &error))?;
        for id in unverified {
            if let Some(hold) = self.topics.get_mut(id).and_then(|topic| topic.hold.as_mut()) {
                hold.unverified = false;
            }
        }
        Ok(())
    }

    /// Sends the topic's first record alone, by a producer of its own.
    fn begin_probe(&mut self, topic: u32, seq: Sequence) {
        if self.lane.as_ref().is_some_and(Lane::is_waiting) {
            return self.topics.probe_later(topic);
        }
        // Verified since it was chosen: Kafka has it already.
        if self.lane.as_ref().is_some_and(|lane| lane.flow.settled.contains(&seq)) {
            return self.release(&[topic]);
        }
        if self.transactions.is_some() {
            return self.probe_in_a_transaction(topic, seq);
        }
        let made = Producer::create(
            &self.options,
            Kind::Probe,
            None,
            &self.shared.signal,
            &self.link,
            self.on_delivery.as_ref(),
        );
        let mut producer = match made {
            Ok(producer) => producer,
            Err(error) => {
                self.link.note(error);
                self.topics.probe_later(topic);
                return;
            }
        };
        let name = self.topics.name(topic).to_owned();
        let Some(lane) = &mut self.lane else { return };
        let record = match lane.flow.fetch(seq) {
            Ok(record) => record,
            Err(error) => return self.trouble(error.to_string()),
        };
        let sent = match record {
            Some(record) if record.topic == name => producer.native.open_topic(topic as usize, &name).and_then(|()| {
                flow::send(
                    &producer,
                    topic,
                    true,
                    seq,
                    &record.borrowed(),
                    &self.identity,
                    now_ms(),
                )
            }),
            // It left the lane meanwhile: the pass will show.
            _ => return self.release(&[topic]),
        };
        match sent {
            Ok(()) => {
                lane.probe = Some(Probe {
                    producer,
                    topic,
                    seq,
                    since: Instant::now(),
                });
            }
            Err(code) => self.judge_probe(topic, code),
        }
    }

    /// Takes the report of the single record.
    fn probe_step(&mut self) {
        let Some(lane) = &mut self.lane else { return };
        let Some(probe) = &lane.probe else { return };
        let mut reports = Vec::new();
        probe.producer.inbox.swap(&mut reports);
        let (topic, seq) = (probe.topic, probe.seq);
        match reports.first() {
            Some(report) => {
                lane.probe = None;
                match report.error {
                    None => {
                        // Its place is still this one: no pass ran meanwhile.
                        lane.flow.settled.insert(seq);
                        self.delivered_alone(topic);
                        self.release(&[topic]);
                    }
                    Some(code) => {
                        if report.maybe_persisted {
                            self.unverify(topic);
                        }
                        self.judge_probe(topic, code);
                    }
                }
            }
            None if probe.since.elapsed() > PROBE_MAX => {
                lane.probe = None;
                self.unverify(topic);
                self.topics.probe_later(topic);
            }
            None => {}
        }
    }

    /// A probe may have arrived all the same: to be looked for before another is sent.
    fn unverify(&mut self, topic: u32) {
        if let Some(hold) = self.topics.get_mut(topic).and_then(|topic| topic.hold.as_mut()) {
            hold.unverified = true;
        }
    }

    /// Sends the topic's first record alone, in a transaction that is taken back: the pass is to send it.
    fn probe_in_a_transaction(&mut self, topic: u32, seq: Sequence) {
        match self.try_alone(true, topic, seq) {
            Ok(Some(Ok(()))) => self.release(&[topic]),
            Ok(Some(Err(code))) => self.judge_probe(topic, code),
            Ok(None) => self.topics.probe_later(topic),
            Err(error) => self.trouble(error.to_string()),
        }
    }

    fn judge_probe(&mut self, topic: u32, code: rdkafka::error::RDKafkaErrorCode) {
        match verdict::verdict(code) {
            Verdict::Config | Verdict::Clock => self.topics.still_held(topic, code, !verdict::is_missing(code)),
            // The record's own fault, not the topic's.
            Verdict::Poison => self.release(&[topic]),
            Verdict::Retry | Verdict::Fatal => {
                self.link.note(format!("{}: {code}", self.topics.name(topic)));
                self.topics.probe_later(topic);
            }
        }
    }

    /// These topics work again: a pass sends what was held. While one is running they stay held, because it
    /// may have gone over their records already.
    fn release(&mut self, topics: &[u32]) {
        let mut opened = Vec::new();
        let running = self.lane.as_ref().is_some_and(Lane::is_waiting);
        for topic in topics {
            let name = self.topics.name(*topic).to_owned();
            match running || self.producer.native.open_topic(*topic as usize, &name).is_err() {
                true => self.topics.probe_later(*topic),
                false => opened.push(*topic),
            }
        }
        if opened.is_empty() {
            return;
        }
        if let Err(error) = self.begin_pass() {
            self.link.note(format!("held records cannot be sent yet: {error}"));
            opened.iter().for_each(|topic| self.topics.probe_later(*topic));
            return;
        }
        for topic in opened {
            tracing::info!(
                topic = self.topics.name(topic),
                "the topic works again; its held records are being sent"
            );
            self.topics.set_state(topic, TopicState::Releasing);
        }
    }

    /// Begins a pass: marks its end, fsynced.
    fn begin_pass(&mut self) -> Result<(), AppendError> {
        let Some(lane) = &mut self.lane else { return Ok(()) };
        let mut batch = Batch::new();
        batch.push(&Record {
            topic: String::new(),
            key: None,
            value: None,
            headers: Vec::new(),
            received_ms: now_ms(),
            origin: None,
            idempotency: None,
        });
        let marker = lane.flow.log.append(batch)?.wait()?;
        lane.pass = Some(marker.last_seq);
        lane.flow.rewind();
        self.topics.reset_first();
        Ok(())
    }

    /// A pass may begin.
    pub(super) fn lane_is_free(&self) -> bool {
        let busy = self.main.sift.is_active() || self.lane_blocked.is_some();
        !busy && self.lane.as_ref().is_none_or(|lane| !lane.is_waiting())
    }

    /// Begins a pass that takes the records of `topic` out of the lane.
    pub(super) fn begin_purge(&mut self, topic: String, to: Option<String>, command: Command) {
        let known = self.topics.find(&topic).and_then(|id| self.topics.get(id));
        if self.lane.is_none() || known.is_none_or(|topic| topic.hold.is_none()) {
            return command.answer(Ok(Done::Purged(0)));
        }
        if let Err(source) = self.begin_pass() {
            return command.answer(Err(CommandError::Append { done: 0, source }));
        }
        if let Some(lane) = &mut self.lane {
            lane.purge = Some(Purge {
                topic,
                to,
                done: 0,
                command,
            });
        }
    }

    /// Takes out of a pass's records those that an operator wants to be out of the lane; returns the others. If the
    /// main log does not take them they are held as before.
    pub(super) fn purge(&mut self, held: Vec<(Sequence, u32, Record)>) -> Step<Vec<(Sequence, u32, Record)>> {
        let Some(lane) = &mut self.lane else { return Ok(held) };
        let Some(purge) = &mut lane.purge else { return Ok(held) };
        let (mut taken, mut left): (Vec<_>, Vec<_>) =
            (held.into_iter()).partition(|(_, _, record)| record.topic == purge.topic);
        if let (Some(to), false) = (&purge.to, taken.is_empty()) {
            let mut batch = Batch::new();
            for (_, _, record) in &mut taken {
                record.topic.clone_from(to);
                batch.push(record);
            }
            match self.wal.log().append(batch).and_then(crate::wal::Commit::wait) {
                Ok(_) => {}
                Err(error @ (AppendError::Poisoned { .. } | AppendError::Closed)) => return Err(error.into()),
                Err(source) => {
                    taken
                        .iter_mut()
                        .for_each(|(_, _, record)| record.topic.clone_from(&purge.topic));
                    left.append(&mut taken);
                    // In the order of the lane.
                    left.sort_unstable_by_key(|(seq, ..)| *seq);
                    let done = purge.done;
                    if let Some(purge) = lane.purge.take() {
                        purge.command.answer(Err(CommandError::Append { done, source }));
                    }
                    return Ok(left);
                }
            }
        }
        purge.done += taken.len() as u64;
        for (seq, topic, _) in taken {
            lane.flow.window.set(seq, State::Done);
            self.topics.left_lane(topic);
        }
        Ok(left)
    }

    /// The pass that an operator asked for is through.
    fn end_purge(&mut self) {
        let Some(purge) = self.lane.as_mut().and_then(|lane| lane.purge.take()) else {
            return;
        };
        tracing::warn!(
            topic = purge.topic,
            to = purge.to,
            records = purge.done,
            "held records of the topic were {} on an operator's command",
            if purge.to.is_some() { "redirected" } else { "discarded" }
        );
        if let Some(id) = self.topics.find(&purge.topic) {
            let hold = self.topics.get(id).and_then(|topic| topic.hold.as_ref());
            if hold.is_some_and(|hold| hold.records == 0) {
                self.topics.forget(id);
            }
        }
        purge.command.answer(Ok(Done::Purged(purge.done)));
    }

    /// Everything up to the pass's end is sent, or is at the lane's end again.
    fn end_pass(&mut self) {
        if let Some(lane) = &mut self.lane {
            lane.pass = None;
        }
        self.end_purge();
        let released: Vec<u32> = self.topics.with_state(TopicState::Releasing).collect();
        for topic in released {
            tracing::info!(
                topic = self.topics.name(topic),
                "all held records of the topic were sent"
            );
            self.topics.released(topic);
        }
        self.main.window.undefer();
        self.main.rewind();
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::indexing_slicing)]
mod tests {
    use super::super::drain::tests::{drain, known};
    use super::*;
    use rdkafka::error::RDKafkaErrorCode;

    /// Puts a record of each held topic to the lane.
    fn held(drain: &mut Drain, topics: &[(&str, RDKafkaErrorCode, bool)]) -> Vec<u32> {
        let mut ids = Vec::new();
        for (topic, code, refused) in topics {
            super::super::drain::tests::push(drain, &[topic]);
            let id = known(drain, topic);
            drain.topics.hold(id, *code, *refused);
            ids.push(id);
        }
        while drain.main_step().unwrap() {}
        ids
    }

    #[test]
    fn a_topic_is_not_released_into_a_running_pass() {
        let folder = tempfile::tempdir().unwrap();
        let mut drain = drain(&folder);
        let missing = RDKafkaErrorCode::UnknownTopicOrPartition;
        let denied = RDKafkaErrorCode::TopicAuthorizationFailed;
        let ids = held(
            &mut drain,
            &[("a", missing, false), ("b", denied, true), ("c", missing, false)],
        );
        let [a, b, c] = ids[..] else { unreachable!() };
        assert_eq!((drain.probe_of(a), drain.probe_of(b)), (None, Some(2)));
        drain.release(&[a]);
        let end = drain.lane.as_ref().unwrap().pass;
        assert!(end.is_some());
        drain.release(&[c]);
        drain.begin_probe(b, 2);
        assert_eq!(drain.topics.state(a), TopicState::Releasing);
        assert_eq!(drain.topics.state(b), TopicState::Held);
        assert_eq!(drain.topics.state(c), TopicState::Held);
        let lane = drain.lane.as_ref().unwrap();
        assert!(lane.probe.is_none());
        assert_eq!(lane.pass, end);
        drain.wal.close().unwrap();
    }

    #[test]
    fn a_record_that_kafka_has_is_no_probe() {
        let folder = tempfile::tempdir().unwrap();
        let mut drain = drain(&folder);
        let ids = held(&mut drain, &[("b", RDKafkaErrorCode::TopicAuthorizationFailed, true)]);
        drain.lane.as_mut().unwrap().flow.settled.insert(1);
        assert_eq!(drain.probe_of(ids[0]), None);
        drain.begin_probe(ids[0], 1);
        assert_eq!(drain.topics.state(ids[0]), TopicState::Releasing);
        drain.wal.close().unwrap();
    }
}
