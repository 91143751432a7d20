//! What the integration tests stand on: a real Kafka, the gateway's binary, a client that misbehaves,
//! and a checker that says whether what was answered OK is in Kafka.
//!
//! Everything listens on and connects to 127.0.0.1 only. Nothing here sleeps for a fixed time: [`poll`]
//! waits for a condition, with a limit.

pub mod ab;
pub mod browser;
pub mod certificates;
pub mod client;
pub mod cluster;
pub mod daemon;
pub mod evidence;
pub mod gateway;
pub mod h2;
pub mod kafka;
pub mod lander;
pub mod ledger;
pub mod load;
pub mod mount;
pub mod pool;
pub mod postgres;
pub mod prometheus;
pub mod proxy;
pub mod raw;
pub mod store;
pub mod topics;

use std::fmt;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread;
use std::time::{Duration, Instant};

/// The source that the seed's load goes to, what it posts, and what must arrive.
pub const FORM: &str = "application/x-www-form-urlencoded";
pub const SEED_BODY: &str = "test01=111&test02=222&test03=ccc&test04=ddd";
pub const SEED_VALUE: &[u8] = br#"{"test01":"111","test02":"222","test03":"ccc","test04":"ddd"}"#;
pub const JSON: &str = "application/json";

/// A test, with the parts of the machine that it needs.
pub struct Case {
    pub name: &'static str,
    pub needs: &'static [Part],
    pub run: fn(),
}

/// `cases![module: name [needs...], ...]`: the tests of a module. One that is not listed is dead code, and
/// clippy says so.
macro_rules! cases {
    ($module:literal: $($name:ident [$($part:ident),*],)+) => {
        pub const CASES: &[$crate::support::Case] = &[$($crate::support::Case {
            name: concat!($module, "::", stringify!($name)),
            needs: &[$($crate::support::Part::$part),*],
            run: $name,
        },)+];
    };
}

/// Something outside Rust that a test needs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Part {
    /// Any Kafka: the shared one of this run, or the one that `TIDEGATE_TEST_KAFKA` names.
    Kafka,
    /// Kafka's jars and a Java to run them: the test stops and starts a broker of its own.
    OwnKafka,
    /// Debezium's connector for JDBC.
    Connect,
    /// PostgreSQL's server: a cluster of the run's own.
    Postgres,
    /// Prometheus and promtool.
    Prometheus,
    /// ApacheBench.
    Ab,
    /// Chromium and its WebDriver.
    Chromium,
    /// The program `curl`.
    Curl,
    /// nginx's server.
    Nginx,
    /// Python with `tests/python/requirements.txt`.
    Python,
    /// JavaScript without a browser.
    Node,
    /// 12,000 open files.
    Files,
    /// A tiny file system of its own: a mount namespace with a tmpfs.
    TinyDisk,
    /// A file system on a loop device: root, and a kernel that gives one.
    LoopMount,
    /// No other test beside it: it measures time or memory, or takes all of the processor.
    Alone,
}

impl Part {
    /// Whether `tests/run` fails without it. Most containers have no loop devices, whatever is installed.
    pub fn is_required(self) -> bool {
        required() && self != Self::LoopMount
    }

    /// What is missing and how to get it; `None` when it is there.
    pub fn missing(self) -> Option<String> {
        match self {
            Self::Kafka => std::env::var_os("TIDEGATE_TEST_KAFKA").map_or_else(kafka::missing, |_| None),
            Self::OwnKafka => kafka::missing(),
            Self::Connect => kafka::missing_connector(),
            Self::Postgres => postgres::missing(),
            Self::Prometheus => prometheus::missing(),
            Self::Ab => (!answers("ab", &["-V"])).then(|| "no `ab` (Debian: apache2-utils)".to_owned()),
            Self::Chromium => browser::missing(),
            Self::Curl => (!answers("curl", &["--version"])).then(|| "no `curl`".to_owned()),
            Self::Nginx => (!answers("nginx", &["-v"])).then(|| "no `nginx` (Debian: nginx)".to_owned()),
            Self::Python => {
                let python = python();
                (!python.exists()).then(|| format!("no {} (./tests/run makes it)", python.display()))
            }
            Self::Node => (!answers("node", &["--version"])).then(|| "no `node` (Debian: nodejs)".to_owned()),
            Self::Files => {
                let files = open_files_max();
                (files < 12_000).then(|| format!("only {files} open files are allowed (ulimit -n 12000)"))
            }
            Self::TinyDisk => (!tiny_disk_works()).then(|| "`unshare` cannot mount a tmpfs here".to_owned()),
            Self::LoopMount => mount::missing(),
            Self::Alone => None,
        }
    }
}

fn answers(program: &str, arguments: &[&str]) -> bool {
    Command::new(program)
        .args(arguments)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status()
        .is_ok_and(|status| status.success())
}

fn open_files_max() -> u64 {
    let limits = std::fs::read_to_string("/proc/self/limits").unwrap_or_default();
    let line = limits.lines().find(|line| line.starts_with("Max open files"));
    line.and_then(|line| line.split_whitespace().nth(3))
        .and_then(|soft| soft.parse().ok())
        .unwrap_or(0)
}

/// `unshare` with what makes a mount namespace possible for this user.
pub fn unshare() -> Command {
    let mut command = Command::new("unshare");
    if !is_root() {
        command.args(["--user", "--map-root-user"]);
    }
    command.arg("--mount");
    command
}

pub fn is_root() -> bool {
    // The owner of our own /proc entry is the effective user.
    use std::os::unix::fs::MetadataExt as _;
    std::fs::metadata("/proc/self").is_ok_and(|me| me.uid() == 0)
}

