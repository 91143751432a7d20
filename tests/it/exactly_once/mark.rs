//! Kafka's watermark where the folder's own is behind it, where it is gone, and where the brokers do not take all of it.

use std::fs;
use std::sync::Arc;

use super::{config, once, posts};
use crate::support::gateway::Gateway;
use crate::support::kafka::Kafka;
use crate::support::ledger::Ledger;
use crate::support::load::Load;
use crate::support::proxy::{Line, Proxy};
use crate::support::{free_port, seconds, unique, wait_until};

/// See `forward/transaction.rs`.
const WATERMARK: &str = "tidegate-watermark";

cases!["exactly_once::mark":
    a_pass_that_the_lane_does_not_know_of_loses_and_repeats_nothing [Kafka],
    a_redirect_that_the_lane_does_not_know_of_is_not_repeated [Kafka],
    a_letter_that_was_requeued_is_not_what_the_lane_has_settled [OwnKafka],
    without_a_watermark_in_kafka_the_folders_own_counts [Kafka],
    a_topic_of_watermarks_that_is_deleted_is_made_again [OwnKafka],
    a_watermark_that_is_too_long_for_the_brokers_is_told_briefly [OwnKafka],
];

/// Some seconds of a pass at 8 KiB a second.
const HELD: usize = 300;

fn held(gateway: &Gateway) -> usize {
    gateway.metric("tidegate_held_records") as usize
}

/// The lane's witness is as it was when `before` was read: a kill came between Kafka's commit and the lane's own.
fn lane_is_behind(gateway: &mut Gateway, before: &[u8]) {
    gateway.sigkill();
    fs::write(gateway.wal().join("held/witness"), before).unwrap();
    gateway.restart();
}

/// A pass has moved a record behind the end, and the lane knows only its first place.
fn a_pass_that_the_lane_does_not_know_of_loses_and_repeats_nothing() {
    let kafka = Kafka::shared();
    let (a, b) = (unique("mark-a"), unique("mark-b"));
    let ledger = Ledger::default();
    let mut gateway = Gateway::start(&config(kafka));
    posts(&gateway, &ledger, &a, 2);
    posts(&gateway, &ledger, &b, 1);
    wait_until("all are held", seconds(60), || held(&gateway) == 3);
    let before = fs::read(gateway.wal().join("held/witness")).unwrap();
    kafka.create_topic(&a, 1, &[]);
    wait_until("only b's is held", seconds(60), || held(&gateway) == 1);
    once(kafka, &ledger, &[&a]);
    lane_is_behind(&mut gateway, &before);
    wait_until("it works again", seconds(60), || {
        gateway.metric("tidegate_forward_broker_up") == 1.0 && held(&gateway) == 1
    });
    // Twice: the second start has only what the first one has told Kafka.
    posts(&gateway, &ledger, &a, 1);
    gateway.wait_drained(seconds(60));
    lane_is_behind(&mut gateway, &before);
    kafka.create_topic(&b, 1, &[]);
    posts(&gateway, &ledger, &a, 1);
    posts(&gateway, &ledger, &b, 1);
    gateway.wait_drained(seconds(60));
    wait_until("nothing is held", seconds(60), || held(&gateway) == 0);
    let tally = once(kafka, &ledger, &[&a, &b]);
    assert_eq!((tally.ok, tally.delivered), (6, 6), "{tally:?}");
}

fn a_redirect_that_the_lane_does_not_know_of_is_not_repeated() {
    let kafka = Kafka::shared();
    let (wrong, right) = (unique("mark-wrong"), unique("mark-right"));
    kafka.create_topic(&right, 1, &[]);
    let ledger = Ledger::default();
    let mut gateway = Gateway::start(&config(kafka));
    posts(&gateway, &ledger, &wrong, 3);
    wait_until("all are held", seconds(60), || held(&gateway) == 3);
    let before = fs::read(gateway.wal().join("held/witness")).unwrap();
    let (code, text, errors) = gateway.ask(&["held", "redirect", "--topic", &wrong, "--to", &right, "--yes"]);
    assert_eq!(code, 0, "{text} {errors}");
    wait_until("nothing is held", seconds(60), || held(&gateway) == 0);
    gateway.wait_drained(seconds(60));
    lane_is_behind(&mut gateway, &before);
    // Were they held again they would be sent once there is a topic.
    kafka.create_topic(&wrong, 1, &[]);
    posts(&gateway, &ledger, &right, 1);
    gateway.wait_drained(seconds(60));
    wait_until("nothing is held", seconds(60), || held(&gateway) == 0);
    let seqs = |topic| {
        kafka
            .read_topic(topic, true)
            .iter()
            .map(|message| message.seq())
            .collect::<Vec<_>>()
    };
    let mut all = [seqs(&right), seqs(&wrong)].concat();
    assert_eq!(
        all.pop(),
        Some(7),
        "the main log has the three twice: as they came, and redirected"
    );
    assert_eq!(all, [1, 2, 3]);
}

