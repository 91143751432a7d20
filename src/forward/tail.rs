//! Reading the tail of the topics back: which un-acknowledged records does Kafka have all the same?
//!
//! After a crash, or a producer that ended with requests on the wire, a record may be in Kafka without its
//! acknowledgement having reached the log. Sent again it would be a repeat. So each partition is read
//! backwards, in blocks that grow, until a settled record of this gateway appears (records of one partition
//! are in the order of the log, so all of ours before it are settled too), or the time of the oldest
//! un-acknowledged record is passed, or a limit is reached. Not a proof: a request of a connection that died
//! may be written after the read. A topic that may not be read is left out. What repeats then remain carry their identity.
//!
//! Does not know the log: the caller says what each identity means.

use std::sync::Arc;
use std::time::{Duration, Instant};

use rdkafka::client::ClientContext;
use rdkafka::config::{ClientConfig, RDKafkaLogLevel};
use rdkafka::consumer::{BaseConsumer, Consumer as _, ConsumerContext};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::message::{BorrowedMessage, Message as _};
use rdkafka::statistics::Statistics;
use rdkafka::{Offset, TopicPartitionList};

use super::Options;
use super::producer::{Lookup, refusal};
use super::settings::base_settings;
use crate::kafka::link::{Link, log_line};
use crate::kafka::native;
use crate::kafka::settings::explain;
use crate::record::{Origin, now_ms};

/// The most records that are read back, over all topics.
const RECORDS_MAX: i64 = 500_000;
/// The longest time that a read-back takes while Kafka answers.
const TIME_MAX: Duration = Duration::from_secs(30);
/// Without an answer for this long, Kafka is away.
const SILENCE_MAX: Duration = Duration::from_secs(10);
/// The first block of a partition; each further one is ten times as long.
const BLOCK_RECORDS: i64 = 1000;
/// How far clocks (ours before and after a jump, the broker's) may be apart: read from this much earlier.
const CLOCK_MARGIN_MS: i64 = 300_000;

/// What a record found in Kafka is to the caller.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Seen {
    /// Un-acknowledged: it need not be sent again. The caller has taken note.
    Wanted,
    /// Ours and settled, and everything of ours before it in its partition too.
    Ground,
    /// Says nothing.
    Other,
}

/// How far the read-back came.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Outcome {
    pub(super) read: i64,
    pub(super) wanted: i64,
    /// A limit, or a right that is missing, ended it: repeats are possible.
    pub(super) cut: bool,
    /// Topics of which Kafka itself has removed records that may have been of interest: their retention has passed.
    pub(super) expired: Vec<String>,
}

/// What the clients beside the producer tell of the connection.
pub(super) struct Context {
    link: Arc<Link>,
}

impl Context {
    pub(super) fn new(link: &Arc<Link>) -> Self {
        Self { link: Arc::clone(link) }
    }
}

impl ClientContext for Context {
    fn log(&self, level: RDKafkaLogLevel, facility: &str, line: &str) {
        log_line(level, facility, line);
    }

    fn stats(&self, _: Statistics) {}

    fn error(&self, error: KafkaError, reason: &str) {
        match error.rdkafka_error_code() {
            Some(RDKafkaErrorCode::AllBrokersDown | RDKafkaErrorCode::PartitionEOF) => {}
            _ => self.link.error(reason.to_owned()),
        }
    }
}

impl ConsumerContext for Context {}

/// The settings of the reading consumer: it joins no group and commits nothing. `committed_only`: what a transaction did not
/// commit was never sent; but then nothing is seen behind another's open transaction.
pub(super) fn settings(options: &Options, committed_only: bool) -> ClientConfig {
    let mut config = ClientConfig::new();
    config.set_log_level(RDKafkaLogLevel::Warning);
    for (name, value) in base_settings(options) {
        config.set(name, value);
    }
    config.set("group.id", "tidegate-read-back");
    config.set("enable.auto.commit", "false");
    config.set("enable.auto.offset.store", "false");
    config.set("auto.offset.reset", "earliest");
    let isolation = if committed_only {
        "read_committed"
    } else {
        "read_uncommitted"
    };
    config.set("isolation.level", isolation);
    config.set("enable.partition.eof", "true");
    config.set("queued.max.messages.kbytes", "16384");
    config.set("fetch.wait.max.ms", "100");
    config.set("statistics.interval.ms", "0");
    config
}

