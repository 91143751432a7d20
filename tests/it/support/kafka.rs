//! A real Apache Kafka: one KRaft node (broker and controller in one JVM) on free ports of 127.0.0.1.
//!
//! `tests/run` puts its jars into `target/kafka/libs`.

use std::fs;
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::OnceLock;
use std::time::Duration;

use super::certificates::Authority;
use super::daemon::Daemon;
use super::{free_port, is_root, poll, target};

/// The cluster id of a broker that has none of its own.
pub const CLUSTER: &str = "dGlkZWdhdGUtdGVzdHMwMQ";
const VERSION_OF_JAVA_MIN: u32 = 17;
const START_LIMIT: Duration = Duration::from_secs(120);

/// What is missing for a broker of our own; `None` when all is there.
pub fn missing() -> Option<String> {
    static MISSING: OnceLock<Option<String>> = OnceLock::new();
    MISSING
        .get_or_init(|| {
            if !libs().join("kafka_2.13-4.1.1.jar").exists() {
                return Some(format!("no Apache Kafka in {} (./tests/run gets it)", libs().display()));
            }
            let version = Command::new("java").arg("-version").output().ok();
            let version = version
                .map(|output| String::from_utf8_lossy(&output.stderr).into_owned())
                .unwrap_or_default();
            let major = version.split('"').nth(1).and_then(|text| text.split('.').next());
            match major.and_then(|text| text.parse::<u32>().ok()) {
                Some(major) if major >= VERSION_OF_JAVA_MIN => None,
                Some(major) => Some(format!("java is version {major}; Kafka needs {VERSION_OF_JAVA_MIN}")),
                None => Some("no `java` (Debian: default-jre-headless)".to_owned()),
            }
        })
        .clone()
}

fn libs() -> PathBuf {
    target().join("kafka/libs")
}

/// Kafka Connect's folder of plugins, each in a folder of its own.
pub fn plugins() -> PathBuf {
    target().join("kafka/connect")
}

/// What is missing for Debezium's connector; `None` when it is there.
pub fn missing_connector() -> Option<String> {
    let plugin = plugins().join("debezium-connector-jdbc");
    (!plugin.exists()).then(|| format!("no {} (./tests/run gets it)", plugin.display()))
}

/// A broker: its address, and the process when it is ours and runs.
pub struct Kafka {
    bootstrap: String,
    own: Option<Daemon>,
    machine: Machine,
}

/// What a broker of our own runs on.
#[derive(Debug, Clone, Copy)]
pub struct Machine {
    pub heap_mib: u32,
    /// The process whose mount namespace it lives in, when it is not this one's.
    pub within: Option<u32>,
}

pub const USUAL: Machine = Machine {
    heap_mib: 512,
    within: None,
};

static SHARED: OnceLock<Kafka> = OnceLock::new();

