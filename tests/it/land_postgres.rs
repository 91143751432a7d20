//! What only PostgreSQL has: its TLS, its users and rights, what somebody adds to the tables, and a server that falls
//! silent.

use std::fs;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::time::Instant;

use crate::support::certificates::Authority;
use crate::support::gateway::Config;
use crate::support::kafka::Kafka;
use crate::support::lander::Lander;
use crate::support::postgres::{PASSWORD, Postgres, give};
use crate::support::proxy::Proxy;
use crate::support::store::{Raw, Store, WAL, once, produce, raw};
use crate::support::{seconds, unique, wait_until};

cases!["land_postgres":
    a_row_that_a_trigger_passes_over_is_kept_apart [Kafka, Postgres],
    a_database_that_cannot_hold_every_text_is_refused [Kafka, Postgres],
    a_user_who_may_make_nothing_lands_into_what_is_there [Kafka, Postgres],
    what_somebody_adds_to_a_table_does_not_stop_it [Kafka, Postgres],
    what_is_checked_at_the_commit_costs_its_row_only [Kafka, Postgres],
    what_a_trigger_raises_costs_its_row_and_a_conflict_is_tried_again [Kafka, Postgres],
    tls_is_what_the_url_asks_for [Kafka, Postgres],
    a_server_that_falls_silent_is_told_and_waited_for [Kafka, Postgres],
    a_process_of_the_server_that_hangs_is_told_and_waited_for [Kafka, Postgres],
    a_batch_of_which_everything_is_refused_takes_seconds [Kafka, Postgres],
];

/// A topic with these values, and a lander for it.
fn topic_of(name: &str, kafka: &Kafka, store: &Store, values: &[&str]) -> (Config, String) {
    let topic = unique(name);
    kafka.create_topic(&topic, 1, &[]);
    let mut config = store.config(kafka);
    config.landed(name, &topic, &[]);
    produce_all(kafka, &topic, values);
    (config, topic)
}

fn produce_all(kafka: &Kafka, topic: &str, values: &[&str]) {
    let records: Vec<Raw<'_>> = values.iter().map(|value| raw(value.as_bytes())).collect();
    produce(kafka, topic, &records);
}

fn values(store: &Store, table: &str) -> Vec<String> {
    store
        .query(&format!("SELECT value FROM {table} ORDER BY kafka_offset"))
        .concat()
}

/// Value and error of what was refused.
fn refused(store: &Store) -> Vec<Vec<String>> {
    store.query("SELECT convert_from(value, 'UTF8'), error FROM rejected WHERE kind = 'refused' ORDER BY kafka_offset")
}

/// Ends with 2, and these words.
fn refuses(config: &Config, words: &[&str]) {
    let ended = Lander::run(config, &["--once"]);
    assert_eq!(ended.code, Some(2), "{ended:?}");
    for word in words {
        assert!(ended.stderr.contains(word), "nothing about {word:?} in {ended:?}");
    }
    assert!(!ended.stderr.contains(PASSWORD), "{ended:?}");
}

/// A trigger for each row of the table, with this body.
fn trigger(store: &Store, table: &str, when: &str, body: &str) {
    store.query(&format!(
        "CREATE OR REPLACE FUNCTION watch() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN {body} RETURN NEW; END $$;
         CREATE TRIGGER watch {when} INSERT ON {table} FOR EACH ROW EXECUTE FUNCTION watch()"
    ));
}

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

fn a_database_that_cannot_hold_every_text_is_refused() {
    let kafka = Kafka::shared();
    let postgres = Postgres::shared();
    for encoding in ["LATIN1", "SQL_ASCII"] {
        let name = format!("of_{}", encoding.to_lowercase());
        postgres.query(
            "postgres",
            &format!("CREATE DATABASE {name} ENCODING {encoding} LOCALE 'C' TEMPLATE template0"),
        );
        let store = Store::Postgres(Arc::clone(&postgres), name);
        let (config, _) = topic_of("encoded", kafka, &store, &[]);
        refuses(&config, &[encoding, "UTF8", "createdb -E UTF8 -T template0"]);
        assert_eq!(
            store.query("SELECT count(*) FROM pg_tables WHERE schemaname = 'public'"),
            [["0"]]
        );
    }
}

