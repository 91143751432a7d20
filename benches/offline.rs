//! `wal verify` and `wal salvage` of a large folder, each against its limit: reading the same files from end to end,
//! and copying them with an fsync. And the memory of every verb that goes through the whole folder.
//!
//! `cargo bench --bench offline`; alternating runs, min / median / max. `TIDEGATE_BENCH_BYTES` is the folder's size,
//! 1 GiB unless told, `TIDEGATE_BENCH_DIR` says on which disk. The replays go to a gateway of this run, whose Kafka is
//! away, and to a real Apache Kafka, which `./tests/run` fetches.
#![allow(
    missing_docs,
    dead_code,
    unused_imports,
    unused_macros,
    unused_must_use,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic
)]

mod common;
#[path = "../tests/it/support/mod.rs"]
mod support;

use std::fs::{self, File};
use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use common::Row;
use rustix::fs::{Advice, fadvise};
use support::gateway::{Config, Gateway, NOWHERE};
use support::kafka::Kafka;
use tidegate::record::Record;
use tidegate::wal::Batch;

/// What a verb may take of memory.
const RSS_MIB_MAX: f64 = 150.0;

fn folder_bytes() -> u64 {
    common::setting("TIDEGATE_BENCH_BYTES", 1 << 30)
}

fn runs() -> usize {
    match std::env::var_os("TIDEGATE_BENCH_RUNS") {
        Some(_) => common::runs(),
        None => 3,
    }
}

/// Records as devices send them, some large, in commits of 500, until the folder has its size.
fn make(wal: &Path) -> u64 {
    let opened = common::log::open(wal, true);
    let mut records = 0;
    let mut last = None;
    while size(wal) < folder_bytes() {
        for _ in 0..100 {
            let mut batch = Batch::new();
            for _ in 0..500 {
                records += 1;
                batch.push(&Record {
                    topic: "financial_pro".into(),
                    key: Some(format!("press-{}", records % 40).into_bytes()),
                    value: Some(match records % 5_000 {
                        0 => (0..400).flat_map(|n| common::json_record(records + n)).collect(),
                        _ => common::json_record(records),
                    }),
                    headers: vec![("content-type".into(), b"application/json".to_vec())],
                    received_ms: 1_767_225_600_000 + records as i64,
                    origin: None,
                    idempotency: None,
                });
            }
            // Two at a time: one is made while the other is written.
            if let Some(commit) = last.replace(opened.log().append(batch).unwrap()) {
                let commit: tidegate::wal::Commit = commit;
                commit.wait().unwrap();
            }
        }
    }
    if let Some(commit) = last {
        commit.wait().unwrap();
    }
    opened.close().unwrap();
    records
}

fn files(folder: &Path) -> Vec<PathBuf> {
    let mut files = Vec::new();
    // While the folder is made, generations in it get other names.
    for item in fs::read_dir(folder).into_iter().flatten().map(Result::unwrap) {
        match item.file_type().unwrap().is_dir() {
            true => files.extend(self::files(&item.path())),
            false => files.push(item.path()),
        }
    }
    files.sort();
    files
}

fn size(folder: &Path) -> u64 {
    files(folder)
        .iter()
        .map(|file| fs::metadata(file).map_or(0, |meta| meta.len()))
        .sum()
}

/// The next read of these files comes from the disk.
fn forget(folder: &Path) {
    for file in files(folder) {
        let file = File::open(file).unwrap();
        file.sync_all().unwrap();
        fadvise(&file, 0, None, Advice::DontNeed).unwrap();
    }
}

fn read_all(folder: &Path) {
    let mut buffer = vec![0; 1 << 20];
    for file in files(folder) {
        let mut file = File::open(file).unwrap();
        while file.read(&mut buffer).unwrap() > 0 {}
    }
}

fn copy_all(from: &Path, to: &Path) {
    assert!(
        Command::new("cp")
            .arg("-a")
            .arg(from)
            .arg(to)
            .status()
            .unwrap()
            .success()
    );
    for file in files(to) {
        File::open(file).unwrap().sync_all().unwrap();
    }
}

/// Runs `tidegate wal ARGUMENTS`; the most memory it had, in MiB.
fn tidegate(arguments: &[&str]) -> f64 {
    tidegate_at(NOWHERE, arguments)
}

/// [`tidegate`] with this Kafka.
fn tidegate_at(kafka: &str, arguments: &[&str]) -> f64 {
    let mut child = Command::new(env!("CARGO_BIN_EXE_tidegate"))
        .arg("wal")
        .args(arguments)
        .env("TIDEGATE_KAFKA__BOOTSTRAP_SERVERS", kafka)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let status = PathBuf::from(format!("/proc/{}/status", child.id()));
    let mut most: f64 = 0.0;
    let ended = loop {
        let text = fs::read_to_string(&status).unwrap_or_default();
        let line = text.lines().find_map(|line| line.strip_prefix("VmHWM:"));
        let kib = line.and_then(|line| line.split_whitespace().next()?.parse::<f64>().ok());
        most = most.max(kib.unwrap_or(0.0) / 1024.0);
        if let Some(ended) = child.try_wait().unwrap() {
            break ended;
        }
        std::thread::sleep(Duration::from_millis(5));
    };
    assert!(ended.success(), "tidegate wal {arguments:?}: {ended}");
    most
}

