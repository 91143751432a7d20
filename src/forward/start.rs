//! What an earlier run, or an ended producer, left open: which un-acknowledged records are in Kafka, or in
//! the held lane, all the same? Found out before anything is sent; while Kafka is away, that waits.

use std::collections::{HashMap, HashSet};
use std::time::Duration;

use super::drain::{Drain, Step};
use super::flow::{Flow, Identity, SLOTS_MAX};
use super::lane::Lane;
use super::mark::Reached;
use super::tail::{self, Outcome, Seen};
use super::topics::Topics;
use super::window::State;
use crate::record::{Origin, Sequence};
use crate::wal::{Read, ReadError};

/// Bytes read at once.
pub(super) const CHUNK_BYTES: usize = 1 << 20;
/// Between two tries while Kafka is away, at first and at most.
pub(super) const AWAY_MIN: Duration = Duration::from_millis(500);
pub(super) const AWAY_MAX: Duration = Duration::from_secs(5);

/// The un-acknowledged records that may have been on their way.
#[derive(Debug, Default)]
pub(super) struct Survey {
    /// The topics, with the earliest time of receipt in each.
    topics: HashMap<String, i64>,
    /// Records that carry another identity than their place in the main log: all of the lane's.
    origins: HashMap<Origin, Sequence>,
    /// The places of those.
    places: HashSet<Sequence>,
    /// The sequences of the main log that were looked at, where place and identity are one. None for the lane,
    /// whose places say nothing of the sequence that a record carries.
    range: Option<(Sequence, Sequence)>,
    /// How many records are wanted.
    count: usize,
    /// The lowest own sequence among the identities.
    lowest: Option<Sequence>,
    /// The earliest time of receipt.
    oldest_ms: Option<i64>,
}

/// What a record in Kafka is to a survey.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Found {
    /// The one at this place of the surveyed log.
    At(Sequence),
    /// Ours, and settled before anything that was surveyed.
    Before,
    /// None of it.
    Nothing,
}

impl Survey {
    /// Reads the log behind the watermark, up to `last`, for the first records that `wanted` wants: as many
    /// as may have been on their way.
    pub(super) fn make(
        flow: &Flow,
        identity: &Identity,
        last: Sequence,
        mut wanted: impl FnMut(Sequence, &str, Origin) -> bool,
    ) -> Result<Self, ReadError> {
        let first = flow.window.acked() + 1;
        let mut survey = Self::default();
        let mut reader = flow.log.reader(first);
        while reader.position() <= last && survey.count < SLOTS_MAX {
            let chunk = match reader.read(CHUNK_BYTES)? {
                Read::Records(chunk) => chunk,
                // Reported when the walk comes there.
                Read::Damaged { .. } => continue,
                Read::Nothing => break,
            };
            for (seq, record) in chunk.records() {
                let Ok(record) = record else { continue };
                if seq > last || flow.window.state(seq) == Some(State::Done) || flow.is_marker(&record) {
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
                    survey.places.insert(seq);
                } else {
                    survey.range = Some((survey.range.map_or(seq, |(first, _)| first), seq));
                }
                survey.count += 1;
            }
        }
        Ok(survey)
    }

    /// What a record in Kafka is to this survey; `own` is this log's identity.
    fn find(&self, own: [u8; 16], who: Origin) -> Found {
        if let Some(seq) = self.origins.get(&who) {
            return Found::At(*seq);
        }
        if who.wal != own {
            return Found::Nothing;
        }
        if self.lowest.is_some_and(|lowest| who.seq < lowest) {
            return Found::Before;
        }
        match self.range {
            Some((first, last)) if (first..=last).contains(&who.seq) && !self.places.contains(&who.seq) => {
                Found::At(who.seq)
            }
            _ => Found::Nothing,
        }
    }

    /// Looks for the records in Kafka; those found are added to `settled`.
    fn look(&self, drain: &Drain, settled: &mut HashSet<Sequence>) -> Result<Outcome, rdkafka::error::KafkaError> {
        let topics: Vec<(String, i64)> = self.topics.iter().map(|(name, ms)| (name.clone(), *ms)).collect();
        let mut see = |_: &str, who: Origin| match self.find(drain.identity.wal, who) {
            Found::At(seq) => {
                settled.insert(seq);
                Seen::Wanted
            }
            Found::Before => Seen::Ground,
            Found::Nothing => Seen::Other,
        };
        tail::read_back(
            &drain.options,
            drain.committed_only,
            &drain.link,
            &topics,
            &mut see,
            &|| drain.left(),
        )
    }
}

