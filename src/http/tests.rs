//! Both listeners over real sockets, on a real log.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)]

use std::io::{Read as _, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::Mutex;

use metrics_exporter_prometheus::PrometheusBuilder;
use serde_json::Value;
use tempfile::TempDir;
use tokio::runtime::Runtime;
use ureq::Agent;
use ureq::http::Response as Answer;

use super::*;
use crate::forward;
use crate::record::Record;
use crate::wal::{self, Read};

const FORM: &str = "application/x-www-form-urlencoded";
const JSON: &str = "application/json";
const NDJSON: &str = "application/x-ndjson";

struct Running {
    ingest: SocketAddr,
    admin: SocketAddr,
    wal: Wal,
    forward: Arc<Mutex<forward::Status>>,
    agent: Agent,
    _runtime: Runtime,
    _folder: TempDir,
}

pub(super) fn options() -> Options {
    let source = |name: &str, key: Option<&str>| Source {
        name: name.into(),
        topic: Topic::parse(name).unwrap(),
        key: key.map(Into::into),
        demand: None,
    };
    Options {
        gateway_id: "here".into(),
        sources: vec![source("financial_pro", None), source("keyed", Some("id"))],
        topics: vec!["*".into()],
        body_bytes_max: 2 << 20,
        record_bytes_max: 1000,
        records_max: 100_000,
        header_bytes_max: 32 << 10,
        headers_max: 100,
        connections_max: 100,
        in_flight_max: 100,
        header_timeout: Duration::from_secs(10),
        body_timeout: Duration::from_secs(10),
        idle_timeout: Duration::from_secs(60),
        shutdown_timeout: Duration::from_secs(10),
        requests_per_second_max_per_address: 0,
        requests_per_second_max_per_key: 0,
        trusted_proxies: Vec::new(),
        tls: None,
        keys: None,
        admin_token: None,
    }
}

impl Running {
    fn start(options: Options) -> Self {
        Self::start_with_log(options, 1 << 30)
    }

    fn start_with_log(options: Options, wal_bytes_max: u64) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let wal = Wal::open(wal::Options {
            path: folder.path().join("wal"),
            bytes_max: wal_bytes_max,
            free_bytes_min: 0,
            generation_bytes: 64 << 20,
            compression: true,
            retain: wal::Retain::Off,
            linger: Duration::ZERO,
            keys: Default::default(),
        })
        .unwrap();
        let forward = Arc::new(Mutex::new(forward::Status::default()));
        let seen = Arc::clone(&forward);
        let gateway = Gateway::new(
            options,
            wal.clone(),
            Arc::new(move || seen.lock().unwrap().clone()),
            PrometheusBuilder::new().build_recorder().handle(),
            Arc::new(|| 1234),
            Arc::new(Vec::new),
        )
        .unwrap();
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .enable_all()
            .build()
            .unwrap();
        let bind = || TcpListener::bind("127.0.0.1:0").unwrap();
        let (ingest, admin) = (bind(), bind());
        let addresses = (ingest.local_addr().unwrap(), admin.local_addr().unwrap());
        runtime.spawn(serve_ingest(Arc::clone(&gateway), ingest, CancellationToken::new()));
        runtime.spawn(serve_admin(gateway, admin, CancellationToken::new()));
        let config = Agent::config_builder()
            .http_status_as_error(false)
            .timeout_global(Some(Duration::from_secs(20)));
        Self {
            ingest: addresses.0,
            admin: addresses.1,
            wal,
            forward,
            agent: config.build().into(),
            _runtime: runtime,
            _folder: folder,
        }
    }

    fn post_with(&self, path: &str, media: &str, headers: &[(&str, &str)], body: &[u8]) -> (Answer<()>, String) {
        let mut request = self.agent.post(format!("http://{}{path}", self.ingest));
        request = request.header("content-type", media);
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        split(request.send(body).unwrap())
    }

    fn post(&self, path: &str, media: &str, body: &[u8]) -> (u16, String) {
        let (answer, body) = self.post_with(path, media, &[], body);
        (answer.status().as_u16(), body)
    }

    /// The problem document of a refusal; its status must be the answer's.
    fn refused(&self, path: &str, media: &str, body: &[u8]) -> (u16, Value) {
        let (answer, body) = self.post_with(path, media, &[], body);
        assert_eq!(answer.headers()["content-type"], "application/problem+json", "{body}");
        let document: Value = serde_json::from_str(&body).unwrap();
        assert_eq!(document["status"], answer.status().as_u16());
        (answer.status().as_u16(), document)
    }

    fn get(&self, address: SocketAddr, path: &str) -> (Answer<()>, String) {
        split(self.agent.get(format!("http://{address}{path}")).call().unwrap())
    }

    fn records(&self) -> Vec<Record> {
        let mut reader = self.wal.log().reader(1);
        let mut records = Vec::new();
        while let Read::Records(chunk) = reader.read(1 << 20).unwrap() {
            records.extend(chunk.records().map(|(_, record)| record.unwrap().to_record()));
        }
        records
    }
}

