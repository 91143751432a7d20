//! The admin listener: what operators, Prometheus and supervisors ask.
//!
//! Has small limits of its own and shares none with ingest. Who may ask is decided in `access`. Whatever asks the log
//! runs on a thread beside the runtime and has a time limit: a disk that hangs makes `/readyz` a 503 and
//! never stops `/livez`.

use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::extract::{DefaultBodyLimit, State};
use axum::http::{Request, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use hyper::body::Incoming;
use metrics_exporter_prometheus::PrometheusHandle;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::{MissedTickBehavior, interval, timeout};
use tokio_util::sync::CancellationToken;

use super::error::{Problem, Reason};
use super::events::News;
use super::order::ORDERS_MAX;
use super::readers::Readers;
use super::{Gateway, access, events, health, limits, ops, page, pages, records, server, status};
use crate::metrics as names;
use crate::{forward, wal};

const CONNECTIONS_MAX: usize = 64;
const HEADER_BYTES_MAX: usize = 16 << 10;
const HEADERS_MAX: usize = 64;
const HEADER_TIMEOUT: Duration = Duration::from_secs(5);
const IDLE_TIMEOUT: Duration = Duration::from_secs(120);
const SHUTDOWN_TIMEOUT: Duration = Duration::from_secs(2);
/// Questions to the log at once. One that hangs keeps its place, so that threads do not pile up.
const QUESTIONS_MAX: usize = 4;
/// How long the log may take to tell its state.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(3);
/// Operators' verbs at once, apart from the questions of supervisors, and how long one may take: the forwarder may have
/// to finish something first.
const VERBS_MAX: usize = 4;
const VERB_TIMEOUT: Duration = Duration::from_secs(25);
/// Histogram samples gather until they are sorted into buckets; nobody may be scraping.
const UPKEEP: Duration = Duration::from_secs(5);

/// What the admin routes share.
pub(super) struct Admin {
    pub(super) gateway: Arc<Gateway>,
    pub(super) news: News,
    pub(super) readers: Arc<Readers>,
    /// Places of bodies.
    pub(super) orders: Arc<Semaphore>,
    questions: Arc<Semaphore>,
    verbs: Arc<Semaphore>,
}

/// The log did not tell its state.
#[derive(Debug, thiserror::Error)]
#[error("the log did not answer within {} s: the disk may hang. Look at the gateway's log and at the disk", .0.as_secs())]
pub(super) struct NoAnswer(Duration);

impl Admin {
    /// The log's state.
    pub(super) async fn wal_status(&self) -> Result<wal::Status, NoAnswer> {
        let wal = self.gateway.wal.clone();
        ask(&self.questions, ANSWER_TIMEOUT, move || wal.status()).await
    }

    /// What an operator's verb finds or does, beside the runtime.
    pub(super) async fn ask<T: Send + 'static>(
        &self,
        verb: impl FnOnce() -> T + Send + 'static,
    ) -> Result<T, NoAnswer> {
        ask(&self.verbs, VERB_TIMEOUT, verb).await
    }
}

/// Asks on a thread that may hang, in its turn.
async fn ask<T: Send + 'static>(
    turns: &Arc<Semaphore>,
    time_max: Duration,
    question: impl FnOnce() -> T + Send + 'static,
) -> Result<T, NoAnswer> {
    let ask = async {
        let place = Arc::clone(turns).acquire_owned().await.ok()?;
        let answer = tokio::task::spawn_blocking(move || {
            let answer = question();
            drop(place);
            answer
        });
        answer.await.ok()
    };
    timeout(time_max, ask).await.ok().flatten().ok_or(NoAnswer(time_max))
}

/// See [`super::serve_admin`].
pub(super) async fn serve(
    gateway: Arc<Gateway>,
    listener: std::net::TcpListener,
    shutdown: CancellationToken,
) -> std::io::Result<()> {
    let admin = Arc::new(Admin {
        gateway: Arc::clone(&gateway),
        news: News::new(shutdown.clone()),
        readers: Arc::default(),
        orders: Arc::new(Semaphore::new(ORDERS_MAX)),
        questions: Arc::new(Semaphore::new(QUESTIONS_MAX)),
        verbs: Arc::new(Semaphore::new(VERBS_MAX)),
    });
    let token = gateway.options.admin_token.clone();
    let watching = events::watch(Arc::clone(&admin));
    let sweeping = sweep(Arc::clone(&admin.readers), shutdown.clone());
    let served = serve_routes(
        "admin",
        router(admin),
        token,
        gateway.scrape.clone(),
        listener,
        shutdown,
    );
    let (served, (), ()) = tokio::join!(served, watching, sweeping);
    served
}

