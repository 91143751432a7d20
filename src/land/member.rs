//! One consumer of a source: a member of its group, from partitions it is given to batches for its sink.
//!
//! # What is kept
//! - Reading begins where the sink says. A partition that was assigned is paused until its position is known, and
//!   what was read for another assignment is dropped.
//! - A batch holds records of this assignment only, and its topic is asked for its id after they were read and before
//!   they are written: a topic that was deleted and made anew under its name has other records under the same offsets.
//! - Kafka is polled all the time, whatever the sink does: with a sink that takes nothing the partitions are paused,
//!   and the member stays in its group.
//!
//! Knows the sink only through `writer.rs`.

mod ends;
mod incoming;
mod locate;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, TryRecvError};
use std::time::{Duration, Instant};

use rdkafka::TopicPartitionList;
use rdkafka::consumer::{BaseConsumer, CommitMode, Consumer as _};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::topic_partition_list::Offset;
use tracing::{debug, info, warn};

#[cfg(any(test, fuzzing))]
pub(crate) use self::incoming::identity;
use self::incoming::{Incoming, Polled, poll};
use super::context::{Context, Event};
use super::row::{Batch, Move, Row};
use super::shared::{MemberState, Place};
use super::sink::{Position, Written};
use super::writer::{Answer, Ask, Question};
use super::{Mode, Options, Source, rules};
use crate::kafka::native;
use crate::metrics as names;

/// How long one question to Kafka may take.
const KAFKA_WAIT: Duration = Duration::from_secs(3);
/// How long nothing is polled while a full batch waits for the sink; after that the partitions are paused.
const SINK_WAIT: Duration = Duration::from_secs(1);
/// The longest poll.
const POLL: Duration = Duration::from_millis(100);
/// The poll while an answer of the sink is near.
const POLL_SHORT: Duration = Duration::from_millis(5);
/// Between two tries to find out where to read.
const RETRY: Duration = Duration::from_millis(500);
/// Where the member stands with its assignment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stage {
    /// It has none.
    Idle,
    /// Positions are to be asked for, not before this.
    Lost(Instant),
    /// The sink was asked for positions.
    Asked,
    /// The sink was asked to change positions.
    Setting,
    /// Reading.
    Ready,
}

/// A partition of the assignment.
struct Part {
    position: Position,
    /// Who its records are that have no identity of their own.
    wal: Arc<str>,
    /// The end when reading began: for a lander that ends by itself.
    target: i64,
    at_end: bool,
    /// No record came since Kafka's client told that it is at the end.
    eof: bool,
    /// When its last record came, or when there was none to come.
    moved: Instant,
}

/// See the module.
pub(super) struct Member {
    pub(super) source: Arc<Source>,
    pub(super) options: Arc<Options>,
    pub(super) consumer: BaseConsumer<Context>,
    pub(super) state: Arc<MemberState>,
    pub(super) questions: Sender<Question>,
    pub(super) answers: Receiver<(u64, Answer)>,
    pub(super) batch_bytes_max: usize,
    pub(super) work: Work,
}

/// What changes while it runs.
pub(super) struct Work {
    stage: Stage,
    generation: u64,
    /// Partitions of the assignment, before their positions are known.
    assigned: Vec<i32>,
    parts: BTreeMap<i32, Part>,
    cluster: String,
    topic_id: Option<String>,
    batch: Batch,
    batch_bytes: usize,
    batch_since: Option<Instant>,
    /// The sink has a question.
    asking: bool,
    paused: bool,
    ends_at: Instant,
    /// Identities of one gateway after another: the text is shared by their rows.
    wal: Option<(uuid::Uuid, Arc<str>)>,
    told_unknown: bool,
    /// Kafka does not give what is to be read; it was told.
    complained: bool,
    /// Some partitions could not be placed: everything is located anew then.
    again_at: Option<Instant>,
}

impl Work {
    pub(super) fn new() -> Self {
        Self {
            stage: Stage::Idle,
            generation: 0,
            assigned: Vec::new(),
            parts: BTreeMap::new(),
            cluster: String::new(),
            topic_id: None,
            batch: Batch::default(),
            batch_bytes: 0,
            batch_since: None,
            asking: false,
            paused: false,
            ends_at: Instant::now(),
            wal: None,
            told_unknown: false,
            complained: false,
            again_at: None,
        }
    }
}

