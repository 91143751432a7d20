//! `/v1/wal/records`: the log's records for operators, page by page, and records that come with an identity.
//!
//! A page is read beside the runtime, and costs at most what [`Limits::ANSWER`] says: whoever wants more asks again
//! from where it ends. Only this listener takes records that say who they are.

use std::sync::Arc;

use axum::extract::rejection::QueryRejection;
use axum::extract::{Query as Given, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};

use super::admin::{self, Admin};
use super::error::{Problem, Reason};
use super::order::Order;
use crate::ops::{self, Limits, Query};
use crate::wal::{Part, ReadError};

/// `GET /v1/wal/records`.
pub(super) async fn list(State(admin): State<Arc<Admin>>, query: Result<Given<Query>, QueryRejection>) -> Response {
    let Given(query) = match query {
        Ok(query) => query,
        Err(error) => {
            let known = "known are from_seq, to_seq, since_ms, until_ms, topic, key, text, limit and only_count";
            return Problem::new(Reason::Malformed, format!("{}; {known}.", error.body_text())).into_response();
        }
    };
    let wal = admin.gateway.wal.clone();
    let readers = Arc::clone(&admin.readers);
    let read = move || {
        let log = wal.log();
        let first = log.watermarks().trimmed + 1;
        let mut reader = readers.take(Part::Main, log, query.from_seq.unwrap_or(first).max(first));
        let page = ops::page(&mut reader, wal.id(), &query, Limits::ANSWER)?;
        if !page.end {
            readers.keep(Part::Main, reader, page.next);
        }
        Ok::<_, ReadError>(page)
    };
    match admin.ask(read).await {
        Ok(Ok(page)) => admin::json(StatusCode::OK, &page),
        Ok(Err(error)) => {
            tracing::error!("records cannot be shown: {error}");
            Problem::new(Reason::Busy, "the log cannot be read now; the gateway's log says why.").into_response()
        }
        Err(no_answer) => Problem::new(Reason::Busy, format!("{no_answer}.")).into_response(),
    }
}

/// `POST /v1/wal/records` of `{"items":[...]}`, as `GET` gives them: committed with the identity that they name, all of
/// them or none.
pub(super) async fn import(State(admin): State<Arc<Admin>>, order: Order) -> Response {
    let imported = super::ops::beside(&admin, move |wal| {
        let items: ops::Items = order.parsed(r#"{"items":[...]}"#)?;
        let records = items.into_records();
        let records = records.map_err(|error| Problem::new(Reason::Malformed, format!("{error}; none was taken.")))?;
        ops::import(wal, &records).map_err(Problem::from)
    });
    super::ops::answer(imported.await)
}
