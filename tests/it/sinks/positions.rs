//! Positions, and the guard that they are.

use tidegate::land::row::{Batch, Move, clash};
use tidegate::land::sink::{Known, Position, Sink, Written};

use super::place::{Place, Stored, positions};
use super::{CLUSTER, TOPIC, batch, begun, done, known, numbered, plain, position, valid};

pub fn an_empty_place_has_no_positions(place: &dyn Place) {
    let table = plain();
    let mut sink = place.sink(&table);
    assert_eq!(sink.positions(TOPIC).unwrap(), []);
    sink.close().unwrap();
    assert_eq!(place.stored(&table), []);
    assert_eq!(place.apart(&table), []);
}

pub fn a_position_is_set_from_none_once(place: &dyn Place) {
    let table = plain();
    let mut sink = place.sink(&table);
    let with_id = |id: Option<&str>, partition| Known {
        position: Position {
            topic_id: id.map(str::to_owned),
            ..position(1, 5)
        },
        ..known(partition, 1, 5)
    };
    let first = with_id(Some("Sb7-_\"it's\"+/="), 0);
    assert!(sink.set_position(TOPIC, &first, None).unwrap());
    for again in [known(0, 1, 5), known(0, 2, 0), first.clone()] {
        assert!(!sink.set_position(TOPIC, &again, None).unwrap());
    }
    // No id and an empty one differ.
    let (second, third) = (with_id(None, 1), with_id(Some(""), 2));
    assert!(sink.set_position(TOPIC, &second, None).unwrap());
    assert!(sink.set_position(TOPIC, &third, None).unwrap());
    let all = [first, second, third];
    assert_eq!(positions(sink.as_mut(), TOPIC), all);
    sink.close().unwrap();
    assert_eq!(place.positions(&table, TOPIC), all);
}

pub fn a_position_set_from_another_one_stays(place: &dyn Place) {
    let table = plain();
    let mut sink = place.sink(&table);
    let id = |id: &str| Some(id.to_owned());
    let there = Position {
        topic_id: id("a"),
        ..position(3, 50)
    };
    let at = |position: &Position| Known {
        position: position.clone(),
        ..known(0, 0, 0)
    };
    let wanted = at(&position(4, 0));
    assert!(
        !sink.set_position(TOPIC, &wanted, Some(&there)).unwrap(),
        "there is none yet"
    );
    assert_eq!(sink.positions(TOPIC).unwrap(), []);
    assert!(sink.set_position(TOPIC, &at(&there), None).unwrap());
    let others = [
        Position {
            epoch: 2,
            ..there.clone()
        },
        Position {
            epoch: 4,
            ..there.clone()
        },
        Position {
            next: 49,
            ..there.clone()
        },
        Position {
            next: 51,
            ..there.clone()
        },
        Position {
            topic_id: id("b"),
            ..there.clone()
        },
        Position {
            topic_id: None,
            ..there.clone()
        },
    ];
    for other in &others {
        assert!(!sink.set_position(TOPIC, &wanted, Some(other)).unwrap(), "{other:?}");
    }
    for elsewhere in [
        Known {
            partition: 1,
            ..wanted.clone()
        },
        Known {
            cluster: "other".to_owned(),
            ..wanted.clone()
        },
    ] {
        assert!(
            !sink.set_position(TOPIC, &elsewhere, Some(&there)).unwrap(),
            "{elsewhere:?}"
        );
    }
    assert!(!sink.set_position("other", &wanted, Some(&there)).unwrap());
    assert_eq!(positions(sink.as_mut(), TOPIC), [at(&there)]);
    // From where it is, to anywhere: also without an id, and from there on.
    assert!(sink.set_position(TOPIC, &wanted, Some(&there)).unwrap());
    assert!(!sink.set_position(TOPIC, &wanted, Some(&there)).unwrap());
    let last = at(&Position {
        topic_id: id("c"),
        ..position(4, 0)
    });
    assert!(sink.set_position(TOPIC, &last, Some(&wanted.position)).unwrap());
    sink.close().unwrap();
    assert_eq!(place.positions(&table, TOPIC), [last]);
}

