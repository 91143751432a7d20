//! A load generator with an open loop: requests leave at their due times, whatever the answers do, and a request's latency counts
//! from when it was due. One that waits for answers before it goes on (wrk, ab) asks less while the server is slow, and so leaves
//! out just the requests that would have waited (coordinated omission).
//!
//! One thread, sockets that do not block, and a look at what is due and what has come every [`LOOK`]. When no connection is free
//! another one is opened, as a further client would be.
//!
//! Why our own: of the kept ones that a registry has, oha paces and measures best (`-q`, `--latency-correction`), with timers of a
//! millisecond: at 20,000 requests a second it saw a median of 0.8 ms of a server that does nothing, and this 0.26 ms. Both take
//! about 20 us of a processor for a request. wrk2 is not packaged; h2load counts from when a request was sent.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)]

use std::collections::VecDeque;
use std::io::{ErrorKind, Read as _, Write as _};
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use mio::net::TcpStream;
use mio::{Events, Interest, Poll, Token};

use super::server::Server;

/// So late at most (and what the kernel's timers add) an answer is seen.
const LOOK: Duration = Duration::from_micros(50);
/// The gateway refuses more than `http.in_flight_max` at a time: beyond this many connections a request waits here, and its latency
/// counts all the same.
const CONNECTIONS_MAX: usize = 1000;
/// What was not answered so long after the last request never will be.
const LAST_ANSWER_MAX: Duration = Duration::from_secs(20);

pub struct Load<'a> {
    pub path: &'a str,
    pub content_type: &'a str,
    pub bodies: &'a [Vec<u8>],
    pub per_second: f64,
    pub lasting: Duration,
    /// A connection for each request, or so many that are kept.
    pub keep_alive: Option<usize>,
}

pub struct Latencies {
    /// Ascending, ms.
    ms: Vec<f64>,
    /// Connections at a time, at most.
    pub connections: usize,
    /// Processor time of the generator, microseconds a request.
    pub cpu: f64,
}

impl Latencies {
    pub fn percentile(&self, percent: f64) -> f64 {
        let at = (self.ms.len() as f64 * percent / 100.0) as usize;
        self.ms[at.min(self.ms.len() - 1)]
    }
}

struct Connection {
    stream: TcpStream,
    /// When what it carries was due, and the request itself until it is sent.
    due: Instant,
    unsent: Option<usize>,
    answer: Vec<u8>,
}

struct Generator<'a> {
    load: &'a Load<'a>,
    address: SocketAddr,
    requests: Vec<Vec<u8>>,
    poll: Poll,
    connections: Vec<Option<Connection>>,
    /// Of `connections`: where nothing is, and what waits for a request.
    vacant: Vec<usize>,
    free: VecDeque<usize>,
    /// Requests for which there was no connection, and when they were due.
    waiting: VecDeque<(usize, Instant)>,
    open: usize,
    latencies: Latencies,
}

/// Loads the server, and says how long each answer took. An answer that is not 2xx ends the benchmark.
pub fn run(server: &Server, load: &Load) -> Latencies {
    // A thread of its own: its processor time is the generator's.
    std::thread::scope(|scope| scope.spawn(|| Generator::new(server, load).run()).join().unwrap())
}

impl<'a> Generator<'a> {
    fn new(server: &Server, load: &'a Load<'a>) -> Self {
        let last = if load.keep_alive.is_some() {
            ""
        } else {
            "Connection: close\r\n"
        };
        let request = |body: &Vec<u8>| {
            let head = format!(
                "POST {} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: {}\r\nContent-Length: {}\r\n{last}\r\n",
                load.path,
                load.content_type,
                body.len()
            );
            [head.as_bytes(), body].concat()
        };
        Self {
            load,
            address: SocketAddr::from(([127, 0, 0, 1], server.port)),
            requests: load.bodies.iter().map(request).collect(),
            poll: Poll::new().unwrap(),
            connections: Vec::new(),
            vacant: Vec::new(),
            free: VecDeque::new(),
            waiting: VecDeque::new(),
            open: 0,
            latencies: Latencies {
                ms: Vec::new(),
                connections: 0,
                cpu: 0.0,
            },
        }
    }

