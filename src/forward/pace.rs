//! How fast the forwarder goes: `forward.bytes_per_second_max` is a bucket of tokens over payload bytes, and while clients wait for the
//! processors it gives way to them. Pure: the caller gives the time.

use std::time::{Duration, Instant};

use crate::wal::Watermarks;

/// The bucket. What is taken may exceed what is there: the debt is waited for before the next take.
#[derive(Debug)]
pub struct Pace {
    /// Bytes per second; `None`: no limit.
    rate: Option<f64>,
    tokens: f64,
    at: Instant,
}

impl Pace {
    /// A full bucket: a tenth of a second's worth.
    pub fn new(bytes_per_second_max: Option<u64>, now: Instant) -> Self {
        let rate = bytes_per_second_max.map(|rate| rate.max(1) as f64);
        Self {
            rate,
            tokens: rate.unwrap_or_default() / 10.0,
            at: now,
        }
    }

    /// How long to wait before the next bytes may go.
    pub fn wait(&mut self, now: Instant) -> Duration {
        let Some(rate) = self.rate else {
            return Duration::ZERO;
        };
        let elapsed = now.saturating_duration_since(self.at).as_secs_f64();
        self.at = now;
        self.tokens = (self.tokens + elapsed * rate).min(rate / 10.0);
        if self.tokens >= 0.0 {
            return Duration::ZERO;
        }
        // One record may owe for long (16 MiB at 1 KiB/s); the loop looks again each second at the latest.
        Duration::from_secs_f64((-self.tokens / rate).min(1.0))
    }

    /// These bytes went.
    pub fn take(&mut self, bytes: usize) {
        if self.rate.is_some() {
            self.tokens -= bytes as f64;
        }
    }

    /// Whether there is a limit.
    pub fn is_set(&self) -> bool {
        self.rate.is_some()
    }

    /// The most bytes to read at once, so that a chunk does not owe for long.
    pub fn chunk_bytes(&self, wanted: usize) -> usize {
        self.rate
            .map_or(wanted, |rate| wanted.min((rate / 10.0) as usize).max(1))
    }
}

/// While clients wait for the processors, a walk is followed by a rest so many times as long, and of so long at most.
const GIVE_WAY: u32 = 5;
const GIVE_WAY_MAX: Duration = Duration::from_millis(10);
/// How often it is looked at what the rest leads to.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// How the forwarder gives way. A backlog has time, and its records cost a client, a broker and a network too; but it must not grow by
/// that, or the log would be full one day.
#[derive(Debug)]
pub struct GiveWay {
    rests: bool,
    looked: Instant,
    marks: Watermarks,
}

impl GiveWay {
    /// It rests, until that shows to be too much.
    pub fn new(marks: Watermarks, now: Instant) -> Self {
        Self {
            rests: true,
            looked: now,
            marks,
        }
    }

    /// How long to rest after a walk that took so long, while clients wait.
    pub fn rest(&mut self, walk: Duration, marks: Watermarks, now: Instant) -> Duration {
        if now.saturating_duration_since(self.looked) >= LOOK_EVERY {
            let came = marks.committed.saturating_sub(self.marks.committed);
            let went = marks.acked.saturating_sub(self.marks.acked);
            // Once without a rest, only what goes much faster than it comes may rest again.
            let enough = if self.rests { came } else { came.saturating_mul(2) };
            // What came just now is no backlog.
            self.rests = went >= enough || marks.committed.saturating_sub(marks.acked) <= came;
            self.looked = now;
            self.marks = marks;
        }
        match self.rests {
            true => walk.saturating_mul(GIVE_WAY).min(GIVE_WAY_MAX),
            false => Duration::ZERO,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_gives_way_while_the_backlog_does_not_grow_by_that() {
        let start = Instant::now();
        let walk = Duration::from_millis(1);
        let mut marks = Watermarks {
            committed: 1_000_000,
            ..Watermarks::default()
        };
        let mut way = GiveWay::new(marks, start);
        assert_eq!(way.rest(walk, marks, start), walk * GIVE_WAY);
        assert_eq!(way.rest(walk * 100, marks, start), GIVE_WAY_MAX);
        // (came, went, whether it rests then)
        let seconds = [
            (100, 100, true),
            (100, 99, false),
            // As much again would come with a rest.
            (100, 199, false),
            (100, 200, true),
            (100, 400, true),
            (10, 0, false),
            // All but what came in this second is gone.
            (1_000, 1_000_000, true),
            (2_000, 1_500, true),
        ];
        for (second, (came, went, rests)) in (1..).zip(seconds) {
            marks.committed += came;
            marks.acked = (marks.acked + went).min(marks.committed - 10);
            let now = start + LOOK_EVERY * second;
            assert_eq!(!way.rest(walk, marks, now).is_zero(), rests, "second {second}");
        }
    }

    #[test]
    fn a_second_carries_the_rate_and_a_tenth() {
        let start = Instant::now();
        let mut pace = Pace::new(Some(10_000), start);
        let mut now = start;
        let mut sent = 0;
        while now < start + Duration::from_secs(1) {
            let wait = pace.wait(now);
            if wait.is_zero() {
                pace.take(100);
                sent += 100;
            } else {
                now += wait;
            }
        }
        assert!((10_000..=11_200).contains(&sent), "{sent}");
    }

    #[test]
    fn without_a_rate_nothing_waits() {
        let mut pace = Pace::new(None, Instant::now());
        pace.take(usize::MAX);
        assert_eq!(pace.wait(Instant::now()), Duration::ZERO);
        assert_eq!(pace.chunk_bytes(1000), 1000);
    }
}
