//! What clients do wrong: each mistake has its status and a detail that helps, and harms nobody else.

use std::net::TcpStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use serde_json::json;

use crate::support::client::{Answer, Client};
use crate::support::gateway::{Config, Gateway, NOWHERE, status_number};
use crate::support::kafka::Kafka;
use crate::support::{FORM, JSON, SEED_BODY, SEED_VALUE};
use crate::support::{poll, raw, seconds, unique, wait_until};

cases!["bad_input":
    bad_requests_get_their_status_and_harm_nothing [Kafka],
    a_slow_body_times_out [],
    slow_headers_are_cut_off [],
    header_floods_are_refused [],
    ten_thousand_idle_connections_leave_room_for_a_post [Files, Alone],
];

/// A request that is wrong, and what it must be answered.
struct Wrong {
    what: &'static str,
    path: String,
    headers: Vec<(&'static str, &'static str)>,
    body: Vec<u8>,
    status: u16,
    /// A word that helps: it must be in the detail.
    detail: &'static str,
}

fn wrongs(topic: &str) -> Vec<Wrong> {
    let wrong = |what, path: &str, content_type, body: &[u8], status, detail| Wrong {
        what,
        path: path.to_owned(),
        headers: vec![("content-type", content_type)],
        body: body.to_vec(),
        status,
        detail,
    };
    let source = "/financial_pro";
    let v1 = format!("/v1/topics/{topic}");
    let ndjson = "application/x-ndjson";
    let bad_form = |what, body, word| wrong(what, source, FORM, body, 400, word);
    let bad_json = |what, path, body, word| wrong(what, path, JSON, body, 400, word);
    let large = format!(r#"{{"large":"{}"}}"#, "x".repeat(60_000));
    let larger = vec![b'x'; 200_000];
    let lines = b"{\"a\":1}\n{\"a\":\n{\"a\":3}\n";
    let mut wrongs = vec![
        bad_form("a truncated escape", b"test01=1%4", "%"),
        bad_form("an escape that is not hexadecimal", b"test01=1%zz", "%"),
        bad_form("a form that is not UTF-8 once decoded", b"test01=%ff%fe", "UTF-8"),
        bad_form("a form that is not UTF-8 as it is", b"test01=\xff\xfe", "UTF-8"),
        bad_form("an empty form", b"", "empty"),
        bad_json("invalid JSON", source, br#"{"a":"#, "JSON"),
        bad_json("JSON and more", source, br#"{"a":1} x"#, "JSON"),
        bad_json("JSON that is not UTF-8", source, b"{\"a\":\"\xff\"}", ""),
        bad_json("an array where one record is taken", source, b"[1]", "object"),
        bad_json("invalid JSON to a topic", &v1, b"{'a':1}", "JSON"),
        bad_json("what no topic is named", "/v1/topics/a%20b", b"{}", "topic"),
        wrong("NDJSON with one bad line", &v1, ndjson, lines, 400, "line 2"),
        wrong("no such source", "/no_such_source", FORM, b"a=1", 404, "no_such_source"),
        wrong("an image", source, "image/png", b"\x89PNG", 415, "image/png"),
        wrong("an image to a topic", &v1, "image/png", b"\x89PNG", 415, "image/png"),
        wrong("a large record", &v1, JSON, large.as_bytes(), 413, "record_bytes_max"),
        wrong("a large body", &v1, JSON, &larger, 413, "body_bytes_max"),
    ];
    let mut reserved = wrong("a header that is tidegate's", &v1, JSON, b"{}", 400, "tidegate-");
    reserved.headers.push(("tidegate-header-tidegate-seq", "1"));
    wrongs.push(reserved);
    wrongs
}

/// The answer to a wrong request says so, in the form of RFC 9457.
#[track_caller]
fn assert_problem(what: &str, answer: &Answer, status: u16, word: &str) {
    assert_eq!(answer.status, status, "{what}: {answer:?}");
    assert!(
        answer.header("content-type").starts_with("application/problem+json"),
        "{what}: {answer:?}"
    );
    let problem = answer.json();
    assert_eq!(problem["status"], json!(status), "{what}: {problem}");
    for field in ["type", "title", "detail"] {
        assert!(
            problem[field].as_str().is_some_and(|text| !text.is_empty()),
            "{what}: no {field}: {problem}"
        );
    }
    let detail = problem["detail"].as_str().unwrap();
    assert!(detail.contains(word), "{what}: nothing about {word:?} in {detail:?}");
}

fn bad_requests_get_their_status_and_harm_nothing() {
    let kafka = Kafka::shared();
    let (source, topic) = (unique("source"), unique("topic"));
    kafka.create_topic(&source, 1, &[]);
    kafka.create_topic(&topic, 1, &[]);
    let mut config = Config::with(kafka);
    config
        .set("http.body_bytes_max", "128 KiB")
        .set("http.record_bytes_max", "32 KiB")
        .set("http.body_timeout", "3 s")
        .source("financial_pro", &source, None);
    let gateway = Gateway::start(&config);
    let client = gateway.client();
    let good = |client: &Client| {
        let answer = client.post("/financial_pro", FORM, SEED_BODY.as_bytes()).unwrap();
        assert_eq!((answer.status, answer.body.as_str()), (200, "OK"));
    };
    good(&client);
    for wrong in wrongs(&topic) {
        // ureq may see the connection close before it has sent a large body: the raw client does not care.
        let answer = if wrong.body.len() > 100_000 {
            raw::answer(&raw::exchange(&gateway.ingest, &raw_post(&wrong), seconds(10)))
        } else {
            client.post_with(&wrong.path, &wrong.headers, &wrong.body).unwrap()
        };
        assert_problem(wrong.what, &answer, wrong.status, wrong.detail);
        good(&client);
    }
    wrong_on_the_wire(&gateway);
    let put = raw::exchange(
        &gateway.ingest,
        b"PUT /financial_pro HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n",
        seconds(5),
    );
    assert_eq!(raw::status(&put), 405, "{put}");
    assert!(put.to_ascii_lowercase().contains("allow: post"), "{put}");
    good(&client);

    gateway.wait_drained(seconds(30));
    let messages = kafka.read_topic(&source, true);
    assert_eq!(messages.len(), wrongs(&topic).len() + 2);
    assert!(messages.iter().all(|message| message.value == SEED_VALUE));
    assert_eq!(kafka.count(&topic), Some(0), "nothing of a refused batch is taken");
    assert!(gateway.metric("tidegate_ingest_rejected_total") >= wrongs(&topic).len() as f64);
}

fn raw_post(wrong: &Wrong) -> Vec<u8> {
    let head = format!(
        "POST {} HTTP/1.1\r\nHost: x\r\nContent-Type: {}\r\nContent-Length: {}\r\n\r\n",
        wrong.path,
        wrong.headers[0].1,
        wrong.body.len()
    );
    [head.as_bytes(), &wrong.body].concat()
}

/// What no client library sends.
fn wrong_on_the_wire(gateway: &Gateway) {
    let exchange = |request: &str| raw::exchange(&gateway.ingest, request.as_bytes(), seconds(10));
    let head = "POST /financial_pro HTTP/1.1\r\nHost: x\r\nContent-Type: application/x-www-form-urlencoded\r\n";
    let status_of = |request: String| raw::status(&exchange(&request));

    assert_eq!(status_of("NONSENSE\r\n\r\n".to_owned()), 400);
    assert_eq!(status_of(format!("{head}Content-Length: minus one\r\n\r\n")), 400);
    // A length that is announced and never sent: refused before a byte of it is read.
    assert_eq!(status_of(format!("{head}Content-Length: 99999999999\r\n\r\n")), 413);
    // Without a length: cut off when it passes the limit.
    let chunk = format!("10000\r\n{}\r\n", "x".repeat(0x10000));
    assert_eq!(
        status_of(format!(
            "{head}Transfer-Encoding: chunked\r\n\r\n{}0\r\n\r\n",
            chunk.repeat(4)
        )),
        413
    );
    assert_eq!(
        status_of(format!("{head}Transfer-Encoding: chunked\r\n\r\nnot a chunk\r\n\r\n")),
        400
    );
    // A form that ends before its length: half of a record must not be taken for a whole one.
    let mut stream = raw::connect(&gateway.ingest);
    raw::send(
        &mut stream,
        format!("{head}Content-Length: 43\r\n\r\ntest01=111&te").as_bytes(),
    );
    stream.shutdown(std::net::Shutdown::Write).unwrap();
    let answer = raw::receive(&mut stream, seconds(10));
    assert!(matches!(raw::status(&answer), 0 | 400 | 408), "{answer}");
}

fn a_slow_body_times_out() {
    let mut config = Config::new(NOWHERE);
    config.set("http.body_timeout", "1 s");
    let gateway = Gateway::start(&config);
    let head =
        format!("POST /financial_pro HTTP/1.1\r\nHost: x\r\nContent-Type: {FORM}\r\nContent-Length: 1000\r\n\r\n");
    let started = Instant::now();
    let answer = drip(&gateway.ingest, head.as_bytes(), b"a", seconds(20));
    assert_problem("a slow body", &raw::answer(&answer), 408, "body_timeout");
    assert!(started.elapsed() >= seconds(1));
    assert_eq!(gateway.metric("tidegate_wal_committed_sequence"), 0.0);
}

fn slow_headers_are_cut_off() {
    let mut config = Config::new(NOWHERE);
    config.set("http.header_timeout", "1 s");
    let gateway = Gateway::start(&config);
    let started = Instant::now();
    let answer = drip(
        &gateway.ingest,
        b"POST /financial_pro HTTP/1.1\r\nHost: x\r\n",
        b"X-A: b\r\n",
        seconds(20),
    );
    assert!(matches!(raw::status(&answer), 0 | 408), "{answer}");
    let elapsed = started.elapsed();
    assert!((seconds(1)..seconds(10)).contains(&elapsed), "closed after {elapsed:?}");
}

/// Sends `head`, then `drop` five times a second until the server answers or closes.
fn drip(address: &str, head: &[u8], drop: &[u8], limit: Duration) -> String {
    let mut stream = raw::connect(address);
    raw::send(&mut stream, head);
    let started = Instant::now();
    loop {
        let answer = raw::receive(&mut stream, Duration::from_millis(200));
        if !answer.is_empty() || !raw::send(&mut stream, drop) {
            return answer;
        }
        assert!(started.elapsed() < limit, "the server waits for ever");
    }
}

fn header_floods_are_refused() {
    let gateway = Gateway::start(&Config::new(NOWHERE));
    let head = format!("POST /financial_pro HTTP/1.1\r\nHost: x\r\nContent-Type: {FORM}\r\n");
    let body = format!("Content-Length: {}\r\n\r\n{SEED_BODY}", SEED_BODY.len());
    let many: String = (0..2_000).map(|i| format!("X-{i}: y\r\n")).collect();
    let floods = [
        ("too many", format!("{head}{many}{body}")),
        (
            "too long",
            format!("{head}X-Long: {}\r\n{body}", "y".repeat(100 * 1024)),
        ),
        (
            "without an end",
            format!("{head}X-Long: {}", "y".repeat(4 * 1024 * 1024)),
        ),
        (
            "a target without an end",
            format!("POST /{} HTTP/1.1\r\nHost: x\r\n{body}", "y".repeat(100 * 1024)),
        ),
    ];
    for (what, flood) in floods {
        let answer = raw::exchange(&gateway.ingest, flood.as_bytes(), seconds(15));
        let status = raw::status(&answer);
        assert!(
            status == 431 || (status == 414 && what.contains("target")),
            "{what}: {answer:?}"
        );
    }
    let within = format!(
        "{head}{}{body}",
        (0..50).map(|i| format!("X-{i}: y\r\n")).collect::<String>()
    );
    assert_eq!(
        raw::status(&raw::exchange(&gateway.ingest, within.as_bytes(), seconds(5))),
        200
    );
    assert_eq!(gateway.metric("tidegate_wal_committed_sequence"), 1.0);
}

fn ten_thousand_idle_connections_leave_room_for_a_post() {
    const CONNECTIONS: u64 = 10_000;
    const CONNECTIONS_MAX: usize = 4_096;
    let mut config = Config::new(NOWHERE);
    config
        .set("http.connections_max", i64::try_from(CONNECTIONS_MAX).unwrap())
        .set("http.header_timeout", "3 s")
        .set("http.idle_timeout", "3 s");
    let gateway = Gateway::start(&config);
    let table = status_number(gateway.pid(), "FDSize:");
    assert!(
        table > CONNECTIONS_MAX as u64,
        "the table of files has room for {table}: clients would wait while it grows"
    );
    let address = gateway.ingest.parse().unwrap();
    let (left, give_up) = (Arc::new(AtomicU64::new(CONNECTIONS)), Arc::new(AtomicBool::new(false)));
    // Many at once: when the gateway and the kernel's queue are full, each next one waits.
    let clients: Vec<_> = (0..100)
        .map(|_| {
            let (left, give_up) = (Arc::clone(&left), Arc::clone(&give_up));
            thread::spawn(move || {
                let mut open = Vec::new();
                while !give_up.load(Ordering::Relaxed)
                    && left
                        .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |n| n.checked_sub(1))
                        .is_ok()
                {
                    open.extend(TcpStream::connect_timeout(&address, seconds(30)));
                }
                open
            })
        })
        .collect();
    let (mut most_files, mut most_memory) = (0, 0);
    let mut sample = || {
        let files = std::fs::read_dir(format!("/proc/{}/fd", gateway.pid()))
            .unwrap()
            .count();
        most_files = most_files.max(files);
        most_memory = most_memory.max(gateway.rss_bytes());
        files
    };
    wait_until("the connections come in", seconds(30), || sample() > 1_000);
    // Operators see what is going on all the while: their listener is another one.
    assert_eq!(gateway.admin("/livez").unwrap().status, 200);
    let client = gateway.client();
    let answer = poll("a POST is answered", seconds(60), || {
        sample();
        client.post("/financial_pro", FORM, SEED_BODY.as_bytes()).ok()
    });
    assert!(matches!(answer.status, 200 | 503), "{answer:?}");
    wait_until("the rest of the connections was tried", seconds(120), || {
        sample();
        left.load(Ordering::Relaxed) == 0
    });
    give_up.store(true, Ordering::Relaxed);
    let open: usize = clients.into_iter().map(|client| client.join().unwrap().len()).sum();
    let files = sample();
    println!(
        "{open} connections made; at most {most_files} files (now {files}), {} MiB",
        most_memory >> 20
    );
    assert!(most_files < CONNECTIONS_MAX + 200, "{most_files} open files");
    assert!(most_memory < 200 << 20, "{} MiB", most_memory >> 20);
    wait_until("once they are gone all is as before", seconds(10), || {
        let answer = client.post("/financial_pro", FORM, SEED_BODY.as_bytes());
        answer.is_ok_and(|answer| answer.status == 200)
    });
}
