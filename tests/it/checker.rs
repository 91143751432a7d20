//! The checker checks: each fault that was planted is found, and nothing else is.

use crate::support::ledger::{Fault, Ledger, Outcome, Tally};
use crate::support::topics::Message;

cases!["checker":
    a_clean_run_has_no_fault [],
    repeats_of_one_identity_are_counted_and_no_fault [],
    a_planted_loss_is_found [],
    a_planted_swap_is_found [],
    a_planted_swap_across_keys_is_found [],
    a_planted_flip_is_found [],
    a_planted_second_identity_is_found [],
    a_refused_record_that_is_there_is_found [],
    a_wrong_key_is_found [],
];

/// Six records of two keys, answered OK but for the last, which nobody answered; and Kafka as it should be.
fn clean() -> (Ledger, Vec<Message>) {
    let ledger = Ledger::default();
    let mut messages = Vec::new();
    for i in 0..6 {
        let key = if i % 2 == 0 { "even" } else { "odd" };
        let value = format!("value-{i}");
        let place = ledger.intend("t", Some(key), value.as_bytes());
        let seq = i + 1;
        if i < 5 {
            ledger.settle(
                place,
                Outcome::Ok {
                    wal: "w".to_owned(),
                    seq,
                },
            );
        }
        messages.push(Message {
            partition: 0,
            offset: i.try_into().unwrap(),
            timestamp_ms: None,
            key: Some(key.into()),
            value: value.into_bytes(),
            headers: vec![
                ("tidegate-wal".to_owned(), b"w".to_vec()),
                ("tidegate-seq".to_owned(), seq.to_string().into_bytes()),
            ],
        });
    }
    (ledger, messages)
}

fn tally(ledger: &Ledger, messages: Vec<Message>) -> Tally {
    ledger.check(&[("t", messages)]).unwrap()
}

fn faults(ledger: &Ledger, messages: Vec<Message>) -> Vec<Fault> {
    ledger.check(&[("t", messages)]).unwrap_err().0
}

fn a_clean_run_has_no_fault() {
    let (ledger, messages) = clean();
    let expected = Tally {
        ok: 5,
        unknown: 1,
        refused: 0,
        delivered: 6,
        repeats: 0,
    };
    assert_eq!(tally(&ledger, messages), expected);
    assert_eq!((ledger.ok(), ledger.last_seq()), (5, 5));
}

fn repeats_of_one_identity_are_counted_and_no_fault() {
    let (ledger, mut messages) = clean();
    let again = messages[2..].to_vec();
    messages.extend(again);
    assert_eq!(tally(&ledger, messages).repeats, 4);
}

fn a_planted_loss_is_found() {
    let (ledger, mut messages) = clean();
    messages.remove(3);
    assert!(matches!(faults(&ledger, messages)[..], [Fault::Lost(_)]));
    // What nobody answered may be missing.
    let (ledger, mut messages) = clean();
    messages.pop();
    assert_eq!(tally(&ledger, messages).delivered, 5);
}

fn a_planted_swap_is_found() {
    let (ledger, mut messages) = clean();
    messages.swap(1, 3);
    let faults = faults(&ledger, messages);
    assert!(
        !faults.is_empty() && faults.iter().all(|fault| matches!(fault, Fault::Order(_))),
        "{faults:?}"
    );
}

fn a_planted_swap_across_keys_is_found() {
    let (ledger, mut messages) = clean();
    messages.swap(1, 2);
    assert!(matches!(faults(&ledger, messages)[..], [Fault::Order(_)]));
}

fn a_planted_flip_is_found() {
    let (ledger, mut messages) = clean();
    messages[4].value[0] ^= 1;
    let faults = faults(&ledger, messages);
    assert!(
        matches!(faults[..], [Fault::NeverSent(_), Fault::Lost(_)]),
        "{faults:?}"
    );
}

fn a_planted_second_identity_is_found() {
    let (ledger, mut messages) = clean();
    let mut twice = messages[5].clone();
    twice.headers[1].1 = b"7".to_vec();
    messages.push(twice);
    assert!(matches!(faults(&ledger, messages)[..], [Fault::Identity(_)]));
    // Under the identity of another record.
    let (ledger, mut messages) = clean();
    let mut twice = messages[5].clone();
    twice.headers[1].1 = b"1".to_vec();
    messages.push(twice);
    assert!(matches!(faults(&ledger, messages)[..], [Fault::Clash(_)]));
    // Under an identity that is not the one of the answer.
    let (ledger, mut messages) = clean();
    messages[0].headers[0].1 = b"x".to_vec();
    assert!(matches!(faults(&ledger, messages)[..], [Fault::Identity(_)]));
}

fn a_refused_record_that_is_there_is_found() {
    let (ledger, messages) = clean();
    ledger.settle(5, Outcome::Refused(503));
    assert!(matches!(faults(&ledger, messages)[..], [Fault::RefusedIsThere(_)]));
}

fn a_wrong_key_is_found() {
    let (ledger, mut messages) = clean();
    messages[0].key = None;
    assert!(matches!(faults(&ledger, messages)[..], [Fault::Key(_)]));
}
