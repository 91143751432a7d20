//! The checker: what clients were answered, against what is in Kafka.
//!
//! Clients write down each record before they send it and its outcome afterwards. Values are unique, so a
//! value is who a record is, whatever the gateway did to it. A client sends the records of one key one
//! after the other, so the order of the book is the order per key. [`Ledger::check`] knows nothing of the
//! gateway but the two headers.

use std::collections::{HashMap, HashSet};
use std::fmt;
use std::sync::{Mutex, PoisonError};

use rdkafka::message::{BorrowedMessage, Headers as _, Message as _};

/// A record as Kafka has it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Message {
    pub partition: i32,
    pub offset: i64,
    pub timestamp_ms: Option<i64>,
    pub key: Option<Vec<u8>>,
    pub value: Vec<u8>,
    pub headers: Vec<(String, Vec<u8>)>,
}

impl Message {
    /// What a consumer was given.
    pub fn of(message: &BorrowedMessage<'_>) -> Self {
        let headers = message.headers().into_iter().flat_map(|headers| headers.iter());
        Self {
            partition: message.partition(),
            offset: message.offset(),
            timestamp_ms: message.timestamp().to_millis(),
            key: message.key().map(<[u8]>::to_vec),
            value: message.payload().unwrap_or_default().to_vec(),
            headers: headers
                .map(|header| (header.key.to_owned(), header.value.unwrap_or_default().to_vec()))
                .collect(),
        }
    }

    /// A header's value as text.
    pub fn header(&self, name: &str) -> Option<&str> {
        let (_, value) = self.headers.iter().find(|(header, _)| header == name)?;
        std::str::from_utf8(value).ok()
    }

    /// (`tidegate-wal`, `tidegate-seq`): who the record is.
    pub fn identity(&self) -> Option<(String, u64)> {
        Some((
            self.header("tidegate-wal")?.to_owned(),
            self.header("tidegate-seq")?.parse().ok()?,
        ))
    }
}

/// What the client knows of a record.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// No answer (yet): it may be in Kafka, once, or not.
    Unknown,
    /// A 2xx with this identity: it must be there.
    Ok { wal: String, seq: u64 },
    /// An error status: it must not be there.
    Refused(u16),
}

#[derive(Debug, Clone)]
struct Sent {
    topic: String,
    key: Option<Vec<u8>>,
    value: Vec<u8>,
    outcome: Outcome,
}

/// The book of all clients of a test.
#[derive(Debug, Default)]
pub struct Ledger {
    sent: Mutex<Vec<Sent>>,
}

/// What the check found wrong.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Fault {
    /// Answered OK and not in its topic.
    Lost(String),
    /// In the topic, and nobody sent it.
    NeverSent(String),
    /// In the topic, though it was refused.
    RefusedIsThere(String),
    /// One value under two identities, or an identity that is not the one of the answer.
    Identity(String),
    /// Two values under one identity.
    Clash(String),
    /// A key other than the one it was sent with.
    Key(String),
    /// Behind a record of its key that was sent later, or behind a higher sequence of its partition.
    Order(String),
}

/// What a check without faults counted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Tally {
    /// Answered OK.
    pub ok: usize,
    /// Without an answer.
    pub unknown: usize,
    /// Refused.
    pub refused: usize,
    /// Records in Kafka, repeats removed.
    pub delivered: usize,
    /// Repeats: a second record with one identity.
    pub repeats: usize,
}

impl Ledger {
    /// Writes a record down, before it is sent. Its place is for [`Ledger::settle`].
    pub fn intend(&self, topic: &str, key: Option<&str>, value: &[u8]) -> usize {
        let mut sent = self.sent.lock().unwrap_or_else(PoisonError::into_inner);
        sent.push(Sent {
            topic: topic.to_owned(),
            key: key.map(|key| key.as_bytes().to_vec()),
            value: value.to_vec(),
            outcome: Outcome::Unknown,
        });
        sent.len() - 1
    }

    /// Writes down what the client was answered.
    pub fn settle(&self, place: usize, outcome: Outcome) {
        let mut sent = self.sent.lock().unwrap_or_else(PoisonError::into_inner);
        sent[place].outcome = outcome;
    }

    /// Records answered OK so far.
    pub fn ok(&self) -> usize {
        let sent = self.sent.lock().unwrap_or_else(PoisonError::into_inner);
        sent.iter()
            .filter(|sent| matches!(sent.outcome, Outcome::Ok { .. }))
            .count()
    }

    /// The highest sequence that was answered OK.
    pub fn last_seq(&self) -> u64 {
        let sent = self.sent.lock().unwrap_or_else(PoisonError::into_inner);
        let seqs = sent.iter().filter_map(|sent| match sent.outcome {
            Outcome::Ok { seq, .. } => Some(seq),
            _ => None,
        });
        seqs.max().unwrap_or(0)
    }

