//! How the process ends: every failure and its exit code, in one place.
//!
//! 0 done; 1 failed; 2 wrong usage or configuration; 3 something looked for faults and found some; 4 the WAL is in
//! use; 75 try again later.

use std::io;
use std::net::SocketAddr;

use super::ask::AskError;
use crate::config::{ConfigError, Origin};
use crate::keys::KeysError;
use crate::wal;
use crate::{forward, land, telemetry};

/// Every code and what it means to whoever reads `--help`.
pub(super) const CODES: &[(u8, &str)] = &[
    (0, "done"),
    (FAILED, "failed; the message says why"),
    (
        CONFIGURATION,
        "wrong usage or configuration, or --yes was not given: nothing was changed",
    ),
    (
        FOUND,
        "damage, loss or something that does not work was found (verify, salvage, doctor)",
    ),
    (
        WAL_IN_USE,
        "the log is in use by another process, mostly a running gateway",
    ),
    (
        TRY_AGAIN_LATER,
        "try again later: Kafka, the disk or the database does not work now",
    ),
];

const FAILED: u8 = 1;
const CONFIGURATION: u8 = 2;
const FOUND: u8 = 3;
const WAL_IN_USE: u8 = 4;
const TRY_AGAIN_LATER: u8 = 75;

/// A listener that could not be opened.
#[derive(Debug, thiserror::Error)]
#[error("cannot listen on {address} ({key}, {origin}): {source}. {}", advice(.source, .key))]
pub(super) struct ListenError {
    pub(super) address: SocketAddr,
    pub(super) key: &'static str,
    pub(super) origin: Origin,
    #[source]
    pub(super) source: io::Error,
}

fn advice(error: &io::Error, key: &str) -> String {
    let flag = match key {
        "http.listen" => "--listen",
        "land.listen" => "--land-listen",
        _ => "--admin-listen",
    };
    match error.kind() {
        io::ErrorKind::AddrInUse => {
            format!("Another process has this port: stop it, or set {key} ({flag}) to another one")
        }
        io::ErrorKind::AddrNotAvailable => {
            format!("No interface of this machine has this address: set {key} ({flag}) to one that it has")
        }
        io::ErrorKind::PermissionDenied => {
            format!("Ports below 1024 need a privilege: set {key} ({flag}) to a higher one")
        }
        _ => format!("Set {key} ({flag}) to an address that can be used"),
    }
}

/// A file of the ingest listener that cannot be used.
#[derive(Debug, thiserror::Error)]
#[error("{key} cannot be used: {source}. {advice} [{key}: {origin}]")]
pub(super) struct FileError {
    pub(super) key: &'static str,
    pub(super) advice: &'static str,
    pub(super) origin: Origin,
    #[source]
    pub(super) source: anyhow::Error,
}

/// A log that did not open.
#[derive(Debug, thiserror::Error)]
#[error("{source}{} [wal.path: {origin}]", folder_advice(.source))]
pub(super) struct LogError {
    pub(super) origin: Origin,
    #[source]
    pub(super) source: wal::OpenError,
}

/// A log that opened and could never take a record: nothing waits in it whose delivery would make room.
#[derive(Debug, thiserror::Error)]
#[error(
    "{reason}. Nothing was accepted, and nothing waits in the log that would make room: free some space, or set wal.path \
     (--wal) to a larger disk [wal.path: {origin}]"
)]
pub(super) struct NoSpaceError {
    pub(super) reason: String,
    pub(super) origin: Origin,
}

/// A lander that did not start.
#[derive(Debug, thiserror::Error)]
#[error("{source} [{origin}]")]
pub(super) struct LanderError {
    pub(super) origin: Origin,
    #[source]
    pub(super) source: land::StartError,
}

/// What the log cannot say itself, because it does not know where its path came from.
fn folder_advice(error: &wal::OpenError) -> &'static str {
    match error {
        wal::OpenError::Io { .. } if code_of_open(error) == CONFIGURATION => {
            ". Nothing was accepted: make this a folder that this user can write, or set wal.path (--wal) to another"
        }
        wal::OpenError::Io { .. } => {
            ". Nothing was accepted: look at the disk and its free space, then start tidegate again"
        }
        _ => "",
    }
}

/// A part stopped for good while the gateway ran.
#[derive(Debug, thiserror::Error)]
pub(super) enum StoppedError {
    #[error(
        "the log has stopped: {0}. What was answered 2xx is on disk; nothing more is accepted by this process. Look at \
         the disk, then start tidegate again: the start decides what is readable"
    )]
    Log(String),
    #[error("the forwarder has stopped: {0}")]
    Forwarder(String),
    #[error(
        "the lander has stopped: {0}. What was landed stays, the rest is in Kafka and is landed after the next start"
    )]
    Lander(String),
}

