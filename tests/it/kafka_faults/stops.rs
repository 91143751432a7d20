//! One broker: stopped for long, frozen, killed, and sending its clients to a wrong address.

use super::{IN_FLIGHT_MIB, Trial, config, own_kafka, rounds};
use crate::support::gateway::NOWHERE;
use crate::support::kafka::Kafka;
use crate::support::pool::Lent;
use crate::support::{Random, seconds, soak, unique, wait_until};

/// A broker, and a topic on it.
fn broker() -> (Lent<Kafka>, String) {
    let (kafka, topic) = (own_kafka(), unique("stops"));
    kafka.create_topic(&topic, 3, &[]);
    (kafka, topic)
}

pub fn a_long_outage_costs_nothing_and_no_memory(delivery: &str) {
    let (kafka, topic) = broker();
    let mut trial = Trial::start(&kafka, &config(kafka.bootstrap(), delivery), &[&topic]);
    let length = seconds(if soak() { 60 } else { 10 });
    for round in 0..rounds(1) {
        kafka.stop();
        trial.injected += 1;
        // The log grows to many times what may be in flight; the memory does not. Once is enough.
        if round == 0 {
            trial.post_bulk(20);
            let before = trial.gateway.rss_bytes();
            trial.post_bulk(200);
            let backlog = trial.gateway.metric("tidegate_wal_backlog_bytes") as u64;
            assert!(backlog > 4 * (IN_FLIGHT_MIB << 20), "{backlog} bytes");
            let grown = trial.gateway.rss_bytes().saturating_sub(before);
            assert!(grown < backlog / 2, "{grown} bytes more for a backlog of {backlog}");
        }
        trial.for_long(length);
        kafka.start();
        trial.delivers();
    }
    trial.finish(delivery, "the broker stopped for long");
}

pub fn a_broker_that_freezes_costs_nothing(delivery: &str) {
    let (kafka, topic) = broker();
    let mut random = Random::new();
    let mut trial = Trial::start(&kafka, &config(kafka.bootstrap(), delivery), &[&topic]);
    for _ in 0..rounds(1) {
        kafka.freeze();
        trial.injected += 1;
        trial.answers();
        let acked = trial.acked();
        trial.for_long(seconds(random.within(5, if soak() { 20 } else { 8 })));
        assert_eq!(trial.acked(), acked, "nobody acknowledges");
        kafka.thaw();
        trial.delivers();
    }
    trial.finish(delivery, "the broker frozen for 5 to 20 s (SIGSTOP)");
}

pub fn a_broker_that_is_killed_costs_nothing(delivery: &str) {
    let (kafka, topic) = broker();
    let mut trial = Trial::start(&kafka, &config(kafka.bootstrap(), delivery), &[&topic]);
    for _ in 0..rounds(1) {
        kafka.kill();
        trial.injected += 1;
        trial.answers();
        kafka.start();
        trial.delivers();
    }
    trial.finish(delivery, "the broker killed and started again");
}

pub fn a_wrong_address_that_is_mended_costs_nothing(delivery: &str) {
    let (kafka, topic) = broker();
    let mut config = config(kafka.bootstrap(), delivery);
    // A client whose connection comes back in time may not ask where the brokers are for minutes, and go on as before.
    config.property("topic.metadata.refresh.interval.ms", "1000");
    let mut trial = Trial::start(&kafka, &config, &[&topic]);
    for _ in 0..rounds(1) {
        kafka.stop();
        // Nobody listens there.
        kafka.advertise(Some(NOWHERE));
        // A client that comes while the broker starts may be told the address of before, which works, and keep it.
        trial.gateway.signal("-STOP");
        kafka.start();
        wait_until("the broker tells the wrong address", seconds(60), || {
            kafka.brokers().iter().any(|place| place == NOWHERE)
        });
        trial.gateway.signal("-CONT");
        trial.injected += 1;
        wait_until("the wrong address is told", seconds(30), || {
            trial.gateway.admin("/readyz").unwrap().body.contains(NOWHERE)
        });
        let acked = trial.acked();
        trial.for_long(seconds(2));
        assert_eq!(trial.acked(), acked, "the broker is not where it says");
        kafka.stop();
        kafka.advertise(None);
        kafka.start();
        trial.delivers();
    }
    trial.finish(delivery, "the broker advertises a wrong address, and is mended");
}
