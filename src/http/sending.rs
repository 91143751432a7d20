//! A long answer while its client takes it: its request is in work, and has its place among them, until the end.
//!
//! A short answer is handed to hyper whole and needs nothing of this. Of a long one a piece is made when there is room for it;
//! a client that takes none keeps it, and its connection is closed after `idle_timeout` (see connection.rs).

use std::pin::Pin;
use std::task::{Context, Poll, ready};

use axum::body::{Body, Bytes, HttpBody};
use axum::response::Response;
use hyper::body::{Frame, SizeHint};
use tokio::sync::OwnedSemaphorePermit;

use super::connection::{InWork, Progress};

/// An answer of at most so many bytes is short.
const SHORT_BYTES_MAX: u64 = 16 << 10;

struct Sending {
    body: Body,
    progress: Progress,
    _place: Option<OwnedSemaphorePermit>,
}

/// Keeps a request in work, and in its place, until its answer is sent.
pub(super) fn keep(response: Response, work: InWork, place: Option<OwnedSemaphorePermit>) -> Response {
    if response
        .body()
        .size_hint()
        .upper()
        .is_some_and(|bytes| bytes <= SHORT_BYTES_MAX)
    {
        return response;
    }
    response.map(|body| {
        Body::new(Sending {
            body,
            progress: work.sending(),
            _place: place,
        })
    })
}

impl HttpBody for Sending {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        let frame = ready!(Pin::new(&mut self.body).poll_frame(cx));
        // Whoever asks has taken what came before.
        self.progress.moved();
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