    fn run(mut self) -> Latencies {
        let number = (self.load.per_second * self.load.lasting.as_secs_f64()) as usize;
        self.latencies.ms.reserve(number);
        for _ in 0..self.load.keep_alive.unwrap_or(0) {
            let stream = std::net::TcpStream::connect(self.address).unwrap();
            stream.set_nonblocking(true).unwrap();
            let place = self.place(TcpStream::from_std(stream), Instant::now(), None);
            self.free.push_back(place);
        }
        let before = super::thread_cpu_seconds();
        let began = Instant::now();
        let due = |i: usize| began + Duration::from_secs_f64(i as f64 / self.load.per_second);
        let mut events = Events::with_capacity(1024);
        let mut sent = 0;
        while self.latencies.ms.len() < number {
            while sent < number && due(sent) <= Instant::now() {
                self.waiting.push_back((sent % self.requests.len(), due(sent)));
                sent += 1;
            }
            while !self.waiting.is_empty() && (!self.free.is_empty() || self.open < CONNECTIONS_MAX) {
                self.leave();
            }
            assert!(
                began.elapsed() < self.load.lasting + LAST_ANSWER_MAX,
                "requests were not answered"
            );
            self.poll.poll(&mut events, Some(Duration::ZERO)).unwrap();
            for event in &events {
                self.go_on(event.token().0);
            }
            if events.is_empty() {
                std::thread::sleep(LOOK);
            }
        }
        self.latencies.cpu = (super::thread_cpu_seconds() - before) * 1e6 / number as f64;
        self.latencies.ms.sort_by(f64::total_cmp);
        self.latencies
    }

    fn leave(&mut self) {
        let Some((request, due)) = self.waiting.pop_front() else {
            return;
        };
        let Some(place) = self.free.pop_front() else {
            let stream = TcpStream::connect(self.address).unwrap();
            // Closed with a reset: no TIME_WAIT, or the ports would be used up within seconds.
            socket2::SockRef::from(&stream)
                .set_linger(Some(Duration::ZERO))
                .unwrap();
            self.place(stream, due, Some(request));
            return;
        };
        let connection = self.connections[place].as_mut().unwrap();
        (connection.due, connection.unsent) = (due, Some(request));
        self.go_on(place);
    }

    fn place(&mut self, mut stream: TcpStream, due: Instant, unsent: Option<usize>) -> usize {
        let place = self.vacant.pop().unwrap_or_else(|| {
            self.connections.push(None);
            self.connections.len() - 1
        });
        let interest = Interest::READABLE | Interest::WRITABLE;
        self.poll
            .registry()
            .register(&mut stream, Token(place), interest)
            .unwrap();
        self.connections[place] = Some(Connection {
            stream,
            due,
            unsent,
            answer: Vec::with_capacity(512),
        });
        self.open += 1;
        self.latencies.connections = self.latencies.connections.max(self.open);
        place
    }

    /// Sends what waits, or takes what has come.
    fn go_on(&mut self, place: usize) {
        let connection = self.connections[place].as_mut().unwrap();
        if let Some(request) = connection.unsent {
            let bytes = &self.requests[request];
            match connection.stream.write(bytes) {
                Ok(written) => assert_eq!(written, bytes.len(), "a request is to fit the socket's buffer"),
                // It is not connected yet.
                Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::NotConnected) => return,
                Err(error) => panic!("a request could not be sent: {error}"),
            }
            connection.unsent = None;
            return;
        }
        let mut part = [0; 4096];
        loop {
            match connection.stream.read(&mut part) {
                Ok(0) => panic!(
                    "closed before an answer: {}",
                    String::from_utf8_lossy(&connection.answer)
                ),
                Ok(n) => connection.answer.extend_from_slice(&part[..n]),
                Err(error) if error.kind() == ErrorKind::WouldBlock => return,
                Err(error) => panic!("no answer: {error}"),
            }
            if is_whole(&connection.answer) {
                break;
            }
        }
        connection.answer.clear();
        let latency = connection.due.elapsed();
        self.latencies.ms.push(latency.as_secs_f64() * 1e3);
        if self.load.keep_alive.is_some() {
            self.free.push_back(place);
        } else {
            self.connections[place] = None;
            self.vacant.push(place);
            self.open -= 1;
        }
    }
}

/// All of a 2xx answer is there; its length is known from its head.
fn is_whole(answer: &[u8]) -> bool {
    let Some(end) = memchr::memmem::find(answer, b"\r\n\r\n") else {
        return false;
    };
    let head = String::from_utf8_lossy(&answer[..end]).to_ascii_lowercase();
    assert!(head.starts_with("http/1.1 2"), "{head}");
    let length = head.lines().find_map(|line| line.strip_prefix("content-length:"));
    let length: usize = length.expect("its length").trim().parse().unwrap();
    answer.len() >= end + 4 + length
}
