//! The operators' verbs on dead letters, on the held lane and on the watermark, with a real Kafka: by the command line,
//! through a running gateway and on its folder.

use std::collections::BTreeSet;
use std::thread;

use serde_json::{Value, json};

use crate::support::client::{Answer, Client};
use crate::support::gateway::{Config, Gateway};
use crate::support::kafka::Kafka;
use crate::support::topics::without_repeats;
use crate::support::{JSON, Random, poll, seconds, unique, wait_until};

cases!["operator":
    a_requeued_letter_is_delivered_with_its_identity_also_after_a_kill [Kafka],
    letters_are_listed_exported_and_discarded_online_and_on_the_folder [Kafka],
    held_records_are_discarded_and_redirected_also_after_a_kill [Kafka],
    a_rewind_sends_again_with_identity [Kafka],
    operators_are_answered_while_kafka_is_away [OwnKafka],
    operators_are_answered_after_a_start_without_kafka [OwnKafka],
    what_is_wrong_with_a_verb_is_said_and_nothing_is_done [Kafka],
];

const NDJSON: &str = "application/x-ndjson";

/// Posts records of these values with one key; gives the first sequence.
fn post(gateway: &Gateway, topic: &str, values: &[String]) -> u64 {
    let path = format!("/v1/topics/{topic}?key=k");
    let body = values.join("\n");
    let answer = gateway.client().post(&path, NDJSON, body.as_bytes()).unwrap();
    assert_eq!(answer.status, 202, "{answer:?}");
    answer.json()["first_seq"].as_u64().unwrap()
}

