//! Finding the bad record of a failed batch: groups that shrink, n -> n/10 -> ... -> 1, one in flight at a
//! time, so that a record is given up only after it failed ALONE.
//!
//! Pure: it hands out the range to send next and is told how that went. A group is small enough to be ONE
//! batch per partition, which is what lets it fail without anything overtaking it.

use crate::record::Sequence;

/// The most records of a group.
pub(super) const GROUP_RECORDS_MAX: usize = 1000;
/// The most bytes of a group (payload and a share for headers): half of the producer's batch.size.
pub(super) const GROUP_BYTES_MAX: u64 = 500_000;
/// What a record takes in a batch beside its payload.
const WIRE_OVERHEAD_BYTES: u64 = 200;

/// The groups still to be sent; the current one is the last.
#[derive(Debug, Default)]
pub(super) struct Sift {
    groups: Vec<(Sequence, Sequence)>,
}

impl Sift {
    /// Groups of `bytes_max` at most for `waiting`: (sequence, payload bytes) in order, up to the last suspect.
    pub(super) fn start(&mut self, waiting: impl Iterator<Item = (Sequence, u64)>, bytes_max: u64) {
        let mut groups: Vec<(Sequence, Sequence)> = Vec::new();
        let (mut records, mut bytes) = (0_usize, 0_u64);
        for (seq, size) in waiting {
            let size = size + WIRE_OVERHEAD_BYTES;
            match groups.last_mut() {
                Some(group) if records < GROUP_RECORDS_MAX && bytes + size <= bytes_max => group.1 = seq,
                _ => {
                    groups.push((seq, seq));
                    (records, bytes) = (0, 0);
                }
            }
            records += 1;
            bytes += size;
        }
        groups.reverse();
        self.groups = groups;
    }

    /// The first and last sequence of the group to send now.
    pub(super) fn current(&self) -> Option<(Sequence, Sequence)> {
        self.groups.last().copied()
    }

    pub(super) fn is_active(&self) -> bool {
        !self.groups.is_empty()
    }

    /// The current group is settled.
    pub(super) fn passed(&mut self) {
        self.groups.pop();
    }

    /// `failed`, in order, of the `sent` records of the current group failed as suspects. The one that
    /// failed alone is returned, and its group is over; otherwise smaller groups take its place.
    pub(super) fn failed(&mut self, failed: &[Sequence], sent: usize) -> Option<Sequence> {
        self.groups.pop();
        if let (&[alone], 1) = (failed, sent) {
            return Some(alone);
        }
        let size = failed.len().div_ceil(10).max(1);
        for part in failed.rchunks(size) {
            if let (Some(first), Some(last)) = (part.first(), part.last()) {
                self.groups.push((*first, *last));
            }
        }
        None
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeSet;

    /// Sends every group to a Kafka that refuses a batch with a bad record; returns (dead, delivered in
    /// order, groups sent).
    fn play(records: u64, bad: &BTreeSet<Sequence>) -> (Vec<Sequence>, Vec<Sequence>, usize) {
        let mut sift = Sift::default();
        sift.start((1..=records).map(|seq| (seq, 200)), GROUP_BYTES_MAX);
        let (mut dead, mut delivered, mut rounds) = (Vec::new(), Vec::new(), 0);
        while let Some((first, last)) = sift.current() {
            rounds += 1;
            let group: Vec<Sequence> = (first..=last).collect();
            if group.iter().any(|seq| bad.contains(seq)) {
                dead.extend(sift.failed(&group, group.len()));
            } else {
                delivered.extend(group);
                sift.passed();
            }
        }
        (dead, delivered, rounds)
    }

    #[test]
    fn one_bad_record_of_ten_thousand_is_found_in_few_rounds() {
        let (dead, delivered, rounds) = play(10_000, &BTreeSet::from([6_789]));
        assert_eq!(dead, vec![6_789]);
        assert_eq!(delivered.len(), 9_999);
        assert!(rounds < 60, "{rounds} rounds");
    }

    #[test]
    fn groups_stay_below_one_batch() {
        let mut sift = Sift::default();
        sift.start((1..=10).map(|seq| (seq, 300_000)), GROUP_BYTES_MAX);
        assert_eq!(sift.current(), Some((1, 1)));
        sift.start((1..=5_000).map(|seq| (seq, 100)), GROUP_BYTES_MAX);
        assert_eq!(sift.current(), Some((1, GROUP_RECORDS_MAX as u64)));
    }

    #[test]
    fn a_record_that_failed_in_company_is_sent_alone_first() {
        let mut sift = Sift::default();
        sift.start([(1, 10), (2, 10)].into_iter(), GROUP_BYTES_MAX);
        assert_eq!(sift.failed(&[2], 2), None);
        assert_eq!(sift.current(), Some((2, 2)));
        assert_eq!(sift.failed(&[2], 1), Some(2));
        assert!(!sift.is_active());
    }

    proptest! {
        #[test]
        fn exactly_the_bad_records_die_and_the_rest_keeps_its_order(
            records in 1u64..3000,
            bad in prop::collection::btree_set(1u64..3000, 0..20),
        ) {
            let bad: BTreeSet<_> = bad.into_iter().filter(|seq| *seq <= records).collect();
            let (dead, delivered, _) = play(records, &bad);
            prop_assert_eq!(dead, bad.iter().copied().collect::<Vec<_>>());
            let good: Vec<_> = (1..=records).filter(|seq| !bad.contains(seq)).collect();
            prop_assert_eq!(delivered, good);
        }
    }
}
