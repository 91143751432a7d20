//! The lander on a real Kafka: every record that was answered OK is in the database, once, whatever is killed.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;

use rdkafka::ClientConfig;
use rdkafka::message::{Header, OwnedHeaders};
use rdkafka::producer::{BaseRecord, DefaultProducerContext, Producer as _, ThreadedProducer};
use rusqlite::types::ValueRef;
use rusqlite::{Connection, OpenFlags};

use crate::support::gateway::{Config, Gateway};
use crate::support::kafka::Kafka;
use crate::support::lander::{Lander, settings};
use crate::support::{FORM, Random, poll, seconds, soak, unique, wait_until};

cases!["land":
    six_sources_land_as_the_script_would_have_classified_them [Kafka],
    nothing_that_a_producer_sends_stops_it [Kafka],
    every_record_is_landed_once_whatever_is_killed [Kafka],
    repeats_in_kafka_are_landed_once_and_clashes_are_kept [Kafka],
    a_topic_made_anew_is_read_from_its_beginning [Kafka],
    what_kafka_deleted_first_is_told [Kafka],
    another_cluster_is_read_from_its_beginning [Kafka, OwnKafka],
    a_dry_run_counts_and_writes_nothing [Kafka],
    a_database_that_is_busy_is_waited_for [Kafka],
    wrong_databases_end_with_a_clear_error [Kafka],
    declared_fields_have_columns_of_their_types [Kafka],
];

/// A configuration for a lander into a SQLite file of this folder.
fn config(kafka: &Kafka, folder: &tempfile::TempDir) -> Config {
    let mut config = Config::with(kafka);
    settings(&mut config).set("land.path", file(folder).to_str().unwrap());
    config
}

fn file(folder: &tempfile::TempDir) -> std::path::PathBuf {
    folder.path().join("landed.db")
}

fn open(folder: &tempfile::TempDir) -> Connection {
    let connection = Connection::open_with_flags(file(folder), OpenFlags::SQLITE_OPEN_READ_ONLY).unwrap();
    connection.busy_timeout(seconds(10)).unwrap();
    connection
}

/// Rows of a query as texts; NULL is "NULL", bytes that are no text are in hex.
fn query(folder: &tempfile::TempDir, sql: &str) -> Vec<Vec<String>> {
    let connection = open(folder);
    let mut statement = connection.prepare(sql).unwrap();
    let columns = statement.column_count();
    let rows = statement.query_map([], |row| {
        (0..columns)
            .map(|column| {
                Ok(match row.get_ref(column)? {
                    ValueRef::Null => "NULL".to_owned(),
                    ValueRef::Integer(number) => number.to_string(),
                    ValueRef::Real(number) => number.to_string(),
                    ValueRef::Text(text) => String::from_utf8(text.to_vec()).unwrap(),
                    ValueRef::Blob(bytes) => format!("x{bytes:02x?}"),
                })
            })
            .collect()
    });
    rows.unwrap().map(Result::unwrap).collect()
}

fn count(folder: &tempfile::TempDir, table: &str) -> usize {
    if !file(folder).exists() {
        return 0;
    }
    let connection = open(folder);
    let rows: Result<i64, _> = connection.query_row(&format!("SELECT count(*) FROM \"{table}\""), [], |row| row.get(0));
    rows.map_or(0, |rows| usize::try_from(rows).unwrap())
}

/// Lands what is there, and gives the process's last words.
#[track_caller]
fn once(config: &Config) -> String {
    let ended = Lander::run(config, &["--once"]);
    assert_eq!(ended.code, Some(0), "{ended:?}");
    ended.stdout
}

/// A record as a producer that is no gateway sends it, or one with an identity.
struct Raw<'a> {
    partition: i32,
    key: Option<&'a [u8]>,
    value: Option<&'a [u8]>,
    identity: Option<(&'a str, &'a str)>,
}

fn raw(value: &[u8]) -> Raw<'_> {
    Raw {
        partition: 0,
        key: None,
        value: Some(value),
        identity: None,
    }
}

