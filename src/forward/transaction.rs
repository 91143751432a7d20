//! `delivery = "exactly_once"`: records go out in transactions, and Kafka's own watermark ([`super::mark`]) with them.
//!
//! ```text
//! New ----> Open ----> Ending ----> Open ...       what was acknowledged in it is settled once it is committed
//!  ^          |           |
//!  |          +-----------+---> Aborting ---> Open  something failed: all of it waits again
//!  +--- the producer has ended (a fatal error; the transaction took too long; another gateway)
//! ```
//! A new producer takes over: Kafka ends what the one before left open, for good; then its watermark is read. What it
//! covers was committed, nothing else was. So a crash at any moment neither loses nor repeats a record, for consumers
//! that read what is committed. The watermark carries a *stamp*, which this folder knows too: of two gateways with copies of
//! one folder the one that came first finds the other's, and stops.
//!
//! Only these files make Kafka calls that can block for seconds in the forwarder's thread (a coordinator that is frozen:
//! for librdkafka's socket.timeout.ms; one that is gone: see [`super::producer::Producer::send_offsets`]), and only while nothing could be sent anyway.

use std::collections::VecDeque;
use std::ffi::CStr;
use std::mem::Discriminant;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rdkafka::consumer::ConsumerGroupMetadata;
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::producer::Producer as _;
use rdkafka::{Offset, TopicPartitionList};

use super::drain::{Drain, Failure, RETRY, Runs, Step};
use super::mark::{METADATA_BYTES_MAX, Mark, RUNS_MAX, Reached};
use super::recover::may_come_late;
use super::verdict;
use crate::kafka::settings::explain;
use crate::metrics::FORWARD_TRANSACTIONS_TOTAL;
use crate::record::Sequence;
use crate::wal::Stamp;

/// The topic that the watermark is committed for. It stays empty.
pub(super) const TOPIC: &str = "tidegate-watermark";
/// [`TOPIC`] for librdkafka's own calls.
pub(super) const TOPIC_NAME: &CStr = c"tidegate-watermark";
/// How long one call may take; it is made again if that was not enough.
pub(super) const CALL_MAX: Duration = Duration::from_secs(5);
/// How long Kafka may take to answer before it is taken for away.
pub(super) const LOOK_MAX: Duration = Duration::from_secs(2);
/// The end of a transaction takes no longer: brokers give one up after a minute (transaction.timeout.ms), and a producer that
/// waits longer waits in vain.
const STAGE_MAX: Duration = Duration::from_secs(90);
/// A transaction lasts at least so long while nothing more comes: each costs the brokers some milliseconds.
const LAST_MIN: Duration = Duration::from_millis(50);
/// And at most so long while more comes: its records are seen, and its space is freed, only when it ends.
const LAST_MAX: Duration = Duration::from_millis(500);

/// Where the transactions of a producer are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Stage {
    /// It has to take over first.
    New,
    /// One is open; records may be sent.
    Open,
    /// Nothing more is sent; once all is acknowledged it is committed.
    Closing,
    /// The watermark is on its way into it, or in it.
    Ending {
        mark: Mark,
        /// It is in it.
        is_sent: bool,
    },
    /// It is taken back.
    Aborting,
}

/// See the module.
pub(super) struct Transactions {
    /// The transactions' id, and the watermark's group.
    pub(super) group: String,
    pub(super) stage: Stage,
    /// This process's.
    pub(super) stamp: Stamp,
    /// Kafka has had it.
    pub(super) is_signed: bool,
    /// The number of the last rewind: see [`crate::wal::Log::resend`].
    pub(super) resend: Sequence,
    /// The brokers take no metadata as long as what they have refused.
    metadata_bytes_max: usize,
    /// Where the log ended when it was opened: nothing beyond can be in Kafka.
    pub(super) opened: Sequence,
    /// What was found at the start.
    pub(super) adopted: Option<Mark>,
    pub(super) metadata: Option<Arc<ConsumerGroupMetadata>>,
    /// When the open one got its first record.
    since: Option<Instant>,
    /// A record of each topic of which Kafka denies one.
    pub(super) suspects: VecDeque<Failure>,
    /// Kafka may have lost what it had committed: to be looked for once the producer has taken over.
    pub(super) heal: bool,
    /// The stage that was seen last, and since when it is.
    seen: Option<(Discriminant<Stage>, Instant)>,
    /// Since when Kafka does not let this producer take over.
    pub(super) waits_since: Option<Instant>,
}

