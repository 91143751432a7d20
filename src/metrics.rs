//! Every metric, once: its name, kind, unit and help text. Knows nobody.
//!
//! Counters and histograms are written where things happen, through the constants below; gauges are
//! computed when somebody scrapes (by `http/admin.rs`, from the status of log and forwarder).
//! [`install`] registers every name at 0 with its help, so that a dashboard shows 0 and not a hole
//! before the first event. Label values come from bounded sets: [`Label`] caps those that a client could
//! multiply.

use std::collections::HashSet;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use metrics_exporter_prometheus::{Matcher, PrometheusBuilder, PrometheusHandle};

/// What a metric is to Prometheus.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Only rises, from 0 at start.
    Counter,
    /// Computed at the scrape.
    Gauge,
    /// Buckets.
    Histogram,
}

/// One metric.
#[derive(Debug, Clone, Copy)]
pub struct Metric {
    /// Its name at the scrape.
    pub name: &'static str,
    /// Its kind.
    pub kind: Kind,
    /// What `# HELP` says.
    pub help: &'static str,
}

macro_rules! metrics_table {
    ($($constant:ident $kind:ident $name:literal $help:literal;)*) => {
        $(#[doc = $help] pub const $constant: &str = $name;)*
        /// Every metric that tidegate exposes, in the order of the documentation.
        pub const ALL: &[Metric] = &[$(Metric { name: $name, kind: Kind::$kind, help: $help },)*];
    };
}

metrics_table! {
    WAL_BACKLOG_RECORDS Gauge "tidegate_wal_backlog_records" "Records of the main log that are not settled: committed - acked. Records whose topic does not work are in tidegate_held_records.";
    WAL_BACKLOG_BYTES Gauge "tidegate_wal_backlog_bytes" "Payload bytes of the backlog, before compression.";
    WAL_OLDEST_RECORD_AGE_SECONDS Gauge "tidegate_wal_oldest_record_age_seconds" "Age of the oldest record in the main log that Kafka has not acknowledged; 0 without a backlog. Held records are not in it: see tidegate_held_records.";
    WAL_NEXT_SEQUENCE Gauge "tidegate_wal_next_sequence" "The sequence that the next record gets.";
    WAL_COMMITTED_SEQUENCE Gauge "tidegate_wal_committed_sequence" "Every record up to this sequence is on disk.";
    WAL_ACKED_SEQUENCE Gauge "tidegate_wal_acked_sequence" "Every record up to this sequence is settled: acknowledged by Kafka, dead-lettered or held.";
    WAL_DISK_BYTES Gauge "tidegate_wal_disk_bytes" "Disk space that the WAL folder takes, held records and dead letters included.";
    WAL_CAPACITY_BYTES Gauge "tidegate_wal_capacity_bytes" "wal.bytes_max: at this size new records are refused with 503.";
    WAL_FREE_BYTES Gauge "tidegate_wal_free_bytes" "Free space of the file system under the WAL.";
    WAL_GENERATIONS Gauge "tidegate_wal_generations" "Generations (files of about wal.generation_bytes) on disk.";
    WAL_COMMIT_SECONDS Histogram "tidegate_wal_commit_seconds" "Time of one group commit, from the first record taken to the disk's confirmation.";
    WAL_FSYNC_SECONDS Histogram "tidegate_wal_fsync_seconds" "Time of one fdatasync.";
    WAL_COMMIT_RECORDS Histogram "tidegate_wal_commit_records" "Records that one group commit covers.";
    WAL_CORRUPTION_RECORDS_TOTAL Counter "tidegate_wal_corruption_records_total" "Committed records found damaged or missing on disk.";
    WAL_SALVAGED_RECORDS_TOTAL Counter "tidegate_wal_salvaged_records_total" "Records recovered at start from a log whose newest part was damaged.";
    WAL_POISONED Gauge "tidegate_wal_poisoned" "1 after a failed fsync: nothing more is accepted and the process is about to end.";
    INGEST_RECORDS_TOTAL Counter "tidegate_ingest_records_total" "Records committed and answered 2xx, by topic.";
    INGEST_BYTES_TOTAL Counter "tidegate_ingest_bytes_total" "Payload bytes committed and answered 2xx, by topic.";
    INGEST_REQUESTS_TOTAL Counter "tidegate_ingest_requests_total" "Requests on the ingest listener by status code.";
    INGEST_REQUEST_SECONDS Histogram "tidegate_ingest_request_seconds" "Time from a request's headers to its answer.";
    INGEST_REJECTED_TOTAL Counter "tidegate_ingest_rejected_total" "Requests refused, by reason.";
    INGEST_REPLAYED_TOTAL Counter "tidegate_ingest_replayed_total" "Requests answered as before by their Idempotency-Key: nothing was stored.";
    INGEST_IN_FLIGHT Gauge "tidegate_ingest_in_flight" "Requests being worked on now.";
    FORWARD_RECORDS_TOTAL Counter "tidegate_forward_records_total" "Records that Kafka acknowledged, by topic.";
    FORWARD_BYTES_TOTAL Counter "tidegate_forward_bytes_total" "Payload bytes that Kafka acknowledged, by topic.";
    FORWARD_RETRIES_TOTAL Counter "tidegate_forward_retries_total" "Records sent again, by reason.";
    FORWARD_IN_FLIGHT_RECORDS Gauge "tidegate_forward_in_flight_records" "Records handed to the producer and not acknowledged yet.";
    FORWARD_BROKER_UP Gauge "tidegate_forward_broker_up" "1 while a Kafka broker is reachable.";
    FORWARD_DELIVERY_SECONDS Histogram "tidegate_forward_delivery_seconds" "Time from a record's receipt to Kafka's acknowledgement.";
    FORWARD_LAG_SECONDS Gauge "tidegate_forward_lag_seconds" "How far behind the forwarder is in the main log: age of the oldest record it has not settled there.";
    FORWARD_THROTTLED_SECONDS_TOTAL Counter "tidegate_forward_throttled_seconds_total" "Time the forwarder waited because of forward.bytes_per_second_max.";
    FORWARD_FATAL_ERRORS_TOTAL Counter "tidegate_forward_fatal_errors_total" "Times the producer ended with a fatal error and was made anew.";
    FORWARD_TRANSACTIONS_TOTAL Counter "tidegate_forward_transactions_total" "Kafka transactions committed (delivery = \"exactly_once\").";
    DEAD_LETTERS Gauge "tidegate_dead_letters" "Records that Kafka can never take, kept for an operator.";
    DEAD_LETTERS_TOTAL Counter "tidegate_dead_letters_total" "Records put to the dead letters, by reason.";
    HELD_RECORDS Gauge "tidegate_held_records" "Records held because their topic is unknown or denied.";
    HELD_TOPICS Gauge "tidegate_held_topics" "Topics that have held records.";
    LAND_RECORDS_TOTAL Counter "tidegate_land_records_total" "Rows stored, by whether they keep their source's rule.";
    LAND_DUPLICATES_TOTAL Counter "tidegate_land_duplicates_total" "Records that were stored before and were not stored again.";
    LAND_LAG_RECORDS Gauge "tidegate_land_lag_records" "Records between what is landed and the end of a partition; 0 for a partition that another lander has.";
    LAND_BATCH_SECONDS Histogram "tidegate_land_batch_seconds" "Time of one transaction of the database.";
    LAND_ERRORS_TOTAL Counter "tidegate_land_errors_total" "What went wrong while landing, by reason; nothing is lost by any of them but out_of_range and file_damaged.";
    BUILD_INFO Gauge "tidegate_build_info" "1, labelled with the version and the gateway's id.";
}

/// The values of `reason` on [`INGEST_REJECTED_TOTAL`].
pub const REJECTED_REASONS: &[&str] = &[
    "malformed",
    "unauthorized",
    "forbidden",
    "not_found",
    "method",
    "timeout",
    "length_required",
    "too_large",
    "media_type",
    "invalid",
    "idempotency_in_flight",
    "idempotency_mismatch",
    "rule",
    "rate",
    "headers",
    "wal_full",
    "disk_low",
    "poisoned",
    "in_flight",
    "shutting_down",
    "busy",
];

/// The values of `reason` on [`FORWARD_RETRIES_TOTAL`].
pub const RETRY_REASONS: &[&str] = &["batch", "config", "fatal", "transient", "healed"];

/// The values of `reason` on [`DEAD_LETTERS_TOTAL`]: Kafka's error codes that can be a record's own fault.
pub const DEAD_LETTER_REASONS: &[&str] = &[
    "MessageSizeTooLarge",
    "MessageBatchTooLarge",
    "InvalidMessageSize",
    "InvalidRecord",
    "InvalidDifferentRecord",
    "PolicyViolation",
    "BadMessage",
];

/// The values of `reason` on [`LAND_ERRORS_TOTAL`].
pub const LAND_REASONS: &[&str] = &[
    "database",
    "kafka",
    "refused",
    "identity_clash",
    "out_of_range",
    "topic_anew",
    "cluster_anew",
    "standstill",
    "file_damaged",
    "moved",
];

/// Upper bounds of the buckets of every `_seconds` histogram: 100 µs (a fast disk's fdatasync) to 5 min.
pub const SECONDS_BUCKETS: &[f64] = &[
    0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 60.0, 300.0,
];

/// Upper bounds of the buckets of [`WAL_COMMIT_RECORDS`].
pub const RECORDS_BUCKETS: &[f64] = &[1.0, 2.0, 5.0, 10.0, 25.0, 50.0, 100.0, 250.0, 500.0, 1000.0, 10_000.0];

/// How many values a label that a client chooses (a topic) may have; the rest are `_other`.
pub const LABEL_VALUES_MAX: usize = 200;

/// A recorder could not be set up: one was installed in this process before.
#[derive(Debug, thiserror::Error)]
#[error("metrics: {0}")]
pub struct InstallError(#[from] metrics_exporter_prometheus::BuildError);

/// Installs the process's recorder, with every metric described and at 0.
///
/// # Errors
/// When this process has a recorder already.
pub fn install() -> Result<PrometheusHandle, InstallError> {
    let handle = PrometheusBuilder::new()
        .set_buckets_for_metric(Matcher::Suffix("_seconds".into()), SECONDS_BUCKETS)?
        .set_buckets_for_metric(Matcher::Full(WAL_COMMIT_RECORDS.into()), RECORDS_BUCKETS)?
        .upkeep_timeout(Duration::from_secs(5))
        .install_recorder()?;
    for metric in ALL {
        match metric.kind {
            Kind::Counter => metrics::describe_counter!(metric.name, metric.help),
            Kind::Gauge => metrics::describe_gauge!(metric.name, metric.help),
            Kind::Histogram => metrics::describe_histogram!(metric.name, metric.help),
        }
        let labels: &[(&str, &[&str])] = match metric.name {
            INGEST_REJECTED_TOTAL => &[("reason", REJECTED_REASONS)],
            FORWARD_RETRIES_TOTAL => &[("reason", RETRY_REASONS)],
            // Labelled by topic, code or error name: `zero_topic` and the first event make them.
            INGEST_RECORDS_TOTAL | INGEST_BYTES_TOTAL | FORWARD_RECORDS_TOTAL | FORWARD_BYTES_TOTAL => continue,
            INGEST_REQUESTS_TOTAL => &[(
                "code",
                &[
                    "200", "202", "400", "401", "403", "404", "405", "408", "409", "413", "415", "422", "429", "431",
                    "503",
                ],
            )],
            DEAD_LETTERS_TOTAL => &[("reason", DEAD_LETTER_REASONS)],
            LAND_RECORDS_TOTAL => &[("valid", &["true", "false"])],
            LAND_ERRORS_TOTAL => &[("reason", LAND_REASONS)],
            // By topic and partition: `zero_lag` and the first look make them.
            LAND_LAG_RECORDS => continue,
            BUILD_INFO => continue,
            _ => &[],
        };
        if let Some((label, values)) = labels.first() {
            for value in *values {
                metrics::counter!(metric.name, *label => *value).increment(0);
            }
            continue;
        }
        match metric.kind {
            Kind::Counter => metrics::counter!(metric.name).increment(0),
            Kind::Gauge => metrics::gauge!(metric.name).set(0.0),
            // A histogram has no zero to set: registering it is enough for its series to be there.
            Kind::Histogram => drop(metrics::histogram!(metric.name)),
        }
    }
    Ok(handle)
}

/// Puts the four per-topic counters at 0 for a topic known from the configuration.
pub fn zero_topic(topic: &str) {
    for name in [
        INGEST_RECORDS_TOTAL,
        INGEST_BYTES_TOTAL,
        FORWARD_RECORDS_TOTAL,
        FORWARD_BYTES_TOTAL,
    ] {
        metrics::counter!(name, "topic" => topic.to_owned()).increment(0);
    }
}

/// Puts the lag of a topic that is landed at 0, before anything is known of its partitions: each has a partition 0.
pub fn zero_lag(topic: &str) {
    metrics::gauge!(LAND_LAG_RECORDS, "topic" => topic.to_owned(), "partition" => "0").set(0.0);
}

/// A label whose values come from clients: the first [`LABEL_VALUES_MAX`] are kept, the rest are `_other`.
#[derive(Debug, Default)]
pub struct Label {
    seen: Mutex<HashSet<String>>,
}

impl Label {
    /// The value to use for `value`.
    pub fn cap<'a>(&self, value: &'a str) -> &'a str {
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        if seen.contains(value) {
            return value;
        }
        if seen.len() >= LABEL_VALUES_MAX {
            return "_other";
        }
        seen.insert(value.to_owned());
        value
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_client_cannot_multiply_label_values() {
        let label = Label::default();
        for i in 0..LABEL_VALUES_MAX {
            label.cap(&format!("t{i}"));
        }
        assert_eq!(label.cap("t0"), "t0");
        assert_eq!(label.cap("one-more"), "_other");
    }

    #[test]
    fn every_name_is_there_once_and_has_its_prefix() {
        let names: HashSet<_> = ALL.iter().map(|metric| metric.name).collect();
        assert_eq!(names.len(), ALL.len());
        assert!(names.iter().all(|name| name.starts_with("tidegate_")));
    }
}
