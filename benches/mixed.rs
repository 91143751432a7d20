//! What it takes to accept records while Kafka is away, while it takes them at once, and while 1 GB of backlog drains beside them:
//! throughput, latency at half of it, processor time, memory, fsyncs, and what is written.
//!
//! `cargo bench --bench mixed`; needs wrk (Debian: wrk), and the Kafka that `./tests/run` fetches. `TIDEGATE_BENCH_GB` is the backlog
//! in GB of payload, 1 by default.
#![allow(missing_docs, dead_code, unused_imports, unused_macros)]
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)]

mod common;
#[path = "../tests/it/support/mod.rs"]
mod support;

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use common::Goal::{AtLeast, AtMost};
use common::open::Load;
use common::server::{NOWHERE, Server, tidegate_in};
use common::{Row, closed, log, open, print_goal, ratio, server, spread};
use support::kafka::Kafka;

const JSON: &str = "application/json";
const TOPIC: &str = "bench";
const PATH: &str = "/v1/topics/bench";
const CLIENTS: u32 = 100;
const AWAY: &str = "Kafka is away";
const AT_ONCE: &str = "Kafka takes them at once";
const DRAINING: &str = "a backlog drains beside them";
const MB_OF_MIB: f64 = 1.048_576;

/// What one run found.
struct Run {
    per_second: f64,
    p50: f64,
    p99: f64,
    idle_mib: f64,
    most_mib: f64,
    /// Processor seconds of the gateway for a million records, by what its threads do.
    cpu: BTreeMap<&'static str, f64>,
    fsyncs: f64,
    commits: f64,
    stored_per_byte: f64,
    delivered_per_second: f64,
}

const ALL: &str = "all of the gateway";

/// What a thread of this name does.
fn part(thread: &str) -> &'static str {
    match thread {
        name if name.starts_with("tokio") => "HTTP: tokio's workers",
        name if name.ends_with(" writer") => "the log: its writer",
        name if name.starts_with("sled") => "the log: sled's threads",
        name if name.starts_with("rdk") => "librdkafka",
        "forwarder" | "kafka reports" => "the forwarder",
        _ => "the rest",
    }
}

struct Plan<'a> {
    script: &'a Path,
    bodies: &'a [Vec<u8>],
    gigabytes: f64,
    lasting: Duration,
}

impl Plan<'_> {
    /// Loads the gateway as fast as it answers, then at `half` of that (of its own, when it is not given).
    fn measure(&self, server: &Server, half: Option<f64>) -> Run {
        let idle_mib = common::rss_mib(server.pid());
        let names = [
            "tidegate_wal_fsync_seconds_count",
            "tidegate_wal_commit_seconds_count",
            "tidegate_ingest_bytes_total",
            "tidegate_forward_records_total",
        ];
        let state = || {
            let metrics = names.map(|name| server.metric(name));
            let (_, stored) = common::bytes_written(server.pid());
            (metrics, stored, common::cpu_seconds_by_thread(server.pid()))
        };
        let is_over = AtomicBool::new(false);
        std::thread::scope(|scope| {
            let most_mib = scope.spawn(|| {
                let mut most_mib: f64 = 0.0;
                while !is_over.load(Ordering::Relaxed) {
                    most_mib = most_mib.max(common::rss_mib(server.pid()));
                    std::thread::sleep(Duration::from_millis(50));
                }
                most_mib
            });
            let before = state();
            let began = Instant::now();
            let figures = closed::wrk(server, PATH, CLIENTS, self.script);
            let seconds = began.elapsed().as_secs_f64();
            let after = state();
            let load = Load {
                path: PATH,
                content_type: JSON,
                bodies: self.bodies,
                per_second: half.unwrap_or(figures.per_second / 2.0),
                lasting: self.lasting,
                keep_alive: Some(CLIENTS as usize),
            };
            let latencies = open::run(server, &load);
            is_over.store(true, Ordering::Relaxed);
            let [fsyncs, commits, bytes, delivered] = std::array::from_fn(|i| after.0[i] - before.0[i]);
            let mut cpu = BTreeMap::new();
            for (thread, spent) in &after.2 {
                let spent = (spent - before.2.get(thread).unwrap_or(&0.0)) / figures.requests * 1e6;
                *cpu.entry(part(thread)).or_default() += spent;
                *cpu.entry(ALL).or_default() += spent;
            }
            Run {
                per_second: figures.per_second,
                p50: latencies.percentile(50.0),
                p99: latencies.percentile(99.0),
                idle_mib,
                most_mib: most_mib.join().unwrap(),
                cpu,
                fsyncs: fsyncs / figures.requests,
                commits: commits / figures.requests,
                stored_per_byte: (after.1 - before.1) as f64 / bytes,
                delivered_per_second: delivered / seconds,
            }
        })
    }

    fn beside_a_backlog(&self, kafka: &Kafka, half: f64) -> Run {
        let folder = server::folder();
        log::fill(&folder.path().join("wal"), TOPIC, (self.gigabytes * 1e9) as u64);
        let server = tidegate_in(folder, kafka.bootstrap(), &[]);
        support::wait_until("the backlog drains", Duration::from_secs(60), || {
            server.metric("tidegate_forward_records_total") > 0.0
        });
        let run = self.measure(&server, Some(half));
        assert!(
            server.metric("tidegate_wal_backlog_records") > 0.0,
            "the backlog was drained before the load ended: TIDEGATE_BENCH_GB has to be larger, or TIDEGATE_BENCH_SECONDS smaller"
        );
        run
    }
}

