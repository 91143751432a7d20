//! `tidegate wal`: see, prove, repair and replay the log.
//!
//! | file | verbs |
//! |---|---|
//! | `records` | where records come from, and which are wanted: shared by all of them |
//! | `look` | list, show, tail |
//!
//! Offline verbs never open the log: they read the folder (`wal::Archive`) and leave it as it is.

mod look;
pub(super) mod records;

use anyhow::Result;
use clap::Subcommand;

use crate::config::Config;

#[derive(Debug, Subcommand)]
pub(super) enum Command {
    /// List records: by sequence, time, topic, key or text
    List(look::List),
    /// Show one record, whole
    Show(look::Show),
    /// Show the newest records, and those to come
    Tail(look::Tail),
}

pub(super) fn run(command: Command, config: &Config) -> Result<()> {
    match command {
        Command::List(flags) => look::list(&flags, config),
        Command::Show(flags) => look::show(&flags, config),
        Command::Tail(flags) => look::tail(&flags, config),
    }
}
