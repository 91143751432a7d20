//! The table of topics: what is known of each, and of those whose records are held.
//!
//! Bounded: beyond [`TOPICS_MAX`] names (a client can invent them) all further ones are one entry, which is
//! held until the next start. Knows neither the producer nor the log.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use metrics::Counter;
use rdkafka::error::RDKafkaErrorCode;

use super::HeldTopic;
use super::verdict;
use crate::metrics::{FORWARD_BYTES_TOTAL, FORWARD_RECORDS_TOTAL, Label};
use crate::record::{Sequence, now_ms};

/// Names that are told apart; about 300 bytes each.
pub(super) const TOPICS_MAX: usize = 50_000;
/// How many held topics the status lists.
const LISTED_MAX: usize = 1000;
/// The entry for names beyond [`TOPICS_MAX`].
const OTHERS: &str = "(topics beyond the first 50000)";
/// Between two looks at a held topic.
const PROBE_MIN: Duration = Duration::from_millis(500);
const PROBE_MAX: Duration = Duration::from_secs(30);

/// What is done with a topic's records.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum State {
    /// Kafka was not asked yet.
    New,
    /// Sent.
    Good,
    /// Appended to the held lane.
    Held,
    /// A pass over the lane is sending what was held.
    Releasing,
}

/// What is known of a topic that has records in the lane.
#[derive(Debug)]
pub(super) struct Hold {
    /// In words.
    pub(super) reason: String,
    pub(super) since_ms: i64,
    /// Unsettled records in the lane.
    pub(super) records: u64,
    /// The lane sequence of its first record.
    pub(super) first: Option<Sequence>,
    /// Refused when written to, not by the metadata: only a write can show that it works again.
    pub(super) refused: bool,
    /// Its records were in the lane before this start, so some may be in Kafka already.
    pub(super) unverified: bool,
    probe_at: Instant,
    wait: Duration,
}

/// One topic.
pub(super) struct Topic {
    pub(super) name: String,
    pub(super) state: State,
    pub(super) hold: Option<Hold>,
    /// The back-off of its last hold, until a record of it is delivered: a topic that fails as soon as it is
    /// released must not have the lane rewritten each time.
    setback: Option<Duration>,
    pub(super) records: Counter,
    pub(super) bytes: Counter,
}

/// See the module.
pub(super) struct Topics {
    list: Vec<Topic>,
    by_name: HashMap<String, u32>,
    last: u32,
    label: Label,
}

impl Topics {
    pub(super) fn new() -> Self {
        Self {
            list: Vec::new(),
            by_name: HashMap::new(),
            last: 0,
            label: Label::default(),
        }
    }

    /// The index of `name`.
    pub(super) fn id(&mut self, name: &str) -> u32 {
        // Records of one topic mostly come together.
        if self.get(self.last).is_some_and(|topic| topic.name == name) {
            return self.last;
        }
        self.last = match self.by_name.get(name) {
            Some(id) => *id,
            None => self.add(name),
        };
        self.last
    }

    fn add(&mut self, name: &str) -> u32 {
        let full = self.list.len() >= TOPICS_MAX;
        if let (true, Some(id)) = (full, self.by_name.get(OTHERS)) {
            return *id;
        }
        let name = if full { OTHERS } else { name };
        let id = self.list.len() as u32;
        let label = self.label.cap(name).to_owned();
        self.list.push(Topic {
            name: name.to_owned(),
            state: State::New,
            hold: None,
            setback: None,
            records: metrics::counter!(FORWARD_RECORDS_TOTAL, "topic" => label.clone()),
            bytes: metrics::counter!(FORWARD_BYTES_TOTAL, "topic" => label),
        });
        self.by_name.insert(name.to_owned(), id);
        if full {
            self.hold_for(id, "there are too many different topic names".to_owned(), false);
        }
        id
    }

    /// The index of `name`, if it is known.
    pub(super) fn find(&self, name: &str) -> Option<u32> {
        self.by_name.get(name).or_else(|| self.by_name.get(OTHERS)).copied()
    }

