//! The two listeners: ingest for clients, admin for operators. The only place that names axum.
//!
//! Constraints: whatever a client does has a limit in bytes, time or number, and a status with a detail
//! when it meets it; a request is answered 2xx only after its commit resolved. The admin listener shares
//! no limit with ingest, so that it answers while ingest is full.
//!
//! The way of a request: `server` (accept, connection limits) -> `connection` (time limits) -> [`Ingest`]
//! (head limits, in-flight limit, metrics) -> axum's router -> `produce` (body -> records -> commit).
//!
//! Deliberately does not know: how the log writes and how Kafka is reached. The forwarder shows itself
//! through a closure ([`ForwardStatus`]).

mod access;
mod admin;
mod connection;
mod error;
mod events;
mod health;
mod idempotency;
mod lander;
mod limits;
mod ops;
mod order;
mod page;
mod pages;
mod picture;
mod produce;
mod readers;
mod records;
mod rest_proxy;
mod samples;
mod server;
mod socket;
mod status;
#[cfg(test)]
mod tests;

use std::collections::HashMap;
use std::io;
use std::net::TcpListener;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock, PoisonError, RwLock};
use std::time::{Duration, Instant};

use axum::Router;
use axum::http::{HeaderValue, Request, StatusCode};
use axum::response::{IntoResponse, Response};
use axum::routing::{any, get};
use hyper::body::Incoming;
use metrics_exporter_prometheus::PrometheusHandle;
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;

use self::error::{Problem, Reason};
pub use self::lander::{Lander, serve_lander};
use crate::ingest;
use crate::land::Demand;
use crate::metrics as names;
use crate::record::Topic;
use crate::wal::Wal;

/// What the forwarder tells when asked.
pub type ForwardStatus = Arc<dyn Fn() -> crate::forward::Status + Send + Sync>;

/// The last warnings and errors of this process, the newest first.
pub type LogLines = Arc<dyn Fn() -> Vec<LogLine> + Send + Sync>;

/// A line of the process's log.
#[derive(Debug, Clone, serde::Serialize)]
pub struct LogLine {
    /// When, milliseconds since the epoch.
    pub time_ms: i64,
    /// "WARN" or "ERROR".
    pub level: &'static str,
    /// The message and its fields.
    pub message: String,
}

/// The time, milliseconds since the Unix epoch.
pub type Clock = Arc<dyn Fn() -> i64 + Send + Sync>;

/// Names that no source can have, because they are paths of their own.
pub const SOURCE_NAMES_RESERVED: &[&str] = &["hello", "user", "v1", "v3", "topics", "openapi.json"];

/// A path `/{name}` whose records go to one topic.
#[derive(Debug, Clone)]
pub struct Source {
    /// The path, without the slash; none of [`SOURCE_NAMES_RESERVED`].
    pub name: String,
    /// Where its records go.
    pub topic: Topic,
    /// The field that is the Kafka key.
    pub key: Option<String>,
    /// What a record must be like to be taken; `None`: anything.
    pub demand: Option<Demand>,
}

/// How the listeners behave. No `Debug`: it holds the admin token.
#[derive(Clone)]
pub struct Options {
    /// The gateway's name, for status and `tidegate_build_info`.
    pub gateway_id: String,
    /// The declared sources.
    pub sources: Vec<Source>,
    /// Patterns (`*` is any run of characters) of what `POST /v1/topics/{topic}` takes.
    pub topics: Vec<String>,
    /// The largest body; above it 413.
    pub body_bytes_max: usize,
    /// The largest record, with topic, key and headers; above it 413.
    pub record_bytes_max: usize,
    /// The most records of one request; above it 413.
    pub records_max: usize,
    /// The largest request head; above it 431.
    pub header_bytes_max: usize,
    /// The most headers of a request; above it 431.
    pub headers_max: usize,
    /// The most connections on the ingest listener. Beyond it the longest idle one makes room; if none
    /// is idle the new one gets 503.
    pub connections_max: usize,
    /// The most requests in work on the ingest listener; above it 503.
    pub in_flight_max: usize,
    /// How long a request's head may take, from its first byte (of a new connection: from the start).
    pub header_timeout: Duration,
    /// How long a body may take as a whole; it may stand still for a third of it.
    pub body_timeout: Duration,
    /// How long a connection may stay between requests.
    pub idle_timeout: Duration,
    /// How long requests under way may take to end after the shutdown signal.
    pub shutdown_timeout: Duration,
    /// The admin listener's bearer token; `None`: everybody who reaches it may ask.
    pub admin_token: Option<String>,
}

