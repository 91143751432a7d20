//! What is counted of the ingest listener's requests: each answer once, records by topic.

use std::collections::HashMap;
use std::sync::{PoisonError, RwLock};
use std::time::Duration;

use axum::http::StatusCode;
use axum::response::Response;

use super::error::Reason;
use super::produce::Kept;
use crate::metrics as names;

/// The handles of what is counted for every request, looked up once.
pub(super) struct Counters {
    codes: Vec<(StatusCode, metrics::Counter)>,
    seconds: metrics::Histogram,
    topics: RwLock<HashMap<String, TopicCounters>>,
    cap: names::Label,
}

/// What is counted of one topic.
#[derive(Clone)]
pub(super) struct TopicCounters {
    records: metrics::Counter,
    bytes: metrics::Counter,
}

impl TopicCounters {
    /// Counts what was committed.
    pub(super) fn committed(&self, kept: &Kept) {
        if kept.replayed {
            metrics::counter!(names::INGEST_REPLAYED_TOTAL).increment(1);
            return;
        }
        self.records.increment(kept.taken.records as u64);
        self.bytes.increment(kept.taken.bytes);
    }
}

impl Counters {
    pub(super) fn new() -> Self {
        let codes = [
            StatusCode::OK,
            StatusCode::ACCEPTED,
            StatusCode::SERVICE_UNAVAILABLE,
            StatusCode::BAD_REQUEST,
        ];
        Self {
            codes: codes.map(|code| (code, requests_total(code))).into(),
            seconds: metrics::histogram!(names::INGEST_REQUEST_SECONDS),
            topics: RwLock::default(),
            cap: names::Label::default(),
        }
    }

    pub(super) fn answered(&self, response: &Response, time: Duration) {
        self.seconds.record(time.as_secs_f64());
        let status = response.status();
        match self.codes.iter().find(|(code, _)| *code == status) {
            Some((_, counter)) => counter.increment(1),
            None => requests_total(status).increment(1),
        }
        if let Some(reason) = response.extensions().get::<Reason>() {
            reason.count();
        }
    }

    /// The counters of one topic; those of topics beyond the cap are one pair, `_other`.
    pub(super) fn topic(&self, topic: &str) -> TopicCounters {
        if let Some(counters) = self.topics.read().unwrap_or_else(PoisonError::into_inner).get(topic) {
            return counters.clone();
        }
        let label = self.cap.cap(topic);
        let counters = TopicCounters {
            records: metrics::counter!(names::INGEST_RECORDS_TOTAL, "topic" => label.to_owned()),
            bytes: metrics::counter!(names::INGEST_BYTES_TOTAL, "topic" => label.to_owned()),
        };
        if label == topic {
            self.topics
                .write()
                .unwrap_or_else(PoisonError::into_inner)
                .insert(topic.to_owned(), counters.clone());
        }
        counters
    }
}

/// How many were answered so.
pub(super) fn requests_total(code: StatusCode) -> metrics::Counter {
    metrics::counter!(names::INGEST_REQUESTS_TOTAL, "code" => code.as_str().to_owned())
}
