//! The machine: its clock, its limit of open files, its memory.

use std::fs;
use std::path::Path;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use jiff::Timestamp;
use rustix::process::{Resource, getrlimit};

use super::line::{Findings, Line};
use crate::cli::listen::files_needed;
use crate::cli::words::{size, time};
use crate::config::Config;

/// 2025-01-01: this program is younger.
const YOUNGEST: u64 = 1_735_689_600;
/// 2100-01-01.
const OLDEST: u64 = 4_102_444_800;
/// What a clock may be behind a file without a word: steps of a time server.
const BEHIND: Duration = Duration::from_secs(5);
/// What the gateway takes beside what its configuration says: itself, the log's caches, the Kafka client.
const MEMORY_BASE: u64 = 128 << 20;
/// Many clients at once with the largest body take so many of it: what of all bodies may be in memory, what is made of them by as many
/// as are read at once, and the commit. As much as was measured (docs/small.md).
const LARGEST_BODIES: u64 = 16;
/// Folders of the log are so deep.
const DEPTH: u32 = 4;

/// What shows that something keeps the clock right.
const SYNCHRONIZED: &[(&str, &str)] = &[
    ("/run/systemd/timesync/synchronized", "systemd-timesyncd"),
    ("/run/chrony/chronyd.pid", "chrony"),
    ("/run/chronyd.pid", "chrony"),
    ("/run/ntpd.pid", "ntpd"),
];
/// The same, as processes (15 characters).
const SYNCHRONIZERS: &[&str] = &["chronyd", "ntpd", "openntpd", "ptp4l", "phc2sys"];

#[derive(Debug, Clone)]
struct Facts {
    now: SystemTime,
    /// When the newest file of the log was written.
    newest: Option<SystemTime>,
    synchronized_by: Option<&'static str>,
    /// `ulimit -n`, and `ulimit -Hn`; `u64::MAX`: none.
    files: (u64, u64),
    connections_max: u32,
    /// What is free, or all that a container may take.
    memory: Option<u64>,
    in_flight_bytes_max: u64,
    body_bytes_max: u64,
}

pub(super) fn look(config: &Config, _: &std::sync::atomic::AtomicBool) -> Vec<Line> {
    let files = getrlimit(Resource::Nofile);
    lines(&Facts {
        now: SystemTime::now(),
        newest: newest(&config.wal.path, DEPTH),
        synchronized_by: synchronized_by(),
        files: (files.current.unwrap_or(u64::MAX), files.maximum.unwrap_or(u64::MAX)),
        connections_max: config.http.connections_max,
        memory: memory(),
        in_flight_bytes_max: config.forward.in_flight_bytes_max,
        body_bytes_max: config.http.body_bytes_max,
    })
}

fn newest(folder: &Path, depth: u32) -> Option<SystemTime> {
    let entries = fs::read_dir(folder).ok()?.flatten();
    let times = entries.filter_map(|entry| {
        let metadata = entry.metadata().ok()?;
        match metadata.is_dir() {
            true if depth > 0 => newest(&entry.path(), depth - 1),
            true => None,
            // That of a measurement beside it is of now.
            false if entry.file_name().to_string_lossy().starts_with('.') => None,
            false => metadata.modified().ok(),
        }
    });
    times.max()
}

fn synchronized_by() -> Option<&'static str> {
    let by_file = SYNCHRONIZED.iter().find(|(path, _)| Path::new(path).exists());
    by_file.map(|(_, name)| *name).or_else(|| {
        let processes = fs::read_dir("/proc").ok()?.flatten();
        let mut names = processes.filter_map(|process| fs::read_to_string(process.path().join("comm")).ok());
        names.find_map(|name| SYNCHRONIZERS.iter().find(|known| **known == name.trim()).copied())
    })
}

/// The smaller of what is available on the machine and what its container allows.
fn memory() -> Option<u64> {
    let info = fs::read_to_string("/proc/meminfo").ok()?;
    let line = info.lines().find_map(|line| line.strip_prefix("MemAvailable:"))?;
    let available = line
        .split_whitespace()
        .next()?
        .parse::<u64>()
        .ok()?
        .saturating_mul(1024);
    let limit = [
        "/sys/fs/cgroup/memory.max",
        "/sys/fs/cgroup/memory/memory.limit_in_bytes",
    ];
    let limit = limit
        .iter()
        .find_map(|path| fs::read_to_string(path).ok()?.trim().parse().ok());
    Some(limit.map_or(available, |limit: u64| limit.min(available)))
}

