//! Records in other shapes than one of 200 bytes in a request: 1,000 lines a request, small and large ones, requests that are
//! pipelined, and HTTP/2.
//!
//! `cargo bench --bench records`; needs wrk and h2load (Debian: wrk, nghttp2-client). Kafka is away.
#![allow(
    missing_docs,
    dead_code,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing
)]

#[path = "../tests/it/support/certificates.rs"]
mod certificates;
mod common;

use std::path::Path;
use std::time::{Duration, Instant};

use certificates::Authority;
use common::Goal::AtLeast;
use common::closed::{self, wrk};
use common::server::{self, PARSE, SOURCE, no_op, tidegate};
use common::{Row, print_goal, ratio};

const JSON: &str = "application/json";
const NDJSON: &str = "application/x-ndjson";
const TOPIC: &str = "/v1/topics/bench";
const NO_OP: &str = "bare axum";
const DURABLE: &str = "durable POST";
const LINES: usize = 1000;
/// Requests on one connection that do not wait for the answers before.
const PIPELINED: usize = 16;
const STREAMS: u32 = 32;

/// Of each contender the figures of the runs, which alternate.
fn alternating(contenders: &[(&str, &dyn Fn() -> f64)]) -> Vec<Row> {
    let row = |(name, _): &(&str, &dyn Fn() -> f64)| Row {
        name: (*name).into(),
        figures: Vec::new(),
    };
    let mut rows: Vec<Row> = contenders.iter().map(row).collect();
    for _ in 0..common::runs() {
        for (row, (_, run)) in rows.iter_mut().zip(contenders) {
            row.figures.push(run());
        }
    }
    rows
}

fn main() {
    server::serve_if_asked();
    common::print_machine();
    let scratch = server::folder();
    lines(scratch.path());
    sizes(scratch.path());
    pipelined(scratch.path());
    http2(scratch.path());
}

fn lines(scratch: &Path) {
    let lines: Vec<Vec<u8>> = (0..LINES as u64).map(common::json_record).collect();
    let body = lines.join(&b'\n');
    let script = closed::post(scratch, NDJSON, std::slice::from_ref(&body), 1, "");
    let per_second = |figures: closed::Figures| figures.per_second * LINES as f64;
    let limit = "bare axum that finds the lines and checks their JSON";
    let rows = alternating(&[
        (limit, &|| per_second(wrk(&no_op(), PARSE, 8, &script))),
        ("the same without HTTP, one thread", &|| parse(&body)),
        (DURABLE, &|| per_second(wrk(&tidegate(), TOPIC, 8, &script))),
    ]);
    let title = "NDJSON, 1,000 records of 200 bytes a request, 8 connections";
    common::print_table(title, "records/s", &rows, limit);
    // Either is enough.
    let reached = common::spread(&rows[2].figures).1;
    let what = "NDJSON, 1,000 records a request";
    if reached >= 1e6 {
        print_goal(what, AtLeast(1e6), reached, "records/s");
    } else {
        let what = format!(
            "{what} ({reached:.0} records/s, not 1,000,000), of a server that only finds the lines and checks their JSON"
        );
        print_goal(&what, AtLeast(0.7), ratio(&rows, DURABLE, limit), "");
    }
}

fn parse(body: &[u8]) -> f64 {
    let (began, mut records) = (Instant::now(), 0);
    while began.elapsed() < Duration::from_secs(1) {
        records += server::parsed(std::hint::black_box(body));
    }
    records as f64 / began.elapsed().as_secs_f64()
}

fn sizes(scratch: &Path) {
    for (name, connections, body) in [
        ("20 bytes, 100 connections", 100, br#"{"t":21.5,"ok":true}"#.to_vec()),
        ("100 KB, 16 connections", 16, large(100_000)),
    ] {
        let script = closed::post(scratch, JSON, &[body], 1, "");
        let rows = alternating(&[
            (NO_OP, &|| wrk(&no_op(), SOURCE, connections, &script).per_second),
            (DURABLE, &|| wrk(&tidegate(), TOPIC, connections, &script).per_second),
        ]);
        common::print_table(&format!("Records of {name}"), "records/s", &rows, NO_OP);
    }
}

/// One JSON object of about so many bytes, of many measurements.
fn large(bytes: usize) -> Vec<u8> {
    let measurements = (0..).map(common::json_record);
    let mut value = br#"{"measurements":["#.to_vec();
    for measurement in measurements {
        if value.len() + measurement.len() + 2 > bytes {
            break;
        }
        value.extend_from_slice(&measurement);
        value.push(b',');
    }
    value.pop();
    value.extend_from_slice(b"]}");
    value
}

fn pipelined(scratch: &Path) {
    let bodies: Vec<Vec<u8>> = (0..1000).map(common::json_record).collect();
    let script = closed::post(scratch, JSON, &bodies, PIPELINED, "");
    let rows = alternating(&[
        (NO_OP, &|| wrk(&no_op(), SOURCE, 100, &script).per_second),
        (DURABLE, &|| wrk(&tidegate(), TOPIC, 100, &script).per_second),
    ]);
    let title = format!("HTTP/1.1, {PIPELINED} requests pipelined, 200 bytes, 100 connections");
    common::print_table(&title, "records/s", &rows, NO_OP);
}

fn http2(scratch: &Path) {
    let body = scratch.join("body");
    std::fs::write(&body, common::json_record(1)).unwrap();
    let secure = || server::secure(Authority::new("bench").issue("127.0.0.1"));
    let limit = "the same server, GET /hello";
    let post = Some((JSON, body.as_path()));
    let rows = alternating(&[
        (limit, &|| closed::h2load(&secure(), "/hello", 10, STREAMS, None)),
        (DURABLE, &|| closed::h2load(&secure(), TOPIC, 10, STREAMS, post)),
    ]);
    let title = format!("HTTP/2 over TLS, 200 bytes, 10 connections with {STREAMS} requests at a time");
    common::print_table(&title, "records/s", &rows, limit);
}
