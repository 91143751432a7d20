//! The log as a whole: against a model, over reopening, with failing syncs and damaged files.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)]

mod loss;

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use proptest::prelude::*;

use super::generation::DATA_FILE;
use super::*;
use crate::record::{Origin, now_ms};

pub(super) fn options(path: &Path) -> Options {
    Options {
        path: path.to_path_buf(),
        bytes_max: 1 << 40,
        free_bytes_min: 0,
        generation_bytes: 64 << 20,
        compression: true,
        retain: Retain::Off,
        linger: Duration::ZERO,
        keys: Default::default(),
    }
}

pub(super) fn record(value: Vec<u8>) -> Record {
    Record {
        topic: "t".into(),
        key: None,
        value: Some(value),
        headers: vec![],
        received_ms: now_ms(),
        origin: None,
        idempotency: None,
    }
}

fn batch(values: &[Vec<u8>]) -> Batch {
    let mut batch = Batch::new();
    for value in values {
        batch.push(&record(value.clone()));
    }
    batch
}

pub(super) fn append(wal: &Wal, values: &[Vec<u8>]) -> Receipt {
    wal.log().append(batch(values)).unwrap().wait().unwrap()
}

pub(super) type Found = BTreeMap<Sequence, Vec<u8>>;

/// Everything readable from `from`, and the damaged ranges on the way.
pub(super) fn read_all(log: &Log, from: Sequence) -> (Found, Vec<(Sequence, Sequence)>) {
    let mut reader = log.reader(from);
    let (mut found, mut damaged) = (BTreeMap::new(), Vec::new());
    loop {
        match reader.read(10_000).unwrap() {
            Read::Nothing => return (found, damaged),
            Read::Damaged { told: true, .. } => {}
            Read::Damaged { first, last, .. } => damaged.push((first, last)),
            Read::Records(chunk) => {
                for (sequence, record) in chunk.records() {
                    assert!(
                        found
                            .insert(sequence, record.unwrap().value.unwrap().to_vec())
                            .is_none()
                    );
                }
            }
        }
    }
}

fn generations(path: &Path) -> Vec<PathBuf> {
    let mut folders: Vec<_> = fs::read_dir(path)
        .unwrap()
        .map(|item| item.unwrap().path())
        .filter(|path| path.file_name().unwrap().to_str().unwrap().starts_with("gen-"))
        .collect();
    folders.sort();
    folders
}

pub(super) fn wait_until(what: &str, mut condition: impl FnMut() -> bool) {
    let limit = Instant::now() + Duration::from_secs(20);
    while !condition() {
        assert!(Instant::now() < limit, "not within 20 s: {what}");
        std::thread::sleep(Duration::from_millis(2));
    }
}

#[derive(Debug, Clone)]
enum Step {
    Append(Vec<Vec<u8>>),
    Ack(u8),
    Read,
    Reopen,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let value = prop_oneof![
        8 => prop::collection::vec(any::<u8>(), 0..300),
        2 => prop::collection::vec(0u8..4, 0..5_000),
        1 => prop::collection::vec(any::<u8>(), 10_000..120_000),
    ];
    let step = prop_oneof![
        10 => prop::collection::vec(value, 1..30).prop_map(Step::Append),
        4 => any::<u8>().prop_map(Step::Ack),
        2 => Just(Step::Read),
        1 => Just(Step::Reopen),
    ];
    prop::collection::vec(step, 1..40)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 40, ..ProptestConfig::default() })]
    /// Whatever the order of appends, acks and restarts: all that is not acknowledged is read back, in order
    /// and unchanged; sequences are dense and never used twice; the watermarks keep their order.
    #[test]
    fn log_agrees_with_its_model(steps in steps(), compression: bool) {
        let folder = tempfile::tempdir().unwrap();
        // The smallest generations that make rotation common here: sled's file grows by 2 MiB.
        let options = Options { compression, generation_bytes: 1 << 20, ..options(folder.path()) };
        let mut wal = Wal::open(options.clone()).unwrap();
        let id = wal.id();
        let mut model: BTreeMap<Sequence, Vec<u8>> = BTreeMap::new();
        let (mut next, mut acked) = (1, 0);
        for step in steps.into_iter().chain([Step::Reopen, Step::Read]) {
            match step {
                Step::Append(values) => {
                    let receipt = append(&wal, &values);
                    prop_assert_eq!(receipt.first_seq, next);
                    model.extend((next..).zip(values));
                    next = receipt.last_seq + 1;
                }
                Step::Ack(share) => {
                    let target = acked + (next - 1 - acked) * u64::from(share) / 255;
                    wal.log().ack(target).unwrap();
                    acked = target;
                    model = model.split_off(&(acked + 1));
                }
                Step::Read => {
                    let (found, damaged) = read_all(wal.log(), acked + 1);
                    prop_assert_eq!(damaged, vec![]);
                    prop_assert!(found == model, "what was read differs from what was appended");
                }
                Step::Reopen => {
                    wal.close().unwrap();
                    drop(wal);
                    wal = Wal::open(options.clone()).unwrap();
                    prop_assert_eq!(wal.id(), id);
                }
            }
            let marks = wal.log().watermarks();
            prop_assert!(marks.trimmed <= marks.acked && marks.acked <= marks.committed && marks.committed < marks.next);
            prop_assert_eq!((marks.acked, marks.committed, marks.next), (acked, next - 1, next));
            prop_assert!(wal.log().ack(next).is_err());
        }
    }
}

