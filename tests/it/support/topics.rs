//! Topics of a broker: make, change, delete, and read them from their beginning.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use rdkafka::ClientConfig;
use rdkafka::TopicPartitionList;
use rdkafka::admin::{AdminClient, AdminOptions, AlterConfig, NewTopic, ResourceSpecifier, TopicReplication};
use rdkafka::client::DefaultClientContext;
use rdkafka::consumer::{BaseConsumer, Consumer as _};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::metadata::MetadataBroker;
use rdkafka::topic_partition_list::Offset;

use super::kafka::Kafka;
pub use super::ledger::Message;
use super::{poll, seconds};

impl Message {
    /// `tidegate-seq`; the test fails without it.
    #[track_caller]
    pub fn seq(&self) -> u64 {
        self.identity()
            .expect("every record carries tidegate-wal and tidegate-seq")
            .1
    }
}

/// Keeps the first of the messages with one identity, in the order of Kafka. A message without an identity
/// fails the test.
pub fn without_repeats(messages: &[Message]) -> Vec<&Message> {
    let mut seen = std::collections::HashSet::new();
    messages
        .iter()
        .filter(|message| {
            seen.insert(
                message
                    .identity()
                    .expect("every record carries tidegate-wal and tidegate-seq"),
            )
        })
        .collect()
}

/// One replica with the tests' single brokers, three in a cluster.
const BROKERS_DEFAULT: TopicReplication<'_> = TopicReplication::Fixed(-1);

fn client(bootstrap: &str) -> ClientConfig {
    let mut config = ClientConfig::new();
    config
        .set("bootstrap.servers", bootstrap)
        .set("group.id", "tests")
        .set("enable.auto.commit", "false")
        .set("reconnect.backoff.max.ms", "200")
        // The tests look again and again at what changes.
        .set("topic.metadata.refresh.interval.ms", "500")
        .set("log_level", "0");
    config
}

/// Waits until the broker answers a metadata request with itself in it.
pub fn wait_for_broker(bootstrap: &str, limit: Duration) {
    let consumer: BaseConsumer = client(bootstrap).create().expect("a consumer");
    poll("the broker answers", limit, || {
        // Not `fetch_metadata`: librdkafka asks for the brokers by itself first, and that answer makes it leave the
        // bootstrap address for the advertised one, which may lead nowhere. The id is kept from any answer that has brokers.
        consumer.client().fetch_cluster_id(seconds(1))
    });
}

fn wait<T>(future: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .build()
        .expect("a runtime");
    runtime.block_on(future)
}

impl Kafka {
    fn admin(&self) -> AdminClient<DefaultClientContext> {
        client(self.bootstrap()).create().expect("an admin client")
    }

    /// Makes a topic, with settings such as `("max.message.bytes", "20000")`; returns when it has its leaders.
    pub fn create_topic(&self, topic: &str, partitions: i32, settings: &[(&str, &str)]) {
        let mut new = NewTopic::new(topic, partitions, BROKERS_DEFAULT);
        for (name, value) in settings {
            new = new.set(name, value);
        }
        let options = AdminOptions::new().operation_timeout(Some(seconds(30)));
        let made = wait(self.admin().create_topics([&new], &options)).expect("the broker answers");
        assert!(made.iter().all(Result::is_ok), "topic {topic}: {made:?}");
        let consumer: BaseConsumer = client(self.bootstrap()).create().expect("a consumer");
        poll(format_args!("topic {topic} has its leaders"), seconds(30), || {
            let metadata = consumer.fetch_metadata(Some(topic), seconds(2)).ok()?;
            let partitions_now = metadata.topics().first()?.partitions();
            let led = partitions_now
                .iter()
                .filter(|partition| partition.leader() >= 0)
                .count();
            (i32::try_from(led) == Ok(partitions)).then_some(())
        });
    }

    /// Deletes a topic.
    pub fn delete_topic(&self, topic: &str) {
        let options = AdminOptions::new().operation_timeout(Some(seconds(30)));
        let gone = wait(self.admin().delete_topics(&[topic], &options)).expect("the broker answers");
        assert!(gone.iter().all(Result::is_ok), "topic {topic}: {gone:?}");
    }

    /// Deletes a partition's records before `offset`, as retention does.
    pub fn delete_records(&self, topic: &str, partition: i32, offset: i64) {
        let mut list = TopicPartitionList::new();
        list.add_partition_offset(topic, partition, Offset::Offset(offset))
            .expect("a legal offset");
        let gone = wait(self.admin().delete_records(&list, &AdminOptions::new())).expect("the broker answers");
        assert!(
            gone.elements().iter().all(|element| element.error().is_ok()),
            "topic {topic}: {gone:?}"
        );
    }

    /// Has the brokers forget a group without members, with all that it has committed.
    pub fn delete_group(&self, group: &str) {
        let gone = wait(self.admin().delete_groups(&[group], &AdminOptions::new())).expect("the broker answers");
        assert!(gone.iter().all(Result::is_ok), "group {group}: {gone:?}");
    }

    /// Changes a setting of a topic.
    pub fn alter_topic(&self, topic: &str, name: &str, value: &str) {
        let change = AlterConfig::new(ResourceSpecifier::Topic(topic)).set(name, value);
        let changed = wait(self.admin().alter_configs([&change], &AdminOptions::new())).expect("the broker answers");
        assert!(changed.iter().all(Result::is_ok), "topic {topic}: {changed:?}");
    }

