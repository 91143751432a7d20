//! The window of idempotency keys: what a request that comes again is to be answered.
//!
//! A key is *reserved* before its request's body is read, and *known* from the moment its records are committed. The
//! [`Reservation`] goes with the batch: the writer turns it into a known key in the commit of its records, whoever still
//! waits for the answer, and whatever drops it instead (a refusal, a client that left before its batch was queued) frees
//! the key. So no key is known without its records, and no records without their key.
//!
//! Bounded twice: a key is forgotten after the window's time, and beyond `max` keys the oldest (by sequence) is. In memory
//! a key takes about 240 bytes, on disk 52 (keys.rs, which also reads them back at a start): the text of a key is only in
//! its record, here it is a hash.
//!
//! A key goes with the loss of any of its records: its client may still have what the disk has not.
//!
//! Time is the record's own, and clocks jump: a key whose time is ahead of the clock counts from the moment that this is
//! seen, until the clock has passed it.
//!
//! Deliberately does not know: who sends keys and how they look (http), frames, files, when a generation goes.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::fmt;
use std::ops::Bound;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use sha2::{Digest as _, Sha256};

use super::log::lock;
use crate::record::{Idempotency, Sequence};

/// Which key: the first 16 bytes of a SHA-256 over its scope and its text.
pub type KeyId = [u8; 16];

/// A step of the clock, in milliseconds, after which every key's age is looked at again. Requests are not quite in the
/// order of their times, so a small step is none.
const STEP_MS: u64 = 60_000;

/// How many keys are remembered, and for how long.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct KeysOptions {
    /// The most; 0: none, a request with a key is refused.
    pub max: usize,
    /// How long.
    pub window: Duration,
}

impl Default for KeysOptions {
    fn default() -> Self {
        Self {
            max: 100_000,
            window: Duration::from_secs(24 * 60 * 60),
        }
    }
}

/// What came of the request with a key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Remembered {
    /// Which key.
    pub id: KeyId,
    /// What it stood for: [`Idempotency::body`].
    pub body: [u8; 16],
    /// The sequence of its first record.
    pub first_seq: Sequence,
    /// How many records it had.
    pub records: u32,
    /// When it was received.
    pub received_ms: i64,
}

impl Remembered {
    /// The sequence of its last record.
    #[must_use]
    pub fn last_seq(&self) -> Sequence {
        self.first_seq + u64::from(self.records.max(1)) - 1
    }

    /// What the first record of a batch says.
    #[must_use]
    pub fn of(idempotency: &Idempotency, first_seq: Sequence, received_ms: i64) -> Self {
        Self {
            id: id(&idempotency.scope, &idempotency.key),
            body: idempotency.body,
            first_seq,
            records: idempotency.records,
            received_ms,
        }
    }
}

/// Which key a text in a scope is.
#[must_use]
pub fn id(scope: &[u8; 16], key: &str) -> KeyId {
    let sum = Sha256::new().chain_update(scope).chain_update(key).finalize();
    sum.first_chunk().copied().unwrap_or_default()
}

/// What asking for a key came to.
#[derive(Debug)]
pub enum Reserved {
    /// Nobody has it: it is this request's.
    New(Reservation),
    /// Another request with it is under way.
    InFlight,
    /// It was committed.
    Known(Remembered),
    /// No keys are kept.
    Off,
}

/// The keys of one log.
pub struct Keys {
    options: KeysOptions,
    state: Mutex<State>,
    /// Every key of a record up to here is in the file, or forgotten: generations up to here may go.
    pub(super) through: AtomicU64,
    /// The file is behind what `through` says: a generation had to go for want of space.
    pub(super) owed: AtomicBool,
    /// Bytes of the file.
    pub(super) file_bytes: AtomicU64,
}

/// Not all of them: a reservation that is written into a message has them, too.
impl fmt::Debug for Keys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Keys")
            .field("options", &self.options)
            .finish_non_exhaustive()
    }
}

#[derive(Debug, Default)]
struct State {
    /// Known keys, the oldest first.
    by_seq: BTreeMap<Sequence, Known>,
    by_id: HashMap<KeyId, Sequence>,
    in_flight: HashSet<KeyId>,
    /// The latest time that was seen.
    now_ms: i64,
}

#[derive(Debug, Clone, Copy)]
struct Known {
    what: Remembered,
    /// What its age counts from.
    since_ms: i64,
}

impl State {
    /// Takes note of the time. After a step of the clock each key counts from its own time again, or, where that is still
    /// to come, from now at the latest.
    fn look_at_clock(&mut self, now_ms: i64) {
        if now_ms.abs_diff(self.now_ms) < STEP_MS {
            self.now_ms = self.now_ms.max(now_ms);
            return;
        }
        self.now_ms = now_ms;
        for known in self.by_seq.values_mut() {
            known.since_ms = match known.what.received_ms <= now_ms {
                true => known.what.received_ms,
                false => known.since_ms.min(now_ms),
            };
        }
    }

    fn is_over(&self, known: &Known, window: Duration) -> bool {
        let age = u64::try_from(self.now_ms.saturating_sub(known.since_ms)).unwrap_or(0);
        u128::from(age) >= window.as_millis()
    }

