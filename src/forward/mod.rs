//! The way from the log to Kafka: read, produce, acknowledge.
//!
//! One blocking thread walks the log, hands records to librdkafka and moves the log's watermark over what
//! Kafka acknowledged (acks=all). Everything it may not do without is decided here: nothing is settled before
//! Kafka has it, a dead letter of it is fsynced, or it is fsynced in the held lane; records of one key, and
//! of one partition, keep the order of the log, whatever fails.
//!
//! Records may be sent again after a crash or a producer's end; before that the tail of their topics is read
//! back ([`tail`]), so that repeats are the exception, and what repeats carries its identity.
//!
//! | file | what |
//! |---|---|
//! | `drain` | the thread: reports, walk, watermark |
//! | `recover` | after a failure: judge, replace the producer, sift suspects, dead letters |
//! | `lane` | topics that do not work: hold, probe, release |
//! | `start` | what an earlier run left open |
//! | `command` | what an operator asks: send again, discard or redirect what is held |
//! | `heal` | when Kafka has lost what it had acknowledged |
//! | `transaction`, `takeover`, `denial` | `delivery = "exactly_once"`: transactions, and Kafka's own watermark |
//! | `deliveries` | where Kafka put the last records |
//! | `flow`, `window`, `mark`, `sift`, `topics`, `pace` | its parts; all but the first are pure |
//! | `sender` | a replay's records, beside no log |
//! | `settings`, `producer`, `tail`, `verdict`, `check` | what knows librdkafka, with `kafka/` |
//!
//! Does not know HTTP, the configuration file, or how the log lies on disk.

pub mod check;
mod command;
mod deliveries;
mod denial;
mod drain;
mod embedded;
mod flow;
mod heal;
mod lane;
mod mark;
mod pace;
mod producer;
mod recover;
mod sender;
mod settings;
mod sift;
mod start;
mod tail;
mod takeover;
mod topics;
mod transaction;
mod verdict;
mod window;

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use serde::Serialize;

pub use command::CommandError;
pub use deliveries::{DELIVERIES_MAX, Place};
pub use embedded::EmbeddedBroker;
#[cfg(any(test, fuzzing))]
pub(crate) use mark::Mark;
pub use pace::Pace;
pub use sender::{Refused, SendError, Sender};

use crate::kafka::link::{Link, Words};
use crate::kafka::settings::{explain, unusable};
use crate::record::{Sequence, WalId};
use crate::wal::{Signal, Wal};
use producer::Producer;
use settings::Kind;

/// What Kafka's absence means here, and its return.
const WORDS: Words = Words {
    away: "records are safe in the log and will be sent when it returns",
    back: "the backlog is being sent",
};

/// Called for each record that Kafka acknowledged, on librdkafka's thread: it must be quick.
pub type OnDelivery = Box<dyn Fn(&Delivery<'_>) + Send + Sync>;

/// How records go to Kafka.
pub struct Options {
    /// `host:port`, several separated by commas.
    pub bootstrap_servers: String,
    /// What Kafka's logs and quotas know this gateway by.
    pub client_id: String,
    /// Passed on to librdkafka as written. What the promises rest on is set over them.
    pub properties: BTreeMap<String, String>,
    /// Memory for records on their way, bytes, librdkafka's own share included. At least 1 MiB is sensible.
    pub in_flight_bytes_max: u64,
    /// Payload bytes a second; `None`: as fast as Kafka takes them.
    pub bytes_per_second_max: Option<u64>,
    /// What Kafka has after a crash.
    pub guarantee: Guarantee,
    /// Told of each delivery.
    pub on_delivery: Option<OnDelivery>,
}

/// What Kafka has after a crash.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Guarantee {
    /// Each record at least once. What a crash repeats carries its identity.
    #[default]
    Idempotent,
    /// Each record once, for consumers that read what is committed (`isolation.level = read_committed`).
    ExactlyOnce,
}

impl Options {
    /// The id of this log's transactions, and the group of its watermark in Kafka; `None`: it makes none.
    fn transactions(&self, wal: WalId) -> Option<String> {
        (self.guarantee == Guarantee::ExactlyOnce).then(|| format!("tidegate.{wal}"))
    }
}

/// One acknowledged record.
#[derive(Debug, Clone, Copy)]
pub struct Delivery<'a> {
    /// Where it went.
    pub topic: &'a str,
    /// Its partition.
    pub partition: i32,
    /// Kafka's place in that partition.
    pub offset: i64,
    /// Its `tidegate-seq`.
    pub seq: Sequence,
    /// Its value; `None` is a tombstone.
    pub value: Option<&'a [u8]>,
}

/// Why the forwarder did not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// librdkafka does not know a property, or cannot use its value: exit code 2.
    #[error("{}", unusable(.0))]
    Properties(String),
    /// The system gave no thread.
    #[error("cannot start the forwarder's thread: {0}")]
    Thread(#[from] std::io::Error),
}

/// What an operator wants to know of the way to Kafka.
#[derive(Debug, Clone, Default, Serialize)]
pub struct Status {
    /// A broker is known to be reachable.
    pub broker_up: bool,
    /// The last thing that went wrong, in words; stays after it was overcome.
    pub last_error: Option<String>,
    /// Records with the producer.
    pub in_flight_records: u64,
    /// When the oldest record that is not settled was received, milliseconds since the epoch.
    pub oldest_received_ms: Option<i64>,
    /// Times the producer ended with a fatal error and was made anew.
    pub fatal_errors: u64,
    /// Records that Kafka acknowledged since start.
    pub delivered_records: u64,
    /// Topics whose records are held; at most 1000 are listed.
    pub held_topics: Vec<HeldTopic>,
    /// How many topics are held.
    pub held_topics_count: u64,
    /// Set when the forwarder ended although nobody asked it to: the process should end too.
    pub stopped: Option<String>,
}

