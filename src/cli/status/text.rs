//! A gateway's and a lander's `/v1/status` as text for people. Pure: an address and JSON of any shape in, lines out.

use std::time::Duration;

use serde_json::Value;

use crate::words::{counted, one_line, percent, rate, size, time};

/// The most characters of a reason or a name.
const TEXT_CHARACTERS_MAX: usize = 300;
/// Held topics that are listed; --json has them all.
const HELD_TOPICS_MAX: usize = 10;
const UNKNOWN: &str = "?";
/// Of Kafka down without a reason: so it is told too while the first connection is made.
const NOT_REACHED: &str = "not reached (yet)";

/// What the gateway says.
pub(super) fn gateway(address: &str, status: &Value) -> String {
    let mut rows = Rows::under("gateway", address, status);
    rows.add("state", gateway_state(status));
    rows.add("kafka", gateway_kafka(status));
    rows.add("backlog", backlog(status));
    rows.add("rates", rates(status));
    rows.add("watermarks", watermarks(status));
    rows.add("disk", disk(status));
    if let Some(damaged) = number(status, "/wal/corruption_records").filter(|damaged| *damaged > 0) {
        let damaged = counted(damaged, "record");
        rows.add(
            "damage",
            format!("{damaged} cannot be read; the gateway's log and `tidegate wal verify` name them"),
        );
    }
    rows.add("dead letters", records(status, "/dead_letters"));
    rows.add("held", held(status));
    let topics = status.pointer("/forward/held_topics").and_then(Value::as_array);
    let topics = topics.map(Vec::as_slice).unwrap_or_default();
    for topic in topics.iter().take(HELD_TOPICS_MAX) {
        rows.add("", held_topic(topic, number(status, "/now_ms")));
    }
    let listed = topics.len().min(HELD_TOPICS_MAX) as u64;
    let more = number(status, "/forward/held_topics_count")
        .unwrap_or(0)
        .saturating_sub(listed);
    if more > 0 {
        rows.add("", format!("and {} more", counted(more, "topic")));
    }
    rows.add("log", text(status, "/wal/id").unwrap_or_else(|| UNKNOWN.to_owned()));
    rows.0
}

/// What a log's folder says while no gateway runs on it.
pub(super) fn folder(status: &Value) -> String {
    let path = known(text(status, "/folder"));
    let mut rows = Rows(format!("log in {path}, no gateway runs on it\n"));
    let faults = status.pointer("/wal/faults").and_then(Value::as_array);
    let waits = match number(status, "/wal/backlog_records") {
        _ if faults.is_some_and(|faults| !faults.is_empty()) => {
            "damaged: look at it with `tidegate wal verify` before a gateway is started here"
        }
        Some(0) if number(status, "/held_records").is_some_and(|held| held > 0) => {
            "nothing waits for Kafka but records of topics that do not work, put aside: `held` below, `tidegate held list`"
        }
        Some(0) => "nothing waits in the log for Kafka",
        _ => "what waits is sent once a gateway runs here: `tidegate serve`",
    };
    rows.add("state", waits);
    rows.add("backlog", folder_backlog(status));
    rows.add("watermarks", watermarks(status));
    rows.add("disk", disk(status));
    let mut name = "damage";
    for fault in faults.into_iter().flatten().filter_map(Value::as_str) {
        rows.add(std::mem::take(&mut name), shown(fault));
    }
    let looked = "only the end of the log was looked at: `tidegate wal verify --wal DIR` reads all of it";
    rows.add("checked", looked.replace("DIR", &path));
    rows.add("dead letters", records(status, "/dead_letters"));
    rows.add("held", records(status, "/held_records"));
    rows.add("log", text(status, "/wal/id").unwrap_or_else(|| UNKNOWN.to_owned()));
    rows.0
}

fn folder_backlog(status: &Value) -> String {
    let waiting = records(status, "/wal/backlog_records");
    match age(status.pointer("/forward/oldest_received_ms"), number(status, "/now_ms")) {
        Some(age) => format!("{waiting}, the oldest {age} old"),
        None => waiting,
    }
}

fn watermarks(status: &Value) -> String {
    format!(
        "trimmed {}, acknowledged {}, committed {}, next {}",
        plain(status, "/wal/trimmed"),
        plain(status, "/wal/acked"),
        plain(status, "/wal/committed"),
        plain(status, "/wal/next")
    )
}

