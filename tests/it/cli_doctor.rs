//! `tidegate doctor` against the real thing: a machine where all is well, one where nothing works yet, and each of the
//! traps in between. What it says is read as JSON; that it leaves nothing behind is looked at.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::time::Instant;

use serde_json::Value;

use crate::cli::{Ended, run};
use crate::support::certificates::Authority;
use crate::support::gateway::{Config, Gateway, NOWHERE, command};
use crate::support::kafka::Kafka;
use crate::support::postgres::{PASSWORD, Postgres};
use crate::support::store::Store;
use crate::support::{FORM, free_port, seconds, unique};

cases!["cli::doctor":
    all_is_well_with_kafka_and_a_database [Kafka],
    where_nothing_works_each_failure_says_what_to_do [],
    a_wrong_configuration_is_exit_2_and_the_disk_is_looked_at [],
    memory_is_no_disk [],
    an_advertised_name_that_does_not_resolve_is_named [OwnKafka],
    an_advertised_port_that_refuses_is_named [OwnKafka],
    a_topic_that_is_missing_or_too_small_is_told [Kafka],
    a_gateway_that_runs_is_asked_and_its_log_left_alone [],
    a_server_that_wants_another_password_is_told_without_it [Postgres],
    what_is_no_database_is_told [],
    tls_and_login_fail_with_their_reasons [OwnKafka],
    text_is_for_people [],
];

/// A configuration of which nothing is there yet: free ports, a folder of its own.
fn config(folder: &Path, bootstrap: &str) -> Config {
    let mut config = Config::new(bootstrap);
    for key in ["http.listen", "admin.listen", "land.listen"] {
        config.set(key, format!("127.0.0.1:{}", free_port()));
    }
    config.set("wal.path", folder.join("wal").to_str().unwrap());
    config.set("land.path", folder.join("landed/rows.db").to_str().unwrap());
    config
}

/// What `tidegate doctor --json` said.
struct Said {
    ended: Ended,
    lines: Vec<BTreeMap<String, String>>,
}

fn doctor(config: &str) -> Said {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("doctor.toml");
    fs::write(&file, config).unwrap();
    let ended = run(
        folder.path(),
        command(),
        &["--config", file.to_str().unwrap(), "doctor", "--json"],
    );
    assert!(!ended.stderr.contains("panicked"), "{ended:?}");
    let lines = ended
        .stdout
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    Said { ended, lines }
}

impl Said {
    /// There is such a line, with all of `words`, and what to do unless it is ok.
    #[track_caller]
    fn says(&self, section: &str, check: &str, verdict: &str, words: &[&str]) {
        let of = |line: &&BTreeMap<String, String>| line["section"] == section && line["check"] == check;
        let found = self.lines.iter().filter(of).find(|line| {
            let text = format!("{} {} {}", line["found"], line["means"], line["do"]);
            line["verdict"] == verdict && words.iter().all(|words| text.contains(words))
        });
        assert!(
            found.is_some(),
            "no {verdict} of {section}, {check} with {words:?} in {}",
            self.ended.stdout
        );
    }

    /// Every failure says what it means and what to do, and these are all: section and check.
    #[track_caller]
    fn fails(&self, code: i32, failures: &[(&str, &str)]) {
        let failed = self.lines.iter().filter(|line| line["verdict"] == "failure");
        let failed: Vec<_> = failed
            .inspect(|line| assert!(!line["means"].is_empty() && !line["do"].is_empty(), "{line:?}"))
            .map(|line| (line["section"].as_str(), line["check"].as_str()))
            .collect();
        assert_eq!(failed, failures, "{}", self.ended.stdout);
        assert_eq!(self.ended.code, Some(code), "{:?}", self.ended);
    }
}

