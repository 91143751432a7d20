//! The socket under hyper: it notes when a request's head begins, and says what hyper cannot say.
//!
//! A head that comes too slowly gets its 408. What hyper itself refuses (no HTTP, a flood of headers) it
//! answers with a bare status; such an answer is recognised on its way out and replaced by one that
//! explains it. (If a later hyper writes it another way, the bare status goes out as before.)
//!
//! A line of a head ends with CR and LF. hyper takes a bare LF too, as it may; a proxy in front that takes it for a part of
//! a header would then see another request than we do. So the head that a connection begins to send after an answer is looked
//! at: one with a bare LF is refused. (Of a head that comes before the last answer hyper decides alone.)
//!
//! A refusal often leaves bytes of the client unread; closing then makes the kernel send a reset, and
//! the client never reads the refusal. So after one the socket lingers: closed for writing, it reads on
//! and drops what comes, for a moment.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker, ready};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::Sleep;

use super::connection::{Connection, Order, Phase};
use super::error::{Problem, Reason};

/// How long a refused client may take to read its answer.
const LINGER: Duration = Duration::from_secs(2);
/// How much of a refused client's data is dropped at most.
const LINGER_BYTES_MAX: usize = 64 << 20;
/// How hyper ends its own answers' first part; everybody else's have a content-type there.
const BARE: &[u8] = b"\r\nconnection: close\r\ncontent-length: 0\r\n";

/// What to say instead of `answer`, if that is a refusal of hyper's own.
fn explain(answer: &[u8]) -> Option<(Reason, &'static str)> {
    let line_end = memchr::memmem::find(answer.get(..answer.len().min(200))?, b"\r\n")?;
    if !answer.get(line_end..)?.starts_with(BARE) {
        return None;
    }
    let explained = match answer.get(..line_end)?.strip_prefix(b"HTTP/1.1 ")?.get(..3)? {
        b"400" => (
            Reason::Malformed,
            "what came is not an HTTP/1.1 request. Nothing was taken; if https:// was meant, this port speaks plain \
             http:// only.",
        ),
        b"414" => (
            Reason::Headers,
            "the path is too long. Nothing was taken; put the data into the body.",
        ),
        b"431" => (
            Reason::Headers,
            "the request has far more or far larger headers than may be there (http.headers_max, \
             http.header_bytes_max). Nothing was taken; send fewer.",
        ),
        _ => return None,
    };
    Some(explained)
}

/// The socket of one connection, or TLS on one.
pub(super) struct Socket<S> {
    stream: S,
    connection: Arc<Connection>,
    lines: Lines,
    /// Nothing more is taken: whoever reads reads an end.
    is_deaf: bool,
    end: End,
}

/// The lines of a head while it comes.
#[derive(Debug, Default)]
struct Lines {
    /// The last bytes that came before, on this connection.
    tail: [u8; 3],
    /// Nothing but empty lines came yet.
    is_empty: bool,
    /// It is the first on its connection.
    is_first: bool,
    /// It is complete, or was found wrong.
    is_over: bool,
}

impl Lines {
    /// A head begins with these bytes. Behind another request its beginning may have come with that one; where what is left
    /// begins with the end of a line, nobody knows whether it is the last one.
    fn begin(&mut self, is_first: bool, bytes: &[u8]) {
        self.is_empty = true;
        self.is_first = is_first;
        self.is_over = !is_first && matches!(bytes.first(), Some(b'\r' | b'\n'));
    }

