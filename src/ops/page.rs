//! A piece of a log: what matches a question, from a sequence on, and where to go on.

use std::time::{Duration, Instant};

use memchr::memmem;
use serde::{Deserialize, Serialize};

use super::item::Item;
use crate::record::{RecordRef, Sequence, WalId};
use crate::wal::{Read, ReadError, Reader};

/// How much is read at once.
const CHUNK_BYTES: usize = 1024 * 1024;

/// Which records are wanted: those that match everything that is set.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Query {
    /// Places in the log from this one on.
    pub from_seq: Option<Sequence>,
    /// Places up to this one.
    pub to_seq: Option<Sequence>,
    /// Received at this time or later, milliseconds since the epoch.
    pub since_ms: Option<i64>,
    /// Received before this time.
    pub until_ms: Option<i64>,
    /// Of this topic.
    pub topic: Option<String>,
    /// With this key, byte for byte.
    pub key: Option<String>,
    /// With this text anywhere in the value.
    pub text: Option<String>,
    /// The most items of an answer.
    pub limit: Option<usize>,
    /// Give no items, only their number.
    pub only_count: bool,
}

/// What an answer may cost.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// The most items.
    pub records_max: usize,
    /// The most bytes of their values, keys and headers, one record more at most.
    pub bytes_max: usize,
    /// How long it may look.
    pub time_max: Duration,
}

impl Limits {
    /// For somebody who waits for an answer.
    pub const ANSWER: Self = Self {
        records_max: 1000,
        bytes_max: 4 << 20,
        time_max: Duration::from_secs(1),
    };
}

/// What was found.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Page {
    /// The records, in the order of the log.
    pub items: Vec<Item>,
    /// How many matched, also when no items were wanted.
    pub matched: u64,
    /// Ranges of sequences (first, last) that were committed and cannot be read.
    pub damaged: Vec<(Sequence, Sequence)>,
    /// Where to go on.
    pub next: Sequence,
    /// Nothing more is there now.
    pub end: bool,
}

impl Query {
    /// Whether every record matches, wherever it is.
    #[must_use]
    pub fn is_any(&self) -> bool {
        let Self { limit, only_count, .. } = *self;
        *self
            == Self {
                limit,
                only_count,
                ..Self::default()
            }
    }

    /// Whether the record at `sequence` is wanted.
    #[must_use]
    pub fn matches(&self, record: &RecordRef<'_>) -> bool {
        self.since_ms.is_none_or(|since| record.received_ms >= since)
            && self.until_ms.is_none_or(|until| record.received_ms < until)
            && self.topic.as_ref().is_none_or(|topic| record.topic == topic)
            && (self.key.as_ref()).is_none_or(|key| record.key.is_some_and(|other| other == key.as_bytes()))
            && (self.text.as_ref()).is_none_or(|text| {
                let value = record.value.unwrap_or_default();
                memmem::find(value, text.as_bytes()).is_some()
            })
    }
}

/// Reads on from where `reader` is. `own`: the identity of its log.
///
/// # Errors
/// The system could not read the log.
pub fn page(reader: &mut Reader, own: WalId, query: &Query, limits: Limits) -> Result<Page, ReadError> {
    let deadline = Instant::now() + limits.time_max;
    let records_max = query.limit.unwrap_or(limits.records_max).min(limits.records_max);
    let mut page = Page::default();
    let mut bytes = 0;
    if let Some(from) = query.from_seq.filter(|from| *from > reader.position()) {
        reader.seek(from);
    }
    let last = query.to_seq.unwrap_or(Sequence::MAX);
    loop {
        page.next = reader.position();
        if page.next > last {
            page.end = true;
            return Ok(page);
        }
        let full = !query.only_count && (page.items.len() >= records_max || bytes >= limits.bytes_max);
        if full || Instant::now() >= deadline {
            return Ok(page);
        }
        match reader.read(CHUNK_BYTES)? {
            Read::Nothing => {
                page.end = true;
                return Ok(page);
            }
            Read::Damaged { told: true, .. } => {}
            Read::Damaged { first, last: end, .. } => {
                if first <= last {
                    page.damaged.push((first, end.min(last)));
                }
            }
            Read::Records(chunk) => {
                for (sequence, record) in chunk.records() {
                    if sequence > last {
                        break;
                    }
                    if !query.only_count && (page.items.len() >= records_max || bytes >= limits.bytes_max) {
                        reader.seek(sequence);
                        break;
                    }
                    match record {
                        Err(_) => page.damaged.push((sequence, sequence)),
                        // An entry without a topic is a mark of the held lane.
                        Ok(record) if record.topic.is_empty() || !query.matches(&record) => {}
                        Ok(record) => {
                            page.matched += 1;
                            if !query.only_count {
                                bytes += record.payload_bytes();
                                page.items.push(Item::of(own, sequence, &record));
                            }
                        }
                    }
                }
            }
        }
    }
}
