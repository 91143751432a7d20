//! Folders that real gateways left, what is in them, and the command line that reads them.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::Arc;

use serde_json::Value;

use super::frames::{LOGS, Log};
use crate::support::gateway::{Config, Gateway, NOWHERE, command};
use crate::support::kafka::Kafka;
use crate::support::ledger::Ledger;
use crate::support::load::Load;
use crate::support::{JSON, Random, seconds, unique, wait_until};

const NDJSON: &str = "application/x-ndjson";

/// A folder as a gateway left it.
pub struct Source {
    folder: tempfile::TempDir,
    pub id: String,
    /// Of each log that is there, every record that was answered OK and is not removed, as it lies in the log.
    pub entries: BTreeMap<&'static str, BTreeMap<u64, Vec<u8>>>,
    /// `wal list` of the main log.
    pub lines: BTreeMap<u64, String>,
    /// Every sequence below was answered OK.
    pub next: u64,
}

impl Source {
    /// Many generations, records of all sizes, killed twice: once under load. Nothing was ever delivered.
    pub fn killed(random: &mut Random, records: u64) -> Self {
        let mut gateway = Gateway::start(&config(NOWHERE));
        let mut posted = Posted::default();
        posted.some(&gateway, &unique("damage"), random, records / 2);
        gateway.kill_and_restart();
        posted.some(&gateway, &unique("damage"), random, records / 2);
        let ledger = Arc::new(Ledger::default());
        let load = Load::start(&gateway, &ledger, &unique("damage"), 4);
        wait_until("the load runs", seconds(30), || ledger.ok() > 200);
        gateway.sigkill();
        load.join();
        let source = Self::of(&gateway.wal());
        assert!(source.next > ledger.last_seq(), "the load is in the log");
        posted.check(&source);
        source
    }

    /// Partly acknowledged, with held records and dead letters.
    pub fn partly_acknowledged(random: &mut Random) -> Self {
        const HELD: u64 = 1_200;
        const POISON: u64 = 6;
        let kafka = Kafka::shared();
        let (there, missing) = (unique("damage"), unique("damage-missing"));
        kafka.create_topic(&there, 1, &[("max.message.bytes", "20000")]);
        let mut gateway = Gateway::start(&config(kafka.bootstrap()));
        let mut posted = Posted::default();
        for _ in 0..HELD / 40 {
            posted.batch(&gateway, &missing, random, 40, 1_500);
            posted.batch(&gateway, &there, random, 40, 1_500);
        }
        for _ in 0..POISON {
            let bytes = random.within(30_000, 90_000);
            posted.one(&gateway, &there, random, bytes);
        }
        wait_until("what cannot go is settled", seconds(60), || {
            gateway.metric("tidegate_held_records") == HELD as f64
                && gateway.metric("tidegate_dead_letters") == POISON as f64
        });
        gateway.wait_drained(seconds(60));
        assert!(gateway.sigterm(seconds(30)).success());
        gateway.set("kafka.bootstrap_servers", NOWHERE);
        gateway.restart();
        posted = Posted::default();
        posted.some(&gateway, &there, random, 1_500);
        gateway.sigkill();
        let source = Self::of(&gateway.wal());
        assert!(source.entries["held"].len() as u64 >= HELD && source.entries["dead-letters"].len() as u64 == POISON);
        posted.check(&source);
        source
    }

    fn of(wal: &Path) -> Self {
        let folder = tempfile::tempdir().unwrap();
        copy(wal, &folder.path().join("wal"));
        let wal = folder.path().join("wal");
        let mut entries = BTreeMap::new();
        let mut next = 0;
        for name in LOGS {
            let Some(log) = Log::read(&wal, name) else { continue };
            assert_eq!(log.lost(), [], "{name} is whole to begin with");
            let whole: BTreeMap<u64, Vec<u8>> = log
                .whole()
                .into_iter()
                .map(|(at, bytes)| (at, bytes.to_vec()))
                .collect();
            entries.insert(name, whole);
            if name == "main" {
                // A commit that was whole when its gateway was killed and not yet noted was not answered either.
                next = log.witness.unwrap().0 + 1;
                assert!(log.generations.len() > 1, "{} generations", log.generations.len());
            }
        }
        let identity = fs::read_to_string(wal.join("identity")).unwrap();
        Self {
            id: identity.lines().nth(1).unwrap().to_owned(),
            lines: list(&wal),
            folder,
            entries,
            next,
        }
    }

    pub fn wal(&self) -> PathBuf {
        self.folder.path().join("wal")
    }

    /// A copy to damage, at `to`.
    pub fn copy_to(&self, to: &Path) {
        copy(&self.wal(), to);
    }
}

/// A configuration under which a few megabytes are many generations.
pub fn config(bootstrap: &str) -> Config {
    let mut config = Config::new(bootstrap);
    config.set("wal.generation_bytes", "1 MiB");
    config
}

/// What was posted: its sequence, and its value as text.
#[derive(Default)]
struct Posted(BTreeMap<u64, String>);

impl Posted {
    /// Records of every kind and size.
    fn some(&mut self, gateway: &Gateway, topic: &str, random: &mut Random, records: u64) {
        let mut left = records;
        while left > 0 {
            let (count, bytes) = match random.within(0, 8) {
                0 => (1, random.within(40_000, 200_000)),
                1 => (random.within(1, 8), random.within(2_000, 12_000)),
                _ => (random.within(1, 60), random.within(10, 600)),
            };
            let count = count.min(left);
            match count {
                1 => self.one(gateway, topic, random, bytes),
                _ => self.batch(gateway, topic, random, count, bytes),
            }
            left -= count;
        }
    }

