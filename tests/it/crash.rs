//! SIGKILL, again and again, under load: what was answered OK is in Kafka, once, in the order of its key.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use crate::support::evidence::Evidence;
use crate::support::gateway::{Config, Gateway, NOWHERE};
use crate::support::kafka::Kafka;
use crate::support::ledger::{Ledger, Tally};
use crate::support::load::{Load, post};
use crate::support::topics::without_repeats;
use crate::support::{FORM, SEED_BODY, SEED_VALUE};
use crate::support::{Random, ab, disk_bytes, free_port, seconds, soak, unique, wait_until};

cases!["crash":
    hundred_sigkills_under_load_lose_nothing [Kafka],
    sigkills_while_forwarding_lose_nothing_and_keep_order [Kafka],
    a_gateway_killed_while_it_starts_starts_again [Kafka],
    the_seeds_load_survives_a_sigkill_in_the_middle [Kafka, Ab],
];

const CLIENTS: usize = 12;

fn hundred_sigkills_under_load_lose_nothing() {
    let cycles = if soak() { 1000 } else { 100 };
    let tally = kill_in_a_loop(cycles, NOWHERE);
    assert!(tally.ok > cycles, "{tally:?}: the cycles were under load");
    Evidence::of(&tally, cycles as u64).print("SIGKILL under load, Kafka away");
}

fn sigkills_while_forwarding_lose_nothing_and_keep_order() {
    let cycles = if soak() { 200 } else { 20 };
    let tally = kill_in_a_loop(cycles, Kafka::shared().bootstrap());
    assert!(tally.ok > cycles, "{tally:?}: the cycles were under load");
    Evidence::of(&tally, cycles as u64).print("SIGKILL under load, while forwarding");
}

/// Kills the gateway 20 to 200 ms after each start, with clients at work; at the end everything that is in
/// the log goes to the real Kafka and is compared with what the clients were answered.
fn kill_in_a_loop(cycles: usize, bootstrap_meanwhile: &str) -> Tally {
    let kafka = Kafka::shared();
    let topic = unique("crash");
    kafka.create_topic(&topic, 3, &[]);
    let mut random = Random::new();
    let seed = random.seed();
    let ledger = Arc::new(Ledger::default());
    let mut config = Config::new(bootstrap_meanwhile);
    // Rotations happen in nearly every cycle.
    config.set("wal.generation_bytes", "1 MiB");
    let mut gateway = Gateway::start(&config);
    for _ in 0..cycles {
        let load = Load::start(&gateway, &ledger, &topic, CLIENTS);
        thread::sleep(Duration::from_millis(random.within(20, 200)));
        gateway.sigkill();
        load.join();
        gateway.restart();
    }
    gateway.sigkill();
    gateway.set("kafka.bootstrap_servers", kafka.bootstrap());
    gateway.restart();
    gateway.wait_drained(seconds(120));
    let next = gateway.metric("tidegate_wal_next_sequence");
    assert!(
        next > ledger.last_seq() as f64,
        "seed {seed}: the next sequence {next} was used before"
    );
    let checked = ledger.check(&[(&topic, kafka.read_topic(&topic, true))]);
    let tally = checked.unwrap_or_else(|faults| panic!("seed {seed}: {faults:?}"));
    println!("{cycles} kills: {tally:?}");
    tally
}

fn a_gateway_killed_while_it_starts_starts_again() {
    let kafka = Kafka::shared();
    let topic = unique("crash-start");
    kafka.create_topic(&topic, 1, &[]);
    let mut random = Random::new();
    let ledger = Ledger::default();
    let mut config = Config::new(NOWHERE);
    config.set("wal.generation_bytes", "1 MiB");
    let mut gateway = Gateway::start(&config);
    let cycles = if soak() { 300 } else { 30 };
    for _ in 0..cycles {
        let client = gateway.client();
        for _ in 0..20 {
            assert!(post(&client, &ledger, &topic, Some("k")), "the gateway answers");
        }
        gateway.sigkill();
        // Somewhere between exec and the open listeners.
        gateway.start_and_kill_after(Duration::from_millis(random.within(0, 40)));
        gateway.restart();
    }
    gateway.sigkill();
    gateway.set("kafka.bootstrap_servers", kafka.bootstrap());
    gateway.restart();
    gateway.wait_drained(seconds(60));
    let checked = ledger.check(&[(&topic, kafka.read_topic(&topic, true))]);
    let tally = checked.unwrap_or_else(|faults| panic!("seed {}: {faults:?}", random.seed()));
    assert_eq!((tally.unknown, tally.refused), (0, 0));
    // One at work, one in the midst of its start.
    Evidence::of(&tally, 2 * cycles).print("SIGKILL in the midst of a start");
}

