//! The broker of `tidegate dev`: librdkafka's mock cluster in this process, so that the whole way can be
//! tried with nothing else installed. It keeps records in memory, 5 MiB a partition, drops the oldest
//! silently, and knows no transactions: for trying out only.

use std::collections::BTreeMap;

use rdkafka::error::KafkaError;
use rdkafka::mocking::MockCluster;
use rdkafka::producer::DefaultProducerContext;

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
