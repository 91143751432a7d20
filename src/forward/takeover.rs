//! A new producer takes over (`delivery = "exactly_once"`): Kafka ends what the one before left open, tells its watermark,
//! and gets it signed.
//!
//! Whatever is wrong with the watermark is a reason to send nothing: one that is believed by mistake has records passed
//! over for good.

use std::sync::Arc;
use std::time::{Duration, Instant};

use rdkafka::admin::{AdminClient, AdminOptions, NewTopic, TopicReplication};
use rdkafka::config::FromClientConfigAndContext as _;
use rdkafka::consumer::{BaseConsumer, Consumer as _};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::producer::Producer as _;
use rdkafka::{Offset, TopicPartitionList};

use super::drain::{Drain, Runs, Step};
use super::flow::Flow;
use super::mark::{Mark, Reached};
use super::producer::{Lookup, refusal};
use super::start::{AWAY_MAX, AWAY_MIN};
use super::transaction::{CALL_MAX, LOOK_MAX, Stage, TOPIC, TOPIC_NAME};
use super::window::{Slot, State};
use super::{tail, verdict};
use crate::kafka::native;
use crate::kafka::settings::explain;
use crate::record::Sequence;
use crate::wal::Log;

type Consumer = BaseConsumer<tail::Context>;

/// Kafka's watermark is not this folder's.
#[derive(Debug, thiserror::Error)]
pub(super) enum Foreign {
    /// Another gateway signed it.
    #[error(
        "another gateway with the same log identity ({group}) has sent records to Kafka since this folder was last in \
         use: one of the two is a copy. Two gateways of one identity would hide each other's records, so this one sends \
         nothing. What it answered OK stays in its folder. Decide which of the two goes on: docs/runbook/gateway-cloned.md"
    )]
    Another {
        /// The group that the watermark is kept with.
        group: String,
    },
    /// It is beyond the end of the log.
    #[error(
        "Kafka has this log's records up to sequence {acked}, and this folder ends at {committed}: it is an older copy, or \
         has lost its end. New records would get sequences that are used, so this gateway sends nothing. Move the folder \
         away, start with a new one, and send what the old one has with `tidegate wal replay`"
    )]
    Ahead {
        /// Kafka's watermark.
        acked: Sequence,
        /// The folder's.
        committed: Sequence,
    },
    /// The folder's own record of its stamps.
    #[error("{0}: it says whose watermark Kafka has, and without it nothing is sent. Mend the disk, then start again")]
    Stamps(#[from] std::io::Error),
}

/// A producer that could not take over for so long is made anew.
const WAIT_MAX: Duration = Duration::from_secs(60);

impl Drain {
    /// Before anything is sent: see [`Self::enter`]; waits for Kafka. Whether the log was rewound meanwhile.
    pub(super) fn take_over(&mut self) -> Step<bool> {
        let mut wait = AWAY_MIN;
        while self
            .transactions
            .as_ref()
            .is_some_and(|transactions| transactions.stage == Stage::New)
        {
            if self.enter()? {
                return Ok(false);
            }
            self.publish(true);
            if self.over() {
                return Ok(false);
            }
            // Nothing is moved in the lane before it is known what of it Kafka has.
            if self.meanwhile(wait, false, true)? {
                return Ok(true);
            }
            wait = (wait * 2).min(AWAY_MAX);
        }
        Ok(false)
    }

    /// What was taken over of the lane, if its own watermark does not say all of it.
    pub(super) fn adopted_lane(&self) -> Option<Reached> {
        let reached = &self.transactions.as_ref()?.adopted.as_ref()?.lane;
        let log = &self.lane.as_ref()?.flow.log;
        (is_of(reached, log) && reached.exceeds(log.watermarks().acked)).then(|| reached.clone())
    }

    /// A new producer takes over: ends what the one before left open, takes over Kafka's watermark and signs it. False:
    /// Kafka does not answer.
    pub(super) fn enter(&mut self) -> Step<bool> {
        let found = self.look_for_topic().and_then(|consumer| self.read_mark(&consumer));
        let mark = match found {
            Ok(mark) => mark,
            Err(error) => {
                self.link
                    .error(format!("cannot take over the transactions: {}", explain(&error)));
                if let KafkaError::Transaction(error) = &error {
                    self.explain_denial(error.code());
                }
                return Ok(false);
            }
        };
        self.link.up();
        let believed = self.believe(mark)?;
        self.rolled_back();
        if let Some(mark) = believed {
            self.adopt(&mark)?;
        }
        let begun = self.producer.native.producer().begin_transaction();
        if let Err(error) = begun {
            self.link
                .error(format!("cannot begin a transaction: {}", explain(&error)));
            self.replace(self.wanted());
            return Ok(false);
        }
        let signed = self.sign(&self.mark())?;
        if let (true, Some(transactions)) = (signed, &mut self.transactions) {
            transactions.is_signed = true;
        }
        Ok(signed)
    }

