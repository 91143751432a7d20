//! A real Prometheus and its promtool: Debian's, on PATH or as `tests/run` takes its package apart into `target/prometheus`.

use std::collections::BTreeMap;
use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use serde_json::Value;

use super::client::{agent, answer};
use super::daemon::Daemon;
use super::{answers, free_port, poll, seconds, target};

/// What is missing; `None` when both are there.
pub fn missing() -> Option<String> {
    let is_there = |name: &str| answers(&program(name).to_string_lossy(), &["--version"]);
    (!is_there("prometheus") || !is_there("promtool"))
        .then(|| "no `prometheus` or `promtool` (Debian: prometheus; ./tests/run gets it)".to_owned())
}

fn program(name: &str) -> PathBuf {
    let own = target().join("prometheus/usr/bin").join(name);
    if own.exists() { own } else { PathBuf::from(name) }
}

/// What promtool says on both streams, when it is content; the test fails when it is not.
#[track_caller]
pub fn promtool(folder: &Path, arguments: &[&str], stdin: &str) -> String {
    let mut child = Command::new(program("promtool"))
        .args(arguments)
        .current_dir(folder)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("promtool runs");
    let mut pipe = child.stdin.take().expect("a pipe");
    pipe.write_all(stdin.as_bytes()).expect("promtool reads");
    drop(pipe);
    let output = child.wait_with_output().expect("promtool ends");
    let said = [output.stdout, output.stderr].concat();
    let said = String::from_utf8(said).expect("UTF-8");
    assert!(output.status.success(), "promtool {arguments:?}: {said}");
    said
}

/// One sample of an answer.
#[derive(Debug, Clone)]
pub struct Sample {
    pub labels: BTreeMap<String, String>,
    pub value: f64,
}

impl Sample {
    pub fn label(&self, name: &str) -> &str {
        self.labels.get(name).map_or("", String::as_str)
    }
}

/// A server, which ends with the test.
pub struct Prometheus {
    server: Daemon,
    port: u16,
}

impl Prometheus {
    /// Starts one on a configuration `prometheus.yml` in `folder`; returns once it answers.
    pub fn start(folder: tempfile::TempDir) -> Self {
        let port = free_port();
        let mut command = Command::new(program("prometheus"));
        command
            .arg(format!(
                "--config.file={}",
                folder.path().join("prometheus.yml").display()
            ))
            .arg(format!("--storage.tsdb.path={}", folder.path().join("data").display()))
            .arg(format!("--web.listen-address=127.0.0.1:{port}"))
            .arg("--log.level=warn");
        let server = Daemon::new(folder);
        let pid = server.launch(&command, None);
        let prometheus = Self { server, port };
        poll("Prometheus is ready", seconds(60), || {
            let console = || prometheus.server.console();
            assert!(Daemon::is_running(pid), "Prometheus has ended: {}", console());
            let ready = answer(agent().get(prometheus.url("/-/ready")).call()).ok()?;
            (ready.status == 200).then_some(())
        });
        prometheus
    }

    fn url(&self, path: &str) -> String {
        format!("http://127.0.0.1:{}{path}", self.port)
    }

    /// What an expression comes to now; what Prometheus has against it where it cannot be read.
    pub fn try_query(&self, expression: &str) -> Result<Vec<Sample>, String> {
        let request = agent().get(self.url("/api/v1/query")).query("query", expression).call();
        let answer = answer(request)?.json();
        if answer["status"] != "success" {
            return Err(format!("{expression}: {answer}"));
        }
        let data = &answer["data"]["result"];
        let one = |sample: &Value| {
            let labels = sample["metric"].as_object().expect("labels").iter();
            let text = |value: &Value| value.as_str().expect("text").to_owned();
            Sample {
                labels: labels.map(|(name, value)| (name.clone(), text(value))).collect(),
                value: text(&sample["value"][1]).parse().expect("a number"),
            }
        };
        Ok(data.as_array().expect("a vector").iter().map(one).collect())
    }

    /// [`Self::try_query`] of an expression that must be one.
    #[track_caller]
    pub fn query(&self, expression: &str) -> Vec<Sample> {
        self.try_query(expression).unwrap_or_else(|error| panic!("{error}"))
    }

    /// The alerts that fire now, each as `name severity instance`.
    #[track_caller]
    pub fn firing(&self) -> Vec<String> {
        let alerts = self.query(r#"ALERTS{alertstate="firing"}"#);
        let text = |alert: &Sample| {
            ["alertname", "severity", "instance"]
                .map(|label| alert.label(label))
                .join(" ")
        };
        alerts.iter().map(text).collect()
    }

    /// The rules that could not be computed, with why.
    pub fn sick_rules(&self) -> Vec<String> {
        let answer = answer(agent().get(self.url("/api/v1/rules")).call()).expect("Prometheus answers");
        let answer = answer.json();
        let groups = answer["data"]["groups"].as_array().expect("groups").iter();
        let rules = groups.flat_map(|group| group["rules"].as_array().expect("rules"));
        let sick = rules.filter(|rule| rule["health"] != "ok");
        sick.map(ToString::to_string).collect()
    }
}

/// Copies a file, with changes to its text that must each find something.
#[track_caller]
pub fn copy_with(from: &Path, to: &Path, changes: &[(&str, &str)]) {
    let mut text = fs::read_to_string(from).expect("the file to copy");
    for (before, after) in changes {
        assert!(text.contains(before), "{} has no {before:?}", from.display());
        text = text.replace(before, after);
    }
    fs::write(to, text).expect("the copy");
}
