//! The held lane for operators: which topics wait there, and how much of each.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::record::Sequence;
use crate::wal::{Read, ReadError, Reader};

/// How much is read at once.
const CHUNK_BYTES: usize = 1 << 20;
/// Topics that are told apart; the records of the others are one entry.
const TOPICS_MAX: usize = 10_000;
/// That entry.
const OTHERS: &str = "(other topics)";

/// A topic whose records are held.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HeldTopic {
    /// Its name.
    pub topic: String,
    /// How many records.
    pub records: u64,
    /// Since when the topic is held, milliseconds since the epoch; of a folder: when the oldest record was received.
    pub since_ms: i64,
    /// Why, and what to do; known to a running gateway only.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub reason: Option<String>,
}

/// All of them.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct HeldTopics {
    /// The topics; a gateway lists 1000 at most.
    pub topics: Vec<HeldTopic>,
    /// How many topics there are.
    pub count: u64,
    /// Ranges of the lane that cannot be read.
    #[serde(skip_serializing_if = "Vec::is_empty", default)]
    pub damaged: Vec<(Sequence, Sequence)>,
}

/// What to do with the held records of a topic.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct HeldOrder {
    /// The topic.
    pub topic: String,
    /// Where its records go; not for a discard.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub to: Option<String>,
}

/// How many held records were redirected.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Redirected {
    /// How many.
    pub redirected: u64,
}

/// Where to send from again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RewindOrder {
    /// The first sequence that is sent again.
    pub from_seq: Sequence,
}

/// Counts what a lane holds, by topic. Marks of passes are no records.
///
/// # Errors
/// The system could not read it.
pub fn held_topics(reader: &mut Reader) -> Result<HeldTopics, ReadError> {
    let mut topics: BTreeMap<String, HeldTopic> = BTreeMap::new();
    let mut damaged = Vec::new();
    loop {
        let chunk = match reader.read(CHUNK_BYTES)? {
            Read::Nothing => break,
            Read::Damaged { told: true, .. } => continue,
            Read::Damaged { first, last, .. } => {
                damaged.push((first, last));
                continue;
            }
            Read::Records(chunk) => chunk,
        };
        for (sequence, record) in chunk.records() {
            let Ok(record) = record else {
                damaged.push((sequence, sequence));
                continue;
            };
            if record.topic.is_empty() {
                continue;
            }
            let known = topics.contains_key(record.topic) || topics.len() < TOPICS_MAX;
            let name = if known { record.topic } else { OTHERS };
            let topic = topics.entry(name.to_owned()).or_insert_with(|| HeldTopic {
                topic: name.to_owned(),
                records: 0,
                since_ms: record.received_ms,
                reason: None,
            });
            topic.records += 1;
            topic.since_ms = topic.since_ms.min(record.received_ms);
        }
    }
    Ok(HeldTopics {
        count: topics.len() as u64,
        topics: topics.into_values().collect(),
        damaged,
    })
}