    /// A consumer of the watermark's group, whose topic is there.
    fn look_for_topic(&self) -> Result<Consumer, KafkaError> {
        let group = self
            .transactions
            .as_ref()
            .map_or("", |transactions| transactions.group.as_str());
        let mut config = tail::settings(&self.options, true);
        config.set("group.id", group);
        let consumer: Consumer = config.create_with_context(tail::Context::new(&self.link))?;
        let metadata = consumer.fetch_metadata(Some(TOPIC), LOOK_MAX)?;
        let error = metadata.topics().first().and_then(|topic| topic.error());
        if let Lookup::Refused(code) = refusal(error.map(RDKafkaErrorCode::from)) {
            match verdict::is_missing(code) {
                true => self.make_topic()?,
                false => {
                    self.explain_denial(code);
                    return Err(KafkaError::MetadataFetch(code));
                }
            }
        }
        Ok(consumer)
    }

    /// Takes over, and reads Kafka's watermark: offset and metadata, if there is one.
    fn read_mark(&mut self, consumer: &Consumer) -> Result<Option<(i64, String)>, KafkaError> {
        if let Err(error) = self.producer.native.producer().init_transactions(CALL_MAX) {
            // Only one that may be asked again is of any more use, and not for ever: librdkafka may stand still.
            let since = (self.transactions.as_mut())
                .map(|transactions| *transactions.waits_since.get_or_insert_with(Instant::now));
            let is_stuck = since.is_some_and(|since| since.elapsed() > WAIT_MAX);
            if is_stuck || !matches!(&error, KafkaError::Transaction(error) if error.is_retriable()) {
                self.replace(self.wanted());
            }
            return Err(error);
        }
        let read = self.committed_mark(consumer);
        if read.is_err() {
            self.replace(self.wanted());
        }
        read
    }

    fn committed_mark(&mut self, consumer: &Consumer) -> Result<Option<(i64, String)>, KafkaError> {
        let mut wanted = TopicPartitionList::new();
        wanted.add_partition(TOPIC, 0);
        let committed = consumer.committed_offsets(wanted, CALL_MAX)?;
        let Some(transactions) = &mut self.transactions else {
            return Ok(None);
        };
        transactions.metadata = consumer.group_metadata().map(Arc::new);
        let Some(element) = committed.find_partition(TOPIC, 0) else {
            return Ok(None);
        };
        element.error()?;
        Ok(match element.offset() {
            Offset::Offset(offset) => Some((offset, native::offset_metadata(&committed, TOPIC_NAME, 0))),
            _ => None,
        })
    }

    /// Makes the topic of the watermark.
    fn make_topic(&self) -> Result<(), KafkaError> {
        let context = tail::Context::new(&self.link);
        let admin: AdminClient<tail::Context> =
            AdminClient::from_config_and_context(&tail::settings(&self.options, true), context)?;
        // -1: as many copies as the brokers make by default.
        let topic = NewTopic::new(TOPIC, 1, TopicReplication::Fixed(-1));
        let options = AdminOptions::new()
            .request_timeout(Some(CALL_MAX))
            .operation_timeout(Some(CALL_MAX));
        // The answer comes from librdkafka's thread: all that is needed is somebody who waits for it.
        let waiting = tokio::runtime::Builder::new_current_thread().build();
        let waiting = waiting.map_err(|_| KafkaError::AdminOp(RDKafkaErrorCode::Fail))?;
        let made = waiting.block_on(admin.create_topics([&topic], &options))?;
        match made.into_iter().next() {
            Some(Err((_, code))) if code != RDKafkaErrorCode::TopicAlreadyExists => {
                self.link.note(format!(
                    "the topic {TOPIC} cannot be made ({code}): make it, with one partition, or grant CREATE on it. Records \
                     wait in the log until then"
                ));
                Err(KafkaError::AdminOp(code))
            }
            _ => {
                tracing::info!(
                    "the topic {TOPIC} was made: the watermark of delivery = \"exactly_once\" is kept for it"
                );
                Ok(())
            }
        }
    }