/// Every file below, with its size, mode and time of change.
fn contents(folder: &Path) -> BTreeMap<PathBuf, (u64, u32, i64)> {
    let mut found = BTreeMap::new();
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        let (path, metadata) = (entry.path(), entry.metadata().unwrap());
        if metadata.is_dir() {
            found.extend(contents(&path));
        }
        let of_file = if metadata.is_dir() { 0 } else { metadata.ctime_nsec() };
        found.insert(path, (metadata.size(), metadata.mode(), of_file));
    }
    found
}

fn all_is_well_with_kafka_and_a_database() {
    let kafka = Kafka::shared();
    let store = Store::sqlite();
    let folder = tempfile::tempdir().unwrap();
    let topic = unique("well");
    kafka.create_topic(&topic, 2, &[]);
    let mut config = config(folder.path(), kafka.bootstrap());
    config
        .set("land.path", store.file().to_str().unwrap())
        .set("http.topics", toml::Value::Array(vec!["*".into()]))
        .landed("well", &topic, &[("field_count", 1.into())]);
    let said = doctor(&config.text());
    said.fails(0, &[]);
    assert_eq!(said.ended.stderr, "");
    said.says("log disk", "folder", "ok", &["is not there yet"]);
    said.says("log disk", "space", "ok", &["free"]);
    said.says("kafka", "login", "ok", &["1 broker"]);
    said.says("kafka", "advertised by 1", "ok", &[kafka.bootstrap()]);
    // One broker is all that a test has.
    said.says(
        "kafka",
        &format!("topic {topic}"),
        "warning",
        &["replication factor 1", "wal.retain"],
    );
    said.says("database", "SQLite", "ok", &["the lander makes it"]);
    assert_eq!(contents(folder.path()), BTreeMap::new(), "nothing was made");
}

fn where_nothing_works_each_failure_says_what_to_do() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("file");
    fs::write(&file, "").unwrap();
    let bootstrap = format!("{NOWHERE},kafka-node-1.invalid:9092");
    let mut config = config(folder.path(), &bootstrap);
    config
        .set("wal.path", file.to_str().unwrap())
        .set("land.sink", "postgres")
        .set(
            "land.url",
            format!("postgres://ann:hunter2@127.0.0.1:{}/rows", free_port()),
        )
        .property("sasl.pasword", "hunter3");
    let started = Instant::now();
    let said = doctor(&config.text());
    assert!(started.elapsed() < seconds(60), "{:?}", started.elapsed());
    said.fails(
        3,
        &[
            ("log disk", "folder"),
            ("kafka", "properties"),
            ("kafka", "broker 127.0.0.1:9"),
            ("kafka", "broker kafka-node-1.invalid:9092"),
            ("database", "PostgreSQL"),
        ],
    );
    said.says("log disk", "folder", "failure", &["no folder", "move that file away"]);
    said.says("kafka", "properties", "failure", &["sasl.pasword"]);
    said.says(
        "kafka",
        "broker 127.0.0.1:9",
        "failure",
        &["connection refused", "start the broker"],
    );
    said.says(
        "kafka",
        "broker kafka-node-1.invalid:9092",
        "failure",
        &["cannot resolve", "/etc/hosts"],
    );
    said.says(
        "database",
        "PostgreSQL",
        "failure",
        &["ann@127.0.0.1", "start the database"],
    );
    let all = format!("{}{}", said.ended.stdout, said.ended.stderr);
    assert!(!all.contains("hunter"), "{all}");

    config.set("kafka.bootstrap_servers", "");
    let said = doctor(&config.text());
    said.says(
        "kafka",
        "brokers",
        "failure",
        &["kafka.bootstrap_servers is empty", "--bootstrap-servers"],
    );
    assert_eq!(said.ended.code, Some(3));
}

