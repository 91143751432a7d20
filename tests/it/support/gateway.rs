//! The gateway as a user runs it: the binary, a configuration file, its two listeners, its signals.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::client::{Answer, Client, agent, answer};
use super::kafka::Kafka;
use super::poll;

/// The binary under test.
pub const BINARY: &str = env!("CARGO_BIN_EXE_tidegate");

const START_LIMIT: Duration = Duration::from_secs(30);

/// A bootstrap address where nobody answers: Kafka is away.
pub const NOWHERE: &str = "127.0.0.1:9";

/// What goes into the configuration file, and into the environment.
#[derive(Clone)]
pub struct Config {
    table: toml::Table,
    environment: Vec<(String, String)>,
    within: Vec<String>,
}

impl Config {
    /// Free ports, log lines as JSON, and `kafka` as the broker.
    pub fn new(bootstrap: &str) -> Self {
        let mut config = Self {
            table: toml::Table::new(),
            environment: Vec::new(),
            within: Vec::new(),
        };
        config
            .set("gateway.id", "under-test")
            .set("http.listen", "127.0.0.1:0")
            .set("admin.listen", "127.0.0.1:0")
            .set("kafka.bootstrap_servers", bootstrap)
            .set("log.format", "json");
        config
    }

    /// [`Config::new`] with `kafka`'s address.
    pub fn with(kafka: &Kafka) -> Self {
        Self::new(kafka.bootstrap())
    }

    /// Sets `section.key`.
    pub fn set(&mut self, path: &str, value: impl Into<toml::Value>) -> &mut Self {
        let (section, key) = path.split_once('.').expect("section.key");
        self.section(section).insert(key.to_owned(), value.into());
        self
    }

    /// Sets a property of librdkafka.
    pub fn property(&mut self, name: &str, value: &str) -> &mut Self {
        let properties = self
            .section("kafka")
            .entry("properties")
            .or_insert_with(|| toml::Table::new().into());
        properties
            .as_table_mut()
            .expect("a table")
            .insert(name.to_owned(), value.into());
        self
    }

    /// Declares a source for the lander, with keys such as `("field_count", 4)`.
    pub fn landed(&mut self, name: &str, topic: &str, keys: &[(&str, toml::Value)]) -> &mut Self {
        self.source(name, topic, None);
        let sources = self.table.get_mut("source").and_then(toml::Value::as_array_mut);
        let source = sources
            .and_then(|sources| sources.last_mut())
            .and_then(toml::Value::as_table_mut);
        let source = source.expect("the source that was declared");
        source.insert("group".to_owned(), format!("{topic}.group").into());
        for (key, value) in keys {
            source.insert((*key).to_owned(), value.clone());
        }
        self
    }

    /// Declares a source; the six of the shipped file are then not there.
    pub fn source(&mut self, name: &str, topic: &str, key: Option<&str>) -> &mut Self {
        self.source_with(name, topic, key, "")
    }

    /// [`source`](Self::source) with further keys, as TOML.
    pub fn source_with(&mut self, name: &str, topic: &str, key: Option<&str>, more: &str) -> &mut Self {
        let mut source: toml::Table = more.parse().expect("TOML");
        source.insert("name".to_owned(), name.into());
        source.insert("topic".to_owned(), topic.into());
        if let Some(key) = key {
            source.insert("key".to_owned(), key.into());
        }
        let sources = self
            .table
            .entry("source")
            .or_insert_with(|| toml::Value::Array(Vec::new()));
        sources.as_array_mut().expect("an array").push(source.into());
        self
    }

    /// A variable of the process's environment, in place of one of this name; `None`: no longer.
    pub fn environment(&mut self, name: &str, value: Option<&str>) -> &mut Self {
        self.environment.retain(|(known, _)| known != name);
        let value = value.map(|value| (name.to_owned(), value.to_owned()));
        self.environment.extend(value);
        self
    }

    /// The command that becomes the process, such as `taskset -c 0`.
    #[allow(dead_code)] // benches/small.rs does this, and no test.
    pub fn within(&mut self, command: &[&str]) -> &mut Self {
        self.within = command.iter().map(|word| (*word).to_owned()).collect();
        self
    }

