//! What goes wrong around a lander: topics and clusters that are not what they were, databases that are away,
//! refuse a row, or are the wrong ones.

use std::sync::Arc;

use rdkafka::ClientConfig;
use rdkafka::producer::{BaseProducer, BaseRecord, Producer as _};
use rusqlite::Connection;

use crate::support::kafka::Kafka;
use crate::support::lander::Lander;
use crate::support::postgres::Postgres;
use crate::support::store::{Raw, Store, WAL, once, produce, raw};
use crate::support::{poll, seconds, unique, wait_until};

cases!["land_faults":
    a_topic_made_anew_is_read_from_its_beginning [Kafka],
    what_kafka_deleted_first_is_told [Kafka],
    another_cluster_is_read_from_its_beginning [Kafka, OwnKafka],
    a_lander_with_nothing_to_read_is_ready_again_after_an_outage [OwnKafka],
    a_database_that_is_busy_is_waited_for [Kafka],
    a_postgres_that_is_away_is_waited_for [Kafka, Postgres],
    a_row_that_the_database_refuses_is_kept_apart [Kafka, Postgres],
    a_row_that_a_trigger_ignores_is_kept_apart [Kafka],
    a_row_whose_trigger_ends_the_transaction_is_kept_apart [Kafka],
    records_of_transactions_land_once_they_are_committed [Kafka],
    wrong_databases_end_with_a_clear_error [Kafka],
    wrong_postgres_databases_end_with_a_clear_error [Kafka, Postgres],
];

