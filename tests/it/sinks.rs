//! One suite for every sink: whatever it writes to, the outcomes are those of the contract in `tidegate::land::sink`.
//!
//! A case is a function of a [`Place`]; `on!` makes it a test of its own on each. A sink is added with a [`Place`]
//! of its own and a line at each end: one of `on!` here, one in main.rs. The lander and Kafka have no part in this.

mod databases;
mod folder;
mod identity;
mod model;
mod place;
mod positions;
mod races;
mod rows;
mod tables;

use std::sync::Arc;

use tidegate::land::row::{Batch, Move, Row};
use tidegate::land::sink::{Counts, Known, Position, Sink, SinkError, Written};
use tidegate::land::table::{Kind, Table};

use crate::support::{poll, seconds};
use place::Place;

/// `on!(module "label" file::Place [parts it needs])`: every outcome, on this place.
macro_rules! on {
    ($module:ident $label:literal $file:ident::$place:ident $parts:tt) => {
        on! { $module $label $file::$place $parts
            rows::rows_and_position_are_stored_together
            rows::keys_and_values_read_back_byte_for_byte
            rows::fields_read_back_at_their_extremes
            rows::times_read_back_to_the_millisecond
            rows::reasons_and_errors_read_back_whatever_is_in_them
            rows::identities_and_places_read_back_at_their_extremes
            rows::ten_thousand_rows_are_one_batch
            rows::a_batch_without_rows_moves_its_position
            rows::what_the_place_refuses_is_kept_apart
            rows::a_write_that_breaks_off_stores_nothing
            positions::an_empty_place_has_no_positions
            positions::a_position_is_set_from_none_once
            positions::a_position_set_from_another_one_stays
            positions::positions_of_clusters_topics_partitions_and_epochs_do_not_mix
            positions::a_batch_that_does_not_fit_stores_nothing
            positions::a_batch_whose_second_move_does_not_fit_stores_nothing
            positions::the_same_batch_twice_is_moved
            identity::a_repeat_is_counted_and_not_stored
            identity::another_key_or_value_is_a_clash_and_changes_nothing
            identity::every_key_and_value_is_equal_only_to_itself
            identity::repeats_and_clashes_within_a_batch_are_counted
            identity::two_sources_of_one_place_do_not_mix
            tables::preparing_again_changes_nothing
            tables::fields_declared_since_get_columns
            tables::names_are_kept_whatever_is_in_them
            tables::a_sink_dropped_without_close_has_stored_everything
            races::four_processes_prepare_an_empty_place_at_once
            races::of_two_that_set_a_position_from_none_one_does
            races::of_two_that_write_the_same_batch_one_does
            races::two_that_write_different_partitions_both_do
            model::any_sequence_of_calls_does_what_the_model_says
        }
    };
    ($module:ident $label:literal $where:ident::$place:ident $parts:tt $($file:ident::$name:ident)+) => {
        pub mod $module {
            use super::place::Place as _;

            $(fn $name() {
                super::$file::$name(&super::$where::$place::new());
            })+

            cases![$label: $($name $parts,)+];
        }
    };
}

on!(sqlite "sinks::sqlite" databases::Sqlite []);
on!(postgres "sinks::postgres" databases::Postgres [Postgres]);
on!(files "sinks::files" folder::Files []);

const CLUSTER: &str = "lkc-1";
const TOPIC: &str = "orders";
const WAL: &str = crate::support::store::WAL;

/// A table with one field, for cases that are not about fields.
fn plain() -> Table {
    Table::new("orders", &[("n".to_owned(), Kind::Integer)])
}

/// A row of [`plain`]; [`batch`] gives it its offset.
fn row(seq: i64, key: Option<&[u8]>, value: Option<&[u8]>) -> Row {
    Row {
        wal: Arc::from(WAL),
        seq,
        partition: 0,
        offset: 0,
        key: key.map(<[u8]>::to_vec),
        received_ms: Some(1_795_505_400_000 + seq % 1000),
        reason: None,
        value: value.map(<[u8]>::to_vec),
        fields: vec![tidegate::land::row::Field::Integer(seq)],
    }
}

/// A row of [`plain`] whose key and value nobody else has.
fn numbered(seq: i64) -> Row {
    let value = format!("value {seq}");
    row(seq, Some(format!("key {seq}").as_bytes()), Some(value.as_bytes()))
}

/// These rows at partition 0, epoch 1, from this offset on; settled.
fn batch(from: i64, rows: Vec<Row>) -> Batch {
    let to = from + i64::try_from(rows.len()).unwrap();
    let mut batch = Batch {
        cluster: CLUSTER.to_owned(),
        topic: TOPIC.to_owned(),
        rows,
        moves: vec![Move {
            partition: 0,
            epoch: 1,
            from,
            to,
        }],
        ..Batch::default()
    };
    for (row, offset) in batch.rows.iter_mut().zip(from..) {
        row.offset = offset;
    }
    batch.settle();
    batch
}

fn position(epoch: i64, next: i64) -> Position {
    Position {
        epoch,
        next,
        topic_id: None,
    }
}

fn known(partition: i32, epoch: i64, next: i64) -> Known {
    Known {
        cluster: CLUSTER.to_owned(),
        partition,
        position: position(epoch, next),
    }
}

/// A sink of a process of its own, with partition 0 at epoch 1, offset 0.
fn begun(place: &dyn Place, table: &Table) -> Box<dyn Sink> {
    let mut sink = place.sink(table);
    assert!(sink.set_position(TOPIC, &known(0, 1, 0), None).unwrap());
    sink
}

#[track_caller]
fn done(sink: &mut dyn Sink, batch: &Batch) -> Counts {
    match sink.write(batch).unwrap() {
        Written::Done(counts) => counts,
        Written::Moved => panic!("moved: {:?}", batch.moves),
    }
}

fn valid(valid: u64) -> Counts {
    Counts {
        valid,
        ..Counts::default()
    }
}

/// As the lander asks: while the sink is away it is prepared anew and asked again.
fn ask<T>(sink: &mut dyn Sink, mut question: impl FnMut(&mut dyn Sink) -> Result<T, SinkError>) -> T {
    let mut prepared = true;
    poll("the sink answers", seconds(60), || {
        let answer = if prepared { Ok(()) } else { sink.prepare() };
        match answer.and_then(|()| question(sink)) {
            Ok(answer) => Some(answer),
            Err(SinkError::Away(_)) => {
                prepared = false;
                None
            }
            Err(SinkError::Refused(why)) => panic!("{why}"),
        }
    })
}
