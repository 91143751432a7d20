//! The broker of `tidegate dev`: librdkafka's mock cluster in this process, so that the whole way can be
//! tried with nothing else installed. It keeps records in memory, 5 MiB a partition, drops the oldest
//! silently, and knows no transactions: for trying out only.

use std::collections::BTreeMap;

use rdkafka::error::KafkaError;
use rdkafka::mocking::MockCluster;
use rdkafka::producer::DefaultProducerContext;

/// As many as the mock cluster gives a topic that it makes itself.
const PARTITIONS: i32 = 4;

/// A Kafka in this process, on a random port of 127.0.0.1; gone when dropped.
pub struct EmbeddedBroker {
    cluster: MockCluster<'static, DefaultProducerContext>,
}

impl EmbeddedBroker {
    /// Starts it.
    ///
    /// # Errors
    /// librdkafka's, for example when no port is to be had.
    pub fn start() -> Result<Self, KafkaError> {
        let cluster = MockCluster::new(1)?;
        Ok(Self { cluster })
    }

    /// Makes a topic, as its first record would: who waits for it need not wait until it is looked for again.
    ///
    /// # Errors
    /// librdkafka's.
    pub fn make_topic(&self, topic: &str) -> Result<(), KafkaError> {
        self.cluster.create_topic(topic, PARTITIONS, 1)
    }

    /// What clients connect to.
    #[must_use]
    pub fn bootstrap_servers(&self) -> String {
        self.cluster.bootstrap_servers()
    }

    /// The properties that a forwarder needs with it: here a topic is made by its first record.
    #[must_use]
    pub fn properties() -> BTreeMap<String, String> {
        BTreeMap::from([("allow.auto.create.topics".to_owned(), "true".to_owned())])
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::sync::{Arc, Mutex};
    use std::time::{Duration, Instant};

    use super::super::Guarantee;
    use super::*;
    use crate::forward::{Forwarder, Options};
    use crate::record::Record;
    use crate::wal::{self, Batch, Retain, Wal};

    #[test]
    fn what_is_committed_arrives_in_order_and_is_acknowledged() {
        let folder = tempfile::tempdir().unwrap();
        let wal = Wal::open(wal::Options {
            path: folder.path().join("wal"),
            bytes_max: 1 << 30,
            free_bytes_min: 0,
            generation_bytes: 16 << 20,
            compression: true,
            retain: Retain::Off,
            linger: Duration::ZERO,
            keys: Default::default(),
        })
        .unwrap();
        let push = |count: usize| {
            let mut batch = Batch::new();
            for i in 0..count {
                batch.push(&Record {
                    topic: "made-by-its-first-record".into(),
                    key: Some(b"k".to_vec()),
                    value: Some(i.to_string().into_bytes()),
                    headers: Vec::new(),
                    received_ms: crate::record::now_ms(),
                    origin: None,
                    idempotency: None,
                });
            }
            wal.log().append(batch).unwrap().wait().unwrap();
        };
        let broker = EmbeddedBroker::start().unwrap();
        let seen = Arc::new(Mutex::new(Vec::new()));
        let start = || {
            let seen = Arc::clone(&seen);
            let options = Options {
                bootstrap_servers: broker.bootstrap_servers(),
                client_id: "test".into(),
                properties: EmbeddedBroker::properties(),
                in_flight_bytes_max: 8 << 20,
                bytes_per_second_max: None,
                guarantee: Guarantee::Idempotent,
                on_delivery: Some(Box::new(move |delivery| seen.lock().unwrap().push(delivery.seq))),
            };
            Forwarder::start(wal.clone(), options).unwrap()
        };
        let acked = |watermark: u64| {
            let deadline = Instant::now() + Duration::from_secs(30);
            while wal.log().watermarks().acked < watermark {
                assert!(Instant::now() < deadline, "{:?}", wal.log().watermarks());
                std::thread::sleep(Duration::from_millis(5));
            }
        };
        push(500);
        let forwarder = start();
        acked(500);
        assert!(forwarder.handle().status().broker_up);
        forwarder.shutdown(Duration::from_secs(5));
        // Another run, with a backlog, reads the tail back first and goes on behind it.
        push(500);
        let forwarder = start();
        acked(1000);
        let status = forwarder.handle().status();
        forwarder.shutdown(Duration::from_secs(5));
        assert_eq!(status.stopped, None);
        let mut seen = std::mem::take(&mut *seen.lock().unwrap());
        seen.dedup();
        assert_eq!(seen, (1..=1000).collect::<Vec<_>>());
    }
}
