//! Several processes at one place, at the same time.

use std::sync::Barrier;
use std::thread;

use tidegate::land::row::{Batch, Move, Row};
use tidegate::land::sink::{Counts, Sink, Written};

use super::place::{Place, Stored};
use super::{TOPIC, ask, batch, begun, done, known, numbered, plain, row, valid};

/// What each of these does on a thread of its own.
fn at_once<T: Send>(sinks: Vec<Box<dyn Sink>>, act: impl Fn(usize, &mut dyn Sink) -> T + Sync) -> Vec<T> {
    let act = &act;
    thread::scope(|scope| {
        let threads: Vec<_> = (sinks.into_iter().enumerate())
            .map(|(n, mut sink)| {
                scope.spawn(move || {
                    let result = act(n, sink.as_mut());
                    sink.close().unwrap();
                    result
                })
            })
            .collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    })
}

pub fn four_processes_prepare_an_empty_place_at_once(place: &dyn Place) {
    let table = plain();
    let start = Barrier::new(4);
    let sinks = (0..4).map(|_| place.process()(&table)).collect();
    at_once(sinks, |n, sink| {
        start.wait();
        ask(sink, |sink| sink.prepare());
        let partition = i32::try_from(n).unwrap();
        assert!(ask(sink, |sink| sink.set_position(
            TOPIC,
            &known(partition, 1, 0),
            None
        )));
        let seq = i64::from(partition);
        let mut batch = batch(0, vec![numbered(seq)]);
        (batch.rows[0].partition, batch.moves[0].partition) = (partition, partition);
        assert_eq!(ask(sink, |sink| sink.write(&batch)), Written::Done(valid(1)));
    });
    let seqs: Vec<i64> = place.stored(&table).iter().map(|row| row.seq).collect();
    assert_eq!(seqs, [0, 1, 2, 3]);
    assert_eq!(place.positions(&table, TOPIC).len(), 4);
}

pub fn of_two_that_set_a_position_from_none_one_does(place: &dyn Place) {
    let table = plain();
    let start = Barrier::new(2);
    let sinks = vec![place.sink(&table), place.sink(&table)];
    let rounds = 40;
    let won = at_once(sinks, |n, sink| {
        let mut won = Vec::new();
        for partition in 0..rounds {
            start.wait();
            let epoch = i64::try_from(n).unwrap() + 1;
            won.push(ask(sink, |sink| {
                sink.set_position(TOPIC, &known(partition, epoch, 7), None)
            }));
        }
        won
    });
    for (known, (first, second)) in (place.positions(&table, TOPIC).iter()).zip(won[0].iter().zip(&won[1])) {
        assert!(first != second, "partition {}: {first} {second}", known.partition);
        assert_eq!(known.position.epoch, if *first { 1 } else { 2 });
    }
    assert_eq!(won[0].len(), 40);
}

pub fn of_two_that_write_the_same_batch_one_does(place: &dyn Place) {
    const ROUNDS: i64 = 100;
    let table = plain();
    let mut first = begun(place, &table);
    assert_eq!(done(first.as_mut(), &batch(0, vec![numbered(-1)])), valid(1));
    let start = Barrier::new(2);
    let expected = Counts { clashes: 1, ..valid(4) };
    let of = |round: i64| {
        let mut rows: Vec<Row> = (4 * round..4 * round + 4).map(numbered).collect();
        rows.push(row(-1, None, Some(b"clash")));
        batch(1 + 5 * round, rows)
    };
    let written = at_once(vec![first, place.sink(&table)], |_, sink| {
        let write = |round| {
            let batch = of(round);
            start.wait();
            ask(sink, |sink| sink.write(&batch))
        };
        (0..ROUNDS).map(write).collect::<Vec<Written>>()
    });
    for (round, both) in written[0].iter().zip(&written[1]).enumerate() {
        let done = [both.0, both.1]
            .into_iter()
            .filter(|written| **written == Written::Done(expected));
        let moved = [both.0, both.1]
            .into_iter()
            .filter(|written| **written == Written::Moved);
        assert_eq!((done.count(), moved.count()), (1, 1), "round {round}: {both:?}");
    }
    let stored: Vec<i64> = place.stored(&table).iter().map(|row| row.seq).collect();
    assert_eq!(stored, (-1..4 * ROUNDS).collect::<Vec<i64>>());
    assert_eq!(place.apart(&table).len(), usize::try_from(ROUNDS).unwrap());
    assert_eq!(place.positions(&table, TOPIC), [known(0, 1, 1 + 5 * ROUNDS)]);
}

pub fn two_that_write_different_partitions_both_do(place: &dyn Place) {
    const ROUNDS: i64 = 10;
    const ROWS: i64 = 200;
    let table = plain();
    let mut first = begun(place, &table);
    assert!(first.set_position(TOPIC, &known(1, 1, 0), None).unwrap());
    let start = Barrier::new(2);
    // Half of what each writes is also the other's, and they write it from either end.
    let of = |n: usize, round: i64| {
        let first = 2 * ROWS * round + if n == 0 { 0 } else { ROWS / 2 };
        let mut rows: Vec<Row> = (first..first + ROWS).map(numbered).collect();
        if n == 1 {
            rows.reverse();
        }
        let partition = i32::try_from(n).unwrap();
        let mut batch = Batch {
            moves: vec![Move {
                partition,
                epoch: 1,
                from: ROWS * round,
                to: ROWS * (round + 1),
            }],
            ..batch(ROWS * round, rows)
        };
        batch.rows.iter_mut().for_each(|row| row.partition = partition);
        batch
    };
    let counts = at_once(vec![first, place.sink(&table)], |n, sink| {
        let write = |round| {
            let batch = of(n, round);
            start.wait();
            match ask(sink, |sink| sink.write(&batch)) {
                Written::Done(counts) => counts,
                Written::Moved => panic!("round {round}: moved, and nobody else writes partition {n}"),
            }
        };
        (0..ROUNDS).map(write).collect::<Vec<Counts>>()
    });
    for (one, other) in counts[0].iter().zip(&counts[1]) {
        let (valid, duplicates) = (one.valid + other.valid, one.duplicates + other.duplicates);
        assert_eq!((valid, duplicates), (300, 100), "{one:?} {other:?}");
        assert_eq!(one.clashes + other.clashes, 0);
    }
    let stored: Vec<Stored> = place.stored(&table);
    let seqs: Vec<i64> = stored.iter().map(|row| row.seq).collect();
    let expected = (0..ROUNDS).flat_map(|round| 2 * ROWS * round..2 * ROWS * round + ROWS * 3 / 2);
    assert_eq!(seqs, expected.collect::<Vec<i64>>());
    assert_eq!(place.apart(&table), []);
    let end = ROUNDS * ROWS;
    assert_eq!(place.positions(&table, TOPIC), [known(0, 1, end), known(1, 1, end)]);
}
