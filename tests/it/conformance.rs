//! Requests that two servers could read in two ways, and floods of everything that costs a server something: each is refused
//! or bounded, nothing is taken that was not sent as a request of its own, `/livez` answers all the while, and what was
//! answered OK is there. docs/security.md has the counts.

mod cases;

use std::io::{Read as _, Write as _};
use std::net::{Shutdown, TcpStream};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use self::cases::{AMBIGUOUS, CLEAR, NO_REQUESTS, RIGHT};
use crate::support::certificates::Authority;
use crate::support::client::agent;
use crate::support::evidence::Evidence;
use crate::support::gateway::{Config, Gateway, NOWHERE};
use crate::support::h2;
use crate::support::ledger::Ledger;
use crate::support::load::Load;
use crate::support::{raw, seconds, soak, unique, wait_until};

cases!["conformance":
    what_could_be_read_in_two_ways_is_not_taken [],
    requests_that_are_right_however_odd_are_taken [],
    a_request_may_come_in_any_pieces [],
    floods_of_http_1_are_bounded [Files, Alone],
    floods_of_http_2_are_bounded [Alone],
];

/// The most memory that the gateway ever has, whatever strangers send.
const MEMORY_BYTES_MAX: u64 = 256 << 20;
/// How long an operator's probe may wait.
const PROBE_MAX: Duration = Duration::from_secs(1);

/// A whole request to another source: where it is taken, something was smuggled.
const SMUGGLED: &str =
    "POST /smuggled HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: 2\r\n\r\n{}";

fn gateway() -> Gateway {
    let mut config = Config::new(NOWHERE);
    config
        .set("http.header_timeout", "2 s")
        .set("http.body_timeout", "2 s")
        .source("outer", "outer", None)
        .source("smuggled", "smuggled", None);
    Gateway::start(&config)
}

/// The statuses of every answer on one connection, until the server closes it or has said nothing for a while.
fn answers(gateway: &Gateway, request: &[u8]) -> Vec<u16> {
    let mut stream = raw::connect(&gateway.ingest);
    raw::send(&mut stream, request);
    // Whoever waits for more reads that there is none. It may be closed already.
    drop(stream.shutdown(Shutdown::Write));
    stream.set_read_timeout(Some(seconds(10))).unwrap();
    let mut text = Vec::new();
    // A reset is an end, too.
    drop(stream.read_to_end(&mut text));
    let text = String::from_utf8_lossy(&text).into_owned();
    // A detail may speak of HTTP/1.1, too.
    let answers = text.split("HTTP/1.1 ").skip(1);
    answers.filter_map(|answer| answer.get(..3)?.parse().ok()).collect()
}

fn outer(more: &str, body: &str) -> String {
    format!("POST /outer HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n{more}\r\n{body}")
}

/// How many records went to a source.
fn taken(gateway: &Gateway, source: &str) -> f64 {
    let metrics = gateway.metrics();
    let name = format!("tidegate_ingest_records_total{{topic=\"{source}\"}}");
    metrics.get(&name).copied().unwrap_or(0.0)
}

fn what_could_be_read_in_two_ways_is_not_taken() {
    let gateway = gateway();
    let mut wrong = Vec::new();
    let odd = AMBIGUOUS
        .iter()
        .map(|(what, more, body, may)| (*what, outer(more, body) + SMUGGLED, *may));
    let none = NO_REQUESTS
        .iter()
        .chain(CLEAR)
        .map(|(what, request, may)| (*what, (*request).to_owned() + SMUGGLED, *may));
    for (what, request, may) in odd.chain(none) {
        let before = taken(&gateway, "smuggled");
        let said = answers(&gateway, request.as_bytes());
        let smuggled = taken(&gateway, "smuggled") - before;
        let first = said.first().copied().unwrap_or(0);
        let is_clear = CLEAR.iter().any(|(clear, ..)| *clear == what);
        if (!is_clear && (smuggled > 0.0 || said.len() > 1))
            || (is_clear && said.len() > 1 && said.get(1) != Some(&200))
            || !may.contains(&first)
        {
            wrong.push(format!("{what}: answered {said:?}, and {smuggled} were smuggled"));
        }
    }
    println!(
        "{} cases of HTTP/1.1 that two servers could read in two ways",
        AMBIGUOUS.len() + NO_REQUESTS.len() + CLEAR.len()
    );
    assert!(wrong.is_empty(), "{wrong:#?}");
    assert_eq!(gateway.admin("/livez").unwrap().status, 200);
}

