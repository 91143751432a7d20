//! Rows that the database does not take: what triggers, checks and policies say.

use std::time::Instant;

use tidegate::land::sink::{Sink as _, Written};
use tidegate::land::table::Table;

use super::{batch, begin, place, produce_all, refused, sink, topic_of, trigger, values};
use crate::support::kafka::Kafka;
use crate::support::lander::Lander;
use crate::support::postgres::PASSWORD;
use crate::support::store::{Raw, Store, WAL, once, produce, raw};
use crate::support::{seconds, wait_until};

cases!["land_postgres":
    a_row_that_a_trigger_passes_over_is_kept_apart [Kafka, Postgres],
    what_is_checked_at_the_commit_costs_its_row_only [Kafka, Postgres],
    what_a_trigger_raises_costs_its_row_and_a_conflict_is_tried_again [Kafka, Postgres],
    what_a_policy_refuses_costs_its_row_only [Postgres],
    a_batch_of_which_everything_is_refused_takes_seconds [Postgres, Alone],
];

fn a_row_that_a_trigger_passes_over_is_kept_apart() {
    let kafka = Kafka::shared();
    let store = Store::postgres();
    let (config, topic) = topic_of("ignored", kafka, &store, &["11"]);
    let twin = |seq, value| Raw {
        identity: Some((WAL, seq)),
        ..raw(value)
    };
    produce(kafka, &topic, &[twin("1", b"twin"), twin("2", b"other")]);
    once(&config);
    trigger(
        &store,
        "ignored",
        "BEFORE",
        "IF NEW.value = '13' THEN RETURN NULL; END IF; IF NEW.value = '14' THEN NEW.value := 'fourteen'; END IF;",
    );
    produce_all(kafka, &topic, &["12", "13", "14"]);
    produce(kafka, &topic, &[twin("1", b"twin"), twin("2", b"OTHER")]);
    let told = once(&config);
    assert_eq!(values(&store, "ignored"), ["11", "twin", "other", "12", "fourteen"]);
    let rejected = refused(&store);
    assert_eq!(rejected.len(), 1, "{rejected:?}");
    assert_eq!(rejected[0][0], "13");
    assert!(rejected[0][1].contains("a trigger on the table"), "{rejected:?}");
    let clashes = store.query("SELECT convert_from(value, 'UTF8') FROM rejected WHERE kind = 'identity_clash'");
    assert_eq!(clashes, [["OTHER"]]);
    let numbers: Vec<&str> = told.lines().nth(1).unwrap().split_whitespace().collect();
    assert_eq!(numbers, ["ignored", "2", "0", "1", "2"]);
}

fn what_is_checked_at_the_commit_costs_its_row_only() {
    let kafka = Kafka::shared();
    let store = Store::postgres();
    let (config, topic) = topic_of("later", kafka, &store, &["1"]);
    once(&config);
    store.query(
        "CREATE TABLE known (value text PRIMARY KEY); INSERT INTO known SELECT generate_series(1, 300);
         ALTER TABLE later ADD FOREIGN KEY (value) REFERENCES known DEFERRABLE INITIALLY DEFERRED;
         CREATE FUNCTION late() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN IF NEW.value = '7' THEN RAISE 'no seven'; END IF;
         RETURN NULL; END $$;
         CREATE CONSTRAINT TRIGGER late AFTER INSERT ON later DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION late()",
    );
    let sent: Vec<String> = (2..=301).map(|n| n.to_string()).collect();
    let sent: Vec<&str> = sent.iter().map(String::as_str).collect();
    produce_all(kafka, &topic, &sent);
    once(&config);
    assert_eq!(store.count("later"), 299);
    let rejected = refused(&store);
    assert_eq!(rejected.len(), 2, "{rejected:?}");
    assert_eq!(rejected[0], ["7", "no seven"]);
    assert_eq!(rejected[1][0], "301");
    assert!(rejected[1][1].contains("foreign key"), "{rejected:?}");
}

