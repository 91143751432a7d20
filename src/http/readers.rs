//! Readers between two pages of an answer: whoever asks for the next page goes on with the one that gave the last.
//!
//! Another reader would have to scan and check the whole sealed generation again for each page. A few are kept, for
//! a while: one holds an index in memory and its generation's file open.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crate::record::Sequence;
use crate::wal::{Log, Part, Reader};

const READERS_MAX: usize = 2;
/// Whoever wants the next page asks for it at once, or is a person.
const KEPT_FOR: Duration = Duration::from_secs(60);

/// The readers of pages that ended before their log did.
#[derive(Default)]
pub(super) struct Readers(Mutex<Vec<Kept>>);

struct Kept {
    part: Part,
    reader: Reader,
    since: Instant,
}

impl Readers {
    /// One that reads `log`, which is `part`, from `from` on.
    pub(super) fn take(&self, part: Part, log: &Log, from: Sequence) -> Reader {
        let mut kept = self.kept();
        let known = kept
            .iter()
            .position(|kept| kept.part == part && kept.reader.position() == from);
        known.map_or_else(|| log.reader(from), |place| kept.swap_remove(place).reader)
    }

    /// Keeps one whose next page begins at `next`.
    pub(super) fn keep(&self, part: Part, mut reader: Reader, next: Sequence) {
        reader.seek(next);
        let mut kept = self.kept();
        if kept.len() >= READERS_MAX
            && let Some((oldest, _)) = kept.iter().enumerate().min_by_key(|(_, kept)| kept.since)
        {
            kept.swap_remove(oldest);
        }
        kept.push(Kept {
            part,
            reader,
            since: Instant::now(),
        });
    }

    /// Drops those that nobody asked for.
    pub(super) fn sweep(&self) {
        self.kept().retain(|kept| kept.since.elapsed() < KEPT_FOR);
    }

    fn kept(&self) -> MutexGuard<'_, Vec<Kept>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::wal::{Options, Retain, Wal};

    #[test]
    fn the_next_page_has_its_reader_and_few_are_kept() {
        let folder = tempfile::tempdir().unwrap();
        let wal = Wal::open(Options {
            path: folder.path().join("wal"),
            bytes_max: 1 << 30,
            free_bytes_min: 0,
            generation_bytes: 64 << 20,
            compression: true,
            retain: Retain::Off,
            linger: Duration::ZERO,
            keys: Default::default(),
        })
        .unwrap();
        let (readers, log) = (Readers::default(), wal.log());
        let count = || readers.kept().len();
        readers.keep(Part::Main, log.reader(9), 5);
        assert_eq!(readers.take(Part::Main, log, 9).position(), 9);
        assert_eq!(readers.take(Part::Held, log, 5).position(), 5);
        assert_eq!(count(), 1, "neither was it");
        assert_eq!(readers.take(Part::Main, log, 5).position(), 5);
        assert_eq!(count(), 0);
        for next in 1..=3 {
            readers.keep(Part::Main, log.reader(1), next);
        }
        readers.sweep();
        assert_eq!(count(), READERS_MAX);
        assert_eq!(readers.take(Part::Main, log, 3).position(), 3);
        assert_eq!(count(), 1, "the oldest went");
        let long_ago = Instant::now().checked_sub(KEPT_FOR).unwrap();
        readers.kept().iter_mut().for_each(|kept| kept.since = long_ago);
        readers.sweep();
        assert_eq!(count(), 0);
    }
}
