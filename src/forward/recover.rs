//! After a failure: let everything outstanding get its report, judge, replace the producer if it ended, read
//! the tail back if Kafka may have what failed, and begin the walk anew at the first record that waits.
//!
//! Records whose batch failed as suspects are sent again in shrinking groups by a careful producer; the one
//! that fails alone becomes a dead letter, fsynced before the watermark may pass it.

use std::time::{Duration, Instant};

use rdkafka::error::RDKafkaErrorCode;

use super::drain::{Drain, Failure, RETRY, Refusal, Step};
use super::settings::{self, BATCH_BYTES_MIN, Kind};
use super::verdict::{self, Verdict};
use super::window::State;
use crate::metrics::{DEAD_LETTERS_TOTAL, FORWARD_FATAL_ERRORS_TOTAL, FORWARD_RETRIES_TOTAL};
use crate::record::{Record, Sequence, now_ms};
use crate::wal::{AppendError, Letter};

/// How long requests on the wire may take to be answered before they are given up and read back.
const ANSWER_MAX: Duration = Duration::from_secs(5);
/// Once its transaction has failed librdkafka sends nothing more of its queue, and reports none of it before that is taken back: when
/// nothing was reported for so long, nothing more is waited for.
const SILENCE_MAX: Duration = Duration::from_millis(500);
/// How long the reports of what was given up may take.
const PURGE_MAX: Duration = Duration::from_secs(1);
/// Between two producers, at the most, while none delivers anything.
const SETBACK_MAX: Duration = Duration::from_secs(30);

impl Drain {
    /// See the module.
    pub(super) fn recover(&mut self) -> Step<()> {
        let purged = self.collect()?;
        // The next start does the rest.
        if self.shared.stop_at().is_some_and(|at| Instant::now() >= at) {
            return Ok(());
        }
        let failures = std::mem::take(&mut self.failures);
        let refused = self.refused.take();
        // What may be written late must find another epoch: an abort alone would let it into the next transaction.
        let purged = purged || (self.transactions.is_some() && may_come_late(&failures));
        self.roll_back(&failures, refused, purged)?;
        let fatal = self.producer.fatal();
        if let Some((code, text)) = &fatal {
            self.fatal_errors += 1;
            metrics::counter!(FORWARD_FATAL_ERRORS_TOTAL).increment(1);
            tracing::warn!(
                code = verdict::name(*code),
                "the producer has ended and is made anew: {text}"
            );
            self.link.note(text.clone());
        }
        self.count_retries(&failures, refused, fatal.is_some());
        self.hold_refused(&failures, refused);
        // A fatal error without a failed batch (GaplessGuarantee has one) says nothing about what is written.
        let desynchronized = fatal
            .as_ref()
            .is_some_and(|(code, _)| *code != RDKafkaErrorCode::GaplessGuarantee);
        let uncertain = purged || desynchronized || may_come_late(&failures);
        for lane in [true, false] {
            self.judge(lane, &failures)?;
        }
        let kind = self.wanted();
        if fatal.is_some() || purged || kind != self.producer.kind {
            self.set_back();
            self.replace(kind);
        } else {
            self.producer.inbox.judged();
            // Sent again at once it would fail again at once.
            let again = codes(&failures, refused).find(|code| verdict::verdict(*code) == Verdict::Retry);
            // Those that a transaction took with it are innocent.
            let is_known = self.transactions.is_some()
                && codes(&failures, refused).any(|code| verdict::verdict(code) != Verdict::Retry);
            if let (Some(code), false) = (again, is_known) {
                self.trouble(format!("records were not taken ({code}); they are sent again"));
            }
        }
        let is_loss = fatal.is_some_and(|(code, _)| verdict::is_loss(code));
        if let Some(transactions) = &mut self.transactions {
            // What is in Kafka its own watermark tells; it is looked at before anything is sent.
            transactions.heal |= is_loss || failures.iter().any(|failure| verdict::is_loss(failure.code));
            if transactions.heal {
                transactions.begin_anew();
                self.replace(kind);
            }
        } else if is_loss {
            self.heal()?;
        } else if uncertain {
            self.read_back_windows()?;
        }
        self.main.rewind();
        if let Some(lane) = &mut self.lane {
            lane.flow.rewind();
        }
        Ok(())
    }

