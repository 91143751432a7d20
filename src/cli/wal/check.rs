//! `wal verify` and `wal salvage`: what of the log is right, what is lost, and a whole log out of what is left.

use std::path::PathBuf;

use anyhow::Result;
use serde::Serialize;

use super::super::at::{At, Where, archive, in_use};
use super::super::exit::{Damage, Usage};
use super::super::print;
use super::super::words::{counted, size};
use super::progress;
use super::records::Records;
use crate::config::Config;
use crate::ops::Query;
use crate::record::{Sequence, WalId};
use crate::wal::{self, Lost, SalvageError, Salvaged, Verified};

/// `wal verify`
#[derive(Debug, clap::Args)]
pub(in crate::cli) struct Verify {
    /// One JSON object a line, one for each log of the folder
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    at: At,
}

/// `wal salvage`
#[derive(Debug, clap::Args)]
pub(in crate::cli) struct Salvage {
    /// The new folder; it must not exist yet. Best on another disk
    #[arg(long, value_name = "DIR")]
    to: PathBuf,
    /// The identity of the log, needed only where its file is missing or damaged: the header tidegate-wal of its records
    /// in Kafka
    #[arg(long, value_name = "UUID")]
    identity: Option<WalId>,
    /// One JSON object a line, one for each log of the folder
    #[arg(long)]
    json: bool,
}

/// A log as verify and salvage tell of it.
#[derive(Serialize)]
struct Told<'a> {
    log: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    trimmed: Option<Sequence>,
    #[serde(skip_serializing_if = "Option::is_none")]
    acked: Option<Sequence>,
    #[serde(skip_serializing_if = "Option::is_none")]
    committed: Option<Sequence>,
    #[serde(skip_serializing_if = "Option::is_none")]
    generations: Option<usize>,
    #[serde(skip_serializing_if = "Option::is_none")]
    disk_bytes: Option<u64>,
    /// Read and right, or saved.
    records: u64,
    lost: Vec<ToldLost<'a>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    unknown: Option<(Sequence, Sequence)>,
    faults: Vec<&'a str>,
    notes: Vec<&'a str>,
}

#[derive(Serialize)]
struct ToldLost<'a> {
    first: Sequence,
    last: Sequence,
    records: u64,
    /// Kafka has acknowledged all of them.
    acked: bool,
    reason: &'a str,
}

impl<'a> ToldLost<'a> {
    fn of(lost: &'a Lost, acked: Sequence) -> Self {
        Self {
            first: lost.first,
            last: lost.last,
            records: lost.last - lost.first + 1,
            acked: lost.last <= acked && !lost.passed,
            reason: &lost.reason,
        }
    }

    fn line(&self) -> String {
        let whose = match self.acked {
            true => "Kafka has acknowledged them",
            false => "not known to be in Kafka",
        };
        format!(
            "  LOST        sequences {} to {} ({}, {whose}): {}\n",
            self.first,
            self.last,
            counted(self.records, "record"),
            self.reason
        )
    }
}

pub(super) fn verify(flags: &Verify, config: &Config) -> Result<()> {
    match flags.at.find(config)? {
        Where::Online(_) => verify_online(flags, config),
        Where::Offline(path) => verify_folder(flags, &path),
    }
}

fn verify_folder(flags: &Verify, path: &std::path::Path) -> Result<()> {
    let archive = archive(path)?;
    let total: u64 = archive.logs().map(|log| log.disk_bytes()).sum();
    let bar = progress::bytes(total, "reading");
    let verified = wal::verify_all(&archive, &|bytes| bar.inc(bytes)).map_err(in_use)?;
    bar.finish_and_clear();
    let identity = archive.id().err().map(|error| error.to_string());
    let mut text = String::new();
    if let Some(fault) = &identity {
        let told = Told {
            log: "identity",
            trimmed: None,
            acked: None,
            committed: None,
            generations: None,
            disk_bytes: None,
            records: 0,
            lost: Vec::new(),
            unknown: None,
            faults: vec![fault],
            notes: Vec::new(),
        };
        text.push_str(&match flags.json {
            true => format!("{}\n", serde_json::to_string(&told)?),
            false => format!("identity\n  FAULT       {fault}\n"),
        });
    }
    for log in &verified {
        text.push_str(&match flags.json {
            true => format!("{}\n", serde_json::to_string(&told(log))?),
            false => told_text(log),
        });
    }
    print(text.as_bytes())?;
    let damaged: Vec<&Verified> = verified.iter().filter(|log| log.is_damaged()).collect();
    if damaged.is_empty() && identity.is_none() {
        let is_known =
            (archive.logs()).any(|log| log.is_end_lost() || !log.lost().is_empty() || !log.void().is_empty());
        match (flags.json, is_known) {
            (true, _) => {}
            (false, false) => {
                eprintln!("no damage: everything that was answered OK and is not yet removed can be read")
            }
            (false, true) => eprintln!("no new damage: everything can be read but for what the notes tell of"),
        }
        return Ok(());
    }
    let lost: u64 = damaged.iter().map(|log| log.lost_records()).sum();
    let what = match lost {
        0 if !archive.gone().is_empty() => {
            "a folder of records was lost, and nobody knows how many they were".to_owned()
        }
        0 => "no record is known to be lost, but the folder is damaged".to_owned(),
        lost => format!("{} cannot be read", counted(lost, "record")),
    };
    Err(Damage(format!(
        "{what}. The folder was not changed. `tidegate wal salvage --wal {}{} --to NEW` makes a whole log of everything else, \
         with the same identity and sequences",
        path.display(),
        identity.map_or("", |_| " --identity UUID")
    ))
    .into())
}

