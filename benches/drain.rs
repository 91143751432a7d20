//! Draining a backlog of 1 GB into a real Kafka against its limit: librdkafka's own producer with the same
//! records from memory. Memory and rate of the forwarder with the whole backlog before it.
//!
//! `cargo bench --bench drain`; the broker is the tests' (`./tests/run` fetches it). `TIDEGATE_BENCH_GB` is
//! the backlog in GB of payload, 1 by default.
#![allow(missing_docs, dead_code, unused_imports, unused_macros)]
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)]

mod common;
#[path = "../tests/it/support/mod.rs"]
mod support;

use std::collections::BTreeMap;
use std::path::Path;
use std::time::{Duration, Instant};

use common::Goal::AtLeast;
use common::{Row, log, print_goal, ratio, server};
use rdkafka::ClientConfig;
use rdkafka::message::{Header, OwnedHeaders};
use rdkafka::producer::{BaseRecord, DefaultProducerContext, Producer as _, ThreadedProducer};
use rdkafka::types::RDKafkaErrorCode;
use tidegate::config::{Config, Inputs};
use tidegate::forward::{Forwarder, Guarantee, Options};

use support::kafka::Kafka;

/// Each has a topic of its own: a forwarder that starts looks in its topics for what an earlier run of it may have sent.
const RAW_TOPIC: &str = "raw";
const DRAIN_TOPIC: &str = "drain";
const ONCE_TOPIC: &str = "once";
const SAME: &str = "librdkafka's producer, the same records and headers";
const IDEMPOTENT: &str = "drain of the log, idempotent";
const ONCE: &str = "drain of the log, exactly_once";

/// So many records until a broker is as quick as it gets.
const WARM_UP_RECORDS: u64 = 2_000_000;
/// What librdkafka has at once in the limit: about as many as the forwarder hands it. With a third of it the limit is lower, and with
/// ten times as many now lower, now the same.
const QUEUE_RECORDS: &str = "15000";

struct Run {
    per_second: f64,
    rss_mib: f64,
    start_ms: f64,
}

/// The forwarder on the log, from opening it to its last acknowledgement.
fn drain(path: &Path, kafka: &Kafka, records: u64, guarantee: Guarantee) -> Run {
    let before = common::rss_mib(std::process::id());
    let began = Instant::now();
    let wal = log::open(path, true);
    let opened = began.elapsed();
    let options = Options {
        bootstrap_servers: kafka.bootstrap().into(),
        client_id: "bench".into(),
        properties: BTreeMap::new(),
        in_flight_bytes_max: Config::load(Inputs::default()).unwrap().forward.in_flight_bytes_max,
        bytes_per_second_max: None,
        guarantee,
        on_delivery: None,
    };
    let began = Instant::now();
    let forwarder = Forwarder::start(wal.clone(), options).unwrap();
    let mut rss_mib: f64 = 0.0;
    while wal.log().watermarks().acked < records {
        assert!(
            began.elapsed() < Duration::from_secs(300),
            "not drained: {:?}",
            forwarder.handle().status()
        );
        rss_mib = rss_mib.max(common::rss_mib(std::process::id()) - before);
        std::thread::sleep(Duration::from_millis(10));
    }
    let seconds = began.elapsed().as_secs_f64();
    forwarder.shutdown(Duration::from_secs(5));
    wal.close().unwrap();
    Run {
        per_second: records as f64 / seconds,
        rss_mib,
        start_ms: opened.as_secs_f64() * 1e3,
    }
}

