//! Every metric, once: its name, kind, labels, help, and what to do about it. Knows nobody.
//!
//! `docs/metrics.md` is made from this table by its test; dashboards and rules are checked against it.
//!
//! Counters and histograms are written where things happen, through the constants below; gauges are
//! computed when somebody scrapes (by `http/admin.rs`, from the status of log and forwarder).
//! [`install`] registers every name of a process at 0 with its help, so that a dashboard shows 0 and not a hole
//! before the first event; what a process has not (a lander has no log) it does not show at all, or its 0 would be an
//! outage. Label values come from bounded sets: [`Label`] caps those that a client could multiply.

use std::collections::HashSet;
use std::sync::{LazyLock, Mutex, PoisonError};
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
    /// Its labels.
    pub labels: &'static [(&'static str, Values)],
    /// What `# HELP` says.
    pub help: &'static str,
    /// What to do when it looks bad, for `docs/metrics.md`.
    pub advice: &'static str,
}

/// What a label may be.
#[derive(Debug, Clone, Copy)]
pub enum Values {
    /// One of these, each there from the first scrape.
    Known(&'static [&'static str]),
    /// Something of this kind.
    Open(&'static str),
}

use Values::{Known, Open};

/// What runs in a process, and so which metrics it has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Process {
    /// A gateway.
    Gateway,
    /// A lander.
    Lander,
    /// Both (`tidegate dev`).
    Both,
}

impl Metric {
    /// Whether such a process has it.
    #[must_use]
    pub fn is_of(&self, process: Process) -> bool {
        let is_anybodys =
            [BUILD_INFO, CLOCK_TIMESTAMP_SECONDS].contains(&self.name) || self.name.starts_with("process_");
        match process {
            Process::Both => true,
            _ if is_anybodys => true,
            Process::Lander => self.name.starts_with("tidegate_land_"),
            Process::Gateway => !self.name.starts_with("tidegate_land_"),
        }
    }
}

