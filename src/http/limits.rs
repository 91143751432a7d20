//! What a request may cost: bytes and number of its headers, bytes and time of its body, and the memory
//! of all bodies together.
//!
//! A body's Content-Length is checked before a byte is read and its bytes are counted while they come,
//! so that neither a lie nor its absence (chunked) gets past the limit. Memory follows what has arrived,
//! never what was announced.

use std::time::Duration;

use axum::body::{Body, Bytes, HttpBody};
use axum::http::uri::Authority;
use axum::http::{HeaderValue, Request, Version, header};
use bytes::BytesMut;
use http_body_util::BodyExt;
use tokio::sync::{Semaphore, SemaphorePermit};
use tokio::time::{Instant, timeout_at};

use super::error::{Problem, Reason};

/// What all bodies may take together beyond [`FREE_BYTES`] each, from their first byte until their records are committed: four of the
/// largest as shipped. More would wait for the log anyway, which takes as much into its queue. Bytes as they come, compressed or not:
/// what becomes of a compressed body is bounded by how many are read at once, and by that queue.
const BODIES_BYTES_MAX: usize = 64 << 20;
/// What each body may take without asking. Ordinary requests never touch the shared budget.
const FREE_BYTES: usize = 64 << 10;
/// The budget is kept in pieces of this size, so that a large body asks now and then.
const PIECE_BYTES: usize = 64 << 10;

/// Checks the head against the limits. (hyper's own, higher ones are the next line: see socket.rs.)
pub(super) fn check_head<B>(request: &Request<B>, header_bytes_max: usize, headers_max: usize) -> Result<(), Problem> {
    let headers = request.headers();
    if headers.len() > headers_max {
        return Err(Problem::new(
            Reason::Headers,
            format!(
                "the request has {} headers, and {headers_max} may be there (http.headers_max). Send fewer.",
                headers.len()
            ),
        ));
    }
    check_host(request)?;
    let uri = request.uri();
    let mut bytes = request.method().as_str().len() + uri.path().len() + uri.query().map_or(0, str::len);
    for (name, value) in headers {
        // ": " and the end of the line.
        bytes += name.as_str().len() + value.len() + 4;
    }
    if bytes > header_bytes_max {
        return Err(Problem::new(
            Reason::Headers,
            format!(
                "the request's head has {bytes} bytes, and it may have {header_bytes_max} (http.header_bytes_max). Send \
                 fewer or shorter headers, or put the data into the body."
            ),
        ));
    }
    Ok(())
}

/// A request of HTTP/1.1 says once for whom it is (RFC 9112, section 3.2): where it does not, a proxy in front may have meant
/// another one. HTTP/1.0 need not, and HTTP/2 has it in the path.
fn check_host<B>(request: &Request<B>) -> Result<(), Problem> {
    let mut hosts = request.headers().get_all(header::HOST).iter();
    let (host, second) = (hosts.next(), hosts.next());
    let is_valid = |host: &HeaderValue| {
        // One may be empty: of an authority that is none.
        host.is_empty() || Authority::try_from(host.as_bytes()).is_ok_and(|authority| !authority.as_str().contains('@'))
    };
    let is_right = match (host, request.version()) {
        (Some(host), _) => second.is_none() && is_valid(host),
        (None, version) => version != Version::HTTP_11,
    };
    match is_right {
        true => Ok(()),
        false => Err(Problem::new(
            Reason::Malformed,
            "a request of HTTP/1.1 has one Host header with a host, and this one has not. Nothing was taken; send it with one.",
        )
        .closing()),
    }
}

/// Reads bodies within their limits.
pub(super) struct Bodies {
    body_bytes_max: usize,
    body_timeout: Duration,
    stall_timeout: Duration,
    /// In pieces of [`PIECE_BYTES`].
    budget: Semaphore,
}

/// A whole body, and its share of the budget: for it, and then for what is made of it.
pub(super) struct Collected<'b> {
    pub(super) bytes: Bytes,
    pub(super) share: Option<SemaphorePermit<'b>>,
}

impl Bodies {
    pub(super) fn new(body_bytes_max: usize, body_timeout: Duration) -> Self {
        Self {
            body_bytes_max,
            body_timeout,
            stall_timeout: body_timeout / 3,
            budget: Semaphore::new(BODIES_BYTES_MAX / PIECE_BYTES),
        }
    }

