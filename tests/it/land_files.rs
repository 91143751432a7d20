//! The lander's files: complete when they appear, and each record in one of them, whoever was killed.

use std::fs;
use std::path::{Path, PathBuf};

use crate::support::gateway::BINARY;
use crate::support::kafka::Kafka;
use crate::support::lander::Lander;
use crate::support::store::{Raw, Store, once, produce, raw};
use crate::support::{seconds, unique, unshare, wait_until};

cases!["land_files":
    files_are_complete_at_their_size [Kafka],
    a_file_is_complete_at_its_age_without_more_traffic [Kafka],
    what_a_killed_lander_had_landed_is_completed_by_the_next [Kafka],
    a_file_that_is_missing_is_told [Kafka],
    wrong_folders_end_with_a_clear_error [Kafka],
    places_that_cannot_be_written_end_with_a_clear_error [Kafka, TinyDisk],
];

/// Files of a source with this ending.
fn files(store: &Store, source: &str, ending: &str) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for part in ["valid", "invalid", "rejected"] {
        let entries = fs::read_dir(store.file().join(source).join(part));
        found.extend(entries.into_iter().flatten().flatten().map(|entry| entry.path()));
    }
    found.retain(|path| path.to_str().unwrap().ends_with(ending));
    found.sort();
    found
}

fn topic_with(kafka: &Kafka, records: usize) -> String {
    let topic = unique("files");
    kafka.create_topic(&topic, 1, &[]);
    fill(kafka, &topic, records);
    topic
}

fn fill(kafka: &Kafka, topic: &str, records: usize) {
    let values: Vec<String> = (0..records)
        .map(|n| format!("{{\"n\":{n},\"more\":\"{}\"}}", "x".repeat(200)))
        .collect();
    let records: Vec<Raw<'_>> = values.iter().map(|value| raw(value.as_bytes())).collect();
    produce(kafka, topic, &records);
}

fn files_are_complete_at_their_size() {
    let kafka = Kafka::shared();
    let store = Store::files();
    let topic = topic_with(kafka, 2000);
    let mut config = store.config(kafka);
    config
        .landed("sized", &topic, &[("field_count", 2.into())])
        .set("land.file_bytes_max", "64 KiB")
        .set("land.batch_records_max", 100);
    once(&config);
    let complete = files(&store, "sized", ".jsonl");
    assert!(complete.len() > 8, "{complete:?}");
    assert_eq!(files(&store, "sized", ".open"), Vec::<PathBuf>::new());
    for file in &complete {
        let text = fs::read_to_string(file).unwrap();
        // A size, and at most one transaction more.
        assert!(text.len() < (64 << 10) + 100 * 600 && text.ends_with('\n'), "{file:?}");
    }
    assert_eq!(store.count("sized"), 2000);
    let mode =
        |path: &Path| std::os::unix::fs::PermissionsExt::mode(&fs::metadata(path).unwrap().permissions()) & 0o777;
    assert_eq!((mode(&complete[0]), mode(&store.file())), (0o600, 0o700));
}

fn a_file_is_complete_at_its_age_without_more_traffic() {
    let kafka = Kafka::shared();
    let store = Store::files();
    let topic = topic_with(kafka, 3);
    let mut config = store.config(kafka);
    config.landed("aged", &topic, &[]).set("land.file_age_max", "2 s");
    let mut lander = Lander::start(&config);
    wait_until("the records are landed", seconds(30), || {
        lander.metric("tidegate_land_records_total") == 3.0
    });
    wait_until("the file is complete", seconds(10), || {
        files(&store, "aged", ".jsonl").len() == 1
    });
    assert!(files(&store, "aged", ".open").is_empty());
    // What is not old enough is complete at the end.
    fill(kafka, &topic, 2);
    wait_until("more records are landed", seconds(30), || {
        lander.metric("tidegate_land_records_total") == 5.0
    });
    assert_eq!(lander.sigterm(seconds(20)).code(), Some(0));
    assert_eq!(files(&store, "aged", ".jsonl").len(), 2);
    assert!(files(&store, "aged", ".open").is_empty());
    assert_eq!(store.query("SELECT count(*) FROM aged")[0][0], "5");
}

