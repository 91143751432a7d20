//! A real PostgreSQL: a cluster of the test's own, made by initdb, on a free port of 127.0.0.1. Its server
//! refuses to run as root, so there it runs as the user `postgres` or `nobody`.

use std::fs;
use std::os::unix::fs::{PermissionsExt as _, chown};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::{Arc, OnceLock};

use postgres::{Client, NoTls, SimpleQueryMessage};

use super::daemon::Daemon;
use super::{free_port, is_root, poll, seconds, unique};

/// Of every user.
pub const PASSWORD: &str = "hunter2";

/// A server, stopped and started by its test.
pub struct Postgres {
    daemon: Daemon,
    port: u16,
}

static SHARED: OnceLock<Arc<Postgres>> = OnceLock::new();

/// What is missing for one; `None` when all is there.
pub fn missing() -> Option<String> {
    program("initdb")
        .is_none()
        .then(|| "no PostgreSQL server (Debian: postgresql)".to_owned())
}

/// The newest of Debian's versions, else whatever PATH has.
fn program(name: &str) -> Option<PathBuf> {
    let versions = fs::read_dir("/usr/lib/postgresql").into_iter().flatten().flatten();
    let debian = versions
        .map(|version| version.path().join("bin").join(name))
        .filter(|path| path.exists());
    let path = std::env::var_os("PATH").unwrap_or_default();
    let others = std::env::split_paths(&path)
        .map(|folder| folder.join(name))
        .find(|path| path.exists());
    debian.max().or(others)
}

/// Uid and gid for a server when we are root.
fn user() -> Option<(u32, u32)> {
    let users = fs::read_to_string("/etc/passwd").unwrap_or_default();
    let of = |name: &str| {
        let mut fields = users
            .lines()
            .find(|line| line.starts_with(&format!("{name}:")))?
            .split(':')
            .skip(2);
        Some((fields.next()?.parse().ok()?, fields.next()?.parse().ok()?))
    };
    is_root().then(|| {
        of("postgres")
            .or_else(|| of("nobody"))
            .expect("a user that is not root")
    })
}

/// Gives a file to the server's user, who alone may read it then.
pub fn give(path: &Path) {
    fs::set_permissions(path, fs::Permissions::from_mode(0o600)).expect("the file is there");
    if let Some((uid, gid)) = user() {
        chown(path, Some(uid), Some(gid)).expect("the file is given away");
    }
}

impl Postgres {
    /// The one server of this run.
    pub fn shared() -> Arc<Self> {
        Arc::clone(SHARED.get_or_init(|| Arc::new(Self::private())))
    }

    /// Stops the shared server, if it was ever started. For the end of the run.
    pub fn end_shared() {
        if let Some(postgres) = SHARED.get() {
            postgres.daemon.end("-KILL", false);
        }
    }

    /// A server that belongs to one test.
    pub fn private() -> Self {
        Self::private_with(|_| ())
    }

    /// One whose folder of data `change` has changed before its first start; see [`give`].
    pub fn private_with(change: impl FnOnce(&Path)) -> Self {
        let folder = tempfile::Builder::new()
            .prefix("tidegate-pg-")
            .tempdir()
            .expect("a temporary folder");
        let password = folder.path().join("password");
        fs::write(&password, PASSWORD).expect("the password is written");
        let mut initdb = Command::new(program("initdb").expect("initdb"));
        initdb
            .args([
                "-U",
                "tidegate",
                "-A",
                "scram-sha-256",
                "-E",
                "UTF8",
                "--no-sync",
                "--pwfile",
            ])
            .arg(&password)
            .arg("-D")
            .arg(folder.path().join("data"))
            .current_dir(folder.path())
            .stdin(Stdio::null());
        if let Some((uid, gid)) = user() {
            for path in [folder.path(), &password] {
                chown(path, Some(uid), Some(gid)).expect("the folder is given away");
            }
            initdb.uid(uid).gid(gid);
        }
        let made = initdb.output().expect("initdb runs");
        assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
        change(&folder.path().join("data"));
        let postgres = Self {
            daemon: Daemon::new(folder),
            port: free_port(),
        };
        postgres.start();
        postgres
    }

    /// Starts it on its old folder and port; returns when it answers.
    pub fn start(&self) {
        let folder = self.daemon.folder.path();
        let mut command = Command::new(program("postgres").expect("postgres"));
        command
            .arg("-D")
            .arg(folder.join("data"))
            .args(["-p", &self.port.to_string(), "-c", "listen_addresses=127.0.0.1", "-c"])
            .arg(format!("unix_socket_directories={}", folder.display()));
        let pid = self.daemon.launch(&command, user());
        poll("PostgreSQL answers", seconds(60), || {
            assert!(Daemon::is_running(pid), "PostgreSQL ended:\n{}", self.daemon.console());
            Client::connect(&self.url("postgres"), NoTls).ok()
        });
    }

    /// Stops it as `pg_ctl stop` does: connections are ended.
    pub fn stop(&self) {
        self.daemon.end("-INT", true);
    }

    /// A database of the caller's own.
    pub fn database(&self) -> String {
        let name = unique("db").replace('.', "_").to_lowercase();
        self.query("postgres", &format!("CREATE DATABASE \"{name}\""));
        name
    }

    pub fn url(&self, database: &str) -> String {
        self.url_of("tidegate", database)
    }

    /// For a user whose password is that of all users here.
    pub fn url_of(&self, user: &str, database: &str) -> String {
        format!("postgres://{user}:{PASSWORD}@127.0.0.1:{}/{database}", self.port)
    }

    pub fn port(&self) -> u16 {
        self.port
    }

    /// Rows of a query as texts; NULL is "NULL".
    pub fn query(&self, database: &str, sql: &str) -> Vec<Vec<String>> {
        self.try_query(database, sql)
            .unwrap_or_else(|error| panic!("{sql}: {error}"))
    }

    pub fn try_query(&self, database: &str, sql: &str) -> Result<Vec<Vec<String>>, postgres::Error> {
        let mut client = Client::connect(&self.url(database), NoTls)?;
        let rows = client
            .simple_query(sql)?
            .into_iter()
            .filter_map(|message| match message {
                SimpleQueryMessage::Row(row) => {
                    let columns = 0..row.len();
                    Some(
                        columns
                            .map(|column| row.get(column).unwrap_or("NULL").to_owned())
                            .collect(),
                    )
                }
                _ => None,
            });
        Ok(rows.collect())
    }
}
