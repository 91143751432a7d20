//! The checker checks: each fault that was planted is found, and nothing else is. So does the program that anybody can run
//! (`examples/checker.rs`).

use std::fs::{self, OpenOptions};
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use crate::support::gateway::{BINARY, Config, Gateway, Killed};
use crate::support::kafka::Kafka;
use crate::support::lander::Lander;
use crate::support::ledger::{Fault, Ledger, Outcome, Tally};
use crate::support::store::Store;
use crate::support::topics::Message;
use crate::support::{free_port, poll, seconds, target, unique, wait_until};

cases!["checker":
    a_clean_run_has_no_fault [],
    repeats_of_one_identity_are_counted_and_no_fault [],
    a_planted_loss_is_found [],
    a_planted_swap_is_found [],
    a_planted_swap_across_keys_is_found [],
    a_planted_flip_is_found [],
    a_planted_second_identity_is_found [],
    a_refused_record_that_is_there_is_found [],
    a_wrong_key_is_found [],
    the_program_finds_nothing_after_a_sigkill_and_then_a_planted_loss [Kafka],
];

/// Six records of two keys, answered OK but for the last, which nobody answered; and Kafka as it should be.
fn clean() -> (Ledger, Vec<Message>) {
    let ledger = Ledger::default();
    let mut messages = Vec::new();
    for i in 0..6 {
        let key = if i % 2 == 0 { "even" } else { "odd" };
        let value = format!("value-{i}");
        let place = ledger.intend("t", Some(key), value.as_bytes());
        let seq = i + 1;
        if i < 5 {
            ledger.settle(
                place,
                Outcome::Ok {
                    wal: "w".to_owned(),
                    seq,
                },
            );
        }
        messages.push(Message {
            partition: 0,
            offset: i.try_into().unwrap(),
            timestamp_ms: None,
            key: Some(key.into()),
            value: value.into_bytes(),
            headers: vec![
                ("tidegate-wal".to_owned(), b"w".to_vec()),
                ("tidegate-seq".to_owned(), seq.to_string().into_bytes()),
            ],
        });
    }
    (ledger, messages)
}

fn tally(ledger: &Ledger, messages: Vec<Message>) -> Tally {
    ledger.check(&[("t", messages)]).unwrap()
}

fn faults(ledger: &Ledger, messages: Vec<Message>) -> Vec<Fault> {
    ledger.check(&[("t", messages)]).unwrap_err().0
}

fn a_clean_run_has_no_fault() {
    let (ledger, messages) = clean();
    let expected = Tally {
        ok: 5,
        unknown: 1,
        refused: 0,
        delivered: 6,
        repeats: 0,
    };
    assert_eq!(tally(&ledger, messages), expected);
    assert_eq!((ledger.ok(), ledger.last_seq()), (5, 5));
}

fn repeats_of_one_identity_are_counted_and_no_fault() {
    let (ledger, mut messages) = clean();
    let again = messages[2..].to_vec();
    messages.extend(again);
    assert_eq!(tally(&ledger, messages).repeats, 4);
}

fn a_planted_loss_is_found() {
    let (ledger, mut messages) = clean();
    messages.remove(3);
    assert!(matches!(faults(&ledger, messages)[..], [Fault::Lost(_)]));
    // What nobody answered may be missing.
    let (ledger, mut messages) = clean();
    messages.pop();
    assert_eq!(tally(&ledger, messages).delivered, 5);
}

fn a_planted_swap_is_found() {
    let (ledger, mut messages) = clean();
    messages.swap(1, 3);
    let faults = faults(&ledger, messages);
    assert!(
        !faults.is_empty() && faults.iter().all(|fault| matches!(fault, Fault::Order(_))),
        "{faults:?}"
    );
}

fn a_planted_swap_across_keys_is_found() {
    let (ledger, mut messages) = clean();
    messages.swap(1, 2);
    assert!(matches!(faults(&ledger, messages)[..], [Fault::Order(_)]));
}

fn a_planted_flip_is_found() {
    let (ledger, mut messages) = clean();
    messages[4].value[0] ^= 1;
    let faults = faults(&ledger, messages);
    assert!(
        matches!(faults[..], [Fault::NeverSent(_), Fault::Lost(_)]),
        "{faults:?}"
    );
}

fn a_planted_second_identity_is_found() {
    let (ledger, mut messages) = clean();
    let mut twice = messages[5].clone();
    twice.headers[1].1 = b"7".to_vec();
    messages.push(twice);
    assert!(matches!(faults(&ledger, messages)[..], [Fault::Identity(_)]));
    // Under the identity of another record.
    let (ledger, mut messages) = clean();
    let mut twice = messages[5].clone();
    twice.headers[1].1 = b"1".to_vec();
    messages.push(twice);
    assert!(matches!(faults(&ledger, messages)[..], [Fault::Clash(_)]));
    // Under an identity that is not the one of the answer.
    let (ledger, mut messages) = clean();
    messages[0].headers[0].1 = b"x".to_vec();
    assert!(matches!(faults(&ledger, messages)[..], [Fault::Identity(_)]));
}

