//! What clients send and read: the seed's load, batches, pages; and what operators ask.

use serde_json::json;
use tidegate::metrics::{self as names, Process};

use crate::support::gateway::{Config, Gateway, NOWHERE};
use crate::support::kafka::Kafka;
use crate::support::topics::Message;
use crate::support::{FORM, JSON, SEED_BODY, SEED_VALUE};
use crate::support::{ab, seconds, unique};

cases!["http":
    ten_thousand_posts_of_the_seed_are_ten_thousand_records [Kafka, Ab],
    batches_arrive_whole_with_keys_and_headers [Kafka],
    the_seeds_pages_answer [],
    health_and_metrics_are_on_the_admin_listener_only [],
];

fn ten_thousand_posts_of_the_seed_are_ten_thousand_records() {
    let kafka = Kafka::shared();
    let topic = unique("financial_pro");
    kafka.create_topic(&topic, 1, &[]);
    let mut config = Config::with(kafka);
    config.source("financial_pro", &topic, None);
    let gateway = Gateway::start(&config);
    let folder = tempfile::tempdir().unwrap();
    let report = ab::start(folder.path(), &gateway.ingest).finish_whole();
    assert_eq!(report.seqs, (1..=10_000).collect());

    kafka.wait_for_count(&topic, 10_000, seconds(30));
    gateway.wait_drained(seconds(30));
    let messages = kafka.read_topic(&topic, true);
    assert_eq!(messages.len(), 10_000);
    assert!(
        messages
            .iter()
            .all(|message| message.value == SEED_VALUE && message.key.is_none())
    );
    let seqs: Vec<u64> = messages.iter().map(Message::seq).collect();
    assert_eq!(
        seqs,
        (1..=10_000).collect::<Vec<u64>>(),
        "each once, in the order of the log"
    );
    let received = messages[0].header("tidegate-received").unwrap();
    assert_eq!(messages[0].timestamp_ms.unwrap().to_string(), received);
}

fn batches_arrive_whole_with_keys_and_headers() {
    let kafka = Kafka::shared();
    let topic = unique("batches");
    kafka.create_topic(&topic, 1, &[]);
    let gateway = Gateway::start(&Config::with(kafka));
    let client = gateway.client();
    let path = format!("/v1/topics/{topic}");

    // White space, order and escapes are the client's: the value is kept byte for byte.
    let object = r#"{ "b": 1.0, "a":"\u00e9" }"#;
    let headers = [
        ("content-type", JSON),
        ("tidegate-key", "k1"),
        ("tidegate-header-trace", "abc"),
    ];
    let one = client.post_with(&path, &headers, object.as_bytes()).unwrap();
    let array = client
        .post(&format!("{path}?key=k2"), JSON, br#"[{"i": 1}, {"i":2}]"#)
        .unwrap();
    let lines = "{\"id\":\"x\",\"i\":3}\n{\"id\":\"y\",\"i\":4}\n\n";
    let lines = client
        .post(
            &format!("{path}?key_field=id"),
            "application/x-ndjson",
            lines.as_bytes(),
        )
        .unwrap();
    for (answer, first, last) in [(&one, 1, 1), (&array, 2, 3), (&lines, 4, 5)] {
        assert_eq!(answer.status, 202, "{answer:?}");
        let receipt = answer.json();
        assert_eq!(
            (&receipt["first_seq"], &receipt["last_seq"]),
            (&json!(first), &json!(last))
        );
        assert_eq!(receipt["records"], json!(last - first + 1));
    }

    kafka.wait_for_count(&topic, 5, seconds(30));
    let messages = kafka.read_topic(&topic, true);
    let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).unwrap();
    let values: Vec<String> = messages.iter().map(|message| text(&message.value)).collect();
    let expected = [
        object,
        r#"{"i": 1}"#,
        r#"{"i":2}"#,
        r#"{"id":"x","i":3}"#,
        r#"{"id":"y","i":4}"#,
    ];
    assert_eq!(values, expected);
    let keys: Vec<String> = messages
        .iter()
        .map(|message| text(message.key.as_ref().unwrap()))
        .collect();
    assert_eq!(keys, ["k1", "k2", "k2", "x", "y"]);
    assert_eq!(messages[0].header("trace"), Some("abc"));
    assert_eq!(messages[0].header("content-type"), Some(JSON));
    let wal = one.json()["wal"].as_str().unwrap().to_owned();
    assert!(
        messages
            .iter()
            .all(|message| message.header("tidegate-wal") == Some(&wal))
    );
}

fn the_seeds_pages_answer() {
    let gateway = Gateway::start(&Config::new(NOWHERE));
    let client = gateway.client();
    let root = client.get("/").unwrap();
    assert_eq!((root.status, root.body.as_str()), (200, "Hello World!"));
    assert_eq!(client.get("/hello").unwrap().status, 200);
    let hello = client.get("/hello/%3Cb%3EAda").unwrap();
    assert!(
        hello.status == 200 && hello.body.contains("&lt;b&gt;Ada") && !hello.body.contains("<b>Ada"),
        "{hello:?}"
    );
    let user = client.get("/user/Ada").unwrap();
    assert_eq!((user.status, user.body.as_str()), (200, "hello Mr Ada"));
    let source = client.get("/financial_pro").unwrap();
    assert_eq!(
        (source.status, source.header("allow"), source.body.as_str()),
        (405, "POST", "Methods Error")
    );
    let plain = client.post("/financial_pro", FORM, SEED_BODY.as_bytes()).unwrap();
    assert_eq!((plain.status, plain.body.as_str()), (200, "OK"));
    let headers = [("content-type", FORM), ("accept", JSON)];
    let receipt = client
        .post_with("/financial_pro", &headers, SEED_BODY.as_bytes())
        .unwrap();
    assert_eq!(receipt.json()["first_seq"], json!(2), "{receipt:?}");
}

fn health_and_metrics_are_on_the_admin_listener_only() {
    let gateway = Gateway::start(&Config::new(NOWHERE));
    for path in ["/livez", "/readyz"] {
        let answer = gateway.admin(path).unwrap();
        assert_eq!(
            answer.status, 200,
            "Kafka being away does not matter: {path} {answer:?}"
        );
    }
    let ready = gateway.admin("/readyz").unwrap().json();
    assert!(ready.is_object(), "{ready}");
    let metrics = gateway.admin("/metrics").unwrap();
    assert!(metrics.header("content-type").starts_with("text/plain"), "{metrics:?}");
    // Of those of a lander none: its 0 would be an outage. Of a certificate there is nothing to say without TLS.
    for metric in tidegate::metrics::ALL {
        let is_there = metrics.body.contains(&format!("# HELP {} ", metric.name));
        let is_due = metric.is_of(Process::Gateway) && metric.name != names::HTTP_CERTIFICATE_EXPIRY_TIMESTAMP_SECONDS;
        assert_eq!(is_there, is_due, "{}", metric.name);
    }
    assert_eq!(gateway.metric("tidegate_wal_next_sequence"), 1.0);
    assert!(gateway.status().is_object());
    for path in ["/metrics", "/livez", "/v1/status"] {
        assert_ne!(
            gateway.client().get(path).unwrap().status,
            200,
            "{path} is not for clients"
        );
    }
}