fn what_a_trigger_raises_costs_its_row_and_a_conflict_is_tried_again() {
    let kafka = Kafka::shared();
    let store = Store::postgres();
    let (config, topic) = topic_of("raised", kafka, &store, &["1"]);
    once(&config);
    store.query("CREATE SEQUENCE tries");
    trigger(
        &store,
        "raised",
        "BEFORE",
        "IF NEW.value LIKE 'code %' THEN RAISE EXCEPTION 'no %', NEW.value USING ERRCODE = substr(NEW.value, 6); END IF;
         IF NEW.value = 'nowhere' THEN EXECUTE 'INSERT INTO ' || NEW.value || ' VALUES (1)'; END IF;
         IF NEW.value = 'conflict' THEN
             CASE nextval('tries')
                 WHEN 1 THEN RAISE EXCEPTION 'a conflict' USING ERRCODE = '40001';
                 WHEN 2 THEN RAISE EXCEPTION 'a deadlock' USING ERRCODE = '40P01';
                 ELSE NULL;
             END CASE;
         END IF;",
    );
    let sent = [
        "2",
        "code 42501",
        "code 55P03",
        "code 28000",
        "code P0001",
        "code AB123",
        "code XX000",
        "nowhere",
        "conflict",
        "3",
    ];
    produce_all(kafka, &topic, &sent);
    let ended = Lander::run(&config, &["--once"]);
    assert_eq!(ended.code, Some(0), "{ended:?}");
    assert_eq!(values(&store, "raised"), ["1", "2", "conflict", "3"]);
    let rejected: Vec<String> = refused(&store).into_iter().map(|mut row| row.remove(0)).collect();
    assert_eq!(rejected, sent[1..8]);
    for word in ["a conflict", "a deadlock"] {
        assert!(ended.stderr.contains(word), "{word}: {ended:?}");
    }
    // A right that a trigger lacks is no row's fault.
    let Store::Postgres(postgres, database) = &store else {
        panic!("it is one")
    };
    store.query(&format!(
        "CREATE USER raiser PASSWORD '{PASSWORD}'; CREATE TABLE audit (value text);
         GRANT SELECT, INSERT, UPDATE ON raised, rejected, tidegate_lander, tidegate_positions TO raiser;
         CREATE OR REPLACE FUNCTION watch() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN INSERT INTO audit VALUES (NEW.value);
         RETURN NEW; END $$"
    ));
    produce_all(kafka, &topic, &["4"]);
    let mut raisers = config.clone();
    raisers.set("land.url", postgres.url_of("raiser", database));
    let lander = Lander::start(&raisers);
    wait_until("readiness says what is missing", seconds(30), || {
        let ready = lander.admin("/readyz").unwrap();
        ready.status == 503 && ready.body.contains("table audit")
    });
    store.query("GRANT INSERT ON audit TO raiser");
    wait_until("it is landed", seconds(30), || store.count("raised") == 5);
    assert_eq!(store.query("SELECT value FROM audit"), [["4"]]);
}

fn what_a_policy_refuses_costs_its_row_only() {
    let store = Store::postgres();
    let table = Table::new("guarded", &[]);
    let (postgres, database, url) = place(&store);
    sink(&url, &table).unwrap();
    store.query(&format!(
        "CREATE USER guarded PASSWORD '{PASSWORD}';
         GRANT SELECT, INSERT, UPDATE ON guarded, rejected, tidegate_lander, tidegate_positions TO guarded;
         ALTER TABLE guarded ENABLE ROW LEVEL SECURITY;
         CREATE POLICY guard ON guarded USING (true) WITH CHECK (value <> 'no')"
    ));
    let mut sink = sink(&postgres.url_of("guarded", database), &table).unwrap();
    begin(&mut sink);
    sink.write(&batch(&["1", "no", "2"])).unwrap();
    assert_eq!(values(&store, "guarded"), ["1", "2"]);
    let rejected = refused(&store);
    assert_eq!(rejected.len(), 1, "{rejected:?}");
    assert_eq!(rejected[0][0], "no");
    assert!(rejected[0][1].contains("row-level security"), "{rejected:?}");
}

fn a_batch_of_which_everything_is_refused_takes_seconds() {
    let sent: Vec<String> = (0..10_000).map(|n| n.to_string()).collect();
    let sent: Vec<&str> = sent.iter().map(String::as_str).collect();
    let batch = batch(&sent);
    for (share, check, kept) in [
        ("one of a hundred", "seq % 100 > 0", 9900),
        ("one of three", "seq % 3 > 0", 6666),
        ("all", "seq < 0", 0),
    ] {
        let store = Store::postgres();
        let (_, _, url) = place(&store);
        let mut sink = sink(&url, &Table::new("many", &[])).unwrap();
        begin(&mut sink);
        store.query(&format!("ALTER TABLE many ADD CONSTRAINT picky CHECK ({check})"));
        let started = Instant::now();
        let Written::Done(counts) = sink.write(&batch).unwrap() else {
            panic!("nobody else writes")
        };
        let took = started.elapsed();
        println!("of 10,000 rows {share} is refused: {took:?}");
        assert_eq!(counts.refused, 10_000 - kept as u64, "{share}");
        assert_eq!(store.count("many"), kept, "{share}");
        let rejected = store.query("SELECT count(*) FROM rejected WHERE error LIKE '%picky%'");
        assert_eq!(rejected, [[(10_000 - kept).to_string()]], "{share}");
        assert!(took < seconds(30), "{share}: {took:?}");
    }
}