fn tiny_disk_works() -> bool {
    static WORKS: OnceLock<bool> = OnceLock::new();
    *WORKS.get_or_init(|| {
        let folder = tempfile::tempdir().expect("a temporary folder");
        unshare()
            .args(["sh", "-c", r#"mount -t tmpfs -o size=64k none "$0""#])
            .arg(folder.path())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .status()
            .is_ok_and(|status| status.success())
    })
}

/// `TIDEGATE_TEST_SOAK`: the long counts.
pub fn soak() -> bool {
    std::env::var_os("TIDEGATE_TEST_SOAK").is_some()
}

/// `TIDEGATE_TEST_REQUIRE`: a missing part is a failure.
pub fn required() -> bool {
    std::env::var_os("TIDEGATE_TEST_REQUIRE").is_some()
}

/// The build's folder, `target` unless CARGO_TARGET_DIR says otherwise.
pub fn target() -> PathBuf {
    let tmp = Path::new(env!("CARGO_TARGET_TMPDIR"));
    tmp.parent().unwrap_or(tmp).to_owned()
}

/// A Python that has what `tests/python/requirements.txt` names.
pub fn python() -> PathBuf {
    target().join("python/bin/python")
}

/// Waits until `condition` gives something, for `limit` at most; fails the test with `what` otherwise.
#[track_caller]
pub fn poll<T>(what: impl fmt::Display, limit: Duration, mut condition: impl FnMut() -> Option<T>) -> T {
    let started = Instant::now();
    let mut pause = Duration::from_millis(2);
    loop {
        if let Some(value) = condition() {
            return value;
        }
        assert!(started.elapsed() < limit, "after {limit:?}: not yet: {what}");
        thread::sleep(pause);
        pause = (pause * 3 / 2).min(Duration::from_millis(100));
    }
}

/// [`poll`] for a condition that is true or not.
#[track_caller]
pub fn wait_until(what: impl fmt::Display, limit: Duration, mut condition: impl FnMut() -> bool) {
    poll(what, limit, || condition().then_some(()));
}

/// Seconds, shorter to write.
pub const fn seconds(n: u64) -> Duration {
    Duration::from_secs(n)
}

/// A port on 127.0.0.1 that nobody has, below the range that the system hands out by itself: a process
/// that is stopped and started again finds it still free.
pub fn free_port() -> u16 {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    const FIRST: u32 = 20_000;
    const COUNT: u32 = 12_000;
    for _ in 0..COUNT {
        let step = NEXT.fetch_add(1, Ordering::Relaxed);
        // Test runs side by side begin at different places.
        let port = FIRST + (std::process::id().wrapping_mul(397) + step) % COUNT;
        let port = u16::try_from(port).expect("below 32,000");
        if TcpListener::bind(("127.0.0.1", port)).is_ok() {
            return port;
        }
    }
    panic!("no free port between {FIRST} and {}", FIRST + COUNT);
}

/// A name that no other test has: topics of one broker are shared by all tests of a run, and by several runs
/// when `TIDEGATE_TEST_KAFKA` names a broker that stays.
pub fn unique(name: &str) -> String {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let mark = tempfile::Builder::new()
        .rand_bytes(4)
        .prefix("")
        .make(|path| Ok(path.to_owned()));
    let mark = mark
        .expect("a random name")
        .path()
        .file_name()
        .map(|name| name.to_string_lossy().into_owned());
    format!(
        "{name}.{}.{}",
        NEXT.fetch_add(1, Ordering::Relaxed),
        mark.unwrap_or_default()
    )
}

/// Bytes on disk below `path`, as `du` counts them.
pub fn disk_bytes(path: &Path) -> u64 {
    use std::os::unix::fs::MetadataExt as _;
    let Ok(entries) = std::fs::read_dir(path) else { return 0 };
    entries
        .flatten()
        .map(|entry| match entry.metadata() {
            Ok(metadata) if metadata.is_dir() => disk_bytes(&entry.path()),
            Ok(metadata) => metadata.blocks() * 512,
            Err(_) => 0,
        })
        .sum()
}

/// Pseudo-random numbers (xorshift). A test prints its seed when it fails, through [`Random::seed`].
pub struct Random {
    state: u64,
    seed: u64,
}

impl Random {
    pub fn new() -> Self {
        let now = std::time::SystemTime::now()
            .duration_since(std::time::UNIX_EPOCH)
            .expect("after 1970");
        let seed = std::env::var("TIDEGATE_TEST_SEED")
            .ok()
            .and_then(|seed| seed.parse().ok());
        let seed = seed.unwrap_or_else(|| u64::from(now.subsec_nanos()) | 1);
        Self { state: seed, seed }
    }

    /// For `TIDEGATE_TEST_SEED`.
    pub fn seed(&self) -> u64 {
        self.seed
    }

    pub fn next(&mut self) -> u64 {
        self.state ^= self.state << 13;
        self.state ^= self.state >> 7;
        self.state ^= self.state << 17;
        self.state
    }

    /// From `low` up to and without `high`.
    pub fn within(&mut self, low: u64, high: u64) -> u64 {
        low + self.next() % (high - low)
    }

    /// Text that no compression makes much smaller: 6 random bits a byte.
    pub fn text(&mut self, bytes: usize) -> String {
        const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";
        (0..bytes)
            .map(|_| char::from(ALPHABET[usize::try_from(self.next() >> 58).expect("6 bits")]))
            .collect()
    }
}
