//! The table as a document, `docs/metrics.md`, and what must hold of it.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)]

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::path::Path;

use super::*;

fn markdown() -> String {
    let mut text = String::from(
        "# Metrics\n\n\
         Made from the table in `src/metrics.rs`: a test fails when the two differ, and `TIDEGATE_BLESS=1 cargo test --lib \
         metrics` writes this page anew. The gateway shows its own on `admin.listen` (`/metrics`), the lander on `land.listen`; \
         `tidegate dev` shows all of them on both. Each is there from the first scrape, with each of its known label values, at \
         0. Rules and alerts are in [deploy/prometheus](../deploy/prometheus), dashboards in [grafana](../grafana).\n",
    );
    let parts = [
        ("The log", "tidegate_wal_"),
        ("Clients", "tidegate_ingest_"),
        ("Who gets in", "tidegate_http_"),
        ("Kafka", "tidegate_forward_"),
        ("Dead letters", "tidegate_dead_letters"),
        ("Held topics", "tidegate_held_"),
        ("The lander", "tidegate_land_"),
        ("Program and machine", ""),
    ];
    let mut told = BTreeSet::new();
    for (title, prefix) in parts {
        write!(
            text,
            "\n## {title}\n\n| metric | what it is | what to do |\n|---|---|---|\n"
        )
        .unwrap();
        for metric in ALL.iter().filter(|metric| metric.name.starts_with(prefix)) {
            if told.insert(metric.name) {
                line(&mut text, metric);
            }
        }
    }
    let seconds: Vec<String> = SECONDS_BUCKETS.iter().map(f64::to_string).collect();
    let records: Vec<String> = RECORDS_BUCKETS.iter().map(f64::to_string).collect();
    write!(
        text,
        "\n## Buckets\n\nOf `_seconds`: {}. Of `tidegate_wal_commit_records`: {}.\n",
        seconds.join(", "),
        records.join(", ")
    )
    .unwrap();
    text
}

fn line(text: &mut String, metric: &Metric) {
    let kind = match metric.kind {
        Kind::Counter => "counter",
        Kind::Gauge => "gauge",
        Kind::Histogram => "histogram",
    };
    write!(text, "| `{}` {kind}", metric.name).unwrap();
    for (label, values) in metric.labels {
        match values {
            Known(values) => write!(text, "; `{label}`: {}", values.join(", ")).unwrap(),
            Open(what) => write!(text, "; `{label}`: {}", what).unwrap(),
        }
    }
    writeln!(text, " | {} | {} |", metric.help, metric.advice).unwrap();
}

#[test]
fn the_metrics_in_docs_are_those_of_the_table() {
    let made = markdown();
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    crate::docs::check("metrics.md", &made, "the table", "metrics");
    for page in made.split("](").skip(1).filter_map(|rest| rest.split(')').next()) {
        assert!(root.join("docs").join(page).exists(), "{page} is not there");
    }
}

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
    let is_named = |name: &&str| name.starts_with("tidegate_") || name.starts_with("process_");
    assert!(names.iter().all(is_named));
}

#[test]
fn a_process_shows_what_it_has() {
    let shown = |process| {
        ALL.iter()
            .filter(move |metric| metric.is_of(process))
            .map(|metric| metric.name)
    };
    let (gateway, lander): (BTreeSet<_>, BTreeSet<_>) =
        (shown(Process::Gateway).collect(), shown(Process::Lander).collect());
    assert!(gateway.contains(FORWARD_BROKER_UP) && !lander.contains(FORWARD_BROKER_UP));
    assert!(lander.contains(LAND_BROKER_UP) && !gateway.contains(LAND_BROKER_UP));
    assert!(gateway.contains(BUILD_INFO) && lander.contains(BUILD_INFO));
    let all: BTreeSet<_> = shown(Process::Both).collect();
    assert_eq!(&gateway | &lander, all);
}

#[test]
fn what_is_said_of_the_process_is_in_the_table() {
    let recorder = PrometheusBuilder::new().build_recorder();
    let scrape = recorder.handle();
    metrics::with_local_recorder(&recorder, look_at_process);
    let text = scrape.render();
    let shown: BTreeSet<&str> = text
        .lines()
        .filter(|line| !line.starts_with('#') && !line.is_empty())
        .map(|line| line.split([' ', '{']).next().unwrap())
        .collect();
    let known = ALL
        .iter()
        .map(|metric| metric.name)
        .filter(|name| name.starts_with("process_"));
    assert_eq!(shown, known.collect());
    // Whatever /proc shows of it.
    let mut lines = text.lines();
    let started = lines
        .find_map(|line| line.strip_prefix(PROCESS_START_TIME_SECONDS))
        .unwrap();
    let started: f64 = started.trim().parse().unwrap();
    assert!((started - *STARTED).abs() < 0.001, "{started} and {}", *STARTED);
}
