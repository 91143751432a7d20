//! `tidegate config show | check`.

use std::collections::BTreeSet;

use anyhow::Result;
use clap::Subcommand;

use super::guard::Guard;
use super::print;
use crate::config::{Broker, Config, Origin};

#[derive(Debug, Subcommand)]
pub(super) enum Command {
    /// Print every value in force and where it came from; secrets are redacted
    Show {
        /// One JSON object a line instead of TOML
        #[arg(long)]
        json: bool,
    },
    /// Check the configuration without starting anything
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
    config.validate(Broker::MayBeEmbedded)?;
    // The files of keys and certificates, as a start reads them.
    Guard::open(config)?;
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
    text.push_str("ok\n");
    print(text.as_bytes())?;
    if let Err(error) = config.validate_land(false) {
        eprintln!("tidegate: the gateway can run with this, but `land` cannot: {error}");
    }
    if config.kafka.bootstrap_servers.is_empty() {
        eprintln!("tidegate: kafka.bootstrap_servers is empty: `serve` and `land` need it, `dev` embeds a broker");
    }
    Ok(())
}