fn a_wrong_configuration_is_exit_2_and_the_disk_is_looked_at() {
    let folder = tempfile::tempdir().unwrap();
    let wal = folder.path().join("wal");
    fs::create_dir(&wal).unwrap();
    fs::set_permissions(&wal, fs::Permissions::from_mode(0o755)).unwrap();
    let mut config = config(folder.path(), NOWHERE);
    config.set("wal.bytes_max", "much").set("http.listen", "192.0.2.1:4000");
    let said = doctor(&config.text());
    assert_eq!(said.ended.code, Some(2), "{:?}", said.ended);
    said.says(
        "configuration",
        "value",
        "failure",
        &["doctor.toml:", "wal.bytes_max", "much"],
    );
    // The folder that the file names, although another line of it is wrong.
    said.says("log disk", "folder", "ok", &[wal.to_str().unwrap()]);
    said.says("log disk", "permissions", "warning", &["0755", "chmod 700"]);
    said.says("configuration", "value", "failure", &["allow_anonymous"]);

    let said = doctor("this is [no TOML\n");
    assert_eq!(said.ended.code, Some(2), "{:?}", said.ended);
    said.says("configuration", "file", "failure", &["doctor.toml:1"]);
    said.says("log disk", "space", "ok", &["free"]);

    let ended = run(folder.path(), command(), &["--config", "/nowhere.toml", "doctor"]);
    assert!(
        ended.code == Some(2) && ended.stdout.contains("log disk\n"),
        "{ended:?}"
    );
    assert!(ended.stdout.contains("/nowhere.toml"), "{ended:?}");
}

fn memory_is_no_disk() {
    let mounts = fs::read_to_string("/proc/self/mounts").unwrap();
    if !mounts.lines().any(|line| line.starts_with("tmpfs /dev/shm ")) {
        return;
    }
    let folder = tempfile::Builder::new()
        .prefix("tidegate-")
        .tempdir_in("/dev/shm")
        .unwrap();
    let said = doctor(&config(folder.path(), NOWHERE).text());
    said.says(
        "log disk",
        "file system",
        "failure",
        &["tmpfs", "lost when this machine restarts"],
    );
    assert_eq!(said.ended.code, Some(3));
    assert_eq!(contents(folder.path()), BTreeMap::new());
}

fn an_advertised_name_that_does_not_resolve_is_named() {
    let kafka = Kafka::private_advertising("kafka-node-1.invalid");
    let folder = tempfile::tempdir().unwrap();
    let said = doctor(&config(folder.path(), kafka.bootstrap()).text());
    let (_, port) = kafka.bootstrap().split_once(':').unwrap();
    let name = format!("broker 1 advertises kafka-node-1.invalid:{port}, a name that this machine cannot resolve");
    said.says(
        "kafka",
        "advertised by 1",
        "failure",
        &[&name, "set advertised.listeners", "/etc/hosts"],
    );
    said.says("kafka", "login", "ok", &["1 broker"]);
    said.says("kafka", "topics", "warning", &["not looked at", "run doctor again"]);
    said.fails(3, &[("kafka", "advertised by 1")]);
}

fn an_advertised_port_that_refuses_is_named() {
    let kafka = Kafka::private_advertising("127.0.0.1:1");
    let folder = tempfile::tempdir().unwrap();
    let said = doctor(&config(folder.path(), kafka.bootstrap()).text());
    said.says("kafka", "login", "ok", &["1 broker"]);
    said.says(
        "kafka",
        "advertised by 1",
        "failure",
        &[
            "broker 1 advertises 127.0.0.1:1",
            "connection refused",
            "stay safe in the log",
        ],
    );
    said.says("kafka", "topics", "warning", &["not looked at"]);
    said.fails(3, &[("kafka", "advertised by 1")]);
}

