//! What is told of which cluster.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)]

use super::topics::Wanted;
use super::*;
use crate::cli::doctor::line::Verdict::{self, Failure, Ok as Fine, Warning};
use crate::cli::doctor::reach::Closed;
use crate::cli::doctor::told::told;
use crate::forward::check::{Facts, Topic};

#[track_caller]
fn says(look: impl FnOnce(&mut Findings), verdict: Verdict, words: &[&str]) {
    let mut findings = Findings::of("kafka");
    look(&mut findings);
    let [line] = &findings.lines[..] else {
        panic!("{findings:?}")
    };
    told(&findings.lines, &line.check, verdict, words);
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
            message: 1_000_000,
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
        move |findings: &mut Findings| refused("login", &reasons, None, findings)
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
        |findings| refused("login", &[], None, findings),
        Failure,
        &["openssl s_client", "SASL_SSL"],
    );
}
