//! Kafka's own watermark of a log, as it is kept with the group `tidegate.<wal id>`: the offset of partition 0 of the topic
//! `tidegate-watermark` is the sequence up to which everything is settled, and the offset's metadata say the rest:
//!
//! ```text
//! "1 " stamp " " resend " " lane " " beyond " " lane_beyond
//!
//! stamp        16 hexadecimal digits: whose watermark it is (see the log's `stamps`)
//! resend       what an operator had sent again when it was written: see `Log::resend`
//! lane         the held lane's watermark
//! beyond       settled ranges behind the watermark: base64 of bincode's Vec<(gap, length)>, "-" for none
//! lane_beyond  the same of the lane
//! ```
//! All of it is one commit in one transaction with the records that it is about.
//!
//! Pure: no clock, no Kafka, no log.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD_NO_PAD;

use crate::record::{ENCODING, SEQUENCE_MAX, Sequence};
use crate::wal::{Range, Stamp, joined};

/// Bytes of metadata that brokers take unless they are told otherwise: the default of `offset.metadata.max.bytes`.
pub(super) const METADATA_BYTES_MAX: usize = 4096;

/// Runs of records that wait behind younger ones that were sent: with more, nothing more is sent. What lies between them
/// must be told in [`METADATA_BYTES_MAX`]: two logs of at most twice as many ranges (those of one walk come on top), of at
/// most 10 bytes each, in base64.
pub(super) const RUNS_MAX: usize = 70;

/// How far one log is settled.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Reached {
    /// Everything up to here.
    pub(crate) acked: Sequence,
    /// And these, in order and apart.
    pub(crate) beyond: Vec<Range>,
}

impl Reached {
    /// Everything up to `acked`, and these ranges: in any order, and they may touch each other and the watermark.
    pub(super) fn of(acked: Sequence, ranges: Vec<Range>) -> Self {
        let mut reached = Self {
            acked,
            beyond: joined(clipped(ranges.into_iter(), acked).collect()),
        };
        // A range that follows on the watermark is none behind it: as such it could not be read again.
        if let Some((first, last)) = reached.beyond.first().copied()
            && first == acked + 1
        {
            reached.acked = last;
            reached.beyond.remove(0);
        }
        reached
    }

    /// What it says that a watermark `acked` does not.
    pub(super) fn behind(&self, acked: Sequence) -> Vec<Range> {
        clipped([(1, self.acked)].into_iter().chain(self.beyond.iter().copied()), acked).collect()
    }

    /// Whether it says more than a watermark `acked` does.
    pub(super) fn exceeds(&self, acked: Sequence) -> bool {
        self.acked > acked || self.beyond.iter().any(|(_, last)| *last > acked)
    }

    /// Whether this sequence is in it.
    pub(super) fn covers(&self, seq: Sequence) -> bool {
        seq <= self.acked || self.beyond.iter().any(|(first, last)| (*first..=*last).contains(&seq))
    }

    fn text(&self) -> String {
        if self.beyond.is_empty() {
            return "-".to_owned();
        }
        let mut at = self.acked;
        let mut steps: Vec<(u64, u64)> = Vec::with_capacity(self.beyond.len());
        for (first, last) in &self.beyond {
            steps.push((first.saturating_sub(at), last.saturating_sub(*first)));
            at = *last;
        }
        // Numbers in a vector: nothing that could fail.
        let bytes = bincode::encode_to_vec(&steps, ENCODING).unwrap_or_default();
        STANDARD_NO_PAD.encode(bytes)
    }

    fn parse(acked: Sequence, text: &str) -> Option<Self> {
        if text == "-" {
            return Some(Self::of(acked, Vec::new()));
        }
        let bytes = STANDARD_NO_PAD.decode(text).ok()?;
        let limited = ENCODING.with_limit::<{ 1 << 16 }>();
        let (steps, used): (Vec<(u64, u64)>, usize) = bincode::decode_from_slice(&bytes, limited).ok()?;
        let mut at = acked;
        let mut ranges = Vec::with_capacity(steps.len());
        for (gap, length) in steps {
            let first = at.checked_add(gap)?;
            at = first.checked_add(length)?;
            if gap == 0 || at > SEQUENCE_MAX {
                return None;
            }
            ranges.push((first, at));
        }
        (used == bytes.len()).then(|| Self::of(acked, ranges))
    }
}

/// See the module.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Mark {
    pub(super) stamp: Stamp,
    pub(super) resend: Sequence,
    pub(crate) main: Reached,
    pub(crate) lane: Reached,
}

impl Mark {
    /// The metadata beside the offset `self.main.acked`.
    pub(crate) fn metadata(&self) -> String {
        format!(
            "1 {:016x} {} {} {} {}",
            self.stamp,
            self.resend,
            self.lane.acked,
            self.main.text(),
            self.lane.text()
        )
    }