/// The letter was made by a pass over the lane that the lane does not know of, and waits, requeued, in the log.
fn a_letter_that_was_requeued_is_not_what_the_lane_has_settled() {
    let listener = free_port();
    let proxy = Proxy::start(listener);
    let kafka = Kafka::private_behind(proxy.port(), listener);
    let ledger = Ledger::default();
    let mut config = config(&kafka);
    config
        .set("kafka.bootstrap_servers", format!("127.0.0.1:{}", proxy.port()))
        .property("socket.timeout.ms", "3000");
    let mut gateway = Gateway::start(&config);
    posts(&gateway, &ledger, "t", 1);
    wait_until("it is held", seconds(60), || held(&gateway) == 1);
    kafka.create_topic("other", 1, &[]);
    let before = fs::read(gateway.wal().join("held/witness")).unwrap();
    kafka.create_topic("t", 1, &[("max.message.bytes", "100")]);
    wait_until("it is a dead letter", seconds(60), || {
        gateway.metric("tidegate_dead_letters") == 1.0
    });
    gateway.wait_drained(seconds(60));
    wait_until("the lane has settled it", seconds(60), || held(&gateway) == 0);
    // With the next transaction Kafka is told.
    posts(&gateway, &ledger, "other", 1);
    gateway.wait_drained(seconds(60));
    kafka.alter_topic("t", "max.message.bytes", "1048588");
    proxy.set(Line::Cut);
    proxy.set(Line::Frozen);
    let (code, text, errors) = gateway.ask(&["dead-letters", "requeue", "--all"]);
    assert_eq!(code, 0, "{text} {errors}");
    gateway.sigkill();
    proxy.set(Line::Open);
    lane_is_behind(&mut gateway, &before);
    gateway.wait_drained(seconds(60));
    assert_eq!(kafka.read_topic("t", true).len(), 1, "what was requeued is sent");
    wait_until("there is no letter", seconds(30), || {
        gateway.metric("tidegate_dead_letters") == 0.0
    });
}

/// Brokers forget what a group has committed after 7 days without a commit (`offsets.retention.minutes`).
fn without_a_watermark_in_kafka_the_folders_own_counts() {
    let kafka = Kafka::shared();
    let topic = unique("mark-forgotten");
    kafka.create_topic(&topic, 2, &[]);
    let ledger = Ledger::default();
    let mut gateway = Gateway::start(&config(kafka));
    posts(&gateway, &ledger, &topic, 20);
    gateway.wait_drained(seconds(30));
    let status = gateway.admin("/v1/status").unwrap().json();
    let group = format!("tidegate.{}", status["wal"]["id"].as_str().unwrap());
    kafka.delete_group(&group);
    // While it runs.
    posts(&gateway, &ledger, &topic, 20);
    gateway.wait_drained(seconds(60));
    // And while it is away.
    gateway.sigkill();
    kafka.delete_group(&group);
    gateway.restart();
    posts(&gateway, &ledger, &topic, 20);
    gateway.wait_drained(seconds(60));
    let tally = once(kafka, &ledger, &[&topic]);
    assert_eq!(tally.delivered, 60, "{tally:?}");
}

/// With the topic Kafka forgets the watermark, too.
fn a_topic_of_watermarks_that_is_deleted_is_made_again() {
    // That topic is of all gateways of a cluster.
    let kafka = &Kafka::private();
    let topic = unique("mark-deleted");
    kafka.create_topic(&topic, 2, &[]);
    let ledger = Arc::new(Ledger::default());
    let mut gateway = Gateway::start(&config(kafka));
    let load = Load::start(&gateway, &ledger, &topic, 4);
    let made = |gateway: &Gateway| gateway.log().matches("tidegate-watermark was made").count();
    for (times, kill) in [(1, false), (2, true)] {
        wait_until("it is made", seconds(120), || made(&gateway) == times);
        let acked = gateway.metric("tidegate_wal_acked_sequence");
        kafka.delete_topic(WATERMARK);
        if kill {
            gateway.sigkill();
            gateway.restart();
        }
        wait_until("records are sent", seconds(120), || {
            gateway.metric("tidegate_wal_acked_sequence") > acked + 200.0
        });
    }
    load.stop();
    gateway.wait_drained(seconds(60));
    let tally = once(kafka, &ledger, &[&topic]);
    assert!(tally.ok > 400, "{tally:?}");
}

/// While a pass over the lane goes on, records of its topics wait in the log, and those between them are in Kafka. It
/// lasts for some seconds, in which the other topic gets its share of the pace.
fn a_watermark_that_is_too_long_for_the_brokers_is_told_briefly() {
    let kafka = Kafka::private_with("offset.metadata.max.bytes=60");
    let (held_topic, other) = (unique("mark-long-held"), unique("mark-long"));
    kafka.create_topic(&other, 1, &[]);
    let ledger = Ledger::default();
    let mut config = config(&kafka);
    config.set("forward.bytes_per_second_max", "8 KiB");
    let gateway = Gateway::start(&config);
    posts(&gateway, &ledger, &held_topic, HELD);
    wait_until("they are held", seconds(120), || held(&gateway) == HELD);
    kafka.create_topic(&held_topic, 1, &[]);
    wait_until("the brokers have refused one", seconds(60), || {
        posts(&gateway, &ledger, &held_topic, 1);
        posts(&gateway, &ledger, &other, 1);
        gateway.log().contains("(offset.metadata.max.bytes)")
    });
    gateway.wait_drained(seconds(120));
    wait_until("nothing is held", seconds(120), || held(&gateway) == 0);
    once(&kafka, &ledger, &[&held_topic, &other]);
}
