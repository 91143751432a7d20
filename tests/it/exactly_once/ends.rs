//! Transactions that end otherwise than the gateway meant: Kafka gives one up, or its commit is not confirmed.

use std::sync::Arc;

use super::{config, once};
use crate::support::free_port;
use crate::support::gateway::Gateway;
use crate::support::kafka::Kafka;
use crate::support::ledger::Ledger;
use crate::support::load::Load;
use crate::support::proxy::{Line, Proxy};
use crate::support::{seconds, wait_until};

cases!["exactly_once::ends":
    a_transaction_that_kafka_gave_up_is_sent_again [OwnKafka],
    a_rewind_while_a_commit_is_not_confirmed_sends_again_what_it_says [OwnKafka],
];

/// A gateway that stood still for longer than a transaction may take: a machine that slept.
fn a_transaction_that_kafka_gave_up_is_sent_again() {
    let kafka = Kafka::private_with("transaction.abort.timed.out.transaction.cleanup.interval.ms=500");
    kafka.create_topic("t", 1, &[]);
    let ledger = Arc::new(Ledger::default());
    let mut config = config(&kafka);
    // The least that a gateway takes.
    config.property("transaction.timeout.ms", "20000");
    let gateway = Gateway::start(&config);
    let load = Load::start(&gateway, &ledger, "t", 4);
    let acked = || gateway.metric("tidegate_wal_acked_sequence");
    wait_until("records are sent", seconds(30), || acked() > 200.0);
    // Stopped between two transactions it has none to be given up.
    wait_until("it stands still in the middle of a transaction", seconds(60), || {
        gateway.signal("-STOP");
        let is_open = kafka.has_open_transaction("t");
        if !is_open {
            gateway.signal("-CONT");
        }
        is_open
    });
    wait_until("Kafka gives it up", seconds(60), || !kafka.has_open_transaction("t"));
    gateway.signal("-CONT");
    let before = acked();
    wait_until("records are sent again", seconds(120), || acked() > before + 500.0);
    load.stop();
    gateway.wait_drained(seconds(120));
    let tally = once(&kafka, &ledger, &["t"]);
    assert_eq!(tally.unknown, 0, "{tally:?}");
}

fn a_rewind_while_a_commit_is_not_confirmed_sends_again_what_it_says() {
    let listener = free_port();
    let proxy = Proxy::start(listener);
    let kafka = Kafka::private_behind(proxy.port(), listener);
    kafka.create_topic("t", 1, &[]);
    let ledger = Arc::new(Ledger::default());
    let mut config = config(&kafka);
    config
        .set("wal.retain", "1 GiB")
        .set("kafka.bootstrap_servers", format!("127.0.0.1:{}", proxy.port()))
        .property("socket.timeout.ms", "3000");
    let mut gateway = Gateway::start(&config);
    let load = Load::start(&gateway, &ledger, "t", 4);
    let acked = |gateway: &Gateway| gateway.metric("tidegate_wal_acked_sequence") as u64;
    for kill in [false, true] {
        let before = acked(&gateway);
        wait_until("records are sent", seconds(60), || acked(&gateway) > before + 500);
        proxy.set(Line::LosesAnswers);
        let so_far = ledger.ok();
        wait_until("clients are answered", seconds(30), || ledger.ok() > so_far + 200);
        let from = acked(&gateway) - 100;
        let rewind = |gateway: &Gateway| gateway.ask(&["wal", "rewind", "--from-seq", &from.to_string(), "--yes"]);
        // Kafka's watermark may be ahead, and would count after a crash; or the forwarder waits for Kafka all the time.
        let (code, text, errors) = rewind(&gateway);
        assert!(
            code == 75 && errors.to_lowercase().contains("nothing was changed"),
            "{code} {text} {errors}"
        );
        if kill {
            gateway.sigkill();
        }
        proxy.set(Line::Open);
        if kill {
            gateway.restart();
        }
        wait_until("the log is rewound", seconds(120), || rewind(&gateway).0 == 0);
        wait_until("what was rewound is sent", seconds(120), || {
            acked(&gateway) > from + 500
        });
    }
    load.stop();
    gateway.wait_drained(seconds(120));
    let read = kafka.read_topic("t", true);
    let tally = ledger.check(&[("t", read.clone())]).unwrap();
    assert_eq!(tally.refused, 0, "{tally:?}");
    let mut times = std::collections::BTreeMap::new();
    for message in &read {
        *times.entry(message.seq()).or_insert(0_usize) += 1;
    }
    // Each rewind has what it names sent once more.
    let more: usize = times.values().map(|times| times - 1).sum();
    assert!(times.values().all(|times| *times <= 3), "{tally:?}");
    assert!(more >= 200, "{more} were sent again, {tally:?}");
}
