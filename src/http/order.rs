//! What an operator orders: a request's body, within limits of time and memory, as JSON.
//!
//! Bodies may be large and clients slow, and the listener must stay free for supervisors: few bodies are there at
//! once, each keeps its place until its verb is done, and none is waited for longer than [`TIMEOUT`]. To parse one
//! takes time too, so that is left to the verb's thread.

use std::sync::Arc;
use std::time::Duration;

use axum::body::Bytes;
use axum::extract::{FromRequest, Request};
use axum::http::StatusCode;
use serde::de::DeserializeOwned;
use tokio::sync::OwnedSemaphorePermit;
use tokio::time::{Instant, timeout_at};

use super::access::BODY_BYTES_MAX;
use super::admin::Admin;
use super::error::{Problem, Reason};

/// How many are there at once.
pub(super) const ORDERS_MAX: usize = 4;
/// How long one may wait for its place and come.
const TIMEOUT: Duration = Duration::from_secs(10);

/// A whole body, and its place until it is dropped.
pub(super) struct Order {
    body: Bytes,
    _place: OwnedSemaphorePermit,
}

impl Order {
    /// What it says. For the verb's thread.
    pub(super) fn parsed<T: DeserializeOwned>(&self, shape: &str) -> Result<T, Problem> {
        serde_json::from_slice(&self.body)
            .map_err(|error| Problem::new(Reason::Malformed, format!("{error}; send {shape}. Nothing was done.")))
    }
}

impl FromRequest<Arc<Admin>> for Order {
    type Rejection = Problem;

    async fn from_request(request: Request, admin: &Arc<Admin>) -> Result<Self, Problem> {
        let by = Instant::now() + TIMEOUT;
        let place = timeout_at(by, Arc::clone(&admin.orders).acquire_owned()).await;
        let Ok(Ok(place)) = place else {
            return Err(Problem::new(
                Reason::Busy,
                format!("{ORDERS_MAX} others are in work. Nothing was done; ask again in a moment."),
            ));
        };
        match timeout_at(by, Bytes::from_request(request, &())).await {
            Ok(Ok(body)) => Ok(Self { body, _place: place }),
            Ok(Err(error)) if error.status() == StatusCode::PAYLOAD_TOO_LARGE => Err(Problem::new(
                Reason::TooLarge,
                format!("a body may have {BODY_BYTES_MAX} bytes here. Nothing was done; ask in smaller parts."),
            )),
            Ok(Err(_)) => Err(Problem::new(
                Reason::Malformed,
                "the body ended before it was complete or is not valid HTTP. Nothing was done; send it again.",
            )),
            Err(_) => Err(Problem::new(
                Reason::Timeout,
                format!(
                    "the body was not complete after {} s. Nothing was done; send it again, in smaller parts over a \
                     slow line.",
                    TIMEOUT.as_secs()
                ),
            )),
        }
    }
}
