//! The OpenAPI document of the running gateway: whether it is one, and whether it is true. schemathesis makes requests from
//! it, those that it allows and those that it does not, and holds each answer against it.
//!
//! All checks of schemathesis are on. What JSON Schema has no words for is in tests/python/openapi_hooks.py.

use std::fs;
use std::path::PathBuf;
use std::process::{Command, Output};
use std::thread;

use serde_json::{Value, json};

use crate::access::Keys;
use crate::support::client::{Answer, agent, answer};
use crate::support::gateway::{Config, Gateway, NOWHERE};
use crate::support::{python, soak};

cases!["openapi":
    the_document_is_valid_and_asks_for_a_key_like_the_rest [Python],
    requests_made_from_it_find_nothing [Python],
    a_document_that_lies_is_found [Python],
];

/// How many requests are made at least, and the examples for each operation that come to as many in two runs. (20 ms of
/// processor for each request: ten thousand are a soak.)
const REQUESTS: (usize, &str) = (3_000, "60");
const REQUESTS_SOAK: (usize, &str) = (10_000, "250");

/// With a source for each kind of rule, whose records are refused when they break it.
fn declare(config: &mut Config) {
    config
        .source("plain", "plain", None)
        .source_with(
            "counted",
            "counted",
            None,
            "field_count = 3\nenforce = \"reject\"\ngroup = \"g1\"",
        )
        .source_with(
            "named",
            "named",
            Some("id"),
            "fields = [\"id\", \"text\"]\nenforce = \"reject\"\ngroup = \"g2\"",
        );
}

fn get(gateway: &Gateway, path: &str, key: Option<&str>) -> Answer {
    let request = agent().get(format!("http://{}{path}", gateway.ingest));
    let request = match key {
        Some(key) => request.header("x-api-key", key),
        None => request,
    };
    answer(request.call()).unwrap()
}

/// A gateway, its document, and who asks it.
struct Described {
    gateway: Gateway,
    document: Value,
    key: Option<String>,
    folder: tempfile::TempDir,
}

impl Described {
    fn start(mut config: Config, key: Option<String>) -> Self {
        declare(&mut config);
        let gateway = Gateway::start(&config);
        let document = get(&gateway, "/openapi.json", key.as_deref()).json();
        let folder = tempfile::tempdir().unwrap();
        Self {
            gateway,
            document,
            key,
            folder,
        }
    }

    /// That everybody may ask.
    fn open() -> Self {
        Self::start(Config::new(NOWHERE), None)
    }

    /// That asks for a key, and says what is left of a rate.
    fn guarded() -> Self {
        let keys = Keys::new();
        let key = keys.create("all", &[]);
        let mut config = keys.config();
        config
            .set("http.requests_per_second_max_per_key", 100_000)
            .set("http.requests_per_second_max_per_address", 100_000);
        let mut described = Self::start(config, Some(key));
        // With the file of keys.
        described.folder = keys.folder;
        described
    }

    /// The document as a file.
    fn file(&self) -> PathBuf {
        let path = self.folder.path().join("openapi.json");
        fs::write(&path, self.document.to_string()).unwrap();
        path
    }

    /// Requests made from the document, the same ones each time, sent one after another.
    fn requests(&self, examples: &str, more: &[&str]) -> Output {
        let mut command = Command::new(python());
        command.args(["-m", "schemathesis.cli", "run"]).arg(self.file());
        command.args(["--url", &format!("http://{}", self.gateway.ingest)]);
        command.args(["--checks", "all", "--continue-on-failure", "--generation-deterministic"]);
        command.args(["--workers", "1", "--max-examples", examples]);
        // A machine that has other things to do is no finding.
        command.args(["--suppress-health-check", "too_slow", "--request-timeout", "60"]);
        // The request that finds something is shown as it was sent.
        command.args(["--no-color", "--output-sanitize", "false"]);
        if let Some(key) = &self.key {
            command.args(["--header", &format!("Authorization: Bearer {key}")]);
        }
        let hooks = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/python");
        command.args(more).current_dir(&self.folder);
        command
            .env("PYTHONPATH", hooks)
            .env("SCHEMATHESIS_HOOKS", "openapi_hooks");
        command.env("PYTHONHASHSEED", "0").env("PYTHONDONTWRITEBYTECODE", "1");
        command.output().unwrap()
    }
}

