//! The ports that tidegate listens on, and what answers there: a gateway and a lander that run are asked how they are.

use std::io::ErrorKind;
use std::net::SocketAddr;
use std::sync::atomic::AtomicBool;
use std::thread;

use serde_json::Value;
use tokio::net::TcpSocket;

use super::line::{Findings, Line};
use crate::cli::ask::{AskError, Listener, Part};
use crate::cli::exit::FileError;
use crate::cli::guard::Guard;
use crate::cli::words::{counted, size};
use crate::config::Config;
use crate::http::Expiry;

/// Whether a process of ours could listen there.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Port {
    Free,
    Taken,
    /// The system's words.
    Unusable(String),
}

/// Who answers.
#[derive(Debug)]
enum Who {
    Nobody,
    /// One of ours, with its status.
    Ours(Value),
    /// One of ours, or not: it does not tell.
    Silent(AskError),
}

struct Facts {
    http: (SocketAddr, Port),
    admin: (SocketAddr, Port),
    land: (SocketAddr, Port),
    gateway: Who,
    lander: Who,
    allow_anonymous: bool,
    guard: Result<Guarded, FileError>,
}

/// What guards the ingest listener.
#[derive(Debug, Default)]
struct Guarded {
    /// How many API keys there are, where they are asked for.
    keys: Option<usize>,
    tls: bool,
    expiry: Option<Expiry>,
}

pub(super) fn look(config: &Config, _: &AtomicBool) -> Vec<Line> {
    let ask = |part| {
        let listener = Listener::new(part, None, config);
        thread::spawn(move || match listener.status() {
            Ok(answer) => Who::Ours(answer.value),
            Err(error) if error.is_away() => Who::Nobody,
            Err(error) => Who::Silent(error),
        })
    };
    let (gateway, lander) = (ask(Part::Gateway), ask(Part::Lander));
    let port = |address| (address, port(address));
    lines(&Facts {
        http: port(config.http.listen),
        admin: port(config.admin.listen),
        land: port(config.land.listen),
        gateway: gateway.join().unwrap_or(Who::Nobody),
        lander: lander.join().unwrap_or(Who::Nobody),
        allow_anonymous: config.http.allow_anonymous,
        guard: Guard::open(config).map(|guard| Guarded {
            keys: guard.keys.map(|keys| keys.count()),
            tls: guard.tls.is_some(),
            expiry: guard.tls.and_then(|tls| tls.expiry()),
        }),
    })
}

/// Binds, and never listens: nobody can connect meanwhile.
fn port(address: SocketAddr) -> Port {
    let bind = || {
        let socket = match address {
            SocketAddr::V4(_) => TcpSocket::new_v4()?,
            SocketAddr::V6(_) => TcpSocket::new_v6()?,
        };
        socket.set_reuseaddr(true)?;
        socket.bind(address)
    };
    match bind() {
        Ok(()) => Port::Free,
        Err(error) if error.kind() == ErrorKind::AddrInUse => Port::Taken,
        Err(error) => Port::Unusable(error.to_string()),
    }
}

fn lines(facts: &Facts) -> Vec<Line> {
    let mut findings = Findings::of("listeners");
    for (key, (address, port), part, who) in [
        ("http.listen", &facts.http, Part::Gateway, &facts.gateway),
        ("admin.listen", &facts.admin, Part::Gateway, &facts.gateway),
        ("land.listen", &facts.land, Part::Lander, &facts.lander),
    ] {
        listener(key, *address, port, part, who, &mut findings);
    }
    if !facts.http.0.ip().is_loopback() && facts.allow_anonymous {
        findings.warning(
            "who may send",
            format!("http.listen is {} and http.allow_anonymous is true", facts.http.0),
            "every machine that reaches this port can send records, without a password",
            "keep strangers out with a firewall or a proxy, or listen on 127.0.0.1",
        );
    }
    match &facts.guard {
        Ok(guarded) => guard(guarded, facts.http.0, &mut findings),
        Err(error) => findings.failure(
            error.key,
            error.source.to_string(),
            "the gateway cannot start",
            error.advice,
        ),
    }
    gateway(&facts.gateway, &mut findings);
    lander(&facts.lander, &mut findings);
    findings.lines
}

