//! Tests of the forwarder's thread, without its thread and without Kafka.
#![allow(clippy::unwrap_used)]

use std::sync::Mutex;

use super::super::WORDS;
use super::super::settings::tests::options;
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
    })
    .unwrap();
    let shared = Arc::new(Shared {
        status: Mutex::default(),
        stop_at: Mutex::default(),
        signal: Arc::new(Signal::default()),
        commands: super::super::command::Commands::default(),
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
