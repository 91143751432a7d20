//! Big backlogs: what a log of 1, 10 or 50 GB costs. How long a start takes, until the log is open and until the first OK; memory;
//! the rate at which records are taken, against that of an empty log, side by side; a SIGKILL under load; the drain into a real
//! Kafka; `wal verify` and `wal salvage`.
//!
//! `cargo bench --bench backlog`; `TIDEGATE_BENCH_GB` is a list of sizes in ascending order, in 10^9 bytes of files
//! (`1,10,50`; 1 unless told), `TIDEGATE_BENCH_DIR` says on which disk, `TIDEGATE_BENCH_RUNS` how often (3). One log grows from size to size. Needs
//! wrk, and for the drain the tests' Kafka (`./tests/run` fetches it), which keeps little of what it gets.
#![allow(missing_docs, dead_code, unused_imports, unused_macros)]
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)]

mod common;
mod gateways;
#[path = "../tests/it/support/mod.rs"]
mod support;

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use common::{Row, number, print_table, rss_mib, spread};
use gateways::{TOPIC, fill, forget, size, start, table, wrk};
use support::gateway::{BINARY, Config, Gateway, NOWHERE};
use support::kafka::Kafka;
use tidegate::wal::Read;

const GB: u64 = 1_000_000_000;
/// What a run leaves free on the disk.
const FREE_BYTES_MIN: u64 = 5 * GB;
/// A salvage writes as much again.
const SALVAGE_GB_MAX: f64 = 10.0;
/// A little less than a file of the log may have.
const NEWEST_BYTES: u64 = 60_000_000;
const REST: Duration = Duration::from_secs(5);
const LOAD_SECONDS: u32 = 6;
const DRAIN_MAX: Duration = Duration::from_secs(60);
const LIMIT: Duration = Duration::from_secs(300);

/// One size's figures, of all runs.
#[derive(Debug, Default)]
struct Figures {
    gb: f64,
    records: u64,
    open_ms: Vec<f64>,
    first_ok_ms: Vec<f64>,
    idle_mib: Vec<f64>,
    taken: Vec<f64>,
    taken_empty: Vec<f64>,
    p99: Vec<f64>,
    p99_empty: Vec<f64>,
    load_mib: Vec<f64>,
    load_mib_empty: Vec<f64>,
    killed_ok_ms: Vec<f64>,
    killed_records: u64,
    /// MB of files a second.
    verify: Vec<f64>,
    verify_mib: Vec<f64>,
    salvage: Vec<f64>,
    salvage_mib: Vec<f64>,
    drain: Drain,
}

#[derive(Debug, Default)]
struct Drain {
    /// Records a second, in each third of the time.
    thirds: [f64; 3],
    mb_per_second: f64,
    records: u64,
    seconds: f64,
    most_mib: f64,
    /// The longest that the admin listener took for a scrape, seconds.
    scrape: f64,
}

fn runs() -> usize {
    common::setting("TIDEGATE_BENCH_RUNS", 3)
}

fn config() -> Config {
    let mut config = Config::new(NOWHERE);
    config.set("wal.bytes_max", "1000 GiB").set("http.shutdown", "0 s");
    config
}

fn ended(mut gateway: Gateway) {
    assert!(gateway.sigterm(LIMIT).success(), "{}", gateway.log());
}

/// From the disk: the log alone, and `tidegate serve` until its first OK; then its memory at rest, while the forwarder knocks. A
/// start reads the newest file of the log: it is as large as it gets.
fn starts(folder: &Arc<tempfile::TempDir>, figures: &mut Figures) {
    let wal = folder.path().join("wal");
    let full = || {
        fill(&wal, size(&wal) + NEWEST_BYTES, 0);
        forget(&wal);
    };
    for _ in 0..runs() {
        full();
        let began = Instant::now();
        let opened = common::log::open(&wal, true);
        figures.open_ms.push(began.elapsed().as_secs_f64() * 1e3);
        opened.close().unwrap();
        full();
        let (gateway, seconds) = start(folder, &config());
        figures.first_ok_ms.push(seconds * 1e3);
        thread::sleep(REST);
        figures.idle_mib.push(rss_mib(gateway.pid()));
        ended(gateway);
    }
}