/// librdkafka with the forwarder's settings and records that are in memory already.
fn raw(kafka: &Kafka, records: u64, headers: bool) -> f64 {
    let producer: ThreadedProducer<DefaultProducerContext> = ClientConfig::new()
        .set("bootstrap.servers", kafka.bootstrap())
        .set("enable.idempotence", "true")
        .set("acks", "all")
        .set("message.timeout.ms", "0")
        .set("linger.ms", "5")
        .set("batch.size", "1000000")
        .set("batch.num.messages", "10000")
        .set("queue.buffering.max.messages", QUEUE_RECORDS)
        .set("queue.buffering.max.kbytes", "131072")
        .set("compression.type", "lz4")
        .create()
        .unwrap();
    let values: Vec<Vec<u8>> = (0..10_000).map(common::json_record).collect();
    let began = Instant::now();
    for i in 0..records {
        let mut record = BaseRecord::<(), [u8]>::to(RAW_TOPIC).payload(values[(i % 10_000) as usize].as_slice());
        if headers {
            let seq = i.to_string();
            record = record.headers(
                OwnedHeaders::new_with_capacity(4)
                    .insert(Header {
                        key: "tidegate-received",
                        value: Some("1767225600000"),
                    })
                    .insert(Header {
                        key: "tidegate-wal",
                        value: Some("f01d47af-8af8-4874-af91-a264009a0b0a"),
                    })
                    .insert(Header {
                        key: "tidegate-seq",
                        value: Some(&seq),
                    })
                    .insert(Header {
                        key: "content-type",
                        value: Some("application/json"),
                    }),
            );
        }
        while let Err((error, back)) = producer.send(record) {
            assert_eq!(error.rdkafka_error_code(), Some(RDKafkaErrorCode::QueueFull));
            record = back;
            std::thread::sleep(Duration::from_millis(1));
        }
    }
    while producer.in_flight_count() > 0 {
        producer.flush(Duration::from_millis(100)).ok();
    }
    records as f64 / began.elapsed().as_secs_f64()
}

fn main() {
    common::print_machine();
    let gigabytes: f64 = common::setting("TIDEGATE_BENCH_GB", 1.0);
    let (mut bare, mut with_headers) = (Vec::new(), Vec::new());
    let (mut drained, mut once) = (Vec::new(), Vec::new());
    for _ in 0..common::runs() {
        let kafka = Kafka::private();
        for topic in [RAW_TOPIC, DRAIN_TOPIC, ONCE_TOPIC] {
            kafka.create_topic(topic, 1, &[]);
        }
        // A broker that has just started is slower: whoever came first would pay for it.
        raw(&kafka, WARM_UP_RECORDS, true);
        let mut records = 0;
        for (guarantee, topic, runs) in [
            (Guarantee::Idempotent, DRAIN_TOPIC, &mut drained),
            (Guarantee::ExactlyOnce, ONCE_TOPIC, &mut once),
        ] {
            let folder = server::folder();
            records = log::fill(folder.path(), topic, (gigabytes * 1e9) as u64);
            runs.push(drain(folder.path(), &kafka, records, guarantee));
        }
        bare.push(raw(&kafka, records, false));
        with_headers.push(raw(&kafka, records, true));
    }
    let row = |name: &str, figures: Vec<f64>| Row {
        name: name.into(),
        figures,
    };
    let per_second = |runs: &[Run]| runs.iter().map(|run| run.per_second).collect();
    let rows = [
        row(SAME, with_headers),
        row("librdkafka's producer, no headers", bare),
        row(IDEMPOTENT, per_second(&drained)),
        row(ONCE, per_second(&once)),
    ];
    let title = format!("Drain of {gigabytes} GB into a real Kafka");
    common::print_table(&title, "records/s", &rows, SAME);
    for (name, least) in [(IDEMPOTENT, 0.9), (ONCE, 0.7)] {
        let what = format!("{name}, of librdkafka's producer with the same headers");
        print_goal(&what, AtLeast(least), ratio(&rows, name, SAME), "");
    }
    let memory = |runs: &[Run]| runs.iter().map(|run| run.rss_mib).collect();
    let rows = [row(IDEMPOTENT, memory(&drained)), row(ONCE, memory(&once))];
    let title = "Resident memory at its highest while draining, above what it was before";
    common::print_table(title, "MiB", &rows, "");
    let opened = drained.iter().map(|run| run.start_ms).collect();
    let rows = [row("opening the log with the backlog", opened)];
    common::print_table("Time to open", "ms", &rows, "");
    Kafka::end_shared();
}
