//! What a Kafka cluster is like, asked with the settings of this gateway and without sending a record: facts for
//! `tidegate doctor`, whose words they become.
//!
//! Every question has a limit. A broker that cannot be reached, or that lets nobody in, answers no question at all;
//! why, only librdkafka's error callbacks tell, so they are collected meanwhile. Makes no topic. Does not know
//! what is good or bad.
//!
//! # Whom librdkafka asks
//! On its first connection librdkafka asks for the brokers, before any question of ours can get there. With that answer
//! it gives up the configured addresses for the advertised ones and closes the connection: a question of ours that is on
//! its way is answered just before that, or asked again at the advertised address, which may lead nowhere. A new
//! client has the same race again. So the brokers are not asked for but taken from its statistics, which have what
//! that first answer told; and topics are asked for only where an advertised address answers.

use std::collections::HashMap;
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::{Duration, Instant};

use rdkafka::admin::{AdminClient, AdminOptions, ResourceSpecifier};
use rdkafka::client::{ClientContext, DefaultClientContext};
use rdkafka::config::RDKafkaLogLevel;
use rdkafka::error::{KafkaError, RDKafkaErrorCode as Code};
use rdkafka::message::DeliveryResult;
use rdkafka::metadata::{Metadata, MetadataTopic};
use rdkafka::producer::{Producer as _, ProducerContext};
use rdkafka::statistics::Statistics;

use super::settings::{Kind, settings};
use super::{Options, verdict};
use crate::kafka::native;
use crate::kafka::polled::Polled;
use crate::kafka::settings::explain;

/// One question of several, so that a reason that was told meanwhile ends the asking.
const QUESTION: Duration = Duration::from_secs(3);
/// How often librdkafka tells its statistics.
const STATISTICS: Duration = Duration::from_millis(100);
/// Different reasons that are kept.
const REASONS_MAX: usize = 16;

/// A broker of the cluster, at the address that it gives to its clients.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Broker {
    /// Its number.
    pub id: i32,
    /// The host that it advertises.
    pub host: String,
    /// The port that it advertises.
    pub port: u16,
}

/// What kind of thing went wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Why {
    /// User or password, or the way of proving them.
    Authentication,
    /// Certificates, or no TLS where it was expected.
    Tls,
    /// A name that does not resolve.
    Resolve,
    /// A connection that was refused, broken or never answered.
    Transport,
    /// Something else.
    Other,
}

/// Something that librdkafka complained of.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reason {
    /// What kind of thing.
    pub why: Why,
    /// Its words.
    pub text: String,
}

/// What is known of a topic.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Topic {
    /// It is there.
    There(Facts),
    /// The cluster has none of this name.
    Missing,
    /// This user may not even know.
    Denied,
    /// Nothing, for this reason.
    Unknown(String),
}

/// A topic that is there. `None`: the broker does not tell (an old one, a right that is missing, no answer in time).
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Facts {
    /// Its partitions.
    pub partitions: usize,
    /// Those that have no leader now.
    pub without_leader: usize,
    /// How many brokers have each record: of the partition with the fewest.
    pub replicas: usize,
    /// This user may write.
    pub may_write: Option<bool>,
    /// This user may read.
    pub may_read: Option<bool>,
    /// The topic's `max.message.bytes`.
    pub message_bytes_max: Option<u64>,
    /// The topic's `min.insync.replicas`.
    pub in_sync_min: Option<u64>,
}

/// What the callbacks told.
#[derive(Debug, Clone, Default)]
struct Told {
    brokers: Vec<Broker>,
    reasons: Vec<Reason>,
}

impl Told {
    /// Something that does not go away by waiting.
    fn is_hopeless(&self) -> bool {
        let sure = |reason: &Reason| matches!(reason.why, Why::Authentication | Why::Tls);
        self.reasons.iter().any(sure)
    }
}

#[derive(Default)]
struct Heard {
    told: Mutex<Told>,
    more: Condvar,
}

impl Heard {
    fn add(&self, change: impl FnOnce(&mut Told)) {
        change(&mut self.told.lock().unwrap_or_else(PoisonError::into_inner));
        self.more.notify_all();
    }

    /// What was told by the time that it is `enough`, or within the limit.
    fn wait(&self, limit: Duration, enough: impl Fn(&Told) -> bool) -> Told {
        let told = self.told.lock().unwrap_or_else(PoisonError::into_inner);
        let waited = self.more.wait_timeout_while(told, limit, |told| !enough(told));
        waited.unwrap_or_else(PoisonError::into_inner).0.clone()
    }
}

struct Context(Arc<Heard>);

impl ClientContext for Context {
    // What matters comes as an error too.
    fn log(&self, _: RDKafkaLogLevel, _: &str, _: &str) {}

