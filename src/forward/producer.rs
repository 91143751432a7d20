//! The producer: its settings, what it reports, and what is known of the connection.
//!
//! Delivery reports are numbers in a vector that the forwarder's thread swaps out; nothing is allocated per
//! record on the way back. Three kinds: `Gapless`, for everything, where any permanent failure ends the
//! producer before a later record can overtake; `Careful`, for groups of suspects, where a group is one
//! batch per partition and a failure ends nothing; and `Probe`, for one record. Does not know the log, windows or verdicts.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use rdkafka::client::ClientContext;
use rdkafka::config::{ClientConfig, FromClientConfigAndContext, RDKafkaLogLevel};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::message::{DeliveryResult, Message as _};
use rdkafka::producer::{Producer as _, ProducerContext, PurgeConfig, ThreadedProducer};
use rdkafka::statistics::Statistics;
use tracing::{debug, info, warn};

use super::native::{self, Native};
use super::{Delivery, OnDelivery, Options};
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
}

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

/// What is known of the connection to Kafka. Shared by all clients of the forwarder.
#[derive(Debug, Default)]
pub(super) struct Link {
    state: Mutex<LinkState>,
}

/// See [`Link`].
#[derive(Debug, Default, Clone)]
pub(super) struct LinkState {
    /// From evidence only: a delivery, a metadata answer, or librdkafka's own states of its brokers.
    pub(super) up: bool,
    /// Told to the log once per change.
    reported_down: bool,
    /// The last error text that librdkafka gave.
    pub(super) last_error: Option<String>,
}

impl Link {
    fn lock(&self) -> MutexGuard<'_, LinkState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn state(&self) -> LinkState {
        self.lock().clone()
    }

    /// Kafka answered.
    pub(super) fn up(&self) {
        let mut state = self.lock();
        if !state.up {
            state.up = true;
            if std::mem::take(&mut state.reported_down) {
                info!("Kafka is reachable again; the backlog is being sent");
            }
        }
    }

    fn down(&self) {
        let mut state = self.lock();
        state.up = false;
        if !state.reported_down {
            state.reported_down = true;
            let why = state
                .last_error
                .clone()
                .unwrap_or_else(|| "no broker answers".to_owned());
            warn!("Kafka unreachable: {why}; records are safe in the log and will be sent when it returns");
        }
    }

    /// Keeps the text for status and log.
    pub(super) fn error(&self, text: String) {
        let mut state = self.lock();
        if !state.up && !state.reported_down {
            drop(state);
            self.note(text);
            self.down();
            return;
        }
        state.last_error = Some(text);
    }

    /// Keeps the text; says nothing about the connection.
    pub(super) fn note(&self, text: String) {
        self.lock().last_error = Some(text);
    }

    /// From librdkafka's error callback.
    fn client_error(&self, error: &KafkaError, reason: &str) {
        // Comes with live brokers too (44 times in one measured run) and carries no reason.
        if error.rdkafka_error_code() == Some(RDKafkaErrorCode::AllBrokersDown) {
            return;
        }
        self.error(reason.to_owned());
    }
}

/// librdkafka's lines, at a level that does not repeat what [`Link`] says.
pub(super) fn log_line(level: RDKafkaLogLevel, facility: &str, line: &str) {
    // Producer settings given to the read-back's consumer, and the reverse.
    if facility != "CONFWARN" {
        debug!(target: "librdkafka", ?level, facility, "{line}");
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
        if statistics.brokers.values().any(|broker| broker.state == "UP") {
            self.link.up();
        } else {
            self.link.down();
        }
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
                    let seq = native::header(message, native::SEQ)
                        .and_then(|seq| std::str::from_utf8(seq).ok()?.parse().ok());
                    on_delivery(&Delivery {
                        topic: message.topic(),
                        partition: message.partition(),
                        offset: message.offset(),
                        seq: seq.unwrap_or_default(),
                        value: message.payload(),
                    });
                }
                Report {
                    opaque,
                    error: None,
                    maybe_persisted: false,
                }
            }
            Err((error, message)) => {
                let code = error.rdkafka_error_code().unwrap_or(RDKafkaErrorCode::Unknown);
                Report {
                    opaque,
                    error: Some(code),
                    maybe_persisted: code == RDKafkaErrorCode::PurgeInflight || native::maybe_persisted(message),
                }
            }
        };
        self.inbox.push(report);
    }
}

