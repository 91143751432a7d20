//! From the log to Kafka: outages, topics that are missing, records that Kafka will never take, the end of
//! the process, and the limits.

use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::support::client::Client;
use crate::support::evidence::Evidence;
use crate::support::gateway::{Config, Gateway, NOWHERE};
use crate::support::kafka::Kafka;
use crate::support::ledger::{Ledger, Outcome};
use crate::support::load::{Load, outcome, post, value};
use crate::support::{FORM, SEED_BODY, SEED_VALUE};
use crate::support::{Random, ab, disk_bytes, poll, seconds, unique, wait_until};

cases!["forward":
    the_seeds_load_waits_for_kafka_and_leaves_a_small_log [OwnKafka, Ab],
    a_broker_killed_under_load_costs_nothing [OwnKafka],
    a_missing_topic_does_not_delay_the_other_and_drains_in_order [Kafka],
    one_poison_record_of_a_hundred_is_dead_lettered_alone [Kafka],
    a_topic_with_small_batches_gets_every_record [Kafka],
    the_pace_holds_over_an_outage [OwnKafka],
    librdkafkas_threads_give_way_to_those_that_clients_wait_for [],
    catching_up_is_paced [Kafka],
    sigterm_forwards_what_was_taken_and_exits_0 [Kafka],
    sigterm_with_kafka_away_keeps_the_log_and_ends_in_time [Kafka],
    a_full_log_refuses_and_recovers_by_itself [OwnKafka],
];

const NDJSON: &str = "application/x-ndjson";
const MIB: u64 = 1024 * 1024;

/// Posts a batch of NDJSON with one key, and writes each record down.
fn post_batch(client: &Client, ledger: &Ledger, topic: &str, key: &str, values: &[Vec<u8>]) {
    let places: Vec<usize> = values
        .iter()
        .map(|value| ledger.intend(topic, Some(key), value))
        .collect();
    let body = values.join(&b'\n');
    let answer = client
        .post(&format!("/v1/topics/{topic}?key={key}"), NDJSON, &body)
        .unwrap();
    assert_eq!(answer.status, 202, "{answer:?}");
    for (index, place) in places.into_iter().enumerate() {
        ledger.settle(place, outcome(&answer, index as u64));
    }
}

fn values(n: usize) -> Vec<Vec<u8>> {
    (0..n).map(|_| value()).collect()
}

