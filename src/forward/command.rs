//! What an operator asks of the running forwarder: it alone may move the watermark and work on the held lane.
//!
//! A command waits, for a limited time, until the thread comes to a point where it can be done; one that it did not
//! come to is taken back, so that its answer is true: nothing was changed.

use std::collections::{HashMap, HashSet, VecDeque};
use std::sync::mpsc::{RecvTimeoutError, SyncSender, sync_channel};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::drain::{Drain, Ended, Step};
use super::flow::SLOTS_MAX;
use super::topics::State as TopicState;
use super::{Handle, Shared};
use crate::record::{Origin, Sequence};
use crate::wal::{AppendError, ReadError, RewindError, Rewound};

/// Commands that wait.
const WAITING_MAX: usize = 16;
/// How long one takes at most, waiting included.
const ANSWER_MAX: Duration = Duration::from_secs(20);

/// Why a command was not done.
#[derive(Debug, thiserror::Error)]
pub enum CommandError {
    /// See there.
    #[error(transparent)]
    Rewind(#[from] RewindError),
    /// A log takes nothing: some of the records were done.
    #[error(
        "{done} records were done, then it ended: {source}. The others are held as before: try again once that is mended"
    )]
    Append {
        /// How many.
        done: u64,
        /// Why no more.
        #[source]
        source: AppendError,
    },
    /// It was not begun.
    #[error(
        "the forwarder did not come to it within {} s, and nothing was changed: it waits for Kafka, or is at work on the \
         held lane. Try again; `tidegate status` says what it does", ANSWER_MAX.as_secs()
    )]
    Busy,
    /// It was begun.
    #[error(
        "the forwarder has not finished within {} s and goes on with it: `tidegate held list` and `tidegate status` say \
         how far it is", ANSWER_MAX.as_secs()
    )]
    Slow,
    /// With `delivery = "exactly_once"` Kafka's own watermark goes back too.
    #[error(
        "Kafka does not answer, and with forward.delivery = \"exactly_once\" it has to take its own watermark back first. \
         Nothing was changed: try again once it is there"
    )]
    Away,
    /// The gateway ends.
    #[error(
        "the forwarder has stopped, or is about to. What was not done is as it was: run this again after the next start"
    )]
    Stopped,
}

/// What is asked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Ask {
    /// Everything from there on is sent again.
    Rewind(Sequence),
    /// The held records of a topic go to another one, or nowhere.
    Purge { topic: String, to: Option<String> },
}

/// What came of it.
#[derive(Debug, Clone, Copy)]
pub(super) enum Done {
    Rewound(Rewound),
    Purged(u64),
}

type Answer = Result<Done, CommandError>;

/// One command, and who waits for it.
pub(super) struct Command {
    pub(super) ask: Ask,
    answer: SyncSender<Answer>,
    number: u64,
}

impl Command {
    /// Whoever waited may have gone.
    pub(super) fn answer(&self, answer: Answer) {
        drop(self.answer.try_send(answer));
    }
}

/// Those that wait.
#[derive(Default)]
pub(super) struct Commands {
    waiting: Mutex<(VecDeque<Command>, u64)>,
}

impl Commands {
    fn waiting(&self) -> MutexGuard<'_, (VecDeque<Command>, u64)> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The first of those that are `ready`.
    fn take(&self, ready: impl Fn(&Ask) -> bool) -> Option<Command> {
        let mut waiting = self.waiting();
        let at = waiting.0.iter().position(|command| ready(&command.ask))?;
        waiting.0.remove(at)
    }

    /// Takes one back; whether it was still there.
    fn withdraw(&self, number: u64) -> bool {
        let mut waiting = self.waiting();
        let before = waiting.0.len();
        waiting.0.retain(|command| command.number != number);
        waiting.0.len() < before
    }

    /// Nobody will do them any more.
    pub(super) fn refuse_all(&self) {
        for command in self.waiting().0.drain(..) {
            command.answer(Err(CommandError::Stopped));
        }
    }
}

