//! nginx in front of a gateway, with the file of deploy/nginx: all but its addresses and paths as it is shipped. curl is
//! the client.

use std::collections::BTreeMap;
use std::fs;
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::support::certificates::Authority;
use crate::support::client::Answer;
use crate::support::daemon::Daemon;
use crate::support::gateway::{Config, Gateway, NOWHERE};
use crate::support::{FORM, free_port, is_root, poll, seconds, wait_until};

cases!["nginx":
    records_go_in_over_tls_and_the_answers_of_the_gateway_come_back [Nginx, Curl],
    a_body_that_is_too_large_is_413_whoever_says_so [Nginx, Curl],
    a_full_log_is_503_with_retry_after [Nginx, Curl],
    rates_count_the_clients_address_and_not_what_it_claims [Nginx, Curl],
    a_gateway_that_is_away_is_told_and_found_again_at_once [Nginx, Curl],
];

/// nginx over a gateway.
struct Nginx {
    daemon: Daemon,
    port: u16,
    ca: PathBuf,
}

impl Nginx {
    fn before(gateway: &Gateway) -> Self {
        let folder = tempfile::Builder::new().prefix("tidegate-nginx-").tempdir().unwrap();
        let (path, port) = (folder.path().to_owned(), free_port());
        let authority = Authority::new("a CA of this test");
        let (certificate, key) = authority.issue("127.0.0.1");
        let ca = path.join("ca.pem");
        fs::write(&ca, authority.pem()).unwrap();
        fs::write(path.join("certificate.pem"), certificate).unwrap();
        fs::write(path.join("key.pem"), key).unwrap();

        let shipped = Path::new(env!("CARGO_MANIFEST_DIR")).join("deploy/nginx/tidegate.conf");
        let text = fs::read_to_string(shipped).unwrap();
        // The addresses of version 6 are not the loopback's.
        let lines = text.lines().filter(|line| !line.trim_start().starts_with("listen ["));
        let mut text = lines.collect::<Vec<_>>().join("\n");
        for (from, to) in [
            ("server 127.0.0.1:4000 ", format!("server {} ", gateway.ingest)),
            ("listen 4443 ssl;", format!("listen 127.0.0.1:{port} ssl;")),
            (
                "/etc/nginx/tidegate/certificate.pem",
                path.join("certificate.pem").display().to_string(),
            ),
            (
                "/etc/nginx/tidegate/key.pem",
                path.join("key.pem").display().to_string(),
            ),
        ] {
            assert_eq!(text.matches(from).count(), 1, "{from} in the shipped file");
            text = text.replace(from, &to);
        }
        fs::write(path.join("tidegate.conf"), text).unwrap();
        let user = if is_root() { "user root root;" } else { "" };
        let kinds = ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"];
        let folders: String = kinds.iter().map(|kind| format!("{kind}_temp_path {kind};\n")).collect();
        let main = format!(
            "{user}\ndaemon off;\nworker_processes 1;\npid nginx.pid;\nerror_log error.log;\nevents {{}}\n\
             http {{\naccess_log off;\n{folders}include tidegate.conf;\n}}\n"
        );
        fs::write(path.join("nginx.conf"), main).unwrap();

        let mut command = Command::new("nginx");
        command
            .arg("-p")
            .arg(&path)
            .args(["-c", "nginx.conf", "-e", "error.log"]);
        let daemon = Daemon::new(folder);
        daemon.launch(&command, None);
        wait_until("nginx listens", seconds(20), || {
            assert!(daemon.runs(), "nginx ended: {}", daemon.console());
            TcpStream::connect(("127.0.0.1", port)).is_ok()
        });
        Self { daemon, port, ca }
    }

    /// What curl reads at a path with these arguments.
    #[track_caller]
    fn ask(&self, path: &str, arguments: &[&str]) -> Answer {
        let output = Command::new("curl")
            .args([
                "-sS",
                "-i",
                "--noproxy",
                "*",
                "--max-time",
                "20",
                "-H",
                "Expect:",
                "--cacert",
            ])
            .arg(&self.ca)
            .args(arguments)
            .arg(format!("https://127.0.0.1:{}{path}", self.port))
            .output()
            .unwrap();
        let text = String::from_utf8(output.stdout).unwrap();
        let Some((head, body)) = text.split_once("\r\n\r\n") else {
            panic!("{text:?} {:?}", String::from_utf8_lossy(&output.stderr))
        };
        let mut lines = head.lines();
        let status = lines.next().and_then(|line| line.split(' ').nth(1)).unwrap();
        let headers: BTreeMap<_, _> = lines
            .filter_map(|line| line.split_once(": "))
            .map(|(name, value)| (name.to_ascii_lowercase(), value.to_owned()))
            .collect();
        Answer {
            status: status.parse().unwrap(),
            headers,
            body: body.to_owned(),
        }
    }

    /// A file to send.
    fn file(&self, bytes: &[u8]) -> String {
        let path = self.daemon.folder.path().join("body");
        fs::write(&path, bytes).unwrap();
        path.to_str().unwrap().to_owned()
    }
}

impl Drop for Nginx {
    fn drop(&mut self) {
        // Its worker goes with it: SIGKILL would leave that behind.
        if self.daemon.runs() {
            self.daemon.end("-TERM", false);
        }
    }
}

fn behind_nginx() -> Config {
    let mut config = Config::new(NOWHERE);
    config.set("http.trusted_proxies", vec!["127.0.0.1"]);
    config
}

