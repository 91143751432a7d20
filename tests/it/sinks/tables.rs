//! Tables that are there already, that grow, and that have strange names.

use tidegate::land::row::{Field, Row};
use tidegate::land::sink::Written;
use tidegate::land::table::{Kind, Table};

use super::place::{Place, Stored};
use super::{TOPIC, batch, begun, done, known, numbered, plain, row, valid};

pub fn preparing_again_changes_nothing(place: &dyn Place) {
    let table = plain();
    let mut sink = begun(place, &table);
    sink.prepare().unwrap();
    let first = batch(0, vec![numbered(0), numbered(1)]);
    assert_eq!(done(sink.as_mut(), &first), valid(2));
    assert_eq!(done(sink.as_mut(), &batch(2, vec![row(1, None, None)])).clashes, 1);
    sink.prepare().unwrap();
    let mut other = place.sink(&table);
    other.prepare().unwrap();
    other.close().unwrap();
    sink.prepare().unwrap();
    assert_eq!(sink.positions(TOPIC).unwrap(), [known(0, 1, 3)]);
    assert_eq!(sink.write(&first).unwrap(), Written::Moved);
    sink.close().unwrap();
    let expected: Vec<Stored> = first.rows.iter().map(|row| Stored::of(&table, TOPIC, row)).collect();
    assert_eq!(place.stored(&table), expected);
    assert_eq!(place.apart(&table).len(), 1);
}

pub fn fields_declared_since_get_columns(place: &dyn Place) {
    let field = |name: &str, kind| (name.to_owned(), kind);
    let before = Table::new("grows", &[field("a", Kind::Text), field("b", Kind::Integer)]);
    // In front of the others too: what a row has in which column is not a matter of order.
    let after = Table::new(
        "grows",
        &[
            field("at", Kind::Timestamp),
            field("b", Kind::Integer),
            field("real", Kind::Real),
            field("a", Kind::Text),
            field("yes", Kind::Boolean),
            field("json", Kind::Json),
            field("text", Kind::Text),
        ],
    );
    let old = |seq| Row {
        fields: vec![Field::Text(format!("old {seq}")), Field::Integer(seq)],
        ..numbered(seq)
    };
    let new = Row {
        fields: vec![
            Field::Timestamp("2026-11-24T07:30:00.000000Z".to_owned()),
            Field::Integer(2),
            Field::Real(2.5),
            Field::Text("new".to_owned()),
            Field::Boolean(true),
            Field::Json("[2]".to_owned()),
            Field::Text("text".to_owned()),
        ],
        ..numbered(2)
    };
    let mut behind = begun(place, &before);
    let first = batch(0, vec![old(0), old(1)]);
    assert_eq!(done(behind.as_mut(), &first), valid(2));
    let mut ahead = place.sink(&after);
    assert_eq!(ahead.positions(TOPIC).unwrap(), [known(0, 1, 2)]);
    let second = batch(
        2,
        vec![new, {
            // Who it is does not depend on what is declared.
            Row {
                fields: vec![Field::Null; 7],
                ..numbered(0)
            }
        }],
    );
    let counts = done(ahead.as_mut(), &second);
    assert_eq!((counts.valid, counts.duplicates), (1, 1));
    // A lander that was not started again since goes on as it was.
    let third = batch(4, vec![old(4)]);
    assert_eq!(done(behind.as_mut(), &third), valid(1));
    behind.close().unwrap();
    ahead.close().unwrap();
    let grown = |row: &Row| {
        let mut stored = Stored::of(&before, TOPIC, row);
        let of = |name: &str| {
            let place = before.columns.iter().position(|column| column.name == name);
            place.and_then(|place| stored.fields[place].clone())
        };
        stored.fields = after.columns.iter().map(|column| of(&column.name)).collect();
        stored
    };
    let expected = [
        grown(&first.rows[0]),
        grown(&first.rows[1]),
        Stored::of(&after, TOPIC, &second.rows[0]),
        grown(&third.rows[0]),
    ];
    assert_eq!(place.stored(&after), expected);
    assert_eq!(place.apart(&after), []);
}

pub fn names_are_kept_whatever_is_in_them(place: &dyn Place) {
    let sources = [
        "order",
        "Order Lines",
        "SELECT",
        "or\"der's",
        "Gr\u{f6}\u{df}e \u{6d77}",
        "a.b",
        "--",
        "$1",
        "%s;?",
        "1st",
        "null",
    ];
    let fields = [
        "select",
        "Group",
        "from where",
        "it's",
        "\"quoted\"",
        "\u{6d77}\u{1f30a}",
        "a.b",
        "$1",
        "?1",
        ":x",
        "%",
        "back\\slash",
        "value",
        "WAL",
        "Reason",
        "rowid",
        "oid",
        "valid_view",
    ];
    let fields = fields.map(|name| (name.to_owned(), Kind::Text));
    for source in sources {
        let table = Table::new(source, &fields);
        let of = |seq: i64| Row {
            fields: (fields.iter())
                .map(|(name, _)| Field::Text(format!("{source} {seq}: {name}")))
                .collect(),
            ..numbered(seq)
        };
        let mut sink = begun(place, &table);
        let batch = batch(0, vec![of(1), of(2)]);
        assert_eq!(done(sink.as_mut(), &batch), valid(2), "{source}");
        let clash = Row { value: None, ..of(1) };
        assert_eq!(
            done(sink.as_mut(), &super::batch(2, vec![clash])).clashes,
            1,
            "{source}"
        );
        sink.prepare().unwrap();
        sink.close().unwrap();
        let expected: Vec<Stored> = batch.rows.iter().map(|row| Stored::of(&table, TOPIC, row)).collect();
        assert_eq!(place.stored(&table), expected, "{source}");
        assert_eq!(place.apart(&table).len(), 1, "{source}");
        assert_eq!(place.positions(&table, TOPIC), [known(0, 1, 3)], "{source}");
    }
    // None of them wrote to another's.
    for source in sources {
        assert_eq!(place.stored(&Table::new(source, &fields)).len(), 2, "{source}");
    }
}

pub fn a_sink_dropped_without_close_has_stored_everything(place: &dyn Place) {
    let table = plain();
    let mut sink = begun(place, &table);
    let mut expected = Vec::new();
    for n in 0..5 {
        let batch = batch(2 * n, vec![numbered(n), row(0, None, Some(b"clash"))]);
        let counts = done(sink.as_mut(), &batch);
        assert_eq!(counts.clashes, 1, "{n}");
        expected.push(Stored::of(&table, TOPIC, &batch.rows[0]));
        drop(sink);
        // Still asked while another one is there, and once more from the start.
        assert_eq!(place.positions(&table, TOPIC), [known(0, 1, 2 * n + 2)]);
        sink = place.sink(&table);
        assert_eq!(sink.positions(TOPIC).unwrap(), [known(0, 1, 2 * n + 2)]);
        assert_eq!(sink.write(&batch).unwrap(), Written::Moved);
    }
    drop(sink);
    assert_eq!(place.stored(&table), expected);
    assert_eq!(place.apart(&table).len(), 5);
}
