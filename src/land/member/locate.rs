//! Where a member begins to read: the sink's positions, held against what Kafka has now.
//!
//! Asked in steps, so that Kafka is polled between them: which cluster and which topic is this; what are the sink's
//! positions; where does that not fit, and which position does the partition get instead; assign, and read.

use std::time::{Duration, Instant};

use rdkafka::TopicPartitionList;
use rdkafka::consumer::Consumer as _;
use rdkafka::topic_partition_list::Offset;
use tracing::{debug, error, warn};

use super::{KAFKA_WAIT, Member, POLL, Part, RETRY, Stage};
use crate::land::shared::Place;
use crate::land::sink::{Known, Position};
use crate::land::writer::Ask;
use crate::metrics as names;

/// When partitions without an answer are looked for again, at the price of a pause for the others.
const AGAIN: Duration = Duration::from_secs(15);

impl Member {
    /// Asks the sink where to read, once Kafka has said which cluster and which topic this is.
    pub(super) fn locate(&mut self) {
        if self.work.stage == Stage::Ready && self.work.again_at.is_some_and(|at| Instant::now() >= at) {
            self.lose();
        }
        let Stage::Lost(not_before) = self.work.stage else {
            return;
        };
        if Instant::now() < not_before || self.work.asking {
            return;
        }
        if self.work.assigned.is_empty() {
            self.work.stage = Stage::Ready;
            return;
        }
        let cluster = self.consumer.client().fetch_cluster_id(KAFKA_WAIT);
        let topic_id = self.ask_topic_id();
        let (Some(cluster), Ok(topic_id)) = (cluster.clone(), topic_id.clone()) else {
            let why = topic_id.map_or_else(|error| error.to_string(), |_| "no answer about the cluster".to_owned());
            self.complain(format!("Kafka does not say which cluster and topic this is: {why}"));
            self.work.stage = Stage::Lost(Instant::now() + RETRY);
            return;
        };
        self.consumer.context().is_there();
        self.work.cluster = cluster;
        self.work.topic_id = topic_id;
        self.work.stage = Stage::Asked;
        self.ask(Ask::Positions(self.source.topic.clone()));
    }

    /// The sink has told its positions: each partition gets its own, or a new one.
    pub(super) fn found(&mut self, known: &[Known]) {
        let mut changes = Vec::new();
        let until = Instant::now() + KAFKA_WAIT * 4;
        for partition in self.work.assigned.clone() {
            let wait = until.saturating_duration_since(Instant::now()).clamp(POLL, KAFKA_WAIT);
            let (low, high) = match self.consumer.fetch_watermarks(&self.source.topic, partition, wait) {
                Ok(range) => range,
                Err(error) => {
                    // It may have no leader; the others have theirs, and are read.
                    self.work.again_at = Some(Instant::now() + AGAIN);
                    self.complain(format!(
                        "Kafka does not say where partition {partition} begins and ends: {error}"
                    ));
                    continue;
                }
            };
            let here = known
                .iter()
                .find(|known| known.partition == partition && known.cluster == self.work.cluster)
                .map(|known| &known.position);
            let position = self.place(partition, here, known, (low, high));
            if Some(&position) != here {
                let to = Known {
                    cluster: self.work.cluster.clone(),
                    partition,
                    position: position.clone(),
                };
                changes.push((to, here.cloned()));
            }
            let wal = format!(
                "kafka:{}/{}/{partition}/{}",
                self.work.cluster, self.source.topic, position.epoch
            );
            let mut view = self.state.view();
            let place = Place {
                position: Some(position.next),
                low: Some(low),
                end: Some(high),
            };
            view.partitions.insert(partition, place);
            drop(view);
            let part = Part {
                at_end: position.next >= high,
                eof: false,
                target: high,
                moved: Instant::now(),
                position,
                wal: wal.into(),
            };
            self.work.parts.insert(partition, part);
        }
        if self.work.parts.is_empty() {
            self.work.stage = Stage::Lost(Instant::now() + RETRY);
        } else if changes.is_empty() {
            self.start_reading();
        } else {
            self.work.stage = Stage::Setting;
            self.ask(Ask::Set(self.source.topic.clone(), changes));
        }
    }

    /// Where to read a partition from: the sink's position, unless what it points to is not there any more.
    fn place(&self, partition: i32, here: Option<&Position>, known: &[Known], (low, high): (i64, i64)) -> Position {
        let topic = &self.source.topic;
        let anew = |epoch: i64| Position {
            epoch,
            next: low,
            topic_id: self.work.topic_id.clone(),
        };
        let count = |reason: &'static str| {
            metrics::counter!(names::LAND_ERRORS_TOTAL, "reason" => reason).increment(1);
        };
        let Some(here) = here else {
            let elsewhere = known.iter().filter(|known| known.partition == partition);
            let Some(last) = elsewhere.map(|known| known.position.epoch).max() else {
                return anew(1);
            };
            // The embedded broker of `dev` is another one each time: nothing to warn of.
            if !self.options.topic_ids {
                return anew(last.saturating_add(1));
            }
            count("cluster_anew");
            warn!(
                topic,
                partition,
                cluster = self.work.cluster,
                "this is another Kafka cluster than before: the partition is read from its beginning; what came from a gateway \
                 and is stored already is not stored again"
            );
            return anew(last.saturating_add(1));
        };
        if here.topic_id.is_some() && self.is_anew(here.topic_id.as_ref()) {
            count("topic_anew");
            warn!(
                topic,
                partition,
                "the topic was deleted and made anew: it is read from its beginning; what came from a gateway and is stored \
                 already is not stored again"
            );
            return anew(here.epoch.saturating_add(1));
        }
        if here.next < low || here.next > high {
            count("out_of_range");
            let lost = low.saturating_sub(here.next);
            if lost > 0 {
                error!(
                    topic,
                    partition,
                    position = here.next,
                    beginning = low,
                    "Kafka deleted up to {lost} records (or markers of transactions) before they were landed: raise the topic's retention, or keep the lander \
                     running. Reading goes on at the partition's beginning"
                );
            } else {
                error!(
                    topic,
                    partition,
                    position = here.next,
                    end = high,
                    "the partition ends before the position: Kafka lost records that it had. It is read from its beginning; what \
                     came from a gateway and is stored already is not stored again"
                );
            }
            return anew(here.epoch.saturating_add(1));
        }
        Position {
            topic_id: self.work.topic_id.clone().or_else(|| here.topic_id.clone()),
            ..here.clone()
        }
    }

    pub(super) fn start_reading(&mut self) {
        let mut list = TopicPartitionList::new();
        for (partition, part) in &self.work.parts {
            let offset = Offset::Offset(part.position.next);
            if let Err(error) = list.add_partition_offset(&self.source.topic, *partition, offset) {
                error!(%error, partition, "no legal offset");
            }
        }
        // Assigned anew, not sought: a partition that was out of range does not read, so it cannot be sought. And resumed
        // first: librdkafka starts reading a little after assign() has returned, and drops a resume that comes between
        // as outdated, so that the partition would stand still for ever. What is read at the old place until then is
        // for nobody: the stage says so.
        match self.consumer.resume(&list).and_then(|()| self.consumer.assign(&list)) {
            Ok(()) => {
                self.work.stage = Stage::Ready;
                self.reads();
            }
            Err(error) => {
                debug!(topic = self.source.topic, %error, "assigning");
                self.lose();
            }
        }
    }
}
