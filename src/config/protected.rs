//! What may stand in `[kafka.properties]`, and why not.
//!
//! Everything but what tidegate's promises rest on, under every name that librdkafka has for it, and
//! what has a key of its own elsewhere in the configuration. Whether librdkafka knows a property is
//! librdkafka's business: the forwarder tells it at start.

/// Names, or beginnings of names (ending in `*`), and why they cannot be set.
const PROTECTED: &[(&[&str], &str)] = &[
    (
        &["acks", "request.required.acks"],
        "a record leaves the log only after all in-sync replicas have it (acks = all)",
    ),
    (
        &[
            "enable.idempotence",
            "enable.gapless.guarantee",
            "max.in.flight*",
            "queuing.strategy",
            "msg_order_cmp",
            // Would take the choice of the partition for records without a key from the forwarder.
            "sticky.partitioning.linger.ms",
        ],
        "records reach Kafka in order and without repeats only this way",
    ),
    (
        &[
            "message.timeout.ms",
            "delivery.timeout.ms",
            "retries",
            "message.send.max.retries",
        ],
        "a record is retried until Kafka takes it, for days if need be",
    ),
    (
        &["delivery.report.only.error"],
        "what Kafka acknowledged is removed from the log, so acknowledgements must be reported",
    ),
    (
        &["transactional.*"],
        "transactions belong to forward.delivery and carry the log's identity",
    ),
    (
        &[
            "group.*",
            "partition.assignment.strategy",
            "enable.partition.eof",
            "enable.auto.*",
            "auto.commit.enable",
            "auto.offset.reset",
            "isolation.level",
        ],
        "where forwarding and landing go on rests on how Kafka is read",
    ),
    (
        &["test.mock.*"],
        "a mock broker acknowledges records and forgets them; for a trial use `tidegate dev`",
    ),
];

/// Names that have a key of their own.
const ELSEWHERE: &[(&[&str], &str)] = &[
    (
        &["bootstrap.servers", "metadata.broker.list"],
        "kafka.bootstrap_servers",
    ),
    (&["client.id"], "gateway.id"),
];

/// Why `name` cannot be set, or nothing if it can.
pub(super) fn refusal(name: &str) -> Option<String> {
    let matches = |patterns: &[&str]| {
        patterns.iter().any(|pattern| match pattern.strip_suffix('*') {
            Some(beginning) => name.starts_with(beginning),
            None => name == *pattern,
        })
    };
    if let Some((_, key)) = ELSEWHERE.iter().find(|(names, _)| matches(names)) {
        return Some(format!("has a key of its own: set {key} instead"));
    }
    PROTECTED
        .iter()
        .find(|(names, _)| matches(names))
        .map(|(_, why)| format!("cannot be set, because {why}: remove it"))
}
