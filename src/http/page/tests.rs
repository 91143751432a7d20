//! What the page says, and that every place has something and nothing breaks out of it.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)]

use super::*;
use crate::http::LogLine;
use crate::http::samples::{Rates, Sample};

fn state() -> State {
    let wal = WalState {
        id: "2fe308bb-3447-4469-9d2f-239a1183d085".into(),
        trimmed: 0,
        acked: 120,
        committed: 1354,
        next: 1355,
        backlog_records: 1234,
        backlog_bytes: 1229,
        disk_bytes: 192 << 20,
        capacity_bytes: 64 << 30,
        free_bytes: 70 << 30,
        generations: 3,
        commit_ms_average: Some(1.234),
        commit_ms_max: Some(17.0),
        corruption_records: 0,
        poisoned: None,
        refusing: None,
    };
    State {
        gateway: "edge-7".into(),
        version: "0.1.0",
        now_ms: 1_000_000_000,
        shutting_down: false,
        in_flight: 1,
        wal: Some(wal),
        wal_error: None,
        held_records: Some(0),
        dead_letters: Some(0),
        rates: Rates {
            ingest_records_per_second: Some(2.0),
            forward_records_per_second: Some(1236.0),
        },
        drain_seconds: Some(1),
        forward: forward::Status {
            broker_up: true,
            oldest_received_ms: Some(999_808_000),
            ..forward::Status::default()
        },
        recent_errors: Vec::new(),
    }
}

fn page(state: &State) -> Page {
    Page::of(state, &Samples::default(), false)
}

fn text(state: &State, key: &str) -> String {
    match page(state).0.remove(key) {
        Some(Shown::Text(text)) => text,
        other => panic!("{key}: {other:?}"),
    }
}

#[test]
fn every_place_of_the_page_has_something_and_everything_has_a_place() {
    let page = page(&state());
    let places: Vec<&str> = TEMPLATE
        .split("{{")
        .skip(1)
        .map(|part| part.split_once("}}").unwrap().0)
        .collect();
    for place in &places {
        assert!(page.0.contains_key(place), "nothing stands in {place}");
        let id = place.split('.').next().unwrap();
        assert!(
            TEMPLATE.contains(&format!("id=\"{id}\"")),
            "the script does not find {id}"
        );
    }
    for key in page.0.keys() {
        assert!(places.contains(key), "{key} has no place");
    }
    assert_eq!(places.len(), page.0.len(), "a place is there twice");
}

#[test]
fn the_numbers_stand_in_the_html() {
    let html = page(&state()).html();
    for number in [
        "<dd id=\"backlog\">1,234</dd>",
        "<dd id=\"acked\">120</dd>",
        "<dd id=\"committed\">1,354</dd>",
        "<dd id=\"next\">1,355</dd>",
        "<td id=\"backlog-all\">1,234 records, 1.2 KiB, the oldest 3m 12s old</td>",
        "<td id=\"commits\">1.2 ms on average, 17.0 ms at most</td>",
        "<td id=\"disk\">192.0 MiB of 64.0 GiB (0.2%)</td>",
        "<dd id=\"forward-rate\">1,236</dd>",
        "<title id=\"title\">edge-7: 1,234 waiting - tidegate</title>",
    ] {
        assert!(html.contains(number), "{number}");
    }
    assert!(!html.contains("{{") && !html.contains("}}"));
}

#[test]
fn what_comes_from_outside_is_text() {
    let evil = "</td><script>alert('x')</script>\"{{title}}";
    let mut state = state();
    state.gateway = evil.into();
    state.forward.last_error = Some(evil.into());
    state.forward.held_topics_count = 1;
    state.forward.held_topics = vec![forward::HeldTopic {
        topic: evil.into(),
        records: 1,
        reason: evil.into(),
        since_ms: 0,
    }];
    state.recent_errors = vec![LogLine {
        time_ms: 0,
        level: "WARN",
        message: evil.into(),
    }];
    let html = page(&state).html();
    assert_eq!(html.matches("<script>").count(), 1, "our own");
    assert!(!html.contains("alert('x')"));
    let escaped = "&lt;/td&gt;&lt;script&gt;alert(&#39;x&#39;)&lt;/script&gt;&quot;{{title}}";
    assert!(html.contains(&format!("<td>1970-01-01 00:00:00</td><td>warn</td><td>{escaped}</td>")));
    assert_eq!(
        html.matches(escaped).count(),
        6,
        "title, name, Kafka, topic, its reason, line"
    );
}

