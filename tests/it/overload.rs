//! More than the gateway can take: clients, slow clients, records for a full log. It refuses in time and says when to come
//! again; its memory stays bounded, it answers who watches it, and what it answered OK is there.

use std::io::{ErrorKind, Read as _, Write as _};
use std::net::TcpStream;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use crate::support::client::{Answer, agent};
use crate::support::evidence::Evidence;
use crate::support::gateway::{Config, Gateway, NOWHERE};
use crate::support::kafka::Kafka;
use crate::support::ledger::{Ledger, Message, Tally};
use crate::support::load::{outcome, value};
use crate::support::proxy::{Line, Proxy};
use crate::support::{FORM, Random, raw, seconds, soak, unique, wait_until};

cases!["overload":
    more_clients_than_it_can_serve_are_refused_in_time [Alone],
    two_thousand_slow_clients_hold_up_nobody [Files, Alone],
    a_full_log_and_a_full_queue_refuse_and_recover [Kafka, Alone],
    the_largest_bodies_take_their_turns [Alone],
];

/// The most memory that the gateway ever has: the commits on their way, connections, what waits for Kafka.
const MEMORY_BYTES_MAX: u64 = 256 << 20;
/// With the largest bodies, as many at once as come: they, what is made of them, the commit.
const LARGE_MEMORY_BYTES_MAX: u64 = 512 << 20;
/// How long an operator's probe may wait.
const PROBE_MAX: Duration = Duration::from_secs(1);

/// What a client saw: the status, why it was refused, and how long that took.
struct Seen {
    status: u16,
    reason: String,
    took: Duration,
}

/// Clients that post as fast as they are answered, and a probe of their own kind that asks `/livez` all the while.
struct Crowd {
    stop: Arc<AtomicBool>,
    clients: Vec<thread::JoinHandle<Vec<Seen>>>,
    probe: thread::JoinHandle<(u64, Duration)>,
}

impl Crowd {
    /// Client i has a key of its own; each third one sends 20 records a request (2 in a soak: the book is in memory).
    fn start(gateway: &Gateway, ledger: &Arc<Ledger>, topic: &str, clients: usize) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let clients = (0..clients).map(|i| {
            let (address, topic) = (gateway.ingest.clone(), topic.to_owned());
            let (ledger, stop) = (Arc::clone(ledger), Arc::clone(&stop));
            thread::spawn(move || client(&address, &topic, i, &ledger, &stop))
        });
        let clients = clients.collect();
        let (admin, ended) = (gateway.admin.clone(), Arc::clone(&stop));
        let probe = thread::spawn(move || {
            let agent = agent();
            let (mut probes, mut worst) = (0, Duration::ZERO);
            while !ended.load(Ordering::Relaxed) {
                let asked = Instant::now();
                let alive = agent.get(format!("http://{admin}/livez")).call();
                assert_eq!(alive.expect("/livez answers").status(), 200);
                worst = worst.max(asked.elapsed());
                probes += 1;
                thread::sleep(Duration::from_millis(50));
            }
            (probes, worst)
        });
        Self { stop, clients, probe }
    }

    /// Ends them. Refusals said when to come again, and the probe was answered in time throughout.
    #[track_caller]
    fn stop(self) -> Vec<Seen> {
        self.stop.store(true, Ordering::Relaxed);
        let seen: Vec<Vec<Seen>> = self.clients.into_iter().map(|client| client.join().unwrap()).collect();
        let (probes, worst) = self.probe.join().unwrap();
        println!("{probes} probes, the slowest {worst:?}");
        assert!(
            probes > 10 && worst < PROBE_MAX,
            "{probes} probes, the slowest {worst:?}"
        );
        seen.into_iter().flatten().collect()
    }
}

