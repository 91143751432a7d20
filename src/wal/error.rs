//! Why the log says no. One enum an operation; each text says what happened, what it means, what to do.
//! Which HTTP status or exit code that becomes is decided by `http/error.rs` and `cli/`.

use std::io;
use std::path::{Path, PathBuf};

/// Why a WAL did not open.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// Another process has it.
    #[error(
        "the WAL in {path} is in use by process {pid}: two gateways on one log would destroy it; stop the other one, \
         or give this one a folder of its own (wal.path)"
    )]
    InUse {
        /// The folder.
        path: PathBuf,
        /// What the lock file says.
        pid: String,
    },
    /// An OK could not mean "on disk" here.
    #[error("the WAL in {path} would not survive a power loss: {source}; nothing was accepted")]
    NotDurable {
        /// The folder.
        path: PathBuf,
        /// What the proof found.
        #[source]
        source: io::Error,
    },
    /// Not a WAL, or one of a later version.
    #[error("{path} is not a WAL that this version reads: {reason}; nothing was changed")]
    Format {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// The disk, the permissions, or the path.
    #[error("cannot {what} {path}: {source}")]
    Io {
        /// What was tried: "create", "read" ...
        what: &'static str,
        /// On what.
        path: PathBuf,
        /// The system's answer.
        #[source]
        source: io::Error,
    },
}

impl OpenError {
    pub(super) fn io(what: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        move |source| Self::Io {
            what,
            path: path.to_path_buf(),
            source,
        }
    }
}

/// Why records were not taken. None of the batch is in the log.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum AppendError {
    /// The folder has reached its limit.
    #[error(
        "the log has reached wal.bytes_max ({bytes_max} bytes); it takes records again as the backlog drains to Kafka"
    )]
    Full {
        /// The limit.
        bytes_max: u64,
    },
    /// The file system is nearly full.
    #[error(
        "the disk has less than wal.free_bytes_min ({free_bytes_min} bytes) left; free some space or let the backlog drain"
    )]
    DiskLow {
        /// The limit.
        free_bytes_min: u64,
    },
    /// The live generation has grown to four times its size, since the next one cannot be made, or not in time.
    #[error("the next generation of the log cannot be made; see the gateway's log lines, check space and permissions")]
    Outgrown,
    /// More waits for the writer than memory should hold.
    #[error("more than {queue_bytes_max} bytes wait for the disk already; try again")]
    Busy {
        /// The limit.
        queue_bytes_max: usize,
    },
    /// A write or fsync failed: nothing more is taken, and a restart decides what is on disk.
    #[error("the log has stopped: {reason}; what was answered OK is safe, the process must be restarted")]
    Poisoned {
        /// What failed.
        reason: String,
    },
    /// The log was closed.
    #[error("the log is closed: the gateway is shutting down")]
    Closed,
    /// One batch is one commit, and this one is too large for it.
    #[error("a batch of {bytes} bytes is larger than the {bytes_max} that one commit takes; send it in parts")]
    TooLarge {
        /// Its encoded bytes.
        bytes: usize,
        /// The limit.
        bytes_max: usize,
    },
}

/// Why an ack was refused: the caller's mistake, and nothing was changed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("sequence {watermark} cannot be acknowledged: only {committed} are committed")]
pub struct AckError {
    /// What was to be acknowledged.
    pub watermark: u64,
    /// What is on disk.
    pub committed: u64,
}

/// Why a read failed; trying again later is safe.
#[derive(Debug, thiserror::Error)]
#[error("cannot read {path}: {source}")]
pub struct ReadError {
    /// The file.
    pub path: PathBuf,
    /// The system's answer.
    #[source]
    pub source: io::Error,
}

/// A store's error that has no system error inside.
pub(super) fn disk(error: &dyn std::fmt::Display) -> io::Error {
    io::Error::other(error.to_string())
}