    /// Waits until nothing is with the producer, or nothing that an abort would not take back; whether something had to be given up for
    /// that.
    pub(super) fn collect(&mut self) -> Step<bool> {
        let began = Instant::now();
        let until = began + ANSWER_MAX;
        let mut deadline = self.shared.stop_at().map_or(until, |at| until.min(at));
        let mut purged = false;
        loop {
            self.settle()?;
            if self.sent() == 0 {
                return Ok(purged);
            }
            if Instant::now() >= deadline {
                if purged {
                    // Nothing more will be heard of them.
                    self.main.window.unsend();
                    if let Some(lane) = &mut self.lane {
                        lane.flow.window.unsend();
                    }
                    return Ok(true);
                }
                purged = true;
                deadline = Instant::now() + PURGE_MAX;
                self.producer.purge();
            }
            // librdkafka purges once when it ends, and may put records back after that.
            if self.producer.fatal().is_some() {
                self.producer.purge_queue();
            }
            let failed = !self.failures.is_empty() || self.refused.is_some();
            if failed && self.may_roll_back() && began.max(self.reported_at).elapsed() >= SILENCE_MAX {
                return Ok(purged);
            }
            self.producer.native.flush(Duration::from_millis(10));
            self.publish(false);
        }
    }

    fn count_retries(&self, failures: &[Failure], refused: Option<(u32, RDKafkaErrorCode)>, fatal: bool) {
        let codes = || codes(failures, refused);
        let count = |verdict: Verdict| codes().filter(|code| verdict::verdict(*code) == verdict).count();
        let (poison, config) = (count(Verdict::Poison), count(Verdict::Config));
        let others = codes().count() - poison - config;
        metrics::counter!(FORWARD_RETRIES_TOTAL, "reason" => "batch").increment(poison as u64);
        metrics::counter!(FORWARD_RETRIES_TOTAL, "reason" => "config").increment(config as u64);
        let reason = if fatal { "fatal" } else { "transient" };
        metrics::counter!(FORWARD_RETRIES_TOTAL, "reason" => reason).increment(others as u64);
    }

    /// Topics that Kafka refuses are held from now on.
    fn hold_refused(&mut self, failures: &[Failure], refused: Option<(u32, RDKafkaErrorCode)>) {
        let reports = failures.iter().map(|failure| (failure.topic, failure.code));
        for (topic, code) in reports.chain(refused) {
            if verdict::verdict(code) != Verdict::Config {
                continue;
            }
            if self.topics.state(topic) != super::topics::State::Held {
                // A topic that is gone shows in the metadata when it is back; the rest only when written to.
                let missing = verdict::is_missing(code);
                self.topics.hold(topic, code, !missing);
                self.producer.native.close_topic(topic as usize);
            }
        }
    }

    /// Suspects of one flow: groups, smaller groups, or the one that failed alone.
    fn judge(&mut self, lane: bool, failures: &[Failure]) -> Step<()> {
        let mut suspects: Vec<Failure> = (failures.iter())
            .filter(|failure| failure.lane == lane)
            .filter(|failure| matches!(verdict::verdict(failure.code), Verdict::Poison | Verdict::Clock))
            .copied()
            .collect();
        suspects.sort_unstable_by_key(|failure| failure.seq);
        let too_large = suspects.iter().any(|failure| verdict::is_size(failure.code));
        let group_bytes = settings::group_bytes(&self.options);
        let transactional = self.transactions.is_some();
        let Some(flow) = self.flow_mut(lane) else { return Ok(()) };
        let sent = std::mem::take(&mut flow.group_sent);
        let Some(last) = suspects.last().copied() else {
            return Ok(());
        };
        if !flow.sift.is_active() {
            flow.sift.start(flow.window.waiting_up_to(last.seq), group_bytes);
            self.too_large.0 |= too_large;
            tracing::info!(
                records = suspects.len(),
                code = verdict::name(last.code),
                "Kafka refused a batch; its records are sent again in smaller groups to find out why"
            );
            return Ok(());
        }
        // A transaction takes the innocents of a group with it: they wait again.
        let group_end = flow.sift.current().map(|(_, end)| end);
        let sequences: Vec<Sequence> = match (transactional, group_end) {
            (true, Some(end)) => flow.window.waiting_up_to(end).map(|(seq, _)| seq).collect(),
            _ => suspects.iter().map(|failure| failure.seq).collect(),
        };
        let Some(alone) = flow.sift.failed(&sequences, sent) else {
            return Ok(());
        };
        if verdict::verdict(last.code) == Verdict::Clock {
            self.topics.hold(last.topic, last.code, true);
            self.producer.native.close_topic(last.topic as usize);
            return Ok(());
        }
        let fetched = flow.fetch(alone);
        self.too_large.1 |= too_large;
        match fetched {
            Ok(Some(record)) => {
                let refusal = Refusal {
                    code: last.code,
                    local: false,
                };
                self.dead_letter(lane, alone, record, refusal)
            }
            // Damaged since: the walk tells.
            Ok(None) => Ok(()),
            Err(error) => {
                self.trouble(error.to_string());
                Ok(())
            }
        }
    }

