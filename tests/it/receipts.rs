//! `GET /v1/receipts/{seq}`: each answer against what is in Kafka, in the lane, among the dead letters or nowhere.

use std::thread;
use std::time::Instant;

use serde_json::{Value, json};

use crate::support::gateway::{Config, Gateway, NOWHERE};
use crate::support::kafka::Kafka;
use crate::support::raw::{connect, receive, send};
use crate::support::{JSON, Random, seconds, unique, wait_until};

cases!["receipts":
    a_receipt_says_where_kafka_has_put_the_record [Kafka],
    in_a_transaction_a_receipt_waits_for_its_end [Kafka],
    what_is_held_or_dead_is_not_acknowledged [Kafka],
    a_wait_ends_with_the_ack_its_time_or_the_gateway [Kafka],
    those_who_wait_keep_nobody_from_sending [],
    a_wrong_question_says_what_to_ask [],
    what_is_lost_is_not_acknowledged [Kafka],
];

#[track_caller]
fn post(gateway: &Gateway, topic: &str, body: &str) -> Value {
    let answer = gateway
        .client()
        .post(&format!("/v1/topics/{topic}"), JSON, body.as_bytes())
        .unwrap();
    assert_eq!(answer.status, 202, "{answer:?}");
    answer.json()
}

#[track_caller]
fn receipt(gateway: &Gateway, question: &str) -> Value {
    let answer = gateway.client().get(&format!("/v1/receipts/{question}")).unwrap();
    assert_eq!(
        (answer.status, answer.header("cache-control")),
        (200, "no-store"),
        "{answer:?}"
    );
    answer.json()
}

fn state(gateway: &Gateway, question: &str) -> String {
    receipt(gateway, question)["state"].as_str().unwrap().to_owned()
}

/// What Kafka has is what the receipts say, of each record.
fn check_places(kafka: &Kafka, gateway: &Gateway, topic: &str, wal: &Value, count: usize) {
    let messages = kafka.read_topic(topic, true);
    assert_eq!(messages.len(), count);
    for message in &messages {
        let receipt = receipt(gateway, &message.seq().to_string());
        assert_eq!(
            receipt,
            json!({
                "wal": wal, "seq": message.seq(), "state": "acknowledged",
                "partition": message.partition, "offset": message.offset, "reason": null,
            })
        );
    }
}

fn a_receipt_says_where_kafka_has_put_the_record() {
    let (kafka, topic) = (Kafka::shared(), unique("receipts"));
    kafka.create_topic(&topic, 3, &[]);
    let mut gateway = Gateway::start(&Config::with(kafka));
    let body: Vec<Value> = (0..40).map(|n| json!({"n": n, "k": n.to_string()})).collect();
    let answer = gateway
        .client()
        .post(
            &format!("/v1/topics/{topic}?key_field=k"),
            JSON,
            json!(body).to_string().as_bytes(),
        )
        .unwrap()
        .json();
    let last = answer["last_seq"].to_string();
    assert_eq!(
        state(
            &gateway,
            &format!("{last}?wait=acked&wal={}", answer["wal"].as_str().unwrap())
        ),
        "acknowledged"
    );
    check_places(kafka, &gateway, &topic, &answer["wal"], 40);
    assert_eq!(state(&gateway, "41"), "unknown");
    assert_eq!(state(&gateway, "1?wal=00000000-0000-4000-8000-000000000000"), "unknown");
    // Sent again: where it is now.
    let before = receipt(&gateway, &last)["offset"].as_i64().unwrap();
    let (code, _, errors) = gateway.ask(&["wal", "rewind", "--from-seq", "39", "--yes"]);
    assert_eq!(code, 0, "{errors}");
    let again = receipt(&gateway, &format!("{last}?wait=acked&timeout=30s"));
    assert!(again["offset"].as_i64() > Some(before), "{again}");
    // After a restart nobody knows where, but that.
    gateway.sigterm(seconds(30));
    gateway.restart();
    let after = receipt(&gateway, &last);
    assert_eq!(
        (&after["state"], &after["partition"], &after["offset"]),
        (&json!("acknowledged"), &Value::Null, &Value::Null)
    );
}

fn in_a_transaction_a_receipt_waits_for_its_end() {
    let (kafka, topic) = (Kafka::shared(), unique("receipts-eo"));
    kafka.create_topic(&topic, 1, &[]);
    let mut config = Config::with(kafka);
    config.set("forward.delivery", "exactly_once");
    let gateway = Gateway::start(&config);
    let mut last = Value::Null;
    for n in 0..6 {
        last = post(&gateway, &topic, &json!([{"n": n}, {"n": n}]).to_string());
        let receipt = receipt(&gateway, &format!("{}?wait=acked&timeout=30s", last["last_seq"]));
        assert_eq!(receipt["state"], "acknowledged");
        // What a consumer that reads what is committed sees, at once.
        let seen = kafka.read_topic(&topic, true);
        let message = seen.last().expect("it is committed");
        assert_eq!(
            (json!(message.seq()), json!(message.offset)),
            (last["last_seq"].clone(), receipt["offset"].clone())
        );
    }
    check_places(kafka, &gateway, &topic, &last["wal"], 12);
}