fn a_topic_that_is_missing_or_too_small_is_told() {
    let kafka = Kafka::shared();
    let folder = tempfile::tempdir().unwrap();
    let (small, missing, plain) = (unique("small"), unique("missing"), unique("plain"));
    kafka.create_topic(&small, 1, &[("max.message.bytes", "20000")]);
    let mut config = config(folder.path(), kafka.bootstrap());
    config
        .set(
            "http.topics",
            toml::Value::Array(vec![plain.as_str().into(), "other-*".into()]),
        )
        .landed("small", &small, &[])
        .landed("missing", &missing, &[]);
    let said = doctor(&config.text());
    let (missing, plain) = (format!("topic {missing}"), format!("topic {plain}"));
    said.fails(3, &[("kafka", &missing), ("kafka", &plain)]);
    said.says(
        "kafka",
        &missing,
        "failure",
        &["no such topic", "kafka-topics.sh --create"],
    );
    said.says(
        "kafka",
        &format!("topic {small}"),
        "warning",
        &["20000", "921600", "max.message.bytes=925696"],
    );
    // The look made none.
    let again = doctor(&config.text());
    again.says("kafka", &missing, "failure", &["no such topic"]);
    assert_eq!(kafka.count(&missing), None);
}

fn a_gateway_that_runs_is_asked_and_its_log_left_alone() {
    let folder = tempfile::tempdir().unwrap();
    let mut config = config(folder.path(), NOWHERE);
    let mut gateway = Gateway::start(&config);
    let answer = gateway.client().post("/trip_pro", FORM, b"a=1").unwrap();
    assert_eq!(answer.status, 200, "{answer:?}");
    config.set("wal.path", gateway.wal().to_str().unwrap());
    let said = doctor(&config.text());
    said.says("log disk", "in use", "ok", &[&format!("process {}", gateway.pid())]);
    said.says("log disk", "permissions", "ok", &["0700"]);
    said.says("listeners", "http.listen", "ok", &["taken by the gateway"]);
    said.says("listeners", "gateway", "warning", &["1 record", "does not reach Kafka"]);
    said.fails(3, &[("kafka", "broker 127.0.0.1:9")]);

    gateway.sigkill();
    let before = contents(&gateway.wal());
    let said = doctor(&config.text());
    said.says("log disk", "in use", "ok", &["no gateway has the log open"]);
    said.says("log disk", "identity", "ok", &["the log "]);
    said.says("log disk", "damage", "ok", &["none shows"]);
    assert_eq!(contents(&gateway.wal()), before, "the log is as it was");

    // Without the witness nobody knows what was committed: seen, and not made anew.
    let witness = gateway.wal().join("witness");
    let away = folder.path().join("witness");
    fs::rename(&witness, &away).unwrap();
    let said = doctor(&config.text());
    said.says(
        "log disk",
        "damage",
        "failure",
        &["the witness is missing", "tidegate wal verify"],
    );
    assert!(!witness.exists());
    fs::rename(&away, &witness).unwrap();
    gateway.restart();
    assert_eq!(gateway.status()["wal"]["committed"], Value::from(1));
}

fn a_server_that_wants_another_password_is_told_without_it() {
    let postgres = Postgres::shared();
    let database = postgres.database();
    let folder = tempfile::tempdir().unwrap();
    let mut config = config(folder.path(), NOWHERE);
    config
        .set("land.sink", "postgres")
        .set("land.url", postgres.url(&database));
    let said = doctor(&config.text());
    said.says("database", "PostgreSQL", "ok", &["UTF8", "0 of 6 tables"]);
    let tables = "SELECT count(*) FROM pg_class WHERE relnamespace = 'public'::regnamespace";
    assert_eq!(postgres.query(&database, tables), [["0"]], "nothing was made");

    let url = postgres.url(&database).replace(PASSWORD, "of-somebody-else");
    let said = doctor(&config.set("land.url", url).text());
    said.says(
        "database",
        "PostgreSQL",
        "failure",
        &["password authentication failed", "land.url"],
    );
    said.fails(3, &[("kafka", "broker 127.0.0.1:9"), ("database", "PostgreSQL")]);
    assert!(!said.ended.stdout.contains("of-somebody-else"), "{}", said.ended.stdout);

    // A user who may look and make nothing.
    let reader = unique("reader").replace('.', "_").to_lowercase();
    postgres.query(&database, &format!("CREATE USER {reader} PASSWORD '{PASSWORD}'"));
    postgres.query(&database, "REVOKE CREATE ON SCHEMA public FROM PUBLIC");
    let said = doctor(&config.set("land.url", postgres.url_of(&reader, &database)).text());
    said.says(
        "database",
        "PostgreSQL",
        "failure",
        &["may not make tables", "GRANT CREATE, USAGE ON SCHEMA"],
    );
}

