//! The topics that records go to: there, open to this user, large enough, and safe. Words only: nothing is asked here.

use crate::cli::doctor::line::Findings;
use crate::cli::words::counted;
use crate::config::Config;
use crate::forward::check::{Facts, Topic};

/// librdkafka's default of `message.max.bytes`.
const MESSAGE_BYTES_MAX: u64 = 1_000_000;
/// What a record takes beside its payload: headers and framing.
const FRAMING_BYTES: u64 = 4096;
/// Topics that are looked at.
const TOPICS_COUNT_MAX: usize = 200;

/// A topic, and what needs it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Wanted {
    pub(super) name: String,
    /// A lander reads it.
    pub(super) read: bool,
}

/// The sources' topics, and those that clients may write to by name.
pub(super) fn wanted(config: &Config) -> Vec<Wanted> {
    let sources = config.sources.iter().map(|source| (source.topic.as_str(), true));
    let plain = config
        .http
        .topics
        .iter()
        .map(String::as_str)
        .filter(|pattern| !pattern.contains('*'));
    let mut wanted: Vec<Wanted> = Vec::new();
    for (name, read) in sources.chain(plain.map(|name| (name, false))) {
        if !wanted.iter().any(|topic| topic.name == name) && wanted.len() < TOPICS_COUNT_MAX {
            wanted.push(Wanted {
                name: name.to_owned(),
                read,
            });
        }
    }
    wanted
}

/// What records may be like.
#[derive(Debug, Clone, Copy)]
pub(super) struct Limits {
    /// http.record_bytes_max.
    pub(super) record: u64,
    /// librdkafka's message.max.bytes.
    pub(super) message: u64,
}

impl Limits {
    pub(super) fn of(config: &Config) -> Self {
        let message = config.kafka.properties.reveal().get("message.max.bytes");
        Self {
            record: config.http.record_bytes_max,
            message: message
                .and_then(|bytes| bytes.trim().parse().ok())
                .unwrap_or(MESSAGE_BYTES_MAX),
        }
    }
}

/// Lines of one topic.
pub(super) fn topic(wanted: &Wanted, found: &Topic, limits: &Limits, findings: &mut Findings) {
    let name = &wanted.name;
    let check = format!("topic {name}");
    let facts = match found {
        Topic::There(facts) => facts,
        Topic::Missing => {
            return findings.failure(
                &check,
                "there is no such topic, or none that this user may see",
                "its records are held on this machine, nothing is lost, and none of them reaches Kafka",
                format!(
                    "make it (`kafka-topics.sh --create --topic {name} ...`); its records are then sent by themselves"
                ),
            );
        }
        Topic::Denied => {
            return findings.failure(
                &check,
                "this user may not even see it",
                "its records are held on this machine, and none of them reaches Kafka",
                "grant this user WRITE, DESCRIBE and READ on it (`kafka-acls.sh --add`)",
            );
        }
        Topic::Unknown(why) => {
            return findings.warning(
                &check,
                format!("nothing is known of it: {why}"),
                "it could not be checked",
                "correct what is told above, then run doctor again",
            );
        }
    };
    let before = findings.lines.len();
    access(&check, wanted, facts, findings);
    sizes(&check, name, facts, limits, findings);
    safety(&check, name, facts, findings);
    if findings.lines.len() == before {
        findings.ok(&check, shown(facts));
    }
}

fn access(check: &str, wanted: &Wanted, facts: &Facts, findings: &mut Findings) {
    let name = &wanted.name;
    if facts.without_leader > 0 {
        findings.failure(
            check,
            format!(
                "{} of its {} have no leader",
                facts.without_leader,
                counted(facts.partitions as u64, "partition")
            ),
            "their records wait in the log until a broker leads them",
            format!("start the brokers that have them (`kafka-topics.sh --describe --topic {name}`)"),
        );
    }
    if facts.may_write == Some(false) {
        findings.failure(
            check,
            "this user may not write to it",
            "its records are held on this machine, and none of them reaches Kafka",
            "grant this user WRITE on it (`kafka-acls.sh --add --operation Write`)",
        );
    }
    if facts.may_read == Some(false) {
        findings.warning(
            check,
            "this user may not read it",
            if wanted.read {
                "after a crash the gateway cannot see what had arrived and sends it again; a lander with this user gets nothing"
            } else {
                "after a crash the gateway cannot see what had arrived and sends it again"
            },
            "grant this user READ on it (`kafka-acls.sh --add --operation Read`)",
        );
    }
}

fn sizes(check: &str, name: &str, facts: &Facts, limits: &Limits, findings: &mut Findings) {
    let Some(topic) = facts.message_bytes_max else { return };
    let largest = limits.record.saturating_add(FRAMING_BYTES);
    if topic < largest {
        findings.warning(
            check,
            format!(
                "its max.message.bytes is {topic}; clients may send records of {} bytes (http.record_bytes_max), and this \
                 machine's Kafka client messages of {} (message.max.bytes)",
                limits.record, limits.message
            ),
            "a record between the two is answered OK, and Kafka refuses it: it ends among the dead letters",
            format!(
                "raise the topic's (`kafka-configs.sh --alter --topic {name} --add-config max.message.bytes={largest}`), or set \
                 http.record_bytes_max to {} or less",
                topic.saturating_sub(FRAMING_BYTES)
            ),
        );
    }
}

fn safety(check: &str, name: &str, facts: &Facts, findings: &mut Findings) {
    if facts.replicas == 1 {
        findings.warning(
            check,
            "one broker alone has its records (replication factor 1)",
            "when that broker's disk is lost, records that Kafka had acknowledged are gone, and this log has removed them",
            "use three brokers and replication factor 3; meanwhile wal.retain (such as \"2 GiB\") keeps them here for a while",
        );
    } else if facts.in_sync_min.is_some_and(|min| min < 2) && facts.replicas > 1 {
        findings.warning(
            check,
            format!(
                "{} brokers have its records, and min.insync.replicas is 1",
                facts.replicas
            ),
            "while the others are behind, Kafka acknowledges what one broker alone has: its disk lost is records lost",
            format!("`kafka-configs.sh --alter --topic {name} --add-config min.insync.replicas=2`"),
        );
    }
}

/// A topic without a fault.
fn shown(facts: &Facts) -> String {
    let may = match (facts.may_write, facts.may_read) {
        (Some(_), _) | (_, Some(_)) => "this user may write and read",
        (None, None) => "what this user may do is not told",
    };
    let limit = facts.message_bytes_max.map_or_else(
        || "max.message.bytes is not told".to_owned(),
        |bytes| format!("max.message.bytes {bytes}"),
    );
    format!(
        "{}, replication factor {}; {may}; {limit}",
        counted(facts.partitions as u64, "partition"),
        facts.replicas
    )
}
