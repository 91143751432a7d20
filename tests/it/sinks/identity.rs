//! A record is stored once, and what is stored is never changed.

use tidegate::land::row::{Batch, Move, Row};
use tidegate::land::sink::{Counts, Written};
use tidegate::land::table::{Kind, Table};

use super::place::{Place, Stored, StoredRejected};
use super::rows::odd;
use super::{TOPIC, WAL, batch, begun, done, known, numbered, plain, row, valid};

pub fn a_repeat_is_counted_and_not_stored(place: &dyn Place) {
    let table = plain();
    let mut sink = begun(place, &table);
    let first = batch(0, vec![numbered(0), numbered(1)]);
    assert_eq!(done(sink.as_mut(), &first), valid(2));
    // Only key and value say whether it is the same record.
    let again = Row {
        received_ms: None,
        reason: Some("too late".to_owned()),
        fields: vec![tidegate::land::row::Field::Null],
        ..numbered(1)
    };
    let second = batch(2, vec![again.clone(), numbered(2), numbered(0)]);
    let expected = Counts {
        duplicates: 2,
        ..valid(1)
    };
    assert_eq!(done(sink.as_mut(), &second), expected);
    // Also at another partition, in another topic, of another cluster: an identity is for ever.
    let elsewhere = super::Known {
        cluster: "other".to_owned(),
        ..known(3, 2, 40)
    };
    assert!(sink.set_position("other", &elsewhere, None).unwrap());
    let third = Batch {
        cluster: "other".to_owned(),
        topic: "other".to_owned(),
        rows: vec![Row {
            partition: 3,
            offset: 40,
            ..again
        }],
        moves: vec![Move {
            partition: 3,
            epoch: 2,
            from: 40,
            to: 41,
        }],
        ..Batch::default()
    };
    let expected = Counts {
        duplicates: 1,
        ..Counts::default()
    };
    assert_eq!(done(sink.as_mut(), &third), expected);
    sink.close().unwrap();
    let rows = first.rows.iter().chain(&second.rows[1..2]);
    let expected: Vec<Stored> = rows.map(|row| Stored::of(&table, TOPIC, row)).collect();
    assert_eq!(place.stored(&table), expected);
    assert_eq!(place.apart(&table), []);
    assert_eq!(place.positions(&table, TOPIC), [known(0, 1, 5)]);
    assert_eq!(place.positions(&table, "other")[0].position.next, 41);
}

pub fn another_key_or_value_is_a_clash_and_changes_nothing(place: &dyn Place) {
    let table = plain();
    let mut sink = begun(place, &table);
    let first = batch(0, vec![row(1, Some(b"k"), Some(b"v")), row(2, None, None)]);
    assert_eq!(done(sink.as_mut(), &first), valid(2));
    let clashing = [
        row(1, Some(b"k"), Some(b"V")),
        row(1, Some(b"K"), Some(b"v")),
        row(1, None, Some(b"v")),
        row(1, Some(b"k"), None),
        // Swapped.
        row(1, Some(b"v"), Some(b"k")),
        row(2, Some(b""), None),
        row(2, None, Some(b"")),
    ];
    let mut expected = Vec::new();
    for (row, from) in clashing.into_iter().zip(2..) {
        let batch = batch(from, vec![row]);
        let counts = Counts {
            clashes: 1,
            ..Counts::default()
        };
        assert_eq!(done(sink.as_mut(), &batch), counts, "{batch:?}");
        let rejected = tidegate::land::row::clash(batch.rows[0].clone());
        expected.push(StoredRejected::of(&batch, &rejected));
    }
    // What clashed is not what is there: the original is a repeat still.
    let again = batch(9, vec![row(1, Some(b"k"), Some(b"v"))]);
    assert_eq!(done(sink.as_mut(), &again).duplicates, 1);
    // Partitions have the same offsets: which of them it was is kept.
    assert!(sink.set_position(TOPIC, &known(1, 5, 10), None).unwrap());
    let mut both = batch(10, vec![numbered(3), row(1, None, None)]);
    both.rows[0].partition = 1;
    both.rows[1].offset = 10;
    both.moves[0].to = 11;
    both.moves.push(Move {
        partition: 1,
        epoch: 5,
        from: 10,
        to: 11,
    });
    assert_eq!(done(sink.as_mut(), &both).clashes, 1);
    let rejected = tidegate::land::row::clash(both.rows[1].clone());
    expected.push(StoredRejected::of(&both, &rejected));
    sink.close().unwrap();
    let rows = first.rows.iter().chain(&both.rows[..1]);
    let stored: Vec<Stored> = rows.map(|row| Stored::of(&table, TOPIC, row)).collect();
    assert_eq!(place.stored(&table), stored);
    assert_eq!(place.apart(&table), expected);
    assert_eq!(expected[0].kind, "identity_clash");
    assert!(expected[0].error.contains(WAL), "{}", expected[0].error);
}

