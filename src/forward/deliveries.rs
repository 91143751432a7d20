//! Where Kafka put the records that it acknowledged last, for their receipts.
//!
//! A place for each of [`DELIVERIES_MAX`] sequences in a row: the last of a run are all there, what comes out of the held lane
//! takes the place of a later one, and the memory (2.4 MB) is taken once. What a transaction has not committed is not told.
//!
//! Deliberately does not know: windows, the watermark, topics.

use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::record::Sequence;

/// How many of the last deliveries are remembered.
pub const DELIVERIES_MAX: usize = 100_000;

/// Where Kafka put a record.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Place {
    /// The partition of its topic.
    pub partition: i32,
    /// The place in it; negative where librdkafka does not know it (a batch that was sent again and was there already).
    pub offset: i64,
}

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Deliveries(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    /// By sequence, modulo their number; empty until the first.
    places: Vec<(Sequence, Place)>,
    /// Of the transaction under way.
    staged: Vec<(Sequence, Place)>,
}

impl State {
    fn remember(&mut self, seq: Sequence, place: Place) {
        if self.places.is_empty() {
            self.places.resize(DELIVERIES_MAX, Default::default());
        }
        if let Some(slot) = self.places.get_mut(seq as usize % DELIVERIES_MAX) {
            *slot = (seq, place);
        }
    }
}

impl Deliveries {
    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Kafka has them; in a transaction, once that is committed.
    pub(super) fn note(&self, delivered: impl Iterator<Item = (Sequence, Place)>, in_transaction: bool) {
        let mut state = self.state();
        // Behind a place that librdkafka does not know it counts on: -1, 0, 1, ...
        let mut unknown = None;
        for (seq, place) in delivered {
            let is_counted_on = unknown.is_some_and(|Place { partition, offset }| {
                place
                    == Place {
                        partition,
                        offset: offset + 1,
                    }
            });
            if place.offset < 0 || is_counted_on {
                unknown = Some(place);
                continue;
            }
            unknown = None;
            match in_transaction {
                true => state.staged.push((seq, place)),
                false => state.remember(seq, place),
            }
        }
        // Only the last of a large transaction are asked for.
        let surplus = state.staged.len().saturating_sub(DELIVERIES_MAX);
        state.staged.drain(..surplus);
    }

    /// The transaction is committed.
    pub(super) fn committed(&self) {
        let mut state = self.state();
        let mut staged = std::mem::take(&mut state.staged);
        staged.drain(..).for_each(|(seq, place)| state.remember(seq, place));
        state.staged = staged;
    }

    /// The transaction came to nothing.
    pub(super) fn rolled_back(&self) {
        self.state().staged.clear();
    }

    /// Records are sent again: where they are will be told then.
    pub(super) fn forget(&self) {
        *self.state() = State::default();
    }

    /// Where Kafka put the record, if it was one of the last.
    pub(super) fn place(&self, seq: Sequence) -> Option<Place> {
        let state = self.state();
        let (known, place) = state.places.get(seq as usize % DELIVERIES_MAX)?;
        (*known == seq && seq > 0).then_some(*place)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn place(offset: i64) -> Place {
        Place { partition: 3, offset }
    }

    fn note(deliveries: &Deliveries, seqs: std::ops::RangeInclusive<Sequence>, in_transaction: bool) {
        deliveries.note(seqs.map(|seq| (seq, place(seq as i64 * 2))), in_transaction);
    }

    #[test]
    fn the_last_ones_are_remembered() {
        let deliveries = Deliveries::default();
        assert_eq!((deliveries.place(0), deliveries.place(1)), (None, None));
        let last = DELIVERIES_MAX as Sequence + 5;
        note(&deliveries, 1..=last, false);
        assert_eq!((deliveries.place(0), deliveries.place(5)), (None, None));
        assert!((6..=last).all(|seq| deliveries.place(seq) == Some(place(seq as i64 * 2))));
        assert_eq!(deliveries.place(last + 1), None);
        deliveries.forget();
        assert_eq!(deliveries.place(6), None);
    }

    #[test]
    fn what_a_transaction_has_not_committed_is_not_told() {
        let deliveries = Deliveries::default();
        note(&deliveries, 1..=3, true);
        assert_eq!(deliveries.place(1), None);
        deliveries.rolled_back();
        note(&deliveries, 2..=2, true);
        deliveries.committed();
        assert_eq!((deliveries.place(1), deliveries.place(2)), (None, Some(place(4))));
        deliveries.rolled_back();
        assert_eq!(deliveries.place(2), Some(place(4)));
    }

    #[test]
    fn places_that_librdkafka_only_counted_are_not_told() {
        let deliveries = Deliveries::default();
        let batch = [(1, place(-1)), (2, place(0)), (3, place(1)), (4, place(70))];
        deliveries.note(batch.into_iter(), false);
        let told: Vec<_> = (1..=4).map(|seq| deliveries.place(seq)).collect();
        assert_eq!(told, [None, None, None, Some(place(70))]);
    }
}