/// See the module.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    /// For everything. `batch_bytes`: a smaller batch.size, found necessary.
    Gapless {
        /// `None`: as configured.
        batch_bytes: Option<u32>,
    },
    /// One group at a time, flushed by hand.
    Careful,
    /// One record, to see whether its topic takes it.
    Probe,
}

/// The batch.size that is used unless the configuration has another, bytes.
const BATCH_BYTES: u32 = 1_000_000;
/// batch.size is never made smaller than this.
pub(super) const BATCH_BYTES_MIN: u32 = 16_384;

/// librdkafka has two names for some settings; the first is the one that is set below.
const ALIASES: [(&str, &str); 3] = [
    ("bootstrap.servers", "metadata.broker.list"),
    ("linger.ms", "queue.buffering.max.ms"),
    ("compression.type", "compression.codec"),
];

/// What any client of this gateway starts from: the user's properties over our defaults.
pub(super) fn base_settings(options: &Options) -> BTreeMap<String, String> {
    let kbytes = (options.in_flight_bytes_max / 1024 * 2).clamp(1024, 2_097_151);
    let mut settings: BTreeMap<String, String> = [
        ("client.id", options.client_id.as_str()),
        ("bootstrap.servers", options.bootstrap_servers.as_str()),
        ("linger.ms", "5"),
        ("batch.num.messages", "10000"),
        ("compression.type", "lz4"),
        ("partitioner", "murmur2_random"),
        // 0, or librdkafka chooses at random for records without a key before our partitioner is asked.
        ("sticky.partitioning.linger.ms", "0"),
        // The window is what limits: librdkafka's own limits are only a little above it.
        ("queue.buffering.max.messages", "500000"),
        ("reconnect.backoff.max.ms", "1000"),
        ("retry.backoff.max.ms", "1000"),
        ("socket.keepalive.enable", "true"),
        // A missing topic is to be held, not made by accident.
        ("allow.auto.create.topics", "false"),
        // How long a topic may be missing from the metadata before its records are reported as failed.
        ("topic.metadata.propagation.max.ms", "10000"),
        ("statistics.interval.ms", "2000"),
    ]
    .into_iter()
    .map(|(name, value)| (name.to_owned(), value.to_owned()))
    .collect();
    settings.insert("queue.buffering.max.kbytes".to_owned(), kbytes.to_string());
    settings.insert("batch.size".to_owned(), BATCH_BYTES.to_string());
    for (name, value) in &options.properties {
        let canonical = ALIASES
            .iter()
            .find(|(_, alias)| alias == name)
            .map_or(name.as_str(), |(canonical, _)| canonical);
        settings.insert(canonical.to_owned(), value.clone());
    }
    // No servers among the properties when the configuration has its own key for them.
    settings.insert("bootstrap.servers".to_owned(), options.bootstrap_servers.clone());
    settings
}

/// The settings of a producer: what the promises rest on goes over everything else.
pub(super) fn settings(options: &Options, kind: Kind) -> ClientConfig {
    let mut settings = base_settings(options);
    let mut set = |name: &str, value: &str| settings.insert(name.to_owned(), value.to_owned());
    set("acks", "all");
    set("enable.idempotence", "true");
    // 0: for ever. A record is never given up because of time.
    set("message.timeout.ms", "0");
    match kind {
        Kind::Gapless { batch_bytes } => {
            set("enable.gapless.guarantee", "true");
            if let Some(bytes) = batch_bytes {
                set("batch.size", &bytes.to_string());
            }
        }
        Kind::Careful => {
            set("enable.gapless.guarantee", "false");
            // A group goes out as one batch per partition: nothing is sent before the flush.
            set("linger.ms", "60000");
            set("batch.size", &BATCH_BYTES.to_string());
            set("batch.num.messages", "10000");
            // Nothing leaves the queue before the group is whole, so the group must fit.
            set("queue.buffering.max.messages", "500000");
            set("queue.buffering.max.kbytes", "1048576");
        }
        Kind::Probe => {
            set("enable.gapless.guarantee", "false");
            set("linger.ms", "0");
        }
    }
    let mut config = ClientConfig::new();
    config.set_log_level(RDKafkaLogLevel::Warning);
    for (name, value) in settings {
        config.set(name, value);
    }
    config
}

