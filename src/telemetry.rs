//! Log lines on stderr, as text or as JSON.
//!
//! One level for tidegate, from the configuration; libraries that talk much are capped at warnings, and
//! what they write through the `log` crate is taken too. stdout is for data and never written here. Knows
//! nothing but `config`'s words for format and level.

use std::backtrace::{Backtrace, BacktraceStatus};
use std::io::{IsTerminal, stderr};

use tracing::Level;
use tracing_subscriber::filter::Targets;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::{SubscriberInitExt, TryInitError};
use tracing_subscriber::{Layer, fmt};

use crate::config::{Log, LogFormat, LogLevel};

/// Whether colours are wanted, by the usual variable.
#[must_use]
pub fn colour() -> bool {
    std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty())
}

/// Libraries whose info lines are nothing that an operator can act on.
const NOISY: &[&str] = &[
    "rdkafka",
    "librdkafka",
    "sled",
    "hyper",
    "hyper_util",
    "mio",
    "pagecache",
];

/// Starts logging for this process. ANSI colours only on a terminal, and not when `colour` is false.
///
/// # Errors
/// When the process logs already.
pub fn init(log: Log, colour: bool) -> Result<(), TryInitError> {
    let level = level(log.level);
    let targets = NOISY
        .iter()
        .map(|target| (*target, level.min(Level::WARN)))
        .collect::<Targets>()
        .with_default(level);
    let lines = fmt::layer()
        .with_writer(stderr)
        // A closed stderr must not end the gateway.
        .log_internal_errors(false);
    let lines = match log.format {
        LogFormat::Text => lines.with_ansi(colour && stderr().is_terminal()).boxed(),
        LogFormat::Json => lines
            .json()
            .flatten_event(true)
            .with_current_span(false)
            .with_span_list(false)
            .boxed(),
    };
    // The filter is for all, not for the layer: behind a library's line that a layer's filter drops, the next
    // line of tidegate's own was lost.
    tracing_subscriber::registry().with(targets).with(lines).try_init()?;
    // A panic is a line like any other: plain text would be lost in a log of JSON.
    std::panic::set_hook(Box::new(|panic| {
        let thread = std::thread::current();
        let backtrace = Backtrace::capture();
        let backtrace = (backtrace.status() == BacktraceStatus::Captured).then(|| backtrace.to_string());
        let place = panic.location().map(ToString::to_string);
        let payload = panic.payload();
        let message = payload
            .downcast_ref::<&str>()
            .copied()
            .or_else(|| payload.downcast_ref::<String>().map(String::as_str))
            .unwrap_or("no message");
        tracing::error!(place, thread = thread.name(), backtrace, "panic: {message}");
    }));
    Ok(())
}

fn level(level: LogLevel) -> Level {
    match level {
        LogLevel::Error => Level::ERROR,
        LogLevel::Warn => Level::WARN,
        LogLevel::Info => Level::INFO,
        LogLevel::Debug => Level::DEBUG,
        LogLevel::Trace => Level::TRACE,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_library_is_never_louder_than_a_warning_nor_than_tidegate() {
        for (configured, capped) in [
            (LogLevel::Error, Level::ERROR),
            (LogLevel::Warn, Level::WARN),
            (LogLevel::Trace, Level::WARN),
        ] {
            assert_eq!(level(configured).min(Level::WARN), capped);
        }
    }
}
