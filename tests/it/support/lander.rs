//! The lander as a user runs it: the binary, a configuration file, its listener, its signals.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::path::PathBuf;
use std::process::{Child, ExitStatus};
use std::time::Duration;

use super::client::{Answer, agent, answer};
use super::gateway::{Config, address, command, end, parse_metrics, send, sum};
use super::{poll, seconds};

/// A lander's process. Dropped: killed.
pub struct Lander {
    folder: tempfile::TempDir,
    config: Config,
    child: Child,
    pub admin: String,
}

/// How a lander that ends by itself ended.
#[derive(Debug)]
pub struct Ended {
    pub code: Option<i32>,
    pub stdout: String,
    pub stderr: String,
}

/// The settings of a lander under test, over those that it shares with a gateway.
pub fn settings(config: &mut Config) -> &mut Config {
    config
        .set("land.listen", "127.0.0.1:0")
        // The least that the brokers of these tests allow: partitions of a killed lander go on after it.
        .property("session.timeout.ms", "1500")
        .property("heartbeat.interval.ms", "300")
        .property("topic.metadata.refresh.interval.ms", "1000")
}

impl Lander {
    /// Starts one; returns once its listener is open.
    pub fn start(config: &Config) -> Self {
        Self::start_with(config, &[])
    }

    /// [`Lander::start`] with arguments.
    pub fn start_with(config: &Config, arguments: &[&str]) -> Self {
        let folder = tempfile::Builder::new()
            .prefix("tidegate-land-")
            .tempdir()
            .expect("a temporary folder");
        let child = spawn_with(&folder, config, arguments);
        let mut lander = Self {
            folder,
            config: config.clone(),
            child,
            admin: String::new(),
        };
        lander.wait_for_listener();
        lander
    }

    fn wait_for_listener(&mut self) {
        let log = self.folder.path().join("stderr");
        let child = &mut self.child;
        self.admin = poll("the lander's listener", seconds(30), || {
            let lines = fs::read_to_string(&log).unwrap_or_default();
            let ended = child.try_wait().expect("its state is known");
            assert!(
                ended.is_none(),
                "the lander ended ({ended:?}) instead of landing:\n{lines}"
            );
            address(&lines, "lander listening")
        });
    }

    /// SIGKILL.
    pub fn sigkill(&mut self) {
        self.child.kill().expect("it can be killed");
        self.child.wait().expect("it ends");
    }

    /// SIGKILL, and a new process with the same configuration.
    pub fn kill_and_restart(&mut self) {
        self.sigkill();
        self.child = spawn(&self.folder, &self.config);
        self.wait_for_listener();
    }

    /// SIGTERM; waits `limit` for the end.
    #[track_caller]
    pub fn sigterm(&mut self, limit: Duration) -> ExitStatus {
        send(self.child.id(), "-TERM");
        let child = &mut self.child;
        poll("the lander has ended", limit, || {
            child.try_wait().expect("its state is known")
        })
    }

    /// GET on its listener.
    pub fn admin(&self, path: &str) -> Result<Answer, String> {
        answer(agent().get(format!("http://{}{path}", self.admin)).call())
    }

    pub fn metrics(&self) -> BTreeMap<String, f64> {
        let answer = self.admin("/metrics").expect("the lander answers");
        assert_eq!(answer.status, 200, "{answer:?}");
        parse_metrics(&answer.body)
    }

    pub fn metric(&self, name: &str) -> f64 {
        sum(&self.metrics(), name)
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Runs `tidegate land ARGUMENTS` to its end.
    pub fn run(config: &Config, arguments: &[&str]) -> Ended {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let mut child = spawn_with(&folder, config, arguments);
        let read = |name: &str| fs::read_to_string(folder.path().join(name)).unwrap_or_default();
        let started = std::time::Instant::now();
        // One that stands still is worth a look inside.
        let mut standing = String::new();
        let status = poll("the lander ends by itself", seconds(90), || {
            if started.elapsed() > seconds(80) {
                if let Some(admin) = address(&read("stderr"), "lander listening") {
                    let status = answer(agent().get(format!("http://{admin}/v1/status")).call());
                    standing = format!("\nstands still: {status:?}\n");
                }
                child.kill().expect("it can be killed");
            }
            child.try_wait().expect("its state is known")
        });
        Ended {
            code: status.code(),
            stdout: read("stdout"),
            stderr: read("stderr") + &standing,
        }
    }
}

impl Drop for Lander {
    fn drop(&mut self) {
        end(&mut self.child, "lander", &self.folder.path().join("stderr"));
    }
}

fn spawn(folder: &tempfile::TempDir, config: &Config) -> Child {
    spawn_with(folder, config, &[])
}

fn spawn_with(folder: &tempfile::TempDir, config: &Config, arguments: &[&str]) -> Child {
    let file = folder.path().join("config.toml");
    fs::write(&file, config.text()).expect("the configuration is written");
    let output = |name: &str| -> File {
        let path: PathBuf = folder.path().join(name);
        File::create(path).expect("a file for its output")
    };
    command()
        .arg("--config")
        .arg(&file)
        .arg("land")
        .args(arguments)
        .envs(config.variables())
        .current_dir(folder.path())
        .stdout(output("stdout"))
        .stderr(output("stderr"))
        .spawn()
        .expect("the binary starts")
}
