//! `delivery = "exactly_once"`: a consumer that reads what is committed sees each record once, in the order of its key,
//! whatever is killed, frozen, held, refused, copied or turned back.

pub mod ends;
pub mod mark;

use std::fs;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use crate::support::evidence::Evidence;
use crate::support::gateway::{Config, Gateway};
use crate::support::kafka::Kafka;
use crate::support::ledger::{Ledger, Outcome, Tally};
use crate::support::load::{Load, outcome, post, value};
use crate::support::{Random, seconds, soak, unique, wait_until};

cases!["exactly_once":
    sigkills_neither_lose_nor_repeat [Kafka],
    kafkas_watermark_counts_where_the_logs_own_is_behind [Kafka],
    held_records_come_once_whatever_is_killed [Kafka],
    a_refused_record_is_a_dead_letter_and_nothing_else_is_repeated [Kafka],
    a_broker_killed_and_frozen_under_load_repeats_nothing [OwnKafka],
    a_gateway_on_a_copy_of_the_folder_takes_over_and_the_first_one_stops [Kafka],
    an_older_copy_of_the_folder_sends_nothing [Kafka],
    a_rewind_sends_again_what_it_says_also_after_a_kill [Kafka],
    it_can_be_turned_on_and_off [Kafka],
];

fn config(kafka: &Kafka) -> Config {
    let mut config = Config::with(kafka);
    config
        .set("forward.delivery", "exactly_once")
        .set("wal.generation_bytes", "1 MiB");
    config
}

/// Each record once.
#[track_caller]
fn once(kafka: &Kafka, ledger: &Ledger, topics: &[&str]) -> Tally {
    let read: Vec<_> = topics
        .iter()
        .map(|topic| (*topic, kafka.read_topic(topic, true)))
        .collect();
    let tally = ledger.check(&read).unwrap();
    assert_eq!(tally.repeats, 0, "{tally:?}");
    tally
}

fn sigkills_neither_lose_nor_repeat() {
    let kafka = Kafka::shared();
    let topic = unique("once");
    kafka.create_topic(&topic, 3, &[]);
    let mut random = Random::new();
    let ledger = Arc::new(Ledger::default());
    let mut gateway = Gateway::start(&config(kafka));
    let cycles = if soak() { 200 } else { 20 };
    for _ in 0..cycles {
        let load = Load::start(&gateway, &ledger, &topic, 12);
        thread::sleep(Duration::from_millis(random.within(20, 700)));
        gateway.sigkill();
        load.join();
        gateway.restart();
    }
    gateway.wait_drained(seconds(120));
    assert!(gateway.metric("tidegate_forward_transactions_total") > 0.0);
    let tally = once(kafka, &ledger, &[&topic]);
    assert!(tally.ok > cycles, "{tally:?}: the cycles were under load");
    // It was put to the test: transactions were cut off.
    let all = kafka.read_topic(&topic, false).len();
    assert!(
        all > tally.delivered,
        "no transaction was aborted: {all} records, {tally:?}"
    );
    Evidence::of(&tally, cycles as u64).print("exactly_once: SIGKILL under load, while forwarding");
}

/// A kill between Kafka's commit and the log's ack. No look at the topic could tell: its records are gone.
fn kafkas_watermark_counts_where_the_logs_own_is_behind() {
    let kafka = Kafka::shared();
    let topic = unique("once-behind");
    kafka.create_topic(&topic, 1, &[]);
    let ledger = Ledger::default();
    let mut gateway = Gateway::start(&config(kafka));
    posts(&gateway, &ledger, &topic, 10);
    gateway.wait_drained(seconds(30));
    let witness = gateway.wal().join("witness");
    let before = fs::read(&witness).unwrap();
    posts(&gateway, &ledger, &topic, 20);
    gateway.wait_drained(seconds(30));
    gateway.sigkill();
    fs::write(&witness, before).unwrap();
    once(kafka, &ledger, &[&topic]);
    let end = kafka.read_topic(&topic, true).last().unwrap().offset + 1;
    kafka.delete_records(&topic, 0, end);
    gateway.restart();
    posts(&gateway, &ledger, &topic, 1);
    gateway.wait_drained(seconds(30));
    let seqs: Vec<u64> = kafka
        .read_topic(&topic, true)
        .iter()
        .map(|message| message.seq())
        .collect();
    assert_eq!(seqs, [31], "only what Kafka never had is sent");
}

