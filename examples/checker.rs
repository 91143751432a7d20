//! Does a gateway lose, repeat, swap or change records? A program to find out on one's own: with one's own gateway, Kafka and
//! table, while one breaks whatever one likes. It shares the book and its rules (`tests/it/support/ledger.rs`) with the
//! tests, and nothing with the gateway but its HTTP; with `--wal` it reads the log with the gateway's own code.
//!
//! ```sh
//! cargo run --release --example checker -- load --gateway http://127.0.0.1:4000 --topic t --ledger FILE --records 100000
//! cargo run --release --example checker -- check --ledger FILE --kafka 127.0.0.1:9092 --topic t
//! ```
//! The ledger is a line before each request and a line after its answer, put at the end of the file as they happen:
//!
//! ```text
//! {"send":0,"topic":"t","key":"key-0-0","value":"{...}"}
//! {"answer":0,"status":202,"wal":"<uuid>","seq":1}     or {"answer":0,"status":503}; no line: nobody answered
//! ```
//! A record that nobody answered may still be committed, and later than the next one: a client goes on with another key then.
//! The topic must have no other records.

#![allow(clippy::indexing_slicing)]

use std::collections::HashSet;
use std::fs::{File, OpenOptions};
use std::io::{BufRead as _, BufReader, Write as _};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};
use std::{fs, thread};

use anyhow::{Context as _, Result, anyhow, bail, ensure};
use clap::Parser;
use rdkafka::ClientConfig;
use rdkafka::consumer::{BaseConsumer, Consumer as _};
use rdkafka::error::KafkaError;
use rdkafka::topic_partition_list::{Offset, TopicPartitionList};
use serde::{Deserialize, Serialize};
use tidegate::wal::{Archive, Letter, Part, Read};

#[allow(dead_code)]
#[path = "../tests/it/support/ledger.rs"]
mod ledger;

use ledger::{Ledger, Message, Outcome};

/// How long Kafka may take to answer.
const KAFKA_WAIT: Duration = Duration::from_secs(30);
/// What is read of a log at once.
const READ_BYTES: usize = 1 << 20;

/// Writes down what clients send and are answered, and compares it with what arrived.
#[derive(Parser)]
enum Command {
    /// Sends records and writes the ledger, whatever happens to the gateway meanwhile, until N have been tried or Ctrl-C.
    Load(Load),
    /// Compares the ledger with Kafka, the gateway's log and the lander's table. Exit code 1: something is wrong.
    Check(Check),
}

#[derive(clap::Args)]
struct Load {
    /// The gateway's ingest listener.
    #[arg(long, default_value = "http://127.0.0.1:4000")]
    gateway: String,
    /// Where the records go.
    #[arg(long)]
    topic: String,
    /// The ledger; one that is there is gone on with. Keep it off the disk that is to be broken.
    #[arg(long)]
    ledger: PathBuf,
    /// How many records are tried.
    #[arg(long, default_value_t = 100_000)]
    records: u64,
    /// How many clients do so, each with a key of its own.
    #[arg(long, default_value_t = 8)]
    clients: u64,
}

#[derive(clap::Args)]
struct Check {
    /// What `load` has written.
    #[arg(long)]
    ledger: PathBuf,
    /// A broker, HOST:PORT.
    #[arg(long)]
    kafka: String,
    /// Where the records went.
    #[arg(long)]
    topic: String,
    /// The gateway's log, or a copy of it, while no gateway runs on it: what waits there is not lost.
    #[arg(long)]
    wal: Option<PathBuf>,
    /// The lander's SQLite database: every record must be in its table once.
    #[arg(long)]
    sqlite: Option<PathBuf>,
    /// The table there, if it is not named like the topic.
    #[arg(long)]
    table: Option<String>,
    /// Look at what consumers with isolation.level=read_committed see (forward.delivery = "exactly_once").
    #[arg(long)]
    read_committed: bool,
    /// More repeats in Kafka than these are a fault. Repeats carry one identity, and the lander removes them.
    #[arg(long)]
    repeats_max: Option<usize>,
}