/// Drops the readers that nobody asks for the next page.
async fn sweep(readers: Arc<Readers>, shutdown: CancellationToken) {
    let mut ticks = interval(UPKEEP);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            () = shutdown.cancelled() => return,
            _ = ticks.tick() => readers.sweep(),
        }
    }
}

/// Serves a listener for operators: its limits, its token, and the upkeep of the metrics that it shows.
pub(super) async fn serve_routes(
    name: &'static str,
    routes: Router,
    token: Option<String>,
    scrape: PrometheusHandle,
    listener: std::net::TcpListener,
    shutdown: CancellationToken,
) -> std::io::Result<()> {
    let options = server::Options {
        tls: None,
        name,
        connections_max: CONNECTIONS_MAX,
        header_timeout: HEADER_TIMEOUT,
        idle_timeout: IDLE_TIMEOUT,
        shutdown_timeout: SHUTDOWN_TIMEOUT,
        header_bytes_max: HEADER_BYTES_MAX,
        headers_max: HEADERS_MAX,
    };
    let app = AdminApp {
        routes: server::Routes::new(routes),
        token,
    };
    let ended = shutdown.clone();
    let upkeep = async {
        let mut ticks = interval(UPKEEP);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                () = ended.cancelled() => return,
                _ = ticks.tick() => scrape.run_upkeep(),
            }
        }
    };
    let (served, ()) = tokio::join!(server::run(listener, Arc::new(app), options, shutdown, || {}), upkeep);
    served
}

fn router(admin: Arc<Admin>) -> Router {
    Router::new()
        .route("/", get(page::show).fallback(pages::get_only))
        .route("/livez", get(health::live).fallback(pages::get_only))
        .route("/readyz", get(health::ready).fallback(pages::get_only))
        .route("/metrics", get(metrics_text).fallback(pages::get_only))
        .route("/v1/status", get(status::show).fallback(pages::get_only))
        .route("/v1/events", get(events::states).fallback(pages::get_only))
        .route("/v1/events/page", get(events::page).fallback(pages::get_only))
        .route("/v1/wal/records", get(records::list).post(records::import))
        .route("/v1/wal/rewind", post(ops::rewind).fallback(pages::post_only))
        .route("/v1/dead-letters", get(ops::letters).fallback(pages::get_only))
        .route(
            "/v1/dead-letters/{wal}/{seq}",
            get(ops::letter).fallback(pages::get_only),
        )
        .route(
            "/v1/dead-letters/requeue",
            post(ops::requeue).fallback(pages::post_only),
        )
        .route(
            "/v1/dead-letters/discard",
            post(ops::discard).fallback(pages::post_only),
        )
        .route("/v1/held", get(ops::held).fallback(pages::get_only))
        .route("/v1/held/discard", post(ops::discard_held).fallback(pages::post_only))
        .route("/v1/held/redirect", post(ops::redirect_held).fallback(pages::post_only))
        .fallback(unknown_path)
        .layer(DefaultBodyLimit::max(access::BODY_BYTES_MAX))
        .with_state(admin)
}

struct AdminApp {
    routes: server::Routes,
    token: Option<String>,
}

impl server::App for AdminApp {
    async fn answer(&self, request: Request<Incoming>, _: &server::Peer) -> (Response, Option<OwnedSemaphorePermit>) {
        (self.response(request).await, None)
    }
}

impl AdminApp {
    async fn response(&self, request: Request<Incoming>) -> Response {
        if let Err(problem) = limits::check_head(&request, HEADER_BYTES_MAX, HEADERS_MAX) {
            return problem.into_response();
        }
        if let Err(refusal) = access::check(&request, self.token.as_deref()) {
            return *refusal;
        }
        self.routes.answer(request).await
    }
}

/// An answer as JSON.
pub(super) fn json(code: StatusCode, body: &impl serde::Serialize) -> Response {
    match serde_json::to_vec(body) {
        Ok(text) => (code, [(header::CONTENT_TYPE, "application/json")], text).into_response(),
        Err(error) => {
            tracing::error!(%error, "an answer could not be written as JSON");
            StatusCode::INTERNAL_SERVER_ERROR.into_response()
        }
    }
}

