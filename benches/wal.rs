//! Appending to the WAL against its limit: a plain file with the same group commit and fdatasync.
//!
//! `cargo bench --bench wal`; alternating runs, min / median / max. `TIDEGATE_BENCH_DIR` says on which disk.
#![allow(
    missing_docs,
    dead_code,
    unused_must_use,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing
)]

mod common;

use std::fs::File;
use std::io::Write;
use std::path::Path;
use std::sync::{Arc, Condvar, Mutex};
use std::time::{Duration, Instant};

use common::Goal::AtLeast;
use common::{Row, log, print_goal, ratio};
use tidegate::wal::Batch;
use tokio::sync::oneshot;

/// How many append at a time, and what is to be reached of the plain file.
const CLIENTS: [(u64, f64); 3] = [(1, 0.9), (100, 0.9), (1000, 0.9)];

/// The limit: length, CRC and bytes of each record to one file, one fdatasync for all that wait.
struct RawLog {
    waiting: Mutex<(Vec<u8>, Vec<oneshot::Sender<()>>, bool)>,
    ready: Condvar,
}

impl RawLog {
    fn start(path: &Path) -> Arc<Self> {
        let log = Arc::new(Self {
            waiting: Mutex::default(),
            ready: Condvar::new(),
        });
        let mut file = File::create(path).unwrap();
        let writer = Arc::clone(&log);
        std::thread::spawn(move || {
            loop {
                let mut waiting = writer.waiting.lock().unwrap();
                while waiting.1.is_empty() && !waiting.2 {
                    waiting = writer.ready.wait(waiting).unwrap();
                }
                if waiting.1.is_empty() {
                    return;
                }
                let (bytes, answers) = (std::mem::take(&mut waiting.0), std::mem::take(&mut waiting.1));
                drop(waiting);
                file.write_all(&bytes).unwrap();
                file.sync_data().unwrap();
                for answer in answers {
                    answer.send(());
                }
            }
        });
        log
    }

    fn append(&self, bytes: &[u8]) -> oneshot::Receiver<()> {
        let (answer, done) = oneshot::channel();
        let mut waiting = self.waiting.lock().unwrap();
        waiting.0.extend_from_slice(&(bytes.len() as u32).to_le_bytes());
        waiting.0.extend_from_slice(&crc32c::crc32c(bytes).to_le_bytes());
        waiting.0.extend_from_slice(bytes);
        waiting.1.push(answer);
        drop(waiting);
        self.ready.notify_one();
        done
    }
}

struct Figures {
    per_second: f64,
    handed_per_accepted: f64,
    stored_per_accepted: f64,
    p50_ms: f64,
    p99_ms: f64,
    cpu_us: f64,
}

/// So many clients, each waiting for its record to be on disk before it sends the next.
fn drive<F, Fut>(clients: u64, append: F) -> Figures
where
    F: Fn(u64) -> Fut + Send + Sync + Clone + 'static,
    Fut: Future<Output = u64> + Send,
{
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .unwrap();
    let me = std::process::id();
    let written = common::bytes_written(me);
    let spent = common::cpu_seconds(me);
    let began = Instant::now();
    let run = Duration::from_secs(common::seconds().into());
    let mut tasks = Vec::new();
    for client in 0..clients {
        let append = append.clone();
        tasks.push(runtime.spawn(async move {
            let (mut times, mut accepted) = (Vec::new(), 0u64);
            let mut i = client;
            while began.elapsed() < run {
                let sent = Instant::now();
                accepted += append(i).await;
                times.push(sent.elapsed().as_secs_f64() * 1e3);
                i += clients;
            }
            (times, accepted)
        }));
    }
    let (mut times, mut accepted) = (Vec::new(), 0);
    for task in tasks {
        let (client_times, bytes) = runtime.block_on(task).unwrap();
        times.extend(client_times);
        accepted += bytes;
    }
    let (handed, stored) = common::bytes_written(me);
    let spent = common::cpu_seconds(me) - spent;
    let seconds = began.elapsed().as_secs_f64();
    times.sort_by(f64::total_cmp);
    Figures {
        per_second: times.len() as f64 / seconds,
        handed_per_accepted: (handed - written.0) as f64 / accepted as f64,
        stored_per_accepted: (stored - written.1) as f64 / accepted as f64,
        p50_ms: times[times.len() / 2],
        p99_ms: times[times.len() * 99 / 100],
        cpu_us: spent * 1e6 / times.len() as f64,
    }
}

fn run_wal(folder: &Path, clients: u64, compression: bool) -> Figures {
    let wal = log::open(&folder.join("wal"), compression);
    let appender = wal.log().clone();
    let figures = drive(clients, move |i| {
        let record = log::record("financial_pro", i);
        let bytes = record.payload_bytes() as u64;
        let mut batch = Batch::new();
        batch.push(&record);
        let commit = appender.append(batch).unwrap();
        async move {
            commit.await.unwrap();
            bytes
        }
    });
    wal.close().unwrap();
    figures
}

fn run_raw(folder: &Path, clients: u64) -> Figures {
    let raw = RawLog::start(&folder.join("raw"));
    let appender = Arc::clone(&raw);
    let figures = drive(clients, move |i| {
        let record = log::record("financial_pro", i);
        let bytes = record.payload_bytes() as u64;
        let encoded = bincode::encode_to_vec(&record, tidegate::record::ENCODING).unwrap();
        let done = appender.append(&encoded);
        async move {
            done.await.unwrap();
            bytes
        }
    });
    raw.waiting.lock().unwrap().2 = true;
    raw.ready.notify_all();
    figures
}

const RAW: &str = "raw file, group commit, fdatasync";
const LZ4: &str = "WAL, lz4";
const PLAIN: &str = "WAL, no compression";

fn main() {
    common::print_machine();
    for (clients, least) in CLIENTS {
        // What compression saves is the same whoever appends: once is enough.
        let names = if clients == 100 {
            &[RAW, LZ4, PLAIN][..]
        } else {
            &[RAW, LZ4][..]
        };
        let mut figures: Vec<Vec<Figures>> = names.iter().map(|_| Vec::new()).collect();
        for _ in 0..common::runs() {
            for (name, figures) in names.iter().zip(&mut figures) {
                let folder = common::server::folder();
                figures.push(match *name {
                    RAW => run_raw(folder.path(), clients),
                    name => run_wal(folder.path(), clients, name == LZ4),
                });
            }
        }
        let table = |title: &str, unit: &str, figure: fn(&Figures) -> f64| {
            let row = |(name, runs): (&&str, &Vec<Figures>)| Row {
                name: (*name).into(),
                figures: runs.iter().map(figure).collect(),
            };
            let rows: Vec<Row> = names.iter().zip(&figures).map(row).collect();
            common::print_table(&format!("{title}, {clients} at a time"), unit, &rows, RAW);
            rows
        };
        let rates = table("Append, one 200-byte JSON record each", "records/s", |run| {
            run.per_second
        });
        let what = format!("append to the log of a plain file with group commit, {clients} at a time");
        print_goal(&what, AtLeast(least), ratio(&rates, LZ4, RAW), "");
        table("Time to commit, median", "ms", |run| run.p50_ms);
        table("Time to commit, 99th percentile", "ms", |run| run.p99_ms);
        table("Processor time, of the clients too", "us a record", |run| run.cpu_us);
        if names.contains(&PLAIN) {
            table("Bytes written to the file per byte accepted", "ratio", |run| {
                run.handed_per_accepted
            });
            table("The same in whole pages of 4 KiB", "ratio", |run| {
                run.stored_per_accepted
            });
        }
    }
}
