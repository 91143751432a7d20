//! What a Kafka cluster is like, asked with the settings of this gateway and without sending a record: facts for
//! `tidegate doctor`, whose words they become.
//!
//! Every question has a limit. A broker that cannot be reached, or that lets nobody in, answers no question at all;
//! why, only librdkafka's error callbacks tell, so they are collected meanwhile. Makes no topic. Does not know
//! what is good or bad.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use rdkafka::admin::{AdminClient, AdminOptions, ResourceSpecifier};
use rdkafka::client::{ClientContext, DefaultClientContext};
use rdkafka::config::{FromClientConfigAndContext as _, RDKafkaLogLevel};
use rdkafka::error::{KafkaError, RDKafkaErrorCode as Code};
use rdkafka::message::DeliveryResult;
use rdkafka::metadata::{Metadata, MetadataTopic};
use rdkafka::producer::{Producer as _, ProducerContext, ThreadedProducer};

use super::settings::{Kind, settings};
use super::{Options, verdict};
use crate::kafka::native;
use crate::kafka::settings::explain;

/// One question of several, so that a reason that was told meanwhile ends the asking.
const QUESTION: Duration = Duration::from_secs(3);
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

/// A cluster as it tells of itself.
#[derive(Debug, Clone)]
pub struct Cluster {
    /// Every broker.
    pub brokers: Vec<Broker>,
    /// The topics that this user may see.
    topics: HashMap<String, Topic>,
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

#[derive(Default)]
struct Heard(Mutex<Vec<Reason>>);

impl Heard {
    fn reasons(&self) -> Vec<Reason> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
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
        let mut reasons = self.0.0.lock().unwrap_or_else(PoisonError::into_inner);
        if reasons.len() < REASONS_MAX && !reasons.contains(&reason) {
            reasons.push(reason);
        }
    }
}

impl ProducerContext for Context {
    type DeliveryOpaque = ();

    fn delivery(&self, _: &DeliveryResult<'_>, (): ()) {}
}

/// A client that only asks.
pub struct Check {
    producer: ThreadedProducer<Context>,
    config: rdkafka::ClientConfig,
    heard: Arc<Heard>,
}

impl Check {
    /// Makes the client; needs no broker.
    ///
    /// # Errors
    /// A property that librdkafka does not know or cannot take, in words that do not tell its value.
    pub fn new(options: &Options) -> Result<Self, String> {
        let mut config = settings(options, Kind::Probe);
        config.set("allow.auto.create.topics", "false");
        config.set("statistics.interval.ms", "0");
        let heard = Arc::new(Heard::default());
        let producer = ThreadedProducer::from_config_and_context(&config, Context(Arc::clone(&heard)));
        Ok(Self {
            producer: producer.map_err(|error| explain(&error))?,
            config,
            heard,
        })
    }

    /// The cluster as it tells of itself.
    ///
    /// # Errors
    /// What librdkafka complained of meanwhile; nothing when it only waited.
    pub fn cluster(&self, limit: Duration) -> Result<Cluster, Vec<Reason>> {
        let end = Instant::now() + limit;
        loop {
            // All topics at once: with brokers that cannot be reached where they say, this may be the only answer.
            if let Ok(metadata) = self.metadata(None, left(end).min(QUESTION)) {
                let brokers = metadata.brokers().iter().map(|broker| Broker {
                    id: broker.id(),
                    host: broker.host().to_owned(),
                    port: u16::try_from(broker.port()).unwrap_or_default(),
                });
                let topics = metadata.topics().iter();
                return Ok(Cluster {
                    brokers: brokers.collect(),
                    topics: topics.map(|topic| (topic.name().to_owned(), judge(topic))).collect(),
                });
            }
            let reasons = self.heard.reasons();
            // Neither goes away by waiting.
            let sure = |reason: &Reason| matches!(reason.why, Why::Authentication | Why::Tls);
            if left(end).is_zero() || reasons.iter().any(sure) {
                return Err(reasons);
            }
        }
    }

    /// What is known of these topics of the `cluster`, in their order. `deep`: also what only a broker at its advertised
    /// address tells.
    #[must_use]
    pub fn topics(&self, cluster: &Cluster, names: &[String], deep: bool, limit: Duration) -> Vec<Topic> {
        let end = Instant::now() + limit;
        let listed = |name: &String| cluster.topics.get(name).cloned();
        if !deep {
            return names
                .iter()
                .map(|name| listed(name).unwrap_or(Topic::Missing))
                .collect();
        }
        // What is not listed may be hidden.
        let topics = names
            .iter()
            .map(|name| listed(name).unwrap_or_else(|| self.topic(name, left(end))));
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
        topics
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
