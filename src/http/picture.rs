//! The two pictures of the status page as shapes: the gate with the water behind it, and the last hour.
//!
//! Pure. Measures are those of the `viewBox`es in status.html.

use std::time::Duration;

use super::samples::{STEP_MS, Samples};
use crate::words::{grouped, percent, time};

/// The basin's floor, and how high full water stands above it.
const FLOOR: f64 = 190.0;
const DEPTH: f64 = 130.0;
/// The least that is seen as water.
const DEPTH_MIN: f64 = 4.0;
/// The chart.
const WIDTH: f64 = 720.0;
const HEIGHT: f64 = 160.0;
const HOUR_MS: i64 = 3_600_000;
/// Samples further apart are not joined by a line: nobody looked in between.
const GAP_MS: i64 = 3 * STEP_MS;

/// The water behind the gate: as high as the backlog fills the log. The scale is that of a square root, which the
/// picture's gauge shows, so that 1 % is seen too.
pub(super) struct Gate {
    pub(super) water_y: String,
    pub(super) water_height: String,
    pub(super) text: String,
}

impl Gate {
    /// `backlog`: records, bytes, and the log's capacity in bytes, if known.
    pub(super) fn of(backlog: Option<(u64, u64, u64)>, kafka_up: bool) -> Self {
        let gate = if kafka_up {
            "The gate is open: Kafka is up."
        } else {
            "The gate is shut: Kafka is away."
        };
        let (records, bytes, capacity) = backlog.unwrap_or_default();
        let share = if capacity > 0 {
            float(bytes) / float(capacity)
        } else {
            0.0
        };
        let height = match records {
            0 => 0.0,
            _ => (share.clamp(0.0, 1.0).sqrt() * DEPTH).max(DEPTH_MIN),
        };
        let water = match (backlog, records) {
            (None, _) => "How much waits behind it is not known.".to_owned(),
            (_, 0) => "Nothing waits behind it.".to_owned(),
            (_, 1) => format!(
                "1 record waits behind it, {} of the log's capacity.",
                full(bytes, capacity)
            ),
            _ => format!(
                "{} records wait behind it, {} of the log's capacity.",
                grouped(records),
                full(bytes, capacity)
            ),
        };
        Self {
            water_y: format!("{:.1}", FLOOR - height),
            water_height: format!("{height:.1}"),
            text: format!("{gate} {water}"),
        }
    }
}

fn full(bytes: u64, capacity: u64) -> String {
    match percent(bytes, capacity) {
        Some(share) if share == "0.0%" => "less than 0.1%".to_owned(),
        Some(share) => share,
        None => "an unknown share".to_owned(),
    }
}

/// The backlog over the last hour, from 0 up.
pub(super) struct Chart {
    /// Where the samples are, a gap where there are none.
    pub(super) line: String,
    /// Below the line.
    pub(super) area: String,
    /// While Kafka was away.
    pub(super) away: String,
    /// The number at the top.
    pub(super) max: u64,
    pub(super) text: String,
}

impl Chart {
    pub(super) fn of(samples: &Samples, now_ms: i64) -> Self {
        // In steps: the picture need not be sent anew each second.
        let end = now_ms - now_ms.rem_euclid(STEP_MS) + STEP_MS;
        let x = |time_ms: i64| WIDTH * (1.0 - seconds(end - time_ms) / seconds(HOUR_MS)).clamp(0.0, 1.0);
        let highest = samples.hour().max_by_key(|sample| sample.backlog_records);
        let max = round_up(highest.map_or(0, |sample| sample.backlog_records));
        let y = |records: u64| HEIGHT * (1.0 - float(records) / float(max));
        let (mut line, mut area, mut away) = (String::new(), String::new(), String::new());
        let mut before: Option<(i64, f64)> = None;
        let mut since_away: Option<f64> = None;
        for sample in samples.hour() {
            let (x, y) = (x(sample.time_ms), y(sample.backlog_records));
            let joined = before.filter(|(time_ms, _)| sample.time_ms - time_ms <= GAP_MS);
            if joined.is_none() {
                if let Some((_, before_x)) = before {
                    area.push_str(&format!("V{HEIGHT}Z"));
                    close(&mut away, &mut since_away, before_x);
                }
                // A lone sample is a dot: a line of no length with round ends.
                line.push_str(&format!("M{x:.1} {y:.1}h0"));
                area.push_str(&format!("M{x:.1} {HEIGHT}V{y:.1}"));
            } else {
                line.push_str(&format!("L{x:.1} {y:.1}"));
                area.push_str(&format!("L{x:.1} {y:.1}"));
            }
            if sample.kafka_up {
                close(&mut away, &mut since_away, x);
            } else {
                since_away.get_or_insert(x);
            }
            before = Some((sample.time_ms, x));
        }
        if let Some((_, x)) = before {
            area.push_str(&format!("V{HEIGHT}Z"));
            close(&mut away, &mut since_away, x);
        }
        let text = match (samples.hour().last(), highest) {
            (Some(now), Some(highest)) if now.backlog_records > 0 && now == highest => {
                format!("Now {}, the most of the last hour.", grouped(now.backlog_records))
            }
            (Some(now), Some(highest)) if highest.backlog_records > 0 => {
                let ago = u64::try_from(now_ms.saturating_sub(highest.time_ms)).unwrap_or(0);
                format!(
                    "Now {}; the most in the last hour was {}, {} ago.",
                    grouped(now.backlog_records),
                    grouped(highest.backlog_records),
                    time(Duration::from_millis(ago - ago % 5000))
                )
            }
            (Some(_), _) => "Nothing has waited in the last hour.".to_owned(),
            _ => "Nothing was sampled yet.".to_owned(),
        };
        Self {
            line,
            area,
            away,
            max,
            text,
        }
    }
}

