//! What people read, word by word.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)]

use serde_json::json;

use super::*;

fn gateway_status() -> Value {
    json!({
        "gateway": "edge-7", "version": "0.1.0", "now_ms": 1_000_000_000, "shutting_down": false, "in_flight": 1,
        "wal": {
            "id": "2fe308bb-3447-4469-9d2f-239a1183d085", "trimmed": 0, "acked": 120, "committed": 132, "next": 133,
            "backlog_records": 12, "backlog_bytes": 1229, "disk_bytes": 201_326_592, "capacity_bytes": 68_719_476_736_u64,
            "free_bytes": 75_042_988_032_u64, "generations": 3, "corruption_records": 0, "poisoned": null, "refusing": null,
        },
        "held_records": 0, "dead_letters": 0, "drain_seconds": 192,
        "rates": {"ingest_records_per_second": 0.25, "forward_records_per_second": 1234.5},
        "forward": {
            "broker_up": true, "last_error": null, "in_flight_records": 12, "oldest_received_ms": 999_808_000,
            "fatal_errors": 0, "delivered_records": 120, "held_topics": [], "held_topics_count": 0, "stopped": null,
        },
    })
}

#[test]
fn a_gateway_at_work() {
    assert_eq!(
        gateway("127.0.0.1:4001", &gateway_status()),
        "\
gateway edge-7 on 127.0.0.1:4001, version 0.1.0
  state         takes records, 1 request under way
  kafka         up, 120 records acknowledged since its start
  backlog       12 records, 1.2 KiB, the oldest 3m 12s old
  rates         in 0.2 records/s, out 1,235 records/s, drained in about 3m 12s
  watermarks    trimmed 0, acknowledged 120, committed 132, next 133
  disk          192.0 MiB of 64.0 GiB (0.2%), 69.9 GiB free on its file system, 3 generations
  dead letters  0 records
  held          0 records
  log           2fe308bb-3447-4469-9d2f-239a1183d085
"
    );
}

