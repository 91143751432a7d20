//! The settings of the lander's consumers: the user's properties over our defaults, and what the promises rest
//! on over both.

use rdkafka::config::ClientConfig;

use super::Options;
use crate::kafka;

/// Memory for records that were fetched and not looked at yet, of all consumers together, KiB. It bounds the
/// lander's memory at any backlog.
const FETCHED_KIB: usize = 8 << 10;
/// The least of it for one consumer: a few records of the usual limit.
const FETCHED_KIB_MIN: usize = 1 << 10;

/// The settings of one of `members` consumers.
pub(super) fn settings(options: &Options, group: &str, members: usize) -> ClientConfig {
    let fetched = (FETCHED_KIB / members.max(1)).max(FETCHED_KIB_MIN).to_string();
    let defaults = [
        // A topic, or a partition, that is made is seen within this time.
        ("topic.metadata.refresh.interval.ms", "5000"),
        // How long the partitions of a lander that was killed stand still.
        ("session.timeout.ms", "10000"),
        ("heartbeat.interval.ms", "1000"),
        ("fetch.wait.max.ms", "200"),
        ("queued.min.messages", "20000"),
        // How soon a queue that was full is looked at again. librdkafka's own 1 s would be one queue a second: 33,000
        // records of 250 bytes, a tenth of what the databases take.
        ("fetch.queue.backoff.ms", "5"),
        ("queued.max.messages.kbytes", fetched.as_str()),
        ("max.partition.fetch.bytes", "524288"),
        ("fetch.max.bytes", "1048576"),
        // A record that was damaged on its way must not be stored.
        ("check.crcs", "true"),
        ("allow.auto.create.topics", "false"),
    ];
    let mut settings = kafka::settings::merge(
        &options.bootstrap_servers,
        &options.client_id,
        &defaults,
        &options.properties,
    );
    for (name, value) in [
        ("group.id", group),
        // The sink says where reading goes on; what is committed is for people who watch the group.
        ("enable.auto.commit", "false"),
        ("enable.auto.offset.store", "false"),
        ("auto.offset.reset", "error"),
        ("isolation.level", "read_committed"),
        ("enable.partition.eof", "true"),
        // All of a member's partitions change hands at once: what `member.rs` is written for.
        ("partition.assignment.strategy", "range"),
        ("group.protocol", "classic"),
        // Ends of partitions, and whether a broker is up.
        ("statistics.interval.ms", "1000"),
    ] {
        settings.insert(name.to_owned(), value.to_owned());
    }
    kafka::settings::client_config(settings)
}
