//! The tables and what is around them: encodings, rights, columns of somebody's.

use std::sync::Arc;

use tidegate::land::table::{Kind, Table};

use super::{place, produce_all, refused, sink, sink_refuses, topic_of, values};
use crate::support::kafka::Kafka;
use crate::support::postgres::{PASSWORD, Postgres};
use crate::support::store::{Store, once};

cases!["land_postgres":
    a_database_that_cannot_hold_every_text_is_refused [Postgres],
    a_user_who_may_make_nothing_lands_into_what_is_there [Kafka, Postgres],
    what_somebody_adds_to_a_table_does_not_stop_it [Kafka, Postgres],
    a_table_of_somebody_elses_under_a_name_of_ours_is_refused [Postgres],
    a_key_that_is_no_identity_is_refused [Postgres],
];

fn a_database_that_cannot_hold_every_text_is_refused() {
    let postgres = Postgres::shared();
    for encoding in ["LATIN1", "SQL_ASCII"] {
        let name = format!("of_{}", encoding.to_lowercase());
        postgres.query(
            "postgres",
            &format!("CREATE DATABASE {name} ENCODING {encoding} LOCALE 'C' TEMPLATE template0"),
        );
        let store = Store::Postgres(Arc::clone(&postgres), name);
        sink_refuses(
            &place(&store).2,
            &Table::new("encoded", &[]),
            &[encoding, "UTF8", "createdb -E UTF8 -T template0"],
        );
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
    let table = Table::new("granted", &[]);
    let mut writers = config.clone();
    writers.set("land.url", url.as_str());
    // Nothing is there, and the user may not make it.
    sink_refuses(
        &url,
        &table,
        &["the table tidegate_lander is missing", "GRANT", "CREATE"],
    );
    once(&config);
    produce_all(kafka, &topic, &["2"]);
    // It is there, and the user may do nothing with it.
    store.query("GRANT SELECT ON tidegate_lander TO writer");
    sink_refuses(
        &url,
        &table,
        &[
            "GRANT SELECT ON \"granted\"",
            "GRANT INSERT ON \"granted\"",
            "GRANT UPDATE ON \"tidegate_positions\"",
            "GRANT INSERT ON \"rejected\"",
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
    sink_refuses(&url, &table, &["the view granted_valid is missing"]);
    once(&config);
    let more = [("fields", vec!["extra"].into())];
    let wider = Table::new("granted", &[("extra".to_owned(), Kind::Text)]);
    writers = store.config(kafka);
    writers.landed("granted", &topic, &more).set("land.url", url.as_str());
    sink_refuses(&url, &wider, &["the column extra of table granted is missing"]);
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

fn a_table_of_somebody_elses_under_a_name_of_ours_is_refused() {
    let table = Table::new("ours", &[]);
    for (theirs, words) in [
        (
            "CREATE TABLE rejected (id integer)",
            ["the table rejected exists and has no column at", "rename that table"],
        ),
        (
            "CREATE VIEW rejected AS SELECT 1 AS id",
            ["rejected is there and is no table", "rename it"],
        ),
        (
            "CREATE TABLE tidegate_positions (source text, kafka_cluster text, kafka_topic text, kafka_partition bigint)",
            [
                "its column kafka_partition is bigint instead of integer",
                "tidegate_positions",
            ],
        ),
        (
            "CREATE TABLE tidegate_lander (key text)",
            [
                "the table tidegate_lander exists and has no column value",
                "rename that table",
            ],
        ),
    ] {
        let store = Store::postgres();
        store.query(theirs);
        let (_, _, url) = place(&store);
        sink_refuses(&url, &table, &words);
        // Nothing was made beside it.
        let made =
            store.query("SELECT count(*) FROM pg_class WHERE relnamespace = 'public'::regnamespace AND relkind <> 'i'");
        assert_eq!(made, [["1"]], "{theirs}");
    }
}

fn a_key_that_is_no_identity_is_refused() {
    let table = Table::new("keyed", &[]);
    let store = Store::postgres();
    let (_, _, url) = place(&store);
    sink(&url, &table).unwrap();
    let keys = |sql: &str| store.query(&format!("ALTER TABLE keyed {sql}"));
    // One that is checked at the commit, one of the wrong columns, one of more columns.
    keys("DROP CONSTRAINT keyed_pkey, ADD CONSTRAINT k PRIMARY KEY (wal, seq) DEFERRABLE");
    sink_refuses(&url, &table, &["has no primary key (wal, seq)"]);
    keys("DROP CONSTRAINT k, ADD CONSTRAINT k UNIQUE (wal) INCLUDE (seq)");
    sink_refuses(&url, &table, &["has no primary key (wal, seq)"]);
    keys("DROP CONSTRAINT k, ADD CONSTRAINT k UNIQUE (wal, seq, kafka_topic)");
    sink_refuses(&url, &table, &["has no primary key (wal, seq)"]);
    keys("DROP CONSTRAINT k, ADD CONSTRAINT k UNIQUE (seq, wal) INCLUDE (kafka_topic)");
    sink(&url, &table).unwrap();
}
