//! A clock that is set a year forward or back, while the gateway works and while it does not: nothing is lost, each
//! key's records keep their order, nothing waits for a time that does not come, and what Kafka refuses because of its
//! time is held until the clock is right.
//!
//! The gateway's own clock only: a preloaded library (clock/clock.c) adds an offset to the time of day.

use std::fs::File;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Arc, OnceLock};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use crate::support::evidence::Evidence;
use crate::support::gateway::{Config, Gateway, NOWHERE};
use crate::support::kafka::Kafka;
use crate::support::ledger::{Ledger, Tally};
use crate::support::load::{Load, post};
use crate::support::topics::Message;
use crate::support::{seconds, soak, unique, wait_until};

cases!["clock":
    a_jump_during_work_loses_nothing_and_stops_nothing [Kafka],
    a_jump_while_kafka_is_away_stops_nothing [OwnKafka],
    a_jump_between_runs_loses_nothing [Kafka],
    what_kafka_refuses_for_its_time_is_held_until_the_clock_is_right [Kafka],
];

const YEAR: i64 = 365 * 24 * 3600;
/// No time of the tests is off by more than they take.
const TEST: i64 = 3600;

fn library() -> &'static Path {
    static BUILT: OnceLock<(tempfile::TempDir, PathBuf)> = OnceLock::new();
    let (_, path) = BUILT.get_or_init(|| {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("clock.so");
        let built = Command::new("cc")
            .args(["-O1", "-Wall", "-Wextra", "-Werror", "-shared", "-fPIC", "-o"])
            .arg(&path)
            .arg(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/it/clock/clock.c"))
            .args(["-ldl", "-lpthread"])
            .output();
        let built = built.expect("a C compiler, which the build needs too");
        assert!(built.status.success(), "{}", String::from_utf8_lossy(&built.stderr));
        (folder, path)
    });
    path
}

/// The clock of a gateway under test.
pub struct Clock {
    _folder: tempfile::TempDir,
    offset: File,
}

impl Clock {
    /// Puts it into a configuration.
    pub fn new(config: &mut Config) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("offset");
        let clock = Self {
            offset: File::create(&path).unwrap(),
            _folder: folder,
        };
        clock.set(0);
        config.environment("LD_PRELOAD", library().to_str());
        config.environment("CLOCK_OFFSET", path.to_str());
        clock
    }

    /// So many seconds off from now on.
    pub fn set(&self, seconds: i64) {
        self.offset.write_all_at(&seconds.to_le_bytes(), 0).unwrap();
    }
}

fn config(bootstrap: &str) -> Config {
    let mut config = Config::new(bootstrap);
    config.set("wal.generation_bytes", "1 MiB");
    config
}

/// Kafka takes any time in it, and keeps what looks old.
fn topic(kafka: &Kafka, name: &str) -> String {
    let topic = unique(name);
    let settings = [
        ("retention.ms", "-1"),
        ("message.timestamp.after.max.ms", "9223372036854775807"),
    ];
    kafka.create_topic(&topic, 2, &settings);
    topic
}

fn rounds(normal: usize) -> usize {
    if soak() { 20 } else { normal }
}

#[track_caller]
fn answers(ledger: &Ledger) {
    let so_far = ledger.ok();
    wait_until("clients are answered", seconds(30), || ledger.ok() > so_far + 200);
}

#[track_caller]
fn delivers(gateway: &Gateway) {
    let committed = gateway.metric("tidegate_wal_committed_sequence");
    wait_until("what was answered is delivered", seconds(60), || {
        gateway.assert_running();
        gateway.metric("tidegate_wal_acked_sequence") >= committed
    });
}

/// Ages are none of a clock that is a year off, or at most of that.
#[track_caller]
fn assert_sane(gateway: &Gateway) {
    let metrics = gateway.metrics();
    for (name, value) in &metrics {
        assert!(value.is_finite(), "{name} {value}");
        let is_time = name.contains("_seconds") && !name.contains("_bucket") && !name.contains("_count");
        assert!(*value >= 0.0 || !name.contains("_seconds"), "{name} {value}");
        // Sums are of many records, and some are no durations.
        let is_date = name.contains("_timestamp_seconds") || name == "process_start_time_seconds";
        if is_time && !is_date && !name.contains("_sum") {
            assert!(*value <= (2 * YEAR + TEST) as f64, "{name} {value}");
        }
    }
    assert_eq!(gateway.admin("/livez").unwrap().status, 200);
    assert_eq!(gateway.admin("/readyz").unwrap().status, 200);
    assert_eq!(gateway.admin("/").unwrap().status, 200);
    gateway.status();
    assert!(!gateway.log().contains("panicked"), "{}", gateway.log());
}

