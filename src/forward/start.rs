//! What an earlier run, or an ended producer, left open: which un-acknowledged records are in Kafka, or in
//! the held lane, all the same? Found out before anything is sent; while Kafka is away, that waits.

use std::collections::{HashMap, HashSet, VecDeque};
use std::time::Duration;

use super::drain::{Drain, Step};
use super::flow::{Flow, Identity, SLOTS_MAX};
use super::lane::Lane;
use super::tail::{self, Outcome, Seen};
use super::topics::Topics;
use super::window::State;
use crate::record::{Origin, Sequence};
use crate::wal::{Log, Read, ReadError};

/// Bytes read at once.
const CHUNK_BYTES: usize = 1 << 20;
/// Between two tries while Kafka is away, at first and at most.
const AWAY_MIN: Duration = Duration::from_millis(500);
const AWAY_MAX: Duration = Duration::from_secs(5);

/// The un-acknowledged records that may have been on their way.
#[derive(Debug, Default)]
pub(super) struct Survey {
    /// The topics, with the earliest time of receipt in each.
    topics: HashMap<String, i64>,
    /// Records that carry another identity than their place in this log.
    origins: HashMap<Origin, Sequence>,
    /// The sequences that were looked at, if any.
    range: Option<(Sequence, Sequence)>,
    /// The lowest own sequence among the identities.
    lowest: Option<Sequence>,
    /// The earliest time of receipt.
    oldest_ms: Option<i64>,
}

impl Survey {
    /// Reads the log behind the watermark, `last` at most, for records that `wanted` wants.
    pub(super) fn make(
        flow: &Flow,
        identity: &Identity,
        last: Sequence,
        mut wanted: impl FnMut(Sequence, &str, Origin) -> bool,
    ) -> Result<Self, ReadError> {
        let first = flow.window.acked() + 1;
        let last = last.min(flow.window.acked() + SLOTS_MAX as Sequence);
        let mut survey = Self::default();
        let mut reader = flow.log.reader(first);
        while reader.position() <= last {
            let chunk = match reader.read(CHUNK_BYTES)? {
                Read::Records(chunk) => chunk,
                // Reported when the walk comes there.
                Read::Damaged { .. } => continue,
                Read::Nothing => break,
            };
            for (seq, record) in chunk.records() {
                let Ok(record) = record else { continue };
                if seq > last || flow.window.state(seq) == Some(State::Done) {
                    continue;
                }
                let who = identity.of(seq, record.origin);
                survey.oldest_ms.get_or_insert(record.received_ms);
                if !wanted(seq, record.topic, who) {
                    continue;
                }
                match survey.topics.get_mut(record.topic) {
                    Some(oldest) => *oldest = (*oldest).min(record.received_ms),
                    None => {
                        survey.topics.insert(record.topic.to_owned(), record.received_ms);
                    }
                }
                if who.wal == identity.wal {
                    survey.lowest = Some(survey.lowest.map_or(who.seq, |lowest| lowest.min(who.seq)));
                }
                if record.origin.is_some() {
                    survey.origins.insert(who, seq);
                }
                survey.range = Some((survey.range.map_or(seq, |(first, _)| first), seq));
            }
        }
        Ok(survey)
    }

    /// Looks for the records in Kafka; those found are added to `settled`.
    fn look(&self, drain: &Drain, settled: &mut HashSet<Sequence>) -> Result<Outcome, rdkafka::error::KafkaError> {
        let topics: Vec<(String, i64)> = self.topics.iter().map(|(name, ms)| (name.clone(), *ms)).collect();
        let own = drain.identity.wal;
        let mut see = |_: &str, who: Origin| {
            if let Some(seq) = self.origins.get(&who) {
                settled.insert(*seq);
                return Seen::Wanted;
            }
            if who.wal != own {
                return Seen::Other;
            }
            if self.lowest.is_some_and(|lowest| who.seq < lowest) {
                return Seen::Ground;
            }
            match self.range {
                Some((first, last)) if (first..=last).contains(&who.seq) => {
                    settled.insert(who.seq);
                    Seen::Wanted
                }
                _ => Seen::Other,
            }
        };
        tail::read_back(&drain.options, &drain.link, &topics, &mut see, &|| drain.over())
    }
}

