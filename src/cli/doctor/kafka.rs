//! Kafka: the brokers that are configured, what they say to this user, EVERY address that they give to their
//! clients, and the topics. Each step only where the one before it let it through.

use std::net::IpAddr;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use super::line::{Findings, Line};
use super::reach::{Reach, reach_all, split};
use crate::cli::options;
use crate::cli::words::counted;
use crate::config::Config;
use crate::forward::check::{Broker, Check, Facts, Reason, Topic, Why};

/// How long the brokers may take to let this user in.
const BROKERS_MAX: Duration = Duration::from_secs(12);
/// For all topics together.
const TOPICS_MAX: Duration = Duration::from_secs(15);
/// librdkafka's default of `message.max.bytes`.
const MESSAGE_BYTES_MAX: u64 = 1_000_000;
/// What a record takes beside its payload: headers and framing.
const FRAMING_BYTES: u64 = 4096;
/// Topics that are looked at.
const TOPICS_COUNT_MAX: usize = 200;

/// A topic, and what needs it.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Wanted {
    name: String,
    /// A lander reads it.
    read: bool,
}

pub(super) fn look(config: &Config, _: &AtomicBool) -> Vec<Line> {
    let mut findings = Findings::of("kafka");
    let options = options::forward(config);
    let security = options.properties.get("security.protocol").cloned();
    let check = Check::new(&options);
    if let Err(why) = &check {
        findings.failure(
            "properties",
            format!("[kafka.properties] {why}"),
            "neither the gateway nor the lander starts",
            "correct the property; the names are those of librdkafka (CONFIGURATION.md in its repository)",
        );
    } else {
        let set: Vec<_> = options.properties.keys().map(String::as_str).collect();
        let set = if set.is_empty() { "none" } else { &set.join(", ") };
        findings.ok("properties", format!("librdkafka takes them (set: {set})"));
    }
    let places: Vec<_> = options.bootstrap_servers.split(',').filter_map(split).collect();
    if places.is_empty() {
        findings.failure(
            "brokers",
            "kafka.bootstrap_servers is empty",
            "`tidegate serve` and `tidegate land` do not start (`tidegate dev` brings a broker of its own)",
            "set it to the brokers' addresses, such as \"kafka-1:9092,kafka-2:9092\" (--bootstrap-servers, \
             TIDEGATE_KAFKA__BOOTSTRAP_SERVERS)",
        );
        return findings.lines;
    }
    let reached = reach_all(&places);
    for ((host, port), reach) in places.iter().zip(&reached) {
        bootstrap(&format!("{host}:{port}"), reach, &mut findings);
    }
    let Ok(check) = check else { return findings.lines };
    if !reached.iter().any(|reach| matches!(reach, Reach::Open(_))) {
        return findings.lines;
    }

    let wanted = wanted(config);
    let first = wanted.first().map(|topic| topic.name.as_str());
    let brokers = match check.brokers(first, BROKERS_MAX) {
        Ok(brokers) => brokers,
        Err(reasons) => {
            refused(&reasons, security.as_deref(), &mut findings);
            return findings.lines;
        }
    };
    findings.ok(
        "login",
        format!(
            "{} in the cluster; they let this user in ({})",
            counted(brokers.len() as u64, "broker"),
            security.as_deref().unwrap_or("plaintext")
        ),
    );
    let advertised: Vec<_> = brokers
        .iter()
        .map(|broker| (broker.host.clone(), broker.port))
        .collect();
    let answers = reach_all(&advertised);
    let far = reached
        .iter()
        .any(|reach| matches!(reach, Reach::Open(address) if !address.ip().is_loopback()));
    for (broker, reach) in brokers.iter().zip(&answers) {
        advertises(broker, reach, far, &mut findings);
    }
    let deep = answers.iter().any(|reach| matches!(reach, Reach::Open(_)));
    let names: Vec<String> = wanted.iter().map(|topic| topic.name.clone()).collect();
    let limits = Limits::of(config);
    for (wanted, found) in wanted.iter().zip(check.topics(&names, deep, TOPICS_MAX)) {
        topic(wanted, &found, &limits, &mut findings);
    }
    if names.is_empty() {
        findings.ok("topics", "none is configured by name: nothing to look at");
    }
    findings.lines
}