/// The time of a record in Kafka: when it was received, or when it was sent if that was earlier. Either is about the
/// machine's time and one of the offsets.
fn assert_times(messages: &[Message], offsets: &[i64]) {
    let real = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs();
    let real = i64::try_from(real).unwrap();
    let is_of_some = |ms: i64| {
        let is_near = |offset: &i64| (ms / 1000 - real - offset).abs() < TEST;
        offsets.iter().any(is_near)
    };
    for message in messages {
        let received: i64 = message.header("tidegate-received").unwrap().parse().unwrap();
        let sent = message.timestamp_ms.unwrap();
        assert!(
            sent <= received && is_of_some(sent) && is_of_some(received),
            "{message:?}"
        );
    }
    // Most were sent by the clock they were received by.
    let alike = messages.iter().filter(|message| {
        message.header("tidegate-received") == message.timestamp_ms.map(|ms| ms.to_string()).as_deref()
    });
    assert!(alike.count() * 2 > messages.len());
}

fn check(kafka: &Kafka, gateway: &Gateway, ledger: &Ledger, topic: &str) -> (Tally, Vec<Message>) {
    gateway.wait_drained(seconds(60));
    wait_until("nothing is held", seconds(60), || {
        gateway.metric("tidegate_held_records") == 0.0
    });
    assert_sane(gateway);
    let messages = kafka.read_topic(topic, true);
    let tally = ledger.check(&[(topic, messages.clone())]).unwrap();
    (tally, messages)
}

const JUMPS: [i64; 6] = [YEAR, 0, -YEAR, 0, YEAR, -YEAR];

fn a_jump_during_work_loses_nothing_and_stops_nothing() {
    let kafka = Kafka::shared();
    let topic = topic(kafka, "clock");
    let mut config = config(kafka.bootstrap());
    let clock = Clock::new(&mut config);
    let gateway = Gateway::start(&config);
    let ledger = Arc::new(Ledger::default());
    let load = Load::start(&gateway, &ledger, &topic, 4);
    let mut injected = 0;
    for offset in JUMPS.into_iter().cycle().take(rounds(JUMPS.len())) {
        answers(&ledger);
        clock.set(offset);
        injected += 1;
        answers(&ledger);
        delivers(&gateway);
        assert_sane(&gateway);
    }
    load.stop();
    let (tally, messages) = check(kafka, &gateway, &ledger, &topic);
    assert_times(&messages, &JUMPS);
    assert_eq!((tally.unknown, tally.refused, tally.repeats), (0, 0, 0), "{tally:?}");
    Evidence::of(&tally, injected).print("the clock set by one or two years during work");
}

/// A broker that starts again forgets which records a producer has sent when those look older than a day
/// (producer.id.expiration.ms): what was on its way when it was killed under a clock of a year ago may be there twice.
fn a_jump_while_kafka_is_away_stops_nothing() {
    let kafka = Kafka::private();
    let topic = topic(&kafka, "clock-away");
    let mut config = config(kafka.bootstrap());
    let clock = Clock::new(&mut config);
    let gateway = Gateway::start(&config);
    let ledger = Arc::new(Ledger::default());
    let (mut injected, mut on_their_way, mut is_past) = (0, 0.0, false);
    for offset in [-YEAR, 0].into_iter().cycle().take(rounds(2)) {
        let load = Load::start(&gateway, &ledger, &topic, 4);
        answers(&ledger);
        kafka.kill();
        if is_past {
            on_their_way += gateway.metric("tidegate_wal_backlog_records");
        }
        // Everything waits by now: for the broker, or for the next try. And nobody comes to wake it up.
        wait_until("it is told that the broker is away", seconds(30), || {
            gateway.metric("tidegate_forward_broker_up") == 0.0
        });
        answers(&ledger);
        load.stop();
        clock.set(offset);
        (injected, is_past) = (injected + 1, offset < 0);
        kafka.start();
        delivers(&gateway);
        assert_sane(&gateway);
    }
    let (tally, messages) = check(&kafka, &gateway, &ledger, &topic);
    assert_times(&messages, &[-YEAR, 0]);
    assert_eq!((tally.unknown, tally.refused), (0, 0), "{tally:?}");
    assert!(tally.repeats as f64 <= on_their_way, "{tally:?} {on_their_way}");
    Evidence::of(&tally, injected).print("the clock set by a year while the broker is away");
}

