//! A durable POST against its limits: the same server answering a page that needs no disk (GET /hello), and a
//! bare axum that reads the body and says OK; in the same run, from the same load generator (wrk, one thread),
//! keep-alive, 100 and 400 connections.
//!
//! And what the same POST costs with an `Idempotency-Key` (a new one for each request), with an API key, and over TLS, each
//! against without, side by side: the load generator sends as many headers in all of them, and encrypts, too, on the same
//! processors.
//!
//! `cargo bench --bench http` (`-- costs`: the last only); needs wrk and ab (Debian: wrk, apache2-utils). Kafka is away during the
//! runs: what is measured is the accept path, and the memory with the backlog that piles up.
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

use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use common::Row;

const BODY: &str = "test01=111&test02=222&test03=ccc&test04=ddd";
const SOURCE: &str = "/financial_pro";
const PAGE: &str = "/hello";
/// What the durable answer is held against.
const LIMIT: &str = "the same server, GET /hello";
const SECONDS: &str = "6s";
/// Says that this process is the no-op server.
const NO_OP: &str = "TIDEGATE_BENCH_NO_OP";

struct Server {
    child: Child,
    port: u16,
    scheme: &'static str,
    folder: tempfile::TempDir,
}

impl Drop for Server {
    fn drop(&mut self) {
        self.child.kill().ok();
        self.child.wait().ok();
    }
}

fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

fn started(mut command: Command, port: u16, folder: tempfile::TempDir) -> Server {
    let child = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    let limit = Instant::now() + Duration::from_secs(20);
    while TcpStream::connect(("127.0.0.1", port)).is_err() {
        assert!(Instant::now() < limit, "the server did not come up");
        std::thread::sleep(Duration::from_millis(20));
    }
    Server {
        child,
        port,
        scheme: "http",
        folder,
    }
}

fn no_op(base: &Path) -> Server {
    let port = free_port();
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.env(NO_OP, port.to_string());
    started(command, port, tempfile::tempdir_in(base).unwrap())
}

fn tidegate(base: &Path) -> Server {
    tidegate_with(base, &[])
}

/// With these variables of its environment.
fn tidegate_with(base: &Path, variables: &[(&str, &Path)]) -> Server {
    let (port, folder) = (free_port(), tempfile::tempdir_in(base).unwrap());
    let mut command = Command::new(env!("CARGO_BIN_EXE_tidegate"));
    command
        .current_dir(folder.path())
        .args([
            "serve",
            "--listen",
            &format!("127.0.0.1:{port}"),
            "--admin-listen",
            "127.0.0.1:0",
        ])
        .envs(variables.iter().copied())
        // Nobody listens there.
        .args(["--bootstrap-servers", "127.0.0.1:9", "--wal", "wal"]);
    started(command, port, folder)
}

/// Reads the body, says OK: axum and hyper with the options that tidegate gives them, and nothing else.
fn serve_no_op(port: u16) {
    use axum::{Router, routing::post};
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .unwrap();
    runtime.block_on(async move {
        let app = Router::new().route(
            "/{source}",
            post(|body: bytes::Bytes| async move {
                std::hint::black_box(body);
                "OK"
            }),
        );
        let listener = tokio::net::TcpListener::bind(("127.0.0.1", port)).await.unwrap();
        loop {
            let (socket, _) = listener.accept().await.unwrap();
            socket.set_nodelay(true).unwrap();
            let service = hyper_util::service::TowerToHyperService::new(app.clone());
            tokio::spawn(async move {
                let io = hyper_util::rt::TokioIo::new(socket);
                hyper::server::conn::http1::Builder::new()
                    .serve_connection(io, service)
                    .await
                    .ok();
            });
        }
    });
}

struct Figures {
    per_second: f64,
    p50: f64,
    p99: f64,
    p999: f64,
    rss: f64,
    /// Processor time of the server, microseconds a request.
    cpu: f64,
}