async fn unknown_path() -> Response {
    Problem::new(
        Reason::NotFound,
        "there is nothing here; known are /, /livez, /readyz, /metrics, /v1/status and /v1/events. Records are sent to the ingest \
         listener (http.listen).",
    )
    .into_response()
}

/// `GET /metrics`.
async fn metrics_text(State(admin): State<Arc<Admin>>) -> Response {
    let gateway = &admin.gateway;
    match admin.wal_status().await {
        Ok(status) => set_wal_gauges(&status),
        // What the log said last would be a lie; the rest is still worth having.
        Err(no_answer) => tracing::error!("metrics without the log's: {no_answer}"),
    }
    let forward = (gateway.forward)();
    set_forward_gauges(&forward, (gateway.clock)());
    metrics::gauge!(names::INGEST_IN_FLIGHT).set(float(gateway.in_flight() as u64));
    if let Some(expiry) = gateway.options.tls.as_ref().and_then(|tls| tls.expiry()) {
        metrics::gauge!(names::HTTP_CERTIFICATE_EXPIRY_TIMESTAMP_SECONDS)
            .set(float(u64::try_from(expiry.timestamp_seconds).unwrap_or(0)));
    }
    scraped(&gateway.scrape, &gateway.options.gateway_id)
}

/// Every metric as it stands now, as an answer.
pub(super) fn scraped(scrape: &PrometheusHandle, name: &str) -> Response {
    names::look_at_process();
    metrics::gauge!(names::CLOCK_TIMESTAMP_SECONDS).set(jiff::Timestamp::now().as_duration().as_secs_f64());
    metrics::gauge!(
        names::BUILD_INFO,
        "version" => env!("CARGO_PKG_VERSION"),
        "gateway" => name.to_owned()
    )
    .set(1.0);
    (
        [(header::CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")],
        scrape.render(),
    )
        .into_response()
}

/// Prometheus has floats only; beyond 2^53 the last digits go.
#[allow(clippy::cast_precision_loss)]
pub(super) fn float(number: u64) -> f64 {
    number as f64
}

fn set_wal_gauges(status: &wal::Status) {
    let watermarks = status.watermarks;
    for (name, value) in [
        (names::WAL_BACKLOG_RECORDS, status.backlog_records),
        (names::WAL_BACKLOG_BYTES, status.backlog_bytes),
        (names::WAL_NEXT_SEQUENCE, watermarks.next),
        (names::WAL_COMMITTED_SEQUENCE, watermarks.committed),
        (names::WAL_ACKED_SEQUENCE, watermarks.acked),
        (names::WAL_DISK_BYTES, status.disk_bytes),
        (names::WAL_CAPACITY_BYTES, status.capacity_bytes),
        (names::WAL_FREE_BYTES, status.free_bytes),
        (names::WAL_ROOM_BYTES, status.room_bytes),
        (names::WAL_REFUSING, u64::from(status.refusing.is_some())),
        (names::WAL_GENERATIONS, status.generations),
        (names::WAL_DAMAGED_RECORDS, status.corruption_records),
        (names::WAL_POISONED, u64::from(status.poisoned.is_some())),
        (names::HELD_RECORDS, status.held_records),
        (names::DEAD_LETTERS, status.dead_letters),
    ] {
        metrics::gauge!(name).set(float(value));
    }
    if status.backlog_records == 0 {
        metrics::gauge!(names::WAL_OLDEST_RECORD_AGE_SECONDS).set(0.0);
        metrics::gauge!(names::FORWARD_LAG_SECONDS).set(0.0);
    }
}

fn set_forward_gauges(forward: &forward::Status, now_ms: i64) {
    metrics::gauge!(names::FORWARD_BROKER_UP).set(f64::from(u8::from(forward.broker_up)));
    metrics::gauge!(names::FORWARD_IN_FLIGHT_RECORDS).set(float(forward.in_flight_records));
    metrics::gauge!(names::HELD_TOPICS).set(float(forward.held_topics_count));
    if let Some(oldest_ms) = forward.oldest_received_ms {
        let age = Duration::from_millis(u64::try_from(now_ms.saturating_sub(oldest_ms)).unwrap_or(0)).as_secs_f64();
        metrics::gauge!(names::WAL_OLDEST_RECORD_AGE_SECONDS).set(age);
        metrics::gauge!(names::FORWARD_LAG_SECONDS).set(age);
    }
}