impl Transactions {
    pub(super) fn new(group: String, opened: Sequence) -> Self {
        Self {
            group,
            stage: Stage::New,
            stamp: fastrand::u64(1..),
            is_signed: false,
            resend: 0,
            metadata_bytes_max: usize::MAX,
            opened,
            adopted: None,
            metadata: None,
            since: None,
            suspects: VecDeque::new(),
            heal: false,
            seen: None,
            waits_since: None,
        }
    }

    /// How long it has been in this stage.
    fn stage_age(&mut self) -> Duration {
        let stage = std::mem::discriminant(&self.stage);
        match self.seen {
            Some((seen, since)) if seen == stage => since.elapsed(),
            _ => {
                self.seen = Some((stage, Instant::now()));
                Duration::ZERO
            }
        }
    }

    /// The producer is another one.
    pub(super) fn begin_anew(&mut self) {
        self.stage = Stage::New;
        self.since = None;
        self.seen = None;
        self.waits_since = None;
    }
}

/// The most runs of records that wait while younger ones are sent.
pub(super) fn runs_max(transactions: Option<&Transactions>) -> usize {
    transactions.map_or(usize::MAX, |_| RUNS_MAX)
}

impl Drain {
    /// Whether records may be handed to the producer.
    pub(super) fn may_send(&self) -> bool {
        (self.transactions.as_ref())
            .is_none_or(|transactions| transactions.stage == Stage::Open && transactions.suspects.is_empty())
    }

    /// Records in the open transaction.
    pub(super) fn in_transaction(&self) -> usize {
        let lane = self.lane.as_ref().map_or(0, |lane| lane.flow.window.staged());
        self.sent() + self.main.window.staged() + lane
    }

    /// Whether nothing is in the open transaction (without any, always); if something is, it is ended soon.
    pub(super) fn transaction_is_empty(&mut self) -> bool {
        let count = self.in_transaction();
        let Some(transactions) = &mut self.transactions else {
            return true;
        };
        if count > 0 && transactions.stage == Stage::Open {
            transactions.stage = Stage::Closing;
        }
        count == 0 && transactions.stage == Stage::Open
    }

    /// The next step of the transactions; whether there is something to do at once.
    pub(super) fn transact(&mut self) -> Step<bool> {
        let is_late = self.retry_at.is_none_or(|at| Instant::now() >= at);
        let count = self.in_transaction();
        let Some(transactions) = &mut self.transactions else {
            return Ok(false);
        };
        // Kafka has given it up by then, or ended it: whatever this producer waits for, its watermark will tell.
        let ends = matches!(
            transactions.stage,
            Stage::Closing | Stage::Ending { .. } | Stage::Aborting
        );
        if transactions.stage_age() > STAGE_MAX && ends {
            self.ended("Kafka has not ended a transaction for over a minute")?;
            return Ok(true);
        }
        match &transactions.stage {
            Stage::New | Stage::Aborting | Stage::Ending { .. } if !is_late => return Ok(false),
            Stage::New => {
                if !self.enter()? {
                    self.retry_at = Some(Instant::now() + RETRY);
                    return Ok(false);
                }
                if let Some(transactions) = &mut self.transactions
                    && std::mem::take(&mut transactions.heal)
                {
                    self.heal()?;
                }
                self.main.rewind();
                if let Some(lane) = &mut self.lane {
                    lane.flow.rewind();
                }
            }
            Stage::Aborting => self.abort()?,
            Stage::Open => {
                if count == 0 {
                    transactions.since = None;
                    return self.try_suspect();
                }
                // A group of suspects is ended when all of it is through.
                if self.sifting().is_some() {
                    return Ok(false);
                }
                let Some(transactions) = &mut self.transactions else {
                    return Ok(false);
                };
                let age = transactions.since.get_or_insert_with(Instant::now).elapsed();
                let most = match self.at_end.is_some() || self.shared.stop_at().is_some() {
                    true => LAST_MIN,
                    false => LAST_MAX,
                };
                if age < most {
                    return Ok(false);
                }
                transactions.stage = Stage::Closing;
            }
            Stage::Closing => {
                if self.sent() > 0 {
                    self.producer.native.flush(Duration::from_millis(10));
                    // Often while Kafka answers, seldom while it is away.
                    return Ok(self.reported_at.elapsed() < Duration::from_secs(2));
                }
                let mark = self.mark();
                if let Some(transactions) = &mut self.transactions {
                    transactions.stage = Stage::Ending { mark, is_sent: false };
                }
            }
            Stage::Ending { .. } => self.end()?,
        }
        Ok(true)
    }