    /// Variables of the process's environment.
    pub fn variables(&self) -> impl Iterator<Item = (&str, &str)> {
        self.environment
            .iter()
            .map(|(name, value)| (name.as_str(), value.as_str()))
    }

    /// The file.
    pub fn text(&self) -> String {
        self.table.to_string()
    }

    fn section(&mut self, name: &str) -> &mut toml::Table {
        let section = self.table.entry(name).or_insert_with(|| toml::Table::new().into());
        section.as_table_mut().expect("a table")
    }
}

/// A gateway: its folder, and its process while it runs. Dropped: killed, and the folder removed.
pub struct Gateway {
    folder: Arc<tempfile::TempDir>,
    config: Config,
    child: Child,
    log: PathBuf,
    pub ingest: String,
    pub admin: String,
}

impl Gateway {
    /// Starts one on a new folder.
    pub fn start(config: &Config) -> Self {
        let folder = tempfile::Builder::new()
            .prefix("tidegate-test-")
            .tempdir()
            .expect("a temporary folder");
        Self::start_in(Arc::new(folder), config)
    }

    /// Starts one on `folder`, which another may have left; returns once both listeners are open.
    pub fn start_in(folder: Arc<tempfile::TempDir>, config: &Config) -> Self {
        let mut gateway = Self::spawned(folder, config);
        gateway.wait_for_listeners();
        gateway
    }

    fn spawned(folder: Arc<tempfile::TempDir>, config: &Config) -> Self {
        let mut config = config.clone();
        let wal = folder.path().join("wal");
        config.set("wal.path", wal.to_str().expect("UTF-8"));
        let log = folder.path().join("log");
        let child = spawn(folder.path(), &config, &log);
        Self {
            folder,
            config,
            child,
            log,
            ingest: String::new(),
            admin: String::new(),
        }
    }

    fn wait_for_listeners(&mut self) {
        assert!(
            self.serves(),
            "the gateway ended ({:?}) instead of serving:\n{}",
            self.child.try_wait(),
            self.log()
        );
    }

    /// Waits until it serves; false: it has ended instead.
    fn serves(&mut self) -> bool {
        let child = &mut self.child;
        let log = &self.log;
        let addresses = poll("the gateway's listeners", START_LIMIT, || {
            let ended = child.try_wait().expect("its state is known");
            let lines = fs::read_to_string(log).unwrap_or_default();
            let both = address(&lines, "ingest listening").zip(address(&lines, "admin listening"));
            (ended.is_some() || both.is_some()).then_some(both.filter(|_| ended.is_none()))
        });
        let Some(addresses) = addresses else { return false };
        (self.ingest, self.admin) = addresses;
        true
    }

    /// [`start_in`](Self::start_in) of one that may end instead of serving.
    pub fn try_start_in(folder: Arc<tempfile::TempDir>, config: &Config) -> Option<Self> {
        let mut gateway = Self::spawned(folder, config);
        gateway.serves().then_some(gateway)
    }

    /// [`restart`](Self::restart) of one that may end instead of serving; whether it serves.
    pub fn try_restart(&mut self) -> bool {
        self.child = spawn(self.folder.path(), &self.config, &self.log);
        self.serves()
    }

    /// SIGKILL, and a new process on the same folder with the same configuration.
    pub fn kill_and_restart(&mut self) {
        self.sigkill();
        self.restart();
    }

    /// A new process on the same folder; the old one must have ended.
    pub fn restart(&mut self) {
        self.child = spawn(self.folder.path(), &self.config, &self.log);
        self.wait_for_listeners();
    }

    /// A new process on the same folder, killed after `pause`: somewhere in its start.
    pub fn start_and_kill_after(&mut self, pause: Duration) {
        self.child = spawn(self.folder.path(), &self.config, &self.log);
        std::thread::sleep(pause);
        self.sigkill();
    }

    /// The configuration of the next start.
    pub fn config(&mut self) -> &mut Config {
        &mut self.config
    }

    /// The next start has this setting.
    pub fn set(&mut self, path: &str, value: impl Into<toml::Value>) {
        self.config.set(path, value);
    }

    pub fn wal(&self) -> PathBuf {
        self.folder.path().join("wal")
    }

