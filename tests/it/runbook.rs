//! docs/runbook: every command of every page, run in the situation that the page is about.
//!
//! A page's ```sh blocks run in order, with `bash -euo pipefail` and the binary first on PATH. A line that ends in
//! `# exit N` must end with N. A ```text block below says what the block above printed: each of its lines is found in a
//! line of the output, with `...` for anything. Between two blocks the test does what the page asks of people.

pub mod watched;

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;

use crate::faults::shim::{self, Plan};
use crate::support::gateway::{BINARY, Config, Gateway, NOWHERE};
use crate::support::kafka::Kafka;
use crate::support::lander::Lander;
use crate::support::store::Store;
use crate::support::{Random, poll, seconds, unique, wait_until};

cases!["runbook":
    every_page_has_a_test_and_a_place_in_the_index [],
    kafka_away [OwnKafka],
    disk_filling [Kafka],
    disk_full [],
    wal_poisoned [],
    corruption_found [Kafka],
    machine_dead_disk_pulled [Kafka],
    gateway_cloned [Kafka, Curl],
    dead_letters [Kafka],
    held_topics [Kafka],
    kafka_lost_data [Kafka],
];

const NDJSON: &str = "application/x-ndjson";

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/runbook")
}

fn every_page_has_a_test_and_a_place_in_the_index() {
    assert!(is_shown("disk ... free", "  disk   1 of 2 free") && !is_shown("disk ... free", "free disk"));
    let index = fs::read_to_string(folder().join("README.md")).unwrap();
    let mut metrics = BTreeSet::new();
    let mut pages = 0;
    for entry in fs::read_dir(folder()).unwrap() {
        let path = entry.unwrap().path();
        let (name, text) = (
            path.file_name().unwrap().to_str().unwrap().to_owned(),
            fs::read_to_string(&path).unwrap(),
        );
        let words = text.split(|letter: char| !(letter.is_ascii_lowercase() || letter == '_'));
        metrics.extend(words.filter(|word| word.starts_with("tidegate_")).map(str::to_owned));
        for link in text
            .split("](")
            .skip(1)
            .filter_map(|rest| rest.split([')', '#']).next())
        {
            assert!(
                folder().join(link).exists(),
                "{name} points to {link}, which is not there"
            );
        }
        if name == "README.md" {
            continue;
        }
        pages += 1;
        let cases = || CASES.iter().chain(watched::CASES);
        let case = format!("runbook::{}", name.trim_end_matches(".md").replace('-', "_"));
        assert!(
            cases().any(|known| known.name == case),
            "docs/runbook/{name} has no test: {case}"
        );
        assert!(index.contains(&format!("({name})")), "{name} is not in the index");
        assert!(!Page::read(&name).blocks.is_empty(), "{name} has no commands");
    }
    assert_eq!(pages + 1, CASES.len() + watched::CASES.len(), "a test without a page");
    for name in metrics {
        let known = tidegate::metrics::ALL.iter().any(|metric| metric.name == name);
        assert!(known, "{name} is no metric");
    }
}

/// A page's commands.
struct Page {
    name: String,
    blocks: Vec<Block>,
    done: usize,
    folder: tempfile::TempDir,
    variables: Vec<(String, String)>,
}

#[derive(Debug, Default)]
struct Block {
    language: String,
    lines: Vec<String>,
    /// What it prints.
    shows: Vec<String>,
}

impl Page {
    fn read(name: &str) -> Self {
        let text = fs::read_to_string(folder().join(name)).unwrap();
        let mut blocks: Vec<Block> = Vec::new();
        let mut open: Option<Block> = None;
        for line in text.lines().map(str::trim) {
            match (line.strip_prefix("```"), open.as_mut()) {
                (Some(language), None) => {
                    assert!(
                        ["sh", "sql", "text"].contains(&language),
                        "{name}: a block of {language:?}"
                    );
                    open = Some(Block {
                        language: language.to_owned(),
                        ..Block::default()
                    });
                }
                (Some(_), Some(_)) => {
                    let block = open.take().unwrap();
                    match block.language.as_str() {
                        "text" => blocks.last_mut().expect("output of something").shows = block.lines,
                        _ => blocks.push(block),
                    }
                }
                (None, Some(block)) => block.lines.push(line.to_owned()),
                (None, None) => {}
            }
        }
        assert!(open.is_none(), "{name}: a block without its end");
        Self {
            name: name.to_owned(),
            blocks,
            done: 0,
            folder: tempfile::tempdir().unwrap(),
            variables: Vec::new(),
        }
    }