/// The sources' topics, and those that clients may write to by name.
fn wanted(config: &Config) -> Vec<Wanted> {
    let sources = config.sources.iter().map(|source| (source.topic.as_str(), true));
    let plain = config
        .http
        .topics
        .iter()
        .map(String::as_str)
        .filter(|pattern| !pattern.contains('*'));
    let mut wanted: Vec<Wanted> = Vec::new();
    for (name, read) in sources.chain(plain.map(|name| (name, false))) {
        if !wanted.iter().any(|topic| topic.name == name) && wanted.len() < TOPICS_COUNT_MAX {
            wanted.push(Wanted {
                name: name.to_owned(),
                read,
            });
        }
    }
    wanted
}

fn bootstrap(server: &str, reach: &Reach, findings: &mut Findings) {
    let check = format!("broker {server}");
    match reach {
        Reach::Open(address) => findings.ok(&check, format!("answers on {address}")),
        Reach::NoName(why) => findings.failure(
            &check,
            format!("this machine cannot resolve the name: {why}"),
            "tidegate cannot ask this broker for the others; records stay safe in the log",
            "correct kafka.bootstrap_servers, or this machine's DNS (/etc/resolv.conf) or /etc/hosts; `getent hosts NAME` shows \
             what it knows",
        ),
        Reach::Closed(_, closed) => {
            let (means, todo) = closed.advice();
            findings.failure(
                &check,
                format!("no connection: {}", closed.words()),
                format!("{means}. Meanwhile records stay safe in the log"),
                todo,
            );
        }
    }
}

/// The brokers can be reached and let nobody in.
fn refused(reasons: &[Reason], security: Option<&str>, findings: &mut Findings) {
    const MEANS: &str = "nothing is sent to Kafka; records stay safe in the log";
    let of = |why: Why| reasons.iter().find(|reason| reason.why == why);
    let uses_tls = security.is_some_and(|security| security.to_lowercase().contains("ssl"));
    if let Some(reason) = of(Why::Authentication) {
        findings.failure(
            "login",
            &reason.text,
            MEANS,
            "correct sasl.username and sasl.password under [kafka.properties] (TIDEGATE_KAFKA__PROPERTIES__SASL_PASSWORD), and \
             sasl.mechanism if the broker has another one (PLAIN, SCRAM-SHA-256, SCRAM-SHA-512); or make that user on the broker",
        );
    } else if let Some(reason) =
        of(Why::Tls).or_else(|| reasons.iter().find(|reason| reason.text.contains("certificate")))
    {
        findings.failure(
            "login",
            &reason.text,
            MEANS,
            "set ssl.ca.location under [kafka.properties] to the PEM file of the authority that signed the broker's \
             certificate; its name must be the host that is connected to. If the broker's port has no TLS, security.protocol \
             must be plaintext or sasl_plaintext",
        );
    } else if let Some(reason) = of(Why::Resolve) {
        findings.failure(
            "login",
            &reason.text,
            MEANS,
            "make that name known here, in DNS or /etc/hosts",
        );
    } else {
        let told = reasons.last().map_or_else(
            || {
                format!(
                    "the connection opens, and the broker tells nothing about itself within {} s",
                    BROKERS_MAX.as_secs()
                )
            },
            |reason| reason.text.clone(),
        );
        let todo = if uses_tls {
            "see whether that port is Kafka's and has TLS (`openssl s_client -connect HOST:PORT`), and the broker's own log"
        } else {
            "most often that port wants TLS or a password: `openssl s_client -connect HOST:PORT` shows a certificate then. Set \
             security.protocol under [kafka.properties] to SSL or SASL_SSL, or name the plaintext port"
        };
        findings.failure("login", told, MEANS, todo);
    }
}