impl Drain {
    /// Before anything is sent.
    pub(super) fn start(&mut self) -> Step<()> {
        // A rewind that came meanwhile makes more of the log to be looked at.
        while self.survey()? {}
        Ok(())
    }

    /// Looks at both logs and at Kafka; whether the log was rewound meanwhile.
    fn survey(&mut self) -> Step<bool> {
        // Nothing beyond was ever on its way.
        let in_window = self.main.window.acked().saturating_add(SLOTS_MAX as Sequence);
        let resend = self.main.log.resend();
        let mut lanes = self.scan_lane(in_window, &Reached::default())?;
        if self.take_over()? {
            return Ok(true);
        }
        // What of a pass Kafka has by its watermark is not there twice any more: its later place is the only one.
        if let Some(reached) = self.adopted_lane() {
            lanes = self.scan_lane(in_window, &reached)?;
        }
        let survey = self.patiently(|drain| {
            let mut settled = HashSet::new();
            let survey = Survey::make(&drain.main, &drain.identity, in_window, |seq, topic, who| {
                // In the lane already: the crash came between the lane's commit and the log's watermark.
                let key = (drain.topics.id(topic), who);
                let is_first = who == drain.identity.of(seq, None);
                let held = seq > resend && (lanes.now.contains(&key) || is_first && lanes.before.contains(&key));
                if held {
                    settled.insert(seq);
                }
                !held && seq > resend
            })?;
            settled.extend(drain.main.adopted.iter().flat_map(|(first, last)| *first..=*last));
            drain.main.settled = settled;
            if resend > drain.main.window.acked() {
                drain.main.in_lane = drain.in_lane()?;
            }
            Ok(survey)
        })?;
        self.surveyed_ms = survey.oldest_ms;
        // Looking may take a while, or Kafka may be away: how old the backlog is shows meanwhile.
        self.publish(true);
        let rewound = self.read_back(false, &survey)?;
        self.surveyed_ms = None;
        Ok(rewound)
    }

    /// Looks through the lane, but for what is `reached`; returns what of the main log's window is in it.
    fn scan_lane(&mut self, in_window: Sequence, reached: &Reached) -> Step<InLane> {
        let Some(log) = self.wal.held() else {
            return Ok(InLane::default());
        };
        let mut flow = Flow::new(log, true);
        let scan = self.patiently(|drain| {
            let mut window = HashSet::new();
            Survey::make(&drain.main, &drain.identity, in_window, |_, topic, who| {
                window.insert((drain.topics.id(topic), who))
            })?;
            Scan::make(&mut flow, &mut drain.topics, &drain.identity, &window, reached)
        })?;
        if reached.acked > flow.window.acked() {
            // There may be no pass that would settle it.
            flow.log.ack(reached.acked)?;
            let settled = std::mem::take(&mut flow.settled);
            flow = Flow::new(flow.log, true);
            flow.settled = settled;
            flow.settled.retain(|seq| *seq > reached.acked);
        }
        flow.adopted = reached.behind(flow.window.acked());
        let mut lane = Lane::new(flow);
        if let Some(end) = scan.pass {
            tracing::info!("finishing a pass over the held lane that was interrupted");
            lane.pass = Some(end);
            self.topics.reset_first();
        }
        self.lane = Some(lane);
        Ok(scan.in_lane)
    }

    /// Repeats what reads the log until it can be read.
    pub(super) fn patiently<T: Default>(&mut self, mut read: impl FnMut(&mut Self) -> Result<T, ReadError>) -> Step<T> {
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
        self.read_back_window(true)?;
        self.read_back_window(false)
    }

    /// After a producer's end: what of one window is in Kafka?
    pub(super) fn read_back_window(&mut self, lane: bool) -> Step<()> {
        let survey = self.patiently(|drain| {
            let (flow, identity) = match (&drain.lane, lane) {
                (Some(lane), true) => (&lane.flow, &drain.identity),
                (None, true) => return Ok(None),
                (_, false) => (&drain.main, &drain.identity),
            };
            if flow.window.is_empty() {
                return Ok(None);
            }
            // What an operator wants to be sent again is, whatever Kafka has.
            let resend = if lane { 0 } else { flow.log.resend() };
            Survey::make(flow, identity, flow.window.end() - 1, |seq, _, _| seq > resend).map(Some)
        })?;
        if let Some(survey) = survey {
            self.read_back(lane, &survey)?;
        }
        Ok(())
    }

