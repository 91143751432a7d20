//! The socket under hyper: it notes when a request's head begins, and says what hyper cannot say.
//!
//! A head that comes too slowly gets its 408. What hyper itself refuses (no HTTP, a flood of headers) it
//! answers with a bare status; such an answer is recognised on its way out and replaced by one that
//! explains it. (If a later hyper writes it another way, the bare status goes out as before.)
//!
//! A refusal often leaves bytes of the client unread; closing then makes the kernel send a reset, and
//! the client never reads the refusal. So after one the socket lingers: closed for writing, it reads on
//! and drops what comes, for a moment.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
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

/// The socket of one connection.
pub(super) struct Socket {
    tcp: TcpStream,
    connection: Arc<Connection>,
    end: End,
}

/// How far a socket is in closing.
enum End {
    Open,
    Lingering { until: Pin<Box<Sleep>>, dropped: usize },
    Closed,
}

impl Socket {
    pub(super) fn new(tcp: TcpStream, connection: Arc<Connection>) -> Self {
        Self {
            tcp,
            connection,
            end: End::Open,
        }
    }

    /// Refuses what came before it was a request.
    pub(super) fn refuse(&self, reason: Reason, detail: impl Into<String>) {
        self.connection.refuse(reason);
        // On a connection without an answer under way the send buffer takes a short one at once.
        if let Err(error) = self.tcp.try_write(&Problem::new(reason, detail).to_http1()) {
            tracing::debug!(%error, "a refused client could not be told");
        }
    }

    /// Replaces `answer` if it is hyper's own; true if so.
    fn replaces(&self, answer: &[u8]) -> bool {
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

impl AsyncRead for Socket {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let connection = &self.connection;
        if connection.is_late() && connection.phase() != Phase::Busy {
            if connection.phase() == Phase::Head {
                connection.enter(Phase::Idle);
                self.refuse(
                    Reason::Timeout,
                    "the request's head was not complete in time (http.header_timeout). Nothing was taken; send it again.",
                );
            }
            return Poll::Ready(Ok(()));
        }
        let before = buf.filled().len();
        ready!(Pin::new(&mut self.tcp).poll_read(cx, buf))?;
        if buf.filled().len() > before && matches!(self.connection.phase(), Phase::Fresh | Phase::Idle) {
            self.connection.enter(Phase::Head);
        }
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Socket {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        if self.replaces(buf) {
            return Poll::Ready(Ok(buf.len()));
        }
        Pin::new(&mut self.tcp).poll_write(cx, buf)
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
        Pin::new(&mut self.tcp).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.tcp.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.tcp).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = &mut *self;
        loop {
            match &mut this.end {
                End::Open => {
                    ready!(Pin::new(&mut this.tcp).poll_shutdown(cx))?;
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
                    match ready!(Pin::new(&mut this.tcp).poll_read(cx, &mut buf)) {
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