/// A line of the ledger.
#[derive(Serialize, Deserialize)]
#[serde(untagged)]
enum Line {
    Send {
        send: u64,
        topic: String,
        key: String,
        value: String,
    },
    Answer {
        answer: u64,
        status: u16,
        #[serde(skip_serializing_if = "Option::is_none", default)]
        wal: Option<String>,
        #[serde(skip_serializing_if = "Option::is_none", default)]
        seq: Option<u64>,
    },
}

fn main() -> ExitCode {
    let done = match Command::parse() {
        Command::Load(flags) => flags.run().map(|()| true),
        Command::Check(flags) => flags.run(),
    };
    match done {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("checker: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// The lines of a ledger. The last one may be cut off: its writer was killed.
fn lines(path: &Path) -> Result<Vec<Line>> {
    let file = File::open(path).with_context(|| format!("cannot open the ledger {}", path.display()))?;
    let texts = BufReader::new(file).lines().collect::<Result<Vec<_>, _>>()?;
    let mut lines = Vec::with_capacity(texts.len());
    for (at, text) in texts.iter().enumerate() {
        match serde_json::from_str(text) {
            Ok(line) => lines.push(line),
            Err(_) if at + 1 == texts.len() => {}
            Err(error) => bail!("{}: line {} is none of a ledger: {error}", path.display(), at + 1),
        }
    }
    Ok(lines)
}

impl Load {
    fn run(self) -> Result<()> {
        let before = if self.ledger.exists() {
            lines(&self.ledger)?
        } else {
            Vec::new()
        };
        let sent = before.iter().filter(|line| matches!(line, Line::Send { .. })).count() as u64;
        let mut file = OpenOptions::new().create(true).append(true).open(&self.ledger)?;
        if !fs::read(&self.ledger)?.ends_with(b"\n") && sent > 0 {
            // What a killed writer has left of a line must not swallow the next one.
            let whole: String = before.iter().map(line_of).collect::<Result<_>>()?;
            fs::write(&self.ledger, whole)?;
            file = OpenOptions::new().append(true).open(&self.ledger)?;
        }
        let book = Mutex::new((file, sent));
        let run = uuid::Uuid::new_v4();
        let (tried, ok) = (AtomicU64::new(0), AtomicU64::new(0));
        thread::scope(|scope| {
            let clients: Vec<_> = (0..self.clients)
                .map(|client| {
                    scope.spawn({
                        let (book, tried, ok) = (&book, &tried, &ok);
                        let flags = &self;
                        move || flags.client(client, run, book, tried, ok)
                    })
                })
                .collect();
            for client in clients {
                client.join().map_err(|_| anyhow!("a client has panicked"))??;
            }
            anyhow::Ok(())
        })?;
        let ok = ok.into_inner();
        println!(
            "{} records tried, {ok} answered OK; the ledger is {}",
            self.records,
            self.ledger.display()
        );
        Ok(())
    }

    /// One client: a record after the other.
    fn client(
        &self,
        client: u64,
        run: uuid::Uuid,
        book: &Mutex<(File, u64)>,
        tried: &AtomicU64,
        ok: &AtomicU64,
    ) -> Result<()> {
        let agent: ureq::Agent = ureq::Agent::config_builder()
            .http_status_as_error(false)
            .timeout_global(Some(KAFKA_WAIT))
            .proxy(None)
            .build()
            .into();
        let url = format!("{}/v1/topics/{}", self.gateway.trim_end_matches('/'), self.topic);
        let mut epoch = 0;
        let mut last_word = Instant::now();
        while tried.fetch_add(1, Ordering::Relaxed) < self.records {
            let key = format!("key-{run}-{client}-{epoch}");
            let (send, value) = {
                let mut book = book.lock().map_err(|_| anyhow!("another client has panicked"))?;
                let send = book.1;
                let value = format!(
                    r#"{{"run":"{run}","n":{send},"name":"Zoë","filler":"{}"}}"#,
                    "x".repeat(100)
                );
                let (topic, key, text) = (self.topic.clone(), key.clone(), value.clone());
                write(
                    &mut book.0,
                    &Line::Send {
                        send,
                        topic,
                        key,
                        value: text,
                    },
                )?;
                book.1 += 1;
                (send, value)
            };
            let request = agent
                .post(&url)
                .header("content-type", "application/json")
                .header("tidegate-key", &key);
            let answer = request.send(value.as_bytes()).map_err(|error| error.to_string());
            let answer = answer.and_then(|mut answer| {
                let body = answer.body_mut().read_to_string().map_err(|error| error.to_string())?;
                Ok((answer.status().as_u16(), body))
            });
            let line = match answer {
                Ok((202, body)) => {
                    let receipt: serde_json::Value = serde_json::from_str(&body).context("a 202 without a receipt")?;
                    ok.fetch_add(1, Ordering::Relaxed);
                    let wal = receipt["wal"].as_str().map(str::to_owned);
                    let seq = receipt["first_seq"].as_u64();
                    ensure!(
                        wal.is_some() && seq.is_some(),
                        "a receipt without wal and first_seq: {body}"
                    );
                    Line::Answer {
                        answer: send,
                        status: 202,
                        wal,
                        seq,
                    }
                }
                Ok((status, _)) => Line::Answer {
                    answer: send,
                    status,
                    wal: None,
                    seq: None,
                },
                Err(error) => {
                    epoch += 1;
                    if last_word.elapsed() > Duration::from_secs(5) {
                        last_word = Instant::now();
                        eprintln!("client {client}: no answer ({error}); going on");
                    }
                    thread::sleep(Duration::from_millis(50));
                    continue;
                }
            };
            let refused = !matches!(line, Line::Answer { status: 202, .. });
            write(
                &mut book.lock().map_err(|_| anyhow!("another client has panicked"))?.0,
                &line,
            )?;
            if refused {
                thread::sleep(Duration::from_millis(50));
            }
        }
        Ok(())
    }
}

fn line_of(line: &Line) -> Result<String> {
    Ok(serde_json::to_string(line)? + "\n")
}

/// In one piece: what the kernel has outlives this process.
fn write(file: &mut File, line: &Line) -> Result<()> {
    file.write_all(line_of(line)?.as_bytes())
        .context("the ledger cannot be written")
}

impl Check {
    fn run(self) -> Result<bool> {
        let (waiting, letters) = self
            .wal
            .as_deref()
            .map_or(Ok((Vec::new(), HashSet::new())), |wal| self.read_wal(wal))?;
        let (ledger, lettered) = self.read_ledger(&letters)?;
        let delivered = self.read_kafka()?;
        let with_waiting = |mut messages: Vec<Message>| {
            let known: HashSet<_> = messages.iter().filter_map(Message::identity).collect();
            let more = waiting
                .iter()
                .filter(|message| message.identity().is_none_or(|who| !known.contains(&who)));
            let before = messages.len();
            messages.extend(more.cloned());
            (messages.len() - before, messages)
        };
        let mut held = true;
        let mut repeats_max = self.repeats_max;
        let mut places = vec![("Kafka", delivered)];
        if let Some(database) = &self.sqlite {
            places.push(("the table", self.read_table(database)?));
        }
        println!(
            "{:<10} {:>10} {:>10} {:>10} {:>10} {:>10} {:>10} {:>8}",
            "in", "OK", "no answer", "refused", "arrived", "in the log", "letters", "repeats"
        );
        for (place, messages) in places {
            let (in_log, messages) = with_waiting(messages);
            match ledger.check(&[(&self.topic, messages)]) {
                Ok(tally) => {
                    let (ok, unknown) = (tally.ok + lettered, tally.unknown - lettered);
                    let arrived = tally.delivered - in_log;
                    println!(
                        "{place:<10} {ok:>10} {unknown:>10} {:>10} {arrived:>10} {in_log:>10} {:>10} {:>8}",
                        tally.refused,
                        letters.len(),
                        tally.repeats
                    );
                    if repeats_max.is_some_and(|max| tally.repeats > max) {
                        println!("FAULT in {place}: {} repeats", tally.repeats);
                        held = false;
                    }
                }
                Err(faults) => {
                    println!("FAULTS in {place}: {faults:?}");
                    held = false;
                }
            }
            // A table has no repeats at all.
            repeats_max = Some(0);
        }
        println!("{}", if held { "all of it holds" } else { "NOT all of it holds" });
        Ok(held)
    }

    /// The book, and how many of those answered OK are dead letters: where their operator finds them, in no order. They may be
    /// missing elsewhere.
    fn read_ledger(&self, letters: &HashSet<Vec<u8>>) -> Result<(Ledger, usize)> {
        let ledger = Ledger::default();
        let mut lettered = 0;
        let mut places = std::collections::HashMap::new();
        for line in lines(&self.ledger)? {
            match line {
                Line::Send {
                    send,
                    topic,
                    key,
                    value,
                } => {
                    ensure!(
                        topic == self.topic,
                        "the ledger has records of {topic}, and --topic is {}",
                        self.topic
                    );
                    let place = ledger.intend(&topic, Some(&key), value.as_bytes());
                    places.insert(send, (place, letters.contains(value.as_bytes())));
                }
                Line::Answer {
                    answer,
                    status,
                    wal,
                    seq,
                } => {
                    let (place, is_letter) = places
                        .get(&answer)
                        .with_context(|| format!("the ledger has an answer to {answer}, which it never sent"))?;
                    let outcome = match (status, wal, seq) {
                        (202, Some(wal), Some(seq)) => Outcome::Ok { wal, seq },
                        (202, ..) => bail!("the ledger has a 202 without an identity, to {answer}"),
                        _ => Outcome::Refused(status),
                    };
                    match outcome {
                        Outcome::Ok { .. } if *is_letter => lettered += 1,
                        outcome => ledger.settle(*place, outcome),
                    }
                }
            }
        }
        Ok((ledger, lettered))
    }

    /// Everything in the topic, partition by partition.
    fn read_kafka(&self) -> Result<Vec<Message>> {
        let isolation = if self.read_committed {
            "read_committed"
        } else {
            "read_uncommitted"
        };
        let consumer: BaseConsumer = ClientConfig::new()
            .set("bootstrap.servers", &self.kafka)
            .set("group.id", "tidegate-checker")
            .set("enable.auto.commit", "false")
            .set("enable.partition.eof", "true")
            .set("auto.offset.reset", "error")
            .set("isolation.level", isolation)
            .create()?;
        let metadata = consumer.fetch_metadata(Some(&self.topic), KAFKA_WAIT)?;
        let topic = metadata
            .topics()
            .first()
            .context("Kafka does not say what the topic is")?;
        ensure!(
            topic.error().is_none() && !topic.partitions().is_empty(),
            "Kafka has no topic {}",
            self.topic
        );
        let mut open: HashSet<i32> = topic.partitions().iter().map(|partition| partition.id()).collect();
        let mut assignment = TopicPartitionList::new();
        for partition in &open {
            assignment.add_partition_offset(&self.topic, *partition, Offset::Beginning)?;
        }
        consumer.assign(&assignment)?;
        let mut messages = Vec::new();
        let mut last = Instant::now();
        while !open.is_empty() {
            ensure!(
                last.elapsed() < KAFKA_WAIT,
                "Kafka gives no more of the partitions {open:?}"
            );
            match consumer.poll(Duration::from_secs(1)) {
                None => continue,
                Some(Err(KafkaError::PartitionEOF(partition))) => {
                    open.remove(&partition);
                }
                Some(Err(error)) => return Err(error).context("Kafka cannot be read"),
                Some(Ok(message)) => messages.push(Message::of(&message)),
            }
            last = Instant::now();
        }
        messages.sort_by_key(|message| (message.partition, message.offset));
        Ok(messages)
    }

    /// What waits in the log for this topic, in the order in which it will be sent, and the values of its dead letters.
    fn read_wal(&self, folder: &Path) -> Result<(Vec<Message>, HashSet<Vec<u8>>)> {
        let archive = Archive::open(folder)?;
        let own = archive.id()?.to_string();
        let (mut waiting, mut letters) = (Vec::new(), HashSet::new());
        for part in [Part::Held, Part::Main, Part::DeadLetters] {
            let Some(log) = archive.log(part) else { continue };
            let mut reader = log.reader(log.watermarks().acked + 1);
            loop {
                let chunk = match reader.read(READ_BYTES)? {
                    Read::Records(chunk) => chunk,
                    // What is missing shows as lost.
                    Read::Damaged { .. } => continue,
                    Read::Nothing => break,
                };
                if part == Part::DeadLetters {
                    let found = chunk.entries().filter_map(|(_, bytes)| Letter::decode(bytes).ok());
                    letters.extend(
                        found
                            .filter(|letter| letter.record.topic == self.topic)
                            .filter_map(|letter| letter.record.value),
                    );
                    continue;
                }
                for (sequence, record) in chunk.records() {
                    let Ok(record) = record else { continue };
                    if record.topic != self.topic {
                        continue;
                    }
                    let (wal, seq) = record.origin.map_or((own.clone(), sequence), |who| {
                        (uuid::Uuid::from_bytes(who.wal).to_string(), who.seq)
                    });
                    waiting.push(message(-1, sequence, record.key, record.value, (wal, seq))?);
                }
            }
        }
        archive.check_unused()?;
        Ok((waiting, letters))
    }

    /// The rows of the table, as they came out of Kafka.
    fn read_table(&self, database: &Path) -> Result<Vec<Message>> {
        let table = self.table.as_ref().unwrap_or(&self.topic).replace('"', "\"\"");
        let connection = rusqlite::Connection::open_with_flags(database, rusqlite::OpenFlags::SQLITE_OPEN_READ_ONLY)?;
        let mut select = connection.prepare(&format!(
            "SELECT kafka_partition, kafka_offset, key, value, wal, seq FROM \"{table}\" ORDER BY kafka_partition, kafka_offset"
        ))?;
        let mut rows = select.query([])?;
        let mut messages = Vec::new();
        while let Some(row) = rows.next()? {
            let key = row.get_ref(2)?.as_bytes_or_null()?;
            let value = row.get_ref(3)?.as_bytes_or_null()?;
            let (offset, seq): (i64, i64) = (row.get(1)?, row.get(5)?);
            let who = (row.get(4)?, seq.try_into()?);
            messages.push(message(row.get(0)?, offset.try_into()?, key, value, who)?);
        }
        Ok(messages)
    }
}

/// A record from elsewhere, as Kafka would have it.
fn message(
    partition: i32,
    offset: u64,
    key: Option<&[u8]>,
    value: Option<&[u8]>,
    who: (String, u64),
) -> Result<Message> {
    Ok(Message {
        partition,
        offset: offset.try_into()?,
        timestamp_ms: None,
        key: key.map(<[u8]>::to_vec),
        value: value.unwrap_or_default().to_vec(),
        headers: vec![
            ("tidegate-wal".to_owned(), who.0.into_bytes()),
            ("tidegate-seq".to_owned(), who.1.to_string().into_bytes()),
        ],
    })
}