/// A topic whose records are held.
#[derive(Debug, Clone, Serialize)]
pub struct HeldTopic {
    /// Its name.
    pub topic: String,
    /// How many records.
    pub records: u64,
    /// Why, and what to do.
    pub reason: String,
    /// Since when, milliseconds since the epoch.
    pub since_ms: i64,
}

/// What the thread and its owner share.
struct Shared {
    status: Mutex<Status>,
    /// Set by a shutdown: when to stop at the latest.
    stop_at: Mutex<Option<Instant>>,
    signal: Arc<Signal>,
    commands: command::Commands,
    deliveries: deliveries::Deliveries,
}

impl Shared {
    fn status(&self) -> MutexGuard<'_, Status> {
        self.status.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn stop_at(&self) -> Option<Instant> {
        *self.stop_at.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Looks at a forwarder. Cheap to clone.
#[derive(Clone)]
pub struct Handle {
    shared: Arc<Shared>,
}

impl Handle {
    /// How it stands, a few milliseconds old at most while something happens.
    #[must_use]
    pub fn status(&self) -> Status {
        self.shared.status().clone()
    }

    /// Where Kafka put the record, if it was one of the last [`DELIVERIES_MAX`] since the start, or since records were last
    /// sent again.
    #[must_use]
    pub fn place(&self, seq: Sequence) -> Option<Place> {
        self.shared.deliveries.place(seq)
    }
}

/// Whether a start would take the properties, and the files that they name. Asks no broker.
///
/// # Errors
/// [`StartError::Properties`].
pub fn check_properties(mut options: Options) -> Result<(), StartError> {
    // A producer begins to connect as soon as it is made.
    options.bootstrap_servers.clear();
    let link = Arc::new(Link::new(WORDS));
    producer(&options, WalId(uuid::Uuid::nil()), &Arc::default(), &link, None).map(drop)
}

/// The first producer, once librdkafka has taken the read-back's settings too.
fn producer(
    options: &Options,
    wal: WalId,
    signal: &Arc<Signal>,
    link: &Arc<Link>,
    on_delivery: Option<&Arc<OnDelivery>>,
) -> Result<Producer, StartError> {
    tail::settings(options, false)
        .create_native_config()
        .map_err(|error| StartError::Properties(explain(&error)))?;
    let transactions = options.transactions(wal);
    let kind = Kind::Gapless { batch_bytes: None };
    Producer::create(options, kind, transactions.as_deref(), signal, link, on_delivery).map_err(StartError::Properties)
}

/// The running forwarder.
pub struct Forwarder {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

impl Forwarder {
    /// Starts the thread. Kafka need not be there.
    ///
    /// # Errors
    /// Properties that librdkafka does not take, or no thread.
    pub fn start(wal: Wal, mut options: Options) -> Result<Self, StartError> {
        let signal = Arc::new(Signal::default());
        wal.log().subscribe(&signal);
        let shared = Arc::new(Shared {
            status: Mutex::default(),
            stop_at: Mutex::default(),
            signal: Arc::clone(&signal),
            commands: command::Commands::default(),
            deliveries: deliveries::Deliveries::default(),
        });
        let link = Arc::new(Link::new(WORDS));
        let on_delivery = options.on_delivery.take().map(Arc::new);
        let producer = producer(&options, wal.id(), &signal, &link, on_delivery.as_ref())?;
        let drain = drain::Drain::new(wal, options, on_delivery, Arc::clone(&shared), link, producer);
        // Tells of a thread that panicked: a forwarder must not be dead while the process looks alive.
        let guard = Guard(Arc::clone(&shared));
        let thread = std::thread::Builder::new()
            .name("forwarder".to_owned())
            .spawn(move || {
                let guard = guard;
                let stopped = drain.run().err().map(|ended| ended.advice());
                if let Some(reason) = &stopped {
                    tracing::error!("the forwarder has stopped: {reason}");
                }
                guard.0.status().stopped = stopped;
                guard.0.commands.refuse_all();
            })?;
        Ok(Self {
            shared,
            thread: Some(thread),
        })
    }

    /// A view for others.
    #[must_use]
    pub fn handle(&self) -> Handle {
        Handle {
            shared: Arc::clone(&self.shared),
        }
    }

    /// Sends what is committed for at most `timeout`, then stops. Blocks until the thread has ended. What was
    /// not acknowledged by then stays in the log for the next start.
    pub fn shutdown(mut self, timeout: Duration) {
        self.stop(timeout);
    }

    fn stop(&mut self, timeout: Duration) {
        if let Some(thread) = self.thread.take() {
            *self.shared.stop_at.lock().unwrap_or_else(PoisonError::into_inner) = Some(Instant::now() + timeout);
            self.shared.signal.notify();
            if thread.join().is_err() {
                tracing::error!("the forwarder's thread panicked");
            }
        }
    }
}

impl Drop for Forwarder {
    fn drop(&mut self) {
        self.stop(Duration::ZERO);
    }
}

/// Dropped while the thread unwinds.
struct Guard(Arc<Shared>);

impl Drop for Guard {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.0.status().stopped = Some("the forwarder's thread panicked".to_owned());
        }
    }
}