    /// The log lines of the process that runs, or ran last.
    pub fn log(&self) -> String {
        fs::read_to_string(&self.log).unwrap_or_default()
    }

    /// Runs a verb of the command line with this gateway's configuration: exit code, stdout, stderr.
    pub fn run(&self, arguments: &[&str]) -> (i32, String, String) {
        let output = command()
            .arg("--config")
            .arg(self.folder.path().join("config.toml"))
            .args(arguments)
            .current_dir(self.folder.path())
            .output()
            .expect("the binary runs");
        let text = |bytes: Vec<u8>| String::from_utf8(bytes).expect("UTF-8");
        let code = output.status.code().expect("it ends by itself");
        (code, text(output.stdout), text(output.stderr))
    }

    /// [`Self::run`] that asks the gateway while it runs.
    pub fn ask(&self, arguments: &[&str]) -> (i32, String, String) {
        let admin = format!("http://{}", self.admin);
        self.run(&[arguments, &["--admin", &admin]].concat())
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    pub fn client(&self) -> Client {
        Client::new(&self.ingest)
    }

    pub fn sigkill(&mut self) {
        self.child.kill().expect("it can be killed");
        self.child.wait().expect("it ends");
    }

    /// SIGTERM, without waiting.
    pub fn terminate(&self) {
        self.signal("-TERM");
    }

    /// Sends it a signal, such as `-STOP`.
    pub fn signal(&self, signal: &str) {
        send(self.pid(), signal);
    }

    /// SIGTERM; waits `limit` for the end.
    #[track_caller]
    pub fn sigterm(&mut self, limit: Duration) -> ExitStatus {
        self.terminate();
        self.wait_for_exit(limit)
    }

    #[track_caller]
    pub fn wait_for_exit(&mut self, limit: Duration) -> ExitStatus {
        let child = &mut self.child;
        poll("the gateway has ended", limit, || {
            child.try_wait().expect("its state is known")
        })
    }

    /// GET on the admin listener.
    pub fn admin(&self, path: &str) -> Result<Answer, String> {
        answer(agent().get(format!("http://{}{path}", self.admin)).call())
    }

    /// `/v1/status`.
    #[track_caller]
    pub fn status(&self) -> serde_json::Value {
        self.admin("/v1/status").expect("the admin listener answers").json()
    }

    /// The scrape: each series with its labels as written, and its value.
    #[track_caller]
    pub fn metrics(&self) -> BTreeMap<String, f64> {
        let answer = self.admin("/metrics").expect("the admin listener answers");
        assert_eq!(answer.status, 200, "{answer:?}");
        parse_metrics(&answer.body)
    }

    /// The sum of the series of one metric.
    #[track_caller]
    pub fn metric(&self, name: &str) -> f64 {
        sum(&self.metrics(), name)
    }

    /// Waits until nothing is left to forward.
    #[track_caller]
    pub fn wait_drained(&self, limit: Duration) {
        let started = Instant::now();
        loop {
            self.assert_running();
            let scrape = self.admin("/metrics").map(|answer| parse_metrics(&answer.body));
            let drained = scrape.as_ref().is_ok_and(|metrics| {
                sum(metrics, "tidegate_wal_acked_sequence") == sum(metrics, "tidegate_wal_committed_sequence")
            });
            if drained {
                return;
            }
            // A backlog that stays is worth a look inside.
            assert!(
                started.elapsed() < limit,
                "after {limit:?} the backlog is not forwarded: {:?}\n{scrape:?}",
                self.admin("/v1/status").map(|answer| answer.body)
            );
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// Fails the test at once when the process has ended: nothing that is waited for will come.
    #[track_caller]
    pub fn assert_running(&self) {
        let stat = fs::read_to_string(format!("/proc/{}/stat", self.pid())).unwrap_or_default();
        assert!(
            !stat.is_empty() && !stat.contains(") Z "),
            "the gateway has ended by itself"
        );
    }

    /// Resident memory in bytes.
    pub fn rss_bytes(&self) -> u64 {
        rss_bytes(self.pid())
    }

    /// The most resident memory that it ever had, in bytes.
    pub fn peak_memory_bytes(&self) -> u64 {
        memory_bytes(self.pid(), "VmHWM:")
    }
}

impl Drop for Gateway {
    fn drop(&mut self) {
        end(&mut self.child, "gateway", &self.log);
    }
}

fn spawn(folder: &Path, config: &Config, log: &Path) -> Child {
    let file = folder.join("config.toml");
    fs::write(&file, config.text()).expect("the configuration is written");
    let log = File::create(log).expect("a log file");
    command_within(&config.within)
        .arg("--config")
        .arg(&file)
        .arg("serve")
        .envs(config.variables())
        .current_dir(folder)
        .stdout(log.try_clone().expect("a second handle"))
        .stderr(log)
        .spawn()
        .expect("the binary starts")
}

/// Ends the process of a test, whose last lines are worth a look when the test has failed.
pub fn end(child: &mut Child, name: &str, log: &Path) {
    // Either may fail because it has ended already, which is the aim.
    drop(child.kill());
    drop(child.wait());
    if std::thread::panicking() {
        let log = fs::read_to_string(log).unwrap_or_default();
        let lines: Vec<&str> = log.lines().collect();
        eprintln!(
            "the {name}'s last lines:\n{}",
            lines[lines.len().saturating_sub(40)..].join("\n")
        );
    }
}

/// Resident memory of a process, bytes.
pub fn rss_bytes(pid: u32) -> u64 {
    memory_bytes(pid, "VmRSS:")
}

fn memory_bytes(pid: u32, kind: &str) -> u64 {
    status_number(pid, kind) * 1024
}

/// The number in a line of the process's status, such as `FDSize:`.
pub fn status_number(pid: u32, kind: &str) -> u64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let line = status.lines().find(|line| line.starts_with(kind));
    let number = line
        .and_then(|line| line.split_whitespace().nth(1))
        .and_then(|number| number.parse::<u64>().ok());
    number.expect("a running process has this line")
}

/// Sends a process a signal such as `-TERM`, without waiting for what it does.
pub fn send(pid: u32, signal: &str) {
    let sent = Command::new("sh")
        .args(["-c", r#"kill "$1" "$2""#, "sh", signal, &pid.to_string()])
        .status();
    assert!(sent.expect("sh runs").success(), "{signal} to {pid}");
}

/// A process that ends with the test, whatever its outcome.
pub struct Killed(pub Child);

impl Drop for Killed {
    fn drop(&mut self) {
        // Either may fail because it has ended already, which is the aim.
        drop(self.0.kill());
        drop(self.0.wait());
    }
}

/// The binary, with no setting of this environment in it.
pub fn command() -> Command {
    command_within(&[])
}

fn command_within(within: &[String]) -> Command {
    let mut words = within.iter().map(String::as_str).chain([BINARY]);
    let mut command = Command::new(words.next().expect("a program"));
    command.args(words).stdin(Stdio::null());
    for (name, _) in std::env::vars_os() {
        if name.to_string_lossy().starts_with("TIDEGATE_") {
            command.env_remove(name);
        }
    }
    command
}

/// The `addr` of the log line with this message, as tracing's JSON has it (flattened or below `fields`).
pub fn address(log: &str, message: &str) -> Option<String> {
    log.lines().find_map(|line| {
        let line: serde_json::Value = serde_json::from_str(line).ok()?;
        let fields = line.get("fields").unwrap_or(&line);
        (fields.get("message")?.as_str()? == message).then_some(())?;
        Some(fields.get("addr")?.as_str()?.to_owned())
    })
}

/// A scrape: each series with its labels as written, and its value.
pub fn parse_metrics(text: &str) -> BTreeMap<String, f64> {
    text.lines()
        .filter(|line| !line.starts_with('#'))
        .filter_map(|line| {
            let (series, value) = line.rsplit_once(' ')?;
            Some((series.to_owned(), value.parse().ok()?))
        })
        .collect()
}

/// The sum of the series of one metric in a scrape.
pub fn sum(metrics: &BTreeMap<String, f64>, name: &str) -> f64 {
    metrics
        .iter()
        .filter(|(series, _)| series.split('{').next() == Some(name))
        .map(|(_, value)| value)
        .sum()
}