    /// Reads the whole body. A body of one piece is not copied.
    pub(super) async fn collect(&self, mut body: Body) -> Result<Collected<'_>, Problem> {
        let announced = body.size_hint().lower();
        if announced > self.body_bytes_max as u64 {
            return Err(self.too_large(&format!("{announced} bytes")));
        }
        let mut first: Option<Bytes> = None;
        let mut rest = BytesMut::new();
        let mut share = None;
        let started = Instant::now();
        let deadline = started + self.body_timeout;
        let mut moved = started;
        while !body.is_end_stream() {
            let wait = deadline.min(moved + self.stall_timeout);
            let frame = match timeout_at(wait, body.frame()).await {
                Ok(Some(Ok(frame))) => frame,
                Ok(Some(Err(_))) => return Err(broken()),
                Ok(None) => break,
                Err(_) => return Err(self.too_slow(wait == deadline)),
            };
            // Trailers are nothing we know.
            let Ok(data) = frame.into_data() else { continue };
            let Some(before) = &first else {
                self.reserve(&mut share, data.len())?;
                first = Some(data);
                // The usual body ends here, and the time need not be asked again.
                if !body.is_end_stream() {
                    moved = Instant::now();
                }
                continue;
            };
            if rest.is_empty() {
                rest.extend_from_slice(before);
            }
            self.reserve(&mut share, rest.len().saturating_add(data.len()))?;
            rest.extend_from_slice(&data);
            moved = Instant::now();
        }
        let bytes = if rest.is_empty() {
            first.unwrap_or_default()
        } else {
            rest.freeze()
        };
        Ok(Collected { bytes, share })
    }

    /// Makes sure that a body may have `bytes`, and takes their share of the budget.
    fn reserve<'b>(&'b self, share: &mut Option<SemaphorePermit<'b>>, bytes: usize) -> Result<(), Problem> {
        if bytes > self.body_bytes_max {
            return Err(self.too_large("more"));
        }
        let pieces = bytes.saturating_sub(FREE_BYTES).div_ceil(PIECE_BYTES);
        let missing = pieces.saturating_sub(share.as_ref().map_or(0, SemaphorePermit::num_permits));
        if missing == 0 {
            return Ok(());
        }
        let more = u32::try_from(missing)
            .ok()
            .and_then(|missing| self.budget.try_acquire_many(missing).ok())
            .ok_or_else(|| {
                Problem::new(
                    Reason::Busy,
                    "the gateway's memory for large bodies is in use by other requests. This one was not taken; send \
                     it again in a moment, or in smaller parts.",
                )
            })?;
        match share {
            Some(share) => share.merge(more),
            None => *share = Some(more),
        }
        Ok(())
    }

    fn too_large(&self, has: &str) -> Problem {
        Problem::new(
            Reason::TooLarge,
            format!(
                "the body has {has}, and it may have {} bytes (http.body_bytes_max). Nothing of it was taken; send it \
                 in parts.",
                self.body_bytes_max
            ),
        )
    }

    fn too_slow(&self, whole: bool) -> Problem {
        let what = if whole {
            format!("the body was not complete after {} s", self.body_timeout.as_secs_f32())
        } else {
            format!("nothing of the body came for {} s", self.stall_timeout.as_secs_f32())
        };
        Problem::new(
            Reason::Timeout,
            format!(
                "{what} (http.body_timeout). Nothing of it was taken; send it again, in smaller parts over a slow line."
            ),
        )
    }
}

