//! The accept loop: how many connections there are, who makes room, and how everything ends.
//!
//! At the limit the connection that has been without a request for longest makes room (never-used ones
//! first), so that idle clients, however many, cannot lock others out. If every connection is in use the
//! newcomer waits a moment and then reads a 503. Memory is bounded by `connections_max`; a small number
//! of newcomers ([`DOOR_MAX`]) may wait beside them, the others wait in the kernel's queue.
//!
//! axum::serve has no time limit and no connection limit, hence the loop. Deliberately does not know:
//! what is served ([`App`]).

use std::convert::Infallible;
use std::io;
use std::net::{IpAddr, SocketAddr, TcpListener};
use std::pin::{Pin, pin};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use axum::Router;
use axum::http::Request;
use axum::response::Response;
use hyper::body::Incoming;
use hyper::server::conn::{http1, http2};
use hyper::service::{Service, service_fn};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::graceful::GracefulConnection;
use hyper_util::service::TowerToHyperService;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;

use super::connection::{Connection, Due, Order, Phase};
use super::error::Reason;
use super::sending;
use super::socket::Socket;
use super::tls::{self, NoTls, Tls};
use crate::metrics as names;

/// Newcomers that may wait for room at once.
const DOOR_MAX: usize = 128;
/// How long a newcomer waits there.
const DOOR_WAIT: Duration = Duration::from_secs(1);
/// How often one who waits asks for room.
const DOOR_TICK: Duration = Duration::from_millis(100);
/// After a failed accept (mostly: no file descriptors left).
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// How long a connection without a request may take to close.
const CLOSE_GRACE: Duration = Duration::from_secs(5);
/// How many headers hyper takes without being asked to.
const HYPER_HEADERS_DEFAULT: usize = 100;
/// The smallest buffer of a connection: also how much of a body is read at once.
const BUFFER_BYTES_MIN: usize = 64 << 10;

/// The requests that a connection of HTTP/2 may have in work.
const STREAMS_MAX: u32 = 100;
/// How much of a body may come before it is read, on HTTP/2: of one request, and of all of a connection. It is also what
/// comes in one round trip.
const STREAM_BYTES_MAX: u32 = 256 << 10;
const STREAMS_BYTES_MAX: u32 = 256 << 10;

/// Who is at the other end of a connection.
#[derive(Debug, Clone)]
pub(super) struct Peer {
    pub(super) address: IpAddr,
    /// The subject of its certificate, where one is asked for.
    pub(super) certificate: Option<Arc<str>>,
}

/// What a listener serves.
pub(super) trait App: Send + Sync + 'static {
    /// Answers one request; never fails. With the answer comes the request's place among those in work, if it has one.
    fn answer(
        &self,
        request: Request<Incoming>,
        peer: &Peer,
    ) -> impl Future<Output = (Response, Option<OwnedSemaphorePermit>)> + Send;

    /// Told of what was refused before it was a request.
    fn refused(&self, _: Reason) {}
}

/// A listener's limits. See [`super::Options`].
#[derive(Clone)]
pub(super) struct Options {
    pub(super) name: &'static str,
    /// `None`: as it is, HTTP/1.1.
    pub(super) tls: Option<Arc<Tls>>,
    pub(super) connections_max: usize,
    pub(super) header_timeout: Duration,
    pub(super) idle_timeout: Duration,
    pub(super) shutdown_timeout: Duration,
    pub(super) header_bytes_max: usize,
    pub(super) headers_max: usize,
}

/// axum's router as a thing to call.
pub(super) struct Routes(TowerToHyperService<Router>);

impl Routes {
    pub(super) fn new(router: Router) -> Self {
        Self(TowerToHyperService::new(router))
    }

    /// Asks the router.
    pub(super) async fn answer(&self, request: Request<Incoming>) -> Response {
        match self.0.call(request).await {
            Ok(response) => response,
            Err(never) => match never {},
        }
    }
}

/// Serves until `shutdown`; calls `closing` then, tells every connection to end, and returns when they
/// have, or after `shutdown_timeout`.
pub(super) async fn run<A: App>(
    listener: TcpListener,
    app: Arc<A>,
    options: Options,
    shutdown: CancellationToken,
    closing: impl FnOnce(),
) -> io::Result<()> {
    listener.set_nonblocking(true)?;
    let listener = tokio::net::TcpListener::from_std(listener)?;
    let mut accept = Accept::new(app, options);
    loop {
        let accepted = tokio::select! {
            biased;
            () = shutdown.cancelled() => break,
            accepted = listener.accept() => accepted,
        };
        match accepted {
            Ok((tcp, address)) => accept.welcome(tcp, address).await,
            Err(error) if is_clients_fault(&error) => {}
            Err(error) => {
                accept.failed(&error);
                sleep(ACCEPT_PAUSE).await;
            }
        }
    }
    drop(listener);
    closing();
    accept.end().await;
    Ok(())
}