fn the_seeds_load_survives_a_sigkill_in_the_middle() {
    let kafka = Kafka::shared();
    let (seed_topic, keyed_topic) = (unique("financial_pro"), unique("keyed"));
    kafka.create_topic(&seed_topic, 1, &[]);
    kafka.create_topic(&keyed_topic, 3, &[]);
    let mut config = Config::with(kafka);
    config
        .set("http.listen", format!("127.0.0.1:{}", free_port()))
        .set("wal.generation_bytes", "4 MiB")
        .source("financial_pro", &seed_topic, None);
    let mut gateway = Gateway::start(&config);
    let ledger = Arc::new(Ledger::default());
    let folder = tempfile::tempdir().unwrap();

    let load = Load::start(&gateway, &ledger, &keyed_topic, 8);
    let ab = ab::start(folder.path(), &gateway.ingest);
    wait_until("a third of the load is in", seconds(60), || {
        gateway.metric("tidegate_ingest_records_total") > 3_000.0
    });
    gateway.sigkill();
    load.join();
    let first = ab.finish();
    assert!(
        (1..10_000).contains(&first.seqs.len()),
        "the kill was in the middle: {}",
        first.seqs.len()
    );
    gateway.restart();
    let load = Load::start(&gateway, &ledger, &keyed_topic, 8);
    let second = ab::start(folder.path(), &gateway.ingest).finish_whole();
    load.stop();

    gateway.wait_drained(seconds(60));
    let tally = ledger
        .check(&[(&keyed_topic, kafka.read_topic(&keyed_topic, true))])
        .unwrap();
    assert!(tally.ok > 0, "{tally:?}");
    let messages = kafka.read_topic(&seed_topic, true);
    assert!(messages.iter().all(|message| message.value == SEED_VALUE));
    let delivered: Vec<u64> = without_repeats(&messages).iter().map(|message| message.seq()).collect();
    assert!(delivered.is_sorted(), "in the order of the log");
    assert!(delivered.len() <= 20_000);
    let delivered: BTreeSet<u64> = delivered.into_iter().collect();
    let answered: BTreeSet<u64> = first.seqs.union(&second.seqs).copied().collect();
    assert_eq!(
        answered.len(),
        first.seqs.len() + second.seqs.len(),
        "no sequence was given twice"
    );
    let lost: Vec<&u64> = answered.difference(&delivered).collect();
    assert!(lost.is_empty(), "answered OK and not in Kafka: {lost:?}");
    let evidence = Evidence {
        injected: 1,
        answered: answered.len() as u64 + tally.ok as u64,
        lost: 0,
        repeated: (messages.len() - delivered.len() + tally.repeats) as u64,
    };
    evidence.print("SIGKILL in the middle of the seed's load (ab)");

    // Drained: at most the live generation and the one made ahead.
    wait_until("the log gives its space back", seconds(30), || {
        disk_bytes(&gateway.wal()) < 2 * 4 * 1024 * 1024
    });
    let next = gateway.metric("tidegate_wal_next_sequence");
    gateway.kill_and_restart();
    assert_eq!(gateway.metric("tidegate_wal_next_sequence"), next);
    let answer = gateway.client().post("/financial_pro", FORM, SEED_BODY.as_bytes());
    assert_eq!(answer.unwrap().header("tidegate-seq"), next.to_string());
}