    /// Looks for the surveyed records in Kafka until that worked, a shutdown is over, or the main log, whose survey
    /// it is, was rewound; whether it was.
    fn read_back(&mut self, lane: bool, survey: &Survey) -> Step<bool> {
        let mut wait = AWAY_MIN;
        while !survey.topics.is_empty() {
            match self.read_back_once(lane, survey) {
                Ok(()) => return Ok(false),
                Err(error) => {
                    self.link.error(tail::unanswered("waiting", &error));
                }
            }
            self.publish(true);
            if self.over() {
                return Ok(false);
            }
            if self.meanwhile(wait, !lane, true)? && !lane {
                return Ok(true);
            }
            wait = (wait * 2).min(AWAY_MAX);
        }
        Ok(false)
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
                "not all of the tail was read back: some records may be sent twice (they carry their identity, so \
                 that a consumer can drop repeats)"
            );
        }
        Ok(())
    }
}

/// Records of the main log's window that are in the lane: the crash came between the lane's commit and the log's watermark.
#[derive(Debug, Default)]
struct InLane {
    /// They wait there.
    now: HashSet<(u32, Origin)>,
    /// They are settled there. Only of those that came first, in the place that they have their sequence from: one that an
    /// operator has had sent again, a dead letter or a redirected one, is younger than that.
    before: HashSet<(u32, Origin)>,
}

/// What the whole lane says of the run before.
#[derive(Debug, Default)]
struct Scan {
    in_lane: InLane,
    /// The end of a pass that was interrupted. It must be finished before anything is appended: it has moved
    /// older records behind younger ones that it did not reach.
    pass: Option<Sequence>,
}