    /// Whether Kafka's watermark may be taken over: the one that counts, if any.
    fn believe(&mut self, found: Option<(i64, String)>) -> Step<Option<Mark>> {
        let Some(transactions) = &self.transactions else {
            return Ok(None);
        };
        let (stamp, group) = (transactions.stamp, transactions.group.clone());
        let mut kept = self.wal.stamps().map_err(Foreign::from)?;
        let marks = self.main.log.watermarks();
        let mark = found.as_ref().map(|(offset, metadata)| {
            Mark::parse(*offset, metadata).unwrap_or_else(|| Mark {
                main: Reached {
                    acked: Sequence::try_from(*offset).unwrap_or_default(),
                    beyond: Vec::new(),
                },
                ..Mark::default()
            })
        });
        if transactions.is_signed {
            // Only this process signs with it.
            return match mark {
                Some(mark) if mark.stamp != stamp => Err(Foreign::Another { group }.into()),
                // None: a group that commits nothing for long is forgotten (offsets.retention.minutes).
                mark => Ok(mark),
            };
        }
        let (mut believed, mut number) = (None, self.main.log.resend());
        if let Some(mark) = mark {
            let lane_acked = self.lane.as_ref().map_or(0, |lane| lane.flow.window.acked());
            let says_more = mark.main.exceeds(marks.acked) || mark.lane.exceeds(lane_acked);
            let is_ours = kept.contains(&mark.stamp);
            // Of a folder without stamps nobody knows; then a watermark that says nothing new does no harm.
            if !is_ours && (says_more || !kept.is_empty()) {
                return Err(Foreign::Another { group }.into());
            }
            let committed = transactions.opened;
            if mark.main.exceeds(committed) {
                let last = mark.main.beyond.last().map(|(_, last)| *last);
                let acked = last.unwrap_or(mark.main.acked);
                return Err(Foreign::Ahead { acked, committed }.into());
            }
            // An operator has had the log rewound while there were no transactions, or no gateway.
            let resend = self.main.log.resend();
            let is_before = resend > marks.acked && mark.resend != resend;
            kept.retain(|kept| *kept == mark.stamp);
            number = if resend > marks.acked { resend } else { mark.resend };
            believed = is_ours.then(|| match is_before {
                // What it says of the lane is true all the same.
                true => Mark {
                    main: Reached::default(),
                    ..mark
                },
                false => mark,
            });
        }
        // Before Kafka has it. Of those before, only the one in Kafka can still be met.
        if let Some(last) = kept.pop() {
            kept = vec![last];
        }
        kept.push(stamp);
        self.wal.keep_stamps(&kept).map_err(Foreign::from)?;
        if let Some(transactions) = &mut self.transactions {
            transactions.resend = number;
        }
        Ok(believed)
    }

    /// Takes over what Kafka's watermark says.
    pub(super) fn adopt(&mut self, mark: &Mark) -> Step<()> {
        if self.main.window.is_empty() && mark.main.acked > self.main.log.watermarks().acked {
            self.main.log.ack(mark.main.acked)?;
            let mut flow = Flow::new(self.main.log.clone(), false);
            std::mem::swap(&mut flow.settled, &mut self.main.settled);
            std::mem::swap(&mut flow.in_lane, &mut self.main.in_lane);
            flow.settled.retain(|seq| *seq > mark.main.acked);
            self.main = flow;
        }
        let mut runs = Runs::new();
        let (topics, latency) = (&mut self.topics, &self.latency);
        adopt(&mut self.main, &mark.main, |slot| {
            runs.push(topics, latency, false, slot)
        });
        self.delivered(runs);
        self.adopt_lane(&mark.lane);
        if let Some(transactions) = &mut self.transactions {
            transactions.adopted = Some(mark.clone());
        }
        Ok(())
    }

    fn adopt_lane(&mut self, reached: &Reached) {
        let Some(lane) = &mut self.lane else { return };
        if !is_of(reached, &lane.flow.log) {
            return;
        }
        let mut runs = Runs::new();
        let (topics, latency) = (&mut self.topics, &self.latency);
        adopt(&mut lane.flow, reached, |slot| runs.push(topics, latency, true, slot));
        self.delivered(runs);
    }
}

/// Whether a watermark can be this lane's: one that was lost and made anew has none of its sequences.
fn is_of(reached: &Reached, lane: &Log) -> bool {
    !reached.exceeds(lane.committed())
}

/// Kafka has these.
fn adopt(flow: &mut Flow, reached: &Reached, mut see: impl FnMut(Slot)) {
    flow.adopted = reached.behind(flow.window.acked());
    for (first, last) in flow.adopted.clone() {
        for seq in first..=last {
            match flow.window.set(seq, State::Done) {
                Some(slot) => see(slot),
                None if seq >= flow.window.end() => {
                    flow.settled.insert(seq);
                }
                None => {}
            }
        }
    }
}
