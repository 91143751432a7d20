//! Many sites whose Kafka comes back: gateways as processes of their own, each with its log and a backlog, that all
//! reconnect to one real broker at once, with `forward.bytes_per_second_max` and without; and what they cost at rest. Beside
//! them somebody else uses the same broker: how long it waits for an ack says what the crowd does to others.
//!
//! The broker has a processor of its own, and all gateways together another one: elsewhere they are not on its machine.
//!
//! Every record is looked for in Kafka afterwards, and one that is missing or there twice ends the run.
//!
//! `cargo bench --bench fleet`; the broker is the tests' (`./tests/run` fetches it). `TIDEGATE_BENCH_GATEWAYS` (200; 1,000 take
//! 8 GB of memory and 20,000 threads, and more processors than two while they knock), `TIDEGATE_BENCH_BACKLOG` (1,000 records
//! each), `TIDEGATE_BENCH_RUNS` (outages of each kind, 3; 0: only what they cost at rest).
#![allow(missing_docs, dead_code, unused_imports, unused_macros)]
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)]

mod common;
#[path = "../tests/it/support/mod.rs"]
mod support;

use std::collections::HashMap;
use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use rdkafka::ClientConfig;
use rdkafka::TopicPartitionList;
use rdkafka::consumer::{BaseConsumer, Consumer as _};
use rdkafka::message::{Headers as _, Message as _};
use rdkafka::producer::{BaseRecord, DeliveryResult, Producer as _, ProducerContext, ThreadedProducer};
use rdkafka::topic_partition_list::Offset;

use common::{Row, cpu_seconds, json_record, number, pid_in, print_table, rss_mib, setting, spread};
use support::gateway::{Config, Gateway};
use support::kafka::Kafka;
use support::prometheus::Prometheus;

const TOPIC: &str = "fleet";
const PARTITIONS: i32 = 12;
const OTHER: &str = "other";
/// What each may send in the second kind of outage.
const PACE: &str = "8 KiB";
/// How long nothing happens while what that costs is measured.
const REST: Duration = Duration::from_secs(20);
const LIMIT: Duration = Duration::from_secs(600);

/// Does it for each of `items`, a few at a time.
fn each<T: Sync, U: Send>(items: &[T], work: impl Fn(usize, &T) -> U + Sync) -> Vec<U> {
    let (next, done) = (AtomicUsize::new(0), Mutex::new(Vec::new()));
    thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| {
                loop {
                    let i = next.fetch_add(1, Ordering::Relaxed);
                    let Some(item) = items.get(i) else { break };
                    let result = work(i, item);
                    done.lock().unwrap().push(result);
                }
            });
        }
    });
    done.into_inner().unwrap()
}

/// The broker's process.
fn pid_of(kafka: &Kafka) -> u32 {
    let folder = kafka.partition_folder("x", 0);
    pid_in(folder.ancestors().nth(2).unwrap())
}

/// Has a process run on this processor only, so far as there is one.
fn pin(pid: u32, processor: usize) {
    if thread::available_parallelism().map_or(1, usize::from) > processor {
        let arguments = ["-acp", &processor.to_string(), &pid.to_string()];
        // It gives up where one of the threads ends meanwhile.
        support::wait_until("all threads are pinned", LIMIT, || {
            let mut taskset = Command::new("taskset");
            let pinned = taskset.args(arguments).stdout(Stdio::null()).stderr(Stdio::null());
            pinned.status().unwrap().success()
        });
    }
}

/// Connections that the broker has.
fn connections(kafka: &Kafka) -> usize {
    let port: u16 = kafka.bootstrap().rsplit_once(':').unwrap().1.parse().unwrap();
    let [v4, v6] = ["tcp", "tcp6"].map(|file| fs::read_to_string(format!("/proc/net/{file}")).unwrap_or_default());
    let is_ours = |line: &&str| {
        let mut fields = line.split_whitespace().skip(1);
        let local = fields.next().unwrap_or_default();
        // 01: established.
        local.ends_with(&format!(":{port:04X}")) && fields.nth(1) == Some("01")
    };
    v4.lines().chain(v6.lines()).filter(is_ours).count()
}