impl Member {
    /// Runs until the stop's deadline, or until what was read by then is written.
    pub(super) fn run(mut self) {
        if let Err(error) = self.join() {
            self.state.view().stopped = Some(format!("topic {}: {error}", self.source.topic));
            return;
        }
        loop {
            let stopping = self.state.stop.deadline().is_some();
            if stopping && self.finish() {
                return;
            }
            let polled = poll(&self.consumer, self.poll_time());
            self.take_events();
            match polled {
                Polled::Nothing => {}
                // What comes after the signal stays in Kafka.
                Polled::Record(record) => {
                    if !stopping {
                        self.reads();
                        self.take(*record);
                    }
                }
                Polled::End(partition) => {
                    if let Some(part) = self.work.parts.get_mut(&partition) {
                        part.at_end = true;
                        part.eof = true;
                    }
                    self.reads();
                }
                Polled::Failed(error) => self.failed(&error),
            }
            self.take_answers();
            self.locate();
            self.write_if_due();
            self.look_at_ends();
            self.tell_done();
        }
    }

    /// Joins the group; a dry run takes every partition, beside the group.
    fn join(&self) -> Result<(), KafkaError> {
        if self.options.mode != Mode::DryRun {
            return self.consumer.subscribe(&[&self.source.topic]);
        }
        let metadata = self.consumer.fetch_metadata(Some(&self.source.topic), KAFKA_WAIT * 3)?;
        let topics = metadata.topics().iter();
        let mut all = TopicPartitionList::new();
        for partition in topics.flat_map(rdkafka::metadata::MetadataTopic::partitions) {
            all.add_partition(&self.source.topic, partition.id());
        }
        self.consumer.context().take_over(&self.consumer, &mut all);
        Ok(())
    }

    fn poll_time(&self) -> Duration {
        let near = self.work.asking && !self.work.paused;
        if near || self.work.stage == Stage::Asked || self.work.stage == Stage::Setting {
            return POLL_SHORT;
        }
        let due = self.work.batch_since.map(|since| since + self.options.batch_wait);
        due.map_or(POLL, |due| {
            due.saturating_duration_since(Instant::now()).clamp(POLL_SHORT, POLL)
        })
    }

    fn take_events(&mut self) {
        for event in self.consumer.context().events() {
            self.forget();
            match event {
                Event::Assigned(partitions) => {
                    debug!(topic = self.source.topic, ?partitions, "assigned");
                    self.work.assigned = partitions;
                    self.work.stage = Stage::Lost(Instant::now());
                }
                Event::Revoked => {
                    debug!(topic = self.source.topic, "revoked");
                    self.work.assigned = Vec::new();
                    self.work.stage = Stage::Idle;
                }
                Event::Failed(why) => self.state.view().stopped = Some(why),
            }
            // Nothing is read here any more, so nothing would take the complaint back.
            if self.work.assigned.is_empty() && std::mem::take(&mut self.work.complained) {
                self.state.reading_works();
            }
            let mut view = self.state.view();
            view.partitions = self.work.assigned.iter().map(|id| (*id, Place::default())).collect();
        }
    }

    /// Nothing of what was read counts any more.
    fn forget(&mut self) {
        self.work.generation = self.state.next_generation();
        self.work.parts.clear();
        self.work.batch = Batch::default();
        self.work.batch_bytes = 0;
        self.work.batch_since = None;
        self.work.paused = false;
        self.work.again_at = None;
        self.state.view().done = false;
    }

    /// The positions are not what they were thought to be: they are read again.
    fn lose(&mut self) {
        self.forget();
        if let Err(error) = self.consumer.pause(&self.list()) {
            debug!(%error, "pausing");
        }
        self.work.stage = Stage::Lost(Instant::now() + RETRY);
    }

    /// The assignment as librdkafka takes it.
    fn list(&self) -> TopicPartitionList {
        let mut list = TopicPartitionList::new();
        for partition in &self.work.assigned {
            list.add_partition(&self.source.topic, *partition);
        }
        list
    }

