//! What may happen to a Kafka, on a real one and under load: clients are answered all the while, nothing that was
//! answered OK is lost, each key's records keep their order, the forwarder goes on by itself, and its memory stays
//! bounded.
//!
//! Every test takes the delivery mode. A soak injects each fault 20 times.

mod cluster;
mod codes;
mod disk;
mod line;
mod stops;
mod topics;

use std::collections::HashSet;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use crate::support::evidence::Evidence;
use crate::support::gateway::{Config, Gateway};
use crate::support::kafka::Kafka;
use crate::support::ledger::{Ledger, Tally};
use crate::support::load::{Load, outcome, value};
use crate::support::pool::{Lent, Pool};
use crate::support::{Case, Part, seconds, soak, wait_until};

/// The tests of one delivery mode.
macro_rules! in_mode {
    ($mode:literal: $($module:ident :: $name:ident [$($part:ident),*],)+) => {
        &[$(Case {
            name: concat!("kafka_faults::", $mode, "::", stringify!($name)),
            needs: &[$(Part::$part),*],
            run: || $module::$name($mode),
        },)+]
    };
}

pub const IDEMPOTENT: &[Case] = in_mode!["idempotent":
    cluster::each_leader_killed_in_turn_costs_nothing [OwnKafka],
    cluster::without_enough_replicas_nothing_is_acknowledged_and_nothing_lost [OwnKafka],
    line::a_line_that_is_cut_costs_nothing [OwnKafka],
    line::a_line_that_loses_requests_in_the_middle_costs_nothing [OwnKafka],
    line::a_line_that_loses_answers_costs_nothing [OwnKafka],
    line::a_slow_line_delivers_in_order [OwnKafka],
    stops::a_broker_that_freezes_costs_nothing [OwnKafka],
    topics::a_limit_that_is_lowered_and_raised_costs_nothing [Kafka],
    topics::a_right_that_is_taken_holds_only_its_topic [OwnKafka],
    stops::a_long_outage_costs_nothing_and_no_memory [OwnKafka],
    stops::a_broker_that_is_killed_costs_nothing [OwnKafka],
    topics::a_topic_made_anew_gets_all_that_follows [Kafka],
    disk::a_full_disk_of_the_broker_costs_nothing [OwnKafka, TinyDisk],
    stops::a_wrong_address_that_is_mended_costs_nothing [OwnKafka],
    codes::no_code_costs_a_record [],
];

/// Those in which something can be half of a transaction.
pub const EXACTLY_ONCE: &[Case] = in_mode!["exactly_once":
    cluster::each_leader_killed_in_turn_costs_nothing [OwnKafka],
    cluster::without_enough_replicas_nothing_is_acknowledged_and_nothing_lost [OwnKafka],
    line::a_line_that_is_cut_costs_nothing [OwnKafka],
    line::a_line_that_loses_answers_costs_nothing [OwnKafka],
    stops::a_broker_that_freezes_costs_nothing [OwnKafka],
    stops::a_broker_that_is_killed_costs_nothing [OwnKafka],
    topics::a_limit_that_is_lowered_and_raised_costs_nothing [Kafka],
    topics::a_right_that_is_taken_holds_only_its_topic [OwnKafka],
    topics::rights_that_are_missing_from_the_start_hold_only_their_topics [OwnKafka],
];

/// A topic's clients.
const CLIENTS: usize = 2;
/// What the producer may keep in flight; with it the gateway's memory is bounded.
const IN_FLIGHT_MIB: u64 = 8;

/// How often a fault is injected.
fn rounds(normal: u64) -> u64 {
    if soak() { 20 } else { normal }
}

/// A broker to stop and start, for one test at a time; whatever the one before left, it runs.
fn own_kafka() -> Lent<Kafka> {
    static OWN: Pool<Kafka> = Pool::new();
    let kafka = OWN.lend(Kafka::private);
    let is_astray = kafka.advertise(None);
    if is_astray || !kafka.runs() {
        kafka.kill();
        kafka.start();
    }
    kafka.thaw();
    kafka
}

fn config(bootstrap: &str, delivery: &str) -> Config {
    let mut config = Config::new(bootstrap);
    config
        .set("forward.delivery", delivery)
        .set("forward.in_flight_bytes_max", format!("{IN_FLIGHT_MIB} MiB"))
        .set("wal.generation_bytes", "16 MiB");
    config
}

/// A gateway with clients at work on some topics, while things happen to its Kafka.
struct Trial<'a> {
    kafka: &'a Kafka,
    topics: Vec<&'a str>,
    gateway: Gateway,
    ledger: Arc<Ledger>,
    loads: Vec<Load>,
    injected: u64,
    /// Values that are in no book, each of which must be in Kafka once, wherever: who was a dead letter comes late.
    late: HashSet<Vec<u8>>,
    /// Records that may be gone, for an operator of Kafka has deleted them.
    excused: usize,
}

