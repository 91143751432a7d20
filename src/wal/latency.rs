//! How long commits took over the last minute: for an operator, who has no histogram at hand.
//!
//! One slot a second. The writer thread is the only one that writes, so that it takes no lock; a reader may meet a
//! slot while it is begun anew and be wrong by that one second.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

const SECONDS: usize = 60;

/// See the module.
pub struct Latency {
    slots: [Slot; SECONDS],
}

#[derive(Default)]
struct Slot {
    second: AtomicU64,
    commits: AtomicU64,
    micros: AtomicU64,
    micros_max: AtomicU64,
}

/// Milliseconds of the commits of a minute.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct CommitTimes {
    pub average_ms: f64,
    pub max_ms: f64,
}

impl Default for Latency {
    fn default() -> Self {
        Self {
            slots: std::array::from_fn(|_| Slot::default()),
        }
    }
}

impl Latency {
    /// Notes a commit that ended in this second (of a clock that never goes back). By one thread only.
    pub fn note(&self, second: u64, time: Duration) {
        let index = usize::try_from(second % SECONDS as u64).unwrap_or(0);
        let Some(slot) = self.slots.get(index) else { return };
        if slot.second.load(Ordering::Relaxed) != second {
            slot.commits.store(0, Ordering::Relaxed);
            slot.micros.store(0, Ordering::Relaxed);
            slot.micros_max.store(0, Ordering::Relaxed);
            slot.second.store(second, Ordering::Relaxed);
        }
        let micros = u64::try_from(time.as_micros()).unwrap_or(u64::MAX);
        slot.micros.fetch_add(micros, Ordering::Relaxed);
        slot.micros_max.fetch_max(micros, Ordering::Relaxed);
        slot.commits.fetch_add(1, Ordering::Relaxed);
    }

    /// Of the minute that ends with this second; `None`: nothing was committed in it.
    pub fn last_minute(&self, second: u64) -> Option<CommitTimes> {
        let recent = self.slots.iter().filter(|slot| {
            let noted = slot.second.load(Ordering::Relaxed);
            noted <= second && second - noted < SECONDS as u64
        });
        let (mut commits, mut micros, mut micros_max) = (0, 0_u64, 0);
        for slot in recent {
            commits += slot.commits.load(Ordering::Relaxed);
            micros = micros.saturating_add(slot.micros.load(Ordering::Relaxed));
            micros_max = slot.micros_max.load(Ordering::Relaxed).max(micros_max);
        }
        (commits > 0).then(|| CommitTimes {
            average_ms: ms(micros.checked_div(commits).unwrap_or(0)),
            max_ms: ms(micros_max),
        })
    }
}

#[allow(clippy::cast_precision_loss)] // 2^52 microseconds are 142 years
fn ms(micros: u64) -> f64 {
    micros as f64 / 1000.0
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn a_minute_is_remembered_and_no_more() {
        let latency = Latency::default();
        assert_eq!(latency.last_minute(5), None);
        latency.note(5, Duration::from_millis(2));
        latency.note(5, Duration::from_millis(4));
        latency.note(64, Duration::from_micros(9500));
        let times = latency.last_minute(64).unwrap();
        assert_eq!((times.average_ms, times.max_ms), (5.166, 9.5));
        // The first second's place is taken anew.
        assert_eq!(latency.last_minute(65).unwrap().average_ms, 9.5);
        latency.note(65, Duration::from_millis(1));
        assert_eq!(latency.last_minute(65).unwrap().average_ms, 5.25);
        assert_eq!(latency.last_minute(125), None);
    }
}