/// `far`: the configured brokers are on another machine than this.
fn advertises(broker: &Broker, reach: &Reach, far: bool, findings: &mut Findings) {
    let Broker { id, host, port } = broker;
    let check = format!("advertised by {id}");
    let place = format!("broker {id} advertises {host}:{port}");
    let is_local = |ip: IpAddr| ip.is_loopback();
    match reach {
        Reach::Open(address) if far && is_local(address.ip()) => findings.warning(
            &check,
            format!("{place}, which is this very machine, but the configured brokers are elsewhere"),
            "what answers here is probably not that broker; what is sent there is not where you think",
            format!("on broker {id} set advertised.listeners to a name that its clients can reach, and restart it"),
        ),
        Reach::Open(address) if address.ip().to_string() == *host => findings.ok(&check, format!("{place}, and answers there")),
        Reach::Open(address) => findings.ok(&check, format!("{place}, and answers there ({address})")),
        Reach::NoName(why) => findings.failure(
            &check,
            format!("{place}, a name that this machine cannot resolve ({why})"),
            "clients ask the configured brokers only for the list, then send to these addresses: no record can reach this \
             broker, although the connection works. Records stay safe in the log",
            format!(
                "on broker {id}: set advertised.listeners to a name or address that this machine can reach, and restart it. Or \
                 here: make {host} known, in DNS or as a line `ADDRESS {host}` in /etc/hosts"
            ),
        ),
        Reach::Closed(addresses, closed) => {
            let (means, todo) = closed.advice();
            let shown: Vec<_> = addresses.iter().map(|address| address.ip().to_string()).collect();
            let through = if shown == [host.clone()] {
                String::new()
            } else {
                format!(" ({})", shown.join(", "))
            };
            let todo = if far && addresses.iter().any(|address| is_local(address.ip())) {
                format!(
                    "{host} is this very machine: on broker {id} set advertised.listeners to a name that its clients can reach, and \
                     restart it"
                )
            } else {
                format!(
                    "{todo}. If {host}:{port} is for inside its own network only: on broker {id} set advertised.listeners to an \
                     address that this machine can reach"
                )
            };
            findings.failure(
                &check,
                format!("{place}{through}, and no connection opens there: {}", closed.words()),
                format!("{means}. No record can reach this broker; they stay safe in the log"),
                todo,
            );
        }
    }
}

/// What records may be like.
#[derive(Debug, Clone, Copy)]
struct Limits {
    /// http.record_bytes_max.
    record: u64,
    /// librdkafka's message.max.bytes.
    message: u64,
}

impl Limits {
    fn of(config: &Config) -> Self {
        let message = config.kafka.properties.reveal().get("message.max.bytes");
        Self {
            record: config.http.record_bytes_max,
            message: message
                .and_then(|bytes| bytes.trim().parse().ok())
                .unwrap_or(MESSAGE_BYTES_MAX),
        }
    }
}

fn topic(wanted: &Wanted, found: &Topic, limits: &Limits, findings: &mut Findings) {
    let name = &wanted.name;
    let check = format!("topic {name}");
    let facts = match found {
        Topic::There(facts) => facts,
        Topic::Missing => {
            return findings.failure(
                &check,
                "there is no such topic",
                "its records are held on this machine, nothing is lost, and none of them reaches Kafka",
                format!(
                    "make it (`kafka-topics.sh --create --topic {name} ...`); its records are then sent by themselves"
                ),
            );
        }
        Topic::Denied => {
            return findings.failure(
                &check,
                "this user may not even see it",
                "its records are held on this machine, and none of them reaches Kafka",
                "grant this user WRITE, DESCRIBE and READ on it (`kafka-acls.sh --add`)",
            );
        }
        Topic::Unknown(why) => {
            return findings.warning(
                &check,
                format!("nothing is known of it: {why}"),
                "it could not be checked",
                "correct what is told above, then run doctor again",
            );
        }
    };
    let before = findings.lines.len();
    access(&check, wanted, facts, findings);
    sizes(&check, name, facts, limits, findings);
    safety(&check, name, facts, findings);
    if findings.lines.len() == before {
        findings.ok(&check, shown(facts));
    }
}

