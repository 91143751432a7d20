//! What the threads of a lander tell each other and its [`Handle`](super::Handle).

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use super::sink::Counts;
use super::{PartitionStatus, Totals};

/// When to end.
#[derive(Debug, Default)]
pub(super) struct Stop(Mutex<Option<Instant>>);

impl Stop {
    /// Members finish what they have, until `deadline` at most.
    pub(super) fn at(&self, deadline: Instant) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(deadline);
    }

    /// The deadline, once somebody wants the end.
    pub(super) fn deadline(&self) -> Option<Instant> {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// One member, as its two threads and the handle see it.
#[derive(Debug)]
pub(super) struct MemberState {
    pub(super) source: String,
    pub(super) topic: String,
    pub(super) sink_name: String,
    pub(super) stop: Arc<Stop>,
    /// Counts assignments: what belongs to an older one is not wanted any more.
    generation: AtomicU64,
    view: Mutex<View>,
}

/// See [`MemberState`].
#[derive(Debug, Default)]
pub(super) struct View {
    /// Why the sink takes nothing, and since when.
    pub(super) sink_error: Option<(String, Instant)>,
    /// Why Kafka gives nothing although a broker answers, and since when.
    pub(super) reading_error: Option<(String, Instant)>,
    /// Each of the member's partitions.
    pub(super) partitions: BTreeMap<i32, Place>,
    pub(super) totals: Totals,
    /// Everything up to the end is landed (or there is nothing to land).
    pub(super) done: bool,
    /// Its thread has ended.
    pub(super) stopped: Option<String>,
}

/// Where a member is in a partition.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Place {
    /// What is stored.
    pub(super) position: Option<i64>,
    /// The first offset that Kafka has.
    pub(super) low: Option<i64>,
    /// Behind the last.
    pub(super) end: Option<i64>,
}

impl Place {
    /// Before the position is known: everything that Kafka has.
    fn lag(self) -> u64 {
        let from = self.position.or(self.low);
        let lag = from.zip(self.end).map_or(0, |(from, end)| end.saturating_sub(from));
        u64::try_from(lag).unwrap_or(0)
    }
}

impl MemberState {
    pub(super) fn new(source: &str, topic: &str, sink_name: &str, stop: &Arc<Stop>) -> Self {
        Self {
            source: source.to_owned(),
            topic: topic.to_owned(),
            sink_name: sink_name.to_owned(),
            stop: Arc::clone(stop),
            generation: AtomicU64::new(0),
            view: Mutex::default(),
        }
    }

    pub(super) fn view(&self) -> MutexGuard<'_, View> {
        self.view.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn generation(&self) -> u64 {
        self.generation.load(Ordering::Acquire)
    }

    /// Whatever was asked before is not wanted any more.
    pub(super) fn next_generation(&self) -> u64 {
        self.generation.fetch_add(1, Ordering::AcqRel) + 1
    }

    pub(super) fn time_is_over(&self) -> bool {
        self.stop.deadline().is_some_and(|deadline| Instant::now() >= deadline)
    }

    /// True when it did not work before.
    pub(super) fn sink_works(&self) -> bool {
        self.view().sink_error.take().is_some()
    }

    /// True when this is news.
    pub(super) fn sink_fails(&self, why: String) -> bool {
        keep(&mut self.view().sink_error, why)
    }

    /// True when it did not work before.
    pub(super) fn reading_works(&self) -> bool {
        self.view().reading_error.take().is_some()
    }

    /// True when this is news.
    pub(super) fn reading_fails(&self, why: String) -> bool {
        keep(&mut self.view().reading_error, why)
    }

    pub(super) fn add(&self, counts: Counts) {
        let totals = &mut self.view().totals;
        totals.valid += counts.valid;
        totals.invalid += counts.invalid;
        totals.duplicates += counts.duplicates;
        totals.rejected += counts.clashes + counts.refused;
    }

    /// Every partition of the member.
    pub(super) fn partitions(&self) -> Vec<PartitionStatus> {
        let view = self.view();
        let partitions = view.partitions.iter().map(|(partition, place)| PartitionStatus {
            source: self.source.clone(),
            topic: self.topic.clone(),
            partition: *partition,
            position: place.position,
            end: place.end,
            lag_records: place.lag(),
        });
        partitions.collect()
    }
}

/// Keeps a fault with the time of the first one in a row; true when its words are news.
fn keep(fault: &mut Option<(String, Instant)>, why: String) -> bool {
    let known = fault.take();
    let news = known.as_ref().is_none_or(|(before, _)| *before != why);
    let since = known.map_or_else(Instant::now, |(_, since)| since);
    *fault = Some((why, since));
    news
}
