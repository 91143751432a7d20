//! Clients of every kind against the accept loop, over real sockets, with a small app behind it.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)]

use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream as Client};
use std::sync::atomic::{AtomicUsize, Ordering};

use axum::body::Body;
use axum::response::IntoResponse;
use http_body_util::BodyExt;
use tokio::runtime::Runtime;
use tokio::sync::Notify;
use tokio::task::JoinHandle;

use super::*;
use crate::http::error::Problem;
use crate::http::limits::check_head;

/// No test waits longer for anything.
const PATIENCE: Duration = Duration::from_secs(20);

/// `/hang` answers when it is let go, `/refuse` refuses without reading the body, others say `fine`.
#[derive(Default)]
struct Small {
    hanging: AtomicUsize,
    let_go: Notify,
}

impl App for Small {
    async fn answer(&self, request: Request<Incoming>, _: &Peer) -> (Response, Option<OwnedSemaphorePermit>) {
        (self.response(request).await, None)
    }
}

impl Small {
    async fn response(&self, request: Request<Incoming>) -> Response {
        if let Err(problem) = check_head(&request, 1000, 20) {
            return problem.into_response();
        }
        match request.uri().path() {
            "/hang" => {
                self.hanging.fetch_add(1, Ordering::SeqCst);
                self.let_go.notified().await;
            }
            "/refuse" => return Problem::new(Reason::TooLarge, "no").into_response(),
            _ => {
                if request.into_body().collect().await.is_err() {
                    return Problem::new(Reason::Malformed, "cut").into_response();
                }
            }
        }
        Response::new(Body::from("fine"))
    }
}

struct Server {
    address: SocketAddr,
    app: Arc<Small>,
    shutdown: CancellationToken,
    ended: JoinHandle<io::Result<()>>,
    runtime: Runtime,
}

fn options() -> Options {
    Options {
        name: "test",
        tls: None,
        connections_max: 100,
        header_timeout: PATIENCE,
        idle_timeout: PATIENCE,
        shutdown_timeout: PATIENCE,
        header_bytes_max: 1000,
        headers_max: 20,
    }
}

impl Server {
    fn start(options: Options) -> Self {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .enable_all()
            .build()
            .unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let app = Arc::new(Small::default());
        let shutdown = CancellationToken::new();
        let ended = runtime.spawn(run(listener, Arc::clone(&app), options, shutdown.clone(), || {}));
        Self {
            address,
            app,
            shutdown,
            ended,
            runtime,
        }
    }

    fn connect(&self) -> Client {
        let client = Client::connect(self.address).unwrap();
        client.set_read_timeout(Some(PATIENCE)).unwrap();
        client.set_write_timeout(Some(PATIENCE)).unwrap();
        client
    }

    fn send(&self, bytes: &[u8]) -> Client {
        let mut client = self.connect();
        client.write_all(bytes).unwrap();
        client
    }

    /// A request that is being worked on.
    fn hang(&self) -> Client {
        let before = self.app.hanging.load(Ordering::SeqCst);
        let client = self.send(b"GET /hang HTTP/1.1\r\nhost: x\r\n\r\n");
        until(|| self.app.hanging.load(Ordering::SeqCst) > before);
        client
    }

    fn is_fine(&self) {
        let answer = read_answer(&mut self.send(b"POST / HTTP/1.1\r\nhost: x\r\ncontent-length: 2\r\n\r\nhi"));
        assert!(
            answer.starts_with("HTTP/1.1 200 ") && answer.ends_with("fine"),
            "{answer}"
        );
    }

    /// Shuts down; how long it took.
    fn end(self) -> Duration {
        let started = Instant::now();
        self.shutdown.cancel();
        let ended = self.runtime.block_on(async { timeout(PATIENCE, self.ended).await });
        ended.expect("the server ends").unwrap().unwrap();
        started.elapsed()
    }
}

