//! What is known of the connection to Kafka, from evidence only, and what it last complained of.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use rdkafka::config::RDKafkaLogLevel;
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::statistics::Statistics;
use tracing::{debug, info, warn};

/// What is known of the connection to Kafka. Shared by all clients of a part (the forwarder, the lander).
#[derive(Debug)]
pub(crate) struct Link {
    state: Mutex<LinkState>,
    /// What it means for this part that Kafka is away, and that it is back.
    words: Words,
}

/// See [`Link`]: each ends a sentence.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Words {
    pub(crate) away: &'static str,
    pub(crate) back: &'static str,
}

/// See [`Link`].
#[derive(Debug, Default, Clone)]
pub(crate) struct LinkState {
    /// From evidence only: a delivery, a metadata answer, or librdkafka's own states of its brokers.
    pub(crate) up: bool,
    /// Since when it is not.
    pub(crate) down_since: Option<Instant>,
    /// Told to the log once per change.
    reported_down: bool,
    /// The last error text that librdkafka gave.
    pub(crate) last_error: Option<String>,
}

impl Link {
    pub(crate) fn new(words: Words) -> Self {
        Self {
            state: Mutex::new(LinkState {
                down_since: Some(Instant::now()),
                ..LinkState::default()
            }),
            words,
        }
    }

    fn lock(&self) -> MutexGuard<'_, LinkState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn state(&self) -> LinkState {
        self.lock().clone()
    }

    /// For how long Kafka has been away.
    pub(crate) fn away(&self) -> Duration {
        self.lock().down_since.map_or(Duration::ZERO, |since| since.elapsed())
    }

    /// Kafka answered.
    pub(crate) fn up(&self) {
        let mut state = self.lock();
        if !state.up {
            state.up = true;
            state.down_since = None;
            if std::mem::take(&mut state.reported_down) {
                info!("Kafka is reachable again; {}", self.words.back);
            }
        }
    }

    pub(crate) fn down(&self) {
        let mut state = self.lock();
        state.up = false;
        state.down_since.get_or_insert_with(Instant::now);
        if !state.reported_down {
            state.reported_down = true;
            let why = state
                .last_error
                .clone()
                .unwrap_or_else(|| "no broker answers".to_owned());
            warn!("Kafka unreachable: {why}; {}", self.words.away);
        }
    }

    /// librdkafka's own states of its brokers.
    pub(crate) fn statistics(&self, statistics: &Statistics) {
        if statistics.brokers.values().any(|broker| broker.state == "UP") {
            self.up();
        } else {
            self.down();
        }
    }

    /// Keeps the text for status and log.
    pub(crate) fn error(&self, text: String) {
        let mut state = self.lock();
        if !state.up && !state.reported_down {
            drop(state);
            self.note(text);
            self.down();
            return;
        }
        state.last_error = Some(text);
    }

    /// Keeps the text; says nothing about the connection.
    pub(crate) fn note(&self, text: String) {
        self.lock().last_error = Some(text);
    }

    /// From librdkafka's error callback.
    pub(crate) fn client_error(&self, error: &KafkaError, reason: &str) {
        // Comes with live brokers too (44 times in one measured run) and carries no reason.
        if error.rdkafka_error_code() == Some(RDKafkaErrorCode::AllBrokersDown) {
            return;
        }
        self.error(reason.to_owned());
    }
}

/// librdkafka's lines, at a level that does not repeat what [`Link`] says.
pub(crate) fn log_line(level: RDKafkaLogLevel, facility: &str, line: &str) {
    // Producer settings given to the read-back's consumer, and the reverse.
    if facility != "CONFWARN" {
        debug!(target: "librdkafka", ?level, facility, "{line}");
    }
}