fn told(log: &Verified) -> Told<'_> {
    let marks = log.watermarks;
    Told {
        log: log.part.name(),
        trimmed: Some(marks.trimmed),
        acked: Some(marks.acked),
        committed: Some(marks.committed),
        generations: Some(log.generations),
        disk_bytes: Some(log.disk_bytes),
        records: log.records,
        lost: log.lost.iter().map(|lost| ToldLost::of(lost, marks.acked)).collect(),
        unknown: None,
        faults: log.faults.iter().map(String::as_str).collect(),
        notes: log.notes.iter().map(String::as_str).collect(),
    }
}

fn told_text(log: &Verified) -> String {
    let marks = log.watermarks;
    let mut text = format!(
        "{}\n  watermarks  trimmed {}, acknowledged {}, committed {}\n  read        {} in {}, {}\n",
        log.part.name(),
        marks.trimmed,
        marks.acked,
        marks.committed,
        counted(log.records, "record"),
        counted(log.generations as u64, "generation"),
        size(log.disk_bytes),
    );
    for lost in &log.lost {
        text.push_str(&ToldLost::of(lost, marks.acked).line());
    }
    for fault in &log.faults {
        text.push_str(&format!("  FAULT       {fault}\n"));
    }
    for note in &log.notes {
        text.push_str(&format!("  note        {note}\n"));
    }
    text
}

/// What a running gateway does not read.
const MAIN_ONLY: &str = "a running gateway reads only its main log: held records, dead letters and files that were set \
                         aside are verified on the folder, when it is stopped, or on a copy of it";

/// A running gateway reads its own log: what it cannot read it tells.
fn verify_online(flags: &Verify, config: &Config) -> Result<()> {
    let mut records = Records::open(&flags.at, config)?;
    // What Kafka acknowledges meanwhile is in Kafka too.
    let (acked, committed) = (records.acked()?, records.committed()?);
    let query = Query {
        to_seq: Some(committed),
        only_count: true,
        ..Query::default()
    };
    let bar = progress::records(committed, "reading");
    let (mut from, mut count, mut lost) = (1, 0, Vec::new());
    loop {
        let page = records.page(&query, from)?;
        count += page.matched;
        lost.extend(page.damaged.iter().map(|(first, last)| Lost {
            first: *first,
            last: *last,
            reason: "it cannot be read".to_owned(),
            // It may have been passed over, or acknowledged: the gateway does not tell.
            passed: true,
        }));
        from = page.next;
        bar.set_position(from);
        if page.end {
            break;
        }
    }
    bar.finish_and_clear();
    let gone: u64 = lost.iter().map(|lost| lost.last - lost.first + 1).sum();
    // Those it has just found are among them.
    let passed = records.unreadable(0)?.0.saturating_sub(gone);
    let passed = (passed > 0).then(|| {
        format!(
            "{} could not be read when their turn came (held ones and dead letters included), and the gateway went on \
             without them: verify the folder, or a copy of it, to learn which",
            counted(passed, "record")
        )
    });
    let told = Told {
        log: "main",
        trimmed: None,
        acked: Some(acked),
        committed: Some(committed),
        generations: None,
        disk_bytes: None,
        records: count,
        lost: lost.iter().map(|lost| ToldLost::of(lost, acked)).collect(),
        unknown: None,
        faults: passed.as_deref().into_iter().collect(),
        notes: vec![MAIN_ONLY],
    };
    let text = match flags.json {
        true => format!("{}\n", serde_json::to_string(&told)?),
        false => {
            let mut lines: String = told.lost.iter().map(ToldLost::line).collect();
            lines.extend(told.faults.iter().map(|fault| format!("  FAULT       {fault}\n")));
            format!(
                "main\n  watermarks  acknowledged {acked}, committed {committed}\n  read        {} by the running gateway\n{lines}",
                counted(count, "record")
            )
        }
    };
    print(text.as_bytes())?;
    eprintln!("{MAIN_ONLY}");
    match gone {
        0 if passed.is_none() => Ok(()),
        0 => Err(Damage("what is still there can be read; what could not be is lost to this log".to_owned()).into()),
        gone => Err(Damage(format!(
            "{} cannot be read. The gateway goes on with the rest and sets the damaged files aside. For a report of every \
             file stop it and verify the folder, or a copy of it",
            counted(gone, "record")
        ))
        .into()),
    }
}

