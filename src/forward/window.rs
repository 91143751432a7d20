//! What of a log is on its way: one slot per sequence from the watermark on, so that reports may come in
//! any order and the watermark still only moves over a contiguous settled prefix.
//!
//! Pure: no clock, no Kafka, no log. 24 bytes a slot; whoever feeds it keeps it bounded.

use std::collections::VecDeque;

use super::mark::Reached;
use crate::record::Sequence;
use crate::wal::Range;

/// Where a record is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum State {
    /// To be routed by the next walk over the log.
    Waiting,
    /// Not to be routed yet: older records of its topic are still on their way to the end of the lane.
    Deferred,
    /// With the producer.
    Sent,
    /// Acknowledged in a transaction that is not committed yet.
    Staged,
    /// Acknowledged, dead-lettered, held or lost to damage.
    Done,
}

/// One record.
#[derive(Debug, Clone, Copy)]
pub(super) struct Slot {
    /// When the gateway received it, milliseconds since the epoch.
    pub(super) received_ms: i64,
    /// Payload bytes.
    pub(super) bytes: u32,
    /// Index in the table of topics.
    pub(super) topic: u32,
    state: State,
}

/// The memory that librdkafka takes for a record beside its payload, headers included (measured).
pub(super) const OVERHEAD_BYTES: u64 = 600;

/// See the module.
#[derive(Debug)]
pub(super) struct Window {
    /// The sequence of the first slot: the watermark + 1.
    base: Sequence,
    slots: VecDeque<Slot>,
    sent: usize,
    deferred: usize,
    /// Runs of deferred records, about: never fewer than there are.
    deferred_runs: usize,
    staged: usize,
    sent_bytes: u64,
}

impl Window {
    /// An empty window behind `acked`.
    pub(super) fn new(acked: Sequence) -> Self {
        Self {
            base: acked + 1,
            slots: VecDeque::new(),
            sent: 0,
            deferred: 0,
            deferred_runs: 0,
            staged: 0,
            sent_bytes: 0,
        }
    }

    /// Everything up to here is settled.
    pub(super) fn acked(&self) -> Sequence {
        self.base - 1
    }

    /// The sequence behind the last slot.
    pub(super) fn end(&self) -> Sequence {
        self.base + self.slots.len() as Sequence
    }

    pub(super) fn len(&self) -> usize {
        self.slots.len()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.slots.is_empty()
    }

    /// Records with the producer.
    pub(super) fn sent(&self) -> usize {
        self.sent
    }

    /// Records in the transaction that is not committed yet, those that are with the producer left out.
    pub(super) fn staged(&self) -> usize {
        self.staged
    }

    /// Runs of records that are deferred: never fewer than there are.
    pub(super) fn deferred_runs(&self) -> usize {
        self.deferred_runs
    }

    /// What they take in memory.
    pub(super) fn sent_bytes(&self) -> u64 {
        self.sent_bytes
    }

    /// Adds the record with sequence [`Self::end`].
    pub(super) fn push(&mut self, topic: u32, bytes: usize, received_ms: i64) {
        self.slots.push_back(Slot {
            received_ms,
            bytes: u32::try_from(bytes).unwrap_or(u32::MAX),
            topic,
            state: State::Waiting,
        });
    }

    fn index(&self, seq: Sequence) -> Option<usize> {
        usize::try_from(seq.checked_sub(self.base)?).ok()
    }

    /// The slot of `seq`, if it is in the window.
    pub(super) fn get(&self, seq: Sequence) -> Option<&Slot> {
        self.slots.get(self.index(seq)?)
    }

    /// Where `seq` is: below the window everything is done, above it nothing is known.
    pub(super) fn state(&self, seq: Sequence) -> Option<State> {
        if seq < self.base {
            return Some(State::Done);
        }
        self.get(seq).map(|slot| slot.state)
    }

    /// Changes the state of `seq` and returns its slot; `None` when it is settled already or not there.
    pub(super) fn set(&mut self, seq: Sequence, state: State) -> Option<Slot> {
        let index = self.index(seq)?;
        let is_deferred = |at: usize| self.slots.get(at).is_some_and(|slot| slot.state == State::Deferred);
        let (follows, leads) = (index > 0 && is_deferred(index - 1), is_deferred(index + 1));
        let slot = self.slots.get_mut(index)?;
        let before = slot.state;
        if before == State::Done {
            return None;
        }
        let held = u64::from(slot.bytes) + OVERHEAD_BYTES;
        match before {
            State::Sent => {
                self.sent -= 1;
                self.sent_bytes -= held;
            }
            State::Deferred => {
                self.deferred -= 1;
                // What is around it falls apart.
                self.deferred_runs += usize::from(follows && leads);
                if self.deferred == 0 {
                    self.deferred_runs = 0;
                }
            }
            State::Staged => self.staged -= 1,
            State::Waiting | State::Done => {}
        }
        match state {
            State::Sent => {
                self.sent += 1;
                self.sent_bytes += held;
            }
            State::Deferred => {
                self.deferred += 1;
                self.deferred_runs += usize::from(!follows);
            }
            State::Staged => self.staged += 1,
            State::Waiting | State::Done => {}
        }
        slot.state = state;
        Some(*slot)
    }

