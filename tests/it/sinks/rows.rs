//! What a batch leaves behind, read back.

use std::sync::Arc;

use tidegate::land::row::{Batch, Field, Move, RECEIVED_MS_MAX, Rejected, RejectedKind, Row};
use tidegate::land::sink::Counts;
use tidegate::land::table::{Kind, Table};

use super::place::{Place, REFUSAL, Stored, StoredRejected};
use super::{CLUSTER, TOPIC, batch, begun, done, known, numbered, plain, row, valid};

/// Keys and values that somebody's escaping gets wrong.
pub fn odd() -> Vec<Option<Vec<u8>>> {
    let texts: [&[u8]; 22] = [
        b"",
        b"\0",
        b"a\0b",
        b"\xff\xfe",
        b"\xc3",
        b"\\N",
        b"\\.",
        b"\\",
        b"\\x00",
        b"\t",
        b"\n",
        b"\r\n",
        b"a\tb\\c\nd",
        b"\"quoted\"",
        b"it's",
        b"NULL",
        b"0",
        b"00",
        b"1e3",
        b" 1 ",
        "\u{1f30a}\u{2028}\u{feff}e\u{301}".as_bytes(),
        br#"{"a":"\u0000","b":[]}"#,
    ];
    let texts = texts.iter().map(|text| Some(text.to_vec()));
    [None].into_iter().chain(texts).collect()
}

/// Writes these as one batch and reads them back.
#[track_caller]
fn reads_back(place: &dyn Place, table: &Table, rows: Vec<Row>) {
    let mut sink = begun(place, table);
    let batch = batch(0, rows);
    let counts = done(sink.as_mut(), &batch);
    sink.close().unwrap();
    let invalid = batch.rows.iter().filter(|row| !row.valid()).count() as u64;
    let expected = Counts {
        invalid,
        ..valid(batch.rows.len() as u64 - invalid)
    };
    assert_eq!(counts, expected);
    let mut expected: Vec<Stored> = batch.rows.iter().map(|row| Stored::of(table, TOPIC, row)).collect();
    expected.sort_by(|a, b| (&a.wal, a.seq).cmp(&(&b.wal, b.seq)));
    let stored = place.stored(table);
    assert_eq!(stored.len(), expected.len());
    for (stored, expected) in stored.iter().zip(&expected) {
        // Not assert_eq: a value may be a megabyte.
        assert!(
            stored == expected,
            "{:.2000} instead of {:.2000}",
            format!("{stored:?}"),
            format!("{expected:?}")
        );
    }
    assert_eq!(place.apart(table), []);
    assert_eq!(place.positions(table, TOPIC), [known(0, 1, batch.moves[0].to)]);
}

pub fn rows_and_position_are_stored_together(place: &dyn Place) {
    let table = plain();
    let mut sink = begun(place, &table);
    let first = batch(0, vec![numbered(1), numbered(2)]);
    assert_eq!(done(sink.as_mut(), &first), valid(2));
    // Offsets have holes: of transactions, of compaction.
    let mut second = batch(2, vec![numbered(3)]);
    second.rows[0].offset = 7;
    second.rows[0].reason = Some("expected 2 fields, got 1".to_owned());
    second.moves[0].to = 10;
    let invalid = Counts {
        invalid: 1,
        ..Counts::default()
    };
    assert_eq!(done(sink.as_mut(), &second), invalid);
    sink.close().unwrap();
    let rows = first.rows.iter().chain(&second.rows);
    let expected: Vec<Stored> = rows.map(|row| Stored::of(&table, TOPIC, row)).collect();
    assert_eq!(place.stored(&table), expected);
    assert_eq!(place.positions(&table, TOPIC), [known(0, 1, 10)]);
}

pub fn keys_and_values_read_back_byte_for_byte(place: &dyn Place) {
    let mut rows: Vec<Row> = Vec::new();
    let odd = odd();
    for (n, bytes) in (0..).zip(&odd) {
        let other = &odd[(n + 5) % odd.len()];
        rows.push(row(i64::try_from(n).unwrap(), bytes.as_deref(), other.as_deref()));
    }
    let every_byte: Vec<u8> = (0..=255).cycle().take(1 << 20).collect();
    let text = "tab\t, line\n, back\\slash, \u{1f30a}; ".repeat(32 << 10);
    rows.push(row(1000, Some(&every_byte[..4000]), Some(&every_byte)));
    rows.push(row(1001, Some(&text.as_bytes()[..1984]), Some(text.as_bytes())));
    reads_back(place, &plain(), rows);
}

