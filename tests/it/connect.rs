//! deploy/connect as it stands: a real Kafka Connect with Debezium's connector puts what the gateway sent into a real
//! PostgreSQL. Killed on its way, with the database away for a while, and with records that come twice: a row of each.

use std::collections::BTreeSet;
use std::ops::RangeInclusive;
use std::path::Path;
use std::process::Command;

use serde_json::{Value, json};

use crate::support::client::{agent, answer};
use crate::support::daemon::Daemon;
use crate::support::gateway::{Config, Gateway};
use crate::support::kafka::{Kafka, USUAL, java, plugins};
use crate::support::postgres::{PASSWORD, Postgres};
use crate::support::prometheus::copy_with;
use crate::support::store::{Raw, produce, raw};
use crate::support::{free_port, poll, seconds, unique, wait_until};

cases!["connect":
    kafka_connect_lands_each_record_once [OwnKafka, Connect, Postgres],
];

/// A worker by itself, with the one connector.
struct Connect {
    server: Daemon,
    rest: String,
}

impl Connect {
    fn new(kafka: &Kafka, postgres: &Postgres, database: &str, topic: &str) -> Self {
        let folder = tempfile::Builder::new().prefix("tidegate-connect-").tempdir().unwrap();
        let rest = format!("127.0.0.1:{}", free_port());
        let shipped = Path::new(env!("CARGO_MANIFEST_DIR")).join("deploy/connect");
        copy_with(
            &shipped.join("worker.properties"),
            &folder.path().join("worker.properties"),
            &[
                ("localhost:9092", kafka.bootstrap()),
                ("127.0.0.1:8083", &rest),
                ("=/opt/kafka-connect", &format!("={}", plugins().display())),
                (
                    "/var/lib/kafka-connect/offsets",
                    folder.path().join("offsets").to_str().unwrap(),
                ),
            ],
        );
        let topics = "identity_pro,financial_pro,internet_pro,social_pro,trip_pro,communication_pro";
        let place = format!("127.0.0.1:{}/{database}", postgres.port());
        copy_with(
            &shipped.join("tidegate-postgres.json"),
            &folder.path().join("tidegate-postgres.json"),
            &[(topics, topic), ("localhost:5432/tidegate", &place)],
        );
        let connect = Self {
            server: Daemon::new(folder),
            rest,
        };
        connect.start();
        connect
    }

    /// Returns once the connector's task runs.
    fn start(&self) {
        let folder = self.server.folder.path();
        let worker = java(folder, USUAL);
        let mut command = Command::new("env");
        command
            .arg(format!("TIDEGATE_CONNECT_PASSWORD={PASSWORD}"))
            .arg(worker.get_program())
            .args(worker.get_args())
            .arg("org.apache.kafka.connect.cli.ConnectStandalone")
            .args(["worker.properties", "tidegate-postgres.json"]);
        let pid = self.server.launch(&command, None);
        poll("the connector runs", seconds(120), || {
            assert!(Daemon::is_running(pid), "{}", self.server.console());
            self.assert_lands();
            (self.task()["state"] == "RUNNING").then_some(())
        });
    }

    /// Its task has not failed.
    #[track_caller]
    fn assert_lands(&self) {
        let task = self.task();
        assert_ne!(task["state"], "FAILED", "{task}\n{}", self.server.console());
    }

    fn restart_task(&self) {
        let url = format!("http://{}/connectors/tidegate-postgres/tasks/0/restart", self.rest);
        answer(agent().post(url).send_empty()).unwrap();
    }

    /// What it says of its task.
    fn task(&self) -> Value {
        let url = format!("http://{}/connectors/tidegate-postgres/status", self.rest);
        match answer(agent().get(url).call()) {
            Ok(answer) if answer.status == 200 => answer.json()["tasks"][0].clone(),
            // Not yet.
            _ => Value::Null,
        }
    }
}