    fn error(&self, error: KafkaError, reason: &str) {
        let why = match error.rdkafka_error_code() {
            // Comes with live brokers too, and carries no reason.
            Some(Code::AllBrokersDown) => return,
            Some(Code::Authentication | Code::SaslAuthenticationFailed) => Why::Authentication,
            Some(Code::SSL) => Why::Tls,
            Some(Code::Resolve) => Why::Resolve,
            Some(Code::BrokerTransportFailure | Code::OperationTimedOut) => Why::Transport,
            _ => Why::Other,
        };
        // The same again differs in its times only.
        let text = reason.split(" (after ").next().unwrap_or(reason).trim().to_owned();
        let reason = Reason { why, text };
        self.0.add(|told| {
            if told.reasons.len() < REASONS_MAX && !told.reasons.contains(&reason) {
                told.reasons.push(reason);
            }
        });
    }

    fn stats(&self, statistics: Statistics) {
        let brokers = brokers(&statistics);
        if !brokers.is_empty() {
            self.0.add(|told| told.brokers = brokers);
        }
    }
}

impl ProducerContext for Context {
    type DeliveryOpaque = ();

    fn delivery(&self, _: &DeliveryResult<'_>, (): ()) {}
}

/// A client that only asks.
pub struct Check {
    producer: Polled<Context>,
    config: rdkafka::ClientConfig,
    heard: Arc<Heard>,
}

impl Check {
    /// Makes the client; needs no broker.
    ///
    /// # Errors
    /// A property that librdkafka does not know or cannot take, in words that do not tell its value.
    pub fn new(options: &Options) -> Result<Self, String> {
        let mut config = settings(options, Kind::Probe, None);
        config.set("allow.auto.create.topics", "false");
        config.set("statistics.interval.ms", STATISTICS.as_millis().to_string());
        let heard = Arc::new(Heard::default());
        let producer = Polled::create(&config, Context(Arc::clone(&heard)));
        Ok(Self {
            producer: producer.map_err(|error| explain(&error))?,
            config,
            heard,
        })
    }

    /// Every broker of the cluster, as they tell of themselves, by number.
    ///
    /// # Errors
    /// What librdkafka complained of meanwhile; nothing when it only waited.
    pub fn brokers(&self, limit: Duration) -> Result<Vec<Broker>, Vec<Reason>> {
        // For the connection, which librdkafka makes for a question: it need not be answered.
        drop(self.metadata(None, STATISTICS));
        let told = self
            .heard
            .wait(limit, |told| !told.brokers.is_empty() || told.is_hopeless());
        if !told.brokers.is_empty() {
            return Ok(told.brokers);
        }
        // The complaint may be of an advertised address, and come before the statistics that have it.
        let told = self.heard.wait(3 * STATISTICS, |told| !told.brokers.is_empty());
        if told.brokers.is_empty() {
            return Err(told.reasons);
        }
        Ok(told.brokers)
    }

    /// What is known of these topics, in their order. A broker must answer at its advertised address.
    ///
    /// # Errors
    /// As [`Self::brokers`]: no broker answers.
    pub fn topics(&self, names: &[String], limit: Duration) -> Result<Vec<Topic>, Vec<Reason>> {
        let end = Instant::now() + limit;
        let listed = self.listed(end)?;
        // What is not listed may be hidden.
        let topics = names.iter().map(|name| {
            let listed = listed.get(name).cloned();
            listed.unwrap_or_else(|| self.topic(name, left(end)))
        });
        let mut topics: Vec<Topic> = topics.collect();
        for (name, topic) in names.iter().zip(&mut topics) {
            let Topic::There(facts) = topic else { continue };
            match native::describe(self.producer.client(), name, true, left(end).min(QUESTION)) {
                Ok(described) => {
                    facts.may_write = described.rights.map(|rights| rights.write);
                    facts.may_read = described.rights.map(|rights| rights.read);
                }
                // Nor will it for the others.
                Err(Code::OperationTimedOut | Code::UnsupportedFeature) => break,
                Err(_) => {}
            }
        }
        let there = names.iter().zip(&mut topics).filter_map(|(name, topic)| match topic {
            Topic::There(facts) => Some((name.as_str(), facts)),
            _ => None,
        });
        let mut there: HashMap<&str, &mut Facts> = there.collect();
        if let Err(error) = self.configurations(&mut there, left(end).min(2 * QUESTION)) {
            tracing::debug!("no configurations of topics: {error}");
        }
        Ok(topics)
    }

    /// Every topic that this user may see.
    fn listed(&self, end: Instant) -> Result<HashMap<String, Topic>, Vec<Reason>> {
        loop {
            if let Ok(metadata) = self.metadata(None, left(end).min(QUESTION)) {
                let topics = metadata.topics().iter();
                return Ok(topics.map(|topic| (topic.name().to_owned(), judge(topic))).collect());
            }
            let told = self.heard.wait(Duration::ZERO, |_| true);
            if left(end).is_zero() || told.is_hopeless() {
                return Err(told.reasons);
            }
        }
    }