#[test]
fn acknowledged_generations_are_removed_and_sequences_go_on() {
    let folder = tempfile::tempdir().unwrap();
    let options = Options {
        generation_bytes: 4 << 20,
        compression: false,
        ..options(folder.path())
    };
    let wal = Wal::open(options.clone()).unwrap();
    for i in 0..300u32 {
        append(&wal, &vec![vec![i as u8; 1000]; 100]);
    }
    assert!(generations(folder.path()).len() > 3);
    wal.log().ack(30_000).unwrap();
    wait_until("one generation is left", || generations(folder.path()).len() == 1);
    let marks = wal.log().watermarks();
    assert_eq!((marks.acked, marks.committed, marks.next), (30_000, 30_000, 30_001));
    wal.close().unwrap();
    drop(wal);
    let wal = Wal::open(options).unwrap();
    assert_eq!(append(&wal, &[vec![1]]).first_seq, 30_001);
    assert_eq!(wal.status().corruption_records, 0);
}

#[test]
fn retained_generations_stay_until_the_limit() {
    let folder = tempfile::tempdir().unwrap();
    let options = Options {
        generation_bytes: 2 << 20,
        compression: false,
        retain: Retain::Bytes(12 << 20),
        ..options(folder.path())
    };
    let wal = Wal::open(options).unwrap();
    for i in 0..400u32 {
        append(&wal, &vec![vec![i as u8; 1000]; 100]);
        wal.log().ack(wal.log().watermarks().committed).unwrap();
    }
    wait_until("what is beyond the limit goes", || wal.status().disk_bytes <= 24 << 20);
    assert!(generations(folder.path()).len() >= 3, "some is retained");
    assert!(wal.log().watermarks().trimmed < wal.log().watermarks().acked);
}

#[test]
fn second_process_is_told_who_has_the_log() {
    let folder = tempfile::tempdir().unwrap();
    let wal = Wal::open(options(folder.path())).unwrap();
    let Err(error) = Wal::open(options(folder.path())) else {
        panic!("opened twice")
    };
    assert!(matches!(error, OpenError::InUse { .. }), "{error}");
    assert!(error.to_string().contains(&std::process::id().to_string()), "{error}");
    drop(wal);
    Wal::open(options(folder.path())).unwrap();
}

#[test]
fn failed_fsync_poisons_the_log_and_nothing_ok_is_lost() {
    for nth in 1..6 {
        let folder = tempfile::tempdir().unwrap();
        let wal = Wal::open(options(folder.path())).unwrap();
        wait_until("the next generation is made", || {
            fs::read_dir(folder.path())
                .unwrap()
                .any(|e| e.unwrap().file_name().to_string_lossy().starts_with("next-"))
        });
        // Only the live generation's file: the one made ahead syncs in its own time.
        let live = generations(folder.path()).remove(0);
        durable::faults::fail_sync_below(&live, nth, libc::EIO);
        let mut ok = BTreeMap::new();
        let refused = loop {
            match wal
                .log()
                .append(batch(&[vec![ok.len() as u8; 100]]))
                .and_then(Commit::wait)
            {
                Ok(receipt) => drop(ok.insert(receipt.first_seq, vec![ok.len() as u8; 100])),
                Err(error) => break error,
            }
            assert!(ok.len() < 100, "the fault never came");
        };
        assert!(matches!(refused, AppendError::Poisoned { .. }), "{refused}");
        assert!(matches!(
            wal.log().append(batch(&[vec![1]])),
            Err(AppendError::Poisoned { .. })
        ));
        assert!(wal.status().poisoned.is_some());
        drop(wal.close());
        drop(wal);
        let wal = Wal::open(options(folder.path())).unwrap();
        let (found, damaged) = read_all(wal.log(), 1);
        assert_eq!(damaged, vec![]);
        assert!(
            ok.iter().all(|(sequence, value)| found.get(sequence) == Some(value)),
            "an OK was lost"
        );
    }
}

