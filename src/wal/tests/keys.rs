//! Idempotency keys over the life of a log: against a model, over removal and reopening, with a damaged file.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)]

use std::collections::HashMap;
use std::time::Duration;

use proptest::prelude::*;

use super::*;
use crate::record::{Idempotency, Record, now_ms};
use crate::wal::tests::{append, options, read_all, record, wait_until};
use crate::wal::{Archive, Batch, Options, Receipt, Reserved, Wal, key_id, verify_all};

const SCOPE: [u8; 16] = [3; 16];

fn idempotency(key: &str, body: u8) -> Idempotency {
    Idempotency {
        key: key.to_owned(),
        scope: SCOPE,
        body: [body; 16],
        records: 0,
    }
}

fn ask(wal: &Wal, key: &str, now: i64) -> Reserved {
    wal.log().reserve(key_id(&SCOPE, key), now)
}

/// Appends so many records with a key that nobody has.
fn post(wal: &Wal, key: &str, body: u8, records: usize, now: i64) -> Receipt {
    let Reserved::New(reservation) = ask(wal, key, now) else {
        panic!("{key} is known");
    };
    let mut batch = Batch::new();
    for number in 0..records {
        batch.push(&Record {
            received_ms: now,
            ..record(vec![number as u8])
        });
    }
    batch.remember(reservation, idempotency(key, body), now);
    wal.log().append(batch).unwrap().wait().unwrap()
}

fn known(wal: &Wal, key: &str, now: i64) -> Option<Remembered> {
    match ask(wal, key, now) {
        Reserved::Known(known) => Some(known),
        Reserved::New(_) => None,
        other => panic!("{key}: {other:?}"),
    }
}

fn small(path: &Path) -> Options {
    Options {
        generation_bytes: 1 << 20,
        compression: false,
        ..options(path)
    }
}

/// Goes on to the next generation.
fn rotate(wal: &Wal) {
    let filler: Vec<Vec<u8>> = vec![vec![0xAB; 100_000]; 12];
    append(wal, &filler);
    assert!(wal.log().wait_for_room(Duration::from_secs(20)));
    append(wal, &[vec![1]]);
}

fn reopened(wal: Wal, options: &Options) -> Wal {
    wal.close().unwrap();
    drop(wal);
    Wal::open(options.clone()).unwrap()
}

fn faults(path: &Path) -> Vec<String> {
    let verified = verify_all(&Archive::open(path).unwrap(), &|_| {}).unwrap();
    verified.into_iter().flat_map(|log| log.faults).collect()
}