impl Shared {
    /// Has the thread do it, and waits.
    fn ask(&self, ask: Ask) -> Answer {
        let (answer, answered) = sync_channel(1);
        let deadline = Instant::now() + ANSWER_MAX;
        let number = {
            let mut waiting = self.commands.waiting();
            if waiting.0.len() >= WAITING_MAX {
                return Err(CommandError::Busy);
            }
            waiting.1 += 1;
            let number = waiting.1;
            waiting.0.push_back(Command { ask, answer, number });
            number
        };
        self.signal.notify();
        // A thread that ended before it was asked does not answer.
        let ended = || self.stop_at().is_some() || self.status().stopped.is_some();
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            match answered.recv_timeout(left.min(Duration::from_millis(200))) {
                Ok(answer) => return answer,
                Err(RecvTimeoutError::Disconnected) => return Err(CommandError::Stopped),
                Err(RecvTimeoutError::Timeout) if ended() && self.commands.withdraw(number) => {
                    return Err(CommandError::Stopped);
                }
                Err(RecvTimeoutError::Timeout) if left.is_zero() => {
                    return Err(match self.commands.withdraw(number) {
                        true => CommandError::Busy,
                        false => CommandError::Slow,
                    });
                }
                Err(RecvTimeoutError::Timeout) => {}
            }
        }
    }
}

impl Handle {
    /// Sends everything from `from` on again, in the log's order and with its identity. Blocks for 20 s at most.
    ///
    /// # Errors
    /// Nothing was changed, unless the error says so.
    pub fn rewind(&self, from: Sequence) -> Result<Rewound, CommandError> {
        match self.shared.ask(Ask::Rewind(from))? {
            Done::Rewound(rewound) => Ok(rewound),
            Done::Purged(_) => Err(CommandError::Stopped),
        }
    }

    /// Settles the held records of a topic without sending them: they are gone. Blocks for 20 s at most. Returns how
    /// many.
    ///
    /// # Errors
    /// Some of them may be done: the error says so.
    pub fn discard_held(&self, topic: &str) -> Result<u64, CommandError> {
        self.purge(topic, None)
    }

    /// Appends the held records of a topic to the main log, under the topic `to` and with the identity they had, and
    /// takes them out of the lane. Blocks for 20 s at most. Returns how many.
    ///
    /// # Errors
    /// Some of them may be done: the error says so.
    pub fn redirect_held(&self, topic: &str, to: &str) -> Result<u64, CommandError> {
        self.purge(topic, Some(to.to_owned()))
    }

    fn purge(&self, topic: &str, to: Option<String>) -> Result<u64, CommandError> {
        let topic = topic.to_owned();
        match self.shared.ask(Ask::Purge { topic, to })? {
            Done::Purged(records) => Ok(records),
            Done::Rewound(_) => Err(CommandError::Stopped),
        }
    }
}

impl Drain {
    /// Does the next command, if it can be done now; whether it did.
    pub(super) fn command(&mut self) -> Step<bool> {
        let lane_is_free = self.lane_is_free();
        let ready = |ask: &Ask| lane_is_free || matches!(ask, Ask::Rewind(_));
        match self.shared.commands.take(ready) {
            Some(command) => self.obey(command).map(|()| true),
            None => Ok(false),
        }
    }

    /// Waits while Kafka is away and records are to be looked for there before anything is sent. Meanwhile operators
    /// get what needs no Kafka, if the caller can bear it: work on the lane, or a rewind; whether there was one.
    pub(super) fn meanwhile(&mut self, wait: Duration, on_lane: bool, rewinding: bool) -> Step<bool> {
        self.shared.signal.wait(wait);
        loop {
            // A pass over topics that are held moves records, and sends none.
            let sends = self.topics.with_state(TopicState::Releasing).next().is_some();
            let passing = self.lane.as_ref().is_some_and(|lane| lane.pass.is_some());
            if on_lane && passing && !sends {
                let more = self.lane_step()?;
                self.settle()?;
                // A walk that came to the pass's end is followed by the step that ends it.
                let ends = (self.lane.as_ref()).is_some_and(|lane| {
                    lane.flow.window.is_empty() && lane.pass.is_some_and(|end| lane.flow.next > end)
                });
                if !(more || ends) || self.over() {
                    return Ok(false);
                }
                continue;
            }
            let lane_is_free = self.lane_is_free();
            let ready = |ask: &Ask| match ask {
                Ask::Rewind(_) => rewinding,
                Ask::Purge { .. } => on_lane && lane_is_free,
            };
            let Some(command) = self.shared.commands.take(ready) else {
                return Ok(false);
            };
            let rewound = matches!(command.ask, Ask::Rewind(_));
            self.obey(command)?;
            if rewound {
                return Ok(true);
            }
        }
    }

    fn obey(&mut self, command: Command) -> Step<()> {
        match command.ask.clone() {
            Ask::Rewind(from) => match self.rewind(from) {
                Ok(answer) => command.answer(answer.map(Done::Rewound)),
                Err(ended) => {
                    command.answer(Err(CommandError::Stopped));
                    return Err(ended);
                }
            },
            Ask::Purge { topic, to } => self.begin_purge(topic, to, command),
        }
        Ok(())
    }

