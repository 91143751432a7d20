//! Kafka: the brokers that are configured, what they say to this user, EVERY address that they give to their
//! clients, and the topics. Each step only where the one before it let it through.

mod topics;

use std::net::IpAddr;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use super::line::{Findings, Line};
use super::reach::{Reach, reach_all, split};
use crate::cli::options;
use crate::cli::words::counted;
use crate::config::Config;
use crate::forward::check::{Broker, Check, Reason, Why};
use topics::{Limits, topic, wanted};

/// How long the brokers may take to let this user in.
const BROKERS_MAX: Duration = Duration::from_secs(12);
/// For all topics together.
const TOPICS_MAX: Duration = Duration::from_secs(15);

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

    let brokers = match check.brokers(BROKERS_MAX) {
        Ok(brokers) => brokers,
        Err(reasons) => {
            refused("login", &reasons, security.as_deref(), &mut findings);
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
    let wanted = wanted(config);
    let names: Vec<String> = wanted.iter().map(|topic| topic.name.clone()).collect();
    if names.is_empty() {
        findings.ok("topics", "none is configured by name: nothing to look at");
    } else if !answers.iter().any(|reach| matches!(reach, Reach::Open(_))) {
        findings.warning(
            "topics",
            "not looked at: no broker answers at the address that it advertises",
            "whether they are there, large enough and open to this user is not known yet",
            "correct what is told above, then run doctor again",
        );
    } else {
        match check.topics(&names, TOPICS_MAX) {
            Ok(topics) => {
                let limits = Limits::of(config);
                for (wanted, found) in wanted.iter().zip(topics) {
                    topic(wanted, &found, &limits, &mut findings);
                }
            }
            Err(reasons) => refused("topics", &reasons, security.as_deref(), &mut findings),
        }
    }
    findings.lines
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

/// The brokers can be reached and let nobody in. `check`: where, at the configured addresses or at the advertised ones.
fn refused(check: &str, reasons: &[Reason], security: Option<&str>, findings: &mut Findings) {
    const MEANS: &str = "nothing is sent to Kafka; records stay safe in the log";
    let of = |why: Why| reasons.iter().find(|reason| reason.why == why);
    let uses_tls = security.is_some_and(|security| security.to_lowercase().contains("ssl"));
    if let Some(reason) = of(Why::Authentication) {
        findings.failure(
            check,
            &reason.text,
            MEANS,
            "correct sasl.username and sasl.password under [kafka.properties] (TIDEGATE_KAFKA__PROPERTIES__SASL_PASSWORD), and \
             sasl.mechanism if the broker has another one (PLAIN, SCRAM-SHA-256, SCRAM-SHA-512); or make that user on the broker",
        );
    } else if let Some(reason) =
        of(Why::Tls).or_else(|| reasons.iter().find(|reason| reason.text.contains("certificate")))
    {
        findings.failure(
            check,
            &reason.text,
            MEANS,
            "set ssl.ca.location under [kafka.properties] to the PEM file of the authority that signed the broker's \
             certificate; its name must be the host that is connected to. If the broker's port has no TLS, security.protocol \
             must be plaintext or sasl_plaintext",
        );
    } else if let Some(reason) = of(Why::Resolve) {
        findings.failure(
            check,
            &reason.text,
            MEANS,
            "make that name known here, in DNS or /etc/hosts",
        );
    } else if let Some(reason) = reasons
        .iter()
        .find(|reason| reason.text.contains("Invalid response size"))
    {
        // The first bytes of a TLS alert, or of "HTTP", read as a length.
        findings.failure(
            check,
            format!(
                "what answers there does not speak Kafka as this client does: {}",
                reason.text
            ),
            MEANS,
            "name the port of a Kafka broker (usually 9092); if it is one, it wants TLS: set security.protocol under \
             [kafka.properties] to SSL or SASL_SSL",
        );
    } else {
        let told = reasons.last().map_or_else(
            || "the connection opens, and the broker tells nothing about itself in time".to_owned(),
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

#[cfg(test)]
mod tests;
