//! The forwarder's thread: take reports, move the watermark, hand out the next records.
//!
//! One loop, nothing in it blocks for long while Kafka answers. What happens after a failure is in
//! [`super::recover`], held topics are in [`super::lane`], what an earlier run left open in [`super::start`].

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rdkafka::error::RDKafkaErrorCode;

use super::flow::{Flow, Identity, Out, Stop, Walk};
use super::lane::Lane;
use super::pace::{GiveWay, Pace};
use super::producer::{Lookup, Producer, Report};
use super::settings::Kind;
use super::takeover::Foreign;
use super::topics::{State as TopicState, Topics};
use super::transaction::{self, Transactions};
use super::window::{Slot, State};
use super::{OnDelivery, Options, Shared};
use crate::kafka::link::Link;
use crate::kafka::native;
use crate::metrics::{FORWARD_DELIVERY_SECONDS, FORWARD_THROTTLED_SECONDS_TOTAL};
use crate::record::{Sequence, now_ms};
use crate::wal::{AckError, AppendError, Wal};

/// The most payload bytes that one walk looks at.
pub(super) const CHUNK_BYTES: usize = 256 * 1024;
/// Between two walks while records come in.
const GATHER: Duration = Duration::from_millis(2);
/// How long Kafka may take to tell of a topic.
pub(super) const LOOKUP_MAX: Duration = Duration::from_secs(2);
/// Between two tries of something that did not work.
pub(super) const RETRY: Duration = Duration::from_secs(1);
/// With a pace, nothing more is handed to a client that has not heard from Kafka for so long: what it has by then goes out
/// at once when Kafka is back.
const SILENCE_MAX: Duration = Duration::from_secs(2);