fn guard(guarded: &Guarded, address: SocketAddr, findings: &mut Findings) {
    match guarded.keys {
        None => {}
        Some(0) => findings.warning(
            "api keys",
            "http.api_keys_file has no key",
            "nobody can send",
            "`tidegate key create --name NAME` makes one",
        ),
        Some(_) if !guarded.tls && !address.ip().is_loopback() => findings.warning(
            "api keys",
            format!("keys are asked for on {address}, and there is no TLS"),
            "keys cross the network in clear text",
            "set http.tls_certificate_file and http.tls_key_file, or put a proxy that speaks TLS in front",
        ),
        Some(count) => findings.ok("api keys", counted(count as u64, "key")),
    }
    match &guarded.expiry {
        None => {}
        Some(expiry) if expiry.is_over() => findings.failure(
            "TLS certificate",
            format!("it expired: {}", expiry.until),
            "clients refuse it",
            "replace the file that http.tls_certificate_file names; a gateway that runs reads it again",
        ),
        Some(expiry) if expiry.is_near() => findings.warning(
            "TLS certificate",
            format!(
                "it expires in {}: {}",
                counted(u64::try_from(expiry.days).unwrap_or(0), "day"),
                expiry.until
            ),
            "clients refuse it from then on",
            "replace the file that http.tls_certificate_file names; a gateway that runs reads it again",
        ),
        Some(expiry) => findings.ok("TLS certificate", format!("until {}", expiry.until)),
    }
}

fn listener(key: &str, address: SocketAddr, port: &Port, part: Part, who: &Who, findings: &mut Findings) {
    let name = part.name();
    match (port, who) {
        (Port::Free, _) if address.port() == 0 => findings.ok(key, format!("{address}: any free port")),
        (Port::Free, _) => findings.ok(key, format!("{address} is free")),
        (Port::Taken, Who::Ours(_)) => findings.ok(key, format!("{address} is taken by the {name} that runs")),
        // A stranger on that port is no gateway that keeps its token to itself.
        (Port::Taken, Who::Silent(error)) if !matches!(error, AskError::Stranger { .. }) => {
            findings.ok(key, format!("{address} is taken: see {name} below"));
        }
        (Port::Taken, _) => {
            let (found, todo) = (
                format!("{address} is taken by another process"),
                format!(
                    "`ss -ltnp 'sport = :{}'` says which (as root): stop it, or set {key} to another port",
                    address.port()
                ),
            );
            match part {
                Part::Gateway => findings.failure(key, found, "the gateway cannot start", todo),
                Part::Lander => findings.warning(key, found, "no lander could start on this machine", todo),
            }
        }
        (Port::Unusable(why), _) => findings.failure(
            key,
            format!("{address} cannot be listened on: {why}"),
            format!("the {name} cannot start"),
            format!("set {key} to an address that this machine has (`ip addr`); ports below 1024 need a privilege"),
        ),
    }
}

fn silent(part: Part, error: &AskError, findings: &mut Findings) {
    let name = part.name();
    const MEANS: &str = "something runs there, and how it is cannot be told";
    match error {
        AskError::Denied { address, code, .. } => findings.warning(
            name,
            format!("what answers on {address} wants a token ({code})"),
            MEANS,
            "set admin.token (TIDEGATE_ADMIN__TOKEN) to the one that it was started with",
        ),
        // Told at its port already.
        AskError::Stranger { address, why, .. } => findings.ok(name, format!("none runs here (on {address}: {why})")),
        AskError::Unwell { address, why, .. } | AskError::Refused { address, why, .. } => findings.warning(
            name,
            format!("the {name} on {address} does not tell its state: {why}"),
            MEANS,
            "look at its log; restart it if it stays so",
        ),
        AskError::Away { .. } | AskError::Folder { .. } => findings.ok(name, "none runs here"),
    }
}

