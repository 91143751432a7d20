//! Operators' verbs on dead letters, on the held lane, and on the watermark: `/v1/dead-letters`, `/v1/held`,
//! `/v1/wal/rewind`.
//!
//! What blocks runs beside the runtime, with a limit of time. What a verb does is the log's and the forwarder's; here
//! are its JSON and its refusals.

use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::extract::rejection::QueryRejection;
use axum::extract::{Path, Query as Given, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use serde::Deserialize;

use super::admin::{self, Admin};
use super::error::{Problem, Reason};
use super::order::Order;
use crate::forward::{self, CommandError};
use crate::ops::{
    self, Discarded, HeldOrder, HeldTopic, HeldTopics, LetterItem, LetterQuery, Letters, Limits, Name, Page, Query,
    Redirected, Requeued, RewindOrder, Selection, WholeLetter,
};
use crate::record::Topic;
use crate::wal::{Handled, LettersCause, LettersError, Log, Part, Piece, ReadError, RewindError, Wal, Which};

type Answer = Result<Response, Problem>;

/// How long a verb over dead letters works for one answer: what is left then, the next request is for.
const PIECE_MAX: Duration = Duration::from_secs(10);

fn given<T>(query: Result<Given<T>, QueryRejection>, known: &str) -> Result<T, Problem> {
    query
        .map(|Given(query)| query)
        .map_err(|error| Problem::new(Reason::Malformed, format!("{}; known are {known}.", error.body_text())))
}

fn unreadable(error: &ReadError) -> Problem {
    tracing::error!("an operator's question cannot be answered: {error}");
    Problem::new(Reason::Busy, "the log cannot be read now; the gateway's log says why.")
}

/// Runs a verb beside the runtime.
pub(super) async fn beside<T: Send + 'static>(
    admin: &Admin,
    verb: impl FnOnce(&Wal) -> Result<T, Problem> + Send + 'static,
) -> Result<T, Problem> {
    let wal = admin.gateway.wal.clone();
    let done = admin.ask(move || verb(&wal)).await;
    done.unwrap_or_else(|no_answer| Err(Problem::new(Reason::Busy, format!("{no_answer}."))))
}

pub(super) fn answer(answer: Result<impl serde::Serialize, Problem>) -> Response {
    match answer {
        Ok(body) => admin::json(StatusCode::OK, &body),
        Err(problem) => problem.into_response(),
    }
}

/// `GET /v1/dead-letters`.
pub(super) async fn letters(
    State(admin): State<Arc<Admin>>,
    query: Result<Given<LetterQuery>, QueryRejection>,
) -> Response {
    let read = async {
        let query = given(query, "from, limit, newest, topic and whole")?;
        if query.newest && query.whole {
            return Err(Problem::new(
                Reason::Malformed,
                "newest gives a list, not whole records: ask for one of both. A record of it whole: wal and seq of the list.",
            ));
        }
        let readers = Arc::clone(&admin.readers);
        beside(&admin, move |wal| {
            let mut letters = Letters::open(wal, |log, from| {
                readers.take(Part::DeadLetters, log, query.from.unwrap_or(from).max(from))
            });
            let limits = Limits::ANSWER;
            let page = match query.whole {
                true => (letters.page(&query, limits, WholeLetter::of))
                    .map(|page| (page.next, admin::json(StatusCode::OK, &page))),
                false => (letters.page(&query, limits, LetterItem::of))
                    .map(|page| (page.next, admin::json(StatusCode::OK, &page))),
            };
            let (next, answer) = page.map_err(|error| unreadable(&error))?;
            if let (Some(next), Some(reader)) = (next, letters.into_reader()) {
                readers.keep(Part::DeadLetters, reader, next);
            }
            Ok(answer)
        })
        .await
    };
    let read: Answer = read.await;
    read.unwrap_or_else(IntoResponse::into_response)
}