fn rates(base: &Path, folder: &Arc<tempfile::TempDir>, figures: &mut Figures) {
    let mut one = |folder: &Arc<tempfile::TempDir>, is_empty: bool| {
        let (gateway, _) = start(folder, &config());
        let load = wrk(&gateway, 100, LOAD_SECONDS, &[]);
        assert_eq!(load.failed, 0.0, "{}", gateway.log());
        let (taken, p99, mib) = match is_empty {
            true => (
                &mut figures.taken_empty,
                &mut figures.p99_empty,
                &mut figures.load_mib_empty,
            ),
            false => (&mut figures.taken, &mut figures.p99, &mut figures.load_mib),
        };
        taken.push(load.per_second);
        p99.push(load.p99);
        mib.push(rss_mib(gateway.pid()));
        ended(gateway);
    };
    for _ in 0..runs() {
        one(folder, false);
        one(&Arc::new(tempfile::tempdir_in(base).unwrap()), true);
    }
}

/// Eight clients, one record each request, until it is killed: what was answered OK is in the log afterwards.
fn kill(folder: &Arc<tempfile::TempDir>, figures: &mut Figures) {
    let (mut gateway, _) = start(folder, &config());
    let stop = AtomicBool::new(false);
    let ok = Mutex::new(Vec::<(u64, Vec<u8>)>::new());
    thread::scope(|scope| {
        for _ in 0..8 {
            let client = gateway.client();
            let (stop, ok) = (&stop, &ok);
            scope.spawn(move || {
                while !stop.load(Ordering::Relaxed) {
                    let value = support::load::value();
                    let Ok(answer) = client.post(&format!("/v1/topics/{TOPIC}"), support::JSON, &value) else {
                        break;
                    };
                    assert_eq!(answer.status, 202, "{answer:?}");
                    let seq = answer.json()["first_seq"].as_u64().unwrap();
                    ok.lock().unwrap().push((seq, value));
                }
            });
        }
        thread::sleep(Duration::from_secs(3));
        gateway.sigkill();
        stop.store(true, Ordering::Relaxed);
    });
    drop(gateway);
    let (gateway, seconds) = start(folder, &config());
    figures.killed_ok_ms.push(seconds * 1e3);
    ended(gateway);
    let mut ok = ok.into_inner().unwrap();
    ok.sort();
    figures.killed_records += ok.len() as u64;
    assert!(ok.len() > 1000, "only {} records", ok.len());
    let wal = common::log::open(&folder.path().join("wal"), true);
    let mut reader = wal.log().reader(ok[0].0);
    let mut expected = ok.iter().peekable();
    while expected.peek().is_some() {
        let chunk = match reader.read(1 << 20).unwrap() {
            Read::Records(chunk) => chunk,
            other => panic!("{other:?} before {:?}", expected.peek()),
        };
        for (seq, record) in chunk.records() {
            if expected.peek().is_some_and(|(next, _)| *next == seq) {
                let (_, value) = expected.next().unwrap();
                assert_eq!(record.unwrap().value, Some(value.as_slice()), "sequence {seq}");
            }
        }
    }
    wal.close().unwrap();
}

/// Runs `tidegate wal ARGUMENTS`, which finds no damage: MB of files a second, and the most memory that it had.
fn verb(arguments: &[&str], bytes: u64) -> (f64, f64) {
    let began = Instant::now();
    let mut child = Command::new(BINARY)
        .arg("wal")
        .args(arguments)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let mut most: f64 = 0.0;
    let status = loop {
        most = most.max(rss_mib(child.id()));
        if let Some(status) = child.try_wait().unwrap() {
            break status;
        }
        thread::sleep(Duration::from_millis(5));
    };
    assert!(status.success(), "tidegate wal {arguments:?}: {status}");
    (bytes as f64 / 1e6 / began.elapsed().as_secs_f64(), most)
}

fn verbs(base: &Path, wal: &Path, figures: &mut Figures) {
    let bytes = size(wal);
    let from = wal.to_str().unwrap();
    // Of a big one the rate of one run is the rate of many small ones.
    let runs = if figures.gb > 1.0 { 1 } else { runs() };
    for _ in 0..runs {
        forget(wal);
        let (rate, mib) = verb(&["verify", "--wal", from], bytes);
        figures.verify.push(rate);
        figures.verify_mib.push(mib);
        if figures.gb <= SALVAGE_GB_MAX {
            forget(wal);
            let to = tempfile::tempdir_in(base).unwrap();
            let new = to.path().join("new");
            let (rate, mib) = verb(&["salvage", "--wal", from, "--to", new.to_str().unwrap()], bytes);
            figures.salvage.push(rate);
            figures.salvage_mib.push(mib);
        }
    }
}