fn produce(kafka: &Kafka, topic: &str, records: &[Raw<'_>]) {
    let producer: ThreadedProducer<DefaultProducerContext> = ClientConfig::new()
        .set("bootstrap.servers", kafka.bootstrap())
        .set("message.max.bytes", "2000000")
        .set("enable.idempotence", "true")
        .create()
        .unwrap();
    for record in records {
        let mut message = BaseRecord::<[u8], [u8]>::to(topic).partition(record.partition);
        message.key = record.key;
        message.payload = record.value;
        if let Some((wal, seq)) = record.identity {
            let header = |key, value| Header {
                key,
                value: Some(value),
            };
            message.headers = Some(
                OwnedHeaders::new()
                    .insert(header("tidegate-wal", wal))
                    .insert(header("tidegate-seq", seq)),
            );
        }
        producer.send(message).map_err(|(error, _)| error).unwrap();
    }
    producer.flush(seconds(30)).unwrap();
}

const WAL: &str = "6f1b1a3e-7b1c-4a57-9c59-0d7d4b2f1c11";

fn six_sources_land_as_the_script_would_have_classified_them() {
    let kafka = Kafka::shared();
    let folder = tempfile::tempdir().unwrap();
    let mut config = config(kafka, &folder);
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
            count(&folder, source) == 4
        });
        let view = |view: &str| {
            query(
                &folder,
                &format!("SELECT seq, reason FROM {source}_{view} ORDER BY seq"),
            )
        };
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
    let row = &query(
        &folder,
        "SELECT wal, kafka_partition >= 0, kafka_offset >= 0, key, received_at, valid, value FROM trip_pro WHERE valid LIMIT 1",
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
        status["lag_records"] == 0 && status["partitions"].as_array().unwrap().len() == 12
    });
    let metrics = lander.metrics();
    assert_eq!(metrics[r#"tidegate_land_records_total{valid="true"}"#], 12.0);
    assert_eq!(metrics[r#"tidegate_land_records_total{valid="false"}"#], 12.0);
    assert_eq!(lander.admin("/readyz").unwrap().status, 200);
    assert_eq!(lander.metric("tidegate_land_lag_records"), 0.0);
    let mut lander = lander;
    assert_eq!(lander.sigterm(seconds(20)).code(), Some(0));
}

fn nothing_that_a_producer_sends_stops_it() {
    let kafka = Kafka::shared();
    let folder = tempfile::tempdir().unwrap();
    let topic = unique("weird");
    kafka.create_topic(&topic, 1, &[("max.message.bytes", "2000000")]);
    let mut config = config(kafka, &folder);
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
    let connection = open(&folder);
    let mut statement = connection
        .prepare("SELECT kafka_offset, value, key, valid, wal, seq FROM weird ORDER BY kafka_offset")
        .unwrap();
    let rows = statement
        .query_map([], |row| {
            let bytes = |column| {
                row.get_ref(column)
                    .map(|value| value.as_bytes_or_null().unwrap().map(<[u8]>::to_vec))
            };
            Ok((
                row.get::<_, i64>(0)?,
                bytes(1)?,
                bytes(2)?,
                row.get::<_, bool>(3)?,
                row.get::<_, String>(4)?,
                row.get::<_, i64>(5)?,
            ))
        })
        .unwrap();
    let rows: Vec<_> = rows.map(Result::unwrap).collect();
    assert_eq!(rows.len(), values.len());
    for (row, sent) in rows.iter().zip(&records) {
        assert_eq!(
            (row.1.as_deref(), row.2.as_deref()),
            (sent.value, sent.key),
            "byte for byte"
        );
        assert!(row.4.starts_with("kafka:") && row.4.ends_with("/0/1"), "{}", row.4);
        assert_eq!(row.5, row.0);
    }
    let valid: Vec<i64> = rows.iter().filter(|row| row.3).map(|row| row.0).collect();
    assert_eq!(valid, [3, 4, 8, 9]);
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

fn every_record_is_landed_once_whatever_is_killed() {
    let (records, kills) = if soak() { (200_000, 20) } else { (50_000, 8) };
    const BATCH: usize = 250;
    let kafka = Kafka::shared();
    let folder = tempfile::tempdir().unwrap();
    let topic = unique("killed");
    kafka.create_topic(&topic, 4, &[]);
    let mut config = config(kafka, &folder);
    config
        .landed(
            "killed",
            &topic,
            &[("fields", vec!["n", "key"].into()), ("consumers", 2.into())],
        )
        .set("http.listen", "127.0.0.1:0")
        .set("land.batch_records_max", 700);
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
    for round in 0..kills {
        // Each kill hits a lander at work.
        let before = count(&folder, "killed");
        poll("rows come in", seconds(60), || {
            (count(&folder, "killed") > before).then_some(())
        });
        thread::sleep(std::time::Duration::from_millis(random.within(1, 300)));
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
        if ok.lock().unwrap().len() >= records && count(&folder, "killed") >= records {
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
    for row in query(&folder, "SELECT seq, n, valid FROM killed") {
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
    assert_eq!(count(&folder, "rejected"), 0);
    let in_kafka = kafka.count(&topic).unwrap();
    println!(
        "{kills} kills: {} answered OK, {in_kafka} in Kafka, {} rows",
        ok.len(),
        by_seq.len()
    );
}

fn repeats_in_kafka_are_landed_once_and_clashes_are_kept() {
    let kafka = Kafka::shared();
    let folder = tempfile::tempdir().unwrap();
    let topic = unique("repeats");
    kafka.create_topic(&topic, 2, &[]);
    let mut config = config(kafka, &folder);
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
    let rows = query(
        &folder,
        "SELECT seq, value FROM repeats WHERE wal NOT LIKE 'kafka:%' ORDER BY seq",
    );
    assert_eq!(rows, [["3", "three"], ["7", "seven"], ["8", "eight"]]);
    assert_eq!(
        query(&folder, "SELECT value FROM repeats WHERE wal LIKE 'kafka:%'").len(),
        2
    );
    let rejected = query(&folder, "SELECT kind, wal, seq, kafka_partition, value FROM rejected");
    assert_eq!(rejected, [["identity_clash", WAL, "8", "0", "EIGHT"]]);
    let numbers: Vec<&str> = told.lines().nth(1).unwrap().split_whitespace().collect();
    assert_eq!(numbers, ["repeats", "2", "0", "1", "1"]);
}

fn a_topic_made_anew_is_read_from_its_beginning() {
    let kafka = Kafka::shared();
    let folder = tempfile::tempdir().unwrap();
    let topic = unique("anew");
    kafka.create_topic(&topic, 1, &[]);
    let mut config = config(kafka, &folder);
    config.landed("anew", &topic, &[]);
    produce(kafka, &topic, &[raw(b"1"), raw(b"2")]);
    once(&config);
    kafka.delete_topic(&topic);
    poll("the topic can be made anew", seconds(30), || {
        kafka.count(&topic).is_none().then_some(())
    });
    kafka.create_topic(&topic, 1, &[]);
    // Longer than the old one: its offsets alone would not tell.
    produce(kafka, &topic, &[raw(b"a"), raw(b"b"), raw(b"c"), raw(b"d")]);
    let ended = Lander::run(&config, &["--once"]);
    assert_eq!(ended.code, Some(0), "{ended:?}");
    assert!(ended.stderr.contains("made anew"), "{ended:?}");
    let values: Vec<String> = query(&folder, "SELECT value FROM anew ORDER BY wal, seq").concat();
    assert_eq!(values, ["1", "2", "a", "b", "c", "d"]);
    let positions = query(&folder, "SELECT epoch, next FROM tidegate_positions");
    assert_eq!(positions, [["2", "4"]]);

    // And while a lander runs.
    let lander = Lander::start(&config);
    produce(kafka, &topic, &[raw(b"e")]);
    wait_until("the lander reads", seconds(30), || count(&folder, "anew") == 7);
    kafka.delete_topic(&topic);
    poll("the topic can be made anew", seconds(30), || {
        kafka.count(&topic).is_none().then_some(())
    });
    kafka.create_topic(&topic, 1, &[]);
    let many: Vec<Vec<u8>> = (0..20).map(|n| format!("new {n}").into_bytes()).collect();
    let many: Vec<Raw<'_>> = many.iter().map(|value| raw(value)).collect();
    produce(kafka, &topic, &many);
    wait_until("all of the new topic is landed", seconds(60), || {
        count(&folder, "anew") == 27
    });
    assert!(lander.metrics()[r#"tidegate_land_errors_total{reason="topic_anew"}"#] >= 1.0);
}

fn what_kafka_deleted_first_is_told() {
    let kafka = Kafka::shared();
    let folder = tempfile::tempdir().unwrap();
    let topic = unique("deleted");
    kafka.create_topic(&topic, 1, &[]);
    let mut config = config(kafka, &folder);
    config.landed("deleted", &topic, &[]);
    produce(kafka, &topic, &[raw(b"1"), raw(b"2")]);
    once(&config);
    produce(kafka, &topic, &[raw(b"3"), raw(b"4"), raw(b"5")]);
    kafka.delete_records(&topic, 0, 4);
    let ended = Lander::run(&config, &["--once"]);
    assert_eq!(ended.code, Some(0), "{ended:?}");
    assert!(
        ended.stderr.contains("deleted up to 2 records before they were landed"),
        "{ended:?}"
    );
    assert_eq!(
        query(&folder, "SELECT value FROM deleted ORDER BY value").concat(),
        ["1", "2", "5"]
    );
}

fn another_cluster_is_read_from_its_beginning() {
    let folder = tempfile::tempdir().unwrap();
    let topic = unique("moved");
    let [first, second] = [Kafka::shared(), &Kafka::private_with_id("dGlkZWdhdGUtdGVzdHMwMg")];
    for (kafka, value) in [(first, b"1".as_slice()), (second, b"2")] {
        kafka.create_topic(&topic, 1, &[]);
        produce(
            kafka,
            &topic,
            &[
                raw(value),
                Raw {
                    identity: Some((WAL, "1")),
                    ..raw(b"same")
                },
            ],
        );
        let mut config = config(kafka, &folder);
        config.landed("moved", &topic, &[]);
        let ended = Lander::run(&config, &["--once"]);
        assert_eq!(ended.code, Some(0), "{ended:?}");
        assert_eq!(
            ended.stderr.contains("another Kafka cluster"),
            value == b"2",
            "{ended:?}"
        );
    }
    assert_eq!(
        query(&folder, "SELECT value FROM moved ORDER BY value").concat(),
        ["1", "2", "same"]
    );
}

fn a_dry_run_counts_and_writes_nothing() {
    let kafka = Kafka::shared();
    let folder = tempfile::tempdir().unwrap();
    let topic = unique("dry");
    kafka.create_topic(&topic, 3, &[]);
    let mut config = config(kafka, &folder);
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
    assert!(!file(&folder).exists());
}

fn a_database_that_is_busy_is_waited_for() {
    let kafka = Kafka::shared();
    let folder = tempfile::tempdir().unwrap();
    let topic = unique("busy");
    kafka.create_topic(&topic, 2, &[]);
    let mut config = config(kafka, &folder);
    config.landed("busy", &topic, &[]);
    let lander = Lander::start(&config);
    produce(kafka, &topic, &[raw(b"1")]);
    wait_until("the first is landed", seconds(30), || count(&folder, "busy") == 1);
    // Somebody else writes, for longer than the lander waits at the file.
    let other = Connection::open(file(&folder)).unwrap();
    other.execute_batch("BEGIN IMMEDIATE").unwrap();
    produce(kafka, &topic, &[raw(b"2"), raw(b"3")]);
    wait_until("readiness says that the database does not answer", seconds(30), || {
        let answer = lander.admin("/readyz").unwrap();
        answer.status == 503 && answer.json()["sink"]["up"] == false
    });
    wait_until("the lag is told", seconds(30), || {
        lander.metric("tidegate_land_lag_records") == 2.0
    });
    other.execute_batch("ROLLBACK").unwrap();
    wait_until("the rest is landed", seconds(30), || count(&folder, "busy") == 3);
    wait_until("it is ready again", seconds(10), || {
        lander.admin("/readyz").unwrap().status == 200
    });
    assert!(lander.metrics()[r#"tidegate_land_errors_total{reason="database"}"#] >= 1.0);
}

fn wrong_databases_end_with_a_clear_error() {
    let kafka = Kafka::shared();
    let refused = |folder: &tempfile::TempDir, words: &[&str]| {
        let mut config = config(kafka, folder);
        config.landed("t", &unique("wrong"), &[("fields", vec!["a"].into())]);
        let ended = Lander::run(&config, &[]);
        assert_eq!(ended.code, Some(2), "{ended:?}");
        for word in words {
            assert!(ended.stderr.contains(word), "nothing about {word:?} in {ended:?}");
        }
    };
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(file(&folder), "this is no database, whatever its name says".repeat(100)).unwrap();
    refused(&folder, &["no SQLite database", "land.path"]);

    let folder = tempfile::tempdir().unwrap();
    std::fs::create_dir(file(&folder)).unwrap();
    refused(&folder, &["land.path"]);

    let folder = tempfile::tempdir().unwrap();
    let connection = Connection::open(file(&folder)).unwrap();
    connection
        .execute_batch("CREATE TABLE t (id INTEGER PRIMARY KEY, a TEXT)")
        .unwrap();
    refused(&folder, &["table t", "no column wal", "rename"]);
    assert_eq!(query(&folder, "SELECT count(*) FROM pragma_table_info('t')"), [["2"]]);

    let folder = tempfile::tempdir().unwrap();
    let connection = Connection::open(file(&folder)).unwrap();
    connection
        .execute_batch(
            "CREATE TABLE t (wal TEXT NOT NULL, seq INTEGER NOT NULL, kafka_topic TEXT NOT NULL, kafka_partition INTEGER NOT NULL, \
             kafka_offset INTEGER NOT NULL, key, received_at TEXT, valid INTEGER NOT NULL, reason TEXT, value, a INTEGER, \
             PRIMARY KEY (wal, seq))",
        )
        .unwrap();
    refused(&folder, &["column a", "INTEGER", "text"]);
}

fn declared_fields_have_columns_of_their_types() {
    let kafka = Kafka::shared();
    let folder = tempfile::tempdir().unwrap();
    let topic = unique("typed");
    kafka.create_topic(&topic, 1, &[]);
    let mut first = config(kafka, &folder);
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
    let mut second = config(kafka, &folder);
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
    let rows = query(
        &folder,
        "SELECT value_field, n, at, valid, reason FROM typed ORDER BY kafka_offset",
    );
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
    assert_eq!(rows[2], ["y", "6", "2026-11-24T07:30:00.000000Z", "1", "NULL"]);
}