fn wrk(server: &Server, path: &str, connections: u32, script: &Path) -> Figures {
    let url = format!("{}://127.0.0.1:{}{path}", server.scheme, server.port);
    let before = common::cpu_seconds(server.child.id());
    let output = Command::new("wrk")
        .args(["-t1", &format!("-c{connections}"), &format!("-d{SECONDS}"), "-s"])
        .arg(script)
        .arg(&url)
        .output()
        .expect("wrk is needed (Debian package wrk)");
    let spent = common::cpu_seconds(server.child.id()) - before;
    let text = String::from_utf8_lossy(&output.stdout);
    let line = text
        .lines()
        .find_map(|line| line.strip_prefix("figures "))
        .unwrap_or_else(|| panic!("{text}"));
    let n: Vec<f64> = line.split_whitespace().map(|n| n.parse().unwrap()).collect();
    assert_eq!(n[4], 0.0, "answers that are not 2xx, or socket errors: {text}");
    Figures {
        per_second: n[0],
        p50: n[1],
        p99: n[2],
        p999: n[3],
        rss: common::rss_mib(server.child.id()),
        cpu: spent * 1e6 / n[5],
    }
}

fn main() {
    if let Ok(port) = std::env::var(NO_OP) {
        return serve_no_op(port.parse().unwrap());
    }
    common::print_machine();
    let only_costs = std::env::args().any(|argument| argument == "costs");
    let base = std::env::var_os("TIDEGATE_BENCH_DIR").map_or_else(|| "target".into(), PathBuf::from);
    let scratch = tempfile::tempdir_in(&base).unwrap();
    let script = scratch.path().join("post.lua");
    std::fs::write(
        &script,
        format!(
            r#"if wrk.path ~= "{PAGE}" then
  wrk.method = "POST"
  wrk.body = "{BODY}"
  wrk.headers["Content-Type"] = "application/x-www-form-urlencoded"
end
function done(summary, latency)
  local e = summary.errors
  print(string.format("figures %.1f %.3f %.3f %.3f %d %d", summary.requests / summary.duration * 1e6,
    latency:percentile(50) / 1e3, latency:percentile(99) / 1e3, latency:percentile(99.9) / 1e3,
    e.connect + e.read + e.write + e.status + e.timeout, summary.requests))
end
"#
        ),
    )
    .unwrap();
    for connections in [100, 400].into_iter().filter(|_| !only_costs) {
        let (mut bare, mut page, mut durable) = (Vec::new(), Vec::new(), Vec::new());
        for _ in 0..common::runs() {
            bare.push(wrk(&no_op(&base), SOURCE, connections, &script));
            page.push(wrk(&tidegate(&base), PAGE, connections, &script));
            durable.push(wrk(&tidegate(&base), SOURCE, connections, &script));
        }
        let table = |title: &str, unit: &str, figure: fn(&Figures) -> f64| {
            let row = |name: &str, runs: &[Figures]| Row {
                name: name.into(),
                figures: runs.iter().map(figure).collect(),
            };
            let rows = [
                row(LIMIT, &page),
                row("bare axum, POST", &bare),
                row("durable POST", &durable),
            ];
            common::print_table(&format!("{title}, {connections} connections"), unit, &rows, LIMIT);
        };
        table("POST, keep-alive", "requests/s", |run| run.per_second);
        table("Answer, median", "ms", |run| run.p50);
        table("Answer, 99th percentile", "ms", |run| run.p99);
        table("Answer, 99.9th percentile", "ms", |run| run.p999);
        table("Resident memory after the run", "MiB", |run| run.rss);
    }
    costs(&base, scratch.path(), &script);
    if !only_costs {
        ab(&base, scratch.path());
    }
}

