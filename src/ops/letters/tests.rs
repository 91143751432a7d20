//! Names, selections, lines, and the newest letters.

#![allow(clippy::unwrap_used, clippy::indexing_slicing)]

use super::*;
use crate::wal::Piece;

#[test]
fn a_letter_is_named_by_its_wal_and_sequence() {
    let own = WalId::new_random();
    let name: Name = "42".parse().unwrap();
    assert_eq!(name.origin(own).unwrap().wal, *own.0.as_bytes());
    let other = WalId::new_random();
    let name: Name = format!("{other}:42").parse().unwrap();
    let origin = name.origin(own).unwrap();
    assert_eq!((origin.wal, origin.seq), (*other.0.as_bytes(), 42));
    for text in ["", "x", "x:1", ":1", "1:2", "-1"] {
        assert!(text.parse::<Name>().is_err(), "{text}");
    }
}

#[test]
fn the_newest_come_first_however_many_are_gone() {
    let folder = tempfile::tempdir().unwrap();
    let wal = Wal::open(crate::wal::Options {
        path: folder.path().join("wal"),
        bytes_max: 1 << 30,
        free_bytes_min: 0,
        generation_bytes: 1 << 20,
        compression: false,
        retain: crate::wal::Retain::Off,
        linger: std::time::Duration::ZERO,
        keys: Default::default(),
    })
    .unwrap();
    let origin = |seq: Sequence| Origin {
        wal: *wal.id().0.as_bytes(),
        seq,
    };
    let letter = |seq: Sequence| Letter {
        origin: origin(seq),
        record: crate::record::Record {
            topic: "t".into(),
            key: None,
            value: Some(b"v".to_vec()),
            headers: Vec::new(),
            received_ms: 1,
            origin: None,
            idempotency: None,
        },
        code: "c".into(),
        reason: "r".into(),
        first_failed_ms: 2,
        last_failed_ms: 3,
    };
    let newest = |limit: usize| {
        let query = LetterQuery {
            newest: true,
            limit: Some(limit),
            ..LetterQuery::default()
        };
        let mut letters = Letters::open(&wal, Log::reader);
        let page = letters.page(&query, Limits::ANSWER, LetterItem::of).unwrap();
        assert!(page.next.is_none() && page.damaged.is_empty());
        let seqs: Vec<Sequence> = page.items.iter().map(|item| item.seq).collect();
        seqs
    };
    assert_eq!(newest(5), Vec::<Sequence>::new(), "none yet");
    wal.add_dead_letters(&(1..=1000).map(letter).collect::<Vec<_>>())
        .unwrap();
    assert_eq!(newest(3), [1000, 999, 998]);
    // The rest is found beyond what is no letter any more.
    let gone = (100..=800).chain(990..=1000).map(origin);
    wal.discard_letters(&Which::These(gone.collect()), Piece::default())
        .unwrap();
    let left: Vec<Sequence> = (801..=989).rev().chain((1..=99).rev()).collect();
    assert_eq!(newest(200), left[..200]);
    assert_eq!(newest(1000), left);
    wal.close().unwrap();
}

#[test]
fn exactly_one_way_to_say_which() {
    let own = WalId::new_random();
    let which = |text: &str| serde_json::from_str::<Selection>(text).unwrap().which(own);
    assert_eq!(which(r#"{"all":true}"#), Ok(Which::All));
    assert_eq!(which(r#"{"topic":"t"}"#), Ok(Which::Topic("t".into())));
    assert!(matches!(which(r#"{"letters":[{"seq":1}]}"#), Ok(Which::These(these)) if these.len() == 1));
    for text in [
        "{}",
        r#"{"all":true,"topic":"t"}"#,
        r#"{"letters":[{"wal":"x","seq":1}]}"#,
    ] {
        assert!(which(text).is_err(), "{text}");
    }
    assert!(serde_json::from_str::<Selection>(r#"{"al":true}"#).is_err());
}

#[test]
fn a_whole_letter_is_read_from_its_line() {
    let letter = Letter {
        origin: Origin { wal: [7; 16], seq: 9 },
        record: crate::record::Record {
            topic: "t".into(),
            key: Some(vec![0xff]),
            value: None,
            headers: vec![("h".into(), b"v".to_vec())],
            received_ms: 1,
            origin: None,
            idempotency: None,
        },
        code: "MessageSizeTooLarge".into(),
        reason: "too large".into(),
        first_failed_ms: 2,
        last_failed_ms: 3,
    };
    let whole = WholeLetter::of(WalId::new_random(), letter.clone(), LetterState::Requeued(5));
    let line = serde_json::to_string(&whole).unwrap();
    assert_eq!(serde_json::from_str::<WholeLetter>(&line).unwrap(), whole);
    let item = LetterItem::of(WalId::new_random(), letter, LetterState::Waiting);
    let line = serde_json::to_string(&item).unwrap();
    assert!(
        line.contains(r#""state":"waiting""#) && line.contains("key_base64"),
        "{line}"
    );
    assert_eq!(serde_json::from_str::<LetterItem>(&line).unwrap(), item);
}
