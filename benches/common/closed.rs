//! Load generators from Debian that send as fast as they are answered (a closed loop): how much a server takes. For how long a
//! request waits at a given rate there is [`super::open`].
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)]

use std::path::{Path, PathBuf};
use std::process::Command;

use super::server::Server;

pub struct Figures {
    pub per_second: f64,
    pub requests: f64,
    pub p50: f64,
    pub p99: f64,
    pub p999: f64,
    /// Resident memory of the server at the end, MiB.
    pub rss: f64,
    /// Processor time of the server, microseconds a request.
    pub cpu: f64,
}

/// What wrk calls at its end. Percentiles are what wrk measures, from when a request was sent.
const DONE: &str = r#"
function done(summary, latency)
  local e = summary.errors
  print(string.format("figures %.1f %.3f %.3f %.3f %d %d", summary.requests / summary.duration * 1e6,
    latency:percentile(50) / 1e3, latency:percentile(99) / 1e3, latency:percentile(99.9) / 1e3,
    e.connect + e.read + e.write + e.status + e.timeout, summary.requests))
end
"#;

/// wrk's script for a GET.
pub fn get(folder: &Path) -> PathBuf {
    let path = folder.join("get.lua");
    std::fs::write(&path, DONE).unwrap();
    path
}

/// wrk's script that posts these bodies one after the other, `pipelined` requests at a time. `more` is Lua that comes last.
pub fn post(folder: &Path, content_type: &str, bodies: &[Vec<u8>], pipelined: usize, more: &str) -> PathBuf {
    // Bytes 1 part the bodies: they are in no text.
    let file = tempfile::Builder::new().suffix(".bodies").tempfile_in(folder).unwrap();
    std::fs::write(file.path(), bodies.join(&1)).unwrap();
    let (_, bodies) = file.keep().unwrap();
    let path = bodies.with_extension("lua");
    let script = format!(
        r#"wrk.method = "POST"
wrk.headers["Content-Type"] = "{content_type}"
local number, requests = 0, {{}}
init = function()
  local file = io.open("{}", "rb")
  for body in file:read("*a"):gmatch("[^\1]+") do
    requests[#requests + 1] = string.rep(wrk.format(nil, nil, nil, body), {pipelined})
  end
  file:close()
end
request = function()
  number = number % #requests + 1
  return requests[number]
end
{DONE}{more}"#,
        bodies.canonicalize().unwrap().display()
    );
    std::fs::write(&path, script).unwrap();
    path
}

/// wrk, one thread, keep-alive.
pub fn wrk(server: &Server, path: &str, connections: u32, script: &Path) -> Figures {
    let before = super::cpu_seconds(server.pid());
    let output = Command::new("wrk")
        .args([
            "-t1",
            &format!("-c{connections}"),
            &format!("-d{}s", super::seconds()),
            "-s",
        ])
        .arg(script)
        .arg(server.url(path))
        .output()
        .expect("wrk is needed (Debian package wrk)");
    let spent = super::cpu_seconds(server.pid()) - before;
    let text = String::from_utf8_lossy(&output.stdout);
    let line = text
        .lines()
        .find_map(|line| line.strip_prefix("figures "))
        .unwrap_or_else(|| panic!("{text}"));
    let n: Vec<f64> = line.split_whitespace().map(|n| n.parse().unwrap()).collect();
    assert_eq!(n[4], 0.0, "answers that are not 2xx, or socket errors: {text}");
    Figures {
        per_second: n[0],
        requests: n[5],
        p50: n[1],
        p99: n[2],
        p999: n[3],
        rss: super::rss_mib(server.pid()),
        cpu: spent * 1e6 / n[5],
    }
}

/// The line that the stack before was measured with, a new connection for every request; requests a second.
pub fn ab(server: &Server, path: &str, requests: u32, content_type: &str, body: &Path) -> f64 {
    let output = Command::new("ab")
        .args(["-q", "-c", "100", "-n", &requests.to_string(), "-T", content_type, "-p"])
        .arg(body)
        .arg(server.url(path))
        .output()
        .expect("ab is needed (Debian package apache2-utils)");
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    // "Failed requests" counts answers of another length: a receipt grows with its sequence.
    assert!(!text.contains("Non-2xx"), "{text}");
    let line = text.lines().find(|line| line.starts_with("Requests per second"));
    let rate = line.unwrap_or_else(|| panic!("{text}")).split_whitespace().nth(3);
    rate.unwrap().parse().unwrap()
}

/// h2load: HTTP/2, so many requests at a time on each connection; requests a second.
pub fn h2load(server: &Server, path: &str, connections: u32, streams: u32, post: Option<(&str, &Path)>) -> f64 {
    let mut command = Command::new("h2load");
    command.args(["-t1", "-c", &connections.to_string(), "-m", &streams.to_string()]);
    command.args(["-D", &super::seconds().to_string()]);
    if let Some((content_type, body)) = post {
        command
            .args(["-H", &format!("content-type: {content_type}"), "-d"])
            .arg(body);
    }
    let output = command.arg(server.url(path)).output();
    let output = output.expect("h2load is needed (Debian package nghttp2-client)");
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(
        text.contains("Application protocol: h2") && text.contains(" 0 failed, 0 errored, 0 timeout"),
        "{text}"
    );
    let status = text.lines().find(|line| line.starts_with("status codes:")).unwrap();
    assert!(status.contains(" 0 3xx, 0 4xx, 0 5xx"), "{status}");
    let line = text.lines().find(|line| line.starts_with("finished in")).unwrap();
    line.split(", ")
        .nth(1)
        .unwrap()
        .trim_end_matches(" req/s")
        .parse()
        .unwrap()
}