fn what_is_no_database_is_told() {
    let folder = tempfile::tempdir().unwrap();
    let config = config(folder.path(), NOWHERE);
    let file = folder.path().join("landed/rows.db");
    fs::create_dir(file.parent().unwrap()).unwrap();
    fs::write(
        &file,
        "no database at all, but long enough to be looked at as if it were one ".repeat(20),
    )
    .unwrap();
    let said = doctor(&config.text());
    said.says("database", "SQLite", "failure", &["is no SQLite database", "land.path"]);
    fs::remove_file(&file).unwrap();
    let made = rusqlite::Connection::open(&file).unwrap();
    made.execute_batch("PRAGMA journal_mode = WAL; CREATE TABLE a (b)")
        .unwrap();
    made.close().unwrap();
    let before = contents(folder.path());
    let said = doctor(&config.text());
    said.says("database", "SQLite", "ok", &["opens"]);
    assert_eq!(contents(folder.path()), before, "no file of SQLite's own is left");
}

fn tls_and_login_fail_with_their_reasons() {
    let authority = Authority::new("authority");
    let (_kafka, secure) = Kafka::private_secure(&authority);
    let folder = tempfile::tempdir().unwrap();
    let ca = folder.path().join("ca.pem");
    fs::write(&ca, authority.pem()).unwrap();
    let said = |properties: &[(&str, &str)]| {
        let mut config = config(folder.path(), &secure);
        for (name, value) in properties {
            config.property(name, value);
        }
        doctor(&config.text())
    };
    let ca = ca.to_str().unwrap();
    let user = [
        ("security.protocol", "SASL_SSL"),
        ("sasl.mechanism", "SCRAM-SHA-512"),
        ("sasl.username", "gw"),
    ];
    let right = said(&[&user[..], &[("sasl.password", "secret"), ("ssl.ca.location", ca)]].concat());
    right.says("kafka", "login", "ok", &["1 broker", "SASL_SSL"]);
    right.says("kafka", "advertised by 1", "ok", &[&secure]);
    let password = said(&[&user[..], &[("sasl.password", "wrong-one"), ("ssl.ca.location", ca)]].concat());
    password.says("kafka", "login", "failure", &["invalid credentials", "sasl.password"]);
    assert!(
        !password.ended.stdout.contains("wrong-one"),
        "{}",
        password.ended.stdout
    );
    let authority = said(&[&user[..], &[("sasl.password", "secret")]].concat());
    authority.says(
        "kafka",
        "login",
        "failure",
        &["certificate verify failed", "ssl.ca.location"],
    );
    let plaintext = said(&[]);
    plaintext.says("kafka", "login", "failure", &["security.protocol", "SASL_SSL"]);
}

fn text_is_for_people() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("config.toml");
    fs::write(&file, config(folder.path(), NOWHERE).text()).unwrap();
    let ended = run(folder.path(), command(), &["--config", "config.toml", "doctor"]);
    assert_eq!(ended.code, Some(3), "{ended:?}");
    for words in [
        "log disk\n",
        "  ok ",
        "  FAILURE  broker 127.0.0.1:9",
        "means: ",
        "do: ",
    ] {
        assert!(
            ended.stdout.contains(words),
            "nothing like {words:?} in {}",
            ended.stdout
        );
    }
    let last = ended.stdout.lines().last().unwrap();
    assert!(last.starts_with("1 failure, ") && last.ends_with(" ok"), "{last}");
    assert!(
        ended.stdout.lines().all(|line| line.chars().count() <= 110),
        "{}",
        ended.stdout
    );
    assert!(ended.stderr.contains("each failure says what to do"), "{ended:?}");
}
