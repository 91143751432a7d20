//! Sends records of any log to Kafka, a batch at a time: for replays, beside no log that could be acknowledged.
//!
//! A batch is through when each of its records is acknowledged or refused for good; the next one waits for that, so
//! order is kept as the forwarder keeps it: nothing overtakes what failed. Records carry the identity they have.
//! Does not know where they come from, nor what has been sent before.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rdkafka::error::RDKafkaErrorCode;

use super::flow::{Identity, send};
use super::producer::{Lookup, Producer};
use super::settings::Kind;
use super::verdict::{self, Verdict};
use super::{Options, tail};
use crate::kafka::link::{Link, Words};
use crate::kafka::native;
use crate::kafka::settings::{explain, unusable};
use crate::record::{Record, Sequence, WalId, now_ms};
use crate::wal::Signal;

/// What Kafka's absence means here.
const WORDS: Words = Words {
    away: "the replay waits for it",
    back: "the replay goes on",
};
/// How long Kafka may take to tell of a topic.
const LOOKUP_MAX: Duration = Duration::from_secs(5);
/// Between two tries.
const RETRY: Duration = Duration::from_millis(500);

/// A record that Kafka will not take.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refused {
    /// Its place in the log it came from.
    pub sequence: Sequence,
    /// Its topic.
    pub topic: String,
    /// Why, and what to do.
    pub reason: String,
}

/// Why a batch is not through.
#[derive(Debug, thiserror::Error)]
pub enum SendError {
    /// librdkafka does not know a property, or cannot use its value: exit code 2.
    #[error("{}", unusable(.0))]
    Properties(String),
    /// Kafka did not take anything for too long.
    #[error("Kafka did not take anything for {} s: {why}", .patience.as_secs())]
    Away {
        /// What it last complained of.
        why: String,
        /// How long was waited.
        patience: Duration,
    },
    /// Asked to stop.
    #[error("stopped")]
    Stopped,
}

/// See the module.
pub struct Sender {
    options: Options,
    identity: Identity,
    producer: Producer,
    signal: Arc<Signal>,
    link: Arc<Link>,
    /// Each topic's index with the producer, and why it takes nothing, if so.
    topics: HashMap<String, (u32, Option<RDKafkaErrorCode>)>,
    patience: Duration,
    /// Told once for each batch that has to wait, with the reason.
    waiting: Box<dyn Fn(&str)>,
}

impl Sender {
    /// For records of the log `own`; gives up when Kafka takes nothing for `patience`. `waiting` is told when a batch has to
    /// wait, with the reason.
    ///
    /// # Errors
    /// [`SendError::Properties`].
    pub fn new(
        options: Options,
        own: WalId,
        patience: Duration,
        waiting: Box<dyn Fn(&str)>,
    ) -> Result<Self, SendError> {
        let signal = Arc::new(Signal::default());
        let link = Arc::new(Link::new(WORDS));
        tail::settings(&options, false)
            .create_native_config()
            .map_err(|error| SendError::Properties(explain(&error)))?;
        let kind = Kind::Gapless { batch_bytes: None };
        let producer = Producer::create(&options, kind, None, &signal, &link, None).map_err(SendError::Properties)?;
        Ok(Self {
            options,
            identity: Identity::new(own),
            producer,
            signal,
            link,
            topics: HashMap::new(),
            patience,
            waiting,
        })
    }

    /// Sends a batch, in order, and waits until all of it is acknowledged or refused; those refused. `stop` is asked
    /// now and then.
    ///
    /// # Errors
    /// [`SendError`]: some of the batch may be in Kafka.
    pub fn send(&mut self, batch: &[(Sequence, Record)], stop: &dyn Fn() -> bool) -> Result<Vec<Refused>, SendError> {
        let mut waiting: Vec<usize> = (0..batch.len()).collect();
        let mut refused = Vec::new();
        let mut moved_at = Instant::now();
        // Suspects: one of them is bad, and only one that fails alone is it.
        let mut one_by_one = false;
        let mut told = false;
        while !waiting.is_empty() {
            if stop() {
                return Err(SendError::Stopped);
            }
            if moved_at.elapsed() > self.patience {
                return Err(SendError::Away {
                    why: self.trouble(),
                    patience: self.patience,
                });
            }
            let before = waiting.len();
            if !self.open_topics(batch, &waiting) {
                if !std::mem::replace(&mut told, true) {
                    (self.waiting)(&self.trouble());
                }
                self.signal.wait(RETRY);
                continue;
            }
            waiting.retain(|at| match self.fault(batch, *at) {
                None => true,
                Some(code) => {
                    refused.extend(batch.get(*at).map(|record| refusal(record, verdict::reason(code))));
                    false
                }
            });
            self.producer_for(one_by_one)?;
            let group = if one_by_one {
                waiting.iter().take(1).copied().collect()
            } else {
                waiting.clone()
            };
            let failed = self.round(batch, &group, stop)?;
            waiting.retain(|at| !group.contains(at) || failed.contains_key(at));
            let mut pause = false;
            for (at, code) in &failed {
                let Some(record) = batch.get(*at) else { continue };
                match verdict::verdict(*code) {
                    Verdict::Config => {
                        if let Some((_, fault)) = self.topics.get_mut(&record.1.topic) {
                            *fault = Some(*code);
                        }
                    }
                    Verdict::Poison | Verdict::Clock if group.len() == 1 => {
                        refused.push(refusal(record, format!("Kafka refused it alone: {code}")));
                        waiting.retain(|other| other != at);
                    }
                    Verdict::Poison | Verdict::Clock => one_by_one = true,
                    Verdict::Retry | Verdict::Fatal => pause = true,
                }
            }
            if waiting.len() < before {
                moved_at = Instant::now();
            }
            if pause {
                if !std::mem::replace(&mut told, true) {
                    (self.waiting)(&self.trouble());
                }
                self.signal.wait(RETRY);
            }
        }
        Ok(refused)
    }