/// The share of a process in what is in memory (Pss), MiB.
fn pss_mib(pid: u32) -> f64 {
    let rollup = fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).unwrap();
    let line = rollup.lines().find_map(|line| line.strip_prefix("Pss:")).unwrap();
    line.trim().trim_end_matches("kB").trim().parse::<f64>().unwrap() / 1024.0
}

fn threads(pid: u32) -> f64 {
    fs::read_dir(format!("/proc/{pid}/task")).unwrap().count() as f64
}

/// How long each ack took.
#[derive(Default)]
struct Acks(Mutex<Vec<f64>>);

impl rdkafka::ClientContext for Acks {}
impl ProducerContext for Acks {
    type DeliveryOpaque = Box<Instant>;
    fn delivery(&self, result: &DeliveryResult<'_>, sent: Box<Instant>) {
        assert!(result.is_ok(), "{result:?}");
        self.0.lock().unwrap().push(sent.elapsed().as_secs_f64() * 1e3);
    }
}

/// Somebody else, who sends a record each 50 ms while `work` goes on: what came of it, and the milliseconds until each ack.
fn beside<T>(kafka: &Kafka, work: impl FnOnce() -> T) -> (T, Vec<f64>) {
    let producer: ThreadedProducer<Acks> = ClientConfig::new()
        .set("bootstrap.servers", kafka.bootstrap())
        .set("acks", "all")
        .set("linger.ms", "0")
        .create_with_context(Acks::default())
        .unwrap();
    /// Ends the other thread, also when the work panics.
    struct Ends<'a>(&'a AtomicBool);
    impl Drop for Ends<'_> {
        fn drop(&mut self) {
            self.0.store(true, Ordering::Relaxed);
        }
    }
    let over = AtomicBool::new(false);
    let result = thread::scope(|scope| {
        let _ends = Ends(&over);
        scope.spawn(|| {
            while !over.load(Ordering::Relaxed) {
                let record = BaseRecord::<(), [u8], _>::with_opaque_to(OTHER, Box::new(Instant::now()));
                producer
                    .send(record.payload(&[b'x'; 200]))
                    .map_err(|(error, _)| error)
                    .unwrap();
                thread::sleep(Duration::from_millis(50));
            }
        });
        work()
    });
    producer.flush(LIMIT).unwrap();
    let acks = std::mem::take(&mut *producer.context().0.lock().unwrap());
    (result, acks)
}

fn percentile(figures: &[f64], share: f64) -> f64 {
    let mut sorted = figures.to_vec();
    sorted.sort_by(f64::total_cmp);
    sorted[((sorted.len() - 1) as f64 * share) as usize]
}

fn consumer(kafka: &Kafka) -> BaseConsumer {
    ClientConfig::new()
        .set("bootstrap.servers", kafka.bootstrap())
        .set("group.id", "fleet")
        .set("enable.auto.commit", "false")
        .set("enable.partition.eof", "true")
        .create()
        .unwrap()
}

/// How many records the topic has.
fn records(consumer: &BaseConsumer) -> u64 {
    let end = |partition| consumer.fetch_watermarks(TOPIC, partition, LIMIT).unwrap().1;
    (0..PARTITIONS).map(|partition| end(partition) as u64).sum()
}