fn replay_to_a_gateway(wal: &str, records: u64) -> f64 {
    let gateway = Gateway::start(&Config::new(NOWHERE));
    let admin = format!("http://{}", gateway.admin);
    let most = tidegate(&["replay", "--all", "--wal", wal, "--admin", &admin]);
    assert_eq!(gateway.metric("tidegate_wal_backlog_records"), records as f64);
    most
}

fn replay_to_kafka(wal: &str, records: u64) -> f64 {
    let kafka = Kafka::private();
    // The records are older than a week, which is how long topics keep theirs by default.
    kafka.create_topic("financial_pro", 1, &[("retention.ms", "-1")]);
    let most = tidegate_at(kafka.bootstrap(), &["replay", "--all", "--wal", wal]);
    assert_eq!(kafka.count("financial_pro"), Some(records));
    most
}

fn main() {
    common::print_machine_for(runs());
    let base = std::env::var_os("TIDEGATE_BENCH_DIR").map_or_else(|| "target".into(), PathBuf::from);
    let folder = tempfile::tempdir_in(base).unwrap();
    let (wal, new) = (folder.path().join("wal"), folder.path().join("new"));
    let records = make(&wal);
    let bytes = size(&wal);
    println!("{records} records in {} MiB, {} files", bytes >> 20, files(&wal).len());
    let mut memory = [Vec::new(), Vec::new()];
    let mut read = [Vec::new(), Vec::new(), Vec::new(), Vec::new()];
    let mut copied = [Vec::new(), Vec::new()];
    let per_second = |began: Instant| (bytes >> 20) as f64 / began.elapsed().as_secs_f64();
    for _ in 0..runs() {
        for cold in [true, false] {
            for verify in [false, true] {
                if cold {
                    forget(&wal);
                }
                let began = Instant::now();
                match verify {
                    false => read_all(&wal),
                    true => memory[0].push(tidegate(&["verify", "--wal", wal.to_str().unwrap()])),
                }
                read[usize::from(!cold) * 2 + usize::from(verify)].push(per_second(began));
            }
        }
        for salvage in [false, true] {
            forget(&wal);
            let began = Instant::now();
            match salvage {
                false => copy_all(&wal, &new),
                true => {
                    let arguments = ["salvage", "--wal", wal.to_str().unwrap(), "--to", new.to_str().unwrap()];
                    memory[1].push(tidegate(&arguments));
                }
            }
            copied[usize::from(salvage)].push(per_second(began));
            fs::remove_dir_all(&new).unwrap();
        }
    }
    // Of these only the memory: what they write is so much more than what they read that no limit compares.
    let export = folder.path().join("export.jsonl.zst");
    let (from, to) = (wal.to_str().unwrap(), export.to_str().unwrap());
    let mut passing: [Vec<f64>; 7] = Default::default();
    for _ in 0..runs() {
        passing[0].push(tidegate(&["list", "--limit", "0", "--wal", from]));
        passing[1].push(tidegate(&["tail", "--lines", "1000000", "--wal", from]));
        passing[2].push(tidegate(&["export", "--output", to, "--wal", from]));
        println!("the export: {} MiB", fs::metadata(&export).unwrap().len() >> 20);
        passing[3].push(tidegate(&["import", to, "--wal", new.to_str().unwrap()]));
        fs::remove_file(&export).unwrap();
        fs::remove_dir_all(&new).unwrap();
        passing[4].push(tidegate(&["replay", "--all", "--dry-run", "--wal", from]));
        passing[5].push(replay_to_a_gateway(from, records));
        passing[6].push(replay_to_kafka(from, records));
    }
    let row = |name: &str, figures: &[f64]| Row {
        name: name.to_owned(),
        figures: figures.to_vec(),
    };
    let read_cold = [row("read, 1 MiB at a time", &read[0]), row("wal verify", &read[1])];
    common::print_table("From the disk", "MiB/s", &read_cold, "read, 1 MiB at a time");
    let read_warm = [row("read, 1 MiB at a time", &read[2]), row("wal verify", &read[3])];
    common::print_table("From the page cache", "MiB/s", &read_warm, "read, 1 MiB at a time");
    let copies = [row("cp and fsync", &copied[0]), row("wal salvage", &copied[1])];
    common::print_table("A second folder, of what is read", "MiB/s", &copies, "cp and fsync");
    let most = [
        row("limit", &[RSS_MIB_MAX]),
        row("wal verify", &memory[0]),
        row("wal salvage", &memory[1]),
        row("wal list --limit 0", &passing[0]),
        row("wal tail --lines 1000000", &passing[1]),
        row("wal export to a .zst", &passing[2]),
        row("wal import of it", &passing[3]),
        row("wal replay --all --dry-run", &passing[4]),
        row("wal replay --all to a gateway", &passing[5]),
        row("wal replay --all to Kafka", &passing[6]),
    ];
    common::print_table("Memory at its peak", "MiB", &most, "limit");
}