/// A real broker that keeps a gigabyte or so, for a minute at most.
fn drain(folder: &Arc<tempfile::TempDir>) -> Drain {
    let kafka = Kafka::private_with("log.retention.check.interval.ms=1000");
    let settings = [
        ("retention.bytes", "500000000"),
        ("segment.bytes", "100000000"),
        ("file.delete.delay.ms", "1000"),
    ];
    kafka.create_topic(TOPIC, 1, &settings);
    let mut config = config();
    config.set("kafka.bootstrap_servers", kafka.bootstrap());
    let wal = folder.path().join("wal");
    let before = size(&wal);
    let (gateway, _) = start(folder, &config);
    let mut scrape: f64 = 0.0;
    let mut marks = || {
        let began = Instant::now();
        let answer = support::poll("the admin listener answers", LIMIT, || gateway.admin("/metrics").ok());
        scrape = scrape.max(began.elapsed().as_secs_f64());
        let metrics = support::gateway::parse_metrics(&answer.body);
        let of = |name: &str| support::gateway::sum(&metrics, name);
        (of("tidegate_wal_acked_sequence"), of("tidegate_wal_committed_sequence"))
    };
    // From its first ack on: a client needs a moment to reach its Kafka.
    let first = marks().0;
    support::wait_until("the first ack", LIMIT, || marks().0 > first);
    let (began, first) = (Instant::now(), marks().0);
    let mut points = vec![(0.0, first)];
    let mut most_mib: f64 = 0.0;
    loop {
        thread::sleep(Duration::from_millis(200));
        most_mib = most_mib.max(rss_mib(gateway.pid()));
        let (acked, committed) = marks();
        points.push((began.elapsed().as_secs_f64(), acked));
        if acked >= committed || began.elapsed() >= DRAIN_MAX {
            break;
        }
    }
    let (seconds, last) = *points.last().unwrap();
    let at = |share: f64| *points.iter().find(|(at, _)| *at >= seconds * share).unwrap();
    let third = |n: f64| {
        let (from, to) = (at(n / 3.0), at((n + 1.0) / 3.0));
        (to.1 - from.1) / (to.0 - from.0)
    };
    gateway.terminate();
    let mb = before.saturating_sub(size(&wal)) as f64 / 1e6;
    drop(gateway);
    Drain {
        thirds: [third(0.0), third(1.0), third(2.0)],
        mb_per_second: mb / seconds,
        records: (last - first) as u64,
        seconds,
        most_mib,
        scrape,
    }
}

fn free_bytes(path: &Path) -> u64 {
    let stat = rustix::fs::statvfs(path).unwrap();
    stat.f_bavail * stat.f_frsize
}

/// `None`: there is no space for it.
fn measure(base: &Path, folder: &Arc<tempfile::TempDir>, gb: f64) -> Option<Figures> {
    let wal = folder.path().join("wal");
    let mut figures = Figures {
        gb,
        ..Figures::default()
    };
    let (before, bytes) = (size(&wal), (gb * GB as f64) as u64);
    let copies = if gb <= SALVAGE_GB_MAX { 2 } else { 1 };
    let needed = copies * bytes + FREE_BYTES_MIN - before.min(bytes);
    let free = free_bytes(base);
    if free < needed {
        println!(
            "{gb} GB: left out; it takes {} GB more, and {} are free",
            needed / GB,
            free / GB
        );
        return None;
    }
    let began = Instant::now();
    figures.records = fill(&wal, bytes, 0);
    let filled = (size(&wal) - before) as f64 / 1e6;
    println!(
        "{gb} GB: {:.1} million records, {:.0} bytes on disk of each; filled at {:.0} MB/s",
        figures.records as f64 / 1e6,
        size(&wal) as f64 / figures.records as f64,
        filled / began.elapsed().as_secs_f64()
    );
    let step = |name: &str| eprintln!("{gb} GB, {:.0} s: {name}", began.elapsed().as_secs_f64());
    step("starts");
    starts(folder, &mut figures);
    step("rates");
    rates(base, folder, &mut figures);
    step("kill");
    for _ in 0..runs() {
        kill(folder, &mut figures);
    }
    step("verify, salvage");
    verbs(base, &wal, &mut figures);
    step("drain");
    figures.drain = drain(folder);
    // The tables come at the end, which a later size may not reach.
    eprintln!("{figures:?}");
    Some(figures)
}

