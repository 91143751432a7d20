//! The letters against a model: whatever is added, requeued, failed again, settled, discarded, over restarts.
#![allow(clippy::unwrap_used, clippy::indexing_slicing)]

use std::collections::BTreeMap;
use std::path::Path;

use proptest::prelude::*;

use super::super::tests::{options, record, wait_until};
use super::*;

fn letter(wal: &Wal, seq: Sequence, failed_ms: i64) -> Letter {
    let mut record = record(seq.to_string().into_bytes());
    record.topic = format!("t{}", seq % 3);
    Letter {
        origin: origin(wal, seq),
        record,
        code: "MessageSizeTooLarge".into(),
        reason: failed_ms.to_string(),
        first_failed_ms: failed_ms,
        last_failed_ms: failed_ms,
    }
}

fn origin(wal: &Wal, seq: Sequence) -> Origin {
    Origin {
        wal: *wal.id().0.as_bytes(),
        seq,
    }
}

/// What an operator is shown: (own sequence, state, first failure, last failure).
fn shown(wal: &Wal) -> Vec<(Sequence, LetterState, i64, i64)> {
    let Some(log) = wal.letters_log() else {
        return Vec::new();
    };
    let mut reader = log.reader(log.watermarks().acked + 1);
    let mut found = Vec::new();
    while let Read::Records(chunk) = reader.read(1000).unwrap() {
        for (at, bytes) in chunk.entries() {
            let letter = Letter::decode(bytes).unwrap();
            match wal.letter(&letter.origin) {
                Some((place, state)) if place == at => {
                    assert_eq!(letter.record.value, Some(letter.origin.seq.to_string().into_bytes()));
                    found.push((letter.origin.seq, state, letter.first_failed_ms, letter.last_failed_ms));
                }
                _ => {}
            }
        }
    }
    found.sort_by_key(|(seq, ..)| *seq);
    found
}

/// How many it was, all at once.
fn handled(result: Result<Handled, LettersError>) -> u64 {
    let Handled { letters, left } = result.unwrap();
    assert_eq!(left, None);
    letters
}

fn open(folder: &Path) -> Wal {
    Wal::open(options(folder)).unwrap()
}

fn read_main(wal: &Wal, from: Sequence) -> Vec<(Sequence, Record)> {
    let mut reader = wal.log().reader(from);
    let mut found = Vec::new();
    while let Read::Records(chunk) = reader.read(1000).unwrap() {
        found.extend(chunk.records().map(|(seq, record)| (seq, record.unwrap().to_record())));
    }
    found
}

#[derive(Debug, Clone)]
enum Step {
    Fail(u8),
    Requeue(Option<u8>),
    Discard(Option<u8>),
    /// Kafka takes everything up to a share of the log, or refuses what was requeued once more.
    Settle(u8, bool),
    Reopen,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        6 => (0u8..9).prop_map(Step::Fail),
        3 => prop::option::of(0u8..9).prop_map(Step::Requeue),
        1 => prop::option::of(0u8..9).prop_map(Step::Discard),
        4 => (any::<u8>(), any::<bool>()).prop_map(|(share, again)| Step::Settle(share, again)),
        2 => Just(Step::Reopen),
    ];
    prop::collection::vec(step, 1..40)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 40, ..ProptestConfig::default() })]
    #[test]
    fn letters_agree_with_their_model(steps in steps()) {
        let folder = tempfile::tempdir().unwrap();
        let mut wal = open(folder.path());
        // Own sequence -> (state, first failure, last failure).
        let mut model: BTreeMap<Sequence, (LetterState, i64, i64)> = BTreeMap::new();
        let mut acked = 0;
        for (clock, step) in (1..).zip(steps) {
            match step {
                Step::Fail(seq) => {
                    let seq = Sequence::from(seq);
                    let added = wal.add_dead_letters(&[letter(&wal, seq, clock)]).unwrap();
                    match model.get_mut(&seq) {
                        None => {
                            prop_assert_eq!(added, 1);
                            model.insert(seq, (LetterState::Waiting, clock, clock));
                        }
                        Some((LetterState::Waiting, ..)) => prop_assert_eq!(added, 0),
                        Some((state, _, last)) => {
                            prop_assert_eq!(added, 1);
                            (*state, *last) = (LetterState::Waiting, clock);
                        }
                    }
                }
                Step::Requeue(which) | Step::Discard(which) => {
                    let these = |seq: u8| Which::These(HashSet::from([origin(&wal, seq.into())]));
                    let meant: Vec<Sequence> = (model.iter())
                        .filter(|(seq, (state, ..))| {
                            *state == LetterState::Waiting && which.is_none_or(|which| **seq == Sequence::from(which))
                        })
                        .map(|(seq, _)| *seq)
                        .collect();
                    let which = which.map_or(Which::All, these);
                    prop_assert_eq!(wal.count_letters(&which).unwrap(), meant.len() as u64);
                    if let Step::Discard(_) = step {
                        prop_assert_eq!(handled(wal.discard_letters(&which, Piece::default())), meant.len() as u64);
                        model.retain(|seq, _| !meant.contains(seq));
                    } else {
                        let from = wal.log().committed() + 1;
                        prop_assert_eq!(handled(wal.requeue_letters(&which, Piece::default())), meant.len() as u64);
                        let sent = read_main(&wal, from);
                        prop_assert_eq!(sent.len(), meant.len());
                        for (at, record) in sent {
                            let who = record.origin.unwrap();
                            prop_assert_eq!(record.value, Some(who.seq.to_string().into_bytes()));
                            prop_assert!(meant.contains(&who.seq));
                            model.get_mut(&who.seq).unwrap().0 = LetterState::Requeued(at);
                        }
                    }
                }
                Step::Settle(share, again) => {
                    let committed = wal.log().committed();
                    let target = acked + (committed - acked) * u64::from(share) / 255;
                    for (seq, (state, _, last)) in &mut model {
                        if again && matches!(*state, LetterState::Requeued(at) if at <= target) {
                            (*state, *last) = (LetterState::Waiting, clock);
                            prop_assert_eq!(wal.add_dead_letters(&[letter(&wal, *seq, clock)]).unwrap(), 1);
                        }
                    }
                    wal.log().ack(target).unwrap();
                    acked = target;
                    model.retain(|_, (state, ..)| !matches!(*state, LetterState::Requeued(at) if at <= acked));
                }
                Step::Reopen => {
                    wal.close().unwrap();
                    drop(wal);
                    wal = open(folder.path());
                }
            }
            let expected: Vec<_> = model.iter().map(|(seq, (state, first, last))| (*seq, *state, *first, *last)).collect();
            prop_assert_eq!(shown(&wal), expected);
            prop_assert_eq!(wal.status().dead_letters, model.len() as u64);
        }
    }
}