/// One partition on its way backwards.
struct Part {
    id: i32,
    /// Nothing of interest before this offset.
    floor: i64,
    /// Everything from here on was read.
    read_from: i64,
    ground: bool,
}

/// Reads back the `topics`, each with the time its oldest un-acknowledged record was received. `left`: how much time
/// a shutdown leaves.
///
/// # Errors
/// Kafka does not answer: to be tried again, with the same `see`.
pub(super) fn read_back(
    options: &Options,
    committed_only: bool,
    link: &Arc<Link>,
    topics: &[(String, i64)],
    see: &mut dyn FnMut(&str, Origin) -> Seen,
    left: &dyn Fn() -> Duration,
) -> Result<Outcome, KafkaError> {
    let consumer: BaseConsumer<Context> = settings(options, committed_only).create_with_context(Context::new(link))?;
    let mut tail = Tail {
        consumer,
        deadline: Instant::now() + TIME_MAX,
        outcome: Outcome {
            read: 0,
            wanted: 0,
            cut: false,
            expired: Vec::new(),
        },
        left,
    };
    let share = (RECORDS_MAX / i64::try_from(topics.len()).unwrap_or(RECORDS_MAX).max(1)).max(BLOCK_RECORDS);
    let mut unreadable = Vec::new();
    for (topic, oldest_ms) in topics {
        match tail.topic(topic, *oldest_ms, share, see) {
            Ok(()) => {}
            Err(error) if is_final(&error) => unreadable.push((topic, error)),
            Err(error) => return Err(error),
        }
        link.up();
    }
    if let Some((topic, error)) = unreadable.first() {
        tail.outcome.cut = true;
        tracing::warn!(
            topics = unreadable.len(),
            "Kafka does not let the gateway read back what it wrote to {topic} ({error}), so records may be \
             repeated; grant READ on the topic to let the gateway look"
        );
    }
    Ok(tail.outcome)
}

/// What an operator reads while Kafka does not say what it has. `which`: the records that it is asked for.
pub(super) fn unanswered(which: &str, error: &KafkaError) -> String {
    format!(
        "Kafka could not be asked yet which of the {which} records it already has. Until it answers none of them is sent, so \
         that none is sent twice; the gateway goes on asking by itself: {}",
        explain(error)
    )
}

/// Asking again would not help: no right to read, or no such topic any more.
fn is_final(error: &KafkaError) -> bool {
    matches!(
        error.rdkafka_error_code(),
        Some(
            RDKafkaErrorCode::TopicAuthorizationFailed
                | RDKafkaErrorCode::GroupAuthorizationFailed
                | RDKafkaErrorCode::UnknownTopic
                | RDKafkaErrorCode::UnknownTopicOrPartition
                | RDKafkaErrorCode::UnknownTopicId
                | RDKafkaErrorCode::UnknownPartition
        )
    )
}

struct Tail<'a> {
    consumer: BaseConsumer<Context>,
    deadline: Instant,
    outcome: Outcome,
    /// Until a shutdown is over.
    left: &'a dyn Fn() -> Duration,
}