/// Reads all of it: each record of each log once. When each gateway's last record came, by the broker's clock, after its first
/// of them all from `since` on: seconds.
fn read(kafka: &Kafka, gateways: usize, each: u64, since: &[i64]) -> (Vec<f64>, Vec<i64>) {
    let consumer = consumer(kafka);
    let mut list = TopicPartitionList::new();
    for partition in 0..PARTITIONS {
        list.add_partition_offset(TOPIC, partition, Offset::Beginning).unwrap();
    }
    consumer.assign(&list).unwrap();
    let mut logs = HashMap::<Vec<u8>, Vec<bool>>::new();
    let mut last = HashMap::<Vec<u8>, i64>::new();
    let (mut first, mut ends) = (i64::MAX, vec![0; PARTITIONS as usize]);
    let mut open = PARTITIONS;
    while open > 0 {
        match consumer.poll(LIMIT).expect("Kafka answers") {
            Err(rdkafka::error::KafkaError::PartitionEOF(_)) => open -= 1,
            Err(error) => panic!("{error}"),
            Ok(message) => {
                let headers = message.headers().unwrap();
                let of = |name| headers.iter().find(|header| header.key == name).unwrap().value.unwrap();
                let seq: usize = std::str::from_utf8(of("tidegate-seq")).unwrap().parse().unwrap();
                let seen = logs.entry(of("tidegate-wal").to_vec()).or_default();
                seen.resize(seen.len().max(seq + 1), false);
                assert!(!std::mem::replace(&mut seen[seq], true), "a record came twice");
                let partition = message.partition() as usize;
                ends[partition] = message.offset() + 1;
                if message.offset() >= since[partition] {
                    let at = message.timestamp().to_millis().unwrap();
                    first = first.min(at);
                    let last = last.entry(of("tidegate-wal").to_vec()).or_insert(at);
                    *last = at.max(*last);
                }
            }
        }
    }
    assert_eq!(logs.len(), gateways, "logs in Kafka");
    for seen in logs.values() {
        assert!(
            seen.len() as u64 == each + 1 && seen.iter().skip(1).all(|seen| *seen),
            "a record is missing"
        );
    }
    let last = last.values().map(|at| (at - first) as f64 / 1e3);
    (last.collect(), ends)
}

/// A Prometheus that scrapes all of them each 15 s and computes the shipped rules: its memory in MiB above that of one that
/// has just begun, its processor time and that of all gateways in seconds a second.
fn scraped(fleet: &Fleet<'_>) -> (f64, f64, f64) {
    let folder = tempfile::Builder::new().prefix("tidegate-fleet-").tempdir().unwrap();
    let shipped = Path::new(env!("CARGO_MANIFEST_DIR")).join("deploy/prometheus");
    let targets: Vec<String> = fleet
        .gateways
        .iter()
        .map(|gateway| format!("'{}'", gateway.admin))
        .collect();
    let configuration = format!(
        "global: {{ scrape_interval: 15s, evaluation_interval: 15s }}\n\
         rule_files: ['{}/tidegate.*.yml']\n\
         scrape_configs: [{{ job_name: tidegate, static_configs: [{{ targets: [{}], labels: {{ site: s }} }}] }}]\n",
        shipped.display(),
        targets.join(", ")
    );
    fs::write(folder.path().join("prometheus.yml"), configuration).unwrap();
    let path = folder.path().to_owned();
    let prometheus = Prometheus::start(folder);
    let pid = pid_in(&path);
    let memory = rss_mib(pid);
    let up = || prometheus.query("sum(up)").first().map_or(0.0, |sample| sample.value);
    support::wait_until("all are scraped", LIMIT, || up() as usize == fleet.gateways.len());
    // Each once more at least: a rate needs two.
    let before = (cpu_seconds(pid), fleet.cpu(), Instant::now());
    thread::sleep(2 * REST);
    let seconds = before.2.elapsed().as_secs_f64();
    (
        rss_mib(pid) - memory,
        (cpu_seconds(pid) - before.0) / seconds,
        (fleet.cpu() - before.1) / seconds,
    )
}

/// What an outage came to.
struct Outage {
    /// Seconds from the first record until half of the gateways had sent everything, and until all had.
    half: f64,
    all: f64,
    records_per_second: f64,
    /// Of the processors, from the broker's first answer on.
    broker_cores: f64,
    gateways_cores: f64,
    /// Cores that those who knock in vain take while it is away.
    knocking_cores: f64,
    acks: Vec<f64>,
}

struct Fleet<'a> {
    kafka: &'a Kafka,
    gateways: Vec<Gateway>,
    backlog: u64,
    /// Records that each has sent so far.
    sent: u64,
    since: Vec<i64>,
}

