//! What Kafka denies to a transaction (`delivery = "exactly_once"`): it fails as a whole, with one reason, which names no
//! topic. So each of its topics is tried alone, by a record in a transaction that is taken back whatever comes of it.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::producer::Producer as _;

use super::drain::{Drain, Failure, Step};
use super::flow;
use super::transaction::{CALL_MAX, LOOK_MAX, Stage, offsets};
use super::verdict::{self, Verdict};
use crate::kafka::native;
use crate::record::{Sequence, now_ms};
use crate::wal::ReadError;

/// How long a record may take that is sent to see whether its topic takes it.
const TRY_MAX: Duration = Duration::from_secs(10);
/// How many topics are tried to find the one that Kafka denies.
const TRIED_MAX: usize = 200;

impl Drain {
    /// A right that is missing is an operator's business.
    pub(super) fn explain_denial(&self, code: RDKafkaErrorCode) {
        let missing = match code {
            RDKafkaErrorCode::GroupAuthorizationFailed => "READ on the group",
            RDKafkaErrorCode::TransactionalIdAuthorizationFailed => "WRITE and DESCRIBE on the transactional id",
            RDKafkaErrorCode::TopicAuthorizationFailed => {
                "READ on the topic tidegate-watermark, or WRITE on a record's topic, for"
            }
            _ => return,
        };
        let group = self
            .transactions
            .as_ref()
            .map_or("", |transactions| transactions.group.as_str());
        self.link.note(format!(
            "Kafka denies this gateway's transactions: grant {missing} {group}. Records wait in the log until then"
        ));
    }

    /// There is a transaction that can be taken back.
    pub(super) fn may_roll_back(&self) -> bool {
        let is_begun = (self.transactions.as_ref()).is_some_and(|transactions| transactions.stage != Stage::New);
        is_begun && self.producer.fatal().is_none()
    }

    /// After a failure: the open transaction is taken back. If Kafka denies a topic without saying which, all are tried.
    pub(super) fn roll_back(
        &mut self,
        failures: &[Failure],
        refused: Option<(u32, RDKafkaErrorCode)>,
        purged: bool,
    ) -> Step<()> {
        let failed = purged || !failures.is_empty() || refused.is_some();
        if !failed || !self.may_roll_back() {
            return Ok(());
        }
        if purged {
            // What was on the wire may be written late: only another producer's epoch keeps it out.
            self.rolled_back();
            return Ok(());
        }
        let said = |failure: &Failure| verdict::verdict(failure.code) != Verdict::Retry;
        let code = match failures.is_empty() || failures.iter().any(said) {
            true => None,
            false => self.transaction_fault(),
        };
        self.abort()?;
        let Some(code) = code.filter(|code| verdict::verdict(*code) == Verdict::Config) else {
            return Ok(());
        };
        self.explain_denial(code);
        let mut suspects: VecDeque<Failure> = VecDeque::new();
        for failure in failures {
            let is_known = suspects.iter().any(|suspect| suspect.topic == failure.topic);
            if !is_known && suspects.len() < TRIED_MAX {
                suspects.push_back(*failure);
            }
        }
        if let Some(transactions) = &mut self.transactions {
            transactions.suspects = suspects;
        }
        Ok(())
    }

    /// Why the open transaction cannot be committed any more; it is to be taken back afterwards. librdkafka tells whoever
    /// wants to put an offset into it, and without one it does not look.
    fn transaction_fault(&self) -> Option<RDKafkaErrorCode> {
        let metadata = self.transactions.as_ref()?.metadata.as_ref()?;
        let offsets = offsets(&self.mark()).ok()?;
        match self.producer.send_offsets(offsets, metadata, CALL_MAX) {
            Err(KafkaError::Transaction(error)) if error.txn_requires_abort() => Some(error.code()),
            _ => None,
        }
    }

    /// Tries the next topic of those of which Kafka denies one; false: there is none. Nothing else is sent meanwhile. What Kafka
    /// denies is held. (A denial ends librdkafka's producer: it asks Kafka to take back
    /// what Kafka never began.)
    pub(super) fn try_suspect(&mut self) -> Step<bool> {
        let suspects = self
            .transactions
            .as_mut()
            .map(|transactions| &mut transactions.suspects);
        let Some(suspect) = suspects.and_then(VecDeque::pop_front) else {
            return Ok(false);
        };
        let Failure { lane, seq, topic, .. } = suspect;
        match self.try_alone(lane, topic, seq) {
            Ok(Some(Err(code))) if verdict::verdict(code) == Verdict::Config => {
                self.topics.hold(topic, code, true);
                self.producer.native.close_topic(topic as usize);
                // Kafka has answered: the next one need not wait.
                self.setbacks = 0;
            }
            Ok(Some(_)) => self.setbacks = 0,
            Ok(None) => {}
            Err(error) => self.trouble(error.to_string()),
        }
        Ok(true)
    }

    /// What Kafka says by itself against writing to a topic. Asked for first, for a try that is denied ends the producer.
    fn denied(&self, topic: &str) -> Option<RDKafkaErrorCode> {
        match native::describe(self.producer.native.producer().client(), topic, true, LOOK_MAX) {
            Ok(described) if described.rights.is_some_and(|rights| !rights.write) => {
                Some(RDKafkaErrorCode::TopicAuthorizationFailed)
            }
            Ok(_) => None,
            Err(code) => (verdict::verdict(code) == Verdict::Config).then_some(code),
        }
    }

    /// Sends one record in a transaction of its own, which is taken back whatever comes of it: does its topic take it?
    /// `None`: nobody knows.
    ///
    /// # Errors
    /// The log cannot be read.
    pub(super) fn try_alone(
        &mut self,
        lane: bool,
        topic: u32,
        seq: Sequence,
    ) -> Result<Option<Result<(), RDKafkaErrorCode>>, ReadError> {
        let name = self.topics.name(topic).to_owned();
        let Some(flow) = self.flow_mut(lane) else {
            return Ok(None);
        };
        let Some(record) = flow.fetch(seq)?.filter(|record| record.topic == name) else {
            return Ok(None);
        };
        if !self.transaction_is_empty() {
            return Ok(None);
        }
        if let Some(code) = self.denied(&name) {
            return Ok(Some(Err(code)));
        }
        let sent = self.producer.native.open_topic(topic as usize, &name).and_then(|()| {
            flow::send(
                &self.producer,
                topic,
                lane,
                seq,
                &record.borrowed(),
                &self.identity,
                now_ms(),
            )
        });
        if let Err(code) = sent {
            return Ok(Some(Err(code)));
        }
        let deadline = Instant::now() + TRY_MAX;
        while self.producer.outstanding() > 0 && Instant::now() < deadline && !self.over() {
            self.producer.native.flush(Duration::from_millis(10));
        }
        let mut reports = Vec::new();
        self.producer.inbox.swap(&mut reports);
        let report = reports.first().map(|report| report.error);
        let fault = match report {
            Some(Some(code)) if verdict::verdict(code) == Verdict::Retry => self.transaction_fault(),
            _ => None,
        };
        if let Err(error) = self.abort() {
            self.link.note(error.to_string());
        }
        Ok(match report {
            Some(None) => Some(Ok(())),
            // The transaction's own reason says more than that its records were thrown away.
            Some(Some(code)) => Some(Err(match verdict::verdict(code) {
                Verdict::Retry => fault.unwrap_or(code),
                _ => code,
            })),
            None => None,
        })
    }
}
