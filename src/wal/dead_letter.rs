//! Records that Kafka can never take, kept with the reason until an operator decides.
//!
//! A log of its own in the folder `dead-letters`, made when the first letter comes. A letter is fsynced before
//! the main log's watermark passes its record, and added once however often that is tried.
//!
//! Knows nothing of why Kafka refused.

use std::collections::HashSet;
use std::sync::Mutex;

use bincode::{Decode, Encode};

use super::error::AppendError;
use super::log::{Log, lock};
use super::reader::Read;
use super::{Batch, ReadError};
use crate::record::{ENCODING, Origin, Record};

/// How much is read at once when the letters are loaded.
const READ_BYTES: usize = 1024 * 1024;

/// One record that Kafka refused when it was sent alone.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
pub struct Letter {
    /// Who it is: the WAL that first took it, and its sequence there.
    pub origin: Origin,
    /// The record.
    pub record: Record,
    /// Kafka's name for the error, for example `MessageSizeTooLarge`.
    pub code: String,
    /// The error in words.
    pub reason: String,
    /// When it first failed, milliseconds since the Unix epoch.
    pub first_failed_ms: i64,
    /// When it last failed.
    pub last_failed_ms: i64,
}

/// The letters of one WAL.
pub(super) struct DeadLetters {
    log: Log,
    known: Mutex<HashSet<Origin>>,
}

impl DeadLetters {
    pub(super) fn load(log: &Log) -> Result<Self, ReadError> {
        let mut known = HashSet::new();
        let mut reader = log.reader(log.watermarks().acked + 1);
        loop {
            match reader.read(READ_BYTES)? {
                Read::Nothing => break,
                Read::Damaged { .. } => {}
                Read::Records(chunk) => {
                    for (sequence, bytes) in chunk.entries() {
                        match bincode::decode_from_slice::<Letter, _>(bytes, ENCODING) {
                            Ok((letter, _)) => drop(known.insert(letter.origin)),
                            Err(error) => {
                                tracing::error!(sequence, %error, "a dead letter does not decode; it is left")
                            }
                        }
                    }
                }
            }
        }
        Ok(Self {
            log: log.clone(),
            known: Mutex::new(known),
        })
    }

    pub(super) fn count(&self) -> u64 {
        lock(&self.known).len() as u64
    }

    /// Blocks until all are on disk; returns how many were new.
    pub(super) fn add(&self, letters: &[Letter]) -> Result<usize, AppendError> {
        let mut known = lock(&self.known);
        let mut batch = Batch::new();
        let mut added = HashSet::new();
        for letter in letters {
            if !known.contains(&letter.origin) && added.insert(letter.origin) {
                batch.push_encoded(letter);
            }
        }
        if batch.is_empty() {
            return Ok(0);
        }
        self.log.append(batch)?.wait()?;
        let count = added.len();
        known.extend(added);
        Ok(count)
    }

    pub(super) fn log(&self) -> &Log {
        &self.log
    }
}
