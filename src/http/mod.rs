//! The two listeners: ingest for clients, admin for operators. The only place that names axum.
//!
//! Constraints: whatever a client does has a limit in bytes, time or number, and a status with a detail
//! when it meets it; a request is answered 2xx only after its commit resolved. The admin listener shares
//! no limit with ingest, so that it answers while ingest is full.
//!
//! The way of a request: `server` (accept, connection limits) -> `connection` (time limits) -> [`Ingest`]
//! (head limits, in-flight limit, metrics) -> axum's router (`routes`) -> `produce` (body -> records -> commit).
//!
//! Deliberately does not know: how the log writes and how Kafka is reached. The forwarder shows itself
//! through a closure ([`ForwardStatus`]).

mod access;
mod admin;
mod auth;
mod connection;
mod counters;
mod error;
mod events;
mod health;
mod idempotency;
mod lander;
mod limits;
mod openapi;
mod ops;
mod order;
mod page;
mod pages;
mod picture;
mod produce;
mod rate;
mod readers;
mod receipts;
mod records;
mod rest_proxy;
mod routes;
mod samples;
mod sending;
mod server;
mod socket;
mod status;
#[cfg(test)]
mod tests;
mod tls;
mod trace_context;

use std::collections::HashMap;
use std::io;
use std::net::TcpListener;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use axum::body::{Body, Bytes};
use axum::extract::State;
use axum::http::{HeaderValue, Method, Request};
use axum::response::Response;
use hyper::body::Incoming;
use ipnet::IpNet;
use metrics_exporter_prometheus::PrometheusHandle;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::task::JoinHandle;
use tokio::time::{MissedTickBehavior, interval};
use tokio_util::sync::CancellationToken;

use self::counters::{Counters, TopicCounters, requests_total};
use self::error::{Problem, Reason};
pub use self::lander::{Lander, serve_lander};
use self::rate::{Rates, Told};
pub use self::tls::{Expiry, Tls, TlsError, TlsFiles};
use crate::ingest;
use crate::keys::Book;
use crate::land::Demand;
use crate::metrics as names;
use crate::ops::Lookout;
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

/// How often is looked whether files were replaced.
const LOOK: Duration = Duration::from_secs(1);

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
    /// The most requests a second of an address, and of a holder of a key or certificate; 0: no limit.
    pub requests_per_second_max_per_address: u32,
    /// See there.
    pub requests_per_second_max_per_key: u32,
    /// Whose `X-Forwarded-For` is believed.
    pub trusted_proxies: Vec<IpNet>,
    /// TLS of the ingest listener; `None`: plain HTTP/1.1.
    pub tls: Option<Arc<Tls>>,
    /// The keys of those who may send; `None`: everybody who reaches the ingest listener.
    pub keys: Option<Arc<Book>>,
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
    in_flight: Arc<Semaphore>,
    /// Places of those who ask for receipts, and turns at looking for them.
    receipts: Arc<Semaphore>,
    looks: Arc<Semaphore>,
    lookout: Lookout,
    rates: Rates,
    bodies: limits::Bodies,
    /// Turns at parsing large bodies.
    encoders: Arc<Semaphore>,
    counters: Counters,
    /// The WAL's identity, ready to be sent.
    wal_id: String,
    wal_header: HeaderValue,
    /// `/openapi.json`.
    openapi: Bytes,
    shutting_down: AtomicBool,
}