impl Fleet<'_> {
    fn cpu(&self) -> f64 {
        self.gateways.iter().map(|gateway| cpu_seconds(gateway.pid())).sum()
    }

    fn post(&mut self, count: u64) {
        let sent = self.sent;
        each(&self.gateways, |i, gateway| {
            let record = |n| json_record(i as u64 * 1_000_000 + sent + n);
            let lines: Vec<Vec<u8>> = (0..count).map(record).collect();
            let headers = [("content-type", "application/x-ndjson")];
            let path = format!("/v1/topics/{TOPIC}");
            let answer = gateway
                .client()
                .post_with(&path, &headers, &lines.join(&b'\n'))
                .unwrap();
            assert_eq!(answer.status, 202, "{answer:?}");
        });
        self.sent += count;
    }

    fn wait(&self, consumer: &BaseConsumer) {
        let expected = self.sent * self.gateways.len() as u64;
        support::wait_until("everything is in Kafka", LIMIT, || records(consumer) >= expected);
    }

    fn outage(&mut self) -> Outage {
        self.kafka.stop();
        self.post(self.backlog);
        let before = self.cpu();
        thread::sleep(REST);
        let knocking_cores = (self.cpu() - before) / REST.as_secs_f64();
        self.kafka.start();
        let broker = pid_of(self.kafka);
        pin(broker, 0);
        let before = (cpu_seconds(broker), self.cpu(), Instant::now());
        let consumer = consumer(self.kafka);
        let ((), acks) = beside(self.kafka, || self.wait(&consumer));
        let seconds = before.2.elapsed().as_secs_f64();
        let (broker_cores, gateways_cores) = (
            (cpu_seconds(broker) - before.0) / seconds,
            (self.cpu() - before.1) / seconds,
        );
        for gateway in &self.gateways {
            gateway.wait_drained(LIMIT);
        }
        let (last, ends) = read(self.kafka, self.gateways.len(), self.sent, &self.since);
        self.since = ends;
        let (_, half, all) = spread(&last);
        Outage {
            half,
            all,
            records_per_second: (self.backlog * self.gateways.len() as u64) as f64 / all,
            broker_cores,
            gateways_cores,
            knocking_cores,
            acks,
        }
    }
}