    fn metadata(&self, topic: Option<&str>, limit: Duration) -> Result<Metadata, KafkaError> {
        self.producer.client().fetch_metadata(topic, limit)
    }

    fn topic(&self, name: &str, limit: Duration) -> Topic {
        let metadata = match self.metadata(Some(name), limit.min(QUESTION)) {
            Ok(metadata) => metadata,
            Err(error) => return Topic::Unknown(error.to_string()),
        };
        metadata.topics().first().map_or(Topic::Missing, judge)
    }

    fn configurations(&self, topics: &mut HashMap<&str, &mut Facts>, limit: Duration) -> Result<(), String> {
        if topics.is_empty() || limit.is_zero() {
            return Ok(());
        }
        let admin: AdminClient<DefaultClientContext> = self.config.create().map_err(|error| explain(&error))?;
        let asked: Vec<_> = topics.keys().map(|name| ResourceSpecifier::Topic(name)).collect();
        let options = AdminOptions::new().request_timeout(Some(limit));
        let runtime = tokio::runtime::Builder::new_current_thread().build();
        let runtime = runtime.map_err(|error| error.to_string())?;
        let answers = runtime.block_on(admin.describe_configs(&asked, &options));
        for resource in answers.map_err(|error| error.to_string())?.into_iter().flatten() {
            let rdkafka::admin::OwnedResourceSpecifier::Topic(name) = &resource.specifier else {
                continue;
            };
            let number = |key: &str| resource.get(key)?.value.as_ref()?.parse().ok();
            if let Some(facts) = topics.get_mut(name.as_str()) {
                facts.message_bytes_max = number("max.message.bytes");
                facts.in_sync_min = number("min.insync.replicas");
            }
        }
        Ok(())
    }
}

fn left(end: Instant) -> Duration {
    end.saturating_duration_since(Instant::now())
}

/// Those that an answer told of: the configured ones have no numbers.
fn brokers(statistics: &Statistics) -> Vec<Broker> {
    let learned = statistics.brokers.values().filter(|broker| broker.source == "learned");
    let mut brokers: Vec<Broker> = learned
        .filter_map(|broker| {
            let (host, port) = broker.nodename.rsplit_once(':')?;
            Some(Broker {
                id: broker.nodeid,
                host: host.to_owned(),
                port: port.parse().ok()?,
            })
        })
        .collect();
    brokers.sort_by_key(|broker| broker.id);
    brokers
}

fn judge(topic: &MetadataTopic) -> Topic {
    match topic.error().map(Code::from) {
        None => Topic::There(facts(topic)),
        Some(code) if verdict::is_missing(code) => Topic::Missing,
        Some(Code::TopicAuthorizationFailed) => Topic::Denied,
        // It is being made, or its partitions are being moved.
        Some(Code::LeaderNotAvailable) => Topic::There(facts(topic)),
        Some(code) => Topic::Unknown(code.to_string()),
    }
}

fn facts(topic: &MetadataTopic) -> Facts {
    let partitions = topic.partitions();
    Facts {
        partitions: partitions.len(),
        without_leader: partitions.iter().filter(|partition| partition.leader() < 0).count(),
        replicas: partitions
            .iter()
            .map(|part| part.replicas().len())
            .min()
            .unwrap_or_default(),
        ..Facts::default()
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::expect_used)]
mod tests {
    use super::*;

    #[test]
    fn brokers_are_those_that_were_learned() {
        let broker = |id: i32, place: &str, source: &str| {
            let broker = rdkafka::statistics::Broker {
                nodeid: id,
                nodename: place.to_owned(),
                source: source.to_owned(),
                ..Default::default()
            };
            (format!("{place}/{id}"), broker)
        };
        let statistics = Statistics {
            brokers: HashMap::from([
                broker(-1, "127.0.0.1:9092", "configured"),
                broker(-1, "GroupCoordinator", "logical"),
                broker(2, "::1:9093", "learned"),
                broker(1, "kafka-node-1.invalid:9092", "learned"),
            ]),
            ..Statistics::default()
        };
        let of = |id, host: &str, port| Broker {
            id,
            host: host.to_owned(),
            port,
        };
        assert_eq!(
            brokers(&statistics),
            [of(1, "kafka-node-1.invalid", 9092), of(2, "::1", 9093)]
        );
    }

    #[test]
    fn a_place_where_nobody_listens_is_told_within_the_limit() {
        let options = crate::forward::settings::tests::options(&[]);
        let began = Instant::now();
        let told = Check::new(&options).unwrap().brokers(Duration::from_secs(2));
        let reasons = told.unwrap_err();
        assert!(reasons.iter().any(|reason| reason.why == Why::Transport), "{reasons:?}");
        assert!(began.elapsed() < Duration::from_secs(10), "{:?}", began.elapsed());
    }
}