fn the_seeds_load_waits_for_kafka_and_leaves_a_small_log() {
    let kafka = Kafka::private();
    for topic in ["financial_pro", "bulk"] {
        kafka.create_topic(topic, 1, &[]);
    }
    kafka.stop();
    let mut config = Config::with(&kafka);
    config.set("wal.generation_bytes", "2 MiB");
    let mut gateway = Gateway::start(&config);
    let folder = tempfile::tempdir().unwrap();
    // The shipped sources: financial_pro is one of them.
    ab::start(folder.path(), &gateway.ingest).finish_whole();
    // Enough for a row of generations, in records that compression does not shrink.
    let (client, mut random) = (gateway.client(), Random::new());
    let mut bulk: u64 = 0;
    while disk_bytes(&gateway.wal()) < 12 * MIB {
        let lines: Vec<String> = (0..200)
            .map(|_| format!(r#"{{"text":"{}"}}"#, random.text(1_000)))
            .collect();
        let answer = client
            .post("/v1/topics/bulk", NDJSON, lines.join("\n").as_bytes())
            .unwrap();
        assert_eq!(answer.status, 202, "{answer:?}");
        bulk += 200;
    }
    assert_eq!(gateway.admin("/readyz").unwrap().status, 200);
    assert_eq!(gateway.metric("tidegate_forward_broker_up"), 0.0);
    assert_eq!(gateway.metric("tidegate_wal_backlog_records"), (10_000 + bulk) as f64);

    kafka.start();
    gateway.wait_drained(seconds(60));
    let messages = kafka.read_topic("financial_pro", true);
    assert_eq!(messages.len(), 10_000);
    assert!(messages.iter().all(|message| message.value == SEED_VALUE));
    assert_eq!(kafka.count("bulk"), Some(bulk));
    wait_until("the log gives its space back", seconds(30), || {
        disk_bytes(&gateway.wal()) < 2 * 2 * MIB
    });
    assert_eq!(gateway.metric("tidegate_forward_broker_up"), 1.0);

    // An empty log never uses a sequence again.
    let next = 10_000 + bulk + 1;
    assert!(gateway.sigterm(seconds(30)).success());
    gateway.restart();
    assert_eq!(gateway.metric("tidegate_wal_next_sequence"), next as f64);
    let answer = gateway
        .client()
        .post("/financial_pro", FORM, SEED_BODY.as_bytes())
        .unwrap();
    assert_eq!(answer.header("tidegate-seq"), next.to_string());
    gateway.wait_drained(seconds(30));
    assert_eq!(
        kafka.count("financial_pro"),
        Some(10_001),
        "nothing is sent again after an orderly end"
    );
}

fn a_broker_killed_under_load_costs_nothing() {
    let kafka = Kafka::private();
    kafka.create_topic("t", 3, &[]);
    let gateway = Gateway::start(&Config::with(&kafka));
    let ledger = Arc::new(Ledger::default());
    let load = Load::start(&gateway, &ledger, "t", 4);
    for end in [Kafka::kill, Kafka::stop] {
        let so_far = kafka.count("t").unwrap_or(0);
        kafka.wait_for_count("t", so_far + 500, seconds(60));
        end(&kafka);
        let answered = ledger.ok();
        wait_until("clients are answered without Kafka", seconds(30), || {
            ledger.ok() > answered + 500
        });
        kafka.start();
    }
    load.stop();
    gateway.wait_drained(seconds(60));
    let tally = ledger.check(&[("t", kafka.read_topic("t", true))]).unwrap();
    assert_eq!((tally.unknown, tally.refused), (0, 0), "{tally:?}");
    Evidence::of(&tally, 2).print("broker killed, then stopped, under load");
}

fn a_missing_topic_does_not_delay_the_other_and_drains_in_order() {
    const WAITING: usize = 50_000;
    let kafka = Kafka::shared();
    let (missing, there) = (unique("missing"), unique("there"));
    kafka.create_topic(&there, 1, &[]);
    let mut config = Config::with(kafka);
    config.set("wal.generation_bytes", "1 MiB");
    let gateway = Gateway::start(&config);
    let (client, ledger) = (gateway.client(), Ledger::default());
    for batch in 0..WAITING / 1_000 {
        post_batch(
            &client,
            &ledger,
            &missing,
            &format!("key-{}", batch % 7),
            &values(1_000),
        );
    }
    // The slowest of many: none may wait for the missing topic.
    for n in 1..=20 {
        assert!(post(&client, &ledger, &there, Some("k")));
        kafka.wait_for_count(&there, n, seconds(5));
    }

    // The log moves on past what waits, and gives its space back: 32 MiB go through it.
    let mut random = Random::new();
    for n in 0..32 {
        let lines: Vec<Vec<u8>> = (0..1_000)
            .map(|i| format!(r#"{{"n":"{n}.{i}","x":"{}"}}"#, random.text(1_000)).into_bytes())
            .collect();
        post_batch(&client, &ledger, &there, "k", &lines);
    }
    kafka.wait_for_count(&there, 32_020, seconds(60));
    wait_until("all that waits is held", seconds(60), || {
        gateway.metric("tidegate_held_records") == WAITING as f64
            && gateway.metric("tidegate_wal_backlog_records") == 0.0
    });
    assert_eq!(gateway.metric("tidegate_held_topics"), 1.0);
    wait_until("the log gives its space back", seconds(30), || {
        disk_bytes(&gateway.wal()) < 24 * MIB
    });
    assert_eq!(gateway.admin("/readyz").unwrap().status, 200);
    let ready = gateway.admin("/readyz").unwrap().body;
    assert!(ready.contains(&missing), "operators read which topic it is: {ready}");

    kafka.create_topic(&missing, 3, &[]);
    // What comes now belongs behind what waits.
    post_batch(&client, &ledger, &missing, "key-0", &values(1_000));
    kafka.wait_for_count(&missing, WAITING as u64 + 1_000, seconds(90));
    gateway.wait_drained(seconds(30));
    wait_until("nothing is held", seconds(30), || {
        gateway.metric("tidegate_held_records") == 0.0
    });
    let topics = [
        (missing.as_str(), kafka.read_topic(&missing, true)),
        (&there, kafka.read_topic(&there, true)),
    ];
    let tally = ledger.check(&topics).unwrap();
    assert_eq!(tally.repeats, 0, "{tally:?}");
    wait_until("the lane gives its space back", seconds(30), || {
        disk_bytes(&gateway.wal()) < 8 * MIB
    });
}

fn one_poison_record_of_a_hundred_is_dead_lettered_alone() {
    let kafka = Kafka::shared();
    let topic = unique("poison");
    kafka.create_topic(&topic, 1, &[("max.message.bytes", "20000")]);
    let gateway = Gateway::start(&Config::with(kafka));
    let ledger = Arc::new(Ledger::default());
    let load = Load::start(&gateway, &ledger, &topic, 4);
    wait_until("the load runs", seconds(30), || ledger.ok() > 200);
    let mut batch = values(100);
    batch[50] = format!(r#"{{"poison":"{}"}}"#, Random::new().text(60_000)).into_bytes();
    let places: Vec<usize> = batch
        .iter()
        .map(|value| ledger.intend(&topic, Some("poisoned"), value))
        .collect();
    let answer = gateway
        .client()
        .post(&format!("/v1/topics/{topic}?key=poisoned"), NDJSON, &batch.join(&b'\n'))
        .unwrap();
    assert_eq!(answer.status, 202, "{answer:?}");
    for (index, place) in places.into_iter().enumerate() {
        // Kafka must not have it: to the checker that is a refusal.
        let outcome = if index == 50 {
            Outcome::Refused(0)
        } else {
            outcome(&answer, index as u64)
        };
        ledger.settle(place, outcome);
    }
    wait_until("the poison is a dead letter", seconds(60), || {
        gateway.metric("tidegate_dead_letters") == 1.0
    });
    let so_far = ledger.ok();
    wait_until("the load goes on", seconds(30), || ledger.ok() > so_far + 200);
    load.stop();
    gateway.wait_drained(seconds(60));
    let metrics = gateway.metrics();
    assert_eq!(
        metrics.get(r#"tidegate_dead_letters_total{reason="MessageSizeTooLarge"}"#),
        Some(&1.0),
        "{metrics:?}"
    );
    assert_eq!(gateway.metric("tidegate_dead_letters_total"), 1.0);
    let tally = ledger.check(&[(&topic, kafka.read_topic(&topic, true))]).unwrap();
    assert_eq!((tally.refused, tally.unknown), (1, 0), "{tally:?}");
}

fn a_topic_with_small_batches_gets_every_record() {
    // The limit is on the batch: records that are small alone are too large together, and none is poison.
    let kafka = Kafka::shared();
    let topic = unique("small-batches");
    kafka.create_topic(&topic, 1, &[("max.message.bytes", "20000")]);
    let gateway = Gateway::start(&Config::with(kafka));
    let (client, ledger, mut random) = (gateway.client(), Ledger::default(), Random::new());
    for _ in 0..5 {
        let batch: Vec<Vec<u8>> = (0..1_000)
            .map(|_| format!(r#"{{"x":"{}"}}"#, random.text(200)).into_bytes())
            .collect();
        post_batch(&client, &ledger, &topic, "k", &batch);
    }
    gateway.wait_drained(seconds(120));
    assert_eq!(gateway.metric("tidegate_dead_letters"), 0.0);
    ledger.check(&[(&topic, kafka.read_topic(&topic, true))]).unwrap();
}

fn catching_up_is_paced() {
    let kafka = Kafka::shared();
    let topic = unique("paced");
    kafka.create_topic(&topic, 1, &[]);
    let mut gateway = Gateway::start(&Config::new(NOWHERE));
    let (client, ledger, mut random) = (gateway.client(), Ledger::default(), Random::new());
    for _ in 0..6 {
        let batch: Vec<Vec<u8>> = (0..1_000)
            .map(|_| format!(r#"{{"x":"{}"}}"#, random.text(1_000)).into_bytes())
            .collect();
        post_batch(&client, &ledger, &topic, "k", &batch);
    }
    assert!(gateway.sigterm(seconds(40)).success());
    gateway.set("kafka.bootstrap_servers", kafka.bootstrap());
    gateway.set("forward.bytes_per_second_max", "2 MiB");
    let started = Instant::now();
    gateway.restart();
    gateway.wait_drained(seconds(60));
    // 6 MB at 2 MiB a second, of which the first second's worth may go at once.
    let elapsed = started.elapsed();
    assert!(elapsed > Duration::from_millis(1_500), "{elapsed:?}");
    assert!(gateway.metric("tidegate_forward_throttled_seconds_total") > 0.0);
    ledger.check(&[(&topic, kafka.read_topic(&topic, true))]).unwrap();
}

fn librdkafkas_threads_give_way_to_those_that_clients_wait_for() {
    let gateway = Gateway::start(&Config::new(NOWHERE));
    // As nice(2) counts, the 19th field of stat; the name may have spaces.
    let niceness = |task: &std::path::Path| -> Option<(String, i32)> {
        let stat = std::fs::read_to_string(task.join("stat")).ok()?;
        let (name, rest) = stat.split_once('(')?.1.rsplit_once(") ")?;
        Some((name.to_owned(), rest.split(' ').nth(16)?.parse().ok()?))
    };
    let of = |prefix: &str| -> Vec<i32> {
        let tasks = std::fs::read_dir(format!("/proc/{}/task", gateway.pid())).unwrap();
        let found = tasks.filter_map(|task| niceness(&task.unwrap().path()));
        found
            .filter(|(name, _)| name.starts_with(prefix))
            .map(|(_, n)| n)
            .collect()
    };
    wait_until("librdkafka's threads", seconds(10), || !of("rdk:broker").is_empty());
    let base = of("main writer");
    assert_eq!(base.len(), 1);
    let found = of("rdk:");
    assert!(found.iter().all(|n| *n == (base[0] + 10).min(19)), "{found:?}");
    for before in ["tokio", "sled", "main ", "forwarder", "kafka reports"] {
        let found = of(before);
        assert!(
            !found.is_empty() && found.iter().all(|n| *n == base[0]),
            "{before}: {found:?}"
        );
    }
}

/// While Kafka is away, its client is not filled with what it would send at once later.
fn the_pace_holds_over_an_outage() {
    let kafka = Kafka::private();
    let topic = unique("paced-outage");
    kafka.create_topic(&topic, 1, &[]);
    let mut config = Config::with(&kafka);
    config.set("forward.bytes_per_second_max", "32 KiB");
    let gateway = Gateway::start(&config);
    let (client, ledger, mut random) = (gateway.client(), Ledger::default(), Random::new());
    let mut batch = |records: usize| -> Vec<Vec<u8>> {
        let record = |_| format!(r#"{{"x":"{}"}}"#, random.text(1_016)).into_bytes();
        (0..records).map(record).collect()
    };
    post_batch(&client, &ledger, &topic, "k", &batch(1));
    gateway.wait_drained(seconds(30));
    kafka.stop();
    post_batch(&client, &ledger, &topic, "k", &batch(300));
    // Of 1 KiB each: two seconds carry 64, a piece of the log has about 30, and seven seconds would carry 224.
    let (began, mut most) = (Instant::now(), 0.0_f64);
    poll("seven seconds have passed", seconds(60), || {
        most = most.max(gateway.metric("tidegate_forward_in_flight_records"));
        (began.elapsed() > seconds(7)).then_some(())
    });
    assert!((1.0..=100.0).contains(&most), "{most} records on their way");
    kafka.start();
    gateway.wait_drained(seconds(60));
    ledger.check(&[(&topic, kafka.read_topic(&topic, true))]).unwrap();
}

fn sigterm_forwards_what_was_taken_and_exits_0() {
    let kafka = Kafka::shared();
    let topic = unique("sigterm");
    kafka.create_topic(&topic, 1, &[]);
    let mut gateway = Gateway::start(&Config::with(kafka));
    let ledger = Arc::new(Ledger::default());
    let load = Load::start(&gateway, &ledger, &topic, 8);
    wait_until("the load runs", seconds(30), || ledger.ok() > 500);
    gateway.terminate();
    load.join();
    assert_eq!(gateway.wait_for_exit(seconds(30)).code(), Some(0));
    let tally = ledger.check(&[(&topic, kafka.read_topic(&topic, true))]).unwrap();
    assert!(tally.ok > 500 && tally.repeats == 0, "{tally:?}");
}

fn sigterm_with_kafka_away_keeps_the_log_and_ends_in_time() {
    let kafka = Kafka::shared();
    let topic = unique("sigterm-away");
    kafka.create_topic(&topic, 1, &[]);
    let mut config = Config::new(NOWHERE);
    config.set("http.shutdown", "2 s");
    let mut gateway = Gateway::start(&config);
    let (client, ledger) = (gateway.client(), Ledger::default());
    post_batch(&client, &ledger, &topic, "k", &values(100));
    let started = Instant::now();
    assert_eq!(gateway.sigterm(seconds(20)).code(), Some(0));
    assert!(
        started.elapsed() >= seconds(2),
        "it tries to forward until its time is up"
    );
    gateway.set("kafka.bootstrap_servers", kafka.bootstrap());
    gateway.restart();
    gateway.wait_drained(seconds(30));
    let tally = ledger.check(&[(&topic, kafka.read_topic(&topic, true))]).unwrap();
    assert_eq!((tally.ok, tally.repeats), (100, 0));
}

fn a_full_log_refuses_and_recovers_by_itself() {
    let kafka = Kafka::private();
    kafka.create_topic("t", 1, &[]);
    kafka.stop();
    let mut config = Config::with(&kafka);
    config
        .set("wal.generation_bytes", "1 MiB")
        .set("wal.bytes_max", "8 MiB");
    let gateway = Gateway::start(&config);
    let (client, ledger, mut random) = (gateway.client(), Ledger::default(), Random::new());
    let mut post_text = || {
        let value = format!(r#"{{"x":"{}"}}"#, random.text(50_000)).into_bytes();
        let place = ledger.intend("t", Some("k"), &value);
        let headers = [("content-type", "application/json"), ("tidegate-key", "k")];
        let answer = client.post_with("/v1/topics/t", &headers, &value).unwrap();
        ledger.settle(place, outcome(&answer, 0));
        answer
    };
    let refused = (0..1_000).map(|_| post_text()).find(|answer| answer.status != 202);
    let refused = refused.expect("8 MiB do not hold 50 MB");
    assert_eq!(refused.status, 503, "{refused:?}");
    assert!(
        refused
            .header("retry-after")
            .parse::<u32>()
            .is_ok_and(|seconds| seconds > 0),
        "{refused:?}"
    );
    assert!(
        refused.header("content-type").starts_with("application/problem+json"),
        "{refused:?}"
    );
    assert_eq!(refused.json()["type"], "urn:tidegate:problem:wal_full", "{refused:?}");
    assert!(
        disk_bytes(&gateway.wal()) <= 9 * MIB,
        "{} bytes",
        disk_bytes(&gateway.wal())
    );
    let metrics = gateway.metrics();
    let reason = r#"tidegate_ingest_rejected_total{reason="wal_full"}"#;
    assert!(metrics.get(reason).is_some_and(|n| *n >= 1.0), "{metrics:?}");
    assert_eq!(gateway.admin("/readyz").unwrap().status, 503, "it cannot commit");
    assert_eq!(gateway.admin("/livez").unwrap().status, 200);

    kafka.start();
    wait_until("records are taken again", seconds(60), || post_text().status == 202);
    gateway.wait_drained(seconds(60));
    assert_eq!(gateway.admin("/readyz").unwrap().status, 200);
    let tally = ledger.check(&[("t", kafka.read_topic("t", true))]).unwrap();
    assert!(tally.refused > 0 && tally.ok > 50, "{tally:?}");
}
