//! The settings of the forwarder's clients: the user's properties over our defaults, and what the promises
//! rest on over both.

use std::collections::BTreeMap;

use rdkafka::config::ClientConfig;

use super::Options;
use super::sift::GROUP_BYTES_MAX;
use crate::kafka;

/// What a producer is for; [`super::producer`] says why there are three.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    /// Everything. `batch_bytes`: a smaller batch.size, found necessary.
    Gapless {
        /// `None`: as configured.
        batch_bytes: Option<u32>,
    },
    /// A sift: one group at a time, flushed by hand.
    Careful,
    /// One record, to see whether its topic takes it.
    Probe,
}

/// The batch.size that is used unless the configuration has another, bytes.
const BATCH_BYTES: u32 = 1_000_000;
/// batch.size is never made smaller than this.
pub(super) const BATCH_BYTES_MIN: u32 = 16_384;

/// What any client of this gateway starts from: the user's properties over our defaults.
pub(super) fn base_settings(options: &Options) -> BTreeMap<String, String> {
    // The window is what limits. It is never so small that the largest record that ever was allowed would not fit.
    let kbytes = (options.in_flight_bytes_max / 1024 * 2)
        .clamp(65_536, 2_097_151)
        .to_string();
    let batch_bytes = BATCH_BYTES.to_string();
    let defaults = [
        ("linger.ms", "5"),
        ("batch.num.messages", "10000"),
        ("compression.type", "lz4"),
        ("partitioner", "murmur2_random"),
        // 0, or librdkafka chooses at random for records without a key before our partitioner is asked.
        ("sticky.partitioning.linger.ms", "0"),
        // The window is what limits: librdkafka's own limits are only a little above it.
        ("queue.buffering.max.messages", "500000"),
        ("queue.buffering.max.kbytes", kbytes.as_str()),
        ("batch.size", batch_bytes.as_str()),
        // A missing topic is to be held, not made by accident.
        ("allow.auto.create.topics", "false"),
        // How long a topic may be missing from the metadata before its records are reported as failed.
        ("topic.metadata.propagation.max.ms", "10000"),
    ];
    kafka::settings::merge(
        &options.bootstrap_servers,
        &options.client_id,
        &defaults,
        &options.properties,
    )
}

/// The settings of a producer: what the promises rest on goes over everything else. `transactions`: the id under which it
/// makes them.
pub(super) fn settings(options: &Options, kind: Kind, transactions: Option<&str>) -> ClientConfig {
    let mut settings = base_settings(options);
    let mut set = |name: &str, value: &str| settings.insert(name.to_owned(), value.to_owned());
    set("acks", "all");
    set("enable.idempotence", "true");
    // 0: for ever. A record is never given up because of time.
    set("message.timeout.ms", "0");
    // Whether a broker is up is learned from them.
    set("statistics.interval.ms", "2000");
    if let Some(id) = transactions {
        set("transactional.id", id);
        // A coordinator that is gone holds a transaction up for so long, and Kafka gives the transaction up after a minute.
        if !options.properties.contains_key("socket.timeout.ms") {
            set("socket.timeout.ms", "20000");
        }
    }
    match kind {
        Kind::Gapless { batch_bytes } => {
            // A transaction in which something failed is taken back as a whole: no gap, and no need for the end.
            set(
                "enable.gapless.guarantee",
                if transactions.is_none() { "true" } else { "false" },
            );
            if let Some(bytes) = batch_bytes {
                set("batch.size", &bytes.to_string());
            }
        }
        Kind::Careful => {
            set("enable.gapless.guarantee", "false");
            // A group goes out as one batch per partition: nothing is sent before the flush.
            set("linger.ms", "60000");
            set("batch.size", &BATCH_BYTES.to_string());
            set("batch.num.messages", "10000");
            // Nothing leaves the queue before the group is whole, so the group must fit.
            set("queue.buffering.max.messages", "500000");
            set("queue.buffering.max.kbytes", "1048576");
        }
        Kind::Probe => {
            set("enable.gapless.guarantee", "false");
            set("linger.ms", "0");
        }
    }
    kafka::settings::client_config(settings)
}

/// The batch.size that is configured, bytes.
pub(super) fn batch_bytes(options: &Options) -> u32 {
    let configured = base_settings(options).remove("batch.size");
    configured.and_then(|bytes| bytes.parse().ok()).unwrap_or(BATCH_BYTES)
}

/// The most bytes of a sift's group: librdkafka ends a batch at message.max.bytes too, and a group is one batch.
pub(super) fn group_bytes(options: &Options) -> u64 {
    let configured = options.properties.get("message.max.bytes");
    let message = configured.and_then(|bytes| bytes.trim().parse::<u64>().ok());
    message.map_or(GROUP_BYTES_MAX, |bytes| GROUP_BYTES_MAX.min(bytes / 2))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
pub(super) mod tests {
    use super::super::Guarantee;
    use super::*;

    pub(in crate::forward) fn options(properties: &[(&str, &str)]) -> Options {
        Options {
            bootstrap_servers: "127.0.0.1:1".into(),
            client_id: "test".into(),
            properties: (properties.iter())
                .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()))
                .collect(),
            in_flight_bytes_max: 64 << 20,
            bytes_per_second_max: None,
            guarantee: Guarantee::Idempotent,
            on_delivery: None,
        }
    }

    #[test]
    fn librdkafka_takes_both_kinds_of_settings() {
        for kind in [
            Kind::Gapless {
                batch_bytes: Some(20_000),
            },
            Kind::Careful,
        ] {
            for transactions in [None, Some("tidegate.x")] {
                settings(&options(&[]), kind, transactions)
                    .create_native_config()
                    .unwrap();
            }
        }
    }

    #[test]
    fn what_the_promises_rest_on_cannot_be_overridden() {
        let config = settings(
            &options(&[
                ("acks", "1"),
                ("message.timeout.ms", "5"),
                ("enable.idempotence", "false"),
            ]),
            Kind::Gapless { batch_bytes: None },
            None,
        );
        assert_eq!(config.get("acks"), Some("all"));
        assert_eq!(config.get("message.timeout.ms"), Some("0"));
        assert_eq!(config.get("enable.idempotence"), Some("true"));
    }

    #[test]
    fn a_group_of_suspects_fits_one_batch() {
        assert_eq!(group_bytes(&options(&[])), GROUP_BYTES_MAX);
        assert_eq!(group_bytes(&options(&[("message.max.bytes", "20000")])), 10_000);
        assert_eq!(
            group_bytes(&options(&[("message.max.bytes", "9000000")])),
            GROUP_BYTES_MAX
        );
    }

    #[test]
    fn a_setting_under_its_other_name_replaces_the_default() {
        let config = settings(
            &options(&[("compression.codec", "zstd")]),
            Kind::Gapless { batch_bytes: None },
            None,
        );
        assert_eq!(config.get("compression.type"), Some("zstd"));
        assert_eq!(config.get("compression.codec"), None);
    }
}