    /// Puts a record to the dead letters, fsynced, and settles it. If the log does not take it now (disk full) it
    /// is tried again later, and everything else goes on.
    pub(super) fn dead_letter(&mut self, lane: bool, seq: Sequence, mut record: Record, refusal: Refusal) -> Step<()> {
        let who = self.identity.of(seq, record.origin);
        record.origin = Some(who);
        let now = now_ms();
        let topic = record.topic.clone();
        let Refusal { code, local } = refusal;
        let reason = match local {
            true => format!(
                "the Kafka client takes no record of this size, headers included ({code}): raise message.max.bytes in \
                 kafka.properties and on the brokers"
            ),
            false => format!("Kafka refused this record alone: {code}"),
        };
        let letter = Letter {
            origin: who,
            record,
            code: verdict::name(code),
            reason,
            first_failed_ms: now,
            last_failed_ms: now,
        };
        match self.wal.add_dead_letters(std::slice::from_ref(&letter)) {
            Ok(_) => {}
            Err(error @ (AppendError::Poisoned { .. } | AppendError::Closed)) => return Err(error.into()),
            Err(error) => {
                self.link.note(format!(
                    "record {seq} cannot be put to the dead letters: {error}. It waits in the log; others go on"
                ));
                if let Some(flow) = self.flow_mut(lane) {
                    flow.window.set(seq, State::Deferred);
                }
                self.letters.insert((lane, seq), refusal);
                self.letters_at = Some(Instant::now() + RETRY);
                return Ok(());
            }
        }
        let reason = letter.reason;
        metrics::counter!(DEAD_LETTERS_TOTAL, "reason" => verdict::name(code)).increment(1);
        tracing::warn!(
            topic,
            seq = who.seq,
            "{reason}; it is in the dead letters: `tidegate dead-letters show`"
        );
        self.setbacks = 0;
        let settled = self.flow_mut(lane).and_then(|flow| flow.window.set(seq, State::Done));
        if let (true, Some(slot)) = (lane, settled) {
            self.topics.left_lane(slot.topic);
        }
        Ok(())
    }

    /// The kind of producer that is needed now.
    pub(super) fn wanted(&self) -> Kind {
        let sifting = self.main.sift.is_active() || self.lane.as_ref().is_some_and(|lane| lane.flow.sift.is_active());
        match sifting {
            true => Kind::Careful,
            false => Kind::Gapless {
                batch_bytes: self.batch_bytes,
            },
        }
    }

    /// The last group of a sift is through.
    pub(super) fn sifted(&mut self) {
        if let (true, false) = std::mem::take(&mut self.too_large) {
            // No record is too large, so their batch was: the topic's max.message.bytes is small.
            let before = self.batch_bytes.unwrap_or_else(|| settings::batch_bytes(&self.options));
            let smaller = (before / 8).max(BATCH_BYTES_MIN);
            tracing::warn!(
                "Kafka refuses batches of batch.size; from now on {smaller} bytes. Raise max.message.bytes of the \
                 topic, or set kafka.properties.batch.size below it"
            );
            self.batch_bytes = Some(smaller);
        }
        self.replace(self.wanted());
    }

    /// Waits before the next producer while none delivers anything.
    pub(super) fn set_back(&mut self) {
        let wait = (Duration::from_millis(50) * 2_u32.saturating_pow(self.setbacks.min(16))).min(SETBACK_MAX);
        self.setbacks += 1;
        // The first is free: a poison record ends a producer that worked.
        if self.setbacks == 1 {
            return;
        }
        let until = Instant::now() + wait;
        while Instant::now() < until && !self.over() {
            self.publish(false);
            let left = until.saturating_duration_since(Instant::now());
            self.shared.signal.wait(left.min(Duration::from_millis(100)));
        }
    }
}

/// Kafka may still write some of them, although they failed.
pub(super) fn may_come_late(failures: &[Failure]) -> bool {
    failures.iter().any(|failure| failure.maybe_persisted)
}

/// What went wrong, record by record.
fn codes(failures: &[Failure], refused: Option<(u32, RDKafkaErrorCode)>) -> impl Iterator<Item = RDKafkaErrorCode> {
    let reports = failures.iter().map(|failure| failure.code);
    reports.chain(refused.map(|(_, code)| code))
}
