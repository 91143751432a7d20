//! Records that come with an identity: from an export, an archive, another gateway's log.
//!
//! They go the normal way, as one commit, and keep who they are: what Kafka has already is recognised by whoever reads
//! it there.

use serde::{Deserialize, Serialize};

use super::item::{Item, ItemError};
use crate::record::{Record, Sequence};
use crate::wal::{AppendError, Batch, Wal};

/// The most records that one commit of them has.
pub const RECORDS_MAX: usize = 10_000;

/// What came of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Imported {
    /// How many records.
    pub records: usize,
    /// The place of the first one in the log.
    pub first_seq: Sequence,
    /// The place of the last one.
    pub last_seq: Sequence,
}

/// Records to be taken at once.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Items {
    /// At most [`RECORDS_MAX`].
    pub items: Vec<Item>,
}

/// Why records are not taken.
#[derive(Debug, thiserror::Error)]
pub enum ItemsError {
    /// One of them is none.
    #[error("item {number}: {source}")]
    Item {
        /// Which, from 1.
        number: usize,
        /// Why.
        source: ItemError,
    },
    /// More than one commit has.
    #[error("more than {RECORDS_MAX} records at once: send them in parts")]
    TooMany,
}

impl Items {
    /// The records, each with its identity.
    ///
    /// # Errors
    /// The first that is none.
    pub fn into_records(self) -> Result<Vec<Record>, ItemsError> {
        if self.items.len() > RECORDS_MAX {
            return Err(ItemsError::TooMany);
        }
        let records = self.items.into_iter().zip(1..).map(|(item, number)| {
            let record = item.into_record();
            record.map_err(|source| ItemsError::Item { number, source })
        });
        records.collect()
    }
}

/// Commits them: all or none. Blocks until they are on disk.
///
/// # Errors
/// Why none of them is in the log.
pub fn import(wal: &Wal, records: &[Record]) -> Result<Imported, AppendError> {
    let mut batch = Batch::new();
    for record in records {
        batch.push(record);
    }
    let receipt = wal.log().append(batch)?.wait()?;
    Ok(Imported {
        records: records.len(),
        first_seq: receipt.first_seq,
        last_seq: receipt.last_seq,
    })
}