/// The log takes nothing more: the process is about to end, and so is this thread.
#[derive(Debug, thiserror::Error)]
pub(super) enum Ended {
    /// It was poisoned, or closed.
    #[error(transparent)]
    Append(#[from] AppendError),
    /// It refused a watermark.
    #[error(transparent)]
    Ack(#[from] AckError),
    /// Kafka's watermark is not this folder's.
    #[error(transparent)]
    Foreign(#[from] Foreign),
}

impl Ended {
    /// What happened, and what to do.
    pub(super) fn advice(&self) -> String {
        match self {
            Self::Foreign(foreign) => foreign.to_string(),
            Self::Append(_) | Self::Ack(_) => format!(
                "{self}. Look at the disk, then start tidegate again: what was answered 2xx is on disk and is forwarded then"
            ),
        }
    }
}

/// What a step may come to.
pub(super) type Step<T> = Result<T, Ended>;

/// A delivery that failed.
#[derive(Debug, Clone, Copy)]
pub(super) struct Failure {
    pub(super) lane: bool,
    pub(super) seq: Sequence,
    pub(super) topic: u32,
    pub(super) code: RDKafkaErrorCode,
    pub(super) maybe_persisted: bool,
}

/// Why a record can never be sent.
#[derive(Debug, Clone, Copy)]
pub(super) struct Refusal {
    pub(super) code: RDKafkaErrorCode,
    /// librdkafka refused it, before Kafka saw it.
    pub(super) local: bool,
}

/// Everything that the thread has.
pub(super) struct Drain {
    pub(super) wal: Wal,
    pub(super) options: Options,
    pub(super) on_delivery: Option<Arc<OnDelivery>>,
    pub(super) shared: Arc<Shared>,
    pub(super) link: Arc<Link>,
    pub(super) identity: Identity,
    pub(super) producer: Producer,
    /// `None`: records go out without.
    pub(super) transactions: Option<Transactions>,
    /// This log makes transactions, or did: what one did not commit was never sent.
    pub(super) committed_only: bool,
    pub(super) main: Flow,
    pub(super) lane: Option<Lane>,
    /// The lane takes nothing before then (disk full).
    pub(super) lane_blocked: Option<Instant>,
    pub(super) topics: Topics,
    pub(super) pace: Pace,
    pub(super) give_way: GiveWay,
    /// Whether the log is walked before the lane.
    pub(super) main_is_next: bool,
    pub(super) failures: Vec<Failure>,
    /// A send that failed at once, for its topic.
    pub(super) refused: Option<(u32, RDKafkaErrorCode)>,
    /// A smaller batch.size, once one was needed.
    pub(super) batch_bytes: Option<u32>,
    /// In the running sift: a batch was too large; and a record alone was.
    pub(super) too_large: (bool, bool),
    /// Dead letters that the log did not take (disk full), and when to try again.
    pub(super) letters: BTreeMap<(bool, Sequence), Refusal>,
    pub(super) letters_at: Option<Instant>,
    /// Producers that ended in a row without a delivery between.
    pub(super) setbacks: u32,
    /// Nothing is sent before then.
    pub(super) retry_at: Option<Instant>,
    /// What was committed when the last walk over the main log came to an end; `None`: it did not.
    pub(super) at_end: Option<Sequence>,
    /// When a walk last sent something.
    walked_at: Instant,
    /// Where the records end that were looked for when Kafka had lost some.
    pub(super) healed_end: Sequence,
    /// While an earlier run's records are looked for: when the oldest was received.
    pub(super) surveyed_ms: Option<i64>,
    reports: Vec<Report>,
    pub(super) reported_at: Instant,
    throttled: Duration,
    delivered: u64,
    pub(super) fatal_errors: u64,
    published_at: Option<Instant>,
    pub(super) latency: metrics::Histogram,
}

impl Drain {
    pub(super) fn new(
        wal: Wal,
        options: Options,
        on_delivery: Option<Arc<OnDelivery>>,
        shared: Arc<Shared>,
        link: Arc<Link>,
        producer: Producer,
    ) -> Self {
        let now = Instant::now();
        let opened = wal.log().committed();
        let group = options.transactions(wal.id());
        let transactions = group.map(|group| Transactions::new(group, opened));
        let committed_only = transactions.is_some() || !wal.stamps().is_ok_and(|stamps| stamps.is_empty());
        Self {
            identity: Identity::new(wal.id()),
            main: Flow::new(wal.log().clone(), false),
            transactions,
            committed_only,
            lane: None,
            lane_blocked: None,
            topics: Topics::new(),
            pace: Pace::new(options.bytes_per_second_max, now),
            give_way: GiveWay::new(wal.log().watermarks(), now),
            main_is_next: false,
            wal,
            options,
            on_delivery,
            shared,
            link,
            producer,
            failures: Vec::new(),
            refused: None,
            batch_bytes: None,
            too_large: (false, false),
            letters: BTreeMap::new(),
            letters_at: None,
            setbacks: 0,
            retry_at: None,
            at_end: None,
            walked_at: now,
            surveyed_ms: None,
            healed_end: 0,
            reports: Vec::new(),
            reported_at: now,
            throttled: Duration::ZERO,
            delivered: 0,
            fatal_errors: 0,
            published_at: None,
            latency: metrics::histogram!(FORWARD_DELIVERY_SECONDS),
        }
    }

    /// Runs until a shutdown was asked for, or the log stopped.
    pub(super) fn run(mut self) -> Step<()> {
        self.start()?;
        while !self.over() {
            self.settle()?;
            if self.producer.inbox.failed() || !self.failures.is_empty() || self.refused.is_some() {
                self.recover()?;
                continue;
            }
            if self.command()? {
                continue;
            }
            let busy = self.transact()?;
            self.sift()?;
            self.letters_step()?;
            let walked = self.walk()?;
            self.publish(false);
            if !walked && !busy {
                self.rest();
            }
        }
        self.finish()
    }

    /// A new walk over the main log, from its watermark on: nothing is known of its records any more.
    pub(super) fn begin_anew(&mut self) {
        self.main = Flow::new(self.main.log.clone(), false);
        self.shared.deliveries.forget();
        self.letters.retain(|(lane, _), _| *lane);
        self.at_end = None;
    }

    /// A shutdown was asked for, and everything is sent or its time is over.
    pub(super) fn over(&self) -> bool {
        self.shared.stop_at().is_some_and(|at| {
            Instant::now() >= at
                || (self.main.window.is_empty() && self.main.next > self.main.log.watermarks().committed)
        })
    }

    /// The time that a shutdown leaves; without one there is always enough.
    pub(super) fn left(&self) -> Duration {
        let stop_at = self.shared.stop_at();
        stop_at.map_or(Duration::MAX, |at| at.saturating_duration_since(Instant::now()))
    }

    /// What was acknowledged until now still counts; the rest is for the next start.
    fn finish(mut self) -> Step<()> {
        let was_quiet = self.producer.outstanding() == 0;
        self.producer.purge();
        self.give_up_transaction(was_quiet);
        let deadline = Instant::now() + Duration::from_millis(500);
        while self.producer.outstanding() > 0 && Instant::now() < deadline {
            self.shared.signal.wait(Duration::from_millis(10));
        }
        self.settle()?;
        self.publish(true);
        Ok(())
    }

    /// Takes the reports in and moves the watermarks.
    pub(super) fn settle(&mut self) -> Step<()> {
        let mut reports = std::mem::take(&mut self.reports);
        self.producer.inbox.swap(&mut reports);
        if !reports.is_empty() {
            self.take(&reports);
            reports.clear();
        }
        self.reports = reports;
        acknowledge(&mut self.main)?;
        if let Some(lane) = &mut self.lane {
            acknowledge(&mut lane.flow)?;
        }
        Ok(())
    }

    fn take(&mut self, reports: &[Report]) {
        self.reported_at = Instant::now();
        let mut delivered = Runs::new();
        let state = self.transactions.as_ref().map_or(State::Done, |_| State::Staged);
        for report in reports {
            let (lane, seq) = native::place(report.opaque);
            let flow = match (&mut self.lane, lane) {
                (Some(lane), true) => &mut lane.flow,
                (None, true) => continue,
                (_, false) => &mut self.main,
            };
            if let Some(code) = report.error {
                if let Some(slot) = flow.window.set(seq, State::Waiting) {
                    self.failures.push(Failure {
                        lane,
                        seq,
                        topic: slot.topic,
                        code,
                        maybe_persisted: report.maybe_persisted,
                    });
                }
                continue;
            }
            let Some(slot) = flow.window.set(seq, state) else {
                continue;
            };
            if state == State::Done {
                delivered.push(&mut self.topics, &self.latency, lane, slot);
            }
        }
        let acknowledged = reports.iter().filter_map(|report| report.placed(self.identity.wal));
        self.shared.deliveries.note(acknowledged, state == State::Staged);
        self.delivered(delivered);
        // In a transaction too Kafka has answered.
        if reports.iter().any(|report| report.error.is_none()) {
            self.link.up();
        }
    }

    /// Tells of what was delivered.
    pub(super) fn delivered(&mut self, mut runs: Runs) {
        runs.end(&mut self.topics, &self.latency);
        if runs.total > 0 {
            self.delivered += runs.total;
            self.setbacks = 0;
            self.link.up();
        }
    }

    /// A record that showed its topic to work was delivered beside the walk.
    pub(super) fn delivered_alone(&mut self, topic: u32) {
        self.delivered += 1;
        self.topics.count(topic, 1, 0);
    }

    /// The flow that is being sifted: nothing else is sent meanwhile.
    pub(super) fn sifting(&self) -> Option<bool> {
        if self.lane.as_ref().is_some_and(|lane| lane.flow.sift.is_active()) {
            return Some(true);
        }
        self.main.sift.is_active().then_some(false)
    }

    /// Ends a group of suspects that went well, and the sift with the last of them.
    fn sift(&mut self) -> Step<()> {
        let Some(lane) = self.sifting() else {
            // The producer after a sift could not be made at once.
            let due = self.retry_at.is_none_or(|at| Instant::now() >= at);
            if due && self.producer.kind != self.wanted() && self.sent() == 0 {
                self.replace(self.wanted());
            }
            return Ok(());
        };
        let sent = self.sent();
        let Some(flow) = self.flow_mut(lane) else { return Ok(()) };
        // Not before the whole group is queued: it must be one batch per partition.
        let whole = flow.sift.current().is_some_and(|(_, last)| flow.next > last);
        if !whole {
            return Ok(());
        }
        if sent > 0 {
            self.producer.native.flush(Duration::from_millis(20));
            return Ok(());
        }
        // A group is a transaction too.
        if !self.transaction_is_empty() {
            return Ok(());
        }
        let Some(flow) = self.flow_mut(lane) else { return Ok(()) };
        flow.sift.passed();
        flow.group_sent = 0;
        if self.sifting().is_none() {
            self.sifted();
        }
        Ok(())
    }

    pub(super) fn flow_mut(&mut self, lane: bool) -> Option<&mut Flow> {
        match lane {
            true => self.lane.as_mut().map(|lane| &mut lane.flow),
            false => Some(&mut self.main),
        }
    }

    /// Tries the dead letters again that the log did not take.
    fn letters_step(&mut self) -> Step<()> {
        if self.letters_at.is_none_or(|at| Instant::now() < at) {
            return Ok(());
        }
        self.letters_at = None;
        for ((lane, seq), refusal) in std::mem::take(&mut self.letters) {
            if self.letters_at.is_some() {
                self.letters.insert((lane, seq), refusal);
                continue;
            }
            let Some(flow) = self.flow_mut(lane) else { continue };
            // Otherwise it waits to be sent once more, and comes back here.
            if flow.window.state(seq) != Some(State::Deferred) {
                continue;
            }
            match flow.fetch(seq) {
                Ok(Some(record)) => self.dead_letter(lane, seq, record, refusal)?,
                // Damaged since: the walk tells.
                Ok(None) => {
                    flow.window.set(seq, State::Waiting);
                    flow.rewind();
                }
                Err(error) => {
                    self.letters.insert((lane, seq), refusal);
                    self.letters_at = Some(Instant::now() + RETRY);
                    self.link.note(error.to_string());
                }
            }
        }
        Ok(())
    }

    /// Records with the producer.
    pub(super) fn sent(&self) -> usize {
        self.main.window.sent() + self.lane.as_ref().map_or(0, |lane| lane.flow.window.sent())
    }

    /// Payload bytes that the next walk may look at; 0: not now.
    pub(super) fn allowance(&mut self, lane: bool) -> usize {
        if !self.may_send() || self.sifting().is_some_and(|sifting| sifting != lane) {
            return 0;
        }
        let now = Instant::now();
        // A group of a sift must be one batch: nothing is sent before it is whole.
        let group = self.sifting().is_some();
        if self.retry_at.is_some_and(|at| now < at) || (!self.pace.wait(now).is_zero() && !group) {
            return 0;
        }
        let most = self.options.in_flight_bytes_max.max(1 << 20);
        let lane_bytes = self.lane.as_ref().map_or(0, |lane| lane.flow.window.sent_bytes());
        let room = most.saturating_sub(self.main.window.sent_bytes() + lane_bytes);
        let full = self.flow_mut(lane).is_none_or(|flow| flow.is_full());
        if self.pace.is_set() && self.sent() > 0 && !group && self.reported_at.elapsed() > SILENCE_MAX {
            return 0;
        }
        // Not for a few records at a time; but one is always allowed when nothing is on its way.
        if full || (room < most / 8 && self.sent() > 0 && !group) {
            return 0;
        }
        // A quarter, because librdkafka takes about three times the bytes of a small record.
        let bytes = usize::try_from(room / 4).unwrap_or(CHUNK_BYTES).clamp(1, CHUNK_BYTES);
        if group { bytes } else { self.pace.chunk_bytes(bytes) }
    }

    /// One walk over the main log; whether there may be more at once.
    pub(super) fn main_step(&mut self) -> Step<bool> {
        if self.lane_blocked.is_some_and(|at| Instant::now() >= at) {
            self.lane_blocked = None;
            for lane in [true, false] {
                if let Some(flow) = self.flow_mut(lane) {
                    flow.window.undefer();
                    flow.rewind();
                }
            }
        }
        self.at_end = None;
        let committed = self.main.log.committed();
        let bytes = self.allowance(false);
        if bytes == 0 {
            return Ok(false);
        }
        let passing = self.lane.as_ref().is_some_and(|lane| lane.pass.is_some());
        let mut out = Out {
            producer: &self.producer,
            topics: &mut self.topics,
            pace: &mut self.pace,
            identity: &self.identity,
            now_ms: now_ms(),
            defer_held: passing || self.lane_blocked.is_some(),
            limit: self.main.sift.current().map_or(Sequence::MAX, |(_, last)| last),
            // What is sifted was within the bound, and must come through, or the pass that others wait for never goes on.
            runs_max: match self.main.sift.is_active() {
                true => usize::MAX,
                false => transaction::runs_max(self.transactions.as_ref()),
            },
        };
        match self.main.walk(bytes, &mut out) {
            Ok(walk) => {
                self.at_end = (walk.stop == Stop::End).then_some(committed);
                if walk.sent > 0 {
                    self.walked_at = Instant::now();
                }
                self.walked(false, walk)
            }
            Err(error) => {
                self.trouble(format!("{error}; the forwarder tries again"));
                Ok(false)
            }
        }
    }

    /// Does what a walk left to do; whether the next may follow at once.
    pub(super) fn walked(&mut self, lane: bool, walk: Walk) -> Step<bool> {
        // Before the watermark passes them.
        for (first, last) in walk.damaged {
            if !lane && let Err(error) = self.wal.keep_letters(first, last) {
                self.trouble(format!(
                    "dead letters whose new place is damaged cannot be kept: {error}"
                ));
            }
        }
        for (seq, record, code) in walk.letters {
            self.dead_letter(lane, seq, record, Refusal { code, local: true })?;
        }
        let held = if lane { self.purge(walk.held)? } else { walk.held };
        if !held.is_empty() {
            self.hold(lane, held)?;
        }
        if let Some(refused) = walk.refused {
            self.refused = Some(refused);
        }
        match walk.stop {
            Stop::Chunk => Ok(true),
            Stop::End | Stop::QueueFull | Stop::Full => Ok(false),
            Stop::Failed => Ok(true),
            Stop::Unknown(topic) => {
                match self
                    .producer
                    .lookup(topic as usize, self.topics.name(topic), LOOKUP_MAX)
                {
                    Lookup::Exists => self.topics.set_state(topic, TopicState::Good),
                    Lookup::Refused(code) => self.topics.hold(topic, code, false),
                    Lookup::Away => {
                        self.link.error("Kafka does not answer".to_owned());
                        self.retry_at = Some(Instant::now() + RETRY);
                        return Ok(false);
                    }
                }
                Ok(true)
            }
        }
    }

    /// Something did not work and will be tried again a little later.
    pub(super) fn trouble(&mut self, text: String) {
        tracing::warn!("{text}");
        self.link.note(text);
        self.retry_at = Some(Instant::now() + RETRY);
    }

    /// A new producer in place of the old one, which has nothing outstanding any more.
    pub(super) fn replace(&mut self, kind: Kind) {
        let id = self.options.transactions(self.wal.id());
        if let Some(transactions) = &mut self.transactions {
            transactions.begin_anew();
        }
        let made = Producer::create(
            &self.options,
            kind,
            id.as_deref(),
            &self.shared.signal,
            &self.link,
            self.on_delivery.as_ref(),
        );
        match made {
            Ok(producer) => self.producer = producer,
            Err(error) => {
                // The same settings worked at start: threads or memory are short.
                self.trouble(format!("cannot make a producer: {error}"));
                return;
            }
        }
        for state in [TopicState::Good, TopicState::Releasing] {
            for topic in self.topics.with_state(state).collect::<Vec<_>>() {
                if self
                    .producer
                    .native
                    .open_topic(topic as usize, self.topics.name(topic))
                    .is_err()
                {
                    self.topics.set_state(topic, TopicState::New);
                }
            }
        }
    }

    /// Waits for reports, commits, or the time of something.
    fn rest(&mut self) {
        let away = self.link.away();
        self.producer.remind(away);
        // Records that come one by one are taken together: thousands of walks a second would only cost.
        std::thread::sleep(GATHER.saturating_sub(self.walked_at.elapsed()));
        let now = Instant::now();
        self.shared.signal.mind_commits(self.at_end.is_some());
        if self.at_end.is_some_and(|seen| self.main.log.committed() > seen) {
            return;
        }
        if self.sent() == 0 {
            self.publish(true);
        }
        let outstanding = self.in_transaction() > 0 || self.lane.as_ref().is_some_and(Lane::is_waiting);
        // Reports say so when there are many, or bad ones. A few are looked for: often while Kafka answers,
        // seldom while it is away, which may be for days.
        let mut wait = match outstanding {
            true if now - self.reported_at < Duration::from_secs(2) => Duration::from_millis(5),
            true => Duration::from_millis(50),
            false => Duration::from_millis(250),
        };
        let throttle = self.pace.wait(now);
        if !throttle.is_zero() {
            wait = wait.min(throttle);
        }
        if let Some(at) = self.shared.stop_at() {
            wait = wait.min(at.saturating_duration_since(now));
        }
        self.shared.signal.wait(wait);
        if !throttle.is_zero() {
            self.throttled += now.elapsed();
            let whole = self.throttled.as_secs();
            metrics::counter!(FORWARD_THROTTLED_SECONDS_TOTAL).increment(whole);
            self.throttled -= Duration::from_secs(whole);
        }
    }

    /// Tells the status, at most every 20 ms unless `now`.
    pub(super) fn publish(&mut self, now: bool) {
        if !now
            && self
                .published_at
                .is_some_and(|at| at.elapsed() < Duration::from_millis(20))
        {
            return;
        }
        self.published_at = Some(Instant::now());
        let link = self.link.state();
        let (held, held_count) = (self.topics.held(), self.topics.held_count());
        let mut status = self.shared.status();
        status.broker_up = link.up;
        status.last_error = link.last_error;
        status.in_flight_records = self.sent() as u64;
        status.oldest_received_ms = self.main.window.oldest_received_ms().or(self.surveyed_ms);
        status.fatal_errors = self.fatal_errors;
        status.delivered_records = self.delivered;
        status.held_topics = held;
        status.held_topics_count = held_count;
    }
}

/// Moves the log's watermark to the window's.
fn acknowledge(flow: &mut Flow) -> Step<()> {
    flow.window.advance();
    let acked = flow.window.acked();
    if acked > flow.told {
        flow.log.ack(acked)?;
        flow.told = acked;
        flow.forget_settled();
    }
    Ok(())
}

/// Delivered records, counted: they come in runs of one topic and of one time of receipt, and metrics are told per run.
pub(super) struct Runs {
    now_ms: i64,
    total: u64,
    topic: u32,
    records: u64,
    bytes: u64,
    received_ms: i64,
    alike: usize,
}

impl Runs {
    pub(super) fn new() -> Self {
        Self {
            now_ms: now_ms(),
            total: 0,
            topic: u32::MAX,
            records: 0,
            bytes: 0,
            received_ms: i64::MIN,
            alike: 0,
        }
    }

    pub(super) fn push(&mut self, topics: &mut Topics, latency: &metrics::Histogram, lane: bool, slot: Slot) {
        if lane {
            topics.left_lane(slot.topic);
        }
        self.total += 1;
        if slot.topic != self.topic {
            topics.count(self.topic, self.records, self.bytes);
            (self.topic, self.records, self.bytes) = (slot.topic, 0, 0);
        }
        self.records += 1;
        self.bytes += u64::from(slot.bytes);
        if slot.received_ms != self.received_ms {
            latency.record_many(seconds(self.now_ms.saturating_sub(self.received_ms)), self.alike);
            (self.received_ms, self.alike) = (slot.received_ms, 0);
        }
        self.alike += 1;
    }

    fn end(&mut self, topics: &mut Topics, latency: &metrics::Histogram) {
        topics.count(self.topic, self.records, self.bytes);
        latency.record_many(seconds(self.now_ms.saturating_sub(self.received_ms)), self.alike);
    }
}

fn seconds(ms: i64) -> f64 {
    ms.max(0) as f64 / 1000.0
}

#[cfg(test)]
pub(super) mod tests;
