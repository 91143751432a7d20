//! What starts tidegate and looks after it: systemd's protocol (`sd_notify`), the image's health check.

use std::fs;
use std::os::unix::net::UnixDatagram;
use std::path::Path;
use std::process::Command;
use std::time::Instant;

use crate::support::gateway::{Config, Gateway, NOWHERE};
use crate::support::lander::{self, Lander};
use crate::support::{FORM, poll, seconds};

cases!["service":
    systemd_is_told_when_the_gateway_serves_works_and_ends [],
    systemd_is_told_of_a_gateway_that_refuses_records [],
    systemd_is_told_when_the_lander_runs_and_ends [],
    a_process_that_stands_still_feeds_no_watchdog [],
    the_health_check_of_the_image_knows_a_gateway_that_lives [],
];

/// Where a service manager listens.
struct Manager {
    socket: UnixDatagram,
    folder: tempfile::TempDir,
}

impl Manager {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let socket = UnixDatagram::bind(folder.path().join("notify")).unwrap();
        socket.set_read_timeout(Some(seconds(20))).unwrap();
        Self { socket, folder }
    }

    /// What a unit with `WatchdogSec=` has in its environment.
    fn asks(&self, config: &mut Config, watchdog_ms: u64) {
        let socket = self.folder.path().join("notify");
        let watchdog = (watchdog_ms * 1000).to_string();
        config
            .environment("NOTIFY_SOCKET", socket.to_str())
            .environment("WATCHDOG_USEC", Some(&watchdog));
    }

    /// The next message; `None`: there was none for as long as the socket waits.
    fn next(&self) -> Option<String> {
        let mut buffer = [0; 4096];
        let length = self.socket.recv(&mut buffer).ok()?;
        Some(String::from_utf8(buffer[..length].to_vec()).unwrap())
    }

    /// Everything up to the message with this line.
    #[track_caller]
    fn until(&self, line: &str) -> Vec<String> {
        let began = Instant::now();
        let mut read = Vec::new();
        loop {
            let message = self.next().unwrap_or_else(|| panic!("no {line} after {read:?}"));
            let found = message.lines().any(|found| found == line);
            read.push(message);
            if found {
                return read;
            }
            assert!(began.elapsed() < seconds(20), "no {line} in {read:?}");
        }
    }
}

fn systemd_is_told_when_the_gateway_serves_works_and_ends() {
    let manager = Manager::new();
    let mut config = Config::new(NOWHERE);
    config.set("http.shutdown", "0 s");
    manager.asks(&mut config, 900);
    let mut gateway = Gateway::start(&config);
    // Nothing before the start is done.
    assert_eq!(manager.next().as_deref(), Some("READY=1\n"));
    assert_eq!(gateway.client().get("/").unwrap().status, 200);
    manager.until("WATCHDOG=1");
    assert_eq!(
        gateway.client().post("/trip_pro", FORM, b"a=1&b=2&c=3").unwrap().status,
        200
    );
    poll("the status line has the record", seconds(10), || {
        let told = manager.until("WATCHDOG=1").pop()?;
        told.contains("STATUS=takes records; Kafka is away, 1 to be forwarded, 0 held\n")
            .then_some(())
    });
    gateway.terminate();
    manager.until("STOPPING=1");
    assert!(gateway.wait_for_exit(seconds(20)).success());
}

fn systemd_is_told_of_a_gateway_that_refuses_records() {
    let manager = Manager::new();
    let mut config = Config::new(NOWHERE);
    config
        .set("wal.bytes_max", "4 MiB")
        .set("wal.generation_bytes", "1 MiB")
        .set("wal.compression", "none");
    manager.asks(&mut config, 900);
    let gateway = Gateway::start(&config);
    let body = vec![b'x'; 500_000];
    poll("the log is full", seconds(30), || {
        let answer = gateway
            .client()
            .post("/v1/topics/t", "application/octet-stream", &body)
            .unwrap();
        (answer.status == 503).then_some(())
    });
    // It works as it should: a restart would cure nothing.
    poll("the status line says so", seconds(10), || {
        let told = manager.until("WATCHDOG=1").pop()?;
        told.contains("STATUS=takes no records: ").then_some(())
    });
}

fn systemd_is_told_when_the_lander_runs_and_ends() {
    let manager = Manager::new();
    let folder = tempfile::tempdir().unwrap();
    let mut config = Config::new(NOWHERE);
    lander::settings(&mut config).set("land.path", folder.path().join("landed.db").to_str().unwrap());
    manager.asks(&mut config, 900);
    let mut lander = Lander::start(&config);
    assert_eq!(manager.next().as_deref(), Some("READY=1\n"));
    let told = manager.until("WATCHDOG=1").pop().unwrap();
    assert!(told.contains("STATUS=Kafka is away, SQLite "), "{told}");
    assert!(lander.sigterm(seconds(20)).success());
    manager.until("STOPPING=1");
}

fn a_process_that_stands_still_feeds_no_watchdog() {
    let manager = Manager::new();
    let mut config = Config::new(NOWHERE);
    manager.asks(&mut config, 300);
    let gateway = Gateway::start(&config);
    manager.until("WATCHDOG=1");
    gateway.signal("-STOP");
    manager.socket.set_read_timeout(Some(seconds(1))).unwrap();
    // What it had said before goes first.
    let began = Instant::now();
    while manager.next().is_some() {
        assert!(began.elapsed() < seconds(5), "it goes on while it stands still");
    }
    gateway.signal("-CONT");
    manager.socket.set_read_timeout(Some(seconds(20))).unwrap();
    manager.until("WATCHDOG=1");
}

/// The command of the Dockerfile's HEALTHCHECK.
fn health_check() -> Vec<String> {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("Dockerfile");
    let text = fs::read_to_string(file).unwrap();
    let (_, check) = text.split_once("HEALTHCHECK").unwrap();
    let line = check.lines().find_map(|line| line.trim().strip_prefix("CMD "));
    serde_json::from_str(line.unwrap()).unwrap()
}

fn the_health_check_of_the_image_knows_a_gateway_that_lives() {
    let command = health_check();
    let check = |admin: &str| {
        let ended = Command::new(&command[0])
            .args(&command[1..])
            .env("TIDEGATE_ADMIN__LISTEN", admin)
            .output();
        ended.unwrap().status.success()
    };
    let mut gateway = Gateway::start(&Config::new(NOWHERE));
    assert!(check(&gateway.admin));
    gateway.sigkill();
    assert!(!check(&gateway.admin));

    let mut with_token = Config::new(NOWHERE);
    with_token.set("admin.token", "a-token-of-the-admin-listener");
    let gateway = Gateway::start(&with_token);
    assert!(check(&gateway.admin));
    gateway.signal("-STOP");
    assert!(!check(&gateway.admin), "a gateway that says nothing lives");
    gateway.signal("-CONT");
}