struct SourceState {
    name: String,
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
                    name: source.name.clone(),
                    topic: source.topic.clone(),
                    key: source.key.clone().map_or(ingest::Key::None, ingest::Key::Field),
                    demand: source.demand.clone().map(Arc::new),
                    counters: counters.topic(source.topic.as_str()),
                };
                (source.name.clone(), state)
            })
            .collect();
        Ok(Arc::new(Self {
            in_flight: Arc::new(Semaphore::new(options.in_flight_max)),
            receipts: Arc::new(Semaphore::new(receipts::places(&options))),
            looks: Arc::new(Semaphore::new(receipts::LOOKS_MAX)),
            lookout: Lookout::default(),
            rates: Rates::new(
                options.requests_per_second_max_per_address,
                options.requests_per_second_max_per_key,
                options.trusted_proxies.clone(),
            ),
            bodies: limits::Bodies::new(options.body_bytes_max, options.body_timeout),
            encoders: Arc::new(Semaphore::new(produce::ENCODERS_MAX)),
            sources,
            counters,
            openapi: openapi::document(&options, &wal_id),
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
        let places = self.options.in_flight_max + receipts::places(&self.options);
        places.saturating_sub(self.in_flight.available_permits() + self.receipts.available_permits())
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
        tls: gateway.options.tls.clone(),
        connections_max: gateway.options.connections_max,
        header_timeout: gateway.options.header_timeout,
        idle_timeout: gateway.options.idle_timeout,
        shutdown_timeout: gateway.options.shutdown_timeout,
        header_bytes_max: gateway.options.header_bytes_max,
        headers_max: gateway.options.headers_max,
    };
    let ingest = Arc::new(Ingest {
        routes: server::Routes::new(routes::router(Arc::clone(&gateway))),
        gateway: Arc::clone(&gateway),
    });
    let keeping = upkeep(Arc::clone(&gateway), shutdown.clone());
    let served = server::run(listener, ingest, options, shutdown, || {
        gateway.shutting_down.store(true, Ordering::Relaxed);
    });
    let (served, ()) = tokio::join!(served, keeping);
    served
}

/// Has what was replaced on disk take effect, and drops what is remembered of clients that are gone. A disk that hangs holds
/// up its own look only.
async fn upkeep(gateway: Arc<Gateway>, shutdown: CancellationToken) {
    let mut ticks = interval(LOOK);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut looking: Option<JoinHandle<()>> = None;
    loop {
        tokio::select! {
            () = shutdown.cancelled() => return,
            _ = ticks.tick() => {}
        }
        if looking.as_ref().is_none_or(JoinHandle::is_finished) {
            let gateway = Arc::clone(&gateway);
            looking = Some(tokio::task::spawn_blocking(move || gateway.look()));
        }
    }
}

impl Gateway {
    fn look(&self) {
        self.rates.sweep();
        if let Some(keys) = &self.options.keys {
            let refreshed = keys.refresh();
            if matches!(refreshed, Some(Ok(_))) && keys.count() == 0 {
                tracing::warn!("http.api_keys_file has no key any more: nobody can send");
            }
            tell_refreshed("http.api_keys_file", refreshed);
            refused(names::FILE_API_KEYS, keys.is_refused());
        }
        if let Some(tls) = &self.options.tls {
            tell_refreshed("a file of http.tls_*", tls.refresh());
            refused(names::FILE_TLS, tls.is_refused());
        }
    }
}

fn refused(file: &'static str, is_refused: bool) {
    metrics::gauge!(names::HTTP_FILES_REFUSED, "file" => file).set(f64::from(u8::from(is_refused)));
}

/// `refreshed`: what is in force now, in words.
fn tell_refreshed<E: std::fmt::Display>(what: &str, refreshed: Option<Result<String, E>>) {
    match refreshed {
        None => {}
        Some(Ok(now)) => tracing::info!("{what} has changed, and what is in it now is in force: {now}"),
        Some(Err(error)) => tracing::error!(
            "{what} has changed and cannot be used, and what was in force stays: {error}. Correct it, and let the user of \
             the gateway read it; it is tried again every second"
        ),
    }
}

/// Serves operators until `shutdown`. To be ended after ingest and forwarder, so that a shutdown can be watched.
///
/// # Errors
/// See [`serve_ingest`].
pub async fn serve_admin(gateway: Arc<Gateway>, listener: TcpListener, shutdown: CancellationToken) -> io::Result<()> {
    admin::serve(gateway, listener, shutdown).await
}

/// The ingest listener's requests: limits first, then the router, then the numbers.
struct Ingest {
    routes: server::Routes,
    gateway: Arc<Gateway>,
}

impl server::App for Ingest {
    async fn answer(
        &self,
        mut request: Request<Incoming>,
        peer: &server::Peer,
    ) -> (Response, Option<OwnedSemaphorePermit>) {
        let started = Instant::now();
        let mut told = Told::default();
        let (mut response, place) = match self.admit(&mut request, peer, &mut told) {
            Ok(place) => (self.route(request).await, Some(place)),
            Err(problem) => (rest_proxy::refused(problem, request.uri().path()), None),
        };
        told.add_to(response.headers_mut());
        self.gateway.counters.answered(&response, started.elapsed());
        (response, place)
    }

    fn refused(&self, reason: Reason) {
        requests_total(reason.status()).increment(1);
        reason.count();
    }
}

impl Ingest {
    /// Has a request answered: a record for a source, as nearly all are, found by its name alone. The router, which is asked for
    /// every other, comes to the same, and costs more than reading the record does.
    async fn route(&self, request: Request<Incoming>) -> Response {
        let name = request.uri().path().get(1..).unwrap_or_default();
        match request.method() == Method::POST && self.gateway.sources.contains_key(name) {
            true => produce::source(State(Arc::clone(&self.gateway)), request.map(Body::new)).await,
            false => self.routes.answer(request).await,
        }
    }

    /// Takes a request in, or says why not; none of its body is read.
    fn admit(
        &self,
        request: &mut Request<Incoming>,
        peer: &server::Peer,
        told: &mut Told,
    ) -> Result<OwnedSemaphorePermit, Problem> {
        let gateway = &self.gateway;
        let options = &gateway.options;
        limits::check_head(request, options.header_bytes_max, options.headers_max)?;
        gateway.rates.check_address(peer.address, request.headers(), told)?;
        let caller = auth::caller(request.headers(), options.keys.as_deref(), peer.certificate.as_ref())?;
        if let Some(caller) = caller {
            gateway.rates.check_caller(caller.id(), told)?;
            request.extensions_mut().insert(caller);
        }
        if gateway.is_shutting_down() {
            return Err(Problem::shutting_down());
        }
        if request.uri().path().starts_with("/v1/receipts/") {
            return Arc::clone(&gateway.receipts).try_acquire_owned().map_err(|_| {
                Problem::new(
                    Reason::InFlight,
                    format!(
                        "{} others ask for receipts. Ask again in a moment.",
                        receipts::places(options)
                    ),
                )
            });
        }
        Arc::clone(&gateway.in_flight).try_acquire_owned().map_err(|_| {
            Problem::new(
                Reason::InFlight,
                format!(
                    "{} requests are being worked on, the most this gateway takes at once (http.in_flight_max). This \
                     one was not taken; send it again in a moment.",
                    options.in_flight_max
                ),
            )
        })
    }
}