    /// What Kafka last complained of.
    fn trouble(&self) -> String {
        let why = self.link.state().last_error;
        why.unwrap_or_else(|| "no broker answers".to_owned())
    }

    /// Why this record's topic takes nothing, if so.
    fn fault(&self, batch: &[(Sequence, Record)], at: usize) -> Option<RDKafkaErrorCode> {
        let (_, record) = batch.get(at)?;
        self.topics.get(&record.topic)?.1
    }

    /// Makes every topic of the batch known; false: Kafka does not answer.
    fn open_topics(&mut self, batch: &[(Sequence, Record)], waiting: &[usize]) -> bool {
        for (_, record) in waiting.iter().filter_map(|at| batch.get(*at)) {
            if self.topics.contains_key(&record.topic) {
                continue;
            }
            let index = u32::try_from(self.topics.len()).unwrap_or(u32::MAX);
            let fault = match self.producer.lookup(index as usize, &record.topic, LOOKUP_MAX) {
                Lookup::Exists => None,
                Lookup::Refused(code) => Some(code),
                Lookup::Away => return false,
            };
            self.topics.insert(record.topic.clone(), (index, fault));
        }
        true
    }

    /// A producer that works, of the kind that is needed.
    fn producer_for(&mut self, one_by_one: bool) -> Result<(), SendError> {
        let kind = match one_by_one {
            true => Kind::Probe,
            false => Kind::Gapless { batch_bytes: None },
        };
        if kind == self.producer.kind && self.producer.fatal().is_none() {
            return Ok(());
        }
        self.producer = Producer::create(&self.options, kind, None, &self.signal, &self.link, None)
            .map_err(SendError::Properties)?;
        for (topic, (index, fault)) in &mut self.topics {
            if let Err(code) = self.producer.native.open_topic(*index as usize, topic) {
                fault.get_or_insert(code);
            }
        }
        Ok(())
    }

    /// Hands these records over and waits for their reports: those that failed, and why.
    fn round(
        &mut self,
        batch: &[(Sequence, Record)],
        group: &[usize],
        stop: &dyn Fn() -> bool,
    ) -> Result<HashMap<usize, RDKafkaErrorCode>, SendError> {
        let mut failed = HashMap::new();
        let now = now_ms();
        for at in group {
            let Some((sequence, record)) = batch.get(*at) else {
                continue;
            };
            let topic = self.topics.get(&record.topic).map_or(0, |(index, _)| *index);
            // The place is told back as the index in the batch; who it is stands in the record.
            let place = *at as Sequence + 1;
            let mut record = record.borrowed();
            let who = self.identity.of(*sequence, record.origin);
            record.origin = Some(who);
            if let Err(code) = send(&self.producer, topic, false, place, &record, &self.identity, now) {
                // Behind it nothing is handed over: it would overtake.
                failed.insert(*at, code);
                let rest = group.iter().skip_while(|other| *other != at).skip(1);
                failed.extend(rest.map(|at| (*at, RDKafkaErrorCode::PurgeQueue)));
                break;
            }
        }
        let deadline = Instant::now() + self.patience;
        let mut reports = Vec::new();
        while self.producer.outstanding() > 0 {
            self.producer.native.flush(Duration::from_millis(20));
            if self.producer.fatal().is_some() {
                self.producer.purge_queue();
            }
            if stop() {
                self.producer.purge();
                return Err(SendError::Stopped);
            }
            if Instant::now() >= deadline {
                self.producer.purge();
            }
        }
        self.producer.inbox.swap(&mut reports);
        for report in reports {
            let (_, place) = native::place(report.opaque);
            if let (Some(code), Ok(at)) = (report.error, usize::try_from(place.saturating_sub(1))) {
                failed.insert(at, code);
            }
        }
        self.producer.inbox.judged();
        Ok(failed)
    }
}

fn refusal((sequence, record): &(Sequence, Record), reason: String) -> Refused {
    Refused {
        sequence: *sequence,
        topic: record.topic.clone(),
        reason,
    }
}
