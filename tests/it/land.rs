//! The lander on a real Kafka: every record that was answered OK is in the database, once, whatever is killed.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;

use rdkafka::ClientConfig;
use rdkafka::producer::{BaseRecord, DefaultProducerContext, ThreadedProducer};

use crate::support::evidence::Evidence;
use crate::support::gateway::{Gateway, rss_bytes};
use crate::support::kafka::Kafka;
use crate::support::lander::Lander;
use crate::support::postgres::Postgres;
use crate::support::store::{Raw, Store, WAL, once, produce, raw};
use crate::support::{FORM, Random, poll, seconds, soak, unique, wait_until};

cases!["land":
    six_sources_land_as_the_script_would_have_classified_them [Kafka],
    whatever_a_producer_sends_lands_in_sqlite [Kafka],
    whatever_a_producer_sends_lands_in_postgres [Kafka, Postgres],
    whatever_a_producer_sends_lands_in_files [Kafka],
    every_record_is_once_in_sqlite_whatever_is_killed [Kafka],
    every_record_is_once_in_postgres_whatever_is_killed [OwnKafka, Postgres],
    every_record_is_once_in_files_whatever_is_killed [Kafka],
    repeats_and_clashes_in_sqlite [Kafka],
    repeats_and_clashes_in_postgres [Kafka, Postgres],
    repeats_and_clashes_in_files [Kafka],
    declared_fields_have_columns_in_sqlite [Kafka],
    declared_fields_have_columns_in_postgres [Kafka, Postgres],
    declared_fields_have_members_in_files [Kafka],
    a_dry_run_counts_and_writes_nothing [Kafka],
    once_ends_while_traffic_goes_on [Kafka],
    once_that_a_signal_ends_is_not_done [Kafka],
];