/// `GET /v1/dead-letters/{wal}/{seq}`.
pub(super) async fn letter(State(admin): State<Arc<Admin>>, Path((wal, seq)): Path<(String, String)>) -> Response {
    let read = async {
        let name = match seq.parse() {
            Ok(seq) => Name { wal: Some(wal), seq },
            Err(_) => {
                return Err(Problem::new(
                    Reason::Malformed,
                    "the path ends with /WAL/SEQ: a UUID and a number.",
                ));
            }
        };
        beside(&admin, move |wal| {
            let origin = (name.origin(wal.id())).map_err(|error| Problem::new(Reason::Malformed, format!("{error}.")))?;
            let mut letters = Letters::open(wal, Log::reader);
            let letter = letters.one(&origin).map_err(|error| unreadable(&error))?;
            letter.ok_or_else(|| {
                Problem::new(
                    Reason::NotFound,
                    "there is no such dead letter: it was never one, or it was discarded, or delivered after a requeue.",
                )
            })
        })
        .await
    };
    answer(read.await)
}

const SELECTION: &str = r#"{"all":true}, {"topic":"NAME"} or {"letters":[{"wal":"UUID","seq":1}]}"#;

async fn selected<T: Send + 'static>(
    admin: &Admin,
    order: Order,
    done: impl FnOnce(Handled) -> T + Send + 'static,
    verb: impl FnOnce(&Wal, &Which, Piece) -> Result<Handled, LettersError> + Send + 'static,
) -> Result<T, Problem> {
    beside(admin, move |wal| {
        let selection: Selection = order.parsed(SELECTION)?;
        let which = (selection.which(wal.id()))
            .map_err(|error| Problem::new(Reason::Malformed, format!("{error}. Nothing was done.")))?;
        let handled = match selection.dry_run {
            true => wal.count_letters(&which).map(|letters| Handled { letters, left: None }),
            false => {
                let piece = Piece {
                    within: selection.within,
                    until: Some(Instant::now() + PIECE_MAX),
                };
                verb(wal, &which, piece)
            }
        };
        handled.map(done).map_err(letters_problem)
    })
    .await
}

fn letters_problem(error: LettersError) -> Problem {
    let text = format!("{error}.");
    match error.source {
        LettersCause::Append(append) => Problem::from(append).saying(text),
        LettersCause::Read(error) => unreadable(&error),
    }
}

/// `POST /v1/dead-letters/requeue`.
pub(super) async fn requeue(State(admin): State<Arc<Admin>>, order: Order) -> Response {
    let done = |handled: Handled| Requeued {
        requeued: handled.letters,
        left: handled.left,
    };
    answer(selected(&admin, order, done, Wal::requeue_letters).await)
}

/// `POST /v1/dead-letters/discard`.
pub(super) async fn discard(State(admin): State<Arc<Admin>>, order: Order) -> Response {
    let done = |handled: Handled| Discarded {
        discarded: handled.letters,
        left: handled.left,
    };
    answer(selected(&admin, order, done, Wal::discard_letters).await)
}

/// What `GET /v1/held` is asked for; with anything of it, records instead of topics.
#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(super) struct HeldQuery {
    topic: Option<String>,
    from: Option<u64>,
    limit: Option<usize>,
}

/// `GET /v1/held`: the topics; `GET /v1/held?topic=&from=&limit=`: the records.
pub(super) async fn held(State(admin): State<Arc<Admin>>, query: Result<Given<HeldQuery>, QueryRejection>) -> Response {
    let query = match given(query, "topic, from and limit") {
        Ok(query) => query,
        Err(problem) => return problem.into_response(),
    };
    if query.topic.is_none() && query.from.is_none() && query.limit.is_none() {
        let status = (admin.gateway.forward)();
        let topics = status.held_topics.into_iter().map(|held| HeldTopic {
            topic: held.topic,
            records: held.records,
            since_ms: held.since_ms,
            reason: Some(held.reason),
        });
        return admin::json(
            StatusCode::OK,
            &HeldTopics {
                topics: topics.collect(),
                count: status.held_topics_count,
                damaged: Vec::new(),
            },
        );
    }
    let readers = Arc::clone(&admin.readers);
    let page = beside(&admin, move |wal| {
        let Some(log) = wal.held() else {
            return Ok(Page {
                end: true,
                ..Page::default()
            });
        };
        let first = log.watermarks().acked + 1;
        let mut reader = readers.take(Part::Held, &log, query.from.unwrap_or(first).max(first));
        let query = Query {
            topic: query.topic,
            limit: query.limit,
            ..Query::default()
        };
        let page = ops::page(&mut reader, wal.id(), &query, Limits::ANSWER).map_err(|error| unreadable(&error))?;
        if !page.end {
            readers.keep(Part::Held, reader, page.next);
        }
        Ok(page)
    });
    answer(page.await)
}

