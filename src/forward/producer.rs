//! The producer: what it is given, and what it reports.
//!
//! Delivery reports are numbers in a vector that the forwarder's thread swaps out; nothing is allocated per
//! record on the way back. Three kinds: `Gapless`, for everything, where any permanent failure ends the
//! producer before a later record can overtake; `Careful`, for groups of suspects, where a group is one
//! batch per partition and a failure ends nothing; and `Probe`, for one record. Does not know the log, windows or verdicts.

use std::ffi::CString;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use rdkafka::TopicPartitionList;
use rdkafka::client::ClientContext;
use rdkafka::config::RDKafkaLogLevel;
use rdkafka::consumer::ConsumerGroupMetadata;
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::message::{DeliveryResult, Message as _};
use rdkafka::producer::{Producer as _, ProducerContext, PurgeConfig};
use rdkafka::statistics::Statistics;
use tracing::debug;

use super::deliveries::Place;
use super::settings::{Kind, settings};
use super::{Delivery, OnDelivery, Options, tail};
use crate::kafka::link::{Link, log_line};
use crate::kafka::native::{self, Native};
use crate::kafka::polled::Polled;
use crate::kafka::settings::explain;
use crate::record::{Origin, Sequence};
use crate::wal::Signal;

/// How a report came out.
#[derive(Debug, Clone, Copy)]
pub(super) struct Report {
    /// See [`native::place`].
    pub(super) opaque: usize,
    /// `None`: acknowledged.
    pub(super) error: Option<RDKafkaErrorCode>,
    /// It failed, and Kafka may have it all the same.
    pub(super) maybe_persisted: bool,
    /// Where Kafka has put it.
    pub(super) place: Option<Place>,
    /// Who a record of the lane is, which counts for itself.
    pub(super) origin: Option<Origin>,
}

impl Report {
    /// Which record of this log Kafka has acknowledged, and where it is.
    pub(super) fn placed(&self, wal: [u8; 16]) -> Option<(Sequence, Place)> {
        let seq = match native::place(self.opaque) {
            (false, seq) => seq,
            (true, _) => self.origin.filter(|origin| origin.wal == wal)?.seq,
        };
        Some((seq, self.place?))
    }
}

/// When Kafka has been away for so long, its brokers are named again, and again after twice the time, ...
const REMIND_MIN: Duration = Duration::from_secs(30);
/// ... this much later at most.
const REMIND_MAX: Duration = Duration::from_secs(300);

/// A call that lasts so long, more than the longest that librdkafka gives a request (socket.timeout.ms), hangs.
const HUNG_AFTER: Duration = Duration::from_secs(30);
/// While so many hang the next one is waited for without limit: each has a client's memory.
const HUNG_MAX: usize = 8;

/// Reports that wake the thread at once; fewer are found at its next look, a few milliseconds later.
const WAKE_REPORTS: usize = 4096;

/// Where one producer's reports wait for the forwarder's thread.
pub(super) struct Inbox {
    reports: Mutex<Vec<Report>>,
    /// Set by the first failure: nothing more may be handed to this producer before it was judged.
    failed: AtomicBool,
    signal: Arc<Signal>,
}

impl Inbox {
    fn new(signal: Arc<Signal>) -> Self {
        Self {
            reports: Mutex::new(Vec::new()),
            failed: AtomicBool::new(false),
            signal,
        }
    }

    fn push(&self, report: Report) {
        if report.error.is_some() {
            self.failed.store(true, Ordering::Release);
        }
        let mut reports = self.reports.lock().unwrap_or_else(PoisonError::into_inner);
        reports.push(report);
        let wake = reports.len() == WAKE_REPORTS || (report.error.is_some() && reports.len() == 1);
        drop(reports);
        if wake {
            self.signal.notify();
        }
    }

    /// Swaps the reports into `into`, which must be empty.
    pub(super) fn swap(&self, into: &mut Vec<Report>) {
        std::mem::swap(&mut *self.reports.lock().unwrap_or_else(PoisonError::into_inner), into);
    }

    /// A delivery failed since this producer was made, or since [`Self::judged`].
    pub(super) fn failed(&self) -> bool {
        self.failed.load(Ordering::Acquire)
    }

    /// The failures were dealt with.
    pub(super) fn judged(&self) {
        self.failed.store(false, Ordering::Release);
    }
}

/// What librdkafka calls back.
pub(super) struct Context {
    inbox: Arc<Inbox>,
    link: Arc<Link>,
    on_delivery: Option<Arc<OnDelivery>>,
}