/// Ends the time without Kafka, if one has begun.
fn close(away: &mut String, since: &mut Option<f64>, x: f64) {
    if let Some(since) = since.take() {
        away.push_str(&format!("M{since:.1} 0H{x:.1}V{HEIGHT}H{since:.1}Z"));
    }
}

/// The next of 2, 4, 10, 20, 40, 100...: numbers whose half is one too.
fn round_up(number: u64) -> u64 {
    let mut ten = 1_u64;
    loop {
        for step in [2, 4, 10] {
            let round = ten.saturating_mul(step);
            if round >= number {
                return round;
            }
        }
        ten = ten.saturating_mul(10);
    }
}

/// The number beside the chart's middle.
pub(super) fn half(max: u64) -> String {
    grouped(max / 2)
}

#[allow(clippy::cast_precision_loss)]
fn float(number: u64) -> f64 {
    number as f64
}

#[allow(clippy::cast_precision_loss)]
fn seconds(ms: i64) -> f64 {
    ms as f64 / 1000.0
}

#[cfg(test)]
mod tests {
    use super::super::samples::Sample;
    use super::*;

    fn chart(samples: &[(i64, u64, bool)], now: i64) -> Chart {
        let mut all = Samples::default();
        for &(second, backlog_records, kafka_up) in samples {
            all.push(Sample {
                time_ms: second * 1000,
                backlog_records,
                kafka_up,
                ..Sample::default()
            });
        }
        Chart::of(&all, now * 1000)
    }

    #[test]
    fn the_hour_ends_at_the_right_and_zero_is_at_the_bottom() {
        let chart = chart(&[(0, 0, true), (5, 20, true), (3595, 5, true)], 3595);
        assert_eq!(chart.max, 20);
        assert_eq!(chart.line, "M0.0 160.0h0L1.0 0.0M719.0 120.0h0");
        assert_eq!(chart.area, "M0.0 160V160.0L1.0 0.0V160ZM719.0 160V120.0V160Z");
        assert_eq!(chart.away, "");
        assert_eq!(chart.text, "Now 5; the most in the last hour was 20, 59m 50s ago.");
    }

    #[test]
    fn the_highest_is_told_with_its_age_or_as_the_newest() {
        assert_eq!(
            chart(&[(0, 3, true), (5, 1234, true)], 9).text,
            "Now 1,234, the most of the last hour."
        );
        assert_eq!(
            chart(&[(0, 0, true), (5, 0, true)], 9).text,
            "Nothing has waited in the last hour."
        );
    }

    #[test]
    fn the_time_without_kafka_is_marked_and_never_over_a_gap() {
        let samples = [
            (0, 0, true),
            (5, 0, false),
            (10, 0, false),
            (3000, 0, false),
            (3005, 0, false),
            (3010, 0, true),
        ];
        assert_eq!(
            chart(&samples, 3595).away,
            "M1.0 0H2.0V160H1.0ZM600.0 0H602.0V160H600.0Z"
        );
    }

    #[test]
    fn without_samples_it_says_so() {
        let chart = chart(&[], 0);
        assert_eq!((chart.line.as_str(), chart.area.as_str(), chart.max), ("", "", 2));
        assert_eq!(chart.text, "Nothing was sampled yet.");
    }

    #[test]
    fn the_top_of_the_chart_is_a_round_number_at_or_above_the_highest() {
        for (number, round) in [
            (0, 2),
            (2, 2),
            (3, 4),
            (5, 10),
            (11, 20),
            (4001, 10_000),
            (u64::MAX, u64::MAX),
        ] {
            assert_eq!(round_up(number), round);
        }
    }

    #[test]
    fn water_stands_as_high_as_the_log_is_full() {
        let height = |bytes| Gate::of(Some((7, bytes, 100)), false).water_height;
        assert_eq!(height(100), "130.0");
        assert_eq!(height(25), "65.0");
        assert_eq!(height(0), "4.0");
        assert_eq!(height(u64::MAX), "130.0");
        let empty = Gate::of(Some((0, 0, 100)), true);
        assert_eq!((empty.water_height.as_str(), empty.water_y.as_str()), ("0.0", "190.0"));
        assert_eq!(empty.text, "The gate is open: Kafka is up. Nothing waits behind it.");
        let some = Gate::of(Some((1234, 1, 1 << 40)), false).text;
        assert!(
            some.ends_with("1,234 records wait behind it, less than 0.1% of the log's capacity."),
            "{some}"
        );
        assert!(Gate::of(None, false).text.contains("not known"));
    }
}