fn until(mut holds: impl FnMut() -> bool) {
    let started = Instant::now();
    while !holds() {
        assert!(started.elapsed() < PATIENCE, "waited in vain");
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// One answer, by its Content-Length.
fn read_answer(client: &mut Client) -> String {
    let mut answer = Vec::new();
    let mut byte = [0];
    loop {
        let text = String::from_utf8_lossy(&answer).into_owned();
        if let Some((head, body)) = text.split_once("\r\n\r\n") {
            let length = head
                .to_ascii_lowercase()
                .lines()
                .find_map(|line| line.strip_prefix("content-length: ")?.parse().ok())
                .unwrap_or(0);
            if body.len() >= length {
                return text;
            }
        }
        if client.read(&mut byte).expect("an answer") == 0 {
            return text;
        }
        answer.push(byte[0]);
    }
}

/// Everything until the server closes.
fn read_to_end(client: &mut Client) -> String {
    let mut answer = Vec::new();
    client.read_to_end(&mut answer).expect("an orderly end");
    String::from_utf8(answer).unwrap()
}

#[test]
fn connection_is_kept_and_requests_may_be_pipelined() {
    let server = Server::start(options());
    let one = "GET /x HTTP/1.1\r\nhost: x\r\n\r\n";
    let mut client = server.send(one.repeat(3).as_bytes());
    for _ in 0..3 {
        assert!(read_answer(&mut client).ends_with("fine"));
    }
    client.write_all(one.as_bytes()).unwrap();
    assert!(read_answer(&mut client).ends_with("fine"));
    server.end();
}

#[test]
fn answer_does_not_wait_for_half_a_next_request() {
    let server = Server::start(options());
    let mut client = server.send(b"GET /x HTTP/1.1\r\nhost: x\r\n\r\nGET /y HT");
    assert!(read_answer(&mut client).ends_with("fine"));
    client.write_all(b"TP/1.1\r\nhost: x\r\n\r\n").unwrap();
    assert!(read_answer(&mut client).ends_with("fine"));
    server.end();
}

#[test]
fn client_that_closes_its_side_still_reads_its_answer() {
    let server = Server::start(options());
    let mut client = server.hang();
    client.shutdown(Shutdown::Write).unwrap();
    server.app.let_go.notify_one();
    assert!(read_to_end(&mut client).ends_with("fine"));
    server.end();
}

#[test]
fn slow_head_is_answered_408_and_a_silent_connection_is_closed() {
    let server = Server::start(Options {
        header_timeout: Duration::from_millis(100),
        ..options()
    });
    let mut slow = server.send(b"POST / HTTP/1.1\r\nhost: x\r\nx-slow: ");
    let mut silent = server.connect();
    let answer = read_to_end(&mut slow);
    assert!(answer.starts_with("HTTP/1.1 408 "), "{answer}");
    assert!(
        answer.contains("application/problem+json") && answer.contains("header_timeout"),
        "{answer}"
    );
    assert_eq!(read_to_end(&mut silent), "");
    server.is_fine();
    server.end();
}

#[test]
fn slow_second_head_on_a_kept_connection_is_answered_408() {
    let server = Server::start(Options {
        header_timeout: Duration::from_millis(100),
        ..options()
    });
    let mut client = server.send(b"GET / HTTP/1.1\r\nhost: x\r\n\r\n");
    assert!(read_answer(&mut client).ends_with("fine"));
    client.write_all(b"GET / HT").unwrap();
    assert!(read_to_end(&mut client).starts_with("HTTP/1.1 408 "));
    server.end();
}

#[test]
fn idle_connection_is_closed_after_its_time_and_not_after_that_of_a_head() {
    let server = Server::start(Options {
        header_timeout: Duration::from_millis(40),
        idle_timeout: Duration::from_millis(400),
        ..options()
    });
    let mut client = server.send(b"GET / HTTP/1.1\r\nhost: x\r\n\r\n");
    assert!(read_answer(&mut client).ends_with("fine"));
    let idle_from = Instant::now();
    assert_eq!(read_to_end(&mut client), "");
    assert!(
        idle_from.elapsed() >= Duration::from_millis(300),
        "{:?}",
        idle_from.elapsed()
    );
    server.end();
}

#[test]
fn idle_connections_make_room_and_do_not_lock_others_out() {
    let server = Server::start(Options {
        connections_max: 8,
        ..options()
    });
    let idle: Vec<Client> = (0..200).map(|_| server.connect()).collect();
    for _ in 0..20 {
        server.is_fine();
    }
    drop(idle);
    server.end();
}

#[test]
fn newcomer_reads_503_when_every_connection_is_in_use() {
    let server = Server::start(Options {
        connections_max: 2,
        ..options()
    });
    let busy = [server.hang(), server.hang()];
    let answer = read_to_end(&mut server.send(b"GET / HTTP/1.1\r\nhost: x\r\n\r\n"));
    assert!(
        answer.starts_with("HTTP/1.1 503 ") && answer.contains("retry-after: 1\r\n"),
        "{answer}"
    );
    server.app.let_go.notify_waiters();
    for mut client in busy {
        assert!(read_answer(&mut client).ends_with("fine"));
        drop(client);
    }
    until(|| {
        let mut client = server.send(b"GET / HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n");
        read_to_end(&mut client).ends_with("fine")
    });
    server.end();
}

#[test]
fn refused_client_reads_its_answer_though_it_still_sends() {
    let server = Server::start(options());
    let mut client = server.send(b"POST /refuse HTTP/1.1\r\nhost: x\r\ncontent-length: 20000000\r\n\r\n");
    let piece = [b'x'; 1 << 16];
    for _ in 0..(20_000_000 / piece.len()) {
        client.write_all(&piece).expect("the server lingers");
    }
    assert!(read_to_end(&mut client).starts_with("HTTP/1.1 413 "));
    server.end();
}

#[test]
fn header_flood_is_answered_431() {
    let server = Server::start(options());
    let flood = |count: usize, bytes: usize| {
        let mut head = "GET / HTTP/1.1\r\nhost: x\r\n".to_owned();
        for number in 0..count {
            head.push_str(&format!("h{number}: {}\r\n", "v".repeat(bytes)));
        }
        head + "\r\n"
    };
    for (count, bytes) in [(30, 1), (5, 1000), (5000, 4), (50, 10_000)] {
        let mut client = server.connect();
        // The server may have had enough before all of it is sent.
        drop(client.write_all(flood(count, bytes).as_bytes()));
        let answer = read_answer(&mut client);
        assert!(answer.starts_with("HTTP/1.1 431 "), "{answer}");
        assert!(
            answer.contains("application/problem+json") && answer.ends_with('}'),
            "{answer}"
        );
    }
    server.is_fine();
    server.end();
}

#[test]
fn garbage_is_answered_400_and_explained() {
    let server = Server::start(options());
    let answer = read_to_end(&mut server.send(b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\r\n\r\n"));
    assert!(
        answer.starts_with("HTTP/1.1 400 ") && answer.contains("plain http"),
        "{answer}"
    );
    let long = format!("GET /{} HTTP/1.1\r\nhost: x\r\n\r\n", "x".repeat(70_000));
    let mut client = server.connect();
    drop(client.write_all(long.as_bytes()));
    let answer = read_answer(&mut client);
    assert!(
        answer.starts_with("HTTP/1.1 4") && answer.contains("application/problem+json"),
        "{answer}"
    );
    server.is_fine();
    server.end();
}

#[test]
fn shutdown_closes_idle_connections_and_lets_requests_end() {
    let server = Server::start(options());
    let mut silent = server.connect();
    let mut kept = server.send(b"GET / HTTP/1.1\r\nhost: x\r\n\r\n");
    assert!(read_answer(&mut kept).ends_with("fine"));
    let mut busy = server.hang();
    server.shutdown.cancel();
    assert_eq!(read_to_end(&mut silent), "");
    assert_eq!(read_to_end(&mut kept), "");
    until(|| Client::connect(server.address).is_err());
    server.app.let_go.notify_waiters();
    assert!(read_to_end(&mut busy).ends_with("fine"));
    server.end();
}

#[test]
fn shutdown_does_not_wait_for_ever() {
    let server = Server::start(Options {
        shutdown_timeout: Duration::from_millis(100),
        ..options()
    });
    let mut busy = server.hang();
    assert!(server.end() < Duration::from_secs(3));
    let mut rest = Vec::new();
    assert!(!matches!(busy.read_to_end(&mut rest), Ok(read) if read > 0));
}
