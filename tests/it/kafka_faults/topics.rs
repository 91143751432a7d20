//! What an operator of Kafka may do to a topic: lower its limit, take a right away, delete it and make it anew.

use super::{Trial, config, post_together, rounds};
use crate::support::evidence::Evidence;
use crate::support::gateway::Config;
use crate::support::kafka::Kafka;
use crate::support::load::post;
use crate::support::{JSON, Random, seconds, soak, unique, wait_until};

const LIMIT: &str = "max.message.bytes";

pub fn a_limit_that_is_lowered_and_raised_costs_nothing(delivery: &str) {
    let kafka = Kafka::shared();
    let (topic, other) = (unique("limit"), unique("limit-other"));
    for topic in [&topic, &other] {
        kafka.create_topic(topic, 1, &[]);
    }
    let mut trial = Trial::start(kafka, &config(kafka.bootstrap(), delivery), &[&topic, &other]);
    let client = trial.gateway.client();
    let mut random = Random::new();
    for _ in 0..rounds(1) {
        kafka.alter_topic(&topic, LIMIT, "20000");
        trial.injected += 1;
        // Too large together, and one that is too large alone.
        let text = |random: &mut Random, bytes| format!(r#"{{"x":"{}"}}"#, random.text(bytes)).into_bytes();
        let values: Vec<Vec<u8>> = (0..500).map(|_| text(&mut random, 200)).collect();
        post_together(&client, &trial.ledger, &topic, &values);
        let large = text(&mut random, 60_000);
        let answer = client.post(&format!("/v1/topics/{topic}"), JSON, &large).unwrap();
        assert_eq!(answer.status, 202, "{answer:?}");
        trial.late.insert(large);
        wait_until("the large one is a dead letter", seconds(60), || {
            trial.gateway.metric("tidegate_dead_letters") == 1.0
        });
        trial.answers();
        trial.delivers();
        kafka.alter_topic(&topic, LIMIT, "1048588");
        let (code, said, error) = trial.gateway.ask(&["dead-letters", "requeue", "--all"]);
        assert_eq!(code, 0, "{said}{error}");
        trial.delivers();
        assert_eq!(trial.gateway.metric("tidegate_dead_letters"), 0.0);
    }
    trial.finish(delivery, "the topic's limit on messages lowered and raised");
}

/// The user of [`Kafka::private_guarded`].
fn config_of_user(listener: &str, delivery: &str) -> Config {
    let mut config = config(listener, delivery);
    config
        .property("security.protocol", "SASL_PLAINTEXT")
        .property("sasl.mechanism", "SCRAM-SHA-512")
        .property("sasl.username", "gw")
        .property("sasl.password", "secret");
    config
}

pub fn a_right_that_is_taken_holds_only_its_topic(delivery: &str) {
    let (kafka, listener) = Kafka::private_guarded();
    for topic in ["t", "other"] {
        kafka.create_topic(topic, 2, &[]);
    }
    let write = |verb: &str, more: &[&str]| {
        let arguments = [
            verb,
            "--allow-principal",
            "User:gw",
            "--topic",
            "t",
            "--operation",
            "Write",
        ];
        kafka.tool("org.apache.kafka.tools.AclCommand", &[&arguments[..], more].concat());
    };
    write("--add", &["--operation", "Describe", "--operation", "Read"]);
    let mut trial = Trial::start(&kafka, &config_of_user(&listener, delivery), &["t", "other"]);
    for _ in 0..rounds(1) {
        write("--remove", &["--force"]);
        trial.injected += 1;
        wait_until("the topic is held", seconds(60), || {
            trial.gateway.metric("tidegate_held_records") > 200.0
        });
        assert_eq!(trial.gateway.metric("tidegate_held_topics"), 1.0);
        let so_far = kafka.count("other").unwrap();
        kafka.wait_for_count("other", so_far + 200, seconds(30));
        let count = kafka.count("t").unwrap();
        trial.answers();
        assert_eq!(kafka.count("t"), Some(count), "nothing is written without the right");
        write("--add", &[]);
        wait_until("nothing is held", seconds(90), || {
            trial.gateway.metric("tidegate_held_records") == 0.0
        });
        trial.delivers();
    }
    trial.finish(delivery, "the right to write to a topic taken and given back");
}

/// None of many topics may be written to: each is held, and those that may are not held up. A try that Kafka denies ends a
/// transactional producer, so that topics which are tried again and again would cost more than all the rest.
pub fn rights_that_are_missing_from_the_start_hold_only_their_topics(delivery: &str) {
    // Each is looked at by itself before it is sent again: a few seconds.
    let topics = if soak() { 30 } else { 5 };
    let (kafka, listener) = Kafka::private_guarded();
    let denied: Vec<String> = (0..topics).map(|number| format!("denied-{number}")).collect();
    for topic in denied.iter().map(String::as_str).chain(["other"]) {
        kafka.create_topic(topic, 1, &[]);
    }
    let allow = |topics: &[&str], operation: &str| {
        let arguments = [
            "--add",
            "--allow-principal",
            "User:gw",
            "--operation",
            operation,
            "--topic",
        ];
        kafka.tool("org.apache.kafka.tools.AclCommand", &[&arguments[..], topics].concat());
    };
    let prefixed = ["denied-", "--resource-pattern-type", "prefixed"];
    allow(&prefixed, "Read");
    for operation in ["Read", "Write"] {
        allow(&["other"], operation);
    }
    let mut trial = Trial::start(&kafka, &config_of_user(&listener, delivery), &["other"]);
    let client = trial.gateway.client();
    for topic in &denied {
        for _ in 0..3 {
            assert!(post(&client, &trial.ledger, topic, Some("k")));
        }
    }
    let held = |trial: &Trial<'_>, name: &str| trial.gateway.metric(name) as usize;
    wait_until("all of them are held", seconds(60), || {
        held(&trial, "tidegate_held_topics") == topics
    });
    let ended = trial.gateway.metric("tidegate_forward_fatal_errors_total");
    // They are tried again all the while.
    let so_far = trial.acked();
    trial.for_long(seconds(if soak() { 15 } else { 5 }));
    assert!(trial.acked() > so_far + 200.0, "the others go on");
    assert_eq!(trial.gateway.metric("tidegate_forward_fatal_errors_total"), ended);
    trial.injected += topics as u64;
    allow(&prefixed, "Write");
    wait_until("nothing is held", seconds(180), || {
        held(&trial, "tidegate_held_records") == 0
    });
    trial.topics.extend(denied.iter().map(String::as_str));
    trial.finish(delivery, "the right to write missing from the start, a topic each");
}

/// What was in the deleted topic is gone by its operator's will, and so is what the old topic was sent last,
/// acknowledged or not: nobody can tell it from the rest. What was answered later than the broker's last look at the
/// old topic was never in it, so it must be in the new one, in order. When the gateway has noticed that the topic is
/// missing, that moment is before the new one is made: what waits in between is there too. What comes before that
/// moment may be there, once, in order.
pub fn a_topic_made_anew_gets_all_that_follows(delivery: &str) {
    let kafka = Kafka::shared();
    let mut evidence = Evidence::default();
    for round in 0..rounds(2) {
        let (topic, other) = (unique("anew"), unique("anew-other"));
        for topic in [&topic, &other] {
            kafka.create_topic(topic, 2, &[]);
        }
        let mut trial = Trial::start(kafka, &config(kafka.bootstrap(), delivery), &[&topic, &other]);
        let next = |trial: &Trial<'_>| trial.gateway.metric("tidegate_wal_next_sequence") as u64;
        kafka.delete_topic(&topic);
        let first = if round % 2 == 0 {
            // At once: when it has its leaders, the broker has forgotten the old one.
            kafka.create_topic(&topic, 2, &[]);
            next(&trial)
        } else {
            wait_until("the topic is held", seconds(60), || {
                trial.gateway.metric("tidegate_held_topics") == 1.0
            });
            let first = next(&trial);
            trial.answers();
            kafka.create_topic(&topic, 2, &[]);
            first
        };
        trial.answers();
        wait_until("nothing is held", seconds(90), || {
            trial.gateway.metric("tidegate_held_records") == 0.0
        });
        trial.delivers();
        trial.stop_clients();
        trial.excused = trial.ledger.excuse(&topic, first);
        let tally = trial.check();
        assert!(tally.ok > 200, "{tally:?}");
        evidence.injected += 1;
        evidence.answered += tally.ok as u64;
    }
    evidence.print("a topic deleted and made anew (what was answered later)");
}