impl Tail<'_> {
    fn topic(
        &mut self,
        topic: &str,
        oldest_ms: i64,
        share: i64,
        see: &mut dyn FnMut(&str, Origin) -> Seen,
    ) -> Result<(), KafkaError> {
        let mut parts = self.parts(topic, oldest_ms)?;
        let mut left = share;
        let mut block = BLOCK_RECORDS;
        loop {
            let mut open: Vec<&mut Part> = (parts.iter_mut())
                .filter(|part| !part.ground && part.read_from > part.floor)
                .collect();
            if open.is_empty() {
                return Ok(());
            }
            let count = i64::try_from(open.len()).unwrap_or(i64::MAX);
            if left <= 0 || Instant::now() >= self.deadline {
                self.outcome.cut = true;
                return Ok(());
            }
            let length = block.min(left / count).max(1);
            left -= length.saturating_mul(count);
            self.blocks(topic, &mut open, length, see)?;
            block = block.saturating_mul(10);
        }
    }

    /// How long an answer may take: a shutdown does not wait for it.
    fn patience(&self) -> Duration {
        SILENCE_MAX.min((self.left)())
    }

    /// Where each partition ends, and how far back it is of interest.
    fn parts(&mut self, topic: &str, oldest_ms: i64) -> Result<Vec<Part>, KafkaError> {
        let metadata = self.consumer.fetch_metadata(Some(topic), self.patience())?;
        let Some(known) = metadata.topics().first() else {
            return Ok(Vec::new());
        };
        if refusal(known.error().map(RDKafkaErrorCode::from)) != Lookup::Exists {
            return Ok(Vec::new());
        }
        // A clock that was set back since: what was sent after that carries the earlier time.
        let since = oldest_ms.min(now_ms()).saturating_sub(CLOCK_MARGIN_MS).max(0);
        let mut times = TopicPartitionList::new();
        for partition in known.partitions() {
            if partition.leader() < 0 {
                tracing::warn!(
                    topic,
                    partition = partition.id(),
                    "the partition has no leader, so it cannot be read back: records of it may be sent twice \
                     (they carry their identity)"
                );
                continue;
            }
            times.add_partition_offset(topic, partition.id(), Offset::Offset(since))?;
        }
        if times.count() == 0 {
            return Ok(Vec::new());
        }
        let times = self.consumer.offsets_for_times(times, self.patience())?;
        let mut parts = Vec::new();
        let mut expired = false;
        for found in times.elements() {
            let (low, high) = self
                .consumer
                .fetch_watermarks(topic, found.partition(), self.patience())?;
            found.error()?;
            expired |= is_expired(found.offset(), low, high);
            if let Offset::Offset(offset) = found.offset() {
                parts.push(Part {
                    id: found.partition(),
                    floor: offset.max(low),
                    read_from: high,
                    ground: false,
                });
            }
        }
        if expired {
            self.outcome.expired.push(topic.to_owned());
        }
        Ok(parts)
    }

    /// Reads the block of `length` offsets before what was read of each partition.
    fn blocks(
        &mut self,
        topic: &str,
        parts: &mut [&mut Part],
        length: i64,
        see: &mut dyn FnMut(&str, Origin) -> Seen,
    ) -> Result<(), KafkaError> {
        let mut list = TopicPartitionList::new();
        // (partition, first offset behind its block), until it was reached.
        let mut open: Vec<(i32, i64)> = Vec::new();
        for part in parts.iter_mut() {
            let from = part.floor.max(part.read_from - length);
            list.add_partition_offset(topic, part.id, Offset::Offset(from))?;
            open.push((part.id, part.read_from));
            part.read_from = from;
        }
        self.consumer.assign(&list)?;
        let mut heard = Instant::now();
        while !open.is_empty() {
            let closed = match self.consumer.poll(Duration::from_millis(100)) {
                None => {
                    if (self.left)().is_zero() || heard.elapsed() > SILENCE_MAX {
                        return Err(KafkaError::MessageConsumption(RDKafkaErrorCode::OperationTimedOut));
                    }
                    continue;
                }
                Some(Err(KafkaError::PartitionEOF(partition))) => Some(partition),
                // Said once; nothing more would come.
                Some(Err(error)) if is_final(&error) => return Err(error),
                // Said by the error callback too; librdkafka tries again by itself.
                Some(Err(_)) => {
                    if heard.elapsed() > SILENCE_MAX {
                        return Err(KafkaError::MessageConsumption(RDKafkaErrorCode::OperationTimedOut));
                    }
                    continue;
                }
                Some(Ok(message)) => {
                    let Some((_, end)) = open.iter().find(|(id, _)| *id == message.partition()) else {
                        continue;
                    };
                    if message.offset() < *end {
                        self.outcome.read += 1;
                        match identity(&message).map_or(Seen::Other, |who| see(topic, who)) {
                            Seen::Wanted => self.outcome.wanted += 1,
                            Seen::Ground => {
                                for part in parts.iter_mut().filter(|part| part.id == message.partition()) {
                                    part.ground = true;
                                }
                            }
                            Seen::Other => {}
                        }
                    }
                    (message.offset() + 1 >= *end).then_some(message.partition())
                }
            };
            heard = Instant::now();
            if let Some(partition) = closed {
                // Not paused: what it goes on to bring was read before, and ends.
                open.retain(|(id, _)| *id != partition);
            }
            if Instant::now() >= self.deadline && !open.is_empty() {
                self.outcome.cut = true;
                // Not to be read again, nor to count as read.
                for part in parts.iter_mut() {
                    part.read_from = part.floor;
                }
                return Ok(());
            }
        }
        Ok(())
    }
}

/// Whether a partition's retention may have removed records from the time that was asked for: its beginning is gone,
/// and what is left begins after that time (`found`), or nothing is left.
fn is_expired(found: Offset, low: i64, high: i64) -> bool {
    let begins_later = matches!(found, Offset::Offset(offset) if offset <= low);
    low > 0 && (begins_later || low >= high)
}