    /// Nothing of the topic is held any more, and nothing was sent to show that it works: Kafka is asked again.
    pub(super) fn forget(&mut self, id: u32) {
        if let Some(topic) = self.get_mut(id).filter(|topic| topic.name != OTHERS) {
            topic.state = State::New;
            topic.hold = None;
        }
    }

    pub(super) fn get(&self, id: u32) -> Option<&Topic> {
        self.list.get(id as usize)
    }

    pub(super) fn get_mut(&mut self, id: u32) -> Option<&mut Topic> {
        self.list.get_mut(id as usize)
    }

    pub(super) fn state(&self, id: u32) -> State {
        self.get(id).map_or(State::New, |topic| topic.state)
    }

    pub(super) fn name(&self, id: u32) -> &str {
        self.get(id).map_or("", |topic| &topic.name)
    }

    pub(super) fn set_state(&mut self, id: u32, state: State) {
        if let Some(topic) = self.get_mut(id) {
            topic.state = state;
        }
    }

    /// The topic's records are held from now on. `refused`: Kafka refused a write, not a look.
    pub(super) fn hold(&mut self, id: u32, code: RDKafkaErrorCode, refused: bool) {
        self.hold_for(id, verdict::reason(code), refused);
    }

    fn hold_for(&mut self, id: u32, reason: String, refused: bool) {
        let Some(topic) = self.get_mut(id) else { return };
        if topic.state != State::Held {
            tracing::warn!(
                topic = topic.name,
                "records of the topic are held: {reason}. Other topics go on; nothing is lost"
            );
        }
        topic.state = State::Held;
        if let Some(again) = &mut topic.hold {
            again.wait = (again.wait * 2).min(PROBE_MAX);
        }
        let wait = topic.setback.map_or(PROBE_MIN, |wait| (wait * 2).min(PROBE_MAX));
        let hold = topic.hold.get_or_insert_with(|| Hold {
            reason: String::new(),
            since_ms: now_ms(),
            records: 0,
            first: None,
            refused,
            unverified: false,
            probe_at: Instant::now(),
            wait,
        });
        hold.reason = reason;
        hold.refused = refused;
        hold.probe_at = Instant::now() + hold.wait;
    }

    /// Counts acknowledged records.
    pub(super) fn count(&mut self, id: u32, records: u64, bytes: u64) {
        if let (Some(topic), 1..) = (self.get_mut(id), records) {
            topic.setback = None;
            topic.records.increment(records);
            topic.bytes.increment(bytes);
        }
    }

    /// One record of the topic is in the lane since before this start, at `seq`.
    pub(super) fn found_in_lane(&mut self, id: u32, seq: Sequence) {
        if self.state(id) != State::Held {
            self.hold_for(id, "held since before the last start".to_owned(), false);
        }
        if let Some(hold) = self.get_mut(id).and_then(|topic| topic.hold.as_mut()) {
            hold.unverified = true;
            hold.records += 1;
            hold.first.get_or_insert(seq);
            hold.probe_at = Instant::now();
        }
    }

    /// A record of the topic left the lane for good.
    pub(super) fn left_lane(&mut self, id: u32) {
        if let Some(hold) = self.get_mut(id).and_then(|topic| topic.hold.as_mut()) {
            hold.records = hold.records.saturating_sub(1);
        }
    }

    /// The held topic to look at now: the one that has waited longest.
    pub(super) fn due(&self, now: Instant) -> Option<u32> {
        (self.list.iter().enumerate())
            .filter(|(_, topic)| topic.state == State::Held && topic.name != OTHERS)
            .filter_map(|(index, topic)| Some((topic.hold.as_ref()?.probe_at, index as u32)))
            .filter(|(probe_at, _)| *probe_at <= now)
            .min()
            .map(|(_, id)| id)
    }

    /// It does not work yet: the next look is later, by a random share so that topics spread out.
    pub(super) fn probe_later(&mut self, id: u32) {
        if let Some(hold) = self.get_mut(id).and_then(|topic| topic.hold.as_mut()) {
            let jitter = f64::from(id.wrapping_mul(2_654_435_761) >> 16) / 65_536.0;
            hold.probe_at = Instant::now() + hold.wait.mul_f64(0.75 + jitter / 2.0);
            hold.wait = (hold.wait * 2).min(PROBE_MAX);
        }
    }

