//! Small machines: a gateway with one core and 256 MiB, on disks whose fsync takes 10 and 50 ms, and behind a line of
//! 256 and 64 kbit/s; as shipped, and with what docs/small.md recommends.
//!
//! `cargo bench --bench small`. Needs wrk, cc, taskset, prlimit, unshare and tc (Debian: wrk, gcc, util-linux, iproute2), the
//! right to make a network namespace, and the tests' Kafka (`./tests/run` fetches it).
//!
//! The memory is limited by `prlimit --data`: all that the process may write to and shares with nobody, the stacks of its threads
//! among it, whether it is resident or not. The page cache is not limited. The slow disk is slow_sync.c. The line is a token bucket
//! on the loopback device of a network namespace in which all of this runs, with packets of an Ethernet's size; Kafka and the load
//! generator have the other core.
#![allow(missing_docs, dead_code, unused_imports, unused_macros)]
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)]

mod common;
mod gateways;
#[path = "../tests/it/support/mod.rs"]
mod support;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use common::{number, pid_in};
use gateways::{TOPIC, fill, size, start, table, wrk};
use support::gateway::{Config, Gateway, NOWHERE, sum};
use support::kafka::Kafka;

/// Says that this process is in the namespace.
const INSIDE: &str = "TIDEGATE_BENCH_INSIDE";
const OWN_CORE: &str = "1";
const OTHER_CORE: &[&str] = &["taskset", "-c", "0"];
const LINES_KBIT: [u32; 2] = [256, 64];
const LINE_TIME: Duration = Duration::from_secs(90);
const LINE_RECORDS: u64 = 100_000;
const NEAR_RECORDS: u64 = 1_000_000;
const LIMIT: Duration = Duration::from_secs(120);
/// What an fsync takes longer, ms, and what is written in a second at most, KiB; 0: as much as this machine's disk takes.
const DISKS: [(&str, u32, u32); 4] = [
    ("this machine's", 0, 0),
    ("fsync + 10 ms", 10, 0),
    ("fsync + 50 ms", 50, 0),
    ("+ 50 ms, 2 MiB/s", 50, 2048),
];
const SETUPS: [&str; 2] = ["as shipped", "recommended"];

/// The first `toml` block of docs/small.md.
fn recommended() -> toml::Table {
    let page = include_str!("../docs/small.md");
    let block = page.split("```toml\n").nth(1).and_then(|rest| rest.split("```").next());
    block.expect("a block").parse().expect("TOML")
}

fn config(setup: &str, bootstrap: &str) -> Config {
    let mut config = Config::new(bootstrap);
    let sections = if setup == SETUPS[1] {
        recommended()
    } else {
        toml::Table::new()
    };
    for (section, keys) in sections {
        for (key, value) in keys.as_table().unwrap().clone() {
            config.set(&format!("{section}.{key}"), value);
        }
    }
    let memory = format!("--data={}", 256 << 20);
    config.within(&["taskset", "-c", OWN_CORE, "prlimit", &memory]);
    config
}

fn peak_mib(gateway: &Gateway) -> f64 {
    gateway.peak_memory_bytes() as f64 / (1 << 20) as f64
}

fn folder() -> Arc<tempfile::TempDir> {
    let base = std::env::var_os("TIDEGATE_BENCH_DIR").map_or_else(|| "target".into(), PathBuf::from);
    Arc::new(tempfile::tempdir_in(base.canonicalize().unwrap()).unwrap())
}

fn slow_sync(scratch: &Path) -> PathBuf {
    let library = scratch.join("slow_sync.so");
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("benches/slow_sync.c");
    let mut cc = Command::new("cc");
    let built = cc.args(["-O1", "-shared", "-fPIC", "-o"]).arg(&library).arg(source);
    assert!(
        built
            .args(["-ldl", "-lpthread"])
            .status()
            .expect("cc is needed")
            .success()
    );
    library
}

/// Mean of a histogram, ms.
fn mean_ms(gateway: &Gateway, name: &str) -> f64 {
    let metrics = gateway.metrics();
    1e3 * sum(&metrics, &format!("{name}_sum")) / sum(&metrics, &format!("{name}_count"))
}