fn what_is_held_or_dead_is_not_acknowledged() {
    let (kafka, missing, small) = (Kafka::shared(), unique("receipts-missing"), unique("receipts-small"));
    kafka.create_topic(&small, 1, &[("max.message.bytes", "20000")]);
    let gateway = Gateway::start(&Config::with(kafka));
    let held = post(&gateway, &missing, r#"{"held":1}"#)["first_seq"].to_string();
    let large = Random::new().text(60_000);
    let dead = post(&gateway, &small, &json!({"large": large}).to_string())["first_seq"].to_string();
    let sent = post(&gateway, &small, r#"{"sent":1}"#)["first_seq"].to_string();
    assert_eq!(
        state(&gateway, &format!("{sent}?wait=acked&timeout=60s")),
        "acknowledged"
    );
    let letter = receipt(&gateway, &format!("{dead}?wait=acked&timeout=60s"));
    assert_eq!(
        (&letter["state"], &letter["partition"]),
        (&json!("dead_lettered"), &Value::Null),
        "{letter}"
    );
    assert!(!letter["reason"].as_str().unwrap().is_empty());
    wait_until("it is held", seconds(60), || state(&gateway, &held) == "held");
    let reason = receipt(&gateway, &held)["reason"].as_str().unwrap().to_owned();
    assert!(reason.contains("create it"), "{reason}");
    // Its topic is made while a client waits.
    let waiting = {
        let (client, path) = (gateway.client(), format!("/v1/receipts/{held}?wait=acked&timeout=60s"));
        thread::spawn(move || client.get(&path).unwrap().json())
    };
    kafka.create_topic(&missing, 1, &[]);
    let released = waiting.join().unwrap();
    assert_eq!(
        (&released["state"], &released["partition"], &released["offset"]),
        (&json!("acknowledged"), &json!(0), &json!(0)),
        "{released}"
    );
    // Its cause is gone, and it is sent again.
    kafka.alter_topic(&small, "max.message.bytes", "1000000");
    let (code, _, errors) = gateway.ask(&["dead-letters", "requeue", "--all"]);
    assert_eq!(code, 0, "{errors}");
    assert_eq!(
        state(&gateway, &format!("{dead}?wait=acked&timeout=60s")),
        "acknowledged"
    );
    assert_eq!(kafka.read_topic(&small, true).len(), 2);
}

fn a_wait_ends_with_the_ack_its_time_or_the_gateway() {
    let kafka = Kafka::private();
    let topic = unique("receipts-wait");
    kafka.create_topic(&topic, 1, &[]);
    let mut gateway = Gateway::start(&Config::with(&kafka));
    kafka.stop();
    let seq = post(&gateway, &topic, "{}")["first_seq"].to_string();
    let began = Instant::now();
    assert_eq!(
        state(&gateway, &format!("{seq}?wait=acked&timeout=1500ms")),
        "committed"
    );
    assert!(
        (seconds(1)..seconds(10)).contains(&began.elapsed()),
        "{:?}",
        began.elapsed()
    );
    let wait = |gateway: &Gateway| {
        let (client, path) = (gateway.client(), format!("/v1/receipts/{seq}?wait=acked&timeout=60s"));
        thread::spawn(move || client.get(&path).unwrap().json()["state"].clone())
    };
    let waiting = wait(&gateway);
    // The gateway goes on to its end without it.
    wait_until("it waits", seconds(10), || {
        gateway.metric("tidegate_ingest_in_flight") == 1.0
    });
    let began = Instant::now();
    gateway.sigterm(seconds(30));
    assert!(began.elapsed() < seconds(25), "{:?}", began.elapsed());
    assert_eq!(waiting.join().unwrap(), "committed");
    gateway.restart();
    let waiting = wait(&gateway);
    kafka.start();
    assert_eq!(waiting.join().unwrap(), "acknowledged");
}

fn those_who_wait_keep_nobody_from_sending() {
    let mut config = Config::new(NOWHERE);
    // A quarter of the connections may wait.
    config.set("http.in_flight_max", 2).set("http.connections_max", 256);
    let gateway = Gateway::start(&config);
    let seq = post(&gateway, "t", "{}")["first_seq"].clone();
    let question = format!("GET /v1/receipts/{seq}?wait=acked&timeout=15s HTTP/1.1\r\nhost: x\r\n\r\n");
    let mut waiting: Vec<_> = (0..64)
        .map(|_| {
            let mut stream = connect(&gateway.ingest);
            assert!(send(&mut stream, question.as_bytes()));
            stream
        })
        .collect();
    // Whoever asked for a receipt meanwhile would take the last one's place.
    wait_until("they all wait", seconds(10), || {
        gateway.metric("tidegate_ingest_in_flight") == 64.0
    });
    // One more finds no place.
    let answer = gateway.client().get(&format!("/v1/receipts/{seq}")).unwrap();
    assert_eq!((answer.status, answer.header("retry-after")), (503, "1"), "{answer:?}");
    for _ in 0..20 {
        post(&gateway, "t", "{}");
    }
    // Their time over, there is room.
    for stream in &mut waiting {
        let answer = receive(stream, seconds(30));
        assert!(answer.contains(r#""state":"committed""#), "{answer}");
    }
    assert_eq!(state(&gateway, &seq.to_string()), "committed");
}

fn a_wrong_question_says_what_to_ask() {
    let gateway = Gateway::start(&Config::new(NOWHERE));
    for (question, why) in [
        ("0", "from 1 on"),
        ("x", "from 1 on"),
        ("-1", "from 1 on"),
        ("18446744073709551616", "from 1 on"),
        ("1?wait=forever", "acked"),
        ("1?wait=acked&timeout=61s", "60 s at most"),
        ("1?wait=acked&timeout=x", "60 s at most"),
        ("1?timeout=1s", "wait=acked"),
        ("1?wal=x", "UUID"),
        ("1?weight=acked", "wait, timeout and wal"),
    ] {
        let answer = gateway.client().get(&format!("/v1/receipts/{question}")).unwrap();
        let detail = answer.json()["detail"].as_str().unwrap_or_default().to_owned();
        assert!(answer.status == 400 && detail.contains(why), "{question}: {answer:?}");
    }
    let wrong = gateway.client().post("/v1/receipts/1", JSON, b"{}").unwrap();
    assert_eq!((wrong.status, wrong.header("allow")), (405, "GET, HEAD"));
    assert_eq!(state(&gateway, "1"), "unknown");
    assert_eq!(state(&gateway, &u64::MAX.to_string()), "unknown");
}

/// A generation is destroyed under a gateway that is down: what was in it is told as lost, and what Kafka had before is not.
fn what_is_lost_is_not_acknowledged() {
    let (kafka, topic) = (Kafka::private(), unique("receipts-lost"));
    kafka.create_topic(&topic, 1, &[]);
    let mut config = Config::with(&kafka);
    config
        .set("wal.generation_bytes", "1 MiB")
        .set("wal.compression", "none");
    let mut gateway = Gateway::start(&config);
    let sent = post(&gateway, &topic, "{}")["first_seq"].to_string();
    assert_eq!(
        state(&gateway, &format!("{sent}?wait=acked&timeout=30s")),
        "acknowledged"
    );
    kafka.stop();
    let headers = [("content-type", JSON), ("idempotency-key", "k-lost")];
    let keyed = |gateway: &Gateway| {
        let answer = gateway
            .client()
            .post_with(&format!("/v1/topics/{topic}"), &headers, br#"{"once":1}"#)
            .unwrap();
        assert_eq!(answer.status, 202, "{answer:?}");
        answer.json()["first_seq"].as_u64().unwrap()
    };
    let lost = keyed(&gateway);
    let large = json!({"large": Random::new().text(500_000)}).to_string();
    let mut last = Value::Null;
    for _ in 0..6 {
        last = post(&gateway, &topic, &large);
    }
    gateway.sigterm(seconds(30));
    let mut generations: Vec<_> = std::fs::read_dir(gateway.wal())
        .unwrap()
        .map(|item| item.unwrap().path())
        .filter(|path| path.file_name().unwrap().to_str().unwrap().starts_with("gen-"))
        .collect();
    generations.sort();
    assert!(generations.len() >= 3, "{generations:?}");
    std::fs::remove_dir_all(&generations[0]).unwrap();
    gateway.restart();
    let receipt_of = |gateway: &Gateway, seq: u64| receipt(gateway, &seq.to_string());
    let told = receipt_of(&gateway, lost);
    assert_eq!(told["state"], "lost", "{told}");
    assert!(told["reason"].as_str().unwrap().contains("send it again"), "{told}");
    // Who does is not told that it is there already.
    let again = keyed(&gateway);
    assert!(again > last["last_seq"].as_u64().unwrap(), "{again}");
    kafka.start();
    assert_eq!(
        state(&gateway, &format!("{again}?wait=acked&timeout=60s")),
        "acknowledged"
    );
    assert_eq!(receipt_of(&gateway, lost)["state"], "lost");
    assert_eq!(state(&gateway, &sent), "acknowledged");
    let once = kafka.read_topic(&topic, true);
    assert_eq!(
        once.iter().filter(|message| message.value == br#"{"once":1}"#).count(),
        1
    );
}