/// Failed before it was accepted: nothing is wrong here.
fn is_clients_fault(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::ConnectionAborted | io::ErrorKind::ConnectionReset | io::ErrorKind::ConnectionRefused
    )
}

/// The accept loop's state.
struct Accept<A> {
    serve: Arc<Serve<A>>,
    door: Arc<Semaphore>,
    failed_at: Option<Instant>,
}

impl<A: App> Accept<A> {
    fn new(app: Arc<A>, options: Options) -> Self {
        let mut http = http1::Builder::new();
        // Its default number costs no memory per request; a higher one is allocated for each.
        if options.headers_max > HYPER_HEADERS_DEFAULT {
            http.max_headers(options.headers_max);
        }
        // Above our own limit, so that ours comes first and says by how much.
        http.max_buf_size(options.header_bytes_max.saturating_mul(2).max(BUFFER_BYTES_MIN))
            .header_read_timeout(None)
            .timer(TokioTimer::new())
            .keep_alive(true)
            // A client may close its side and wait for the answer.
            .half_close(true)
            // It would keep an answer back for as long as half a next request waits in the buffer.
            .pipeline_flush(false);
        // What it does about streams that are opened and reset at once, and about floods of small frames, is its default.
        let mut http2 = http2::Builder::new(TokioExecutor::new());
        http2
            .timer(TokioTimer::new())
            .max_concurrent_streams(STREAMS_MAX)
            .initial_stream_window_size(STREAM_BYTES_MAX)
            .initial_connection_window_size(STREAMS_BYTES_MAX)
            .max_header_list_size(u32::try_from(options.header_bytes_max.saturating_mul(2)).unwrap_or(u32::MAX));
        Self {
            door: Arc::new(Semaphore::new(DOOR_MAX)),
            failed_at: None,
            serve: Arc::new(Serve {
                app,
                http1: http,
                http2,
                epoch: Instant::now(),
                room: Arc::new(Semaphore::new(options.connections_max)),
                open: Mutex::default(),
                options,
            }),
        }
    }

    /// Takes a new connection in, or to the door. Waits while the door is crowded: the next ones are
    /// then kept by the kernel.
    async fn welcome(&mut self, tcp: TcpStream, address: SocketAddr) {
        if let Err(error) = tcp.set_nodelay(true) {
            // It is gone already; reading from it will say so.
            tracing::debug!(%error, "TCP_NODELAY");
        }
        let serve = Arc::clone(&self.serve);
        let peer = Peer {
            // An IPv4 client of a listener for both is one and the same client.
            address: address.ip().to_canonical(),
            certificate: None,
        };
        if let Ok(permit) = Arc::clone(&serve.room).try_acquire_owned() {
            tokio::spawn(serve.connection(tcp, peer, permit));
        } else if let Ok(at_door) = Arc::clone(&self.door).acquire_owned().await {
            tokio::spawn(serve.at_door(tcp, peer, at_door));
        }
    }

    fn failed(&mut self, error: &io::Error) {
        self.serve.make_room();
        let again = self.failed_at.is_some_and(|at| at.elapsed() < Duration::from_secs(10));
        if !again {
            self.failed_at = Some(Instant::now());
            tracing::error!(
                %error,
                listener = self.serve.options.name,
                "cannot accept connections; clients wait. If file descriptors are out, raise the limit (ulimit -n) or \
                 lower http.connections_max"
            );
        }
    }

    /// Ends every connection: first those without a request, then each after its answer, at last all.
    async fn end(&mut self) {
        let serve = &self.serve;
        let all = u32::try_from(serve.options.connections_max).unwrap_or(u32::MAX);
        serve.tell_all(Order::Close);
        if timeout(serve.options.shutdown_timeout, serve.room.acquire_many(all))
            .await
            .is_ok()
        {
            return;
        }
        let left = serve.tell_all(Order::Abort);
        tracing::warn!(
            listener = serve.options.name,
            connections = left,
            "requests did not end in time; their connections are closed. Their clients read no OK"
        );
        if timeout(CLOSE_GRACE, serve.room.acquire_many(all)).await.is_err() {
            tracing::warn!(listener = serve.options.name, "connections are left at the end");
        }
    }
}