fn requests_that_are_right_however_odd_are_taken() {
    let gateway = gateway();
    let mut wrong = Vec::new();
    for (what, before, more, body) in RIGHT {
        let said = answers(&gateway, format!("{before}{}", outer(more, body)).as_bytes());
        if said != [200] {
            wrong.push(format!("{what}: answered {said:?}"));
        }
    }
    let said = answers(
        &gateway,
        (outer("Expect: 100-continue\r\nContent-Length: 2\r\n", "{}")).as_bytes(),
    );
    if said.last() != Some(&200) {
        wrong.push(format!("an expectation: answered {said:?}"));
    }
    // Two requests at once, each whole.
    let said = answers(&gateway, (outer("Content-Length: 2\r\n", "{}") + SMUGGLED).as_bytes());
    assert_eq!(said, [200, 200]);
    assert!(wrong.is_empty(), "{wrong:#?}");
    assert_eq!(taken(&gateway, "outer"), (RIGHT.len() + 2) as f64);
}

/// Requests one behind the other, whatever pieces they come in: of each the first piece is sent with the request before.
fn a_request_may_come_in_any_pieces() {
    let gateway = gateway();
    let lines = "{\"a\":1}\n{\"a\":2}\n";
    let request = format!(
        "POST /v1/topics/pieces HTTP/1.1\r\nHost: x\r\nContent-Type: application/x-ndjson\r\nContent-Length: {}\r\n\r\n{lines}",
        lines.len()
    );
    for cut in 1..request.len() {
        let mut stream = raw::connect(&gateway.ingest);
        let (first, rest) = request.split_at(cut);
        raw::send(&mut stream, format!("{request}{first}").as_bytes());
        let one = raw::receive(&mut stream, seconds(10));
        raw::send(&mut stream, rest.as_bytes());
        let two = raw::receive(&mut stream, seconds(10));
        assert_eq!(
            (raw::status(&one), raw::status(&two)),
            (202, 202),
            "cut at {cut}: {two}"
        );
    }
    assert_eq!(taken(&gateway, "pieces"), 4.0 * (request.len() - 1) as f64);
}

/// What goes on beside a flood: clients who are answered OK, and a probe.
struct Beside {
    gateway: Gateway,
    ledger: Arc<Ledger>,
    topic: String,
    worst: Duration,
}

impl Beside {
    fn start(config: &Config) -> Self {
        let gateway = Gateway::start(config);
        Self {
            gateway,
            ledger: Arc::default(),
            topic: unique("beside"),
            worst: Duration::ZERO,
        }
    }

    /// Lets one flood go on beside ordinary clients of a plain listener, or of none.
    fn during(&mut self, what: &str, with_load: bool, flood: impl FnOnce(&str) + Send) {
        let load = with_load.then(|| Load::start(&self.gateway, &self.ledger, &self.topic, 2));
        let address = self.gateway.ingest.clone();
        let (admin, agent) = (format!("http://{}/livez", self.gateway.admin), agent());
        let began = Instant::now();
        thread::scope(|scope| {
            let flood = scope.spawn(move || flood(&address));
            while !flood.is_finished() {
                let asked = Instant::now();
                assert_eq!(
                    agent.get(&admin).call().expect("/livez answers").status(),
                    200,
                    "{what}"
                );
                self.worst = self.worst.max(asked.elapsed());
                thread::sleep(Duration::from_millis(20));
            }
            flood.join().unwrap();
        });
        if let Some(load) = load {
            load.stop();
        }
        println!(
            "{what}: {:.1} s, at most {} MiB, slowest probe {:?}",
            began.elapsed().as_secs_f64(),
            self.gateway.peak_memory_bytes() >> 20,
            self.worst
        );
        assert!(self.worst < PROBE_MAX, "{what}: {:?}", self.worst);
        assert!(self.gateway.peak_memory_bytes() < MEMORY_BYTES_MAX, "{what}");
    }
}