/// One client, until it is stopped.
fn client(address: &str, topic: &str, i: usize, ledger: &Ledger, stop: &AtomicBool) -> Vec<Seen> {
    let records = match i.is_multiple_of(3) {
        true if soak() => 2,
        true => 20,
        false => 1,
    };
    let (mut seen, mut connection, mut epoch) = (Vec::new(), None, 0);
    // What was refused is sent again: taken all the same, it would be there under two identities.
    let mut refused: Option<(Vec<u8>, Vec<usize>)> = None;
    while !stop.load(Ordering::Relaxed) {
        let stream = match &mut connection {
            Some(stream) => stream,
            none => match TcpStream::connect(address) {
                Ok(stream) => none.insert(stream),
                // The test has failed and its gateway is gone.
                Err(_) => break,
            },
        };
        let key = format!("key-{i}-{epoch}");
        let (body, places) = refused.take().unwrap_or_else(|| {
            let values: Vec<Vec<u8>> = (0..records).map(|_| value()).collect();
            let places = values.iter().map(|value| ledger.intend(topic, Some(&key), value));
            (values.join(&b'\n'), places.collect())
        });
        let head = format!(
            "POST /v1/topics/{topic} HTTP/1.1\r\nHost: x\r\nContent-Type: application/x-ndjson\r\ntidegate-key: {key}\r\n\
             Content-Length: {}\r\n\r\n",
            body.len()
        );
        let sent = Instant::now();
        raw::send(stream, &[head.as_bytes(), &body].concat());
        let answer = raw::answer(&raw::receive(stream, seconds(60)));
        if answer.status == 0 {
            // It may be committed yet, behind the next one.
            (connection, epoch) = (None, epoch + 1);
            continue;
        }
        seen.push(judged(&answer, sent.elapsed()));
        for (index, place) in (0..).zip(&places) {
            ledger.settle(*place, outcome(&answer, index));
        }
        if answer.status != 202 {
            refused = Some((body, places));
        }
        if answer.header("connection") == "close" {
            connection = None;
        }
    }
    seen
}

fn judged(answer: &Answer, took: Duration) -> Seen {
    let status = answer.status;
    let mut reason = String::new();
    if status != 202 {
        assert!(matches!(status, 429 | 503), "{answer:?}");
        assert!(
            answer.header("retry-after").parse().is_ok_and(|wait: u32| wait > 0),
            "{answer:?}"
        );
        reason = answer.json()["title"].as_str().unwrap_or_default().to_owned();
    }
    Seen { status, reason, took }
}

/// How long the slowest of those answered OK took, but for one in a hundred; and how many they are.
fn p99(seen: &[Seen]) -> (Duration, usize) {
    let mut took: Vec<Duration> = seen
        .iter()
        .filter(|seen| seen.status == 202)
        .map(|seen| seen.took)
        .collect();
    took.sort_unstable();
    (took[took.len() * 99 / 100], took.len())
}

#[track_caller]
fn assert_memory(gateway: &Gateway, bytes_max: u64) {
    let peak = gateway.peak_memory_bytes();
    println!("at most {} MiB", peak >> 20);
    assert!(peak < bytes_max, "{} MiB", peak >> 20);
}

/// The book against the log of a gateway that does not run.
#[track_caller]
pub fn check_log(gateway: &Gateway, ledger: &Ledger, topic: &str) -> Tally {
    let wal = gateway.wal();
    let (code, lines, errors) = gateway.run(&["wal", "export", "--json", "--wal", wal.to_str().unwrap()]);
    assert_eq!(code, 0, "{errors}");
    let messages = lines.lines().map(|line| {
        let item: serde_json::Value = serde_json::from_str(line).unwrap();
        let text = |name: &str| item[name].as_str().unwrap().as_bytes().to_vec();
        Message {
            partition: 0,
            offset: item["seq"].as_i64().unwrap(),
            timestamp_ms: None,
            key: Some(text("key")),
            value: text("value"),
            headers: vec![
                ("tidegate-wal".to_owned(), text("wal")),
                ("tidegate-seq".to_owned(), item["seq"].to_string().into_bytes()),
            ],
        }
    });
    ledger.check(&[(topic, messages.collect())]).unwrap()
}

