//! What a Kafka error code means for a record: ONE match, so that nobody decides it twice.
//!
//! A batch fails as a whole with one code, so a code never proves that a record is bad: `Poison` only makes
//! its records suspects, to be sent again in smaller groups until one fails alone ([`super::sift`]).
//! Does not know windows, topics or the log.

use rdkafka::types::RDKafkaErrorCode as Code;

/// What to do with a record whose batch failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Verdict {
    /// Nothing is known against the record: send it again.
    Retry,
    /// The record may be one that Kafka can never take: a suspect.
    Poison,
    /// A clock is wrong (ours, or the topic's limits on timestamps are too tight). A suspect as above, but
    /// the one that fails alone is as good as any: its topic is held, in order, until the clock is right.
    Clock,
    /// The topic or its rights are wrong: every record of the topic is held.
    Config,
    /// The producer has ended; its records are innocent.
    Fatal,
}

/// The verdict for `code`.
pub(super) fn verdict(code: Code) -> Verdict {
    match code {
        // Also without any bad record: the topic's max.message.bytes limits the compressed BATCH.
        Code::MessageSizeTooLarge | Code::MessageBatchTooLarge | Code::InvalidMessageSize => Verdict::Poison,
        // A record without a key for a compacted topic, a broker-side validation, a policy.
        Code::InvalidRecord | Code::InvalidDifferentRecord | Code::PolicyViolation | Code::BadMessage => {
            Verdict::Poison
        }
        Code::UnknownTopic
        | Code::UnknownTopicOrPartition
        | Code::UnknownTopicId
        | Code::UnknownPartition
        | Code::InvalidTopic
        | Code::TopicAuthorizationFailed => Verdict::Config,
        Code::InvalidTimestamp => Verdict::Clock,
        // Hit every record of the topic alike, so they say nothing about one of them.
        Code::UnsupportedForMessageFormat | Code::UnsupportedCompressionType | Code::InvalidRequiredAcks => {
            Verdict::Config
        }
        Code::Fatal
        | Code::GaplessGuarantee
        | Code::Inconsistent
        | Code::Fenced
        | Code::OutOfOrderSequenceNumber
        | Code::DuplicateSequenceNumber
        | Code::InvalidProducerEpoch
        | Code::UnknownProducerId
        | Code::InvalidProducerIdMapping
        | Code::ProducerFenced
        // The right to write with an idempotent producer is missing: librdkafka ends.
        | Code::ClusterAuthorizationFailed => Verdict::Fatal,
        // Purged by us, the network, a broker that starts or stops, whatever is new: never a reason to
        // give a record up.
        _ => Verdict::Retry,
    }
}

/// The topic is not there: the metadata say when it is.
pub(super) fn is_missing(code: Code) -> bool {
    matches!(
        code,
        Code::UnknownTopic | Code::UnknownTopicOrPartition | Code::UnknownTopicId | Code::UnknownPartition
    )
}

/// Kafka no longer knows what it acknowledged to this producer: it may have lost records.
pub(super) fn is_loss(code: Code) -> bool {
    matches!(code, Code::OutOfOrderSequenceNumber | Code::UnknownProducerId)
}

/// A limit on sizes, which may be the batch's fault alone.
pub(super) fn is_size(code: Code) -> bool {
    matches!(
        code,
        Code::MessageSizeTooLarge | Code::MessageBatchTooLarge | Code::InvalidMessageSize
    )
}

/// Why the records of a topic are held, in words for an operator.
pub(super) fn reason(code: Code) -> String {
    match code {
        code if is_missing(code) => "the topic does not exist in Kafka; create it, and its records are sent".to_owned(),
        Code::TopicAuthorizationFailed => {
            "Kafka denies writing to the topic; grant WRITE and DESCRIBE, and its records are sent".to_owned()
        }
        Code::InvalidTopic => "Kafka does not allow this topic name; redirect or discard its records".to_owned(),
        Code::InvalidTimestamp => "Kafka refuses the records' timestamps: correct this machine's clock, or the \
             topic's message.timestamp.before.max.ms / after.max.ms, and they are sent"
            .to_owned(),
        other => format!("Kafka refuses the topic's records: {other}"),
    }
}

/// Kafka's name of `code`, as in `MessageSizeTooLarge`: a metric label and the code of a dead letter.
pub(super) fn name(code: Code) -> String {
    format!("{code:?}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_clock_fault_holds_the_topic_and_is_never_poison() {
        assert_eq!(verdict(Code::InvalidTimestamp), Verdict::Clock);
    }

    #[test]
    fn records_purged_with_a_producer_are_sent_again() {
        assert_eq!(verdict(Code::PurgeQueue), Verdict::Retry);
        assert_eq!(verdict(Code::PurgeInflight), Verdict::Retry);
    }

    #[test]
    fn a_code_nobody_foresaw_never_gives_a_record_up() {
        assert_eq!(verdict(Code::Unknown), Verdict::Retry);
        assert_eq!(verdict(Code::TelemetryTooLarge), Verdict::Retry);
    }

    #[test]
    fn the_reasons_of_dead_letters_are_those_that_metrics_show_at_zero() {
        let reasons: Vec<String> = (-200..200)
            .filter_map(|number| rdkafka::types::RDKafkaRespErr::try_from(number).ok())
            .map(Code::from)
            .filter(|code| verdict(*code) == Verdict::Poison)
            .map(name)
            .collect();
        for reason in &reasons {
            assert!(
                crate::metrics::DEAD_LETTER_REASONS.contains(&reason.as_str()),
                "{reason}"
            );
        }
        assert_eq!(reasons.len(), crate::metrics::DEAD_LETTER_REASONS.len());
    }

    #[test]
    fn names_are_kafkas() {
        assert_eq!(name(Code::MessageSizeTooLarge), "MessageSizeTooLarge");
    }
}