#[derive(Debug, Clone)]
enum Step {
    Post(u8, u8, usize),
    Hours(u8),
    Rotate,
    Ack,
    Reopen,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        12 => (0u8..8, any::<u8>(), 1usize..4).prop_map(|(key, body, records)| Step::Post(key, body, records)),
        3 => (0u8..4).prop_map(Step::Hours),
        2 => Just(Step::Rotate),
        2 => Just(Step::Ack),
        2 => Just(Step::Reopen),
    ];
    prop::collection::vec(step, 1..30)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, ..ProptestConfig::default() })]
    /// Whatever the order of requests, rotations, removals and restarts: what is remembered is what the model says.
    #[test]
    fn keys_agree_with_their_model(steps in steps()) {
        const MAX: usize = 5;
        const WINDOW_HOURS: i64 = 5;
        let folder = tempfile::tempdir().unwrap();
        let options = Options {
            keys: KeysOptions { max: MAX, window: Duration::from_secs(3600 * WINDOW_HOURS as u64) },
            ..small(folder.path())
        };
        let mut wal = Wal::open(options.clone()).unwrap();
        let mut now = now_ms();
        let mut model: HashMap<String, (u8, Receipt, i64)> = HashMap::new();
        for step in steps.into_iter().chain([Step::Reopen]) {
            match step {
                Step::Post(key, body, records) => {
                    let key = format!("key-{key}");
                    if known(&wal, &key, now).is_none() {
                        let receipt = post(&wal, &key, body, records, now);
                        model.insert(key, (body, receipt, now));
                        if model.len() > MAX {
                            let oldest = model.iter().min_by_key(|(_, (_, receipt, _))| receipt.first_seq);
                            let oldest = oldest.unwrap().0.clone();
                            model.remove(&oldest);
                        }
                    }
                }
                Step::Hours(hours) => now += i64::from(hours) * 3_600_000,
                Step::Rotate => rotate(&wal),
                Step::Ack => wal.log().ack(wal.log().committed()).unwrap(),
                Step::Reopen => wal = reopened(wal, &options),
            }
            for key in 0..8 {
                let key = format!("key-{key}");
                let expected = model.get(&key).filter(|(_, _, at)| now - at < WINDOW_HOURS * 3_600_000);
                let found = known(&wal, &key, now);
                let found = found.map(|found| {
                    let receipt = Receipt { first_seq: found.first_seq, last_seq: found.last_seq() };
                    (found.body[0], receipt, found.received_ms)
                });
                prop_assert_eq!(found, expected.copied(), "{}", key);
            }
        }
    }

    #[test]
    fn every_changed_byte_of_the_file_is_noticed(at in 0usize..136, bit in 0u8..8) {
        let key = |seq| Remembered { id: [seq as u8; 16], body: [2; 16], first_seq: seq, records: 2, received_ms: 5 };
        let mut bytes = encode(&Checkpoint { through: 9, keys: vec![key(3), key(6)] });
        prop_assert_eq!(bytes.len(), 136);
        bytes[at] ^= 1 << bit;
        prop_assert!(matches!(parse(&bytes), Err(Fault::Damaged(_))));
        prop_assert!(parse(&bytes[..at]).is_err());
    }
}

/// The bytes on disk may not change under those who have them: this is version 1, for ever.
#[test]
fn version_1_keeps_its_bytes() {
    let key = Remembered {
        id: [1; 16],
        body: [2; 16],
        first_seq: 3,
        records: 4,
        received_ms: 5,
    };
    let bytes = encode(&Checkpoint {
        through: 258,
        keys: vec![key],
    });
    let hex: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
    assert_eq!(
        hex,
        "544749444b455953\
         a4136019\
         01000000\
         0201000000000000\
         01000000\
         00000000\
         01010101010101010101010101010101\
         02020202020202020202020202020202\
         0300000000000000\
         0500000000000000\
         04000000"
    );
    assert_eq!(parse(&bytes).unwrap().keys, [key]);
}

#[test]
fn a_key_is_in_its_record_and_the_others_follow() {
    let folder = tempfile::tempdir().unwrap();
    let wal = Wal::open(options(folder.path())).unwrap();
    // 251 is where the encoding of a number changes.
    for records in [1, 2, 250, 251, 300] {
        let receipt = post(&wal, &format!("{records}"), 1, records, now_ms());
        let mut reader = wal.log().reader(receipt.first_seq);
        let crate::wal::Read::Records(chunk) = reader.read(1 << 20).unwrap() else {
            panic!("nothing is there");
        };
        let all: Vec<_> = chunk.records().map(|(_, record)| record.unwrap().to_record()).collect();
        assert_eq!(all.len(), records);
        let expected = Idempotency {
            records: records as u32,
            ..idempotency(&format!("{records}"), 1)
        };
        assert_eq!(all[0].idempotency, Some(expected));
        assert!(all[1..].iter().all(|record| record.idempotency.is_none()));
        let values: Vec<u8> = all.iter().map(|record| record.value.as_ref().unwrap()[0]).collect();
        assert_eq!(values, (0..records).map(|number| number as u8).collect::<Vec<_>>());
    }
}