    /// What Kafka's watermark is to be.
    pub(super) fn mark(&self) -> Mark {
        let stamp = self.transactions.as_ref().map_or(0, |transactions| transactions.stamp);
        let resend = self.transactions.as_ref().map_or(0, |transactions| transactions.resend);
        let mut mark = Mark {
            stamp,
            resend,
            main: self.main.reached(),
            lane: (self.lane.as_ref()).map_or_else(Reached::default, |lane| lane.flow.reached()),
        };
        if (self.transactions.as_ref())
            .is_some_and(|transactions| mark.metadata().len() > transactions.metadata_bytes_max)
        {
            mark.main.beyond.clear();
            mark.lane.beyond.clear();
        }
        mark
    }

    /// The brokers have refused metadata of so many bytes (`offset.metadata.max.bytes`): without them a commit is possible.
    fn too_long(&mut self, bytes: usize) {
        if let Some(transactions) = &mut self.transactions {
            transactions.metadata_bytes_max = transactions.metadata_bytes_max.min(bytes.saturating_sub(1));
        }
        tracing::warn!(
            "the brokers take no watermark with {bytes} bytes of metadata (offset.metadata.max.bytes): what is in Kafka behind a \
             record that waits is left out of it, and may be repeated after a crash, or when a commit is not confirmed. Raise \
             it to {METADATA_BYTES_MAX}"
        );
    }

    /// Puts the watermark into the open transaction and commits it.
    fn end(&mut self) -> Step<()> {
        let Some(transactions) = &mut self.transactions else {
            return Ok(());
        };
        let (Stage::Ending { mark, is_sent }, Some(metadata)) = (&mut transactions.stage, &transactions.metadata)
        else {
            return Ok(());
        };
        let producer = self.producer.native.producer();
        if !*is_sent {
            let sent = (offsets(mark)).and_then(|offsets| self.producer.send_offsets(offsets, metadata, CALL_MAX));
            if let Err(error) = sent {
                return self.not_ended(&error);
            }
            *is_sent = true;
        }
        match producer.commit_transaction(CALL_MAX) {
            Ok(()) => self.committed(),
            Err(error) => self.not_ended(&error),
        }
    }

    fn committed(&mut self) -> Step<()> {
        let mut runs = Runs::new();
        let (topics, latency) = (&mut self.topics, &self.latency);
        self.main.window.commit(|slot| runs.push(topics, latency, false, slot));
        if let Some(lane) = &mut self.lane {
            lane.flow.window.commit(|slot| runs.push(topics, latency, true, slot));
        }
        self.delivered(runs);
        self.shared.deliveries.committed();
        metrics::counter!(FORWARD_TRANSACTIONS_TOTAL).increment(1);
        self.open();
        Ok(())
    }