/// What keys and TLS cost.
fn costs(base: &Path, scratch: &Path, script: &Path) {
    const PLAIN: &str = "durable POST";
    let scratch = scratch.canonicalize().unwrap();
    let text = std::fs::read_to_string(script).unwrap();
    let keys = scratch.join("keys.toml");
    let key = tidegate::keys::create(&keys, "bench", Vec::new(), Vec::new(), String::new()).unwrap();
    let with = |numbered: &str, key_header: &str| {
        let path = scratch.join(format!("{numbered}-{key_header}.lua"));
        let request = format!(
            r#"wrk.headers["{key_header}"] = "{key}"
local number, run = 0, os.time()
request = function()
  number = number + 1
  wrk.headers["{numbered}"] = run .. "-40d5-43dd-bc93-" .. number
  return wrk.format(nil, "{SOURCE}")
end
"#
        );
        std::fs::write(&path, text.clone() + &request).unwrap();
        path
    };
    let plain_script = with("X-Request-Number", "X-Other-Key");
    let numbered_script = with("Idempotency-Key", "X-Other-Key");
    let keyed_script = with("X-Request-Number", "X-Api-Key");
    let (certificate, certificate_key) = certificates::Authority::new("bench").issue("127.0.0.1");
    let (certificate_file, key_file) = (scratch.join("certificate.pem"), scratch.join("key.pem"));
    std::fs::write(&certificate_file, certificate).unwrap();
    std::fs::write(&key_file, certificate_key).unwrap();
    let secure = || {
        let variables = [
            ("TIDEGATE_HTTP__TLS_CERTIFICATE_FILE", certificate_file.as_path()),
            ("TIDEGATE_HTTP__TLS_KEY_FILE", key_file.as_path()),
        ];
        let mut server = tidegate_with(base, &variables);
        server.scheme = "https";
        server
    };
    let keyed = || tidegate_with(base, &[("TIDEGATE_HTTP__API_KEYS_FILE", keys.as_path())]);
    for connections in [100, 400] {
        let (mut plain, mut numbered, mut by_key, mut by_tls) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
        for _ in 0..common::runs() {
            plain.push(wrk(&tidegate(base), SOURCE, connections, &plain_script));
            numbered.push(wrk(&tidegate(base), SOURCE, connections, &numbered_script));
            by_key.push(wrk(&keyed(), SOURCE, connections, &keyed_script));
            by_tls.push(wrk(&secure(), SOURCE, connections, &plain_script));
        }
        let table = |title: &str, unit: &str, figure: fn(&Figures) -> f64| {
            let row = |name: &str, runs: &[Figures]| Row {
                name: name.into(),
                figures: runs.iter().map(figure).collect(),
            };
            let rows = [
                row(PLAIN, &plain),
                row("with an Idempotency-Key", &numbered),
                row("with an API key", &by_key),
                row("over TLS", &by_tls),
            ];
            common::print_table(&format!("{title}, {connections} connections"), unit, &rows, PLAIN);
        };
        table("What keys and TLS cost, keep-alive", "requests/s", |run| run.per_second);
        table("The gateway's own processor time", "us a request", |run| run.cpu);
        table("Answer, 99th percentile", "ms", |run| run.p99);
        table("Resident memory after the run", "MiB", |run| run.rss);
    }
}

/// The line that the stack before was measured with: a new connection for every request.
fn ab(base: &Path, scratch: &Path) {
    let body = scratch.join("body");
    std::fs::write(&body, BODY).unwrap();
    let run = |server: &Server| {
        let output = Command::new("ab")
            .args([
                "-q",
                "-c",
                "100",
                "-n",
                "10000",
                "-T",
                "application/x-www-form-urlencoded",
                "-p",
            ])
            .arg(&body)
            .arg(format!("http://127.0.0.1:{}/financial_pro", server.port))
            .output()
            .expect("ab is needed (Debian package apache2-utils)");
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(
            text.contains("Failed requests:        0") && !text.contains("Non-2xx"),
            "{text}"
        );
        let line = text
            .lines()
            .find(|line| line.starts_with("Requests per second"))
            .unwrap();
        line.split_whitespace().nth(3).unwrap().parse().unwrap()
    };
    let (mut limit, mut durable) = (Vec::new(), Vec::new());
    for _ in 0..common::runs() {
        limit.push(run(&no_op(base)));
        durable.push(run(&tidegate(base)));
    }
    let rows = [
        Row {
            name: "bare axum".into(),
            figures: limit,
        },
        Row {
            name: "durable POST".into(),
            figures: durable,
        },
    ];
    common::print_table("ab -c 100 -n 10000, no keep-alive", "requests/s", &rows, "bare axum");
}
