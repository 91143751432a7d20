//! What devices and clients of other gateways speak: CloudEvents, Confluent's REST Proxy, plain text and bytes, compressed
//! bodies. Each as its own clients send it, and what of it is in Kafka.

use std::io::Write as _;
use std::process::Command;

use serde_json::{Value, json};

use crate::support::client::Answer;
use crate::support::gateway::{Config, Gateway, NOWHERE};
use crate::support::kafka::Kafka;
use crate::support::topics::Message;
use crate::support::{FORM, JSON, python, seconds, unique};

cases!["protocols":
    an_event_is_in_kafka_as_its_binding_says [Kafka],
    the_cloud_events_sdk_for_python_works [Kafka, Python],
    clients_of_the_rest_proxy_v2_work [Kafka],
    clients_of_the_rest_proxy_v3_work [Kafka],
    the_rest_proxys_errors_are_its_own [],
    texts_bytes_and_forms_go_to_topics [Kafka],
    a_compressed_body_is_what_was_compressed [Kafka],
    a_bomb_is_refused_and_costs_no_memory [Alone],
    a_source_that_rejects_says_why_and_stores_nothing [],
    a_trace_goes_on_into_kafka_with_every_record [Kafka],
];

const EVENTS: &str = "application/cloudevents-batch+json";
const EVENT: &str =
    r#"{"specversion":"1.0","id":"7","source":"/pump","type":"level","partitionkey":"p","data":{"mm":17}}"#;

/// A gateway, and a topic of one partition.
fn start(name: &str) -> (&'static Kafka, Gateway, String) {
    let (kafka, topic) = (Kafka::shared(), unique(name));
    kafka.create_topic(&topic, 1, &[]);
    (kafka, Gateway::start(&Config::with(kafka)), topic)
}

#[track_caller]
fn read(kafka: &Kafka, topic: &str, count: u64) -> Vec<Message> {
    kafka.wait_for_count(topic, count, seconds(30));
    kafka.read_topic(topic, true)
}

fn text(message: &Message) -> &str {
    std::str::from_utf8(&message.value).unwrap()
}

fn key(message: &Message) -> &str {
    std::str::from_utf8(message.key.as_deref().unwrap_or_default()).unwrap()
}

fn an_event_is_in_kafka_as_its_binding_says() {
    let (kafka, gateway, topic) = start("events");
    let (client, path) = (gateway.client(), format!("/v1/topics/{topic}"));
    let binary = [
        ("content-type", "application/xml"),
        ("ce-specversion", "1.0"),
        ("ce-id", "7"),
        ("ce-source", "/pump"),
        ("ce-type", "level"),
        ("ce-subject", "Z%C3%BCrich"),
        ("ce-partitionkey", "p"),
    ];
    let by_key = format!("{path}?key_field=partitionkey");
    let answers = [
        client.post_with(&by_key, &binary, b"<mm>17</mm>"),
        client.post_with(&path, &binary[1..], b""),
        client.post(&by_key, "application/cloudevents+json; charset=utf-8", EVENT.as_bytes()),
        client.post(&path, EVENTS, format!("[{EVENT},{EVENT}]").as_bytes()),
    ];
    for answer in answers {
        assert_eq!(answer.unwrap().status, 202);
    }
    let wrong = client
        .post(&path, EVENTS, format!("[{EVENT},{{}}]").as_bytes())
        .unwrap();
    assert!(wrong.status == 400 && wrong.body.contains("element 2"), "{wrong:?}");
    let messages = read(kafka, &topic, 5);
    assert_eq!(text(&messages[0]), "<mm>17</mm>");
    for message in &messages[..2] {
        assert_eq!(message.header("ce_id"), Some("7"));
        assert_eq!(message.header("ce_subject"), Some("Zürich"));
    }
    assert_eq!(messages[0].header("content-type"), Some("application/xml"));
    assert_eq!((text(&messages[1]), messages[1].header("content-type")), ("", None));
    for message in &messages[2..] {
        assert_eq!(text(message), EVENT);
        let media = message.header("content-type").unwrap();
        assert!(media.starts_with("application/cloudevents+json"), "{media}");
    }
    let keys: Vec<&str> = messages.iter().map(key).collect();
    assert_eq!(keys, ["p", "", "p", "", ""]);
}

