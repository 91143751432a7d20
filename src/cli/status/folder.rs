//! The status of a log whose gateway does not run, from its folder: in the shape that a gateway gives.
//!
//! What only a running gateway knows (Kafka, requests) is not in it. Nothing is opened or changed.

use std::fs;
use std::path::Path;

use serde_json::json;

use super::super::ask::Answer;
use crate::config::Config;
use crate::ops;
use crate::record::{WalId, now_ms};
use crate::wal::{Archive, ArchiveError, Archived, Part, ReadError, Witnessed, count_sequences};
use crate::words::counted;

/// The folder of a log where damaged generations are kept.
const ASIDE: &str = "damaged";

/// Why there is nothing to show.
#[derive(Debug, thiserror::Error)]
pub(super) enum FolderError {
    #[error(transparent)]
    Archive(#[from] ArchiveError),
    #[error(transparent)]
    Read(#[from] ReadError),
}

impl FolderError {
    /// Another folder must be named.
    pub(super) fn is_misdirected(&self) -> bool {
        matches!(
            self,
            Self::Archive(ArchiveError::NotAWal { .. } | ArchiveError::Format { .. } | ArchiveError::Io { .. })
        )
    }
}

/// As `/v1/status`, with `"running": false`.
pub(super) fn status(path: &Path, config: &Config) -> Result<Answer, FolderError> {
    let archive = Archive::open(path)?;
    let marks = |part| archive.log(part).map(|log| log.watermarks()).unwrap_or_default();
    let main = marks(Part::Main);
    let waiting = |part| archive.log(part).map_or(0, |log| log.waiting());
    // Whose records they are changes nothing about their number.
    let own = archive.id().unwrap_or(WalId(uuid::Uuid::nil()));
    let letters = ops::Letters::folder(&archive, own)?.count();
    let oldest_received_ms = oldest(&archive)?;
    let identity = archive.id().err().map(|error| error.to_string());
    let gone = archive.gone().iter().map(ToString::to_string);
    let faults = archive.logs().flat_map(|log| faults(log, path));
    let faults: Vec<String> = identity.into_iter().chain(gone).chain(faults).collect();
    let free = rustix::fs::statvfs(path).map(|stat| stat.f_bavail.saturating_mul(stat.f_frsize));
    let value = json!({
        "gateway": null,
        "running": false,
        "folder": path,
        "now_ms": now_ms(),
        "wal": {
            "id": archive.id().ok().map(|id| id.to_string()),
            "trimmed": main.trimmed,
            "acked": main.acked,
            "committed": main.committed,
            "next": main.next,
            "backlog_records": waiting(Part::Main),
            "backlog_bytes": null,
            "disk_bytes": archive.logs().map(|log| log.disk_bytes()).sum::<u64>(),
            "capacity_bytes": config.wal.bytes_max,
            "free_bytes": free.ok(),
            "generations": archive.log(Part::Main).map(|log| log.generations()),
            "faults": faults,
        },
        "held_records": waiting(Part::Held),
        "dead_letters": letters,
        "forward": { "oldest_received_ms": oldest_received_ms },
    });
    archive.check_unused()?;
    let json = value.to_string();
    Ok(Answer { value, json })
}

/// What is seen to be wrong with a log without reading all of it.
fn faults(log: &Archived, folder: &Path) -> Vec<String> {
    let name = log.part().name();
    let mut faults = Vec::new();
    let witness = match log.witnessed() {
        Witnessed::Marks(_) => None,
        Witnessed::Missing => Some("missing"),
        Witnessed::Damaged => Some("damaged"),
    };
    if let Some(witness) = witness {
        faults.push(format!(
            "{name}: the witness is {witness}, so how far the log was committed and acknowledged is a guess"
        ));
    }
    if let Some(fault) = log.lost_fault() {
        faults.push(format!("{name}: {fault}"));
    }
    let unsent = count_sequences(log.unsent());
    if unsent > 0 {
        faults.push(format!(
            "{name}: {} could not be read when their turn came, and the log went on without them",
            counted(unsent, "record")
        ));
    }
    if log.is_end_lost() {
        faults.push(format!("{name}: the end of the log is lost"));
    }
    if log.marked() > 0 {
        let generations = counted(log.marked() as u64, "generation");
        faults.push(format!(
            "{name}: {generations} in which, or behind which, something could not be read"
        ));
    }
    let aside = fs::read_dir(log.part().folder(folder).join(ASIDE)).map_or(0, Iterator::count);
    if aside > 0 {
        let generations = counted(aside as u64, "generation");
        faults.push(format!(
            "{name}: {generations} set aside in '{ASIDE}', because something could not be read"
        ));
    }
    faults
}

/// When the oldest record that waits for Kafka was received.
fn oldest(archive: &Archive) -> Result<Option<i64>, ReadError> {
    let Some(log) = archive.log(Part::Main) else {
        return Ok(None);
    };
    let mut reader = log.reader(log.watermarks().acked + 1);
    loop {
        match reader.read(1)? {
            crate::wal::Read::Nothing => return Ok(None),
            crate::wal::Read::Damaged { .. } => {}
            crate::wal::Read::Records(chunk) => {
                let first = chunk.records().find_map(|(_, record)| record.ok());
                if let Some(record) = first {
                    return Ok(Some(record.received_ms));
                }
            }
        }
    }
}