fn a_user_who_may_make_nothing_lands_into_what_is_there() {
    let kafka = Kafka::shared();
    let postgres = Postgres::shared();
    let store = Store::on(Arc::clone(&postgres));
    let Store::Postgres(_, database) = &store else {
        panic!("it is one")
    };
    let (mut config, topic) = topic_of("granted", kafka, &store, &["1"]);
    store.query(&format!(
        "CREATE USER writer PASSWORD '{PASSWORD}'; REVOKE CREATE ON SCHEMA public FROM PUBLIC;
         REVOKE TEMPORARY ON DATABASE \"{database}\" FROM PUBLIC"
    ));
    let url = postgres.url_of("writer", database);
    let mut writers = config.clone();
    writers.set("land.url", url.as_str());
    // Nothing is there, and the user may not make it.
    refuses(&writers, &["the table tidegate_lander is missing", "GRANT", "CREATE"]);
    once(&config);
    produce_all(kafka, &topic, &["2"]);
    // It is there, and the user may do nothing with it.
    store.query("GRANT SELECT ON tidegate_lander TO writer");
    refuses(
        &writers,
        &[
            "GRANT SELECT ON \\\"granted\\\"",
            "GRANT INSERT ON \\\"granted\\\"",
            "GRANT UPDATE ON \\\"tidegate_positions\\\"",
            "GRANT INSERT ON \\\"rejected\\\"",
            "GRANT TEMPORARY ON DATABASE",
        ],
    );
    store.query(&format!(
        "GRANT SELECT, INSERT, UPDATE ON granted, rejected, tidegate_lander, tidegate_positions TO writer;
         GRANT TEMPORARY ON DATABASE \"{database}\" TO writer"
    ));
    once(&writers);
    assert_eq!(values(&store, "granted"), ["1", "2"]);
    // A row that is refused, too.
    store.query("ALTER TABLE granted ADD CHECK (value <> '3')");
    produce_all(kafka, &topic, &["3", "4"]);
    once(&writers);
    assert_eq!(values(&store, "granted"), ["1", "2", "4"]);
    assert_eq!(refused(&store)[0][0], "3");
    // What is missing is named.
    store.query("DROP VIEW granted_valid");
    refuses(&writers, &["the view granted_valid is missing"]);
    once(&config);
    let more = [("fields", vec!["extra"].into())];
    writers = store.config(kafka);
    writers.landed("granted", &topic, &more).set("land.url", url.as_str());
    refuses(&writers, &["the column extra of table granted is missing"]);
    // The owner adds it, to the views as well.
    config = store.config(kafka);
    config.landed("granted", &topic, &more);
    once(&config);
    once(&writers);
    assert_eq!(store.query("SELECT count(extra) FROM granted_valid"), [["0"]]);
}

fn what_somebody_adds_to_a_table_does_not_stop_it() {
    let kafka = Kafka::shared();
    let store = Store::postgres();
    let (config, topic) = topic_of("added", kafka, &store, &["1"]);
    once(&config);
    store.query(
        "ALTER TABLE added ADD COLUMN note text, ADD COLUMN at timestamptz NOT NULL DEFAULT now(), ADD COLUMN number bigint \
         GENERATED ALWAYS AS IDENTITY, ADD COLUMN length integer GENERATED ALWAYS AS (length(value)) STORED",
    );
    produce_all(kafka, &topic, &["22"]);
    once(&config);
    assert_eq!(values(&store, "added"), ["1", "22"]);
    let row = store.query("SELECT note, at IS NOT NULL, length FROM added_valid WHERE value = '22'");
    assert_eq!(row, [["NULL", "t", "2"]]);
    // What nobody fills.
    store.query("ALTER TABLE added ADD COLUMN owner text NOT NULL DEFAULT 'x'; ALTER TABLE added ALTER COLUMN owner DROP DEFAULT");
    produce_all(kafka, &topic, &["3", "4"]);
    once(&config);
    let rejected = refused(&store);
    assert_eq!(rejected.len(), 2, "{rejected:?}");
    assert!(
        rejected[0][1].contains("owner") && rejected[0][1].contains("not-null"),
        "{rejected:?}"
    );
    store.query("ALTER TABLE added ALTER COLUMN owner SET DEFAULT 'y'");
    produce_all(kafka, &topic, &["5"]);
    once(&config);
    assert_eq!(values(&store, "added"), ["1", "22", "5"]);
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
        "nowhere",
        "conflict",
        "3",
    ];
    produce_all(kafka, &topic, &sent);
    let ended = Lander::run(&config, &["--once"]);
    assert_eq!(ended.code, Some(0), "{ended:?}");
    assert_eq!(values(&store, "raised"), ["1", "2", "conflict", "3"]);
    let rejected: Vec<String> = refused(&store).into_iter().map(|mut row| row.remove(0)).collect();
    assert_eq!(rejected, sent[1..7]);
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

