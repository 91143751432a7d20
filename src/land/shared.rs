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
    /// Position and end of each of the member's partitions.
    pub(super) partitions: BTreeMap<i32, (Option<i64>, Option<i64>)>,
    pub(super) totals: Totals,
    /// Everything up to the end is landed (or there is nothing to land).
    pub(super) done: bool,
    /// Its thread has ended.
    pub(super) stopped: Option<String>,
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
        let mut view = self.view();
        let known = view.sink_error.take();
        let news = known.as_ref().is_none_or(|(before, _)| *before != why);
        let since = known.map_or_else(Instant::now, |(_, since)| since);
        view.sink_error = Some((why, since));
        news
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
        let partitions = view.partitions.iter().map(|(partition, (position, end))| {
            let lag = position
                .zip(*end)
                .map_or(0, |(position, end)| end.saturating_sub(position));
            PartitionStatus {
                source: self.source.clone(),
                topic: self.topic.clone(),
                partition: *partition,
                position: *position,
                end: *end,
                lag_records: u64::try_from(lag).unwrap_or(0),
            }
        });
        partitions.collect()
    }
}