fn large() -> String {
    format!(r#"{{"x":"{}"}}"#, Random::new().text(60_000))
}

fn numbered(count: usize) -> Vec<String> {
    (0..count).map(|n| format!(r#"{{"n":{n}}}"#)).collect()
}

fn verb(gateway: &Gateway, path: &str, body: &Value) -> Answer {
    let client = Client::new(&gateway.admin);
    client.post(path, JSON, body.to_string().as_bytes()).unwrap()
}

fn done(gateway: &Gateway, path: &str, body: &Value) -> Value {
    let answer = verb(gateway, path, body);
    assert_eq!(answer.status, 200, "{answer:?}");
    answer.json()
}

fn letters(gateway: &Gateway) -> Vec<Value> {
    let answer = gateway.admin("/v1/dead-letters").unwrap();
    assert_eq!(answer.status, 200, "{answer:?}");
    answer.json()["items"].as_array().unwrap().clone()
}

fn wait_for_letters(gateway: &Gateway, count: usize) {
    wait_until(format_args!("{count} dead letters"), seconds(60), || {
        gateway.metric("tidegate_dead_letters") == count as f64 && letters(gateway).len() == count
    });
}

/// A gateway with a topic that takes no record above 20 kB.
fn small_topic(name: &str) -> (&'static Kafka, String, Gateway) {
    let kafka = Kafka::shared();
    let topic = unique(name);
    kafka.create_topic(&topic, 1, &[("max.message.bytes", "20000")]);
    (kafka, topic, Gateway::start(&Config::with(kafka)))
}

fn lines(text: &str) -> Vec<Value> {
    text.lines()
        .map(|line| serde_json::from_str(line).expect("a line of JSON"))
        .collect()
}

fn a_requeued_letter_is_delivered_with_its_identity_also_after_a_kill() {
    let (kafka, topic, mut gateway) = small_topic("requeue");
    let value = large();
    let seq = post(&gateway, &topic, &[r#"{"before":1}"#.to_owned(), value.clone()]) + 1;
    wait_for_letters(&gateway, 1);
    let first = letters(&gateway).remove(0);
    assert_eq!(
        (&first["seq"], &first["state"], &first["key"]),
        (&json!(seq), &json!("waiting"), &json!("k"))
    );
    assert_eq!(first["code"], "MessageSizeTooLarge", "{first}");

    // The cause is still there: it comes back, and when it first failed is not forgotten.
    let all = json!({"all": true});
    assert_eq!(done(&gateway, "/v1/dead-letters/requeue", &all), json!({"requeued": 1}));
    let again = poll("the letter is back", seconds(60), || {
        let letter = letters(&gateway).pop()?;
        (letter["state"] == "waiting" && letter["last_failed_ms"] != first["last_failed_ms"]).then_some(letter)
    });
    assert_eq!(again["first_failed_ms"], first["first_failed_ms"], "{again}");
    assert_eq!(gateway.metric("tidegate_dead_letters"), 1.0);

    // A crash between a requeue and the delivery.
    kafka.alter_topic(&topic, "max.message.bytes", "1000000");
    let one = json!({"letters": [{"wal": first["wal"], "seq": seq}]});
    assert_eq!(done(&gateway, "/v1/dead-letters/requeue", &one), json!({"requeued": 1}));
    gateway.kill_and_restart();
    wait_for_letters(&gateway, 0);
    gateway.wait_drained(seconds(30));
    let messages = kafka.read_topic(&topic, true);
    let delivered = messages
        .iter()
        .find(|message| message.seq() == seq)
        .expect("it is in Kafka");
    assert_eq!(delivered.value, value.as_bytes());
    assert_eq!(delivered.identity().unwrap().0, first["wal"]);
    assert!(
        messages.iter().all(|message| message.seq() <= seq),
        "no identity of its own"
    );
    // Gone for good.
    gateway.kill_and_restart();
    wait_for_letters(&gateway, 0);
}

fn letters_are_listed_exported_and_discarded_online_and_on_the_folder() {
    let (kafka, topic, mut gateway) = small_topic("letters");
    let values: Vec<String> = (0..3).map(|_| large()).collect();
    let first = post(&gateway, &topic, &values);
    wait_for_letters(&gateway, 3);
    let (code, online, errors) = gateway.ask(&["dead-letters", "list", "--json"]);
    assert_eq!((code, lines(&online).len()), (0, 3), "{errors}");
    let (code, table, _) = gateway.ask(&["dead-letters", "list", "--topic", &topic, "--limit", "2"]);
    assert_eq!((code, table.lines().count()), (0, 3), "{table}");
    assert!(table.contains("MessageSizeTooLarge"), "{table}");
    let (code, shown, errors) = gateway.ask(&["dead-letters", "show", &first.to_string()]);
    assert!(
        code == 0 && shown.contains(&values[0]) && shown.contains("first failed"),
        "{errors}{shown}"
    );
    let (code, exported, errors) = gateway.ask(&["dead-letters", "export"]);
    assert_eq!(code, 0, "{errors}");
    let exported = lines(&exported);
    let texts: Vec<&str> = exported.iter().map(|line| line["value"].as_str().unwrap()).collect();
    assert_eq!(texts, values);

    // Asked first, then done.
    let last = (first + 2).to_string();
    let (code, _, errors) = gateway.ask(&["dead-letters", "discard", &last]);
    assert!(
        code == 2 && errors.contains("1 dead letter would be removed"),
        "{code} {errors}"
    );
    wait_for_letters(&gateway, 3);
    let (code, text, errors) = gateway.ask(&["dead-letters", "discard", &last, "--yes", "--json"]);
    assert_eq!((code, text.trim()), (0, r#"{"discarded":1}"#), "{errors}");
    wait_for_letters(&gateway, 2);

    // A folder in use is told; the same is seen in it afterwards.
    let wal = gateway.wal();
    let offline = ["--wal", wal.to_str().unwrap()];
    let (code, _, errors) = gateway.run(&[&["dead-letters", "list"], &offline[..]].concat());
    assert!(code == 4 && errors.contains("--admin"), "{code} {errors}");
    let (_, online, _) = gateway.ask(&["dead-letters", "list", "--json"]);
    assert!(gateway.sigterm(seconds(30)).success());
    let (code, text, errors) = gateway.run(&[&["dead-letters", "list", "--json"], &offline[..]].concat());
    assert_eq!((code, text), (0, online), "{errors}");
    let (code, shown, _) =
        gateway.run(&[&["dead-letters", "show", &first.to_string(), "--json"], &offline[..]].concat());
    assert_eq!((code, lines(&shown).remove(0)), (0, exported[0].clone()));
    let second = (first + 1).to_string();
    let (code, _, errors) = gateway.run(&[&["dead-letters", "discard", &second], &offline[..]].concat());
    assert!(
        code == 2 && errors.contains("1 dead letter would be removed"),
        "{code} {errors}"
    );
    let (code, text, errors) =
        gateway.run(&[&["dead-letters", "discard", "--yes", "--json", &second], &offline[..]].concat());
    assert_eq!((code, text.trim()), (0, r#"{"discarded":1}"#), "{errors}");
    kafka.alter_topic(&topic, "max.message.bytes", "1000000");
    let (code, text, errors) = gateway.run(&[&["dead-letters", "requeue", "--all", "--json"], &offline[..]].concat());
    assert_eq!((code, text.trim()), (0, r#"{"requeued":1}"#), "{errors}");
    let (_, text, _) = gateway.run(&[&["dead-letters", "list", "--json"], &offline[..]].concat());
    assert_eq!(lines(&text)[0]["state"], "requeued");
    gateway.restart();
    wait_for_letters(&gateway, 0);
    let delivered: BTreeSet<u64> = kafka
        .read_topic(&topic, true)
        .iter()
        .map(|message| message.seq())
        .collect();
    assert_eq!(delivered, BTreeSet::from([first]));
}

fn held_topics(gateway: &Gateway) -> Vec<(String, u64)> {
    let held = gateway.admin("/v1/held").unwrap().json();
    let topic = |topic: &Value| Some((topic["topic"].as_str()?.to_owned(), topic["records"].as_u64()?));
    held["topics"].as_array().unwrap().iter().filter_map(topic).collect()
}

fn held_records(gateway: &Gateway, topic: &str) -> Vec<Value> {
    let (code, text, errors) = gateway.ask(&["held", "list", "--topic", topic, "--limit", "0", "--json"]);
    assert_eq!(code, 0, "{errors}");
    lines(&text)
}

fn held_records_are_discarded_and_redirected_also_after_a_kill() {
    const RECORDS: usize = 50_000;
    let kafka = Kafka::shared();
    let (missing, other, there) = (unique("held-missing"), unique("held-other"), unique("held-there"));
    kafka.create_topic(&there, 1, &[]);
    let mut gateway = Gateway::start(&Config::with(kafka));
    let values = numbered(RECORDS);
    let mut first = u64::MAX;
    for part in values.chunks(2_000) {
        first = first.min(post(&gateway, &missing, part));
        post(&gateway, &other, &numbered(50));
    }
    let held = |gateway: &Gateway| gateway.metric("tidegate_held_records") as usize;
    wait_until("all of it is held", seconds(60), || held(&gateway) == RECORDS + 1_250);
    let mut topics = held_topics(&gateway);
    topics.sort();
    let mut expected = [(missing.clone(), RECORDS as u64), (other.clone(), 1_250)];
    expected.sort();
    assert_eq!(topics, expected);
    assert_eq!(held_records(&gateway, &other).len(), 1_250);
    let (code, _, errors) = gateway.ask(&["held", "redirect", "--topic", &missing, "--to", &there]);
    assert!(code == 2 && errors.contains("50000 held records"), "{code} {errors}");

    // Killed in the middle, wherever that is: begun again it is finished.
    let mut unfinished = 0;
    for _ in 0..3 {
        let client = Client::new(&gateway.admin);
        let body = json!({"topic": missing, "to": there}).to_string();
        let committed = gateway.metric("tidegate_wal_committed_sequence");
        let redirect = thread::spawn(move || client.post("/v1/held/redirect", JSON, body.as_bytes()).is_ok());
        wait_until("records are on their way", seconds(30), || {
            gateway.metric("tidegate_wal_committed_sequence") > committed
        });
        gateway.sigkill();
        redirect.join().unwrap();
        gateway.restart();
        wait_until("the forwarder works again", seconds(60), || {
            gateway.metric("tidegate_forward_broker_up") == 1.0
        });
        let left = held_topics(&gateway).into_iter().find(|(topic, _)| *topic == missing);
        if left.is_none_or(|(_, records)| records == 0) {
            break;
        }
        unfinished += 1;
    }
    assert!(unfinished > 0, "no kill came in the middle of a redirect");
    let answer = verb(&gateway, "/v1/held/redirect", &json!({"topic": missing, "to": there}));
    assert_eq!(answer.status, 200, "{answer:?}");
    wait_until("none of it is held", seconds(60), || held(&gateway) == 1_250);
    gateway.wait_drained(seconds(60));
    assert_eq!(held_topics(&gateway), [(other.clone(), 1_250)]);
    let messages = kafka.read_topic(&there, true);
    let arrived = without_repeats(&messages);
    let texts: Vec<&str> = arrived
        .iter()
        .map(|message| std::str::from_utf8(&message.value).unwrap())
        .collect();
    assert_eq!(texts.len(), RECORDS);
    assert!(texts == values, "in order");
    assert_eq!(arrived[0].seq(), first, "with the identity they had");

    // The other topic waits in order, as before; then it is given up.
    let waiting: Vec<u64> = held_records(&gateway, &other)
        .iter()
        .map(|record| record["seq"].as_u64().unwrap())
        .collect();
    assert!(waiting.len() == 1_250 && waiting.is_sorted(), "{waiting:?}");
    let (code, text, errors) = gateway.ask(&["held", "discard", "--topic", &other, "--yes", "--json"]);
    assert_eq!((code, text.trim()), (0, r#"{"discarded":1250}"#), "{errors}");
    wait_until("nothing is held", seconds(30), || held(&gateway) == 0);
    assert!(gateway.sigterm(seconds(30)).success());
    let wal = gateway.wal();
    let (code, text, errors) = gateway.run(&["held", "list", "--json", "--wal", wal.to_str().unwrap()]);
    assert_eq!((code, text.as_str()), (0, ""), "{errors}");
}

fn a_rewind_sends_again_with_identity() {
    let kafka = Kafka::shared();
    let topic = unique("rewind");
    kafka.create_topic(&topic, 1, &[]);
    let mut config = Config::with(kafka);
    config.set("wal.retain", "1 GiB");
    let mut gateway = Gateway::start(&config);
    assert_eq!(post(&gateway, &topic, &numbered(300)), 1);
    gateway.wait_drained(seconds(30));
    let (code, _, errors) = gateway.ask(&["wal", "rewind", "--from-seq", "101"]);
    assert!(code == 2 && errors.contains("200 records again"), "{code} {errors}");
    let (code, text, errors) = gateway.ask(&["wal", "rewind", "--from-seq", "101", "--yes", "--json"]);
    assert_eq!(code, 0, "{errors}");
    assert_eq!(lines(&text)[0]["again"], 200, "{text}");
    kafka.wait_for_count(&topic, 500, seconds(30));
    gateway.wait_drained(seconds(30));
    let order = |from: u64| (1..=300).chain(from..=300);
    let seqs: Vec<u64> = kafka
        .read_topic(&topic, true)
        .iter()
        .map(|message| message.seq())
        .collect();
    assert_eq!(seqs, order(101).collect::<Vec<_>>());

    // On the folder: what the next start finds in Kafka is sent again all the same.
    assert!(gateway.sigterm(seconds(30)).success());
    let wal = gateway.wal();
    let offline = ["wal", "rewind", "--from-seq", "201", "--wal", wal.to_str().unwrap()];
    let (code, _, errors) = gateway.run(&offline);
    assert!(code == 2 && errors.contains("100 records again"), "{code} {errors}");
    let (code, _, errors) = gateway.run(&[&offline[..], &["--yes"]].concat());
    assert_eq!(code, 0, "{errors}");
    gateway.restart();
    kafka.wait_for_count(&topic, 600, seconds(30));
    gateway.wait_drained(seconds(30));
    let seqs: Vec<u64> = kafka
        .read_topic(&topic, true)
        .iter()
        .map(|message| message.seq())
        .collect();
    assert_eq!(seqs, order(101).chain(201..=300).collect::<Vec<_>>());

    // New ones come behind it.
    assert_eq!(post(&gateway, &topic, &numbered(1)), 301);
    kafka.wait_for_count(&topic, 601, seconds(30));
}

fn operators_are_answered_while_kafka_is_away() {
    answered_while_kafka_is_away(|_| {});
}

fn operators_are_answered_after_a_start_without_kafka() {
    answered_while_kafka_is_away(Gateway::kill_and_restart);
}

fn answered_while_kafka_is_away(meanwhile: impl FnOnce(&mut Gateway)) {
    let kafka = Kafka::private();
    kafka.create_topic("t", 1, &[]);
    let mut config = Config::with(&kafka);
    config.set("wal.retain", "1 GiB");
    let mut gateway = Gateway::start(&config);
    post(&gateway, "t", &numbered(100));
    gateway.wait_drained(seconds(30));
    post(&gateway, "missing", &numbered(50));
    post(&gateway, "missing-too", &numbered(50));
    wait_until("they are held", seconds(30), || {
        gateway.metric("tidegate_held_records") == 100.0 && gateway.metric("tidegate_wal_backlog_records") == 0.0
    });
    kafka.stop();
    post(&gateway, "t", &numbered(100));
    meanwhile(&mut gateway);
    assert_eq!(
        done(&gateway, "/v1/held/discard", &json!({"topic": "missing"})),
        json!({"discarded": 50})
    );
    assert_eq!(
        done(
            &gateway,
            "/v1/held/redirect",
            &json!({"topic": "missing-too", "to": "t"})
        ),
        json!({"redirected": 50})
    );
    let rewound = done(&gateway, "/v1/wal/rewind", &json!({"from_seq": 51}));
    assert_eq!(
        (&rewound["acked"], &rewound["again"]),
        (&json!(50), &json!(150)),
        "{rewound}"
    );
    kafka.start();
    gateway.wait_drained(seconds(60));
    let seqs: Vec<u64> = kafka
        .read_topic("t", true)
        .iter()
        .map(|message| message.seq())
        .collect();
    // 151 to 200 are those that were redirected: behind what was posted before that, with the identity they had.
    let expected: Vec<u64> = (1..=100).chain(51..=100).chain(201..=300).chain(151..=200).collect();
    assert_eq!(seqs, expected);
    // A rewind goes over what was held, too: it is held again.
    assert_eq!(gateway.metric("tidegate_held_records"), 100.0);
}

fn what_is_wrong_with_a_verb_is_said_and_nothing_is_done() {
    let kafka = Kafka::shared();
    let topic = unique("wrong");
    kafka.create_topic(&topic, 1, &[]);
    let gateway = Gateway::start(&Config::with(kafka));
    post(&gateway, &topic, &numbered(10));
    gateway.wait_drained(seconds(30));
    for (path, body, status, word) in [
        ("/v1/wal/rewind", json!({"from_seq": 0}), 404, "wal.retain"),
        ("/v1/wal/rewind", json!({"from_seq": 99}), 400, "not acknowledged yet"),
        ("/v1/wal/rewind", json!({"from": 1}), 400, "from_seq"),
        ("/v1/dead-letters/requeue", json!({}), 400, "exactly one"),
        (
            "/v1/dead-letters/discard",
            json!({"letters": [{"wal": "x", "seq": 1}]}),
            400,
            "no UUID",
        ),
        ("/v1/held/discard", json!({"topic": "a/b"}), 400, "topic name"),
        (
            "/v1/held/redirect",
            json!({"topic": "a", "to": "a"}),
            400,
            "another topic",
        ),
        ("/v1/held/redirect", json!({"topic": "a"}), 400, "another topic"),
    ] {
        let answer = verb(&gateway, path, &body);
        assert_eq!(answer.status, status, "{path} {body}: {answer:?}");
        let detail = answer.json()["detail"].as_str().unwrap().to_owned();
        assert!(detail.contains(word), "{path} {body}: {detail}");
    }
    assert_eq!(
        done(&gateway, "/v1/held/discard", &json!({"topic": "nobody"})),
        json!({"discarded": 0})
    );
    assert_eq!(
        done(&gateway, "/v1/dead-letters/requeue", &json!({"all": true})),
        json!({"requeued": 0})
    );
    assert_eq!(gateway.admin("/v1/dead-letters?bogus=1").unwrap().status, 400);
    assert_eq!(
        gateway.admin(&format!("/v1/dead-letters/{}/1", uuid())).unwrap().status,
        404
    );
    assert_eq!(gateway.admin("/v1/held/discard").unwrap().status, 405);
    // What cannot be done is refused in the same words, meant seriously or not.
    for more in [&["--yes"][..], &[]] {
        let (code, _, errors) = gateway.ask(&[&["wal", "rewind", "--from-seq", "99"], more].concat());
        assert!(code == 1 && errors.contains("only 10 and before"), "{code} {errors}");
    }
    assert_eq!(kafka.count(&topic), Some(10));
}

fn uuid() -> &'static str {
    "00000000-0000-4000-8000-000000000000"
}
