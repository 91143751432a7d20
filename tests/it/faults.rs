//! Faults of the disk and of the power, at every call: what was answered OK is there afterwards.
//!
//! The gateway is the binary as users have it; a preloaded library (faults/shim.c) watches what it does to its log's
//! folder, writes it down, or makes a call fail. What is left is judged by opening it, twice.

pub mod calls;
mod image;
pub mod mounts;
pub mod power;
pub mod shim;

use std::collections::{BTreeMap, HashSet};
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::time::Duration;

use sha2::{Digest as _, Sha256};
use tidegate::record::{Record, now_ms};
use tidegate::wal::{Archive, Batch, KeyId, Options, Read, Reserved, Retain, Wal, key_id};

use crate::support::JSON;
use crate::support::client::Client;
use crate::support::load::value;

/// What a client was answered OK for.
#[derive(Debug, Clone)]
struct Answered {
    seq: u64,
    value: Vec<u8>,
    /// How long the record of calls was when the answer was there.
    by: usize,
}

/// What the clients know.
#[derive(Debug)]
struct Book {
    topic: String,
    sent: Mutex<HashSet<Vec<u8>>>,
    answered: Mutex<Vec<Answered>>,
}

impl Book {
    fn new(topic: &str) -> Self {
        Self {
            topic: topic.to_owned(),
            sent: Mutex::default(),
            answered: Mutex::default(),
        }
    }

    /// Posts a value of about so many bytes more than usual; false: nobody answers any more.
    fn post(&self, client: &Client, bytes: usize, record: Option<&Path>) -> bool {
        let mut value = value();
        value.pop();
        value.extend_from_slice(format!(",\"more\":\"{}\"}}", "x".repeat(bytes)).as_bytes());
        self.sent.lock().unwrap().insert(value.clone());
        let key = text(&value);
        let headers = [("content-type", JSON), ("tidegate-key", "k"), ("idempotency-key", &key)];
        let Ok(answer) = client.post_with(&format!("/v1/topics/{}", self.topic), &headers, &value) else {
            return false;
        };
        if answer.status == 202 {
            let by = record.map_or(0, |record| usize::try_from(record.metadata().unwrap().len()).unwrap());
            let seq = answer.json()["first_seq"].as_u64().unwrap();
            self.answered.lock().unwrap().push(Answered { seq, value, by });
        }
        true
    }

    /// Which idempotency key a value was sent with.
    fn key(&self, value: &[u8]) -> KeyId {
        let path = format!("/v1/topics/{}", self.topic);
        let mut scope = Sha256::new();
        for part in ["", "POST", &path] {
            scope.update((part.len() as u64).to_le_bytes());
            scope.update(part);
        }
        key_id(&scope.finalize()[..16].try_into().unwrap(), &text(value))
    }

    fn answered(&self) -> usize {
        self.answered.lock().unwrap().len()
    }
}

/// A key that no other value has.
fn text(value: &[u8]) -> String {
    Sha256::digest(value).iter().map(|byte| format!("{byte:02x}")).collect()
}

/// What is in a log, by sequence.
type Records = BTreeMap<u64, Vec<u8>>;

fn options(path: &Path) -> Options {
    Options {
        path: path.to_owned(),
        bytes_max: 1 << 40,
        free_bytes_min: 0,
        generation_bytes: 1 << 20,
        compression: true,
        retain: Retain::Off,
        linger: Duration::ZERO,
        keys: Default::default(),
    }
}

/// Opens the log as a start does: what waits in it, the watermark, and the sequence that comes next.
fn open(path: &Path) -> Result<(Records, u64, u64), String> {
    let wal = Wal::open(options(path)).map_err(|error| error.to_string())?;
    let marks = wal.log().watermarks();
    let mut reader = wal.log().reader(marks.acked + 1);
    let mut records = Records::new();
    loop {
        match reader.read(1 << 20).map_err(|error| error.to_string())? {
            Read::Nothing => break,
            Read::Damaged { told: true, .. } => {}
            Read::Damaged { first, last, .. } => return Err(format!("sequences {first} to {last} are damaged")),
            Read::Records(chunk) => {
                for (seq, record) in chunk.records() {
                    records.insert(seq, record?.value.unwrap_or_default().to_vec());
                }
            }
        }
    }
    wal.close().map_err(|error| error.to_string())?;
    Ok((records, marks.acked, marks.next))
}

/// Judges the log in `path`: looked at, opened, and opened again. `answered`: what must be there, in the log or, if it was
/// acknowledged, in `kafka`.
fn judge(path: &Path, book: &Book, answered: &[&Answered], kafka: &Records) -> Result<(), String> {
    let verified = match Archive::open(path) {
        Ok(archive) => tidegate::wal::verify_all(&archive, &|_| {}).map_err(|error| error.to_string())?,
        // Nothing was made yet.
        Err(_) if answered.is_empty() => Vec::new(),
        Err(error) => return Err(format!("it cannot be looked at: {error}")),
    };
    if let Some(lost) = verified.iter().flat_map(|log| &log.lost).next() {
        return Err(format!("wal verify tells a loss: {lost:?}"));
    }
    let (records, acked, next) = open(path)?;
    let mut sent = book.sent.lock().unwrap();
    if let Some((seq, _)) = records.iter().find(|(_, value)| !sent.contains(*value)) {
        return Err(format!("nobody sent the record {seq}"));
    }
    for Answered { seq, value, .. } in answered {
        let place = if *seq <= acked { kafka } else { &records };
        match place.get(seq) {
            Some(there) if there == value => {}
            Some(_) => return Err(format!("record {seq} is another than the one that was answered OK")),
            None => {
                return Err(format!(
                    "record {seq} was answered OK and is lost (acked {acked}, next {next})"
                ));
            }
        }
        if *seq >= next {
            return Err(format!(
                "sequence {seq} was answered OK and would be given again (next {next})"
            ));
        }
    }
    let again = open(path)?;
    if again.0 != records || again.1 != acked {
        return Err("the second start finds something else than the first".to_owned());
    }
    let wal = Wal::open(options(path)).map_err(|error| error.to_string())?;
    for Answered { seq, value, .. } in answered {
        match wal.log().reserve(book.key(value), now_ms()) {
            Reserved::Known(known) if known.first_seq == *seq => {}
            other => return Err(format!("the key of record {seq} is not remembered: {other:?}")),
        }
    }
    drop(wal);
    // The next record gets a sequence that none had. It may be met by the next look at this folder.
    let more = b"one more".to_vec();
    sent.insert(more.clone());
    let wal = Wal::open(options(path)).map_err(|error| error.to_string())?;
    let mut batch = Batch::new();
    batch.push(&Record {
        topic: "t".into(),
        key: None,
        value: Some(more),
        headers: Vec::new(),
        received_ms: 0,
        origin: None,
        idempotency: None,
    });
    let receipt = wal.log().append(batch).map_err(|error| error.to_string())?;
    let first = receipt.wait().map_err(|error| error.to_string())?.first_seq;
    let used = records
        .keys()
        .chain(answered.iter().map(|answered| &answered.seq))
        .max();
    if used.is_some_and(|used| *used >= first) {
        return Err(format!(
            "the next record got the sequence {first}, and {used:?} was used"
        ));
    }
    Ok(())
}

/// Where images are made: in memory, if there is a place for it, for nothing in them needs to last.
fn fast_folder() -> tempfile::TempDir {
    let memory = PathBuf::from("/dev/shm");
    match memory.is_dir() {
        true => tempfile::tempdir_in(memory).unwrap(),
        false => tempfile::tempdir().unwrap(),
    }
}