impl Drain {
    /// Before anything is sent.
    pub(super) fn start(&mut self) -> Step<()> {
        let mut in_lane = HashSet::new();
        if let Some(log) = self.wal.held() {
            let mut flow = Flow::new(log.clone(), true);
            in_lane = self.patiently(|drain| scan(&log, &mut flow, &mut drain.topics, &drain.identity))?;
            self.lane = Some(Lane::new(flow));
        }
        let survey = self.patiently(|drain| {
            let mut settled = HashSet::new();
            let survey = Survey::make(&drain.main, &drain.identity, Sequence::MAX, |seq, _, who| {
                // In the lane already: the crash came between the lane's commit and the log's watermark.
                let held = in_lane.contains(&who);
                if held {
                    settled.insert(seq);
                }
                !held
            })?;
            drain.main.settled = settled;
            Ok(survey)
        })?;
        self.surveyed_ms = survey.oldest_ms;
        self.read_back(false, &survey);
        self.surveyed_ms = None;
        Ok(())
    }

    /// Repeats what reads the log until it can be read.
    fn patiently<T: Default>(&mut self, mut read: impl FnMut(&mut Self) -> Result<T, ReadError>) -> Step<T> {
        loop {
            match read(self) {
                Ok(result) => return Ok(result),
                Err(error) => {
                    self.link.note(format!("{error}; the forwarder tries again"));
                    self.publish(true);
                    if self.over() {
                        return Ok(T::default());
                    }
                    self.shared.signal.wait(AWAY_MAX);
                }
            }
        }
    }

    /// After a producer's end: what of both windows is in Kafka?
    pub(super) fn read_back_windows(&mut self) -> Step<()> {
        for lane in [true, false] {
            let survey = self.patiently(|drain| {
                let (flow, identity) = match (&drain.lane, lane) {
                    (Some(lane), true) => (&lane.flow, &drain.identity),
                    (None, true) => return Ok(None),
                    (_, false) => (&drain.main, &drain.identity),
                };
                if flow.window.is_empty() {
                    return Ok(None);
                }
                Survey::make(flow, identity, flow.window.end() - 1, |_, _, _| true).map(Some)
            })?;
            if let Some(survey) = survey {
                self.read_back(lane, &survey);
            }
        }
        Ok(())
    }

    /// Looks for the surveyed records in Kafka until that worked, or a shutdown is over.
    pub(super) fn read_back(&mut self, lane: bool, survey: &Survey) {
        let mut wait = AWAY_MIN;
        while !survey.topics.is_empty() {
            match self.read_back_once(lane, survey) {
                Ok(()) => return,
                Err(error) => self.link.error(format!("cannot read the topics' tails back: {error}")),
            }
            self.publish(true);
            if self.over() {
                return;
            }
            self.shared.signal.wait(wait);
            wait = (wait * 2).min(AWAY_MAX);
        }
    }

    /// Looks for the surveyed records in Kafka, once.
    ///
    /// # Errors
    /// Kafka does not answer.
    pub(super) fn read_back_once(&mut self, lane: bool, survey: &Survey) -> Result<(), rdkafka::error::KafkaError> {
        let Some(flow) = self.flow_mut(lane) else { return Ok(()) };
        let mut settled = std::mem::take(&mut flow.settled);
        let result = survey.look(self, &mut settled);
        if let Some(flow) = self.flow_mut(lane) {
            flow.settled = settled;
        }
        let outcome = result?;
        tracing::info!(
            read = outcome.read,
            found = outcome.wanted,
            "read the topics' tails back: records found there are not sent again"
        );
        if outcome.cut {
            tracing::warn!(
                "the tail was longer than what is read back: some records may be sent twice (they carry their \
                 identity, and the lander removes repeats)"
            );
        }
        Ok(())
    }
}

/// Reads the whole lane: which topics are held, which records are there twice (a crash during a pass), and
/// who the newest are (a crash between the lane's commit and the log's watermark).
fn scan(log: &Log, flow: &mut Flow, topics: &mut Topics, identity: &Identity) -> Result<HashSet<Origin>, ReadError> {
    topics.forget_held();
    flow.settled.clear();
    let mut first: HashSet<Origin> = HashSet::new();
    let mut newest: VecDeque<Origin> = VecDeque::new();
    let mut reader = log.reader(flow.window.acked() + 1);
    loop {
        let chunk = match reader.read(CHUNK_BYTES)? {
            Read::Records(chunk) => chunk,
            Read::Damaged { .. } => continue,
            Read::Nothing => break,
        };
        for (seq, record) in chunk.records() {
            let Ok(record) = record else { continue };
            let who = identity.of(seq, record.origin);
            let topic = topics.id(record.topic);
            topics.found_in_lane(topic, seq);
            // A pass moves records from the front to the end; only a window's worth can be in both places.
            let twice = match first.len() < SLOTS_MAX {
                true => !first.insert(who),
                false => first.contains(&who),
            };
            if twice {
                flow.settled.insert(seq);
            }
            newest.push_back(who);
            if newest.len() > SLOTS_MAX {
                newest.pop_front();
            }
        }
    }
    Ok(newest.into_iter().collect())
}
