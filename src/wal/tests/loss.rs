//! What is damaged, torn or gone: it is told, never more than once and never too seldom, and no sequence is used twice.

use super::*;

/// Flips, holes and cuts in a sealed generation cost the records they hit, and nothing else.
#[test]
fn damage_is_told_by_range_and_the_rest_goes_on() {
    let folder = tempfile::tempdir().unwrap();
    let options = Options {
        compression: false,
        ..options(folder.path())
    };
    let wal = Wal::open(options.clone()).unwrap();
    for i in 0..200u32 {
        append(&wal, &vec![vec![i as u8; 500]; 20]);
    }
    wal.close().unwrap();
    drop(wal);
    let data = generations(folder.path()).remove(0).join(DATA_FILE);
    let mut bytes = fs::read(&data).unwrap();
    // Every copy of commits 50 and 120: records 1001..=1020 and 2401..=2420.
    for commit in [50u8, 120] {
        let pattern = vec![commit; 500];
        let places: Vec<_> = memchr::memmem::find_iter(&bytes, &pattern).collect();
        assert!(!places.is_empty());
        for place in places {
            bytes[place] ^= 0x10;
        }
    }
    fs::write(&data, &bytes).unwrap();
    let wal = Wal::open(options.clone()).unwrap();
    let (found, damaged) = read_all(wal.log(), 1);
    assert_eq!(damaged, vec![(1001, 1020), (2401, 2420)]);
    assert_eq!(found.len(), 4000 - 40);
    assert_eq!(wal.status().corruption_records, 40);
    // Its time come, the damaged generation is set aside and not deleted; also when the watermark was past the
    // damage before a restart.
    wal.log().ack(3000).unwrap();
    wal.close().unwrap();
    drop(wal);
    let wal = Wal::open(options).unwrap();
    assert_eq!(read_all(wal.log(), 3001).1, vec![]);
    wal.log().ack(4000).unwrap();
    wait_until("it is set aside", || folder.path().join("damaged").exists());
    assert_eq!(append(&wal, &[vec![1]]).first_seq, 4001);
}

#[test]
fn a_generation_that_is_gone_is_damage_not_silence() {
    let folder = tempfile::tempdir().unwrap();
    let options = Options {
        generation_bytes: 2 << 20,
        compression: false,
        ..options(folder.path())
    };
    let wal = Wal::open(options.clone()).unwrap();
    for i in 0..200u32 {
        append(&wal, &vec![vec![i as u8; 1000]; 100]);
    }
    wal.close().unwrap();
    drop(wal);
    let folders = generations(folder.path());
    fs::remove_dir_all(&folders[0]).unwrap();
    fs::remove_dir_all(&folders[2]).unwrap();
    let wal = Wal::open(options).unwrap();
    let (found, damaged) = read_all(wal.log(), 1);
    let lost: u64 = damaged.iter().map(|(first, last)| last - first + 1).sum();
    assert_eq!(found.len() as u64 + lost, 20_000);
    assert_eq!(damaged.len(), 2);
    assert_eq!(wal.status().corruption_records, lost);
}

/// The newest generation loses its end: below the witness that is damage, and the numbers are not used again.
#[test]
fn what_the_witness_saw_is_missed() {
    let folder = tempfile::tempdir().unwrap();
    let wal = Wal::open(options(folder.path())).unwrap();
    for i in 0..50u8 {
        append(&wal, &[vec![i; 300]]);
    }
    wal.close().unwrap();
    drop(wal);
    let data = generations(folder.path()).pop().unwrap().join(DATA_FILE);
    fs::OpenOptions::new()
        .write(true)
        .open(&data)
        .unwrap()
        .set_len(0)
        .unwrap();
    let wal = Wal::open(options(folder.path())).unwrap();
    assert_eq!(wal.status().corruption_records, 50);
    assert_eq!(read_all(wal.log(), 1).1, vec![(1, 50)]);
    // How far it had come is not certain: none of the sequences that may have been used is.
    let receipt = append(&wal, &[vec![1]]);
    assert_eq!(receipt.first_seq, 51 + GUESSED);
    assert_eq!(
        read_all(wal.log(), 51),
        (BTreeMap::from([(receipt.first_seq, vec![1])]), vec![])
    );
}

