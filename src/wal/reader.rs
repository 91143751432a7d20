//! Reading a log in order of sequence, never past what is committed.
//!
//! The live generation is read through sled's tree; a sealed one by a scan of its file (`scan.rs`), once for
//! as long as the reader is in it. What cannot be read is told as a range, counted and passed over: nothing
//! is skipped silently, and nothing stops.

use std::ops;
use std::sync::Arc;

use super::error::ReadError;
use super::frame::{self, Key};
use super::generation::Generation;
use super::generations::Place;
use super::ranges::{self, Range};
use super::scan::{Added, Assembled, Index};
use crate::record::{DECODING, RecordRef, Sequence};

/// The log that is read: one that is open, or one that only lies on a disk.
pub(super) trait View: Send + Sync {
    /// Everything up to here is on disk.
    fn committed(&self) -> Sequence;
    /// Everything up to here is settled, and may be gone.
    fn acked(&self) -> Sequence;
    /// The generation that `sequence` belongs to; for one before the first, the first.
    fn place(&self, sequence: Sequence) -> Option<Place>;
    /// The sequences that hold nothing and are no news: a salvage has told them as lost, or no record ever had them.
    fn told(&self) -> Arc<[Range]>;
    /// Sequences that were committed and cannot be read.
    fn damaged(&self, first: Sequence, last: Sequence, reason: &str);
    /// A scan found out how many bytes the entries of a generation have.
    fn scanned(&self, first: Sequence, raw_bytes: u64);
}

/// Reads one log. For one thread.
pub struct Reader {
    view: Arc<dyn View>,
    position: Sequence,
    scanned: Option<(Key, Index)>,
    frame: Vec<u8>,
}

/// What a read found.
#[derive(Debug)]
pub enum Read {
    /// Entries, in order, without a gap.
    Records(Chunk),
    /// Sequences that were committed and cannot be read: counted and set aside by the log; the reader goes on
    /// behind them.
    Damaged {
        /// The first one.
        first: Sequence,
        /// The last one.
        last: Sequence,
        /// No news: a salvage has told all of them as lost, or no record ever had them.
        told: bool,
    },
    /// Nothing more is committed now.
    Nothing,
}

impl Reader {
    pub(super) fn new(view: Arc<dyn View>, from: Sequence) -> Self {
        Self {
            view,
            position: from.max(1),
            scanned: None,
            frame: Vec::new(),
        }
    }

    /// The sequence that the next read begins at.
    #[must_use]
    pub fn position(&self) -> Sequence {
        self.position
    }

    /// The next read begins at `to`. Cheaper than another reader: what was learned of a sealed generation stays.
    pub fn seek(&mut self, to: Sequence) {
        self.position = to.max(1);
    }

    /// The next entries: at least one, and about `bytes_max` bytes at most (a whole frame more).
    ///
    /// # Errors
    /// The system could not read the file; the position is as before, and trying again is safe.
    pub fn read(&mut self, bytes_max: usize) -> Result<Read, ReadError> {
        let committed = self.view.committed();
        let place = self.view.place(self.position);
        let Some(place) = place else { return Ok(Read::Nothing) };
        if self.position < place.first {
            let unsettled = self.position.max(self.view.acked() + 1);
            if unsettled < place.first {
                self.position = unsettled;
                return Ok(self.damaged(place.first - 1, "their generation is gone"));
            }
            self.position = place.first; // settled and removed long ago
        }
        if self.position > committed {
            self.scanned = None;
            return Ok(Read::Nothing);
        }
        let last = place.end.map_or(committed, |end| committed.min(end - 1));
        let mut chunk = Assembled::from(self.position);
        let stop = match &place.live {
            Some(live) => {
                self.scanned = None;
                match read_live(live, &mut chunk, self.position, place.key, last, bytes_max) {
                    Ok(stop) => stop,
                    // What was read before it is good.
                    Err(_) if !chunk.ranges.is_empty() => Stop::Full,
                    Err(error) => {
                        tracing::warn!(%error, "the live generation cannot be read through its store; its file is scanned");
                        let stop = self.read_sealed(&place, &mut chunk, last, bytes_max)?;
                        self.scanned = None; // it grows
                        stop
                    }
                }
            }
            None => self.read_sealed(&place, &mut chunk, last, bytes_max)?,
        };
        // Entries beyond `last` are not committed, or void: a torn commit from before a crash.
        let keep = usize::try_from((last + 1).saturating_sub(chunk.first)).unwrap_or(usize::MAX);
        chunk.ranges.truncate(keep);
        if chunk.ranges.is_empty() {
            // Removed since it was looked up: then what it held is settled, and no damage.
            let place = self.view.place(self.position);
            if place.is_none_or(|place| place.first > self.position) {
                return self.read(bytes_max);
            }
            return Ok(match stop {
                Stop::Gap { next } => self.damaged(last.min(next.max(self.position + 1) - 1), "frames are missing"),
                Stop::Broken { through, reason } => self.damaged(through.clamp(self.position, last), &reason),
                Stop::End | Stop::Full | Stop::Go => self.damaged(last, "frames are missing"),
            });
        }
        self.position = chunk.expected();
        Ok(Read::Records(Chunk {
            first: chunk.first,
            payload: chunk.payload,
            ranges: chunk.ranges,
        }))
    }