#[test]
fn a_client_that_leaves_after_its_batch_was_queued_finds_its_key() {
    let folder = tempfile::tempdir().unwrap();
    let wal = Wal::open(options(folder.path())).unwrap();
    let now = now_ms();
    let Reserved::New(reservation) = ask(&wal, "k", now) else {
        panic!()
    };
    let mut batch = Batch::new();
    batch.push(&record(vec![1]));
    batch.remember(reservation, idempotency("k", 1), now);
    drop(wal.log().append(batch).unwrap());
    wait_until("it is known", || matches!(ask(&wal, "k", now), Reserved::Known(_)));
    // One that leaves before that leaves nothing.
    let Reserved::New(reservation) = ask(&wal, "l", now) else {
        panic!()
    };
    let mut batch = Batch::new();
    batch.push(&record(vec![1]));
    batch.remember(reservation, idempotency("l", 1), now);
    drop(batch);
    assert_eq!(known(&wal, "l", now), None);
    assert_eq!(wal.log().committed(), 1);
}

#[test]
fn a_key_outlives_its_generation() {
    let folder = tempfile::tempdir().unwrap();
    let options = small(folder.path());
    let mut wal = Wal::open(options.clone()).unwrap();
    let now = now_ms();
    let receipt = post(&wal, "k", 1, 2, now);
    for _ in 0..3 {
        rotate(&wal);
        wal.log().ack(wal.log().committed()).unwrap();
        wait_until("its generation is gone", || {
            wal.log().watermarks().trimmed > receipt.last_seq
        });
        wal = reopened(wal, &options);
        let found = known(&wal, "k", now).expect("it is remembered");
        assert_eq!(
            (found.first_seq, found.last_seq()),
            (receipt.first_seq, receipt.last_seq)
        );
    }
    // And a start after which nothing was written, twice.
    wal = reopened(wal, &options);
    wal = reopened(wal, &options);
    assert!(known(&wal, "k", now).is_some());
    wal.close().unwrap();
    assert_eq!(faults(folder.path()), Vec::<String>::new());
}

#[test]
fn a_generation_stays_while_its_keys_are_in_no_file() {
    let folder = tempfile::tempdir().unwrap();
    let wal = Wal::open(small(folder.path())).unwrap();
    let now = now_ms();
    post(&wal, "k", 1, 1, now);
    // A folder in its place: the file cannot be written.
    fs::create_dir(folder.path().join(NEW)).unwrap();
    rotate(&wal);
    wal.log().ack(wal.log().committed()).unwrap();
    append(&wal, &[vec![2]]);
    std::thread::sleep(Duration::from_millis(1500));
    assert_eq!(wal.log().watermarks().trimmed, 0);
    fs::remove_dir(folder.path().join(NEW)).unwrap();
    wait_until("it goes once the file is written", || {
        wal.log().watermarks().trimmed > 0
    });
}

/// A full disk is no trap: what is acknowledged goes although the file cannot be written, and that is told.
#[test]
fn where_space_is_short_a_generation_goes_without_the_file() {
    let folder = tempfile::tempdir().unwrap();
    let options = Options {
        bytes_max: 10 << 20,
        ..small(folder.path())
    };
    let mut wal = Wal::open(options.clone()).unwrap();
    let now = now_ms();
    post(&wal, "k", 1, 1, now);
    fs::create_dir(folder.path().join(NEW)).unwrap();
    wait_until("its generation goes", || {
        let mut batch = Batch::new();
        batch.push(&record(vec![0xAB; 300_000]));
        // At the limit it is refused.
        let refused = wal.log().append(batch).and_then(crate::wal::Commit::wait);
        assert!(
            !matches!(refused, Err(crate::wal::AppendError::Poisoned { .. })),
            "{refused:?}"
        );
        wal.log().ack(wal.log().committed()).unwrap();
        wal.log().watermarks().trimmed > 0
    });
    // As long as the process runs it knows.
    assert!(known(&wal, "k", now).is_some());
    wal.close().unwrap();
    drop(wal);
    let told = faults(folder.path());
    assert!(
        told.len() == 1 && told[0].contains("lost with their generations"),
        "{told:?}"
    );
    wal = Wal::open(options).unwrap();
    assert_eq!(known(&wal, "k", now), None);
    fs::remove_dir(folder.path().join(NEW)).unwrap();
    let through = wal.log().committed();
    wait_until("the file is written", || {
        read(folder.path()).unwrap().unwrap().unwrap().through >= through
    });
    wal.close().unwrap();
    drop(wal);
    assert_eq!(faults(folder.path()), Vec::<String>::new());
}

