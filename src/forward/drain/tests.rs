//! Tests of the forwarder's thread, without its thread and without Kafka.
#![allow(clippy::unwrap_used)]

use std::sync::Mutex;

use super::super::WORDS;
use super::super::deliveries::Place;
use super::super::mark::{Mark, RUNS_MAX, Reached};
use super::super::settings::tests::options;
use super::super::transaction::Stage;
use super::*;
use crate::record::Record;
use crate::wal::{self, Batch, Retain, Signal};

/// A forwarder without its thread, whose Kafka does not answer.
pub(in crate::forward) fn drain(folder: &tempfile::TempDir) -> Drain {
    let wal = Wal::open(wal::Options {
        path: folder.path().join("wal"),
        bytes_max: 1 << 30,
        free_bytes_min: 0,
        generation_bytes: 16 << 20,
        compression: true,
        retain: Retain::Off,
        linger: Duration::ZERO,
        keys: Default::default(),
    })
    .unwrap();
    let shared = Arc::new(Shared {
        status: Mutex::default(),
        stop_at: Mutex::default(),
        signal: Arc::new(Signal::default()),
        commands: super::super::command::Commands::default(),
        deliveries: Default::default(),
    });
    let (options, link) = (options(&[]), Arc::new(Link::new(WORDS)));
    let kind = Kind::Gapless { batch_bytes: None };
    let producer = Producer::create(&options, kind, None, &shared.signal, &link, None).unwrap();
    Drain::new(wal, options, None, shared, link, producer)
}

/// Commits a record for each of the topics.
pub(in crate::forward) fn push(drain: &Drain, topics: &[&str]) {
    let mut batch = Batch::new();
    for topic in topics {
        batch.push(&Record {
            topic: (*topic).into(),
            key: None,
            value: Some(b"value".to_vec()),
            headers: Vec::new(),
            received_ms: now_ms(),
            origin: None,
            idempotency: None,
        });
    }
    drain.wal.log().append(batch).unwrap().wait().unwrap();
}

/// A topic that Kafka is known to have.
pub(in crate::forward) fn known(drain: &mut Drain, topic: &str) -> u32 {
    let id = drain.topics.id(topic);
    drain.producer.native.open_topic(id as usize, topic).unwrap();
    drain.topics.set_state(id, TopicState::Good);
    id
}

fn walk(drain: &mut Drain) {
    while drain.main_step().unwrap() {}
}

#[test]
fn a_dead_letter_that_the_log_does_not_take_holds_up_nothing_else() {
    let folder = tempfile::tempdir().unwrap();
    let mut drain = drain(&folder);
    push(&drain, &["a"; 3]);
    known(&mut drain, "a");
    let refusal = Refusal {
        code: RDKafkaErrorCode::InvalidRecord,
        local: false,
    };
    // As after a full disk: the record is deferred, and the rest is sent.
    drain.main.window.push(0, 5, now_ms());
    drain.main.window.set(1, State::Deferred);
    drain.letters.insert((false, 1), refusal);
    drain.letters_at = Some(Instant::now() + Duration::from_secs(60));
    drain.letters_step().unwrap();
    walk(&mut drain);
    assert_eq!((drain.main.window.sent(), drain.letters.len()), (2, 1));
    // Its time has come.
    drain.letters_at = Some(Instant::now());
    drain.letters_step().unwrap();
    assert_eq!(drain.main.window.state(1), Some(State::Done));
    assert_eq!((drain.letters.len(), drain.letters_at), (0, None));
    assert_eq!(drain.wal.status().dead_letters, 1);
    drain.wal.close().unwrap();
}

/// A forwarder with transactions, one of which is open as far as it knows.
fn transactional(folder: &tempfile::TempDir) -> Drain {
    let mut drain = drain(folder);
    let mut transactions = Transactions::new("tidegate.test".to_owned(), 0);
    transactions.stage = Stage::Open;
    drain.transactions = Some(transactions);
    drain
}

#[test]
fn what_kafkas_watermark_tells_is_not_sent_again() {
    let folder = tempfile::tempdir().unwrap();
    let mut drain = transactional(&folder);
    push(&drain, &["a"; 12]);
    known(&mut drain, "a");
    let mark = Mark {
        main: Reached {
            acked: 3,
            beyond: vec![(5, 6), (9, 9)],
        },
        ..Mark::default()
    };
    drain.adopt(&mark).unwrap();
    walk(&mut drain);
    drain.settle().unwrap();
    let sent = |drain: &Drain| {
        (1..=12)
            .filter(|seq| drain.main.window.state(*seq) == Some(State::Sent))
            .collect::<Vec<_>>()
    };
    assert_eq!(sent(&drain), [4, 7, 8, 10, 11, 12]);
    assert_eq!(drain.wal.log().watermarks().acked, 3);
    // It goes on telling so until the watermark has passed it.
    assert_eq!(drain.mark().main.beyond, [(5, 6), (9, 9)]);
    // A producer that ended: some of it was committed, some was not.
    for seq in [4, 7, 8] {
        drain.main.window.set(seq, State::Staged);
    }
    assert_eq!(
        drain.mark().main,
        Reached {
            acked: 9,
            beyond: vec![]
        }
    );
    drain.rolled_back();
    let mark = Mark {
        main: Reached {
            acked: 7,
            beyond: vec![(9, 9)],
        },
        ..Mark::default()
    };
    drain.adopt(&mark).unwrap();
    walk(&mut drain);
    drain.settle().unwrap();
    assert_eq!(sent(&drain), [8, 10, 11, 12]);
    assert_eq!(drain.wal.log().watermarks().acked, 7);
    drain.wal.close().unwrap();
}