    /// Looks at what came next of it; whether a line ends with a bare line feed.
    fn has_bare_end(&mut self, bytes: &[u8]) -> bool {
        let mut from = 0;
        while !self.is_over {
            let rest = bytes.get(from..).unwrap_or_default();
            let Some(at) = memchr::memchr(b'\n', rest).map(|at| from + at) else {
                self.is_empty &= rest.iter().all(|byte| *byte == b'\r');
                break;
            };
            let line = bytes.get(from..at).unwrap_or_default();
            self.is_empty &= line.iter().all(|byte| *byte == b'\r');
            // How far before the line feed: 1 is next to it.
            let before = |distance: usize| match at.checked_sub(distance) {
                Some(at) => bytes.get(at).copied(),
                None => self.tail.iter().rev().nth(distance - at - 1).copied(),
            };
            if before(1) != Some(b'\r') {
                self.is_over = true;
                return true;
            }
            // Empty lines may stand before a head, and are not its end.
            self.is_over = before(2) == Some(b'\n') && before(3) == Some(b'\r') && !self.is_empty;
            from = at + 1;
        }
        false
    }

    /// Remembers how what came ends.
    fn keep(&mut self, bytes: &[u8]) {
        let last = bytes.get(bytes.len().saturating_sub(3)..).unwrap_or_default();
        for byte in last {
            let [_, second, third] = self.tail;
            self.tail = [second, third, *byte];
        }
    }
}

/// How far a socket is in closing.
enum End {
    Open,
    Lingering { until: Pin<Box<Sleep>>, dropped: usize },
    Closed,
}

impl<S: AsyncRead + AsyncWrite + Unpin> Socket<S> {
    pub(super) fn new(stream: S, connection: Arc<Connection>) -> Self {
        Self {
            stream,
            connection,
            lines: Lines::default(),
            is_deaf: false,
            end: End::Open,
        }
    }

    /// Refuses what came before it was a request.
    pub(super) fn refuse(&mut self, reason: Reason, detail: impl Into<String>) {
        self.connection.refuse(reason);
        let answer = Problem::new(reason, detail).to_http1();
        // On a connection without an answer under way the send buffer takes a short one at once: nobody is to be woken.
        let mut at_once = Context::from_waker(Waker::noop());
        let mut stream = Pin::new(&mut self.stream);
        let written = stream.as_mut().poll_write(&mut at_once, &answer);
        let sent = match written {
            Poll::Ready(Ok(_)) => stream.poll_flush(&mut at_once),
            Poll::Ready(Err(error)) => Poll::Ready(Err(error)),
            Poll::Pending => Poll::Pending,
        };
        if !matches!(sent, Poll::Ready(Ok(()))) {
            tracing::debug!("a refused client could not be told");
        }
    }

