//! tidegate as its users start it: the binary, on this machine's loopback, with a real Apache Kafka.
//!
//! A harness of its own (libtest-mimic) instead of `#[test]`: a test whose parts are not on this machine is
//! reported as ignored and says what it misses, and one broker serves the whole run and is stopped at its end.
//! `tests/run` leaves nothing out. Three tests run side by side, for most of them wait most of the time; what
//! measures runs [alone](support::Part::Alone).

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)]

#[macro_use]
mod support;

mod access;
mod bad_input;
mod checker;
mod cli;
mod cli_doctor;
mod cli_status;
mod clients;
mod clock;
mod conformance;
mod connect;
mod crash;
mod damage;
mod exactly_once;
mod faults;
mod forward;
mod harness;
mod heal;
mod http;
mod kafka_faults;
mod land;
mod land_faults;
mod land_files;
mod land_postgres;
mod nginx;
mod observe;
mod openapi;
mod operator;
mod overload;
mod protocols;
mod receipts;
mod retries;
mod runbook;
mod service;
mod sinks;
mod status_page;
mod upgrade;
mod wal_verbs;

use std::io::Write as _;
use std::process::ExitCode;
use std::sync::{Mutex, PoisonError, RwLock};
use std::time::{Duration, Instant};

use libtest_mimic::{Arguments, Completion, Trial};

use support::{Case, Part};

/// How many of the longest tests the end of a run names: they are where its minutes go.
const LONGEST: usize = 12;

/// Runs a test beside another one, or alone. A test that fails is no reason for the others to.
fn run(case: &Case) {
    static MACHINE: RwLock<()> = RwLock::new(());
    let (_alone, _beside);
    match case.needs.contains(&Part::Alone) {
        true => _alone = MACHINE.write().unwrap_or_else(PoisonError::into_inner),
        false => _beside = MACHINE.read().unwrap_or_else(PoisonError::into_inner),
    }
    let began = Instant::now();
    (case.run)();
    let mut took = TOOK.lock().unwrap_or_else(PoisonError::into_inner);
    took.push((began.elapsed(), case.name));
}

/// Of the tests that passed.
static TOOK: Mutex<Vec<(Duration, &str)>> = Mutex::new(Vec::new());

fn main() -> ExitCode {
    let mut arguments = Arguments::from_args();
    arguments.test_threads.get_or_insert(3);
    let modules = [
        harness::CASES,
        checker::CASES,
        http::CASES,
        bad_input::CASES,
        protocols::CASES,
        access::CASES,
        conformance::CASES,
        connect::CASES,
        receipts::CASES,
        retries::CASES,
        openapi::CASES,
        clients::CASES,
        overload::CASES,
        forward::CASES,
        crash::CASES,
        exactly_once::CASES,
        exactly_once::mark::CASES,
        exactly_once::ends::CASES,
        kafka_faults::IDEMPOTENT,
        kafka_faults::EXACTLY_ONCE,
        clock::CASES,
        damage::CASES,
        damage::folder::CASES,
        faults::calls::CASES,
        faults::power::CASES,
        faults::mounts::CASES,
        land::CASES,
        land_faults::CASES,
        land_files::CASES,
        sinks::sqlite::CASES,
        sinks::postgres::CASES,
        sinks::files::CASES,
        land_postgres::tables::CASES,
        land_postgres::refusals::CASES,
        land_postgres::tls::CASES,
        land_postgres::silence::CASES,
        cli::CASES,
        cli_status::CASES,
        wal_verbs::CASES,
        observe::CASES,
        operator::CASES,
        runbook::CASES,
        runbook::watched::CASES,
        service::CASES,
        upgrade::CASES,
        nginx::CASES,
        heal::CASES,
        status_page::CASES,
        cli_doctor::CASES,
    ];
    let mut skipped = Vec::new();
    let mut trials = Vec::new();
    for case in modules.into_iter().flatten() {
        let missing: Vec<String> = case.needs.iter().filter_map(|part| part.missing()).collect();
        let reason = missing.join("; ");
        let is_required = case
            .needs
            .iter()
            .any(|part| part.is_required() && part.missing().is_some());
        if !missing.is_empty() && !is_required {
            skipped.push(format!("{}: {reason}", case.name));
        }
        trials.push(Trial::ignorable_test(case.name, move || {
            if reason.is_empty() {
                run(case);
                return Ok(Completion::Completed);
            }
            if is_required {
                return Err(reason.into());
            }
            Ok(Completion::ignored_with(reason))
        }));
    }
    let conclusion = libtest_mimic::run(&arguments, trials);
    support::kafka::Kafka::end_shared();
    support::postgres::Postgres::end_shared();
    let mut took = TOOK.lock().unwrap_or_else(PoisonError::into_inner);
    took.sort_unstable_by(|a, b| b.cmp(a));
    let longest = took.iter().take(LONGEST);
    let longest = longest.map(|(time, name)| format!("{:.1} s {name}", time.as_secs_f64()));
    tell("the longest", &longest.collect::<Vec<_>>());
    if !arguments.list {
        let about = "skipped here (./tests/run leaves out only what needs a loop device, where there is none)";
        tell(about, &skipped);
    }
    conclusion.exit_code()
}

fn tell(about: &str, lines: &[String]) {
    if !lines.is_empty() {
        // Not a print macro: this is to be seen whatever captures those.
        let text = format!("\n{about}:\n  {}\n", lines.join("\n  "));
        std::io::stderr().write_all(text.as_bytes()).expect("stderr is open");
    }
}