fn records_go_in_over_tls_and_the_answers_of_the_gateway_come_back() {
    let gateway = Gateway::start(&behind_nginx());
    let nginx = Nginx::before(&gateway);
    let stored = nginx.ask("/trip_pro", &["-d", "a=1&b=2&c=3"]);
    assert_eq!((stored.status, stored.body.as_str()), (200, "OK"), "{stored:?}");
    assert_eq!(stored.header("tidegate-seq"), "1");
    let batch = nginx.ask("/v1/topics/t", &["-H", "content-type: application/json", "-d", "[1,2]"]);
    assert_eq!(
        (batch.status, batch.json()["records"].as_u64()),
        (202, Some(2)),
        "{batch:?}"
    );
    let refused = nginx.ask("/trip_pro", &[]);
    assert_eq!((refused.status, refused.body.as_str()), (405, "Methods Error"));
    assert_eq!(refused.header("allow"), "POST");
    // As a stream, of a length that nobody knows beforehand.
    let file = nginx.file(&[b'x'; 300_000]);
    let streamed = nginx.ask(
        "/v1/topics/t",
        &[
            "-H",
            "content-type: text/plain",
            "-H",
            "transfer-encoding: chunked",
            "-d",
            &format!("@{file}"),
        ],
    );
    assert_eq!(streamed.status, 202, "{streamed:?}");
    // Almost as large as the gateway takes.
    let large = vec![serde_json::json!({ "a": "x".repeat(100_000) }); 160];
    let file = nginx.file(&serde_json::to_vec(&large).unwrap());
    let large = nginx.ask(
        "/v1/topics/t",
        &["-H", "content-type: application/json", "-d", &format!("@{file}")],
    );
    assert_eq!(
        (large.status, large.json()["records"].as_u64()),
        (202, Some(160)),
        "{large:?}"
    );
    assert_eq!(gateway.status()["wal"]["committed"].as_u64(), Some(164));
}

fn a_body_that_is_too_large_is_413_whoever_says_so() {
    let gateway = Gateway::start(&behind_nginx());
    let nginx = Nginx::before(&gateway);
    let send = |bytes: usize, header: &str| {
        let body = format!("@{}", nginx.file(&vec![b'x'; bytes]));
        let answer = nginx.ask(
            "/v1/topics/t",
            &["-H", "content-type: text/plain", "-H", header, "--data-binary", &body],
        );
        assert_eq!(
            (answer.status, answer.json()["status"].as_u64()),
            (413, Some(413)),
            "{answer:?}"
        );
        assert!(
            answer.header("content-type").starts_with("application/problem+json"),
            "{answer:?}"
        );
    };
    // By nginx, which knows the length; by either; by the gateway: a record that Kafka would refuse.
    send(17 << 20, "x-kind: known");
    send(17 << 20, "transfer-encoding: chunked");
    send(1 << 20, "x-kind: record");
    assert_eq!(gateway.status()["wal"]["committed"].as_u64(), Some(0));
}

fn a_full_log_is_503_with_retry_after() {
    let mut config = behind_nginx();
    config
        .set("wal.bytes_max", "4 MiB")
        .set("wal.generation_bytes", "1 MiB")
        .set("wal.compression", "none");
    let gateway = Gateway::start(&config);
    let nginx = Nginx::before(&gateway);
    let body = format!("@{}", nginx.file(&[b'x'; 500_000]));
    let full = poll("the log is full", seconds(30), || {
        let answer = nginx.ask(
            "/v1/topics/t",
            &["-H", "content-type: text/plain", "--data-binary", &body],
        );
        (answer.status != 202).then_some(answer)
    });
    assert_eq!(
        (full.status, full.json()["status"].as_u64()),
        (503, Some(503)),
        "{full:?}"
    );
    assert!(
        full.header("retry-after").parse::<u32>().is_ok_and(|after| after > 0),
        "{full:?}"
    );
}

fn rates_count_the_clients_address_and_not_what_it_claims() {
    let mut config = behind_nginx();
    config.set("http.requests_per_second_max_per_address", 1);
    let gateway = Gateway::start(&config);
    let nginx = Nginx::before(&gateway);
    let mut claimed = 0;
    let refused = poll("the address has sent too much", seconds(20), || {
        claimed += 1;
        let claim = format!("x-forwarded-for: 10.0.0.{claimed}");
        let answer = nginx.ask("/trip_pro", &["-H", &claim, "-d", "a=1&b=2&c=3"]);
        (answer.status != 200).then_some(answer)
    });
    assert_eq!(refused.status, 429, "{refused:?}");
    assert!(!refused.header("retry-after").is_empty(), "{refused:?}");
    let other = nginx.ask("/trip_pro", &["--interface", "127.0.0.2", "-d", "a=1&b=2&c=3"]);
    assert_eq!(other.status, 200, "another client: {other:?}");
}

fn a_gateway_that_is_away_is_told_and_found_again_at_once() {
    let mut config = behind_nginx();
    config.set("http.listen", format!("127.0.0.1:{}", free_port()));
    let mut gateway = Gateway::start(&config);
    let nginx = Nginx::before(&gateway);
    assert_eq!(nginx.ask("/trip_pro", &["-d", "a=1&b=2&c=3"]).status, 200);
    gateway.sigkill();
    for _ in 0..3 {
        let away = nginx.ask("/trip_pro", &["-d", "a=1&b=2&c=3"]);
        assert_eq!(
            (away.status, away.json()["status"].as_u64()),
            (502, Some(502)),
            "{away:?}"
        );
        assert_eq!(away.header("retry-after"), "5");
    }
    gateway.restart();
    assert_eq!(nginx.ask("/trip_pro", &["-d", "a=1&b=2&c=3"]).status, 200);
    assert_eq!(
        gateway.client().post("/trip_pro", FORM, b"a=1&b=2&c=3").unwrap().status,
        200
    );
}