fn gateway_state(status: &Value) -> String {
    let reason = |pointer| text(status, pointer);
    if let Some(reason) = reason("/wal/poisoned") {
        format!("its log has stopped: {reason}")
    } else if let Some(reason) = reason("/forward/stopped") {
        format!("its forwarder has stopped: {reason}")
    } else if status.get("shutting_down") == Some(&Value::Bool(true)) {
        "shutting down".to_owned()
    } else if let Some(reason) = reason("/wal/refusing") {
        format!("takes no records: {reason}")
    } else {
        let requests = number(status, "/in_flight").map(|count| counted(count, "request"));
        format!("takes records, {} under way", known(requests))
    }
}

fn gateway_kafka(status: &Value) -> String {
    let error = text(status, "/forward/last_error");
    match status.pointer("/forward/broker_up").and_then(Value::as_bool) {
        Some(true) => {
            let delivered = records(status, "/forward/delivered_records");
            // It stays after it was overcome, and may be about one topic.
            let error = error.map_or_else(String::new, |error| format!("; last trouble: {error}"));
            format!("up, {delivered} acknowledged since its start{error}")
        }
        Some(false) => {
            let error = error.unwrap_or_else(|| NOT_REACHED.to_owned());
            format!("away, records wait on disk: {error}")
        }
        None => UNKNOWN.to_owned(),
    }
}

fn backlog(status: &Value) -> String {
    let waiting = records(status, "/wal/backlog_records");
    if number(status, "/wal/backlog_records") == Some(0) {
        return waiting;
    }
    let bytes = known(number(status, "/wal/backlog_bytes").map(size));
    let age = age(status.pointer("/forward/oldest_received_ms"), number(status, "/now_ms"));
    match age {
        Some(age) => format!("{waiting}, {bytes}, the oldest {age} old"),
        None => format!("{waiting}, {bytes}"),
    }
}

fn rates(status: &Value) -> String {
    let told = |pointer| known(status.pointer(pointer).and_then(Value::as_f64).map(rate));
    let drained = match status.get("drain_seconds") {
        Some(Value::Null) => "not draining".to_owned(),
        Some(Value::Number(seconds)) if seconds.as_u64() == Some(0) => "nothing to drain".to_owned(),
        seconds => {
            let seconds = seconds.and_then(Value::as_u64).map(Duration::from_secs);
            format!("drained in about {}", known(seconds.map(time)))
        }
    };
    format!(
        "in {} records/s, out {} records/s, {drained}",
        told("/rates/ingest_records_per_second"),
        told("/rates/forward_records_per_second")
    )
}

fn disk(status: &Value) -> String {
    let bytes = |pointer| number(status, pointer);
    let (used, capacity) = (bytes("/wal/disk_bytes"), bytes("/wal/capacity_bytes"));
    let share = used.zip(capacity).and_then(|(used, capacity)| percent(used, capacity));
    format!(
        "{} of {}{}, {} free on its file system, {}",
        known(used.map(size)),
        known(capacity.map(size)),
        share.map_or_else(String::new, |share| format!(" ({share})")),
        known(bytes("/wal/free_bytes").map(size)),
        known(bytes("/wal/generations").map(|count| counted(count, "generation")))
    )
}

fn held(status: &Value) -> String {
    let held = records(status, "/held_records");
    match number(status, "/forward/held_topics_count") {
        Some(0) => held,
        topics => format!("{held} of {}", known(topics.map(|count| counted(count, "topic")))),
    }
}

fn held_topic(topic: &Value, now_ms: Option<u64>) -> String {
    format!(
        "{}: {} for {}, {}",
        known(text(topic, "/topic")),
        records(topic, "/records"),
        known(age(topic.get("since_ms"), now_ms)),
        known(text(topic, "/reason"))
    )
}