fn lines(facts: &Facts) -> Vec<Line> {
    let mut findings = Findings::of("machine");
    clock(facts, &mut findings);
    match facts.synchronized_by {
        Some(name) => findings.ok("clock kept right", format!("by {name}")),
        None => findings.warning(
            "clock kept right",
            "nothing shows that it is (no systemd-timesyncd in step, no chrony, no ntpd)",
            "records carry this machine's time; a clock that drifts puts them into the wrong hour, and one that is days off \
             makes Kafka refuse or delete them",
            "`timedatectl set-ntp true`, or install chrony. In a container the clock is the host's: look there",
        ),
    }
    let needed = files_needed(facts.connections_max);
    let (soft, hard) = facts.files;
    if hard >= needed {
        let raised = if soft < needed {
            ", which the gateway raises itself"
        } else {
            ""
        };
        findings.ok(
            "open files",
            format!(
                "{} are allowed{raised}; {needed} are needed for http.connections_max = {}",
                count(if soft < needed { hard } else { soft }),
                facts.connections_max
            ),
        );
    } else {
        findings.warning(
            "open files",
            format!(
                "only {hard} are allowed; {needed} are needed for http.connections_max = {}",
                facts.connections_max
            ),
            "the gateway starts, with fewer connections at once",
            "raise the limit for its user (systemd: LimitNOFILE=, a shell: ulimit -Hn), or lower http.connections_max",
        );
    }
    let base = MEMORY_BASE.saturating_add(facts.in_flight_bytes_max);
    let need = base.saturating_add(facts.body_bytes_max.saturating_mul(LARGEST_BODIES));
    let needed = format!(
        "about {} are needed at full load, {} when many clients send bodies of http.body_bytes_max ({}) at once",
        size(base),
        size(need),
        size(facts.body_bytes_max)
    );
    match facts.memory {
        None => {}
        Some(memory) if memory < need => findings.warning(
            "memory",
            format!("{} are left; {needed}", size(memory)),
            "under load the system may end the gateway; nothing that was answered OK is lost by that",
            "lower http.body_bytes_max or forward.in_flight_bytes_max (docs/small.md), or give the machine or container more memory",
        ),
        Some(memory) => findings.ok("memory", format!("{} are left; {needed}", size(memory))),
    }
    findings.lines
}

fn count(limit: u64) -> String {
    if limit == u64::MAX {
        "any number".to_owned()
    } else {
        limit.to_string()
    }
}

fn clock(facts: &Facts, findings: &mut Findings) {
    let seconds = facts.now.duration_since(UNIX_EPOCH).map_or(0, |time| time.as_secs());
    let shown = Timestamp::try_from(facts.now).map_or_else(|_| "unreadable".to_owned(), |now| format!("{now:.0}"));
    let behind = facts.newest.and_then(|newest| newest.duration_since(facts.now).ok());
    if !(YOUNGEST..OLDEST).contains(&seconds) {
        findings.failure(
            "clock",
            format!("it says {shown}, which cannot be"),
            "records carry this time: Kafka may refuse them, or delete them at once as too old",
            "set the clock (`timedatectl set-ntp true`, `chronyc makestep`) before the gateway starts; an empty battery is the \
             usual reason",
        );
    } else if let Some(behind) = behind.filter(|behind| *behind > BEHIND) {
        findings.warning(
            "clock",
            format!(
                "it says {shown}: {} before the log's newest file was written",
                time(behind)
            ),
            "the clock was set back, or was ahead before: records get times in the wrong order",
            "find out which of the two it was, and set the clock (`timedatectl`, `chronyc tracking`)",
        );
    } else {
        findings.ok("clock", shown);
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)]

    use super::super::line::Verdict::{self, Failure, Ok as Fine, Warning};
    use super::super::told::told;
    use super::*;

    fn at(seconds: u64) -> SystemTime {
        UNIX_EPOCH + Duration::from_secs(seconds)
    }

    #[track_caller]
    fn says(change: impl FnOnce(&mut Facts), check: &str, verdict: Verdict, words: &str) {
        let mut facts = Facts {
            now: at(YOUNGEST + 1000),
            newest: Some(at(YOUNGEST + 1000)),
            synchronized_by: Some("chrony"),
            files: (1024, 1 << 20),
            connections_max: 4096,
            memory: Some(8 << 30),
            in_flight_bytes_max: 64 << 20,
            body_bytes_max: 4 << 20,
        };
        change(&mut facts);
        told(&lines(&facts), check, verdict, &[words]);
    }

    #[test]
    fn clocks_that_cannot_be_right_are_told() {
        says(|_| (), "clock", Fine, "2025-01-01T00:16:40Z");
        says(|facts| facts.now = at(0), "clock", Failure, "1970");
        says(|facts| facts.now = at(OLDEST), "clock", Failure, "2100");
        says(
            |facts| facts.newest = Some(at(YOUNGEST + 8200)),
            "clock",
            Warning,
            "2h before",
        );
        says(|facts| facts.newest = Some(at(YOUNGEST + 1002)), "clock", Fine, "2025");
        says(|facts| facts.newest = None, "clock", Fine, "2025");
        says(
            |facts| facts.synchronized_by = None,
            "clock kept right",
            Warning,
            "chrony",
        );
    }

    #[test]
    fn limits_are_compared_with_what_is_configured() {
        says(|_| (), "open files", Fine, "raises itself");
        says(
            |facts| facts.files = (1 << 20, 1 << 20),
            "open files",
            Fine,
            "4608 are needed",
        );
        says(|facts| facts.files = (1024, 4096), "open files", Warning, "LimitNOFILE");
        says(
            |facts| facts.memory = Some(256 << 20),
            "memory",
            Fine,
            "192.0 MiB are needed at full load, 256.0 MiB when",
        );
        says(
            |facts| facts.memory = Some((256 << 20) - 1),
            "memory",
            Warning,
            "body_bytes_max",
        );
    }
}