/// A commit that lost a frame before it was answered is dropped whole: all of a batch or none.
#[test]
fn torn_last_commit_is_dropped_whole() {
    let folder = tempfile::tempdir().unwrap();
    let options = Options {
        compression: false,
        ..options(folder.path())
    };
    let wal = Wal::open(options.clone()).unwrap();
    append(&wal, &vec![vec![1; 900]; 30]);
    let witness = fs::read(folder.path().join(witness::FILE)).unwrap();
    let receipt = append(&wal, &vec![vec![2; 900]; 60]);
    assert_eq!(
        receipt,
        Receipt {
            first_seq: 31,
            last_seq: 90
        }
    );
    wal.close().unwrap();
    drop(wal);
    // As a crash between the writes of that commit leaves it: the witness before it, one frame not there.
    fs::write(folder.path().join(witness::FILE), witness).unwrap();
    let data = generations(folder.path()).pop().unwrap().join(DATA_FILE);
    let mut bytes = fs::read(&data).unwrap();
    let places: Vec<_> = memchr::memmem::find_iter(&bytes, &31u64.to_le_bytes()[..]).collect();
    for place in places {
        bytes[place + 40] ^= 1;
    }
    fs::write(&data, &bytes).unwrap();
    let wal = Wal::open(options.clone()).unwrap();
    let (found, damaged) = read_all(wal.log(), 1);
    assert_eq!(damaged, vec![]);
    assert_eq!(found.len(), 30);
    // None of its sequences is used again.
    assert_eq!(append(&wal, &[vec![7]]).first_seq, 91);
    assert_eq!(read_all(wal.log(), 31), (BTreeMap::from([(91, vec![7])]), vec![]));
    wal.close().unwrap();
    drop(wal);
    // What is left of it does not come back when the generation behind it is lost.
    let behind = generations(folder.path()).pop().unwrap();
    fs::remove_dir_all(behind).unwrap();
    assert_eq!(lost(folder.path()), vec![(91, 91)]);
    let wal = Wal::open(options).unwrap();
    let (found, damaged) = read_all(wal.log(), 1);
    assert_eq!((found.len(), damaged), (30, vec![(91, 91)]));
}

/// A loss is told until the operator removes what was set aside, also when the watermark is long past it.
#[test]
fn a_loss_is_not_forgotten_when_the_watermark_has_passed_it() {
    for kind in ["file", "folder", "all"] {
        let folder = tempfile::tempdir().unwrap();
        let options = Options {
            generation_bytes: 2 << 20,
            compression: false,
            ..options(folder.path())
        };
        let wal = Wal::open(options.clone()).unwrap();
        for i in 0..100u32 {
            append(&wal, &vec![vec![i as u8; 1000]; 100]);
            // The next generation may take longer to make than this takes to fill one.
            assert!(wal.log().wait_for_room(Duration::from_secs(20)));
        }
        wal.log().ack(10).unwrap();
        wal.close().unwrap();
        drop(wal);
        let folders = generations(folder.path());
        match kind {
            "file" => fs::remove_file(folders[1].join(DATA_FILE)).unwrap(),
            "folder" => fs::remove_dir_all(&folders[1]).unwrap(),
            _ => folders.iter().for_each(|path| fs::remove_dir_all(path).unwrap()),
        }
        let before = lost(folder.path());
        assert!(!before.is_empty(), "{kind}");
        let records: u64 = before.iter().map(|(first, last)| last - first + 1).sum();
        for _ in 0..2 {
            let wal = Wal::open(options.clone()).unwrap();
            read_all(wal.log(), wal.log().watermarks().acked + 1);
            assert_eq!(wal.status().corruption_records, records, "{kind}");
            wal.log().ack(wal.log().watermarks().committed).unwrap();
            append(&wal, &[vec![1]]);
            wal.log().ack(wal.log().watermarks().committed).unwrap();
            wal.close().unwrap();
            drop(wal);
            assert_eq!(lost(folder.path()), before, "{kind}");
        }
        let wal = Wal::open(options.clone()).unwrap();
        let aside = folder.path().join("damaged");
        wait_until("it is set aside", || aside.exists());
        wal.close().unwrap();
        drop(wal);
        fs::remove_dir_all(aside).unwrap();
        assert_eq!(lost(folder.path()), vec![], "{kind}");
        assert_eq!(Wal::open(options).unwrap().status().corruption_records, 0, "{kind}");
    }
}