/// What the lander says.
pub(super) fn lander(address: &str, status: &Value) -> String {
    let mut rows = Rows::under("lander", address, status);
    if let Some(reason) = text(status, "/stopped") {
        rows.add("state", format!("has stopped: {reason}"));
    }
    rows.add(
        "kafka",
        up_or_why(status, "/kafka_up", "/kafka_error", ("up", "away", NOT_REACHED)),
    );
    let sink = known(text(status, "/sink"));
    let takes = up_or_why(
        status,
        "/sink_up",
        "/sink_error",
        ("takes rows", "takes no rows", UNKNOWN),
    );
    rows.add("sink", format!("{sink}, {takes}"));
    let stored = |kind| plain(status, &format!("/stored/{kind}"));
    rows.add(
        "stored",
        format!(
            "{} valid, {} invalid, {} duplicates dropped, {} rejected since its start",
            stored("valid"),
            stored("invalid"),
            stored("duplicates"),
            stored("rejected")
        ),
    );
    let partitions = status.get("partitions").and_then(Value::as_array);
    let partitions = partitions.map(Vec::as_slice).unwrap_or_default();
    let lag = records(status, "/lag_records");
    if partitions.is_empty() {
        rows.add("lag", format!("{lag}; no partition is assigned to it (yet)"));
        return rows.0;
    }
    rows.add(
        "lag",
        format!("{lag} in {}", counted(partitions.len() as u64, "partition")),
    );
    rows.0.push('\n');
    rows.0.push_str(&table(partitions));
    rows.0
}

fn up_or_why(status: &Value, up: &str, error: &str, (yes, no, unexplained): (&str, &str, &str)) -> String {
    match status.pointer(up).and_then(Value::as_bool) {
        Some(true) => yes.to_owned(),
        Some(false) => {
            let error = text(status, error);
            format!("{no}: {}", error.as_deref().unwrap_or(unexplained))
        }
        None => UNKNOWN.to_owned(),
    }
}

/// A line for each partition; texts to the left, numbers to the right.
fn table(partitions: &[Value]) -> String {
    let mut lines = vec![["source", "topic", "partition", "position", "end", "lag"].map(str::to_owned)];
    lines.extend(partitions.iter().map(|partition| {
        [
            known(text(partition, "/source")),
            known(text(partition, "/topic")),
            plain(partition, "/partition"),
            plain(partition, "/position"),
            plain(partition, "/end"),
            plain(partition, "/lag_records"),
        ]
    }));
    let width = |column: fn(&[String; 6]) -> &String| {
        let widths = lines.iter().map(|line| column(line).chars().count());
        widths.max().unwrap_or(0)
    };
    let widths = [
        width(|[a, ..]| a),
        width(|[_, a, ..]| a),
        width(|[_, _, a, ..]| a),
        width(|[.., a, _, _]| a),
        width(|[.., a, _]| a),
        width(|[.., a]| a),
    ];
    let mut text = String::new();
    for line in &lines {
        text.push(' ');
        for (column, (cell, width)) in line.iter().zip(widths).enumerate() {
            if column < 2 {
                text.push_str(&format!(" {cell:<width$} "));
            } else {
                text.push_str(&format!(" {cell:>width$} "));
            }
        }
        text.truncate(text.trim_end().len());
        text.push('\n');
    }
    text
}

/// Lines of a name and what is to be said of it, below a heading.
struct Rows(String);

impl Rows {
    fn under(part: &str, address: &str, status: &Value) -> Self {
        let name = known(status.get(part).and_then(Value::as_str).map(shown));
        let version = known(text(status, "/version"));
        Self(format!("{part} {name} on {address}, version {version}\n"))
    }

    fn add(&mut self, name: &str, value: impl AsRef<str>) {
        self.0.push_str(&format!("  {name:<14}{}\n", value.as_ref()));
    }
}

fn known(value: Option<String>) -> String {
    value.unwrap_or_else(|| UNKNOWN.to_owned())
}

fn shown(text: &str) -> String {
    one_line(text.as_bytes(), TEXT_CHARACTERS_MAX)
}

fn text(value: &Value, pointer: &str) -> Option<String> {
    value.pointer(pointer)?.as_str().map(shown)
}

fn number(value: &Value, pointer: &str) -> Option<u64> {
    value.pointer(pointer)?.as_u64()
}

/// A number as it was written.
fn plain(value: &Value, pointer: &str) -> String {
    match value.pointer(pointer) {
        Some(Value::Number(number)) => number.to_string(),
        // Not told yet: a partition's position before the database was asked.
        Some(Value::Null) => "-".to_owned(),
        _ => UNKNOWN.to_owned(),
    }
}

fn records(value: &Value, pointer: &str) -> String {
    match number(value, pointer) {
        Some(count) => counted(count, "record"),
        None => format!("{UNKNOWN} records"),
    }
}

/// From a time to the answering process's own present; a clock that was set back makes nothing younger than now.
fn age(since_ms: Option<&Value>, now_ms: Option<u64>) -> Option<String> {
    let since = since_ms?.as_u64()?;
    Some(time(Duration::from_millis(now_ms?.saturating_sub(since))))
}

#[cfg(test)]
mod tests;
