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

use common::Row;
use tidegate::record::Record;
use tidegate::wal::{Batch, Options, Retain, Wal};
use tokio::sync::oneshot;

const CLIENTS: u64 = 100;
const RUN: Duration = Duration::from_secs(4);

fn record(i: u64) -> Record {
    Record {
        topic: "financial_pro".into(),
        key: None,
        value: Some(common::json_record(i)),
        headers: vec![("content-type".into(), b"application/json".to_vec())],
        received_ms: 1_767_225_600_000 + i as i64,
        origin: None,
        idempotency: None,
    }
}

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
}

/// `CLIENTS` clients, each waiting for its record to be on disk before it sends the next.
fn drive<F, Fut>(append: F) -> Figures
where
    F: Fn(u64) -> Fut + Send + Sync + Clone + 'static,
    Fut: Future<Output = u64> + Send,
{
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .unwrap();
    let written = common::bytes_written();
    let began = Instant::now();
    let mut clients = Vec::new();
    for client in 0..CLIENTS {
        let append = append.clone();
        clients.push(runtime.spawn(async move {
            let (mut times, mut accepted) = (Vec::new(), 0u64);
            let mut i = client;
            while began.elapsed() < RUN {
                let sent = Instant::now();
                accepted += append(i).await;
                times.push(sent.elapsed().as_secs_f64() * 1e3);
                i += CLIENTS;
            }
            (times, accepted)
        }));
    }
    let (mut times, mut accepted) = (Vec::new(), 0);
    for client in clients {
        let (client_times, bytes) = runtime.block_on(client).unwrap();
        times.extend(client_times);
        accepted += bytes;
    }
    let (handed, stored) = common::bytes_written();
    let seconds = began.elapsed().as_secs_f64();
    times.sort_by(f64::total_cmp);
    Figures {
        per_second: times.len() as f64 / seconds,
        handed_per_accepted: (handed - written.0) as f64 / accepted as f64,
        stored_per_accepted: (stored - written.1) as f64 / accepted as f64,
        p50_ms: times[times.len() / 2],
        p99_ms: times[times.len() * 99 / 100],
    }
}

fn run_wal(folder: &Path, compression: bool) -> Figures {
    let wal = Wal::open(Options {
        path: folder.join("wal"),
        bytes_max: 1 << 40,
        free_bytes_min: 0,
        generation_bytes: 64 << 20,
        compression,
        retain: Retain::Off,
        linger: Duration::ZERO,
        keys: Default::default(),
    })
    .unwrap();
    let log = wal.log().clone();
    let figures = drive(move |i| {
        let record = record(i);
        let bytes = record.payload_bytes() as u64;
        let mut batch = Batch::new();
        batch.push(&record);
        let commit = log.append(batch).unwrap();
        async move {
            commit.await.unwrap();
            bytes
        }
    });
    wal.close().unwrap();
    figures
}

fn run_raw(folder: &Path) -> Figures {
    let log = RawLog::start(&folder.join("raw"));
    let appender = Arc::clone(&log);
    let figures = drive(move |i| {
        let record = record(i);
        let bytes = record.payload_bytes() as u64;
        let encoded = bincode::encode_to_vec(&record, tidegate::record::ENCODING).unwrap();
        let done = appender.append(&encoded);
        async move {
            done.await.unwrap();
            bytes
        }
    });
    log.waiting.lock().unwrap().2 = true;
    log.ready.notify_all();
    figures
}

fn main() {
    common::print_machine();
    let base = std::env::var_os("TIDEGATE_BENCH_DIR").map_or_else(|| "target".into(), std::path::PathBuf::from);
    let names = ["raw file, group commit, fdatasync", "WAL, lz4", "WAL, no compression"];
    let mut figures: Vec<Vec<Figures>> = names.iter().map(|_| Vec::new()).collect();
    for _ in 0..common::runs() {
        for (contender, figures) in figures.iter_mut().enumerate() {
            let folder = tempfile::tempdir_in(&base).unwrap();
            figures.push(match contender {
                0 => run_raw(folder.path()),
                n => run_wal(folder.path(), n == 1),
            });
        }
    }
    let table = |title: &str, unit: &str, figure: fn(&Figures) -> f64| {
        let rows: Vec<Row> = names
            .iter()
            .zip(&figures)
            .map(|(name, runs)| Row {
                name: (*name).into(),
                figures: runs.iter().map(figure).collect(),
            })
            .collect();
        common::print_table(title, unit, &rows, names[0]);
    };
    table(
        "Append, 100 clients, one 200-byte JSON record each",
        "records/s",
        |run| run.per_second,
    );
    table("Bytes written to the file per byte accepted", "ratio", |run| {
        run.handed_per_accepted
    });
    table(
        "The same in whole pages of 4 KiB, as the disk sees it",
        "ratio",
        |run| run.stored_per_accepted,
    );
    table("Time to commit, median", "ms", |run| run.p50_ms);
    table("Time to commit, 99th percentile", "ms", |run| run.p99_ms);
}