fn tls_is_what_the_url_asks_for() {
    let kafka = Kafka::shared();
    let folder = tempfile::tempdir().unwrap();
    let (ours, theirs) = (Authority::new("ours"), Authority::new("theirs"));
    let file = |name: &str, text: &[u8]| {
        let path = folder.path().join(name);
        fs::write(&path, text).unwrap();
        path.to_str().unwrap().to_owned()
    };
    let (root, other_root) = (file("ours.crt", &ours.pem()), file("theirs.crt", &theirs.pem()));
    let (certificate, key) = ours.issue("carl");
    let carl = format!(
        "sslcert={}&sslkey={}",
        file("carl.crt", &certificate),
        file("carl.key", &key)
    );
    let (certificate, key) = theirs.issue("carl");
    let false_carl = format!(
        "sslcert={}&sslkey={}",
        file("false.crt", &certificate),
        file("false.key", &key)
    );
    let postgres = Arc::new(Postgres::private_with(|data| serve_tls(data, &ours)));
    let store = Store::on(Arc::clone(&postgres));
    let Store::Postgres(_, database) = &store else {
        panic!("it is one")
    };
    store.query(&format!(
        "CREATE USER ann SUPERUSER PASSWORD '{PASSWORD}'; CREATE USER carl SUPERUSER"
    ));
    let (mut config, topic) = topic_of("tls", kafka, &store, &[]);
    let mut landed = 0;
    let mut lands = |url: String| {
        produce_all(kafka, &topic, &["x"]);
        config.set("land.url", url);
        once(&config);
        landed += 1;
        assert_eq!(store.count("tls"), landed);
    };
    let of = |user: &str, query: &str| format!("{}?{query}", postgres.url_of(user, database));
    lands(of("ann", "sslmode=require"));
    lands(of("ann", "sslmode=prefer"));
    lands(of("ann", &format!("sslmode=verify-ca&sslrootcert={root}")));
    lands(of("ann", &format!("sslmode=verify-full&sslrootcert={root}")));
    let by_name = |query: &str| of("ann", query).replace("127.0.0.1", "localhost");
    // The name does not count before verify-full.
    lands(by_name(&format!("sslmode=verify-ca&sslrootcert={root}")));
    lands(of("carl", &format!("sslmode=verify-full&sslrootcert={root}&{carl}")));
    let mut wrong = |url: String, words: &[&str]| {
        config.set("land.url", url);
        refuses(&config, words);
    };
    wrong(
        of("ann", &format!("sslmode=verify-full&sslrootcert={other_root}")),
        &["certificate verify failed", "sslrootcert"],
    );
    wrong(
        of("ann", &format!("sslmode=require&sslrootcert={other_root}")),
        &["certificate verify failed", "sslrootcert"],
    );
    wrong(
        by_name(&format!("sslmode=verify-full&sslrootcert={root}")),
        &["certificate verify failed", "sslmode"],
    );
    wrong(of("ann", "sslmode=disable"), &["no encryption", "sslmode"]);
    wrong(of("carl", "sslmode=require"), &["valid client certificate"]);
    wrong(of("carl", &format!("sslmode=require&{false_carl}")), &["sslcert"]);
}

/// TLS with a certificate for 127.0.0.1; ann and carl get in with it only, carl with a certificate of his own.
fn serve_tls(data: &Path, authority: &Authority) {
    let (certificate, key) = authority.issue("127.0.0.1");
    for (name, text) in [
        ("server.crt", certificate),
        ("server.key", key),
        ("root.crt", authority.pem()),
    ] {
        fs::write(data.join(name), text).unwrap();
        give(&data.join(name));
    }
    let settings = fs::read_to_string(data.join("postgresql.conf")).unwrap();
    fs::write(
        data.join("postgresql.conf"),
        format!("{settings}\nssl = on\nssl_ca_file = 'root.crt'\n"),
    )
    .unwrap();
    fs::write(
        data.join("pg_hba.conf"),
        "hostssl all ann 127.0.0.1/32 scram-sha-256\nhostssl all carl 127.0.0.1/32 cert\nhost all tidegate 127.0.0.1/32 scram-sha-256\n",
    )
    .unwrap();
}