#[test]
fn the_state_is_told_in_words() {
    let mut state = state();
    let told = |state: &State| {
        (
            text(state, "state"),
            text(state, "state-detail"),
            text(state, "page.data-mood"),
        )
    };
    let words = |state: &str, detail: &str, mood: &str| (state.to_owned(), detail.to_owned(), mood.to_owned());
    let on_its_way = "Kafka is up; the backlog is on its way.";
    assert_eq!(told(&state), words("Takes records", on_its_way, "good"));
    state.forward.broker_up = false;
    let away = "They are safe on disk and go out when it returns.";
    assert_eq!(told(&state), words("Takes records; Kafka is away", away, "busy"));
    assert_eq!(text(&state, "gate.data-gate"), "shut");
    assert_eq!(text(&state, "kafka-error"), "not reached (yet)");
    state.wal.as_mut().unwrap().refusing = Some("the log is full".into());
    assert_eq!(told(&state), words("Refuses records", "the log is full", "bad"));
    state.shutting_down = true;
    assert_eq!(told(&state).0, "Shutting down");
    state.forward.stopped = Some("EIO".into());
    assert_eq!(told(&state), words("Stopped: the forwarder has ended", "EIO", "bad"));
    state.wal.as_mut().unwrap().poisoned = Some("fdatasync".into());
    assert_eq!(told(&state), words("Stopped: the log has failed", "fdatasync", "bad"));
}

#[test]
fn a_log_that_does_not_answer_is_said_and_no_number_is_made_up() {
    let mut state = state();
    state.wal = None;
    state.wal_error = Some("it hangs".into());
    (state.held_records, state.dead_letters, state.drain_seconds) = (None, None, None);
    assert_eq!(text(&state, "state"), "The log does not answer");
    for key in [
        "backlog",
        "acked",
        "committed",
        "disk",
        "drain",
        "commits",
        "letters-count",
        "held-count",
    ] {
        assert_eq!(text(&state, key), UNKNOWN, "{key}");
    }
    assert!(text(&state, "gate-text").contains("not known"));
}

#[test]
fn the_time_to_drain_is_told_only_where_it_drains() {
    assert_eq!(drain(0, Some(0)), ("-".into(), "nothing waits"));
    assert_eq!(drain(5, Some(192)).0, "3m 12s");
    assert_eq!(drain(5, None).0, "not draining");
}

#[test]
fn only_what_changed_is_told_again() {
    let before = state();
    let mut after = state();
    after.wal.as_mut().unwrap().backlog_records = 0;
    let changes = page(&after).since(&page(&before));
    assert_eq!(changes.0["backlog"], Shown::Text("0".into()));
    assert!(!changes.0.contains_key("acked") && !changes.0.contains_key("errors"));
    assert_eq!(page(&before).since(&page(&before)), Page::default());
}

#[test]
fn the_policy_names_the_script_and_the_style_of_the_page() {
    let policy = POLICY.to_str().unwrap();
    assert!(policy.starts_with("default-src 'none'; script-src 'sha256-") && !policy.contains("unsafe"));
    assert_ne!(hash("<script>", "</script>"), hash("<none>", "</none>"));
    // A hash is of exactly one script and one style, and inline attributes would be blocked.
    for once in ["<script>", "<style>"] {
        assert_eq!(TEMPLATE.matches(once).count(), 1);
    }
    assert!(!TEMPLATE.contains("style=\"") && !TEMPLATE.contains("onclick=\""));
}

#[test]
fn the_hour_is_in_the_page() {
    let mut samples = Samples::default();
    samples.push(Sample {
        time_ms: 999_999_000,
        backlog_records: 8,
        ..Sample::default()
    });
    let page = Page::of(&state(), &samples, true);
    assert_eq!(page.0["chart-max"], Shown::Text("10".into()));
    assert!(page.html().contains("<path id=\"chart-line\" d=\"M718.8 32.0h0\"/>"));
    assert!(page.html().contains("data-token=\"yes\""));
}