    /// Drops the settled prefix; the new watermark if it moved.
    pub(super) fn advance(&mut self) -> Option<Sequence> {
        let before = self.base;
        while self.slots.front().is_some_and(|slot| slot.state == State::Done) {
            self.slots.pop_front();
            self.base += 1;
        }
        // A window that was once full (an outage) gives its memory back.
        if self.slots.is_empty() && self.slots.capacity() > 65_536 {
            self.slots.shrink_to(1024);
        }
        (self.base != before).then_some(self.base - 1)
    }

    /// Goes on behind `last` (damage that nothing can be read from). Only for an empty window.
    pub(super) fn jump(&mut self, last: Sequence) {
        debug_assert!(self.slots.is_empty());
        if self.slots.is_empty() && last >= self.base {
            self.base = last + 1;
        }
    }

    /// Whatever was with the producer is waiting again: that producer is gone.
    pub(super) fn unsend(&mut self) {
        for slot in &mut self.slots {
            if slot.state == State::Sent {
                slot.state = State::Waiting;
            }
        }
        self.sent = 0;
        self.sent_bytes = 0;
    }

    /// What was deferred waits for the next walk.
    pub(super) fn undefer(&mut self) {
        if self.deferred == 0 {
            return;
        }
        for slot in &mut self.slots {
            if slot.state == State::Deferred {
                slot.state = State::Waiting;
            }
        }
        self.deferred = 0;
        self.deferred_runs = 0;
    }

    /// How far it is settled once what is staged is committed.
    pub(super) fn reached(&self) -> Reached {
        let is_settled = |slot: &&Slot| matches!(slot.state, State::Done | State::Staged);
        let prefix = self.slots.iter().take_while(is_settled).count();
        let mut reached = Reached {
            acked: self.base - 1 + prefix as Sequence,
            beyond: Vec::new(),
        };
        let mut open: Option<Range> = None;
        for (seq, slot) in (reached.acked + 1..).zip(self.slots.iter().skip(prefix)) {
            match slot.state {
                State::Staged | State::Done => open = Some((open.map_or(seq, |(first, _)| first), seq)),
                State::Waiting | State::Deferred | State::Sent => reached.beyond.extend(open.take()),
            }
        }
        reached.beyond.extend(open);
        reached
    }

    /// What is staged is committed; gives each to `see`.
    pub(super) fn commit(&mut self, mut see: impl FnMut(Slot)) {
        if self.staged == 0 {
            return;
        }
        for slot in &mut self.slots {
            if slot.state == State::Staged {
                slot.state = State::Done;
                see(*slot);
            }
        }
        self.staged = 0;
    }

    /// The transaction is no more: what was in it waits again.
    pub(super) fn roll_back(&mut self) {
        if self.staged > 0 {
            for slot in &mut self.slots {
                if slot.state == State::Staged {
                    slot.state = State::Waiting;
                }
            }
            self.staged = 0;
        }
        self.unsend();
    }

    /// The first sequence that a walk has to route: the first waiting one, or the end.
    pub(super) fn first_waiting(&self) -> Sequence {
        let settled = self.slots.iter().position(|slot| slot.state == State::Waiting);
        settled.map_or(self.end(), |index| self.base + index as Sequence)
    }

    /// The waiting records up to `last`, with their payload bytes.
    pub(super) fn waiting_up_to(&self, last: Sequence) -> impl Iterator<Item = (Sequence, u64)> {
        let base = self.base;
        (self.slots.iter().enumerate())
            .map(move |(index, slot)| (base + index as Sequence, slot))
            .take_while(move |(seq, _)| *seq <= last)
            .filter(|(_, slot)| slot.state == State::Waiting)
            .map(|(seq, slot)| (seq, u64::from(slot.bytes)))
    }

    /// When the oldest unsettled record was received.
    pub(super) fn oldest_received_ms(&self) -> Option<i64> {
        self.slots.front().map(|slot| slot.received_ms)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::indexing_slicing)]
mod tests {

    use super::*;
    use proptest::prelude::*;

    fn window(acked: Sequence, records: usize) -> Window {
        let mut window = Window::new(acked);
        for i in 0..records {
            window.push(0, 10, i as i64);
        }
        window
    }

    #[test]
    fn watermark_waits_for_the_oldest_report() {
        let mut window = window(10, 3);
        for seq in 11..=13 {
            window.set(seq, State::Sent).unwrap();
        }
        window.set(12, State::Done).unwrap();
        window.set(13, State::Done).unwrap();
        assert_eq!(window.advance(), None);
        window.set(11, State::Done).unwrap();
        assert_eq!(window.advance(), Some(13));
        assert!(window.is_empty());
        assert_eq!((window.sent(), window.sent_bytes()), (0, 0));
    }