/// It is flushed in pieces: what is on disk of one that ended half way is none of it.
#[test]
fn large_commit_that_ends_half_way_is_not_there() {
    for nth in [1, 3, 5] {
        let folder = tempfile::tempdir().unwrap();
        let wal = Wal::open(options(folder.path())).unwrap();
        append(&wal, &[vec![7; 100]]);
        let large = vec![incompressible(); 120];
        let live = generations(folder.path()).remove(0);
        durable::faults::fail_sync_below(&live, nth, libc::EIO);
        let refused = wal.log().append(batch(&large)).and_then(Commit::wait).unwrap_err();
        assert!(matches!(refused, AppendError::Poisoned { .. }), "{refused}");
        drop(wal.close());
        drop(wal);
        let wal = Wal::open(options(folder.path())).unwrap();
        let (found, damaged) = read_all(wal.log(), 1);
        assert_eq!(damaged, vec![]);
        // Whether all of it came to the disk before the error is not known.
        assert!([1, 121].contains(&found.len()), "{} records", found.len());
        assert_eq!(append(&wal, &[vec![8; 100]]).first_seq, wal.log().committed());
    }
}

#[test]
fn many_requests_at_a_time_on_a_quick_disk_are_a_press() {
    let folder = tempfile::tempdir().unwrap();
    let wal = Wal::open(options(folder.path())).unwrap();
    append(&wal, &[vec![1]]);
    assert!(!wal.log().is_pressed());
    // The disk may be slow now and then.
    wait_until("a commit with many requests", || {
        let commits: Vec<_> = (0..100).map(|_| wal.log().append(batch(&[vec![1]])).unwrap()).collect();
        for commit in commits {
            commit.wait().unwrap();
        }
        wal.log().is_pressed()
    });
    wait_until("it is over", || !wal.log().is_pressed());
}

#[test]
fn full_log_refuses_and_recovers_as_it_drains() {
    let folder = tempfile::tempdir().unwrap();
    let options = Options {
        bytes_max: 16 << 20,
        generation_bytes: 2 << 20,
        compression: false,
        ..options(folder.path())
    };
    let wal = Wal::open(options).unwrap();
    let refused = loop {
        if let Err(error) = wal
            .log()
            .append(batch(&vec![vec![9; 1000]; 100]))
            .and_then(Commit::wait)
        {
            break error;
        }
    };
    assert!(matches!(refused, AppendError::Full { .. }), "{refused}");
    assert!(wal.status().refusing.is_some());
    let committed = wal.log().watermarks().committed;
    assert_eq!(read_all(wal.log(), 1).0.len() as u64, committed);
    wal.log().ack(committed).unwrap();
    wait_until("the log takes records again", || {
        wal.log().append(batch(&[vec![1; 1000]])).and_then(Commit::wait).is_ok()
    });
}

/// The largest batch that is taken can be read again.
#[test]
fn largest_commit_is_read_back() {
    let folder = tempfile::tempdir().unwrap();
    let wal = Wal::open(Options {
        compression: false,
        ..options(folder.path())
    })
    .unwrap();
    let frame = batch(&[vec![]]).bytes();
    // The length of the value takes 5 bytes instead of 1 when it is that long.
    let largest = COMMIT_BYTES_MAX - frame - 4;
    assert!(matches!(
        wal.log().append(batch(&[vec![1; largest + 1]])),
        Err(AppendError::TooLarge { .. })
    ));
    append(&wal, &[vec![1; largest]]);
    append(&wal, &[vec![2]]);
    let (found, damaged) = read_all(wal.log(), 1);
    assert_eq!((damaged, found[&1].len(), found[&2].len()), (vec![], largest, 1));
    wal.close().unwrap();
    drop(wal);
    let wal = Wal::open(options(folder.path())).unwrap();
    assert!(read_all(wal.log(), 1).0 == found);
}

/// A log that is full although all of it is settled (its one generation outgrew the limit) makes room.
#[test]
fn full_log_of_settled_records_makes_room_for_the_next() {
    let folder = tempfile::tempdir().unwrap();
    let options = Options {
        bytes_max: 4 << 20,
        compression: false,
        ..options(folder.path())
    };
    let wal = Wal::open(options).unwrap();
    while wal
        .log()
        .append(batch(&vec![vec![9; 1000]; 100]))
        .and_then(Commit::wait)
        .is_ok()
    {}
    wal.log().ack(wal.log().watermarks().committed).unwrap();
    wait_until("the log takes records again", || {
        wal.log().append(batch(&[vec![1; 1000]])).and_then(Commit::wait).is_ok()
    });
}