fn access(check: &str, wanted: &Wanted, facts: &Facts, findings: &mut Findings) {
    let name = &wanted.name;
    if facts.without_leader > 0 {
        findings.failure(
            check,
            format!(
                "{} of its {} have no leader",
                facts.without_leader,
                counted(facts.partitions as u64, "partition")
            ),
            "their records wait in the log until a broker leads them",
            format!("start the brokers that have them (`kafka-topics.sh --describe --topic {name}`)"),
        );
    }
    if facts.may_write == Some(false) {
        findings.failure(
            check,
            "this user may not write to it",
            "its records are held on this machine, and none of them reaches Kafka",
            "grant this user WRITE on it (`kafka-acls.sh --add --operation Write`)",
        );
    }
    if facts.may_read == Some(false) {
        findings.warning(
            check,
            "this user may not read it",
            if wanted.read {
                "after a crash the gateway cannot see what had arrived and sends it again; a lander with this user gets nothing"
            } else {
                "after a crash the gateway cannot see what had arrived and sends it again"
            },
            "grant this user READ on it (`kafka-acls.sh --add --operation Read`)",
        );
    }
}

fn sizes(check: &str, name: &str, facts: &Facts, limits: &Limits, findings: &mut Findings) {
    let Some(topic) = facts.message_bytes_max else { return };
    let largest = limits.record.saturating_add(FRAMING_BYTES);
    if topic < largest {
        findings.warning(
            check,
            format!(
                "its max.message.bytes is {topic}; clients may send records of {} bytes (http.record_bytes_max), and this \
                 machine's Kafka client messages of {} (message.max.bytes)",
                limits.record, limits.message
            ),
            "a record between the two is answered OK, and Kafka refuses it: it ends among the dead letters",
            format!(
                "raise the topic's (`kafka-configs.sh --alter --topic {name} --add-config max.message.bytes={largest}`), or set \
                 http.record_bytes_max to {} or less",
                topic.saturating_sub(FRAMING_BYTES)
            ),
        );
    }
}

fn safety(check: &str, name: &str, facts: &Facts, findings: &mut Findings) {
    if facts.replicas == 1 {
        findings.warning(
            check,
            "one broker alone has its records (replication factor 1)",
            "when that broker's disk is lost, records that Kafka had acknowledged are gone, and this log has removed them",
            "use three brokers and replication factor 3; meanwhile wal.retain (such as \"2 GiB\") keeps them here for a while",
        );
    } else if facts.in_sync_min.is_some_and(|min| min < 2) && facts.replicas > 1 {
        findings.warning(
            check,
            format!(
                "{} brokers have its records, and min.insync.replicas is 1",
                facts.replicas
            ),
            "while the others are behind, Kafka acknowledges what one broker alone has: its disk lost is records lost",
            format!("`kafka-configs.sh --alter --topic {name} --add-config min.insync.replicas=2`"),
        );
    }
}