    /// What was answered OK for this topic with a sequence below `first` may be gone, for somebody has deleted it:
    /// how much.
    pub fn excuse(&self, topic: &str, first: u64) -> usize {
        let mut sent = self.sent.lock().unwrap_or_else(PoisonError::into_inner);
        let old = sent.iter_mut().filter(|sent| {
            let is_old = matches!(sent.outcome, Outcome::Ok { seq, .. } if seq < first);
            sent.topic == topic && is_old
        });
        old.map(|sent| sent.outcome = Outcome::Unknown).count()
    }

    /// Compares the book with what the topics hold (each topic's messages in the order of partition and
    /// offset).
    pub fn check(&self, topics: &[(&str, Vec<Message>)]) -> Result<Tally, Faults> {
        let sent = self.sent.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let count = |wanted: fn(&Outcome) -> bool| sent.iter().filter(|sent| wanted(&sent.outcome)).count();
        let mut tally = Tally {
            ok: count(|outcome| matches!(outcome, Outcome::Ok { .. })),
            unknown: count(|outcome| *outcome == Outcome::Unknown),
            refused: count(|outcome| matches!(outcome, Outcome::Refused(_))),
            delivered: 0,
            repeats: 0,
        };
        let mut faults = Vec::new();
        // Identity -> value: over all topics, for an identity is unique for ever.
        let mut identities: HashMap<(String, u64), Vec<u8>> = HashMap::new();
        for (topic, messages) in topics {
            let book: HashMap<&[u8], (usize, &Sent)> = sent
                .iter()
                .enumerate()
                .filter(|(_, sent)| sent.topic == *topic)
                .map(|(place, sent)| (sent.value.as_slice(), (place, sent)))
                .collect();
            let mut found: HashSet<&[u8]> = HashSet::new();
            // The newest so far: place in the book per key, sequence per WAL and partition.
            let mut newest_place: HashMap<&[u8], usize> = HashMap::new();
            let mut newest_seq: HashMap<(String, i32), u64> = HashMap::new();
            for message in messages {
                let text = || {
                    format!(
                        "{topic}[{}]@{}: {}",
                        message.partition,
                        message.offset,
                        printable(&message.value)
                    )
                };
                let Some(identity) = message.identity() else {
                    faults.push(Fault::Identity(text()));
                    continue;
                };
                if let Some(known) = identities.get(&identity) {
                    if *known == message.value {
                        tally.repeats += 1;
                    } else {
                        faults.push(Fault::Clash(format!(
                            "{} as {identity:?}, also {}",
                            text(),
                            printable(known)
                        )));
                    }
                    continue;
                }
                identities.insert(identity.clone(), message.value.clone());
                let Some((place, sent)) = book.get(message.value.as_slice()) else {
                    faults.push(Fault::NeverSent(text()));
                    continue;
                };
                if !found.insert(&sent.value) {
                    faults.push(Fault::Identity(format!("{} a second time, as {identity:?}", text())));
                    continue;
                }
                tally.delivered += 1;
                match &sent.outcome {
                    Outcome::Ok { wal, seq } if (wal, *seq) != (&identity.0, identity.1) => {
                        faults.push(Fault::Identity(format!(
                            "{} is {identity:?}, answered {wal} {seq}",
                            text()
                        )));
                    }
                    Outcome::Refused(status) => faults.push(Fault::RefusedIsThere(format!("{} ({status})", text()))),
                    Outcome::Ok { .. } | Outcome::Unknown => {}
                }
                if sent.key != message.key {
                    faults.push(Fault::Key(format!(
                        "{} has {:?}, sent with {:?}",
                        text(),
                        message.key,
                        sent.key
                    )));
                }
                let last = newest_seq.entry((identity.0, message.partition)).or_default();
                if identity.1 < *last {
                    faults.push(Fault::Order(format!(
                        "{} with sequence {} behind {last}",
                        text(),
                        identity.1
                    )));
                }
                *last = identity.1.max(*last);
                if let Some(key) = &sent.key {
                    let last = newest_place.entry(key).or_default();
                    if *place < *last {
                        faults.push(Fault::Order(format!(
                            "{} behind one of its key that was sent later",
                            text()
                        )));
                    }
                    *last = (*place).max(*last);
                }
            }
            for (_, sent) in book.values() {
                if matches!(sent.outcome, Outcome::Ok { .. }) && !found.contains(sent.value.as_slice()) {
                    faults.push(Fault::Lost(format!(
                        "{topic}: {} ({:?})",
                        printable(&sent.value),
                        sent.outcome
                    )));
                }
            }
        }
        if faults.is_empty() {
            Ok(tally)
        } else {
            Err(Faults(faults))
        }
    }
}

/// Everything that a check found.
#[derive(Clone, PartialEq, Eq)]
pub struct Faults(pub Vec<Fault>);

impl fmt::Debug for Faults {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{} faults, of which the first:", self.0.len())?;
        self.0.iter().take(10).try_for_each(|fault| writeln!(f, "  {fault:?}"))
    }
}

fn printable(value: &[u8]) -> String {
    String::from_utf8_lossy(&value[..value.len().min(80)]).into_owned()
}
