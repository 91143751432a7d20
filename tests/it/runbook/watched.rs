//! The pages about what Prometheus sees from outside: a gateway that is down, a slow disk, a wrong clock, a certificate that
//! ends, clients that are refused, a lander that is behind.

use std::fs;
use std::sync::Arc;
use std::time::Instant;

use super::{Page, post, text, topic};
use crate::clock::Clock;
use crate::faults::shim::{self, Plan};
use crate::support::certificates::Authority;
use crate::support::gateway::{Config, Gateway, NOWHERE};
use crate::support::kafka::Kafka;
use crate::support::lander::{self, Lander};
use crate::support::{FORM, JSON, SEED_BODY, free_port, seconds, wait_until};

cases!["runbook":
    gateway_down [],
    lander_lag [Kafka],
    commit_latency [],
    certificate_expires [Curl],
    clock_off [Curl],
    refused_clients [Curl],
];

fn gateway_down() {
    let mut gateway = Gateway::start(&Config::new(NOWHERE));
    post(&gateway, "t", 20);
    gateway.sigkill();
    let wal = gateway.wal();
    let mut page = Page::read("gateway-down.md");
    page.on(&gateway).set("WAL", text(&wal));
    let shown = page.step();
    assert!(shown.contains("20 records"), "{shown}");
    page.step();
    gateway.restart();
    page.on(&gateway).step();
    assert_eq!(gateway.metric("tidegate_wal_backlog_records"), 20.0);
    page.end();
}

fn lander_lag() {
    let kafka = Kafka::shared();
    let topic = topic(kafka, "behind", &[]);
    let database = tempfile::tempdir().unwrap();
    let mut config = Config::with(kafka);
    config
        .landed("trip_pro", &topic, &[("field_count", 4.into())])
        .set("land.path", text(&database.path().join("landed.db")));
    lander::settings(&mut config);
    let gateway = Gateway::start(&config);
    for _ in 0..50 {
        let answer = gateway.client().post("/trip_pro", FORM, SEED_BODY.as_bytes()).unwrap();
        assert_eq!(answer.status, 200, "{answer:?}");
    }
    gateway.wait_drained(seconds(60));
    let mut page = Page::read("lander-lag.md");
    page.on(&gateway)
        .set("LANDER", format!("http://127.0.0.1:{}", free_port()));
    page.step();
    page.step();
    let landed = page.step();
    assert!(landed.contains("50"), "{landed}");
    let lander = Lander::start(&config);
    wait_until("it has its partition, and nothing waits", seconds(60), || {
        let status = lander.admin("/v1/status").unwrap().json();
        status["partitions"].as_array().is_some_and(|all| !all.is_empty()) && status["lag_records"] == 0
    });
    page.set("LANDER", format!("http://{}", lander.admin)).step();
    page.end();
}

fn commit_latency() {
    let folder = Arc::new(tempfile::tempdir().unwrap());
    let mut config = Config::new(NOWHERE);
    // Each fsync takes a second longer, once the gateway has come up.
    let slow = Plan {
        calls: "s",
        does: "slow",
        at: Some(100),
        for_ever: true,
        ..Plan::new(&folder.path().join("wal"))
    };
    slow.put(&mut config);
    let mut gateway = Gateway::try_start_in(folder, &config).expect("it starts");
    let mut posts = 0..200;
    let is_slow = posts.any(|_| {
        let began = Instant::now();
        post(&gateway, "t", 1);
        began.elapsed() >= seconds(1)
    });
    assert!(is_slow, "no commit was slow");
    let metrics = gateway.metrics();
    let all = metrics["tidegate_wal_commit_seconds_count"];
    let quick = metrics[r#"tidegate_wal_commit_seconds_bucket{le="0.5"}"#];
    assert!(quick < all, "{quick} of {all}");
    let mut page = Page::read("commit-latency.md");
    page.on(&gateway).step();
    gateway.sigkill();
    shim::take(gateway.config());
    gateway.restart();
    post(&gateway, "t", 1);
    let shown = page.on(&gateway).step();
    let slowest = shown.trim().rsplit(':').next().unwrap().parse::<f64>().unwrap();
    assert!(slowest < 1000.0, "{shown}");
    page.end();
}

fn certificate_expires() {
    let folder = tempfile::tempdir().unwrap();
    let [certificate, key] = ["certificate.pem", "key.pem"].map(|name| folder.path().join(name));
    let authority = Authority::new("ca");
    let put = |days| {
        let (its_certificate, its_key) = authority.issue_for("127.0.0.1", days);
        fs::write(&certificate, its_certificate).unwrap();
        fs::write(&key, its_key).unwrap();
    };
    put(5);
    let mut config = Config::new(NOWHERE);
    config
        .set("http.tls_certificate_file", text(&certificate))
        .set("http.tls_key_file", text(&key));
    let gateway = Gateway::start(&config);
    let ends_in = || {
        let metrics = gateway.metrics();
        let end = metrics["tidegate_http_certificate_expiry_timestamp_seconds"];
        (end - metrics["tidegate_clock_timestamp_seconds"]) / 86_400.0
    };
    assert!((4.9..=5.0).contains(&ends_in()), "{}", ends_in());
    let mut page = Page::read("certificate-expires.md");
    page.on(&gateway);
    let told = page.step();
    assert!(told.contains("http.tls_certificate_file"), "{told}");
    put(90);
    page.step();
    page.wait_for(&gateway, "the new one is in force", |_| ends_in() > 89.0);
    page.end();
}

fn clock_off() {
    let mut config = Config::new(NOWHERE);
    let clock = Clock::new(&mut config);
    let gateway = Gateway::start(&config);
    clock.set(3600);
    let mut page = Page::read("clock-off.md");
    let shown = page.on(&gateway).step();
    let mut times = shown.split_whitespace().filter_map(|word| word.parse::<f64>().ok());
    let (its, ours) = times.next().zip(times.next()).unwrap();
    assert!((3590.0..3602.0).contains(&(its - ours)), "{shown}");
    page.step();
    clock.set(0);
    page.step();
    page.end();
}

fn refused_clients() {
    let folder = tempfile::tempdir().unwrap();
    let keys = folder.path().join("keys.toml");
    let mut config = Config::new(NOWHERE);
    config.set("http.api_keys_file", text(&keys));
    let mut page = Page::read("refused-clients.md");
    page.set("NAME", "press-4").set("TOPIC", "orders");
    // A gateway with a file of keys needs one.
    fs::write(&keys, "").unwrap();
    let gateway = Gateway::start(&config);
    let refused = gateway.client().post("/v1/topics/orders", JSON, b"{}").unwrap();
    assert_eq!(refused.status, 401, "{refused:?}");
    let shown = page.on(&gateway).step();
    assert!(shown.contains("{reason=\"unauthorized\"} 1"), "{shown}");
    // Somebody's hand slips, and is corrected.
    fs::write(&keys, "not = a [key").unwrap();
    let is_refused = |gateway: &Gateway| gateway.metrics()[r#"tidegate_http_files_refused{file="api_keys"}"#];
    wait_until("the file is refused", seconds(10), || is_refused(&gateway) == 1.0);
    fs::write(&keys, "").unwrap();
    wait_until("the file is taken", seconds(10), || is_refused(&gateway) == 0.0);
    page.step();
    let receipt = page.step();
    assert!(receipt.contains("\"records\":1"), "{receipt}");
    page.end();
}