#[test]
fn a_log_of_letters_in_which_nothing_is_left_is_acked() {
    let folder = tempfile::tempdir().unwrap();
    let wal = open(folder.path());
    wal.add_dead_letters(&[letter(&wal, 1, 1), letter(&wal, 2, 1), letter(&wal, 4, 1)])
        .unwrap();
    let log = wal.letters_log().unwrap();
    assert_eq!(
        handled(wal.discard_letters(&Which::Topic("t1".into()), Piece::default())),
        2
    );
    assert_eq!(log.watermarks().acked, 1, "the second is still there");
    assert_eq!(handled(wal.requeue_letters(&Which::All, Piece::default())), 1);
    wal.log().ack(1).unwrap();
    wait_until("nothing is left", || {
        wal.status().dead_letters == 0 && log.watermarks().acked == log.watermarks().committed
    });
}

#[test]
fn a_letter_that_was_requeued_before_a_crash_is_removed_after_it() {
    let folder = tempfile::tempdir().unwrap();
    let wal = open(folder.path());
    wal.add_dead_letters(&[letter(&wal, 1, 1)]).unwrap();
    assert_eq!(handled(wal.requeue_letters(&Which::All, Piece::default())), 1);
    assert_eq!(
        handled(wal.requeue_letters(&Which::All, Piece::default())),
        0,
        "it is on its way"
    );
    assert_eq!(
        handled(wal.discard_letters(&Which::All, Piece::default())),
        0,
        "it is on its way"
    );
    wal.close().unwrap();
    drop(wal);
    let wal = open(folder.path());
    assert_eq!(shown(&wal), [(1, LetterState::Requeued(1), 1, 1)]);
    wal.log().ack(1).unwrap();
    // Nobody asks: the watchdog sees it.
    let letters = wal.inner.letters.get().unwrap();
    wait_until("it is removed", || letters.count() == 0);
}

#[test]
fn a_letter_whose_new_place_is_damaged_waits_again() {
    let folder = tempfile::tempdir().unwrap();
    let wal = open(folder.path());
    wal.add_dead_letters(&[letter(&wal, 901, 1), letter(&wal, 902, 2)])
        .unwrap();
    assert_eq!(handled(wal.requeue_letters(&Which::All, Piece::default())), 2);
    let requeued = shown(&wal);
    let LetterState::Requeued(lost) = requeued[0].1 else {
        unreachable!()
    };
    assert_eq!(wal.keep_letters(lost, lost).unwrap(), 1);
    wal.log().ack(2).unwrap();
    let left = [(901, LetterState::Waiting, 1, 1)];
    assert_eq!(shown(&wal), left);
    wal.close().unwrap();
    drop(wal);
    let wal = open(folder.path());
    assert_eq!(shown(&wal), left);
    wal.close().unwrap();
}

#[test]
fn in_pieces_each_letter_is_requeued_once_and_one_that_comes_back_is_not_among_them() {
    let folder = tempfile::tempdir().unwrap();
    let wal = open(folder.path());
    let count = 40;
    for seq in 1..=count {
        let mut letter = letter(&wal, seq, 1);
        letter.record.value = Some(vec![b'x'; 100_000]);
        wal.add_dead_letters(&[letter]).unwrap();
    }
    // Its time is over before it begins.
    let mut piece = Piece {
        within: None,
        until: Some(Instant::now()),
    };
    let (mut requeued, mut pieces) = (0, 0);
    loop {
        let handled = wal.requeue_letters(&Which::All, piece).unwrap();
        requeued += handled.letters;
        pieces += 1;
        // What was sent again fails again at once.
        let mut again = letter(&wal, pieces, 2);
        again.record.value = Some(vec![b'x'; 100_000]);
        assert_eq!(wal.add_dead_letters(&[again]).unwrap(), 1);
        match handled.left {
            Some(left) => piece.within = Some(left),
            None => break,
        }
    }
    assert_eq!(requeued, count);
    assert!(pieces > 2, "{pieces}");
    let waiting = Which::All;
    assert_eq!(wal.count_letters(&waiting).unwrap(), pieces);
    wal.close().unwrap();
}
