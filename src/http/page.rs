//! The status page: the state in words and shapes, and the HTML that they stand in.
//!
//! Every word and number that the page shows is made here, once: the server puts them into status.html, so that the
//! page is whole without JavaScript, and the script only puts newer ones into the same places. A place is named
//! `{{id}}` (its text or its rows) or `{{id.attribute}}`. What comes from clients is text everywhere: escaped here,
//! `textContent` there; no attribute has any of it.

use std::collections::BTreeMap;
use std::sync::{Arc, LazyLock};
use std::time::Duration;

use axum::extract::State as Extract;
use axum::http::{HeaderValue, header};
use axum::response::{Html, IntoResponse, Response};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use sha2::{Digest as _, Sha256};

use super::admin::Admin;
use super::pages::escape;
use super::picture::{self, Chart};
use super::samples::Samples;
use super::status::{State, WalState};
use crate::forward;
use crate::words::{counted, grouped, percent, rate, size, time};

const TEMPLATE: &str = include_str!("status.html");
/// Held topics that are listed; `/v1/status` has them all.
const HELD_TOPICS_MAX: usize = 20;
const UNKNOWN: &str = "not known";

/// Only what is in the page itself runs, and it talks to nobody but this listener.
static POLICY: LazyLock<HeaderValue> = LazyLock::new(|| {
    let policy = format!(
        "default-src 'none'; script-src {}; style-src {}; img-src data:; connect-src 'self'; base-uri 'none'; \
         form-action 'none'; frame-ancestors 'none'",
        hash("<script>", "</script>"),
        hash("<style>", "</style>")
    );
    HeaderValue::from_str(&policy).unwrap_or(HeaderValue::from_static("default-src 'none'"))
});

/// The name, in a policy, of what stands between these two.
fn hash(begin: &str, end: &str) -> String {
    let inner = TEMPLATE.split_once(begin).and_then(|(_, rest)| rest.split_once(end));
    let inner = inner.map_or("", |(inner, _)| inner);
    format!("'sha256-{}'", STANDARD.encode(Sha256::digest(inner)))
}

