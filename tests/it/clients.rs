//! docs/clients.md: each example as it stands there, against a gateway that is busy at first, is killed, loses answers on
//! the way and takes a few requests a second. Every record is in the log once.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use serde_json::Value;

use crate::access::Keys;
use crate::support::gateway::{Gateway, Killed};
use crate::support::proxy::{Line, Proxy};
use crate::support::raw::{connect, send};
use crate::support::{free_port, poll, python, seconds, wait_until};

cases!["clients":
    curl_stores_each_record_once [Curl],
    python_stores_each_record_once [Python],
    javascript_stores_each_record_once [Node],
];

/// Requests of one example: more than the rate below takes at once.
const RECORDS: u64 = 25;
/// At once it takes ten times as many.
const PER_SECOND_MAX: i64 = 1;

/// The example in a language, as the page has it.
fn example(language: &str) -> String {
    let page = fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/docs/clients.md")).unwrap();
    let fence = format!("```{language}\n");
    let mut blocks = page.split(&fence).skip(1);
    let block = blocks
        .next()
        .unwrap_or_else(|| panic!("no {language} in docs/clients.md"));
    assert!(
        blocks.next().is_none(),
        "a second example in {language} that nobody runs"
    );
    block.split_once("```").unwrap().0.to_owned()
}

fn curl_stores_each_record_once() {
    // The example reads a file and ends; each record is one.
    stores_each_record_once("sh", |example, folder| {
        let mut bash = Command::new("bash");
        bash.args(["-euo", "pipefail", "-c"]);
        let each = format!(
            "for file in {}/*.json; do\nrecords=$file\n{example}\necho\ndone",
            folder.display()
        );
        bash.arg(each);
        bash
    });
}

fn python_stores_each_record_once() {
    stores_each_record_once("python", |example, folder| {
        program(&python(), example, &folder.join("send.py"))
    });
}

fn javascript_stores_each_record_once() {
    stores_each_record_once("js", |example, folder| {
        program(Path::new("node"), example, &folder.join("send.mjs"))
    });
}

fn program(interpreter: &Path, example: &str, file: &Path) -> Command {
    fs::write(file, example).unwrap();
    let mut command = Command::new(interpreter);
    command.arg(file);
    command
}

fn stores_each_record_once(language: &str, command: impl FnOnce(&str, &Path) -> Command) {
    let keys = Keys::new();
    let (key, other) = (keys.create("client", &[]), keys.create("other", &[]));
    let mut config = keys.config();
    let port = free_port();
    config
        .set("http.listen", format!("127.0.0.1:{port}"))
        .set("http.in_flight_max", 1)
        .set("http.requests_per_second_max_per_key", PER_SECOND_MAX);
    let mut gateway = Gateway::start(&config);
    let proxy = Proxy::start(port);
    let folder = tempfile::tempdir().unwrap();
    let command = command(&example(language), folder.path());
    let said = folder.path().join("said");

    // Another request has the only place.
    let holder = hold(&gateway, &other);
    let mut client = start(command, proxy.port(), &key, folder.path(), &said);
    let refused = |gateway: &Gateway, reason: &str| {
        let metrics = gateway.metrics();
        metrics[&format!("tidegate_ingest_rejected_total{{reason=\"{reason}\"}}")]
    };
    wait_until("a 503", seconds(60), || refused(&gateway, "in_flight") > 0.0);
    drop(holder);

    // Answers are lost halfway, and the gateway is killed before its client has a whole one.
    let committed = |gateway: &Gateway| gateway.metric("tidegate_wal_committed_sequence");
    wait_until("a few records", seconds(60), || committed(&gateway) >= 3.0);
    proxy.set(Line::BreaksAnswers);
    // It came again: it had no whole answer, and has none now.
    let replayed = |gateway: &Gateway| gateway.metric("tidegate_ingest_replayed_total");
    wait_until("a record that is sent again", seconds(60), || replayed(&gateway) > 0.0);
    gateway.sigkill();
    proxy.set(Line::Cut);
    gateway.restart();
    proxy.set(Line::Open);

    let status = poll("the example has ended", seconds(120), || client.0.try_wait().unwrap());
    let said = fs::read_to_string(said).unwrap();
    assert!(status.success(), "{status}: {said}");
    assert!(refused(&gateway, "rate") > 0.0, "no 429");
    assert!(replayed(&gateway) > 0.0, "no retry of what was stored");
    let receipts: Vec<u64> = said.lines().filter_map(first_seq).collect();

    gateway.sigterm(seconds(60));
    let wal = gateway.wal();
    let (code, exported, errors) = gateway.run(&["wal", "export", "--json", "--wal", wal.to_str().unwrap()]);
    assert_eq!(code, 0, "{errors}");
    let mut stored = BTreeMap::<u64, Vec<u64>>::new();
    for line in exported.lines() {
        let record: Value = serde_json::from_str(line).unwrap();
        let value: Value = serde_json::from_str(record["value"].as_str().unwrap()).unwrap();
        let places = stored.entry(value["n"].as_u64().unwrap()).or_default();
        places.push(record["seq"].as_u64().unwrap());
    }
    // In the order of the records: the first was answered with the first sequence.
    let once: Vec<Vec<u64>> = receipts.iter().map(|seq| vec![*seq]).collect();
    assert_eq!(
        stored.keys().copied().collect::<Vec<_>>(),
        (1..=RECORDS).collect::<Vec<_>>()
    );
    assert_eq!(stored.into_values().collect::<Vec<_>>(), once, "{said}");
}

/// A request that goes on until it is dropped.
fn hold(gateway: &Gateway, key: &str) -> std::net::TcpStream {
    let mut stream = connect(&gateway.ingest);
    let head = format!(
        "POST /v1/topics/t HTTP/1.1\r\nhost: x\r\nx-api-key: {key}\r\ncontent-type: application/json\r\ncontent-length: 9\r\n\r\n{{"
    );
    assert!(send(&mut stream, head.as_bytes()));
    wait_until("the place is taken", seconds(10), || {
        gateway.metric("tidegate_ingest_in_flight") >= 1.0
    });
    stream
}

/// With a line for each record on its standard input, and each in a file of its own.
fn start(mut command: Command, port: u16, key: &str, folder: &Path, said: &PathBuf) -> Killed {
    let records: Vec<String> = (1..=RECORDS).map(|n| format!("{{\"n\":{n}}}\n")).collect();
    for (n, record) in records.iter().enumerate() {
        fs::write(folder.join(format!("{n:04}.json")), record).unwrap();
    }
    let input = folder.join("records");
    fs::write(&input, records.concat()).unwrap();
    let said = fs::File::create(said).unwrap();
    let child: Child = command
        .env("TIDEGATE_URL", format!("http://127.0.0.1:{port}"))
        .env("TIDEGATE_KEY", key)
        .current_dir(folder)
        .stdin(Stdio::from(fs::File::open(input).unwrap()))
        .stdout(said.try_clone().unwrap())
        .stderr(said)
        .spawn()
        .unwrap();
    Killed(child)
}

/// The sequence in the receipt that a line ends with; curl writes the refusals before it, too.
fn first_seq(line: &str) -> Option<u64> {
    let receipt = line.get(line.rfind("{\"wal\"")?..)?;
    let receipt: Value = serde_json::from_str(receipt).ok()?;
    receipt["first_seq"].as_u64()
}