fn operator(admin: &Admin) -> Result<forward::Handle, Problem> {
    let handle = admin.gateway.operator.get().cloned();
    handle.ok_or_else(|| {
        Problem::new(
            Reason::Busy,
            "this gateway has no forwarder that could do it. Nothing was done.",
        )
    })
}

fn command_problem(error: CommandError) -> Problem {
    let text = format!("{error}.");
    match error {
        CommandError::Rewind(RewindError::Gone { .. }) => Problem::new(Reason::NotFound, text),
        CommandError::Rewind(RewindError::Ahead { .. }) => Problem::new(Reason::Malformed, text),
        CommandError::Rewind(RewindError::Stopped(error)) => error.into(),
        CommandError::Append { source, .. } => Problem::from(source).saying(text),
        CommandError::Stopped => Problem::new(Reason::ShuttingDown, text),
        CommandError::Rewind(RewindError::Io { .. }) | CommandError::Busy | CommandError::Slow | CommandError::Away => {
            Problem::new(Reason::Busy, text)
        }
    }
}

fn topic(name: &str, member: &str) -> Result<(), Problem> {
    let checked = Topic::parse(name).map(drop);
    checked.map_err(|error| Problem::new(Reason::Malformed, format!("\"{member}\": {error}. Nothing was done.")))
}

/// `POST /v1/held/discard`.
pub(super) async fn discard_held(State(admin): State<Arc<Admin>>, order: Order) -> Response {
    let handle = operator(&admin);
    let done = beside(&admin, move |_| {
        let order: HeldOrder = order.parsed(r#"{"topic":"NAME"}"#)?;
        topic(&order.topic, "topic")?;
        if order.to.is_some() {
            let text =
                "a discard has no \"to\": send records to another topic with /v1/held/redirect. Nothing was done.";
            return Err(Problem::new(Reason::Malformed, text));
        }
        let discarded = handle?.discard_held(&order.topic).map_err(command_problem)?;
        Ok(Discarded { discarded, left: None })
    });
    answer(done.await)
}

/// `POST /v1/held/redirect`.
pub(super) async fn redirect_held(State(admin): State<Arc<Admin>>, order: Order) -> Response {
    let handle = operator(&admin);
    let done = beside(&admin, move |_| {
        let shape = r#"{"topic":"NAME","to":"OTHER"}"#;
        let order: HeldOrder = order.parsed(shape)?;
        topic(&order.topic, "topic")?;
        let to = match order.to {
            Some(to) if to != order.topic => to,
            _ => {
                let text = format!("\"to\" must name another topic: send {shape}. Nothing was done.");
                return Err(Problem::new(Reason::Malformed, text));
            }
        };
        topic(&to, "to")?;
        let redirected = handle?.redirect_held(&order.topic, &to).map_err(command_problem)?;
        Ok(Redirected { redirected })
    });
    answer(done.await)
}

/// `POST /v1/wal/rewind`.
pub(super) async fn rewind(State(admin): State<Arc<Admin>>, order: Order) -> Response {
    let handle = operator(&admin);
    let done = beside(&admin, move |_| {
        let order: RewindOrder = order.parsed(r#"{"from_seq":1}"#)?;
        handle?.rewind(order.from_seq).map_err(command_problem)
    });
    answer(done.await)
}