/// Who a record in Kafka is, if a gateway sent it.
pub(super) fn identity(message: &BorrowedMessage<'_>) -> Option<Origin> {
    let wal = uuid::Uuid::try_parse_ascii(native::header(message, native::WAL)?).ok()?;
    let seq = std::str::from_utf8(native::header(message, native::SEQ)?)
        .ok()?
        .parse()
        .ok()?;
    Some(Origin {
        wal: *wal.as_bytes(),
        seq,
    })
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use rdkafka::mocking::MockCluster;
    use rdkafka::producer::{BaseProducer, BaseRecord, DefaultProducerContext, Producer as _};

    use super::super::WORDS;
    use super::super::settings::tests::options;
    use super::*;

    #[test]
    fn a_topic_that_may_not_be_read_is_not_asked_for_ever() {
        let cluster: MockCluster<'static, DefaultProducerContext> = MockCluster::new(1).unwrap();
        cluster.create_topic("denied", 1, 1).unwrap();
        let mut options = options(&[]);
        options.bootstrap_servers = cluster.bootstrap_servers();
        let producer: BaseProducer = ClientConfig::new()
            .set("bootstrap.servers", cluster.bootstrap_servers())
            .create()
            .unwrap();
        producer.send(BaseRecord::<(), str>::to("denied").payload("x")).unwrap();
        producer.flush(Duration::from_secs(30)).unwrap();
        let denied = rdkafka::types::RDKafkaRespErr::RD_KAFKA_RESP_ERR_TOPIC_AUTHORIZATION_FAILED;
        cluster.request_errors(rdkafka::types::RDKafkaApiKey::Fetch, &[denied; 20]);
        // The mock broker has no offsets for times, so the block is given.
        let context = Context {
            link: Arc::new(Link::new(WORDS)),
        };
        let mut tail = Tail {
            consumer: settings(&options, false).create_with_context(context).unwrap(),
            deadline: Instant::now() + Duration::from_secs(60),
            outcome: Outcome {
                read: 0,
                wanted: 0,
                cut: false,
                expired: Vec::new(),
            },
            left: &|| Duration::MAX,
        };
        let mut part = Part {
            id: 0,
            floor: 0,
            read_from: 1,
            ground: false,
        };
        let error = tail
            .blocks("denied", &mut [&mut part], 1, &mut |_, _| Seen::Other)
            .unwrap_err();
        assert!(is_final(&error), "{error}");
    }

    #[test]
    fn a_beginning_that_is_gone_counts_only_where_it_was_of_interest() {
        assert!(is_expired(Offset::Offset(50), 50, 90), "what is left begins later");
        assert!(is_expired(Offset::End, 90, 90), "nothing is left");
        assert!(!is_expired(Offset::Offset(60), 50, 90), "older ones are still there");
        assert!(!is_expired(Offset::End, 50, 90), "the end is lost, not the beginning");
        assert!(!is_expired(Offset::Offset(0), 0, 90), "nothing is gone");
        assert!(!is_expired(Offset::End, 0, 0), "all of it is lost");
    }

    #[test]
    fn that_nobody_answers_is_told_with_what_it_means_and_its_cause_last() {
        // Nobody listens on port 1.
        let link = Arc::new(Link::new(WORDS));
        let topics = [("t".to_owned(), 0)];
        let patience = || Duration::from_millis(100);
        let looked = read_back(&options(&[]), false, &link, &topics, &mut |_, _| Seen::Other, &patience);
        let error = looked.err().unwrap();
        let told = unanswered("waiting", &error);
        for words in [
            "which of the waiting records",
            "none is sent twice",
            "goes on asking by itself",
        ] {
            assert!(told.contains(words), "nothing like {words:?} in {told}");
        }
        assert!(told.ends_with(&format!(": {error}")), "{told}");
    }

    #[test]
    fn a_broker_that_is_away_is_asked_again() {
        let error = |code| is_final(&KafkaError::MessageConsumption(code));
        assert!(error(RDKafkaErrorCode::TopicAuthorizationFailed));
        assert!(error(RDKafkaErrorCode::UnknownTopicOrPartition));
        assert!(!error(RDKafkaErrorCode::BrokerTransportFailure));
        assert!(!error(RDKafkaErrorCode::LeaderNotAvailable));
    }
}
