//! ApacheBench, as the seed's load is run.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use super::{FORM, SEED_BODY};

/// A run of `ab`.
pub struct Ab {
    child: Child,
    output: PathBuf,
}

/// What `ab` saw.
#[derive(Debug)]
pub struct Report {
    /// "Complete requests", "Failed requests" and "Non-2xx responses" of its summary. It gives none when the
    /// server goes away.
    pub complete: u64,
    pub failed: u64,
    pub not_2xx: u64,
    /// `tidegate-seq` of each answer 200 that it read, also when the server went away.
    pub seqs: BTreeSet<u64>,
    pub summary: String,
}

/// Starts `ab -c 100 -n 10000 -T application/x-www-form-urlencoded -p body http://ADDRESS/financial_pro`,
/// which prints the head of every answer too (`-v 2`). Its files go to `folder`.
pub fn start(folder: &Path, address: &str) -> Ab {
    let body = folder.join("body");
    fs::write(&body, SEED_BODY).expect("the body's file");
    let output = folder.join("ab");
    let stdout = File::create(&output).expect("a file for its output");
    // Apart: a complaint would land in the middle of an answer's head, where stdout's buffer ends.
    let stderr = File::create(folder.join("ab.errors")).expect("a file for its complaints");
    let child = Command::new("ab")
        .args(["-q", "-v", "2", "-c", "100", "-n", "10000", "-T", FORM, "-p"])
        .arg(&body)
        .arg(format!("http://{address}/financial_pro"))
        .stdin(Stdio::null())
        .stderr(stderr)
        .stdout(stdout)
        .spawn()
        .expect("ab starts");
    Ab { child, output }
}

impl Ab {
    /// Waits for the end, and reads what it printed.
    pub fn finish(mut self) -> Report {
        self.child.wait().expect("ab ends");
        let text = fs::read(&self.output).expect("its output");
        let text = String::from_utf8_lossy(&text);
        let number = |label: &str| {
            let line = text.lines().find(|line| line.starts_with(label));
            line.and_then(|line| line.split_whitespace().last()?.parse().ok())
                .unwrap_or(0)
        };
        let answers = text.split("LOG: header received:\n").skip(1);
        let seqs = answers
            .filter(|answer| answer.split(' ').nth(1) == Some("200"))
            .map(|answer| {
                let seq = answer.lines().find_map(|line| line.strip_prefix("tidegate-seq: "));
                seq.and_then(|seq| seq.trim().parse().ok())
                    .expect("an answer 200 has its sequence")
            })
            .collect();
        let summary = text.split("Server Software:").nth(1).unwrap_or("no summary").to_owned();
        Report {
            complete: number("Complete requests:"),
            failed: number("Failed requests:"),
            not_2xx: number("Non-2xx responses:"),
            seqs,
            summary,
        }
    }

    /// Waits for the end; all 10,000 must have been answered OK, each with a sequence of its own.
    #[track_caller]
    pub fn finish_whole(self) -> Report {
        let report = self.finish();
        assert_eq!(
            (report.complete, report.failed, report.not_2xx),
            (10_000, 0, 0),
            "{}",
            report.summary
        );
        assert_eq!(report.seqs.len(), 10_000, "{}", report.summary);
        report
    }
}