/// What every connection of a listener has in common.
struct Serve<A> {
    app: Arc<A>,
    http1: http1::Builder,
    http2: http2::Builder<TokioExecutor>,
    epoch: Instant,
    options: Options,
    /// One permit per connection.
    room: Arc<Semaphore>,
    open: Mutex<Open>,
}

/// The connections that have room.
#[derive(Default)]
struct Open {
    /// Whoever ended is swept out now and then: it has no task that shares it.
    connections: Vec<Arc<Connection>>,
    sweep_at: usize,
    /// What everybody was told, and whoever comes later is.
    order: Option<Order>,
}

impl<A: App> Serve<A> {
    fn open(&self) -> MutexGuard<'_, Open> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn remember(&self, connection: &Arc<Connection>) {
        let mut open = self.open();
        if open.connections.len() >= open.sweep_at {
            open.connections.retain(|connection| Arc::strong_count(connection) > 1);
            open.sweep_at = (open.connections.len() * 2).max(64);
        }
        open.connections.push(Arc::clone(connection));
        if let Some(order) = open.order {
            connection.tell(order);
        }
    }

    /// Returns how many there are.
    fn tell_all(&self, order: Order) -> usize {
        let mut open = self.open();
        open.order = Some(order);
        open.connections.retain(|connection| Arc::strong_count(connection) > 1);
        for connection in &open.connections {
            connection.tell(order);
        }
        open.connections.len()
    }

    /// Asks one connection without a request to close, if there is one.
    fn make_room(&self) {
        let open = self.open();
        let spare = open
            .connections
            .iter()
            .filter(|connection| Arc::strong_count(connection) > 1)
            .filter_map(|connection| connection.spare_rank().map(|rank| (rank, connection)))
            .min_by_key(|(rank, _)| *rank);
        if let Some((_, connection)) = spare {
            connection.tell(Order::Close);
        }
    }

    /// Waits for room. Asks for it at once and again: the room that one asked for may go to another who
    /// came before.
    async fn at_door(self: Arc<Self>, tcp: TcpStream, peer: Peer, at_door: OwnedSemaphorePermit) {
        let wait = async {
            let mut room = pin!(Arc::clone(&self.room).acquire_owned());
            loop {
                self.make_room();
                if let Ok(permit) = timeout(DOOR_TICK, &mut room).await {
                    return permit.ok();
                }
            }
        };
        match timeout(DOOR_WAIT, wait).await {
            Ok(Some(permit)) => {
                drop(at_door);
                self.connection(tcp, peer, permit).await;
            }
            _ => self.refuse(tcp, at_door).await,
        }
    }

    /// Serves one connection to its end; the permit is its room.
    async fn connection(self: Arc<Self>, tcp: TcpStream, peer: Peer, permit: OwnedSemaphorePermit) {
        let connection = Arc::new(Connection::new(self.epoch));
        self.remember(&connection);
        match &self.options.tls {
            None => self.serve_http1(tcp, peer, &connection).await,
            Some(tls) => self.serve_tls(tls, tcp, peer, &connection).await,
        }
        if let Some(reason) = connection.refusal() {
            self.app.refused(reason);
        }
        drop(permit);
    }

    async fn serve_tls(self: &Arc<Self>, tls: &Tls, tcp: TcpStream, mut peer: Peer, connection: &Arc<Connection>) {
        let handshake = timeout(self.options.header_timeout, tls.accept(tcp));
        let accepted = tokio::select! {
            biased;
            accepted = handshake => accepted,
            () = connection.told() => return,
        };
        match accepted {
            Ok(Ok(stream)) => {
                // The time for a request's head begins now.
                connection.enter(Phase::Fresh);
                peer.certificate = tls::owner(&stream);
                if tls::is_h2(&stream) {
                    let service = service_fn(|request| self.answer(request, &peer, connection));
                    let http = pin!(self.http2.serve_connection(TokioIo::new(stream), service));
                    self.drive(http, connection).await;
                } else {
                    self.serve_http1(stream, peer, connection).await;
                }
            }
            Ok(Err(NoTls::Plain(tcp))) => {
                no_tls(names::HANDSHAKE_PLAIN);
                let mut socket = pin!(Socket::new(tcp, Arc::clone(connection)));
                socket.refuse(
                    Reason::Malformed,
                    "this port speaks https:// only, and what came is something else. Nothing was taken; use https://.",
                );
                self.close(socket).await;
            }
            Ok(Err(NoTls::Failed(error))) => {
                no_tls(names::HANDSHAKE_BROKEN);
                // Certificates that do not fit are found out here, and their owners ask the operator.
                tracing::debug!(%error, peer = %peer.address, listener = self.options.name, "no TLS connection");
            }
            Err(_) => {
                no_tls(names::HANDSHAKE_TIMEOUT);
                tracing::debug!(peer = %peer.address, "a TLS handshake took too long");
            }
        }
    }

    async fn serve_http1<S>(self: &Arc<Self>, stream: S, peer: Peer, connection: &Arc<Connection>)
    where
        S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
    {
        let socket = TokioIo::new(Socket::new(stream, Arc::clone(connection)));
        let service = service_fn(|request| self.answer(request, &peer, connection));
        let http = pin!(self.http1.serve_connection(socket, service));
        self.drive(http, connection).await;
    }

    /// Answers one request of a connection.
    fn answer(
        self: &Arc<Self>,
        request: Request<Incoming>,
        peer: &Peer,
        connection: &Arc<Connection>,
    ) -> impl Future<Output = Result<Response, Infallible>> + Send + use<A> {
        // From here on what comes is its body: hyper may read of it before the future below is polled.
        let work = connection.begin();
        let (serve, peer) = (Arc::clone(self), peer.clone());
        async move {
            let (response, place) = serve.app.answer(request, &peer).await;
            let status = response.status();
            if status.is_client_error() || status.is_server_error() {
                work.refused();
            }
            Ok(sending::keep(response, work, place))
        }
    }

    /// Lets a connection go on until it ends, is told to, or has been without a request for too long.
    async fn drive<C>(&self, mut http: Pin<&mut C>, connection: &Connection)
    where
        C: GracefulConnection,
        C::Error: std::fmt::Display,
    {
        let header_timeout = self.options.header_timeout;
        // A late head is found this much after its time at most.
        let tick = (header_timeout / 4).max(Duration::from_millis(10));
        let mut timer = pin!(sleep(tick));
        let mut close_by: Option<Instant> = None;
        loop {
            tokio::select! {
                biased;
                result = &mut http => {
                    if let Err(error) = result {
                        tracing::debug!(%error, listener = self.options.name, "connection");
                    }
                    return;
                }
                () = connection.told() => {
                    if connection.order() == Order::Abort {
                        return;
                    }
                    close_by.get_or_insert_with(|| Instant::now() + CLOSE_GRACE);
                    http.as_mut().graceful_shutdown();
                }
                () = &mut timer => {
                    timer.as_mut().reset((Instant::now() + tick).into());
                    match close_by {
                        Some(by) => {
                            // Whoever was answered just now may still be sent that answer.
                            let is_over = connection.phase() != Phase::Busy && connection.in_phase() >= CLOSE_GRACE;
                            if is_over && Instant::now() >= by {
                                return;
                            }
                        }
                        None => match connection.due(header_timeout, self.options.idle_timeout) {
                            Due::Nothing => {}
                            Due::HeadLate => {
                                close_by = Some(Instant::now() + CLOSE_GRACE);
                                connection.mark_late();
                            }
                            Due::Stuck => {
                                tracing::debug!(listener = self.options.name, "a client takes nothing of its answer");
                                return;
                            }
                            Due::IdleOut => {
                                close_by = Some(Instant::now() + CLOSE_GRACE);
                                http.as_mut().graceful_shutdown();
                            }
                        },
                    }
                }
            }
        }
    }

    /// Tells a newcomer that there is no room. With TLS it is closed without a word: a handshake is more than it is worth.
    async fn refuse(&self, tcp: TcpStream, at_door: OwnedSemaphorePermit) {
        self.app.refused(Reason::InFlight);
        if self.options.tls.is_some() {
            return;
        }
        let mut socket = pin!(Socket::new(tcp, Arc::new(Connection::new(self.epoch))));
        socket.refuse(
            Reason::InFlight,
            format!(
                "{} connections are open, the most this gateway takes (http.connections_max), and all are in use. \
                 Nothing was taken; come back in a moment.",
                self.options.connections_max
            ),
        );
        self.close(socket).await;
        drop(at_door);
    }

    /// Closes what was refused, once its client has read why or a moment has passed.
    async fn close<S: AsyncRead + AsyncWrite + Unpin>(&self, mut socket: Pin<&mut Socket<S>>) {
        let closed = timeout(DOOR_WAIT, std::future::poll_fn(|cx| socket.as_mut().poll_shutdown(cx))).await;
        if let Ok(Err(error)) = closed {
            tracing::debug!(%error, listener = self.options.name, "a refused client was gone");
        }
    }
}

/// Counts a connection that did not become one of TLS.
fn no_tls(reason: &'static str) {
    metrics::counter!(names::HTTP_HANDSHAKES_FAILED_TOTAL, "reason" => reason).increment(1);
}

#[cfg(test)]
mod tests;