fn kafka_connect_lands_each_record_once() {
    let (kafka, postgres) = (Kafka::private(), Postgres::private());
    let (topic, database) = (unique("connect").replace('.', "_"), postgres.database());
    for topic in [&topic, "tidegate-watermark"] {
        kafka.create_topic(topic, 1, &[]);
    }
    let mut config = Config::with(&kafka);
    config.set("forward.delivery", "exactly_once").set("wal.retain", "1 h");
    let mut gateway = Gateway::start(&config);
    let value = |n: u64| json!({"n": n, "text": "\u{f6} \u{1f30a} \"quoted\" 'x' \\"}).to_string();
    // The record n has the sequence n.
    let post = |gateway: &Gateway, numbers: RangeInclusive<u64>| {
        let lines: Vec<String> = numbers.map(value).collect();
        let headers = [("content-type", "application/x-ndjson")];
        let path = format!("/v1/topics/{topic}");
        let answer = gateway.client().post_with(&path, &headers, lines.join("\n").as_bytes());
        assert_eq!(answer.unwrap().status, 202);
    };
    let connect = Connect::new(&kafka, &postgres, &database, &topic);
    // No table before the first record, and no server now and then.
    let ask = |sql: &str| {
        let rows = postgres.try_query(&database, &sql.replace("TABLE", &format!("\"{topic}\"")));
        rows.unwrap_or_default()
    };
    let count = || {
        ask("SELECT count(*) FROM TABLE")
            .first()
            .map_or(0, |row| row[0].parse().unwrap())
    };
    let landed = |records: u64| {
        wait_until(format_args!("{records} rows"), seconds(120), || {
            connect.assert_lands();
            count() == records
        });
    };

    post(&gateway, 1..=500);
    landed(500);
    // Killed somewhere in the middle.
    post(&gateway, 501..=20_000);
    wait_until("it goes on", seconds(60), || count() > 500);
    connect.server.end("-KILL", true);
    let when_killed = count();
    assert!(when_killed < 20_000, "it was done before it was killed");
    connect.start();
    landed(20_000);
    // The database is away for longer than the connector tries by itself.
    postgres.stop();
    post(&gateway, 20_001..=20_100);
    // After five times it would give up, if it were not told otherwise.
    wait_until("it has tried for long", seconds(60), || {
        // It says so twice each time.
        connect.server.console().matches("Retry ").count() > 10
    });
    postgres.start();
    // A try while the server still starts is one that the task ends with (docs/lander.md).
    wait_until("the rows that waited", seconds(120), || {
        if connect.task()["state"] == "FAILED" {
            connect.restart_task();
        }
        count() == 20_100
    });
    // Everything again, with its identity.
    gateway.sigterm(seconds(60));
    let wal = gateway.wal();
    let again = [
        "wal",
        "replay",
        "--all",
        "--wal",
        wal.to_str().unwrap(),
        "--bootstrap-servers",
        kafka.bootstrap(),
    ];
    let (code, told, errors) = gateway.run(&again);
    assert_eq!(code, 0, "{told}{errors}");
    gateway.restart();
    post(&gateway, 20_101..=20_101);
    landed(20_101);
    assert!(kafka.read_topic(&topic, true).len() >= 40_201, "nothing was sent again");

    let rows = ask("SELECT seq, value, wal, kafka_topic, received_ms > 0 FROM TABLE ORDER BY seq");
    let ids: BTreeSet<&String> = rows.iter().map(|row| &row[2]).collect();
    assert_eq!(ids.len(), 1, "{ids:?}");
    for (row, n) in rows.iter().zip(1..) {
        let expected = [&n.to_string(), &value(n)];
        assert_eq!([&row[0], &row[1]], expected);
        assert_eq!((row[3].as_str(), row[4].as_str()), (topic.as_str(), "t"));
    }
    // What the lander would keep apart (docs/lander.md): another value takes the place of the first, ...
    let id = ids.first().unwrap().as_str();
    let other = Raw {
        identity: Some((id, "1")),
        ..raw(b"other")
    };
    produce(&kafka, &topic, &[other]);
    wait_until("the other value", seconds(60), || {
        ask("SELECT value FROM TABLE WHERE seq = 1") == [["other"]]
    });
    // ... and what has no identity ends the task.
    produce(&kafka, &topic, &[raw(b"x")]);
    wait_until("the task has failed", seconds(60), || {
        connect.task()["state"] == "FAILED"
    });
}
