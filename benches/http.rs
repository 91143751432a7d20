//! A durable POST against its limits: the same server answering a page that needs no disk (GET /hello), and a
//! bare axum that reads the body and says OK; in the same run, from the same load generator (wrk, one thread),
//! keep-alive, 100 and 400 connections.
//!
//! Apart from it, what the same POST costs with an `Idempotency-Key` (a new one for each request), with an API key, and over TLS, each
//! against without, side by side: the load generator sends as many headers in all of them, and encrypts, too, on the same
//! processors.
//!
//! `cargo bench --bench http`, and `-- costs` for the second part; needs wrk and ab (Debian: wrk, apache2-utils). Kafka is away
//! during the runs: what is measured is the way to the disk.
#![allow(
    missing_docs,
    dead_code,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic
)]

#[path = "../tests/it/support/certificates.rs"]
mod certificates;
mod common;

use std::path::Path;

use certificates::Authority;
use common::Goal::AtLeast;
use common::closed::{self, Figures, wrk};
use common::server::{self, SOURCE, no_op, tidegate, tidegate_in};
use common::{Row, print_goal, ratio};

const BODY: &str = "test01=111&test02=222&test03=ccc&test04=ddd";
const FORM: &str = "application/x-www-form-urlencoded";
const PAGE: &str = "/hello";
/// What the durable answer is held against.
const LIMIT: &str = "the same server, GET /hello";
const DURABLE: &str = "durable POST";

fn main() {
    server::serve_if_asked();
    common::print_machine();
    let scratch = server::folder();
    if std::env::args().any(|argument| argument == "costs") {
        return costs(scratch.path());
    }
    keep_alive(scratch.path());
    ab(scratch.path());
}

fn row(name: &str, figures: impl Iterator<Item = f64>) -> Row {
    Row {
        name: name.into(),
        figures: figures.collect(),
    }
}

fn post(scratch: &Path) -> std::path::PathBuf {
    closed::post(scratch, FORM, &[BODY.into()], 1, "")
}

fn keep_alive(scratch: &Path) {
    let (get, post) = (closed::get(scratch), post(scratch));
    for (connections, least) in [(100, 0.90), (400, 0.98)] {
        let (mut bare, mut page, mut durable) = (Vec::new(), Vec::new(), Vec::new());
        for _ in 0..common::runs() {
            bare.push(wrk(&no_op(), SOURCE, connections, &post));
            page.push(wrk(&tidegate(), PAGE, connections, &get));
            durable.push(wrk(&tidegate(), SOURCE, connections, &post));
        }
        let table = |title: &str, unit: &str, figure: fn(&Figures) -> f64| {
            let rows = [
                row(LIMIT, page.iter().map(figure)),
                row("bare axum, POST", bare.iter().map(figure)),
                row(DURABLE, durable.iter().map(figure)),
            ];
            common::print_table(&format!("{title}, {connections} connections"), unit, &rows, LIMIT);
            rows
        };
        let rates = table("POST, keep-alive", "requests/s", |run| run.per_second);
        let what = format!("durable POST of the same server without the disk, {connections} connections");
        print_goal(&what, AtLeast(least), ratio(&rates, DURABLE, LIMIT), "");
        table("Processor time of the server", "us a request", |run| run.cpu);
        table("Answer, closed loop, median", "ms", |run| run.p50);
        table("Answer, closed loop, 99th percentile", "ms", |run| run.p99);
        table("Answer, closed loop, 99.9th percentile", "ms", |run| run.p999);
    }
}

/// What keys and TLS cost.
fn costs(scratch: &Path) {
    let keys = scratch.canonicalize().unwrap().join("keys.toml");
    let key = tidegate::keys::create(&keys, "bench", Vec::new(), Vec::new(), String::new()).unwrap();
    let with = |numbered: &str, key_header: &str| {
        let request = format!(
            r#"wrk.headers["{key_header}"] = "{key}"
local number, run = 0, os.time()
request = function()
  number = number + 1
  wrk.headers["{numbered}"] = run .. "-40d5-43dd-bc93-" .. number
  return wrk.format(nil, "{SOURCE}", nil, "{BODY}")
end
"#
        );
        closed::post(scratch, FORM, &[BODY.into()], 1, &request)
    };
    let plain_script = with("X-Request-Number", "X-Other-Key");
    let numbered_script = with("Idempotency-Key", "X-Other-Key");
    let keyed_script = with("X-Request-Number", "X-Api-Key");
    let secure = || server::secure(Authority::new("bench").issue("127.0.0.1"));
    let variables = [("TIDEGATE_HTTP__API_KEYS_FILE", keys.as_path())];
    let keyed = || tidegate_in(server::folder(), server::NOWHERE, &variables);
    for connections in [100, 400] {
        let (mut plain, mut numbered, mut by_key, mut by_tls) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
        for _ in 0..common::runs() {
            plain.push(wrk(&tidegate(), SOURCE, connections, &plain_script));
            numbered.push(wrk(&tidegate(), SOURCE, connections, &numbered_script));
            by_key.push(wrk(&keyed(), SOURCE, connections, &keyed_script));
            by_tls.push(wrk(&secure(), SOURCE, connections, &plain_script));
        }
        let table = |title: &str, unit: &str, figure: fn(&Figures) -> f64| {
            let rows = [
                row(DURABLE, plain.iter().map(figure)),
                row("with an Idempotency-Key", numbered.iter().map(figure)),
                row("with an API key", by_key.iter().map(figure)),
                row("over TLS", by_tls.iter().map(figure)),
            ];
            common::print_table(&format!("{title}, {connections} connections"), unit, &rows, DURABLE);
        };
        table("What keys and TLS cost, keep-alive", "requests/s", |run| run.per_second);
        table("The gateway's own processor time", "us a request", |run| run.cpu);
        table("Answer, 99th percentile", "ms", |run| run.p99);
        table("Resident memory after the run", "MiB", |run| run.rss);
    }
}

/// The line that the stack before was measured with: a new connection for every request.
fn ab(scratch: &Path) {
    let body = scratch.join("body");
    std::fs::write(&body, BODY).unwrap();
    let (mut limit, mut durable) = (Vec::new(), Vec::new());
    for _ in 0..common::runs() {
        limit.push(closed::ab(&no_op(), SOURCE, 10_000, FORM, &body));
        durable.push(closed::ab(&tidegate(), SOURCE, 10_000, FORM, &body));
    }
    let bare = "bare axum, POST";
    let rows = [row(bare, limit.into_iter()), row(DURABLE, durable.into_iter())];
    common::print_table("ab -c 100 -n 10000, no keep-alive", "requests/s", &rows, bare);
    let what = "durable POST of a server that does nothing, a connection for each request (ab)";
    print_goal(what, AtLeast(0.85), ratio(&rows, DURABLE, bare), "");
}