fn more_clients_than_it_can_serve_are_refused_in_time() {
    const CLIENTS: usize = 300;
    let topic = unique("crowd");
    let mut config = Config::new(NOWHERE);
    config
        .set("http.in_flight_max", 100)
        .set("wal.generation_bytes", "4 MiB");
    let mut gateway = Gateway::start(&config);
    let ledger = Arc::new(Ledger::default());
    let crowd = Crowd::start(&gateway, &ledger, &topic, CLIENTS);
    thread::sleep(seconds(if soak() { 180 } else { 10 }));
    let seen = crowd.stop();
    let (p99, ok) = p99(&seen);
    let refused = seen.len() - ok;
    println!("{CLIENTS} clients: {ok} requests OK, p99 {p99:?}; {refused} refused");
    assert!(ok > 1000 && refused > 100, "{ok} requests OK, {refused} refused");
    assert!(p99 < seconds(5), "{p99:?}");
    assert_memory(&gateway, MEMORY_BYTES_MAX);
    gateway.sigkill();
    let tally = check_log(&gateway, &ledger, &topic);
    Evidence::of(&tally, CLIENTS as u64).print("more clients than it can serve, as fast as they can");
}

/// Some are refused, and none for long: the memory is given back.
fn the_largest_bodies_take_their_turns() {
    const CLIENTS: usize = 8;
    const LINES: usize = 31;
    let gateway = Gateway::start(&Config::new(NOWHERE));
    let mut random = Random::new();
    let line = |_| format!(r#"{{"text":"{}"}}"#, random.text(500 << 10));
    let body = (0..LINES).map(line).collect::<Vec<_>>().join("\n");
    let until = Instant::now() + seconds(120);
    let post = || loop {
        assert!(Instant::now() < until, "not all were taken in time");
        let answer = gateway
            .client()
            .post("/v1/topics/large", "application/x-ndjson", body.as_bytes())
            .unwrap();
        match answer.status {
            202 => return,
            _ => drop(judged(&answer, Duration::ZERO)),
        }
    };
    thread::scope(|scope| {
        for _ in 0..CLIENTS {
            scope.spawn(|| (0..2).for_each(|_| post()));
        }
    });
    let committed = gateway.metric("tidegate_wal_committed_sequence");
    assert!((committed - (2 * CLIENTS * LINES) as f64).abs() < 0.5, "{committed}");
    assert_memory(&gateway, LARGE_MEMORY_BYTES_MAX);
}

/// Connections that never finish: half send a byte now and then, of a head or of a body; the others stop in the middle.
fn slow(address: &str, i: usize) -> (TcpStream, Vec<u8>) {
    let head = format!("POST /financial_pro HTTP/1.1\r\nHost: x\r\nContent-Type: {FORM}\r\nContent-Length: 5000\r\n");
    let mut stream = raw::connect(address);
    let drip = match i % 4 {
        0 => head.into_bytes(),
        1 => {
            raw::send(&mut stream, format!("{head}\r\n").as_bytes());
            vec![b'a'; 5000]
        }
        2 => {
            raw::send(&mut stream, &head.as_bytes()[..40]);
            Vec::new()
        }
        _ => {
            raw::send(&mut stream, format!("{head}\r\na=").as_bytes());
            Vec::new()
        }
    };
    stream.set_nonblocking(true).unwrap();
    (stream, drip)
}

/// Whether the server has ended the connection: with an answer, or without.
fn has_ended(stream: &mut TcpStream) -> bool {
    let mut buffer = [0; 1024];
    loop {
        match stream.read(&mut buffer) {
            Ok(0) => return true,
            Ok(_) => {}
            Err(error) => return error.kind() != ErrorKind::WouldBlock,
        }
    }
}

fn two_thousand_slow_clients_hold_up_nobody() {
    const SLOW: usize = 2000;
    let topic = unique("slow");
    let mut config = Config::new(NOWHERE);
    config.set("http.header_timeout", "3 s").set("http.body_timeout", "3 s");
    let mut gateway = Gateway::start(&config);
    let ledger = Arc::new(Ledger::default());
    let slow: Vec<_> = (0..SLOW).map(|i| slow(&gateway.ingest, i)).collect();
    let opened = Instant::now();
    let left = Arc::new(Mutex::new(slow));
    let crowd = Crowd::start(&gateway, &ledger, &topic, 16);
    wait_until("the slow clients are ended", seconds(20), || {
        let mut left = left.lock().unwrap();
        left.retain_mut(|(stream, drip)| {
            if let Some(byte) = drip.pop() {
                // Where the server has ended it, the look below says so.
                drop(stream.write(&[byte]));
            }
            !has_ended(stream)
        });
        left.is_empty()
    });
    let ended = opened.elapsed();
    let seen = crowd.stop();
    let (p99, ok) = p99(&seen);
    println!("{SLOW} slow clients ended after {ended:?}; {ok} ordinary requests OK, p99 {p99:?}");
    assert!(ended >= seconds(1), "they were there: {ended:?}");
    assert_eq!(seen.len(), ok, "no ordinary client was refused");
    assert!(ok > 500 && p99 < seconds(1), "{ok} requests OK, p99 {p99:?}");
    assert_memory(&gateway, MEMORY_BYTES_MAX);
    gateway.sigkill();
    let tally = check_log(&gateway, &ledger, &topic);
    Evidence::of(&tally, SLOW as u64).print("2,000 clients that send a byte at a time or never finish");
}

fn a_full_log_and_a_full_queue_refuse_and_recover() {
    let kafka = Kafka::shared();
    let topic = unique("full");
    kafka.create_topic(&topic, 3, &[]);
    // Kafka is away until the line is open; the broker's own address is learned through it.
    let port = kafka.bootstrap().rsplit_once(':').unwrap().1;
    let proxy = Proxy::start(port.parse().unwrap());
    proxy.set(Line::Cut);
    let mut config = Config::new(&format!("127.0.0.1:{}", proxy.port()));
    config
        .set("http.in_flight_max", 8)
        .set("wal.generation_bytes", "1 MiB")
        .set("wal.bytes_max", "8 MiB");
    let gateway = Gateway::start(&config);
    let ledger = Arc::new(Ledger::default());
    let crowd = Crowd::start(&gateway, &ledger, &topic, 60);
    let refused = |reason: &str| {
        let metrics = gateway.metrics();
        metrics
            .get(&format!("tidegate_ingest_rejected_total{{reason=\"{reason}\"}}"))
            .copied()
            .unwrap_or(0.0)
    };
    wait_until("log and queue are full at once", seconds(60), || {
        refused("wal_full") > 500.0 && refused("in_flight") > 500.0
    });
    let full = ledger.ok();
    proxy.set(Line::Open);
    wait_until("with Kafka back, records are taken again", seconds(60), || {
        ledger.ok() > full + full / 2
    });
    let seen = crowd.stop();
    for reason in ["Log full", "Too many requests at once"] {
        assert!(seen.iter().any(|seen| seen.reason == reason), "{reason}");
    }
    let answered: Vec<bool> = seen.iter().map(|seen| seen.status == 202).collect();
    let ok = answered.iter().filter(|ok| **ok).count();
    println!(
        "{ok} requests OK, {} refused; {full} records until the log was full",
        answered.len() - ok
    );
    assert_memory(&gateway, MEMORY_BYTES_MAX);
    gateway.wait_drained(seconds(60));
    let tally = ledger.check(&[(&topic, kafka.read_topic(&topic, true))]).unwrap();
    assert!(tally.ok > full, "{tally:?}");
    Evidence::of(&tally, 1).print("log full and queue full at once, Kafka away and back");
}