#[test]
fn a_damaged_file_costs_keys_and_no_start() {
    let folder = tempfile::tempdir().unwrap();
    let options = small(folder.path());
    let mut wal = Wal::open(options.clone()).unwrap();
    let now = now_ms();
    post(&wal, "removed", 1, 1, now);
    rotate(&wal);
    wal.log().ack(wal.log().committed()).unwrap();
    wait_until("its generation is gone", || wal.log().watermarks().trimmed > 0);
    post(&wal, "there", 1, 1, now);
    wal.close().unwrap();
    drop(wal);
    let path = folder.path().join(FILE);
    let mut bytes = fs::read(&path).unwrap();
    bytes[40] ^= 1;
    fs::write(&path, bytes).unwrap();
    let told = faults(folder.path());
    assert!(told.len() == 1 && told[0].contains("'keys' is damaged"), "{told:?}");
    assert!(crate::wal::signs(folder.path()).unwrap()[0].contains("keys is damaged"));
    wal = Wal::open(options.clone()).unwrap();
    assert!(folder.path().join(ASIDE).exists());
    assert!(known(&wal, "removed", now).is_none() && known(&wal, "there", now).is_some());
    wal.close().unwrap();
    drop(wal);
    assert_eq!(faults(folder.path()), Vec::<String>::new());
    // Gone altogether: what the log still has is read.
    fs::remove_file(&path).unwrap();
    let told = faults(folder.path());
    assert!(told.len() == 1 && told[0].contains("'keys' is missing"), "{told:?}");
    wal = Wal::open(options).unwrap();
    assert!(known(&wal, "there", now).is_some());
    assert_eq!(read_all(wal.log(), 1).1, vec![]);
}

#[test]
fn a_later_version_is_refused_and_left_as_it_is() {
    let folder = tempfile::tempdir().unwrap();
    let wal = Wal::open(options(folder.path())).unwrap();
    post(&wal, "k", 1, 1, now_ms());
    wal.close().unwrap();
    drop(wal);
    let path = folder.path().join(FILE);
    let mut bytes = fs::read(&path).unwrap();
    bytes[12] = 2;
    let sum = crc32c::crc32c(&bytes[12..]);
    bytes[8..12].copy_from_slice(&sum.to_le_bytes());
    fs::write(&path, &bytes).unwrap();
    let Err(error) = Wal::open(options(folder.path())) else {
        panic!("it opened")
    };
    assert!(error.to_string().contains("version 2"), "{error}");
    let Err(error) = Archive::open(folder.path()) else {
        panic!("it opened")
    };
    assert!(error.to_string().contains("version 2"), "{error}");
    assert_eq!(fs::read(&path).unwrap(), bytes);
}

#[test]
fn a_salvage_takes_the_keys_along() {
    let folder = tempfile::tempdir().unwrap();
    let (path, target) = (folder.path().join("wal"), folder.path().join("new"));
    let wal = Wal::open(small(&path)).unwrap();
    let now = now_ms();
    post(&wal, "removed", 1, 1, now);
    rotate(&wal);
    wal.log().ack(wal.log().committed()).unwrap();
    wait_until("its generation is gone", || wal.log().watermarks().trimmed > 0);
    post(&wal, "there", 1, 1, now);
    let id = wal.id();
    wal.close().unwrap();
    drop(wal);
    let salvaged = crate::wal::salvage(&Archive::open(&path).unwrap(), id, &target, &|_| {}).unwrap();
    assert!(salvaged.iter().all(|log| log.faults.is_empty()));
    let wal = Wal::open(small(&target)).unwrap();
    assert!(known(&wal, "removed", now).is_some() && known(&wal, "there", now).is_some());
}