fn the_cloud_events_sdk_for_python_works() {
    let (kafka, gateway, topic) = start("sdk");
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/python/cloud_events.py");
    let url = format!("http://{}/v1/topics/{topic}?key_field=partitionkey", gateway.ingest);
    let output = Command::new(python()).args([script, &url]).output().unwrap();
    assert!(output.status.success(), "{output:?}");
    let messages = read(kafka, &topic, 2);
    assert_eq!(messages[0].header("ce_id"), Some("1"));
    assert_eq!(messages[0].header("ce_subject"), Some("Zürich \"North\" 100 %"));
    assert_eq!(messages[0].header("ce_time"), Some("2026-05-01T12:34:56Z"));
    assert_eq!(messages[0].header("content-type"), Some("application/json"));
    let data = json!({"level": 17.5, "unit": "mm"});
    assert_eq!(serde_json::from_slice::<Value>(&messages[0].value).unwrap(), data);
    let event: Value = serde_json::from_slice(&messages[1].value).unwrap();
    assert_eq!((&event["id"], &event["data"]), (&json!("2"), &data));
    assert!(messages.iter().all(|message| key(message) == "pump-7"));
}

/// The steps of docs.confluent.io/platform/current/kafka-rest/quickstart.html that produce.
fn clients_of_the_rest_proxy_v2_work() {
    let (kafka, gateway, topic) = start("rest-v2");
    let (client, path) = (gateway.client(), format!("/topics/{topic}"));
    let accept = ("accept", "application/vnd.kafka.v2+json");
    let post = |media: &str, body: &str| -> Answer {
        let headers = [("content-type", media), accept];
        client.post_with(&path, &headers, body.as_bytes()).unwrap()
    };
    let answer = post(
        "application/vnd.kafka.json.v2+json",
        r#"{"records":[{"value":{"foo":"bar"}}]}"#,
    );
    assert_eq!(answer.status, 200, "{answer:?}");
    assert_eq!(answer.header("content-type"), "application/vnd.kafka.v2+json");
    let offset = |seq: u64| json!({"partition": null, "offset": null, "error_code": null, "error": null, "seq": seq});
    let expected = json!({"offsets": [offset(1)], "key_schema_id": null, "value_schema_id": null});
    assert_eq!(answer.json(), expected);
    let answer = post(
        "application/vnd.kafka.binary.v2+json",
        r#"{"records":[{"key":"a2V5","value":"Y29uZmx1ZW50"},{"value":"bG9ncw=="}]}"#,
    );
    assert_eq!(answer.json()["offsets"], json!([offset(2), offset(3)]));
    // An answer of many pieces.
    let many: Vec<Value> = (0..1_203).map(|number| json!({"value": number})).collect();
    let answer = post(
        "application/vnd.kafka.json.v2+json",
        &json!({"records": many}).to_string(),
    );
    let offsets = answer.json()["offsets"].as_array().unwrap().clone();
    assert_eq!(offsets, (4..=1_206).map(offset).collect::<Vec<_>>());
    let messages = read(kafka, &topic, 1_206);
    assert_eq!(text(&messages[0]), r#"{"foo":"bar"}"#);
    assert_eq!((key(&messages[1]), text(&messages[1])), ("key", "confluent"));
    assert_eq!(text(&messages[1_205]), "1202");
}

fn clients_of_the_rest_proxy_v3_work() {
    let (kafka, gateway, topic) = start("rest-v3");
    let client = gateway.client();
    let clusters = client.get("/v3/clusters").unwrap().json();
    assert_eq!(clusters["kind"], "KafkaClusterList");
    let id = clusters["data"][0]["cluster_id"].as_str().unwrap().to_owned();
    let cluster = clusters["data"][0]["metadata"]["self"].as_str().unwrap().to_owned();
    let path = cluster.strip_prefix(&format!("http://{}", gateway.ingest)).unwrap();
    assert_eq!(client.get(path).unwrap().json()["cluster_id"], json!(id));
    let path = format!("{path}/topics/{topic}/records");
    let body = r#"{"key":{"type":"STRING","data":"k"},"value":{"type":"JSON","data":{"foo":"bar"}},
        "headers":[{"name":"trace","value":"YWJj"}]}"#;
    let answer = client.post(&path, JSON, body.as_bytes()).unwrap();
    assert_eq!((answer.status, answer.header("content-type")), (200, JSON));
    let told = answer.json();
    for (name, value) in [
        ("error_code", json!(200)),
        ("cluster_id", json!(id)),
        ("topic_name", json!(topic)),
        ("partition_id", Value::Null),
        ("offset", Value::Null),
        ("key", json!({"type": "STRING", "size": 1})),
        ("value", json!({"type": "JSON", "size": 13})),
        ("seq", json!(1)),
    ] {
        assert_eq!(told[name], value, "{name}");
    }
    assert!(told["timestamp"].as_str().unwrap().ends_with('Z'));
    // Streamed: records one after another, an answer for each.
    let many: String = (0..1_203)
        .map(|number| format!(r#"{{"value":{{"type":"STRING","data":"{number}"}}}}"#))
        .collect();
    let answer = client.post(&path, JSON, many.as_bytes()).unwrap();
    let seqs: Vec<u64> = (answer.body.lines())
        .map(|line| serde_json::from_str::<Value>(line).unwrap()["seq"].as_u64().unwrap())
        .collect();
    assert_eq!(seqs, (2..=1_204).collect::<Vec<u64>>());
    let messages = read(kafka, &topic, 1_204);
    assert_eq!((key(&messages[0]), text(&messages[0])), ("k", r#"{"foo":"bar"}"#));
    assert_eq!(messages[0].header("trace"), Some("abc"));
    assert_eq!(text(&messages[1_203]), "1202");
}

fn the_rest_proxys_errors_are_its_own() {
    let mut config = Config::new(NOWHERE);
    config.set("http.topics", vec!["open"]);
    let gateway = Gateway::start(&config);
    let client = gateway.client();
    let clusters = client.get("/v3/clusters").unwrap().json();
    let id = clusters["data"][0]["cluster_id"].as_str().unwrap();
    let (v2, v3) = ("/topics/open", format!("/v3/clusters/{id}/topics/open/records"));
    let json_v2 = "application/vnd.kafka.json.v2+json";
    for (path, media, body, status, code) in [
        (v2, JSON, "{}", 415, 415),
        (v2, "application/vnd.kafka.avro.v2+json", "{}", 415, 415),
        (v2, json_v2, "{", 400, 400),
        (v2, json_v2, r#"{"records":[]}"#, 422, 422),
        (v2, json_v2, r#"{"records":[{"value":1,"partition":0}]}"#, 422, 422),
        ("/topics/closed", json_v2, "{}", 403, 40301),
        (&v3, "text/plain", "{}", 415, 415),
        (&v3, JSON, "{", 400, 400),
        (&v3, JSON, r#"{"value":{"type":"AVRO","data":1}}"#, 400, 400),
        (&v3, JSON, r#"{"partition_id":1}"#, 422, 422),
        ("/v3/clusters/other/topics/open/records", JSON, "{}", 404, 40401),
        ("/v3/nothing", JSON, "{}", 404, 40401),
        ("/topics/open/partitions", json_v2, "{}", 404, 40401),
        ("/v3/clusters", JSON, "{}", 405, 405),
    ] {
        let answer = client.post(path, media, body.as_bytes()).unwrap();
        let told = answer.json();
        assert_eq!(
            (answer.status, &told["error_code"]),
            (status, &json!(code)),
            "{path} {body}: {answer:?}"
        );
        assert!(!told["message"].as_str().unwrap().is_empty());
    }
    assert_eq!(gateway.metric("tidegate_wal_committed_sequence"), 0.0);
}

fn texts_bytes_and_forms_go_to_topics() {
    let (kafka, gateway, topic) = start("texts");
    let (client, path) = (gateway.client(), format!("/v1/topics/{topic}?key=k"));
    let sent: [(&str, &[u8], &[u8], &str); 3] = [
        (
            "text/csv; charset=latin1",
            b"a;\xe9\n",
            b"a;\xe9\n",
            "text/csv; charset=latin1",
        ),
        (
            "application/octet-stream",
            b"\0\xff",
            b"\0\xff",
            "application/octet-stream",
        ),
        (FORM, b"a=1&b=%C3%A9", r#"{"a":"1","b":"é"}"#.as_bytes(), JSON),
    ];
    for (media, body, ..) in sent {
        assert_eq!(client.post(&path, media, body).unwrap().status, 202, "{media}");
    }
    for (message, (_, _, value, media)) in read(kafka, &topic, 3).iter().zip(sent) {
        assert_eq!(message.value, value);
        assert_eq!((message.header("content-type"), key(message)), (Some(media), "k"));
    }
}

fn compressed(encoding: &str, data: &[u8]) -> Vec<u8> {
    let level = flate2::Compression::default();
    match encoding {
        "gzip" => {
            let mut encoder = flate2::write::GzEncoder::new(Vec::new(), level);
            encoder.write_all(data).unwrap();
            encoder.finish().unwrap()
        }
        "deflate" => {
            let mut encoder = flate2::write::ZlibEncoder::new(Vec::new(), level);
            encoder.write_all(data).unwrap();
            encoder.finish().unwrap()
        }
        _ => zstd::encode_all(data, 3).unwrap(),
    }
}

const ENCODINGS: [&str; 3] = ["gzip", "deflate", "zstd"];

fn a_compressed_body_is_what_was_compressed() {
    let (kafka, gateway, topic) = start("compressed");
    let (client, path) = (gateway.client(), format!("/v1/topics/{topic}"));
    let lines: String = (0..2_000).map(|number| format!("{{\"n\":{number}}}\n")).collect();
    for encoding in ENCODINGS {
        let headers = [("content-type", "application/x-ndjson"), ("content-encoding", encoding)];
        let body = compressed(encoding, lines.as_bytes());
        let answer = client.post_with(&path, &headers, &body).unwrap();
        assert_eq!(
            (answer.status, &answer.json()["records"]),
            (202, &json!(2_000)),
            "{encoding}"
        );
        let answer = client.post_with(&path, &headers, &body[..body.len() / 2]).unwrap();
        assert!(
            answer.status == 400 && answer.body.contains("expanded"),
            "{encoding}: {answer:?}"
        );
    }
    let messages = read(kafka, &topic, 6_000);
    let values: String = messages.iter().map(|message| format!("{}\n", text(message))).collect();
    assert_eq!(values, lines.repeat(3));
}

fn a_bomb_is_refused_and_costs_no_memory() {
    let gateway = Gateway::start(&Config::new(NOWHERE));
    let bomb = vec![b' '; 256 << 20];
    let bombs = ENCODINGS.map(|encoding| (encoding, compressed(encoding, &bomb)));
    drop(bomb);
    let before = gateway.rss_bytes();
    std::thread::scope(|scope| {
        for (encoding, body) in bombs.iter().cycle().take(24) {
            let client = gateway.client();
            scope.spawn(move || {
                let headers = [("content-type", JSON), ("content-encoding", *encoding)];
                let answer = client.post_with("/v1/topics/t", &headers, body).unwrap();
                assert_eq!(answer.status, 413, "{encoding}: {answer:?}");
            });
        }
    });
    // Four at once, each of 16 MiB, in a buffer that doubles.
    let grown = gateway.rss_bytes().saturating_sub(before);
    assert!(grown < 160 << 20, "{grown} bytes");
    assert_eq!(gateway.admin("/livez").unwrap().status, 200);
}

fn a_source_that_rejects_says_why_and_stores_nothing() {
    let mut config = Config::new(NOWHERE);
    let rejects = "fields = ['id', 'amount']\ntypes = ['amount: real']\nenforce = 'reject'";
    config
        .source_with("strict", "t", None, rejects)
        .source_with("counted", "t", None, "field_count = 2\nenforce = 'reject'")
        .source_with("marked", "t", None, "field_count = 2");
    let gateway = Gateway::start(&config);
    let client = gateway.client();
    for (path, media, body, why) in [
        ("/strict", FORM, "id=1", "missing field amount"),
        ("/strict", FORM, "id=1&amount=7&more=x", "unexpected field more"),
        ("/strict", JSON, r#"{"id": "1", "amount": "much"}"#, "amount"),
        ("/counted", FORM, "a=1", "expected 2 fields, got 1"),
    ] {
        let answer = client.post(path, media, body.as_bytes()).unwrap();
        assert_eq!(
            (answer.status, answer.json()["type"].as_str()),
            (422, Some("urn:tidegate:problem:invalid"))
        );
        assert!(answer.json()["detail"].as_str().unwrap().contains(why), "{answer:?}");
    }
    assert_eq!(gateway.metric("tidegate_wal_committed_sequence"), 0.0);
    assert_eq!(
        gateway.metrics()[r#"tidegate_ingest_rejected_total{reason="invalid"}"#],
        4.0
    );
    for (path, media, body) in [
        ("/strict", FORM, "amount=17.5&id=1"),
        ("/strict", JSON, r#"{"id": "1", "amount": 17.5}"#),
        ("/counted", FORM, "a=1&b=2"),
        ("/marked", FORM, "a=1"),
    ] {
        assert_eq!(
            client.post(path, media, body.as_bytes()).unwrap().status,
            200,
            "{path} {body}"
        );
    }
}

fn a_trace_goes_on_into_kafka_with_every_record() {
    const PARENT: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
    const STATE: &str = "congo=t61rcWkgMzE,rojo=00f067aa0ba902b7";
    let (kafka, gateway, topic) = start("traces");
    let (client, path) = (gateway.client(), format!("/v1/topics/{topic}"));
    let trace = [("traceparent", PARENT), ("tracestate", STATE)];
    let json = ("content-type", JSON);
    let v2 = ("content-type", "application/vnd.kafka.json.v2+json");
    let answers = [
        client.post_with(&path, &[json, trace[0], trace[1]], br#"[{"n":1},{"n":2}]"#),
        client.post_with(
            &format!("/topics/{topic}"),
            &[v2, trace[0]],
            br#"{"records":[{"value":{"n":3}}]}"#,
        ),
        // The standard's word for it: as if it had not been sent. The record is.
        client.post_with(&path, &[json, ("traceparent", "00-0-0-01"), trace[1]], br#"{"n":4}"#),
        client.post_with(&path, &[json], br#"{"n":5}"#),
    ];
    for answer in answers {
        let answer = answer.unwrap();
        assert!([200, 202].contains(&answer.status), "{answer:?}");
    }
    let messages = read(kafka, &topic, 5);
    let traces: Vec<_> = messages
        .iter()
        .map(|message| (message.header("traceparent"), message.header("tracestate")))
        .collect();
    let whole = (Some(PARENT), Some(STATE));
    assert_eq!(traces, [whole, whole, (Some(PARENT), None), (None, None), (None, None)]);
}
