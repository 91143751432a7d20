//! `Idempotency-Key`: a request that is sent again is answered as before and stored once, whatever happened in between.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::faults::shim::{CHANGES, Plan, take};
use crate::support::client::{Answer, Client};
use crate::support::gateway::{Config, Gateway, NOWHERE, parse_metrics};
use crate::support::kafka::Kafka;
use crate::support::lander::Lander;
use crate::support::raw::{connect, receive, send, status};
use crate::support::store::Store;
use crate::support::topics::{Message, without_repeats};
use crate::support::{FORM, JSON, Random, free_port, poll, seconds, soak, unique, wait_until};

cases!["retries":
    a_request_that_comes_again_is_answered_as_before [Kafka],
    what_is_no_key_is_refused_and_says_why [],
    a_key_of_a_request_under_way_is_a_409 [],
    a_key_survives_a_sigkill [],
    a_key_survives_the_removal_of_its_generation [Kafka],
    clients_of_the_rest_proxy_may_repeat_too [Kafka],
    the_oldest_key_makes_room_and_zero_takes_none [],
    a_kill_at_any_call_costs_no_key [Kafka],
    a_storm_of_retries_and_kills_stores_each_request_once [Kafka],
];

const KEY: &str = "idempotency-key";
const REPLAYED: &str = "idempotency-replayed";

fn post(client: &Client, path: &str, media: &str, key: &str, body: &[u8]) -> Answer {
    let headers = [("content-type", media), (KEY, key)];
    client.post_with(path, &headers, body).unwrap()
}

#[track_caller]
fn assert_replayed(answer: &Answer, first: &Answer) {
    assert_eq!(
        (answer.status, &answer.body, answer.header("tidegate-seq")),
        (first.status, &first.body, first.header("tidegate-seq")),
        "{answer:?}"
    );
    assert_eq!((first.header(REPLAYED), answer.header(REPLAYED)), ("", "true"));
}

