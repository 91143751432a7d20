//! `tidegate wal`: see, prove, repair and replay the log.
//!
//! | file | verbs |
//! |---|---|
//! | `records` | where records come from, and which are wanted: shared by all of them |
//! | `look` | list, show, tail |
//! | `check` | verify, salvage |
//! | `rewind` | send again what was acknowledged |
//! | `export`, `import` | export, import |
//! | `replay` | replay |
//! | `progress` | the bar that long ones show |
//!
//! Offline verbs never open the log: they read the folder (`wal::Archive`) and leave it as it is. Those that change it
//! (rewind) open it as a start does.

mod check;
mod export;
mod import;
pub(super) mod look;
mod progress;
pub(super) mod records;
mod replay;
mod rewind;

use anyhow::Result;
use clap::Subcommand;

use crate::config::Config;

#[derive(Debug, Subcommand)]
pub(super) enum Command {
    /// List records: by sequence, time, topic, key or text
    List(look::List),
    /// Show one record with its headers and its whole value
    Show(look::Show),
    /// Show the newest records, and with --follow those to come
    Tail(look::Tail),
    /// Read everything and tell which sequences are damaged or missing; changes nothing
    Verify(check::Verify),
    /// Make a new, whole log of everything that a damaged one (--wal) still has; the damaged one is only read
    Salvage(check::Salvage),
    /// Send everything from a sequence on to Kafka again, also what Kafka has acknowledged, as far as wal.retain kept it
    Rewind(rewind::Rewind),
    /// Write records as JSON lines, with their identity
    Export(export::Export),
    /// Take records of an export into a log, with the identity that they have
    Import(import::Import),
    /// Send the records of a folder (--wal) that no gateway uses to Kafka or to a running gateway, with the identity that
    /// they have; the folder is only read
    Replay(replay::Replay),
}

pub(super) fn run(command: Command, config: &Config) -> Result<()> {
    match command {
        Command::List(flags) => look::list(&flags, config),
        Command::Show(flags) => look::show(&flags, config),
        Command::Tail(flags) => look::tail(&flags, config),
        Command::Verify(flags) => check::verify(&flags, config),
        Command::Salvage(flags) => check::salvage(&flags, config),
        Command::Rewind(flags) => rewind::rewind(&flags, config),
        Command::Export(flags) => export::export(&flags, config),
        Command::Import(flags) => import::import(&flags, config),
        Command::Replay(flags) => replay::replay(&flags, config),
    }
}