/// Kafka away, a new log for each row: clients of one record each; then eight that send the largest body at once.
fn disks(scratch: &Path) {
    let library = slow_sync(scratch);
    let (mut loads, mut bodies) = (Vec::new(), Vec::new());
    for (disk, delay_ms, kib_per_second) in DISKS {
        for setup in SETUPS {
            let mut config = config(setup, NOWHERE);
            config
                .environment("LD_PRELOAD", library.to_str())
                .environment("SLOW_SYNC_US", Some(&(delay_ms * 1000).to_string()))
                .environment("SLOW_SYNC_KIB_PER_SECOND", Some(&kib_per_second.to_string()));
            for clients in [1, 10, 100] {
                let (gateway, _) = start(&folder(), &config);
                let load = wrk(&gateway, clients, 5, OTHER_CORE);
                let fsync_ms = mean_ms(&gateway, "tidegate_wal_fsync_seconds");
                assert!(fsync_ms >= f64::from(delay_ms), "the disk is not slow: {fsync_ms} ms");
                let status = gateway.status();
                let mut row = vec![disk.to_owned(), setup.to_owned(), clients.to_string()];
                row.extend([load.per_second, load.p50, load.p99, load.failed].map(number));
                row.push(number(fsync_ms));
                row.push(number(mean_ms(&gateway, "tidegate_wal_commit_seconds")));
                row.push(number(status["wal"]["commit_ms_max"].as_f64().unwrap_or(f64::NAN)));
                row.push(number(peak_mib(&gateway)));
                loads.push(row);
            }
            bodies.push(large(setup, disk, &config));
            if setup == SETUPS[0] {
                // What it would need.
                config.within(&["taskset", "-c", OWN_CORE]);
                bodies.push(large("as shipped, memory not limited", disk, &config));
            }
        }
    }
    let head = "disk|setup|clients|requests/s|p50 ms|p99 ms|failed|fsync ms|commit ms|slowest commit ms|MiB at most";
    table("One record a request", &head.split('|').collect::<Vec<_>>(), &loads);
    let head =
        "disk|setup|bytes of each|taken|refused|no answer|slowest answer s|slowest commit ms|MiB at most|runs on";
    table(
        "Eight of the largest bodies at once, three times",
        &head.split('|').collect::<Vec<_>>(),
        &bodies,
    );
}

/// Records of 512 KiB that nothing makes smaller, as many as a body may have.
fn large(setup: &str, disk: &str, config: &Config) -> Vec<String> {
    let mut random = support::Random::new();
    let body_bytes = if setup == SETUPS[1] { 1 << 20 } else { 16 << 20 };
    let records = (body_bytes - 1) / ((512 << 10) + 16);
    let line = |_| format!("{{\"n\":\"{}\"}}\n", random.text(512 << 10));
    let body: String = (0..records).map(line).collect();
    assert!(body.len() <= body_bytes);
    let (gateway, _) = start(&folder(), config);
    let path = format!("/v1/topics/{TOPIC}");
    let (mut taken, mut refused, mut silent, mut slowest) = (0, 0, 0, 0.0_f64);
    for _ in 0..3 {
        let answers: Vec<_> = thread::scope(|scope| {
            let post = || {
                let began = Instant::now();
                let answer = gateway.client().post(&path, "application/x-ndjson", body.as_bytes());
                (answer.map(|answer| answer.status), began.elapsed().as_secs_f64())
            };
            let clients: Vec<_> = (0..8).map(|_| scope.spawn(post)).collect();
            clients.into_iter().map(|client| client.join().unwrap()).collect()
        });
        for (status, seconds) in answers {
            slowest = slowest.max(seconds);
            match status {
                Ok(202) => taken += 1,
                Ok(_) => refused += 1,
                Err(_) => silent += 1,
            }
        }
    }
    let state = fs::read_to_string(format!("/proc/{}/stat", gateway.pid())).unwrap_or_default();
    let runs_on = !state.contains(") Z ");
    let mut row = vec![disk.to_owned(), setup.to_owned(), body.len().to_string()];
    row.extend([taken, refused, silent].map(|count| count.to_string()));
    row.push(number(slowest));
    let (commit, peak) = match runs_on {
        true => {
            let commit = gateway.status()["wal"]["commit_ms_max"].as_f64().unwrap_or(f64::NAN);
            (number(commit), number(peak_mib(&gateway)))
        }
        false => {
            eprintln!("{setup}, {disk}: the gateway ended:\n{}", gateway.log());
            ("-".to_owned(), "-".to_owned())
        }
    };
    row.extend([commit, peak, if runs_on { "yes" } else { "no" }.to_owned()]);
    row
}

fn tc(arguments: &str) {
    let status = Command::new("tc").args(arguments.split(' ')).status();
    assert!(
        status.expect("tc is needed (Debian: iproute2)").success(),
        "tc {arguments}"
    );
}

fn acked(gateway: &Gateway) -> f64 {
    gateway.metric("tidegate_wal_acked_sequence")
}