#[test]
fn a_gateway_in_trouble() {
    let mut status = gateway_status();
    status["wal"]["refusing"] = json!("the log is full");
    status["wal"]["corruption_records"] = json!(1);
    status["wal"]["backlog_records"] = json!(0);
    status["drain_seconds"] = Value::Null;
    status["rates"]["forward_records_per_second"] = Value::Null;
    status["dead_letters"] = json!(2);
    status["held_records"] = json!(3);
    status["forward"]["broker_up"] = json!(false);
    status["forward"]["last_error"] = json!("all brokers are down\n\u{1b}[2J");
    status["forward"]["held_topics_count"] = json!(1001);
    let topic = json!({"topic": "orders", "records": 3, "reason": "it does not exist: make it", "since_ms": 0});
    status["forward"]["held_topics"] = json!([topic]);
    assert_eq!(
        gateway("127.0.0.1:4001", &status),
        "\
gateway edge-7 on 127.0.0.1:4001, version 0.1.0
  state         takes no records: the log is full
  kafka         away, records wait on disk: all brokers are down\\n\\u{1b}[2J
  backlog       0 records
  rates         in 0.2 records/s, out ? records/s, not draining
  watermarks    trimmed 0, acknowledged 120, committed 132, next 133
  disk          192.0 MiB of 64.0 GiB (0.2%), 69.9 GiB free on its file system, 3 generations
  damage        1 record cannot be read; the gateway's log and `tidegate wal verify` name them
  dead letters  2 records
  held          3 records of 1001 topics
                orders: 3 records for 11days 13h, it does not exist: make it
                and 1000 topics more
  log           2fe308bb-3447-4469-9d2f-239a1183d085
"
    );
    status["forward"]["last_error"] = Value::Null;
    status["drain_seconds"] = json!(0);
    assert!(gateway("", &status).contains("out ? records/s, nothing to drain\n"));
    let kafka = "  kafka         away, records wait on disk: not reached (yet)\n";
    assert!(gateway("", &status).contains(kafka));
    let state = |status: &Value| gateway("", status).lines().nth(1).unwrap().to_owned();
    status["shutting_down"] = json!(true);
    assert_eq!(state(&status), "  state         shutting down");
    status["forward"]["stopped"] = json!("EIO");
    assert_eq!(state(&status), "  state         its forwarder has stopped: EIO");
    status["wal"]["poisoned"] = json!("fdatasync: EIO");
    assert_eq!(state(&status), "  state         its log has stopped: fdatasync: EIO");
}

#[test]
fn a_lander_at_work() {
    let partition = |source: &str, number: i32, position: Value, end: i64, lag: i64| json!({"source": source, "topic": source, "partition": number, "position": position, "end": end, "lag_records": lag});
    let mut status = json!({
        "lander": "edge-7", "version": "0.1.0", "kafka_up": true, "kafka_error": null, "sink_up": true,
        "sink_error": null, "sink": "SQLite data/tidegate.db", "lag_records": 17, "stopped": null,
        "partitions": [
            partition("financial_pro", 0, json!(1204), 1221, 17),
            partition("trip_pro", 11, Value::Null, 5, 0),
        ],
        "stored": {"valid": 1203, "invalid": 1, "duplicates": 0, "rejected": 0},
    });
    assert_eq!(
        lander("127.0.0.1:4002", &status),
        "\
lander edge-7 on 127.0.0.1:4002, version 0.1.0
  kafka         up
  sink          SQLite data/tidegate.db, takes rows
  stored        1203 valid, 1 invalid, 0 duplicates dropped, 0 rejected since its start
  lag           17 records in 2 partitions

  source         topic          partition  position   end  lag
  financial_pro  financial_pro          0      1204  1221   17
  trip_pro       trip_pro              11         -     5    0
"
    );
    status["kafka_up"] = json!(false);
    status["kafka_error"] = json!("all brokers are down");
    status["sink_up"] = json!(false);
    status["sink_error"] = json!("database is locked");
    status["partitions"] = json!([]);
    status["stopped"] = json!("a thread has ended");
    assert_eq!(
        lander("127.0.0.1:4002", &status),
        "\
lander edge-7 on 127.0.0.1:4002, version 0.1.0
  state         has stopped: a thread has ended
  kafka         away: all brokers are down
  sink          SQLite data/tidegate.db, takes no rows: database is locked
  stored        1203 valid, 1 invalid, 0 duplicates dropped, 0 rejected since its start
  lag           17 records; no partition is assigned to it (yet)
"
    );
    status["kafka_error"] = Value::Null;
    assert!(lander("", &status).contains("  kafka         away: not reached (yet)\n"));
}

#[test]
fn json_of_any_shape_is_shown_with_question_marks() {
    let values = [
        Value::Null,
        json!([]),
        json!(-1.5),
        json!("\u{1b}]0;x\u{7}"),
        json!({"a": 1}),
    ];
    for value in &values {
        assert!(gateway("x", value).contains('?') && lander("x", value).contains('?'));
    }
    // Every member of a whole answer in turn is something else.
    for value in &values {
        let mut status = gateway_status();
        status["partitions"] = json!([value, {"source": value, "topic": value, "partition": value, "end": value}]);
        status["forward"]["held_topics"] = json!([value, {"topic": value, "since_ms": value}]);
        let names: Vec<String> = status.as_object().unwrap().keys().cloned().collect();
        for name in names {
            let mut broken = status.clone();
            if let Some(members) = broken[&name].as_object_mut() {
                members.values_mut().for_each(|member| *member = value.clone());
            } else {
                broken[&name] = value.clone();
            }
            for text in [gateway("x", &broken), lander("x", &broken)] {
                assert!(!text.contains(|c: char| c.is_control() && c != '\n'), "{text:?}");
            }
        }
    }
}