fn what_a_killed_lander_had_landed_is_completed_by_the_next() {
    let kafka = Kafka::shared();
    let store = Store::files();
    let topic = topic_with(kafka, 5);
    let mut config = store.config(kafka);
    config.landed("killed", &topic, &[]);
    let mut lander = Lander::start(&config);
    wait_until("the records are landed", seconds(30), || {
        lander.metric("tidegate_land_records_total") == 5.0
    });
    // While it lives, nobody takes its file away.
    let other = Lander::start(&config);
    let open = files(&store, "killed", ".open");
    assert_eq!((open.len(), files(&store, "killed", ".jsonl").len()), (1, 0));
    drop(other);
    lander.sigkill();
    // A batch of which no transaction knew, a file of which none did, and what is nobody's business.
    let torn = fs::read_to_string(&open[0]).unwrap();
    fs::write(&open[0], format!("{torn}{{\"wal\":\"torn")).unwrap();
    let folder = open[0].parent().unwrap();
    fs::write(folder.join("20260101T000000Z-00000000.jsonl.open"), "{}\n").unwrap();
    fs::write(folder.join("notes"), "mine").unwrap();
    once(&config);
    assert_eq!(files(&store, "killed", ".open"), Vec::<PathBuf>::new());
    let complete = files(&store, "killed", ".jsonl");
    assert_eq!(complete.len(), 1);
    assert_eq!(fs::read_to_string(&complete[0]).unwrap(), torn);
    assert!(folder.join("notes").exists());
    // It might be a database that is not this one's: kept, and out of the way.
    assert!(folder.join("20260101T000000Z-00000000.jsonl.unknown").exists());
    assert_eq!(store.query("SELECT count(*) FROM tidegate_files")[0][0], "0");
}

fn a_file_that_is_missing_is_told() {
    let kafka = Kafka::shared();
    let store = Store::files();
    let topic = topic_with(kafka, 5);
    let mut config = store.config(kafka);
    config.landed("gone", &topic, &[]);
    let mut lander = Lander::start(&config);
    wait_until("the records are landed", seconds(30), || {
        lander.metric("tidegate_land_records_total") == 5.0
    });
    lander.sigkill();
    fs::remove_file(&files(&store, "gone", ".open")[0]).unwrap();
    a_living_lander_tells_it_too(kafka);
    let ended = Lander::run(&config, &["--once"]);
    assert_eq!(ended.code, Some(0), "{ended:?}");
    assert!(ended.stderr.contains("is gone"), "{ended:?}");
}

fn a_living_lander_tells_it_too(kafka: &Kafka) {
    let store = Store::files();
    let topic = topic_with(kafka, 5);
    let mut config = store.config(kafka);
    config.landed("taken", &topic, &[]).set("land.file_age_max", "6 s");
    let lander = Lander::start(&config);
    let landed = |count: f64| {
        wait_until("the records are landed", seconds(30), || {
            lander.metric("tidegate_land_records_total") == count
        });
    };
    landed(5.0);
    fs::remove_file(&files(&store, "taken", ".open")[0]).unwrap();
    wait_until("the loss is counted", seconds(20), || {
        lander.metrics()[r#"tidegate_land_errors_total{reason="file_damaged"}"#] == 1.0
    });
    fill(kafka, &topic, 2);
    landed(7.0);
    assert_eq!(lander.admin("/readyz").unwrap().status, 200);
}

fn wrong_folders_end_with_a_clear_error() {
    let kafka = Kafka::shared();
    let refused = |store: &Store, words: &[&str]| {
        let mut config = store.config(kafka);
        config.landed("t", &unique("wrong"), &[]);
        let ended = Lander::run(&config, &[]);
        assert_eq!(ended.code, Some(2), "{ended:?}");
        for word in words {
            assert!(ended.stderr.contains(word), "nothing about {word:?} in {ended:?}");
        }
    };
    let store = Store::files();
    fs::write(store.file(), "a file").unwrap();
    refused(&store, &["landed", "land.path"]);

    let store = Store::files();
    fs::create_dir(store.file()).unwrap();
    fs::write(store.file().join("t"), "a file").unwrap();
    refused(&store, &["landed/t", "land.path"]);
    assert_eq!(fs::read_to_string(store.file().join("t")).unwrap(), "a file");

    let store = Store::files();
    fs::create_dir(store.file()).unwrap();
    fs::write(store.file().join("tidegate.db"), "no database".repeat(1000)).unwrap();
    refused(&store, &["no SQLite database", "land.path"]);
}

fn places_that_cannot_be_written_end_with_a_clear_error() {
    let kafka = Kafka::shared();
    for store in [Store::sqlite(), Store::files()] {
        for (then, code) in [("true", 0), ("mount -o remount,ro here", 2)] {
            let folder = tempfile::tempdir().unwrap();
            fs::create_dir(folder.path().join("here")).unwrap();
            let mut config = store.config(kafka);
            let topic = topic_with(kafka, 1);
            config.landed("t", &topic, &[]).set("land.path", "here/landed");
            fs::write(folder.path().join("config.toml"), config.text()).unwrap();
            // Landed into once, then perhaps no more.
            let script = format!(
                "mount -t tmpfs -o size=4m none here && \"$0\" land --once >/dev/null 2>&1 && {then} && exec \"$0\" land --once"
            );
            let mut command = unshare();
            command.args(["sh", "-c", &script, BINARY]).current_dir(folder.path());
            let ended = command.output().unwrap();
            let stderr = String::from_utf8_lossy(&ended.stderr);
            assert_eq!(ended.status.code(), Some(code), "{stderr}");
            if code != 0 {
                assert!(
                    stderr.contains("here/landed") && stderr.contains("land.path"),
                    "{stderr}"
                );
            }
        }
    }
}
