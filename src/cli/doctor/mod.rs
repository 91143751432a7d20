//! `tidegate doctor`: is this machine fit, and is everything that tidegate needs there? For each check: what was found,
//! what it means, what to do.
//!
//! Each file measures and asks first ([`disk::Facts`] and the like), then makes lines of it with a function that looks at
//! nothing else. Sections run at once, each within its limits; one that hangs is told and left behind. Nothing
//! is changed: the log is never opened, no topic made, no table; one file beside the log is written, measured and removed.

mod database;
mod disk;
mod kafka;
mod line;
mod listeners;
mod machine;
mod probe;
mod reach;
#[cfg(test)]
mod told;

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use tokio::runtime::Runtime;

use super::exit::Diagnosis;
use super::{print, print_while_read, signals};
use crate::config::{Broker, Config, ConfigError, Inputs, Origin};
use line::{Findings, Line, Verdict};

/// All of it.
const LIMIT: Duration = Duration::from_secs(60);
/// How often is looked whether a signal came.
const LOOK: Duration = Duration::from_millis(50);
/// What is left after a signal, to remove the file.
const GRACE: Duration = Duration::from_secs(2);

/// How to print.
#[derive(Debug, Clone, Copy, clap::Args)]
pub(super) struct Flags {
    /// One JSON object a line: section, check, verdict, found, means, do
    #[arg(long)]
    json: bool,
}

type Section = (&'static str, fn(&Config, &AtomicBool) -> Vec<Line>);

/// In the order of a record's way.
const SECTIONS: [Section; 5] = [
    ("log disk", disk::look),
    ("machine", machine::look),
    ("listeners", listeners::look),
    ("kafka", kafka::look),
    ("database", database::look),
];

pub(super) fn run(flags: Flags, inputs: &Inputs) -> Result<()> {
    let runtime = Runtime::new().context("no threads could be started")?;
    let signals = runtime.block_on(async { signals::shutdown_token() });
    let signals = signals.context("signals cannot be handled")?;
    let (config, errors) = Config::load_what_works(inputs)?;
    let mut lines = configuration(&config, &errors);
    let misconfigured = lines.iter().any(|line| line.verdict == Verdict::Failure);
    let mut reading = show(flags, "configuration", &lines)?;

    let config = Arc::new(config);
    let stop = Arc::new(AtomicBool::new(false));
    let running = SECTIONS.map(|(name, look)| (name, start(look, &config, &stop)));
    let end = Instant::now() + LIMIT;
    for (name, section) in running {
        let found = loop {
            if signals.is_cancelled() {
                stop.store(true, Ordering::Relaxed);
                // The one that has something to clear away, if it has not ended.
                if name == "log disk" {
                    drop(section.recv_timeout(GRACE));
                }
                runtime.shutdown_background();
                bail!("ended by a signal; nothing was changed");
            }
            match section.recv_timeout(LOOK) {
                Ok(found) => break found,
                Err(RecvTimeoutError::Timeout) if Instant::now() < end => {}
                Err(why) => break unfinished(name, why),
            }
        };
        reading = reading && show(flags, name, &found)?;
        lines.extend(found);
    }
    // A name server or a disk that does not answer must not keep the process.
    runtime.shutdown_background();
    if reading && !flags.json {
        print(format!("{}\n", line::summary(lines.iter())).as_bytes())?;
    }
    if misconfigured {
        return Err(Diagnosis::Configuration.into());
    }
    if lines.iter().any(|line| line.verdict == Verdict::Failure) {
        return Err(Diagnosis::Failures.into());
    }
    Ok(())
}

/// Runs a section on a thread of its own.
fn start(
    look: fn(&Config, &AtomicBool) -> Vec<Line>,
    config: &Arc<Config>,
    stop: &Arc<AtomicBool>,
) -> Receiver<Vec<Line>> {
    let (sender, receiver) = mpsc::channel();
    let (config, stop) = (Arc::clone(config), Arc::clone(stop));
    // Whoever waited may have given up.
    thread::spawn(move || drop(sender.send(look(&config, &stop))));
    receiver
}

/// The answer of `act`, which runs on a thread of its own and is left behind at `limit`.
fn within<T: Send + 'static>(limit: Duration, act: impl FnOnce() -> T + Send + 'static) -> Option<T> {
    let (sender, receiver) = mpsc::channel();
    thread::spawn(move || drop(sender.send(act())));
    receiver.recv_timeout(limit).ok()
}

fn unfinished(section: &'static str, why: RecvTimeoutError) -> Vec<Line> {
    let mut findings = Findings::of(section);
    match why {
        RecvTimeoutError::Timeout => findings.failure(
            "answer",
            format!("these checks did not end within {} s", LIMIT.as_secs()),
            "something that they wait for is stuck: a disk, a network file system, a name server",
            "look at `dmesg` and at the load of this machine, then run doctor again",
        ),
        RecvTimeoutError::Disconnected => findings.failure(
            "answer",
            "these checks ended without an answer",
            "this is a fault of tidegate itself",
            "report it with what stands on stderr",
        ),
    }
    findings.lines
}

/// Prints a section; whether anybody still reads.
fn show(flags: Flags, section: &str, lines: &[Line]) -> Result<bool> {
    if !flags.json {
        return Ok(print_while_read(line::text(section, lines).as_bytes())?);
    }
    let mut text = String::new();
    for line in lines {
        text.push_str(&serde_json::to_string(line)?);
        text.push('\n');
    }
    Ok(print_while_read(text.as_bytes())?)
}

fn configuration(config: &Config, errors: &[ConfigError]) -> Vec<Line> {
    let mut findings = Findings::of("configuration");
    let file = config.file().unwrap_or("the built-in values (there is no file)");
    let others = config
        .origins()
        .filter(|origin| matches!(origin, Origin::Environment(_) | Origin::Flag(_)));
    let others: BTreeSet<_> = others.map(ToString::to_string).collect();
    let others: String = others.iter().map(|origin| format!(", {origin}")).collect();
    findings.ok("read from", format!("{file}{others}"));
    let checked = config.validate(Broker::MayBeEmbedded).err();
    for error in errors.iter().chain(&checked) {
        match error {
            ConfigError::Invalid(problems) => {
                for problem in problems {
                    findings.failure("value", problem.to_string(), MEANS, "correct it there");
                }
            }
            ConfigError::Read { .. } | ConfigError::Syntax { .. } => {
                findings.failure(
                    "file",
                    error.to_string(),
                    MEANS,
                    "correct the file, or name another with --config",
                );
            }
        }
    }
    if let (true, Err(ConfigError::Invalid(problems))) = (findings.lines.len() == 1, config.validate_land(false)) {
        for problem in problems {
            findings.warning(
                "lander",
                problem.to_string(),
                "the gateway can run with this, `tidegate land` cannot",
                "correct it where the lander runs",
            );
        }
    }
    findings.lines
}

/// What a wrong value means.
const MEANS: &str =
    "tidegate does not start with it; the checks below use the built-in value instead, and may look at the wrong place";
