//! A member's way to its sink: one thread, one question at a time, asked again until the database answers.
//!
//! A question is given up only when nobody wants its answer any more: its partitions went to somebody else, or the time
//! to stop is over. Giving up is safe at any moment: the sink's guard tells whoever comes next.
//! Knows nothing of Kafka.

use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender};
use std::thread;
use std::time::{Duration, Instant};

use tracing::{error, info, warn};

use super::row::{Batch, Move, RejectedKind};
use super::shared::MemberState;
use super::sink::{Known, Position, Sink, SinkError, Written};
use crate::metrics as names;

/// The first and the longest pause between two tries.
const PAUSE_MIN: Duration = Duration::from_millis(100);
const PAUSE_MAX: Duration = Duration::from_secs(5);
/// How often a pause is looked up from.
const LOOK: Duration = Duration::from_millis(50);
/// How often an idle sink is asked whether it has something to complete.
const TICK: Duration = Duration::from_secs(1);

/// What the member wants.
pub(super) enum Ask {
    Positions(String),
    Set(String, Vec<(Known, Option<Position>)>),
    Write(Box<Batch>),
}

/// What it gets. `false` and [`Written::Moved`]: look at the positions again.
pub(super) enum Answer {
    Positions(Vec<Known>),
    Set(bool),
    Written(Written, Vec<Move>),
    /// Nobody wanted it any more.
    GivenUp,
}

/// A question of one assignment.
pub(super) struct Question {
    pub(super) generation: u64,
    pub(super) ask: Ask,
}

/// Answers until the member hangs up, then closes the sink.
pub(super) fn run(
    mut sink: Box<dyn Sink>,
    prepared: bool,
    state: &Arc<MemberState>,
    questions: &Receiver<Question>,
    answers: &Sender<(u64, Answer)>,
) {
    let mut writer = Writer {
        sink: sink.as_mut(),
        prepared,
        retry_at: Instant::now(),
        state,
    };
    loop {
        match questions.recv_timeout(TICK) {
            Ok(question) => {
                let answer = writer.answer(&question);
                if answers.send((question.generation, answer)).is_err() {
                    break;
                }
            }
            Err(RecvTimeoutError::Timeout) => writer.tick(),
            Err(RecvTimeoutError::Disconnected) => break,
        }
    }
    if let Err(error) = sink.close() {
        warn!("closing {}: {error}. Everything written is safe", state.sink_name);
    }
}

struct Writer<'a> {
    sink: &'a mut dyn Sink,
    /// False after an error: the sink connects and looks at its tables anew.
    prepared: bool,
    /// When an idle sink that failed is looked at again.
    retry_at: Instant,
    state: &'a Arc<MemberState>,
}

impl Writer<'_> {
    fn answer(&mut self, question: &Question) -> Answer {
        let mut pause = PAUSE_MIN;
        loop {
            match self.attempt(&question.ask) {
                Ok(answer) => {
                    self.works();
                    return answer;
                }
                Err(error) => self.failed(&error),
            }
            if !self.wait(pause, question.generation) {
                return Answer::GivenUp;
            }
            pause = (pause * 2).min(PAUSE_MAX);
        }
    }

    fn attempt(&mut self, ask: &Ask) -> Result<Answer, SinkError> {
        if !self.prepared {
            self.sink.prepare()?;
            self.prepared = true;
        }
        match ask {
            Ask::Positions(topic) => self.sink.positions(topic).map(Answer::Positions),
            Ask::Set(topic, places) => {
                for (to, from) in places {
                    if !self.sink.set_position(topic, to, from.as_ref())? {
                        return Ok(Answer::Set(false));
                    }
                }
                Ok(Answer::Set(true))
            }
            Ask::Write(batch) => self.write(batch),
        }
    }

    fn write(&mut self, batch: &Batch) -> Result<Answer, SinkError> {
        let started = Instant::now();
        let written = self.sink.write(batch)?;
        if let Written::Done(counts) = written {
            metrics::histogram!(names::LAND_BATCH_SECONDS).record(started.elapsed().as_secs_f64());
            metrics::counter!(names::LAND_RECORDS_TOTAL, "valid" => "true").increment(counts.valid);
            metrics::counter!(names::LAND_RECORDS_TOTAL, "valid" => "false").increment(counts.invalid);
            metrics::counter!(names::LAND_DUPLICATES_TOTAL).increment(counts.duplicates);
            for (kind, count) in [
                (RejectedKind::IdentityClash, counts.clashes),
                (RejectedKind::Refused, counts.refused),
            ] {
                metrics::counter!(names::LAND_ERRORS_TOTAL, "reason" => kind.as_str()).increment(count);
            }
            if counts.clashes > 0 {
                error!(
                    "{} records of topic {} have an identity that other records have: two gateways run with copies of one \
                     WAL folder. They are kept in `rejected` (kind identity_clash). Stop one of the gateways and \
                     give it a fresh folder",
                    counts.clashes, batch.topic
                );
            }
            if counts.refused > 0 {
                warn!(
                    "{} records of topic {} were refused by the database for good; they are kept in `rejected`, \
                     with what it said",
                    counts.refused, batch.topic
                );
            }
            self.state.add(counts);
        }
        Ok(Answer::Written(written, batch.moves.clone()))
    }

    fn tick(&mut self) {
        if self.prepared {
            if let Err(error) = self.sink.tick() {
                self.failed(&error);
            }
            return;
        }
        // Without a record on its way too: files are to be completed, and readiness is to say that it works again.
        if Instant::now() < self.retry_at {
            return;
        }
        match self.sink.prepare() {
            Ok(()) => {
                self.prepared = true;
                self.works();
            }
            Err(error) => self.failed(&error),
        }
    }

    fn works(&self) {
        if self.state.sink_works() {
            info!("{} takes rows again", self.state.sink_name);
        }
    }

    fn failed(&mut self, error: &SinkError) {
        self.prepared = false;
        self.retry_at = Instant::now() + jittered(PAUSE_MAX);
        metrics::counter!(names::LAND_ERRORS_TOTAL, "reason" => "database").increment(1);
        if self.state.sink_fails(error.to_string()) {
            warn!(
                "{} does not take rows: {error}. Nothing is lost: the records stay in Kafka, and are landed when it works \
                 again",
                self.state.sink_name
            );
        }
    }

    /// Waits about `pause`; false when the answer is not wanted any more.
    fn wait(&self, pause: Duration, generation: u64) -> bool {
        let until = Instant::now() + jittered(pause);
        loop {
            if self.state.generation() != generation || self.state.time_is_over() {
                return false;
            }
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return true;
            }
            thread::sleep(left.min(LOOK));
        }
    }
}

/// Between 75 and 125 %, so that many landers do not come back at once.
fn jittered(pause: Duration) -> Duration {
    pause.mul_f64(0.75 + fastrand::f64() / 2.0)
}