fn held_records_come_once_whatever_is_killed() {
    let kafka = Kafka::shared();
    let (held, there) = (unique("once-held"), unique("once-there"));
    kafka.create_topic(&there, 1, &[]);
    let mut random = Random::new();
    let ledger = Arc::new(Ledger::default());
    let mut gateway = Gateway::start(&config(kafka));
    let cycles = if soak() { 60 } else { 8 };
    for cycle in 0..cycles {
        let loads = [&held, &there].map(|topic| Load::start(&gateway, &ledger, topic, 4));
        thread::sleep(Duration::from_millis(random.within(100, 900)));
        if cycle == cycles / 2 {
            wait_until("records are held", seconds(60), || {
                gateway.metric("tidegate_held_records") > 0.0
            });
            // From here on it is released, and the passes over the lane are killed.
            kafka.create_topic(&held, 2, &[]);
        }
        gateway.sigkill();
        loads.into_iter().for_each(Load::join);
        gateway.restart();
    }
    gateway.wait_drained(seconds(120));
    wait_until("nothing is held", seconds(120), || {
        gateway.metric("tidegate_held_records") == 0.0
    });
    let tally = once(kafka, &ledger, &[&held, &there]);
    Evidence::of(&tally, cycles).print("exactly_once: SIGKILL while records are held and released");
}

