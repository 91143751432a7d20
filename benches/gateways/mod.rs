//! What the benchmarks of big backlogs and small machines share: a log filled as a gateway fills it, a gateway as a process
//! under wrk, the moment of its first OK, and what Kafka is given while it drains.

use std::fs::{self, File};
use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::fs::{Advice, fadvise};
use tidegate::record::Record;
use tidegate::wal::{Batch, Commit};

use crate::common;
use crate::support::gateway::{Config, Gateway};
use crate::support::{FORM, SEED_BODY, free_port};

/// Where wrk posts, and what the log is filled with goes.
pub const TOPIC: &str = "financial_pro";

/// Adds records of about 200 bytes, as devices send them, in commits of 500, until the log has so many bytes of files and
/// records waiting: how many there are then. (Every 10,000th has the same value, which no compression of 32 KiB sees.)
pub fn fill(path: &Path, bytes: u64, records: u64) -> u64 {
    let wal = common::log::open(path, true);
    let mut next = wal.log().watermarks().next;
    let waiting = || {
        let marks = wal.log().watermarks();
        marks.committed - marks.acked
    };
    let values: Vec<Vec<u8>> = (0..10_000).map(common::json_record).collect();
    let mut last: Option<Commit> = None;
    while wal.status().disk_bytes < bytes || waiting() < records {
        for _ in 0..20 {
            let mut batch = Batch::new();
            for _ in 0..500 {
                batch.push(&Record {
                    topic: TOPIC.into(),
                    key: None,
                    value: Some(values[next as usize % values.len()].clone()),
                    headers: vec![("content-type".into(), b"application/json".to_vec())],
                    received_ms: tidegate::record::now_ms(),
                    origin: None,
                    idempotency: None,
                });
                next += 1;
            }
            // Two at a time: one is made while the other is written.
            if let Some(commit) = last.replace(wal.log().append(batch).unwrap()) {
                commit.wait().unwrap();
            }
        }
    }
    if let Some(commit) = last {
        commit.wait().unwrap();
    }
    let waiting = waiting();
    wal.close().unwrap();
    waiting
}

fn files(folder: &Path) -> Vec<PathBuf> {
    let items = fs::read_dir(folder).into_iter().flatten().flatten();
    let files = items.flat_map(|item| match item.path().is_dir() {
        true => files(&item.path()),
        false => vec![item.path()],
    });
    files.collect()
}

/// Bytes of all files below a folder. While a log is open they come and go.
pub fn size(folder: &Path) -> u64 {
    let bytes = |file: &PathBuf| fs::metadata(file).map_or(0, |meta| meta.len());
    files(folder).iter().map(bytes).sum()
}

/// The next read of these files comes from the disk.
pub fn forget(folder: &Path) {
    for file in files(folder) {
        let file = File::open(file).unwrap();
        file.sync_all().unwrap();
        fadvise(&file, 0, None, Advice::DontNeed).unwrap();
    }
}

/// Starts a gateway on the folder: seconds from its exec to the first record that is answered OK.
pub fn start(folder: &Arc<tempfile::TempDir>, config: &Config) -> (Gateway, f64) {
    let mut config = config.clone();
    let address = format!("127.0.0.1:{}", free_port());
    config.set("http.listen", address.as_str());
    let began = Instant::now();
    let first = std::thread::spawn(move || {
        while post(&address).is_err() {
            assert!(began.elapsed() < Duration::from_secs(60), "no OK within a minute");
            std::thread::sleep(Duration::from_millis(1));
        }
        began.elapsed().as_secs_f64()
    });
    let gateway = Gateway::start_in(Arc::clone(folder), &config);
    (gateway, first.join().unwrap())
}

/// One record over a connection of its own.
fn post(address: &str) -> std::io::Result<()> {
    let mut stream = TcpStream::connect(address)?;
    stream.set_read_timeout(Some(Duration::from_secs(60)))?;
    let length = SEED_BODY.len();
    let head = "Host: bench\r\nConnection: close";
    let request = format!(
        "POST /{TOPIC} HTTP/1.1\r\n{head}\r\nContent-Type: {FORM}\r\nContent-Length: {length}\r\n\r\n{SEED_BODY}"
    );
    stream.write_all(request.as_bytes())?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    match answer.starts_with("HTTP/1.1 200") {
        true => Ok(()),
        false => Err(std::io::Error::other(answer)),
    }
}

/// What wrk saw.
pub struct Load {
    pub per_second: f64,
    pub p50: f64,
    pub p99: f64,
    /// Answers that are not 2xx, and connections or requests without an answer.
    pub failed: f64,
}

/// wrk with one thread, keep-alive, a form of four fields. `within`: a command to start it with, such as taskset.
pub fn wrk(gateway: &Gateway, connections: u32, seconds: u32, within: &[&str]) -> Load {
    let script = tempfile::Builder::new().suffix(".lua").tempfile().unwrap();
    let text = format!(
        r#"wrk.method = "POST"
wrk.body = "{SEED_BODY}"
wrk.headers["Content-Type"] = "{FORM}"
function done(summary, latency)
  local e = summary.errors
  print(string.format("figures %.2f %.3f %.3f %d", summary.requests / summary.duration * 1e6,
    latency:percentile(50) / 1e3, latency:percentile(99) / 1e3, e.connect + e.read + e.write + e.status + e.timeout))
end
"#
    );
    fs::write(&script, text).unwrap();
    let words = [within, &["wrk", "-t1", "--timeout", "70s", "-s"]].concat();
    let output = Command::new(words[0])
        .args(&words[1..])
        .arg(script.path())
        .args([format!("-c{connections}"), format!("-d{seconds}s")])
        .arg(format!("http://{}/{TOPIC}", gateway.ingest))
        .output()
        .expect("wrk is needed (Debian package wrk)");
    let text = String::from_utf8_lossy(&output.stdout);
    let figures = text.lines().find_map(|line| line.strip_prefix("figures "));
    let figures = figures.unwrap_or_else(|| panic!("{output:?}")).split_whitespace();
    let figures: Vec<f64> = figures.map(|figure| figure.parse().unwrap()).collect();
    Load {
        per_second: figures[0],
        p50: figures[1],
        p99: figures[2],
        failed: figures[3],
    }
}

/// A table in Markdown of any shape; the first column is text.
pub fn table(title: &str, head: &[&str], rows: &[Vec<String>]) {
    println!("\n### {title}\n\n| {} |", head.join(" | "));
    println!("|---|{}", "--:|".repeat(head.len() - 1));
    for row in rows {
        println!("| {} |", row.join(" | "));
    }
}
