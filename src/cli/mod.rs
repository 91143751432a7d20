//! The commands. The only place that names clap, and where the parts are put together: wiring, no
//! behaviour of its own.
//!
//! Data goes to stdout, everything else to stderr. Every way to end has its code in `exit.rs`.

mod ask;
mod at;
mod config;
mod dev;
mod doctor;
mod exit;
mod gateway;
mod guard;
mod held;
mod key;
mod land;
mod letters;
mod listen;
mod options;
mod reference;
mod serve;
mod signals;
mod status;
mod supervisor;
mod wal;
mod whole;

use std::io::{self, Write};
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Result;
use clap::{Args, CommandFactory, Parser, Subcommand};
use clap_complete::Shell;

use crate::config::{Config, Inputs};
use crate::words;

/// A durable ingest gateway: HTTP in, a local log that survives power loss, Kafka out.
#[derive(Debug, Parser)]
#[command(
    name = "tidegate",
    version,
    about,
    max_term_width = 100,
    disable_help_subcommand = true,
    after_help = exit_codes()
)]
struct Arguments {
    #[command(flatten)]
    settings: Settings,
    #[command(subcommand)]
    command: Command,
}

/// Flags over everything that file and environment say.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Configuration")]
struct Settings {
    /// The configuration file [default: $TIDEGATE_CONFIG, else ./config.toml, else
    /// /etc/tidegate/config.toml, else the built-in one]
    #[arg(long, global = true, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Address and port for clients (http.listen)
    #[arg(long, global = true, value_name = "IP:PORT")]
    listen: Option<String>,
    /// Address and port for status and metrics (admin.listen)
    #[arg(long, global = true, value_name = "IP:PORT")]
    admin_listen: Option<String>,
    /// Address and port for the lander's status and metrics (land.listen)
    #[arg(long, global = true, value_name = "IP:PORT")]
    land_listen: Option<String>,
    /// The folder of the log (wal.path)
    #[arg(long, global = true, value_name = "DIR")]
    wal: Option<String>,
    /// The Kafka brokers, separated by commas (kafka.bootstrap_servers)
    #[arg(long, global = true, value_name = "HOST:PORT")]
    bootstrap_servers: Option<String>,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run the gateway: take records over HTTP, keep them on disk, send them to Kafka; until SIGTERM
    Serve,
    /// Run the lander: from Kafka into a database or files, each record once
    Land(land::Flags),
    /// Try it on this machine: gateway, an embedded Kafka broker and the lander into SQLite; prints each delivery
    Dev,
    /// Show how gateway and lander stand: backlog, watermarks, disk, Kafka, lag of each partition; of a gateway that does
    /// not run, what its folder says
    Status(status::Flags),
    /// See, prove, repair and replay the log
    #[command(subcommand)]
    Wal(wal::Command),
    /// Records that Kafka refuses for good (too large, say): see them, send them once more, discard them
    #[command(subcommand)]
    DeadLetters(letters::Command),
    /// Records whose topic is missing or denied, and which wait for it: see them, discard them, send them to another topic
    #[command(subcommand)]
    Held(held::Command),
    /// Check disk, machine, Kafka (every address that it advertises) and database, and say what to do
    Doctor(doctor::Flags),
    /// Show or check the configuration
    #[command(subcommand)]
    Config(config::Command),
    /// API keys of those who may send: make, show, revoke
    #[command(subcommand)]
    Key(key::Command),
    /// Print a completion script for a shell
    Completions {
        /// Which shell
        shell: Shell,
    },
    /// Write the man pages into a folder
    #[command(hide = true)]
    Man {
        /// The folder, made if it is missing
        folder: PathBuf,
    },
}

fn exit_codes() -> String {
    let lines = exit::CODES
        .iter()
        .map(|(code, meaning)| format!("  {code:<4}{meaning}\n"));
    format!("Exit codes:\n{}", lines.collect::<String>())
}

/// Runs the program of this process: its arguments, its environment. Ends with one of the exit codes of
/// `exit.rs`.
#[must_use]
pub fn main() -> ExitCode {
    let arguments = Arguments::parse();
    match run(arguments) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            exit::report(&error);
            ExitCode::from(exit::code(&error))
        }
    }
}

fn run(arguments: Arguments) -> Result<()> {
    let settings = arguments.settings;
    match arguments.command {
        Command::Serve => serve::run(&settings.load()?),
        Command::Land(flags) => land::run(&flags, &settings.load()?),
        Command::Dev => dev::run(&settings.load()?),
        Command::Status(flags) => status::run(flags, &settings.load()?),
        Command::Wal(command) => wal::run(command, &settings.load()?),
        Command::DeadLetters(command) => letters::run(command, &settings.load()?),
        Command::Held(command) => held::run(command, &settings.load()?),
        Command::Doctor(flags) => doctor::run(flags, &settings.inputs()),
        Command::Config(command) => config::run(command, &settings.load()?),
        Command::Key(command) => key::run(command, &settings.load()?),
        Command::Completions { shell } => {
            let mut script = Vec::new();
            clap_complete::generate(shell, &mut Arguments::command(), "tidegate", &mut script);
            print(&script)
        }
        Command::Man { folder } => reference::man(Arguments::command(), &folder),
    }
}

impl Settings {
    fn load(self) -> Result<Config> {
        Ok(Config::load(self.inputs())?)
    }

    fn inputs(self) -> Inputs {
        let flags = [
            ("http.listen", "--listen", self.listen),
            ("admin.listen", "--admin-listen", self.admin_listen),
            ("land.listen", "--land-listen", self.land_listen),
            ("wal.path", "--wal", self.wal),
            ("kafka.bootstrap_servers", "--bootstrap-servers", self.bootstrap_servers),
        ];
        Inputs {
            file: self.config,
            environment: std::env::vars_os().collect(),
            flags: flags
                .into_iter()
                .filter_map(|(key, flag, value)| Some((key, flag, value?)))
                .collect(),
        }
    }
}

/// Writes data to stdout. Whoever reads it may stop reading: that is no failure.
fn print(data: &[u8]) -> Result<()> {
    Ok(print_while_read(data).map(drop)?)
}

/// [`print`] that tells whether anybody still reads.
fn print_while_read(data: &[u8]) -> io::Result<bool> {
    let mut stdout = io::stdout().lock();
    match stdout.write_all(data).and_then(|()| stdout.flush()) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(false),
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)]

    use super::*;

    #[test]
    fn the_arguments_contradict_each_other_nowhere() {
        Arguments::command().debug_assert();
    }

    #[test]
    fn flags_are_taken_before_and_behind_the_command() {
        for line in [
            ["tidegate", "--listen", "127.0.0.1:1", "serve"],
            ["tidegate", "serve", "--listen", "127.0.0.1:1"],
        ] {
            let arguments = Arguments::try_parse_from(line).expect("both are usual");
            assert_eq!(arguments.settings.listen.as_deref(), Some("127.0.0.1:1"));
        }
    }
}