fn a_refused_record_that_is_there_is_found() {
    let (ledger, messages) = clean();
    ledger.settle(5, Outcome::Refused(503));
    assert!(matches!(faults(&ledger, messages)[..], [Fault::RefusedIsThere(_)]));
}

fn a_wrong_key_is_found() {
    let (ledger, mut messages) = clean();
    messages[0].key = None;
    assert!(matches!(faults(&ledger, messages)[..], [Fault::Key(_)]));
}

/// The program; built where only the tests were.
fn program() -> PathBuf {
    let profile = Path::new(BINARY).parent().unwrap();
    let program = profile.join("examples/checker");
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let changed = |path: &Path| fs::metadata(path).and_then(|meta| meta.modified()).ok();
    let sources = [
        root.join("examples/checker.rs"),
        root.join("tests/it/support/ledger.rs"),
    ];
    if sources.iter().any(|source| changed(&program) < changed(source)) {
        let mut build = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
        build.args(["build", "--quiet", "--locked", "--example", "checker"]);
        build.arg("--target-dir").arg(target()).current_dir(root);
        if profile.ends_with("release") {
            build.arg("--release");
        }
        assert!(build.status().unwrap().success(), "examples/checker.rs builds");
    }
    program
}

fn load(gateway: &Gateway, topic: &str, ledger: &Path) -> Child {
    let mut load = Command::new(program());
    load.args([
        "load",
        "--gateway",
        &format!("http://{}", gateway.ingest),
        "--topic",
        topic,
    ]);
    load.args(["--records", "3000", "--clients", "4"])
        .arg("--ledger")
        .arg(ledger);
    load.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap()
}

/// Exit code and standard output of a check with these flags more.
fn check(kafka: &Kafka, topic: &str, ledger: &Path, more: &[&str]) -> (Option<i32>, String) {
    let mut check = Command::new(program());
    check
        .args(["check", "--kafka", kafka.bootstrap(), "--topic", topic])
        .arg("--ledger")
        .arg(ledger);
    let output = check.args(more).output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap() + &String::from_utf8(output.stderr).unwrap();
    (output.status.code(), text)
}

fn the_program_finds_nothing_after_a_sigkill_and_then_a_planted_loss() {
    let kafka = Kafka::shared();
    let topic = unique("checked");
    kafka.create_topic(&topic, 3, &[]);
    let folder = tempfile::tempdir().unwrap();
    let ledger = folder.path().join("ledger");
    let mut config = Config::with(kafka);
    config.set("http.listen", format!("127.0.0.1:{}", free_port()));
    let mut gateway = Gateway::start(&config);
    let mut load = Killed(load(&gateway, &topic, &ledger));
    wait_until("a third of the load is in", seconds(60), || {
        gateway.metric("tidegate_ingest_records_total") > 1000.0
    });
    gateway.kill_and_restart();
    let ended = poll("the load has ended", seconds(60), || load.0.try_wait().unwrap());
    assert!(ended.success(), "{ended}");

    // Somewhere on the way: what is not in Kafka is in the log.
    gateway.sigkill();
    let wal = gateway.wal();
    let (code, text) = check(kafka, &topic, &ledger, &["--wal", wal.to_str().unwrap()]);
    assert_eq!(code, Some(0), "{text}");
    gateway.restart();
    gateway.wait_drained(seconds(60));
    let store = Store::sqlite();
    let mut landed = store.config(kafka);
    landed.landed("checked", &topic, &[]);
    let ended = Lander::run(&landed, &["--once"]);
    assert_eq!(ended.code, Some(0), "{}", ended.stderr);
    let database = store.file();
    let with_table = ["--sqlite", database.to_str().unwrap(), "--table", "checked"];
    let (code, text) = check(kafka, &topic, &ledger, &with_table);
    assert_eq!(code, Some(0), "{text}");
    assert!(text.contains("the table") && text.contains("all of it holds"), "{text}");

    // A row that is gone, then a record that was answered and never sent.
    let connection = rusqlite::Connection::open(&database).unwrap();
    connection
        .execute("DELETE FROM checked WHERE kafka_offset = 5", [])
        .unwrap();
    let (code, text) = check(kafka, &topic, &ledger, &with_table);
    assert_eq!(code, Some(1), "{text}");
    assert!(text.contains("FAULTS in the table") && text.contains("Lost("), "{text}");
    let mut lines = OpenOptions::new().append(true).open(&ledger).unwrap();
    writeln!(
        lines,
        r#"{{"send":999999,"topic":"{topic}","key":"k","value":"never sent"}}"#
    )
    .unwrap();
    writeln!(lines, r#"{{"answer":999999,"status":202,"wal":"w","seq":999999}}"#).unwrap();
    let (code, text) = check(kafka, &topic, &ledger, &[]);
    assert_eq!(code, Some(1), "{text}");
    assert!(text.contains("Lost(") && text.contains("never sent"), "{text}");
}
