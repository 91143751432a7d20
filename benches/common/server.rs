//! The servers that are measured, each a process of its own: the gateway as it is shipped, and one that does nothing.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// A bootstrap address where nobody listens: Kafka is away.
pub const NOWHERE: &str = "127.0.0.1:9";
/// Says that this process is the no-op server, and on which port.
const NO_OP: &str = "TIDEGATE_BENCH_NO_OP";
/// Where the no-op server reads and says OK, and where it parses first.
pub const SOURCE: &str = "/financial_pro";
pub const PARSE: &str = "/parse";

/// Killed when it is dropped, and its folder removed.
pub struct Server {
    child: Child,
    pub port: u16,
    pub scheme: &'static str,
    admin: u16,
    _folder: tempfile::TempDir,
}

impl Drop for Server {
    fn drop(&mut self) {
        self.child.kill().ok();
        self.child.wait().ok();
    }
}

impl Server {
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    pub fn signal(&self, signal: &str) {
        let pid = self.pid().to_string();
        assert!(Command::new("kill").args([signal, &pid]).status().unwrap().success());
    }

    pub fn url(&self, path: &str) -> String {
        format!("{}://127.0.0.1:{}{path}", self.scheme, self.port)
    }

    /// The sum of the samples of this name that the admin listener shows.
    pub fn metric(&self, name: &str) -> f64 {
        let url = format!("http://127.0.0.1:{}/metrics", self.admin);
        let text = ureq::get(&url).call().unwrap().body_mut().read_to_string().unwrap();
        let samples = text.lines().filter_map(|line| line.strip_prefix(name));
        samples
            .filter(|rest| rest.starts_with([' ', '{']))
            .filter_map(|rest| rest.rsplit(' ').next()?.parse::<f64>().ok())
            .sum()
    }

    fn start(mut command: Command, port: u16, admin: u16, folder: tempfile::TempDir) -> Self {
        let child = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        let limit = Instant::now() + Duration::from_secs(20);
        while TcpStream::connect(("127.0.0.1", port)).is_err() {
            assert!(Instant::now() < limit, "the server did not come up");
            std::thread::sleep(Duration::from_millis(20));
        }
        Self {
            child,
            port,
            scheme: "http",
            admin,
            _folder: folder,
        }
    }
}

/// The disk that is measured: `TIDEGATE_BENCH_DIR`, by default that of `target`.
pub fn base() -> PathBuf {
    std::env::var_os("TIDEGATE_BENCH_DIR").map_or_else(|| "target".into(), PathBuf::from)
}

pub fn folder() -> tempfile::TempDir {
    tempfile::tempdir_in(base()).unwrap()
}

fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

/// The gateway with a new log. Kafka is away.
pub fn tidegate() -> Server {
    tidegate_in(folder(), NOWHERE, &[])
}

/// The gateway with the log in the folder's `wal`, in front of this Kafka, with these variables of its environment.
pub fn tidegate_in(folder: tempfile::TempDir, bootstrap: &str, variables: &[(&str, &Path)]) -> Server {
    let (port, admin) = (free_port(), free_port());
    let mut command = Command::new(env!("CARGO_BIN_EXE_tidegate"));
    command
        .current_dir(folder.path())
        .args(["serve", "--listen", &format!("127.0.0.1:{port}")])
        .args(["--admin-listen", &format!("127.0.0.1:{admin}")])
        .args(["--bootstrap-servers", bootstrap, "--wal", "wal"])
        .envs(variables.iter().copied());
    Server::start(command, port, admin, folder)
}

/// [`tidegate`] with this certificate and its key, as PEM.
pub fn secure((certificate, key): (Vec<u8>, Vec<u8>)) -> Server {
    let folder = folder();
    let at = folder.path().canonicalize().unwrap();
    let (certificate_file, key_file) = (at.join("certificate.pem"), at.join("key.pem"));
    std::fs::write(&certificate_file, certificate).unwrap();
    std::fs::write(&key_file, key).unwrap();
    let variables = [
        ("TIDEGATE_HTTP__TLS_CERTIFICATE_FILE", certificate_file.as_path()),
        ("TIDEGATE_HTTP__TLS_KEY_FILE", key_file.as_path()),
    ];
    let mut server = tidegate_in(folder, NOWHERE, &variables);
    server.scheme = "https";
    server
}

/// [`serve_if_asked`] in a process of its own.
pub fn no_op() -> Server {
    let port = free_port();
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.env(NO_OP, port.to_string());
    Server::start(command, port, 0, folder())
}

/// The first call of a benchmark's `main`: a process that was started as the no-op server serves, and does not come back.
///
/// axum and hyper as they come, and nothing else.
pub fn serve_if_asked() {
    use axum::{Router, routing::post};
    let Ok(port) = std::env::var(NO_OP) else { return };
    let port: u16 = port.parse().unwrap();
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .unwrap();
    runtime.block_on(async move {
        let read = |body: bytes::Bytes| async move {
            std::hint::black_box(body);
            "OK"
        };
        let parse = |body: bytes::Bytes| async move {
            std::hint::black_box(parsed(&body));
            "OK"
        };
        let app = Router::new().route("/{source}", post(read)).route(PARSE, post(parse));
        let app = app.layer(axum::extract::DefaultBodyLimit::disable());
        let socket = tokio::net::TcpSocket::new_v4().unwrap();
        socket.set_reuseaddr(true).unwrap();
        socket.bind(([127, 0, 0, 1], port).into()).unwrap();
        // As many as the gateway lets wait: with tokio's 128 a burst would wait a second for its next SYN.
        let listener = socket.listen(4096).unwrap();
        loop {
            let (socket, _) = listener.accept().await.unwrap();
            socket.set_nodelay(true).unwrap();
            let service = hyper_util::service::TowerToHyperService::new(app.clone());
            tokio::spawn(async move {
                let io = hyper_util::rt::TokioIo::new(socket);
                hyper::server::conn::http1::Builder::new()
                    .serve_connection(io, service)
                    .await
                    .ok();
            });
        }
    })
}

/// The least that a server can do with lines of JSON: it finds their ends and checks that each is JSON in UTF-8, and keeps
/// nothing. How many they are.
pub fn parsed(lines: &[u8]) -> usize {
    let (mut from, mut records) = (0, 0);
    for to in memchr::memchr_iter(b'\n', lines).chain([lines.len()]) {
        let line = lines.get(from..to).unwrap_or_default();
        from = to + 1;
        if !line.is_empty() {
            serde_json::from_slice::<&serde_json::value::RawValue>(line).unwrap();
            records += 1;
        }
    }
    records
}