    fn insert(&mut self, what: Remembered, options: KeysOptions) {
        // Of a key that was used again after its time the later use counts, in whichever order they are read back.
        match self.by_id.get(&what.id) {
            Some(known) if *known > what.first_seq => return,
            Some(known) => drop(self.by_seq.remove(known)),
            None => {}
        }
        self.by_id.insert(what.id, what.first_seq);
        let since_ms = what.received_ms.min(self.now_ms);
        if let Some(before) = self.by_seq.insert(what.first_seq, Known { what, since_ms })
            && before.what.id != what.id
        {
            self.by_id.remove(&before.what.id);
        }
        while let Some((_, oldest)) = self.by_seq.first_key_value()
            && (self.by_seq.len() > options.max || self.is_over(oldest, options.window))
        {
            if let Some((_, oldest)) = self.by_seq.pop_first() {
                self.by_id.remove(&oldest.what.id);
            }
        }
    }
}

impl Keys {
    /// None yet.
    #[must_use]
    pub fn new(options: KeysOptions, now_ms: i64) -> Self {
        Self {
            options,
            state: Mutex::new(State {
                now_ms,
                ..State::default()
            }),
            through: AtomicU64::new(0),
            owed: AtomicBool::new(false),
            file_bytes: AtomicU64::new(0),
        }
    }

    /// Asks for a key at the time `now_ms`.
    #[must_use]
    pub fn reserve(self: &Arc<Self>, id: KeyId, now_ms: i64) -> Reserved {
        if self.options.max == 0 {
            return Reserved::Off;
        }
        let mut state = lock(&self.state);
        state.look_at_clock(now_ms);
        if state.in_flight.contains(&id) {
            return Reserved::InFlight;
        }
        let known = state.by_id.get(&id).and_then(|seq| state.by_seq.get(seq));
        if let Some(known) = known.filter(|known| !state.is_over(known, self.options.window)) {
            return Reserved::Known(known.what);
        }
        state.in_flight.insert(id);
        Reserved::New(Reservation {
            keys: Arc::clone(self),
            id,
            about: None,
            is_committed: false,
        })
    }

    /// Adds one that was read back.
    pub fn restore(&self, what: Remembered) {
        lock(&self.state).insert(what, self.options);
    }

    /// Forgets whose records are among `first ..= last`, which are lost: a request that comes again is stored again, which
    /// heals the loss. Returns how many they were.
    pub fn forget(&self, first: Sequence, last: Sequence) -> usize {
        let mut state = lock(&self.state);
        let lost: Vec<Remembered> = (state.by_seq.range(..=last).rev())
            .map(|(_, known)| known.what)
            // In order and apart from each other: behind one that ends before the range all others do.
            .take_while(|what| what.last_seq() >= first)
            .collect();
        for what in &lost {
            state.by_seq.remove(&what.first_seq);
            state.by_id.remove(&what.id);
        }
        lost.len()
    }

    /// How many are known, those whose time is over and that nobody has asked for included.
    #[must_use]
    pub fn count(&self) -> usize {
        lock(&self.state).by_seq.len()
    }

    /// The next ones behind the sequence `after`, `most` at most, in order, without those whose time is over; `None`: there
    /// is none. Else the sequence to go on after. A few at a time, so that nobody waits for the lock for long.
    pub fn some_after(&self, after: Sequence, most: usize, out: &mut Vec<Remembered>) -> Option<Sequence> {
        let state = lock(&self.state);
        let range = state.by_seq.range((Bound::Excluded(after), Bound::Unbounded));
        let mut last = None;
        for (seq, known) in range.take(most) {
            last = Some(*seq);
            if !state.is_over(known, self.options.window) {
                out.push(known.what);
            }
        }
        last
    }

    /// Up to here no generation is needed for its keys.
    #[must_use]
    pub fn through(&self) -> Sequence {
        self.through.load(Ordering::Acquire)
    }
}

/// A key that is this request's until its records are committed. Dropped before that: it is nobody's again.
#[derive(Debug)]
pub struct Reservation {
    keys: Arc<Keys>,
    id: KeyId,
    about: Option<About>,
    is_committed: bool,
}

/// What the batch is that a reserved key stands for.
#[derive(Debug, Clone, Copy)]
struct About {
    body: [u8; 16],
    records: u32,
    received_ms: i64,
}

impl Reservation {
    /// Says what it stands for.
    pub(super) fn is_for(&mut self, idempotency: &Idempotency, received_ms: i64) {
        self.about = Some(About {
            body: idempotency.body,
            records: idempotency.records,
            received_ms,
        });
    }

    /// Its records are on disk, the first of them as `first_seq`: the key is known from here on.
    pub(super) fn commit(mut self, first_seq: Sequence) {
        let Some(about) = self.about else { return };
        self.is_committed = true;
        let mut state = lock(&self.keys.state);
        // Under one lock: nobody finds the key neither under way nor known.
        state.in_flight.remove(&self.id);
        let what = Remembered {
            id: self.id,
            body: about.body,
            first_seq,
            records: about.records,
            received_ms: about.received_ms,
        };
        state.insert(what, self.keys.options);
    }
}