    fn set(&mut self, name: &str, value: impl Into<String>) -> &mut Self {
        self.variables.push((name.to_owned(), value.into()));
        self
    }

    /// The commands on this machine have the configuration and the listeners of this gateway.
    fn on(&mut self, gateway: &Gateway) -> &mut Self {
        let config = gateway.wal().parent().unwrap().join("config.toml");
        self.set("TIDEGATE_CONFIG", config.to_str().unwrap())
            .set("ADMIN", format!("http://{}", gateway.admin))
            .set("INGEST", format!("http://{}", gateway.ingest))
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn next(&mut self, language: &str) -> &Block {
        let (name, at) = (&self.name, self.done);
        let block = self.blocks.get(at).unwrap_or_else(|| panic!("{name} has {at} blocks"));
        assert_eq!(block.language, language, "{name}, block {}", at + 1);
        self.done += 1;
        block
    }

    /// Runs the next block; gives what it printed.
    #[track_caller]
    fn step(&mut self) -> String {
        let script: String = self.next("sh").lines.iter().map(|line| checked(line)).collect();
        let path = std::env::var("PATH").unwrap_or_default();
        let bin = Path::new(BINARY).parent().unwrap();
        let mut bash = Command::new("bash");
        for (name, _) in std::env::vars_os() {
            if name.to_string_lossy().starts_with("TIDEGATE_") {
                bash.env_remove(name);
            }
        }
        let output = bash
            .args(["-euo", "pipefail", "-c", &script])
            .env("PATH", format!("{}:{path}", bin.display()))
            .envs(self.variables.iter().map(|(name, value)| (name, value)))
            .current_dir(self.folder.path())
            .output()
            .expect("bash runs");
        let stdout = String::from_utf8(output.stdout).unwrap();
        let stderr = String::from_utf8(output.stderr).unwrap();
        let said = format!("{}, block {}:\n{script}\n{stdout}\n{stderr}", self.name, self.done);
        assert!(output.status.success(), "{} in {said}", output.status);
        for line in &self.blocks[self.done - 1].shows {
            assert!(
                stdout.lines().chain(stderr.lines()).any(|shown| is_shown(line, shown)),
                "{line:?} is not shown: {said}"
            );
        }
        stdout
    }

    /// Runs the next block until it says what the page says, which may need a moment.
    #[track_caller]
    fn wait_for(&mut self, gateway: &Gateway, what: &str, is_so: impl Fn(&Gateway) -> bool) -> String {
        wait_until(what, seconds(60), || is_so(gateway));
        self.step()
    }

    fn end(self) {
        assert_eq!(self.done, self.blocks.len(), "{}: not all blocks were run", self.name);
    }
}

/// A line of a script that fails unless it ends with the code that its comment names.
fn checked(line: &str) -> String {
    let Some((command, code)) = line.rsplit_once("# exit ") else {
        return format!("{line}\n");
    };
    let code: u8 = code.trim().parse().expect("# exit N");
    format!(
        "code=0; {command} || code=$?; [ $code = {code} ] || {{ echo \"exit code $code, not {code}\" >&2; exit 99; }}\n"
    )
}

fn is_shown(expected: &str, shown: &str) -> bool {
    let mut rest = shown;
    expected.split("...").map(str::trim).all(|part| match rest.find(part) {
        Some(at) => {
            rest = &rest[at + part.len()..];
            true
        }
        None => false,
    })
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

fn copy(from: &Path, to: &Path) {
    let copied = Command::new("cp").arg("-a").args([from, to]).status();
    assert!(copied.unwrap().success());
}

/// Posts `count` numbered records at once.
fn post(gateway: &Gateway, topic: &str, count: usize) {
    let lines: Vec<String> = (0..count)
        .map(|n| format!(r#"{{"n":"{n}","on":"{}"}}"#, gateway.admin))
        .collect();
    let answer = gateway
        .client()
        .post(
            &format!("/v1/topics/{topic}?key=k"),
            NDJSON,
            lines.join("\n").as_bytes(),
        )
        .unwrap();
    assert_eq!(answer.status, 202, "{answer:?}");
}

fn large() -> String {
    format!(r#"{{"x":"{}"}}"#, Random::new().text(60_000))
}

fn topic(kafka: &Kafka, name: &str, settings: &[(&str, &str)]) -> String {
    let topic = unique(name);
    kafka.create_topic(&topic, 1, settings);
    topic
}

fn seqs(kafka: &Kafka, topic: &str) -> BTreeSet<u64> {
    kafka
        .read_topic(topic, true)
        .iter()
        .map(|message| message.seq())
        .collect()
}

fn is_drained(gateway: &Gateway) -> bool {
    gateway.metric("tidegate_wal_backlog_records") == 0.0 && gateway.metric("tidegate_forward_broker_up") == 1.0
}

fn kafka_away() {
    let kafka = Kafka::private();
    kafka.create_topic("t", 1, &[]);
    kafka.stop();
    let gateway = Gateway::start(&Config::with(&kafka));
    post(&gateway, "t", 100);
    let mut page = Page::read("kafka-away.md");
    page.on(&gateway);
    page.step();
    let doctor = page.step();
    assert!(doctor.contains(kafka.bootstrap()), "{doctor}");
    page.step();
    kafka.start();
    page.wait_for(&gateway, "the backlog is gone", is_drained);
    assert_eq!(seqs(&kafka, "t").len(), 100);
    page.end();
}

fn disk_filling() {
    let kafka = Kafka::shared();
    let topic = topic(kafka, "filling", &[]);
    let mut gateway = Gateway::start(&Config::new(NOWHERE));
    post(&gateway, &topic, 100);
    let wal = gateway.wal();
    let mut page = Page::read("disk-filling.md");
    let new = page.path("larger");
    page.on(&gateway).set("WAL", text(&wal)).set("NEW", text(&new));
    page.step();
    let shown = page.step();
    assert_eq!(shown.matches(&topic).count(), 20, "{shown}");
    gateway.terminate();
    gateway.wait_for_exit(seconds(60));
    page.step();
    gateway.set("wal.path", text(&new));
    gateway.set("kafka.bootstrap_servers", kafka.bootstrap());
    gateway.restart();
    page.on(&gateway).step();
    gateway.wait_drained(seconds(60));
    assert_eq!(seqs(kafka, &topic).len(), 100);
    assert!(!wal.exists());
    page.end();
}

fn disk_full() {
    let mut config = Config::new(NOWHERE);
    config
        .set("wal.generation_bytes", "1 MiB")
        .set("wal.bytes_max", "8 MiB");
    let mut gateway = Gateway::start(&config);
    let client = gateway.client();
    let refused = (0..1000).find_map(|_| {
        let answer = client.post("/v1/topics/t", NDJSON, large().as_bytes()).unwrap();
        (answer.status != 202).then_some(answer.status)
    });
    assert_eq!(refused, Some(503));
    let committed = gateway.metric("tidegate_wal_committed_sequence");
    let mut page = Page::read("disk-full.md");
    page.on(&gateway).step();
    assert!(gateway.sigterm(seconds(60)).success());
    gateway.set("wal.bytes_max", "64 MiB");
    gateway.restart();
    let shown = page.on(&gateway).step();
    assert!(shown.contains("64"), "{shown}");
    page.step();
    post(&gateway, "t", 1);
    assert_eq!(gateway.metric("tidegate_wal_backlog_records"), committed + 1.0);
    page.end();
}

fn wal_poisoned() {
    let folder = Arc::new(tempfile::tempdir().unwrap());
    let mut config = Config::new(NOWHERE);
    // The disk fails under load: late enough for some records to be answered first.
    let failing = Plan {
        calls: "s",
        does: "eio",
        at: Some(200),
        ..Plan::new(&folder.path().join("wal"))
    };
    failing.put(&mut config);
    let mut gateway = Gateway::try_start_in(folder, &config).expect("it starts");
    let (wal, client) = (gateway.wal(), gateway.client());
    let mut page = Page::read("wal-poisoned.md");
    let mut answered = 0;
    for _ in 0..1000 {
        match client.post("/v1/topics/t", NDJSON, large().as_bytes()) {
            Ok(answer) if answer.status == 202 => answered += 1,
            _ => break,
        }
    }
    assert!((1..1000).contains(&answered), "{answered}");
    let status = gateway.wait_for_exit(seconds(60));
    assert_eq!(status.code(), Some(75), "{}", gateway.log());
    assert!(gateway.log().contains("the log has stopped"), "{}", gateway.log());
    shim::take(gateway.config());
    page.on(&gateway).set("WAL", text(&wal));
    page.step();
    page.step();
    gateway.restart();
    page.on(&gateway).step();
    let backlog = gateway.metric("tidegate_wal_backlog_records");
    assert!(
        backlog >= f64::from(answered),
        "{answered} were answered, {backlog} are there"
    );
    page.end();
}

/// Overwrites every copy of `needle` below `folder`: the store may keep more than one.
fn rot(folder: &Path, needle: &[u8]) -> usize {
    let mut count = 0;
    for entry in fs::read_dir(folder).unwrap().flatten() {
        let path = entry.path();
        if path.is_dir() {
            count += rot(&path, needle);
            continue;
        }
        let mut bytes = fs::read(&path).unwrap();
        let at = |bytes: &[u8]| bytes.windows(needle.len()).position(|window| window == needle);
        let before = count;
        while let Some(at) = at(&bytes) {
            bytes[at..at + needle.len()].fill(b'?');
            count += 1;
        }
        if count > before {
            fs::write(&path, bytes).unwrap();
        }
    }
    count
}

fn corruption_found() {
    let kafka = Kafka::shared();
    let topic = topic(kafka, "damaged", &[]);
    let mut config = Config::new(NOWHERE);
    config.set("wal.compression", "none");
    let mut gateway = Gateway::start(&config);
    for n in 0..50 {
        let body = format!(r#"{{"n":"needle-{n}-"}}"#);
        let answer = gateway
            .client()
            .post(&format!("/v1/topics/{topic}?key=k"), NDJSON, body.as_bytes())
            .unwrap();
        assert_eq!(answer.status, 202, "{answer:?}");
    }
    gateway.sigkill();
    let wal = gateway.wal();
    assert!(rot(&wal, b"needle-20-") > 0);

    let mut page = Page::read("corruption-found.md");
    let new = page.path("salvaged");
    page.on(&gateway).set("WAL", text(&wal)).set("NEW", text(&new));
    let told = page.step();
    assert!(told.contains("sequences 21 to 21"), "{told}");
    page.step();
    page.step();
    gateway.set("wal.path", text(&new));
    gateway.set("kafka.bootstrap_servers", kafka.bootstrap());
    gateway.restart();
    gateway.wait_drained(seconds(60));
    let expected: BTreeSet<u64> = (1..=50).filter(|seq| *seq != 21).collect();
    assert_eq!(seqs(kafka, &topic), expected);
    page.end();
}

fn machine_dead_disk_pulled() {
    let kafka = Kafka::shared();
    let topic = topic(kafka, "dead", &[]);
    let mut gateway = Gateway::start(&Config::new(NOWHERE));
    post(&gateway, &topic, 1000);
    gateway.sigkill();
    let mut page = Page::read("machine-dead-disk-pulled.md");
    let pulled = page.path("pulled");
    copy(&gateway.wal(), &pulled);
    page.set("WAL", text(&pulled)).set("KAFKA", kafka.bootstrap());
    page.step();
    let dry = page.step();
    assert!(dry.contains("1,000 records") || dry.contains("1000 records"), "{dry}");
    assert_eq!(kafka.count(&topic), Some(0));
    page.step();
    assert_eq!(seqs(kafka, &topic), (1..=1000).collect());
    page.step();
    assert_eq!(kafka.count(&topic), Some(1000));
    page.end();
}

fn gateway_cloned() {
    let kafka = Kafka::shared();
    let topic = topic(kafka, "cloned", &[]);
    let store = Store::sqlite();
    let mut config = store.config(kafka);
    config.landed("cloned", &topic, &[("field_count", 2.into())]);
    let mut original = Gateway::start(&config);
    post(&original, &topic, 10);
    original.wait_drained(seconds(60));
    assert!(original.sigterm(seconds(60)).success());
    let mut page = Page::read("gateway-cloned.md");
    let copied = page.path("clone");
    copy(&original.wal(), &copied);
    original.restart();
    // Both take records under the sequences from 11 on; 5 of the clone's 20 stay in its log.
    let mut clone = Gateway::start(&config);
    assert!(clone.sigterm(seconds(60)).success());
    clone.set("wal.path", text(&copied));
    clone.restart();
    post(&original, &topic, 20);
    original.wait_drained(seconds(60));
    post(&clone, &topic, 15);
    clone.wait_drained(seconds(60));
    assert!(clone.sigterm(seconds(60)).success());
    clone.set("kafka.bootstrap_servers", NOWHERE);
    clone.restart();
    post(&clone, &topic, 5);
    let lander = Lander::start(&config);
    let clashes = r#"tidegate_land_errors_total{reason="identity_clash"}"#;
    wait_until("the clash is seen", seconds(60), || lander.metrics()[clashes] == 15.0);

    page.on(&original)
        .set("CLONE", format!("http://{}", clone.admin))
        .set("WAL", text(&copied))
        .set("KAFKA", kafka.bootstrap())
        .set("TOPIC", &*topic);
    let logs = page.step();
    let logs: Vec<&str> = logs.lines().collect();
    assert!(logs.len() == 2 && logs[0] == logs[1], "{logs:?}");
    clone.sigkill();
    page.step();
    wait_until("all of it is landed", seconds(60), || lander.metrics()[clashes] == 20.0);
    let sql = page.next("sql").lines.join("\n");
    let rows = store.query(&sql);
    assert_eq!(rows.len(), 20, "{rows:?}");
    let values: Vec<&str> = rows.iter().map(|row| row[4].as_str()).collect();
    fs::write(page.path("values.ndjson"), values.join("\n")).unwrap();
    page.step();
    wait_until("every record has its row", seconds(60), || {
        store.count("cloned") == 10 + 20 + 20
    });
    assert_eq!(store.query("SELECT count(DISTINCT value) FROM cloned"), [["50"]]);
    page.end();
}

fn dead_letters() {
    let kafka = Kafka::shared();
    let small = [("max.message.bytes", "20000")];
    let (wanted, unwanted) = (topic(kafka, "letters", &small), topic(kafka, "junk", &small));
    let gateway = Gateway::start(&Config::with(kafka));
    for topic in [&wanted, &unwanted] {
        let answer = gateway
            .client()
            .post(&format!("/v1/topics/{topic}?key=k"), NDJSON, large().as_bytes())
            .unwrap();
        assert_eq!(answer.status, 202, "{answer:?}");
    }
    wait_until("two letters", seconds(60), || {
        gateway.metric("tidegate_dead_letters") == 2.0
    });
    let mut page = Page::read("dead-letters.md");
    page.on(&gateway).set("TOPIC", &*wanted).set("OTHER", &*unwanted);
    page.step();
    let shown = page.step();
    assert!(shown.contains(&wanted), "{shown}");
    let exported = fs::read_to_string(page.path("letters.jsonl")).unwrap();
    assert_eq!(exported.lines().count(), 2);
    kafka.alter_topic(&wanted, "max.message.bytes", "1000000");
    page.step();
    kafka.wait_for_count(&wanted, 1, seconds(60));
    page.step();
    page.wait_for(&gateway, "no letter is left", |gateway| {
        gateway.metric("tidegate_dead_letters") == 0.0
    });
    assert_eq!(kafka.count(&unwanted), Some(0));
    page.end();
}

fn held_topics() {
    let kafka = Kafka::shared();
    let (misspelled, junk, there) = (unique("misspelled"), unique("junk"), topic(kafka, "there", &[]));
    let gateway = Gateway::start(&Config::with(kafka));
    post(&gateway, &misspelled, 30);
    post(&gateway, &junk, 10);
    wait_until("all of it is held", seconds(60), || {
        gateway.metric("tidegate_held_records") == 40.0
    });
    let mut page = Page::read("held-topics.md");
    page.on(&gateway)
        .set("TOPIC", &*misspelled)
        .set("OTHER", &*there)
        .set("JUNK", &*junk);
    let listed = page.step();
    assert!(listed.contains(&misspelled) && listed.contains(&junk), "{listed}");
    page.step();
    page.step();
    page.wait_for(&gateway, "nothing is held", |gateway| {
        gateway.metric("tidegate_held_records") == 0.0
    });
    kafka.wait_for_count(&there, 30, seconds(60));
    assert_eq!(seqs(kafka, &there), (1..=30).collect());
    // The first way: the topic is made, and nothing else is done.
    let late = unique("late");
    post(&gateway, &late, 5);
    wait_until("it is held", seconds(60), || {
        gateway.metric("tidegate_held_records") == 5.0
    });
    kafka.create_topic(&late, 1, &[]);
    kafka.wait_for_count(&late, 5, seconds(60));
    page.end();
}

fn kafka_lost_data() {
    let kafka = Kafka::shared();
    let topic = topic(kafka, "lost", &[]);
    let mut config = Config::with(kafka);
    config.set("wal.retain", "1 GiB");
    let gateway = Gateway::start(&config);
    post(&gateway, &topic, 300);
    gateway.wait_drained(seconds(60));
    kafka.delete_records(&topic, 0, 300);
    assert_eq!(kafka.count(&topic), Some(0));
    let mut page = Page::read("kafka-lost-data.md");
    page.on(&gateway).set("TOPIC", &*topic).set("FIRST", "1");
    page.step();
    let listed = page.step();
    assert!(listed.contains(&topic), "{listed}");
    page.step();
    poll("they are there again", seconds(60), || {
        (kafka.count(&topic) == Some(300)).then_some(())
    });
    page.wait_for(&gateway, "nothing waits", is_drained);
    assert_eq!(seqs(kafka, &topic), (1..=300).collect());
    page.end();
}
