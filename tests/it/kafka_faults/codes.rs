//! Codes that a broker answers a write with, from librdkafka's mock cluster: a real broker gives them only now and
//! then.

use rdkafka::mocking::MockCluster;
use rdkafka::types::{RDKafkaApiKey, RDKafkaRespErr as Code};

use super::{Trial, config, rounds};
use crate::support::evidence::Evidence;
use crate::support::kafka::Kafka;

/// Nothing is known against a record, whatever its batch was answered: each is sent again, and none is a dead letter.
/// The last few look like the fault of a record, until it is sent alone, or of its topic.
///
/// Two things are for the real brokers of the other tests. The mock cluster keeps what a producer sends twice, so a
/// connection that ends before the answer shows nothing here; and it cannot say from which offset on records are of a
/// time, so what it says that it has lost is not looked for.
const CODES: [Code; 12] = [
    Code::RD_KAFKA_RESP_ERR_NOT_ENOUGH_REPLICAS,
    Code::RD_KAFKA_RESP_ERR_NOT_ENOUGH_REPLICAS_AFTER_APPEND,
    Code::RD_KAFKA_RESP_ERR_NOT_LEADER_FOR_PARTITION,
    Code::RD_KAFKA_RESP_ERR_LEADER_NOT_AVAILABLE,
    Code::RD_KAFKA_RESP_ERR_REQUEST_TIMED_OUT,
    Code::RD_KAFKA_RESP_ERR_NETWORK_EXCEPTION,
    Code::RD_KAFKA_RESP_ERR_KAFKA_STORAGE_ERROR,
    Code::RD_KAFKA_RESP_ERR_THROTTLING_QUOTA_EXCEEDED,
    Code::RD_KAFKA_RESP_ERR_INVALID_MSG,
    Code::RD_KAFKA_RESP_ERR_INVALID_RECORD,
    Code::RD_KAFKA_RESP_ERR_MSG_SIZE_TOO_LARGE,
    Code::RD_KAFKA_RESP_ERR_TOPIC_AUTHORIZATION_FAILED,
];

pub fn no_code_costs_a_record(delivery: &str) {
    let mut evidence = Evidence::default();
    for code in CODES {
        // Its memory is small: one for each code.
        let broker = MockCluster::new(1).unwrap();
        broker.create_topic("t", 3, 1).unwrap();
        let kafka = Kafka::at(broker.bootstrap_servers());
        let mut trial = Trial::start(&kafka, &config(kafka.bootstrap(), delivery), &["t"]);
        for _ in 0..rounds(1) {
            broker.request_errors(RDKafkaApiKey::Produce, &[code]);
            evidence.injected += 1;
            trial.answers();
            trial.delivers();
            // The next one is for an ordinary write, not for the look whether a held topic works.
            trial.releases();
        }
        trial.stop_clients();
        evidence.answered += trial.check().ok as u64;
        assert_eq!(trial.gateway.metric("tidegate_dead_letters_total"), 0.0, "{code:?}");
    }
    evidence.print("a write answered with an error, 12 codes (librdkafka's mock cluster)");
}
