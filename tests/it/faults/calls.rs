//! The process ends, or a call fails, at the n-th of all calls that the log makes, for each n.

use std::fs;
use std::path::Path;
use std::sync::Arc;

use super::shim::{CHANGES, Plan, take};
use super::{Answered, Book, Records, judge};
use crate::support::evidence::Evidence;
use crate::support::gateway::{Config, Gateway, NOWHERE};
use crate::support::{Random, soak};

cases!["calls":
    killed_at_any_call_of_its_work [],
    killed_at_any_call_of_its_start [],
    an_error_at_any_call_costs_nothing_answered_ok [],
    a_disk_that_is_full_from_any_call_on_costs_nothing_answered_ok [],
    half_a_write_at_any_call_costs_nothing_answered_ok [],
    an_error_at_any_read_costs_nothing_answered_ok [],
];

/// Posts of a run: enough for some rotations.
const POSTS: usize = 40;

fn config() -> Config {
    let mut config = Config::new(NOWHERE);
    config
        .set("wal.generation_bytes", "1 MiB")
        .set("wal.compression", "none");
    config
}

/// Which calls of `total` are tried: all of them in a soak, else some.
fn chosen(total: u64) -> Vec<u64> {
    let some = 30;
    if soak() || total <= some {
        return (1..=total).collect();
    }
    let mut random = Random::new();
    (0..some).map(|_| random.within(1, total + 1)).collect()
}

fn posts(gateway: &Gateway, book: &Book) {
    let client = gateway.client();
    for i in 0..POSTS {
        // A refusal is an answer too.
        if !book.post(&client, if i % 3 == 0 { 150_000 } else { 500 }, None) {
            return;
        }
    }
}

fn count(file: &Path) -> u64 {
    let bytes = fs::read(file).unwrap();
    u64::from_le_bytes(bytes.try_into().unwrap())
}

fn assert_right(gateway: &Gateway, book: &Book, when: &str) {
    let answered = book.answered.lock().unwrap().clone();
    let due: Vec<&Answered> = answered.iter().collect();
    if let Err(fault) = judge(&gateway.wal(), book, &due, &Records::new()) {
        panic!("{when}: {fault}");
    }
}

/// With none of what was answered OK lost.
fn print(injected: usize, answered: usize, fault: &str) {
    let evidence = Evidence {
        injected: injected as u64,
        answered: answered as u64,
        ..Evidence::default()
    };
    evidence.print(fault);
}

/// A gateway at work with `plan` upon it, judged afterwards; how often the plan's calls were made, and how many records were
/// answered OK.
fn at_work(plan: impl Fn(Plan) -> Plan, when: &str) -> (u64, usize) {
    let folder = Arc::new(tempfile::tempdir().unwrap());
    let counter = folder.path().join("count");
    let plan = plan(Plan {
        count: Some(counter.clone()),
        ..Plan::new(&folder.path().join("wal"))
    });
    let mut config = config();
    plan.put(&mut config);
    let book = Book::new("t");
    let Some(mut gateway) = Gateway::try_start_in(Arc::clone(&folder), &config) else {
        // It has ended instead of serving, as it may: nothing was answered.
        let wal = folder.path().join("wal");
        if wal.exists() {
            judge(&wal, &book, &[], &Records::new()).unwrap_or_else(|fault| panic!("{when}: {fault}"));
        }
        return (count(&counter), 0);
    };
    posts(&gateway, &book);
    gateway.sigkill();
    assert_right(&gateway, &book, when);
    (count(&counter), book.answered())
}

/// Tries a fault at one call after the other.
fn at_each(calls: &'static str, does: &'static str, for_ever: bool) {
    let (total, mut answered) = at_work(|plan| Plan { calls, ..plan }, "without a fault");
    assert!(total >= 20, "{total} calls are no work");
    let chosen = chosen(total);
    let mut reached = 0;
    for at in &chosen {
        let plan = |plan| Plan {
            calls,
            does,
            at: Some(*at),
            for_ever,
            ..plan
        };
        let (made, more) = at_work(plan, &format!("{does} at call {at} of {total} ({calls})"));
        answered += more;
        reached += usize::from(made >= *at);
    }
    // Two runs do not make quite the same calls: groups of commits differ.
    assert!(
        reached * 3 >= chosen.len() * 2,
        "{does} happened {reached} times of {} ({calls})",
        chosen.len()
    );
    print(
        chosen.len(),
        answered,
        &format!("{does} at a call of its log ({calls}), at work"),
    );
}

fn killed_at_any_call_of_its_work() {
    at_each(CHANGES, "kill", false);
}

fn an_error_at_any_call_costs_nothing_answered_ok() {
    for calls in ["s", "w", "om"] {
        at_each(calls, "eio", false);
    }
}

fn a_disk_that_is_full_from_any_call_on_costs_nothing_answered_ok() {
    at_each("womt", "enospc", true);
}

fn half_a_write_at_any_call_costs_nothing_answered_ok() {
    at_each("w", "short", true);
}

/// What a killed gateway left is started on again and again, with a fault at one call after the other of the start.
fn at_each_of_a_start(calls: &'static str, does: &'static str) {
    let mut gateway = Gateway::start(&config());
    let book = Book::new("t");
    posts(&gateway, &book);
    gateway.sigkill();
    let wal = gateway.wal();
    let counter = wal.with_file_name("count");
    let plan = |at| Plan {
        calls,
        does,
        at,
        count: Some(counter.clone()),
        ..Plan::new(&wal)
    };
    plan(None).put(gateway.config());
    gateway.restart();
    gateway.sigkill();
    let total = count(&counter);
    let tried = chosen(total);
    for at in &tried {
        plan(Some(*at)).put(gateway.config());
        // It may have been too late, or borne: then it serves.
        if gateway.try_restart() {
            gateway.sigkill();
        }
        assert_right(
            &gateway,
            &book,
            &format!("{does} at call {at} of {total} of a start ({calls})"),
        );
    }
    take(gateway.config());
    gateway.restart();
    print(
        tried.len(),
        book.answered(),
        &format!("{does} at a call of its log ({calls}), during a start"),
    );
}

fn killed_at_any_call_of_its_start() {
    at_each_of_a_start(CHANGES, "kill");
}

/// A start reads what is there; what the disk does not give is no reason to begin behind it.
fn an_error_at_any_read_costs_nothing_answered_ok() {
    at_each_of_a_start("or", "eio");
}
