//! What the gateway says of itself: the body of `/v1/status`, of every event, and what the page is made of.

use std::sync::Arc;

use axum::extract::State as Extract;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};

use super::admin::{self, Admin, NoAnswer};
use super::error::{Problem, Reason};
use super::samples::Rates;
use super::{Gateway, LogLine};
use crate::{forward, wal};

/// Everything that is known now.
#[derive(Debug, serde::Serialize)]
pub(super) struct State {
    pub(super) gateway: String,
    pub(super) version: &'static str,
    pub(super) now_ms: i64,
    pub(super) shutting_down: bool,
    pub(super) in_flight: usize,
    /// Null only in an event, while the log does not tell its state.
    pub(super) wal: Option<WalState>,
    /// Why so.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) wal_error: Option<String>,
    pub(super) held_records: Option<u64>,
    pub(super) dead_letters: Option<u64>,
    pub(super) rates: Rates,
    /// Null while the backlog does not shrink.
    pub(super) drain_seconds: Option<u64>,
    pub(super) forward: forward::Status,
    pub(super) recent_errors: Vec<LogLine>,
}

#[derive(Debug, serde::Serialize)]
pub(super) struct WalState {
    pub(super) id: String,
    pub(super) trimmed: u64,
    pub(super) acked: u64,
    pub(super) committed: u64,
    pub(super) next: u64,
    pub(super) backlog_records: u64,
    pub(super) backlog_bytes: u64,
    pub(super) disk_bytes: u64,
    pub(super) capacity_bytes: u64,
    pub(super) free_bytes: u64,
    pub(super) generations: u64,
    pub(super) commit_ms_average: Option<f64>,
    pub(super) commit_ms_max: Option<f64>,
    pub(super) corruption_records: u64,
    pub(super) poisoned: Option<String>,
    pub(super) refusing: Option<String>,
}

impl State {
    pub(super) fn of(gateway: &Gateway, asked: Result<wal::Status, NoAnswer>, rates: Rates) -> Self {
        let wal_error = asked.as_ref().err().map(ToString::to_string);
        let asked = asked.ok();
        Self {
            gateway: gateway.options.gateway_id.clone(),
            version: env!("CARGO_PKG_VERSION"),
            now_ms: (gateway.clock)(),
            shutting_down: gateway.is_shutting_down(),
            in_flight: gateway.in_flight(),
            wal_error,
            held_records: asked.as_ref().map(|wal| wal.held_records),
            dead_letters: asked.as_ref().map(|wal| wal.dead_letters),
            drain_seconds: asked.as_ref().and_then(|wal| rates.drain_seconds(wal.backlog_records)),
            wal: asked.map(|wal| WalState::of(&gateway.wal_id, wal)),
            rates,
            forward: (gateway.forward)(),
            recent_errors: (gateway.log_lines)(),
        }
    }
}

impl WalState {
    fn of(id: &str, wal: wal::Status) -> Self {
        Self {
            id: id.to_owned(),
            trimmed: wal.watermarks.trimmed,
            acked: wal.watermarks.acked,
            committed: wal.watermarks.committed,
            next: wal.watermarks.next,
            backlog_records: wal.backlog_records,
            backlog_bytes: wal.backlog_bytes,
            disk_bytes: wal.disk_bytes,
            capacity_bytes: wal.capacity_bytes,
            free_bytes: wal.free_bytes,
            generations: wal.generations,
            commit_ms_average: wal.commit_ms_average,
            commit_ms_max: wal.commit_ms_max,
            corruption_records: wal.corruption_records,
            poisoned: wal.poisoned,
            refusing: wal.refusing,
        }
    }
}

/// `GET /v1/status`.
pub(super) async fn show(Extract(admin): Extract<Arc<Admin>>) -> Response {
    match admin.wal_status().await {
        Ok(wal) => admin::json(StatusCode::OK, &admin.state(Ok(wal))),
        Err(no_answer) => Problem::new(Reason::Busy, format!("{no_answer}.")).into_response(),
    }
}