/// A topic without a fault.
fn shown(facts: &Facts) -> String {
    let may = match (facts.may_write, facts.may_read) {
        (Some(_), _) | (_, Some(_)) => "this user may write and read",
        (None, None) => "what this user may do is not told",
    };
    let limit = facts.message_bytes_max.map_or_else(
        || "max.message.bytes is not told".to_owned(),
        |bytes| format!("max.message.bytes {bytes}"),
    );
    format!(
        "{}, replication factor {}; {may}; {limit}",
        counted(facts.partitions as u64, "partition"),
        facts.replicas
    )
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)]

    use super::super::line::Verdict::{self, Failure, Ok as Fine, Warning};
    use super::super::reach::Closed;
    use super::*;

    #[track_caller]
    fn says(look: impl FnOnce(&mut Findings), verdict: Verdict, words: &[&str]) {
        let mut findings = Findings::of("kafka");
        look(&mut findings);
        let [line] = &findings.lines[..] else {
            panic!("{findings:?}")
        };
        let text = format!("{} {} {}", line.found, line.means, line.todo);
        assert_eq!(line.verdict, verdict, "{line:?}");
        for words in words {
            assert!(text.contains(words), "nothing like {words:?} in {line:?}");
        }
        assert!(
            verdict == Fine || !(line.means.is_empty() || line.todo.is_empty()),
            "{line:?}"
        );
    }

    fn facts() -> Facts {
        Facts {
            partitions: 3,
            without_leader: 0,
            replicas: 3,
            may_write: Some(true),
            may_read: Some(true),
            message_bytes_max: Some(1_048_588),
            in_sync_min: Some(2),
        }
    }

    fn of(found: Topic) -> impl FnOnce(&mut Findings) {
        move |findings| {
            let wanted = Wanted {
                name: "orders".to_owned(),
                read: true,
            };
            let limits = Limits {
                record: 900 << 10,
                message: MESSAGE_BYTES_MAX,
            };
            topic(&wanted, &found, &limits, findings);
        }
    }

    #[test]
    fn a_topic_is_there_and_fit_or_is_told() {
        let with = |change: fn(&mut Facts)| {
            let mut facts = facts();
            change(&mut facts);
            of(Topic::There(facts))
        };
        says(with(|_| ()), Fine, &["3 partitions", "may write and read"]);
        says(
            with(|facts| (facts.may_write, facts.may_read) = (None, None)),
            Fine,
            &["not told"],
        );
        says(
            of(Topic::Missing),
            Failure,
            &["kafka-topics.sh --create --topic orders"],
        );
        says(of(Topic::Denied), Failure, &["kafka-acls.sh"]);
        says(of(Topic::Unknown("x".into())), Warning, &["x"]);
        says(with(|facts| facts.may_write = Some(false)), Failure, &["WRITE"]);
        says(with(|facts| facts.may_read = Some(false)), Warning, &["READ"]);
        says(
            with(|facts| facts.without_leader = 1),
            Failure,
            &["1 of its 3 partitions"],
        );
        let small = with(|facts| facts.message_bytes_max = Some(20_000));
        says(
            small,
            Warning,
            &["20000", "921600", "1000000", "max.message.bytes=925696", "15904"],
        );
        says(with(|facts| facts.replicas = 1), Warning, &["wal.retain"]);
        says(
            with(|facts| facts.in_sync_min = Some(1)),
            Warning,
            &["min.insync.replicas=2"],
        );
    }

    #[test]
    fn an_advertised_address_that_leads_nowhere_is_named_with_both_ways_out() {
        let broker = Broker {
            id: 1,
            host: "kafka-node-1".to_owned(),
            port: 29092,
        };
        let local = "127.0.0.1:29092".parse().unwrap();
        let other = "10.0.0.7:29092".parse().unwrap();
        let of = |reach: Reach, far| {
            let broker = broker.clone();
            move |findings: &mut Findings| advertises(&broker, &reach, far, findings)
        };
        let name = "broker 1 advertises kafka-node-1:29092, a name that this machine cannot resolve";
        says(
            of(Reach::NoName("unknown".into()), true),
            Failure,
            &[name, "advertised.listeners", "/etc/hosts"],
        );
        says(of(Reach::Open(other), true), Fine, &["answers there (10.0.0.7:29092)"]);
        says(of(Reach::Open(local), false), Fine, &["answers there"]);
        says(
            of(Reach::Open(local), true),
            Warning,
            &["this very machine", "advertised.listeners"],
        );
        says(
            of(Reach::Closed(vec![other], Closed::Silent), true),
            Failure,
            &["10.0.0.7", "firewall"],
        );
        says(
            of(Reach::Closed(vec![local], Closed::Refused), true),
            Failure,
            &["this very machine"],
        );
    }

    #[test]
    fn a_broker_that_lets_nobody_in_says_why() {
        let of = |why, text: &str| {
            let reasons = [Reason {
                why,
                text: text.to_owned(),
            }];
            move |findings: &mut Findings| refused(&reasons, None, findings)
        };
        says(of(Why::Authentication, "SASL"), Failure, &["SASL", "sasl.password"]);
        says(
            of(Why::Tls, "no handshake"),
            Failure,
            &["no handshake", "ssl.ca.location"],
        );
        says(of(Why::Transport, "bad certificate"), Failure, &["ssl.ca.location"]);
        says(of(Why::Transport, "disconnected"), Failure, &["security.protocol"]);
        says(
            |findings| refused(&[], None, findings),
            Failure,
            &["openssl s_client", "SASL_SSL"],
        );
    }
}