pub fn positions_of_clusters_topics_partitions_and_epochs_do_not_mix(place: &dyn Place) {
    let table = plain();
    let mut sink = place.sink(&table);
    let mut expected = Vec::new();
    let mut batches = Vec::new();
    // Names that differ in their case only, or whose joined texts are equal, are others.
    for (cluster, topic) in [("c", "t"), ("C", "t"), ("c", "T"), ("ct", ""), ("c", "t-2"), ("", "ct")] {
        for partition in [0, 1, 11] {
            let epoch = 1 + i64::from(partition);
            let next = i64::try_from(10 * expected.len()).unwrap();
            let at = Known {
                cluster: cluster.to_owned(),
                ..known(partition, epoch, next)
            };
            assert!(sink.set_position(topic, &at, None).unwrap());
            let mut row = numbered(next);
            (row.partition, row.offset) = (partition, next + 2);
            batches.push(Batch {
                cluster: cluster.to_owned(),
                topic: topic.to_owned(),
                rows: vec![row],
                moves: vec![Move {
                    partition,
                    epoch,
                    from: next,
                    to: next + 3,
                }],
                ..Batch::default()
            });
            expected.push((topic, at));
        }
    }
    let all = |sink: &mut dyn Sink| {
        let mut all = Vec::new();
        for topic in ["t", "T", "", "t-2", "ct"] {
            all.extend(positions(sink, topic).into_iter().map(|known| (topic, known)));
        }
        all
    };
    let sorted = |expected: &[(&'static str, Known)]| {
        let mut sorted = Vec::new();
        for topic in ["t", "T", "", "t-2", "ct"] {
            let mut of: Vec<_> = expected.iter().filter(|(other, _)| *other == topic).cloned().collect();
            of.sort_by(|(_, a), (_, b)| (&a.cluster, a.partition).cmp(&(&b.cluster, b.partition)));
            sorted.extend(of);
        }
        sorted
    };
    assert_eq!(all(sink.as_mut()), sorted(&expected));
    // Each in turn moves alone.
    for (n, batch) in batches.iter().enumerate() {
        assert_eq!(done(sink.as_mut(), batch), valid(1));
        expected[n].1.position.next += 3;
        assert_eq!(all(sink.as_mut()), sorted(&expected));
    }
    sink.close().unwrap();
    let stored: Vec<Stored> = batches
        .iter()
        .map(|batch| Stored::of(&table, &batch.topic, &batch.rows[0]))
        .collect();
    assert_eq!(place.stored(&table), stored);
}

pub fn a_batch_that_does_not_fit_stores_nothing(place: &dyn Place) {
    let table = plain();
    let mut sink = begun(place, &table);
    assert_eq!(done(sink.as_mut(), &batch(0, vec![numbered(0), numbered(1)])), valid(2));
    let right = batch(2, vec![numbered(2), numbered(3)]);
    let place_of = right.moves[0];
    let with = |place: Move| Batch {
        moves: vec![place],
        rejected: vec![clash(right.rows[1].clone())],
        ..right.clone()
    };
    let wrong = [
        ("before the position", with(Move { from: 1, ..place_of })),
        (
            "behind the position",
            with(Move {
                from: 3,
                to: 5,
                ..place_of
            }),
        ),
        ("an older epoch", with(Move { epoch: 0, ..place_of })),
        ("a newer epoch", with(Move { epoch: 2, ..place_of })),
        (
            "a partition without a position",
            with(Move {
                partition: 1,
                ..place_of
            }),
        ),
        (
            "another cluster",
            Batch {
                cluster: "other".to_owned(),
                ..with(place_of)
            },
        ),
        (
            "another topic",
            Batch {
                topic: "other".to_owned(),
                ..with(place_of)
            },
        ),
        (
            "nothing but rejected rows",
            Batch {
                rows: Vec::new(),
                ..with(Move { from: 1, ..place_of })
            },
        ),
    ];
    for (what, batch) in &wrong {
        assert_eq!(sink.write(batch).unwrap(), Written::Moved, "{what}");
        assert_eq!(positions(sink.as_mut(), TOPIC), [known(0, 1, 2)], "{what}");
        assert_eq!(sink.positions("other").unwrap(), [], "{what}");
    }
    sink.close().unwrap();
    assert_eq!(place.stored(&table).len(), 2);
    assert_eq!(place.apart(&table), []);

    // The right one is taken all the same, by the sink that was told so.
    let mut sink = place.sink(&table);
    assert_eq!(sink.write(&wrong[0].1).unwrap(), Written::Moved);
    assert_eq!(done(sink.as_mut(), &right), valid(2));
    sink.close().unwrap();
    assert_eq!(place.stored(&table).len(), 4);
    assert_eq!(place.apart(&table), []);
    assert_eq!(place.positions(&table, TOPIC), [known(0, 1, 4)]);
}

pub fn a_batch_whose_second_move_does_not_fit_stores_nothing(place: &dyn Place) {
    let table = plain();
    let mut sink = begun(place, &table);
    assert!(sink.set_position(TOPIC, &known(1, 4, 70), None).unwrap());
    let mut right = batch(0, vec![numbered(0), numbered(1)]);
    (right.rows[1].partition, right.rows[1].offset) = (1, 70);
    right.moves[0].to = 1;
    let second = Move {
        partition: 1,
        epoch: 4,
        from: 70,
        to: 71,
    };
    right.moves.push(second);
    right.rejected.push(clash(numbered(9)));
    for wrong in [
        Move { from: 69, ..second },
        Move { epoch: 3, ..second },
        Move { partition: 2, ..second },
    ] {
        let mut batch = right.clone();
        batch.moves[1] = wrong;
        assert_eq!(sink.write(&batch).unwrap(), Written::Moved, "{wrong:?}");
        assert_eq!(positions(sink.as_mut(), TOPIC), [known(0, 1, 0), known(1, 4, 70)]);
    }
    sink.close().unwrap();
    assert_eq!(place.stored(&table), []);
    assert_eq!(place.apart(&table), []);
    let mut sink = place.sink(&table);
    assert_eq!(done(sink.as_mut(), &right).valid, 2);
    sink.close().unwrap();
    assert_eq!(place.stored(&table).len(), 2);
    assert_eq!(place.apart(&table).len(), 1);
    assert_eq!(place.positions(&table, TOPIC), [known(0, 1, 1), known(1, 4, 71)]);
}

pub fn the_same_batch_twice_is_moved(place: &dyn Place) {
    let table = plain();
    let mut sink = begun(place, &table);
    let mut batch = batch(0, vec![numbered(0), numbered(1), numbered(2)]);
    let row = batch.rows.pop().unwrap();
    batch.rejected.push(clash(row));
    assert_eq!(done(sink.as_mut(), &batch).valid, 2);
    assert_eq!(sink.write(&batch).unwrap(), Written::Moved);
    // Also by another process, while the first has its sink open.
    let mut other = place.sink(&table);
    assert_eq!(other.write(&batch).unwrap(), Written::Moved);
    sink.close().unwrap();
    other.close().unwrap();
    assert_eq!(place.stored(&table).len(), 2);
    assert_eq!(place.apart(&table).len(), 1);
    assert_eq!(
        place.positions(&table, TOPIC),
        [Known {
            cluster: CLUSTER.to_owned(),
            ..known(0, 1, 3)
        }]
    );
}
