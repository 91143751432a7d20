//! A running lander: its members' threads, started and ended together.

use std::sync::Arc;
use std::sync::mpsc::channel;
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use rdkafka::config::FromClientConfigAndContext as _;
use rdkafka::consumer::BaseConsumer;

use super::context::Context;
use super::member::{Member, Work};
use super::settings::settings;
use super::shared::{MemberState, Stop};
use super::sink::{Sink, SinkError};
use super::target::Opener;
use super::{Mode, Options, Status, Totals, writer};
use crate::kafka::link::{Link, Words};
use crate::kafka::settings::{explain, unusable};

/// What Kafka's absence means here, and its return.
const WORDS: Words = Words {
    away: "what was landed stays, and landing goes on by itself when it returns",
    back: "landing goes on",
};
/// Batches of all members together, bytes: what a lander of many sources needs at most, twice over (one is filled
/// while one is written).
const BATCHES_BYTES_MAX: usize = 8 << 20;
/// How long a lander that is to end by itself waits for a Kafka or a database that is away.
const AWAY_MAX: Duration = Duration::from_secs(30);

/// Why a lander did not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// librdkafka does not take a property.
    #[error("{}", unusable(.0))]
    Properties(String),
    /// Somebody has to change something about the database or folder.
    #[error("{0}")]
    Sink(String),
    /// The database does not answer, and this lander is to end by itself.
    #[error("{0}. Nothing was landed: start it again when the database answers")]
    Away(String),
    /// The system gave no thread.
    #[error("no thread could be started: {0}")]
    Thread(#[from] std::io::Error),
}

/// A lander at work. Dropped: stopped at once; what was not written is read again by the next.
pub struct Lander {
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<()>>,
}

struct Shared {
    stop: Arc<Stop>,
    link: Arc<Link>,
    members: Vec<Arc<MemberState>>,
    mode: Mode,
    sink: String,
}

/// A view for others.
#[derive(Clone)]
pub struct Handle {
    shared: Arc<Shared>,
}

impl Lander {
    /// Prepares the tables, then starts every consumer. Blocks while the database is asked. Kafka need not be there, nor,
    /// unless the lander is to end by itself, the database.
    ///
    /// # Errors
    /// See [`StartError`].
    pub fn start(options: Options) -> Result<Self, StartError> {
        let options = Arc::new(options);
        let opener = Opener::new(&options)?;
        let members_count: usize = options.sources.iter().map(|source| source.consumers(&options)).sum();
        let link = Arc::new(Link::new(WORDS));
        let stop = Arc::new(Stop::default());
        let mut members = Vec::new();
        // One that does not answer is waited for once, not by each member in turn.
        let mut answers = true;
        for source in &options.sources {
            let source = Arc::new(source.clone());
            for _ in 0..source.consumers(&options) {
                let mut sink = opener.sink(&source.table)?;
                let prepared = answers && prepare(sink.as_mut(), &opener, options.mode)?;
                answers = prepared;
                let context = Context::new(&link, &source.topic);
                let group = match options.mode {
                    // A group of nobody's, which is never joined.
                    Mode::DryRun => format!("tidegate-dry-run-{}", uuid::Uuid::new_v4()),
                    Mode::Forever | Mode::Once => source.group.clone(),
                };
                let consumer =
                    BaseConsumer::from_config_and_context(&settings(&options, &group, members_count), context)
                        .map_err(|error| StartError::Properties(explain(&error)))?;
                let state = Arc::new(MemberState::new(
                    &source.table.name,
                    &source.topic,
                    opener.name(),
                    &stop,
                ));
                members.push((sink, prepared, consumer, state, Arc::clone(&source)));
            }
        }
        let mut lander = Self {
            shared: Arc::new(Shared {
                stop,
                link,
                members: members.iter().map(|(_, _, _, state, _)| Arc::clone(state)).collect(),
                mode: options.mode,
                sink: opener.name().to_owned(),
            }),
            threads: Vec::new(),
        };
        let batch_bytes_max = options.batch_bytes_max.min(BATCHES_BYTES_MAX / members_count.max(1));
        for (sink, prepared, consumer, state, source) in members {
            let (questions, asked) = channel();
            let (answering, answers) = channel();
            let writers = Arc::clone(&state);
            let name = format!("land {}", source.table.name);
            lander.threads.push(
                thread::Builder::new()
                    .name(format!("{name} sink"))
                    .spawn(move || writer::run(sink, prepared, &writers, &asked, &answering))?,
            );
            let member = Member {
                source,
                options: Arc::clone(&options),
                consumer,
                state,
                questions,
                answers,
                batch_bytes_max,
                work: Work::new(),
            };
            let guard = Guard(Arc::clone(&member.state));
            lander.threads.push(thread::Builder::new().name(name).spawn(move || {
                let guard = guard;
                member.run();
                drop(guard);
            })?);
        }
        Ok(lander)
    }

