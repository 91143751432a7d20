//! How far a member is behind, and whether it gets on: the ends of its partitions, from statistics while they are read
//! and asked for while they stand.

use std::time::{Duration, Instant};

use rdkafka::consumer::Consumer as _;
use tracing::{debug, warn};

use super::{KAFKA_WAIT, Member, Stage};
use crate::metrics as names;

/// A partition that has records and gives none for so long is located anew. Long enough for any fetch that is only
/// slow: librdkafka's own time limit for a request is 60 s.
const STANDSTILL: Duration = Duration::from_secs(90);
/// How often the ends of paused partitions are asked for: nothing is fetched that would tell them.
const ENDS: Duration = Duration::from_secs(5);

impl Member {
    /// The ends of paused partitions, and of those that statistics told.
    pub(super) fn look_at_ends(&mut self) {
        let ends = self.consumer.context().ends();
        let reading = !self.work.paused && self.work.stage == Stage::Ready;
        let mut stands_still = false;
        // Statistics know the ends by what is fetched: of partitions that stand they have the old ones.
        for (partition, end) in ends.into_iter().filter(|_| reading) {
            let Some(part) = self.work.parts.get_mut(&partition) else {
                continue;
            };
            let next = part.position.next;
            if end.offset >= 0
                && let Some(known) = self.state.view().partitions.get_mut(&partition)
            {
                // Markers behind the last record may be all that the position lacks.
                known.end = Some(if end.reached && part.eof {
                    next
                } else {
                    end.offset.max(next)
                });
            }
            let nothing_to_come = if end.offset < 0 {
                next >= part.target
            } else {
                end.reached
            };
            if nothing_to_come || !self.consumer.context().is_up() {
                part.moved = Instant::now();
            }
            stands_still |= part.moved.elapsed() >= STANDSTILL;
        }
        if stands_still {
            metrics::counter!(names::LAND_ERRORS_TOTAL, "reason" => "standstill").increment(1);
            warn!(
                topic = self.source.topic,
                "a partition has records, and Kafka's client has given none for {} s: it is read anew from its position",
                STANDSTILL.as_secs()
            );
            self.lose();
            return;
        }
        let standing = self.work.paused || matches!(self.work.stage, Stage::Asked | Stage::Setting);
        if !standing || Instant::now() < self.work.ends_at {
            return;
        }
        self.work.ends_at = Instant::now() + ENDS;
        for partition in self.work.assigned.clone() {
            match self
                .consumer
                .fetch_watermarks(&self.source.topic, partition, KAFKA_WAIT)
            {
                Ok((low, high)) => {
                    if let Some(known) = self.state.view().partitions.get_mut(&partition) {
                        known.low = Some(low);
                        known.end = Some(high);
                    }
                }
                Err(error) => {
                    debug!(%error, "no watermarks");
                    return;
                }
            }
        }
    }
}