impl<'a> Trial<'a> {
    /// Starts it on topics that are there. `kafka`: for reading them at the end.
    fn start(kafka: &'a Kafka, config: &Config, topics: &[&'a str]) -> Self {
        let gateway = Gateway::start(config);
        let ledger = Arc::new(Ledger::default());
        let loads = (topics.iter())
            .map(|topic| Load::start(&gateway, &ledger, topic, CLIENTS))
            .collect();
        let trial = Self {
            kafka,
            topics: topics.to_vec(),
            gateway,
            ledger,
            loads,
            injected: 0,
            late: HashSet::new(),
            excused: 0,
        };
        trial.answers();
        trial.delivers();
        trial
    }

    /// Clients are answered.
    #[track_caller]
    fn answers(&self) {
        let so_far = self.ledger.ok();
        wait_until("clients are answered", seconds(30), || self.ledger.ok() > so_far + 200);
        assert_eq!(self.gateway.admin("/readyz").unwrap().status, 200);
    }

    /// What was answered by now is settled: the forwarder is not stuck.
    #[track_caller]
    fn delivers(&self) {
        let committed = self.gateway.metric("tidegate_wal_committed_sequence");
        // Kafka gives a transaction up after a minute, and only then another one can begin.
        wait_until("what was answered is delivered", seconds(240), || {
            self.gateway.assert_running();
            self.acked() >= committed
        });
    }

    /// What was held is sent.
    #[track_caller]
    fn releases(&self) {
        wait_until("nothing is held", seconds(60), || {
            self.gateway.metric("tidegate_held_records") == 0.0
        });
    }

    fn acked(&self) -> f64 {
        self.gateway.metric("tidegate_wal_acked_sequence")
    }

    /// For so long clients are answered although Kafka is as it is.
    fn for_long(&self, time: Duration) {
        let since = Instant::now();
        self.answers();
        thread::sleep(time.saturating_sub(since.elapsed()));
        self.answers();
    }

    /// Many records at once, of one key.
    fn post_bulk(&self, batches: usize) {
        let client = self.gateway.client();
        for _ in 0..batches {
            let values: Vec<Vec<u8>> = (0..1_000).map(|_| value()).collect();
            post_together(&client, &self.ledger, self.topics[0], &values);
        }
    }

    fn stop_clients(&mut self) {
        for load in self.loads.drain(..) {
            load.stop();
        }
    }

    /// Ends the load, and compares what the clients were answered with what Kafka has. Nothing is repeated, for Kafka
    /// itself removes what its producer repeats, and the gateway looks before it sends what Kafka may have.
    fn check(&mut self) -> Tally {
        self.stop_clients();
        self.gateway.wait_drained(seconds(180));
        self.releases();
        let log = self.gateway.log();
        assert!(!log.contains("panicked"), "{log}");
        let mut late = Vec::new();
        let mut read = |topic| {
            let (apart, usual) = (self.kafka.read_topic(topic, true).into_iter())
                .partition::<Vec<_>, _>(|message| self.late.contains(&message.value));
            late.extend(apart.into_iter().map(|message| message.value));
            usual
        };
        let found: Vec<_> = self.topics.iter().map(|topic| (*topic, read(topic))).collect();
        let tally = self.ledger.check(&found).unwrap();
        let expected = (self.excused, 0, 0);
        assert_eq!((tally.unknown, tally.refused, tally.repeats), expected, "{tally:?}");
        assert_eq!(late.len(), self.late.len(), "each once");
        assert_eq!(late.into_iter().collect::<HashSet<_>>(), self.late);
        tally
    }

    fn finish(mut self, delivery: &str, fault: &str) {
        let tally = self.check();
        Evidence::of(&tally, self.injected).print(&format!("{delivery}: {fault}"));
    }
}

/// Posts a batch of one key, all of which must be taken.
fn post_together(client: &crate::support::client::Client, ledger: &Ledger, topic: &str, values: &[Vec<u8>]) {
    let places: Vec<usize> = (values.iter())
        .map(|value| ledger.intend(topic, Some("bulk"), value))
        .collect();
    let answer = client
        .post(
            &format!("/v1/topics/{topic}?key=bulk"),
            "application/x-ndjson",
            &values.join(&b'\n'),
        )
        .unwrap();
    assert_eq!(answer.status, 202, "{answer:?}");
    for (index, place) in places.into_iter().enumerate() {
        ledger.settle(place, outcome(&answer, index as u64));
    }
}