fn a_jump_between_runs_loses_nothing() {
    let kafka = Kafka::shared();
    let topic = topic(kafka, "clock-runs");
    let mut config = config(kafka.bootstrap());
    let clock = Clock::new(&mut config);
    let mut gateway = Gateway::start(&config);
    let ledger = Arc::new(Ledger::default());
    let mut injected = 0;
    for (round, offset) in JUMPS.into_iter().cycle().take(rounds(JUMPS.len())).enumerate() {
        let load = Load::start(&gateway, &ledger, &topic, 4);
        answers(&ledger);
        // Killed, or ended: with records that are in the log only, or none.
        if round % 2 == 0 {
            gateway.sigkill();
        } else {
            assert!(gateway.sigterm(seconds(60)).success());
        }
        load.join();
        clock.set(offset);
        injected += 1;
        // Without Kafka first: the log grows under this clock and is sent under the next.
        if round % 3 == 0 {
            gateway.set("kafka.bootstrap_servers", NOWHERE);
            gateway.restart();
            assert!(gateway.metric("tidegate_wal_next_sequence") > ledger.last_seq() as f64);
            let client = gateway.client();
            for _ in 0..50 {
                assert!(post(&client, &ledger, &topic, Some("waits")));
            }
            assert_sane(&gateway);
            gateway.sigkill();
            gateway.set("kafka.bootstrap_servers", kafka.bootstrap());
        }
        gateway.restart();
        let next = gateway.metric("tidegate_wal_next_sequence");
        assert!(next > ledger.last_seq() as f64, "{next} was used before");
        assert_sane(&gateway);
    }
    let (tally, messages) = check(kafka, &gateway, &ledger, &topic);
    assert_times(&messages, &JUMPS);
    // A gateway that ends refuses what comes then; and of a killed one's last records the clients know nothing.
    assert_eq!(tally.repeats, 0, "{tally:?}");
    Evidence::of(&tally, injected).print("the clock set by one or two years between runs");
}

fn what_kafka_refuses_for_its_time_is_held_until_the_clock_is_right() {
    let kafka = Kafka::shared();
    // As topics are: nothing from more than an hour ahead.
    let (strict, open) = (unique("clock-strict"), topic(kafka, "clock-open"));
    kafka.create_topic(&strict, 2, &[("retention.ms", "-1")]);
    let mut config = config(kafka.bootstrap());
    let clock = Clock::new(&mut config);
    let gateway = Gateway::start(&config);
    let ledger = Arc::new(Ledger::default());
    let loads = [&strict, &open].map(|topic| Load::start(&gateway, &ledger, topic, 2));
    let mut injected = 0;
    for _ in 0..rounds(1) {
        answers(&ledger);
        clock.set(YEAR);
        injected += 1;
        wait_until("the topic is held, and why", seconds(60), || {
            let ready = gateway.admin("/readyz").unwrap();
            ready.status == 200 && ready.body.contains("correct this machine's clock") && ready.body.contains(&strict)
        });
        answers(&ledger);
        delivers(&gateway);
        assert_eq!(gateway.metric("tidegate_held_topics"), 1.0, "the other goes on");
        assert_eq!(gateway.metric("tidegate_dead_letters"), 0.0);
        assert_sane(&gateway);
        clock.set(0);
        wait_until("nothing is held", Duration::from_secs(90), || {
            gateway.metric("tidegate_held_records") == 0.0
        });
        delivers(&gateway);
    }
    for load in loads {
        load.stop();
    }
    gateway.wait_drained(seconds(60));
    assert_eq!(gateway.metric("tidegate_dead_letters"), 0.0);
    let topics = [&strict, &open].map(|topic| (topic.as_str(), kafka.read_topic(topic, true)));
    let tally = ledger.check(&topics).unwrap();
    assert_eq!((tally.unknown, tally.refused, tally.repeats), (0, 0, 0), "{tally:?}");
    Evidence::of(&tally, injected).print("the clock a year ahead, which Kafka refuses");
}