fn print(all: &[Figures]) {
    let rows = |what: fn(&Figures) -> &[f64]| -> Vec<Row> {
        let rows = all.iter().filter(|figures| !what(figures).is_empty());
        let row = |figures: &Figures| Row {
            name: format!("{} GB", figures.gb),
            figures: what(figures).to_vec(),
        };
        rows.map(row).collect()
    };
    let limit = format!("{} GB", all[0].gb);
    print_table("Opening the log, from the disk", "ms", &rows(|f| &f.open_ms), &limit);
    print_table(
        "From exec to the first record answered OK",
        "ms",
        &rows(|f| &f.first_ok_ms),
        &limit,
    );
    print_table(
        "The same after a SIGKILL under load",
        "ms",
        &rows(|f| &f.killed_ok_ms),
        &limit,
    );
    for figures in all {
        let (gb, checked) = (figures.gb, figures.killed_records);
        println!("\n{gb} GB: of {checked} records answered OK before the kills, 0 are lost or changed.");
    }
    print_table(
        "Resident memory at rest, Kafka away",
        "MiB",
        &rows(|f| &f.idle_mib),
        &limit,
    );
    for figures in all {
        let pair = |one: &[f64], empty: &[f64]| {
            let name = format!("{} GB", figures.gb);
            let figures = one.to_vec();
            let empty = empty.to_vec();
            [
                Row {
                    name: "an empty log".into(),
                    figures: empty,
                },
                Row { name, figures },
            ]
        };
        let title = |what: &str| format!("{what}, 100 connections, {} GB", figures.gb);
        let taken = pair(&figures.taken, &figures.taken_empty);
        print_table(&title("POST, keep-alive"), "requests/s", &taken, "an empty log");
        let p99 = pair(&figures.p99, &figures.p99_empty);
        print_table(&title("Answer, 99th percentile"), "ms", &p99, "an empty log");
        let memory = pair(&figures.load_mib, &figures.load_mib_empty);
        print_table(&title("Resident memory after the run"), "MiB", &memory, "an empty log");
    }
    for figures in all {
        let pairs = figures.taken.iter().zip(&figures.taken_empty);
        let ratios: Vec<f64> = pairs.map(|(taken, empty)| taken / empty).collect();
        let (least, median, most) = spread(&ratios);
        println!(
            "\n{} GB: requests/s to those of the empty log right after: {least:.2}, {median:.2}, {most:.2}",
            figures.gb
        );
    }
    let head = "backlog|records/s, first third|second|last|MB of files/s|records|seconds|MiB at most|slowest scrape, s";
    let lines: Vec<Vec<String>> = all
        .iter()
        .map(|figures| {
            let drain = &figures.drain;
            let [first, second, last] = drain.thirds;
            let numbers = [
                first,
                second,
                last,
                drain.mb_per_second,
                drain.records as f64,
                drain.seconds,
            ];
            let numbers = numbers.into_iter().chain([drain.most_mib, drain.scrape]).map(number);
            [format!("{} GB", figures.gb)].into_iter().chain(numbers).collect()
        })
        .collect();
    let head: Vec<&str> = head.split('|').collect();
    table("Drain into a real Kafka, for a minute at most", &head, &lines);
    print_table(
        "wal verify, from the disk",
        "MB of files/s",
        &rows(|f| &f.verify),
        &limit,
    );
    print_table(
        "wal salvage, from the disk",
        "MB of files/s",
        &rows(|f| &f.salvage),
        &limit,
    );
    print_table("Memory of wal verify", "MiB", &rows(|f| &f.verify_mib), &limit);
    print_table("Memory of wal salvage", "MiB", &rows(|f| &f.salvage_mib), &limit);
}

fn main() {
    common::print_machine_for(runs());
    let sizes = std::env::var("TIDEGATE_BENCH_GB").unwrap_or_else(|_| "1".to_owned());
    let sizes: Vec<f64> = sizes.split(',').map(|size| size.trim().parse().unwrap()).collect();
    let base = std::env::var_os("TIDEGATE_BENCH_DIR").map_or_else(|| "target".into(), PathBuf::from);
    let base = base.canonicalize().unwrap();
    // Removed at the end, also when that is a panic.
    let folder = Arc::new(tempfile::tempdir_in(&base).unwrap());
    let all: Vec<Figures> = sizes.iter().map_while(|gb| measure(&base, &folder, *gb)).collect();
    print(&all);
}
