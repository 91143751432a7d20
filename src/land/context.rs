//! What librdkafka calls back to a member: assignments, ends of partitions, complaints.
//!
//! Runs on the member's own thread, within its poll; it only takes note.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use rdkafka::TopicPartitionList;
use rdkafka::client::ClientContext;
use rdkafka::config::RDKafkaLogLevel;
use rdkafka::consumer::{BaseConsumer, Consumer as _, ConsumerContext};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::statistics::Statistics;
use rdkafka::topic_partition_list::Offset;
use rdkafka::types::RDKafkaRespErr;
use tracing::{debug, error};

use crate::kafka::link::{Link, log_line};

/// A change of the assignment; each replaces what was before.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Event {
    Assigned(Vec<i32>),
    Revoked,
    /// librdkafka did not take it: nothing can be read.
    Failed(String),
}

/// What statistics tell of a partition's end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct End {
    /// The offset behind the last record that may be read; below 0 before anything was fetched.
    pub(super) offset: i64,
    /// Everything before it was fetched. (The last offsets may be markers of transactions, which are no records.)
    pub(super) reached: bool,
}

/// See the module.
pub(super) struct Context {
    link: Arc<Link>,
    topic: String,
    notes: Mutex<Notes>,
}

#[derive(Default)]
struct Notes {
    events: Vec<Event>,
    ends: BTreeMap<i32, End>,
}

impl Context {
    pub(super) fn new(link: &Arc<Link>, topic: &str) -> Self {
        Self {
            link: Arc::clone(link),
            topic: topic.to_owned(),
            notes: Mutex::default(),
        }
    }

    fn notes(&self) -> MutexGuard<'_, Notes> {
        self.notes.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What happened since the last call, in order.
    pub(super) fn events(&self) -> Vec<Event> {
        std::mem::take(&mut self.notes().events)
    }

    /// Ends of partitions that statistics told since the last call.
    pub(super) fn ends(&self) -> BTreeMap<i32, End> {
        std::mem::take(&mut self.notes().ends)
    }

    /// A broker has answered just now; statistics say so later.
    pub(super) fn is_there(&self) {
        self.link.up();
    }

    /// A broker answers.
    pub(super) fn is_up(&self) -> bool {
        self.link.state().up
    }

    /// Takes these partitions, standing still: where each is read from is not known yet.
    pub(super) fn take_over(&self, consumer: &BaseConsumer<Self>, list: &mut TopicPartitionList) {
        // A number, so that nothing has to be asked for; the member assigns the right one.
        let offsets = list.set_all_offsets(Offset::Offset(0));
        let assigned = offsets
            .and_then(|()| consumer.assign(list))
            .and_then(|()| consumer.pause(list));
        if let Err(error) = assigned {
            let why = format!(
                "librdkafka does not take the partitions of topic {}: {error}",
                self.topic
            );
            self.notes().events.push(Event::Failed(why));
            return;
        }
        let partitions = list.elements().iter().map(|element| element.partition()).collect();
        self.notes().events.push(Event::Assigned(partitions));
    }
}

impl ClientContext for Context {
    fn log(&self, level: RDKafkaLogLevel, facility: &str, line: &str) {
        log_line(level, facility, line);
    }

    fn stats(&self, statistics: Statistics) {
        self.link.statistics(&statistics);
        let Some(topic) = statistics.topics.get(&self.topic) else {
            return;
        };
        let mut notes = self.notes();
        for (id, partition) in &topic.partitions {
            let offset = partition.ls_offset;
            if *id >= 0 {
                let reached = partition.eof_offset >= offset;
                notes.ends.insert(*id, End { offset, reached });
            }
        }
    }

    fn error(&self, error: KafkaError, reason: &str) {
        // These come from a broker that answers; the member hears of them too.
        let about_a_topic = matches!(
            error.rdkafka_error_code(),
            Some(
                RDKafkaErrorCode::UnknownTopicOrPartition
                    | RDKafkaErrorCode::UnknownTopic
                    | RDKafkaErrorCode::UnknownPartition
                    | RDKafkaErrorCode::TopicAuthorizationFailed
                    | RDKafkaErrorCode::GroupAuthorizationFailed
                    | RDKafkaErrorCode::AutoOffsetReset
                    | RDKafkaErrorCode::PartitionEOF
                    | RDKafkaErrorCode::OffsetOutOfRange
            )
        );
        if !about_a_topic {
            self.link.client_error(&error, reason);
        }
    }
}

impl ConsumerContext for Context {
    fn rebalance(&self, consumer: &BaseConsumer<Self>, err: RDKafkaRespErr, list: &mut TopicPartitionList) {
        if err == RDKafkaRespErr::RD_KAFKA_RESP_ERR__ASSIGN_PARTITIONS {
            self.take_over(consumer, list);
            return;
        }
        self.notes().events.push(Event::Revoked);
        if let Err(error) = consumer.unassign() {
            error!(topic = self.topic, %error, "the assignment could not be given back");
        }
    }

    fn commit_callback(&self, result: rdkafka::error::KafkaResult<()>, _: &TopicPartitionList) {
        if let Err(error) = result {
            debug!(topic = self.topic, %error, "telling the group where the lander is");
        }
    }
}