impl ClientContext for Context {
    fn log(&self, level: RDKafkaLogLevel, facility: &str, line: &str) {
        log_line(level, facility, line);
    }

    fn stats(&self, statistics: Statistics) {
        self.link.statistics(&statistics);
    }

    fn error(&self, error: KafkaError, reason: &str) {
        self.link.client_error(&error, reason);
    }
}

impl ProducerContext for Context {
    type DeliveryOpaque = usize;

    fn delivery(&self, result: &DeliveryResult<'_>, opaque: usize) {
        let report = match result {
            Ok(message) => {
                if let Some(on_delivery) = &self.on_delivery {
                    on_delivery(&Delivery {
                        topic: message.topic(),
                        partition: message.partition(),
                        offset: message.offset(),
                        seq: tail::identity(message).map_or(0, |who| who.seq),
                        value: message.payload(),
                    });
                }
                let place = Place {
                    partition: message.partition(),
                    offset: message.offset(),
                };
                let (in_lane, _) = native::place(opaque);
                Report {
                    opaque,
                    error: None,
                    maybe_persisted: false,
                    place: Some(place),
                    origin: in_lane.then(|| tail::identity(message)).flatten(),
                }
            }
            Err((error, message)) => {
                let code = error.rdkafka_error_code().unwrap_or(RDKafkaErrorCode::Unknown);
                Report {
                    opaque,
                    error: Some(code),
                    maybe_persisted: code == RDKafkaErrorCode::PurgeInflight || native::maybe_persisted(message),
                    place: None,
                    origin: None,
                }
            }
        };
        self.inbox.push(report);
    }
}

/// What the metadata say of a topic.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Lookup {
    /// It is there (a missing leader is Kafka being away).
    Exists,
    /// It is not, or not for us.
    Refused(RDKafkaErrorCode),
    /// Nobody answered in time.
    Away,
}

/// A running producer.
pub(super) struct Producer {
    pub(super) native: Native<Context>,
    pub(super) inbox: Arc<Inbox>,
    pub(super) kind: Kind,
    link: Arc<Link>,
    brokers: CString,
    /// Kafka's absence at which its brokers are named again.
    remind_at: Duration,
}

impl Producer {
    /// Makes a producer; needs no broker.
    ///
    /// # Errors
    /// A property that librdkafka does not know or cannot take, in words that do not tell its value.
    pub(super) fn create(
        options: &Options,
        kind: Kind,
        transactions: Option<&str>,
        signal: &Arc<Signal>,
        link: &Arc<Link>,
        on_delivery: Option<&Arc<OnDelivery>>,
    ) -> Result<Self, String> {
        let config = settings(options, kind, transactions);
        let inbox = Arc::new(Inbox::new(Arc::clone(signal)));
        let context = Context {
            inbox: Arc::clone(&inbox),
            link: Arc::clone(link),
            on_delivery: on_delivery.cloned(),
        };
        let producer = Polled::create(&config, context).map_err(|error| explain(&error))?;
        Ok(Self {
            native: Native::new(producer, config.get("partitioner")),
            inbox,
            kind,
            link: Arc::clone(link),
            brokers: CString::new(options.bootstrap_servers.as_str()).unwrap_or_default(),
            remind_at: REMIND_MIN,
        })
    }

    /// Kafka has been away for so long: now and then the configured brokers are named again.
    ///
    /// librdkafka (2.12.1) forgets them once the cluster has said where it is, and asks them again when all it knows are
    /// gone. But when an answer arrives in that very moment, `rd_kafka_rebootstrap_tmr_stop` stops the timer and leaves
    /// `rk_rebootstrap_in_progress` set, and nobody is asked any more: brokers that had told a wrong address, and were
    /// mended, were never found again.
    pub(super) fn remind(&mut self, away: Duration) {
        if away < REMIND_MIN {
            self.remind_at = REMIND_MIN;
        } else if away >= self.remind_at {
            self.native.name_brokers(&self.brokers);
            self.remind_at = away + away.min(REMIND_MAX);
        }
    }