    /// Whether records of the topic are in a transaction that has not ended: its last stable offset is behind its end.
    pub fn has_open_transaction(&self, topic: &str) -> bool {
        let ends = ["read_committed", "read_uncommitted"].map(|isolation| {
            let mut config = client(self.bootstrap());
            let consumer: BaseConsumer = config.set("isolation.level", isolation).create().expect("a consumer");
            let watermarks = poll("the broker tells its offsets", seconds(30), || {
                watermarks(&consumer, topic)
            });
            watermarks.values().map(|(_, high)| *high).sum::<i64>()
        });
        ends[0] < ends[1]
    }

    /// Where the cluster says that its brokers are, as host:port.
    pub fn brokers(&self) -> Vec<String> {
        let consumer: BaseConsumer = client(self.bootstrap()).create().expect("a consumer");
        let metadata = consumer.fetch_metadata(None, seconds(2));
        let place = |broker: &MetadataBroker| format!("{}:{}", broker.host(), broker.port());
        metadata.map_or_else(
            |_| Vec::new(),
            |metadata| metadata.brokers().iter().map(place).collect(),
        )
    }

    /// The id of the broker that leads a partition now.
    pub fn leader(&self, topic: &str, partition: i32) -> Option<i32> {
        let consumer: BaseConsumer = client(self.bootstrap()).create().expect("a consumer");
        let metadata = consumer.fetch_metadata(Some(topic), seconds(2)).ok()?;
        let partitions = metadata.topics().first()?.partitions();
        let found = partitions.iter().find(|found| found.id() == partition)?;
        (found.leader() >= 0).then(|| found.leader())
    }

    /// How many records the topic has (without transactions: offsets have no gaps). `None` while the topic or
    /// the broker does not answer.
    pub fn count(&self, topic: &str) -> Option<u64> {
        let consumer: BaseConsumer = client(self.bootstrap()).create().expect("a consumer");
        let watermarks = watermarks(&consumer, topic)?;
        Some(
            watermarks
                .values()
                .map(|(low, high)| u64::try_from(high - low).unwrap_or(0))
                .sum(),
        )
    }

    /// Waits until the topic has `n` records.
    #[track_caller]
    pub fn wait_for_count(&self, topic: &str, n: u64, limit: Duration) {
        let consumer: BaseConsumer = client(self.bootstrap()).create().expect("a consumer");
        let mut last = None;
        let started = Instant::now();
        loop {
            let now = watermarks(&consumer, topic);
            if let Some(now) = now {
                let count: u64 = now
                    .values()
                    .map(|(low, high)| u64::try_from(high - low).unwrap_or(0))
                    .sum();
                if count >= n {
                    return;
                }
                last = Some(count);
            }
            assert!(
                started.elapsed() < limit,
                "after {limit:?}: topic {topic} has {last:?} records, not {n}"
            );
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// Everything that is in the topic now, partition by partition in the order of offsets.
    pub fn read_topic(&self, topic: &str, read_committed: bool) -> Vec<Message> {
        let isolation = if read_committed {
            "read_committed"
        } else {
            "read_uncommitted"
        };
        let consumer: BaseConsumer = client(self.bootstrap())
            .set("isolation.level", isolation)
            .set("enable.partition.eof", "true")
            .set("auto.offset.reset", "error")
            .create()
            .expect("a consumer");
        let ends = poll(format_args!("the offsets of {topic}"), seconds(30), || {
            watermarks(&consumer, topic)
        });
        let mut assignment = TopicPartitionList::new();
        for partition in ends.keys() {
            assignment
                .add_partition_offset(topic, *partition, Offset::Beginning)
                .expect("a legal offset");
        }
        consumer.assign(&assignment).expect("assigned");
        let mut messages = Vec::new();
        let mut open: std::collections::HashSet<i32> = ends.keys().copied().collect();
        let started = Instant::now();
        while !open.is_empty() {
            assert!(started.elapsed() < seconds(120), "topic {topic} does not end: {open:?}");
            match consumer.poll(seconds(1)) {
                None => {}
                Some(Ok(message)) => messages.push(Message::of(&message)),
                Some(Err(KafkaError::PartitionEOF(partition))) => {
                    open.remove(&partition);
                }
                // Said once when no broker is connected, and librdkafka goes on by itself: the limit above counts.
                Some(Err(KafkaError::MessageConsumption(RDKafkaErrorCode::AllBrokersDown))) => {}
                Some(Err(error)) => panic!("reading {topic}: {error}"),
            }
        }
        messages.sort_by_key(|message| (message.partition, message.offset));
        messages
    }
}

/// Low and high watermark of each partition.
fn watermarks(consumer: &BaseConsumer, topic: &str) -> Option<HashMap<i32, (i64, i64)>> {
    let metadata = consumer.fetch_metadata(Some(topic), seconds(2)).ok()?;
    let partitions = metadata.topics().first()?.partitions();
    if partitions.is_empty() {
        return None;
    }
    partitions
        .iter()
        .map(|partition| {
            let range = consumer.fetch_watermarks(topic, partition.id(), seconds(2)).ok()?;
            Some((partition.id(), range))
        })
        .collect()
}