    fn read_sealed(
        &mut self,
        place: &Place,
        chunk: &mut Assembled,
        last: Sequence,
        bytes_max: usize,
    ) -> Result<Stop, ReadError> {
        let failed = |source| ReadError {
            path: place.data.clone(),
            source,
        };
        if self.scanned.as_ref().is_none_or(|(key, _)| *key != place.key) {
            self.scanned = None;
            match Index::scan(&place.data, place.key, &self.view.told()) {
                Ok(index) => {
                    self.view.scanned(place.first, index.raw_bytes());
                    self.scanned = Some((place.key, index));
                }
                Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Stop::End),
                Err(error) => return Err(failed(error)),
            }
        }
        let Some((_, index)) = &self.scanned else {
            return Ok(Stop::End);
        };
        let mut at = index.seek(self.position);
        while index.read(at, &mut self.frame).map_err(failed)?.is_some() {
            at += 1;
            match step(chunk, &self.frame, place.key, last, bytes_max) {
                Stop::Go => {}
                stop => return Ok(stop),
            }
        }
        Ok(Stop::End)
    }

    fn damaged(&mut self, last: Sequence, reason: &str) -> Read {
        let first = self.position;
        let (last, told) = match ranges::unknown(first, last, &self.view.told()).first() {
            None => (last, true),
            Some((from, _)) if *from > first => (from - 1, true),
            Some((_, to)) => (*to, false),
        };
        if !told {
            self.view.damaged(first, last, reason);
        }
        self.position = last + 1;
        Read::Damaged { first, last, told }
    }
}

/// Reads from the store that is being written.
fn read_live(
    live: &Generation,
    chunk: &mut Assembled,
    from: Sequence,
    key: Key,
    last: Sequence,
    bytes_max: usize,
) -> std::io::Result<Stop> {
    for frame in live.frames_from(from)? {
        match step(chunk, frame?.as_ref(), key, last, bytes_max) {
            Stop::Go => {}
            stop => return Ok(stop),
        }
    }
    Ok(Stop::End)
}

/// Why no more frames are taken now.
enum Stop {
    /// Go on.
    Go,
    /// There are no more.
    End,
    /// Enough for one read.
    Full,
    /// The next sequence is not there; `next` is.
    Gap { next: Sequence },
    /// A frame passed its checksum and still makes no sense.
    Broken { through: Sequence, reason: String },
}

fn step(chunk: &mut Assembled, bytes: &[u8], key: Key, last: Sequence, bytes_max: usize) -> Stop {
    if chunk.expected() > last || chunk.payload.len() >= bytes_max {
        return Stop::Full;
    }
    let Some((header, payload)) = frame::check(bytes, key) else {
        // sled's own empty marker entry, or a frame that went bad since the scan: a later frame shows the gap.
        return Stop::Go;
    };
    match chunk.add(&header, payload) {
        Added::Yes | Added::Part => Stop::Go,
        // A later part without its first one: the entry itself is missing, go to the next.
        Added::Gap if header.first <= chunk.expected() => Stop::Go,
        Added::Gap => Stop::Gap { next: header.first },
        Added::Broken(reason) => Stop::Broken {
            through: header.last(),
            reason,
        },
    }
}

/// Entries `first() ..= last()`, where they lie.
#[derive(Debug)]
pub struct Chunk {
    first: Sequence,
    payload: Vec<u8>,
    ranges: Vec<ops::Range<usize>>,
}

impl Chunk {
    /// The sequence of the first entry.
    #[must_use]
    pub fn first(&self) -> Sequence {
        self.first
    }

    /// The sequence of the last entry.
    #[must_use]
    pub fn last(&self) -> Sequence {
        self.first + self.ranges.len() as u64 - 1
    }

    /// The entries as bytes.
    pub fn entries(&self) -> impl Iterator<Item = (Sequence, &[u8])> {
        (self.first..).zip(
            self.ranges
                .iter()
                .map(|range| self.payload.get(range.clone()).unwrap_or_default()),
        )
    }

    /// The entries as records. One whose bytes passed the checksum and still do not decode is an error text.
    pub fn records(&self) -> impl Iterator<Item = (Sequence, Result<RecordRef<'_>, String>)> {
        self.entries().map(|(sequence, bytes)| {
            let record = bincode::borrow_decode_from_slice(bytes, DECODING)
                .map(|(record, _)| record)
                .map_err(|error| format!("the record of sequence {sequence} does not decode: {error}"));
            (sequence, record)
        })
    }
}
