//! How long a durable POST takes at half of what the gateway can do: 100 kept connections, and a connection for each request, against
//! what the disk itself takes for an fdatasync, and against the same load on a server that does nothing.
//!
//! `cargo bench --bench latency`; needs wrk and ab (Debian: wrk, apache2-utils). The rate is half of what wrk (ab) has just found in
//! the same run; the load is open (`common/open.rs`), so that waiting counts. Kafka is away.
#![allow(missing_docs, dead_code, clippy::unwrap_used, clippy::indexing_slicing)]

mod common;

use std::io::Write as _;
use std::time::{Duration, Instant};

use common::Goal::AtMost;
use common::open::{Latencies, Load};
use common::server::{self, SOURCE, Server, no_op, tidegate};
use common::{Row, closed, open, print_goal, ratio};

const CONTENT_TYPE: &str = "application/json";
const DISK: &str = "fdatasync of 200 bytes, as often as the gateway commits";
const NO_OP: &str = "bare axum, at the same rate";
const DURABLE: &str = "durable POST, at half of its most";

/// Of one run: the rate, and the answers' latencies of each.
#[derive(Default)]
struct Runs {
    rate: Vec<f64>,
    commits: Vec<f64>,
    durable: Vec<Latencies>,
    no_op: Vec<Latencies>,
}

impl Runs {
    fn add(&mut self, most: f64, server: &Server, load: &mut Load) {
        load.per_second = most / 2.0;
        self.rate.push(load.per_second);
        let before = server.metric("tidegate_wal_commit_seconds_count");
        self.durable.push(open::run(server, load));
        let commits = server.metric("tidegate_wal_commit_seconds_count") - before;
        self.commits.push(commits / load.lasting.as_secs_f64());
        self.no_op.push(open::run(&no_op(), load));
    }

    fn rows(&self, figure: impl Fn(&Latencies) -> f64) -> Vec<Row> {
        let row = |name: &str, runs: &[Latencies]| Row {
            name: name.into(),
            figures: runs.iter().map(&figure).collect(),
        };
        vec![row(NO_OP, &self.no_op), row(DURABLE, &self.durable)]
    }
}

fn main() {
    server::serve_if_asked();
    waiting_counts();
    common::print_machine();
    let scratch = server::folder();
    let lasting = Duration::from_secs(common::seconds().into());
    let bodies: Vec<Vec<u8>> = (0..1000).map(common::json_record).collect();
    let post = closed::post(scratch.path(), CONTENT_TYPE, &bodies, 1, "");
    let body = scratch.path().join("body");
    std::fs::write(&body, &bodies[0]).unwrap();
    let (mut kept, mut single, mut disk) = (Runs::default(), Runs::default(), Vec::new());
    let mut load = Load {
        path: SOURCE,
        content_type: CONTENT_TYPE,
        bodies: &bodies,
        per_second: 0.0,
        lasting,
        keep_alive: None,
    };
    for _ in 0..common::runs() {
        let server = tidegate();
        let most = closed::wrk(&server, SOURCE, 100, &post).per_second;
        load.keep_alive = Some(100);
        kept.add(most, &server, &mut load);
        drop(server);
        disk.push(fdatasyncs(kept.commits[kept.commits.len() - 1], lasting));
        let server = tidegate();
        let most = closed::ab(&server, SOURCE, 10_000, CONTENT_TYPE, &body);
        load.keep_alive = None;
        single.add(most, &server, &mut load);
    }
    for (runs, how) in [
        (&kept, "100 kept connections"),
        (&single, "a connection for each request"),
    ] {
        let row = |name: &str, figures: &[f64]| Row {
            name: name.into(),
            figures: figures.to_vec(),
        };
        let rates = [
            row("requests: half of the most", &runs.rate),
            row("commits of the gateway", &runs.commits),
        ];
        common::print_table(&format!("The rate of the load, {how}"), "a second", &rates, "");
        for (title, percent) in [("median", 50.0), ("99th percentile", 99.0), ("99.9th percentile", 99.9)] {
            let mut rows = vec![Row {
                name: DISK.into(),
                figures: disk.iter().map(|times| percentile(times, percent)).collect(),
            }];
            rows.extend(runs.rows(|run| run.percentile(percent)));
            common::print_table(&format!("Answer, {title}, {how}"), "ms", &rows, DISK);
            if percent == 99.0 {
                let what = format!("99th percentile of an answer at half load, of an fdatasync's, {how}");
                print_goal(&what, AtMost(2.0), ratio(&rows, DURABLE, DISK), "");
            }
        }
        common::print_table(
            &format!("Connections at a time, at most, {how}"),
            "connections",
            &runs.rows(|run| run.connections as f64),
            "",
        );
        common::print_table(
            &format!("Processor time of the load generator, {how}"),
            "us a request",
            &runs.rows(|run| run.cpu),
            "",
        );
    }
}

/// The load generator is checked first: of a server that stands still for 0.4 s of 2 s, a tenth of the answers at least has to be
/// later than 0.15 s, though only those under way when it stopped were sent to it before.
fn waiting_counts() {
    let server = no_op();
    let load = Load {
        path: SOURCE,
        content_type: CONTENT_TYPE,
        bodies: &[common::json_record(0)],
        per_second: 1000.0,
        lasting: Duration::from_secs(2),
        keep_alive: Some(10),
    };
    let latencies = std::thread::scope(|scope| {
        let stalled = scope.spawn(|| {
            std::thread::sleep(Duration::from_millis(800));
            server.signal("-STOP");
            std::thread::sleep(Duration::from_millis(400));
            server.signal("-CONT");
        });
        let latencies = open::run(&server, &load);
        stalled.join().unwrap();
        latencies
    });
    let (p50, p90) = (latencies.percentile(50.0), latencies.percentile(90.0));
    assert!(
        p50 < 150.0 && p90 > 150.0,
        "the generator leaves waiting out: {p50} ms, {p90} ms"
    );
}

/// Appends 200 bytes and waits for the disk, so often a second or as often as it goes; how long each wait was, ascending, ms.
fn fdatasyncs(per_second: f64, lasting: Duration) -> Vec<f64> {
    let mut file = tempfile::tempfile_in(server::base()).unwrap();
    let mut times = Vec::new();
    let began = Instant::now();
    while began.elapsed() < lasting {
        let due = began + Duration::from_secs_f64(times.len() as f64 / per_second);
        std::thread::sleep(due.saturating_duration_since(Instant::now()));
        file.write_all(&[b'x'; 200]).unwrap();
        let asked = Instant::now();
        file.sync_data().unwrap();
        times.push(asked.elapsed().as_secs_f64() * 1e3);
    }
    times.sort_by(f64::total_cmp);
    times
}

fn percentile(ascending: &[f64], percent: f64) -> f64 {
    ascending[((ascending.len() as f64 * percent / 100.0) as usize).min(ascending.len() - 1)]
}
