//! `/livez` and `/readyz`: may it live, and should clients be sent here.
//!
//! Alive is whoever answers. Ready is whoever can accept and commit: Kafka being away is what the gateway
//! is for, so it is told and never makes it unready.

use std::sync::Arc;

use axum::extract::State;
use axum::http::StatusCode;
use axum::response::Response;

use super::Gateway;
use super::admin::{self, Admin, NoAnswer};
use crate::{forward, wal};

/// `GET /livez`. Asks nothing and takes no lock.
pub(super) async fn live() -> &'static str {
    "ok\n"
}

/// `GET /readyz`.
pub(super) async fn ready(State(admin): State<Arc<Admin>>) -> Response {
    let gateway = &admin.gateway;
    let readiness = match admin.wal_status().await {
        Ok(status) => Readiness::of(gateway, &status, (gateway.forward)()),
        Err(no_answer) => Readiness::unknown(gateway, &no_answer, (gateway.forward)()),
    };
    answer(readiness.ready, &readiness)
}

/// Readiness as supervisors read it: by its status.
pub(super) fn answer(ready: bool, body: &impl serde::Serialize) -> Response {
    let code = if ready {
        StatusCode::OK
    } else {
        StatusCode::SERVICE_UNAVAILABLE
    };
    admin::json(code, body)
}

/// The body of `/readyz`.
#[derive(Debug, serde::Serialize)]
pub(super) struct Readiness {
    ready: bool,
    shutting_down: bool,
    wal: WalPart,
    kafka: KafkaPart,
    held_records: u64,
    held_topics: Vec<forward::HeldTopic>,
    dead_letters: u64,
}

#[derive(Debug, serde::Serialize)]
struct WalPart {
    ok: bool,
    /// Why it takes nothing, if so.
    reason: Option<String>,
    poisoned: bool,
    refusing: bool,
    backlog_records: u64,
}

#[derive(Debug, serde::Serialize)]
struct KafkaPart {
    up: bool,
    last_error: Option<String>,
}

impl Readiness {
    fn of(gateway: &Gateway, status: &wal::Status, forward: forward::Status) -> Self {
        let part = WalPart {
            ok: status.poisoned.is_none() && status.refusing.is_none(),
            reason: status.poisoned.clone().or_else(|| status.refusing.clone()),
            poisoned: status.poisoned.is_some(),
            refusing: status.refusing.is_some(),
            backlog_records: status.backlog_records,
        };
        Self::new(
            gateway.is_shutting_down(),
            part,
            (status.held_records, status.dead_letters),
            forward,
        )
    }

    /// A log that does not tell its state cannot be trusted to commit.
    fn unknown(gateway: &Gateway, no_answer: &NoAnswer, forward: forward::Status) -> Self {
        let part = WalPart {
            ok: false,
            reason: Some(no_answer.to_string()),
            poisoned: false,
            refusing: false,
            backlog_records: 0,
        };
        Self::new(gateway.is_shutting_down(), part, (0, 0), forward)
    }

    fn new(
        shutting_down: bool,
        wal: WalPart,
        (held_records, dead_letters): (u64, u64),
        forward: forward::Status,
    ) -> Self {
        Self {
            ready: wal.ok && !shutting_down,
            shutting_down,
            wal,
            kafka: KafkaPart {
                up: forward.broker_up,
                last_error: forward.last_error,
            },
            held_records,
            held_topics: forward.held_topics,
            dead_letters,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn readiness(ok: bool, shutting_down: bool, broker_up: bool) -> Readiness {
        let wal = WalPart {
            ok,
            reason: None,
            poisoned: false,
            refusing: false,
            backlog_records: 0,
        };
        let forward = forward::Status {
            broker_up,
            ..forward::Status::default()
        };
        Readiness::new(shutting_down, wal, (0, 0), forward)
    }

    #[test]
    fn kafka_away_does_not_make_it_unready() {
        assert!(readiness(true, false, false).ready);
    }

    #[test]
    fn log_that_refuses_or_shutdown_makes_it_unready() {
        assert!(!readiness(false, false, true).ready);
        assert!(!readiness(true, true, true).ready);
    }
}