pub fn every_key_and_value_is_equal_only_to_itself(place: &dyn Place) {
    let table = plain();
    let odd = odd();
    let mut pairs = Vec::new();
    for one in &odd {
        pairs.extend(odd.iter().map(|other| (one.as_deref(), other.as_deref())));
    }
    let mut sink = begun(place, &table);
    let count = i64::try_from(pairs.len()).unwrap();
    let in_value = |bytes, seq| row(seq, Some(b"k"), bytes);
    let in_key = |bytes, seq| row(count + seq, bytes, Some(b"v"));
    // The first of each pair is stored, then the second comes under the same identity; as value, then as key.
    let first = (pairs.iter().zip(0..)).flat_map(|((one, _), seq)| [in_value(*one, seq), in_key(*one, seq)]);
    let second = (pairs.iter().zip(0..)).flat_map(|((_, other), seq)| [in_value(*other, seq), in_key(*other, seq)]);
    let (first, second) = (batch(0, first.collect()), batch(2 * count, second.collect()));
    assert_eq!(done(sink.as_mut(), &first), valid(2 * pairs.len() as u64));
    let counts = done(sink.as_mut(), &second);
    sink.close().unwrap();
    let equal = pairs.iter().filter(|(one, other)| one == other).count();
    let clashes: Vec<String> = (second.rows.iter().zip(&first.rows))
        .filter(|(second, first)| !second.is_same_record(first))
        .map(|(second, first)| {
            format!(
                "{:?} {:?} after {:?} {:?}",
                second.key, second.value, first.key, first.value
            )
        })
        .collect();
    let found: Vec<i64> = place.apart(&table).iter().map(|one| one.offset - 2 * count).collect();
    let expected: Vec<i64> = (0..2 * count)
        .filter(|n| {
            let n = usize::try_from(*n).unwrap();
            !second.rows[n].is_same_record(&first.rows[n])
        })
        .collect();
    assert_eq!(found, expected, "{clashes:#?}");
    assert_eq!(equal, odd.len());
    let expected = Counts {
        duplicates: 2 * equal as u64,
        clashes: 2 * (pairs.len() - equal) as u64,
        ..Counts::default()
    };
    assert_eq!(counts, expected);
    assert_eq!(place.stored(&table).len(), 2 * pairs.len());
}

pub fn repeats_and_clashes_within_a_batch_are_counted(place: &dyn Place) {
    let table = plain();
    let mut sink = begun(place, &table);
    assert_eq!(done(sink.as_mut(), &batch(0, vec![numbered(0)])), valid(1));
    let rows = vec![
        row(1, None, Some(b"one")),
        row(1, None, Some(b"one")),
        row(1, Some(b""), Some(b"one")),
        row(2, None, Some(b"two")),
        row(1, None, Some(b"uno")),
        numbered(0),
        numbered(0),
        row(0, None, None),
        row(1, None, Some(b"one")),
    ];
    let settled = batch(1, rows.clone());
    assert_eq!(
        (settled.rows.len(), settled.rejected.len(), settled.duplicates),
        (3, 3, 3)
    );
    let expected = Counts {
        duplicates: 4,
        clashes: 3,
        ..valid(2)
    };
    assert_eq!(done(sink.as_mut(), &settled), expected);
    sink.close().unwrap();
    let stored: Vec<(i64, i64)> = place.stored(&table).iter().map(|row| (row.seq, row.offset)).collect();
    assert_eq!(stored, [(0, 0), (1, 1), (2, 4)]);
    let apart = place.apart(&table);
    let expected: Vec<StoredRejected> = settled
        .rejected
        .iter()
        .map(|one| StoredRejected::of(&settled, one))
        .collect();
    assert_eq!(apart, expected);
    let offsets: Vec<i64> = apart.iter().map(|one| one.offset).collect();
    assert_eq!(offsets, [3, 5, 8]);
}

pub fn two_sources_of_one_place_do_not_mix(place: &dyn Place) {
    let (a, b) = (plain(), Table::new("orders2", &[("n".to_owned(), Kind::Integer)]));
    // Of one process, which shares its way to the place.
    let process = place.process();
    let (mut first, mut second) = (process(&a), process(&b));
    first.prepare().unwrap();
    second.prepare().unwrap();
    assert!(first.set_position(TOPIC, &known(0, 1, 0), None).unwrap());
    assert_eq!(second.positions(TOPIC).unwrap(), []);
    let of_a = batch(0, vec![row(1, None, Some(b"a"))]);
    assert_eq!(second.write(&of_a).unwrap(), Written::Moved);
    assert!(second.set_position(TOPIC, &known(0, 1, 0), None).unwrap());
    assert_eq!(done(first.as_mut(), &of_a), valid(1));
    assert_eq!(second.positions(TOPIC).unwrap(), [known(0, 1, 0)]);
    // The same identity at the same place of Kafka, and no repeat: it is another source's.
    let of_b = batch(0, vec![row(1, None, Some(b"b"))]);
    assert_eq!(done(second.as_mut(), &of_b), valid(1));
    // Both reject what is at the same offset.
    let clash = batch(1, vec![row(1, None, Some(b"c"))]);
    assert_eq!(done(first.as_mut(), &clash).clashes, 1);
    assert_eq!(done(second.as_mut(), &clash).clashes, 1);
    // One is closed, the other goes on once it is prepared again.
    first.close().unwrap();
    second.prepare().unwrap();
    assert_eq!(done(second.as_mut(), &batch(2, vec![numbered(2)])), valid(1));
    second.close().unwrap();
    for (table, stored, rejected, next) in [(&a, &of_a, 1, 2), (&b, &of_b, 1, 3)] {
        let rows = place.stored(table);
        assert_eq!(rows[0], Stored::of(table, TOPIC, &stored.rows[0]));
        assert_eq!(rows.len() + 1, usize::try_from(next).unwrap());
        assert_eq!(place.apart(table).len(), rejected);
        assert_eq!(place.positions(table, TOPIC), [known(0, 1, next)]);
    }
}