    /// A look showed that the topic does not work yet, perhaps for another reason than before.
    pub(super) fn still_held(&mut self, id: u32, code: RDKafkaErrorCode, refused: bool) {
        self.probe_later(id);
        if let Some(hold) = self.get_mut(id).and_then(|topic| topic.hold.as_mut()) {
            hold.reason = verdict::reason(code);
            // Once a write was refused, only a write shows that it works.
            hold.refused |= refused;
        }
    }

    /// A pass begins: what stays held gets new places in the lane.
    pub(super) fn reset_first(&mut self) {
        for topic in &mut self.list {
            if let Some(hold) = &mut topic.hold {
                hold.first = None;
            }
        }
    }

    /// Before the lane is scanned (again).
    pub(super) fn forget_held(&mut self) {
        for topic in &mut self.list {
            topic.state = State::New;
            topic.hold = None;
        }
    }

    /// A pass has sent everything that was held of the topic.
    pub(super) fn released(&mut self, id: u32) {
        if let Some(topic) = self.get_mut(id) {
            topic.state = State::Good;
            topic.setback = topic.hold.take().map(|hold| hold.wait);
        }
    }

    /// The topics in `state`.
    pub(super) fn with_state(&self, state: State) -> impl Iterator<Item = u32> {
        (self.list.iter().enumerate())
            .filter(move |(_, topic)| topic.state == state)
            .map(|(index, _)| index as u32)
    }

    /// For the status: those with records in the lane, or that are held without any yet.
    pub(super) fn held(&self) -> Vec<HeldTopic> {
        (self.list.iter())
            .filter(|topic| matches!(topic.state, State::Held | State::Releasing))
            .filter_map(|topic| {
                let hold = topic.hold.as_ref()?;
                Some(HeldTopic {
                    topic: topic.name.clone(),
                    records: hold.records,
                    reason: hold.reason.clone(),
                    since_ms: hold.since_ms,
                })
            })
            .take(LISTED_MAX)
            .collect()
    }

    /// How many [`Self::held`] would list without its limit.
    pub(super) fn held_count(&self) -> u64 {
        let held = |topic: &&Topic| matches!(topic.state, State::Held | State::Releasing) && topic.hold.is_some();
        self.list.iter().filter(held).count() as u64
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn invented_names_share_one_held_entry_at_the_limit() {
        let mut topics = Topics::new();
        for i in 0..TOPICS_MAX {
            topics.id(&format!("t{i}"));
        }
        let others = topics.id("one-more");
        assert_eq!(topics.id("and-another"), others);
        assert_eq!(topics.state(others), State::Held);
        assert_eq!(topics.id("t7"), 7);
        assert!(topics.due(Instant::now() + PROBE_MAX * 2).is_none());
    }

    #[test]
    fn the_topic_that_waited_longest_is_looked_at_first() {
        let mut topics = Topics::new();
        let (first, second) = (topics.id("first"), topics.id("second"));
        topics.hold(second, RDKafkaErrorCode::UnknownTopicOrPartition, false);
        topics.hold(first, RDKafkaErrorCode::UnknownTopicOrPartition, false);
        topics.probe_later(first);
        topics.probe_later(first);
        assert_eq!(topics.due(Instant::now() + PROBE_MAX * 2), Some(second));
    }

    #[test]
    fn looks_at_a_held_topic_back_off() {
        let mut topics = Topics::new();
        let id = topics.id("t");
        topics.hold(id, RDKafkaErrorCode::UnknownTopicOrPartition, false);
        let now = Instant::now();
        assert_eq!(topics.due(now + PROBE_MIN), Some(id));
        for _ in 0..10 {
            topics.probe_later(id);
        }
        assert_eq!(topics.due(now + Duration::from_secs(20)), None);
        assert_eq!(topics.due(now + Duration::from_secs(60)), Some(id));
    }
}