/// A key whose record is lost answers OK for nothing: it is forgotten, also when its file still has it, for good, and in a
/// salvaged log. One that Kafka has got stays.
#[test]
fn a_key_goes_with_the_loss_of_its_record() {
    let folder = tempfile::tempdir().unwrap();
    let (path, target) = (folder.path().join("wal"), folder.path().join("new"));
    let options = small(&path);
    let mut wal = Wal::open(options.clone()).unwrap();
    let now = now_ms();
    let acked = post(&wal, "acknowledged", 1, 1, now);
    post(&wal, "lost", 1, 3, now);
    rotate(&wal);
    post(&wal, "whole", 1, 1, now);
    wal.log().ack(acked.last_seq).unwrap();
    // The file is through with the generation that is about to be lost.
    wait_until("the keys are in the file", || {
        read(&path).unwrap().unwrap().unwrap().through >= acked.last_seq + 3
    });
    let id = wal.id();
    wal.close().unwrap();
    drop(wal);
    let first = generations::list(&path).unwrap().remove(0);
    fs::remove_file(first.data_path()).unwrap();
    crate::wal::salvage(&Archive::open(&path).unwrap(), id, &target, &|_| {}).unwrap();
    wal = Wal::open(options.clone()).unwrap();
    for time in ["found", "remembered"] {
        if time == "found" {
            // A reader finds it; a start alone reads the newest generation.
            read_all(wal.log(), acked.last_seq + 1);
        }
        assert_eq!(known(&wal, "lost", now), None, "{time}");
        for there in ["acknowledged", "whole"] {
            assert!(known(&wal, there, now).is_some(), "{there}, {time}");
        }
        wal.log().ack(wal.log().committed()).unwrap();
        wal = reopened(wal, &options);
    }
    let salvaged = Wal::open(small(&target)).unwrap();
    assert_eq!(known(&salvaged, "lost", now), None);
    for there in ["acknowledged", "whole"] {
        assert!(known(&salvaged, there, now).is_some(), "{there}, salvaged");
    }
}

/// What a full window costs: printed by `--nocapture`, in docs/benchmarks.md.
#[test]
fn a_full_window_is_written_in_little_time_and_memory() {
    let folder = tempfile::tempdir().unwrap();
    let resident = || -> u64 {
        let pages = fs::read_to_string("/proc/self/statm").unwrap();
        pages.split(' ').nth(1).unwrap().parse::<u64>().unwrap() * 4096
    };
    let before = resident();
    let keys = std::sync::Arc::new(Keys::new(KeysOptions::default(), 0));
    for seq in 1..=100_000_u64 {
        let mut id = [0; 16];
        id[..8].copy_from_slice(&seq.wrapping_mul(0x9E37_79B9_7F4A_7C15).to_le_bytes());
        keys.restore(Remembered {
            id,
            body: id,
            first_seq: seq,
            records: 1,
            received_ms: 0,
        });
    }
    let memory = resident().saturating_sub(before) / 100_000;
    let mut longest = Duration::ZERO;
    let (mut after, mut some) = (0, Vec::new());
    loop {
        let began = std::time::Instant::now();
        let next = keys.some_after(after, COPIED_AT_ONCE, &mut some);
        longest = longest.max(began.elapsed());
        some.clear();
        let Some(next) = next else { break };
        after = next;
    }
    let began = std::time::Instant::now();
    let bytes = write(folder.path(), 100_000, &keys).unwrap();
    let wrote = began.elapsed();
    assert_eq!(bytes, 32 + 52 * 100_000);
    let began = std::time::Instant::now();
    let checkpoint = read(folder.path()).unwrap().unwrap().unwrap();
    let read = began.elapsed();
    assert_eq!(checkpoint.keys.len(), 100_000);
    println!(
        "100,000 keys: {memory} bytes of memory each (of a run of this test alone), {bytes} bytes written in {wrote:?}, read in {read:?}; the lock is held {longest:?} at most"
    );
    assert!(longest < Duration::from_millis(50), "{longest:?}");
}