    /// Begins the next transaction, which costs nothing until a record goes into it.
    fn open(&mut self) {
        let begun = self.producer.native.producer().begin_transaction();
        let Some(transactions) = &mut self.transactions else {
            return;
        };
        transactions.since = None;
        match begun {
            Ok(()) => transactions.stage = Stage::Open,
            Err(error) => {
                self.trouble(format!("cannot begin a transaction: {}", explain(&error)));
                self.replace(self.wanted());
            }
        }
    }

    /// The transaction's end did not come about: again, not at all, or nobody knows.
    fn not_ended(&mut self, error: &KafkaError) -> Step<()> {
        let why = explain(error);
        match error {
            KafkaError::Transaction(error) if error.is_retriable() => {
                self.trouble(format!("Kafka has not committed yet ({why}); it is asked again"));
                Ok(())
            }
            KafkaError::Transaction(error) if error.txn_requires_abort() => {
                let code = error.code();
                self.explain_denial(code);
                self.trouble(format!("Kafka did not commit ({why}); the records are sent again"));
                let stage = self.transactions.as_ref().map(|transactions| &transactions.stage);
                if let (RDKafkaErrorCode::OffsetMetadataTooLarge, Some(Stage::Ending { mark, .. })) = (code, stage) {
                    self.too_long(mark.metadata().len());
                }
                // A group of suspects is sent as a whole again.
                self.main.group_sent = 0;
                if let Some(lane) = &mut self.lane {
                    lane.flow.group_sent = 0;
                }
                self.abort()?;
                self.set_back();
                // Another one makes the topic that is missing.
                if verdict::is_missing(code) {
                    self.replace(self.wanted());
                }
                Ok(())
            }
            // Whether it is committed, the watermark will tell.
            _ => self.ended(&why),
        }
    }

    /// The producer has ended: another takes over.
    fn ended(&mut self, why: &str) -> Step<()> {
        self.fatal_errors += 1;
        metrics::counter!(crate::metrics::FORWARD_FATAL_ERRORS_TOTAL).increment(1);
        tracing::warn!("the producer has ended and is made anew: {why}");
        self.link.note(why.to_owned());
        self.unsend();
        self.set_back();
        self.replace(self.wanted());
        Ok(())
    }

    /// Whatever was with the producer waits again; what of a transaction is committed is not decided by this.
    fn unsend(&mut self) {
        self.main.window.unsend();
        if let Some(lane) = &mut self.lane {
            lane.flow.window.unsend();
        }
    }

    /// Takes the transaction back, on Kafka's side; here it is done already, or is done now.
    pub(super) fn abort(&mut self) -> Step<()> {
        self.rolled_back();
        if let Some(transactions) = &mut self.transactions {
            transactions.stage = Stage::Aborting;
        }
        match self.producer.native.producer().abort_transaction(CALL_MAX) {
            Ok(()) => {
                // What was acknowledged in the last moment is taken back too.
                self.settle()?;
                self.rolled_back();
                let late = may_come_late(&self.failures);
                self.failures.clear();
                self.producer.inbox.judged();
                if late {
                    // Only another epoch keeps it out of the next transaction.
                    return self.ended("records of a transaction that was taken back may still be on their way");
                }
                self.open();
                Ok(())
            }
            // A commit that was begun is never followed by an abort: what came of it, the watermark will tell.
            Err(KafkaError::Transaction(error))
                if error.is_retriable() && error.code() != RDKafkaErrorCode::Conflict =>
            {
                self.trouble(format!("Kafka has not taken a transaction back yet: {error}"));
                Ok(())
            }
            Err(error) => self.ended(&explain(&error)),
        }
    }

    pub(super) fn rolled_back(&mut self) {
        self.shared.deliveries.rolled_back();
        self.main.window.roll_back();
        self.main.rewind();
        if let Some(lane) = &mut self.lane {
            lane.flow.window.roll_back();
            lane.flow.rewind();
        }
    }