    #[test]
    fn a_second_report_for_a_record_changes_nothing() {
        let mut window = window(0, 2);
        assert!(window.set(1, State::Done).is_some());
        assert!(window.set(1, State::Done).is_none());
        assert!(window.set(9, State::Done).is_none());
        assert!(window.set(0, State::Done).is_none());
    }

    #[test]
    fn a_lost_producers_records_wait_again() {
        let mut window = window(0, 4);
        for seq in 1..=4 {
            window.set(seq, State::Sent).unwrap();
        }
        window.set(2, State::Done).unwrap();
        window.unsend();
        assert_eq!(window.first_waiting(), 1);
        assert_eq!(
            window.waiting_up_to(3).map(|(seq, _)| seq).collect::<Vec<_>>(),
            vec![1, 3]
        );
        assert_eq!(window.sent(), 0);
    }

    #[test]
    fn deferred_records_are_left_out_until_told() {
        let mut window = window(0, 3);
        window.set(1, State::Deferred).unwrap();
        assert_eq!(window.first_waiting(), 2);
        window.undefer();
        assert_eq!(window.first_waiting(), 1);
    }

    #[test]
    fn damage_is_jumped_over() {
        let mut window = Window::new(4);
        window.jump(100);
        assert_eq!((window.acked(), window.end()), (100, 101));
    }

    proptest! {
        /// Whatever the order of events, the watermark is exactly the contiguous settled prefix, never
        /// goes back, and the counts agree with the slots.
        #[test]
        fn watermark_is_the_contiguous_settled_prefix(
            acked in 0u64..1000,
            events in prop::collection::vec((0u8..9, 0u64..40), 1..400),
        ) {
            let mut window = Window::new(acked);
            let mut model: Vec<State> = Vec::new();
            let mut watermark = acked;
            for (event, at) in events {
                let seq = acked + 1 + at;
                match event {
                    0 | 1 => {
                        window.push(0, 100, model.len() as i64);
                        model.push(State::Waiting);
                    }
                    5 => {
                        window.unsend();
                        for state in &mut model {
                            if *state == State::Sent {
                                *state = State::Waiting;
                            }
                        }
                    }
                    6 => {
                        let mut told = Vec::new();
                        window.commit(|slot| told.push(slot.received_ms));
                        let staged = (0i64..).zip(&mut model).filter(|(_, state)| **state == State::Staged);
                        let staged: Vec<i64> = staged.map(|(at, state)| {
                            *state = State::Done;
                            at
                        }).collect();
                        prop_assert_eq!(told, staged);
                    }
                    7 => {
                        window.roll_back();
                        for state in &mut model {
                            if matches!(state, State::Sent | State::Staged) {
                                *state = State::Waiting;
                            }
                        }
                    }
                    _ => {
                        let states = [State::Sent, State::Done, State::Deferred];
                        let state = states.get(usize::from(event) - 2).copied().unwrap_or(State::Staged);
                        let known = model.get_mut(at as usize);
                        let settable = known.as_ref().is_some_and(|known| **known != State::Done);
                        prop_assert_eq!(window.set(seq, state).is_some(), settable);
                        if let (true, Some(known)) = (settable, known) {
                            *known = state;
                        }
                    }
                }
                if let Some(moved) = window.advance() {
                    prop_assert!(moved > watermark);
                    watermark = moved;
                }
                let prefix = model.iter().take_while(|state| **state == State::Done).count() as u64;
                prop_assert_eq!(watermark, acked + prefix);
                prop_assert_eq!(window.acked(), watermark);
                let sent = model.iter().filter(|state| **state == State::Sent).count();
                prop_assert_eq!(window.sent(), sent);
                prop_assert_eq!(window.sent_bytes(), sent as u64 * (100 + OVERHEAD_BYTES));
                prop_assert_eq!(window.end(), acked + 1 + model.len() as u64);

                let reached = window.reached();
                let is_settled = |state: &&State| matches!(state, State::Done | State::Staged);
                let prefix = model.iter().take_while(is_settled).count() as u64;
                prop_assert_eq!(reached.acked, acked + prefix);
                let mut at = reached.acked;
                for (first, last) in &reached.beyond {
                    prop_assert!(*first > at + 1 && last >= first, "{:?}", reached);
                    at = *last;
                }
                for (seq, state) in (acked + 1..).zip(&model).filter(|(seq, _)| *seq > reached.acked) {
                    let is_in = reached.beyond.iter().any(|(first, last)| (first..=last).contains(&&seq));
                    match state {
                        State::Staged | State::Done => prop_assert!(is_in),
                        State::Waiting | State::Sent | State::Deferred => prop_assert!(!is_in),
                    }
                }
                let staged = model.iter().filter(|state| **state == State::Staged).count();
                prop_assert_eq!(window.staged(), staged);
                let mut runs = 0;
                let mut before = None;
                for state in &model {
                    runs += usize::from(*state == State::Deferred && before != Some(State::Deferred));
                    before = Some(*state);
                }
                prop_assert!(window.deferred_runs() >= runs);
            }
        }
    }
}