pub fn fields_read_back_at_their_extremes(place: &dyn Place) {
    let table = Table::new("typed", &Kind::ALL.map(|(name, kind)| (format!("a_{name}"), kind)));
    let deep = format!("{}1{}", r#"{"a":["#.repeat(50), "]}".repeat(50));
    let long = "\u{1f30a}\t\n\\\"'".repeat(10_000);
    let texts = [
        "",
        " ",
        "\\N",
        "NULL",
        "0012",
        "1e3",
        "true",
        "a\tb\\c\r\nd",
        "'\"",
        "\u{1f30a}",
        &long,
    ];
    let integers = [i64::MIN, i64::MAX, 0, -1, (1 << 53) + 1];
    let reals = [
        f64::MAX,
        f64::MIN,
        f64::MIN_POSITIVE,
        f64::from_bits(1),
        f64::EPSILON,
        -0.0,
        0.1 + 0.2,
        1.0,
        9_007_199_254_740_993.0,
        1e23,
    ];
    let times = [
        "0001-01-01T00:00:00.000000Z",
        "1969-12-31T23:59:59.999999Z",
        "1970-01-01T00:00:00.000000Z",
        "2026-11-24T07:30:00.000001Z",
        "9999-12-31T23:59:59.999999Z",
    ];
    let json = [
        // (JSON's null is no field at all: Field::Null.)
        "[null]",
        "true",
        "\"\"",
        "\"null\"",
        "12",
        "-9223372036854775808",
        "18446744073709551615",
        "1.5",
        "[]",
        "{}",
        r#"{"a":null,"b":["\\N","\t","\"","it's",{"":""}],"\u00e9":"\ud83c\udf0a"}"#,
        &deep,
    ];
    let all = (texts.map(|text| (0, Field::Text(text.to_owned()))).into_iter())
        .chain(integers.map(|number| (1, Field::Integer(number))))
        .chain(reals.map(|number| (2, Field::Real(number))))
        .chain([true, false].map(|yes| (3, Field::Boolean(yes))))
        .chain(times.map(|time| (4, Field::Timestamp(time.to_owned()))))
        .chain(json.map(|json| (5, Field::Json(json.to_owned()))))
        .chain([(0, Field::Null)]);
    // Each value alone, among NULLs: a value in a neighbour's column is seen.
    let rows = all.zip(0..).map(|((place, field), seq)| {
        let mut fields = vec![Field::Null; table.columns.len()];
        fields[place] = field;
        Row {
            fields,
            ..numbered(seq)
        }
    });
    let rows = rows.collect();
    reads_back(place, &table, rows);
}

pub fn times_read_back_to_the_millisecond(place: &dyn Place) {
    let times = [
        None,
        Some(0),
        Some(1),
        Some(999),
        Some(951_782_400_000),
        Some(1_795_505_400_123),
        Some(RECEIVED_MS_MAX),
    ];
    let rows = times.into_iter().zip(0..).map(|(received_ms, seq)| Row {
        received_ms,
        ..numbered(seq)
    });
    reads_back(place, &plain(), rows.collect());
}

/// What a producer puts in a value may end up in a reason or in an error.
const WORDS: [&str; 6] = [
    "field \"it's\"\nis not one: \\N \t \\x00",
    "",
    "\\",
    "\r\n",
    "'); DROP TABLE rejected; --",
    "\u{1f30a} $1 ? :a @b %s {}",
];

pub fn reasons_and_errors_read_back_whatever_is_in_them(place: &dyn Place) {
    let table = plain();
    let mut sink = begun(place, &table);
    let mut rows: Vec<Row> = (0..).take(2 * WORDS.len()).map(numbered).collect();
    for (row, words) in rows.iter_mut().zip(WORDS) {
        row.reason = Some(words.to_owned());
    }
    let mut batch = batch(0, rows);
    let odd = odd();
    for ((row, words), bytes) in batch.rows.split_off(WORDS.len()).into_iter().zip(WORDS).zip(odd) {
        let row = Row {
            key: bytes.clone(),
            value: bytes,
            received_ms: None,
            ..row
        };
        batch.rejected.push(Rejected {
            row,
            kind: RejectedKind::Refused,
            error: words.to_owned(),
        });
    }
    let expected = Counts {
        invalid: WORDS.len() as u64,
        refused: WORDS.len() as u64,
        ..Counts::default()
    };
    assert_eq!(done(sink.as_mut(), &batch), expected);
    sink.close().unwrap();
    let expected: Vec<Stored> = batch.rows.iter().map(|row| Stored::of(&table, TOPIC, row)).collect();
    assert_eq!(place.stored(&table), expected);
    let expected: Vec<StoredRejected> = batch
        .rejected
        .iter()
        .map(|one| StoredRejected::of(&batch, one))
        .collect();
    assert_eq!(place.apart(&table), expected);
}

pub fn identities_and_places_read_back_at_their_extremes(place: &dyn Place) {
    let table = plain();
    let mut sink = place.sink(&table);
    let (cluster, topic) = ("it's a \"cluster\"", "A.topic_with-all");
    let place_of = |partition, epoch, from, to| Move {
        partition,
        epoch,
        from,
        to,
    };
    let moves = vec![
        place_of(i32::MAX, i64::MAX, i64::MAX - 2, i64::MAX),
        place_of(0, 1, 0, 1),
    ];
    for place in &moves {
        let at = super::Known {
            cluster: cluster.to_owned(),
            ..known(place.partition, place.epoch, place.from)
        };
        assert!(sink.set_position(topic, &at, None).unwrap());
    }
    let mut rows = vec![numbered(0), numbered(i64::MAX), numbered(7)];
    rows[0].offset = i64::MAX - 2;
    rows[0].partition = i32::MAX;
    rows[1].offset = i64::MAX - 1;
    rows[1].partition = i32::MAX;
    rows[1].wal = Arc::from(format!("kafka:{cluster}/{topic}/{}/{}", i32::MAX, i64::MAX));
    let last = rows.pop().unwrap();
    let batch = Batch {
        cluster: cluster.to_owned(),
        topic: topic.to_owned(),
        rows,
        moves,
        rejected: vec![tidegate::land::row::clash(last)],
        duplicates: 0,
    };
    assert_eq!(done(sink.as_mut(), &batch), Counts { clashes: 1, ..valid(2) });
    sink.close().unwrap();
    let expected: Vec<Stored> = batch.rows.iter().map(|row| Stored::of(&table, topic, row)).collect();
    assert_eq!(place.stored(&table), expected);
    assert_eq!(place.apart(&table), [StoredRejected::of(&batch, &batch.rejected[0])]);
    let next: Vec<(String, i32, i64)> = (place.positions(&table, topic).into_iter())
        .map(|known| (known.cluster, known.partition, known.position.next))
        .collect();
    assert_eq!(
        next,
        [(cluster.to_owned(), 0, 1), (cluster.to_owned(), i32::MAX, i64::MAX)]
    );
}

pub fn ten_thousand_rows_are_one_batch(place: &dyn Place) {
    let table = plain();
    let mut sink = begun(place, &table);
    assert_eq!(
        done(sink.as_mut(), &batch(0, (0..10_000).map(numbered).collect())),
        valid(10_000)
    );
    // Half of it again, and each tenth of that half with another value.
    let rows = (5_000..15_000).map(|seq| match seq {
        5_000..10_000 if seq % 10 == 0 => row(seq, None, Some(b"another")),
        _ => numbered(seq),
    });
    let again = batch(10_000, rows.collect());
    let expected = Counts {
        duplicates: 4_500,
        clashes: 500,
        ..valid(5_000)
    };
    assert_eq!(done(sink.as_mut(), &again), expected);
    sink.close().unwrap();
    let stored = place.stored(&table);
    assert_eq!(stored.len(), 15_000);
    for (stored, seq) in stored.iter().zip(0..) {
        let expected = Row {
            offset: if seq < 10_000 { seq } else { seq + 5_000 },
            ..numbered(seq)
        };
        assert_eq!(*stored, Stored::of(&table, TOPIC, &expected));
    }
    let apart = place.apart(&table);
    assert_eq!(apart.len(), 500);
    assert!(
        apart
            .iter()
            .all(|one| one.value.as_deref() == Some(b"another") && one.seq % 10 == 0)
    );
    assert_eq!(place.positions(&table, TOPIC), [known(0, 1, 20_000)]);
}

pub fn a_batch_without_rows_moves_its_position(place: &dyn Place) {
    let table = plain();
    let mut sink = begun(place, &table);
    let mut empty = batch(0, Vec::new());
    empty.moves[0].to = 9;
    assert_eq!(done(sink.as_mut(), &empty), Counts::default());
    // All that it had were repeats of each other's; only the rejected one is left.
    let mut rejected = batch(9, vec![numbered(1)]);
    let row = rejected.rows.remove(0);
    rejected.rejected.push(tidegate::land::row::clash(row));
    assert_eq!(done(sink.as_mut(), &rejected).clashes, 1);
    sink.close().unwrap();
    assert_eq!(place.stored(&table), []);
    assert_eq!(
        place.apart(&table),
        [StoredRejected::of(&rejected, &rejected.rejected[0])]
    );
    assert_eq!(place.positions(&table, TOPIC), [known(0, 1, 10)]);
}

pub fn what_the_place_refuses_is_kept_apart(place: &dyn Place) {
    let table = plain();
    let mut sink = begun(place, &table);
    if !place.refuse(&table) {
        return;
    }
    let values: [&[u8]; 7] = [b"1", b"refused", b"2", b"ignored", b"refused", b"3", b"4"];
    let rows = values.iter().zip(1..).map(|(value, seq)| row(seq, None, Some(value)));
    let batch = batch(0, rows.collect());
    let expected = Counts { refused: 3, ..valid(4) };
    assert_eq!(done(sink.as_mut(), &batch), expected);
    // Among repeats and clashes each is told for what it is.
    let mixed = [(1, "clash"), (11, "5"), (10, "refused"), (3, "2"), (8, "ignored")];
    let mixed = mixed.map(|(seq, value)| row(seq, None, Some(value.as_bytes())));
    let expected = Counts {
        duplicates: 1,
        clashes: 1,
        refused: 2,
        ..valid(1)
    };
    assert_eq!(done(sink.as_mut(), &super::batch(7, mixed.to_vec())), expected);
    sink.close().unwrap();
    let seqs: Vec<i64> = place.stored(&table).iter().map(|row| row.seq).collect();
    assert_eq!(seqs, [1, 3, 6, 7, 11]);
    let apart = place.apart(&table);
    let told: Vec<(i64, &str, bool)> = (apart.iter())
        .map(|one| (one.offset, one.kind.as_str(), one.error.contains(REFUSAL)))
        .collect();
    assert_eq!(
        told,
        [
            (1, "refused", true),
            (3, "refused", false),
            (4, "refused", true),
            (7, "identity_clash", false),
            (9, "refused", true),
            (11, "refused", false)
        ]
    );
    assert_eq!(apart[0].cluster, CLUSTER);
    assert_eq!(place.positions(&table, TOPIC), [known(0, 1, 12)]);
}

pub fn a_write_that_breaks_off_stores_nothing(place: &dyn Place) {
    let table = plain();
    let mut sink = begun(place, &table);
    if !place.refuse(&table) {
        return;
    }
    assert!(sink.set_position(TOPIC, &known(1, 1, 0), None).unwrap());
    let value = |seq, value: &[u8]| row(seq, None, Some(value));
    let mut batch = batch(
        0,
        vec![
            value(1, b"1"),
            value(2, b"refused"),
            value(3, b"broken"),
            value(4, b"4"),
        ],
    );
    let clashing = batch.rows.pop().unwrap();
    batch.rejected.push(tidegate::land::row::clash(clashing));
    batch.moves.push(Move {
        partition: 1,
        to: 5,
        ..batch.moves[0]
    });
    sink.write(&batch).unwrap_err();
    // Another one sees nothing of it, and the sink itself goes on once it is prepared again.
    assert_eq!(place.positions(&table, TOPIC), [known(0, 1, 0), known(1, 1, 0)]);
    sink.prepare().unwrap();
    batch.rows[2].value = Some(b"3".to_vec());
    let expected = Counts {
        refused: 1,
        clashes: 1,
        ..valid(2)
    };
    assert_eq!(done(sink.as_mut(), &batch), expected);
    sink.close().unwrap();
    let offsets: Vec<i64> = place.stored(&table).iter().map(|row| row.offset).collect();
    assert_eq!(offsets, [0, 2]);
    let offsets: Vec<i64> = place.apart(&table).iter().map(|one| one.offset).collect();
    assert_eq!(offsets, [1, 3]);
    assert_eq!(place.positions(&table, TOPIC), [known(0, 1, 4), known(1, 1, 5)]);
}