    /// A view for others.
    #[must_use]
    pub fn handle(&self) -> Handle {
        Handle {
            shared: Arc::clone(&self.shared),
        }
    }

    /// Writes what was read, for at most `timeout`, leaves the groups and closes the sinks. Blocks until that is done.
    pub fn shutdown(mut self, timeout: Duration) {
        self.stop(timeout);
    }

    fn stop(&mut self, timeout: Duration) {
        if self.threads.is_empty() {
            return;
        }
        self.shared.stop.at(Instant::now() + timeout);
        for thread in self.threads.drain(..) {
            if thread.join().is_err() {
                tracing::error!("a thread of the lander panicked; what it had read is read again by the next lander");
            }
        }
    }
}

impl Drop for Lander {
    fn drop(&mut self) {
        self.stop(Duration::ZERO);
    }
}

/// False: the database does not answer, and is asked again.
fn prepare(sink: &mut dyn Sink, opener: &Opener, mode: Mode) -> Result<bool, StartError> {
    match sink.prepare() {
        Ok(()) => Ok(true),
        Err(SinkError::Refused(why)) => Err(StartError::Sink(why)),
        Err(SinkError::Away(why)) if mode == Mode::Forever => {
            tracing::warn!(
                "{} does not answer: {why}. Landing begins when it does; until then the records stay in Kafka",
                opener.name()
            );
            Ok(false)
        }
        Err(SinkError::Away(why)) => Err(StartError::Away(why)),
    }
}

impl Handle {
    /// The state of everything.
    #[must_use]
    pub fn status(&self) -> Status {
        let shared = &self.shared;
        let link = shared.link.state();
        let mut status = Status {
            kafka_up: link.up,
            kafka_error: link.last_error.filter(|_| !link.up),
            sink_up: true,
            sink: shared.sink.clone(),
            ..Status::default()
        };
        for member in &shared.members {
            status.partitions.extend(member.partitions());
            let view = member.view();
            if let Some((why, _)) = &view.sink_error {
                status.sink_up = false;
                status.sink_error = Some(why.clone());
            }
            if let Some((why, _)) = &view.reading_error {
                status.kafka_up = false;
                status.kafka_error = status.kafka_error.or_else(|| Some(why.clone()));
            }
            status.stopped = status.stopped.or_else(|| view.stopped.clone());
            status.stored = add(status.stored, view.totals);
        }
        status
            .partitions
            .sort_by(|a, b| (&a.source, a.partition).cmp(&(&b.source, b.partition)));
        status.lag_records = status.partitions.iter().map(|partition| partition.lag_records).sum();
        status
    }

    /// What each source stored since the start, in the order of the configuration.
    #[must_use]
    pub fn totals(&self) -> Vec<(String, Totals)> {
        let mut totals: Vec<(String, Totals)> = Vec::new();
        for member in &self.shared.members {
            let more = member.view().totals;
            match totals.iter_mut().find(|(source, _)| *source == member.source) {
                Some((_, known)) => *known = add(*known, more),
                None => totals.push((member.source.clone(), more)),
            }
        }
        totals
    }

    /// For a lander that ends by itself: whether it came to its end, or cannot.
    #[must_use]
    pub fn finished(&self) -> Option<Result<(), String>> {
        let shared = &self.shared;
        if shared.mode == Mode::Forever {
            return None;
        }
        if shared.members.iter().all(|member| member.view().done) {
            return Some(Ok(()));
        }
        let mut stopped = shared.members.iter().filter_map(|member| member.view().stopped.clone());
        if let Some(why) = stopped.next() {
            return Some(Err(why));
        }
        let patience = |since: Instant| since.elapsed() >= AWAY_MAX;
        for member in &shared.members {
            let view = member.view();
            let mut faults = view.sink_error.iter().chain(&view.reading_error);
            if let Some((why, _)) = faults.find(|(_, since)| patience(*since)) {
                return Some(Err(why.clone()));
            }
        }
        let link = shared.link.state();
        link.down_since.is_some_and(patience).then(|| {
            let why = link.last_error.unwrap_or_else(|| "no broker answers".to_owned());
            Err(format!("Kafka unreachable: {why}"))
        })
    }
}

fn add(a: Totals, b: Totals) -> Totals {
    Totals {
        valid: a.valid + b.valid,
        invalid: a.invalid + b.invalid,
        duplicates: a.duplicates + b.duplicates,
        rejected: a.rejected + b.rejected,
    }
}

/// Dropped while the thread unwinds.
struct Guard(Arc<MemberState>);

impl Drop for Guard {
    fn drop(&mut self) {
        if thread::panicking() {
            self.0.view().stopped = Some(format!("the thread of source {} panicked", self.0.source));
        }
    }
}
