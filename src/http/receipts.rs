//! `GET /v1/receipts/{seq}`: what has become of a record, now or once Kafka has it.
//!
//! A client that waits holds no place among the requests in work: those are for records. Waiting costs a look at a number now
//! and then; what may wait for the disk has turns, and is never done by a thread of the runtime. Not longer than [`WAIT_MAX`],
//! and not over a shutdown. Over HTTP/1.1 a client that has left is noticed when its time is over: one may close its side and
//! read the answer.
//!
//! Whoever may send at all may ask. Of another one's records it tells where they are, and the topic of those that are held.

use std::str::FromStr as _;
use std::sync::Arc;
use std::time::Duration;

use axum::extract::rejection::{PathRejection, QueryRejection};
use axum::extract::{Path, Query, State};
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde::{Deserialize, Serialize};
use tokio::time::{Instant, sleep, timeout};

use super::error::{Problem, Reason};
use super::{Gateway, Options, admin};
use crate::ops::{Stage, Standing};
use crate::record::{Sequence, WalId};

/// The most who may ask at once, however many connections there may be.
const RECEIPTS_MAX: usize = 1024;
/// How many may look for a record at once, where memory does not say where it is; and how long a look may take, its turn
/// included. One that hangs keeps its place, so that threads do not pile up.
pub(super) const LOOKS_MAX: usize = 4;
const LOOK_MAX: Duration = Duration::from_secs(5);
/// How long a client may wait, and how long it does if it does not say.
const WAIT_MAX: Duration = Duration::from_secs(60);
const WAIT_USUAL: Duration = Duration::from_secs(10);
/// Between two looks at the watermark.
const TICK: Duration = Duration::from_millis(25);
/// Between two looks for a record that is settled, and held.
const SETTLED_TICK: Duration = Duration::from_secs(1);

/// How many may ask at once.
pub(super) fn places(options: &Options) -> usize {
    RECEIPTS_MAX.min(options.connections_max / 4).max(1)
}

/// What a receipt is asked for.
#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(super) struct Asked {
    /// `acked`, or not at all.
    wait: Option<String>,
    timeout: Option<String>,
    wal: Option<String>,
}

/// The answer.
#[derive(Debug, Serialize)]
struct Receipt<'a> {
    wal: &'a str,
    seq: Sequence,
    #[serde(flatten)]
    standing: Standing,
}

/// `GET /v1/receipts/{seq}`.
pub(super) async fn show(
    State(gateway): State<Arc<Gateway>>,
    seq: Result<Path<String>, PathRejection>,
    asked: Result<Query<Asked>, QueryRejection>,
) -> Response {
    let answer = async {
        let seq = seq
            .ok()
            .and_then(|Path(seq)| seq.parse::<Sequence>().ok())
            .filter(|seq| *seq > 0);
        let seq =
            seq.ok_or_else(|| malformed("the path ends with a sequence, a number from 1 on, as an answer told it"))?;
        let Query(asked) =
            asked.map_err(|error| malformed(&format!("{}; known are wait, timeout and wal", error.body_text())))?;
        let wait = asked.patience()?;
        let standing = match asked.wal.as_deref().map(WalId::from_str) {
            Some(Ok(wal)) if wal != gateway.wal.id() => Standing::because(
                Stage::Unknown,
                "this gateway has another log: it was begun anew, or the record was given to another gateway",
            ),
            Some(Err(_)) => return Err(malformed("wal is a UUID, as an answer told it")),
            _ => gateway.standing(seq, wait).await?,
        };
        Ok(admin::json(
            StatusCode::OK,
            &Receipt {
                wal: &gateway.wal_id,
                seq,
                standing,
            },
        ))
    };
    let answer: Result<Response, Problem> = answer.await;
    let mut response = answer.unwrap_or_else(IntoResponse::into_response);
    let no_store = HeaderValue::from_static("no-store");
    response.headers_mut().insert(header::CACHE_CONTROL, no_store);
    response
}

fn malformed(what: &str) -> Problem {
    Problem::new(Reason::Malformed, format!("{what}. Ask again with it right."))
}

impl Asked {
    /// How long to wait.
    fn patience(&self) -> Result<Duration, Problem> {
        match (self.wait.as_deref(), self.timeout.as_deref()) {
            (None, None) => Ok(Duration::ZERO),
            (Some("acked"), None) => Ok(WAIT_USUAL),
            (Some("acked"), Some(text)) => humantime::parse_duration(text)
                .ok()
                .filter(|time| *time <= WAIT_MAX)
                .ok_or_else(|| malformed("timeout is a time of 60 s at most, such as 10s")),
            (Some(_), _) => Err(malformed("wait is \"acked\" or left out")),
            (None, Some(_)) => Err(malformed("timeout goes with wait=acked")),
        }
    }
}

impl Gateway {
    /// Where the record stands, once it has come to an end of its way or `patience` is over.
    async fn standing(self: &Arc<Self>, seq: Sequence, patience: Duration) -> Result<Standing, Problem> {
        let until = Instant::now() + patience;
        loop {
            let (looked, was_settled) = (Instant::now(), self.wal.log().acked() >= seq);
            let standing = self.look_for(seq).await;
            let is_over = || Instant::now() >= until || self.is_shutting_down();
            if standing.as_ref().is_ok_and(|standing| standing.state.is_final()) || is_over() {
                return standing;
            }
            loop {
                sleep(TICK).await;
                // It may have come to its end in the last moment.
                if is_over()
                    || (!was_settled && self.wal.log().acked() >= seq)
                    || looked.elapsed() >= SETTLED_TICK && was_settled
                {
                    break;
                }
            }
        }
    }

    async fn look_for(self: &Arc<Self>, seq: Sequence) -> Result<Standing, Problem> {
        if let Some(known) = Standing::known(self.wal.log(), self.operator.get(), seq) {
            return Ok(known);
        }
        let busy = || {
            Problem::new(
                Reason::Busy,
                "the log does not tell in time where this record is: others ask too, or the disk is slow. Ask again in a moment.",
            )
        };
        let looking = async {
            let turn = Arc::clone(&self.looks).acquire_owned().await.ok()?;
            let gateway = Arc::clone(self);
            let looking = tokio::task::spawn_blocking(move || {
                let standing = gateway.lookout.find(&gateway.wal, gateway.operator.get(), seq);
                // With the thread, not with the request: a client that leaves does not stop the thread.
                drop(turn);
                standing
            });
            looking.await.ok()
        };
        let found = timeout(LOOK_MAX, looking).await.ok().flatten().ok_or_else(busy)?;
        found.map_err(|error| {
            tracing::error!("a receipt cannot be given: {error}");
            Problem::new(
                Reason::Busy,
                "the log cannot be read now: the gateway's log says why. Ask again later.",
            )
        })
    }
}