fn floods_of_http_1_are_bounded() {
    let mut config = Config::new(NOWHERE);
    config
        .set("http.connections_max", 20_000)
        .set("http.header_timeout", "5 s")
        .set("http.body_timeout", "5 s");
    let mut beside = Beside::start(&config);
    beside.during("10,000 connections held", true, |address| {
        let mut held = Vec::new();
        for n in 0..10_000 {
            let mut stream = TcpStream::connect(address).unwrap();
            if n % 2 == 0 {
                // Half a head: it is cut off in time.
                raw::send(&mut stream, b"POST /outer HTTP/1.1\r\nHost:");
            }
            held.push(stream);
        }
        wait_until("they are ended", seconds(60), || {
            held.retain_mut(|stream| {
                stream.set_nonblocking(true).unwrap();
                matches!(stream.read(&mut [0; 1024]), Err(error) if error.kind() == std::io::ErrorKind::WouldBlock)
            });
            held.is_empty()
        });
    });
    let turns = if soak() { 100_000 } else { 20_000 };
    beside.during(&format!("{turns} connections opened in turn"), true, |address| {
        for _ in 0..turns {
            let stream = TcpStream::connect(address).unwrap();
            // It ends with a reset: no port waits for a while.
            socket2::SockRef::from(&stream)
                .set_linger(Some(Duration::ZERO))
                .unwrap();
        }
    });
    beside.during("chunks of a byte with extensions of 8 KiB", true, |address| {
        let mut stream = raw::connect(address);
        let head =
            "POST /v1/topics/x HTTP/1.1\r\nHost: x\r\nContent-Type: text/plain\r\nTransfer-Encoding: chunked\r\n\r\n";
        raw::send(&mut stream, head.as_bytes());
        let chunk = format!("1;{}\r\nx\r\n", "e".repeat(8 << 10));
        let mut sent = 0;
        while sent < 200_000_000 && raw::send(&mut stream, chunk.as_bytes()) {
            sent += chunk.len();
        }
        assert!(sent < 200_000_000, "it is cut off");
    });
    beside.during("trailers without an end", true, |address| {
        let mut stream = raw::connect(address);
        raw::send(
            &mut stream,
            outer("Transfer-Encoding: chunked\r\n", "2\r\n{}\r\n0\r\n").as_bytes(),
        );
        let mut sent = 0;
        while sent < 200_000_000 && raw::send(&mut stream, b"X-Trailer: 0123456789\r\n") {
            sent += 23;
        }
        assert!(sent < 200_000_000, "it is cut off");
    });
    beside.during("100 clients that do not read their answers", true, |address| {
        let streams = (0..100).map(|_| {
            let mut stream = raw::connect(address);
            let request = "GET /v3/clusters HTTP/1.1\r\nHost: x\r\n\r\n".repeat(100);
            stream.set_write_timeout(Some(Duration::from_millis(200))).unwrap();
            for _ in 0..1000 {
                if stream.write_all(request.as_bytes()).is_err() {
                    break;
                }
            }
            stream
        });
        drop(streams.collect::<Vec<_>>());
    });
    let tally = check(beside);
    Evidence::of(&tally, 5).print("floods over HTTP/1.1: connections, chunks, trailers, answers that nobody reads");
}

fn check(mut beside: Beside) -> crate::support::ledger::Tally {
    beside.gateway.sigkill();
    crate::overload::check_log(&beside.gateway, &beside.ledger, &beside.topic)
}