    /// Replaces `answer` if it is hyper's own; true if so.
    fn replaces(&mut self, answer: &[u8]) -> bool {
        if self.connection.phase() != Phase::Head {
            return false;
        }
        let Some((reason, detail)) = explain(answer) else {
            return false;
        };
        self.refuse(reason, detail);
        true
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncRead for Socket<S> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        if self.connection.is_late() && self.connection.phase() != Phase::Busy {
            if self.connection.phase() == Phase::Head {
                self.connection.enter(Phase::Idle);
                self.refuse(
                    Reason::Timeout,
                    "the request's head was not complete in time (http.header_timeout). Nothing was taken; send it again.",
                );
            }
            return Poll::Ready(Ok(()));
        }
        if self.is_deaf {
            return Poll::Ready(Ok(()));
        }
        let before = buf.filled().len();
        ready!(Pin::new(&mut self.stream).poll_read(cx, buf))?;
        let phase = self.connection.phase();
        let bytes = buf.filled().get(before..).unwrap_or_default();
        if !bytes.is_empty() && matches!(phase, Phase::Fresh | Phase::Idle) {
            self.connection.enter(Phase::Head);
            self.lines.begin(phase == Phase::Fresh, bytes);
        }
        let is_wrong = self.connection.phase() == Phase::Head && self.lines.has_bare_end(bytes);
        self.lines.keep(bytes);
        if is_wrong {
            buf.set_filled(before);
            self.is_deaf = true;
            self.connection.enter(Phase::Idle);
            // Behind another request it may be what is left of a body that nobody wanted: an answer to it would be taken for
            // the next one's.
            if self.lines.is_first {
                self.refuse(
                    Reason::Malformed,
                    "a line of the request's head ends with a line feed alone; each ends with a carriage return and a line feed. \
                     Nothing was taken; correct it and send it again.",
                );
            }
        }
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncWrite for Socket<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        if self.replaces(buf) {
            return Poll::Ready(Ok(buf.len()));
        }
        Pin::new(&mut self.stream).poll_write(cx, buf)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        if let Some(first) = bufs.iter().find(|buf| !buf.is_empty())
            && self.replaces(first)
        {
            return Poll::Ready(Ok(first.len()));
        }
        Pin::new(&mut self.stream).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = &mut *self;
        loop {
            match &mut this.end {
                End::Open => {
                    ready!(Pin::new(&mut this.stream).poll_shutdown(cx))?;
                    let connection = &this.connection;
                    this.end = if connection.has_unread() && connection.order() != Order::Abort {
                        End::Lingering {
                            until: Box::pin(tokio::time::sleep(LINGER)),
                            dropped: 0,
                        }
                    } else {
                        End::Closed
                    };
                }
                End::Lingering { until, dropped } => {
                    if until.as_mut().poll(cx).is_ready() || *dropped > LINGER_BYTES_MAX {
                        this.end = End::Closed;
                        continue;
                    }
                    let mut scratch = [0_u8; 8192];
                    let mut buf = ReadBuf::new(&mut scratch);
                    match ready!(Pin::new(&mut this.stream).poll_read(cx, &mut buf)) {
                        Ok(()) if !buf.filled().is_empty() => *dropped += buf.filled().len(),
                        // It read the answer and closed, or it is gone.
                        Ok(()) | Err(_) => this.end = End::Closed,
                    }
                }
                End::Closed => return Poll::Ready(Ok(())),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)]
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_bare_line_feed_is_found_in_a_head_and_not_behind_it() {
        let bare = |text: &str| {
            let mut lines = Lines::default();
            lines.begin(true, text.as_bytes());
            lines.has_bare_end(text.as_bytes())
        };
        assert!(!bare("POST / HTTP/1.1\r\nHost: x\r\n\r\na\nb"));
        assert!(bare("POST / HTTP/1.1\nHost: x\r\n\r\n"));
        assert!(bare("POST / HTTP/1.1\r\nHost: x\n\r\n"));
        assert!(bare("\n"));
        assert!(!bare("\r\nPOST / HTTP/1.1\r\nX: a\r\n"));
        assert!(bare("\r\n\r\nPOST / HTTP/1.1\nX: a\r\n"), "empty lines are no head");
        let mut lines = Lines::default();
        lines.keep(b"POST / HTTP/1.1\r\nHost: x");
        for rest in [&b"\r\n\r\n{}\n"[..], b"\n\r\n{}\n", b"x\r\n\r\n{}\n"] {
            lines.begin(false, rest);
            assert!(!lines.has_bare_end(rest), "what was before came with another request");
        }
        lines.begin(false, b"x\n");
        assert!(lines.has_bare_end(b"x\n"));
    }

    proptest! {
        #[test]
        fn it_does_not_matter_in_which_pieces_a_head_comes(text in "[a\r\n]{0,20}", cuts in proptest::collection::vec(0usize..20, 0..4)) {
            let begun = || {
                let mut lines = Lines::default();
                lines.begin(true, text.as_bytes());
                lines
            };
            let whole = begun().has_bare_end(text.as_bytes());
            let mut cuts: Vec<usize> = cuts.into_iter().map(|cut| cut.min(text.len())).collect();
            cuts.push(text.len());
            cuts.sort_unstable();
            let (mut lines, mut from, mut found) = (begun(), 0, false);
            for to in cuts {
                found |= lines.has_bare_end(&text.as_bytes()[from..to]);
                lines.keep(&text.as_bytes()[from..to]);
                from = to;
            }
            prop_assert_eq!(found, whole);
        }
    }
}
