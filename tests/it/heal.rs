//! A broker that lost what it had acknowledged: the partition's folder is replaced by an older copy, as after a power
//! cut with one replica.

use std::path::Path;
use std::process::Command;
use std::sync::Arc;

use crate::support::gateway::{Config, Gateway};
use crate::support::kafka::Kafka;
use crate::support::ledger::Ledger;
use crate::support::load::Load;
use crate::support::{poll, seconds, wait_until};

cases!["heal":
    what_a_broker_lost_is_sent_again_in_order [OwnKafka],
    what_a_broker_lost_is_sent_again_in_transactions_too [OwnKafka],
    a_gateway_killed_while_it_heals_goes_on_after_its_start [OwnKafka],
    without_retained_records_the_loss_is_told_and_nothing_hangs [OwnKafka],
];

const HEALED: &str = r#"tidegate_forward_retries_total{reason="healed"}"#;
const LOOKING: &str = "may have lost records that it had acknowledged";

fn copy(from: &Path, to: &Path) {
    let copied = Command::new("cp").arg("-a").arg(from).arg(to).status();
    assert!(
        copied.expect("cp runs").success(),
        "{} to {}",
        from.display(),
        to.display()
    );
}

/// Has the broker lose the newest 1,000 records or more of these partitions, while the load goes on; it runs again then.
fn lose(kafka: &Kafka, ledger: &Ledger, topic: &str, partitions: &[i32]) {
    let copies = tempfile::tempdir().unwrap();
    let so_far = kafka.count(topic).unwrap_or(0);
    kafka.wait_for_count(topic, so_far + 1_000, seconds(60));
    for partition in partitions {
        copy(&kafka.partition_folder(topic, *partition), copies.path());
    }
    let so_far = kafka.count(topic).unwrap();
    kafka.wait_for_count(topic, so_far + 1_000, seconds(60));
    kafka.kill();
    let answered = ledger.ok();
    wait_until("clients are answered without Kafka", seconds(30), || {
        ledger.ok() > answered + 200
    });
    for partition in partitions {
        let folder = kafka.partition_folder(topic, *partition);
        std::fs::remove_dir_all(&folder).unwrap();
        copy(
            &copies.path().join(folder.file_name().unwrap()),
            folder.parent().unwrap(),
        );
    }
    kafka.start();
}

fn config(kafka: &Kafka) -> Config {
    let mut config = Config::with(kafka);
    config.set("wal.retain", "1 GiB");
    config
}

fn what_a_broker_lost_is_sent_again_in_order() {
    heals("idempotent");
}

fn what_a_broker_lost_is_sent_again_in_transactions_too() {
    heals("exactly_once");
}

fn heals(delivery: &str) {
    let kafka = Kafka::private();
    kafka.create_topic("t", 3, &[]);
    let mut config = config(&kafka);
    config.set("forward.delivery", delivery);
    let gateway = Gateway::start(&config);
    let ledger = Arc::new(Ledger::default());
    let load = Load::start(&gateway, &ledger, "t", 4);
    for partitions in [&[0, 2][..], &[0, 1, 2]] {
        let healed = gateway.metrics()[HEALED];
        lose(&kafka, &ledger, "t", partitions);
        wait_until("the loss is healed", seconds(90), || gateway.metrics()[HEALED] > healed);
        let so_far = ledger.ok();
        wait_until("the load goes on", seconds(30), || ledger.ok() > so_far + 500);
    }
    load.stop();
    gateway.wait_drained(seconds(60));
    let log = gateway.log();
    assert!(log.contains("Kafka has lost records that it had acknowledged"), "{log}");
    let tally = ledger.check(&[("t", kafka.read_topic("t", true))]).unwrap();
    assert_eq!((tally.unknown, tally.refused), (0, 0), "{tally:?}");
    // Only what is missing is sent again.
    assert_eq!(tally.repeats, 0, "{tally:?}");
}

fn a_gateway_killed_while_it_heals_goes_on_after_its_start() {
    let kafka = Kafka::private();
    kafka.create_topic("t", 2, &[]);
    let mut gateway = Gateway::start(&config(&kafka));
    let ledger = Arc::new(Ledger::default());
    let load = Load::start(&gateway, &ledger, "t", 4);
    lose(&kafka, &ledger, "t", &[0, 1]);
    poll("the loss is seen", seconds(90), || {
        gateway.log().contains(LOOKING).then_some(())
    });
    gateway.sigkill();
    load.join();
    gateway.restart();
    gateway.wait_drained(seconds(60));
    ledger.check(&[("t", kafka.read_topic("t", true))]).unwrap();
}

fn without_retained_records_the_loss_is_told_and_nothing_hangs() {
    let kafka = Kafka::private();
    kafka.create_topic("t", 1, &[]);
    let mut config = config(&kafka);
    config.set("wal.retain", "off");
    let gateway = Gateway::start(&config);
    let ledger = Arc::new(Ledger::default());
    let load = Load::start(&gateway, &ledger, "t", 4);
    lose(&kafka, &ledger, "t", &[0]);
    wait_until("the loss is told", seconds(90), || {
        let log = gateway.log();
        log.contains("set wal.retain") && log.contains("min.insync.replicas 2")
    });
    let so_far = kafka.count("t").unwrap();
    kafka.wait_for_count("t", so_far + 500, seconds(60));
    load.stop();
    gateway.wait_drained(seconds(60));
}