    /// What an offset and its metadata say; `None`: no gateway wrote them.
    pub(crate) fn parse(offset: i64, metadata: &str) -> Option<Self> {
        let mut words = metadata.split(' ');
        let mut word = || words.next();
        if word()? != "1" {
            return None;
        }
        let stamp = Stamp::from_str_radix(word()?, 16).ok()?;
        let resend = word()?.parse().ok()?;
        let lane = word()?.parse().ok().filter(|lane| *lane <= SEQUENCE_MAX)?;
        let main = Reached::parse(offset.try_into().ok()?, word()?)?;
        let lane = Reached::parse(lane, word()?)?;
        words.next().is_none().then_some(Self {
            stamp,
            resend,
            main,
            lane,
        })
    }
}

/// What of the ranges lies behind `acked`.
fn clipped(ranges: impl Iterator<Item = Range>, acked: Sequence) -> impl Iterator<Item = Range> {
    ranges
        .filter(move |(_, last)| *last > acked)
        .map(move |(first, last)| (first.max(acked + 1), last))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn reached() -> impl Strategy<Value = Reached> {
        let steps = prop::collection::vec((2_u64..400_000, 0_u64..400_000), 0..2 * RUNS_MAX);
        (0_u64..1 << 50, steps).prop_map(|(acked, steps)| {
            let mut at = acked;
            let beyond = steps.into_iter().map(|(gap, length)| {
                let first = at + gap;
                at = first + length;
                (first, at)
            });
            let beyond = beyond.collect();
            Reached { acked, beyond }
        })
    }

    proptest! {
        #[test]
        fn what_is_written_is_read_and_fits(stamp in any::<Stamp>(), resend in 0_u64..1 << 50, main in reached(), lane in reached()) {
            let mark = Mark { stamp, resend, main, lane };
            let metadata = mark.metadata();
            prop_assert!(metadata.len() <= METADATA_BYTES_MAX, "{}", metadata.len());
            prop_assert_eq!(Mark::parse(mark.main.acked as i64, &metadata), Some(mark));
        }

        #[test]
        fn any_ranges_are_read_as_they_were_meant(acked in 0_u64..40, ranges in prop::collection::vec((0_u64..80, 0_u64..12), 0..12)) {
            let ranges: Vec<Range> = ranges.into_iter().map(|(first, length)| (first, first + length)).collect();
            let reached = Reached::of(acked, ranges.clone());
            let read = Reached::parse(reached.acked, &reached.text());
            prop_assert_eq!(read.as_ref(), Some(&reached));
            for seq in 0..100 {
                let is_meant = seq <= acked || ranges.iter().any(|(first, last)| (*first..=*last).contains(&seq));
                prop_assert_eq!(reached.covers(seq), is_meant, "{}", seq);
                let is_behind = reached.behind(acked).iter().any(|(first, last)| (*first..=*last).contains(&seq));
                prop_assert_eq!(is_behind, is_meant && seq > acked, "{}", seq);
            }
        }

        #[test]
        fn no_text_is_a_reason_to_panic(offset in any::<i64>(), text in ".{0,200}", tail in "[ 0-9a-zA-Z+/-]{0,100}") {
            let _ = Mark::parse(offset, &text);
            let _ = Mark::parse(offset, &format!("1 0 0 {tail}"));
        }
    }

    #[test]
    fn a_strangers_offset_is_no_mark() {
        for metadata in [
            "",
            "1",
            "2 0000000000000007 0 0 - -",
            "1 0000000000000007 0 0 - - more",
            // A watermark after which there is no sequence.
            "1 0000000000000007 0 18446744073709551615 - -",
            "1 7 0 0 AA -",
        ] {
            if metadata == "1 7 0 0 AA -" {
                // An empty list of ranges.
                assert_eq!(Mark::parse(5, metadata).unwrap().main.beyond, vec![]);
                continue;
            }
            assert_eq!(Mark::parse(5, metadata), None, "{metadata}");
        }
        assert_eq!(Mark::parse(-1, "1 0000000000000007 0 0 - -"), None);
    }

    #[test]
    fn ranges_are_joined_behind_the_watermark() {
        let of = |acked, ranges| {
            let reached = Reached::of(acked, ranges);
            (reached.acked, reached.beyond)
        };
        assert_eq!(of(3, vec![(8, 9), (2, 3), (5, 6), (5, 5)]), (3, vec![(5, 6), (8, 9)]));
        assert_eq!(of(4, vec![(2, 7)]), (7, vec![]));
        // A transaction has closed the gap in front of what an earlier one had committed.
        assert_eq!(of(11, vec![(12, 20), (30, 30)]), (20, vec![(30, 30)]));
    }
}
