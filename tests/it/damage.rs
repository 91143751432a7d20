//! Damage of every kind, at random places of folders that real gateways left: `wal verify` tells exactly what is lost,
//! `wal salvage` saves exactly the rest, and neither changes a byte of what it reads.
//!
//! What is lost is worked out by a second reader (frames.rs), from the documented layout.

pub mod folder;
mod frames;
mod plant;
mod source;

use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::path::Path;
use std::sync::Arc;

use frames::{LOGS, Log, count};
use source::{Source, config, list, list_ending, lost, report, snapshot, text, tidegate};

use crate::support::evidence::Evidence;
use crate::support::gateway::{Gateway, NOWHERE};
use crate::support::{JSON, Random, soak};

cases!["damage":
    what_is_lost_is_told_and_the_rest_saved [],
    what_a_crash_tore_is_void_behind_the_next_generation [],
    what_is_lost_of_a_partly_acknowledged_log_is_told_and_the_rest_saved [Kafka],
];

/// "tidegate-wal 1", a line feed, a UUID.
const IDENTITY_BYTES: usize = 15 + 36;

fn what_is_lost_is_told_and_the_rest_saved() {
    let mut random = Random::new();
    let source = Source::killed(&mut random, 2_500);
    let plants = if soak() { 700 } else { plant::KINDS.len() };
    plant_all(&source, &mut random, plants, "a log");
}

fn what_is_lost_of_a_partly_acknowledged_log_is_told_and_the_rest_saved() {
    let mut random = Random::new();
    let source = Source::partly_acknowledged(&mut random);
    let plants = if soak() { 300 } else { plant::KINDS.len() };
    plant_all(&source, &mut random, plants, "a partly acknowledged log");
}

/// Sequences of a commit that was cut off are given out again: the next generation begins with them.
fn what_a_crash_tore_is_void_behind_the_next_generation() {
    let source = Source::killed(&mut Random::new(), 800);
    let folder = tempfile::tempdir().unwrap();
    let damaged = folder.path().join("damaged");
    source.copy_to(&damaged);
    let log = Log::read(&damaged, "main").unwrap();
    let [sealed, next, ..] = &log.generations[..] else {
        panic!("two generations")
    };
    let mut bytes = std::fs::read(sealed.folder.join("db")).unwrap();
    bytes.extend(frames::torn(sealed.key, next.first, b"never answered OK"));
    std::fs::write(sealed.folder.join("db"), bytes).unwrap();
    assert_eq!(check(&source, &damaged, &folder.path().join("wal")), 0);
}

/// Each kind in turn. A start of a gateway is dear: every fourth salvaged folder gets one.
fn plant_all(source: &Source, random: &mut Random, plants: usize, of: &str) {
    let seed = random.seed();
    let turn = usize::try_from(random.within(0, 4)).unwrap();
    let mut records = 0;
    for at in 0..plants {
        let (name, plant) = plant::KINDS[at % plant::KINDS.len()];
        let folder = Arc::new(tempfile::Builder::new().prefix("tidegate-test-").tempdir().unwrap());
        let damaged = folder.path().join("damaged");
        source.copy_to(&damaged);
        let what = format!("seed {seed}, plant {at}: {name}: {}", plant(&damaged, random));
        let checked = catch_unwind(AssertUnwindSafe(|| {
            let lost = check(source, &damaged, &folder.path().join("wal"));
            if (at + turn) % 4 == 0 {
                goes_on(source, &folder);
            }
            lost
        }));
        match checked {
            Ok(lost) => records += lost,
            Err(panic) => {
                eprintln!("{what}");
                resume_unwind(panic);
            }
        }
    }
    println!("{plants} plants, {records} records lost, none in silence");
    assert!(records > 0, "the damage hit something");
    let whole: usize = source.entries.values().map(BTreeMap::len).sum();
    let evidence = Evidence {
        injected: plants as u64,
        answered: (plants * whole) as u64,
        lost: records,
        repeated: 0,
    };
    evidence.print(&format!(
        "damage of bits, sectors, files and folders of {of}, all of them told and the rest saved"
    ));
}

