//! The harness itself: the broker comes up, takes and gives back what rdkafka sends.

use rdkafka::ClientConfig;
use rdkafka::message::{Header, OwnedHeaders};
use rdkafka::producer::{BaseRecord, Producer as _, ThreadedProducer};

use crate::support::kafka::Kafka;
use crate::support::{seconds, unique};

cases!["harness":
    what_is_produced_is_read_back [Kafka],
    a_stopped_broker_comes_back_with_its_records [OwnKafka],
];

fn produce(kafka: &Kafka, topic: &str, values: &[&str]) {
    let producer: ThreadedProducer<rdkafka::producer::DefaultProducerContext> = ClientConfig::new()
        .set("bootstrap.servers", kafka.bootstrap())
        .create()
        .unwrap();
    for value in values {
        let headers = OwnedHeaders::new()
            .insert(Header {
                key: "tidegate-wal",
                value: Some("w"),
            })
            .insert(Header {
                key: "tidegate-seq",
                value: Some(*value),
            });
        producer
            .send(BaseRecord::to(topic).key("k").payload(*value).headers(headers))
            .map_err(|(error, _)| error)
            .unwrap();
    }
    producer.flush(seconds(30)).unwrap();
}

fn what_is_produced_is_read_back() {
    let kafka = Kafka::shared();
    let topic = unique("harness");
    kafka.create_topic(&topic, 3, &[("max.message.bytes", "20000")]);
    assert_eq!(kafka.count(&topic), Some(0));
    produce(kafka, &topic, &["1", "2", "3"]);
    kafka.wait_for_count(&topic, 3, seconds(10));
    let messages = kafka.read_topic(&topic, true);
    let values: Vec<&[u8]> = messages.iter().map(|message| message.value.as_slice()).collect();
    assert_eq!(values, [b"1", b"2", b"3"]);
    assert_eq!(messages[1].identity(), Some(("w".to_owned(), 2)));
    kafka.alter_topic(&topic, "max.message.bytes", "30000");
    kafka.delete_topic(&topic);
}

fn a_stopped_broker_comes_back_with_its_records() {
    let kafka = Kafka::private();
    kafka.create_topic("t", 1, &[]);
    produce(&kafka, "t", &["1"]);
    kafka.stop();
    assert_eq!(kafka.count("t"), None);
    kafka.start();
    assert_eq!(kafka.count("t"), Some(1));
    kafka.kill();
    kafka.start();
    assert_eq!(kafka.count("t"), Some(1));
}
