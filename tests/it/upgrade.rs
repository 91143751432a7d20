//! Logs of earlier releases under the present binary: nothing that was answered OK is lost, or sent under another identity.
//!
//! Each was left by its release's own binary when SIGKILL ended it under eight clients, with Kafka away all the time
//! (tests/python/release_log.py): `wal/` is its folder, `answered` what the clients had read OK for, a line for each request,
//! `<first sequence> <last sequence> <client> <n>`. Odd clients posted three JSON records to a topic, even ones a form.

use std::collections::{BTreeMap, HashMap};
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::cli::run;
use crate::support::gateway::{Config, Gateway, command};
use crate::support::kafka::Kafka;
use crate::support::topics::Message;
use crate::support::{FORM, seconds};

cases!["upgrade":
    the_backlog_of_each_release_reaches_kafka_whole [OwnKafka],
    the_folder_of_each_release_is_read_without_a_change [],
];

/// Folders of tests/fixtures.
const RELEASES: &[&str] = &["first-release"];

/// The topic of the odd clients.
const ORDERS: &str = "upgrade.orders";
/// The source of the even ones.
const TRIPS: &str = "trip_pro";

fn fixture(release: &str, name: &str) -> PathBuf {
    let fixtures = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures");
    fixtures.join(release).join(name)
}

/// The log's identity, as its file has it.
fn wal_id(release: &str) -> String {
    let identity = fs::read_to_string(fixture(release, "wal/identity")).unwrap();
    identity.lines().nth(1).unwrap().to_owned()
}

/// A record as a consumer must find it.
#[derive(Debug, PartialEq, Eq)]
struct Expected {
    topic: &'static str,
    key: Option<String>,
    value: String,
}

/// What clients had read OK for, by sequence.
fn answered(release: &str) -> BTreeMap<u64, Expected> {
    let mut expected = BTreeMap::new();
    for line in fs::read_to_string(fixture(release, "answered")).unwrap().lines() {
        let numbers: Vec<u64> = line.split(' ').map(|number| number.parse().unwrap()).collect();
        let [first, last, client, n] = numbers[..] else {
            panic!("{line}")
        };
        for (place, sequence) in (first..=last).enumerate() {
            let record = match client % 2 {
                0 => Expected {
                    topic: TRIPS,
                    key: None,
                    value: format!(r#"{{"client":"{client}","n":"{n}","text":"ü"}}"#),
                },
                _ => Expected {
                    topic: ORDERS,
                    key: Some(format!("client-{client}")),
                    value: format!(r#"{{"client":{client},"n":{n},"i":{place}}}"#),
                },
            };
            assert!(expected.insert(sequence, record).is_none(), "{sequence} twice");
        }
    }
    assert!(expected.len() > 500, "a backlog: {}", expected.len());
    expected
}

fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for item in fs::read_dir(from).unwrap() {
        let item = item.unwrap().path();
        let target = to.join(item.file_name().unwrap());
        match item.is_dir() {
            true => copy(&item, &target),
            false => drop(fs::copy(&item, target).unwrap()),
        }
    }
}

/// A folder with the log in it.
fn left_behind(release: &str) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    copy(&fixture(release, "wal"), &folder.path().join("wal"));
    folder
}

fn the_backlog_of_each_release_reaches_kafka_whole() {
    let kafka = Kafka::private();
    kafka.create_topic(ORDERS, 3, &[]);
    kafka.create_topic(TRIPS, 3, &[]);
    for release in RELEASES {
        let newest = forward_all(&kafka, release);
        let found = in_kafka(&kafka, &wal_id(release));
        let expected = answered(release);
        for (sequence, record) in &expected {
            let Some((topic, message)) = found.get(sequence) else {
                panic!("{release}: {sequence} was answered OK and is not in Kafka: {record:?}")
            };
            let key = message.key.as_ref().map(|key| String::from_utf8(key.clone()).unwrap());
            let value = String::from_utf8(message.value.clone()).unwrap();
            assert_eq!(&Expected { topic, key, value }, record, "{release}: {sequence}");
        }
        // No sequence of the old process is used again, whether its client had read OK or not.
        let last = *expected.keys().next_back().unwrap();
        assert!(newest > last, "{release}: {newest} after {last}");
    }
}

