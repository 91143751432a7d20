//! The lander's listener: what operators, Prometheus and supervisors ask it.
//!
//! Ready is who can read and store: unlike a gateway, a lander without Kafka or without its database does nothing, and
//! says so. Shares the admin listener's limits and token; never asks the database itself.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex, PoisonError};

use axum::Router;
use axum::extract::State;
use axum::http::StatusCode;
use axum::response::{IntoResponse as _, Response};
use axum::routing::get;
use metrics_exporter_prometheus::PrometheusHandle;
use tokio_util::sync::CancellationToken;

use super::error::{Problem, Reason};
use super::{admin, health, pages};
use crate::land;
use crate::metrics as names;

/// What the lander's listener shows. No `Debug`: it holds the token.
pub struct Lander {
    /// The name of this lander, for status and `tidegate_build_info`.
    pub name: String,
    /// The bearer token; `None`: everybody who reaches the listener may ask.
    pub token: Option<String>,
    /// The lander.
    pub handle: land::Handle,
    /// The metrics recorder.
    pub scrape: PrometheusHandle,
    /// Cancelled once the lander is to end.
    pub stopping: CancellationToken,
}

struct Shown {
    lander: Lander,
    /// Partitions that have a gauge: one that another lander took over is set to 0.
    gauges: Mutex<HashSet<(String, i32)>>,
}

/// Serves a lander's operators until `shutdown`.
///
/// # Errors
/// When the listener cannot be used at all.
pub async fn serve_lander(
    lander: Lander,
    listener: std::net::TcpListener,
    shutdown: CancellationToken,
) -> std::io::Result<()> {
    let (token, scrape) = (lander.token.clone(), lander.scrape.clone());
    let shown = Arc::new(Shown {
        lander,
        gauges: Mutex::default(),
    });
    let routes = Router::new()
        .route("/", get(index).fallback(pages::get_only))
        .route("/livez", get(health::live).fallback(pages::get_only))
        .route("/readyz", get(ready).fallback(pages::get_only))
        .route("/metrics", get(metrics_text).fallback(pages::get_only))
        .route("/v1/status", get(status).fallback(pages::get_only))
        .fallback(unknown_path)
        .with_state(shown);
    admin::serve_routes("lander", routes, token, scrape, listener, shutdown).await
}

async fn index() -> &'static str {
    "tidegate, lander\n\n\
     /livez      the process works\n\
     /readyz     Kafka answers and the database takes rows; JSON of each part\n\
     /metrics    for Prometheus\n\
     /v1/status  position, end and lag of each partition as JSON\n"
}

async fn unknown_path() -> Response {
    Problem::new(
        Reason::NotFound,
        "there is nothing here; known are /, /livez, /readyz, /metrics and /v1/status.",
    )
    .into_response()
}

/// The body of `/readyz`.
#[derive(Debug, serde::Serialize)]
struct Readiness {
    ready: bool,
    shutting_down: bool,
    kafka: Part,
    sink: Part,
    lag_records: u64,
}

#[derive(Debug, serde::Serialize)]
struct Part {
    up: bool,
    error: Option<String>,
}

impl Readiness {
    fn of(status: land::Status, shutting_down: bool) -> Self {
        Self {
            ready: status.kafka_up && status.sink_up && status.stopped.is_none() && !shutting_down,
            shutting_down,
            kafka: Part {
                up: status.kafka_up,
                error: status.kafka_error,
            },
            sink: Part {
                up: status.sink_up,
                error: status.sink_error,
            },
            lag_records: status.lag_records,
        }
    }
}

async fn ready(State(shown): State<Arc<Shown>>) -> Response {
    let lander = &shown.lander;
    let readiness = Readiness::of(lander.handle.status(), lander.stopping.is_cancelled());
    health::answer(readiness.ready, &readiness)
}

/// The body of `/v1/status`.
#[derive(Debug, serde::Serialize)]
struct Status<'a> {
    lander: &'a str,
    version: &'static str,
    #[serde(flatten)]
    status: land::Status,
}

async fn status(State(shown): State<Arc<Shown>>) -> Response {
    let status = Status {
        lander: &shown.lander.name,
        version: env!("CARGO_PKG_VERSION"),
        status: shown.lander.handle.status(),
    };
    admin::json(StatusCode::OK, &status)
}

async fn metrics_text(State(shown): State<Arc<Shown>>) -> Response {
    let gauge = |topic: &str, partition: i32| metrics::gauge!(names::LAND_LAG_RECORDS, "topic" => topic.to_owned(), "partition" => partition.to_string());
    let mut gauges = shown.gauges.lock().unwrap_or_else(PoisonError::into_inner);
    for (topic, partition) in gauges.iter() {
        gauge(topic, *partition).set(0.0);
    }
    let status = shown.lander.handle.status();
    metrics::gauge!(names::LAND_BROKER_UP).set(f64::from(u8::from(status.kafka_up)));
    metrics::gauge!(names::LAND_SINK_UP).set(f64::from(u8::from(status.sink_up)));
    // Two sources may read one topic: the one that is further behind counts.
    let mut lags: HashMap<(String, i32), u64> = HashMap::new();
    for partition in status.partitions {
        let lag = lags.entry((partition.topic, partition.partition)).or_default();
        *lag = partition.lag_records.max(*lag);
    }
    for ((topic, partition), lag) in lags {
        gauge(&topic, partition).set(admin::float(lag));
        gauges.insert((topic, partition));
    }
    drop(gauges);
    admin::scraped(&shown.lander.scrape, &shown.lander.name)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ready(kafka_up: bool, sink_up: bool, shutting_down: bool) -> bool {
        let status = land::Status {
            kafka_up,
            sink_up,
            ..land::Status::default()
        };
        Readiness::of(status, shutting_down).ready
    }

    #[test]
    fn a_lander_is_ready_only_with_both_ends() {
        assert!(ready(true, true, false));
        assert!(!ready(false, true, false) && !ready(true, false, false) && !ready(true, true, true));
    }
}