fn gateway(who: &Who, findings: &mut Findings) {
    let status = match who {
        Who::Nobody => return findings.ok("gateway", "none runs here"),
        Who::Silent(error) => return silent(Part::Gateway, error, findings),
        Who::Ours(status) => status,
    };
    let (wal, forward) = (&status["wal"], &status["forward"]);
    let number = |value: &Value| value.as_u64().unwrap_or_default();
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let state = format!(
        "runs (version {}); {} ({}) wait for Kafka",
        text(&status["version"]),
        counted(number(&wal["backlog_records"]), "record"),
        size(number(&wal["backlog_bytes"]))
    );
    let aside = number(&status["held_records"]) + number(&status["dead_letters"]);
    if let Some(why) = wal["poisoned"].as_str() {
        findings.failure(
            "gateway",
            format!("{state}. Its log has stopped: {why}"),
            "nothing more is accepted; what was answered OK is on disk",
            "look at the disk (`dmesg`), then start the gateway again",
        );
    } else if let Some(why) = wal["refusing"].as_str() {
        findings.failure(
            "gateway",
            format!("{state}. It refuses records: {why}"),
            "clients get 503 and must try again",
            "free some space, or bring Kafka back so that the log drains",
        );
    } else if forward["broker_up"] == Value::Bool(false) {
        let why = forward["last_error"].as_str().unwrap_or("no broker answers");
        findings.warning(
            "gateway",
            format!("{state}. It does not reach Kafka: {why}"),
            "records are safe in the log and are sent when Kafka is back",
            "see kafka below",
        );
    } else if aside > 0 || number(&wal["corruption_records"]) > 0 {
        findings.warning(
            "gateway",
            format!(
                "{state}; {} held, {}, {} damaged",
                number(&status["held_records"]),
                counted(number(&status["dead_letters"]), "dead letter"),
                number(&wal["corruption_records"])
            ),
            "these records are not in Kafka",
            "`tidegate status` says which topics they are of, and why",
        );
    } else {
        findings.ok("gateway", state);
    }
}