/// Verifies and salvages `damaged`, and compares with what the second reader sees. Returns how many are lost.
fn check(source: &Source, damaged: &Path, salvaged: &Path) -> u64 {
    let logs: Vec<(&str, Log)> = LOGS
        .iter()
        .filter_map(|name| Some((*name, Log::read(damaged, name)?)))
        .collect();
    let (there, whole) = (
        std::fs::read(damaged.join("identity")).unwrap_or_default(),
        std::fs::read(source.wal().join("identity")).unwrap(),
    );
    // Cut off before the checksum it is one of an early version, and says the same.
    let is_early = whole.starts_with(&there) && [IDENTITY_BYTES, IDENTITY_BYTES + 1].contains(&there.len());
    let has_identity = there == whole || is_early;
    let before = snapshot(damaged);

    let verified = tidegate(&["wal", "verify", "--wal", text(damaged), "--json"]);
    assert_eq!(snapshot(damaged), before, "verify changed the folder");
    let told = report(&verified);
    for (name, log) in &logs {
        assert_eq!(lost(&told[*name]), log.lost(), "{name}: {}", told[*name]);
        assert_eq!(told[*name]["records"], log.whole().len(), "{name}");
        let faults = told[*name]["faults"].as_array().unwrap();
        assert_eq!(faults.len(), usize::from(log.witness.is_none()), "{name}: {faults:?}");
    }
    assert_eq!(told.len(), logs.len() + usize::from(!has_identity), "{told:?}");
    let is_right = has_identity
        && logs
            .iter()
            .all(|(_, log)| log.witness.is_some() && log.lost().is_empty());
    assert_eq!(
        verified.status.code(),
        Some(if is_right { 0 } else { 3 }),
        "{verified:?}"
    );

    let main = &logs[0].1;
    let is_listed = |lines: &BTreeMap<u64, String>| {
        let whole = main.whole();
        assert!(
            lines.keys().eq(whole.keys()),
            "{} records listed of {}",
            lines.len(),
            whole.len()
        );
        assert!(
            lines
                .iter()
                .all(|(sequence, line)| source.lines.get(sequence) == Some(line))
        );
    };
    if has_identity {
        is_listed(&list_ending(damaged, if main.lost().is_empty() { 0 } else { 3 }));
    }

    let mut arguments = vec![
        "wal",
        "salvage",
        "--wal",
        text(damaged),
        "--to",
        text(salvaged),
        "--json",
    ];
    if !has_identity {
        let refused = tidegate(&arguments);
        assert_eq!(refused.status.code(), Some(3), "{refused:?}");
        assert!(
            String::from_utf8_lossy(&refused.stderr).contains("--identity"),
            "{refused:?}"
        );
        assert!(!salvaged.exists());
        arguments.extend(["--identity", &source.id]);
    }
    let output = tidegate(&arguments);
    assert_eq!(snapshot(damaged), before, "salvage changed its source");
    let saved = report(&output);
    let is_whole = logs
        .iter()
        .all(|(name, log)| log.lost().is_empty() && (*name != "main" || log.witness.is_some()));
    assert_eq!(output.status.code(), Some(if is_whole { 0 } else { 3 }), "{output:?}");
    for (name, log) in &logs {
        let copy = Log::read(salvaged, name).unwrap_or_else(|| panic!("{name} was not salvaged"));
        assert_eq!(lost(&saved[*name]), log.lost(), "{name}");
        let (have, want) = (copy.whole(), log.whole());
        assert!(have == want, "{name}: {} records saved of {}", have.len(), want.len());
        let truth = &source.entries[name];
        let changed = have
            .iter()
            .find(|(sequence, bytes)| truth.get(sequence).map(Vec::as_slice) != Some(**bytes));
        assert_eq!(
            changed.map(|(sequence, _)| sequence),
            None,
            "{name}: not what was written"
        );
        assert_eq!(copy.acked(), log.acked(), "{name}");
        assert!(copy.committed() >= log.committed(), "{name}");
    }
    assert!(
        std::fs::read_to_string(salvaged.join("identity"))
            .unwrap()
            .contains(&source.id)
    );
    let left = std::fs::read_dir(salvaged.parent().unwrap()).unwrap().count();
    assert_eq!(left, 2, "nothing is left beside source and target");

    let again = tidegate(&["wal", "verify", "--wal", text(salvaged), "--json"]);
    assert_eq!(again.status.code(), Some(0), "the salvaged folder is right: {again:?}");
    is_listed(&list(salvaged));
    logs.iter().map(|(_, log)| count(&log.lost())).sum()
}

/// A gateway starts on the salvaged folder, gives no sequence out twice, and finds no damage.
fn goes_on(source: &Source, folder: &Arc<tempfile::TempDir>) {
    let mut gateway = Gateway::start_in(Arc::clone(folder), &config(NOWHERE));
    let answer = gateway
        .client()
        .post("/v1/topics/after", JSON, br#"{"new":1}"#)
        .unwrap();
    assert_eq!(answer.status, 202, "{answer:?}");
    let sequence = answer.json()["first_seq"].as_u64().unwrap();
    assert!(
        sequence >= source.next,
        "{sequence} was used before: the next was {}",
        source.next
    );
    assert_eq!(gateway.metric("tidegate_wal_corruption_records_total"), 0.0);
    gateway.sigkill();
    let verified = tidegate(&["wal", "verify", "--wal", text(&gateway.wal())]);
    assert_eq!(verified.status.code(), Some(0), "{verified:?}");
    assert!(list(&gateway.wal())[&sequence].contains("new"));
}
