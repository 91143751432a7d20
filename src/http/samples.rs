//! What the log looked like: every second of the last minute, every five seconds of the last hour.
//!
//! Pure: samples in, rates and an estimate out; time comes with each sample. A second in which the log did not tell
//! its state has no sample, and a clock that was set back takes what lies in its future along. About 60 KB at most.

use std::collections::VecDeque;

const MINUTE_MS: i64 = 60_000;
const HOUR_MS: i64 = 60 * MINUTE_MS;
/// Between two samples of the hour.
pub(super) const STEP_MS: i64 = 5_000;
/// How much earlier than that a sample may come: the ticks behind it are not exact.
const EARLY_MS: i64 = 500;
/// Over less than this a rate is chance.
const SPAN_MS_MIN: i64 = 900;

/// One look at the log and at Kafka.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Sample {
    pub(super) time_ms: i64,
    pub(super) acked: u64,
    pub(super) committed: u64,
    pub(super) backlog_records: u64,
    pub(super) backlog_bytes: u64,
    pub(super) disk_bytes: u64,
    pub(super) kafka_up: bool,
}

/// Over the last minute, or as much of it as was seen; `None`: not yet known.
#[derive(Debug, Clone, Copy, Default, PartialEq, serde::Serialize)]
pub(super) struct Rates {
    pub(super) ingest_records_per_second: Option<f64>,
    pub(super) forward_records_per_second: Option<f64>,
}

impl Rates {
    /// How long the backlog takes to be gone if all stays as it is; `None`: it does not shrink.
    #[allow(
        clippy::cast_precision_loss,
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss
    )]
    pub(super) fn drain_seconds(&self, backlog_records: u64) -> Option<u64> {
        if backlog_records == 0 {
            return Some(0);
        }
        let shrinks_by = self.forward_records_per_second? - self.ingest_records_per_second?;
        // Beyond u64 it stays its largest: an estimate.
        (shrinks_by > 0.0).then(|| (backlog_records as f64 / shrinks_by).ceil() as u64)
    }
}

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Samples {
    minute: VecDeque<Sample>,
    hour: VecDeque<Sample>,
}

impl Samples {
    pub(super) fn push(&mut self, sample: Sample) {
        let now = sample.time_ms;
        keep(&mut self.minute, now, MINUTE_MS);
        keep(&mut self.hour, now, HOUR_MS);
        self.minute.push_back(sample);
        let last = self.hour.back().map(|last| last.time_ms);
        if last.is_none_or(|last| now - last >= STEP_MS - EARLY_MS) {
            self.hour.push_back(sample);
        }
    }

    /// The oldest first.
    pub(super) fn hour(&self) -> impl Iterator<Item = &Sample> {
        self.hour.iter()
    }

    pub(super) fn rates(&self, now_ms: i64) -> Rates {
        let first = self.minute.iter().find(|sample| sample.time_ms >= now_ms - MINUTE_MS);
        let (Some(first), Some(last)) = (first, self.minute.back()) else {
            return Rates::default();
        };
        let span_ms = last.time_ms - first.time_ms;
        let rate = |from: u64, to: u64| (span_ms >= SPAN_MS_MIN).then(|| per_second(to.saturating_sub(from), span_ms));
        Rates {
            ingest_records_per_second: rate(first.committed, last.committed),
            forward_records_per_second: rate(first.acked, last.acked),
        }
    }
}

/// Drops what is older than `age_ms` or not older than now.
fn keep(samples: &mut VecDeque<Sample>, now_ms: i64, age_ms: i64) {
    samples.retain(|sample| sample.time_ms < now_ms && sample.time_ms >= now_ms - age_ms);
}

/// To a tenth of a thousandth: more digits would be noise in JSON.
#[allow(clippy::cast_precision_loss)]
fn per_second(records: u64, span_ms: i64) -> f64 {
    (records as f64 * 10_000_000.0 / span_ms as f64).round() / 10_000.0
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::indexing_slicing)]
    use super::*;

    fn sample(second: i64, committed: u64, acked: u64) -> Sample {
        Sample {
            time_ms: second * 1000,
            committed,
            acked,
            backlog_records: committed - acked,
            ..Sample::default()
        }
    }

    fn rates(samples: &[(i64, u64, u64)], now: i64) -> (Option<f64>, Option<f64>) {
        let mut all = Samples::default();
        samples
            .iter()
            .for_each(|&(second, committed, acked)| all.push(sample(second, committed, acked)));
        let rates = all.rates(now * 1000);
        (rates.ingest_records_per_second, rates.forward_records_per_second)
    }

    #[test]
    fn rates_are_those_of_the_last_minute() {
        assert_eq!(rates(&[], 0), (None, None));
        assert_eq!(rates(&[(0, 5, 0)], 0), (None, None));
        assert_eq!(rates(&[(0, 0, 0), (2, 10, 5)], 2), (Some(5.0), Some(2.5)));
        // 40 s without an answer of the log are 40 s all the same.
        assert_eq!(rates(&[(0, 0, 0), (40, 10, 5)], 40), (Some(0.25), Some(0.125)));
        assert_eq!(
            rates(&[(0, 0, 0), (60, 60, 0), (90, 90, 15)], 90),
            (Some(1.0), Some(0.5))
        );
        // A log that has been silent for a minute has no rate.
        assert_eq!(rates(&[(0, 0, 0), (2, 10, 5)], 63), (None, None));
    }

    #[test]
    fn a_clock_that_is_set_back_begins_anew() {
        assert_eq!(rates(&[(100, 0, 0), (101, 10, 0), (50, 20, 0)], 50), (None, None));
        assert_eq!(
            rates(&[(100, 0, 0), (50, 20, 0), (52, 24, 0)], 52),
            (Some(2.0), Some(0.0))
        );
    }

    #[test]
    fn the_estimate_is_none_where_the_backlog_does_not_shrink() {
        let drain = |ingest: f64, forward: f64, backlog| {
            let rates = Rates {
                ingest_records_per_second: Some(ingest),
                forward_records_per_second: Some(forward),
            };
            rates.drain_seconds(backlog)
        };
        assert_eq!(drain(1.0, 11.0, 100), Some(10));
        assert_eq!(drain(0.0, 3.0, 1), Some(1));
        assert_eq!(drain(5.0, 5.0, 100), None);
        assert_eq!(drain(5.0, 0.0, 100), None);
        assert_eq!(drain(5.0, 0.0, 0), Some(0));
        assert_eq!(drain(0.0, f64::MIN_POSITIVE, u64::MAX), Some(u64::MAX));
        assert_eq!(Rates::default().drain_seconds(1), None);
        assert_eq!(Rates::default().drain_seconds(0), Some(0));
    }

    #[test]
    fn an_hour_is_kept_in_steps_and_no_more() {
        let mut samples = Samples::default();
        for second in 0..10_000 {
            samples.push(sample(second, 0, 0));
        }
        let hour: Vec<i64> = samples.hour().map(|sample| sample.time_ms / 1000).collect();
        assert!((719..=721).contains(&hour.len()), "{}", hour.len());
        assert!(hour.windows(2).all(|pair| pair[1] - pair[0] == 5));
        assert_eq!(*hour.last().unwrap(), 9995);
        assert_eq!(samples.minute.len(), 61);
    }
}