pub(super) fn salvage(flags: &Salvage, config: &Config) -> Result<()> {
    let path = &config.wal.path;
    let source = archive(path)?;
    let id = match (flags.identity, source.id()) {
        (None, id) => id?,
        (Some(id), Err(_)) => id,
        (Some(given), Ok(known)) if given == known => given,
        (Some(given), Ok(known)) => {
            let text = format!("the log's identity is {known}, and --identity says {given}: leave --identity out");
            return Err(Usage(text).into());
        }
    };
    let total: u64 = source.logs().map(|log| log.disk_bytes()).sum();
    let bar = progress::bytes(total, "saving");
    let salvaged = wal::salvage(&source, id, &flags.to, &|bytes| bar.inc(bytes)).map_err(|error| match error {
        SalvageError::Source(error) => in_use(error),
        error => error.into(),
    })?;
    bar.finish_and_clear();
    let mut text = String::new();
    for log in &salvaged {
        text.push_str(&saved(log, flags.json)?);
    }
    print(text.as_bytes())?;
    let to = flags.to.display();
    let lost: u64 = salvaged
        .iter()
        .flat_map(|log| &log.lost)
        .map(|lost| lost.last - lost.first + 1)
        .sum();
    let next = format!(
        "Start a gateway on it (wal.path = \"{to}\"), or send it with `tidegate wal replay --wal {to}`: what Kafka had already \
         carries the same identity and is landed once"
    );
    let unknown = salvaged
        .iter()
        .any(|log| log.unknown.is_some() || log.gone || !log.faults.is_empty());
    if lost == 0 && !unknown {
        eprintln!("{to} has everything that was in {}. {next}", path.display());
        return Ok(());
    }
    let lost = match lost {
        0 => "whether something is lost is not known".to_owned(),
        lost => format!("{} lost", counted(lost, "record")),
    };
    Err(Damage(format!(
        "{lost}; {to} has everything else, and {} was not changed. {next}",
        path.display()
    ))
    .into())
}

fn saved(log: &Salvaged, json: bool) -> Result<String> {
    let lost: Vec<ToldLost<'_>> = log.lost.iter().map(|lost| ToldLost::of(lost, log.acked)).collect();
    let gone = log
        .gone
        .then_some("its folder was lost, with what was in it, and nobody knows how much that was");
    if json {
        let told = Told {
            log: log.part.name(),
            trimmed: None,
            acked: Some(log.acked),
            committed: Some(log.next - 1),
            generations: None,
            disk_bytes: None,
            records: log.records,
            lost,
            unknown: log.unknown,
            faults: gone.into_iter().chain(log.faults.iter().map(String::as_str)).collect(),
            notes: Vec::new(),
        };
        return Ok(format!("{}\n", serde_json::to_string(&told)?));
    }
    if let Some(gone) = gone {
        return Ok(format!("{}\n  FAULT       {gone}\n", log.part.name()));
    }
    let mut text = format!(
        "{}\n  saved       {}; acknowledged up to {}, the next sequence is {}\n",
        log.part.name(),
        counted(log.records, "record"),
        log.acked,
        log.next
    );
    text.extend(lost.iter().map(ToldLost::line));
    text.extend(log.faults.iter().map(|fault| format!("  FAULT       {fault}\n")));
    if let Some((first, last)) = log.unknown {
        text.push_str(&format!(
            "  UNKNOWN     how far the log had come is not certain (its end is lost, or its witness); sequences {first} to {last} \
             are left out, so that none is used twice\n"
        ));
    }
    Ok(text)
}