fn main() {
    let (count, backlog) = (
        setting("TIDEGATE_BENCH_GATEWAYS", 200),
        setting("TIDEGATE_BENCH_BACKLOG", 1000),
    );
    let runs = setting("TIDEGATE_BENCH_RUNS", 3);
    common::print_machine_for(runs);
    println!("{count} gateways, {backlog} records each, {PARTITIONS} partitions");
    let kafka = Kafka::private();
    // By the broker's clock, one for all.
    kafka.create_topic(TOPIC, PARTITIONS, &[("message.timestamp.type", "LogAppendTime")]);
    kafka.create_topic(OTHER, 1, &[]);
    let broker = pid_of(&kafka);
    pin(broker, 0);
    let ((), alone) = beside(&kafka, || thread::sleep(REST));
    let (memory, others) = (rss_mib(broker), connections(&kafka));

    let began = Instant::now();
    let places = vec![(); count];
    let gateways = each(&places, |i, ()| {
        let mut config = Config::with(&kafka);
        config.set("gateway.id", format!("site-{i}"));
        Gateway::start(&config)
    });
    println!("started in {:.0} s", began.elapsed().as_secs_f64());
    gateways.iter().for_each(|gateway| pin(gateway.pid(), 1));
    let mut fleet = Fleet {
        kafka: &kafka,
        gateways,
        backlog,
        sent: 0,
        since: vec![0; PARTITIONS as usize],
    };
    fleet.post(1);
    let consumer = consumer(&kafka);
    fleet.wait(&consumer);
    fleet.since = read(&kafka, count, 1, &fleet.since).1;
    let before = (cpu_seconds(broker), fleet.cpu(), Instant::now());
    let ((), at_rest) = beside(&kafka, || thread::sleep(REST));
    let seconds = before.2.elapsed().as_secs_f64();
    let (own, theirs) = (cpu_seconds(broker) - before.0, fleet.cpu() - before.1);
    let (scrape_memory, scraper, while_scraped) = scraped(&fleet);
    let pids: Vec<u32> = fleet.gateways.iter().map(Gateway::pid).collect();
    let of_each = |what: fn(u32) -> f64| pids.iter().map(|pid| what(*pid)).collect::<Vec<f64>>();
    let row = |name: &str, figures: Vec<f64>| Row {
        name: name.into(),
        figures,
    };
    let scrape = fleet.gateways[0].admin("/metrics").unwrap().body;
    let per_gateway = |all: f64| vec![all / count as f64];
    let rows = [
        row("its share of memory (Pss), MiB", of_each(pss_mib)),
        row("its threads", of_each(threads)),
        row("its processor time, ms a second", per_gateway(theirs / seconds * 1e3)),
        row(
            "the same while it is scraped each 15 s",
            per_gateway(while_scraped * 1e3),
        ),
        row(
            "connections at the broker",
            per_gateway((connections(&kafka) - others) as f64),
        ),
        row(
            "memory of the broker (resident, with what it kept of one record), KiB",
            per_gateway((rss_mib(broker) - memory) * 1024.0),
        ),
        row(
            "processor time of the broker, ms a second",
            per_gateway(own / seconds * 1e3),
        ),
        row(
            "series in a scrape",
            vec![scrape.lines().filter(|line| !line.starts_with('#')).count() as f64],
        ),
        row("bytes of a scrape", vec![scrape.len() as f64]),
        row(
            "memory of a Prometheus with the shipped rules (resident), KiB",
            per_gateway(scrape_memory * 1024.0),
        ),
        row(
            "processor time of that Prometheus, ms a second",
            per_gateway(scraper * 1e3),
        ),
    ];
    print_table(&format!("A gateway of {count} at rest"), "each", &rows, "");
    drop(consumer);
    if runs == 0 {
        drop(fleet);
        Kafka::end_shared();
        return;
    }

    let free: Vec<Outage> = (0..runs).map(|_| fleet.outage()).collect();
    each(&fleet.gateways, |_, gateway| gateway.terminate());
    for gateway in &mut fleet.gateways {
        gateway.wait_for_exit(LIMIT);
        gateway.set("forward.bytes_per_second_max", PACE);
        gateway.restart();
        pin(gateway.pid(), 1);
    }
    // As before the others: the topic is known to each.
    fleet.post(1);
    fleet.wait(&self::consumer(&kafka));
    fleet.since = read(&kafka, count, fleet.sent, &fleet.since).1;
    let paced: Vec<Outage> = (0..runs).map(|_| fleet.outage()).collect();

    let kinds = [
        ("as fast as they can".to_owned(), &free),
        (format!("{PACE} a second each"), &paced),
    ];
    let table = |title: &str, unit: &str, figure: fn(&Outage) -> f64| {
        let rows = kinds
            .each_ref()
            .map(|(name, outages)| row(name, outages.iter().map(figure).collect()));
        print_table(title, unit, &rows, "as fast as they can");
    };
    table(
        "Half of the gateways have sent everything, after the first record",
        "s",
        |outage| outage.half,
    );
    table("All have", "s", |outage| outage.all);
    table("All of them together", "records/s", |outage| outage.records_per_second);
    table(
        "Processors that the broker used, from its first answer on",
        "cores",
        |outage| outage.broker_cores,
    );
    table(
        "Processors that the gateways used, from the broker's first answer on",
        "cores",
        |outage| outage.gateways_cores,
    );
    table(
        "Processors that the gateways used while the broker was away",
        "cores",
        |outage| outage.knocking_cores,
    );
    let quiet = [("no gateways", &alone), ("gateways at rest", &at_rest)];
    println!(
        "\n### Somebody else's record, until its ack\n\n| | records | ms: median | p99 | max |\n|---|--:|--:|--:|--:|"
    );
    let line = |name: &str, acks: &[f64]| {
        let [median, p99, max] = [0.5, 0.99, 1.0].map(|share| number(percentile(acks, share)));
        println!("| {name} | {} | {median} | {p99} | {max} |", acks.len());
    };
    for (name, acks) in quiet {
        line(name, acks);
    }
    for (name, outages) in &kinds {
        let acks: Vec<f64> = outages.iter().flat_map(|outage| outage.acks.iter().copied()).collect();
        line(name, &acks);
    }
    drop(fleet);
    Kafka::end_shared();
}