impl Scan {
    /// Reads the lane. Held topics go to `topics`, records that are there twice to the flow's `settled`, and so does what is
    /// `reached`: as if it were not there any more.
    ///
    /// A record is who it is under its topic: one that an operator has redirected may be there under both.
    fn make(
        flow: &mut Flow,
        topics: &mut Topics,
        identity: &Identity,
        window: &HashSet<(u32, Origin)>,
        reached: &Reached,
    ) -> Result<Self, ReadError> {
        topics.forget_held();
        flow.settled.clear();
        let mut scan = Self::default();
        let mut first: HashSet<(u32, Origin)> = HashSet::new();
        let (mut marker, mut moved, mut held) = (None, false, false);
        let mut reader = flow.log.reader(flow.window.acked() + 1);
        loop {
            let chunk = match reader.read(CHUNK_BYTES)? {
                Read::Records(chunk) => chunk,
                Read::Damaged { .. } => continue,
                Read::Nothing => break,
            };
            for (seq, record) in chunk.records() {
                let is_reached = reached.covers(seq);
                if is_reached {
                    flow.settled.insert(seq);
                }
                let Ok(record) = record else { continue };
                if flow.is_marker(&record) {
                    // One behind what still waits ends a pass that is not over, whatever is told of it.
                    marker = marker.or((seq > reached.acked).then_some(seq));
                    continue;
                }
                let topic = topics.id(record.topic);
                let who = (topic, identity.of(seq, record.origin));
                if window.contains(&who) {
                    match is_reached {
                        true => scan.in_lane.before.insert(who),
                        false => scan.in_lane.now.insert(who),
                    };
                }
                if is_reached {
                    continue;
                }
                topics.found_in_lane(topic, seq);
                held = true;
                moved |= marker.is_some();
                // A pass appends before it settles; only a window's worth can be in both places.
                let twice = match first.len() < SLOTS_MAX {
                    true => !first.insert(who),
                    false => first.contains(&who),
                };
                if twice {
                    flow.settled.insert(seq);
                }
            }
        }
        // A pass that moved nothing left the lane in order: the next one does its work.
        scan.pass = marker.filter(|_| moved || !held);
        Ok(scan)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::record::Record;
    use crate::wal::{self, Batch, Log, Retain, Wal};

    fn wal(folder: &tempfile::TempDir) -> Wal {
        Wal::open(wal::Options {
            path: folder.path().join("wal"),
            bytes_max: 1 << 30,
            free_bytes_min: 0,
            generation_bytes: 16 << 20,
            compression: true,
            retain: Retain::Off,
            linger: Duration::ZERO,
            keys: Default::default(),
        })
        .unwrap()
    }

    /// Appends records (topic, own sequence); an empty topic is a marker.
    fn append(wal: &Wal, log: &Log, records: &[(&str, Sequence)]) {
        let mut batch = Batch::new();
        for (topic, seq) in records {
            batch.push(&Record {
                topic: (*topic).into(),
                key: None,
                value: None,
                headers: Vec::new(),
                received_ms: 1,
                origin: Some(Origin {
                    wal: *wal.id().0.as_bytes(),
                    seq: *seq,
                }),
                idempotency: None,
            });
        }
        log.append(batch).unwrap().wait().unwrap();
    }

    /// `window`: sequences of the main log whose topic is "a".
    fn scan(wal: &Wal, log: &Log, window: &[Sequence], reached: &Reached) -> (Scan, Flow, Topics) {
        scan_of("a", wal, log, window, reached)
    }

    fn scan_of(topic: &str, wal: &Wal, log: &Log, window: &[Sequence], reached: &Reached) -> (Scan, Flow, Topics) {
        let identity = Identity::new(wal.id());
        let mut flow = Flow::new(log.clone(), true);
        let mut topics = Topics::new();
        let topic = topics.id(topic);
        let window = window.iter().map(|seq| (topic, identity.of(*seq, None))).collect();
        let scan = Scan::make(&mut flow, &mut topics, &identity, &window, reached).unwrap();
        (scan, flow, topics)
    }

    #[test]
    fn what_was_moved_and_is_no_longer_in_front_is_not_taken_for_a_second_one() {
        let folder = tempfile::tempdir().unwrap();
        let wal = wal(&folder);
        let lane = wal.held_or_create().unwrap();
        append(&wal, &lane, &[("b", 1), ("b", 2), ("", 0), ("b", 1)]);
        // Kafka's watermark, committed with the pass, says that all of the lane in front of the fourth is settled.
        let reached = Reached {
            acked: 3,
            beyond: Vec::new(),
        };
        let (scan, flow, topics) = scan_of("b", &wal, &lane, &[2], &reached);
        assert_eq!(flow.settled, HashSet::from([1, 2, 3]));
        assert_eq!(scan.pass, None);
        // The log's second was held and is settled in the lane: it is not held again.
        assert_eq!((scan.in_lane.before.len(), scan.in_lane.now.len()), (1, 0));
        assert_eq!(topics.held().first().map(|held| held.records), Some(1));
        wal.close().unwrap();
    }

    #[test]
    fn a_record_under_two_topics_is_two() {
        let folder = tempfile::tempdir().unwrap();
        let wal = wal(&folder);
        let lane = wal.held_or_create().unwrap();
        append(&wal, &lane, &[("a", 1), ("b", 1), ("b", 2)]);
        let (scan, flow, _) = scan(&wal, &lane, &[1, 2], &Reached::default());
        assert_eq!(flow.settled, HashSet::new());
        let in_lane: Vec<Sequence> = scan.in_lane.now.iter().map(|(_, who)| who.seq).collect();
        // The log's second is a's, and the lane has only b's.
        assert_eq!(in_lane, vec![1]);
        wal.close().unwrap();
    }

    #[test]
    fn a_pass_that_had_moved_records_is_finished() {
        let folder = tempfile::tempdir().unwrap();
        let wal = wal(&folder);
        let lane = wal.held_or_create().unwrap();
        // b:1 was moved behind the marker, and is still in front too; b:2 was not reached.
        append(&wal, &lane, &[("b", 1), ("b", 2), ("", 0), ("b", 1)]);
        let (scan, flow, topics) = scan(&wal, &lane, &[], &Reached::default());
        assert_eq!(scan.pass, Some(3));
        assert_eq!(flow.settled, HashSet::from([4]));
        assert_eq!(topics.held().len(), 1);
        wal.close().unwrap();
    }

    #[test]
    fn a_pass_is_finished_although_its_end_is_told_as_reached() {
        let folder = tempfile::tempdir().unwrap();
        let wal = wal(&folder);
        let lane = wal.held_or_create().unwrap();
        // a:2 and a:3 wait in front of the marker, and a:2 is behind it already: a:3 must not overtake it.
        append(&wal, &lane, &[("a", 1), ("a", 2), ("a", 3), ("", 0), ("a", 2)]);
        let reached = Reached {
            acked: 2,
            beyond: vec![(4, 4)],
        };
        let (scan, ..) = scan(&wal, &lane, &[], &reached);
        assert_eq!(scan.pass, Some(4));
        wal.close().unwrap();
    }

    #[test]
    fn a_pass_that_had_moved_nothing_is_left_to_the_next() {
        let folder = tempfile::tempdir().unwrap();
        let wal = wal(&folder);
        let lane = wal.held_or_create().unwrap();
        append(&wal, &lane, &[("a", 1), ("a", 2), ("", 0)]);
        assert_eq!(scan(&wal, &lane, &[], &Reached::default()).0.pass, None);
        // Only the marker is left: it is to be settled, or it counts as held for ever.
        lane.ack(2).unwrap();
        assert_eq!(scan(&wal, &lane, &[], &Reached::default()).0.pass, Some(3));
        wal.close().unwrap();
    }

    #[test]
    fn records_that_are_in_the_lane_already_are_not_held_twice() {
        let folder = tempfile::tempdir().unwrap();
        let wal = wal(&folder);
        let lane = wal.held_or_create().unwrap();
        append(&wal, &lane, &[("a", 1), ("a", 2)]);
        let (scan, ..) = scan(&wal, &lane, &[2, 3], &Reached::default());
        let in_lane: Vec<Sequence> = scan.in_lane.now.iter().map(|(_, who)| who.seq).collect();
        assert_eq!(in_lane, vec![2]);
        wal.close().unwrap();
    }

    #[test]
    fn a_record_of_the_log_is_not_taken_for_the_lanes_record_at_that_place() {
        let folder = tempfile::tempdir().unwrap();
        let wal = wal(&folder);
        let lane = wal.held_or_create().unwrap();
        // The lane's places are 1 to 4; its records are the log's 2, 9, 10 and 11.
        append(&wal, &lane, &[("a", 2), ("a", 9), ("a", 10), ("a", 11)]);
        let identity = Identity::new(wal.id());
        let survey = Survey::make(&Flow::new(lane, true), &identity, Sequence::MAX, |_, _, _| true).unwrap();
        let find = |seq| survey.find(identity.wal, identity.of(seq, None));
        assert_eq!(
            (find(1), find(3), find(4)),
            (Found::Before, Found::Nothing, Found::Nothing)
        );
        assert_eq!((find(2), find(9), find(11)), (Found::At(1), Found::At(2), Found::At(4)));
        wal.close().unwrap();
    }

    #[test]
    fn a_record_of_the_log_is_found_at_its_own_place() {
        let folder = tempfile::tempdir().unwrap();
        let wal = wal(&folder);
        let mut batch = Batch::new();
        for origin in [None, Some(900), None] {
            batch.push(&Record {
                topic: "a".into(),
                key: None,
                value: None,
                headers: Vec::new(),
                received_ms: 1,
                origin: origin.map(|seq| Origin { wal: [7; 16], seq }),
                idempotency: None,
            });
        }
        wal.log().append(batch).unwrap().wait().unwrap();
        let identity = Identity::new(wal.id());
        let flow = Flow::new(wal.log().clone(), false);
        let survey = Survey::make(&flow, &identity, Sequence::MAX, |_, _, _| true).unwrap();
        let find = |wal, seq| survey.find(identity.wal, Origin { wal, seq });
        assert_eq!(
            (find(identity.wal, 1), find(identity.wal, 3)),
            (Found::At(1), Found::At(3))
        );
        // An imported one is known by its own identity, not by its place.
        assert_eq!(
            (find(identity.wal, 2), find([7; 16], 900)),
            (Found::Nothing, Found::At(2))
        );
        assert_eq!(
            (find([7; 16], 1), find(identity.wal, 4)),
            (Found::Nothing, Found::Nothing)
        );
        wal.close().unwrap();
    }

    #[test]
    fn a_survey_takes_an_imported_record_by_its_own_identity_only() {
        let folder = tempfile::tempdir().unwrap();
        let wal = wal(&folder);
        append(&wal, wal.log(), &[("a", 900)]);
        let identity = Identity::new(wal.id());
        let flow = Flow::new(wal.log().clone(), false);
        let survey = Survey::make(&flow, &identity, Sequence::MAX, |_, _, _| true).unwrap();
        assert_eq!(survey.origins.get(&identity.of(900, None)), Some(&1));
        assert_eq!((survey.range, survey.lowest), (None, Some(900)));
        wal.close().unwrap();
    }
}