fn main() {
    server::serve_if_asked();
    common::print_machine();
    let scratch = server::folder();
    let bodies: Vec<Vec<u8>> = (0..1000).map(common::json_record).collect();
    let plan = Plan {
        script: &closed::post(scratch.path(), JSON, &bodies, 1, ""),
        bodies: &bodies,
        gigabytes: common::setting("TIDEGATE_BENCH_GB", 1.0),
        lasting: Duration::from_secs(common::seconds().into()),
    };
    let kafka = Kafka::private();
    kafka.create_topic(TOPIC, 1, &[]);
    let (mut away, mut at_once, mut draining) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..common::runs() {
        let run = plan.measure(&tidegate_in(server::folder(), NOWHERE, &[]), None);
        let half = run.per_second / 2.0;
        away.push(run);
        at_once.push(plan.measure(&tidegate_in(server::folder(), kafka.bootstrap(), &[]), Some(half)));
        draining.push(plan.beside_a_backlog(&kafka, half));
    }
    drop(kafka);
    report(&away, &at_once, &draining);
}

fn report(away: &[Run], at_once: &[Run], draining: &[Run]) {
    let all = [(AWAY, away), (AT_ONCE, at_once), (DRAINING, draining)];
    let table = |title: &str, unit: &str, limit: &str, figure: fn(&Run) -> f64| {
        let row = |(name, runs): (&str, &[Run])| Row {
            name: name.into(),
            figures: runs.iter().map(figure).collect(),
        };
        let rows = all.map(row);
        common::print_table(title, unit, &rows, limit);
        rows
    };
    let most = |rows: &[Row]| {
        let medians = rows.iter().map(|row| spread(&row.figures).1);
        medians.fold(0.0, f64::max)
    };
    let title = "Records accepted, one of 200 bytes a request, 100 connections";
    let rates = table(title, "records/s", AWAY, |run| run.per_second);
    let kept = ratio(&rates, DRAINING, AWAY);
    print_goal(
        "accepted while a backlog drains, of what is without",
        AtLeast(0.7),
        kept,
        "",
    );
    table("Delivered meanwhile", "records/s", "", |run| run.delivered_per_second);
    let title = "Answer at half of what is accepted while Kafka is away, open loop, median";
    table(title, "ms", AWAY, |run| run.p50);
    let p99 = table("The same, 99th percentile", "ms", AWAY, |run| run.p99);
    let waited = ratio(&p99, DRAINING, AWAY);
    print_goal(
        "99th percentile of an answer while a backlog drains, of what it is without",
        AtMost(3.0),
        waited,
        "",
    );
    let full = table("Resident memory at full load, at its highest", "MiB", "", |run| {
        run.most_mib
    });
    print_goal(
        "resident memory at full load",
        AtMost(80.0),
        most(&full[..2]) * MB_OF_MIB,
        "MB",
    );
    print_goal(
        "resident memory at full load while 1 GB of backlog drains",
        AtMost(120.0),
        most(&full[2..]) * MB_OF_MIB,
        "MB",
    );
    let idle = table("Resident memory before any load", "MiB", "", |run| run.idle_mib);
    print_goal(
        "resident memory at rest",
        AtMost(25.0),
        most(&idle[..2]) * MB_OF_MIB,
        "MB",
    );
    let title = "Bytes that the disk was given (whole pages of 4 KiB) per byte accepted";
    let stored = table(title, "ratio", "", |run| run.stored_per_byte);
    let of_json = spread(&stored[0].figures).1;
    print_goal(
        "bytes written per byte accepted, JSON of 200 bytes, 100 at a time",
        AtMost(1.6),
        of_json,
        "",
    );
    table("fdatasyncs for 1,000 records", "fdatasyncs", "", |run| run.fsyncs * 1e3);
    table("Commits for 1,000 records", "commits", "", |run| run.commits * 1e3);
    for (name, runs) in [(AWAY, away), (AT_ONCE, at_once)] {
        let parts = runs
            .iter()
            .flat_map(|run| run.cpu.keys())
            .collect::<std::collections::BTreeSet<_>>();
        let row = |part: &&&'static str| Row {
            name: (**part).into(),
            figures: runs
                .iter()
                .map(|run| run.cpu.get(**part).copied().unwrap_or(0.0))
                .collect(),
        };
        let rows = parts.iter().map(row).filter(|row| spread(&row.figures).1 > 0.0);
        let rows: Vec<Row> = rows.collect();
        common::print_table(
            &format!("Processor time, {name}"),
            "s for 1,000,000 records",
            &rows,
            ALL,
        );
    }
}