impl Drop for Reservation {
    fn drop(&mut self) {
        if !self.is_committed {
            lock(&self.keys.state).in_flight.remove(&self.id);
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::panic)]
mod tests {
    use super::*;

    const HOUR: i64 = 3_600_000;

    fn keys(max: usize, hours: u64, now_ms: i64) -> Arc<Keys> {
        let window = Duration::from_secs(hours * 3600);
        Arc::new(Keys::new(KeysOptions { max, window }, now_ms))
    }

    fn what(id: u8, first_seq: Sequence, received_ms: i64) -> Remembered {
        Remembered {
            id: [id; 16],
            body: [7; 16],
            first_seq,
            records: 1,
            received_ms,
        }
    }

    fn is_known(keys: &Arc<Keys>, id: u8, now_ms: i64) -> bool {
        match keys.reserve([id; 16], now_ms) {
            Reserved::Known(_) => true,
            Reserved::New(_) => false,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_key_is_one_requests_until_its_reservation_ends() {
        let keys = keys(10, 1, 0);
        let Reserved::New(mut reservation) = keys.reserve([1; 16], 0) else {
            panic!()
        };
        assert!(matches!(keys.reserve([1; 16], 0), Reserved::InFlight));
        assert!(matches!(keys.reserve([2; 16], 0), Reserved::New(_)));
        let idempotency = Idempotency {
            key: "k".into(),
            scope: [0; 16],
            body: [9; 16],
            records: 3,
        };
        reservation.is_for(&idempotency, 5);
        reservation.commit(70);
        let Reserved::Known(known) = keys.reserve([1; 16], 0) else {
            panic!()
        };
        assert_eq!(
            (known.body, known.first_seq, known.last_seq(), known.received_ms),
            ([9; 16], 70, 72, 5)
        );
        // What was not committed leaves nothing.
        let Reserved::New(dropped) = keys.reserve([3; 16], 0) else {
            panic!()
        };
        drop(dropped);
        assert!(!is_known(&keys, 3, 0));
        assert!(lock(&keys.state).in_flight.is_empty());
    }

    #[test]
    fn the_oldest_goes_beyond_the_limit_and_each_after_its_time() {
        let keys = keys(2, 2, 0);
        for (id, seq) in [(1, 1), (2, 2), (3, 3)] {
            keys.restore(what(id, seq, 0));
        }
        assert!(!is_known(&keys, 1, 0) && is_known(&keys, 2, 0) && is_known(&keys, 3, 0));
        assert!(is_known(&keys, 3, 2 * HOUR - 1) && !is_known(&keys, 3, 2 * HOUR));
        // Used again: the later use counts, whichever is read first.
        keys.restore(what(3, 9, 2 * HOUR));
        keys.restore(what(3, 3, 0));
        assert!(is_known(&keys, 3, 3 * HOUR) && !is_known(&keys, 2, 3 * HOUR));
        assert_eq!(keys.count(), lock(&keys.state).by_id.len());
        assert!(matches!(self::keys(0, 1, 0).reserve([1; 16], 0), Reserved::Off));
    }

    #[test]
    fn a_key_goes_with_any_of_its_records() {
        let keys = keys(9, 1, 0);
        for (id, first_seq, records) in [(1, 1, 3), (2, 4, 1), (3, 10, 5), (4, 15, 2)] {
            keys.restore(Remembered {
                records,
                ..what(id, first_seq, 0)
            });
        }
        assert_eq!(keys.forget(5, 9), 0);
        assert_eq!(keys.forget(3, 3), 1);
        assert_eq!(keys.forget(14, 15), 2);
        assert!(!is_known(&keys, 1, 0) && is_known(&keys, 2, 0));
        assert!(!is_known(&keys, 3, 0) && !is_known(&keys, 4, 0));
        assert_eq!(lock(&keys.state).by_id.len(), 1);
    }

    #[test]
    fn a_time_that_is_still_to_come_counts_from_now() {
        // Received by a clock that was ahead; it was set right.
        let ahead = keys(9, 2, 0);
        ahead.restore(what(1, 1, 1000 * HOUR));
        assert!(is_known(&ahead, 1, HOUR) && !is_known(&ahead, 1, 2 * HOUR));
        let running = keys(9, 2, 1000 * HOUR);
        running.restore(what(1, 1, 1000 * HOUR));
        assert!(is_known(&running, 1, 0) && is_known(&running, 1, HOUR) && !is_known(&running, 1, 2 * HOUR));
        // A machine that starts without the time, and gets it later.
        let behind = keys(9, 2, 0);
        behind.restore(what(1, 1, 1000 * HOUR));
        behind.restore(what(2, 2, 990 * HOUR));
        assert!(is_known(&behind, 1, HOUR / 2) && is_known(&behind, 2, HOUR / 2));
        assert!(is_known(&behind, 1, 1001 * HOUR) && !is_known(&behind, 2, 1001 * HOUR));
    }
}