/// What both listeners share.
pub struct Gateway {
    options: Options,
    wal: Wal,
    forward: ForwardStatus,
    /// What operators' verbs have the forwarder do.
    operator: OnceLock<crate::forward::Handle>,
    clock: Clock,
    log_lines: LogLines,
    scrape: PrometheusHandle,
    sources: HashMap<String, SourceState>,
    in_flight: Semaphore,
    bodies: limits::Bodies,
    /// Turns at parsing large bodies.
    encoders: Arc<Semaphore>,
    counters: Counters,
    /// The WAL's identity, ready to be sent.
    wal_id: String,
    wal_header: HeaderValue,
    shutting_down: AtomicBool,
}

struct SourceState {
    topic: Topic,
    key: ingest::Key,
    demand: Option<Arc<Demand>>,
    counters: TopicCounters,
}

impl Gateway {
    /// Puts the parts together. The metrics recorder must be installed before: `scrape` is its handle.
    ///
    /// # Errors
    /// Never for a valid WAL identity; an identity that cannot be a header value is an error, not a panic.
    pub fn new(
        options: Options,
        wal: Wal,
        forward: ForwardStatus,
        scrape: PrometheusHandle,
        clock: Clock,
        log_lines: LogLines,
    ) -> io::Result<Arc<Self>> {
        let wal_id = wal.id().to_string();
        let wal_header = HeaderValue::from_str(&wal_id).map_err(io::Error::other)?;
        let counters = Counters::new();
        let sources = options
            .sources
            .iter()
            .map(|source| {
                names::zero_topic(source.topic.as_str());
                let state = SourceState {
                    topic: source.topic.clone(),
                    key: source.key.clone().map_or(ingest::Key::None, ingest::Key::Field),
                    demand: source.demand.clone().map(Arc::new),
                    counters: counters.topic(source.topic.as_str()),
                };
                (source.name.clone(), state)
            })
            .collect();
        Ok(Arc::new(Self {
            in_flight: Semaphore::new(options.in_flight_max),
            bodies: limits::Bodies::new(options.body_bytes_max, options.body_timeout),
            encoders: Arc::new(Semaphore::new(produce::ENCODERS_MAX)),
            sources,
            counters,
            wal_id,
            wal_header,
            shutting_down: AtomicBool::new(false),
            options,
            wal,
            forward,
            operator: OnceLock::new(),
            clock,
            log_lines,
            scrape,
        }))
    }

    /// Lets operators' verbs reach the forwarder. Without it they are refused.
    pub fn operate(&self, forwarder: crate::forward::Handle) {
        if self.operator.set(forwarder).is_err() {
            tracing::debug!("the gateway has a forwarder already");
        }
    }

    fn is_shutting_down(&self) -> bool {
        self.shutting_down.load(Ordering::Relaxed)
    }

    /// Requests in work on the ingest listener.
    fn in_flight(&self) -> usize {
        self.options
            .in_flight_max
            .saturating_sub(self.in_flight.available_permits())
    }
}

/// Serves clients until `shutdown`, then lets requests under way end (for `shutdown_timeout` at most).
/// Returns once every connection is closed.
///
/// # Errors
/// When the listener cannot be used at all; a failed accept is logged and tried again.
pub async fn serve_ingest(gateway: Arc<Gateway>, listener: TcpListener, shutdown: CancellationToken) -> io::Result<()> {
    let options = server::Options {
        name: "ingest",
        connections_max: gateway.options.connections_max,
        header_timeout: gateway.options.header_timeout,
        idle_timeout: gateway.options.idle_timeout,
        shutdown_timeout: gateway.options.shutdown_timeout,
        header_bytes_max: gateway.options.header_bytes_max,
        headers_max: gateway.options.headers_max,
    };
    let ingest = Arc::new(Ingest {
        routes: server::Routes::new(ingest_router(Arc::clone(&gateway))),
        gateway: Arc::clone(&gateway),
    });
    server::run(listener, ingest, options, shutdown, || {
        gateway.shutting_down.store(true, Ordering::Relaxed);
    })
    .await
}