    /// Puts a record into the batch.
    fn take(&mut self, record: Incoming) {
        if self.work.stage != Stage::Ready {
            return;
        }
        let Some(part) = self.work.parts.get_mut(&record.partition) else {
            return;
        };
        // Fetched before the position was known.
        if record.offset < part.position.next {
            return;
        }
        part.eof = false;
        // What came since belongs to the next run, or this one would not end while there is traffic.
        if self.options.mode != Mode::Forever && part.position.next >= part.target {
            part.at_end = true;
            return;
        }
        let (wal, seq) = match record.identity {
            None => (Arc::clone(&part.wal), record.offset),
            Some((wal, seq)) => {
                let known = self.work.wal.as_ref().filter(|(known, _)| *known == wal);
                let text = known.map_or_else(|| Arc::from(wal.to_string()), |(_, text)| Arc::clone(text));
                self.work.wal = Some((wal, Arc::clone(&text)));
                (text, seq)
            }
        };
        let (fields, reason) = rules::check(&self.source.rule, &self.source.table, record.value.as_deref());
        let row = Row {
            wal,
            seq,
            partition: record.partition,
            offset: record.offset,
            key: record.key,
            received_ms: record.received_ms,
            reason,
            value: record.value,
            fields,
        };
        let next = record.offset.saturating_add(1);
        match (self.work.batch.moves.iter_mut()).find(|known| known.partition == record.partition) {
            Some(known) => known.to = next,
            None => self.work.batch.moves.push(Move {
                partition: record.partition,
                epoch: part.position.epoch,
                from: part.position.next,
                to: next,
            }),
        }
        part.position.next = next;
        part.at_end = part.at_end || next >= part.target;
        part.moved = Instant::now();
        self.work.batch_bytes += row.bytes();
        self.work.batch.rows.push(row);
        self.work.batch_since.get_or_insert_with(Instant::now);
    }

    fn is_full(&self) -> bool {
        self.work.batch.rows.len() >= self.options.batch_records_max || self.work.batch_bytes >= self.batch_bytes_max
    }

    /// Hands the batch to the sink when it is full or old; waits, and at last pauses, while the sink is busy.
    fn write_if_due(&mut self) {
        let Some(since) = self.work.batch_since else { return };
        if !self.is_full() && since.elapsed() < self.options.batch_wait {
            return;
        }
        if self.work.asking && self.is_full() && !self.work.paused {
            match self.answers.recv_timeout(SINK_WAIT) {
                Ok((generation, answer)) => self.answered(generation, answer),
                Err(RecvTimeoutError::Timeout) => self.pause(),
                Err(RecvTimeoutError::Disconnected) => {}
            }
        }
        if !self.work.asking && self.work.stage == Stage::Ready {
            self.write();
        }
    }

    /// Nothing more is read until the batch is written.
    fn pause(&mut self) {
        self.work.paused = true;
        if let Err(error) = self.consumer.pause(&self.list()) {
            warn!(%error, "pausing");
        }
    }

    fn write(&mut self) {
        match self.ask_topic_id() {
            Ok(id) if self.is_anew(id.as_ref()) => {
                warn!(
                    topic = self.source.topic,
                    "the topic was deleted and made anew before {} records that had been read were landed: whose they were \
                     cannot be told any more, and they are read again where the new topic has them",
                    self.work.batch.rows.len()
                );
                self.lose();
                return;
            }
            // Deleted: what was read of it is still to be kept.
            Ok(_) | Err(RDKafkaErrorCode::UnknownTopicOrPartition) => {}
            Err(error) => {
                self.complain(format!("Kafka does not tell the topic's id: {error}"));
                self.work.batch_since = Some(Instant::now());
                // Or the batch would grow for as long as this lasts.
                if self.is_full() && !self.work.paused {
                    self.pause();
                }
                return;
            }
        }
        let mut batch = std::mem::take(&mut self.work.batch);
        self.work.batch_bytes = 0;
        self.work.batch_since = None;
        batch.cluster.clone_from(&self.work.cluster);
        batch.topic.clone_from(&self.source.topic);
        batch.settle();
        self.ask(Ask::Write(Box::new(batch)));
        if std::mem::take(&mut self.work.paused)
            && let Err(error) = self.consumer.resume(&self.list())
        {
            warn!(%error, "resuming");
            self.lose();
        }
    }

    fn is_anew(&self, id: Option<&String>) -> bool {
        id.is_some() && self.work.topic_id.is_some() && id != self.work.topic_id.as_ref()
    }

    /// The topic's id, `None` where there are none or they may not be asked for.
    fn ask_topic_id(&self) -> Result<Option<String>, RDKafkaErrorCode> {
        if !self.options.topic_ids {
            return Ok(None);
        }
        match native::topic_id(self.consumer.client(), &self.source.topic, KAFKA_WAIT) {
            Err(
                RDKafkaErrorCode::UnsupportedFeature
                | RDKafkaErrorCode::UnsupportedVersion
                | RDKafkaErrorCode::TopicAuthorizationFailed
                | RDKafkaErrorCode::ClusterAuthorizationFailed,
            ) => Ok(None),
            other => other,
        }
    }

    fn ask(&mut self, ask: Ask) {
        let question = Question {
            generation: self.work.generation,
            ask,
        };
        self.work.asking = self.questions.send(question).is_ok();
    }