/// `GET /`.
pub(super) async fn show(Extract(admin): Extract<Arc<Admin>>) -> Response {
    let state = admin.state(admin.wal_status().await);
    let page = Html(admin.page(&state).html());
    let headers = [
        (header::CONTENT_SECURITY_POLICY, POLICY.clone()),
        (header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff")),
        (header::REFERRER_POLICY, HeaderValue::from_static("no-referrer")),
        (header::CACHE_CONTROL, HeaderValue::from_static("no-store")),
    ];
    (headers, page).into_response()
}

/// What stands in one place.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
#[serde(untagged)]
enum Shown {
    Text(String),
    Rows(Vec<Vec<String>>),
}

/// What stands in each place of the page.
#[derive(Debug, Clone, Default, PartialEq, Eq, serde::Serialize)]
#[serde(transparent)]
pub(super) struct Page(BTreeMap<&'static str, Shown>);

impl Page {
    pub(super) fn of(state: &State, samples: &Samples, has_token: bool) -> Self {
        let mut page = Self::default();
        page.add_head(state);
        page.add_log(state);
        page.add_ways(state);
        page.add_lists(state);
        page.put("letters.data-token", if has_token { "yes" } else { "no" });
        let chart = Chart::of(samples, state.now_ms);
        page.put("chart-line.d", chart.line);
        page.put("chart-area.d", chart.area);
        page.put("chart-away.d", chart.away);
        page.put("chart-max", grouped(chart.max));
        page.put("chart-half", picture::half(chart.max));
        page.put("chart-text", chart.text);
        page
    }

    /// What is not the same in `before`.
    pub(super) fn since(&self, before: &Self) -> Self {
        let new = self.0.iter().filter(|(key, shown)| before.0.get(*key) != Some(shown));
        Self(new.map(|(key, shown)| (*key, shown.clone())).collect())
    }

    fn put(&mut self, key: &'static str, text: impl Into<String>) {
        self.0.insert(key, Shown::Text(text.into()));
    }

    fn put_rows(&mut self, key: &'static str, rows: Vec<Vec<String>>) {
        self.0.insert(key, Shown::Rows(rows));
    }

    fn add_head(&mut self, state: &State) {
        let backlog = state.wal.as_ref().map(|wal| wal.backlog_records);
        let waiting = backlog.map_or_else(
            || "no answer of the log".to_owned(),
            |records| format!("{} waiting", grouped(records)),
        );
        self.put("title", format!("{}: {waiting} - tidegate", state.gateway));
        self.put("gateway", &state.gateway);
        self.put("version", state.version);
        let (mood, headline, detail) = in_words(state);
        self.put("page.data-mood", mood);
        self.put("state", headline);
        self.put("state-detail", detail);
        self.put("told-at", clock_time(state.now_ms));
    }

    fn add_log(&mut self, state: &State) {
        let unknown = || UNKNOWN.to_owned();
        let wal = state.wal.as_ref();
        let told = |tell: &dyn Fn(&WalState) -> String| wal.map_or_else(unknown, tell);
        self.put("trimmed", told(&|wal| grouped(wal.trimmed)));
        self.put("acked", told(&|wal| grouped(wal.acked)));
        self.put("committed", told(&|wal| grouped(wal.committed)));
        self.put("next", told(&|wal| grouped(wal.next)));
        self.put("backlog", told(&|wal| grouped(wal.backlog_records)));
        let oldest = state
            .forward
            .oldest_received_ms
            .map(|oldest_ms| age(oldest_ms, state.now_ms));
        let oldest = oldest.filter(|_| wal.is_some_and(|wal| wal.backlog_records > 0));
        self.put(
            "backlog-more",
            told(&|wal| match &oldest {
                Some(oldest) => format!("{}, the oldest {oldest} old", size(wal.backlog_bytes)),
                None => size(wal.backlog_bytes),
            }),
        );
        self.put(
            "backlog-all",
            told(&|wal| {
                let oldest = oldest
                    .as_ref()
                    .map_or_else(String::new, |oldest| format!(", the oldest {oldest} old"));
                let records = noun(wal.backlog_records, "record");
                format!("{records}, {}{oldest}", size(wal.backlog_bytes))
            }),
        );
        let drain = wal.map(|wal| drain(wal.backlog_records, state.drain_seconds));
        let (drain, drain_more) = drain.unwrap_or_else(|| (unknown(), ""));
        self.put("drain", drain);
        self.put("drain-more", drain_more);
        self.put(
            "disk",
            told(&|wal| {
                let share = percent(wal.disk_bytes, wal.capacity_bytes);
                let share = share.map_or_else(String::new, |share| format!(" ({share})"));
                format!("{} of {}{share}", size(wal.disk_bytes), size(wal.capacity_bytes))
            }),
        );
        self.put(
            "free",
            told(&|wal| format!("{} on its file system", size(wal.free_bytes))),
        );
        self.put("generations", told(&|wal| grouped(wal.generations)));
        self.put(
            "commits",
            told(&|wal| match (wal.commit_ms_average, wal.commit_ms_max) {
                (Some(average), Some(max)) => format!("{average:.1} ms on average, {max:.1} ms at most"),
                _ => "none in the last minute".to_owned(),
            }),
        );
        self.put(
            "damaged",
            told(&|wal| match wal.corruption_records {
                0 => "none found".to_owned(),
                damaged => format!(
                    "{} that cannot be read; the gateway's log names them",
                    noun(damaged, "record")
                ),
            }),
        );
        self.put("wal-id", told(&|wal| wal.id.clone()));
        let up = state.forward.broker_up;
        let gate = picture::Gate::of(
            wal.map(|wal| (wal.backlog_records, wal.backlog_bytes, wal.capacity_bytes)),
            up,
        );
        self.put("gate.data-gate", if up { "open" } else { "shut" });
        self.put("water.y", gate.water_y);
        self.put("water.height", gate.water_height);
        self.put("gate-text", gate.text);
    }

    /// In from clients, out to Kafka.
    fn add_ways(&mut self, state: &State) {
        let shown = |rate_known: Option<f64>| rate_known.map_or_else(|| "-".to_owned(), rate);
        self.put("ingest-rate", shown(state.rates.ingest_records_per_second));
        self.put("forward-rate", shown(state.rates.forward_records_per_second));
        self.put("requests", grouped(state.in_flight as u64));
        let (kafka, error) = kafka_in_words(&state.forward);
        self.put("kafka", kafka);
        self.put("kafka-error", error);
        self.put("delivered", noun(state.forward.delivered_records, "record"));
    }

    fn add_lists(&mut self, state: &State) {
        let letters = state.dead_letters;
        self.put("letters-count", letters.map_or_else(|| UNKNOWN.to_owned(), grouped));
        self.put("letters.data-count", letters.unwrap_or(0).to_string());
        let topics = state.forward.held_topics_count;
        let records = state
            .held_records
            .map_or_else(|| UNKNOWN.to_owned(), |records| noun(records, "record"));
        self.put(
            "held-count",
            match topics {
                0 => records,
                _ => format!("{records} of {}", noun(topics, "topic")),
            },
        );
        let held = state.forward.held_topics.iter().take(HELD_TOPICS_MAX).map(|held| {
            let since = age(held.since_ms, state.now_ms);
            vec![held.topic.clone(), grouped(held.records), since, held.reason.clone()]
        });
        let held: Vec<_> = held.collect();
        let more = topics.saturating_sub(held.len() as u64);
        let more = if more > 0 {
            format!("and {} more", counted(more, "topic"))
        } else {
            String::new()
        };
        self.put("held-more", more);
        self.put("held-part.data-count", held.len().to_string());
        self.put_rows("held", held);
        let errors = state.recent_errors.iter();
        let errors = errors.map(|line| {
            vec![
                clock_time(line.time_ms),
                line.level.to_lowercase(),
                line.message.clone(),
            ]
        });
        let errors: Vec<_> = errors.collect();
        self.put("errors-part.data-count", errors.len().to_string());
        self.put_rows("errors", errors);
    }

    /// The page with everything in its place.
    fn html(&self) -> String {
        let mut html = String::with_capacity(TEMPLATE.len() + (16 << 10));
        let mut parts = TEMPLATE.split("{{");
        html.push_str(parts.next().unwrap_or_default());
        for part in parts {
            let (key, rest) = part.split_once("}}").unwrap_or(("", part));
            match self.0.get(key) {
                Some(Shown::Text(text)) => html.push_str(&escape(text)),
                Some(Shown::Rows(rows)) => rows.iter().for_each(|row| write_row(&mut html, row)),
                None => {}
            }
            html.push_str(rest);
        }
        html
    }
}

fn write_row(html: &mut String, row: &[String]) {
    html.push_str("<tr>");
    for cell in row {
        html.push_str("<td>");
        html.push_str(&escape(cell));
        html.push_str("</td>");
    }
    html.push_str("</tr>\n");
}

/// How it is: a mood for the colours, a headline, and what it means.
fn in_words(state: &State) -> (&'static str, &'static str, String) {
    if let Some(wal_error) = &state.wal_error {
        return ("bad", "The log does not answer", wal_error.clone());
    }
    let wal = state.wal.as_ref();
    if let Some(reason) = wal.and_then(|wal| wal.poisoned.clone()) {
        return ("bad", "Stopped: the log has failed", reason);
    }
    if let Some(reason) = state.forward.stopped.clone() {
        return ("bad", "Stopped: the forwarder has ended", reason);
    }
    if state.shutting_down {
        return (
            "busy",
            "Shutting down",
            "No new records are taken; what is on disk stays there.".to_owned(),
        );
    }
    if let Some(reason) = wal.and_then(|wal| wal.refusing.clone()) {
        return ("bad", "Refuses records", reason);
    }
    if !state.forward.broker_up {
        let detail = "They are safe on disk and go out when it returns.";
        return ("busy", "Takes records; Kafka is away", detail.to_owned());
    }
    let backlog = wal.is_some_and(|wal| wal.backlog_records > 0);
    let detail = if backlog {
        "Kafka is up; the backlog is on its way."
    } else {
        "Kafka is up and has everything."
    };
    ("good", "Takes records", detail.to_owned())
}

fn kafka_in_words(forward: &forward::Status) -> (&'static str, String) {
    let error = forward.last_error.clone();
    if forward.broker_up {
        // It stays after it was overcome, and may be about one topic.
        let error = error.map_or_else(String::new, |error| format!("last trouble: {error}"));
        ("Kafka is up", error)
    } else {
        ("Kafka is away", error.unwrap_or_else(|| "not reached (yet)".to_owned()))
    }
}

fn drain(backlog_records: u64, seconds: Option<u64>) -> (String, &'static str) {
    match seconds {
        _ if backlog_records == 0 => ("-".to_owned(), "nothing waits"),
        Some(seconds) => (time(Duration::from_secs(seconds)), "at the last minute's rates"),
        None => ("not draining".to_owned(), "no more goes out than comes in"),
    }
}

/// "1 record", "1,234 records".
fn noun(count: u64, noun: &str) -> String {
    format!("{} {noun}{}", grouped(count), if count == 1 { "" } else { "s" })
}

/// A clock that was set back makes nothing younger than now.
fn age(since_ms: i64, now_ms: i64) -> String {
    time(Duration::from_millis(
        u64::try_from(now_ms.saturating_sub(since_ms)).unwrap_or(0),
    ))
}

/// "2026-05-01 12:34:56", of UTC.
fn clock_time(ms: i64) -> String {
    let time = jiff::Timestamp::from_millisecond(ms);
    time.map_or_else(
        |_| UNKNOWN.to_owned(),
        |time| time.strftime("%Y-%m-%d %H:%M:%S").to_string(),
    )
}

#[cfg(test)]
mod tests;
