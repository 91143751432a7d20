//! `tidegate config show | check`.

use std::collections::BTreeSet;

use anyhow::Result;
use clap::Subcommand;

use super::guard::Guard;
use super::{options, print};
use crate::config::{Broker, Config, Origin};
use crate::forward;

#[derive(Debug, Subcommand)]
pub(super) enum Command {
    /// Print every value in force and where it came from; secrets are redacted
    Show {
        /// One JSON object a line instead of TOML
        #[arg(long)]
        json: bool,
    },
    /// Check the configuration, and the files of keys and certificates that it names, as `serve` does at its start; starts
    /// nothing. Ends with 2 if `serve` would
    Check,
}

pub(super) fn run(command: Command, config: &Config) -> Result<()> {
    match command {
        Command::Show { json: false } => print(config.to_toml().to_string().as_bytes()),
        Command::Show { json: true } => {
            let mut lines = String::new();
            for value in config.shown() {
                lines.push_str(&serde_json::to_string(&value)?);
                lines.push('\n');
            }
            print(lines.as_bytes())
        }
        Command::Check => check(config),
    }
}

fn check(config: &Config) -> Result<()> {
    config.validate(Broker::Configured)?;
    // The files of keys and certificates, as a start reads them; those of kafka.properties are librdkafka's to read.
    Guard::open(config)?;
    forward::check_properties(options::forward(config))?;
    let mut text = String::new();
    match config.file() {
        Some(file) => text.push_str(&format!("file: {file}\n")),
        None => text.push_str("file: none, so the built-in values\n"),
    }
    let over: BTreeSet<_> = config
        .origins()
        .filter(|origin| matches!(origin, Origin::Environment(_) | Origin::Flag(_)))
        .map(ToString::to_string)
        .collect();
    for origin in over {
        text.push_str(&format!("{origin}\n"));
    }
    // A machine that runs no lander need not say where one would store.
    match config.validate_land(false) {
        Ok(()) => text.push_str("ok\n"),
        Err(error) => text.push_str(&format!("ok for `serve`, but `land` would not start: {error}\n")),
    }
    print(text.as_bytes())
}
