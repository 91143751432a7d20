//! A log with a backlog, made and opened as the gateway does it, without a gateway.
#![allow(clippy::unwrap_used)]

use std::path::Path;
use std::time::Duration;

use tidegate::record::Record;
use tidegate::wal::{Batch, Options, Retain, Wal};

/// Many, so that filling does not take as long as what is measured after it.
const RECORDS_PER_BATCH: u64 = 5000;

pub fn record(topic: &str, i: u64) -> Record {
    Record {
        topic: topic.into(),
        key: None,
        value: Some(super::json_record(i)),
        headers: vec![("content-type".into(), b"application/json".to_vec())],
        received_ms: tidegate::record::now_ms(),
        origin: None,
        idempotency: None,
    }
}

pub fn open(path: &Path, compression: bool) -> Wal {
    Wal::open(Options {
        path: path.to_path_buf(),
        bytes_max: 1 << 40,
        free_bytes_min: 0,
        generation_bytes: 64 << 20,
        compression,
        retain: Retain::Off,
        linger: Duration::ZERO,
        keys: Default::default(),
    })
    .unwrap()
}

/// Fills a log with `bytes` of payload for a topic; how many records that is.
pub fn fill(path: &Path, topic: &str, bytes: u64) -> u64 {
    let wal = open(path, true);
    let (mut records, mut filled) = (0, 0);
    while filled < bytes {
        let mut batch = Batch::new();
        for _ in 0..RECORDS_PER_BATCH {
            let record = record(topic, records);
            filled += record.payload_bytes() as u64;
            records += 1;
            batch.push(&record);
        }
        wal.log().append(batch).unwrap().wait().unwrap();
    }
    wal.close().unwrap();
    records
}
