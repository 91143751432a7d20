//! Log lines on stderr, as text or as JSON.
//!
//! One level for tidegate, from the configuration; libraries that talk much are capped at warnings, and
//! what they write through the `log` crate is taken too. stdout is for data and never written here. The
//! last warnings and errors are kept ([`Recent`]) for whoever looks at the process instead of its log. Knows
//! nothing but `config`'s words for format and level.

use std::backtrace::{Backtrace, BacktraceStatus};
use std::collections::VecDeque;
use std::fmt::{self, Write as _};
use std::io::{IsTerminal, stderr};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::SystemTime;

use tracing::field::{Field, Visit};
use tracing::{Event, Level, Subscriber};
use tracing_subscriber::Layer;
use tracing_subscriber::filter::Targets;
use tracing_subscriber::fmt::layer as lines_layer;
use tracing_subscriber::layer::Context;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::{SubscriberInitExt, TryInitError};

use crate::config::{Log, LogFormat, LogLevel};

/// Whether colours are wanted, by the usual variable.
#[must_use]
pub fn colour() -> bool {
    std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty())
}

/// Does `work`, whose warnings a person who has typed a command reads on stderr, one a line.
pub fn with_warnings<T>(work: impl FnOnce() -> T) -> T {
    let lines = tracing_subscriber::fmt()
        .compact()
        .with_max_level(Level::WARN)
        .with_writer(stderr)
        .with_ansi(false)
        .with_target(false)
        .without_time()
        .finish();
    tracing::subscriber::with_default(lines, work)
}

/// Libraries whose info lines are nothing that an operator can act on.
const NOISY: &[&str] = &[
    "rdkafka",
    "librdkafka",
    "sled",
    "hyper",
    "hyper_util",
    "rustls",
    "mio",
    "pagecache",
];

/// How many warnings and errors are kept.
const RECENT_MAX: usize = 50;
/// How much of each.
const RECENT_CHARACTERS_MAX: usize = 400;

/// The last warnings and errors of this process. Cheap to clone.
#[derive(Debug, Clone, Default)]
pub struct Recent(Arc<Mutex<VecDeque<Line>>>);

/// One of them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Line {
    /// When, milliseconds since the epoch.
    pub time_ms: i64,
    /// "WARN" or "ERROR".
    pub level: &'static str,
    /// The message and its fields, cut off after 400 characters.
    pub message: String,
}

impl Recent {
    /// The newest first.
    #[must_use]
    pub fn lines(&self) -> Vec<Line> {
        let lines = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        lines.iter().rev().cloned().collect()
    }
}

impl<S: Subscriber> Layer<S> for Recent {
    fn on_event(&self, event: &Event<'_>, _: Context<'_, S>) {
        let level = *event.metadata().level();
        // The more a level lets through, the greater it is.
        if level > Level::WARN {
            return;
        }
        let mut words = Words::default();
        event.record(&mut words);
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
        let line = Line {
            time_ms: now.map_or(0, |now| i64::try_from(now.as_millis()).unwrap_or(i64::MAX)),
            level: level.as_str(),
            message: words.line(),
        };
        let mut lines = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if lines.len() == RECENT_MAX {
            lines.pop_front();
        }
        lines.push_back(line);
    }
}

/// A message and its fields while they are read; never more of either than is shown.
#[derive(Default)]
struct Words {
    message: Bounded,
    fields: Bounded,
}

impl Words {
    fn line(self) -> String {
        let mut line = self.message;
        line.add(format_args!("{}", self.fields.text));
        line.text
    }
}

impl Visit for Words {
    fn record_str(&mut self, field: &Field, value: &str) {
        self.record_debug(field, &format_args!("{value}"));
    }

    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        match field.name() {
            "message" => self.message.add(format_args!("{value:?}")),
            // Where in a library's source a line of the `log` crate was written.
            name if name.starts_with("log.") => {}
            name => self.fields.add(format_args!(" {name}={value:?}")),
        }
    }
}

/// Text that takes no more than it may have; what is cut off shows as "...".
#[derive(Default)]
struct Bounded {
    text: String,
    characters: usize,
}

impl Bounded {
    fn add(&mut self, arguments: fmt::Arguments<'_>) {
        if self.write_fmt(arguments).is_err() && !self.text.ends_with("...") {
            self.text.push_str("...");
        }
    }
}

impl fmt::Write for Bounded {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        for c in text.chars() {
            if self.characters == RECENT_CHARACTERS_MAX {
                return Err(fmt::Error);
            }
            self.characters += 1;
            self.text.push(c);
        }
        Ok(())
    }
}

/// [`init`] was here.
static STARTED: AtomicBool = AtomicBool::new(false);

/// Whether this process has a log.
#[must_use]
pub fn is_started() -> bool {
    STARTED.load(Ordering::Acquire)
}

/// Starts logging for this process. ANSI colours only on a terminal, and not when `colour` is false.
///
/// # Errors
/// When the process logs already.
pub fn init(log: Log, colour: bool) -> Result<Recent, TryInitError> {
    let level = level(log.level);
    let targets = NOISY
        .iter()
        .map(|target| (*target, level.min(Level::WARN)))
        // It warns of what any client can do to it, as often as it likes.
        .chain([("h2", level.min(Level::ERROR))])
        .collect::<Targets>()
        .with_default(level);
    let lines = lines_layer()
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
    let recent = Recent::default();
    tracing_subscriber::registry()
        .with(targets)
        .with(recent.clone())
        .with(lines)
        .try_init()?;
    STARTED.store(true, Ordering::Release);
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
    Ok(recent)
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
    #![allow(clippy::indexing_slicing)]
    use super::*;

    #[test]
    fn the_last_warnings_and_errors_are_kept_and_never_grow() {
        let recent = Recent::default();
        let subscriber = tracing_subscriber::registry().with(recent.clone());
        tracing::subscriber::with_default(subscriber, || {
            tracing::info!("nothing to remember");
            tracing::error!(topic = "<b>", count = 3, "it broke: {}", "so");
            tracing::warn!(error = %"x".repeat(1_000_000), "long");
        });
        let lines = recent.lines();
        assert_eq!(lines.len(), 2);
        assert_eq!(
            (lines[1].level, lines[1].message.as_str()),
            ("ERROR", "it broke: so topic=<b> count=3")
        );
        assert!(lines[1].time_ms > 1_000_000_000_000);
        assert_eq!(lines[0].message.len(), RECENT_CHARACTERS_MAX + 3);
        assert!(lines[0].message.starts_with("long error=xxx") && lines[0].message.ends_with("x..."));
        let subscriber = tracing_subscriber::registry().with(recent.clone());
        tracing::subscriber::with_default(subscriber, || {
            (0..99).for_each(|number| tracing::warn!("line {number}"))
        });
        let lines = recent.lines();
        assert_eq!(
            (lines.len(), lines[0].message.as_str(), lines[49].message.as_str()),
            (50, "line 98", "line 49")
        );
    }

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