fn floods_of_http_2_are_bounded() {
    let folder = tempfile::tempdir().unwrap();
    let authority = Authority::new("ca");
    let (certificate, key) = authority.issue("127.0.0.1");
    let file = |name: &str, content: &[u8]| {
        let path = folder.path().join(name);
        std::fs::write(&path, content).unwrap();
        path.to_str().unwrap().to_owned()
    };
    let mut config = Config::new(NOWHERE);
    config
        .set("http.tls_certificate_file", file("certificate.pem", &certificate))
        .set("http.tls_key_file", file("key.pem", &key))
        .set("http.header_timeout", "2 s")
        .set("http.body_timeout", "2 s")
        .set("http.idle_timeout", "2 s");
    let mut beside = Beside::start(&config);
    let cluster = beside.gateway.admin("/v1/status").unwrap().json()["wal"]["id"]
        .as_str()
        .unwrap_or_default()
        .to_owned();
    let posts = |address: &str| {
        let mut connection = h2::Connection::open(address);
        for _ in 0..50 {
            assert_eq!(connection.post("/v1/topics/t", br#"{"a":1}"#), 202);
        }
    };
    posts(&beside.gateway.ingest);
    beside.during("requests that are reset at once", false, |address| {
        let mut connection = h2::Connection::open(address);
        let mut sent = 0;
        while sent < 500_000 && connection.open_and_reset() {
            sent += 1;
        }
        assert!(sent < 500_000, "it is ended after so many");
    });
    beside.during("headers without an end", false, |address| {
        let mut connection = h2::Connection::open(address);
        connection.send(h2::HEADERS, 0, 1, &h2::head("/v1/topics/t"));
        let mut sent = 0;
        let piece = h2::literal("x", &"y".repeat(4000));
        while sent < 200_000_000 && connection.send(h2::CONTINUATION, 0, 1, &piece) {
            sent += piece.len();
        }
        assert!(sent < 200_000_000, "it is ended after so much");
    });
    beside.during("empty continuations", false, |address| {
        let mut connection = h2::Connection::open(address);
        connection.send(h2::HEADERS, 0, 1, &h2::head("/v1/topics/t"));
        let mut sent = 0;
        while sent < 5_000_000 && connection.send(h2::CONTINUATION, 0, 1, b"") {
            sent += 1;
        }
        assert!(sent < 5_000_000, "it is ended after so many");
    });
    for (what, kind, payload) in [
        ("settings", h2::SETTINGS, &[0, 4, 0, 0, 255, 255][..]),
        ("pings", h2::PING, &[0; 8]),
    ] {
        beside.during(&format!("{what} whose answers nobody reads"), false, |address| {
            let mut connection = h2::Connection::open(address);
            let mut sent = 0;
            // It stops when what the gateway writes has no room any more, and then nothing more is read.
            while sent < 5_000_000 && connection.send(kind, 0, 0, payload) {
                sent += 1;
            }
        });
    }
    beside.during(
        "streams beyond what may be open, with bodies that never end",
        false,
        |address| {
            let mut connection = h2::Connection::open(address);
            for n in 0..1000 {
                if !connection.send(h2::HEADERS, h2::END_HEADERS, 1 + 2 * n, &h2::head("/v1/topics/t")) {
                    break;
                }
            }
            connection.read_to_end(seconds(60));
        },
    );
    beside.during("bodies of an unread window each", false, |address| {
        let mut connections: Vec<_> = (0..100).map(|_| h2::Connection::open(address)).collect();
        for connection in &mut connections {
            for n in 0..4 {
                connection.send(h2::HEADERS, h2::END_HEADERS, 1 + 2 * n, &h2::head("/v1/topics/t"));
                for _ in 0..4 {
                    connection.send(h2::DATA, 0, 1 + 2 * n, &[b'x'; 16_000]);
                }
            }
        }
        for mut connection in connections {
            connection.read_to_end(seconds(60));
        }
    });
    beside.during("answers that nobody takes", false, |address| {
        let mut connection = h2::Connection::open_without_window(address);
        let began = Instant::now();
        // All of them within the window that a connection has before its other side says more.
        let records = r#"{"value":{"type":"JSON","data":1}}"#.repeat(300);
        let path = format!("/v3/clusters/{cluster}/topics/t/records");
        for n in 0..6 {
            connection.send(h2::HEADERS, h2::END_HEADERS, 1 + 2 * n, &h2::head(&path));
            for piece in records.as_bytes().chunks(16_000) {
                connection.send(h2::DATA, 0, 1 + 2 * n, piece);
            }
            connection.send(h2::DATA, h2::END_STREAM, 1 + 2 * n, b"");
        }
        connection.read_to_end(seconds(60));
        assert!(began.elapsed() > seconds(2), "it was waited for: {:?}", began.elapsed());
    });
    posts(&beside.gateway.ingest);
    wait_until("nothing is in work", seconds(10), || {
        beside.gateway.metric("tidegate_ingest_in_flight") == 0.0
    });
    assert!(
        taken(&beside.gateway, "t") >= 1_900.0,
        "what nobody took the answer of is stored"
    );
    assert!(beside.gateway.metric("tidegate_wal_committed_sequence") >= 100.0);
}