#[test]
fn nothing_is_settled_before_its_transaction_is_committed() {
    let folder = tempfile::tempdir().unwrap();
    let mut drain = transactional(&folder);
    push(&drain, &["a"; 3]);
    known(&mut drain, "a");
    walk(&mut drain);
    let reports = [1, 2, 3].map(|seq| Report {
        opaque: native::opaque(false, seq, seq),
        error: None,
        maybe_persisted: false,
        place: Some(Place {
            partition: 0,
            offset: 40 + seq as i64,
        }),
        origin: None,
    });
    drain.take(&reports);
    drain.settle().unwrap();
    assert_eq!(drain.wal.log().watermarks().acked, 0);
    assert_eq!((drain.in_transaction(), drain.mark().main.acked), (3, 3));
    assert_eq!(drain.shared.deliveries.place(2), None);
    drain.rolled_back();
    assert_eq!(
        (drain.in_transaction(), drain.mark().main.acked, drain.main.next),
        (0, 0, 1)
    );
    drain.wal.close().unwrap();
}

/// A thousand records of each of two topics by turns, of which the second is held and waits, for the lane takes nothing: as many
/// of the first are sent between them as the watermark can tell. And the second one.
fn with_runs_that_wait(folder: &tempfile::TempDir) -> (Drain, u32) {
    let mut drain = transactional(folder);
    let topics: Vec<&str> = std::iter::repeat_n(["a", "b"], 1_000).flatten().collect();
    push(&drain, &topics);
    known(&mut drain, "a");
    let held = known(&mut drain, "b");
    drain
        .topics
        .hold(held, RDKafkaErrorCode::UnknownTopicOrPartition, false);
    drain.lane_blocked = Some(Instant::now() + Duration::from_secs(60));
    walk(&mut drain);
    (drain, held)
}

#[test]
fn no_more_waits_behind_a_watermark_than_it_can_tell() {
    let folder = tempfile::tempdir().unwrap();
    let (mut drain, held) = with_runs_that_wait(&folder);
    let sent = drain.main.window.sent();
    assert!((60..=RUNS_MAX + 1).contains(&sent), "{sent}");
    for seq in 1..=drain.main.window.end() {
        if drain.main.window.state(seq) == Some(State::Sent) {
            drain.main.window.set(seq, State::Staged);
        }
    }
    assert!(drain.mark().metadata().len() < 4096);
    // It works again.
    drain.lane_blocked = None;
    drain.topics.set_state(held, TopicState::Good);
    drain.main.window.undefer();
    drain.main.rewind();
    walk(&mut drain);
    assert_eq!(drain.in_transaction(), 2_000);
    drain.wal.close().unwrap();
}

#[test]
fn suspects_are_sent_however_much_waits_between_them() {
    let folder = tempfile::tempdir().unwrap();
    let (mut drain, _) = with_runs_that_wait(&folder);
    let last = drain.main.window.end() - 1;
    for seq in 1..=last {
        if drain.main.window.state(seq) == Some(State::Sent) {
            drain.main.window.set(seq, State::Waiting);
        }
    }
    // Kafka has refused a batch of them, and the watermark cannot tell of more that waits.
    assert_eq!(drain.main.window.deferred_runs(), RUNS_MAX);
    let main = &mut drain.main;
    main.sift.start(main.window.waiting_up_to(last), 1 << 20);
    main.rewind();
    walk(&mut drain);
    assert!(drain.main.window.sent() > 0);
    drain.wal.close().unwrap();
}

#[test]
fn marks_of_settled_records_do_not_pile_up() {
    let folder = tempfile::tempdir().unwrap();
    let mut drain = drain(&folder);
    push(&drain, &["a"; 3]);
    drain.main.settled.extend([1, 2, 3, 50]);
    known(&mut drain, "a");
    walk(&mut drain);
    drain.main.settled.extend([1, 2]);
    drain.settle().unwrap();
    assert_eq!(drain.main.settled, std::collections::HashSet::from([50]));
    drain.wal.close().unwrap();
}

#[test]
fn what_waits_in_a_full_window_is_still_sent() {
    let folder = tempfile::tempdir().unwrap();
    let mut drain = drain(&folder);
    drain.main.slots_max = 4;
    push(&drain, &["a"; 10]);
    let topic = known(&mut drain, "a");
    // The lane cannot take its records: they fill the window.
    drain
        .topics
        .hold(topic, RDKafkaErrorCode::UnknownTopicOrPartition, false);
    drain.lane_blocked = Some(Instant::now() + Duration::from_secs(60));
    walk(&mut drain);
    assert_eq!((drain.main.window.len(), drain.main.window.sent()), (4, 0));
    assert_eq!(drain.allowance(false), 0);
    // It works again.
    drain.lane_blocked = None;
    drain.topics.set_state(topic, TopicState::Good);
    drain.main.window.undefer();
    drain.main.rewind();
    walk(&mut drain);
    assert_eq!((drain.main.window.len(), drain.main.window.sent()), (4, 4));
    drain.wal.close().unwrap();
}