impl Kafka {
    /// The one broker of this test run, or the one that `TIDEGATE_TEST_KAFKA` names.
    pub fn shared() -> &'static Kafka {
        SHARED.get_or_init(|| match std::env::var("TIDEGATE_TEST_KAFKA") {
            Ok(bootstrap) => Kafka::at(bootstrap),
            Err(_) => Kafka::private(),
        })
    }

    /// Brokers that others start and stop.
    pub fn at(bootstrap: String) -> Kafka {
        Kafka {
            bootstrap,
            own: None,
            machine: USUAL,
        }
    }

    /// Stops the shared broker, if it was ever started. For the end of the run.
    pub fn end_shared() {
        if let Some(Kafka { own: Some(own), .. }) = SHARED.get() {
            own.end("-KILL", false);
        }
    }

    /// A broker that belongs to one test, which may stop, start and kill it.
    pub fn private() -> Kafka {
        Self::private_with_id(CLUSTER)
    }

    /// [`Kafka::private`] with this line in its properties.
    pub fn private_with(line: &str) -> Kafka {
        Self::make(CLUSTER, "127.0.0.1", |_| vec![("", line.to_owned())])
    }

    /// [`Kafka::private`] with this cluster id.
    pub fn private_with_id(cluster: &str) -> Kafka {
        Self::make(cluster, "127.0.0.1", |_| Vec::new())
    }

    /// [`Kafka::private`] that sends its clients to this place, which need not exist: a host (with the broker's own port), or
    /// host:port.
    pub fn private_advertising(place: &str) -> Kafka {
        Self::make(CLUSTER, place, |_| Vec::new())
    }

    /// [`Kafka::private`] with a second listener, for TLS with a certificate of `authority` and the user `gw`, with the
    /// password `secret` by SCRAM-SHA-512 and `secret-of-gw` by PLAIN; also gives that listener's address.
    pub fn private_secure(authority: &Authority) -> (Kafka, String) {
        let port = free_port();
        let kafka = Self::make(CLUSTER, "127.0.0.1", |folder| {
            let (certificate, key) = authority.issue("localhost");
            let store = folder.join("broker.pem");
            fs::write(&store, [key, certificate].concat()).expect("the certificate is written");
            let own = "listener.name.secure";
            let plain = r#"org.apache.kafka.common.security.plain.PlainLoginModule required user_gw="secret-of-gw";"#;
            let login = "org.apache.kafka.common.security.scram.ScramLoginModule required;";
            vec![
                ("listeners", format!("SECURE://127.0.0.1:{port}")),
                ("advertised.listeners", format!("SECURE://localhost:{port}")),
                ("listener.security.protocol.map", "SECURE:SASL_SSL".to_owned()),
                ("", format!("{own}.sasl.enabled.mechanisms=SCRAM-SHA-512,PLAIN")),
                ("", format!("{own}.scram-sha-512.sasl.jaas.config={login}")),
                ("", format!("{own}.plain.sasl.jaas.config={plain}")),
                ("", format!("{own}.ssl.keystore.type=PEM")),
                ("", format!("{own}.ssl.keystore.location={}", store.display())),
            ]
        });
        (kafka, format!("localhost:{port}"))
    }

    /// [`Kafka::private`] with a second listener, for TLS with a certificate of `authority` that asks its clients for one
    /// too; also gives that listener's address.
    pub fn private_mutual(authority: &Authority) -> (Kafka, String) {
        let port = free_port();
        let kafka = Self::make(CLUSTER, "127.0.0.1", |folder| {
            let (certificate, key) = authority.issue("localhost");
            let (store, trusted) = (folder.join("broker.pem"), folder.join("trusted.pem"));
            fs::write(&store, [key, certificate].concat()).expect("the certificate is written");
            fs::write(&trusted, authority.pem()).expect("the CA is written");
            let own = "listener.name.mutual";
            vec![
                ("listeners", format!("MUTUAL://127.0.0.1:{port}")),
                ("advertised.listeners", format!("MUTUAL://localhost:{port}")),
                ("listener.security.protocol.map", "MUTUAL:SSL".to_owned()),
                ("", format!("{own}.ssl.client.auth=required")),
                ("", format!("{own}.ssl.keystore.type=PEM")),
                ("", format!("{own}.ssl.keystore.location={}", store.display())),
                ("", format!("{own}.ssl.truststore.type=PEM")),
                ("", format!("{own}.ssl.truststore.location={}", trusted.display())),
            ]
        });
        (kafka, format!("localhost:{port}"))
    }

    /// [`Kafka::private`] with a second listener, for the user `gw` with the password `secret` without TLS, who may
    /// do only what an ACL allows (everything where there is none); also gives that listener's address.
    pub fn private_guarded() -> (Kafka, String) {
        let port = free_port();
        let login = "org.apache.kafka.common.security.scram.ScramLoginModule required;";
        let authorizer = "org.apache.kafka.metadata.authorizer.StandardAuthorizer";
        let kafka = Self::make(CLUSTER, "127.0.0.1", |_| {
            vec![
                ("listeners", format!("USERS://127.0.0.1:{port}")),
                ("advertised.listeners", format!("USERS://127.0.0.1:{port}")),
                ("listener.security.protocol.map", "USERS:SASL_PLAINTEXT".to_owned()),
                (
                    "",
                    "listener.name.users.sasl.enabled.mechanisms=SCRAM-SHA-512".to_owned(),
                ),
                (
                    "",
                    format!("listener.name.users.scram-sha-512.sasl.jaas.config={login}"),
                ),
                ("", format!("authorizer.class.name={authorizer}")),
                // The tests' own clients, and the broker itself.
                ("", "super.users=User:ANONYMOUS".to_owned()),
                ("", "allow.everyone.if.no.acl.found=true".to_owned()),
            ]
        });
        (kafka, format!("127.0.0.1:{port}"))
    }

    /// [`Kafka::private`] with a second listener on the port `listener`, whose clients are sent to `port` of this
    /// machine, where something of the test's own leads to that listener.
    pub fn private_behind(port: u16, listener: u16) -> Kafka {
        Self::make(CLUSTER, "127.0.0.1", |_| {
            vec![
                ("listeners", format!("BEHIND://127.0.0.1:{listener}")),
                ("advertised.listeners", format!("BEHIND://127.0.0.1:{port}")),
                ("listener.security.protocol.map", "BEHIND:PLAINTEXT".to_owned()),
            ]
        })
    }

    /// [`Kafka::private`] that keeps everything in `data`, a folder of the mount namespace of the process `within`.
    pub fn private_within(within: u32, data: &Path) -> Kafka {
        let machine = Machine {
            within: Some(within),
            ..USUAL
        };
        let kafka = Self::prepared(CLUSTER, "127.0.0.1", machine, |_, _| {
            vec![("", format!("log.dirs={}", data.display()))]
        });
        kafka.start();
        kafka
    }

    /// `more`: what is added to properties that are there, or further lines.
    fn make(cluster: &str, place: &str, more: impl FnOnce(&Path) -> Vec<(&'static str, String)>) -> Kafka {
        let kafka = Self::prepared(cluster, place, USUAL, |folder, _| more(folder));
        kafka.start();
        kafka
    }

    /// [`Self::make`] of one that was not started yet; `more` also gets the broker's port. Of two lines with one name
    /// the last counts.
    pub fn prepared(
        cluster: &str,
        place: &str,
        machine: Machine,
        more: impl FnOnce(&Path, u16) -> Vec<(&'static str, String)>,
    ) -> Kafka {
        let folder = tempfile::Builder::new()
            .prefix("tidegate-kafka-")
            .tempdir()
            .expect("a temporary folder");
        let (broker, controller) = (free_port(), free_port());
        let data = folder.path().join("data");
        let advertised = match place.contains(':') {
            true => place.to_owned(),
            false => format!("{place}:{broker}"),
        };
        let mut properties = format!(
            "process.roles=broker,controller\n\
             node.id=1\n\
             controller.quorum.voters=1@127.0.0.1:{controller}\n\
             listeners=PLAINTEXT://127.0.0.1:{broker},CONTROLLER://127.0.0.1:{controller}\n\
             advertised.listeners=PLAINTEXT://{advertised}\n\
             listener.security.protocol.map=PLAINTEXT:PLAINTEXT,CONTROLLER:PLAINTEXT\n\
             controller.listener.names=CONTROLLER\n\
             inter.broker.listener.name=PLAINTEXT\n\
             log.dirs={}\n\
             auto.create.topics.enable=false\n\
             num.partitions=1\n\
             offsets.topic.replication.factor=1\n\
             offsets.topic.num.partitions=1\n\
             transaction.state.log.replication.factor=1\n\
             transaction.state.log.min.isr=1\n\
             transaction.state.log.num.partitions=1\n\
             group.initial.rebalance.delay.ms=0\n\
             group.min.session.timeout.ms=1000\n\
             broker.session.timeout.ms=2000\n\
             broker.heartbeat.interval.ms=500\n\
             controlled.shutdown.enable=false\n\
             num.network.threads=2\n\
             num.io.threads=4\n",
            data.display()
        );
        for (name, value) in more(folder.path(), broker) {
            let mut lines = properties.lines();
            let line = lines.find(|line| !name.is_empty() && line.starts_with(&format!("{name}=")));
            properties = match line.map(str::to_owned) {
                Some(line) => properties.replace(&line, &format!("{line},{value}")),
                None => format!("{properties}{value}\n"),
            };
        }
        fs::write(folder.path().join("server.properties"), properties).expect("server.properties");
        let formatted = java(
            folder.path(),
            Machine {
                heap_mib: 128,
                ..machine
            },
        )
        .args(["kafka.tools.StorageTool", "format", "-t", cluster, "-c"])
        .arg(folder.path().join("server.properties"))
        .args(["--add-scram", "SCRAM-SHA-512=[name=gw,password=secret]"])
        .stdin(Stdio::null())
        .output()
        .expect("java runs");
        assert!(
            formatted.status.success(),
            "Kafka's folder could not be formatted: {}{}",
            String::from_utf8_lossy(&formatted.stdout),
            String::from_utf8_lossy(&formatted.stderr)
        );
        Kafka {
            bootstrap: format!("127.0.0.1:{broker}"),
            own: Some(Daemon::new(folder)),
            machine,
        }
    }

    /// `host:port`.
    pub fn bootstrap(&self) -> &str {
        &self.bootstrap
    }

    fn own(&self) -> &Daemon {
        self.own
            .as_ref()
            .expect("only a broker of the test's own is started and stopped")
    }

    /// Starts it, on its old folder and ports; returns when it answers.
    pub fn start(&self) {
        let own = self.own();
        let folder = own.folder.path();
        let mut command = java(folder, self.machine);
        command.arg("kafka.Kafka").arg(folder.join("server.properties"));
        let java = own.launch(&command, None);
        poll(format_args!("Kafka on {}", self.bootstrap), START_LIMIT, || {
            assert!(
                Daemon::is_running(java),
                "Kafka ended while it started:\n{}",
                own.console()
            );
            TcpStream::connect(&self.bootstrap).ok()
        });
        super::topics::wait_for_broker(&self.bootstrap, START_LIMIT);
    }

    /// Where it keeps a partition.
    pub fn partition_folder(&self, topic: &str, partition: i32) -> PathBuf {
        self.own()
            .folder
            .path()
            .join("data")
            .join(format!("{topic}-{partition}"))
    }

    /// Stops it the orderly way (SIGTERM) and waits until it is gone.
    pub fn stop(&self) {
        self.own().end("-TERM", true);
    }

    /// SIGKILL.
    pub fn kill(&self) {
        self.own().end("-KILL", true);
    }

    /// It has not ended by itself.
    pub fn runs(&self) -> bool {
        self.own().runs()
    }

    /// SIGSTOP: its connections stay, and nothing is answered.
    pub fn freeze(&self) {
        self.own().signal("-STOP");
    }

    /// SIGCONT.
    pub fn thaw(&self) {
        self.own().signal("-CONT");
    }

    /// The next start sends clients to this host:port, or back to the broker itself. Whether that is news.
    pub fn advertise(&self, place: Option<&str>) -> bool {
        let file = self.own().folder.path().join("server.properties");
        let properties = fs::read_to_string(&file).expect("server.properties");
        let key = "advertised.listeners=PLAINTEXT://";
        let place = place.unwrap_or(&self.bootstrap);
        // The last line counts.
        let before = properties.lines().rev().find_map(|line| line.strip_prefix(key));
        let is_news = before.expect("it is advertised") != place;
        if is_news {
            fs::write(&file, format!("{properties}{key}{place}\n")).expect("server.properties");
        }
        is_news
    }

    /// Runs one of Kafka's own tools against this broker; the test fails when that fails.
    pub fn tool(&self, class: &str, arguments: &[&str]) {
        let output = java(self.own().folder.path(), Machine { heap_mib: 64, ..USUAL })
            .args([class, "--bootstrap-server", &self.bootstrap])
            .args(arguments)
            .stdin(Stdio::null())
            .output()
            .expect("java runs");
        assert!(output.status.success(), "{class} {arguments:?}: {output:?}");
    }
}

/// `java` with Kafka's class path; what it writes by itself goes to `folder`.
pub fn java(folder: &Path, Machine { heap_mib, within }: Machine) -> Command {
    let mut command = Command::new(if within.is_some() { "nsenter" } else { "java" });
    if let Some(pid) = within {
        if !is_root() {
            command.args(["--user", "--preserve-credentials"]);
        }
        command.args(["--mount", "--target", &pid.to_string(), "java"]);
    }
    let log4j = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/kafka/log4j2.properties");
    command
        .arg(format!("-Xmx{heap_mib}m"))
        // A test broker lives for seconds: quick to start beats quick at its peak.
        .args(["-XX:TieredStopAtLevel=1", "-XX:+UseSerialGC", "-Xshare:auto"])
        .arg(format!("-Dlog4j2.configurationFile={}", log4j.display()))
        .arg(format!("-Dkafka.logs.dir={}", folder.display()))
        .arg("-cp")
        .arg(libs().join("*"));
    command
}