    /// Puts the watermark into the open transaction. Kafka has `limit` to answer.
    ///
    /// librdkafka (2.12.1) may wait without any limit for the coordinator of a group that is gone (one of three brokers
    /// killed: in two of three runs). So the call has a thread of its own, and one that hangs is left behind with its
    /// producer until Kafka lets it go.
    ///
    /// # Errors
    /// Kafka's; or `Global(OperationTimedOut)`: it hangs, and this producer is of no more use.
    pub(super) fn send_offsets(
        &self,
        offsets: TopicPartitionList,
        group: &Arc<ConsumerGroupMetadata>,
        limit: Duration,
    ) -> Result<(), KafkaError> {
        /// Such calls of this process that hang.
        static HUNG: Mutex<Vec<JoinHandle<()>>> = Mutex::new(Vec::new());
        let hangs = KafkaError::Global(RDKafkaErrorCode::OperationTimedOut);
        let (producer, group) = (self.native.producer().clone(), Arc::clone(group));
        let (answer, answered) = mpsc::sync_channel(1);
        let call = move || {
            let sent = producer.send_offsets_to_transaction(&offsets, &group, limit);
            drop(producer);
            // Nobody waits for one that hung.
            drop(answer.send(sent));
        };
        let Ok(thread) = thread::Builder::new().name("watermark".to_owned()).spawn(call) else {
            return Err(hangs);
        };
        let hung = || {
            let mut hung = HUNG.lock().unwrap_or_else(PoisonError::into_inner);
            hung.retain(|thread| !thread.is_finished());
            hung
        };
        if hung().len() >= HUNG_MAX {
            return answered.recv().unwrap_or(Err(hangs));
        }
        match answered.recv_timeout(HUNG_AFTER) {
            Ok(sent) => sent,
            Err(_) => {
                hung().push(thread);
                Err(hangs)
            }
        }
    }

    /// Messages without a report yet.
    pub(super) fn outstanding(&self) -> usize {
        usize::try_from(self.native.producer().in_flight_count()).unwrap_or_default()
    }

    /// The fatal error that ended this producer.
    pub(super) fn fatal(&self) -> Option<(RDKafkaErrorCode, String)> {
        self.native.producer().client().fatal_error()
    }

    /// What waits in the queue gets its report now; what is on the wire waits for its answer.
    pub(super) fn purge_queue(&self) {
        self.native.producer().purge(PurgeConfig::default().queue());
    }

    /// Everything outstanding gets its report now.
    pub(super) fn purge(&self) {
        self.native.producer().purge(PurgeConfig::default().queue().inflight());
    }

    /// Asks Kafka for a topic; blocks for `timeout` at most. A topic that exists has its handle afterwards.
    pub(super) fn lookup(&mut self, index: usize, name: &str, timeout: Duration) -> Lookup {
        // Before the request, so that the handle has our partitioner.
        if let Err(code) = self.native.open_topic(index, name) {
            return Lookup::Refused(code);
        }
        let lookup = match self.native.producer().client().fetch_metadata(Some(name), timeout) {
            Err(error) => {
                debug!(topic = name, %error, "no metadata");
                return Lookup::Away;
            }
            Ok(metadata) => {
                self.link.up();
                let error = metadata
                    .topics()
                    .first()
                    .and_then(rdkafka::metadata::MetadataTopic::error);
                refusal(error.map(RDKafkaErrorCode::from))
            }
        };
        if lookup != Lookup::Exists {
            self.native.close_topic(index);
        }
        lookup
    }
}

/// What a topic's error in the metadata says.
pub(super) fn refusal(error: Option<RDKafkaErrorCode>) -> Lookup {
    match error {
        Some(
            code @ (RDKafkaErrorCode::UnknownTopicOrPartition
            | RDKafkaErrorCode::UnknownTopic
            | RDKafkaErrorCode::UnknownTopicId
            | RDKafkaErrorCode::InvalidTopic
            | RDKafkaErrorCode::TopicAuthorizationFailed),
        ) => Lookup::Refused(code),
        // LeaderNotAvailable and its like: the topic is there, its leader is not yet.
        _ => Lookup::Exists,
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::super::WORDS;
    use super::super::settings::tests::options;
    use super::*;

    #[test]
    fn an_unknown_property_is_an_error_that_names_it_and_not_its_value() {
        let signal = Arc::new(Signal::default());
        let link = Arc::new(Link::new(WORDS));
        let result = Producer::create(
            &options(&[("sasl.pasword", "hunter2")]),
            Kind::Gapless { batch_bytes: None },
            None,
            &signal,
            &link,
            None,
        );
        let error = result.err().unwrap();
        assert!(error.contains("sasl.pasword") && !error.contains("hunter2"), "{error}");
    }

    #[test]
    fn a_topic_without_a_leader_is_no_bad_topic() {
        assert_eq!(refusal(Some(RDKafkaErrorCode::LeaderNotAvailable)), Lookup::Exists);
        assert_eq!(refusal(None), Lookup::Exists);
    }
}