    fn batch(&mut self, gateway: &Gateway, topic: &str, random: &mut Random, count: u64, bytes: u64) {
        let values: Vec<String> = (0..count)
            .map(|n| format!(r#"{{"n":{n},"x":"{}"}}"#, random.text(usize::try_from(bytes).unwrap())))
            .collect();
        let path = format!("/v1/topics/{topic}?key=key-{}", random.within(0, 9));
        let answer = gateway
            .client()
            .post(&path, NDJSON, values.join("\n").as_bytes())
            .unwrap();
        self.note(&answer, values);
    }

    fn one(&mut self, gateway: &Gateway, topic: &str, random: &mut Random, bytes: u64) {
        let value = format!(r#"{{"x":"{}"}}"#, random.text(usize::try_from(bytes).unwrap()));
        let headers = [
            ("content-type", JSON),
            ("tidegate-key", "the key"),
            ("tidegate-header-trace", "a-header-of-the-client"),
        ];
        let client = gateway.client();
        let answer = client.post_with(&format!("/v1/topics/{topic}"), &headers, value.as_bytes());
        self.note(&answer.unwrap(), vec![value]);
    }

    fn note(&mut self, answer: &crate::support::client::Answer, values: Vec<String>) {
        assert_eq!(answer.status, 202, "{answer:?}");
        let first = answer.json()["first_seq"].as_u64().unwrap();
        self.0.extend((first..).zip(values));
    }

    /// The folder has them all.
    fn check(&self, source: &Source) {
        for (sequence, value) in &self.0 {
            let line: Value = serde_json::from_str(&source.lines[sequence]).unwrap();
            assert_eq!(line["value"].as_str(), Some(value.as_str()), "sequence {sequence}");
            assert_eq!(
                (&line["wal"], &line["seq"]),
                (&Value::from(source.id.clone()), &Value::from(*sequence))
            );
        }
    }
}

/// Copies a folder with everything in it.
pub fn copy(from: &Path, to: &Path) {
    let copied = Command::new("cp").arg("-a").arg(from).arg(to).status().unwrap();
    assert!(copied.success(), "cp -a {} {}", from.display(), to.display());
}

/// What `tidegate ARGUMENTS` said; it never panics.
#[track_caller]
pub fn tidegate(arguments: &[&str]) -> Output {
    let output = command().args(arguments).output().unwrap();
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(
        !stderr.contains("panicked") && output.status.code().is_some(),
        "{arguments:?}: {output:?}"
    );
    output
}

pub fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

/// One line for each log of a report, by the log's name.
pub fn report(output: &Output) -> BTreeMap<String, Value> {
    let lines = String::from_utf8(output.stdout.clone()).unwrap();
    let lines = lines.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
    lines
        .map(|line| (line["log"].as_str().unwrap().to_owned(), line))
        .collect()
}

/// The ranges that a line of a report says are lost; each begins behind the one before.
pub fn lost(line: &Value) -> Vec<(u64, u64)> {
    let mut lost: Vec<(u64, u64)> = Vec::new();
    for range in line["lost"].as_array().unwrap() {
        let (first, last) = (range["first"].as_u64().unwrap(), range["last"].as_u64().unwrap());
        assert!(
            first <= last && lost.last().is_none_or(|(_, before)| *before < first),
            "{line}"
        );
        match lost.last_mut() {
            // Two reasons, one range.
            Some((_, before)) if *before + 1 == first => *before = last,
            _ => lost.push((first, last)),
        }
    }
    lost
}

/// `wal list` of a folder in which nothing new is lost.
#[track_caller]
pub fn list(wal: &Path) -> BTreeMap<u64, String> {
    list_ending(wal, 0)
}

/// `wal list`, which ends with `code`.
#[track_caller]
pub fn list_ending(wal: &Path, code: i32) -> BTreeMap<u64, String> {
    let output = tidegate(&["wal", "list", "--wal", text(wal), "--limit", "0", "--json"]);
    assert_eq!(
        output.status.code(),
        Some(code),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    let lines = String::from_utf8(output.stdout).unwrap();
    let lines = lines.lines().map(|line| {
        let value: Value = serde_json::from_str(line).unwrap();
        assert!(value.get("sequence").is_none(), "its place is its identity: {line}");
        (value["seq"].as_u64().unwrap(), line.to_owned())
    });
    lines.collect()
}

/// Everything about every file below a folder that a reader could change.
pub fn snapshot(folder: &Path) -> BTreeMap<PathBuf, (u64, u64, u32, i64, i64, u32)> {
    let mut files = BTreeMap::new();
    let mut folders = vec![folder.to_owned()];
    while let Some(folder) = folders.pop() {
        for path in fs::read_dir(&folder)
            .unwrap()
            .map(|item| item.unwrap().path())
            .chain([folder.clone()])
        {
            let meta = fs::symlink_metadata(&path).unwrap();
            let sum = match meta.is_file() {
                false => 0,
                true => crc32c::crc32c(&fs::read(&path).unwrap()),
            };
            if meta.is_dir() && path != folder {
                folders.push(path.clone());
            }
            let facts = (
                meta.ino(),
                meta.len(),
                meta.mode(),
                meta.mtime(),
                meta.mtime_nsec(),
                sum,
            );
            files.insert(path, facts);
        }
    }
    files
}