#[test]
fn dead_letters_and_held_records_survive_a_restart_once() {
    let folder = tempfile::tempdir().unwrap();
    let wal = Wal::open(options(folder.path())).unwrap();
    assert!(wal.held().is_none());
    let letter = |seq| Letter {
        origin: Origin {
            wal: *wal.id().0.as_bytes(),
            seq,
        },
        record: record(vec![1]),
        code: "MessageSizeTooLarge".into(),
        reason: "too large".into(),
        first_failed_ms: 1,
        last_failed_ms: 2,
    };
    let letters = [letter(1), letter(2), letter(1)];
    assert_eq!(wal.add_dead_letters(&letters).unwrap(), 2);
    assert_eq!(wal.add_dead_letters(&letters).unwrap(), 0);
    wal.held_or_create()
        .unwrap()
        .append(batch(&[vec![5]]))
        .unwrap()
        .wait()
        .unwrap();
    wal.close().unwrap();
    drop(wal);
    let wal = Wal::open(options(folder.path())).unwrap();
    assert_eq!(wal.add_dead_letters(&letters).unwrap(), 0);
    assert_eq!((wal.status().dead_letters, wal.status().held_records), (2, 1));
    assert_eq!(read_all(&wal.held().unwrap(), 1).0, BTreeMap::from([(1, vec![5])]));
}

/// A WAL that version 1 wrote, with a sealed generation, a held lane and dead letters: every later version
/// must read it (docs/format.md says how it was made).
#[test]
fn version_1_fixture_opens() {
    let fixture = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/wal-v1");
    let folder = tempfile::tempdir().unwrap();
    copy_tree(&fixture, folder.path());
    let wal = Wal::open(options(folder.path())).unwrap();
    assert_eq!(
        wal.id().to_string(),
        fs::read_to_string(fixture.join("identity"))
            .unwrap()
            .lines()
            .nth(1)
            .unwrap()
    );
    let marks = wal.log().watermarks();
    assert_eq!((marks.acked, marks.committed), (10, 52));
    let (found, damaged) = read_all(wal.log(), 11);
    assert_eq!(damaged, vec![]);
    let expected: BTreeMap<_, _> = (11..=50)
        .map(|sequence| (sequence, format!("{{\"n\":{sequence}}}").into_bytes()))
        .chain([(51, vec![b'x'; 100_000]), (52, incompressible())])
        .collect();
    assert!(found == expected);
    assert_eq!((wal.status().dead_letters, wal.status().held_records), (1, 1));
}

/// Makes the fixture anew: only for a new format version, with `TIDEGATE_MAKE_FIXTURE=DIR`.
#[test]
fn fixture_can_be_made_again() {
    let target = std::env::var_os("TIDEGATE_MAKE_FIXTURE").map(PathBuf::from);
    let folder = tempfile::tempdir().unwrap();
    let path = target.as_deref().unwrap_or(folder.path());
    let wal = Wal::open(options(path)).unwrap();
    for sequence in 1..=50 {
        append(&wal, &[format!("{{\"n\":{sequence}}}").into_bytes()]);
    }
    append(&wal, &[vec![b'x'; 100_000], incompressible()]);
    wal.log().ack(10).unwrap();
    let origin = Origin {
        wal: *wal.id().0.as_bytes(),
        seq: 3,
    };
    wal.held_or_create()
        .unwrap()
        .append(batch(&[vec![5]]))
        .unwrap()
        .wait()
        .unwrap();
    let letter = Letter {
        origin,
        record: Record {
            origin: Some(origin),
            key: Some(vec![1]),
            ..record(vec![2])
        },
        code: "InvalidRecord".into(),
        reason: "a keyless record for a compacted topic".into(),
        first_failed_ms: 1,
        last_failed_ms: 2,
    };
    assert_eq!(wal.add_dead_letters(&[letter]).unwrap(), 1);
    wal.close().unwrap();
}

/// Bytes that lz4 makes no smaller: an entry of several parts.
fn incompressible() -> Vec<u8> {
    let mut state = 1u64;
    let next = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        (state >> 56) as u8
    };
    std::iter::repeat_with(next).take(100_000).collect()
}

fn copy_tree(from: &Path, to: &Path) {
    for item in fs::read_dir(from).unwrap() {
        let item = item.unwrap();
        let target = to.join(item.file_name());
        if item.file_type().unwrap().is_dir() {
            fs::create_dir_all(&target).unwrap();
            copy_tree(&item.path(), &target);
        } else {
            fs::copy(item.path(), &target).unwrap();
        }
    }
}
