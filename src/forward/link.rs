//! What is known of the connection to Kafka, from evidence only, and what it last complained of.

use std::sync::{Mutex, MutexGuard, PoisonError};

use rdkafka::config::RDKafkaLogLevel;
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use tracing::{debug, info, warn};

/// What is known of the connection to Kafka. Shared by all clients of the forwarder.
#[derive(Debug, Default)]
pub(super) struct Link {
    state: Mutex<LinkState>,
}

/// See [`Link`].
#[derive(Debug, Default, Clone)]
pub(super) struct LinkState {
    /// From evidence only: a delivery, a metadata answer, or librdkafka's own states of its brokers.
    pub(super) up: bool,
    /// Told to the log once per change.
    reported_down: bool,
    /// The last error text that librdkafka gave.
    pub(super) last_error: Option<String>,
}

impl Link {
    fn lock(&self) -> MutexGuard<'_, LinkState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn state(&self) -> LinkState {
        self.lock().clone()
    }

    /// Kafka answered.
    pub(super) fn up(&self) {
        let mut state = self.lock();
        if !state.up {
            state.up = true;
            if std::mem::take(&mut state.reported_down) {
                info!("Kafka is reachable again; the backlog is being sent");
            }
        }
    }

    pub(super) fn down(&self) {
        let mut state = self.lock();
        state.up = false;
        if !state.reported_down {
            state.reported_down = true;
            let why = state
                .last_error
                .clone()
                .unwrap_or_else(|| "no broker answers".to_owned());
            warn!("Kafka unreachable: {why}; records are safe in the log and will be sent when it returns");
        }
    }

    /// Keeps the text for status and log.
    pub(super) fn error(&self, text: String) {
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
    pub(super) fn note(&self, text: String) {
        self.lock().last_error = Some(text);
    }

    /// From librdkafka's error callback.
    pub(super) fn client_error(&self, error: &KafkaError, reason: &str) {
        // Comes with live brokers too (44 times in one measured run) and carries no reason.
        if error.rdkafka_error_code() == Some(RDKafkaErrorCode::AllBrokersDown) {
            return;
        }
        self.error(reason.to_owned());
    }
}

/// librdkafka's lines, at a level that does not repeat what [`Link`] says.
pub(super) fn log_line(level: RDKafkaLogLevel, facility: &str, line: &str) {
    // Producer settings given to the read-back's consumer, and the reverse.
    if facility != "CONFWARN" {
        debug!(target: "librdkafka", ?level, facility, "{line}");
    }
}