fn said(output: &Output) -> String {
    let (stdout, stderr) = (&output.stdout, &output.stderr);
    format!("{}{}", String::from_utf8_lossy(stdout), String::from_utf8_lossy(stderr))
}

fn the_document_is_valid_and_asks_for_a_key_like_the_rest() {
    let described = [Described::open(), Described::guarded()];
    for described in &described {
        let mut command = Command::new(python());
        let output = command
            .args(["-m", "openapi_spec_validator"])
            .arg(described.file())
            .output();
        let output = output.unwrap();
        assert!(output.status.success(), "{}", said(&output));
        assert_eq!(described.document["openapi"], "3.1.0");
        // The control: it is a document of this version and of no other.
        let mut command = Command::new(python());
        command.args(["-m", "openapi_spec_validator", "--schema", "3.0"]);
        let output = command.arg(described.file()).output().unwrap();
        assert!(!output.status.success(), "{}", said(&output));
    }
    let [open, guarded] = described;
    for (described, is_guarded) in [(&open, false), (&guarded, true)] {
        assert_eq!(described.document.get("security").is_some(), is_guarded);
        let stranger = get(&described.gateway, "/openapi.json", None);
        assert_eq!(stranger.status, if is_guarded { 401 } else { 200 });
        assert_eq!(
            get(&described.gateway, "/openapi.json", described.key.as_deref()).status,
            200
        );
    }
    let posted = open
        .gateway
        .client()
        .post("/openapi.json", "application/json", b"{}")
        .unwrap();
    assert_eq!((posted.status, posted.header("allow")), (405, "GET, HEAD"));
}

fn requests_made_from_it_find_nothing() {
    let (least, examples) = if soak() { REQUESTS_SOAK } else { REQUESTS };
    let run = |name: &str, described: &Described| -> usize {
        let output = described.requests(examples, &[]);
        let said = said(&output);
        assert!(output.status.success(), "{name}: {said}");
        described.gateway.assert_running();
        let line = said.lines().find(|line| line.contains(" generated, "));
        let line = line.unwrap_or_else(|| panic!("no count: {said}")).trim();
        println!("{name}: {line}");
        line.split(' ').next().unwrap().parse().unwrap()
    };
    let (open, guarded) = (Described::open(), Described::guarded());
    let count = thread::scope(|scope| {
        let beside = scope.spawn(|| run("everybody may send", &open));
        run("with a key", &guarded) + beside.join().unwrap()
    });
    assert!(count >= least, "only {count} requests");
}

fn a_document_that_lies_is_found() {
    let mut described = Described::guarded();
    let operation = |document: &mut Value, path: &str, method: &str, rest: &str, value: Value| {
        let path = path.replace('/', "~1");
        let place = document.pointer_mut(&format!("/paths/{path}/{method}{rest}")).unwrap();
        *place = value;
    };
    let document = &mut described.document;
    // A status that is not told, a media type, a shape, a body that is not taken, and that everybody may ask.
    let only = |status: &str, answer: Value| json!({status: answer});
    operation(
        document,
        "/v3/clusters",
        "get",
        "/responses",
        only("404", json!({"description": "x"})),
    );
    let html = json!({"description": "x", "content": {"text/html": {}}});
    operation(document, "/hello", "get", "/responses/200", html);
    let list = json!({"description": "x", "content": {"application/json": {"schema": {"type": "array"}}}});
    operation(document, "/v1/topics/{topic}", "post", "/responses/202", list);
    let any = json!({"text/plain": {"schema": {"type": "object"}}});
    operation(document, "/plain", "post", "/requestBody/content", any);
    let output = described.requests("1", &["--phases", "coverage"]);
    let said = said(&output);
    assert_eq!(output.status.code(), Some(1), "{said}");
    for finding in [
        "Undocumented status code",
        "Undocumented Content-Type",
        "Response violates schema",
        "Schema-valid request rejected",
    ] {
        assert!(said.contains(finding), "{finding}: {said}");
    }
}