/// The client went away or broke the protocol: mostly nobody reads this, and nothing was stored.
fn broken() -> Problem {
    Problem::new(
        Reason::Malformed,
        "the body ended before it was complete or is not valid HTTP. Nothing of it was taken; send it again.",
    )
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)]
    use std::convert::Infallible;

    use axum::response::IntoResponse;
    use hyper::body::Frame;

    use super::*;

    fn request(headers: &[(&str, &str)]) -> Request<()> {
        let mut builder = Request::builder().uri("/financial_pro").version(Version::HTTP_10);
        for (name, value) in headers {
            builder = builder.header(*name, *value);
        }
        builder.body(()).unwrap()
    }

    /// A body in pieces of unknown number, as chunked bodies are; after them it stands still for ever.
    struct Pieces(std::vec::IntoIter<Bytes>, bool);
    impl HttpBody for Pieces {
        type Data = Bytes;
        type Error = Infallible;
        fn poll_frame(
            mut self: std::pin::Pin<&mut Self>,
            _: &mut std::task::Context<'_>,
        ) -> std::task::Poll<Option<Result<Frame<Bytes>, Infallible>>> {
            match self.0.next() {
                Some(piece) => std::task::Poll::Ready(Some(Ok(Frame::data(piece)))),
                None if self.1 => std::task::Poll::Pending,
                None => std::task::Poll::Ready(None),
            }
        }
    }

    fn pieces(pieces: &[&'static str], hangs: bool) -> Body {
        let pieces: Vec<Bytes> = pieces
            .iter()
            .map(|piece| Bytes::from_static(piece.as_bytes()))
            .collect();
        Body::new(Pieces(pieces.into_iter(), hangs))
    }

    async fn status(bodies: &Bodies, body: Body) -> u16 {
        match bodies.collect(body).await {
            Ok(_) => 200,
            Err(problem) => problem.into_response().status().as_u16(),
        }
    }

    #[test]
    fn head_over_its_limits_is_refused() {
        assert!(check_head(&request(&[("a", "1"), ("b", "2")]), 100, 2).is_ok());
        assert!(check_head(&request(&[("a", "1"), ("b", "2")]), 100, 1).is_err());
        let long = "x".repeat(80);
        assert!(check_head(&request(&[("a", &long)]), 100, 2).is_err());
        assert_eq!(
            check_head(&request(&[("a", &long)]), 100, 2)
                .unwrap_err()
                .into_response()
                .status(),
            431
        );
    }

    #[test]
    fn a_request_says_once_for_whom_it_is() {
        let check = |version, hosts: &[&str]| {
            let hosts: Vec<(&str, &str)> = hosts.iter().map(|host| ("host", *host)).collect();
            let mut request = request(&hosts);
            *request.version_mut() = version;
            check_head(&request, 1000, 10).is_ok()
        };
        for host in ["x", "127.0.0.1:4000", "[::1]:4000", "a.example", ""] {
            assert!(check(Version::HTTP_11, &[host]), "{host}");
        }
        for host in ["a b", "a/b", "a@b", "http://a", "a:b:c", "[", "a\u{e9}"] {
            assert!(!check(Version::HTTP_11, &[host]), "{host}");
        }
        assert!(!check(Version::HTTP_11, &[]) && !check(Version::HTTP_11, &["x", "x"]));
        assert!(check(Version::HTTP_10, &[]) && check(Version::HTTP_2, &[]) && !check(Version::HTTP_10, &["x", "y"]));
    }

    #[tokio::test]
    async fn body_is_collected_whole() {
        let bodies = Bodies::new(10, Duration::from_secs(5));
        for parts in [&["0123456789"][..], &["01234", "56789"], &["", "0123456789", ""]] {
            let collected = bodies.collect(pieces(parts, false)).await.ok().unwrap();
            assert_eq!(&collected.bytes[..], b"0123456789");
        }
        assert!(bodies.collect(Body::empty()).await.ok().unwrap().bytes.is_empty());
    }

    #[tokio::test]
    async fn body_over_its_limit_is_refused_announced_or_not() {
        let bodies = Bodies::new(10, Duration::from_secs(5));
        assert_eq!(status(&bodies, Body::from("01234567890")).await, 413);
        assert_eq!(status(&bodies, pieces(&["01234", "567890"], true)).await, 413);
        assert_eq!(status(&bodies, pieces(&["01234567890"], true)).await, 413);
    }

    #[tokio::test]
    async fn body_that_stands_still_is_refused() {
        let mut bodies = Bodies::new(10, Duration::from_secs(3600));
        bodies.stall_timeout = Duration::from_millis(50);
        assert_eq!(status(&bodies, pieces(&["01234"], true)).await, 408);
    }

    #[tokio::test]
    async fn body_that_trickles_is_refused_at_its_deadline() {
        let mut bodies = Bodies::new(1000, Duration::from_millis(50));
        bodies.stall_timeout = Duration::from_secs(3600);
        assert_eq!(status(&bodies, trickle()).await, 408);
    }

    /// One byte each 2 ms, for ever.
    fn trickle() -> Body {
        struct Trickle(std::pin::Pin<Box<tokio::time::Sleep>>);
        impl HttpBody for Trickle {
            type Data = Bytes;
            type Error = Infallible;
            fn poll_frame(
                mut self: std::pin::Pin<&mut Self>,
                cx: &mut std::task::Context<'_>,
            ) -> std::task::Poll<Option<Result<Frame<Bytes>, Infallible>>> {
                std::task::ready!(self.0.as_mut().poll(cx));
                self.0.as_mut().reset(Instant::now() + Duration::from_millis(2));
                std::task::Poll::Ready(Some(Ok(Frame::data(Bytes::from_static(b"x")))))
            }
        }
        Body::new(Trickle(Box::pin(tokio::time::sleep(Duration::from_millis(2)))))
    }

    #[tokio::test]
    async fn bodies_together_stay_within_their_budget_and_give_it_back() {
        let mut bodies = Bodies::new(1 << 20, Duration::from_secs(5));
        bodies.budget = Semaphore::new(16);
        let large = || Body::from(vec![b'x'; 1 << 20]);
        let first = bodies.collect(large()).await.ok().unwrap();
        assert_eq!(status(&bodies, large()).await, 503);
        assert_eq!(status(&bodies, Body::from(vec![b'x'; FREE_BYTES])).await, 200);
        drop(first);
        assert_eq!(status(&bodies, large()).await, 200);
    }
}