fn a_request_that_comes_again_is_answered_as_before() {
    let (kafka, topic) = (Kafka::shared(), unique("again"));
    kafka.create_topic(&topic, 1, &[]);
    let mut config = Config::with(kafka);
    config.source("again", &topic, None);
    let gateway = Gateway::start(&config);
    let (client, path) = (gateway.client(), format!("/v1/topics/{topic}"));
    let batch = br#"[{"n":1},{"n":2},{"n":3}]"#;
    let first = post(&client, &path, JSON, "\"k-1\"", batch);
    assert_eq!((first.status, first.json()["last_seq"].as_u64()), (202, Some(3)));
    assert_replayed(&post(&client, &path, JSON, "\"k-1\"", batch), &first);
    // Bare it is the same key.
    assert_replayed(&post(&client, &path, JSON, "k-1", batch), &first);
    let other = post(&client, &path, JSON, "k-1", br#"[{"n":1}]"#);
    assert_eq!(
        (other.status, other.json()["type"].as_str()),
        (422, Some("urn:tidegate:problem:idempotency_mismatch"))
    );
    // The headers that make the records are part of it.
    let headers = [("content-type", JSON), (KEY, "k-1"), ("tidegate-header-a", "b")];
    assert_eq!(client.post_with(&path, &headers, batch).unwrap().status, 422);
    // Another path is another key.
    let form = post(&client, "/again", FORM, "k-1", b"a=1");
    assert_eq!(
        (form.status, form.body.as_str(), form.header("tidegate-seq")),
        (200, "OK", "4")
    );
    assert_replayed(&post(&client, "/again", FORM, "k-1", b"a=1"), &form);
    let headers = [("content-type", FORM), (KEY, "k-1"), ("accept", JSON)];
    let receipt = client.post_with("/again", &headers, b"a=1").unwrap();
    assert_eq!(receipt.json()["first_seq"], json!(4));
    // One that failed leaves its key free.
    assert_eq!(post(&client, &path, JSON, "k-2", b"{").status, 400);
    assert_eq!(post(&client, &path, JSON, "k-2", b"{}").status, 202);
    kafka.wait_for_count(&topic, 5, seconds(30));
    let messages = kafka.read_topic(&topic, true);
    let keys: Vec<Option<&str>> = messages.iter().map(|message| message.header(KEY)).collect();
    assert_eq!(keys, [Some("k-1"), Some("k-1"), Some("k-1"), Some("k-1"), Some("k-2")]);
    assert_eq!(gateway.metric("tidegate_wal_committed_sequence"), 5.0);
    assert_eq!(gateway.metric("tidegate_ingest_records_total"), 5.0);
    assert_eq!(gateway.metric("tidegate_ingest_replayed_total"), 4.0);
}

fn what_is_no_key_is_refused_and_says_why() {
    let gateway = Gateway::start(&Config::new(NOWHERE));
    let client = gateway.client();
    let long = "k".repeat(256);
    for (key, why) in [
        ("", "empty"),
        ("\"\"", "empty"),
        (&long, "255 bytes"),
        ("a b", "visible ASCII"),
        ("\"a", "closing quote"),
    ] {
        let answer = post(&client, "/v1/topics/t", JSON, key, b"{}");
        let detail = answer.json()["detail"].as_str().unwrap_or_default().to_owned();
        assert!(answer.status == 400 && detail.contains(why), "{key}: {answer:?}");
    }
    let twice = "POST /v1/topics/t HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\nidempotency-key: a\r\nidempotency-key: \
                 b\r\ncontent-length: 2\r\n\r\n{}";
    let mut stream = connect(&gateway.ingest);
    assert!(send(&mut stream, twice.as_bytes()));
    let answer = receive(&mut stream, seconds(10));
    assert!(status(&answer) == 400 && answer.contains("more than once"), "{answer}");
    // In Kafka the header says which key the request had, and nothing else.
    for headers in [
        &[("content-type", JSON), ("tidegate-header-idempotency-key", "k")][..],
        &[
            ("content-type", JSON),
            ("tidegate-header-idempotency-key", "k"),
            (KEY, "k"),
        ],
    ] {
        assert_eq!(client.post_with("/v1/topics/t", headers, b"{}").unwrap().status, 400);
    }
    assert_eq!(gateway.metric("tidegate_wal_committed_sequence"), 0.0);
}

fn a_key_of_a_request_under_way_is_a_409() {
    let gateway = Gateway::start(&Config::new(NOWHERE));
    let client = gateway.client();
    let ask = || post(&client, "/v1/topics/t", JSON, "slow", b"{\"n\":1}");
    let head = "POST /v1/topics/t HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\nidempotency-key: slow\r\ncontent-length: \
                7\r\n\r\n{\"n\"";
    // One that leaves in the middle of its body leaves nothing.
    let mut left = connect(&gateway.ingest);
    assert!(send(&mut left, head.as_bytes()));
    let in_flight = || gateway.metric("tidegate_ingest_in_flight") >= 1.0;
    wait_until("it is under way", seconds(10), in_flight);
    assert_eq!(ask().status, 409);
    drop(left);
    let mut slow = poll("the key is free", seconds(10), || {
        let mut slow = connect(&gateway.ingest);
        assert!(send(&mut slow, head.as_bytes()));
        // A refusal comes at once, before the rest of the body.
        let answer = receive(&mut slow, Duration::from_millis(200));
        answer.is_empty().then_some(slow)
    });
    let answer = ask();
    assert_eq!((answer.status, answer.header("retry-after")), (409, "1"), "{answer:?}");
    assert_eq!(answer.json()["retry_after"], json!(1));
    assert!(send(&mut slow, b":1}"));
    let first = receive(&mut slow, seconds(10));
    assert_eq!(status(&first), 202, "{first}");
    let again = ask();
    assert_eq!((again.status, again.header(REPLAYED)), (202, "true"));
    assert_eq!(gateway.metric("tidegate_wal_committed_sequence"), 1.0);
}

fn a_key_survives_a_sigkill() {
    let mut gateway = Gateway::start(&Config::new(NOWHERE));
    let ask = |gateway: &Gateway, key: &str| post(&gateway.client(), "/v1/topics/t", JSON, key, b"[1,2]");
    let first = ask(&gateway, "a");
    for _ in 0..3 {
        gateway.kill_and_restart();
        assert_replayed(&ask(&gateway, "a"), &first);
    }
    let last = ask(&gateway, "b");
    gateway.kill_and_restart();
    assert_replayed(&ask(&gateway, "b"), &last);
    assert_eq!(gateway.metric("tidegate_wal_committed_sequence"), 4.0);
    gateway.sigkill();
    let wal = gateway.wal();
    let (code, out, _) = gateway.run(&["wal", "verify", "--wal", wal.to_str().unwrap()]);
    assert_eq!(code, 0, "{out}");
    // A damaged file of keys is damage, and no reason not to start.
    let file = wal.join("keys");
    let mut bytes = std::fs::read(&file).unwrap();
    let last = bytes.len() - 1;
    bytes[last] ^= 1;
    std::fs::write(&file, bytes).unwrap();
    let (code, out, err) = gateway.run(&["wal", "verify", "--wal", wal.to_str().unwrap()]);
    assert!(
        code == 3 && format!("{out}{err}").contains("may be stored again"),
        "{code} {out} {err}"
    );
    gateway.restart();
    assert!(gateway.log().contains("may be stored again"), "{}", gateway.log());
}

fn a_key_survives_the_removal_of_its_generation() {
    let (kafka, topic) = (Kafka::shared(), unique("removed"));
    kafka.create_topic(&topic, 1, &[]);
    let mut config = Config::with(kafka);
    config
        .set("wal.generation_bytes", "1 MiB")
        .set("wal.compression", "none");
    let mut gateway = Gateway::start(&config);
    let path = format!("/v1/topics/{topic}");
    let first = post(&gateway.client(), &path, JSON, "a", br#"{"n":1}"#);
    let filler = format!("\"{}\"", "x".repeat(300_000));
    for round in 0..2 {
        wait_until("its generation is removed", seconds(60), || {
            let answer = gateway.client().post(&path, "text/plain", filler.as_bytes()).unwrap();
            assert_eq!(answer.status, 202);
            let names = std::fs::read_dir(gateway.wal()).unwrap();
            let names: Vec<String> = names
                .map(|item| item.unwrap().file_name().to_string_lossy().into_owned())
                .collect();
            let oldest = names.iter().filter(|name| name.starts_with("gen-")).min().unwrap();
            oldest.as_str() > "gen-00000000000000000002" && gateway.metric("tidegate_wal_generations") <= 2.0
        });
        gateway.kill_and_restart();
        assert_replayed(&post(&gateway.client(), &path, JSON, "a", br#"{"n":1}"#), &first);
        if round == 0 {
            // Also after a start that nothing was written after.
            gateway.wait_drained(seconds(60));
            gateway.kill_and_restart();
            gateway.kill_and_restart();
        }
    }
    gateway.wait_drained(seconds(60));
    let messages = kafka.read_topic(&topic, true);
    let stored = without_repeats(&messages)
        .into_iter()
        .filter(|message| message.header(KEY) == Some("a"));
    assert_eq!(stored.count(), 1);
}

fn clients_of_the_rest_proxy_may_repeat_too() {
    let (kafka, topic) = (Kafka::shared(), unique("rest-again"));
    kafka.create_topic(&topic, 1, &[]);
    let mut gateway = Gateway::start(&Config::with(kafka));
    let id = gateway.client().get("/v3/clusters").unwrap().json()["data"][0]["cluster_id"].clone();
    let v2 = (format!("/topics/{topic}"), "application/vnd.kafka.json.v2+json");
    let v3 = (
        format!("/v3/clusters/{}/topics/{topic}/records", id.as_str().unwrap()),
        JSON,
    );
    let v2_body = r#"{"records":[{"value":1},{"value":2}]}"#;
    let v3_body = r#"{"key":{"type":"STRING","data":"k"},"value":{"type":"JSON","data":{"foo":"bar"}}}{"value":{"type":"STRING","data":"abc"}}"#;
    let mut firsts: Vec<Answer> = Vec::new();
    for round in 0..3 {
        let client = gateway.client();
        for (at, ((path, media), body)) in [(&v2, v2_body), (&v3, v3_body)].into_iter().enumerate() {
            let answer = post(&client, path, media, "\"r\"", body.as_bytes());
            assert_eq!(answer.status, 200, "{answer:?}");
            match round {
                0 => firsts.push(answer),
                // Whole, with the time and the sizes that v3 tells.
                _ => assert_replayed(&answer, &firsts[at]),
            }
            let other = post(
                &client,
                path,
                media,
                "r",
                body.replace("abc", "x").replace(":2}", ":3}").as_bytes(),
            );
            assert_eq!(
                (other.status, &other.json()["error_code"]),
                (422, &json!(422)),
                "{other:?}"
            );
        }
        gateway.kill_and_restart();
    }
    assert_eq!(firsts[0].json()["offsets"][1]["seq"], json!(2));
    let lines: Vec<Value> = firsts[1]
        .body
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    assert_eq!((&lines[0]["value"]["size"], &lines[1]["seq"]), (&json!(13), &json!(4)));
    gateway.wait_drained(seconds(60));
    let messages = kafka.read_topic(&topic, true);
    let stored = without_repeats(&messages);
    assert_eq!(stored.len(), 4);
    assert!(stored.iter().all(|message| message.header(KEY) == Some("r")));
}

fn the_oldest_key_makes_room_and_zero_takes_none() {
    let mut config = Config::new(NOWHERE);
    config.set("http.idempotency_keys_max", 2);
    let mut gateway = Gateway::start(&config);
    let ask = |gateway: &Gateway, key: &str| post(&gateway.client(), "/v1/topics/t", JSON, key, b"{}");
    let [_, b, c] = ["a", "b", "c"].map(|key| ask(&gateway, key));
    gateway.kill_and_restart();
    assert_replayed(&ask(&gateway, "b"), &b);
    assert_replayed(&ask(&gateway, "c"), &c);
    let again = ask(&gateway, "a");
    assert_eq!(
        (again.header(REPLAYED), again.json()["first_seq"].as_u64()),
        ("", Some(4))
    );
    gateway.set("http.idempotency_keys_max", 0);
    gateway.kill_and_restart();
    let refused = ask(&gateway, "c");
    assert!(
        refused.status == 400 && refused.body.contains("idempotency_keys_max"),
        "{refused:?}"
    );
    assert_eq!(gateway.client().post("/v1/topics/t", JSON, b"{}").unwrap().status, 202);
}

/// Posts of a run, enough for some rotations; every third is large.
const POSTS: usize = 30;

/// Posts what has not been answered yet, with its key, and what has been once more; false: nobody answers any more.
fn post_all(gateway: &Gateway, path: &str, run: usize, seqs: &mut HashMap<usize, u64>) -> bool {
    let client = gateway.client();
    for number in 0..POSTS {
        let size = if number % 3 == 0 { 150_000 } else { 300 };
        let value = format!("{run}-{number} {}", "x".repeat(size));
        let headers = [("content-type", "text/plain"), (KEY, &format!("{run}-{number}"))];
        // A 503: the log's next file is not made yet.
        let answer = poll("an answer other than 503", seconds(60), || {
            let answer = client.post_with(path, &headers, value.as_bytes());
            answer
                .as_ref()
                .map_or(true, |answer| answer.status != 503)
                .then_some(answer)
        });
        let Ok(answer) = answer else { return false };
        assert_eq!(answer.status, 202, "{answer:?}");
        let seq = answer.json()["first_seq"].as_u64().unwrap();
        let before = *seqs.entry(number).or_insert(seq);
        assert_eq!(before, seq, "request {run}-{number} got two answers");
    }
    true
}

fn a_kill_at_any_call_costs_no_key() {
    let (kafka, topic) = (Kafka::shared(), unique("kill-keys"));
    kafka.create_topic(&topic, 1, &[]);
    let path = format!("/v1/topics/{topic}");
    let mut config = Config::with(kafka);
    config
        .set("wal.generation_bytes", "1 MiB")
        .set("wal.compression", "none");
    // At work, and in the start that follows; how many calls each made.
    let attempt = |run: usize, at: [Option<u64>; 2]| -> [u64; 2] {
        let folder = Arc::new(tempfile::tempdir().unwrap());
        let counter = folder.path().join("count");
        let plan = |at: Option<u64>| Plan {
            calls: CHANGES,
            does: "kill",
            at,
            count: Some(counter.clone()),
            ..Plan::new(&folder.path().join("wal"))
        };
        let made = || u64::from_le_bytes(std::fs::read(&counter).unwrap().try_into().unwrap());
        let mut seqs = HashMap::new();
        let mut config = config.clone();
        plan(at[0]).put(&mut config);
        let work = Gateway::try_start_in(Arc::clone(&folder), &config);
        if let Some(mut gateway) = work {
            // What Kafka has goes, and with it goes its generation; until that is done, or the process has ended.
            if post_all(&gateway, &path, run, &mut seqs) {
                poll("nothing waits, or nobody is there", seconds(60), || {
                    let Ok(scrape) = gateway.admin("/metrics") else {
                        return Some(());
                    };
                    let metrics = parse_metrics(&scrape.body);
                    let marks = ["acked", "committed"].map(|mark| metrics[&format!("tidegate_wal_{mark}_sequence")]);
                    (marks[0] == marks[1]).then_some(())
                });
            }
            gateway.sigkill();
        }
        let of_work = made();
        plan(at[1]).put(&mut config);
        if let Some(mut gateway) = Gateway::try_start_in(Arc::clone(&folder), &config) {
            gateway.sigkill();
        }
        let of_start = made();
        take(&mut config);
        let gateway = Gateway::start_in(folder, &config);
        assert!(post_all(&gateway, &path, run, &mut seqs), "it works again");
        gateway.wait_drained(seconds(60));
        [of_work, of_start]
    };
    let [of_work, of_start] = attempt(0, [None, None]);
    let mut random = Random::new();
    let attempts = if soak() { of_work } else { 24 };
    for run in 1..=attempts {
        let at = if soak() { run } else { random.within(1, of_work + 1) };
        attempt(run as usize, [Some(at), Some(random.within(1, of_start + 1))]);
    }
    let messages = kafka.read_topic(&topic, true);
    let stored = without_repeats(&messages);
    let distinct: HashSet<&[u8]> = stored.iter().map(|message| message.value.as_slice()).collect();
    assert_eq!(
        (stored.len(), distinct.len()),
        ((attempts as usize + 1) * POSTS, distinct.len()),
        "seed {}: each request is stored once",
        random.seed()
    );
    assert_eq!(stored.len(), distinct.len());
    println!("{attempts} kills at one of {of_work} calls at work and one of {of_start} of a start");
}

/// N requests, each sent one to three times by several clients, while the gateway is killed and started again.
fn a_storm_of_retries_and_kills_stores_each_request_once() {
    const CLIENTS: usize = 8;
    let (requests, kills) = if soak() { (100_000, 30) } else { (5_000, 6) };
    let (kafka, topic) = (Kafka::shared(), unique("storm"));
    kafka.create_topic(&topic, 3, &[]);
    let store = Store::sqlite();
    let mut config = store.config(kafka);
    config
        .landed("storm", &topic, &[])
        .set("http.listen", format!("127.0.0.1:{}", free_port()))
        .set("wal.generation_bytes", "1 MiB")
        .set("wal.compression", "none")
        .set("forward.delivery", "exactly_once");
    let mut gateway = Gateway::start(&config);
    let mut lander = Lander::start(&config);
    // The copies of a request near each other, so that some meet under way and some have a kill between them.
    let mut random = Random::new();
    let mut copies: Vec<(u64, usize)> = Vec::new();
    for request in 0..requests {
        for _ in 0..random.within(1, 4) {
            copies.push((request as u64 * 100 + random.within(0, 2_000), request));
        }
    }
    copies.sort_unstable();
    let next = AtomicUsize::new(0);
    let (sent, conflicts) = (AtomicUsize::new(0), AtomicUsize::new(0));
    let began = Instant::now();
    let answers: Vec<(usize, String)> = std::thread::scope(|scope| {
        let clients: Vec<_> = (0..CLIENTS)
            .map(|_| {
                let client = gateway.client();
                let (next, copies, sent, conflicts) = (&next, &copies, &sent, &conflicts);
                scope.spawn(move || {
                    let mut answers = Vec::new();
                    while let Some((_, request)) = copies.get(next.fetch_add(1, Ordering::Relaxed)) {
                        let body = format!(r#"{{"n":{request},"filler":"{}"}}"#, "x".repeat(600));
                        let key = format!("\"storm-{request}\"");
                        let headers = [("content-type", JSON), (KEY, key.as_str())];
                        // As curl --retry does: until it is answered.
                        let seq = poll("an answer", seconds(120), || {
                            sent.fetch_add(1, Ordering::Relaxed);
                            let answer = client.post_with("/storm", &headers, body.as_bytes()).ok()?;
                            match answer.status {
                                200 => Some(answer.header("tidegate-seq").to_owned()),
                                409 => {
                                    conflicts.fetch_add(1, Ordering::Relaxed);
                                    None
                                }
                                503 => None,
                                _ => panic!("{answer:?}"),
                            }
                        });
                        answers.push((*request, seq));
                    }
                    answers
                })
            })
            .collect();
        for kill in 1..=kills {
            let at = copies.len() * kill / (kills + 1);
            wait_until("the storm goes on", seconds(600), || next.load(Ordering::Relaxed) >= at);
            gateway.kill_and_restart();
        }
        clients.into_iter().flat_map(|client| client.join().unwrap()).collect()
    });
    let took = began.elapsed();
    gateway.wait_drained(seconds(300));
    // Each copy of a request got one and the same answer.
    let mut seqs: HashMap<usize, &str> = HashMap::new();
    for (request, seq) in &answers {
        assert_eq!(seqs.entry(*request).or_insert(seq), seq, "request {request}");
    }
    let messages = kafka.read_topic(&topic, true);
    let values: HashSet<&[u8]> = messages
        .iter()
        .map(|message: &Message| message.value.as_slice())
        .collect();
    assert_eq!(
        (messages.len(), values.len()),
        (requests, requests),
        "seed {}",
        random.seed()
    );
    wait_until("everything is landed", seconds(300), || {
        store.count("storm") >= requests
    });
    assert_eq!(lander.sigterm(seconds(30)).code(), Some(0));
    assert_eq!(store.count("storm"), requests);
    let line = format!(
        "evidence: retry storm: {requests} requests with a key each, {} copies, sent {} times by {CLIENTS} clients in {:.0} s, {kills} SIGKILLs, \
         {} answers 409: {} records in Kafka, {} rows in SQLite\n",
        copies.len(),
        sent.load(Ordering::Relaxed),
        took.as_secs_f64(),
        conflicts.load(Ordering::Relaxed),
        messages.len(),
        store.count("storm"),
    );
    std::io::Write::write_all(&mut std::io::stderr(), line.as_bytes()).unwrap();
}