fn a_topic_made_anew_is_read_from_its_beginning() {
    let kafka = Kafka::shared();
    let store = Store::sqlite();
    let topic = unique("anew");
    kafka.create_topic(&topic, 1, &[]);
    let mut config = store.config(kafka);
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
    let values: Vec<String> = store.query("SELECT value FROM anew ORDER BY wal, seq").concat();
    assert_eq!(values, ["1", "2", "a", "b", "c", "d"]);
    let positions = store.query("SELECT epoch, next FROM tidegate_positions");
    assert_eq!(positions, [["2", "4"]]);

    // And while a lander runs.
    let lander = Lander::start(&config);
    produce(kafka, &topic, &[raw(b"e")]);
    wait_until("the lander reads", seconds(30), || store.count("anew") == 7);
    kafka.delete_topic(&topic);
    poll("the topic can be made anew", seconds(30), || {
        kafka.count(&topic).is_none().then_some(())
    });
    kafka.create_topic(&topic, 1, &[]);
    let many: Vec<Vec<u8>> = (0..20).map(|n| format!("new {n}").into_bytes()).collect();
    let many: Vec<Raw<'_>> = many.iter().map(|value| raw(value)).collect();
    produce(kafka, &topic, &many);
    wait_until("all of the new topic is landed", seconds(60), || {
        store.count("anew") == 27
    });
    assert!(lander.metrics()[r#"tidegate_land_errors_total{reason="topic_anew"}"#] >= 1.0);
}

fn what_kafka_deleted_first_is_told() {
    let kafka = Kafka::shared();
    let store = Store::sqlite();
    let topic = unique("deleted");
    kafka.create_topic(&topic, 1, &[]);
    let mut config = store.config(kafka);
    config.landed("deleted", &topic, &[]);
    produce(kafka, &topic, &[raw(b"1"), raw(b"2")]);
    once(&config);
    produce(kafka, &topic, &[raw(b"3"), raw(b"4"), raw(b"5")]);
    kafka.delete_records(&topic, 0, 4);
    let ended = Lander::run(&config, &["--once"]);
    assert_eq!(ended.code, Some(0), "{ended:?}");
    assert!(ended.stderr.contains("deleted up to 2 records"), "{ended:?}");
    assert_eq!(
        store.query("SELECT value FROM deleted ORDER BY value").concat(),
        ["1", "2", "5"]
    );
}

fn another_cluster_is_read_from_its_beginning() {
    let store = Store::sqlite();
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
        let mut config = store.config(kafka);
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
        store.query("SELECT value FROM moved ORDER BY value").concat(),
        ["1", "2", "same"]
    );
}

fn a_lander_with_nothing_to_read_is_ready_again_after_an_outage() {
    let kafka = Kafka::private();
    let store = Store::sqlite();
    let mut config = store.config(&kafka);
    // Neither topic is there, as before a site's first record, or for one of more landers than there are partitions.
    config.landed("one", "not-yet", &[]).landed("other", "nor-this", &[]);
    let lander = Lander::start(&config);
    let is_ready = || lander.admin("/readyz").unwrap().status == 200;
    wait_until("it is ready", seconds(30), is_ready);
    kafka.kill();
    wait_until("it says that Kafka is away", seconds(30), || !is_ready());
    kafka.start();
    wait_until("it is ready again", seconds(60), is_ready);
    assert_eq!(lander.metric("tidegate_land_broker_up"), 1.0);
}

fn a_database_that_is_busy_is_waited_for() {
    let kafka = Kafka::shared();
    let store = Store::sqlite();
    let topic = unique("busy");
    kafka.create_topic(&topic, 2, &[]);
    let mut config = store.config(kafka);
    config
        .landed("busy", &topic, &[])
        .set("land.batch_records_max", 100)
        .set("land.batch_wait", "10 ms");
    let lander = Lander::start(&config);
    produce(kafka, &topic, &[raw(b"1")]);
    wait_until("the first is landed", seconds(30), || store.count("busy") == 1);
    // Somebody else writes, for longer than the lander waits at the file.
    let other = Connection::open(store.file()).unwrap();
    other.execute_batch("BEGIN IMMEDIATE").unwrap();
    // More than a few batches: reading stands still, and goes on where it stood.
    let values: Vec<String> = (2..=5000).map(|n| n.to_string()).collect();
    let records: Vec<Raw<'_>> = values.iter().map(|value| raw(value.as_bytes())).collect();
    produce(kafka, &topic, &records);
    wait_until("readiness says that the database does not answer", seconds(30), || {
        let answer = lander.admin("/readyz").unwrap();
        answer.status == 503 && answer.json()["sink"]["up"] == false
    });
    wait_until("the lag is told", seconds(30), || {
        lander.metric("tidegate_land_lag_records") == 4999.0
    });
    other.execute_batch("ROLLBACK").unwrap();
    wait_until("the rest is landed", seconds(30), || store.count("busy") == 5000);
    let distinct = store.query("SELECT count(DISTINCT value), max(kafka_offset) FROM busy");
    assert_eq!(distinct, [["5000", "4999"]]);
    wait_until("it is ready again", seconds(10), || {
        lander.admin("/readyz").unwrap().status == 200
    });
    assert!(lander.metrics()[r#"tidegate_land_errors_total{reason="database"}"#] >= 1.0);
}

fn a_postgres_that_is_away_is_waited_for() {
    let kafka = Kafka::shared();
    let postgres = Arc::new(Postgres::private());
    let store = Store::on(Arc::clone(&postgres));
    let topic = unique("away");
    kafka.create_topic(&topic, 2, &[]);
    let mut config = store.config(kafka);
    config.landed("away", &topic, &[]);
    let lander = Lander::start(&config);
    produce(kafka, &topic, &[raw(b"1")]);
    wait_until("the first is landed", seconds(30), || store.count("away") == 1);
    postgres.stop();
    produce(
        kafka,
        &topic,
        &[
            raw(b"2"),
            Raw {
                partition: 1,
                ..raw(b"3")
            },
        ],
    );
    wait_until("readiness says that the database does not answer", seconds(30), || {
        let answer = lander.admin("/readyz").unwrap();
        answer.status == 503 && answer.json()["sink"]["up"] == false
    });
    wait_until("the lag is told", seconds(30), || {
        lander.metric("tidegate_land_lag_records") == 2.0
    });
    // --once does not wait for ever, nor does a lander that starts meanwhile end.
    let ended = Lander::run(&config, &["--once"]);
    assert_eq!(ended.code, Some(75), "{ended:?}");
    let second = Lander::start(&config);
    assert_eq!(second.admin("/readyz").unwrap().status, 503);
    postgres.start();
    wait_until("the rest is landed", seconds(60), || store.count("away") == 3);
    for lander in [&lander, &second] {
        wait_until("it is ready again", seconds(30), || {
            lander.admin("/readyz").unwrap().status == 200
        });
    }
}

fn a_row_that_the_database_refuses_is_kept_apart() {
    let kafka = Kafka::shared();
    let store = Store::postgres();
    let topic = unique("refused");
    kafka.create_topic(&topic, 1, &[]);
    let mut config = store.config(kafka);
    config.landed("refused", &topic, &[]);
    once(&config);
    store.query("ALTER TABLE refused ADD CONSTRAINT no_thirteen CHECK (value <> '13')");
    let values: Vec<String> = (0..40).map(|n| n.to_string()).collect();
    let records: Vec<Raw<'_>> = values.iter().map(|value| raw(value.as_bytes())).collect();
    produce(kafka, &topic, &records);
    once(&config);
    assert_eq!(store.count("refused"), 39);
    let rejected = store.query("SELECT kind, error, convert_from(value, 'UTF8') FROM rejected");
    assert_eq!(rejected.len(), 1);
    assert_eq!((rejected[0][0].as_str(), rejected[0][2].as_str()), ("refused", "13"));
    assert!(rejected[0][1].contains("no_thirteen"), "{rejected:?}");
}

fn a_row_that_a_trigger_ignores_is_kept_apart() {
    let kafka = Kafka::shared();
    let store = Store::sqlite();
    let topic = unique("ignored");
    kafka.create_topic(&topic, 1, &[]);
    let mut config = store.config(kafka);
    config.landed("ignored", &topic, &[]);
    once(&config);
    let connection = Connection::open(store.file()).unwrap();
    connection
        .execute_batch(
            "CREATE TRIGGER a BEFORE INSERT ON ignored WHEN NEW.value = '13' BEGIN SELECT RAISE(IGNORE); END;
             CREATE TRIGGER b BEFORE INSERT ON ignored WHEN NEW.value = '14' BEGIN SELECT RAISE(ABORT, 'no fourteen'); END;
             CREATE TRIGGER c BEFORE INSERT ON ignored WHEN NEW.value = '16' BEGIN SELECT abs(-9223372036854775807 - 1); END;",
        )
        .unwrap();
    produce(
        kafka,
        &topic,
        &[raw(b"12"), raw(b"13"), raw(b"14"), raw(b"15"), raw(b"16")],
    );
    once(&config);
    assert_eq!(
        store.query("SELECT value FROM ignored ORDER BY value").concat(),
        ["12", "15"]
    );
    let rejected = store.query("SELECT value, kind, error FROM rejected ORDER BY value");
    assert_eq!(rejected[0][..2], ["13", "refused"]);
    assert_eq!(rejected[1], ["14", "refused", "no fourteen"]);
    assert_eq!(rejected[2], ["16", "refused", "integer overflow"]);
}

fn a_row_whose_trigger_ends_the_transaction_is_kept_apart() {
    let kafka = Kafka::shared();
    let store = Store::sqlite();
    let topic = unique("ended");
    kafka.create_topic(&topic, 1, &[]);
    let mut config = store.config(kafka);
    config.landed("ended", &topic, &[]);
    once(&config);
    let connection = Connection::open(store.file()).unwrap();
    connection
        .execute_batch(
            "CREATE TRIGGER a BEFORE INSERT ON ended WHEN NEW.value LIKE '%3' BEGIN SELECT RAISE(ROLLBACK, 'no three'); END;",
        )
        .unwrap();
    let values: Vec<String> = (10..30).map(|n| n.to_string()).collect();
    let records: Vec<Raw<'_>> = values.iter().map(|value| raw(value.as_bytes())).collect();
    produce(kafka, &topic, &records);
    once(&config);
    assert_eq!(store.count("ended"), 18);
    assert_eq!(
        store.query("SELECT value, kind, error FROM rejected ORDER BY value"),
        [["13", "refused", "no three"], ["23", "refused", "no three"]]
    );
}

fn records_of_transactions_land_once_they_are_committed() {
    let kafka = Kafka::shared();
    let store = Store::sqlite();
    let topic = unique("transactions");
    kafka.create_topic(&topic, 1, &[]);
    let mut config = store.config(kafka);
    config.landed("transactions", &topic, &[]);
    let lander = Lander::start(&config);
    let producer: BaseProducer = ClientConfig::new()
        .set("bootstrap.servers", kafka.bootstrap())
        .set("transactional.id", &topic)
        .create()
        .unwrap();
    producer.init_transactions(seconds(30)).unwrap();
    let send = |value: &str| {
        producer
            .send(BaseRecord::<[u8], str>::to(&topic).payload(value))
            .map_err(|(error, _)| error)
            .unwrap();
        producer.flush(seconds(30)).unwrap();
    };
    for (value, kept) in [("1", true), ("2", false), ("3", true)] {
        producer.begin_transaction().unwrap();
        send(value);
        if kept {
            producer.commit_transaction(seconds(30)).unwrap();
        } else {
            producer.abort_transaction(seconds(30)).unwrap();
        }
    }
    wait_until("what was committed is landed", seconds(30), || {
        store.count("transactions") == 2
    });
    // The marker behind the last record is nothing to wait for.
    wait_until("nothing is left to land", seconds(30), || {
        let status = lander.admin("/v1/status").unwrap().json();
        status["lag_records"] == 0 && status["partitions"][0]["position"] == 5
    });
    drop(lander);
    once(&config);
    assert_eq!(
        store.query("SELECT value FROM transactions ORDER BY value").concat(),
        ["1", "3"]
    );
}

fn wrong_databases_end_with_a_clear_error() {
    let kafka = Kafka::shared();
    let refused = |store: &Store, words: &[&str]| {
        let mut config = store.config(kafka);
        config.landed("t", &unique("wrong"), &[("fields", vec!["a"].into())]);
        let ended = Lander::run(&config, &[]);
        assert_eq!(ended.code, Some(2), "{ended:?}");
        for word in words {
            assert!(ended.stderr.contains(word), "nothing about {word:?} in {ended:?}");
        }
    };
    let store = Store::sqlite();
    std::fs::write(store.file(), "this is no database, whatever its name says".repeat(100)).unwrap();
    refused(&store, &["no SQLite database", "land.path"]);

    let store = Store::sqlite();
    std::fs::create_dir(store.file()).unwrap();
    refused(&store, &["land.path"]);

    let store = Store::sqlite();
    let connection = Connection::open(store.file()).unwrap();
    connection
        .execute_batch("CREATE TABLE t (id INTEGER PRIMARY KEY, a TEXT)")
        .unwrap();
    refused(&store, &["table t", "no column wal", "rename"]);
    assert_eq!(store.query("SELECT count(*) FROM pragma_table_info('t')"), [["2"]]);

    let store = Store::sqlite();
    let connection = Connection::open(store.file()).unwrap();
    connection
        .execute_batch(
            "CREATE TABLE t (wal TEXT NOT NULL, seq INTEGER NOT NULL, kafka_topic TEXT NOT NULL, kafka_partition INTEGER NOT NULL, \
             kafka_offset INTEGER NOT NULL, key, received_at TEXT, valid INTEGER NOT NULL, reason TEXT, value, a INTEGER, \
             PRIMARY KEY (wal, seq))",
        )
        .unwrap();
    refused(&store, &["column a", "INTEGER", "text"]);
}

fn wrong_postgres_databases_end_with_a_clear_error() {
    let kafka = Kafka::shared();
    let store = Store::postgres();
    let Store::Postgres(postgres, database) = &store else {
        panic!("it is one")
    };
    let refused = |url: &str, words: &[&str]| {
        let mut config = store.config(kafka);
        config
            .landed("t", &unique("wrong"), &[("fields", vec!["a"].into())])
            .set("land.url", url);
        let ended = Lander::run(&config, &[]);
        assert_eq!(ended.code, Some(2), "{ended:?}");
        for word in words {
            assert!(ended.stderr.contains(word), "nothing about {word:?} in {ended:?}");
        }
        assert!(!ended.stderr.contains("hunter2"), "{ended:?}");
    };
    let url = postgres.url(database);
    refused("", &["land.url is empty", "postgres://"]);
    refused("mysql://x", &["land.url", "postgres://"]);
    refused(
        &url.replace("hunter2", "wrong"),
        &["password authentication failed", "land.url"],
    );
    refused(&postgres.url("nowhere"), &["nowhere", "createdb"]);
    refused(&format!("{url}?sslmode=require"), &["TLS", "sslmode"]);
    store.query("CREATE TABLE t (id bigint PRIMARY KEY, a text)");
    refused(&url, &["table t", "no column wal", "rename"]);
    store.query("DROP TABLE t; CREATE VIEW t AS SELECT 1 AS one");
    refused(&url, &["t is there and is no table"]);
}
