//! `forward.bytes_per_second_max`: a bucket of tokens over payload bytes. Pure: the caller gives the time.

use std::time::{Duration, Instant};

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

#[cfg(test)]
mod tests {
    use super::*;

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
