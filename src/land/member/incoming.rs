//! What Kafka's client gives a member, out of its hands: records with their identities, ends of partitions, faults.

use std::time::Duration;

use rdkafka::consumer::BaseConsumer;
use rdkafka::error::KafkaError;
use rdkafka::message::{BorrowedMessage, Message as _};

use crate::kafka::native;
use crate::land::context::Context;
use crate::land::row::RECEIVED_MS_MAX;

/// What a poll brought.
pub(super) enum Polled {
    Nothing,
    Record(Box<Incoming>),
    End(i32),
    Failed(KafkaError),
}

/// A record, out of librdkafka's hands.
pub(super) struct Incoming {
    pub(super) partition: i32,
    pub(super) offset: i64,
    pub(super) key: Option<Vec<u8>>,
    pub(super) value: Option<Vec<u8>>,
    pub(super) identity: Option<(uuid::Uuid, i64)>,
    pub(super) received_ms: Option<i64>,
}

/// Polls once and takes what came out of librdkafka's hands.
pub(super) fn poll(consumer: &BaseConsumer<Context>, wait: Duration) -> Polled {
    match consumer.poll(wait) {
        None => Polled::Nothing,
        Some(Ok(message)) => Polled::Record(Box::new(incoming(&message))),
        Some(Err(KafkaError::PartitionEOF(partition))) => Polled::End(partition),
        Some(Err(error)) => Polled::Failed(error),
    }
}

fn incoming(message: &BorrowedMessage<'_>) -> Incoming {
    let header = |name| native::header(message, name);
    let received = header(native::RECEIVED)
        .and_then(number)
        .or_else(|| message.timestamp().to_millis());
    Incoming {
        partition: message.partition(),
        offset: message.offset(),
        key: message.key().map(<[u8]>::to_vec),
        value: message.payload().map(<[u8]>::to_vec),
        identity: identity(header(native::WAL), header(native::SEQ)),
        received_ms: received.filter(|ms| (0..=RECEIVED_MS_MAX).contains(ms)),
    }
}

/// Who a record is, by its headers; `None`: they are not those of a gateway.
pub(crate) fn identity(wal: Option<&[u8]>, seq: Option<&[u8]>) -> Option<(uuid::Uuid, i64)> {
    uuid::Uuid::try_parse_ascii(wal?).ok().zip(number(seq?))
}

/// A header that is a number, 0 or more.
pub(crate) fn number(header: &[u8]) -> Option<i64> {
    let text = std::str::from_utf8(header).ok()?;
    text.parse().ok().filter(|number| *number >= 0)
}