/// The present binary on a release's log, until Kafka has everything and one more record, whose sequence this gives.
fn forward_all(kafka: &Kafka, release: &str) -> u64 {
    let mut gateway = Gateway::start_in(Arc::new(left_behind(release)), &Config::new(kafka.bootstrap()));
    gateway.wait_drained(seconds(60));
    let answer = gateway.client().post("/trip_pro", FORM, b"a=1&b=2&c=3").unwrap();
    let wal = wal_id(release);
    assert_eq!((answer.status, answer.header("tidegate-wal")), (200, wal.as_str()));
    gateway.wait_drained(seconds(30));
    assert_eq!(gateway.metric("tidegate_wal_corruption_records_total"), 0.0);
    assert!(gateway.sigterm(seconds(30)).success());
    answer.header("tidegate-seq").parse().unwrap()
}

/// The records of a log that Kafka has, with their topics: each once, and those of one key in order.
fn in_kafka(kafka: &Kafka, log: &str) -> HashMap<u64, (&'static str, Message)> {
    let mut found = HashMap::new();
    for topic in [ORDERS, TRIPS] {
        let mut newest: HashMap<(i32, Option<Vec<u8>>), u64> = HashMap::new();
        for message in kafka.read_topic(topic, true) {
            let (wal, sequence) = message.identity().unwrap();
            if wal != log {
                continue;
            }
            let before = newest.insert((message.partition, message.key.clone()), sequence);
            assert!(
                before.is_none_or(|before| before < sequence),
                "{sequence} behind {before:?}"
            );
            assert!(found.insert(sequence, (topic, message)).is_none(), "{sequence} twice");
        }
    }
    found
}

fn the_folder_of_each_release_is_read_without_a_change() {
    for release in RELEASES {
        let folder = left_behind(release);
        let log = folder.path().join("wal");
        let before = files(&log);
        let ask = |arguments: &[&str]| run(folder.path(), command(), &[arguments, &["--wal", "wal"]].concat());
        let verified = ask(&["wal", "verify"]);
        assert_eq!(verified.code, Some(0), "{release}: {verified:?}");
        let exported = ask(&["wal", "export", "--json"]);
        assert_eq!(exported.code, Some(0), "{release}: {exported:?}");
        let mut lines = HashMap::new();
        for line in exported.stdout.lines() {
            let line: serde_json::Value = serde_json::from_str(line).unwrap();
            lines.insert(line["seq"].as_u64().unwrap(), line);
        }
        for (sequence, record) in answered(release) {
            let line = &lines[&sequence];
            assert_eq!(line["topic"].as_str(), Some(record.topic), "{release}: {sequence}");
            assert_eq!(line["wal"].as_str(), Some(wal_id(release).as_str()));
            assert_eq!(
                line["value"].as_str(),
                Some(record.value.as_str()),
                "{release}: {sequence}"
            );
        }
        let mut after = files(&log);
        // A look holds it for a moment.
        after.remove(Path::new("lock"));
        assert!(before == after, "{release}: a look changed the folder");
    }
}

/// Every file below a folder, with its bytes.
fn files(folder: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let mut found = BTreeMap::new();
    let mut folders = vec![folder.to_owned()];
    while let Some(next) = folders.pop() {
        for item in fs::read_dir(next).unwrap() {
            let path = item.unwrap().path();
            match path.is_dir() {
                true => folders.push(path),
                false => drop(found.insert(path.strip_prefix(folder).unwrap().to_owned(), fs::read(&path).unwrap())),
            }
        }
    }
    found
}