/// Serves operators until `shutdown`. To be ended after ingest and forwarder, so that a shutdown can be watched.
///
/// # Errors
/// See [`serve_ingest`].
pub async fn serve_admin(gateway: Arc<Gateway>, listener: TcpListener, shutdown: CancellationToken) -> io::Result<()> {
    admin::serve(gateway, listener, shutdown).await
}

fn ingest_router(gateway: Arc<Gateway>) -> Router {
    Router::new()
        .route("/", get(pages::hello).fallback(pages::get_only))
        .route("/hello", get(pages::hello).fallback(pages::get_only))
        .route("/hello/{name}", get(pages::greeting).fallback(pages::get_only))
        .route("/user/{username}", get(pages::user).fallback(pages::get_only))
        .route("/v1/topics/{topic}", any(produce::topic))
        .route("/topics/{topic}", any(rest_proxy::v2))
        .route("/v3/clusters", any(rest_proxy::clusters))
        .route("/v3/clusters/{id}", any(rest_proxy::cluster))
        .route("/v3/clusters/{id}/topics/{topic}/records", any(rest_proxy::v3))
        .route("/{source}", any(produce::source))
        .fallback(produce::unknown_path)
        .with_state(gateway)
}

/// The ingest listener's requests: limits first, then the router, then the numbers.
struct Ingest {
    routes: server::Routes,
    gateway: Arc<Gateway>,
}

impl server::App for Ingest {
    async fn answer(&self, request: Request<Incoming>) -> Response {
        let started = Instant::now();
        let response = self.answer_within_limits(request).await;
        self.gateway.counters.answered(&response, started.elapsed());
        response
    }

    fn refused(&self, reason: Reason) {
        requests_total(reason.status()).increment(1);
        reason.count();
    }
}

impl Ingest {
    async fn answer_within_limits(&self, request: Request<Incoming>) -> Response {
        let gateway = &self.gateway;
        if let Err(problem) =
            limits::check_head(&request, gateway.options.header_bytes_max, gateway.options.headers_max)
        {
            return problem.into_response();
        }
        if gateway.is_shutting_down() {
            return Problem::shutting_down().into_response();
        }
        let Ok(_permit) = gateway.in_flight.try_acquire() else {
            return Problem::new(
                Reason::InFlight,
                format!(
                    "{} requests are being worked on, the most this gateway takes at once (http.in_flight_max). This \
                     one was not taken; send it again in a moment.",
                    gateway.options.in_flight_max
                ),
            )
            .into_response();
        };
        self.routes.answer(request).await
    }
}

/// The handles of what is counted for every request, looked up once.
struct Counters {
    codes: Vec<(StatusCode, metrics::Counter)>,
    seconds: metrics::Histogram,
    topics: RwLock<HashMap<String, TopicCounters>>,
    cap: names::Label,
}

#[derive(Clone)]
struct TopicCounters {
    records: metrics::Counter,
    bytes: metrics::Counter,
}

impl TopicCounters {
    /// Counts what was committed.
    fn committed(&self, kept: &produce::Kept) {
        if kept.replayed {
            metrics::counter!(names::INGEST_REPLAYED_TOTAL).increment(1);
            return;
        }
        self.records.increment(kept.taken.records as u64);
        self.bytes.increment(kept.taken.bytes);
    }
}

impl Counters {
    fn new() -> Self {
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

    fn answered(&self, response: &Response, time: Duration) {
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
    fn topic(&self, topic: &str) -> TopicCounters {
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

fn requests_total(code: StatusCode) -> metrics::Counter {
    metrics::counter!(names::INGEST_REQUESTS_TOTAL, "code" => code.as_str().to_owned())
}