/// What a lander does about a database that does not answer.
fn is_told(lander: &Lander) {
    // It is a member, and knows its partition, all the time.
    let is_member = || {
        lander.admin("/v1/status").unwrap().json()["partitions"]
            .as_array()
            .unwrap()
            .len()
            == 1
    };
    wait_until("readiness says that it does not answer", seconds(45), || {
        assert!(is_member(), "it left its group");
        let ready = lander.admin("/readyz").unwrap();
        ready.status == 503 && ready.body.contains("does not answer")
    });
}

fn a_server_that_falls_silent_is_told_and_waited_for() {
    let kafka = Kafka::shared();
    let postgres = Postgres::shared();
    let store = Store::on(Arc::clone(&postgres));
    let Store::Postgres(_, database) = &store else {
        panic!("it is one")
    };
    let (mut config, topic) = topic_of("silent", kafka, &store, &["1"]);
    let proxy = Proxy::start(postgres.port());
    let url = postgres.url(database);
    config.set(
        "land.url",
        url.replace(&postgres.port().to_string(), &proxy.port().to_string()),
    );
    let lander = Lander::start(&config);
    wait_until("the first is landed", seconds(30), || store.count("silent") == 1);
    proxy.freeze(true);
    produce_all(kafka, &topic, &["2", "3"]);
    is_told(&lander);
    // Nor does it answer who comes new.
    let started = Instant::now();
    let ended = Lander::run(&config, &["--once"]);
    assert_eq!(ended.code, Some(75), "{ended:?}");
    assert!(ended.stderr.contains("does not answer"), "{ended:?}");
    assert!(started.elapsed() < seconds(45), "{:?}", started.elapsed());
    proxy.freeze(false);
    wait_until("the rest is landed", seconds(60), || {
        values(&store, "silent") == ["1", "2", "3"]
    });
    wait_until("it is ready again", seconds(30), || {
        lander.admin("/readyz").unwrap().status == 200
    });
}

fn a_process_of_the_server_that_hangs_is_told_and_waited_for() {
    let kafka = Kafka::shared();
    let store = Store::on(Arc::new(Postgres::private()));
    let Store::Postgres(_, database) = &store else {
        panic!("it is one")
    };
    let (config, topic) = topic_of("hangs", kafka, &store, &["1"]);
    let lander = Lander::start(&config);
    wait_until("the first is landed", seconds(30), || store.count("hangs") == 1);
    let pid = store.query(&format!(
        "SELECT pid FROM pg_stat_activity WHERE datname = '{database}' AND application_name = 'tidegate'"
    ));
    let signal = |name: &str| {
        let sent = Command::new("sh")
            .args(["-c", r#"kill "$1" "$2""#, "sh", name, &pid[0][0]])
            .status();
        assert!(sent.unwrap().success());
    };
    signal("-STOP");
    produce_all(kafka, &topic, &["2", "3"]);
    is_told(&lander);
    signal("-CONT");
    wait_until("the rest is landed", seconds(60), || {
        values(&store, "hangs") == ["1", "2", "3"]
    });
}

fn a_batch_of_which_everything_is_refused_takes_seconds() {
    let kafka = Kafka::shared();
    for (share, check, kept) in [
        ("nothing", "true", 10_000),
        ("one of a hundred", "seq % 100 > 0", 9900),
        ("one of three", "seq % 3 > 0", 6666),
        ("all", "seq < 0", 0),
    ] {
        let store = Store::postgres();
        let (mut config, topic) = topic_of("many", kafka, &store, &[]);
        config.set("land.batch_wait", "2 s");
        once(&config);
        store.query(&format!("ALTER TABLE many ADD CONSTRAINT picky CHECK ({check})"));
        let sent: Vec<String> = (0..10_000).map(|n| n.to_string()).collect();
        let sent: Vec<&str> = sent.iter().map(String::as_str).collect();
        produce_all(kafka, &topic, &sent);
        let started = Instant::now();
        once(&config);
        let took = started.elapsed();
        println!("of 10,000 rows {share} is refused: {took:?}");
        assert_eq!(store.count("many"), kept, "{share}");
        let rejected = store.query("SELECT count(*) FROM rejected WHERE error LIKE '%picky%'");
        assert_eq!(rejected, [[(10_000 - kept).to_string()]], "{share}");
        assert!(took < seconds(30), "{share}: {took:?}");
    }
}
