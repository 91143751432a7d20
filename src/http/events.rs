//! What is new, once a second: the task that looks, and the streams of server-sent events that tell.
//!
//! One task asks the log, whoever listens; streams share what it found, so that sixteen of them cost no more questions
//! than one. `/v1/events` tells the whole state each time; `/v1/events/page` tells the page what it shows, and then
//! only what has changed: somebody may look at it over a poor network. A reader that stands still is cut off by the
//! connection's idle limit, which begins anew with each event it takes.

use std::convert::Infallible;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use axum::body::{Body, Bytes};
use axum::extract::State as Extract;
use axum::http::header;
use axum::response::{IntoResponse, Response};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};
use tokio::time::{MissedTickBehavior, interval, timeout};
use tokio_util::sync::CancellationToken;

use super::admin::{Admin, NoAnswer};
use super::error::{Problem, Reason};
use super::page::Page;
use super::samples::{Sample, Samples};
use super::status::State;
use crate::wal;

/// Readers at once, of both kinds. Browsers open one for each page.
const STREAMS_MAX: usize = 16;
const TICK: Duration = Duration::from_secs(1);
/// A comment is sent when there was nothing to tell for so long.
const HEARTBEAT: Duration = Duration::from_secs(10);

/// What the task and the streams share.
pub(super) struct News {
    latest: watch::Sender<Arc<Told>>,
    samples: Mutex<Samples>,
    streams: Arc<Semaphore>,
    shutdown: CancellationToken,
}

/// Events, ready to be sent.
#[derive(Default)]
struct Told {
    /// Counts up; 0 is nothing yet.
    number: u64,
    state: Bytes,
    page: Bytes,
    /// What differs from the page before.
    changes: Bytes,
}

impl News {
    pub(super) fn new(shutdown: CancellationToken) -> Self {
        Self {
            latest: watch::Sender::default(),
            samples: Mutex::default(),
            streams: Arc::new(Semaphore::new(STREAMS_MAX)),
            shutdown,
        }
    }

    pub(super) fn samples(&self) -> MutexGuard<'_, Samples> {
        self.samples.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Admin {
    /// The state, from what the log answered.
    pub(super) fn state(&self, asked: Result<wal::Status, NoAnswer>) -> State {
        let rates = self.news.samples().rates((self.gateway.clock)());
        State::of(&self.gateway, asked, rates)
    }

    pub(super) fn page(&self, state: &State) -> Page {
        Page::of(state, &self.news.samples(), self.gateway.options.admin_token.is_some())
    }

    fn sample(&self, wal: &wal::Status) {
        self.news.samples().push(Sample {
            time_ms: (self.gateway.clock)(),
            acked: wal.watermarks.acked,
            committed: wal.watermarks.committed,
            backlog_records: wal.backlog_records,
            backlog_bytes: wal.backlog_bytes,
            disk_bytes: wal.disk_bytes,
            kafka_up: (self.gateway.forward)().broker_up,
        });
    }
}

/// Looks once a second, until the listener ends.
pub(super) async fn watch(admin: Arc<Admin>) {
    let news = &admin.news;
    let mut ticks = interval(TICK);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut before = Page::default();
    loop {
        let asked = tokio::select! {
            () = news.shutdown.cancelled() => return,
            asked = async {
                ticks.tick().await;
                admin.wal_status().await
            } => asked,
        };
        if let Ok(wal) = &asked {
            admin.sample(wal);
        }
        if news.latest.receiver_count() == 0 {
            continue;
        }
        let state = admin.state(asked);
        let page = admin.page(&state);
        let told = Told {
            number: news.latest.borrow().number + 1,
            state: event(&state),
            page: event(&page),
            changes: event(&page.since(&before)),
        };
        before = page;
        news.latest.send_replace(Arc::new(told));
    }
}

/// One event. serde_json writes no line breaks.
fn event(data: &impl serde::Serialize) -> Bytes {
    match serde_json::to_string(data) {
        Ok(text) => format!("data: {text}\n\n").into(),
        Err(error) => {
            tracing::error!(%error, "an event could not be written as JSON");
            Bytes::new()
        }
    }
}

/// `GET /v1/events`.
pub(super) async fn states(Extract(admin): Extract<Arc<Admin>>) -> Response {
    stream(&admin.news, |told, _| told.state.clone())
}

/// `GET /v1/events/page`.
pub(super) async fn page(Extract(admin): Extract<Arc<Admin>>) -> Response {
    stream(&admin.news, |told, seen| {
        if seen > 0 && told.number == seen + 1 {
            told.changes.clone()
        } else {
            told.page.clone()
        }
    })
}

/// Chooses from what was told, for a reader that has seen the one of this number (0: none).
type Choose = fn(&Told, u64) -> Bytes;

/// One reader.
struct Stream {
    latest: watch::Receiver<Arc<Told>>,
    shutdown: CancellationToken,
    choose: Choose,
    seen: u64,
    _place: OwnedSemaphorePermit,
}

fn stream(news: &News, choose: Choose) -> Response {
    let Ok(place) = Arc::clone(&news.streams).try_acquire_owned() else {
        return Problem::new(
            Reason::InFlight,
            format!(
                "{STREAMS_MAX} streams of events are open, the most this listener has. Close a status page, or ask \
                 /v1/status now and then."
            ),
        )
        .into_response();
    };
    let reader = Stream {
        // What was told before may be from an hour ago, when somebody last looked: the next is its first.
        latest: news.latest.subscribe(),
        shutdown: news.shutdown.clone(),
        choose,
        seen: 0,
        _place: place,
    };
    let events = futures_util::stream::unfold(reader, async |mut reader| {
        let bytes = reader.next().await?;
        Some((Ok::<_, Infallible>(bytes), reader))
    });
    let headers = [
        (header::CONTENT_TYPE, "text/event-stream"),
        (header::CACHE_CONTROL, "no-store"),
    ];
    (headers, Body::from_stream(events)).into_response()
}

impl Stream {
    /// `None` at the end of the listener.
    async fn next(&mut self) -> Option<Bytes> {
        let changed = tokio::select! {
            () = self.shutdown.cancelled() => return None,
            changed = timeout(HEARTBEAT, self.latest.changed()) => changed,
        };
        match changed {
            Ok(changed) => changed.ok()?,
            Err(_) => return Some(Bytes::from_static(b": nothing new\n\n")),
        }
        let told = Arc::clone(&self.latest.borrow_and_update());
        let bytes = (self.choose)(&told, self.seen);
        self.seen = told.number;
        Some(bytes)
    }
}