macro_rules! metrics_table {
    ($($constant:ident $kind:ident $name:literal $labels:tt $help:literal $advice:literal;)*) => {
        $(#[doc = $help] pub const $constant: &str = $name;)*
        /// Every metric that tidegate exposes, in the order of the documentation.
        pub const ALL: &[Metric] = &[$(Metric {
            name: $name,
            kind: Kind::$kind,
            labels: &$labels,
            help: $help,
            advice: $advice,
        },)*];
    };
}

metrics_table! {
    WAL_BACKLOG_RECORDS Gauge "tidegate_wal_backlog_records" []
        "Records of the main log that are not settled: committed - acked. Records whose topic does not work are in tidegate_held_records."
        "Rises while Kafka is away or slower than what comes in: [kafka-away](runbook/kafka-away.md).";
    WAL_BACKLOG_BYTES Gauge "tidegate_wal_backlog_bytes" []
        "Payload bytes of the backlog, before compression."
        "As the records. Divided by the rate out it is the time that the catching up takes.";
    WAL_OLDEST_RECORD_AGE_SECONDS Gauge "tidegate_wal_oldest_record_age_seconds" []
        "Age of the oldest record in the main log that Kafka has not acknowledged; 0 without a backlog. Held records are not in it: see tidegate_held_records."
        "How late Kafka's consumers are. If Kafka is up and it grows: [kafka-away](runbook/kafka-away.md).";
    WAL_NEXT_SEQUENCE Gauge "tidegate_wal_next_sequence" []
        "The sequence that the next record gets."
        "Nothing; it never falls.";
    WAL_COMMITTED_SEQUENCE Gauge "tidegate_wal_committed_sequence" []
        "Every record up to this sequence is on disk."
        "Nothing; its rate is what comes in.";
    WAL_ACKED_SEQUENCE Gauge "tidegate_wal_acked_sequence" []
        "Every record up to this sequence is settled: acknowledged by Kafka, dead-lettered or held."
        "Its rate is what goes out; it falls by a rewind only. Stands still with a backlog: [kafka-away](runbook/kafka-away.md).";
    WAL_DISK_BYTES Gauge "tidegate_wal_disk_bytes" []
        "Disk space that the WAL folder takes, held records and dead letters included."
        "Grows with backlog, held records, dead letters and wal.retain: [disk-filling](runbook/disk-filling.md).";
    WAL_CAPACITY_BYTES Gauge "tidegate_wal_capacity_bytes" []
        "wal.bytes_max: at this size new records are refused with 503."
        "Size it for the longest outage that you expect.";
    WAL_FREE_BYTES Gauge "tidegate_wal_free_bytes" []
        "Free space of the file system under the WAL."
        "Falls while the log does not grow: somebody else fills the disk. [disk-filling](runbook/disk-filling.md).";
    WAL_ROOM_BYTES Gauge "tidegate_wal_room_bytes" []
        "How much the log may still grow: the smaller of what is left to wal.bytes_max and of what the file system has above wal.free_bytes_min."
        "Its fall tells when the disk is full: [disk-filling](runbook/disk-filling.md).";
    WAL_REFUSING Gauge "tidegate_wal_refusing" []
        "1 while new records are refused with 503: wal.bytes_max or wal.free_bytes_min is reached, or the disk cannot take the next part of the log."
        "[disk-full](runbook/disk-full.md).";
    WAL_GENERATIONS Gauge "tidegate_wal_generations" []
        "Generations (files of about wal.generation_bytes) on disk."
        "Nothing; it follows the disk space.";
    WAL_COMMIT_SECONDS Histogram "tidegate_wal_commit_seconds" []
        "Time of one group commit, from the first record taken to the disk's confirmation."
        "What a client waits for. The 99th percentile above 0.5 s: [commit-latency](runbook/commit-latency.md).";
    WAL_FSYNC_SECONDS Histogram "tidegate_wal_fsync_seconds" []
        "Time of one fdatasync."
        "The disk's part of a commit. Disks get slow before they fail: [commit-latency](runbook/commit-latency.md).";
    WAL_COMMIT_RECORDS Histogram "tidegate_wal_commit_records" []
        "Records that one group commit covers."
        "Grows under load: that is group commit at work. Senders that batch make it larger.";
    WAL_CORRUPTION_RECORDS_TOTAL Counter "tidegate_wal_corruption_records_total" []
        "Committed records found damaged or missing on disk since the process started."
        "[corruption-found](runbook/corruption-found.md).";
    WAL_DAMAGED_RECORDS Gauge "tidegate_wal_damaged_records" []
        "Committed records that cannot be read: found since the start, or before it and not settled by an operator yet."
        "[corruption-found](runbook/corruption-found.md). It falls at the start after the damage is settled.";
    WAL_SALVAGED_RECORDS_TOTAL Counter "tidegate_wal_salvaged_records_total" []
        "Records recovered at start from a log whose newest part was damaged."
        "They are safe; why was the newest part damaged? [corruption-found](runbook/corruption-found.md).";
    WAL_POISONED Gauge "tidegate_wal_poisoned" []
        "1 after a failed fsync: nothing more is accepted and the process is about to end."
        "[wal-poisoned](runbook/wal-poisoned.md).";
    INGEST_RECORDS_TOTAL Counter "tidegate_ingest_records_total" [("topic", Open("a topic; beyond 200 of them _other"))]
        "Records committed and answered 2xx, by topic."
        "Its rate is what comes in. It falls to nothing: ask the senders.";
    INGEST_BYTES_TOTAL Counter "tidegate_ingest_bytes_total" [("topic", Open("a topic; beyond 200 of them _other"))]
        "Payload bytes committed and answered 2xx, by topic."
        "As the records.";
    INGEST_REQUESTS_TOTAL Counter "tidegate_ingest_requests_total" [("code", Known(REQUEST_CODES))]
        "Requests on the ingest listener by status code."
        "5xx is the gateway's matter, 4xx the senders': tidegate_ingest_rejected_total says why.";
    INGEST_REQUEST_SECONDS Histogram "tidegate_ingest_request_seconds" []
        "Time from a request's headers to its answer."
        "Much above tidegate_wal_commit_seconds: slow senders, or a processor that is too busy.";
    INGEST_REJECTED_TOTAL Counter "tidegate_ingest_rejected_total" [("reason", Known(REJECTED_REASONS))]
        "Requests refused, by reason."
        "unauthorized, forbidden, rate: [refused-clients](runbook/refused-clients.md); wal_full, disk_low: [disk-full](runbook/disk-full.md); poisoned: [wal-poisoned](runbook/wal-poisoned.md); in_flight, busy: more than the machine takes; the others: the sender's fault, the answer says which.";
    INGEST_REPLAYED_TOTAL Counter "tidegate_ingest_replayed_total" []
        "Requests answered as before by their Idempotency-Key: nothing was stored."
        "Many: senders lose their answers. Look at their line and their time-outs.";
    INGEST_IN_FLIGHT Gauge "tidegate_ingest_in_flight" []
        "Requests being worked on now."
        "Near http.in_flight_max: the disk is slow or there are too many senders at once.";
    HTTP_CERTIFICATE_EXPIRY_TIMESTAMP_SECONDS Gauge "tidegate_http_certificate_expiry_timestamp_seconds" []
        "When the certificate in force ends, as Unix time. Not there without TLS: what does not exist does not end."
        "[certificate-expires](runbook/certificate-expires.md).";
    HTTP_HANDSHAKES_FAILED_TOTAL Counter "tidegate_http_handshakes_failed_total" [("reason", Known(HANDSHAKE_REASONS))]
        "Connections to the ingest listener that did not become one of TLS: what came was no TLS, it was broken off by either side (a certificate that is not trusted, a scanner), or took too long."
        "[certificate-expires](runbook/certificate-expires.md), [refused-clients](runbook/refused-clients.md).";
    HTTP_FILES_REFUSED Gauge "tidegate_http_files_refused" [("file", Known(HTTP_FILES))]
        "1 while a file that was changed cannot be used and what it said before is in force: http.api_keys_file, or one of http.tls_*."
        "The log says what is wrong with it: [refused-clients](runbook/refused-clients.md).";
    FORWARD_RECORDS_TOTAL Counter "tidegate_forward_records_total" [("topic", Open("a topic; beyond 200 of them _other"))]
        "Records that Kafka acknowledged, by topic."
        "Its rate is what goes out. None with a backlog: [kafka-away](runbook/kafka-away.md).";
    FORWARD_BYTES_TOTAL Counter "tidegate_forward_bytes_total" [("topic", Open("a topic; beyond 200 of them _other"))]
        "Payload bytes that Kafka acknowledged, by topic."
        "As the records.";
    FORWARD_RETRIES_TOTAL Counter "tidegate_forward_retries_total" [("reason", Known(RETRY_REASONS))]
        "Records sent again, by reason."
        "healed: [kafka-lost-data](runbook/kafka-lost-data.md). The others heal by themselves; the log names the topic.";
    FORWARD_IN_FLIGHT_RECORDS Gauge "tidegate_forward_in_flight_records" []
        "Records handed to the producer and not acknowledged yet."
        "High and not moving: Kafka does not answer. [kafka-away](runbook/kafka-away.md).";
    FORWARD_BROKER_UP Gauge "tidegate_forward_broker_up" []
        "1 while a Kafka broker is reachable."
        "[kafka-away](runbook/kafka-away.md).";
    FORWARD_DELIVERY_SECONDS Histogram "tidegate_forward_delivery_seconds" []
        "Time from a record's receipt to Kafka's acknowledgement."
        "After an outage it is as long as the outage was. High without one: Kafka or the line is slow.";
    FORWARD_LAG_SECONDS Gauge "tidegate_forward_lag_seconds" []
        "How far behind the forwarder is in the main log: age of the oldest record it has not settled there."
        "As tidegate_wal_oldest_record_age_seconds.";
    FORWARD_THROTTLED_SECONDS_TOTAL Counter "tidegate_forward_throttled_seconds_total" []
        "Time the forwarder waited because of forward.bytes_per_second_max."
        "Rises by a second each second while the backlog grows: forward.bytes_per_second_max is too low.";
    FORWARD_FATAL_ERRORS_TOTAL Counter "tidegate_forward_fatal_errors_total" []
        "Times the producer ended with a fatal error and was made anew."
        "One now and then heals by itself. Again and again: the log says why; [kafka-lost-data](runbook/kafka-lost-data.md), [gateway-cloned](runbook/gateway-cloned.md).";
    FORWARD_TRANSACTIONS_TOTAL Counter "tidegate_forward_transactions_total" []
        "Kafka transactions committed (delivery = \"exactly_once\")."
        "Nothing.";
    DEAD_LETTERS Gauge "tidegate_dead_letters" []
        "Records that Kafka can never take, kept for an operator."
        "[dead-letters](runbook/dead-letters.md).";
    DEAD_LETTERS_TOTAL Counter "tidegate_dead_letters_total" [("reason", Known(DEAD_LETTER_REASONS))]
        "Records put to the dead letters, by reason."
        "[dead-letters](runbook/dead-letters.md).";
    HELD_RECORDS Gauge "tidegate_held_records" []
        "Records held because their topic is unknown or denied."
        "[held-topics](runbook/held-topics.md).";
    HELD_TOPICS Gauge "tidegate_held_topics" []
        "Topics that have held records."
        "[held-topics](runbook/held-topics.md).";
    LAND_RECORDS_TOTAL Counter "tidegate_land_records_total" [("valid", Known(&["true", "false"]))]
        "Rows stored, by whether they keep their source's rule."
        "Many that are not valid: a sender has changed what it sends; the views <source>_invalid show what.";
    LAND_DUPLICATES_TOTAL Counter "tidegate_land_duplicates_total" []
        "Records that were stored before and were not stored again."
        "Nothing; some after each crash, rewind or replay.";
    LAND_LAG_RECORDS Gauge "tidegate_land_lag_records" [("topic", Open("a topic that is landed")), ("partition", Open("a partition's number"))]
        "Records between what is landed and the end of a partition; 0 for a partition that another lander has."
        "Does not shrink: [lander-lag](runbook/lander-lag.md).";
    LAND_BATCH_SECONDS Histogram "tidegate_land_batch_seconds" []
        "Time of one transaction of the database."
        "Grows: the database is slow. [lander-lag](runbook/lander-lag.md).";
    LAND_ERRORS_TOTAL Counter "tidegate_land_errors_total" [("reason", Known(LAND_REASONS))]
        "What went wrong while landing, by reason; nothing is lost by any of them but out_of_range and file_damaged."
        "identity_clash: [gateway-cloned](runbook/gateway-cloned.md); the others: [lander-lag](runbook/lander-lag.md).";
    LAND_BROKER_UP Gauge "tidegate_land_broker_up" []
        "1 while the lander reaches Kafka."
        "[lander-lag](runbook/lander-lag.md).";
    LAND_SINK_UP Gauge "tidegate_land_sink_up" []
        "1 while the database, or the folder, takes rows."
        "[lander-lag](runbook/lander-lag.md).";
    BUILD_INFO Gauge "tidegate_build_info" [("version", Open("of the program")), ("gateway", Open("gateway.id"))]
        "1, labelled with the version and the gateway's id."
        "Two versions at once are fine while you upgrade.";
    CLOCK_TIMESTAMP_SECONDS Gauge "tidegate_clock_timestamp_seconds" []
        "What the machine's clock says at the scrape, as Unix time."
        "Differs from Prometheus's own: [clock-off](runbook/clock-off.md).";
    PROCESS_CPU_SECONDS_TOTAL Counter "process_cpu_seconds_total" []
        "Processor time of the process."
        "Near the number of processors: give it more, or have senders batch.";
    PROCESS_RESIDENT_MEMORY_BYTES Gauge "process_resident_memory_bytes" []
        "Resident memory of the process."
        "It is bounded (docs/benchmarks.md has figures). If it grows for hours, it is a fault of ours: report it.";
    PROCESS_VIRTUAL_MEMORY_BYTES Gauge "process_virtual_memory_bytes" []
        "Virtual memory of the process."
        "Nothing.";
    PROCESS_VIRTUAL_MEMORY_MAX_BYTES Gauge "process_virtual_memory_max_bytes" []
        "The most virtual memory that the process may have; 0: no limit."
        "Nothing.";
    PROCESS_OPEN_FDS Gauge "process_open_fds" []
        "Open files and connections of the process."
        "Near process_max_fds: raise the limit (LimitNOFILE), or lower http.connections_max.";
    PROCESS_MAX_FDS Gauge "process_max_fds" []
        "The most open files and connections that the process may have."
        "See process_open_fds.";
    PROCESS_THREADS Gauge "process_threads" []
        "Threads of the process."
        "Nothing.";
    PROCESS_START_TIME_SECONDS Gauge "process_start_time_seconds" []
        "When the process started, as Unix time."
        "Changes again and again: a supervisor starts what ends at once. [wal-poisoned](runbook/wal-poisoned.md).";
}

/// The values of `code` on [`INGEST_REQUESTS_TOTAL`].
pub const REQUEST_CODES: &[&str] = &[
    "200", "202", "400", "401", "403", "404", "405", "408", "409", "411", "413", "415", "422", "429", "431", "503",
];

/// The values of `reason` on [`HTTP_HANDSHAKES_FAILED_TOTAL`].
pub const HANDSHAKE_REASONS: &[&str] = &[HANDSHAKE_PLAIN, HANDSHAKE_BROKEN, HANDSHAKE_TIMEOUT];
/// What came was no TLS.
pub const HANDSHAKE_PLAIN: &str = "plain";
/// Client, certificate or connection broke off.
pub const HANDSHAKE_BROKEN: &str = "broken";
/// It took too long.
pub const HANDSHAKE_TIMEOUT: &str = "timeout";

/// The values of `file` on [`HTTP_FILES_REFUSED`].
pub const HTTP_FILES: &[&str] = &[FILE_API_KEYS, FILE_TLS];
/// `http.api_keys_file`.
pub const FILE_API_KEYS: &str = "api_keys";
/// One of `http.tls_*`.
pub const FILE_TLS: &str = "tls";

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

/// Installs the process's recorder, with every metric that it has described and at 0.
///
/// # Errors
/// When this process has a recorder already.
pub fn install(process: Process) -> Result<PrometheusHandle, InstallError> {
    LazyLock::force(&STARTED);
    let handle = PrometheusBuilder::new()
        .set_buckets_for_metric(Matcher::Suffix("_seconds".into()), SECONDS_BUCKETS)?
        .set_buckets_for_metric(Matcher::Full(WAL_COMMIT_RECORDS.into()), RECORDS_BUCKETS)?
        .upkeep_timeout(Duration::from_secs(5))
        .install_recorder()?;
    for metric in ALL.iter().filter(|metric| metric.is_of(process)) {
        match metric.kind {
            Kind::Counter => metrics::describe_counter!(metric.name, metric.help),
            Kind::Gauge => metrics::describe_gauge!(metric.name, metric.help),
            Kind::Histogram => metrics::describe_histogram!(metric.name, metric.help),
        }
        match metric.labels {
            // Without TLS there is none, and its 0 would be a certificate that ended long ago.
            [] if metric.name == HTTP_CERTIFICATE_EXPIRY_TIMESTAMP_SECONDS => {}
            [] => zero(metric, Vec::new()),
            [(label, Known(values))] => values
                .iter()
                .for_each(|value| zero(metric, vec![metrics::Label::new(*label, *value)])),
            // `zero_topic`, `zero_lag`, the first scrape or the first event make them.
            _ => {}
        }
    }
    Ok(handle)
}

fn zero(metric: &Metric, labels: Vec<metrics::Label>) {
    match metric.kind {
        Kind::Counter => metrics::counter!(metric.name, labels).increment(0),
        Kind::Gauge => metrics::gauge!(metric.name, labels).set(0.0),
        // A histogram has no zero to set: registering it is enough for its series to be there.
        Kind::Histogram => drop(metrics::histogram!(metric.name, labels)),
    }
}

/// When [`install`] was called, as Unix time: at the process's start.
static STARTED: LazyLock<f64> = LazyLock::new(|| jiff::Timestamp::now().as_duration().as_secs_f64());

/// What can be said of any process, as it stands now.
pub fn look_at_process() {
    metrics_process::Collector::default().collect();
    // Over the collector's: that needs /proc/stat, which a hardened unit does not show (`ProcSubset=pid`).
    metrics::gauge!(PROCESS_START_TIME_SECONDS).set(*STARTED);
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
mod tests;