    fn take_answers(&mut self) {
        match self.answers.try_recv() {
            Ok((generation, answer)) => self.answered(generation, answer),
            Err(TryRecvError::Empty) => {}
            Err(TryRecvError::Disconnected) => {
                self.state.view().stopped = Some("the thread that writes to the sink has ended".to_owned());
            }
        }
    }

    fn answered(&mut self, generation: u64, answer: Answer) {
        self.work.asking = false;
        if generation != self.work.generation {
            return;
        }
        match answer {
            Answer::Positions(known) => self.found(&known),
            Answer::Set(true) => self.start_reading(),
            Answer::Written(Written::Done(_), moves) => {
                for place in &moves {
                    if let Some(known) = self.state.view().partitions.get_mut(&place.partition) {
                        known.position = Some(place.to);
                    }
                }
                self.tell_group(&moves);
            }
            Answer::Written(Written::Moved, _) | Answer::Set(false) => {
                metrics::counter!(names::LAND_ERRORS_TOTAL, "reason" => "moved").increment(1);
                info!(
                    topic = self.source.topic,
                    "another lander has written what was to be written here; going on behind it"
                );
                self.lose();
            }
            Answer::GivenUp => {}
        }
    }

    /// For those who watch the group: where reading goes on is the sink's word.
    fn tell_group(&self, moves: &[Move]) {
        if self.options.mode == Mode::DryRun {
            return;
        }
        let mut list = TopicPartitionList::new();
        for place in moves {
            if let Err(error) = list.add_partition_offset(&self.source.topic, place.partition, Offset::Offset(place.to))
            {
                debug!(%error, "no legal offset");
            }
        }
        if let Err(error) = self.consumer.commit(&list, CommitMode::Async) {
            debug!(%error, "telling the group");
        }
    }

    /// An error that librdkafka told in place of a record.
    fn failed(&mut self, error: &KafkaError) {
        match error.rdkafka_error_code() {
            // Also told of a partition whose position is not known yet.
            Some(RDKafkaErrorCode::AutoOffsetReset | RDKafkaErrorCode::OffsetOutOfRange) => {
                if self.work.stage == Stage::Ready {
                    self.lose();
                }
            }
            Some(RDKafkaErrorCode::UnknownTopicOrPartition | RDKafkaErrorCode::UnknownTopic) => {
                // A broker that has just started may say so of a topic that is being read.
                if self.options.mode != Mode::Forever && self.work.assigned.is_empty() {
                    self.state.view().done = true;
                }
                if !std::mem::replace(&mut self.work.told_unknown, true) {
                    warn!(
                        "topic {} does not exist (yet): it is landed as soon as it does",
                        self.source.topic
                    );
                }
            }
            // What the link says for all members, once. It hears of it a second later than a member, and one without
            // partitions reads nothing that would take its complaint back.
            Some(RDKafkaErrorCode::AllBrokersDown) => {}
            Some(RDKafkaErrorCode::BrokerTransportFailure)
                if self.work.assigned.is_empty() || !self.consumer.context().is_up() => {}
            _ => self.complain(error.to_string()),
        }
    }

    /// Kafka answers, but does not give what is to be read.
    fn complain(&mut self, why: String) {
        metrics::counter!(names::LAND_ERRORS_TOTAL, "reason" => "kafka").increment(1);
        self.work.complained = true;
        let text = format!("reading topic {}: {why}", self.source.topic);
        if self.state.reading_fails(text.clone()) {
            warn!("{text}; reading goes on by itself when Kafka allows it");
        }
    }

    /// It gives it again.
    fn reads(&mut self) {
        // Not all of it.
        if self.work.again_at.is_some() {
            return;
        }
        if std::mem::take(&mut self.work.complained) && self.state.reading_works() {
            info!(topic = self.source.topic, "reading goes on");
        }
    }

    fn tell_done(&self) {
        if self.options.mode == Mode::Forever || self.work.stage != Stage::Ready {
            return;
        }
        let empty = self.work.batch.rows.is_empty() && !self.work.asking && self.work.again_at.is_none();
        if empty && self.work.parts.values().all(|part| part.at_end) {
            self.state.view().done = true;
        }
    }

    /// What was read is written; true when nothing more is to be done.
    fn finish(&mut self) -> bool {
        if self.state.time_is_over() {
            return true;
        }
        if self.work.stage != Stage::Ready {
            return !self.work.asking;
        }
        if self.work.asking {
            return false;
        }
        if self.work.batch.rows.is_empty() {
            return true;
        }
        self.write();
        self.work.batch.rows.is_empty() && !self.work.asking
    }
}
