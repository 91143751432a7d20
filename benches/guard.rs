//! Work of a fixed amount, for `benches/guard` to count the instructions of: what stands in `counted` is counted.
//!
//! The way of a request as a whole is counted in the gateway itself. Here is what can be had without threads: nothing that
//! waits, so that the count is the same each time. Knows nothing of time.
#![allow(
    missing_docs,
    dead_code,
    unused_must_use,
    clippy::unwrap_used,
    clippy::indexing_slicing
)]

mod common;

use std::hint::black_box;
use std::time::Duration;

use tidegate::ingest::{self, Envelope, Key, Limits, Media, Shape};
use tidegate::record::Topic;
use tidegate::wal::{Batch, Options, Read, Retain, Wal};

const RECORDS: u64 = 1000;
const REPEATS: usize = 20;

fn main() {
    let mut lines = Vec::new();
    for i in 0..RECORDS {
        lines.extend(common::json_record(i));
        lines.push(b'\n');
    }
    let what = std::env::args().nth(1);
    match what.as_deref() {
        Some("lines") => counted(|| {
            for _ in 0..REPEATS {
                black_box(batch(Media::Ndjson, &lines));
            }
        }),
        Some("read") => read(&lines),
        // `cargo bench` without a name asks every benchmark.
        _ => println!("\nbenches/guard counts this one's instructions."),
    }
}

/// What callgrind looks for.
#[inline(never)]
fn counted(work: impl FnOnce()) {
    work();
}

fn batch(media: Media, body: &[u8]) -> Batch {
    let envelope = Envelope {
        topic: Topic::parse("financial_pro").unwrap(),
        key: Key::None,
        content_type: None,
        headers: Vec::new(),
        received_ms: 1_767_225_600_000,
    };
    let limits = Limits {
        record_bytes_max: 1 << 20,
        records_max: 10_000,
        request_bytes_max: 32 << 20,
    };
    let mut batch = Batch::new();
    ingest::read(media, Shape::Many, body, envelope, limits, |record| batch.push(record)).unwrap();
    batch
}

/// The records as the forwarder reads them from the log.
fn read(lines: &[u8]) {
    let folder = tempfile::tempdir().unwrap();
    let wal = Wal::open(Options {
        path: folder.path().join("wal"),
        bytes_max: 1 << 40,
        free_bytes_min: 0,
        generation_bytes: 64 << 20,
        compression: true,
        retain: Retain::Off,
        linger: Duration::ZERO,
        keys: Default::default(),
    })
    .unwrap();
    for _ in 0..REPEATS {
        let commit = wal.log().append(batch(Media::Ndjson, lines)).unwrap();
        commit.wait().unwrap();
    }
    let mut reader = wal.log().reader(1);
    counted(|| {
        let mut read = 0;
        while let Read::Records(chunk) = reader.read(256 << 10).unwrap() {
            for (_, record) in chunk.records() {
                black_box(record.unwrap());
                read += 1;
            }
        }
        assert_eq!(read, RECORDS * REPEATS as u64);
    });
    wal.close().unwrap();
}