/// A broker with the other core.
fn kafka() -> Kafka {
    let kafka = Kafka::private();
    kafka.create_topic(TOPIC, 1, &[]);
    let broker = pid_in(kafka.partition_folder(TOPIC, 0).ancestors().nth(2).unwrap());
    let mut taskset = Command::new("taskset");
    let pinned = taskset.args(["-acp", "0", &broker.to_string()]).stdout(Stdio::null());
    assert!(pinned.status().unwrap().success());
    kafka
}

/// A backlog to a Kafka that is near.
fn near(setup: &str) -> Vec<String> {
    let (kafka, folder) = (kafka(), folder());
    let records = fill(&folder.path().join("wal"), 0, NEAR_RECORDS);
    let (gateway, _) = start(&folder, &config(setup, kafka.bootstrap()));
    let (began, first) = (Instant::now(), acked(&gateway));
    gateway.wait_drained(LIMIT);
    let per_second = (acked(&gateway) - first) / began.elapsed().as_secs_f64();
    assert_eq!(kafka.count(TOPIC), Some(records + 1));
    vec![setup.to_owned(), number(per_second), number(peak_mib(&gateway))]
}

/// A backlog over the line for some time, then without it to its end.
fn far(kbit: u32, setup: &str) -> Vec<String> {
    let (kafka, folder) = (kafka(), folder());
    let waiting = fill(&folder.path().join("wal"), 0, LINE_RECORDS);
    let (gateway, _) = {
        let config = config(setup, kafka.bootstrap());
        tc(&format!(
            "qdisc add dev lo root tbf rate {kbit}kbit burst 8kb limit 32kb"
        ));
        start(&folder, &config)
    };
    let data = kafka.partition_folder(TOPIC, 0);
    let (before, first, began) = (size(&data), acked(&gateway), Instant::now());
    // Meanwhile nothing else uses the line.
    thread::sleep(LINE_TIME);
    let (bytes, records) = (size(&data) - before, acked(&gateway) - first);
    let seconds = began.elapsed().as_secs_f64();
    let log = gateway.log();
    let silences = log.lines().filter(|line| line.contains("Kafka unreachable")).count();
    tc("qdisc del dev lo root");
    gateway.wait_drained(LIMIT);
    let messages = kafka.read_topic(TOPIC, false);
    let different = support::topics::without_repeats(&messages).len();
    let mut row = vec![format!("{kbit} kbit/s"), setup.to_owned()];
    row.extend([
        number(bytes as f64 / 1024.0 / seconds),
        number(bytes as f64 * 8.0 / seconds / f64::from(kbit * 1000)),
        number(records / seconds),
        silences.to_string(),
        number(gateway.metric("tidegate_forward_retries_total")),
        (waiting + 1 - different as u64).to_string(),
        (messages.len() - different).to_string(),
        number(peak_mib(&gateway)),
    ]);
    eprintln!("{row:?}\n{log}");
    row
}

fn drains() {
    let head = ["setup", "records/s", "MiB at most"];
    let title = format!("A backlog of {NEAR_RECORDS} records, Kafka near");
    table(&title, &head, &SETUPS.map(near));
    let head =
        "line|setup|KiB/s into Kafka|of the line|records/s acknowledged|Kafka away|retries|lost|repeated|MiB at most";
    let title = format!(
        "A backlog of {LINE_RECORDS} records, Kafka behind a line, {} s",
        LINE_TIME.as_secs()
    );
    let rows = LINES_KBIT.map(|kbit| SETUPS.map(|setup| far(kbit, setup)));
    table(&title, &head.split('|').collect::<Vec<_>>(), &rows.concat());
}

fn main() {
    if std::env::var_os(INSIDE).is_none() {
        let mut unshare = Command::new("unshare");
        if !support::is_root() {
            unshare.args(["--user", "--map-root-user"]);
        }
        unshare.args(["--net", "sh", "-c", r#"ip link set lo mtu 1500 up && exec "$0" "$@""#]);
        let own = std::env::current_exe().unwrap();
        let status = unshare
            .arg(own)
            .args(std::env::args().skip(1))
            .env(INSIDE, "1")
            .status();
        assert!(status.expect("unshare is needed (Debian: util-linux)").success());
        return;
    }
    common::print_machine_for(1);
    let scratch = tempfile::tempdir().unwrap();
    let only = |name: &str| std::env::args().any(|argument| argument == name);
    if !only("drains") {
        disks(scratch.path());
    }
    if !only("disks") {
        drains();
    }
}