fn six_sources_land_as_the_script_would_have_classified_them() {
    let kafka = Kafka::shared();
    let store = Store::sqlite();
    let mut config = store.config(kafka);
    let sources = [
        ("identity_pro", 7),
        ("financial_pro", 4),
        ("internet_pro", 5),
        ("social_pro", 3),
        ("trip_pro", 3),
        ("communication_pro", 4),
    ];
    for (source, fields) in sources {
        let topic = unique(source);
        kafka.create_topic(&topic, 2, &[]);
        config.landed(
            source,
            &topic,
            &[("field_count", i64::from(fields).into()), ("consumers", 2.into())],
        );
    }
    let gateway = Gateway::start(&config);
    let lander = Lander::start(&config);
    let client = gateway.client();
    let form = |fields: i32| {
        (1..=fields)
            .map(|n| format!("test{n:02}={n}"))
            .collect::<Vec<_>>()
            .join("&")
    };
    for (source, fields) in sources {
        for sent in [fields, fields - 1, fields + 1, fields] {
            let answer = client.post(&format!("/{source}"), FORM, form(sent).as_bytes()).unwrap();
            assert_eq!(answer.status, 200, "{answer:?}");
        }
    }
    for (source, fields) in sources {
        wait_until(format_args!("{source} is landed"), seconds(60), || {
            store.count(source) == 4
        });
        let view = |view: &str| store.query(&format!("SELECT seq, reason FROM {source}_{view} ORDER BY seq"));
        assert_eq!(view("valid").len(), 2);
        let reasons: Vec<String> = view("invalid").into_iter().map(|mut row| row.remove(1)).collect();
        assert_eq!(
            reasons,
            [
                format!("expected {fields} fields, got {}", fields - 1),
                format!("expected {fields} fields, got {}", fields + 1)
            ]
        );
    }
    let row = &store.query("SELECT wal, kafka_partition >= 0, kafka_offset >= 0, key, received_at, valid, value FROM trip_pro WHERE valid LIMIT 1",
    )[0];
    assert_eq!(row[0], gateway.status()["wal"]["id"].as_str().unwrap());
    assert_eq!(&row[3..4], ["NULL"]);
    assert!(
        row[4].starts_with("20") && row[4].ends_with('Z') && row[4].len() == 24,
        "{row:?}"
    );
    assert_eq!(&row[5..], ["1", r#"{"test01":"1","test02":"2","test03":"3"}"#]);

    // What operators see.
    wait_until("the lander has caught up", seconds(20), || {
        let status = lander.admin("/v1/status").unwrap().json();
        // Asked once more: while its twelve consumers still share out the partitions, how far one is changes.
        status["lag_records"] == 0
            && status["partitions"].as_array().unwrap().len() == 12
            && lander.metric("tidegate_land_lag_records") == 0.0
    });
    let metrics = lander.metrics();
    assert_eq!(metrics[r#"tidegate_land_records_total{valid="true"}"#], 12.0);
    assert_eq!(metrics[r#"tidegate_land_records_total{valid="false"}"#], 12.0);
    assert_eq!(lander.admin("/readyz").unwrap().status, 200);
    let rss = rss_bytes(lander.pid());
    assert!(rss < 100 << 20, "{rss} bytes of memory, for twelve consumers");
    let mut lander = lander;
    assert_eq!(lander.sigterm(seconds(20)).code(), Some(0));
}

fn whatever_a_producer_sends_lands_in_sqlite() {
    nothing_that_a_producer_sends_stops_it(&Store::sqlite());
}

fn whatever_a_producer_sends_lands_in_postgres() {
    nothing_that_a_producer_sends_stops_it(&Store::postgres());
}

fn whatever_a_producer_sends_lands_in_files() {
    nothing_that_a_producer_sends_stops_it(&Store::files());
}

fn nothing_that_a_producer_sends_stops_it(store: &Store) {
    let kafka = Kafka::shared();
    let topic = unique("weird");
    kafka.create_topic(&topic, 1, &[("max.message.bytes", "2000000")]);
    let mut config = store.config(kafka);
    config.landed("weird", &topic, &[("field_count", 1.into())]);
    let large = format!(r#"{{"a":"{}"}}"#, "x".repeat(1 << 20));
    let deep = format!(r#"{{"a":{}{}}}"#, "[".repeat(100_000), "]".repeat(100_000));
    let broken_deep = "[".repeat(100_000);
    let values: Vec<Option<&[u8]>> = vec![
        Some(b"not JSON"),
        Some(b""),
        None,
        Some(large.as_bytes()),
        Some(deep.as_bytes()),
        Some(broken_deep.as_bytes()),
        Some(b"\xff\xfe"),
        Some(b"a\0b"),
        Some(br#"{"a":"\u0000"}"#),
        Some(br#"{"a":1}"#),
    ];
    let records: Vec<Raw<'_>> = values
        .iter()
        .enumerate()
        .map(|(n, value)| Raw {
            partition: 0,
            key: Some(if n % 2 == 0 { b"\xff\0key" } else { b"key" }),
            value: *value,
            // Half of an identity, or a broken one, is none.
            identity: (n % 3 == 0).then_some(("no-uuid", "-1")),
        })
        .collect();
    produce(kafka, &topic, &records);
    once(&config);
    let hex = |bytes: Option<&[u8]>| {
        bytes.map_or("NULL".to_owned(), |bytes| {
            bytes.iter().map(|byte| format!("{byte:02x}")).collect()
        })
    };
    let bytes = |column: &str| match store {
        Store::Sqlite(_) | Store::Files(_) => {
            format!("CASE WHEN {column} IS NULL THEN NULL ELSE lower(hex({column})) END")
        }
        Store::Postgres(..) => {
            format!("encode(coalesce({column}_bytes, convert_to({column}, 'UTF8')), 'hex')")
        }
    };
    let rows = store.query(&format!(
        "SELECT kafka_offset, {}, {}, CASE WHEN valid THEN 1 ELSE 0 END, wal, seq FROM weird ORDER BY kafka_offset",
        bytes("value"),
        bytes("key")
    ));
    assert_eq!(rows.len(), values.len());
    for (row, sent) in rows.iter().zip(&records) {
        assert!(
            row[1] == hex(sent.value) && row[2] == hex(sent.key),
            "byte for byte: {}",
            row[0]
        );
        assert!(row[4].starts_with("kafka:") && row[4].ends_with("/0/1"), "{}", row[4]);
        assert_eq!(row[5], row[0]);
    }
    let valid: Vec<&str> = rows
        .iter()
        .filter(|row| row[3] == "1")
        .map(|row| row[0].as_str())
        .collect();
    assert_eq!(valid, ["3", "4", "8", "9"]);
    // Again: nothing new.
    assert!(
        once(&config)
            .lines()
            .nth(1)
            .unwrap()
            .split_whitespace()
            .skip(1)
            .all(|n| n == "0")
    );
}

fn every_record_is_once_in_sqlite_whatever_is_killed() {
    every_record_is_landed_once_whatever_is_killed(&Store::sqlite());
}

fn every_record_is_once_in_postgres_whatever_is_killed() {
    // Its own: others are at work on the shared one.
    every_record_is_landed_once_whatever_is_killed(&Store::on(Arc::new(Postgres::private())));
}

fn every_record_is_once_in_files_whatever_is_killed() {
    every_record_is_landed_once_whatever_is_killed(&Store::files());
}

fn every_record_is_landed_once_whatever_is_killed(store: &Store) {
    let (records, kills) = match store {
        _ if !soak() => (50_000, 8),
        Store::Postgres(..) => (1_000_000, 20),
        _ => (200_000, 20),
    };
    const BATCH: usize = 250;
    // To one database with all that can happen on the way: its Kafka has faults, too.
    let own = matches!(store, Store::Postgres(..)).then(Kafka::private);
    let kafka = own.as_ref().unwrap_or_else(|| Kafka::shared());
    let topic = unique("killed");
    kafka.create_topic(&topic, 4, &[]);
    let mut config = store.config(kafka);
    config
        .landed(
            "killed",
            &topic,
            &[("fields", vec!["n", "key"].into()), ("consumers", 2.into())],
        )
        .set("http.listen", "127.0.0.1:0")
        .set("land.batch_records_max", 700)
        .set("land.file_bytes_max", "256 KiB");
    let mut gateway = Gateway::start(&config);
    let mut landers = vec![Lander::start(&config)];
    let mut random = Random::new();
    let ok: Arc<Mutex<HashMap<u64, usize>>> = Arc::default();
    let sent = Arc::new(Mutex::new(0_usize));
    let halted = Arc::new(AtomicBool::new(false));
    let address = Arc::new(Mutex::new(gateway.ingest.clone()));
    let load: Vec<_> = (0..4)
        .map(|_| {
            let (ok, sent, halted, address, topic) = (
                Arc::clone(&ok),
                Arc::clone(&sent),
                Arc::clone(&halted),
                Arc::clone(&address),
                topic.clone(),
            );
            thread::spawn(move || {
                while ok.lock().unwrap().len() < records && !halted.load(Ordering::Relaxed) {
                    let first = {
                        let mut sent = sent.lock().unwrap();
                        *sent += BATCH;
                        *sent - BATCH
                    };
                    let lines: String = (first..first + BATCH)
                        .map(|n| format!("{{\"n\":{n},\"key\":\"k{}\"}}\n", n % 97))
                        .collect();
                    let client = crate::support::client::Client::new(&address.lock().unwrap().clone());
                    let headers = [("content-type", "application/x-ndjson")];
                    match client.post_with(&format!("/v1/topics/{topic}?key_field=key"), &headers, lines.as_bytes()) {
                        Ok(answer) if answer.status == 202 => {
                            let seq = answer.json()["first_seq"].as_u64().unwrap();
                            let mut ok = ok.lock().unwrap();
                            ok.extend((0..BATCH).map(|i| (seq + i as u64, first + i)));
                        }
                        // Killed, or starting.
                        _ => thread::sleep(std::time::Duration::from_millis(20)),
                    }
                }
            })
        })
        .collect();
    let mut before = 0;
    for round in 0..kills {
        // Each kill hits a lander at work.
        poll("rows come in", seconds(60), || {
            (store.count("killed") > before).then_some(())
        });
        thread::sleep(std::time::Duration::from_millis(random.within(1, 300)));
        // The database, too, three times.
        if let Store::Postgres(postgres, _) = store
            && round % (kills / 3) == 1
        {
            postgres.stop();
            postgres.start();
        }
        match (&own, round % 6) {
            (Some(own), 2) => {
                own.kill();
                own.start();
            }
            (Some(own), 4) => {
                own.freeze();
                thread::sleep(std::time::Duration::from_millis(random.within(500, 3_000)));
                own.thaw();
            }
            _ => {}
        }
        match round % 4 {
            0 => landers[0].kill_and_restart(),
            // One more joins.
            1 => landers.push(Lander::start(&config)),
            // The gateway: what it had sent and not settled may be in Kafka twice.
            2 => {
                gateway.kill_and_restart();
                address.lock().unwrap().clone_from(&gateway.ingest);
                landers[0].kill_and_restart();
            }
            // One leaves.
            _ => {
                let mut left = landers.pop().unwrap();
                assert_eq!(left.sigterm(seconds(30)).code(), Some(0));
            }
        }
        // Before anything is posted: it may be landed before the next look.
        before = store.count("killed");
        if ok.lock().unwrap().len() >= records && before >= records {
            // Something to land for the next kill.
            let client = gateway.client();
            let answer = client.post(
                &format!("/v1/topics/{topic}"),
                "application/json",
                br#"{"n":-1,"key":"k"}"#,
            );
            assert_eq!(answer.unwrap().status, 202);
        }
    }
    for thread in load {
        thread.join().unwrap();
    }
    gateway.wait_drained(seconds(60));
    drop(landers);
    once(&config);
    let ok = ok.lock().unwrap().clone();
    let mut values: HashMap<i64, u32> = HashMap::new();
    let mut by_seq: HashMap<u64, i64> = HashMap::new();
    for row in store.query("SELECT seq, n, CASE WHEN valid THEN 1 ELSE 0 END FROM killed") {
        let n: i64 = row[1].parse().unwrap();
        assert_eq!(row[2], "1");
        if n >= 0 {
            *values.entry(n).or_default() += 1;
        }
        assert_eq!(
            by_seq.insert(row[0].parse().unwrap(), n),
            None,
            "an identity is there once"
        );
    }
    let lost: Vec<&usize> = ok
        .iter()
        .filter(|(seq, n)| by_seq.get(seq).copied() != i64::try_from(**n).ok())
        .map(|(_, n)| n)
        .collect();
    assert!(
        lost.is_empty(),
        "seed {}: {} answered OK and not in the table",
        random.seed(),
        lost.len()
    );
    assert!(
        values.values().all(|times| *times == 1),
        "seed {}: a record is there twice",
        random.seed()
    );
    assert!(ok.len() >= records);
    assert_eq!(store.count("rejected"), 0);
    let in_kafka = kafka.count(&topic).unwrap();
    assert!(in_kafka >= ok.len() as u64);
    let evidence = Evidence {
        injected: kills as u64,
        answered: ok.len() as u64,
        ..Evidence::default()
    };
    evidence.print(&format!(
        "gateway, landers and what is around them killed, {in_kafka} in Kafka, to {}",
        store.name()
    ));
}

fn repeats_and_clashes_in_sqlite() {
    repeats_in_kafka_are_landed_once_and_clashes_are_kept(&Store::sqlite());
}

fn repeats_and_clashes_in_postgres() {
    repeats_in_kafka_are_landed_once_and_clashes_are_kept(&Store::postgres());
}

fn repeats_and_clashes_in_files() {
    repeats_in_kafka_are_landed_once_and_clashes_are_kept(&Store::files());
}

fn repeats_in_kafka_are_landed_once_and_clashes_are_kept(store: &Store) {
    let kafka = Kafka::shared();
    let topic = unique("repeats");
    kafka.create_topic(&topic, 2, &[]);
    let mut config = store.config(kafka);
    config.landed("repeats", &topic, &[]);
    let of = |partition, seq, value| Raw {
        partition,
        identity: Some((WAL, seq)),
        ..raw(value)
    };
    produce(
        kafka,
        &topic,
        &[
            of(0, "7", b"seven"),
            of(0, "7", b"seven"),
            of(1, "8", b"eight"),
            raw(b"foreign"),
        ],
    );
    once(&config);
    // Repeats of what is stored, in other partitions too; a late one of an old sequence is new.
    produce(
        kafka,
        &topic,
        &[
            of(1, "7", b"seven"),
            of(0, "8", b"EIGHT"),
            of(0, "3", b"three"),
            raw(b"foreign"),
        ],
    );
    let told = once(&config);
    let rows = store.query("SELECT seq, value FROM repeats WHERE wal NOT LIKE 'kafka:%' ORDER BY seq");
    assert_eq!(rows, [["3", "three"], ["7", "seven"], ["8", "eight"]]);
    assert_eq!(
        store.query("SELECT value FROM repeats WHERE wal LIKE 'kafka:%'").len(),
        2
    );
    let value = match store {
        Store::Sqlite(_) | Store::Files(_) => "value",
        Store::Postgres(..) => "convert_from(value, 'UTF8')",
    };
    let rejected = store.query(&format!(
        "SELECT kind, wal, seq, kafka_partition, {value} FROM rejected"
    ));
    assert_eq!(rejected, [["identity_clash", WAL, "8", "0", "EIGHT"]]);
    let numbers: Vec<&str> = told.lines().nth(1).unwrap().split_whitespace().collect();
    assert_eq!(numbers, ["repeats", "2", "0", "1", "1"]);
}

fn a_dry_run_counts_and_writes_nothing() {
    let kafka = Kafka::shared();
    let store = Store::sqlite();
    let topic = unique("dry");
    kafka.create_topic(&topic, 3, &[]);
    let mut config = store.config(kafka);
    config.landed("dry", &topic, &[("field_count", 1.into()), ("consumers", 3.into())]);
    produce(
        kafka,
        &topic,
        &[
            raw(br#"{"a":1}"#),
            Raw {
                partition: 2,
                ..raw(b"x")
            },
        ],
    );
    let ended = Lander::run(&config, &["--dry-run"]);
    assert_eq!(ended.code, Some(0), "{ended:?}");
    let numbers: Vec<&str> = ended.stdout.lines().nth(1).unwrap().split_whitespace().collect();
    assert_eq!(numbers, ["dry", "1", "1", "0", "0"]);
    assert!(!store.file().exists());
}

fn once_ends_while_traffic_goes_on() {
    let kafka = Kafka::shared();
    let store = Store::sqlite();
    let topic = unique("traffic");
    kafka.create_topic(&topic, 1, &[]);
    let mut config = store.config(kafka);
    config.landed("traffic", &topic, &[]).set("land.batch_wait", "20 ms");
    produce(kafka, &topic, &[raw(b"before")]);
    let producer: ThreadedProducer<DefaultProducerContext> = ClientConfig::new()
        .set("bootstrap.servers", kafka.bootstrap())
        .set("linger.ms", "1")
        .create()
        .unwrap();
    let halted = Arc::new(AtomicBool::new(false));
    let load = {
        let (halted, topic) = (Arc::clone(&halted), topic.clone());
        thread::spawn(move || {
            while !halted.load(Ordering::Relaxed) {
                producer
                    .send(BaseRecord::<[u8], str>::to(&topic).payload("meanwhile"))
                    .map_err(|(error, _)| error)
                    .unwrap();
                thread::sleep(std::time::Duration::from_millis(1));
            }
        })
    };
    once(&config);
    assert!(store.count("traffic") >= 1);
    halted.store(true, Ordering::Relaxed);
    load.join().unwrap();
    // Each run goes on where the one before ended.
    once(&config);
    assert_eq!(Some(store.count("traffic") as u64), kafka.count(&topic));
}

fn once_that_a_signal_ends_is_not_done() {
    let kafka = Kafka::shared();
    let store = Store::sqlite();
    let topic = unique("cut");
    kafka.create_topic(&topic, 1, &[]);
    let mut config = store.config(kafka);
    // A transaction each: there is time for a signal.
    config.landed("cut", &topic, &[]).set("land.batch_records_max", 1);
    let many: Vec<Raw<'_>> = (0..20_000).map(|_| raw(b"1")).collect();
    produce(kafka, &topic, &many);
    let mut lander = Lander::start_with(&config, &["--once"]);
    assert_eq!(lander.sigterm(seconds(40)).code(), Some(75));
    assert!(store.count("cut") < 20_000);
}

fn declared_fields_have_columns_in_sqlite() {
    declared_fields_have_columns_of_their_types(&Store::sqlite());
}

fn declared_fields_have_columns_in_postgres() {
    declared_fields_have_columns_of_their_types(&Store::postgres());
}

fn declared_fields_have_members_in_files() {
    declared_fields_have_columns_of_their_types(&Store::files());
}

fn declared_fields_have_columns_of_their_types(store: &Store) {
    let kafka = Kafka::shared();
    let topic = unique("typed");
    kafka.create_topic(&topic, 1, &[]);
    let mut first = store.config(kafka);
    first.landed(
        "typed",
        &topic,
        &[
            ("fields", vec!["value", "n"].into()),
            ("types", vec!["n: integer"].into()),
        ],
    );
    produce(
        kafka,
        &topic,
        &[raw(br#"{"value":"007","n":"5"}"#), raw(br#"{"value":"x","n":"five"}"#)],
    );
    once(&first);
    // A field that is declared later gets its column; what is stored stays.
    let mut second = store.config(kafka);
    second.landed(
        "typed",
        &topic,
        &[
            ("fields", vec!["value", "n", "at"].into()),
            ("types", vec!["n: integer", "at: timestamp"].into()),
        ],
    );
    produce(
        kafka,
        &topic,
        &[raw(br#"{"value":"y","n":6,"at":"2026-11-24T08:30:00+01:00"}"#)],
    );
    once(&second);
    let rows = store
        .query("SELECT value_field, n, at, CASE WHEN valid THEN 1 ELSE 0 END, reason FROM typed ORDER BY kafka_offset");
    assert_eq!(rows[0], ["007", "5", "NULL", "1", "NULL"]);
    assert_eq!(
        rows[1],
        [
            "x",
            "NULL",
            "NULL",
            "0",
            "field n is not an integer of 64 bits: \"five\""
        ]
    );
    let at = match store {
        Store::Sqlite(_) | Store::Files(_) => "2026-11-24T07:30:00.000000Z",
        Store::Postgres(..) => "2026-11-24 07:30:00+00",
    };
    assert_eq!(rows[2], ["y", "6", at, "1", "NULL"]);
}