/// The folder of the held records or the dead letters is removed whole: that is told.
#[test]
fn a_side_log_that_is_gone_is_told() {
    let folder = tempfile::tempdir().unwrap();
    let wal = Wal::open(options(folder.path())).unwrap();
    append(&wal, &[vec![1]]);
    let held = wal.held_or_create().unwrap();
    held.append(batch(&[vec![5]])).unwrap().wait().unwrap();
    wal.close().unwrap();
    drop((held, wal));
    let faults = || -> usize {
        let verified = verify_all(&Archive::open(folder.path()).unwrap(), &|_| {}).unwrap();
        verified.iter().map(|log| log.faults.len()).sum()
    };
    assert_eq!(faults(), 0);
    fs::remove_dir_all(folder.path().join(HELD)).unwrap();
    assert_eq!(faults(), 1);
    drop(Wal::open(options(folder.path())).unwrap());
    assert_eq!(faults(), 1);
    fs::remove_file(folder.path().join("held.made")).unwrap();
    assert_eq!(faults(), 0);
}

/// The gateway goes on with a new one, and what had been in the old one is told until somebody accepts it.
#[test]
fn a_side_log_that_was_made_anew_is_told() {
    let folder = tempfile::tempdir().unwrap();
    let hold = |value| {
        let wal = Wal::open(options(folder.path())).unwrap();
        append(&wal, &[vec![1]]);
        let held = wal.held_or_create().unwrap();
        held.append(batch(&[vec![value]])).unwrap().wait().unwrap();
        wal.close().unwrap();
    };
    let told = || {
        let archive = Archive::open(folder.path()).unwrap();
        let verified = verify_all(&archive, &|_| {}).unwrap();
        let faults: usize = verified.iter().map(|log| log.faults.len()).sum();
        assert_eq!(super::super::signs(folder.path()).unwrap().len(), faults);
        faults
    };
    hold(5);
    for _ in 0..2 {
        fs::remove_dir_all(folder.path().join(HELD)).unwrap();
        hold(6);
        assert_eq!(told(), 1);
    }
    hold(7);
    assert_eq!(told(), 1, "a start later, too");
    fs::remove_file(folder.path().join("held.gone")).unwrap();
    assert_eq!(told(), 0);
}

/// Nothing but the identity is left: a record under it could be taken for one of before.
#[test]
fn an_emptied_folder_gets_a_new_identity() {
    let folder = tempfile::tempdir().unwrap();
    let wal = Wal::open(options(folder.path())).unwrap();
    let before = wal.id();
    append(&wal, &[vec![1]]);
    wal.close().unwrap();
    drop(wal);
    for path in generations(folder.path()) {
        fs::remove_dir_all(path).unwrap();
    }
    fs::remove_file(folder.path().join(witness::FILE)).unwrap();
    assert_ne!(Wal::open(options(folder.path())).unwrap().id(), before);
}

#[test]
fn lost_witness_repeats_records_and_loses_none() {
    let folder = tempfile::tempdir().unwrap();
    let wal = Wal::open(options(folder.path())).unwrap();
    append(&wal, &vec![vec![1; 100]; 10]);
    wal.log().ack(5).unwrap();
    wal.close().unwrap();
    drop(wal);
    fs::remove_file(folder.path().join(witness::FILE)).unwrap();
    let wal = Wal::open(options(folder.path())).unwrap();
    assert_eq!(wal.log().watermarks().acked, 0);
    assert_eq!(read_all(wal.log(), 1).0.len(), 10);
    assert_eq!(append(&wal, &[vec![1]]).first_seq, 11 + GUESSED);
}

/// A disk that does not give the newest generation back is no reason to begin behind it: the start ends.
#[test]
fn log_whose_newest_file_cannot_be_read_does_not_open() {
    let folder = tempfile::tempdir().unwrap();
    let wal = Wal::open(options(folder.path())).unwrap();
    append(&wal, &[vec![1]]);
    wal.close().unwrap();
    drop(wal);
    let data = generations(folder.path()).remove(0).join(DATA_FILE);
    fs::remove_file(&data).unwrap();
    // A folder can be opened and not read, as a file on a disk that fails.
    fs::create_dir(&data).unwrap();
    assert!(matches!(Wal::open(options(folder.path())), Err(OpenError::Io { .. })));
}

/// What `wal verify` would tell as lost.
fn lost(folder: &Path) -> Vec<(Sequence, Sequence)> {
    let verified = verify_all(&Archive::open(folder).unwrap(), &|_| {}).unwrap();
    let lost = verified.iter().flat_map(|log| &log.lost);
    lost.map(|range| (range.first, range.last)).collect()
}