/// A folder that is to be read is in use.
#[derive(Debug, thiserror::Error)]
#[error(
    "{0}. Stop its gateway first, or copy the folder and name the copy with --wal. Verbs that only look can ask the running \
     gateway instead: without --wal, or with --admin URL"
)]
pub(super) struct InUse(#[source] pub(super) wal::ArchiveError);

/// A verb that looks for damage or loss found some, and has said what.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub(super) struct Damage(pub(super) String);

/// A verb cannot do what its arguments say.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub(super) struct Usage(pub(super) String);

/// Something that may work later did not work now.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub(super) struct Later(pub(super) String);

/// `doctor` found failures, all of them told already.
#[derive(Debug, thiserror::Error)]
pub(super) enum Diagnosis {
    #[error("the configuration cannot be used: its lines say what to correct")]
    Configuration,
    #[error("not everything is as it must be: each failure says what to do")]
    Failures,
}

/// `status` could not show all that there is.
#[derive(Debug, thiserror::Error)]
#[error("{}", lines(.0))]
pub(super) struct NoStatus(pub(super) Vec<AskError>);

fn lines(errors: &[AskError]) -> String {
    let lines: Vec<_> = errors.iter().map(ToString::to_string).collect();
    match lines.as_slice() {
        [one] => one.clone(),
        many => format!("there is nothing to show:\n  {}", many.join("\n  ")),
    }
}

/// The code for a failure: that of the first cause that has one.
pub(super) fn code(error: &anyhow::Error) -> u8 {
    error.chain().find_map(code_of).unwrap_or(FAILED)
}

fn code_of(cause: &(dyn std::error::Error + 'static)) -> Option<u8> {
    if cause.is::<ConfigError>() || cause.is::<ListenError>() || cause.is::<FileError>() {
        return Some(CONFIGURATION);
    }
    if let Some(error) = cause.downcast_ref::<forward::StartError>() {
        return Some(match error {
            forward::StartError::Properties(_) => CONFIGURATION,
            forward::StartError::Thread(_) => TRY_AGAIN_LATER,
        });
    }
    if let Some(error) = cause.downcast_ref::<land::StartError>() {
        return Some(match error {
            land::StartError::Properties(_) | land::StartError::Sink(_) => CONFIGURATION,
            land::StartError::Away(_) | land::StartError::Thread(_) => TRY_AGAIN_LATER,
        });
    }
    if let Some(diagnosis) = cause.downcast_ref::<Diagnosis>() {
        return Some(match diagnosis {
            Diagnosis::Configuration => CONFIGURATION,
            Diagnosis::Failures => FOUND,
        });
    }
    if let Some(NoStatus(errors)) = cause.downcast_ref::<NoStatus>() {
        return Some(if errors.iter().any(AskError::is_misdirected) {
            CONFIGURATION
        } else {
            TRY_AGAIN_LATER
        });
    }
    if cause.is::<StoppedError>() || cause.is::<NoSpaceError>() || cause.is::<Later>() {
        return Some(TRY_AGAIN_LATER);
    }
    if cause.is::<Damage>() {
        return Some(FOUND);
    }
    if cause.is::<InUse>() {
        return Some(WAL_IN_USE);
    }
    if cause.is::<Usage>() {
        return Some(CONFIGURATION);
    }
    if let Some(error) = cause.downcast_ref::<AskError>() {
        return Some(match error {
            AskError::Refused { .. } => FAILED,
            error if error.is_misdirected() => CONFIGURATION,
            _ => TRY_AGAIN_LATER,
        });
    }
    if let Some(error) = cause.downcast_ref::<KeysError>() {
        return Some(match error {
            KeysError::Io { source, .. } if source.kind() == io::ErrorKind::InvalidInput => CONFIGURATION,
            KeysError::Io { source, .. } => code_of_io(source),
            KeysError::Invalid { .. } | KeysError::Refused(_) => CONFIGURATION,
            KeysError::Unknown { .. } => FAILED,
        });
    }
    if let Some(error) = cause.downcast_ref::<wal::ArchiveError>() {
        return Some(code_of_archive(error));
    }
    if let Some(error) = cause.downcast_ref::<wal::SalvageError>() {
        return Some(match error {
            wal::SalvageError::NotEmpty(_) | wal::SalvageError::Inside(_) => CONFIGURATION,
            wal::SalvageError::Busy(_) => TRY_AGAIN_LATER,
            wal::SalvageError::Source(error) => code_of_archive(error),
            wal::SalvageError::Target { source, .. } => code_of_io(source),
        });
    }
    if let Some(error) = cause.downcast_ref::<wal::AppendError>() {
        return Some(code_of_append(error));
    }
    if let Some(error) = cause.downcast_ref::<wal::RewindError>() {
        return Some(match error {
            wal::RewindError::Io { source, .. } => code_of_io(source),
            wal::RewindError::Stopped(error) => code_of_append(error),
            wal::RewindError::Gone { .. } | wal::RewindError::Ahead { .. } => FAILED,
        });
    }
    if let Some(error) = cause.downcast_ref::<wal::LettersCause>() {
        return Some(match error {
            wal::LettersCause::Append(error) => code_of_append(error),
            wal::LettersCause::Read(_) => TRY_AGAIN_LATER,
        });
    }
    if cause.is::<wal::ReadError>() {
        return Some(TRY_AGAIN_LATER);
    }
    if let Some(error) = cause.downcast_ref::<io::Error>() {
        let is_full = matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded);
        return is_full.then_some(TRY_AGAIN_LATER);
    }
    cause.downcast_ref::<wal::OpenError>().map(code_of_open)
}

fn code_of_append(error: &wal::AppendError) -> u8 {
    match error {
        wal::AppendError::TooLarge { .. } => FAILED,
        _ => TRY_AGAIN_LATER,
    }
}

fn code_of_archive(error: &wal::ArchiveError) -> u8 {
    match error {
        wal::ArchiveError::InUse { .. } => WAL_IN_USE,
        wal::ArchiveError::NotAWal { .. } | wal::ArchiveError::Format { .. } => CONFIGURATION,
        wal::ArchiveError::NoIdentity { .. } => FOUND,
        wal::ArchiveError::Io { source, .. } => code_of_io(source),
    }
}

fn code_of_open(error: &wal::OpenError) -> u8 {
    match error {
        wal::OpenError::InUse { .. } => WAL_IN_USE,
        wal::OpenError::NotDurable { .. } => TRY_AGAIN_LATER,
        wal::OpenError::Format { .. } => CONFIGURATION,
        wal::OpenError::Io { source, .. } => code_of_io(source),
    }
}

fn code_of_io(error: &io::Error) -> u8 {
    match error.kind() {
        // A folder that cannot be one, or not for this user: somebody must change the configuration.
        io::ErrorKind::PermissionDenied
        | io::ErrorKind::NotFound
        | io::ErrorKind::NotADirectory
        | io::ErrorKind::AlreadyExists
        | io::ErrorKind::DirectoryNotEmpty
        | io::ErrorKind::ReadOnlyFilesystem
        | io::ErrorKind::InvalidInput
        | io::ErrorKind::InvalidFilename
        | io::ErrorKind::Unsupported => CONFIGURATION,
        _ => TRY_AGAIN_LATER,
    }
}

/// Tells why the process ends: as a log line once there is a log, else as plain text.
pub(super) fn report(error: &anyhow::Error) {
    let text = text(error);
    if telemetry::is_started() {
        tracing::error!("{text}");
    } else {
        eprintln!("tidegate: {text}");
    }
}

/// The causes in one line; one whose text is part of the text before it is not repeated.
fn text(error: &anyhow::Error) -> String {
    let mut text = error.to_string();
    for cause in error.chain().skip(1).map(ToString::to_string) {
        if !text.contains(&cause) {
            text.push_str(": ");
            text.push_str(&cause);
        }
    }
    text
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)]

    use super::*;
    use anyhow::Context;

    fn io_error(kind: io::ErrorKind) -> anyhow::Error {
        wal::OpenError::Io {
            what: "create",
            path: "/x".into(),
            source: kind.into(),
        }
        .into()
    }

    #[test]
    fn each_failure_has_its_code_whatever_is_said_around_it() {
        let in_use = wal::OpenError::InUse {
            path: "/x".into(),
            pid: "1".into(),
        };
        assert_eq!(code(&anyhow::Error::from(in_use).context("opening the log")), 4);
        assert_eq!(code(&io_error(io::ErrorKind::PermissionDenied)), 2);
        assert_eq!(code(&io_error(io::ErrorKind::NotADirectory)), 2);
        assert_eq!(code(&io_error(io::ErrorKind::StorageFull)), 75);
        assert_eq!(code(&anyhow::Error::from(StoppedError::Log("EIO".into()))), 75);
        assert_eq!(code(&anyhow::Error::from(ConfigError::Invalid(Vec::new()))), 2);
        let full = || wal::AppendError::Full { bytes_max: 1 };
        assert_eq!(code(&full().into()), 75);
        assert_eq!(code(&wal::LettersCause::Append(full()).into()), 75);
        assert_eq!(code(&wal::RewindError::Stopped(full()).into()), 75);
        assert_eq!(code(&anyhow::anyhow!("something else")), 1);
    }

    #[test]
    fn a_port_in_use_is_told_with_its_key_and_what_to_do() {
        let error = ListenError {
            address: SocketAddr::from(([127, 0, 0, 1], 4000)),
            key: "http.listen",
            origin: Origin::BuiltIn,
            source: io::ErrorKind::AddrInUse.into(),
        };
        let text = text(&anyhow::Error::from(error));
        for part in ["127.0.0.1:4000", "(http.listen, built-in)", "stop it", "--listen"] {
            assert!(text.contains(part), "{part} not in {text}");
        }
    }

    #[test]
    fn a_cause_is_told_once() {
        let error = Err::<(), _>(io_error(io::ErrorKind::StorageFull))
            .context("opening the log")
            .expect_err("an error");
        let text = text(&error);
        assert_eq!(text.matches("no storage space").count(), 1, "{text}");
    }
}