fn split(answer: Answer<ureq::Body>) -> (Answer<()>, String) {
    let (parts, mut body) = answer.into_parts();
    (Answer::from_parts(parts, ()), body.read_to_string().unwrap())
}

#[test]
fn form_is_in_the_log_when_its_client_reads_ok() {
    let running = Running::start(options());
    let (answer, body) = running.post_with("/financial_pro", FORM, &[], b"test01=111&test02=222");
    assert_eq!((answer.status().as_u16(), body.as_str()), (200, "OK"));
    assert_eq!(answer.headers()["tidegate-wal"], running.wal.id().to_string());
    assert_eq!(answer.headers()["tidegate-seq"], "1");
    let records = running.records();
    assert_eq!(records.len(), 1);
    assert_eq!(records[0].topic, "financial_pro");
    assert_eq!(
        records[0].value.as_deref(),
        Some(&b"{\"test01\":\"111\",\"test02\":\"222\"}"[..])
    );
    assert_eq!((records[0].key.as_ref(), records[0].received_ms), (None, 1234));
}

#[test]
fn source_gives_a_receipt_on_demand_and_uses_its_key() {
    let running = Running::start(options());
    let accept = [("accept", JSON)];
    let (answer, body) = running.post_with("/keyed", JSON, &accept, br#"{"id": 7}"#);
    assert_eq!(answer.status(), 200);
    let receipt: Value = serde_json::from_str(&body).unwrap();
    assert_eq!(
        receipt,
        serde_json::json!({"wal": running.wal.id().to_string(), "first_seq": 1, "last_seq": 1, "records": 1})
    );
    let key = [("tidegate-key", "mine"), ("tidegate-header-trace", "9")];
    assert_eq!(running.post_with("/keyed", FORM, &key, b"id=8").0.status(), 200);
    let records = running.records();
    assert_eq!(records[0].key.as_deref(), Some(&b"7"[..]));
    assert_eq!(records[0].value.as_deref(), Some(&br#"{"id": 7}"#[..]));
    assert_eq!(records[1].key.as_deref(), Some(&b"mine"[..]));
    assert_eq!(records[1].headers[1], ("trace".into(), b"9".to_vec()));
}

#[test]
fn batch_is_taken_whole_or_not_at_all() {
    let running = Running::start(options());
    let (status, problem) = running.refused("/v1/topics/t", NDJSON, b"{\"a\":1}\n{\"a\":}\n");
    assert_eq!(status, 400);
    assert!(problem["detail"].as_str().unwrap().contains("line 2"));
    let long = format!("[{{}},\"{}\"]", "x".repeat(1000));
    let (status, problem) = running.refused("/v1/topics/t", JSON, long.as_bytes());
    assert_eq!(status, 413);
    assert!(problem["detail"].as_str().unwrap().contains("record 2 "));
    assert!(running.records().is_empty());
    let (status, body) = running.post("/v1/topics/t?key_field=a", JSON, b"[{\"a\":1},{\"a\":null}]");
    assert_eq!(status, 202);
    let receipt: Value = serde_json::from_str(&body).unwrap();
    assert_eq!((&receipt["first_seq"], &receipt["last_seq"]), (&1.into(), &2.into()));
    let keys: Vec<_> = running.records().into_iter().map(|record| record.key).collect();
    assert_eq!(keys, [Some(b"1".to_vec()), None]);
}

#[test]
fn large_batch_comes_out_whole_and_in_order() {
    let running = Running::start(options());
    let lines: Vec<String> = (0..50_000).map(|number| format!("{{\"n\":{number}}}")).collect();
    let (status, body) = running.post("/v1/topics/t", NDJSON, lines.join("\n").as_bytes());
    assert_eq!(status, 202, "{body}");
    let values: Vec<Vec<u8>> = running
        .records()
        .into_iter()
        .filter_map(|record| record.value)
        .collect();
    assert!(values.iter().zip(&lines).all(|(value, line)| value == line.as_bytes()));
    assert_eq!(values.len(), lines.len());
}

#[test]
fn bad_requests_get_their_status_and_store_nothing() {
    let mut options = options();
    options.topics = vec!["open-*".into()];
    let running = Running::start(options);
    for (path, media, body, status) in [
        ("/unknown", FORM, "a=1", 404),
        ("/", FORM, "a=1", 405),
        ("/hello/x/y", FORM, "a=1", 404),
        ("/financial_pro", FORM, "", 400),
        ("/financial_pro", FORM, "a=%4", 400),
        ("/financial_pro", JSON, "{\"a\":", 400),
        ("/financial_pro", JSON, "[{}]", 400),
        ("/financial_pro", "text/plain", "a", 415),
        ("/v1/topics/open-1", "image/png", "a", 415),
        ("/v1/topics/open-1", "text/plain", "", 400),
        ("/v1/topics/open-1?key_field=a", "text/plain", "a", 400),
        ("/v1/topics/open-1", "application/cloudevents+json", "{}", 400),
        ("/v1/topics/open-1?kye=1", JSON, "{}", 400),
        ("/v1/topics/open-1?key=1&key_field=a", JSON, "{}", 400),
        ("/v1/topics/__consumer_offsets", JSON, "{}", 403),
        ("/v1/topics/closed", JSON, "{}", 403),
        ("/v1/topics/a%2Fb", JSON, "{}", 400),
        ("/v1/topics/%ff", JSON, "{}", 400),
    ] {
        assert_eq!(running.refused(path, media, body.as_bytes()).0, status, "{path} {body}");
    }
    let large = vec![b' '; 3 << 20];
    assert_eq!(running.refused("/financial_pro", JSON, &large).0, 413);
    let headers = [("tidegate-header-tidegate-seq", "1")];
    assert_eq!(
        running.post_with("/financial_pro", FORM, &headers, b"a=1").0.status(),
        400
    );
    let headers = [("content-encoding", "gzip")];
    let (answer, _) = running.post_with("/financial_pro", FORM, &headers, b"a=1");
    assert_eq!(answer.status(), 400, "it is not gzip");
    let headers = [("content-encoding", "br")];
    let (answer, _) = running.post_with("/financial_pro", FORM, &headers, b"a=1");
    assert_eq!(
        (answer.status().as_u16(), &answer.headers()["accept-encoding"]),
        (415, &"gzip, deflate, zstd, identity".parse().unwrap())
    );
    let (_, problem) = running.refused("/unknown", FORM, b"a=1");
    assert!(problem["detail"].as_str().unwrap().contains("financial_pro, keyed"));
    assert!(running.records().is_empty());
}

#[test]
fn wrong_method_on_a_source_is_answered_as_ever() {
    let running = Running::start(options());
    let (answer, body) = running.get(running.ingest, "/financial_pro");
    assert_eq!((answer.status().as_u16(), body.as_str()), (405, "Methods Error"));
    assert_eq!(answer.headers()["allow"], "POST");
    let url = format!("http://{}/financial_pro", running.ingest);
    let answer = running.agent.delete(&url).call().unwrap();
    assert_eq!(
        (answer.status().as_u16(), &answer.headers()["allow"]),
        (405, &"POST".parse().unwrap())
    );
    let answer = running.agent.options(&url).call().unwrap();
    assert_eq!(
        (answer.status().as_u16(), &answer.headers()["allow"]),
        (204, &"POST".parse().unwrap())
    );
}

#[test]
fn greetings_greet() {
    let running = Running::start(options());
    assert_eq!(running.get(running.ingest, "/").1, "Hello World!");
    assert_eq!(running.get(running.ingest, "/hello").1, "Hello World!");
    assert_eq!(running.get(running.ingest, "/user/Ada").1, "hello Mr Ada");
    let (answer, page) = running.get(running.ingest, "/hello/%3Ci%3EAda");
    assert_eq!(answer.headers()["content-type"], "text/html; charset=utf-8");
    assert!(page.contains("Hello &lt;i&gt;Ada!"), "{page}");
}

#[test]
fn client_that_goes_away_in_the_middle_stores_nothing() {
    let running = Running::start(options());
    let mut client = TcpStream::connect(running.ingest).unwrap();
    let head =
        "POST /v1/topics/t HTTP/1.1\r\nhost: x\r\ncontent-type: application/x-ndjson\r\ncontent-length: 99\r\n\r\n";
    client.write_all(head.as_bytes()).unwrap();
    client.write_all(b"{\"a\":1}\n{\"a\":2}\n").unwrap();
    drop(client);
    assert_eq!(running.post("/financial_pro", FORM, b"a=1").0, 200);
    assert_eq!(running.records().len(), 1);
}

#[test]
fn overloaded_gateway_says_when_to_come_back_and_still_answers_its_operators() {
    let mut options = options();
    options.in_flight_max = 0;
    let running = Running::start(options);
    let (answer, body) = running.post_with("/financial_pro", FORM, &[], b"a=1");
    assert_eq!(
        (answer.status().as_u16(), &answer.headers()["retry-after"]),
        (503, &"1".parse().unwrap())
    );
    assert!(body.contains("in_flight"));
    assert_eq!(running.get(running.admin, "/livez").0.status(), 200);
    assert_eq!(running.get(running.admin, "/readyz").0.status(), 200);
}

#[test]
fn full_log_is_503_and_not_ready_and_what_was_taken_stays() {
    let running = Running::start_with_log(options(), 1);
    let (status, problem) = running.refused("/financial_pro", FORM, b"a=1");
    assert_eq!(
        (status, &problem["type"]),
        (503, &"urn:tidegate:problem:wal_full".into())
    );
    assert!(problem["retry_after"].as_u64().unwrap() > 0);
    let (answer, body) = running.get(running.admin, "/readyz");
    assert_eq!(answer.status(), 503);
    let parts: Value = serde_json::from_str(&body).unwrap();
    assert_eq!(parts["wal"]["refusing"], true);
    assert!(parts["wal"]["reason"].as_str().unwrap().contains("bytes_max"));
}

#[test]
fn closed_log_is_503() {
    let running = Running::start(options());
    running.wal.close().unwrap();
    assert_eq!(running.refused("/financial_pro", FORM, b"a=1").0, 503);
}

#[test]
fn kafka_away_and_held_topics_are_told_and_do_not_make_it_unready() {
    let running = Running::start(options());
    *running.forward.lock().unwrap() = forward::Status {
        last_error: Some("no broker".into()),
        held_topics: vec![forward::HeldTopic {
            topic: "unknown".into(),
            records: 3,
            reason: "it does not exist".into(),
            since_ms: 1,
        }],
        ..forward::Status::default()
    };
    let (answer, body) = running.get(running.admin, "/readyz");
    assert_eq!(answer.status(), 200);
    let parts: Value = serde_json::from_str(&body).unwrap();
    assert_eq!((&parts["ready"], &parts["kafka"]["up"]), (&true.into(), &false.into()));
    assert_eq!(parts["kafka"]["last_error"], "no broker");
    assert_eq!(parts["held_topics"][0]["topic"], "unknown");
}

#[test]
fn status_shows_the_watermarks() {
    let running = Running::start(options());
    assert_eq!(running.post("/v1/topics/t", JSON, b"[1,2,3]").0, 202);
    let (answer, body) = running.get(running.admin, "/v1/status");
    assert_eq!(answer.status(), 200);
    let status: Value = serde_json::from_str(&body).unwrap();
    assert_eq!(
        (&status["wal"]["committed"], &status["wal"]["backlog_records"]),
        (&3.into(), &3.into())
    );
    assert_eq!(status["gateway"], "here");
    assert_eq!(running.get(running.admin, "/metrics").0.status(), 200);
    let (page, html) = running.get(running.admin, "/");
    assert_eq!(page.headers()["content-type"], "text/html; charset=utf-8");
    assert!(
        page.headers()["content-security-policy"]
            .to_str()
            .unwrap()
            .contains("frame-ancestors 'none'")
    );
    assert!(html.contains("<dd id=\"backlog\">3</dd>"), "{html}");
    assert_eq!(running.get(running.admin, "/nothing").0.status(), 404);
}

#[test]
fn admin_token_guards_everything_but_the_probes() {
    let mut options = options();
    options.admin_token = Some("0123456789abcdef".into());
    let running = Running::start(options);
    for path in ["/", "/metrics", "/v1/status", "/nothing"] {
        let (answer, _) = running.get(running.admin, path);
        assert_eq!(answer.status(), 401, "{path}");
        assert_eq!(answer.headers()["www-authenticate"], "Bearer");
    }
    for path in ["/livez", "/readyz"] {
        assert_eq!(running.get(running.admin, path).0.status(), 200, "{path}");
    }
    let url = format!("http://{}/v1/status", running.admin);
    let token = |token: &str| {
        running
            .agent
            .get(&url)
            .header("authorization", token)
            .call()
            .unwrap()
            .status()
    };
    assert_eq!(token("Bearer 0123456789abcdef"), 200);
    assert_eq!(token("Bearer 0123456789abcdee"), 401);
}

#[test]
fn without_a_token_a_page_of_another_name_reads_nothing() {
    let running = Running::start(options());
    let get = |path: &str, host: &str| {
        let url = format!("http://{}{path}", running.admin);
        running.agent.get(url).header("host", host).call().unwrap().status()
    };
    for path in [
        "/v1/wal/records",
        "/v1/dead-letters?whole=true",
        "/v1/held?limit=1",
        "/",
    ] {
        assert_eq!(get(path, "evil.example"), 403, "{path}");
        assert_eq!(get(path, "localhost:1"), 200, "{path}");
    }
    assert_eq!(get("/readyz", "evil.example"), 200);
}

#[test]
fn bodies_that_do_not_come_leave_the_admin_listener_to_others() {
    let running = Running::start(options());
    let head = format!(
        "POST /v1/wal/records HTTP/1.1\r\nhost: {}\r\ncontent-type: application/json\r\ncontent-length: 100\r\n\r\n",
        running.admin
    );
    // All the connections that the listener takes.
    let stuck: Vec<TcpStream> = (0..64)
        .map(|_| {
            let mut client = TcpStream::connect(running.admin).unwrap();
            client.write_all(head.as_bytes()).unwrap();
            client
        })
        .collect();
    let mut refused = [0, 0];
    for mut client in stuck {
        client.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        let mut status = [0; 12];
        client.read_exact(&mut status).unwrap();
        match &status[..] {
            b"HTTP/1.1 408" => refused[0] += 1, // in a place
            b"HTTP/1.1 503" => refused[1] += 1, // waiting for one
            other => panic!("{}", String::from_utf8_lossy(other)),
        }
    }
    // A place that is given back at the end of everybody's time may still go to one who waited.
    assert_eq!(refused.iter().sum::<i32>(), 64);
    assert!(refused[0] >= 4, "{refused:?}");
    assert_eq!(running.get(running.admin, "/livez").0.status(), 200);
}

#[test]
fn pages_of_the_log_follow_each_other() {
    let running = Running::start(options());
    let lines: Vec<String> = (0..2500).map(|number| format!("{{\"n\":{number}}}")).collect();
    assert_eq!(running.post("/v1/topics/t", NDJSON, lines.join("\n").as_bytes()).0, 202);
    let page = |from: u64| -> Value {
        let (answer, body) = running.get(running.admin, &format!("/v1/wal/records?from_seq={from}&limit=700"));
        assert_eq!(answer.status(), 200, "{body}");
        serde_json::from_str(&body).unwrap()
    };
    let sequences = |page: &Value| -> Vec<u64> {
        let items = page["items"].as_array().unwrap();
        items.iter().map(|item| item["seq"].as_u64().unwrap()).collect()
    };
    // The same ones again, one that goes back, and each page of two questions in turn.
    for from in [1, 701, 1, 701, 1401, 1401, 2101, 350, 1050] {
        let page = page(from);
        let last = (from + 699).min(2500);
        assert_eq!(sequences(&page), (from..=last).collect::<Vec<u64>>());
        assert_eq!(
            (page["next"].as_u64(), &page["end"]),
            (Some(last + 1), &(last == 2500).into())
        );
    }
}