fn a_refused_record_is_a_dead_letter_and_nothing_else_is_repeated() {
    let kafka = Kafka::shared();
    let (small, other) = (unique("once-small"), unique("once-other"));
    kafka.create_topic(&small, 1, &[("max.message.bytes", "20000")]);
    kafka.create_topic(&other, 1, &[]);
    let mut gateway = Gateway::start(&config(kafka));
    let ledger = Arc::new(Ledger::default());
    let loads = [&small, &other].map(|topic| Load::start(&gateway, &ledger, topic, 4));
    wait_until("the load runs", seconds(30), || ledger.ok() > 200);
    let mut random = Random::new();
    for n in 1..=3 {
        // Among its like, and alone between records of the other topic, which fail with it and are innocent.
        let (records, poison) = if n == 1 { (100, 50) } else { (1, 0) };
        let mut batch: Vec<Vec<u8>> = (0..records).map(|_| value()).collect();
        batch[poison] = format!(r#"{{"poison":"{}"}}"#, random.text(60_000)).into_bytes();
        let places: Vec<usize> = (batch.iter())
            .map(|value| ledger.intend(&small, Some("poisoned"), value))
            .collect();
        let path = format!("/v1/topics/{small}?key=poisoned");
        let answer = gateway
            .client()
            .post(&path, "application/x-ndjson", &batch.join(&b'\n'))
            .unwrap();
        assert_eq!(answer.status, 202, "{answer:?}");
        for (index, place) in places.into_iter().enumerate() {
            // Kafka must not have it: to the checker that is a refusal.
            let refused = Outcome::Refused(0);
            ledger.settle(
                place,
                if index == poison {
                    refused
                } else {
                    outcome(&answer, index as u64)
                },
            );
        }
        wait_until("the poison is a dead letter", seconds(60), || {
            gateway.metric("tidegate_dead_letters") == f64::from(n)
        });
    }
    gateway.sigkill();
    loads.into_iter().for_each(Load::join);
    gateway.restart();
    gateway.wait_drained(seconds(60));
    let tally = once(kafka, &ledger, &[&small, &other]);
    assert_eq!(tally.refused, 3, "{tally:?}");
    Evidence::of(&tally, 3).print("exactly_once: a record that Kafka refuses, among others, then SIGKILL");
}

fn a_broker_killed_and_frozen_under_load_repeats_nothing() {
    let kafka = Kafka::private();
    kafka.create_topic("t", 3, &[]);
    let gateway = Gateway::start(&config(&kafka));
    let ledger = Arc::new(Ledger::default());
    let load = Load::start(&gateway, &ledger, "t", 4);
    let cycles = if soak() { 20 } else { 1 };
    for _ in 0..cycles {
        for end in [Kafka::kill, Kafka::stop] {
            let so_far = gateway.metric("tidegate_forward_records_total");
            wait_until("records are delivered", seconds(90), || {
                gateway.metric("tidegate_forward_records_total") > so_far + 500.0
            });
            end(&kafka);
            let answered = ledger.ok();
            wait_until("clients are answered without Kafka", seconds(30), || {
                ledger.ok() > answered + 500
            });
            kafka.start();
        }
    }
    load.stop();
    gateway.wait_drained(seconds(120));
    let tally = once(&kafka, &ledger, &["t"]);
    assert_eq!((tally.unknown, tally.refused), (0, 0), "{tally:?}");
    Evidence::of(&tally, 2 * cycles).print("exactly_once: broker killed, then stopped, under load");
}

fn copy(from: &Path, to: &Path) {
    let copied = Command::new("cp").arg("-a").arg(from).arg(to).status();
    assert!(copied.unwrap().success());
}

fn posts(gateway: &Gateway, ledger: &Ledger, topic: &str, count: usize) {
    let client = gateway.client();
    for _ in 0..count {
        assert!(post(&client, ledger, topic, Some("k")));
    }
}

fn a_gateway_on_a_copy_of_the_folder_takes_over_and_the_first_one_stops() {
    let kafka = Kafka::shared();
    let topic = unique("once-copied");
    kafka.create_topic(&topic, 1, &[]);
    let ledger = Ledger::default();
    let mut first = Gateway::start(&config(kafka));
    posts(&first, &ledger, &topic, 20);
    first.wait_drained(seconds(30));
    // As a disk image that is taken of a running machine and started elsewhere.
    let folder = tempfile::tempdir().unwrap();
    copy(&first.wal(), &folder.path().join("wal"));
    let second = Gateway::start_in(Arc::new(folder), &config(kafka));
    posts(&second, &ledger, &topic, 20);
    second.wait_drained(seconds(30));
    // The first one finds out with its next record, which is answered OK and stays in its folder.
    let answer = first
        .client()
        .post(
            &format!("/v1/topics/{topic}"),
            "application/json",
            b"{\"of\":\"the first\"}",
        )
        .unwrap();
    assert_eq!(answer.status, 202);
    assert_eq!(first.wait_for_exit(seconds(60)).code(), Some(75), "{}", first.log());
    let log = first.log();
    assert!(
        log.contains("one of the two is a copy") && log.contains("runbook/gateway-cloned.md"),
        "{log}"
    );
    // Started again it does not take over in its turn: it would pass over records of its own.
    first.try_restart();
    assert_eq!(first.wait_for_exit(seconds(60)).code(), Some(75));
    posts(&second, &ledger, &topic, 20);
    second.wait_drained(seconds(30));
    let tally = once(kafka, &ledger, &[&topic]);
    assert_eq!(tally.delivered, 60, "{tally:?}");
    let (code, text, _) = first.run(&[
        "wal",
        "list",
        "--wal",
        first.wal().to_str().unwrap(),
        "--text",
        "the first",
    ]);
    assert!(code == 0 && text.contains("the first"), "it is still there: {text}");
    Evidence::of(&tally, 1).print("exactly_once: a second gateway on a copy of the folder");
}

fn an_older_copy_of_the_folder_sends_nothing() {
    let kafka = Kafka::shared();
    let topic = unique("once-older");
    kafka.create_topic(&topic, 1, &[]);
    let ledger = Ledger::default();
    let mut gateway = Gateway::start(&config(kafka));
    posts(&gateway, &ledger, &topic, 5);
    gateway.wait_drained(seconds(30));
    let kept = tempfile::tempdir().unwrap();
    copy(&gateway.wal(), &kept.path().join("wal"));
    posts(&gateway, &ledger, &topic, 20);
    gateway.wait_drained(seconds(30));
    assert!(gateway.sigterm(seconds(30)).success());
    // A backup of the machine is put back.
    fs::remove_dir_all(gateway.wal()).unwrap();
    copy(&kept.path().join("wal"), &gateway.wal());
    gateway.try_restart();
    assert_eq!(gateway.wait_for_exit(seconds(60)).code(), Some(75), "{}", gateway.log());
    assert!(gateway.log().contains("it is an older copy"), "{}", gateway.log());
    once(kafka, &ledger, &[&topic]);
}

fn a_rewind_sends_again_what_it_says_also_after_a_kill() {
    let kafka = Kafka::shared();
    let topic = unique("once-rewound");
    kafka.create_topic(&topic, 1, &[]);
    let mut config = config(kafka);
    config.set("wal.retain", "1 GiB");
    let mut gateway = Gateway::start(&config);
    let ledger = Ledger::default();
    posts(&gateway, &ledger, &topic, 50);
    gateway.wait_drained(seconds(30));
    once(kafka, &ledger, &[&topic]);
    let repeats = || {
        let read = [(topic.as_str(), kafka.read_topic(&topic, true))];
        ledger.check(&read).unwrap().repeats
    };
    let (code, text, errors) = gateway.ask(&["wal", "rewind", "--from-seq", "41", "--yes"]);
    assert_eq!(code, 0, "{text} {errors}");
    wait_until("ten records are there again", seconds(30), || repeats() == 10);
    gateway.wait_drained(seconds(30));
    gateway.kill_and_restart();
    posts(&gateway, &ledger, &topic, 1);
    gateway.wait_drained(seconds(30));
    assert_eq!(repeats(), 10, "the kill repeats nothing");
    // One that is cut off by a kill at once goes on after the start.
    let (code, text, errors) = gateway.ask(&["wal", "rewind", "--from-seq", "1", "--yes"]);
    assert_eq!(code, 0, "{text} {errors}");
    gateway.kill_and_restart();
    gateway.wait_drained(seconds(30));
    assert_eq!(repeats(), 10 + 51);
    // A folder that no gateway uses: the log goes back, and Kafka's watermark is no reason not to send.
    assert!(gateway.sigterm(seconds(30)).success());
    let wal = gateway.wal();
    let (code, text, errors) = gateway.run(&[
        "wal",
        "rewind",
        "--from-seq",
        "42",
        "--yes",
        "--wal",
        wal.to_str().unwrap(),
    ]);
    assert_eq!(code, 0, "{text} {errors}");
    gateway.restart();
    gateway.wait_drained(seconds(30));
    assert_eq!(repeats(), 10 + 51 + 10);
}

fn it_can_be_turned_on_and_off() {
    let kafka = Kafka::shared();
    let topic = unique("once-turned");
    kafka.create_topic(&topic, 2, &[]);
    let ledger = Arc::new(Ledger::default());
    let mut gateway = Gateway::start(&config(kafka));
    let mut random = Random::new();
    for cycle in 0..6 {
        let load = Load::start(&gateway, &ledger, &topic, 4);
        thread::sleep(Duration::from_millis(random.within(300, 800)));
        gateway.terminate();
        load.join();
        assert_eq!(gateway.wait_for_exit(seconds(60)).code(), Some(0));
        let delivery = if cycle % 2 == 0 { "idempotent" } else { "exactly_once" };
        gateway.set("forward.delivery", delivery);
        gateway.restart();
    }
    gateway.wait_drained(seconds(60));
    once(kafka, &ledger, &[&topic]);
}