/// The batch.size that is configured, bytes.
pub(super) fn batch_bytes(options: &Options) -> u32 {
    let configured = base_settings(options).remove("batch.size");
    configured.and_then(|bytes| bytes.parse().ok()).unwrap_or(BATCH_BYTES)
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
    pub(super) native: Native,
    pub(super) inbox: Arc<Inbox>,
    pub(super) kind: Kind,
    link: Arc<Link>,
}

impl Producer {
    /// Makes a producer; needs no broker.
    ///
    /// # Errors
    /// A property that librdkafka does not know or cannot take.
    pub(super) fn create(
        options: &Options,
        kind: Kind,
        signal: &Arc<Signal>,
        link: &Arc<Link>,
        on_delivery: Option<&Arc<OnDelivery>>,
    ) -> Result<Self, KafkaError> {
        let config = settings(options, kind);
        let inbox = Arc::new(Inbox::new(Arc::clone(signal)));
        let context = Context {
            inbox: Arc::clone(&inbox),
            link: Arc::clone(link),
            on_delivery: on_delivery.cloned(),
        };
        let producer = ThreadedProducer::from_config_and_context(&config, context)?;
        Ok(Self {
            native: Native::new(producer, config.get("partitioner")),
            inbox,
            kind,
            link: Arc::clone(link),
        })
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
    use super::*;

    fn options(properties: &[(&str, &str)]) -> Options {
        Options {
            bootstrap_servers: "127.0.0.1:1".into(),
            client_id: "test".into(),
            properties: (properties.iter())
                .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()))
                .collect(),
            in_flight_bytes_max: 64 << 20,
            bytes_per_second_max: None,
            on_delivery: None,
        }
    }

    #[test]
    fn librdkafka_takes_both_kinds_of_settings() {
        for kind in [
            Kind::Gapless {
                batch_bytes: Some(20_000),
            },
            Kind::Careful,
        ] {
            settings(&options(&[]), kind).create_native_config().unwrap();
        }
    }

    #[test]
    fn what_the_promises_rest_on_cannot_be_overridden() {
        let config = settings(
            &options(&[
                ("acks", "1"),
                ("message.timeout.ms", "5"),
                ("enable.idempotence", "false"),
            ]),
            Kind::Gapless { batch_bytes: None },
        );
        assert_eq!(config.get("acks"), Some("all"));
        assert_eq!(config.get("message.timeout.ms"), Some("0"));
        assert_eq!(config.get("enable.idempotence"), Some("true"));
    }

    #[test]
    fn a_setting_under_its_other_name_replaces_the_default() {
        let config = settings(
            &options(&[("compression.codec", "zstd")]),
            Kind::Gapless { batch_bytes: None },
        );
        assert_eq!(config.get("compression.type"), Some("zstd"));
        assert_eq!(config.get("compression.codec"), None);
    }

    #[test]
    fn an_unknown_property_is_an_error_that_names_it() {
        let signal = Arc::new(Signal::default());
        let link = Arc::new(Link::default());
        let result = Producer::create(
            &options(&[("linger.msx", "5")]),
            Kind::Gapless { batch_bytes: None },
            &signal,
            &link,
            None,
        );
        assert!(result.err().unwrap().to_string().contains("linger.msx"));
    }

    #[test]
    fn a_topic_without_a_leader_is_no_bad_topic() {
        assert_eq!(refusal(Some(RDKafkaErrorCode::LeaderNotAvailable)), Lookup::Exists);
        assert_eq!(refusal(None), Lookup::Exists);
    }
}