    /// An operator's rewind. What is on its way is waited for, so that nothing of it comes between what is sent
    /// again; what was sent in vain is sent again anyway.
    fn rewind(&mut self, from: Sequence) -> Step<Result<Rewound, CommandError>> {
        // Said at once, before anything is interrupted.
        let marks = self.main.log.watermarks();
        let first = marks.trimmed + 1;
        if from < first {
            return Ok(Err(RewindError::Gone { from, first }.into()));
        }
        if from > marks.acked + 1 {
            let acked = marks.acked;
            return Ok(Err(RewindError::Ahead { from, acked }.into()));
        }
        // A commit that Kafka has not confirmed must not be disturbed.
        if !self.may_end_transaction() {
            return Ok(Err(CommandError::Away));
        }
        let purged = self.collect()?;
        let lane_failed = self.failures.iter().any(|failure| failure.lane);
        if lane_failed || self.refused.is_some() {
            self.recover()?;
        }
        if self.transactions.is_some() && !self.end_for_rewind(purged)? {
            return Ok(Err(CommandError::Away));
        }
        let in_lane = self.patiently(|drain| drain.in_lane())?;
        // In the window there may be records behind the watermark that Kafka has.
        let resend = self.main.window.end().saturating_sub(1).max(marks.acked);
        // Kafka's watermark first: after a crash the higher of the two counts.
        let resend = self.next_resend(resend);
        if !self.lower(from - 1, Some(resend))? {
            return Ok(Err(CommandError::Away));
        }
        let rewound = match self.main.log.rewind(from, resend - 1) {
            Ok(rewound) => rewound,
            Err(RewindError::Stopped(error)) => return Err(Ended::Append(error)),
            Err(error) => return Ok(Err(error.into())),
        };
        self.failures.clear();
        self.begin_anew();
        self.main.in_lane = in_lane;
        let kind = self.wanted();
        if purged || self.producer.fatal().is_some() || kind != self.producer.kind {
            self.replace(kind);
        } else {
            self.producer.inbox.judged();
        }
        tracing::warn!(
            from,
            again = rewound.again,
            committed = rewound.committed,
            "the log was rewound: everything from there on is sent again, with its identity, whatever Kafka has"
        );
        self.publish(true);
        Ok(Ok(rewound))
    }

    /// What is in the lane, by topic: as many records as may be in a window. Those that Kafka is known to have will
    /// not be sent from there.
    pub(super) fn in_lane(&mut self) -> Result<HashMap<u32, HashSet<Origin>>, ReadError> {
        let (mut there, mut count) = (HashMap::<u32, HashSet<Origin>>::new(), 0);
        let (Some(lane), topics) = (&self.lane, &mut self.topics) else {
            return Ok(there);
        };
        lane.visit(&self.identity, |_, who, record| {
            if count < SLOTS_MAX {
                there.entry(topics.id(record.topic)).or_default().insert(who);
                count += 1;
            }
        })?;
        Ok(there)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::super::drain::tests::{drain, known, push};
    use rdkafka::error::RDKafkaErrorCode;

    #[test]
    fn a_rewind_holds_nothing_twice_unless_order_asks_for_it() {
        let folder = tempfile::tempdir().unwrap();
        let mut drain = drain(&folder);
        push(&drain, &["a", "a", "a", "b"]);
        let missing = RDKafkaErrorCode::UnknownTopicOrPartition;
        let (a, b) = (known(&mut drain, "a"), known(&mut drain, "b"));
        drain.topics.hold(a, missing, false);
        // The first of b was delivered before its topic was held.
        drain.main.settled.insert(4);
        while drain.main_step().unwrap() {}
        drain.topics.hold(b, missing, false);
        push(&drain, &["b"]);
        let mut held = |from| {
            if let Some(from) = from {
                drain.settle().unwrap();
                assert_eq!(drain.rewind(from).unwrap().unwrap().acked, from - 1);
            }
            while drain.main_step().unwrap() {}
            drain.settle().unwrap();
            assert_eq!(drain.wal.log().watermarks().acked, 5);
            drain.wal.status().held_records
        };
        assert_eq!((held(None), held(Some(5)), held(Some(1))), (4, 4, 6));
        // Now the lane has b in the log's order.
        assert_eq!((held(Some(1)), held(Some(2))), (6, 6));
        drain.wal.close().unwrap();
    }
}