fn lander(who: &Who, findings: &mut Findings) {
    let status = match who {
        Who::Nobody => return findings.ok("lander", "none runs here"),
        Who::Silent(error) => return silent(Part::Lander, error, findings),
        Who::Ours(status) => status,
    };
    let state = format!(
        "runs (version {}); {} behind",
        status["version"].as_str().unwrap_or_default(),
        counted(status["lag_records"].as_u64().unwrap_or_default(), "record")
    );
    for (up, error, what) in [
        ("kafka_up", "kafka_error", "Kafka"),
        ("sink_up", "sink_error", "its database"),
    ] {
        if status[up] == Value::Bool(false) {
            let why = status[error].as_str().unwrap_or("no answer");
            return findings.warning(
                "lander",
                format!("{state}. It does not reach {what}: {why}"),
                "records stay in Kafka and are landed when it is back",
                "see kafka and database below",
            );
        }
    }
    findings.ok("lander", state);
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)]

    use serde_json::json;

    use super::super::line::Verdict::{self, Failure, Ok as Fine, Warning};
    use super::super::told::told;
    use super::*;

    fn free(port: u16) -> (SocketAddr, Port) {
        (SocketAddr::from(([127, 0, 0, 1], port)), Port::Free)
    }

    #[track_caller]
    fn says(change: impl FnOnce(&mut Facts), check: &str, verdict: Verdict, words: &str) {
        let mut facts = Facts {
            http: free(4000),
            admin: free(4001),
            land: free(4002),
            gateway: Who::Nobody,
            lander: Who::Nobody,
            allow_anonymous: false,
            guard: Ok(Guarded::default()),
        };
        change(&mut facts);
        told(&lines(&facts), check, verdict, &[words]);
    }

    fn running(wal: Value, broker_up: bool) -> Who {
        Who::Ours(
            json!({"gateway": "g", "version": "1", "wal": wal, "forward": {"broker_up": broker_up}, "held_records": 0}),
        )
    }

    #[test]
    fn a_port_is_free_ours_or_somebody_elses() {
        says(|_| (), "http.listen", Fine, "127.0.0.1:4000 is free");
        let taken = |facts: &mut Facts| facts.http.1 = Port::Taken;
        says(taken, "http.listen", Failure, "sport = :4000");
        let ours = |facts: &mut Facts| {
            taken(facts);
            facts.gateway = running(json!({}), true);
        };
        says(ours, "http.listen", Fine, "by the gateway that runs");
        says(
            |facts| facts.land.1 = Port::Taken,
            "land.listen",
            Warning,
            "sport = :4002",
        );
        says(
            |facts| facts.admin.1 = Port::Unusable("no".into()),
            "admin.listen",
            Failure,
            "ip addr",
        );
        let open = |facts: &mut Facts| {
            facts.http.0 = SocketAddr::from(([0, 0, 0, 0], 4000));
            facts.allow_anonymous = true;
        };
        says(open, "who may send", Warning, "firewall");
    }

    #[test]
    fn keys_and_certificates_are_looked_at() {
        let guarded = |keys, days: Option<i32>| {
            move |facts: &mut Facts| {
                facts.http.0 = SocketAddr::from(([0, 0, 0, 0], 4000));
                let expiry = days.map(|days| Expiry {
                    until: "May 1".into(),
                    days,
                    timestamp_seconds: 0,
                });
                facts.guard = Ok(Guarded {
                    keys,
                    tls: days.is_some(),
                    expiry,
                });
            }
        };
        says(guarded(Some(0), None), "api keys", Warning, "key create");
        says(guarded(Some(2), None), "api keys", Warning, "clear text");
        says(guarded(Some(2), Some(90)), "api keys", Fine, "2 keys");
        says(guarded(None, Some(90)), "TLS certificate", Fine, "until May 1");
        says(guarded(None, Some(3)), "TLS certificate", Warning, "in 3 days: May 1");
        says(guarded(None, Some(-1)), "TLS certificate", Failure, "clients refuse it");
        let broken = |facts: &mut Facts| {
            facts.guard = Err(FileError {
                key: "http.api_keys_file",
                advice: "Correct the file",
                origin: crate::config::Origin::BuiltIn,
                source: anyhow::anyhow!("no such file"),
            });
        };
        says(broken, "http.api_keys_file", Failure, "no such file");
    }

    #[test]
    fn a_gateway_that_runs_says_how_it_is() {
        says(|_| (), "gateway", Fine, "none runs");
        let is = |wal, up| move |facts: &mut Facts| facts.gateway = running(wal, up);
        says(
            is(json!({"backlog_records": 1}), true),
            "gateway",
            Fine,
            "1 record (0 B) wait",
        );
        says(is(json!({}), false), "gateway", Warning, "does not reach Kafka");
        says(is(json!({"refusing": "full"}), false), "gateway", Failure, "503");
        says(is(json!({"poisoned": "EIO"}), true), "gateway", Failure, "EIO");
        says(
            is(json!({"corruption_records": 2}), true),
            "gateway",
            Warning,
            "2 damaged",
        );
    }

    #[test]
    fn a_lander_that_runs_says_how_it_is() {
        let is = |value| move |facts: &mut Facts| facts.lander = Who::Ours(value);
        says(is(json!({"lag_records": 3})), "lander", Fine, "3 records behind");
        says(
            is(json!({"sink_up": false, "sink_error": "gone"})),
            "lander",
            Warning,
            "gone",
        );
    }

    #[test]
    fn a_port_that_somebody_has_is_taken_and_free_again_after() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        assert_eq!(port(address), Port::Taken);
        drop(listener);
        assert_eq!(port(address), Port::Free);
    }
}