    /// What was not acknowledged by the end is taken back, if Kafka is quick; otherwise it does so itself after a minute, or
    /// when the next gateway takes over.
    pub(super) fn give_up_transaction(&mut self, was_quiet: bool) {
        if self.in_transaction() == 0 || !was_quiet {
            return;
        }
        if let Some(transactions) = &mut self.transactions
            && transactions.stage != Stage::New
        {
            let aborted = self.producer.native.producer().abort_transaction(LOOK_MAX);
            if let Err(error) = aborted {
                tracing::debug!("the last transaction is left open: {}", explain(&error));
            }
            transactions.begin_anew();
            self.rolled_back();
        }
    }

    /// Whether the open transaction can be taken back, if there is one.
    pub(super) fn may_end_transaction(&self) -> bool {
        let stage = self.transactions.as_ref().map(|transactions| &transactions.stage);
        matches!(stage, None | Some(Stage::Open | Stage::Closing))
    }

    /// Takes the open transaction back, of which nothing is on its way any more (`purged`: by force); false: not yet.
    pub(super) fn end_for_rewind(&mut self, purged: bool) -> Step<bool> {
        self.rolled_back();
        if purged {
            self.replace(self.wanted());
            return Ok(false);
        }
        if self.may_end_transaction() {
            self.abort()?;
        }
        Ok(self.may_send())
    }

    /// [`crate::wal::Log::next_resend`], and none that Kafka's watermark ever had.
    pub(super) fn next_resend(&self, resend: Sequence) -> Sequence {
        let before = self.transactions.as_ref().map_or(0, |transactions| transactions.resend);
        self.main.log.next_resend(resend.max(before))
    }

    /// Takes Kafka's watermark back to `acked`, for the rewind of this number if it is one; false: Kafka does not answer.
    /// Without transactions there is none.
    pub(super) fn lower(&mut self, acked: Sequence, resend: Option<Sequence>) -> Step<bool> {
        match &mut self.transactions {
            None => return Ok(true),
            Some(transactions) if transactions.stage != Stage::Open => return Ok(false),
            Some(transactions) => transactions.resend = resend.unwrap_or(transactions.resend),
        }
        let mut mark = self.mark();
        mark.main = Reached {
            acked,
            beyond: Vec::new(),
        };
        self.sign(&mark)
    }

    /// Commits a watermark alone, in the open transaction, which is empty.
    pub(super) fn sign(&mut self, mark: &Mark) -> Step<bool> {
        let Some(metadata) = self
            .transactions
            .as_ref()
            .and_then(|transactions| transactions.metadata.as_ref())
        else {
            return Ok(false);
        };
        let producer = self.producer.native.producer();
        let signed = offsets(mark)
            .and_then(|offsets| self.producer.send_offsets(offsets, metadata, CALL_MAX))
            .and_then(|()| producer.commit_transaction(CALL_MAX));
        match signed {
            Ok(()) => {
                self.open();
                Ok(true)
            }
            Err(error) => {
                if let KafkaError::Transaction(error) = &error {
                    self.explain_denial(error.code());
                    if error.code() == RDKafkaErrorCode::OffsetMetadataTooLarge {
                        self.too_long(mark.metadata().len());
                    }
                }
                self.trouble(format!("Kafka has not taken the watermark: {}", explain(&error)));
                // Another producer finds out what has become of it.
                self.unsend();
                self.replace(self.wanted());
                Ok(false)
            }
        }
    }
}

/// The watermark, as it goes into a transaction.
pub(super) fn offsets(mark: &Mark) -> Result<TopicPartitionList, KafkaError> {
    let mut offsets = TopicPartitionList::new();
    let acked = i64::try_from(mark.main.acked).unwrap_or(i64::MAX);
    offsets.add_partition_offset(TOPIC, 0, Offset::Offset(acked))?;
    if let Some(mut element) = offsets.find_partition(TOPIC, 0) {
        element.set_metadata(mark.metadata());
    }
    Ok(offsets)
}
